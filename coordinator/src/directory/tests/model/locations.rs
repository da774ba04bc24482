//! Locations in the model: a map that is searched from end to end for what to forget.

use std::{collections::BTreeMap, time::Duration};

use kvferry_proto::{Labels, Location};
use proptest::{collection::vec, option, prelude::*};

use super::{HASHES, LIMITS, NAMESPACES, SLOTS, simple::Model};
use crate::directory::{
    Directory, LocateMode, LocateQuery, NamespacePolicy, PutLocations,
    tests::{at, hash, namespace, packed},
};

const PLACES: [&str; 2] = ["s3://a", "fs:/b"];

/// Of one directory.
#[derive(Debug, Clone, Default)]
pub(super) struct Locations {
    /// By namespace and hash.
    rows: BTreeMap<(usize, u64), Row>,
    policies: BTreeMap<usize, Policy>,
    uses: u64,
}

#[derive(Debug, Clone)]
struct Row {
    place: usize,
    used: u64,
    born: u64,
    /// Hash and birth.
    parent: Option<(u64, u64)>,
    expires: Option<Duration>,
}

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Policy {
    ttl_ms: Option<u64>,
    most: Option<u64>,
    pub(super) copies: Option<u32>,
    pub(super) slots: Option<u64>,
}

#[derive(Debug, Clone)]
pub(super) enum Operation {
    Put {
        namespace: usize,
        hashes: Vec<u64>,
        place: usize,
        chain: Option<Option<u64>>,
        /// Of the leases there are.
        lease: Option<usize>,
    },
    Remove {
        namespace: usize,
        hashes: Vec<u64>,
        place: Option<usize>,
    },
    Find {
        namespace: usize,
        hashes: Vec<u64>,
        /// By Locate.
        located: bool,
    },
    Policy {
        namespace: usize,
        policy: Policy,
    },
}

pub(super) fn operation() -> impl Strategy<Value = Operation> {
    let hashes = || vec(0..HASHES, 0..4);
    let chain = option::of(option::of(0..HASHES));
    let lease = option::weighted(0.3, 0..2usize);
    let put = (0..2usize, hashes(), 0..2usize, chain, lease).prop_map(
        |(namespace, hashes, place, chain, lease)| Operation::Put {
            namespace,
            hashes,
            place,
            chain,
            lease,
        },
    );
    let remove =
        (0..2usize, hashes(), option::of(0..2usize)).prop_map(|(namespace, hashes, place)| {
            Operation::Remove {
                namespace,
                hashes,
                place,
            }
        });
    let find = (0..2usize, hashes(), any::<bool>()).prop_map(|(namespace, hashes, located)| {
        Operation::Find {
            namespace,
            hashes,
            located,
        }
    });
    let copies = option::weighted(0.5, 1..3u32);
    let policy = (
        option::of(1..20_000u64),
        option::weighted(0.4, 0..5u64),
        copies,
        option::weighted(0.2, 0..4 * u64::from(SLOTS)),
    );
    let policy = policy.prop_map(|(ttl_ms, most, copies, slots)| Policy {
        ttl_ms,
        most,
        copies,
        slots,
    });
    let policy =
        (0..2usize, policy).prop_map(|(namespace, policy)| Operation::Policy { namespace, policy });
    prop_oneof![6 => put, 1 => remove, 2 => find, 2 => policy]
}

