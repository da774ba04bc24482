//! Sets of tensors: published by one agent and pulled by another byte for byte, from whoever still has
//! them, going on where it was interrupted, and known again after the coordinator's restart.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    time::{Duration, Instant},
};

use bytes::Bytes;
use hyper_util::rt::TokioIo;
use kvferry_proto::{
    Reason,
    pb::{
        self, OutcomeKind, SourceCause as Cause, SourceState as State, pull_tensors_event::Event,
        pull_tensors_request::Destination, sources_client::SourcesClient,
        tensors_client::TensorsClient,
    },
    reason_of,
};
use tokio::net::UnixStream;
use tonic::{
    Code, Status, Streaming,
    transport::{Channel, Endpoint},
};

use crate::{
    cluster::{Cluster, eventually},
    engine::Engine,
};

const CHUNK: u64 = 16 << 10;
/// More than a few frames, less than a second.
const CHUNKS: u32 = 256;
const TIMEOUT_MS: u32 = 60_000;
/// Of readers that are to give up one worker while there is another.
const GIVES_UP: [&str; 2] = ["--stall-bound-ms", "1000"];

fn weights() -> pb::NamespaceSpec {
    pb::NamespaceSpec {
        name: "weights".into(),
        layout: Some(pb::Layout {
            dtype: "u8".into(),
            tokens_per_block: 1,
            plane_count: 1,
            plane_bytes: CHUNK,
        }),
        hash_len: 32,
        checksum: pb::ChecksumPolicy::Always.into(),
    }
}

fn identity() -> pb::SourceIdentity {
    pb::SourceIdentity {
        namespace: "weights".into(),
        name: "org/model".into(),
        revision: "main".into(),
        world_size: 1,
        ..pb::SourceIdentity::default()
    }
}

/// Of sizes that fit no chunk, one after another to the last byte.
fn tensors() -> Vec<pb::TensorDescriptor> {
    let total = u64::from(CHUNKS) * CHUNK;
    let (mut offset, mut all) = (0, Vec::new());
    while offset < total {
        let n = all.len() as u64;
        let bytes = (1_001 + 7_919 * (n % 13) * (n % 5)).min(total - offset);
        all.push(pb::TensorDescriptor {
            name: format!(
                "{}.{n}.weight",
                if offset * 2 < total { "low" } else { "high" }
            ),
            dtype: "U8".into(),
            shape: vec![bytes],
            offset,
            bytes,
        });
        offset += bytes;
    }
    all
}

fn content() -> Vec<u8> {
    let word = |n: u64| {
        n.wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(17)
            .to_le_bytes()
    };
    (0..u64::from(CHUNKS) * CHUNK / 8).flat_map(word).collect()
}

/// An engine's memory for the whole set.
struct Memory {
    region: u32,
    file: File,
    _name: tempfile::NamedTempFile,
}

/// An engine that knows of tensors.
struct Node {
    engine: Engine,
    tensors: TensorsClient<Channel>,
}

impl Node {
    async fn start(cluster: &mut Cluster, name: &str) -> Self {
        Self::start_with(cluster, name, &[]).await
    }

    async fn start_with(cluster: &mut Cluster, name: &str, more: &[&str]) -> Self {
        let args = [&["--transport", "tcp"], more].concat();
        let engine = cluster.agent(name, &args).await;
        let path = cluster.socket(name);
        let channel = Endpoint::from_static("http://agent.invalid")
            .connect_with_connector(tower::service_fn(move |_| {
                let path = path.clone();
                async move { UnixStream::connect(path).await.map(TokioIo::new) }
            }))
            .await
            .unwrap();
        Self {
            engine,
            tensors: TensorsClient::new(channel),
        }
    }

    async fn memory(&mut self) -> Memory {
        let file = tempfile::Builder::new()
            .prefix("kvferry-e2e-")
            .tempfile_in("/dev/shm")
            .unwrap();
        file.as_file().set_len(u64::from(CHUNKS) * CHUNK).unwrap();
        let source = pb::PathSource {
            path: file.path().display().to_string(),
        };
        let request = pb::RegisterRegionRequest {
            namespace: Some(weights()),
            source: Some(pb::register_region_request::Source::Path(source)),
            geometry: Some(pb::Geometry {
                slots: CHUNKS,
                planes: vec![pb::Plane {
                    base: 0,
                    stride: CHUNK,
                    len: CHUNK,
                }],
            }),
            keep_on_disconnect: false,
        };
        let info = self.engine.api.register_region(request).await.unwrap();
        Memory {
            region: info.into_inner().region,
            file: file.reopen().unwrap(),
            _name: file,
        }
    }

