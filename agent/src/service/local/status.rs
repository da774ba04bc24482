//! What the store and the coordinators refuse, as statuses: the one place where codes and reasons are
//! chosen.

use kvferry_memory::MemoryError;
use kvferry_proto::{GeometryError, HashError, InvalidMessage, Reason, refusal};
use tonic::{Code, Status};

use super::imports::{NotAdmitted, StillWritten};
use crate::{
    coordinators::CoordinatorError,
    gpu::GpuError,
    region::{
        AbortError, EvictError, PinError, RegisterError, ReleaseError, ReservePoolError,
        ReserveSlotsError, SealError, UnregisterError,
    },
};

/// Turns an operation's error into a status.
pub(crate) trait IntoStatus {
    fn into_status(self) -> Status;
}

fn say(code: Code, reason: Reason, error: &impl ToString) -> Status {
    refusal(code, reason, error.to_string())
}

impl IntoStatus for RegisterError {
    fn into_status(self) -> Status {
        let (code, reason) = match &self {
            Self::NamespaceMismatch { .. } => (Code::FailedPrecondition, Reason::NamespaceMismatch),
            Self::PoolExists { .. } => (Code::AlreadyExists, Reason::PoolExists),
            Self::PoolTooSmall { .. } => (Code::InvalidArgument, Reason::InvalidArgument),
            Self::Geometry(GeometryError::OutOfMemory { .. }) => {
                (Code::InvalidArgument, Reason::SpanOutOfRegion)
            }
            Self::Geometry(_) => (Code::InvalidArgument, Reason::InvalidArgument),
            Self::Memory(_) => (Code::FailedPrecondition, Reason::Memory),
            Self::BoundReached { .. } | Self::RegionIdsUsedUp => {
                (Code::ResourceExhausted, Reason::BoundReached)
            }
        };
        say(code, reason, &self)
    }
}

impl IntoStatus for MemoryError {
    fn into_status(self) -> Status {
        say(Code::FailedPrecondition, Reason::Memory, &self)
    }
}

impl IntoStatus for GpuError {
    fn into_status(self) -> Status {
        let (code, reason) = match &self {
            Self::NoLibrary(_) | Self::NoDevice(_) | Self::Context(_) | Self::Lost { .. } => {
                (Code::FailedPrecondition, Reason::GpuUnavailable)
            }
            Self::HandleRefused(_) => (Code::FailedPrecondition, Reason::GpuHandle),
            Self::OutOfRange(_) => (Code::InvalidArgument, Reason::SpanOutOfRegion),
            Self::Staging(_) | Self::Thread(_) => (Code::ResourceExhausted, Reason::Memory),
        };
        say(code, reason, &self)
    }
}

impl IntoStatus for NotAdmitted {
    fn into_status(self) -> Status {
        let (code, reason) = match &self {
            Self::Covered { .. } => (Code::AlreadyExists, Reason::MemoryInUse),
            Self::Stopping => (Code::Unavailable, Reason::ShuttingDown),
        };
        say(code, reason, &self)
    }
}

impl From<NotAdmitted> for Status {
    fn from(error: NotAdmitted) -> Self {
        error.into_status()
    }
}

impl IntoStatus for StillWritten {
    fn into_status(self) -> Status {
        say(Code::DeadlineExceeded, Reason::MemoryInUse, &self)
    }
}

impl IntoStatus for UnregisterError {
    fn into_status(self) -> Status {
        say(Code::NotFound, Reason::RegionUnknown, &self)
    }
}

impl IntoStatus for ReservePoolError {
    fn into_status(self) -> Status {
        let (code, reason) = match &self {
            Self::UnknownRegion { .. } => (Code::NotFound, Reason::RegionUnknown),
            Self::NotAPool { .. } => (Code::InvalidArgument, Reason::InvalidArgument),
            Self::PoolFull { .. } => (Code::ResourceExhausted, Reason::PoolFull),
        };
        say(code, reason, &self)
    }
}

