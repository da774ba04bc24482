//! One part of an index. Hash, first owner and its generation lie in one entry; only a block of
//! several copies has more, in a side table.

use kvferry_memory::{Array, prefetch};

use super::{
    Owner,
    buckets::{Bucket, Buckets},
    pages::Pages,
    table::Table,
};

/// Entries of one shard: what a position has bits for beside the shard's number.
pub(super) const MAX_ENTRIES: u32 = 1 << 26;
/// Positions that are used: the two last ones are not, see `Place::NONE` and `Place::PENDING`.
const USED_ENTRIES: u32 = MAX_ENTRIES - 2;
/// In place of a region: the copies are in the side table, from `slot` on.
const SEVERAL: u32 = u32::MAX;
/// The end of a chain in the side table.
const END: u32 = u32::MAX;

/// A copy: where it is, and what a reader checks it by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct Held {
    pub(in super::super) owner: Owner,
    pub(in super::super) generation: u64,
    /// 0 is "not known".
    pub(in super::super) checksum: u64,
}

/// A block: its hash, and its copy where it has one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry<const N: usize> {
    /// Zero-padded: all hashes of a namespace have one length, so padding confuses none.
    hash: [u8; N],
    /// Of several copies: how many there are.
    generation: u64,
    region: u32,
    slot: u32,
}

impl<const N: usize> Entry<N> {
    const EMPTY: Self = Self {
        hash: [0; N],
        generation: 0,
        region: 0,
        slot: 0,
    };

    /// Is it this block's?
    #[inline]
    pub(super) fn is_of(&self, key: &[u8; N]) -> bool {
        self.hash == *key
    }

    /// Has it come near, for when it is wanted: its first and its last line, which are one for every other entry.
    #[inline]
    pub(super) fn prefetch(&self) {
        prefetch(self);
        prefetch(&self.slot);
    }
}

/// A page of entries that is ready to be used.
#[derive(Debug, Default)]
pub(super) struct Room<const N: usize>(Option<Array<Entry<N>>>);

/// A copy of a block that has several.
#[derive(Debug, Clone, Copy)]
struct Further {
    held: Held,
    next: u32,
}

/// One part of an index.
#[derive(Debug, Default)]
pub(super) struct Shard<const N: usize> {
    table: Table,
    entries: Pages<Entry<N>>,
    further: Pages<Further>,
    /// By position; only as long as checksums were ever given.
    checksums: Vec<u64>,
}

/// The copies of one block.
#[derive(Debug, Clone)]
pub(in super::super) struct Copies<'a> {
    first: Option<Held>,
    further: Option<&'a Pages<Further>>,
    next: u32,
}

impl Copies<'_> {
    pub(super) const NONE: Self = Self {
        first: None,
        further: None,
        next: END,
    };

    /// The only copy, where there is one and no more.
    pub(in super::super) fn only(&self) -> Option<Held> {
        match self.next {
            END => self.first,
            _ => None,
        }
    }
}

impl Iterator for Copies<'_> {
    type Item = Held;
    fn next(&mut self) -> Option<Held> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        let further = self.further?.get(self.next)?;
        self.next = further.next;
        Some(further.held)
    }
}

impl<const N: usize> Shard<N> {
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// See [`Table::wants`].
    pub(super) fn wants(&self, more: usize) -> Option<usize> {
        self.table.wants(more)
    }

    /// See [`Table::wants_less`].
    pub(super) fn wants_less(&self) -> Option<usize> {
        self.table.wants_less()
    }

    /// See [`Table::grow_into`].
    pub(super) fn grow_into(
        &mut self,
        larger: Buckets,
        hash_of: impl Fn(&[u8; N]) -> u64,
    ) -> Option<Buckets> {
        let entries = &self.entries;
        let hash_at = |at| entries.get(at).map_or(0, |entry| hash_of(&entry.hash));
        self.table.grow_into(larger, hash_at)
    }

    /// Will so many more entries need a large page? Then it is made before anybody waits.
    pub(super) fn wants_room(&self, more: usize) -> bool {
        self.entries.wants_large(more)
    }

    /// A large page of entries. Its memory is touched here and not later.
    pub(super) fn room() -> Room<N> {
        Room(Some(Pages::large_page(Entry::EMPTY)))
    }

    /// See [`Buckets::prefetch`].
    pub(super) fn prefetch(&self, hash: u64) {
        self.table.prefetch(hash);
    }

    /// See [`Buckets::home`].
    #[inline]
    pub(super) fn home(&self, hash: u64) -> Option<&Bucket> {
        self.table.home(hash)
    }

    /// See [`Buckets::next`].
    pub(super) fn next(&self, hash: u64) -> Option<&Bucket> {
        self.table.next(hash)
    }

    /// What is at a position, whatever it is.
    #[inline]
    pub(super) fn peek(&self, at: u32) -> Option<&Entry<N>> {
        self.entries.get(at)
    }

    /// Has an entry come near, for when it is wanted.
    pub(super) fn prefetch_entry(&self, at: u32) {
        self.peek(at).into_iter().for_each(Entry::prefetch);
    }

