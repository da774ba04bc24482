//! Limits of the system that are reached: said in so many words, survived, and forgotten when there is room again.

use std::{net::TcpStream, time::Duration};

use kvferry_proto::{
    Reason,
    pb::{self, OutcomeKind},
    reason_of,
};

use crate::{
    cluster::{Cluster, SOON, eventually},
    engine::{assert_all, namespace},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_out_of_descriptors_serves_again_when_it_has_some() {
    let mut cluster = Cluster::start().await;
    let few = ["sh", "-c", "ulimit -n 80 && exec \"$@\"", "sh"];
    let a = cluster.agent_behind(&few, "a", &[]).await;
    let flags = ["--transport", "tcp", "--stall-bound-ms", "500"];
    let b = cluster.agent("b", &flags).await;
    let from = a.region(namespace("n"), 8).await;
    a.publish(&from, 0, 0..8).await;
    let to = b.region(namespace("n"), 8).await;
    let wanted: Vec<u64> = (0..8).collect();

    let data = cluster.agent_data_address("a");
    let crowd: Vec<TcpStream> = (0..200)
        .map_while(|_| TcpStream::connect(data).ok())
        .collect();
    let timeout = Duration::from_secs(20);
    let outcomes = b.pull("n", &wanted, Some(&to), timeout).await.unwrap();
    for outcome in &outcomes {
        // It may have got through before the last descriptor went.
        assert!(
            matches!(
                outcome.kind(),
                OutcomeKind::Pulled | OutcomeKind::Unreachable | OutcomeKind::TimedOut
            ),
            "{outcome:?}"
        );
    }
    drop(crowd);
    eventually("A serves again", || async {
        let outcomes = b.pull("n", &wanted, Some(&to), timeout).await.unwrap();
        outcomes
            .iter()
            .all(|o| matches!(o.kind(), OutcomeKind::Pulled | OutcomeKind::Local))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_memory_than_allowed_is_refused_and_the_agent_lives() {
    let mut cluster = Cluster::start().await;
    // Address space in KiB: 4 GiB. Of which threads and their heaps have some, so there are few on a large machine, too.
    let little =
        "export TOKIO_WORKER_THREADS=2 MALLOC_ARENA_MAX=2; ulimit -v 4194304 && exec \"$@\"";
    let little = ["sh", "-c", little, "sh"];
    let mut a = cluster.agent_behind(&little, "a", &[]).await;
    let error = a
        .api
        .register_region(pb::RegisterRegionRequest {
            namespace: Some(namespace("n")),
            source: Some(pb::register_region_request::Source::Pool(pb::PoolSource {
                bytes: 8 << 30,
                hugepages: false,
            })),
            geometry: None,
            keep_on_disconnect: false,
        })
        .await
        .unwrap_err();
    assert_eq!(reason_of(&error), Some(Reason::Memory), "{error:?}");
    let from = a.region(namespace("n"), 8).await;
    a.publish(&from, 0, 0..8).await;
    let b = cluster.agent("b", &["--transport", "tcp"]).await;
    let to = b.region(namespace("n"), 8).await;
    let wanted: Vec<u64> = (0..8).collect();
    let outcomes = b.pull("n", &wanted, Some(&to), SOON).await.unwrap();
    assert_all(&outcomes, OutcomeKind::Pulled, "tcp");
}
