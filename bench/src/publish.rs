//! Agents that publish through sessions.

use std::{
    ops::Range,
    time::{Duration, Instant},
};

use kvferry_proto::{
    MAX_MESSAGE_BYTES,
    pb::{
        self, agent_message::Message as Said, coordinator_client::CoordinatorClient,
        coordinator_message::Message as Told,
    },
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Streaming, transport::Channel};

use crate::{
    BenchError,
    workload::{HASH_LEN, Workload, pack, region},
};

/// Blocks of one delta: what agents put into one.
pub const BLOCKS_PER_DELTA: usize = 4_096;
/// Deltas on their way: enough to keep the wire busy, few enough to keep the client lean.
const WINDOW: u64 = 8;

/// A session of one node.
#[derive(Debug)]
pub struct Agent {
    to: mpsc::Sender<pb::AgentMessage>,
    from: Streaming<pb::CoordinatorMessage>,
    seq: u64,
    acked: u64,
    /// Of the blocks replaced last.
    generation: u64,
}

impl Agent {
    /// Opens a session on a connection of its own, with an empty region of so many slots.
    ///
    /// # Errors
    /// [`BenchError`] when the coordinator doesn't take it in.
    pub async fn join(url: &str, name: &str, slots: u32) -> Result<Self, BenchError> {
        let mut client = CoordinatorClient::new(crate::locate::connect(url).await?);
        let (to, outgoing) = mpsc::channel(WINDOW as usize);
        let hello = pb::Hello {
            node: name.into(),
            incarnation: 1,
            addresses: Some(pb::NodeAddresses {
                peer: "10.0.0.1:7401".into(),
                data: "10.0.0.1:7402".into(),
                shm: String::new(),
                rdma: false,
                host_id: name.into(),
                data_tls: false,
            }),
            oldest_delta: 1,
            next_delta: 1,
            ..pb::Hello::default()
        };
        say(&to, Said::Hello(hello)).await?;
        let from = client.session(ReceiverStream::new(outgoing)).await?;
        let mut agent = Self {
            to,
            from: from.into_inner(),
            seq: 0,
            acked: 0,
            generation: 2,
        };
        let inventory = pb::Inventory {
            seq: 0,
            first: true,
            last: true,
            regions: vec![region(slots)],
            sealed: Vec::new(),
        };
        agent.hear().await?;
        say(&agent.to, Said::Inventory(inventory)).await?;
        agent.hear().await?;
        Ok(agent)
    }

    /// Publishes blocks to slots from `first_slot` on and returns when all of it is in the directory.
    ///
    /// # Errors
    /// [`BenchError`] when the session ends.
    pub async fn publish(
        &mut self,
        first_slot: u32,
        blocks: impl Iterator<Item = u64>,
    ) -> Result<u64, BenchError> {
        let mut blocks = blocks.peekable();
        let mut slot = first_slot;
        while blocks.peek().is_some() {
            let numbers: Vec<u64> = blocks.by_ref().take(BLOCKS_PER_DELTA).collect();
            let count = numbers.len() as u32;
            let change = pb::RegionChange {
                region: 1,
                removed_slots: Vec::new(),
                added: Some(pb::SealedSlots {
                    hashes: Some(pb::PackedHashes {
                        hash_len: HASH_LEN as u32,
                        hashes: pack(numbers.into_iter()),
                    }),
                    slots: (slot..slot + count).collect(),
                    generations: vec![2; count as usize],
                    checksums: Vec::new(),
                }),
            };
            slot += count;
            self.delta(change).await?;
        }
        self.settle().await?;
        Ok(u64::from(slot - first_slot))
    }

