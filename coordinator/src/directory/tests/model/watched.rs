//! What watchers apply equals the model, whatever happens, whenever they start or go on, and however slowly; where less is
//! kept than they are behind, they are told so.

use std::{
    collections::BTreeMap,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use proptest::{collection::vec, prelude::*};

use super::*;
use crate::directory::Change;

/// A watcher, and what it made of what it was told.
#[derive(Debug)]
struct Replica {
    watcher: Watcher,
    /// It was told all that was there: from here on nothing is told of what it doesn't know.
    synced: bool,
    nodes: BTreeMap<u32, WatchedNode>,
    regions: BTreeMap<u32, WatchedRegion>,
    /// (region, slot) to (hash, generation).
    copies: BTreeMap<(u32, u32), (u64, u64)>,
}

impl Replica {
    fn new(watcher: Watcher) -> Self {
        Self {
            watcher,
            synced: false,
            nodes: BTreeMap::new(),
            regions: BTreeMap::new(),
            copies: BTreeMap::new(),
        }
    }

    /// What a router does.
    fn apply(&mut self, change: &Change) {
        match change {
            Change::Node(node) => {
                self.nodes.insert(node.number, node.clone());
            }
            Change::NodeGone(node) => {
                self.nodes.remove(node);
                self.regions.retain(|_, region| region.node != *node);
                self.forget_copies();
            }
            Change::Region(region) => {
                self.regions.insert(region.number, *region);
            }
            Change::RegionGone(region) => {
                self.regions.remove(region);
                self.forget_copies();
            }
            Change::Rows(rows) => self.apply_rows(rows),
        }
    }

    fn apply_rows(&mut self, rows: &Rows) {
        for (change, region, slot, generation, hash) in rows.iter(HashLen::new(8).unwrap()) {
            let hash = u64::from_be_bytes(hash.try_into().unwrap());
            let place = (region, slot);
            assert!(self.regions.contains_key(&region), "told of before");
            let known = match change {
                CopyChange::Removed => self.copies.remove(&place),
                _ => self.copies.insert(place, (hash, generation)),
            };
            match change {
                CopyChange::Added => {}
                CopyChange::Removed | CopyChange::Moved if !self.synced => {}
                CopyChange::Removed | CopyChange::Moved => {
                    assert_eq!(known.map(|known| known.0), Some(hash));
                }
            }
        }
    }

    fn forget_copies(&mut self) {
        let regions = &self.regions;
        self.copies
            .retain(|place, _| regions.contains_key(&place.0));
    }

    /// Takes a step of its start. False when it is cut off.
    fn scan(&mut self, directory: &Directory) -> bool {
        match directory.scan(&mut self.watcher, 1) {
            Ok(Some(scanned)) => {
                scanned.changes.iter().for_each(|change| self.apply(change));
                self.apply_rows(&scanned.rows);
            }
            Ok(None) => {}
            // A namespace that is gone is heard of by who listens.
            Err(WatchEnd::Deleted) => {}
            Err(WatchEnd::TooSlow) => return false,
        }
        self.synced = !self.watcher.scans();
        true
    }

    /// Its stream is lost, and it goes on after what it was told last. None where it has to start anew.
    fn resume(self, directory: &mut Directory, name: &str) -> Option<Self> {
        let seq = self.watcher.seq();
        let (synced, nodes) = (self.synced, self.nodes);
        let (regions, copies) = (self.regions, self.copies);
        drop(self.watcher);
        match directory.watch(&namespace(name), Some((EPOCH, seq))) {
            Ok(watcher) => Some(Self {
                watcher,
                synced,
                nodes,
                regions,
                copies,
            }),
            Err(WatchError::TooOld { .. } | WatchError::NamespaceUnknown(_)) => None,
            Err(error) => panic!("{error}"),
        }
    }

    /// False when the namespace is gone, or it was cut off.
    fn listen(&mut self, tight: bool) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        loop {
            match self.watcher.poll_changes(&mut cx, 1) {
                Poll::Pending => return true,
                Poll::Ready(Err(end)) => {
                    assert!(tight || end == WatchEnd::Deleted, "{end}");
                    return false;
                }
                Poll::Ready(Ok(changes)) => {
                    changes
                        .iter()
                        .for_each(|change: &Arc<Change>| self.apply(change));
                }
            }
        }
    }

    /// (node, region, slot) to (hash, generation).
    fn held(&self) -> BTreeMap<(String, u32, u32), (u64, u64)> {
        let name = |(region, slot): &(u32, u32)| {
            let region = &self.regions[region];
            let node = &self.nodes[&region.node];
            (node.node.to_string(), region.region.0, *slot)
        };
        let copies = self.copies.iter();
        copies.map(|(place, copy)| (name(place), *copy)).collect()
    }

    fn compare(&self, model: &Model, namespace: usize) {
        let mut held = BTreeMap::new();
        let mut regions = Vec::new();
        for (index, node) in &model.nodes {
            let told = self
                .nodes
                .values()
                .find(|n| n.node.as_str() == NODES[*index]);
            let told = told.expect("the node was told of");
            assert_eq!(told.incarnation.get(), node.incarnation);
            assert_eq!(told.state, node.state());
            for (id, region) in node.accepted().filter(|(_, r)| r.namespace == namespace) {
                regions.push((told.number, id));
                for (slot, copy) in &region.slots {
                    held.insert((NODES[*index].to_owned(), id, *slot), *copy);
                }
            }
        }
        assert_eq!(self.nodes.len(), model.nodes.len());
        let told = self.regions.values().map(|r| (r.node, r.region.0));
        let mut told: Vec<_> = told.collect();
        told.sort_unstable();
        regions.sort_unstable();
        assert_eq!(told, regions);
        assert_eq!(self.held(), held);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    #[test]
    fn a_replica_equals_the_directory(
        operations in vec((operation(), any::<bool>(), prop::bool::weighted(0.1)), 1..60),
        stepwise in any::<bool>(),
        tight in any::<bool>(),
    ) {
        let way = if stepwise { step_by_step_and_sweep } else { Directory::handle };
        follow(&operations, way, tight);
    }
}

/// What is kept where that is little: a few changes.
const TIGHT: usize = 1_500;

fn follow(operations: &[(Operation, bool, bool)], way: Way, tight: bool) {
    let kept = if tight { TIGHT } else { LIMITS.watch_log_bytes };
    let mut directory = directory_of(Bounds {
        watch_log_bytes: kept,
        ..LIMITS
    });
    let mut model = Model::default();
    let mut replicas: [Option<Replica>; NAMESPACES.len()] = [None, None];
    for (operation, listens, breaks) in operations {
        run(&mut directory, &mut model, operation, way);
        for (index, replica) in replicas.iter_mut().enumerate() {
            if *breaks && replica.as_ref().is_some_and(|known| known.synced) {
                let lost = replica.take();
                *replica = lost.and_then(|lost| lost.resume(&mut directory, NAMESPACES[index]));
            }
            if let Some(known) = replica
                && *listens
                && !known.watcher.scans()
                && !known.listen(tight)
            {
                *replica = None;
            }
            match replica {
                Some(known) if known.watcher.scans() => {
                    // Slowly: operations come between.
                    if !known.scan(&directory) {
                        assert!(tight, "cut off");
                        *replica = None;
                    }
                }
                Some(known) if *listens => known.compare(&model, index),
                Some(_) => {}
                None => {
                    let begun = directory.watch(&namespace(NAMESPACES[index]), None);
                    *replica = begun.ok().map(Replica::new);
                }
            }
        }
    }
    for (index, replica) in replicas.iter_mut().enumerate() {
        if let Some(known) = replica {
            while known.watcher.scans() {
                if !known.scan(&directory) {
                    break;
                }
            }
            if !known.watcher.scans() && known.listen(tight) {
                known.compare(&model, index);
            }
        }
    }
}
