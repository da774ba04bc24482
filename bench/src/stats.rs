//! Percentiles over samples, medians over rounds.

use std::time::Duration;

/// Times of single requests, in nanoseconds.
#[derive(Debug, Clone, Default)]
pub struct Samples {
    nanos: Vec<u64>,
}

impl Samples {
    /// Adds one.
    pub fn push(&mut self, time: Duration) {
        self.nanos
            .push(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Adds one so many times.
    pub fn push_many(&mut self, time: Duration, times: u32) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let len = self.nanos.len() + times as usize;
        self.nanos.resize(len, nanos);
    }

    /// Adds all of another.
    pub fn merge(&mut self, mut other: Self) {
        self.nanos.append(&mut other.nanos);
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.nanos.len()
    }

    /// None at all?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.nanos.is_empty()
    }

    /// The time that `share` (0 to 1) of all are at or under; zero without samples.
    pub fn percentile(&mut self, share: f64) -> Duration {
        self.nanos.sort_unstable();
        let last = self.nanos.len().saturating_sub(1);
        let at = (last as f64 * share).ceil() as usize;
        Duration::from_nanos(self.nanos.get(at).copied().unwrap_or(0))
    }
}

/// One value a round.
#[derive(Debug, Clone, Default)]
pub struct Rounds {
    values: Vec<f64>,
}

impl Rounds {
    /// Adds a round.
    pub fn push(&mut self, value: f64) {
        self.values.push(value);
    }

    /// The middle one.
    #[must_use]
    pub fn median(&self) -> f64 {
        self.at(0.5)
    }

    /// The least and the greatest: what a shared machine does to a figure.
    #[must_use]
    pub fn range(&self) -> (f64, f64) {
        (self.at(0.0), self.at(1.0))
    }

    fn at(&self, share: f64) -> f64 {
        let mut sorted = self.values.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        let last = sorted.len().saturating_sub(1);
        let at = (last as f64 * share).round() as usize;
        sorted.get(at).copied().unwrap_or(0.0)
    }
}

impl FromIterator<f64> for Rounds {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        Self {
            values: values.into_iter().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples() {
        let mut samples = Samples::default();
        assert_eq!(samples.percentile(0.99), Duration::ZERO);
        for n in (1..=100).rev() {
            samples.push(Duration::from_nanos(n));
        }
        assert_eq!(samples.percentile(0.0), Duration::from_nanos(1));
        assert_eq!(samples.percentile(0.99), Duration::from_nanos(100));
        assert_eq!(samples.percentile(1.0), Duration::from_nanos(100));
    }

    #[test]
    fn a_median_is_the_middle_round() {
        let rounds: Rounds = [3.0, 1.0, 2.0].into_iter().collect();
        assert_eq!((rounds.median(), rounds.range()), (2.0, (1.0, 3.0)));
    }
}
