//! One entry of a log.

use std::sync::Arc;

use kvferry_proto::{Incarnation, Labels, NodeAddresses, NodeId, RegionId};

use super::{super::node::NodeState, Rows};

/// Something that changed, to be applied in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A node is there, or is so now.
    Node(WatchedNode),
    /// A node is gone, with its regions and all copies in them.
    NodeGone(u32),
    /// A region is there.
    Region(WatchedRegion),
    /// A region is gone, with all copies in it.
    RegionGone(u32),
    /// Copies came and went.
    Rows(Rows),
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchedNode {
    /// What regions name it by; used again when it is gone.
    pub number: u32,
    /// Its name.
    pub node: NodeId,
    /// Its lifetime.
    pub incarnation: Incarnation,
    /// How readers are sent to it.
    pub state: NodeState,
    /// Where they reach it.
    pub addresses: Arc<NodeAddresses>,
    /// What they may prefer.
    pub labels: Labels,
}

/// A region of the namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WatchedRegion {
    /// What copies name it by; used again when it or its node is gone.
    pub number: u32,
    /// The node's number.
    pub node: u32,
    /// The node's own number for it.
    pub region: RegionId,
    /// How many slots it has.
    pub slots: u32,
}

impl Change {
    /// Memory it takes, about.
    pub(super) fn bytes(&self) -> usize {
        let inside = match self {
            Self::Rows(rows) => rows.bytes(),
            // Names, addresses and labels are bounded where they are parsed.
            Self::Node(_) => 512,
            Self::NodeGone(_) | Self::Region(_) | Self::RegionGone(_) => 0,
        };
        size_of::<Self>() + inside
    }
}
