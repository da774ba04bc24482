//! What agents say of themselves, and whether they are still there.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use kvferry_proto::{
    ChunkRuns, Incarnation, NodeId, SourceError, SourceId, SourceIdentity, TableDigest,
    TensorError, TensorTable,
};

use super::{
    BoundReached, GoneCause, Key, Said, Source, Sources, Speaker, WorkerState, worker::Worker,
};
use crate::{
    directory::Presence,
    sabotage::{self, Bug},
};

/// Who speaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announcer {
    /// The node.
    pub node: NodeId,
    /// Its lifetime.
    pub incarnation: Incarnation,
    /// Grows with everything it says here.
    pub number: u64,
}

/// One worker, as its agent announces it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announced {
    /// Whose.
    pub source: SourceId,
    /// Which rank.
    pub rank: u32,
    /// Grows with every publication of an incarnation.
    pub publication: u64,
    /// Of its tensors.
    pub digest: TableDigest,
    /// What it says of itself.
    pub said: Said,
    /// Where its chunks lie.
    pub runs: ChunkRuns,
}

/// What an announcing agent is told. Indices into its workers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Announcement {
    /// To be published in full.
    pub unknown: Vec<u32>,
    /// Removed by an operator: to be withdrawn.
    pub removed: Vec<u32>,
}

/// What a publishing agent is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Published {
    /// It is in.
    Taken,
    /// An operator removed this very publication: withdraw it.
    Removed,
}

/// Why an announcement changed nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AnnounceError {
    /// The node has no session, or another incarnation has: open one, then announce again.
    #[error("incarnation {incarnation} of node {node} has no session: announce once it is open")]
    NoSession {
        /// The node.
        node: NodeId,
        /// The lifetime that spoke.
        incarnation: Incarnation,
    },
    /// Something later was said before: nothing is to be done.
    #[error("announcement {got} came after {known}: it is void")]
    Late {
        /// The last one taken in.
        known: u64,
        /// This one.
        got: u64,
    },
    /// One worker twice.
    #[error("source {id}, rank {rank} is announced twice")]
    Twice {
        /// The source.
        id: SourceId,
        /// The rank.
        rank: u32,
    },
    /// More than a node may have.
    #[error(transparent)]
    Bound(#[from] BoundReached),
}

