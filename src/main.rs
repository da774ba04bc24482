//! `kvferry`: coordinator, agent and tools in one binary.

mod announce;
mod cli;
mod client;
mod cluster;
mod commands;
mod content;
mod demo;
mod descriptors;
mod failure;
mod files;
mod logging;
mod manifest;
mod metrics_note;
#[cfg(feature = "otlp")]
mod otlp;
mod output;
mod progress;
mod runtime;
mod safetensors;
#[cfg(test)]
mod settings_tests;
mod shutdown;
mod size;
#[cfg(test)]
mod testing;

use std::process::ExitCode;

use clap::Parser;
use cli::{Cli, Command};
use failure::{Done, Failure};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match runtime::start(&cli.command) {
        Ok(runtime) => runtime.block_on(run(cli)),
        Err(error) => Err(Failure::Runtime(error)),
    };
    match done {
        Ok(done) => done.into(),
        Err(failure) => {
            eprintln!("error: {failure}");
            failure.exit_code()
        }
    }
}

async fn run(cli: Cli) -> Result<Done, Failure> {
    let usual = match cli.command {
        Command::Coordinator(_) | Command::Agent(_) => "info",
        _ => "warn",
    };
    let service = match cli.command {
        Command::Coordinator(_) => "kvferry-coordinator",
        Command::Agent(_) => "kvferry-agent",
        _ => "kvferry",
    };
    let logging = logging::start(&cli, usual, service)?;
    let done = obey(cli.command).await;
    logging.end().await;
    done
}

async fn obey(command: Command) -> Result<Done, Failure> {
    match command {
        Command::Coordinator(args) => commands::coordinator::run(args).await,
        Command::Agent(args) => commands::agent::run(*args).await,
        Command::Demo(args) => Ok(demo::run(args).await?),
        Command::Bench(args) => Ok(commands::bench::run(args).await?),
        Command::Put(args) => Ok(commands::put::run(args).await?),
        Command::Get(args) => Ok(commands::get::run(args).await?),
        Command::Locate(args) => Ok(commands::locate::run(args).await?),
        Command::Nodes(args) => Ok(commands::nodes::run(args).await?),
        Command::Namespaces(args) => Ok(commands::namespaces::run(args).await?),
        Command::Copies(args) => Ok(commands::copies::run(args).await?),
        Command::Watch(args) => Ok(commands::watch::run(args).await?),
        Command::Sources(args) => Ok(commands::sources::run(args).await?),
        Command::Claims(args) => Ok(commands::claims::run(args).await?),
        Command::Keys(args) => Ok(commands::keys::run(&args)?),
        Command::Stats(args) => Ok(commands::stats::run(args).await?),
        Command::Doctor(args) => Ok(commands::doctor::run(args).await?),
        Command::Completions { shell } => Ok(commands::completions(shell)?),
    }
}
