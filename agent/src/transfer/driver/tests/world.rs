//! Owners whose memory is here, and a place for blocks.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use kvferry_memory::{GenerationTable, HostMemory, copy_ranges};
use kvferry_proto::{
    Generation, Geometry, Incarnation, NodeAddresses, Part, Plane, RegionId, Slot,
};
use kvferry_security::ticket::Refusal;
use parking_lot::Mutex;

use super::*;
use crate::coordinators::{LocatedCandidate, OwnerRegion};
use crate::transfer::TransferMetrics;
use crate::transport::{CancelRead, Capabilities, Completion, PendingRead, ReadError, ReadRequest};

/// Bytes of a block; at the owners in two planes, here in one.
pub(super) const BLOCK: u64 = 64;

/// What is written to a place that was given back.
const NEXT: [u8; BLOCK as usize] = [0xaa; BLOCK as usize];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Good,
    /// Reads settle when they are cancelled.
    Hang,
    /// Reads settle when they are released.
    Stuck,
    /// Reads fail.
    Lost,
    /// There is no link.
    Refuse,
    /// There is none for our tickets.
    Deny,
    /// Reads are refused for the ticket's sake.
    DenyReads,
    /// Reads need another link, and there is none for our tickets.
    DenyBehind,
}

pub(super) struct Owner {
    name: NodeId,
    pub(super) memory: HostMemory,
    pub(super) generations: GenerationTable,
    geometry: Geometry,
    mode: Mutex<Mode>,
    stuck: Mutex<Vec<Completion>>,
    received: AtomicU64,
    /// Data reads that go through at once; those after them are held up.
    passes: AtomicU32,
    held: Mutex<Vec<(Arc<Hung>, Vec<ReadRequest>)>>,
    /// Reads that are held up do not settle when they are cancelled.
    stubborn: AtomicBool,
    pub(super) bounds: Mutex<Capabilities>,
    /// Words come with the data.
    pub(super) in_order: AtomicBool,
    /// Reads of words alone.
    pub(super) word_reads: AtomicU32,
    suspect: AtomicBool,
}

#[derive(Default)]
struct Hung(Mutex<Option<Completion>>);

/// Cannot be cancelled.
struct Stubborn;

impl CancelRead for Stubborn {
    fn cancel(&self) {}
}

impl CancelRead for Hung {
    fn cancel(&self) {
        if let Some(completion) = self.0.lock().take() {
            completion.settle(Err(ReadError::Cancelled));
        }
    }
}

impl Owner {
    fn new(number: usize, blocks: u32) -> Self {
        let slots = u64::from(blocks);
        let plane = |base, len| Plane {
            base,
            stride: len,
            len,
        };
        let geometry = Geometry::new(blocks, vec![plane(0, 24), plane(slots * 24, 40)]).unwrap();
        let memory = HostMemory::anonymous(slots * BLOCK).unwrap();
        let generations = GenerationTable::new(blocks).unwrap();
        for slot in 0..blocks {
            generations.begin_write(slot);
            let mut bytes = contents(slot);
            for range in geometry.ranges(Slot(slot)) {
                let rest = bytes.split_off((range.end - range.start) as usize);
                memory.write_at(range.start, &bytes).unwrap();
                bytes = rest;
            }
            generations.seal(slot);
        }
        Self {
            name: NodeId::new(&format!("node-{number}")).unwrap(),
            memory,
            generations,
            geometry,
            mode: Mutex::new(Mode::Good),
            stuck: Mutex::default(),
            received: AtomicU64::new(0),
            passes: AtomicU32::new(u32::MAX),
            held: Mutex::default(),
            stubborn: AtomicBool::new(false),
            bounds: Mutex::new(Capabilities {
                max_spans: 64,
                max_bytes: 1 << 20,
                window_bytes: 1 << 20,
                distance: 1,
                needs_checksum: false,
                span_bytes: 0,
            }),
            in_order: AtomicBool::new(false),
            word_reads: AtomicU32::new(0),
            suspect: AtomicBool::new(false),
        }
    }

    pub(super) fn set(&self, mode: Mode) {
        *self.mode.lock() = mode;
    }

    /// Something else is written to a slot; it is not sealed again.
    pub(super) fn overwrite(&self, slot: u32) {
        if self.generations.load(slot) == Some(2) {
            self.generations.begin_write(slot);
        }
        for range in self.geometry.ranges(Slot(slot)) {
            let garbage = vec![0xee; (range.end - range.start) as usize];
            self.memory.write_at(range.start, &garbage).unwrap();
        }
    }

