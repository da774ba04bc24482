//! The owner's end: a listener, and one task per connection.

use std::{
    collections::HashMap,
    future::Future,
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use kvferry_security::tls::{DoorCounts, ServerTls};
use parking_lot::Mutex;
use tokio::{
    net::{TcpListener, TcpStream},
    pin, select,
    task::JoinSet,
    time::Instant,
};

use super::{
    door::let_in,
    frame::{MAX_SPANS, RefusalReason},
    session::{Session, SessionEnd, refuse},
    socket,
};
use crate::{region::RegionCatalog, tickets::Gate};

/// After the kernel could not accept (no descriptors left, say): time for some to come free.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the server takes at most. The defaults suit an agent with a thousand peers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TcpLimits {
    /// Connections that may be open; further ones are told that the owner is busy.
    pub max_connections: usize,
    /// Connections that have not said hello yet; further ones are closed at once, so that silent ones
    /// cannot use up `max_connections`.
    pub max_handshakes: usize,
    /// Of those, how many from one address, so that one host cannot keep the others out.
    pub max_handshakes_per_source: usize,
    /// Until a complete hello.
    pub handshake_timeout: Duration,
    /// From the first byte of a request to its last.
    pub frame_timeout: Duration,
    /// How long a peer may take no byte of a response.
    pub write_stall: Duration,
    /// How long a connection may ask for nothing.
    pub idle_timeout: Duration,
    /// Spans of one request; at most 16,384.
    pub max_spans: usize,
    /// Bytes of one response.
    pub max_bytes: u64,
}

impl Default for TcpLimits {
    fn default() -> Self {
        Self {
            max_connections: 4096,
            max_handshakes: 256,
            // A host's agents that all come back at once, several connections each.
            max_handshakes_per_source: 64,
            handshake_timeout: Duration::from_secs(5),
            frame_timeout: Duration::from_secs(10),
            write_stall: Duration::from_secs(30),
            // Links that are kept open are used more often than this or dropped by their reader.
            idle_timeout: Duration::from_secs(1800),
            max_spans: MAX_SPANS,
            max_bytes: 256 << 20,
        }
    }
}

/// What a server has done so far.
#[derive(Debug, Default)]
pub struct ServeCounters {
    bytes_sent: AtomicU64,
    requests: AtomicU64,
    accepted: AtomicU64,
    refused: AtomicU64,
    open: AtomicUsize,
    handshaking: AtomicUsize,
    handshakes: DoorCounts,
    /// By address; no entry where there is none. At most as many as there are handshakes.
    by_source: Mutex<HashMap<IpAddr, usize>>,
}

impl ServeCounters {
    /// Bytes handed to the kernel, heads of responses included.
    #[must_use]
    pub fn bytes_sent(&self) -> u64 {
        self.bytes_sent.load(Ordering::Relaxed)
    }
    /// Requests that were answered or begun to be.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }
    /// Connections that were accepted.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }
    /// Connections turned away over a limit.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
    /// Connections that are open now.
    #[must_use]
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// What became of those who knocked, where TLS is spoken.
    #[must_use]
    pub fn handshakes(&self) -> &DoorCounts {
        &self.handshakes
    }

    pub(super) fn count_sent(&self, bytes: usize) {
        self.bytes_sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }
    pub(super) fn count_request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }
}

