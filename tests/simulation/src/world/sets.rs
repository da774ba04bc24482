//! Sets of tensors that engines publish, withdraw and overwrite; their agents announce them to every coordinator, again
//! and again, over calls that are lost, repeated and overtake each other. The coordinator's half is the real machine
//! of sources. They have randomness of their own.

use std::sync::Arc;

use kvferry_coordinator::sources::{
    AnnounceError, Announced, Announcer, Bounds, PublishError, Published, Said, Sources,
};
use kvferry_proto::{
    ChunkRun, ChunkRuns, Chunks, Labels, NodeId, RegionId, SourceId, SourceIdentity, SourceName,
    Tensor, TensorTable, pb,
};

use super::{Act, Event, Pid, Process, World, books::Book, tensors::Which};
use crate::{
    invariants::sources_are_true,
    names::{Names, WEIGHTS, number},
    promise::Promise,
    queue::{MS, Micros, SECOND},
    random::Random,
};

/// Between two things that happen to sets in a world, on average half of it.
const PACE: Micros = 600 * MS;
/// How often an agent announces all it publishes to one coordinator.
const ANNOUNCE_EVERY: Micros = 2 * SECOND;
/// How often a coordinator looks which nodes are there.
pub(super) const SETS_TICK: Micros = 250 * MS;
/// Tables of tensors that each source has been published with.
const TABLES: u64 = 2;
/// Bytes of a tensor: most lie in two chunks.
const TENSOR_BYTES: u64 = 40;
/// More than any table has chunks.
const CHUNKS: u64 = 64;

/// What there is to be published, and the books.
#[derive(Debug)]
pub(crate) struct Sets {
    random: Random,
    kinds: Vec<Kind>,
    /// By coordinator.
    pub(crate) books: Vec<Book>,
}

#[derive(Debug)]
struct Kind {
    identity: SourceIdentity,
    tables: Vec<Arc<TensorTable>>,
}

/// One set of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Set {
    pub(crate) publication: u64,
    table: usize,
    pub(crate) said: Said,
}

/// What an agent says.
#[derive(Debug, Clone)]
pub(crate) enum Say {
    /// All it publishes.
    All(Vec<(usize, Set)>),
    /// One of them, in full.
    One(usize, Set),
}

impl Sets {
    pub(super) fn is_empty(&self) -> bool {
        self.kinds.is_empty()
    }

    pub(super) fn new(seed: u64, kinds: u64, coordinators: usize, names: &mut Names) -> Self {
        let sets = Self {
            random: Random::of(seed, 16),
            kinds: (0..kinds).map(|number| kind(number, names)).collect(),
            books: (0..coordinators).map(|_| Book::default()).collect(),
        };
        for (at, kind) in sets.kinds.iter().enumerate() {
            for (table, tensors) in kind.tables.iter().enumerate() {
                let (source, hash_len) = (kind.identity.id(), names.spec(WEIGHTS).hash_len);
                let Ok(chunks) = Chunks::new(source, 0, tensors.digest(), hash_len) else {
                    unreachable!("sixteen bytes name a chunk");
                };
                let which = Which { kind: at, table };
                for chunk in 0..tensors.chunks() {
                    names.name_chunk(chunk_of(which, chunk), chunks.hash(chunk));
                }
            }
        }
        sets
    }

    /// One of them, with one of its tables.
    pub(super) fn pick(&self, random: &mut Random) -> Which {
        Which {
            kind: random.below(self.kinds.len() as u64) as usize,
            table: random.below(TABLES) as usize,
        }
    }

    pub(crate) fn table(&self, which: Which) -> &Arc<TensorTable> {
        &self.kinds[which.kind].tables[which.table]
    }

    /// The block that a chunk is.
    pub(crate) fn chunk(&self, which: Which, chunk: u32) -> u64 {
        number(WEIGHTS, chunk_of(which, chunk))
    }

    pub(crate) fn id(&self, kind: usize) -> SourceId {
        self.kinds[kind].identity.id()
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = SourceId> + '_ {
        self.kinds.iter().map(|kind| kind.identity.id())
    }

    fn announced(&self, kind: usize, set: Set) -> Announced {
        let table = &self.kinds[kind].tables[set.table];
        Announced {
            source: self.id(kind),
            rank: 0,
            publication: set.publication,
            digest: table.digest(),
            said: set.said,
            runs: runs(table.chunks()),
        }
    }
}

fn chunk_of(which: Which, chunk: u32) -> u64 {
    (which.kind as u64 * TABLES + which.table as u64) * CHUNKS + u64::from(chunk)
}

