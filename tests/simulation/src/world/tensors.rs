//! The bytes of sets of tensors: engines publish chunks, overwrite and drop them, and pull tensors by name, with the
//! agent's own plan. A pull that did not get everything asks again until its time is over, and a later one into the same
//! slots goes on with what the slots hold by then. They have randomness of their own.

use std::{sync::Arc, time::Duration};

use kvferry_agent::{
    region::{Holder, Region},
    transfer::{
        Outcome, PullEngine,
        tensors::{Plan, Wish},
    },
};
use kvferry_proto::Slot;

use super::{
    Act, Event, Process, World,
    pull::{Begin, Pull, Target},
};
use crate::{
    invariants::{bytes_are_published, pulls_end},
    names::WEIGHTS,
    queue::{MS, Micros},
    random::Random,
};

/// Between two things that happen to tensors in a world, on average half of it.
const PACE: Micros = 400 * MS;
/// Until a pull that lacks something asks again.
const PAUSE: Micros = 150 * MS;

/// Chance.
#[derive(Debug)]
pub(super) struct Tensors(Random);

impl Tensors {
    pub(super) fn new(seed: u64) -> Self {
        Self(Random::of(seed, 21))
    }
}

/// A set, by the numbers of its source and its table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Which {
    pub(crate) kind: usize,
    pub(crate) table: usize,
}

/// A pull of tensors under way.
#[derive(Debug)]
pub(crate) struct TensorRun {
    number: u64,
    which: Which,
    pub(crate) plan: Plan,
    pub(crate) first_slot: u32,
    deadline: Duration,
    /// Of the pull of blocks under way.
    places: Vec<usize>,
}

impl World {
    /// An engine publishes, drops or pulls something; and when the next one does.
    pub(super) fn tensors(&mut self) {
        if self.is_quiet() {
            return;
        }
        let random = &mut self.tensors.0;
        let wait = random.below(PACE);
        self.queue.at(self.now + wait, Event::Tensors);
        let pid = random.below(self.processes.len().max(1) as u64) as usize;
        let which = self.sets.pick(random);
        let (what, at) = (random.below(20), random.below(2));
        let Some(mut process) = self.processes.get_mut(pid).and_then(Option::take) else {
            return;
        };
        let region = process.chunks.clone();
        if let Some(region) = region.filter(|_| process.paused_until <= self.now) {
            let slots = region.geometry.slots();
            match what {
                // One pull at a time, and nobody overwrites what it brings.
                0 | 1 if process.tensors.is_some() => self.tensors_given_up(&mut process),
                _ if process.tensors.is_some() || process.leaving => {}
                0..8 => {
                    let chunks = self.sets.table(which).chunks();
                    let first = [0, slots - chunks][at as usize];
                    self.publish_chunks(&mut process, &region, which, first);
                }
                8..10 => {
                    let chunks = self.chunks_at(which, 0, 0..self.sets.table(which).chunks());
                    let hashes = chunks.into_iter().map(|(slot, number)| {
                        let hash = self.conditions.names.hash(number);
                        (slot, hash)
                    });
                    let some: Vec<_> = hashes.skip(at as usize).collect();
                    process.store.drop_blocks(region.id, &some);
                }
                _ => self.pull_tensors(&mut process, &region, which, at),
            }
        }
        self.after(&mut process);
        self.processes[pid] = Some(process);
    }

    /// Where chunks lie, from a slot on, and their numbers.
    fn chunks_at(
        &self,
        which: Which,
        first_slot: u32,
        chunks: std::ops::Range<u32>,
    ) -> Vec<(Slot, u64)> {
        let number = |chunk| self.sets.chunk(which, chunk);
        let at = chunks.map(|chunk| (Slot(first_slot + chunk), number(chunk)));
        at.collect()
    }

    /// As the agent does it: chunks that are there stay, the others are written and sealed.
    fn publish_chunks(
        &mut self,
        process: &mut Process,
        region: &Arc<Region>,
        which: Which,
        first_slot: u32,
    ) {
        let chunks = 0..self.sets.table(which).chunks();
        let missing = self.lacking(process, region, self.chunks_at(which, first_slot, chunks));
        let (slots, numbers): (Vec<Slot>, Vec<u64>) = missing.into_iter().unzip();
        let busy = |slot: &Slot| process.writers.contains_key(&(region.id, *slot));
        if slots.is_empty() || slots.iter().any(busy) {
            return;
        }
        let (now, holder) = (process.local(self.now), Holder::Client(process.client));
        let taken = process.store.reserve_slots(now, holder, region.id, &slots);
        if taken.is_ok() {
            self.begin_job(process, Arc::clone(region), slots, numbers);
        }
    }

    /// Of these, those that the slots do not hold.
    fn lacking(
        &self,
        process: &Process,
        region: &Region,
        chunks: Vec<(Slot, u64)>,
    ) -> Vec<(Slot, u64)> {
        let hash = |number| self.conditions.names.hash(number);
        let named = chunks.iter().map(|(slot, number)| (*slot, hash(*number)));
        let held = process.store.hold(region.id, &named.collect::<Vec<_>>());
        let held = held.unwrap_or_else(|| vec![false; chunks.len()]);
        let both = chunks.into_iter().zip(held);
        both.filter(|(_, held)| !held).map(|(at, _)| at).collect()
    }

