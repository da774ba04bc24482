//! The whole of it: real processes on loopback, spoken to as users and engines speak to them.
//!
//! One file per promise. Every process is ended with the test that started it.

// Helpers say what they expect in the shortest way, as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bad_input;
mod bench;
mod chaos;
mod cluster;
mod coordinator_restart;
mod engine;
mod engine_death;
mod faults;
mod publish_and_pull;
mod shell;
mod two_hosts;
