//! Every decoder that reads what came from outside, and the pure machines, as functions of bytes that must never
//! panic and whose promises they check themselves.
//!
//! `cargo test` runs each over its seeds and its corpus (`tests/fuzz/corpus`), as the regression test of what was found;
//! `tests/fuzz/run` fuzzes with libFuzzer, on the stable toolchain. A target is one file of `src/targets/`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a promise that is broken ends the run

mod choices;
mod targets;
mod world;

pub use targets::TARGETS;

/// One thing that is fuzzed.
#[derive(Debug)]
pub struct Target {
    /// As in `tests/fuzz/run NAME`, and of its folder in the corpus.
    pub name: &'static str,
    /// Panics where a promise is broken.
    pub run: fn(&[u8]),
    /// Inputs to begin with: what is really sent.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

impl Target {
    /// The target of that name.
    #[must_use]
    pub fn find(name: &str) -> Option<&'static Self> {
        TARGETS.iter().find(|target| target.name == name)
    }
}
