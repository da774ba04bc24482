//! A long life in a short time: nodes that publish, evict, vanish and return, claims, locations that
//! expire, watchers, wishes and passing namespaces, all against one coordinator, while its memory is
//! looked at.
//!
//! | file | what |
//! | --- | --- |
//! | [`server`] | the coordinator's process |
//! | `world` | what all actors share |
//! | `node`, `holding` | a node: its sessions and all it does while it has one, and what it holds |
//! | `operator`, `watcher`, `reader` | everybody else |
//! | [`counts`] | what was done, by kind |
//! | [`sample`] | the coordinator's memory and its own gauges, at one moment |
//! | [`fit`] | is the curve flat? |

pub mod counts;
pub mod fit;
mod holding;
mod node;
mod operator;
mod reader;
pub mod sample;
pub mod server;
mod watcher;
mod world;

use std::{sync::Arc, time::Duration};

use kvferry_proto::pb;
use tokio::{
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep},
};

use crate::{BenchError, locate::connect, workload};
use counts::Done;
use fit::{Fit, Verdict};
use sample::{Probe, Sample};
use server::Target;
use world::World;

/// Tasks that watch, and that read.
const WATCHERS: u32 = 4;
const READERS: u32 = 2;
/// A location's life where no node holds its block: an hour in the field, a thousandth of it here.
const LOCATION_TTL: Duration = Duration::from_secs(3);
/// Longest wait for the coordinator to forget all of it: the longest time of anything (a silent node
/// is forgotten after [`server::PURGE_AFTER`]), many times over, since the machine may be busy.
const SETTLE_WITHIN: Duration = Duration::from_secs(60);

/// What is to be done.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// For how long.
    pub time: Duration,
    /// Nodes at a time.
    pub nodes: u32,
    /// Slots of each.
    pub blocks_per_node: u32,
    /// What actors draw. How they interleave is not drawn.
    pub seed: u64,
    /// Looks at the coordinator.
    pub samples: u32,
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    /// The curve.
    pub samples: Vec<Sample>,
    /// Resident memory over the last half of it; None with too few samples.
    pub fit: Option<Fit>,
    /// What was done.
    pub done: Done,
    /// The coordinator after all have left.
    pub after: Sample,
}

impl Outcome {
    /// Is the curve flat?
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        self.fit.map_or(Verdict::Unclear, |fit| fit.verdict())
    }

    /// Did the coordinator forget all that was to be forgotten?
    #[must_use]
    pub fn settled(&self) -> bool {
        self.after.is_empty()
    }
}

/// Does all of it, and shows each sample as it is taken. The coordinator is this benchmark's alone:
/// it is expected to be empty at the end.
///
/// # Errors
/// [`BenchError`] when the coordinator does or says something it should not.
pub async fn run(
    target: &Target,
    plan: Plan,
    mut on_sample: impl FnMut(&Sample),
) -> Result<Outcome, BenchError> {
    let mut probe = Probe::new(target).await?;
    prepare(target).await?;
    let world = Arc::new(World::new(target, plan));
    let mut actors = JoinSet::new();
    for number in 0..plan.nodes {
        actors.spawn(node::run(world.clone(), number));
    }
    for number in 0..WATCHERS {
        actors.spawn(watcher::run(world.clone(), number));
    }
    for number in 0..READERS {
        actors.spawn(reader::run(world.clone(), number));
    }
    actors.spawn(operator::run(world.clone()));

    let mut samples = Vec::new();
    let mut looks = interval(plan.time / plan.samples.max(1));
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !world.over() {
        tokio::select! {
            _ = looks.tick() => {
                let sample = probe.look().await?;
                on_sample(&sample);
                samples.push(sample);
            }
            // Ends before its time only where something is wrong.
            Some(ended) = actors.join_next() => flatten(ended)?,
        }
    }
    while let Some(ended) = actors.join_next().await {
        flatten(ended)?;
    }
    let after = settle(target, &mut probe).await?;
    let half = samples.len() / 2;
    let curve: Vec<_> = samples
        .iter()
        .skip(half)
        .map(|sample| (sample.at_s, sample.resident_bytes as f64))
        .collect();
    Ok(Outcome {
        fit: Fit::of(&curve),
        samples,
        done: world.counts.done(),
        after,
    })
}

fn flatten(
    ended: Result<Result<(), BenchError>, tokio::task::JoinError>,
) -> Result<(), BenchError> {
    ended.map_err(|error| BenchError::Wrong(error.to_string()))?
}

/// The namespace, and what is wanted of it.
async fn prepare(target: &Target) -> Result<(), BenchError> {
    let channel = connect(&target.url).await?;
    pb::coordinator_client::CoordinatorClient::new(channel.clone())
        .create_namespace(pb::CreateNamespaceRequest {
            spec: Some(workload::spec()),
        })
        .await?;
    pb::locations_client::LocationsClient::new(channel)
        .set_namespace_policy(policy(workload::NAMESPACE))
        .await?;
    Ok(())
}

fn policy(namespace: &str) -> pb::SetNamespacePolicyRequest {
    pb::SetNamespacePolicyRequest {
        namespace: namespace.to_owned(),
        policy: Some(pb::NamespacePolicy {
            location_ttl_ms: LOCATION_TTL.as_millis() as u64,
            copies_wanted: 2,
            ..pb::NamespacePolicy::default()
        }),
    }
}

/// Waits until nothing of it is left, or for [`SETTLE_WITHIN`], and says what is left.
async fn settle(target: &Target, probe: &mut Probe) -> Result<Sample, BenchError> {
    let channel = connect(&target.url).await?;
    pb::replication_client::ReplicationClient::new(channel)
        .set_copies(pb::SetCopiesRequest {
            namespace: workload::NAMESPACE.into(),
            min_copies: 0,
        })
        .await?;
    let since = Instant::now();
    loop {
        let sample = probe.look().await?;
        if sample.is_empty() || since.elapsed() > SETTLE_WITHIN {
            return Ok(sample);
        }
        sleep(Duration::from_millis(100)).await;
    }
}
