//! Engines claim blocks at coordinators, over calls of which the question or the answer is lost, late or comes twice; who
//! gets no answer asks again. The books say what was granted to whom, and who believes to hold it until when. The claims
//! have randomness of their own: whatever else happens in a world happens without them, too.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use kvferry_coordinator::directory::{
    ClaimOutcome, ClaimPurpose, ClaimQuery, Event as DirectoryEvent,
};
use kvferry_proto::{Incarnation, NodeId, PackedHashes, RegionId};

use super::{Act, Event, Pid, Process, World};
use crate::{
    invariants::claims_are_exclusive,
    names::{namespace_of, number},
    queue::{MS, Micros},
    random::Random,
    sabotage::Shell,
};

/// Between two claims in a world, on average half of it.
const PACE: Micros = 80 * MS;
/// Most blocks one asks for, and the longest lease.
const MOST_BLOCKS: u64 = 4;
const LONGEST_MS: u64 = 4_000;
/// A call without an answer by then is asked again: it may have been heard, or not.
const CALL_BOUND: Micros = 500 * MS;
/// How often it is asked again.
const TRIES: u32 = 4;

/// The books.
#[derive(Debug)]
pub(crate) struct Claims {
    random: Random,
    pub(crate) granted: Vec<Grant>,
    /// Calls whose claimant waits, by number.
    open: BTreeSet<u64>,
    calls: u64,
}

/// What one was granted in one call.
#[derive(Debug, Clone)]
pub(crate) struct Grant {
    pub(crate) coordinator: usize,
    /// The coordinator's lifetime.
    pub(crate) epoch: u64,
    pub(crate) pid: Pid,
    pub(crate) token: u64,
    pub(crate) purpose: ClaimPurpose,
    /// Every renewal of it asks for as much.
    ttl: Duration,
    /// As the coordinator counts time.
    pub(crate) expires: Duration,
    pub(crate) numbers: BTreeSet<u64>,
    /// Of these its node said meanwhile that it holds them, and may have been heard.
    pub(crate) maybe_fulfilled: BTreeSet<u64>,
    /// Its claimant was told of it, and takes it for its own until then.
    pub(crate) believed_until: Option<Micros>,
    /// It said that it is done with it: no late answer makes it believe again.
    released: bool,
}

/// One try of a claimant.
#[derive(Debug, Clone)]
pub(crate) struct ClaimCall {
    number: u64,
    coordinator: usize,
    pid: Pid,
    what: Wanted,
    ttl: Duration,
    asked_at: Micros,
    tries: u32,
}

#[derive(Debug, Clone)]
enum Wanted {
    Claim {
        purpose: ClaimPurpose,
        numbers: BTreeSet<u64>,
    },
    Renew(u64),
    Release(u64),
}

/// What a coordinator says to it, in one of its lifetimes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ClaimAnswer {
    epoch: u64,
    /// Of what was granted, or renewed: the claimant holds something under it.
    token: Option<u64>,
}

impl Claims {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            random: Random::of(seed, 9),
            granted: Vec::new(),
            open: BTreeSet::new(),
            calls: 0,
        }
    }

    fn grant(&mut self, coordinator: usize, epoch: u64, token: u64) -> Option<&mut Grant> {
        let of = |grant: &&mut Grant| {
            (grant.coordinator, grant.epoch, grant.token) == (coordinator, epoch, token)
        };
        self.granted.iter_mut().find(of)
    }
}

impl Grant {
    /// Its claimant takes it for its own.
    pub(crate) fn is_believed(&self, now: Micros) -> bool {
        self.believed_until.is_some_and(|until| until > now)
    }
}

