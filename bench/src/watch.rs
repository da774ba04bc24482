//! A router that watches a namespace: from the start, while blocks are replaced, and one block at a time.

use std::time::{Duration, Instant};

use kvferry_proto::{
    MAX_MESSAGE_BYTES,
    pb::{self, watch_client::WatchClient, watch_message::Message},
};
use tonic::Streaming;

use crate::{
    BenchError,
    locate::connect,
    publish::{Agent, client, count},
    stats::Samples,
    workload::{NAMESPACE, Workload},
};

/// Slots one delta empties and fills again: what an agent under load puts into one.
const REPLACED: u64 = 512;
/// Rounds of deltas that may be on their way to the watcher: as fast as it takes them, and no faster, for it
/// would be cut off.
const ROUNDS_AHEAD: usize = 2;
/// How long a change may stay away.
const PATIENCE: Duration = Duration::from_secs(60);

/// What was seen.
#[derive(Debug)]
pub struct Watched {
    /// Copies told of at the start, and how long that took.
    pub start: (u64, Duration),
    /// Changes told of while blocks were replaced, and how long that took.
    pub changes: (u64, Duration),
    /// From when an agent says that a block took another's place until the watcher has it.
    pub seen_after: Samples,
}

/// Watches from the start; then all nodes but the first replace their blocks for some time, as fast as the
/// watcher takes it in; then the first replaces one at a time. What the watcher counts must be what is there.
///
/// # Errors
/// [`BenchError`] when a call fails, or what was told is not what is there.
pub async fn run(
    url: &str,
    workload: Workload,
    mut agents: Vec<Agent>,
    time: Duration,
) -> Result<Watched, BenchError> {
    let mut operator = client(url).await?;
    let mut watcher = Watcher::start(url).await?;
    let began = Instant::now();
    while !watcher.synced {
        watcher.next().await?;
    }
    let start = (watcher.changes, began.elapsed());
    let blocks = count(&mut operator).await?;
    watcher.holds(blocks)?;

    let slots = |node| workload.blocks_of(node).count() as u64;
    let slots: Vec<u64> = (0..workload.nodes).map(slots).collect();
    let began = Instant::now();
    let mut rounds: Vec<u64> = Vec::new();
    while began.elapsed() < time {
        let round = rounds.len() as u64;
        let mut replaced = 0;
        for ((node, agent), slots) in (0..).zip(&mut agents).zip(&slots).skip(1) {
            // Numbers that no other node uses.
            let first = workload.blocks + (node << 40);
            replaced += replace_some(agent, *slots, round, first).await?;
        }
        // Each is taken out and put in.
        rounds.push(rounds.last().unwrap_or(&start.0) + 2 * replaced);
        if let Some(before) = rounds.len().checked_sub(ROUNDS_AHEAD + 1) {
            watcher.reach(rounds[before]).await?;
        }
    }
    watcher.reach(rounds.last().copied().unwrap_or(0)).await?;
    let changes = (watcher.changes - start.0, began.elapsed());
    for agent in &mut agents {
        agent.settle().await?;
    }
    watcher.holds(count(&mut operator).await?)?;

    let mut seen_after = Samples::default();
    if let Some(agent) = agents.first_mut() {
        let began = Instant::now();
        let mut number = workload.blocks + (1 << 60);
        while began.elapsed() < time {
            number += 1;
            let said = Instant::now();
            agent.replace(0..1, number).await?;
            watcher.reach(watcher.changes + 2).await?;
            seen_after.push(said.elapsed());
            agent.settle().await?;
        }
    }
    Ok(Watched {
        start,
        changes,
        seen_after,
    })
}

/// Puts new blocks into some of a node's slots, other ones each round. How many there were comes back.
async fn replace_some(
    agent: &mut Agent,
    slots: u64,
    round: u64,
    first: u64,
) -> Result<u64, BenchError> {
    let batch = REPLACED.min(slots);
    let Some(places) = slots.checked_div(batch) else {
        return Ok(0);
    };
    let slot = (round % places * batch) as u32;
    agent
        .replace(slot..slot + batch as u32, first + round * batch)
        .await?;
    Ok(batch)
}

struct Watcher {
    stream: Streaming<pb::WatchMessage>,
    synced: bool,
    /// Copies added and removed.
    changes: u64,
    /// Copies there are, as told.
    held: u64,
}

impl Watcher {
    async fn start(url: &str) -> Result<Self, BenchError> {
        let client = WatchClient::new(connect(url).await?);
        let request = pb::WatchRequest {
            namespace: NAMESPACE.into(),
            ..pb::WatchRequest::default()
        };
        let mut client = client.max_decoding_message_size(MAX_MESSAGE_BYTES);
        Ok(Self {
            stream: client.watch(request).await?.into_inner(),
            synced: false,
            changes: 0,
            held: 0,
        })
    }

    async fn reach(&mut self, changes: u64) -> Result<(), BenchError> {
        while self.changes < changes {
            self.next().await?;
        }
        Ok(())
    }

    async fn next(&mut self) -> Result<(), BenchError> {
        let message = tokio::time::timeout(PATIENCE, self.stream.message()).await;
        let message = message.map_err(|_| BenchError::Wrong("a watch is silent".into()))??;
        let message = message.and_then(|message| message.message);
        match message.ok_or_else(|| BenchError::Wrong("a watch ended".into()))? {
            Message::Synced(_) => self.synced = true,
            Message::Rows(rows) => {
                for change in rows.changes() {
                    match change {
                        pb::CopyChange::Added => self.held += 1,
                        pb::CopyChange::Removed => self.held -= 1,
                        _ => return Err(BenchError::Wrong(format!("{change:?} in a watch"))),
                    }
                    self.changes += 1;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn holds(&self, blocks: u64) -> Result<(), BenchError> {
        if self.held != blocks {
            let text = format!("a watcher was told of {} of {blocks} blocks", self.held);
            return Err(BenchError::Wrong(text));
        }
        Ok(())
    }
}
