//! What is asked, and what an answer is.

use std::sync::Arc;

use bytes::Bytes;
use kvferry_proto::{
    Geometry, Incarnation, Labels, NamespaceName, NodeAddresses, NodeId, PackedHashes, RegionId,
};

/// What a reader wants to know.
#[derive(Debug, Clone, Copy)]
pub struct LocateQuery<'a> {
    /// Whose blocks.
    pub namespace: &'a NamespaceName,
    /// Which blocks.
    pub hashes: &'a PackedHashes,
    /// How far.
    pub mode: LocateMode,
    /// How many candidates a block; more than [`MAX_CANDIDATES`](super::MAX_CANDIDATES) are taken for that many.
    pub max_candidates: usize,
    /// The asker's host; empty when it doesn't say.
    pub host_id: &'a str,
    /// Owners that share more of these come first.
    pub prefer: &'a Labels,
    /// Leave this node out.
    pub exclude: Option<&'a NodeId>,
    /// Any number: another one spreads readers another way. The same question with the same number has
    /// the same answer.
    pub draw: u64,
    /// Name the locations of blocks that no candidate has; such a block doesn't end a prefix.
    pub locations: bool,
}

/// How far an answer goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LocateMode {
    /// To the first block without a candidate.
    Prefix,
    /// To the end.
    Set,
}

/// An answer: owners once, then columns. Block i has `counts[i]` candidates, nearest first, which
/// follow each other in the columns.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Located {
    /// Regions that are named below.
    pub owners: Vec<LocatedOwner>,
    /// One per block answered for.
    pub counts: Vec<u32>,
    /// Into `owners`.
    pub owner_index: Vec<u32>,
    /// Slots.
    pub slots: Vec<u32>,
    /// Their generations.
    pub generations: Vec<u64>,
    /// Empty, or one per candidate where 0 is "not known".
    pub checksums: Vec<u64>,
    /// Locations that are named below.
    pub locations: Vec<String>,
    /// Blocks without a candidate that have a location, by their place in `counts`.
    pub location_blocks: Vec<u32>,
    /// Into `locations`, one per block above.
    pub location_index: Vec<u32>,
}

/// One region of one node, as a reader needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocatedOwner {
    /// The node.
    pub node: NodeId,
    /// Its lifetime.
    pub incarnation: Incarnation,
    /// Its number for the region.
    pub region: RegionId,
    /// Where it can be reached.
    pub addresses: Arc<NodeAddresses>,
    /// Where the slots lie.
    pub geometry: Arc<Geometry>,
}

/// What an answer is written into. Each block's candidates come before its end; an owner's row
/// comes before the first candidate that names it.
pub trait Answer {
    /// The next row of the table of owners.
    fn owner(&mut self, owner: OwnerRow<'_>);
    /// A candidate of the block at hand.
    fn candidate(&mut self, row: u32, slot: u32, generation: u64, checksum: u64);
    /// The end of a block with so many candidates.
    fn block(&mut self, candidates: u32);
    /// The next row of the table of locations.
    fn location(&mut self, location: &str);
    /// The block at hand has no candidate, and lies at the location of this row.
    fn located(&mut self, row: u32);
}

/// A row of the table of owners.
#[derive(Debug, Clone, Copy)]
pub struct OwnerRow<'a> {
    /// The node.
    pub node: &'a NodeId,
    /// Its lifetime.
    pub incarnation: Incarnation,
    /// Its number for the region.
    pub region: RegionId,
    /// Where it can be reached.
    pub addresses: &'a Arc<NodeAddresses>,
    /// Where the slots lie.
    pub geometry: &'a Arc<Geometry>,
    /// All of it as a field of `LocateResponse`, with tag and length.
    pub encoded: &'a Bytes,
}

impl Answer for Located {
    fn owner(&mut self, owner: OwnerRow<'_>) {
        self.owners.push(LocatedOwner {
            node: owner.node.clone(),
            incarnation: owner.incarnation,
            region: owner.region,
            addresses: owner.addresses.clone(),
            geometry: owner.geometry.clone(),
        });
    }

    fn candidate(&mut self, row: u32, slot: u32, generation: u64, checksum: u64) {
        // The column starts with the first that is known.
        if checksum != 0 && self.checksums.is_empty() {
            self.checksums.resize(self.slots.len(), 0);
        }
        if checksum != 0 || !self.checksums.is_empty() {
            self.checksums.push(checksum);
        }
        self.owner_index.push(row);
        self.slots.push(slot);
        self.generations.push(generation);
    }

    fn block(&mut self, candidates: u32) {
        self.counts.push(candidates);
    }

    fn location(&mut self, location: &str) {
        self.locations.push(location.to_owned());
    }

    fn located(&mut self, row: u32) {
        self.location_blocks.push(self.counts.len() as u32);
        self.location_index.push(row);
    }
}
