//! Engines that offload: they say where blocks lie in shared storage, take it back, and ask. Calls are lost, repeated
//! and overtake each other on their way. The books are kept as coordinators take calls in. They have randomness of
//! their own: a world is the same without them.

use std::{collections::BTreeMap, time::Duration};

use kvferry_coordinator::directory::{ClaimPurpose, LocationEnd, PutLocations};
use kvferry_proto::Location;

use super::{Event, World, claims::Grant};
use crate::{
    invariants::locations_stay,
    names::{namespace_of, number},
    queue::{MS, Micros},
    random::Random,
};

/// Between two calls in a world, on average half of it.
const PACE: Micros = 80 * MS;
/// Most blocks of a call.
const MOST_BLOCKS: u64 = 4;
/// Places there are.
const PLACES: u64 = 4;

/// What an engine says or asks.
#[derive(Debug, Clone, Copy)]
pub(crate) enum StorageCall {
    Put {
        place: u64,
        chained: bool,
        token: Option<u64>,
    },
    Remove {
        place: Option<u64>,
    },
    Find,
}

/// The books.
#[derive(Debug)]
pub(crate) struct Storage {
    random: Random,
    /// By coordinator.
    pub(crate) books: Vec<Book>,
}

/// What one lifetime of a coordinator was told.
#[derive(Debug, Default)]
pub(crate) struct Book {
    pub(crate) rows: BTreeMap<u64, Row>,
    /// Rows that were found to be gone, though their time was not over.
    pub(crate) lost: u64,
    /// It knows what is wanted of each tenant's namespace.
    pub(crate) policy_set: [bool; 2],
}

/// Where a block was last said to lie.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row {
    pub(crate) place: u64,
    /// On the coordinator's clock.
    pub(crate) until: Option<Duration>,
}

impl Storage {
    pub(super) fn new(seed: u64, coordinators: usize) -> Self {
        Self {
            random: Random::of(seed, 13),
            books: (0..coordinators).map(|_| Book::default()).collect(),
        }
    }

    /// A namespace was deleted, with every location and what was wanted of it.
    pub(super) fn deleted(&mut self, coordinator: usize, namespace: usize) {
        let book = &mut self.books[coordinator];
        book.rows
            .retain(|number, _| namespace_of(*number) != namespace);
        if let Some(set) = book.policy_set.get_mut(namespace) {
            *set = false;
        }
    }
}

impl World {
    /// Somebody calls somewhere; and when the next one does.
    pub(super) fn storage(&mut self) {
        if self.is_quiet() {
            return;
        }
        let wait = self.storage.random.below(PACE);
        self.queue.at(self.now + wait, Event::Storage);
        let (low, high) = self.conditions.delay;
        let random = &mut self.storage.random;
        let coordinator = random.below(self.coordinators.len() as u64) as usize;
        let first = random.below(self.conditions.hashes);
        let count = random.within(1, MOST_BLOCKS);
        let place = random.below(PLACES);
        let call = match random.below(20) {
            0..11 => StorageCall::Put {
                place,
                chained: random.permille(500),
                token: None,
            },
            11..14 => StorageCall::Remove {
                place: Some(place).filter(|_| random.permille(500)),
            },
            _ => StorageCall::Find,
        };
        let tenant = match self.conditions.tenants {
            1 => 0,
            more => random.below(more as u64) as usize,
        };
        let hashes = (first..first + count).map(|hash| hash % self.conditions.hashes);
        let mut blocks: Vec<u64> = hashes.map(|hash| number(tenant, hash)).collect();
        let mut call = call;
        if let StorageCall::Put { token, .. } = &mut call
            && random.permille(300)
        {
            // What was claimed to be stored is stored, and its claim is done with.
            let now = self.now;
            let mut grants = self.claims.granted.iter();
            let grant = grants.find(|grant| {
                (grant.coordinator, grant.purpose) == (coordinator, ClaimPurpose::Store)
                    && grant.is_believed(now)
            });
            if let Some((grant, number)) = grant.and_then(|g| Some((g, g.numbers.first()?))) {
                blocks = vec![*number];
                *token = Some(grant.token);
            }
        }
        let copies = match (
            random.permille(self.conditions.loss),
            random.permille(self.conditions.duplicates),
        ) {
            (true, _) => 0,
            (false, true) => 2,
            (false, false) => 1,
        };
        for _ in 0..copies {
            let way = self.storage.random.within(low, high);
            let arrives = Event::StorageCall {
                coordinator,
                blocks: blocks.clone(),
                call,
            };
            self.queue.at(self.now + way, arrives);
        }
    }

