//! What the demo measured, as a table and as JSON.

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;

use crate::{
    output::{self, OutputError},
    size::{ByteSize, duration, gb_per_s},
};

/// One phase of the demo.
#[derive(Debug, Default)]
pub(super) struct Phase {
    pub(super) name: String,
    /// Blocks that were moved.
    pub(super) blocks: usize,
    pub(super) bytes: u64,
    pub(super) took: Duration,
    /// Per pull call, in microseconds.
    pub(super) locate_us: Vec<u64>,
    pub(super) pull_us: Vec<u64>,
    /// Blocks by the path they took, and by the reason where they took none.
    pub(super) paths: BTreeMap<String, usize>,
}

#[derive(Debug, Serialize)]
struct Row {
    phase: String,
    blocks: usize,
    bytes: u64,
    seconds: f64,
    gb_per_s: f64,
    calls: usize,
    locate_p50_us: Option<u64>,
    locate_p99_us: Option<u64>,
    pull_p50_us: Option<u64>,
    pull_p99_us: Option<u64>,
    paths: BTreeMap<String, usize>,
}

#[derive(Debug, Serialize)]
struct Report {
    ok: bool,
    block_bytes: u64,
    phases: Vec<Row>,
}

impl From<Phase> for Row {
    fn from(mut phase: Phase) -> Self {
        phase.locate_us.sort_unstable();
        phase.pull_us.sort_unstable();
        Self {
            gb_per_s: gb_per_s(phase.bytes, phase.took),
            seconds: phase.took.as_secs_f64(),
            calls: phase.pull_us.len(),
            locate_p50_us: percentile(&phase.locate_us, 50),
            locate_p99_us: percentile(&phase.locate_us, 99),
            pull_p50_us: percentile(&phase.pull_us, 50),
            pull_p99_us: percentile(&phase.pull_us, 99),
            phase: phase.name,
            blocks: phase.blocks,
            bytes: phase.bytes,
            paths: phase.paths,
        }
    }
}

/// Nearest rank: the smallest value that as many percent of all values do not exceed.
fn percentile(sorted: &[u64], percent: usize) -> Option<u64> {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied()
}

/// Prints the phases of a demo in which every byte was right.
pub(super) fn print(phases: Vec<Phase>, block_bytes: u64, json: bool) -> Result<(), OutputError> {
    let phases: Vec<Row> = phases.into_iter().map(Row::from).collect();
    if json {
        return output::json(&Report {
            ok: true,
            block_bytes,
            phases,
        });
    }
    let cells = |row: Row| {
        [
            row.phase,
            row.blocks.to_string(),
            ByteSize(row.bytes).to_string(),
            duration(Duration::from_secs_f64(row.seconds)),
            format!("{:.2}", row.gb_per_s),
            pair(row.locate_p50_us, row.locate_p99_us),
            pair(row.pull_p50_us, row.pull_p99_us),
            paths(&row.paths),
        ]
    };
    output::rows(
        [
            "phase",
            "blocks",
            "bytes",
            "took",
            "GB/s",
            "locate p50/p99",
            "pull p50/p99",
            "path",
        ],
        phases.into_iter().map(cells).collect(),
        "nothing was done",
    )
}

fn pair(p50: Option<u64>, p99: Option<u64>) -> String {
    match (p50, p99) {
        (Some(p50), Some(p99)) => format!(
            "{} / {}",
            duration(Duration::from_micros(p50)),
            duration(Duration::from_micros(p99))
        ),
        _ => "-".to_owned(),
    }
}

fn paths(paths: &BTreeMap<String, usize>) -> String {
    let parts: Vec<_> = paths
        .iter()
        .map(|(path, blocks)| format!("{blocks} {path}"))
        .collect();
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let values: Vec<u64> = (1..=200).collect();
        assert_eq!(percentile(&values, 50), Some(100));
        assert_eq!(percentile(&values, 99), Some(198));
        assert_eq!(percentile(&[7], 50), Some(7));
        assert_eq!(percentile(&[7], 99), Some(7));
        assert_eq!(percentile(&[], 50), None);
    }
}
