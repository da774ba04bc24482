//! Readers that ask where blocks are, in a closed loop.

use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kvferry_proto::pb::{self, coordinator_client::CoordinatorClient};
use prost::Message;
use tokio::sync::watch;
use tonic::{
    Request, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint},
};

use crate::{
    BenchError,
    stats::Samples,
    workload::{HASH_LEN, NAMESPACE, mix, pack},
};

/// Ready-made requests a reader of the light kind goes round in: enough that blocks are not in any
/// cache when their turn comes again.
const READY: usize = 512;
/// HTTP/2 windows of a reader: a few answers' worth, so that none waits for a window update.
const WINDOW_BYTES: u32 = 4 << 20;

/// How much work a reader does itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Reader {
    /// The generated client: builds, encodes and decodes every message.
    Full,
    /// Sends ready-made bytes and looks only at the first field of the answer: what a load
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
    for _ in 0..load.connections {
        channels.push(connect(url).await?);
    }
    let start = Instant::now();
    let mut tasks = Vec::new();
    for (number, channel) in (0u64..).zip(&channels) {
        for lane in 0..load.in_flight {
            let seed = mix(number * 1_000 + lane + 1);
            let channel = channel.clone();
            tasks.push(tokio::spawn(async move {
                match load.reader {
                    Reader::Full => {
                        full(channel, load, seed, || start.elapsed() >= load.time).await
                    }
                    Reader::Light => light(channel, load, seed, start).await,
                }
            }));
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

async fn light(
    channel: Channel,
    load: Load,
    seed: u64,
    start: Instant,
) -> Result<Outcome, BenchError> {
    let ready: Vec<Bytes> = (1..=READY as u64)
        .map(|n| {
            request(load, mix(n.wrapping_mul(seed)))
                .encode_to_vec()
                .into()
        })
        .collect();
    let mut client = Grpc::new(channel);
    let mut outcome = Outcome::default();
    for bytes in ready.iter().cycle() {
        if start.elapsed() >= load.time {
            break;
        }
        let asked = Instant::now();
        client.ready().await?;
        let path = PathAndQuery::from_static("/kvferry.v1.Coordinator/Locate");
        let answer = client.unary(Request::new(bytes.clone()), path, Raw).await?;
        outcome.samples.push(asked.elapsed());
        outcome.answered += check(load, answer.into_inner())?;
    }
    Ok(outcome)
}

/// Bytes out; of the answer only `answered`, its first field.
#[derive(Debug, Clone, Copy)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = u32;
    type Encoder = Self;
    type Decoder = Self;
    fn encoder(&mut self) -> Self {
        Self
    }
    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;
    fn encode(&mut self, item: Bytes, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.reserve(item.len());
        out.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = u32;
    type Error = Status;
    fn decode(&mut self, answer: &mut DecodeBuf<'_>) -> Result<Option<u32>, Status> {
        const ANSWERED: u8 = 1 << 3;
        let mut head = BytesMut::with_capacity(8);
        head.put(answer.take(8));
        answer.advance(answer.remaining());
        if head.first() != Some(&ANSWERED) {
            return Ok(Some(0));
        }
        let answered = prost::decode_length_delimiter(&head[1..]);
        let answered = answered.map_err(|error| Status::internal(error.to_string()))?;
        Ok(Some(answered as u32))
    }
}
