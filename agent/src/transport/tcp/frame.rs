//! What goes over a data connection. Little-endian throughout; every decoder is total and bounded.
//!
//! ```text
//! client hello   magic 4 | version u16 | flags u16 | incarnation u64 | ticket_len u32 | ticket
//! server hello   magic 4 | version u16 | status u8 | reason u8 | incarnation u64 | max_spans u32 | max_bytes u64
//!   status 3     nonce 32 follows; the client answers with its proof (64), the server with another hello
//! request        id u32 | count u32 | count x (region u32 | part u8 | 0 0 0 | offset u64 | len u64)
//! renewal        id u32 | "TCKT"   | ticket_len u32 | ticket           answered as a request for nothing
//! response       id u32 | status u8 | reason u8 | 0 0 | value u64 | payload
//! ```
//!
//! Responses come in the order of their requests. `value` is the payload's length where the status is
//! ok, else there is no payload and it names the region.

use kvferry_proto::{Part, RegionId, RemoteSpan};
use kvferry_security::ticket::{MAX_TICKET_BYTES, Refusal};

use crate::transport::spans::{SpanFault, SpanRefusal};

/// What a data connection begins with, so that strangers are told apart at once.
const MAGIC: [u8; 4] = *b"KVFd";
/// Raised with every change that an older peer would misread.
const VERSION: u16 = 1;
/// Bytes of a client hello before its ticket.
const CLIENT_HELLO_BYTES: usize = 20;
/// Longest client hello.
pub(super) const MAX_CLIENT_HELLO_BYTES: usize = CLIENT_HELLO_BYTES + MAX_TICKET_BYTES;
/// Bytes of a server hello.
pub(super) const SERVER_HELLO_BYTES: usize = 28;
/// Bytes of a request before its spans.
const REQUEST_HEAD_BYTES: usize = 8;
/// Where a request has its count of spans, a renewal has this, which no request may have.
const RENEWAL: u32 = u32::from_le_bytes(*b"TCKT");
/// Bytes of a renewal before its ticket.
const RENEWAL_HEAD_BYTES: usize = REQUEST_HEAD_BYTES + 4;
/// What is or-ed to a ticket's refusal, among the reasons of a hello and of a response.
const TICKET_REASON: u8 = 0x10;
/// Bytes of one span in a request.
const SPAN_BYTES: usize = 24;
/// Bytes of a response before its payload.
pub(super) const RESPONSE_HEAD_BYTES: usize = 16;
/// Most spans of one request: 128 blocks of 128 planes. Keeps a request under 400 KiB.
pub(super) const MAX_SPANS: usize = 16_384;

/// Longest frame of a peer that was let in: a request with at most `max_spans` spans, or a renewal.
pub(super) fn frame_bytes(max_spans: usize) -> usize {
    request_bytes(max_spans).max(RENEWAL_HEAD_BYTES + MAX_TICKET_BYTES)
}

fn request_bytes(spans: usize) -> usize {
    REQUEST_HEAD_BYTES + spans * SPAN_BYTES
}

/// Bytes that are no frame. The connection they came on is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The other side speaks something else.
    #[error("it does not begin with kvferry's magic")]
    Magic,
    /// The other side is of another release.
    #[error("protocol version {found}; this side speaks {VERSION}")]
    Version {
        /// As received.
        found: u16,
    },
    /// Flags this release does not know.
    #[error("unknown flags {found:#x}")]
    Flags {
        /// As received.
        found: u16,
    },
    /// A ticket over its bound.
    #[error("a ticket of {len} bytes; at most {MAX_TICKET_BYTES} are allowed")]
    TicketLength {
        /// As announced.
        len: u32,
    },
    /// A status byte that means nothing.
    #[error("unknown status {found}")]
    Status {
        /// As received.
        found: u8,
    },
    /// A reason byte that means nothing.
    #[error("unknown reason {found}")]
    Reason {
        /// As received.
        found: u8,
    },
    /// A part byte that means nothing.
    #[error("unknown part {found} of a region")]
    Part {
        /// As received.
        found: u8,
    },
    /// Bytes that must be zero and are not.
    #[error("reserved bytes are not zero")]
    Reserved,
    /// No spans, or more than the bound.
    #[error("a request of {count} spans; 1 to {max} are allowed")]
    SpanCount {
        /// As announced.
        count: u32,
        /// The bound.
        max: usize,
    },
    /// A span without bytes, or whose end is no offset.
    #[error("a span of {len} bytes at {offset}")]
    Span {
        /// As received.
        offset: u64,
        /// As received.
        len: u64,
    },
}

