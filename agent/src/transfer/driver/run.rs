//! One pull under way: obeys the engine and tells it what happened.

mod answers;
mod ends;
mod report;

use std::sync::Arc;

use hashbrown::HashMap;
use kvferry_memory::HostMemory;
use kvferry_observe::traced;
use kvferry_proto::{Checksum, Geometry, Incarnation, NodeId, RegionId};
use tokio::{
    sync::{mpsc, oneshot},
    task::{Id, JoinError, JoinSet},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span, field::Empty};

use super::{
    BlockOutcome, Connect, Landing, Locate, LocateError, Parts, PullSummary,
    flight::{Flight, Flights, Settled, Words},
    scratch,
};
use crate::{
    coordinators::Located,
    transfer::{
        Time,
        command::{BlockIndex, Command, OpId, SlotRead, SourceKey},
        config::TransferConfig,
        engine::{PullEngine, PullRequest},
        event::{Event, ReadFailure},
        metrics::Phase,
        outcome::Outcome,
        plan::{self, BlockRead, Destination, PlanError, WORD_BYTES},
    },
    transport::{ConnectError, Link, PeerTarget, PendingRead, ReadRequest, staged},
};

/// What a task was started for.
#[derive(Debug, Clone)]
enum Asked {
    /// Of these, in the order of the answer.
    Locate(OpId, Time, Arc<[BlockIndex]>),
    Connect(SourceKey, Time),
    Verify(Vec<BlockIndex>),
}

/// What it found.
enum Answer {
    Located(Result<Located, LocateError>),
    Connected(Result<Arc<dyn Link>, ConnectError>),
    Verified(Vec<(BlockIndex, bool)>),
}

/// What a pull waited for.
enum Happened {
    GivenUp,
    Settled(Settled),
    Answered(Result<(Id, Answer), JoinError>),
    Nothing,
}

/// What is kept of one block.
struct Book<L> {
    destination: Option<Destination>,
    /// Came with the data, and was loaded after it: the answer where the engine asks for it.
    word: Option<u64>,
    landed: Option<L>,
}

impl<L> Default for Book<L> {
    fn default() -> Self {
        Self {
            destination: None,
            word: None,
            landed: None,
        }
    }
}

/// How many words there is room for to one that is asked for: words between them may be read too.
const SCRATCH_SHARE: u64 = 8;

/// The reads of an operation, and its words, where it has some.
struct Begun {
    reads: Vec<PendingRead>,
    words: Option<Words>,
    blocks: Option<Vec<BlockIndex>>,
}

pub(super) struct Run<L, C, D: Landing> {
    parts: Parts<L, C, D>,
    config: TransferConfig,
    block_bytes: u64,
    engine: PullEngine,
    origin: Instant,
    /// When it was last looked at: once for all that happened meanwhile.
    clock: Time,
    /// By source key.
    peers: Vec<PeerTarget>,
    keys: HashMap<(NodeId, Incarnation), SourceKey>,
    /// Where slots lie, per part that blocks are of.
    geometries: HashMap<(SourceKey, RegionId), Vec<Geometry>>,
    links: HashMap<SourceKey, Arc<dyn Link>>,
    blocks: Vec<Book<D::Landed>>,
    flights: Flights,
    /// Memory for generation words that no read uses.
    scratch: Vec<Arc<HostMemory>>,
    tasks: JoinSet<Answer>,
    asked: HashMap<Id, Asked>,
    to_verify: Vec<(BlockIndex, Checksum)>,
    /// Bytes verified in place since others on this thread had their turn.
    verified: u64,
    to_land: Vec<(BlockIndex, Option<Checksum>)>,
    progress_at: Time,
    said_under_way: bool,
    report: report::Report<D::Landed>,
}

impl<L: Locate, C: Connect, D: Landing> Run<L, C, D> {
    pub(super) fn new(
        parts: Parts<L, C, D>,
        config: TransferConfig,
        request: PullRequest,
        outcomes: mpsc::UnboundedSender<Vec<BlockOutcome<D::Landed>>>,
    ) -> Self {
        let mut blocks = Vec::new();
        blocks.resize_with(request.blocks as usize, Book::default);
        Self {
            parts,
            block_bytes: request.block_bytes,
            engine: PullEngine::new(config.clone(), request, Time::ZERO),
            origin: Instant::now(),
            clock: Time::ZERO,
            peers: Vec::new(),
            keys: HashMap::new(),
            geometries: HashMap::new(),
            links: HashMap::new(),
            blocks,
            flights: Flights::default(),
            scratch: Vec::new(),
            tasks: JoinSet::new(),
            asked: HashMap::new(),
            to_verify: Vec::new(),
            verified: 0,
            to_land: Vec::new(),
            progress_at: config.progress_tick,
            said_under_way: false,
            report: report::Report::new(outcomes),
            config,
        }
    }

