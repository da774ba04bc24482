//! What is known of peers, and how much of it is kept.

use std::{collections::HashMap, sync::Arc, time::Instant};

use kvferry_proto::{Incarnation, NodeId};

use super::{Failure, cooling::Cooling};
use crate::transport::{Link, PeerTarget, TransportKind};

/// One lifetime of a peer, and for which reads.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) node: NodeId,
    pub(super) incarnation: Incarnation,
    /// Not all that is read has a checksum, and some transport needs that.
    pub(super) bare: bool,
}

pub(super) type Peers = HashMap<Key, Peer>;

pub(super) struct Peer {
    /// As it was last asked for.
    pub(super) target: PeerTarget,
    pub(super) link: Option<Arc<dyn Link>>,
    pub(super) used: Instant,
    /// Held by the one who connects.
    pub(super) gate: Arc<tokio::sync::Mutex<()>>,
    pub(super) failure: Option<Failure>,
    pub(super) cooling: Cooling,
    /// What it was last reached by, so that a change is logged once.
    pub(super) kind: Option<TransportKind>,
}

impl Peer {
    pub(super) fn new(now: Instant, target: &PeerTarget) -> Self {
        Self {
            target: target.clone(),
            link: None,
            used: now,
            gate: Arc::default(),
            failure: None,
            cooling: Cooling::default(),
            kind: None,
        }
    }
}

/// Forgets the peer that was not asked for longest and has no link, where there are too many.
pub(super) fn make_room(peers: &mut Peers, most: usize) {
    if peers.len() < most {
        return;
    }
    let idle = |peer: &Peer| peer.link.is_none() && Arc::strong_count(&peer.gate) == 1;
    let oldest = peers
        .iter()
        .filter(|(_, peer)| idle(peer))
        .min_by_key(|(_, peer)| peer.used)
        .map(|(key, _)| key.clone());
    if let Some(key) = oldest {
        peers.remove(&key);
    }
}

/// Gives up the least recently used link that nobody uses, where there is no room for one more.
pub(super) fn evict_for_one_more(peers: &mut Peers, most: usize) -> Option<Arc<dyn Link>> {
    if peers.values().filter(|p| p.link.is_some()).count() < most {
        return None;
    }
    peers
        .values_mut()
        .filter(|peer| {
            peer.link
                .as_ref()
                .is_some_and(|l| Arc::strong_count(l) == 1)
        })
        .min_by_key(|peer| peer.used)
        .and_then(|peer| peer.link.take())
}