/// Why a worker was not taken in. Nothing changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// See [`AnnounceError`].
    #[error(transparent)]
    Announce(#[from] AnnounceError),
    /// A rank the source does not have.
    #[error(transparent)]
    Rank(#[from] SourceError),
    /// The tensors are not those of the digest.
    #[error("the tensors have the digest {got}, not {want}")]
    Digest {
        /// As announced.
        want: TableDigest,
        /// Of what came.
        got: TableDigest,
    },
    /// The runs are not as many chunks as the set has.
    #[error(transparent)]
    Runs(#[from] TensorError),
    /// No room.
    #[error(transparent)]
    Bound(#[from] BoundReached),
}

impl Sources {
    /// Whether a node is there now. What its workers are follows from that at once.
    pub fn observe(&mut self, now: Duration, node: &NodeId, presence: Option<Presence>) {
        let Some(speaker) = self.speakers.get_mut(node) else {
            return;
        };
        if presence.is_none() && sabotage::is(Bug::SourcesOutliveNodes) {
            return;
        }
        if presence.is_some() && speaker.presence == presence {
            return;
        }
        speaker.presence = presence;
        let workers: Vec<_> = speaker.workers.iter().copied().collect();
        for (source, rank) in workers {
            let key = Key {
                rank,
                node: node.clone(),
            };
            let Some(worker) = self.worker_mut(source, &key) else {
                continue;
            };
            match presence {
                None => self.end(now, source, &key, GoneCause::Node),
                Some(there) if there.incarnation != worker.incarnation => {
                    self.end(now, source, &key, GoneCause::Fenced);
                }
                Some(there) => {
                    worker.attach(there.attached);
                    self.settle(now, source, &key);
                }
            }
        }
        let speaks = |there: Presence| {
            self.speakers
                .get(node)
                .is_some_and(|speaker| speaker.incarnation == there.incarnation)
        };
        if !presence.is_some_and(speaks) {
            self.speakers.remove(node);
            // What was kept because it might speak.
            self.forget_by(now);
        }
    }

    /// Everything a node publishes: what is not named is gone.
    ///
    /// # Errors
    /// [`AnnounceError`]; nothing changed then.
    pub fn announce(
        &mut self,
        now: Duration,
        who: &Announcer,
        presence: Option<Presence>,
        workers: Vec<Announced>,
    ) -> Result<Announcement, AnnounceError> {
        if workers.len() > self.bounds.workers_per_node {
            return Err(self.too_many_of_a_node().into());
        }
        let mut named = BTreeSet::new();
        for worker in &workers {
            if !named.insert((worker.source, worker.rank)) {
                return Err(AnnounceError::Twice {
                    id: worker.source,
                    rank: worker.rank,
                });
            }
        }
        self.admit(now, who, presence)?;
        let mut answer = Announcement::default();
        for (index, worker) in (0..).zip(workers) {
            let key = Key {
                rank: worker.rank,
                node: who.node.clone(),
            };
            if self.is_removed(who, &key, &worker) {
                answer.removed.push(index);
            } else if !self.take_known(now, who, &key, worker) {
                answer.unknown.push(index);
            }
        }
        let said = self.speakers.get(&who.node).map(|s| &s.workers);
        let unnamed: Vec<_> = said.into_iter().flatten().copied().collect();
        for (source, rank) in unnamed.into_iter().filter(|one| !named.contains(one)) {
            let node = who.node.clone();
            self.end(now, source, &Key { rank, node }, GoneCause::Withdrawn);
        }
        Ok(answer)
    }

    /// One worker in full.
    ///
    /// # Errors
    /// [`PublishError`]; the worker is not in then.
    pub fn publish(
        &mut self,
        now: Duration,
        who: &Announcer,
        presence: Option<Presence>,
        identity: SourceIdentity,
        worker: Announced,
        table: TensorTable,
    ) -> Result<Published, PublishError> {
        identity.check_rank(worker.rank)?;
        if table.digest() != worker.digest {
            return Err(PublishError::Digest {
                want: worker.digest,
                got: table.digest(),
            });
        }
        worker.runs.covers(table.chunks())?;
        self.admit(now, who, presence)?;
        let key = Key {
            rank: worker.rank,
            node: who.node.clone(),
        };
        if self.is_removed(who, &key, &worker) {
            return Ok(Published::Removed);
        }
        self.make_room(who, &worker, &table)?;
        let source = self.sources.entry(worker.source).or_insert_with(|| Source {
            identity: Arc::new(identity),
            workers: BTreeMap::new(),
            tables: BTreeMap::new(),
        });
        let bytes = table.encoded_bytes();
        if let std::collections::btree_map::Entry::Vacant(place) =
            source.tables.entry((worker.rank, worker.digest))
        {
            place.insert(Arc::new(table));
            self.table_bytes += bytes;
        }
        self.take_known(now, who, &key, worker);
        Ok(Published::Taken)
    }

    /// Lets a node's present incarnation speak, if it has nothing later to say.
    fn admit(
        &mut self,
        now: Duration,
        who: &Announcer,
        presence: Option<Presence>,
    ) -> Result<(), AnnounceError> {
        let no_session = || AnnounceError::NoSession {
            node: who.node.clone(),
            incarnation: who.incarnation,
        };
        let there = presence.filter(|there| there.attached && there.incarnation == who.incarnation);
        if there.is_none() {
            return Err(no_session());
        }
        if let Some(speaker) = self.speakers.get(&who.node)
            && speaker.incarnation == who.incarnation
            && speaker.number >= who.number
        {
            return Err(AnnounceError::Late {
                known: speaker.number,
                got: who.number,
            });
        }
        self.observe(now, &who.node, presence);
        let speaker = self.speakers.entry(who.node.clone()).or_insert(Speaker {
            incarnation: who.incarnation,
            number: 0,
            workers: BTreeSet::new(),
            presence,
        });
        speaker.number = who.number;
        Ok(())
    }

    fn is_removed(&self, who: &Announcer, key: &Key, worker: &Announced) -> bool {
        let source = self.sources.get(&worker.source);
        source
            .and_then(|source| source.workers.get(key))
            .is_some_and(|known| {
                known.was_removed()
                    && !sabotage::is(Bug::RemovedWorkersReturn)
                    && known.incarnation == who.incarnation
                    && known.publication >= worker.publication
            })
    }

    /// Takes in a worker whose source and tensors are known; false where they are not, or where there
    /// is no room: publishing it in full then says so.
    fn take_known(&mut self, now: Duration, who: &Announcer, key: &Key, said: Announced) -> bool {
        let max = self.bounds.workers_per_source;
        let Some(source) = self.sources.get_mut(&said.source) else {
            return false;
        };
        let Some(table) = source.tables.get(&(said.rank, said.digest)) else {
            return false;
        };
        if said.runs.covers(table.chunks()).is_err() {
            return false;
        }
        let known = source.workers.get(key);
        let same = known.is_some_and(|known| {
            known.incarnation == who.incarnation
                && known.publication == said.publication
                && known.digest == said.digest
                && !known.is_gone()
        });
        if known.is_none() && source.workers.len() >= max {
            return false;
        }
        let before = known.map(|known| (known.digest, known.state));
        if !same {
            let new = Worker::new(
                now,
                who.incarnation,
                said.publication,
                said.digest,
                said.runs.clone(),
            );
            if let Some(before) = source.workers.insert(key.clone(), new) {
                *self.workers.of(before.state) -= 1;
            }
            self.workers.initialising += 1;
        }
        if let Some(worker) = source.workers.get_mut(key) {
            worker.say(said.said, said.runs);
        }
        if let Some(speaker) = self.speakers.get_mut(&who.node) {
            speaker.workers.insert((said.source, said.rank));
        }
        if !same && before.is_none_or(|(_, state)| state != WorkerState::Initialising) {
            self.changes.push(super::Change {
                source: said.source,
                rank: key.rank,
                node: key.node.clone(),
                state: WorkerState::Initialising,
            });
        }
        self.settle(now, said.source, key);
        if let Some((digest, _)) = before {
            self.drop_unused(said.source, key.rank, digest);
        }
        true
    }

    /// Is there room for a worker published in full? What is gone makes way.
    fn make_room(
        &mut self,
        who: &Announcer,
        worker: &Announced,
        table: &TensorTable,
    ) -> Result<(), BoundReached> {
        if self.room_for(who, worker, table).is_err() {
            self.forget(|_| true);
        }
        self.room_for(who, worker, table)
    }

    fn room_for(
        &self,
        who: &Announcer,
        worker: &Announced,
        table: &TensorTable,
    ) -> Result<(), BoundReached> {
        let full = |what, limit| Err(BoundReached { what, limit });
        let spoken = self.speakers.get(&who.node).map(|s| &s.workers);
        if let Some(said) = spoken
            && said.len() >= self.bounds.workers_per_node
            && !said.contains(&(worker.source, worker.rank))
        {
            return Err(self.too_many_of_a_node());
        }
        let Some(source) = self.sources.get(&worker.source) else {
            if self.sources.len() >= self.bounds.sources {
                return full("sources", self.bounds.sources);
            }
            return self.room_for_table(table);
        };
        let key = Key {
            rank: worker.rank,
            node: who.node.clone(),
        };
        if !source.workers.contains_key(&key)
            && source.workers.len() >= self.bounds.workers_per_source
        {
            return full("workers of a source", self.bounds.workers_per_source);
        }
        match source.tables.contains_key(&(worker.rank, worker.digest)) {
            true => Ok(()),
            false => self.room_for_table(table),
        }
    }

    fn room_for_table(&self, table: &TensorTable) -> Result<(), BoundReached> {
        if self.table_bytes + table.encoded_bytes() > self.bounds.table_bytes {
            return Err(BoundReached {
                what: "bytes of tensor descriptors",
                limit: self.bounds.table_bytes,
            });
        }
        Ok(())
    }

    fn too_many_of_a_node(&self) -> BoundReached {
        BoundReached {
            what: "workers of a node",
            limit: self.bounds.workers_per_node,
        }
    }
}
