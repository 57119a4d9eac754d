//! ASCII mode: whatever was drawn is replaced, cell by cell, by what every terminal can show.
//!
//! One place instead of two sets of symbols: the drawing code knows only the good ones.

use ratatui::buffer::Buffer;

/// Replaces every cell that is not ASCII.
pub fn replace(buffer: &mut Buffer) {
    for cell in &mut buffer.content {
        if !cell.symbol().is_ascii() {
            let c = cell.symbol().chars().next().map_or(' ', plain);
            cell.set_char(c);
        }
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
        '✎' => '+',
        '°' => ' ',
        '║' => '|',
        _ => '?',
    }
}
