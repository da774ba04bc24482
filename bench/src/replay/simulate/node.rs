//! One node: the real store, change log and pool, and the ports that stand for its network.

use std::{collections::HashSet, sync::Arc, time::Duration};

use kvferry_agent::{
    region::{
        ClientId, PoolOptions, Region, RegionCatalog, Store, StoreLimits, eviction::EvictionKind,
    },
    session::ChangeLog,
};
use kvferry_memory::HugePages;
use kvferry_proto::{Incarnation, NamespaceSpec, NodeId};

use super::{Plan, ReplayError, network::Port};

/// Every engine is the only client of its agent.
pub(super) const CLIENT: ClientId = ClientId(1);

pub(super) struct Node {
    pub(super) name: NodeId,
    pub(super) store: Store,
    pub(super) log: Arc<ChangeLog>,
    pub(super) pool: Arc<Region>,
    /// The next delta to be sent.
    pub(super) next_delta: u64,
    /// The coordinator is about to be told.
    pub(super) announcing: bool,
    /// Nodes it has a link to.
    pub(super) links: HashSet<usize>,
    pub(super) out: Port,
    pub(super) into: Port,
}

/// Every process of a simulation has this lifetime.
pub(super) fn incarnation() -> Result<Incarnation, ReplayError> {
    Ok(Incarnation::new(1)?)
}

impl Node {
    /// With a pool whose slots are as many as the plan's, of as few bytes as `spec` says.
    pub(super) fn start(
        number: usize,
        plan: &Plan,
        spec: &NamespaceSpec,
        eviction: EvictionKind,
    ) -> Result<Self, ReplayError> {
        let log = Arc::new(ChangeLog::new());
        let catalog = Arc::new(RegionCatalog::new(incarnation()?));
        let store = Store::new(catalog, Arc::clone(&log) as _, StoreLimits::default());
        let options = PoolOptions {
            bytes: plan.slots().saturating_mul(spec.layout.block_bytes()),
            hugepages: HugePages::Off,
            eviction,
        };
        let pool = store.add_pool(spec.clone(), options)?;
        Ok(Self {
            name: NodeId::new(&format!("node-{number}"))?,
            store,
            log,
            pool,
            next_delta: 1,
            announcing: false,
            links: HashSet::new(),
            out: Port::default(),
            into: Port::default(),
        })
    }

    /// Blocks its pool has given up to make room.
    pub(super) fn evictions(&self) -> u64 {
        let stats = self.store.stats();
        stats.regions.iter().map(|region| region.evictions).sum()
    }

    /// The busier direction of its port.
    pub(super) fn busy(&self) -> Duration {
        self.out.busy.max(self.into.busy)
    }
}