    /// To the end, which is when everything has settled. The summary is given when every outcome is.
    pub(super) async fn drive(
        mut self,
        cancel: CancellationToken,
        summary: oneshot::Sender<PullSummary>,
    ) {
        let mut summary = Some(summary);
        let mut given_up = false;
        loop {
            self.obey();
            self.count_failed();
            self.report.deliver();
            if self.engine.is_finished()
                && let Some(summary) = summary.take()
            {
                // A caller that went away does not want to know.
                let _ = summary.send(self.report.close(self.now()));
                given_up = true;
            }
            if self.engine.is_drained() {
                // Drained: no read is under way that could write to it.
                return scratch::keep(std::mem::take(&mut self.scratch));
            }
            if self.verified >= self.config.verify_inline_bytes.max(1) {
                // The next reads may have settled already, and so on to the end.
                self.verified = 0;
                tokio::task::yield_now().await;
            }
            let wake = self.wake_at();
            let happened = tokio::select! {
                biased;
                () = gave_up(&cancel, self.report.outcomes()), if !given_up => Happened::GivenUp,
                settled = self.flights.next() => Happened::Settled(settled),
                Some(answer) = self.tasks.join_next_with_id() => Happened::Answered(answer),
                () = sleep_until(wake) => Happened::Nothing,
            };
            self.clock = self.now();
            match happened {
                Happened::GivenUp => {
                    given_up = true;
                    self.tell(Event::Cancel);
                }
                Happened::Settled(settled) => self.settled(settled),
                Happened::Answered(answer) => self.answered(answer),
                Happened::Nothing => {}
            }
            self.take_what_is_ready();
            self.pass_time();
        }
    }

    fn count_failed(&mut self) {
        let failed = self.engine.take_failed();
        for (failure, copies) in failed.into_iter().filter(|(_, copies)| *copies > 0) {
            self.parts
                .metrics
                .failed_copies
                .of(failure.into())
                .add(copies);
        }
    }

    /// An operation that began at `since` is over.
    fn observe(&self, phase: Phase, since: Time) {
        let took = self.now().saturating_sub(since);
        self.parts.metrics.phases.of(phase).observe(took);
    }

    fn now(&self) -> Time {
        self.origin.elapsed()
    }

    fn tell(&mut self, event: Event) {
        self.engine.handle(self.clock, event);
    }

    fn wake_at(&self) -> Instant {
        let due = match self.engine.poll_timeout() {
            Some(due) => due.min(self.progress_at),
            // Draining: only settled reads matter.
            None => self.now() + self.config.stall_bound,
        };
        self.origin + due
    }

    /// Tells of progress before it asks for stalls, so that what came while we slept counts.
    fn pass_time(&mut self) {
        let now = self.clock;
        let due = self.engine.poll_timeout().is_some_and(|due| due <= now);
        if now < self.progress_at && !due {
            return;
        }
        if !std::mem::replace(&mut self.said_under_way, true) {
            self.report.under_way();
        }
        self.progress_at = now + self.config.progress_tick;
        let sources: std::collections::BTreeSet<_> = self.flights.sources().collect();
        for source in sources {
            if let Some(received_bytes) = self.links.get(&source).map(|link| link.received_bytes())
            {
                self.tell(Event::Progress {
                    source,
                    received_bytes,
                });
            }
        }
        self.engine.handle_timeout(now);
    }

    fn obey(&mut self) {
        loop {
            // What was verified took its time.
            self.clock = self.now();
            while let Some(command) = self.engine.poll_command() {
                self.execute(command);
            }
            if self.to_verify.is_empty() && self.to_land.is_empty() {
                return;
            }
            self.land();
            self.verify();
        }
    }

