//! In real time, through real agents: every request when the trace has it, whatever became of those before.

use std::{
    fs,
    sync::{Arc, Mutex, PoisonError},
};

use kvferry_proto::{ChecksumPolicy, HashLen, Layout, NamespaceName, NamespaceSpec};
use tokio::{
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};

use super::{
    Plan, ReplayError,
    engine::Engine,
    ledger::{Found, Ledger, Rest, Served},
    result::{Means, ReplayResult},
    route::Router,
    tokens_of,
    trace::{Request, TOKENS_PER_BLOCK, Trace},
};
use crate::{transfer::AgentAt, workload::HASH_LEN};

/// Requests under way: more than any cluster one machine can hold serves, few enough that each finds a
/// descriptor and a stream. Those that wait for a place are late, and that is reported.
const MAX_UNDER_WAY: usize = 1024;
/// What is left of the machine's memory for everything else, as a share of what there is.
const MEMORY_SHARE: f64 = 0.8;

/// Replays a trace through agents that run already and have nothing yet; `tick` is called after every
/// request. Every block that a prompt finds is compared, byte by byte.
///
/// # Errors
/// [`ReplayError`]: also where a single byte is wrong.
pub async fn replay(
    plan: &Plan,
    trace: &Trace,
    agents: &[AgentAt],
    mut tick: impl FnMut(),
) -> Result<ReplayResult, ReplayError> {
    plan.check()?;
    fits(plan)?;
    let spec = NamespaceSpec {
        name: NamespaceName::new("bench/replay")?,
        layout: Layout::new("bf16", TOKENS_PER_BLOCK as u32, 1, plan.block_bytes)?,
        hash_len: HashLen::new(HASH_LEN)?,
        checksum: ChecksumPolicy::Off,
    };
    let mut engines = Vec::new();
    for agent in agents.iter().take(plan.nodes as usize) {
        engines.push(Engine::start(agent, &spec, plan.pool_bytes).await?);
    }
    let router = Arc::new(Mutex::new(Router::new(plan.routing, engines.len() as u32)));
    let places = Arc::new(Semaphore::new(MAX_UNDER_WAY));
    let plan = Arc::new(plan.clone());
    let began = Instant::now();
    let mut ledger = Ledger::default();
    let mut under_way = JoinSet::new();
    let mut add = |done: Result<Done, tokio::task::JoinError>| {
        let (request, served) = done??;
        ledger.add(&plan, &request, &served);
        tick();
        Ok::<_, ReplayError>(())
    };
    for request in &trace.requests {
        let due = began + plan.arrival(request);
        sleep_until(due).await;
        while let Some(done) = under_way.try_join_next() {
            add(done)?;
        }
        let place = Arc::clone(&places).acquire_owned().await;
        let node = locked(&router).choose(&request.blocks);
        let Some(engine) = engines.get(node).cloned() else {
            continue;
        };
        let (router, plan, request) = (Arc::clone(&router), Arc::clone(&plan), request.clone());
        under_way.spawn(async move {
            let _place = place;
            let served = serve(&engine, &plan, &request, due).await;
            locked(&router).done(node);
            Ok((request, served?))
        });
    }
    while let Some(done) = under_way.join_next().await {
        add(done)?;
    }
    let took = began.elapsed();
    let mut evictions = 0;
    for engine in &engines {
        evictions += engine.evictions().await?;
    }
    let rest = Rest {
        means: Means::Processes,
        span: took,
        evictions,
        network: None,
        took,
    };
    Ok(ledger.close(&plan, trace, &rest))
}

type Done = Result<(Request, Served), ReplayError>;

/// What an engine does with a prompt: looks for its prefix, brings it here, computes the rest, keeps it.
async fn serve(
    engine: &Engine,
    plan: &Plan,
    request: &Request,
    due: Instant,
) -> Result<Served, ReplayError> {
    let begins = Instant::now();
    let prefix = engine.prefix(&request.blocks).await?;
    // From when it was due: that a request was kept waiting is no reason to leave the wait out.
    let mut served = Served {
        late: begins.duration_since(due),
        lookup: due.elapsed(),
        ..Served::default()
    };
    let known = &request.blocks[..prefix];
    let mut pin = 0;
    if !known.is_empty() {
        let asked = Instant::now();
        let pulled = engine.pull(known).await?;
        if pulled.found.iter().any(|found| *found != Found::Local) {
            served.pull = asked.elapsed();
        }
        pin = pulled.pin;
        served.verified_bytes = engine.verify(known, &pulled.slots).await?;
        served.found = pulled.found;
    }
    let have = served.prefix();
    let rest = &request.blocks[have..];
    sleep(plan.compressed_prefill(request.input_tokens - tokens_of(request, have))).await;
    if !rest.is_empty() {
        let parent = have
            .checked_sub(1)
            .and_then(|last| request.blocks.get(last));
        if !engine.store(rest, parent.copied()).await? {
            served.not_stored = rest.len() as u64;
        }
    }
    if pin != 0 {
        engine.release(pin).await?;
    }
    Ok(served)
}

/// Refuses what would have the kernel end somebody's process half-way.
fn fits(plan: &Plan) -> Result<(), ReplayError> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    let wanted = plan.pool_bytes.saturating_mul(plan.nodes.into());
    match kib.map(|kib| kib.saturating_mul(1024)) {
        Some(available) if wanted as f64 > available as f64 * MEMORY_SHARE => {
            Err(ReplayError::NoMemory { wanted, available })
        }
        _ => Ok(()),
    }
}

fn locked(router: &Mutex<Router>) -> std::sync::MutexGuard<'_, Router> {
    router.lock().unwrap_or_else(PoisonError::into_inner)
}
