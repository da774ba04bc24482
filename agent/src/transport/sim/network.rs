//! The nodes, and what goes wrong between them.

use std::{collections::HashMap, ops::RangeInclusive, sync::Arc, time::Duration};

use kvferry_proto::{NodeId, RemoteSpan};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::link::SimTransport;
use crate::{region::RegionCatalog, transport::random::SplitMix64};

/// What goes wrong. Chances are per million reads (or connects).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SimFaults {
    /// A connect fails.
    pub unreachable_ppm: u32,
    /// The link is lost in the middle of a read, with everything on it.
    pub lost_ppm: u32,
    /// A read stands still until it is cancelled or its link is lost.
    pub hang_ppm: u32,
    /// A read is answered with "region gone".
    pub gone_ppm: u32,
    /// Before a read's first byte is fetched.
    pub delay: RangeInclusive<Duration>,
    /// Bytes fetched at a time; between two times the owner may write.
    pub chunk_bytes: RangeInclusive<u64>,
}

impl Default for SimFaults {
    /// Nothing goes wrong; chunks are small enough that reads tear.
    fn default() -> Self {
        Self {
            unreachable_ppm: 0,
            lost_ppm: 0,
            hang_ppm: 0,
            gone_ppm: 0,
            delay: Duration::ZERO..=Duration::ZERO,
            chunk_bytes: 512..=16_384,
        }
    }
}

/// A moment inside a read, before a chunk of it is fetched.
#[derive(Debug, Clone)]
pub struct SimChunk {
    /// Whose memory.
    pub node: NodeId,
    /// The chunk.
    pub span: RemoteSpan,
}

/// Called between chunks, on the task that reads: may overwrite the owner's memory.
pub type ChunkHook = Arc<dyn Fn(&SimChunk) + Send + Sync>;

/// Several owners and the faults between them and their readers. Clones share it.
#[derive(Clone)]
pub struct SimNetwork(Arc<Shared>);

struct Shared {
    nodes: Mutex<HashMap<NodeId, SimNode>>,
    random: Mutex<SplitMix64>,
    faults: Mutex<SimFaults>,
    hook: Mutex<Option<ChunkHook>>,
}

/// One owner, as a link sees it.
#[derive(Debug, Clone)]
pub(super) struct SimNode {
    pub(super) catalog: Arc<RegionCatalog>,
    /// Cancelled when everything that is connected to it is lost.
    pub(super) lost: CancellationToken,
    pub(super) frozen: Arc<watch::Sender<bool>>,
}

impl SimNetwork {
    /// An empty network; the same seed and the same calls give the same faults.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Shared {
            nodes: Mutex::default(),
            random: Mutex::new(SplitMix64::new(seed)),
            faults: Mutex::default(),
            hook: Mutex::default(),
        }))
    }

    /// A reader's way into it.
    #[must_use]
    pub fn transport(&self) -> SimTransport {
        SimTransport::new(self.clone())
    }

    /// Starts an owner. An older incarnation of it is stopped.
    pub fn start(&self, node: &NodeId, catalog: Arc<RegionCatalog>) {
        self.stop(node);
        let entry = SimNode {
            catalog,
            lost: CancellationToken::new(),
            frozen: Arc::new(watch::Sender::new(false)),
        };
        self.0.nodes.lock().insert(node.clone(), entry);
    }

    /// Stops an owner: its links are lost, nobody can connect.
    pub fn stop(&self, node: &NodeId) {
        let removed = self.0.nodes.lock().remove(node);
        if let Some(removed) = removed {
            removed.lost.cancel();
        }
    }

    /// Loses every link to an owner, which itself goes on.
    pub fn cut(&self, node: &NodeId) {
        let lost = self
            .0
            .nodes
            .lock()
            .get_mut(node)
            .map(|node| std::mem::take(&mut node.lost));
        if let Some(lost) = lost {
            lost.cancel();
        }
    }

    /// Makes an owner stand still (true) or go on (false): nothing of it moves meanwhile.
    pub fn freeze(&self, node: &NodeId, frozen: bool) {
        if let Some(node) = self.0.nodes.lock().get(node) {
            node.frozen.send_replace(frozen);
        }
    }

    /// What goes wrong from now on.
    pub fn set_faults(&self, faults: SimFaults) {
        *self.0.faults.lock() = faults;
    }

    /// What runs between chunks from now on.
    pub fn set_hook(&self, hook: Option<ChunkHook>) {
        *self.0.hook.lock() = hook;
    }

    pub(super) fn node(&self, node: &NodeId) -> Option<SimNode> {
        self.0.nodes.lock().get(node).cloned()
    }

    pub(super) fn faults(&self) -> SimFaults {
        self.0.faults.lock().clone()
    }

    pub(super) fn hook(&self) -> Option<ChunkHook> {
        self.0.hook.lock().clone()
    }

    pub(super) fn happens(&self, ppm: u32) -> bool {
        self.0.random.lock().happens(ppm)
    }

    /// A generator of its own for one read, so that concurrent reads do not share an order.
    pub(super) fn fork(&self) -> SplitMix64 {
        SplitMix64::new(self.0.random.lock().next_u64())
    }
}
