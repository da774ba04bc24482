//! What obeys pull engines; stands for the agent's pull service and its driver.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use kvferry_agent::{
    coordinators::Located,
    region::{Chain, Checksums, Holder, Seal},
    transfer::{
        BlockIndex, Candidate, Command, ConnectFailure, Destination, Event as PullEvent, OpId,
        Outcome, PullEngine, PullRequest, SourceHint, SourceKey,
    },
};
use kvferry_memory::fold_ranges;
use kvferry_proto::{Checksum, PackedHashes, Slot, pb};
use xxhash_rust::xxh3::Xxh3Default;

use super::{
    Act, Event, Process, World,
    pull::{Begin, Pull, Target},
};
use crate::{
    history::block_hash,
    invariants::{bounds_hold, bytes_are_published, pulls_end},
    queue::{MS, Micros, SECOND},
};

/// Until a unary call is given up.
const CALL_BOUND: Micros = 2 * SECOND;
/// Until a connect is given up.
const CONNECT_BOUND: Micros = 4 * SECOND;
/// How long a suspect is remembered.
const SUSPECT_FOR: Micros = 10 * SECOND;
/// Candidates asked for.
const CANDIDATES: u32 = 3;
/// Longest a pinned result is kept.
const PIN: Duration = Duration::from_secs(6);

impl World {
    pub(super) fn begin_pull(&mut self, process: &mut Process) {
        let now = process.local(self.now);
        let count = process.random.within(1, 10);
        let first = process.random.below(self.conditions.hashes);
        let mut hashes: Vec<u64> = (first..first + count)
            .map(|hash| hash % self.conditions.hashes)
            .collect();
        hashes.sort_unstable();
        hashes.dedup();
        // What is here already is not pulled.
        let name = &self.conditions.spec.name;
        hashes.retain(|hash| process.store.find(name, &block_hash(*hash)).is_none());
        let longest = process.random.pick(&[60 * MS, 500 * MS, 5 * SECOND]);
        let timeout = Duration::from_micros(process.random.within(10 * MS, longest));
        let id = process.number();
        let holder = Holder::Pull(id);
        let Some((target, pin)) = self.open_target(process, holder, &mut hashes, timeout) else {
            return;
        };
        if hashes.is_empty() {
            return;
        }
        let policy = self.conditions.spec.checksum;
        let covered = |hash: u64| policy.covers(block_hash(hash).as_bytes());
        let blocks = hashes.len() as u32;
        let request = PullRequest {
            blocks,
            block_bytes: self.conditions.spec.layout.block_bytes(),
            timeout,
            must_verify: (0..blocks)
                .filter(|block| covered(hashes[*block as usize]))
                .collect(),
        };
        let deadline = now + timeout;
        let pull = Pull::new(Begin {
            id,
            engine: PullEngine::new(self.conditions.transfer.clone(), request, now),
            holder,
            hashes,
            target,
            pin,
            deadline,
        });
        self.stats.pulls += 1;
        process.pulls.insert(id, pull);
        let at = process.global(deadline + pulls_end::SLACK);
        self.queue
            .at(at, Event::Process(process.pid, Act::PullDeadline(id)));
        self.step(process, id, None);
    }

    /// A place to write to, and the pin that results join.
    fn open_target(
        &mut self,
        process: &mut Process,
        holder: Holder,
        hashes: &mut Vec<u64>,
        timeout: Duration,
    ) -> Option<(Target, Option<kvferry_agent::region::PinId>)> {
        let now = process.local(self.now);
        let engine = process
            .engine
            .clone()
            .filter(|_| process.random.permille(300));
        if let Some(region) = engine {
            hashes.truncate(region.geometry.slots() as usize);
            let slots: Vec<_> = (0..hashes.len() as u32).map(Slot).collect();
            process
                .store
                .reserve_slots(now, holder, region.id, &slots)
                .ok()?;
            for slot in &slots {
                process.writers.insert((region.id, *slot), holder);
            }
            return Some((Target::Slots(region, slots), None));
        }
        let pool = Arc::clone(&process.pool);
        if hashes.is_empty() || process.random.permille(400) {
            return Some((Target::Pool(pool), None));
        }
        let ttl = Some(PIN + timeout);
        let pin = process
            .store
            .pin_held(now, process.client, None, &[], ttl)
            .ok()?;
        Some((Target::Pool(pool), Some(pin.0)))
    }

