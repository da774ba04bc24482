//! Who holds which claim, and until when. Knows neither nodes nor the index.
//!
//! A claim is held as long as its lease is in the table: so a lease ends at once, however much it
//! holds, and what it held is forgotten a slice at a time.

use std::{
    collections::{BTreeSet, HashMap, hash_map::Entry},
    sync::Arc,
    time::Duration,
};

use kvferry_proto::BlockHash;

use super::{BoundReached, Bounds, ClaimEnd, ClaimPurpose, Counts, bounds::MAX_CLAIMS_PER_NODE};
use crate::sabotage::{self, Bug};

/// Hashes of ended leases forgotten with every operation: more than one operation can add in a slice,
/// so that the table does not grow where nobody sweeps.
const FORGOTTEN_AT_ONCE: usize = 2_048;

/// What a claim is a right to: what is right to one is none to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Scope {
    /// A handle.
    pub(super) namespace: u32,
    pub(super) purpose: ClaimPurpose,
}

/// All leases of one directory.
#[derive(Debug)]
pub(super) struct Leases {
    most: u64,
    next_token: u64,
    /// By scope. A token whose lease has ended is no claim.
    claims: HashMap<Scope, HashMap<BlockHash, u64>>,
    leases: HashMap<u64, Lease>,
    due: BTreeSet<(Duration, u64)>,
    held: u64,
    held_by: HashMap<u32, u64>,
    /// What ended leases had claimed, to be forgotten.
    ended: Vec<(Scope, u64, Vec<BlockHash>)>,
    counts: Arc<Counts>,
}

/// What was granted to one asker in one call.
#[derive(Debug)]
pub(super) struct Lease {
    pub(super) scope: Scope,
    /// A handle; its leases end before it is used for another node.
    pub(super) node: u32,
    pub(super) expires: Duration,
    /// How many claims are left.
    pub(super) left: u64,
    /// What was ever granted under it.
    hashes: Vec<BlockHash>,
}

/// Whose a claim is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    /// The asker's, as of now or before.
    Own,
    /// That lease's.
    Others(u64),
}

impl Leases {
    pub(super) fn new(epoch: u64, bounds: &Bounds, counts: Arc<Counts>) -> Self {
        Self {
            most: bounds.claims,
            // A token of an earlier lifetime must not name a lease of this one.
            next_token: epoch,
            claims: HashMap::new(),
            leases: HashMap::new(),
            due: BTreeSet::new(),
            held: 0,
            held_by: HashMap::new(),
            ended: Vec::new(),
            counts,
        }
    }

    /// An empty lease; its token comes back. One that is empty in the end is to be ended.
    pub(super) fn open(&mut self, scope: Scope, node: u32, expires: Duration) -> u64 {
        if sabotage::is(Bug::ClaimTokensRepeat) {
            self.next_token = 0;
        }
        let token = loop {
            self.next_token = self.next_token.wrapping_add(1);
            // Zero stands for none.
            if self.next_token != 0 && !self.leases.contains_key(&self.next_token) {
                break self.next_token;
            }
        };
        let lease = Lease {
            scope,
            node,
            expires,
            left: 0,
            hashes: Vec::new(),
        };
        self.due.insert((expires, token));
        self.leases.insert(token, lease);
        token
    }

