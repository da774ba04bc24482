//! What one lifetime of a coordinator took in of published sets: the simulation's own account.

use std::collections::BTreeMap;

use kvferry_coordinator::sources::{Announcer, Said};
use kvferry_proto::{Incarnation, NodeId, SourceId};

use super::sets::Set;

/// One lifetime of a coordinator: what it took in.
#[derive(Debug, Default)]
pub(crate) struct Book {
    /// The last number taken in of each process.
    numbers: BTreeMap<(NodeId, Incarnation), u64>,
    pub(crate) workers: BTreeMap<(NodeId, SourceId), Taken>,
    /// Publications that an operator removed.
    removed: BTreeMap<(NodeId, SourceId), Removed>,
}

/// A worker that was taken in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Taken {
    pub(crate) incarnation: Incarnation,
    pub(crate) publication: u64,
    pub(crate) said: Said,
}

/// A publication that an operator removed.
#[derive(Debug)]
struct Removed {
    incarnation: Incarnation,
    publication: u64,
    /// Its node has been there since: else it may be forgotten after a while.
    stayed: bool,
}

impl Book {
    /// An operator removes a source.
    pub(super) fn remove(&mut self, source: SourceId) {
        let removed = &mut self.removed;
        self.workers.retain(|key, worker| {
            let goes = key.1 == source;
            if goes {
                let gone = Removed {
                    incarnation: worker.incarnation,
                    publication: worker.publication,
                    stayed: true,
                };
                removed.insert(key.clone(), gone);
            }
            !goes
        });
    }

    /// The coordinator looks which incarnations are there.
    pub(super) fn look(&mut self, stays: impl Fn(&NodeId, Incarnation) -> bool) {
        self.workers
            .retain(|(node, _), worker| stays(node, worker.incarnation));
        for ((node, _), removed) in &mut self.removed {
            removed.stayed &= stays(node, removed.incarnation);
        }
    }

    /// What an agent said was taken in. Says what should not have been.
    pub(super) fn hear(
        &mut self,
        who: &Announcer,
        full: bool,
        named: &[(usize, Set)],
        unknown: &[(usize, Set)],
        removed: &[(usize, Set)],
        id: impl Fn(usize) -> SourceId,
    ) -> Option<String> {
        let (node, incarnation) = (&who.node, who.incarnation);
        self.workers
            .retain(|key, worker| key.0 != *node || worker.incarnation == incarnation);
        let last = self.numbers.insert((node.clone(), incarnation), who.number);
        let mut broken = last
            .filter(|last| *last >= who.number)
            .map(|last| format!("{} of {node} was taken in after {last}", who.number));
        if !full {
            let all: Vec<_> = named.iter().map(|(kind, _)| id(*kind)).collect();
            self.workers
                .retain(|key, _| key.0 != *node || all.contains(&key.1));
        }
        for (kind, set) in named.iter().filter(|named| !unknown.contains(named)) {
            let key = (node.clone(), id(*kind));
            let known = self.removed.get(&key).filter(|removed| {
                removed.incarnation == incarnation && removed.publication >= set.publication
            });
            let (may, must) = (known.is_some(), known.is_some_and(|removed| removed.stayed));
            let was_removed = removed.contains(&(*kind, *set));
            if was_removed && !may || must && !was_removed {
                broken = Some(format!(
                    "a set of {node} was removed: {may}; it is told that: {was_removed}"
                ));
            }
            if !was_removed {
                let worker = Taken {
                    incarnation,
                    publication: set.publication,
                    said: set.said,
                };
                self.workers.insert(key, worker);
            }
        }
        broken
    }
}
