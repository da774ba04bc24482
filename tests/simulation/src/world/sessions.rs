//! What carries out the session machines' commands; stands for the agent's `SessionTask`.

use std::time::Duration;

use kvferry_agent::session::{Command, Event as SessionEvent, LogEntry, inventory_messages};
use kvferry_proto::{
    Generation, RegionId, Slot,
    pb::{self, agent_message::Message, coordinator_message::Message as Answer},
};

use super::{
    Act, Process, World,
    network::{Down, Pipe, Stream, Up},
};
use crate::{
    invariants::{bounds_hold, published_is_found},
    queue::{Micros, SECOND},
    sabotage::Shell,
};

/// Opening a channel takes no longer.
const CONNECT_BOUND: Micros = 5 * SECOND;
/// What the sabotaged inventory's position is late by.
const LATE: Micros = 20_000;

impl World {
    /// Time passed, or the log has something new. False where the process must end.
    pub(super) fn session_tick(&mut self, process: &mut Process, session: usize) -> bool {
        let (_, next) = process.log.bounds();
        let next_delta = next + u64::from(process.log.has_open());
        self.session_event(process, session, SessionEvent::Tick { next_delta })
    }

    fn session_event(
        &mut self,
        process: &mut Process,
        session: usize,
        event: SessionEvent,
    ) -> bool {
        let now = process.local(self.now);
        process.sessions[session].machine.handle(now, event);
        let lives = self.session_obey(process, session);
        let broken = published_is_found::belief(self, process, session);
        self.check(broken);
        self.send_answers(process, session);
        lives
    }

    /// Carries out everything the machine wants. False where it gives up for good.
    pub(super) fn session_obey(&mut self, process: &mut Process, session: usize) -> bool {
        while let Some(command) = process.sessions[session].machine.poll_command() {
            if !self.session_command(process, session, &command) {
                return false;
            }
        }
        if let Some(due) = process.sessions[session].machine.poll_timeout() {
            let at = process.global(due).max(self.now + 1);
            let known = &mut process.sessions[session].timer_at;
            if known.is_none_or(|known| at < known) {
                *known = Some(at);
                self.queue.at(
                    at,
                    super::Event::Process(process.pid, Act::SessionTimer(session)),
                );
            }
        }
        true
    }

    fn session_command(
        &mut self,
        process: &mut Process,
        session: usize,
        command: &Command,
    ) -> bool {
        let now = process.local(self.now);
        match *command {
            Command::Connect => self.session_connect(process, session),
            Command::SendHello { epoch } => {
                let (oldest_delta, next_delta) = process.log.bounds();
                let hello = pb::Hello {
                    node: process.name.to_string(),
                    incarnation: process.incarnation.get(),
                    addresses: Some((&process.addresses).into()),
                    coordinator_epoch: epoch,
                    oldest_delta,
                    next_delta,
                    ..pb::Hello::default()
                };
                self.session_send(process, session, Message::Hello(hello));
            }
            Command::SendDelta(seq) => match process.log.read(seq) {
                LogEntry::Delta(delta) => {
                    self.stats.deltas += 1;
                    self.session_send(process, session, Message::Delta(delta.to_message(seq)));
                }
                LogEntry::Forgotten => {
                    process.sessions[session]
                        .machine
                        .handle(now, SessionEvent::DeltaForgotten);
                }
                LogEntry::UpToDate => {
                    process.sessions[session]
                        .machine
                        .handle(now, SessionEvent::DeltaTakenBack(seq));
                }
            },
            Command::SendInventory => self.send_inventory(process, session),
            Command::SendHeartbeat { number, next_delta } => {
                let heartbeat = Message::Heartbeat(pb::Heartbeat {
                    number,
                    next_delta,
                    reads: Vec::new(),
                    stale_blocks: 0,
                });
                self.session_send(process, session, heartbeat);
            }
            Command::SendGoodbye => {
                self.session_send(process, session, Message::Goodbye(pb::Goodbye {}));
                self.session_close(process, session);
            }
            Command::Disconnect => self.session_close(process, session),
            Command::GiveUp => {
                self.stats.superseded += 1;
                self.session_close(process, session);
                return false;
            }
        }
        true
    }

    fn session_connect(&mut self, process: &mut Process, session: usize) {
        process.sessions[session].attempt += 1;
        let attempt = process.sessions[session].attempt;
        let end = self.end_of(session);
        let way = self.way() + self.way();
        let down = self.coordinators[session].directory.is_none();
        let paused = self.coordinators[session].paused_until > self.now;
        let blocked = self.blocked_either(process.node, end).is_some();
        // A closed port refuses; a host that is stopped or cut off says nothing.
        let wait = match blocked || paused {
            true => CONNECT_BOUND,
            false => way,
        };
        let act = Act::Connected {
            session,
            attempt,
            ok: !(down || paused || blocked),
        };
        self.later(process.pid, wait, act);
    }

