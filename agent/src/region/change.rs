//! What the store tells whoever follows it.

use std::sync::Arc;

use kvferry_proto::{BlockHash, Checksum, Generation, RegionId, Slot};

use super::Region;

/// One change of what this agent holds.
#[derive(Debug, Clone)]
pub enum Change {
    /// A region is served from now on.
    RegionAdded(Arc<Region>),
    /// A region and all its blocks are gone.
    RegionRemoved(RegionId),
    /// A slot holds a block.
    Sealed {
        /// Where.
        region: RegionId,
        /// Where in it.
        slot: Slot,
        /// Which block.
        hash: BlockHash,
        /// The slot's even generation.
        generation: Generation,
        /// Of the block's bytes, where its namespace wants one.
        checksum: Option<Checksum>,
    },
    /// A slot holds nothing any more; its generation was made odd before this was said.
    Removed {
        /// Where.
        region: RegionId,
        /// Where in it.
        slot: Slot,
    },
}

/// Follows the store. Called under the store's lock, in the order of truth: be quick, and never call
/// the store from here.
pub trait ChangeSink: Send + Sync {
    /// One change happened.
    fn record(&self, change: Change);
}
