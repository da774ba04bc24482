//! Who is offered to a reader, and in which order.

use std::{
    cmp::Ordering,
    hash::{BuildHasherDefault, Hasher},
    ops::ControlFlow,
    sync::atomic::{AtomicU64, Ordering as AtomicOrdering},
};

use hashbrown::{HashMap, hash_map::Entry};
use kvferry_proto::HashError;
use parking_lot::MutexGuard;

use super::{
    Answer, Directory, LocateMode, LocateQuery, Located, MAX_CANDIDATES, MAX_CANDIDATES_PER_ANSWER,
    NamespaceUnknown, OwnerRow,
    bounds::MAX_OWNER_TABLE_BYTES,
    index::{Copies, Held},
    load,
    location_table::LocationTable,
    namespace::Namespace,
    node::NodeState,
};
use crate::sabotage::{self, Bug};

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
    /// Naming the locations of these blocks outgrows a message. Ask for fewer hashes.
    #[error(
        "the locations of these blocks take more than {MAX_OWNER_TABLE_BYTES} bytes to name: ask for fewer hashes at once"
    )]
    TooManyLocations,
}

impl Directory {
    /// Names candidates for blocks. A hint: the reader checks what it reads.
    ///
    /// Order: the asker's host first, then by labels shared, and draining nodes after all others;
    /// equals are spread over askers, blocks and draws, and who serves much is first less often. Of
    /// several copies on equally near nodes, a second
    /// copy on one node comes after the first copies on all.
    ///
    /// # Errors
    /// [`LocateError`]; a block without an owner is none.
    pub fn locate(&self, query: &LocateQuery<'_>) -> Result<Located, LocateError> {
        let mut located = Located::default();
        self.locate_into(query, &mut located)?;
        Ok(located)
    }

    /// As [`locate`](Self::locate), into an answer of the caller's own. What an error leaves in it
    /// is of no use.
    ///
    /// # Errors
    /// [`LocateError`]; a block without an owner is none.
    pub fn locate_into(
        &self,
        query: &LocateQuery<'_>,
        answer: &mut impl Answer,
    ) -> Result<(), LocateError> {
        let Some(namespace) = self.catalog.namespace(query.namespace) else {
            return Err(NamespaceUnknown {
                name: query.namespace.clone(),
            }
            .into());
        };
        let namespace = match self.catalog.namespaces().next() {
            Some(first) if sabotage::is(Bug::HashesCrossNamespaces) => first,
            _ => namespace,
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
        Search::new(self, query, answer).fill(namespace, candidates)
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
    /// How much less often than others it comes first among equals.
    penalty: u32,
    /// Its row in the table of owners, once it is named.
    row: Option<u32>,
}

#[derive(Debug, Clone, Copy)]
struct Candidate {
    held: Held,
    rank: Rank,
    /// The n-th copy on its node.
    copy: u32,
    /// What equals are ordered by.
    tie: u64,
    node: u32,
}

/// Region handles are small numbers of our own: one multiplication spreads them.
#[derive(Debug, Default, Clone, Copy)]
struct HandleHasher(u64);

impl Hasher for HandleHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u32((*byte).into()));
    }
    fn write_u32(&mut self, handle: u32) {
        self.0 = (self.0 ^ u64::from(handle)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

/// Regions remembered apart: a few dozen nodes' worth, in four cache lines.
const NAMED: usize = 32;
/// No region's handle: there are fewer.
const NO_REGION: u32 = u32::MAX;

struct Search<'a, A> {
    directory: &'a Directory,
    query: &'a LocateQuery<'a>,
    asker: u64,
    /// None for a region that is not offered.
    seen: HashMap<u32, Option<Seen>, BuildHasherDefault<HandleHasher>>,
    /// Regions named already, and their rows: each where its handle's last bits say. Nearly every candidate
    /// is of one of these.
    named: [(u32, u32); NAMED],
    rows: u32,
    table_bytes: usize,
    answer: &'a mut A,
}

impl<'a, A: Answer> Search<'a, A> {
    fn new(directory: &'a Directory, query: &'a LocateQuery<'a>, answer: &'a mut A) -> Self {
        let asker = spread(query.host_id.as_bytes(), query.draw);
        let asker = spread(
            query.exclude.map_or(&[], |node| node.as_str().as_bytes()),
            asker,
        );
        Self {
            directory,
            query,
            asker,
            seen: HashMap::default(),
            named: [(NO_REGION, 0); NAMED],
            rows: 0,
            table_bytes: 0,
            answer,
        }
    }

    fn fill(mut self, namespace: &Namespace, max_candidates: usize) -> Result<(), LocateError> {
        let mut elsewhere = self.query.locations.then(|| Elsewhere {
            uses: &self.directory.catalog.uses,
            namespace,
            table: None,
            rows: std::collections::HashMap::new(),
            table_bytes: 0,
        });
        let mut several = Vec::new();
        let hashes = self.query.hashes;
        let mut number = 0;
        let prefix = self.query.mode == LocateMode::Prefix;
        let flow = namespace
            .index
            .look_up(self.query.hashes.as_bytes(), |copies| {
                let only = copies.only();
                number += 1;
                if let Some(held) = only
                    && let Some(row) = self.named(held.owner.region)
                    && max_candidates > 0
                {
                    self.candidate(row, held);
                    self.answer.block(1);
                    return ControlFlow::Continue(());
                }
                let hash = hashes.get(number - 1).unwrap_or(&[]);
                let count = match only {
                    Some(held) => self.one(held, max_candidates),
                    None => self.best(hash, copies, &mut several, max_candidates),
                };
                let count = match (count, &mut elsewhere) {
                    (Ok(None), Some(elsewhere)) => elsewhere.find(hash, self.answer),
                    (count, _) => count,
                };
                match count {
                    Ok(None) if prefix => ControlFlow::Break(Ok(())),
                    Ok(count) => {
                        self.answer.block(count.unwrap_or(0));
                        ControlFlow::Continue(())
                    }
                    Err(error) => ControlFlow::Break(Err(error)),
                }
            });
        flow.break_value().unwrap_or(Ok(()))
    }

    /// A block of one copy; None where it isn't offered.
    fn one(&mut self, held: Held, max_candidates: usize) -> Result<Option<u32>, LocateError> {
        if self.see(held.owner.region).is_none() {
            return Ok(None);
        }
        if max_candidates == 0 {
            return Ok(Some(0));
        }
        self.push(held)?;
        Ok(Some(1))
    }

    /// A block of none or several copies: every one that may be offered, best first.
    fn best(
        &mut self,
        hash: &[u8],
        copies: Copies<'_>,
        candidates: &mut Vec<Candidate>,
        max_candidates: usize,
    ) -> Result<Option<u32>, LocateError> {
        candidates.clear();
        let mut block = None;
        for held in copies {
            if let Some(seen) = self.see(held.owner.region) {
                let block = *block.get_or_insert_with(|| spread(hash, self.asker));
                candidates.push(Candidate {
                    held,
                    rank: seen.rank,
                    copy: 0,
                    tie: load::order(mix(block ^ seen.seed), seen.penalty),
                    node: seen.node,
                });
            }
        }
        if candidates.is_empty() {
            return Ok(None);
        }
        if candidates.len() > 1 {
            order(candidates);
        }
        candidates.truncate(max_candidates);
        for candidate in &*candidates {
            self.push(candidate.held)?;
        }
        Ok(Some(candidates.len() as u32))
    }

    /// The row of a region that is named already; None also where it is not known at once.
    fn named(&self, region: u32) -> Option<u32> {
        let (named, row) = self.named[region as usize % NAMED];
        (named == region).then_some(row)
    }

    fn see(&mut self, region: u32) -> Option<Seen> {
        let (directory, query) = (self.directory, self.query);
        match self.seen.entry(region) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(place) => *place.insert(look(directory, query, region)),
        }
    }

    fn push(&mut self, held: Held) -> Result<(), LocateError> {
        let row = match self.named(held.owner.region) {
            Some(row) => row,
            None => self.row(held.owner.region)?,
        };
        self.candidate(row, held);
        Ok(())
    }

    fn candidate(&mut self, row: u32, held: Held) {
        let (slot, generation) = (held.owner.slot, held.generation);
        self.answer.candidate(row, slot, generation, held.checksum);
    }

    /// The region's row in the table of owners, added where it is not there yet.
    fn row(&mut self, handle: u32) -> Result<u32, LocateError> {
        let known = self.see(handle).and_then(|seen| seen.row);
        let row = known.unwrap_or(self.rows);
        self.named[handle as usize % NAMED] = (handle, row);
        if known.is_some() {
            return Ok(row);
        }
        self.rows += 1;
        if let Some(Some(seen)) = self.seen.get_mut(&handle) {
            seen.row = Some(row);
        }
        let region = self.directory.catalog.region(handle);
        let node = region.and_then(|region| self.directory.nodes.get(region.node));
        if let (Some(region), Some(node)) = (region, node) {
            self.table_bytes += region.row.len();
            if self.table_bytes > MAX_OWNER_TABLE_BYTES {
                return Err(LocateError::TooManyOwners);
            }
            self.answer.owner(OwnerRow {
                node: &node.name,
                incarnation: node.incarnation,
                region: region.id,
                addresses: &node.addresses,
                geometry: &region.geometry,
                encoded: &region.row,
            });
        }
        Ok(row)
    }
}

