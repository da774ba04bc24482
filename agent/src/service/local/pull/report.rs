//! What an engine hears of its pull.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use kvferry_proto::{
    NodeId,
    pb::{self, OutcomeKind},
};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::stages::StageBook;
use crate::{
    metrics::PullMetrics,
    region::{Held, PinId},
    transfer::{self, PullSummary},
    transport::TransportKind,
};

/// The stream of a pull's events: one outcome per block, and the summary last.
pub(super) struct Report {
    events: mpsc::Sender<pb::PullEvent>,
    given: Mutex<Given>,
    metrics: Arc<PullMetrics>,
    block_bytes: u64,
    /// Pulled blocks are told in columns.
    columns: bool,
    /// The deadline came before some block.
    timed_out: AtomicBool,
}

/// What has been told, or is about to be.
struct Given {
    /// Blocks that have their outcome.
    outcomes: Vec<bool>,
    stages: Option<StageBook>,
    /// Stages that were told to have landed.
    stages_told: u32,
}

impl Report {
    /// What becomes of the blocks, of `block_bytes` each, is counted in `metrics`. None for `stages`: nobody asked for any.
    pub(super) fn new(
        events: mpsc::Sender<pb::PullEvent>,
        blocks: usize,
        metrics: Arc<PullMetrics>,
        block_bytes: u64,
        columns: bool,
        stages: Option<usize>,
    ) -> Self {
        Self {
            events,
            given: Mutex::new(Given {
                outcomes: vec![false; blocks],
                stages: stages.map(|stages| StageBook::new(stages, blocks)),
                stages_told: 0,
            }),
            metrics,
            block_bytes,
            columns,
            timed_out: AtomicBool::new(false),
        }
    }

    /// Did the deadline come before some block?
    pub(super) fn timed_out(&self) -> bool {
        self.timed_out.load(Ordering::Relaxed)
    }

    /// These blocks have their outcome, or get it with the summary. Said once of each.
    pub(super) fn note(&self, told: &Told) {
        self.metrics.count(&told.others);
        for way in &told.pulled {
            let blocks = way.columns.indices.len() as u64;
            self.metrics.pulled_by(way.kind, blocks, self.block_bytes);
        }
        let late = |outcome: &pb::BlockOutcome| outcome.kind() == OutcomeKind::TimedOut;
        if told.others.iter().any(late) {
            self.timed_out.store(true, Ordering::Relaxed);
        }
        let mut all = self.given.lock();
        let pulled = told.pulled.iter().flat_map(|way| &way.columns.indices);
        let others = told.others.iter().map(|outcome| outcome.index);
        for index in pulled.copied().chain(others) {
            if let Some(given) = all.outcomes.get_mut(index as usize) {
                *given = true;
            }
            if let Some(stages) = &mut all.stages {
                stages.end(index as usize);
            }
        }
    }

    /// A stage of a block has landed.
    pub(super) fn landed(&self, index: usize, stage: usize) {
        if let Some(stages) = &mut self.given.lock().stages {
            stages.land(index, stage);
        }
    }

    /// Has a stage landed of which nothing was told?
    fn has_landed(&self) -> bool {
        let given = self.given.lock();
        let landed = given.stages.as_ref().map_or(0, StageBook::told);
        landed > given.stages_told
    }

    /// The next event; its outcomes were noted. Events are sent in the order in which they are made.
    fn event(&self, told: Told, summary: Option<pb::PullSummary>) -> pb::PullEvent {
        let stages_landed = {
            let mut given = self.given.lock();
            given.stages_told = given.stages.as_ref().map_or(0, StageBook::told);
            given.stages_told
        };
        let Told { others, pulled } = told;
        let columns = pulled.into_iter().map(|way| way.columns);
        match self.columns {
            true => pb::PullEvent {
                outcomes: others,
                summary,
                pulled: columns.collect(),
                stages_landed,
            },
            false => pb::PullEvent {
                outcomes: columns.flat_map(rows).chain(others).collect(),
                summary,
                pulled: Vec::new(),
                stages_landed,
            },
        }
    }

    /// Outcomes, some at a time, and the stages that have landed. An engine that went away does not want to know.
    pub(super) async fn outcomes(&self, told: Told) {
        self.note(&told);
        if !told.is_empty() || self.has_landed() {
            let _ = self.events.send(self.event(told, None)).await;
        }
    }