    /// What happens to a pull.
    pub(super) fn pull_act(&mut self, process: &mut Process, act: Act) {
        match act {
            Act::Located { pull, op, answer } => {
                let event = match answer {
                    Ok(answer) => self.understand(process, pull, op, *answer),
                    Err(retryable) => Some(PullEvent::LocateFailed { op, retryable }),
                };
                self.step(process, pull, event);
            }
            Act::LinkUp {
                pull,
                source,
                owner,
            } => {
                let event = self.link_up(process, pull, source, owner);
                self.step(process, pull, event);
            }
            Act::LinkFailed {
                pull,
                source,
                failure,
            } => {
                let waited = process
                    .pulls
                    .get_mut(&pull)
                    .map(|pull| pull.connecting.remove(&source));
                let event = PullEvent::ConnectFailed { source, failure };
                self.step(process, pull, (waited == Some(true)).then_some(event));
            }
            Act::Arrive {
                pull,
                op,
                read,
                bytes,
            } => {
                let event = self.arrive(process, pull, op, read, &bytes);
                self.step(process, pull, event);
            }
            Act::ReadFails { pull, op, failure } => {
                for event in self.read_fails(process, pull, op, failure) {
                    self.step(process, pull, Some(event));
                }
            }
            Act::Settle { pull, op } => {
                let event = self.settle(process, pull, op);
                self.step(process, pull, event);
            }
            Act::PullTimer(pull) => {
                if let Some(pull) = process.pulls.get_mut(&pull) {
                    pull.timer_at = None;
                }
                self.step(process, pull, None);
            }
            Act::PullDeadline(pull) => {
                self.step(process, pull, None);
                let broken = process.pulls.get(&pull).and_then(pulls_end::at_deadline);
                self.check(broken);
            }
            _ => {}
        }
    }

    /// Tells the engine, lets time pass, and obeys.
    fn step(&mut self, process: &mut Process, id: u64, event: Option<PullEvent>) {
        let Some(mut pull) = process.pulls.remove(&id) else {
            return;
        };
        let now = process.local(self.now);
        for event in pull.take_cancel().into_iter().chain(event) {
            pull.engine.handle(now, event);
        }
        self.pass_time(process, &mut pull);
        while let Some(command) = pull.engine.poll_command() {
            self.obey(process, &mut pull, command);
        }
        let broken = bounds_hold::pull(&pull, &self.conditions);
        self.check(broken);
        if pull.engine.is_finished() && !pull.reported {
            pull.reported = true;
            let broken = pulls_end::all_given(&pull);
            self.check(broken);
            self.report(process, &pull);
        }
        if pull.engine.is_drained() {
            self.stats.drained += 1;
            let broken = pulls_end::given_back(&pull);
            self.check(broken);
            process.store.release_holder(pull.holder);
            process.writers.retain(|_, holder| *holder != pull.holder);
            process.scratch.truncate(8);
            return;
        }
        self.arm(process, &mut pull);
        process.pulls.insert(id, pull);
    }

    fn pass_time(&mut self, process: &Process, pull: &mut Pull) {
        let now = process.local(self.now);
        let due = pull.engine.poll_timeout().is_some_and(|due| due <= now);
        if now < pull.progress_at && !due {
            return;
        }
        pull.progress_at = now + self.conditions.transfer.progress_tick;
        let sources: BTreeSet<_> = pull.flights.values().map(|flight| flight.source).collect();
        for source in sources {
            if let Some(link) = pull.links.get(&source) {
                let received_bytes = link.received;
                let event = PullEvent::Progress {
                    source,
                    received_bytes,
                };
                pull.engine.handle(now, event);
            }
        }
        pull.engine.handle_timeout(now);
    }

    fn arm(&mut self, process: &Process, pull: &mut Pull) {
        let Some(mut due) = pull.engine.poll_timeout() else {
            return;
        };
        if !pull.flights.is_empty() {
            due = due.min(pull.progress_at);
        }
        let at = process.global(due).max(self.now + 1);
        if pull.timer_at.is_none_or(|known| at < known) {
            pull.timer_at = Some(at);
            self.queue
                .at(at, Event::Process(process.pid, Act::PullTimer(pull.id)));
        }
    }

