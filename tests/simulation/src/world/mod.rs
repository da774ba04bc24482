//! The world: processes, coordinators and what is between them, on one queue of events.

mod asking;
mod books;
pub(crate) mod claims;
mod coordinator;
mod copying;
mod deletions;
mod dispatch;
mod event;
mod faults;
mod health;
mod landing;
mod links;
mod network;
mod orders;
pub(crate) mod process;
pub(crate) mod pull;
mod pulls;
mod reads;
mod routers;
mod sessions;
pub(crate) mod sets;
pub(crate) mod storage;
pub(crate) mod tensors;
mod view;
mod workload;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use kvferry_proto::{Incarnation, NodeId};

use crate::{
    Options, Report,
    conditions::{CONVERGES_WITHIN, Conditions, TICK},
    faults::{Fault, schedule},
    history::History,
    invariants,
    promise::{Promise, Violation},
    queue::{MS, Micros, Queue, SECOND},
    random::{Random, mix},
    report::Stats,
    sabotage::{Sabotage, Shell},
    wishes::{COPIES_WITHIN, Wishes},
};
pub(crate) use coordinator::Coordinator;
pub(crate) use copying::UnderWay;
pub(crate) use event::{Act, Event};
pub(crate) use network::Up;
use network::{Cut, Stream};
pub(crate) use process::{Pid, Process};
pub(crate) use routers::WINDOW;
use routers::{Router, RouterEvent};
pub(crate) use view::View;

/// A mean event of a busy node every so often: the bound on events of a run, so that one that feeds
/// itself for ever is a failure and no hang.
const EVENTS_PER_NODE_SECOND: u64 = 20_000;

/// A name for processes, one after the other.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) name: NodeId,
    /// The one started last.
    pub(crate) current: Option<Pid>,
    pub(crate) address: SocketAddr,
    pub(crate) last_incarnation: u64,
}

/// See the module's page.
pub struct World {
    pub(crate) options: Options,
    pub(crate) conditions: Conditions,
    pub(crate) wishes: Wishes,
    pub(crate) now: Micros,
    pub(crate) quiet_from: Micros,
    queue: Queue<Event>,
    faults: Vec<Fault>,
    pub(crate) history: History,
    pub(crate) nodes: Vec<Node>,
    /// By number; None when they are gone.
    pub(crate) processes: Vec<Option<Box<Process>>>,
    /// Node and incarnation of every process there ever was.
    identities: Vec<(usize, Incarnation)>,
    pub(crate) coordinators: Vec<Coordinator>,
    streams: BTreeMap<u64, Stream>,
    next_stream: u64,
    cuts: Vec<Cut>,
    listeners: BTreeMap<SocketAddr, Pid>,
    /// Processes whose hosts are gone: nobody answers for them.
    silent_dead: BTreeSet<Pid>,
    network: Random,
    pub(crate) claims: claims::Claims,
    pub(crate) storage: storage::Storage,
    pub(crate) sets: sets::Sets,
    tensors: tensors::Tensors,
    pub(crate) routers: Vec<Router>,
    pub(crate) operators: copying::Operators,
    pub(crate) stats: Stats,
    digest: u64,
    violation: Option<Violation>,
}

