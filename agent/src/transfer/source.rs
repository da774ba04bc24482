//! Where one source of a pull stands.

use super::{Time, block_set::BlockSet, command::OpId, outcome::Failure};
use crate::{
    sabotage::{self, Bug},
    transport::Capabilities,
};

/// The way to a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Path {
    /// No link: not needed yet, or lost.
    Closed,
    /// Being opened.
    Opening {
        since: Time,
        /// It has taken longer than the stall bound; blocks no longer count on it.
        late: bool,
    },
    /// There is a link.
    Open(Capabilities),
    /// Not to be had in this pull: what its candidates are worth.
    Dead(Failure),
}

/// One owner, as this pull sees it.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) path: Path,
    /// Counts links, so that the end of an old one says nothing about the next.
    pub(super) epoch: u32,
    pub(super) connects: u32,
    /// Known to have failed others.
    pub(super) suspect: bool,
    /// Failed this pull.
    pub(super) troubled: bool,
    pub(super) distance: u8,
    /// Blocks to be read, earliest first.
    pub(super) queue: BlockSet,
    /// Blocks whose data has arrived.
    pub(super) unchecked: BlockSet,
    /// The one generation read under way: while it is, further blocks gather for the next.
    pub(super) checking: Option<OpId>,
    /// Bytes of data reads that have not settled.
    pub(super) inflight_bytes: u64,
    /// As the link last counted.
    pub(super) received_bytes: u64,
    /// When bytes or an answer last came, or reading began.
    pub(super) progress_at: Time,
}

/// Order of preference; lower is better. First whom to trust, then who is near.
pub(super) type Rank = (u8, u8);

impl Source {
    pub(super) fn new() -> Self {
        Self {
            path: Path::Closed,
            epoch: 0,
            connects: 0,
            suspect: false,
            troubled: false,
            distance: 0,
            queue: BlockSet::default(),
            unchecked: BlockSet::default(),
            checking: None,
            inflight_bytes: 0,
            received_bytes: 0,
            progress_at: Time::ZERO,
        }
    }

    pub(super) fn rank(&self) -> Rank {
        let trust = match (self.troubled, self.suspect) {
            (true, _) => 2,
            (false, true) if sabotage::is(Bug::SuspectsTrusted) => 0,
            (false, true) => 1,
            (false, false) => 0,
        };
        (trust, self.distance)
    }

    /// Bytes it is to deliver.
    pub(super) fn load_bytes(&self, block_bytes: u64) -> u64 {
        (self.queue.len() as u64)
            .saturating_mul(block_bytes)
            .saturating_add(self.inflight_bytes)
    }

    /// It takes one of the pull's places for sources.
    pub(super) fn is_active(&self) -> bool {
        matches!(self.path, Path::Opening { late: false, .. })
            || !self.queue.is_empty()
            || !self.unchecked.is_empty()
            || self.inflight_bytes > 0
            || self.checking.is_some()
    }
}
