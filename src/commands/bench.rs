//! `kvferry bench`: what a network gives, and what kvferry takes of it.

mod coordinator;
mod rdma;
mod replay;

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use kvferry_agent::config::DESCRIPTOR_SUFFIX;
use kvferry_bench::compare::{self, CompareError, Run};
use kvferry_bench::transfer::{
    AgentAt, TransferError, html,
    measure::{Effort, Fleet, YARDSTICK_BYTES, measure, speed},
    point::{self, Point, Transport},
    process,
    result::PointResult,
    table,
    yardstick::{self, Role, Yardstick, read_bw::Device},
};
use kvferry_observe::read_page;

use crate::{
    announce::AgentReady,
    cli::bench::{
        BenchArgs, BenchCommand, Checksum, CompareArgs, PullsArgs, TransferArgs, YardstickArgs,
        YardstickRole,
    },
    cluster::{self, AgentPlan, Cluster, ClusterError},
    failure::Done,
    output::{self, OutputError},
    progress, shutdown,
};

/// Rounds that count, milliseconds of each side of them, and seconds a point may wait for a quiet machine.
const USUAL: (u32, u32, u32) = (7, 300, 10);
/// The same, where only the path is to be seen.
const QUICK: (u32, u32, u32) = (1, 50, 0);

/// Memory of each yardstick process at least, where only the path is to be seen.
const QUICK_YARDSTICK_BYTES: u64 = 16 << 20;

