//! Calls of every service of an agent's local API, as engines send them, and the orders of a coordinator to copy.

use kvferry_agent::fuzz::local::Calls;
use kvferry_proto::pb::{self, register_region_request::Source};
use prost::Message;

use super::answers::locate_response;
use crate::{Target, world};

pub(super) const TARGET: Target = Target {
    name: "local_calls",
    run,
    seeds,
};

/// By their places: a corpus depends on the order. New ones come last.
const PATHS: &[&str] = &[
    "/kvferry.v1.Agent/RegisterRegion",
    "/kvferry.v1.Agent/UnregisterRegion",
    "/kvferry.v1.Agent/Reserve",
    "/kvferry.v1.Agent/Seal",
    "/kvferry.v1.Agent/Abort",
    "/kvferry.v1.Agent/Put",
    "/kvferry.v1.Agent/Get",
    "/kvferry.v1.Agent/Lookup",
    "/kvferry.v1.Agent/Pull",
    "/kvferry.v1.Agent/Pin",
    "/kvferry.v1.Agent/Release",
    "/kvferry.v1.Agent/Evict",
    "/kvferry.v1.Agent/Stats",
    "/kvferry.v1.LocalClaims/ClaimBlocks",
    "/kvferry.v1.LocalClaims/RenewBlocks",
    "/kvferry.v1.LocalClaims/ReleaseBlocks",
    "/kvferry.v1.LocalLocations/PutBlockLocations",
    "/kvferry.v1.LocalLocations/RemoveBlockLocations",
    "/kvferry.v1.LocalLocations/FindBlockLocations",
    "/kvferry.v1.Tensors/Publish",
    "/kvferry.v1.Tensors/Withdraw",
    "/kvferry.v1.Tensors/ListPublished",
    "/kvferry.v1.Tensors/PullTensors",
    COPY,
];
/// No path: an order to copy that came over a session.
const COPY: &str = "copy";
const REGISTER: &str = PATHS[0];
/// A pool's memory is real: no more of it than this.
const MAX_POOL_BYTES: u64 = 1 << 20;

fn run(bytes: &[u8]) {
    let calls = world::calls(bytes, PATHS);
    if calls.is_empty() {
        return;
    }
    world::runtime().block_on(async {
        let Some(served) = Calls::new() else {
            return;
        };
        for (path, body) in calls {
            match path {
                COPY => {
                    if let Ok(order) = pb::Replicate::decode(body.get(5..).unwrap_or_default()) {
                        copy(&served, order).await;
                    }
                }
                REGISTER if !is_harmless(&body) => {}
                path => drop(served.call(path, body).await),
            }
            served.tick();
        }
    });
}

/// Files of this machine are not opened for a fuzzer, and not all of its memory is asked for.
fn is_harmless(body: &[u8]) -> bool {
    let message = pb::RegisterRegionRequest::decode(body.get(5..).unwrap_or_default());
    match message.map(|message| message.source) {
        Ok(Some(Source::Pool(pool))) => pool.bytes <= MAX_POOL_BYTES,
        Ok(Some(Source::Path(_))) => false,
        Ok(_) => true,
        Err(_) => true,
    }
}

