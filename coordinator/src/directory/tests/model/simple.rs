//! The model: a message is applied to a copy, and the copy is dropped when something was wrong.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
    time::Duration,
};

use super::{
    Added, Change, Declare, HIDE, LIMITS, NodeState, PURGE, SLOTS, Said, claims::Lease,
    locations::Locations,
};

#[derive(Debug, Clone, Default)]
pub(super) struct Model {
    pub(super) now: Duration,
    pub(super) newest: u64,
    pub(super) nodes: BTreeMap<usize, Node>,
    /// Name to variant.
    pub(super) namespaces: BTreeMap<usize, u32>,
    /// Sessions the last operation closed.
    pub(super) closed: BTreeSet<u64>,
    /// By their tokens, as the directory gave them out.
    pub(super) leases: BTreeMap<u64, Lease>,
    pub(super) locations: Locations,
    /// Copies the last operation's sender is told of: region, slot, generation.
    pub(super) surplus: Vec<(u32, u32, u64)>,
    /// The gap for which the last operation's sender is asked for an inventory: the delta expected, and the one named.
    pub(super) asked: Option<(u64, u64)>,
}

#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) incarnation: u64,
    pub(super) session: Option<u64>,
    pub(super) last_seen: Duration,
    pub(super) hidden: bool,
    pub(super) draining: bool,
    pub(super) applied: u64,
    pub(super) sync: SyncState,
    pub(super) regions: BTreeMap<u32, Standing>,
}

#[derive(Debug, Clone)]
pub(super) enum SyncState {
    Live,
    Awaiting,
    Receiving {
        seq: u64,
        named: BTreeMap<u32, BTreeSet<u32>>,
    },
}

#[derive(Debug, Clone)]
pub(super) enum Standing {
    Accepted(Region),
    Refused,
    Deleted,
}

#[derive(Debug, Clone)]
pub(super) struct Region {
    pub(super) namespace: usize,
    /// Slot to (hash, generation).
    pub(super) slots: BTreeMap<u32, (u64, u64)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) node: usize,
    pub(super) incarnation: u64,
    pub(super) region: u32,
    pub(super) slot: u32,
    pub(super) generation: u64,
}

/// Something no correct agent says.
struct Wrong;

impl Node {
    pub(super) fn state(&self) -> NodeState {
        if self.hidden {
            NodeState::Hidden
        } else if self.draining {
            NodeState::Draining
        } else {
            NodeState::Live
        }
    }

    pub(super) fn accepted(&self) -> impl Iterator<Item = (u32, &Region)> {
        self.regions
            .iter()
            .filter_map(|(id, standing)| match standing {
                Standing::Accepted(region) => Some((*id, region)),
                _ => None,
            })
    }

    fn clear(&mut self, region: u32, slots: &[u32]) -> Result<(), Wrong> {
        match self.regions.get_mut(&region).ok_or(Wrong)? {
            Standing::Accepted(region) => {
                for slot in slots {
                    region.slots.remove(slot);
                }
            }
            Standing::Refused | Standing::Deleted => {}
        }
        Ok(())
    }

    /// `fresh` regions were declared in this message: what is said of them must fit even if they
    /// are refused.
    fn seal(&mut self, region: u32, added: &Added, fresh: &BTreeSet<u32>) -> Result<(), Wrong> {
        let standing = self.regions.get_mut(&region).ok_or(Wrong)?;
        if !matches!(standing, Standing::Accepted(_)) && !fresh.contains(&region) {
            return Ok(());
        }
        for (slot, hash, generation) in added {
            if *slot >= SLOTS || generation % 2 == 1 {
                return Err(Wrong);
            }
            if let Standing::Accepted(region) = standing {
                region.slots.insert(*slot, (*hash, *generation));
            }
        }
        Ok(())
    }
}

impl Model {
    pub(super) fn open(&mut self) -> u64 {
        self.newest += 1;
        self.newest
    }

    pub(super) fn sessions(&self) -> impl Iterator<Item = u64> {
        self.nodes.values().filter_map(|node| node.session)
    }

    pub(super) fn speaker(&self, session: u64) -> Option<usize> {
        let mut nodes = self.nodes.iter();
        nodes
            .find(|(_, node)| node.session == Some(session))
            .map(|(n, _)| *n)
    }

