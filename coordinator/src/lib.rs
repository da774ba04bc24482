//! The control plane of kvferry: which node owns which block.
//!
//! [`directory`] is a pure machine: `now` is an argument, effects come out; so is the planner of copies
//! ([`replication`]). Around them lies a thin
//! gRPC shell ([`Coordinator`]) that parses messages into events and carries the effects out.

mod config;
pub mod directory;
#[cfg(feature = "fuzzing")]
pub mod fuzz;
mod metrics;
pub mod replication;
#[cfg(feature = "sabotage")]
pub mod sabotage;
#[cfg(not(feature = "sabotage"))]
mod sabotage;
mod server;
mod service;
pub mod sources;

pub use config::{ConfigError, CoordinatorConfig};
pub use kvferry_observe::{BindError as MetricsBindError, MetricsListen};
pub use server::{Coordinator, ServeError, StartError};
pub use service::{copying::order as copy_order, locate::answer as answer_locate, parse, watched};
