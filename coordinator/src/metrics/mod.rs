//! What a coordinator says of itself.
//!
//! | file | what |
//! | --- | --- |
//! | `mod` | the counters, and where calls and effects are counted |
//! | `labels` | the values labels may have |
//! | `page` | names and texts, and what is read from the directory for a scrape |
//!
//! A subject with counters of its own is a struct beside these and a function in `page`. No label names
//! a namespace, a node or a client: there may be a million of them. `kvferry namespaces` and
//! `kvferry nodes` tell of each.

mod labels;
mod page;

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

use kvferry_observe::{ByLabel, ByLabels, Counter, Gauge, Histogram};
use tonic::codegen::http::{HeaderMap, header::HeaderValue};

use crate::{directory::Effect, replication, sources};
pub(crate) use labels::{
    Called, Copied, Draining, Ended, Ordered, Said, Standing, TicketOutcome, Unwatched,
};
use labels::{Outcome, Refused, Removed, Resync};
pub(crate) use page::CoordinatorObserved;

/// Shared by every call and session.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    requests: ByLabels<Called, Outcome, Histogram>,
    /// Of Locate: hashes asked for, and those that somebody has.
    hashes: Counter,
    found: Counter,
    /// What agents said on their sessions.
    messages: ByLabel<Said, Counter>,
    ends: ByLabel<Ended, Counter>,
    resyncs: ByLabel<Resync, Counter>,
    removals: ByLabel<Removed, Counter>,
    refusals: ByLabel<Refused, Counter>,
    stale: Counter,
    /// Copies that agents were told they may evict first.
    surplus: Counter,
    /// Changes of structure and of copies that watchers were told, those of their start included.
    watch_told: Counter,
    unwatched: ByLabel<Unwatched, Counter>,
    tickets: ByLabel<TicketOutcome, Counter>,
    copying: CopyingMetrics,
    sources: SourcesMetrics,
    serving: AtomicBool,
}

/// Copies that are ordered.
#[derive(Debug, Default)]
struct CopyingMetrics {
    /// Orders under way, and what came of the others.
    under_way: Gauge,
    orders: ByLabel<Ordered, Counter>,
    copies: ByLabel<Copied, Counter>,
    namespaces: Gauge,
    hot: Gauge,
    lacking: Gauge,
    drains: ByLabel<Draining, Gauge>,
    drains_left: Gauge,
}

/// Named sets of tensors.
#[derive(Debug, Default)]
struct SourcesMetrics {
    sources: Gauge,
    workers: ByLabel<Standing, Gauge>,
    changes: ByLabel<Standing, Counter>,
    table_bytes: Gauge,
}

impl Metrics {
    /// A call was answered; `head` is that of the answer. Two atomic additions.
    pub(crate) fn answered(&self, called: Called, since: Instant, head: &HeaderMap<HeaderValue>) {
        // A call that fails before its body says so in its head; one that goes well, behind its body.
        let outcome = match head.get("grpc-status") {
            None => Outcome::Ok,
            Some(code) => Outcome::of(code.as_bytes()),
        };
        self.requests.of(called, outcome).observe(since.elapsed());
    }

    /// A Locate looked these up.
    pub(crate) fn located(&self, hashes: usize, found: u32) {
        self.hashes.add(hashes as u64);
        self.found.add(found.into());
    }

    /// An agent said something on its session.
    pub(crate) fn said(&self, said: Said) {
        self.messages.of(said).inc();
    }

    /// A reader found so many blocks overwritten where it was sent.
    pub(crate) fn stale(&self, blocks: u64) {
        self.stale.add(blocks);
    }

    /// A session came to an end.
    pub(crate) fn ended(&self, why: Ended) {
        self.ends.of(why).inc();
    }

    /// The directory wants something done.
    pub(crate) fn effect(&self, effect: &Effect) {
        match effect {
            Effect::Welcome { resync: true, .. } => self.resyncs.of(Resync::Hello).inc(),
            Effect::ResyncRequest { .. } => self.resyncs.of(Resync::Gap).inc(),
            Effect::DeclareAgain { .. } => self.resyncs.of(Resync::Refused).inc(),
            Effect::NodeRemoved { cause, .. } => self.removals.of(Removed::from(*cause)).inc(),
            Effect::RegionRefused { refusal, .. } => {
                self.refusals.of(Refused::from(refusal)).inc();
            }
            Effect::Close { cause, .. } => self.ended(Ended::from(cause)),
            Effect::Surplus { copies, .. } => self.surplus.add(copies.len() as u64),
            Effect::Welcome { .. }
            | Effect::Ack { .. }
            | Effect::HeartbeatAck { .. }
            | Effect::NodeHidden { .. }
            | Effect::NodeShown { .. } => {}
        }
    }

    /// A ticket was asked for.
    pub(crate) fn ticket(&self, issued: TicketOutcome) {
        self.tickets.of(issued).inc();
    }

    /// A watcher was told of so many changes.
    pub(crate) fn watch_told(&self, changes: usize) {
        self.watch_told.add(changes as u64);
    }

    /// A watcher is told no more.
    pub(crate) fn unwatched(&self, why: Unwatched) {
        self.unwatched.of(why).inc();
    }

    /// So many orders to copy were given.
    pub(crate) fn ordered(&self, orders: usize) {
        self.copying.under_way.add(orders as i64);
    }

    /// An order is over.
    pub(crate) fn order_ended(&self, why: Ordered, outcome: &replication::Outcome) {
        let copying = &self.copying;
        copying.under_way.add(-1);
        copying.orders.of(why).inc();
        copying.copies.of(Copied::Made).add(outcome.copied as u64);
        copying.copies.of(Copied::Failed).add(outcome.failed as u64);
    }

    /// What is asked for, as of now.
    pub(crate) fn wanted(&self, wanted: &replication::Sums) {
        let copying = &self.copying;
        copying.namespaces.set(wanted.namespaces);
        copying.hot.set(wanted.hot);
        copying.lacking.set(wanted.lacking);
        copying.drains_left.set(wanted.drains_left);
        for (state, drains) in wanted.drains {
            copying.drains.of(state.into()).set(drains);
        }
    }

    /// A worker of a source stands otherwise.
    pub(crate) fn source_changed(&self, state: sources::WorkerState) {
        self.sources.changes.of(state.into()).inc();
    }

    /// What there is of sources, as of now.
    pub(crate) fn sources(&self, sums: &sources::Sums) {
        self.sources.sources.set(sums.sources as u64);
        self.sources.table_bytes.set(sums.table_bytes as u64);
        for (state, gauge) in self.sources.workers.iter() {
            gauge.set(match state {
                Standing::Initialising => sums.initialising,
                Standing::Ready => sums.ready,
                Standing::Stale => sums.stale,
                Standing::Gone => sums.gone,
            });
        }
    }

    /// Calls are answered from now on, or no more.
    pub(crate) fn serve(&self, serving: bool) {
        self.serving.store(serving, Ordering::Relaxed);
    }
}