    fn execute(&mut self, command: Command) {
        match command {
            Command::Locate { op, blocks } => {
                let locate = Arc::clone(&self.parts.locate);
                let span = traced!("locate", otel.kind = "client", blocks = blocks.len());
                let blocks: Arc<[_]> = blocks.into();
                let asked = Asked::Locate(op, self.now(), Arc::clone(&blocks));
                let asking = async move { Answer::Located(locate.locate(&blocks).await) };
                let task = self.tasks.spawn(asking.instrument(span));
                self.asked.insert(task.id(), asked);
            }
            Command::Prepare { blocks } => blocks.into_iter().for_each(|block| self.prepare(block)),
            Command::Connect { source } => self.connect(source),
            Command::Read { op, source, slots } => {
                self.report.wire_begins(self.now());
                let span = traced!(
                    "read",
                    blocks = slots.len(),
                    node = Empty,
                    transport = Empty
                );
                self.name(&span, source);
                self.begin(op, source, span, |run, link| run.read(link, source, &slots));
            }
            Command::ReadGenerations { op, source, slots } => {
                if let Some(words) = self.words_here(&slots) {
                    return self.tell(Event::GenerationsDone { op, words });
                }
                let span = traced!(
                    "validate",
                    blocks = slots.len(),
                    node = Empty,
                    transport = Empty
                );
                self.name(&span, source);
                self.begin(op, source, span, |run, link| run.read_words(link, &slots));
            }
            Command::Cancel { op } => self.flights.cancel(op),
            Command::Suspect { source } => {
                if let Some(peer) = self.peers.get(source.0 as usize) {
                    self.parts.connect.suspect(peer);
                    self.report.stood_still(source, &peer.node);
                }
            }
            Command::Distrust { source } => {
                if let (Some(peer), Some(link)) =
                    (self.peers.get(source.0 as usize), self.links.get(&source))
                {
                    self.parts.connect.distrust(peer, link);
                }
            }
            Command::Verify { block, checksum } => self.to_verify.push((block, checksum)),
            Command::Land { block, checksum } => self.to_land.push((block, checksum)),
            Command::Abandon { block } => {
                if let Some(book) = self.blocks.get_mut(block as usize) {
                    book.destination = None;
                }
                self.parts.landing.abandon(block);
            }
            Command::Finish {
                block,
                outcome,
                source,
            } => {
                let book = self.blocks.get_mut(block as usize);
                let landed = book.and_then(|book| book.landed.take());
                let node = source.and_then(|key| self.peers.get(key.0 as usize));
                let link = source.and_then(|key| self.links.get(&key));
                let mut finished = BlockOutcome {
                    block,
                    outcome,
                    landed,
                    node: node.map(|peer| peer.node.clone()),
                    transport: link.map(|link| link.kind()),
                    detail: String::new(),
                };
                self.report.finish(&mut finished, source, self.block_bytes);
                self.report.add(finished);
                if outcome != Outcome::Pulled {
                    for block in self.parts.landing.in_vain(block) {
                        self.tell(Event::GiveUp { block });
                    }
                }
            }
        }
    }

    fn prepare(&mut self, block: BlockIndex) {
        let event = match self.parts.landing.prepare(block) {
            Ok(destination) => {
                if let Some(book) = self.blocks.get_mut(block as usize) {
                    book.destination = Some(destination);
                }
                Event::Prepared { block }
            }
            Err(super::NoSpace) => Event::NoSpace { block },
        };
        self.tell(event);
    }

    fn connect(&mut self, source: SourceKey) {
        self.report.connect_begins(self.now());
        let Some(peer) = self.peers.get(source.0 as usize).cloned() else {
            return;
        };
        if let Some(link) = self.parts.connect.open_link(&peer) {
            return self.connected(source, link);
        }
        let connect = Arc::clone(&self.parts.connect);
        let span = traced!("connect", node = %peer.node);
        let connecting = async move { Answer::Connected(connect.link(&peer).await) };
        let task = self.tasks.spawn(connecting.instrument(span));
        self.asked
            .insert(task.id(), Asked::Connect(source, self.now()));
    }

    /// Says in a span from whom is read, and how. Owners take no part in the trace: a one-sided read is
    /// none of their processor's work.
    fn name(&self, span: &Span, source: SourceKey) {
        if let (Some(peer), false) = (self.peers.get(source.0 as usize), span.is_none()) {
            span.record("node", peer.node.as_str());
            let link = self.links.get(&source);
            span.record(
                "transport",
                link.map_or("none", |link| link.kind().as_str()),
            );
        }
    }

    /// Begins a read, or says at once why there is none.
    fn begin(
        &mut self,
        op: OpId,
        source: SourceKey,
        span: Span,
        plan: impl FnOnce(&mut Self, &Arc<dyn Link>) -> Result<Begun, PlanError>,
    ) {
        let Some(link) = self.links.get(&source).map(Arc::clone) else {
            return self.tell(Event::ReadFailed {
                op,
                failure: ReadFailure::LinkLost,
            });
        };
        match plan(self, &link) {
            Ok(begun) => self.flights.add(Flight {
                op,
                source,
                words: begun.words,
                blocks: begun.blocks,
                since: self.origin.elapsed(),
                _span: span,
                reads: begun.reads,
                error: None,
            }),
            Err(error) => {
                self.report.failed(source, &error);
                let failure = match error {
                    PlanError::NoSuchSlot { .. } | PlanError::LengthMismatch { .. } => {
                        ReadFailure::SpanRefused
                    }
                    PlanError::NoRoom => ReadFailure::LinkLost,
                    PlanError::Scratch { .. } => ReadFailure::Local,
                };
                self.tell(Event::ReadFailed { op, failure });
            }
        }
    }

