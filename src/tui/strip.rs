//! The two rows below a panel that has the screen for itself: services, what is under way, the newest event.
//!
//! ```text
//! │ ✖ embed 0/2 –   chat r11 → r12  ▶ forward  2 of 5  analysing default, 42s left │
//! │ 14:04:12 ✖ chat analysis default failed                                        │
//! ```

use ratatui::layout::Rect;

use super::command::Panel;
use super::draw::Pen;
use super::panels;
use super::state::State;

/// What the other panels would say: on small screens only one of them is seen.
pub fn draw(pen: &mut Pen<'_>, state: &State, area: Rect) {
    let Some(snapshot) = state.snapshot.as_ref().filter(|_| area.height >= 2) else { return };
    // The worst come first: of many services only a few are seen here.
    let mut services: Vec<_> =
        snapshot.services.values().map(|s| (panels::standing::gravity(state, s), s)).collect();
    services.sort_by_key(|(gravity, _)| *gravity);
    let rolling = snapshot.services.values().find(|s| {
        state.panel != Panel::Rollout && s.rollout.as_ref().is_some_and(|r| r.outcome.is_none())
    });
    let (y, right) = (area.y, area.right());
    let mut x = area.x + 1;
    let rolling = rolling.and_then(|s| s.rollout.as_ref().map(|r| (s, r)));
    for (gravity, service) in services {
        // What is under way is told at length, behind what is broken.
        let well = gravity >= panels::standing::WELL;
        if rolling.is_some_and(|(of, _)| well || of.name == service.name) {
            continue;
        }
        x = pen.line(x, y, right, &panels::services::in_short(state, service));
    }
    if let Some((service, rollout)) = rolling {
        x = pen.put(x, y, right, service.name.as_str(), pen.theme.strong) + 1;
        pen.line(x, y, right, &panels::rollout::in_short(state, service, rollout));
    }
    if let Some(event) = snapshot.events.back().filter(|_| state.panel != Panel::Events) {
        panels::events::line(pen, state, event, Rect { y: y + 1, height: 1, ..area }, 0);
    }
}
