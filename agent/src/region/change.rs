//! What the store tells the rest of the agent, in the order it became true.

use std::{fmt, sync::Arc};

use kvferry_proto::{BlockHash, Checksum, Generation, RegionId, Slot};

use super::Region;

/// One change of what this agent holds.
#[derive(Debug, Clone)]
pub enum Change {
    /// A region is served from now on. It holds no blocks yet.
    RegionAdded(Arc<Region>),
    /// A region and all its blocks are gone. No [`Change::Removed`] comes for them.
    RegionRemoved(RegionId),
    /// A block can be read.
    Sealed {
        /// Its region.
        region: RegionId,
        /// Its slot; it held no block before.
        slot: Slot,
        /// The block's hash.
        hash: BlockHash,
        /// The slot's generation, even.
        generation: Generation,
        /// Where the namespace's policy covers the block.
        checksum: Option<Checksum>,
    },
    /// A slot holds no block any more. Its generation is odd already.
    Removed {
        /// The region.
        region: RegionId,
        /// The slot.
        slot: Slot,
    },
}

/// Takes changes, in order.
///
/// Called under the store's lock: an implementation queues the change and returns. It must neither
/// block nor call the store, and it must not lose a change.
pub trait ChangeSink: fmt::Debug + Send + Sync {
    /// Takes the next change.
    fn record(&self, change: Change);
}
