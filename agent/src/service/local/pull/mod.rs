//! Bringing blocks here. The call is checked, what is here already is dealt with, and the rest goes to
//! the pull engine; all three report to one stream.

mod asking;
mod here;
mod landing;
mod report;
mod stages;

use std::{ops::Range, sync::Arc, time::Duration};

use kvferry_proto::{
    BlockHash, InvalidMessage, NamespaceSpec, NodeId, Reason, RegionId, Slot, pb,
    pb::pull_request::Destination, refusal,
};
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tonic::{Code, Status};
use tracing::Instrument;

use super::{
    BoxStream, LocalApi,
    slots::{bounded, chain, to_slots, ttl, unknown_region, unpack},
    status::OrStatus,
};
use crate::{
    coordinators::Located,
    region::{Chain, ClientId, Held, Holder, MAX_PIN_TTL, PinId, Region},
    service::client::ClientHandle,
    transfer::{self, Parts, PullRequest, PullSummary, StageEvent, StagedRequest, TransferConfig},
};
use asking::{Asking, PeerLinks};
use landing::{Landing, Subset, Target};
use report::{Report, Told};
use stages::Stages;

/// Longest pull.
const MAX_PULL_TIMEOUT: Duration = Duration::from_secs(600);
/// Pulls under way: far more than an engine has requests, few enough that their books stay small.
const MAX_PULLS: u64 = 4096;
/// What a pull in the background has on its way: an eighth of an engine's, from few sources, so that
/// those have the links.
const SPARE_INFLIGHT_BYTES: u64 = 16 << 20;
const SPARE_SOURCES: usize = 2;
/// Events waiting for an engine that reads slowly; the pull goes on beside it.
const EVENTS_AHEAD: usize = 64;

/// A pull that was found in order.
pub(super) struct Pull {
    pub(super) spec: Arc<NamespaceSpec>,
    pub(super) hashes: Vec<BlockHash>,
    pub(super) chain: Chain,
    pub(super) into: PullInto,
    /// Not to be published.
    pub(super) private: bool,
    /// In the background: takes only slots of the pool that nobody uses, and little of the links.
    pub(super) spare: bool,
    /// Pulled blocks are to be told in columns.
    pub(super) columns: bool,
    /// In stages, and how; for slots of an engine's region.
    pub(super) stages: Option<Stages>,
    /// Who holds the blocks, as somebody said already.
    pub(super) known: Option<Located>,
    pub(super) timeout: Duration,
}

/// Where to.
pub(super) enum PullInto {
    /// The namespace's pool, pinned for a client.
    Pool {
        region: Arc<Region>,
        ttl: Option<Duration>,
    },
    /// One slot of an engine's region per hash.
    Slots {
        region: Arc<Region>,
        slots: Vec<Slot>,
    },
}

impl LocalApi {
    pub(super) async fn pull_blocks(
        &self,
        client: ClientHandle,
        request: pb::PullRequest,
    ) -> Result<BoxStream<pb::PullEvent>, Status> {
        let timeout = self.pull_timeout(request.timeout_ms);
        let deadline = Instant::now() + timeout;
        let spec = self.namespace(&request.namespace, deadline).await?;
        let hashes = unpack(request.hashes, spec.hash_len)?.to_hashes();
        let into_pool = !matches!(request.destination, Some(Destination::Slots(_)));
        let stages = Stages::parse(&request.stages, &spec.layout, hashes.len(), into_pool)?;
        let into = match request.destination {
            Some(Destination::Slots(slots)) => self.slot_destination(&spec, &hashes, &slots)?,
            Some(Destination::Pool(pool)) => self.pool_destination(&spec, ttl(pool.pin_ttl_ms))?,
            None => self.pool_destination(&spec, None)?,
        };
        let pull = Pull {
            chain: chain(request.chained, &request.parent)?,
            private: request.no_replica || !self.defaults.replicate,
            spare: false,
            columns: request.columns,
            stages,
            known: None,
            timeout: deadline.saturating_duration_since(Instant::now()),
            spec,
            hashes,
            into,
        };
        let mut events = self.start_pull(client.id(), pull)?;
        // A small pull's outcomes go out with the answer's head: one write, and one thing for the engine to wake up for.
        // A pull that takes longer says that it is under way.
        let first = tokio_stream::iter(events.recv().await);
        // The client's belongings are kept as long as somebody reads the outcomes.
        Ok(Box::pin(first.chain(ReceiverStream::new(events)).map(
            move |event| {
                let _belongs_to = &client;
                Ok(event)
            },
        )))
    }

