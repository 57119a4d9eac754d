//! The releases before it.

use ratatui::layout::Rect;

use crate::api::{ReleaseNumber, ReleaseView, ServiceView};
use crate::tui::draw::{Pen, window};
use crate::tui::state::State;
use crate::tui::words;

pub(super) fn history(
    pen: &mut Pen<'_>,
    state: &State,
    service: &ServiceView,
    area: Rect,
    inside: Rect,
    focused: bool,
) {
    if area.height < 2 || service.history.is_empty() {
        return;
    }
    let theme = pen.theme;
    pen.put(area.x, area.y, area.right(), "RELEASES", theme.header);
    let keys = if focused && area.width > 50 { "j k choose · u undo to it · y diff" } else { "" };
    pen.put_right(area.x + 10, area.y, area.right(), keys, theme.dim);
    let numbers: Vec<ReleaseNumber> = service.history.iter().map(|r| r.number).collect();
    let selected = state.release.row_in(&numbers);
    let rows = usize::from(area.height - 1);
    let from = window(numbers.len(), selected, rows);
    let shown = service.history.iter().enumerate().skip(from);
    for (y, (i, release)) in (area.y + 1..area.bottom()).zip(shown) {
        release_row(pen, state, service, release, area, y);
        if i == selected {
            pen.put(inside.x, y, area.right(), "▌", theme.accent);
            let style = if focused { state.theme.selected } else { state.theme.selected_elsewhere };
            pen.select(inside, y, style);
        }
    }
}

fn release_row(
    pen: &mut Pen<'_>,
    state: &State,
    service: &ServiceView,
    release: &ReleaseView,
    area: Rect,
    y: u16,
) {
    let theme = pen.theme;
    let right = area.right();
    let served = service.stable == Some(release.number);
    let name = if served { theme.strong.patch(theme.good) } else { theme.strong };
    let mut x = pen.put(area.x, y, right, &format!("{:<5}", release.number), name);
    let age = words::ago(state.now, release.created);
    x = pen.put(x, y, right, &format!("{age:>6}  "), theme.dim);
    let (mark, style, word, why) = match &release.outcome {
        Some(outcome) => words::outcome(outcome, theme),
        None => ("▶", theme.accent, "under way", ""),
    };
    x = pen.put(x, y, right, &format!("{mark} {word:<11} "), style);
    if served {
        x = pen.put(x, y, right, "served ", theme.good);
    }
    x = pen.put(x, y, right, &format!("{} ", release.author), theme.dim);
    if area.width >= 70 {
        x = pen.put(x, y, right, &format!("{} ", release.revision.short()), theme.dim);
    }
    let reason = release.reason.as_deref().unwrap_or_default();
    let text = match (reason, why) {
        ("", why) => why.to_owned(),
        (reason, "") => reason.to_owned(),
        (reason, why) => format!("{reason} · {why}"),
    };
    let text = match &release.stop {
        Some(stop) if text.is_empty() => stop.words(),
        Some(stop) => format!("{} · {text}", stop.words()),
        None => text,
    };
    pen.put_cut(x, y, right, &text, theme.text);
}
