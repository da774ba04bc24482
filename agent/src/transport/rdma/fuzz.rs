//! What peers send to connect queue pairs and to say where regions lie.

use kvferry_proto::{RegionId, RemoteSpan, pb};
use prost::Message;

use super::{
    owner_client::parse_region,
    prepare::check,
    wire::{parse_endpoint, parse_memory},
};

/// Connect messages of both sides, and an owner's description of its regions; `spans` are what a reader would then read.
///
/// # Panics
/// Where something is taken that cannot be.
pub fn messages(bytes: &[u8], spans: &[RemoteSpan]) {
    if let Ok(request) = pb::ConnectRdmaRequest::decode(bytes) {
        request.endpoints.iter().for_each(endpoint);
    }
    if let Ok(response) = pb::ConnectRdmaResponse::decode(bytes) {
        for lane in &response.lanes {
            lane.endpoint.iter().for_each(endpoint);
            let _ = parse_memory(lane.probe.as_ref());
        }
    }
    let Ok(response) = pb::DescribeRdmaRegionsResponse::decode(bytes) else {
        return;
    };
    for message in &response.regions {
        let Ok(Some(region)) = parse_region(RegionId(message.region), message) else {
            continue;
        };
        for span in spans {
            if region.keys.is_empty() || check(&region, span).is_err() {
                continue;
            }
            for keys in &region.keys {
                let key = region.key(keys.device, span.part);
                let end = span.end().zip(key).and_then(|(end, key)| {
                    assert!(end <= key.len, "a READ beyond the region");
                    key.address.checked_add(end)
                });
                assert!(end.is_some(), "a READ beyond all addresses");
            }
        }
    }
}

fn endpoint(message: &pb::RdmaEndpoint) {
    if let Ok(endpoint) = parse_endpoint(message) {
        assert!(endpoint.qp_num < 1 << 24 && endpoint.psn.get() < 1 << 24);
        assert_eq!(message.gid.as_ref(), endpoint.gid.0);
        assert_eq!(endpoint.mtu.bytes(), message.mtu_bytes);
    }
}
