//! The whole of kvferry under one seed: the real directory, sessions, stores and pull engines, in
//! virtual time, between them a network that does what networks do.
//!
//! Everything derives from the seed, and one thread does everything, so a run repeats itself to the
//! last event (its digest shows it). The pure machines are the real ones; what stands between them in
//! the daemons (tasks, sockets, clocks) is replaced by the shells in [`world`](World), which pass
//! messages through the real protobuf types and the coordinator's own parser.
//!
//! | room | what |
//! | --- | --- |
//! | `queue`, `random` | virtual time, and chance from a seed |
//! | `conditions`, `faults` | what a seed decides before anything runs |
//! | `names` | namespaces, and what blocks are called in them |
//! | `wishes` | what its operators, engines and routers want |
//! | `world/` | processes, coordinators, streams, calls, torn reads; routers, storage, copies, claims, tensors |
//! | `history` | the oracle: who published which bytes under which hash |
//! | `invariants/` | one file per promise |
//! | `sabotage` | known bugs, put back to see that they are caught |
//! | `shrink` | a failing schedule, cut down to what it needs |
//!
//! It is a crate of its own, and not a test target of the root package, because it is also a program
//! (`kvferry-simulate`) and because its feature `sabotage` must never reach the crates that are shipped:
//! it is passed on only when this package is asked for it.

mod conditions;
mod faults;
mod history;
mod invariants;
mod names;
mod promise;
mod queue;
mod random;
mod report;
pub mod sabotage;
mod shrink;
mod wishes;
mod world;

use std::collections::BTreeSet;

pub use faults::{Fault, Kind};
pub use promise::{Promise, Violation};
pub use report::{Report, Stats};
pub use shrink::shrink;
pub use world::World;

/// Which run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Everything derives from it.
    pub seed: u64,
    /// Nodes; at least 2.
    pub nodes: usize,
    /// Virtual seconds with faults. After them come 40 without.
    pub seconds: u64,
    /// Only these faults of the schedule; None: all.
    pub keep: Option<BTreeSet<usize>>,
    /// A known bug, put back.
    pub sabotage: Option<sabotage::Sabotage>,
}

impl Options {
    /// A small world for a minute: from 2 to 8 nodes, as the seed says.
    #[must_use]
    pub fn small(seed: u64) -> Self {
        Self {
            seed,
            nodes: 2 + (random::mix(seed ^ 77) % 7) as usize,
            seconds: 30,
            keep: None,
            sabotage: None,
        }
    }
}

/// Runs it.
#[must_use]
pub fn run(options: &Options) -> Report {
    World::new(options).run()
}