    /// So many data reads go through, the others are held up until `resume`, whether they are cancelled or not if
    /// `stubborn`.
    pub(super) fn hold_up_after(&self, passes: u32, stubborn: bool) {
        self.passes.store(passes, Ordering::Relaxed);
        self.stubborn.store(stubborn, Ordering::Relaxed);
    }

    /// How many are held up.
    pub(super) fn held_up(&self) -> usize {
        self.held.lock().len()
    }

    /// The first of them go on, and fetch what is there now.
    pub(super) fn resume(&self, reads: usize) {
        let reads = reads.min(self.held_up());
        let held: Vec<_> = self.held.lock().drain(..reads).collect();
        for (hung, requests) in held {
            if let Some(completion) = hung.0.lock().take() {
                completion.settle(requests.iter().try_for_each(|it| self.copy(it)));
            }
        }
    }

    /// Those that are held up, and all later ones, fail with their link.
    pub(super) fn cut(&self) {
        self.set(Mode::Lost);
        for (hung, _) in self.held.lock().drain(..) {
            if let Some(completion) = hung.0.lock().take() {
                completion.settle(Err(self.lost()));
            }
        }
    }

    fn denied(&self) -> ConnectError {
        ConnectError::TicketRefused {
            node: self.name.clone(),
            refusal: Refusal::UnknownKey,
        }
    }

    fn lost(&self) -> ReadError {
        ReadError::LinkLost {
            node: self.name.clone(),
            detail: "pulled the plug".into(),
        }
    }

    /// A data read, and that of its words where they come with it.
    fn begin(&self, requests: Vec<ReadRequest>) -> PendingRead {
        let pass = |left: u32| match left {
            0 => None,
            u32::MAX => Some(left),
            _ => Some(left - 1),
        };
        let order = Ordering::Relaxed;
        if self.passes.fetch_update(order, order, pass).is_ok() {
            return PendingRead::settled(requests.iter().try_for_each(|it| self.copy(it)));
        }
        let hung = Arc::new(Hung::default());
        let cancel: Arc<dyn CancelRead> = match self.stubborn.load(Ordering::Relaxed) {
            true => Arc::new(Stubborn),
            false => Arc::clone(&hung) as _,
        };
        let (pending, completion) = PendingRead::new(cancel);
        *hung.0.lock() = Some(completion);
        self.held.lock().push((hung, requests));
        pending
    }

    pub(super) fn release(&self) {
        for completion in self.stuck.lock().drain(..) {
            completion.settle(Err(ReadError::Cancelled));
        }
    }

    fn copy(&self, request: &ReadRequest) -> Result<(), ReadError> {
        let bytes = request.check(&self.bounds.lock())?;
        self.received.fetch_add(bytes, Ordering::Relaxed);
        let local = &request.local;
        if request.remote[0].part == Part::Data {
            let remote = request.remote.iter().map(|s| s.offset..s.offset + s.len);
            copy_ranges(&self.memory, remote, &local.memory, local.ranges.clone())?;
            if self.bounds.lock().needs_checksum {
                // Such a path brings wrong bytes here.
                local.memory.write_at(local.ranges[0].start, &[0xff; 4])?;
            }
            return Ok(());
        }
        let words = request
            .remote
            .iter()
            .flat_map(|span| (span.offset / 8)..(span.offset + span.len) / 8);
        let places = local.ranges.iter().cloned().flat_map(|r| r.step_by(8));
        for (word, place) in words.zip(places) {
            let word = self.generations.load(word as u32).unwrap();
            local.memory.write_at(place, &word.to_le_bytes())?;
        }
        Ok(())
    }
}

fn contents(block: u32) -> Vec<u8> {
    (0..BLOCK as u32).map(|n| (block * 7 + n) as u8).collect()
}

struct FakeLink(Arc<World>, usize);

impl Link for FakeLink {
    fn kind(&self) -> TransportKind {
        TransportKind::Sim
    }

    fn capabilities(&self) -> Capabilities {
        *self.0.owners[self.1].bounds.lock()
    }

    fn reads_in_order(&self) -> bool {
        self.0.owners[self.1].in_order.load(Ordering::Relaxed)
    }

    fn read_with_words(&self, data: ReadRequest, words: ReadRequest) -> PendingRead {
        let owner = &self.0.owners[self.1];
        match *owner.mode.lock() {
            Mode::Lost => PendingRead::settled(Err(owner.lost())),
            _ => owner.begin(vec![data, words]),
        }
    }

