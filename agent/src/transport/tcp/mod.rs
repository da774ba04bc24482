//! Sockets: own framing on its own port, bytes straight between sockets and registered memory.
//!
//! An owner runs a [`TcpServer`]; a reader has a [`TcpTransport`], whose links hold several
//! connections to one owner, each with several reads in flight. Responses come in request order.

mod connection;
mod frame;
#[cfg(feature = "fuzzing")]
pub mod fuzz;
mod gpu;
mod link;
mod reader;
mod response;
mod server;
mod session;
mod socket;
mod transport;

pub use frame::FrameError;
pub use link::TcpLink;
pub use server::{BindError, ServeCounters, TcpLimits, TcpServer};
pub use transport::{TcpConfig, TcpTransport};
