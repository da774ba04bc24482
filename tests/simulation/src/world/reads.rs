//! The simulated transport. Pieces of a read are fetched at different moments from the owner's real
//! memory and words, so reads tear; links hang, are lost, and take their time to settle.

use std::sync::Arc;

use kvferry_agent::{
    transfer::{Event as PullEvent, OpId, PlannedRead, ReadFailure, SlotRead, SourceKey, plan},
    transport::ReadRequest,
};
use kvferry_memory::HostMemory;
use kvferry_proto::{Part, RemoteSpan};

use super::{
    Act, Event, Pid, Process, World,
    pull::{Flight, Pull, cut},
};
use crate::{invariants::buffers_are_owned, queue::MS, sabotage::Shell};

impl World {
    pub(super) fn begin_read(
        &mut self,
        process: &mut Process,
        pull: &mut Pull,
        op: OpId,
        source: SourceKey,
        slots: Vec<SlotRead>,
        generations: bool,
    ) {
        let now = process.local(self.now);
        let planned = match generations {
            true => self.plan_words(process, &slots),
            false => self
                .plan_data(pull, source, &slots)
                .map(|reads| (reads, None)),
        };
        let Some(((requests, words), _)) = planned.zip(pull.links.get(&source)) else {
            let failure = ReadFailure::SpanRefused;
            pull.troubled = true;
            return pull
                .engine
                .handle(now, PullEvent::ReadFailed { op, failure });
        };
        if !generations && self.sabotaged(Shell::WordsWithData) {
            self.look_early(pull, source, &slots);
        }
        let block = self.conditions.spec(pull.namespace).layout.block_bytes();
        let bytes = requests
            .iter()
            .map(|request| request.local.len_bytes())
            .sum();
        let reads: Vec<_> = requests
            .iter()
            .map(|request| cut(request, &mut process.random, block))
            .collect();
        let hangs = self.chance(self.conditions.hangs);
        self.stats.reads += 1;
        let flight = Flight {
            source,
            slots,
            outstanding: reads.len(),
            reads,
            words,
            bytes: if generations { 0 } else { bytes },
            begun: now,
            hangs,
            failure: None,
        };
        if !hangs {
            self.fetch_all(process.pid, pull.id, op, &flight);
        }
        if self.chance(self.conditions.link_loss) {
            let wait = self.way();
            let act = Act::ReadFails {
                pull: pull.id,
                op,
                failure: ReadFailure::LinkLost,
            };
            self.later(process.pid, wait, act);
        }
        pull.flights.insert(op, flight);
    }

    fn fetch_all(&mut self, pid: Pid, pull: u64, op: OpId, flight: &Flight) {
        for read in 0..flight.reads.len() {
            let wait = self.way();
            let fetch = Event::Fetch {
                pid,
                pull,
                op,
                read,
            };
            self.queue.at(self.now + wait, fetch);
        }
    }

    fn plan_data(
        &self,
        pull: &Pull,
        source: SourceKey,
        slots: &[SlotRead],
    ) -> Option<Vec<ReadRequest>> {
        let blocks = slots.iter().map(|read| {
            Some(plan::BlockRead {
                region: read.region,
                geometry: pull.geometries.get(&(source, read.region))?,
                slot: read.slot,
                destination: &pull.destinations.get(&read.block)?.1,
            })
        });
        let blocks: Option<Vec<_>> = blocks.collect();
        let reads = plan::data_reads(&blocks?, &self.capabilities()).ok()?;
        reads.into_iter().map(PlannedRead::into_host).collect()
    }

    #[allow(clippy::type_complexity)] // the reads, and where each word arrives
    fn plan_words(
        &self,
        process: &mut Process,
        slots: &[SlotRead],
    ) -> Option<(Vec<ReadRequest>, Option<(Arc<HostMemory>, Vec<u64>)>)> {
        let words = self.conditions.transfer.generation_words as u64;
        let scratch = match process.scratch.pop() {
            Some(scratch) => scratch,
            None => Arc::new(HostMemory::anonymous(words * plan::WORD_BYTES).ok()?),
        };
        let slots: Vec<_> = slots.iter().map(|read| (read.region, read.slot)).collect();
        let link = self.capabilities();
        let (reads, offsets) = plan::generation_reads(&slots, &scratch, &link).ok()?;
        Some((reads, Some((scratch, offsets))))
    }

