//! The engine, rule by rule: the exact commands.

#[cfg(test)]
mod deadlines;
#[cfg(test)]
mod failures;
#[cfg(test)]
mod given_up;
#[cfg(test)]
mod happy;
pub(crate) mod model;
#[cfg(test)]
mod striping;

use std::time::Duration;

use kvferry_proto::{Checksum, Generation, RegionId, Slot};

use super::*;
use crate::transfer::{Candidate, SourceHint};
use crate::transport::Capabilities;

pub(super) const KIB: u64 = 1024;
pub(super) const A: SourceKey = SourceKey(0);
pub(super) const B: SourceKey = SourceKey(1);

pub(super) fn ms(n: u64) -> Time {
    Duration::from_millis(n)
}

pub(super) fn link() -> Capabilities {
    Capabilities {
        max_spans: 1024,
        max_bytes: 64 << 20,
        window_bytes: 16 << 20,
        distance: 1,
        needs_checksum: false,
        span_bytes: 0,
    }
}

/// Block n of a source lies in slot n of region 1, with generation 2.
pub(super) fn at(source: SourceKey, slot: u32) -> Candidate {
    Candidate {
        source,
        region: RegionId(1),
        slot: Slot(slot),
        generation: Generation(2),
        checksum: None,
        spans: 1,
    }
}

pub(super) fn summed(source: SourceKey, slot: u32) -> Candidate {
    Candidate {
        checksum: Some(Checksum::of_bytes(b"x")),
        ..at(source, slot)
    }
}

pub(super) fn slot(block: u32) -> SlotRead {
    SlotRead {
        block,
        region: RegionId(1),
        slot: Slot(block),
    }
}

pub(super) fn finish(block: u32, outcome: Outcome, source: Option<SourceKey>) -> Command {
    Command::Finish {
        block,
        outcome,
        source,
    }
}

pub(super) fn read(op: u64, source: SourceKey, blocks: &[u32]) -> Command {
    Command::Read {
        op: OpId(op),
        source,
        slots: blocks.iter().copied().map(slot).collect(),
    }
}

pub(super) fn generations(op: u64, source: SourceKey, blocks: &[u32]) -> Command {
    Command::ReadGenerations {
        op: OpId(op),
        source,
        slots: blocks.iter().copied().map(slot).collect(),
    }
}

/// An engine with its clock.
pub(super) struct Bench {
    pub(super) engine: PullEngine,
    pub(super) now: Time,
}

impl Bench {
    pub(super) fn new(blocks: u32) -> Self {
        Self::with(blocks, TransferConfig::default(), 64 * KIB)
    }

    pub(super) fn with(blocks: u32, config: TransferConfig, block_bytes: u64) -> Self {
        let request = PullRequest {
            blocks,
            block_bytes,
            timeout: ms(10_000),
            must_verify: BTreeSet::new(),
        };
        let now = ms(1_000);
        Self {
            engine: PullEngine::new(config, request, now),
            now,
        }
    }

    pub(super) fn commands(&mut self) -> Vec<Command> {
        std::iter::from_fn(|| self.engine.poll_command()).collect()
    }

    /// The commands that follow these events.
    pub(super) fn on(&mut self, events: impl IntoIterator<Item = Event>) -> Vec<Command> {
        for event in events {
            self.engine.handle(self.now, event);
        }
        self.commands()
    }

    /// The commands that time brings; it must be the time the engine asked for.
    pub(super) fn timeout(&mut self, after: Time) -> Vec<Command> {
        assert_eq!(self.engine.poll_timeout(), Some(ms(1_000) + after));
        self.now = ms(1_000) + after;
        self.engine.handle_timeout(self.now);
        self.commands()
    }

    /// Locates (operation 0) and prepares everything.
    pub(super) fn prepared(&mut self, candidates: Vec<Vec<Candidate>>) -> Vec<Command> {
        let blocks: Vec<u32> = (0..candidates.len() as u32).collect();
        assert_eq!(
            self.commands(),
            [Command::Locate {
                op: OpId(0),
                blocks: blocks.clone()
            }]
        );
        let prepare = self.on([located(0, candidates)]);
        assert_eq!(
            prepare,
            [Command::Prepare {
                blocks: blocks.clone()
            }]
        );
        self.on(blocks.into_iter().map(|block| Event::Prepared { block }))
    }

    /// As `prepared`, then connects to these.
    pub(super) fn connected(
        &mut self,
        candidates: Vec<Vec<Candidate>>,
        to: &[SourceKey],
    ) -> Vec<Command> {
        let connects: Vec<_> = to
            .iter()
            .map(|&source| Command::Connect { source })
            .collect();
        assert_eq!(self.prepared(candidates), connects);
        self.on(to.iter().map(|&source| connected(source)))
    }
}

pub(super) fn connected(source: SourceKey) -> Event {
    Event::Connected {
        source,
        capabilities: link(),
    }
}

pub(super) fn located(op: u64, candidates: Vec<Vec<Candidate>>) -> Event {
    Event::Located {
        op: OpId(op),
        hints: [A, B]
            .map(|source| SourceHint {
                source,
                suspect: false,
                distance: 1,
            })
            .to_vec(),
        candidates: candidates.into_iter().map(Into::into).collect(),
    }
}

pub(super) fn done(op: u64) -> Event {
    Event::ReadDone { op: OpId(op) }
}

pub(super) fn words(op: u64, words: &[u64]) -> Event {
    Event::GenerationsDone {
        op: OpId(op),
        words: words.to_vec(),
    }
}

pub(super) fn failed(op: u64, failure: crate::transfer::ReadFailure) -> Event {
    Event::ReadFailed {
        op: OpId(op),
        failure,
    }
}

pub(super) fn land(block: u32) -> Command {
    Command::Land {
        block,
        checksum: None,
    }
}
