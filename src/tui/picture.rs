//! A screen as an SVG picture, for documents: what was drawn, cell by cell.

use std::fmt::Write as _;

use ratatui::buffer::{Buffer, Cell};
use ratatui::style::{Color, Modifier};

/// Width and height of a cell, in the picture's units.
const CELL: (f32, f32) = (8.4, 18.0);
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
    let mut text = String::new();
    let mut count = 0;
    while let Some(cell) = buffer.cell((x + count, y)).filter(|c| Look::of(c) == look) {
        if x + count >= buffer.area.width {
            break;
        }
        text.push_str(cell.symbol());
        count += 1;
    }
    let left = MARGIN + f32::from(x) * CELL.0;
    let top = MARGIN + f32::from(y) * CELL.1;
    let width = f32::from(count) * CELL.0;
    if look.background != BACKGROUND {
        let (height, fill) = (CELL.1, &look.background);
        // Writing to a string cannot fail.
        let _ = writeln!(
            out,
            "<rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"{height}\" \
             fill=\"{fill}\"/>"
        );
    }
    if !text.trim().is_empty() {
        let skipped = text.chars().take_while(|c| *c == ' ').count();
        let shown = text.trim();
        let cells = u16::try_from(shown.chars().count()).unwrap_or(count);
        let offset = f32::from(u16::try_from(skipped).unwrap_or(0)) * CELL.0;
        let mut style = format!("fill=\"{}\"", look.foreground);
        if look.bold {
            style.push_str(" font-weight=\"bold\"");
        }
        if look.dim {
            style.push_str(" opacity=\"0.6\"");
        }
        let _ = writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{:.1}\" textLength=\"{:.1}\" lengthAdjust=\"spacingAndGlyphs\" \
             xml:space=\"preserve\" {style}>{}</text>",
            left + offset,
            top + CELL.1 * 0.75,
            f32::from(cells) * CELL.0,
            escaped(shown)
        );
    }
    count.max(1)
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
        buffer.set_string(1, 0, "<b>&", Style::new().fg(Color::Rgb(1, 2, 3)).bg(Color::Indexed(196)));
        let picture = svg(&buffer);
        assert!(picture.contains("&lt;b&gt;&amp;"));
        assert!(picture.contains("#010203") && picture.contains("#ff0000"));
        assert!(!picture.contains("<b>"));
        assert_eq!(picture.matches("<text").count(), 1);
    }
}
