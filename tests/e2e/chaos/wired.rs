//! A coordinator and two agents, each on a host of its own, with wires that can be harmed.

use std::time::{Duration, Instant};

use kvferry_proto::pb::OutcomeKind;
use tokio::sync::oneshot;

use super::footprint::Footprint;
use crate::{
    cluster::{LATE, Process, SOON, eventually},
    engine::{Engine, Memory, block, namespace},
    hosts::Hosts,
};

/// Host of the agent that owns everything.
pub(super) const OWNER: usize = 0;
/// Host of the agent that pulls.
pub(super) const READER: usize = 1;
/// Host of the coordinator.
pub(super) const COORDINATOR: usize = 2;

/// Blocks there are, of 16 KiB.
pub(super) const BLOCKS: u64 = 1024;

pub(super) struct Wired {
    pub(super) hosts: Hosts,
    dir: tempfile::TempDir,
    owner: Agent,
    reader: Agent,
    coordinator: Process,
}

struct Agent {
    engine: Engine,
    memory: Memory,
    process: Process,
    footprint: Footprint,
}

/// How many blocks of a pull came, and how the others ended.
#[derive(Debug, Default)]
pub(super) struct Ended {
    pub(super) had: usize,
    pub(super) others: Vec<OutcomeKind>,
}

impl Wired {
    /// With every block published by the owner, and pulled by the reader, so that there are links. A source that sends
    /// nothing for `stall_bound` is given up; `flags` are the coordinator's. None where this cannot be made.
    pub(super) async fn new(stall_bound: Duration, flags: &[&str]) -> Option<Self> {
        let hosts = Hosts::star(3)?;
        let dir = tempfile::tempdir().expect("a temporary directory");
        let coordinator = start(
            &hosts,
            COORDINATOR,
            &["coordinator", "--listen", "HOST:7400"],
            flags,
        )
        .await;
        let owner = Agent::start(&hosts, OWNER, dir.path(), stall_bound).await;
        let reader = Agent::start(&hosts, READER, dir.path(), stall_bound).await;
        owner.engine.publish(&owner.memory, 0, 0..BLOCKS).await;
        let mut wired = Self {
            hosts,
            dir,
            owner,
            reader,
            coordinator,
        };
        wired.pulls_everything().await;
        for agent in [&mut wired.owner, &mut wired.reader] {
            agent.footprint = Footprint::of(agent.process.pid());
        }
        Some(wired)
    }

    /// Pulls every block into the reader's slots, and checks what must hold whatever happens: one outcome a block, in
    /// time, and not one wrong byte. Copies are not kept, so that every pull crosses the wire.
    pub(super) async fn pull(&self, timeout: Duration) -> Ended {
        self.pull_telling(timeout, oneshot::channel().0).await
    }

    /// As above; says so when the first blocks have come.
    pub(super) async fn pull_telling(
        &self,
        timeout: Duration,
        first: oneshot::Sender<()>,
    ) -> Ended {
        let Agent { engine, memory, .. } = &self.reader;
        let blocks: Vec<u64> = (0..BLOCKS).collect();
        let began = Instant::now();
        let outcomes = engine
            .pull_telling("n", &blocks, memory, timeout, first)
            .await;
        let outcomes = outcomes.expect("the agent on this host answers");
        let took = began.elapsed();
        assert!(took < timeout + LATE, "a pull took {took:?}");
        let mut ended = Ended::default();
        for outcome in outcomes {
            match outcome.kind() {
                OutcomeKind::Pulled => {
                    let n = u64::from(outcome.index);
                    assert!(memory.read(outcome.index) == block(n), "block {n} is wrong");
                    ended.had += 1;
                }
                kind => {
                    assert!(!outcome.detail.is_empty(), "without a reason: {outcome:?}");
                    ended.others.push(kind);
                }
            }
        }
        ended
    }

    /// Waits until a pull brings everything.
    async fn pulls_everything(&self) {
        eventually("everything is pulled", || async {
            self.pull(SOON).await.others.is_empty()
        })
        .await;
    }

    /// What must hold once the faults are over: everything can be pulled, the directory equals what agents hold, and
    /// nothing is left over of what was broken off.
    pub(super) async fn heals(self) {
        self.pulls_everything().await;
        eventually("the directory equals what agents hold", || async {
            let mut equal = true;
            // The reader publishes nothing of what it pulled.
            for (agent, published) in [(&self.owner, BLOCKS), (&self.reader, 0)] {
                let stats = agent.engine.stats().await;
                equal &= self.listed(&stats.node) == Some(published)
                    && stats.reservations == 0
                    && stats.pins == 0
                    && stats.pulls_in_flight == 0
                    && stats.regions.iter().all(|r| r.quarantined == 0);
            }
            equal
        })
        .await;
        for agent in [&self.owner, &self.reader] {
            agent.footprint.is_back().await;
        }
    }

    /// Blocks of a node, as the coordinator tells a tool on its host.
    fn listed(&self, node: &str) -> Option<u64> {
        let coordinator = format!("http://{}:7400", self.hosts.address(COORDINATOR));
        let args = ["nodes", "--json", "--coordinator", &coordinator];
        let nodes = self.hosts.run(COORDINATOR, self.dir.path(), &args);
        let nodes: Vec<serde_json::Value> = serde_json::from_str(&nodes).expect("JSON");
        let node = nodes.iter().find(|it| it["node"] == node)?;
        node["blocks"].as_u64()
    }

    pub(super) fn coordinator(&self) -> &Process {
        &self.coordinator
    }

    pub(super) fn owner(&self) -> &Process {
        &self.owner.process
    }
}

impl Agent {
    async fn start(
        hosts: &Hosts,
        host: usize,
        dir: &std::path::Path,
        stall_bound: Duration,
    ) -> Self {
        let node = format!("node-{host}");
        let socket = dir.join(format!("{node}.sock"));
        let coordinator = format!("http://{}:7400", hosts.address(COORDINATOR));
        let process = start(
            hosts,
            host,
            &[
                "agent",
                "--listen-peer",
                "HOST:7401",
                "--listen-data",
                "HOST:7402",
            ],
            &[
                "--node",
                &node,
                "--coordinator",
                &coordinator,
                "--socket",
                &socket.display().to_string(),
                "--transport",
                "tcp",
                "--replicate=false",
                "--stall-bound-ms",
                &stall_bound.as_millis().to_string(),
            ],
        )
        .await;
        let engine = Engine::connect(&socket).await;
        let memory = engine.region(namespace("n"), BLOCKS as u32).await;
        let footprint = Footprint::of(process.pid());
        Self {
            engine,
            memory,
            process,
            footprint,
        }
    }
}

/// Starts `kvferry` on a host; `HOST` in a word is the host's address.
async fn start(hosts: &Hosts, host: usize, args: &[&str], more: &[&str]) -> Process {
    let prefix = hosts.prefix(host);
    let prefix = prefix.each_ref().map(String::as_str);
    let args: Vec<String> = args
        .iter()
        .chain(more)
        .chain(&["--announce", "--listen-metrics", "off", "--insecure"])
        .map(|word| word.replace("HOST", &hosts.address(host)))
        .collect();
    Process::start_behind(&prefix, &args).await
}
