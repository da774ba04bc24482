//! What all reports have in common: one page that needs nothing but a browser.

use crate::plot::escape;

/// Most drawings of one kind that are open from the start: more is a page nobody scrolls through.
const OPEN: usize = 12;

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

/// What a page ends with.
pub(crate) const END: &str = "</body></html>\n";

/// A page's head, its heading, and the machine in words.
pub(crate) fn begin(title: &str, heading: &str, machine: &str) -> String {
    format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <title>{}</title><style>{STYLE}</style></head><body>\
         <h1>{}</h1><p class=\"soft\">{}</p>",
        escape(title),
        escape(heading),
        escape(machine)
    )
}

/// A figure to be seen first.
pub(crate) fn card(figure: &str, what: &str) -> String {
    let (figure, what) = (escape(figure), escape(what));
    format!("<div class=\"card\"><b>{figure}</b>{what}</div>")
}

/// Cards beside each other.
pub(crate) fn cards(cards: impl Iterator<Item = String>) -> String {
    let cards: String = cards.collect();
    format!("<div class=\"cards\">{cards}</div>")
}

/// A drawing under its caption.
pub(crate) fn figure(caption: &str, inside: &str) -> String {
    let caption = escape(caption);
    format!("<figure><figcaption>{caption}</figcaption>{inside}</figure>")
}

/// Drawings by their captions, beside each other: those of [`OPEN`], and the others folded up under their captions.
pub(crate) fn figures(drawn: impl IntoIterator<Item = (String, String)>) -> String {
    let drawn: Vec<_> = drawn.into_iter().collect();
    let mut page = String::new();
    if let Some(folded) = drawn.len().checked_sub(OPEN).filter(|folded| *folded > 0) {
        page += &format!(
            "<p class=\"soft\">The first {OPEN} are open; the other {folded} open by their names.</p>"
        );
    }
    page += "<div class=\"plots\">";
    for (place, (caption, inside)) in drawn.iter().enumerate() {
        page += &match place < OPEN {
            true => figure(caption, inside),
            false => format!(
                "<details><summary>{}</summary>{}</details>",
                escape(caption),
                figure(caption, inside)
            ),
        };
    }
    page + "</div>"
}

/// Rows of text under their headings.
pub(crate) fn table<const N: usize>(headings: [&str; N], rows: &[[String; N]]) -> String {
    let cells = |tag: &str, cells: &[String]| -> String {
        let cell = |cell: &String| format!("<{tag}>{}</{tag}>", escape(cell));
        format!("<tr>{}</tr>", cells.iter().map(cell).collect::<String>())
    };
    let head = cells("th", &headings.map(str::to_owned));
    let rows: String = rows.iter().map(|row| cells("td", row)).collect();
    format!("<div class=\"wide\"><table>{head}{rows}</table></div>")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_drawing_is_there_and_those_beyond_the_first_can_be_opened() {
        let drawn = |count| (0..count).map(|n| (format!("<{n}>"), format!("<svg>{n}</svg>")));
        for count in [0, 1, OPEN] {
            let page = figures(drawn(count));
            assert_eq!(page.matches("<svg>").count(), count);
            assert!(!page.contains("<details>") && !page.contains("other"));
        }
        let page = figures(drawn(OPEN + 3));
        assert_eq!(page.matches("<svg>").count(), OPEN + 3);
        assert!(page.contains("the other 3 open"));
        let folded: Vec<_> = page.split("<details>").skip(1).collect();
        assert_eq!(folded.len(), 3);
        for (n, folded) in (OPEN..).zip(folded) {
            assert!(folded.starts_with(&format!("<summary>&lt;{n}&gt;</summary>")));
            assert!(folded.contains(&format!("<svg>{n}</svg>")));
        }
    }
}
