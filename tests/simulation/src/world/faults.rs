//! Carries faults out, and brings processes up again.

use kvferry_agent::{region::Holder, session::Event as SessionEvent};
use kvferry_proto::Incarnation;

use super::{
    Act, Event, Pid, Process, World,
    network::{Cut, Down, Up},
    process::Identity,
};
use crate::{
    faults::Kind,
    queue::{MS, SECOND},
    sabotage::Shell,
};

/// What a goodbye may take.
const GOODBYE: u64 = SECOND;

impl World {
    pub(super) fn fault(&mut self, index: usize) {
        let fault = self.faults[index];
        let until = self.now + fault.lasts;
        self.stats.faults += 1;
        match fault.kind {
            Kind::Crash {
                node,
                silent,
                clock_behind,
            } => {
                if let Some(process) = self.take_current(node) {
                    self.gone(&process, silent);
                }
                self.start_at(until, node, clock_behind);
            }
            Kind::Leave { node } => {
                if let Some(pid) = self.nodes[node].current {
                    self.later(pid, 0, Act::Leave);
                }
            }
            Kind::Pause { node } => self.with_current(node, |process| process.pause(until)),
            Kind::Replace { node } => {
                self.with_current(node, |process| process.pause(until));
                let at = self.now + fault.lasts / 3;
                let start = Event::Start {
                    node,
                    clock_behind: false,
                    elsewhere: true,
                };
                self.queue.at(at, start);
            }
            Kind::Partition { end, out, into } => {
                self.cuts.retain(|cut| cut.until > self.now);
                self.cuts.push(Cut {
                    end,
                    out,
                    into,
                    until,
                });
            }
            Kind::CoordinatorCrash {
                coordinator,
                silent,
            } => {
                self.coordinator_dies(coordinator, silent);
                self.queue.at(until, Event::CoordinatorStarts(coordinator));
            }
            Kind::CoordinatorPause { coordinator } => {
                self.coordinators[coordinator].paused_until = until;
            }
            Kind::BreakSessions { node } => {
                for id in self.streams_of(self.nodes[node].current) {
                    // Each side sees it end, in its own time; what was under way is lost.
                    if let Some(stream) = self.streams.get_mut(&id) {
                        stream.up.queue.clear();
                        stream.down.queue.clear();
                    }
                    self.send_up(id, Up::Ended);
                    self.send_down(id, Down::Ended);
                }
            }
            Kind::LoseDelta { node } => {
                for id in self.streams_of(self.nodes[node].current) {
                    if let Some(stream) = self.streams.get_mut(&id) {
                        stream.lose_delta = true;
                    }
                }
            }
            Kind::Churn { node } => self.with_current(node, |process| {
                process.churns_until = until;
            }),
            Kind::EngineDeath { node } => {
                if let Some(pid) = self.nodes[node].current {
                    self.later(pid, 0, Act::EngineDies);
                }
            }
            Kind::Reregister { node } => {
                let conditions = self.conditions.clone();
                self.with_current(node, |process| process.reregister(&conditions));
            }
            Kind::RouterStalls { router } => self.routers[router].stands_until = until,
            Kind::RouterBreaks { router } => self.router_again(router, false),
            Kind::RouterRestarts { router } => self.router_again(router, true),
            Kind::Drain { node, for_good } => {
                self.operators.drains.push(node);
                if !for_good {
                    self.queue.at(until, Event::Undrain(node));
                }
            }
            Kind::Heat => {
                let (random, hashes) = (&mut self.operators.random, self.conditions.hashes);
                let hot = (0..4).map(|_| random.below(hashes)).collect();
                self.operators.hot.get_or_insert((hot, 2));
            }
            Kind::DeleteNamespace {
                namespace,
                coordinator,
            } => {
                for at in 0..self.coordinators.len() {
                    if coordinator.is_none_or(|only| only == at) {
                        self.delete_namespace(at, namespace);
                    }
                }
            }
            Kind::EvictAll { node } => {
                let namespaces = self.conditions.namespaces();
                let names = namespaces.iter().map(|at| self.conditions.spec(*at));
                let names: Vec<_> = names.map(|spec| spec.name.clone()).collect();
                let now = self.now;
                self.with_current(node, |process| {
                    for name in &names {
                        let all = kvferry_agent::region::EvictWhat::All;
                        // Nothing to evict is as good.
                        let _ = process.store.evict(process.local(now), name, all);
                    }
                });
            }
        }
    }

    pub(super) fn start_at(&mut self, at: u64, node: usize, clock_behind: bool) {
        let start = Event::Start {
            node,
            clock_behind,
            elsewhere: false,
        };
        self.queue.at(at, start);
    }

    fn streams_of(&self, pid: Option<Pid>) -> Vec<u64> {
        let of = self
            .streams
            .iter()
            .filter(|(_, stream)| Some(stream.pid) == pid);
        of.map(|(id, _)| *id).collect()
    }

