//! What has happened to links.

use std::sync::atomic::{AtomicU64, Ordering};

use kvferry_observe::{ByLabel, ByLabels, Counter, Label, label};

use crate::transport::{ConnectError, TransportKind};

label! {
    /// Why the best transport did not lead to a peer.
    pub enum FallbackReason("reason") {
        /// Nobody answered.
        Unreachable = "unreachable",
        /// The peer refused.
        Refused = "refused",
        /// It has no way to that peer after all.
        NoPath = "no_path",
        /// It failed, or its link was lost, a moment ago: it was not tried.
        FailedRecently = "failed_recently",
        /// The peer refused our ticket, or no coordinator gave one.
        Ticket = "ticket",
        /// The way there was not as safe as it must be.
        Insecure = "insecure",
        /// Another lifetime of the peer answered.
        Restarted = "restarted",
    }
}

impl From<&ConnectError> for FallbackReason {
    fn from(error: &ConnectError) -> Self {
        match error {
            ConnectError::Unreachable { .. } => Self::Unreachable,
            ConnectError::Refused { .. } | ConnectError::UserRefused { .. } => Self::Refused,
            ConnectError::NoPath { .. } => Self::NoPath,
            ConnectError::TicketRefused { .. } | ConnectError::NoTicket { .. } => Self::Ticket,
            ConnectError::Insecure { .. } => Self::Insecure,
            ConnectError::WrongIncarnation { .. } => Self::Restarted,
        }
    }
}

/// What has happened so far, for metrics.
#[derive(Debug, Default)]
pub struct LinkCounters {
    pub(super) connects: AtomicU64,
    pub(super) failures: AtomicU64,
    pub(super) backed_off: AtomicU64,
    /// By the best transport that should have reached the peer, the one that did, and why.
    fallbacks: ByLabel<TransportKind, ByLabels<TransportKind, FallbackReason, Counter>>,
    pub(super) recoveries: AtomicU64,
    pub(super) distrusted: AtomicU64,
    pub(super) evictions: AtomicU64,
    pub(super) probes: AtomicU64,
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        impl LinkCounters {
            $($(#[$doc])*
            #[must_use]
            pub fn $name(&self) -> u64 {
                self.$name.load(Ordering::Relaxed)
            })*
        }
    };
}
counters! {
    /// Links opened.
    connects,
    /// Tries that opened none, over any transport.
    failures,
    /// Requests answered with the last error, without a try.
    backed_off,
    /// Peers reached by a better transport again.
    recoveries,
    /// Links given up because bytes that came over them were not those that were sealed.
    distrusted,
    /// Links dropped for being idle, void or too many.
    evictions,
    /// Probes of suspects.
    probes,
}

pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl LinkCounters {
    /// Links opened over another transport than the best that should reach the peer.
    #[must_use]
    pub fn fallbacks(&self) -> u64 {
        let rows = self.fallbacks.iter();
        let counts = rows.flat_map(|(_, row)| row.iter().map(|(.., count)| count.get()));
        counts.sum()
    }

    /// The same by best transport, taken transport and reason; without those that cannot be or, off
    /// the usual order, never were.
    pub fn fallbacks_by_way(
        &self,
    ) -> impl Iterator<Item = (&'static str, &'static str, &'static str, u64)> {
        let rows = self.fallbacks.iter();
        rows.flat_map(|(from, row)| {
            row.iter().filter_map(move |(to, reason, count)| {
                let usual =
                    from < to && to != TransportKind::Sim && reason != FallbackReason::Restarted;
                let count = count.get();
                (usual || count > 0)
                    .then(|| (from.as_str(), to.as_str(), Label::as_str(reason), count))
            })
        })
    }

    pub(super) fn fell_back(&self, from: TransportKind, to: TransportKind, why: FallbackReason) {
        self.fallbacks.of(from).of(to, why).inc();
    }
}
