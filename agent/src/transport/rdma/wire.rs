//! Endpoints and keys as messages. Parsing is total: what a peer sends is checked here and nowhere else.

use kvferry_ibverbs::{Endpoint, Gid, LinkLayer, Mtu, Psn, RemoteKey};
use kvferry_proto::pb;

use super::device::Device;

/// What is wrong with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct BadMessage(pub(super) &'static str);

/// A queue pair's endpoint, with what its device is and what people call it by.
pub(super) fn endpoint_message(endpoint: &Endpoint, device: &Device) -> pb::RdmaEndpoint {
    pb::RdmaEndpoint {
        device_guid: device.guid,
        port: device.port.into(),
        software: device.context.is_software(),
        ..bare_message(endpoint)
    }
}

fn bare_message(endpoint: &Endpoint) -> pb::RdmaEndpoint {
    let link_layer = match endpoint.link_layer {
        LinkLayer::Ethernet => pb::RdmaLinkLayer::Ethernet,
        LinkLayer::InfiniBand => pb::RdmaLinkLayer::Infiniband,
    };
    pb::RdmaEndpoint {
        qp_num: endpoint.qp_num,
        psn: endpoint.psn.get(),
        gid: endpoint.gid.0.to_vec().into(),
        lid: endpoint.lid.into(),
        link_layer: link_layer.into(),
        mtu_bytes: endpoint.mtu.bytes(),
        responder_depth: endpoint.responder_depth.into(),
        initiator_depth: endpoint.initiator_depth.into(),
        ..Default::default()
    }
}

pub(super) fn parse_endpoint(message: &pb::RdmaEndpoint) -> Result<Endpoint, BadMessage> {
    let small = |value: u32| u8::try_from(value).map_err(|_| BadMessage("a depth above 255"));
    Ok(Endpoint {
        qp_num: Some(message.qp_num)
            .filter(|number| *number < 1 << 24)
            .ok_or(BadMessage("a queue pair number of more than 24 bits"))?,
        psn: Psn::new(message.psn)
            .ok_or(BadMessage("a packet sequence number of more than 24 bits"))?,
        gid: <[u8; 16]>::try_from(message.gid.as_ref())
            .map(Gid)
            .map_err(|_| BadMessage("a GID that has not 16 bytes"))?,
        lid: u16::try_from(message.lid).map_err(|_| BadMessage("a LID of more than 16 bits"))?,
        link_layer: match message.link_layer() {
            pb::RdmaLinkLayer::Ethernet => LinkLayer::Ethernet,
            pb::RdmaLinkLayer::Infiniband => LinkLayer::InfiniBand,
            pb::RdmaLinkLayer::Unspecified => return Err(BadMessage("no link layer")),
        },
        mtu: Mtu::from_bytes(message.mtu_bytes)
            .ok_or(BadMessage("an MTU that RDMA does not have"))?,
        responder_depth: small(message.responder_depth)?,
        initiator_depth: small(message.initiator_depth)?,
    })
}

pub(super) fn memory_message(key: RemoteKey) -> pb::RdmaMemory {
    pb::RdmaMemory {
        address: key.address,
        len: key.len,
        rkey: key.rkey,
    }
}

/// Memory whose end cannot be computed is refused, so that sums with offsets inside it never overflow.
pub(super) fn parse_memory(message: Option<&pb::RdmaMemory>) -> Result<RemoteKey, BadMessage> {
    let message = message.ok_or(BadMessage("no memory where some must be"))?;
    if message.address.checked_add(message.len).is_none() {
        return Err(BadMessage("memory that ends beyond all addresses"));
    }
    Ok(RemoteKey {
        address: message.address,
        len: message.len,
        rkey: message.rkey,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint() -> Endpoint {
        Endpoint {
            qp_num: 0x00ab_cdef,
            psn: Psn::random(),
            gid: Gid([7; 16]),
            lid: 9,
            link_layer: LinkLayer::InfiniBand,
            mtu: Mtu::B4096,
            responder_depth: 16,
            initiator_depth: 128,
        }
    }

    #[test]
    fn endpoints_round_trip() {
        let message = bare_message(&endpoint());
        let back = parse_endpoint(&message).unwrap();
        assert_eq!(bare_message(&back), message);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let good = bare_message(&endpoint());
        let bad: [fn(&mut pb::RdmaEndpoint); 7] = [
            |m| m.qp_num = 1 << 24,
            |m| m.psn = u32::MAX,
            |m| m.gid = vec![0; 15].into(),
            |m| m.lid = 1 << 16,
            |m| m.link_layer = 77,
            |m| m.mtu_bytes = 1500,
            |m| m.initiator_depth = 256,
        ];
        for spoil in bad {
            let mut message = good.clone();
            spoil(&mut message);
            assert!(parse_endpoint(&message).is_err(), "{message:?}");
        }
        let endless = pb::RdmaMemory {
            address: u64::MAX,
            len: 1,
            rkey: 0,
        };
        assert!(parse_memory(Some(&endless)).is_err());
        assert!(parse_memory(None).is_err());
    }
}
