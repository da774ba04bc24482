//! One lifetime of one agent process: its store, its sessions, its pulls and what its engine does.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use kvferry_agent::{
    region::{
        Change, ChangeSink, ClientId, Holder, PoolOptions, Region, RegionCatalog, Store,
        StoreLimits, eviction::EvictionKind,
    },
    session::{ChangeLog, SessionConfig, SessionMachine},
    transport::PeerHealth,
};
use kvferry_memory::{HostMemory, HugePages};
use kvferry_proto::{
    BlockHash, Generation, Geometry, Incarnation, NodeAddresses, NodeId, Plane, RegionId, Slot, pb,
};
use parking_lot::Mutex;

use super::{orders::Orders, pull::Pull, sets::Set, tensors::TensorRun};
use crate::{
    conditions::Conditions,
    names::{MODEL, WEIGHTS},
    queue::Micros,
    random::Random,
};

/// Number of a process; never used twice in a world.
pub(crate) type Pid = usize;

/// What is in a slot, as told by the store, and the delta that says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) hash: BlockHash,
    pub(crate) generation: Generation,
    pub(crate) seq: u64,
}

/// Hears every change before the log does: the simulation's own account of what is held.
#[derive(Debug)]
pub(crate) struct Mirror {
    pub(crate) log: Arc<ChangeLog>,
    pub(crate) held: Mutex<BTreeMap<(RegionId, Slot), Said>>,
    pub(crate) changed: AtomicBool,
}

impl ChangeSink for Mirror {
    fn record(&self, change: Change) {
        // The batch that takes it has this number, whether it closes now or later.
        let (_, seq) = self.log.bounds();
        let mut held = self.held.lock();
        match &change {
            Change::RegionAdded(_) => {}
            Change::RegionRemoved(gone) => held.retain(|(region, _), _| region != gone),
            &Change::Sealed {
                region,
                slot,
                hash,
                generation,
                ..
            } => {
                let said = Said {
                    hash,
                    generation,
                    seq,
                };
                held.insert((region, slot), said);
            }
            Change::Removed { region, slot } => {
                held.remove(&(*region, *slot));
            }
        }
        drop(held);
        self.log.record(change);
        self.changed.store(true, Ordering::Relaxed);
    }
}

/// A session with one coordinator.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) machine: SessionMachine,
    /// The stream it speaks on.
    pub(crate) stream: Option<u64>,
    /// Counts connects, so that a late answer to an old one is told apart.
    pub(crate) attempt: u64,
    pub(crate) timer_at: Option<Micros>,
    /// The coordinator lifetime that welcomed it last.
    pub(crate) epoch: u64,
    /// Contents of an inventory whose position is still to be taken; for sabotage only.
    pub(crate) late: Option<Vec<pb::Inventory>>,
    /// What came of orders, with the delta that must be acknowledged before.
    pub(crate) answers: VecDeque<(u64, pb::Replicated)>,
}

/// Blocks an engine is writing.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) client: ClientId,
    pub(crate) region: Arc<Region>,
    pub(crate) slots: Vec<Slot>,
    /// Hash and version of each.
    pub(crate) blocks: Vec<(u64, u64)>,
    /// Pieces still to be written: slot's index, first byte, length. The last comes first.
    pub(crate) pieces: Vec<(usize, usize, usize)>,
}