    /// A pull's timeout as it was asked for, within its bounds.
    pub(super) fn pull_timeout(&self, ms: u32) -> Duration {
        match ms {
            0 => self.defaults.pull_timeout,
            ms => Duration::from_millis(ms.into()).min(MAX_PULL_TIMEOUT),
        }
    }

    #[allow(clippy::result_large_err)] // tonic's signature
    pub(super) fn pool_destination(
        &self,
        spec: &NamespaceSpec,
        ttl: Option<Duration>,
    ) -> Result<PullInto, Status> {
        let region = self.pool_for(spec).or_status()?;
        Ok(PullInto::Pool { region, ttl })
    }

    #[allow(clippy::result_large_err)] // tonic's signature
    fn slot_destination(
        &self,
        spec: &NamespaceSpec,
        hashes: &[BlockHash],
        slots: &pb::SlotDestination,
    ) -> Result<PullInto, Status> {
        bounded(slots.slots.len())?;
        let region = self
            .store
            .region(RegionId(slots.region))
            .ok_or_else(|| unknown_region(slots.region))?;
        if slots.slots.len() != hashes.len() {
            return Err(InvalidMessage::Columns {
                what: "slots",
                got: slots.slots.len(),
                want: hashes.len(),
            }
            .into());
        }
        if *region.namespace != *spec {
            return Err(refusal(
                Code::InvalidArgument,
                Reason::InvalidArgument,
                format!(
                    "region {} belongs to namespace {}, not {}",
                    region.id, region.namespace.name, spec.name
                ),
            ));
        }
        let slots = to_slots(&slots.slots);
        Ok(PullInto::Slots { region, slots })
    }

    /// Begins a pull. Its events end with a summary, by the timeout, whatever happens; dropping the
    /// receiver gives it up.
    #[allow(clippy::result_large_err)] // tonic's signature
    pub(super) fn start_pull(
        &self,
        client: ClientId,
        pull: Pull,
    ) -> Result<mpsc::Receiver<pb::PullEvent>, Status> {
        let under_way = self.pulls.in_flight();
        if under_way >= MAX_PULLS {
            return Err(refusal(
                Code::ResourceExhausted,
                Reason::BoundReached,
                format!("{under_way} pulls are under way, as many as may be: wait for some to end"),
            ));
        }
        let deadline = Instant::now() + pull.timeout;
        let holder = self.new_holder();
        let (target, pin) = self.open_target(client, holder, &pull)?;
        let ttl = match &pull.into {
            PullInto::Pool { ttl, .. } => *ttl,
            PullInto::Slots { .. } => None,
        };
        let landing = Arc::new(Landing::new(self.clone(), holder, target, pin, &pull));
        let local = self.store.find_many(&pull.spec.name, &pull.hashes);
        let (sender, receiver) = mpsc::channel(EVENTS_AHEAD);
        let running = Running {
            api: self.clone(),
            client,
            pin,
            ttl,
            deadline,
            report: Report::new(
                sender,
                pull.hashes.len(),
                Arc::clone(&self.pulls),
                pull.spec.layout.block_bytes(),
                pull.columns,
                pull.stages.as_ref().map(Stages::count),
            ),
            began: Instant::now(),
            landing,
            pull,
        };
        running.api.pulls.begun.inc();
        tokio::spawn(running.run(local).in_current_span());
        Ok(receiver)
    }

    /// Takes what the pull writes to, and opens the pin its blocks join.
    #[allow(clippy::result_large_err)] // tonic's signature
    fn open_target(
        &self,
        client: ClientId,
        holder: Holder,
        pull: &Pull,
    ) -> Result<(Target, Option<PinId>), Status> {
        match &pull.into {
            PullInto::Pool { region, ttl } => {
                // Long enough for the last block to join; its own time is counted from the end.
                let ttl = ttl.unwrap_or_default().saturating_add(pull.timeout);
                let (pin, _) = self
                    .store
                    .pin_held(self.now(), client, None, &[], Some(ttl.min(MAX_PIN_TTL)))
                    .or_status()?;
                Ok((Target::Pool(Arc::clone(region)), Some(pin)))
            }
            PullInto::Slots { region, slots } => {
                let writer = self
                    .imports
                    .writer(region.id)
                    .ok_or_else(|| unknown_region(region.id.0))?;
                self.store
                    .reserve_slots(self.now(), holder, region.id, slots)
                    .or_status()?;
                let target = Target::Slots(Arc::clone(region), slots.clone(), writer);
                Ok((target, None))
            }
        }
    }
}