impl World {
    /// Somebody claims, renews or releases something somewhere; and when the next one does.
    pub(super) fn claim(&mut self) {
        if self.is_quiet() {
            return;
        }
        let wait = self.claims.random.below(PACE);
        self.queue.at(self.now + wait, Event::Claim);
        let (now, random) = (self.now, &mut self.claims.random);
        let coordinator = random.below(self.coordinators.len() as u64) as usize;
        let pid = random.below(self.processes.len().max(1) as u64) as usize;
        let first = random.below(self.conditions.hashes);
        let count = random.within(1, MOST_BLOCKS);
        let ttl = Duration::from_millis(random.within(100, LONGEST_MS));
        let (what, which) = (random.below(10), random.below(64));
        let purpose = match random.below(3) {
            0 => ClaimPurpose::Store,
            _ => ClaimPurpose::Produce,
        };
        let tenant = match self.conditions.tenants {
            1 => 0,
            more => random.below(more as u64) as usize,
        };
        let asker = self.processes.get(pid).and_then(Option::as_ref);
        if asker.is_none_or(|process| process.paused_until > now) {
            return;
        }
        let mine = |grant: &&mut Grant| {
            (grant.coordinator, grant.pid) == (coordinator, pid) && grant.is_believed(now)
        };
        let mut mine = self.claims.granted.iter_mut().filter(mine);
        let (what, ttl) = match (what, mine.nth(which as usize % 4)) {
            (0, Some(grant)) => {
                // From the moment on in which it says so, whoever hears it.
                (grant.believed_until, grant.released) = (None, true);
                (Wanted::Release(grant.token), grant.ttl)
            }
            (1 | 2, Some(grant)) => (Wanted::Renew(grant.token), grant.ttl),
            _ => {
                let hashes = (first..first + count).map(|hash| hash % self.conditions.hashes);
                let numbers = hashes.map(|hash| number(tenant, hash)).collect();
                (Wanted::Claim { purpose, numbers }, ttl)
            }
        };
        self.ask_claim(ClaimCall {
            number: 0,
            coordinator,
            pid,
            what,
            ttl,
            asked_at: 0,
            tries: 0,
        });
    }

    /// A call, or the same once more.
    fn ask_claim(&mut self, call: ClaimCall) {
        self.stats.claim_calls += 1;
        self.claims.calls += 1;
        let call = ClaimCall {
            number: self.claims.calls,
            asked_at: self.now,
            tries: call.tries + 1,
            ..call
        };
        self.claims.open.insert(call.number);
        for _ in 0..self.claims_copies() {
            let arrives = Event::ClaimCall(Box::new(call.clone()));
            let way = self.claims_way();
            self.queue.at(self.now + way, arrives);
        }
        let pid = call.pid;
        self.later(pid, CALL_BOUND, Act::ClaimUnanswered(Box::new(call)));
    }

    fn claims_copies(&mut self) -> usize {
        let (quiet, random) = (self.is_quiet(), &mut self.claims.random);
        let lost = random.permille(self.conditions.loss);
        let twice = random.permille(self.conditions.duplicates);
        match (quiet, lost, twice) {
            (false, true, _) => 0,
            (false, false, true) => 2,
            _ => 1,
        }
    }

    fn claims_way(&mut self) -> Micros {
        let (low, high) = self.conditions.delay;
        // Now and then one is overtaken by much.
        let far = match self.claims.random.permille(30) {
            true => 10,
            false => 1,
        };
        self.claims.random.within(low, high * far)
    }

    /// It arrives, and is answered.
    pub(super) fn claim_call(&mut self, call: ClaimCall) {
        let Some(&(node, _)) = self.identities.get(call.pid) else {
            return;
        };
        let coordinator = call.coordinator;
        let paused = self.coordinators[coordinator].paused_until;
        let paused = (paused > self.now).then_some(paused);
        let cut = self.blocked_either(node, self.end_of(coordinator));
        if let Some(until) = cut.max(paused) {
            return self.queue.at(until, Event::ClaimCall(Box::new(call)));
        }
        let Some(token) = self.answer_claim(&call) else {
            return;
        };
        let epoch = self.coordinators[coordinator].epoch;
        for _ in 0..self.claims_copies() {
            let way = self.claims_way();
            let answer = ClaimAnswer { epoch, token };
            let answered = Act::ClaimAnswered(Box::new(call.clone()), answer);
            self.later(call.pid, way, answered);
        }
    }