    /// A call arrives. Where nobody listens, nothing was answered.
    pub(super) fn storage_call(&mut self, coordinator: usize, blocks: Vec<u64>, call: StorageCall) {
        let here = &self.coordinators[coordinator];
        if here.paused_until > self.now {
            let again = Event::StorageCall {
                coordinator,
                blocks,
                call,
            };
            return self.queue.at(here.paused_until, again);
        }
        let local = here.local(self.now);
        let Some(directory) = &here.directory else {
            return;
        };
        let numbers = blocks;
        let tenant = numbers.first().map_or(0, |number| namespace_of(*number));
        let namespace = &self.conditions.spec(tenant).name;
        let hashes = self.conditions.names.pack(tenant, &numbers);
        let book = &mut self.storage.books[coordinator];
        match call {
            StorageCall::Put {
                place,
                chained,
                token,
            } => {
                let put = PutLocations {
                    namespace,
                    hashes: &hashes,
                    location: &location(place),
                    chain: chained.then_some(None),
                    token,
                };
                // Nobody has declared the namespace yet.
                if directory.put_locations(local, &put).is_err() {
                    return;
                }
                self.stats.locations_put += numbers.len() as u64;
                let of_it = |grant: &&mut Grant| {
                    grant.coordinator == coordinator && Some(grant.token) == token
                };
                for grant in self.claims.granted.iter_mut().filter(of_it) {
                    grant.maybe_fulfilled.extend(&numbers);
                }
                let ttl = self.wishes.policies[tenant].location_ttl;
                let ttl = ttl.filter(|_| book.policy_set[tenant]);
                let until = ttl.map(|ttl| local + ttl);
                for number in numbers {
                    book.rows.insert(number, Row { place, until });
                }
            }
            StorageCall::Remove { place } => {
                let at = place.map(location);
                if directory
                    .remove_locations(namespace, &hashes, at.as_ref())
                    .is_err()
                {
                    return;
                }
                for number in numbers {
                    let row = book.rows.get(&number).copied();
                    if row.is_some_and(|row| place.is_none_or(|place| place == row.place)) {
                        book.rows.remove(&number);
                    }
                }
            }
            StorageCall::Find => {
                let Ok(found) = directory.find_locations(namespace, &hashes) else {
                    return;
                };
                self.stats.locations_asked += numbers.len() as u64;
                let counts = directory.counts();
                let evicted = counts.locations_ended.of(LocationEnd::Quota).get()
                    + counts.locations_ended.of(LocationEnd::Bound).get();
                let mut broken = None;
                for (number, row) in numbers.iter().zip(&found.rows) {
                    let at = row.and_then(|row| found.locations.get(row as usize));
                    let wrong = locations_stay::found(
                        book,
                        local,
                        *number,
                        at.map(Location::as_str),
                        evicted,
                    );
                    broken = broken.or(wrong);
                }
                self.check(broken);
            }
        }
    }

    /// A coordinator's tick has passed: what is over is gone there, or its time has begun anew.
    pub(super) fn storage_ticks(&mut self, coordinator: usize) {
        let here = &self.coordinators[coordinator];
        let local = here.local(self.now);
        if here.directory.is_some() {
            let broken = locations_stay::after_tick(self, coordinator, local);
            self.check(broken);
        }
        // What it brings is seen after the next tick.
        self.wish_policy(coordinator);
    }

    /// An operator tells a coordinator that lost everything what is wanted of each namespace.
    fn wish_policy(&mut self, coordinator: usize) {
        let here = &mut self.coordinators[coordinator];
        let book = &mut self.storage.books[coordinator];
        let Some(directory) = &mut here.directory else {
            return;
        };
        for tenant in 0..self.conditions.tenants {
            if !book.policy_set[tenant] {
                let name = &self.conditions.spec(tenant).name;
                let policy = self.wishes.policies[tenant];
                book.policy_set[tenant] = directory.set_policy(name, policy).is_ok();
            }
        }
    }
}

pub(crate) fn location(place: u64) -> Location {
    match Location::new(&format!("s3://bucket/{place}")) {
        Ok(location) => location,
        Err(error) => unreachable!("a location: {error}"),
    }
}
