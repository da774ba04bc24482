//! The threads a command runs on.

use std::{io, thread::available_parallelism};

use kvferry_agent::worker_threads;
use tokio::runtime::{Builder, Runtime};

use crate::cli::{Command, bench::BenchCommand};

/// Overrides what is chosen here; tokio's own name for it.
const WORKERS: &str = "TOKIO_WORKER_THREADS";

/// The runtime of a command.
pub(crate) fn start(command: &Command) -> io::Result<Runtime> {
    let mut builder = Builder::new_multi_thread();
    builder.enable_all();
    let few = match command {
        Command::Agent(_) => true,
        // An engine as it is beside an agent: threads of its own would take from what is measured.
        Command::Bench(bench) => matches!(bench.what, BenchCommand::Transfer(_)),
        _ => false,
    };
    if few && std::env::var_os(WORKERS).is_none() {
        builder.worker_threads(worker_threads(
            available_parallelism().map_or(1, usize::from),
        ));
    }
    builder.build()
}
