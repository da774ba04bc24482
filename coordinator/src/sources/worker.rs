//! One worker of a source, and the state its facts add up to.

use std::time::Duration;

use kvferry_proto::{ChunkRuns, Incarnation, NodeId, TableDigest};

use super::bounds::{MAX_REPORTERS, REPORT_KEPT, REPORT_QUORUM};

/// What a worker says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Said {
    /// Not complete yet.
    Initialising,
    /// Can be pulled.
    Ready,
    /// Its memory is written to.
    Rewritten,
}

/// How a worker stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkerState {
    /// Announced, not complete yet.
    Initialising,
    /// Can be pulled.
    Ready,
    /// May not be there.
    Stale(StaleCause),
    /// Ended.
    Gone(GoneCause),
}

/// Why a worker is stale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StaleCause {
    /// Its node is silent, or between sessions.
    Session,
    /// Several readers could not read from it lately.
    Readers,
    /// It said so.
    Rewritten,
}

/// Why a worker is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GoneCause {
    /// Its node said goodbye or was purged.
    Node,
    /// A later incarnation of its node came.
    Fenced,
    /// Its publisher withdrew it.
    Withdrawn,
    /// An operator removed it.
    Removed,
}

/// Why a reader could not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReportKind {
    /// It could not be reached.
    Unreachable,
    /// Its chunks were not what it had published.
    Stale,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Report {
    reader: NodeId,
    at: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    Attached,
    Detached,
    Gone(GoneCause),
}

#[derive(Debug)]
pub(super) struct Worker {
    pub(super) incarnation: Incarnation,
    pub(super) publication: u64,
    pub(super) digest: TableDigest,
    pub(super) runs: ChunkRuns,
    said: Said,
    life: Life,
    reports: Vec<Report>,
    /// The state others were told, and since when.
    pub(super) state: WorkerState,
    pub(super) since: Duration,
}

impl Worker {
    pub(super) fn new(
        now: Duration,
        incarnation: Incarnation,
        publication: u64,
        digest: TableDigest,
        runs: ChunkRuns,
    ) -> Self {
        Self {
            incarnation,
            publication,
            digest,
            runs,
            said: Said::Initialising,
            life: Life::Attached,
            reports: Vec::new(),
            state: WorkerState::Initialising,
            since: now,
        }
    }

    pub(super) fn is_gone(&self) -> bool {
        matches!(self.life, Life::Gone(_))
    }

    pub(super) fn was_removed(&self) -> bool {
        self.life == Life::Gone(GoneCause::Removed)
    }

    /// Has it reports, old ones included?
    pub(super) fn was_reported(&self) -> bool {
        !self.reports.is_empty()
    }

    pub(super) fn say(&mut self, said: Said, runs: ChunkRuns) {
        if said == Said::Ready && self.said != Said::Ready {
            // What readers saw was something else.
            self.reports.clear();
        }
        self.said = said;
        self.runs = runs;
    }

    pub(super) fn attach(&mut self, attached: bool) {
        if !self.is_gone() {
            self.life = match attached {
                true => Life::Attached,
                false => Life::Detached,
            };
        }
    }

    pub(super) fn end(&mut self, cause: GoneCause) {
        if !self.is_gone() {
            self.life = Life::Gone(cause);
            self.reports = Vec::new();
        }
    }

    /// A reader's word counts once, from its last report on.
    pub(super) fn report(&mut self, now: Duration, reader: &NodeId) {
        self.reports.retain(|report| report.reader != *reader);
        if self.reports.len() == MAX_REPORTERS {
            // In order of time: the first is the oldest.
            self.reports.remove(0);
        }
        self.reports.push(Report {
            reader: reader.clone(),
            at: now,
        });
    }

    /// Readers whose reports still count.
    pub(super) fn reporters(&self, now: Duration) -> usize {
        let counts = |report: &&Report| now.saturating_sub(report.at) < REPORT_KEPT;
        self.reports.iter().filter(counts).count()
    }

    /// What the facts add up to now; true where that is new.
    pub(super) fn settle(&mut self, now: Duration) -> bool {
        self.reports
            .retain(|report| now.saturating_sub(report.at) < REPORT_KEPT);
        let state = match (self.life, self.said) {
            (Life::Gone(cause), _) => WorkerState::Gone(cause),
            (Life::Detached, _) => WorkerState::Stale(StaleCause::Session),
            (Life::Attached, Said::Rewritten) => WorkerState::Stale(StaleCause::Rewritten),
            (Life::Attached, Said::Initialising) => WorkerState::Initialising,
            (Life::Attached, Said::Ready) if self.reporters(now) >= REPORT_QUORUM => {
                WorkerState::Stale(StaleCause::Readers)
            }
            (Life::Attached, Said::Ready) => WorkerState::Ready,
        };
        let new = state != self.state;
        if new {
            (self.state, self.since) = (state, now);
        }
        new
    }
}
