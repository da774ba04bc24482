//! The door: who connects, is let in or turned away, within bounds that hold before anybody is known.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use kvferry_observe::{ByLabel, Counter, label};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::{sleep, timeout},
};
use tokio_stream::Stream;

use super::{
    places::{Place, Places},
    plaintext,
    refusal::TlsRefusal,
    server::ServerTls,
    stream::Accepted,
};

/// A handshake must be over by then. It is two round trips and some milliseconds; whoever takes longer
/// holds a place and a descriptor.
pub const HANDSHAKE_WITHIN: Duration = Duration::from_secs(5);
/// Handshakes at a time: a thousand agents that come back at once to a coordinator that restarted, and
/// some 64 KiB of memory each.
const MAX_HANDSHAKES: usize = 1_024;
/// Of those from one address (of IPv6, one /64): all processes of a host, and no more than an eighth of
/// the places for one that means ill.
const MAX_HANDSHAKES_OF_ONE: usize = 128;
/// Connections without a certificate, which have not shown a token yet and may never: tools and routers of a
/// cluster, and a third of the descriptors that a service usually has.
const MAX_NAMELESS: usize = 16_384;
/// Of those from one address.
const MAX_NAMELESS_OF_ONE: usize = 1_024;
/// Connections that wait to be served.
const QUEUE: usize = 64;
/// After the system refused a connection, out of descriptors say: time for some to come free.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

label! {
    /// What became of somebody who wanted to speak TLS.
    pub enum Handshake("outcome") {
        /// Let in.
        Done = "done",
        /// The certificate, or what was said, is no good.
        Refused = "refused",
        /// Not over in time.
        Late = "late",
        /// Spoke in clear.
        Clear = "clear",
        /// Too many at a time, in all or of one address: handshakes, or connections without a certificate.
        TooMany = "too_many",
    }
}

/// What became of those who knocked.
pub type DoorCounts = ByLabel<Handshake, Counter>;

/// A port that lets connections in: in clear, or by TLS.
#[derive(Debug)]
pub struct Listener {
    tcp: TcpListener,
    tls: Option<Arc<ServerTls>>,
    counts: Arc<DoorCounts>,
}

impl Listener {
    /// Of a bound port. Without `tls` everybody is let in at once.
    #[must_use]
    pub fn new(tcp: TcpListener, tls: Option<Arc<ServerTls>>, counts: Arc<DoorCounts>) -> Self {
        Self { tcp, tls, counts }
    }

    /// Connections that were let in; the port is closed when this is dropped. Must be called on a
    /// tokio runtime.
    #[must_use]
    pub fn incoming(self) -> Incoming {
        let (let_in, queue) = mpsc::channel(QUEUE);
        tokio::spawn(self.accept(let_in));
        Incoming(queue)
    }

    async fn accept(self, let_in: mpsc::Sender<Accepted>) {
        let waiting = Places::new(MAX_HANDSHAKES, MAX_HANDSHAKES_OF_ONE);
        let nameless = Places::new(MAX_NAMELESS, MAX_NAMELESS_OF_ONE);
        loop {
            let accepted = tokio::select! {
                accepted = self.tcp.accept() => accepted,
                () = let_in.closed() => return,
            };
            let (stream, from) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!("a connection was not accepted: {error}");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            // It has gone already: its own end will tell.
            stream.set_nodelay(true).ok();
            let Some(tls) = &self.tls else {
                if let_in.send(Accepted::clear(stream, from)).await.is_err() {
                    return;
                }
                continue;
            };
            let Some(place) = waiting.take(from.ip()) else {
                self.counts.of(Handshake::TooMany).inc();
                tracing::debug!(%from, "turned away: too many handshakes at a time");
                continue;
            };
            let knock = Knock {
                tls: Arc::clone(tls),
                counts: Arc::clone(&self.counts),
                let_in: let_in.clone(),
                nameless: Arc::clone(&nameless),
                from,
            };
            tokio::spawn(knock.answer(stream, place));
        }
    }
}

/// One who wants to be let in.
struct Knock {
    tls: Arc<ServerTls>,
    counts: Arc<DoorCounts>,
    let_in: mpsc::Sender<Accepted>,
    nameless: Arc<Places>,
    from: SocketAddr,
}

impl Knock {
    async fn answer(self, stream: TcpStream, place: Place) {
        let from = self.from;
        let outcome = tokio::select! {
            outcome = timeout(HANDSHAKE_WITHIN, self.shake(stream)) => outcome,
            // Nobody serves any more.
            () = self.let_in.closed() => return,
        };
        let outcome = match outcome {
            Ok(Some(accepted)) => {
                // Known now: it takes no stranger's place while it waits to be served.
                drop(place);
                self.counts.of(Handshake::Done).inc();
                // Nobody serves any more.
                self.let_in.send(accepted).await.ok();
                return;
            }
            Ok(None) => return,
            Err(_) => Handshake::Late,
        };
        self.counts.of(outcome).inc();
        tracing::info!(%from, "cut off: no handshake within {HANDSHAKE_WITHIN:?}");
    }

    /// None where it was turned away, which was counted.
    async fn shake(&self, stream: TcpStream) -> Option<Accepted> {
        let from = self.from;
        match plaintext::begins_tls(&stream).await {
            Ok(true) => {}
            Ok(false) => {
                self.counts.of(Handshake::Clear).inc();
                tracing::info!(%from, "turned away: it speaks in clear where TLS is spoken");
                plaintext::turn_away(stream).await;
                return None;
            }
            Err(error) => {
                // A probe of the port, say.
                tracing::debug!(%from, "gone before it said anything: {error}");
                return None;
            }
        }
        match self.tls.acceptor().accept(stream).await {
            Ok(stream) => {
                let accepted = Accepted::tls(stream, from);
                if accepted.has_certificate() {
                    return Some(accepted);
                }
                let Some(place) = self.nameless.take(from.ip()) else {
                    self.counts.of(Handshake::TooMany).inc();
                    tracing::info!(%from, "turned away: too many connections without a certificate");
                    return None;
                };
                Some(accepted.holding(place))
            }
            Err(error) => {
                self.counts.of(Handshake::Refused).inc();
                let error = TlsRefusal::of_client(&error);
                tracing::info!(%from, "turned away: {error}");
                None
            }
        }
    }
}

/// Connections that were let in. Never ends by itself.
#[derive(Debug)]
pub struct Incoming(mpsc::Receiver<Accepted>);

impl Stream for Incoming {
    type Item = io::Result<Accepted>;
    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(cx).map(|accepted| accepted.map(Ok))
    }
}
