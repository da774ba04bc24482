//! How much a directory takes in.

use std::time::Duration;

/// The bounds of one directory. Every one but the last can be configured; the defaults say their reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Namespaces, empty ones included.
    pub namespaces: u32,
    /// Nodes, hidden ones included.
    pub nodes: u32,
    /// Regions a node may have in namespaces.
    pub regions_per_node: u32,
    /// Slots of all regions together. A block needs a slot, so this bounds blocks and memory, and
    /// it is checked where a region is declared: no delta can then meet a full directory half-way.
    pub slots: u64,
    /// Claims held at a time, over all nodes and namespaces.
    pub claims: u64,
    /// Blocks with a location, over all namespaces. Over it the least recently used are forgotten.
    pub locations: u64,
    /// Bytes of changes that are kept for the watchers of one namespace. Who falls behind by more is cut off.
    pub watch_log_bytes: usize,
}

impl Bounds {
    /// A tenant x model x layout each: more than a cluster of a thousand nodes serves.
    pub const DEFAULT_NAMESPACES: u32 = 4_096;
    /// A tick and a node list walk all nodes; at this number that takes well under a millisecond.
    pub const DEFAULT_NODES: u32 = 4_096;
    /// An engine has a region per GPU and pool: 8 GPUs with 32 pools each.
    pub const DEFAULT_REGIONS_PER_NODE: u32 = 256;
    /// At about 66 bytes per sealed slot with a 32-byte hash, 9 GB when all are sealed.
    pub const DEFAULT_SLOTS: u64 = 1 << 27;
    /// What a thousand nodes compute at a time, a thousand blocks each; some 200 bytes a claim.
    pub const DEFAULT_CLAIMS: u64 = 1 << 20;
    /// Some 200 bytes each: 3 GB when all are there.
    pub const DEFAULT_LOCATIONS: u64 = 1 << 24;
    /// A second's worth of half a million changes with hashes of 32 bytes.
    pub const WATCH_LOG_BYTES: usize = 32 << 20;
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            namespaces: Self::DEFAULT_NAMESPACES,
            nodes: Self::DEFAULT_NODES,
            regions_per_node: Self::DEFAULT_REGIONS_PER_NODE,
            slots: Self::DEFAULT_SLOTS,
            claims: Self::DEFAULT_CLAIMS,
            locations: Self::DEFAULT_LOCATIONS,
            watch_log_bytes: Self::WATCH_LOG_BYTES,
        }
    }
}

/// Refused regions remembered per node, so that what is said about them can be skipped: an id and
/// a reason each. A node that declares more regions in vain than this is out of order.
pub(super) const MAX_REFUSED_PER_NODE: usize = 4_096;

/// Claims one node may hold: what its engines compute and offload at a time, many times over. One
/// node that claims without end then leaves others their share.
pub(super) const MAX_CLAIMS_PER_NODE: u64 = 1 << 16;
/// Hashes of one claim: a context of 128 Ki tokens in blocks of 16. They are answered for under one
/// lock, in some two milliseconds.
pub const MAX_HASHES_PER_CLAIM: usize = 1 << 13;
/// Hashes of one change of locations: some milliseconds under the namespace's lock of locations.
pub const MAX_HASHES_PER_PUT: usize = 1 << 13;
/// How long a lease lasts where the request doesn't say: some times what a long prefill takes.
pub const DEFAULT_CLAIM_TTL: Duration = Duration::from_secs(30);
/// The longest: a claimant that hangs keeps others from its blocks for so long.
pub const MAX_CLAIM_TTL: Duration = Duration::from_secs(600);

/// Most candidates Locate gives for one block: more than a reader can try before its deadline.
pub const MAX_CANDIDATES: usize = 16;
/// Candidates given where the request doesn't say: the owner, and two to fall back on.
pub const DEFAULT_CANDIDATES: usize = 3;
/// Most candidates of one answer, `hashes x max_candidates`: each takes at most 25 bytes, so that
/// the columns stay under 6.5 MiB of a message of 8.
pub const MAX_CANDIDATES_PER_ANSWER: usize = 1 << 18;
/// Most bytes the table of owners takes in an answer, as encoded: what the columns leave of a
/// message.
pub(super) const MAX_OWNER_TABLE_BYTES: usize = 3 << 19;

/// A bound was met. Nothing was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the bound of {limit} {what} is reached: {remedy}")]
pub struct BoundReached {
    /// Of what there are too many.
    pub what: &'static str,
    /// The bound.
    pub limit: u64,
    /// What the caller or operator can do.
    pub remedy: &'static str,
}

impl BoundReached {
    pub(super) fn namespaces(bounds: &Bounds) -> Self {
        Self {
            what: "namespaces",
            limit: bounds.namespaces.into(),
            remedy: "delete some, or raise the coordinator's max_namespaces",
        }
    }
    pub(super) fn nodes(bounds: &Bounds) -> Self {
        Self {
            what: "nodes",
            limit: bounds.nodes.into(),
            remedy: "raise the coordinator's max_nodes",
        }
    }
    pub(super) fn regions(bounds: &Bounds) -> Self {
        Self {
            what: "regions per node",
            limit: bounds.regions_per_node.into(),
            remedy: "remove some, or raise the coordinator's max_regions_per_node",
        }
    }
    pub(super) fn refused_regions() -> Self {
        Self {
            what: "refused regions per node",
            limit: MAX_REFUSED_PER_NODE as u64,
            remedy: "remove the regions that were refused before declaring more",
        }
    }
    pub(super) fn claims(limit: u64) -> Self {
        Self {
            what: "claims",
            limit,
            remedy: "publish or release some, or raise the coordinator's max_claims",
        }
    }
    pub(super) fn claims_of_node() -> Self {
        Self {
            what: "claims of one node",
            limit: MAX_CLAIMS_PER_NODE,
            remedy: "publish or release some before claiming more",
        }
    }
    pub(super) fn hashes_per_put() -> Self {
        Self {
            what: "hashes of one change of locations",
            limit: MAX_HASHES_PER_PUT as u64,
            remedy: "split it",
        }
    }
    pub(super) fn hashes_per_claim() -> Self {
        Self {
            what: "hashes of one claim",
            limit: MAX_HASHES_PER_CLAIM as u64,
            remedy: "split it",
        }
    }
    pub(super) fn slots(bounds: &Bounds) -> Self {
        Self {
            what: "slots in all regions together",
            limit: bounds.slots,
            remedy: "remove regions, or raise the coordinator's max_slots",
        }
    }
    pub(super) fn slots_of_namespace(most: u64) -> Self {
        Self {
            what: "slots in this namespace's regions",
            limit: most,
            remedy: "remove regions of it, or raise its quota (`kvferry namespaces policy`)",
        }
    }
}
