//! What came of a point, as it is kept and compared.

use serde::{Deserialize, Serialize};

use super::point::Point;
use crate::stats::{Rounds, Samples};

/// Shares at which a latency distribution is kept for plots.
const CURVE: [f64; 13] = [
    0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0,
];

/// A median over rounds, and how far they lay apart.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Spread {
    /// The middle round.
    pub median: f64,
    /// The worst or best one.
    pub min: f64,
    /// See `min`.
    pub max: f64,
}

impl Spread {
    pub(super) fn of(rounds: &Rounds) -> Self {
        let (min, max) = rounds.range();
        let median = rounds.median();
        Self { median, min, max }
    }

    /// The distance between the extremes, as a share of the median.
    #[must_use]
    pub fn relative(&self) -> f64 {
        match self.median {
            0.0 => 0.0,
            median => (self.max - self.min) / median,
        }
    }
}

/// A distribution of times, in microseconds.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Times {
    /// Half took at most this.
    pub p50: f64,
    /// See `p50`.
    pub p90: f64,
    /// See `p50`.
    pub p99: f64,
    /// See `p50`.
    pub p999: f64,
    /// `(share, microseconds)`, for plots.
    pub curve: Vec<(f64, f64)>,
}

impl Times {
    pub(crate) fn of(samples: &mut Samples) -> Self {
        let mut at = |share| samples.percentile(share).as_secs_f64() * 1e6;
        Self {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            curve: CURVE.map(|share| (share, at(share))).into(),
        }
    }
}

/// What a yardstick gave beside a point.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measure {
    /// Which.
    pub name: String,
    /// Its speed.
    pub gb_per_s: Spread,
    /// kvferry's speed by its own, round by round.
    pub ratio: Spread,
    /// Per batch.
    pub batch_us: Times,
    /// Both its processes.
    pub core_seconds_per_gb: f64,
}

/// One point.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PointResult {
    /// In a few words.
    pub name: String,
    /// What was measured.
    pub point: Point,
    /// Speed.
    pub gb_per_s: Spread,
    /// Blocks in a second, all readers together.
    pub blocks_per_s: f64,
    /// Per pull call, as the engine saw it; per block where a call has one.
    pub batch_us: Times,
    /// The question to the coordinator, of it.
    pub locate_us: Times,
    /// What is left of a call within the agent when the blocks are located.
    pub located_us: Times,
    /// From the first read to the last, of it.
    pub wire_us: Times,
    /// From the call to each block's outcome: the first blocks of a call can be used before its last.
    #[serde(default)]
    pub block_us: Times,
    /// Of the owner's agent.
    pub owner_core_seconds_per_gb: f64,
    /// Of the readers' agents.
    pub reader_core_seconds_per_gb: f64,
    /// Of the engine, which is this program, and of the coordinator.
    pub other_core_seconds_per_gb: f64,
    /// Pull calls that were timed.
    pub batches: u64,
    /// Bytes compared with the owner's, block by block.
    pub verified_bytes: u64,
    /// What the machine gives without kvferry; the first is the headline.
    pub yardsticks: Vec<Measure>,
    /// Share of the machine that went to processes that are not the benchmark's.
    pub others: f64,
    /// The kernel's load average at the end.
    pub load: f64,
    /// Why the figures are not to be trusted; empty where they are.
    pub noise: String,
}

impl PointResult {
    /// The ratio to the first yardstick.
    #[must_use]
    pub fn headline(&self) -> Option<&Measure> {
        self.yardsticks.first()
    }

    /// Processor time of both agents.
    #[must_use]
    pub fn agents_core_seconds_per_gb(&self) -> f64 {
        self.owner_core_seconds_per_gb + self.reader_core_seconds_per_gb
    }
}
