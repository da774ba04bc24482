//! What the pull engine is told.

use kvferry_proto::{Checksum, Generation, RegionId, Slot};
use smallvec::SmallVec;

use super::command::{BlockIndex, OpId, SourceKey};
use crate::transport::Capabilities;

/// One place where a block is said to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Whose.
    pub source: SourceKey,
    /// Which region of that incarnation.
    pub region: RegionId,
    /// Which slot.
    pub slot: Slot,
    /// What the slot's word must be for the bytes to be the block.
    pub generation: Generation,
    /// Of the block's bytes, where it is known.
    pub checksum: Option<Checksum>,
    /// Remote spans the block is in, before neighbours are merged.
    pub spans: u32,
}

/// Of one block. Mostly one, which then lies inline.
pub type Candidates = SmallVec<[Candidate; 1]>;

/// What is known of a source before there is a link to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SourceHint {
    /// Which.
    pub source: SourceKey,
    /// It stalled or could not be reached a short while ago.
    pub suspect: bool,
    /// As [`Capabilities::distance`], as far as it can be told; the link's own replaces it.
    pub distance: u8,
}

/// Why a read failed; as [`ReadError`](crate::transport::ReadError), without the words for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadFailure {
    /// The link is gone, with everything on it.
    LinkLost,
    /// The owner refuses the ticket, and so the link; another one begins with another ticket.
    Denied,
    /// The owner does not serve that region any more.
    RegionGone,
    /// The owner refuses a span of it.
    SpanRefused,
    /// A span of it cannot be read over this link, and there is no other; the rest of what the owner has can.
    NoPath,
    /// It was cancelled, by us or by the transport.
    Cancelled,
    /// Our own memory or request is at fault.
    Local,
}

/// Why there is no link; as [`ConnectError`](crate::transport::ConnectError).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectFailure {
    /// Nobody answers.
    Unreachable,
    /// Another lifetime answers: every hint about this one is void.
    WrongIncarnation,
    /// It refuses us, or there is no way to it.
    Refused,
    /// It refuses our tickets, or none is given to us.
    Denied,
}

/// Something happened. Events about what is over, or never was, are ignored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The answer to a locate.
    Located {
        /// The command's.
        op: OpId,
        /// Of the sources named.
        hints: Vec<SourceHint>,
        /// Per block of the command, in its order; best first. Blocks beyond the end were not
        /// answered for: those were not located, which is a failure and no miss.
        candidates: Vec<Candidates>,
    },
    /// Nobody could be asked.
    LocateFailed {
        /// The command's.
        op: OpId,
        /// False where asking again is of no use.
        retryable: bool,
    },
    /// The block has a destination.
    Prepared {
        /// Which.
        block: BlockIndex,
    },
    /// There is no room for the block.
    NoSpace {
        /// Which.
        block: BlockIndex,
    },
    /// There is a link.
    Connected {
        /// To whom.
        source: SourceKey,
        /// What it can do.
        capabilities: Capabilities,
    },
    /// There is no link.
    ConnectFailed {
        /// To whom.
        source: SourceKey,
        /// Why.
        failure: ConnectFailure,
    },
    /// A data read has settled, with all its bytes.
    ReadDone {
        /// Which.
        op: OpId,
    },
    /// A generation read has settled.
    GenerationsDone {
        /// Which.
        op: OpId,
        /// Per slot of the command, in its order.
        words: Vec<u64>,
    },
    /// A data or generation read has settled, without its bytes.
    ReadFailed {
        /// Which.
        op: OpId,
        /// Why.
        failure: ReadFailure,
    },
    /// The payload counter of a source's link.
    Progress {
        /// Whose.
        source: SourceKey,
        /// Bytes since the link was opened.
        received_bytes: u64,
    },
    /// The block's checksum was computed.
    Verified {
        /// Which.
        block: BlockIndex,
        /// It is the one expected.
        ok: bool,
    },
    /// The block is sealed; its destination is no longer ours.
    Landed {
        /// Which.
        block: BlockIndex,
    },
    /// The block could not be sealed; its destination is still to be given back.
    LandFailed {
        /// Which.
        block: BlockIndex,
    },
    /// The caller has no use for this block any more. It ends as cancelled, as soon as what is being read of it has settled;
    /// the others go on.
    GiveUp {
        /// Which.
        block: BlockIndex,
    },
    /// The caller gave up.
    Cancel,
}
