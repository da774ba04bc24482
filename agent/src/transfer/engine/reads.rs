//! What links and reads answer.

use super::{Op, PullEngine, State};
use crate::transfer::{
    command::{BlockIndex, Command, OpId, SourceKey},
    event::{ConnectFailure, ReadFailure},
    outcome::{Failure, Outcome},
    source::Path,
};
use crate::{
    sabotage::{self, Bug},
    transport::Capabilities,
};

impl PullEngine {
    pub(super) fn connected(&mut self, key: SourceKey, capabilities: Capabilities) {
        let now = self.now;
        let Some(source) = self.sources.get_mut(&key) else {
            return;
        };
        if matches!(source.path, Path::Opening { .. }) {
            source.path = Path::Open(capabilities);
            source.epoch += 1;
            source.distance = capabilities.distance;
            source.received_bytes = 0;
            source.progress_at = now;
        }
    }

    pub(super) fn connect_failed(&mut self, key: SourceKey, failure: ConnectFailure) {
        let most = self.config.connects;
        let Some(source) = self.sources.get_mut(&key) else {
            return;
        };
        let Path::Opening { late, .. } = source.path else {
            return;
        };
        source.troubled = true;
        let worth = match failure {
            ConnectFailure::WrongIncarnation => Failure::Stale,
            ConnectFailure::Denied => Failure::Denied,
            ConnectFailure::Unreachable | ConnectFailure::Refused => Failure::Unreachable,
        };
        source.path = match failure {
            ConnectFailure::Unreachable if source.connects < most => Path::Closed,
            _ => Path::Dead(worth),
        };
        if failure == ConnectFailure::Unreachable && !late {
            self.push(Command::Suspect { source: key });
        }
        self.send_away(key, worth);
    }

    /// Sends the blocks that count on this source elsewhere; those being read come when they settle.
    pub(super) fn send_away(&mut self, key: SourceKey, failure: Failure) {
        let Some(source) = self.sources.get_mut(&key) else {
            return;
        };
        let mut blocks = std::mem::take(&mut source.queue);
        blocks.extend(std::mem::take(&mut source.unchecked).iter());
        for index in blocks.iter() {
            self.candidate_failed(index, failure);
        }
    }

    pub(super) fn progressed(&mut self, key: SourceKey, received_bytes: u64) {
        let now = self.now;
        if let Some(source) = self.sources.get_mut(&key)
            && received_bytes > source.received_bytes
        {
            source.received_bytes = received_bytes;
            source.progress_at = now;
        }
    }

    /// Takes an operation that has settled off the books.
    fn settle(&mut self, id: OpId) -> Option<Op> {
        let op = self.ops.remove(&id)?;
        self.inflight_bytes -= op.bytes;
        if let Some(source) = self.sources.get_mut(&op.source) {
            source.inflight_bytes -= op.bytes;
            if source.checking == Some(id) {
                source.checking = None;
            }
        }
        Some(op)
    }

    /// Its blocks' outcomes were given at the deadline: only the destinations are left.
    fn is_finished_block(&self, index: BlockIndex) -> bool {
        self.blocks
            .get(index as usize)
            .is_none_or(|block| block.finished)
    }

    /// See [`Event::GiveUp`](crate::transfer::Event::GiveUp).
    pub(super) fn is_unwanted(&self, index: BlockIndex) -> bool {
        let block = self.blocks.get(index as usize);
        block.is_some_and(|block| block.unwanted)
    }

    pub(super) fn read_done(&mut self, id: OpId) {
        if self.ops.get(&id).is_none_or(|op| op.generations) {
            return;
        }
        let Some(op) = self.settle(id) else {
            return;
        };
        let now = self.now;
        // Blocks whose link went away in the meantime have nobody to ask for their generations.
        let good = self.sources.get_mut(&op.source).is_some_and(|source| {
            source.progress_at = now;
            source.epoch == op.epoch && matches!(source.path, Path::Open(_))
        });
        for slot in &op.slots {
            if self.stop.is_some() || self.is_unwanted(slot.block) {
                self.next_candidate(slot.block);
            } else if good {
                self.set_state(slot.block, State::Unchecked);
                if let Some(source) = self.sources.get_mut(&op.source) {
                    source.unchecked.insert(slot.block);
                }
            } else {
                self.candidate_failed(slot.block, Failure::Unreachable);
            }
        }
    }

