//! Pulls, as engines asked for them.

use kvferry_observe::{ByLabel, Counter, Histogram, label};
use kvferry_proto::pb::{BlockOutcome, OutcomeKind};

use crate::transport::TransportKind;

label! {
    /// What became of a block.
    pub(crate) enum Outcome("outcome") {
        Pulled = "pulled",
        /// It was here already.
        Local = "local",
        Missing = "missing",
        Stale = "stale",
        Corrupt = "corrupt",
        Unreachable = "unreachable",
        TimedOut = "timed_out",
        LocateFailed = "locate_failed",
        NoSpace = "no_space",
        Denied = "denied",
        Cancelled = "cancelled",
    }
}

impl Outcome {
    fn of(kind: OutcomeKind) -> Self {
        match kind {
            OutcomeKind::Pulled => Self::Pulled,
            OutcomeKind::Local => Self::Local,
            OutcomeKind::Missing => Self::Missing,
            OutcomeKind::Stale => Self::Stale,
            OutcomeKind::Corrupt => Self::Corrupt,
            OutcomeKind::Unreachable => Self::Unreachable,
            OutcomeKind::TimedOut => Self::TimedOut,
            OutcomeKind::LocateFailed => Self::LocateFailed,
            OutcomeKind::NoSpace => Self::NoSpace,
            OutcomeKind::Denied => Self::Denied,
            OutcomeKind::Cancelled | OutcomeKind::Unspecified => Self::Cancelled,
        }
    }
}

label! {
    /// What came of an order to copy.
    pub(crate) enum CopyVerdict("outcome") {
        Done = "done",
        /// No slot was free.
        Full = "full",
        /// No copies are taken here.
        Refused = "refused",
    }
}

label! {
    /// What came of a pull of tensors.
    pub(crate) enum TensorsEnd("outcome") {
        /// Every tensor asked for is here.
        Complete = "complete",
        /// Some are.
        Partial = "partial",
        /// Nobody waited for it any more.
        GivenUp = "given_up",
    }
}

/// Of all pulls since the agent started.
#[derive(Debug, Default)]
pub(crate) struct PullMetrics {
    /// Pulls begun.
    pub(crate) begun: Counter,
    /// Pulls ended, and how long they took; those between are in flight.
    pub(crate) took: Histogram,
    /// Blocks by what became of them.
    pub(crate) outcomes: ByLabel<Outcome, Counter>,
    /// Blocks that came from other nodes, by how.
    pub(crate) blocks: ByLabel<TransportKind, Counter>,
    /// Their bytes.
    pub(crate) bytes: ByLabel<TransportKind, Counter>,
    /// Pulls whose deadline came before all their blocks.
    pub(crate) deadlines: Counter,
    /// Orders of coordinators to copy blocks, carried out.
    pub(crate) copy_orders: ByLabel<CopyVerdict, Counter>,
    /// Blocks that are here because of them.
    pub(crate) copies_made: Counter,
    /// Pulls of tensors begun.
    pub(crate) tensors_begun: Counter,
    /// Those that are over.
    pub(crate) tensors_ended: ByLabel<TensorsEnd, Counter>,
    /// Tensors that are here because of them, whatever they came from.
    pub(crate) tensors_here: Counter,
}

impl PullMetrics {
    /// Pulls that have not ended.
    pub(crate) fn in_flight(&self) -> u64 {
        self.begun.get().saturating_sub(self.took.count())
    }

    /// Some blocks of one pull were not pulled. Most have the same outcome: they are counted together.
    pub(crate) fn count(&self, outcomes: &[BlockOutcome]) {
        for same in outcomes.chunk_by(|a, b| a.kind == b.kind) {
            let (Some(first), blocks) = (same.first(), same.len() as u64) else {
                continue;
            };
            self.outcomes.of(Outcome::of(first.kind())).add(blocks);
        }
    }

    /// So many blocks of one pull came that way.
    pub(crate) fn pulled_by(&self, kind: Option<TransportKind>, blocks: u64, block_bytes: u64) {
        self.outcomes.of(Outcome::Pulled).add(blocks);
        if let Some(kind) = kind {
            self.blocks.of(kind).add(blocks);
            self.bytes.of(kind).add(blocks.saturating_mul(block_bytes));
        }
    }

    /// Blocks and bytes that came from other nodes.
    pub(crate) fn pulled(&self) -> (u64, u64) {
        let all = |of: &ByLabel<TransportKind, Counter>| of.iter().map(|(_, n)| n.get()).sum();
        (all(&self.blocks), all(&self.bytes))
    }

    /// Blocks whose last copy was overwritten.
    pub(crate) fn stale(&self) -> u64 {
        self.outcomes.of(Outcome::Stale).get()
    }

    /// Blocks that could not be had although somebody may have them, stale ones aside.
    pub(crate) fn failed(&self) -> u64 {
        use Outcome::{Cancelled, Local, Missing, Pulled, Stale};
        let failed = self.outcomes.iter().filter(|(outcome, _)| {
            !matches!(outcome, Pulled | Local | Missing | Stale | Cancelled)
        });
        failed.map(|(_, blocks)| blocks.get()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(kind: OutcomeKind) -> BlockOutcome {
        BlockOutcome {
            kind: kind.into(),
            ..BlockOutcome::default()
        }
    }

    #[test]
    fn every_outcome_is_counted_and_pulled_bytes_by_transport() {
        let metrics = PullMetrics::default();
        let outcomes = [
            outcome(OutcomeKind::Local),
            outcome(OutcomeKind::Stale),
            outcome(OutcomeKind::TimedOut),
            outcome(OutcomeKind::NoSpace),
            outcome(OutcomeKind::Missing),
            outcome(OutcomeKind::Denied),
            outcome(OutcomeKind::Cancelled),
        ];
        metrics.count(&outcomes);
        metrics.pulled_by(Some(TransportKind::Tcp), 3, 100);
        metrics.pulled_by(Some(TransportKind::Shm), 1, 100);
        assert_eq!(metrics.blocks.of(TransportKind::Tcp).get(), 3);
        assert_eq!(metrics.bytes.of(TransportKind::Shm).get(), 100);
        assert_eq!(metrics.pulled(), (4, 400));
        assert_eq!((metrics.stale(), metrics.failed()), (1, 3));
        let all: u64 = metrics.outcomes.iter().map(|(_, n)| n.get()).sum();
        assert_eq!(all, 4 + outcomes.len() as u64);
    }
}
