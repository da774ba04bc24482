//! What this agent publishes: sets of tensors in its regions. The truth that coordinators are kept in
//! step with.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use kvferry_proto::{
    BlockHash, ChunkRuns, Chunks, RegionId, Slot, SourceId, SourceIdentity, Summing, TensorTable,
};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};

use crate::region::Store;

/// Sets an agent publishes: as many as a coordinator takes of a node.
pub(super) const MAX_PUBLISHED: usize = 256;

/// Pulls of tensors under way, those between two rounds included: each holds a table of tensors.
pub(super) const MAX_PULLING: usize = 64;
/// Publications being received: each may hold some 64 MiB until it is complete.
pub(super) const MAX_PUBLISHING: usize = 8;

/// Which set: one of a source and rank at a time.
pub(super) type Name = (SourceId, u32);

/// One set of tensors.
#[derive(Debug, Clone)]
pub(super) struct Set {
    pub(super) source: SourceId,
    pub(super) identity: Arc<SourceIdentity>,
    pub(super) rank: u32,
    pub(super) table: Arc<TensorTable>,
    pub(super) runs: ChunkRuns,
    pub(super) names: Chunks,
    /// Its engine said that it is complete.
    pub(super) ready: bool,
    /// Its regions end with it.
    pub(super) owns_regions: bool,
    /// Grows with every publication of this agent.
    pub(super) publication: u64,
    /// The delta that tells of its last chunk.
    pub(super) position: u64,
    /// Of its slots' generation words when its chunks were sealed.
    pub(super) words: Option<u64>,
}

/// How a set stands in this agent's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    Initialising,
    Ready,
    /// It was ready, and some chunk is not what it was.
    Rewritten,
    /// A region of it has gone.
    Lost,
}

impl Set {
    pub(super) fn name(&self) -> Name {
        (self.source, self.rank)
    }

    /// Its chunks, run by run.
    pub(super) fn blocks(&self) -> impl Iterator<Item = (RegionId, Vec<(Slot, BlockHash)>)> + '_ {
        let mut chunk = 0;
        self.runs.as_slice().iter().map(move |run| {
            let first = chunk;
            chunk += run.slots;
            let slots = (run.first_slot..).map(Slot);
            let hashes = (first..chunk).map(|chunk| self.names.hash(chunk));
            (run.region, slots.zip(hashes).collect())
        })
    }

    /// Where it lies; a region as often as there are runs in it.
    pub(super) fn regions(&self) -> impl Iterator<Item = RegionId> + '_ {
        self.runs.as_slice().iter().map(|run| run.region)
    }

    /// Has a region of it gone?
    fn is_lost(&self, store: &Store) -> bool {
        self.regions().any(|region| store.region(region).is_none())
    }

    /// A fingerprint of its slots' generation words; None where a region of it has gone. A generation
    /// never repeats: while it is the same, nothing was written.
    pub(super) fn fingerprint(&self, store: &Store) -> Option<u64> {
        let mut words = Summing::default();
        for run in self.runs.as_slice() {
            let region = store.region(run.region)?;
            for slot in (run.first_slot..).take(run.slots as usize) {
                words.update(&region.generations.load(slot)?.to_le_bytes());
            }
        }
        Some(words.digest())
    }

    /// Looks at the memory.
    pub(super) fn standing(&self, store: &Store) -> Standing {
        let words = self.fingerprint(store);
        if words.is_none() {
            return Standing::Lost;
        }
        if !self.ready {
            return Standing::Initialising;
        }
        if words == self.words {
            return Standing::Ready;
        }
        // Its engine may have sealed the same chunks anew.
        match self.is_whole(store) {
            None => Standing::Lost,
            Some(false) => Standing::Rewritten,
            Some(true) => Standing::Ready,
        }
    }

    /// Does every slot hold its chunk? None where a region has gone.
    pub(super) fn is_whole(&self, store: &Store) -> Option<bool> {
        for (region, blocks) in self.blocks() {
            if store.hold(region, &blocks)?.contains(&false) {
                return Some(false);
            }
        }
        Some(true)
    }
}