pub(super) fn run(directory: &mut Directory, model: &mut Model, operation: &Operation) {
    match operation {
        Operation::Put {
            namespace: space,
            hashes,
            place,
            chain,
            lease,
        } => {
            let now = model.now;
            model.expire_leases();
            let token = lease.and_then(|lease| model.token(lease));
            let put = PutLocations {
                namespace: &namespace(NAMESPACES[*space]),
                hashes: &packed(hashes),
                location: &Location::new(PLACES[*place]).unwrap(),
                chain: chain.map(|parent| parent.map(hash)),
                token,
            };
            let told = directory.put_locations(now, &put);
            let Ok(told) = told else {
                return assert!(!model.namespaces.contains_key(space));
            };
            let before = model.locations.rows.len() as u64;
            let (added, evicted) = model.put(*space, hashes, *place, *chain);
            assert_eq!((told.added, told.evicted), (added, evicted));
            assert_eq!(model.locations.rows.len() as u64, before + added - evicted);
            if let Some(token) = token {
                model.release(token, *space, hashes);
            }
        }
        Operation::Remove {
            namespace: space,
            hashes,
            place,
        } => {
            let location = place.map(|place| Location::new(PLACES[place]).unwrap());
            let name = namespace(NAMESPACES[*space]);
            let told = directory.remove_locations(&name, &packed(hashes), location.as_ref());
            let Ok(told) = told else {
                return assert!(!model.namespaces.contains_key(space));
            };
            let before = model.locations.rows.len();
            model.locations.rows.retain(|(other, hash), row| {
                let named = other == space && hashes.contains(hash);
                !named || place.is_some_and(|place| row.place != place)
            });
            assert_eq!(told, (before - model.locations.rows.len()) as u64);
        }
        Operation::Find {
            namespace: space,
            hashes,
            located,
        } => match located {
            true => locate(directory, model, *space, hashes),
            false => find(directory, model, *space, hashes),
        },
        Operation::Policy {
            namespace: space,
            policy,
        } => {
            let wish = NamespacePolicy {
                location_ttl: policy.ttl_ms.map(at),
                max_locations: policy.most,
                max_location_bytes: None,
                copies_wanted: policy.copies,
                max_slots: policy.slots,
                max_slot_bytes: None,
            };
            let name = namespace(NAMESPACES[*space]);
            let told = directory.set_policy(&name, wish);
            assert_eq!(told.is_ok(), model.namespaces.contains_key(space));
            if let Ok(effects) = told {
                let before = model.locations.policies.insert(*space, *policy);
                let before = before.unwrap_or_default().slots.unwrap_or(u64::MAX);
                let raised = policy.slots.unwrap_or(u64::MAX) > before;
                assert_eq!(effects.len(), model.hear_refused_again(raised));
            }
        }
    }
}

fn find(directory: &Directory, model: &mut Model, space: usize, hashes: &[u64]) {
    let found = directory.find_locations(&namespace(NAMESPACES[space]), &packed(hashes));
    let Ok(found) = found else {
        return assert!(!model.namespaces.contains_key(&space));
    };
    for (hash, row) in hashes.iter().zip(&found.rows) {
        let told = row.map(|row| found.locations[row as usize].as_str());
        assert_eq!(told, model.locations.find(space, *hash));
    }
    for hash in hashes {
        model.locations.touch(space, *hash);
    }
}

fn locate(directory: &Directory, model: &mut Model, space: usize, hashes: &[u64]) {
    let unswept = directory.sweep_is_due();
    let located = directory.locate(&LocateQuery {
        draw: 0,
        namespace: &namespace(NAMESPACES[space]),
        hashes: &packed(hashes),
        mode: LocateMode::Set,
        max_candidates: 1,
        host_id: "",
        prefer: &Labels::default(),
        exclude: None,
        locations: true,
    });
    let Ok(located) = located else {
        return assert!(!model.namespaces.contains_key(&space));
    };
    let named = |block: usize| {
        let at = (located.location_blocks.iter()).position(|other| *other as usize == block)?;
        Some(located.locations[located.location_index[at] as usize].as_str())
    };
    for (block, hash) in hashes.iter().enumerate() {
        let offered = located.counts[block] > 0;
        assert!(offered == model.offered(space, *hash) || (offered && unswept));
        let want = model.locations.find(space, *hash).filter(|_| !offered);
        assert_eq!(named(block), want);
        if !offered {
            model.locations.touch(space, *hash);
        }
    }
}

/// What a tick's tidying does, in whatever slices.
pub(super) fn tidy(directory: &Directory, model: &mut Model) {
    // What an inventory did not name is offered until it is swept out.
    let unswept = directory.sweep_is_due();
    while directory.tidy(model.now, 1) {}
    assert!(!directory.tidy_is_due(model.now));
    let now = model.now;
    let rows = model.locations.rows.clone();
    for ((space, hash), row) in rows {
        if row.expires.is_none_or(|expires| expires > now) {
            continue;
        }
        let ttl = model.locations.policy(space).ttl_ms;
        let offered = model.offered(space, hash) || (unswept && known(directory, space, hash));
        match ttl.filter(|_| offered) {
            Some(ttl) => {
                let row = model.locations.rows.get_mut(&(space, hash)).unwrap();
                row.expires = Some(now + at(ttl));
            }
            None => {
                model.locations.rows.remove(&(space, hash));
            }
        }
    }
    for space in 0..NAMESPACES.len() {
        model.locations.keep_quota(space);
    }
}

