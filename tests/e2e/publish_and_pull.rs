//! A block published on one agent arrives on another, byte for byte, by every transport, and the
//! receiver becomes an owner of it.

use std::time::Duration;

use kvferry_proto::pb::{self, OutcomeKind};

use crate::{
    cluster::{Cluster, eventually, pack},
    engine::{BLOCK_BYTES, Memory, assert_all, block, hashes, namespace},
};

const TIMEOUT: Duration = Duration::from_secs(60);

fn assert_bytes(memory: &Memory, blocks: &[u64]) {
    for (slot, n) in blocks.iter().enumerate() {
        assert!(memory.read(slot as u32) == block(*n), "block {n} differs");
    }
}

#[tokio::test]
async fn by_tcp_and_by_shared_memory() {
    let mut cluster = Cluster::start().await;
    let a = cluster.agent("a", &[]).await;
    let b = cluster.agent("b", &["--transport", "tcp"]).await;
    let c = cluster.agent("c", &["--transport", "shm"]).await;
    let from = a.region(namespace("n"), 64).await;
    a.publish(&from, 0, 0..64).await;

    let wanted: Vec<u64> = (0..64).rev().collect();
    for (engine, transport) in [(&b, "tcp"), (&c, "shm")] {
        let to = engine.region(namespace("n"), 64).await;
        let outcomes = engine.pull("n", &wanted, Some(&to), TIMEOUT).await.unwrap();
        assert_all(&outcomes, OutcomeKind::Pulled, transport);
        assert_bytes(&to, &wanted);
    }
    // Both are owners now.
    eventually("replicas are listed", || async {
        let owners = cluster.locate("n", &hashes(0..64)).await;
        owners.iter().all(|owners| owners.len() == 3)
    })
    .await;
    // And what was pulled once is not pulled again.
    let more = b.region(namespace("n"), 64).await;
    let outcomes = b.pull("n", &wanted, Some(&more), TIMEOUT).await.unwrap();
    assert_all(&outcomes, OutcomeKind::Local, "");
    assert_bytes(&more, &wanted);
}

#[tokio::test]
async fn into_a_pool_where_they_stay_pinned_until_released() {
    let mut cluster = Cluster::start().await;
    let a = cluster.agent("a", &[]).await;
    let b = cluster.agent("b", &[]).await;
    let from = a.region(namespace("n"), 32).await;
    a.publish(&from, 0, 0..32).await;
    b.pool(namespace("n"), 16).await;

    let first: Vec<u64> = (0..16).collect();
    let outcomes = b.pull("n", &first, None, TIMEOUT).await.unwrap();
    assert_all(&outcomes, OutcomeKind::Pulled, "shm");
    // All pinned: there is no room, and that is said, block by block.
    let second: Vec<u64> = (16..32).collect();
    let outcomes = b.pull("n", &second, None, TIMEOUT).await.unwrap();
    assert_all(&outcomes, OutcomeKind::NoSpace, "");
    assert!(
        outcomes[0].detail.contains("pinned"),
        "{}",
        outcomes[0].detail
    );
    assert_eq!(b.stats().await.regions[0].pinned, 16);
}

#[tokio::test]
async fn a_block_nobody_has_is_missing_and_the_rest_arrives() {
    let mut cluster = Cluster::start().await;
    let a = cluster.agent("a", &[]).await;
    let b = cluster.agent("b", &[]).await;
    let from = a.region(namespace("n"), 8).await;
    a.publish(&from, 0, 0..4).await;
    let to = b.region(namespace("n"), 8).await;
    let wanted = [0, 100, 1, 200, 3];
    let outcomes = b.pull("n", &wanted, Some(&to), TIMEOUT).await.unwrap();
    let kinds: Vec<_> = outcomes.iter().map(pb::BlockOutcome::kind).collect();
    use OutcomeKind::{Missing, Pulled};
    assert_eq!(kinds, [Pulled, Missing, Pulled, Missing, Pulled]);
    for slot in [0, 2, 4] {
        assert!(to.read(slot) == block(wanted[slot as usize]));
    }
}