    /// None: nobody listens. Else the token under which something is held.
    fn answer_claim(&mut self, call: &ClaimCall) -> Option<Option<u64>> {
        let (now, coordinator) = (self.now, call.coordinator);
        let here = &self.coordinators[coordinator];
        let (epoch, local) = (here.epoch, here.local(now));
        let directory = here.directory.as_ref()?;
        self.claims.granted.retain(|grant| {
            grant.coordinator != coordinator || grant.expires > local || grant.is_believed(now)
        });
        match &call.what {
            Wanted::Release(token) => {
                directory.release_claims(local, *token, None);
                self.claims.granted.retain(|grant| {
                    (grant.coordinator, grant.epoch, grant.token) != (coordinator, epoch, *token)
                });
                Some(None)
            }
            Wanted::Renew(token) => {
                let held = directory.renew_claims(local, *token, call.ttl);
                if let Some(grant) = self.claims.grant(coordinator, epoch, *token) {
                    // Where nothing was held any more, nothing was renewed.
                    grant.expires = match held {
                        0 => local,
                        _ => grant.expires.max(local + call.ttl),
                    };
                    let fulfilled = grant.numbers.is_subset(&grant.maybe_fulfilled);
                    if held == 0 && fulfilled {
                        // Its own node has published all of it. An answer to the same question, asked before that and on
                        // its way, is no wrong word: what is stored is nobody's.
                        let ended = |grant: &Grant| {
                            (grant.coordinator, grant.epoch, grant.token)
                                == (coordinator, epoch, *token)
                        };
                        self.claims.granted.retain(|grant| !ended(grant));
                    }
                }
                Some((held > 0).then_some(*token))
            }
            Wanted::Claim { purpose, numbers } => self.answer_claimant(call, *purpose, numbers),
        }
    }

    fn answer_claimant(
        &mut self,
        call: &ClaimCall,
        purpose: ClaimPurpose,
        numbers: &BTreeSet<u64>,
    ) -> Option<Option<u64>> {
        let (coordinator, (node, incarnation)) =
            (call.coordinator, *self.identities.get(call.pid)?);
        let here = &self.coordinators[coordinator];
        let (epoch, local) = (here.epoch, here.local(self.now));
        let directory = here.directory.as_ref()?;
        let numbers: Vec<u64> = numbers.iter().copied().collect();
        let namespace = namespace_of(*numbers.first()?);
        let query = ClaimQuery {
            namespace: &self.conditions.spec(namespace).name,
            hashes: &self.conditions.names.pack(namespace, &numbers),
            node: &self.nodes[node].name,
            incarnation,
            purpose,
            ttl: call.ttl,
        };
        // Its session may not be there, or it may have been fenced.
        let Ok(claimed) = directory.claim(local, &query) else {
            return Some(None);
        };
        let broken =
            claims_are_exclusive::check(self, coordinator, local, purpose, &numbers, &claimed);
        let own = numbers.iter().zip(&claimed.outcomes);
        let own = own.filter(|(_, outcome)| **outcome == ClaimOutcome::Granted);
        let numbers: BTreeSet<_> = own.map(|(number, _)| *number).collect();
        self.stats.claims += numbers.len() as u64;
        if let Some(token) = claimed.token {
            self.claims.granted.push(Grant {
                coordinator,
                epoch,
                pid: call.pid,
                token,
                purpose,
                ttl: call.ttl,
                expires: local + call.ttl,
                numbers,
                maybe_fulfilled: BTreeSet::new(),
                believed_until: None,
                released: false,
            });
        }
        self.check(broken);
        Some(claimed.token)
    }

    /// The claimant is answered. It counts its lease from when it asked: what was granted was granted later.
    pub(super) fn claim_answered(&mut self, call: &ClaimCall, answer: ClaimAnswer) {
        // An answer that comes twice, or when it was given up, tells nothing.
        if !self.claims.open.remove(&call.number) {
            return;
        }
        let from = match self.sabotaged(Shell::LeaseFromAnswer) {
            true => self.now,
            false => call.asked_at,
        };
        let until = from + call.ttl.as_micros() as u64;
        match answer.token {
            Some(token) => self.believe(call.coordinator, answer.epoch, token, until),
            None => {
                // What could not be renewed is over.
                if let Wanted::Renew(token) = call.what
                    && let Some(grant) = self.claims.grant(call.coordinator, answer.epoch, token)
                {
                    grant.believed_until = None;
                }
            }
        }
    }