    pub(super) fn expected(&self, session: u64) -> u64 {
        let node = self.speaker(session).map(|node| &self.nodes[&node]);
        node.map_or(1, |node| node.applied + 1)
    }

    /// Near the one that is known; never zero.
    pub(super) fn incarnation(&self, node: usize, skew: i64) -> u64 {
        let known = self.nodes.get(&node).map_or(5, |node| node.incarnation);
        known.saturating_add_signed(skew).max(1)
    }

    pub(super) fn hidden(&self, node: usize) -> bool {
        self.nodes[&node].hidden
    }

    pub(super) fn regions_of(&self, namespace: usize) -> usize {
        let regions = self.nodes.values().flat_map(Node::accepted);
        regions
            .filter(|(_, region)| region.namespace == namespace)
            .count()
    }

    pub(super) fn owners(&self, namespace: usize, hash: u64) -> Vec<Place> {
        let mut places = Vec::new();
        for (index, node) in &self.nodes {
            for (id, region) in node.accepted().filter(|(_, r)| r.namespace == namespace) {
                for (slot, (_, generation)) in region.slots.iter().filter(|(_, s)| s.0 == hash) {
                    places.push(Place {
                        node: *index,
                        incarnation: node.incarnation,
                        region: id,
                        slot: *slot,
                        generation: *generation,
                    });
                }
            }
        }
        places
    }

    /// Whether a resync is asked for; None where the hello is refused.
    pub(super) fn hello(
        &mut self,
        session: u64,
        node: usize,
        incarnation: u64,
        knows_us: bool,
        can_send: RangeInclusive<u64>,
    ) -> Option<bool> {
        let known = self.nodes.get(&node).map(|node| node.incarnation);
        let full = known.is_none() && self.nodes.len() >= LIMITS.nodes as usize;
        if full || known > Some(incarnation) {
            self.closed.insert(session);
            return None;
        }
        self.closed
            .extend(self.nodes.get(&node).and_then(|node| node.session));
        let draining = self.nodes.get(&node).is_some_and(|node| node.draining);
        if known != Some(incarnation) {
            self.nodes.remove(&node);
        }
        let now = self.now;
        let node = self.nodes.entry(node).or_insert(Node {
            incarnation,
            session: None,
            last_seen: now,
            hidden: false,
            draining,
            applied: 0,
            sync: SyncState::Live,
            regions: BTreeMap::new(),
        });
        node.session = Some(session);
        node.last_seen = now;
        node.hidden = false;
        let in_step = matches!(node.sync, SyncState::Live);
        let resync = !knows_us || !in_step || !can_send.contains(&(node.applied + 1));
        if resync {
            node.sync = SyncState::Awaiting;
        }
        Some(resync)
    }

    pub(super) fn say(&mut self, session: u64, said: &Said) {
        let Some(index) = self.speaker(session) else {
            // A session that never was, or is no more; a hello on it opens one.
            if matches!(said, Said::Hello) {
                self.hello(session, 0, 9, true, 1..=1);
            }
            return;
        };
        if let Some(node) = self.nodes.get_mut(&index)
            && !matches!(said, Said::Ended)
        {
            node.last_seen = self.now;
            node.hidden = false;
        }
        let mut copy = self.clone();
        match copy.apply(index, said) {
            Ok(()) => *self = copy,
            Err(Wrong) => {
                self.end(index);
                self.closed.insert(session);
            }
        }
        if matches!(said, Said::Goodbye) {
            self.closed.insert(session);
        }
    }

    fn end(&mut self, index: usize) {
        if let Some(node) = self.nodes.get_mut(&index) {
            node.session = None;
        }
    }

    fn apply(&mut self, index: usize, said: &Said) -> Result<(), Wrong> {
        match said {
            Said::Heartbeat { skew } => {
                let skew = skew.unwrap_or(0);
                self.gap(index, skew);
                Ok(())
            }
            Said::Goodbye => {
                self.nodes.remove(&index);
                Ok(())
            }
            Said::Ended => {
                self.end(index);
                Ok(())
            }
            Said::Hello => Err(Wrong),
            Said::Delta {
                skew,
                removed,
                added,
                changes,
            } => self.delta(index, *skew, removed, added, changes),
            Said::Inventory {
                seq,
                first,
                last,
                regions,
                sealed,
            } => self.inventory(index, *seq, (*first, *last), regions, sealed),
        }
    }

