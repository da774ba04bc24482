//! Brings blocks here: the pull engine and the shell that drives it.
mod block;
mod command;
mod config;
mod engine;
mod event;
mod outcome;
mod source;

pub use command::{BlockIndex, Command, OpId, SlotRead, SourceKey};
pub use config::TransferConfig;
pub use engine::{PullEngine, PullRequest};
pub use event::{Candidate, ConnectFailure, Event, ReadFailure, SourceHint};
pub use outcome::{Failure, Outcome};

/// A moment: since an origin that the driver chooses, on a clock that does not go back.
pub type Time = std::time::Duration;
