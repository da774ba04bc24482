//! Readers that ask where blocks are, in a closed loop.

use std::time::{Duration, Instant};

use kvferry_proto::pb::{self, coordinator_client::CoordinatorClient};
use tokio::sync::watch;
use tonic::transport::{Channel, Endpoint};

use crate::{
    BenchError, light,
    stats::Samples,
    workload::{HASH_LEN, NAMESPACE, mix, pack},
};

/// HTTP/2 windows of a reader: a few answers' worth, so that none waits for a window update.
const WINDOW_BYTES: u32 = 4 << 20;

/// How much work a reader does itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Reader {
    /// The generated client: builds, encodes and decodes every message.
    Full,
    /// Writes ready-made frames and looks only at the first field of the answer: what a load
    /// generator on another machine would leave of this one to the coordinator.
    Light,
}

/// What is asked, and how.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// The first block that is asked for.
    pub first: u64,
    /// Blocks there are from that one on.
    pub blocks: u64,
    /// Hashes a request, neighbours from a random one on.
    pub hashes: u64,
    /// Connections.
    pub connections: u64,
    /// Requests under way on each connection.
    pub in_flight: u64,
    /// For how long.
    pub time: Duration,
    /// By whom.
    pub reader: Reader,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Time of each request.
    pub samples: Samples,
    /// Hashes answered for.
    pub answered: u64,
    /// How long it took.
    pub time: Duration,
}

impl Outcome {
    /// Hashes answered for in a second.
    #[must_use]
    pub fn hashes_per_second(&self) -> f64 {
        self.answered as f64 / self.time.as_secs_f64()
    }

    /// Requests in a second.
    #[must_use]
    pub fn requests_per_second(&self) -> f64 {
        self.samples.len() as f64 / self.time.as_secs_f64()
    }
}

/// Opens a connection with windows that fit large answers.
///
/// # Errors
/// [`BenchError`] when nobody answers.
pub async fn connect(url: &str) -> Result<Channel, BenchError> {
    let endpoint = Endpoint::from_shared(url.to_owned())?
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .tcp_nodelay(true);
    Ok(endpoint.connect().await?)
}

/// Asks for some time and says how it went.
///
/// # Errors
/// [`BenchError`] when a call fails or an answer is short.
pub async fn run(url: &str, load: Load) -> Result<Outcome, BenchError> {
    let mut channels = Vec::new();
    if load.reader == Reader::Full {
        for _ in 0..load.connections {
            channels.push(connect(url).await?);
        }
    }
    let start = Instant::now();
    let mut tasks = Vec::new();
    for (number, channel) in (0u64..).zip(&channels) {
        for lane in 0..load.in_flight {
            let seed = mix(number * 1_000 + lane + 1);
            let channel = channel.clone();
            let stop = move || start.elapsed() >= load.time;
            tasks.push(tokio::spawn(full(channel, load, seed, stop)));
        }
    }
    if load.reader == Reader::Light {
        for number in 0..load.connections {
            let url = url.to_owned();
            let light = async move { light::run(&url, load, mix(number + 1), start).await };
            tasks.push(tokio::spawn(light));
        }
    }
    let mut all = Outcome::default();
    for task in tasks {
        let outcome = task.await.map_err(|e| BenchError::Wrong(e.to_string()))??;
        all.samples.merge(outcome.samples);
        all.answered += outcome.answered;
    }
    all.time = start.elapsed();
    Ok(all)
}

pub(crate) fn request(load: Load, random: u64) -> pb::LocateRequest {
    let first = load.first + random % (load.blocks - load.hashes + 1);
    pb::LocateRequest {
        namespace: NAMESPACE.into(),
        hashes: Some(pb::PackedHashes {
            hash_len: HASH_LEN as u32,
            hashes: pack((0..load.hashes as usize).map(|n| first + n as u64)),
        }),
        mode: pb::LocateMode::Prefix.into(),
        ..pb::LocateRequest::default()
    }
}

pub(crate) fn check(load: Load, answered: u32) -> Result<u64, BenchError> {
    if u64::from(answered) != load.hashes {
        let text = format!("{answered} of {} hashes answered", load.hashes);
        return Err(BenchError::Wrong(text));
    }
    Ok(load.hashes)
}

/// One connection asks, one request after the other, until it is told to stop.
///
/// # Errors
/// [`BenchError`] when a call fails or an answer is short.
pub async fn run_until(
    url: &str,
    load: Load,
    stop: watch::Receiver<bool>,
) -> Result<Samples, BenchError> {
    let outcome = full(connect(url).await?, load, 1, || *stop.borrow()).await?;
    Ok(outcome.samples)
}

async fn full(
    channel: Channel,
    load: Load,
    seed: u64,
    stop: impl Fn() -> bool,
) -> Result<Outcome, BenchError> {
    let mut client = CoordinatorClient::new(channel);
    let mut outcome = Outcome::default();
    let mut random = seed;
    while !stop() {
        random = mix(random.wrapping_add(seed));
        let asked = Instant::now();
        let answer = client.locate(request(load, random)).await?.into_inner();
        outcome.samples.push(asked.elapsed());
        outcome.answered += check(load, answer.answered)?;
    }
    Ok(outcome)
}