    fn take_current(&mut self, node: usize) -> Option<Box<Process>> {
        self.processes.get_mut(self.nodes[node].current?)?.take()
    }

    fn with_current(&mut self, node: usize, change: impl FnOnce(&mut Process)) {
        if let Some(mut process) = self.take_current(node) {
            change(&mut process);
            self.after(&mut process);
            let pid = process.pid;
            self.processes[pid] = Some(process);
        }
    }

    /// A node's next process, unless one lives. `elsewhere`: beside one that stands still.
    pub(super) fn start(&mut self, node: usize, clock_behind: bool, elsewhere: bool) {
        let mut living = self.processes.iter().flatten();
        let living = living.find(|process| process.node == node);
        let stands = living.is_some_and(|process| process.paused_until > self.now);
        if living.is_some() && !(elsewhere && stands) {
            return;
        }
        let pid = self.processes.len();
        let clock = 1_000_000_000 + self.now;
        let entry = &mut self.nodes[node];
        let incarnation = match clock_behind {
            true => entry.last_incarnation.saturating_sub(1 + pid as u64).max(1),
            false => clock.max(entry.last_incarnation + 1),
        };
        entry.last_incarnation = entry.last_incarnation.max(incarnation);
        if elsewhere {
            let port = 7_402 + pid % 50_000;
            entry.address.set_port(port as u16);
        }
        entry.current = Some(pid);
        let (address, name) = (entry.address, entry.name.clone());
        let Ok(incarnation) = Incarnation::new(incarnation) else {
            unreachable!("it is at least 1");
        };
        let identity = Identity {
            pid,
            node,
            name,
            incarnation,
            address,
        };
        let coordinators = self.coordinators.len();
        let seed = self.options.seed;
        let process = Process::start(self.now, identity, &self.conditions, coordinators, seed);
        self.listeners.insert(address, pid);
        self.identities.push((node, incarnation));
        self.processes.push(Some(Box::new(process)));
        self.stats.processes += 1;
        self.note(&[1, node as u64, incarnation.get()]);
        for session in 0..coordinators {
            self.later(pid, 0, Act::SessionTimer(session));
            if !self.sets.is_empty() {
                let again = true;
                self.later(pid, SECOND, Act::Announce { session, again });
            }
        }
        self.later(pid, 250 * MS, Act::StoreTick);
        self.later(pid, SECOND, Act::Upkeep);
        let first = self.network.below(self.conditions.pace);
        self.later(pid, first, Act::Work);
        if self.is_quiet() {
            self.later(pid, SECOND, Act::LastWork);
        }
    }

    /// A process is no more. Silent: its peers are not told.
    pub(super) fn gone(&mut self, process: &Process, silent: bool) {
        let pid = process.pid;
        self.note(&[2, pid as u64]);
        if self.listeners.get(&process.address) == Some(&pid) {
            self.listeners.remove(&process.address);
        }
        if silent {
            self.silent_dead.insert(pid);
        } else {
            for id in self.streams_of(Some(pid)) {
                self.send_up(id, Up::Ended);
            }
        }
    }

    /// Goodbye to all coordinators; the end comes when they have had time to hear it.
    pub(super) fn leave(&mut self, process: &mut Process) {
        process.leaving = true;
        let now = process.local(self.now);
        for session in 0..process.sessions.len() {
            process.sessions[session]
                .machine
                .handle(now, SessionEvent::Stop);
            self.session_obey(process, session);
        }
        self.later(process.pid, GOODBYE, Act::Exit);
    }

    /// Its connection is gone, and with it its reservations and pins.
    pub(super) fn engine_dies(&mut self, process: &mut Process) {
        let client = process.client;
        process.dead_clients.insert(client.0);
        process.client.0 += 1_000_000;
        process.jobs.retain(|_, job| job.client != client);
        process.tensors = None;
        if !self.sabotaged(Shell::ReservationsLeak) {
            process.store.release_holder(Holder::Client(client));
        }
        process
            .writers
            .retain(|_, holder| *holder != Holder::Client(client));
        for pull in process.pulls.values_mut() {
            let gives_up = process.random.permille(500);
            // Copies that are ordered are nobody's wish here.
            pull.give_up(gives_up && pull.copies_for.is_none());
        }
        let pulls: Vec<_> = process.pulls.keys().copied().collect();
        for pull in pulls {
            self.later(process.pid, 0, Act::PullTimer(pull));
        }
    }

    /// The last fault is over: what remains is work that has begun, and one publication each, of which
    /// some are lost on their way.
    pub(super) fn calm_down(&mut self) {
        let living: Vec<_> = self
            .processes
            .iter()
            .flatten()
            .map(|process| process.pid)
            .collect();
        for pid in living {
            self.later(pid, 0, Act::LastWork);
        }
    }
}
