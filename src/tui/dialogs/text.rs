//! A text to read: a difference, a plan, an error with what to do about it.

use ratatui::layout::Rect;
use ratatui::text::Line;

use super::centre;
use crate::api::wrap::pieces;
use crate::tui::draw::Pen;
use crate::tui::key::Key;
use crate::tui::theme::Theme;

/// The dialog.
#[derive(Clone, Debug)]
pub struct TextView {
    /// What it is.
    pub title: String,
    /// The text; empty while it is waited for.
    pub lines: Vec<Line<'static>>,
    /// The request that brings the text.
    pub ticket: Option<u64>,
    /// Rows scrolled down.
    pub scroll: usize,
}

impl TextView {
    /// A text that is here.
    pub fn new(title: impl Into<String>, lines: Vec<Line<'static>>) -> Self {
        Self { title: title.into(), lines, ticket: None, scroll: 0 }
    }

    /// A text that comes with the answer to `ticket`.
    pub fn waiting(title: impl Into<String>, ticket: u64) -> Self {
        Self { title: title.into(), lines: Vec::new(), ticket: Some(ticket), scroll: 0 }
    }

    /// Handles a key; `false`: the dialog closes.
    pub fn key(&mut self, key: Key, page: usize) -> bool {
        match scroll_key(key, self.scroll, page, self.lines.len()) {
            Some(scroll) => {
                self.scroll = scroll;
                true
            }
            None => !matches!(key, Key::Esc | Key::Enter | Key::Char('q') | Key::Ctrl('c')),
        }
    }

    pub(super) fn draw(&self, pen: &mut Pen<'_>, body: Rect) {
        let rows = u16::try_from(self.lines.len().max(1)).unwrap_or(u16::MAX);
        let widest = self.lines.iter().map(Line::width).max().unwrap_or(0).max(self.title.len());
        let width = u16::try_from(widest).unwrap_or(u16::MAX).saturating_add(6).max(60);
        let area = centre(body, width, rows.saturating_add(2));
        pen.clear(area);
        let inside = pen.frame(area, true, &Line::styled(self.title.clone(), pen.theme.strong));
        let text = Rect { x: inside.x + 1, width: inside.width.saturating_sub(2), ..inside };
        if self.ticket.is_some() {
            pen.put(text.x, text.y, text.right(), "one moment …", pen.theme.dim);
            return;
        }
        let most = pen.lines(text, &self.lines, self.scroll);
        let at = self.scroll.min(most) + usize::from(text.height);
        let foot = if most > 0 {
            format!(" {at} of {} · Esc closes ", self.lines.len())
        } else {
            " Esc closes ".to_owned()
        };
        pen.put_right(area.x + 2, area.bottom() - 1, area.right() - 1, &foot, pen.theme.dim);
    }
}

/// Where a key scrolls a text of `count` rows; none: it is no scrolling key.
pub fn scroll_key(key: Key, at: usize, page: usize, count: usize) -> Option<usize> {
    let most = count.saturating_sub(page);
    let at = at.min(most);
    Some(match key {
        Key::Up | Key::Char('k') => at.saturating_sub(1),
        Key::Down | Key::Char('j') => (at + 1).min(most),
        Key::PageUp => at.saturating_sub(page),
        Key::PageDown | Key::Char(' ') => (at + page).min(most),
        Key::Ctrl('u') => at.saturating_sub(page / 2),
        Key::Ctrl('d') => (at + page / 2).min(most),
        Key::Home | Key::Char('g') => 0,
        Key::End | Key::Char('G') => most,
        _ => return None,
    })
}

/// A unified difference in colour, in lines of at most `width` columns. What goes on in the next line has its
/// sign there, too, and `↪` after it: no line of the file begins so.
pub fn diff_lines(diff: &str, theme: &Theme, width: usize) -> Vec<Line<'static>> {
    let mut out = Vec::new();
    for line in diff.lines() {
        let style = match line.as_bytes().first() {
            Some(b'+') if line.starts_with("+++") => theme.dim,
            Some(b'-') if line.starts_with("---") => theme.dim,
            Some(b'+') => theme.good,
            Some(b'-') => theme.bad,
            Some(b'@') => theme.accent,
            _ => theme.text,
        };
        let sign: String = line.chars().take(1).collect();
        for (i, piece) in pieces(line, width.max(12), 3).into_iter().enumerate() {
            let text = if i == 0 { piece.to_owned() } else { format!("{sign}↪ {piece}") };
            out.push(Line::styled(text, style));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tui::theme::Depth;

    #[test]
    fn a_long_line_of_a_difference_is_read_to_its_end() {
        let theme = Theme::new(Depth::None);
        let texts = |diff: &str| -> Vec<String> {
            diff_lines(diff, &theme, 20).iter().map(ToString::to_string).collect()
        };
        assert_eq!(texts("+short\n same"), ["+short", " same"]);
        assert_eq!(
            texts("+args = [\"--seed=1\", \"--max-num-seqs=64\"]"),
            ["+args = [\"--seed=1\",", "+↪  \"--max-num-seqs=", "+↪ 64\"]"]
        );
    }
}