    fn believe(&mut self, coordinator: usize, epoch: u64, token: u64, until: Micros) {
        let now = self.now;
        // It may have ended with its node, its namespace or its coordinator meanwhile: as every claim does.
        let grant = self.claims.grant(coordinator, epoch, token);
        let Some(grant) = grant.filter(|grant| !grant.released) else {
            return;
        };
        grant.believed_until = grant.believed_until.max(Some(until));
        let grant = grant.clone();
        if grant.is_believed(now) && self.coordinators[coordinator].epoch == epoch {
            let broken = claims_are_exclusive::believed(self, &grant);
            self.check(broken);
        }
    }

    /// No answer came: it is not known what happened. It asks again, in the same words.
    pub(super) fn claim_unanswered(&mut self, process: &Process, call: ClaimCall) {
        if !self.claims.open.remove(&call.number) {
            return;
        }
        self.stats.claims_unanswered += 1;
        if let Wanted::Renew(token) = call.what
            && self.sabotaged(Shell::RenewalAssumed)
        {
            let epoch = self.coordinators[call.coordinator].epoch;
            let until = call.asked_at + call.ttl.as_micros() as u64;
            self.believe(call.coordinator, epoch, token, until);
        }
        if call.tries < TRIES && !process.leaving && !self.is_quiet() {
            self.ask_claim(call);
        }
    }

    /// A coordinator forgets a node: what it had claimed there is free.
    pub(super) fn claims_end(&mut self, coordinator: usize, name: &NodeId, lifetime: Incarnation) {
        let identities = &self.identities;
        let nodes = &self.nodes;
        self.claims.granted.retain(|grant| {
            let of_it = identities
                .get(grant.pid)
                .is_some_and(|(node, incarnation)| {
                    nodes[*node].name == *name && *incarnation == lifetime
                });
            grant.coordinator != coordinator || !of_it
        });
    }

    /// It deletes a namespace: so are the claims to its blocks.
    pub(super) fn claims_deleted(&mut self, coordinator: usize, namespace: usize) {
        self.claims.granted.retain(|grant| {
            let mut numbers = grant.numbers.iter();
            let of_it = numbers.any(|number| namespace_of(*number) == namespace);
            grant.coordinator != coordinator || !of_it
        });
    }

    /// A coordinator hears what a process holds.
    pub(super) fn claims_hear(&mut self, coordinator: usize, pid: Pid, event: &DirectoryEvent) {
        let here = |grant: &Grant| {
            (grant.coordinator, grant.pid) == (coordinator, pid)
                && grant.purpose == ClaimPurpose::Produce
        };
        if !self.claims.granted.iter().any(here) {
            return;
        }
        let namespaces = self.regions_of(pid);
        let added: Vec<_> = match event {
            DirectoryEvent::Delta { delta, .. } => {
                let changes = delta.changes.iter();
                changes.map(|c| (c.region, &c.added)).collect()
            }
            DirectoryEvent::Inventory { part, .. } => {
                part.sealed.iter().map(|s| (s.0, &s.1)).collect()
            }
            _ => return,
        };
        let names = &self.conditions.names;
        let numbers = added.iter().flat_map(|(region, sealed)| {
            let hashes = sealed.hashes.as_ref().map(PackedHashes::to_hashes);
            // Of a region that is gone by now: of any namespace.
            let of = namespaces.get(region).copied();
            hashes.into_iter().flatten().flat_map(move |hash| {
                let of = of.map_or(0..names.count(), |one| one..one + 1);
                of.filter_map(move |namespace| names.number(namespace, hash.as_bytes()))
            })
        });
        let numbers: BTreeSet<u64> = numbers.collect();
        for grant in self.claims.granted.iter_mut().filter(|grant| here(grant)) {
            let both = grant.numbers.intersection(&numbers);
            grant.maybe_fulfilled.extend(both.copied());
        }
    }

    /// The namespaces of a process's regions.
    fn regions_of(&self, pid: Pid) -> BTreeMap<RegionId, usize> {
        let process = self.processes.get(pid).and_then(Option::as_ref);
        let stats = process.map(|process| process.store.stats());
        let regions = stats.into_iter().flat_map(|stats| stats.regions);
        let names = &self.conditions.names;
        let known = regions.filter_map(|stats| {
            let namespace = names.namespace(&stats.region.namespace.name)?;
            Some((stats.region.id, namespace))
        });
        known.collect()
    }
}
