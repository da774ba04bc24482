//! Which node owns which block: a pure machine. Events and the time go in, effects come out;
//! queries read. No IO, no clock, no randomness that shows.
//!
//! | file | what |
//! | --- | --- |
//! | `event`, `effect` | what goes in, what comes out |
//! | `liveness` | hello, fencing, heartbeats, silence, goodbye |
//! | `changes`, `inventory` | what a node says it holds |
//! | `message` | a session's message in steps that look-ups may come between |
//! | `catalog` | namespaces and regions |
//! | `held`, `sweep` | slot tables and index, kept in step; what went is swept out in slices |
//! | `index`, `slots` | hash -> owners, and slot -> entry of the index |
//! | `copies` | who holds how many copies, for the planner of replicas |
//! | `watch` | what changes in a namespace, told to those who watch it |
//! | `totals`, `counts` | what there is in all, counted as it changes |
//! | `claims`, `leases` | who may produce a block, and until when |
//! | `locations`, `location_table`, `policy` | which blocks lie in shared storage, for how long, how many |
//! | `surplus` | copies that are more than wanted |
//! | `locate`, `answer`, `row`, `load` | who is offered to a reader, in which order |

mod answer;
mod bounds;
mod catalog;
mod changes;
mod claims;
mod copies;
mod counts;
mod effect;
mod event;
mod held;
mod index;
mod inventory;
mod leases;
mod liveness;
mod load;
mod locate;
mod location_table;
mod locations;
mod message;
mod namespace;
mod node;
mod policy;
mod presence;
mod region;
mod row;
mod slab;
mod slots;
mod surplus;
mod sweep;
#[cfg(any(test, feature = "fuzzing"))]
// In a test, or in a fuzzer that is one.
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::wildcard_imports
)]
#[cfg_attr(not(test), allow(dead_code, unused_imports))]
mod tests;
mod totals;
mod watch;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use kvferry_proto::{NamespaceName, NamespaceSpec, NodeId};
use parking_lot::Mutex;

pub use answer::{Answer, LocateMode, LocateQuery, Located, LocatedOwner, OwnerRow};
pub use bounds::{
    BoundReached, Bounds, DEFAULT_CANDIDATES, DEFAULT_CLAIM_TTL, MAX_CANDIDATES,
    MAX_CANDIDATES_PER_ANSWER, MAX_CLAIM_TTL, MAX_HASHES_PER_CLAIM, MAX_HASHES_PER_PUT,
};
pub use catalog::Garbage;
pub use claims::{
    ClaimError, ClaimHolder, ClaimLease, ClaimList, ClaimOutcome, ClaimPurpose, ClaimQuery, Claimed,
};
pub use copies::{CopyTarget, Survey, Surveyed};
pub use counts::{ClaimEnd, Counts, LocationEnd};
pub use effect::{CloseCause, Effect, ProtocolError, RegionRefusal, RemovalCause};
pub use event::{
    Delta, Event, Hello, InventoryPart, RegionChange, RegionDeclaration, SealedSlots, SessionId,
};
pub use locate::LocateError;
pub use locations::{FoundLocations, LocationError, PutLocations, PutOutcome};
pub use message::{Begun, Gone, Rest};
pub use namespace::{CreateNamespaceError, DeleteNamespaceError, NamespaceInfo, NamespaceUnknown};
pub use node::{NodeInfo, NodeRegion, NodeState, NodeUnknown};
pub use presence::Presence;
pub use totals::{Replicas, Totals};

pub use policy::NamespacePolicy;
pub use surplus::SurplusCopy;
#[cfg(feature = "fuzzing")]
pub(crate) use tests::model::fuzz;
pub use watch::{
    Change, CopyChange, Rows, Scanned, WatchEnd, WatchError, WatchedNode, WatchedRegion, Watcher,
};

use catalog::Catalog;
use leases::Leases;
use node::{Node, Standing};
use slab::Slab;

/// Slots that one event sweeps out itself: what goes by the dozen is gone at once.
const SWEPT_AT_ONCE: u32 = 1_024;

/// What a directory needs to know from the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirectoryConfig {
    /// This lifetime of the coordinator. Not zero.
    pub epoch: u64,
    /// A node silent for this long is not offered to readers.
    pub hide_after: Duration,
    /// A node silent for this long is forgotten.
    pub purge_after: Duration,
    /// How much is taken in.
    pub bounds: Bounds,
}

