//! The machine against a model that keeps plain facts and computes every state from them when asked:
//! after every operation both know the same workers in the same states, hand out the same tensors, and
//! agents were told the same.

use std::collections::{BTreeMap, BTreeSet};

use proptest::{collection::vec, prelude::*};

use super::*;
use crate::sources::{GoneCause as Gone, StaleCause as Stale, WorkerState as State};

const NODES: [&str; 3] = ["a", "b", "c"];
const NAMES: [&str; 2] = ["m", "n"];
const RANKS: u32 = 2;

#[derive(Debug, Clone)]
struct Worker {
    name: usize,
    rank: u32,
    publication: u64,
    tensors: u64,
    said: Said,
}

#[derive(Debug, Clone)]
enum Operation {
    /// A node's standing becomes this: (incarnation, attached), or not there.
    Presence(usize, Option<(u64, bool)>),
    /// By an incarnation that may be void; `behind`: with a number that was used.
    Announce {
        node: usize,
        lifetime: u64,
        behind: bool,
        workers: Vec<Worker>,
    },
    Publish {
        node: usize,
        lifetime: u64,
        worker: Worker,
    },
    Report {
        reader: usize,
        name: usize,
        rank: u32,
        node: usize,
        lifetime: u64,
    },
    Remove {
        name: usize,
        node: Option<usize>,
    },
    Wait(u64),
}

fn worker() -> impl Strategy<Value = Worker> {
    let said = prop_oneof![
        1 => Just(Said::Initialising), 3 => Just(Said::Ready), 1 => Just(Said::Rewritten),
    ];
    (
        0..2usize,
        0..RANKS,
        1..4u64,
        prop_oneof![3 => Just(4u64), 1 => Just(6u64)],
        said,
    )
        .prop_map(|(name, rank, publication, tensors, said)| Worker {
            name,
            rank,
            publication,
            tensors,
            said,
        })
}

fn operation() -> impl Strategy<Value = Operation> {
    let lifetime = || prop_oneof![4 => Just(1u64), 1 => Just(2u64)];
    let presence = prop_oneof![
        5 => (lifetime(), prop_oneof![3 => Just(true), 1 => Just(false)]).prop_map(Some),
        1 => Just(None),
    ];
    prop_oneof![
        3 => (0..3usize, presence).prop_map(|(node, there)| Operation::Presence(node, there)),
        4 => (0..3usize, lifetime(), prop::bool::weighted(0.1), vec(worker(), 0..4))
            .prop_map(|(node, lifetime, behind, workers)| Operation::Announce { node, lifetime, behind, workers }),
        6 => (0..3usize, lifetime(), worker())
            .prop_map(|(node, lifetime, worker)| Operation::Publish { node, lifetime, worker }),
        3 => (0..3usize, 0..2usize, 0..RANKS, 0..3usize, lifetime())
            .prop_map(|(reader, name, rank, node, lifetime)| Operation::Report { reader, name, rank, node, lifetime }),
        1 => (0..2usize, proptest::option::of(0..3usize)).prop_map(|(name, node)| Operation::Remove { name, node }),
        2 => prop_oneof![Just(1u64), Just(12), Just(70)].prop_map(Operation::Wait),
    ]
}

/// (name, rank, node)
type Place = (usize, u32, usize);

/// One publication of a worker, and all that happened to it.
#[derive(Debug, Clone)]
struct Fact {
    lifetime: u64,
    publication: u64,
    tensors: u64,
    said: Said,
    reports: Vec<(usize, Duration)>,
    ended: Option<(Gone, Duration)>,
}

#[derive(Debug, Default)]
struct Model {
    now: Duration,
    presence: [Option<(u64, bool)>; 3],
    /// The lifetime that spoke last, while it is there.
    speaks: [Option<u64>; 3],
    facts: BTreeMap<Place, Fact>,
}

