//! What an operator or engine wants of a namespace, beside what it is.

use std::time::Duration;

/// Wishes, all of them none by default. Soft state like everything here: a coordinator that starts anew
/// has to be told again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NamespacePolicy {
    /// A block's location is forgotten this long after it was put. Where readers are offered the block
    /// from memory by then, its time starts anew. Applies to what is put from now on.
    ///
    /// Copies in memory need none: they are there as long as their owner lives and says so.
    pub location_ttl: Option<Duration>,
    /// Most blocks with a location. Over it the least recently used are forgotten, of a chain its
    /// end first.
    pub max_locations: Option<u64>,
    /// The same in bytes of blocks.
    pub max_location_bytes: Option<u64>,
    /// Nodes that should hold a block at most. Who adds another copy is told that it may give that one
    /// up first. Never zero.
    pub copies_wanted: Option<u32>,
    /// Slots that nodes may declare in it, all together: a block in memory needs one, so that a namespace leaves others
    /// theirs. A region beyond is refused. Lowered, what is declared stays.
    pub max_slots: Option<u64>,
    /// The same in bytes of blocks.
    pub max_slot_bytes: Option<u64>,
}

impl NamespacePolicy {
    /// The quota of locations, in blocks of so many bytes.
    pub(super) fn most_locations(&self, block_bytes: u64) -> u64 {
        most(self.max_locations, self.max_location_bytes, block_bytes)
    }

    /// The quota of slots for blocks of so many bytes.
    pub(super) fn most_slots(&self, block_bytes: u64) -> u64 {
        most(self.max_slots, self.max_slot_bytes, block_bytes)
    }
}

/// The lower of two quotas, in blocks.
fn most(blocks: Option<u64>, bytes: Option<u64>, block_bytes: u64) -> u64 {
    let by_bytes = bytes.map(|most| most / block_bytes.max(1));
    blocks.unwrap_or(u64::MAX).min(by_bytes.unwrap_or(u64::MAX))
}
