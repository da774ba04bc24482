//! Pieces of remote memory, as a reader names them.

use crate::RegionId;

/// Which memory of a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Part {
    /// The blocks.
    Data,
    /// The generation table: one little-endian u64 per slot, at offset `8 * slot`.
    Generations,
}

/// A piece of a region's memory at one owner. Offsets are relative to the region, never addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RemoteSpan {
    /// Which region of the owner's incarnation.
    pub region: RegionId,
    /// Its blocks or its generations.
    pub part: Part,
    /// First byte.
    pub offset: u64,
    /// How many bytes.
    pub len: u64,
}

impl RemoteSpan {
    /// One past the last byte; None when that is no offset.
    #[must_use]
    pub fn end(&self) -> Option<u64> {
        self.offset.checked_add(self.len)
    }
}
