//! A screen as an SVG picture, for documents: what was drawn, cell by cell.

use std::fmt::Write as _;

use ratatui::buffer::{Buffer, Cell};
use ratatui::style::{Color, Modifier};

/// Width and height of a cell, in the picture's units.
const CELL: (f32, f32) = (8.43, 18.0);
const MARGIN: f32 = 12.0;
const BACKGROUND: &str = "#10161c";
const FOREGROUND: &str = "#d7dee6";

/// The buffer as a stand-alone SVG document.
pub fn svg(buffer: &Buffer) -> String {
    let (columns, rows) = (buffer.area.width, buffer.area.height);
    let width = f32::from(columns) * CELL.0 + 2.0 * MARGIN;
    let height = f32::from(rows) * CELL.1 + 2.0 * MARGIN;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.1} {height:.1}\" \
         font-family=\"'DejaVu Sans Mono','JetBrains Mono',Menlo,Consolas,monospace\" \
         font-size=\"14\">\n\
         <rect width=\"100%\" height=\"100%\" rx=\"8\" fill=\"{BACKGROUND}\"/>\n"
    );
    for y in 0..rows {
        let mut x = 0;
        while x < columns {
            x += run(buffer, x, y, &mut out);
        }
    }
    out.push_str("</svg>\n");
    out
}

/// Writes the cells from (`x`, `y`) on that look the same; returns how many they are.
fn run(buffer: &Buffer, x: u16, y: u16, out: &mut String) -> u16 {
    let Some(first) = buffer.cell((x, y)) else { return 1 };
    let look = Look::of(first);
    let same = |c: &&Cell| Look::of(c) == look;
    let cells: Vec<&str> = (x..buffer.area.width)
        .map_while(|x| buffer.cell((x, y)).filter(same).map(Cell::symbol))
        .collect();
    let count = u16::try_from(cells.len()).unwrap_or(1);
    let left = MARGIN + f32::from(x) * CELL.0;
    let top = MARGIN + f32::from(y) * CELL.1;
    if look.background != BACKGROUND {
        // A little wider, so that no seam is seen between neighbours.
        rect(out, left, top, f32::from(count) * CELL.0 + 0.3, CELL.1 + 0.3, &look.background);
    }
    // Words are placed one by one: a font a little wider or narrower then shifts nothing.
    let mut at = 0;
    while let Some(symbol) = cells.get(at) {
        let alike = |s: &&&str| {
            if shape(symbol).is_some() { **s == *symbol } else { s.is_ascii() && **s != " " }
        };
        let rest = cells.get(at..).unwrap_or_default();
        let length = rest.iter().take_while(alike).count().max(1);
        let offset = f32::from(u16::try_from(at).unwrap_or(0)) * CELL.0;
        let width = f32::from(u16::try_from(length).unwrap_or(1)) * CELL.0;
        match shape(symbol) {
            Some((fx, fy, fw, fh)) => {
                // A part of a cell's width is not repeated; whole widths run together.
                let w = if fw < 1.0 { CELL.0 * fw } else { width };
                let step = if fw < 1.0 { length } else { 1 };
                for i in 0..step {
                    let shift = f32::from(u16::try_from(i).unwrap_or(0)) * CELL.0;
                    let x = left + offset + shift + CELL.0 * fx;
                    rect(out, x, top + CELL.1 * fy, w, CELL.1 * fh, &look.foreground);
                }
            }
            None if symbol.trim().is_empty() => {}
            None => {
                let text: String = rest.iter().take(length).copied().collect();
                word(out, (left + offset, top + CELL.1 * 0.75), width, &text, &look);
            }
        }
        at += length;
    }
    count.max(1)
}

/// Blocks and lines as parts of a cell (left, top, width, height), so that they join without gaps
/// whatever the font.
fn shape(symbol: &str) -> Option<(f32, f32, f32, f32)> {
    let c = symbol.chars().next()?;
    let nth = |first: char| f32::from(u16::try_from(c as u32 - first as u32).unwrap_or(0));
    Some(match c {
        '█' => (0.0, 0.0, 1.0, 1.0),
        '▉'..='▏' => (0.0, 0.0, (7.0 - nth('▉')) / 8.0, 1.0),
        '▁'..='▇' => {
            let height = (nth('▁') + 1.0) / 8.0;
            (0.0, 1.0 - height, 0.98, height)
        }
        '─' => (0.0, 0.47, 1.0, 0.06),
        '━' => (0.0, 0.39, 1.0, 0.22),
        '╸' => (0.0, 0.39, 0.5, 0.22),
        '│' => (0.44, 0.0, 0.12, 1.0),
        _ => return None,
    })
}

