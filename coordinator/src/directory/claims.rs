//! The exclusive, expiring right to produce or store a block.
//!
//! A claim is its lease's until the claimant's node publishes the block (or puts it at a location under
//! the lease's token), the lease is released or expires, or the node's incarnation ends. Nothing rests on it but saved work: whoever publishes a
//! block without a claim has published it, and from then on everybody is told that it is stored.

use std::{
    collections::{HashMap, hash_map::Entry},
    ops::ControlFlow,
    time::Duration,
};

use kvferry_proto::{BlockHash, HashError, Incarnation, NamespaceName, NodeId, PackedHashes};

use super::{
    BoundReached, ClaimEnd, Directory, NamespaceUnknown, NodeUnknown, SealedSlots,
    bounds::MAX_HASHES_PER_CLAIM,
    leases::{Leases, Scope, Taken},
    node::NodeState,
};
use crate::sabotage::{self, Bug};

/// Most leases of one list: what a person reads, and far less than a message holds.
const MAX_LISTED: usize = 1_000;

/// Who claims what, and for how long.
#[derive(Debug, Clone, Copy)]
pub struct ClaimQuery<'a> {
    /// Whose blocks.
    pub namespace: &'a NamespaceName,
    /// Which blocks.
    pub hashes: &'a PackedHashes,
    /// For whom.
    pub node: &'a NodeId,
    /// Its lifetime: the claims end with it.
    pub incarnation: Incarnation,
    /// To do what.
    pub purpose: ClaimPurpose,
    /// From now.
    pub ttl: Duration,
}

/// What a claim is a right to. Claims of different purposes know nothing of each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ClaimPurpose {
    /// To compute a block. It is stored where readers are offered it, or it has a location.
    Produce,
    /// To store it at a location. It is stored where it has one.
    Store,
}

/// The answer: one outcome per hash.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Claimed {
    /// In the order of the hashes.
    pub outcomes: Vec<ClaimOutcome>,
    /// Of the lease that holds what was granted; None where nothing was.
    pub token: Option<u64>,
    /// Leases of others that hold some of them.
    pub holders: Vec<ClaimHolder>,
}

/// What became of one hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClaimOutcome {
    /// The asker's alone.
    Granted,
    /// It is there already.
    Stored,
    /// Another lease's: an index into [`Claimed::holders`].
    Claimed(u32),
}

/// Who holds a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimHolder {
    /// The node.
    pub node: NodeId,
    /// When the lease ends, from now.
    pub expires_in: Duration,
}

/// Leases, for people.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClaimList {
    /// Claims held by the leases asked for, also by those not listed.
    pub claims: u64,
    /// How many leases.
    pub leases: u64,
    /// At most a thousand, those that end soonest.
    pub listed: Vec<ClaimLease>,
}

/// One lease, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimLease {
    /// Whose blocks.
    pub namespace: NamespaceName,
    /// Who claimed them.
    pub node: NodeId,
    /// How many are left.
    pub claims: u64,
    /// When it ends, from now.
    pub expires_in: Duration,
}

