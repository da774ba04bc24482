//! One request under way.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use kvferry_agent::{
    region::PinId,
    transfer::{BlockIndex, OpId, PullEngine, SlotRead, SourceKey},
};
use kvferry_proto::{BlockHash, Slot};

use crate::replay::ledger::{Found, Served};

/// A data read on its way.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) source: SourceKey,
    pub(super) bytes: u64,
    pub(super) began: Duration,
    pub(super) ends: Duration,
}

/// A pull under way: the real engine, and what its shell knows.
pub(super) struct Pull {
    pub(super) engine: PullEngine,
    /// Which of the prompt's blocks the engine calls 0, 1, ...
    pub(super) places: Vec<usize>,
    /// Nodes by source key.
    pub(super) sources: Vec<usize>,
    pub(super) slots: BTreeMap<BlockIndex, Slot>,
    pub(super) flights: HashMap<OpId, Flight>,
    pub(super) words: HashMap<OpId, (SourceKey, Vec<SlotRead>)>,
    /// Bytes of reads that have ended, by source.
    pub(super) received: HashMap<SourceKey, u64>,
    pub(super) timer_at: Option<Duration>,
}

impl Pull {
    /// What a source has sent so far: what has ended, and of what is under way as much as would be
    /// there if everything on a port went forward evenly.
    pub(super) fn received(&self, source: SourceKey, now: Duration) -> u64 {
        let ended = self.received.get(&source).copied().unwrap_or(0);
        let flights = self.flights.values().filter(|f| f.source == source);
        let part = |flight: &Flight| {
            let whole = (flight.ends - flight.began).as_secs_f64().max(1e-9);
            let so_far = now.saturating_sub(flight.began).as_secs_f64() / whole;
            (flight.bytes as f64 * so_far.min(1.0)) as u64
        };
        ended + flights.map(part).sum::<u64>()
    }
}

/// See the module's page.
pub(super) struct Job {
    /// Which of the trace's.
    pub(super) request: usize,
    pub(super) node: usize,
    pub(super) hashes: Vec<BlockHash>,
    /// What of the prompt was here when it came.
    pub(super) local: Vec<bool>,
    pub(super) arrived: Duration,
    pub(super) pull_began: Duration,
    pub(super) pin: Option<PinId>,
    pub(super) found: Vec<Option<Found>>,
    pub(super) pull: Option<Pull>,
    pub(super) served: Served,
}
