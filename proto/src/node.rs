//! Where a node can be reached.

use std::net::SocketAddr;

use crate::{InvalidMessage, pb};

/// A node's addresses, by path. None means "not by this path".
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct NodeAddresses {
    /// gRPC Peer service.
    pub peer: Option<SocketAddr>,
    /// TCP data plane.
    pub data: Option<SocketAddr>,
    /// Unix socket that hands out descriptors of regions.
    pub shm: Option<String>,
    /// Equal on two processes exactly when they can reach each other's unix sockets.
    pub host_id: String,
    /// Its memory can be read by RDMA, set up through `peer`.
    pub rdma: bool,
    /// What is at `data` speaks TLS, and nothing else.
    pub data_tls: bool,
}

/// Longest socket path and host id taken from the wire, in bytes (`sun_path` holds 108).
const MAX_PATH: usize = 108;

fn socket_address(what: &'static str, text: &str) -> Result<Option<SocketAddr>, InvalidMessage> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| InvalidMessage::Address {
        what,
        text: text.chars().take(MAX_PATH).collect(),
    })
}

impl TryFrom<pb::NodeAddresses> for NodeAddresses {
    type Error = InvalidMessage;
    fn try_from(message: pb::NodeAddresses) -> Result<Self, InvalidMessage> {
        for (what, text) in [("shm path", &message.shm), ("host id", &message.host_id)] {
            if text.len() > MAX_PATH {
                return Err(InvalidMessage::Address {
                    what,
                    text: text.chars().take(MAX_PATH).collect(),
                });
            }
        }
        Ok(Self {
            peer: socket_address("peer address", &message.peer)?,
            data: socket_address("data address", &message.data)?,
            shm: (!message.shm.is_empty()).then_some(message.shm),
            host_id: message.host_id,
            rdma: message.rdma,
            data_tls: message.data_tls,
        })
    }
}

impl From<&NodeAddresses> for pb::NodeAddresses {
    fn from(addresses: &NodeAddresses) -> Self {
        let text = |a: Option<SocketAddr>| a.map(|a| a.to_string()).unwrap_or_default();
        Self {
            peer: text(addresses.peer),
            data: text(addresses.data),
            shm: addresses.shm.clone().unwrap_or_default(),
            host_id: addresses.host_id.clone(),
            rdma: addresses.rdma,
            data_tls: addresses.data_tls,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_round_trip_and_bad_ones_are_named() {
        let addresses = NodeAddresses {
            peer: Some("127.0.0.1:7401".parse().unwrap()),
            data: Some("[::1]:7402".parse().unwrap()),
            shm: None,
            host_id: "h".into(),
            rdma: true,
            data_tls: true,
        };
        let message = pb::NodeAddresses::from(&addresses);
        assert_eq!(NodeAddresses::try_from(message.clone()).unwrap(), addresses);
        let bad = pb::NodeAddresses {
            data: "nowhere".into(),
            ..message
        };
        assert!(matches!(
            NodeAddresses::try_from(bad),
            Err(InvalidMessage::Address {
                what: "data address",
                ..
            })
        ));
    }
}
