//! Plain tables and JSON on standard output.

use std::io::Write;

use serde::Serialize;
use unicode_width::UnicodeWidthStr;

use super::exit::Failure;

/// Prints rows under headings, columns aligned, the last column as it is.
pub fn print(headings: &[&str], rows: &[Vec<String>]) -> Result<(), Failure> {
    let mut widths: Vec<usize> = headings.iter().map(|h| h.width()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.width());
        }
    }
    let heading: Vec<String> = headings.iter().map(|h| (*h).to_owned()).collect();
    for row in std::iter::once(&heading).chain(rows) {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(cell);
            line.push_str(&" ".repeat(width.saturating_sub(cell.width()) + 2));
        }
        out(line.trim_end())?;
    }
    Ok(())
}

/// A number of things: `1 step`, `2 steps`.
pub fn plural(n: u64, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

/// Prints one value as indented JSON.
pub fn json<T: Serialize>(value: &T) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|e| Failure::other(e.to_string()).unforeseen())?;
    out(&text)
}

/// Prints one value as a line of JSON.
pub fn json_line<T: Serialize>(value: &T) -> Result<(), Failure> {
    let text =
        serde_json::to_string(value).map_err(|e| Failure::other(e.to_string()).unforeseen())?;
    out(&text)
}

/// Prints a line; a closed pipe ends the command without a word, a full disk with one.
pub fn out(line: &str) -> Result<(), Failure> {
    writeln!(std::io::stdout().lock(), "{line}").map_err(|error| match error.kind() {
        std::io::ErrorKind::BrokenPipe => Failure::unread(),
        _ => Failure::other(format!("the output cannot be written: {error}"))
            .with_hint("free space where it goes, or send it elsewhere"),
    })
}
