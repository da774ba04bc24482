//! The values labels may have.

use kvferry_observe::label;

use crate::directory::{CloseCause, RegionRefusal, RemovalCause};

label! {
    /// A method, as it is called.
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
        /// One that this version counts under no name of its own, or does not have.
        Other = "other",
    }
}

impl Called {
    /// Of a request's path.
    pub(crate) fn of(path: &str) -> Self {
        let Some(("/kvferry.v1.Coordinator", method)) = path.rsplit_once('/') else {
            return Self::Other;
        };
        match method {
            "Locate" => Self::Locate,
            "Session" => Self::Session,
            "CreateNamespace" => Self::CreateNamespace,
            "ListNamespaces" => Self::ListNamespaces,
            "DescribeNamespace" => Self::DescribeNamespace,
            "DeleteNamespace" => Self::DeleteNamespace,
            "ListNodes" => Self::ListNodes,
            "DescribeNode" => Self::DescribeNode,
            "DrainNode" => Self::DrainNode,
            _ => Self::Other,
        }
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
    }
}

impl From<&RegionRefusal> for Refused {
    fn from(refusal: &RegionRefusal) -> Self {
        match refusal {
            RegionRefusal::NamespaceMismatch(_) => Self::Mismatch,
            RegionRefusal::Geometry(_) => Self::Geometry,
            RegionRefusal::Bound(_) => Self::Bound,
            RegionRefusal::NamespaceDeleted { .. } => Self::Deleted,
        }
    }
}

#[cfg(test)]
mod tests {
    use kvferry_observe::Label;
    use tonic::Code;

    use super::*;

    #[test]
    fn every_method_of_the_service_has_a_name() {
        let proto = include_str!("../../../proto/proto/kvferry/v1/coordinator.proto");
        let methods = proto.lines().filter_map(|line| {
            let (name, _) = line.trim().strip_prefix("rpc ")?.split_once('(')?;
            Some(name)
        });
        for method in methods {
            let called = Called::of(&format!("/kvferry.v1.Coordinator/{method}"));
            assert_eq!(called.as_str(), method);
        }
        assert_eq!(
            Called::of("/kvferry.v1.Coordinator/Frobnicate"),
            Called::Other
        );
        assert_eq!(Called::of("/other/Locate"), Called::Other);
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