fn kind(number: u64, names: &Names) -> Kind {
    let Ok(name) = SourceName::new(&format!("model-{number}")) else {
        unreachable!("names are in order");
    };
    let spec = names.spec(WEIGHTS);
    let namespace = spec.name.clone();
    let identity = SourceIdentity::new(namespace, name, "main", 1, Labels::default(), &[]);
    let tables = (1..=TABLES).map(|table| {
        let tensor = |n: u64| pb::TensorDescriptor {
            name: format!("t{n}"),
            dtype: "U8".into(),
            shape: vec![TENSOR_BYTES],
            offset: TENSOR_BYTES * n,
            bytes: TENSOR_BYTES,
        };
        let tensors: Result<Vec<_>, _> = (0..=2 * table)
            .map(|n| Tensor::try_from(tensor(n)))
            .collect();
        let (bytes, chunks) = (spec.layout.block_bytes(), 1 + 2 * table as u32);
        let table = tensors
            .ok()
            .and_then(|t| TensorTable::new(bytes, chunks, t).ok());
        match table {
            Some(table) => Arc::new(table),
            None => unreachable!("a table of a few tensors"),
        }
    });
    match identity {
        Ok(identity) => Kind {
            tables: tables.collect(),
            identity,
        },
        Err(error) => unreachable!("an identity: {error}"),
    }
}

fn runs(chunks: u32) -> ChunkRuns {
    let run = ChunkRun {
        region: RegionId(1),
        first_slot: 0,
        slots: chunks,
    };
    match ChunkRuns::new([run]) {
        Ok(runs) => runs,
        Err(error) => unreachable!("one run: {error}"),
    }
}

pub(super) fn machine() -> Sources {
    Sources::new(Bounds::default())
}

impl World {
    /// An engine publishes, completes, overwrites or withdraws a set, or an operator removes one.
    pub(super) fn sets(&mut self) {
        if self.is_quiet() || self.sets.kinds.is_empty() {
            return;
        }
        let wait = self.sets.random.below(PACE);
        self.queue.at(self.now + wait, Event::Sets);
        let random = &mut self.sets.random;
        let kind = random.below(self.sets.kinds.len() as u64) as usize;
        let pid = random.below(self.processes.len().max(1) as u64) as usize;
        let coordinator = random.below(self.coordinators.len() as u64) as usize;
        let (what, table) = (random.below(12), random.below(TABLES) as usize);
        if what == 0 {
            return self.remove_set(coordinator, kind);
        }
        let Some(mut process) = self.processes.get_mut(pid).and_then(Option::take) else {
            return;
        };
        let publication = process.number();
        let known = process.sets.get(&kind).copied();
        let set = match (what, known) {
            (1, Some(_)) => None,
            (2, Some(set)) => Some(Set {
                said: Said::Rewritten,
                ..set
            }),
            (_, Some(set)) => Some(Set {
                said: Said::Ready,
                ..set
            }),
            (_, None) => Some(Set {
                publication,
                table,
                said: Said::Initialising,
            }),
        };
        match set {
            Some(set) => process.sets.insert(kind, set),
            None => process.sets.remove(&kind),
        };
        process.spoken = true;
        self.announce_now(&process);
        self.processes[pid] = Some(process);
    }

    fn announce_now(&mut self, process: &Process) {
        for session in 0..process.sessions.len() {
            let again = false;
            self.later(process.pid, 0, Act::Announce { session, again });
        }
    }

    /// Everything, to one coordinator.
    pub(super) fn announce(&mut self, process: &mut Process, session: usize, again: bool) {
        if again {
            let again = Act::Announce { session, again };
            self.later(process.pid, ANNOUNCE_EVERY, again);
        }
        if process.spoken && process.sessions[session].machine.is_live() {
            let all = process.sets.iter().map(|(kind, set)| (*kind, *set));
            let all = Say::All(all.collect());
            self.say_sets(process, session, &all);
        }
    }

    fn say_sets(&mut self, process: &mut Process, coordinator: usize, say: &Say) {
        let who = Announcer {
            node: process.name.clone(),
            incarnation: process.incarnation,
            number: process.number(),
        };
        let quiet = self.is_quiet();
        let (low, high) = self.conditions.delay;
        let random = &mut self.sets.random;
        let copies = match (
            random.permille(self.conditions.loss),
            random.permille(self.conditions.duplicates),
        ) {
            _ if quiet => 1,
            (true, _) => 0,
            (false, true) => 2,
            (false, false) => 1,
        };
        for _ in 0..copies {
            let way = random.within(low, high);
            let arrives = Event::SetsSaid {
                coordinator,
                pid: process.pid,
                who: Box::new(who.clone()),
                say: Box::new(say.clone()),
            };
            self.queue.at(self.now + way, arrives);
        }
    }

