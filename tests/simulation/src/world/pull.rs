//! One pull under way, as its shell sees it.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ops::Range,
    sync::Arc,
    time::Duration,
};

use kvferry_agent::{
    coordinators::Located,
    region::{Held, Holder, PinId, Region},
    transfer::{
        BlockIndex, Destination, Event, OpId, Outcome, PullEngine, ReadFailure, SlotRead, SourceKey,
    },
    transport::{PeerTarget, ReadRequest},
};
use kvferry_memory::HostMemory;
use kvferry_proto::{Geometry, Incarnation, NodeId, Part, RegionId, RemoteSpan, Slot};

use super::Pid;
use crate::{queue::Micros, random::Random};

/// An open link.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Link {
    pub(crate) owner: Pid,
    /// The owner's processor takes no part, and neither does ours: bytes may arrive until it settles.
    pub(crate) one_sided: bool,
    pub(crate) received: u64,
    /// When bytes last came, on the process's own clock.
    pub(crate) progress_at: Duration,
}

/// One transport read: pieces fetched one after the other, each at its own moment.
#[derive(Debug)]
pub(crate) struct Read {
    pub(crate) memory: Arc<HostMemory>,
    pub(crate) pieces: VecDeque<(RemoteSpan, u64)>,
}

/// One of the engine's operations.
#[derive(Debug)]
pub(crate) struct Flight {
    pub(crate) source: SourceKey,
    pub(crate) slots: Vec<SlotRead>,
    pub(crate) reads: Vec<Read>,
    /// Reads that have not all their bytes.
    pub(crate) outstanding: usize,
    /// Of a generation read: where each word arrives.
    pub(crate) words: Option<(Arc<HostMemory>, Vec<u64>)>,
    pub(crate) bytes: u64,
    /// On the process's own clock.
    pub(crate) begun: Duration,
    /// It stands still until it is cancelled.
    pub(crate) hangs: bool,
    /// How it ends, when it settles.
    pub(crate) failure: Option<ReadFailure>,
}

/// Where blocks go.
#[derive(Debug)]
pub(crate) enum Target {
    Pool(Arc<Region>),
    Slots(Arc<Region>, Vec<Slot>),
}

/// See the module's page.
pub(crate) struct Pull {
    pub(crate) id: u64,
    /// All its blocks are of this one.
    pub(crate) namespace: usize,
    pub(crate) engine: PullEngine,
    pub(crate) holder: Holder,
    pub(crate) hashes: Vec<u64>,
    pub(crate) target: Target,
    pub(crate) pin: Option<PinId>,
    pub(crate) pinned: Vec<(u64, Held)>,
    pub(crate) peers: Vec<PeerTarget>,
    pub(crate) keys: BTreeMap<(NodeId, Incarnation), SourceKey>,
    pub(crate) geometries: BTreeMap<(SourceKey, RegionId), Geometry>,
    pub(crate) links: BTreeMap<SourceKey, Link>,
    pub(crate) destinations: BTreeMap<BlockIndex, (Slot, Destination)>,
    pub(crate) flights: BTreeMap<OpId, Flight>,
    pub(crate) outcomes: Vec<Option<Outcome>>,
    /// Connects under way; a late answer to an old one is told apart by its absence.
    pub(crate) connecting: BTreeSet<SourceKey>,
    /// On the process's own clock.
    pub(crate) deadline: Duration,
    pub(crate) progress_at: Duration,
    pub(crate) timer_at: Option<Micros>,
    pub(crate) reported: bool,
    given_up: bool,
    /// The order it copies for: into free slots only, and not for an engine.
    pub(crate) copies_for: Option<u64>,
    /// The pull of tensors it is a round of.
    pub(crate) tensors_for: Option<u64>,
    /// The first answer, where the coordinator gave it already.
    pub(crate) known: Option<Located>,
    /// Sources that were suspect when they were located.
    pub(crate) suspects: BTreeSet<SourceKey>,
    /// Some block is with suspects only.
    pub(crate) must_suspect: bool,
    /// Something failed, so that blocks went elsewhere.
    pub(crate) troubled: bool,
    pub(crate) locates: u32,
    pub(crate) read_once: BTreeSet<BlockIndex>,
    pub(crate) early: BTreeMap<(SourceKey, RegionId, Slot), u64>,
}

/// What a pull begins with.
pub(crate) struct Begin {
    pub(crate) id: u64,
    pub(crate) namespace: usize,
    pub(crate) engine: PullEngine,
    pub(crate) holder: Holder,
    pub(crate) hashes: Vec<u64>,
    pub(crate) target: Target,
    pub(crate) pin: Option<PinId>,
    pub(crate) deadline: Duration,
}

impl Pull {
    pub(crate) fn new(begin: Begin) -> Self {
        Self {
            id: begin.id,
            namespace: begin.namespace,
            engine: begin.engine,
            holder: begin.holder,
            outcomes: vec![None; begin.hashes.len()],
            hashes: begin.hashes,
            target: begin.target,
            pin: begin.pin,
            pinned: Vec::new(),
            peers: Vec::new(),
            keys: BTreeMap::new(),
            geometries: BTreeMap::new(),
            links: BTreeMap::new(),
            destinations: BTreeMap::new(),
            flights: BTreeMap::new(),
            connecting: BTreeSet::new(),
            deadline: begin.deadline,
            progress_at: Duration::ZERO,
            timer_at: None,
            reported: false,
            given_up: false,
            copies_for: None,
            tensors_for: None,
            known: None,
            suspects: BTreeSet::new(),
            must_suspect: false,
            troubled: false,
            locates: 0,
            read_once: BTreeSet::new(),
            early: BTreeMap::new(),
        }
    }

    pub(crate) fn region(&self) -> &Arc<Region> {
        match &self.target {
            Target::Pool(region) | Target::Slots(region, _) => region,
        }
    }

    /// The engine that asked is gone; its wish is passed on at the next step.
    pub(crate) fn give_up(&mut self, really: bool) {
        self.given_up |= really;
    }

    pub(crate) fn take_cancel(&mut self) -> Option<Event> {
        std::mem::take(&mut self.given_up).then_some(Event::Cancel)
    }
}

/// Cuts a request into pieces that are fetched at different moments; words are never torn.
pub(crate) fn cut(request: &ReadRequest, random: &mut Random, most: u64) -> Read {
    let mut pieces = VecDeque::new();
    let mut locals = request.local.ranges.iter().cloned();
    let mut local: Range<u64> = 0..0;
    for span in &request.remote {
        let mut span = *span;
        while span.len > 0 {
            if local.is_empty() {
                match locals.next() {
                    Some(next) => local = next,
                    None => break,
                }
                continue;
            }
            let chunk = match span.part {
                Part::Data => random.within(1, most),
                Part::Generations => 8 * random.within(1, 4),
            };
            let len = chunk.min(span.len).min(local.end - local.start);
            pieces.push_back((RemoteSpan { len, ..span }, local.start));
            span.offset += len;
            span.len -= len;
            local.start += len;
        }
    }
    Read {
        memory: Arc::clone(&request.local.memory),
        pieces,
    }
}
