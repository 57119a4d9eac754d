//! One file per panel: each draws into the area it is given, from the state alone.

mod columns;
pub mod events;
pub mod fleet;
pub mod fleet_cells;
pub mod host;
pub mod host_gpus;
pub mod logs;
pub mod replica;
pub mod rollout;
pub mod service;
pub mod services;
pub mod standing;

use ratatui::layout::Rect;

use super::command::Panel;
use super::draw::Pen;
use super::state::{DetailOf, State};

/// Draws a panel, or what is described in its place.
pub fn draw(pen: &mut Pen<'_>, state: &State, panel: Panel, area: Rect) {
    let focused = panel == state.panel;
    if let Some(detail) = state.detail.as_ref().filter(|_| focused) {
        match &detail.of {
            DetailOf::Host(name) => return host::draw(pen, state, name, detail.scroll, area),
            DetailOf::Service(name) => return service::draw(pen, state, name, detail.scroll, area),
        }
    }
    match panel {
        Panel::Fleet => fleet::draw(pen, state, area, focused),
        Panel::Services => services::draw(pen, state, area, focused),
        Panel::Rollout => rollout::draw(pen, state, area, focused),
        Panel::Events => events::draw(pen, state, area, focused),
        Panel::Logs => logs::draw(pen, state, area, focused),
    }
}

/// How far what is described can be scrolled, in the area that it has now.
pub fn most_scrolled(state: &State) -> usize {
    let Some(detail) = &state.detail else { return 0 };
    let Some(area) = super::layout::areas(state).of(state.panel) else { return 0 };
    // Within the frame, a column free on both sides.
    let (width, height) = (area.width.saturating_sub(4), area.height.saturating_sub(2));
    let rows = match &detail.of {
        DetailOf::Host(name) => host::rows(state, name, usize::from(width)),
        DetailOf::Service(name) => service::rows(state, name, usize::from(width)),
    };
    rows.saturating_sub(usize::from(height))
}

/// The title of a panel: its digit, its name, more, and its filter.
pub fn title(state: &State, panel: Panel, more: &str) -> ratatui::text::Line<'static> {
    use ratatui::text::Span;
    let theme = &state.theme;
    let name = if panel == state.panel { theme.strong } else { theme.text };
    let mut spans = vec![
        Span::styled(format!("{} ", panel.digit()), theme.accent),
        Span::styled(panel.title(), name),
    ];
    if let Some(filter) = state.filter(panel) {
        spans.push(Span::styled(format!(" /{}", filter.text()), theme.warn));
    }
    if !more.is_empty() {
        spans.push(Span::styled(format!(" ─ {more}"), theme.dim));
    }
    ratatui::text::Line::from(spans)
}

/// Says in the middle of a panel why nothing is in it.
pub fn nothing(pen: &mut Pen<'_>, inside: Rect, lines: &[&str]) {
    let rows = u16::try_from(lines.len()).unwrap_or(0);
    let top = inside.y + inside.height.saturating_sub(rows) / 2;
    for (y, line) in (top..inside.bottom()).zip(lines) {
        let wide = u16::try_from(line.chars().count()).unwrap_or(u16::MAX);
        let x = inside.x + inside.width.saturating_sub(wide) / 2;
        pen.put(x, y, inside.right(), line, pen.theme.dim);
    }
}
