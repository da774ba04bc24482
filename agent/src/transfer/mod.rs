//! Brings blocks here: the pull engine and the shell that drives it.
//!
//! # How a block travels
//!
//! ```text
//!  Locate ── nobody has it ──────────────────────────────────────────────► Missing
//!    │        nobody could be asked, again and again ─────────────────────► LocateFailed
//!    ▼
//!  Prepare ── no room ───────────────────────────────────────────────────► NoSpace
//!    │
//!    ▼  ┌──────── next candidate; when none is left, Locate again ◄──┐
//!  Connect                                                           │
//!    │  no link, link lost, or it stands still (Suspect) ────────────┤ Unreachable
//!    │  no ticket is good enough, there or on a second link, or ─────┤ Denied
//!    │  this user is let in by none of the ways there are            │
//!    ▼                                                               │
//!  Read                 the slot's bytes, into the destination       │
//!    │  region gone or span refused ─────────────────────────────────┤ Stale
//!    ▼                                                               │
//!  ReadGenerations      begins only when those bytes have arrived    │
//!    │  not equal, or odd ───────────────────────────────────────────┤ Stale
//!    ▼                                                               │
//!  Verify               where a checksum is known                    │
//!    │  another checksum ────────────────────────────────────────────┘ Corrupt
//!    ▼
//!  Land ─────────────────────────────────────────────────────────────────► Pulled
//! ```
//!
//! A block for which nothing is left gets the most telling of its failures: corrupt before denied before
//! stale before unreachable ([`Failure`]). At `margin` before the deadline all reads are cancelled; blocks end
//! `TimedOut` as they settle. At the deadline the rest do too, unsettled: a destination is given back
//! ([`Command::Abandon`]) only when no operation can touch it any more, however long that takes.
//!
//! # In stages
//!
//! Where an engine uses a block's planes one after the other, it is brought in as many parts as there are stages: what the
//! pull engine calls a block is then a part of one, and the first stage's parts of all blocks come before the second's.
//! Every part is read, validated by its owner's word and failed over by itself; a block lands with its last part, and fails
//! with its first that does ([`pull_in_stages`]).
//!
//! # Call order
//!
//! The agent's service implements [`Locate`], [`Connect`] and [`Landing`] for one request and awaits
//! [`pull`], which drives a [`PullEngine`]: commands out, obeyed; events in; time passed on. The engine
//! itself does no IO and knows no clock, so the simulation drives the same one.
//!
//! The shell turns blocks into reads with [`plan`], and sets of tensors into blocks with [`tensors`].

mod block;
mod block_set;
mod command;
mod config;
mod driver;
mod engine;
mod event;
mod metrics;
mod outcome;
pub mod plan;
mod source;
mod stages;
pub mod tensors;

pub use command::{BlockIndex, Command, OpId, SlotRead, SourceKey};
pub use config::TransferConfig;
pub use driver::{
    Aborted, BlockOutcome, Connect, LandError, Landing, Locate, LocateError, NoSpace, Parts,
    PullSummary, pull,
};
#[cfg(feature = "fuzzing")]
pub(crate) use engine::fuzz;
pub use engine::{PullEngine, PullRequest};
pub use event::{Candidate, Candidates, ConnectFailure, Event, ReadFailure, SourceHint};
pub use metrics::{CopyFailure, Phase, TransferMetrics};
pub use outcome::{Failure, Outcome};
pub use plan::{Destination, PlannedRead};
pub use stages::{StageEvent, StagedRequest, pull_in_stages};

/// A moment: since an origin that the driver chooses, on a clock that does not go back.
pub type Time = std::time::Duration;
