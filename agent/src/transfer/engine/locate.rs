//! Who holds what: asking, asking again, and what the answers mean.

use std::time::Duration;

use super::{PullEngine, State};
use crate::transfer::{
    Time,
    block::Chance,
    block_set::BlockSet,
    command::{BlockIndex, Command, OpId},
    event::{Candidates, SourceHint},
    outcome::{Failure, Outcome},
    source::{Path, Source},
};

/// Blocks to be located, and when.
#[derive(Debug)]
pub(super) struct Locating {
    pub(super) pending: BlockSet,
    /// Not before.
    pub(super) at: Time,
    backoff: Duration,
    /// The question under way.
    pub(super) asked: Option<(OpId, Vec<BlockIndex>)>,
    /// A locate failed, so blocks that were never located were not missing.
    pub(super) failed: bool,
}

impl Locating {
    pub(super) fn new(blocks: u32, now: Time, backoff: Duration) -> Self {
        Self {
            pending: BlockSet::all(blocks),
            at: now,
            backoff,
            asked: None,
            failed: false,
        }
    }
}

impl PullEngine {
    /// Asks, if there is something to ask and its time has come.
    pub(super) fn ask(&mut self) {
        if self.locating.asked.is_some()
            || self.locating.pending.is_empty()
            || self.now < self.locating.at
        {
            return;
        }
        let blocks: Vec<_> = self
            .locating
            .pending
            .iter()
            .take(self.config.locate_blocks.max(1))
            .collect();
        for block in &blocks {
            self.locating.pending.remove(*block);
        }
        let op = self.new_op();
        self.locating.asked = Some((op, blocks.clone()));
        self.push(Command::Locate { op, blocks });
    }

    pub(super) fn new_op(&mut self) -> OpId {
        let op = OpId(self.next_op);
        self.next_op += 1;
        op
    }

    /// The blocks of the question under way, if this answers it.
    fn answered(&mut self, op: OpId) -> Option<Vec<BlockIndex>> {
        self.locating
            .asked
            .take_if(|(asked, _)| *asked == op)
            .map(|(_, blocks)| blocks)
    }

    pub(super) fn located(&mut self, op: OpId, hints: &[SourceHint], candidates: Vec<Candidates>) {
        let Some(blocks) = self.answered(op) else {
            return;
        };
        for hint in hints {
            let source = self.sources.entry(hint.source).or_insert_with(Source::new);
            source.suspect = hint.suspect;
            // An open link knows better.
            if !matches!(source.path, Path::Open(_)) {
                source.distance = hint.distance;
            }
        }
        self.locating.backoff = self.config.locate_backoff;
        let mut prepare = Vec::new();
        let mut answers = candidates.into_iter();
        for index in blocks {
            let Some(found) = answers.next() else {
                self.not_located(index, true);
                continue;
            };
            if self.state(index) != Some(State::Locating) {
                // Given up meanwhile.
                continue;
            }
            self.take_candidates(index, found);
            let Some(block) = self.block_mut(index) else {
                continue;
            };
            let (any, destination) = (block.left().next().is_some(), block.destination);
            if any && !destination {
                block.state = State::Preparing;
                prepare.push(index);
            } else {
                self.next_candidate(index);
            }
        }
        if !prepare.is_empty() {
            self.push(Command::Prepare { blocks: prepare });
        }
    }

    /// Keeps what could be the block.
    fn take_candidates(&mut self, index: BlockIndex, found: Candidates) {
        let must_verify = self.must_verify.contains(&index);
        for candidate in &found {
            self.sources
                .entry(candidate.source)
                .or_insert_with(Source::new);
        }
        let most = self.config.max_candidates;
        let Some(block) = self.block_mut(index) else {
            return;
        };
        block.chances.clear();
        block.current = 0;
        for candidate in found.into_iter().take(most) {
            // What was not sealed then, or lacks the checksum that is asked for, is a hint of no use.
            let useless =
                !candidate.generation.is_sealed() || (must_verify && candidate.checksum.is_none());
            if useless || block.stale.contains(&candidate) {
                block.failure = block.failure.max(Some(Failure::Stale));
                block.last_source = Some(candidate.source);
            } else {
                block.chances.push(Chance {
                    candidate,
                    spent: false,
                });
            }
        }
    }

    pub(super) fn locate_failed(&mut self, op: OpId, retryable: bool) {
        let Some(blocks) = self.answered(op) else {
            return;
        };
        self.locating.failed = true;
        for index in blocks {
            self.not_located(index, retryable);
        }
    }

    /// A block that was tried has its verdict; one that was not is asked for again while time allows.
    fn not_located(&mut self, index: BlockIndex, retryable: bool) {
        self.locating.failed = true;
        let Some(block) = self.block_mut(index) else {
            return;
        };
        if block.state != State::Locating {
            return;
        }
        if block.failure.is_some() {
            let verdict = block.verdict();
            self.close(index, verdict);
        } else if !retryable {
            self.close(index, Outcome::LocateFailed);
        } else {
            if self.locating.at <= self.now {
                self.locating.at = self.now + self.locating.backoff;
                self.locating.backoff =
                    (self.locating.backoff * 2).min(self.config.locate_backoff_max);
            }
            self.locating.pending.insert(index);
        }
    }

    /// Where the block goes next: to a candidate that is left, to another locate, or to its end.
    pub(super) fn next_candidate(&mut self, index: BlockIndex) {
        if let Some(stop) = self.stop {
            return self.close(index, stop.outcome(true));
        }
        if self.is_unwanted(index) {
            return self.close(index, Outcome::Cancelled { settled: true });
        }
        self.strike_hopeless(index);
        let delay = self.config.relocate_delay;
        let again = self.now.saturating_add(delay);
        let (relocates, in_time) = (self.config.relocates, again < self.settle_at);
        let Some(block) = self.block_mut(index) else {
            return;
        };
        if block.left().next().is_some() {
            block.state = State::Waiting;
            self.waiting.insert(index);
        } else if block.failure.is_some() && block.relocates < relocates && in_time {
            block.relocates += 1;
            block.state = State::Locating;
            // Whoever fails a little later is asked for in the same question.
            if self.locating.pending.is_empty() {
                self.locating.at = self.locating.at.max(again);
            }
            self.locating.pending.insert(index);
        } else {
            let verdict = block.verdict();
            self.close(index, verdict);
        }
    }

    /// Spends candidates that cannot be had in this pull any more.
    fn strike_hopeless(&mut self, index: BlockIndex) {
        let (sources, gone) = (&self.sources, &self.gone);
        let Some(block) = self.blocks.get_mut(index as usize) else {
            return;
        };
        for place in 0..block.chances.len() {
            let Some(chance) = block.chances.get(place).filter(|chance| !chance.spent) else {
                continue;
            };
            let candidate = chance.candidate;
            let failure = match sources.get(&candidate.source).map(|source| source.path) {
                Some(Path::Dead(failure)) => failure,
                _ if gone.contains(&(candidate.source, candidate.region)) => Failure::Stale,
                _ => continue,
            };
            block.spend(place, failure);
        }
    }
}
