//! Why READs, ways and links end.

use std::sync::Arc;

use kvferry_ibverbs::{PostError, WorkError, WorkStatus};
use kvferry_security::ticket::Refusal;

use super::owner_client::CallError;
use crate::transport::ConnectError;

/// Why a way to the owner (a device here, a device there) is dead: another one is needed.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum PathFault {
    /// A READ ended so.
    #[error("{0}")]
    Status(WorkStatus),
    /// No READ could be posted.
    #[error(transparent)]
    Post(Arc<PostError>),
    /// The port on this side.
    #[error("its device's port is down")]
    DeviceDown,
    /// No READ says what it was.
    #[error("its queue pair failed")]
    PairFailed,
}

/// Why a queue pair was closed: what to do next depends on it.
#[derive(Debug, Clone)]
pub(super) enum Cause {
    /// This side closed it, to settle a read or to end the link: the path is good.
    Ours,
    /// The owner refused a key: the path is good, and the key is void.
    Key,
    /// The way to the owner: nothing goes over it any more.
    Path(PathFault),
}

impl From<WorkStatus> for Cause {
    fn from(status: WorkStatus) -> Self {
        match status {
            WorkStatus::RemoteAccess => Self::Key,
            other => Self::Path(PathFault::Status(other)),
        }
    }
}

/// Why a link never completes a read again.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum Loss {
    /// Nobody has it any more.
    #[error("the link was dropped")]
    Dropped,
    /// The last way is dead.
    #[error(transparent)]
    Path(PathFault),
    /// No way is left, and a new one cannot be had.
    #[error(transparent)]
    NotReconnected(ConnectError),
    /// The owner does not know us: it was stopped, or we were silent for too long.
    #[error("the owner has ended the session")]
    SessionEnded,
    /// It may be gone.
    #[error("the owner does not answer: {0}")]
    OwnerSilent(CallError),
    /// What RDMA cannot reach was read over another transport, whose link is gone.
    #[error("the link behind it is lost")]
    Behind,
    /// Its ticket does not let us read what is asked for: the next link begins with another.
    #[error("the owner refuses the ticket: {0}")]
    Ticket(Refusal),
    /// What it brings is not what was sealed.
    #[error("wrong bytes came over it")]
    WrongBytes,
}

/// Why a READ is not done again.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadFault {
    /// There is nothing left to do it on.
    #[error(transparent)]
    Lost(#[from] Loss),
    /// It was tried often enough.
    #[error(transparent)]
    Work(#[from] WorkError),
    /// Its span is not where the owner's or our own registration is.
    #[error("a span is outside what was registered")]
    Outside,
    /// Every device that is left knows not the region, or not the memory.
    #[error("no device is left that knows the region")]
    NoDevice,
}