    fn obey(&mut self, process: &mut Process, pull: &mut Pull, command: Command) {
        let now = process.local(self.now);
        match command {
            Command::Locate { op, blocks } => self.ask(process, pull, op, &blocks),
            Command::Prepare { blocks } => {
                for block in blocks {
                    let event = self.prepare(process, pull, block);
                    pull.engine.handle(now, event);
                }
            }
            Command::Connect { source } => {
                pull.connecting.insert(source);
                let (pid, id) = (process.pid, pull.id);
                let way = self.way();
                let arrives = Event::Connect {
                    pid,
                    pull: id,
                    source,
                };
                self.queue.at(self.now + way, arrives);
                let act = Act::LinkFailed {
                    pull: id,
                    source,
                    failure: ConnectFailure::Unreachable,
                };
                self.later(pid, CONNECT_BOUND, act);
            }
            Command::Read { op, source, slots } => {
                self.begin_read(process, pull, op, source, slots, false);
            }
            Command::ReadGenerations { op, source, slots } => {
                self.begin_read(process, pull, op, source, slots, true);
            }
            Command::Cancel { op } => self.cancel(process, pull, op),
            Command::Suspect { source } => {
                if let Some(link) = pull.links.get(&source) {
                    process.suspects.insert(link.owner, self.now + SUSPECT_FOR);
                }
            }
            Command::Verify { block, checksum } => {
                let ok = pull.destinations.get(&block).is_some_and(|(_, to)| {
                    let mut state = Xxh3Default::new();
                    let ranges = to.ranges.iter().cloned();
                    fold_ranges(&to.memory, ranges, |piece| state.update(piece)).is_ok()
                        && Checksum::of(&state) == checksum
                });
                pull.engine.handle(now, PullEvent::Verified { block, ok });
            }
            Command::Land { block, checksum } => {
                let event = match self.land(process, pull, block, checksum) {
                    true => PullEvent::Landed { block },
                    false => PullEvent::LandFailed { block },
                };
                pull.engine.handle(now, event);
            }
            Command::Abandon { block } => {
                if let Some((slot, _)) = pull.destinations.remove(&block) {
                    let region = pull.region().id;
                    process.writers.remove(&(region, slot));
                    // An unregistered region has taken its reservations with it.
                    let _ = process.store.abort(pull.holder, region, &[slot]);
                }
            }
            Command::Finish { block, outcome, .. } => {
                let broken = pulls_end::finish(pull, block, outcome);
                self.check(broken);
            }
        }
    }

    fn ask(&mut self, process: &mut Process, pull: &Pull, op: OpId, blocks: &[BlockIndex]) {
        let hashes: Vec<_> = blocks
            .iter()
            .map(|block| block_hash(pull.hashes[*block as usize]))
            .collect();
        let packed = PackedHashes::pack(self.conditions.spec.hash_len, &hashes);
        let Ok(packed) = packed else {
            unreachable!("hashes of the namespace's length");
        };
        let request = Box::new(pb::LocateRequest {
            namespace: self.conditions.spec.name.to_string(),
            hashes: Some(packed.into()),
            max_candidates: CANDIDATES,
            host_id: process.name.to_string(),
            exclude_node: process.name.to_string(),
            ..pb::LocateRequest::default()
        });
        let coordinator = process.random.below(self.coordinators.len() as u64) as usize;
        let copies = match (
            self.chance(self.conditions.loss),
            self.chance(self.conditions.duplicates),
        ) {
            (true, _) => 0,
            (false, true) => 2,
            (false, false) => 1,
        };
        for _ in 0..copies {
            let way = self.way();
            let locate = Event::Locate {
                coordinator,
                pid: process.pid,
                pull: pull.id,
                op,
                request: request.clone(),
            };
            self.queue.at(self.now + way, locate);
        }
        let act = Act::Located {
            pull: pull.id,
            op,
            answer: Err(true),
        };
        self.later(process.pid, CALL_BOUND, act);
    }

    /// An answer, in the engine's words; as the driver does it.
    fn understand(
        &mut self,
        process: &mut Process,
        id: u64,
        op: OpId,
        answer: pb::LocateResponse,
    ) -> Option<PullEvent> {
        let pull = process.pulls.get_mut(&id)?;
        let block_bytes = self.conditions.spec.layout.block_bytes();
        let Ok(located) = Located::parse(answer, pull.hashes.len(), block_bytes) else {
            return Some(PullEvent::LocateFailed {
                op,
                retryable: true,
            });
        };
        let mut owners = Vec::new();
        for owner in &located.owners {
            let next = SourceKey(pull.peers.len() as u32);
            let name = (owner.peer.node.clone(), owner.peer.incarnation);
            let source = *pull.keys.entry(name).or_insert(next);
            match pull.peers.get_mut(source.0 as usize) {
                Some(known) => *known = owner.peer.clone(),
                None => pull.peers.push(owner.peer.clone()),
            }
            pull.geometries
                .insert((source, owner.region), owner.geometry.clone());
            owners.push((source, owner.region, owner.geometry.planes().len() as u32));
        }
        let suspected: BTreeSet<_> = pull
            .links
            .iter()
            .filter(|(_, link)| {
                process
                    .suspects
                    .get(&link.owner)
                    .is_some_and(|at| *at > self.now)
            })
            .map(|(source, _)| *source)
            .collect();
        let hints = owners.iter().map(|&(source, ..)| SourceHint {
            source,
            suspect: suspected.contains(&source),
            distance: 1,
        });
        let candidates = (0..located.len()).map(|block| {
            let places = located.candidates(block).iter();
            let known = places.filter_map(|place| {
                let &(source, region, spans) = owners.get(place.owner)?;
                Some(Candidate {
                    source,
                    region,
                    slot: place.slot,
                    generation: place.generation,
                    checksum: place.checksum,
                    spans,
                })
            });
            known.collect()
        });
        Some(PullEvent::Located {
            op,
            hints: hints.collect(),
            candidates: candidates.collect(),
        })
    }

