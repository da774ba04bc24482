//! Several connections to one owner, used as one.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use kvferry_proto::RemoteSpan;
use parking_lot::Mutex;
use tokio::{runtime::Handle, time::timeout};

use super::{
    connection::{Connection, Terms},
    frame::{MAX_SPANS, ServerHello},
    transport::TcpConfig,
};
use crate::transport::{
    Capabilities, ConnectError, Link, PeerTarget, PendingRead, ReadError, ReadRequest,
    TransportKind,
    operation::{Operation, check_request, check_with_words},
    spans::coalesce_remote,
};

/// Keeps 100 Gb/s full over a round trip of 2.5 ms.
const WINDOW_BYTES: u64 = 32 << 20;
/// Most bytes of one read: large enough that no block needs two, small enough that one read cannot
/// keep a connection from others for long.
const MAX_READ_BYTES: u64 = 256 << 20;
/// Fewest bytes of one read that an owner may offer. A block is a gibibyte at most: it is not cut into more than 16,384
/// reads, with memory for each, because an owner says so.
const MIN_READ_BYTES: u64 = 64 << 10;
/// Further than the same host.
const DISTANCE: u8 = 1;
/// What every connection owes before another is opened: some milliseconds of work.
const OPEN_ANOTHER_BYTES: u64 = 4 << 20;
/// How often connections are looked after.
const LOOK_AFTER: Duration = Duration::from_secs(1);
/// After another connection could not be opened.
const REOPEN_PAUSE: Duration = Duration::from_secs(5);

/// A link over sockets. Dropping it settles what is under way with [`ReadError::LinkLost`].
pub struct TcpLink(Arc<Shared>);

struct Shared {
    peer: PeerTarget,
    address: SocketAddr,
    config: TcpConfig,
    terms: Terms,
    capabilities: Capabilities,
    connections: Mutex<Vec<Arc<Connection>>>,
    /// One more is being opened, or could not be opened a moment ago.
    opening: AtomicBool,
    received: Arc<AtomicU64>,
    runtime: Handle,
}

impl TcpLink {
    /// Opens the first connection. Must be called on a tokio runtime, which then drives the link.
    pub(super) async fn open(
        peer: &PeerTarget,
        address: SocketAddr,
        config: TcpConfig,
        terms: Terms,
    ) -> Result<Self, ConnectError> {
        let received = Arc::new(AtomicU64::new(0));
        let opened = Connection::open(peer, address, &terms, &received).await;
        let (connection, hello) = opened?;
        let capabilities = capabilities(&hello).ok_or_else(|| ConnectError::Refused {
            node: peer.node.clone(),
            detail: format!(
                "it takes reads of {} bytes in {} spans: too few to be of use",
                hello.max_bytes, hello.max_spans
            ),
        })?;
        let shared = Arc::new(Shared {
            peer: peer.clone(),
            address,
            config,
            terms,
            capabilities,
            connections: Mutex::new(vec![connection]),
            opening: AtomicBool::new(false),
            received,
            runtime: Handle::current(),
        });
        tokio::spawn(look_after(Arc::downgrade(&shared)));
        Ok(Self(shared))
    }

    /// How many connections are open.
    #[must_use]
    pub fn connections(&self) -> usize {
        let connections = self.0.connections.lock();
        connections.iter().filter(|c| c.closed().is_none()).count()
    }

    /// Asks for it over the connection with least to do, or settles it.
    fn submit(&self, operation: &Arc<Operation>, remote: &[RemoteSpan]) {
        let mut why: Option<Arc<str>> = None;
        // A connection may close while it is chosen; each is tried once.
        for connection in self.0.by_load() {
            match connection.submit(Arc::clone(operation), remote) {
                Ok(()) => return self.0.open_another(connection.outstanding()),
                Err(reason) => why = Some(reason),
            }
        }
        operation.settle(Err(self.lost(why.as_deref().unwrap_or("it is closed"))));
    }

    fn lost(&self, detail: &str) -> ReadError {
        ReadError::LinkLost {
            node: self.0.peer.node.clone(),
            detail: detail.to_owned(),
        }
    }
}

/// What both sides take; None where that is too little.
fn capabilities(hello: &ServerHello) -> Option<Capabilities> {
    let enough = hello.max_bytes >= MIN_READ_BYTES && hello.max_spans > 0;
    enough.then(|| Capabilities {
        max_spans: MAX_SPANS.min(hello.max_spans as usize),
        max_bytes: MAX_READ_BYTES.min(hello.max_bytes),
        window_bytes: WINDOW_BYTES,
        distance: DISTANCE,
        needs_checksum: false,
        span_bytes: 0,
    })
}

impl Link for TcpLink {
    fn kind(&self) -> TransportKind {
        TransportKind::Tcp
    }

    fn capabilities(&self) -> Capabilities {
        self.0.capabilities
    }

    fn read(&self, request: ReadRequest) -> PendingRead {
        let bytes = match check_request(&request, &self.0.capabilities) {
            Ok(bytes) => bytes,
            Err(error) => return PendingRead::settled(Err(error)),
        };
        let (operation, pending) = Operation::new(request.local, bytes);
        self.submit(&operation, &coalesce_remote(&request.remote));
        pending
    }

