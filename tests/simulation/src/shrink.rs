//! Cuts the faults of a failing run down to those it needs.

use std::collections::BTreeSet;

use crate::{Options, Report, World};

/// Most runs a cut may take.
const MOST_RUNS: usize = 400;

/// The faults that are left when no single one, and no half of them, can be spared, with the report of
/// the run that has only those. The same promise must break.
#[must_use]
pub fn shrink(options: &Options, failed: &Report) -> (Vec<usize>, Report) {
    let promise = failed.violation.as_ref().map(|violation| violation.promise);
    let mut left: Vec<usize> = match &options.keep {
        Some(keep) => keep.iter().copied().collect(),
        None => (0..failed.faults).collect(),
    };
    let mut best = failed.clone();
    let mut runs = 0;
    let mut chunk = left.len().div_ceil(2);
    while chunk > 0 && runs < MOST_RUNS {
        let mut at = 0;
        while at < left.len() && runs < MOST_RUNS {
            let without: Vec<_> = left
                .iter()
                .enumerate()
                .filter(|(place, _)| !(at..at + chunk).contains(place))
                .map(|(_, fault)| *fault)
                .collect();
            let keep: BTreeSet<_> = without.iter().copied().collect();
            let report = World::new(&Options {
                keep: Some(keep),
                ..options.clone()
            })
            .run();
            runs += 1;
            let still = report.violation.as_ref().map(|violation| violation.promise);
            if still == promise {
                (left, best) = (without, report);
            } else {
                at += chunk;
            }
        }
        chunk = match chunk {
            1 => 0,
            more => more.div_ceil(2),
        };
    }
    (left, best)
}
