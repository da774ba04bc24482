//! A region in the directory.

use std::sync::Arc;

use kvferry_proto::{Geometry, RegionId};

use super::slots::SlotTable;

/// A region that is part of a namespace.
#[derive(Debug)]
pub(super) struct Region {
    /// Handle of the node whose region it is.
    pub(super) node: u32,
    /// The node's number for it.
    pub(super) id: RegionId,
    /// Handle of its namespace.
    pub(super) namespace: u32,
    /// Shared with answers, which are built under the lock.
    pub(super) geometry: Arc<Geometry>,
    /// What it holds.
    pub(super) slots: SlotTable,
}
