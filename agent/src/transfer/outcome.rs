//! What became of a block.

use kvferry_proto::pb::OutcomeKind;

/// The one outcome of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The bytes are the block, and it has landed.
    Pulled,
    /// Nobody holds it.
    Missing,
    /// Every owner had overwritten it, or no longer serves its region.
    Stale,
    /// Its bytes did not have the checksum they were sealed with.
    Corrupt,
    /// No owner could be reached, or none kept on sending.
    Unreachable,
    /// Who holds it does not let us read it. Neither a miss nor an outage, and trying again does not help: rights, clocks
    /// and the coordinator's key are what to look at.
    Denied,
    /// The deadline came first. Not settled: the destination may still be written to, and is given
    /// back when that has ended.
    TimedOut {
        /// Nothing touches the destination any more.
        settled: bool,
    },
    /// The coordinator could not be asked: not a miss.
    LocateFailed,
    /// There was no room to put it.
    NoSpace,
    /// The place it was to go to failed or is gone.
    DestinationFailed,
    /// The caller gave up.
    Cancelled {
        /// As in [`Outcome::TimedOut`].
        settled: bool,
    },
}

impl Outcome {
    /// As it is said to an engine. A destination that failed is no place to put a block.
    #[must_use]
    pub fn kind(self) -> OutcomeKind {
        match self {
            Self::Pulled => OutcomeKind::Pulled,
            Self::Missing => OutcomeKind::Missing,
            Self::Stale => OutcomeKind::Stale,
            Self::Corrupt => OutcomeKind::Corrupt,
            Self::Unreachable => OutcomeKind::Unreachable,
            Self::Denied => OutcomeKind::Denied,
            Self::TimedOut { .. } => OutcomeKind::TimedOut,
            Self::LocateFailed => OutcomeKind::LocateFailed,
            Self::NoSpace | Self::DestinationFailed => OutcomeKind::NoSpace,
            Self::Cancelled { .. } => OutcomeKind::Cancelled,
        }
    }

    /// False where the destination may still be written to.
    #[must_use]
    pub fn is_settled(self) -> bool {
        !matches!(
            self,
            Self::TimedOut { settled: false } | Self::Cancelled { settled: false }
        )
    }
}

/// Why a candidate did not give its block. In order of how telling it is: of several failures of one
/// block, the greatest is its outcome. Corrupt bytes are what an operator must hear of, and then that an owner that may
/// have the block does not let us in; a stale hint says that the owner was there and answered; unreachable says nothing
/// about the block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Failure {
    /// No link, a lost link, or one that stood still.
    Unreachable,
    /// The owner has something else there now.
    Stale,
    /// The owner lets us in with no ticket that we can get, or not our user.
    Denied,
    /// The bytes did not match the checksum.
    Corrupt,
}

impl From<Failure> for Outcome {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Unreachable => Self::Unreachable,
            Failure::Stale => Self::Stale,
            Failure::Denied => Self::Denied,
            Failure::Corrupt => Self::Corrupt,
        }
    }
}
