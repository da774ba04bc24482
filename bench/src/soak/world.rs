//! What all actors share.

use std::sync::atomic::{AtomicU64, Ordering};

use kvferry_proto::pb;
use tokio::time::{Instant, sleep_until};
use tonic::{Code, Response, Status};

use super::{
    Plan,
    counts::{Counts, Kind},
    server::Target,
};
use crate::{
    BenchError,
    workload::{HASH_LEN, mix, pack},
};

/// Blocks that are done something to at a time.
pub(super) const RUN: u64 = 64;

#[derive(Debug)]
pub(super) struct World {
    pub(super) url: String,
    pub(super) plan: Plan,
    pub(super) counts: Counts,
    ends: Instant,
    /// The next block that never was.
    next: AtomicU64,
}

impl World {
    pub(super) fn new(target: &Target, plan: Plan) -> Self {
        Self {
            url: target.url.clone(),
            plan,
            counts: Counts::default(),
            ends: Instant::now() + plan.time,
            next: AtomicU64::new(0),
        }
    }

    pub(super) fn over(&self) -> bool {
        Instant::now() >= self.ends
    }

    /// Until then, or until the end if that is sooner.
    pub(super) async fn wait_until(&self, then: Instant) {
        sleep_until(then.min(self.ends)).await;
    }

    /// A run of blocks: every other one never was before, the rest are of those made of late, as many
    /// as all nodes hold together.
    pub(super) fn blocks(&self, draw: &mut Draw, len: u64) -> Vec<u64> {
        let window = u64::from(self.plan.nodes) * u64::from(self.plan.blocks_per_node);
        if draw.below(2) == 0 {
            let first = self.next.fetch_add(len, Ordering::Relaxed);
            return (first..first + len).collect();
        }
        let next = self.next.load(Ordering::Relaxed);
        let first = next.saturating_sub(1 + draw.below(window.max(1)));
        (first..first + len).collect()
    }

    /// What was answered; None where it was refused for a reason that churn brings with it: the node
    /// or namespace is not there now, or a bound is reached.
    pub(super) fn unless_refused<T>(
        &self,
        answer: Result<Response<T>, Status>,
    ) -> Result<Option<T>, BenchError> {
        match answer {
            Ok(answer) => Ok(Some(answer.into_inner())),
            Err(status)
                if matches!(
                    status.code(),
                    Code::NotFound | Code::FailedPrecondition | Code::ResourceExhausted
                ) =>
            {
                self.counts.add(Kind::Refused, 1);
                Ok(None)
            }
            Err(status) => Err(status.into()),
        }
    }
}

pub(super) fn packed(blocks: impl ExactSizeIterator<Item = u64>) -> pb::PackedHashes {
    pb::PackedHashes {
        hash_len: HASH_LEN as u32,
        hashes: pack(blocks),
    }
}

/// What an actor draws: SplitMix64.
#[derive(Debug)]
pub(super) struct Draw(u64);

impl Draw {
    pub(super) fn new(seed: u64, actor: u64) -> Self {
        Self(mix(seed.wrapping_add(mix(actor))))
    }

    /// 0 to `end`, `end` not included.
    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0) % end
    }
}