    async fn say(&mut self, memory: &Memory, ready: bool) -> pb::PublishTensorsResponse {
        let header = pb::PublishTensorsHeader {
            identity: Some(identity()),
            runs: vec![pb::ChunkRun {
                region: memory.region,
                first_slot: 0,
                slots: CHUNKS,
            }],
            ready,
            wait_announced_ms: 60_000,
            ..pb::PublishTensorsHeader::default()
        };
        let mut messages: Vec<_> = tensors()
            .chunks(100)
            .map(|some| pb::PublishTensorsRequest {
                header: None,
                tensors: some.to_vec(),
            })
            .collect();
        messages[0].header = Some(header);
        let published = self.tensors.publish(tokio_stream::iter(messages)).await;
        let published = published.unwrap().into_inner();
        assert!(published.announced);
        published
    }

    /// Memory with the content, published.
    async fn publish(&mut self) -> (Memory, Bytes) {
        let memory = self.memory().await;
        memory.file.write_all_at(&content(), 0).unwrap();
        let source = self.say(&memory, true).await.source;
        (memory, source)
    }

    async fn begin(
        &mut self,
        source: &Bytes,
        destination: Destination,
        more: impl FnOnce(&mut pb::PullTensorsRequest),
    ) -> Result<(pb::PullTensorsBegun, Streaming<pb::PullTensorsEvent>), Status> {
        let mut request = pb::PullTensorsRequest {
            source: source.clone(),
            timeout_ms: TIMEOUT_MS,
            destination: Some(destination),
            ..pb::PullTensorsRequest::default()
        };
        more(&mut request);
        let mut events = self.tensors.pull_tensors(request).await?.into_inner();
        match events.message().await?.unwrap().event {
            Some(Event::Begun(begun)) => Ok((begun, events)),
            other => panic!("{other:?} comes first"),
        }
    }
}

fn into(memory: &Memory) -> Destination {
    Destination::Slots(pb::TensorSlots {
        region: memory.region,
        ..pb::TensorSlots::default()
    })
}

/// Outcomes and the summary.
async fn end(
    mut events: Streaming<pb::PullTensorsEvent>,
) -> (Vec<pb::TensorOutcome>, pb::PullTensorsSummary) {
    let mut outcomes = Vec::new();
    while let Some(event) = events.message().await.unwrap() {
        match event.event.unwrap() {
            Event::Outcomes(some) => outcomes.extend(some.outcomes),
            Event::Progress(_) => {}
            Event::Summary(summary) => {
                assert!(events.message().await.unwrap().is_none());
                return (outcomes, summary);
            }
            Event::Begun(_) => panic!("begun twice"),
        }
    }
    panic!("no summary");
}

/// All of these tensors are in the memory, where it was said.
fn assert_here(memory: &Memory, outcomes: &[pb::TensorOutcome]) {
    let content = content();
    for outcome in outcomes {
        let tensor = outcome.tensor.as_ref().unwrap();
        let kind = outcome.kind();
        assert!(
            matches!(kind, OutcomeKind::Pulled | OutcomeKind::Local),
            "{outcome:?}"
        );
        let mut bytes = vec![0; tensor.bytes as usize];
        memory
            .file
            .read_exact_at(&mut bytes, outcome.region_offset)
            .unwrap();
        let want = &content[tensor.offset as usize..][..bytes.len()];
        assert!(bytes == want, "{} differs", tensor.name);
    }
}

async fn sources(cluster: &Cluster) -> SourcesClient<Channel> {
    let url = format!("http://{}", cluster.coordinator_address);
    SourcesClient::connect(url).await.unwrap()
}

/// State and cause of a node's worker; None where it is not known.
async fn worker(cluster: &Cluster, source: &Bytes, node: &str) -> Option<(State, Cause)> {
    let request = pb::SourceStatusRequest {
        source: source.clone(),
    };
    let status = sources(cluster)
        .await
        .status(request)
        .await
        .ok()?
        .into_inner();
    let worker = status
        .workers
        .into_iter()
        .find(|worker| worker.node == node)?;
    Some((worker.state(), worker.cause()))
}

