//! `kvferry sources pull ID -o OUT`: tensors into a safetensors file.
//!
//! They are pulled into a file beside the output that the agent maps. What has landed is what its
//! region's slots hold; a note beside it says which region that is, so that the next run goes on.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use bytes::Bytes;
use kvferry_proto::{NamespaceName, Tensor, TensorTable, pb, pb::pull_tensors_event::Event};
use serde::{Deserialize, Serialize};

use super::{SourcesError, bytes, get, hex, no_table, source};
use crate::{
    cli::PullArgs,
    client::{self, Agent, Call, ClientError, Reach, Tensors},
    commands::{get::outcome_word, place},
    failure::Done,
    files::Unfinished,
    output::{self, OutputError},
    progress,
    safetensors::write_header,
    size::{duration, gb_per_s},
};

/// Copied at a time.
const COPY_BYTES: usize = 1 << 20;
/// What a call may take beyond the pull's own deadline.
const SLACK: Duration = Duration::from_secs(5);
/// Failed tensors that are named one by one.
const NAMED_FAILURES: usize = 10;

/// Which pull a file beside the output belongs to, and the region it is.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    source: String,
    rank: u32,
    digest: String,
    region: u32,
    incarnation: u64,
}

#[derive(Debug, Default, Serialize)]
struct Report {
    output: Option<PathBuf>,
    tensors: u32,
    bytes: u64,
    chunks_pulled: u32,
    chunks_here_before: u32,
    /// Tensors by where their chunks came from.
    sources: BTreeMap<String, u64>,
    failed: Vec<Failed>,
    names_unknown: Vec<String>,
    seconds: f64,
    gb_per_s: f64,
}

#[derive(Debug, Serialize)]
struct Failed {
    tensor: String,
    why: String,
}

/// The files beside the output.
struct Beside {
    data: PathBuf,
    state: PathBuf,
}

pub(super) async fn run(args: PullArgs, reach: &Reach, json: bool) -> Result<Done, SourcesError> {
    let began = Instant::now();
    let id = source(&args.id)?;
    let output = std::path::absolute(&args.output).map_err(file_error(&args.output))?;
    let beside = Beside::of(&output);
    let (mut agent, mut tensors) = client::agent_and_tensors(&reach.socket()).await?;
    let before = beside.read()?;
    if args.discard {
        discard(&mut agent, &beside, before, reach).await?;
        return Ok(Done::All);
    }
    let digest = match &before {
        Some(state) if state.source == args.id.to_lowercase() && state.rank == args.rank => {
            unhex(&state.digest)
        }
        Some(_) => return Err(SourcesError::OtherPull { path: beside.state }),
        None => Bytes::new(),
    };
    let mut coordinator = client::sources(reach).await?;
    let call = Call::coordinator("describe the source", reach.bound());
    let got = get(&mut coordinator, call, id.clone(), args.rank, digest).await?;
    let table = table(&got)?;
    let region = destination(&mut agent, &beside, before, &args, &got, reach).await?;

    let mut report = Report::default();
    // One call has a deadline; while calls get on, the next one goes on.
    let mut here = loop {
        let request = pb::PullTensorsRequest {
            source: id.clone(),
            rank: args.rank,
            digest: got.digest.clone(),
            names: args.tensor.clone(),
            name_prefixes: args.prefix.clone(),
            destination: Some(pb::pull_tensors_request::Destination::Slots(
                pb::TensorSlots {
                    region,
                    ..pb::TensorSlots::default()
                },
            )),
            timeout_ms: reach.timeout_ms,
            // The memory is on its way to a file.
            no_replica: true,
            serve: false,
        };
        let (here, landed) = pull(&mut tensors, request, reach, &mut report).await?;
        if report.failed.is_empty() || landed == 0 {
            break here;
        }
    };
    report.tensors = here.len() as u32; // bounded by the set
    report.bytes = here.iter().map(|tensor| tensor.bytes).sum();
    if report.failed.is_empty() {
        here.sort_by_key(|tensor| tensor.offset);
        write(&output, &beside.data, &here)?;
        unregister(&mut agent, region, reach).await?;
        beside.remove();
        report.output = Some(args.output.clone());
    }
    let took = began.elapsed();
    report.seconds = took.as_secs_f64();
    report.gb_per_s = gb_per_s(u64::from(report.chunks_pulled) * table.chunk_bytes(), took);
    print(&report, took, json)?;
    Ok(
        match report.failed.is_empty() && report.names_unknown.is_empty() {
            true => Done::All,
            false => Done::InPart,
        },
    )
}

