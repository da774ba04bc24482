//! What chunks are called, and where a worker's lie.

use sha2::{Digest, Sha256};

use super::{MAX_RUNS, TableDigest, TensorError};
use crate::{BlockHash, HashLen, InvalidMessage, RegionId, SourceId, pb, source::first_bytes};

/// The names of one worker's chunks.
#[derive(Debug, Clone)]
pub struct Chunks {
    start: Sha256,
    hash_len: HashLen,
}

impl Chunks {
    /// Chunks of a source's rank with this set of tensors, named with so many bytes.
    ///
    /// # Errors
    /// [`TensorError::HashLength`] outside 16 to 32 bytes: fewer could meet by chance.
    pub fn new(
        source: SourceId,
        rank: u32,
        digest: TableDigest,
        hash_len: HashLen,
    ) -> Result<Self, TensorError> {
        if !(16..=32).contains(&hash_len.get()) {
            let len = hash_len.get();
            return Err(TensorError::HashLength { len });
        }
        let mut start = Sha256::new();
        start.update(b"kvferry chunk v1\0");
        start.update(source.as_bytes());
        start.update(rank.to_le_bytes());
        start.update(digest.as_bytes());
        Ok(Self { start, hash_len })
    }

    /// The block hash of a chunk.
    #[must_use]
    pub fn hash(&self, chunk: u32) -> BlockHash {
        let mut hasher = self.start.clone();
        hasher.update(chunk.to_le_bytes());
        BlockHash::from(first_bytes::<32>(hasher)).cut(self.hash_len)
    }
}

/// Consecutive chunks in consecutive slots of a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkRun {
    /// The region.
    pub region: RegionId,
    /// The first chunk's slot.
    pub first_slot: u32,
    /// How many.
    pub slots: u32,
}

/// Where a worker's chunks lie: runs that follow each other from chunk 0 on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkRuns(Box<[ChunkRun]>);

impl ChunkRuns {
    /// Checks runs.
    ///
    /// # Errors
    /// [`TensorError::Runs`].
    pub fn new(runs: impl IntoIterator<Item = ChunkRun>) -> Result<Self, TensorError> {
        let runs: Box<[_]> = runs.into_iter().take(MAX_RUNS + 1).collect();
        let bad =
            |run: &ChunkRun| run.slots == 0 || run.first_slot.checked_add(run.slots).is_none();
        if runs.is_empty() || runs.len() > MAX_RUNS || runs.iter().any(bad) {
            return Err(TensorError::Runs { runs: runs.len() });
        }
        Ok(Self(runs))
    }

    /// The runs.
    #[must_use]
    pub fn as_slice(&self) -> &[ChunkRun] {
        &self.0
    }

    /// Are they as many slots as a set has chunks?
    ///
    /// # Errors
    /// [`TensorError::RunSlots`].
    pub fn covers(&self, chunks: u32) -> Result<(), TensorError> {
        match self.slots() {
            got if got == u64::from(chunks) => Ok(()),
            got => Err(TensorError::RunSlots { got, want: chunks }),
        }
    }

    /// Slots of all runs.
    #[must_use]
    pub fn slots(&self) -> u64 {
        self.0.iter().map(|run| u64::from(run.slots)).sum()
    }
}

impl TryFrom<Vec<pb::ChunkRun>> for ChunkRuns {
    type Error = InvalidMessage;
    fn try_from(runs: Vec<pb::ChunkRun>) -> Result<Self, InvalidMessage> {
        let run = |run: pb::ChunkRun| ChunkRun {
            region: RegionId(run.region),
            first_slot: run.first_slot,
            slots: run.slots,
        };
        Ok(Self::new(runs.into_iter().map(run))?)
    }
}

impl From<&ChunkRuns> for Vec<pb::ChunkRun> {
    fn from(runs: &ChunkRuns) -> Self {
        let run = |run: &ChunkRun| pb::ChunkRun {
            region: run.region.0,
            first_slot: run.first_slot,
            slots: run.slots,
        };
        runs.0.iter().map(run).collect()
    }
}
