//! What readers and operators are told.

use std::{ops::Bound, sync::Arc, time::Duration};

use kvferry_proto::{
    ChunkRuns, Incarnation, NamespaceName, NodeId, SourceError, SourceId, SourceIdentity,
    TableDigest, TensorTable,
};

use super::{Key, Source, Sources, Worker, WorkerState, bounds::MAX_PAGE_BYTES};

/// There is no such source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SourceUnknown {
    /// The id asked for.
    pub source: SourceId,
}

impl std::fmt::Display for SourceUnknown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let source = self.source;
        write!(
            f,
            "there is no source {source}: it was never published here, or is gone for more than a minute"
        )
    }
}
impl std::error::Error for SourceUnknown {}

/// Why a rank's tensors are not to be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GetError {
    /// No such source.
    #[error(transparent)]
    Unknown(#[from] SourceUnknown),
    /// A rank the source does not have.
    #[error(transparent)]
    Rank(#[from] SourceError),
    /// Nobody has the rank, or that set of its tensors: wait for a worker.
    #[error("no worker of rank {rank} has published {what}; {gone} are gone")]
    Nobody {
        /// The rank.
        rank: u32,
        /// What was asked for.
        what: &'static str,
        /// Workers of the rank that are remembered and gone.
        gone: usize,
    },
}

/// How a source stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceState {
    /// Some rank has no worker that is ready, and some worker is on its way.
    Initialising,
    /// Every rank has a worker that is ready.
    Ready,
    /// Its workers are stale, all of them or all of some rank.
    Stale,
    /// Its workers are gone.
    Gone,
}

/// A source, light.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Its id.
    pub source: SourceId,
    /// What it is.
    pub identity: Arc<SourceIdentity>,
    /// How it stands.
    pub state: SourceState,
    /// Ranks with a worker that is ready.
    pub ranks_ready: u32,
    /// Workers on their way.
    pub initialising: u32,
    /// Workers to pull from.
    pub ready: u32,
    /// Workers that may not be there.
    pub stale: u32,
    /// Workers that ended.
    pub gone: u32,
    /// Tensors of the ranks that have a worker, each rank counted once.
    pub tensors: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// A worker, as it is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerInfo {
    /// Its rank.
    pub rank: u32,
    /// Its node.
    pub node: NodeId,
    /// The node's lifetime.
    pub incarnation: Incarnation,
    /// How it stands.
    pub state: WorkerState,
    /// Of its tensors.
    pub digest: TableDigest,
    /// Where its chunks lie.
    pub runs: ChunkRuns,
    /// For how long it stands like that.
    pub in_state: Duration,
    /// Readers that reported it lately.
    pub reporters: usize,
}

/// A rank, heavy.
#[derive(Debug, Clone)]
pub struct Got {
    /// What the source is.
    pub identity: Arc<SourceIdentity>,
    /// All workers of the rank.
    pub workers: Vec<WorkerInfo>,
    /// The tensors.
    pub table: Arc<TensorTable>,
}

/// Which sources are listed.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Of this namespace only.
    pub namespace: Option<NamespaceName>,
    /// With a name that begins so.
    pub name_prefix: String,
}

/// Some sources, and where to go on.
#[derive(Debug, Clone, Default)]
pub struct Page {
    /// In order of ids.
    pub sources: Vec<Summary>,
    /// The last id of the page, where more may follow.
    pub next: Option<SourceId>,
}

impl Sources {
    /// Sources after an id, at most `limit`.
    #[must_use]
    pub fn list(&self, filter: &Filter, after: Option<SourceId>, limit: usize) -> Page {
        self.list_where(filter, after, limit, |_| true)
    }

    /// As [`list`](Self::list), of those namespaces only that `wanted` takes.
    #[must_use]
    pub fn list_where(
        &self,
        filter: &Filter,
        after: Option<SourceId>,
        limit: usize,
        wanted: impl Fn(&NamespaceName) -> bool,
    ) -> Page {
        let mut page = Page::default();
        let mut bytes = 0;
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        for (id, source) in self.sources.range((from, Bound::Unbounded)) {
            let identity = &source.identity;
            let named = filter.namespace.as_ref();
            if named.is_some_and(|name| *name != identity.namespace)
                || !identity.name.as_str().starts_with(&filter.name_prefix)
                || !wanted(&identity.namespace)
            {
                continue;
            }
            bytes += identity.encoded_bytes();
            let full = page.sources.len() >= limit || bytes > MAX_PAGE_BYTES;
            // One always goes, so that every page gets on.
            if full && let Some(last) = page.sources.last() {
                page.next = Some(last.source);
                return page;
            }
            page.sources.push(source.summary(*id));
        }
        page
    }