    fn count_copies(&mut self, index: usize, id: u32, added: &Added) {
        let standing = self.nodes[&index].regions.get(&id);
        let Some(Standing::Accepted(region)) = standing else {
            return;
        };
        let namespace = region.namespace;
        let Some(wanted) = self.locations.policy(namespace).copies else {
            return;
        };
        for (slot, hash, generation) in added {
            let owners = self.owners(namespace, *hash).into_iter();
            let others: BTreeSet<usize> = owners
                .map(|owner| owner.node)
                .filter(|node| *node != index && self.nodes[node].state() == NodeState::Live)
                .collect();
            if others.len() >= wanted as usize {
                self.surplus.push((id, *slot, *generation));
            }
        }
    }

    /// Something after the expected delta is spoken of: an inventory is asked for, unless one is due.
    fn gap(&mut self, index: usize, skew: i64) -> bool {
        let node = self.node(index);
        let gap = skew > 0 && matches!(node.sync, SyncState::Live);
        if gap {
            node.sync = SyncState::Awaiting;
            let expected = node.applied + 1;
            self.asked = Some((expected, expected.saturating_add_signed(skew)));
        }
        gap
    }

    fn node(&mut self, index: usize) -> &mut Node {
        self.nodes.get_mut(&index).unwrap()
    }

    fn delta(
        &mut self,
        index: usize,
        skew: i64,
        removed: &[u32],
        added: &[Declare],
        changes: &[Change],
    ) -> Result<(), Wrong> {
        let node = self.node(index);
        let seq = (node.applied + 1).saturating_add_signed(skew);
        if !matches!(node.sync, SyncState::Live) || seq <= node.applied {
            return Ok(());
        }
        if self.gap(index, skew) {
            return Ok(());
        }
        let node = self.node(index);
        let known: BTreeSet<u32> = node.regions.keys().copied().collect();
        for region in removed {
            node.regions.remove(region);
        }
        let mut fresh = BTreeSet::new();
        for declare in added {
            if known.contains(&declare.region) || !fresh.insert(declare.region) {
                return Err(Wrong);
            }
            self.declare(index, declare);
        }
        for change in changes {
            // Even one that was declared again in vain.
            if removed.contains(&change.region) {
                return Err(Wrong);
            }
            let node = self.node(index);
            node.clear(change.region, &change.removed)?;
            node.seal(change.region, &change.added, &fresh)?;
            self.fulfil(index, change.region, &change.added);
            self.count_copies(index, change.region, &change.added);
        }
        self.node(index).applied = seq;
        Ok(())
    }

    fn declare(&mut self, index: usize, declare: &Declare) {
        let regions: usize = self
            .nodes
            .values()
            .map(|node| node.accepted().count())
            .sum();
        let slots_full = (regions as u64 + 1) * u64::from(SLOTS) > LIMITS.slots;
        let namespaces_full = self.namespaces.len() >= LIMITS.namespaces as usize;
        let node = &self.nodes[&index];
        let node_full = node.accepted().count() >= LIMITS.regions_per_node as usize;
        let deleted = matches!(node.regions.get(&declare.region), Some(Standing::Deleted));
        let fits = match self.namespaces.get(&declare.namespace) {
            Some(variant) => {
                *variant == declare.variant && self.slots_fit_namespace(declare.namespace)
            }
            None => !namespaces_full,
        };
        let standing = if deleted {
            Standing::Deleted
        } else if node_full || slots_full || !fits {
            Standing::Refused
        } else {
            self.namespaces.insert(declare.namespace, declare.variant);
            Standing::Accepted(Region {
                namespace: declare.namespace,
                slots: BTreeMap::new(),
            })
        };
        self.node(index).regions.insert(declare.region, standing);
    }

    /// How many nodes are asked for an inventory where a quota was raised: those that were refused a region.
    pub(super) fn hear_refused_again(&mut self, raised: bool) -> usize {
        let nodes = self.nodes.values_mut().filter(|node| {
            let mut standings = node.regions.values();
            let refused = standings.any(|standing| matches!(standing, Standing::Refused));
            raised && refused && node.session.is_some() && matches!(node.sync, SyncState::Live)
        });
        nodes.map(|node| node.sync = SyncState::Awaiting).count()
    }

