//! Sources over the wire: publish, list, get in pages, status, remove, and what a session's end does.

use kvferry_proto::{
    Reason, SourceIdentity, Tensor, TensorTable,
    pb::{
        self, SourceState as State, agent_message::Message as Said, sources_client::SourcesClient,
    },
    reason_of,
};
use tonic::{Code, Status, transport::Channel};

use crate::{
    Running,
    agent::{Agent, hello},
    config, soon, start, start_with,
};

/// More than two pages of descriptors.
const TENSORS: u64 = 20_000;

fn identity() -> pb::SourceIdentity {
    pb::SourceIdentity {
        namespace: "weights".into(),
        name: "m".into(),
        world_size: 1,
        ..pb::SourceIdentity::default()
    }
}

fn id() -> bytes::Bytes {
    let identity = SourceIdentity::try_from(identity()).unwrap();
    identity.id().as_bytes().to_vec().into()
}

fn tensors(count: u64) -> Vec<pb::TensorDescriptor> {
    (0..count)
        .map(|n| pb::TensorDescriptor {
            name: format!("layer.{n:06}.weight"),
            dtype: "U8".into(),
            shape: vec![4, 4],
            offset: 16 * n,
            bytes: 16,
        })
        .collect()
}

fn chunks(count: u64) -> u32 {
    count.div_ceil(4) as u32
}

fn digest(count: u64) -> bytes::Bytes {
    let all = tensors(count)
        .into_iter()
        .map(|t| Tensor::try_from(t).unwrap());
    let table = TensorTable::new(64, chunks(count), all.collect()).unwrap();
    table.digest().as_bytes().to_vec().into()
}

fn worker(count: u64, state: State) -> pb::AnnouncedWorker {
    pb::AnnouncedWorker {
        source: id(),
        publication: 1,
        digest: digest(count),
        state: state.into(),
        runs: vec![pb::ChunkRun {
            region: 1,
            first_slot: 0,
            slots: chunks(count),
        }],
        ..pb::AnnouncedWorker::default()
    }
}

fn publication(count: u64, number: u64) -> Vec<pb::PublishSourceRequest> {
    let header = pb::PublishSourceHeader {
        node: "a".into(),
        incarnation: 1,
        number,
        identity: Some(identity()),
        worker: Some(worker(count, State::Ready)),
        chunk_bytes: 64,
        chunks: chunks(count),
        tensors: count as u32,
    };
    let mut messages: Vec<_> = tensors(count)
        .chunks(3_000)
        .map(|part| pb::PublishSourceRequest {
            header: None,
            tensors: part.to_vec(),
        })
        .collect();
    messages[0].header = Some(header);
    messages
}

fn header(messages: &mut [pb::PublishSourceRequest]) -> &mut pb::PublishSourceHeader {
    messages[0].header.as_mut().unwrap()
}

async fn client(running: &Running) -> SourcesClient<Channel> {
    SourcesClient::connect(running.url.clone()).await.unwrap()
}

async fn publish(
    api: &mut SourcesClient<Channel>,
    messages: Vec<pb::PublishSourceRequest>,
) -> Result<pb::PublishSourceResponse, Status> {
    let published = soon(api.publish(tokio_stream::iter(messages))).await?;
    Ok(published.into_inner())
}

async fn status(api: &mut SourcesClient<Channel>) -> pb::SourceStatusResponse {
    let request = pb::SourceStatusRequest { source: id() };
    soon(api.status(request)).await.unwrap().into_inner()
}

