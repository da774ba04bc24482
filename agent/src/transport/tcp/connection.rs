//! One connection to an owner: requests go out, responses come back in the same order.

use std::{
    collections::VecDeque,
    io,
    net::SocketAddr,
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use kvferry_memory::HostMemory;
use kvferry_proto::{NodeId, RemoteSpan};
use kvferry_security::ticket::{NONCE_BYTES, Nonce, Refusal};
use kvferry_security::tls::TlsRefusal;
use parking_lot::Mutex;
use tokio::{net::TcpStream, sync::Notify};

use super::{
    frame::{
        ClientHello, FrameError, RefusalReason, SERVER_HELLO_BYTES, ServerHello, Welcome,
        encode_renewal, encode_request,
    },
    payload::{PayloadTls, insecure},
    reader::Reader,
    socket,
    stream::Stream,
};
use crate::{
    tickets::{Held, Wallet},
    transport::{ConnectError, LocalSpans, NotSecure, PeerTarget, ReadError, operation::Operation},
};

/// Most reads that wait on one connection, given up ones included. A peer this far behind does not
/// keep up; its connection is as good as lost.
const MAX_READS: usize = 4096;
/// Most bytes of requests the kernel has not taken yet: forty of the longest.
const MAX_OUTBOUND_BYTES: usize = 16 << 20;
/// No byte for this long while given up reads are still owed: the connection will not come back to use
/// in time for anybody. Well over the pull engine's own stall bound.
const ABANDONED_STALL: Duration = Duration::from_secs(5);

/// What a reader brings along, and what it wants.
#[derive(Debug, Clone, Default)]
pub(super) struct Terms {
    /// None where none are shown.
    pub(super) tickets: Option<Arc<Wallet>>,
    pub(super) tls: PayloadTls,
}

/// A connection that has said hello.
pub(super) struct Connection {
    stream: Stream,
    peer: PeerTarget,
    tickets: Option<Arc<Wallet>>,
    /// The number of the ticket it was let in with, or was renewed with last; 0 where none was asked for.
    ticket: AtomicU64,
    /// The owner refused a span for its ticket's sake.
    outdated: AtomicBool,
    state: Mutex<State>,
    /// Bytes of requests wait for the socket.
    outbound_waits: Notify,
    /// Payload bytes that were asked for and have not arrived.
    outstanding: AtomicU64,
    /// Payload bytes that arrived; of this connection.
    received: AtomicU64,
    /// As above, of the whole link.
    link_received: Arc<AtomicU64>,
    progress: Mutex<Progress>,
}

struct State {
    next_id: u32,
    /// Asked for, in order.
    queue: VecDeque<(u32, Arc<Operation>)>,
    outbound: Vec<u8>,
    outbound_sent: usize,
    closed: Option<Arc<str>>,
}

struct Progress {
    received: u64,
    since: Instant,
}

impl Connection {
    /// Connects, says hello and shows a ticket where they are in use; another one where that is refused. The caller
    /// bounds the time.
    pub(super) async fn open(
        peer: &PeerTarget,
        address: SocketAddr,
        terms: &Terms,
        link_received: &Arc<AtomicU64>,
    ) -> Result<(Arc<Self>, ServerHello), ConnectError> {
        let tls = &terms.tls;
        let opened = Self::open_on(peer, address, terms, link_received).await;
        opened.inspect_err(|error| tls.count(error))
    }

    async fn open_on(
        peer: &PeerTarget,
        address: SocketAddr,
        Terms { tickets, tls }: &Terms,
        link_received: &Arc<AtomicU64>,
    ) -> Result<(Arc<Self>, ServerHello), ConnectError> {
        // Before anybody is asked for a ticket.
        tls.check(peer)?;
        let no_ticket = |why| ConnectError::NoTicket {
            node: peer.node.clone(),
            why,
        };
        let Some(wallet) = tickets else {
            return Self::open_with(peer, address, tls, None, link_received).await;
        };
        let held = wallet.ticket(peer).await.map_err(no_ticket)?;
        let shown = Some((wallet, held.as_ref()));
        match Self::open_with(peer, address, tls, shown, link_received).await {
            Err(ConnectError::TicketRefused { refusal, .. }) => {
                let again = wallet.after_refusal(peer, held.as_ref(), refusal).await;
                let again = again.map_err(no_ticket)?;
                let shown = Some((wallet, Some(&again)));
                let opened = Self::open_with(peer, address, tls, shown, link_received).await;
                opened.inspect_err(|error| {
                    if let ConnectError::TicketRefused { refusal, .. } = error {
                        wallet.refused(peer, again.number, *refusal);
                    }
                })
            }
            opened => opened,
        }
    }

    async fn open_with(
        peer: &PeerTarget,
        address: SocketAddr,
        tls: &PayloadTls,
        shown: Option<(&Arc<Wallet>, Option<&Held>)>,
        link_received: &Arc<AtomicU64>,
    ) -> Result<(Arc<Self>, ServerHello), ConnectError> {
        let failed = |error: io::Error| unreachable(peer, address, &error);
        let stream = TcpStream::connect(address).await.map_err(failed)?;
        socket::configure(&stream).map_err(failed)?;
        let stream = tls.begin(peer, address, stream).await?;
        Self::greet(peer, address, stream, shown, link_received).await
    }

    /// Says hello on a stream that leads there, and shows a ticket.
    pub(super) async fn greet(
        peer: &PeerTarget,
        address: SocketAddr,
        mut stream: Stream,
        shown: Option<(&Arc<Wallet>, Option<&Held>)>,
        link_received: &Arc<AtomicU64>,
    ) -> Result<(Arc<Self>, ServerHello), ConnectError> {
        let failed = |error: io::Error| not_heard(peer, address, &error);
        let no_hello = |error: HelloError| match error {
            HelloError::Io(error) => not_heard(peer, address, &error),
            other => unreachable(peer, address, &other),
        };
        let hello = ClientHello {
            incarnation: peer.incarnation.get(),
            ticket: shown
                .and_then(|(_, held)| held)
                .map_or_else(Vec::new, |held| held.bytes.to_vec()),
        };
        stream.write_all(&hello.encode()).await.map_err(failed)?;
        let mut hello = read_hello(&mut stream).await.map_err(no_hello)?;
        let mut ticket = 0;
        if let (Welcome::Prove, Some((wallet, Some(held)))) = (hello.welcome, shown) {
            let mut nonce = [0; NONCE_BYTES];
            stream.read_exact(&mut nonce).await.map_err(failed)?;
            let (purpose, nonce) = stream.proven(&Nonce(nonce));
            let proof = wallet.prove(purpose, &nonce, &held.bytes);
            stream.write_all(&proof).await.map_err(failed)?;
            hello = read_hello(&mut stream).await.map_err(no_hello)?;
            ticket = held.number;
        }
        check_welcome(peer, address, &hello)?;
        let connection = Arc::new(Self {
            stream,
            peer: peer.clone(),
            tickets: shown.map(|(wallet, _)| Arc::clone(wallet)),
            ticket: AtomicU64::new(ticket),
            outdated: AtomicBool::new(false),
            state: Mutex::new(State {
                next_id: 0,
                queue: VecDeque::new(),
                outbound: Vec::new(),
                outbound_sent: 0,
                closed: None,
            }),
            outbound_waits: Notify::new(),
            outstanding: AtomicU64::new(0),
            received: AtomicU64::new(0),
            link_received: Arc::clone(link_received),
            progress: Mutex::new(Progress {
                received: 0,
                since: Instant::now(),
            }),
        });
        connection.spawn();
        Ok((connection, hello))
    }

    fn spawn(self: &Arc<Self>) {
        let (reading, writing) = (Arc::clone(self), Arc::clone(self));
        tokio::spawn(async move {
            let end = match Reader::new(Arc::clone(&reading)) {
                Ok(reader) => reader.run().await,
                Err(error) => error.into(),
            };
            reading.close(&end.to_string());
        });
        tokio::spawn(async move { writing.write_outbound().await });
    }

    /// Asks for an operation's bytes. Where it says why not, the operation is not settled.
    pub(super) fn submit(
        &self,
        operation: Arc<Operation>,
        remote: &[RemoteSpan],
    ) -> Result<(), Arc<str>> {
        let mut state = self.state.lock();
        if let Some(why) = &state.closed {
            return Err(Arc::clone(why));
        }
        if state.queue.len() >= MAX_READS || state.outbound.len() >= MAX_OUTBOUND_BYTES {
            return Err("too many reads wait for it; it does not keep up".into());
        }
        let id = state.next_id;
        state.next_id = id.wrapping_add(1);
        self.outstanding
            .fetch_add(operation.bytes, Ordering::Relaxed);
        encode_request(id, remote, &mut state.outbound);
        state.queue.push_back((id, operation));
        if self.flush(&mut state).is_err() {
            self.hang_up();
        }
        Ok(())
    }

    /// Has the owner let it stay until a later ticket ends. What comes of it is seen at the next renewal, or at the
    /// ticket's end.
    pub(super) fn renew(self: &Arc<Self>, held: &Held) {
        let shown = self.ticket.load(Ordering::Relaxed);
        // 0: it was let in without one.
        if shown == 0 || shown >= held.number {
            return;
        }
        let Ok(nowhere) = HostMemory::anonymous(1) else {
            return;
        };
        let nothing = LocalSpans {
            memory: Arc::new(nowhere),
            ranges: Vec::new(),
        };
        let (operation, pending) = Operation::new(nothing, 0);
        {
            let mut state = self.state.lock();
            if state.closed.is_some() || state.queue.len() >= MAX_READS {
                return;
            }
            let id = state.next_id;
            state.next_id = id.wrapping_add(1);
            encode_renewal(id, &held.bytes, &mut state.outbound);
            state.queue.push_back((id, operation));
            if self.flush(&mut state).is_err() {
                self.hang_up();
            }
        }
        self.ticket.store(held.number, Ordering::Relaxed);
        let (connection, number) = (Arc::clone(self), held.number);
        tokio::spawn(async move {
            if let Err(ReadError::TicketRefused { refusal, .. }) = pending.await {
                connection.renewal_refused(shown, number, refusal);
            }
        });
    }

    fn renewal_refused(&self, before: u64, number: u64, refusal: Refusal) {
        tracing::warn!(node = %self.peer.node, "a renewed ticket is refused: {refusal}");
        // The next one is tried as this one was.
        self.ticket.store(before, Ordering::Relaxed);
        self.ticket_refused(number, refusal);
    }

    fn ticket_refused(&self, number: u64, refusal: Refusal) {
        if let Some(wallet) = &self.tickets {
            wallet.refused(&self.peer, number, refusal);
        }
    }

    /// The owner refused a span for the ticket's sake: a new link begins with a new one.
    pub(super) fn span_refused(&self, refusal: Refusal) {
        if !self.outdated.swap(true, Ordering::Relaxed) {
            self.ticket_refused(self.ticket.load(Ordering::Relaxed), refusal);
        }
    }

    /// Did the owner refuse a span for the ticket's sake?
    pub(super) fn is_outdated(&self) -> bool {
        self.outdated.load(Ordering::Relaxed)
    }

    /// Hands the kernel as much as it takes now. True when nothing is left.
    fn flush(&self, state: &mut State) -> io::Result<bool> {
        while state.outbound_sent < state.outbound.len() {
            match self
                .stream
                .try_write(&state.outbound[state.outbound_sent..])
            {
                Ok(sent) => state.outbound_sent += sent,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.outbound_waits.notify_one();
                    return Ok(false);
                }
                Err(error) => return Err(error),
            }
        }
        match self.stream.flush() {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.outbound_waits.notify_one();
                return Ok(false);
            }
            Err(error) => return Err(error),
        }
        state.outbound.clear();
        state.outbound_sent = 0;
        Ok(true)
    }

    /// Sends what did not go out at once.
    async fn write_outbound(&self) {
        loop {
            self.outbound_waits.notified().await;
            loop {
                if self.state.lock().closed.is_some() {
                    return;
                }
                if self.stream.writable().await.is_err() {
                    return self.hang_up();
                }
                let flushed = self.flush(&mut self.state.lock());
                match flushed {
                    Ok(true) => break,
                    Ok(false) => {}
                    Err(_) => return self.hang_up(),
                }
            }
        }
    }

    /// Makes the reader see the end, which closes everything in one place.
    fn hang_up(&self) {
        let _ = rustix::net::shutdown(self.stream.socket().as_fd(), rustix::net::Shutdown::Both);
    }

    /// Settles everything on it, now and for ever. When this returns nothing is written any more.
    pub(super) fn close(&self, why: &str) {
        let queue = {
            let mut state = self.state.lock();
            if state.closed.is_some() {
                return;
            }
            state.closed = Some(why.into());
            std::mem::take(&mut state.queue)
        };
        self.hang_up();
        self.outbound_waits.notify_one();
        self.outstanding.store(0, Ordering::Relaxed);
        if !queue.is_empty() {
            tracing::info!(node = %self.peer.node, reads = queue.len(), "data connection lost: {why}");
        }
        for (_, operation) in queue {
            operation.settle(Err(ReadError::LinkLost {
                node: self.peer.node.clone(),
                detail: why.to_owned(),
            }));
        }
    }

    /// Why it is closed, if it is.
    pub(super) fn closed(&self) -> Option<Arc<str>> {
        self.state.lock().closed.clone()
    }

    /// Payload bytes it still owes.
    pub(super) fn outstanding(&self) -> u64 {
        self.outstanding.load(Ordering::Relaxed)
    }

    /// Closes it where it owes what nobody wants any more and does not move.
    pub(super) fn close_if_stuck(&self) {
        let received = self.received();
        let stood = {
            let mut progress = self.progress.lock();
            if progress.received != received || self.state.lock().queue.is_empty() {
                *progress = Progress {
                    received,
                    since: Instant::now(),
                };
            }
            progress.since.elapsed()
        };
        if stood >= ABANDONED_STALL && self.owes_abandoned() {
            self.close("it owes bytes of reads that were given up, and none arrive");
        }
    }

    fn owes_abandoned(&self) -> bool {
        let state = self.state.lock();
        state
            .queue
            .iter()
            .any(|(_, operation)| operation.is_abandoned())
    }

    // What the reader needs.

    pub(super) fn stream(&self) -> &Stream {
        &self.stream
    }

    pub(super) fn node(&self) -> &NodeId {
        &self.peer.node
    }

    /// The read whose response comes next.
    pub(super) fn front(&self) -> Option<(u32, Arc<Operation>)> {
        self.state.lock().queue.front().cloned()
    }

    /// The response of the first read was received in full.
    pub(super) fn pop_front(&self) {
        let popped = self.state.lock().queue.pop_front();
        if let Some((_, operation)) = popped {
            // After a close there is nothing to pop, so this does not go below zero.
            self.outstanding
                .fetch_sub(operation.bytes, Ordering::Relaxed);
        }
    }

    /// Payload bytes that it brought so far.
    pub(super) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    pub(super) fn count_received(&self, bytes: u64) {
        self.received.fetch_add(bytes, Ordering::Relaxed);
        self.link_received.fetch_add(bytes, Ordering::Relaxed);
    }
}