impl World {
    /// A world in which nothing has happened yet.
    #[must_use]
    pub fn new(options: &Options) -> Self {
        let (seed, nodes) = (options.seed, options.nodes.max(2));
        let coordinators = 1 + Random::of(seed, 3).below(3) as usize;
        let quiet_from = (options.seconds * SECOND).max(SECOND);
        let mut conditions = Conditions::of(seed, nodes);
        let wishes = Wishes::of(seed, nodes, &mut conditions);
        let sets = sets::Sets::new(seed, wishes.sources, coordinators, &mut conditions.names);
        let namespaces = conditions.namespaces();
        let mut world = Self {
            options: options.clone(),
            conditions,
            now: 0,
            quiet_from,
            queue: Queue::default(),
            faults: schedule(seed, nodes, coordinators, &namespaces, &wishes, quiet_from),
            history: History::default(),
            nodes: (0..nodes).map(network::node).collect(),
            processes: Vec::new(),
            identities: Vec::new(),
            coordinators: Vec::new(),
            streams: BTreeMap::new(),
            next_stream: 0,
            cuts: Vec::new(),
            listeners: BTreeMap::new(),
            silent_dead: BTreeSet::new(),
            network: Random::of(seed, 4),
            claims: claims::Claims::new(seed),
            storage: storage::Storage::new(seed, coordinators),
            sets,
            tensors: tensors::Tensors::new(seed),
            routers: Vec::new(),
            operators: copying::Operators::new(seed),
            wishes,
            stats: Stats::default(),
            digest: seed,
            violation: None,
        };
        for coordinator in 0..coordinators {
            world
                .coordinators
                .push(Coordinator::new(1 + coordinator as u64, &world.wishes));
            world.queue.at(TICK, Event::CoordinatorTick(coordinator));
            if world.wishes.copies() {
                world.queue.at(TICK, Event::CopyTick(coordinator));
            }
            if !world.sets.is_empty() {
                world.queue.at(TICK, Event::SetsTick(coordinator));
            }
        }
        for node in 0..nodes {
            let at = world.network.below(200 * MS);
            let start = Event::Start {
                node,
                clock_behind: false,
                elsewhere: false,
            };
            world.queue.at(at, start);
        }
        for (index, fault) in world.faults.iter().enumerate() {
            let kept = options
                .keep
                .as_ref()
                .is_none_or(|keep| keep.contains(&index));
            if kept {
                world.queue.at(fault.at, Event::Fault(index));
            }
        }
        world.queue.at(SECOND, Event::Probe);
        world.queue.at(SECOND, Event::Claim);
        world.queue.at(SECOND, Event::Storage);
        world.queue.at(SECOND, Event::Sets);
        if world.conditions.chunk_slots > 0 {
            world.queue.at(SECOND, Event::Tensors);
        }
        for router in 0..world.wishes.routers {
            let coordinator = (seed as usize + router) % coordinators;
            let namespace = namespaces[router % namespaces.len()];
            let router_of = Router::new(seed, router, coordinator, namespace);
            world.routers.push(router_of);
            world.router_again(router, true);
            world
                .queue
                .at(SECOND, Event::Router(router, RouterEvent::Look));
        }
        world
    }

    /// The faults of its schedule.
    #[must_use]
    pub fn faults(&self) -> &[Fault] {
        &self.faults
    }

    /// To the end: faults, then quiet, then everything must be in order.
    #[must_use]
    pub fn run(mut self) -> Report {
        Sabotage::install(self.options.sabotage);
        let copies = if self.wishes.copies() {
            COPIES_WITHIN
        } else {
            0
        };
        let end = self.quiet_from + CONVERGES_WITHIN + copies;
        let most = EVENTS_PER_NODE_SECOND * self.nodes.len() as u64 * (end / SECOND);
        let mut calm = false;
        while self.violation.is_none() {
            let Some((when, event)) = self.queue.next(end) else {
                break;
            };
            self.now = when.max(self.now);
            if !calm && self.now >= self.quiet_from {
                calm = true;
                self.calm_down();
            }
            self.stats.events += 1;
            if self.stats.events > most {
                self.fail(Promise::BoundsHold, "there is no end of events".to_owned());
            }
            self.happen(event);
        }
        self.now = end.max(self.now);
        if self.violation.is_none() {
            invariants::converges::check(&mut self);
        }
        Sabotage::install(None);
        let processes = self.processes.len() as u64;
        self.note(&[processes]);
        Report {
            seed: self.options.seed,
            digest: self.digest,
            faults: self.faults.len(),
            violation: self.violation,
            stats: self.stats,
        }
    }

    /// A promise is broken. The first one counts.
    pub(crate) fn fail(&mut self, promise: Promise, detail: String) {
        let at = self.now;
        self.violation.get_or_insert(Violation {
            promise,
            at,
            detail,
        });
    }

    /// Makes something part of the run's digest.
    pub(crate) fn note(&mut self, numbers: &[u64]) {
        let mut digest = mix(self.digest ^ self.now);
        for number in numbers {
            digest = mix(digest.rotate_left(17) ^ number);
        }
        self.digest = digest;
    }

    fn sabotaged(&self, shell: Shell) -> bool {
        Sabotage::is(self.options.sabotage, shell)
    }

    /// Of any process, also one that is gone.
    pub(crate) fn incarnation(&self, pid: Pid) -> Option<Incarnation> {
        self.identities
            .get(pid)
            .map(|(_, incarnation)| *incarnation)
    }

    /// Its node's name.
    pub(crate) fn name_of(&self, pid: Pid) -> Option<&NodeId> {
        let (node, _) = self.identities.get(pid)?;
        Some(&self.nodes[*node].name)
    }

    pub(crate) fn is_quiet(&self) -> bool {
        self.now >= self.quiet_from
    }
}
