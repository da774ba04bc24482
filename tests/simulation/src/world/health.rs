//! Suspects are probed, and those that answer are suspect no more; as the agent's upkeep of links does it.

use kvferry_agent::transport::PeerTarget;
use kvferry_proto::{Incarnation, NodeId};

use super::{Act, Event, Pid, Process, World};
use crate::queue::SECOND;

impl World {
    /// Asks the suspects that are due.
    pub(super) fn upkeep(&mut self, process: &mut Process) {
        self.later(process.pid, SECOND, Act::Upkeep);
        if process.health.is_empty() {
            return;
        }
        let now = process.instant(self.now);
        let mut due = process.health.due(now, usize::MAX);
        // The table has no order of its own.
        due.sort_by(|a, b| (&a.node, a.incarnation).cmp(&(&b.node, b.incarnation)));
        for peer in due {
            self.stats.hellos += 1;
            let way = self.way();
            let hello = Event::Hello {
                pid: process.pid,
                peer: Box::new(peer),
            };
            self.queue.at(self.now + way, hello);
        }
    }

    /// Nobody answers for a process that stands still, is cut off or is gone.
    pub(super) fn hello_arrives(&mut self, pid: Pid, peer: &PeerTarget) {
        let Some(reader) = self.processes[pid].as_ref().map(|process| process.node) else {
            return;
        };
        let owner = (peer.addresses.data).and_then(|address| self.listeners.get(&address));
        let Some(owner) = owner.and_then(|owner| self.processes[*owner].as_ref()) else {
            return;
        };
        if owner.paused_until > self.now || self.blocked_either(reader, owner.node).is_some() {
            return;
        }
        let answered = Act::HelloAnswered {
            node: peer.node.clone(),
            asked: peer.incarnation,
            found: owner.incarnation,
        };
        let way = self.way();
        self.later(pid, way, answered);
    }

    pub(super) fn hello_answered(
        &mut self,
        process: &mut Process,
        node: &NodeId,
        asked: Incarnation,
        found: Incarnation,
    ) {
        if found == asked {
            self.stats.hellos_answered += 1;
            process.health.clear(node, asked);
        } else if found > asked {
            process.health.clear_before(node, found);
        }
    }
}
