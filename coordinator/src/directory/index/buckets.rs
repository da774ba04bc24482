//! Hash bits -> positions, a cache line a bucket.

use kvferry_memory::{Array, prefetch};

/// Positions of one bucket: with a tag of a byte each and two bytes of a count, a cache line is full.
pub(super) const LANES: usize = 12;
/// Where in `meta` the count of overflows is.
const OVERFLOW: usize = LANES;
/// Buckets are filled to four fifths: one key in thirty is then not in its own bucket.
const FILL: (usize, usize) = (LANES * 4, 5);

/// Twelve keys' tags (0: none), and how many keys passed by this bucket because it was full.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Bucket {
    meta: [u8; 16],
    positions: [u32; LANES],
}

/// The first lane of some. Bit 8n is lane n, bit 8n + 1 is lane 8 + n.
fn lane(lanes: u64) -> usize {
    let bit = lanes.trailing_zeros() as usize;
    (bit >> 3) + ((bit & 1) << 3)
}

fn words(meta: &[u8; 16]) -> [u64; 2] {
    let whole = u128::from_le_bytes(*meta);
    [whole as u64, (whole >> 64) as u64]
}

const EMPTY: Bucket = Bucket {
    meta: [0; 16],
    positions: [0; LANES],
};

/// An open-addressed table of buckets that are probed in a row. Of a key it knows a byte; the caller
/// says which position is the right one.
#[derive(Debug, Default)]
pub(super) struct Buckets {
    buckets: Array<Bucket>,
    len: usize,
}

fn tag(hash: u64) -> u8 {
    (hash as u8).max(1)
}

impl Bucket {
    /// The lanes whose tag is this: a bit a lane, see [`lane`]. Eight lanes are compared at a time
    /// in a plain word, exactly: the autovectorizer makes three times as many instructions of it.
    fn lanes(&self, tag: u8) -> u64 {
        const LOW: u64 = u64::from_le_bytes([0x7f; 8]);
        let splat = u64::from_le_bytes([tag; 8]);
        let equal = |word: u64| {
            let differs = word ^ splat;
            !(((differs & LOW) + LOW) | differs | LOW)
        };
        let [low, high] = words(&self.meta);
        (equal(low) >> 7) | ((equal(high) & 0x8080_8080) >> 6)
    }

    /// The positions of the keys with this tag. That there is none doesn't say that the key is not in the table.
    #[inline]
    pub(super) fn guesses(&self, hash: u64) -> impl Iterator<Item = u32> {
        let mut lanes = self.lanes(tag(hash));
        std::iter::from_fn(move || {
            let first = (lanes != 0).then(|| self.positions[lane(lanes)])?;
            lanes &= lanes - 1;
            Some(first)
        })
    }

    /// Did keys pass by, because this bucket was full?
    #[inline]
    pub(super) fn is_passed(&self) -> bool {
        self.overflow() != 0
    }

    fn overflow(&self) -> u16 {
        u16::from_le_bytes([self.meta[OVERFLOW], self.meta[OVERFLOW + 1]])
    }

    /// Sticks at its greatest value: what was not counted can't be counted back.
    fn count_overflow(&mut self, more: bool) {
        let count = match (self.overflow(), more) {
            (u16::MAX, _) => u16::MAX,
            (count, true) => count + 1,
            (count, false) => count.saturating_sub(1),
        };
        self.meta[OVERFLOW..OVERFLOW + 2].copy_from_slice(&count.to_le_bytes());
    }
}

impl Buckets {
    /// A table of at least `buckets` buckets. Its memory is touched here and not later.
    pub(super) fn new(buckets: usize) -> Self {
        Self {
            buckets: Array::new(EMPTY, Array::<Bucket>::room(buckets.max(1))),
            len: 0,
        }
    }

    /// Buckets that `keys` keys need.
    pub(super) fn buckets_for(keys: usize) -> usize {
        keys * FILL.1 / FILL.0 + 1
    }

    /// How many buckets there are.
    pub(super) fn buckets(&self) -> usize {
        self.buckets.len()
    }