/// See the module's page.
pub(crate) struct Process {
    pub(crate) pid: Pid,
    pub(crate) node: usize,
    pub(crate) name: NodeId,
    pub(crate) incarnation: Incarnation,
    pub(crate) addresses: NodeAddresses,
    pub(crate) address: SocketAddr,
    pub(crate) born: Micros,
    drift_ppm: i64,
    pub(crate) paused_until: Micros,
    pub(crate) churns_until: Micros,
    pub(crate) store: Store,
    pub(crate) log: Arc<ChangeLog>,
    pub(crate) mirror: Arc<Mirror>,
    pub(crate) sessions: Vec<Session>,
    pub(crate) pulls: BTreeMap<u64, Pull>,
    pub(crate) jobs: BTreeMap<u64, Job>,
    /// Who may write to a slot: the simulation's own account.
    pub(crate) writers: BTreeMap<(RegionId, Slot), Holder>,
    pub(crate) health: PeerHealth,
    /// Any moment: health counts time from it.
    start: Instant,
    pub(crate) orders: Orders,
    /// Sets of tensors that it publishes, by number of their source.
    pub(crate) sets: BTreeMap<usize, Set>,
    /// It has published some, so that there is something to take back.
    pub(crate) spoken: bool,
    /// One for each namespace that engines publish in.
    pub(crate) pools: Vec<Arc<Region>>,
    pub(crate) engine: Option<Arc<Region>>,
    /// Where chunks of tensors lie.
    pub(crate) chunks: Option<Arc<Region>>,
    /// A pull of tensors under way, one at a time.
    pub(crate) tensors: Option<TensorRun>,
    pub(crate) client: ClientId,
    pub(crate) leaving: bool,
    pub(crate) next: u64,
    pub(crate) random: Random,
    /// Which tenant's blocks it deals with next.
    tenants: Random,
    pub(crate) scratch: Vec<Arc<HostMemory>>,
    pub(crate) log_waits: bool,
    pub(crate) dead_clients: BTreeSet<u64>,
}

/// Who a process is.
pub(crate) struct Identity {
    pub(crate) pid: Pid,
    pub(crate) node: usize,
    pub(crate) name: NodeId,
    pub(crate) incarnation: Incarnation,
    pub(crate) address: SocketAddr,
}

impl Process {
    pub(crate) fn start(
        now: Micros,
        identity: Identity,
        conditions: &Conditions,
        coordinators: usize,
        seed: u64,
    ) -> Self {
        let mut random = Random::of(seed, 1_000 + identity.pid as u64);
        let log = Arc::new(ChangeLog::new());
        let mirror = Arc::new(Mirror {
            log: Arc::clone(&log),
            held: Mutex::default(),
            changed: AtomicBool::new(false),
        });
        let catalog = Arc::new(RegionCatalog::new(identity.incarnation));
        let store = Store::new(catalog, Arc::clone(&mirror) as _, StoreLimits::default());
        let kind = random.pick(&[EvictionKind::Prefix, EvictionKind::Lru]);
        let mut pools = vec![add_pool(&store, conditions, MODEL, kind)];
        let engine = random.permille(400).then(|| import(&store, conditions));
        // What comes after the first tenant draws nothing from this randomness.
        let others = (1..conditions.tenants)
            .map(|tenant| add_pool(&store, conditions, tenant, EvictionKind::Lru));
        pools.extend(others);
        let chunks = (conditions.chunk_slots > 0).then(|| import_chunks(&store, conditions));
        let drift = random.within(0, 2 * conditions.drift_ppm) as i64;
        let sessions = (0..coordinators).map(|_| Session {
            machine: SessionMachine::new(SessionConfig {
                seed: random.next(),
                ..SessionConfig::default()
            }),
            stream: None,
            attempt: 0,
            timer_at: None,
            epoch: 0,
            late: None,
            answers: VecDeque::new(),
        });
        Self {
            pid: identity.pid,
            node: identity.node,
            incarnation: identity.incarnation,
            addresses: NodeAddresses {
                peer: None,
                data: Some(identity.address),
                shm: None,
                rdma: false,
                data_tls: false,
                host_id: identity.name.to_string(),
            },
            name: identity.name,
            address: identity.address,
            born: now,
            drift_ppm: drift - conditions.drift_ppm as i64,
            paused_until: 0,
            churns_until: 0,
            sessions: sessions.collect(),
            store,
            log,
            mirror,
            pulls: BTreeMap::new(),
            jobs: BTreeMap::new(),
            writers: BTreeMap::new(),
            health: PeerHealth::default(),
            start: Instant::now(),
            orders: Orders::default(),
            sets: BTreeMap::new(),
            spoken: false,
            pools,
            engine,
            chunks,
            tensors: None,
            client: ClientId(1),
            leaving: false,
            next: 1,
            random,
            tenants: Random::of(seed, 2_000_000 + identity.pid as u64),
            scratch: Vec::new(),
            log_waits: false,
            dead_clients: BTreeSet::new(),
        }
    }