fn known(directory: &Directory, space: usize, number: u64) -> bool {
    let namespace = directory.catalog.namespace(&namespace(NAMESPACES[space]));
    let table = namespace.unwrap().locations.lock();
    table.get(hash(number).as_bytes()).is_some()
}

/// Both know the same locations.
pub(super) fn compare(directory: &Directory, model: &Model) {
    assert_eq!(directory.locations(), model.locations.rows.len() as u64);
    assert!(directory.locations() <= LIMITS.locations);
    for (index, name) in NAMESPACES.iter().enumerate() {
        let Some(known) = directory.catalog.namespace(&namespace(name)) else {
            continue;
        };
        let table = known.locations.lock();
        for number in 0..HASHES {
            let told = table.get(hash(number).as_bytes()).map(|(_, place)| place);
            assert_eq!(told, model.locations.find(index, number));
        }
        assert!(
            table.len() > 0 || table.nothing_is_left(),
            "something is left"
        );
    }
}

impl Locations {
    pub(super) fn policy(&self, space: usize) -> Policy {
        self.policies.get(&space).copied().unwrap_or_default()
    }

    pub(super) fn find(&self, space: usize, hash: u64) -> Option<&'static str> {
        self.rows.get(&(space, hash)).map(|row| PLACES[row.place])
    }

    fn touch(&mut self, space: usize, hash: u64) {
        self.uses += 1;
        if let Some(row) = self.rows.get_mut(&(space, hash)) {
            row.used = self.uses;
        }
    }

    /// The least recently used row that is nobody's parent.
    fn victim(&self, only: Option<usize>) -> Option<(usize, u64)> {
        let rows = self.rows.iter();
        let rows = rows.filter(|((space, _), _)| only.is_none_or(|only| only == *space));
        let leaves = rows.filter(|((space, hash), row)| {
            let child = |((other, _), child): (&(usize, u64), &Row)| {
                other == space && child.parent == Some((*hash, row.born))
            };
            !self.rows.iter().any(child)
        });
        let coldest = leaves.min_by_key(|(_, row)| row.used);
        coldest.map(|(key, _)| *key)
    }

    fn count(&self, space: usize) -> u64 {
        self.rows.keys().filter(|key| key.0 == space).count() as u64
    }

    fn keep_quota(&mut self, space: usize) -> u64 {
        let most = self.policy(space).most.unwrap_or(u64::MAX);
        let mut evicted = 0;
        while self.count(space) > most
            && let Some(victim) = self.victim(Some(space))
        {
            self.rows.remove(&victim);
            evicted += 1;
        }
        evicted
    }
}

impl Model {
    fn put(
        &mut self,
        space: usize,
        hashes: &[u64],
        place: usize,
        chain: Option<Option<u64>>,
    ) -> (u64, u64) {
        let (mut added, mut evicted) = (0, 0);
        let ttl = self.locations.policy(space).ttl_ms;
        let expires = ttl.map(|ttl| self.now + at(ttl));
        let mut before = chain.flatten();
        for hash in hashes {
            let known = &mut self.locations;
            known.uses += 1;
            let used = known.uses;
            let parent = before.and_then(|before| {
                let row = known.rows.get(&(space, before))?;
                Some((before, row.born))
            });
            match known.rows.get_mut(&(space, *hash)) {
                Some(row) => {
                    (row.place, row.used, row.expires) = (place, used, expires);
                }
                None => {
                    let row = Row {
                        place,
                        used,
                        born: used,
                        parent,
                        expires,
                    };
                    known.rows.insert((space, *hash), row);
                    added += 1;
                }
            }
            before = chain.is_some().then_some(*hash);
            evicted += known.keep_quota(space);
        }
        while self.locations.rows.len() as u64 > LIMITS.locations
            && let Some(victim) = self.locations.victim(None)
        {
            self.locations.rows.remove(&victim);
            evicted += 1;
        }
        (added, evicted)
    }

    /// What goes with a namespace.
    pub(super) fn end_locations(&mut self) {
        let namespaces = &self.namespaces;
        let known = &mut self.locations;
        known
            .rows
            .retain(|(space, _), _| namespaces.contains_key(space));
        known
            .policies
            .retain(|space, _| namespaces.contains_key(space));
    }
}
