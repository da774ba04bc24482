//! What is done for links while nobody waits: idle ones go, suspects are probed, better ways are tried again.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use super::{Shared, clock, count, table::Key};
use crate::transport::{ConnectError, PeerTarget};

/// How often.
const UPKEEP: Duration = Duration::from_secs(1);
/// Most probes, and most tries of better ways, begun at once: a rack that went away must not become a storm.
const MAX_PROBES: usize = 16;
/// A peer that was asked for so long ago is not tried by a better way for now.
const WANTED: Duration = Duration::from_secs(60);

/// Until the links are gone.
pub(super) async fn run(shared: Weak<Shared>) {
    loop {
        tokio::time::sleep(UPKEEP).await;
        let Some(shared) = shared.upgrade() else {
            return;
        };
        shared.drop_idle();
        let due = shared.health.lock().due(clock(), MAX_PROBES);
        for peer in due {
            let shared = Arc::clone(&shared);
            tokio::spawn(async move { shared.probe(&peer).await });
        }
        for (key, peer) in shared.degraded() {
            let shared = Arc::clone(&shared);
            tokio::spawn(async move { shared.climb(&key, &peer).await });
        }
    }
}

impl Shared {
    /// Drops links that nobody used for long, and forgets peers likewise.
    fn drop_idle(&self) {
        let (now, idle) = (clock(), self.config.idle);
        let mut dropped = Vec::new();
        self.peers.lock().retain(|_, peer| {
            let in_use = peer.link.as_ref().is_some_and(|l| Arc::strong_count(l) > 1);
            let keep = in_use
                || Arc::strong_count(&peer.gate) > 1
                || now.saturating_duration_since(peer.used) < idle;
            if !keep && let Some(link) = peer.link.take() {
                dropped.push(link);
            }
            keep
        });
        for _ in dropped {
            count(&self.counters.evictions);
        }
    }

    /// A hello over the transport, at no cost to the peer; it clears a suspect when it is answered.
    async fn probe(&self, peer: &PeerTarget) {
        count(&self.counters.probes);
        let bare = self.key(peer, false);
        match self.connect(&bare, peer).await {
            Ok(link) => {
                if self.health.lock().clear(&peer.node, peer.incarnation) {
                    tracing::info!(node = %peer.node, "a suspect answers again");
                }
                let mut peers = self.peers.lock();
                for key in [self.key(peer, true), bare.clone()] {
                    if let Some(entry) = peers.get_mut(&key) {
                        entry.failure = None;
                    }
                }
                // A link that was kept replaces nothing; a lost one makes room for the probe's.
                if let Some(entry) = peers.get_mut(&bare)
                    && entry.link.as_ref().is_some_and(|l| l.is_lost())
                {
                    entry.link = Some(link);
                }
            }
            Err(ConnectError::WrongIncarnation { found, .. }) if found > peer.incarnation => {
                self.void_before(&peer.node, found);
            }
            Err(error) => tracing::debug!(node = %peer.node, %error, "a suspect is still silent"),
        }
    }

    /// Peers in use whose link is not over the best way, and the best way may be tried again.
    fn degraded(&self) -> Vec<(Key, PeerTarget)> {
        let now = clock();
        let mut peers = self.peers.lock();
        let due = peers.iter_mut().filter(|(key, peer)| {
            let Some(link) = peer.link.as_ref().filter(|link| !link.is_lost()) else {
                return false;
            };
            now.saturating_duration_since(peer.used) < WANTED
                // Whoever holds the gate connects just now.
                && Arc::strong_count(&peer.gate) == 1
                && self
                    .ways(key, &peer.target)
                    .take_while(|way| way.kind() != link.kind())
                    .any(|way| !peer.cooling.is_cooling(now, way.kind()))
        });
        due.take(MAX_PROBES)
            .map(|(key, peer)| (key.clone(), peer.target.clone()))
            .collect()
    }

    /// Tries the ways that are better than the one in use; pulls that begin afterwards take what is found.
    async fn climb(&self, key: &Key, peer: &PeerTarget) {
        let gate = self
            .peers
            .lock()
            .get(key)
            .map(|entry| Arc::clone(&entry.gate));
        let Some(gate) = gate else { return };
        let _connecting = gate.lock().await;
        let now = clock();
        let better: Vec<_> = {
            let peers = self.peers.lock();
            let Some(entry) = peers.get(key) else { return };
            let Some(used) = entry.link.as_ref().map(|link| link.kind()) else {
                return;
            };
            self.ways(key, peer)
                .take_while(|way| way.kind() != used)
                .filter(|way| !entry.cooling.is_cooling(now, way.kind()))
                .cloned()
                .collect()
        };
        for way in better {
            let transport = way.kind().as_str();
            match way.connect(peer).await {
                Ok(link) => {
                    count(&self.counters.connects);
                    let mut peers = self.peers.lock();
                    let Some(entry) = peers.get_mut(key) else {
                        return;
                    };
                    entry.kind = Some(way.kind());
                    let before = entry.link.replace(link);
                    drop(peers);
                    // Reads under way over it hold it until they have settled.
                    drop(before);
                    count(&self.counters.recoveries);
                    tracing::info!(node = %peer.node, transport, "reached by a better transport again");
                    return;
                }
                Err(error) => {
                    tracing::debug!(node = %peer.node, transport, %error, "still not well");
                    count(&self.counters.failures);
                    if let Some(entry) = self.peers.lock().get_mut(key) {
                        entry.cooling.failed(clock(), way.kind());
                    }
                }
            }
        }
    }
}
