//! Plots as SVG text: lines over a logarithmic axis, and bars with their spread.

use std::fmt::Write;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 320.0;
const LEFT: f64 = 56.0;
const RIGHT: f64 = 34.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 44.0;
/// Height of a bar with its room.
const BAR: f64 = 26.0;
/// Where the axis of bars ends: a round in which the yardstick starved says nothing.
const MAX_RATIO: f64 = 2.0;
/// Width of the names beside bars.
const NAMES: f64 = 230.0;
/// Colours by number of the line; told apart by people who see few colours too.
const COLOURS: [&str; 6] = [
    "#2563eb", "#d97706", "#059669", "#db2777", "#7c3aed", "#64748b",
];

/// A named line of `(x, y)`.
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
    /// A yardstick's.
    pub(crate) dashed: bool,
    /// Number of its colour.
    pub(crate) colour: usize,
}

/// Lines over a logarithmic x axis.
pub(crate) struct Plot<'a> {
    pub(crate) x_name: &'a str,
    pub(crate) y_name: &'a str,
    /// How a mark of the x axis is written.
    pub(crate) x_mark: fn(f64) -> String,
    /// Where marks of the x axis are.
    pub(crate) x_marks: Vec<f64>,
    pub(crate) lines: Vec<Line>,
    /// The y axis ends there, whatever the lines say.
    pub(crate) y_max: Option<f64>,
}

/// What a page must not take for markup.
pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

impl Plot<'_> {
    pub(crate) fn svg(&self) -> String {
        let points = || self.lines.iter().flat_map(|line| &line.points);
        let xs = || points().map(|(x, _)| x.max(1e-3).ln());
        let (x_min, x_max) = (
            xs().fold(f64::INFINITY, f64::min),
            xs().fold(f64::NEG_INFINITY, f64::max),
        );
        let highest = points().map(|(_, y)| *y).fold(0.0, f64::max);
        let y_max = self.y_max.unwrap_or_else(|| round_up(highest)).max(1e-9);
        let wide = (x_max - x_min).max(1e-9);
        let x = |value: f64| LEFT + (value.max(1e-3).ln() - x_min) / wide * (WIDTH - LEFT - RIGHT);
        let y = |value: f64| HEIGHT - BOTTOM - value / y_max * (HEIGHT - TOP - BOTTOM);
        let mut svg = format!(
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{} over {}\">",
            escape(self.y_name),
            escape(self.x_name)
        );
        for step in 0..=5 {
            let value = y_max * f64::from(step) / 5.0;
            let at = y(value);
            let _ = write!(
                svg,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
                 <text class=\"mark\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                WIDTH - RIGHT,
                LEFT - 6.0,
                at + 4.0,
                number(value),
            );
        }
        for value in &self.x_marks {
            let at = x(*value);
            if !(LEFT - 1.0..=WIDTH - RIGHT + 1.0).contains(&at) {
                continue;
            }
            let _ = write!(
                svg,
                "<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{:.1}\"/>\
                 <text class=\"mark\" x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                HEIGHT - BOTTOM,
                HEIGHT - BOTTOM + 16.0,
                escape(&(self.x_mark)(*value)),
            );
        }
        for line in &self.lines {
            let colour = COLOURS[line.colour % COLOURS.len()];
            let path: Vec<_> = line
                .points
                .iter()
                .map(|(a, b)| format!("{:.1},{:.1}", x(*a), y(b.min(y_max))))
                .collect();
            let dash = if line.dashed {
                " stroke-dasharray=\"5 4\""
            } else {
                ""
            };
            let _ = write!(
                svg,
                "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"{dash} points=\"{}\"/>",
                path.join(" ")
            );
            for place in path {
                let (a, b) = place.split_once(',').unwrap_or_default();
                let _ = write!(
                    svg,
                    "<circle cx=\"{a}\" cy=\"{b}\" r=\"2.6\" fill=\"{colour}\"><title>{}</title></circle>",
                    escape(&line.name)
                );
            }
        }
        let _ = write!(
            svg,
            "<text class=\"name\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text></svg>",
            WIDTH - RIGHT,
            HEIGHT - 8.0,
            escape(self.x_name)
        );
        svg + &self.legend()
    }

    fn legend(&self) -> String {
        let entry = |line: &Line| {
            let style = if line.dashed { "dashed" } else { "solid" };
            format!(
                "<span><i style=\"border-top:3px {style} {}\"></i>{}</span>",
                COLOURS[line.colour % COLOURS.len()],
                escape(&line.name)
            )
        };
        let entries: String = self.lines.iter().map(entry).collect();
        format!("<p class=\"legend\">{}: {entries}</p>", escape(self.y_name))
    }
}

