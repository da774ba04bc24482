//! How long things take.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

const US: u64 = 1_000;
const MS: u64 = 1_000 * US;
const S: u64 = 1_000 * MS;

/// Upper bounds of the buckets, in nanoseconds: from an answer out of memory (10 us) to a deadline that
/// was too long (10 s). One set for all, so that they can be laid over each other.
pub const BOUNDS: [u64; 19] = [
    10 * US,
    25 * US,
    50 * US,
    100 * US,
    250 * US,
    500 * US,
    MS,
    2_500 * US,
    5 * MS,
    10 * MS,
    25 * MS,
    50 * MS,
    100 * MS,
    250 * MS,
    500 * MS,
    S,
    2_500 * MS,
    5 * S,
    10 * S,
];

/// Durations in buckets. An observation is two relaxed atomic additions, no lock and no allocation.
#[derive(Debug, Default)]
pub struct Histogram {
    /// By the first bound that is not exceeded; the last one has none.
    buckets: [AtomicU64; BOUNDS.len() + 1],
    sum_ns: AtomicU64,
}

impl Histogram {
    /// Something took so long.
    pub fn observe(&self, took: Duration) {
        // 584 years.
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let bucket = BOUNDS.partition_point(|bound| ns > *bound);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum_ns.fetch_add(ns, Ordering::Relaxed);
    }

    /// How often.
    #[must_use]
    pub fn count(&self) -> u64 {
        let buckets = self.buckets.iter();
        buckets.map(|bucket| bucket.load(Ordering::Relaxed)).sum()
    }

    /// Sum in seconds, count, and the buckets as (upper bound in seconds, count of this one). The
    /// count is that of the buckets, so that the three fit together while others observe.
    pub(crate) fn snapshot(&self) -> (f64, u64, [(f64, u64); BOUNDS.len() + 1]) {
        let mut count = 0;
        let mut buckets = [(f64::INFINITY, 0); BOUNDS.len() + 1];
        for (place, (bucket, told)) in self.buckets.iter().zip(&mut buckets).enumerate() {
            if let Some(bound) = BOUNDS.get(place) {
                told.0 = *bound as f64 / S as f64;
            }
            told.1 = bucket.load(Ordering::Relaxed);
            count += told.1;
        }
        let sum = self.sum_ns.load(Ordering::Relaxed) as f64 / S as f64;
        (sum, count, buckets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_belongs_to_its_bucket() {
        let histogram = Histogram::default();
        for ns in [0, 10 * US, 10 * US + 1, 10 * S, 10 * S + 1, 3_600 * S] {
            histogram.observe(Duration::from_nanos(ns));
        }
        let (sum, count, buckets) = histogram.snapshot();
        assert_eq!(count, 6);
        assert_eq!(histogram.count(), 6);
        assert!((sum - 3_620.000_02).abs() < 1e-6, "{sum}");
        let told: Vec<_> = buckets.iter().map(|bucket| bucket.1).collect();
        assert_eq!(told[..3], [2, 1, 0]);
        assert_eq!(told[BOUNDS.len() - 1..], [1, 2]);
        assert!(buckets.is_sorted_by(|a, b| a.0 < b.0));
    }
}
