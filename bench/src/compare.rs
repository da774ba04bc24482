//! What changed between two runs of the same benchmark, whichever it is.

use std::collections::HashMap;

use serde_json::Value;

use crate::{
    replay::{result::ReplayResult, table as replay_table},
    report::{Figure, short},
    transfer::{
        compare::{self as transfers, Verdict},
        result::PointResult,
        table::micros,
    },
};

/// A hit ratio must move by this much to be called a change: real replays differ by less from run to run.
const NOTABLE_HITS: f64 = 0.005;
/// A coordinator's figure must move by this share, beyond both runs' extremes.
const NOTABLE_SHARE: f64 = 0.05;

/// Why two runs are not compared.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// A line that no benchmark prints.
    #[error(
        "line {line} is not of `bench transfer`, `bench replay` or `bench coordinator` with --json: {source}"
    )]
    Line {
        /// From 1 on.
        line: usize,
        /// Why.
        source: serde_json::Error,
    },
    /// Nothing to compare.
    #[error("there is no line in it")]
    Empty,
    /// Apples and oranges.
    #[error("one is a run of `bench {before}`, the other of `bench {after}`")]
    Kinds {
        /// The earlier one's.
        before: &'static str,
        /// The later one's.
        after: &'static str,
    },
}

/// What a benchmark printed with `--json`.
#[derive(Debug, Clone, PartialEq)]
pub enum Run {
    /// Of `bench transfer`.
    Transfer(Vec<PointResult>),
    /// Of `bench replay`.
    Replay(Vec<ReplayResult>),
    /// Of `bench coordinator`.
    Coordinator(Vec<Figure>),
}

/// The columns of a comparison.
pub const COLUMNS: usize = 6;

/// Rows for people, and whether something became worse.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// Of the columns.
    pub headings: [&'static str; COLUMNS],
    /// One for everything that both runs have, in the order of the first.
    pub rows: Vec<[String; COLUMNS]>,
    /// Some row's verdict is [`Verdict::Worse`].
    pub worse: bool,
}

impl Run {
    /// Reads a run; its first line says which benchmark it is of.
    ///
    /// # Errors
    /// [`CompareError::Line`] or [`CompareError::Empty`].
    pub fn parse(text: &str) -> Result<Self, CompareError> {
        let lines = || {
            let lines = text.lines().enumerate();
            lines.filter(|(_, line)| !line.trim().is_empty())
        };
        let (at, first) = lines().next().ok_or(CompareError::Empty)?;
        let wrong = |at: usize, source| CompareError::Line {
            line: at + 1,
            source,
        };
        let first: Value = serde_json::from_str(first).map_err(|error| wrong(at, error))?;
        macro_rules! all {
            ($of:expr) => {
                lines()
                    .map(|(at, line)| serde_json::from_str(line).map_err(|error| wrong(at, error)))
                    .collect::<Result<_, _>>()
                    .map($of)
            };
        }
        match () {
            () if first.get("means").is_some() => all!(Self::Replay),
            () if first.get("unit").is_some() => all!(Self::Coordinator),
            () => all!(Self::Transfer),
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::Transfer(_) => "transfer",
            Self::Replay(_) => "replay",
            Self::Coordinator(_) => "coordinator",
        }
    }
}

/// Compares what both runs have.
///
/// # Errors
/// [`CompareError::Kinds`].
pub fn compare(before: &Run, after: &Run) -> Result<Comparison, CompareError> {
    match (before, after) {
        (Run::Transfer(a), Run::Transfer(b)) => Ok(of_transfers(a, b)),
        (Run::Replay(a), Run::Replay(b)) => Ok(of_replays(a, b)),
        (Run::Coordinator(a), Run::Coordinator(b)) => Ok(of_figures(a, b)),
        _ => Err(CompareError::Kinds {
            before: before.kind(),
            after: after.kind(),
        }),
    }
}

fn arrow(before: impl AsRef<str>, after: impl AsRef<str>) -> String {
    format!("{} -> {}", before.as_ref(), after.as_ref())
}

