//! A coordinator: the real directory, and a shell that does what the service's does.

use std::collections::{BTreeMap, BTreeSet};

use kvferry_agent::transfer::OpId;
use kvferry_coordinator::{
    answer_locate,
    directory::{
        Bounds, CloseCause, Directory, DirectoryConfig, Effect, Event as DirectoryEvent,
        RemovalCause, SessionId,
    },
    parse,
    sources::Sources,
};
use kvferry_proto::pb::{self, agent_message::Message, coordinator_message::Message as Answer};

use super::{
    Act, Event, Pid, World,
    books::Book,
    copying::Copying,
    deletions::Deleted,
    network::{Down, Up},
    sets, storage,
};
use crate::{
    conditions::{HEARTBEAT, HIDE_AFTER, PURGE_AFTER},
    invariants::{bounds_hold, fenced_is_void, namespaces_are_apart},
    promise::Promise,
    queue::{MS, Micros},
    wishes::Wishes,
};

/// See the module's page.
#[derive(Debug)]
pub(crate) struct Coordinator {
    /// None while it is down.
    pub(crate) directory: Option<Directory>,
    /// Its lifetime.
    pub(crate) epoch: u64,
    pub(crate) paused_until: Micros,
    /// What it has acknowledged to whom in this lifetime, since it last forgot them: what agents may
    /// rely on.
    pub(crate) acknowledged: BTreeMap<Pid, u64>,
    /// Regions that went with their namespace, of nodes that it has not forgotten since.
    pub(crate) deleted: BTreeSet<Deleted>,
    /// Namespaces that were ever deleted in this lifetime.
    pub(crate) deletions: BTreeSet<usize>,
    /// Streams that said hello and have not ended.
    pub(super) sessions: BTreeMap<u64, Pid>,
    started: Micros,
    pub(crate) copying: Copying,
    pub(crate) sources: Sources,
    bounds: Bounds,
}

impl Coordinator {
    pub(super) fn new(epoch: u64, wishes: &Wishes) -> Self {
        let bounds = Bounds {
            locations: wishes.locations,
            watch_log_bytes: wishes.watch_log_bytes,
            ..Bounds::default()
        };
        Self {
            directory: Some(directory(epoch, bounds)),
            epoch,
            paused_until: 0,
            acknowledged: BTreeMap::new(),
            deleted: BTreeSet::new(),
            deletions: BTreeSet::new(),
            sessions: BTreeMap::new(),
            started: 0,
            copying: Copying::default(),
            sources: sets::machine(),
            bounds,
        }
    }

    /// Time as it counts it.
    pub(crate) fn local(&self, now: Micros) -> std::time::Duration {
        std::time::Duration::from_micros(now - self.started)
    }
}

fn directory(epoch: u64, bounds: Bounds) -> Directory {
    Directory::new(DirectoryConfig {
        epoch,
        hide_after: std::time::Duration::from_micros(HIDE_AFTER),
        purge_after: std::time::Duration::from_micros(PURGE_AFTER),
        bounds,
    })
}

impl World {
    /// It loses everything.
    pub(super) fn coordinator_dies(&mut self, coordinator: usize, silent: bool) {
        let dead = &mut self.coordinators[coordinator];
        dead.directory = None;
        dead.acknowledged.clear();
        dead.deleted.clear();
        dead.deletions.clear();
        self.sets.books[coordinator] = Book::default();
        self.storage.books[coordinator] = storage::Book::default();
        dead.copying = Copying::default();
        dead.sources = sets::machine();
        let sessions = std::mem::take(&mut dead.sessions);
        if !silent {
            for (stream, _) in sessions {
                self.send_down(stream, Down::Ended);
            }
        }
    }

    pub(super) fn coordinator_starts(&mut self, coordinator: usize) {
        let now = self.now;
        let started = &mut self.coordinators[coordinator];
        if started.directory.is_none() {
            // Lifetimes of different coordinators are different too, and as far apart as real ones: tokens of claims count on from
            // them.
            started.epoch += 1 << 32;
            started.directory = Some(directory(started.epoch, started.bounds));
            started.started = now;
        }
    }

