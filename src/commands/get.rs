//! `kvferry get MANIFEST -o OUT`: bring a file back from wherever its blocks are.

use std::{
    collections::BTreeMap,
    io,
    os::unix::fs::FileExt,
    path::PathBuf,
    time::{Duration, Instant},
};

use indicatif::ProgressBar;
use kvferry_proto::{BlockHash, HashError, PackedHashes, pb};
use serde::Serialize;

use super::place::{self, PlaceError};
use crate::{
    cli::GetArgs,
    client::{self, Agent, Call, ClientError},
    content::{ContentChain, ContentError, ContentHasher},
    failure::Done,
    files::Unfinished,
    manifest::{Manifest, ManifestError},
    output::{self, OutputError},
    progress,
    size::{ByteSize, duration, gb_per_s},
};

/// Blocks in one call: its deadline covers as much.
const CALL_BYTES: u64 = 512 << 20;
/// What a call may take beyond the pull's own deadline, for the bytes' way through the socket.
const SLACK: Duration = Duration::from_secs(5);
/// Failed blocks that are named one by one.
const NAMED_FAILURES: usize = 10;

const CALL: &str = "bring the blocks";

/// Why there is no file. Nothing was written under its name.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GetError {
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Place(#[from] PlaceError),
    #[error("there is no namespace {namespace}: its blocks are gone")]
    NoNamespace { namespace: String },
    #[error(
        "namespace {namespace} has blocks of {has} now, the manifest's have {want}: it is another namespace"
    )]
    OtherBlocks {
        namespace: String,
        has: ByteSize,
        want: ByteSize,
    },
    #[error("the hashes cannot be packed: {0}")]
    Hashes(#[from] HashError),
    #[error(transparent)]
    Content(#[from] ContentError),
    #[error("{path} cannot be written: {source}", path = path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Output(#[from] OutputError),
}

#[derive(Debug, Default, Serialize)]
struct Report {
    output: Option<PathBuf>,
    length: u64,
    blocks: usize,
    /// Blocks by where they came from.
    sources: BTreeMap<String, u64>,
    failed: Vec<Failed>,
    seconds: f64,
    gb_per_s: f64,
}

#[derive(Debug, Serialize)]
struct Failed {
    block: usize,
    hash: String,
    why: String,
}

pub(crate) async fn run(args: GetArgs) -> Result<Done, GetError> {
    let manifest = Manifest::read(&args.manifest)?;
    let mut agent = client::agent(&args.reach.socket()).await?;
    prepare_pool(&mut agent, &args, &manifest).await?;
    let failed = |source| GetError::Write {
        path: args.output.clone(),
        source,
    };
    let unfinished = Unfinished::create(&args.output).map_err(failed)?;
    let began = Instant::now();
    let mut report = fetch(&mut agent, &args, &manifest, &unfinished).await?;
    let took = began.elapsed();
    report.length = manifest.length;
    report.blocks = manifest.hashes.len();
    report.seconds = took.as_secs_f64();
    report.gb_per_s = gb_per_s(manifest.length, took);
    if report.failed.is_empty() {
        unfinished
            .file()
            .set_len(manifest.length)
            .and_then(|()| unfinished.finish())
            .map_err(failed)?;
        report.output = Some(args.output.clone());
    }
    print(&report, &args, took)?;
    Ok(match report.failed.is_empty() {
        true => Done::All,
        false => Done::InPart,
    })
}

/// A node that never held a block of the namespace has no memory for it yet.
async fn prepare_pool(
    agent: &mut Agent,
    args: &GetArgs,
    manifest: &Manifest,
) -> Result<(), GetError> {
    let mut coordinator = client::coordinator(&args.reach).await?;
    let spec = place::find_namespace(&mut coordinator, &manifest.namespace, &args.reach)
        .await?
        .ok_or_else(|| GetError::NoNamespace {
            namespace: manifest.namespace.clone(),
        })?;
    if spec.layout.block_bytes() != manifest.block_bytes.get() {
        return Err(GetError::OtherBlocks {
            namespace: manifest.namespace.clone(),
            has: ByteSize(spec.layout.block_bytes()),
            want: ByteSize(manifest.block_bytes.get()),
        });
    }
    place::pool_slots(agent, &spec, args.pool_bytes, &args.reach).await?;
    Ok(())
}

async fn fetch(
    agent: &mut Agent,
    args: &GetArgs,
    manifest: &Manifest,
    into: &Unfinished,
) -> Result<Report, GetError> {
    let mut report = Report::default();
    let bar = progress::bytes(manifest.length, "getting");
    let per_call = usize::try_from(CALL_BYTES / manifest.block_bytes).map_or(1, |n| n.max(1));
    for (number, part) in manifest.hashes.chunks(per_call).enumerate() {
        let request = pb::GetRequest {
            namespace: manifest.namespace.clone(),
            hashes: Some(PackedHashes::pack(manifest.hash_len, part)?.into()),
            timeout_ms: args.reach.timeout_ms,
            no_replica: args.no_replica,
        };
        let call = Call::agent(CALL, args.reach.bound() + SLACK);
        let mut stream = call.answer(agent.get(request)).await?;
        let mut arrivals = Arrivals {
            manifest,
            into,
            path: &args.output,
            first: number * per_call,
            count: part.len(),
            next: 0,
            open: None,
            report: &mut report,
            bar: &bar,
        };
        while let Some(message) = call.within(stream.message()).await? {
            arrivals.take(call, message)?;
        }
        arrivals.finish(call)?;
    }
    bar.finish_and_clear();
    Ok(report)
}

/// One call's blocks, as their pieces arrive in order.
struct Arrivals<'a> {
    manifest: &'a Manifest,
    into: &'a Unfinished,
    path: &'a PathBuf,
    /// Index of the call's first block in the file.
    first: usize,
    count: usize,
    /// The block an outcome is expected for next, within the call.
    next: usize,
    open: Option<OpenBlock>,
    report: &'a mut Report,
    bar: &'a ProgressBar,
}

