//! Addresses on the fabric, and which of a port's to use.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
};

use crate::{LinkLayer, Mtu, PortInfo, PortState};

/// 128 bits that name a port: an IPv6 address, or an IPv4 one mapped into it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Gid(pub [u8; 16]);

impl Gid {
    /// The address; IPv4 where it is one.
    #[must_use]
    pub fn ip(self) -> IpAddr {
        Ipv6Addr::from(self.0).to_canonical()
    }

    /// Nothing there: an unused place of the table.
    #[must_use]
    pub fn is_zero(self) -> bool {
        self.0 == [0; 16]
    }

    fn subnet_prefix(self) -> [u8; 8] {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        [a, b, c, d, e, f, g, h]
    }

    /// Are the two on one InfiniBand subnet, so that LIDs alone lead from one to the other?
    #[must_use]
    pub fn same_subnet(self, other: Self) -> bool {
        self.subnet_prefix() == other.subnet_prefix()
    }
}

impl fmt::Display for Gid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.ip().fmt(f)
    }
}

impl fmt::Debug for Gid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gid({self})")
    }
}

/// How packets to a GID are framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GidKind {
    /// InfiniBand.
    InfiniBand,
    /// Ethernet frames of a type of their own: cannot be routed.
    RoceV1,
    /// UDP packets.
    RoceV2,
}

impl fmt::Display for GidKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::InfiniBand => "InfiniBand",
            Self::RoceV1 => "RoCE v1",
            Self::RoceV2 => "RoCE v2",
        })
    }
}

/// One line of a port's table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GidEntry {
    /// Its place in the table: what a connection is told to use.
    pub index: u32,
    /// The address.
    pub gid: Gid,
    /// How it is framed.
    pub kind: GidKind,
}

impl GidEntry {
    /// Lower is better; None for what is used only when it is asked for by index.
    fn rank(&self) -> Option<u8> {
        match (self.kind, self.gid.ip()) {
            (GidKind::RoceV2, IpAddr::V4(_)) => Some(0),
            (GidKind::RoceV2, IpAddr::V6(ip)) if !ip.is_unicast_link_local() => Some(1),
            (GidKind::RoceV2, IpAddr::V6(_)) => Some(2),
            _ => None,
        }
    }
}

impl fmt::Display for GidEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.index, self.kind, self.gid)
    }
}

/// Which of a port's GIDs to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum GidPreference {
    /// RoCE v2 over IPv4, else over IPv6; on InfiniBand the first.
    #[default]
    Auto,
    /// RoCE v2 over IPv4 only.
    Ipv4,
    /// RoCE v2 over IPv6 only.
    Ipv6,
    /// This one, whatever it is.
    Index(u32),
}

impl fmt::Display for GidPreference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("RoCE v2"),
            Self::Ipv4 => f.write_str("RoCE v2 over IPv4"),
            Self::Ipv6 => f.write_str("RoCE v2 over IPv6"),
            Self::Index(index) => write!(f, "index {index}"),
        }
    }
}

/// Where a queue pair of ours lives: a port and the address it uses there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalAddress {
    /// The port, from 1.
    pub port: u8,
    /// Ethernet or InfiniBand.
    pub link_layer: LinkLayer,
    /// Its place in the port's table. The verbs have 8 bits for it.
    pub gid_index: u8,
    /// The address.
    pub gid: Gid,
    /// On InfiniBand; 0 elsewhere.
    pub lid: u16,
    /// What the port can do now.
    pub mtu: Mtu,
    /// Most bytes of one READ.
    pub max_read_bytes: u32,
}

/// No address of a port can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// The port is not up.
    #[error("{device} port {port} is {state}; bring its link up")]
    PortDown {
        /// The device.
        device: String,
        /// The port.
        port: u8,
        /// What it is.
        state: PortState,
    },
    /// The table has nothing that fits.
    #[error(
        "{device} port {port} ({link_layer}) has no GID for {wanted}; found: {}; {}",
        list(found),
        "give its network interface an address, or choose another with the GID index"
    )]
    NoGid {
        /// The device.
        device: String,
        /// The port.
        port: u8,
        /// Its link layer.
        link_layer: LinkLayer,
        /// What was looked for.
        wanted: GidPreference,
        /// What is there.
        found: Vec<GidEntry>,
    },
    /// An InfiniBand port without LID: no subnet manager has seen it.
    #[error("{device} port {port} has no LID; start a subnet manager (opensm) on the fabric")]
    NoLid {
        /// The device.
        device: String,
        /// The port.
        port: u8,
    },
}

fn list(found: &[GidEntry]) -> String {
    if found.is_empty() {
        return "none".into();
    }
    let all: Vec<String> = found.iter().map(ToString::to_string).collect();
    all.join(", ")
}

