//! Sockets: own framing on its own port, bytes straight between sockets and registered memory.
//!
//! In clear, or by TLS where an owner says so (`stream.rs`): frames are the same.
//!
//! An owner runs a [`TcpServer`]; a reader has a [`TcpTransport`], whose links hold several
//! connections to one owner, each with several reads in flight. Responses come in request order.

mod connection;
mod door;
mod frame;
#[cfg(feature = "fuzzing")]
pub mod fuzz;
mod gpu;
mod link;
mod payload;
mod reader;
mod response;
mod server;
mod session;
mod socket;
mod stream;
mod transport;

pub use frame::FrameError;
pub use link::TcpLink;
pub use payload::{PayloadRefusal, PayloadRefusals, PayloadTls};
pub use server::{BindError, ServeCounters, TcpLimits, TcpServer};
pub use transport::{TcpConfig, TcpTransport};
