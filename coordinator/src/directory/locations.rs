//! Blocks that lie in storage which outlasts nodes.
//!
//! Whoever stored a block there says so, and says when it is gone; a location is a hint, as an owner
//! is. A namespace without locations pays nothing for this.

use std::{ops::ControlFlow, sync::atomic::Ordering, time::Duration};

use kvferry_proto::{BlockHash, HashError, Location, NamespaceName, PackedHashes};

use super::{
    BoundReached, ClaimEnd, Directory, Effect, LocationEnd, NamespacePolicy, NamespaceUnknown,
    bounds::MAX_HASHES_PER_PUT, location_table::Put, namespace::Namespace,
};
use crate::sabotage::{self, Bug};

/// Blocks that were stored.
#[derive(Debug, Clone, Copy)]
pub struct PutLocations<'a> {
    /// Whose blocks.
    pub namespace: &'a NamespaceName,
    /// Which blocks.
    pub hashes: &'a PackedHashes,
    /// Where.
    pub location: &'a Location,
    /// Each hash follows the one before it, the first one this, where there is one. None: no chain.
    pub chain: Option<Option<BlockHash>>,
    /// The lease under which they were stored: its claims to them are done with.
    pub token: Option<u64>,
}

/// What became of a put.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PutOutcome {
    /// Blocks that had no location before.
    pub added: u64,
    /// Blocks whose location was forgotten to make room.
    pub evicted: u64,
}

/// Where blocks lie.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FoundLocations {
    /// Each once.
    pub locations: Vec<Location>,
    /// Into `locations`, one per hash; None where it has none.
    pub rows: Vec<Option<u32>>,
}

