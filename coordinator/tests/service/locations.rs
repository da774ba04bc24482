//! Locations over gRPC.

use std::time::Duration;

use kvferry_proto::pb::{self, locations_client::LocationsClient};

use crate::{Code, Reason, agent::Agent, assert_refused, locate, packed, soon, start};

fn put(hashes: &[u64], location: &str) -> pb::PutLocationsRequest {
    pb::PutLocationsRequest {
        namespace: "t/m".into(),
        hashes: Some(packed(hashes)),
        location: location.into(),
        ..pb::PutLocationsRequest::default()
    }
}

fn find(hashes: &[u64]) -> pb::FindLocationsRequest {
    pb::FindLocationsRequest {
        namespace: "t/m".into(),
        hashes: Some(packed(hashes)),
    }
}

#[tokio::test]
async fn a_location_is_found_by_find_and_by_locate_until_it_expires() {
    let mut running = start().await;
    let _agent = Agent::join(&mut running, "a", &[1]).await;
    let mut locations = LocationsClient::connect(running.url.clone()).await.unwrap();
    let ttl = pb::SetNamespacePolicyRequest {
        namespace: "t/m".into(),
        policy: Some(pb::NamespacePolicy {
            location_ttl_ms: 300,
            ..pb::NamespacePolicy::default()
        }),
    };
    let mut long = ttl.clone();
    long.policy.as_mut().unwrap().location_ttl_ms = 3_600_000;
    locations.set_namespace_policy(long).await.unwrap();
    let done = locations.put_locations(put(&[1, 2], "s3://a")).await;
    assert_eq!(done.unwrap().into_inner().added, 2);
    locations.set_namespace_policy(ttl).await.unwrap();
    locations.put_locations(put(&[3], "fs:/b")).await.unwrap();

    let request = pb::LocateRequest {
        with_locations: true,
        mode: pb::LocateMode::Prefix.into(),
        ..locate(&[1, 2, 4])
    };
    let answer = running.client.locate(request).await.unwrap().into_inner();
    assert_eq!((answer.answered, answer.candidate_counts), (2, vec![1, 0]));
    assert_eq!(
        (answer.location_blocks, answer.location_index),
        (vec![1], vec![0])
    );
    assert_eq!(answer.locations, ["s3://a"]);

    soon(async {
        loop {
            let found = locations.find_locations(find(&[1, 2, 3])).await.unwrap();
            if found.into_inner().location_of == [1, 1, 0] {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let removed = pb::RemoveLocationsRequest {
        namespace: "t/m".into(),
        hashes: Some(packed(&[1, 2, 3])),
        location: String::new(),
    };
    let removed = locations.remove_locations(removed).await.unwrap();
    assert_eq!(removed.into_inner().removed, 2);
    let get = pb::GetNamespacePolicyRequest {
        namespace: "t/m".into(),
    };
    let known = locations.get_namespace_policy(get).await.unwrap();
    let known = known.into_inner();
    assert_eq!(
        (known.locations, known.policy.unwrap().location_ttl_ms),
        (0, 300)
    );
}

#[tokio::test]
async fn what_makes_no_sense_is_refused() {
    let mut running = start().await;
    let mut locations = LocationsClient::connect(running.url.clone()).await.unwrap();
    let unknown = locations.put_locations(put(&[1], "x")).await;
    assert_refused(unknown, Code::NotFound, Reason::NamespaceUnknown);
    let _agent = Agent::join(&mut running, "a", &[]).await;
    for text in [String::new(), "x".repeat(513)] {
        let bad = locations.put_locations(put(&[1], &text)).await;
        assert_refused(bad, Code::InvalidArgument, Reason::InvalidArgument);
    }
    let mut orphan = put(&[1], "x");
    orphan.parent = vec![0; 7].into();
    let orphan = locations.put_locations(orphan).await;
    assert_refused(orphan, Code::InvalidArgument, Reason::HashLength);
    let many: Vec<u64> = (0..8_193).collect();
    let many = locations.put_locations(put(&many, "x")).await;
    assert_refused(many, Code::ResourceExhausted, Reason::BoundReached);
}
