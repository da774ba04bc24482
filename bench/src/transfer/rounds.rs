//! One round: a slice of pulls, a slice of every yardstick, in alternating order.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::task::JoinSet;

use super::{
    TransferError,
    engine::{Engine, Pulled},
    measure::{Reader, Run},
    point::Point,
    process::{Others, cpu_seconds, load},
    result::{Measure, PointResult, Spread, Times},
    yardstick::{Done, Task, Yardstick},
};
use crate::stats::{Rounds, Samples};

/// What a slice of pulls came to.
#[derive(Debug, Default)]
struct Slice {
    calls: Vec<(Duration, Pulled)>,
    elapsed: Duration,
    bytes: u64,
    verified: u64,
    owner_cpu: f64,
    reader_cpu: f64,
    other_cpu: f64,
}

/// One round of everything.
pub(super) struct Round {
    pulls: Slice,
    /// Per yardstick, with the processor time of both its processes.
    yardsticks: Vec<(Done, f64)>,
    pub(super) others: f64,
}

impl Round {
    pub(super) async fn run(
        run: &mut Run,
        yardstick: &mut Yardstick,
        tasks: &[Task],
        slice: Duration,
        number: usize,
    ) -> Result<Self, TransferError> {
        let mut ours = vec![std::process::id(), run.coordinator, run.owner.at.pid];
        ours.extend(run.readers.iter().map(|reader| reader.engine.at.pid));
        ours.extend(yardstick.pids());
        let others = Others::begin(&ours);
        // Who comes first changes, so that neither always meets a machine just disturbed.
        let first = number.is_multiple_of(2);
        let mut pulls = Slice::default();
        if first {
            pulls = pull_for(run, slice).await?;
        }
        let mut yardsticks = Vec::new();
        for task in tasks {
            yardsticks.push(yardstick.measure(task).await?);
        }
        if !first {
            pulls = pull_for(run, slice).await?;
        }
        let others = others.share();
        pulls.verified = tokio::task::block_in_place(|| run.compare())?;
        Ok(Self {
            pulls,
            yardsticks,
            others,
        })
    }
}

/// Every reader pulls its next set once.
pub(super) async fn one_call_each(run: &mut Run) -> Result<(), TransferError> {
    pull_for(run, Duration::ZERO).await.map(drop)
}

/// Pulls for some time; gives the bytes, and how long it was.
pub(super) async fn bytes_of(
    run: &mut Run,
    slice: Duration,
) -> Result<(u64, Duration), TransferError> {
    let slice = pull_for(run, slice).await?;
    Ok((slice.bytes, slice.elapsed))
}

async fn pull_for(run: &mut Run, slice: Duration) -> Result<Slice, TransferError> {
    if run.point.publish {
        // Made new: the blocks are to be published and pulled within the time.
        run.owner.evict_all().await?;
        for reader in &mut run.readers {
            reader.engine.evict_all().await?;
        }
    }
    let owner = run.owner.at.pid;
    let readers: Vec<u32> = run.readers.iter().map(|r| r.engine.at.pid).collect();
    let cpu = || {
        let reading: f64 = readers.iter().copied().map(cpu_seconds).sum();
        let other = cpu_seconds(run.coordinator) + cpu_seconds(std::process::id());
        (cpu_seconds(owner), reading, other)
    };
    let (before, began) = (cpu(), Instant::now());
    let mut publish_took = Duration::ZERO;
    if run.point.publish {
        let slots_and_all = run.publish_all();
        slots_and_all.await?;
        publish_took = began.elapsed();
    }
    let until = began + slice;
    let mut calls = Vec::new();
    let mut tasks = JoinSet::new();
    for (place, reader) in run.readers.iter().enumerate() {
        let next = Arc::new(AtomicU64::new(reader.calls));
        let lanes = match slice.is_zero() {
            true => 1,
            false => run.point.in_flight,
        };
        for _ in 0..lanes {
            tasks.spawn(lane(
                place,
                reader.engine.clone(),
                run.point.clone(),
                run.packed.clone(),
                Arc::clone(&next),
                until,
            ));
        }
    }
    let mut landed = Vec::new();
    while let Some(lane) = tasks.join_next().await {
        let (place, done) = lane??;
        landed.extend(done.iter().map(|(call, ..)| (place, *call)));
        let timed = done.into_iter();
        calls.extend(timed.map(|(_, took, pulled)| (took + publish_took, pulled)));
    }
    let elapsed = began.elapsed();
    let after = {
        let reading: f64 = readers.iter().copied().map(cpu_seconds).sum();
        let other = cpu_seconds(run.coordinator) + cpu_seconds(std::process::id());
        (cpu_seconds(owner), reading, other)
    };
    landed.sort_unstable();
    for (place, call) in landed {
        if let Some(reader) = run.readers.get_mut(place) {
            note(reader, &run.point, call);
        }
    }
    Ok(Slice {
        bytes: calls.len() as u64 * run.point.batch_bytes(),
        calls,
        elapsed,
        verified: 0,
        owner_cpu: after.0 - before.0,
        reader_cpu: after.1 - before.1,
        other_cpu: after.2 - before.2,
    })
}