/// A pull under way.
struct Running {
    api: LocalApi,
    client: ClientId,
    pin: Option<PinId>,
    ttl: Option<Duration>,
    deadline: Instant,
    report: Report,
    began: Instant,
    landing: Arc<Landing>,
    pull: Pull,
}

impl Running {
    async fn run(self, local: Vec<Option<Held>>) {
        let (here, away): (Vec<usize>, Vec<usize>) =
            (0..local.len()).partition(|i| local[*i].is_some());
        let here = here
            .into_iter()
            .filter_map(|i| Some((i, local[i]?)))
            .collect();
        // The engine that asked may go away at any time, or the region; then nobody needs the rest.
        let ((), (last, summary)) = tokio::select! {
            both = async { tokio::join!(self.settle_here(here), self.bring(&away)) } => both,
            () = self.report.closed() => Default::default(),
            () = self.landing.region_ended() => Default::default(),
        };
        // From here on only reads that have not settled keep the destination.
        drop(self.landing);
        self.report.note(&last);
        self.report.give_up_the_rest().await;
        if let Some(pin) = self.pin {
            // From now on the pin lasts as long as was asked for. It may have been released already.
            let _ = self
                .api
                .store
                .pin_held(self.api.now(), self.client, Some(pin), &[], self.ttl);
        }
        if self.report.timed_out() {
            self.api.pulls.deadlines.inc();
        }
        self.report.summary(last, &summary, self.pin).await;
        // Behind the engine's answer: replicas can wait that long, and not longer.
        self.api.log.hurry();
        self.api.pulls.took.observe(self.began.elapsed());
    }

    /// Brings blocks that are not here: in stages what can be, beside the rest. A block that is to be verified comes whole,
    /// because nothing of it is to be believed before all of it is. Gives as [`Running::bring_whole`] does.
    async fn bring(&self, blocks: &[usize]) -> (Told, PullSummary) {
        let Some(stages) = &self.pull.stages else {
            return self.bring_whole(blocks).await;
        };
        let covered = |i: &usize| {
            let hash = self.pull.hashes[*i].as_bytes();
            self.pull.spec.checksum.covers(hash)
        };
        let (whole, staged): (Vec<usize>, Vec<usize>) = blocks.iter().copied().partition(covered);
        let whole = async {
            let (last, summary) = self.bring_whole(&whole).await;
            // Not kept until the others have ended: stages may wait for it.
            self.report.outcomes(last).await;
            summary
        };
        let (one, other) = tokio::join!(whole, self.bring_in_stages(&staged, stages));
        (Told::default(), both(one, other))
    }

    /// Brings blocks part by part.
    async fn bring_in_stages(&self, blocks: &[usize], stages: &Stages) -> PullSummary {
        if blocks.is_empty() {
            return PullSummary::default();
        }
        let ranges = stages.ranges();
        let request = StagedRequest {
            blocks: blocks.len() as u32, // as many as a request's hashes at most
            stages: Arc::clone(&ranges),
            timeout: self.deadline.saturating_duration_since(Instant::now()),
        };
        let (sender, mut events) = mpsc::unbounded_channel();
        let parts = self.parts(&blocks.into());
        let config = self.api.defaults.transfer.clone();
        let pull = transfer::pull_in_stages(parts, config, request, sender);
        let forward = async {
            while let Some(batch) = events.recv().await {
                match batch.is_empty() {
                    true => self.report.under_way().await,
                    false => {
                        let told = self.stage_events(blocks, &ranges, batch);
                        self.report.outcomes(told).await;
                    }
                }
            }
        };
        let (summary, ()) = tokio::join!(pull, forward);
        summary.unwrap_or_default()
    }

    /// What the engine is told of a pull in stages.
    fn stage_events(
        &self,
        indices: &[usize],
        stages: &[Range<u64>],
        batch: Vec<StageEvent<Held>>,
    ) -> Told {
        let mut told = Told::default();
        let mut reads = Reads::new(&self.api);
        for event in batch {
            match event {
                StageEvent::Landed { block, stage, node } => {
                    let index = indices.get(block as usize);
                    let (Some(&index), Some(bytes)) = (index, stages.get(stage)) else {
                        continue;
                    };
                    reads.add(node.as_ref(), bytes.end - bytes.start);
                    self.report.landed(index, stage);
                }
                StageEvent::Ended(outcome) => {
                    if let Some(&index) = indices.get(outcome.block as usize) {
                        self.give_back_unpulled(index, &outcome);
                        told.add(index, outcome);
                    }
                }
            }
        }
        told
    }

