//! `kvferry agent`.

use kvferry_agent::{Agent, AgentConfig};
use tracing::info;

use crate::{
    announce::AgentReady,
    cli::AgentArgs,
    failure::{Done, Failure},
    output,
    settings::{self, Sources},
    shutdown,
};

/// Settings, start, say where, serve until told to stop.
pub(crate) async fn run(args: AgentArgs) -> Result<Done, Failure> {
    let config: AgentConfig = settings::load(&Sources {
        file: args.config.as_deref(),
        variable: &|name| std::env::var(name).ok(),
        flags: &args.settings,
    })?;
    config.validate()?;
    let stop = shutdown::requested(args.supervised.until_stdin_closes).map_err(Failure::Signals)?;
    let (node, socket) = (config.node.clone(), config.socket_path());
    let descriptor_socket = config.descriptor_socket_path();
    let agent = Agent::start(config).await?;
    let addresses = agent.addresses();
    info!(node, ?addresses, socket = %socket.display(), "agent is ready");
    if args.supervised.announce {
        output::json_line(&AgentReady {
            ready: true,
            pid: std::process::id(),
            node,
            peer: addresses.peer,
            data: addresses.data,
            socket,
            descriptor_socket,
        })?;
    }
    agent.serve(stop).await?;
    Ok(Done::All)
}
