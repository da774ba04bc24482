//! Why a tool that only asks and prints came to nothing.

use kvferry_proto::InvalidMessage;

use crate::{client::ClientError, output::OutputError};

/// Of `nodes`, `namespaces`, `watch`, `copies` and `stats`.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ToolError {
    #[error(transparent)]
    Client(#[from] ClientError),
    /// What was given cannot be.
    #[error("refused: {0}")]
    Usage(InvalidMessage),
    /// What was answered cannot be.
    #[error("the answer makes no sense: {0}")]
    Answer(#[from] InvalidMessage),
    #[error(transparent)]
    Output(#[from] OutputError),
}