/// How full a directory's tables are, and how full they may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Nodes, hidden ones included.
    pub nodes: usize,
    /// Namespaces.
    pub namespaces: usize,
    /// Slots of all regions, sealed or not.
    pub slots: u64,
    /// The most of each.
    pub bounds: Bounds,
}

/// Which node owns which block.
///
/// The shell calls [`handle`](Self::handle) with every message of a session, in order, and with a
/// [`Event::Tick`] now and then; `now` is the time since any fixed start and never goes back. A
/// message of a session that was closed, fenced or replaced changes nothing.
#[derive(Debug)]
pub struct Directory {
    config: DirectoryConfig,
    catalog: Catalog,
    nodes: Slab<Node>,
    names: BTreeMap<NodeId, u32>,
    /// Open sessions that said hello.
    sessions: HashMap<SessionId, u32>,
    /// Its lock is taken after that of a slot table, and before those of an index.
    leases: Mutex<Leases>,
}

impl Directory {
    /// An empty one.
    #[must_use]
    pub fn new(config: DirectoryConfig) -> Self {
        let catalog = Catalog::new(config.bounds);
        let leases = Leases::new(config.epoch, &config.bounds, Arc::clone(&catalog.counts));
        Self {
            config,
            catalog,
            nodes: Slab::new(),
            names: BTreeMap::new(),
            sessions: HashMap::new(),
            leases: Mutex::new(leases),
        }
    }

