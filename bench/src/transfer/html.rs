//! One page that needs nothing but a browser.

use std::{collections::BTreeMap, fmt::Write};

use super::{
    plot::{Bar, Line, Plot, bars, escape},
    point::{Transport, size},
    result::PointResult,
    table,
};

const STYLE: &str = "\
:root{color-scheme:light dark;--fg:#1e293b;--soft:#64748b;--line:#e2e8f0;--bg:#fff;--card:#f8fafc}\
@media(prefers-color-scheme:dark){:root{--fg:#e2e8f0;--soft:#94a3b8;--line:#334155;--bg:#0f172a;--card:#1e293b}}\
body{font:15px/1.5 system-ui,sans-serif;color:var(--fg);background:var(--bg);max-width:1080px;margin:2rem auto;padding:0 1rem}\
h1{font-size:1.6rem;margin:0}h2{font-size:1.15rem;margin:2rem 0 .5rem}p{max-width:70ch}.soft{color:var(--soft)}\
table{border-collapse:collapse;width:100%;font-size:13px}th,td{padding:.3rem .5rem;text-align:right;white-space:nowrap;border-bottom:1px solid var(--line)}\
th:first-child,td:first-child,th:last-child,td:last-child{text-align:left}\
.wide{overflow-x:auto}.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(460px,1fr));gap:1rem}\
figure{margin:0;background:var(--card);border:1px solid var(--line);border-radius:8px;padding:.8rem}figcaption{font-weight:600;margin-bottom:.4rem}\
svg{width:100%;height:auto;display:block}.grid{stroke:var(--line)}.mark{fill:var(--soft);font-size:11px;paint-order:stroke;stroke:var(--card);stroke-width:4px}.name{fill:var(--fg);font-size:12px}\
.whisker{stroke:var(--fg);stroke-width:1.5}.one{stroke:var(--fg);stroke-dasharray:3 3}\
.legend{font-size:12px;color:var(--soft);margin:.4rem 0 0}.legend span{margin-right:1rem;white-space:nowrap}.legend i{display:inline-block;width:22px;margin-right:.3rem;vertical-align:middle}\
.cards{display:flex;flex-wrap:wrap;gap:.8rem;margin:1rem 0}.card{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:.6rem 1rem}\
.card b{font-size:1.5rem;display:block}";

/// Most points whose distributions are drawn: more is a page nobody scrolls through.
const MAX_DISTRIBUTIONS: usize = 12;

/// The report of a run, on a machine in words.
#[must_use]
pub fn page(results: &[PointResult], machine: &str) -> String {
    let mut page = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <title>kvferry bench transfer</title><style>{STYLE}</style></head><body>\
         <h1>kvferry: transfers</h1><p class=\"soft\">{}</p>",
        escape(machine)
    );
    page += "<p>Every pull goes the whole way: located at the coordinator, read, validated against the \
             owner's generation words, sealed and published. Beside it, in the same rounds and in turn, \
             the yardstick: plain sockets of the same shape, or plain copies between shared mappings. \
             The ratio of the two is what to look at; gigabytes a second are this machine's.</p>";
    page += &cards(results);
    page += "<h2>Ratio to the yardstick</h2><figure>";
    page += &bars(&ratios(results));
    page += "<p class=\"legend\">Median over rounds; the line shows the worst and the best round.</p></figure>";
    page += "<h2>Throughput over block size</h2><div class=\"plots\">";
    for transport in [Transport::Tcp, Transport::Shm] {
        page += &throughput(results, transport);
    }
    page += "</div><h2>Time of a call</h2><p class=\"soft\">Share of calls that took at most so long; the \
             yardstick's batches dashed.</p><div class=\"plots\">";
    for result in results.iter().take(MAX_DISTRIBUTIONS) {
        page += &distribution(result);
    }
    page += "</div><h2>All figures</h2><div class=\"wide\"><table><tr>";
    for heading in table::HEADINGS {
        let _ = write!(page, "<th>{}</th>", escape(heading));
    }
    page += "</tr>";
    for result in results {
        page += "<tr>";
        for cell in table::row(result) {
            let _ = write!(page, "<td>{}</td>", escape(&cell));
        }
        page += "</tr>";
    }
    page += "</table></div><h2>Behind them</h2><div class=\"wide\"><pre>";
    for result in results {
        let _ = writeln!(page, "{}", escape(&result.name));
        for line in table::details(result) {
            let _ = writeln!(page, "{}", escape(&line));
        }
    }
    page + "</pre></div></body></html>\n"
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
    let card = |(figure, what): (String, &str)| {
        format!("<div class=\"card\"><b>{}</b>{what}</div>", escape(&figure))
    };
    let cards: String = cards.into_iter().map(card).collect();
    format!("<div class=\"cards\">{cards}</div>")
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
    let mut theirs = Vec::new();
    let mut marks = Vec::new();
    for result in results {
        let point = &result.point;
        let usual = !point.checksum && !point.publish && point.in_flight == 1 && point.readers == 1;
        if point.transport != transport || !usual || point.batch < 2 {
            continue;
        }
        let x = point.block_bytes() as f64;
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
    figure(&result.name, &plot.svg())
}

fn figure(caption: &str, inside: &str) -> String {
    let caption = escape(caption);
    format!("<figure><figcaption>{caption}</figcaption>{inside}</figure>")
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
    }
}