/// Why a set was not entered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum EnterError {
    /// Another one has its name.
    #[error(
        "source {id}, rank {rank} is published here with other tensors or other memory: withdraw it first"
    )]
    Exists { id: SourceId, rank: u32 },
    /// No room.
    #[error(
        "this agent publishes {MAX_PUBLISHED} sets of tensors, as many as may be: withdraw some"
    )]
    Full,
}

/// All sets of this agent.
#[derive(Debug)]
pub(crate) struct Registry {
    sets: Mutex<BTreeMap<Name, Set>>,
    /// Counts changes.
    revision: watch::Sender<u64>,
    /// Per coordinator: the revision it was told of in full.
    confirmed: Vec<watch::Sender<u64>>,
    /// Numbers publications, and what is said to coordinators.
    numbers: AtomicU64,
    pub(super) pulling: Arc<Semaphore>,
    pub(super) publishing: Semaphore,
}

impl Registry {
    pub(crate) fn new(coordinators: usize) -> Self {
        Self {
            sets: Mutex::default(),
            revision: watch::Sender::new(0),
            confirmed: (0..coordinators).map(|_| watch::Sender::new(0)).collect(),
            numbers: AtomicU64::new(1),
            pulling: Arc::new(Semaphore::new(MAX_PULLING)),
            publishing: Semaphore::new(MAX_PUBLISHING),
        }
    }

    /// A number greater than all before.
    pub(super) fn next_number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// Could the set be entered? Asked before its chunks are sealed.
    pub(super) fn check(&self, set: &Set) -> Result<(), EnterError> {
        admit(&self.sets.lock(), set)
    }

    /// Enters a set, or says more of one that is there. Gives the revision that has it.
    pub(super) fn enter(&self, mut set: Set) -> Result<u64, EnterError> {
        let mut sets = self.sets.lock();
        admit(&sets, &set)?;
        set.publication = match sets.get(&set.name()) {
            Some(known) => known.publication,
            None => self.next_number(),
        };
        sets.insert(set.name(), set);
        Ok(self.changed())
    }

    /// Takes a set out; `publication`: only that one.
    pub(super) fn take(&self, name: Name, publication: Option<u64>) -> Option<Set> {
        let mut sets = self.sets.lock();
        let known = sets.get(&name)?;
        if publication.is_some_and(|wanted| wanted != known.publication) {
            return None;
        }
        let set = sets.remove(&name);
        self.changed();
        set
    }

    /// Takes out the sets whose memory has gone: their names are free.
    pub(super) fn reap(&self, store: &Store) {
        let mut sets = self.sets.lock();
        let before = sets.len();
        sets.retain(|_, set| {
            let lost = set.is_lost(store);
            if lost {
                tracing::info!(source = %set.source, rank = set.rank, "its memory has gone: withdrawn");
            }
            !lost
        });
        if sets.len() < before {
            self.changed();
        }
    }

    /// All sets, and the revision that has them.
    pub(super) fn all(&self) -> (Vec<Set>, u64) {
        let sets = self.sets.lock();
        (sets.values().cloned().collect(), *self.revision.borrow())
    }

    pub(super) fn watch(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    pub(super) fn confirm(&self, coordinator: usize, revision: u64) {
        if let Some(confirmed) = self.confirmed.get(coordinator) {
            confirmed.send_if_modified(|known| {
                let more = *known < revision;
                *known = revision.max(*known);
                more
            });
        }
    }

    /// Waits until every coordinator was told of a revision.
    pub(super) async fn announced(&self, revision: u64) {
        for confirmed in &self.confirmed {
            let mut confirmed = confirmed.subscribe();
            // The sender lives as long as this.
            let _ = confirmed.wait_for(|known| *known >= revision).await;
        }
    }

    /// Under the lock of the sets.
    fn changed(&self) -> u64 {
        let mut revision = 0;
        self.revision.send_modify(|count| {
            *count += 1;
            revision = *count;
        });
        revision
    }
}

fn admit(sets: &BTreeMap<Name, Set>, set: &Set) -> Result<(), EnterError> {
    match sets.get(&set.name()) {
        Some(known) if known.table.digest() != set.table.digest() || known.runs != set.runs => {
            Err(EnterError::Exists {
                id: set.source,
                rank: set.rank,
            })
        }
        None if sets.len() >= MAX_PUBLISHED => Err(EnterError::Full),
        _ => Ok(()),
    }
}
