//! What was found out, as the engine is told.

use std::{
    sync::Arc,
    task::{Context, Waker},
};

use kvferry_proto::{Geometry, RegionId};
use smallvec::SmallVec;
use tokio::task::{Id, JoinError};

use super::{Answer, Asked, Run};
use crate::{
    coordinators::{Located, OwnerRegion},
    transfer::{
        command::{BlockIndex, OpId, SourceKey},
        driver::{
            Connect, Landing, Locate, LocateError,
            flight::{self, Settled, Words},
        },
        event::{Candidate, ConnectFailure, Event, ReadFailure, SourceHint},
        metrics::Phase,
    },
    transport::{ConnectError, Link},
};

impl<L: Locate, C: Connect, D: Landing> Run<L, C, D> {
    /// Everything else that has happened, so that the engine sees it before it hands out work.
    pub(super) fn take_what_is_ready(&mut self) {
        let mut context = Context::from_waker(Waker::noop());
        while let std::task::Poll::Ready(settled) = self.flights.poll(&mut context) {
            self.settled(settled);
        }
        while let Some(answer) = self.tasks.try_join_next_with_id() {
            self.answered(answer);
        }
    }

    pub(super) fn settled(&mut self, settled: Settled) {
        let Settled {
            op,
            source,
            words,
            blocks,
            since,
            result,
        } = settled;
        self.report.wire_ends(self.now());
        let phase = match (&words, &blocks) {
            (Some(_), None) => Phase::Validate,
            _ => Phase::Wire,
        };
        self.observe(phase, since);
        let event = match (&result, &words) {
            (Err(error), _) => {
                let failure = flight::failure(error);
                match failure {
                    ReadFailure::Local => self.report.failed_here(error),
                    _ => self.report.failed(source, error),
                }
                Event::ReadFailed { op, failure }
            }
            (Ok(()), None) => Event::ReadDone { op },
            (Ok(()), Some(words)) => match blocks {
                None => load(op, words),
                Some(blocks) => {
                    self.keep_words(&blocks, words);
                    Event::ReadDone { op }
                }
            },
        };
        self.scratch.extend(words.map(|words| words.scratch));
        self.tell(event);
    }

    /// Words that came with the data, until the engine asks for them.
    fn keep_words(&mut self, blocks: &[BlockIndex], words: &Words) {
        for (block, &offset) in blocks.iter().zip(&words.offsets) {
            if let Some(book) = self.blocks.get_mut(*block as usize) {
                // Where it cannot be loaded it is read anew.
                book.word = words.scratch.load_word(offset).ok();
            }
        }
    }

    pub(super) fn answered(&mut self, joined: Result<(Id, Answer), JoinError>) {
        let (id, answer) = match joined {
            Ok((id, answer)) => (id, Some(answer)),
            // It panicked: whoever waits for it must not wait for ever.
            Err(error) => (error.id(), None),
        };
        let Some(asked) = self.asked.remove(&id) else {
            return;
        };
        match asked {
            Asked::Locate(_, since, _) => self.observe(Phase::Locate, since),
            Asked::Connect(_, since) => self.observe(Phase::Connect, since),
            Asked::Verify(_) => {}
        }
        match (asked, answer) {
            (Asked::Locate(op, _, blocks), Some(Answer::Located(result))) => {
                self.located(op, &blocks, result);
            }
            (Asked::Locate(op, ..), _) => self.tell(Event::LocateFailed {
                op,
                retryable: false,
            }),
            (Asked::Connect(source, _), Some(Answer::Connected(Ok(link)))) => {
                self.connected(source, link);
            }
            (Asked::Connect(source, _), Some(Answer::Connected(Err(error)))) => {
                self.report.failed(source, &error);
                let failure = match error {
                    _ if error.is_denial() => ConnectFailure::Denied,
                    ConnectError::Unreachable { .. } => ConnectFailure::Unreachable,
                    ConnectError::WrongIncarnation { .. } => ConnectFailure::WrongIncarnation,
                    ConnectError::Refused { .. }
                    | ConnectError::UserRefused { .. }
                    | ConnectError::NoPath { .. }
                    | ConnectError::TicketRefused { .. }
                    | ConnectError::NoTicket { .. }
                    | ConnectError::Insecure { .. } => ConnectFailure::Refused,
                };
                self.tell(Event::ConnectFailed { source, failure });
            }
            (Asked::Connect(source, _), _) => self.tell(Event::ConnectFailed {
                source,
                failure: ConnectFailure::Refused,
            }),
            (Asked::Verify(_), Some(Answer::Verified(verdicts))) => {
                for (block, ok) in verdicts {
                    self.tell(Event::Verified { block, ok });
                }
            }
            (Asked::Verify(blocks), _) => {
                for block in blocks {
                    self.tell(Event::Verified { block, ok: false });
                }
            }
        }
    }

