//! What a port says about itself.

use std::fmt;

use kvferry_rdma_sys::{ibv_port_attr, ibv_port_state};

use crate::Mtu;

/// Can a port carry traffic?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PortState {
    /// No link.
    Down,
    /// Link, but no subnet manager has configured it yet.
    Initializing,
    /// Configured, not yet let in.
    Armed,
    /// Yes.
    Active,
    /// The driver says something else.
    Unknown,
}

impl fmt::Display for PortState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Down => "down",
            Self::Initializing => "initializing",
            Self::Armed => "armed",
            Self::Active => "active",
            Self::Unknown => "in an unknown state",
        })
    }
}

/// What lies under the transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LinkLayer {
    /// RoCE: addressed by GID.
    Ethernet,
    /// Addressed by LID, between subnets by GID.
    InfiniBand,
}

impl fmt::Display for LinkLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ethernet => "Ethernet",
            Self::InfiniBand => "InfiniBand",
        })
    }
}

/// A port, at the moment it was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortInfo {
    /// From 1.
    pub number: u8,
    /// Can it carry traffic?
    pub state: PortState,
    /// Ethernet or InfiniBand.
    pub link_layer: LinkLayer,
    /// The packet size it can use now.
    pub active_mtu: Mtu,
    /// The packet size it could use.
    pub max_mtu: Mtu,
    /// Its local identifier on InfiniBand, given by the subnet manager; 0 elsewhere.
    pub lid: u16,
    /// Places in its table of GIDs.
    pub gid_table_len: u32,
    /// Most bytes of one read.
    pub max_message_bytes: u32,
}

/// `IBV_LINK_LAYER_ETHERNET`; 0 (unspecified) and 1 are InfiniBand.
const ETHERNET: u8 = 2;

impl PortInfo {
    pub(crate) fn from_raw(number: u8, raw: &ibv_port_attr) -> Self {
        // A driver that names no packet size is one for the smallest.
        let mtu = |raw| Mtu::from_raw(raw).unwrap_or(Mtu::B256);
        Self {
            number,
            state: match raw.state {
                ibv_port_state::IBV_PORT_DOWN => PortState::Down,
                ibv_port_state::IBV_PORT_INIT => PortState::Initializing,
                ibv_port_state::IBV_PORT_ARMED => PortState::Armed,
                ibv_port_state::IBV_PORT_ACTIVE | ibv_port_state::IBV_PORT_ACTIVE_DEFER => {
                    PortState::Active
                }
                _ => PortState::Unknown,
            },
            link_layer: if raw.link_layer == ETHERNET {
                LinkLayer::Ethernet
            } else {
                LinkLayer::InfiniBand
            },
            active_mtu: mtu(raw.active_mtu),
            max_mtu: mtu(raw.max_mtu),
            lid: raw.lid,
            gid_table_len: u32::try_from(raw.gid_tbl_len).unwrap_or(0),
            max_message_bytes: raw.max_msg_sz,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raw_values_become_words() {
        let mut raw = ibv_port_attr {
            state: ibv_port_state::IBV_PORT_ACTIVE,
            active_mtu: 3,
            max_mtu: 5,
            link_layer: ETHERNET,
            gid_tbl_len: -1,
            ..Default::default()
        };
        let port = PortInfo::from_raw(2, &raw);
        assert_eq!((port.number, port.state), (2, PortState::Active));
        assert_eq!((port.active_mtu, port.max_mtu), (Mtu::B1024, Mtu::B4096));
        assert_eq!(port.link_layer, LinkLayer::Ethernet);
        assert_eq!(port.gid_table_len, 0);
        raw.state = 99;
        raw.link_layer = 0;
        let port = PortInfo::from_raw(2, &raw);
        assert_eq!(port.state, PortState::Unknown);
        assert_eq!(port.link_layer, LinkLayer::InfiniBand);
    }
}
