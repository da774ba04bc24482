//! Why a tool that only asks and prints came to nothing.

use kvferry_proto::InvalidMessage;

use crate::{client::ClientError, output::OutputError};

/// Of `nodes`, `namespaces` and `stats`.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ToolError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("what was given is refused: {0}")]
    Invalid(#[from] InvalidMessage),
    #[error(transparent)]
    Output(#[from] OutputError),
}
