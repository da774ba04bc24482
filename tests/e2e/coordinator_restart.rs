//! The coordinator holds soft state only: after a restart the directory equals what agents hold, and
//! while it is away nothing is taken for a miss.

use std::time::Duration;

use kvferry_proto::{
    Reason,
    pb::{self, OutcomeKind},
    reason_of,
};

use crate::{
    cluster::{Cluster, eventually, pack},
    engine::{assert_all, hashes, namespace},
};

#[tokio::test]
async fn the_directory_equals_what_agents_hold_after_a_restart() {
    let mut cluster = Cluster::start().await;
    let mut a = cluster.agent("a", &[]).await;
    let b = cluster.agent("b", &[]).await;
    let ours = a.region(namespace("n"), 64).await;
    a.publish(&ours, 0, 0..64).await;
    let theirs = b.region(namespace("n"), 64).await;
    b.publish(&theirs, 0, 32..96).await;

    cluster.take_coordinator().kill().await;
    // Life goes on: some blocks go, others come, while nobody listens.
    a.api
        .evict(pb::EvictRequest {
            namespace: "n".into(),
            hashes: Some(pack(&hashes(0..10))),
        })
        .await
        .unwrap();
    cluster.restart_coordinator().await;
    eventually("everything is listed again, and nothing else", || async {
        if cluster.live_blocks("a").await != Some(54) || cluster.live_blocks("b").await != Some(64)
        {
            return false;
        }
        let owners = cluster.locate("n", &hashes(0..96)).await;
        (0..96).all(|n| {
            let want = usize::from((10..64).contains(&n)) + usize::from(n >= 32);
            owners[n].len() == want
        })
    })
    .await;
    // And it goes on being told.
    a.publish(&ours, 0, 200..205).await;
    let owners = cluster.locate("n", &hashes(200..205)).await;
    assert!(owners.iter().all(|owners| owners == &["a"]));
}

#[tokio::test]
async fn an_outage_is_an_error_and_no_miss() {
    let mut cluster = Cluster::start().await;
    let mut a = cluster.agent("a", &[]).await;
    let own = a.region(namespace("n"), 8).await;
    a.publish(&own, 0, 0..4).await;
    cluster.take_coordinator().kill().await;

    let lookup = |blocks: Vec<u64>| pb::LookupRequest {
        namespace: "n".into(),
        hashes: Some(pack(&hashes(blocks.into_iter()))),
        prefix: false,
        timeout_ms: 20_000,
    };
    let error = a.api.lookup(lookup(vec![0, 99])).await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::Unavailable, "{error:?}");
    assert_eq!(reason_of(&error), Some(Reason::CoordinatorUnreachable));
    // What is here needs no coordinator.
    let places = a.api.lookup(lookup(vec![0, 1])).await.unwrap().into_inner();
    assert!(places.places().all(|place| place == pb::BlockPlace::Local));

    a.pool(namespace("n"), 4).await;
    // Asked again until then.
    let timeout = Duration::from_secs(4);
    let outcomes = a.pull("n", &[99], None, timeout).await.unwrap();
    assert_all(&outcomes, OutcomeKind::LocateFailed, "");
    let outcomes = a.pull("n", &[0], None, timeout).await.unwrap();
    assert_all(&outcomes, OutcomeKind::Local, "");
}

#[tokio::test]
async fn a_coordinator_that_stops_orderly_exits_with_0() {
    let mut cluster = Cluster::start().await;
    let a = cluster.agent("a", &[]).await;
    let own = a.region(namespace("n"), 8).await;
    a.publish(&own, 0, 0..4).await;
    assert_eq!(cluster.take_coordinator().terminate().await, Some(0));
    cluster.restart_coordinator().await;
    eventually("the agent is back", || async {
        cluster.live_blocks("a").await == Some(4)
    })
    .await;
}
