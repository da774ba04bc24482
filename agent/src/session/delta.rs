//! A batch of changes under one number, and its message.

use kvferry_proto::{BlockHash, Checksum, Generation, HashLen, RegionId, Slot, pb};

use crate::{
    region::{Change, Region},
    sabotage::{self, Bug},
};

/// What a slot holds after a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SlotState {
    /// Nothing.
    Removed,
    /// A sealed block.
    Sealed {
        /// Which.
        hash: BlockHash,
        /// The slot's generation.
        generation: Generation,
        /// Of its bytes.
        checksum: Option<Checksum>,
    },
}

/// Changes since the batch before. Of several of one slot only the last is told.
#[derive(Debug, Clone, Default)]
pub struct Delta {
    regions_removed: Vec<RegionId>,
    /// In words, not the regions: the log is kept for long, and must not keep engines' memory.
    regions_added: Vec<pb::RegionDeclaration>,
    /// As they came: most slots change once, and what is recorded must cost little.
    slots: Vec<((RegionId, Slot), SlotState)>,
}

impl Delta {
    /// True when nothing changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.regions_removed.is_empty() && self.regions_added.is_empty() && self.slots.is_empty()
    }

    /// How many things it says, for bounds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.regions_removed.len() + self.regions_added.len() + self.slots.len()
    }

    /// How many regions it adds or removes.
    #[must_use]
    pub fn regions(&self) -> usize {
        self.regions_removed.len() + self.regions_added.len()
    }

    /// Gives back memory that it does not need: it is kept for long, and nothing is added any more.
    pub(super) fn shrink(&mut self) {
        self.slots.shrink_to_fit();
    }

    /// Folds one more change in.
    pub fn fold(&mut self, change: Change) {
        match change {
            Change::RegionAdded(region) => self.regions_added.push(declaration(&region)),
            Change::RegionRemoved(gone) => {
                self.slots.retain(|((region, _), _)| *region != gone);
                let before = self.regions_added.len();
                self.regions_added.retain(|region| region.region != gone.0);
                // Came and went within this batch: nobody ever heard of it.
                if self.regions_added.len() == before {
                    self.regions_removed.push(gone);
                }
            }
            Change::Sealed {
                region,
                slot,
                hash,
                generation,
                checksum,
            } => {
                let state = SlotState::Sealed {
                    hash,
                    generation,
                    checksum,
                };
                self.slots.push(((region, slot), state));
            }
            Change::Removed { region, slot } => {
                self.slots.push(((region, slot), SlotState::Removed));
            }
        }
    }

    /// As it travels.
    #[must_use]
    pub fn to_message(&self, seq: u64) -> pb::Delta {
        let mut changes = Columns::default();
        let mut order: Vec<&((RegionId, Slot), SlotState)> = self.slots.iter().collect();
        // Stable: the last state of a slot stays the last.
        order.sort_by_key(|(place, _)| *place);
        for same in order.chunk_by(|(a, _), (b, _)| a == b) {
            let Some(((region, slot), state)) = same.last() else {
                continue;
            };
            match state {
                SlotState::Removed if sabotage::is(Bug::RemoveLost) => {}
                SlotState::Removed => changes.remove(*region, *slot),
                SlotState::Sealed {
                    hash,
                    generation,
                    checksum,
                } => changes.seal(*region, *slot, hash, *generation, *checksum),
            }
        }
        pb::Delta {
            seq,
            regions_removed: self.regions_removed.iter().map(|id| id.0).collect(),
            regions_added: self.regions_added.clone(),
            changes: changes.finish(),
        }
    }
}

/// A region as the coordinator needs it.
#[must_use]
pub(super) fn declaration(region: &Region) -> pb::RegionDeclaration {
    pb::RegionDeclaration {
        region: region.id.0,
        namespace: Some((&*region.namespace).into()),
        geometry: Some((&region.geometry).into()),
    }
}

/// Collects slots, in order of region, into the columns of messages.
#[derive(Default)]
pub(super) struct Columns {
    done: Vec<pb::RegionChange>,
    current: Option<Open>,
}

struct Open {
    region: RegionId,
    hash_len: Option<HashLen>,
    removed: Vec<u32>,
    hashes: Vec<u8>,
    slots: Vec<u32>,
    generations: Vec<u64>,
    checksums: Vec<u64>,
}

impl Columns {
    /// The slot holds nothing.
    pub(super) fn remove(&mut self, region: RegionId, slot: Slot) {
        self.open(region).removed.push(slot.0);
    }

    /// The slot holds a block.
    pub(super) fn seal(
        &mut self,
        region: RegionId,
        slot: Slot,
        hash: &BlockHash,
        generation: Generation,
        checksum: Option<Checksum>,
    ) {
        let open = self.open(region);
        open.hash_len = Some(hash.hash_len());
        open.hashes.extend_from_slice(hash.as_bytes());
        open.slots.push(slot.0);
        open.generations.push(generation.0);
        open.checksums.push(Checksum::to_wire(checksum));
    }

    fn open(&mut self, region: RegionId) -> &mut Open {
        if self
            .current
            .as_ref()
            .is_none_or(|open| open.region != region)
        {
            self.close();
        }
        self.current.get_or_insert_with(|| Open {
            region,
            hash_len: None,
            removed: Vec::new(),
            hashes: Vec::new(),
            slots: Vec::new(),
            generations: Vec::new(),
            checksums: Vec::new(),
        })
    }

    fn close(&mut self) {
        let Some(open) = self.current.take() else {
            return;
        };
        let added = open.hash_len.map(|hash_len| pb::SealedSlots {
            hashes: Some(pb::PackedHashes {
                hash_len: hash_len.get() as u32,
                hashes: open.hashes.into(),
            }),
            slots: open.slots,
            generations: open.generations,
            // Where no block has one the column stays home.
            checksums: if open.checksums.iter().all(|sum| *sum == 0) {
                Vec::new()
            } else {
                open.checksums
            },
        });
        self.done.push(pb::RegionChange {
            region: open.region.0,
            removed_slots: open.removed,
            added,
        });
    }

    /// The messages.
    pub(super) fn finish(mut self) -> Vec<pb::RegionChange> {
        self.close();
        self.done
    }
}