    fn prepare(&mut self, process: &mut Process, pull: &mut Pull, block: BlockIndex) -> PullEvent {
        let now = process.local(self.now);
        let slot = match &pull.target {
            Target::Pool(region) => process.store.reserve_one(now, pull.holder, region.id).ok(),
            Target::Slots(_, slots) => slots.get(block as usize).copied(),
        };
        let Some(slot) = slot else {
            return PullEvent::NoSpace { block };
        };
        let region = Arc::clone(pull.region());
        process.writers.insert((region.id, slot), pull.holder);
        let destination = Destination {
            memory: Arc::clone(&region.memory),
            ranges: region.geometry.ranges(slot).collect(),
        };
        pull.destinations.insert(block, (slot, destination));
        PullEvent::Prepared { block }
    }

    /// Seals; then the oracle looks at the bytes.
    fn land(
        &mut self,
        process: &mut Process,
        pull: &mut Pull,
        block: BlockIndex,
        checksum: Option<Checksum>,
    ) -> bool {
        let Some((slot, _)) = pull.destinations.get(&block) else {
            return false;
        };
        let (slot, region) = (*slot, Arc::clone(pull.region()));
        let number = pull.hashes[block as usize];
        let hash = block_hash(number);
        let given = [checksum];
        let compute = checksum.is_none() && region.namespace.checksum.covers(hash.as_bytes());
        let seal = Seal {
            holder: pull.holder,
            region: region.id,
            slots: &[slot],
            hashes: &[hash],
            chain: Chain::Unknown,
            checksums: match compute {
                true => Checksums::Compute,
                false => Checksums::Given(&given),
            },
            pin: pull.pin,
            private: false,
        };
        let sealed = process.store.seal(process.local(self.now), &seal);
        let Ok([outcome]) = sealed.as_deref() else {
            return false;
        };
        pull.destinations.remove(&block);
        process.writers.remove(&(region.id, slot));
        if outcome.pinned {
            pull.pinned.push((number, outcome.held));
        }
        self.stats.reads_checked += 1;
        let broken = bytes_are_published::landed(&self.history, process, number, &outcome.held);
        self.check(broken);
        true
    }

    fn report(&mut self, process: &mut Process, pull: &Pull) {
        let mut numbers = vec![5, process.pid as u64, pull.id];
        for (outcome, hash) in pull.outcomes.iter().zip(&pull.hashes) {
            let Some(outcome) = outcome else { continue };
            self.stats.outcome(*outcome);
            numbers.push(hash << 8 | outcome.kind() as u64);
        }
        self.note(&numbers);
        if let Target::Slots(region, slots) = &pull.target {
            // Slots that nothing was written to are given back before the engine hears of it.
            let pulled = |outcome: &Option<Outcome>| *outcome == Some(Outcome::Pulled);
            for (block, slot) in slots.iter().enumerate() {
                let used = pull.destinations.contains_key(&(block as u32));
                if !used && !pull.outcomes.get(block).is_some_and(pulled) {
                    // Where it was abandoned it is given back already.
                    if process
                        .store
                        .abort(pull.holder, region.id, &[*slot])
                        .is_ok()
                    {
                        process.writers.remove(&(region.id, *slot));
                    }
                }
            }
        }
        if let Some(pin) = pull.pin {
            let wait = process.random.below(4 * SECOND);
            let act = Act::Release {
                client: process.client,
                pin,
                blocks: pull.pinned.clone(),
            };
            self.later(process.pid, wait, act);
        }
    }
}