impl Model {
    fn state(&self, place: &Place, fact: &Fact) -> State {
        let readers = |(reader, at): &&(usize, Duration)| {
            let last = fact.reports.iter().rev().find(|(other, _)| other == reader);
            last.is_some_and(|(_, last)| last == at) && self.now - *at < REPORT_KEPT
        };
        let readers: BTreeSet<_> = fact.reports.iter().filter(readers).map(|r| r.0).collect();
        match (fact.ended, self.presence[place.2], fact.said) {
            (Some((cause, _)), ..) => State::Gone(cause),
            (None, Some((_, false)) | None, _) => State::Stale(Stale::Session),
            (None, _, Said::Rewritten) => State::Stale(Stale::Rewritten),
            (None, _, Said::Initialising) => State::Initialising,
            (None, _, Said::Ready) if readers.len() >= REPORT_QUORUM => {
                State::Stale(Stale::Readers)
            }
            (None, _, Said::Ready) => State::Ready,
        }
    }

    fn may_speak(&self, node: usize, lifetime: u64) -> bool {
        self.presence[node] == Some((lifetime, true))
    }

    /// Would tensors of that number be known without being sent?
    fn known(&self, name: usize, rank: u32, tensors: u64) -> bool {
        let mut facts = self.facts.iter();
        facts.any(|(place, f)| {
            (place.0, place.1) == (name, rank) && f.tensors == tensors && f.ended.is_none()
        })
    }

    fn removed(&self, place: &Place, lifetime: u64, publication: u64) -> bool {
        self.facts.get(place).is_some_and(|f| {
            matches!(f.ended, Some((Gone::Removed, _)))
                && f.lifetime == lifetime
                && f.publication >= publication
        })
    }

    fn take(&mut self, place: Place, lifetime: u64, worker: &Worker) {
        let same = self.facts.get(&place).filter(|f| {
            f.ended.is_none()
                && (f.lifetime, f.publication, f.tensors)
                    == (lifetime, worker.publication, worker.tensors)
        });
        let mut fact = same.cloned().unwrap_or(Fact {
            lifetime,
            publication: worker.publication,
            tensors: worker.tensors,
            said: Said::Initialising,
            reports: Vec::new(),
            ended: None,
        });
        if worker.said == Said::Ready && fact.said != Said::Ready {
            fact.reports.clear();
        }
        fact.said = worker.said;
        self.facts.insert(place, fact);
    }

    fn end(&mut self, cause: impl Fn(&Place, &Fact) -> Option<Gone>) {
        for (place, fact) in &mut self.facts {
            if let (None, Some(cause)) = (fact.ended, cause(place, fact)) {
                fact.ended = Some((cause, self.now));
            }
        }
    }

    fn forget(&mut self) {
        let (now, speaks) = (self.now, self.speaks);
        self.facts.retain(|place, fact| match fact.ended {
            Some((Gone::Removed, _)) if speaks[place.2] == Some(fact.lifetime) => true,
            Some((_, at)) => now - at < GONE_KEPT,
            None => true,
        });
    }
}

struct Both {
    world: World,
    model: Model,
}

impl Both {
    fn there(&self, node: usize) -> Option<Presence> {
        self.model.presence[node].map(|(lifetime, attached)| Presence {
            incarnation: incarnation(lifetime),
            attached,
        })
    }

