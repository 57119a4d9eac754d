//! Plain tables, lines and JSON on standard output.

use std::io::Write;

use serde::Serialize;

pub use super::columns::Fit;
use super::columns::laid;
use super::exit::Failure;
use super::page;
use crate::api::wrap;

/// Prints rows under headings, columns aligned, the last column as it is.
pub fn print(headings: &[&str], rows: &[Vec<String>]) -> Result<(), Failure> {
    print_fitting(headings, rows, Fit::default())
}

/// The same, with how it gives way on a narrow terminal.
pub fn print_fitting(headings: &[&str], rows: &[Vec<String>], fit: Fit<'_>) -> Result<(), Failure> {
    laid(headings, rows, page::width(), fit).iter().try_for_each(|line| out(line))
}

/// Prints a line for people: on a terminal that is too narrow for it, broken at blanks and indented further where it goes
/// on.
pub fn say(line: &str) -> Result<(), Failure> {
    let indent = line.len() - line.trim_start_matches(' ').len();
    say_hanging(line, indent + 2)
}

/// The same, indented by so many columns where it goes on.
pub fn say_hanging(line: &str, hang: usize) -> Result<(), Failure> {
    match page::width() {
        Some(width) if !line.is_empty() => {
            wrap::lines(line, width, hang).iter().try_for_each(|line| out(line))
        }
        _ => out(line),
    }
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