/// The set, as it must be.
fn table(got: &pb::GetSourceResponse) -> Result<TensorTable, SourcesError> {
    let tensors = got.tensors.iter().cloned().map(Tensor::try_from);
    let tensors = tensors.collect::<Result<Vec<_>, _>>().map_err(no_table)?;
    TensorTable::new(got.chunk_bytes, got.chunks, tensors).map_err(no_table)
}

/// The region of the pull before, where the agent still has it; else a new one.
async fn destination(
    agent: &mut Agent,
    beside: &Beside,
    before: Option<State>,
    args: &PullArgs,
    got: &pb::GetSourceResponse,
    reach: &Reach,
) -> Result<u32, SourcesError> {
    if let Some(state) = before
        && there(agent, &state, reach).await?
    {
        return Ok(state.region);
    }
    let name = got.identity.clone().unwrap_or_default().namespace;
    let name = NamespaceName::new(&name).map_err(|e| SourcesError::Answer(e.into()))?;
    let mut coordinator = client::coordinator(reach).await?;
    let spec = place::find_namespace(&mut coordinator, name.as_str(), reach).await?;
    let spec = spec.ok_or(SourcesError::Answer(
        kvferry_proto::InvalidMessage::Missing("the source's namespace"),
    ))?;
    let failed = file_error(&beside.data);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&beside.data)
        .map_err(&failed)?;
    file.set_len(u64::from(got.chunks) * got.chunk_bytes)
        .map_err(&failed)?;
    let source = pb::PathSource {
        path: beside.data.display().to_string(),
    };
    let request = pb::RegisterRegionRequest {
        namespace: Some((&spec).into()),
        source: Some(pb::register_region_request::Source::Path(source)),
        geometry: Some(pb::Geometry {
            slots: got.chunks,
            planes: vec![pb::Plane {
                base: 0,
                stride: got.chunk_bytes,
                len: got.chunk_bytes,
            }],
        }),
        // What has landed outlasts this program; nothing else writes to the file.
        keep_on_disconnect: true,
    };
    let region = Call::agent("register the file", reach.bound())
        .answer(agent.register_region(request))
        .await?;
    beside.write(&State {
        source: args.id.to_lowercase(),
        rank: args.rank,
        digest: hex(&got.digest),
        region: region.region,
        incarnation: region.incarnation,
    })?;
    Ok(region.region)
}

/// Does the agent still have the region?
async fn there(agent: &mut Agent, state: &State, reach: &Reach) -> Result<bool, ClientError> {
    let stats = Call::agent("show its regions", reach.bound())
        .answer(agent.stats(pb::StatsRequest {}))
        .await?;
    let mut regions = stats.regions.iter().filter_map(|r| r.region.as_ref());
    Ok(stats.incarnation == state.incarnation
        && regions.any(|region| region.region == state.region))
}

/// One call. Gives the tensors that are here, and how many chunks came.
async fn pull(
    tensors: &mut Tensors,
    request: pb::PullTensorsRequest,
    reach: &Reach,
    report: &mut Report,
) -> Result<(Vec<pb::TensorDescriptor>, u32), SourcesError> {
    let call = Call::agent("pull the tensors", reach.bound() + SLACK);
    let mut events = call.answer(tensors.pull_tensors(request)).await?;
    report.failed.clear();
    let (mut here, mut bar) = (Vec::new(), progress::steps(0, "chunks"));
    while let Some(event) = call.within(events.message()).await? {
        match event.event {
            Some(Event::Begun(begun)) => {
                report.names_unknown = begun.names_unknown;
                bar = progress::steps(begun.chunks.into(), "chunks");
                bar.set_position(begun.chunks_here.into());
            }
            Some(Event::Progress(progress)) => bar.set_position(progress.chunks_landed.into()),
            Some(Event::Outcomes(outcomes)) => {
                for outcome in outcomes.outcomes {
                    take(outcome, report, &mut here);
                }
            }
            Some(Event::Summary(summary)) => {
                bar.finish_and_clear();
                if report.chunks_pulled == 0 {
                    report.chunks_here_before = summary.chunks_here_before;
                }
                report.chunks_pulled += summary.chunks_pulled;
                return Ok((here, summary.chunks_pulled));
            }
            // A kind of event this version does not know.
            None => {}
        }
    }
    Err(ClientError::nonsense(call, "a stream without a summary").into())
}

fn take(outcome: pb::TensorOutcome, report: &mut Report, here: &mut Vec<pb::TensorDescriptor>) {
    let kind = outcome.kind();
    let tensor = outcome.tensor.unwrap_or_default();
    match kind {
        pb::OutcomeKind::Pulled | pb::OutcomeKind::Local => {
            for node in outcome.source_nodes {
                *report.sources.entry(node).or_default() += 1;
            }
            here.push(tensor);
        }
        kind => report.failed.push(Failed {
            tensor: tensor.name,
            why: format!("{}: {}", outcome_word(kind), outcome.detail),
        }),
    }
}

