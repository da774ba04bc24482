//! Where the blocks of one namespace lie.

use std::sync::Arc;

use hashbrown::{HashMap, hash_map::Entry};
use kvferry_proto::{BlockHash, NamespaceSpec, RegionId, Slot};

use super::{slots::SlotTable, words::Place};

/// The copies of one block. Nearly always one, so that one needs no allocation.
#[derive(Debug)]
struct Copies {
    first: Place,
    more: Vec<Place>,
}

impl Copies {
    fn iter(&self) -> impl Iterator<Item = Place> {
        std::iter::once(self.first).chain(self.more.iter().copied())
    }
}

/// One namespace of this agent: exists while a region of it is registered.
#[derive(Debug)]
pub(super) struct NamespaceTable {
    pub(super) spec: Arc<NamespaceSpec>,
    /// The agent's own pool, where there is one.
    pub(super) pool: Option<RegionId>,
    pub(super) regions: Vec<RegionId>,
    blocks: HashMap<BlockHash, Copies>,
}

impl NamespaceTable {
    pub(super) fn new(spec: Arc<NamespaceSpec>) -> Self {
        Self {
            spec,
            pool: None,
            regions: Vec::new(),
            blocks: HashMap::new(),
        }
    }

    /// A copy of the block; the pool's, where the pool has one.
    pub(super) fn find(&self, hash: &BlockHash) -> Option<Place> {
        self.blocks.get(hash).map(|copies| copies.first)
    }

    /// The block's copy in the pool.
    pub(super) fn find_in_pool(&self, hash: &BlockHash) -> Option<Place> {
        self.find(hash)
            .filter(|place| Some(place.region) == self.pool)
    }

    pub(super) fn copies(&self, hash: &BlockHash) -> usize {
        self.blocks
            .get(hash)
            .map_or(0, |copies| 1 + copies.more.len())
    }

    pub(super) fn places(&self, hash: &BlockHash) -> Vec<Place> {
        self.blocks
            .get(hash)
            .map_or_else(Vec::new, |copies| copies.iter().collect())
    }

    /// Adds a copy. The pool's comes first: an engine overwrites its own slots sooner.
    pub(super) fn insert(&mut self, hash: BlockHash, place: Place) {
        match self.blocks.entry(hash) {
            Entry::Vacant(entry) => {
                entry.insert(Copies {
                    first: place,
                    more: Vec::new(),
                });
            }
            Entry::Occupied(entry) => {
                let copies = entry.into_mut();
                copies.more.push(place);
                if Some(place.region) == self.pool {
                    copies.more.pop();
                    copies
                        .more
                        .push(std::mem::replace(&mut copies.first, place));
                }
            }
        }
    }

    /// Takes a copy out.
    pub(super) fn remove(&mut self, hash: &BlockHash, place: Place) {
        let Entry::Occupied(mut entry) = self.blocks.entry(*hash) else {
            return;
        };
        let copies = entry.get_mut();
        if copies.first == place {
            match copies.more.pop() {
                Some(next) => copies.first = next,
                None => {
                    entry.remove();
                }
            }
        } else if let Some(at) = copies.more.iter().position(|other| *other == place) {
            copies.more.swap_remove(at);
        }
    }

    /// Takes a region out, with all copies in it.
    pub(super) fn forget_region(&mut self, region: RegionId, slots: &SlotTable) {
        for (slot, block) in slots.sealed_from(Slot(0)) {
            self.remove(&block.hash, Place { region, slot });
        }
        self.regions.retain(|other| *other != region);
        self.pool = self.pool.filter(|pool| *pool != region);
    }
}