    fn read(&self, request: ReadRequest) -> PendingRead {
        let owner = &self.0.owners[self.1];
        if request.remote[0].part == Part::Generations {
            owner.word_reads.fetch_add(1, Ordering::Relaxed);
        }
        let mode = *owner.mode.lock();
        match mode {
            Mode::Good | Mode::Refuse | Mode::Deny if request.remote[0].part == Part::Data => {
                owner.begin(vec![request])
            }
            Mode::Good | Mode::Refuse | Mode::Deny => PendingRead::settled(owner.copy(&request)),
            Mode::Lost => PendingRead::settled(Err(owner.lost())),
            Mode::DenyReads => PendingRead::settled(Err(ReadError::TicketRefused {
                node: owner.name.clone(),
                refusal: Refusal::OtherNamespace,
            })),
            Mode::DenyBehind => PendingRead::settled(Err(ReadError::NoLink {
                why: "not over this one".to_owned(),
                error: owner.denied(),
            })),
            Mode::Hang => {
                let hung = Arc::new(Hung(Mutex::new(None)));
                let (pending, completion) = PendingRead::new(Arc::clone(&hung) as _);
                *hung.0.lock() = Some(completion);
                pending
            }
            Mode::Stuck => {
                let (pending, completion) = PendingRead::new(Arc::new(Hung(Mutex::new(None))));
                owner.stuck.lock().push(completion);
                pending
            }
        }
    }

    fn received_bytes(&self) -> u64 {
        self.0.owners[self.1].received.load(Ordering::Relaxed)
    }

    fn is_lost(&self) -> bool {
        false
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Free,
    Prepared,
    Landed,
}

pub(super) struct World {
    pub(super) owners: Vec<Owner>,
    checksums: bool,
    outage: AtomicBool,
    slot_shift: AtomicU32,
    /// A block that finds no room.
    pub(super) no_room: Mutex<Option<u32>>,
    /// A block that cannot be sealed.
    pub(super) no_seal: Mutex<Option<u32>>,
    memory: Arc<HostMemory>,
    states: Mutex<Vec<State>>,
    pub(super) metrics: Arc<TransferMetrics>,
    /// For links, which outlive the borrow.
    this: std::sync::Weak<World>,
}

impl World {
    pub(super) fn new(owners: usize, blocks: u32, checksums: bool) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            owners: (0..owners).map(|n| Owner::new(n, blocks)).collect(),
            checksums,
            outage: AtomicBool::new(false),
            slot_shift: AtomicU32::new(0),
            no_room: Mutex::default(),
            no_seal: Mutex::default(),
            memory: Arc::new(HostMemory::anonymous(u64::from(blocks) * BLOCK).unwrap()),
            states: Mutex::new(vec![State::Free; blocks as usize]),
            metrics: Arc::default(),
            this: this.clone(),
        })
    }

    pub(super) fn parts(self: &Arc<Self>) -> Parts<Self, Self, Self> {
        self.states.lock().fill(State::Free);
        Parts {
            locate: Arc::clone(self),
            connect: Arc::clone(self),
            landing: Arc::clone(self),
            metrics: Arc::clone(&self.metrics),
        }
    }

    pub(super) fn set_outage(&self, outage: bool) {
        self.outage.store(outage, Ordering::Relaxed);
    }

    pub(super) fn set_slot_shift(&self, shift: u32) {
        self.slot_shift.store(shift, Ordering::Relaxed);
    }

    pub(super) fn state(&self, block: u32) -> State {
        self.states.lock()[block as usize]
    }

    pub(super) fn assert_delivered(&self, block: u32) {
        assert_eq!(self.state(block), State::Landed);
        assert!(self.holds(block, 0..BLOCK));
    }

    /// Nothing was written to a place since it was given back, or ever.
    pub(super) fn is_untouched(&self, block: u32) -> bool {
        let mut bytes = [0; BLOCK as usize];
        let start = u64::from(block) * BLOCK;
        self.memory.read_at(start, &mut bytes).unwrap();
        bytes == NEXT || bytes == [0; BLOCK as usize]
    }

    /// Are these bytes of the block in its destination?
    pub(super) fn holds(&self, block: u32, range: Range<u64>) -> bool {
        let mut bytes = vec![0; (range.end - range.start) as usize];
        let start = u64::from(block) * BLOCK + range.start;
        self.memory.read_at(start, &mut bytes).unwrap();
        bytes == contents(block)[range.start as usize..range.end as usize]
    }

    fn owner(&self, peer: &PeerTarget) -> usize {
        self.owners
            .iter()
            .position(|owner| owner.name == peer.node)
            .unwrap()
    }

    fn turn(&self, block: u32, from: State, to: State) {
        let state = &mut self.states.lock()[block as usize];
        assert_eq!(*state, from, "block {block}");
        *state = to;
    }
}

