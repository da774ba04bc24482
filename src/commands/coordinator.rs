//! `kvferry coordinator`.

use kvferry_coordinator::{Coordinator, CoordinatorConfig};
use kvferry_settings::Sources;
use tracing::info;

use crate::{
    announce::CoordinatorReady,
    cli::CoordinatorArgs,
    descriptors,
    failure::{Done, Failure},
    metrics_note::note_metrics,
    output, shutdown,
};

/// Settings, bind, say where, serve until told to stop.
pub(crate) async fn run(args: CoordinatorArgs) -> Result<Done, Failure> {
    let config: CoordinatorConfig = kvferry_settings::load(&Sources {
        file: args.config.as_deref(),
        variable: &|name| std::env::var(name).ok(),
        flags: &args.settings,
    })?;
    descriptors::prepare();
    let stop = shutdown::requested(args.supervised.until_stdin_closes).map_err(Failure::Signals)?;
    let coordinator = Coordinator::bind(&config)?;
    let (listen, metrics) = (coordinator.local_addr(), coordinator.metrics_addr());
    info!(%listen, "coordinator is ready");
    note_metrics(metrics);
    if args.supervised.announce {
        output::json_line(&CoordinatorReady {
            ready: true,
            pid: std::process::id(),
            listen,
            metrics,
        })?;
    }
    coordinator.serve(stop).await?;
    Ok(Done::All)
}

#[cfg(test)]
mod tests {
    use kvferry_settings::known_keys;

    use super::*;
    use crate::cli::CoordinatorFlags;

    #[test]
    fn every_key_of_the_coordinator_has_a_flag() {
        let command = <CoordinatorFlags as clap::Args>::augment_args(clap::Command::new("c"));
        let flags: Vec<_> = command
            .get_arguments()
            .map(|arg| arg.get_id().as_str())
            .collect();
        for key in known_keys::<CoordinatorConfig>() {
            assert!(flags.contains(key), "no flag sets {key}");
        }
    }
}
