//! Who is offered to a reader, and in which order.

use std::{cmp::Ordering, sync::Arc};

use hashbrown::{HashMap, hash_map::Entry};
use kvferry_proto::{
    Checksum, Geometry, HashError, Incarnation, Labels, NamespaceName, NodeAddresses, NodeId,
    PackedHashes, RegionId,
};

use super::{
    Directory, MAX_CANDIDATES, MAX_CANDIDATES_PER_ANSWER, NamespaceUnknown,
    bounds::MAX_OWNER_TABLE_BYTES,
    index::Owner,
    namespace::Namespace,
    node::{Node, NodeState},
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
    /// How many candidates a block; more than [`MAX_CANDIDATES`] are taken for that many.
    pub max_candidates: usize,
    /// The asker's host; empty when it doesn't say.
    pub host_id: &'a str,
    /// Owners that share more of these come first.
    pub prefer: &'a Labels,
    /// Leave this node out.
    pub exclude: Option<&'a NodeId>,
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

/// Why a question was not answered. None of these says that a block is missing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LocateError {
    /// There is no such namespace.
    #[error(transparent)]
    NamespaceUnknown(#[from] NamespaceUnknown),
    /// Hashes of another length than the namespace's.
    #[error(transparent)]
    HashLength(#[from] HashError),
    /// The answer could outgrow a message. Ask for fewer hashes or fewer candidates.
    #[error(
        "{hashes} hashes x {candidates} candidates; at most {MAX_CANDIDATES_PER_ANSWER} fit one answer: ask for fewer"
    )]
    TooManyCandidates {
        /// Hashes asked for.
        hashes: usize,
        /// Candidates wanted of each.
        candidates: usize,
    },
    /// So many regions hold these blocks that naming them outgrows a message. Ask for fewer hashes.
    #[error(
        "the regions that hold these blocks take more than {MAX_OWNER_TABLE_BYTES} bytes to name: ask for fewer hashes at once"
    )]
    TooManyOwners,
}

impl Directory {
    /// Names candidates for blocks. A hint: the reader checks what it reads.
    ///
    /// Order: the asker's host first, then by labels shared, and draining nodes after all others;
    /// equals are spread over askers and blocks. Of several copies on equally near nodes, a second
    /// copy on one node comes after the first copies on all.
    ///
    /// # Errors
    /// [`LocateError`]; a block without an owner is none.
    pub fn locate(&self, query: &LocateQuery<'_>) -> Result<Located, LocateError> {
        let Some(namespace) = self.catalog.namespace(query.namespace) else {
            return Err(NamespaceUnknown {
                name: query.namespace.clone(),
            }
            .into());
        };
        let (got, want) = (query.hashes.hash_len(), namespace.spec.hash_len);
        if got != want {
            return Err(HashError::OtherLength {
                got: got.get(),
                want: want.get(),
            }
            .into());
        }
        let candidates = query.max_candidates.min(MAX_CANDIDATES);
        let hashes = query.hashes.len();
        if hashes * candidates > MAX_CANDIDATES_PER_ANSWER {
            return Err(LocateError::TooManyCandidates { hashes, candidates });
        }
        Answer::new(self, namespace, query).fill(candidates)
    }
}

/// How near an owner is, in comparison order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    draining: bool,
    other_host: bool,
    labels_missing: usize,
}

/// A region, seen by this reader.
#[derive(Debug, Clone, Copy)]
struct Seen {
    rank: Rank,
    node: u32,
    /// Of the node's name: what ties are spread by.
    seed: u64,
    /// Its row in the table of owners, once it is named.
    row: Option<u32>,
}

#[derive(Debug, Clone, Copy)]
struct Candidate {
    owner: Owner,
    rank: Rank,
    /// The n-th copy on its node.
    copy: u32,
    tie: u64,
    node: u32,
}

struct Answer<'a> {
    directory: &'a Directory,
    namespace: &'a Namespace,
    query: &'a LocateQuery<'a>,
    asker: u64,
    /// None for a region that is not offered.
    seen: HashMap<u32, Option<Seen>>,
    table_bytes: usize,
    located: Located,
    any_checksum: bool,
}

impl<'a> Answer<'a> {
    fn new(directory: &'a Directory, namespace: &'a Namespace, query: &'a LocateQuery<'a>) -> Self {
        let asker = spread(query.host_id.as_bytes(), 0);
        let asker = spread(
            query.exclude.map_or(&[], |node| node.as_str().as_bytes()),
            asker,
        );
        Self {
            directory,
            namespace,
            query,
            asker,
            seen: HashMap::new(),
            table_bytes: 0,
            located: Located::default(),
            any_checksum: false,
        }
    }

    fn fill(mut self, max_candidates: usize) -> Result<Located, LocateError> {
        let mut candidates = Vec::new();
        for hash in self.query.hashes.iter() {
            self.collect(hash, &mut candidates);
            if candidates.is_empty() && self.query.mode == LocateMode::Prefix {
                break;
            }
            candidates.truncate(max_candidates);
            for candidate in &candidates {
                self.push(candidate.owner)?;
            }
            self.located.counts.push(candidates.len() as u32);
        }
        if !self.any_checksum {
            self.located.checksums = Vec::new();
        }
        Ok(self.located)
    }

