//! What obeys pull engines; stands for the agent's pull service and its driver.

use std::collections::{BTreeMap, HashMap};

use kvferry_agent::{
    region::{Chain, Checksums, Holder, Seal},
    transfer::{
        BlockIndex, Command, Event as PullEvent, OpId, PullEngine, PullRequest, ReadFailure,
        SlotRead, SourceKey,
    },
    transport::Capabilities,
};

use super::{
    Event, ReplayError, World,
    job::{Flight, Job, Pull},
    node::CLIENT,
};
use crate::replay::{PIN_TTL, PULL_TIMEOUT, engine::outcome_name, ledger::Found};

/// As tcp's.
pub(super) const LINK: Capabilities = Capabilities {
    max_spans: 16_384,
    max_bytes: 256 << 20,
    window_bytes: 32 << 20,
    distance: 1,
    needs_checksum: false,
    span_bytes: 0,
};

impl World<'_> {
    /// Pins the prefix and brings what is not here. `prefix` blocks are somewhere.
    pub(super) fn begin_pull(
        &mut self,
        id: u64,
        mut job: Job,
        prefix: usize,
    ) -> Result<(), ReplayError> {
        job.found = vec![None; prefix];
        job.pull_began = self.now;
        let Some(node) = self.nodes.get(job.node) else {
            return Ok(());
        };
        let known = job.hashes.get(..prefix).unwrap_or(&[]);
        let held = node.store.find_many(&self.spec.name, known);
        let here: Vec<_> = held.iter().flatten().copied().collect();
        // A pin that is refused leaves blocks unpinned; then they may go, which is a miss later.
        let pinned = node
            .store
            .pin_held(self.now, CLIENT, None, &here, Some(PIN_TTL));
        job.pin = pinned.ok().map(|(pin, _)| pin);
        for (found, held) in job.found.iter_mut().zip(&held) {
            *found = held.map(|_| Found::Local);
        }
        let places: Vec<usize> = (0..prefix).filter(|i| held[*i].is_none()).collect();
        if places.is_empty() {
            return self.pulled(id, job);
        }
        let request = PullRequest {
            blocks: places.len() as u32,
            block_bytes: self.plan.block_bytes,
            timeout: PULL_TIMEOUT,
            must_verify: std::collections::BTreeSet::new(),
        };
        job.pull = Some(Pull {
            engine: PullEngine::new(self.transfer.clone(), request, self.now),
            places,
            sources: Vec::new(),
            slots: BTreeMap::new(),
            flights: HashMap::new(),
            words: HashMap::new(),
            received: HashMap::new(),
            timer_at: None,
        });
        self.jobs.insert(id, job);
        self.step(id, None)
    }

    /// Tells a pull's engine, lets time pass, and obeys.
    pub(super) fn step(&mut self, id: u64, event: Option<PullEvent>) -> Result<(), ReplayError> {
        let Some(mut job) = self.jobs.remove(&id) else {
            return Ok(());
        };
        let Some(mut pull) = job.pull.take() else {
            self.jobs.insert(id, job);
            return Ok(());
        };
        if let Some(event) = event {
            pull.engine.handle(self.now, event);
        }
        if pull
            .engine
            .poll_timeout()
            .is_some_and(|due| due <= self.now)
        {
            for source in (0..pull.sources.len() as u32).map(SourceKey) {
                let received_bytes = pull.received(source, self.now);
                let event = PullEvent::Progress {
                    source,
                    received_bytes,
                };
                pull.engine.handle(self.now, event);
            }
            pull.engine.handle_timeout(self.now);
        }
        while let Some(command) = pull.engine.poll_command() {
            self.obey(id, &mut job, &mut pull, command)?;
        }
        if pull.engine.is_drained() {
            return self.pulled(id, job);
        }
        if let Some(due) = pull.engine.poll_timeout()
            && pull.timer_at.is_none_or(|known| due < known)
        {
            pull.timer_at = Some(due);
            self.queue.at(due.max(self.now), Event::Timer(id));
        }
        job.pull = Some(pull);
        self.jobs.insert(id, job);
        Ok(())
    }

    fn obey(
        &mut self,
        id: u64,
        job: &mut Job,
        pull: &mut Pull,
        command: Command,
    ) -> Result<(), ReplayError> {
        let now = self.now;
        match command {
            Command::Locate { op, blocks } => {
                let places = blocks.iter().filter_map(|b| pull.places.get(*b as usize));
                let hashes: Vec<_> = places.filter_map(|place| job.hashes.get(*place)).collect();
                self.ask(id, job.node, Some(op), &hashes)?;
            }
            Command::Prepare { blocks } => {
                for block in blocks {
                    let event = self.prepare(id, job.node, pull, block);
                    pull.engine.handle(now, event);
                }
            }
            Command::Connect { source } => {
                let owner = pull.sources.get(source.0 as usize).copied();
                let known = self.nodes.get_mut(job.node).zip(owner);
                // A link that is there already is used at once.
                let fresh = known.is_some_and(|(node, owner)| node.links.insert(owner));
                let wait = match fresh {
                    true => 2 * self.network.rtt,
                    false => std::time::Duration::ZERO,
                };
                self.queue.at(now + wait, Event::Linked { job: id, source });
            }
            Command::Read { op, source, slots } => {
                self.read(id, job.node, pull, op, source, &slots);
            }
            Command::ReadGenerations { op, source, slots } => {
                pull.words.insert(op, (source, slots));
                let there = Event::WordsAsked { job: id, op };
                self.queue.at(now + self.network.way(), there);
            }
            Command::Cancel { op } => {
                let read = pull.flights.remove(&op).is_some();
                if read | pull.words.remove(&op).is_some() {
                    let failure = ReadFailure::Cancelled;
                    pull.engine
                        .handle(now, PullEvent::ReadFailed { op, failure });
                }
            }
            // Nobody is unreachable and no path is doubtful here; checksums are off.
            Command::Suspect { .. } | Command::Distrust { .. } => {}
            Command::Verify { block, .. } => {
                pull.engine
                    .handle(now, PullEvent::Verified { block, ok: true });
            }
            Command::Land { block, .. } => {
                let event = match self.land(id, job, pull, block) {
                    true => PullEvent::Landed { block },
                    false => PullEvent::LandFailed { block },
                };
                pull.engine.handle(now, event);
            }
            Command::Abandon { block } => {
                if let (Some(slot), Some(node)) =
                    (pull.slots.remove(&block), self.nodes.get(job.node))
                {
                    // Reserved by this pull and by nobody else.
                    let _ = node.store.abort(Holder::Pull(id), node.pool.id, &[slot]);
                }
            }
            Command::Finish {
                block,
                outcome,
                source,
            } => {
                let place = pull
                    .places
                    .get(block as usize)
                    .copied()
                    .unwrap_or(usize::MAX);
                let node = source.and_then(|source| pull.sources.get(source.0 as usize));
                let name = node
                    .and_then(|node| self.nodes.get(*node))
                    .map(|n| n.name.to_string());
                if let Some(found) = job.found.get_mut(place) {
                    *found = Some(match (outcome.kind(), name) {
                        (kvferry_proto::pb::OutcomeKind::Pulled, Some(name)) => Found::From(name),
                        (kind, _) => Found::Not(outcome_name(kind)),
                    });
                }
            }
        }
        Ok(())
    }

    fn prepare(&mut self, id: u64, node: usize, pull: &mut Pull, block: BlockIndex) -> PullEvent {
        let slot = self.nodes.get(node).and_then(|node| {
            let holder = Holder::Pull(id);
            node.store.reserve_one(self.now, holder, node.pool.id).ok()
        });
        self.changed(node);
        match slot {
            Some(slot) => {
                pull.slots.insert(block, slot);
                PullEvent::Prepared { block }
            }
            None => PullEvent::NoSpace { block },
        }
    }

    fn read(
        &mut self,
        id: u64,
        reader: usize,
        pull: &mut Pull,
        op: OpId,
        source: SourceKey,
        slots: &[SlotRead],
    ) {
        let bytes = slots.len() as u64 * self.plan.block_bytes;
        let owner = pull.sources.get(source.0 as usize).copied();
        let ports = owner.map(|owner| self.nodes.get_disjoint_mut([owner, reader]));
        let Some(Ok([owner, reader])) = ports else {
            // No source is the reader itself: it is excluded from every answer.
            let failure = ReadFailure::Local;
            pull.engine
                .handle(self.now, PullEvent::ReadFailed { op, failure });
            return;
        };
        let ends = self
            .network
            .read(self.now, bytes, &mut owner.out, &mut reader.into);
        let flight = Flight {
            source,
            bytes,
            began: self.now,
            ends,
        };
        pull.flights.insert(op, flight);
        self.queue.at(ends, Event::ReadEnds { job: id, op });
    }

    /// A read has all its bytes.
    pub(super) fn read_ends(&mut self, id: u64, op: OpId) -> Result<(), ReplayError> {
        let pull = self.jobs.get_mut(&id).and_then(|job| job.pull.as_mut());
        let ended = pull.and_then(|pull| Some((pull.flights.remove(&op)?, &mut pull.received)));
        let Some((flight, received)) = ended else {
            return Ok(());
        };
        *received.entry(flight.source).or_default() += flight.bytes;
        self.step(id, Some(PullEvent::ReadDone { op }))
    }

    /// A question for generation words is at the owner: they are what they are now.
    pub(super) fn words_asked(&mut self, id: u64, op: OpId) {
        let pull = self.jobs.get(&id).and_then(|job| job.pull.as_ref());
        let Some((pull, (source, slots))) = pull.and_then(|p| Some((p, p.words.get(&op)?))) else {
            return;
        };
        let owner = pull.sources.get(source.0 as usize);
        let Some(owner) = owner.and_then(|owner| self.nodes.get(*owner)) else {
            return;
        };
        // One beyond the table is odd: no block.
        let word = |read: &SlotRead| owner.pool.generations.load(read.slot.0).unwrap_or(1);
        let words = slots.iter().map(word).collect();
        let back = Event::WordsCome { job: id, op, words };
        self.queue.at(self.now + self.network.way(), back);
    }

    /// Generation words are here.
    pub(super) fn words_come(
        &mut self,
        id: u64,
        op: OpId,
        words: Vec<u64>,
    ) -> Result<(), ReplayError> {
        let pull = self.jobs.get_mut(&id).and_then(|job| job.pull.as_mut());
        match pull.and_then(|pull| pull.words.remove(&op)) {
            Some(_) => self.step(id, Some(PullEvent::GenerationsDone { op, words })),
            None => Ok(()),
        }
    }

    fn land(&mut self, id: u64, job: &Job, pull: &mut Pull, block: BlockIndex) -> bool {
        let place = pull.places.get(block as usize).copied();
        let (Some(node), Some(slot), Some(place)) =
            (self.nodes.get(job.node), pull.slots.remove(&block), place)
        else {
            return false;
        };
        let parent = place
            .checked_sub(1)
            .and_then(|before| job.hashes.get(before));
        let Some(hash) = job.hashes.get(place) else {
            return false;
        };
        let seal = Seal {
            holder: Holder::Pull(id),
            region: node.pool.id,
            slots: &[slot],
            hashes: std::slice::from_ref(hash),
            chain: Chain::From(parent.copied()),
            checksums: Checksums::Given(&[None]),
            pin: job.pin,
            private: false,
        };
        let sealed = node.store.seal(self.now, &seal).is_ok();
        self.changed(job.node);
        sealed
    }
}
