//! Processes are killed, stopped and restarted at random while engines publish, overwrite and pull
//! without pause. Not one wrong byte, one outcome per block, every call in time; and when the faults
//! stop, the directory equals what the agents hold and nothing is leaked.
//!
//! Ten seconds by default; `KVFERRY_CHAOS_SECONDS` for more. The seed is printed; `KVFERRY_CHAOS_SEED`
//! takes one (what the machine does in between stays its own).

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use kvferry_proto::pb::{self, OutcomeKind};
use tokio::{sync::Mutex, time::sleep};

use crate::{
    cluster::{Cluster, LATE, MISSES_SOON, SOON, eventually, pack},
    engine::{Engine, Memory, block, hashes, namespace},
};

const NODES: [&str; 3] = ["a", "b", "c"];
/// Different blocks there are; fewer than slots in all, so that most are somewhere.
const BLOCKS: u64 = 96;
/// Slots each engine publishes from, and as many more that it pulls into.
const SLOTS: u32 = 48;
const PULL_TIMEOUT: Duration = Duration::from_secs(3);

#[derive(Default)]
struct Tally {
    published: AtomicU64,
    pulled: AtomicU64,
    local: AtomicU64,
    failed: AtomicU64,
    faults: AtomicU64,
}

struct Random(u64);