/// Of an agent's metrics: TLS handshakes at its data port that succeeded.
const SESSIONS_BY_TLS: &str = "kvferry_agent_data_handshakes_total{outcome=\"done\"}";

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BenchError {
    #[error(transparent)]
    Transfer(#[from] TransferError),
    #[error("{name}: {source}")]
    Point { name: String, source: TransferError },
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    #[error("{path}: {source}", path = path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("{path}: {source}", path = path.display())]
    Run { path: PathBuf, source: CompareError },
    #[error("not compared: {0}")]
    Compare(#[from] CompareError),
    #[error("the owner counts no TLS session at its data port: what was to be by TLS was not")]
    InClear,
    #[error("the owner's metrics cannot be read: {0}")]
    Metrics(io::Error),
    #[error("rdma cannot be measured here: {0}")]
    NoRdma(#[from] rdma::NoRdma),
    #[error(transparent)]
    Coordinator(#[from] kvferry_bench::BenchError),
    #[error(transparent)]
    Replay(#[from] replay::ReplayFailure),
    #[error("signals cannot be listened for: {0}")]
    Signals(io::Error),
    #[error("interrupted; everything it started is stopped")]
    Interrupted,
    #[error(transparent)]
    Output(#[from] OutputError),
}

pub(crate) async fn run(args: BenchArgs) -> Result<Done, BenchError> {
    match args.what {
        BenchCommand::Transfer(args) => transfer(&args).await,
        BenchCommand::Coordinator(options) => coordinator::measure(options).await,
        BenchCommand::Replay(args) => replay::replay(&args).await,
        BenchCommand::Compare(args) => compare_runs(&args),
        BenchCommand::Pulls(args) => pulls(args).await,
        BenchCommand::Yardstick(args) => be_yardstick(&args),
    }
}

async fn pulls(args: PullsArgs) -> Result<Done, BenchError> {
    let at = |socket: PathBuf| {
        let mut descriptors = socket.clone().into_os_string();
        descriptors.push(DESCRIPTOR_SUFFIX);
        AgentAt {
            node: socket.display().to_string(),
            // Whose processor time is not asked for.
            pid: std::process::id(),
            socket,
            descriptor_socket: descriptors.into(),
        }
    };
    let fleet = Fleet {
        owner: at(args.owner),
        readers: vec![at(args.reader)],
        coordinator: std::process::id(),
    };
    let block = args.block_bytes.0.max(1);
    let batch = u32::try_from((args.call_bytes.0 / block).max(1)).unwrap_or(u32::MAX);
    let point = Point {
        checksum: args.checksum == Checksum::Always,
        in_flight: args.calls,
        ..Point::new(args.transport, block, batch)
    };
    let slice = Duration::from_millis(args.slice_ms.into());
    let rate = speed(&point, args.number, &fleet, slice).await?;
    output::line(&format!("figure {block} {:.1}", rate / f64::from(1 << 20)))?;
    Ok(Done::All)
}

async fn transfer(args: &TransferArgs) -> Result<Done, BenchError> {
    let mut points = points(args);
    let device = rdma::admit(&mut points)?;
    let usual = if args.quick { QUICK } else { USUAL };
    let effort = Effort {
        rounds: args.rounds.unwrap_or(usual.0),
        slice: Duration::from_millis(args.slice_ms.unwrap_or(usual.1).into()),
        patience: Duration::from_secs(args.patience_s.unwrap_or(usual.2).into()),
    };
    let interrupted = shutdown::requested(false).map_err(BenchError::Signals)?;
    // What is dropped on an interrupt kills its processes.
    let results = tokio::select! {
        results = measure_all(&points, effort, args, device) => results?,
        () = interrupted => return Err(BenchError::Interrupted),
    };
    if !args.json {
        let rows = results.iter().map(table::row).collect();
        output::rows(table::HEADINGS, rows, "no points")?;
        output::line("")?;
        for result in &results {
            output::line(&result.name)?;
            for line in table::details(result) {
                output::line(&line)?;
            }
        }
    }
    if let Some(path) = &args.report {
        let page = html::page(&results, &machine());
        let failed = |source| file_error(path, source);
        fs::write(path, page).map_err(failed)?;
    }
    Ok(Done::All)
}

/// Every combination of what was listed; the documented ones where nothing was.
fn points(args: &TransferArgs) -> Vec<Point> {
    let wanted = |point: &Point| match args.transport.is_empty() {
        true => point.transport.is_usual(),
        false => args.transport.contains(&point.transport),
    };
    let lists = [
        args.block_bytes.len(),
        args.planes.len(),
        args.batch.len(),
        args.connections.len(),
        args.readers.len(),
        args.calls.len(),
        args.checksum.len(),
    ];
    if lists.iter().all(|len| *len == 0) && !args.publish {
        let usual = if args.quick {
            point::quick()
        } else {
            point::usual()
        };
        return usual.into_iter().filter(wanted).collect();
    }
    let or = |list: &[u32], usual| {
        if list.is_empty() {
            vec![usual]
        } else {
            list.to_vec()
        }
    };
    let one = |bytes: u64| (1, bytes);
    let mut shapes: Vec<(u32, u64)> = args.block_bytes.iter().map(|size| one(size.0)).collect();
    shapes.extend(args.planes.iter().map(|(count, size)| (*count, size.0)));
    if shapes.is_empty() {
        shapes.push(one(1 << 20));
    }
    let checksums = match args.checksum.is_empty() {
        true => vec![false],
        false => args
            .checksum
            .iter()
            .map(|c| *c == Checksum::Always)
            .collect(),
    };
    let mut points = Vec::new();
    for transport in Transport::ALL {
        for &connections in &or(&args.connections, 4) {
            for &readers in &or(&args.readers, 1) {
                for &(planes, plane_bytes) in &shapes {
                    for &batch in &or(&args.batch, 64) {
                        for &in_flight in &or(&args.calls, 1) {
                            for &checksum in &checksums {
                                points.push(Point {
                                    connections,
                                    readers,
                                    in_flight,
                                    checksum,
                                    publish: args.publish,
                                    ..Point::new(transport, 0, batch).planes(planes, plane_bytes)
                                });
                            }
                        }
                    }
                }
            }
        }
    }
    points.retain(wanted);
    points
}

/// Points that the same processes can measure follow each other.
async fn measure_all(
    points: &[Point],
    effort: Effort,
    args: &TransferArgs,
    device: Option<Device>,
) -> Result<Vec<PointResult>, BenchError> {
    let program = Path::new(cluster::THIS_PROGRAM);
    let bytes = match args.quick {
        // No figure is wanted: as much as the largest batch takes, which is made ready soon.
        true => points.iter().map(Point::batch_bytes).max().unwrap_or(0),
        false => YARDSTICK_BYTES,
    };
    let bytes = bytes.clamp(QUICK_YARDSTICK_BYTES, YARDSTICK_BYTES);
    let yardstick = Yardstick::start(program, &["bench", "yardstick"], bytes).await?;
    let mut yardstick = yardstick.with_device(device);
    let bar = progress::steps(points.len() as u64 * u64::from(effort.rounds), "bench");
    let mut results = Vec::new();
    let mut rest = points;
    while let Some(first) = rest.first() {
        let same = |point: &&Point| {
            (point.transport, point.connections, point.readers)
                == (first.transport, first.connections, first.readers)
        };
        let group = rest.iter().take_while(same).count();
        let (now, later) = rest.split_at(group);
        rest = later;
        let cluster = start(first).await?;
        let fleet = fleet(&cluster)?;
        for point in now {
            bar.set_message(point.name());
            let number = results.len();
            let tick = || bar.inc(1);
            let measured = measure(point, number, &fleet, &mut yardstick, effort, tick).await;
            let result = match measured {
                Ok(result) => result,
                Err(source) => {
                    bar.finish_and_clear();
                    cluster.show_logs();
                    let name = point.name();
                    return Err(BenchError::Point { name, source });
                }
            };
            if point.transport.by_tls() {
                must_be_by_tls(&cluster).await?;
            }
            if args.json {
                output::json_line(&result)?;
            }
            results.push(result);
        }
        cluster.stop().await?;
    }
    bar.finish_and_clear();
    Ok(results)
}

async fn start(point: &Point) -> Result<Cluster, BenchError> {
    let plan = |node: String| {
        let mut plan = AgentPlan::new(node, point.transport.of_agent());
        let connections = point.connections.to_string();
        plan.settings
            .push(("--tcp-connections-per-peer", connections));
        plan
    };
    let mut plans = vec![plan("owner".to_owned())];
    plans.extend((1..=point.readers).map(|number| plan(format!("reader-{number}"))));
    if !point.transport.by_tls() {
        return Ok(Cluster::start(&plans).await?);
    }
    for plan in &mut plans {
        plan.settings.push(("--data-tls", "true".to_owned()));
        // What went by TLS is asked for there.
        plan.settings
            .push(("--listen-metrics", "127.0.0.1:0".to_owned()));
    }
    Ok(Cluster::start_by_tls(&plans).await?)
}

/// A figure of TLS is none where the owner's data port has not spoken any.
async fn must_be_by_tls(cluster: &Cluster) -> Result<(), BenchError> {
    let owner = cluster.agents().next().and_then(|owner| owner.metrics);
    let metrics = owner.ok_or(BenchError::InClear)?;
    let page = read_page(metrics, "/metrics").await;
    let (_, page) = page.map_err(BenchError::Metrics)?;
    let mut samples = page.lines().filter_map(|line| line.split_once(' '));
    let sessions = samples.find(|(name, _)| *name == SESSIONS_BY_TLS);
    match sessions.and_then(|(_, count)| count.parse().ok()) {
        None | Some(0u64) => Err(BenchError::InClear),
        Some(_) => Ok(()),
    }
}

fn fleet(cluster: &Cluster) -> Result<Fleet, BenchError> {
    let mut agents = cluster.agents().map(agent_at);
    let owner = agents.next().ok_or_else(|| ClusterError::NotReady {
        name: "the owner".to_owned(),
    })?;
    Ok(Fleet {
        owner,
        readers: agents.collect(),
        coordinator: cluster.coordinator_pid(),
    })
}

fn agent_at(ready: &AgentReady) -> AgentAt {
    AgentAt {
        node: ready.node.clone(),
        pid: ready.pid,
        socket: ready.socket.clone(),
        descriptor_socket: ready.descriptor_socket.clone(),
    }
}

fn compare_runs(args: &CompareArgs) -> Result<Done, BenchError> {
    let read = |path: &PathBuf| {
        let text = fs::read_to_string(path).map_err(|source| file_error(path, source))?;
        Run::parse(&text).map_err(|source| BenchError::Run {
            path: path.clone(),
            source,
        })
    };
    let comparison = compare::compare(&read(&args.before)?, &read(&args.after)?)?;
    let nothing = "nothing is in both runs";
    output::rows(comparison.headings, comparison.rows, nothing)?;
    Ok(match comparison.worse {
        true => Done::InPart,
        false => Done::All,
    })
}

fn be_yardstick(args: &YardstickArgs) -> Result<Done, BenchError> {
    let role = match args.role {
        YardstickRole::Owner => Role::Owner,
        YardstickRole::Reader => Role::Reader(args.port),
    };
    // It has threads of its own and nothing else to do.
    tokio::task::block_in_place(|| yardstick::run(role, args.bytes))?;
    Ok(Done::All)
}

/// In words, for whoever reads the report elsewhere.
fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpus = read("/proc/cpuinfo");
    let model = cpus.lines().find(|line| line.starts_with("model name"));
    let model = model.and_then(|line| line.split_once(':'));
    format!(
        "{} cores, {}, Linux {}, load {:.1} at the end, kvferry {}",
        std::thread::available_parallelism().map_or(1, usize::from),
        model.map_or("unknown processor", |(_, name)| name.trim()),
        read("/proc/sys/kernel/osrelease").trim(),
        process::load(),
        env!("CARGO_PKG_VERSION"),
    )
}

fn file_error(path: &Path, source: io::Error) -> BenchError {
    BenchError::File {
        path: path.to_owned(),
        source,
    }
}