/// A named value and its extremes.
pub(crate) struct Bar {
    pub(crate) name: String,
    pub(crate) value: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

/// Bars beside their names, with a line at 1, which is `one`.
pub(crate) fn bars(bars: &[Bar], one: &str) -> String {
    let height = BAR * bars.len() as f64 + 30.0;
    let most = bars
        .iter()
        .map(|bar| bar.max)
        .fold(1.1, f64::max)
        .min(MAX_RATIO);
    let x = |value: f64| NAMES + value.min(most) / most * (WIDTH - NAMES - 50.0);
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"ratios to {}\">",
        escape(one)
    );
    for (row, bar) in bars.iter().enumerate() {
        let top = BAR * row as f64 + 4.0;
        let middle = top + BAR / 2.0 - 2.0;
        let colour = if bar.value >= 0.95 {
            COLOURS[2]
        } else {
            COLOURS[0]
        };
        let _ = write!(
            svg,
            "<text class=\"name\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\
             <rect x=\"{NAMES}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{colour}\" opacity=\"0.8\"/>\
             <line class=\"whisker\" x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{middle:.1}\" y2=\"{middle:.1}\"/>\
             <text class=\"mark\" x=\"{:.1}\" y=\"{:.1}\">{:.2}</text>",
            NAMES - 8.0,
            middle + 4.0,
            escape(&bar.name),
            x(bar.value) - NAMES,
            BAR - 8.0,
            x(bar.min),
            x(bar.max),
            x(bar.max.max(bar.value)) + 6.0,
            middle + 4.0,
            bar.value,
        );
    }
    let bottom = height - 22.0;
    let _ = write!(
        svg,
        "<line class=\"one\" x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"0\" y2=\"{bottom:.1}\"/>\
         <text class=\"mark\" x=\"{0:.1}\" y=\"{1:.1}\" text-anchor=\"middle\">{2}</text></svg>",
        x(1.0),
        height - 6.0,
        escape(one),
    );
    svg
}

/// A named whole in three parts.
pub(crate) struct Part {
    pub(crate) name: String,
    pub(crate) shares: [f64; 3],
    /// Where a line is drawn.
    pub(crate) mark: f64,
}

/// Wholes beside their names, with their parts behind each other.
pub(crate) fn stacks(names: [&str; 3], parts: &[Part]) -> String {
    const COLOUR: [usize; 3] = [2, 0, 5];
    let height = BAR * parts.len() as f64 + 8.0;
    let wide = WIDTH - NAMES - 20.0;
    let mut svg =
        format!("<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"shares\">");
    for (row, part) in parts.iter().enumerate() {
        let top = BAR * row as f64 + 4.0;
        let _ = write!(
            svg,
            "<text class=\"name\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            NAMES - 8.0,
            top + BAR / 2.0 + 2.0,
            escape(&part.name),
        );
        let mut from = NAMES;
        for (share, colour) in part.shares.into_iter().zip(COLOUR) {
            let _ = write!(
                svg,
                "<rect x=\"{from:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{}\" opacity=\"0.8\"><title>{:.1} %</title></rect>",
                share * wide,
                BAR - 8.0,
                COLOURS[colour],
                100.0 * share,
            );
            from += share * wide;
        }
        let mark = NAMES + part.mark * wide;
        let _ = write!(
            svg,
            "<line class=\"whisker\" x1=\"{mark:.1}\" x2=\"{mark:.1}\" y1=\"{:.1}\" y2=\"{:.1}\"/>",
            top - 2.0,
            top + BAR - 6.0,
        );
    }
    let entry = |(name, colour): (&str, usize)| {
        format!(
            "<span><i style=\"border-top:3px solid {}\"></i>{}</span>",
            COLOURS[colour],
            escape(name)
        )
    };
    let legend: String = names.into_iter().zip(COLOUR).map(entry).collect();
    format!("{svg}</svg><p class=\"legend\">{legend}</p>")
}

/// An end of an axis that five equal steps lead to in round numbers.
fn round_up(highest: f64) -> f64 {
    let step = (highest / 5.0).max(1e-6);
    let decade = 10f64.powf(step.log10().floor());
    let round = [1.0, 2.0, 2.5, 5.0, 10.0].map(|digit| digit * decade);
    5.0 * round
        .into_iter()
        .find(|round| *round >= step)
        .unwrap_or(step)
}

fn number(value: f64) -> String {
    match value {
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}
