//! Dropping blocks because somebody asks for it.

use std::time::Duration;

use kvferry_proto::{BlockHash, NamespaceName, RegionId, Slot};

use super::{EvictError, Store, limits::BATCH_PER_LOCK, state::State, words::Place};

/// Which blocks of a namespace to drop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EvictWhat<'a> {
    /// All copies of these blocks; those that are not here are passed over.
    Blocks(&'a [BlockHash]),
    /// Everything. What is sealed during the call may stay.
    All,
}

/// What was dropped, in slots: a block with two copies counts twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Evicted {
    /// Gone.
    pub evicted: u64,
    /// Still there, because they are pinned.
    pub kept_pinned: u64,
}

impl Store {
    /// Drops blocks that are not pinned, in the pool and in engines' regions alike. Takes the lock
    /// anew for every so many slots.
    ///
    /// # Errors
    /// [`EvictError::UnknownNamespace`].
    pub fn evict(
        &self,
        now: Duration,
        namespace: &NamespaceName,
        what: EvictWhat<'_>,
    ) -> Result<Evicted, EvictError> {
        self.tick(now);
        let Some(regions) = self.regions_of(namespace) else {
            let namespace = namespace.clone();
            return Err(EvictError::UnknownNamespace { namespace });
        };
        let mut count = Evicted::default();
        match what {
            EvictWhat::Blocks(hashes) => {
                for batch in hashes.chunks(BATCH_PER_LOCK) {
                    let mut state = self.state.lock();
                    for hash in batch {
                        let table = state.namespaces.get(namespace);
                        for place in table.map_or_else(Vec::new, |table| table.places(hash)) {
                            self.evict_place(&mut state, place, &mut count);
                        }
                    }
                }
            }
            EvictWhat::All => {
                for region in regions {
                    self.evict_region(region, &mut count);
                }
            }
        }
        Ok(count)
    }

    fn regions_of(&self, namespace: &NamespaceName) -> Option<Vec<RegionId>> {
        let state = self.state.lock();
        Some(state.namespaces.get(namespace)?.regions.clone())
    }

    fn evict_region(&self, region: RegionId, count: &mut Evicted) {
        let mut from = Slot(0);
        loop {
            let mut state = self.state.lock();
            let Some(entry) = state.regions.get(&region) else {
                return;
            };
            let batch: Vec<_> = entry
                .slots
                .sealed_from(from)
                .take(BATCH_PER_LOCK)
                .map(|(slot, _)| slot)
                .collect();
            let Some(last) = batch.last() else {
                return;
            };
            from = Slot(last.0 + 1);
            for slot in batch {
                self.evict_place(&mut state, Place { region, slot }, count);
            }
        }
    }

    fn evict_place(&self, state: &mut State, place: Place, count: &mut Evicted) {
        let pinned = state
            .regions
            .get(&place.region)
            .is_some_and(|region| region.slots.is_pinned(place.slot));
        if pinned {
            count.kept_pinned += 1;
        } else {
            state.remove_block(place, &*self.sink);
            count.evicted += 1;
        }
    }
}
