//! Which node gets a request. Stands for the service's own router, and knows what such a one knows:
//! whom it sent what, and who is still busy; never what caches hold.

use std::collections::{BTreeSet, HashMap};

use serde::{Deserialize, Serialize};

/// How far a node may be busier than the others before requests that would find their prefix there go
/// elsewhere: this many times the mean, and a few requests more.
const OVERLOAD: usize = 2;
/// See [`OVERLOAD`].
const SPARE: usize = 4;

/// A policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Routing {
    /// One after the other: caches are found across the network or not at all.
    RoundRobin,
    /// Where the deepest block of the prompt was sent last, if that is at least half of the prompt and
    /// the node is not overloaded; else to the least busy node.
    Prefix,
}

impl Routing {
    /// As on the command line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RoundRobin => "round-robin",
            Self::Prefix => "prefix",
        }
    }
}

/// Sends requests to nodes.
#[derive(Debug)]
pub struct Router {
    routing: Routing,
    /// Requests under way at each node, and requests it ever got.
    loads: Vec<(usize, u64)>,
    /// `(under way, ever, node)`: the least busy first.
    order: BTreeSet<(usize, u64, usize)>,
    under_way: usize,
    next: usize,
    /// The node a block was sent to last.
    last: HashMap<u64, usize>,
}

impl Router {
    /// For nodes 0 to `nodes`.
    #[must_use]
    pub fn new(routing: Routing, nodes: u32) -> Self {
        let nodes = nodes.max(1) as usize;
        Self {
            routing,
            loads: vec![(0, 0); nodes],
            order: (0..nodes).map(|node| (0, 0, node)).collect(),
            under_way: 0,
            next: 0,
            last: HashMap::new(),
        }
    }

    /// The node for a prompt; it is busy with it until [`Router::done`].
    pub fn choose(&mut self, blocks: &[u64]) -> usize {
        let node = match self.routing {
            Routing::RoundRobin => {
                let node = self.next % self.loads.len();
                self.next += 1;
                node
            }
            Routing::Prefix => self.by_prefix(blocks),
        };
        if self.routing == Routing::Prefix {
            self.last.extend(blocks.iter().map(|block| (*block, node)));
        }
        self.change(node, |(busy, ever)| (busy + 1, ever + 1));
        self.under_way += 1;
        node
    }

    /// The node is through with a request.
    pub fn done(&mut self, node: usize) {
        self.change(node, |(busy, ever)| (busy.saturating_sub(1), ever));
        self.under_way = self.under_way.saturating_sub(1);
    }

    fn by_prefix(&self, blocks: &[u64]) -> usize {
        let deepest = blocks.iter().enumerate().rev().find_map(|(depth, block)| {
            let node = *self.last.get(block)?;
            (2 * (depth + 1) >= blocks.len()).then_some(node)
        });
        let most = OVERLOAD * self.under_way / self.loads.len() + SPARE;
        let free = |node: &usize| self.loads.get(*node).is_some_and(|(busy, _)| *busy < most);
        let least_busy = || self.order.first().map_or(0, |(_, _, node)| *node);
        deepest.filter(free).unwrap_or_else(least_busy)
    }

    fn change(&mut self, node: usize, change: impl FnOnce((usize, u64)) -> (usize, u64)) {
        if let Some(load) = self.loads.get_mut(node) {
            self.order.remove(&(load.0, load.1, node));
            *load = change(*load);
            self.order.insert((load.0, load.1, node));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_after_the_other() {
        let mut router = Router::new(Routing::RoundRobin, 3);
        let nodes: Vec<_> = (0..4).map(|_| router.choose(&[1])).collect();
        assert_eq!(nodes, [0, 1, 2, 0]);
    }

    #[test]
    fn a_conversation_stays_where_it_is_and_a_shared_start_binds_nobody() {
        let mut router = Router::new(Routing::Prefix, 2);
        let first = router.choose(&[0, 1, 2]);
        router.done(first);
        // The same conversation, one block longer; and another with the same system prompt.
        assert_eq!(router.choose(&[0, 1, 2, 3]), first);
        assert_ne!(router.choose(&[0, 7, 8, 9]), first);
    }

    #[test]
    fn nobody_is_sent_to_a_node_that_is_overloaded() {
        let mut router = Router::new(Routing::Prefix, 4);
        let nodes: BTreeSet<_> = (0..40).map(|_| router.choose(&[1, 2])).collect();
        assert!(nodes.len() > 1, "{nodes:?}");
    }
}
