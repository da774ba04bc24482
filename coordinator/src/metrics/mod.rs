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

use kvferry_observe::{ByLabel, ByLabels, Counter, Histogram};
use tonic::codegen::http::{HeaderMap, header::HeaderValue};

use crate::directory::Effect;
pub(crate) use labels::{Called, Ended, Said};
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
    serving: AtomicBool,
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
            Effect::NodeRemoved { cause, .. } => self.removals.of(Removed::from(*cause)).inc(),
            Effect::RegionRefused { refusal, .. } => {
                self.refusals.of(Refused::from(refusal)).inc();
            }
            Effect::Close { cause, .. } => self.ended(Ended::from(cause)),
            Effect::Welcome { .. }
            | Effect::Ack { .. }
            | Effect::HeartbeatAck { .. }
            | Effect::NodeHidden { .. }
            | Effect::NodeShown { .. }
            | Effect::Surplus { .. } => {}
        }
    }

    /// Calls are answered from now on, or no more.
    pub(crate) fn serve(&self, serving: bool) {
        self.serving.store(serving, Ordering::Relaxed);
    }
}
