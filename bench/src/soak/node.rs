//! A node: sessions one after the other, each ended in another way, and what it does while it has one.

use std::{pin::pin, sync::Arc, time::Duration};

use kvferry_proto::{
    Reason,
    pb::{
        self, agent_message::Message as Said, claims_client::ClaimsClient,
        coordinator_client::CoordinatorClient, coordinator_message::Message as Told,
        locations_client::LocationsClient, replicated::Verdict,
    },
    reason_of,
};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Streaming, transport::Channel};

use super::{
    counts::Kind,
    holding::Holding,
    server::{HEARTBEAT, HIDE_AFTER, PURGE_AFTER},
    world::{Draw, RUN, World, packed},
};
use crate::{BenchError, locate::connect, workload::NAMESPACE};

/// Between two things a node does.
const STEP: Duration = Duration::from_millis(10);
/// Deltas on their way.
const WINDOW: u64 = 8;
/// Blocks of a delta.
const PUBLISH: u64 = 256;
/// A claim's time.
const CLAIM_TTL_MS: u32 = 500;
/// The coordinator looks for silent nodes every 100 ms; and it may be busy.
const SLACK: Duration = Duration::from_millis(400);
/// A session that failed is ended by the coordinator, if it is, within this time.
const END_WITHIN: Duration = Duration::from_secs(20);
/// A session's longest life; a short soak's are shorter.
const LONGEST_LIFE: Duration = Duration::from_secs(10);

/// How a session ends.
#[derive(Debug, Clone, Copy)]
enum End {
    /// Cut, and back at once.
    Blink,
    /// Cut, and back after it was hidden.
    Hide,
    /// Cut, and back after it was forgotten.
    Purge,
    Goodbye,
    /// Cut, and back as another lifetime.
    Restart,
    /// Another lifetime while the session is open.
    Fence,
    /// Cut, and back under another name.
    Rename,
}

const ENDS: [End; 7] = [
    End::Blink,
    End::Restart,
    End::Hide,
    End::Goodbye,
    End::Fence,
    End::Rename,
    End::Purge,
];

pub(super) async fn run(world: Arc<World>, number: u32) -> Result<(), BenchError> {
    let mut node = Node::new(world, number);
    let mut ends = ENDS.iter().cycle().skip(number as usize);
    let mut session = node.join().await?;
    loop {
        if let Err(error) = node.live(&mut session).await {
            if !says_silent(&error) && !session.was_silent().await {
                return Err(error);
            }
            // The machine has more to do than it can: this process was not let speak for so long.
            node.world.counts.add(Kind::Starved, 1);
            session = node.join().await?;
            continue;
        }
        if node.world.over() {
            return node.goodbye(session).await;
        }
        let end = ends.next().copied().unwrap_or(End::Blink);
        session = match node.change(session, end).await? {
            Some(session) => session,
            None => node.join().await?,
        };
    }
}

/// Was the session ended because nothing was heard?
fn says_silent(error: &BenchError) -> bool {
    matches!(error, BenchError::Call(status) if reason_of(status) == Some(Reason::Deadline))
}

/// One session, and calls on its connection.
struct Session {
    to: mpsc::Sender<pb::AgentMessage>,
    from: Streaming<pb::CoordinatorMessage>,
    acked: u64,
    heartbeat: u64,
    claims: ClaimsClient<Channel>,
    locations: LocationsClient<Channel>,
}

impl Session {
    async fn say(&self, message: Said) -> Result<(), BenchError> {
        let message = pb::AgentMessage {
            message: Some(message),
        };
        let sent = self.to.send(message).await;
        sent.map_err(|_| BenchError::Wrong("the session is closed".into()))
    }

    /// Did the coordinator end it because it heard nothing?
    async fn was_silent(&mut self) -> bool {
        let end = async {
            loop {
                match self.from.message().await {
                    Ok(Some(_)) => {}
                    Ok(None) => return None,
                    Err(status) => return reason_of(&status),
                }
            }
        };
        let end = tokio::time::timeout(END_WITHIN, end).await;
        matches!(end, Ok(Some(Reason::Deadline)))
    }

    async fn hear(&mut self) -> Result<Told, BenchError> {
        let message = self.from.message().await?.and_then(|m| m.message);
        message.ok_or_else(|| BenchError::Wrong("the session ended".into()))
    }
}

struct Node {
    world: Arc<World>,
    draw: Draw,
    number: u32,
    name: String,
    incarnation: u64,
    names: u64,
    seq: u64,
    holding: Holding,
    /// What is done next, in turn.
    step: u64,
    claims: u64,
    puts: u64,
    /// What will be taken from its location next.
    put: Option<Vec<u64>>,
    orders: u64,
}

