//! Registering costs more than reading, so registrations are kept; never one that was not asked for.

use std::{
    collections::{BTreeMap, HashMap},
    hash::Hash,
    ops::Range,
    sync::{Arc, Mutex},
};

use crate::{
    DeviceMemory, LocalRegion, ProtectionDomain, ReadableRegion, RegisterError, RegisterOptions,
    lock,
};

/// What a registration is found by: all of it, so that a region of other length or rights is never given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Key {
    /// The address of the `Arc`'s value. The registration keeps the memory alive, so no other memory has
    /// that address as long as the key is in the cache.
    memory: usize,
    start: u64,
    end: u64,
    readable: bool,
}

#[derive(Clone)]
enum Region {
    Readable(Arc<ReadableRegion>),
    Local(Arc<LocalRegion>),
}

/// Registrations with one protection domain; the one not used for longest leaves when a new one has no room.
/// What left stays registered as long as anybody holds it.
pub struct RegionCache {
    domain: Arc<ProtectionDomain>,
    options: RegisterOptions,
    regions: Mutex<Lru<Key, Region>>,
}

impl RegionCache {
    /// An empty cache for at most `capacity` regions (at least one).
    #[must_use]
    pub fn new(domain: &Arc<ProtectionDomain>, capacity: usize, options: RegisterOptions) -> Self {
        Self {
            domain: Arc::clone(domain),
            options,
            regions: Mutex::new(Lru::new(capacity)),
        }
    }

    /// The range as memory that peers may read.
    ///
    /// # Errors
    /// [`RegisterError`]; then nothing was kept.
    pub fn readable<M: DeviceMemory>(
        &self,
        memory: &Arc<M>,
        range: Range<u64>,
    ) -> Result<Arc<ReadableRegion>, RegisterError> {
        let key = key(memory, &range, true);
        if let Some(Region::Readable(region)) = lock(&self.regions).get(&key) {
            return Ok(region);
        }
        // Without the lock: registering a large region takes a second. Two that do so at once end with
        // one of the two kept, and both are right.
        let region = ReadableRegion::register(&self.domain, memory, range, self.options)?;
        self.keep(key, Region::Readable(Arc::clone(&region)));
        Ok(region)
    }

    /// The range as memory that our own READs write to.
    ///
    /// # Errors
    /// [`RegisterError`]; then nothing was kept.
    pub fn local<M: DeviceMemory>(
        &self,
        memory: &Arc<M>,
        range: Range<u64>,
    ) -> Result<Arc<LocalRegion>, RegisterError> {
        let key = key(memory, &range, false);
        if let Some(Region::Local(region)) = lock(&self.regions).get(&key) {
            return Ok(region);
        }
        let region = LocalRegion::register(&self.domain, memory, range, self.options)?;
        self.keep(key, Region::Local(Arc::clone(&region)));
        Ok(region)
    }

    /// Lets go of every registration of a memory: its owner wants it back.
    pub fn forget<M: DeviceMemory>(&self, memory: &Arc<M>) {
        let address = Arc::as_ptr(memory).addr();
        let gone = lock(&self.regions).remove_if(|key| key.memory == address);
        drop(gone); // deregisters, without the lock
    }

    /// Lets go of one registration, where it is kept.
    pub fn forget_region(&self, region: &Arc<LocalRegion>) {
        let gone = {
            let mut regions = lock(&self.regions);
            let keys: Vec<Key> = (regions.entries.iter())
                .filter(|(_, (kept, _))| matches!(kept, Region::Local(kept) if Arc::ptr_eq(kept, region)))
                .map(|(key, _)| *key)
                .collect();
            regions.remove_if(|key| keys.contains(key))
        };
        drop(gone); // deregisters, without the lock
    }

    /// How many registrations are kept.
    #[must_use]
    pub fn len(&self) -> usize {
        lock(&self.regions).entries.len()
    }