    pub(super) fn session_connected(
        &mut self,
        process: &mut Process,
        session: usize,
        attempt: u64,
        ok: bool,
    ) -> bool {
        if process.sessions[session].attempt != attempt || process.leaving {
            return true;
        }
        if !ok || self.coordinators[session].directory.is_none() {
            return self.session_event(process, session, SessionEvent::Disconnected);
        }
        let stream = self.open_stream(Stream {
            pid: process.pid,
            node: process.node,
            session,
            coordinator: session,
            lifetime: self.coordinators[session].epoch,
            up: Pipe::default(),
            down: Pipe::default(),
            lose_delta: false,
        });
        process.sessions[session].stream = Some(stream);
        self.session_event(process, session, SessionEvent::Connected)
    }

    pub(super) fn session_send(&mut self, process: &Process, session: usize, message: Message) {
        if let Some(stream) = process.sessions[session].stream {
            self.send_up(stream, Up::Said(message));
            if let Some(stream) = self.streams.get(&stream) {
                let waiting = stream.up.queue.iter().map(|(_, up)| up);
                let broken = bounds_hold::session_queue(waiting);
                self.check(broken);
            }
        }
    }

    fn session_close(&mut self, process: &mut Process, session: usize) {
        process.sessions[session].attempt += 1;
        // Another stream knows nothing of these orders.
        process.sessions[session].answers.clear();
        if let Some(stream) = process.sessions[session].stream.take() {
            self.send_up(stream, Up::Ended);
        }
    }

    fn send_inventory(&mut self, process: &mut Process, session: usize) {
        let log = std::sync::Arc::clone(&process.log);
        let (inventory, seq) = process.store.inventory(|| log.seal_position());
        let parts = inventory_messages(&inventory, seq);
        self.stats.inventories += 1;
        if self.sabotaged(Shell::InventoryPositionLate) {
            process.sessions[session].late = Some(parts);
            if let Some(stream) = process.sessions[session].stream {
                self.later(process.pid, LATE, Act::LateInventory { session, stream });
            }
            return;
        }
        self.inventory_out(process, session, parts, seq);
    }

    fn inventory_out(
        &mut self,
        process: &mut Process,
        session: usize,
        parts: Vec<pb::Inventory>,
        seq: u64,
    ) {
        for part in parts {
            self.session_send(process, session, Message::Inventory(part));
        }
        let now = process.local(self.now);
        process.sessions[session]
            .machine
            .handle(now, SessionEvent::InventorySent(seq));
    }

    /// Only where it is sabotaged: the contents are from before, the position is from now.
    pub(super) fn send_late_inventory(
        &mut self,
        process: &mut Process,
        session: usize,
        stream: u64,
    ) {
        let parts = process.sessions[session].late.take();
        if process.sessions[session].stream != Some(stream) {
            return;
        }
        let seq = process.log.seal_position();
        let parts = parts
            .into_iter()
            .flatten()
            .map(|part| pb::Inventory { seq, ..part });
        self.inventory_out(process, session, parts.collect(), seq);
    }

    /// A coordinator said something. False where the process must end.
    pub(super) fn session_told(
        &mut self,
        process: &mut Process,
        session: usize,
        stream: u64,
        said: &Down,
    ) -> bool {
        if process.sessions[session].stream != Some(stream) {
            return true;
        }
        let event = match *said {
            Down::Said(Answer::Welcome(ref welcome)) => {
                process.sessions[session].epoch = welcome.epoch;
                let mut expect_delta = (!welcome.resync).then_some(welcome.expect_delta);
                if self.sabotaged(Shell::ExpectationIgnored) && expect_delta.is_some() {
                    expect_delta = Some(process.log.bounds().1);
                }
                SessionEvent::Welcomed {
                    epoch: welcome.epoch,
                    heartbeat: Duration::from_millis(welcome.heartbeat_interval_ms.into()),
                    expect_delta,
                }
            }
            Down::Said(Answer::Ack(ref ack)) => SessionEvent::Acknowledged(ack.seq),
            Down::Said(Answer::Resync(_)) => SessionEvent::ResyncRequested,
            Down::Said(Answer::HeartbeatAck(_)) => SessionEvent::HeartbeatAnswered,
            Down::Said(Answer::RegionRefused(_)) => return true,
            Down::Said(Answer::Replicate(ref order)) => {
                self.ordered(process, session, (**order).clone());
                SessionEvent::HeartbeatAnswered
            }
            Down::Said(Answer::Surplus(ref surplus)) => {
                let places = surplus.regions.iter().zip(&surplus.slots);
                let copies = places.zip(&surplus.generations);
                let copies: Vec<_> = copies
                    .map(|((region, slot), generation)| {
                        (RegionId(*region), Slot(*slot), Generation(*generation))
                    })
                    .collect();
                process.store.surplus(&copies);
                SessionEvent::HeartbeatAnswered
            }
            Down::Said(Answer::Closing(_)) => SessionEvent::Closing,
            Down::Fenced => {
                process.sessions[session].stream = None;
                process.sessions[session].answers.clear();
                SessionEvent::Fenced
            }
            Down::Ended => {
                process.sessions[session].stream = None;
                process.sessions[session].answers.clear();
                SessionEvent::Disconnected
            }
        };
        self.session_event(process, session, event)
    }
}
