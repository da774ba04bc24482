//! Logs, to stderr.

use std::io::{self, IsTerminal};

use tracing_subscriber::{
    EnvFilter,
    filter::ParseError,
    util::{SubscriberInitExt, TryInitError},
};

/// Why logging could not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoggingError {
    /// No filter.
    #[error("--log {filter:?} is no log filter: {source}; write a level, or target=level,...")]
    Filter { filter: String, source: ParseError },
    /// There is a logger already: a fault of this program.
    #[error("logging could not start: {0}")]
    Start(#[from] TryInitError),
}

/// Starts logging what the filter lets through; `usual` where none is given.
pub(crate) fn start(filter: Option<&str>, usual: &str, json: bool) -> Result<(), LoggingError> {
    let text = filter.unwrap_or(usual);
    let filter = EnvFilter::try_new(text).map_err(|source| LoggingError::Filter {
        filter: text.to_owned(),
        source,
    })?;
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr);
    if json {
        logs.json().finish().try_init()?;
    } else {
        logs.finish().try_init()?;
    }
    Ok(())
}
