//! One page that needs nothing but a browser.

use crate::{
    page::{self, card},
    plot::{Bar, bars},
    report::{Figure, HEADINGS, short},
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
    for (heading, prefix) in [
        ("Times in the closed loop", "locate of"),
        ("Times in the open loop", "open loop"),
        ("Times while nodes replace blocks", "churn"),
    ] {
        page += &times(figures, heading, prefix);
    }
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

/// Bars of the times of one part, by the longest of them.
fn times(figures: &[Figure], heading: &str, prefix: &str) -> String {
    let of_part = figures
        .iter()
        .filter(|figure| figure.unit == "ms" && figure.name.starts_with(prefix));
    let longest = of_part.clone().map(|f| f.median).fold(0.0, f64::max);
    if longest <= 0.0 {
        return String::new();
    }
    let rows: Vec<_> = of_part
        .map(|figure| Bar {
            name: format!("{}: {} ms", figure.name, short(figure.median)),
            value: figure.median / longest,
            min: figure.min / longest,
            max: figure.max / longest,
        })
        .collect();
    format!(
        "<h2>{heading}</h2><figure>{}</figure>",
        bars(&rows, "the longest")
    )
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
            Figure::new("locate of 1: p99", &rounds([0.2, 0.25, 0.5]), "ms").target(0.5),
        ];
        let page = page(&figures, "two cores");
        assert!(page.contains("2 of 2") && page.contains("&lt;full&gt;"));
        assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
        assert!(page.contains("<svg") && !page.contains("NaN") && !page.contains("http"));
        assert_eq!(figures[1].reached(), Some(2.0));
    }
}
