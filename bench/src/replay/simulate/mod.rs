//! Faster than time: the real stores, eviction, directory and pull engines over a modelled network.
//!
//! | real | modelled |
//! | --- | --- |
//! | the coordinator's directory, and the messages to and from it | that they take half a round trip each; the coordinator's processor takes none |
//! | each agent's store: slots, generations, pins, eviction, the change log | memory: a slot has its generation word, and no bytes to speak of |
//! | the pull engine: sources, windows, validation, retries, deadlines | [`Network`]: ports of one speed, no loss, no faults |
//! | the router and the accounts, as in real time | prefill: tokens by a rate, as many prompts at a time as come |
//!
//! One thread, no clock and no randomness: the same trace and plan give the same result.

mod asking;
mod job;
mod network;
mod node;
mod pull;
mod queue;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use kvferry_agent::{
    region::{Chain, Checksums, Holder, Seal, eviction::EvictionKind},
    transfer::{OpId, SourceKey, TransferConfig},
};
use kvferry_coordinator::directory::{Bounds, Directory, DirectoryConfig};
use kvferry_proto::{
    ChecksumPolicy, HashLen, Layout, NamespaceName, NamespaceSpec, NodeId, Slot, pb,
};

pub use network::Network;

use super::{
    Plan, ReplayError, hash,
    ledger::{Ledger, Rest, Served},
    result::{Asked, Means, NetworkResult, ReplayResult},
    route::Router,
    tokens_of,
    trace::{Request, TOKENS_PER_BLOCK, Trace},
};
use crate::workload::HASH_LEN;
use job::Job;
use node::{CLIENT, Node};

/// Bytes a slot has in the simulation's memory, whatever the plan says: nobody reads them.
const STAND_IN_BYTES: u64 = 64;
/// Longer than any trace: nodes of a simulation are never silent.
const FOR_EVER: Duration = Duration::from_secs(1 << 32);

/// Why a simulation cannot go on. Each is a defect, of the model or of what it drives.
#[derive(Debug, thiserror::Error)]
pub enum OutOfStep {
    /// The coordinator did something else than to take in what it was told.
    #[error("the directory answered a session with {0}")]
    Effect(String),
    /// A message of an agent is none.
    #[error("{0} makes no sense")]
    Message(&'static str),
    /// The change log had forgotten what was never sent.
    #[error("the change log forgot a delta that was not sent")]
    Forgotten,
    /// A question was refused.
    #[error("the coordinator refused a question: {0}")]
    Refused(String),
    /// Requests are left over when nothing happens any more.
    #[error("{0} requests never ended")]
    Unfinished(usize),
}

impl From<OutOfStep> for ReplayError {
    fn from(error: OutOfStep) -> Self {
        Self::OutOfStep(error)
    }
}

enum Event {
    Arrives(usize),
    /// A question is at the coordinator.
    Asked {
        job: u64,
        op: Option<OpId>,
        request: Box<pb::LocateRequest>,
    },
    /// An answer is back.
    Answered {
        job: u64,
        op: Option<OpId>,
        answer: Box<pb::LocateResponse>,
    },
    Linked {
        job: u64,
        source: SourceKey,
    },
    ReadEnds {
        job: u64,
        op: OpId,
    },
    /// A question for generation words is at the owner.
    WordsAsked {
        job: u64,
        op: OpId,
    },
    WordsCome {
        job: u64,
        op: OpId,
        words: Vec<u64>,
    },
    Timer(u64),
    /// What was not found is computed.
    Prefilled(u64),
    /// What changed at a node is at the coordinator.
    Announced(usize),
}

/// See the module's page.
struct World<'a> {
    plan: &'a Plan,
    network: Network,
    trace: &'a Trace,
    spec: NamespaceSpec,
    transfer: TransferConfig,
    now: Duration,
    queue: queue::Queue<Event>,
    nodes: Vec<Node>,
    names: HashMap<NodeId, usize>,
    directory: Directory,
    router: Router,
    jobs: HashMap<u64, Job>,
    ledger: Ledger,
    asked: Asked,
    /// Requests that ended since somebody last looked.
    ended: usize,
    /// When the last one did.
    last_end: Duration,
}

