//! The data port: its frames, an owner's connection, and a reader's, each against a model that reads the whole stream at
//! once.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::{fd::OwnedFd, unix::net::UnixStream},
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use kvferry_memory::HostMemory;
use kvferry_proto::{Incarnation, NodeAddresses, NodeId, Part, RegionId, RemoteSpan};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::yield_now,
    time::timeout,
};

use super::{
    connection::Connection,
    frame::{
        self, ClientHello, MAX_SPANS, RESPONSE_HEAD_BYTES, ResponseHead, SERVER_HELLO_BYTES,
        ServerHello, Welcome, decode_request, encode_renewal, encode_request, holds_request,
    },
    server::{Handshaking, ServeCounters, TcpLimits},
    session::Session,
    stream::Stream,
};
use crate::{
    region::RegionCatalog,
    tickets::Gate,
    transport::{
        LocalSpans, PeerTarget, ReadError,
        operation::Operation,
        spans::{SpanFault, SpanRefusal, find_region},
    },
};

/// Longer than any of this takes: over it, something hangs.
const HANGS: Duration = Duration::from_secs(60);

/// Every frame decoder. What is taken is written as it came, and of what is taken no prefix is.
///
/// # Panics
/// Where that is not so.
pub fn frames(bytes: &[u8]) {
    if let Ok(Some((hello, taken))) = ClientHello::decode(bytes) {
        assert_eq!(hello.encode(), bytes[..taken]);
        assert_eq!(ClientHello::decode(&bytes[..taken - 1]), Ok(None));
    }
    if let Ok(Some((hello, taken))) = ServerHello::decode(bytes) {
        assert_eq!(
            ServerHello::decode(&hello.encode()),
            Ok(Some((hello, taken)))
        );
        assert_eq!(ServerHello::decode(&bytes[..taken - 1]), Ok(None));
    }
    let mut spans = Vec::new();
    if let Ok(Some((asked, taken))) = decode_request(bytes, MAX_SPANS, &mut spans) {
        // A renewal has no bytes to be kept together with the next answer.
        let spans_asked = matches!(asked, frame::Asked::Spans { .. });
        assert_eq!(holds_request(bytes), spans_asked);
        let mut again = Vec::new();
        match asked {
            frame::Asked::Spans { id } => encode_request(id, &spans, &mut again),
            frame::Asked::Renewal { id, ticket } => encode_renewal(id, &ticket, &mut again),
        }
        assert_eq!(again, bytes[..taken]);
        assert_eq!(
            decode_request(&bytes[..taken - 1], MAX_SPANS, &mut spans),
            Ok(None)
        );
    }
    let head = bytes.first_chunk::<RESPONSE_HEAD_BYTES>();
    if let Some(Ok(head)) = head.map(ResponseHead::decode) {
        assert_eq!(ResponseHead::decode(&head.encode()), Ok(head));
    }
}

/// What a reader would send: a hello, and one request for each of these.
#[must_use]
pub fn sent_by_reader(incarnation: u64, requests: &[Vec<RemoteSpan>]) -> Vec<u8> {
    let ticket = Vec::new();
    let mut out = ClientHello {
        incarnation,
        ticket,
    }
    .encode();
    for (id, spans) in (0..).zip(requests) {
        encode_request(id, spans, &mut out);
    }
    out
}

/// What an owner would answer to reads of so many bytes: a hello, then each one's bytes, or that its region is gone.
#[must_use]
pub fn sent_by_owner(incarnation: u64, reads: &[Option<u64>]) -> Vec<u8> {
    let hello = ServerHello {
        welcome: Welcome::Accepted,
        incarnation,
        max_spans: 16,
        max_bytes: 1 << 20,
    };
    let mut out = hello.encode().to_vec();
    for (id, bytes) in (0..).zip(reads) {
        let outcome = bytes.ok_or(SpanFault::RegionGone(RegionId(1)));
        out.extend(ResponseHead { id, outcome }.encode());
        out.extend((0..bytes.unwrap_or(0)).map(|n| n as u8));
    }
    out
}

/// Bounds that are met soon.
fn limits() -> TcpLimits {
    TcpLimits {
        max_spans: 32,
        max_bytes: 4 << 10,
        ..TcpLimits::default()
    }
}

/// A connection to an owner of these regions, which hears these pieces one after another and then the end.
///
/// # Panics
/// Where it answers anything else than what the whole stream asks for.
pub async fn owner(catalog: &Arc<RegionCatalog>, pieces: &[&[u8]]) {
    let (limits, counters) = (limits(), Arc::<ServeCounters>::default());
    let want = answers(catalog, &limits, &pieces.concat());
    let Ok((ours, theirs)) = pair() else {
        return;
    };
    let session = Session::new(
        Stream::Clear(theirs),
        Arc::clone(catalog),
        Arc::new(Gate::open()),
        Arc::new(limits),
        Arc::clone(&counters),
    );
    let Some(handshaking) = Handshaking::begin(&counters, IpAddr::V4(Ipv4Addr::LOCALHOST), 1)
    else {
        return;
    };
    let (mut hear, mut say) = ours.into_split();
    let talk = async {
        for piece in pieces {
            if say.write_all(piece).await.is_err() {
                break;
            }
            yield_now().await;
        }
        say.shutdown().await.ok();
    };
    let mut got = Vec::new();
    let hear = async { hear.read_to_end(&mut got).await };
    let both = async { tokio::join!(session.run(handshaking), talk, hear) };
    assert!(timeout(HANGS, both).await.is_ok(), "the owner hangs");
    // One who says more than is heard sees the connection reset, behind the last answer.
    assert!(want.starts_with(&got), "other bytes than were asked for");
    assert_eq!(want.len(), got.len(), "less than was asked for");
}