    /// The namespace of a source.
    #[must_use]
    pub fn namespace_of(&self, source: SourceId) -> Option<&NamespaceName> {
        Some(&self.sources.get(&source)?.identity.namespace)
    }

    /// One rank's workers and tensors: those of `digest`, or those most workers are ready with.
    ///
    /// # Errors
    /// [`GetError`].
    pub fn get(
        &self,
        now: Duration,
        source: SourceId,
        rank: u32,
        digest: Option<TableDigest>,
    ) -> Result<Got, GetError> {
        let there = self.sources.get(&source).ok_or(SourceUnknown { source })?;
        there.identity.check_rank(rank)?;
        let workers: Vec<_> = there
            .workers
            .iter()
            .filter(|(key, _)| key.rank == rank)
            .map(|(key, worker)| worker.info(now, key))
            .collect();
        let table = match digest {
            Some(digest) => there.tables.get(&(rank, digest)),
            None => there
                .tables
                .range((rank, TableDigest::MIN)..=(rank, TableDigest::MAX))
                // Of equals the first, so that all readers choose alike.
                .min_by_key(|((_, digest), _)| {
                    let have = workers.iter().filter(|w| w.digest == *digest);
                    let ready = have.clone().filter(|w| w.state == WorkerState::Ready);
                    std::cmp::Reverse((ready.count(), have.count()))
                })
                .map(|(_, table)| table),
        };
        let Some(table) = table else {
            let gone = |w: &&WorkerInfo| matches!(w.state, WorkerState::Gone(_));
            return Err(GetError::Nobody {
                rank,
                what: match digest {
                    Some(_) => "this set of tensors",
                    None => "tensors",
                },
                gone: workers.iter().filter(gone).count(),
            });
        };
        Ok(Got {
            identity: Arc::clone(&there.identity),
            table: Arc::clone(table),
            workers,
        })
    }

    /// How a source and its workers stand.
    ///
    /// # Errors
    /// [`SourceUnknown`].
    pub fn status(
        &self,
        now: Duration,
        source: SourceId,
    ) -> Result<(Summary, Vec<WorkerInfo>), SourceUnknown> {
        let there = self.sources.get(&source).ok_or(SourceUnknown { source })?;
        let workers = there.workers.iter();
        Ok((
            there.summary(source),
            workers.map(|(key, worker)| worker.info(now, key)).collect(),
        ))
    }
}

impl Source {
    fn summary(&self, source: SourceId) -> Summary {
        let mut summary = Summary {
            source,
            identity: Arc::clone(&self.identity),
            state: SourceState::Gone,
            ranks_ready: 0,
            initialising: 0,
            ready: 0,
            stale: 0,
            gone: 0,
            tensors: 0,
            bytes: 0,
        };
        let (mut last_ready, mut last_rank) = (None, None);
        // In order of ranks.
        for (key, worker) in &self.workers {
            match worker.state {
                WorkerState::Initialising => summary.initialising += 1,
                WorkerState::Ready => {
                    summary.ready += 1;
                    summary.ranks_ready += u32::from(last_ready != Some(key.rank));
                    last_ready = Some(key.rank);
                }
                WorkerState::Stale(_) => summary.stale += 1,
                WorkerState::Gone(_) => summary.gone += 1,
            }
            let table = self.tables.get(&(key.rank, worker.digest));
            if let Some(table) = table.filter(|_| !worker.is_gone() && last_rank != Some(key.rank))
            {
                summary.tensors += table.tensors().len() as u64;
                summary.bytes = summary.bytes.saturating_add(table.tensor_bytes());
                last_rank = Some(key.rank);
            }
        }
        summary.state = if summary.ranks_ready == self.identity.world_size() {
            SourceState::Ready
        } else if summary.initialising > 0 || (summary.ready > 0 && summary.stale == 0) {
            SourceState::Initialising
        } else if summary.stale > 0 {
            SourceState::Stale
        } else {
            SourceState::Gone
        };
        summary
    }
}

impl Worker {
    fn info(&self, now: Duration, key: &Key) -> WorkerInfo {
        WorkerInfo {
            rank: key.rank,
            node: key.node.clone(),
            incarnation: self.incarnation,
            state: self.state,
            digest: self.digest,
            runs: self.runs.clone(),
            in_state: now.saturating_sub(self.since),
            reporters: self.reporters(now),
        }
    }
}