async fn copy(served: &Calls, order: pb::Replicate) {
    let (number, asked) = (order.order, order.hashes.clone());
    let asked = asked.map_or(0, |h| h.hashes.len() / (h.hash_len as usize).max(1));
    // No coordinator is there, and no way to owners: it fails, soon.
    let order = pb::Replicate {
        timeout_ms: order.timeout_ms.min(5),
        ..order
    };
    let said = served.copy(order).await;
    assert_eq!(said.order, number);
    assert!(said.failed.iter().all(|block| (*block as usize) < asked));
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

fn register() -> Vec<u8> {
    let pool = pb::PoolSource {
        bytes: 8 * world::BLOCK_BYTES,
        hugepages: false,
    };
    let request = pb::RegisterRegionRequest {
        namespace: Some((&world::spec()).into()),
        source: Some(Source::Pool(pool)),
        ..pb::RegisterRegionRequest::default()
    };
    call("Agent/RegisterRegion", &request)
}

fn written() -> Vec<u8> {
    let reserve = pb::ReserveRequest {
        region: 1,
        count: 3,
        slots: Vec::new(),
    };
    let seal = pb::SealRequest {
        region: 1,
        slots: vec![0, 1],
        hashes: Some(world::hashes(0, 2)),
        chained: true,
        ..pb::SealRequest::default()
    };
    let abort = pb::AbortRequest {
        region: 1,
        slots: vec![2],
    };
    let put = pb::PutRequest {
        namespace: "t/m".into(),
        hashes: Some(world::hashes(5, 2)),
        data: vec![3; 100].into(),
        ..pb::PutRequest::default()
    };
    let more = pb::PutRequest {
        data: vec![4; 28].into(),
        ..pb::PutRequest::default()
    };
    [
        call("Agent/Reserve", &reserve),
        call("Agent/Seal", &seal),
        call("Agent/Abort", &abort),
        streamed("Agent/Put", &[put.encode_to_vec(), more.encode_to_vec()]),
    ]
    .concat()
}

fn asked() -> Vec<u8> {
    let get = pb::GetRequest {
        namespace: "t/m".into(),
        hashes: Some(world::hashes(0, 3)),
        timeout_ms: 5,
        ..pb::GetRequest::default()
    };
    let pull = pb::PullRequest {
        namespace: "t/m".into(),
        hashes: Some(world::hashes(1, 3)),
        timeout_ms: 5,
        destination: Some(pb::pull_request::Destination::Pool(pb::PoolDestination {
            pin_ttl_ms: 10,
        })),
        ..pb::PullRequest::default()
    };
    let staged = pb::PullRequest {
        destination: Some(pb::pull_request::Destination::Slots(pb::SlotDestination {
            region: 1,
            slots: vec![0, 1, 2],
        })),
        stages: vec![1],
        ..pull.clone()
    };
    let pin = pb::PinRequest {
        namespace: "t/m".into(),
        hashes: Some(world::hashes(0, 2)),
        ttl_ms: 1_000,
    };
    // Field 1 of a look-up, too.
    let evict = pb::EvictRequest {
        namespace: "t/m".into(),
        ..pb::EvictRequest::default()
    };
    let claim = pb::ClaimBlocksRequest {
        namespace: "t/m".into(),
        hashes: Some(world::hashes(0, 2)),
        ..pb::ClaimBlocksRequest::default()
    };
    [
        call("Agent/Get", &get),
        call("Agent/Pull", &pull),
        call("Agent/Pull", &staged),
        call("Agent/Lookup", &pin),
        call("Agent/Pin", &pin),
        call("Agent/Release", &pb::ReleaseRequest { pin: 1 }),
        call("Agent/Evict", &evict),
        call("LocalClaims/ClaimBlocks", &claim),
        call("Agent/Stats", &pb::StatsRequest {}),
    ]
    .concat()
}

fn tensors() -> Vec<u8> {
    let publish = pb::PublishTensorsRequest {
        header: Some(pb::PublishTensorsHeader {
            identity: Some(pb::SourceIdentity {
                namespace: "t/m".into(),
                ..world::identity()
            }),
            runs: vec![pb::ChunkRun {
                region: 1,
                first_slot: 0,
                slots: 2,
            }],
            ready: true,
            ..pb::PublishTensorsHeader::default()
        }),
        tensors: world::tensors(),
    };
    let pull = pb::PullTensorsRequest {
        source: vec![1; 16].into(),
        timeout_ms: 5,
        names: vec!["model.a".into()],
        ..pb::PullTensorsRequest::default()
    };
    [
        streamed("Tensors/Publish", &[publish.encode_to_vec()]),
        call("Tensors/ListPublished", &pb::ListPublishedRequest {}),
        call("Tensors/PullTensors", &pull),
    ]
    .concat()
}

fn seeds() -> Vec<Vec<u8>> {
    let order = pb::Replicate {
        order: 9,
        namespace: Some((&world::spec()).into()),
        hashes: Some(world::hashes(0, 3)),
        from: Some(locate_response()),
        timeout_ms: 5,
    };
    vec![
        [register(), written(), asked()].concat(),
        [
            register(),
            asked(),
            call(
                "Agent/UnregisterRegion",
                &pb::ReserveRequest {
                    region: 1,
                    ..pb::ReserveRequest::default()
                },
            ),
        ]
        .concat(),
        [register(), written(), tensors()].concat(),
        [register(), call(COPY, &order)].concat(),
    ]
}
