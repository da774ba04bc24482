//! What each refusal looks like to a caller: one place.

use kvferry_proto::{HashError, InvalidMessage, Reason, refusal};
use tonic::{Code, Status};

use crate::{
    directory::{
        BoundReached, ClaimError, CloseCause, CreateNamespaceError, DeleteNamespaceError,
        LocateError, LocationError, NamespaceUnknown, NodeUnknown, ProtocolError, RegionRefusal,
        WatchEnd, WatchError,
    },
    replication::TooManyHot,
};

pub(super) fn bound(error: &BoundReached) -> Status {
    refusal(
        Code::ResourceExhausted,
        Reason::BoundReached,
        error.to_string(),
    )
}

pub(super) fn namespace_unknown(error: &NamespaceUnknown) -> Status {
    refusal(Code::NotFound, Reason::NamespaceUnknown, error.to_string())
}

pub(super) fn node_unknown(error: &NodeUnknown) -> Status {
    refusal(Code::NotFound, Reason::NodeUnknown, error.to_string())
}

pub(super) fn create_namespace(error: &CreateNamespaceError) -> Status {
    match error {
        CreateNamespaceError::Mismatch(text) => {
            refusal(Code::FailedPrecondition, Reason::NamespaceMismatch, text)
        }
        CreateNamespaceError::Bound(error) => bound(error),
    }
}

pub(super) fn delete_namespace(error: &DeleteNamespaceError) -> Status {
    match error {
        DeleteNamespaceError::Unknown(error) => namespace_unknown(error),
        DeleteNamespaceError::InUse { .. } => refusal(
            Code::FailedPrecondition,
            Reason::NamespaceInUse,
            error.to_string(),
        ),
    }
}

pub(super) fn locate(error: &LocateError) -> Status {
    let text = error.to_string();
    match error {
        LocateError::NamespaceUnknown(error) => namespace_unknown(error),
        LocateError::HashLength(_) => refusal(Code::InvalidArgument, Reason::HashLength, text),
        LocateError::TooManyCandidates { .. }
        | LocateError::TooManyOwners
        | LocateError::TooManyLocations => {
            refusal(Code::ResourceExhausted, Reason::BoundReached, text)
        }
    }
}

pub(super) fn too_many_hot(error: &TooManyHot) -> Status {
    refusal(
        Code::ResourceExhausted,
        Reason::BoundReached,
        error.to_string(),
    )
}

pub(super) fn watch(error: &WatchError) -> Status {
    let reason = match error {
        WatchError::NamespaceUnknown(error) => return namespace_unknown(error),
        WatchError::Bound(error) => return bound(error),
        WatchError::Restarted { .. } => Reason::WatchRestarted,
        WatchError::TooOld { .. } => Reason::WatchTooOld,
    };
    refusal(Code::OutOfRange, reason, error.to_string())
}

pub(super) fn watch_end(end: WatchEnd) -> Status {
    let (code, reason) = match end {
        WatchEnd::TooSlow => (Code::ResourceExhausted, Reason::WatchTooSlow),
        WatchEnd::Deleted => (Code::NotFound, Reason::NamespaceUnknown),
    };
    refusal(code, reason, end.to_string())
}

/// The watcher does not take what it is sent.
pub(super) fn slow_watcher(within_ms: u128) -> Status {
    refusal(
        Code::ResourceExhausted,
        Reason::WatchTooSlow,
        format!("nothing was read for {within_ms} ms: go on from the last seq, or start anew"),
    )
}

pub(super) fn claim(error: &ClaimError) -> Status {
    let text = error.to_string();
    match error {
        ClaimError::NamespaceUnknown(error) => namespace_unknown(error),
        ClaimError::HashLength(_) => refusal(Code::InvalidArgument, Reason::HashLength, text),
        ClaimError::NodeUnknown(error) => node_unknown(error),
        ClaimError::Fenced { .. } => refusal(Code::FailedPrecondition, Reason::Fenced, text),
        ClaimError::Bound(error) => bound(error),
    }
}

pub(super) fn location(error: &LocationError) -> Status {
    match error {
        LocationError::NamespaceUnknown(error) => namespace_unknown(error),
        LocationError::HashLength(_) => {
            refusal(Code::InvalidArgument, Reason::HashLength, error.to_string())
        }
        LocationError::Bound(error) => bound(error),
    }
}