#[tokio::test]
async fn memory_that_has_no_name_is_handed_over_by_descriptor() {
    use std::os::fd::AsFd;

    use kvferry_agent::transport::shm::DescriptorClient;

    let mut cluster = Cluster::start().await;
    let a = cluster.agent("a", &[]).await;
    let mut b = cluster.agent("b", &[]).await;
    let from = a.region(namespace("n"), 8).await;
    a.publish(&from, 0, 0..8).await;

    // A file that was unlinked: only its descriptor leads to it.
    let file = tempfile::tempfile_in("/dev/shm").unwrap();
    file.set_len(8 * BLOCK_BYTES).unwrap();
    let socket = format!("{}.fds", cluster.socket("b").display());
    let descriptors = DescriptorClient::connect(socket.as_ref(), None)
        .await
        .unwrap();
    let token = descriptors.deposit(file.as_fd()).await.unwrap();
    let request = |token| pb::RegisterRegionRequest {
        namespace: Some(namespace("n")),
        source: Some(pb::register_region_request::Source::Deposit(
            pb::DepositSource { token },
        )),
        geometry: Some(pb::Geometry {
            slots: 8,
            planes: vec![pb::Plane {
                base: 0,
                stride: BLOCK_BYTES,
                len: BLOCK_BYTES,
            }],
        }),
        keep_on_disconnect: false,
    };
    let region = b.api.register_region(request(token)).await.unwrap();
    let region = region.into_inner().region;
    // A token is good once.
    assert!(b.api.register_region(request(token)).await.is_err());

    let slots: Vec<u32> = (0..8).collect();
    let mut events = b
        .api
        .pull(pb::PullRequest {
            namespace: "n".into(),
            hashes: Some(pack(&hashes(0..8))),
            timeout_ms: 60_000,
            destination: Some(pb::pull_request::Destination::Slots(pb::SlotDestination {
                region,
                slots,
            })),
            ..pb::PullRequest::default()
        })
        .await
        .unwrap()
        .into_inner();
    let mut pulled = 0;
    while let Some(event) = events.message().await.unwrap() {
        for outcome in event.outcomes {
            assert_eq!(outcome.kind(), OutcomeKind::Pulled, "{outcome:?}");
            pulled += 1;
        }
    }
    assert_eq!(pulled, 8);
    use std::os::unix::fs::FileExt;
    for n in 0..8 {
        let mut bytes = vec![0; BLOCK_BYTES as usize];
        file.read_exact_at(&mut bytes, n * BLOCK_BYTES).unwrap();
        assert!(bytes == block(n), "block {n} differs");
    }
}

#[tokio::test]
async fn pulled_blocks_are_told_in_columns_where_that_is_asked_for() {
    let mut cluster = Cluster::start().await;
    let a = cluster.agent("a", &[]).await;
    let mut b = cluster.agent("b", &[]).await;
    let from = a.region(namespace("n"), 8).await;
    a.publish(&from, 0, 0..8).await;
    let mut seen = Vec::new();
    for columns in [true, false] {
        let to = b.region(namespace("n"), 9).await;
        let pull = pb::PullRequest {
            namespace: "n".into(),
            // The last one is nowhere.
            hashes: Some(pack(&hashes(0..9))),
            timeout_ms: 60_000,
            destination: Some(pb::pull_request::Destination::Slots(pb::SlotDestination {
                region: to.region,
                slots: (0..9).collect(),
            })),
            no_replica: true,
            columns,
            ..pb::PullRequest::default()
        };
        let mut events = b.api.pull(pull).await.unwrap().into_inner();
        let (mut pulled, mut others) = (Vec::new(), Vec::new());
        while let Some(event) = events.message().await.unwrap() {
            for way in event.pulled {
                assert!(columns);
                assert_eq!((way.source_node.as_str(), way.region), ("a", to.region));
                let places = way.slots.iter().zip(&way.generations);
                for (index, (slot, generation)) in way.indices.iter().zip(places) {
                    pulled.push((*index, *slot, *generation, way.transport.clone()));
                }
            }
            for outcome in event.outcomes {
                match outcome.kind() {
                    OutcomeKind::Pulled => pulled.push((
                        outcome.index,
                        outcome.slot,
                        outcome.generation,
                        outcome.transport,
                    )),
                    other => others.push((outcome.index, other)),
                }
            }
        }
        pulled.sort_unstable();
        assert_eq!(pulled.len(), 8, "{pulled:?}");
        assert_eq!(others, [(8, OutcomeKind::Missing)]);
        seen.push(pulled);
        b.api
            .unregister_region(pb::UnregisterRegionRequest { region: to.region })
            .await
            .unwrap();
    }
    assert_eq!(seen[0], seen[1]);
}

#[tokio::test]
async fn what_was_evicted_is_not_found_any_more() {
    let mut cluster = Cluster::start().await;
    let mut a = cluster.agent("a", &[]).await;
    let from = a.region(namespace("n"), 8).await;
    a.publish(&from, 0, 0..8).await;
    let evicted = a
        .api
        .evict(pb::EvictRequest {
            namespace: "n".into(),
            hashes: Some(pack(&hashes(0..3))),
        })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(evicted.evicted, 3);
    eventually("the coordinator has heard", || async {
        let owners = cluster.locate("n", &hashes(0..8)).await;
        let left: Vec<_> = owners.iter().map(Vec::len).collect();
        left == [0, 0, 0, 1, 1, 1, 1, 1]
    })
    .await;
}

#[tokio::test]
async fn lookups_tell_local_from_remote_from_missing() {
    let mut cluster = Cluster::start().await;
    let a = cluster.agent("a", &[]).await;
    let mut b = cluster.agent("b", &[]).await;
    let from = a.region(namespace("n"), 8).await;
    a.publish(&from, 0, 0..2).await;
    let own = b.region(namespace("n"), 8).await;
    b.publish(&own, 0, 2..3).await;
    let places = b
        .api
        .lookup(pb::LookupRequest {
            namespace: "n".into(),
            hashes: Some(pack(&hashes([0, 2, 9, 1].into_iter()))),
            prefix: false,
            timeout_ms: 60_000,
        })
        .await
        .unwrap()
        .into_inner();
    use pb::BlockPlace::{Local, Missing, Remote};
    let places: Vec<_> = places.places().collect();
    assert_eq!(places, [Remote, Local, Missing, Remote]);
}
