//! Takes responses off a connection, payload straight into the local spans.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
    time::Duration,
};

use kvferry_memory::{
    AccessError, HostMemory, MemoryError, PieceMut, discard, receive, set_receive_low_water,
};
use tokio::{
    io::Interest,
    time::{Interval, MissedTickBehavior, interval},
};

use super::{
    connection::Connection,
    frame::{FrameError, RESPONSE_HEAD_BYTES, ResponseHead},
    stream::{Sealed, Stream},
};
use crate::transport::{
    ReadError,
    operation::{Operation, Target},
    spans::{SpanFault, SpanRefusal},
};

/// Bytes received behind a payload in the same call: the next heads, and small payloads (512 generation
/// words) whole, which are then copied once.
const INBOX_BYTES: u64 = 4 << 10;
/// Most payload taken in one call: how long a cancel may have to wait for the lock (about 0.2 ms).
const RECEIVE_BYTES: u64 = 1 << 20;

/// Payload that is worth waking up for, where as much is still to come: two segments of loopback, a quarter of a millisecond of 4
/// Gbit/s. A reader that is faster than its owner sleeps and wakes less often, at a fifth less of its processor's time.
const LOW_WATER_BYTES: u32 = 128 << 10;
/// A payload of which nothing was taken for so long (under 7 MB/s) is taken as it comes from then on: what lies in the kernel does not
/// count as received, and twice this, at which it may be noticed, is less than the shortest bound on stalls (50 ms).
const LULL: Duration = Duration::from_millis(20);

