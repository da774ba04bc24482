//! What peers send to connect queue pairs, and where they say that their regions lie.

use kvferry_agent::fuzz::rdma;
use kvferry_proto::{Part, RegionId, RemoteSpan, pb};
use prost::Message;

use crate::{Target, choices::Choices};

pub(super) const TARGET: Target = Target {
    name: "rdma",
    run,
    seeds,
};

fn run(bytes: &[u8]) {
    let mut choices = Choices::new(bytes);
    let spans: Vec<RemoteSpan> = (0..2)
        .map(|part| RemoteSpan {
            region: RegionId(1),
            part: [Part::Data, Part::Generations][part],
            offset: choices.number(),
            len: choices.number(),
        })
        .collect();
    rdma::messages(choices.rest(), &spans);
}

fn seeds() -> Vec<Vec<u8>> {
    let endpoint = pb::RdmaEndpoint {
        qp_num: 77,
        psn: 1_234,
        gid: vec![7; 16].into(),
        lid: 9,
        link_layer: pb::RdmaLinkLayer::Ethernet.into(),
        mtu_bytes: 4096,
        responder_depth: 16,
        initiator_depth: 16,
        device_guid: 5,
        port: 1,
        software: true,
    };
    let memory = |address, len| pb::RdmaMemory {
        address,
        len,
        rkey: 3,
    };
    let request = pb::ConnectRdmaRequest {
        from_node: "b".into(),
        incarnation: 7,
        session: 0,
        endpoints: vec![endpoint.clone()],
        ..pb::ConnectRdmaRequest::default()
    };
    let response = pb::ConnectRdmaResponse {
        incarnation: 7,
        session: 4,
        lease_ms: 1_000,
        lanes: vec![pb::RdmaLane {
            endpoint: Some(endpoint),
            probe: Some(memory(1 << 40, 8)),
            ..pb::RdmaLane::default()
        }],
        ..pb::ConnectRdmaResponse::default()
    };
    let keys = |device| pb::RdmaKeys {
        device,
        data: Some(memory(1 << 40, 512)),
        generations: Some(memory(1 << 41, 64)),
    };
    let described = pb::DescribeRdmaRegionsResponse {
        regions: vec![pb::RdmaRegion {
            region: 1,
            exists: true,
            keys: vec![keys(0), keys(1)],
            ..pb::RdmaRegion::default()
        }],
    };
    let with_spans = |message: Vec<u8>| [&[64, 64, 8, 16], &message[..]].concat();
    vec![
        with_spans(request.encode_to_vec()),
        with_spans(response.encode_to_vec()),
        with_spans(described.encode_to_vec()),
    ]
}