/// Why the server does not listen.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody else has the port.
    #[error("{address} is in use; stop what listens there, or choose another data port")]
    InUse {
        /// As asked for.
        address: SocketAddr,
    },
    /// Anything else.
    #[error("cannot listen on {address}: {source}")]
    Failed {
        /// As asked for.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Serves a catalogue's regions over TCP.
#[derive(Debug)]
pub struct TcpServer {
    listener: TcpListener,
    address: SocketAddr,
    catalog: Arc<RegionCatalog>,
    gate: Arc<Gate>,
    tls: Option<Arc<ServerTls>>,
    limits: Arc<TcpLimits>,
    counters: Arc<ServeCounters>,
}

impl TcpServer {
    /// Listens; nothing is accepted before [`TcpServer::serve`].
    ///
    /// # Errors
    /// [`BindError`].
    pub async fn bind(
        address: SocketAddr,
        catalog: Arc<RegionCatalog>,
        limits: TcpLimits,
    ) -> Result<Self, BindError> {
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => BindError::InUse { address },
            _ => BindError::Failed { address, source },
        };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let bound = listener.local_addr().map_err(failed)?;
        let max_spans = limits.max_spans.min(MAX_SPANS);
        Ok(Self {
            listener,
            address: bound,
            gate: Arc::new(Gate::open()),
            tls: None,
            catalog,
            limits: Arc::new(TcpLimits {
                max_spans,
                ..limits
            }),
            counters: Arc::default(),
        })
    }

    /// Lets in whom the gate lets in. Without, whoever reaches the port.
    #[must_use]
    pub fn behind(self, gate: Arc<Gate>) -> Self {
        Self { gate, ..self }
    }

    /// Speaks TLS, and nothing else.
    #[must_use]
    pub fn by_tls(self, tls: Arc<ServerTls>) -> Self {
        let tls = Some(tls);
        Self { tls, ..self }
    }

    /// Where it listens.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// What it has done so far.
    #[must_use]
    pub fn counters(&self) -> Arc<ServeCounters> {
        Arc::clone(&self.counters)
    }

    /// Accepts and serves until `shutdown` completes; then closes every connection.
    pub async fn serve(self, shutdown: impl Future<Output = ()>) {
        pin!(shutdown);
        let mut sessions = JoinSet::new();
        loop {
            select! {
                () = &mut shutdown => break,
                // Ended ones are collected so that the set stays as small as what is open.
                Some(_) = sessions.join_next() => {}
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, peer)) => self.admit(&mut sessions, stream, peer),
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a data connection");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
        sessions.shutdown().await;
    }

    fn admit(&self, sessions: &mut JoinSet<()>, stream: TcpStream, peer: SocketAddr) {
        self.counters.accepted.fetch_add(1, Ordering::Relaxed);
        if self.counters.handshaking.load(Ordering::Relaxed) >= self.limits.max_handshakes {
            self.counters.refused.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(%peer, "too many data connections that have not said hello");
            return;
        }
        let most = self.limits.max_handshakes_per_source;
        let Some(handshaking) = Handshaking::begin(&self.counters, peer.ip(), most) else {
            self.counters.refused.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(%peer, "too many data connections from there that have not said hello");
            return;
        };
        if self.counters.open() >= self.limits.max_connections {
            self.counters.refused.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(%peer, "too many data connections");
            // Who speaks TLS would not understand it.
            if self.tls.is_none() {
                refuse(&stream, self.catalog.incarnation(), RefusalReason::Busy);
            }
            return;
        }
        if let Err(error) = socket::configure(&stream) {
            tracing::debug!(%peer, %error, "cannot set up a data connection");
            return;
        }
        let open = Counted::new(&self.counters, |counters| &counters.open);
        let (catalog, gate) = (Arc::clone(&self.catalog), Arc::clone(&self.gate));
        let (limits, counters) = (Arc::clone(&self.limits), Arc::clone(&self.counters));
        let tls = self.tls.clone();
        sessions.spawn(async move {
            let _open = open;
            let until = handshaking.began + limits.handshake_timeout;
            let (door, incarnation) = (&counters.handshakes, catalog.incarnation());
            let let_in = let_in(stream, tls.as_deref(), until, door, incarnation).await;
            let end = match let_in {
                Ok(stream) => {
                    let session =
                        Session::new(stream, catalog, Arc::clone(&gate), limits, counters);
                    session.run(handshaking).await
                }
                Err(end) => end,
            };
            if matches!(end, SessionEnd::TicketExpired) {
                gate.expired();
            }
            log_end(peer, &end);
        });
    }
}

/// Once per connection, with the peer's address.
fn log_end(peer: SocketAddr, end: &SessionEnd) {
    match end {
        SessionEnd::Closed | SessionEnd::Idle | SessionEnd::WrongIncarnation { .. } => {
            tracing::debug!(%peer, "data connection closed: {end}");
        }
        SessionEnd::Ticket(_)
        | SessionEnd::OtherNamespace
        | SessionEnd::Clear
        | SessionEnd::Tls(_) => {
            tracing::warn!(%peer, "data connection closed: {end}");
        }
        SessionEnd::Io(_)
        | SessionEnd::TicketExpired
        | SessionEnd::TicketNeeded
        | SessionEnd::NoRandomness(_)
        | SessionEnd::HandshakeTimeout
        | SessionEnd::FrameTimeout
        | SessionEnd::WriteStall
        | SessionEnd::Malformed(_) => {
            tracing::info!(%peer, "data connection closed: {end}");
        }
        SessionEnd::MemoryCut { .. } | SessionEnd::Gpu(_) => {
            tracing::error!(%peer, "data connection closed: {end}");
        }
    }
}

/// A connection that has not been let in: counted, also by its source, for as long as this lives.
pub(super) struct Handshaking {
    source: IpAddr,
    all: Counted,
    pub(super) began: Instant,
}

impl Handshaking {
    /// None where there are as many from that source as there may be.
    pub(super) fn begin(counters: &Arc<ServeCounters>, peer: IpAddr, most: usize) -> Option<Self> {
        let source = source(peer);
        let mut by_source = counters.by_source.lock();
        let count = by_source.get(&source).copied().unwrap_or(0);
        if count >= most {
            return None;
        }
        by_source.insert(source, count + 1);
        drop(by_source);
        let all = Counted::new(counters, |counters| &counters.handshaking);
        let began = Instant::now();
        Some(Self { source, all, began })
    }
}

impl Drop for Handshaking {
    fn drop(&mut self) {
        let mut by_source = self.all.counters.by_source.lock();
        if let Some(count) = by_source.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                by_source.remove(&self.source);
            }
        }
    }
}

/// Whom an address stands for: of IPv6 a host has a /64 of them at least.
fn source(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
    }
}

/// Counts itself for as long as it lives.
struct Counted {
    counters: Arc<ServeCounters>,
    which: fn(&ServeCounters) -> &AtomicUsize,
}

impl Counted {
    pub(super) fn new(
        counters: &Arc<ServeCounters>,
        which: fn(&ServeCounters) -> &AtomicUsize,
    ) -> Self {
        which(counters).fetch_add(1, Ordering::Relaxed);
        Self {
            counters: Arc::clone(counters),
            which,
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        (self.which)(&self.counters).fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_one_source_however_many_addresses_it_has() {
        let of = |text: &str| source(text.parse().unwrap());
        assert_eq!(of("fd00::1:2:3:4"), of("fd00::ffff:0:0:9"));
        assert_ne!(of("fd00:0:0:1::1"), of("fd00:0:0:2::1"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
    }
}