/// Chooses the address a port is used with.
///
/// # Errors
/// [`AddressError`] names the device, the port and what was found.
pub fn choose_address(
    device: &str,
    port: &PortInfo,
    table: &[GidEntry],
    wanted: GidPreference,
) -> Result<LocalAddress, AddressError> {
    if port.state != PortState::Active {
        return Err(AddressError::PortDown {
            device: device.into(),
            port: port.number,
            state: port.state,
        });
    }
    let infiniband = port.link_layer == LinkLayer::InfiniBand;
    if infiniband && port.lid == 0 {
        return Err(AddressError::NoLid {
            device: device.into(),
            port: port.number,
        });
    }
    let entry = match wanted {
        GidPreference::Index(index) => table.iter().find(|entry| entry.index == index),
        _ if infiniband => table.iter().min_by_key(|entry| entry.index),
        _ => table
            .iter()
            .filter(|entry| match wanted {
                GidPreference::Ipv4 => entry.gid.ip().is_ipv4(),
                GidPreference::Ipv6 => entry.gid.ip().is_ipv6(),
                _ => true,
            })
            .filter_map(|entry| Some((entry.rank()?, entry.index, entry)))
            .min_by_key(|(rank, index, _)| (*rank, *index))
            .map(|(_, _, entry)| entry),
    };
    let usable = entry.and_then(|entry| Some((u8::try_from(entry.index).ok()?, entry.gid)));
    let (gid_index, gid) = match usable {
        Some(usable) => usable,
        None => {
            return Err(AddressError::NoGid {
                device: device.into(),
                port: port.number,
                link_layer: port.link_layer,
                wanted,
                found: table.to_vec(),
            });
        }
    };
    Ok(LocalAddress {
        port: port.number,
        link_layer: port.link_layer,
        gid_index,
        gid,
        lid: port.lid,
        mtu: port.active_mtu,
        max_read_bytes: port.max_message_bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gid(text: &str) -> Gid {
        match text.parse().unwrap() {
            IpAddr::V4(ip) => Gid(ip.to_ipv6_mapped().octets()),
            IpAddr::V6(ip) => Gid(ip.octets()),
        }
    }

    fn port(link_layer: LinkLayer) -> PortInfo {
        PortInfo {
            number: 1,
            state: PortState::Active,
            link_layer,
            active_mtu: Mtu::B4096,
            max_mtu: Mtu::B4096,
            lid: if link_layer == LinkLayer::InfiniBand {
                7
            } else {
                0
            },
            gid_table_len: 16,
            max_message_bytes: 1 << 30,
        }
    }

    fn table(lines: &[(u32, GidKind, &str)]) -> Vec<GidEntry> {
        lines
            .iter()
            .map(|&(index, kind, text)| GidEntry {
                index,
                gid: gid(text),
                kind,
            })
            .collect()
    }

    fn typical() -> Vec<GidEntry> {
        table(&[
            (0, GidKind::RoceV1, "fe80::1"),
            (1, GidKind::RoceV2, "fe80::1"),
            (2, GidKind::RoceV1, "10.0.0.1"),
            (3, GidKind::RoceV2, "10.0.0.1"),
            (4, GidKind::RoceV2, "fd00::1"),
        ])
    }

    #[test]
    fn roce_v2_over_ipv4_is_preferred_then_routable_ipv6_then_link_local() {
        let ethernet = port(LinkLayer::Ethernet);
        let mut table = typical();
        for expected in [3, 4, 1] {
            let address = choose_address("mlx5_0", &ethernet, &table, GidPreference::Auto).unwrap();
            assert_eq!(address.gid_index, expected);
            table.retain(|entry| entry.index != u32::from(expected));
        }
        assert!(choose_address("mlx5_0", &ethernet, &table, GidPreference::Auto).is_err());
    }

    #[test]
    fn a_family_or_an_index_can_be_asked_for() {
        let ethernet = port(LinkLayer::Ethernet);
        let choose =
            |wanted| choose_address("mlx5_0", &ethernet, &typical(), wanted).map(|a| a.gid_index);
        assert_eq!(choose(GidPreference::Ipv4), Ok(3));
        assert_eq!(choose(GidPreference::Ipv6), Ok(4));
        assert_eq!(choose(GidPreference::Index(2)), Ok(2));
    }

    #[test]
    fn an_index_that_is_not_there_is_named_with_what_is() {
        let error = choose_address(
            "mlx5_0",
            &port(LinkLayer::Ethernet),
            &table(&[(0, GidKind::RoceV1, "10.0.0.1")]),
            GidPreference::Index(3),
        )
        .unwrap_err();
        let text = error.to_string();
        for part in ["mlx5_0 port 1", "Ethernet", "index 3", "0 RoCE v1 10.0.0.1"] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn infiniband_goes_by_lid() {
        let mut infiniband = port(LinkLayer::InfiniBand);
        let table = table(&[(0, GidKind::InfiniBand, "fe80::2:c903:0:1")]);
        let address = choose_address("mlx5_1", &infiniband, &table, GidPreference::Auto).unwrap();
        assert_eq!((address.lid, address.gid_index), (7, 0));
        infiniband.lid = 0;
        assert!(matches!(
            choose_address("mlx5_1", &infiniband, &table, GidPreference::Auto),
            Err(AddressError::NoLid { port: 1, .. })
        ));
    }

    #[test]
    fn a_port_that_is_down_is_no_choice() {
        let mut down = port(LinkLayer::Ethernet);
        down.state = PortState::Down;
        assert!(matches!(
            choose_address("rxe0", &down, &typical(), GidPreference::Auto),
            Err(AddressError::PortDown { .. })
        ));
    }
}
