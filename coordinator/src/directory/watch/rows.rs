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

    /// Memory they take.
    pub(super) fn bytes(&self) -> usize {
        const COLUMNS: usize = size_of::<CopyChange>() + 2 * size_of::<u32>() + size_of::<u64>();
        self.len() * COLUMNS + self.hashes.len()
    }
}
