//! Declaring reserved slots complete.

use std::{sync::Arc, time::Duration};

use kvferry_proto::{BlockHash, Checksum, RegionId, Slot, Summing};

use super::{
    Held, Holder, PinId, Region, SealError, Store, StoreLimits,
    limits::MAX_COPIES_PER_BLOCK,
    slots::{Seen, SlotState},
    state::State,
    words::Place,
};

/// How the blocks of one seal follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Chain {
    /// Not known: each is a root to the eviction policy.
    #[default]
    Unknown,
    /// Each block's parent is the one before it; the first one's is this, or there is none.
    From(Option<BlockHash>),
}

/// Where the checksums of one seal come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Checksums<'a> {
    /// Read the bytes, where the namespace's policy covers the block.
    #[default]
    Compute,
    /// One per slot: a pull has checked them already.
    Given(&'a [Option<Checksum>]),
}

/// Reserved slots whose bytes are complete.
#[derive(Debug, Clone, Copy)]
pub struct Seal<'a> {
    /// Who reserved them.
    pub holder: Holder,
    /// Their region.
    pub region: RegionId,
    /// The slots, each once.
    pub slots: &'a [Slot],
    /// What is in them: one hash per slot.
    pub hashes: &'a [BlockHash],
    /// How they follow each other.
    pub chain: Chain,
    /// Their checksums.
    pub checksums: Checksums<'a>,
    /// A pin the blocks join in the same step, so that none can be evicted before it is pinned. The
    /// outcome says whether they did: not where the pin has ended or its client's bound is reached.
    pub pin: Option<PinId>,
    /// Not to be published: held and found here, but no change is recorded and no inventory has it.
    pub private: bool,
}

/// What became of one slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SealOutcome {
    /// Where the block lies: in this slot, or where it was already.
    pub held: Held,
    /// The block was here already: the slot is free again and was never readable. Always so in a
    /// pool; in an engine's region only from [`MAX_COPIES_PER_BLOCK`] copies on.
    pub duplicate: bool,
    /// It joined the pin that was asked for.
    pub pinned: bool,
}

/// A seal that was found in order: the reservations as they were then.
pub(super) struct Checked {
    region: Arc<Region>,
    tickets: Vec<u64>,
}

impl Store {
    /// Makes reserved slots readable, all or none; one outcome per slot. Peers can read them when
    /// this returns. Checksums are computed on the caller's thread, without any lock; the slots stay
    /// reserved meanwhile, and if the holder loses one the seal fails.
    ///
    /// # Errors
    /// [`SealError`]; nothing was sealed then.
    pub fn seal(&self, now: Duration, seal: &Seal<'_>) -> Result<Vec<SealOutcome>, SealError> {
        if let Checksums::Given(given) = seal.checksums {
            // Nothing is to be computed in between: one step under one lock.
            check_columns(seal)?;
            let mut state = self.state.lock();
            let checked = state.check_seal(seal)?;
            return self.commit_locked(&mut state, now, seal, &checked, given);
        }
        let checked = self.check_seal(seal)?;
        let checksums = checksums(&checked.region, seal)?;
        self.commit_seal(now, seal, &checked, &checksums)
    }

    pub(super) fn check_seal(&self, seal: &Seal<'_>) -> Result<Checked, SealError> {
        check_columns(seal)?;
        self.state.lock().check_seal(seal)
    }

    pub(super) fn commit_seal(
        &self,
        now: Duration,
        seal: &Seal<'_>,
        checked: &Checked,
        checksums: &[Option<Checksum>],
    ) -> Result<Vec<SealOutcome>, SealError> {
        let region = seal.region;
        let mut state = self.state.lock();
        if !state.regions.contains_key(&region) {
            return Err(SealError::UnknownRegion { region });
        }
        // A slot that was given up and reserved anew in between may hold half of something else.
        let tickets = state.tickets(seal)?;
        let mut compared = seal.slots.iter().zip(tickets.iter().zip(&checked.tickets));
        if let Some((&slot, _)) = compared.find(|(_, (ticket, then))| ticket != then) {
            return Err(SealError::SlotNotReserved { region, slot });
        }
        self.commit_locked(&mut state, now, seal, checked, checksums)
    }

