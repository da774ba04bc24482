//! Engines claim blocks at coordinators, and the books of who was granted what. The claims have
//! randomness of their own: whatever else happens in a world happens without them, too.

use std::{collections::BTreeSet, time::Duration};

use kvferry_coordinator::directory::{
    ClaimOutcome, ClaimPurpose, ClaimQuery, Event as DirectoryEvent,
};
use kvferry_proto::{BlockHash, Incarnation, NodeId, PackedHashes};

use super::{Event, Pid, World};
use crate::{history::block_hash, invariants::claims_are_exclusive, queue::MS, random::Random};

/// Between two claims in a world, on average half of it.
const PACE: u64 = 60 * MS;
/// Most blocks one asks for, and the longest lease.
const MOST_BLOCKS: u64 = 4;
const LONGEST_MS: u64 = 4_000;

/// The books.
#[derive(Debug)]
pub(crate) struct Claims {
    random: Random,
    pub(crate) granted: Vec<Grant>,
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
    /// As the coordinator counts time.
    pub(crate) expires: Duration,
    pub(crate) hashes: BTreeSet<BlockHash>,
    /// Of these its node said meanwhile that it holds them, and may have been heard.
    pub(crate) maybe_fulfilled: BTreeSet<BlockHash>,
}

impl Claims {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            random: Random::of(seed, 9),
            granted: Vec::new(),
        }
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
        let random = &mut self.claims.random;
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
        let Some(process) = self.processes.get(pid).and_then(Option::as_ref) else {
            return;
        };
        let (name, incarnation) = (process.name.clone(), process.incarnation);
        let here = &self.coordinators[coordinator];
        let (epoch, local) = (here.epoch, here.local(self.now));
        let awake = here.paused_until <= self.now && process.paused_until <= self.now;
        let Some(directory) = here.directory.as_ref().filter(|_| awake) else {
            return;
        };
        let granted = &mut self.claims.granted;
        granted.retain(|grant| grant.coordinator != coordinator || grant.expires > local);
        let mut mine = granted.iter_mut().filter(|grant| {
            (grant.coordinator, grant.epoch, grant.pid) == (coordinator, epoch, pid)
        });
        let old = mine.nth(which as usize % 4).map(|grant| grant.token);
        match (what, old) {
            (0, Some(token)) => {
                directory.release_claims(local, token, None);
                granted.retain(|grant| (grant.coordinator, grant.token) != (coordinator, token));
            }
            (1, Some(token)) => {
                let held = directory.renew_claims(local, token, ttl);
                let same =
                    |grant: &&mut Grant| (grant.coordinator, grant.token) == (coordinator, token);
                for grant in granted.iter_mut().filter(same) {
                    // Where nothing was held any more, nothing was renewed.
                    grant.expires = if held > 0 { local + ttl } else { local };
                }
            }
            _ => {
                let numbers = (first..first + count).map(|n| n % self.conditions.hashes);
                let hashes: BTreeSet<BlockHash> = numbers.map(block_hash).collect();
                let hashes: Vec<BlockHash> = hashes.into_iter().collect();
                let Ok(packed) = PackedHashes::pack(self.conditions.spec.hash_len, &hashes) else {
                    unreachable!("hashes of the namespace's length");
                };
                let query = ClaimQuery {
                    namespace: &self.conditions.spec.name,
                    hashes: &packed,
                    node: &name,
                    incarnation,
                    purpose,
                    ttl,
                };
                // Its session may not be there, or it may have been fenced.
                let Ok(claimed) = directory.claim(local, &query) else {
                    return;
                };
                let broken = claims_are_exclusive::check(
                    self,
                    coordinator,
                    local,
                    purpose,
                    &hashes,
                    &claimed,
                );
                let own = hashes.iter().zip(&claimed.outcomes);
                let own = own.filter(|(_, outcome)| **outcome == ClaimOutcome::Granted);
                let hashes: BTreeSet<_> = own.map(|(hash, _)| *hash).collect();
                self.stats.claims += hashes.len() as u64;
                if let Some(token) = claimed.token {
                    self.claims.granted.push(Grant {
                        coordinator,
                        epoch,
                        pid,
                        token,
                        purpose,
                        expires: local + ttl,
                        hashes,
                        maybe_fulfilled: BTreeSet::new(),
                    });
                }
                self.check(broken);
            }
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

    /// A coordinator hears what a process holds.
    pub(super) fn claims_hear(&mut self, coordinator: usize, pid: Pid, event: &DirectoryEvent) {
        let here = |grant: &Grant| {
            (grant.coordinator, grant.pid) == (coordinator, pid)
                && grant.purpose == ClaimPurpose::Produce
        };
        if !self.claims.granted.iter().any(here) {
            return;
        }
        let added: Vec<_> = match event {
            DirectoryEvent::Delta { delta, .. } => delta.changes.iter().map(|c| &c.added).collect(),
            DirectoryEvent::Inventory { part, .. } => part.sealed.iter().map(|s| &s.1).collect(),
            _ => return,
        };
        let hashes = added.iter().filter_map(|sealed| sealed.hashes.as_ref());
        let hashes: BTreeSet<BlockHash> = hashes.flat_map(PackedHashes::to_hashes).collect();
        for grant in self.claims.granted.iter_mut().filter(|grant| here(grant)) {
            let both = grant.hashes.intersection(&hashes);
            grant.maybe_fulfilled.extend(both.copied());
        }
    }
}