    fn apply(&mut self, operation: Operation) -> Result<(), TestCaseError> {
        match operation {
            Operation::Presence(node, there) => {
                self.model.presence[node] = there;
                self.model.end(|place, fact| match there {
                    _ if place.2 != node => None,
                    None => Some(Gone::Node),
                    Some((lifetime, _)) => (lifetime != fact.lifetime).then_some(Gone::Fenced),
                });
                if self.model.speaks[node] != there.map(|(lifetime, _)| lifetime) {
                    self.model.speaks[node] = None;
                }
            }
            Operation::Announce {
                node,
                lifetime,
                behind,
                workers,
            } => {
                self.announce(node, lifetime, behind, &workers)?;
            }
            Operation::Publish {
                node,
                lifetime,
                worker,
            } => self.publish(node, lifetime, &worker)?,
            Operation::Report {
                reader,
                name,
                rank,
                node,
                lifetime,
            } => {
                let report = Report {
                    source: identity(NAMES[name], RANKS).id(),
                    rank,
                    node: super::node(NODES[node]),
                    incarnation: incarnation(lifetime),
                    kind: ReportKind::Stale,
                };
                let reader_node = super::node(NODES[reader]);
                let now = self.model.now;
                let counted = self.world.sources.report(now, &reader_node, &[report]);
                let fact = self.model.facts.get_mut(&(name, rank, node));
                let fact =
                    fact.filter(|f| f.ended.is_none() && f.lifetime == lifetime && reader != node);
                prop_assert_eq!(counted, u32::from(fact.is_some()));
                if let Some(fact) = fact {
                    fact.reports.push((reader, now));
                }
            }
            Operation::Remove { name, node } => {
                let id = identity(NAMES[name], RANKS).id();
                let of = node.map(|node| super::node(NODES[node]));
                let removed = self.world.sources.remove(self.model.now, id, of.as_ref());
                let known = self.model.facts.keys().any(|place| place.0 == name);
                prop_assert_eq!(removed.is_ok(), known);
                self.model.end(|place, _| {
                    let meant = place.0 == name && node.is_none_or(|node| node == place.2);
                    meant.then_some(Gone::Removed)
                });
            }
            Operation::Wait(seconds) => self.model.now += at(seconds),
        }
        // As the shell does it.
        let now = self.model.now;
        let speakers: Vec<_> = self.world.sources.speakers().cloned().collect();
        for speaker in speakers {
            let node = NODES
                .iter()
                .position(|name| *name == speaker.as_str())
                .unwrap();
            let there = self.there(node);
            self.world.sources.observe(now, &speaker, there);
        }
        self.world.sources.tick(now);
        self.model.forget();
        self.compare()
    }

    fn announce(
        &mut self,
        node: usize,
        lifetime: u64,
        behind: bool,
        workers: &[Worker],
    ) -> Result<(), TestCaseError> {
        let mut who = self.world.who(NODES[node], lifetime);
        if behind {
            who.number = 0;
        }
        let presence = self.there(node);
        let said = workers.iter().map(|w| {
            let id = identity(NAMES[w.name], RANKS).id();
            announced(id, w.rank, w.publication, &table(w.tensors), w.said)
        });
        let answer = self
            .world
            .sources
            .announce(self.model.now, &who, presence, said.collect());
        let places: Vec<Place> = workers.iter().map(|w| (w.name, w.rank, node)).collect();
        let distinct: BTreeSet<_> = places.iter().collect();
        let late = behind && self.model.speaks[node] == Some(lifetime);
        if distinct.len() < places.len() || !self.model.may_speak(node, lifetime) || late {
            prop_assert!(answer.is_err());
            return Ok(());
        }
        self.model.speaks[node] = Some(lifetime);
        let mut want = Announcement::default();
        for (index, (place, worker)) in (0..).zip(places.iter().zip(workers)) {
            if self.model.removed(place, lifetime, worker.publication) {
                want.removed.push(index);
            } else if self.model.known(worker.name, worker.rank, worker.tensors) {
                self.model.take(*place, lifetime, worker);
            } else {
                want.unknown.push(index);
            }
        }
        self.model.end(|place, _| {
            (place.2 == node && !places.contains(place)).then_some(Gone::Withdrawn)
        });
        prop_assert_eq!(answer, Ok(want));
        Ok(())
    }

    fn publish(&mut self, node: usize, lifetime: u64, w: &Worker) -> Result<(), TestCaseError> {
        let who = self.world.who(NODES[node], lifetime);
        let presence = self.there(node);
        let identity = identity(NAMES[w.name], RANKS);
        let table = table(w.tensors);
        let worker = announced(identity.id(), w.rank, w.publication, &table, w.said);
        let now = self.model.now;
        let sources = &mut self.world.sources;
        let published = sources.publish(now, &who, presence, identity, worker, table);
        if !self.model.may_speak(node, lifetime) {
            prop_assert!(published.is_err());
            return Ok(());
        }
        self.model.speaks[node] = Some(lifetime);
        let place = (w.name, w.rank, node);
        let removed = self.model.removed(&place, lifetime, w.publication);
        if !removed {
            self.model.take(place, lifetime, w);
        }
        let want = if removed {
            Published::Removed
        } else {
            Published::Taken
        };
        prop_assert_eq!(published, Ok(want));
        Ok(())
    }