/// Why locations were neither changed nor found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LocationError {
    /// There is no such namespace.
    #[error(transparent)]
    NamespaceUnknown(#[from] NamespaceUnknown),
    /// Hashes of another length than the namespace's.
    #[error(transparent)]
    HashLength(#[from] HashError),
    /// Too many at once. Split it.
    #[error(transparent)]
    Bound(#[from] BoundReached),
}

impl Directory {
    /// Says that blocks lie at a location. A block has one: the last one put. Over a quota or the bound
    /// the least recently used are forgotten.
    ///
    /// # Errors
    /// [`LocationError`]; nothing is changed then.
    pub fn put_locations(
        &self,
        now: Duration,
        put: &PutLocations<'_>,
    ) -> Result<PutOutcome, LocationError> {
        let namespace = self.checked(put.namespace, put.hashes)?;
        let count = put.hashes.len() as u64;
        let first_use = self.catalog.uses.fetch_add(count, Ordering::Relaxed);
        let most = namespace.most_locations();
        let expires = namespace.policy.location_ttl;
        let expires = expires.map(|ttl| now.saturating_add(ttl));
        let mut outcome = PutOutcome::default();
        let mut table = namespace.locations.lock();
        let mut before = put.chain.flatten();
        for (used, hash) in (first_use..).zip(put.hashes.to_hashes()) {
            let row = Put {
                hash,
                parent: before,
                expires,
                used,
            };
            outcome.added += u64::from(table.put(&row, put.location.as_str()));
            before = put.chain.is_some().then_some(hash);
            while table.len() as u64 > most && table.evict() {
                outcome.evicted += 1;
            }
        }
        drop(table);
        self.catalog.located(namespace, outcome.added);
        self.catalog
            .unlocated(namespace, outcome.evicted, LocationEnd::Quota);
        outcome.evicted += self.evict_coldest();
        if let Some(token) = put.token {
            let mut leases = self.leases.lock();
            leases.expire(now);
            let handle = self.catalog.find(put.namespace).map(|(handle, _)| handle);
            let of_it = leases.lease(token).map(|lease| lease.scope.namespace);
            if of_it == handle {
                leases.release(token, put.hashes.iter(), ClaimEnd::Fulfilled);
            }
        }
        Ok(outcome)
    }

    /// Says that blocks do not lie there any more, or anywhere, and counts those that did.
    ///
    /// # Errors
    /// [`LocationError`]; nothing is changed then.
    pub fn remove_locations(
        &self,
        namespace: &NamespaceName,
        hashes: &PackedHashes,
        location: Option<&Location>,
    ) -> Result<u64, LocationError> {
        let namespace = self.checked(namespace, hashes)?;
        let location = location.map(Location::as_str);
        let mut table = namespace.locations.lock();
        let removed = hashes.iter().filter(|hash| table.remove(hash, location));
        let removed = removed.count() as u64;
        drop(table);
        self.catalog
            .unlocated(namespace, removed, LocationEnd::Removed);
        Ok(removed)
    }

    /// Where blocks lie, whoever holds them in memory. Counts as a use.
    ///
    /// # Errors
    /// [`LocationError`]; a block without a location is none.
    pub fn find_locations(
        &self,
        namespace: &NamespaceName,
        hashes: &PackedHashes,
    ) -> Result<FoundLocations, LocationError> {
        let namespace = self.checked(namespace, hashes)?;
        let count = hashes.len() as u64;
        let first_use = self.catalog.uses.fetch_add(count, Ordering::Relaxed);
        let mut found = FoundLocations::default();
        let mut rows = std::collections::HashMap::new();
        let mut table = namespace.locations.lock();
        for (used, hash) in (first_use..).zip(hashes.iter()) {
            let row = table.get(hash).map(|(name, text)| {
                *rows.entry(name).or_insert_with(|| {
                    found.locations.extend(Location::new(text));
                    (found.locations.len() as u32).saturating_sub(1)
                })
            });
            found.rows.push(row);
            table.touch(hash, used);
        }
        Ok(found)
    }

    /// Says what is wanted of a namespace. Where more slots may be declared in it than before, nodes that were refused a
    /// region are asked for an inventory, which declares it again.
    ///
    /// # Errors
    /// [`NamespaceUnknown`].
    pub fn set_policy(
        &mut self,
        name: &NamespaceName,
        policy: NamespacePolicy,
    ) -> Result<Vec<Effect>, NamespaceUnknown> {
        let Some(namespace) = self.catalog.find_mut(name) else {
            return Err(NamespaceUnknown { name: name.clone() });
        };
        let block_bytes = namespace.spec.layout.block_bytes();
        let before = std::mem::replace(&mut namespace.policy, policy);
        match policy.most_slots(block_bytes) > before.most_slots(block_bytes) {
            true => Ok(self.hear_refused_again()),
            false => Ok(Vec::new()),
        }
    }

    /// What is wanted of a namespace, and how many of its blocks have a location.
    ///
    /// # Errors
    /// [`NamespaceUnknown`].
    pub fn policy(&self, name: &NamespaceName) -> Result<(NamespacePolicy, u64), NamespaceUnknown> {
        match self.catalog.namespace(name) {
            Some(namespace) => {
                let located = namespace.locations.lock().len() as u64;
                Ok((namespace.policy, located))
            }
            None => Err(NamespaceUnknown { name: name.clone() }),
        }
    }

    /// Blocks with a location, over all namespaces.
    #[must_use]
    pub fn locations(&self) -> u64 {
        self.catalog.located.load(Ordering::Relaxed)
    }

    /// Has a location's time run out, or is a quota exceeded since it was lowered?
    #[must_use]
    pub fn tidy_is_due(&self, now: Duration) -> bool {
        self.locations() > 0
            && self.catalog.namespaces().any(|namespace| {
                let table = namespace.locations.lock();
                table.expiry_is_due(now) || table.len() as u64 > namespace.most_locations()
            })
    }

    /// Forgets locations whose time has run out and those over a quota, at most about so many of
    /// each namespace. False when nothing is left to do.
    pub fn tidy(&self, now: Duration, most: usize) -> bool {
        if self.locations() == 0 || sabotage::is(Bug::LocationsNeverExpire) {
            return false;
        }
        let mut more = false;
        for namespace in self.catalog.namespaces() {
            let mut gone = 0;
            let expired = namespace.locations.lock().expired(now, most);
            more |= expired.len() == most;
            for hash in &expired {
                let offered = self.is_offered(namespace, hash);
                let again = namespace.policy.location_ttl.filter(|_| offered);
                // A time that is over at once would be looked at for ever.
                let again = again.map(|ttl| now.saturating_add(ttl.max(Duration::from_millis(1))));
                gone += u64::from(namespace.locations.lock().expire(now, hash, again));
            }
            let mut table = namespace.locations.lock();
            let over = (table.len() as u64).saturating_sub(namespace.most_locations());
            more |= over > most as u64;
            let evicted = (0..over.min(most as u64)).filter(|_| table.evict()).count() as u64;
            self.catalog.unlocated(namespace, gone, LocationEnd::Ttl);
            self.catalog
                .unlocated(namespace, evicted, LocationEnd::Quota);
        }
        more
    }

    fn is_offered(&self, namespace: &Namespace, hash: &BlockHash) -> bool {
        let mut offered = false;
        let flow: ControlFlow<()> = namespace.index.look_up(hash.as_bytes(), |mut copies| {
            offered = copies.any(|held| self.offers(held.owner.region));
            ControlFlow::Continue(())
        });
        flow.is_continue() && offered
    }

    /// Forgets the least recently used of all namespaces until the bound is kept, and counts them.
    fn evict_coldest(&self) -> u64 {
        let most = self.config.bounds.locations;
        let mut evicted = 0;
        while self.locations() > most {
            let each = self.catalog.namespaces();
            let each = each.filter_map(|n| Some((n.locations.lock().coldest()?, n)));
            let mut order: Vec<(u64, &Namespace)> = each.collect();
            order.sort_unstable_by_key(|(used, _)| *used);
            let Some((_, coldest)) = order.first() else {
                break;
            };
            let next = order.get(1).map_or(u64::MAX, |(used, _)| *used);
            let mut table = coldest.locations.lock();
            while self.locations() > most && table.coldest().is_some_and(|used| used < next) {
                table.evict();
                evicted += 1;
                self.catalog.unlocated(coldest, 1, LocationEnd::Bound);
            }
        }
        evicted
    }

    fn checked(
        &self,
        name: &NamespaceName,
        hashes: &PackedHashes,
    ) -> Result<&Namespace, LocationError> {
        let Some(namespace) = self.catalog.namespace(name) else {
            return Err(NamespaceUnknown { name: name.clone() }.into());
        };
        let (got, want) = (hashes.hash_len(), namespace.spec.hash_len);
        if got != want {
            return Err(HashError::OtherLength {
                got: got.get(),
                want: want.get(),
            }
            .into());
        }
        if hashes.len() > MAX_HASHES_PER_PUT {
            return Err(BoundReached::hashes_per_put().into());
        }
        Ok(namespace)
    }
}

impl Namespace {
    pub(super) fn most_locations(&self) -> u64 {
        if sabotage::is(Bug::QuotaIgnored) {
            return u64::MAX;
        }
        self.policy.most_locations(self.spec.layout.block_bytes())
    }

    /// Far below 2^63, as those of copies are.
    pub(super) fn bytes_of(&self, blocks: u64) -> i64 {
        blocks.saturating_mul(self.spec.layout.block_bytes()) as i64
    }
}
