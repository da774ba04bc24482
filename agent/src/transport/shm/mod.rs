//! The same host: the owner's memory is mapped here, read-only, and a read is a copy.
//!
//! An owner runs a [`ShmServer`] on a unix socket, which hands descriptors of its regions to processes
//! of allowed users. A reader has a [`ShmTransport`]. Engines use the same socket through a
//! [`DescriptorClient`]: to hand the agent memory of their own, and to map the agent's.

mod behind;
mod channel;
mod client;
mod copier;
mod deposit;
mod frame;
#[cfg(feature = "fuzzing")]
pub mod fuzz;
mod host;
mod link;
mod mapped;
mod server;
mod session;
mod transport;
mod watch;

pub use client::{DescriptorClient, DescriptorError, RegionDescriptors};
pub use deposit::DepositBox;
pub use frame::ShmFrameError;
pub use host::host_id;
pub use link::ShmLink;
pub use server::{ShmOptions, ShmServer};
pub use transport::ShmTransport;