/// Takes integers off the front of a slice.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*head)
    }
    fn u8(&mut self) -> Option<u8> {
        self.take().map(|[byte]: [u8; 1]| byte)
    }
    fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_le_bytes)
    }
    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }
    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }
}

/// What was decoded and how many bytes it took; None where more bytes are needed.
type Decoded<T> = Result<Option<(T, usize)>, FrameError>;

fn check_prelude(reader: &mut Reader<'_>) -> Result<Option<()>, FrameError> {
    let Some(magic) = reader.take() else {
        return Ok(None);
    };
    if magic != MAGIC {
        return Err(FrameError::Magic);
    }
    match reader.u16() {
        None => Ok(None),
        Some(VERSION) => Ok(Some(())),
        Some(found) => Err(FrameError::Version { found }),
    }
}

/// The first thing a reader says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ClientHello {
    /// The incarnation whose regions it means.
    pub(super) incarnation: u64,
    /// What lets it in, at most `MAX_TICKET_BYTES`; empty where tickets are not in use.
    pub(super) ticket: Vec<u8>,
}

impl ClientHello {
    pub(super) fn encode(&self) -> Vec<u8> {
        let ticket = &self.ticket[..self.ticket.len().min(MAX_TICKET_BYTES)];
        let mut out = Vec::with_capacity(CLIENT_HELLO_BYTES + ticket.len());
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&0u16.to_le_bytes());
        out.extend_from_slice(&self.incarnation.to_le_bytes());
        out.extend_from_slice(&(ticket.len() as u32).to_le_bytes());
        out.extend_from_slice(ticket);
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Decoded<Self> {
        let mut reader = Reader(bytes);
        if check_prelude(&mut reader)?.is_none() {
            return Ok(None);
        }
        match reader.u16() {
            None => return Ok(None),
            Some(0) => {}
            Some(found) => return Err(FrameError::Flags { found }),
        }
        let (Some(incarnation), Some(len)) = (reader.u64(), reader.u32()) else {
            return Ok(None);
        };
        let ticket_bytes = len as usize;
        if ticket_bytes > MAX_TICKET_BYTES {
            return Err(FrameError::TicketLength { len });
        }
        let Some(ticket) = reader.0.get(..ticket_bytes) else {
            return Ok(None);
        };
        let hello = Self {
            incarnation,
            ticket: ticket.to_vec(),
        };
        Ok(Some((hello, CLIENT_HELLO_BYTES + ticket_bytes)))
    }
}

/// How an owner answers a hello.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Welcome {
    /// Ask away.
    Accepted,
    /// Another lifetime is here; the hello names it.
    WrongIncarnation,
    /// The owner does not want this connection.
    Refused(RefusalReason),
    /// The ticket is good: now prove that it is yours. A nonce follows.
    Prove,
}

/// Why an owner does not want a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RefusalReason {
    /// It serves as many as it may.
    Busy,
    /// The ticket does not let this reader in.
    Ticket(Refusal),
    /// It is going away.
    ShuttingDown,
    /// It speaks TLS only.
    Tls,
    /// One that a later release has.
    Other,
}

impl RefusalReason {
    fn code(self) -> u8 {
        match self {
            Self::Other => 0,
            Self::Busy => 1,
            Self::Ticket(refusal) => TICKET_REASON | refusal.code(),
            Self::ShuttingDown => 3,
            Self::Tls => 4,
        }
    }

    /// For messages to people.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Busy => "it serves as many connections as it may",
            Self::Ticket(_) => "the ticket does not let this reader in",
            Self::ShuttingDown => "it is shutting down",
            Self::Tls => {
                "its data port speaks TLS only, which it tells coordinators: are they of an older release?"
            }
            Self::Other => "it gives no reason this release knows",
        }
    }
}

/// The first thing an owner says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ServerHello {
    /// Whether requests may follow.
    pub(super) welcome: Welcome,
    /// The incarnation that answers.
    pub(super) incarnation: u64,
    /// Most spans it takes in one request.
    pub(super) max_spans: u32,
    /// Most bytes it sends in one response.
    pub(super) max_bytes: u64,
}

