//! Blocks that enough other nodes hold.

use kvferry_proto::{Generation, RegionId, Slot};

use super::{Store, limits::BATCH_PER_LOCK};

impl Store {
    /// Has pools evict these blocks before others, where the slots still hold them. Nothing is evicted
    /// by this: room is made when it is needed.
    pub fn surplus(&self, copies: &[(RegionId, Slot, Generation)]) {
        for batch in copies.chunks(BATCH_PER_LOCK) {
            let mut state = self.state.lock();
            for (region, slot, generation) in batch {
                let Some(region) = state.regions.get_mut(region) else {
                    continue;
                };
                let block = region.slots.block(*slot);
                if block.is_some_and(|block| block.generation == *generation)
                    && let Some(policy) = &mut region.policy
                {
                    policy.surplus(*slot);
                    region.surplus.insert(*slot);
                }
            }
        }
    }
}
