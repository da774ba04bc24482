//! Where the directory says what it did.

use std::{sync::Arc, time::Duration};

use super::{
    super::{
        Directory,
        catalog::Catalog,
        index::{Held, Index, Owner, Place, Sealing},
        namespace::Namespace,
        node::Node,
        region::Region,
    },
    Change, CopyChange, Log, Rows, WatchedNode, WatchedRegion,
};
use crate::sabotage::{self, Bug};

/// What is done to slots of one region, gathered where somebody watches. Told when it is dropped,
/// which is to be before the region's slots are free for others.
#[derive(Debug)]
pub(in super::super) struct Telling<'a> {
    log: Option<&'a Log>,
    rows: Rows,
}

impl<'a> Telling<'a> {
    pub(in super::super) fn of(namespace: &'a Namespace) -> Self {
        Self {
            log: namespace.log.as_deref(),
            rows: Rows::default(),
        }
    }

    /// A copy was put into the index.
    pub(in super::super) fn added(&mut self, index: &Index, hashes: &[u8], sealing: &Sealing) {
        if self.log.is_some() {
            let Held {
                owner, generation, ..
            } = sealing.held;
            let hash = index.hash_at(hashes, sealing.hash);
            let (change, place) = (CopyChange::Added, (owner.region, owner.slot));
            self.rows.push(change, place, generation, hash);
        }
    }

    /// A copy is about to be written anew, if the hash is still the same.
    pub(in super::super) fn reseals(
        &mut self,
        index: &Index,
        place: Place,
        held: Held,
        hash: &[u8],
    ) {
        if self.log.is_none() {
            return;
        }
        let moved = index.entry(place, |known, mut copies| {
            let before = copies.find(|copy| copy.owner == held.owner);
            known == hash && before.is_some_and(|before| before.generation != held.generation)
        });
        if moved == Some(true) {
            let place = (held.owner.region, held.owner.slot);
            let change = CopyChange::Moved;
            self.rows.push(change, place, held.generation, hash);
        }
    }

    /// A copy is about to be taken out of the index.
    pub(in super::super) fn removes(&mut self, index: &Index, place: Place, owner: Owner) {
        if self.log.is_some() && !sabotage::is(Bug::RemovalsUntold) {
            let (rows, place_of) = (&mut self.rows, (owner.region, owner.slot));
            index.entry(place, |hash, _| {
                rows.push(CopyChange::Removed, place_of, 0, hash);
            });
        }
    }

    /// Nobody is told: all of the region went already.
    pub(in super::super) fn keep_quiet(&mut self) {
        self.log = None;
    }
}

impl Drop for Telling<'_> {
    fn drop(&mut self) {
        if let Some(log) = self.log
            && !self.rows.is_empty()
        {
            log.append(Change::Rows(std::mem::take(&mut self.rows)));
        }
    }
}

impl Node {
    pub(super) fn watched(&self, number: u32) -> WatchedNode {
        WatchedNode {
            number,
            node: self.name.clone(),
            incarnation: self.incarnation,
            state: self.state(),
            addresses: self.addresses.clone(),
            labels: self.labels.clone(),
        }
    }
}

impl Region {
    pub(super) fn watched(&self, number: u32) -> WatchedRegion {
        WatchedRegion {
            number,
            node: self.node,
            region: self.id,
            slots: self.slot_count(),
        }
    }
}

impl Directory {
    /// A node came, or is not as it was.
    pub(in super::super) fn tell_node(&self, handle: u32) {
        if let Some(node) = self.nodes.get(handle) {
            for log in self.catalog.logs() {
                log.append(Change::Node(node.watched(handle)));
            }
        }
    }

    /// A node is gone with all it had.
    pub(in super::super) fn tell_node_gone(&self, handle: u32) {
        if sabotage::is(Bug::NodeEndsUntold) {
            return;
        }
        for log in self.catalog.logs() {
            log.append(Change::NodeGone(handle));
        }
    }
}

impl Catalog {
    pub(super) fn logs(&self) -> impl Iterator<Item = &Arc<Log>> {
        self.namespaces()
            .filter_map(|namespace| namespace.log.as_ref())
    }

    fn log_of(&self, region: &Region) -> Option<&Log> {
        self.namespace_of(region)?.log.as_deref()
    }

    /// A region came.
    pub(in super::super) fn tell_region(&self, handle: u32) {
        if let Some(region) = self.region(handle)
            && let Some(log) = self.log_of(region)
        {
            log.append(Change::Region(region.watched(handle)));
        }
    }

    /// A region went, and its node stays.
    pub(in super::super) fn tell_region_gone(&self, handle: u32) {
        if let Some(log) = self.region(handle).and_then(|region| self.log_of(region)) {
            log.append(Change::RegionGone(handle));
        }
    }

    /// A namespace went.
    pub(in super::super) fn end_log(&mut self, namespace: &Namespace) {
        if let Some(log) = &namespace.log {
            log.end();
            self.next_log = self.next_log.max(log.last() + 1);
        }
    }

    /// Is there a log to be let go, or to be looked at for that?
    pub(in super::super) fn idle_log_is_due(&self, now: Duration) -> bool {
        self.logs().any(|log| log.idle_is_due(now))
    }

    /// Lets go of logs that nobody has watched for long.
    pub(in super::super) fn drop_idle_logs(&mut self, now: Duration) {
        for handle in self.names.values() {
            if let Some(namespace) = self.namespaces.get_mut(*handle)
                && let Some(log) = namespace.log.take_if(|log| log.idle(now))
            {
                // No number of a log that went is one of a log to come.
                self.next_log = self.next_log.max(log.last() + 1);
            }
        }
    }
}
