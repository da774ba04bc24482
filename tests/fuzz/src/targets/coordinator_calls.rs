//! Calls of every service of a coordinator, as they arrive: paths, gRPC frames, messages.

use bytes::Bytes;
use kvferry_coordinator::fuzz::Calls;
use kvferry_proto::{SourceIdentity, Tensor, TensorTable, pb};
use prost::Message;

use super::{locate, session};
use crate::{Target, world};

pub(super) const TARGET: Target = Target {
    name: "coordinator_calls",
    run,
    seeds,
};

/// By their places: a corpus depends on the order. New ones come last.
const PATHS: &[&str] = &[
    "/kvferry.v1.Coordinator/Session",
    "/kvferry.v1.Coordinator/Locate",
    "/kvferry.v1.Coordinator/CreateNamespace",
    "/kvferry.v1.Coordinator/ListNamespaces",
    "/kvferry.v1.Coordinator/DescribeNamespace",
    "/kvferry.v1.Coordinator/DeleteNamespace",
    "/kvferry.v1.Coordinator/ListNodes",
    "/kvferry.v1.Coordinator/DescribeNode",
    "/kvferry.v1.Coordinator/DrainNode",
    "/kvferry.v1.Watch/Watch",
    "/kvferry.v1.Replication/SetCopies",
    "/kvferry.v1.Replication/WantCopies",
    "/kvferry.v1.Replication/DescribeCopies",
    "/kvferry.v1.Sources/Announce",
    "/kvferry.v1.Sources/Publish",
    "/kvferry.v1.Sources/Report",
    "/kvferry.v1.Sources/List",
    "/kvferry.v1.Sources/Get",
    "/kvferry.v1.Sources/Status",
    "/kvferry.v1.Sources/Remove",
    "/kvferry.v1.Claims/Claim",
    "/kvferry.v1.Claims/RenewClaims",
    "/kvferry.v1.Claims/ReleaseClaims",
    "/kvferry.v1.Claims/ListClaims",
    "/kvferry.v1.Locations/PutLocations",
    "/kvferry.v1.Locations/RemoveLocations",
    "/kvferry.v1.Locations/FindLocations",
    "/kvferry.v1.Locations/SetNamespacePolicy",
    "/kvferry.v1.Locations/GetNamespacePolicy",
];

fn run(bytes: &[u8]) {
    let calls = world::calls(bytes, PATHS);
    if calls.is_empty() {
        return;
    }
    world::runtime().block_on(async {
        let served = Calls::default();
        let all = async {
            for (path, body) in calls {
                served.call(path, body).await;
                served.tick();
            }
        };
        tokio::select! {
            () = all => {}
            () = served.beside() => {}
        }
    });
}

fn place(path: &str) -> u8 {
    PATHS
        .iter()
        .position(|known| known.ends_with(path))
        .unwrap() as u8
}

fn call(path: &str, message: &impl Message) -> Vec<u8> {
    world::part(place(path), &message.encode_to_vec())
}

fn streamed(path: &str, messages: &[Vec<u8>]) -> Vec<u8> {
    world::part(place(path) | 0x80, &world::stream(messages))
}

fn agent(node: &str) -> Vec<u8> {
    let messages = session::conversation(node);
    let messages: Vec<_> = messages[..4]
        .iter()
        .map(|said| {
            let message = Some(said.clone());
            pb::AgentMessage { message }.encode_to_vec()
        })
        .collect();
    streamed("Coordinator/Session", &messages)
}

