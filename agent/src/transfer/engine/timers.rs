//! Deadlines, stalls, and giving up.

use super::{PullEngine, State, Stop};
use crate::sabotage::{self, Bug};
use crate::transfer::{
    Time,
    command::{BlockIndex, Command, OpId, SourceKey},
    outcome::{Failure, Outcome},
    source::Path,
};

impl PullEngine {
    /// Does what is due. To be called after the events that have happened by now, so that a driver
    /// that was itself held up does not take its own pause for a stall.
    pub fn handle_timeout(&mut self, now: Time) {
        self.pass_deadlines(now);
        if self.stop.is_none() {
            self.pass_stalls();
        }
    }

    /// When [`PullEngine::handle_timeout`] is due, if nothing happens before. To be asked after the
    /// commands.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        if self.is_finished() {
            return None;
        }
        if self.stop.is_some() {
            return Some(self.hard_at);
        }
        let locate = (self.locating.asked.is_none() && !self.locating.pending.is_empty())
            .then_some(self.locating.at);
        let stall = self.watched().map(|(_, due)| due).min();
        [Some(self.settle_at), locate, stall]
            .into_iter()
            .flatten()
            .min()
    }

    /// Sources that owe us something, and until when.
    fn watched(&self) -> impl Iterator<Item = (SourceKey, Time)> + '_ {
        let bound = self.config.stall_bound;
        self.sources.iter().filter_map(move |(&key, source)| {
            let since = match source.path {
                _ if sabotage::is(Bug::StallsIgnored) => return None,
                Path::Opening { since, late: false } => since,
                Path::Open(_) if self.owes(key) => source.progress_at,
                _ => return None,
            };
            Some((key, since.saturating_add(bound)))
        })
    }

    /// Reads that nobody gave up are under way.
    pub(super) fn owes(&self, key: SourceKey) -> bool {
        self.ops
            .values()
            .any(|op| op.source == key && !op.cancelled)
    }

    /// Leaves sources that stand still alone. Whether they ever settle is seen when they do.
    fn pass_stalls(&mut self) {
        let due: Vec<_> = self
            .watched()
            .filter(|(_, due)| *due <= self.now)
            .map(|(key, _)| key)
            .collect();
        for key in due {
            if let Some(source) = self.sources.get_mut(&key) {
                source.troubled = true;
                if let Path::Opening { late, .. } = &mut source.path {
                    *late = true;
                }
            }
            self.push(Command::Suspect { source: key });
            self.cancel_ops(Some(key));
            self.send_away(key, Failure::Unreachable);
        }
    }

    fn cancel_ops(&mut self, of: Option<SourceKey>) {
        let mut cancelled: Vec<OpId> = Vec::new();
        for (&id, op) in &mut self.ops {
            if !op.cancelled && of.is_none_or(|key| key == op.source) {
                op.cancelled = true;
                cancelled.push(id);
            }
        }
        for op in cancelled {
            self.push(Command::Cancel { op });
        }
    }

    pub(super) fn pass_deadlines(&mut self, now: Time) {
        // Time that runs backwards stands still.
        self.now = self.now.max(now);
        if sabotage::is(Bug::DeadlineMissed) {
            return;
        }
        if self.now >= self.settle_at {
            self.begin_stop(Stop::Timeout);
        }
        if self.stop.is_some() && self.now >= self.hard_at {
            self.give_up();
        }
    }

    /// No read begins any more; reads under way are cancelled. Blocks whose bytes have been validated
    /// may still land.
    pub(super) fn begin_stop(&mut self, stop: Stop) {
        if self.stop.is_some() {
            return;
        }
        self.stop = Some(stop);
        if stop == Stop::Cancel {
            let margin = self.config.settle_margin;
            self.hard_at = self.hard_at.min(self.now.saturating_add(margin));
        }
        self.cancel_ops(None);
        self.locating.pending.clear();
        self.locating.asked = None;
        self.waiting.clear();
        for source in self.sources.values_mut() {
            source.queue.clear();
            source.unchecked.clear();
        }
        for index in self.indices() {
            let Some(block) = self.blocks.get(index as usize) else {
                continue;
            };
            if block.state == State::Done || block.state.is_outside() {
                continue;
            }
            let outcome = match (stop, block.state) {
                // What was tried in vain is known; only asking again was not done.
                (Stop::Timeout, State::Locating) if block.failure.is_some() => block.verdict(),
                (Stop::Timeout, State::Locating) if self.locating.failed => Outcome::LocateFailed,
                _ => stop.outcome(true),
            };
            self.close(index, outcome);
        }
    }

    /// The deadline: blocks that something may still touch get their outcome; their destinations
    /// are given back when that has ended.
    fn give_up(&mut self) {
        let Some(stop) = self.stop else {
            return;
        };
        if self.is_finished() {
            return;
        }
        for index in self.indices() {
            if sabotage::is(Bug::FreedBeforeSettled) {
                self.close(index, stop.outcome(false));
            }
            if sabotage::is(Bug::OutcomeTwice)
                && let Some(block) = self.block_mut(index)
                && block.finished
            {
                block.finished = false;
                self.unfinished += 1;
            }
            self.finish(index, stop.outcome(false));
        }
    }

    fn indices(&self) -> std::ops::Range<BlockIndex> {
        // As many as the request's u32 said.
        0..u32::try_from(self.blocks.len()).unwrap_or(u32::MAX)
    }
}
