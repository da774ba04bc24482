//! Copies that came and went, in columns.

use kvferry_proto::HashLen;

/// What happened to a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyChange {
    /// The slot holds the block.
    Added,
    /// The slot doesn't hold it any more.
    Removed,
    /// It is sealed anew: same block, same slot, another generation.
    Moved,
}

/// Copies of one region or several, in the order of what happened: columns of equal length.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rows {
    /// What happened.
    pub changes: Vec<CopyChange>,
    /// Numbers of regions, as [`WatchedRegion`](super::WatchedRegion) names them.
    pub regions: Vec<u32>,
    /// Slots.
    pub slots: Vec<u32>,
    /// Generations; 0 where removed.
    pub generations: Vec<u64>,
    /// Hashes, back to back.
    pub hashes: Vec<u8>,
}

impl Rows {
    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// None at all?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// One by one: what happened, region, slot, generation, hash.
    pub fn iter(
        &self,
        hash_len: HashLen,
    ) -> impl Iterator<Item = (CopyChange, u32, u32, u64, &[u8])> {
        let hashes = self.hashes.chunks_exact(hash_len.get());
        let columns = self.changes.iter().zip(&self.regions).zip(&self.slots);
        let columns = columns.zip(&self.generations).zip(hashes);
        columns.map(|((((change, region), slot), generation), hash)| {
            (*change, *region, *slot, *generation, hash)
        })
    }

    /// Appends others.
    pub fn extend(&mut self, others: &Self) {
        self.changes.extend_from_slice(&others.changes);
        self.regions.extend_from_slice(&others.regions);
        self.slots.extend_from_slice(&others.slots);
        self.generations.extend_from_slice(&others.generations);
        self.hashes.extend_from_slice(&others.hashes);
    }

    pub(super) fn push(
        &mut self,
        change: CopyChange,
        (region, slot): (u32, u32),
        generation: u64,
        hash: &[u8],
    ) {
        self.changes.push(change);
        self.regions.push(region);
        self.slots.push(slot);
        self.generations.push(generation);
        self.hashes.extend_from_slice(hash);
    }

    /// Memory they take: columns grow by doubling, so that up to half of it may be empty.
    pub(super) fn bytes(&self) -> usize {
        self.changes.capacity() * size_of::<CopyChange>()
            + (self.regions.capacity() + self.slots.capacity()) * size_of::<u32>()
            + self.generations.capacity() * size_of::<u64>()
            + self.hashes.capacity()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_halves_of_columns_count() {
        let mut rows = Rows::default();
        assert_eq!(rows.bytes(), 0);
        // One more than columns of a power of two have room for.
        for slot in 0..129 {
            rows.push(CopyChange::Added, (0, slot), 2, &[0; 32]);
        }
        let used = 129 * (1 + 4 + 4 + 8 + 32);
        assert!(rows.bytes() > used * 3 / 2, "{} of {used}", rows.bytes());
        rows.hashes.shrink_to_fit();
        rows.generations.shrink_to_fit();
        assert!(rows.bytes() < used * 3 / 2, "{} of {used}", rows.bytes());
    }
}
