//! One page that needs nothing but a browser.

use std::{collections::BTreeMap, fmt::Write};

use super::{
    point::{Transport, size},
    result::PointResult,
    table,
};
use crate::{
    page::{self, card, figure},
    plot::{Bar, Line, Plot, bars, escape},
};

/// The report of a run, on a machine in words.
#[must_use]
pub fn page(results: &[PointResult], machine: &str) -> String {
    let mut page = page::begin("kvferry bench transfer", "kvferry: transfers", machine);
    page += "<p>Every pull goes the whole way: located at the coordinator, read, validated against the \
             owner's generation words, sealed and published. Beside it, in the same rounds and in turn, \
             the yardstick: plain sockets of the same shape (in clear, also beside tcp-tls), or plain copies \
             between shared mappings. \
             The ratio of the two is what to look at; gigabytes a second are this machine's.</p>";
    page += &cards(results);
    page += "<h2>Ratio to the yardstick</h2><figure>";
    page += &bars(&ratios(results), "the yardstick");
    page += "<p class=\"legend\">Median over rounds; the line shows the worst and the best round.</p></figure>";
    page += "<h2>Throughput over block size</h2><div class=\"plots\">";
    for transport in Transport::ALL {
        page += &throughput(results, transport);
    }
    page += "</div><h2>Time of a call</h2><p class=\"soft\">Share of calls that took at most so long; the \
             yardstick's batches dashed.</p>";
    let distributions = results.iter().map(|r| (r.name.clone(), distribution(r)));
    page += &page::figures(distributions);
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

fn cards(results: &[PointResult]) -> String {
    let verified: u64 = results.iter().map(|result| result.verified_bytes).sum();
    let best = |of: fn(&PointResult) -> f64| results.iter().map(of).fold(0.0, f64::max);
    let reached = results.iter().filter(|result| {
        let headline = result.headline();
        headline.is_some_and(|yardstick| yardstick.ratio.median >= 0.95)
    });
    let noisy = results.iter().filter(|result| !result.noise.is_empty());
    let cards = [
        (
            format!("{} of {}", reached.count(), results.len()),
            "points at 0.95 of the yardstick or more",
        ),
        (
            format!("{:.2} GB/s", best(|result| result.gb_per_s.median)),
            "fastest point",
        ),
        (
            format!("{}/s", table::count(best(|result| result.blocks_per_s))),
            "most blocks",
        ),
        (
            format!("{:.1} GB", verified as f64 / 1e9),
            "compared byte by byte, all right",
        ),
        (noisy.count().to_string(), "points disturbed by others"),
    ];
    page::cards(cards.iter().map(|(figure, what)| card(figure, what)))
}

fn ratios(results: &[PointResult]) -> Vec<Bar> {
    let bar = |result: &PointResult| {
        let ratio = result.headline()?.ratio;
        Some(Bar {
            name: result.name.clone(),
            value: ratio.median,
            min: ratio.min,
            max: ratio.max,
        })
    };
    results.iter().filter_map(bar).collect()
}

/// Lines by planes, the yardstick dashed.
fn throughput(results: &[PointResult], transport: Transport) -> String {
    let mut ours: BTreeMap<bool, Vec<(f64, f64)>> = BTreeMap::new();
    let (mut theirs, mut clear) = (Vec::new(), Vec::new());
    let mut marks = Vec::new();
    for result in results {
        let point = &result.point;
        let usual = !point.checksum && !point.publish && point.in_flight == 1 && point.readers == 1;
        if !usual || point.batch < 2 {
            continue;
        }
        let x = point.block_bytes() as f64;
        if transport.by_tls() && point.transport == Transport::Tcp && point.planes == 1 {
            clear.push((x, result.gb_per_s.median));
        }
        if point.transport != transport {
            continue;
        }
        marks.push(x);
        let line = ours.entry(point.planes > 1).or_default();
        line.push((x, result.gb_per_s.median));
        if let (1, Some(yardstick)) = (point.planes, result.headline()) {
            theirs.push((x, yardstick.gb_per_s.median));
        }
    }
    if marks.len() < 2 {
        return String::new();
    }
    let line = |name: &str, mut points: Vec<(f64, f64)>, dashed, colour| {
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        Line {
            name: name.to_owned(),
            points,
            dashed,
            colour,
        }
    };
    let mut lines = vec![line("yardstick", theirs, true, 5)];
    for (planes, points) in ours {
        lines.push(match planes {
            false => line("kvferry, one plane", points, false, 0),
            true => line("kvferry, many planes", points, false, 1),
        });
    }
    if !clear.is_empty() {
        lines.push(line("kvferry, one plane, in clear", clear, false, 2));
    }
    marks.sort_by(f64::total_cmp);
    // Marks closer than a factor of two would be written over each other.
    let mut apart: Vec<f64> = Vec::new();
    for mark in marks {
        if apart.last().is_none_or(|last| mark >= last * 1.9) {
            apart.push(mark);
        }
    }
    let plot = Plot {
        x_name: "bytes of a block",
        y_name: "GB/s",
        x_mark: |bytes| size(bytes as u64),
        x_marks: apart,
        lines,
        y_max: None,
    };
    figure(transport.as_str(), &plot.svg())
}

fn distribution(result: &PointResult) -> String {
    // The slowest call of all would squeeze everything else together.
    let turned = |curve: &[(f64, f64)]| {
        let shown = curve.iter().filter(|(share, _)| *share <= 0.99);
        shown.map(|(share, us)| (*us, *share)).collect()
    };
    let mut lines = vec![Line {
        name: "kvferry".to_owned(),
        points: turned(&result.batch_us.curve),
        dashed: false,
        colour: 0,
    }];
    if let Some(yardstick) = result.headline() {
        lines.push(Line {
            name: yardstick.name.clone(),
            points: turned(&yardstick.batch_us.curve),
            dashed: true,
            colour: 5,
        });
    }
    let decades = (0..8).flat_map(|n| [1.0, 2.0, 5.0].map(|m| m * 10f64.powi(n)));
    let plot = Plot {
        x_name: "time of a call",
        y_name: "share",
        x_mark: table::micros,
        x_marks: decades.collect(),
        lines,
        y_max: Some(1.0),
    };
    plot.svg()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transfer::compare::tests::result;

    #[test]
    fn a_page_needs_nothing_from_elsewhere_and_escapes_names() {
        let results = [result(65_536, 0.5), result(1 << 20, 0.97)];
        let page = page(&results, "two cores & a half");
        for foreign in ["http:", "https:", "<script", "<link", "src="] {
            assert!(!page.contains(foreign), "{foreign}");
        }
        assert!(page.contains("two cores &amp; a half"));
        assert!(page.contains("sockets &lt;1 &amp; 2&gt;"));
        assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
        assert!(!page.contains("NaN"));
        assert!(!page.contains("in clear</text>"), "there is nothing by TLS");
    }

    #[test]
    fn the_times_of_every_point_are_there() {
        let results: Vec<_> = (0..15).map(|n| result(4096 << n, 0.5)).collect();
        let page = page(&results, "a machine");
        assert_eq!(
            page.matches("aria-label=\"share over time of a call\"")
                .count(),
            15
        );
    }

    #[test]
    fn points_by_tls_are_drawn_beside_those_in_clear() {
        let clear = [result(65_536, 0.5), result(1 << 20, 0.97)];
        let by_tls = clear.clone().map(|mut result| {
            result.point.transport = Transport::TcpTls;
            result.name = result.point.name();
            result
        });
        let page = page(&[clear, by_tls].concat(), "a machine");
        assert!(
            page.contains("tcp-tls 64 x 1MiB") && page.contains("kvferry, one plane, in clear")
        );
        assert!(!page.contains("NaN"));
    }
}