    fn slots_fit_namespace(&self, namespace: usize) -> bool {
        let accepted = self.nodes.values().flat_map(Node::accepted);
        let theirs = accepted.filter(|(_, region)| region.namespace == namespace);
        let quota = self.locations.policy(namespace).slots;
        (theirs.count() as u64 + 1) * u64::from(SLOTS) <= quota.unwrap_or(u64::MAX)
    }

    fn inventory(
        &mut self,
        index: usize,
        part_seq: u64,
        (first, last): (bool, bool),
        regions: &[Declare],
        sealed: &[(u32, Added)],
    ) -> Result<(), Wrong> {
        if first {
            self.node(index).sync = SyncState::Receiving {
                seq: part_seq,
                named: BTreeMap::new(),
            };
        }
        let mut fresh = BTreeSet::new();
        for declare in regions {
            if !fresh.insert(declare.region) {
                return Err(Wrong);
            }
            let standing = self.node(index).regions.get(&declare.region).cloned();
            if let Some(Standing::Accepted(region)) = standing {
                let variant = self.namespaces[&region.namespace];
                if (region.namespace, variant) != (declare.namespace, declare.variant) {
                    return Err(Wrong);
                }
            } else {
                self.declare(index, declare);
            }
        }
        for (region, added) in sealed {
            self.node(index).seal(*region, added, &fresh)?;
            self.fulfil(index, *region, added);
            self.count_copies(index, *region, added);
        }
        let node = self.node(index);
        let SyncState::Receiving { seq, named } = &mut node.sync else {
            return Err(Wrong);
        };
        if *seq != part_seq {
            return Err(Wrong);
        }
        for declare in regions {
            named.entry(declare.region).or_default();
        }
        for (region, added) in sealed {
            if matches!(node.regions.get(region), Some(Standing::Accepted(_))) {
                let slots = named.entry(*region).or_default();
                slots.extend(added.iter().map(|slot| slot.0));
            }
        }
        if last {
            let named = std::mem::take(named);
            node.sync = SyncState::Live;
            node.applied = part_seq;
            node.regions.retain(|id, _| named.contains_key(id));
            for (id, slots) in &named {
                if let Some(Standing::Accepted(region)) = node.regions.get_mut(id) {
                    region.slots.retain(|slot, _| slots.contains(slot));
                }
            }
        }
        Ok(())
    }

    pub(super) fn tick(&mut self, advance: Duration) {
        self.now += advance;
        let now = self.now;
        for node in self.nodes.values_mut() {
            node.hidden |= now - node.last_seen >= HIDE;
        }
        let silent = |node: &Node| now - node.last_seen >= PURGE;
        let purged = self.nodes.values().filter(|node| silent(node));
        self.closed.extend(purged.filter_map(|node| node.session));
        self.nodes.retain(|_, node| !silent(node));
    }

    /// As the directory answers: whether it is new, or None where refused.
    pub(super) fn create(&mut self, namespace: usize, variant: u32) -> Option<bool> {
        match self.namespaces.get(&namespace) {
            Some(known) => (*known == variant).then_some(false),
            None if self.namespaces.len() >= LIMITS.namespaces as usize => None,
            None => {
                self.namespaces.insert(namespace, variant);
                Some(true)
            }
        }
    }

    pub(super) fn delete(&mut self, namespace: usize, force: bool) -> bool {
        let in_use = self.regions_of(namespace) > 0;
        if !self.namespaces.contains_key(&namespace) || (in_use && !force) {
            return false;
        }
        self.namespaces.remove(&namespace);
        for standing in self.nodes.values_mut().flat_map(|n| n.regions.values_mut()) {
            if matches!(standing, Standing::Accepted(region) if region.namespace == namespace) {
                *standing = Standing::Deleted;
            }
        }
        true
    }

    pub(super) fn drain(&mut self, node: usize, draining: bool) -> bool {
        match self.nodes.get_mut(&node) {
            Some(node) => {
                node.draining = draining;
                true
            }
            None => false,
        }
    }
}