/// Where blocks lie that nobody offers.
struct Elsewhere<'a> {
    uses: &'a AtomicU64,
    namespace: &'a Namespace,
    /// Locked with the first block that nobody offers.
    table: Option<MutexGuard<'a, LocationTable>>,
    /// Rows of the answer's table, by the number of the location.
    rows: std::collections::HashMap<u32, u32>,
    table_bytes: usize,
}

impl Elsewhere<'_> {
    /// Some where the block has a location: then it has no candidates, and is there all the same.
    fn find(&mut self, hash: &[u8], answer: &mut impl Answer) -> Result<Option<u32>, LocateError> {
        let namespace = self.namespace;
        let table = (self.table).get_or_insert_with(|| namespace.locations.lock());
        let Some((name, location)) = table.get(hash) else {
            return Ok(None);
        };
        let next = self.rows.len() as u32;
        let row = *self.rows.entry(name).or_insert(next);
        if row == next {
            self.table_bytes += location.len();
            if self.table_bytes > MAX_OWNER_TABLE_BYTES {
                return Err(LocateError::TooManyLocations);
            }
            answer.location(location);
        }
        answer.located(row);
        table.touch(hash, self.uses.fetch_add(1, AtomicOrdering::Relaxed));
        Ok(Some(0))
    }
}

/// None for a region that is not offered to this reader.
fn look(directory: &Directory, query: &LocateQuery<'_>, region: u32) -> Option<Seen> {
    let region = directory.catalog.region(region)?;
    if region.gone {
        return None;
    }
    let handle = region.node;
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
        penalty: node.penalty.get(),
        row: None,
    })
}

fn order(candidates: &mut [Candidate]) {
    let by_node = |a: &Candidate, b: &Candidate| -> Ordering {
        let place = |c: &Candidate| (c.held.owner.region, c.held.owner.slot);
        let key = |c: &Candidate| (c.rank, c.tie, c.node, place(c));
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
