//! Blocks in shared storage, and copies beyond those wanted.

use std::time::Duration;

use kvferry_proto::pb::{
    self, OutcomeKind, local_locations_client::LocalLocationsClient,
    locations_client::LocationsClient, pull_request::Destination,
};
use tonic::transport::Channel;

use crate::{
    claims::channel,
    cluster::{Cluster, SOON, pack},
    engine::{Engine, block, hash, hashes, namespace},
};

async fn coordinator(cluster: &Cluster) -> LocationsClient<Channel> {
    let address = format!("http://{}", cluster.coordinator_address);
    LocationsClient::connect(address).await.unwrap()
}

#[tokio::test]
async fn what_one_engine_offloaded_another_finds() {
    let mut cluster = Cluster::start().await;
    let engine = cluster.agent("a", &[]).await;
    cluster.agent("b", &[]).await;
    engine.pool(namespace("n"), 4).await;
    let mut a = LocalLocationsClient::new(channel(&cluster.socket("a")).await);
    let mut b = LocalLocationsClient::new(channel(&cluster.socket("b")).await);
    let put = pb::PutLocationsRequest {
        namespace: "n".into(),
        hashes: Some(pack(&hashes(0..2))),
        location: "s3://bucket/kv/".into(),
        chained: true,
        ..pb::PutLocationsRequest::default()
    };
    // The namespace comes with the session's first delta.
    let added = tokio::time::timeout(SOON, async {
        loop {
            match a.put_block_locations(put.clone()).await {
                Ok(done) => return done.into_inner().added,
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    });
    assert_eq!(added.await.unwrap(), 2);
    let find = pb::FindLocationsRequest {
        namespace: "n".into(),
        hashes: Some(pack(&hashes(0..3))),
    };
    let found = b.find_block_locations(find.clone()).await.unwrap();
    let found = found.into_inner();
    assert_eq!(found.location_of, [1, 1, 0]);
    assert_eq!(found.locations, ["s3://bucket/kv/"]);
    let remove = pb::RemoveLocationsRequest {
        namespace: "n".into(),
        hashes: Some(pack(&[hash(1)])),
        location: "s3://bucket/kv/".into(),
    };
    let removed = b.remove_block_locations(remove).await.unwrap();
    assert_eq!(removed.into_inner().removed, 1);
    let found = a.find_block_locations(find).await.unwrap();
    assert_eq!(found.into_inner().location_of, [1, 0, 0]);
}

/// Copies a block into the agent's pool, and waits until the coordinator has confirmed it.
async fn put(engine: &Engine, n: u64) {
    let request = pb::PutRequest {
        namespace: "n".into(),
        hashes: Some(pack(&[hash(n)])),
        data: block(n).into(),
        wait_announced_ms: 60_000,
        ..pb::PutRequest::default()
    };
    let stored = engine.clone().api.put(tokio_stream::iter([request])).await;
    let stored = stored.unwrap().into_inner();
    assert!(stored.announced && stored.blocks_stored == 1, "{stored:?}");
}

#[tokio::test]
async fn a_replica_beyond_those_wanted_makes_room_before_colder_blocks() {
    let mut cluster = Cluster::start().await;
    let engines = [cluster.agent("a", &[]).await, cluster.agent("b", &[]).await];
    for engine in &engines {
        engine.pool(namespace("n"), 4).await;
    }
    let [a, b] = engines;
    put(&a, 0).await;
    let policy = pb::SetNamespacePolicyRequest {
        namespace: "n".into(),
        policy: Some(pb::NamespacePolicy {
            copies_wanted: 1,
            ..pb::NamespacePolicy::default()
        }),
    };
    let mut coordinator = coordinator(&cluster).await;
    coordinator.set_namespace_policy(policy).await.unwrap();

    put(&b, 10).await;
    put(&b, 11).await;
    let pull = pb::PullRequest {
        namespace: "n".into(),
        hashes: Some(pack(&[hash(0)])),
        destination: Some(Destination::Pool(pb::PoolDestination { pin_ttl_ms: 0 })),
        ..pb::PullRequest::default()
    };
    let mut stream = b.clone().api.pull(pull).await.unwrap().into_inner();
    let (mut outcomes, mut pin) = (Vec::new(), 0);
    while let Some(event) = stream.message().await.unwrap() {
        outcomes.extend(event.outcomes);
        pin = event.summary.map_or(pin, |summary| summary.pin);
    }
    assert_eq!(outcomes[0].kind(), OutcomeKind::Pulled);
    // Its confirmation follows the hint on the same stream.
    put(&b, 12).await;
    let release = pb::ReleaseRequest { pin };
    b.clone().api.release(release).await.unwrap();
    put(&b, 13).await;
    let look = pb::LookupRequest {
        namespace: "n".into(),
        hashes: Some(pack(&[hash(0), hash(10), hash(11), hash(12), hash(13)])),
        ..pb::LookupRequest::default()
    };
    let places = b.clone().api.lookup(look).await.unwrap().into_inner();
    use pb::BlockPlace::{Local, Remote};
    let places: Vec<_> = places.places().collect();
    assert_eq!(places, [Remote, Local, Local, Local, Local]);
}
