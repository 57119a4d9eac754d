//! The rollout of the selected service, and the releases before it.
//!
//! ```text
//! ╭ 3 Rollout ─ chat ───────────────────────────────────────────────────────────╮
//! │ r11 → r12  ▶ forward  step 2 of 5  3m10s  by ann                            │
//! │ traffic r11  90% ████████████████████████████████████████▒▒▒▒▒  10% r12     │
//! │                                                                             │
//! │ ✔ weight 10 %                   │            requests  failed       mean    │
//! │ ▶ analyse default   42s ━━━╸─── │ new r12         214   29.0%     182 ms    │
//! │ ○ weight 50 %                   │ old r11        1934    0.1%     181 ms    │
//! │ ○ approve                       │ ✖ error rate 0.31 (62 of 200) > 0.02      │
//! │ ○ all replicas                  │                                           │
//! │                                                                             │
//! │ REPLICAS  3 of 3 ready, floor 2                                       SHARE │
//! │ r12-0  ◑ ▰▰▰▱ loading  34s   node3 GPU 0-3                              10% │
//! │                                                                             │
//! │ RELEASES                                                                    │
//! │▌r12  2m   ann  ▶ under way    quieter sampler                               │
//! ╰─────────────────────────────────────────────────────────────────────────────╯
//! ```

mod headline;
mod history;
mod measures;
mod steps;
mod traffic;

pub use headline::{broken, headline, in_short};

use ratatui::layout::Rect;

use super::replica::{replica_heads, replica_row};
use super::{nothing, title};
use crate::api::{Condition, Rollout, ServiceView};
use crate::tui::command::Panel;
use crate::tui::draw::Pen;
use crate::tui::state::State;
use crate::tui::words;
use headline::{held, paragraph, queued};
use history::history;
use measures::{counts, height, is_said, measures};
use steps::{steps, titles};
use traffic::traffic_bar;

/// Columns from which steps and measures stand side by side.
const SIDE_BY_SIDE: u16 = 66;

/// Draws the panel.
pub fn draw(pen: &mut Pen<'_>, state: &State, area: Rect, focused: bool) {
    let service = state.selected_service();
    let more = service.map_or_else(String::new, |s| {
        let others = state.services().len();
        let turn = if others > 1 { "  ← → others" } else { "" };
        format!("{}{turn}", s.name)
    });
    let inside = pen.frame(area, focused, &title(state, Panel::Rollout, &more));
    let Some(service) = service else {
        return nothing(pen, inside, &["no service is selected"]);
    };
    let mut rest = Rect { x: inside.x + 1, width: inside.width.saturating_sub(2), ..inside };
    // The list keeps three rows whatever else there is.
    let keep = if service.history.is_empty() { 0 } else { 4.min(rest.height / 2) };
    let mut top = Rect { height: rest.height - keep, ..rest };
    if let Some(rollout) = &service.rollout {
        journey(pen, state, service, rollout, &mut top);
    } else {
        let y = take(&mut top, 1);
        let text = match service.condition {
            Condition::Stopped => "nothing runs; a rolls it out",
            Condition::Elsewhere => "another controller holds its hosts",
            _ => "no rollout yet; a rolls out the spec",
        };
        pen.put(rest.x, y, rest.right(), text, pen.theme.dim);
    }
    replicas(pen, state, service, &mut top);
    let used = top.y - rest.y;
    rest.y += used;
    rest.height -= used;
    history(pen, state, service, rest, inside, focused);
}

/// Takes `rows` from the top of `rest`; returns their first row.
fn take(rest: &mut Rect, rows: u16) -> u16 {
    let y = rest.y;
    let rows = rows.min(rest.height);
    rest.y += rows;
    rest.height -= rows;
    y
}

fn journey(
    pen: &mut Pen<'_>,
    state: &State,
    service: &ServiceView,
    rollout: &Rollout,
    rest: &mut Rect,
) {
    if rest.height == 0 {
        return;
    }
    paragraph(pen, rest, headline(state, service, rollout));
    if let Some(line) = held(state, rollout) {
        paragraph(pen, rest, line);
    }
    if let Some(line) = queued(state, service) {
        paragraph(pen, rest, line);
    }
    let over = rollout.outcome.is_some();
    if !over && rest.height > 4 {
        let y = take(rest, 1);
        traffic_bar(pen, service, rollout, *rest, y);
    }
    if rest.height > 12 {
        take(rest, 1);
    }
    let said = is_said(rollout);
    let measured = counts(rollout) || rollout.verdict.is_some() && !said;
    let titles = titles(service, rollout);
    // What has ended needs no steps any more, unless there is plenty of room.
    let wanted = if over && rest.height < 20 { 0 } else { titles.len() };
    let room = usize::from(rest.height.saturating_sub(3).min(10));
    let rows = u16::try_from(wanted.min(room)).unwrap_or(0);
    let side = rest.width >= SIDE_BY_SIDE && measured && rows > 0;
    let half = rest.width * 44 / 100;
    let width = if side { rest.width - half - 3 } else { rest.width };
    let measure_rows = if measured { height(rollout, width).min(rest.height) } else { 0 };
    if side {
        let rows = rows.max(measure_rows).min(rest.height);
        let y = take(rest, rows);
        let left = Rect { y, height: rows, width: half, ..*rest };
        let right = Rect { x: rest.x + half + 3, width, ..left };
        for row in left.y..left.bottom() {
            pen.put(left.right() + 1, row, right.x, "│", pen.theme.border);
        }
        steps(pen, state, service, rollout, &titles, left);
        measures(pen, rollout, right);
    } else {
        if rows > 0 {
            let y = take(rest, rows);
            steps(pen, state, service, rollout, &titles, Rect { y, height: rows, ..*rest });
        }
        if measured {
            let y = take(rest, measure_rows);
            measures(pen, rollout, Rect { y, height: measure_rows, ..*rest });
        }
    }
    if rest.height > 6 {
        take(rest, 1);
    }
}

fn replicas(pen: &mut Pen<'_>, state: &State, service: &ServiceView, rest: &mut Rect) {
    if service.replicas.is_empty() || rest.height < 2 {
        return;
    }
    let y = take(rest, 1);
    let text = format!("{}, floor {}", words::ready(service), service.floor);
    let x = pen.put(rest.x, y, rest.right(), "REPLICAS  ", pen.theme.header);
    let style = if service.ready < service.floor { pen.theme.bad } else { pen.theme.dim };
    pen.put(x, y, rest.right(), &text, style);
    replica_heads(pen, rest.x, y, rest.right());
    let room = usize::from(rest.height);
    let hidden = service.replicas.len().saturating_sub(room);
    let shown = if hidden > 0 { room.saturating_sub(1) } else { room };
    for replica in service.replicas.iter().take(shown) {
        let y = take(rest, 1);
        replica_row(pen, state, service, replica, rest.x, y, rest.right());
    }
    if hidden > 0 {
        let y = take(rest, 1);
        let more = format!("… and {} more (2 shows all)", hidden + 1);
        pen.put(rest.x, y, rest.right(), &more, pen.theme.dim);
    }
    if rest.height > 0 {
        take(rest, 1);
    }
}