    fn compare(&mut self) -> Result<(), TestCaseError> {
        let (sources, model) = (&self.world.sources, &self.model);
        let mut table_bytes = 0;
        for (index, name) in NAMES.iter().enumerate() {
            let id = identity(name, RANKS).id();
            let facts = model.facts.iter().filter(|(place, _)| place.0 == index);
            let want: Vec<_> = facts
                .clone()
                .map(|(place, f)| (place.1, NODES[place.2], f.lifetime, model.state(place, f)))
                .collect();
            let status = sources.status(model.now, id);
            let got: Vec<_> = status
                .iter()
                .flat_map(|(_, workers)| workers)
                .map(|w| (w.rank, w.node.as_str(), w.incarnation.get(), w.state))
                .collect();
            prop_assert_eq!(got, want.clone());
            let ready = |rank| want.iter().any(|w| w.0 == rank && w.3 == State::Ready);
            let ranks_ready = (0..RANKS).filter(|rank| ready(*rank)).count() as u32;
            let listed = sources.list(
                &Filter {
                    name_prefix: (*name).into(),
                    ..Filter::default()
                },
                None,
                9,
            );
            prop_assert_eq!(listed.sources.len(), usize::from(!want.is_empty()));
            for summary in listed.sources {
                prop_assert_eq!(summary.ranks_ready, ranks_ready);
                prop_assert_eq!(summary.state == SourceState::Ready, ranks_ready == RANKS);
            }
            for rank in 0..RANKS {
                for tensors in [4, 6] {
                    let known = model.known(index, rank, tensors);
                    let got = sources.get(model.now, id, rank, Some(table(tensors).digest()));
                    prop_assert_eq!(got.is_ok(), known, "{} {} {}", name, rank, tensors);
                    table_bytes += if known {
                        table(tensors).encoded_bytes()
                    } else {
                        0
                    };
                }
                let any = [4, 6].iter().any(|n| model.known(index, rank, *n));
                prop_assert_eq!(sources.get(model.now, id, rank, None).is_ok(), any);
            }
        }
        prop_assert_eq!(sources.table_bytes, table_bytes);
        let states = model.facts.iter().map(|(place, f)| model.state(place, f));
        let named = model.facts.keys().map(|place| place.0);
        let mut sums = Sums {
            sources: named.collect::<BTreeSet<_>>().len(),
            table_bytes,
            ..Sums::default()
        };
        states.for_each(|state| *sums.of(state) += 1);
        prop_assert_eq!(sources.sums(), sums);
        // What was told of changes is what is shown.
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn the_machine_is_the_model(operations in vec(operation(), 1..60)) {
        agree(&operations)?;
    }
}

fn agree(operations: &[Operation]) -> Result<(), TestCaseError> {
    let mut both = Both {
        world: World::new(),
        model: Model::default(),
    };
    let mut told = BTreeMap::new();
    for operation in operations {
        both.apply(operation.clone())?;
        for change in both.world.sources.take_changes() {
            let place = (change.source, change.rank, change.node);
            // Nothing is told twice.
            prop_assert_ne!(told.insert(place, change.state), Some(change.state));
        }
        for name in NAMES {
            let id = identity(name, RANKS).id();
            let status = both.world.sources.status(both.model.now, id);
            for worker in status.into_iter().flat_map(|(_, workers)| workers) {
                let told = told.get(&(id, worker.rank, worker.node));
                prop_assert_eq!(told, Some(&worker.state));
            }
        }
    }
    Ok(())
}

/// The same, with the operations that a fuzzer chose.
#[cfg(feature = "fuzzing")]
pub(crate) fn fuzz(bytes: &[u8]) {
    if let Err(error) = agree(&crate::fuzz::chosen(&operation(), bytes)) {
        panic!("{error}");
    }
}