/// Why a connection can no longer be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReaderEnd {
    #[error("the peer closed the connection")]
    Closed,
    #[error("the peer sent what is no frame: {0}")]
    Malformed(#[from] FrameError),
    #[error("the peer answered request {found} where {expected:?} was next")]
    WrongAnswer { expected: Option<u32>, found: u32 },
    #[error("the peer answers with {found} bytes where {expected} were asked for")]
    WrongLength { expected: u64, found: u64 },
    #[error("no memory: {0}")]
    Memory(#[from] MemoryError),
    #[error("no memory: {0}")]
    Inbox(AccessError),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A connection's reading half.
pub(super) struct Reader {
    connection: Arc<Connection>,
    /// Received and not looked at: `start..end`. Empty whenever a payload is under way.
    inbox: HostMemory,
    start: u64,
    end: u64,
    current: Option<Current>,
    /// So many bytes wake it.
    low_water: u32,
    /// Fires while it waits for many. Not set for each wait, which would wake the runtime's timers each time.
    lull: Interval,
    /// What had been received when it fired last.
    received: u64,
}

/// The response whose payload is arriving.
struct Current {
    operation: Arc<Operation>,
    left: u64,
    /// It does not come as fast as it is worth waiting for more of it.
    is_slow: bool,
}

impl Reader {
    pub(super) fn new(connection: Arc<Connection>) -> Result<Self, MemoryError> {
        let mut lull = interval(LULL);
        lull.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self {
            connection,
            inbox: HostMemory::anonymous(INBOX_BYTES)?,
            start: 0,
            end: 0,
            current: None,
            low_water: 1,
            lull,
            // What has come so far says nothing of what a connection has just begun to bring.
            received: u64::MAX,
        })
    }

    /// Reads until the connection ends; gives the reason.
    pub(super) async fn run(mut self) -> ReaderEnd {
        let connection = Arc::clone(&self.connection);
        let stream = connection.stream();
        loop {
            let received = match stream {
                Stream::Clear(socket) => {
                    socket.try_io(Interest::READABLE, || self.receive(socket.as_fd()))
                }
                Stream::Tls(sealed) => self.open(sealed),
            };
            match received {
                Ok(0) => return ReaderEnd::Closed,
                Ok(_) => {
                    if let Err(end) = self.digest() {
                        return end;
                    }
                    tokio::task::consume_budget().await;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if let Err(error) = self.wait(stream).await {
                        return error.into();
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return error.into(),
            }
        }
    }

    /// Until there is something to take: much of it at once, where much is to come soon.
    async fn wait(&mut self, stream: &Stream) -> io::Result<()> {
        self.set_low_water(stream)?;
        while self.low_water > 1 {
            tokio::select! {
                biased;
                readable = stream.readable() => return readable,
                _ = self.lull.tick() => {}
            }
            let received = self.connection.received();
            if std::mem::replace(&mut self.received, received) == received
                && let Some(current) = &mut self.current
            {
                current.is_slow = true;
            }
            // Where less is there already the kernel says so now.
            self.set_low_water(stream)?;
        }
        stream.readable().await
    }

    /// Before it waits: for how much. By TLS a record's beginning may have been taken already, so that less than is left
    /// still comes.
    fn set_low_water(&mut self, stream: &Stream) -> io::Result<()> {
        let Stream::Clear(socket) = stream else {
            return Ok(());
        };
        let want = match &self.current {
            Some(it) if it.left >= LOW_WATER_BYTES.into() && !it.is_slow => LOW_WATER_BYTES,
            _ => 1,
        };
        if want != self.low_water {
            set_receive_low_water(socket.as_fd(), want)?;
            self.low_water = want;
        }
        Ok(())
    }

    /// One system call's worth, without waiting. 0 is the end of the stream.
    fn receive(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        let Some(current) = &mut self.current else {
            let room = PieceMut::new(&self.inbox, self.end, INBOX_BYTES - self.end);
            let mut pieces = [room.map_err(|_| io::ErrorKind::InvalidInput)?];
            let received = receive(socket, &mut pieces)?;
            self.end += received as u64;
            return Ok(received);
        };
        let mut guard = current.operation.target();
        let Some(target) = guard.as_mut() else {
            drop(guard);
            // Nobody wants it any more.
            let dropped = discard(socket, current.left.min(RECEIVE_BYTES) as usize)?;
            current.left -= dropped as u64;
            self.connection.count_received(dropped as u64);
            return Ok(dropped);
        };
        let (mut pieces, offered) = target.pieces(current.left.min(RECEIVE_BYTES))?;
        if offered == current.left {
            let room = PieceMut::new(&self.inbox, 0, INBOX_BYTES);
            pieces.push(room.map_err(|_| io::ErrorKind::InvalidInput)?);
        }
        let result = receive(socket, &mut pieces);
        drop(pieces);
        match result {
            Ok(received) => {
                let payload = offered.min(received as u64);
                target.advance(payload);
                current.left -= payload;
                self.end = received as u64 - payload;
                self.connection.count_received(payload);
                Ok(received)
            }
            Err(error) if is_fault(&error) => {
                drop(guard);
                // The file behind the local memory was cut. The stream stands where it stood: the
                // rest of the payload is dropped, and the connection stays good.
                let gone = ReadError::Local(AccessError::Gone(error));
                current.operation.settle(Err(gone));
                Err(io::ErrorKind::Interrupted.into())
            }
            Err(error) => Err(error),
        }
    }

    /// As [`receive`](Self::receive), by TLS: at most a record's worth.
    fn open(&mut self, sealed: &Sealed) -> io::Result<usize> {
        let Self {
            connection,
            inbox,
            end,
            current,
            ..
        } = self;
        let mut full = None;
        let opened = sealed.open(|bytes| {
            let Some(current) = current else {
                let len = bytes.len().min((INBOX_BYTES - *end) as usize);
                full = inbox.write_at(*end, &bytes[..len]).err();
                *end += len as u64;
                return len;
            };
            let len = bytes
                .len()
                .min(usize::try_from(current.left).unwrap_or(usize::MAX));
            fill(&current.operation, |target| {
                target.fill_bytes(&bytes[..len])
            });
            current.left -= len as u64;
            connection.count_received(len as u64);
            len
        });
        match full {
            Some(_) => Err(io::ErrorKind::InvalidInput.into()),
            None => opened,
        }
    }

    /// Makes sense of what was received.
    fn digest(&mut self) -> Result<(), ReaderEnd> {
        loop {
            match &mut self.current {
                Some(current) => {
                    let step = current.left.min(self.end - self.start);
                    if step > 0 {
                        let from = self.start..self.start + step;
                        put(current, &self.inbox, from);
                        self.start += step;
                        current.left -= step;
                        self.connection.count_received(step);
                    }
                    if current.left > 0 {
                        break; // and the inbox is empty
                    }
                    current.operation.settle(Ok(()));
                    self.connection.pop_front();
                    self.current = None;
                }
                None if self.end - self.start >= RESPONSE_HEAD_BYTES as u64 => self.begin()?,
                None => break,
            }
        }
        self.compact()
    }

    /// Reads the next head.
    fn begin(&mut self) -> Result<(), ReaderEnd> {
        let mut head = [0; RESPONSE_HEAD_BYTES];
        self.inbox
            .read_at(self.start, &mut head)
            .map_err(ReaderEnd::Inbox)?;
        self.start += RESPONSE_HEAD_BYTES as u64;
        let head = ResponseHead::decode(&head)?;
        let Some((id, operation)) = self.connection.front().filter(|(id, _)| *id == head.id) else {
            return Err(ReaderEnd::WrongAnswer {
                expected: self.connection.front().map(|(id, _)| id),
                found: head.id,
            });
        };
        debug_assert_eq!(id, head.id);
        match head.outcome {
            Ok(found) if found != operation.bytes => {
                return Err(ReaderEnd::WrongLength {
                    expected: operation.bytes,
                    found,
                });
            }
            Ok(left) => {
                self.current = Some(Current {
                    operation,
                    left,
                    is_slow: false,
                });
            }
            Err(fault) => {
                if let SpanFault::Refused(SpanRefusal::Ticket(refusal)) = fault
                    && operation.bytes > 0
                {
                    // Nothing more is asked for on it, and nothing more is answered.
                    self.connection.span_refused(refusal);
                }
                operation.settle(Err(self.refusal(fault)));
                self.connection.pop_front();
            }
        }
        Ok(())
    }

    fn refusal(&self, fault: SpanFault) -> ReadError {
        let node = self.connection.node().clone();
        match fault {
            SpanFault::RegionGone(region) => ReadError::RegionGone {
                node,
                region: region.0,
            },
            SpanFault::Refused(SpanRefusal::Ticket(refusal)) => {
                ReadError::TicketRefused { node, refusal }
            }
            SpanFault::Refused(refusal) => ReadError::SpanRefused {
                node,
                detail: refusal.as_str(),
            },
        }
    }

    /// Moves half a head to the front, so that there is room for the rest.
    fn compact(&mut self) -> Result<(), ReaderEnd> {
        let kept = self.end - self.start;
        if kept > 0 && self.start > 0 {
            let mut half = [0; RESPONSE_HEAD_BYTES];
            let half = &mut half[..kept as usize];
            self.inbox
                .read_at(self.start, half)
                .and_then(|()| self.inbox.write_at(0, half))
                .map_err(ReaderEnd::Inbox)?;
        }
        (self.start, self.end) = (0, kept);
        Ok(())
    }
}

/// Copies a small payload from the inbox, if anybody still wants it.
fn put(current: &Current, inbox: &HostMemory, from: std::ops::Range<u64>) {
    fill(&current.operation, |target| target.fill(inbox, from));
}

/// Where somebody still wants it. Memory that cannot be written ends the read, and not the connection.
fn fill(operation: &Operation, copy: impl FnOnce(&mut Target) -> Result<(), AccessError>) {
    let filled = operation.target().as_mut().map_or(Ok(()), copy);
    if let Err(error) = filled {
        operation.settle(Err(ReadError::Local(error)));
    }
}

fn is_fault(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::FAULT.raw_os_error())
}
