//! What this agent reads from whom: its coordinators are told with every heartbeat, and send readers to
//! those who are read less.

use std::collections::HashMap;

use kvferry_proto::{NodeId, pb};
use parking_lot::Mutex;

/// Nodes a heartbeat names, as the coordinator takes them: those read from most.
const MAX_TOLD: usize = 64;
/// Nodes counted. Beyond that counting begins anew: it is a hint.
const MAX_COUNTED: usize = 1_024;

/// Bytes read from each node.
#[derive(Debug, Default)]
pub struct Reads(Mutex<Count>);

/// What one coordinator was told.
#[derive(Debug, Default)]
pub struct Told(Count);

#[derive(Debug, Clone, Default)]
struct Count {
    /// How often counting began anew.
    era: u64,
    bytes: HashMap<NodeId, u64>,
}

impl Reads {
    /// Counts bytes from nodes.
    pub fn count(&self, from: impl IntoIterator<Item = (NodeId, u64)>) {
        let mut all = self.0.lock();
        for (node, bytes) in from {
            if all.bytes.len() >= MAX_COUNTED && !all.bytes.contains_key(&node) {
                all.bytes.clear();
                all.era += 1;
            }
            *all.bytes.entry(node).or_default() += bytes;
        }
    }

    /// What has come since it was last told, the most first.
    pub fn since(&self, told: &mut Told) -> Vec<pb::SourceReads> {
        let all = self.0.lock().clone();
        if told.0.era != all.era {
            told.0.bytes.clear();
        }
        let since = all.bytes.iter().map(|(node, bytes)| {
            let before = told.0.bytes.get(node).copied().unwrap_or(0);
            pb::SourceReads {
                node: node.to_string(),
                bytes: bytes.saturating_sub(before),
            }
        });
        let mut since: Vec<_> = since.filter(|read| read.bytes > 0).collect();
        told.0 = all;
        since.sort_unstable_by(|a, b| (b.bytes, &a.node).cmp(&(a.bytes, &b.node)));
        since.truncate(MAX_TOLD);
        since
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> NodeId {
        NodeId::new(name).unwrap()
    }

    fn spell(reads: &[pb::SourceReads]) -> Vec<(&str, u64)> {
        reads.iter().map(|r| (r.node.as_str(), r.bytes)).collect()
    }

    #[test]
    fn each_coordinator_hears_of_every_byte_once() {
        let (reads, mut one, mut two) = (Reads::default(), Told::default(), Told::default());
        reads.count([(node("a"), 5), (node("b"), 7)]);
        assert_eq!(spell(&reads.since(&mut one)), [("b", 7), ("a", 5)]);
        reads.count([(node("a"), 1)]);
        assert_eq!(spell(&reads.since(&mut one)), [("a", 1)]);
        assert_eq!(spell(&reads.since(&mut one)), []);
        assert_eq!(spell(&reads.since(&mut two)), [("b", 7), ("a", 6)]);
    }

    #[test]
    fn tables_and_messages_are_bounded_and_the_most_is_told() {
        let (reads, mut told) = (Reads::default(), Told::default());
        let name = |n: u64| node(&format!("n{n}"));
        reads.count((1..=1_024).map(|n| (name(n), n)));
        let since = reads.since(&mut told);
        assert_eq!(since.len(), MAX_TOLD);
        assert_eq!(spell(&since)[0], ("n1024", 1_024));
        reads.count([(name(2_000), 3), (name(1), 1)]);
        let since = reads.since(&mut told);
        assert_eq!(spell(&since), [("n2000", 3), ("n1", 1)]);
        assert_eq!(reads.0.lock().bytes.len(), 2);
    }
}
