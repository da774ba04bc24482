//! Small types the store's operations share.

use std::fmt;

use kvferry_proto::{Checksum, Generation, RegionId, Slot};

/// One connection of an engine to the local API. Its reservations and pins end with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientId(pub u64);

impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "client {}", self.0)
    }
}

/// Who may write to a reserved slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Holder {
    /// An engine, through its connection.
    Client(ClientId),
    /// One pull of the agent's own.
    Pull(u64),
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Client(client) => client.fmt(f),
            Self::Pull(pull) => write!(f, "pull {pull}"),
        }
    }
}

/// One promise not to reuse some slots. Never zero: zero means "none" on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PinId(pub u64);

impl fmt::Display for PinId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Where a sealed block lies in this agent's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// Its region.
    pub region: RegionId,
    /// Its slot there.
    pub slot: Slot,
    /// The even generation it was sealed with; void as soon as the slot has another.
    pub generation: Generation,
    /// Where the namespace's policy covers the block.
    pub checksum: Option<Checksum>,
}

impl Held {
    pub(super) fn place(&self) -> Place {
        Place {
            region: self.region,
            slot: self.slot,
        }
    }
}

/// A slot of a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) region: RegionId,
    pub(super) slot: Slot,
}