impl Node {
    fn new(world: Arc<World>, number: u32) -> Self {
        let slots = world.plan.blocks_per_node;
        Self {
            draw: Draw::new(world.plan.seed, number.into()),
            world,
            number,
            name: format!("node-{number}"),
            incarnation: 1,
            names: 0,
            seq: 0,
            holding: Holding::new(slots),
            // So that nodes do different things at a time, and the first does what is rare soon.
            step: 190 + u64::from(number) * 37,
            claims: 0,
            puts: 0,
            put: None,
            orders: 0,
        }
    }

    /// Another lifetime: nothing is held.
    fn restart(&mut self) {
        self.incarnation += 1;
        self.seq = 0;
        self.holding = Holding::new(self.world.plan.blocks_per_node);
    }

    async fn join(&mut self) -> Result<Session, BenchError> {
        let channel = connect(&self.world.url).await?;
        let (to, outgoing) = mpsc::channel(WINDOW as usize);
        let hello = pb::Hello {
            node: self.name.clone(),
            incarnation: self.incarnation,
            addresses: Some(pb::NodeAddresses {
                peer: format!("10.0.0.{}:7401", self.number % 250),
                data: format!("10.0.0.{}:7402", self.number % 250),
                host_id: self.name.clone(),
                ..pb::NodeAddresses::default()
            }),
            labels: [("rack".to_owned(), (self.number % 4).to_string())].into(),
            coordinator_epoch: 0,
            // What was sent and not taken in is not sent again: an inventory is asked for instead.
            oldest_delta: self.seq + 1,
            next_delta: self.seq + 1,
        };
        let hello = pb::AgentMessage {
            message: Some(Said::Hello(hello)),
        };
        to.try_send(hello)
            .map_err(|error| BenchError::Wrong(error.to_string()))?;
        let from = CoordinatorClient::new(channel.clone())
            .session(ReceiverStream::new(outgoing))
            .await?;
        let mut session = Session {
            to,
            from: from.into_inner(),
            acked: self.seq,
            heartbeat: 0,
            claims: ClaimsClient::new(channel.clone()),
            locations: LocationsClient::new(channel),
        };
        match session.hear().await? {
            Told::Welcome(welcome) if welcome.resync => self.inventory(&session).await?,
            Told::Welcome(_) => {}
            other => return Err(BenchError::Wrong(format!("{other:?} for a welcome"))),
        }
        self.world.counts.add(Kind::Joined, 1);
        Ok(session)
    }

    async fn inventory(&self, session: &Session) -> Result<(), BenchError> {
        for part in self.holding.inventory(self.seq) {
            session.say(Said::Inventory(part)).await?;
        }
        self.world.counts.add(Kind::Inventory, 1);
        Ok(())
    }

