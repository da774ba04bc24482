//! Whether a node is there, for those who keep other books about nodes.

use kvferry_proto::{Incarnation, NodeId};

use super::Directory;

/// A node that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Presence {
    /// Its lifetime.
    pub incarnation: Incarnation,
    /// It has a session and is not silent.
    pub attached: bool,
}

impl Directory {
    /// What is known of a node; None where it said goodbye, was purged, or never came.
    #[must_use]
    pub fn presence(&self, node: &NodeId) -> Option<Presence> {
        let node = self.nodes.get(*self.names.get(node)?)?;
        Some(Presence {
            incarnation: node.incarnation,
            attached: node.session.is_some() && !node.hidden,
        })
    }
}