async fn becomes(cluster: &Cluster, source: &Bytes, node: &str, state: State, cause: Cause) {
    eventually(&format!("{node} is {state:?}"), || async {
        worker(cluster, source, node).await == Some((state, cause))
    })
    .await;
}

#[tokio::test]
async fn tensors_arrive_byte_for_byte_and_a_replica_serves_them_on() {
    let mut cluster = Cluster::start().await;
    let mut a = Node::start(&mut cluster, "a").await;
    let mut b = Node::start(&mut cluster, "b").await;
    let mut c = Node::start(&mut cluster, "c").await;
    let (_ours, source) = a.publish().await;
    assert_eq!(
        worker(&cluster, &source, "a").await,
        Some((State::Ready, Cause::Unspecified))
    );

    // Into memory the agent makes, and served from there.
    let fresh = Destination::Fresh(pb::FreshMemory::default());
    let (begun, events) = b.begin(&source, fresh, |r| r.serve = true).await.unwrap();
    assert_eq!((begun.chunks, begun.chunks_here), (CHUNKS, 0));
    let (outcomes, summary) = end(events).await;
    assert_eq!(outcomes.len(), tensors().len());
    assert!(
        outcomes
            .iter()
            .all(|o| o.kind() == OutcomeKind::Pulled && o.source_nodes == ["a"])
    );
    assert_eq!((summary.chunks_pulled, summary.tensors_failed), (CHUNKS, 0));
    assert!(summary.serving);
    becomes(&cluster, &source, "b", State::Ready, Cause::Unspecified).await;

    // The first one goes; the replica has every byte.
    assert_eq!(cluster.take_agent("a").terminate().await, Some(0));
    becomes(&cluster, &source, "a", State::Gone, Cause::Node).await;
    let to = c.memory().await;
    let (_, events) = c.begin(&source, into(&to), |_| {}).await.unwrap();
    let (outcomes, _) = end(events).await;
    assert!(outcomes.iter().all(|o| o.source_nodes == ["b"]));
    assert_here(&to, &outcomes);

    let list = sources(&cluster)
        .await
        .list(pb::ListSourcesRequest::default())
        .await
        .unwrap();
    let summary = &list.into_inner().sources[0];
    assert_eq!((&summary.source, summary.state()), (&source, State::Ready));
    assert_eq!(summary.tensors, tensors().len() as u64);
    assert_eq!(summary.bytes, u64::from(CHUNKS) * CHUNK);
}

#[tokio::test]
async fn an_owner_killed_in_mid_pull_is_replaced_and_what_landed_is_not_pulled_again() {
    let mut cluster = Cluster::start().await;
    let mut a = Node::start(&mut cluster, "a").await;
    let mut b = Node::start(&mut cluster, "b").await;
    let mut c = Node::start_with(&mut cluster, "c", &GIVES_UP).await;
    let (_ours, source) = a.publish().await;
    let to = c.memory().await;

    // Half of it, by one call that ends.
    let low = |r: &mut pb::PullTensorsRequest| r.name_prefixes = vec!["low.".into()];
    let (begun, events) = c.begin(&source, into(&to), low).await.unwrap();
    let half = begun.chunks;
    assert!(half < CHUNKS);
    let (outcomes, _) = end(events).await;
    assert_here(&to, &outcomes);

    // The rest from an owner that answers nothing any more, and then is killed.
    cluster.agent_process("a").signal("STOP");
    let whole = |r: &mut pb::PullTensorsRequest| r.digest = begun.digest.clone();
    let (again, events) = c.begin(&source, into(&to), whole).await.unwrap();
    assert_eq!((again.chunks, again.chunks_here), (CHUNKS, half));
    cluster.take_agent("a").kill().await;
    let (_theirs, same) = b.publish().await;
    assert_eq!(same, source);
    let (outcomes, summary) = end(events).await;
    assert_eq!(outcomes.len(), tensors().len());
    assert_here(&to, &outcomes);
    assert_eq!(summary.tensors_failed, 0, "{summary:?}");
    assert_eq!(
        (summary.chunks_here_before, summary.chunks_pulled),
        (half, CHUNKS - half)
    );
    for outcome in &outcomes {
        let from: &[&str] = match outcome.kind() {
            OutcomeKind::Local => &[],
            _ => &["b"],
        };
        assert_eq!(outcome.source_nodes, from);
    }
}

