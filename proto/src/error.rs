//! Refusals: what was wrong with a message, and how a status carries a reason programs can match on.

use prost::Message;
use tonic::{Code, Status};

use crate::{GeometryError, HashError, IdError, LayoutError, SourceError, TensorError, pb};

/// The machine-readable reason of a refused call.
pub use pb::error_detail::Reason;

/// A message that cannot be parsed into what it claims to be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidMessage {
    /// A required field is not there.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A bad name or number.
    #[error(transparent)]
    Id(#[from] IdError),
    /// Bad hashes.
    #[error(transparent)]
    Hash(#[from] HashError),
    /// A bad layout.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// A bad geometry.
    #[error(transparent)]
    Geometry(#[from] GeometryError),
    /// A bad source.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A bad set of tensors.
    #[error(transparent)]
    Tensors(#[from] TensorError),
    /// Not an address.
    #[error("{what}: {text:?} is no ip:port or is too long")]
    Address {
        /// Which one.
        what: &'static str,
        /// As given, cut.
        text: String,
    },
    /// Columns that belong together have different lengths.
    #[error("{what}: {got} entries where {want} are needed")]
    Columns {
        /// Which column.
        what: &'static str,
        /// Its length.
        got: usize,
        /// The length it needs.
        want: usize,
    },
    /// A value outside its bounds.
    #[error("{what} is {got}; at most {max} is allowed")]
    OutOfBounds {
        /// Which value.
        what: &'static str,
        /// As given.
        got: u64,
        /// The bound.
        max: u64,
    },
}

impl InvalidMessage {
    /// The reason a caller is told.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Hash(HashError::Length { .. } | HashError::OtherLength { .. }) => {
                Reason::HashLength
            }
            Self::Hash(HashError::TooMany { .. }) => Reason::BoundReached,
            Self::Geometry(GeometryError::OutOfMemory { .. }) => Reason::SpanOutOfRegion,
            _ => Reason::InvalidArgument,
        }
    }
}

impl From<InvalidMessage> for Status {
    fn from(error: InvalidMessage) -> Self {
        refusal(Code::InvalidArgument, error.reason(), error.to_string())
    }
}

/// A status with a message for people and a reason for programs.
#[must_use]
pub fn refusal(code: Code, reason: Reason, message: impl Into<String>) -> Status {
    let detail = pb::ErrorDetail {
        reason: reason.into(),
    };
    Status::with_details(code, message, detail.encode_to_vec().into())
}

/// The reason a status carries; None when its sender gave none.
#[must_use]
pub fn reason_of(status: &Status) -> Option<Reason> {
    let detail = pb::ErrorDetail::decode(status.details()).ok()?;
    match detail.reason() {
        Reason::Unspecified => None,
        reason => Some(reason),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_survives_the_status() {
        let status = refusal(
            Code::NotFound,
            Reason::NamespaceUnknown,
            "no such namespace",
        );
        assert_eq!(reason_of(&status), Some(Reason::NamespaceUnknown));
        assert_eq!(reason_of(&Status::internal("x")), None);
    }

    #[test]
    fn bad_hashes_have_their_own_reason() {
        let status = Status::from(InvalidMessage::from(HashError::OtherLength {
            got: 16,
            want: 32,
        }));
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(reason_of(&status), Some(Reason::HashLength));
    }
}
