//! Carries out what the [`SessionMachine`](super::SessionMachine) decides: one task per coordinator.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use kvferry_proto::{
    Generation, Incarnation, Labels, MAX_MESSAGE_BYTES, NodeAddresses, NodeId, RegionId, Slot,
    pb::{
        self, agent_message::Message, coordinator_client::CoordinatorClient,
        coordinator_message::Message as Answer,
    },
};
use kvferry_security::{
    ticket::{MAX_KEYS, PublicKey},
    tls::Dialer,
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until, timeout, timeout_at},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Endpoint;
use tracing::{debug, error, info, warn};

use super::{
    ChangeLog, Command, Event, LogEntry, Open, Reads, SessionConfig, SessionMachine,
    copies::{CopyOrder, Done},
    inbound::{Arrived, Inbound},
    reads::Told,
};
use crate::{
    config::Compression,
    coordinators::compressed,
    transfer::{CopyFailure, TransferMetrics},
};

/// Messages between the machine and the wire; beyond it the coordinator is slow and we wait.
const OUTBOUND_MESSAGES: usize = 64;
/// Refused regions that are remembered: as many as a coordinator remembers of a node.
const MAX_REFUSED: usize = 4_096;
/// A coordinator that takes no message for this long is as good as gone.
const SEND_BOUND: Duration = Duration::from_secs(10);
/// Opening a channel takes no longer.
const CONNECT_BOUND: Duration = Duration::from_secs(5);
/// A goodbye must have been read by then, also by a coordinator that is busy, and within what an agent's end may take (5 s);
/// one that misses it hides the node a little later.
const GOODBYE_BOUND: Duration = Duration::from_secs(3);

/// So long a delta is filled at most. One that is urgent goes at once, or with the acknowledgement of the one before: so many
/// small changes are few deltas when there is much to tell. Another one waits for more: what a pull takes and seals is one delta and
/// not two, and travels when the pull has ended. A reader who hears of a slot that late finds its generation odd and asks again.
const GATHER: Duration = Duration::from_millis(2);

/// What this agent says of itself in every hello.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The node it speaks for.
    pub node: NodeId,
    /// Its lifetime.
    pub incarnation: Incarnation,
    /// Where it can be reached.
    pub addresses: NodeAddresses,
    /// Its labels.
    pub labels: Labels,
}

/// Where a session stands, for people and for those who wait for an acknowledgement.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SessionStatus {
    /// Established, and not in the middle of an inventory.
    pub connected: bool,
    /// The last delta the coordinator confirmed.
    pub acknowledged: u64,
    /// Inventories sent.
    pub resyncs: u64,
    /// The last thing that went wrong; empty while connected.
    pub last_error: String,
    /// Regions that the coordinator refuses, as far as it said: nobody finds their blocks by it.
    pub refused: BTreeSet<RegionId>,
    /// A later incarnation of this node took over: this agent must stop.
    pub superseded: bool,
}

/// A full inventory as messages, and the delta number it is based on.
pub type InventorySource = Arc<dyn Fn() -> (Vec<pb::Inventory>, u64) + Send + Sync>;

/// Takes copies that enough other nodes hold.
pub type SurplusSink = Arc<dyn Fn(&[(RegionId, Slot, Generation)]) + Send + Sync>;

/// Takes the keys that a coordinator signs tickets with, at each of its welcomes.
pub type KeySink = Arc<dyn Fn(Vec<PublicKey>) + Send + Sync>;

/// One session's shell.
pub struct SessionTask {
    endpoint: Endpoint,
    dialer: Dialer,
    address: String,
    identity: Identity,
    log: Arc<ChangeLog>,
    inventory: InventorySource,
    reads: Arc<Reads>,
    told: Told,
    orders: mpsc::Sender<CopyOrder>,
    done: Done,
    surplus: Option<SurplusSink>,
    keys: Option<KeySink>,
    compression: Compression,
    machine: SessionMachine,
    status: watch::Sender<SessionStatus>,
    start: Instant,
    /// Until then the open delta is filled.
    gathering: Option<Instant>,
    outbound: Option<mpsc::Sender<pb::AgentMessage>>,
    inbound: Inbound,
    metrics: Option<Arc<TransferMetrics>>,
    /// Of its stale copies, those the coordinator was told of.
    reported: u64,
}

