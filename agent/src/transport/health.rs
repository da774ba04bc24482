//! Peers that stopped answering, remembered so that the next pull does not pay for it again.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use kvferry_proto::{Incarnation, NodeId};

use super::PeerTarget;

/// Most suspects remembered; beyond it peers are found out anew, at the price of a stall each.
const MAX_SUSPECTS: usize = 4096;
/// Before the first probe, and the least time between two.
const FIRST_PROBE: Duration = Duration::from_millis(500);
/// Most time between two probes: how long a peer that came back may go unused.
const LAST_PROBE: Duration = Duration::from_secs(5);

/// Who is suspect, and when to probe whom. Time is an argument.
#[derive(Debug, Default)]
pub(super) struct PeerHealth {
    suspects: HashMap<(NodeId, Incarnation), Suspect>,
}

#[derive(Debug)]
struct Suspect {
    peer: PeerTarget,
    probe_at: Instant,
    pause: Duration,
}

impl PeerHealth {
    /// It did not answer in time. Suspecting a suspect changes nothing.
    pub(super) fn suspect(&mut self, now: Instant, peer: &PeerTarget) {
        let key = (peer.node.clone(), peer.incarnation);
        if self.suspects.len() < MAX_SUSPECTS || self.suspects.contains_key(&key) {
            self.suspects.entry(key).or_insert_with(|| Suspect {
                peer: peer.clone(),
                probe_at: now + FIRST_PROBE,
                pause: FIRST_PROBE,
            });
        }
    }

    pub(super) fn is_suspect(&self, node: &NodeId, incarnation: Incarnation) -> bool {
        self.suspects.contains_key(&(node.clone(), incarnation))
    }

    /// It answered, or will never be asked again.
    pub(super) fn clear(&mut self, node: &NodeId, incarnation: Incarnation) -> bool {
        self.suspects.remove(&(node.clone(), incarnation)).is_some()
    }

    /// Forgets lifetimes of a node before this one.
    pub(super) fn clear_before(&mut self, node: &NodeId, incarnation: Incarnation) {
        self.suspects
            .retain(|(n, i), _| n != node || *i >= incarnation);
    }

    /// At most `most` suspects whose probe is due; each is next due after a longer pause.
    pub(super) fn due(&mut self, now: Instant, most: usize) -> Vec<PeerTarget> {
        let due = self.suspects.values_mut().filter(|s| s.probe_at <= now);
        due.take(most)
            .map(|suspect| {
                suspect.pause = (suspect.pause * 2).min(LAST_PROBE);
                suspect.probe_at = now + suspect.pause;
                suspect.peer.clone()
            })
            .collect()
    }

    pub(super) fn len(&self) -> usize {
        self.suspects.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvferry_proto::NodeAddresses;

    #[test]
    fn suspects_are_probed_ever_more_seldom_until_cleared() {
        let mut health = PeerHealth::default();
        let mut now = Instant::now();
        let peer = PeerTarget {
            node: NodeId::new("a").unwrap(),
            incarnation: Incarnation::new(1).unwrap(),
            addresses: NodeAddresses::default(),
        };
        health.suspect(now, &peer);
        health.suspect(now, &peer);
        assert!(health.is_suspect(&peer.node, peer.incarnation));
        assert!(health.due(now, 9).is_empty());
        let mut waited = Vec::new();
        for _ in 0..6 {
            let start = now;
            while health.due(now, 9).is_empty() {
                now += Duration::from_millis(100);
            }
            waited.push((now - start).as_millis());
        }
        assert_eq!(waited, [500, 1000, 2000, 4000, 5000, 5000]);
        assert!(health.clear(&peer.node, peer.incarnation));
        assert!(!health.is_suspect(&peer.node, peer.incarnation));
        assert_eq!(health.len(), 0);
    }
}
