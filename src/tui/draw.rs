//! The pen: the only way to write into the screen. It clips, and it cleans every text, so that no byte
//! from a host reaches the terminal as anything but a visible character.

use std::borrow::Cow;

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, BorderType, Clear, Widget};
use unicode_width::UnicodeWidthStr;

use super::theme::Theme;
use crate::api::text;

/// Longest text drawn at once, in characters: more than any screen is wide.
const MAX_CHARS: usize = 1_024;

/// Writes into a buffer.
pub struct Pen<'a> {
    /// The screen.
    pub buffer: &'a mut Buffer,
    /// Its colours.
    pub theme: &'a Theme,
}

impl Pen<'_> {
    /// Writes `text` at (`x`, `y`), not beyond `right`; returns where the next text goes.
    pub fn put(&mut self, x: u16, y: u16, right: u16, text: &str, style: Style) -> u16 {
        let area = self.buffer.area;
        let right = right.min(area.right());
        if y < area.y || y >= area.bottom() || x < area.x || x >= right {
            return x.min(right);
        }
        let text = clean(text);
        self.buffer.set_stringn(x, y, &text, usize::from(right - x), style).0
    }

    /// Like `put`, and a text that does not fit ends in `…`.
    pub fn put_cut(&mut self, x: u16, y: u16, right: u16, text: &str, style: Style) -> u16 {
        let room = usize::from(right.saturating_sub(x));
        let cleaned = clean(text);
        if cleaned.width() <= room {
            return self.put(x, y, right, &cleaned, style);
        }
        if room == 0 {
            return x;
        }
        let end = self.put(x, y, right - 1, &cleaned, style);
        self.put(end, y, right, "…", style)
    }

    /// Writes `text` so that it ends before `right`, not before `left`; returns where it begins.
    pub fn put_right(&mut self, left: u16, y: u16, right: u16, text: &str, style: Style) -> u16 {
        let cleaned = clean(text);
        let wide = u16::try_from(cleaned.width()).unwrap_or(u16::MAX);
        let x = right.saturating_sub(wide).max(left);
        self.put(x, y, right, &cleaned, style);
        x
    }

    /// Writes a line of several styles; what does not fit ends in `…`.
    pub fn line(&mut self, x: u16, y: u16, right: u16, line: &Line<'_>) -> u16 {
        let right = right.min(self.buffer.area.right());
        let texts: Vec<Cow<'_, str>> = line.spans.iter().map(|s| clean(&s.content)).collect();
        let wide: usize = texts.iter().map(|t| t.width()).sum();
        // Blanks at the end are nothing that could be missed.
        let blank = |t: &Cow<'_, str>| t.len() - t.trim_end_matches(' ').len();
        let mut ending = 0;
        for text in texts.iter().rev() {
            ending += blank(text);
            if !text.trim_end_matches(' ').is_empty() {
                break;
            }
        }
        let cut = wide - ending > usize::from(right.saturating_sub(x));
        let end = if cut { right.saturating_sub(1) } else { right };
        let (mut at, mut style) = (x, line.style);
        for (span, text) in line.spans.iter().zip(&texts) {
            if cut && at >= end {
                break;
            }
            style = line.style.patch(span.style);
            at = self.put(at, y, end, text, style);
        }
        if cut { self.put(at, y, right, "…", style) } else { at }
    }

    /// Writes `lines` from the `skip`-th on into `area`; returns how many can be skipped at most.
    pub fn lines(&mut self, area: Rect, lines: &[Line<'_>], skip: usize) -> usize {
        let most = lines.len().saturating_sub(usize::from(area.height));
        let shown = lines.iter().skip(skip.min(most));
        for (y, line) in (area.y..area.bottom()).zip(shown) {
            self.line(area.x, y, area.right(), line);
        }
        most
    }

    /// Writes `lines` into `area`; where there are more, the last row says so.
    pub fn lines_cut(&mut self, area: Rect, mut lines: Vec<Line<'static>>) {
        let rows = usize::from(area.height);
        if lines.len() > rows && rows > 0 {
            let left = lines.split_off(rows);
            if let (Some(last), Some(next)) = (lines.last_mut(), left.into_iter().next()) {
                let style = next.style;
                let spans = next.spans.into_iter().map(|s| s.patch_style(style));
                last.spans.push(Span::raw(" "));
                last.spans.extend(spans);
                // Whatever the next one has, this is not the end.
                last.spans.push(Span::raw(" ".repeat(usize::from(area.width)) + "…"));
            }
        }
        self.lines(area, &lines, 0);
    }

    /// A horizontal bar of `width` cells, filled to `share` (0 to 1) in halves. Thin, so that bars
    /// below each other do not run together.
    pub fn bar(&mut self, x: u16, y: u16, width: u16, share: f64, style: Style) {
        let halves = scale(share, u32::from(width) * 2);
        let full = u16::try_from(halves / 2).unwrap_or(width).min(width);
        let right = x.saturating_add(width);
        let mut filled = "━".repeat(usize::from(full));
        if halves % 2 == 1 && full < width {
            filled.push('╸');
        }
        let at = self.put(x, y, right, &filled, style);
        let rest = "─".repeat(usize::from(right.saturating_sub(at)));
        self.put(at, y, right, &rest, self.theme.border);
    }

    /// Marks a row as selected: its background, and its colour where it had none of its own.
    pub fn select(&mut self, area: Rect, y: u16, style: Style) {
        let row = Rect { y, height: 1, ..area }.intersection(self.buffer.area);
        for x in row.left()..row.right() {
            if let Some(cell) = self.buffer.cell_mut((x, y)) {
                let own = cell.fg;
                cell.set_style(style);
                if own != Color::Reset {
                    cell.fg = own;
                }
            }
        }
    }

    /// Takes the colours of what is drawn in an area: it is there, and it is not of now.
    pub fn fade(&mut self, area: Rect) {
        let style = self.theme.dim.remove_modifier(Modifier::BOLD);
        let area = area.intersection(self.buffer.area);
        self.buffer.set_style(area, style);
    }

    /// A frame with a title; returns the inside.
    pub fn frame(&mut self, area: Rect, focused: bool, title: &Line<'_>) -> Rect {
        let area = area.intersection(self.buffer.area);
        if area.height < 3 || area.width < 4 {
            return area;
        }
        let style = if focused { self.theme.focus } else { self.theme.border };
        let kind = BorderType::Rounded;
        let block = Block::bordered().border_type(kind).border_style(style);
        let inside = block.inner(area);
        block.render(area, self.buffer);
        let x = self.put(area.x + 1, area.y, area.right() - 1, " ", style);
        let right = area.right() - 2;
        let last = title.spans.len().saturating_sub(1);
        let mut end = x;
        for (i, span) in title.spans.iter().enumerate() {
            let style = title.style.patch(span.style);
            // What does not fit is cut visibly: half a number would be another number.
            end = if i == last {
                self.put_cut(end, area.y, right, &span.content, style)
            } else {
                self.put(end, area.y, right, &span.content, style)
            };
        }
        self.put(end, area.y, area.right() - 1, " ", style);
        inside
    }

    /// Empties an area.
    pub fn clear(&mut self, area: Rect) {
        Clear.render(area.intersection(self.buffer.area), self.buffer);
    }
}

