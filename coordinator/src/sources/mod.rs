//! Sources: named sets of tensors, the workers that have them, and whether they still do. A pure
//! machine: what happened and the time go in, answers and changes of state come out. No IO, no clock.
//!
//! It holds descriptors, never bytes: chunks of tensors are blocks, and the
//! [directory](crate::directory) knows who owns them. So nothing here is needed to read what was
//! published, and nothing here is trusted by a reader.
//!
//! ```text
//!                  publish            said ready
//!        (nothing) -------> Initialising -------> Ready <----------------+
//!                                |                  |  session silent,   | session back,
//!                                |                  v  readers, rewritten| reports old, sealed
//!                                +--------------> Stale -----------------+
//!          goodbye, purge, fenced, withdrawn, removed: any -> Gone, forgotten after a minute
//! ```
//!
//! | file | what |
//! | --- | --- |
//! | `worker` | one worker's facts, and the state they add up to |
//! | `announce` | what agents say: announcements, publications, presence |
//! | `answer` | list, get, status |
//! | `bounds` | how much is taken in |

mod announce;
mod answer;
mod bounds;
#[cfg(any(test, feature = "fuzzing"))]
// In a test, or in a fuzzer that is one.
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::wildcard_imports
)]
#[cfg_attr(not(test), allow(dead_code, unused_imports))]
mod tests;
mod worker;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use kvferry_proto::{Incarnation, NodeId, SourceId, SourceIdentity, TableDigest, TensorTable};

pub use announce::{AnnounceError, Announced, Announcement, Announcer, PublishError, Published};
pub use answer::{Filter, GetError, Got, Page, SourceState, SourceUnknown, Summary, WorkerInfo};
pub use bounds::{
    BoundReached, Bounds, DEFAULT_PAGE, GONE_KEPT, MAX_PAGE, MAX_REPORTS, REPORT_KEPT,
    REPORT_QUORUM,
};
#[cfg(feature = "fuzzing")]
pub(crate) use tests::model::fuzz;
pub use worker::{GoneCause, ReportKind, Said, StaleCause, WorkerState};

use crate::directory::Presence;
use worker::Worker;

/// A worker's state became another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Whose.
    pub source: SourceId,
    /// Which rank's.
    pub rank: u32,
    /// On which node.
    pub node: NodeId,
    /// What it is now.
    pub state: WorkerState,
}

/// What there is in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sums {
    /// Sources, those whose workers are all gone included.
    pub sources: usize,
    /// Workers on their way.
    pub initialising: u64,
    /// Workers to pull from.
    pub ready: u64,
    /// Workers that may not be there.
    pub stale: u64,
    /// Workers that ended, and are remembered for a while.
    pub gone: u64,
    /// Bytes of tensor descriptors.
    pub table_bytes: usize,
}

impl Sums {
    fn of(&mut self, state: WorkerState) -> &mut u64 {
        match state {
            WorkerState::Initialising => &mut self.initialising,
            WorkerState::Ready => &mut self.ready,
            WorkerState::Stale(_) => &mut self.stale,
            WorkerState::Gone(_) => &mut self.gone,
        }
    }
}

/// One reader's word on one worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The source.
    pub source: SourceId,
    /// The worker's rank.
    pub rank: u32,
    /// Its node.
    pub node: NodeId,
    /// The lifetime of it that was read from.
    pub incarnation: Incarnation,
    /// What went wrong. Both kinds count alike: either way a reader gets nothing.
    pub kind: ReportKind,
}

/// A worker of a source: one per rank and node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    rank: u32,
    node: NodeId,
}

#[derive(Debug)]
struct Source {
    identity: Arc<SourceIdentity>,
    workers: BTreeMap<Key, Worker>,
    /// By rank and digest; each has a worker that is not gone.
    tables: BTreeMap<(u32, TableDigest), Arc<TensorTable>>,
}

/// What a node that publishes has said.
#[derive(Debug)]
struct Speaker {
    incarnation: Incarnation,
    /// Of its last announcement or publication.
    number: u64,
    /// Its workers, gone ones included.
    workers: BTreeSet<(SourceId, u32)>,
    /// As its workers know it.
    presence: Option<Presence>,
}

/// Named sets of tensors and who has them.
///
/// The shell calls [`observe`](Self::observe) for every node of [`speakers`](Self::speakers) and then
/// [`tick`](Self::tick), several times a second and before it answers; `now` is the time since any
/// fixed start and never goes back. Changes of state wait in [`take_changes`](Self::take_changes).
#[derive(Debug)]
pub struct Sources {
    bounds: Bounds,
    sources: BTreeMap<SourceId, Source>,
    speakers: BTreeMap<NodeId, Speaker>,
    table_bytes: usize,
    /// When some worker may be forgotten.
    forget_at: Option<Duration>,
    changes: Vec<Change>,
    /// Workers by state, kept as they change.
    workers: Sums,
}

