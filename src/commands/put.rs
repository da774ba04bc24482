//! `kvferry put FILE`: cut into blocks, hash, publish, leave a manifest.

mod source;

use std::{
    io,
    num::NonZeroU64,
    path::{Path, PathBuf},
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use kvferry_proto::{
    BlockHash, ChecksumPolicy, HashError, HashLen, IdError, Layout, LayoutError, NamespaceName,
    NamespaceSpec, PackedHashes, pb,
};
use serde::Serialize;
use tokio::{
    sync::mpsc,
    task::{JoinError, spawn_blocking},
};
use tokio_stream::wrappers::ReceiverStream;

use self::source::{Sender, Source, hash_file};
use super::place::{self, PlaceError};
use crate::{
    cli::PutArgs,
    client::{self, Agent, Call, ClientError},
    content::{ContentChain, ContentError},
    failure::Done,
    manifest::{Manifest, ManifestError},
    output::{self, OutputError},
    progress,
    size::{ByteSize, duration, gb_per_s},
};

/// Messages read ahead of the socket.
const CHUNKS_AHEAD: usize = 4;
/// Blocks in one call: what is lost when it fails, and what its deadline covers.
const CALL_BYTES: u64 = 512 << 20;
/// Bytes of hashes that new namespaces have.
const HASH_BYTES: usize = 32;

/// Why a file was not published. Blocks that were sealed before stay; putting it again skips them.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PutError {
    #[error("{path} cannot be read: {source}", path = path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{path} changed while it was read: put it again", path = path.display())]
    Changed { path: PathBuf },
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Place(#[from] PlaceError),
    #[error("--namespace: {0}")]
    Namespace(#[from] IdError),
    #[error("--block-bytes: {0}")]
    Layout(#[from] LayoutError),
    #[error(transparent)]
    Content(#[from] ContentError),
    #[error("the hashes cannot be packed: {0}")]
    Hashes(#[from] HashError),
    #[error(
        "{path} has {blocks} blocks of {block_bytes}, the agent's pool for {namespace} holds {slots}: \
         the agent needs a larger pool_bytes, or the namespace a new pool with --pool-bytes",
        path = path.display()
    )]
    PoolTooSmall {
        path: PathBuf,
        namespace: NamespaceName,
        blocks: usize,
        block_bytes: ByteSize,
        slots: u32,
    },
    #[error(
        "the coordinator had not confirmed the blocks after {wait_ms} ms: others may not find them; `kvferry stats` says what the agent's coordinators answered"
    )]
    NotAnnounced { wait_ms: u32 },
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error("the reading thread ended: {0}")]
    Reader(#[from] JoinError),
    #[error(transparent)]
    Output(#[from] OutputError),
}

#[derive(Debug, Default, Serialize)]
struct Report {
    manifest: PathBuf,
    namespace: String,
    length: u64,
    blocks: usize,
    blocks_stored: u64,
    blocks_already_present: u64,
    announced: bool,
    seconds: f64,
    gb_per_s: f64,
}

pub(crate) async fn run(args: PutArgs) -> Result<Done, PutError> {
    let name = NamespaceName::new(&args.namespace)?;
    let (file, length) = source::open(&args.file)?;
    let mut agent = client::agent(&args.reach.socket()).await?;
    let mut coordinator = client::coordinator(&args.reach).await?;
    let spec = match place::find_namespace(&mut coordinator, name.as_str(), &args.reach).await? {
        Some(spec) => spec,
        None => {
            let spec = new_namespace(name, args.block_bytes)?;
            place::create_namespace(&mut coordinator, &spec, &args.reach).await?;
            spec
        }
    };
    let slots = place::pool_slots(&mut agent, &spec, args.pool_bytes, &args.reach).await?;
    let source = Arc::new(Source {
        file,
        path: args.file.clone(),
        length,
        block_bytes: block_bytes(&spec),
    });
    let hashes = hash_file(Arc::clone(&source), spec.hash_len).await?;
    if hashes.len() > slots as usize {
        return Err(PutError::PoolTooSmall {
            path: args.file,
            namespace: spec.name,
            blocks: hashes.len(),
            block_bytes: ByteSize(source.block_bytes.get()),
            slots,
        });
    }
    let began = Instant::now();
    let mut report = publish(&mut agent, &args, &spec, &source, &hashes).await?;
    let took = began.elapsed();
    let manifest = Manifest {
        namespace: spec.name.to_string(),
        length,
        block_bytes: source.block_bytes,
        hash_len: spec.hash_len,
        hashes,
    };
    report.manifest = args.manifest.clone().unwrap_or_else(|| beside(&args.file));
    manifest.write(&report.manifest)?;
    report.namespace = manifest.namespace;
    report.length = length;
    report.blocks = manifest.hashes.len();
    report.seconds = took.as_secs_f64();
    report.gb_per_s = gb_per_s(length, took);
    print(&report, &source, took, args.json)?;
    if args.wait_ms > 0 && !report.announced {
        return Err(PutError::NotAnnounced {
            wait_ms: args.wait_ms,
        });
    }
    Ok(Done::All)
}

/// Bytes in one piece, no tokens, no checksum: the hash is one.
fn new_namespace(name: NamespaceName, block_bytes: ByteSize) -> Result<NamespaceSpec, PutError> {
    Ok(NamespaceSpec {
        name,
        layout: Layout::new("u8", 1, 1, block_bytes.0)?,
        hash_len: HashLen::new(HASH_BYTES)?,
        checksum: ChecksumPolicy::Off,
    })
}

/// A layout's blocks have bytes: it was checked when it was made.
fn block_bytes(spec: &NamespaceSpec) -> NonZeroU64 {
    NonZeroU64::new(spec.layout.block_bytes()).unwrap_or(NonZeroU64::MIN)
}

fn beside(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".kvf.json");
    name.into()
}

/// Sends the blocks in calls of a bounded size.
async fn publish(
    agent: &mut Agent,
    args: &PutArgs,
    spec: &NamespaceSpec,
    source: &Arc<Source>,
    hashes: &[BlockHash],
) -> Result<Report, PutError> {
    let mut report = Report {
        announced: true,
        ..Report::default()
    };
    let bar = progress::bytes(source.length, "publishing");
    let per_call =
        usize::try_from(CALL_BYTES / source.block_bytes).map_or(1, |blocks| blocks.max(1));
    for (number, part) in hashes.chunks(per_call).enumerate() {
        let first = number * per_call;
        let parent = first.checked_sub(1).map(|before| hashes[before]);
        let header = pb::PutRequest {
            namespace: spec.name.to_string(),
            hashes: Some(PackedHashes::pack(spec.hash_len, part)?.into()),
            chained: true,
            parent: parent.map_or_else(Bytes::new, |hash| Bytes::copy_from_slice(hash.as_bytes())),
            data: Bytes::new(),
            wait_announced_ms: args.wait_ms,
        };
        let chain = match parent {
            Some(parent) => ContentChain::after(parent),
            None => ContentChain::start(spec.hash_len)?,
        };
        let sender = Sender {
            source: Arc::clone(source),
            first: first as u64,
            hashes: part.to_vec(),
            chain,
            bar: bar.clone(),
        };
        // The announcement has its own time, behind the bytes.
        let bound = args.reach.bound() + Duration::from_millis(u64::from(args.wait_ms));
        let answer = send(agent, header, sender, bound).await?;
        report.blocks_stored += answer.blocks_stored;
        report.blocks_already_present += answer.blocks_already_present;
        report.announced &= answer.announced;
    }
    bar.finish_and_clear();
    Ok(report)
}

/// One call: a thread reads the file while the socket is written.
async fn send(
    agent: &mut Agent,
    header: pb::PutRequest,
    sender: Sender,
    bound: Duration,
) -> Result<pb::PutResponse, PutError> {
    let (messages, stream) = mpsc::channel(CHUNKS_AHEAD);
    let reader = spawn_blocking(move || match sender.run(&messages, header) {
        Ok(()) => Ok(()),
        // The stream stays open: closed, it would look as if these were all the bytes.
        Err(error) => Err((error, messages)),
    });
    let call = Call::agent("take the blocks", bound).answer(agent.put(ReceiverStream::new(stream)));
    let mut call = pin!(call);
    tokio::select! {
        answer = &mut call => Ok(answer?),
        read = reader => match read? {
            Ok(()) => Ok(call.await?),
            Err((error, _open)) => Err(error),
        },
    }
}

fn print(report: &Report, source: &Source, took: Duration, json: bool) -> Result<(), OutputError> {
    if json {
        return output::json(report);
    }
    output::facts([
        ("namespace", report.namespace.clone()),
        (
            "blocks",
            format!(
                "{} of {} ({} stored, {} were there)",
                report.blocks,
                ByteSize(source.block_bytes.get()),
                report.blocks_stored,
                report.blocks_already_present
            ),
        ),
        ("bytes", ByteSize(report.length).to_string()),
        (
            "took",
            format!("{} ({:.2} GB/s)", duration(took), report.gb_per_s),
        ),
        ("manifest", report.manifest.display().to_string()),
    ])
}
