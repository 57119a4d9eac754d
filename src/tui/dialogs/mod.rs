//! What lies over the panels: one file per dialog, each with its state, its keys and its drawing.
//!
//! A dialog never covers the title line: SIMULATED and a lost controller stay in sight.

mod ask;
mod confirm;
mod help;
mod map;
mod palette;
mod plan;
mod question;
mod text;

pub use ask::{Ask, AskWhat};
pub use confirm::{Confirm, ConfirmKey, Deed, PlanState};
pub use help::lines as help_lines;
pub use map::{Held, Map, MapKey};
pub use palette::{Entry, Palette};
pub use plan::{lines as plan_lines, wrapped};
pub use question::{QuestionDialog, QuestionKey};
pub use text::{TextView, diff_lines, scroll_key};

use ratatui::layout::{Position, Rect};
use ratatui::style::Modifier;

use super::draw::Pen;
use super::field::Field;
use super::state::{Mode, State};

/// Draws the dialog that has the keys, if one has; says where the cursor is.
pub fn draw(pen: &mut Pen<'_>, state: &State, body: Rect) -> Option<Position> {
    match &state.mode {
        Mode::Browse | Mode::Filter { .. } => None,
        Mode::Palette(palette) => palette.draw(pen, state, body),
        Mode::Help { scroll } => {
            help::draw(pen, state, body, *scroll);
            None
        }
        Mode::Confirm(confirm) => confirm.draw(pen, body),
        Mode::Ask(ask) => {
            ask.draw(pen, state, body);
            None
        }
        Mode::Question(question) => question.draw(pen, state, body),
        Mode::Map(map) => {
            map.draw(pen, state, body);
            None
        }
        Mode::Text(view) => {
            view.draw(pen, body);
            None
        }
    }
}

/// An area of at most this size in the middle of `body`.
pub fn centre(body: Rect, width: u16, height: u16) -> Rect {
    // What would leave only a sliver of the panels takes all of it.
    let fit = |wanted: u16, room: u16, sliver: u16| {
        if room.saturating_sub(wanted) < sliver { room } else { wanted }
    };
    let (width, height) = (fit(width, body.width, 8), fit(height, body.height, 3));
    Rect {
        x: body.x + (body.width - width) / 2,
        y: body.y + (body.height - height) / 2,
        width,
        height,
    }
}

/// A field with its label at (`x`, `y`); returns where the cursor is if it has the keys.
fn draw_field(
    pen: &mut Pen<'_>,
    at: (u16, u16),
    right: u16,
    label: &str,
    field: &Field,
    active: bool,
) -> Option<Position> {
    let (x, y) = at;
    let style = if active { pen.theme.accent } else { pen.theme.dim };
    let from = pen.put(x, y, right, label, style);
    let shown = field.shown();
    let room = usize::from(right.saturating_sub(from)).saturating_sub(1).max(1);
    // The end of the text is what is being typed.
    let skip = field.cursor().saturating_sub(room);
    let visible: String = shown.chars().skip(skip).collect();
    let end = pen.put(from, y, right, &visible, pen.theme.strong);
    let line = "_".repeat(usize::from(right.saturating_sub(end)).min(24));
    pen.put(end, y, right, &line, pen.theme.border);
    let before: String = visible.chars().take(field.cursor() - skip).collect();
    let columns = unicode_width::UnicodeWidthStr::width(before.as_str());
    let x = from.saturating_add(u16::try_from(columns).unwrap_or(u16::MAX));
    active.then_some(Position { x: x.min(right.saturating_sub(1)), y })
}

/// Buttons in a row that ends at `right`; the chosen one is reversed.
fn draw_buttons(pen: &mut Pen<'_>, y: u16, area: Rect, labels: &[&str], chosen: usize) {
    let wide: usize = labels.iter().map(|l| l.chars().count() + 5).sum();
    let mut x = area.right().saturating_sub(u16::try_from(wide).unwrap_or(0)).max(area.x);
    for (i, label) in labels.iter().enumerate() {
        let (text, style) = if i == chosen {
            (format!("[ {label} ]"), pen.theme.strong.add_modifier(Modifier::REVERSED))
        } else {
            (format!("  {label}  "), pen.theme.dim)
        };
        x = pen.put(x, y, area.right(), &text, style) + 1;
    }
}
