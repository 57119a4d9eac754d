//! What the letters and signs mean, and the map's own keys.

use ratatui::layout::Rect;
use ratatui::style::{Modifier, Style};
use ratatui::text::{Line, Span};

use super::cells::{letter, service_style};
use crate::api::WhatIfView;
use crate::tui::draw::Pen;
use crate::tui::state::State;

/// What the letters and signs mean, on as many lines as it takes.
pub(super) fn legend(
    pen: &Pen<'_>,
    state: &State,
    view: &WhatIfView,
    width: usize,
) -> Vec<Line<'static>> {
    let theme = pen.theme;
    let mut items: Vec<(String, Style, String)> = Vec::new();
    for (s, service) in view.world.services.iter().enumerate() {
        let style = service_style(state, view, theme, s);
        items.push((letter(state, view, s).to_string(), style, service.name.clone()));
    }
    for (sign, style, what) in [
        ("·", theme.dim, "free"),
        ("x", theme.bad, "sick"),
        ("#", theme.warn, "held"),
        ("-", theme.dim, "not used"),
        ("__", theme.text.add_modifier(Modifier::UNDERLINED), "changes"),
        ("  ", theme.text.add_modifier(Modifier::REVERSED | Modifier::DIM), "target"),
    ] {
        items.push((sign.to_owned(), style, what.to_owned()));
    }
    let mut lines = Vec::new();
    let (mut spans, mut used) = (Vec::new(), 0);
    for (sign, style, what) in items {
        let long = sign.chars().count() + what.chars().count() + 3;
        if used > 0 && used + long > width {
            lines.push(Line::from(std::mem::take(&mut spans)));
            used = 0;
        }
        used += long;
        spans.push(Span::styled(sign, style));
        spans.push(Span::styled(format!(" {what}  "), theme.dim));
    }
    lines.push(Line::from(spans));
    lines
}

/// The map's own keys, as its help shows them; the last ones move.
const KEYS: [(&str, &str); 9] = [
    ("Enter m", "picks a replica up, checks, moves it"),
    ("Space", "marks single GPUs for what is held"),
    ("f", "what frees a place for the largest gang"),
    ("w", "as if this host were lost, or back again"),
    ("r", "asks again, of the hosts as they are now"),
    ("Esc", "drops it, then the question, then closes"),
    ("h j k l ←↓↑→", "move the cursor"),
    ("g G Home End", "the first and the last host"),
    ("PgUp PgDn ^u ^d", "a page of hosts"),
];

pub(super) fn draw_help(pen: &mut Pen<'_>, body: Rect) {
    let line = |(keys, what): &(&'static str, &'static str)| {
        Line::from(vec![Span::styled(format!("{keys:<16}"), pen.theme.strong), Span::raw(*what)])
    };
    let lines: Vec<Line<'static>> = KEYS.iter().map(line).collect();
    let widest = lines.iter().map(Line::width).max().unwrap_or(0);
    let width = u16::try_from(widest).unwrap_or(u16::MAX).saturating_add(4);
    let rows = u16::try_from(lines.len()).unwrap_or(u16::MAX).saturating_add(2);
    let area = crate::tui::dialogs::centre(body, width, rows);
    pen.clear(area);
    let inside = pen.frame(area, true, &Line::styled("Keys in the map", pen.theme.strong));
    let text = Rect { x: inside.x + 1, width: inside.width.saturating_sub(2), ..inside };
    pen.lines(text, &lines, 0);
    let foot = " any key goes back ";
    pen.put_right(area.x, area.bottom().saturating_sub(1), area.right() - 1, foot, pen.theme.dim);
}
