//! One connection at the owner: hello, then request after request, answered in order.

use std::{
    io,
    os::fd::AsFd,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Buf, BytesMut};
use kvferry_cuda::StagingError;
use kvferry_proto::{RegionId, RemoteSpan};
use kvferry_security::ticket::{NoRandomness, Nonce, PROOF_BYTES, Refusal};
use kvferry_security::tls::TlsRefusal;
use tokio::{
    net::TcpStream,
    time::{timeout, timeout_at},
};

use super::{
    frame::{
        Asked, ClientHello, FrameError, MAX_CLIENT_HELLO_BYTES, RefusalReason, ResponseHead,
        ServerHello, Welcome, decode_request, frame_bytes, holds_request,
    },
    gpu::GpuRun,
    response::Response,
    server::{Handshaking, ServeCounters, TcpLimits},
    stream::Stream,
};
use crate::{
    region::{Region, RegionCatalog},
    tickets::{Gate, Needs, Permit},
    transport::spans::{SpanFault, SpanRefusal, find_region},
};

/// What is read ahead at a time: many small requests in one system call.
const READ_AHEAD_BYTES: usize = 16 << 10;
/// How long a peer may take no byte of a response out of a GPU: it holds staging buffers that other readers need.
const GPU_WRITE_STALL: Duration = Duration::from_secs(5);
/// What the kernel answers where the file behind the memory was cut.
const EFAULT: i32 = rustix::io::Errno::FAULT.raw_os_error();

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionEnd {
    #[error("the peer closed it")]
    Closed,
    #[error("the peer asked for nothing for too long")]
    Idle,
    #[error("the peer did not complete its hello in time")]
    HandshakeTimeout,
    #[error("the peer stopped in the middle of a request")]
    FrameTimeout,
    #[error("the peer takes no bytes any more")]
    WriteStall,
    #[error("the peer speaks in clear, and TLS is spoken here")]
    Clear,
    #[error("no TLS with the peer: {0}")]
    Tls(TlsRefusal),
    #[error("the peer expects incarnation {expected:x}")]
    WrongIncarnation { expected: u64 },
    #[error("the peer is not let in: {0}")]
    Ticket(Refusal),
    #[error("the peer reads what its ticket does not name")]
    OtherNamespace,
    #[error("its ticket has expired")]
    TicketExpired,
    #[error("tickets are needed from now on, and it has none")]
    TicketNeeded,
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
    #[error("the peer sent what is no frame: {0}")]
    Malformed(#[from] FrameError),
    #[error(
        "the file behind region {region} was cut while it was registered: unregister a region first"
    )]
    MemoryCut { region: RegionId },
    #[error("the GPU gave no more bytes in the middle of a response: {0}")]
    Gpu(StagingError),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Tells a stranger why it is not let in, without waiting for it.
pub(super) fn refuse(
    stream: &TcpStream,
    incarnation: kvferry_proto::Incarnation,
    reason: RefusalReason,
) {
    let hello = ServerHello {
        welcome: Welcome::Refused(reason),
        incarnation: incarnation.get(),
        max_spans: 0,
        max_bytes: 0,
    };
    // Straight to the kernel: an empty send buffer takes it, and if not, the peer sees a close.
    let _ = rustix::net::send(
        stream.as_fd(),
        &hello.encode(),
        rustix::net::SendFlags::DONTWAIT | rustix::net::SendFlags::NOSIGNAL,
    );
}

/// One connection.
pub(super) struct Session {
    stream: Stream,
    catalog: Arc<RegionCatalog>,
    gate: Arc<Gate>,
    /// Who was let in, where a ticket was needed.
    permit: Option<Permit>,
    limits: Arc<TcpLimits>,
    counters: Arc<ServeCounters>,
    inbox: BytesMut,
}

impl Session {
    pub(super) fn new(
        stream: Stream,
        catalog: Arc<RegionCatalog>,
        gate: Arc<Gate>,
        limits: Arc<TcpLimits>,
        counters: Arc<ServeCounters>,
    ) -> Self {
        Self {
            stream,
            catalog,
            gate,
            permit: None,
            limits,
            counters,
            inbox: BytesMut::new(),
        }
    }

    /// Serves until the connection ends, for whatever reason. Gives that reason.
    pub(super) async fn run(mut self, handshaking: Handshaking) -> SessionEnd {
        let until = handshaking.began + self.limits.handshake_timeout;
        let end = match timeout_at(until, self.handshake()).await {
            Err(_) => SessionEnd::HandshakeTimeout,
            Ok(Err(end)) => end,
            Ok(Ok(())) => {
                drop(handshaking);
                match self.serve().await {
                    Err(end) => end,
                    Ok(never) => match never {},
                }
            }
        };
        // The peer learns at once, also where data it sent lies unread.
        self.stream.shutdown().await;
        end
    }

