//! What happens to a directory. Messages are parsed into these at the edge.

use kvferry_proto::{Geometry, Incarnation, Labels, NamespaceSpec, NodeAddresses, NodeId};
use kvferry_proto::{PackedHashes, RegionId};
use kvferry_security::Denied;

/// One stream of one agent, numbered by the shell. Never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(pub u64);

/// Something that happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A session introduces itself; its first message, and only that.
    Hello {
        /// On which stream.
        session: SessionId,
        /// What it says.
        hello: Hello,
    },
    /// A change of what the node holds.
    Delta {
        /// On which stream.
        session: SessionId,
        /// The change.
        delta: Delta,
    },
    /// A sign of life.
    Heartbeat {
        /// On which stream.
        session: SessionId,
        /// Echoed.
        number: u64,
        /// The delta that comes next on the stream; None: not said.
        next_delta: Option<u64>,
    },
    /// What the node has read from others since it last told.
    Reads {
        /// On which stream.
        session: SessionId,
        /// Bytes from each. Nodes that are not known are passed over.
        reads: Vec<(NodeId, u64)>,
    },
    /// A part of a full inventory.
    Inventory {
        /// On which stream.
        session: SessionId,
        /// The part.
        part: InventoryPart,
    },
    /// The agent stops.
    Goodbye {
        /// On which stream.
        session: SessionId,
    },
    /// The stream is gone, for whatever reason.
    SessionEnded {
        /// Which stream.
        session: SessionId,
    },
    /// Time passed: nodes that were silent too long are hidden, then purged.
    Tick,
}

/// Who an agent is and what it remembers.
#[derive(Debug, Clone, PartialEq)]
pub struct Hello {
    /// The node it speaks for.
    pub node: NodeId,
    /// Its lifetime.
    pub incarnation: Incarnation,
    /// Where readers reach it.
    pub addresses: NodeAddresses,
    /// What readers may prefer.
    pub labels: Labels,
    /// The coordinator instance it last spoke with; 0 for none.
    pub coordinator_epoch: u64,
    /// The oldest delta it can still send.
    pub oldest_delta: u64,
    /// The number of its next new delta.
    pub next_delta: u64,
}

/// A numbered change; removals of regions first, then new regions, then changes in order.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Delta {
    /// From 1, without gaps within an incarnation.
    pub seq: u64,
    /// Regions that are gone.
    pub regions_removed: Vec<RegionId>,
    /// New regions.
    pub regions_added: Vec<RegionDeclaration>,
    /// Slots that changed.
    pub changes: Vec<RegionChange>,
}

/// A part of a full inventory.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct InventoryPart {
    /// The delta the state is based on, the same in every part.
    pub seq: u64,
    /// This part starts an inventory.
    pub first: bool,
    /// This part ends it: what was not named is gone.
    pub last: bool,
    /// Regions the node has.
    pub regions: Vec<RegionDeclaration>,
    /// Slots that are sealed, by region.
    pub sealed: Vec<(RegionId, SealedSlots)>,
}

/// A region in full.
#[derive(Debug, Clone, PartialEq)]
pub struct RegionDeclaration {
    /// Never used twice in an incarnation.
    pub region: RegionId,
    /// What its blocks are.
    pub namespace: NamespaceSpec,
    /// Where its slots lie.
    pub geometry: Geometry,
    /// Why its agent may not publish it: it is refused then.
    pub denied: Option<Box<Denied>>,
}

/// What happened to slots of one region: first the removals, then the additions.
#[derive(Debug, Clone, PartialEq)]
pub struct RegionChange {
    /// Which region.
    pub region: RegionId,
    /// Slots that hold nothing any more.
    pub removed_slots: Vec<u32>,
    /// Slots that are sealed now.
    pub added: SealedSlots,
}

/// Columns of equal length: `slots[i]` holds `hashes[i]` sealed at `generations[i]`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SealedSlots {
    /// None stands for no slots at all.
    pub hashes: Option<PackedHashes>,
    /// Slot numbers.
    pub slots: Vec<u32>,
    /// Their generations; all even.
    pub generations: Vec<u64>,
    /// Empty, or one per slot where 0 is "none".
    pub checksums: Vec<u64>,
}
