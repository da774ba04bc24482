//! What a seed decides about a world before it runs: how large blocks are, how bad the network is.

use std::time::Duration;

use kvferry_agent::transfer::TransferConfig;
use kvferry_proto::{ChecksumPolicy, NamespaceSpec};

use crate::{
    names::{MODEL, Names, OTHER, WEIGHTS},
    queue::{MS, Micros, SECOND},
    random::Random,
};

/// A coordinator wants to hear from its agents this often.
pub(crate) const HEARTBEAT: Micros = SECOND;
/// Silent nodes are hidden after this time,
pub(crate) const HIDE_AFTER: Micros = 3 * SECOND;
/// and forgotten after this.
pub(crate) const PURGE_AFTER: Micros = 10 * SECOND;
/// How often a coordinator looks for the silent.
pub(crate) const TICK: Micros = 500 * MS;
/// After the last fault everything must have converged within this time: a silent stream is noticed
/// within 4 heartbeats, a dead node with a greater incarnation is purged, the session tries again
/// after its longest pause (5 s), and pulls (5 s), settling (3 s) and pins (10 s) end beside it.
pub(crate) const CONVERGES_WITHIN: Micros = 40 * SECOND;

/// Conditions of one world.
#[derive(Debug, Clone)]
pub(crate) struct Conditions {
    /// What blocks are, and what they are called.
    pub(crate) names: Names,
    /// Namespaces that engines publish blocks in.
    pub(crate) tenants: usize,
    /// Slots for chunks of tensors that every process has; 0: there are no sets of tensors.
    pub(crate) chunk_slots: u32,
    /// Slots of a pool.
    pub(crate) pool_slots: u32,
    /// Slots of an engine's region, where a node has one.
    pub(crate) engine_slots: u32,
    /// Hashes there are.
    pub(crate) hashes: u64,
    /// Between two operations of a node, on average.
    pub(crate) pace: Micros,
    /// Shortest and longest way of a message.
    pub(crate) delay: (Micros, Micros),
    /// Unary calls lost, of a thousand.
    pub(crate) loss: u64,
    /// Unary calls that arrive twice.
    pub(crate) duplicates: u64,
    /// Reads that stand still.
    pub(crate) hangs: u64,
    /// Reads in which the link is lost.
    pub(crate) link_loss: u64,
    /// Links on which the owner's processor takes no part, as with RDMA.
    pub(crate) one_sided: u64,
    /// Longest time such a link takes to settle a read that is cancelled.
    pub(crate) settles_within: Micros,
    /// Clocks that run fast or slow by up to so many per million.
    pub(crate) drift_ppm: u64,
    /// The bounds of a pull.
    pub(crate) transfer: TransferConfig,
    /// Spans and bytes a link takes at once.
    pub(crate) link: (usize, u64),
}

impl Conditions {
    /// Those of a seed.
    #[must_use]
    pub(crate) fn of(seed: u64, nodes: usize) -> Self {
        let mut random = Random::of(seed, 2);
        let plane = 8 * random.within(3, 12);
        let checksum = random.pick(&[
            ChecksumPolicy::Off,
            ChecksumPolicy::Off,
            ChecksumPolicy::Always,
        ]);
        let pool_slots = random.within(4, 24) as u32;
        let block = 2 * plane;
        let defaults = TransferConfig::default();
        Self {
            names: Names::new(seed, plane, checksum),
            tenants: 1,
            chunk_slots: 0,
            pool_slots,
            engine_slots: random.within(2, 8) as u32,
            // Enough that pools overflow, few enough that blocks are shared.
            hashes: random.within(8, 1 + u64::from(pool_slots) * (nodes as u64).max(2)),
            pace: random.pick(&[50, 100, 300]) * MS * (1 + nodes as u64 / 8),
            delay: random.pick(&[(20, 200), (100, 3 * MS), (MS, 40 * MS), (50, 200 * MS)]),
            loss: random.pick(&[0, 10, 100]),
            duplicates: random.pick(&[0, 20, 200]),
            hangs: random.pick(&[0, 10, 60]),
            link_loss: random.pick(&[0, 10, 50]),
            one_sided: random.pick(&[0, 500, 1000]),
            settles_within: random.pick(&[MS, 200 * MS, 3 * SECOND]),
            drift_ppm: random.pick(&[0, 200, 20_000]),
            transfer: TransferConfig {
                op_bytes: block * random.within(1, 6),
                op_blocks: random.within(1, 5) as usize,
                ops_per_window: random.within(1, 4),
                inflight_bytes: block * random.within(1, 12),
                generation_words: random.within(1, 6) as usize,
                stripe_bytes: block * random.within(1, 3),
                max_sources: random.within(1, 4) as usize,
                stall_bound: Duration::from_millis(random.pick(&[200, 500, 2000])),
                ..defaults
            },
            link: (
                random.within(1, 6) as usize,
                8 * random.within(1, block / 4),
            ),
        }
    }

    /// Those that blocks are published in.
    pub(crate) fn namespaces(&self) -> Vec<usize> {
        let engines = (0..self.tenants).map(|tenant| [MODEL, OTHER][tenant]);
        let weights = (self.chunk_slots > 0).then_some(WEIGHTS);
        engines.chain(weights).collect()
    }

    /// Of the namespace that a block is in.
    pub(crate) fn spec_of(&self, number: u64) -> &NamespaceSpec {
        self.names.spec_of(number)
    }

    /// What a namespace is.
    pub(crate) fn spec(&self, namespace: usize) -> &NamespaceSpec {
        self.names.spec(namespace)
    }
}