fn publication() -> Vec<u8> {
    let identity = SourceIdentity::try_from(world::identity()).unwrap();
    let tensors = world::tensors().into_iter().map(Tensor::try_from);
    let table = TensorTable::new(16, 3, tensors.collect::<Result<_, _>>().unwrap()).unwrap();
    let worker = pb::AnnouncedWorker {
        source: Bytes::copy_from_slice(identity.id().as_bytes()),
        rank: 0,
        publication: 1,
        digest: Bytes::copy_from_slice(table.digest().as_bytes()),
        state: pb::SourceState::Ready.into(),
        runs: vec![pb::ChunkRun {
            region: 1,
            first_slot: 0,
            slots: 3,
        }],
    };
    let header = pb::PublishSourceHeader {
        node: "a".into(),
        incarnation: world::INCARNATION,
        number: 1,
        identity: Some(world::identity()),
        worker: Some(worker.clone()),
        chunk_bytes: 16,
        chunks: 3,
        tensors: 3,
    };
    let message = pb::PublishSourceRequest {
        header: Some(header),
        tensors: world::tensors(),
    };
    let announced = pb::AnnounceSourcesRequest {
        node: "a".into(),
        incarnation: world::INCARNATION,
        number: 2,
        workers: vec![worker.clone()],
    };
    let reported = pb::ReportSourcesRequest {
        node: "b".into(),
        incarnation: world::INCARNATION,
        reports: vec![pb::WorkerReport {
            source: worker.source.clone(),
            node: "a".into(),
            incarnation: world::INCARNATION,
            kind: pb::worker_report::Kind::Stale.into(),
            ..pb::WorkerReport::default()
        }],
    };
    let get = pb::GetSourceRequest {
        source: worker.source.clone(),
        ..pb::GetSourceRequest::default()
    };
    let status = pb::SourceStatusRequest {
        source: worker.source.clone(),
    };
    let remove = pb::RemoveSourceRequest {
        source: worker.source,
        ..pb::RemoveSourceRequest::default()
    };
    [
        streamed("Sources/Publish", &[message.encode_to_vec()]),
        call("Sources/Announce", &announced),
        call("Sources/Report", &reported),
        call("Sources/List", &pb::ListSourcesRequest::default()),
        call("Sources/Get", &get),
        call("Sources/Status", &status),
        call("Sources/Remove", &remove),
    ]
    .concat()
}

fn claims() -> Vec<u8> {
    let claim = pb::ClaimRequest {
        namespace: "t/m".into(),
        hashes: Some(world::hashes(4, 6)),
        node: "a".into(),
        incarnation: world::INCARNATION,
        ttl_ms: 1_000,
        purpose: pb::ClaimPurpose::Store.into(),
    };
    let put = pb::PutLocationsRequest {
        namespace: "t/m".into(),
        hashes: Some(world::hashes(4, 3)),
        location: "s3://b".into(),
        chained: true,
        ..pb::PutLocationsRequest::default()
    };
    let find = pb::FindLocationsRequest {
        namespace: "t/m".into(),
        hashes: Some(world::hashes(3, 3)),
    };
    let policy = pb::SetNamespacePolicyRequest {
        namespace: "t/m".into(),
        policy: Some(pb::NamespacePolicy {
            location_ttl_ms: 1_000,
            max_locations: 2,
            ..pb::NamespacePolicy::default()
        }),
    };
    let remove = pb::RemoveLocationsRequest {
        namespace: "t/m".into(),
        hashes: Some(world::hashes(4, 1)),
        ..pb::RemoveLocationsRequest::default()
    };
    [
        call("Claims/Claim", &claim),
        call(
            "Claims/RenewClaims",
            &pb::RenewClaimsRequest {
                token: 1,
                ttl_ms: 5,
            },
        ),
        call("Claims/ListClaims", &pb::ListClaimsRequest::default()),
        call("Claims/ReleaseClaims", &pb::ReleaseClaimsRequest::default()),
        call("Locations/PutLocations", &put),
        call("Locations/FindLocations", &find),
        call("Locations/SetNamespacePolicy", &policy),
        call("Locations/RemoveLocations", &remove),
    ]
    .concat()
}

fn seeds() -> Vec<Vec<u8>> {
    let create = pb::CreateNamespaceRequest {
        spec: Some((&world::spec()).into()),
    };
    let create = call("Coordinator/CreateNamespace", &create);
    let named = |path: &str| {
        // Field 1 of all of these.
        call(path, &pb::DescribeNamespaceRequest { name: "t/m".into() })
    };
    let drain = pb::DrainNodeRequest {
        node: "a".into(),
        ..pb::DrainNodeRequest::default()
    };
    let want = pb::WantCopiesRequest {
        namespace: "t/m".into(),
        hashes: Some(world::hashes(0, 3)),
        copies: 2,
        ttl_ms: 0,
    };
    let operator = [
        named("Coordinator/DescribeNamespace"),
        call("Coordinator/ListNamespaces", &pb::ListNamespacesRequest {}),
        call("Coordinator/ListNodes", &pb::ListNodesRequest {}),
        call("Coordinator/DrainNode", &drain),
        named("Replication/DescribeCopies"),
        call("Replication/WantCopies", &want),
        named("Watch/Watch"),
        named("Coordinator/DeleteNamespace"),
    ]
    .concat();
    let located = call("Coordinator/Locate", &locate::request());
    vec![
        [&create[..], &agent("a"), &located].concat(),
        [&agent("a")[..], &agent("b"), &operator].concat(),
        [agent("a"), claims()].concat(),
        [agent("a"), publication()].concat(),
    ]
}