    pub(super) fn connected(&mut self, source: SourceKey, link: Arc<dyn Link>) {
        self.report.connected(self.now());
        let capabilities = link.capabilities();
        self.links.insert(source, link);
        self.tell(Event::Connected {
            source,
            capabilities,
        });
    }

    fn located(&mut self, op: OpId, blocks: &[BlockIndex], result: Result<Located, LocateError>) {
        self.report.located(self.now(), result.as_ref().err());
        let located = match result {
            Ok(located) => located,
            Err(error) => {
                let retryable = matches!(error, LocateError::Unavailable { .. });
                return self.tell(Event::LocateFailed { op, retryable });
            }
        };
        let owners: Vec<_> = located
            .owners
            .iter()
            .map(|owner| self.learn(owner))
            .collect();
        let hints = owners
            .iter()
            .filter_map(|&(source, ..)| {
                let peer = self.peers.get(source.0 as usize)?;
                Some(SourceHint {
                    source,
                    suspect: self.parts.connect.is_suspect(peer),
                    distance: self.parts.connect.distance(peer),
                })
            })
            .collect();
        let landing = Arc::clone(&self.parts.landing);
        let candidates = (0..located.len())
            .map(|place| {
                let part = blocks.get(place).map_or(0, |block| landing.part(*block));
                let known = located.candidates(place).iter().filter_map(|place| {
                    let (source, region, spans) = owners.get(place.owner)?;
                    Some(Candidate {
                        source: *source,
                        region: *region,
                        slot: place.slot,
                        generation: place.generation,
                        checksum: place.checksum,
                        // Where the owner has no such part the plan says what is wrong.
                        spans: spans.get(part).copied().unwrap_or(1),
                    })
                });
                known.collect()
            })
            .collect();
        self.tell(Event::Located {
            op,
            hints,
            candidates,
        });
    }

    /// Gives an owner its number, and keeps what reading from it needs.
    /// Says also in how many spans each part of a block lies.
    fn learn(&mut self, owner: &OwnerRegion) -> (SourceKey, RegionId, SmallVec<[u32; 1]>) {
        let (peer, region) = (owner.peer.clone(), owner.region);
        let next = SourceKey(u32::try_from(self.peers.len()).unwrap_or(u32::MAX));
        let name = (peer.node.clone(), peer.incarnation);
        let source = *self.keys.entry(name).or_insert(next);
        match self.peers.get_mut(source.0 as usize) {
            // Its addresses may be newer.
            Some(known) => *known = peer,
            None => self.peers.push(peer),
        }
        let whole = &owner.geometry;
        let geometries: Vec<_> = match self.parts.landing.parts() {
            [] => vec![whole.clone()],
            // An owner whose blocks are too small for them has none; the plan says so.
            parts => parts
                .iter()
                .map_while(|it| whole.part(it.clone()))
                .collect(),
        };
        // At most MAX_PLANES.
        let spans = |part: &Geometry| u32::try_from(part.planes().len()).unwrap_or(u32::MAX);
        let spans = geometries.iter().map(spans).collect();
        self.geometries.insert((source, region), geometries);
        (source, region, spans)
    }
}

fn load(op: OpId, words: &Words) -> Event {
    let loaded: Result<Vec<_>, _> = words
        .offsets
        .iter()
        .map(|&offset| words.scratch.load_word(offset))
        .collect();
    match loaded {
        Ok(words) => Event::GenerationsDone { op, words },
        Err(_) => Event::ReadFailed {
            op,
            failure: ReadFailure::Local,
        },
    }
}