async fn until(api: &mut SourcesClient<Channel>, state: State, cause: pb::SourceCause) {
    soon(async {
        loop {
            let worker = &status(api).await.workers[0];
            if (worker.state(), worker.cause()) == (state, cause) {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_set_of_many_tensors_comes_back_in_pages() {
    let mut running = start().await;
    let _agent = Agent::open(&mut running, hello("a", 1)).await;
    let mut api = client(&running).await;
    soon(async {
        // The hello is on its way.
        while publish(&mut api, publication(TENSORS, 1)).await.is_err() {}
    })
    .await;
    let listed = soon(api.list(pb::ListSourcesRequest::default()))
        .await
        .unwrap();
    let listed = listed.into_inner();
    assert_eq!(listed.sources.len(), 1);
    let summary = &listed.sources[0];
    assert_eq!(summary.source, id());
    assert_eq!(summary.state(), State::Ready);
    assert_eq!((summary.tensors, summary.bytes), (TENSORS, 16 * TENSORS));

    let (mut got, mut pages) = (Vec::new(), 0);
    while got.len() < TENSORS as usize {
        let request = pb::GetSourceRequest {
            source: id(),
            digest: if pages == 0 {
                bytes::Bytes::new()
            } else {
                digest(TENSORS)
            },
            first: got.len() as u32,
            ..pb::GetSourceRequest::default()
        };
        let page = soon(api.get(request)).await.unwrap().into_inner();
        assert_eq!(page.tensor_count, TENSORS as u32);
        assert_eq!(page.digest, digest(TENSORS));
        assert_eq!(page.workers.len(), usize::from(pages == 0));
        assert!(!page.tensors.is_empty());
        got.extend(page.tensors);
        pages += 1;
    }
    assert_eq!(got, tensors(TENSORS));
    assert!(pages > 2, "{pages}");
}

#[tokio::test]
async fn the_session_drives_the_state() {
    let mut running = start_with(kvferry_coordinator::CoordinatorConfig {
        heartbeat_interval_ms: 50,
        hide_after_ms: 1_000,
        // Long enough to be seen silent in between, on any machine.
        purge_after_ms: 7_000,
        ..config()
    })
    .await;
    let mut agent = Agent::open(&mut running, hello("a", 1)).await;
    agent.welcome().await;
    let mut api = client(&running).await;
    publish(&mut api, publication(8, 1)).await.unwrap();
    // Nothing more is heard: silent, then purged.
    until(&mut api, State::Stale, pb::SourceCause::Session).await;
    until(&mut api, State::Gone, pb::SourceCause::Node).await;

    let mut agent = Agent::open(&mut running, hello("a", 1)).await;
    agent.welcome().await;
    let announce = pb::AnnounceSourcesRequest {
        node: "a".into(),
        incarnation: 1,
        number: 2,
        workers: vec![worker(8, State::Ready)],
    };
    let answer = soon(api.announce(announce)).await.unwrap().into_inner();
    assert_eq!(answer.unknown, [0], "its tensors went with it");
    publish(&mut api, publication(8, 3)).await.unwrap();
    soon(async {
        // It may have been silent meanwhile, and is heard again.
        for number in 1.. {
            let beat = pb::Heartbeat {
                number,
                ..pb::Heartbeat::default()
            };
            agent.say(Said::Heartbeat(beat)).await;
            agent.hear().await;
            if status(&mut api).await.workers[0].state() == State::Ready {
                return;
            }
        }
    })
    .await;
    agent.say(Said::Goodbye(pb::Goodbye {})).await;
    until(&mut api, State::Gone, pb::SourceCause::Node).await;
}

#[tokio::test]
async fn refusals_name_their_reason() {
    let mut running = start().await;
    let mut api = client(&running).await;
    let refused = |error: Status| (error.code(), reason_of(&error).unwrap());
    let nobody = publish(&mut api, publication(8, 1)).await.unwrap_err();
    assert_eq!(
        refused(nobody),
        (Code::FailedPrecondition, Reason::NodeUnknown)
    );
    let request = pb::SourceStatusRequest { source: id() };
    let unknown = soon(api.status(request)).await.unwrap_err();
    assert_eq!(refused(unknown), (Code::NotFound, Reason::SourceUnknown));

    let mut agent = Agent::open(&mut running, hello("a", 1)).await;
    agent.welcome().await;
    let bad = |change: fn(&mut Vec<pb::PublishSourceRequest>)| {
        let mut messages = publication(8, 9);
        change(&mut messages);
        messages
    };
    for messages in [
        Vec::new(),
        bad(|m| m[0].header = None),
        bad(|m| m[0].tensors.truncate(3)),
        bad(|m| m[0].tensors[0].name.clear()),
        bad(|m| m[0].tensors[0].shape = vec![u64::MAX; 9]),
        bad(|m| header(m).chunks = 1),
        bad(|m| header(m).worker.as_mut().unwrap().digest = vec![7; 16].into()),
        bad(|m| header(m).worker.as_mut().unwrap().source = vec![7; 16].into()),
        bad(|m| header(m).worker.as_mut().unwrap().runs.clear()),
        bad(|m| header(m).identity.as_mut().unwrap().world_size = 0),
    ] {
        let error = publish(&mut api, messages).await.unwrap_err();
        assert_eq!(
            refused(error),
            (Code::InvalidArgument, Reason::InvalidArgument)
        );
    }
    let too_many = bad(|m| header(m).tensors = 2);
    let error = publish(&mut api, too_many).await.unwrap_err();
    assert_eq!(
        refused(error),
        (Code::ResourceExhausted, Reason::BoundReached)
    );
    let stranger = pb::ReportSourcesRequest {
        node: "x".into(),
        incarnation: 1,
        reports: vec![],
    };
    let error = soon(api.report(stranger)).await.unwrap_err();
    assert_eq!(
        refused(error),
        (Code::FailedPrecondition, Reason::NodeUnknown)
    );
}

#[tokio::test]
async fn what_an_operator_removes_is_withdrawn_by_its_agent() {
    let mut running = start().await;
    let mut agent = Agent::open(&mut running, hello("a", 1)).await;
    agent.welcome().await;
    let mut api = client(&running).await;
    publish(&mut api, publication(8, 1)).await.unwrap();
    let request = pb::RemoveSourceRequest {
        source: id(),
        node: String::new(),
    };
    let removed = soon(api.remove(request)).await.unwrap().into_inner();
    assert_eq!(removed.workers_removed, 1);
    let get = pb::GetSourceRequest {
        source: id(),
        ..pb::GetSourceRequest::default()
    };
    let error = soon(api.get(get)).await.unwrap_err();
    assert_eq!(reason_of(&error), Some(Reason::SourceNotReady));
    let announce = pb::AnnounceSourcesRequest {
        node: "a".into(),
        incarnation: 1,
        number: 2,
        workers: vec![worker(8, State::Ready)],
    };
    let answer = soon(api.announce(announce)).await.unwrap().into_inner();
    assert_eq!(answer.removed, [0]);
}
