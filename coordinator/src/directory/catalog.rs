//! Namespaces and regions. Knows nothing of sessions, liveness or ranking.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use kvferry_proto::{NamespaceName, NamespaceSpec, RegionId};
use parking_lot::Mutex;

use super::{
    BoundReached, Bounds, Counts, CreateNamespaceError, LocationEnd, RegionDeclaration,
    RegionRefusal,
    namespace::{Namespace, NamespaceInfo},
    region::Region,
    slab::Slab,
    slots::SlotTable,
    sweep::Sweeps,
    totals::Totals,
};

/// What is held where.
///
/// Invariant: a namespace's index holds (hash, region, slot) exactly when the slot table of one of
/// its regions says that the slot is sealed in that entry. Both change under the lock of the slot
/// table; what is structure (namespaces, regions) changes by `&mut`.
#[derive(Debug)]
pub(super) struct Catalog {
    pub(super) bounds: Bounds,
    pub(super) names: BTreeMap<NamespaceName, u32>,
    pub(super) namespaces: Slab<Namespace>,
    pub(super) regions: Slab<Region>,
    pub(super) sweeps: Sweeps,
    pub(super) totals: Arc<Totals>,
    pub(super) counts: Arc<Counts>,
    /// What was deleted and is to be dropped where nobody waits.
    garbage: Vec<Garbage>,
    /// Slots of all regions, sealed or not; not of those that went.
    slots: u64,
    /// The number that the next log of changes starts after: greater than any of those that went.
    pub(super) next_log: u64,
    /// Blocks with a location, over all namespaces.
    pub(super) located: AtomicU64,
    /// Uses of locations so far, over all namespaces: what tells which was used last.
    pub(super) uses: AtomicU64,
}

/// A deleted namespace: dropping it takes as long as it is large.
#[derive(Debug)]
pub struct Garbage {
    _namespace: Namespace,
    _regions: Vec<Region>,
}