    /// The sabotaged order: words as they are when the data read begins.
    fn look_early(&self, pull: &mut Pull, source: SourceKey, slots: &[SlotRead]) {
        let owner = pull.links.get(&source).map(|link| link.owner);
        let owner = owner.and_then(|owner| self.processes[owner].as_ref());
        for read in slots {
            let region = owner.and_then(|owner| owner.store.region(read.region));
            if let Some(word) = region.and_then(|region| region.generations.load(read.slot.0)) {
                pull.early.insert((source, read.region, read.slot), word);
            }
        }
    }

    /// The next piece is fetched from the owner's memory as it is now.
    pub(super) fn fetch(&mut self, pid: Pid, id: u64, op: OpId, read: usize) {
        let Some(process) = &self.processes[pid] else {
            return;
        };
        let Some(pull) = process.pulls.get(&id) else {
            return;
        };
        let Some(flight) = pull.flights.get(&op) else {
            return;
        };
        let Some(&link) = pull.links.get(&flight.source) else {
            return;
        };
        let Some(&(span, _)) = flight.reads.get(read).and_then(|read| read.pieces.front()) else {
            return;
        };
        let reader = process.node;
        let fails = |failure| Act::ReadFails {
            pull: id,
            op,
            failure,
        };
        let Some(owner) = &self.processes[link.owner] else {
            if !self.silent_dead.contains(&link.owner) {
                let way = self.way();
                self.later(pid, way, fails(ReadFailure::LinkLost));
            }
            return;
        };
        let stands = owner.paused_until > self.now && !link.one_sided;
        let stands = stands.then_some(owner.paused_until);
        if let Some(until) = self.blocked_either(reader, owner.node).max(stands) {
            let again = Event::Fetch {
                pid,
                pull: id,
                op,
                read,
            };
            return self.queue.at(until, again);
        }
        let fetched = load(owner, &span);
        let way = self.way();
        match fetched {
            Ok(bytes) => {
                let act = Act::Arrive {
                    pull: id,
                    op,
                    read,
                    bytes,
                };
                self.later(pid, way, act);
            }
            Err(failure) => self.later(pid, way, fails(failure)),
        }
    }

    /// A piece arrives and is written, whatever has been decided about it meanwhile, until it settles.
    pub(super) fn arrive(
        &mut self,
        process: &mut Process,
        id: u64,
        op: OpId,
        read: usize,
        bytes: &[u8],
    ) -> Option<PullEvent> {
        let mut pull = process.pulls.remove(&id)?;
        let event = self.arrive_in(process, &mut pull, op, read, bytes);
        process.pulls.insert(id, pull);
        event
    }

    fn arrive_in(
        &mut self,
        process: &mut Process,
        pull: &mut Pull,
        op: OpId,
        read: usize,
        bytes: &[u8],
    ) -> Option<PullEvent> {
        let (holder, region) = (pull.holder, Arc::clone(pull.region()));
        let flight = pull.flights.get_mut(&op)?;
        let arriving = flight.reads.get_mut(read)?;
        let (_, local) = arriving.pieces.pop_front()?;
        if flight.words.is_none() {
            for slot in flight.slots.iter().map(|slot| slot.block) {
                let broken = match pull.destinations.get(&slot) {
                    Some((slot, _)) => buffers_are_owned::check(process, &region, *slot, holder),
                    None => buffers_are_owned::given_back(process, &region, slot),
                };
                self.check(broken);
            }
        }
        if arriving.memory.write_at(local, bytes).is_err() {
            return self.end(process, pull, op, ReadFailure::Local);
        }
        let more = !arriving.pieces.is_empty();
        let source = flight.source;
        flight.outstanding -= usize::from(!more);
        let done = flight.outstanding == 0;
        if let Some(link) = pull.links.get_mut(&source) {
            link.received += bytes.len() as u64;
            link.progress_at = process.local(self.now);
        }
        if more {
            let wait = self.way() / 4;
            let fetch = Event::Fetch {
                pid: process.pid,
                pull: pull.id,
                op,
                read,
            };
            self.queue.at(self.now + wait, fetch);
            return None;
        }
        if !done {
            return None;
        }
        let flight = pull.flights.remove(&op)?;
        if let Some(failure) = flight.failure {
            return Some(PullEvent::ReadFailed { op, failure });
        }
        let Some((scratch, offsets)) = flight.words else {
            return Some(PullEvent::ReadDone { op });
        };
        let early = |place: usize| {
            let slot = flight.slots[place];
            pull.early.remove(&(source, slot.region, slot.slot))
        };
        let mut words: Vec<u64> = offsets
            .iter()
            .map(|offset| scratch.load_word(*offset).unwrap_or(1))
            .collect();
        if self.sabotaged(Shell::WordsWithData) {
            let early: Vec<_> = (0..words.len()).map(early).collect();
            for (word, early) in words.iter_mut().zip(early) {
                *word = early.unwrap_or(*word);
            }
        }
        process.scratch.push(scratch);
        Some(PullEvent::GenerationsDone { op, words })
    }

