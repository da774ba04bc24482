//! A node, and what its session has told so far.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use kvferry_proto::{Incarnation, Labels, NamespaceName, NodeAddresses, NodeId, RegionId};
use parking_lot::Mutex;

use super::{
    SessionId,
    inventory::Receiving,
    load::{Load, NO_PENALTY},
};

/// One incarnation of one node.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) name: NodeId,
    pub(super) incarnation: Incarnation,
    pub(super) addresses: Arc<NodeAddresses>,
    pub(super) labels: Labels,
    /// None between streams.
    pub(super) session: Option<SessionId>,
    pub(super) hidden: bool,
    /// Said by an operator of the node, not of an incarnation: it outlasts a restart.
    pub(super) draining: bool,
    pub(super) regions: BTreeMap<RegionId, Standing>,
    /// What changes with every message: under a lock of its own, so that messages which change no
    /// structure need the directory only to read. Taken before any slot table's lock.
    pub(super) progress: Mutex<Progress>,
    /// Of its load, for look-ups. Nothing else hangs on it, so any order of memory will do.
    pub(super) penalty: Penalty,
}

/// How much less often than others a node is to be offered.
#[derive(Debug)]
pub(super) struct Penalty(AtomicU32);

impl Default for Penalty {
    fn default() -> Self {
        Self(AtomicU32::new(NO_PENALTY))
    }
}

impl Penalty {
    pub(super) fn get(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How far a node's session is.
#[derive(Debug)]
pub(super) struct Progress {
    pub(super) last_seen: Duration,
    /// The last delta applied.
    pub(super) applied: u64,
    pub(super) sync: SyncState,
    /// What is read from it.
    pub(super) load: Load,
}

impl Progress {
    pub(super) fn expected(&self) -> u64 {
        self.applied.saturating_add(1)
    }
}

/// Does what we hold of a node equal what it said?
#[derive(Debug)]
pub(super) enum SyncState {
    /// Yes, up to the last delta applied.
    Live,
    /// An inventory is due; deltas are ignored until it is complete.
    Awaiting,
    /// An inventory is coming in.
    Receiving(Receiving),
}

/// How a region the node declared stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// Part of its namespace, under this handle of the catalog.
    Accepted(u32),
    /// Refused; a later inventory may declare it again.
    Refused,
    /// Its namespace was deleted by force: refused while this incarnation lives.
    Deleted,
}

impl Node {
    /// A reader told of so many bytes from here; or, with none, time passed.
    pub(super) fn was_read(&self, now: Duration, bytes: u64) {
        let mut progress = self.progress.lock();
        progress.load.add(now, bytes);
        self.penalty
            .0
            .store(progress.load.penalty(), Ordering::Relaxed);
    }

    pub(super) fn state(&self) -> NodeState {
        match (self.hidden, self.draining) {
            (true, _) => NodeState::Hidden,
            (false, true) => NodeState::Draining,
            (false, false) => NodeState::Live,
        }
    }

    pub(super) fn accepted(&self) -> impl Iterator<Item = (RegionId, u32)> {
        self.regions
            .iter()
            .filter_map(|(id, standing)| match standing {
                Standing::Accepted(handle) => Some((*id, *handle)),
                Standing::Refused | Standing::Deleted => None,
            })
    }

    pub(super) fn refused(&self) -> usize {
        self.regions.len() - self.accepted().count()
    }
}

/// How readers are sent to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeState {
    /// As any other.
    Live,
    /// Not at all: it missed its heartbeats.
    Hidden,
    /// Last of all.
    Draining,
}

/// A node, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeInfo {
    /// Its name.
    pub node: NodeId,
    /// Its lifetime.
    pub incarnation: Incarnation,
    /// How readers are sent to it.
    pub state: NodeState,
    /// Where they reach it.
    pub addresses: Arc<NodeAddresses>,
    /// What they may prefer.
    pub labels: Labels,
    /// Sealed slots over all its regions.
    pub blocks: u64,
    /// Bytes of those.
    pub bytes: u64,
    /// Since its last message.
    pub silent: Duration,
    /// The last delta applied.
    pub applied_delta: u64,
    /// What others read from it lately, as they told.
    pub served_bytes_per_second: u64,
    /// Regions that are part of a namespace, in order of their ids.
    pub regions: Vec<NodeRegion>,
}

/// A region of a node, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeRegion {
    /// The node's number for it.
    pub region: RegionId,
    /// What its blocks are.
    pub namespace: NamespaceName,
    /// How many it has room for.
    pub slots: u32,
    /// How many are sealed.
    pub sealed: u32,
}

/// There is no such node. It may never have come, or was purged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no node {node}; it may have said goodbye or been purged")]
pub struct NodeUnknown {
    /// The name asked for.
    pub node: NodeId,
}
