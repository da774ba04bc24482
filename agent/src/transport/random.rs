//! Randomness from a seed: for simulations that repeat themselves, and for jitter.

use std::hash::{BuildHasher, Hasher, RandomState};

/// The splitmix64 generator: small, seeded by any number, good enough for faults and jitter.
#[derive(Debug, Clone)]
pub(super) struct SplitMix64(u64);

impl SplitMix64 {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Seeded by the process's own hash keys, which the system chose.
    pub(super) fn from_system() -> Self {
        Self(RandomState::new().build_hasher().finish())
    }

    pub(super) fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in `low..=high`.
    pub(super) fn within(&mut self, low: u64, high: u64) -> u64 {
        match high.saturating_sub(low).checked_add(1) {
            Some(count) => low.saturating_add(self.next_u64() % count),
            None => self.next_u64(),
        }
    }

    /// True in `ppm` of a million cases.
    pub(super) fn happens(&mut self, ppm: u32) -> bool {
        ppm > 0 && self.next_u64() % 1_000_000 < u64::from(ppm)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_itself() {
        let mut random = SplitMix64::new(0);
        // The reference implementation's first numbers.
        assert_eq!(random.next_u64(), 0xe220_a839_7b1d_cdaf);
        assert_eq!(random.next_u64(), 0x6e78_9e6a_a1b9_65f4);
        assert!((0..1000).all(|_| (3..=5).contains(&random.within(3, 5))));
        assert!(!random.happens(0));
        assert!(random.happens(1_000_000));
    }
}