    /// Claims a block for a lease, if nobody else holds it.
    pub(super) fn take(&mut self, token: u64, hash: &BlockHash) -> Result<Taken, BoundReached> {
        let Some(lease) = self.leases.get(&token) else {
            // Opened just now, and nothing ends it while it is filled.
            return Ok(Taken::Others(token));
        };
        let (scope, node) = (lease.scope, lease.node);
        let known = self.claims.get(&scope).and_then(|all| all.get(hash));
        match known.copied() {
            Some(own) if own == token => return Ok(Taken::Own),
            Some(other)
                if self.leases.contains_key(&other) && !sabotage::is(Bug::ClaimsGrantedTwice) =>
            {
                return Ok(Taken::Others(other));
            }
            Some(_) | None => {}
        }
        let of_node = self.held_by.get(&node).copied().unwrap_or(0);
        if self.held >= self.most {
            return Err(BoundReached::claims(self.most));
        }
        if of_node >= MAX_CLAIMS_PER_NODE {
            return Err(BoundReached::claims_of_node());
        }
        let claims = self.claims.entry(scope).or_default();
        claims.insert(*hash, token);
        if let Some(lease) = self.leases.get_mut(&token) {
            lease.hashes.push(*hash);
            lease.left += 1;
        }
        self.held += 1;
        self.counts.claims.add(1);
        *self.held_by.entry(node).or_default() += 1;
        Ok(Taken::Own)
    }

