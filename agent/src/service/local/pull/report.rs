//! What an engine hears of its pull.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use kvferry_proto::pb::{self, OutcomeKind};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::{
    metrics::PullMetrics,
    region::{Held, PinId},
    transfer::{self, PullSummary},
};

/// The stream of a pull's events: one outcome per block, and the summary last.
pub(super) struct Report {
    events: mpsc::Sender<pb::PullEvent>,
    /// Blocks that have their outcome.
    given: Mutex<Vec<bool>>,
    metrics: Arc<PullMetrics>,
    block_bytes: u64,
    /// The deadline came before some block.
    timed_out: AtomicBool,
}

impl Report {
    /// What becomes of the blocks, of `block_bytes` each, is counted in `metrics`.
    pub(super) fn new(
        events: mpsc::Sender<pb::PullEvent>,
        blocks: usize,
        metrics: Arc<PullMetrics>,
        block_bytes: u64,
    ) -> Self {
        Self {
            events,
            given: Mutex::new(vec![false; blocks]),
            metrics,
            block_bytes,
            timed_out: AtomicBool::new(false),
        }
    }

    /// Did the deadline come before some block?
    pub(super) fn timed_out(&self) -> bool {
        self.timed_out.load(Ordering::Relaxed)
    }

    /// These blocks have their outcome, or get it with the summary. Said once of each.
    pub(super) fn note(&self, outcomes: &[pb::BlockOutcome]) {
        self.metrics.count(outcomes, self.block_bytes);
        let late = |outcome: &pb::BlockOutcome| outcome.kind() == OutcomeKind::TimedOut;
        if outcomes.iter().any(late) {
            self.timed_out.store(true, Ordering::Relaxed);
        }
        let mut all = self.given.lock();
        for outcome in outcomes {
            if let Some(given) = all.get_mut(outcome.index as usize) {
                *given = true;
            }
        }
    }

    /// Outcomes, some at a time. An engine that went away does not want to know.
    pub(super) async fn outcomes(&self, outcomes: Vec<pb::BlockOutcome>) {
        self.note(&outcomes);
        if !outcomes.is_empty() {
            let event = pb::PullEvent {
                outcomes,
                summary: None,
            };
            let _ = self.events.send(event).await;
        }
    }

    /// Outcomes for the blocks that have none: the pull ended before its time.
    pub(super) async fn give_up_the_rest(&self) {
        let rest = self.given.lock().clone();
        let outcomes = rest
            .iter()
            .enumerate()
            .filter(|(_, given)| !**given)
            .map(|(index, _)| given_up(index))
            .collect();
        self.outcomes(outcomes).await;
    }

    /// The last event, with the last outcomes.
    pub(super) async fn summary(
        &self,
        outcomes: Vec<pb::BlockOutcome>,
        summary: &PullSummary,
        pin: Option<PinId>,
    ) {
        let us = |time: std::time::Duration| time.as_micros() as u64;
        let event = pb::PullEvent {
            outcomes,
            summary: Some(pb::PullSummary {
                pulled: summary.pulled,
                bytes: summary.bytes,
                locate_us: us(summary.locate),
                connect_us: us(summary.connect),
                wire_us: us(summary.wire),
                total_us: us(summary.total),
                pin: pin.map_or(0, |pin| pin.0),
            }),
        };
        let _ = self.events.send(event).await;
    }

    /// Completes when nobody listens any more.
    pub(super) async fn closed(&self) {
        self.events.closed().await;
    }
}

/// What the pull engine found out about a block.
pub(super) fn outcome(index: usize, outcome: transfer::BlockOutcome<Held>) -> pb::BlockOutcome {
    let (region, slot, generation) = outcome.landed.map_or((0, 0, 0), |held| {
        (held.region.0, held.slot.0, held.generation.0)
    });
    let pulled = outcome.outcome == transfer::Outcome::Pulled;
    pb::BlockOutcome {
        index: index as u32, // hashes of one request are few
        kind: outcome.outcome.kind().into(),
        region,
        slot,
        generation,
        source_node: outcome
            .node
            .map(|node| node.to_string())
            .unwrap_or_default(),
        transport: outcome
            .transport
            .filter(|_| pulled)
            .map(|kind| kind.as_str().to_owned())
            .unwrap_or_default(),
        detail: outcome.detail,
        settled: outcome.outcome.is_settled(),
    }
}

/// It was here.
pub(super) fn local(index: usize, held: &Held) -> pb::BlockOutcome {
    pb::BlockOutcome {
        region: held.region.0,
        slot: held.slot.0,
        generation: held.generation.0,
        ..settled(index, OutcomeKind::Local, "")
    }
}

/// It was here, and was overwritten before it could be used.
pub(super) fn overwritten(index: usize) -> pb::BlockOutcome {
    settled(
        index,
        OutcomeKind::Stale,
        "this node held it and overwrote it meanwhile: pull again",
    )
}

/// It was here, and the deadline came before its copy.
pub(super) fn timed_out(index: usize) -> pb::BlockOutcome {
    settled(index, OutcomeKind::TimedOut, "the deadline came first")
}

/// Nobody went on with it.
fn given_up(index: usize) -> pb::BlockOutcome {
    pb::BlockOutcome {
        settled: false,
        ..settled(
            index,
            OutcomeKind::Cancelled,
            "the pull was given up: its region was unregistered, or the agent stops",
        )
    }
}

/// It was here, and could not be given a place or a pin.
pub(super) fn no_space(index: usize, detail: &str) -> pb::BlockOutcome {
    settled(index, OutcomeKind::NoSpace, detail)
}

/// As [`no_space`], and its place may be written to for ever.
pub(super) fn not_settled(index: usize, detail: &str) -> pb::BlockOutcome {
    pb::BlockOutcome {
        settled: false,
        ..no_space(index, detail)
    }
}

fn settled(index: usize, kind: OutcomeKind, detail: &str) -> pb::BlockOutcome {
    pb::BlockOutcome {
        index: index as u32, // hashes of one request are few
        kind: kind.into(),
        detail: detail.to_owned(),
        settled: true,
        ..pb::BlockOutcome::default()
    }
}