    pub(super) fn generations_done(&mut self, id: OpId, words: &[u64]) {
        if self.ops.get(&id).is_none_or(|op| !op.generations) {
            return;
        }
        let Some(op) = self.settle(id) else {
            return;
        };
        if let Some(source) = self.sources.get_mut(&op.source) {
            source.progress_at = self.now;
        }
        for (place, slot) in op.slots.iter().enumerate() {
            self.validate(slot.block, words.get(place).copied());
        }
    }

    /// The heart: equal and even, or not the block.
    fn validate(&mut self, index: BlockIndex, word: Option<u64>) {
        if self.is_finished_block(index) || self.is_unwanted(index) {
            return self.next_candidate(index);
        }
        let candidate = self
            .blocks
            .get(index as usize)
            .and_then(|block| block.candidate());
        let (Some(candidate), Some(word)) = (candidate, word) else {
            return self.candidate_failed(index, Failure::Unreachable);
        };
        let sealed = word == candidate.generation.0 && candidate.generation.is_sealed();
        if !sealed && !sabotage::is(Bug::GenerationUnchecked) {
            return self.candidate_failed(index, Failure::Stale);
        }
        match candidate.checksum {
            Some(checksum) => {
                self.set_state(index, State::Verifying);
                self.push(Command::Verify {
                    block: index,
                    checksum,
                });
            }
            None => self.land(index),
        }
    }

    pub(super) fn read_failed(&mut self, id: OpId, failure: ReadFailure) {
        let Some(op) = self.settle(id) else {
            return;
        };
        match failure {
            ReadFailure::Local => {
                for slot in &op.slots {
                    self.close(slot.block, Outcome::DestinationFailed);
                }
            }
            ReadFailure::RegionGone => self.region_gone(&op),
            ReadFailure::SpanRefused => self.one_by_one(&op, Failure::Stale),
            ReadFailure::NoPath => self.one_by_one(&op, Failure::Unreachable),
            ReadFailure::LinkLost => {
                self.link_lost(&op, Failure::Unreachable);
                self.all_failed(&op, Failure::Unreachable);
            }
            ReadFailure::Denied => {
                let worth = self.denied(&op);
                self.all_failed(&op, worth);
            }
            ReadFailure::Cancelled => self.all_failed(&op, Failure::Unreachable),
        }
    }

    fn all_failed(&mut self, op: &Op, failure: Failure) {
        for slot in &op.slots {
            self.candidate_failed(slot.block, failure);
        }
    }

    /// The link is to be opened again, if anybody still wants it then.
    fn link_lost(&mut self, op: &Op, failure: Failure) {
        let most = self.config.connects;
        let Some(source) = self.sources.get_mut(&op.source) else {
            return;
        };
        if source.epoch != op.epoch || !matches!(source.path, Path::Open(_)) {
            return;
        }
        source.troubled = true;
        source.path = match source.connects < most {
            true => Path::Closed,
            false => Path::Dead(failure),
        };
        self.send_away(op.source, failure);
    }

    /// The ticket is refused, and so the link. Gives what that says of the source's blocks: nothing yet where another link
    /// may follow, which begins with another ticket.
    fn denied(&mut self, op: &Op) -> Failure {
        let most = self.config.connects;
        let last = self
            .sources
            .get(&op.source)
            .is_some_and(|source| source.epoch == op.epoch && source.connects >= most);
        let failure = match last {
            true => Failure::Denied,
            false => Failure::Unreachable,
        };
        self.link_lost(op, failure);
        // Reads beside it may have ended before it, without a reason.
        if let Some(source) = self.sources.get_mut(&op.source)
            && last
            && source.path == Path::Dead(Failure::Unreachable)
        {
            source.path = Path::Dead(failure);
        }
        failure
    }

