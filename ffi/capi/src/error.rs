//! Why a call did not succeed, for programs and for people.

use std::{error::Error as _, ffi::c_char};

use kvferry_agent::transport::shm::DescriptorError;
use kvferry_proto::reason_of;
use tonic::{Code, Status};

use crate::kvf_status;

/// Bytes of a message, with its NUL.
pub const KVF_MESSAGE_BYTES: usize = 512;

/// What happened, to whom (agent, peer, region, block), and what to do: for people. Owned by the caller;
/// nothing in it needs to be freed.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct kvf_error {
    /// The same as the call's return value.
    pub status: kvf_status,
    /// UTF-8, ends with a NUL; empty with KVF_OK; cut where it is longer.
    pub message: [c_char; KVF_MESSAGE_BYTES],
}

/// Why a call did not succeed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Failure {
    pub(crate) status: kvf_status,
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn new(status: kvf_status, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { status, message }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(kvf_status::KVF_INVALID_ARGUMENT, message)
    }

    pub(crate) fn system(what: &str, error: impl std::fmt::Display) -> Self {
        Self::new(kvf_status::KVF_SYSTEM, format!("{what}: {error}"))
    }

    /// What the agent answered to a call. `lost`: its connection is known to have ended.
    pub(crate) fn answered(agent: &str, status: &Status, lost: bool) -> Self {
        let said = status.message();
        if let Some(reason) = reason_of(status) {
            return Self::new(reason.into(), format!("agent {agent}: {said}"));
        }
        // What tonic says by itself has a cause in this process; what the agent says has none.
        if lost || status.code() == Code::Unavailable || status.source().is_some() {
            return Self::lost(agent, said);
        }
        let status = match status.code() {
            Code::InvalidArgument | Code::OutOfRange => kvf_status::KVF_INVALID_ARGUMENT,
            Code::DeadlineExceeded => kvf_status::KVF_DEADLINE,
            Code::ResourceExhausted => kvf_status::KVF_BOUND_REACHED,
            Code::PermissionDenied | Code::Unauthenticated => kvf_status::KVF_NOT_ALLOWED,
            Code::Cancelled => kvf_status::KVF_CANCELLED,
            _ => kvf_status::KVF_UNKNOWN_REASON,
        };
        Self::new(status, format!("agent {agent}: {said}"))
    }

    pub(crate) fn lost(agent: &str, said: &str) -> Self {
        Self::new(
            kvf_status::KVF_AGENT_LOST,
            format!(
                "the connection to agent {agent} has ended ({said}); its regions, reservations and pins \
                 with it: close, open and register again"
            ),
        )
    }

    pub(crate) fn descriptors(agent: &str, error: &DescriptorError) -> Self {
        let status = match error {
            DescriptorError::Connect { .. } => kvf_status::KVF_AGENT_UNREACHABLE,
            DescriptorError::WrongIncarnation { .. } | DescriptorError::Lost(_) => {
                kvf_status::KVF_AGENT_LOST
            }
            DescriptorError::NotAllowed
            | DescriptorError::TicketNeeded
            | DescriptorError::TicketRefused { .. } => kvf_status::KVF_NOT_ALLOWED,
            DescriptorError::Busy | DescriptorError::TooManyDeposits => {
                kvf_status::KVF_BOUND_REACHED
            }
            DescriptorError::RegionGone { .. } => kvf_status::KVF_REGION_UNKNOWN,
            DescriptorError::Failed | DescriptorError::NotMappable { .. } => kvf_status::KVF_MEMORY,
            DescriptorError::Malformed(_) => kvf_status::KVF_UNKNOWN_REASON,
        };
        Self::new(
            status,
            format!("descriptor socket of agent {agent}: {error}"),
        )
    }

    /// As C is told it.
    pub(crate) fn to_c(&self) -> kvf_error {
        kvf_error {
            status: self.status,
            message: to_c_text(&self.message),
        }
    }
}

impl kvf_error {
    /// What a call that succeeded leaves.
    pub(crate) const NONE: Self = Self {
        status: kvf_status::KVF_OK,
        message: [0; KVF_MESSAGE_BYTES],
    };
}

/// Text in a field of fixed size: cut between characters, ended with a NUL, without one before.
pub(crate) fn to_c_text<const N: usize>(text: &str) -> [c_char; N] {
    let mut field = [0; N];
    let mut end = text.len().min(N.saturating_sub(1));
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    for (place, byte) in field.iter_mut().zip(text.as_bytes().iter().take(end)) {
        *place = match byte {
            0 => b' ' as c_char,
            byte => *byte as c_char,
        };
    }
    field
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_cut_between_characters_and_always_ends() {
        assert_eq!(to_c_text::<4>("ab"), [97, 98, 0, 0]);
        assert_eq!(to_c_text::<4>("abé"), [97, 98, 0, 0]);
        assert_eq!(to_c_text::<4>("a\0b"), [97, 32, 98, 0]);
        assert_eq!(to_c_text::<1>("abc"), [0]);
    }

    #[test]
    fn a_lost_connection_is_no_refusal() {
        let refused = Status::invalid_argument("x");
        let status = |failure: Failure| failure.status;
        assert_eq!(
            status(Failure::answered("n", &refused, false)),
            kvf_status::KVF_INVALID_ARGUMENT
        );
        assert_eq!(
            status(Failure::answered("n", &refused, true)),
            kvf_status::KVF_AGENT_LOST
        );
        assert_eq!(
            status(Failure::answered("n", &Status::unavailable("x"), false)),
            kvf_status::KVF_AGENT_LOST
        );
    }
}
