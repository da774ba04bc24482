//! The values labels may have.

use kvferry_observe::{Label, label};

use crate::{
    directory::{CloseCause, RegionRefusal, RemovalCause},
    replication::{DrainState, Verdict},
    sources::WorkerState,
};

label! {
    /// A method, as it is called; those of services beside Coordinator with their service.
    pub(crate) enum Called("method") {
        Locate = "Locate",
        Session = "Session",
        CreateNamespace = "CreateNamespace",
        ListNamespaces = "ListNamespaces",
        DescribeNamespace = "DescribeNamespace",
        DeleteNamespace = "DeleteNamespace",
        ListNodes = "ListNodes",
        DescribeNode = "DescribeNode",
        DrainNode = "DrainNode",
        Claim = "Claims/Claim",
        RenewClaims = "Claims/RenewClaims",
        ReleaseClaims = "Claims/ReleaseClaims",
        ListClaims = "Claims/ListClaims",
        PutLocations = "Locations/PutLocations",
        RemoveLocations = "Locations/RemoveLocations",
        FindLocations = "Locations/FindLocations",
        SetNamespacePolicy = "Locations/SetNamespacePolicy",
        GetNamespacePolicy = "Locations/GetNamespacePolicy",
        IssueTicket = "Tickets/IssueTicket",
        Watch = "Watch/Watch",
        SetCopies = "Replication/SetCopies",
        WantCopies = "Replication/WantCopies",
        DescribeCopies = "Replication/DescribeCopies",
        SourceAnnounce = "Sources/Announce",
        SourcePublish = "Sources/Publish",
        SourceReport = "Sources/Report",
        SourceList = "Sources/List",
        SourceGet = "Sources/Get",
        SourceStatus = "Sources/Status",
        SourceRemove = "Sources/Remove",
        /// One that this version counts under no name of its own, or does not have.
        Other = "other",
    }
}

impl Called {
    /// Of a request's path.
    pub(crate) fn of(path: &str) -> Self {
        let Some(called) = path.strip_prefix("/kvferry.v1.") else {
            return Self::Other;
        };
        let called = called.strip_prefix("Coordinator/").unwrap_or(called);
        let known = Self::ALL.iter().find(|known| known.as_str() == called);
        known.copied().unwrap_or(Self::Other)
    }
}

label! {
    /// How a call ended: gRPC's codes, those together that ask the same of an operator.
    pub(super) enum Outcome("outcome") {
        Ok = "ok",
        /// The caller is wrong, or asks for what is not there.
        Refused = "refused",
        /// A bound of this coordinator was reached.
        Exhausted = "exhausted",
        /// It goes away, or the caller's time was up.
        Unavailable = "unavailable",
        /// Anything else: a defect.
        Failed = "failed",
    }
}

impl Outcome {
    /// Of a status code as it travels.
    pub(super) fn of(code: &[u8]) -> Self {
        match code {
            b"0" => Self::Ok,
            // Invalid argument, not found, already exists, denied, precondition, out of range,
            // unimplemented, unauthenticated.
            b"3" | b"5" | b"6" | b"7" | b"9" | b"11" | b"12" | b"16" => Self::Refused,
            b"8" => Self::Exhausted,
            // Cancelled, deadline, aborted, unavailable.
            b"1" | b"4" | b"10" | b"14" => Self::Unavailable,
            _ => Self::Failed,
        }
    }
}

label! {
    /// What became of a request for a ticket.
    pub(crate) enum TicketOutcome("outcome") {
        Issued = "issued",
        /// The caller has no right to it, or asks for what cannot be.
        Denied = "denied",
        /// Nothing to sign with.
        NoKey = "no_key",
    }
}

label! {
    /// What agents say.
    pub(crate) enum Said("kind") {
        Hello = "hello",
        Delta = "delta",
        Heartbeat = "heartbeat",
        Inventory = "inventory",
        Goodbye = "goodbye",
    }
}

