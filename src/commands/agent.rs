//! `kvferry agent`.

use kvferry_agent::{Agent, AgentConfig};
use kvferry_settings::Sources;
use tracing::info;

use crate::{
    announce::AgentReady,
    cli::AgentArgs,
    descriptors,
    failure::{Done, Failure},
    metrics_note::note_metrics,
    output, shutdown,
};

/// Settings, start, say where, serve until told to stop.
pub(crate) async fn run(args: AgentArgs) -> Result<Done, Failure> {
    let config: AgentConfig = kvferry_settings::load(&Sources {
        file: args.config.as_deref(),
        variable: &|name| std::env::var(name).ok(),
        flags: &args.settings,
    })?;
    descriptors::prepare();
    let stop = shutdown::requested(args.supervised.until_stdin_closes).map_err(Failure::Signals)?;
    let agent = Agent::start(config).await?;
    let at = agent.addresses();
    info!(
        node = %at.node, incarnation = %at.incarnation, peer = %at.peer, data = %at.data,
        socket = %at.socket.display(), "agent is ready"
    );
    note_metrics(at.metrics);
    if args.supervised.announce {
        output::json_line(&AgentReady {
            ready: true,
            pid: std::process::id(),
            node: at.node.to_string(),
            peer: at.peer,
            data: at.data,
            metrics: at.metrics,
            socket: at.socket.clone(),
            descriptor_socket: at.descriptor_socket.clone(),
        })?;
    }
    agent.serve(stop).await?;
    Ok(Done::All)
}