    /// A block's bytes were wrong. Where its path does not vouch for them that is the path's fault as likely as the
    /// owner's: the next try goes another way.
    pub(super) fn distrust(&mut self, index: BlockIndex) {
        let most = self.config.connects;
        let candidate = self
            .blocks
            .get(index as usize)
            .and_then(|block| block.candidate());
        let Some(key) = candidate.map(|candidate| candidate.source) else {
            return;
        };
        let Some(source) = self.sources.get_mut(&key) else {
            return;
        };
        if !matches!(source.path, Path::Open(link) if link.needs_checksum) {
            return;
        }
        // Not `troubled`: by the other way it is as good as any.
        source.path = match source.connects < most {
            true => Path::Closed,
            false => Path::Dead(Failure::Corrupt),
        };
        self.push(Command::Distrust { source: key });
        self.send_away(key, Failure::Unreachable);
    }

    /// Blocks without a checksum are not read over a path that does not vouch for its bytes. True where there were
    /// any. Who drives the engine opens links that suit the pull, so that there are none.
    pub(super) fn refuse_unverifiable(&mut self) -> bool {
        let unverifiable = |index: &BlockIndex| {
            let block = self.blocks.get(*index as usize);
            block
                .and_then(|block| block.candidate())
                .is_some_and(|candidate| candidate.checksum.is_none())
        };
        let refused: Vec<_> = self
            .sources
            .iter()
            .filter(|(_, source)| matches!(source.path, Path::Open(link) if link.needs_checksum))
            .flat_map(|(&key, source)| {
                let blocks = source.queue.iter();
                blocks.filter(unverifiable).map(move |index| (key, index))
            })
            .collect();
        for (key, index) in &refused {
            if let Some(source) = self.sources.get_mut(key) {
                source.queue.remove(*index);
            }
            self.candidate_failed(*index, Failure::Unreachable);
        }
        !refused.is_empty()
    }

    /// A stale hint for all that was to come from there. A generation read may cover several
    /// regions and does not say which is gone; its blocks are stale, the regions are not judged.
    fn region_gone(&mut self, op: &Op) {
        if let (false, Some(first)) = (op.generations, op.slots.first()) {
            let region = first.region;
            self.gone.insert((op.source, region));
            let queued: Vec<_> = self
                .sources
                .get(&op.source)
                .map(|source| source.queue.iter().chain(source.unchecked.iter()).collect())
                .unwrap_or_default();
            for index in queued {
                let there = self
                    .blocks
                    .get(index as usize)
                    .and_then(|block| block.candidate())
                    .is_some_and(|candidate| candidate.region == region);
                if there {
                    if let Some(source) = self.sources.get_mut(&op.source) {
                        source.queue.remove(index);
                        source.unchecked.remove(index);
                    }
                    self.candidate_failed(index, Failure::Stale);
                }
            }
        }
        self.all_failed(op, Failure::Stale);
    }

    /// One bad span fails the whole read: its blocks are tried one by one, to see whose it is. `worth` is what that block's
    /// candidate is then.
    fn one_by_one(&mut self, op: &Op, worth: Failure) {
        let single = op.slots.len() < 2 || op.generations || self.stop.is_some();
        let open = self
            .sources
            .get(&op.source)
            .is_some_and(|source| matches!(source.path, Path::Open(_)));
        if single || !open {
            let failure = match single {
                true => worth,
                false => Failure::Unreachable,
            };
            return self.all_failed(op, failure);
        }
        for slot in &op.slots {
            if self.is_unwanted(slot.block) {
                self.next_candidate(slot.block);
                continue;
            }
            if let Some(block) = self.block_mut(slot.block) {
                block.alone = true;
                block.state = State::Queued;
            }
            if let Some(source) = self.sources.get_mut(&op.source) {
                source.queue.insert(slot.block);
            }
        }
    }
}
