//! Where a pull's blocks land: slots of this agent's store, reserved by the pull until they are sealed
//! or given back.

use std::sync::Arc;

use kvferry_proto::{BlockHash, Checksum, Slot, Summing};
use parking_lot::Mutex;

use super::Pull;
use crate::{
    gpu::keep_for_ever,
    region::{Chain, Checksums, Held, Holder, PinId, Region, Seal},
    service::local::{LocalApi, imports::Writer},
    transfer::{self, BlockIndex, Destination, LandError, NoSpace},
};

/// What a pull writes to.
pub(super) enum Target {
    /// A pool, which gives a slot per block as it is needed.
    Pool(Arc<Region>),
    /// Slots that are reserved already, one per block, and the right to write to them.
    Slots(Arc<Region>, Vec<Slot>, Writer),
}

/// Whether a block has a slot, and of whom it is.
#[derive(Clone, Copy)]
enum Place {
    /// None yet; in an engine's region: reserved, and nothing has been written.
    Unused,
    /// Being written.
    Taken(Slot),
    /// Sealed, or given back.
    Done,
}

/// All blocks of one pull. What is still reserved when the last user of this goes is given back then:
/// not before every read has settled, because reads are users.
pub(super) struct Landing {
    api: LocalApi,
    holder: Holder,
    target: Target,
    hashes: Vec<BlockHash>,
    chain: Chain,
    private: bool,
    /// Takes only slots that nobody uses.
    spare: bool,
    pin: Option<PinId>,
    places: Mutex<Vec<Place>>,
}

impl Landing {
    pub(super) fn new(
        api: LocalApi,
        holder: Holder,
        target: Target,
        pin: Option<PinId>,
        pull: &Pull,
    ) -> Self {
        Self {
            api,
            holder,
            target,
            hashes: pull.hashes.clone(),
            chain: pull.chain,
            private: pull.private,
            spare: pull.spare,
            pin,
            places: Mutex::new(vec![Place::Unused; pull.hashes.len()]),
        }
    }

    /// Some of the blocks, under the numbers 0, 1, ...
    pub(super) fn subset(self: &Arc<Self>, indices: Arc<[usize]>) -> Subset {
        Subset {
            landing: Arc::clone(self),
            indices,
        }
    }

    pub(super) fn region(&self) -> &Arc<Region> {
        match &self.target {
            Target::Pool(region) | Target::Slots(region, ..) => region,
        }
    }

    /// Completes when the region it writes to ends.
    pub(super) async fn region_ended(&self) {
        match &self.target {
            // A pool is the agent's own memory: it lives as long as somebody writes to it.
            Target::Pool(_) => std::future::pending().await,
            Target::Slots(_, _, writer) => writer.region_ended().await,
        }
    }

    /// A place for a block; its generation is odd.
    pub(super) fn take(&self, index: usize) -> Result<Slot, NoSpace> {
        let slot = match &self.target {
            Target::Pool(region) if self.spare => self
                .api
                .store
                .reserve_spare(self.api.now(), self.holder, region.id)
                .map_err(|_| NoSpace)?,
            Target::Pool(region) => self
                .api
                .store
                .reserve_one(self.api.now(), self.holder, region.id)
                .map_err(|_| NoSpace)?,
            Target::Slots(_, slots, _) => *slots.get(index).ok_or(NoSpace)?,
        };
        self.set(index, Place::Taken(slot));
        Ok(slot)
    }

    /// Seals a block that was taken.
    pub(super) fn seal(&self, index: usize, checksum: Option<Checksum>) -> Result<Held, LandError> {
        let (Some(Place::Taken(slot)), Some(hash)) = (self.place(index), self.hashes.get(index))
        else {
            return Err(LandError {
                detail: "it has no slot",
            });
        };
        let region = self.region();
        let given = [checksum];
        // Owners that were sealed before the policy covered the block gave none.
        let compute = checksum.is_none() && region.namespace.checksum.covers(hash.as_bytes());
        let seal = Seal {
            holder: self.holder,
            region: region.id,
            slots: &[slot],
            hashes: std::slice::from_ref(hash),
            chain: self.parent_of(index),
            checksums: if compute {
                Checksums::Compute
            } else {
                Checksums::Given(&given)
            },
            pin: self.pin,
            private: self.private,
        };
        let outcomes = self.api.store.seal(self.api.now(), &seal);
        match outcomes.as_deref() {
            Ok([outcome]) => {
                self.set(index, Place::Done);
                Ok(outcome.held)
            }
            _ => Err(LandError {
                detail: "its region was unregistered meanwhile",
            }),
        }
    }

    /// Can the two be sealed in one step? In a chain, if one is the other's parent.
    fn follows(&self, index: usize, next: usize) -> bool {
        match self.chain {
            Chain::Unknown => true,
            Chain::From(_) => index.checked_add(1) == Some(next),
        }
    }

