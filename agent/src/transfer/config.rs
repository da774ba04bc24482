//! The bounds of a pull, each with its reason.

use std::time::Duration;

/// Bounds and sizes of one pull. The defaults are what the agent runs with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransferConfig {
    /// Bytes a data read aims at: large enough that a request's own cost vanishes, small enough that
    /// the first blocks of a prefix land long before the last.
    pub op_bytes: u64,
    /// As `op_bytes`, of pulls with blocks that are to be verified: what has just come is summed up while it is in the second level
    /// cache.
    pub verified_op_bytes: u64,
    /// Most blocks in one data read: what is lost, and must be read again, when it fails.
    pub op_blocks: usize,
    /// No data read has blocks of two groups of so many, counted from the first block: what waits for a group does not wait for
    /// blocks of the next one.
    pub group_blocks: u32,
    /// A data read takes at most this fraction of its link's window, so that the path stays full
    /// while one read ends and the next begins.
    pub ops_per_window: u64,
    /// Most bytes of data reads in flight in one pull, over all sources (one block is always
    /// allowed): what a single pull may take from the pulls beside it.
    pub inflight_bytes: u64,
    /// Most generation words asked for in one read. They are 8 KiB; what lies between them may be read with them, into as many
    /// bytes as the driver's scratch has (eight times that).
    pub generation_words: usize,
    /// Bytes given to one source before the next of the same class gets some: runs of neighbouring
    /// blocks stay on one source, where their spans merge.
    pub stripe_bytes: u64,
    /// Most sources used at the same time: beyond that, connecting costs more than striping gains.
    pub max_sources: usize,
    /// Most candidates kept per block: as many as a locate may answer with.
    pub max_candidates: usize,
    /// Queued blocks looked at when an idle source takes work from a busy one: keeps a step's cost
    /// apart from the size of the pull.
    pub steal_scan: usize,
    /// Most blocks in one locate: what one request may carry.
    pub locate_blocks: usize,
    /// Pause after the first failed locate; doubles with each one.
    pub locate_backoff: Duration,
    /// Longest pause between locates: a coordinator that is back is asked within this.
    pub locate_backoff_max: Duration,
    /// How often a block that no candidate could give is located again. Hints age; beyond this the
    /// answer would be as old.
    pub relocates: u32,
    /// Pause before that: what an owner's delta takes to reach the coordinator.
    pub relocate_delay: Duration,
    /// Connects to one source per pull: one, and one more after its link was lost.
    pub connects: u32,
    /// A source without progress for this long is left alone: what a stopped owner may cost.
    pub stall_bound: Duration,
    /// Longest time before the deadline that is kept for reads to settle. A tenth of the timeout
    /// where that is less.
    pub settle_margin: Duration,
    /// How often the driver looks at the links' counters: what stall detection may be late by.
    pub progress_tick: Duration,
    /// Bytes whose checksum is computed in place (some 50 us), and after which others have their turn; more at a time goes to a
    /// blocking thread, which has them in no cache of its own.
    pub verify_inline_bytes: u64,
}

impl Default for TransferConfig {
    fn default() -> Self {
        Self {
            op_bytes: 4 << 20,
            verified_op_bytes: 1 << 20,
            op_blocks: 1024,
            group_blocks: u32::MAX,
            ops_per_window: 4,
            inflight_bytes: 128 << 20,
            generation_words: 1024,
            stripe_bytes: 1 << 20,
            max_sources: 8,
            max_candidates: 16,
            steal_scan: 256,
            locate_blocks: kvferry_proto::MAX_HASHES_PER_REQUEST,
            locate_backoff: Duration::from_millis(10),
            locate_backoff_max: Duration::from_millis(500),
            relocates: 2,
            relocate_delay: Duration::from_millis(20),
            connects: 2,
            stall_bound: Duration::from_secs(2),
            settle_margin: Duration::from_millis(50),
            progress_tick: Duration::from_millis(100),
            verify_inline_bytes: 1 << 20,
        }
    }
}

impl TransferConfig {
    /// How long before the deadline of a pull with this timeout no read begins any more.
    #[must_use]
    pub fn margin(&self, timeout: Duration) -> Duration {
        self.settle_margin.min(timeout / 10)
    }
}
