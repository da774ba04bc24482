//! The agent's local API from another process: what the bindings for other languages share.
//!
//! A [`Connection`] is one lifetime of one connection to one agent. Every call ends by its deadline, and what it came to
//! otherwise is a [`Failure`] with a [`Cause`] per next move. A [`pull`] tells a [`PullSink`] one outcome per block.

mod cause;
mod connection;
mod embedded;
mod failure;
mod last_word;
mod pull;

pub use cause::Cause;
pub use connection::Connection;
pub use embedded::{Embedded, agent_settings};
pub use failure::Failure;
pub use pull::{PullSink, Unanswered, pull};