    /// Every owner that may be offered, best first.
    fn collect(&mut self, hash: &[u8], candidates: &mut Vec<Candidate>) {
        candidates.clear();
        let block = spread(hash, self.asker);
        for owner in self.namespace.index.owners(hash) {
            if let Some(seen) = self.see(owner.region) {
                candidates.push(Candidate {
                    owner,
                    rank: seen.rank,
                    copy: 0,
                    tie: mix(block ^ seen.seed),
                    node: seen.node,
                });
            }
        }
        if candidates.len() > 1 {
            order(candidates);
        }
    }

    fn see(&mut self, region: u32) -> Option<Seen> {
        let (directory, query) = (self.directory, self.query);
        match self.seen.entry(region) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(place) => {
                let seen = look(directory, query, region);
                *place.insert(seen)
            }
        }
    }

    fn push(&mut self, owner: Owner) -> Result<(), LocateError> {
        let Some(region) = self.directory.catalog.region(owner.region) else {
            return Ok(());
        };
        let Some(sealed) = region.slots.get(owner.slot) else {
            return Ok(());
        };
        let row = self.row(owner.region)?;
        let checksum = Checksum::to_wire(sealed.checksum);
        self.any_checksum |= checksum != 0;
        self.located.owner_index.push(row);
        self.located.slots.push(owner.slot);
        self.located.generations.push(sealed.generation.0);
        self.located.checksums.push(checksum);
        Ok(())
    }

    /// The region's row in the table of owners, added where it is not there yet.
    fn row(&mut self, handle: u32) -> Result<u32, LocateError> {
        let known = self.seen.get_mut(&handle).and_then(Option::as_mut);
        if let Some(row) = known.as_ref().and_then(|seen| seen.row) {
            return Ok(row);
        }
        let row = self.located.owners.len() as u32;
        if let Some(seen) = known {
            seen.row = Some(row);
        }
        let region = self.directory.catalog.region(handle);
        let node = region.and_then(|region| self.directory.nodes.get(region.node));
        if let (Some(region), Some(node)) = (region, node) {
            self.table_bytes += named_bytes(node, &region.geometry);
            if self.table_bytes > MAX_OWNER_TABLE_BYTES {
                return Err(LocateError::TooManyOwners);
            }
            self.located.owners.push(LocatedOwner {
                node: node.name.clone(),
                incarnation: node.incarnation,
                region: region.id,
                addresses: node.addresses.clone(),
                geometry: region.geometry.clone(),
            });
        }
        Ok(row)
    }
}

/// None for a region that is not offered to this reader.
fn look(directory: &Directory, query: &LocateQuery<'_>, region: u32) -> Option<Seen> {
    let handle = directory.catalog.region(region)?.node;
    let node = directory.nodes.get(handle)?;
    if node.state() == NodeState::Hidden || query.exclude == Some(&node.name) {
        return None;
    }
    let same_host = !query.host_id.is_empty() && node.addresses.host_id == query.host_id;
    Some(Seen {
        rank: Rank {
            draining: node.draining,
            other_host: !same_host,
            labels_missing: usize::MAX - node.labels.matches(query.prefer),
        },
        node: handle,
        seed: spread(node.name.as_str().as_bytes(), 0),
        row: None,
    })
}

fn order(candidates: &mut [Candidate]) {
    let by_node = |a: &Candidate, b: &Candidate| -> Ordering {
        let key = |c: &Candidate| (c.rank, c.tie, c.node, c.owner.region, c.owner.slot);
        key(a).cmp(&key(b))
    };
    candidates.sort_unstable_by(by_node);
    // Copies on one node are neighbours now: same rank, same tie.
    for at in 1..candidates.len() {
        if candidates[at].node == candidates[at - 1].node {
            candidates[at].copy = candidates[at - 1].copy + 1;
        }
    }
    candidates.sort_by_key(|candidate| (candidate.rank, candidate.copy));
}

/// At most what a row takes on the wire: names, addresses, numbers, and 33 bytes a plane.
fn named_bytes(node: &Node, geometry: &Geometry) -> usize {
    const NUMBERS_AND_SOCKETS: usize = 192;
    const PLANE: usize = 36;
    NUMBERS_AND_SOCKETS
        + node.name.as_str().len()
        + node.addresses.shm.as_ref().map_or(0, String::len)
        + node.addresses.host_id.len()
        + geometry.planes().len() * PLANE
}

/// FNV-1a, eight bytes a step: the same everywhere and on every run, so that answers can be tested.
fn spread(bytes: &[u8], seed: u64) -> u64 {
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    let mut state = seed ^ 0xcbf2_9ce4_8422_2325;
    for chunk in bytes.chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        state = (state ^ u64::from_le_bytes(word)).wrapping_mul(PRIME);
    }
    mix(state)
}

/// The finalizer of SplitMix64: every bit of the input moves every bit of the output.
fn mix(state: u64) -> u64 {
    let state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ (state >> 31)
}
