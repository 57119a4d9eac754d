//! A table that is wider than the screen is shown as several below each other: the first columns, which say what
//! a row is about, are there in each.

use ratatui::style::Style;
use ratatui::text::{Line, Span};
use unicode_width::UnicodeWidthStr;

use crate::tui::theme::Theme;

/// A column: its heading, how wide it is, and on which side its text stands.
pub(super) struct Column {
    /// What stands above it.
    pub head: &'static str,
    /// Cells.
    pub width: usize,
    /// Numbers stand on the right.
    pub right: bool,
}

/// A column of numbers.
pub(super) const fn right(head: &'static str, width: usize) -> Column {
    Column { head, width, right: true }
}

/// A column of words.
pub(super) const fn left(head: &'static str, width: usize) -> Column {
    Column { head, width, right: false }
}

/// A row, with what is to be said below it.
pub(super) struct Row {
    pub cells: Vec<String>,
    pub style: Style,
    pub below: Vec<Line<'static>>,
}

/// The lines of a table in so many cells; `keys` columns are repeated when it is divided.
pub(super) fn table(
    theme: &Theme,
    width: usize,
    keys: usize,
    columns: &[Column],
    rows: Vec<Row>,
    out: &mut Vec<Line<'static>>,
) {
    let heads: Vec<String> = columns.iter().map(|column| column.head.to_owned()).collect();
    for (part, range) in parts(columns, keys, width).iter().enumerate() {
        let line = |cells: &[String]| -> String {
            let shown = columns.iter().zip(cells).enumerate().filter(|(at, _)| range.contains(at));
            let words: Vec<String> = shown.map(|(_, (column, cell))| fit(column, cell)).collect();
            words.join(" ").trim_end().to_owned()
        };
        out.push(Line::styled(line(&heads), theme.header));
        for row in &rows {
            out.push(Line::from(vec![Span::styled(line(&row.cells), row.style)]));
            if part == 0 {
                out.extend(row.below.iter().cloned());
            }
        }
    }
}

/// The columns of each part.
fn parts(columns: &[Column], keys: usize, width: usize) -> Vec<Vec<usize>> {
    let keys: Vec<usize> = (0..columns.len().min(keys)).collect();
    let of = |at: usize| columns.get(at).map_or(0, |column| column.width + 1);
    let start: usize = keys.iter().map(|at| of(*at)).sum();
    let mut parts = vec![keys.clone()];
    let mut taken = start;
    for at in keys.len()..columns.len() {
        // The last cell of a line needs no space after it.
        if taken + of(at) > width + 1 && taken > start {
            parts.push(keys.clone());
            taken = start;
        }
        taken += of(at);
        if let Some(part) = parts.last_mut() {
            part.push(at);
        }
    }
    parts
}

fn fit(column: &Column, cell: &str) -> String {
    let pad = " ".repeat(column.width.saturating_sub(cell.width()));
    if column.right { format!("{pad}{cell}") } else { format!("{cell}{pad}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wide_table_is_divided_and_nothing_of_it_is_lost() {
        let columns = [right("GPU", 3), right("A", 5), left("BB", 5), left("COMMAND", 10)];
        let row = |n: &str| Row {
            cells: [n, "1%", "x", "vllm serve a-long-name"].map(str::to_owned).to_vec(),
            style: Style::default(),
            below: vec![Line::raw("  ▲ LOST")],
        };
        let theme = Theme::new(crate::tui::theme::Depth::default());
        let text = |width| {
            let mut out = Vec::new();
            table(&theme, width, 1, &columns, vec![row("0")], &mut out);
            out.iter().map(ToString::to_string).collect::<Vec<String>>()
        };
        assert_eq!(
            text(40),
            ["GPU     A BB    COMMAND", "  0    1% x     vllm serve a-long-name", "  ▲ LOST"]
        );
        assert_eq!(
            text(16),
            [
                "GPU     A BB",
                "  0    1% x",
                "  ▲ LOST",
                "GPU COMMAND",
                "  0 vllm serve a-long-name"
            ]
        );
        // However narrow, each part has at least one column of its own.
        assert_eq!(text(1).len(), 7);
    }
}