fn comparison(
    headings: [&'static str; COLUMNS],
    rows: impl Iterator<Item = ([String; COLUMNS - 1], Verdict)>,
) -> Comparison {
    let mut worse = false;
    let rows = rows.map(|(row, verdict)| {
        worse |= verdict == Verdict::Worse;
        let [a, b, c, d, e] = row;
        [a, b, c, d, e, verdict.as_str().to_owned()]
    });
    Comparison {
        headings,
        rows: rows.collect(),
        worse,
    }
}

fn of_transfers(before: &[PointResult], after: &[PointResult]) -> Comparison {
    let changes = transfers::changes(before, after);
    let rows = changes.into_iter().map(|change| {
        let pair = |(a, b): (f64, f64)| format!("{a:.2} -> {b:.2}");
        let (p50, later_p50) = change.p50_us;
        let row = [
            change.name,
            pair(change.ratio),
            pair(change.gb_per_s),
            arrow(micros(p50), micros(later_p50)),
            pair(change.core_seconds_per_gb),
        ];
        (row, change.verdict)
    });
    let headings = ["pull", "of yardstick", "GB/s", "p50", "core-s/GB", ""];
    comparison(headings, rows)
}

fn of_replays(before: &[ReplayResult], after: &[ReplayResult]) -> Comparison {
    let later: HashMap<&str, &ReplayResult> =
        after.iter().map(|new| (new.name.as_str(), new)).collect();
    let rows = before.iter().filter_map(|old| {
        let new = later.get(old.name.as_str())?;
        let verdict = match new.hit - old.hit {
            more if more >= NOTABLE_HITS => Verdict::Better,
            less if less <= -NOTABLE_HITS => Verdict::Worse,
            _ => Verdict::Same,
        };
        let percent = replay_table::percent;
        let row = [
            old.name.clone(),
            arrow(percent(old.hit), percent(new.hit)),
            arrow(
                replay_table::gigabytes(old.bytes_pulled),
                replay_table::gigabytes(new.bytes_pulled),
            ),
            arrow(micros(old.pull_us.p50), micros(new.pull_us.p50)),
            arrow(micros(old.pull_us.p99), micros(new.pull_us.p99)),
        ];
        Some((row, verdict))
    });
    let headings = ["replay", "hit ratio", "pulled", "pull p50", "pull p99", ""];
    comparison(headings, rows)
}

fn of_figures(before: &[Figure], after: &[Figure]) -> Comparison {
    let later: HashMap<&str, &Figure> = after.iter().map(|new| (new.name.as_str(), new)).collect();
    let rows = before.iter().filter_map(|old| {
        let new = later.get(old.name.as_str())?;
        let change = new.median / old.median.max(f64::MIN_POSITIVE) - 1.0;
        let apart = new.min > old.max || new.max < old.min;
        let better = (change > 0.0) != old.less_is_better();
        let verdict = match (apart && change.abs() >= NOTABLE_SHARE, better) {
            (false, _) => Verdict::Same,
            (true, true) => Verdict::Better,
            (true, false) => Verdict::Worse,
        };
        let range = |figure: &Figure| format!("{} .. {}", short(figure.min), short(figure.max));
        let row = [
            format!("{} ({})", old.name, old.unit),
            arrow(short(old.median), short(new.median)),
            format!("{:+.1} %", 100.0 * change),
            range(old),
            range(new),
        ];
        Some((row, verdict))
    });
    let headings = [
        "figure",
        "median",
        "change",
        "rounds before",
        "rounds after",
        "",
    ];
    comparison(headings, rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{stats::Rounds, transfer::compare::tests::result};

    fn figure(name: &str, values: [f64; 3], unit: &'static str) -> Figure {
        Figure::new(name, &Rounds::from_iter(values), unit)
    }

    fn lines(figures: &[Figure]) -> String {
        let lines: Vec<_> = figures
            .iter()
            .map(|figure| serde_json::to_string(figure).unwrap())
            .collect();
        lines.join("\n")
    }

    #[test]
    fn a_coordinators_figures_are_read_back_and_judged_by_their_unit() {
        let before = [
            figure("locate", [90.0, 100.0, 110.0], "hashes/s"),
            figure("locate: p99", [1.0, 1.1, 1.2], "ms"),
            figure("gone", [1.0, 1.0, 1.0], "ms"),
        ];
        let after = [
            figure("locate", [150.0, 160.0, 170.0], "hashes/s"),
            figure("locate: p99", [2.0, 2.1, 2.2], "ms"),
        ];
        let read = |figures: &[Figure]| Run::parse(&lines(figures)).unwrap();
        let seen = compare(&read(&before), &read(&after)).unwrap();
        assert_eq!(seen.rows.len(), 2);
        assert_eq!(seen.rows[0][5], "better");
        assert_eq!(seen.rows[1][5], "WORSE");
        assert!(seen.worse);
        // Within the spread nothing is said.
        let near = [figure("locate", [95.0, 108.0, 120.0], "hashes/s")];
        assert!(!compare(&read(&before), &read(&near)).unwrap().worse);
    }

    #[test]
    fn runs_of_two_kinds_are_not_compared() {
        let transfer = serde_json::to_string(&result(1024, 0.5)).unwrap();
        let transfer = Run::parse(&transfer).unwrap();
        let figures = Run::Coordinator(Vec::new());
        assert!(matches!(
            compare(&transfer, &figures),
            Err(CompareError::Kinds { .. })
        ));
        assert!(matches!(Run::parse("\n\n"), Err(CompareError::Empty)));
        assert!(matches!(
            Run::parse("\n{}"),
            Err(CompareError::Line { line: 2, .. })
        ));
    }
}