impl Sources {
    /// None yet.
    #[must_use]
    pub fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            sources: BTreeMap::new(),
            speakers: BTreeMap::new(),
            table_bytes: 0,
            forget_at: None,
            changes: Vec::new(),
            workers: Sums::default(),
        }
    }

    /// Nodes that have said something of sources: whose presence matters.
    pub fn speakers(&self) -> impl Iterator<Item = &NodeId> {
        self.speakers.keys()
    }

    /// What became of workers since the last call.
    pub fn take_changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }

    /// What there is in all.
    #[must_use]
    pub fn sums(&self) -> Sums {
        Sums {
            sources: self.sources.len(),
            table_bytes: self.table_bytes,
            ..self.workers
        }
    }

    /// Time passed: old reports count no more, and what is gone long enough is forgotten.
    pub fn tick(&mut self, now: Duration) {
        let reported: Vec<_> = self.keys(Worker::was_reported).collect();
        for (source, key) in reported {
            self.settle(now, source, &key);
        }
        if self.forget_at.is_some_and(|at| at <= now) {
            self.forget(|worker| now.saturating_sub(worker.since) >= GONE_KEPT);
            let workers = self.sources.values().flat_map(|s| s.workers.values());
            // One that is kept though it is old waits for its node to speak no more.
            self.forget_at = workers
                .filter(|worker| worker.is_gone())
                .map(|worker| worker.since + GONE_KEPT)
                .filter(|at| *at > now)
                .min();
        }
    }

    /// A reader reports workers it could not read from. Says how many of those there are: a worker
    /// that is gone, another lifetime of it, and the reader itself are passed over.
    pub fn report(&mut self, now: Duration, reader: &NodeId, reports: &[Report]) -> u32 {
        let mut counted = 0;
        for report in reports {
            let key = Key {
                rank: report.rank,
                node: report.node.clone(),
            };
            let worker = self.worker_mut(report.source, &key).filter(|worker| {
                worker.incarnation == report.incarnation
                    && !worker.is_gone()
                    && report.node != *reader
            });
            let Some(worker) = worker else {
                continue;
            };
            worker.report(now, reader);
            counted += 1;
            self.settle(now, report.source, &key);
        }
        counted
    }

    /// Ends a source's workers, or those of one node; says how many. Their agents are told when they
    /// announce them again.
    ///
    /// # Errors
    /// [`SourceUnknown`].
    pub fn remove(
        &mut self,
        now: Duration,
        source: SourceId,
        node: Option<&NodeId>,
    ) -> Result<u32, SourceUnknown> {
        let there = self.sources.get(&source).ok_or(SourceUnknown { source })?;
        let wanted = |key: &&Key| node.is_none_or(|node| key.node == *node);
        let keys: Vec<_> = there
            .workers
            .iter()
            .filter(|(_, worker)| !worker.is_gone())
            .map(|(key, _)| key)
            .filter(wanted)
            .cloned()
            .collect();
        for key in &keys {
            self.end(now, source, key, GoneCause::Removed);
        }
        Ok(keys.len() as u32) // bounded per source
    }

    fn worker_mut(&mut self, source: SourceId, key: &Key) -> Option<&mut Worker> {
        self.sources.get_mut(&source)?.workers.get_mut(key)
    }

    fn keys(&self, wanted: impl Fn(&Worker) -> bool) -> impl Iterator<Item = (SourceId, Key)> {
        self.sources.iter().flat_map(move |(id, source)| {
            let workers = source.workers.iter();
            workers
                .filter(|(_, worker)| wanted(worker))
                .map(|(key, _)| (*id, key.clone()))
                .collect::<Vec<_>>()
        })
    }

    /// Notes what a worker's facts add up to.
    fn settle(&mut self, now: Duration, source: SourceId, key: &Key) {
        let worker = self.worker_mut(source, key);
        if let Some((before, worker)) = worker.map(|worker| (worker.state, worker))
            && worker.settle(now)
        {
            let state = worker.state;
            *self.workers.of(before) -= 1;
            *self.workers.of(state) += 1;
            self.changes.push(Change {
                source,
                rank: key.rank,
                node: key.node.clone(),
                state,
            });
        }
    }

    fn end(&mut self, now: Duration, source: SourceId, key: &Key, cause: GoneCause) {
        if let Some(worker) = self.worker_mut(source, key) {
            let digest = worker.digest;
            worker.end(cause);
            self.settle(now, source, key);
            self.drop_unused(source, key.rank, digest);
            self.forget_by(now + GONE_KEPT);
        }
    }

    fn forget_by(&mut self, at: Duration) {
        self.forget_at = Some(self.forget_at.map_or(at, |known| known.min(at)));
    }

    /// Drops a set of tensors that no worker has any more.
    fn drop_unused(&mut self, source: SourceId, rank: u32, digest: TableDigest) {
        let Some(entry) = self.sources.get_mut(&source) else {
            return;
        };
        let used = entry
            .workers
            .iter()
            .any(|(key, worker)| key.rank == rank && worker.digest == digest && !worker.is_gone());
        if !used && let Some(table) = entry.tables.remove(&(rank, digest)) {
            self.table_bytes -= table.encoded_bytes();
        }
    }

    /// Forgets gone workers, and what is left empty by that. A worker an operator removed is
    /// remembered as long as its node speaks: else it would come back with the next announcement.
    fn forget(&mut self, old: impl Fn(&Worker) -> bool) {
        let (speakers, workers) = (&mut self.speakers, &mut self.workers);
        self.sources.retain(|id, source| {
            source.workers.retain(|key, worker| {
                let speaks = speakers
                    .get(&key.node)
                    .is_some_and(|speaker| speaker.incarnation == worker.incarnation);
                let keep = !worker.is_gone() || !old(worker) || (worker.was_removed() && speaks);
                if !keep {
                    *workers.of(worker.state) -= 1;
                    if let Some(speaker) = speakers.get_mut(&key.node) {
                        speaker.workers.remove(&(*id, key.rank));
                    }
                }
                keep
            });
            !source.workers.is_empty()
        });
    }
}
