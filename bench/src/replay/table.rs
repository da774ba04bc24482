//! Results as columns of text.

use super::result::{Means, ReplayResult};
use crate::transfer::{
    point::size,
    table::{count, micros},
};

/// Headings of [`row`].
pub const HEADINGS: [&str; 11] = [
    "replay",
    "local",
    "remote",
    "miss",
    "of best",
    "pulled",
    "pull p50",
    "pull p99",
    "saved/pull time",
    "busiest source",
    "note",
];

/// A result in short.
#[must_use]
pub fn row(result: &ReplayResult) -> [String; 11] {
    let [local, remote, miss] = result.tokens.shares().map(percent);
    [
        result.name.clone(),
        local,
        remote,
        miss,
        percent(result.hit / result.best_hit.max(1e-9)),
        gigabytes(result.bytes_pulled),
        micros(result.pull_us.p50),
        micros(result.pull_us.p99),
        format!("{:.1} x", result.gain()),
        format!("{:.1} x mean", result.balance.busiest_to_mean),
        note(result),
    ]
}

/// What a reader must know before comparing.
fn note(result: &ReplayResult) -> String {
    let mut notes = Vec::new();
    let lost: u64 = result.not_pulled.values().sum();
    if lost > 0 {
        notes.push(format!("{lost} blocks did not come"));
    }
    if result.not_stored > 0 {
        notes.push(format!("{} blocks had no room", result.not_stored));
    }
    let late = result.late_us.as_ref().map_or(0.0, |late| late.p99);
    if late > 1e5 {
        notes.push(format!("requests began up to {} late", micros(late)));
    }
    let busiest = result.network.map_or(0.0, |network| network.busiest_port);
    if busiest > 0.8 {
        notes.push(format!("a port was busy {} of the time", percent(busiest)));
    }
    notes.join("; ")
}

/// What lies behind a result.
#[must_use]
pub fn details(result: &ReplayResult) -> Vec<String> {
    let how = match result.means {
        Means::Processes => "real processes",
        Means::Simulator => "simulated",
    };
    let (tokens, blocks) = (&result.tokens, &result.blocks);
    let mut lines = vec![
        format!(
            "  {how}, {} requests in {:.1} s ({:.1} s of this machine's), blocks of {} ({}), {} per pool",
            result.requests,
            result.span_s,
            result.took_s,
            size(result.block_bytes),
            result.model,
            result.pool_bytes / result.block_bytes.max(1),
        ),
        format!(
            "  tokens: {} local, {} remote, {} computed; blocks {} + {} + {}; best possible {} of tokens",
            count(tokens.local as f64),
            count(tokens.remote as f64),
            count(tokens.miss as f64),
            blocks.local,
            blocks.remote,
            blocks.miss,
            percent(result.best_hit),
        ),
        format!(
            "  {} pulls: p50 {}, p90 {}, p99 {}, {:.1} s in all; computing the same at {} tokens/s: {:.1} s; {} pulls were slower than that",
            result.pulls,
            micros(result.pull_us.p50),
            micros(result.pull_us.p90),
            micros(result.pull_us.p99),
            result.pull_s,
            count(result.prefill_tokens_per_s),
            result.prefill_saved_s,
            result.slower_than_prefill,
        ),
        format!(
            "  look-up p50 {}, p99 {}; {} of {} nodes were sources, the busiest gave {}; {} evictions",
            micros(result.lookup_us.p50),
            micros(result.lookup_us.p99),
            result.balance.sources,
            result.nodes,
            percent(result.balance.busiest_share),
            result.evictions,
        ),
    ];
    if let (Some(late), Some(verified)) = (&result.late_us, result.verified_bytes) {
        lines.push(format!(
            "  {} compared byte by byte; requests began {} late at p50, {} at p99; load {:.1} at the end",
            gigabytes(verified),
            micros(late.p50),
            micros(late.p99),
            result.load,
        ));
    }
    if let Some(network) = &result.network {
        let asked = network.coordinator;
        lines.push(format!(
            "  modelled: {} Gbit/s ports (the busiest {} of the time), {} round trips; coordinator: {} locates, {} hashes, {} deltas; {} events",
            network.nic_gbit_per_s,
            percent(network.busiest_port),
            micros(network.rtt_us),
            asked.locates,
            count(asked.hashes as f64),
            asked.deltas,
            count(network.events as f64),
        ));
    }
    for (outcome, blocks) in &result.not_pulled {
        lines.push(format!("  {blocks} blocks: {outcome}"));
    }
    lines
}

pub(crate) fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

pub(crate) fn gigabytes(bytes: u64) -> String {
    match bytes as f64 / 1e9 {
        gb if gb >= 10.0 => format!("{gb:.0} GB"),
        gb => format!("{gb:.2} GB"),
    }
}
