//! ASCII mode: whatever was drawn is replaced, cell by cell, by what every terminal can show.
//!
//! One place instead of two sets of symbols: the drawing code knows only the good ones.

use ratatui::buffer::{Buffer, Cell};

/// Replaces every cell that is not ASCII.
pub fn replace(buffer: &mut Buffer) {
    widen(buffer);
    for cell in &mut buffer.content {
        if !cell.symbol().is_ascii() {
            let c = cell.symbol().chars().next().map_or(' ', plain);
            cell.set_char(c);
        }
    }
}

/// Writes `≥` and `≤` as two characters: what follows moves by one into the blanks behind it, or a blank before it goes.
/// Where there is neither, only the first of the two is left.
fn widen(buffer: &mut Buffer) {
    let width = usize::from(buffer.area.width);
    if width == 0 {
        return;
    }
    for row in buffer.content.chunks_mut(width) {
        let mut x = 0;
        while x < row.len() {
            x = match row.get(x).and_then(|cell| two_of(cell.symbol())) {
                Some(sign) => write_two(row, x, sign),
                None => x + 1,
            };
        }
    }
}

/// Writes both characters at `x`; returns where it goes on.
fn write_two(row: &mut [Cell], x: usize, sign: char) -> usize {
    let is_blank = |cell: Option<&Cell>| cell.is_some_and(|cell| cell.symbol() == " ");
    // Frames stay where they are.
    let is_frame = |cell: &Cell| "│┃╭╮╰╯├┤".contains(cell.symbol());
    let till = row.iter().skip(x).position(is_frame).map_or(row.len(), |at| x + at);
    let behind = (x + 1..till).find(|at| is_blank(row.get(*at)) && is_blank(row.get(at + 1)));
    if let Some(end) = behind {
        if let Some(moved) = row.get_mut(x + 1..=end) {
            moved.rotate_right(1);
        }
        let style = row.get(x).map(Cell::style);
        if let (Some(cell), Some(style)) = (row.get_mut(x + 1), style) {
            cell.set_char('=').set_style(style);
        }
        if let Some(cell) = row.get_mut(x) {
            cell.set_char(sign);
        }
        return x + 2;
    }
    if let Some(before) = x.checked_sub(1).filter(|before| is_blank(row.get(*before))) {
        if let Some(cell) = row.get_mut(before) {
            cell.set_char(sign);
        }
        if let Some(cell) = row.get_mut(x) {
            cell.set_char('=');
        }
    } else if let Some(cell) = row.get_mut(x) {
        cell.set_char(sign);
    }
    x + 1
}

fn two_of(symbol: &str) -> Option<char> {
    match symbol {
        "≥" => Some('>'),
        "≤" => Some('<'),
        _ => None,
    }
}

#[allow(clippy::match_same_arms)] // a table, in groups of what belongs together
fn plain(c: char) -> char {
    match c {
        '━' | '╸' => '=',
        '─' | '–' | '—' | '╌' => '-',
        '│' | '┃' | '▏' | '▕' | '▎' | '┆' => '|',
        '╭' | '╮' | '╰' | '╯' | '├' | '┤' | '┬' | '┴' | '┼' | '└' | '┌' | '┐' | '┘' => {
            '+'
        }
        '█' | '▉' | '▊' | '▋' | '▇' | '▆' | '▰' => '#',
        '▌' | '▍' | '▶' | '›' | '»' | '→' | '▸' | '↪' => '>',
        '▅' | '▄' => '=',
        '▃' => '-',
        '▂' | '▁' => '_',
        '░' | '▱' | '·' | '…' => '.',
        '▒' => '%',
        '●' | '✔' | '•' => '*',
        '○' | '◌' => 'o',
        '◔' | '◑' | '◕' | '◐' => '~',
        '▲' => '!',
        '✖' | '×' => 'x',
        '←' | '↩' | '◀' => '<',
        '↑' => '^',
        '↓' | '▾' => 'v',
        '≥' => '>',
        '≤' => '<',
        '✎' => '+',
        '°' => ' ',
        '║' => '|',
        _ => '?',
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ratatui::style::Style;

    fn plainly(text: &str) -> String {
        let width = u16::try_from(text.chars().count()).unwrap_or(0);
        let mut buffer = Buffer::empty(ratatui::layout::Rect::new(0, 0, width, 1));
        buffer.set_string(0, 0, text, Style::new());
        replace(&mut buffer);
        buffer.content.iter().map(Cell::symbol).collect()
    }

    #[test]
    fn at_least_and_at_most_are_two_characters() {
        assert_eq!(plainly("4/4 ≥3    r1"), "4/4 >=3   r1");
        assert_eq!(plainly("no request yet, ≤12s   x"), "no request yet, <=12s  x");
        assert_eq!(plainly("a ≥3 b ≤4"), "a>=3 b<=4");
        assert_eq!(plainly("x≥3"), "x>3");
        assert_eq!(plainly("4 ≥3│  x"), "4>=3|  x");
    }
}
