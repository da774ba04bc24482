//! A coordinator that listens.

use std::{
    hash::{BuildHasher, RandomState},
    io,
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    pin::pin,
    sync::Arc,
    time::Duration,
};

use kvferry_observe::{BindError, MetricsServer};
use kvferry_proto::{
    MAX_MESSAGE_BYTES,
    pb::{self, replication_server::ReplicationServer, watch_server::WatchServer},
};
use kvferry_security::{
    Gate, PolicyError,
    ticket::{Issuer, KeyFileError},
    tls::{DoorCounts, Listener, ServerTls, TlsFileError},
};
use tokio::{
    sync::oneshot,
    time::{MissedTickBehavior, interval, timeout},
};
use tonic::transport::Server;
use tonic_health::{ServingStatus, server::HealthReporter};

use crate::{
    ConfigError, CoordinatorConfig,
    directory::DirectoryConfig,
    metrics::CoordinatorObserved,
    service::{
        ClaimsService, CoordinatorRouter, Hub, HubConfig, LocationsService, ReplicationService,
        SourcesService, TicketsService, Timed, WatchService, compression::negotiated,
    },
};

/// The name health answers for.
const SERVICE: &str = "kvferry.v1.Coordinator";
/// How late a silent node may be hidden: a thirtieth of the default bound.
const TICK: Duration = Duration::from_millis(100);
/// How long calls and streams may take to end after shutdown was asked for. An orchestrator's usual
/// patience is 10 to 30 seconds.
const DRAIN: Duration = Duration::from_secs(5);
/// An agent's machine that vanished is noticed within the sum of these two, though heartbeats
/// usually notice first.
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(10);
const KEEP_ALIVE_ANSWER: Duration = Duration::from_secs(5);
/// What one call may send before it is read: a request of 65,536 hashes of 64 bytes. HTTP/2's
/// 64 KiB would stop a request of 1,000 hashes half-way where two are under way.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
/// What all calls of a connection may: some large ones, and memory for a thousand connections.
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;
/// A request of 1,000 hashes of 32 bytes in one frame: HTTP/2's 16 KiB cut it in two, and a message
/// that lies in one frame is not copied together.
const FRAME_BYTES: u32 = 64 << 10;
/// Calls at a time on one connection: an engine's worth of concurrent look-ups.
const MAX_STREAMS: u32 = 1_024;

