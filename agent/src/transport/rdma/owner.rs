//! The owner's side: lets readers in, and takes no part in what they read.

use std::{
    collections::HashMap,
    future::Future,
    sync::{Arc, Weak},
    time::Instant,
};

use bytes::Bytes;
use kvferry_ibverbs::{
    ConnectError, ConnectOptions, DomainError, Endpoint, Gid, LocalAddress, PairError,
    PortAddressError, QueuePair, ReadyToSend,
};
use kvferry_proto::{RegionId, pb};
use kvferry_security::ticket::{NoRandomness, Nonce, Purpose, Refusal, Scope};
use parking_lot::Mutex;
use tokio::{
    sync::broadcast::error::RecvError,
    task::spawn_blocking,
    time::{MissedTickBehavior, interval},
};
use tracing::{debug, info};

use super::{
    challenges::Challenges,
    config::{LEASE, MAX_ENDPOINTS, MAX_ROOMS, MAX_SESSIONS, SWEEP_EVERY},
    devices::Devices,
    events::DeviceEvent,
    published::{NoProbe, PublishError, Published},
    wire::{BadMessage, endpoint_message, parse_endpoint},
};
use crate::{
    region::RegionCatalog,
    tickets::{Gate, Needs, Permit},
    transport::random::SplitMix64,
};

