//! `kvferry sources publish FILE...`: safetensors files into shared memory, and from there to others.

use std::{
    io,
    os::unix::fs::FileExt,
    path::Path,
    time::{Duration, Instant},
};

use kvferry_proto::{
    BlockHash, ChecksumPolicy, HashLen, InvalidMessage, Layout, NamespaceName, NamespaceSpec, pb,
};
use rustix::fs::{FallocateFlags, fallocate};
use serde::Serialize;
use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;

use super::{SourcesError, bytes, hex};
use crate::{
    cli::PublishArgs,
    client::{self, Agent, Call, Reach},
    commands::place,
    failure::Done,
    output, progress,
    safetensors::Safetensors,
    size::{duration, gb_per_s},
};

/// Where a file's tensors begin: a multiple of this, so that no dtype is torn across a boundary.
const ALIGNMENT: u64 = 64;
/// Read at a time.
const COPY_BYTES: usize = 1 << 20;
/// Tensors in one message.
const TENSORS_PER_MESSAGE: usize = 4_096;
/// Bytes of the hashes of a new namespace.
const HASH_BYTES: usize = 32;
/// How long coordinators may take to list what was published.
const ANNOUNCE_MS: u32 = 10_000;

#[derive(Debug, Serialize)]
struct Report {
    source: String,
    rank: u32,
    digest: String,
    tensors: usize,
    bytes: u64,
    chunks: u32,
    announced: bool,
    seconds: f64,
    gb_per_s: f64,
}

/// The files' tensors, one file after another.
struct Content {
    files: Vec<(Safetensors, u64)>,
    tensors: Vec<pb::TensorDescriptor>,
    bytes: u64,
}

pub(super) async fn run(
    args: PublishArgs,
    reach: &Reach,
    json: bool,
) -> Result<Done, SourcesError> {
    let began = Instant::now();
    let content = open(&args)?;
    let given = args.content.as_deref().map(content_digest).transpose()?;
    let name = NamespaceName::new(&args.namespace).map_err(|e| SourcesError::Usage(e.into()))?;
    let (mut agent, mut tensors) = client::agent_and_tensors(&reach.socket()).await?;
    let spec = namespace(&args, name, reach).await?;
    let chunk_bytes = spec.layout.block_bytes();
    let chunks = content.bytes.div_ceil(chunk_bytes).max(1);
    let chunks = u32::try_from(chunks).map_err(|_| {
        SourcesError::Usage(InvalidMessage::OutOfBounds {
            what: "number of chunks",
            got: chunks,
            max: u32::MAX.into(),
        })
    })?;
    let failed = |source| SourcesError::File {
        path: args.dir.clone(),
        source,
    };
    let memory = memory(&args.dir, u64::from(chunks) * chunk_bytes).map_err(failed)?;
    let digest = copy(&content, &memory, &args.dir)?;
    // The ranks of one source have other bytes, and one identity.
    let digest = given.or((args.world_size == 1).then_some(digest.to_vec()));
    let region = register(&mut agent, &spec, chunks, &memory, reach).await?;
    // Mapped now: without a name it is gone with its users, however they end.
    drop(memory);
    let header = pb::PublishTensorsHeader {
        identity: Some(pb::SourceIdentity {
            namespace: args.namespace.clone(),
            name: args.name.clone(),
            revision: args.revision.clone(),
            world_size: args.world_size,
            attributes: args.attribute.iter().cloned().collect(),
            content: digest.unwrap_or_default().into(),
        }),
        rank: args.rank,
        runs: vec![pb::ChunkRun {
            region,
            first_slot: 0,
            slots: chunks,
        }],
        ready: true,
        unregister_with_it: true,
        wait_announced_ms: ANNOUNCE_MS,
    };
    let count = content.tensors.len();
    let call = Call::agent("publish the tensors", reach.bound().max(LONG));
    let stream = tokio_stream::iter(messages(header, &content.tensors));
    let published = match call.answer(tensors.publish(stream)).await {
        Ok(published) => published,
        Err(error) => {
            let request = pb::UnregisterRegionRequest { region };
            // The first error is the one to tell of.
            let _ = Call::agent("unregister the memory", reach.bound())
                .answer(agent.unregister_region(request))
                .await;
            return Err(error.into());
        }
    };
    let took = began.elapsed();
    let report = Report {
        source: hex(&published.source),
        rank: args.rank,
        digest: hex(&published.digest),
        tensors: count,
        bytes: content.bytes,
        chunks,
        announced: published.announced,
        seconds: took.as_secs_f64(),
        gb_per_s: gb_per_s(content.bytes, took),
    };
    if json {
        output::json(&report)?;
    } else {
        output::line(&report.source)?;
        output::line(&format!(
            "{} tensors, {} in {}",
            report.tensors,
            bytes(report.bytes),
            duration(took)
        ))?;
        if !report.announced {
            output::line(
                "the coordinator had not confirmed it in time; `kvferry stats` shows why",
            )?;
        }
    }
    Ok(match published.announced {
        true => Done::All,
        false => Done::InPart,
    })
}

/// Reading every byte for its checksum takes longer than other calls.
const LONG: Duration = Duration::from_secs(600);