#[tokio::test]
async fn workers_of_one_rank_stand_in_for_each_other_within_a_pull() {
    let mut cluster = Cluster::start().await;
    let mut a = Node::start(&mut cluster, "a").await;
    let mut b = Node::start(&mut cluster, "b").await;
    let mut c = Node::start_with(&mut cluster, "c", &GIVES_UP).await;
    let (_ours, source) = a.publish().await;
    let (_theirs, same) = b.publish().await;
    assert_eq!(same, source);
    // Reads go to one that does not answer, too.
    cluster.agent_process("a").signal("STOP");
    let to = c.memory().await;
    let (_, events) = c.begin(&source, into(&to), |_| {}).await.unwrap();
    let (outcomes, summary) = end(events).await;
    assert_here(&to, &outcomes);
    assert_eq!((summary.tensors_failed, summary.chunks_pulled), (0, CHUNKS));
    cluster.take_agent("a").kill().await;
}

#[tokio::test]
async fn readers_that_cannot_read_make_a_worker_stale_though_its_session_is_well() {
    let mut cluster = Cluster::start().await;
    // Nobody listens where it says it does.
    let elsewhere = ["--advertise-host", "127.0.0.77"];
    let mut a = Node::start_with(&mut cluster, "a", &elsewhere).await;
    let mut b = Node::start(&mut cluster, "b").await;
    let mut c = Node::start(&mut cluster, "c").await;
    let (_ours, source) = a.publish().await;
    let short = |r: &mut pb::PullTensorsRequest| r.timeout_ms = 5_000;
    let to = b.memory().await;
    let (_, events) = b.begin(&source, into(&to), short).await.unwrap();
    let (outcomes, summary) = end(events).await;
    assert_eq!(summary.tensors_failed as usize, tensors().len());
    assert!(
        outcomes
            .iter()
            .all(|o| o.kind() == OutcomeKind::Unreachable),
        "{outcomes:?}"
    );
    // One reader may have no network itself.
    assert_eq!(
        worker(&cluster, &source, "a").await,
        Some((State::Ready, Cause::Unspecified))
    );
    let to = c.memory().await;
    let (_, events) = c.begin(&source, into(&to), short).await.unwrap();
    end(events).await;
    becomes(&cluster, &source, "a", State::Stale, Cause::Readers).await;
}

#[tokio::test]
async fn a_restarted_coordinator_knows_the_sources_again() {
    let mut cluster = Cluster::start().await;
    let mut a = Node::start(&mut cluster, "a").await;
    let mut b = Node::start(&mut cluster, "b").await;
    let (_ours, source) = a.publish().await;
    cluster.take_coordinator().kill().await;
    cluster.restart_coordinator().await;
    let to = b.memory().await;
    // Asked for before it is known: the pull waits.
    let (_, events) = b.begin(&source, into(&to), |_| {}).await.unwrap();
    let (outcomes, _) = end(events).await;
    assert_eq!(outcomes.len(), tensors().len());
    assert_here(&to, &outcomes);
    assert_eq!(
        worker(&cluster, &source, "a").await,
        Some((State::Ready, Cause::Unspecified))
    );
}

#[tokio::test]
async fn a_set_is_pulled_once_it_is_ready_and_is_stale_while_it_is_written_to() {
    let mut cluster = Cluster::start().await;
    let mut a = Node::start(&mut cluster, "a").await;
    let mut b = Node::start(&mut cluster, "b").await;
    let memory = a.memory().await;
    let source = a.say(&memory, false).await.source;
    becomes(
        &cluster,
        &source,
        "a",
        State::Initialising,
        Cause::Unspecified,
    )
    .await;
    let to = b.memory().await;
    let refused = b
        .begin(&source, into(&to), |r| r.timeout_ms = 3_000)
        .await
        .unwrap_err();
    assert_eq!(reason_of(&refused), Some(Reason::SourceNotReady));

    let pulling = async { b.begin(&source, into(&to), |_| {}).await.unwrap() };
    let publishing = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        memory.file.write_all_at(&content(), 0).unwrap();
        a.say(&memory, true).await;
    };
    let ((_, events), ()) = tokio::join!(pulling, publishing);
    assert_here(&to, &end(events).await.0);

    // Slots that are taken for writing: what was published is no more.
    let reserve = pb::ReserveRequest {
        region: memory.region,
        count: 0,
        slots: vec![3, 4],
    };
    a.engine.api.reserve(reserve).await.unwrap();
    becomes(&cluster, &source, "a", State::Stale, Cause::Rewritten).await;
    let abort = pb::AbortRequest {
        region: memory.region,
        slots: vec![3, 4],
    };
    a.engine.api.abort(abort).await.unwrap();
    a.say(&memory, true).await;
    becomes(&cluster, &source, "a", State::Ready, Cause::Unspecified).await;
}

