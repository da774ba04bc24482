//! What is between processes: streams that keep their order, calls that do not, and cuts.

use std::{
    collections::VecDeque,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use kvferry_proto::{NodeId, pb};

use super::{Act, Event, Node, Pid, World};
use crate::queue::{MS, Micros};

/// What an agent sends on a session's stream.
#[derive(Debug)]
#[allow(clippy::large_enum_variant)] // few at a time, each moved once
pub(crate) enum Up {
    Said(pb::agent_message::Message),
    Ended,
}

/// What it is sent.
#[derive(Debug)]
pub(crate) enum Down {
    Said(pb::coordinator_message::Message),
    /// The stream ends: a later incarnation lives.
    Fenced,
    /// It ends for any other reason, or well.
    Ended,
}

/// One direction of a stream.
#[derive(Debug)]
pub(super) struct Pipe<M> {
    pub(super) queue: VecDeque<(Micros, M)>,
    last: Micros,
}

impl<M> Default for Pipe<M> {
    fn default() -> Self {
        Self {
            queue: VecDeque::new(),
            last: 0,
        }
    }
}

/// A session's stream. Its messages arrive in order or not at all, and then it ends.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) pid: Pid,
    pub(super) node: usize,
    pub(super) session: usize,
    pub(super) coordinator: usize,
    /// The coordinator's lifetime it leads to.
    pub(super) lifetime: u64,
    pub(super) up: Pipe<Up>,
    pub(super) down: Pipe<Down>,
    /// The next delta is lost, and the stream goes on.
    pub(super) lose_delta: bool,
}

/// Nothing gets through between one end and all others, in one direction or both.
#[derive(Debug)]
pub(super) struct Cut {
    pub(super) end: usize,
    pub(super) out: bool,
    pub(super) into: bool,
    pub(super) until: Micros,
}

pub(super) fn node(index: usize) -> Node {
    let Ok(name) = NodeId::new(&format!("node-{index}")) else {
        unreachable!("letters and digits");
    };
    let host = Ipv4Addr::from(0x0a00_0000 + index as u32);
    Node {
        name,
        current: None,
        address: SocketAddr::new(IpAddr::V4(host), 7402),
        last_incarnation: 0,
    }
}

impl World {
    /// The name of a coordinator's end; nodes have their numbers.
    pub(super) fn end_of(&self, coordinator: usize) -> usize {
        self.nodes.len() + coordinator
    }

    /// Until when nothing gets from one end to the other.
    pub(super) fn blocked(&self, from: usize, to: usize) -> Option<Micros> {
        let cut = |cut: &&Cut| {
            cut.until > self.now && (cut.end == from && cut.out || cut.end == to && cut.into)
        };
        self.cuts.iter().filter(cut).map(|cut| cut.until).max()
    }

    /// The same for a question and its answer.
    pub(super) fn blocked_either(&self, one: usize, other: usize) -> Option<Micros> {
        self.blocked(one, other).max(self.blocked(other, one))
    }

    /// How long a message takes.
    pub(super) fn way(&mut self) -> Micros {
        let (low, high) = match self.is_quiet() {
            true => (20, 2 * MS),
            false => self.conditions.delay,
        };
        self.network.within(low, high)
    }

    pub(super) fn chance(&mut self, permille: u64) -> bool {
        !self.is_quiet() && self.network.permille(permille)
    }

    pub(super) fn open_stream(&mut self, stream: Stream) -> u64 {
        self.next_stream += 1;
        self.streams.insert(self.next_stream, stream);
        self.next_stream
    }

    pub(super) fn send_up(&mut self, id: u64, message: Up) {
        let way = self.way();
        let now = self.now;
        if let Some(stream) = self.streams.get_mut(&id) {
            let ready = (now + way).max(stream.up.last);
            stream.up.last = ready;
            stream.up.queue.push_back((ready, message));
            self.queue.at(
                ready,
                Event::Deliver {
                    stream: id,
                    up: true,
                },
            );
        }
    }

    pub(super) fn send_down(&mut self, id: u64, message: Down) {
        let way = self.way();
        let now = self.now;
        if let Some(stream) = self.streams.get_mut(&id) {
            let ready = (now + way).max(stream.down.last);
            stream.down.last = ready;
            stream.down.queue.push_back((ready, message));
            self.queue.at(
                ready,
                Event::Deliver {
                    stream: id,
                    up: false,
                },
            );
        }
    }

    /// What is at the front of a pipe arrives, if it may.
    pub(super) fn deliver(&mut self, id: u64, up: bool) {
        let Some(stream) = self.streams.get(&id) else {
            return;
        };
        let (node, coordinator) = (stream.node, self.end_of(stream.coordinator));
        let ready = match up {
            true => stream.up.queue.front().map(|(ready, _)| *ready),
            false => stream.down.queue.front().map(|(ready, _)| *ready),
        };
        if ready.is_none_or(|ready| ready > self.now) {
            return;
        }
        let blocked = match up {
            true => {
                let paused = self.coordinators[stream.coordinator].paused_until;
                let cut = self.blocked(node, coordinator);
                cut.max((paused > self.now).then_some(paused))
            }
            false => self.blocked(coordinator, node),
        };
        if let Some(until) = blocked {
            // It is sent again, and again, until it gets through.
            let wait = self.network.below(50 * MS);
            self.queue
                .at(until + wait, Event::Deliver { stream: id, up });
            return;
        }
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        if up {
            if let Some((_, message)) = stream.up.queue.pop_front() {
                self.coordinator_hears(id, message);
            }
        } else if let Some((_, said)) = stream.down.queue.pop_front() {
            let (pid, session) = (stream.pid, stream.session);
            let ends = !matches!(said, Down::Said(_));
            if ends {
                self.streams.remove(&id);
            }
            let act = Act::FromCoordinator {
                session,
                stream: id,
                said,
            };
            self.process(pid, act);
        }
        // What stood behind it while it was blocked comes at once.
        self.queue.at(self.now, Event::Deliver { stream: id, up });
    }
}
