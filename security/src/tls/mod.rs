//! TLS for every gRPC port: one way to listen, one way to dial. TLS 1.3 only, by rustls and ring. With the same files, a
//! session for what is no gRPC (`data.rs`): the agents' data port.

mod client;
mod configs;
mod data;
mod files;
mod listener;
mod places;
mod plaintext;
mod refusal;
mod server;
mod stream;

pub use client::{DialRefusal, Dialer, DialerError, Line, Secured};
pub use data::{DataRefusal, DataSession};
pub use files::{TlsFileError, TlsFiles};
pub use listener::{DoorCounts, HANDSHAKE_WITHIN, Handshake, Incoming, Listener};
pub use plaintext::go_away;
pub use refusal::TlsRefusal;
pub use server::ServerTls;
pub use stream::Accepted;
