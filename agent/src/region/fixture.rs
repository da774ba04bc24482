//! What the store's tests share: one small namespace, and a log that checks what it is told.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::AtomicUsize, atomic::Ordering},
    time::Duration,
};

use kvferry_memory::{HostMemory, HugePages};
use kvferry_proto::{
    BlockHash, ChecksumPolicy, Generation, Geometry, HashLen, Incarnation, Layout, NamespaceName,
    NamespaceSpec, Plane, RegionId, Slot,
};
use parking_lot::Mutex;

use super::{
    Change, ChangeSink, Checksums, ClientId, Holder, Inventory, InventoryBlock, PoolOptions,
    Region, RegionCatalog, Seal, SealError, SealOutcome, Store, StoreLimits,
    eviction::EvictionKind, seal::Chain,
};

pub(super) const BLOCK_BYTES: u64 = 64;
pub(super) const POOL_SLOTS: u32 = 6;
pub(super) const ENGINE_SLOTS: u32 = 4;

pub(super) const ALICE: Holder = Holder::Client(ClientId(1));
pub(super) const BOB: Holder = Holder::Client(ClientId(2));
pub(super) const PULL: Holder = Holder::Pull(1);

/// What somebody who heard every change knows, by region and slot.
pub(super) type Replayed = BTreeMap<RegionId, BTreeMap<Slot, InventoryBlock>>;

#[derive(Debug, Default)]
struct Heard {
    regions: BTreeMap<RegionId, Arc<Region>>,
    blocks: Replayed,
    /// Since it was last asked.
    removed: Vec<(RegionId, Slot)>,
}

/// Replays changes, and checks that each one is true when it is told.
#[derive(Debug, Default)]
pub(super) struct Log {
    heard: Mutex<Heard>,
    changes: AtomicUsize,
}

impl ChangeSink for Log {
    fn record(&self, change: Change) {
        let heard = &mut *self.heard.lock();
        self.changes.fetch_add(1, Ordering::Relaxed);
        match change {
            Change::RegionAdded(region) => {
                heard.blocks.insert(region.id, BTreeMap::new());
                assert!(heard.regions.insert(region.id, region).is_none());
            }
            Change::RegionRemoved(id) => {
                let region = heard.regions.remove(&id).unwrap();
                for slot in 0..region.generations.slots() {
                    assert_eq!(region.generations.load(slot).unwrap() % 2, 1);
                }
                heard.blocks.remove(&id);
            }
            Change::Sealed {
                region,
                slot,
                hash,
                generation,
                checksum,
            } => {
                let word = heard.regions[&region].generations.load(slot.0);
                assert_eq!(word, Some(generation.0));
                assert!(generation.is_sealed());
                let block = InventoryBlock {
                    slot,
                    hash,
                    generation,
                    checksum,
                };
                let before = heard.blocks.get_mut(&region).unwrap().insert(slot, block);
                assert_eq!(before, None, "slot {slot} held a block");
            }
            Change::Removed { region, slot } => {
                let word = heard.regions[&region].generations.load(slot.0);
                assert_eq!(word.unwrap() % 2, 1, "told before the generation was odd");
                let block = heard.blocks.get_mut(&region).unwrap().remove(&slot);
                assert!(block.is_some(), "slot {slot} held no block");
                heard.removed.push((region, slot));
            }
        }
    }
}

impl Log {
    pub(super) fn changes(&self) -> usize {
        self.changes.load(Ordering::Relaxed)
    }

    pub(super) fn replayed(&self) -> Replayed {
        self.heard.lock().blocks.clone()
    }

    pub(super) fn take_removed(&self) -> Vec<(RegionId, Slot)> {
        std::mem::take(&mut self.heard.lock().removed)
    }
}

pub(super) fn as_replayed(inventory: &Inventory) -> Replayed {
    let blocks = |blocks: &[InventoryBlock]| blocks.iter().map(|b| (b.slot, *b)).collect();
    let regions = inventory.regions.iter();
    regions.map(|r| (r.region.id, blocks(&r.blocks))).collect()
}

pub(super) fn name() -> NamespaceName {
    NamespaceName::new("tenant/model").unwrap()
}

