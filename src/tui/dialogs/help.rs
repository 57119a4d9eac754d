//! The keys of the panel that has them, from the key table: it cannot be out of date.

use ratatui::layout::Rect;
use ratatui::text::{Line, Span};

use super::{centre, wrapped};
use crate::tui::command::{Danger, Panel};
use crate::tui::draw::Pen;
use crate::tui::keymap;
use crate::tui::state::State;

/// Columns of the dialog.
const WIDTH: u16 = 80;
/// Columns of the keys, and of the mark after them.
const KEYS: usize = 16;

/// Rows of the help for `state`'s panel.
pub fn lines(state: &State) -> Vec<Line<'static>> {
    let theme = &state.theme;
    let width = usize::from(state.size.0.min(WIDTH).saturating_sub(4));
    let mut out = wrapped(about(state.panel), width, theme.dim);
    let mut everywhere = false;
    let serves = |b: &keymap::Binding| b.command.danger() == Danger::Serving;
    if keymap::of(state.panel, state.look.read_only).any(serves) {
        out.extend(wrapped("▲ asks for the service's name before it does it", width, theme.warn));
    }
    out.push(Line::default());
    for binding in keymap::of(state.panel, state.look.read_only) {
        if binding.panels.is_empty() && !everywhere {
            everywhere = true;
            out.push(Line::default());
            out.push(Line::styled("Everywhere", theme.accent));
        }
        let keys = binding.keys.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        let mark = if serves(binding) { "▲ " } else { "  " };
        let about = wrapped(binding.command.about(), width.saturating_sub(KEYS), theme.text);
        for (i, line) in about.into_iter().enumerate() {
            let mut spans = if i == 0 {
                vec![
                    Span::styled(format!("  {keys:<12}"), theme.strong),
                    Span::styled(mark, theme.warn),
                ]
            } else {
                vec![Span::raw(" ".repeat(KEYS))]
            };
            spans.extend(line.spans);
            out.push(Line::from(spans));
        }
    }
    out.push(Line::default());
    out.push(Line::styled("Filter", theme.accent));
    for (form, what) in [
        ("/text", "a regular expression"),
        ("/!text", "rows that do not match"),
        ("/-f text", "fuzzy: the letters in this order"),
        ("/-l key=value", "a label of a host"),
    ] {
        out.push(Line::from(vec![
            Span::styled(format!("  {form:<14}"), theme.strong),
            Span::raw(what),
        ]));
    }
    out
}

const fn about(panel: Panel) -> &'static str {
    match panel {
        Panel::Fleet => "Hosts and GPUs. The letter of a GPU is the service that holds it.",
        Panel::Services => "Services, with their replicas below them.",
        Panel::Rollout => "The rollout of the selected service, and the releases before it.",
        Panel::Events => "What happened, the newest at the bottom. Scrolling up pauses.",
        Panel::Logs => "The log of a rank. Choose it with l. Scrolling up pauses, G is live.",
    }
}

pub(super) fn draw(pen: &mut Pen<'_>, state: &State, body: Rect, scroll: usize) {
    let lines = lines(state);
    let rows = u16::try_from(lines.len()).unwrap_or(u16::MAX).saturating_add(2);
    let area = centre(body, WIDTH, rows);
    pen.clear(area);
    let title = format!("Keys in {}", state.panel.title());
    let inside = pen.frame(area, true, &Line::styled(title, pen.theme.strong));
    let text = Rect { x: inside.x + 1, width: inside.width.saturating_sub(2), ..inside };
    let most = pen.lines(text, &lines, scroll);
    let foot = if most > 0 { " ↑↓ scrolls · Esc closes " } else { " Esc closes " };
    pen.put_right(area.x, area.bottom().saturating_sub(1), area.right() - 1, foot, pen.theme.dim);
}