/// Why nothing was claimed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClaimError {
    /// There is no such namespace.
    #[error(transparent)]
    NamespaceUnknown(#[from] NamespaceUnknown),
    /// Hashes of another length than the namespace's.
    #[error(transparent)]
    HashLength(#[from] HashError),
    /// The node's session is not here, or not yet: connect it, then claim.
    #[error(transparent)]
    NodeUnknown(#[from] NodeUnknown),
    /// A later incarnation speaks for the node. This one is void; stop.
    #[error("incarnation {got} of node {node} is void: incarnation {known} has taken over")]
    Fenced {
        /// The node.
        node: NodeId,
        /// The one that is known.
        known: Incarnation,
        /// The claimant's.
        got: Incarnation,
    },
    /// Too many claims are held. Publish or release some, or wait until some expire.
    #[error(transparent)]
    Bound(#[from] BoundReached),
}

impl Directory {
    /// Claims blocks, each on its own: no two leases ever hold one. A block that readers are offered
    /// is stored, whoever claimed it.
    ///
    /// # Errors
    /// [`ClaimError`]; nothing is claimed then.
    pub fn claim(&self, now: Duration, query: &ClaimQuery<'_>) -> Result<Claimed, ClaimError> {
        let Some((handle, namespace)) = self.catalog.find(query.namespace) else {
            return Err(NamespaceUnknown {
                name: query.namespace.clone(),
            }
            .into());
        };
        let (got, want) = (query.hashes.hash_len(), namespace.spec.hash_len);
        if got != want {
            return Err(HashError::OtherLength {
                got: got.get(),
                want: want.get(),
            }
            .into());
        }
        if query.hashes.len() > MAX_HASHES_PER_CLAIM {
            return Err(BoundReached::hashes_per_claim().into());
        }
        let node = self.claimant(query)?;
        let mut leases = self.leases.lock();
        leases.expire(now);
        let scope = Scope {
            namespace: match sabotage::is(Bug::ClaimsCrossNamespaces) {
                true => 0,
                false => handle,
            },
            purpose: query.purpose,
        };
        let token = leases.open(scope, node, now.saturating_add(query.ttl));
        let mut answer = Answering {
            directory: self,
            now,
            leases: &mut leases,
            token,
            named: HashMap::new(),
            claimed: Claimed::default(),
        };
        let mut hashes = query.hashes.iter();
        let flow = namespace
            .index
            .look_up(query.hashes.as_bytes(), |mut copies| {
                let hash = hashes.next().unwrap_or(&[]);
                let offered = query.purpose == ClaimPurpose::Produce
                    && copies.any(|held| self.offers(held.owner.region));
                let stored = offered || namespace.locations.lock().get(hash).is_some();
                match answer.one(hash, stored) {
                    Ok(()) => ControlFlow::Continue(()),
                    Err(error) => ControlFlow::Break(error),
                }
            });
        let mut claimed = answer.claimed;
        if let ControlFlow::Break(error) = flow {
            leases.take_back(token);
            return Err(error.into());
        }
        if leases.lease(token).is_some_and(|lease| lease.left > 0) {
            claimed.token = Some(token);
            leases.granted(token);
        } else {
            leases.take_back(token);
        }
        Ok(claimed)
    }

    /// A lease lasts for at least this long from now, and never less than it was said to before. Says how many claims it
    /// holds. Zero: it has ended, and others may hold what it held.
    pub fn renew_claims(&self, now: Duration, token: u64, ttl: Duration) -> u64 {
        let mut leases = self.leases.lock();
        leases.expire(now);
        leases.renew(token, now.saturating_add(ttl))
    }

    /// Gives claims back, those named or all of the lease, and says how many there were.
    pub fn release_claims(&self, now: Duration, token: u64, hashes: Option<&PackedHashes>) -> u64 {
        let mut leases = self.leases.lock();
        leases.expire(now);
        match hashes {
            Some(hashes) => leases.release(token, hashes.iter(), ClaimEnd::Released),
            None => leases.end(token, ClaimEnd::Released),
        }
    }

    /// Whose lease a token is, and in which namespace; None where it has ended.
    #[must_use]
    pub fn lease_of(&self, token: u64) -> Option<(NamespaceName, NodeId)> {
        let leases = self.leases.lock();
        let lease = leases.lease(token)?;
        let spec = self.catalog.spec_at(lease.scope.namespace)?;
        let node = self.nodes.get(lease.node)?;
        Some((spec.name.clone(), node.name.clone()))
    }

    /// Leases, of one namespace or of all.
    ///
    /// # Errors
    /// [`NamespaceUnknown`].
    pub fn list_claims(
        &self,
        now: Duration,
        namespace: Option<&NamespaceName>,
    ) -> Result<ClaimList, NamespaceUnknown> {
        self.list_claims_where(now, namespace, |_| true)
    }

    /// As [`list_claims`](Self::list_claims), of those namespaces only that `wanted` takes.
    ///
    /// # Errors
    /// [`NamespaceUnknown`].
    pub fn list_claims_where(
        &self,
        now: Duration,
        namespace: Option<&NamespaceName>,
        wanted: impl Fn(&NamespaceName) -> bool,
    ) -> Result<ClaimList, NamespaceUnknown> {
        let only = match namespace {
            None => None,
            Some(name) => match self.catalog.find(name) {
                Some((handle, _)) => Some(handle),
                None => return Err(NamespaceUnknown { name: name.clone() }),
            },
        };
        let mut leases = self.leases.lock();
        leases.expire(now);
        let mut list = ClaimList::default();
        let of_it = leases
            .iter()
            .filter(|l| only.is_none_or(|n| n == l.scope.namespace))
            .filter(|l| {
                let spec = self.catalog.spec_at(l.scope.namespace);
                spec.is_some_and(|spec| wanted(&spec.name))
            });
        for lease in of_it {
            list.claims += lease.left;
            list.leases += 1;
            let named = (
                self.catalog.spec_at(lease.scope.namespace),
                self.nodes.get(lease.node),
            );
            if let (Some(spec), Some(node)) = named
                && list.listed.len() < MAX_LISTED
            {
                list.listed.push(ClaimLease {
                    namespace: spec.name.clone(),
                    node: node.name.clone(),
                    claims: lease.left,
                    expires_in: lease.expires.saturating_sub(now),
                });
            }
        }
        Ok(list)
    }

    /// How many claims are held.
    #[must_use]
    pub fn claims_held(&self) -> u64 {
        self.leases.lock().held()
    }

    /// Are readers sent to what this region holds?
    pub(super) fn offers(&self, region: u32) -> bool {
        let region = self.catalog.region(region).filter(|region| !region.gone);
        let node = region.and_then(|region| self.nodes.get(region.node));
        node.is_some_and(|node| node.state() != NodeState::Hidden)
    }

    /// A node's region has taken these in: the node's claims to them are done with.
    pub(super) fn fulfil(
        &self,
        node: u32,
        region: u32,
        added: &SealedSlots,
        range: std::ops::Range<usize>,
    ) {
        let region = self.catalog.region(region);
        if let (Some(region), Some(hashes)) = (region, &added.hashes) {
            let named = range.filter_map(|at| hashes.get(at));
            self.leases.lock().fulfil(region.namespace, node, named);
        }
    }

    /// The handle of the node that asks.
    fn claimant(&self, query: &ClaimQuery<'_>) -> Result<u32, ClaimError> {
        let handle = self.names.get(query.node).copied();
        let known = handle.and_then(|handle| Some((handle, self.nodes.get(handle)?)));
        match known {
            Some((handle, node)) if node.incarnation == query.incarnation => Ok(handle),
            Some((_, node)) if node.incarnation > query.incarnation => Err(ClaimError::Fenced {
                node: query.node.clone(),
                known: node.incarnation,
                got: query.incarnation,
            }),
            // A later lifetime whose hello is still on its way.
            _ => Err(NodeUnknown {
                node: query.node.clone(),
            }
            .into()),
        }
    }
}

/// An answer in the making.
struct Answering<'a> {
    directory: &'a Directory,
    now: Duration,
    leases: &'a mut Leases,
    token: u64,
    /// Rows of the table of holders, by token.
    named: HashMap<u64, u32>,
    claimed: Claimed,
}

impl Answering<'_> {
    fn one(&mut self, hash: &[u8], stored: bool) -> Result<(), BoundReached> {
        // Its length is the namespace's.
        let hash = BlockHash::new(hash).ok().filter(|_| !stored);
        let taken = hash.map(|hash| self.leases.take(self.token, &hash));
        let outcome = match taken.transpose()? {
            None => ClaimOutcome::Stored,
            Some(Taken::Own) => ClaimOutcome::Granted,
            Some(Taken::Others(token)) => ClaimOutcome::Claimed(self.row(token)),
        };
        self.claimed.outcomes.push(outcome);
        Ok(())
    }

    /// The row of a lease in the table of holders.
    fn row(&mut self, token: u64) -> u32 {
        let next = self.claimed.holders.len() as u32;
        let place = match self.named.entry(token) {
            Entry::Occupied(known) => return *known.get(),
            Entry::Vacant(place) => place,
        };
        let lease = self.leases.lease(token);
        let node = lease.and_then(|lease| Some((lease, self.directory.nodes.get(lease.node)?)));
        if let Some((lease, node)) = node {
            self.claimed.holders.push(ClaimHolder {
                node: node.name.clone(),
                expires_in: lease.expires.saturating_sub(self.now),
            });
        }
        *place.insert(next)
    }
}
