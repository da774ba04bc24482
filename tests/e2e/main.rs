//! The whole of it: real processes on loopback, spoken to as users and engines speak to them.
//!
//! One file per promise. Every process is ended with the test that started it.

// Helpers say what they expect in the shortest way, as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bad_input;
mod bench;
mod chaos;
mod claims;
mod cluster;
mod compression;
mod coordinator_restart;
mod copies;
mod engine;
mod engine_death;
mod faults;
mod gpu;
mod gpu_rdma;
mod hosts;
mod locations;
mod metrics;
mod publish_and_pull;
mod security;
mod shell;
mod sources;
mod sources_shell;
mod stages;
mod tickets;
#[cfg(feature = "otlp")]
mod traces;
mod two_hosts;
mod watch;
