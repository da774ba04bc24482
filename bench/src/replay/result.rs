//! What came of a replay, as it is kept.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::transfer::result::Times;

/// How a trace was replayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Means {
    /// Agents and a coordinator in processes of their own, in real time.
    Processes,
    /// Stores, directory and pull engines over a modelled network, in virtual time.
    Simulator,
}

/// The same thing, by where prompts found their blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Split {
    /// In the node's own pool.
    pub local: u64,
    /// Pulled from another node.
    pub remote: u64,
    /// Nowhere, or behind the first block that was nowhere.
    pub miss: u64,
}

impl Split {
    /// All of them.
    #[must_use]
    pub fn all(&self) -> u64 {
        self.local + self.remote + self.miss
    }

    /// Shares of all: local, remote, miss.
    #[must_use]
    pub fn shares(&self) -> [f64; 3] {
        [self.local, self.remote, self.miss].map(|part| part as f64 / self.all().max(1) as f64)
    }

    /// The share that needed no computing.
    #[must_use]
    pub fn hit(&self) -> f64 {
        let [local, remote, _] = self.shares();
        local + remote
    }
}

/// How evenly nodes were pulled from.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Balance {
    /// Nodes that anything was pulled from.
    pub sources: u64,
    /// What the busiest of them gave, as a share of everything.
    pub busiest_share: f64,
    /// The same, by what a node of the cluster gave on average: 1 is even.
    pub busiest_to_mean: f64,
}

/// What the coordinator was asked and told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Asked {
    /// Locate requests.
    pub locates: u64,
    /// Hashes in them.
    pub hashes: u64,
    /// Deltas of agents.
    pub deltas: u64,
}

/// The network of a simulation.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct NetworkResult {
    /// Of each node, in each direction.
    pub nic_gbit_per_s: f64,
    /// Between any two processes.
    pub rtt_us: f64,
    /// The busiest port, as a share of the time it had.
    pub busiest_port: f64,
    /// What the coordinator was asked and told.
    pub coordinator: Asked,
    /// Events of the simulation.
    pub events: u64,
}

/// One replay.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReplayResult {
    /// In a few words.
    pub name: String,
    /// How.
    pub means: Means,
    /// Agents.
    pub nodes: u32,
    /// Of each one's pool.
    pub pool_bytes: u64,
    /// Of a block.
    pub block_bytes: u64,
    /// Where that comes from.
    pub model: String,
    /// Which node got a request.
    pub routing: String,
    /// The trace's times were divided by this.
    pub speed: f64,
    /// Requests of the trace that were replayed.
    pub requests: u64,
    /// From the start to the last request's end, in the run's time.
    pub span_s: f64,
    /// Prompt tokens.
    pub tokens: Split,
    /// Prompt blocks.
    pub blocks: Split,
    /// The share of tokens that needed no computing.
    pub hit: f64,
    /// The share a single cache without end would have had: the yardstick.
    pub best_hit: f64,
    /// Bytes pulled.
    pub bytes_pulled: u64,
    /// Requests that pulled anything.
    pub pulls: u64,
    /// From a request's arrival to its answer where the blocks of its prompt are.
    pub lookup_us: Times,
    /// A pull, where there was something to pull.
    pub pull_us: Times,
    /// All pulls, one after the other.
    pub pull_s: f64,
    /// What prefill is reckoned at.
    pub prefill_tokens_per_s: f64,
    /// Computing what was pulled would have taken so long.
    pub prefill_saved_s: f64,
    /// Computing what was there already would have taken so long.
    pub prefill_spared_locally_s: f64,
    /// Pulls that took longer than computing the same tokens would have.
    pub slower_than_prefill: u64,
    /// Who was pulled from.
    pub balance: Balance,
    /// Blocks of pulls that came to neither pulled nor local, by outcome.
    pub not_pulled: BTreeMap<String, u64>,
    /// Blocks given up to make room.
    pub evictions: u64,
    /// Computed blocks for which there was no room.
    pub not_stored: u64,
    /// How late requests began, where time was real.
    pub late_us: Option<Times>,
    /// Bytes of pulled and local blocks that were compared with what they must be, where there are bytes.
    pub verified_bytes: Option<u64>,
    /// The modelled network, where there is one.
    pub network: Option<NetworkResult>,
    /// How long it took.
    pub took_s: f64,
    /// The kernel's load average at the end.
    pub load: f64,
}

impl ReplayResult {
    /// Prefill time saved, by the time that pulling took.
    #[must_use]
    pub fn gain(&self) -> f64 {
        match self.pull_s {
            0.0 => 0.0,
            pulling => self.prefill_saved_s / pulling,
        }
    }
}