impl SessionTask {
    /// Prepares a session; nothing happens until [`SessionTask::run`].
    #[must_use]
    pub fn new(
        endpoint: Endpoint,
        identity: Identity,
        log: Arc<ChangeLog>,
        inventory: InventorySource,
        reads: Arc<Reads>,
        orders: mpsc::Sender<CopyOrder>,
        config: SessionConfig,
    ) -> (Self, watch::Receiver<SessionStatus>) {
        let (status, receiver) = watch::channel(SessionStatus::default());
        let task = Self {
            address: endpoint.uri().to_string(),
            endpoint,
            dialer: Dialer::clear(),
            identity,
            log,
            inventory,
            reads,
            told: Told::default(),
            orders,
            done: Done::new(),
            surplus: None,
            keys: None,
            compression: Compression::default(),
            machine: SessionMachine::new(config),
            status,
            start: Instant::now(),
            gathering: None,
            outbound: None,
            inbound: Inbound::Nothing,
            metrics: None,
            reported: 0,
        };
        (task, receiver)
    }

    /// Has the coordinator told, with each heartbeat, how many stale copies pulls met.
    #[must_use]
    pub fn reporting(mut self, metrics: Arc<TransferMetrics>) -> Self {
        self.metrics = Some(metrics);
        self
    }

    /// Stale copies since the last heartbeat.
    fn stale_blocks(&mut self) -> u32 {
        let Some(metrics) = &self.metrics else {
            return 0;
        };
        let all = metrics.failed_copies.of(CopyFailure::Stale).get();
        let more = all.saturating_sub(std::mem::replace(&mut self.reported, all));
        u32::try_from(more).unwrap_or(u32::MAX)
    }

    /// Says who is to hear of copies that enough others hold.
    #[must_use]
    pub fn with_surplus(mut self, sink: SurplusSink) -> Self {
        self.surplus = Some(sink);
        self
    }

    /// Says who is to hear what the coordinator signs tickets with.
    #[must_use]
    pub fn with_keys(mut self, sink: KeySink) -> Self {
        self.keys = Some(sink);
        self
    }

    /// Says how the coordinator is dialled, if not in clear.
    #[must_use]
    pub fn dialing(mut self, dialer: Dialer) -> Self {
        self.dialer = dialer;
        self
    }

    /// Says how messages are compressed.
    #[must_use]
    pub fn compressed(mut self, compression: Compression) -> Self {
        self.compression = compression;
        self
    }

    /// Keeps the coordinator in step until told to stop, then says goodbye.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut changed = self.log.subscribe();
        self.tick();
        loop {
            while let Some(command) = self.machine.poll_command() {
                if self.execute(command).await.is_break() {
                    return;
                }
            }
            while let Some(said) = self.done.next(self.machine.acknowledged()) {
                self.send(Message::Replicated(said)).await;
            }
            self.publish_status();
            let timeout = self.machine.poll_timeout().map(|at| self.start + at);
            let timeout = [timeout, self.gathering].into_iter().flatten().min();
            tokio::select! {
                () = stop.cancelled() => {
                    self.handle(Event::Stop);
                    self.drain().await;
                    return;
                }
                changed = changed.changed() => {
                    // The log lives as long as this task, so this is always news.
                    if changed.is_ok() {
                        self.tick();
                    }
                }
                () = at(timeout) => self.tick(),
                arrived = self.inbound.next() => self.arrived(arrived),
                () = self.done.arrives(&self.log) => {}
            }
        }
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn handle(&mut self, event: Event) {
        let now = self.now();
        self.machine.handle(now, event);
    }

    fn tick(&mut self) {
        let (filling, open) = self.log.filling();
        let gathers = match open {
            Open::Nothing => false,
            Open::Changes => true,
            Open::News => self.machine.awaits_acknowledgement(),
        };
        let now = Instant::now();
        let until = self.gathering.unwrap_or(now + GATHER);
        self.gathering = (gathers && now < until).then_some(until);
        // A delta that is still open counts: asking for it closes it.
        let next_delta = filling + u64::from(open != Open::Nothing && self.gathering.is_none());
        self.handle(Event::Tick { next_delta });
    }

    async fn execute(&mut self, command: Command) -> std::ops::ControlFlow<()> {
        use std::ops::ControlFlow::{Break, Continue};
        match command {
            Command::Connect => {
                let endpoint = self.endpoint.clone().connect_timeout(CONNECT_BOUND);
                let dialer = self.dialer.clone();
                let opening = async move { dialer.connect(&endpoint).await };
                self.inbound = Inbound::Opening(tokio::spawn(opening));
            }
            Command::SendHello { epoch } => {
                let hello = self.hello(epoch);
                self.send(Message::Hello(hello)).await;
            }
            Command::SendDelta(seq) => match self.log.read(seq) {
                LogEntry::Delta(delta) => self.send(Message::Delta(delta.to_message(seq))).await,
                LogEntry::Forgotten => self.handle(Event::DeltaForgotten),
                // The log said that it has it, and then a region went that had just come.
                LogEntry::UpToDate => self.handle(Event::DeltaTakenBack(seq)),
            },
            Command::SendInventory => self.send_inventory().await,
            Command::SendHeartbeat { number, next_delta } => {
                let heartbeat = pb::Heartbeat {
                    number,
                    next_delta,
                    stale_blocks: self.stale_blocks(),
                    reads: self.reads.since(&mut self.told),
                };
                self.send(Message::Heartbeat(heartbeat)).await;
            }
            Command::SendGoodbye => {
                self.send(Message::Goodbye(pb::Goodbye {})).await;
            }
            Command::Disconnect => self.disconnect(),
            Command::GiveUp => {
                error!(
                    node = %self.identity.node,
                    incarnation = %self.identity.incarnation,
                    coordinator = %self.address,
                    "another agent took over this node's name: this one must not speak for it any more"
                );
                self.status.send_modify(|status| status.superseded = true);
                self.disconnect();
                self.publish_status();
                return Break(());
            }
        }
        Continue(())
    }

