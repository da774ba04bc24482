//! Nodes that replace blocks as fast as they can, while readers ask for blocks of another.

use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::{
    BenchError,
    locate::{Load, Reader, run_until},
    publish::{Agent, client, count},
    stats::Samples,
    workload::Workload,
};

/// Slots one delta empties and fills again: what an agent under load puts into one.
const REPLACED: u32 = 512;
/// Hashes of the readers' requests.
const HASHES: u64 = 64;

/// What was seen.
#[derive(Debug)]
pub struct Churned {
    /// Blocks replaced and acknowledged, all nodes together.
    pub replaced: u64,
    /// For how long.
    pub time: Duration,
    /// Times of Locate requests before.
    pub before: Samples,
    /// And meanwhile.
    pub meanwhile: Samples,
}

/// All nodes but the first replace their blocks, whole pools over, while one connection asks for blocks of
/// the first. Afterwards as many blocks must be counted as before. Gives the agents back, too.
///
/// # Errors
/// [`BenchError`] when a call fails, or blocks are lost or left over.
pub async fn run(
    url: &str,
    workload: Workload,
    agents: Vec<Agent>,
    time: Duration,
) -> Result<(Vec<Agent>, Churned), BenchError> {
    let stable = workload.first_node_blocks.unwrap_or(0);
    let load = Load {
        first: 0,
        blocks: stable,
        hashes: HASHES,
        connections: 1,
        in_flight: 1,
        time: Duration::MAX,
        reader: Reader::Full,
    };
    let mut operator = client(url).await?;
    let counted = count(&mut operator).await?;
    let before = read_for(url, load, time).await?;

    let (stop, stopped) = watch::channel(false);
    let reading = tokio::spawn({
        let (url, stopped) = (url.to_owned(), stopped.clone());
        async move { run_until(&url, load, stopped).await }
    });
    let began = Instant::now();
    let mut tasks = Vec::new();
    for (node, mut agent) in (0u64..).zip(agents) {
        let held = workload.blocks_of(node).count() as u32;
        let stopped = stopped.clone();
        tasks.push(tokio::spawn(async move {
            let mut replaced = 0;
            if node > 0 && held > 0 {
                // Numbers that no other node and no earlier round uses.
                let mut next = workload.blocks + (node << 40);
                let batch = REPLACED.min(held);
                let mut slot = 0;
                while !*stopped.borrow() {
                    if slot + batch > held {
                        slot = 0;
                    }
                    agent.replace(slot..slot + batch, next).await?;
                    slot += batch;
                    next += u64::from(batch);
                    replaced += u64::from(batch);
                }
                agent.settle().await?;
            }
            Ok::<_, BenchError>((agent, replaced))
        }));
    }
    tokio::time::sleep(time).await;
    stop.send_replace(true);
    let (mut agents, mut replaced) = (Vec::new(), 0);
    for task in tasks {
        let outcome = task.await.map_err(|e| BenchError::Wrong(e.to_string()))?;
        let (agent, blocks) = outcome?;
        agents.push(agent);
        replaced += blocks;
    }
    let time = began.elapsed();
    let meanwhile = reading
        .await
        .map_err(|e| BenchError::Wrong(e.to_string()))??;
    let now = count(&mut operator).await?;
    if now != counted {
        let text = format!("{now} blocks after the churn, {counted} before");
        return Err(BenchError::Wrong(text));
    }
    let churned = Churned {
        replaced,
        time,
        before,
        meanwhile,
    };
    Ok((agents, churned))
}

async fn read_for(url: &str, load: Load, time: Duration) -> Result<Samples, BenchError> {
    let (stop, stopped) = watch::channel(false);
    let url = url.to_owned();
    let reading = tokio::spawn(async move { run_until(&url, load, stopped).await });
    tokio::time::sleep(time).await;
    stop.send_replace(true);
    reading
        .await
        .map_err(|e| BenchError::Wrong(e.to_string()))?
}