fn rect(out: &mut String, x: f32, y: f32, width: f32, height: f32, fill: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(
        out,
        "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" \
         fill=\"{fill}\"/>"
    );
}

fn word(out: &mut String, at: (f32, f32), width: f32, text: &str, look: &Look) {
    let mut style = format!("fill=\"{}\"", look.foreground);
    if look.bold {
        style.push_str(" font-weight=\"bold\"");
    }
    if look.dim {
        style.push_str(" opacity=\"0.6\"");
    }
    let (x, y) = at;
    let corner = match text {
        "╭" => Some((x + CELL.0, 1.0)),
        "╮" => Some((x, 1.0)),
        "╰" => Some((x + CELL.0, -1.0)),
        "╯" => Some((x, -1.0)),
        _ => None,
    };
    if let Some((from, down)) = corner {
        let (middle, centre) = (x + CELL.0 / 2.0, y - CELL.1 * 0.25);
        let end = centre + down * CELL.1 / 2.0;
        let _ = writeln!(
            out,
            "<path d=\"M{from:.1} {centre:.1}Q{middle:.1} {centre:.1} {middle:.1} {end:.1}\" \
             stroke=\"{}\" fill=\"none\"/>",
            look.foreground
        );
        return;
    }
    let _ = writeln!(
        out,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" textLength=\"{width:.1}\" \
         lengthAdjust=\"spacingAndGlyphs\" {style}>{}</text>",
        escaped(text)
    );
}

#[derive(PartialEq)]
struct Look {
    foreground: String,
    background: String,
    bold: bool,
    dim: bool,
}

impl Look {
    fn of(cell: &Cell) -> Self {
        let mut foreground = colour(cell.fg, FOREGROUND);
        let mut background = colour(cell.bg, BACKGROUND);
        if cell.modifier.contains(Modifier::REVERSED) {
            std::mem::swap(&mut foreground, &mut background);
        }
        Self {
            foreground,
            background,
            bold: cell.modifier.contains(Modifier::BOLD),
            dim: cell.modifier.contains(Modifier::DIM),
        }
    }
}

fn colour(colour: Color, default: &str) -> String {
    match colour {
        Color::Rgb(r, g, b) => format!("#{r:02x}{g:02x}{b:02x}"),
        Color::Indexed(i) => indexed(i),
        Color::Reset => default.to_owned(),
        named => named_colour(named).to_owned(),
    }
}

const fn named_colour(colour: Color) -> &'static str {
    match colour {
        Color::Black => "#000000",
        Color::Red | Color::LightRed => "#e25c2c",
        Color::Green | Color::LightGreen => "#14a87a",
        Color::Yellow | Color::LightYellow => "#e09614",
        Color::Blue | Color::LightBlue => "#4c7ed6",
        Color::Magenta | Color::LightMagenta => "#c876a4",
        Color::Cyan | Color::LightCyan => "#48a2d8",
        Color::White => "#ffffff",
        Color::DarkGray => "#7e8690",
        _ => FOREGROUND,
    }
}

/// The palette of 256: a cube of 6×6×6 colours and a ramp of greys (xterm's).
fn indexed(index: u8) -> String {
    let level = |n: u8| if n == 0 { 0 } else { 55 + n * 40 };
    match index {
        0..=15 => FOREGROUND.to_owned(),
        16..=231 => {
            let i = index - 16;
            let (r, g, b) = (level(i / 36), level(i / 6 % 6), level(i % 6));
            format!("#{r:02x}{g:02x}{b:02x}")
        }
        232..=255 => {
            let grey = 8 + (index - 232) * 10;
            format!("#{grey:02x}{grey:02x}{grey:02x}")
        }
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use ratatui::layout::Rect;
    use ratatui::style::Style;

    #[test]
    fn draws_text_colours_and_nothing_that_is_markup() {
        let mut buffer = Buffer::empty(Rect::new(0, 0, 20, 2));
        buffer.set_string(
            1,
            0,
            "<b>&",
            Style::new().fg(Color::Rgb(1, 2, 3)).bg(Color::Indexed(196)),
        );
        let picture = svg(&buffer);
        assert!(picture.contains("&lt;b&gt;&amp;"));
        assert!(picture.contains("#010203") && picture.contains("#ff0000"));
        assert!(!picture.contains("<b>"));
        assert_eq!(picture.matches("<text").count(), 1);
    }
}
