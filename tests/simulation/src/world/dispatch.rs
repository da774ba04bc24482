//! What happens is handed to whom it happens to.

use kvferry_coordinator::directory::Event as DirectoryEvent;

use super::{Act, Event, Pid, Process, World};
use crate::{
    conditions::TICK,
    invariants,
    queue::{MS, Micros, SECOND},
};

impl World {
    pub(super) fn happen(&mut self, event: Event) {
        match event {
            Event::Fault(index) => self.fault(index),
            Event::Start {
                node,
                clock_behind,
                elsewhere,
            } => self.start(node, clock_behind, elsewhere),
            Event::CoordinatorStarts(coordinator) => self.coordinator_starts(coordinator),
            Event::CoordinatorTick(coordinator) => {
                self.queue
                    .at(self.now + TICK, Event::CoordinatorTick(coordinator));
                if self.coordinators[coordinator].paused_until <= self.now {
                    self.tell(coordinator, None, DirectoryEvent::Tick);
                    self.storage_ticks(coordinator);
                }
            }
            Event::Deliver { stream, up } => self.deliver(stream, up),
            Event::Locate {
                coordinator,
                pid,
                pull,
                op,
                request,
            } => self.locate(coordinator, pid, pull, op, request),
            Event::Connect { pid, pull, source } => self.connect_arrives(pid, pull, source),
            Event::Fetch {
                pid,
                pull,
                op,
                read,
            } => self.fetch(pid, pull, op, read),
            Event::Process(pid, act) => self.process(pid, act),
            Event::Claim => self.claim(),
            Event::ClaimCall(call) => self.claim_call(*call),
            Event::Router(router, event) => self.router(router, event),
            Event::Storage => self.storage(),
            Event::StorageCall {
                coordinator,
                blocks,
                call,
            } => self.storage_call(coordinator, blocks, call),
            Event::Sets => self.sets(),
            Event::Tensors => self.tensors(),
            Event::SetsSaid {
                coordinator,
                pid,
                who,
                say,
            } => self.sets_said(coordinator, pid, &who, *say),
            Event::SetsTick(coordinator) => self.sets_tick(coordinator),
            Event::CopyTick(coordinator) => self.copy_tick(coordinator),
            Event::Undrain(node) => self.operators.drains.retain(|other| *other != node),
            Event::Hello { pid, peer } => self.hello_arrives(pid, &peer),
            Event::Probe => {
                invariants::probe(self);
                let pace = SECOND * (1 + self.nodes.len() as u64 / 50);
                self.queue.at(self.now + pace, Event::Probe);
            }
        }
    }

    /// Hands a process what happens to it, unless it stands still: then that waits.
    pub(super) fn process(&mut self, pid: Pid, act: Act) {
        let Some(mut process) = self.processes[pid].take() else {
            return;
        };
        if process.paused_until > self.now {
            self.queue
                .at(process.paused_until, Event::Process(pid, act));
            self.processes[pid] = Some(process);
            return;
        }
        if self.act(&mut process, act) {
            self.after(&mut process);
            self.processes[pid] = Some(process);
        } else {
            self.gone(&process, false);
            // Somebody restarts what ends by itself.
            self.start_at(self.now + SECOND, process.node, false);
        }
    }

    /// False where the process ends with it.
    fn act(&mut self, process: &mut Process, act: Act) -> bool {
        match act {
            Act::SessionTimer(session) => {
                process.sessions[session].timer_at = None;
                return self.session_tick(process, session);
            }
            Act::Connected {
                session,
                attempt,
                ok,
            } => return self.session_connected(process, session, attempt, ok),
            Act::FromCoordinator {
                session,
                stream,
                said,
            } => return self.session_told(process, session, stream, &said),
            Act::LogChanged => {
                process.log_waits = false;
                for session in 0..process.sessions.len() {
                    if !self.session_tick(process, session) {
                        return false;
                    }
                }
            }
            Act::LateInventory { session, stream } => {
                self.send_late_inventory(process, session, stream);
                return self.session_tick(process, session);
            }
            Act::Work => self.work(process),
            Act::LastWork => self.begin_publish(process, 1),
            Act::Write { job } => self.write(process, job),
            Act::StoreTick => {
                process.store.tick(process.local(self.now));
                self.later(process.pid, 250 * MS, Act::StoreTick);
            }
            Act::Upkeep => self.upkeep(process),
            Act::ClaimAnswered(call, answer) => self.claim_answered(&call, answer),
            Act::ClaimUnanswered(call) => self.claim_unanswered(process, *call),
            Act::Tensors(number) => self.tensors_go_on(process, number),
            Act::Announce { session, again } => self.announce(process, session, again),
            Act::SetsTold {
                session,
                unknown,
                removed,
            } => self.sets_told(process, session, &unknown, &removed),
            Act::HelloAnswered { node, asked, found } => {
                self.hello_answered(process, &node, asked, found);
            }
            Act::Release {
                client,
                pin,
                blocks,
            } => invariants::pinned_stays::release(self, process, client, pin, &blocks),
            Act::EngineDies => self.engine_dies(process),
            Act::Leave => self.leave(process),
            Act::Exit => return false,
            act => self.pull_act(process, act),
        }
        true
    }

    /// What every step of a process ends with.
    pub(super) fn after(&mut self, process: &mut Process) {
        use std::sync::atomic::Ordering::Relaxed;
        if process.mirror.changed.swap(false, Relaxed) && !process.log_waits {
            process.log_waits = true;
            let wait = process.random.below(2 * MS);
            self.later(process.pid, wait, Act::LogChanged);
        }
    }

    pub(super) fn later(&mut self, pid: Pid, wait: Micros, act: Act) {
        self.queue.at(self.now + wait, Event::Process(pid, act));
    }
}
