//! Results as columns of text.

use super::result::{PointResult, Times};

/// Headings of [`row`].
pub const HEADINGS: [&str; 10] = [
    "pull",
    "GB/s",
    "of yardstick",
    "spread",
    "blocks/s",
    "p50",
    "p99",
    "p99.9",
    "core-s/GB owner+reader",
    "note",
];

/// A result in short.
#[must_use]
pub fn row(result: &PointResult) -> [String; 10] {
    let ratio = result.headline().map(|yardstick| yardstick.ratio);
    let Times { p50, p99, p999, .. } = result.batch_us;
    [
        result.name.clone(),
        format!("{:.2}", result.gb_per_s.median),
        ratio.map_or_else(String::new, |ratio| format!("{:.2}", ratio.median)),
        ratio.map_or_else(String::new, |ratio| {
            format!("{:.2} .. {:.2}", ratio.min, ratio.max)
        }),
        count(result.blocks_per_s),
        micros(p50),
        micros(p99),
        micros(p999),
        format!(
            "{:.2} + {:.2}",
            result.owner_core_seconds_per_gb, result.reader_core_seconds_per_gb
        ),
        result.noise.clone(),
    ]
}

/// What lies behind a result: every yardstick, and where the time went.
#[must_use]
pub fn details(result: &PointResult) -> Vec<String> {
    let mut lines: Vec<_> = result
        .yardsticks
        .iter()
        .map(|yardstick| {
            format!(
                "  {:<36} {:>6.2} GB/s, {:.2} of it ({:.2} .. {:.2}), p50 {}, {:.2} core-s/GB",
                yardstick.name,
                yardstick.gb_per_s.median,
                yardstick.ratio.median,
                yardstick.ratio.min,
                yardstick.ratio.max,
                micros(yardstick.batch_us.p50),
                yardstick.core_seconds_per_gb,
            )
        })
        .collect();
    lines.push(format!(
        "  p50 of a call {}: locate {}, the rest within the agent {}, of it reads {}; engine and coordinator {:.2} core-s/GB",
        micros(result.batch_us.p50),
        micros(result.locate_us.p50),
        micros(result.located_us.p50),
        micros(result.wire_us.p50),
        result.other_core_seconds_per_gb,
    ));
    let block = &result.block_us;
    lines.push(format!(
        "  a block's outcome after p50 {}, p90 {}, p99 {}, p99.9 {}",
        micros(block.p50),
        micros(block.p90),
        micros(block.p99),
        micros(block.p999),
    ));
    lines
}

/// A time in the unit that fits it.
#[must_use]
pub fn micros(us: f64) -> String {
    match us {
        us if us < 1e3 => format!("{us:.0} us"),
        us if us < 1e5 => format!("{:.2} ms", us / 1e3),
        us => format!("{:.0} ms", us / 1e3),
    }
}

/// A number in thousands where it is large.
#[must_use]
pub fn count(number: f64) -> String {
    match number {
        n if n >= 1e6 => format!("{:.2} M", n / 1e6),
        n if n >= 1e4 => format!("{:.0} k", n / 1e3),
        n => format!("{n:.0}"),
    }
}