    /// A link that is lost is lost with everything on it.
    pub(super) fn read_fails(
        &mut self,
        process: &mut Process,
        id: u64,
        op: OpId,
        failure: ReadFailure,
    ) -> Vec<PullEvent> {
        let Some(mut pull) = process.pulls.remove(&id) else {
            return Vec::new();
        };
        let source = pull.flights.get(&op).map(|flight| flight.source);
        let of_link = |flight: &Flight| Some(flight.source) == source;
        let ops: Vec<_> = match (failure, source) {
            (_, None) => Vec::new(),
            (ReadFailure::LinkLost, Some(_)) => {
                let all = pull.flights.iter().filter(|(_, flight)| of_link(flight));
                all.map(|(op, _)| *op).collect()
            }
            _ => vec![op],
        };
        let events: Vec<_> = ops
            .into_iter()
            .filter_map(|op| self.end(process, &mut pull, op, failure))
            .collect();
        process.pulls.insert(id, pull);
        events
    }

    pub(super) fn cancel(&mut self, process: &mut Process, pull: &mut Pull, op: OpId) {
        if let Some(event) = self.end(process, pull, op, ReadFailure::Cancelled) {
            let now = process.local(self.now);
            pull.engine.handle(now, event);
        }
    }

    /// A read is over without its bytes. A socket is closed at once; a queue pair has to be drained,
    /// and until then bytes still arrive.
    fn end(
        &mut self,
        process: &mut Process,
        pull: &mut Pull,
        op: OpId,
        failure: ReadFailure,
    ) -> Option<PullEvent> {
        let one_sided = |flight: &Flight| {
            pull.links
                .get(&flight.source)
                .is_some_and(|link| link.one_sided)
        };
        let lingers = pull.flights.get(&op).map(one_sided)?;
        if !lingers {
            pull.flights.remove(&op);
            return Some(PullEvent::ReadFailed { op, failure });
        }
        let flight = pull.flights.get_mut(&op)?;
        if flight.failure.replace(failure).is_some() {
            return None;
        }
        if std::mem::take(&mut flight.hangs)
            && let Some(flight) = pull.flights.get(&op)
        {
            self.fetch_all(process.pid, pull.id, op, flight);
        }
        let wait = process
            .random
            .within(1, self.conditions.settles_within.max(MS));
        self.later(process.pid, wait, Act::Settle { pull: pull.id, op });
        if self.sabotaged(Shell::SettledTooSoon) {
            return Some(PullEvent::ReadFailed { op, failure });
        }
        None
    }

    pub(super) fn settle(&mut self, process: &mut Process, id: u64, op: OpId) -> Option<PullEvent> {
        let pull = process.pulls.get_mut(&id)?;
        let failure = pull.flights.remove(&op)?.failure?;
        Some(PullEvent::ReadFailed { op, failure })
    }
}

fn load(owner: &Process, span: &RemoteSpan) -> Result<Vec<u8>, ReadFailure> {
    let region = owner.store.catalog().get(span.region);
    let region = region.ok_or(ReadFailure::RegionGone)?;
    if !region.covers(span) {
        return Err(ReadFailure::SpanRefused);
    }
    let mut bytes = vec![0; span.len as usize];
    match span.part {
        Part::Data => {
            let read = region.memory.read_at(span.offset, &mut bytes);
            read.map_err(|_| ReadFailure::SpanRefused)?;
        }
        Part::Generations => {
            for (at, word) in bytes.chunks_exact_mut(8).enumerate() {
                let slot = span.offset / 8 + at as u64;
                let value = region.generations.load(slot as u32);
                word.copy_from_slice(&value.ok_or(ReadFailure::SpanRefused)?.to_le_bytes());
            }
        }
    }
    Ok(bytes)
}
