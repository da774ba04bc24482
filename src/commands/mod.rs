//! What each word after `kvferry` does.

pub(crate) mod agent;
pub(crate) mod bench;
pub(crate) mod claims;
pub(crate) mod coordinator;
pub(crate) mod copies;
pub(crate) mod doctor;
pub(crate) mod get;
pub(crate) mod keys;
pub(crate) mod locate;
pub(crate) mod namespaces;
pub(crate) mod nodes;
mod place;
pub(crate) mod put;
pub(crate) mod sources;
pub(crate) mod stats;
#[cfg(test)]
mod tests;
pub(crate) mod tool;
pub(crate) mod watch;

use clap::CommandFactory;
use clap_complete::Shell;

use crate::{
    cli::Cli,
    failure::Done,
    output::{self, OutputError},
};

/// Prints a shell's completions.
pub(crate) fn completions(shell: Shell) -> Result<Done, OutputError> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "kvferry", &mut script);
    output::line(String::from_utf8_lossy(&script).trim_end())?;
    Ok(Done::All)
}