/// Replays a trace; `tick` is called after every request.
///
/// # Errors
/// [`ReplayError`].
pub fn replay(
    plan: &Plan,
    network: Network,
    eviction: EvictionKind,
    trace: &Trace,
    mut tick: impl FnMut(),
) -> Result<ReplayResult, ReplayError> {
    plan.check()?;
    let began = Instant::now();
    let mut world = World::new(plan, network, eviction, trace)?;
    while let Some((when, event)) = world.queue.next() {
        world.now = when.max(world.now);
        world.happen(event)?;
        (0..std::mem::take(&mut world.ended)).for_each(|_| tick());
    }
    if !world.jobs.is_empty() {
        return Err(OutOfStep::Unfinished(world.jobs.len()).into());
    }
    Ok(world.close(began.elapsed()))
}

impl<'a> World<'a> {
    fn new(
        plan: &'a Plan,
        network: Network,
        eviction: EvictionKind,
        trace: &'a Trace,
    ) -> Result<Self, ReplayError> {
        let spec = NamespaceSpec {
            name: NamespaceName::new("bench/replay")?,
            layout: Layout::new("bf16", TOKENS_PER_BLOCK as u32, 1, STAND_IN_BYTES)?,
            hash_len: HashLen::new(HASH_LEN)?,
            checksum: ChecksumPolicy::Off,
        };
        let nodes = (0..plan.nodes as usize).map(|node| Node::start(node, plan, &spec, eviction));
        let nodes: Vec<Node> = nodes.collect::<Result<_, _>>()?;
        let names = nodes.iter().map(|node| node.name.clone());
        let directory = Directory::new(DirectoryConfig {
            epoch: 1,
            hide_after: FOR_EVER,
            purge_after: FOR_EVER,
            bounds: Bounds {
                nodes: plan.nodes,
                slots: u64::MAX,
                ..Bounds::default()
            },
        });
        let mut world = Self {
            names: names.zip(0..).collect(),
            router: Router::new(plan.routing, plan.nodes),
            transfer: TransferConfig::default(),
            now: Duration::ZERO,
            queue: queue::Queue::new(),
            jobs: HashMap::new(),
            ledger: Ledger::default(),
            asked: Asked::default(),
            ended: 0,
            last_end: Duration::ZERO,
            plan,
            network,
            trace,
            spec,
            nodes,
            directory,
        };
        for node in 0..world.nodes.len() {
            world.introduce(node)?;
        }
        for (number, request) in trace.requests.iter().enumerate() {
            world
                .queue
                .at(plan.arrival(request), Event::Arrives(number));
        }
        Ok(world)
    }

    fn happen(&mut self, event: Event) -> Result<(), ReplayError> {
        match event {
            Event::Arrives(request) => self.arrives(request),
            Event::Asked { job, op, request } => self.answer(job, op, *request),
            Event::Answered {
                job,
                op: None,
                answer,
            } => self.looked_up(job, &answer),
            Event::Answered {
                job,
                op: Some(op),
                answer,
            } => {
                let Some(mut pull) = self.jobs.get_mut(&job).and_then(|job| job.pull.take()) else {
                    return Ok(());
                };
                let event = self.understand(&mut pull, op, *answer)?;
                if let Some(job) = self.jobs.get_mut(&job) {
                    job.pull = Some(pull);
                }
                self.step(job, Some(event))
            }
            Event::Linked { job, source } => {
                let capabilities = pull::LINK;
                let event = kvferry_agent::transfer::Event::Connected {
                    source,
                    capabilities,
                };
                self.step(job, Some(event))
            }
            Event::ReadEnds { job, op } => self.read_ends(job, op),
            Event::WordsAsked { job, op } => {
                self.words_asked(job, op);
                Ok(())
            }
            Event::WordsCome { job, op, words } => self.words_come(job, op, words),
            Event::Timer(id) => {
                if let Some(pull) = self.jobs.get_mut(&id).and_then(|job| job.pull.as_mut()) {
                    pull.timer_at = None;
                }
                self.step(id, None)
            }
            Event::Prefilled(job) => self.prefilled(job),
            Event::Announced(node) => self.announce(node),
        }
    }

    /// A request comes: what of it is here, and who has the rest?
    fn arrives(&mut self, number: usize) -> Result<(), ReplayError> {
        let Some(request) = self.trace.requests.get(number) else {
            return Ok(());
        };
        let node = self.router.choose(&request.blocks);
        let hashes = request.blocks.iter().map(|block| hash(*block));
        let hashes = hashes.collect::<Result<Vec<_>, _>>()?;
        let Some(at) = self.nodes.get(node) else {
            return Ok(());
        };
        let held = at.store.find_many(&self.spec.name, &hashes);
        let id = number as u64;
        let job = Job {
            request: number,
            node,
            local: held.iter().map(Option::is_some).collect(),
            hashes,
            arrived: self.now,
            pull_began: self.now,
            pin: None,
            found: Vec::new(),
            pull: None,
            served: Served::default(),
        };
        let unknown = job.hashes.iter().zip(&job.local);
        let unknown: Vec<_> = unknown
            .filter(|(_, l)| !**l)
            .map(|(hash, _)| hash)
            .collect();
        if unknown.is_empty() {
            let prefix = job.hashes.len();
            return self.begin_pull(id, job, prefix);
        }
        self.ask(id, node, None, &unknown)?;
        self.jobs.insert(id, job);
        Ok(())
    }