fn note(reader: &mut Reader, point: &Point, call: u64) {
    let group = (call % u64::from(point.reader_sets())) as u32;
    let set = (call % u64::from(point.sets())) as u32;
    reader.landed.insert(group, set);
    reader.calls = reader.calls.max(call + 1);
}

type Calls = Vec<(u64, Duration, Pulled)>;

/// One call after another until the time is over; at least one.
async fn lane(
    place: usize,
    engine: Engine,
    point: Point,
    packed: Vec<kvferry_proto::pb::PackedHashes>,
    next: Arc<AtomicU64>,
    until: Instant,
) -> Result<(usize, Calls), TransferError> {
    let mut calls = Vec::new();
    loop {
        let call = next.fetch_add(1, Ordering::Relaxed);
        let group = (call % u64::from(point.reader_sets())) as u32;
        let set = (call % u64::from(point.sets())) as usize;
        let slots = (group * point.batch..(group + 1) * point.batch).collect();
        let hashes = packed.get(set).ok_or(TransferError::Outcomes {
            got: set,
            want: packed.len(),
        })?;
        let began = Instant::now();
        // With several readers each would find the blocks at another: all are to come from the owner.
        let private = point.readers > 1;
        let pulled = engine
            .pull(hashes, slots, point.transport.of_agent(), private)
            .await?;
        calls.push((call, began.elapsed(), pulled));
        if Instant::now() >= until || point.publish {
            return Ok((place, calls));
        }
    }
}

/// All rounds together.
pub(super) fn summary(point: &Point, tasks: &[Task], rounds: &[Round]) -> PointResult {
    let count = rounds.len().max(1) as f64;
    let speed = |bytes: u64, took: Duration| bytes as f64 / took.as_secs_f64().max(1e-9) / 1e9;
    let ours: Vec<f64> = rounds
        .iter()
        .map(|round| speed(round.pulls.bytes, round.pulls.elapsed))
        .collect();
    let yardsticks = tasks.iter().enumerate().map(|(place, task)| {
        let of = |round: &Round| round.yardsticks.get(place).cloned().unwrap_or_default();
        let theirs: Vec<_> = rounds.iter().map(of).collect();
        let speeds = || theirs.iter().map(|(done, _)| done.speed());
        let mut samples = Samples::default();
        let batches = theirs.iter().flat_map(|(done, _)| &done.batch_nanos);
        batches.for_each(|nanos| samples.push(Duration::from_nanos(*nanos)));
        let ratios: Rounds = ours.iter().zip(speeds()).map(|(a, b)| a / b).collect();
        let gigabytes: f64 = theirs.iter().map(|(done, _)| done.bytes as f64 / 1e9).sum();
        Measure {
            name: task.name(),
            gb_per_s: Spread::of(&speeds().collect()),
            ratio: Spread::of(&ratios),
            batch_us: Times::of(&mut samples),
            core_seconds_per_gb: theirs.iter().map(|(_, cpu)| cpu).sum::<f64>() / gigabytes,
        }
    });
    let yardsticks = yardsticks.collect();
    let pulls = || rounds.iter().map(|round| &round.pulls);
    let gigabytes = pulls().map(|slice| slice.bytes as f64 / 1e9).sum::<f64>();
    let per_gb = |of: fn(&Slice) -> f64| pulls().map(of).sum::<f64>() / gigabytes;
    let times = |of: fn(&(Duration, Pulled)) -> Duration| {
        let mut samples = Samples::default();
        pulls()
            .flat_map(|slice| &slice.calls)
            .for_each(|call| samples.push(of(call)));
        Times::of(&mut samples)
    };
    let mut blocks = Samples::default();
    for (_, pulled) in pulls().flat_map(|slice| &slice.calls) {
        for (after, count) in &pulled.blocks {
            blocks.push_many(*after, *count);
        }
    }
    let gb_per_s = Spread::of(&ours.iter().copied().collect());
    PointResult {
        name: point.name(),
        point: point.clone(),
        gb_per_s,
        blocks_per_s: gb_per_s.median * 1e9 / point.block_bytes().max(1) as f64,
        batch_us: times(|(took, _)| *took),
        locate_us: times(|(_, pulled)| pulled.locate),
        located_us: times(|(_, pulled)| pulled.total.saturating_sub(pulled.locate)),
        wire_us: times(|(_, pulled)| pulled.wire),
        block_us: Times::of(&mut blocks),
        owner_core_seconds_per_gb: per_gb(|slice| slice.owner_cpu),
        reader_core_seconds_per_gb: per_gb(|slice| slice.reader_cpu),
        other_core_seconds_per_gb: per_gb(|slice| slice.other_cpu),
        batches: pulls().map(|slice| slice.calls.len() as u64).sum(),
        verified_bytes: pulls().map(|slice| slice.verified).sum(),
        yardsticks,
        others: rounds.iter().map(|round| round.others).sum::<f64>() / count,
        load: load(),
        noise: String::new(),
    }
}

impl Done {
    /// In 10^9 bytes a second.
    fn speed(&self) -> f64 {
        self.bytes as f64 / self.nanos.max(1) as f64
    }
}
