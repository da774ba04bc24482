//! An agent, put together: what it binds, what it runs, how it stops.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, atomic::AtomicU64},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use kvferry_observe::{BindError as MetricsBindError, MetricsServer};
use kvferry_proto::pb::peer_server::PeerServer;
use kvferry_proto::{IdError, Incarnation, Labels, NodeAddresses, NodeId};
use kvferry_security::{
    ticket::NoRandomness,
    tls::{Dialer, DialerError, DoorCounts, Listener, ServerTls, TlsFileError},
};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tracing::{info, warn};

use crate::{
    config::{AgentConfig, ConfigError, EvictionChoice, TransportChoice},
    coordinators::{BadAddress, Coordinators, endpoint},
    gpu::Gpus,
    metrics::AgentObserved,
    region::{ClientId, RegionCatalog, Store, StoreLimits, eviction::EvictionKind},
    service::{
        Clients, Defaults, LocalApi, MAX_ORDERS_WAITING, PeerApi, Registry, Shared, TensorsApi,
        keep_announced,
    },
    session::{
        ChangeLog, CopyOrder, Identity, InventorySource, Reads, SessionConfig, SessionStatus,
        SessionTask, inventory_messages,
    },
    tickets::{Gate, Tickets, Wallet},
    transfer::{TransferConfig, TransferMetrics},
    transport::{
        Links, LinksConfig, Transport, TransportKind,
        rdma::{Devices, NoRdma, RdmaConfig, RdmaOwner, RdmaTransport},
        shm::{ShmOptions, ShmServer, ShmTransport, host_id},
        tcp::{BindError, PayloadTls, TcpConfig, TcpLimits, TcpServer, TcpTransport},
    },
    unix_socket::{BoundSocket, Guarded, Reach, SocketError},
};

/// Everything must have ended this long after the signal; what has not is dropped.
const DRAIN_BOUND: Duration = Duration::from_secs(5);
/// How often expired pins are looked for, and GPUs that were lost.
const TICK: Duration = Duration::from_secs(1);
/// Candidates asked for per block: the first, and two to fail over to.
const CANDIDATES: u32 = 3;
/// Local connections that may be open: engines have a handful of processes, tools come and go.
const MAX_LOCAL_CONNECTIONS: usize = 1024;