    fn pull_tensors(&mut self, process: &mut Process, region: &Arc<Region>, which: Which, at: u64) {
        let (slots, now) = (region.geometry.slots(), process.local(self.now));
        let number = process.number();
        let (random, table) = (&mut self.tensors.0, self.sets.table(which));
        let names = table
            .tensors()
            .iter()
            .map(|tensor| tensor.name().to_owned());
        let wish = match random.below(3) {
            0 => Wish {
                names: names.filter(|_| random.permille(500)).collect(),
                prefixes: Vec::new(),
            },
            _ => Wish::default(),
        };
        let packed = random.permille(300);
        let timeout = Duration::from_millis(random.within(200, 6_000));
        let Ok(mut plan) = Plan::new(Arc::clone(table), &wish, packed) else {
            return;
        };
        // In the middle, or at the end: sets of two sizes meet there.
        let first_slot = [0, slots - plan.slots()][at as usize];
        // What is here already is not asked for.
        let place = |place: usize| {
            let chunk = plan.chunks()[place];
            let hash = self.conditions.names.hash(self.sets.chunk(which, chunk));
            (plan.slot(place, first_slot), hash)
        };
        let blocks: Vec<_> = (0..plan.chunks().len()).map(place).collect();
        let held = process.store.hold(region.id, &blocks);
        let (mut whole, mut here) = (Vec::new(), 0);
        for (place, held) in held.into_iter().flatten().enumerate() {
            if held {
                here += 1;
                whole.extend(plan.land(place));
            }
        }
        self.stats.tensor_pulls += 1;
        self.stats.chunks_here_before += here;
        let run = TensorRun {
            number,
            which,
            plan,
            first_slot,
            deadline: now + timeout,
            places: Vec::new(),
        };
        self.tensors_whole(region, &run, &whole);
        process.tensors = Some(run);
        self.tensors_go_on(process, number);
    }

    /// What a pull still lacks is asked for once more.
    pub(super) fn tensors_go_on(&mut self, process: &mut Process, number: u64) {
        let now = process.local(self.now);
        let (Some(run), Some(region)) = (&process.tensors, process.chunks.clone()) else {
            return;
        };
        if run.number != number {
            return;
        }
        let timeout = run.deadline.saturating_sub(now);
        let places = run.plan.missing();
        if places.is_empty() || timeout.is_zero() {
            self.stats.tensor_pulls_whole += u64::from(places.is_empty());
            process.tensors = None;
            return;
        }
        let slot = |place: &usize| run.plan.slot(*place, run.first_slot);
        let slots: Vec<Slot> = places.iter().map(slot).collect();
        let chunk = |place: &usize| self.sets.chunk(run.which, run.plan.chunks()[*place]);
        let numbers: Vec<u64> = places.iter().map(chunk).collect();
        let id = process.number();
        let holder = Holder::Pull(id);
        let taken = process.store.reserve_slots(now, holder, region.id, &slots);
        if taken.is_err() {
            // Slots that an earlier round has not given back yet, or an engine writes to.
            return self.later(process.pid, PAUSE, Act::Tensors(number));
        }
        for slot in &slots {
            process.writers.insert((region.id, *slot), holder);
        }
        let request = self.pull_request(WEIGHTS, &numbers, timeout);
        let mut pull = Pull::new(Begin {
            id,
            namespace: WEIGHTS,
            engine: PullEngine::new(self.conditions.transfer.clone(), request, now),
            holder,
            hashes: numbers,
            target: Target::Slots(region, slots),
            pin: None,
            deadline: now + timeout,
        });
        pull.tensors_for = Some(number);
        if let Some(run) = &mut process.tensors {
            run.places = places;
        }
        self.stats.pulls += 1;
        process.pulls.insert(id, pull);
        self.deadline_at(process, id, now + timeout + pulls_end::SLACK);
        self.step(process, id, None);
    }

    /// A pull of blocks has an outcome for each of a run's chunks.
    pub(super) fn tensors_brought(&mut self, process: &mut Process, pull: &Pull) {
        let (Some(run), Some(region)) = (process.tensors.take(), process.chunks.clone()) else {
            return;
        };
        if pull.tensors_for != Some(run.number) {
            process.tensors = Some(run);
            return;
        }
        let mut run = run;
        let mut whole = Vec::new();
        for (place, outcome) in std::mem::take(&mut run.places)
            .into_iter()
            .zip(&pull.outcomes)
        {
            if *outcome == Some(Outcome::Pulled) {
                whole.extend(run.plan.land(place));
            }
        }
        self.tensors_whole(&region, &run, &whole);
        self.later(process.pid, PAUSE, Act::Tensors(run.number));
        process.tensors = Some(run);
    }

    /// Its engine is told that these are here.
    fn tensors_whole(&mut self, region: &Region, run: &TensorRun, whole: &[usize]) {
        for &wanted in whole {
            self.stats.tensors_checked += 1;
            let table = self.sets.table(run.which);
            let number = |chunk| self.sets.chunk(run.which, chunk);
            let broken =
                bytes_are_published::tensor(&self.history, region, run, table, number, wanted);
            self.check(broken);
        }
    }

    /// Its engine does not want it any more.
    fn tensors_given_up(&mut self, process: &mut Process) {
        let Some(run) = process.tensors.take() else {
            return;
        };
        let of_it = |pull: &&mut Pull| pull.tensors_for == Some(run.number);
        let ids = process.pulls.values_mut().filter(of_it).map(|pull| {
            pull.give_up(true);
            pull.id
        });
        for id in ids.collect::<Vec<_>>() {
            self.later(process.pid, 0, Act::PullTimer(id));
        }
    }
}
