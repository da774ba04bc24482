//! What a run did, in numbers.

use std::fmt;

use kvferry_agent::transfer::Outcome;

use crate::promise::Violation;

/// Counts of one run, or of many.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(missing_docs)] // they are their names
pub struct Stats {
    pub events: u64,
    pub operations: u64,
    pub published: u64,
    pub pulls: u64,
    pub drained: u64,
    pub locates: u64,
    pub reads: u64,
    pub reads_checked: u64,
    pub pulled: u64,
    pub missing: u64,
    pub stale: u64,
    pub corrupt: u64,
    pub unreachable: u64,
    pub timed_out: u64,
    pub unsettled: u64,
    pub other: u64,
    pub pins_checked: u64,
    pub claims: u64,
    pub faults: u64,
    pub processes: u64,
    pub deltas: u64,
    pub lost_deltas: u64,
    pub gaps: u64,
    pub resyncs: u64,
    pub inventories: u64,
    pub removals: u64,
    pub superseded: u64,
    pub fenced_heard: u64,
    pub probes: u64,
    pub surplus: u64,
    pub watches: u64,
    pub watches_resumed: u64,
    pub watches_anew: u64,
    pub watch_messages: u64,
    pub watchers_stuck: u64,
    pub watchers_behind: u64,
    pub locations_put: u64,
    pub locations_asked: u64,
    pub copies_ordered: u64,
    pub copies_made: u64,
    pub suspected: u64,
    pub hellos: u64,
    pub hellos_answered: u64,
    pub sets_said: u64,
    pub claim_calls: u64,
    pub claims_unanswered: u64,
    pub namespaces_deleted: u64,
    pub watches_deleted: u64,
    pub tensor_pulls: u64,
    pub tensor_pulls_whole: u64,
    pub tensors_checked: u64,
    pub chunks_here_before: u64,
}

impl Stats {
    pub(crate) fn outcome(&mut self, outcome: Outcome) {
        *match outcome {
            Outcome::Pulled => &mut self.pulled,
            Outcome::Missing => &mut self.missing,
            Outcome::Stale => &mut self.stale,
            Outcome::Corrupt => &mut self.corrupt,
            Outcome::Unreachable => &mut self.unreachable,
            Outcome::TimedOut { settled: true } => &mut self.timed_out,
            Outcome::TimedOut { settled: false } | Outcome::Cancelled { settled: false } => {
                &mut self.unsettled
            }
            _ => &mut self.other,
        } += 1;
    }

    fn fields(&mut self) -> [(&'static str, &mut u64); 52] {
        macro_rules! of {
            ($($field:ident),*) => { [$((stringify!($field), &mut self.$field)),*] };
        }
        of![
            events,
            operations,
            published,
            pulls,
            drained,
            locates,
            reads,
            reads_checked,
            pulled,
            missing,
            stale,
            corrupt,
            unreachable,
            timed_out,
            unsettled,
            other,
            pins_checked,
            claims,
            faults,
            processes,
            deltas,
            lost_deltas,
            gaps,
            resyncs,
            inventories,
            removals,
            superseded,
            fenced_heard,
            probes,
            surplus,
            watches,
            watches_resumed,
            watches_anew,
            watch_messages,
            watchers_stuck,
            watchers_behind,
            locations_put,
            locations_asked,
            copies_ordered,
            copies_made,
            suspected,
            hellos,
            hellos_answered,
            sets_said,
            claim_calls,
            claims_unanswered,
            namespaces_deleted,
            watches_deleted,
            tensor_pulls,
            tensor_pulls_whole,
            tensors_checked,
            chunks_here_before
        ]
    }

    /// Adds another run's counts.
    pub fn add(&mut self, mut other: Self) {
        for ((_, sum), (_, more)) in self.fields().into_iter().zip(other.fields()) {
            *sum += *more;
        }
    }
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut stats = *self;
        let mut first = true;
        for (name, count) in stats.fields() {
            if *count > 0 {
                let comma = if std::mem::take(&mut first) { "" } else { ", " };
                write!(f, "{comma}{} {count}", name.replace('_', " "))?;
            }
        }
        Ok(())
    }
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Its seed.
    pub seed: u64,
    /// Of everything that happened: equal for equal runs.
    pub digest: u64,
    /// Faults in its schedule.
    pub faults: usize,
    /// What was broken; None where every promise held.
    pub violation: Option<Violation>,
    /// What it did.
    pub stats: Stats,
}
