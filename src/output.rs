//! What goes to stdout: tables for people, JSON for programs.

use std::io::{self, Write};

use comfy_table::{Table, presets};
use serde::Serialize;

/// Why nothing could be printed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OutputError {
    /// stdout is gone or full.
    #[error("cannot write to stdout: {0}")]
    Write(#[from] io::Error),
    /// The value has no JSON: a fault of this program.
    #[error("cannot print JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// Prints a line. A reader that has gone away (`| head`) is no error.
pub(crate) fn line(text: &str) -> Result<(), OutputError> {
    told(text).map(drop)
}

/// Prints a line of many; false where the reader has gone away.
pub(crate) fn told(text: &str) -> Result<bool, OutputError> {
    let mut out = io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        written => Ok(written.map(|()| true)?),
    }
}

/// Prints a value of many as JSON on one line; false where the reader has gone away.
pub(crate) fn json_told(value: &impl Serialize) -> Result<bool, OutputError> {
    told(&serde_json::to_string(value)?)
}

/// Prints a value as JSON over several lines.
pub(crate) fn json(value: &impl Serialize) -> Result<(), OutputError> {
    line(&serde_json::to_string_pretty(value)?)
}

/// Prints a value as JSON on one line.
pub(crate) fn json_line(value: &impl Serialize) -> Result<(), OutputError> {
    line(&serde_json::to_string(value)?)
}

/// Prints rows under their headings; `nothing` where there are none.
pub(crate) fn rows<const N: usize>(
    headings: [&str; N],
    rows: Vec<[String; N]>,
    nothing: &str,
) -> Result<(), OutputError> {
    if rows.is_empty() {
        return line(nothing);
    }
    line(&table(headings, rows))
}

/// Rows under their headings, in columns.
pub(crate) fn table<const N: usize>(headings: [&str; N], rows: Vec<[String; N]>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(headings.map(str::to_uppercase));
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt()
}

/// Prints names and values under each other.
pub(crate) fn facts<const N: usize>(facts: [(&str, String); N]) -> Result<(), OutputError> {
    let width = facts.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    for (name, value) in facts {
        line(&format!("{name:width$}  {value}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let text = table(
            ["node", "blocks"],
            vec![["a".into(), "1".into()], ["longer".into(), "22".into()]],
        );
        let lines: Vec<_> = text.lines().map(str::trim_end).collect();
        assert_eq!(lines, ["NODE    BLOCKS", "a       1", "longer  22"]);
    }
}
