//! What changed between two runs. Ratios to the yardstick are compared first: they survive a change of
//! machine, and mostly its mood.

use super::result::PointResult;

/// A ratio must move by this much, beyond both runs' spreads, to be called a change.
const NOTABLE: f64 = 0.05;

/// One point in both runs.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// Which.
    pub name: String,
    /// Ratio to the yardstick, before and after.
    pub ratio: (f64, f64),
    /// Speed.
    pub gb_per_s: (f64, f64),
    /// p50 of a call, in microseconds.
    pub p50_us: (f64, f64),
    /// Processor time of both agents.
    pub core_seconds_per_gb: (f64, f64),
    /// What it comes to.
    pub verdict: Verdict,
}

/// Is it a change?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The ratio rose beyond the spread of both.
    Better,
    /// It fell beyond it.
    Worse,
    /// The runs' spreads overlap.
    Same,
}

impl Verdict {
    /// In a word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Better => "better",
            Self::Worse => "WORSE",
            Self::Same => "same",
        }
    }
}

/// The points both runs have, in the order of the first.
#[must_use]
pub fn changes(before: &[PointResult], after: &[PointResult]) -> Vec<Change> {
    before
        .iter()
        .filter_map(|old| {
            let new = after.iter().find(|new| new.point == old.point)?;
            let (a, b) = (old.headline()?.ratio, new.headline()?.ratio);
            let verdict = match () {
                () if b.median >= a.median + NOTABLE && b.median > a.max && b.min > a.median => {
                    Verdict::Better
                }
                () if b.median + NOTABLE <= a.median && b.median < a.min && b.max < a.median => {
                    Verdict::Worse
                }
                () => Verdict::Same,
            };
            Some(Change {
                name: old.name.clone(),
                ratio: (a.median, b.median),
                gb_per_s: (old.gb_per_s.median, new.gb_per_s.median),
                p50_us: (old.batch_us.p50, new.batch_us.p50),
                core_seconds_per_gb: (
                    old.agents_core_seconds_per_gb(),
                    new.agents_core_seconds_per_gb(),
                ),
                verdict,
            })
        })
        .collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::transfer::{
        point::{Point, Transport},
        result::{Measure, Spread, Times},
    };

    pub(crate) fn result(block: u64, ratio: f64) -> PointResult {
        let point = Point::new(Transport::Tcp, block, 64);
        let spread = |median: f64| Spread {
            median,
            min: median - 0.02,
            max: median + 0.02,
        };
        let times = Times {
            p50: 100.0,
            p90: 150.0,
            p99: 200.0,
            p999: 300.0,
            curve: vec![(0.0, 50.0), (0.5, 100.0), (1.0, 300.0)],
        };
        PointResult {
            name: point.name(),
            gb_per_s: spread(4.0 * ratio),
            blocks_per_s: 1e4,
            batch_us: times.clone(),
            locate_us: times.clone(),
            located_us: times.clone(),
            wire_us: times.clone(),
            block_us: times.clone(),
            owner_core_seconds_per_gb: 0.2,
            reader_core_seconds_per_gb: 0.2,
            other_core_seconds_per_gb: 0.01,
            batches: 100,
            verified_bytes: 1 << 30,
            yardsticks: vec![Measure {
                name: "sockets <1 & 2>".into(),
                gb_per_s: spread(4.0),
                ratio: spread(ratio),
                batch_us: times,
                core_seconds_per_gb: 0.4,
            }],
            others: 0.01,
            load: 1.0,
            noise: String::new(),
            point,
        }
    }

    #[test]
    fn a_change_is_what_the_spread_does_not_explain() {
        let verdict = |a, b| changes(&[result(1024, a)], &[result(1024, b)])[0].verdict;
        assert_eq!(verdict(0.5, 0.9), Verdict::Better);
        assert_eq!(verdict(0.9, 0.5), Verdict::Worse);
        assert_eq!(verdict(0.9, 0.91), Verdict::Same);
        assert!(changes(&[result(1024, 1.0)], &[result(2048, 1.0)]).is_empty());
        let mut by_tls = result(1024, 0.5);
        by_tls.point.transport = Transport::TcpTls;
        assert!(changes(&[result(1024, 1.0)], &[by_tls]).is_empty());
    }

    #[test]
    fn results_are_read_back() {
        let results = vec![result(1024, 0.5), result(4096, 0.75)];
        let lines: Vec<_> = results
            .iter()
            .map(|result| serde_json::to_string(result).unwrap())
            .collect();
        let read = crate::compare::Run::parse(&lines.join("\n")).unwrap();
        assert_eq!(read, crate::compare::Run::Transfer(results));
    }
}
