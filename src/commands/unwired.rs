//! Stands in for the daemons until the crates that hold them are merged.

/// See `coordinator.rs`.
pub(crate) mod coordinator {
    use crate::{
        cli::CoordinatorArgs,
        failure::{Done, Failure},
    };

    pub(crate) async fn run(args: CoordinatorArgs) -> Result<Done, Failure> {
        tracing::debug!(?args, "not wired");
        Err(Failure::NotThereYet("the coordinator"))
    }
}

/// See `agent.rs`.
pub(crate) mod agent {
    use kvferry_agent::config::AgentConfig;

    use crate::{
        cli::AgentArgs,
        failure::{Done, Failure},
        settings::{self, Sources},
    };

    pub(crate) async fn run(args: AgentArgs) -> Result<Done, Failure> {
        let config: AgentConfig = settings::load(&Sources {
            file: args.config.as_deref(),
            variable: &|name| std::env::var(name).ok(),
            flags: &args.settings,
        })?;
        config.validate()?;
        Err(Failure::NotThereYet("the agent"))
    }
}
