//! Where pulls spend their time, and what went wrong on the way to their outcomes.

use kvferry_observe::{ByLabel, Counter, Histogram, label};

use super::outcome::Failure;

label! {
    /// What a pull does while it takes time. Phases of one pull overlap.
    pub enum Phase("phase") {
        /// Asking coordinators who has the blocks.
        Locate = "locate",
        /// Opening a link to an owner; one that is open already takes no time and is not counted.
        Connect = "connect",
        /// Reading blocks.
        Wire = "wire",
        /// Reading their generation words, after they have arrived.
        Validate = "validate",
        /// Computing checksums of what has arrived.
        Checksum = "checksum",
    }
}

label! {
    /// Why an owner's copy did not give its block.
    pub enum CopyFailure("reason") {
        /// No link, a lost link, or one that stood still.
        Unreachable = "unreachable",
        /// The owner has something else there now.
        Stale = "stale",
        /// The owner does not let this agent in.
        Denied = "denied",
        /// The bytes did not match their checksum.
        Corrupt = "corrupt",
    }
}

impl From<Failure> for CopyFailure {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Unreachable => Self::Unreachable,
            Failure::Stale => Self::Stale,
            Failure::Denied => Self::Denied,
            Failure::Corrupt => Self::Corrupt,
        }
    }
}

/// Of all pulls. An observation is a relaxed addition or two.
#[derive(Debug, Default)]
pub struct TransferMetrics {
    /// Per operation: one Locate, one link, one read of some blocks, one read of their words.
    pub phases: ByLabel<Phase, Histogram>,
    /// Copies that were tried and did not give their block; another one may have.
    pub failed_copies: ByLabel<CopyFailure, Counter>,
}