/// A block some of whose bytes have arrived.
struct OpenBlock {
    index: usize,
    bytes: u64,
    hasher: ContentHasher,
    source: String,
}

impl Arrivals<'_> {
    fn take(&mut self, call: Call, message: pb::GetResponse) -> Result<(), GetError> {
        if let Some(outcome) = message.outcome {
            self.close(call)?;
            self.begin(call, &outcome)?;
        }
        if message.data.is_empty() {
            return Ok(());
        }
        let block_bytes = self.manifest.block_bytes.get();
        let Some(open) = &mut self.open else {
            return Err(ClientError::nonsense(call, "bytes of no block").into());
        };
        let after = open.bytes + message.data.len() as u64;
        if after > block_bytes {
            return Err(ClientError::nonsense(call, "more bytes than a block has").into());
        }
        let offset = open.index as u64 * block_bytes + open.bytes;
        let written = self.into.file().write_all_at(&message.data, offset);
        written.map_err(|source| GetError::Write {
            path: self.path.clone(),
            source,
        })?;
        open.hasher.update(&message.data);
        open.bytes = after;
        self.bar.inc(message.data.len() as u64);
        Ok(())
    }

    fn begin(&mut self, call: Call, outcome: &pb::BlockOutcome) -> Result<(), GetError> {
        if outcome.index as usize != self.next || self.next == self.count {
            let message = format!("block {} where {} is due", outcome.index, self.next);
            return Err(ClientError::nonsense(call, message).into());
        }
        self.next += 1;
        let index = self.first + outcome.index as usize;
        let source = match outcome.kind() {
            pb::OutcomeKind::Local => "here".to_owned(),
            pb::OutcomeKind::Pulled => {
                format!("{} over {}", outcome.source_node, outcome.transport)
            }
            kind => {
                self.fail(index, format!("{}: {}", outcome_word(kind), outcome.detail));
                return Ok(());
            }
        };
        let chain = match index.checked_sub(1) {
            Some(before) => ContentChain::after(self.manifest.hashes[before]),
            None => ContentChain::start(self.manifest.hash_len)?,
        };
        self.open = Some(OpenBlock {
            index,
            bytes: 0,
            hasher: chain.block(),
            source,
        });
        Ok(())
    }

    /// The block's last byte has arrived: are they the ones that were put?
    fn close(&mut self, call: Call) -> Result<(), GetError> {
        let Some(open) = self.open.take() else {
            return Ok(());
        };
        if open.bytes != self.manifest.block_bytes.get() {
            return Err(ClientError::nonsense(call, "fewer bytes than a block has").into());
        }
        let found: BlockHash = open.hasher.finish()?;
        if found == self.manifest.hashes[open.index] {
            *self.report.sources.entry(open.source).or_default() += 1;
        } else {
            let why = format!("its bytes, from {}, do not have its hash", open.source);
            self.fail(open.index, why);
        }
        Ok(())
    }

    fn finish(mut self, call: Call) -> Result<(), GetError> {
        self.close(call)?;
        if self.next != self.count {
            let message = format!("{} outcomes for {} blocks", self.next, self.count);
            return Err(ClientError::nonsense(call, message).into());
        }
        Ok(())
    }

    fn fail(&mut self, index: usize, why: String) {
        self.report.failed.push(Failed {
            block: index,
            hash: self.manifest.hashes[index].to_string(),
            why,
        });
    }
}

/// An outcome in one word.
pub(crate) fn outcome_word(kind: pb::OutcomeKind) -> &'static str {
    use pb::OutcomeKind as Kind;
    match kind {
        Kind::Unspecified => "unknown outcome",
        Kind::Pulled => "pulled",
        Kind::Local => "local",
        Kind::Missing => "missing",
        Kind::Stale => "stale",
        Kind::Corrupt => "corrupt",
        Kind::Unreachable => "unreachable",
        Kind::TimedOut => "timed out",
        Kind::LocateFailed => "locate failed",
        Kind::NoSpace => "no space",
        Kind::Denied => "denied",
        Kind::Cancelled => "cancelled",
    }
}

fn print(report: &Report, args: &GetArgs, took: Duration) -> Result<(), OutputError> {
    if args.json {
        return output::json(report);
    }
    for (source, blocks) in &report.sources {
        output::line(&format!("{blocks} blocks from {source}"))?;
    }
    if report.failed.is_empty() {
        return output::line(&format!(
            "{} in {} ({:.2} GB/s) to {}",
            ByteSize(report.length),
            duration(took),
            report.gb_per_s,
            args.output.display()
        ));
    }
    for failed in report.failed.iter().take(NAMED_FAILURES) {
        output::line(&format!(
            "block {} ({}): {}",
            failed.block, failed.hash, failed.why
        ))?;
    }
    output::line(&format!(
        "{} of {} blocks did not come: nothing was written to {}",
        report.failed.len(),
        report.blocks,
        args.output.display()
    ))
}