    /// A session's middle.
    async fn live(&mut self, session: &mut Session) -> Result<(), BenchError> {
        let longest = (self.world.plan.time / 12).min(LONGEST_LIFE);
        let half = longest.as_millis() as u64 / 2;
        let life = Duration::from_millis(half + self.draw.below(half.max(1)));
        let world = self.world.clone();
        let mut end = pin!(world.wait_until(Instant::now() + life));
        let mut pulse = interval(HEARTBEAT);
        let mut step = interval(STEP);
        step.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let room = self.seq < session.acked + WINDOW;
            tokio::select! {
                () = &mut end => return Ok(()),
                told = session.hear() => self.told(session, told?).await?,
                _ = pulse.tick() => self.heartbeat(session).await?,
                _ = step.tick(), if room => self.step(session).await?,
            }
        }
    }

    async fn told(&mut self, session: &mut Session, told: Told) -> Result<(), BenchError> {
        match told {
            Told::Ack(ack) => session.acked = ack.seq,
            Told::Resync(_) => self.inventory(session).await?,
            Told::Replicate(order) => self.replicate(session, *order).await?,
            Told::HeartbeatAck(_) | Told::Surplus(_) => {}
            other => return Err(BenchError::Wrong(format!("{other:?} in a session"))),
        }
        Ok(())
    }

    async fn heartbeat(&mut self, session: &mut Session) -> Result<(), BenchError> {
        session.heartbeat += 1;
        let other = self.draw.below(self.world.plan.nodes.into());
        let heartbeat = pb::Heartbeat {
            number: session.heartbeat,
            next_delta: self.seq + 1,
            stale_blocks: 1,
            reads: vec![pb::SourceReads {
                node: format!("node-{other}"),
                bytes: self.draw.below(1 << 30),
            }],
        };
        session.say(Said::Heartbeat(heartbeat)).await
    }

    async fn step(&mut self, session: &mut Session) -> Result<(), BenchError> {
        self.step += 1;
        match self.step {
            step if step % 199 == 0 => self.replace_region(session).await,
            step if step % 97 == 0 => self.leave_a_gap(session).await,
            step if step % 31 == 0 => self.evict(session).await,
            step if step % 8 == 5 => self.claim_to_publish(session).await,
            step if step % 8 == 6 => self.locate(session).await,
            step if step % 16 == 7 => self.claim_to_store(session).await,
            _ => {
                let blocks = self.world.blocks(&mut self.draw, PUBLISH);
                self.publish(session, blocks).await
            }
        }
    }

    async fn delta(&mut self, session: &Session, delta: pb::Delta) -> Result<(), BenchError> {
        self.seq += 1;
        let seq = self.seq;
        session.say(Said::Delta(pb::Delta { seq, ..delta })).await
    }

    async fn publish(&mut self, session: &Session, blocks: Vec<u64>) -> Result<(), BenchError> {
        let count = blocks.len();
        let change = self.holding.seal(blocks.into_iter());
        let counts = &self.world.counts;
        counts.add(Kind::Published, count as u64);
        counts.add(Kind::Evicted, change.removed_slots.len() as u64);
        self.change_slots(session, change).await
    }

    async fn evict(&mut self, session: &Session) -> Result<(), BenchError> {
        let first = self.draw.below(self.world.plan.blocks_per_node.into());
        let change = self.holding.evict(first as usize, 4 * PUBLISH as usize);
        let evicted = change.removed_slots.len() as u64;
        self.world.counts.add(Kind::Evicted, evicted);
        self.change_slots(session, change).await
    }

    async fn change_slots(
        &mut self,
        session: &Session,
        change: pb::RegionChange,
    ) -> Result<(), BenchError> {
        let delta = pb::Delta {
            changes: vec![change],
            ..pb::Delta::default()
        };
        self.delta(session, delta).await
    }

    async fn replace_region(&mut self, session: &Session) -> Result<(), BenchError> {
        let old = self.holding.region();
        self.holding.replace();
        self.world.counts.add(Kind::RegionReplaced, 1);
        let delta = pb::Delta {
            regions_removed: vec![old],
            regions_added: vec![self.holding.declaration()],
            ..pb::Delta::default()
        };
        self.delta(session, delta).await
    }

    /// The next delta's number is left out: an inventory will be asked for.
    async fn leave_a_gap(&mut self, session: &Session) -> Result<(), BenchError> {
        self.seq += 1;
        self.world.counts.add(Kind::Gap, 1);
        let blocks = self.world.blocks(&mut self.draw, PUBLISH);
        self.publish(session, blocks).await
    }

    /// Claims a run of blocks: those that were granted, and the lease.
    async fn claim(
        &mut self,
        session: &mut Session,
        purpose: pb::ClaimPurpose,
    ) -> Result<Option<(Vec<u64>, u64)>, BenchError> {
        let blocks = self.world.blocks(&mut self.draw, RUN);
        let request = pb::ClaimRequest {
            namespace: NAMESPACE.into(),
            hashes: Some(packed(blocks.iter().copied())),
            node: self.name.clone(),
            incarnation: self.incarnation,
            ttl_ms: CLAIM_TTL_MS,
            purpose: purpose.into(),
        };
        let answer = session.claims.claim(request).await;
        let Some(answer) = self.world.unless_refused(answer)? else {
            return Ok(None);
        };
        if answer.states.len() as u64 != RUN {
            return Err(BenchError::Wrong("a claim's answer has holes".into()));
        }
        let states = blocks.into_iter().zip(answer.state_of_each());
        let granted = states.filter(|(_, state)| *state == pb::ClaimState::Granted);
        let granted: Vec<u64> = granted.map(|(block, _)| block).collect();
        if granted.is_empty() {
            return Ok(None);
        }
        self.world.counts.add(Kind::Claimed, granted.len() as u64);
        Ok(Some((granted, answer.token)))
    }

    async fn claim_to_publish(&mut self, session: &mut Session) -> Result<(), BenchError> {
        let claimed = self.claim(session, pb::ClaimPurpose::Produce).await?;
        let Some((granted, token)) = claimed else {
            return Ok(());
        };
        let counts = &self.world.counts;
        self.claims += 1;
        match self.claims % 4 {
            0 => {
                let request = pb::ReleaseClaimsRequest {
                    token,
                    hashes: None,
                };
                session.claims.release_claims(request).await?;
                counts.add(Kind::Released, granted.len() as u64);
            }
            1 => {
                let ttl_ms = 2 * CLAIM_TTL_MS;
                let request = pb::RenewClaimsRequest { token, ttl_ms };
                session.claims.renew_claims(request).await?;
                counts.add(Kind::Renewed, 1);
            }
            2 => counts.add(Kind::Abandoned, 1),
            _ => {
                counts.add(Kind::Fulfilled, granted.len() as u64);
                self.publish(session, granted).await?;
            }
        }
        Ok(())
    }

    async fn claim_to_store(&mut self, session: &mut Session) -> Result<(), BenchError> {
        let claimed = self.claim(session, pb::ClaimPurpose::Store).await?;
        match claimed {
            Some((granted, token)) => self.put(session, granted, token).await,
            None => Ok(()),
        }
    }

    async fn locate(&mut self, session: &mut Session) -> Result<(), BenchError> {
        let Some(blocks) = self.put.take() else {
            let blocks = self.world.blocks(&mut self.draw, RUN);
            return self.put(session, blocks, 0).await;
        };
        let request = pb::RemoveLocationsRequest {
            namespace: NAMESPACE.into(),
            hashes: Some(packed(blocks.into_iter())),
            location: String::new(),
        };
        let removed = session.locations.remove_locations(request).await?;
        let removed = removed.into_inner().removed;
        self.world.counts.add(Kind::Unlocated, removed);
        Ok(())
    }

    /// At a location that never was, as a chain.
    async fn put(
        &mut self,
        session: &mut Session,
        blocks: Vec<u64>,
        claim_token: u64,
    ) -> Result<(), BenchError> {
        self.puts += 1;
        let count = blocks.len() as u64;
        // Every fourth is taken back by and by, before it expires.
        self.put = (self.puts % 4 == 3).then(|| blocks.clone());
        let request = pb::PutLocationsRequest {
            namespace: NAMESPACE.into(),
            hashes: Some(packed(blocks.into_iter())),
            location: format!("s3://soak/{}/{}/{}", self.name, self.incarnation, self.puts),
            chained: true,
            parent: Vec::new().into(),
            claim_token,
        };
        session.locations.put_locations(request).await?;
        self.world.counts.add(Kind::Located, count);
        Ok(())
    }

    /// Obeys an order in most cases, and otherwise refuses it in some way, or says nothing.
    async fn replicate(
        &mut self,
        session: &mut Session,
        order: pb::Replicate,
    ) -> Result<(), BenchError> {
        self.orders += 1;
        let verdict = match self.orders % 16 {
            1 => Verdict::Busy,
            2 => Verdict::Full,
            3 => Verdict::Refused,
            4 => return Ok(()),
            _ => Verdict::Done,
        };
        let hashes = order.hashes.unwrap_or_default();
        if verdict == Verdict::Done {
            let change = self.holding.seal_hashes(&hashes);
            self.change_slots(session, change).await?;
        }
        let all = hashes.hashes.len() as u32 / hashes.hash_len.max(1);
        let replicated = pb::Replicated {
            order: order.order,
            verdict: verdict.into(),
            failed: match verdict {
                Verdict::Done => Vec::new(),
                _ => (0..all).collect(),
            },
        };
        self.world.counts.add(Kind::Ordered, 1);
        session.say(Said::Replicated(replicated)).await
    }

    async fn goodbye(&self, mut session: Session) -> Result<(), BenchError> {
        session.say(Said::Goodbye(pb::Goodbye {})).await?;
        // Until the coordinator ends its half.
        while session.from.message().await?.is_some() {}
        Ok(())
    }

    /// Ends a session. The one that follows, where it has to begin before this one's end.
    async fn change(&mut self, session: Session, end: End) -> Result<Option<Session>, BenchError> {
        let world = self.world.clone();
        let away = |time| world.wait_until(Instant::now() + time);
        let kind = match end {
            End::Goodbye => {
                self.goodbye(session).await?;
                self.restart();
                Kind::Goodbye
            }
            End::Fence => {
                self.restart();
                let next = self.join().await?;
                return self.fenced(session).await.map(|()| Some(next));
            }
            End::Blink => {
                drop(session);
                Kind::Blinked
            }
            End::Hide => {
                drop(session);
                away(HIDE_AFTER + SLACK).await;
                Kind::Hidden
            }
            End::Purge => {
                drop(session);
                away(PURGE_AFTER + SLACK).await;
                Kind::Purged
            }
            End::Restart => {
                drop(session);
                self.restart();
                Kind::Restarted
            }
            End::Rename => {
                drop(session);
                self.names += 1;
                self.name = format!("node-{}-{}", self.number, self.names);
                self.restart();
                Kind::Renamed
            }
        };
        self.world.counts.add(kind, 1);
        Ok(None)
    }

    /// The session of an older lifetime must be ended by the coordinator.
    async fn fenced(&self, mut old: Session) -> Result<(), BenchError> {
        loop {
            match old.from.message().await {
                Ok(Some(_)) => {}
                Ok(None) => return Err(BenchError::Wrong("fenced without a reason".into())),
                Err(_) => break,
            }
        }
        self.world.counts.add(Kind::Fenced, 1);
        Ok(())
    }
}