    /// The answer says how far the prompt is somewhere.
    fn looked_up(&mut self, id: u64, answer: &pb::LocateResponse) -> Result<(), ReplayError> {
        let Some(mut job) = self.jobs.remove(&id) else {
            return Ok(());
        };
        job.served.lookup = self.now - job.arrived;
        let mut counts = answer.candidate_counts.iter();
        let there = |local: &&bool| **local || counts.next().is_some_and(|count| *count > 0);
        let prefix = job.local.iter().take_while(there).count();
        self.begin_pull(id, job, prefix)
    }

    /// A prefix is here, as far as it could be had. The rest is computed.
    fn pulled(&mut self, id: u64, mut job: Job) -> Result<(), ReplayError> {
        let Some(request) = self.trace.requests.get(job.request) else {
            return Ok(());
        };
        job.served.found = std::mem::take(&mut job.found)
            .into_iter()
            .flatten()
            .collect();
        job.served.pull = self.now - job.pull_began;
        let missing = request.input_tokens - tokens_of(request, job.served.prefix());
        let computed = self.now + self.plan.compressed_prefill(missing);
        self.queue.at(computed, Event::Prefilled(id));
        self.jobs.insert(id, job);
        Ok(())
    }

    /// The rest is computed, and is kept.
    fn prefilled(&mut self, id: u64) -> Result<(), ReplayError> {
        let Some(mut job) = self.jobs.remove(&id) else {
            return Ok(());
        };
        let Some(node) = self.nodes.get(job.node) else {
            return Ok(());
        };
        let have = job.served.prefix();
        let rest = job.hashes.get(have..).unwrap_or(&[]);
        if !rest.is_empty() {
            let (holder, region) = (Holder::Client(CLIENT), node.pool.id);
            let slots = node
                .store
                .reserve_pool(self.now, holder, region, rest.len() as u32);
            let parent = have.checked_sub(1).and_then(|last| job.hashes.get(last));
            let sealed = slots.ok().and_then(|slots: Vec<Slot>| {
                let seal = Seal {
                    holder,
                    region,
                    slots: &slots,
                    hashes: rest,
                    chain: Chain::From(parent.copied()),
                    checksums: Checksums::Given(&vec![None; rest.len()]),
                    pin: None,
                    private: false,
                };
                node.store.seal(self.now, &seal).ok()
            });
            if sealed.is_none() {
                job.served.not_stored = rest.len() as u64;
            }
        }
        if let Some(pin) = job.pin {
            // It may have ended by itself.
            let _ = node.store.release(CLIENT, pin);
        }
        self.changed(job.node);
        self.router.done(job.node);
        let request: Option<&Request> = self.trace.requests.get(job.request);
        if let Some(request) = request {
            self.ledger.add(self.plan, request, &job.served);
        }
        self.ended += 1;
        self.last_end = self.now;
        Ok(())
    }

    /// A node's log may have something new: the coordinator hears of it half a round trip later.
    fn changed(&mut self, number: usize) {
        let at = self.now + self.network.way();
        if let Some(node) = self.nodes.get_mut(number)
            && !node.announcing
            && (node.log.has_open() || node.log.bounds().1 > node.next_delta)
        {
            node.announcing = true;
            self.queue.at(at, Event::Announced(number));
        }
    }

    fn close(self, took: Duration) -> ReplayResult {
        // What happens after that are timers of pulls that are long through.
        let span = self.last_end;
        let busiest = self.nodes.iter().map(Node::busy).max().unwrap_or_default();
        let network = NetworkResult {
            nic_gbit_per_s: self.network.nic_gbit_per_s,
            rtt_us: self.network.rtt.as_secs_f64() * 1e6,
            busiest_port: busiest.as_secs_f64() / span.as_secs_f64().max(1e-9),
            coordinator: self.asked,
            events: self.queue.made,
        };
        let rest = Rest {
            means: Means::Simulator,
            span,
            evictions: self.nodes.iter().map(Node::evictions).sum(),
            network: Some(network),
            took,
        };
        self.ledger.close(self.plan, self.trace, &rest)
    }
}
