//! Links: opened to an address, bound to one incarnation.

use kvferry_agent::{
    transfer::{ConnectFailure, Event as PullEvent, SourceKey},
    transport::Capabilities,
};

use super::{Act, Event, Pid, Process, World, pull::Link};
use crate::sabotage::Shell;

impl World {
    pub(super) fn capabilities(&self) -> Capabilities {
        let (max_spans, max_bytes) = self.conditions.link;
        Capabilities {
            max_spans,
            max_bytes,
            window_bytes: 4 * max_bytes,
            distance: 1,
            needs_checksum: false,
            span_bytes: 0,
        }
    }

    /// A connect arrives where the owner was said to be.
    pub(super) fn connect_arrives(&mut self, pid: Pid, pull: u64, source: SourceKey) {
        let again = Event::Connect { pid, pull, source };
        let Some(process) = &self.processes[pid] else {
            return;
        };
        let peer = process
            .pulls
            .get(&pull)
            .and_then(|pull| pull.peers.get(source.0 as usize));
        let Some((peer, reader)) = peer.map(|peer| (peer.clone(), process.node)) else {
            return;
        };
        let failed = |failure| Act::LinkFailed {
            pull,
            source,
            failure,
        };
        let owner = peer
            .addresses
            .data
            .and_then(|address| self.listeners.get(&address).copied());
        let way = self.way();
        let Some(owner) = owner.and_then(|owner| self.processes[owner].as_ref()) else {
            return self.later(pid, way, failed(ConnectFailure::Unreachable));
        };
        let (number, node) = (owner.pid, owner.node);
        let stands = (owner.paused_until > self.now).then_some(owner.paused_until);
        let right = owner.incarnation == peer.incarnation;
        if let Some(until) = self.blocked_either(reader, node).max(stands) {
            return self.queue.at(until, again);
        }
        let act = match right || self.sabotaged(Shell::AnyIncarnation) {
            true => Act::LinkUp {
                pull,
                source,
                owner: number,
            },
            false => failed(ConnectFailure::WrongIncarnation),
        };
        self.later(pid, way, act);
    }

    pub(super) fn link_up(
        &mut self,
        process: &mut Process,
        pull: u64,
        source: SourceKey,
        owner: Pid,
    ) -> Option<PullEvent> {
        let one_sided = process.random.permille(self.conditions.one_sided);
        let now = process.local(self.now);
        let pull = process.pulls.get_mut(&pull)?;
        if !pull.connecting.remove(&source) {
            return None;
        }
        let link = Link {
            owner,
            one_sided,
            received: 0,
            progress_at: now,
        };
        pull.links.insert(source, link);
        Some(PullEvent::Connected {
            source,
            capabilities: self.capabilities(),
        })
    }
}