    /// The node published these blocks: its claims to produce them are done with. Says how many.
    pub(super) fn fulfil<'a>(
        &mut self,
        namespace: u32,
        node: u32,
        hashes: impl Iterator<Item = &'a [u8]>,
    ) -> u64 {
        let scope = Scope {
            namespace,
            purpose: ClaimPurpose::Produce,
        };
        let Some(claims) = self.claims.get(&scope).filter(|all| !all.is_empty()) else {
            return 0;
        };
        let held: Vec<(u64, BlockHash)> = hashes
            .filter_map(|hash| claims.get_key_value(hash))
            .filter(|(_, token)| self.leases.get(token).is_some_and(|l| l.node == node))
            .map(|(hash, token)| (*token, *hash))
            .collect();
        // A block may be named twice in one message.
        let freed = held.iter().filter(|(token, hash)| self.free(*token, hash));
        let freed = freed.count() as u64;
        self.counts.claims_ended.of(ClaimEnd::Fulfilled).add(freed);
        freed
    }

    /// A lease ends not before that. Says how many claims it holds; 0 where it has ended.
    pub(super) fn renew(&mut self, token: u64, expires: Duration) -> u64 {
        let Some(lease) = self.leases.get_mut(&token) else {
            return 0;
        };
        // Its claimant counts on what it was told before: a renewal for less, or one that comes late, takes nothing of it.
        if expires > lease.expires {
            self.due.remove(&(lease.expires, token));
            lease.expires = expires;
            self.due.insert((expires, token));
        }
        lease.left
    }

    /// Frees some of a lease's claims, and says how many there were.
    pub(super) fn release<'a>(
        &mut self,
        token: u64,
        hashes: impl Iterator<Item = &'a [u8]>,
        why: ClaimEnd,
    ) -> u64 {
        let freed = hashes.filter(|hash| {
            // Of another length than any it could hold: then it does not hold it.
            BlockHash::new(hash).is_ok_and(|hash| self.free(token, &hash))
        });
        let freed = freed.count() as u64;
        self.counts.claims_ended.of(why).add(freed);
        freed
    }

    fn free(&mut self, token: u64, hash: &BlockHash) -> bool {
        let Some(lease) = self.leases.get_mut(&token) else {
            return false;
        };
        let claims = self.claims.get_mut(&lease.scope);
        let Some(claims) = claims.filter(|claims| claims.get(hash) == Some(&token)) else {
            return false;
        };
        claims.remove(hash);
        lease.left -= 1;
        let (node, empty) = (lease.node, lease.left == 0);
        self.uncount(node, 1);
        if empty {
            self.take_back(token);
        }
        true
    }

    fn uncount(&mut self, node: u32, claims: u64) {
        self.held -= claims;
        self.counts.claims.add(-(claims as i64));
        if let Entry::Occupied(mut of_node) = self.held_by.entry(node) {
            *of_node.get_mut() -= claims;
            if *of_node.get() == 0 {
                of_node.remove();
            }
        }
    }

    /// A lease was filled: what it holds is granted.
    pub(super) fn granted(&mut self, token: u64) {
        let left = self.leases.get(&token).map_or(0, |lease| lease.left);
        self.counts.claims_granted.add(left);
    }

    /// Ends a lease, and says how many claims it held: they are free at once.
    pub(super) fn end(&mut self, token: u64, why: ClaimEnd) -> u64 {
        let claims = self.take_back(token);
        self.counts.claims_ended.of(why).add(claims);
        claims
    }

    /// As [`end`](Self::end), of a lease that holds nothing, or whose claims nobody was told of.
    pub(super) fn take_back(&mut self, token: u64) -> u64 {
        let Some(lease) = self.leases.remove(&token) else {
            return 0;
        };
        self.due.remove(&(lease.expires, token));
        self.uncount(lease.node, lease.left);
        if lease.left > 0 {
            self.ended.push((lease.scope, token, lease.hashes));
        }
        lease.left
    }

    /// Ends every lease of a node.
    pub(super) fn end_node(&mut self, node: u32) -> u64 {
        if !self.held_by.contains_key(&node) || sabotage::is(Bug::ClaimsOutliveNodes) {
            return 0;
        }
        let of_node = self.leases.iter().filter(|(_, lease)| lease.node == node);
        let tokens: Vec<u64> = of_node.map(|(token, _)| *token).collect();
        let ended = tokens.into_iter();
        ended.map(|token| self.end(token, ClaimEnd::NodeGone)).sum()
    }

    /// Ends every lease of a namespace that is deleted.
    pub(super) fn end_namespace(&mut self, namespace: u32) {
        let of_it = self.leases.iter();
        let of_it = of_it.filter(|(_, lease)| lease.scope.namespace == namespace);
        let tokens: Vec<u64> = of_it.map(|(token, _)| *token).collect();
        for token in tokens {
            self.end(token, ClaimEnd::NamespaceDeleted);
        }
        self.ended
            .retain(|(scope, _, _)| scope.namespace != namespace);
        self.claims.retain(|scope, _| scope.namespace != namespace);
    }

    /// Ends what has expired, and forgets some of what has ended.
    pub(super) fn expire(&mut self, now: Duration) {
        while let Some(&(expires, token)) = self.due.first()
            && expires <= now
            && !sabotage::is(Bug::ClaimsNeverExpire)
        {
            self.end(token, ClaimEnd::Expired);
        }
        self.forget(FORGOTTEN_AT_ONCE);
    }

    /// Is there a lease to expire?
    pub(super) fn expiry_is_due(&self, now: Duration) -> bool {
        self.due.first().is_some_and(|(expires, _)| *expires <= now)
    }

    /// Forgets hashes of ended leases.
    pub(super) fn forget(&mut self, hashes: usize) {
        let mut left = hashes;
        while left > 0
            && let Some((scope, token, gone)) = self.ended.last_mut()
        {
            let some = gone.split_off(gone.len().saturating_sub(left));
            left -= some.len();
            if let Some(claims) = self.claims.get_mut(scope) {
                for hash in some {
                    // It may be another lease's by now.
                    if claims.get(&hash) == Some(token) {
                        claims.remove(&hash);
                    }
                }
                if claims.is_empty() {
                    self.claims.remove(scope);
                }
            }
            if gone.is_empty() {
                self.ended.pop();
            }
        }
    }

    /// Is there something to forget?
    pub(super) fn forgetting_is_due(&self) -> bool {
        !self.ended.is_empty()
    }

    pub(super) fn lease(&self, token: u64) -> Option<&Lease> {
        self.leases.get(&token)
    }

    /// Leases, the one that expires next first.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Lease> {
        self.due
            .iter()
            .filter_map(|(_, token)| self.leases.get(token))
    }

    /// Claims held, over all leases.
    pub(super) fn held(&self) -> u64 {
        self.held
    }

    /// Nothing is left, forgotten leases included.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn is_empty(&self) -> bool {
        let claims = self.claims.values().all(HashMap::is_empty);
        let counted = self.held == 0 && self.held_by.is_empty();
        claims && counted && self.leases.is_empty() && self.due.is_empty() && self.ended.is_empty()
    }
}