#[tokio::test]
async fn a_pull_ends_at_once_where_nobody_lets_it_read() {
    let mut cluster = Cluster::start().await;
    // Wants tickets, and no coordinator signs any.
    let shut = ["--require-tickets", "always"];
    let mut a = Node::start_with(&mut cluster, "a", &shut).await;
    let mut b = Node::start(&mut cluster, "b").await;
    let (_ours, source) = a.publish().await;
    let to = b.memory().await;
    let began = Instant::now();
    let (_, events) = b.begin(&source, into(&to), |_| ()).await.unwrap();
    let (outcomes, summary) = end(events).await;
    // By its deadline it would have ended anyway, after more rounds.
    assert!(began.elapsed() < Duration::from_millis(TIMEOUT_MS.into()));
    assert_eq!(summary.rounds, 1, "{summary:?}");
    assert_eq!(summary.tensors_failed as usize, tensors().len());
    for outcome in outcomes {
        assert_eq!(outcome.kind(), OutcomeKind::Denied, "{outcome:?}");
        assert!(outcome.detail.contains("no ticket for a"), "{outcome:?}");
    }
    // It is well, and others may be let in: no reader's report makes it stale.
    assert_eq!(
        worker(&cluster, &source, "a").await,
        Some((State::Ready, Cause::Unspecified))
    );
}

#[tokio::test]
async fn what_is_withdrawn_removed_or_unregistered_is_gone() {
    let mut cluster = Cluster::start().await;
    let mut a = Node::start(&mut cluster, "a").await;
    let (memory, source) = a.publish().await;
    let blocks = || cluster.live_blocks("a");
    assert_eq!(blocks().await, Some(CHUNKS.into()));

    let withdraw = pb::WithdrawTensorsRequest {
        source: source.clone(),
        rank: 0,
    };
    assert!(
        a.tensors
            .withdraw(withdraw.clone())
            .await
            .unwrap()
            .into_inner()
            .withdrawn
    );
    assert!(
        !a.tensors
            .withdraw(withdraw)
            .await
            .unwrap()
            .into_inner()
            .withdrawn
    );
    becomes(&cluster, &source, "a", State::Gone, Cause::Withdrawn).await;
    eventually("no chunk is listed", || async { blocks().await == Some(0) }).await;

    a.say(&memory, true).await;
    becomes(&cluster, &source, "a", State::Ready, Cause::Unspecified).await;
    let remove = pb::RemoveSourceRequest {
        source: source.clone(),
        node: "a".into(),
    };
    let removed = sources(&cluster)
        .await
        .remove(remove)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(removed.workers_removed, 1);
    becomes(&cluster, &source, "a", State::Gone, Cause::Removed).await;
    eventually("its agent withdrew it", || async {
        blocks().await == Some(0)
    })
    .await;
    let list = a
        .tensors
        .list_published(pb::ListPublishedRequest {})
        .await
        .unwrap();
    assert_eq!(list.into_inner().published, []);

    a.say(&memory, true).await;
    becomes(&cluster, &source, "a", State::Ready, Cause::Unspecified).await;
    let unregister = pb::UnregisterRegionRequest {
        region: memory.region,
    };
    a.engine.api.unregister_region(unregister).await.unwrap();
    becomes(&cluster, &source, "a", State::Gone, Cause::Withdrawn).await;
}

#[tokio::test]
async fn an_engine_that_comes_back_publishes_anew_also_while_no_coordinator_listens() {
    let mut cluster = Cluster::start().await;
    let mut a = Node::start(&mut cluster, "a").await;
    let (memory, source) = a.publish().await;
    cluster.take_coordinator().kill().await;
    let unregister = pb::UnregisterRegionRequest {
        region: memory.region,
    };
    a.engine.api.unregister_region(unregister).await.unwrap();
    let memory = a.memory().await;
    memory.file.write_all_at(&content(), 0).unwrap();
    let header = pb::PublishTensorsHeader {
        identity: Some(identity()),
        runs: vec![pb::ChunkRun {
            region: memory.region,
            first_slot: 0,
            slots: CHUNKS,
        }],
        ready: true,
        ..pb::PublishTensorsHeader::default()
    };
    let message = pb::PublishTensorsRequest {
        header: Some(header),
        tensors: tensors(),
    };
    let published = a
        .tensors
        .publish(tokio_stream::iter([message]))
        .await
        .unwrap();
    assert!(!published.into_inner().announced);
    cluster.restart_coordinator().await;
    becomes(&cluster, &source, "a", State::Ready, Cause::Unspecified).await;
}

