//! One connection at the owner's descriptor socket.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use kvferry_memory::MemoryError;
use kvferry_proto::RegionId;
use tokio::{net::UnixStream, time::timeout};

use super::{
    channel,
    deposit::DepositBox,
    frame::{
        BUSY, Command, FRAME_BYTES, Greeting, NOT_ALLOWED, Reply, ShmFrameError, WELCOME,
        WRONG_INCARNATION,
    },
    server::ShmOptions,
};
use crate::region::RegionCatalog;

/// Until a complete hello; everybody is on the same host.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Until a client has taken a reply, which always fits its receive buffer unless it floods us.
const REPLY_TIMEOUT: Duration = Duration::from_secs(5);

/// What all connections share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) catalog: Arc<RegionCatalog>,
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
    #[error("the peer sent what is no frame: {0}")]
    Malformed(#[from] ShmFrameError),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// What a user may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rights {
    Read,
    Engine,
}

/// Serves a connection until it ends.
pub(super) async fn run(stream: UnixStream, shared: Arc<Shared>, connection: u64) {
    let end = match serve(&stream, &shared, connection).await {
        Ok(never) => match never {},
        Err(end) => end,
    };
    shared.deposits.expire(connection);
    match end {
        SessionEnd::Closed | SessionEnd::WrongIncarnation { .. } => {
            tracing::debug!(connection, "descriptor connection closed: {end}");
        }
        SessionEnd::NotAllowed { .. } => {
            tracing::warn!(connection, "descriptor connection refused: {end}");
        }
        _ => tracing::info!(connection, "descriptor connection closed: {end}"),
    }
}

/// Tells a client that there are too many.
pub(super) fn refuse(stream: &UnixStream, shared: &Shared) {
    let _ = stream.try_write(&greeting(BUSY, shared));
}

fn greeting(status: u8, shared: &Shared) -> [u8; FRAME_BYTES] {
    Greeting {
        status,
        incarnation: shared.catalog.incarnation().get(),
    }
    .encode()
}

async fn serve(
    stream: &UnixStream,
    shared: &Shared,
    connection: u64,
) -> Result<std::convert::Infallible, SessionEnd> {
    let rights = timeout(HANDSHAKE_TIMEOUT, handshake(stream, shared))
        .await
        .map_err(|_| SessionEnd::TooSlow)??;
    loop {
        // Half a command may stay half: it holds this connection and nothing else.
        let Some((frame, descriptors)) = channel::receive(stream).await? else {
            return Err(SessionEnd::Closed);
        };
        let (reply, handed) = answer(
            Command::decode(&frame)?,
            descriptors,
            rights,
            shared,
            connection,
        )?;
        let beside: Vec<_> = handed.iter().map(AsFd::as_fd).collect();
        timeout(
            REPLY_TIMEOUT,
            channel::send(stream, &reply.encode(), &beside),
        )
        .await
        .map_err(|_| SessionEnd::TooSlow)??;
    }
}

async fn handshake(stream: &UnixStream, shared: &Shared) -> Result<Rights, SessionEnd> {
    let uid = stream.peer_cred()?.uid();
    let Some((hello, _)) = channel::receive(stream).await? else {
        return Err(SessionEnd::Closed);
    };
    let hello = Greeting::decode(&hello)?;
    let own = shared.catalog.incarnation().get();
    let rights = rights(uid, &shared.options);
    let (status, result) = match rights {
        None => (NOT_ALLOWED, Err(SessionEnd::NotAllowed { uid })),
        Some(_) if hello.incarnation != 0 && hello.incarnation != own => (
            WRONG_INCARNATION,
            Err(SessionEnd::WrongIncarnation {
                expected: hello.incarnation,
            }),
        ),
        Some(rights) => (WELCOME, Ok(rights)),
    };
    channel::send(stream, &greeting(status, shared), &[]).await?;
    result
}

fn rights(uid: u32, options: &ShmOptions) -> Option<Rights> {
    if uid == rustix::process::geteuid().as_raw() || options.engine_uids.contains(&uid) {
        Some(Rights::Engine)
    } else if options.reader_uids.contains(&uid) {
        Some(Rights::Read)
    } else {
        None
    }
}

fn answer(
    command: Command,
    descriptors: Vec<OwnedFd>,
    rights: Rights,
    shared: &Shared,
    connection: u64,
) -> Result<(Reply, Vec<OwnedFd>), SessionEnd> {
    match command {
        Command::Deposit => {
            let found = descriptors.len();
            let mut descriptors = descriptors.into_iter();
            let (Some(descriptor), None) = (descriptors.next(), descriptors.next()) else {
                return Err(ShmFrameError::Descriptors { found, expected: 1 }.into());
            };
            if rights != Rights::Engine {
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
            Ok(if incarnation != own {
                (Reply::WrongIncarnation { found: own }, Vec::new())
            } else if writable && rights != Rights::Engine {
                (Reply::NotAllowed, Vec::new())
            } else {
                open(shared, region, writable)
            })
        }
    }
}

fn open(shared: &Shared, id: RegionId, writable: bool) -> (Reply, Vec<OwnedFd>) {
    let Some(region) = shared.catalog.get(id) else {
        return (Reply::RegionGone, Vec::new());
    };
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
