//! Why a call did not succeed, for programs and for people.

use std::error::Error as _;

use kvferry_agent::transport::shm::DescriptorError;
use kvferry_proto::reason_of;
use tonic::{Code, Status};

use crate::Cause;

/// Why a call did not succeed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// For programs.
    pub cause: Cause,
    /// What happened, to whom (agent, peer, region, block), and what to do: for people.
    pub message: String,
}

impl Failure {
    /// With this text.
    pub fn new(cause: Cause, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { cause, message }
    }

    /// A wrong argument.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Cause::InvalidArgument, message)
    }

    /// The operating system refused something.
    pub fn system(what: &str, error: impl std::fmt::Display) -> Self {
        Self::new(Cause::System, format!("{what}: {error}"))
    }

    /// What the agent answered to a call. `lost`: its connection is known to have ended.
    #[must_use]
    pub fn answered(agent: &str, status: &Status, lost: bool) -> Self {
        let said = status.message();
        if let Some(reason) = reason_of(status) {
            return Self::new(reason.into(), format!("agent {agent}: {said}"));
        }
        // What tonic says by itself has a cause in this process; what the agent says has none.
        if lost || status.code() == Code::Unavailable || status.source().is_some() {
            return Self::lost(agent, said);
        }
        let cause = match status.code() {
            Code::InvalidArgument | Code::OutOfRange => Cause::InvalidArgument,
            Code::DeadlineExceeded => Cause::Deadline,
            Code::ResourceExhausted => Cause::BoundReached,
            Code::PermissionDenied | Code::Unauthenticated => Cause::NotAllowed,
            Code::Cancelled => Cause::Cancelled,
            _ => Cause::UnknownReason,
        };
        Self::new(cause, format!("agent {agent}: {said}"))
    }

    /// The connection has ended.
    #[must_use]
    pub fn lost(agent: &str, said: &str) -> Self {
        Self::new(
            Cause::AgentLost,
            format!(
                "the connection to agent {agent} has ended ({said}); its regions, reservations and pins \
                 with it: close, open and register again"
            ),
        )
    }

    /// What went wrong at the descriptor socket.
    #[must_use]
    pub fn descriptors(agent: &str, error: &DescriptorError) -> Self {
        let cause = match error {
            DescriptorError::Connect { .. } => Cause::AgentUnreachable,
            DescriptorError::WrongIncarnation { .. } | DescriptorError::Lost(_) => Cause::AgentLost,
            DescriptorError::NotAllowed => Cause::NotAllowed,
            DescriptorError::Busy | DescriptorError::TooManyDeposits => Cause::BoundReached,
            DescriptorError::RegionGone { .. } => Cause::RegionUnknown,
            DescriptorError::Failed | DescriptorError::NotMappable { .. } => Cause::Memory,
            DescriptorError::Malformed(_) => Cause::UnknownReason,
        };
        Self::new(
            cause,
            format!("descriptor socket of agent {agent}: {error}"),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_connection_is_no_refusal() {
        let refused = Status::invalid_argument("x");
        let cause = |failure: Failure| failure.cause;
        assert_eq!(
            cause(Failure::answered("n", &refused, false)),
            Cause::InvalidArgument
        );
        assert_eq!(
            cause(Failure::answered("n", &refused, true)),
            Cause::AgentLost
        );
        assert_eq!(
            cause(Failure::answered("n", &Status::unavailable("x"), false)),
            Cause::AgentLost
        );
    }
}