impl ServerHello {
    pub(super) fn encode(&self) -> [u8; SERVER_HELLO_BYTES] {
        let (status, reason) = match self.welcome {
            Welcome::Accepted => (0, 0),
            Welcome::WrongIncarnation => (1, 0),
            Welcome::Refused(reason) => (2, reason.code()),
            Welcome::Prove => (3, 0),
        };
        let mut out = [0; SERVER_HELLO_BYTES];
        out[..4].copy_from_slice(&MAGIC);
        out[4..6].copy_from_slice(&VERSION.to_le_bytes());
        out[6..8].copy_from_slice(&[status, reason]);
        out[8..16].copy_from_slice(&self.incarnation.to_le_bytes());
        out[16..20].copy_from_slice(&self.max_spans.to_le_bytes());
        out[20..28].copy_from_slice(&self.max_bytes.to_le_bytes());
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Decoded<Self> {
        let mut reader = Reader(bytes);
        if check_prelude(&mut reader)?.is_none() {
            return Ok(None);
        }
        let (Some(status), Some(reason)) = (reader.u8(), reader.u8()) else {
            return Ok(None);
        };
        let welcome = match (status, reason) {
            (0, _) => Welcome::Accepted,
            (1, _) => Welcome::WrongIncarnation,
            (2, 1) => Welcome::Refused(RefusalReason::Busy),
            (2, 3) => Welcome::Refused(RefusalReason::ShuttingDown),
            (2, 4) => Welcome::Refused(RefusalReason::Tls),
            (2, reason) if reason & 0xf0 == TICKET_REASON => {
                Welcome::Refused(RefusalReason::Ticket(Refusal::from_code(reason & 0x0f)))
            }
            (2, _) => Welcome::Refused(RefusalReason::Other),
            (3, _) => Welcome::Prove,
            (found, _) => return Err(FrameError::Status { found }),
        };
        let (Some(incarnation), Some(max_spans), Some(max_bytes)) =
            (reader.u64(), reader.u32(), reader.u64())
        else {
            return Ok(None);
        };
        let hello = Self {
            welcome,
            incarnation,
            max_spans,
            max_bytes,
        };
        Ok(Some((hello, SERVER_HELLO_BYTES)))
    }
}

/// Appends a request. `spans` are at most [`MAX_SPANS`].
pub(super) fn encode_request(id: u32, spans: &[RemoteSpan], out: &mut Vec<u8>) {
    out.reserve(request_bytes(spans.len()));
    out.extend_from_slice(&id.to_le_bytes());
    out.extend_from_slice(&(spans.len() as u32).to_le_bytes());
    for span in spans {
        let part = match span.part {
            Part::Data => 0,
            Part::Generations => 1,
        };
        out.extend_from_slice(&span.region.0.to_le_bytes());
        out.extend_from_slice(&[part, 0, 0, 0]);
        out.extend_from_slice(&span.offset.to_le_bytes());
        out.extend_from_slice(&span.len.to_le_bytes());
    }
}

/// Appends a renewal. `ticket` has at most `MAX_TICKET_BYTES`.
pub(super) fn encode_renewal(id: u32, ticket: &[u8], out: &mut Vec<u8>) {
    let ticket = &ticket[..ticket.len().min(MAX_TICKET_BYTES)];
    out.extend_from_slice(&id.to_le_bytes());
    out.extend_from_slice(&RENEWAL.to_le_bytes());
    out.extend_from_slice(&(ticket.len() as u32).to_le_bytes());
    out.extend_from_slice(ticket);
}

/// What a peer that was let in asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Asked {
    /// The spans that were decoded beside it.
    Spans { id: u32 },
    /// To stay until this ticket expires.
    Renewal { id: u32, ticket: Vec<u8> },
}

/// Decodes a request into `spans`, which it clears first, or a renewal.
pub(super) fn decode_request(
    bytes: &[u8],
    max_spans: usize,
    spans: &mut Vec<RemoteSpan>,
) -> Decoded<Asked> {
    spans.clear();
    let mut reader = Reader(bytes);
    let (Some(id), Some(count)) = (reader.u32(), reader.u32()) else {
        return Ok(None);
    };
    if count == RENEWAL {
        return decode_renewal(id, reader);
    }
    if count == 0 || count as usize > max_spans {
        return Err(FrameError::SpanCount {
            count,
            max: max_spans,
        });
    }
    let total = request_bytes(count as usize);
    if bytes.len() < total {
        return Ok(None);
    }
    for _ in 0..count {
        match decode_span(&mut reader)? {
            Some(span) => spans.push(span),
            None => return Ok(None),
        }
    }
    Ok(Some((Asked::Spans { id }, total)))
}

