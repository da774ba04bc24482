//! Bringing tensors here: the set is looked up, its chunks become a plan, and what is missing goes to
//! the pull of blocks, round after round until it is here or the time is up.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use kvferry_memory::{HostMemory, HugePages};
use kvferry_proto::{
    ChunkRun, ChunkRuns, Chunks, Geometry, Incarnation, InvalidMessage, MAX_HASHES_PER_REQUEST,
    NamespaceSpec, NodeId, Reason, RegionId, SourceId, TableDigest, pb,
    pb::pull_tensors_request::Destination, refusal,
};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    time::{Instant, sleep},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use super::{
    LocalApi,
    publish::too_many,
    registry::{MAX_PULLING, Set},
};
use crate::{
    coordinators::{CoordinatorError, GotSource},
    metrics::TensorsEnd,
    region::{Chain, ClientId, Region},
    service::{
        client::ClientHandle,
        local::{
            BoxStream,
            pull::{Pull, PullInto},
            slots::unknown_region,
            status::OrStatus,
        },
    },
    transfer::tensors::{Plan, PlanError, Wish},
};

/// Between two looks for a source that is not ready yet.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// The pause after a round that left something undone, doubled up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// What telling a coordinator, or asking it, between two rounds may take.
const BESIDE: Duration = Duration::from_secs(1);
/// Events waiting for an engine that reads slowly.
const EVENTS_AHEAD: usize = 64;
/// Tensors in one event: descriptors of some hundred bytes.
const OUTCOMES_PER_EVENT: usize = 1024;
/// Most names and prefixes of one call.
const MAX_NAMES: usize = kvferry_proto::MAX_TENSORS;

impl LocalApi {
    pub(super) async fn pull_tensors(
        &self,
        client: ClientHandle,
        request: pb::PullTensorsRequest,
    ) -> Result<BoxStream<pb::PullTensorsEvent>, Status> {
        let Ok(place) = Arc::clone(&self.tensors.pulling).try_acquire_owned() else {
            return Err(too_many("pulls of tensors are under way", MAX_PULLING));
        };
        let began = Instant::now();
        let deadline = began + self.pull_timeout(request.timeout_ms);
        let source = SourceId::new(&request.source).map_err(InvalidMessage::from)?;
        let digest = match &request.digest[..] {
            [] => None,
            digest => Some(TableDigest::new(digest).map_err(InvalidMessage::from)?),
        };
        if request.names.len() + request.name_prefixes.len() > MAX_NAMES {
            let text = format!("more than {MAX_NAMES} names and prefixes: split the call");
            return Err(refusal(Code::ResourceExhausted, Reason::BoundReached, text));
        }
        let wish = Wish {
            names: request.names,
            prefixes: request.name_prefixes,
        };
        let got = self
            .ready_source(source, request.rank, digest, deadline)
            .await?;
        let namespace = got.identity.namespace.to_string();
        let spec = self.namespace(&namespace, deadline).await?;
        let table = Arc::new(got.table);
        if spec.layout.block_bytes() != table.chunk_bytes() {
            return Err(refusal(
                Code::FailedPrecondition,
                Reason::NamespaceMismatch,
                format!(
                    "namespace {namespace} has blocks of {} bytes, the source's chunks have {}",
                    spec.layout.block_bytes(),
                    table.chunk_bytes()
                ),
            ));
        }
        let names = Chunks::new(source, request.rank, table.digest(), spec.hash_len)
            .map_err(InvalidMessage::from)?;
        let packed = match &request.destination {
            Some(Destination::Slots(slots)) => slots.packed,
            Some(Destination::Fresh(fresh)) => fresh.packed,
            None => return Err(InvalidMessage::Missing("destination").into()),
        };
        let private = request.no_replica || !self.defaults.replicate;
        let plan = {
            let table = Arc::clone(&table);
            // Sorts as many pairs as there are chunks.
            tokio::task::spawn_blocking(move || Plan::new(table, &wish, packed))
                .await
                .map_err(|_| Status::internal("planning the pull failed"))?
                .map_err(|error| unplanned(&error))?
        };
        if request.serve && (packed || private || !plan.is_whole()) {
            return Err(refusal(
                Code::InvalidArgument,
                Reason::InvalidArgument,
                "only a set that is pulled whole, unpacked and as a replica can be served",
            ));
        }
        let (region, first_slot) = self
            .tensor_destination(client.id(), request.destination, &spec, &plan)
            .await?;
        let base = region
            .geometry
            .planes()
            .first()
            .map_or(0, |plane| plane.base);
        let runs = ChunkRuns::new([ChunkRun {
            region: region.id,
            first_slot,
            slots: plan.slots(),
        }])
        .map_err(InvalidMessage::from)?;
        let (events, receiver) = mpsc::channel(EVENTS_AHEAD);
        let run = Run {
            client: client.id(),
            _belongings: client,
            _place: place,
            source,
            rank: request.rank,
            workers: got.workers.into_iter().map(|(n, i, _)| (n, i)).collect(),
            base: base + u64::from(first_slot) * table.chunk_bytes(),
            chunk_bytes: table.chunk_bytes(),
            failures: vec![None; plan.chunks().len()],
            from: vec![0; plan.chunks().len()],
            nodes: Vec::new(),
            summary: pb::PullTensorsSummary::default(),
            serve: request.serve.then(|| Set {
                source,
                identity: Arc::new(got.identity),
                rank: request.rank,
                table,
                runs,
                names: names.clone(),
                ready: true,
                owns_regions: false,
                publication: 0,
                position: 0,
                words: None,
            }),
            api: self.clone(),
            names,
            spec,
            private,
            region,
            first_slot,
            plan,
            began,
            deadline,
            events,
        };
        tokio::spawn(run.run());
        Ok(Box::pin(ReceiverStream::new(receiver)))
    }