    /// Given back before the engine hears of it, so that it can use the slot at once.
    fn give_back_unpulled(&self, index: usize, outcome: &transfer::BlockOutcome<Held>) {
        if outcome.outcome != transfer::Outcome::Pulled {
            self.landing.give_back_unused(index);
        }
    }

    /// What a pull of these blocks works with.
    fn parts(&self, indices: &Arc<[usize]>) -> Parts<Asking, PeerLinks, Subset> {
        Parts {
            locate: Arc::new(Asking::new(
                self.api.clone(),
                Arc::clone(&self.pull.spec),
                indices.iter().map(|i| self.pull.hashes[*i]).collect(),
                self.pull.known.as_ref().map(|known| known.subset(indices)),
                self.deadline,
            )),
            connect: Arc::new(PeerLinks::new(&self.api, self.pull.spec.checksum)),
            landing: Arc::new(self.landing.subset(Arc::clone(indices))),
            metrics: Arc::clone(&self.api.transfer),
        }
    }

    /// Brings blocks that are not here. Gives the outcomes that are still to be reported: those that
    /// came with the end, so that a small pull is one event.
    async fn bring_whole(&self, blocks: &[usize]) -> (Told, PullSummary) {
        if blocks.is_empty() {
            return Default::default();
        }
        let indices: Arc<[usize]> = blocks.into();
        let parts = self.parts(&indices);
        let policy = self.pull.spec.checksum;
        let request = PullRequest {
            blocks: blocks.len() as u32, // as many as a request's hashes at most
            must_verify: (0..)
                .zip(blocks)
                .filter(|(_, i)| policy.covers(self.pull.hashes[**i].as_bytes()))
                .map(|(block, _)| block)
                .collect(),
            block_bytes: self.pull.spec.layout.block_bytes(),
            timeout: self.deadline.saturating_duration_since(Instant::now()),
        };
        let (sender, mut outcomes) = mpsc::unbounded_channel();
        let config = match self.pull.spare {
            true => TransferConfig {
                inflight_bytes: SPARE_INFLIGHT_BYTES,
                max_sources: SPARE_SOURCES,
                ..self.api.defaults.transfer.clone()
            },
            false => self.api.defaults.transfer.clone(),
        };
        let engine = transfer::pull(parts, config, request, sender);
        let forward = async {
            let mut last = Told::default();
            while let Some(batch) = outcomes.recv().await {
                if batch.is_empty() {
                    self.report.under_way().await;
                    continue;
                }
                self.outcomes(&indices, batch, &mut last);
                if !outcomes.is_closed() || !outcomes.is_empty() {
                    self.report.outcomes(std::mem::take(&mut last)).await;
                }
            }
            last
        };
        let (summary, last) = tokio::join!(engine, forward);
        (last, summary.unwrap_or_default())
    }

    /// What the engine is told of them.
    fn outcomes(
        &self,
        indices: &[usize],
        batch: Vec<transfer::BlockOutcome<Held>>,
        told: &mut Told,
    ) {
        let bytes = self.pull.spec.layout.block_bytes();
        let mut reads = Reads::new(&self.api);
        for outcome in batch {
            let Some(&index) = indices.get(outcome.block as usize) else {
                continue;
            };
            self.give_back_unpulled(index, &outcome);
            if outcome.outcome == transfer::Outcome::Pulled {
                reads.add(outcome.node.as_ref(), bytes);
            }
            told.add(index, outcome);
        }
    }
}

/// Counts whose memory was read: coordinators send readers to those who are read less.
struct Reads<'a> {
    api: &'a LocalApi,
    from: Option<(NodeId, u64)>,
}

impl<'a> Reads<'a> {
    fn new(api: &'a LocalApi) -> Self {
        Self { api, from: None }
    }

    /// Neighbours are mostly of one node, and counted in one step.
    fn add(&mut self, node: Option<&NodeId>, bytes: u64) {
        let Some(node) = node else {
            return;
        };
        match &mut self.from {
            Some((same, sum)) if same == node => *sum += bytes,
            from => self.api.reads.count(from.replace((node.clone(), bytes))),
        }
    }
}

impl Drop for Reads<'_> {
    fn drop(&mut self) {
        self.api.reads.count(self.from.take());
    }
}

/// Of two pulls beside each other that are one to the engine.
fn both(one: PullSummary, other: PullSummary) -> PullSummary {
    PullSummary {
        pulled: one.pulled + other.pulled,
        bytes: one.bytes + other.bytes,
        locate: one.locate.max(other.locate),
        connect: one.connect.max(other.connect),
        wire: one.wire.max(other.wire),
        total: one.total.max(other.total),
    }
}
