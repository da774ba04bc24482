//! One page that needs nothing but a browser.

use crate::{
    page::{self, card, figure},
    plot::{Bar, Line, Plot, bars},
    report::{Figure, HEADINGS, short},
    transfer::table::micros,
};

/// The report of a run, on a machine in words.
#[must_use]
pub fn page(figures: &[Figure], machine: &str) -> String {
    let mut page = page::begin(
        "kvferry bench coordinator",
        "kvferry: a coordinator",
        machine,
    );
    page += "<p>One coordinator, its nodes and its readers on one machine: clients take part of the processor time that \
             a coordinator would have to itself. Closed loop: a reader asks when it has its answer. Open loop: requests \
             are due at fixed times and are timed from then, whatever became of those before.</p>";
    page += &cards(figures);
    let reached = ratios(figures);
    if !reached.is_empty() {
        page += "<h2>Of what is to be reached</h2><figure>";
        page += &bars(&reached, "the figure to reach");
        page += "<p class=\"legend\">1 is reached, more is better, also of times and memory. The line shows the worst and \
                 the best round.</p></figure>";
    }
    let plots = [
        times(figures, "closed loop", |name| name.contains(" reader")),
        times(figures, "open loop", |name| name.starts_with("open loop")),
        times(figures, "while nodes replace blocks", |name| {
            name.starts_with("churn")
        }),
    ];
    page += "<h2>Time of a request</h2><p class=\"soft\">Share of requests that took at most so long.</p>\
             <div class=\"plots\">";
    page += &plots.concat();
    page += "</div>";
    page += "<h2>All figures</h2>";
    let rows: Vec<_> = figures.iter().map(Figure::row).collect();
    page + &page::table(HEADINGS, &rows) + page::END
}

fn cards(figures: &[Figure]) -> String {
    let with_target = || figures.iter().filter(|figure| figure.target.is_some());
    let reached = with_target().filter(|figure| figure.reached() >= Some(1.0));
    let best = |unit: &str| {
        let of_unit = figures.iter().filter(|figure| figure.unit == unit);
        of_unit.max_by(|a, b| a.median.total_cmp(&b.median))
    };
    let mut cards = vec![card(
        &format!("{} of {}", reached.count(), with_target().count()),
        "figures reached",
    )];
    for unit in ["hashes/s", "requests/s", "blocks/s"] {
        if let Some(figure) = best(unit) {
            let speed = format!("{} {unit}", short(figure.median));
            cards.push(card(&speed, &figure.name));
        }
    }
    page::cards(cards.into_iter())
}

fn ratios(figures: &[Figure]) -> Vec<Bar> {
    let bar = |figure: &Figure| {
        let of = |value| figure.of_target(value);
        let (a, b) = (of(figure.min)?, of(figure.max)?);
        Some(Bar {
            name: figure.name.clone(),
            value: figure.reached()?,
            min: a.min(b),
            max: a.max(b),
        })
    };
    figures.iter().filter_map(bar).collect()
}

/// A line per kind of request: which share of them took at most so long.
fn times(figures: &[Figure], heading: &str, is_of: fn(&str) -> bool) -> String {
    let mut by_name: Vec<(String, Vec<(f64, f64)>)> = Vec::new();
    for figure in figures.iter().filter(|figure| is_of(&figure.name)) {
        let Some((name, share)) = share_of(figure) else {
            continue;
        };
        let point = (figure.median * 1e3, share);
        match by_name.iter_mut().find(|(known, _)| *known == name) {
            Some((_, points)) => points.push(point),
            None => by_name.push((name, vec![point])),
        }
    }
    by_name.retain(|(_, points)| points.len() > 1);
    if by_name.is_empty() {
        return String::new();
    }
    let lines = by_name.into_iter().enumerate();
    let lines = lines.map(|(colour, (name, mut points))| {
        points.sort_by(|a, b| a.1.total_cmp(&b.1));
        Line {
            name,
            points,
            dashed: false,
            colour,
        }
    });
    let decades = (0..8).flat_map(|n| [1.0, 2.0, 5.0].map(|m| m * 10f64.powi(n)));
    let plot = Plot {
        x_name: "time of a request",
        y_name: "share",
        x_mark: micros,
        x_marks: decades.collect(),
        lines: lines.collect(),
        y_max: Some(1.0),
    };
    figure(heading, &plot.svg())
}

/// Of `locate of 64, full reader: p99` its name and 0.99; what stands behind the percentile belongs to the name.
fn share_of(figure: &Figure) -> Option<(String, f64)> {
    let (name, rest) = figure
        .name
        .rsplit_once(": ")
        .filter(|_| figure.unit == "ms")?;
    let (percentile, when) = rest.split_once(' ').unwrap_or((rest, ""));
    let share = match percentile {
        "p50" => 0.5,
        "p99" => 0.99,
        "p99.9" => 0.999,
        "worst" => 1.0,
        _ => return None,
    };
    let name = match when {
        "" => name.to_owned(),
        when => format!("{name}, {when}"),
    };
    Some((name, share))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::Rounds;

    #[test]
    fn a_page_is_whole_and_knows_which_way_is_better() {
        let rounds = |values: [f64; 3]| Rounds::from_iter(values);
        let figures = [
            Figure::new(
                "locate of 1, <full> reader",
                &rounds([40e3, 50e3, 60e3]),
                "requests/s",
            )
            .target(50e3),
            Figure::new(
                "locate of 1, <full> reader: p50",
                &rounds([0.1, 0.1, 0.2]),
                "ms",
            ),
            Figure::new(
                "locate of 1, <full> reader: p99",
                &rounds([0.2, 0.25, 0.5]),
                "ms",
            )
            .target(0.5),
        ];
        let page = page(&figures, "two cores");
        assert!(page.contains("2 of 2") && page.contains("&lt;full&gt;"));
        assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
        assert!(page.contains("<svg") && !page.contains("NaN") && !page.contains("http"));
        assert_eq!(figures[2].reached(), Some(2.0));
        let of = |figure: &Figure| share_of(figure).map(|(_, share)| share);
        assert_eq!(figures.each_ref().map(of), [None, Some(0.5), Some(0.99)]);
        let when = Figure::new(
            "churn, locate of 64: p99 meanwhile",
            &rounds([1.0; 3]),
            "ms",
        );
        let (name, _) = share_of(&when).unwrap();
        assert_eq!(name, "churn, locate of 64, meanwhile");
    }
}