label! {
    /// Why a session ended.
    pub(crate) enum Ended("cause") {
        /// The agent said goodbye.
        Goodbye = "goodbye",
        /// A later incarnation took over.
        Fenced = "fenced",
        /// An incarnation that is older than the known one.
        OldIncarnation = "old_incarnation",
        /// The same agent came back on a newer stream.
        Replaced = "replaced",
        /// Purged for its silence.
        Silent = "silent",
        /// No room.
        Bound = "bound",
        /// It broke the protocol.
        Protocol = "protocol",
        /// It does not read what it is told.
        Slow = "slow",
        /// The policy has changed for it.
        Revoked = "revoked",
        /// The stream went away.
        Lost = "lost",
    }
}

impl From<&CloseCause> for Ended {
    fn from(cause: &CloseCause) -> Self {
        match cause {
            CloseCause::Goodbye => Self::Goodbye,
            CloseCause::Fenced { .. } => Self::Fenced,
            CloseCause::OldIncarnation { .. } => Self::OldIncarnation,
            CloseCause::Replaced { .. } => Self::Replaced,
            CloseCause::Silent { .. } => Self::Silent,
            CloseCause::Bound(_) => Self::Bound,
            CloseCause::Protocol(_) => Self::Protocol,
        }
    }
}

label! {
    /// Why an agent is asked for a full inventory.
    pub(super) enum Resync("reason") {
        /// Its hello does not meet what is known: this coordinator or that agent was restarted.
        Hello = "hello",
        /// A delta was missing.
        Gap = "gap",
        /// A region of it was refused that might not be any more.
        Refused = "refused",
    }
}

label! {
    /// Why a node was forgotten.
    pub(super) enum Removed("cause") {
        Goodbye = "goodbye",
        Fenced = "fenced",
        Silent = "silent",
    }
}

impl From<RemovalCause> for Removed {
    fn from(cause: RemovalCause) -> Self {
        match cause {
            RemovalCause::Goodbye => Self::Goodbye,
            RemovalCause::Fenced => Self::Fenced,
            RemovalCause::Silent => Self::Silent,
        }
    }
}

label! {
    /// Why a region was refused.
    pub(super) enum Refused("reason") {
        /// Its namespace has other blocks.
        Mismatch = "mismatch",
        /// Its planes make no block.
        Geometry = "geometry",
        /// No room.
        Bound = "bound",
        /// Its namespace was deleted.
        Deleted = "deleted",
        /// Its agent has no right to publish there.
        Denied = "denied",
    }
}

impl From<&RegionRefusal> for Refused {
    fn from(refusal: &RegionRefusal) -> Self {
        match refusal {
            RegionRefusal::NamespaceMismatch(_) => Self::Mismatch,
            RegionRefusal::Geometry(_) => Self::Geometry,
            RegionRefusal::Bound(_) => Self::Bound,
            RegionRefusal::NamespaceDeleted { .. } => Self::Deleted,
            RegionRefusal::Denied(_) => Self::Denied,
        }
    }
}

label! {
    /// Why a watcher is told no more.
    pub(crate) enum Unwatched("reason") {
        /// It went.
        Left = "left",
        /// It took nothing that it was sent.
        Stuck = "stuck",
        /// It took less than what changed, and what it has not heard is not kept any more.
        Behind = "behind",
        /// Its namespace was deleted.
        NamespaceDeleted = "namespace_deleted",
        /// The policy has changed for it.
        Revoked = "revoked",
        /// The coordinator goes away.
        ShuttingDown = "shutting_down",
    }
}

label! {
    /// What came of an order to copy blocks.
    pub(crate) enum Ordered("outcome") {
        /// The agent tried; how much of it failed is counted in copies.
        Done = "done",
        /// It has no free slot.
        Full = "full",
        /// It has enough to do, or does not read what it is told.
        Busy = "busy",
        /// It takes no copies.
        Refused = "refused",
        /// Nothing was heard in time.
        TimedOut = "timed_out",
        /// Its session ended.
        SessionLost = "session_lost",
    }
}

