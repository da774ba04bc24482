//! Routers are told what changes.

use std::collections::BTreeSet;

use kvferry_proto::pb::{
    self, agent_message::Message as Said, watch_client::WatchClient, watch_message::Message,
};
use tonic::{Status, Streaming, transport::Channel};

use crate::{Code, Reason, Running, agent::Agent, agent::sealed, assert_refused, soon, start};

type Stream = Streaming<pb::WatchMessage>;

async fn client(running: &Running) -> WatchClient<Channel> {
    WatchClient::connect(running.url.clone()).await.unwrap()
}

async fn watch(running: &Running, epoch: u64, seq: u64) -> Result<Stream, Status> {
    let request = pb::WatchRequest {
        namespace: "t/m".into(),
        epoch,
        seq,
    };
    let stream = client(running).await.watch(request).await?;
    Ok(stream.into_inner())
}

async fn next(stream: &mut Stream) -> (u64, Message) {
    let message = soon(stream.message()).await.unwrap().unwrap();
    (message.seq, message.message.unwrap())
}

/// (change, slot, hash) of rows.
fn copies(message: &Message) -> Vec<(pb::CopyChange, u32, u64)> {
    let Message::Rows(rows) = message else {
        panic!("{message:?} are no rows");
    };
    let hashes = &rows.hashes.as_ref().unwrap().hashes;
    let hashes = hashes.chunks_exact(8);
    let hashes = hashes.map(|hash| u64::from_be_bytes(hash.try_into().unwrap()));
    let changes = rows.changes().zip(&rows.slots).zip(hashes);
    changes.map(|((c, slot), hash)| (c, *slot, hash)).collect()
}

/// Everything up to `synced`; the copies there are, and the number to go on from.
async fn sync(stream: &mut Stream) -> (BTreeSet<u64>, u64) {
    let (_, first) = next(stream).await;
    assert!(matches!(
        first,
        Message::Started(pb::WatchStarted {
            from_start: true,
            ..
        })
    ));
    let mut held = BTreeSet::new();
    loop {
        match next(stream).await {
            (seq, Message::Synced(_)) => return (held, seq),
            (seq, Message::Rows(rows)) => {
                assert_eq!(seq, 0, "a start cannot be gone on with");
                held.extend(copies(&Message::Rows(rows)).iter().map(|c| c.2));
            }
            (seq, _) => assert_eq!(seq, 0),
        }
    }
}

#[tokio::test]
async fn a_router_hears_what_is_there_what_changes_and_goes_on_after_a_break() {
    use pb::CopyChange::{Added, Removed};
    let mut running = start().await;
    let mut agent = Agent::join(&mut running, "a", &[1, 2]).await;
    let mut stream = watch(&running, 0, 0).await.unwrap();
    let (held, synced) = sync(&mut stream).await;
    assert_eq!(held, [1, 2].into());

    let change = pb::RegionChange {
        removed_slots: vec![1],
        ..sealed(&[3])
    };
    agent.delta(1, change).await;
    let (_, first) = next(&mut stream).await;
    let mut told = copies(&first);
    let mut seq = 0;
    while told.len() < 2 {
        let (number, message) = next(&mut stream).await;
        told.extend(copies(&message));
        seq = number;
    }
    assert_eq!(told, [(Removed, 1, 1), (Added, 3, 3)]);
    drop(stream);

    agent.say(Said::Goodbye(pb::Goodbye {})).await;
    agent.end().await.unwrap();
    let mut stream = watch(&running, running.epoch, synced).await.unwrap();
    let (_, first) = next(&mut stream).await;
    assert!(matches!(
        first,
        Message::Started(pb::WatchStarted {
            from_start: false,
            ..
        })
    ));
    let mut again = Vec::new();
    let gone = loop {
        match next(&mut stream).await {
            (_, rows @ Message::Rows(_)) => again.extend(copies(&rows)),
            (number, Message::NodeGone(_)) => break number,
            (_, other) => panic!("{other:?}"),
        }
    };
    assert_eq!(again, told);
    assert!(gone > seq);
}

#[tokio::test]
async fn a_router_that_cannot_go_on_is_told_why() {
    let mut running = start().await;
    assert_refused(
        watch(&running, 0, 0).await.map(drop),
        Code::NotFound,
        Reason::NamespaceUnknown,
    );
    let _agent = Agent::join(&mut running, "a", &[1]).await;
    let restarted = watch(&running, running.epoch ^ 1, 1).await.map(drop);
    assert_refused(restarted, Code::OutOfRange, Reason::WatchRestarted);
    let old = watch(&running, running.epoch, 1).await.map(drop);
    assert_refused(old, Code::OutOfRange, Reason::WatchTooOld);

    let mut deleted = watch(&running, 0, 0).await.unwrap();
    sync(&mut deleted).await;
    let delete = pb::DeleteNamespaceRequest {
        name: "t/m".into(),
        force: true,
    };
    running.client.delete_namespace(delete).await.unwrap();
    let ended = soon(deleted.message()).await.map(drop);
    assert_refused(ended, Code::NotFound, Reason::NamespaceUnknown);
}

#[tokio::test]
async fn a_coordinator_that_stops_says_so_to_watchers() {
    let mut running = start().await;
    let _agent = Agent::join(&mut running, "a", &[1]).await;
    let mut stream = watch(&running, 0, 0).await.unwrap();
    sync(&mut stream).await;
    running.stop().await;
    let ended = soon(stream.message()).await.map(drop);
    assert_refused(ended, Code::Unavailable, Reason::ShuttingDown);
}