#[tokio::test]
async fn what_cannot_be_is_refused_with_its_reason() {
    let mut cluster = Cluster::start().await;
    let mut a = Node::start(&mut cluster, "a").await;
    let (memory, source) = a.publish().await;
    let refused = |error: Status| (error.code(), reason_of(&error));
    let soon = |r: &mut pb::PullTensorsRequest| r.timeout_ms = 3_000;

    let other = Bytes::from(vec![7; 16]);
    let error = a.begin(&other, into(&memory), soon).await.unwrap_err();
    assert_eq!(
        refused(error),
        (Code::FailedPrecondition, Some(Reason::SourceUnknown))
    );
    let short = Bytes::from(vec![7; 3]);
    let error = a.begin(&short, into(&memory), soon).await.unwrap_err();
    assert_eq!(
        refused(error),
        (Code::InvalidArgument, Some(Reason::InvalidArgument))
    );
    let nothing = |r: &mut pb::PullTensorsRequest| r.names = vec!["nothing".into()];
    let error = a.begin(&source, into(&memory), nothing).await.unwrap_err();
    assert_eq!(refused(error), (Code::NotFound, Some(Reason::BlockMissing)));
    let nowhere = Destination::Slots(pb::TensorSlots {
        region: 99,
        ..Default::default()
    });
    let error = a.begin(&source, nowhere, |_| {}).await.unwrap_err();
    assert_eq!(
        refused(error),
        (Code::NotFound, Some(Reason::RegionUnknown))
    );
    let beyond = Destination::Slots(pb::TensorSlots {
        region: memory.region,
        first_slot: u32::MAX,
        packed: false,
    });
    let error = a.begin(&source, beyond, |_| {}).await.unwrap_err();
    assert_eq!(
        refused(error),
        (Code::InvalidArgument, Some(Reason::SlotOutOfRegion))
    );
    let packed = Destination::Fresh(pb::FreshMemory {
        packed: true,
        keep_on_disconnect: false,
    });
    let error = a
        .begin(&source, packed, |r| r.serve = true)
        .await
        .unwrap_err();
    assert_eq!(
        refused(error),
        (Code::InvalidArgument, Some(Reason::InvalidArgument))
    );

    let publish = |change: fn(&mut pb::PublishTensorsHeader),
                   tensors: Vec<pb::TensorDescriptor>| {
        let mut header = pb::PublishTensorsHeader {
            identity: Some(identity()),
            runs: vec![pb::ChunkRun {
                region: memory.region,
                first_slot: 0,
                slots: CHUNKS,
            }],
            ready: true,
            ..pb::PublishTensorsHeader::default()
        };
        change(&mut header);
        let message = pb::PublishTensorsRequest {
            header: Some(header),
            tensors,
        };
        let mut api = a.tensors.clone();
        async move {
            let error = api
                .publish(tokio_stream::iter([message]))
                .await
                .unwrap_err();
            (error.code(), reason_of(&error))
        }
    };
    let invalid = (Code::InvalidArgument, Some(Reason::InvalidArgument));
    assert_eq!(publish(|_| {}, vec![]).await, invalid);
    assert_eq!(publish(|h| h.rank = 1, tensors()).await, invalid);
    assert_eq!(publish(|h| h.identity = None, tensors()).await, invalid);
    let twice = |h: &mut pb::PublishTensorsHeader| h.runs.push(h.runs[0]);
    assert_eq!(publish(twice, tensors()).await, invalid);
    let far = |h: &mut pb::PublishTensorsHeader| h.runs[0].first_slot = 1;
    let outside = (Code::InvalidArgument, Some(Reason::SlotOutOfRegion));
    assert_eq!(publish(far, tensors()).await, outside);
    // Another set under the name of one that is published.
    let exists = (Code::AlreadyExists, Some(Reason::SourceExists));
    assert_eq!(publish(|_| {}, tensors()[..9].to_vec()).await, exists);
    // And nothing of all that harmed it.
    assert_eq!(
        worker(&cluster, &source, "a").await,
        Some((State::Ready, Cause::Unspecified))
    );
}
