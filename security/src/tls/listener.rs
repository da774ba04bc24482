//! The door: who connects, is let in or turned away, within bounds that hold before anybody is known.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use kvferry_observe::{ByLabel, Counter, label};
use parking_lot::Mutex;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::{sleep, timeout},
};
use tokio_stream::Stream;

use super::{plaintext, refusal::TlsRefusal, server::ServerTls, stream::Accepted};

/// A handshake must be over by then. It is two round trips and some milliseconds; whoever takes longer
/// holds a place and a descriptor.
pub const HANDSHAKE_WITHIN: Duration = Duration::from_secs(5);
/// Handshakes at a time: a thousand agents that come back at once to a coordinator that restarted, and
/// some 64 KiB of memory each.
const MAX_HANDSHAKES: usize = 1_024;
/// Of those from one address (of IPv6, one /64): all processes of a host, and no more than an eighth of
/// the places for one that means ill.
const MAX_HANDSHAKES_OF_ONE: u32 = 128;
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
        /// Too many at a time, in all or of one address.
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
        let waiting = Arc::<Waiting>::default();
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
            let Some(place) = waiting.place(from.ip()) else {
                self.counts.of(Handshake::TooMany).inc();
                tracing::debug!(%from, "turned away: too many handshakes at a time");
                continue;
            };
            let knock = Knock {
                tls: Arc::clone(tls),
                counts: Arc::clone(&self.counts),
                let_in: let_in.clone(),
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
            Ok(stream) => Some(Accepted::tls(stream, from)),
            Err(error) => {
                self.counts.of(Handshake::Refused).inc();
                let error = TlsRefusal::of_client(&error);
                tracing::info!(%from, "turned away: {error}");
                None
            }
        }
    }
}

/// Who is in a handshake.
#[derive(Debug, Default)]
struct Waiting(Mutex<(usize, HashMap<IpAddr, u32>)>);

impl Waiting {
    fn place(self: &Arc<Self>, from: IpAddr) -> Option<Place> {
        let from = origin(from);
        let mut waiting = self.0.lock();
        let (all, by) = &mut *waiting;
        let of_one = by.get(&from).copied().unwrap_or(0);
        if *all >= MAX_HANDSHAKES || of_one >= MAX_HANDSHAKES_OF_ONE {
            return None;
        }
        *all += 1;
        by.insert(from, of_one + 1);
        Some(Place {
            waiting: Arc::clone(self),
            from,
        })
    }
}

/// A place among those in a handshake, free again when this is dropped.
struct Place {
    waiting: Arc<Waiting>,
    from: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut waiting = self.waiting.0.lock();
        let (all, by) = &mut *waiting;
        *all -= 1;
        let left = by.get_mut(&self.from).map(|of_one| {
            *of_one -= 1;
            *of_one
        });
        if left == Some(0) {
            by.remove(&self.from);
        }
    }
}

/// What one party has at hand: an address, or an IPv6 network of 2^64 of them.
fn origin(from: IpAddr) -> IpAddr {
    match from.to_canonical() {
        IpAddr::V6(from) => {
            let network = u128::from(from) & !u128::from(u64::MAX);
            IpAddr::V6(Ipv6Addr::from(network))
        }
        v4 => v4,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_gets_its_share_of_places_only() {
        let waiting = Arc::<Waiting>::default();
        let one: IpAddr = "2001:db8::1".parse().unwrap();
        let neighbour: IpAddr = "2001:db8::2".parse().unwrap();
        let places: Vec<_> = (0..MAX_HANDSHAKES_OF_ONE)
            .map(|_| waiting.place(one).unwrap())
            .collect();
        assert!(waiting.place(neighbour).is_none(), "the same /64");
        let other: IpAddr = "192.0.2.1".parse().unwrap();
        let mapped: IpAddr = "::ffff:192.0.2.1".parse().unwrap();
        assert!(waiting.place(other).is_some() && origin(mapped) == other);
        drop(places);
        assert!(waiting.place(neighbour).is_some());
        assert_eq!(
            waiting.0.lock().1.len(),
            0,
            "nothing is kept of those who left"
        );
        let all: Vec<_> = (0..MAX_HANDSHAKES as u32)
            .map(|n| waiting.place(IpAddr::from((n + 1).to_be_bytes())).unwrap())
            .collect();
        assert!(waiting.place(other).is_none(), "{} are enough", all.len());
    }
}