impl Random {
    /// Below `bound`. Splitmix64.
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_killed_nothing_is_wrong_or_lost() {
    let seconds = variable("KVFERRY_CHAOS_SECONDS").unwrap_or(10);
    let seed = variable("KVFERRY_CHAOS_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    println!("KVFERRY_CHAOS_SEED={seed} KVFERRY_CHAOS_SECONDS={seconds}");
    let cluster = Arc::new(Mutex::new(Cluster::start_with(&MISSES_SOON).await));
    for node in NODES {
        cluster.lock().await.agent(node, &FLAGS).await;
    }
    let (stop, tally) = (Arc::new(AtomicBool::new(false)), Arc::new(Tally::default()));
    let mut engines = Vec::new();
    for (number, node) in NODES.into_iter().enumerate() {
        let life = Life {
            node,
            socket: cluster.lock().await.socket(node),
            random: Random(seed.wrapping_add(number as u64 + 1)),
            stop: Arc::clone(&stop),
            tally: Arc::clone(&tally),
        };
        engines.push(tokio::spawn(life.run()));
    }

    let began = Instant::now();
    let mut random = Random(seed);
    let count = |number: &AtomicU64| number.load(Ordering::Relaxed);
    let idle = || count(&tally.pulled) == 0 || count(&tally.published) == 0;
    // On a machine that is busy with other things it goes on until there was something to harm.
    while began.elapsed() < Duration::from_secs(seconds) || idle() && began.elapsed() < SOON {
        sleep(Duration::from_millis(100 + random.below(900))).await;
        harm(&cluster, &mut random).await;
        tally.faults.fetch_add(1, Ordering::Relaxed);
    }
    stop.store(true, Ordering::Relaxed);
    let mut lives = Vec::new();
    for engine in engines {
        lives.push(engine.await.expect("an engine saw something wrong"));
    }

    // Everything heals: what agents hold is what the coordinator lists, and nothing is left over.
    let cluster = cluster.lock().await;
    eventually("the directory equals what agents hold", || async {
        for node in NODES {
            let engine = Engine::connect(&cluster.socket(node)).await;
            let stats = engine.stats().await;
            let held: u64 = stats.regions.iter().map(|r| u64::from(r.sealed)).sum();
            if cluster.live_blocks(node).await != Some(held)
                || stats.reservations != 0
                || stats.pins != 0
                || stats.pulls_in_flight != 0
                || stats.regions.iter().any(|r| r.quarantined != 0)
            {
                return false;
            }
        }
        true
    })
    .await;
    println!(
        "{} faults, {} blocks published, {} pulled, {} found here, {} not had",
        count(&tally.faults),
        count(&tally.published),
        count(&tally.pulled),
        count(&tally.local),
        count(&tally.failed),
    );
    assert!(!idle());
}

const FLAGS: [&str; 2] = ["--stall-bound-ms", "500"];

/// One fault, and what mends it.
async fn harm(cluster: &Mutex<Cluster>, random: &mut Random) {
    let node = NODES[random.below(3) as usize];
    let mut cluster = cluster.lock().await;
    match random.below(4) {
        0 => {
            cluster.take_coordinator().kill().await;
            sleep(Duration::from_millis(random.below(800))).await;
            cluster.restart_coordinator().await;
        }
        1 => {
            let process = cluster.agent_process(node);
            process.signal("STOP");
            sleep(Duration::from_millis(random.below(2500))).await;
            process.signal("CONT");
        }
        _ => {
            cluster.take_agent(node).kill().await;
            sleep(Duration::from_millis(random.below(500))).await;
            cluster.agent(node, &FLAGS).await;
        }
    }
}

/// An engine beside one agent, through all lifetimes of the agent.
struct Life {
    node: &'static str,
    socket: std::path::PathBuf,
    random: Random,
    stop: Arc<AtomicBool>,
    tally: Arc<Tally>,
}

impl Life {
    /// Gives the last connection and its memory, which must stay until the end was looked at.
    async fn run(mut self) -> Option<(Engine, Memory)> {
        let mut last = None;
        while !self.stop.load(Ordering::Relaxed) || last.is_none() {
            match self.attach().await {
                Some((engine, memory)) => {
                    while !self.stop.load(Ordering::Relaxed)
                        && self.step(&engine, &memory).await.is_some()
                    {}
                    last = Some((engine, memory));
                }
                None => sleep(Duration::from_millis(20)).await,
            }
        }
        last
    }

    async fn attach(&self) -> Option<(Engine, Memory)> {
        let engine = Engine::try_connect(&self.socket).await?;
        let memory = engine.try_region(namespace("n"), SLOTS * 2).await?;
        Some((engine, memory))
    }

    /// Publishes a few blocks or pulls a few; None when the agent has gone.
    async fn step(&mut self, engine: &Engine, memory: &Memory) -> Option<()> {
        if self.random.below(3) == 0 {
            return self.publish(engine, memory).await;
        }
        self.pull(engine, memory).await
    }

    async fn publish(&mut self, engine: &Engine, memory: &Memory) -> Option<()> {
        let mut api = engine.api.clone();
        let first = self.random.below(u64::from(SLOTS) - 8) as u32;
        let slots: Vec<u32> = (first..first + 8).collect();
        let blocks: Vec<u64> = slots.iter().map(|_| self.random.below(BLOCKS)).collect();
        api.reserve(pb::ReserveRequest {
            region: memory.region,
            count: 0,
            slots: slots.clone(),
        })
        .await
        .ok()?;
        for (slot, n) in slots.iter().zip(&blocks) {
            memory.write(*slot, &block(*n));
        }
        api.seal(pb::SealRequest {
            region: memory.region,
            slots,
            hashes: Some(pack(&hashes(blocks.into_iter()))),
            ..pb::SealRequest::default()
        })
        .await
        .ok()?;
        self.tally.published.fetch_add(8, Ordering::Relaxed);
        Some(())
    }

    async fn pull(&mut self, engine: &Engine, memory: &Memory) -> Option<()> {
        let count = 1 + self.random.below(16) as u32;
        let first = SLOTS + self.random.below(u64::from(SLOTS - count)) as u32;
        let slots: Vec<u32> = (first..first + count).collect();
        let blocks: Vec<u64> = slots.iter().map(|_| self.random.below(BLOCKS)).collect();
        let start = Instant::now();
        let outcomes = engine
            .pull_slots("n", &blocks, memory.region, slots.clone(), PULL_TIMEOUT)
            .await
            .ok()?;
        let took = start.elapsed();
        // A stopped agent answers when it goes on.
        assert!(
            took < PULL_TIMEOUT + LATE,
            "{}: a pull took {took:?}",
            self.node
        );
        for outcome in outcomes {
            let (n, slot) = (
                blocks[outcome.index as usize],
                slots[outcome.index as usize],
            );
            match outcome.kind() {
                OutcomeKind::Pulled | OutcomeKind::Local => {
                    assert!(
                        memory.read(slot) == block(n),
                        "{}: block {n} is wrong: {outcome:?}",
                        self.node
                    );
                    let counter = match outcome.kind() {
                        OutcomeKind::Pulled => &self.tally.pulled,
                        _ => &self.tally.local,
                    };
                    counter.fetch_add(1, Ordering::Relaxed);
                }
                _ => {
                    self.tally.failed.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        Some(())
    }
}
