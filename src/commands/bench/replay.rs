//! `kvferry bench replay`: what a cluster's caches would have spared the requests of a trace.

use std::{
    fs::{self, File},
    io::BufReader,
    sync::Arc,
    thread,
    time::Duration,
};

use kvferry_agent::region::eviction::EvictionKind;
use kvferry_bench::replay::{
    Plan, html, live,
    result::ReplayResult,
    simulate::{self, Network},
    table,
    trace::Trace,
};
use kvferry_bench::transfer::point::size;
use tokio::sync::oneshot;

use super::{BenchError, agent_at, file_error, machine};
use crate::{
    cli::bench::replay::ReplayArgs,
    cluster::{AgentPlan, Cluster},
    descriptors,
    failure::Done,
    output, progress, shutdown,
};

/// Memory of a pool where nothing is said, for agents on this machine and on paper.
const POOL_BYTES: (u64, u64) = (1 << 30, 256 << 30);
/// Most real agents: each is a process with threads, sockets and a pool of its own.
const MAX_PROCESSES: u32 = 64;

/// Descriptors of a simulated node (its pool, its generation words), and of everything else together.
const DESCRIPTORS: (u64, u64) = (2, 64);

/// Why nothing was replayed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReplayFailure {
    #[error("{path}: {source}", path = path.display())]
    Trace {
        path: std::path::PathBuf,
        source: kvferry_bench::replay::trace::TraceError,
    },
    #[error("{nodes} real agents on one machine; at most {MAX_PROCESSES}: use --simulate for more")]
    TooManyProcesses { nodes: u32 },
    #[error(
        "{nodes} simulated nodes need {needed} descriptors, and this process may have {limit}: raise `ulimit -Hn`, or simulate fewer"
    )]
    Descriptors { nodes: u32, needed: u64, limit: u64 },
    #[error("{name}: {source}")]
    Run {
        name: String,
        source: kvferry_bench::replay::ReplayError,
    },
}

pub(super) async fn replay(args: &ReplayArgs) -> Result<Done, BenchError> {
    let trace = Arc::new(read(args)?);
    let plans = plans(args)?;
    let interrupted = shutdown::requested(false).map_err(BenchError::Signals)?;
    // What is dropped on an interrupt kills its processes.
    let results = tokio::select! {
        results = run_all(args, &plans, &trace) => results?,
        () = interrupted => return Err(BenchError::Interrupted),
    };
    if !args.json {
        let rows = results.iter().map(table::row).collect();
        output::rows(table::HEADINGS, rows, "no replays")?;
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
        fs::write(path, page).map_err(|source| file_error(path, source))?;
    }
    Ok(Done::All)
}

fn read(args: &ReplayArgs) -> Result<Trace, BenchError> {
    let file = File::open(&args.trace).map_err(|source| file_error(&args.trace, source))?;
    let most = args.requests.map_or(usize::MAX, |most| most as usize);
    let within = args
        .seconds
        .map_or(Duration::MAX, |seconds| Duration::from_secs(seconds.into()));
    let trace = Trace::read(BufReader::new(file), most, within);
    let copies = trace.and_then(|trace| trace.copies(args.copies));
    copies.map_err(|source| {
        let path = args.trace.clone();
        ReplayFailure::Trace { path, source }.into()
    })
}

/// Every combination of what was listed.
fn plans(args: &ReplayArgs) -> Result<Vec<Plan>, BenchError> {
    let (block_bytes, model) = args.model.block_bytes();
    let pools = match args.pool.is_empty() {
        true if args.simulate => vec![POOL_BYTES.1],
        true => vec![POOL_BYTES.0],
        false => args.pool.iter().map(|pool| pool.0).collect(),
    };
    let mut plans = Vec::new();
    for &routing in &args.route {
        for &nodes in &args.nodes {
            if nodes > MAX_PROCESSES && !args.simulate {
                return Err(ReplayFailure::TooManyProcesses { nodes }.into());
            }
            for &pool_bytes in &pools {
                plans.push(Plan {
                    nodes,
                    pool_bytes,
                    block_bytes,
                    model: model.clone(),
                    routing: routing.into(),
                    speed: args.speed,
                    prefill_tokens_per_s: args.prefill_tokens_per_s,
                });
            }
        }
    }
    Ok(plans)
}

async fn run_all(
    args: &ReplayArgs,
    plans: &[Plan],
    trace: &Arc<Trace>,
) -> Result<Vec<ReplayResult>, BenchError> {
    let total = trace.requests.len() as u64 * plans.len() as u64;
    let bar = progress::steps(total, "replay");
    let mut results = Vec::new();
    for plan in plans {
        bar.set_message(plan.name());
        let tick = {
            let bar = bar.clone();
            move || bar.inc(1)
        };
        let result = match args.simulate {
            true => on_paper(args, plan, trace, tick).await?,
            false => with_processes(args, plan, trace, tick).await?,
        };
        if args.json {
            output::json_line(&result)?;
        }
        results.push(result);
    }
    bar.finish_and_clear();
    Ok(results)
}

/// On a thread of its own, which ends with the process where somebody interrupts it.
async fn on_paper(
    args: &ReplayArgs,
    plan: &Plan,
    trace: &Arc<Trace>,
    tick: impl FnMut() + Send + 'static,
) -> Result<ReplayResult, BenchError> {
    room_for(plan.nodes)?;
    let network = Network {
        nic_gbit_per_s: args.nic_gbit_per_s,
        rtt: Duration::from_micros(args.rtt_us.into()),
    };
    let (done, result) = oneshot::channel();
    let (simulated, trace) = (plan.clone(), Arc::clone(trace));
    let run = thread::spawn(move || {
        let eviction = EvictionKind::default();
        // Nobody waits any more after an interrupt.
        let _ = done.send(simulate::replay(
            &simulated, network, eviction, &trace, tick,
        ));
    });
    match result.await {
        Ok(result) => result.map_err(|source| failed(plan, source)),
        Err(_) => match tokio::task::block_in_place(|| run.join()) {
            Ok(()) => Err(BenchError::Interrupted),
            Err(panic) => std::panic::resume_unwind(panic),
        },
    }
}

/// Lets this process have as many descriptors as so many stores hold, as far as it may.
fn room_for(nodes: u32) -> Result<(), ReplayFailure> {
    let needed = u64::from(nodes) * DESCRIPTORS.0 + DESCRIPTORS.1;
    match descriptors::take_all() {
        limit if limit >= needed => Ok(()),
        limit => Err(ReplayFailure::Descriptors {
            nodes,
            needed,
            limit,
        }),
    }
}

/// A cluster of its own for each: nobody has anything yet.
async fn with_processes(
    args: &ReplayArgs,
    plan: &Plan,
    trace: &Trace,
    tick: impl FnMut(),
) -> Result<ReplayResult, BenchError> {
    let agents = (1..=plan.nodes)
        .map(|number| AgentPlan::new(format!("node-{number}"), args.transport.as_str()));
    let cluster = Cluster::start(&agents.collect::<Vec<_>>()).await?;
    let agents: Vec<_> = cluster.agents().map(agent_at).collect();
    match live::replay(plan, trace, &agents, tick).await {
        Ok(result) => {
            cluster.stop().await?;
            Ok(result)
        }
        Err(source) => {
            cluster.show_logs();
            Err(failed(plan, source))
        }
    }
}

fn failed(plan: &Plan, source: kvferry_bench::replay::ReplayError) -> BenchError {
    let name = format!("{}, blocks of {}", plan.name(), size(plan.block_bytes));
    ReplayFailure::Run { name, source }.into()
}