    async fn handshake(&mut self) -> Result<(), SessionEnd> {
        let hello = loop {
            if let Some((hello, taken)) = ClientHello::decode(&self.inbox)? {
                self.inbox.advance(taken);
                break hello;
            }
            self.fill(MAX_CLIENT_HELLO_BYTES).await?;
        };
        if hello.incarnation != self.catalog.incarnation().get() {
            self.welcome(Welcome::WrongIncarnation, &[]).await?;
            return Err(SessionEnd::WrongIncarnation {
                expected: hello.incarnation,
            });
        }
        match self.let_in(&hello.ticket).await {
            Err(SessionEnd::Ticket(refusal)) => {
                let refused = Welcome::Refused(RefusalReason::Ticket(refusal));
                self.welcome(refused, &[]).await?;
                Err(SessionEnd::Ticket(refusal))
            }
            Err(end) => Err(end),
            Ok(permit) => {
                self.permit = permit;
                self.welcome(Welcome::Accepted, &[]).await
            }
        }
    }

    /// Whether the peer is let in, and for what.
    async fn let_in(&mut self, ticket: &[u8]) -> Result<Option<Permit>, SessionEnd> {
        if self.gate.needs() == Needs::Nothing {
            return Ok(None);
        }
        let checked = self.gate.check(ticket).map_err(SessionEnd::Ticket)?;
        let nonce = Nonce::random()?;
        self.welcome(Welcome::Prove, &nonce.0).await?;
        while self.inbox.len() < PROOF_BYTES {
            self.fill(PROOF_BYTES).await?;
        }
        let proof = self.inbox.split_to(PROOF_BYTES);
        let (purpose, nonce) = self.stream.proven(&nonce);
        let permit = self.gate.admit(checked, purpose, &nonce, &proof);
        permit.map(Some).map_err(SessionEnd::Ticket)
    }

    async fn welcome(&mut self, welcome: Welcome, more: &[u8]) -> Result<(), SessionEnd> {
        let hello = ServerHello {
            welcome,
            incarnation: self.catalog.incarnation().get(),
            max_spans: u32::try_from(self.limits.max_spans).unwrap_or(u32::MAX),
            max_bytes: self.limits.max_bytes,
        };
        let bytes = [&hello.encode()[..], more].concat();
        Ok(self.stream.write_all(&bytes).await?)
    }

    /// Reads some more; at most `bound` bytes are kept.
    async fn fill(&mut self, bound: usize) -> Result<(), SessionEnd> {
        let room = bound.saturating_sub(self.inbox.len()).min(READ_AHEAD_BYTES);
        self.inbox.reserve(room.max(1));
        match self.stream.read_buf(&mut self.inbox).await? {
            0 => Err(SessionEnd::Closed),
            _ => Ok(()),
        }
    }

    async fn serve(&mut self) -> Result<std::convert::Infallible, SessionEnd> {
        let mut spans = Vec::new();
        loop {
            let asked = self.next_request(&mut spans).await?;
            self.check_permit()?;
            let id = match asked {
                Asked::Spans { id } => id,
                Asked::Renewal { id, ticket } => {
                    self.renew(id, &ticket).await?;
                    continue;
                }
            };
            self.counters.count_request();
            let found = self.find(&spans);
            // A GPU that fails is found out before the reader is promised bytes, in all but the worst case.
            let (found, gpu) = match found {
                Ok(found) => match first_out_of_gpu(&found.parts).await {
                    Ok(gpu) => (Ok(found), gpu),
                    Err(fault) => (Err(fault), None),
                },
                Err(fault) => (Err(fault), None),
            };
            let outcome = found.as_ref().map(|found| found.bytes).map_err(|f| *f);
            let head = ResponseHead { id, outcome };
            let parts = found.map(|found| found.parts).unwrap_or_default();
            self.answer(Response::new(head, &parts, gpu)).await?;
            if let Err(SpanFault::Refused(SpanRefusal::Ticket(refusal))) = outcome {
                // It was told why. Who asks for what is not its own is not asked again.
                self.gate.refuse(refusal);
                return Err(SessionEnd::OtherNamespace);
            }
        }
    }

    /// May the connection go on?
    fn check_permit(&self) -> Result<(), SessionEnd> {
        match &self.permit {
            Some(permit) if permit.is_over() => Err(SessionEnd::TicketExpired),
            None if self.gate.needs() == Needs::Ticket => Err(SessionEnd::TicketNeeded),
            Some(_) | None => Ok(()),
        }
    }

    /// When it must end.
    fn until(&self) -> Option<Instant> {
        self.permit.as_ref().map(Permit::until)
    }

    /// Goes on with a later ticket, or as before.
    async fn renew(&mut self, id: u32, ticket: &[u8]) -> Result<(), SessionEnd> {
        let outcome = match &self.permit {
            // It was let in without one.
            None => Ok(0),
            Some(permit) => match self.gate.renew(permit, ticket) {
                Ok(renewed) => {
                    self.permit = Some(renewed);
                    Ok(0)
                }
                Err(refusal) => {
                    tracing::info!(reader = %permit.reader(), "a ticket is not renewed: {refusal}");
                    Err(SpanFault::Refused(SpanRefusal::Ticket(refusal)))
                }
            },
        };
        let head = ResponseHead { id, outcome };
        self.answer(Response::new(head, &[], None)).await
    }