fn unreachable(
    peer: &PeerTarget,
    address: SocketAddr,
    why: &dyn std::error::Error,
) -> ConnectError {
    ConnectError::Unreachable {
        node: peer.node.clone(),
        address: address.to_string(),
        detail: why.to_string(),
    }
}

/// By TLS, an owner that does not take our certificate says so when we believe that all is done.
fn not_heard(peer: &PeerTarget, address: SocketAddr, why: &io::Error) -> ConnectError {
    match TlsRefusal::of_late_alert(&address.to_string(), why) {
        Some(refusal) => insecure(peer, NotSecure::Tls(refusal)),
        None => unreachable(peer, address, why),
    }
}

/// Why there is no hello of an owner.
#[derive(Debug, thiserror::Error)]
enum HelloError {
    /// The connection ended, or brought none in time.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It says less than a hello.
    #[error("its hello is too short")]
    TooShort,
    /// Something else listens there.
    #[error("no kvferry data port: {0}")]
    Malformed(#[from] FrameError),
}

/// An owner's hello.
async fn read_hello(stream: &mut Stream) -> Result<ServerHello, HelloError> {
    let mut answer = [0; SERVER_HELLO_BYTES];
    stream.read_exact(&mut answer).await?;
    match ServerHello::decode(&answer)? {
        Some((hello, _)) => Ok(hello),
        None => Err(HelloError::TooShort),
    }
}

fn check_welcome(
    peer: &PeerTarget,
    address: SocketAddr,
    hello: &ServerHello,
) -> Result<(), ConnectError> {
    let refused = |detail: &str| ConnectError::Refused {
        node: peer.node.clone(),
        detail: detail.to_owned(),
    };
    match hello.welcome {
        Welcome::Accepted if hello.incarnation == peer.incarnation.get() => Ok(()),
        Welcome::Accepted | Welcome::WrongIncarnation => {
            match kvferry_proto::Incarnation::new(hello.incarnation) {
                Ok(found) => Err(ConnectError::WrongIncarnation {
                    node: peer.node.clone(),
                    expected: peer.incarnation,
                    found,
                }),
                Err(_) => Err(refused("it names no incarnation")),
            }
        }
        // It will know more in a moment.
        Welcome::Refused(RefusalReason::Ticket(refusal @ Refusal::NotReady)) => {
            Err(ConnectError::Unreachable {
                node: peer.node.clone(),
                address: address.to_string(),
                detail: refusal.to_string(),
            })
        }
        Welcome::Refused(RefusalReason::Ticket(refusal)) => Err(ConnectError::TicketRefused {
            node: peer.node.clone(),
            refusal,
        }),
        Welcome::Refused(reason) => Err(refused(reason.as_str())),
        Welcome::Prove => Err(refused("it has us prove a ticket that it was not shown")),
    }
}
