//! Stands in for the daemons until the crates that hold them are merged: settings are read and
//! checked, and nothing is served.

/// See `coordinator.rs`.
pub(crate) mod coordinator {
    use crate::{
        cli::CoordinatorArgs,
        failure::{Done, Failure},
        shutdown,
    };

    pub(crate) async fn run(args: CoordinatorArgs) -> Result<Done, Failure> {
        drop(shutdown::requested(false).map_err(Failure::Signals)?);
        tracing::debug!(?args, "not wired");
        Err(Failure::NotThereYet("the coordinator"))
    }
}

/// See `agent.rs`.
pub(crate) mod agent {
    use kvferry_agent::config::AgentConfig;

    use crate::{
        announce::AgentReady,
        cli::AgentArgs,
        failure::{Done, Failure},
        output,
        settings::{self, Sources},
    };

    pub(crate) async fn run(args: AgentArgs) -> Result<Done, Failure> {
        let config: AgentConfig = settings::load(&Sources {
            file: args.config.as_deref(),
            variable: &|name| std::env::var(name).ok(),
            flags: &args.settings,
        })?;
        config.validate()?;
        if args.supervised.announce {
            output::json_line(&AgentReady {
                ready: false,
                pid: std::process::id(),
                node: config.node.clone(),
                peer: None,
                data: None,
                socket: config.socket_path(),
                descriptor_socket: config.descriptor_socket_path(),
            })?;
        }
        Err(Failure::NotThereYet("the agent"))
    }
}