    /// A message arrives on a stream.
    pub(super) fn coordinator_hears(&mut self, id: u64, message: Up) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        let (coordinator, pid) = (stream.coordinator, stream.pid);
        let lifetime = stream.lifetime;
        let lost = stream.lose_delta && matches!(message, Up::Said(Message::Delta(_)));
        if lost {
            stream.lose_delta = false;
            self.stats.lost_deltas += 1;
            return;
        }
        let here = &self.coordinators[coordinator];
        if here.directory.is_none() || here.epoch != lifetime {
            // Nobody knows this stream any more.
            return self.send_down(id, Down::Ended);
        }
        let session = SessionId(id);
        let event = match message {
            Up::Ended => Ok(DirectoryEvent::SessionEnded { session }),
            Up::Said(Message::Hello(hello)) => {
                self.coordinators[coordinator].sessions.insert(id, pid);
                parse::hello(hello).map(|hello| DirectoryEvent::Hello { session, hello })
            }
            Up::Said(Message::Delta(delta)) => {
                parse::delta(delta).map(|delta| DirectoryEvent::Delta { session, delta })
            }
            Up::Said(Message::Inventory(part)) => {
                parse::inventory(part).map(|part| DirectoryEvent::Inventory { session, part })
            }
            Up::Said(Message::Heartbeat(said)) => Ok(DirectoryEvent::Heartbeat {
                session,
                number: said.number,
                next_delta: parse::next_delta(said.next_delta),
            }),
            Up::Said(Message::Replicated(said)) => {
                return self.replicated(coordinator, session, &said);
            }
            Up::Said(Message::Goodbye(_)) => Ok(DirectoryEvent::Goodbye { session }),
        };
        let ended = matches!(event, Ok(DirectoryEvent::SessionEnded { .. }));
        match event {
            Ok(event) => self.tell(coordinator, Some(pid), event),
            Err(error) => self.fail(
                Promise::HonestIsHeard,
                format!("process {pid} said what cannot be parsed: {error}"),
            ),
        }
        if ended {
            self.coordinators[coordinator].sessions.remove(&id);
            self.copying_ends(coordinator, session);
            self.streams.remove(&id);
        }
    }

    /// Hands the directory an event and carries its effects out.
    pub(super) fn tell(&mut self, coordinator: usize, from: Option<Pid>, event: DirectoryEvent) {
        if let Some(pid) = from {
            self.claims_hear(coordinator, pid, &event);
        }
        let before = from.and_then(|pid| fenced_is_void::before(self, coordinator, pid));
        let now = self.now;
        let here = &mut self.coordinators[coordinator];
        let local = here.local(now);
        let Some(directory) = &mut here.directory else {
            return;
        };
        let effects = directory.handle(local, event);
        if let (Some(pid), Some(before)) = (from, before) {
            fenced_is_void::after(self, coordinator, pid, &before, &effects);
        }
        for effect in effects {
            self.carry_out(coordinator, effect);
        }
        self.wake_routers(coordinator);
    }

    pub(super) fn carry_out(&mut self, coordinator: usize, effect: Effect) {
        let epoch = self.coordinators[coordinator].epoch;
        match effect {
            Effect::Welcome {
                session,
                expect_delta,
                resync,
            } => {
                let welcome = pb::Welcome {
                    epoch,
                    heartbeat_interval_ms: (HEARTBEAT / MS) as u32,
                    hide_after_ms: (HIDE_AFTER / MS) as u32,
                    expect_delta,
                    resync,
                    ticket_keys: Vec::new(),
                };
                self.stats.resyncs += u64::from(resync);
                self.send_down(session.0, Down::Said(Answer::Welcome(welcome)));
            }
            Effect::Ack { session, seq } => {
                let here = &mut self.coordinators[coordinator];
                if let Some(&pid) = here.sessions.get(&session.0) {
                    here.acknowledged.insert(pid, seq);
                }
                self.send_down(session.0, Down::Said(Answer::Ack(pb::Ack { seq })));
            }
            Effect::ResyncRequest {
                session,
                expected,
                got,
            } => {
                self.stats.gaps += 1;
                let broken = bounds_hold::resyncs(&self.stats);
                self.check(broken);
                let request = pb::ResyncRequest {
                    expected_seq: expected,
                    got_seq: got,
                };
                self.send_down(session.0, Down::Said(Answer::Resync(request)));
            }
            Effect::DeclareAgain { session } => {
                let request = pb::ResyncRequest::default();
                self.send_down(session.0, Down::Said(Answer::Resync(request)));
            }
            Effect::HeartbeatAck { session, number } => {
                let ack = pb::HeartbeatAck { number };
                self.send_down(session.0, Down::Said(Answer::HeartbeatAck(ack)));
            }
            effect @ Effect::RegionRefused { .. } => self.region_refused(coordinator, &effect),
            Effect::Surplus { session, copies } => {
                self.stats.surplus += copies.len() as u64;
                let surplus = pb::Surplus {
                    regions: copies.iter().map(|copy| copy.region.0).collect(),
                    slots: copies.iter().map(|copy| copy.slot).collect(),
                    generations: copies.iter().map(|copy| copy.generation).collect(),
                };
                self.send_down(session.0, Down::Said(Answer::Surplus(surplus)));
            }
            Effect::Close { session, cause } => self.close(coordinator, session, &cause),
            Effect::NodeHidden { .. } | Effect::NodeShown { .. } => {}
            Effect::NodeRemoved {
                node,
                incarnation,
                cause,
            } => {
                self.stats.removals += 1;
                self.claims_end(coordinator, &node, incarnation);
                self.note(&[
                    3,
                    incarnation.get(),
                    u64::from(cause == RemovalCause::Fenced),
                ]);
                self.coordinators[coordinator]
                    .deleted
                    .retain(|gone| (&gone.0, gone.1) != (&node, incarnation));
                let processes = &self.processes;
                self.coordinators[coordinator]
                    .acknowledged
                    .retain(|&pid, _| {
                        processes
                            .get(pid)
                            .and_then(Option::as_ref)
                            .is_some_and(|process| {
                                process.name != node || process.incarnation != incarnation
                            })
                    });
            }
        }
    }

    /// As the service does: what is queued is overtaken, and the directory is told that it ended.
    fn close(&mut self, coordinator: usize, session: SessionId, cause: &CloseCause) {
        let down = match cause {
            CloseCause::Fenced { .. } | CloseCause::OldIncarnation { .. } => Down::Fenced,
            CloseCause::Protocol(error) => {
                let detail = format!("a session was closed for a breach of protocol: {error}");
                self.fail(Promise::HonestIsHeard, detail);
                Down::Ended
            }
            _ => Down::Ended,
        };
        self.coordinators[coordinator].sessions.remove(&session.0);
        if let Some(stream) = self.streams.get_mut(&session.0) {
            stream.down.queue.clear();
        }
        self.send_down(session.0, down);
        self.tell(coordinator, None, DirectoryEvent::SessionEnded { session });
        self.copying_ends(coordinator, session);
    }

    /// A question arrives, and is answered from memory.
    pub(super) fn locate(
        &mut self,
        coordinator: usize,
        pid: Pid,
        pull: u64,
        op: OpId,
        request: Box<pb::LocateRequest>,
    ) {
        let Some(node) = self.processes[pid].as_ref().map(|process| process.node) else {
            return;
        };
        let paused = self.coordinators[coordinator].paused_until;
        let paused = (paused > self.now).then_some(paused);
        let end = self.end_of(coordinator);
        if let Some(until) = self.blocked_either(node, end).max(paused) {
            let again = Event::Locate {
                coordinator,
                pid,
                pull,
                op,
                request,
            };
            return self.queue.at(until, again);
        }
        let (namespace, hashes) = (request.namespace.clone(), request.hashes.clone());
        let answer = match &self.coordinators[coordinator].directory {
            // Its port is closed: refused at once, to be tried again.
            None => Err(true),
            Some(directory) => answer_locate(directory, *request)
                .map(Box::new)
                .map_err(|_| false),
        };
        if let (Ok(answer), Some(hashes)) = (&answer, &hashes) {
            let broken = namespaces_are_apart::answered(self, &namespace, hashes, answer);
            self.check(broken);
        }
        self.stats.locates += 1;
        let way = self.way();
        self.later(pid, way, Act::Located { pull, op, answer });
    }
}