/// What an owner answers to a stream.
fn answers(catalog: &RegionCatalog, limits: &TcpLimits, mut stream: &[u8]) -> Vec<u8> {
    let Ok(Some((hello, taken))) = ClientHello::decode(stream) else {
        return Vec::new();
    };
    stream = &stream[taken..];
    let own = catalog.incarnation().get();
    let accepted = hello.incarnation == own;
    let answer = ServerHello {
        welcome: match accepted {
            true => Welcome::Accepted,
            false => Welcome::WrongIncarnation,
        },
        incarnation: own,
        max_spans: limits.max_spans as u32,
        max_bytes: limits.max_bytes,
    };
    let mut out = answer.encode().to_vec();
    let mut spans = Vec::new();
    while accepted
        && let Ok(Some((asked, taken))) = decode_request(stream, limits.max_spans, &mut spans)
    {
        stream = &stream[taken..];
        let (id, bytes) = match asked {
            frame::Asked::Spans { id } => (id, bytes_of(catalog, limits, &spans)),
            // Who needs no ticket keeps being let in.
            frame::Asked::Renewal { id, .. } => (id, Ok(Vec::new())),
        };
        let outcome = bytes
            .as_ref()
            .map(|bytes| bytes.len() as u64)
            .map_err(|f| *f);
        out.extend(ResponseHead { id, outcome }.encode());
        out.extend(bytes.unwrap_or_default());
    }
    out
}

fn bytes_of(
    catalog: &RegionCatalog,
    limits: &TcpLimits,
    spans: &[RemoteSpan],
) -> Result<Vec<u8>, SpanFault> {
    let mut all = 0u64;
    let mut found = Vec::new();
    for span in spans {
        found.push((find_region(catalog, None, span)?, span));
        all = all.saturating_add(span.len);
        if all > limits.max_bytes {
            return Err(SpanFault::Refused(SpanRefusal::TooManyBytes));
        }
    }
    let mut out = Vec::new();
    for (region, span) in found {
        let from = out.len();
        out.resize(from + span.len as usize, 0);
        let memory = match span.part {
            Part::Data => region.memory.host(),
            Part::Generations => Some(region.generations.memory()),
        };
        let read = memory.map(|memory| memory.read_at(span.offset, &mut out[from..]));
        assert!(matches!(read, Some(Ok(()))), "a span outside its region");
    }
    Ok(out)
}

/// A read of a reader, and whether it is given up before anything arrives.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    /// Bytes; at most 4,096.
    pub bytes: u64,
    /// Given up at once.
    pub cancelled: bool,
}

/// Space around each read's bytes that nobody may write to.
const GAP: u64 = 16;
/// What lies there, and where nothing has arrived.
const UNTOUCHED: u8 = 0xa5;

/// A reader's connection to an owner that says a hello and then these pieces, whatever it is asked.
///
/// # Panics
/// Where a read ends with other bytes than it was answered with, does not end, or bytes land elsewhere.
pub async fn reader(incarnation: u64, reads: &[Asked], hello: &[u8], pieces: &[&[u8]]) {
    let (Ok(expected), Ok(node)) = (Incarnation::new(incarnation), NodeId::new("owner")) else {
        return;
    };
    let peer = PeerTarget {
        node,
        incarnation: expected,
        addresses: NodeAddresses::default(),
    };
    // What nobody wants any more the kernel drops of TCP streams only; others need no port.
    let ends = match reads.iter().any(|read| read.cancelled) {
        true => tcp_pair().await,
        false => pair(),
    };
    let Ok((mut ours, theirs)) = ends else {
        return;
    };
    let body = async {
        let say_hello = async {
            ours.write_all(hello).await.ok();
            // What is no whole hello is followed by nothing.
            (hello.len() >= SERVER_HELLO_BYTES).then_some(ours)
        };
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        let received = Arc::<AtomicU64>::default();
        let (opened, ours) = tokio::join!(
            Connection::greet(&peer, address, Stream::Clear(theirs), None, &received),
            say_hello
        );
        let welcome = match ServerHello::decode(hello) {
            Ok(Some((hello, _))) => {
                hello.welcome == Welcome::Accepted && hello.incarnation == incarnation
            }
            _ => false,
        };
        assert_eq!(opened.is_ok(), welcome);
        if let (Ok((connection, _)), Some(ours)) = (opened, ours) {
            ask(&connection, ours, reads, pieces).await;
            connection.close("the end");
        }
    };
    assert!(timeout(HANGS, body).await.is_ok(), "the reader hangs");
}