fn clean(raw: &str) -> Cow<'_, str> {
    // Almost everything drawn is plain already.
    if raw.len() <= MAX_CHARS && raw.bytes().all(|b| (b' '..0x7f).contains(&b)) {
        Cow::Borrowed(raw)
    } else {
        Cow::Owned(text::clean(raw, MAX_CHARS))
    }
}

/// `share` (0 to 1) of `whole`, rounded, never more than `whole`.
pub fn scale(share: f64, whole: u32) -> u32 {
    if !share.is_finite() {
        return 0;
    }
    let value = (share.clamp(0.0, 1.0) * f64::from(whole)).round();
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // clamped just above
    let whole_cells = value as u32;
    whole_cells
}

/// One of eight heights for a share of 0 to 1.
pub fn spark(share: f64) -> &'static str {
    const LEVELS: [&str; 8] = ["▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"];
    LEVELS.get(scale(share, 7) as usize).copied().unwrap_or("▁")
}

/// A column of a table.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// Its title.
    pub title: &'static str,
    /// Its width.
    pub width: u16,
    /// Left out first where it is highest.
    pub rank: u8,
    /// Numbers stand at the right.
    pub right: bool,
    /// Takes what is left over.
    pub grows: bool,
}

/// A column at the left.
pub const fn col(title: &'static str, width: u16, rank: u8) -> Column {
    Column { title, width, rank, right: false, grows: false }
}

/// A column of numbers.
pub const fn num(title: &'static str, width: u16, rank: u8) -> Column {
    Column { title, width, rank, right: true, grows: false }
}

/// A column that takes what is left over.
pub const fn grow(title: &'static str, width: u16, rank: u8) -> Column {
    Column { title, width, rank, right: false, grows: true }
}