pub(super) fn region(refusal: &RegionRefusal) -> Reason {
    match refusal {
        RegionRefusal::NamespaceMismatch(_) => Reason::NamespaceMismatch,
        RegionRefusal::Geometry(_) => Reason::InvalidArgument,
        RegionRefusal::Bound(_) => Reason::BoundReached,
        RegionRefusal::NamespaceDeleted { .. } => Reason::NamespaceUnknown,
        RegionRefusal::Denied(_) => Reason::PermissionDenied,
    }
}

/// None where the stream ends without an error.
pub(super) fn close(cause: &CloseCause) -> Option<Status> {
    let (code, reason) = match cause {
        CloseCause::Goodbye => return None,
        CloseCause::Fenced { .. } | CloseCause::OldIncarnation { .. } => {
            (Code::FailedPrecondition, Reason::Fenced)
        }
        // The agent has gone on already; what is left of this stream may end as it likes.
        CloseCause::Replaced { .. } => (Code::Aborted, Reason::Fenced),
        CloseCause::Silent { .. } => (Code::Unavailable, Reason::Deadline),
        CloseCause::Bound(error) => return Some(bound(error)),
        CloseCause::Protocol(error) => (Code::InvalidArgument, protocol(error)),
    };
    Some(refusal(code, reason, cause.to_string()))
}

fn protocol(error: &ProtocolError) -> Reason {
    match error {
        ProtocolError::RegionUnknown { .. } => Reason::RegionUnknown,
        ProtocolError::SlotOutOfRegion { .. } => Reason::SlotOutOfRegion,
        ProtocolError::HashLength { .. } => Reason::HashLength,
        ProtocolError::SecondHello
        | ProtocolError::RegionDeclaredTwice { .. }
        | ProtocolError::RegionChanged { .. }
        | ProtocolError::NotSealed { .. }
        | ProtocolError::Ragged { .. }
        | ProtocolError::InventoryNotStarted
        | ProtocolError::InventorySeq { .. } => Reason::InvalidArgument,
    }
}

/// The agent does not take what it is sent.
pub(super) fn slow_agent() -> Status {
    refusal(
        Code::ResourceExhausted,
        Reason::BoundReached,
        "the agent does not read its session; connect again and resync",
    )
}

pub(super) fn too_many_sessions(max: usize) -> Status {
    refusal(
        Code::ResourceExhausted,
        Reason::BoundReached,
        format!("the bound of {max} sessions is reached: try again later, or raise max_sessions"),
    )
}

pub(super) fn shutting_down() -> Status {
    refusal(
        Code::Unavailable,
        Reason::ShuttingDown,
        "the coordinator is shutting down; connect again after a pause",
    )
}

pub(super) fn no_hello(within_ms: u128) -> Status {
    refusal(
        Code::DeadlineExceeded,
        Reason::Deadline,
        format!("no hello within {within_ms} ms"),
    )
}

pub(super) fn hello_first() -> Status {
    refusal(
        Code::InvalidArgument,
        Reason::InvalidArgument,
        "a session starts with hello",
    )
}

/// What the policy says of the caller is not what it said when the stream began.
pub(super) fn revoked() -> Status {
    refusal(
        Code::PermissionDenied,
        Reason::PermissionDenied,
        "the coordinator's policy has changed for this caller: connect again to be asked by the new one",
    )
}

/// Tonic says only that a message is too long; say what to do.
pub(super) fn inbound(status: Status) -> Status {
    if status.code() == Code::OutOfRange {
        return refusal(
            Code::ResourceExhausted,
            Reason::BoundReached,
            format!("{}; split it", status.message()),
        );
    }
    status
}

/// What cannot be parsed. Too much in one message is a bound; the rest is nonsense.
pub(super) fn message(error: impl Into<InvalidMessage>) -> Status {
    let text = match error.into() {
        error @ InvalidMessage::OutOfBounds { .. } => format!("{error}; split it"),
        error @ InvalidMessage::Hash(HashError::TooMany { .. }) => error.to_string(),
        other => return other.into(),
    };
    refusal(Code::ResourceExhausted, Reason::BoundReached, text)
}
