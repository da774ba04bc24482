//! The pure pull engine: events in, commands out. No IO, no clock, no randomness.

mod locate;
mod reads;
mod schedule;
mod timers;

#[cfg(any(test, feature = "fuzzing"))]
// In a test, or in a fuzzer that is one.
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::wildcard_imports
)]
#[cfg_attr(not(test), allow(dead_code, unused_imports))]
mod tests;

#[cfg(feature = "fuzzing")]
pub(crate) use tests::model::fuzz;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use smallvec::SmallVec;

use super::{
    Time,
    block::{Block, State},
    block_set::BlockSet,
    command::{BlockIndex, Command, OpId, SlotRead, SourceKey},
    config::TransferConfig,
    event::Event,
    outcome::{Failure, Outcome},
    source::Source,
};
use crate::sabotage::{self, Bug};

/// What is to be pulled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PullRequest {
    /// How many blocks; they are called 0, 1, ... and are wanted in that order.
    pub blocks: u32,
    /// Bytes of each.
    pub block_bytes: u64,
    /// From now on; every outcome is given by then.
    pub timeout: Duration,
    /// Blocks that are not taken from an owner whose checksum is not known. A checksum that is known
    /// is always compared.
    pub must_verify: BTreeSet<BlockIndex>,
}

/// A read under way.
#[derive(Debug)]
struct Op {
    source: SourceKey,
    epoch: u32,
    /// Of data; zero for a generation read.
    bytes: u64,
    generations: bool,
    cancelled: bool,
    slots: Vec<SlotRead>,
}

/// Why nothing begins any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    Timeout,
    Cancel,
}

impl Stop {
    fn outcome(self, settled: bool) -> Outcome {
        match self {
            Self::Timeout => Outcome::TimedOut { settled },
            Self::Cancel => Outcome::Cancelled { settled },
        }
    }
}

/// Brings the blocks of one request here. Call order:
///
/// 1. [`PullEngine::new`];
/// 2. obey [`PullEngine::poll_command`] until there is none;
/// 3. wait for something to happen or for [`PullEngine::poll_timeout`];
/// 4. pass everything that has happened to [`PullEngine::handle`], then call
///    [`PullEngine::handle_timeout`] if its time has come; go on at 2.
///
/// Every outcome is given when [`PullEngine::is_finished`]; the engine must be driven on until
/// [`PullEngine::is_drained`], or destinations of reads that settle late are never given back.
#[derive(Debug)]
pub struct PullEngine {
    config: TransferConfig,
    block_bytes: u64,
    must_verify: BTreeSet<BlockIndex>,
    now: Time,
    /// From here on no read begins.
    settle_at: Time,
    /// Every outcome is given by then.
    hard_at: Time,
    stop: Option<Stop>,
    blocks: Vec<Block>,
    unfinished: usize,
    undone: usize,
    sources: BTreeMap<SourceKey, Source>,
    /// Regions that their owners do not serve. Their numbers are never used again.
    gone: BTreeSet<(SourceKey, kvferry_proto::RegionId)>,
    ops: BTreeMap<OpId, Op>,
    next_op: u64,
    inflight_bytes: u64,
    locating: locate::Locating,
    /// Blocks that could be assigned.
    waiting: BlockSet,
    commands: VecDeque<Command>,
    /// Candidates that did not give their block since somebody asked, by why.
    failed: [u64; 4],
}

impl PullEngine {
    /// Begins a pull at `now`.
    #[must_use]
    pub fn new(config: TransferConfig, request: PullRequest, now: Time) -> Self {
        let hard_at = now.saturating_add(request.timeout);
        let count = request.blocks as usize;
        Self {
            block_bytes: request.block_bytes.max(1),
            must_verify: request.must_verify,
            now,
            settle_at: hard_at.saturating_sub(config.margin(request.timeout)),
            hard_at,
            stop: None,
            blocks: (0..count).map(|_| Block::new()).collect(),
            unfinished: count,
            undone: count,
            sources: BTreeMap::new(),
            gone: BTreeSet::new(),
            ops: BTreeMap::new(),
            next_op: 0,
            inflight_bytes: 0,
            locating: locate::Locating::new(request.blocks, now, config.locate_backoff),
            waiting: BlockSet::default(),
            commands: VecDeque::new(),
            failed: [0; 4],
            config,
        }
    }

    /// Takes in one event. Never panics, whatever it says. Deadlines that have passed come first:
    /// what arrives after the deadline is late, whoever was slow.
    pub fn handle(&mut self, now: Time, event: Event) {
        self.pass_deadlines(now);
        match event {
            Event::Located {
                op,
                hints,
                candidates,
            } => self.located(op, &hints, candidates),
            Event::LocateFailed { op, retryable } => self.locate_failed(op, retryable),
            Event::Prepared { block } => self.prepared(block),
            Event::NoSpace { block } => {
                if self.state(block) == Some(State::Preparing) {
                    self.close(block, Outcome::NoSpace);
                }
            }
            Event::Connected {
                source,
                capabilities,
            } => self.connected(source, capabilities),
            Event::ConnectFailed { source, failure } => self.connect_failed(source, failure),
            Event::ReadDone { op } => self.read_done(op),
            Event::GenerationsDone { op, words } => self.generations_done(op, &words),
            Event::ReadFailed { op, failure } => self.read_failed(op, failure),
            Event::Progress {
                source,
                received_bytes,
            } => self.progressed(source, received_bytes),
            Event::Verified { block, ok } => self.verified(block, ok),
            Event::Landed { block } => self.landed(block),
            Event::LandFailed { block } => {
                if self.state(block) == Some(State::Landing) {
                    self.close(block, Outcome::DestinationFailed);
                }
            }
            Event::GiveUp { block } => self.give_up_block(block),
            Event::Cancel => self.begin_stop(Stop::Cancel),
        }
    }

