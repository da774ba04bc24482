//! What the caller is told, and where the time went.

use std::fmt::Display;

use hashbrown::HashMap;
use kvferry_proto::NodeId;
use tokio::sync::mpsc;

use crate::transfer::{
    Time,
    command::{BlockIndex, SourceKey},
    driver::{BlockOutcome, LandError, LocateError, NoSpace, PullSummary},
    outcome::Outcome,
};

/// Outcomes to be sent, and what is needed to explain them.
pub(super) struct Report<L> {
    /// None when all are sent.
    outcomes: Option<mpsc::UnboundedSender<Vec<BlockOutcome<L>>>>,
    batch: Vec<BlockOutcome<L>>,
    summary: PullSummary,
    connect_from: Option<Time>,
    wire_from: Option<Time>,
    locate_error: Option<String>,
    /// The last one of each source.
    errors: HashMap<SourceKey, String>,
    not_landed: HashMap<BlockIndex, LandError>,
    /// The last one of this agent's own memory.
    own_error: Option<String>,
}

impl<L> Report<L> {
    pub(super) fn new(outcomes: mpsc::UnboundedSender<Vec<BlockOutcome<L>>>) -> Self {
        Self {
            outcomes: Some(outcomes),
            batch: Vec::new(),
            summary: PullSummary::default(),
            connect_from: None,
            wire_from: None,
            locate_error: None,
            errors: HashMap::new(),
            not_landed: HashMap::new(),
            own_error: None,
        }
    }

    pub(super) fn outcomes(&self) -> Option<mpsc::UnboundedSender<Vec<BlockOutcome<L>>>> {
        self.outcomes.clone()
    }

    /// Sends what there is.
    pub(super) fn deliver(&mut self) {
        if let (false, Some(outcomes)) = (self.batch.is_empty(), &self.outcomes) {
            // Nobody listens: that cancels the pull, and is seen there.
            let _ = outcomes.send(std::mem::take(&mut self.batch));
        }
    }

    /// Lets the caller know that the pull goes on without outcomes for now.
    pub(super) fn under_way(&self) {
        if let Some(outcomes) = &self.outcomes {
            let _ = outcomes.send(Vec::new());
        }
    }

    /// No outcome follows.
    pub(super) fn close(&mut self, now: Time) -> PullSummary {
        self.outcomes = None;
        self.summary.total = now;
        self.summary
    }

    pub(super) fn add(&mut self, finished: BlockOutcome<L>) {
        self.batch.push(finished);
    }

    /// Counts it, or says in words what happened.
    pub(super) fn finish(
        &mut self,
        finished: &mut BlockOutcome<L>,
        source: Option<SourceKey>,
        block_bytes: u64,
    ) {
        let last = || source.and_then(|key| self.errors.get(&key)).cloned();
        let otherwise = |text: &str| last().unwrap_or_else(|| text.to_owned());
        finished.detail = match finished.outcome {
            Outcome::Pulled => {
                self.summary.pulled += 1;
                self.summary.bytes += block_bytes;
                String::new()
            }
            Outcome::Missing => "no node holds it".to_owned(),
            Outcome::Stale => otherwise("every owner had overwritten it"),
            Outcome::Corrupt => {
                "its bytes do not have the checksum they were sealed with; check the owner's memory"
                    .to_owned()
            }
            Outcome::Unreachable => otherwise("no owner could be reached"),
            Outcome::Denied => otherwise("no owner lets this agent read it"),
            Outcome::TimedOut { .. } => otherwise("the deadline came first"),
            Outcome::LocateFailed => self
                .locate_error
                .clone()
                .unwrap_or_else(|| "the coordinator's answer was short".to_owned()),
            Outcome::NoSpace => NoSpace.to_string(),
            Outcome::DestinationFailed => match self.not_landed.get(&finished.block) {
                Some(error) => error.to_string(),
                None => self
                    .own_error
                    .clone()
                    .unwrap_or_else(|| otherwise("the destination's memory fails")),
            },
            Outcome::Cancelled { .. } => "the caller gave up".to_owned(),
        };
    }

    pub(super) fn failed(&mut self, source: SourceKey, error: &dyn Display) {
        self.errors.insert(source, error.to_string());
    }

    pub(super) fn failed_here(&mut self, error: &dyn Display) {
        self.own_error = Some(error.to_string());
    }

    pub(super) fn stood_still(&mut self, source: SourceKey, node: &NodeId) {
        self.errors
            .entry(source)
            .or_insert_with(|| format!("{node} does not answer"));
    }

    pub(super) fn not_landed(&mut self, block: BlockIndex, error: LandError) {
        self.not_landed.insert(block, error);
    }

    pub(super) fn located(&mut self, now: Time, error: Option<&LocateError>) {
        if self.summary.locate.is_zero() {
            self.summary.locate = now;
        }
        if let Some(error) = error {
            self.locate_error = Some(error.to_string());
        }
    }

    pub(super) fn connect_begins(&mut self, now: Time) {
        self.connect_from.get_or_insert(now);
    }

    pub(super) fn connected(&mut self, now: Time) {
        if let (true, Some(from)) = (self.summary.connect.is_zero(), self.connect_from) {
            self.summary.connect = now.saturating_sub(from);
        }
    }

    pub(super) fn wire_begins(&mut self, now: Time) {
        self.wire_from.get_or_insert(now);
    }

    pub(super) fn wire_ends(&mut self, now: Time) {
        if let Some(from) = self.wire_from {
            self.summary.wire = now.saturating_sub(from);
        }
    }
}