/// Why readers are not connected.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LetInError {
    /// As many as there may be. Back off.
    #[error("{MAX_SESSIONS} readers have RDMA sessions here already")]
    TooManySessions,
    /// A request that cannot be.
    #[error("{0} queue pairs in one request; at most {MAX_ENDPOINTS} are allowed")]
    TooManyEndpoints(usize),
    /// No such session (any more): begin a new one.
    #[error("there is no such RDMA session")]
    NoSession,
    /// As many kinds of readers as there may be. Back off.
    #[error("readers of {MAX_ROOMS} kinds have RDMA sessions here already")]
    TooManyRooms,
    /// A device gives no domain to keep this reader's regions apart in. Back off.
    #[error("this reader's regions cannot be kept apart: {0}")]
    Domain(#[from] DomainError),
    /// A challenge cannot be made. Back off.
    #[error(transparent)]
    Randomness(#[from] NoRandomness),
}

/// Why one queue pair is not answered; the others of the request may be. Told to the reader in words.
#[derive(Debug, thiserror::Error)]
enum NoAnswer {
    /// The reader's endpoint cannot be.
    #[error(transparent)]
    Endpoint(#[from] BadMessage),
    /// None of our devices is on its network, or those that are cannot be used now.
    #[error("{}no device of this node fits {gid}", unusable.iter().fold(String::new(), |all, one| format!("{all}{one}; ")))]
    NoDevice {
        /// The reader's address.
        gid: Gid,
        /// Those that have no address.
        unusable: Vec<String>,
    },
    /// There is no such device.
    #[error("the owner has no such device")]
    NoDomain,
    /// Nothing to prove the path with.
    #[error(transparent)]
    Probe(#[from] NoProbe),
    /// The device has no room for another.
    #[error(transparent)]
    Pair(#[from] PairError),
    /// The two do not fit.
    #[error(transparent)]
    Connect(#[from] ConnectError),
}

struct Session {
    from: String,
    renewed: Instant,
    /// Where a ticket was needed.
    permit: Option<Permit>,
    pairs: Vec<(usize, QueuePair<ReadyToSend>)>,
    /// What it may read. Behind its queue pairs, which go first.
    published: Arc<Published>,
}

/// Of our devices by index, as their ports are now.
type Addresses = Vec<(usize, Result<LocalAddress, PortAddressError>)>;

/// Serves regions by RDMA: registers them, and connects readers' queue pairs.
pub struct RdmaOwner {
    devices: Arc<Devices>,
    catalog: Arc<RegionCatalog>,
    gate: Arc<Gate>,
    /// For readers that may read all.
    published: Arc<Published>,
    /// For readers that may not, as long as there are any.
    rooms: Mutex<Vec<Weak<Published>>>,
    challenges: Mutex<Challenges>,
    sessions: Mutex<HashMap<u64, Session>>,
    random: Mutex<SplitMix64>,
}

impl RdmaOwner {
    /// Serves a catalogue's regions over these devices. Nothing is registered before [`RdmaOwner::serve`] runs or a
    /// reader asks.
    #[must_use]
    pub fn new(devices: &Arc<Devices>, catalog: &Arc<RegionCatalog>) -> Arc<Self> {
        Self::behind(Arc::new(Gate::open()), devices, catalog)
    }

    /// As [`RdmaOwner::new`], for those whom the gate lets in.
    #[must_use]
    pub fn behind(
        gate: Arc<Gate>,
        devices: &Arc<Devices>,
        catalog: &Arc<RegionCatalog>,
    ) -> Arc<Self> {
        Arc::new(Self {
            devices: Arc::clone(devices),
            gate,
            published: Arc::new(Published::new(devices, catalog)),
            rooms: Mutex::default(),
            challenges: Mutex::default(),
            catalog: Arc::clone(catalog),
            sessions: Mutex::default(),
            random: Mutex::new(SplitMix64::from_system()),
        })
    }

    /// Keeps registrations and sessions until `shutdown` completes, then ends them all.
    pub async fn serve(self: Arc<Self>, shutdown: impl Future<Output = ()>) {
        let mut regions = self.published.changes();
        let mut events = self.devices.events.subscribe();
        let mut tick = interval(SWEEP_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut shutdown = std::pin::pin!(shutdown);
        self.publish().await;
        loop {
            tokio::select! {
                () = &mut shutdown => break,
                changed = regions.changed() => {
                    if changed.is_err() {
                        break;
                    }
                    self.publish().await;
                }
                event = events.recv() => match event {
                    Ok(event) => self.handle(event),
                    Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => break,
                },
                _ = tick.tick() => self.expire(),
            }
        }
        let all: Vec<Session> = self.sessions.lock().drain().map(|(_, s)| s).collect();
        drop_aside(all);
    }

    async fn publish(self: &Arc<Self>) {
        let owner = Arc::clone(self);
        // Takes seconds for large regions, and must not be given up halfway.
        let _ = spawn_blocking(move || {
            owner.published.sync();
            let rooms = owner.rooms.lock().clone();
            rooms
                .iter()
                .filter_map(Weak::upgrade)
                .for_each(|room| room.sync());
        })
        .await;
    }

    fn handle(&self, event: DeviceEvent) {
        let mut gone = Vec::new();
        let mut sessions = self.sessions.lock();
        for session in sessions.values_mut() {
            let hit = |pair: &mut (usize, QueuePair<ReadyToSend>)| match event {
                DeviceEvent::Down { device } => pair.0 == device,
                DeviceEvent::Pair { device, qp_num } => {
                    pair.0 == device && pair.1.qp_num() == qp_num
                }
            };
            gone.extend(session.pairs.extract_if(.., hit));
        }
        drop(sessions);
        if !gone.is_empty() {
            debug!(count = gone.len(), "readers' queue pairs ended");
        }
        drop_aside(gone);
    }

    fn expire(&self) {
        let needs = self.gate.needs();
        let over = |_: &u64, session: &mut Session| {
            session.renewed.elapsed() >= LEASE || session.has_no_right(needs)
        };
        let expired: Vec<_> = self.sessions.lock().extract_if(over).collect();
        for (_, session) in &expired {
            let reader = &session.from;
            if session.permit.as_ref().is_some_and(Permit::is_over) {
                self.gate.expired();
                info!(reader, "an RDMA session's ticket has expired: torn down");
            } else {
                info!(reader, "an RDMA session was not renewed: torn down");
            }
        }
        drop_aside(expired);
        self.rooms.lock().retain(|room| room.strong_count() > 0);
    }

    /// How many readers are connected.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.sessions.lock().len()
    }

    /// What a reader is to prove its ticket with; None where it needs none.
    pub(crate) fn challenge(
        &self,
        request: &pb::ChallengeRdmaRequest,
    ) -> Result<pb::ChallengeRdmaResponse, LetInError> {
        let mut response = pb::ChallengeRdmaResponse::default();
        // Another lifetime is told so by ConnectRdma.
        if self.gate.needs() == Needs::Nothing
            || request.incarnation != self.published.incarnation().get()
        {
            return Ok(response);
        }
        match self.gate.check(&request.ticket) {
            Ok(checked) => {
                let nonce = Nonce::random()?;
                let reader = checked.ticket().reader_key;
                self.challenges.lock().add(Instant::now(), reader, nonce);
                response.nonce = Bytes::copy_from_slice(&nonce.0);
            }
            Err(refusal) => response.refused = refusal.code().into(),
        }
        Ok(response)
    }

    /// Whether the caller is let in, and for what.
    fn let_in(&self, shown: Option<&pb::TicketProof>) -> Result<Option<Permit>, Refusal> {
        if self.gate.needs() == Needs::Nothing {
            return Ok(None);
        }
        let nothing = pb::TicketProof::default();
        let shown = shown.unwrap_or(&nothing);
        let checked = self.gate.check(&shown.ticket)?;
        let reader = checked.ticket().reader_key;
        let mut challenges = self.challenges.lock();
        let nonce = challenges.take(Instant::now(), reader, &shown.nonce);
        drop(challenges);
        let nonce = nonce.ok_or_else(|| self.gate.refuse(Refusal::BadProof))?;
        let admitted = self
            .gate
            .admit(checked, Purpose::Rdma, &nonce, &shown.proof);
        admitted.map(Some)
    }

    /// Where a reader of these scopes finds its regions.
    fn room(&self, permit: Option<&Permit>) -> Result<Arc<Published>, LetInError> {
        let Some(scopes) = permit.and_then(apart) else {
            return Ok(Arc::clone(&self.published));
        };
        let mut rooms = self.rooms.lock();
        rooms.retain(|room| room.strong_count() > 0);
        let known = rooms.iter().filter_map(Weak::upgrade);
        if let Some(room) = known.into_iter().find(|room| room.is_of(Some(&scopes))) {
            return Ok(room);
        }
        if rooms.len() >= MAX_ROOMS {
            return Err(LetInError::TooManyRooms);
        }
        let room = Published::apart(&self.devices, &self.catalog, scopes)?;
        let room = Arc::new(room);
        rooms.push(Arc::downgrade(&room));
        Ok(room)
    }

    /// Connects queue pairs to a reader's.
    pub(crate) fn connect(
        &self,
        request: &pb::ConnectRdmaRequest,
    ) -> Result<pb::ConnectRdmaResponse, LetInError> {
        let incarnation = self.published.incarnation();
        let mut response = pb::ConnectRdmaResponse {
            incarnation: incarnation.get(),
            lease_ms: u32::try_from(LEASE.as_millis()).unwrap_or(u32::MAX),
            ..Default::default()
        };
        if request.incarnation != incarnation.get() {
            return Ok(response);
        }
        if request.endpoints.len() > MAX_ENDPOINTS {
            return Err(LetInError::TooManyEndpoints(request.endpoints.len()));
        }
        let permit = match self.let_in(request.ticket.as_ref()) {
            Ok(permit) => permit,
            Err(refusal) => {
                debug!(reader = reader_name(request), "not let in: {refusal}");
                response.refused = refusal.code().into();
                return Ok(response);
            }
        };
        let (session, published) = self.session(request, permit)?;
        response.session = session;
        let devices = self.devices.list.iter();
        let addresses: Addresses = devices.map(|d| (d.index, d.address())).collect();
        let mut made = Vec::new();
        for endpoint in &request.endpoints {
            let lane = self.answer(&published, endpoint, &addresses, &mut made);
            response.lanes.push(lane.unwrap_or_else(|why| pb::RdmaLane {
                refused: why.to_string(),
                ..Default::default()
            }));
        }
        let mut sessions = self.sessions.lock();
        match sessions.get_mut(&response.session) {
            Some(session) => session.pairs.extend(made),
            // It ended meanwhile.
            None => return Err(LetInError::NoSession),
        }
        Ok(response)
    }

    /// The session asked for, or a new one, and what may be read in it.
    fn session(
        &self,
        request: &pb::ConnectRdmaRequest,
        permit: Option<Permit>,
    ) -> Result<(u64, Arc<Published>), LetInError> {
        if request.session != 0 {
            let sessions = self.sessions.lock();
            let session = sessions.get(&request.session);
            let own = session.filter(|session| session.is_of(permit.as_ref()));
            let own = own.ok_or(LetInError::NoSession)?;
            return Ok((request.session, Arc::clone(&own.published)));
        }
        let published = self.room(permit.as_ref())?;
        let mut sessions = self.sessions.lock();
        if sessions.len() >= MAX_SESSIONS {
            return Err(LetInError::TooManySessions);
        }
        let mut random = self.random.lock();
        let number = loop {
            let number = random.next_u64();
            if number != 0 && !sessions.contains_key(&number) {
                break number;
            }
        };
        sessions.insert(
            number,
            Session {
                from: reader_name(request),
                renewed: Instant::now(),
                permit,
                pairs: Vec::new(),
                published: Arc::clone(&published),
            },
        );
        Ok((number, published))
    }

    fn answer(
        &self,
        published: &Published,
        reader: &pb::RdmaEndpoint,
        addresses: &Addresses,
        made: &mut Vec<(usize, QueuePair<ReadyToSend>)>,
    ) -> Result<pb::RdmaLane, NoAnswer> {
        let remote: Endpoint = parse_endpoint(reader)?;
        let usable: Vec<(usize, LocalAddress)> = addresses
            .iter()
            .filter_map(|(index, address)| Some((*index, *address.as_ref().ok()?)))
            .collect();
        let load = |index: usize| made.iter().filter(|(device, _)| *device == index).count();
        let nearest = Devices::nearest(usable.iter(), remote.gid, remote.link_layer, load);
        let Some((index, address)) = nearest else {
            let unusable = addresses
                .iter()
                .filter_map(|(_, address)| Some(address.as_ref().err()?.to_string()));
            return Err(NoAnswer::NoDevice {
                gid: remote.gid,
                unusable: unusable.collect(),
            });
        };
        let device = &self.devices.list[index];
        let probe = published.probe(index)?;
        let domain = published.domain(index).ok_or(NoAnswer::NoDomain)?;
        let pair = device.answering_pair(domain)?;
        let pair = pair.bind(&address)?;
        let endpoint = pair.endpoint();
        let pair = pair.connect(&remote, &ConnectOptions::default())?;
        made.push((index, pair.ready()?));
        Ok(pb::RdmaLane {
            refused: String::new(),
            endpoint: Some(endpoint_message(&endpoint, device)),
            device: u32::try_from(index).unwrap_or(u32::MAX),
            probe: Some(super::wire::memory_message(probe)),
        })
    }

    /// Where regions lie. Only for those who have a session: keys are told to nobody else.
    pub(crate) fn describe(
        &self,
        session: u64,
        regions: &[u32],
    ) -> Result<Vec<pb::RdmaRegion>, PublishError> {
        let published = {
            let sessions = self.sessions.lock();
            let session = sessions.get(&session).ok_or(PublishError::NoSession)?;
            Arc::clone(&session.published)
        };
        if regions.len() > super::config::MAX_DESCRIBED {
            return Err(PublishError::TooMany);
        }
        regions
            .iter()
            .map(|region| published.describe(RegionId(*region)))
            .collect()
    }

    /// Whether there is such a session, which goes on; with a later ticket, where one is shown.
    pub(crate) fn renew(&self, request: &pb::RenewRdmaRequest) -> pb::RenewRdmaResponse {
        let mut response = pb::RenewRdmaResponse::default();
        let mut sessions = self.sessions.lock();
        let Some(session) = sessions.get_mut(&request.session) else {
            return response;
        };
        let renewed = match &session.permit {
            Some(permit) if !request.ticket.is_empty() => {
                Some(self.gate.renew(permit, &request.ticket))
            }
            _ => None,
        };
        match renewed {
            // It may read something else now: its regions are not those of this session any more.
            Some(Ok(permit)) if !session.published.is_of(apart(&permit).as_deref()) => {
                let gone = sessions.remove(&request.session);
                drop_aside(gone);
                return response;
            }
            Some(Ok(permit)) => session.permit = Some(permit),
            Some(Err(refusal)) => response.refused = refusal.code().into(),
            None => {}
        }
        session.renewed = Instant::now();
        response.alive = true;
        response
    }

    pub(crate) fn close(&self, session: u64) {
        let gone = self.sessions.lock().remove(&session);
        drop_aside(gone);
    }
}

impl Session {
    /// Was it begun by whoever has this permit?
    fn is_of(&self, permit: Option<&Permit>) -> bool {
        let key = |permit: &Permit| (permit.reader().clone(), permit.ticket().reader_key);
        self.permit.as_ref().map(key) == permit.map(key)
    }

    fn has_no_right(&self, needs: Needs) -> bool {
        match &self.permit {
            Some(permit) => permit.is_over(),
            None => needs == Needs::Ticket,
        }
    }
}

/// A peer's text, bounded before it is kept.
fn reader_name(request: &pb::ConnectRdmaRequest) -> String {
    request.from_node.chars().take(64).collect()
}

/// The namespaces whose regions are kept apart for this reader; None for one that may read all.
fn apart(permit: &Permit) -> Option<Vec<Scope>> {
    let mut scopes = permit.ticket().scopes.clone();
    scopes.sort();
    scopes.dedup();
    (!scopes.contains(&Scope::all())).then_some(scopes)
}

/// Destroying queue pairs takes a call into the kernel each: not on a thread that others wait for.
fn drop_aside(gone: impl Send + 'static) {
    match tokio::runtime::Handle::try_current() {
        Ok(runtime) => drop(runtime.spawn_blocking(move || drop(gone))),
        Err(_) => drop(gone),
    }
}