    /// The reservations have just been found as they must be, under this very lock.
    fn commit_locked(
        &self,
        state: &mut State,
        now: Duration,
        seal: &Seal<'_>,
        checked: &Checked,
        checksums: &[Option<Checksum>],
    ) -> Result<Vec<SealOutcome>, SealError> {
        let region = seal.region;
        state.expire_pins(now);
        let mut parent = match &seal.chain {
            Chain::Unknown | Chain::From(None) => None,
            Chain::From(Some(parent)) => Some(parent),
        };
        let mut outcomes = Vec::with_capacity(seal.slots.len());
        for ((&slot, hash), checksum) in seal.slots.iter().zip(seal.hashes).zip(checksums) {
            let place = Place { region, slot };
            let duplicate = state.duplicate_of(hash, &checked.region);
            let held = match duplicate {
                Some(held) => {
                    state.give_up(place, seal.holder, SlotState::Free);
                    state.touch(held.place());
                    if !seal.private {
                        state.publish(held.place(), &*self.sink);
                    }
                    Some(held)
                }
                None => {
                    let sink = (!seal.private).then_some(&*self.sink);
                    state.seal(place, seal.holder, *hash, parent, *checksum, sink)
                }
            };
            // The slot was found reserved under this very lock, so it is sealed now.
            let Some(held) = held else {
                return Err(SealError::SlotNotReserved { region, slot });
            };
            let pinned = seal
                .pin
                .is_some_and(|pin| state.join_pin(pin, &held, &self.limits));
            outcomes.push(SealOutcome {
                held,
                duplicate: duplicate.is_some(),
                pinned,
            });
            if seal.chain != Chain::Unknown {
                parent = Some(hash);
            }
        }
        Ok(outcomes)
    }
}

impl State {
    fn check_seal(&self, seal: &Seal<'_>) -> Result<Checked, SealError> {
        let Some(entry) = self.regions.get(&seal.region) else {
            let region = seal.region;
            return Err(SealError::UnknownRegion { region });
        };
        let region = Arc::clone(&entry.region);
        let spec = &region.namespace;
        if let Some(hash) = seal.hashes.iter().find(|h| h.hash_len() != spec.hash_len) {
            return Err(SealError::HashLength {
                namespace: spec.name.clone(),
                got: hash.hash_len().get(),
                want: spec.hash_len.get(),
            });
        }
        let tickets = self.tickets(seal)?;
        Ok(Checked { region, tickets })
    }

    /// The ticket of each slot's reservation.
    fn tickets(&self, seal: &Seal<'_>) -> Result<Vec<u64>, SealError> {
        let region = seal.region;
        let mut seen = Seen::of(seal.slots);
        let mut tickets = Vec::with_capacity(seal.slots.len());
        for &slot in seal.slots {
            let place = Place { region, slot };
            let Some(reservation) = self.reservation_of(place, seal.holder) else {
                return Err(match self.held(place) {
                    Some(Held { generation, .. }) => SealError::AlreadySealed {
                        region,
                        slot,
                        generation,
                    },
                    None => SealError::SlotNotReserved { region, slot },
                });
            };
            if !seen.insert(slot) {
                return Err(SealError::SlotTwice { region, slot });
            }
            tickets.push(reservation.ticket);
        }
        Ok(tickets)
    }

    /// The copy that makes another one in `region` pointless.
    fn duplicate_of(&self, hash: &BlockHash, region: &Region) -> Option<Held> {
        let namespace = self.namespaces.get(&region.namespace.name)?;
        let place = if region.pool {
            namespace.find_in_pool(hash)?
        } else if namespace.copies(hash) >= MAX_COPIES_PER_BLOCK {
            namespace.find(hash)?
        } else {
            return None;
        };
        self.held(place)
    }

    fn join_pin(&mut self, pin: PinId, held: &Held, limits: &StoreLimits) -> bool {
        let room = self.pins.has_room(pin, limits);
        if room {
            self.pin(pin, held);
        }
        room
    }
}

fn check_columns(seal: &Seal<'_>) -> Result<(), SealError> {
    let slots = seal.slots.len();
    let columns = |what, got| match got == slots {
        true => Ok(()),
        false => Err(SealError::Columns { slots, what, got }),
    };
    columns("hashes", seal.hashes.len())?;
    match seal.checksums {
        Checksums::Given(given) => columns("checksums", given.len()),
        Checksums::Compute => Ok(()),
    }
}

/// One per slot; None where the policy does not cover the block.
fn checksums(region: &Region, seal: &Seal<'_>) -> Result<Vec<Option<Checksum>>, SealError> {
    if let Checksums::Given(given) = seal.checksums {
        return Ok(given.to_vec());
    }
    let covers = |hash: &BlockHash| region.namespace.checksum.covers(hash.as_bytes());
    let pairs = seal.slots.iter().zip(seal.hashes);
    pairs
        .map(|(slot, hash)| covers(hash).then(|| checksum(region, *slot)).transpose())
        .collect()
}

fn checksum(region: &Region, slot: Slot) -> Result<Checksum, SealError> {
    let mut state = Summing::default();
    let folded = region.memory.fold(region.geometry.ranges(slot), |piece| {
        state.update(piece);
    });
    folded.map_err(|source| SealError::Unreadable {
        region: region.id,
        slot,
        source,
    })?;
    Ok(Checksum::of(&state))
}