    /// A rank's tensors once some worker is ready with them.
    async fn ready_source(
        &self,
        source: SourceId,
        rank: u32,
        digest: Option<TableDigest>,
        deadline: Instant,
    ) -> Result<GotSource, Status> {
        loop {
            let got = self
                .coordinators
                .get_source(source, rank, digest, deadline)
                .await;
            let waits = match &got {
                Ok(got) => !got.workers.iter().any(|w| w.2 == pb::SourceState::Ready),
                Err(CoordinatorError::Refused { reason, .. }) => {
                    matches!(reason, Reason::SourceUnknown | Reason::SourceNotReady)
                }
                Err(_) => true,
            };
            if waits && Instant::now() + LOOK_AGAIN < deadline {
                sleep(LOOK_AGAIN).await;
                continue;
            }
            return match got {
                Ok(_) if waits => Err(refusal(
                    Code::FailedPrecondition,
                    Reason::SourceNotReady,
                    format!("no worker of source {source}, rank {rank} became ready in time"),
                )),
                got => got.or_status(),
            };
        }
    }

    /// The region tensors land in, and the slot of its first chunk.
    async fn tensor_destination(
        &self,
        client: ClientId,
        destination: Option<Destination>,
        spec: &Arc<NamespaceSpec>,
        plan: &Plan,
    ) -> Result<(Arc<Region>, u32), Status> {
        let wrong = |text| refusal(Code::InvalidArgument, Reason::InvalidArgument, text);
        match destination {
            Some(Destination::Slots(slots)) => {
                let region = self
                    .store
                    .region(RegionId(slots.region))
                    .ok_or_else(|| unknown_region(slots.region))?;
                let one_after_another = match region.geometry.planes() {
                    [plane] => plane.stride == plane.len || region.geometry.slots() == 1,
                    _ => false,
                };
                if *region.namespace != **spec || region.pool || !one_after_another {
                    return Err(wrong(format!(
                        "region {} is no engine's region of namespace {} with one plane, block \
                         after block",
                        region.id, spec.name
                    )));
                }
                plan.fits(slots.first_slot, region.geometry.slots())
                    .map_err(|error| unplanned(&error))?;
                Ok((region, slots.first_slot))
            }
            Some(Destination::Fresh(fresh)) => {
                let geometry = Geometry::contiguous(plan.slots(), spec.layout.block_bytes())
                    .map_err(InvalidMessage::from)?;
                let (api, spec) = (self.clone(), NamespaceSpec::clone(spec));
                let made = tokio::task::spawn_blocking(move || {
                    // Untouched pages take no memory: an unpacked set may have many.
                    let bytes = geometry.end();
                    let memory = HostMemory::pool("kvferry-tensors", bytes, HugePages::Off);
                    let keep = fresh.keep_on_disconnect;
                    api.import(client, spec, Some(geometry), memory.or_status()?, keep)
                });
                let region = made
                    .await
                    .map_err(|_| Status::internal("making the memory failed"))??;
                Ok((region, 0))
            }
            None => Err(InvalidMessage::Missing("destination").into()),
        }
    }
}

