//! Rows in columns, and how they give way where a terminal is too narrow for them.

use unicode_width::UnicodeWidthStr;

use crate::api::wrap;

/// Blanks between two columns.
const GAP: usize = 2;
/// How far in what stands below a row begins.
const BELOW: usize = 4;
/// What is cut keeps so many columns.
const LEAST: usize = 12;

/// How a table gives way, in this order.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fit<'a> {
    /// A column with nothing in it is left out.
    pub without_empty: bool,
    /// Columns that are left out, the first one first.
    pub spare: &'a [usize],
    /// A column of names that are cut in the middle.
    pub cut: Option<usize>,
    /// Columns that are left out where that is not enough either.
    pub last: &'a [usize],
}

/// The table's lines. The last column is not padded; where its cell does not fit beside the others it stands below
/// them, indented. `width`: of the terminal; none: as wide as it is.
pub fn laid(
    headings: &[&str],
    rows: &[Vec<String>],
    width: Option<usize>,
    fit: Fit<'_>,
) -> Vec<String> {
    let headings: Vec<String> = headings.iter().map(|h| (*h).to_owned()).collect();
    let Some(width) = width else { return plain(&headings, rows) };
    let mut kept: Vec<usize> = (0..headings.len()).collect();
    if fit.without_empty {
        kept.retain(|at| rows.iter().any(|row| row.get(*at).is_some_and(|c| !c.is_empty())));
    }
    let own = |at: usize| widths(&headings, rows, &[at]).first().copied().unwrap_or_default();
    let all = |kept: &[usize]| kept.iter().map(|at| own(*at) + GAP).sum::<usize>();
    // How much cutting names gives.
    let cut = fit.cut.map_or(0, |at| own(at).saturating_sub(LEAST));
    for (columns, given) in [(fit.spare, 0), (fit.last, cut)] {
        for column in columns {
            if all(&kept).saturating_sub(given) > width + GAP {
                kept.retain(|at| at != column);
            }
        }
    }
    let of = |row: &[String]| -> Vec<String> {
        kept.iter().map(|at| row.get(*at).cloned().unwrap_or_default()).collect()
    };
    let headings = of(&headings);
    let mut rows: Vec<Vec<String>> = rows.iter().map(|row| of(row)).collect();
    let cut = fit.cut.and_then(|cut| kept.iter().position(|at| *at == cut));
    if let Some(cut) = cut {
        let columns: Vec<usize> = (0..headings.len()).collect();
        let widths = widths(&headings, &rows, &columns);
        let over = (widths.iter().map(|w| w + GAP).sum::<usize>()).saturating_sub(width + GAP);
        let own = widths.get(cut).copied().unwrap_or_default();
        for cell in rows.iter_mut().filter_map(|row| row.get_mut(cut)).filter(|_| over > 0) {
            *cell = wrap::middle_cut(cell, own.saturating_sub(over).max(LEAST));
        }
    }
    narrow(&headings, &rows, width)
}

/// The widest cell of each column.
fn widths(headings: &[String], rows: &[Vec<String>], columns: &[usize]) -> Vec<usize> {
    let cell = |row: &[String], at: usize| row.get(at).map_or(0, |cell| cell.width());
    let widest = |at: &usize| {
        let rows = rows.iter().map(|row| cell(row, *at)).max().unwrap_or(0);
        rows.max(cell(headings, *at))
    };
    columns.iter().map(widest).collect()
}

fn plain(headings: &[String], rows: &[Vec<String>]) -> Vec<String> {
    let columns: Vec<usize> = (0..headings.len()).collect();
    let widths = widths(headings, rows, &columns);
    let heading = headings.to_vec();
    std::iter::once(&heading).chain(rows).map(|row| line(row, &widths)).collect()
}

fn line(row: &[String], widths: &[usize]) -> String {
    let mut line = String::new();
    for (cell, width) in row.iter().zip(widths) {
        line.push_str(cell);
        line.push_str(&" ".repeat(width.saturating_sub(cell.width()) + GAP));
    }
    line.trim_end().to_owned()
}

fn narrow(headings: &[String], rows: &[Vec<String>], width: usize) -> Vec<String> {
    let columns: Vec<usize> = (0..headings.len()).collect();
    let widths = widths(headings, rows, &columns);
    let mut out = Vec::new();
    let heading = headings.to_vec();
    for row in std::iter::once(&heading).chain(rows) {
        let whole = line(row, &widths);
        if whole.width() <= width {
            out.push(whole);
            continue;
        }
        let (note, others) = row.split_last().map_or(("", row.as_slice()), |(n, o)| (n, o));
        out.extend(wrap::lines(&line(others, &widths), width, BELOW));
        if !note.is_empty() {
            out.extend(wrap::lines(&format!("{}{note}", " ".repeat(BELOW)), width, BELOW));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(all: &[&[&str]]) -> Vec<Vec<String>> {
        all.iter().map(|row| row.iter().map(ToString::to_string).collect()).collect()
    }

    #[test]
    fn a_pipe_gets_everything_side_by_side() {
        let rows = rows(&[&["a", "", "a note of many words"], &["bc", "", ""]]);
        let lines =
            laid(&["X", "E", ""], &rows, None, Fit { without_empty: true, ..Fit::default() });
        assert_eq!(lines, ["X   E", "a      a note of many words", "bc"]);
    }

    #[test]
    fn a_note_that_does_not_fit_stands_below_its_row() {
        let rows = rows(&[
            &["gpu-1", "up", "GPU 3 DEGRADED: a row was remapped"],
            &["gpu-2", "up", "old"],
        ]);
        let lines = laid(&["HOST", "STATE", ""], &rows, Some(24), Fit::default());
        let below = ["gpu-1  up", "    GPU 3 DEGRADED: a", "    row was remapped"];
        assert_eq!(lines[0], "HOST   STATE");
        assert_eq!(lines[1..4], below);
        assert_eq!(lines[4], "gpu-2  up     old");
    }

    #[test]
    fn nothing_stands_below_a_row_without_a_note() {
        let rows = rows(&[&["a-long-name", "serving", ""], &["b", "up", ""]]);
        let lines = laid(&["SERVICE", "STATE", ""], &rows, Some(14), Fit::default());
        assert!(lines.iter().all(|line| !line.is_empty()), "{lines:?}");
        assert_eq!(lines.last().map(String::as_str), Some("    up"));
    }

    #[test]
    fn what_can_be_spared_goes_first_then_names_are_cut() {
        let rows = rows(&[&["chat-of-the-far-north", "", "vllm", "serving", "http://gw:8000"]]);
        let headings = ["SERVICE", "E", "ENGINE", "STATE", "URL"];
        let fit = Fit { without_empty: true, spare: &[4, 2], cut: Some(0), last: &[3] };
        assert_eq!(
            laid(&headings, &rows, Some(60), fit)[1],
            "chat-of-the-far-north  vllm    serving  http://gw:8000"
        );
        assert_eq!(
            laid(&headings, &rows, Some(40), fit)[1],
            "chat-of-the-far-north  vllm    serving"
        );
        assert_eq!(laid(&headings, &rows, Some(30), fit)[1], "chat-of-the-far-north  serving");
        assert_eq!(laid(&headings, &rows, Some(25), fit)[1], "chat-of-…r-north  serving");
        assert_eq!(laid(&headings, &rows, Some(18), fit)[1], "chat-of-t…ar-north");
    }
}
