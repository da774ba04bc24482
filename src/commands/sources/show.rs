//! Sources, as they are printed.

use std::{collections::BTreeMap, time::Duration};

use kvferry_proto::pb;
use serde::Serialize;

use super::{bytes, hex};
use crate::{
    output::{self, OutputError},
    size::duration,
};

#[derive(Debug, Serialize)]
struct Source {
    source: String,
    namespace: String,
    name: String,
    revision: String,
    attributes: BTreeMap<String, String>,
    content: String,
    state: &'static str,
    world_size: u32,
    ranks_ready: u32,
    workers_initialising: u32,
    workers_ready: u32,
    workers_stale: u32,
    workers_gone: u32,
    tensors: u64,
    bytes: u64,
}

impl From<pb::SourceSummary> for Source {
    fn from(summary: pb::SourceSummary) -> Self {
        let state = word(summary.state());
        let identity = summary.identity.unwrap_or_default();
        Self {
            source: hex(&summary.source),
            namespace: identity.namespace,
            name: identity.name,
            revision: identity.revision,
            attributes: identity.attributes.into_iter().collect(),
            content: hex(&identity.content),
            state,
            world_size: identity.world_size,
            ranks_ready: summary.ranks_ready,
            workers_initialising: summary.workers_initialising,
            workers_ready: summary.workers_ready,
            workers_stale: summary.workers_stale,
            workers_gone: summary.workers_gone,
            tensors: summary.tensors,
            bytes: summary.bytes,
        }
    }
}

#[derive(Debug, Serialize)]
struct Worker {
    rank: u32,
    node: String,
    incarnation: String,
    state: &'static str,
    cause: &'static str,
    digest: String,
    runs: Vec<Run>,
    ms_in_state: u64,
    reporters: u32,
}

#[derive(Debug, Serialize)]
struct Run {
    region: u32,
    first_slot: u32,
    slots: u32,
}

impl From<pb::SourceWorker> for Worker {
    fn from(worker: pb::SourceWorker) -> Self {
        let (state, cause) = (word(worker.state()), why(worker.cause()));
        let run = |run: pb::ChunkRun| Run {
            region: run.region,
            first_slot: run.first_slot,
            slots: run.slots,
        };
        Self {
            rank: worker.rank,
            node: worker.node,
            incarnation: format!("{:x}", worker.incarnation),
            state,
            cause,
            digest: hex(&worker.digest),
            runs: worker.runs.into_iter().map(run).collect(),
            ms_in_state: worker.ms_in_state,
            reporters: worker.reporters,
        }
    }
}

#[derive(Debug, Serialize)]
struct Tensor {
    name: String,
    dtype: String,
    shape: Vec<u64>,
    offset: u64,
    bytes: u64,
}

fn word(state: pb::SourceState) -> &'static str {
    match state {
        pb::SourceState::Unspecified => "unknown",
        pb::SourceState::Initialising => "initialising",
        pb::SourceState::Ready => "ready",
        pb::SourceState::Stale => "stale",
        pb::SourceState::Gone => "gone",
    }
}

fn why(cause: pb::SourceCause) -> &'static str {
    match cause {
        pb::SourceCause::Unspecified => "",
        pb::SourceCause::Session => "its node is silent",
        pb::SourceCause::Readers => "readers cannot read from it",
        pb::SourceCause::Rewritten => "its memory is written to",
        pb::SourceCause::Node => "its node has gone",
        pb::SourceCause::Fenced => "its node was restarted",
        pb::SourceCause::Withdrawn => "withdrawn",
        pb::SourceCause::Removed => "removed by an operator",
    }
}

pub(super) fn list(sources: Vec<pb::SourceSummary>, json: bool) -> Result<(), OutputError> {
    let sources: Vec<_> = sources.into_iter().map(Source::from).collect();
    if json {
        return output::json(&sources);
    }
    let row = |source: Source| {
        [
            source.source,
            source.name,
            source.revision,
            source.state.to_owned(),
            format!("{}/{}", source.ranks_ready, source.world_size),
            source.workers_ready.to_string(),
            source.tensors.to_string(),
            bytes(source.bytes),
        ]
    };
    output::rows(
        [
            "source", "name", "revision", "state", "ranks", "ready", "tensors", "bytes",
        ],
        sources.into_iter().map(row).collect(),
        "no sources are published",
    )
}

pub(super) fn status(status: pb::SourceStatusResponse, json: bool) -> Result<(), OutputError> {
    #[derive(Serialize)]
    struct Status {
        #[serde(flatten)]
        source: Source,
        workers: Vec<Worker>,
    }
    let status = Status {
        source: status.summary.unwrap_or_default().into(),
        workers: status.workers.into_iter().map(Worker::from).collect(),
    };
    if json {
        return output::json(&status);
    }
    let source = status.source;
    let attributes: Vec<_> = source
        .attributes
        .iter()
        .map(|(k, v)| format!("{k}={v}"))
        .collect();
    output::facts([
        ("source", source.source),
        ("name", source.name),
        ("revision", source.revision),
        ("attributes", attributes.join(", ")),
        ("namespace", source.namespace),
        ("state", source.state.to_owned()),
        (
            "ranks ready",
            format!("{} of {}", source.ranks_ready, source.world_size),
        ),
        ("tensors", source.tensors.to_string()),
        ("bytes", bytes(source.bytes)),
    ])?;
    workers(status.workers)
}

fn workers(workers: Vec<Worker>) -> Result<(), OutputError> {
    let row = |worker: Worker| {
        let since = Duration::from_millis(worker.ms_in_state);
        [
            worker.rank.to_string(),
            worker.node,
            worker.state.to_owned(),
            duration(since),
            worker.reporters.to_string(),
            worker.digest,
            worker.cause.to_owned(),
        ]
    };
    output::rows(
        ["rank", "node", "state", "since", "reports", "digest", "why"],
        workers.into_iter().map(row).collect(),
        "no workers",
    )
}

pub(super) fn rank(got: pb::GetSourceResponse, json: bool) -> Result<(), OutputError> {
    #[derive(Serialize)]
    struct Rank {
        digest: String,
        chunk_bytes: u64,
        chunks: u32,
        workers: Vec<Worker>,
        tensors: Vec<Tensor>,
    }
    let tensor = |tensor: pb::TensorDescriptor| Tensor {
        name: tensor.name,
        dtype: tensor.dtype,
        shape: tensor.shape,
        offset: tensor.offset,
        bytes: tensor.bytes,
    };
    let rank = Rank {
        digest: hex(&got.digest),
        chunk_bytes: got.chunk_bytes,
        chunks: got.chunks,
        workers: got.workers.into_iter().map(Worker::from).collect(),
        tensors: got.tensors.into_iter().map(tensor).collect(),
    };
    if json {
        return output::json(&rank);
    }
    workers(rank.workers)?;
    let row = |tensor: Tensor| {
        let shape: Vec<_> = tensor.shape.iter().map(u64::to_string).collect();
        [
            tensor.name,
            tensor.dtype,
            format!("[{}]", shape.join(", ")),
            tensor.offset.to_string(),
            bytes(tensor.bytes),
        ]
    };
    output::rows(
        ["tensor", "dtype", "shape", "offset", "bytes"],
        rank.tensors.into_iter().map(row).collect(),
        "no tensors",
    )
}