    async fn next_request(&mut self, spans: &mut Vec<RemoteSpan>) -> Result<Asked, SessionEnd> {
        if let Some(asked) = self.decode(spans)? {
            return Ok(asked);
        }
        let until = self.until();
        if self.inbox.is_empty() {
            let idle = self.limits.idle_timeout;
            let more = self.fill(READ_AHEAD_BYTES);
            within(until, idle, SessionEnd::Idle, more).await??;
        }
        // A request has begun: now it must come to an end.
        let bound = frame_bytes(self.limits.max_spans);
        let frame_timeout = self.limits.frame_timeout;
        let rest = async {
            loop {
                if let Some(asked) = self.decode(spans)? {
                    return Ok(asked);
                }
                self.fill(bound).await?;
            }
        };
        let late = SessionEnd::FrameTimeout;
        within(until, frame_timeout, late, rest).await?
    }

    fn decode(&mut self, spans: &mut Vec<RemoteSpan>) -> Result<Option<Asked>, SessionEnd> {
        match decode_request(&self.inbox, self.limits.max_spans, spans)? {
            Some((asked, taken)) => {
                self.inbox.advance(taken);
                Ok(Some(asked))
            }
            None => Ok(None),
        }
    }

    fn find(&self, spans: &[RemoteSpan]) -> Result<Found, SpanFault> {
        let mut parts: Vec<(Arc<Region>, RemoteSpan)> = Vec::with_capacity(spans.len());
        let mut bytes = 0u64;
        for span in spans {
            let region = match parts.last() {
                // Mostly all spans are of one region: spare the table.
                Some((last, _)) if last.id == span.region && last.covers(span) => {
                    crate::transport::spans::check_words(span).map_err(SpanFault::Refused)?;
                    Arc::clone(last)
                }
                _ => find_region(&self.catalog, self.permit.as_ref(), span)?,
            };
            bytes = bytes.saturating_add(span.len);
            if bytes > self.limits.max_bytes {
                return Err(SpanFault::Refused(SpanRefusal::TooManyBytes));
            }
            parts.push((region, *span));
        }
        Ok(Found { parts, bytes })
    }

    /// Sends a response straight from the regions' memory, or from where a GPU's is copied to.
    async fn answer(&self, mut response: Response<'_>) -> Result<(), SessionEnd> {
        // Small responses may share a packet, but none waits for a request that is not here.
        let more = holds_request(&self.inbox);
        while !response.is_done() || self.stream.holds_back() {
            if self.permit.as_ref().is_some_and(Permit::is_over) {
                return Err(SessionEnd::TicketExpired);
            }
            response.stage()?;
            response.fetch().await.map_err(SessionEnd::Gpu)?;
            match self.stream.send(&mut response, more) {
                Ok(bytes) => {
                    self.counters.count_sent(bytes);
                    tokio::task::consume_budget().await;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let bound = match response.holds_gpu_buffers() {
                        true => self.limits.write_stall.min(GPU_WRITE_STALL),
                        false => self.limits.write_stall,
                    };
                    let writable = self.stream.writable();
                    within(self.until(), bound, SessionEnd::WriteStall, writable).await??;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.raw_os_error() == Some(EFAULT) => {
                    return Err(match response.region() {
                        Some(region) => SessionEnd::MemoryCut { region },
                        None => error.into(),
                    });
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// Waits at most so long, and not beyond the ticket's end.
async fn within<T>(
    until: Option<Instant>,
    bound: Duration,
    over: SessionEnd,
    what: impl Future<Output = T>,
) -> Result<T, SessionEnd> {
    let left = until.map(|until| until.saturating_duration_since(Instant::now()));
    match left {
        Some(left) if left < bound => timeout(left, what)
            .await
            .map_err(|_| SessionEnd::TicketExpired),
        _ => timeout(bound, what).await.map_err(|_| over),
    }
}

/// The first bytes out of a GPU, where a response begins with such.
async fn first_out_of_gpu(
    parts: &[(Arc<Region>, RemoteSpan)],
) -> Result<Option<GpuRun>, SpanFault> {
    let Some(run) = GpuRun::begin(parts) else {
        return Ok(None);
    };
    let begun = async {
        let mut run = run?;
        run.ready().await?;
        Ok::<_, StagingError>(run)
    };
    begun.await.map(Some).map_err(|error| {
        tracing::error!("cannot serve out of GPU memory: {error}");
        SpanFault::Refused(SpanRefusal::GpuFailed)
    })
}

/// What a request names.
struct Found {
    parts: Vec<(Arc<Region>, RemoteSpan)>,
    bytes: u64,
}