impl Locate for World {
    fn locate<'a>(
        &'a self,
        blocks: &'a [BlockIndex],
    ) -> BoxFuture<'a, Result<Located, LocateError>> {
        Box::pin(async move {
            if self.outage.load(Ordering::Relaxed) {
                return Err(LocateError::Unavailable {
                    detail: "away".into(),
                });
            }
            let owners = self.owners.iter().map(|owner| OwnerRegion {
                peer: PeerTarget {
                    node: owner.name.clone(),
                    incarnation: Incarnation::new(1).unwrap(),
                    addresses: NodeAddresses::default(),
                },
                region: RegionId(1),
                geometry: owner.geometry.clone(),
            });
            let candidates = blocks.iter().map(|&block| {
                let places = 0..self.owners.len() + 1; // one owner too many
                let checksum = Checksum::of_bytes(&contents(block));
                let place = |owner| LocatedCandidate {
                    owner,
                    slot: Slot(block + self.slot_shift.load(Ordering::Relaxed)),
                    generation: Generation(2),
                    checksum: self.checksums.then_some(checksum),
                };
                places.map(place).collect()
            });
            let candidates: Vec<_> = candidates.collect();
            Ok(Located::new(owners.collect(), candidates))
        })
    }
}

impl Connect for World {
    fn link<'a>(
        &'a self,
        peer: &'a PeerTarget,
    ) -> BoxFuture<'a, Result<Arc<dyn Link>, ConnectError>> {
        Box::pin(async move {
            let owner = self.owner(peer);
            let mode = *self.owners[owner].mode.lock();
            if mode == Mode::Refuse {
                return Err(ConnectError::Refused {
                    node: peer.node.clone(),
                    detail: "too many".into(),
                });
            }
            if mode == Mode::Deny {
                return Err(self.owners[owner].denied());
            }
            let world = self.this.upgrade().unwrap();
            Ok(Arc::new(FakeLink(world, owner)) as Arc<dyn Link>)
        })
    }

    fn distrust(&self, peer: &PeerTarget, _: &Arc<dyn Link>) {
        let owner = &self.owners[self.owner(peer)];
        owner.bounds.lock().needs_checksum = false;
    }

    fn suspect(&self, peer: &PeerTarget) {
        let owner = &self.owners[self.owner(peer)];
        owner.suspect.store(true, Ordering::Relaxed);
    }

    fn is_suspect(&self, peer: &PeerTarget) -> bool {
        let owner = &self.owners[self.owner(peer)];
        owner.suspect.load(Ordering::Relaxed)
    }

    fn distance(&self, _: &PeerTarget) -> u8 {
        1
    }
}

impl Landing for World {
    type Landed = u32;

    fn prepare(&self, block: BlockIndex) -> Result<Destination, NoSpace> {
        if *self.no_room.lock() == Some(block) {
            return Err(NoSpace);
        }
        self.turn(block, State::Free, State::Prepared);
        let start = u64::from(block) * BLOCK;
        Ok(Destination {
            memory: Arc::clone(&self.memory).into(),
            ranges: std::iter::once(start..start + BLOCK).collect(),
        })
    }

    fn verify(&self, _: BlockIndex, destination: &Destination, checksum: Checksum) -> bool {
        let mut bytes = Vec::new();
        destination
            .memory
            .fold(destination.ranges.clone(), |piece| {
                bytes.extend_from_slice(piece);
            })
            .unwrap();
        Checksum::of_bytes(&bytes) == checksum
    }

    fn land(&self, block: BlockIndex, _: Option<Checksum>) -> Result<u32, LandError> {
        if *self.no_seal.lock() == Some(block) {
            return Err(LandError { detail: "no" });
        }
        self.turn(block, State::Prepared, State::Landed);
        Ok(block)
    }

    fn abandon(&self, block: BlockIndex) {
        self.turn(block, State::Prepared, State::Free);
        // Whoever has it next writes to it.
        let start = u64::from(block) * BLOCK;
        self.memory.write_at(start, &NEXT).unwrap();
    }
}
