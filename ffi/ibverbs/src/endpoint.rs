//! What the two sides of a connection tell each other, and what follows from both.

use crate::{Gid, LinkLayer, LocalAddress, Mtu, Psn};

/// One side of a connection, as the other must know it. Exchanged by the caller, over a channel that
/// is authenticated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Endpoint {
    /// The queue pair's number.
    pub qp_num: u32,
    /// The number of the first packet this side sends.
    pub psn: Psn,
    /// Its address.
    pub gid: Gid,
    /// Its local identifier on InfiniBand; 0 elsewhere.
    pub lid: u16,
    /// What its port is.
    pub link_layer: LinkLayer,
    /// The packet size its port can use.
    pub mtu: Mtu,
    /// READs under way that it answers at a time.
    pub responder_depth: u8,
    /// READs under way that it starts at a time.
    pub initiator_depth: u8,
}

/// How a connection behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectOptions {
    /// How often a packet that is not acknowledged is sent again, at most [`ConnectOptions::MAX_RETRIES`].
    pub retries: u8,
    /// How long one try waits: 4.096 us times two to this power. From 1 to 31.
    pub timeout_exponent: u8,
    /// How often a peer that says it is not ready is asked again, at most [`ConnectOptions::MAX_RETRIES`].
    pub not_ready_retries: u8,
    /// The traffic class in every packet (on RoCE v2: DSCP and ECN), by which switches sort.
    pub traffic_class: u8,
    /// The service level: on InfiniBand the virtual lane, on RoCE the VLAN priority.
    pub service_level: u8,
    /// Routers a packet may pass.
    pub hop_limit: u8,
}

impl ConnectOptions {
    /// 7 means for ever on some devices, and then a peer that died is never noticed.
    pub const MAX_RETRIES: u8 = 6;

    fn problem(&self) -> Option<&'static str> {
        if self.retries > Self::MAX_RETRIES || self.not_ready_retries > Self::MAX_RETRIES {
            Some("more than 6 retries: 7 means for ever")
        } else if !(1..=31).contains(&self.timeout_exponent) {
            Some("a timeout exponent that is not from 1 to 31: 0 means for ever")
        } else if self.service_level > 15 {
            Some("a service level above 15")
        } else {
            None
        }
    }
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self {
            retries: Self::MAX_RETRIES,
            // 67 ms a try: longer than any queue in a fabric, and a dead peer is noticed in half a second.
            timeout_exponent: 14,
            not_ready_retries: Self::MAX_RETRIES,
            traffic_class: 0,
            service_level: 0,
            hop_limit: 64,
        }
    }
}

/// What both sides' values come to, seen from one of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Agreed {
    pub(crate) mtu: Mtu,
    /// READs of the peer that this side answers at a time.
    pub(crate) answers: u8,
    /// READs of this side that the peer answers at a time.
    pub(crate) asks: u8,
    /// Packets carry GIDs: always on Ethernet, between subnets on InfiniBand.
    pub(crate) global: bool,
}

pub(crate) fn agree(
    address: &LocalAddress,
    local: &Endpoint,
    remote: &Endpoint,
    options: &ConnectOptions,
) -> Result<Agreed, &'static str> {
    if let Some(problem) = options.problem() {
        return Err(problem);
    }
    if local.link_layer != remote.link_layer {
        return Err("one side is on Ethernet, the other on InfiniBand");
    }
    let global = match address.link_layer {
        LinkLayer::Ethernet => true,
        LinkLayer::InfiniBand => !local.gid.same_subnet(remote.gid),
    };
    if global && remote.gid.is_zero() {
        return Err("the peer gave no address");
    }
    if !global && remote.lid == 0 {
        return Err("the peer gave no LID");
    }
    if global && local.gid.ip().is_ipv4() != remote.gid.ip().is_ipv4() {
        return Err("one side uses IPv4, the other IPv6");
    }
    if remote.qp_num >= 1 << 24 {
        return Err("the peer gave a queue pair number of more than 24 bits");
    }
    Ok(Agreed {
        mtu: local.mtu.min(remote.mtu),
        answers: local.responder_depth.min(remote.initiator_depth),
        asks: local.initiator_depth.min(remote.responder_depth),
        global,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn ipv4(last: u8) -> Gid {
        Gid(Ipv4Addr::new(10, 0, 0, last).to_ipv6_mapped().octets())
    }

    fn side(last: u8) -> (LocalAddress, Endpoint) {
        let address = LocalAddress {
            port: 1,
            link_layer: LinkLayer::Ethernet,
            gid_index: 1,
            gid: ipv4(last),
            lid: 0,
            mtu: Mtu::B4096,
            max_read_bytes: 1 << 30,
        };
        let endpoint = Endpoint {
            qp_num: 17,
            psn: Psn::random(),
            gid: address.gid,
            lid: 0,
            link_layer: LinkLayer::Ethernet,
            mtu: Mtu::B4096,
            responder_depth: 16,
            initiator_depth: 128,
        };
        (address, endpoint)
    }

    #[test]
    fn each_value_is_what_both_can_do() {
        let ((address, local), (_, mut remote)) = (side(1), side(2));
        remote.mtu = Mtu::B1024;
        remote.responder_depth = 4;
        remote.initiator_depth = 8;
        let agreed = agree(&address, &local, &remote, &ConnectOptions::default()).unwrap();
        assert_eq!(
            agreed,
            Agreed {
                mtu: Mtu::B1024,
                answers: 8,
                asks: 4,
                global: true
            }
        );
    }

    #[test]
    fn infiniband_needs_addresses_only_between_subnets() {
        let ((mut address, mut local), (_, mut remote)) = (side(1), side(2));
        address.link_layer = LinkLayer::InfiniBand;
        (local.link_layer, remote.link_layer) = (LinkLayer::InfiniBand, LinkLayer::InfiniBand);
        let options = ConnectOptions::default();
        let subnet = |last, subnet| {
            let mut gid = [0; 16];
            (gid[0], gid[7], gid[15]) = (0xfe, subnet, last);
            Gid(gid)
        };
        (local.gid, remote.gid) = (subnet(1, 0), subnet(2, 0));
        assert!(
            agree(&address, &local, &remote, &options).is_err(),
            "no LID"
        );
        remote.lid = 9;
        assert!(!agree(&address, &local, &remote, &options).unwrap().global);
        remote.gid = subnet(2, 1);
        assert!(agree(&address, &local, &remote, &options).unwrap().global);
    }

    #[test]
    fn what_would_wait_for_ever_or_cannot_work_is_refused() {
        let ((address, local), (_, remote)) = (side(1), side(2));
        let options = ConnectOptions::default();
        for wrong in [
            ConnectOptions {
                retries: 7,
                ..options
            },
            ConnectOptions {
                not_ready_retries: 7,
                ..options
            },
            ConnectOptions {
                timeout_exponent: 0,
                ..options
            },
            ConnectOptions {
                timeout_exponent: 32,
                ..options
            },
            ConnectOptions {
                service_level: 16,
                ..options
            },
        ] {
            assert!(
                agree(&address, &local, &remote, &wrong).is_err(),
                "{wrong:?}"
            );
        }
        for wrong in [
            Endpoint {
                link_layer: LinkLayer::InfiniBand,
                ..remote
            },
            Endpoint {
                gid: Gid::default(),
                ..remote
            },
            Endpoint {
                gid: Gid([0xfd; 16]),
                ..remote
            },
            Endpoint {
                qp_num: 1 << 24,
                ..remote
            },
        ] {
            assert!(
                agree(&address, &local, &wrong, &options).is_err(),
                "{wrong:?}"
            );
        }
    }
}
