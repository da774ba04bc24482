//! Claims in the model: a map of leases, each a set of hashes.

use std::{collections::BTreeSet, time::Duration};

use proptest::{collection::vec, option, prelude::*};

use super::{
    Added, HASHES, LIMITS, NAMESPACES, NODES,
    simple::{Model, Standing},
};
use crate::directory::{
    ClaimError, ClaimOutcome, ClaimPurpose, ClaimQuery, Directory,
    tests::{at, incarnation, namespace, node, packed},
};

#[derive(Debug, Clone)]
pub(super) struct Lease {
    purpose: ClaimPurpose,
    namespace: usize,
    node: usize,
    incarnation: u64,
    expires: Duration,
    hashes: BTreeSet<u64>,
}

#[derive(Debug, Clone)]
pub(super) enum Operation {
    Claim {
        node: usize,
        incarnation_skew: i64,
        purpose: ClaimPurpose,
        namespace: usize,
        hashes: Vec<u64>,
        ttl_ms: u64,
    },
    /// `lease` of those there are.
    Renew { lease: usize, ttl_ms: u64 },
    Release {
        lease: usize,
        hashes: Option<Vec<u64>>,
    },
}

pub(super) fn operation() -> impl Strategy<Value = Operation> {
    let ttl = || prop_oneof![6 => 1_000..60_000u64, 1 => 0..2u64];
    let skew = prop_oneof![8 => Just(0i64), 1 => Just(1), 1 => Just(-1)];
    let purpose = prop_oneof![3 => Just(ClaimPurpose::Produce), 1 => Just(ClaimPurpose::Store)];
    let asker = (0..NODES.len(), skew, purpose);
    let claim = (asker, 0..2usize, vec(0..HASHES, 0..5), ttl()).prop_map(
        |((node, incarnation_skew, purpose), namespace, hashes, ttl_ms)| Operation::Claim {
            node,
            incarnation_skew,
            purpose,
            namespace,
            hashes,
            ttl_ms,
        },
    );
    let some = option::weighted(0.6, vec(0..HASHES, 1..4));
    prop_oneof![
        6 => claim,
        1 => (0..3usize, ttl()).prop_map(|(lease, ttl_ms)| Operation::Renew { lease, ttl_ms }),
        2 => (0..3usize, some).prop_map(|(lease, hashes)| Operation::Release { lease, hashes }),
    ]
}

pub(super) fn run(directory: &mut Directory, model: &mut Model, operation: &Operation) {
    let now = model.now;
    model.expire_leases();
    match operation {
        Operation::Claim {
            node,
            incarnation_skew,
            purpose,
            namespace,
            hashes,
            ttl_ms,
        } => {
            let lifetime = model.incarnation(*node, *incarnation_skew);
            let expires = now + at(*ttl_ms);
            let asker = (*node, lifetime, *purpose);
            claim(directory, model, asker, *namespace, hashes, expires);
        }
        Operation::Renew { lease, ttl_ms } => {
            let Some(token) = model.token(*lease) else {
                assert_eq!(directory.renew_claims(now, 1, at(*ttl_ms)), 0);
                return;
            };
            let known = model.leases.get_mut(&token).unwrap();
            known.expires = known.expires.max(now + at(*ttl_ms));
            let held = known.hashes.len() as u64;
            assert_eq!(directory.renew_claims(now, token, at(*ttl_ms)), held);
        }
        Operation::Release { lease, hashes } => {
            let Some(token) = model.token(*lease) else {
                assert_eq!(directory.release_claims(now, 1, None), 0);
                return;
            };
            let known = model.leases.get_mut(&token).unwrap();
            let before = known.hashes.len();
            match hashes {
                Some(some) => known.hashes.retain(|hash| !some.contains(hash)),
                None => known.hashes.clear(),
            }
            let freed = (before - known.hashes.len()) as u64;
            let hashes = hashes.as_ref().map(|some| packed(some));
            let told = directory.release_claims(now, token, hashes.as_ref());
            assert_eq!(told, freed);
        }
    }
}