pub(super) fn spec(checksum: ChecksumPolicy) -> NamespaceSpec {
    NamespaceSpec {
        name: name(),
        layout: Layout::new("u8", 1, 2, BLOCK_BYTES / 2).unwrap(),
        hash_len: HashLen::new(8).unwrap(),
        checksum,
    }
}

pub(super) fn hash(number: u64) -> BlockHash {
    BlockHash::new(&number.to_be_bytes()).unwrap()
}

pub(super) fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

pub(super) fn pool_of(slots: u32, eviction: EvictionKind) -> PoolOptions {
    PoolOptions {
        bytes: u64::from(slots) * BLOCK_BYTES,
        hugepages: HugePages::Off,
        eviction,
    }
}

/// Memory of two planes, as an engine would lay it out.
pub(super) fn engine_memory(slots: u32) -> (Geometry, HostMemory) {
    let half = BLOCK_BYTES / 2;
    let plane = |index| Plane {
        base: index * half * u64::from(slots),
        stride: half,
        len: half,
    };
    let geometry = Geometry::new(slots, vec![plane(0), plane(1)]).unwrap();
    let bytes = BLOCK_BYTES * u64::from(slots);
    (
        geometry,
        HostMemory::pool("test", bytes, HugePages::Off).unwrap(),
    )
}

/// A store with one pool and one engine's region of one namespace.
pub(super) struct Rig {
    pub(super) store: Store,
    pub(super) log: Arc<Log>,
    pub(super) pool: Arc<Region>,
    pub(super) engine: Arc<Region>,
}

impl Rig {
    pub(super) fn new() -> Self {
        Self::with(
            EvictionKind::Prefix,
            ChecksumPolicy::Off,
            StoreLimits::default(),
        )
    }

    pub(super) fn with(
        eviction: EvictionKind,
        checksum: ChecksumPolicy,
        limits: StoreLimits,
    ) -> Self {
        let log = Arc::new(Log::default());
        let catalog = Arc::new(RegionCatalog::new(Incarnation::new(1).unwrap()));
        let store = Store::new(catalog, Arc::clone(&log) as Arc<dyn ChangeSink>, limits);
        let pool = store
            .add_pool(spec(checksum), pool_of(POOL_SLOTS, eviction))
            .unwrap();
        let (geometry, memory) = engine_memory(ENGINE_SLOTS);
        let engine = store.import(spec(checksum), geometry, memory).unwrap();
        Self {
            store,
            log,
            pool,
            engine,
        }
    }

    /// Seals slots without a chain.
    pub(super) fn seal(
        &self,
        holder: Holder,
        region: &Region,
        slots: &[Slot],
        hashes: &[BlockHash],
    ) -> Result<Vec<SealOutcome>, SealError> {
        self.seal_chain(holder, region, slots, hashes, Chain::Unknown)
    }

    pub(super) fn seal_chain(
        &self,
        holder: Holder,
        region: &Region,
        slots: &[Slot],
        hashes: &[BlockHash],
        chain: Chain,
    ) -> Result<Vec<SealOutcome>, SealError> {
        let seal = Seal {
            holder,
            region: region.id,
            slots,
            hashes,
            chain,
            checksums: Checksums::Compute,
            pin: None,
            private: false,
        };
        self.store.seal(Duration::ZERO, &seal)
    }

    /// Puts blocks in the pool, as one chain.
    pub(super) fn fill(&self, numbers: impl IntoIterator<Item = u64>) -> Vec<SealOutcome> {
        let hashes: Vec<_> = numbers.into_iter().map(hash).collect();
        let count = hashes.len() as u32;
        let slots = self
            .store
            .reserve_pool(Duration::ZERO, ALICE, self.pool.id, count)
            .unwrap();
        self.seal_chain(ALICE, &self.pool, &slots, &hashes, Chain::From(None))
            .unwrap()
    }

    pub(super) fn has(&self, number: u64) -> bool {
        self.store.find(&name(), &hash(number)).is_some()
    }

    pub(super) fn generation(&self, region: &Region, slot: Slot) -> Generation {
        Generation(region.generations.load(slot.0).unwrap())
    }
}