fn open(args: &PublishArgs) -> Result<Content, SourcesError> {
    let mut content = Content {
        files: Vec::new(),
        tensors: Vec::new(),
        bytes: 0,
    };
    for path in &args.files {
        let mut file = Safetensors::open(path)?;
        let start = content.bytes.next_multiple_of(ALIGNMENT);
        for mut tensor in std::mem::take(&mut file.tensors) {
            tensor.offset += start;
            content.tensors.push(tensor);
        }
        content.bytes = start + file.data_bytes;
        content.files.push((file, start));
    }
    Ok(content)
}

fn content_digest(text: &str) -> Result<Vec<u8>, SourcesError> {
    // As strict as for block hashes: 8 to 64 bytes in hexadecimal.
    let digest = BlockHash::from_hex(text).map_err(|e| SourcesError::Usage(e.into()))?;
    Ok(digest.as_bytes().to_vec())
}

/// The namespace that is there, or a new one.
async fn namespace(
    args: &PublishArgs,
    name: NamespaceName,
    reach: &Reach,
) -> Result<NamespaceSpec, SourcesError> {
    let mut coordinator = client::coordinator(reach).await?;
    if let Some(spec) = place::find_namespace(&mut coordinator, name.as_str(), reach).await? {
        return match spec.layout.plane_count() {
            1 => Ok(spec),
            planes => Err(SourcesError::Planes {
                namespace: args.namespace.clone(),
                planes,
            }),
        };
    }
    let usage = |error: InvalidMessage| SourcesError::Usage(error);
    let spec = NamespaceSpec {
        name,
        layout: Layout::new("u8", 1, 1, args.chunk_bytes.0).map_err(|e| usage(e.into()))?,
        hash_len: HashLen::new(HASH_BYTES).map_err(|e| usage(e.into()))?,
        // Weights are read once and used for long: a wrong byte costs more than the checking.
        checksum: ChecksumPolicy::Always,
    };
    place::create_namespace(&mut coordinator, &spec, reach).await?;
    Ok(spec)
}

fn memory(directory: &Path, bytes: u64) -> io::Result<NamedTempFile> {
    let file = tempfile::Builder::new()
        .prefix("kvferry-source-")
        .tempfile_in(std::path::absolute(directory)?)?;
    // Taken now: a full file system is an error here and a dead agent later.
    fallocate(file.as_file(), FallocateFlags::empty(), 0, bytes)?;
    Ok(file)
}

/// Copies the tensors' bytes, and gives their digest.
fn copy(
    content: &Content,
    memory: &NamedTempFile,
    directory: &Path,
) -> Result<[u8; 32], SourcesError> {
    let bar = progress::bytes(content.bytes, "copying");
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; COPY_BYTES];
    for (file, start) in &content.files {
        let mut done = 0;
        while done < file.data_bytes {
            let left = usize::try_from(file.data_bytes - done).unwrap_or(COPY_BYTES);
            let piece = &mut buffer[..left.min(COPY_BYTES)];
            let read = file.file.read_exact_at(piece, file.data_start + done);
            read.map_err(|source| match source.kind() {
                io::ErrorKind::UnexpectedEof => SourcesError::Changed {
                    path: file.path.clone(),
                },
                _ => SourcesError::File {
                    path: file.path.clone(),
                    source,
                },
            })?;
            hasher.update(&*piece);
            let written = memory.as_file().write_all_at(piece, start + done);
            written.map_err(|source| SourcesError::File {
                path: directory.to_owned(),
                source,
            })?;
            done += piece.len() as u64;
            bar.inc(piece.len() as u64);
        }
    }
    bar.finish_and_clear();
    Ok(hasher.finalize().into())
}

async fn register(
    agent: &mut Agent,
    spec: &NamespaceSpec,
    chunks: u32,
    memory: &NamedTempFile,
    reach: &Reach,
) -> Result<u32, SourcesError> {
    let chunk_bytes = spec.layout.block_bytes();
    let source = pb::PathSource {
        path: memory.path().display().to_string(),
    };
    let request = pb::RegisterRegionRequest {
        namespace: Some(spec.into()),
        source: Some(pb::register_region_request::Source::Path(source)),
        geometry: Some(pb::Geometry {
            slots: chunks,
            planes: vec![pb::Plane {
                base: 0,
                stride: chunk_bytes,
                len: chunk_bytes,
            }],
        }),
        // This program goes; nothing else writes to the memory.
        keep_on_disconnect: true,
    };
    let region = Call::agent("register the memory", reach.bound())
        .answer(agent.register_region(request))
        .await?;
    Ok(region.region)
}

fn messages(
    header: pb::PublishTensorsHeader,
    tensors: &[pb::TensorDescriptor],
) -> Vec<pb::PublishTensorsRequest> {
    let mut messages = vec![pb::PublishTensorsRequest {
        header: Some(header),
        tensors: Vec::new(),
    }];
    messages.extend(
        tensors
            .chunks(TENSORS_PER_MESSAGE)
            .map(|some| pb::PublishTensorsRequest {
                header: None,
                tensors: some.to_vec(),
            }),
    );
    messages
}