fn decode_renewal(id: u32, mut reader: Reader<'_>) -> Decoded<Asked> {
    let Some(len) = reader.u32() else {
        return Ok(None);
    };
    if len as usize > MAX_TICKET_BYTES {
        return Err(FrameError::TicketLength { len });
    }
    let ticket = reader.0.get(..len as usize).map(<[u8]>::to_vec);
    let taken = RENEWAL_HEAD_BYTES + len as usize;
    Ok(ticket.map(|ticket| (Asked::Renewal { id, ticket }, taken)))
}

/// Does it begin with a whole request? Then an answer to it will follow at once.
pub(super) fn holds_request(bytes: &[u8]) -> bool {
    let mut reader = Reader(bytes);
    let (Some(_), Some(count)) = (reader.u32(), reader.u32()) else {
        return false;
    };
    (count as usize) <= MAX_SPANS && bytes.len() >= request_bytes(count as usize)
}

fn decode_span(reader: &mut Reader<'_>) -> Result<Option<RemoteSpan>, FrameError> {
    let (Some(region), Some(part), Some(reserved), Some(offset), Some(len)) = (
        reader.u32(),
        reader.u8(),
        reader.take::<3>(),
        reader.u64(),
        reader.u64(),
    ) else {
        return Ok(None);
    };
    if reserved != [0; 3] {
        return Err(FrameError::Reserved);
    }
    let part = match part {
        0 => Part::Data,
        1 => Part::Generations,
        found => return Err(FrameError::Part { found }),
    };
    let span = RemoteSpan {
        region: RegionId(region),
        part,
        offset,
        len,
    };
    if len == 0 || span.end().is_none() {
        return Err(FrameError::Span { offset, len });
    }
    Ok(Some(span))
}

/// What precedes a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ResponseHead {
    /// Of the request it answers.
    pub(super) id: u32,
    /// Bytes of payload that follow, or why there are none.
    pub(super) outcome: Result<u64, SpanFault>,
}

impl ResponseHead {
    pub(super) fn encode(&self) -> [u8; RESPONSE_HEAD_BYTES] {
        let (status, reason, value) = match self.outcome {
            Ok(len) => (0, 0, len),
            Err(SpanFault::RegionGone(region)) => (1, 0, u64::from(region.0)),
            Err(SpanFault::Refused(refusal)) => (2, refusal_code(refusal), 0),
        };
        let mut out = [0; RESPONSE_HEAD_BYTES];
        out[..4].copy_from_slice(&self.id.to_le_bytes());
        out[4..6].copy_from_slice(&[status, reason]);
        out[8..].copy_from_slice(&value.to_le_bytes());
        out
    }

    pub(super) fn decode(bytes: &[u8; RESPONSE_HEAD_BYTES]) -> Result<Self, FrameError> {
        let [i0, i1, i2, i3, status, reason, r0, r1, value @ ..] = *bytes;
        if [r0, r1] != [0, 0] {
            return Err(FrameError::Reserved);
        }
        let value = u64::from_le_bytes(value);
        let outcome = match status {
            0 => Ok(value),
            1 => match u32::try_from(value) {
                Ok(region) => Err(SpanFault::RegionGone(RegionId(region))),
                Err(_) => return Err(FrameError::Reserved),
            },
            2 => Err(SpanFault::Refused(refusal(reason)?)),
            found => return Err(FrameError::Status { found }),
        };
        Ok(Self {
            id: u32::from_le_bytes([i0, i1, i2, i3]),
            outcome,
        })
    }
}

fn refusal_code(refusal: SpanRefusal) -> u8 {
    match refusal {
        SpanRefusal::OutOfRange => 1,
        SpanRefusal::NotWholeWords => 2,
        SpanRefusal::TooManyBytes => 3,
        SpanRefusal::MemoryCut => 4,
        SpanRefusal::GpuFailed => 5,
        SpanRefusal::Ticket(refusal) => TICKET_REASON | refusal.code(),
    }
}

fn refusal(code: u8) -> Result<SpanRefusal, FrameError> {
    match code {
        1 => Ok(SpanRefusal::OutOfRange),
        2 => Ok(SpanRefusal::NotWholeWords),
        3 => Ok(SpanRefusal::TooManyBytes),
        4 => Ok(SpanRefusal::MemoryCut),
        5 => Ok(SpanRefusal::GpuFailed),
        code if code & 0xf0 == TICKET_REASON => {
            Ok(SpanRefusal::Ticket(Refusal::from_code(code & 0x0f)))
        }
        found => Err(FrameError::Reason { found }),
    }
}

#[cfg(test)]
#[path = "frame_tests.rs"]
mod tests;