/// Why a coordinator did not start. Nothing is bound.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Fix the configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Another process listens there. Stop it, or choose another address.
    #[error(
        "{listen} is in use: stop the process that listens there, or set another `listen` address"
    )]
    AddressInUse {
        /// The address.
        listen: SocketAddr,
    },
    /// The system does not let us listen there.
    #[error("cannot listen on {listen}: {source}")]
    Listen {
        /// The address.
        listen: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// The metrics port is not to be had.
    #[error(transparent)]
    Metrics(#[from] BindError),
    /// No keys to sign tickets with: mend the file, or make one with `kvferry keys ticket`.
    #[error("ticket_key = {path}: {source}", path = path.display())]
    TicketKey {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: KeyFileError,
    },
    /// Certificate, key or CA are of no use.
    #[error(transparent)]
    Tls(#[from] TlsFileError),
    /// The policy is of no use.
    #[error(transparent)]
    Policy(#[from] PolicyError),
}

/// Why a coordinator stopped although it was not asked to.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The listener is of no use to the runtime.
    #[error("cannot use the listener: {0}")]
    Listener(#[from] io::Error),
    /// The descriptors compiled in cannot be served. A defect of the build.
    #[error("cannot serve reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// The server failed.
    #[error("the server failed: {0}")]
    Transport(#[from] tonic::transport::Error),
}

/// A coordinator that is bound to its address and not serving yet.
#[derive(Debug)]
pub struct Coordinator {
    listener: TcpListener,
    local_addr: SocketAddr,
    metrics: Option<MetricsServer>,
    tls: Option<Arc<ServerTls>>,
    hub: Arc<Hub>,
    tickets: TicketsService,
    epoch: u64,
}

impl Coordinator {
    /// Checks the configuration and binds the address.
    ///
    /// # Errors
    /// [`StartError`]; nothing is bound then.
    pub fn bind(config: &CoordinatorConfig) -> Result<Self, StartError> {
        config.validate()?;
        let issuer = open_issuer(config)?;
        let tls = ServerTls::open(&config.tls_files())?.map(Arc::new);
        let gate = match &config.policy {
            None => Gate::open(),
            Some(path) => Gate::with_policy(path)?,
        };
        let listen = config.listen;
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => StartError::AddressInUse { listen },
            _ => StartError::Listen { listen, source },
        };
        let listener = TcpListener::bind(listen).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let local_addr = listener.local_addr().map_err(failed)?;
        let metrics = config.listen_metrics.address();
        let metrics = metrics.map(MetricsServer::bind).transpose()?;
        let epoch = new_epoch();
        let hub = Hub::new(HubConfig {
            directory: DirectoryConfig {
                epoch,
                hide_after: config.hide_after(),
                purge_after: config.purge_after(),
                bounds: config.bounds(),
            },
            heartbeat_interval_ms: config.heartbeat_interval_ms,
            hide_after_ms: config.hide_after_ms,
            max_sessions: config.max_sessions as usize,
            ticket_keys: issuer.as_ref().map(Issuer::public).unwrap_or_default(),
        });
        let hub = Arc::new(hub.behind(gate));
        warn_of_open_doors(config, tls.as_deref());
        Ok(Self {
            listener,
            local_addr,
            metrics,
            tls,
            tickets: TicketsService::new(hub.clone(), issuer, config.ticket_ttl()),
            hub,
            epoch,
        })
    }

    /// Where it listens; the port is a real one even where 0 was asked for.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Where its metrics are read, if anywhere.
    #[must_use]
    pub fn metrics_addr(&self) -> Option<SocketAddr> {
        self.metrics.as_ref().map(MetricsServer::local_addr)
    }

    /// The number of this lifetime: agents that knew another one send a full inventory.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Serves until `shutdown` resolves, then tells sessions, and returns when calls have ended,
    /// at the latest five seconds later.
    ///
    /// # Errors
    /// [`ServeError`] when it had to stop for another reason.
    pub async fn serve(self, shutdown: impl Future<Output = ()> + Send) -> Result<(), ServeError> {
        let listener = tokio::net::TcpListener::from_std(self.listener)?;
        let door = Arc::<DoorCounts>::default();
        let incoming = Listener::new(listener, self.tls, Arc::clone(&door)).incoming();
        let (health, health_service) = tonic_health::server::health_reporter();
        health
            .set_service_status(SERVICE, ServingStatus::Serving)
            .await;
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(pb::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1()?;
        let service = CoordinatorRouter::new(self.hub.clone());
        // Also while calls drain: a probe is told so.
        let _metrics = self.metrics.map(|server| {
            let observed = Arc::new(CoordinatorObserved::new(self.hub.clone(), door));
            AbortOnDrop(tokio::spawn(server.serve(observed, std::future::pending())))
        });
        self.hub.metrics().serve(true);
        let sources = SourcesService::new(self.hub.clone());
        let hub = &self.hub;
        let (stop, stopped) = oneshot::channel::<()>();
        let mut server = pin!(
            Server::builder()
                .http2_keepalive_interval(Some(KEEP_ALIVE_EVERY))
                .http2_keepalive_timeout(Some(KEEP_ALIVE_ANSWER))
                .max_concurrent_streams(MAX_STREAMS)
                .initial_stream_window_size(STREAM_WINDOW_BYTES)
                .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
                .max_frame_size(FRAME_BYTES)
                .add_service(health_service)
                .add_service(reflection)
                .add_service(service)
                .add_service(Timed::new(
                    hub,
                    negotiated!(WatchServer::new(WatchService::new(hub.clone())))
                ))
                .add_service(Timed::new(
                    hub,
                    negotiated!(
                        ReplicationServer::new(ReplicationService::new(hub.clone()))
                            .max_decoding_message_size(MAX_MESSAGE_BYTES)
                    )
                ))
                .add_service(Timed::new(hub, sources.clone().server()))
                .add_service(Timed::new(hub, ClaimsService::server(hub.clone())))
                .add_service(Timed::new(hub, LocationsService::server(hub.clone())))
                .add_service(Timed::new(hub, self.tickets.server()))
                .serve_with_incoming_shutdown(incoming, async {
                    // A dropped sender means the same.
                    stopped.await.ok();
                })
        );
        tokio::select! {
            outcome = &mut server => return Ok(outcome?),
            () = tick(&self.hub, &sources) => {}
            () = self.hub.sweep() => {}
            () = self.hub.replicate() => {}
            () = shutdown => {}
        }
        self.hub.metrics().serve(false);
        announce(&self.hub, &health).await;
        stop.send(()).ok();
        match timeout(DRAIN, server).await {
            Ok(outcome) => outcome?,
            Err(_) => tracing::warn!(
                sessions = self.hub.sessions(),
                "not everything ended within {DRAIN:?}"
            ),
        }
        Ok(())
    }
}

fn open_issuer(config: &CoordinatorConfig) -> Result<Option<Issuer>, StartError> {
    let Some(path) = &config.ticket_key else {
        return Ok(None);
    };
    let issuer = Issuer::open(path).map_err(|source| StartError::TicketKey {
        path: path.clone(),
        source,
    })?;
    tracing::info!(keys = ?issuer.public(), "signs tickets: readers need one to get in");
    Ok(Some(issuer))
}

/// Says at every start what strangers can do.
fn warn_of_open_doors(config: &CoordinatorConfig, tls: Option<&ServerTls>) {
    let listen = config.listen;
    match tls {
        None if !listen.ip().is_loopback() => tracing::warn!(
            %listen,
            "insecure: whoever reaches this port can read and change everything, in clear; give it a certificate (--tls-cert, --tls-key)"
        ),
        Some(tls) if config.policy.is_none() && tls.asks_clients() => tracing::warn!(
            "there is no policy: whoever has a certificate of the CA may do everything, for any node (--policy)"
        ),
        Some(_) if config.policy.is_none() => tracing::warn!(
            "insecure: neither certificates nor tokens are asked for, so that whoever reaches the port may do everything (--tls-ca, --policy)"
        ),
        _ => {}
    }
    if let Some(metrics) = config.listen_metrics.address()
        && !metrics.ip().is_loopback()
    {
        tracing::warn!(%metrics, "insecure: whoever reaches this port can read the metrics, in clear");
    }
}

/// A task that ends with whoever started it.
struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Nobody is sent here any more, and agents know why their streams end.
async fn announce(hub: &Hub, health: &HealthReporter) {
    for name in [SERVICE, ""] {
        health
            .set_service_status(name, ServingStatus::NotServing)
            .await;
    }
    hub.close();
}

/// Never returns.
async fn tick(hub: &Hub, sources: &SourcesService) {
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        hub.tick();
        sources.tick();
        hub.gate().tick();
    }
}

/// From the system's randomness, by way of the keys every process' hash tables get.
fn new_epoch() -> u64 {
    RandomState::new().hash_one(std::process::id()).max(1)
}
