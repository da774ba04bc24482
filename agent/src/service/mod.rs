//! The gRPC services of an agent: the local API for engines, and what peers may ask.

mod client;
pub(crate) mod local;
mod peer;

pub(crate) use client::Clients;
pub(crate) use local::{Defaults, LocalApi, Registry, Shared, TensorsApi, keep_announced};
pub use peer::PeerApi;