    /// True when none is kept.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn keep(&self, key: Key, region: Region) {
        let gone = lock(&self.regions).insert(key, region);
        drop(gone); // deregisters, without the lock
    }
}

fn key<M: DeviceMemory>(memory: &Arc<M>, range: &Range<u64>, readable: bool) -> Key {
    Key {
        memory: Arc::as_ptr(memory).addr(),
        start: range.start,
        end: range.end,
        readable,
    }
}

/// A bounded map that forgets what was not used for longest.
struct Lru<K, V> {
    capacity: usize,
    clock: u64,
    entries: HashMap<K, (V, u64)>,
    by_use: BTreeMap<u64, K>,
}

impl<K: Copy + Eq + Hash, V: Clone> Lru<K, V> {
    fn new(capacity: usize) -> Self {
        Self {
            capacity: capacity.max(1),
            clock: 0,
            entries: HashMap::new(),
            by_use: BTreeMap::new(),
        }
    }

    fn get(&mut self, key: &K) -> Option<V> {
        let (value, used) = self.entries.get_mut(key)?;
        self.by_use.remove(used);
        self.clock += 1;
        *used = self.clock;
        self.by_use.insert(self.clock, *key);
        Some(value.clone())
    }

    /// Gives what left: the old value of the key, and whatever had no room.
    fn insert(&mut self, key: K, value: V) -> Vec<V> {
        self.clock += 1;
        let mut gone = Vec::new();
        if let Some((old, used)) = self.entries.insert(key, (value, self.clock)) {
            self.by_use.remove(&used);
            gone.push(old);
        }
        self.by_use.insert(self.clock, key);
        while self.entries.len() > self.capacity {
            let Some((_, oldest)) = self.by_use.pop_first() else {
                break;
            };
            gone.extend(self.entries.remove(&oldest).map(|(value, _)| value));
        }
        gone
    }

    fn remove_if(&mut self, gone: impl Fn(&K) -> bool) -> Vec<V> {
        let keys: Vec<K> = self.entries.keys().copied().filter(gone).collect();
        keys.iter()
            .filter_map(|key| {
                let (value, used) = self.entries.remove(key)?;
                self.by_use.remove(&used);
                Some(value)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvferry_memory::HostMemory;

    #[test]
    fn every_part_of_the_key_counts() {
        let memory = Arc::new(HostMemory::anonymous(8192).unwrap());
        let other = Arc::new(HostMemory::anonymous(8192).unwrap());
        let keys = [
            key(&memory, &(0..4096), true),
            key(&memory, &(0..4096), false),
            key(&memory, &(0..8192), true),
            key(&memory, &(1..4096), true),
            key(&other, &(0..4096), true),
        ];
        let mut lru = Lru::new(16);
        for (value, key) in keys.iter().enumerate() {
            assert_eq!(lru.get(key), None);
            assert!(lru.insert(*key, value).is_empty());
        }
        for (value, key) in keys.iter().enumerate() {
            assert_eq!(lru.get(key), Some(value));
        }
        assert_eq!(key(&Arc::clone(&memory), &(0..4096), true), keys[0]);
    }

    #[test]
    fn the_one_not_used_for_longest_leaves() {
        let mut lru = Lru::new(2);
        assert!(lru.insert('a', 1).is_empty());
        assert!(lru.insert('b', 2).is_empty());
        assert_eq!(lru.get(&'a'), Some(1));
        assert_eq!(lru.insert('c', 3), [2]);
        assert_eq!(lru.insert('c', 4), [3]);
        assert_eq!(
            (lru.get(&'a'), lru.get(&'b'), lru.get(&'c')),
            (Some(1), None, Some(4))
        );
        assert_eq!(lru.remove_if(|key| *key == 'a'), [1]);
        assert_eq!(lru.insert('d', 5), []);
        assert_eq!((lru.entries.len(), lru.by_use.len()), (2, 2));
    }
}
