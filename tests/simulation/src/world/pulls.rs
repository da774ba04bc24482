//! What obeys pull engines; stands for the agent's pull service and its driver.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use kvferry_agent::{
    region::Holder,
    transfer::{Command, ConnectFailure, Event as PullEvent, PullEngine, PullRequest},
};
use kvferry_proto::{Checksum, Slot, Summing};

use super::{
    Act, Event, Process, World,
    asking::understood,
    pull::{Begin, Pull, Target},
};
use crate::{
    invariants::{bounds_hold, pulls_end, stalls_are_bounded},
    names::{MODEL, number},
    queue::{MS, Micros, SECOND},
};

/// Until a connect is given up.
const CONNECT_BOUND: Micros = 4 * SECOND;
/// Longest a pinned result is kept.
const PIN: Duration = Duration::from_secs(6);

impl World {
    pub(super) fn begin_pull(&mut self, process: &mut Process) {
        let now = process.local(self.now);
        let count = process.random.within(1, 10);
        let first = process.random.below(self.conditions.hashes);
        let tenant = process.tenant();
        let mut hashes: Vec<u64> = (first..first + count)
            .map(|hash| number(tenant, hash % self.conditions.hashes))
            .collect();
        hashes.sort_unstable();
        hashes.dedup();
        // What is here already is not pulled.
        let (name, names) = (&self.conditions.spec(tenant).name, &self.conditions.names);
        hashes.retain(|hash| process.store.find(name, &names.hash(*hash)).is_none());
        let longest = process.random.pick(&[60 * MS, 500 * MS, 5 * SECOND]);
        let timeout = Duration::from_micros(process.random.within(10 * MS, longest));
        let id = process.number();
        let holder = Holder::Pull(id);
        let Some((target, pin)) = self.open_target(process, tenant, holder, &mut hashes, timeout)
        else {
            return;
        };
        if hashes.is_empty() {
            return;
        }
        let request = self.pull_request(tenant, &hashes, timeout);
        let deadline = now + timeout;
        let pull = Pull::new(Begin {
            id,
            namespace: tenant,
            engine: PullEngine::new(self.conditions.transfer.clone(), request, now),
            holder,
            hashes,
            target,
            pin,
            deadline,
        });
        self.stats.pulls += 1;
        process.pulls.insert(id, pull);
        self.deadline_at(process, id, deadline + pulls_end::SLACK);
        self.step(process, id, None);
    }

    /// What a pull engine is told of blocks of one namespace.
    pub(super) fn pull_request(
        &self,
        namespace: usize,
        hashes: &[u64],
        timeout: Duration,
    ) -> PullRequest {
        let (spec, names) = (self.conditions.spec(namespace), &self.conditions.names);
        let covered = |hash: u64| spec.checksum.covers(names.hash(hash).as_bytes());
        let blocks = hashes.len() as u32;
        PullRequest {
            blocks,
            block_bytes: spec.layout.block_bytes(),
            timeout,
            must_verify: (0..blocks)
                .filter(|block| covered(hashes[*block as usize]))
                .collect(),
        }
    }

    /// A look at a pull when its deadline has passed.
    pub(super) fn deadline_at(&mut self, process: &Process, id: u64, deadline: Duration) {
        let at = process.global(deadline);
        self.queue
            .at(at, Event::Process(process.pid, Act::PullDeadline(id)));
    }

    /// A place to write to, and the pin that results join.
    fn open_target(
        &mut self,
        process: &mut Process,
        tenant: usize,
        holder: Holder,
        hashes: &mut Vec<u64>,
        timeout: Duration,
    ) -> Option<(Target, Option<kvferry_agent::region::PinId>)> {
        let now = process.local(self.now);
        let engine = process
            .engine
            .clone()
            .filter(|_| tenant == MODEL && process.random.permille(300));
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
        let pool = Arc::clone(&process.pools[tenant]);
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
    pub(super) fn step(&mut self, process: &mut Process, id: u64, event: Option<PullEvent>) {
        let Some(mut pull) = process.pulls.remove(&id) else {
            return;
        };
        let now = process.local(self.now);
        for event in pull.take_cancel().into_iter().chain(event) {
            pull.troubled |= matches!(
                event,
                PullEvent::ConnectFailed { .. } | PullEvent::ReadFailed { .. }
            );
            pull.engine.handle(now, event);
        }
        self.pass_time(process, &mut pull);
        while let Some(command) = pull.engine.poll_command() {
            self.obey(process, &mut pull, command);
        }
        let broken = bounds_hold::pull(&pull, &self.conditions);
        self.check(broken);
        let awake = process.local(process.paused_until);
        let broken = stalls_are_bounded::waits(&pull, &self.conditions, awake, now);
        self.check(broken);
        let mut copied = None;
        if pull.engine.is_finished() && !pull.reported {
            pull.reported = true;
            let broken = pulls_end::all_given(&pull);
            self.check(broken);
            self.report(process, &pull);
            copied = pull.copies_for.map(|job| (job, pull.outcomes.clone()));
            self.tensors_brought(process, &pull);
        }
        if pull.engine.is_drained() {
            self.stats.drained += 1;
            let broken = pulls_end::given_back(&pull);
            self.check(broken);
            process.store.release_holder(pull.holder);
            process.writers.retain(|_, holder| *holder != pull.holder);
            process.scratch.truncate(8);
        } else {
            self.arm(process, &mut pull);
            process.pulls.insert(id, pull);
        }
        if let Some((job, outcomes)) = copied {
            self.copied(process, job, &outcomes);
        }
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
            Command::Locate { op, blocks } => match pull.known.take() {
                Some(known) => {
                    let blocks: Vec<_> = blocks.iter().map(|block| *block as usize).collect();
                    let known = known.subset(&blocks);
                    let event = understood(&process.health, pull, op, &known);
                    pull.engine.handle(now, event);
                }
                None => self.ask(process, pull, op, &blocks),
            },
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
                let most = self.conditions.transfer.max_sources;
                let broken = stalls_are_bounded::reads(pull, most, source, &slots);
                self.check(broken);
                self.begin_read(process, pull, op, source, slots, false);
            }
            Command::ReadGenerations { op, source, slots } => {
                self.begin_read(process, pull, op, source, slots, true);
            }
            Command::Cancel { op } => self.cancel(process, pull, op),
            Command::Suspect { source } => {
                pull.troubled = true;
                self.stats.suspected += 1;
                if let Some(peer) = pull.peers.get(source.0 as usize) {
                    let now = process.instant(self.now);
                    process.health.suspect(now, peer);
                }
            }
            // No link of this world needs checksums.
            Command::Distrust { .. } => {}
            Command::Verify { block, checksum } => {
                let ok = pull.destinations.get(&block).is_some_and(|(_, to)| {
                    let mut state = Summing::default();
                    let ranges = to.ranges.iter().cloned();
                    let folded = to.memory.fold(ranges, |piece| state.update(piece));
                    folded.is_ok() && Checksum::of(&state) == checksum
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
}