    /// That arrives, unless nobody listens.
    pub(super) fn sets_said(&mut self, coordinator: usize, pid: Pid, who: &Announcer, say: Say) {
        let Some(&(node, _)) = self.identities.get(pid) else {
            return;
        };
        let blocked = self
            .blocked_either(node, self.end_of(coordinator))
            .is_some();
        let here = &mut self.coordinators[coordinator];
        let local = here.local(self.now);
        let stands = here.paused_until > self.now;
        let (Some(directory), false) = (&here.directory, blocked || stands) else {
            return;
        };
        let presence = directory.presence(&who.node);
        let (named, full) = match say {
            Say::All(all) => (all, false),
            Say::One(kind, set) => (vec![(kind, set)], true),
        };
        let mut workers: Vec<_> = named
            .iter()
            .map(|(kind, set)| self.sets.announced(*kind, *set))
            .collect();
        let sources = &mut here.sources;
        let answer = match (full, named.first()) {
            (true, Some((kind, set))) => {
                let known = &self.sets.kinds[*kind];
                let identity = known.identity.clone();
                let table = TensorTable::clone(&known.tables[set.table]);
                let worker = workers.remove(0);
                match sources.publish(local, who, presence, identity, worker, table) {
                    Ok(Published::Taken) => Ok((Vec::new(), Vec::new())),
                    Ok(Published::Removed) => Ok((Vec::new(), vec![0])),
                    Err(PublishError::Announce(error)) => Err(error),
                    Err(error) => {
                        let detail = format!("process {pid} publishes a set: {error}");
                        return self.fail(Promise::HonestIsHeard, detail);
                    }
                }
            }
            _ => {
                let answer = sources.announce(local, who, presence, workers);
                answer.map(|answer| (answer.unknown, answer.removed))
            }
        };
        let (unknown, removed) = match answer {
            Ok(answer) => answer,
            Err(AnnounceError::NoSession { .. } | AnnounceError::Late { .. }) => return,
            Err(error) => {
                let detail = format!("process {pid} announces its sets: {error}");
                return self.fail(Promise::HonestIsHeard, detail);
            }
        };
        self.stats.sets_said += 1;
        let of = |indices: &[u32]| -> Vec<(usize, Set)> {
            let sets = indices.iter().filter_map(|at| named.get(*at as usize));
            sets.copied().collect()
        };
        let (unknown, removed) = (of(&unknown), of(&removed));
        let there = presence.map(|there| there.incarnation);
        let book = &mut self.sets.books[coordinator];
        let broken = match there == Some(who.incarnation) {
            false => Some(format!(
                "incarnation {} is heard, {there:?} is there",
                who.incarnation
            )),
            true => book.hear(who, full, &named, &unknown, &removed, |kind| {
                self.sets.kinds[kind].identity.id()
            }),
        };
        self.check(broken.map(|detail| (Promise::SourcesAreTrue, detail)));
        let way = self.sets.random.within(20, self.conditions.delay.1);
        let told = Act::SetsTold {
            session: coordinator,
            unknown,
            removed,
        };
        self.later(pid, way, told);
    }

    /// What a coordinator does not know is published in full; what an operator removed is withdrawn.
    pub(super) fn sets_told(
        &mut self,
        process: &mut Process,
        session: usize,
        unknown: &[(usize, Set)],
        removed: &[(usize, Set)],
    ) {
        for (kind, set) in removed {
            let same = |known: &Set| known.publication == set.publication;
            if process.sets.get(kind).is_some_and(same) {
                process.sets.remove(kind);
                self.announce_now(process);
            }
        }
        for (kind, _) in unknown {
            if let Some(set) = process.sets.get(kind).copied() {
                self.say_sets(process, session, &Say::One(*kind, set));
            }
        }
    }

    fn remove_set(&mut self, coordinator: usize, kind: usize) {
        let now = self.now;
        let here = &mut self.coordinators[coordinator];
        let local = here.local(now);
        let source = self.sets.id(kind);
        // Where there is none, nothing is removed.
        if here.directory.is_some() && here.sources.remove(local, source, None).is_ok() {
            self.sets.books[coordinator].remove(source);
        }
    }

    /// A coordinator looks which nodes are still there, as the service does it.
    pub(super) fn sets_tick(&mut self, coordinator: usize) {
        let next = self.now + SETS_TICK;
        self.queue.at(next, Event::SetsTick(coordinator));
        let now = self.now;
        let here = &mut self.coordinators[coordinator];
        let local = here.local(now);
        let Some(directory) = here.directory.as_ref().filter(|_| here.paused_until <= now) else {
            return;
        };
        let speakers: Vec<NodeId> = here.sources.speakers().cloned().collect();
        for node in speakers {
            here.sources
                .observe(local, &node, directory.presence(&node));
        }
        here.sources.tick(local);
        here.sources.take_changes();
        self.sets.books[coordinator].look(|node, incarnation| {
            let there = directory.presence(node);
            there.is_some_and(|there| there.incarnation == incarnation)
        });
        let broken = sources_are_true::after_tick(self, coordinator);
        self.check(broken);
    }
}