/// Where columns stand: from and to, none for one that is left out.
pub type Places = Vec<Option<(u16, u16)>>;

/// Leaves out columns until the rest fits into `x..right`, and says where they stand.
pub fn places(columns: &[Column], x: u16, right: u16) -> Places {
    let room = u32::from(right.saturating_sub(x));
    let mut kept: Vec<bool> = vec![true; columns.len()];
    let needed = |kept: &[bool]| -> u32 {
        let widths = columns.iter().zip(kept).filter(|(_, k)| **k);
        widths.map(|(c, _)| u32::from(c.width) + 1).sum::<u32>().saturating_sub(1)
    };
    while needed(&kept) > room {
        let last = columns.iter().enumerate().zip(&kept).filter(|(_, k)| **k);
        let Some(((worst, _), _)) = last.max_by_key(|((i, c), _)| (c.rank, *i)) else { break };
        if kept.iter().filter(|k| **k).count() == 1 {
            break;
        }
        if let Some(flag) = kept.get_mut(worst) {
            *flag = false;
        }
    }
    let spare = u16::try_from(room.saturating_sub(needed(&kept))).unwrap_or(0);
    let growing = columns.iter().zip(&kept).filter(|(c, k)| **k && c.grows).count();
    let extra = u16::try_from(growing).ok().and_then(|n| spare.checked_div(n)).unwrap_or(0);
    let mut at = x;
    let mut out = Vec::with_capacity(columns.len());
    for (column, kept) in columns.iter().zip(kept) {
        if !kept {
            out.push(None);
            continue;
        }
        let width = column.width + if column.grows { extra } else { 0 };
        let to = at.saturating_add(width).min(right);
        out.push(Some((at, to)));
        at = to.saturating_add(1);
    }
    out
}

impl Pen<'_> {
    /// The titles of a table.
    pub fn head(&mut self, columns: &[Column], places: &Places, y: u16) {
        let style = self.theme.header;
        for (column, place) in columns.iter().zip(places) {
            if let Some((from, to)) = *place {
                if column.right {
                    self.put_right(from, y, to, column.title, style);
                } else {
                    self.put(from, y, to, column.title, style);
                }
            }
        }
    }

    /// One cell of a table; does nothing where the column is left out.
    pub fn cell(
        &mut self,
        columns: &[Column],
        places: &Places,
        index: usize,
        y: u16,
        text: &str,
        style: Style,
    ) {
        let (Some(column), Some(Some((from, to)))) = (columns.get(index), places.get(index)) else {
            return;
        };
        if column.right {
            self.put_right(*from, y, *to, text, style);
        } else {
            self.put_cut(*from, y, *to, text, style);
        }
    }
}

/// The first of `count` rows to draw into `height` rows so that `selected` is seen, near the middle.
pub fn window(count: usize, selected: usize, height: usize) -> usize {
    selected.saturating_sub(height / 2).min(count.saturating_sub(height))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_fall_away_by_rank() {
        let columns = [col("A", 5, 0), num("B", 5, 2), grow("C", 5, 1)];
        assert_eq!(places(&columns, 0, 20), vec![Some((0, 5)), Some((6, 11)), Some((12, 20))]);
        assert_eq!(places(&columns, 0, 12), vec![Some((0, 5)), None, Some((6, 12))]);
        assert_eq!(places(&columns, 0, 3), vec![Some((0, 3)), None, None]);
    }

    #[test]
    fn a_line_that_is_cut_says_so() {
        let theme = Theme::new(crate::tui::theme::Depth::None);
        let drawn = |spans: &[&'static str], width: u16| -> String {
            let mut buffer = Buffer::empty(Rect::new(0, 0, width, 1));
            let line = Line::from(spans.iter().map(|s| (*s).into()).collect::<Vec<_>>());
            Pen { buffer: &mut buffer, theme: &theme }.line(0, 0, width, &line);
            buffer.content.iter().map(ratatui::buffer::Cell::symbol).collect()
        };
        assert_eq!(drawn(&["one ", "two"], 7), "one two");
        assert_eq!(drawn(&["one ", "two", "   "], 7), "one two", "blanks are nothing");
        assert_eq!(drawn(&["one ", "two", " three"], 7), "one tw…");
        assert_eq!(drawn(&["one two", " three"], 6), "one t…");
    }

    #[test]
    fn the_window_keeps_the_selection_in_sight() {
        assert_eq!(window(100, 0, 10), 0);
        assert_eq!(window(100, 50, 10), 45);
        assert_eq!(window(100, 99, 10), 90);
        assert_eq!(window(3, 2, 10), 0);
    }
}
