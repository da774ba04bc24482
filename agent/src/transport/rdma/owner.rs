//! The owner's side: lets readers in, and takes no part in what they read.

use std::{collections::HashMap, future::Future, sync::Arc, time::Instant};

use kvferry_ibverbs::{
    ConnectError, ConnectOptions, Endpoint, Gid, LocalAddress, PairError, PortAddressError,
    QueuePair, ReadyToSend,
};
use kvferry_proto::{RegionId, pb};
use parking_lot::Mutex;
use tokio::{
    sync::broadcast::error::RecvError,
    task::spawn_blocking,
    time::{MissedTickBehavior, interval},
};
use tracing::{debug, info};

use super::{
    config::{KEEPALIVE, LEASE, MAX_ENDPOINTS, MAX_SESSIONS},
    devices::Devices,
    events::DeviceEvent,
    published::{NoProbe, PublishError, Published},
    wire::{BadMessage, endpoint_message, parse_endpoint},
};
use crate::{region::RegionCatalog, transport::random::SplitMix64};

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
    pairs: Vec<(usize, QueuePair<ReadyToSend>)>,
}

/// Of our devices by index, as their ports are now.
type Addresses = Vec<(usize, Result<LocalAddress, PortAddressError>)>;

/// Serves regions by RDMA: registers them, and connects readers' queue pairs.
pub struct RdmaOwner {
    devices: Arc<Devices>,
    published: Published,
    sessions: Mutex<HashMap<u64, Session>>,
    random: Mutex<SplitMix64>,
}

impl RdmaOwner {
    /// Serves a catalogue's regions over these devices. Nothing is registered before [`RdmaOwner::serve`] runs or a
    /// reader asks.
    #[must_use]
    pub fn new(devices: &Arc<Devices>, catalog: &Arc<RegionCatalog>) -> Arc<Self> {
        Arc::new(Self {
            devices: Arc::clone(devices),
            published: Published::new(devices, catalog),
            sessions: Mutex::default(),
            random: Mutex::new(SplitMix64::from_system()),
        })
    }

    /// Keeps registrations and sessions until `shutdown` completes, then ends them all.
    pub async fn serve(self: Arc<Self>, shutdown: impl Future<Output = ()>) {
        let mut regions = self.published.changes();
        let mut events = self.devices.events.subscribe();
        let mut tick = interval(KEEPALIVE);
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
        let _ = spawn_blocking(move || owner.published.sync()).await;
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
        let late = |_: &u64, session: &mut Session| session.renewed.elapsed() >= LEASE;
        let expired: Vec<_> = self.sessions.lock().extract_if(late).collect();
        for (_, session) in &expired {
            info!(
                reader = session.from,
                "an RDMA session was not renewed: torn down"
            );
        }
        drop_aside(expired);
    }

    /// How many readers are connected.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.sessions.lock().len()
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
        response.session = self.session(request)?;
        let devices = self.devices.list.iter();
        let addresses: Addresses = devices.map(|d| (d.index, d.address())).collect();
        let mut made = Vec::new();
        for endpoint in &request.endpoints {
            let lane = self.answer(endpoint, &addresses, &mut made);
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

    /// The session asked for, or a new one.
    fn session(&self, request: &pb::ConnectRdmaRequest) -> Result<u64, LetInError> {
        let mut sessions = self.sessions.lock();
        if request.session != 0 {
            return match sessions.contains_key(&request.session) {
                true => Ok(request.session),
                false => Err(LetInError::NoSession),
            };
        }
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
                // A peer's text, bounded before it is kept.
                from: request.from_node.chars().take(64).collect(),
                renewed: Instant::now(),
                pairs: Vec::new(),
            },
        );
        Ok(number)
    }

    fn answer(
        &self,
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
        let probe = self.published.probe(index)?;
        let pair = device.answering_pair()?;
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
        if !self.sessions.lock().contains_key(&session) {
            return Err(PublishError::NoSession);
        }
        if regions.len() > super::config::MAX_DESCRIBED {
            return Err(PublishError::TooMany);
        }
        regions
            .iter()
            .map(|region| self.published.describe(RegionId(*region)))
            .collect()
    }

    /// True where there is such a session.
    pub(crate) fn renew(&self, session: u64) -> bool {
        let mut sessions = self.sessions.lock();
        let Some(session) = sessions.get_mut(&session) else {
            return false;
        };
        session.renewed = Instant::now();
        true
    }

    pub(crate) fn close(&self, session: u64) {
        let gone = self.sessions.lock().remove(&session);
        drop_aside(gone);
    }
}

/// Destroying queue pairs takes a call into the kernel each: not on a thread that others wait for.
fn drop_aside(gone: impl Send + 'static) {
    match tokio::runtime::Handle::try_current() {
        Ok(runtime) => drop(runtime.spawn_blocking(move || drop(gone))),
        Err(_) => drop(gone),
    }
}
