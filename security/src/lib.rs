//! Who is at the door, and what they may do.
//!
//! Knows nothing of coordinators and agents: it turns files into rules, and callers into [`Access`].
//! One door for every gRPC port: a server listens by [`tls::Listener`] and asks a [`Gate`]; a client
//! dials by a [`tls::Dialer`].

pub mod access;
mod audit;
pub mod caller;
pub mod gate;
pub mod policy;
mod reread;
pub mod ticket;
pub mod tls;
pub mod token;

pub use access::{Access, Denied, Right};
pub use caller::Caller;
pub use gate::Gate;
pub use policy::{Policy, PolicyError};
pub use token::{TokenError, TokenFile, TokenHash};
