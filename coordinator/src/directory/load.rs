//! How much is read from a node, and what that means for who is offered.
//!
//! Readers tell: nobody else knows of a one-sided read or of one through shared memory. What they tell
//! is a hint, and fades.

use std::time::Duration;

/// After this long a report counts half: some heartbeats, so that one late report changes little, and
/// few enough that a node is offered again soon after its readers have left.
const HALF_LIFE_SECONDS: f64 = 2.0;
/// A node that serves less than this is idle: a hundredth of a fast network's card. Differences below
/// it turn nobody away.
const IDLE_BYTES_PER_SECOND: u64 = 64 << 20;
/// The weight of an idle node, as a penalty.
pub(super) const NO_PENALTY: u32 = 16;
/// More than a heartbeat's time of the fastest host's memory: what is more was not read.
const MAX_BYTES_PER_REPORT: u64 = 1 << 40;
/// Beyond 4 TB/s nobody is offered less.
const MAX_PENALTY: u32 = 1 << 20;

/// Bytes per second read from one node, as a mean that forgets.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Load {
    bytes_per_second: f64,
    at: Duration,
}

impl Load {
    /// So many bytes were read since the last report.
    pub(super) fn add(&mut self, now: Duration, bytes: u64) {
        self.fade(now);
        // Integrated over all time, one byte's share is one byte.
        let bytes = bytes.min(MAX_BYTES_PER_REPORT);
        self.bytes_per_second += bytes as f64 * std::f64::consts::LN_2 / HALF_LIFE_SECONDS;
    }

    /// Time passed.
    pub(super) fn fade(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.at).as_secs_f64();
        self.at = self.at.max(now);
        self.bytes_per_second *= (-passed / HALF_LIFE_SECONDS).exp2();
    }

    pub(super) fn bytes_per_second(&self) -> u64 {
        self.bytes_per_second as u64
    }

    /// How much less a node is offered: twice the penalty, half as often first.
    pub(super) fn penalty(&self) -> u32 {
        let idle = IDLE_BYTES_PER_SECOND / u64::from(NO_PENALTY);
        let more = self.bytes_per_second() / idle;
        u32::try_from(more)
            .unwrap_or(MAX_PENALTY)
            .saturating_add(NO_PENALTY)
            .min(MAX_PENALTY)
    }
}

/// What a candidate is ordered by: equals in the order of their ties, and otherwise so that a node
/// with a penalty of p is first in proportion to 1/p. (The least of exponential variables: -ln of a
/// uniform number, over its weight. Here -log2, with a straight line between powers of two.)
pub(super) fn order(tie: u64, penalty: u32) -> u64 {
    let uniform = !tie;
    let zeros = uniform.leading_zeros();
    // What follows the first one, without it.
    let fraction = uniform.checked_shl(zeros + 1).unwrap_or(0) >> 32;
    let bits = (u64::from(zeros) << 32) | (u64::from(u32::MAX) - fraction);
    bits.saturating_mul(u64::from(penalty))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_steady_stream_is_its_rate_and_an_ended_one_fades() {
        let mut load = Load::default();
        for second in 1..=30 {
            load.add(seconds(second), 1_000_000);
        }
        let steady = load.bytes_per_second();
        assert!((900_000..1_400_000).contains(&steady), "{steady}");
        load.fade(seconds(32));
        assert_eq!(load.bytes_per_second(), steady / 2);
        load.fade(seconds(31));
        assert_eq!(load.bytes_per_second(), steady / 2, "time never goes back");
        load.fade(seconds(10_000));
        assert_eq!(load.bytes_per_second(), 0);
    }

    #[test]
    fn penalties_grow_with_what_is_served_and_have_an_end() {
        let at = |bytes_per_second: f64| {
            let at = Duration::ZERO;
            Load {
                bytes_per_second,
                at,
            }
            .penalty()
        };
        assert_eq!(at(0.0), NO_PENALTY);
        let idle = IDLE_BYTES_PER_SECOND as f64;
        assert_eq!(at(idle), 2 * NO_PENALTY);
        assert_eq!(at(7.0 * idle), 8 * NO_PENALTY);
        assert_eq!(at(1e30), MAX_PENALTY);
    }

    #[test]
    fn equals_keep_the_order_of_their_ties() {
        let ties = [0, 1 << 20, 1 << 40, 1 << 63, u64::MAX - (1 << 40), u64::MAX];
        let orders = ties.map(|tie| order(tie, NO_PENALTY));
        assert!(orders.is_sorted(), "{orders:?}");
    }

    #[test]
    fn who_serves_three_times_as_much_is_first_a_third_as_often() {
        let mut state = 1u64;
        let mut random = || {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            state ^ (state >> 33)
        };
        let firsts = (0..40_000).filter(|_| order(random(), 16) < order(random(), 48));
        let share = firsts.count() as f64 / 40_000.0;
        assert!((0.72..0.78).contains(&share), "{share}");
    }
}
