//! Registering and unregistering regions.

use std::sync::Arc;

use hashbrown::HashSet;
use kvferry_memory::{GenerationTable, HostMemory, HugePages};
use kvferry_proto::{Geometry, GeometryError, NamespaceSpec, RegionId};

use super::{
    Change, Memory, Region, RegisterError, Store, UnregisterError,
    eviction::EvictionKind,
    namespace_table::NamespaceTable,
    slots::SlotTable,
    state::{RegionState, State},
};

/// What a pool is to be like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolOptions {
    /// Its size; the bytes that make no whole block are not allocated.
    pub bytes: u64,
    /// What backs it.
    pub hugepages: HugePages,
    /// What makes room in it.
    pub eviction: EvictionKind,
}

impl Store {
    /// Makes the agent's own pool of a namespace: contiguous, filled and evicted by the agent. A
    /// namespace has at most one, so that a block has at most one copy in pools.
    ///
    /// # Errors
    /// [`RegisterError`]; nothing changed then.
    pub fn add_pool(
        &self,
        spec: NamespaceSpec,
        options: PoolOptions,
    ) -> Result<Arc<Region>, RegisterError> {
        let block_bytes = spec.layout.block_bytes();
        let slots = options.bytes.checked_div(block_bytes).unwrap_or(0);
        if slots == 0 {
            return Err(RegisterError::PoolTooSmall {
                bytes: options.bytes,
                block_bytes,
            });
        }
        let slots = u32::try_from(slots).map_err(|_| GeometryError::Slots { slots: u32::MAX })?;
        let geometry = Geometry::contiguous(slots, block_bytes)?;
        // Before anything is allocated; decided for good under the lock that registers it.
        self.admit(&self.state.lock(), &spec, slots, true)?;
        let bytes = u64::from(slots) * block_bytes;
        let memory = HostMemory::pool("kvferry-pool", bytes, options.hugepages)?;
        self.register(spec, geometry, memory.into(), Some(options.eviction))
    }

    /// Takes in memory that an engine owns, of the host or of a GPU. The engine chooses its slots.
    ///
    /// # Errors
    /// [`RegisterError`]; nothing changed then.
    pub fn import(
        &self,
        spec: NamespaceSpec,
        geometry: Geometry,
        memory: impl Into<Memory>,
    ) -> Result<Arc<Region>, RegisterError> {
        let memory = memory.into();
        geometry.fits(&spec.layout, memory.len())?;
        self.register(spec, geometry, memory, None)
    }

    fn register(
        &self,
        spec: NamespaceSpec,
        geometry: Geometry,
        memory: Memory,
        pool: Option<EvictionKind>,
    ) -> Result<Arc<Region>, RegisterError> {
        let slots = geometry.slots();
        self.admit(&self.state.lock(), &spec, slots, pool.is_some())?;
        // Outside the lock: these touch memory in proportion to the slots.
        let generations = Arc::new(GenerationTable::new(slots)?);
        let table = SlotTable::new(slots, pool.is_some());
        let policy = pool.map(|kind| kind.policy(slots));

        let mut state = self.state.lock();
        self.admit(&state, &spec, slots, pool.is_some())?;
        let id = state
            .last_region
            .checked_add(1)
            .ok_or(RegisterError::RegionIdsUsedUp)?;
        state.last_region = id;
        let id = RegionId(id);
        let namespace = state
            .namespaces
            .entry(spec.name.clone())
            .or_insert_with(|| NamespaceTable::new(Arc::new(spec)));
        namespace.regions.push(id);
        if pool.is_some() {
            namespace.pool = Some(id);
        }
        let region = Arc::new(Region {
            id,
            namespace: Arc::clone(&namespace.spec),
            geometry,
            memory,
            generations,
            pool: pool.is_some(),
        });
        state.total_slots += u64::from(slots);
        state.regions.insert(
            id,
            RegionState {
                region: Arc::clone(&region),
                slots: table,
                policy,
                surplus: HashSet::new(),
                evictions: 0,
            },
        );
        // Served before anybody is told of it.
        self.catalog.insert(Arc::clone(&region));
        self.sink.record(Change::RegionAdded(Arc::clone(&region)));
        Ok(region)
    }

    /// May such a region be registered now?
    fn admit(
        &self,
        state: &State,
        spec: &NamespaceSpec,
        slots: u32,
        pool: bool,
    ) -> Result<(), RegisterError> {
        let bound = |what, max| Err(RegisterError::BoundReached { what, max });
        match state.namespaces.get(&spec.name) {
            Some(namespace) => {
                if let Some(detail) = namespace.spec.mismatch(spec) {
                    return Err(RegisterError::NamespaceMismatch { detail });
                }
                if let Some(region) = namespace.pool.filter(|_| pool) {
                    let namespace = spec.name.clone();
                    return Err(RegisterError::PoolExists { namespace, region });
                }
            }
            None if state.namespaces.len() >= self.limits.namespaces => {
                return bound("namespaces", self.limits.namespaces as u64);
            }
            None => {}
        }
        if state.regions.len() >= self.limits.regions {
            return bound("regions", self.limits.regions as u64);
        }
        if state.total_slots + u64::from(slots) > self.limits.slots {
            return bound("slots of all regions", self.limits.slots);
        }
        Ok(())
    }

    /// Takes a region out, with its blocks, pinned ones too, and its reservations. Its memory lives
    /// on while reads or pulls that began before still use it. Gives the number of blocks removed.
    ///
    /// Holds the lock for a time linear in the region's slots.
    ///
    /// # Errors
    /// [`UnregisterError::UnknownRegion`].
    pub fn unregister(&self, region: RegionId) -> Result<u64, UnregisterError> {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        let gone = state
            .regions
            .remove(&region)
            .ok_or(UnregisterError::UnknownRegion { region })?;
        let slots = gone.region.geometry.slots();
        // Readers of this moment still reach the words: all odd first.
        for slot in 0..slots {
            gone.region.generations.begin_write(slot);
        }
        let name = &gone.region.namespace.name;
        if let Some(namespace) = state.namespaces.get_mut(name) {
            namespace.forget_region(region, &gone.slots);
            if namespace.regions.is_empty() {
                state.namespaces.remove(name);
            }
        }
        state.reserved.retain(|_, places| {
            places.retain(|place| place.region != region);
            !places.is_empty()
        });
        state.total_slots -= u64::from(slots);
        self.sink.record(Change::RegionRemoved(region));
        self.catalog.remove(region);
        Ok(u64::from(gone.slots.counts().sealed))
    }
}