    /// Seals blocks that follow each other, all or none; None where that cannot be done in one step.
    fn seal_run(&self, run: &[(usize, Option<Checksum>)]) -> Option<Vec<Held>> {
        let region = self.region();
        let first = run.first()?.0;
        let (mut slots, mut hashes) = (Vec::new(), Vec::new());
        {
            let places = self.places.lock();
            for (index, checksum) in run {
                let (Place::Taken(slot), hash) = (*places.get(*index)?, *self.hashes.get(*index)?)
                else {
                    return None;
                };
                // A checksum that is to be computed is computed for that block alone.
                if checksum.is_none() && region.namespace.checksum.covers(hash.as_bytes()) {
                    return None;
                }
                slots.push(slot);
                hashes.push(hash);
            }
        }
        let checksums: Vec<_> = run.iter().map(|(_, checksum)| *checksum).collect();
        let seal = Seal {
            holder: self.holder,
            region: region.id,
            slots: &slots,
            hashes: &hashes,
            chain: self.parent_of(first),
            checksums: Checksums::Given(&checksums),
            pin: self.pin,
            private: self.private,
        };
        let outcomes = self.api.store.seal(self.api.now(), &seal).ok()?;
        let mut places = self.places.lock();
        for (index, _) in run {
            if let Some(place) = places.get_mut(*index) {
                *place = Place::Done;
            }
        }
        Some(outcomes.into_iter().map(|outcome| outcome.held).collect())
    }

    /// Gives back what was taken: nothing writes to it any more.
    pub(super) fn give_back(&self, index: usize) {
        if let Some(Place::Taken(slot)) = self.place(index) {
            self.abort(index, slot);
        }
    }

    /// Gives back a reserved slot that nothing was ever written to.
    pub(super) fn give_back_unused(&self, index: usize) {
        if let (Some(Place::Unused), Target::Slots(_, slots, _)) = (self.place(index), &self.target)
            && let Some(&slot) = slots.get(index)
        {
            self.abort(index, slot);
        }
    }

    /// Something may write to a slot for ever: it stays reserved, and its region is never said to have settled.
    pub(super) fn never(self: &Arc<Self>) {
        keep_for_ever(Arc::clone(self));
    }

    fn abort(&self, index: usize, slot: Slot) {
        self.set(index, Place::Done);
        // An unregistered region has taken its reservations with it.
        let _ = self.api.store.abort(self.holder, self.region().id, &[slot]);
    }

    fn parent_of(&self, index: usize) -> Chain {
        match (self.chain, index.checked_sub(1)) {
            (Chain::From(_), Some(before)) => Chain::From(self.hashes.get(before).copied()),
            (chain, _) => chain,
        }
    }

    fn place(&self, index: usize) -> Option<Place> {
        self.places.lock().get(index).copied()
    }

    fn set(&self, index: usize, place: Place) {
        if let Some(entry) = self.places.lock().get_mut(index) {
            *entry = place;
        }
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        self.api.store.release_holder(self.holder);
    }
}

/// The blocks of a pull that come from elsewhere.
pub(super) struct Subset {
    landing: Arc<Landing>,
    indices: Arc<[usize]>,
}

impl Subset {
    fn index(&self, block: BlockIndex) -> usize {
        // An index beyond the end finds no place, and says so.
        self.indices
            .get(block as usize)
            .copied()
            .unwrap_or(usize::MAX)
    }
}

impl transfer::Landing for Subset {
    type Landed = Held;

    fn prepare(&self, block: BlockIndex) -> Result<Destination, NoSpace> {
        let slot = self.landing.take(self.index(block))?;
        let region = self.landing.region();
        Ok(Destination {
            memory: region.memory.clone(),
            ranges: region.geometry.ranges(slot).collect(),
        })
    }

    fn verify(&self, _block: BlockIndex, destination: &Destination, checksum: Checksum) -> bool {
        let mut state = Summing::default();
        let ranges = destination.ranges.iter().cloned();
        let folded = destination.memory.fold(ranges, |piece| state.update(piece));
        folded.is_ok() && Checksum::of(&state) == checksum
    }

    fn land(&self, block: BlockIndex, checksum: Option<Checksum>) -> Result<Held, LandError> {
        self.landing.seal(self.index(block), checksum)
    }

    fn land_many(&self, blocks: &[(BlockIndex, Option<Checksum>)]) -> Vec<Result<Held, LandError>> {
        let blocks: Vec<_> = blocks
            .iter()
            .map(|(block, checksum)| (self.index(*block), *checksum))
            .collect();
        let mut landed = Vec::with_capacity(blocks.len());
        for run in blocks.chunk_by(|a, b| self.landing.follows(a.0, b.0)) {
            match self.landing.seal_run(run) {
                Some(held) => landed.extend(held.into_iter().map(Ok)),
                // Something is amiss with one of them: each by itself says which.
                None => landed.extend(run.iter().map(|(i, sum)| self.landing.seal(*i, *sum))),
            }
        }
        landed
    }

    fn abandon(&self, block: BlockIndex) {
        self.landing.give_back(self.index(block));
    }
}
