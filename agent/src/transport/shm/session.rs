//! One connection at the owner's descriptor socket.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use kvferry_memory::MemoryError;
use kvferry_proto::RegionId;
use kvferry_security::ticket::{NoRandomness, Nonce, Purpose, Refusal};
use tokio::{net::UnixStream, time::timeout};

use super::{
    channel,
    deposit::DepositBox,
    frame::{
        BUSY, Bearer, Command, FRAME_BYTES, Greeting, NOT_ALLOWED, PROVE, REFUSED, Reply,
        ShmFrameError, WELCOME, WRONG_INCARNATION,
    },
    server::ShmOptions,
};
use crate::{
    region::RegionCatalog,
    tickets::{Gate, Needs, Permit},
};

/// Until a complete hello; everybody is on the same host.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Until a client has taken a reply, which always fits its receive buffer unless it floods us.
const REPLY_TIMEOUT: Duration = Duration::from_secs(5);

/// What all connections share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) catalog: Arc<RegionCatalog>,
    pub(super) gate: Arc<Gate>,
    pub(super) options: ShmOptions,
    pub(super) deposits: Arc<DepositBox>,
    /// Pairs of descriptors given away.
    pub(super) handed_out: AtomicU64,
}

#[derive(Debug, thiserror::Error)]
enum SessionEnd {
    #[error("the peer closed it")]
    Closed,
    #[error("the peer is of user {uid}, which is not allowed here")]
    NotAllowed { uid: u32 },
    #[error("the peer expects incarnation {expected:x}")]
    WrongIncarnation { expected: u64 },
    #[error("the peer was too slow")]
    TooSlow,
    #[error("the peer is not let in: {0}")]
    Ticket(Refusal),
    #[error("the peer asks for what its ticket does not name")]
    OtherNamespace,
    #[error("its ticket has expired")]
    TicketExpired,
    #[error("tickets are needed from now on, and it has none")]
    TicketNeeded,
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
    #[error("the peer sent what is no frame: {0}")]
    Malformed(#[from] ShmFrameError),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Whose processes they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum User {
    Reader,
    Engine,
}

/// What a connection may do.
#[derive(Debug)]
enum Rights {
    /// Read; only what the permit covers, where a ticket was needed.
    Read(Option<Permit>),
    /// Read and write all, and deposit.
    Engine,
}

impl Rights {
    /// When it must end.
    fn until(&self) -> Option<Instant> {
        match self {
            Self::Read(permit) => permit.as_ref().map(Permit::until),
            Self::Engine => None,
        }
    }
}

/// Serves a connection until it ends.
pub(super) async fn run(stream: UnixStream, shared: Arc<Shared>, connection: u64) {
    let end = match serve(&stream, &shared, connection).await {
        Ok(never) => match never {},
        Err(end) => end,
    };
    shared.deposits.expire(connection);
    if matches!(end, SessionEnd::TicketExpired) {
        shared.gate.expired();
    }
    match end {
        SessionEnd::Closed | SessionEnd::WrongIncarnation { .. } => {
            tracing::debug!(connection, "descriptor connection closed: {end}");
        }
        SessionEnd::NotAllowed { .. } | SessionEnd::Ticket(_) | SessionEnd::OtherNamespace => {
            tracing::warn!(connection, "descriptor connection refused: {end}");
        }
        _ => tracing::info!(connection, "descriptor connection closed: {end}"),
    }
}

/// Tells a client that there are too many.
pub(super) fn refuse(stream: &UnixStream, shared: &Shared) {
    let _ = stream.try_write(&greeting(BUSY, 0, shared));
}

fn greeting(status: u8, refusal: u8, shared: &Shared) -> [u8; FRAME_BYTES] {
    Greeting {
        status,
        refusal,
        incarnation: shared.catalog.incarnation().get(),
    }
    .encode()
}

async fn serve(
    stream: &UnixStream,
    shared: &Shared,
    connection: u64,
) -> Result<std::convert::Infallible, SessionEnd> {
    let mut rights = timeout(HANDSHAKE_TIMEOUT, handshake(stream, shared))
        .await
        .map_err(|_| SessionEnd::TooSlow)??;
    loop {
        // Half a command may stay half: it holds this connection and nothing else.
        let next = channel::receive(stream);
        let received = match rights.until() {
            Some(until) => timeout(until.saturating_duration_since(Instant::now()), next)
                .await
                .map_err(|_| SessionEnd::TicketExpired)??,
            None => next.await?,
        };
        let Some((frame, descriptors)) = received else {
            return Err(SessionEnd::Closed);
        };
        let command = Command::decode(&frame)?;
        let (reply, handed) = match command {
            Command::Renew => (renew(stream, shared, &mut rights).await?, Vec::new()),
            command => answer(command, descriptors, &rights, shared, connection)?,
        };
        let beside: Vec<_> = handed.iter().map(AsFd::as_fd).collect();
        timeout(
            REPLY_TIMEOUT,
            channel::send(stream, &reply.encode(), &beside),
        )
        .await
        .map_err(|_| SessionEnd::TooSlow)??;
        if reply == Reply::Refused(Refusal::OtherNamespace) {
            return Err(SessionEnd::OtherNamespace);
        }
    }
}

async fn handshake(stream: &UnixStream, shared: &Shared) -> Result<Rights, SessionEnd> {
    let uid = stream.peer_cred()?.uid();
    let own = shared.catalog.incarnation().get();
    let greet = async |status, refusal| {
        channel::send(stream, &greeting(status, refusal, shared), &[]).await
    };
    // Not waited for: strangers must not use up the connections there may be.
    let Some(user) = user(uid, &shared.options) else {
        greet(NOT_ALLOWED, 0).await?;
        return Err(SessionEnd::NotAllowed { uid });
    };
    let Some((hello, _)) = channel::receive(stream).await? else {
        return Err(SessionEnd::Closed);
    };
    let hello = Greeting::decode(&hello)?;
    if hello.incarnation != 0 && hello.incarnation != own {
        greet(WRONG_INCARNATION, 0).await?;
        return Err(SessionEnd::WrongIncarnation {
            expected: hello.incarnation,
        });
    }
    let rights = match user {
        User::Engine => Rights::Engine,
        User::Reader => match let_in(stream, shared).await {
            Ok(permit) => Rights::Read(permit),
            Err(SessionEnd::Ticket(refusal)) => {
                greet(REFUSED, refusal.code()).await?;
                return Err(SessionEnd::Ticket(refusal));
            }
            Err(end) => return Err(end),
        },
    };
    greet(WELCOME, 0).await?;
    Ok(rights)
}

/// Whether a reader is let in, and for what.
async fn let_in(stream: &UnixStream, shared: &Shared) -> Result<Option<Permit>, SessionEnd> {
    match shared.gate.needs() {
        Needs::Nothing => return Ok(None),
        Needs::Patience => {
            let refusal = shared.gate.refuse(Refusal::NotReady);
            return Err(SessionEnd::Ticket(refusal));
        }
        Needs::Ticket => {}
    }
    let nonce = Nonce::random()?;
    let question = [&greeting(PROVE, 0, shared)[..], &nonce.0].concat();
    channel::send(stream, &question, &[]).await?;
    let bearer = receive_bearer(stream).await?;
    let checked = shared
        .gate
        .check(&bearer.ticket)
        .map_err(SessionEnd::Ticket)?;
    let permit = shared
        .gate
        .admit(checked, Purpose::Descriptors, &nonce, &bearer.proof);
    permit.map(Some).map_err(SessionEnd::Ticket)
}

async fn receive_bearer(stream: &UnixStream) -> Result<Bearer, SessionEnd> {
    match channel::receive(stream).await? {
        Some((bearer, _)) => Ok(Bearer::decode(&bearer)?),
        None => Err(SessionEnd::Closed),
    }
}

/// Goes on with a later ticket, or as before.
async fn renew(
    stream: &UnixStream,
    shared: &Shared,
    rights: &mut Rights,
) -> Result<Reply, SessionEnd> {
    let bearer = timeout(HANDSHAKE_TIMEOUT, receive_bearer(stream))
        .await
        .map_err(|_| SessionEnd::TooSlow)??;
    let Rights::Read(Some(permit)) = rights else {
        // It was let in without one.
        return Ok(Reply::Renewed);
    };
    match shared.gate.renew(permit, &bearer.ticket) {
        Ok(renewed) => {
            *permit = renewed;
            Ok(Reply::Renewed)
        }
        Err(refusal) => Ok(Reply::Refused(refusal)),
    }
}

fn user(uid: u32, options: &ShmOptions) -> Option<User> {
    if uid == rustix::process::geteuid().as_raw() || options.engine_uids.contains(&uid) {
        Some(User::Engine)
    } else if options.reader_uids.contains(&uid) {
        Some(User::Reader)
    } else {
        None
    }
}

fn answer(
    command: Command,
    descriptors: Vec<OwnedFd>,
    rights: &Rights,
    shared: &Shared,
    connection: u64,
) -> Result<(Reply, Vec<OwnedFd>), SessionEnd> {
    let is_engine = matches!(rights, Rights::Engine);
    match command {
        Command::Deposit => {
            let found = descriptors.len();
            let mut descriptors = descriptors.into_iter();
            let (Some(descriptor), None) = (descriptors.next(), descriptors.next()) else {
                return Err(ShmFrameError::Descriptors { found, expected: 1 }.into());
            };
            if !is_engine {
                return Ok((Reply::NotAllowed, Vec::new()));
            }
            let reply = match shared.deposits.put(connection, descriptor) {
                Some(token) => Reply::Deposited { token },
                None => Reply::TooManyDeposits,
            };
            Ok((reply, Vec::new()))
        }
        Command::Open {
            region,
            incarnation,
            writable,
        } => {
            let own = shared.catalog.incarnation().get();
            if incarnation != own {
                return Ok((Reply::WrongIncarnation { found: own }, Vec::new()));
            }
            if writable && !is_engine {
                return Ok((Reply::NotAllowed, Vec::new()));
            }
            let permit = match rights {
                Rights::Read(permit) => permit.as_ref(),
                Rights::Engine => None,
            };
            if matches!(rights, Rights::Read(None)) && shared.gate.needs() == Needs::Ticket {
                return Err(SessionEnd::TicketNeeded);
            }
            Ok(open(shared, region, writable, permit))
        }
        // It has a bearer behind it.
        Command::Renew => Err(ShmFrameError::Reserved.into()),
    }
}

fn open(
    shared: &Shared,
    id: RegionId,
    writable: bool,
    permit: Option<&Permit>,
) -> (Reply, Vec<OwnedFd>) {
    let Some(region) = shared.catalog.get(id) else {
        return (Reply::RegionGone, Vec::new());
    };
    if permit.is_some_and(|permit| !permit.covers(&region)) {
        let refusal = shared.gate.refuse(Refusal::OtherNamespace);
        return (Reply::Refused(refusal), Vec::new());
    }
    let Some(memory) = region.memory.host() else {
        return (Reply::NotMappable, Vec::new());
    };
    let descriptors = || -> Result<Vec<OwnedFd>, MemoryError> {
        let data = if writable {
            memory.descriptor()?
        } else {
            memory.read_only_descriptor()?
        };
        Ok(vec![data, region.generations.descriptor()?])
    };
    match descriptors() {
        Ok(descriptors) => {
            shared.handed_out.fetch_add(1, Ordering::Relaxed);
            let reply = Reply::Opened {
                data_bytes: memory.len(),
                slots: region.generations.slots(),
            };
            (reply, descriptors)
        }
        Err(error) => {
            tracing::warn!(region = %id, %error, "cannot hand out a region");
            (Reply::Failed, Vec::new())
        }
    }
}