    /// This lifetime of the coordinator.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.config.epoch
    }

    /// Takes in what happened and says what is to be done.
    ///
    /// A shell that shares the directory with look-ups takes the steps apart: [`begin`](Self::begin)
    /// or [`begin_shared`](Self::begin_shared), [`go_on`](Self::go_on), [`finish`](Self::finish),
    /// [`sweep`](Self::sweep) as long as there is something to sweep, and with every tick
    /// [`tidy`](Self::tidy).
    pub fn handle(&mut self, now: Duration, event: Event) -> Vec<Effect> {
        let tick = matches!(event, Event::Tick);
        let effects = self.all_steps(now, event);
        while tick && self.tidy(now, SWEPT_AT_ONCE as usize) {}
        self.sweep(SWEPT_AT_ONCE);
        self.reap();
        effects
    }

    /// Sweeps out some of what went: at most about this many slots. False when nothing is left.
    pub fn sweep(&self, slots: u32) -> bool {
        let swept = self.catalog.sweep(slots);
        self.leases.lock().forget((slots - swept) as usize);
        self.sweep_is_due()
    }

    /// Is there something to sweep out?
    #[must_use]
    pub fn sweep_is_due(&self) -> bool {
        self.catalog.sweeps.pending() || self.leases.lock().forgetting_is_due()
    }

    /// Is there something to [`reap`](Self::reap)?
    #[must_use]
    pub fn reap_is_due(&self) -> bool {
        self.catalog.reap_is_due()
    }

    /// Ends what was swept out, and hands out what is to be dropped where nobody waits.
    pub fn reap(&mut self) -> Vec<Garbage> {
        self.catalog.reap();
        self.catalog.take_garbage()
    }

    /// Creates a namespace; false when it was there with the same spec.
    ///
    /// # Errors
    /// [`CreateNamespaceError`] when it is there with another spec, or there is no room.
    pub fn create_namespace(&mut self, spec: &NamespaceSpec) -> Result<bool, CreateNamespaceError> {
        self.catalog.create(spec)
    }

    /// What there is in all. Whoever keeps it may read it without the directory.
    #[must_use]
    pub fn totals(&self) -> Arc<Totals> {
        Arc::clone(&self.catalog.totals)
    }

    /// What became of claims, locations and watchers. As [`totals`](Self::totals).
    #[must_use]
    pub fn counts(&self) -> Arc<Counts> {
        Arc::clone(&self.catalog.counts)
    }

    /// How full the tables are.
    #[must_use]
    pub fn sizes(&self) -> Sizes {
        Sizes {
            nodes: self.nodes.len(),
            namespaces: self.catalog.namespace_count(),
            slots: self.catalog.slots(),
            bounds: self.config.bounds,
        }
    }

    /// Every namespace, by name.
    pub fn namespaces(&self) -> impl Iterator<Item = NamespaceInfo> {
        self.catalog
            .namespaces()
            .map(|namespace| self.catalog.info(namespace))
    }

    /// One namespace.
    ///
    /// # Errors
    /// [`NamespaceUnknown`].
    pub fn namespace(&self, name: &NamespaceName) -> Result<NamespaceInfo, NamespaceUnknown> {
        match self.catalog.namespace(name) {
            Some(namespace) => Ok(self.catalog.info(namespace)),
            None => Err(NamespaceUnknown { name: name.clone() }),
        }
    }

    /// Deletes a namespace and says how many blocks went with it. By force, regions of it are
    /// refused from then on, and their agents are told.
    ///
    /// # Errors
    /// [`DeleteNamespaceError`] when there is none, or, without force, when nodes hold regions.
    pub fn delete_namespace(
        &mut self,
        name: &NamespaceName,
        force: bool,
    ) -> Result<(u64, Vec<Effect>), DeleteNamespaceError> {
        let info = self.namespace(name)?;
        if info.regions > 0 && !force {
            return Err(DeleteNamespaceError::InUse {
                name: name.clone(),
                regions: info.regions,
            });
        }
        let mut effects = Vec::new();
        if let Some((handle, _)) = self.catalog.find(name) {
            self.leases.get_mut().end_namespace(handle);
        }
        for (node, region) in self.catalog.delete(name) {
            let Some(node) = self.nodes.get_mut(node) else {
                continue;
            };
            node.regions.insert(region, Standing::Deleted);
            if let Some(session) = node.session {
                effects.push(Effect::RegionRefused {
                    session,
                    region,
                    refusal: RegionRefusal::NamespaceDeleted {
                        namespace: name.clone(),
                    },
                });
            }
        }
        Ok((info.blocks, effects))
    }

    /// Every node, by name.
    pub fn nodes(&self, now: Duration) -> impl Iterator<Item = NodeInfo> {
        self.names
            .values()
            .filter_map(|handle| self.nodes.get(*handle))
            .map(move |node| self.info(now, node))
    }

    /// One node.
    ///
    /// # Errors
    /// [`NodeUnknown`].
    pub fn node(&self, now: Duration, name: &NodeId) -> Result<NodeInfo, NodeUnknown> {
        self.names
            .get(name)
            .and_then(|handle| self.nodes.get(*handle))
            .map(|node| self.info(now, node))
            .ok_or_else(|| NodeUnknown { node: name.clone() })
    }

    /// Has readers sent to a node last of all, or takes that back.
    ///
    /// # Errors
    /// [`NodeUnknown`].
    pub fn drain_node(&mut self, name: &NodeId, draining: bool) -> Result<(), NodeUnknown> {
        let handle = self.names.get(name).copied();
        let node = handle.and_then(|handle| self.nodes.get_mut(handle));
        match node {
            Some(node) => {
                node.draining = draining;
                handle.into_iter().for_each(|handle| self.tell_node(handle));
                Ok(())
            }
            None => Err(NodeUnknown { node: name.clone() }),
        }
    }

    fn info(&self, now: Duration, node: &Node) -> NodeInfo {
        let (mut blocks, mut bytes, mut regions) = (0, 0, Vec::new());
        for (id, handle) in node.accepted() {
            let Some(region) = self.catalog.region(handle) else {
                continue;
            };
            let Some(namespace) = self.catalog.namespace_of(region) else {
                continue;
            };
            let sealed = region.slots.lock().sealed();
            blocks += u64::from(sealed);
            bytes += u64::from(sealed) * namespace.spec.layout.block_bytes();
            regions.push(NodeRegion {
                region: id,
                namespace: namespace.spec.name.clone(),
                slots: region.slot_count(),
                sealed,
            });
        }
        let progress = node.progress.lock();
        NodeInfo {
            node: node.name.clone(),
            incarnation: node.incarnation,
            state: node.state(),
            addresses: node.addresses.clone(),
            labels: node.labels.clone(),
            blocks,
            bytes,
            silent: now.saturating_sub(progress.last_seen),
            applied_delta: progress.applied,
            served_bytes_per_second: progress.load.bytes_per_second(),
            regions,
        }
    }
}
