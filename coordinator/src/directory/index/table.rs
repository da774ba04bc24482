//! A table that grows step by step: no insert ever pays for all that came before.

use super::buckets::{Bucket, Buckets, LANES};

/// Buckets of the old table that a write moves. The new table has room for nine times as many
/// inserts as it takes until the old one is empty.
const MOVED_PER_WRITE: usize = 1;
/// Buckets moved together: their keys' entries are loaded at the same time.
const MOVED_TOGETHER: usize = 4;
/// Up to this many buckets (16 KiB) a table is moved at once, in some microseconds.
pub(super) const SMALL: usize = 256;

/// Keys and positions, while a table grows in two halves.
#[derive(Debug, Default)]
pub(super) struct Table {
    new: Buckets,
    /// What was before the growth under way, and the first bucket that is not moved yet.
    old: Option<(Buckets, usize)>,
}

impl Table {
    pub(super) fn len(&self) -> usize {
        self.new.len() + self.old.as_ref().map_or(0, |(old, _)| old.len())
    }

    /// Buckets of the table to grow into before `more` keys are added.
    ///
    /// Twice as many each time: half as many again would save 3 bytes a block at worst, and move
    /// each key twice as often, at a cache miss each.
    pub(super) fn wants(&self, more: usize) -> Option<usize> {
        let keys = self.len() + more;
        (keys > self.new.capacity()).then(|| {
            let grown = 2 * self.new.buckets();
            grown.max(Buckets::buckets_for(keys))
        })
    }

    /// Buckets of a smaller table, where most of this one is empty. A fifth leaves room on both
    /// sides, so that a table around one size does not move again and again.
    pub(super) fn wants_less(&self) -> Option<usize> {
        let worth = self.old.is_none() && self.new.buckets() > SMALL;
        (worth && self.len() * 5 < self.new.capacity())
            .then(|| Buckets::buckets_for(self.len() * 2))
    }

    /// Starts to move into a table that has room for all keys there are and will be next.
    /// What comes back is to be dropped where nobody waits.
    pub(super) fn grow_into(
        &mut self,
        larger: Buckets,
        hash_of: impl Fn(u32) -> u64,
    ) -> Option<Buckets> {
        let done = self.move_buckets(usize::MAX, &hash_of);
        let old = std::mem::replace(&mut self.new, larger);
        let small = old.buckets() <= SMALL;
        self.old = (old.len() > 0).then_some((old, 0));
        if small {
            self.move_buckets(usize::MAX, hash_of);
        }
        done
    }

    /// Adds a key.
    pub(super) fn insert(&mut self, hash: u64, position: u32) {
        self.new.insert(hash, position);
    }

    /// Moves as much as so many writes owe, where there is something to move.
    pub(super) fn step(&mut self, writes: usize, hash_of: impl Fn(u32) -> u64) -> Option<Buckets> {
        self.move_buckets(writes * MOVED_PER_WRITE, hash_of)
    }

    fn move_buckets(&mut self, most: usize, hash_of: impl Fn(u32) -> u64) -> Option<Buckets> {
        let Self { new, old } = self;
        let (from, next) = old.as_mut()?;
        let end = from.buckets().min(next.saturating_add(most));
        let mut keys = Vec::with_capacity(MOVED_TOGETHER * LANES);
        while *next < end {
            let together = end.min(*next + MOVED_TOGETHER);
            // Reading an entry misses every cache; a loop of nothing else has the misses overlap.
            for bucket in *next..together {
                from.drain(bucket, |position| keys.push((position, 0)));
            }
            for (position, hash) in &mut keys {
                *hash = hash_of(*position);
            }
            for (position, hash) in keys.drain(..) {
                new.insert(hash, position);
            }
            *next = together;
        }
        if end < from.buckets() {
            return None;
        }
        old.take().map(|(from, _)| from)
    }

    /// The table that a key is in, if it is in one: keys that came since the growth under way began may be in the other.
    #[inline]
    fn likely(&self, hash: u64) -> &Buckets {
        match &self.old {
            Some((old, moved)) if old.home_at(hash) >= *moved => old,
            _ => &self.new,
        }
    }

    /// See [`Buckets::home`]; of the table where the key most likely is.
    #[inline]
    pub(super) fn home(&self, hash: u64) -> Option<&Bucket> {
        self.likely(hash).home(hash)
    }

    /// See [`Buckets::next`]; of the same table.
    pub(super) fn next(&self, hash: u64) -> Option<&Bucket> {
        self.likely(hash).next(hash)
    }

    /// See [`Buckets::prefetch`].
    pub(super) fn prefetch(&self, hash: u64) {
        self.new.prefetch(hash);
    }

    pub(super) fn find(&self, hash: u64, mut right: impl FnMut(u32) -> bool) -> Option<u32> {
        let found = self.new.find(hash, &mut right);
        found.or_else(|| self.old.as_ref()?.0.find(hash, right))
    }

    pub(super) fn remove(&mut self, hash: u64, position: u32) {
        if !self.new.remove(hash, position)
            && let Some((old, _)) = &mut self.old
        {
            old.remove(hash, position);
        }
        debug_assert_eq!(self.find(hash, |other| other == position), None);
    }
}

#[cfg(test)]
impl Table {
    pub(super) fn room(&self) -> usize {
        self.new.capacity() + self.old.as_ref().map_or(0, |(old, _)| old.capacity())
    }
}