    fn read(
        &mut self,
        link: &Arc<dyn Link>,
        source: SourceKey,
        slots: &[SlotRead],
    ) -> Result<Begun, PlanError> {
        for read in slots {
            if let Some(book) = self.blocks.get_mut(read.block as usize) {
                // Of another copy, if any.
                book.word = None;
            }
        }
        let blocks: Vec<_> = slots
            .iter()
            .map(|read| {
                let wrong = PlanError::NoSuchSlot { slot: read.slot };
                let book = self.blocks.get(read.block as usize);
                let geometries = self.geometries.get(&(source, read.region));
                let part = self.parts.landing.part(read.block);
                Ok(BlockRead {
                    region: read.region,
                    geometry: geometries.and_then(|all| all.get(part)).ok_or(wrong)?,
                    slot: read.slot,
                    destination: book
                        .and_then(|book| book.destination.as_ref())
                        .ok_or(wrong)?,
                })
            })
            .collect::<Result<_, PlanError>>()?;
        let mut reads = plan::data_reads(&blocks, &link.capabilities())?;
        if link.reads_in_order()
            && let Some(data) = plan::only_host_read(&mut reads)
        {
            return self.read_with_words(link, data, slots);
        }
        let begun = reads.into_iter().map(|read| staged::read(link, read));
        Ok(Begun {
            reads: begun.collect(),
            words: None,
            blocks: None,
        })
    }

    /// One round trip for both, where the link loads words after the data of the same read.
    fn read_with_words(
        &mut self,
        link: &Arc<dyn Link>,
        data: ReadRequest,
        slots: &[SlotRead],
    ) -> Result<Begun, PlanError> {
        let left = plan::left_beside(&data, &link.capabilities());
        let scratch = self.take_scratch(slots.len())?;
        let wanted: Vec<_> = slots.iter().map(|read| (read.region, read.slot)).collect();
        let planned = left.map(|left| plan::generation_reads(&wanted, &scratch, &left));
        let (words, offsets) = match planned {
            Some(Ok((mut words, offsets))) if words.len() == 1 => (words.pop(), offsets),
            _ => (None, Vec::new()),
        };
        let Some(words) = words else {
            // They are read when the data has arrived.
            self.scratch.push(scratch);
            return Ok(Begun {
                reads: vec![link.read(data)],
                words: None,
                blocks: None,
            });
        };
        Ok(Begun {
            reads: vec![link.read_with_words(data, words)],
            words: Some(Words { scratch, offsets }),
            blocks: Some(slots.iter().map(|read| read.block).collect()),
        })
    }

    fn read_words(&mut self, link: &Arc<dyn Link>, slots: &[SlotRead]) -> Result<Begun, PlanError> {
        let scratch = self.take_scratch(slots.len())?;
        let slots: Vec<_> = slots.iter().map(|read| (read.region, read.slot)).collect();
        let (requests, offsets) = plan::generation_reads(&slots, &scratch, &link.capabilities())?;
        let begun = requests.into_iter().map(|request| link.read(request));
        Ok(Begun {
            reads: begun.collect(),
            words: Some(Words { scratch, offsets }),
            blocks: None,
        })
    }

    fn take_scratch(&mut self, words: usize) -> Result<Arc<HostMemory>, PlanError> {
        let bytes = self.config.generation_words.max(1) as u64 * WORD_BYTES * SCRATCH_SHARE;
        match self.scratch.pop() {
            Some(scratch) => Ok(scratch),
            None => scratch::take(bytes).map_err(|_| PlanError::Scratch { words }),
        }
    }

    /// The words of these slots, where all came with their data.
    fn words_here(&mut self, slots: &[SlotRead]) -> Option<Vec<u64>> {
        let words = slots
            .iter()
            .map(|read| self.blocks.get_mut(read.block as usize)?.word.take());
        words.collect()
    }
}

/// The caller dropped its future, or does not listen any more.
async fn gave_up<T>(cancel: &CancellationToken, outcomes: Option<mpsc::UnboundedSender<T>>) {
    let closed = async {
        match outcomes {
            Some(outcomes) => outcomes.closed().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = cancel.cancelled() => {}
        () = closed => {}
    }
}