async fn ask(
    connection: &Arc<Connection>,
    mut owner: TcpStream,
    reads: &[Asked],
    pieces: &[&[u8]],
) {
    let room: u64 = reads.iter().map(|read| read.bytes + GAP).sum::<u64>() + GAP;
    let Ok(memory) = HostMemory::anonymous(room).map(Arc::new) else {
        return;
    };
    memory.write_at(0, &vec![UNTOUCHED; room as usize]).ok();
    let (mut at, mut asked) = (GAP, Vec::new());
    for read in reads {
        let range = at..at + read.bytes;
        at = range.end + GAP;
        let local = LocalSpans {
            memory: Arc::clone(&memory),
            ranges: vec![range.clone()],
        };
        let (operation, pending) = Operation::new(local, read.bytes);
        let span = RemoteSpan {
            region: RegionId(1),
            part: Part::Data,
            offset: 0,
            len: read.bytes,
        };
        if connection.submit(operation, &[span]).is_err() {
            return;
        }
        if read.cancelled {
            pending.cancel();
        }
        asked.push((read, range, pending));
    }
    for piece in pieces {
        if owner.write_all(piece).await.is_err() {
            break;
        }
        yield_now().await;
    }
    owner.shutdown().await.ok();
    let stream = pieces.concat();
    let mut refused = false;
    for ((read, range, pending), want) in asked.into_iter().zip(outcomes(reads, &stream)) {
        let got = pending.await;
        let mut there = vec![0; read.bytes as usize];
        memory.read_at(range.start, &mut there).ok();
        match (want, got) {
            (_, Err(ReadError::Cancelled)) if read.cancelled => {
                let untouched = there.iter().all(|byte| *byte == UNTOUCHED);
                assert!(untouched, "a write after it settled");
            }
            (Some(Ok(bytes)), Ok(())) => assert!(there == bytes, "other bytes than were sent"),
            // Who shows a ticket that does not serve is told so, and the connection is of no use any more.
            (
                Some(Err(SpanFault::Refused(SpanRefusal::Ticket(_)))),
                Err(ReadError::TicketRefused { .. }),
            ) => refused = true,
            (_, Err(ReadError::TicketRefused { .. } | ReadError::LinkLost { .. })) if refused => {}
            (Some(Err(SpanFault::RegionGone(_))), Err(ReadError::RegionGone { .. }))
            | (Some(Err(SpanFault::Refused(_))), Err(ReadError::SpanRefused { .. }))
            | (None, Err(ReadError::LinkLost { .. })) => {}
            (want, got) => mismatch(want.is_some(), &got),
        }
    }
    check_gaps(&memory, reads);
}

fn check_gaps(memory: &HostMemory, reads: &[Asked]) {
    let mut at = 0;
    for bytes in reads.iter().map(|read| read.bytes).chain([0]) {
        let mut gap = [0; GAP as usize];
        memory.read_at(at, &mut gap).ok();
        assert_eq!(gap, [UNTOUCHED; GAP as usize], "a write outside the read");
        at += GAP + bytes;
    }
}

#[allow(clippy::panic)] // what this is for
fn mismatch(answered: bool, got: &Result<(), ReadError>) {
    panic!("answered: {answered}, but {got:?}");
}

/// What becomes of each read: its bytes, why not, or None where the connection ends before.
fn outcomes<'a>(reads: &[Asked], mut stream: &'a [u8]) -> Vec<Option<Result<&'a [u8], SpanFault>>> {
    let mut outcomes = Vec::new();
    for (id, read) in (0..).zip(reads) {
        let Some((head, rest)) = stream.split_first_chunk::<RESPONSE_HEAD_BYTES>() else {
            break;
        };
        let Some(head) = ResponseHead::decode(head).ok().filter(|head| head.id == id) else {
            break;
        };
        stream = rest;
        match head.outcome {
            Ok(bytes) if bytes == read.bytes && stream.len() as u64 >= bytes => {
                let (bytes, rest) = stream.split_at(bytes as usize);
                outcomes.push(Some(Ok(bytes)));
                stream = rest;
            }
            Ok(_) => break,
            Err(fault) => outcomes.push(Some(Err(fault))),
        }
    }
    outcomes.resize(reads.len(), None);
    outcomes
}

/// Two ends of a stream that needs no port. To the code above a socket is a socket.
fn pair() -> io::Result<(TcpStream, TcpStream)> {
    let (one, other) = UnixStream::pair()?;
    let tcp = |stream: UnixStream| {
        stream.set_nonblocking(true)?;
        TcpStream::from_std(std::net::TcpStream::from(OwnedFd::from(stream)))
    };
    Ok((tcp(one)?, tcp(other)?))
}

/// Two ends over loopback.
async fn tcp_pair() -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
    let address = listener.local_addr()?;
    let (theirs, ours) = tokio::join!(TcpStream::connect(address), listener.accept());
    let (theirs, (ours, _)) = (theirs?, ours?);
    Ok((ours, theirs))
}