    /// An event without outcomes: the engine's call was begun, whatever its blocks wait for.
    pub(super) async fn under_way(&self) {
        let _ = self.events.send(self.event(Told::default(), None)).await;
    }

    /// Outcomes for the blocks that have none: the pull ended before its time.
    pub(super) async fn give_up_the_rest(&self) {
        let rest = self.given.lock().outcomes.clone();
        let outcomes = rest
            .iter()
            .enumerate()
            .filter(|(_, given)| !**given)
            .map(|(index, _)| given_up(index))
            .collect();
        self.outcomes(Told::of(outcomes)).await;
    }

    /// The last event, with the last outcomes.
    pub(super) async fn summary(&self, told: Told, summary: &PullSummary, pin: Option<PinId>) {
        let us = |time: std::time::Duration| time.as_micros() as u64;
        let summary = pb::PullSummary {
            pulled: summary.pulled,
            bytes: summary.bytes,
            locate_us: us(summary.locate),
            connect_us: us(summary.connect),
            wire_us: us(summary.wire),
            total_us: us(summary.total),
            pin: pin.map_or(0, |pin| pin.0),
        };
        let _ = self.events.send(self.event(told, Some(summary))).await;
    }

    /// Completes when nobody listens any more.
    pub(super) async fn closed(&self) {
        self.events.closed().await;
    }
}

/// Outcomes on their way to the engine.
#[derive(Default)]
pub(super) struct Told {
    others: Vec<pb::BlockOutcome>,
    /// Pulled blocks, by how they came: mostly all the same way.
    pulled: Vec<Way>,
}

/// Blocks that came the same way.
struct Way {
    node: Option<NodeId>,
    kind: Option<TransportKind>,
    columns: pb::PulledBlocks,
}

impl Told {
    /// Of blocks that were not pulled.
    pub(super) fn of(others: Vec<pb::BlockOutcome>) -> Self {
        Self {
            others,
            pulled: Vec::new(),
        }
    }

    fn is_empty(&self) -> bool {
        self.others.is_empty() && self.pulled.is_empty()
    }

    /// What the pull engine found out about a block.
    pub(super) fn add(&mut self, index: usize, outcome: transfer::BlockOutcome<Held>) {
        let (transfer::Outcome::Pulled, Some(held)) = (outcome.outcome, outcome.landed) else {
            return self.others.push(self::outcome(index, outcome));
        };
        let columns = &mut self.way(outcome.node, outcome.transport, held).columns;
        columns.indices.push(index as u32); // hashes of one request are few
        columns.slots.push(held.slot.0);
        columns.generations.push(held.generation.0);
    }

    fn way(&mut self, node: Option<NodeId>, kind: Option<TransportKind>, held: Held) -> &mut Way {
        let same =
            |way: &Way| (way.kind, way.columns.region) == (kind, held.region.0) && way.node == node;
        let at = match self.pulled.iter().rposition(same) {
            Some(at) => at,
            None => {
                let name = node.as_ref().map(NodeId::to_string);
                self.pulled.push(Way {
                    columns: pb::PulledBlocks {
                        region: held.region.0,
                        source_node: name.unwrap_or_default(),
                        transport: kind.map_or_else(String::new, |kind| kind.as_str().to_owned()),
                        ..pb::PulledBlocks::default()
                    },
                    node,
                    kind,
                });
                self.pulled.len() - 1
            }
        };
        &mut self.pulled[at]
    }
}

/// The same, block by block.
fn rows(columns: pb::PulledBlocks) -> impl Iterator<Item = pb::BlockOutcome> {
    let places = columns.slots.into_iter().zip(columns.generations);
    let blocks = columns.indices.into_iter().zip(places);
    let (region, node, transport) = (columns.region, columns.source_node, columns.transport);
    blocks.map(move |(index, (slot, generation))| pb::BlockOutcome {
        index,
        kind: OutcomeKind::Pulled.into(),
        region,
        slot,
        generation,
        source_node: node.clone(),
        transport: transport.clone(),
        detail: String::new(),
        settled: true,
    })
}

/// A block that was not pulled.
fn outcome(index: usize, outcome: transfer::BlockOutcome<Held>) -> pb::BlockOutcome {
    pb::BlockOutcome {
        index: index as u32, // hashes of one request are few
        kind: outcome.outcome.kind().into(),
        source_node: outcome
            .node
            .map(|node| node.to_string())
            .unwrap_or_default(),
        detail: outcome.detail,
        settled: outcome.outcome.is_settled(),
        ..pb::BlockOutcome::default()
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
