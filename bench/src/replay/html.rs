//! One page that needs nothing but a browser.

use std::{collections::BTreeMap, fmt::Write};

use super::{
    result::{Means, ReplayResult},
    table::{self, gigabytes, percent},
};
use crate::{
    page::{self, card, figure},
    plot::{Line, Part, Plot, escape, stacks},
    transfer::{point::size, table::micros},
};

/// The report of some replays of one trace, on a machine in words.
#[must_use]
pub fn page(results: &[ReplayResult], machine: &str) -> String {
    let mut page = page::begin("kvferry bench replay", "kvferry: a trace replayed", machine);
    page += "<p>Requests arrive when the trace has them. Each asks how far its prompt's blocks exist anywhere, \
             pulls those its node lacks, and computes and keeps the rest. A hit is a token of the unbroken front \
             of a prompt that needed no computing: found in the node's own pool (local) or pulled from another \
             (remote). <em>Best</em> is what one cache without end would have had.</p>";
    if results
        .iter()
        .any(|result| result.means == Means::Simulator)
    {
        page += "<p class=\"soft\">Simulated: directory, stores, eviction and pull engines are the real code; \
                 the network (ports of one speed, a fixed round trip, no faults), the coordinator's own time and \
                 prefill are modelled.</p>";
    }
    page += &cards(results);
    page += "<h2>Where prompt tokens came from</h2><figure>";
    page += &stacks(["local", "remote", "computed"], &parts(results));
    page += "<p class=\"legend\">The mark shows the best possible hit ratio.</p></figure>";
    let plots = hits(results);
    if !plots.is_empty() {
        let _ = write!(
            page,
            "<h2>Hit ratio over pools</h2><div class=\"plots\">{plots}</div>"
        );
    }
    page +=
        "<h2>Time of a pull</h2><p class=\"soft\">Share of pulls that took at most so long.</p>";
    let pulled = results.iter().filter(|result| result.pulls > 0);
    page += &page::figures(pulled.map(|r| (r.name.clone(), distribution(r))));
    page += "<h2>All figures</h2>";
    page += &page::table(
        table::HEADINGS,
        &results.iter().map(table::row).collect::<Vec<_>>(),
    );
    page += "<h2>Behind them</h2><div class=\"wide\"><pre>";
    for result in results {
        let _ = writeln!(page, "{}", escape(&result.name));
        for line in table::details(result) {
            let _ = writeln!(page, "{}", escape(&line));
        }
    }
    page + "</pre></div>" + page::END
}

fn cards(results: &[ReplayResult]) -> String {
    let best = results.iter().max_by(|a, b| a.hit.total_cmp(&b.hit));
    let Some(best) = best else {
        return String::new();
    };
    let mut cards = vec![
        card(&percent(best.hit), &format!("hit ratio of {}", best.name)),
        card(&percent(best.best_hit), "the best possible"),
        card(&gigabytes(best.bytes_pulled), "pulled"),
        card(
            &format!("{:.1} x", best.gain()),
            "prefill time saved by time of pulling",
        ),
    ];
    if let Some(verified) = best.verified_bytes {
        cards.push(card(
            &gigabytes(verified),
            "compared byte by byte, all right",
        ));
    }
    page::cards(cards.into_iter())
}

fn parts(results: &[ReplayResult]) -> Vec<Part> {
    let part = |result: &ReplayResult| Part {
        name: result.name.clone(),
        shares: result.tokens.shares(),
        mark: result.best_hit,
    };
    results.iter().map(part).collect()
}

/// A line per number of nodes and policy, where there are pools of several sizes.
fn hits(results: &[ReplayResult]) -> String {
    let mut by_plan: BTreeMap<(u32, &str), Vec<(f64, f64)>> = BTreeMap::new();
    let mut marks = Vec::new();
    for result in results {
        let all = result.pool_bytes as f64 * f64::from(result.nodes);
        marks.push(all);
        let line = by_plan.entry((result.nodes, &result.routing)).or_default();
        line.push((all, result.hit));
    }
    if by_plan.values().all(|line| line.len() < 2) {
        return String::new();
    }
    marks.sort_by(f64::total_cmp);
    // Marks closer than a factor of two would be written over each other.
    let mut apart: Vec<f64> = Vec::new();
    for mark in marks {
        if apart.last().is_none_or(|last| mark >= last * 1.9) {
            apart.push(mark);
        }
    }
    let lines = by_plan.into_iter().enumerate();
    let lines = lines.map(|(colour, ((nodes, routing), mut points))| {
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        Line {
            name: format!("{nodes} nodes, {routing}"),
            points,
            dashed: false,
            colour,
        }
    });
    let plot = Plot {
        x_name: "bytes of all pools together",
        y_name: "hit ratio",
        x_mark: |bytes| size(bytes as u64),
        x_marks: apart,
        lines: lines.collect(),
        y_max: Some(1.0),
    };
    figure("hit ratio", &plot.svg())
}

fn distribution(result: &ReplayResult) -> String {
    let curve = &result.pull_us.curve;
    // The slowest of all would squeeze everything else together.
    let shown = curve.iter().filter(|(share, _)| *share <= 0.99);
    let plot = Plot {
        x_name: "time of a pull",
        y_name: "share",
        x_mark: micros,
        x_marks: (0..8)
            .flat_map(|n| [1.0, 2.0, 5.0].map(|m| m * 10f64.powi(n)))
            .collect(),
        lines: vec![Line {
            name: "pulls".to_owned(),
            points: shown.map(|(share, us)| (*us, *share)).collect(),
            dashed: false,
            colour: 0,
        }],
        y_max: Some(1.0),
    };
    plot.svg()
}
