//! Sets of blocks in known slots, as a set of tensors lies in them.

use kvferry_proto::{BlockHash, RegionId, Slot};

use super::{Store, limits::BATCH_PER_LOCK, words::Place};
use crate::sabotage::{self, Bug};

impl Store {
    /// Which of these slots hold exactly these blocks: one answer per pair, each true at some moment
    /// of the call. None where the region is not registered (any more).
    #[must_use]
    pub fn hold(&self, region: RegionId, blocks: &[(Slot, BlockHash)]) -> Option<Vec<bool>> {
        let mut held = Vec::with_capacity(blocks.len());
        for batch in blocks.chunks(BATCH_PER_LOCK) {
            let state = self.state.lock();
            let slots = &state.regions.get(&region)?.slots;
            held.extend(batch.iter().map(|(slot, hash)| {
                let block = slots.block(*slot);
                let any = sabotage::is(Bug::HeldByAnyName);
                block.is_some_and(|block| block.hash == *hash || any)
            }));
        }
        Some(held)
    }

    /// Tells others of the blocks in these slots, where they were private.
    pub fn make_public(&self, region: RegionId, slots: &[Slot]) {
        for batch in slots.chunks(BATCH_PER_LOCK) {
            let mut state = self.state.lock();
            for &slot in batch {
                state.publish(Place { region, slot }, &*self.sink);
            }
        }
    }

    /// Removes these blocks from these slots of an engine's region, where they are in them: words odd,
    /// others told. Gives how many stay, because they are pinned.
    pub fn drop_blocks(&self, region: RegionId, blocks: &[(Slot, BlockHash)]) -> usize {
        let mut kept = 0;
        for batch in blocks.chunks(BATCH_PER_LOCK) {
            let mut state = self.state.lock();
            for (slot, hash) in batch {
                let Some(entry) = state.regions.get(&region) else {
                    return 0;
                };
                if entry
                    .slots
                    .block(*slot)
                    .is_none_or(|block| block.hash != *hash)
                {
                    continue;
                }
                if entry.slots.is_pinned(*slot) {
                    kept += 1;
                    continue;
                }
                let place = Place {
                    region,
                    slot: *slot,
                };
                state.remove_block(place, &*self.sink);
            }
        }
        kept
    }
}