/// Writes the tensors in order of their offsets.
fn write(output: &Path, data: &Path, tensors: &[pb::TensorDescriptor]) -> Result<(), SourcesError> {
    let from = File::open(data).map_err(file_error(data))?;
    let failed = file_error(output);
    let unfinished = Unfinished::create(output).map_err(&failed)?;
    let mut to = io::BufWriter::with_capacity(COPY_BYTES, unfinished.file());
    write_header(&mut to, tensors).map_err(&failed)?;
    let mut buffer = vec![0; COPY_BYTES];
    for tensor in tensors {
        let mut done = 0;
        while done < tensor.bytes {
            let left = usize::try_from(tensor.bytes - done).unwrap_or(COPY_BYTES);
            let piece = &mut buffer[..left.min(COPY_BYTES)];
            from.read_exact_at(piece, tensor.offset + done)
                .map_err(file_error(data))?;
            to.write_all(piece).map_err(&failed)?;
            done += piece.len() as u64;
        }
    }
    to.flush().map_err(&failed)?;
    drop(to);
    unfinished.finish().map_err(&failed)
}

async fn discard(
    agent: &mut Agent,
    beside: &Beside,
    before: Option<State>,
    reach: &Reach,
) -> Result<(), SourcesError> {
    if let Some(state) = before
        && there(agent, &state, reach).await?
    {
        unregister(agent, state.region, reach).await?;
    }
    beside.remove();
    Ok(())
}

async fn unregister(agent: &mut Agent, region: u32, reach: &Reach) -> Result<(), ClientError> {
    let request = pb::UnregisterRegionRequest { region };
    Call::agent("unregister the file", reach.bound())
        .answer(agent.unregister_region(request))
        .await?;
    Ok(())
}

impl Beside {
    fn of(output: &Path) -> Self {
        let with = |suffix: &str| {
            let mut name = OsString::from(output);
            name.push(suffix);
            PathBuf::from(name)
        };
        Self {
            data: with(".kvf-part"),
            state: with(".kvf-part.json"),
        }
    }

    fn read(&self) -> Result<Option<State>, SourcesError> {
        match fs::read(&self.state) {
            Ok(text) => {
                serde_json::from_slice(&text)
                    .map(Some)
                    .map_err(|source| SourcesError::State {
                        path: self.state.clone(),
                        source,
                    })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(file_error(&self.state)(error)),
        }
    }

    fn write(&self, state: &State) -> Result<(), SourcesError> {
        let failed = file_error(&self.state);
        let text = serde_json::to_vec(state).map_err(|error| failed(error.into()))?;
        let unfinished = Unfinished::create(&self.state).map_err(&failed)?;
        unfinished.file().write_all_at(&text, 0).map_err(&failed)?;
        unfinished.finish().map_err(&failed)
    }

    /// The output is there, or was given up: what is left of this is in nobody's way.
    fn remove(&self) {
        let _ = fs::remove_file(&self.state);
        let _ = fs::remove_file(&self.data);
    }
}

fn file_error(path: &Path) -> impl Fn(io::Error) -> SourcesError + use<> {
    let path = path.to_owned();
    move |source| SourcesError::File {
        path: path.clone(),
        source,
    }
}

/// Of what this program wrote; anything else is no digest the coordinator knows.
fn unhex(text: &str) -> Bytes {
    let pairs = text.as_bytes().chunks(2);
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    pairs.filter_map(byte).collect()
}

fn print(report: &Report, took: Duration, json: bool) -> Result<(), OutputError> {
    if json {
        return output::json(report);
    }
    for name in report.names_unknown.iter().take(NAMED_FAILURES) {
        output::line(&format!("no tensor is named {name}"))?;
    }
    for (node, tensors) in &report.sources {
        output::line(&format!("{tensors} tensors from {node}"))?;
    }
    if let Some(path) = &report.output {
        return output::line(&format!(
            "{} tensors, {} in {} ({:.2} GB/s) to {}",
            report.tensors,
            bytes(report.bytes),
            duration(took),
            report.gb_per_s,
            path.display()
        ));
    }
    for failed in report.failed.iter().take(NAMED_FAILURES) {
        output::line(&format!("{}: {}", failed.tensor, failed.why))?;
    }
    output::line(&format!(
        "{} tensors did not come; run it again to go on, or with --discard to give it up",
        report.failed.len()
    ))
}