/// Why an agent does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A setting that cannot be.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A name or label that cannot be.
    #[error(transparent)]
    Name(#[from] IdError),
    /// A coordinator's address that cannot be.
    #[error(transparent)]
    Coordinator(#[from] BadAddress),
    /// Certificate, key or CA are of no use.
    #[error(transparent)]
    Tls(#[from] TlsFileError),
    /// What is needed to dial is of no use.
    #[error(transparent)]
    Dialer(#[from] DialerError),
    /// A TCP port that is not to be had.
    #[error(
        "cannot listen on {address} ({what}): {source}; stop what listens there, or choose another port"
    )]
    Listen {
        /// What was to listen there.
        what: &'static str,
        /// Where.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// RDMA was asked for, and there is none.
    #[error("transport = \"rdma\": {0}; see `kvferry doctor`")]
    Rdma(#[from] NoRdma),
    /// The data port is not to be had.
    #[error(transparent)]
    Data(#[from] BindError),
    /// The metrics port is not to be had.
    #[error(transparent)]
    Metrics(#[from] MetricsBindError),
    /// No key to prove with who we are.
    #[error(transparent)]
    Randomness(#[from] NoRandomness),
    /// A unix socket that is not to be had.
    #[error(transparent)]
    Socket(#[from] SocketError),
}

/// Why an agent ended other than by being told to.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A later incarnation of this node took over.
    #[error(
        "another agent took over the node name {node}: this one has ended; give each agent a name of its own"
    )]
    Superseded {
        /// The name.
        node: NodeId,
    },
}

/// Where an agent is to be found.
#[derive(Debug, Clone)]
pub struct AgentAddresses {
    /// Its node.
    pub node: NodeId,
    /// Its lifetime.
    pub incarnation: Incarnation,
    /// Its Peer service.
    pub peer: SocketAddr,
    /// Its TCP data plane.
    pub data: SocketAddr,
    /// Where its metrics are read, if anywhere.
    pub metrics: Option<SocketAddr>,
    /// Its local API.
    pub socket: PathBuf,
    /// Where descriptors are handed over.
    pub descriptor_socket: PathBuf,
}

/// An agent that has bound everything and serves nothing yet.
pub struct Agent {
    addresses: AgentAddresses,
    api: LocalApi,
    identity: Identity,
    clients: Clients,
    gone: mpsc::UnboundedReceiver<ClientId>,
    copies: mpsc::Receiver<CopyOrder>,
    local: Guarded,
    peer: Listener,
    door: Arc<DoorCounts>,
    data: TcpServer,
    metrics: Option<MetricsServer>,
    shm: ShmServer,
    rdma: Option<Arc<RdmaOwner>>,
    sessions: Vec<SessionTask>,
}

impl Agent {
    /// Checks the configuration and binds everything.
    ///
    /// # Errors
    /// [`StartError`]; nothing stays bound then.
    pub async fn start(config: AgentConfig) -> Result<Self, StartError> {
        config.validate()?;
        let tls = ServerTls::open(&config.tls_files())?.map(Arc::new);
        let dialer = Dialer::open(&config.secured())?;
        warn_of_open_doors(&config);
        let node = NodeId::new(&config.node)?;
        let labels = Labels::new(config.labels.clone())?;
        let incarnation = new_incarnation()?;
        let catalog = Arc::new(RegionCatalog::new(incarnation));

        let (addresses, compression) = (&config.coordinators, config.coordinator_compression);
        let coordinators = Arc::new(Coordinators::new(addresses, compression, &dialer)?);
        let tickets = Tickets {
            gate: Arc::new(Gate::new(node.clone(), incarnation, config.require_tickets)),
            wallet: Arc::new(Wallet::new(node.clone(), Arc::clone(&coordinators) as _)?),
        };

        let devices = open_devices(&config)?;
        let owner = |all| RdmaOwner::behind(Arc::clone(&tickets.gate), all, &catalog);
        let rdma = devices.as_ref().map(owner);

        let users = config.socket_uids()?;
        // Who connects is asked who he is, each time: the file's mode only keeps others away from there.
        let reach = match users.is_empty() {
            true => Reach::ThisUser,
            false => Reach::Everybody,
        };
        let local = BoundSocket::bind(&config.socket_path(), reach)?;
        let shm = ShmServer::bind(
            &config.descriptor_socket_path(),
            Arc::clone(&catalog),
            ShmOptions {
                reader_uids: config.allow_uids.clone(),
                engine_uids: users.clone(),
            },
        )?
        .behind(Arc::clone(&tickets.gate));
        let local = Guarded {
            socket: local,
            users,
        };
        let data = TcpServer::bind(
            config.listen_data,
            Arc::clone(&catalog),
            TcpLimits::default(),
        )
        .await?
        .behind(Arc::clone(&tickets.gate));
        let data = match tls.clone().filter(|_| config.data_tls) {
            Some(tls) => data.by_tls(tls),
            None => data,
        };
        let payload = PayloadTls::new(dialer.clone(), config.data_tls);
        let metrics = config.listen_metrics.address();
        let metrics = metrics.map(MetricsServer::bind).transpose()?;
        let (peer, peer_address) = listen("listen_peer", config.listen_peer).await?;
        let door = Arc::<DoorCounts>::default();
        let peer = Listener::new(peer, tls, Arc::clone(&door));

        let reachable = |bound: SocketAddr| match config.advertise_host {
            Some(host) => SocketAddr::new(host, bound.port()),
            None => bound,
        };
        let identity = Identity {
            node: node.clone(),
            incarnation,
            addresses: NodeAddresses {
                peer: Some(reachable(peer_address)),
                data: Some(reachable(data.local_addr())),
                shm: Some(config.descriptor_socket_path().display().to_string()),
                host_id: host_id(),
                rdma: rdma.is_some(),
                data_tls: config.data_tls,
            },
            labels,
        };
        let log = Arc::new(ChangeLog::new());
        let store = Arc::new(Store::new(
            catalog,
            Arc::clone(&log) as _,
            StoreLimits::default(),
        ));
        let transfer = Arc::<TransferMetrics>::default();
        let (orders, copies) = mpsc::channel(MAX_ORDERS_WAITING);
        let beside = Beside {
            transfer: Arc::clone(&transfer),
            reads: Arc::default(),
            orders,
            tickets,
        };
        let (sessions, statuses) = sessions(&config, &identity, &store, &log, &beside, &dialer)?;
        let api = LocalApi::new(Shared {
            payload: payload.refused(),
            links: links(
                &config,
                &identity,
                devices,
                &beside.tickets.wallet,
                &dialer,
                payload,
            ),
            deposits: shm.deposits(),
            coordinators,
            coordinator_addresses: config.coordinators.clone(),
            sessions: statuses,
            served: data.counters(),
            identity: identity.clone(),
            defaults: defaults(&config),
            imports: Default::default(),
            leases: Default::default(),
            gpus: Gpus::default(),
            pulls: Arc::default(),
            background: Arc::default(),
            reads: beside.reads,
            tickets: beside.tickets,
            transfer,
            tensors: Registry::new(config.coordinators.len()),
            holders: AtomicU64::new(1),
            start: Instant::now(),
            store,
            log,
        });
        let (clients, gone) = Clients::new();
        Ok(Self {
            addresses: AgentAddresses {
                node,
                incarnation,
                peer: peer_address,
                data: data.local_addr(),
                metrics: metrics.as_ref().map(MetricsServer::local_addr),
                socket: config.socket_path(),
                descriptor_socket: config.descriptor_socket_path(),
            },
            api,
            identity,
            clients,
            gone,
            copies,
            local,
            peer,
            door,
            data,
            metrics,
            shm,
            rdma,
            sessions,
        })
    }

    /// Where it is to be found.
    #[must_use]
    pub fn addresses(&self) -> &AgentAddresses {
        &self.addresses
    }

    /// Serves until `shutdown` completes, then says goodbye, lets calls end, and closes everything.
    ///
    /// # Errors
    /// [`ServeError`] when it had to end by itself.
    pub async fn serve(self, shutdown: impl Future<Output = ()>) -> Result<(), ServeError> {
        let stop = CancellationToken::new();
        // Readers are told that we go before our memory does.
        let stop_data = CancellationToken::new();
        let (api, statuses) = (self.api.clone(), self.api.sessions.clone());
        let mut sessions = JoinSet::new();
        for session in self.sessions {
            sessions.spawn(session.run(stop.clone()));
        }
        let mut tasks = JoinSet::new();
        tasks.spawn(serve_local(
            self.api.clone(),
            self.local,
            self.clients,
            stop.clone(),
        ));
        let peer_api = PeerApi::server(self.identity, self.rdma.clone());
        tasks.spawn(serve_peers(peer_api, self.peer, stop.clone()));
        if let Some(owner) = self.rdma {
            tasks.spawn(owner.serve(stop_data.clone().cancelled_owned()));
        }
        tasks.spawn(self.api.clone().make_copies(self.copies, stop.clone()));
        if let Some(metrics) = self.metrics {
            let observed = Arc::new(AgentObserved(self.api.clone(), self.door));
            tasks.spawn(metrics.serve(observed, stop.clone().cancelled_owned()));
        }
        tasks.spawn(housekeeping(self.api.clone(), self.gone, stop.clone()));
        let stop_telling = stop.child_token();
        for coordinator in 0..self.api.sessions.len() {
            let stop = stop_telling.clone();
            tasks.spawn(keep_announced(self.api.clone(), coordinator, stop));
        }
        tasks.spawn(self.data.serve(stop_data.clone().cancelled_owned()));
        tasks.spawn(self.shm.serve(stop_data.clone().cancelled_owned()));

        let result = tokio::select! {
            () = shutdown => Ok(()),
            () = superseded(statuses) => Err(ServeError::Superseded {
                node: self.addresses.node.clone(),
            }),
        };
        info!("stopping");
        // Sets of tensors end with the node: that their regions go first is nothing to be told.
        stop_telling.cancel();
        // Words odd first: engines hear of our end by what comes after it.
        api.end_engines();
        stop.cancel();
        let drained = timeout(DRAIN_BOUND, async {
            while sessions.join_next().await.is_some() {}
            stop_data.cancel();
            while tasks.join_next().await.is_some() {}
        })
        .await;
        if drained.is_err() {
            warn!(
                "calls were still under way after {} s: dropped",
                DRAIN_BOUND.as_secs()
            );
        }
        result
    }
}

/// Microseconds since 1970: a later process has a greater number unless the clock was set back; then
/// the coordinator refuses it until the old one is forgotten, and says so.
fn new_incarnation() -> Result<Incarnation, IdError> {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Incarnation::new(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}

/// Says at every start what strangers can do.
fn warn_of_open_doors(config: &AgentConfig) {
    let files = config.tls_files();
    for (what, address) in [
        ("listen_peer", config.listen_peer),
        ("listen_data", config.listen_data),
    ] {
        if !files.serve() && !address.ip().is_loopback() {
            warn!(
                %address,
                "insecure: {what} asks nobody who they are, and speaks in clear: whoever reaches it can read what is held here (--tls-cert, --tls-key, --tls-ca)"
            );
        }
    }
    if files.serve() && files.ca.is_none() {
        warn!("insecure: listen_peer asks nobody for a certificate (--tls-ca)");
    }
    if let Some(metrics) = config.listen_metrics.address()
        && !metrics.ip().is_loopback()
    {
        warn!(%metrics, "insecure: whoever reaches this port can read the metrics, in clear");
    }
}

async fn listen(
    what: &'static str,
    address: SocketAddr,
) -> Result<(TcpListener, SocketAddr), StartError> {
    let failed = |source| StartError::Listen {
        what,
        address,
        source,
    };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

/// What sessions tell and are told beside the store's changes.
struct Beside {
    transfer: Arc<TransferMetrics>,
    reads: Arc<Reads>,
    orders: mpsc::Sender<CopyOrder>,
    tickets: Tickets,
}

type Sessions = (Vec<SessionTask>, Vec<watch::Receiver<SessionStatus>>);

fn sessions(
    config: &AgentConfig,
    identity: &Identity,
    store: &Arc<Store>,
    log: &Arc<ChangeLog>,
    beside: &Beside,
    dialer: &Dialer,
) -> Result<Sessions, BadAddress> {
    let inventory: InventorySource = {
        let (store, log) = (Arc::clone(store), Arc::clone(log));
        Arc::new(move || {
            let (inventory, seq) = store.inventory(|| log.seal_position());
            (inventory_messages(&inventory, seq), seq)
        })
    };
    let mut tasks = (Vec::new(), Vec::new());
    for (index, address) in config.coordinators.iter().enumerate() {
        let (task, status) = SessionTask::new(
            endpoint(address)?,
            identity.clone(),
            Arc::clone(log),
            Arc::clone(&inventory),
            Arc::clone(&beside.reads),
            beside.orders.clone(),
            SessionConfig {
                seed: identity.incarnation.get().wrapping_add(index as u64),
                ..SessionConfig::default()
            },
        );
        let hinted = Arc::clone(store);
        let tickets = beside.tickets.clone();
        let task = task
            .reporting(Arc::clone(&beside.transfer))
            .compressed(config.coordinator_compression)
            .with_keys(Arc::new(move |keys| tickets.heard(index, keys)))
            .dialing(dialer.clone())
            .with_surplus(Arc::new(move |copies| hinted.surplus(copies)));
        tasks.0.push(task);
        tasks.1.push(status);
    }
    Ok(tasks)
}

/// The RDMA devices, where they may be used. Without any, `auto` does with the other transports.
fn open_devices(config: &AgentConfig) -> Result<Option<Arc<Devices>>, NoRdma> {
    if config.data_tls {
        info!("no RDMA: what goes over it is not encrypted (data_tls)");
        return Ok(None);
    }
    let asked_for = match config.transport {
        TransportChoice::Auto => false,
        TransportChoice::Rdma => true,
        TransportChoice::Tcp | TransportChoice::Shm => return Ok(None),
    };
    let opened = Devices::open(RdmaConfig {
        nics: config.nics.clone(),
        gid_index: config.gid_index,
        qps_per_peer: config.qps_per_peer,
    });
    match opened {
        Ok(devices) => Ok(Some(devices)),
        Err(why) if asked_for => Err(why),
        Err(why) => {
            info!("no RDMA: {why}");
            Ok(None)
        }
    }
}

fn links(
    config: &AgentConfig,
    identity: &Identity,
    devices: Option<Arc<Devices>>,
    wallet: &Arc<Wallet>,
    dialer: &Dialer,
    payload: PayloadTls,
) -> Links {
    let forced = match config.transport {
        TransportChoice::Auto => None,
        TransportChoice::Rdma => Some(TransportKind::Rdma),
        TransportChoice::Tcp => Some(TransportKind::Tcp),
        TransportChoice::Shm => Some(TransportKind::Shm),
    };
    let tcp = TcpTransport::new(TcpConfig {
        max_connections: config.tcp_connections_per_peer as usize,
        ..TcpConfig::default()
    });
    let tcp = tcp.with_tickets(Arc::clone(wallet)).with_tls(payload);
    let tcp: Arc<dyn Transport> = Arc::new(tcp);
    let mut shm = ShmTransport::new(&identity.addresses.host_id).with_tickets(Arc::clone(wallet));
    if forced.is_none() {
        shm = shm.with_behind(Arc::clone(&tcp));
    }
    let mut transports: Vec<Arc<dyn Transport>> = vec![Arc::new(shm)];
    if let Some(devices) = devices {
        let behind = forced.is_none().then(|| Arc::clone(&tcp));
        let node = identity.node.as_str();
        let rdma = RdmaTransport::new(devices, node, behind).with_tickets(Arc::clone(wallet));
        transports.push(Arc::new(rdma.dialing(dialer.clone())));
    }
    transports.push(tcp);
    Links::new(transports, forced, LinksConfig::default())
}

fn defaults(config: &AgentConfig) -> Defaults {
    Defaults {
        pool_bytes: config.pool_bytes.0,
        hugepages: config.hugepages,
        eviction: match config.eviction {
            EvictionChoice::Prefix => EvictionKind::Prefix,
            EvictionChoice::Lru => EvictionKind::Lru,
        },
        pull_timeout: Duration::from_millis(config.pull_timeout_ms),
        replicate: config.replicate,
        max_candidates: CANDIDATES,
        transfer: TransferConfig {
            stall_bound: Duration::from_millis(config.stall_bound_ms),
            ..TransferConfig::default()
        },
    }
}

async fn serve_local(api: LocalApi, socket: Guarded, clients: Clients, stop: CancellationToken) {
    let (sender, incoming) = mpsc::channel(1);
    let accepting = async {
        loop {
            let stream = match socket.accept().await {
                Ok(stream) => Ok(clients.admit(stream)),
                Err(error) => Err(error),
            };
            let failed = stream.is_err();
            if sender.send(stream).await.is_err() {
                return;
            }
            if failed {
                // Out of descriptors, say: time for some to come free.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    };
    let serving = Server::builder()
        .concurrency_limit_per_connection(MAX_LOCAL_CONNECTIONS)
        .add_service(TensorsApi::server(api.clone()))
        .add_service(api.clone().claims_server())
        .add_service(api.clone().locations_server())
        .add_service(api.server())
        .serve_with_incoming_shutdown(
            tokio_stream::wrappers::ReceiverStream::new(incoming),
            stop.cancelled_owned(),
        );
    tokio::select! {
        served = serving => if let Err(error) = served {
            warn!("the local API ended: {error}");
        },
        () = accepting => {}
    }
}

async fn serve_peers(api: PeerServer<PeerApi>, listener: Listener, stop: CancellationToken) {
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter
        .set_service_status("kvferry.v1.Peer", tonic_health::ServingStatus::Serving)
        .await;
    let served = Server::builder()
        .add_service(api)
        .add_service(health)
        .serve_with_incoming_shutdown(listener.incoming(), stop.cancelled_owned())
        .await;
    if let Err(error) = served {
        warn!("the Peer service ended: {error}");
    }
}

/// Ends what clients leave behind, and what has expired.
async fn housekeeping(
    api: LocalApi,
    mut gone: mpsc::UnboundedReceiver<ClientId>,
    stop: CancellationToken,
) {
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            client = gone.recv() => match client {
                Some(client) => api.client_gone(client),
                None => return,
            },
            _ = tick.tick() => {
                api.store.tick(api.now());
                api.end_lost_gpus();
                api.leases.expire(api.now());
            }
        }
    }
}

/// Completes when a coordinator says that a later incarnation of this node lives.
async fn superseded(mut statuses: Vec<watch::Receiver<SessionStatus>>) {
    let mut waits = JoinSet::new();
    for mut status in statuses.drain(..) {
        waits.spawn(async move {
            if status.wait_for(|s| s.superseded).await.is_err() {
                // Its task has ended without saying so: it was told to stop.
                std::future::pending::<()>().await;
            }
        });
    }
    if waits.join_next().await.is_none() {
        std::future::pending::<()>().await;
    }
}
