//! What this agent has done, in numbers. Counters only grow.

use std::sync::atomic::{AtomicU64, Ordering};

/// One number that only grows.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    /// Counts more.
    pub(crate) fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    /// What was counted.
    #[must_use]
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Pulls, as `Agent.Stats` tells them.
#[derive(Debug, Default)]
pub(crate) struct PullCounters {
    /// Pulls begun.
    pub(crate) begun: Counter,
    /// Pulls ended; those between are in flight.
    pub(crate) ended: Counter,
    /// Blocks that came from other nodes.
    pub(crate) blocks: Counter,
    /// Their bytes.
    pub(crate) bytes: Counter,
    /// Blocks whose last candidate was stale.
    pub(crate) stale: Counter,
    /// Blocks that could not be had for any other reason than that nobody holds them.
    pub(crate) failed: Counter,
}
