//! `kvferry demo`: the main job on one machine, with real processes and real bytes.

mod engine;
mod phases;
mod report;
mod room;
#[cfg(test)]
mod tests;
mod workload;

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use clap::Args;
use tempfile::TempDir;

use self::{
    engine::{Engine, EngineError, Shape},
    phases::PhaseError,
    report::Phase,
    room::RoomError,
    workload::{BLOCK_BYTES, Workload, WorkloadError},
};
use crate::{
    cluster::{self, AgentPlan, Cluster, ClusterError},
    failure::Done,
    output::{self, OutputError},
    shutdown,
    size::ByteSize,
};

/// Bytes of blocks where nobody says how many.
const USUAL_BYTES: ByteSize = ByteSize(1 << 30);

#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// Bytes of blocks; three copies are held in memory [default: 1 GiB, or what fits].
    #[arg(long, value_name = "SIZE")]
    pub(crate) bytes: Option<ByteSize>,
    /// File whose bytes the blocks hold, repeated as often as needed [default: this program].
    #[arg(long, value_name = "FILE")]
    pub(crate) input: Option<PathBuf>,
    /// Where the engines' memory is made; a file system in memory.
    #[arg(long, default_value = "/dev/shm", value_name = "PATH")]
    pub(crate) dir: PathBuf,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Why the demo did not show what it should.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DemoError {
    #[error(transparent)]
    Room(#[from] RoomError),
    #[error(transparent)]
    Workload(#[from] WorkloadError),
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error("the demo failed: {0}")]
    Phase(#[from] PhaseError),
    #[error("no directory for the engines' memory in {path}: {source}", path = path.display())]
    Directory { path: PathBuf, source: io::Error },
    #[error("signals cannot be listened for: {0}")]
    Signals(io::Error),
    #[error("interrupted; everything it started is stopped")]
    Interrupted,
    #[error(transparent)]
    Output(#[from] OutputError),
}

impl DemoError {
    /// Was it asked for something that cannot be?
    pub(crate) fn is_usage(&self) -> bool {
        matches!(self, Self::Room(_))
    }
}

/// Room, bytes, processes, phases, table.
pub(crate) async fn run(args: DemoArgs) -> Result<Done, DemoError> {
    let blocks = room::blocks(args.bytes, USUAL_BYTES, &args.dir)?;
    let input = args.input.as_deref();
    let input = input.unwrap_or(Path::new(cluster::THIS_PROGRAM));
    let workload = Arc::new(Workload::open(input, blocks)?);
    let interrupted = shutdown::requested(false).map_err(DemoError::Signals)?;
    if !args.json {
        introduce(&args, blocks)?;
    }
    // What is dropped on an interrupt kills its processes and removes its files.
    let phases = tokio::select! {
        shown = show(&args.dir, &workload) => shown?,
        () = interrupted => return Err(DemoError::Interrupted),
    };
    report::print(phases, BLOCK_BYTES, args.json)?;
    if !args.json {
        output::line(
            "\nOK: every block that was delivered has the input's SHA-256, and every block got an outcome in time.",
        )?;
    }
    Ok(Done::All)
}

fn introduce(args: &DemoArgs, blocks: u32) -> Result<(), OutputError> {
    let bytes = ByteSize(u64::from(blocks) * BLOCK_BYTES);
    if args.bytes.is_none() && bytes < USUAL_BYTES {
        output::line(&format!(
            "there is room for {bytes} instead of {USUAL_BYTES} (three copies in {})",
            args.dir.display()
        ))?;
    }
    output::line(&format!(
        "{blocks} blocks of Llama-3-8B's shape ({}, bf16, 16 tokens, 32 layers x K,V), {bytes}; \
         one coordinator and three agents on loopback; every pull has {} s\n",
        ByteSize(BLOCK_BYTES),
        phases::pull_timeout().as_secs()
    ))
}

async fn show(dir: &Path, workload: &Arc<Workload>) -> Result<Vec<Phase>, DemoError> {
    let mut cluster = Cluster::start(&[
        AgentPlan::new("a", "auto"),
        AgentPlan::new("b", "tcp"),
        AgentPlan::new("c", "shm"),
    ])
    .await?;
    match run_phases(dir, workload, &mut cluster).await {
        Ok(phases) => {
            cluster.stop().await?;
            Ok(phases)
        }
        Err(error) => {
            cluster.show_logs();
            Err(error)
        }
    }
}

async fn run_phases(
    dir: &Path,
    workload: &Arc<Workload>,
    cluster: &mut Cluster,
) -> Result<Vec<Phase>, DemoError> {
    let memory = memory_directory(dir)?;
    let mut engines = Vec::new();
    for (agent, shape) in
        cluster
            .agents()
            .zip([Shape::LayerFirst, Shape::LayerFirst, Shape::Contiguous])
    {
        let slots = workload.blocks() as u32;
        let spec = workload.spec();
        engines.push(
            Engine::start(
                &agent.node,
                &agent.socket,
                memory.path(),
                spec,
                shape,
                slots,
            )
            .await?,
        );
    }
    let Ok([mut a, mut b, mut c]) = <[Engine; 3]>::try_from(engines) else {
        return Err(ClusterError::NotReady {
            name: "an agent".to_owned(),
        }
        .into());
    };
    let published = phases::publish(&mut a, workload).await?;
    let over_tcp = phases::pull(&b, workload, "tcp").await?;
    let over_shm = phases::pull(&c, workload, "shm").await?;
    let kill = cluster.kill(0);
    let survived = phases::pull_while_the_owner_dies(&mut b, &mut c, workload, kill).await?;
    Ok(vec![published, over_tcp, over_shm, survived])
}

fn memory_directory(dir: &Path) -> Result<TempDir, DemoError> {
    tempfile::Builder::new()
        .prefix("kvferry-demo-")
        .tempdir_in(dir)
        .map_err(|source| DemoError::Directory {
            path: dir.to_owned(),
            source,
        })
}
