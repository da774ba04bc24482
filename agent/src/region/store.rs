//! All registered regions of one agent, and what they hold.

use std::{sync::Arc, time::Duration};

use kvferry_proto::{
    BlockHash, Checksum, Generation, NamespaceName, NamespaceSpec, RegionId, Slot,
};
use parking_lot::Mutex;

use super::{
    ChangeSink, Held, Region, RegionCatalog, StoreLimits, limits::BATCH_PER_LOCK, state::State,
};

/// Who may write which slot when, which blocks are held, pins and eviction.
///
/// It does no IO and reads no clock: `now` is the time since the agent started.
///
/// # Locks
///
/// One lock guards everything, so that the order of changes is one order over all regions. Under it
/// are taken, and let go again one by one: a shard of the [`RegionCatalog`], and whatever the
/// [`ChangeSink`] takes to queue a change. Neither may lead back here. Checksums and allocations
/// happen outside of it.
#[derive(Debug)]
pub struct Store {
    pub(super) catalog: Arc<RegionCatalog>,
    pub(super) sink: Arc<dyn ChangeSink>,
    pub(super) limits: StoreLimits,
    pub(super) state: Mutex<State>,
}

/// Everything held at one moment.
#[derive(Debug, Clone)]
pub struct Inventory {
    /// By id.
    pub regions: Vec<InventoryRegion>,
}

/// One region of an [`Inventory`].
#[derive(Debug, Clone)]
pub struct InventoryRegion {
    /// The region.
    pub region: Arc<Region>,
    /// Its sealed slots, in order.
    pub blocks: Vec<InventoryBlock>,
}

/// One sealed slot of an [`Inventory`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InventoryBlock {
    /// The slot.
    pub slot: Slot,
    /// The block in it.
    pub hash: BlockHash,
    /// Its generation, even.
    pub generation: Generation,
    /// Where the namespace's policy covers the block.
    pub checksum: Option<Checksum>,
}

/// One region in numbers. Free, reserved, sealed and quarantined add up to its slots.
#[derive(Debug, Clone)]
pub struct RegionStats {
    /// The region.
    pub region: Arc<Region>,
    /// Slots nobody uses.
    pub free: u32,
    /// Slots somebody writes to.
    pub reserved: u32,
    /// Slots that hold a block.
    pub sealed: u32,
    /// Sealed slots that are pinned.
    pub pinned: u32,
    /// Slots a transport may still write to.
    pub quarantined: u32,
    /// Blocks given up to make room, since the region was registered. Always 0 in an engine's region.
    pub evictions: u64,
}

/// The store in numbers.
#[derive(Debug, Clone)]
pub struct StoreStats {
    /// By id.
    pub regions: Vec<RegionStats>,
    /// Reserved slots of all regions.
    pub reservations: u64,
    /// Pins that are neither released nor expired.
    pub pins: u64,
    /// Blocks given up to make room since the agent started, also in pools that are gone.
    pub evictions: u64,
    /// Of those, blocks that enough other nodes held.
    pub surplus_evictions: u64,
}

impl Store {
    /// A store without regions. `catalog` must be empty and is written by this store only; `sink`
    /// hears every change from now on.
    #[must_use]
    pub fn new(
        catalog: Arc<RegionCatalog>,
        sink: Arc<dyn ChangeSink>,
        limits: StoreLimits,
    ) -> Self {
        Self {
            catalog,
            sink,
            limits,
            state: Mutex::default(),
        }
    }

    /// What the data plane serves from.
    #[must_use]
    pub fn catalog(&self) -> &Arc<RegionCatalog> {
        &self.catalog
    }

    /// The region, while it is registered.
    #[must_use]
    pub fn region(&self, region: RegionId) -> Option<Arc<Region>> {
        self.catalog.get(region)
    }

    /// What the local regions of a namespace agreed on; None where there are none.
    #[must_use]
    pub fn namespace(&self, namespace: &NamespaceName) -> Option<Arc<NamespaceSpec>> {
        let state = self.state.lock();
        Some(Arc::clone(&state.namespaces.get(namespace)?.spec))
    }

    /// The namespace's pool, where it has one.
    #[must_use]
    pub fn pool_of(&self, namespace: &NamespaceName) -> Option<RegionId> {
        self.state.lock().namespaces.get(namespace)?.pool
    }

    /// Where a block lies; the pool's copy before an engine's. Counts as a use of it.
    #[must_use]
    pub fn find(&self, namespace: &NamespaceName, hash: &BlockHash) -> Option<Held> {
        let found = self.find_many(namespace, std::slice::from_ref(hash));
        found.into_iter().next().flatten()
    }

    /// Where blocks lie, one answer per hash; see [`Store::find`]. Each answer was true at some
    /// moment of the call, not all of them at the same one.
    #[must_use]
    pub fn find_many(&self, namespace: &NamespaceName, hashes: &[BlockHash]) -> Vec<Option<Held>> {
        let mut found = Vec::with_capacity(hashes.len());
        for batch in hashes.chunks(BATCH_PER_LOCK) {
            let mut state = self.state.lock();
            for hash in batch {
                let table = state.namespaces.get(namespace);
                let place = table.and_then(|table| table.find(hash));
                found.push(place.and_then(|place| {
                    state.touch(place);
                    state.held(place)
                }));
            }
        }
        found
    }

    /// Everything held, and what `at_lock` gave at that same moment: the changes recorded before
    /// are in the inventory, and those recorded later are not. `at_lock` must not call the store.
    pub fn inventory<R>(&self, at_lock: impl FnOnce() -> R) -> (Inventory, R) {
        let state = self.state.lock();
        let position = at_lock();
        let regions = state
            .regions
            .values()
            .map(|region| InventoryRegion {
                region: Arc::clone(&region.region),
                blocks: region
                    .slots
                    .sealed_from(Slot(0))
                    .filter(|(_, block)| block.published)
                    .map(|(slot, block)| InventoryBlock {
                        slot,
                        hash: block.hash,
                        generation: block.generation,
                        checksum: block.checksum,
                    })
                    .collect(),
            })
            .collect();
        (Inventory { regions }, position)
    }

    /// The store in numbers.
    #[must_use]
    pub fn stats(&self) -> StoreStats {
        let state = self.state.lock();
        let regions: Vec<_> = state
            .regions
            .values()
            .map(|region| {
                let counts = region.slots.counts();
                RegionStats {
                    region: Arc::clone(&region.region),
                    free: counts.free,
                    reserved: counts.reserved,
                    sealed: counts.sealed,
                    pinned: counts.pinned,
                    quarantined: counts.quarantined,
                    evictions: region.evictions,
                }
            })
            .collect();
        StoreStats {
            reservations: regions.iter().map(|r| u64::from(r.reserved)).sum(),
            pins: state.pins.len() as u64,
            evictions: state.evictions,
            surplus_evictions: state.surplus_evictions,
            regions,
        }
    }

    /// Ends the pins whose time is over, and says how many. Call it at [`Store::next_expiry`], or
    /// every second or so.
    pub fn tick(&self, now: Duration) -> usize {
        self.state.lock().expire_pins(now)
    }

    /// When the next pin ends by itself.
    #[must_use]
    pub fn next_expiry(&self) -> Option<Duration> {
        self.state.lock().pins.next_expiry()
    }
}