    /// The copies of a block.
    pub(super) fn find(&self, hash: u64, key: &[u8; N]) -> Copies<'_> {
        let at = self.position(hash, key);
        let entry = at.and_then(|at| Some((at, self.entries.get(at)?)));
        entry.map_or(Copies::NONE, |(at, entry)| self.copies(at, entry))
    }

    /// The block at a position.
    pub(super) fn entry(&self, at: u32) -> Option<(&[u8; N], Copies<'_>)> {
        let entry = self.entries.get(at)?;
        Some((&entry.hash, self.copies(at, entry)))
    }

    fn position(&self, hash: u64, key: &[u8; N]) -> Option<u32> {
        let right = |at| self.entries.get(at).is_some_and(|e| e.hash == *key);
        self.table.find(hash, right)
    }

    /// The copies of the block of an entry at its position.
    #[inline]
    pub(super) fn copies(&self, at: u32, entry: &Entry<N>) -> Copies<'_> {
        if entry.region == SEVERAL {
            return Copies {
                first: None,
                further: Some(&self.further),
                next: entry.slot,
            };
        }
        Copies {
            first: Some(Held {
                owner: Owner {
                    region: entry.region,
                    slot: entry.slot,
                },
                generation: entry.generation,
                checksum: self.checksum(at),
            }),
            ..Copies::NONE
        }
    }

    fn checksum(&self, at: u32) -> u64 {
        self.checksums.get(at as usize).copied().unwrap_or(0)
    }

    fn set_checksum(&mut self, at: u32, checksum: u64) {
        let at = at as usize;
        if checksum != 0 && at >= self.checksums.len() {
            self.checksums.resize(at + 1, 0);
        }
        if let Some(place) = self.checksums.get_mut(at) {
            *place = checksum;
        }
    }

    /// Adds a copy and says where, and how many there are now; None where there is no position left.
    /// The caller has made room in the table.
    pub(super) fn insert(
        &mut self,
        hash: u64,
        key: &[u8; N],
        held: Held,
        room: &mut Room<N>,
    ) -> Option<(u32, u64)> {
        if let Some(at) = self.position(hash, key) {
            return Some((at, self.push_copy(at, held)?));
        }
        let entry = Entry {
            hash: *key,
            generation: held.generation,
            region: held.owner.region,
            slot: held.owner.slot,
        };
        let at = self.entries.insert(entry, USED_ENTRIES, &mut room.0)?;
        self.set_checksum(at, held.checksum);
        self.table.insert(hash, at);
        Some((at, 1))
    }

    /// How many there are now; None where the side table is full.
    fn push_copy(&mut self, at: u32, held: Held) -> Option<u64> {
        let entry = self.entries.get(at)?;
        let (mut head, mut copies) = (entry.slot, entry.generation);
        if entry.region != SEVERAL {
            let first = self.copies(at, entry).first;
            let first = first.map(|held| Further { held, next: END });
            head = first.and_then(|first| self.further.insert(first, END, &mut None))?;
            copies = 1;
        }
        let further = Further { held, next: head };
        let added = self.further.insert(further, END, &mut None);
        copies += u64::from(added.is_some());
        if let Some(entry) = self.entries.get_mut(at) {
            entry.region = SEVERAL;
            entry.slot = added.unwrap_or(head);
            entry.generation = copies;
        }
        added.map(|_| copies)
    }

    /// Writes generation and checksum of a copy anew; false where the entry is of another hash.
    pub(super) fn reseal(&mut self, at: u32, key: &[u8; N], held: Held) -> bool {
        let Some(entry) = self.entries.get_mut(at).filter(|e| e.hash == *key) else {
            return false;
        };
        if entry.region != SEVERAL {
            entry.generation = held.generation;
            self.set_checksum(at, held.checksum);
            return true;
        }
        let mut next = entry.slot;
        while let Some(further) = self.further.get_mut(next) {
            if further.held.owner == held.owner {
                further.held = held;
                return true;
            }
            next = further.next;
        }
        false
    }

    /// Takes a copy out and says how many are left; the entry goes with its last copy.
    pub(super) fn remove(
        &mut self,
        at: u32,
        owner: Owner,
        hash_of: impl Fn(&[u8; N]) -> u64,
    ) -> Option<u64> {
        let entry = self.entries.get(at).copied()?;
        if entry.region == SEVERAL {
            return self.remove_further(at, entry.slot, owner);
        }
        if (entry.region, entry.slot) != (owner.region, owner.slot) {
            return None;
        }
        self.table.remove(hash_of(&entry.hash), at);
        self.set_checksum(at, 0);
        self.entries.remove(at);
        Some(0)
    }

    /// Takes one copy out of a chain. The last one left moves back into the entry.
    fn remove_further(&mut self, at: u32, head: u32, owner: Owner) -> Option<u64> {
        let (mut before, mut next) = (None, head);
        let found = loop {
            let further = self.further.get(next).copied()?;
            if further.held.owner == owner {
                break further;
            }
            before = Some(next);
            next = further.next;
        };
        self.further.remove(next);
        let head = match before {
            None => found.next,
            Some(before) => {
                if let Some(before) = self.further.get_mut(before) {
                    before.next = found.next;
                }
                head
            }
        };
        let first = self.further.get(head).copied()?;
        let last = first.next == END;
        if last {
            self.further.remove(head);
            self.set_checksum(at, first.held.checksum);
        }
        let entry = self.entries.get_mut(at)?;
        let left = entry.generation.saturating_sub(1);
        entry.slot = head;
        entry.generation = left;
        if last {
            entry.region = first.held.owner.region;
            entry.slot = first.held.owner.slot;
            entry.generation = first.held.generation;
        }
        Some(left)
    }

    /// Moves some of a growth under way, after so many writes. What comes back is to be dropped where
    /// nobody waits.
    pub(super) fn step(
        &mut self,
        writes: usize,
        hash_of: impl Fn(&[u8; N]) -> u64,
    ) -> Option<Buckets> {
        let entries = &self.entries;
        let hash_at = |at| entries.get(at).map_or(0, |entry| hash_of(&entry.hash));
        self.table.step(writes, hash_at)
    }

    /// Pages that take memory, and room of the table.
    #[cfg(test)]
    pub(super) fn footprint(&self) -> (usize, usize) {
        (self.entries.pages(), self.table.room())
    }
}