    fn hello(&self, epoch: u64) -> pb::Hello {
        let (oldest_delta, next_delta) = self.log.bounds();
        pb::Hello {
            node: self.identity.node.to_string(),
            incarnation: self.identity.incarnation.get(),
            addresses: Some((&self.identity.addresses).into()),
            labels: self
                .identity
                .labels
                .iter()
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
                .collect(),
            coordinator_epoch: epoch,
            oldest_delta,
            next_delta,
        }
    }

    async fn send_inventory(&mut self) {
        let (parts, seq) = (self.inventory)();
        // All regions are declared anew, and refused anew.
        self.status.send_modify(|status| status.refused.clear());
        info!(
            coordinator = %self.address,
            parts = parts.len(),
            seq,
            "sending a full inventory"
        );
        for part in parts {
            self.send(Message::Inventory(part)).await;
            if self.outbound.is_none() {
                return;
            }
        }
        self.handle(Event::InventorySent(seq));
    }

    async fn send(&mut self, message: Message) {
        let Some(outbound) = &self.outbound else {
            return;
        };
        let message = pb::AgentMessage {
            message: Some(message),
        };
        match timeout(SEND_BOUND, outbound.send(message)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => self.lost("the stream ended"),
            Err(_) => self.lost(&format!(
                "it took no message for {} s",
                SEND_BOUND.as_secs()
            )),
        }
    }

    fn arrived(&mut self, arrived: Arrived) {
        match arrived {
            Arrived::Channel(channel) => {
                let (sender, receiver) = mpsc::channel(OUTBOUND_MESSAGES);
                self.outbound = Some(sender);
                let client = CoordinatorClient::new(channel)
                    .max_decoding_message_size(MAX_MESSAGE_BYTES)
                    .max_encoding_message_size(MAX_MESSAGE_BYTES);
                let mut client = compressed!(client, self.compression);
                // The server may answer only after it has read the hello, so we must not wait.
                self.inbound = Inbound::Calling(tokio::spawn(async move {
                    let stream = client.session(ReceiverStream::new(receiver)).await?;
                    Ok(stream.into_inner())
                }));
                self.handle(Event::Connected);
            }
            Arrived::Stream(stream) => self.inbound = Inbound::Open(stream),
            Arrived::Answer(answer) => self.answered(answer),
            Arrived::Lost(detail) => self.lost(&detail),
            Arrived::Fenced(detail) => {
                self.note(&detail);
                self.disconnect();
                self.handle(Event::Fenced);
            }
        }
    }

    fn answered(&mut self, answer: Answer) {
        let event = match answer {
            Answer::Welcome(welcome) => {
                info!(coordinator = %self.address, resync = welcome.resync, "session established");
                self.status.send_modify(|status| status.last_error.clear());
                if let Some(sink) = &self.keys {
                    // What is no key signs nothing that could be believed.
                    let keys = welcome.ticket_keys.iter().take(MAX_KEYS);
                    sink(keys.filter_map(|key| PublicKey::from_bytes(key)).collect());
                }
                Event::Welcomed {
                    epoch: welcome.epoch,
                    heartbeat: Duration::from_millis(welcome.heartbeat_interval_ms.into()),
                    expect_delta: (!welcome.resync).then_some(welcome.expect_delta),
                }
            }
            Answer::Ack(ack) => {
                self.handle(Event::Acknowledged(ack.seq));
                return self.tick();
            }
            Answer::Resync(request) => {
                match (request.expected_seq, request.got_seq) {
                    (0, 0) => {
                        info!(coordinator = %self.address, "the coordinator hears refused regions again");
                    }
                    (expected, got) => {
                        warn!(coordinator = %self.address, expected, got, "the coordinator saw a gap");
                    }
                }
                Event::ResyncRequested
            }
            Answer::HeartbeatAck(_) => Event::HeartbeatAnswered,
            Answer::Replicate(message) => {
                self.order(*message);
                // As good a sign of life as any.
                Event::HeartbeatAnswered
            }
            Answer::RegionRefused(refused) => {
                error!(
                    coordinator = %self.address,
                    region = refused.region,
                    "the coordinator refuses a region, nobody will find its blocks: {}",
                    refused.message
                );
                self.status.send_modify(|status| {
                    status.last_error = refused.message;
                    if status.refused.len() < MAX_REFUSED {
                        status.refused.insert(RegionId(refused.region));
                    }
                });
                return;
            }
            Answer::Surplus(surplus) => {
                // A word like any other: the coordinator is there.
                self.hint(&surplus);
                Event::HeartbeatAnswered
            }
            Answer::Closing(_) => {
                info!(coordinator = %self.address, "the coordinator goes away");
                Event::Closing
            }
        };
        self.handle(event);
    }