    /// The process's own clock: since it was started, and not quite as fast as the world's.
    pub(crate) fn local(&self, now: Micros) -> Duration {
        let since = i128::from(now.saturating_sub(self.born));
        let local = since * (1_000_000 + i128::from(self.drift_ppm)) / 1_000_000;
        Duration::from_micros(local as u64)
    }

    /// The same for what counts in instants. Only differences matter.
    pub(crate) fn instant(&self, now: Micros) -> Instant {
        self.start + self.local(now)
    }

    /// When its clock will show this, or a little more.
    pub(crate) fn global(&self, local: Duration) -> Micros {
        let rate = 1_000_000 + i128::from(self.drift_ppm);
        let since = (local.as_micros() as i128 * 1_000_000 + rate - 1) / rate;
        self.born + since as u64 + 1
    }

    pub(crate) fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// It stands still. A pause within a longer one ends with that: what happens to it meanwhile waits for its end.
    pub(crate) fn pause(&mut self, until: Micros) {
        self.paused_until = self.paused_until.max(until);
    }

    /// The tenant whose blocks it deals with next.
    pub(crate) fn tenant(&mut self) -> usize {
        match self.pools.len() {
            1 => MODEL,
            more => self.tenants.below(more as u64) as usize,
        }
    }

    /// Takes the pools out of service, with all reservations, and makes others.
    pub(crate) fn reregister(&mut self, conditions: &Conditions) {
        for namespace in 0..self.pools.len() {
            let gone = self.pools[namespace].id;
            if self.store.unregister(gone).is_ok() {
                self.writers.retain(|(region, _), _| *region != gone);
            }
            let kind = EvictionKind::Prefix;
            self.pools[namespace] = add_pool(&self.store, conditions, namespace, kind);
        }
    }
}

fn add_pool(
    store: &Store,
    conditions: &Conditions,
    namespace: usize,
    eviction: EvictionKind,
) -> Arc<Region> {
    let spec = conditions.spec(namespace).clone();
    let options = PoolOptions {
        bytes: u64::from(conditions.pool_slots) * spec.layout.block_bytes(),
        hugepages: HugePages::Off,
        eviction,
    };
    match store.add_pool(spec, options) {
        Ok(region) => region,
        Err(error) => unreachable!("no memory for a small pool: {error}"),
    }
}

/// An engine's region: two planes apart, slots of each plane side by side.
fn import(store: &Store, conditions: &Conditions) -> Arc<Region> {
    let slots = conditions.engine_slots;
    let plane = conditions.spec(MODEL).layout.plane_bytes();
    let of = |index: u64| Plane {
        base: index * plane * u64::from(slots),
        stride: plane,
        len: plane,
    };
    let geometry = Geometry::new(slots, vec![of(0), of(1)]);
    let memory = HostMemory::anonymous(2 * plane * u64::from(slots));
    let (Ok(geometry), Ok(memory)) = (geometry, memory) else {
        unreachable!("no memory for a small region");
    };
    match store.import(conditions.spec(MODEL).clone(), geometry, memory) {
        Ok(region) => region,
        Err(error) => unreachable!("a small region is refused: {error}"),
    }
}

/// Where an engine has its tensors: chunk after chunk.
fn import_chunks(store: &Store, conditions: &Conditions) -> Arc<Region> {
    let (spec, slots) = (conditions.spec(WEIGHTS).clone(), conditions.chunk_slots);
    let len = spec.layout.block_bytes();
    let plane = Plane {
        base: 0,
        stride: len,
        len,
    };
    let geometry = Geometry::new(slots, vec![plane]);
    let memory = HostMemory::anonymous(len * u64::from(slots));
    let (Ok(geometry), Ok(memory)) = (geometry, memory) else {
        unreachable!("no memory for a few chunks");
    };
    match store.import(spec, geometry, memory) {
        Ok(region) => region,
        Err(error) => unreachable!("a small region is refused: {error}"),
    }
}
