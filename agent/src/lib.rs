//! The agent beside an inference process: registers memory others may read, and pulls the blocks
//! its engine lacks straight out of their owners' memory.
//!
//! Usable as a daemon (`kvferry agent`) and as a library.

pub mod config;
pub mod coordinators;
mod daemon;
#[cfg(feature = "fuzzing")]
pub mod fuzz;
pub mod gpu;
mod guarded;
mod metrics;
pub mod region;
#[cfg(feature = "sabotage")]
pub mod sabotage;
#[cfg(not(feature = "sabotage"))]
mod sabotage;
mod service;
pub mod session;
pub mod tickets;
pub mod transfer;
pub mod transport;
mod unix_socket;
mod workers;

pub use config::AgentConfig;
pub use daemon::{Agent, AgentAddresses, ServeError, StartError};
pub use guarded::Guarded;
pub use service::PeerApi;
pub use unix_socket::SocketError;
pub use workers::{MAX_WORKERS, worker_threads};
