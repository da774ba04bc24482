//! What the pull engine wants done.

use kvferry_proto::{Checksum, RegionId, Slot};

use super::outcome::Outcome;

/// Index into the request's blocks.
pub type BlockIndex = u32;

/// One owner: a node in one incarnation. Numbers are given out by whoever drives the engine, from
/// zero in order of first mention, and never change within a pull.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SourceKey(pub u32);

/// One asynchronous operation of a pull.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OpId(pub u64);

/// A block and where to read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotRead {
    /// Which block.
    pub block: BlockIndex,
    /// The owner's region.
    pub region: RegionId,
    /// Its slot.
    pub slot: Slot,
}

/// Something to do. Each says which event answers it; those without one are done when they return.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Ask who holds these blocks. Answered by `Located` or `LocateFailed`. One at a time.
    Locate {
        /// Comes back in the answer.
        op: OpId,
        /// Which.
        blocks: Vec<BlockIndex>,
    },
    /// Reserve a destination for each. Answered by `Prepared` or `NoSpace` per block.
    Prepare {
        /// Which.
        blocks: Vec<BlockIndex>,
    },
    /// Open a link. Answered by `Connected` or `ConnectFailed`.
    Connect {
        /// To whom.
        source: SourceKey,
    },
    /// Read slots into their blocks' destinations. Answered by `ReadDone` or `ReadFailed`, when it
    /// has settled.
    Read {
        /// Comes back in the answer.
        op: OpId,
        /// From whom.
        source: SourceKey,
        /// All of one region.
        slots: Vec<SlotRead>,
    },
    /// Read the slots' generation words. Their data has arrived. Answered by `GenerationsDone` or
    /// `ReadFailed`, when it has settled.
    ReadGenerations {
        /// Comes back in the answer.
        op: OpId,
        /// From whom.
        source: SourceKey,
        /// Of which slots.
        slots: Vec<SlotRead>,
    },
    /// Make a read settle soon. Its own answer still comes.
    Cancel {
        /// Which.
        op: OpId,
    },
    /// Remember for other pulls that this owner did not answer.
    Suspect {
        /// Who.
        source: SourceKey,
    },
    /// Give the link to this source up: its path does not vouch for its bytes, and some were wrong. Other pulls
    /// should reach it another way.
    Distrust {
        /// Who.
        source: SourceKey,
    },
    /// Compare the destination's bytes with the checksum. Answered by `Verified`.
    Verify {
        /// Which.
        block: BlockIndex,
        /// The one expected.
        checksum: Checksum,
    },
    /// Seal and publish. Answered by `Landed` or `LandFailed`.
    Land {
        /// Which.
        block: BlockIndex,
        /// Of its bytes, where it is known.
        checksum: Option<Checksum>,
    },
    /// Give the destination back: nothing touches it any more.
    Abandon {
        /// Whose.
        block: BlockIndex,
    },
    /// Tell the caller. Once per block.
    Finish {
        /// Which.
        block: BlockIndex,
        /// What became of it.
        outcome: Outcome,
        /// Where it came from, or who failed last.
        source: Option<SourceKey>,
    },
}
