//! How much is taken in, and how long what ended is remembered.

use std::time::Duration;

/// A worker that ended is shown as gone for this long: long enough to be seen by whoever asks why a
/// pull found nobody.
pub const GONE_KEPT: Duration = Duration::from_secs(60);
/// A reader's report counts for this long: several rounds of a pull that cannot read.
pub const REPORT_KEPT: Duration = Duration::from_secs(30);
/// Readers that must agree before a worker is taken for stale: one may have no network itself.
pub const REPORT_QUORUM: usize = 2;
/// Readers remembered per worker; more than the quorum, so that an old one leaves room for a new one.
pub(super) const MAX_REPORTERS: usize = 8;
/// Reports in one call: a pull has a few candidates, a node a few pulls.
pub const MAX_REPORTS: usize = 256;
/// Sources in a page, where the caller does not say, and at most.
pub const DEFAULT_PAGE: usize = 100;
/// As many as fit a message with names of usual length.
pub const MAX_PAGE: usize = 1_000;
/// Most bytes of identities in a page, as encoded: far below a message.
pub(super) const MAX_PAGE_BYTES: usize = 2 << 20;

/// The bounds of the sources of one coordinator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Sources, those that are gone included: models x revisions x parallelism in one cluster.
    pub sources: usize,
    /// Workers of a source: its ranks times its replicas. As many fit one message.
    pub workers_per_source: usize,
    /// Workers of a node: engines of a host, each with a few sets.
    pub workers_per_node: usize,
    /// Bytes of all tensor descriptors, each set counted once however many workers have it.
    pub table_bytes: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            sources: 4_096,
            workers_per_source: 4_096,
            workers_per_node: 256,
            // A thousand ranks of the largest models.
            table_bytes: 512 << 20,
        }
    }
}

/// A bound was met. Nothing was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the bound of {limit} {what} is reached: remove sources that nobody needs any more")]
pub struct BoundReached {
    /// Of what there are too many.
    pub what: &'static str,
    /// The bound.
    pub limit: usize,
}
