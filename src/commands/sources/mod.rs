//! `kvferry sources`: named sets of tensors.

mod publish;
mod pull;
mod show;

use std::{io, path::PathBuf};

use bytes::Bytes;
use kvferry_proto::{InvalidMessage, SourceError, SourceId, TensorError, pb};
use serde::Serialize;

use super::place::PlaceError;
use crate::{
    cli::{ListSources, SourcesAction, SourcesArgs},
    client::{self, Call, ClientError, Sources},
    failure::Done,
    output::{self, OutputError},
    safetensors::SafetensorsError,
    size::ByteSize,
};

/// Why nothing came of it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SourcesError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// What was given cannot be.
    #[error("refused: {0}")]
    Usage(InvalidMessage),
    /// What was answered cannot be.
    #[error("the answer makes no sense: {0}")]
    Answer(InvalidMessage),
    #[error(transparent)]
    Safetensors(#[from] SafetensorsError),
    #[error("{path}: {source}", path = path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("{path} changed while it was read: publish it again", path = path.display())]
    Changed { path: PathBuf },
    #[error(
        "namespace {namespace} has blocks in {planes} planes: tensors need a namespace of their own"
    )]
    Planes { namespace: String, planes: u32 },
    #[error("{path} is the state of another pull: give another output, or --discard it", path = path.display())]
    OtherPull { path: PathBuf },
    #[error("{path} is no state of a pull: {source}", path = path.display())]
    State {
        path: PathBuf,
        source: serde_json::Error,
    },
    #[error(transparent)]
    Output(#[from] OutputError),
}

pub(crate) async fn run(args: SourcesArgs) -> Result<Done, SourcesError> {
    let (reach, json) = (args.reach, args.json);
    let action = args
        .action
        .unwrap_or(SourcesAction::List(ListSources::default()));
    match action {
        SourcesAction::Publish(args) => return publish::run(args, &reach, json).await,
        SourcesAction::Pull(args) => return pull::run(args, &reach, json).await,
        SourcesAction::Withdraw { id, rank } => {
            let mut agent = client::tensors(&reach.socket()).await?;
            let source = source(&id)?;
            let request = pb::WithdrawTensorsRequest { source, rank };
            let answer = Call::agent("withdraw the tensors", reach.bound())
                .answer(agent.withdraw(request))
                .await?;
            return match answer.withdrawn {
                true => Ok(Done::All),
                false => {
                    output::line("this agent publishes nothing of that source and rank")?;
                    Ok(Done::InPart)
                }
            };
        }
        _ => {}
    }
    let mut coordinator = client::sources(&reach).await?;
    match action {
        SourcesAction::List(filter) => {
            let call = Call::coordinator("list sources", reach.bound());
            show::list(all(&mut coordinator, call, filter).await?, json)?;
        }
        SourcesAction::Get { id, rank } => {
            let call = Call::coordinator("describe the source", reach.bound());
            let got = get(&mut coordinator, call, source(&id)?, rank, Bytes::new()).await?;
            show::rank(got, json)?;
        }
        SourcesAction::Status { id } => {
            let request = pb::SourceStatusRequest {
                source: source(&id)?,
            };
            let status = Call::coordinator("tell how the source stands", reach.bound())
                .answer(coordinator.status(request))
                .await?;
            show::status(status, json)?;
        }
        SourcesAction::Remove { id, node } => {
            let request = pb::RemoveSourceRequest {
                source: source(&id)?,
                node: node.unwrap_or_default(),
            };
            let answer = Call::coordinator("remove the source", reach.bound())
                .answer(coordinator.remove(request))
                .await?;
            removed(answer.workers_removed, json)?;
        }
        SourcesAction::Publish(_) | SourcesAction::Pull(_) | SourcesAction::Withdraw { .. } => {}
    }
    Ok(Done::All)
}

fn removed(workers: u32, json: bool) -> Result<(), OutputError> {
    #[derive(Serialize)]
    struct Removed {
        workers_removed: u32,
    }
    match json {
        true => output::json(&Removed {
            workers_removed: workers,
        }),
        false => output::line(&format!("{workers} workers removed")),
    }
}

/// An id as it was typed.
fn source(text: &str) -> Result<Bytes, SourcesError> {
    let id = SourceId::from_hex(text).map_err(invalid)?;
    Ok(Bytes::copy_from_slice(id.as_bytes()))
}

fn invalid(error: SourceError) -> SourcesError {
    SourcesError::Usage(error.into())
}

fn no_table(error: TensorError) -> SourcesError {
    SourcesError::Answer(error.into())
}

/// Page after page.
async fn all(
    coordinator: &mut Sources,
    call: Call,
    filter: ListSources,
) -> Result<Vec<pb::SourceSummary>, SourcesError> {
    let mut request = pb::ListSourcesRequest {
        namespace: filter.namespace.unwrap_or_default(),
        name_prefix: filter.name.unwrap_or_default(),
        ..pb::ListSourcesRequest::default()
    };
    let mut sources = Vec::new();
    loop {
        let page = call.answer(coordinator.list(request.clone())).await?;
        sources.extend(page.sources);
        // Ids only go up: an answer that stands still would go on for ever.
        if page.next <= request.after {
            return Ok(sources);
        }
        request.after = page.next;
    }
}

/// A rank with all its tensors.
async fn get(
    coordinator: &mut Sources,
    call: Call,
    source: Bytes,
    rank: u32,
    digest: Bytes,
) -> Result<pb::GetSourceResponse, SourcesError> {
    let mut request = pb::GetSourceRequest {
        source,
        rank,
        digest,
        ..pb::GetSourceRequest::default()
    };
    let mut whole = call.answer(coordinator.get(request.clone())).await?;
    request.digest = whole.digest.clone();
    while whole.tensors.len() < whole.tensor_count as usize {
        request.first = whole.tensors.len() as u32; // of a count of 32 bits
        let page = call.answer(coordinator.get(request.clone())).await?;
        if page.tensors.is_empty() {
            return Err(ClientError::nonsense(call, "an empty page of tensors").into());
        }
        whole.tensors.extend(page.tensors);
    }
    Ok(whole)
}

fn bytes(bytes: u64) -> String {
    ByteSize(bytes).to_string()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