impl From<Verdict> for Ordered {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Done => Self::Done,
            Verdict::Full => Self::Full,
            Verdict::Busy => Self::Busy,
            Verdict::Refused => Self::Refused,
        }
    }
}

label! {
    /// What came of a copy that was ordered.
    pub(crate) enum Copied("outcome") {
        Made = "made",
        /// Tried elsewhere.
        Failed = "failed",
    }
}

label! {
    /// How far a drain is.
    pub(crate) enum Draining("state") {
        Moving = "moving",
        Moved = "moved",
        /// Its deadline passed, and blocks are left.
        Expired = "expired",
    }
}

impl From<DrainState> for Draining {
    fn from(state: DrainState) -> Self {
        match state {
            DrainState::Moving => Self::Moving,
            DrainState::Moved => Self::Moved,
            DrainState::Expired => Self::Expired,
        }
    }
}

label! {
    /// How a worker of a source stands.
    pub(crate) enum Standing("state") {
        Initialising = "initialising",
        Ready = "ready",
        Stale = "stale",
        Gone = "gone",
    }
}

impl From<WorkerState> for Standing {
    fn from(state: WorkerState) -> Self {
        match state {
            WorkerState::Initialising => Self::Initialising,
            WorkerState::Ready => Self::Ready,
            WorkerState::Stale(_) => Self::Stale,
            WorkerState::Gone(_) => Self::Gone,
        }
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    #[test]
    fn every_method_of_a_coordinator_has_a_name() {
        let files = [
            include_str!("../../../proto/proto/kvferry/v1/coordinator.proto"),
            include_str!("../../../proto/proto/kvferry/v1/claims.proto"),
            include_str!("../../../proto/proto/kvferry/v1/locations.proto"),
            include_str!("../../../proto/proto/kvferry/v1/watch.proto"),
            include_str!("../../../proto/proto/kvferry/v1/replication.proto"),
            include_str!("../../../proto/proto/kvferry/v1/sources.proto"),
            include_str!("../../../proto/proto/kvferry/v1/tickets.proto"),
        ];
        let mut named = 0;
        for file in files {
            let mut service = "";
            for line in file.lines().map(str::trim) {
                if let Some(name) = line.strip_prefix("service ") {
                    service = name.trim_end_matches(" {");
                }
                let method = line
                    .strip_prefix("rpc ")
                    .and_then(|rpc| rpc.split_once('('));
                // An agent serves those.
                let Some((method, _)) = method.filter(|_| !service.starts_with("Local")) else {
                    continue;
                };
                let name = match service {
                    "Coordinator" => method.to_owned(),
                    service => format!("{service}/{method}"),
                };
                let called = Called::of(&format!("/kvferry.v1.{service}/{method}"));
                assert_eq!(called.as_str(), name);
                named += 1;
            }
        }
        assert_eq!(named + 1, Called::ALL.len(), "and one for all others");
        for other in ["/kvferry.v1.Coordinator/Frobnicate", "/other/Locate"] {
            assert_eq!(Called::of(other), Called::Other);
        }
    }

    #[test]
    fn every_code_has_its_outcome() {
        let outcome = |code: Code| Outcome::of((code as i32).to_string().as_bytes());
        assert_eq!(outcome(Code::Ok), Outcome::Ok);
        assert_eq!(outcome(Code::NotFound), Outcome::Refused);
        assert_eq!(outcome(Code::FailedPrecondition), Outcome::Refused);
        assert_eq!(outcome(Code::ResourceExhausted), Outcome::Exhausted);
        assert_eq!(outcome(Code::Unavailable), Outcome::Unavailable);
        assert_eq!(outcome(Code::Internal), Outcome::Failed);
        assert_eq!(outcome(Code::Unknown), Outcome::Failed);
    }
}