fn unplanned(error: &PlanError) -> Status {
    let (code, reason) = match error {
        PlanError::Nothing => (Code::NotFound, Reason::BlockMissing),
        PlanError::TooSmall { .. } => (Code::InvalidArgument, Reason::SlotOutOfRegion),
        PlanError::Overlapping => (Code::ResourceExhausted, Reason::BoundReached),
    };
    refusal(code, reason, error.to_string())
}

/// One pull under way.
struct Run {
    api: LocalApi,
    client: ClientId,
    /// Kept as long as it runs; it ends when nobody reads its events.
    _belongings: ClientHandle,
    _place: OwnedSemaphorePermit,
    source: SourceId,
    rank: u32,
    workers: Vec<(NodeId, Incarnation)>,
    names: Chunks,
    spec: Arc<NamespaceSpec>,
    private: bool,
    region: Arc<Region>,
    first_slot: u32,
    /// Of the first slot's first byte in the region's memory.
    base: u64,
    chunk_bytes: u64,
    plan: Plan,
    /// Why the chunk at a place is not here, last time.
    failures: Vec<Option<Failure>>,
    /// Where the chunk at a place came from: 0, or one more than an index into `nodes`.
    from: Vec<u32>,
    nodes: Vec<String>,
    summary: pb::PullTensorsSummary,
    /// To be published when all is here.
    serve: Option<Set>,
    began: Instant,
    deadline: Instant,
    events: mpsc::Sender<Result<pb::PullTensorsEvent, Status>>,
}

/// Why a chunk did not come, and in words.
type Failure = (pb::OutcomeKind, String);

/// Of a chunk that failed again. That its time ran out while it was asked for once more says less than why it had to be.
fn more_telling(before: Option<Failure>, now: Failure) -> Failure {
    match before {
        Some(before) if now.0 == pb::OutcomeKind::TimedOut => before,
        _ => now,
    }
}

/// Nobody reads the events any more.
struct GivenUp;

type Event = pb::pull_tensors_event::Event;

impl Run {
    async fn run(mut self) {
        // The engine that asked may go away at any time; what landed stays where it is.
        self.api.pulls.tensors_begun.inc();
        let brought = self.bring().await;
        let end = match brought {
            Err(GivenUp) => TensorsEnd::GivenUp,
            Ok(()) if self.summary.tensors_failed > 0 => TensorsEnd::Partial,
            Ok(()) => TensorsEnd::Complete,
        };
        let pulls = &self.api.pulls;
        pulls.tensors_ended.of(end).inc();
        pulls.tensors_here.add(self.summary.tensors_here.into());
    }

