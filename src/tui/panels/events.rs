//! What happened, the newest at the bottom.
//!
//! ```text
//! ╭ 4 Events ─ 212 · live ─────────────────────────────────────────────────────────╮
//! │ 14:03:12 ·  chat   r12-0 is ready after 34s                                    │
//! │ 14:04:12 ✖  chat   analysis default failed: error rate 0.31 (62 of 200) > 0.02 │
//! ╰────────────────────────────────────────────────────────────────────────────────╯
//! ```

use ratatui::layout::Rect;

use super::{nothing, title};
use crate::api::{EventLine, Severity};
use crate::tui::command::Panel;
use crate::tui::draw::Pen;
use crate::tui::state::State;
use crate::tui::update::shows_event;
use crate::tui::words;

/// Draws the panel.
pub fn draw(pen: &mut Pen<'_>, state: &State, area: Rect, focused: bool) {
    let more = match (state.events_back, state.severity) {
        (0, Severity::Info) => "live".to_owned(),
        (0, Severity::Warning) => "live · warnings and errors (s)".to_owned(),
        (0, Severity::Error) => "live · errors only (s)".to_owned(),
        (back, _) => format!("PAUSED {back} back · G live"),
    };
    let inside = pen.frame(area, focused, &title(state, Panel::Events, &more));
    let events = state.snapshot.iter().flat_map(|s| s.events.iter().rev());
    let shown = events.filter(|e| shows_event(state, e)).skip(state.events_back);
    let rows: Vec<&EventLine> = shown.take(usize::from(inside.height)).collect();
    if rows.is_empty() {
        let filtered = state.filter(Panel::Events).is_some() || state.severity > Severity::Info;
        let text = if filtered { "no event matches" } else { "nothing has happened yet" };
        return nothing(pen, inside, &[text]);
    }
    for (event, y) in rows.iter().rev().zip(inside.y..inside.bottom()) {
        line(pen, state, event, Rect { y, height: 1, ..inside }, state.events_left);
    }
}

/// One event in one line.
pub fn line(pen: &mut Pen<'_>, state: &State, event: &EventLine, area: Rect, skip: usize) {
    let theme = pen.theme;
    let (y, right) = (area.y, area.right());
    let (mark, style) = words::severity(event.severity, theme);
    let mut x = pen.put(area.x + 1, y, right, &state.clock(event.at), theme.dim) + 1;
    x = pen.put(x, y, right, mark, style) + 1;
    if let Some(service) = &event.service {
        let colour = theme.service(state.service_index(service));
        x = pen.put(x, y, right, service.as_str(), colour) + 1;
    }
    if let Some(host) = &event.host {
        x = pen.put(x, y, right, host.as_str(), theme.dim) + 1;
    }
    let text = match event.severity {
        Severity::Info => theme.text,
        Severity::Warning => theme.warn,
        Severity::Error => theme.bad,
    };
    // Scrolled sideways only as far as there is something to see.
    let cleaned = crate::api::text::clean(&event.text, 1_000);
    let shown: String = cleaned.chars().skip(skip).collect();
    pen.put_cut(x, y, right, &shown, text);
}
