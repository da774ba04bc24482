//! Namespaces, regions and the index over their blocks, kept in step. Knows nothing of sessions,
//! liveness or ranking.

use std::{collections::BTreeMap, sync::Arc};

use kvferry_proto::{Checksum, Generation, NamespaceName, NamespaceSpec, PackedHashes};

use super::{
    BoundReached, Bounds, CreateNamespaceError, RegionDeclaration, RegionRefusal, SealedSlots,
    index::Owner, namespace::Namespace, region::Region, slab::Slab, slots::SlotTable,
};

/// What is held where.
///
/// Invariant: a namespace's index holds (hash, region, slot) exactly when the slot table of one of
/// its regions says that the slot is sealed and holds that hash.
#[derive(Debug)]
pub(super) struct Catalog {
    bounds: Bounds,
    names: BTreeMap<NamespaceName, u32>,
    namespaces: Slab<Namespace>,
    regions: Slab<Region>,
    /// Slots of all regions, sealed or not.
    slots: u64,
}

impl Catalog {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            names: BTreeMap::new(),
            namespaces: Slab::new(),
            regions: Slab::new(),
            slots: 0,
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
        let handle = self.namespaces.insert(Namespace::new(spec.clone()));
        self.names.insert(spec.name.clone(), handle);
        Ok(handle)
    }

    pub(super) fn namespace(&self, name: &NamespaceName) -> Option<&Namespace> {
        self.namespaces.get(*self.names.get(name)?)
    }

    /// In order of their names.
    pub(super) fn namespaces(&self) -> impl Iterator<Item = &Namespace> {
        self.names
            .values()
            .filter_map(|handle| self.namespaces.get(*handle))
    }

    /// Deletes a namespace and the regions that are part of it.
    pub(super) fn delete(&mut self, name: &NamespaceName) -> Option<(Namespace, Vec<Region>)> {
        let namespace = self.namespaces.remove(self.names.remove(name)?)?;
        let regions: Vec<Region> = namespace
            .regions
            .iter()
            .filter_map(|handle| self.regions.remove(*handle))
            .collect();
        for region in &regions {
            self.slots -= u64::from(region.slots.slots());
        }
        Some((namespace, regions))
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
        let handle = self.find_or_create(spec).map_err(|error| match error {
            CreateNamespaceError::Mismatch(text) => RegionRefusal::NamespaceMismatch(text),
            CreateNamespaceError::Bound(bound) => bound.into(),
        })?;
        let region = self.regions.insert(Region {
            node,
            id: declaration.region,
            namespace: handle,
            geometry: Arc::new(declaration.geometry.clone()),
            slots: SlotTable::new(spec.hash_len, slots),
        });
        self.slots += u64::from(slots);
        if let Some(namespace) = self.namespaces.get_mut(handle) {
            namespace.regions.insert(region);
        }
        Ok(region)
    }

    pub(super) fn region(&self, handle: u32) -> Option<&Region> {
        self.regions.get(handle)
    }

    pub(super) fn namespace_of(&self, region: &Region) -> Option<&Namespace> {
        self.namespaces.get(region.namespace)
    }

    /// Takes a region and everything it holds out.
    pub(super) fn remove(&mut self, handle: u32) {
        let Some(region) = self.regions.remove(handle) else {
            return;
        };
        self.slots -= u64::from(region.slots.slots());
        let Some(namespace) = self.namespaces.get_mut(region.namespace) else {
            return;
        };
        namespace.regions.remove(&handle);
        namespace.owners -= u64::from(region.slots.sealed());
        for (slot, sealed) in region.slots.iter() {
            let owner = Owner {
                region: handle,
                slot,
            };
            namespace.index.remove(sealed.hash, owner);
        }
    }

    // ---- slots

    /// Says what slots hold now. The caller has checked columns, slots and hash length.
    pub(super) fn seal(&mut self, handle: u32, added: &SealedSlots) {
        let Some(region) = self.regions.get_mut(handle) else {
            return;
        };
        let Some(namespace) = self.namespaces.get_mut(region.namespace) else {
            return;
        };
        let hashes = added.hashes.iter().flat_map(PackedHashes::iter);
        let columns = added.slots.iter().zip(&added.generations).zip(hashes);
        for (at, ((&slot, &generation), hash)) in columns.enumerate() {
            let checksum = added.checksums.get(at).copied();
            let checksum = checksum.and_then(Checksum::from_wire);
            let owner = Owner {
                region: handle,
                slot,
            };
            match region.slots.get(slot) {
                Some(held) if held.hash == hash => {}
                Some(held) => {
                    namespace.index.remove(held.hash, owner);
                    namespace.index.insert(hash, owner);
                }
                None => {
                    namespace.index.insert(hash, owner);
                    namespace.owners += 1;
                }
            }
            region
                .slots
                .set(slot, hash, Generation(generation), checksum);
        }
    }

    /// Says that slots hold nothing any more.
    pub(super) fn clear(&mut self, handle: u32, slots: impl IntoIterator<Item = u32>) {
        let Some(region) = self.regions.get_mut(handle) else {
            return;
        };
        let Some(namespace) = self.namespaces.get_mut(region.namespace) else {
            return;
        };
        for slot in slots {
            if let Some(held) = region.slots.get(slot) {
                let owner = Owner {
                    region: handle,
                    slot,
                };
                namespace.index.remove(held.hash, owner);
                namespace.owners -= 1;
                region.slots.clear(slot);
            }
        }
    }

    /// Empties every slot but those for which `keep` says so.
    pub(super) fn retain(&mut self, handle: u32, keep: impl Fn(u32) -> bool) {
        let Some(region) = self.regions.get(handle) else {
            return;
        };
        let gone: Vec<u32> = region
            .slots
            .iter()
            .map(|(slot, _)| slot)
            .filter(|slot| !keep(*slot))
            .collect();
        self.clear(handle, gone);
    }

    /// Regions, and slots declared, over all namespaces: what a leak would show in.
    #[cfg(test)]
    pub(super) fn totals(&self) -> (usize, u64) {
        (self.regions.len(), self.slots)
    }
}
