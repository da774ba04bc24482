//! How a command ends, and the exit code that says so.

use std::{io, process::ExitCode};

use kvferry_settings::SettingsError;

use crate::{
    commands::{
        bench::BenchError,
        get::GetError,
        keys::{KeysError, TicketKeyError},
        locate::LocateError,
        put::PutError,
        sources::SourcesError,
        tool::ToolError,
    },
    demo::DemoError,
    logging::LoggingError,
    output::OutputError,
};

/// It failed.
const FAILED: u8 = 1;
/// Bad usage or a refused setting; clap uses the same for the command line.
const USAGE: u8 = 2;
/// Some blocks were not found or not pulled.
const IN_PART: u8 = 3;

/// What was done of what was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Done {
    All,
    InPart,
}

impl From<Done> for ExitCode {
    fn from(done: Done) -> Self {
        match done {
            Done::All => Self::SUCCESS,
            Done::InPart => Self::from(IN_PART),
        }
    }
}

/// Why nothing came of a command.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error(transparent)]
    Logging(#[from] LoggingError),
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error("the threads to run on cannot be had: {0}")]
    Runtime(io::Error),
    #[error("signals cannot be listened for: {0}")]
    Signals(io::Error),
    #[error(transparent)]
    Output(#[from] OutputError),
    #[error(transparent)]
    Put(#[from] PutError),
    #[error(transparent)]
    Get(#[from] GetError),
    #[error(transparent)]
    Locate(#[from] LocateError),
    #[error(transparent)]
    Sources(#[from] SourcesError),
    #[error(transparent)]
    Keys(#[from] KeysError),
    #[error(transparent)]
    Tool(#[from] ToolError),
    #[error(transparent)]
    Bench(#[from] BenchError),
    #[error(transparent)]
    Demo(#[from] DemoError),
    #[error("the coordinator did not start: {0}")]
    CoordinatorStart(#[from] kvferry_coordinator::StartError),
    #[error("the coordinator ended: {0}")]
    CoordinatorServe(#[from] kvferry_coordinator::ServeError),
    #[error("the agent did not start: {0}")]
    AgentStart(#[from] kvferry_agent::StartError),
    #[error("the agent ended: {0}")]
    AgentServe(#[from] kvferry_agent::ServeError),
}

impl Failure {
    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Logging(_) | Self::Settings(_) => USAGE,
            Self::CoordinatorStart(kvferry_coordinator::StartError::Config(_)) => USAGE,
            Self::AgentStart(kvferry_agent::StartError::Config(_)) => USAGE,
            Self::Put(PutError::Content(_) | PutError::Namespace(_) | PutError::Layout(_)) => USAGE,
            Self::Locate(LocateError::Hash(_)) | Self::Tool(ToolError::Usage(_)) => USAGE,
            Self::Sources(SourcesError::Usage(_)) => USAGE,
            Self::Keys(KeysError::Name { .. } | KeysError::Exists { .. }) => USAGE,
            Self::Keys(KeysError::Ticket(TicketKeyError::Exists { .. })) => USAGE,
            Self::Demo(error) if error.is_usage() => USAGE,
            _ => FAILED,
        })
    }
}