impl Catalog {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            names: BTreeMap::new(),
            namespaces: Slab::new(),
            regions: Slab::new(),
            sweeps: Sweeps::default(),
            totals: Arc::default(),
            counts: Arc::default(),
            garbage: Vec::new(),
            slots: 0,
            next_log: 1,
            located: AtomicU64::new(0),
            uses: AtomicU64::new(0),
        }
    }

    // ---- namespaces

    /// True when it was not there before.
    pub(super) fn create(&mut self, spec: &NamespaceSpec) -> Result<bool, CreateNamespaceError> {
        let before = self.namespaces.len();
        self.find_or_create(spec)?;
        Ok(self.namespaces.len() > before)
    }

    fn find_or_create(&mut self, spec: &NamespaceSpec) -> Result<u32, CreateNamespaceError> {
        if let Some(&handle) = self.names.get(&spec.name) {
            let known = self.namespaces.get(handle);
            return match known.and_then(|known| known.spec.mismatch(spec)) {
                Some(text) => Err(CreateNamespaceError::Mismatch(text)),
                None => Ok(handle),
            };
        }
        if self.namespaces.len() >= self.bounds.namespaces as usize {
            return Err(BoundReached::namespaces(&self.bounds).into());
        }
        let handle = self
            .namespaces
            .insert(Namespace::new(spec.clone(), &self.totals));
        self.names.insert(spec.name.clone(), handle);
        Ok(handle)
    }

    pub(super) fn namespace(&self, name: &NamespaceName) -> Option<&Namespace> {
        self.named(name).map(|(_, namespace)| namespace)
    }

    /// With its handle.
    pub(super) fn named(&self, name: &NamespaceName) -> Option<(u32, &Namespace)> {
        let handle = *self.names.get(name)?;
        Some((handle, self.namespaces.get(handle)?))
    }

    /// Handles of a namespace's regions.
    pub(super) fn regions_of(&self, namespace: u32) -> impl Iterator<Item = u32> {
        let namespace = self.namespaces.get(namespace);
        namespace
            .into_iter()
            .flat_map(|n| n.regions.iter().copied())
    }

    /// A namespace and its handle.
    pub(super) fn find(&self, name: &NamespaceName) -> Option<(u32, &Namespace)> {
        let handle = *self.names.get(name)?;
        Some((handle, self.namespaces.get(handle)?))
    }

    pub(super) fn spec_at(&self, handle: u32) -> Option<&NamespaceSpec> {
        Some(&self.namespaces.get(handle)?.spec)
    }

    pub(super) fn find_mut(&mut self, name: &NamespaceName) -> Option<&mut Namespace> {
        self.namespaces.get_mut(*self.names.get(name)?)
    }

    /// In order of their names.
    pub(super) fn namespaces(&self) -> impl Iterator<Item = &Namespace> {
        self.names
            .values()
            .filter_map(|handle| self.namespaces.get(*handle))
    }

    /// What people are told of one.
    pub(super) fn info(&self, namespace: &Namespace) -> NamespaceInfo {
        let sealed = |region: &Region| u64::from(region.slots.lock().sealed());
        let regions = namespace.regions.iter();
        let regions = regions.filter_map(|handle| self.regions.get(*handle));
        namespace.info(regions.map(sealed).sum())
    }

    /// Deletes a namespace and the regions that are part of it; (node, id) of each come back.
    pub(super) fn delete(&mut self, name: &NamespaceName) -> Vec<(u32, RegionId)> {
        let handle = self.names.remove(name);
        let Some((handle, namespace)) =
            handle.and_then(|handle| Some((handle, self.namespaces.remove(handle)?)))
        else {
            return Vec::new();
        };
        self.end_log(&namespace);
        namespace.index.forget_counts();
        let located = namespace.locations.lock().len() as u64;
        self.unlocated(&namespace, located, LocationEnd::NamespaceDeleted);
        let mut regions = Vec::new();
        for gone in self.sweeps.forget(|region| {
            let region = self.regions.get(region);
            region.is_some_and(|region| region.namespace == handle && region.gone)
        }) {
            regions.extend(self.regions.remove(gone));
        }
        let mut told = Vec::new();
        for region in &namespace.regions {
            self.sweeps.forget(|other| other == *region);
            let Some(region) = self.regions.remove(*region) else {
                continue;
            };
            self.slots -= u64::from(region.slot_count());
            told.push((region.node, region.id));
            regions.push(region);
        }
        self.garbage.push(Garbage {
            _namespace: namespace,
            _regions: regions,
        });
        told
    }

    /// So many blocks of a namespace have a location that had none.
    pub(super) fn located(&self, namespace: &Namespace, blocks: u64) {
        self.located.fetch_add(blocks, Ordering::Relaxed);
        let counts = &self.counts;
        counts.locations.add(blocks as i64);
        counts.locations_bytes.add(namespace.bytes_of(blocks));
        counts.locations_added.add(blocks);
    }

    /// So many have none any more.
    pub(super) fn unlocated(&self, namespace: &Namespace, blocks: u64, why: LocationEnd) {
        self.located.fetch_sub(blocks, Ordering::Relaxed);
        let counts = &self.counts;
        counts.locations.add(-(blocks as i64));
        counts.locations_bytes.add(-namespace.bytes_of(blocks));
        counts.locations_ended.of(why).add(blocks);
    }

    /// What is to be dropped where nobody waits.
    pub(super) fn take_garbage(&mut self) -> Vec<Garbage> {
        std::mem::take(&mut self.garbage)
    }

    // ---- regions

    /// Makes a region part of its namespace, which is created if missing. Its handle comes back.
    pub(super) fn declare(
        &mut self,
        node: u32,
        declaration: &RegionDeclaration,
    ) -> Result<u32, RegionRefusal> {
        let spec = &declaration.namespace;
        let slots = declaration.geometry.slots();
        declaration.geometry.fits_layout(&spec.layout)?;
        // Before the namespace, so that a refused region doesn't leave an empty one behind.
        if self.slots + u64::from(slots) > self.bounds.slots {
            return Err(BoundReached::slots(&self.bounds).into());
        }
        if let Some(namespace) = self.namespace(&spec.name) {
            namespace.check_slots(slots)?;
        }
        let handle = self.find_or_create(spec).map_err(|error| match error {
            CreateNamespaceError::Mismatch(text) => RegionRefusal::NamespaceMismatch(text),
            CreateNamespaceError::Bound(bound) => bound.into(),
        })?;
        let region = self.regions.insert(Region {
            node,
            id: declaration.region,
            namespace: handle,
            hash_len: spec.hash_len,
            geometry: Arc::new(declaration.geometry.clone()),
            row: Bytes::new(),
            gone: false,
            slots: Mutex::new(SlotTable::new(slots)),
        });
        self.slots += u64::from(slots);
        if let Some(namespace) = self.namespaces.get_mut(handle) {
            namespace.regions.insert(region);
            namespace.slots += u64::from(slots);
        }
        self.tell_region(region);
        Ok(region)
    }

    pub(super) fn region(&self, handle: u32) -> Option<&Region> {
        self.regions.get(handle)
    }

    pub(super) fn namespace_of(&self, region: &Region) -> Option<&Namespace> {
        self.namespaces.get(region.namespace)
    }

    /// Takes a region out of a node that stays; see [`remove`](Self::remove).
    pub(super) fn remove_alone(&mut self, handle: u32) {
        self.tell_region_gone(handle);
        self.remove(handle);
    }

    /// Takes a region out: it is offered to nobody from now on, and swept out of the index after.
    pub(super) fn remove(&mut self, handle: u32) {
        let Some(region) = self.regions.get_mut(handle) else {
            return;
        };
        if region.gone {
            return;
        }
        region.gone = true;
        let slots = u64::from(region.slot_count());
        self.slots -= slots;
        if let Some(namespace) = self.namespaces.get_mut(region.namespace) {
            namespace.regions.remove(&handle);
            namespace.slots -= slots;
        }
        self.sweeps.start(handle);
    }

    pub(super) fn reap_is_due(&self) -> bool {
        self.sweeps.any_done() || !self.garbage.is_empty()
    }

    /// Frees the handles of regions that are swept out.
    pub(super) fn reap(&mut self) {
        for handle in self.sweeps.take_done() {
            if self.regions.get(handle).is_some_and(|region| region.gone) {
                self.regions.remove(handle);
            }
        }
    }

    pub(super) fn namespace_count(&self) -> usize {
        self.namespaces.len()
    }

    /// Declared by all nodes.
    pub(super) fn slots(&self) -> u64 {
        self.slots
    }

    /// Regions, and slots declared, over all namespaces: what a leak would show in.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn totals(&self) -> (usize, u64) {
        (self.regions.len(), self.slots)
    }
}