    /// The owner loads words only when everything before them was handed to its kernel, which has copied it by then.
    fn reads_in_order(&self) -> bool {
        true
    }

    fn read_with_words(&self, data: ReadRequest, words: ReadRequest) -> PendingRead {
        let bytes = match check_with_words(&data, &words, &self.0.capabilities) {
            Ok(bytes) => bytes,
            Err(error) => return PendingRead::settled(Err(error)),
        };
        let mut remote = coalesce_remote(&data.remote);
        remote.extend(coalesce_remote(&words.remote));
        let (operation, pending) = Operation::in_order(data.local, words.local, bytes);
        self.submit(&operation, &remote);
        pending
    }

    fn received_bytes(&self) -> u64 {
        self.0.received.load(Ordering::Relaxed)
    }

    fn is_lost(&self) -> bool {
        // One that its ticket does not let read what is asked for ends with what is under way.
        self.connections() == 0 || self.0.connections.lock().iter().any(|c| c.is_outdated())
    }
}

impl Drop for TcpLink {
    fn drop(&mut self) {
        for connection in self.0.connections.lock().drain(..) {
            connection.close("the link was dropped");
        }
    }
}

impl Shared {
    /// Open connections, the least loaded first.
    fn by_load(&self) -> Vec<Arc<Connection>> {
        let mut connections = self.connections.lock().clone();
        connections.sort_by_key(|connection| connection.outstanding());
        connections
    }

    /// Has connections stay beyond the ticket that they were let in with.
    async fn renew(&self) {
        let Some(wallet) = &self.terms.tickets else {
            return;
        };
        if let Some(held) = wallet.renewed(&self.peer).await {
            let connections = self.connections.lock().clone();
            connections.iter().for_each(|c| c.renew(&held));
        }
    }

    /// Opens one more where the least loaded one owes `outstanding` bytes and the configuration lets it.
    fn open_another(self: &Arc<Self>, outstanding: u64) {
        if outstanding < OPEN_ANOTHER_BYTES
            || self.connections.lock().len() >= self.config.max_connections
            || self.opening.swap(true, Ordering::AcqRel)
        {
            return;
        }
        let shared = Arc::downgrade(self);
        let (peer, address) = (self.peer.clone(), self.address);
        let (received, bound) = (Arc::clone(&self.received), self.config.connect_timeout);
        let terms = self.terms.clone();
        self.runtime.spawn(async move {
            let opening = Connection::open(&peer, address, &terms, &received);
            let opened = timeout(bound, opening).await;
            let failed = match opened {
                Ok(Ok((connection, _))) => {
                    adopt(&shared, connection);
                    None
                }
                Ok(Err(error)) => Some(error.to_string()),
                Err(_) => Some("no answer in time".to_owned()),
            };
            if let Some(detail) = failed {
                tracing::debug!(node = %peer.node, detail, "no further data connection");
                tokio::time::sleep(REOPEN_PAUSE).await;
            }
            if let Some(shared) = shared.upgrade() {
                shared.opening.store(false, Ordering::Release);
            }
        });
    }
}

/// Adds a connection to its link, if that is still there.
fn adopt(shared: &Weak<Shared>, connection: Arc<Connection>) {
    match shared.upgrade() {
        // The link may be dropped right now, and then drops this one too or has done so before: a lost
        // link has no connections and gets no new ones.
        Some(shared) => {
            let mut connections = shared.connections.lock();
            // Once lost, lost for ever.
            if connections.iter().all(|c| c.closed().is_some()) {
                connection.close("the link was dropped");
            } else {
                connections.push(connection);
            }
        }
        None => connection.close("the link was dropped"),
    }
}

/// Closes connections that are stuck and forgets closed ones, until the link is gone.
async fn look_after(shared: Weak<Shared>) {
    loop {
        tokio::time::sleep(LOOK_AFTER).await;
        let Some(shared) = shared.upgrade() else {
            return;
        };
        let connections = shared.connections.lock().clone();
        for connection in &connections {
            connection.close_if_stuck();
        }
        // One that is outdated stays, closed: it says so of the link.
        let over = |c: &Connection| c.closed().is_some() && !c.is_outdated();
        shared.connections.lock().retain(|c| !over(c));
        shared.renew().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::tcp::frame::Welcome;

    #[test]
    fn an_owner_does_not_make_a_reader_plan_in_crumbs() {
        let offered = |max_bytes, max_spans| {
            capabilities(&ServerHello {
                welcome: Welcome::Accepted,
                incarnation: 1,
                max_spans,
                max_bytes,
            })
        };
        assert!(offered(1, 16).is_none() && offered(0, 16).is_none());
        assert!(offered(1 << 20, 0).is_none());
        let most = offered(u64::MAX, u32::MAX).unwrap();
        assert_eq!(
            (most.max_bytes, most.max_spans),
            (MAX_READ_BYTES, MAX_SPANS)
        );
    }
}
