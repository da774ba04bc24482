//! Packet sizes.

use kvferry_rdma_sys::ibv_mtu;

/// Payload of one packet. Both sides of a connection must use the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mtu {
    /// 256 bytes.
    B256,
    /// 512 bytes.
    B512,
    /// 1024 bytes: what an Ethernet port with an MTU of 1500 has room for.
    B1024,
    /// 2048 bytes.
    B2048,
    /// 4096 bytes: the most there is, with an Ethernet MTU of 4200 or more.
    B4096,
}

impl Mtu {
    const ALL: [Self; 5] = [
        Self::B256,
        Self::B512,
        Self::B1024,
        Self::B2048,
        Self::B4096,
    ];

    /// In bytes.
    #[must_use]
    pub fn bytes(self) -> u32 {
        256 << self as u32
    }

    /// From bytes, as they are exchanged between peers. None for any other number.
    #[must_use]
    pub fn from_bytes(bytes: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|mtu| mtu.bytes() == bytes)
    }

    pub(crate) fn from_raw(raw: ibv_mtu::Type) -> Option<Self> {
        Self::ALL.into_iter().find(|mtu| mtu.raw() == raw)
    }

    pub(crate) fn raw(self) -> ibv_mtu::Type {
        ibv_mtu::IBV_MTU_256 + self as ibv_mtu::Type
    }
}

impl std::fmt::Display for Mtu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.bytes().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_raw_values_agree() {
        for (mtu, bytes, raw) in [
            (Mtu::B256, 256, ibv_mtu::IBV_MTU_256),
            (Mtu::B1024, 1024, ibv_mtu::IBV_MTU_1024),
            (Mtu::B4096, 4096, ibv_mtu::IBV_MTU_4096),
        ] {
            assert_eq!((mtu.bytes(), mtu.raw()), (bytes, raw));
            assert_eq!(Mtu::from_bytes(bytes), Some(mtu));
            assert_eq!(Mtu::from_raw(raw), Some(mtu));
        }
        assert_eq!(Mtu::from_bytes(1500), None);
        assert_eq!(Mtu::from_raw(0), None);
    }

    #[test]
    fn the_smaller_of_two_is_what_both_can_do() {
        assert_eq!(Mtu::B4096.min(Mtu::B1024), Mtu::B1024);
    }
}
