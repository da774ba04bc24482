//! Copies that a coordinator orders: pulled in the background, when engines leave time for it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use kvferry_proto::{
    BlockHash, NamespaceSpec, PackedHashes,
    pb::{self, OutcomeKind, replicated::Verdict},
};
use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinSet,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{
    LocalApi,
    pull::{Pull, PullInto},
};
use crate::{
    coordinators::Located,
    metrics::CopyVerdict,
    region::{Chain, ClientId, PinId},
    session::CopyOrder,
};

/// Orders that wait, of all coordinators; over it they are told that there is enough to do.
pub(crate) const MAX_ORDERS_WAITING: usize = 8;
/// Orders at work at a time: one reads while the other lands.
const ORDERS_AT_ONCE: usize = 2;
/// Blocks pulled before engines are let first again.
const BLOCKS_AT_ONCE: usize = 16;
/// Engines come first, but not for ever: after this long with pulls of theirs under way, the next
/// blocks are pulled beside them.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often is looked whether engines are done.
const LOOK: Duration = Duration::from_millis(10);
/// Nobody's connection: clients are numbered from 1.
const NOBODY: ClientId = ClientId(0);

impl LocalApi {
    /// Carries orders out until told to stop.
    pub(crate) async fn make_copies(
        self,
        mut orders: mpsc::Receiver<CopyOrder>,
        stop: CancellationToken,
    ) {
        let places = Arc::new(Semaphore::new(ORDERS_AT_ONCE));
        let mut at_work = JoinSet::new();
        loop {
            while at_work.try_join_next().is_some() {}
            let place = tokio::select! {
                () = stop.cancelled() => return,
                place = Arc::clone(&places).acquire_owned() => place,
            };
            let order = tokio::select! {
                () = stop.cancelled() => return,
                order = orders.recv() => order,
            };
            let (Ok(place), Some(CopyOrder { message, reply })) = (place, order) else {
                return;
            };
            let api = self.clone();
            at_work.spawn(async move {
                let blocks = hashes_in(&message);
                let said = api.carry_out(message).await;
                api.count(&said, blocks);
                // The session is gone only where the agent stops.
                reply.send(said).await.ok();
                drop(place);
            });
        }
    }

    fn count(&self, said: &pb::Replicated, blocks: usize) {
        let verdict = match said.verdict() {
            Verdict::Done => CopyVerdict::Done,
            Verdict::Full => CopyVerdict::Full,
            // Busy is what a session says of orders that never come here.
            Verdict::Refused | Verdict::Busy | Verdict::Unspecified => CopyVerdict::Refused,
        };
        self.pulls.copy_orders.of(verdict).inc();
        if verdict != CopyVerdict::Refused {
            let made = blocks.saturating_sub(said.failed.len());
            self.pulls.copies_made.add(made as u64);
        }
    }

    pub(super) async fn carry_out(&self, order: pb::Replicate) -> pb::Replicated {
        let number = order.order;
        let verdict = |verdict: Verdict| pb::Replicated {
            order: number,
            verdict: verdict.into(),
            failed: Vec::new(),
        };
        if !self.defaults.replicate {
            return verdict(Verdict::Refused);
        }
        let Some(job) = Job::parse(order) else {
            warn!(order = number, "an order to copy makes no sense");
            return verdict(Verdict::Refused);
        };
        // Before the pool is made: a namespace that does not fit is none of ours.
        let Ok(into) = self.pool_destination(&job.spec, None) else {
            let all = 0..job.hashes.len() as u32;
            return pb::Replicated {
                failed: all.collect(),
                ..verdict(Verdict::Full)
            };
        };
        let PullInto::Pool { region, .. } = into else {
            return verdict(Verdict::Refused);
        };
        let (mut failed, mut full) = (Vec::new(), false);
        for start in (0..job.hashes.len()).step_by(BLOCKS_AT_ONCE) {
            self.let_engines_first().await;
            let blocks: Vec<usize> =
                (start..job.hashes.len().min(start + BLOCKS_AT_ONCE)).collect();
            let pull = Pull {
                spec: Arc::clone(&job.spec),
                hashes: blocks.iter().map(|i| job.hashes[*i]).collect(),
                chain: Chain::Unknown,
                into: PullInto::Pool {
                    region: Arc::clone(&region),
                    ttl: None,
                },
                private: false,
                spare: true,
                stages: None,
                columns: false,
                known: job.known.as_ref().map(|known| known.subset(&blocks)),
                timeout: job.deadline.saturating_duration_since(Instant::now()),
            };
            for (index, kind) in self.copy(pull).await.into_iter().enumerate() {
                if !matches!(kind, OutcomeKind::Pulled | OutcomeKind::Local) {
                    full |= kind == OutcomeKind::NoSpace;
                    failed.push((start + index) as u32);
                }
            }
        }
        debug!(order = number, failed = failed.len(), full, "copies made");
        let said = if full { Verdict::Full } else { Verdict::Done };
        pb::Replicated {
            failed,
            ..verdict(said)
        }
    }

    /// What became of each block. One that nothing is known of was not copied.
    async fn copy(&self, pull: Pull) -> Vec<OutcomeKind> {
        let mut kinds = vec![OutcomeKind::Cancelled; pull.hashes.len()];
        if pull.timeout.is_zero() {
            return kinds;
        }
        let _under_way = UnderWay::begin(&self.background);
        let Ok(mut events) = self.start_pull(NOBODY, pull) else {
            return kinds;
        };
        while let Some(event) = events.recv().await {
            for outcome in event.outcomes {
                if let Some(kind) = kinds.get_mut(outcome.index as usize) {
                    *kind = outcome.kind();
                }
            }
            if let Some(summary) = event.summary.filter(|summary| summary.pin != 0) {
                // A copy is kept as long as any other block, not longer.
                self.store.release(NOBODY, PinId(summary.pin)).ok();
            }
        }
        kinds
    }

    /// Waits while engines pull, as long as patience lasts.
    async fn let_engines_first(&self) {
        let until = Instant::now() + PATIENCE;
        while self.engines_pull() && Instant::now() < until {
            sleep(LOOK).await;
        }
    }

    fn engines_pull(&self) -> bool {
        self.pulls.in_flight() > self.background.load(Ordering::Relaxed)
    }
}

/// Blocks that an order names.
fn hashes_in(order: &pb::Replicate) -> usize {
    let hashes = order.hashes.as_ref();
    hashes.map_or(0, |packed| {
        packed.hashes.len() / packed.hash_len.max(1) as usize
    })
}

/// A pull in the background that is under way: counted, so that it is not taken for an engine's.
struct UnderWay(Arc<AtomicU64>);

impl UnderWay {
    fn begin(count: &Arc<AtomicU64>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An order that makes sense.
struct Job {
    spec: Arc<NamespaceSpec>,
    hashes: Vec<BlockHash>,
    known: Option<Located>,
    deadline: Instant,
}

impl Job {
    fn parse(order: pb::Replicate) -> Option<Self> {
        let spec = NamespaceSpec::try_from(order.namespace?).ok()?;
        let hashes = PackedHashes::parse(order.hashes?, spec.hash_len).ok()?;
        let hashes = hashes.to_hashes();
        let bytes = spec.layout.block_bytes();
        // A hint: without it, or with a bad one, the coordinator is asked.
        let known = order
            .from
            .and_then(|from| Located::parse(from, hashes.len(), bytes).ok())
            .filter(|known| known.len() == hashes.len());
        Some(Self {
            spec: Arc::new(spec),
            hashes,
            known,
            deadline: Instant::now() + Duration::from_millis(order.timeout_ms.into()),
        })
    }
}