    fn order(&mut self, message: pb::Replicate) {
        let order = message.order;
        let copy = CopyOrder {
            message,
            reply: self.done.sender(),
        };
        if self.orders.try_send(copy).is_err() {
            self.done.busy(order);
        }
    }

    /// Columns that do not fit each other are cut to the shortest: it is a hint.
    fn hint(&self, surplus: &pb::Surplus) {
        let places = surplus.regions.iter().zip(&surplus.slots);
        let copies = places.zip(&surplus.generations);
        let copies: Vec<_> = copies
            .map(|((region, slot), generation)| {
                (RegionId(*region), Slot(*slot), Generation(*generation))
            })
            .collect();
        if let Some(sink) = &self.surplus {
            sink(&copies);
        }
    }

    fn lost(&mut self, detail: &str) {
        self.note(detail);
        self.disconnect();
        self.handle(Event::Disconnected);
    }

    /// Logs a trouble once, not at every attempt.
    fn note(&self, detail: &str) {
        if self.status.borrow().last_error != detail {
            warn!(coordinator = %self.address, "session lost: {detail}");
            self.status
                .send_modify(|status| detail.clone_into(&mut status.last_error));
        }
    }

    fn disconnect(&mut self) {
        self.outbound = None;
        self.inbound.abort();
        // Another stream knows nothing of these orders.
        self.done.forget();
    }

    /// Lets a goodbye reach the wire: the coordinator ends the stream when it has read it.
    async fn drain(&mut self) {
        while let Some(command) = self.machine.poll_command() {
            if self.execute(command).await.is_break() {
                return;
            }
        }
        self.outbound = None;
        let until = Instant::now() + GOODBYE_BOUND;
        while !matches!(self.inbound, Inbound::Nothing) {
            match timeout_at(until, self.inbound.next()).await {
                Ok(Arrived::Stream(stream)) => self.inbound = Inbound::Open(stream),
                Ok(Arrived::Answer(_)) => {}
                Ok(Arrived::Channel(_) | Arrived::Lost(_) | Arrived::Fenced(_)) => break,
                Err(_) => {
                    debug!(coordinator = %self.address, "no answer to the goodbye");
                    break;
                }
            }
        }
        self.inbound.abort();
    }

    fn publish_status(&self) {
        let (connected, acknowledged, resyncs) = (
            self.machine.is_live(),
            self.machine.acknowledged(),
            self.machine.resyncs(),
        );
        self.status.send_if_modified(|status| {
            let before = status.clone();
            status.connected = connected;
            status.acknowledged = acknowledged;
            status.resyncs = resyncs;
            *status != before
        });
    }
}

async fn at(when: Option<Instant>) {
    match when {
        Some(when) => sleep_until(when).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_copy_is_reported_once() {
        let identity = Identity {
            node: NodeId::new("a").unwrap(),
            incarnation: Incarnation::new(1).unwrap(),
            addresses: NodeAddresses::default(),
            labels: Labels::default(),
        };
        let (task, _status) = SessionTask::new(
            Endpoint::from_static("http://127.0.0.1:1"),
            identity,
            Arc::new(ChangeLog::new()),
            Arc::new(|| (Vec::new(), 0)),
            Arc::default(),
            mpsc::channel(1).0,
            SessionConfig::default(),
        );
        let metrics = Arc::<TransferMetrics>::default();
        let mut task = task.reporting(Arc::clone(&metrics));
        let stale = metrics.failed_copies.of(CopyFailure::Stale);
        stale.add(3);
        metrics.failed_copies.of(CopyFailure::Corrupt).inc();
        assert_eq!((task.stale_blocks(), task.stale_blocks()), (3, 0));
        stale.add(1);
        assert_eq!(task.stale_blocks(), 1);
    }
}