fn claim(
    directory: &Directory,
    model: &mut Model,
    (asker, lifetime, purpose): (usize, u64, ClaimPurpose),
    space: usize,
    hashes: &[u64],
    expires: Duration,
) {
    let now = model.now;
    // What an inventory did not name is offered until it is swept out.
    let unswept = directory.sweep_is_due();
    let told = directory.claim(
        now,
        &ClaimQuery {
            namespace: &namespace(NAMESPACES[space]),
            hashes: &packed(hashes),
            node: &node(NODES[asker]),
            incarnation: incarnation(lifetime),
            purpose,
            ttl: expires - now,
        },
    );
    let known = model.nodes.get(&asker).map(|node| node.incarnation);
    let told = match told {
        Err(ClaimError::NamespaceUnknown(_)) => {
            return assert!(!model.namespaces.contains_key(&space));
        }
        Err(ClaimError::NodeUnknown(_)) => {
            return assert!(known.is_none_or(|known| known < lifetime));
        }
        Err(ClaimError::Fenced { .. }) => {
            return assert!(known.is_some_and(|known| known > lifetime));
        }
        Err(ClaimError::Bound(_)) => {
            let free = |hash: &&u64| model.free(purpose, space, **hash);
            let wanted: BTreeSet<&u64> = hashes.iter().filter(free).collect();
            return assert!(model.claims() + wanted.len() > LIMITS.claims as usize);
        }
        Err(other) => panic!("{other}"),
        Ok(told) => told,
    };
    assert_eq!(known, Some(lifetime));
    let mut granted = BTreeSet::new();
    assert_eq!(told.outcomes.len(), hashes.len());
    for (hash, outcome) in hashes.iter().zip(&told.outcomes) {
        match outcome {
            ClaimOutcome::Stored => assert!(unswept || model.stored(purpose, space, *hash)),
            ClaimOutcome::Granted => {
                assert!(
                    model.free(purpose, space, *hash),
                    "{hash} is somebody's or stored"
                );
                granted.insert(*hash);
            }
            ClaimOutcome::Claimed(row) => {
                assert!(!model.stored(purpose, space, *hash));
                let holder = &told.holders[*row as usize];
                let lease = model.holder(purpose, space, *hash).expect("it is nobody's");
                assert_eq!(holder.node, node(NODES[lease.node]));
                assert_eq!(holder.expires_in, lease.expires - now);
            }
        }
    }
    assert!(model.claims() + granted.len() <= LIMITS.claims as usize);
    assert_eq!(told.token.is_some(), !granted.is_empty());
    if let Some(token) = told.token {
        let lease = Lease {
            purpose,
            namespace: space,
            node: asker,
            incarnation: lifetime,
            expires,
            hashes: granted,
        };
        assert!(model.leases.insert(token, lease).is_none(), "a token twice");
    }
}

/// Both know the same leases.
pub(super) fn compare(directory: &Directory, model: &Model) {
    for (index, name) in NAMESPACES.iter().enumerate() {
        let told = directory.list_claims(model.now, Some(&namespace(name)));
        let Ok(told) = told else {
            assert!(!model.namespaces.contains_key(&index));
            continue;
        };
        let of_it = model.leases.values();
        let of_it = of_it.filter(|l| l.namespace == index && l.expires > model.now);
        let mut want: Vec<(&str, u64, Duration)> = of_it
            .map(|l| {
                let left = l.expires - model.now;
                (NODES[l.node], l.hashes.len() as u64, left)
            })
            .collect();
        let mut got: Vec<(&str, u64, Duration)> = (told.listed.iter())
            .map(|l| (l.node.as_str(), l.claims, l.expires_in))
            .collect();
        want.sort_unstable();
        got.sort_unstable();
        assert_eq!(got, want);
        assert_eq!(told.leases, want.len() as u64);
        assert_eq!(told.claims, want.iter().map(|l| l.1).sum::<u64>());
    }
}

impl Model {
    pub(super) fn token(&self, lease: usize) -> Option<u64> {
        self.leases.keys().rev().nth(lease).copied()
    }

    pub(super) fn expire_leases(&mut self) {
        let now = self.now;
        self.leases.retain(|_, lease| lease.expires > now);
    }

    /// Under a lease these were stored.
    pub(super) fn release(&mut self, token: u64, namespace: usize, hashes: &[u64]) {
        let lease = self.leases.get_mut(&token);
        if let Some(lease) = lease.filter(|lease| lease.namespace == namespace) {
            lease.hashes.retain(|hash| !hashes.contains(hash));
        }
    }

    fn claims(&self) -> usize {
        self.leases.values().map(|lease| lease.hashes.len()).sum()
    }

    fn holder(&self, purpose: ClaimPurpose, namespace: usize, hash: u64) -> Option<&Lease> {
        let mut leases = self.leases.values();
        leases.find(|lease| {
            (lease.purpose, lease.namespace) == (purpose, namespace) && lease.hashes.contains(&hash)
        })
    }

    pub(super) fn offered(&self, namespace: usize, hash: u64) -> bool {
        let owners = self.owners(namespace, hash);
        owners.iter().any(|owner| !self.hidden(owner.node))
    }

    fn stored(&self, purpose: ClaimPurpose, namespace: usize, hash: u64) -> bool {
        let in_memory = purpose == ClaimPurpose::Produce && self.offered(namespace, hash);
        in_memory || self.locations.find(namespace, hash).is_some()
    }

    fn free(&self, purpose: ClaimPurpose, namespace: usize, hash: u64) -> bool {
        !self.stored(purpose, namespace, hash) && self.holder(purpose, namespace, hash).is_none()
    }

    /// A node published these.
    pub(super) fn fulfil(&mut self, node: usize, region: u32, added: &Added) {
        let standing = self.nodes[&node].regions.get(&region);
        let Some(Standing::Accepted(region)) = standing else {
            return;
        };
        let namespace = region.namespace;
        for lease in self.leases.values_mut() {
            if (lease.node, lease.namespace, lease.purpose)
                == (node, namespace, ClaimPurpose::Produce)
            {
                let published = |hash: &u64| added.iter().any(|slot| slot.1 == *hash);
                lease.hashes.retain(|hash| !published(hash));
            }
        }
    }

    /// What ends with a node's lifetime, with a namespace, or because nothing is left of it.
    pub(super) fn end_claims(&mut self) {
        let (nodes, namespaces) = (&self.nodes, &self.namespaces);
        self.leases.retain(|_, lease| {
            let node = nodes.get(&lease.node);
            node.is_some_and(|node| node.incarnation == lease.incarnation)
                && namespaces.contains_key(&lease.namespace)
                && !lease.hashes.is_empty()
        });
    }
}