    async fn bring(&mut self) -> Result<(), GivenUp> {
        self.begin().await?;
        let mut pause = FIRST_PAUSE;
        loop {
            let missing = self.plan.missing();
            if missing.is_empty() || Instant::now() >= self.deadline {
                break;
            }
            self.summary.rounds += 1;
            let before = self.plan.left();
            let mut unreadable = BTreeMap::new();
            for batch in missing.chunks(MAX_HASHES_PER_REQUEST) {
                self.round(batch, &mut unreadable).await?;
            }
            self.report(&unreadable).await;
            if self.plan.left() == 0
                || self.region_gone()
                || self.only_denied()
                || self.nobody_left().await
            {
                break;
            }
            if self.plan.left() < before {
                pause = FIRST_PAUSE;
            }
            let left = self.deadline.saturating_duration_since(Instant::now());
            tokio::select! {
                () = sleep(pause.min(left)) => {}
                () = self.events.closed() => return Err(GivenUp),
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        self.end().await
    }

    /// Looks what is here already, and says what is to be done.
    async fn begin(&mut self) -> Result<(), GivenUp> {
        let blocks: Vec<_> = self
            .plan
            .chunks()
            .iter()
            .enumerate()
            .map(|(place, chunk)| {
                let slot = self.plan.slot(place, self.first_slot);
                (slot, self.names.hash(*chunk))
            })
            .collect();
        let held = self.api.store.hold(self.region.id, &blocks);
        let mut whole = self.plan.empty();
        let mut here = 0;
        for (place, held) in held.into_iter().flatten().enumerate() {
            if held {
                here += 1;
                whole.extend(self.plan.land(place));
            }
        }
        self.summary.chunks_here_before = here;
        let begun = pb::PullTensorsBegun {
            digest: Bytes::copy_from_slice(self.plan.digest().as_bytes()),
            region: Some(self.api.describe_region(&self.region)),
            tensors: self.plan.tensors() as u32, // bounded
            names_unknown: self.plan.unknown().to_vec(),
            chunk_bytes: self.chunk_bytes,
            chunks: self.plan.chunks().len() as u32, // bounded
            chunks_here: here,
        };
        self.say(Event::Begun(begun)).await?;
        self.arrived(&whole, pb::OutcomeKind::Local).await
    }

    /// Asks for the chunks at these places once.
    async fn round(
        &mut self,
        places: &[usize],
        unreadable: &mut BTreeMap<NodeId, pb::worker_report::Kind>,
    ) -> Result<(), GivenUp> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        let chunks = self.plan.chunks();
        let pull = Pull {
            spec: Arc::clone(&self.spec),
            hashes: places.iter().map(|p| self.names.hash(chunks[*p])).collect(),
            chain: Chain::Unknown,
            into: PullInto::Slots {
                region: Arc::clone(&self.region),
                slots: places
                    .iter()
                    .map(|place| self.plan.slot(*place, self.first_slot))
                    .collect(),
            },
            spare: false,
            stages: None,
            columns: false,
            known: None,
            private: self.private,
            timeout: left,
        };
        let mut outcomes = match self.api.start_pull(self.client, pull) {
            Ok(outcomes) => outcomes,
            Err(status) => {
                // Slots that somebody else writes to may come free.
                let failure = (pb::OutcomeKind::NoSpace, status.message().to_owned());
                for place in places {
                    self.failures[*place] = Some(failure.clone());
                }
                return Ok(());
            }
        };
        loop {
            let event = tokio::select! {
                event = outcomes.recv() => event,
                // Dropping the receiver gives the pull of blocks up.
                () = self.events.closed() => return Err(GivenUp),
            };
            let Some(event) = event else {
                return Ok(());
            };
            let mut whole = Vec::new();
            let before = self.plan.left();
            for outcome in event.outcomes {
                if let Some(&place) = places.get(outcome.index as usize) {
                    whole.extend(self.landed(place, outcome, unreadable));
                }
            }
            self.arrived(&whole, pb::OutcomeKind::Pulled).await?;
            if self.plan.left() < before {
                let chunks = self.plan.chunks().len();
                let progress = pb::PullTensorsProgress {
                    chunks_landed: (chunks - self.plan.left()) as u32, // bounded
                    chunks: chunks as u32,
                };
                self.say(Event::Progress(progress)).await?;
            }
        }
    }

    /// Takes in one chunk's outcome; gives the tensors that are whole by it.
    fn landed(
        &mut self,
        place: usize,
        outcome: pb::BlockOutcome,
        unreadable: &mut BTreeMap<NodeId, pb::worker_report::Kind>,
    ) -> Vec<usize> {
        use pb::{OutcomeKind as Kind, worker_report::Kind as Why};
        let kind = outcome.kind();
        match kind {
            Kind::Pulled => {
                self.summary.chunks_pulled += 1;
                self.summary.bytes_pulled += self.chunk_bytes;
                let known = self.nodes.iter().position(|n| *n == outcome.source_node);
                let node = known.unwrap_or_else(|| {
                    self.nodes.push(outcome.source_node);
                    self.nodes.len() - 1
                });
                self.from[place] = node as u32 + 1; // as many as there are nodes
                return self.plan.land(place);
            }
            Kind::Local => return self.plan.land(place),
            Kind::Stale | Kind::Corrupt => note(unreadable, &outcome.source_node, Why::Stale),
            Kind::Unreachable => note(unreadable, &outcome.source_node, Why::Unreachable),
            _ => {}
        }
        let before = self.failures[place].take();
        self.failures[place] = Some(more_telling(before, (kind, outcome.detail)));
        Vec::new()
    }

    /// Tells the coordinator of workers that could not be read from, also where another one could.
    async fn report(&self, unreadable: &BTreeMap<NodeId, pb::worker_report::Kind>) {
        use pb::worker_report::Kind as Why;
        let identity = &self.api.identity;
        let why = |node: &NodeId, incarnation: Incarnation| {
            let suspect = self.api.links.is_suspect(node, incarnation);
            let seen = unreadable.get(node).copied();
            seen.or(suspect.then_some(Why::Unreachable))
        };
        let reports: Vec<_> = self
            .workers
            .iter()
            .filter(|(node, _)| *node != identity.node)
            .filter_map(|(node, incarnation)| {
                Some(pb::WorkerReport {
                    source: Bytes::copy_from_slice(self.source.as_bytes()),
                    rank: self.rank,
                    node: node.to_string(),
                    incarnation: incarnation.get(),
                    kind: why(node, *incarnation)?.into(),
                })
            })
            // As many as one call may carry; the others are told with the next round.
            .take(256)
            .collect();
        if reports.is_empty() {
            return;
        }
        let request = pb::ReportSourcesRequest {
            node: identity.node.to_string(),
            incarnation: identity.incarnation.get(),
            reports,
        };
        let told = self
            .api
            .coordinators
            .report_sources(request, Instant::now() + BESIDE);
        if let Err(error) = told.await {
            // A help to others, and nothing this pull needs.
            tracing::debug!("a report of workers did not arrive: {error}");
        }
    }

    fn region_gone(&self) -> bool {
        self.api.store.region(self.region.id).is_none()
    }

    /// Is all that is missing kept from us? That does not pass by itself. Where some of it may still come, the rest is asked
    /// for again with it.
    fn only_denied(&self) -> bool {
        let denied = |place: &usize| {
            let failure = self.failures.get(*place).and_then(Option::as_ref);
            failure.is_some_and(|(kind, _)| *kind == pb::OutcomeKind::Denied)
        };
        self.plan.missing().iter().all(denied)
    }

    /// Are all workers of the rank gone for good? An outage says nothing.
    async fn nobody_left(&self) -> bool {
        let asked = self
            .api
            .coordinators
            .source_status(self.source, Instant::now() + BESIDE);
        match asked.await {
            Ok(status) => status
                .workers
                .iter()
                .filter(|worker| worker.rank == self.rank)
                .all(|worker| worker.state() == pb::SourceState::Gone),
            Err(CoordinatorError::Refused { reason, .. }) => reason == Reason::SourceUnknown,
            Err(_) => false,
        }
    }

    /// Outcomes of tensors that are here.
    async fn arrived(&mut self, whole: &[usize], kind: pb::OutcomeKind) -> Result<(), GivenUp> {
        self.summary.tensors_here += whole.len() as u32; // bounded
        for some in whole.chunks(OUTCOMES_PER_EVENT) {
            let outcomes = some.iter().map(|wanted| self.outcome(*wanted, kind));
            let outcomes = outcomes.collect();
            self.say(Event::Outcomes(pb::TensorOutcomes { outcomes }))
                .await?;
        }
        Ok(())
    }

    fn outcome(&self, wanted: usize, kind: pb::OutcomeKind) -> pb::TensorOutcome {
        let places = self.plan.places_of(wanted);
        let from: BTreeSet<_> = self.from[places].iter().filter(|n| **n > 0).collect();
        let name = |n: &u32| self.nodes.get(*n as usize - 1).cloned();
        pb::TensorOutcome {
            tensor: self.plan.tensor(wanted).map(Into::into),
            // What was here before, every chunk of it, was pulled by nobody.
            kind: match kind {
                pb::OutcomeKind::Pulled if from.is_empty() => pb::OutcomeKind::Local,
                kind => kind,
            }
            .into(),
            region_offset: self.base + self.plan.offset(wanted),
            detail: String::new(),
            source_nodes: from.into_iter().filter_map(name).collect(),
        }
    }

    /// Outcomes of what did not come, and the summary.
    async fn end(&mut self) -> Result<(), GivenUp> {
        let lacking = self.plan.lacking();
        self.summary.tensors_failed = lacking.len() as u32; // bounded
        for some in lacking.chunks(OUTCOMES_PER_EVENT) {
            let outcomes = some.iter().map(|wanted| self.failed(*wanted)).collect();
            self.say(Event::Outcomes(pb::TensorOutcomes { outcomes }))
                .await?;
        }
        if lacking.is_empty()
            && let Some(set) = self.serve.take()
        {
            match self.api.enter_set(self.client, set).await {
                Ok(_) => self.summary.serving = true,
                Err(status) => tracing::warn!(
                    source = %self.source,
                    "what was pulled is not served: {}",
                    status.message()
                ),
            }
        }
        self.summary.total_us = self.began.elapsed().as_micros() as u64; // not for centuries
        let summary = self.summary;
        self.say(Event::Summary(summary)).await
    }

    fn failed(&self, wanted: usize) -> pb::TensorOutcome {
        let places = self.plan.places_of(wanted);
        let failure = self.failures[places].iter().flatten().next();
        let (kind, detail) = failure.cloned().unwrap_or((
            pb::OutcomeKind::TimedOut,
            "the deadline came first; pull again into the same region to go on".to_owned(),
        ));
        pb::TensorOutcome {
            tensor: self.plan.tensor(wanted).map(Into::into),
            kind: kind.into(),
            detail,
            ..pb::TensorOutcome::default()
        }
    }

    async fn say(&self, event: Event) -> Result<(), GivenUp> {
        let event = pb::PullTensorsEvent { event: Some(event) };
        self.events.send(Ok(event)).await.map_err(|_| GivenUp)
    }
}

fn note(
    unreadable: &mut BTreeMap<NodeId, pb::worker_report::Kind>,
    node: &str,
    why: pb::worker_report::Kind,
) {
    if let Ok(node) = NodeId::new(node) {
        unreadable.insert(node, why);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_that_its_deadline_cut_off_hides_no_cause() {
        use pb::OutcomeKind::{TimedOut, Unreachable};
        let (refused, late) = ((Unreachable, "a".to_owned()), (TimedOut, "b".to_owned()));
        assert_eq!(more_telling(Some(refused.clone()), late.clone()), refused);
        assert_eq!(more_telling(Some(late.clone()), refused.clone()), refused);
        assert_eq!(more_telling(None, late.clone()), late);
    }
}
