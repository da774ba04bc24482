//! Peers that stopped answering, remembered so that the next pull does not pay for it again.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use kvferry_proto::{Incarnation, NodeId};

use super::PeerTarget;
use crate::sabotage::{self, Bug};

/// Most suspects remembered; beyond it peers are found out anew, at the price of a stall each.
const MAX_SUSPECTS: usize = 4096;
/// Before the first probe, and the least time between two.
const FIRST_PROBE: Duration = Duration::from_millis(500);
/// Most time between two probes: how long a peer that came back may go unused.
const LAST_PROBE: Duration = Duration::from_secs(5);
/// A peer that has not answered for this long is forgotten: coordinators have purged it long ago, and a
/// fleet whose nodes come under ever new names must not fill the table for good.
const FORGET_AFTER: Duration = Duration::from_secs(3_600);

/// Who is suspect, and when to probe whom. Time is an argument.
#[derive(Debug, Default)]
pub struct PeerHealth {
    suspects: HashMap<(NodeId, Incarnation), Suspect>,
}

#[derive(Debug)]
struct Suspect {
    peer: PeerTarget,
    since: Instant,
    probe_at: Instant,
    pause: Duration,
}

impl PeerHealth {
    /// It did not answer in time. Suspecting a suspect changes nothing.
    pub fn suspect(&mut self, now: Instant, peer: &PeerTarget) {
        let key = (peer.node.clone(), peer.incarnation);
        if self.suspects.len() < MAX_SUSPECTS || self.suspects.contains_key(&key) {
            self.suspects.entry(key).or_insert_with(|| Suspect {
                peer: peer.clone(),
                since: now,
                probe_at: now + FIRST_PROBE,
                pause: FIRST_PROBE,
            });
        }
    }

    /// Did it stop answering, and has not answered a probe since?
    #[must_use]
    pub fn is_suspect(&self, node: &NodeId, incarnation: Incarnation) -> bool {
        self.suspects.contains_key(&(node.clone(), incarnation))
    }

    /// It answered, or will never be asked again.
    pub fn clear(&mut self, node: &NodeId, incarnation: Incarnation) -> bool {
        if sabotage::is(Bug::SuspectsNeverCleared) {
            return false;
        }
        self.suspects.remove(&(node.clone(), incarnation)).is_some()
    }

    /// Forgets lifetimes of a node before this one.
    pub fn clear_before(&mut self, node: &NodeId, incarnation: Incarnation) {
        self.suspects
            .retain(|(n, i), _| n != node || *i >= incarnation);
    }

    /// At most `most` suspects whose probe is due; each is next due after a longer pause. Those that have
    /// been silent for too long are forgotten.
    pub fn due(&mut self, now: Instant, most: usize) -> Vec<PeerTarget> {
        self.suspects
            .retain(|_, suspect| now.saturating_duration_since(suspect.since) < FORGET_AFTER);
        let due = self.suspects.values_mut().filter(|s| s.probe_at <= now);
        due.take(most)
            .map(|suspect| {
                suspect.pause = (suspect.pause * 2).min(LAST_PROBE);
                suspect.probe_at = now + suspect.pause;
                suspect.peer.clone()
            })
            .collect()
    }

    /// How many suspects there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.suspects.len()
    }

    /// Nobody is suspect.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.suspects.is_empty()
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
        let later = now + FORGET_AFTER;
        let mut forgets = PeerHealth::default();
        forgets.suspect(now, &peer);
        assert_eq!(forgets.due(later - FIRST_PROBE, 9).len(), 1);
        assert!(forgets.due(later, 9).is_empty() && forgets.is_empty());
        assert!(health.clear(&peer.node, peer.incarnation));
        assert!(!health.is_suspect(&peer.node, peer.incarnation));
        assert_eq!(health.len(), 0);
    }
}
