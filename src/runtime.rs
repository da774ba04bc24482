//! The threads a command runs on.

use std::{io, thread::available_parallelism};

use tokio::runtime::{Builder, Runtime};

use crate::cli::{Command, bench::BenchCommand};

/// Most threads of an agent that carry calls and sockets: one receives about 5 GB/s, so these fill
/// 200 Gb/s. Copies and checksums have threads of their own.
const MAX_AGENT_WORKERS: usize = 8;
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
        builder.worker_threads(agent_workers(
            available_parallelism().map_or(1, usize::from),
        ));
    }
    builder.build()
}

/// Half the cores: the other half is the engine's. On two cores that is one thread, and there it is
/// also the faster choice: what one thread does next costs nothing, and waking another one costs as
/// much as a small pull.
fn agent_workers(cores: usize) -> usize {
    (cores / 2).clamp(1, MAX_AGENT_WORKERS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_leaves_cores_to_its_engine() {
        assert_eq!([1, 2, 4, 64].map(agent_workers), [1, 1, 2, 8]);
    }
}
