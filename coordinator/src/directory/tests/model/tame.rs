//! Random nonsense is refused at once and tests little: this bends what is said into what a correct
//! agent in the model's state could say.

use std::collections::BTreeSet;

use super::{
    Added, Change, Declare, SLOTS, Said,
    simple::{Model, Node, Standing, SyncState},
};

impl Model {
    pub(super) fn tame(&self, session: u64, said: Said) -> Said {
        let Some(node) = self.speaker(session).map(|node| &self.nodes[&node]) else {
            return said;
        };
        match said {
            Said::Delta {
                skew,
                removed,
                added,
                changes,
            } => tame_delta(node, skew, &removed, added, changes),
            Said::Inventory {
                seq,
                first,
                last,
                regions,
                sealed,
            } => {
                let (first, seq) = match &node.sync {
                    SyncState::Receiving { seq, .. } if !first => (false, *seq),
                    _ => (true, seq),
                };
                let regions = self.tame_regions(node, regions);
                let held = node.regions.keys().chain(regions.iter().map(|r| &r.region));
                let held: Vec<u32> = held.copied().collect();
                let sealed = sealed
                    .into_iter()
                    .filter_map(|(region, added)| Some((pick(&held, region)?, tame_added(added))));
                Said::Inventory {
                    seq,
                    first,
                    last,
                    sealed: sealed.collect(),
                    regions,
                }
            }
            other => other,
        }
    }

    /// Regions that are held, as they were declared; a new one now and then.
    fn tame_regions(&self, node: &Node, regions: Vec<Declare>) -> Vec<Declare> {
        let held: Vec<u32> = node.regions.keys().copied().collect();
        let mut seen = BTreeSet::new();
        let mut fresh = unused(node);
        let regions = regions.into_iter().map(|declare| {
            let region = pick(&held, declare.region).filter(|_| declare.region != 4);
            let Some(region) = region else {
                fresh += 1;
                return Declare {
                    region: fresh - 1,
                    ..declare
                };
            };
            match &node.regions[&region] {
                Standing::Accepted(accepted) => Declare {
                    region,
                    namespace: accepted.namespace,
                    variant: self.namespaces[&accepted.namespace],
                },
                Standing::Refused | Standing::Deleted => Declare { region, ..declare },
            }
        });
        regions
            .filter(|declare| seen.insert(declare.region))
            .collect()
    }
}

fn tame_delta(
    node: &Node,
    skew: i64,
    removed: &[u32],
    added: Vec<Declare>,
    changes: Vec<Change>,
) -> Said {
    let mut held: Vec<u32> = node.regions.keys().copied().collect();
    // Not too often: a node without regions has little to say.
    let removed = removed.iter().filter(|number| **number == 4);
    let removed: Vec<u32> = removed.filter_map(|number| pick(&held, *number)).collect();
    held.retain(|region| !removed.contains(region));
    let added: Vec<Declare> = (unused(node)..)
        .zip(added)
        .map(|(region, declare)| Declare { region, ..declare })
        .collect();
    held.extend(added.iter().map(|declare| declare.region));
    let changes = changes.into_iter().filter_map(|change| {
        Some(Change {
            region: pick(&held, change.region)?,
            added: tame_added(change.added),
            ..change
        })
    });
    Said::Delta {
        skew,
        removed,
        changes: changes.collect(),
        added,
    }
}

fn tame_added(added: Added) -> Added {
    let tame = |(slot, hash, generation)| (slot % SLOTS, hash, generation * 2);
    added.into_iter().map(tame).collect()
}

fn pick(from: &[u32], number: u32) -> Option<u32> {
    let at = number as usize % from.len().max(1);
    from.get(at).copied()
}

fn unused(node: &Node) -> u32 {
    node.regions.keys().next_back().map_or(1, |last| last + 1)
}
