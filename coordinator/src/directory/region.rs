//! A region in the directory.

use std::sync::Arc;

use bytes::Bytes;
use kvferry_proto::{Geometry, HashLen, RegionId};
use parking_lot::Mutex;

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
    /// The namespace's.
    pub(super) hash_len: HashLen,
    /// Shared with answers.
    pub(super) geometry: Arc<Geometry>,
    /// Its row in an answer's table of owners, as it travels: encoded once, not once an answer.
    pub(super) row: Bytes,
    /// It went, and what it held is being swept out of the index. Not offered to readers; the
    /// node's handle may stand for another node by now.
    pub(super) gone: bool,
    /// What it holds. Its lock is taken before the index' locks.
    pub(super) slots: Mutex<SlotTable>,
}

impl Region {
    /// How many slots there are, sealed or not.
    pub(super) fn slot_count(&self) -> u32 {
        self.geometry.slots()
    }
}