    /// Keys there is room for.
    pub(super) fn capacity(&self) -> usize {
        self.buckets.len() * FILL.0 / FILL.1
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Bits 8 to 40 choose the bucket; the tag is below, the shard above.
    pub(super) fn home_at(&self, hash: u64) -> usize {
        let bits = u64::from((hash >> 8) as u32);
        ((bits * self.buckets.len() as u64) >> 32) as usize
    }

    fn after(&self, at: usize) -> usize {
        let next = at + 1;
        if next == self.buckets.len() { 0 } else { next }
    }

    /// The key's own bucket, where most keys are; None in a table of no buckets.
    #[inline]
    pub(super) fn home(&self, hash: u64) -> Option<&Bucket> {
        self.buckets.get(self.home_at(hash))
    }

    /// The bucket after the key's own.
    pub(super) fn next(&self, hash: u64) -> Option<&Bucket> {
        self.buckets.get(self.after(self.home_at(hash)))
    }

    /// Has the key's bucket come near, for when it is wanted.
    pub(super) fn prefetch(&self, hash: u64) {
        self.home(hash).into_iter().for_each(prefetch);
    }

    /// The position that `right` says is the key's.
    pub(super) fn find(&self, hash: u64, right: impl FnMut(u32) -> bool) -> Option<u32> {
        let (bucket, lane) = self.search(hash, right)?;
        Some(self.buckets[bucket].positions[lane])
    }

    fn search(&self, hash: u64, mut right: impl FnMut(u32) -> bool) -> Option<(usize, usize)> {
        let mut at = self.home_at(hash);
        // At most all of them: a full round has seen every key.
        for _ in 0..self.buckets.len() {
            let bucket = &self.buckets[at];
            let mut lanes = bucket.lanes(tag(hash));
            while lanes != 0 {
                let lane = lane(lanes);
                if right(bucket.positions[lane]) {
                    return Some((at, lane));
                }
                lanes &= lanes - 1;
            }
            if bucket.overflow() == 0 {
                return None;
            }
            at = self.after(at);
        }
        None
    }

    /// Adds a key. The caller keeps `len` at or under `capacity`.
    pub(super) fn insert(&mut self, hash: u64, position: u32) {
        let mut at = self.home_at(hash);
        for _ in 0..self.buckets.len() {
            let next = self.after(at);
            let bucket = &mut self.buckets[at];
            let free = bucket.lanes(0);
            if free != 0 {
                let lane = lane(free);
                bucket.meta[lane] = tag(hash);
                bucket.positions[lane] = position;
                self.len += 1;
                return;
            }
            bucket.count_overflow(true);
            at = next;
        }
    }

    /// Takes a key out; false where it isn't there.
    pub(super) fn remove(&mut self, hash: u64, position: u32) -> bool {
        let Some((last, lane)) = self.search(hash, |other| other == position) else {
            return false;
        };
        self.buckets[last].meta[lane] = 0;
        self.len -= 1;
        let mut at = self.home_at(hash);
        while at != last {
            self.buckets[at].count_overflow(false);
            at = self.after(at);
        }
        true
    }

    /// Takes every key of one bucket out. Counts of overflows stay: look-ups go on past it.
    pub(super) fn drain(&mut self, bucket: usize, mut each: impl FnMut(u32)) {
        let Some(bucket) = self.buckets.get_mut(bucket) else {
            return;
        };
        for lane in 0..LANES {
            if bucket.meta[lane] != 0 {
                bucket.meta[lane] = 0;
                self.len -= 1;
                each(bucket.positions[lane]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Random keys against a plain map.
    #[test]
    fn a_table_is_a_map() {
        let mut buckets = Buckets::new(8);
        let mut model = std::collections::BTreeMap::new();
        let mut state = 1u64;
        for _ in 0..100_000 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(99);
            let hash = (state >> 33).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 5;
            let position = (state >> 33) as u32 % 128;
            let hash = hash ^ hash >> 31;
            if let Some(hash) = model.remove(&position) {
                assert!(buckets.remove(hash, position), "{position}");
            } else if buckets.len() < buckets.capacity() {
                model.insert(position, hash);
                buckets.insert(hash, position);
            }
            assert_eq!(buckets.len(), model.len());
            for (position, hash) in &model {
                assert_eq!(buckets.find(*hash, |p| p == *position), Some(*position));
            }
        }
    }

    /// A full table of few buckets, all keys in one bucket: probing, counting and removing.
    #[test]
    fn keys_beyond_a_full_bucket_are_found_and_removed() {
        let mut buckets = Buckets::new(4);
        for position in 0..40 {
            buckets.insert(7, position);
        }
        for position in 0..40 {
            assert_eq!(buckets.find(7, |p| p == position), Some(position));
        }
        assert_eq!(buckets.find(8, |_| true), None, "another tag");
        for position in (0..40).rev() {
            assert!(buckets.remove(7, position));
            assert!(!buckets.remove(7, position));
        }
        assert_eq!(buckets.len(), 0);
        assert!(buckets.buckets.iter().all(|bucket| bucket.meta == [0; 16]));
    }
}
