//! A network in memory, for tests that repeat themselves: real catalogues, real memory, torn reads,
//! and faults drawn from a seed. Delays follow tokio's clock, which a test may pause.

mod link;
mod network;

pub use link::{SimLink, SimTransport};
pub use network::{ChunkHook, SimChunk, SimFaults, SimNetwork};
