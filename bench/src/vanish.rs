//! A node that goes while readers ask.

use std::time::{Duration, Instant};

use kvferry_proto::pb;
use tokio::{sync::watch, task::JoinHandle};

use crate::{
    BenchError,
    locate::{Load, Reader, run_until},
    publish::{Agent, client, count},
    stats::Samples,
    workload::{HASH_LEN, NAMESPACE, Workload, pack},
};

/// Longest wait for the purge.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often it is asked before what will be asked after.
const PROBES: usize = 200;
/// Hashes of the readers' requests.
const HASHES: u64 = 64;

/// What was seen.
#[derive(Debug)]
pub struct Vanished {
    /// From the agent's goodbye to the first answer that doesn't name the node.
    pub invisible: Duration,
    /// What the same question took before, under the same load: part of the above, once or twice.
    pub probe: Samples,
    /// From the goodbye until nothing of the node is counted.
    pub purged: Duration,
    /// Times of Locate requests before it went.
    pub before: Samples,
    /// Times of Locate requests from the goodbye to the purge.
    pub meanwhile: Samples,
}

/// The first agent says goodbye while one connection asks for blocks of the others, after a time in which
/// nothing happens, for comparison.
///
/// # Errors
/// [`BenchError`] when a call fails or the purge never ends.
pub async fn run(
    url: &str,
    workload: Workload,
    agent: &mut Agent,
    quiet: Duration,
) -> Result<Vanished, BenchError> {
    let gone = workload.first_node_blocks.unwrap_or(0);
    let load = Load {
        first: gone,
        blocks: workload.blocks - gone,
        hashes: HASHES,
        connections: 1,
        in_flight: 1,
        time: Duration::MAX,
        reader: Reader::Full,
    };
    let (before, stop) = reader(url, load);
    tokio::time::sleep(quiet).await;
    let before = stop_reader(before, &stop).await?;

    let mut operator = client(url).await?;
    let (meanwhile, stop) = reader(url, load);
    let probe = pb::LocateRequest {
        namespace: NAMESPACE.into(),
        hashes: Some(pb::PackedHashes {
            hash_len: HASH_LEN as u32,
            hashes: pack(std::iter::once(0)),
        }),
        ..pb::LocateRequest::default()
    };
    let mut probed = Samples::default();
    for _ in 0..PROBES {
        let asked = Instant::now();
        operator.locate(probe.clone()).await?;
        probed.push(asked.elapsed());
    }
    let said = Instant::now();
    agent.goodbye().await?;
    while operator
        .locate(probe.clone())
        .await?
        .into_inner()
        .candidate_counts
        != [0]
    {}
    let invisible = said.elapsed();
    while count(&mut operator).await? > workload.blocks - gone {
        if said.elapsed() > PATIENCE {
            return Err(BenchError::Wrong("the purge never ends".into()));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let purged = said.elapsed();
    let meanwhile = stop_reader(meanwhile, &stop).await?;
    Ok(Vanished {
        invisible,
        probe: probed,
        purged,
        before,
        meanwhile,
    })
}

type Reading = JoinHandle<Result<Samples, BenchError>>;

fn reader(url: &str, load: Load) -> (Reading, watch::Sender<bool>) {
    let (stop, stopped) = watch::channel(false);
    let url = url.to_owned();
    let reading = tokio::spawn(async move { run_until(&url, load, stopped).await });
    (reading, stop)
}

async fn stop_reader(reading: Reading, stop: &watch::Sender<bool>) -> Result<Samples, BenchError> {
    stop.send_replace(true);
    reading
        .await
        .map_err(|e| BenchError::Wrong(e.to_string()))?
}