    /// The next thing to do. Work that becomes possible is handed out here and not in
    /// [`PullEngine::handle`], so that what several events set free is done in one operation.
    pub fn poll_command(&mut self) -> Option<Command> {
        if self.commands.is_empty() && self.stop.is_none() {
            self.schedule();
        }
        self.commands.pop_front()
    }

    /// How many candidates did not give their block since the last call, by why.
    pub fn take_failed(&mut self) -> [(Failure, u64); 4] {
        let [unreachable, stale, denied, corrupt] = std::mem::take(&mut self.failed);
        [
            (Failure::Unreachable, unreachable),
            (Failure::Stale, stale),
            (Failure::Denied, denied),
            (Failure::Corrupt, corrupt),
        ]
    }

    /// True when every block has its outcome.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.unfinished == 0
    }

    /// True when, besides, nothing that this pull began can touch a destination, and every
    /// destination has landed or was given back.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.undone == 0 && self.ops.is_empty()
    }

    fn state(&self, block: BlockIndex) -> Option<State> {
        self.blocks.get(block as usize).map(|block| block.state)
    }

    fn block_mut(&mut self, block: BlockIndex) -> Option<&mut Block> {
        self.blocks.get_mut(block as usize)
    }

    fn set_state(&mut self, block: BlockIndex, state: State) {
        if let Some(block) = self.block_mut(block) {
            block.state = state;
        }
    }

    fn push(&mut self, command: Command) {
        self.commands.push_back(command);
    }

    /// The block is at its end, and nothing touches its destination.
    fn close(&mut self, index: BlockIndex, outcome: Outcome) {
        let Some(block) = self.blocks.get_mut(index as usize) else {
            return;
        };
        if block.state == State::Done {
            return;
        }
        block.state = State::Done;
        self.undone -= 1;
        if std::mem::take(&mut block.destination) && !sabotage::is(Bug::NeverAbandoned) {
            self.commands.push_back(Command::Abandon { block: index });
        }
        block.chances = SmallVec::new();
        block.stale = Vec::new();
        self.finish(index, outcome);
    }

    /// Gives the outcome, unless it was given.
    fn finish(&mut self, index: BlockIndex, outcome: Outcome) {
        let Some(block) = self.blocks.get_mut(index as usize) else {
            return;
        };
        if std::mem::replace(&mut block.finished, true) {
            return;
        }
        self.unfinished -= 1;
        self.commands.push_back(Command::Finish {
            block: index,
            outcome,
            source: block.last_source,
        });
    }

    /// Nobody wants the block any more. Reads are of several blocks, so none is cancelled for one of them.
    fn give_up_block(&mut self, index: BlockIndex) {
        let Some(block) = self.block_mut(index) else {
            return;
        };
        if block.state == State::Done || block.state.is_outside() {
            block.unwanted = true;
            return;
        }
        let source = block.candidate().map(|candidate| candidate.source);
        self.locating.pending.remove(index);
        self.waiting.remove(index);
        if let Some(source) = source.and_then(|key| self.sources.get_mut(&key)) {
            source.queue.remove(index);
            source.unchecked.remove(index);
        }
        self.close(index, Outcome::Cancelled { settled: true });
    }

    /// The candidate being tried did not give the block, and nothing touches its destination.
    fn candidate_failed(&mut self, index: BlockIndex, failure: Failure) {
        if let Some(block) = self.block_mut(index) {
            let place = block.current;
            block.alone = false;
            block.spend(place, failure);
            self.failed[failure as usize] += 1;
            self.next_candidate(index);
        }
    }

    fn prepared(&mut self, index: BlockIndex) {
        if self.state(index) != Some(State::Preparing) {
            return;
        }
        if let Some(block) = self.block_mut(index) {
            block.destination = true;
        }
        self.next_candidate(index);
    }

    /// The block's bytes are the right ones.
    fn land(&mut self, index: BlockIndex) {
        let Some(block) = self.block_mut(index) else {
            return;
        };
        block.state = State::Landing;
        let checksum = block.candidate().and_then(|candidate| candidate.checksum);
        self.push(Command::Land {
            block: index,
            checksum,
        });
    }

    fn verified(&mut self, index: BlockIndex, ok: bool) {
        let Some(block) = self.block_mut(index) else {
            return;
        };
        if block.state != State::Verifying {
            return;
        }
        match (block.finished, ok) {
            (true, _) => self.close(index, Outcome::TimedOut { settled: true }),
            (false, true) => self.land(index),
            (false, false) => {
                self.distrust(index);
                self.candidate_failed(index, Failure::Corrupt);
            }
        }
    }

    fn landed(&mut self, index: BlockIndex) {
        let Some(block) = self.block_mut(index) else {
            return;
        };
        if block.state != State::Landing {
            return;
        }
        // It belongs to whoever may read the block now.
        block.destination = false;
        block.last_source = block.candidate().map(|candidate| candidate.source);
        self.close(index, Outcome::Pulled);
    }
}
