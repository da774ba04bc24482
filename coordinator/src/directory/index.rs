//! One namespace's table from block hash to owners.
//!
//! Hash bytes and the first owner lie inline in the table; only a block with several copies has an
//! allocation of its own. What is known about an owner beyond its place (generation, checksum) lies
//! in the region's slot table.

use std::{hash::BuildHasher, slice};

use hashbrown::{
    DefaultHashBuilder, HashTable,
    hash_table::{Entry as Place, OccupiedEntry},
};
use kvferry_proto::HashLen;

/// A sealed copy: a slot of a region. The region's handle tells node and incarnation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) region: u32,
    pub(super) slot: u32,
}

/// The table, in the narrowest of three widths that holds the namespace's hashes.
#[derive(Debug)]
pub(super) enum Index {
    W16(Table<16>),
    W32(Table<32>),
    W64(Table<64>),
}

macro_rules! with_table {
    ($index:expr, $table:ident => $body:expr) => {
        match $index {
            Index::W16($table) => $body,
            Index::W32($table) => $body,
            Index::W64($table) => $body,
        }
    };
}

impl Index {
    pub(super) fn new(hash_len: HashLen) -> Self {
        match hash_len.get() {
            0..=16 => Self::W16(Table::new()),
            17..=32 => Self::W32(Table::new()),
            _ => Self::W64(Table::new()),
        }
    }

    /// Adds a copy. Each (region, slot) is added at most once before it is removed.
    pub(super) fn insert(&mut self, hash: &[u8], owner: Owner) {
        with_table!(self, table => table.insert(hash, owner));
    }

    /// Takes a copy out; the block goes with its last copy.
    pub(super) fn remove(&mut self, hash: &[u8], owner: Owner) {
        with_table!(self, table => table.remove(hash, owner));
    }

    /// Every copy of a block.
    pub(super) fn owners(&self, hash: &[u8]) -> Owners<'_> {
        with_table!(self, table => table.owners(hash))
    }

    /// Distinct blocks.
    pub(super) fn len(&self) -> usize {
        with_table!(self, table => table.entries.len())
    }
}

/// The copies of one block.
#[derive(Debug)]
pub(super) struct Owners<'a> {
    first: Option<Owner>,
    more: slice::Iter<'a, Owner>,
}

impl Iterator for Owners<'_> {
    type Item = Owner;
    fn next(&mut self) -> Option<Owner> {
        self.first.take().or_else(|| self.more.next().copied())
    }
}

#[derive(Debug)]
pub(super) struct Table<const N: usize> {
    entries: HashTable<Entry<N>>,
    hasher: DefaultHashBuilder,
}

#[derive(Debug)]
struct Entry<const N: usize> {
    /// Zero-padded: all hashes of a namespace have one length, so padding confuses none.
    key: [u8; N],
    first: Owner,
    /// A thin pointer: eight bytes in the common case of one copy.
    more: Option<Box<More>>,
}

/// The copies after the first. Never empty.
#[derive(Debug)]
struct More(Vec<Owner>);

fn pad<const N: usize>(hash: &[u8]) -> [u8; N] {
    let mut key = [0; N];
    // The caller has checked the length; were it wrong, the key would be cut, not the process.
    let len = hash.len().min(N);
    key[..len].copy_from_slice(&hash[..len]);
    key
}

impl<const N: usize> Table<N> {
    fn new() -> Self {
        Self {
            entries: HashTable::new(),
            hasher: DefaultHashBuilder::default(),
        }
    }

    fn insert(&mut self, hash: &[u8], owner: Owner) {
        let key = pad::<N>(hash);
        let place = self.entries.entry(
            self.hasher.hash_one(key),
            |entry| entry.key == key,
            |entry| self.hasher.hash_one(entry.key),
        );
        match place {
            Place::Vacant(place) => {
                place.insert(Entry {
                    key,
                    first: owner,
                    more: None,
                });
            }
            Place::Occupied(mut place) => match &mut place.get_mut().more {
                Some(more) => more.0.push(owner),
                more => *more = Some(Box::new(More(vec![owner]))),
            },
        }
    }

    fn remove(&mut self, hash: &[u8], owner: Owner) {
        let key = pad::<N>(hash);
        let found = self
            .entries
            .find_entry(self.hasher.hash_one(key), |entry| entry.key == key);
        if let Ok(place) = found {
            take(place, owner);
            self.shrink();
        }
    }

    /// A table that lost most of its blocks gives the memory back. Halving at an eighth leaves room
    /// on both sides, so that a table around one size does not move again and again.
    fn shrink(&mut self) {
        const SMALL: usize = 1024;
        if self.entries.capacity() > SMALL && self.entries.len() < self.entries.capacity() / 8 {
            let keep = self.entries.len() * 2;
            self.entries
                .shrink_to(keep, |entry| self.hasher.hash_one(entry.key));
        }
    }

    fn owners(&self, hash: &[u8]) -> Owners<'_> {
        let key = pad::<N>(hash);
        let entry = self
            .entries
            .find(self.hasher.hash_one(key), |entry| entry.key == key);
        Owners {
            first: entry.map(|entry| entry.first),
            more: entry
                .and_then(|entry| entry.more.as_ref())
                .map_or([].iter(), |more| more.0.iter()),
        }
    }
}

fn take<const N: usize>(mut place: OccupiedEntry<'_, Entry<N>>, owner: Owner) {
    let entry = place.get_mut();
    if entry.first == owner {
        match entry.more.as_mut().and_then(|more| more.0.pop()) {
            Some(next) => entry.first = next,
            None => {
                place.remove();
                return;
            }
        }
    } else if let Some(more) = &mut entry.more
        && let Some(at) = more.0.iter().position(|other| *other == owner)
    {
        more.0.swap_remove(at);
    }
    if entry.more.as_ref().is_some_and(|more| more.0.is_empty()) {
        entry.more = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(slot: u32) -> Owner {
        Owner { region: 7, slot }
    }

    fn owners(index: &Index, hash: &[u8]) -> Vec<u32> {
        let mut slots: Vec<u32> = index.owners(hash).map(|owner| owner.slot).collect();
        slots.sort_unstable();
        slots
    }

    #[test]
    fn copies_come_and_go_in_any_order_at_every_width() {
        for len in [8, 16, 17, 32, 33, 64] {
            let mut index = Index::new(HashLen::new(len).unwrap());
            let (a, b) = (vec![1; len], vec![2; len]);
            for slot in 0..4 {
                index.insert(&a, owner(slot));
            }
            index.insert(&b, owner(9));
            assert_eq!(index.len(), 2);
            index.remove(&a, owner(0));
            index.remove(&a, owner(2));
            index.remove(&a, owner(2));
            assert_eq!(owners(&index, &a), [1, 3]);
            index.remove(&a, owner(3));
            index.remove(&a, owner(1));
            assert_eq!(owners(&index, &a), [0; 0]);
            assert_eq!(owners(&index, &b), [9]);
            assert_eq!(index.len(), 1);
        }
    }

    #[test]
    fn memory_comes_back_when_blocks_go() {
        let mut index = Index::new(HashLen::new(8).unwrap());
        for n in 0..100_000u64 {
            index.insert(&n.to_le_bytes(), owner(n as u32));
        }
        for n in 0..99_999u64 {
            index.remove(&n.to_le_bytes(), owner(n as u32));
        }
        assert_eq!(owners(&index, &99_999u64.to_le_bytes()), [99_999]);
        let capacity = with_table!(&index, table => table.entries.capacity());
        assert!(capacity <= 1024, "{capacity}");
    }
}