impl IntoStatus for ReserveSlotsError {
    fn into_status(self) -> Status {
        let (code, reason) = match &self {
            Self::UnknownRegion { .. } => (Code::NotFound, Reason::RegionUnknown),
            Self::IsAPool { .. } | Self::SlotTwice { .. } => {
                (Code::InvalidArgument, Reason::InvalidArgument)
            }
            Self::SlotOutOfRange { .. } => (Code::InvalidArgument, Reason::SlotOutOfRegion),
            Self::SlotPinned { .. } | Self::SlotBusy { .. } => {
                (Code::FailedPrecondition, Reason::SlotBusy)
            }
        };
        say(code, reason, &self)
    }
}

impl IntoStatus for SealError {
    fn into_status(self) -> Status {
        let (code, reason) = match &self {
            Self::UnknownRegion { .. } => (Code::NotFound, Reason::RegionUnknown),
            Self::Columns { .. } | Self::SlotTwice { .. } => {
                (Code::InvalidArgument, Reason::InvalidArgument)
            }
            Self::HashLength { .. } => (Code::InvalidArgument, Reason::HashLength),
            Self::SlotNotReserved { .. } => (Code::FailedPrecondition, Reason::SlotNotReserved),
            Self::AlreadySealed { .. } => (Code::FailedPrecondition, Reason::SlotAlreadySealed),
            Self::Unreadable { .. } => (Code::FailedPrecondition, Reason::Memory),
        };
        say(code, reason, &self)
    }
}

impl IntoStatus for AbortError {
    fn into_status(self) -> Status {
        let (code, reason) = match &self {
            Self::UnknownRegion { .. } => (Code::NotFound, Reason::RegionUnknown),
            Self::SlotNotReserved { .. } => (Code::FailedPrecondition, Reason::SlotNotReserved),
        };
        say(code, reason, &self)
    }
}

impl IntoStatus for PinError {
    fn into_status(self) -> Status {
        let (code, reason) = match &self {
            Self::UnknownNamespace { .. } => (Code::NotFound, Reason::NamespaceUnknown),
            Self::UnknownPin { .. } => (Code::NotFound, Reason::PinUnknown),
            Self::TtlTooLong { .. } => (Code::InvalidArgument, Reason::InvalidArgument),
            Self::TooManyPins { .. } | Self::TooManyPinnedBlocks { .. } => {
                (Code::ResourceExhausted, Reason::BoundReached)
            }
        };
        say(code, reason, &self)
    }
}

impl IntoStatus for ReleaseError {
    fn into_status(self) -> Status {
        say(Code::NotFound, Reason::PinUnknown, &self)
    }
}

impl IntoStatus for EvictError {
    fn into_status(self) -> Status {
        say(Code::NotFound, Reason::NamespaceUnknown, &self)
    }
}

impl IntoStatus for CoordinatorError {
    fn into_status(self) -> Status {
        match &self {
            Self::Unreachable { .. } | Self::Nonsense { .. } => {
                say(Code::Unavailable, Reason::CoordinatorUnreachable, &self)
            }
            Self::NamespaceUnknown { .. } => say(Code::NotFound, Reason::NamespaceUnknown, &self),
            Self::Refused { reason, .. } => {
                let code = match reason {
                    Reason::PermissionDenied => Code::PermissionDenied,
                    Reason::Unauthenticated => Code::Unauthenticated,
                    _ => Code::FailedPrecondition,
                };
                say(code, *reason, &self)
            }
        }
    }
}

impl IntoStatus for HashError {
    fn into_status(self) -> Status {
        InvalidMessage::from(self).into()
    }
}

/// Shorthand for results.
pub(crate) trait OrStatus<T> {
    fn or_status(self) -> Result<T, Status>;
}

impl<T, E: IntoStatus> OrStatus<T> for Result<T, E> {
    #[allow(clippy::result_large_err)] // tonic's signature
    fn or_status(self) -> Result<T, Status> {
        self.map_err(IntoStatus::into_status)
    }
}