    /// Empties slots and puts blocks from `first` on in their place; returns when the window has room.
    ///
    /// # Errors
    /// [`BenchError`] when the session ends.
    pub async fn replace(&mut self, slots: Range<u32>, first: u64) -> Result<(), BenchError> {
        let count = slots.len();
        self.generation += 2;
        let change = pb::RegionChange {
            region: 1,
            removed_slots: slots.clone().collect(),
            added: Some(pb::SealedSlots {
                hashes: Some(pb::PackedHashes {
                    hash_len: HASH_LEN as u32,
                    hashes: pack((0..count).map(|n| first + n as u64)),
                }),
                slots: slots.collect(),
                generations: vec![self.generation; count],
                checksums: Vec::new(),
            }),
        };
        self.delta(change).await
    }

    /// Returns when everything that was said is in the directory.
    ///
    /// # Errors
    /// [`BenchError`] when the session ends.
    pub async fn settle(&mut self) -> Result<(), BenchError> {
        while self.acked < self.seq {
            self.hear().await?;
        }
        Ok(())
    }

    /// Says goodbye: the node goes at once.
    ///
    /// # Errors
    /// [`BenchError`] when the session has ended.
    pub async fn goodbye(&mut self) -> Result<(), BenchError> {
        say(&self.to, Said::Goodbye(pb::Goodbye {})).await
    }

    async fn delta(&mut self, change: pb::RegionChange) -> Result<(), BenchError> {
        while self.seq - self.acked >= WINDOW {
            self.hear().await?;
        }
        self.seq += 1;
        let delta = pb::Delta {
            seq: self.seq,
            changes: vec![change],
            ..pb::Delta::default()
        };
        say(&self.to, Said::Delta(delta)).await
    }

    async fn hear(&mut self) -> Result<(), BenchError> {
        match self.from.message().await?.and_then(|m| m.message) {
            Some(Told::Ack(pb::Ack { seq })) => self.acked = seq,
            Some(Told::Welcome(_)) => {}
            other => return Err(BenchError::Wrong(format!("{other:?} in a session"))),
        }
        Ok(())
    }
}

async fn say(to: &mpsc::Sender<pb::AgentMessage>, message: Said) -> Result<(), BenchError> {
    let message = pb::AgentMessage {
        message: Some(message),
    };
    let sent = to.send(message).await;
    sent.map_err(|_| BenchError::Wrong("the session is closed".into()))
}

/// All nodes publish their blocks at the same time. Sessions stay open as long as the agents that
/// come back live.
///
/// # Errors
/// [`BenchError`] when a session ends.
pub async fn publish_all(
    url: &str,
    workload: Workload,
) -> Result<(Vec<Agent>, u64, Duration), BenchError> {
    let mut agents = Vec::new();
    for node in 0..workload.nodes {
        agents.push(Agent::join(url, &format!("node{node}"), workload.slots()).await?);
    }
    let start = Instant::now();
    let mut tasks = Vec::new();
    for (node, mut agent) in (0..).zip(agents) {
        tasks.push(tokio::spawn(async move {
            let blocks = agent.publish(0, workload.blocks_of(node)).await?;
            Ok::<_, BenchError>((agent, blocks))
        }));
    }
    let (mut agents, mut blocks) = (Vec::new(), 0);
    for task in tasks {
        let outcome = task.await.map_err(|e| BenchError::Wrong(e.to_string()))?;
        let (agent, published) = outcome?;
        agents.push(agent);
        blocks += published;
    }
    Ok((agents, blocks, start.elapsed()))
}

/// Distinct blocks the coordinator counts.
///
/// # Errors
/// [`BenchError`] when it doesn't answer.
pub async fn count(client: &mut CoordinatorClient<Channel>) -> Result<u64, BenchError> {
    let request = pb::DescribeNamespaceRequest {
        name: crate::workload::NAMESPACE.into(),
    };
    Ok(client
        .describe_namespace(request)
        .await?
        .into_inner()
        .blocks)
}

/// A client on a connection of its own.
///
/// # Errors
/// [`BenchError`] when there is no connection.
pub async fn client(url: &str) -> Result<CoordinatorClient<Channel>, BenchError> {
    let channel = crate::locate::connect(url).await?;
    Ok(CoordinatorClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES))
}
