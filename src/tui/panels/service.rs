//! Everything about one service.
//!
//! ```text
//! ╭ Service chat ─ Esc goes back ──────────────────────────────────────────────────╮
//! │ condition  ▶ rolling, 2 of 2 ready, floor 1                                    │
//! │ model      meta-llama/Llama-3.3-70B-Instruct on vllm                           │
//! │ address    http://gateway:8000/v1                                              │
//! │ traffic    41.2/s, 0% failed, 182 ms                                           │
//! │ release    r11, a change waits (a applies it, y shows it)                      │
//! │                                                                                │
//! │ REPLICAS                                                                       │
//! │ r12-0  ◑ ▰▰▰▱ loading  34s   node3 GPU 0-3                                 10% │
//! │     rank 0  node3 GPU 0-3  port 18000                                          │
//! ╰────────────────────────────────────────────────────────────────────────────────╯
//! ```

use ratatui::layout::Rect;
use ratatui::text::{Line, Span};

use super::replica::replica_row;
use super::standing;
use crate::api::{Condition, ServiceName, ServiceView};
use crate::tui::draw::Pen;
use crate::tui::state::State;
use crate::tui::words;

/// Draws the detail in place of the panel.
pub fn draw(pen: &mut Pen<'_>, state: &State, name: &ServiceName, scroll: usize, area: Rect) {
    let title = Line::from(vec![
        Span::styled("Service ", pen.theme.accent),
        Span::styled(name.to_string(), pen.theme.strong),
        Span::styled(" ─ Esc goes back", pen.theme.dim),
    ]);
    let inside = pen.frame(area, true, &title);
    let Some(service) = state.service_named(name) else {
        return super::nothing(pen, inside, &["this service has left the deck"]);
    };
    let text = Rect { x: inside.x + 1, width: inside.width.saturating_sub(2), ..inside };
    let head = facts(state, service, usize::from(text.width));
    let total = rows_below(&head, service);
    let most = total.saturating_sub(usize::from(text.height));
    let skip = scroll.min(most);
    pen.lines(text, &head, skip.min(head.len()));
    // Row numbers within the whole text; those that are scrolled away are not drawn.
    let row_at = |row: usize| {
        let on_screen = row.checked_sub(skip)?;
        let y = text.y.checked_add(u16::try_from(on_screen).ok()?)?;
        (y < text.bottom()).then_some(y)
    };
    let mut row = head.len() + 1;
    if let Some(y) = row_at(row) {
        pen.put(text.x, y, text.right(), "REPLICAS", pen.theme.header);
    }
    for replica in &service.replicas {
        row += 1;
        if let Some(y) = row_at(row) {
            replica_row(pen, state, service, replica, text.x, y, text.right());
        }
        for rank in &replica.ranks {
            row += 1;
            if let Some(y) = row_at(row) {
                let words = format!("  rank {}  {}  port {}", rank.rank.rank, rank.host, rank.port);
                pen.put(text.x, y, text.right(), &words, pen.theme.dim);
            }
        }
    }
}

/// Rows of what is told of a service in so many columns.
pub fn rows(state: &State, name: &ServiceName, width: usize) -> usize {
    let service = state.service_named(name);
    service.map_or(0, |s| rows_below(&facts(state, s, width), s))
}

/// The facts, an empty row and a title, the replicas with their ranks.
fn rows_below(head: &[Line<'_>], service: &ServiceView) -> usize {
    head.len() + 2 + service.replicas.iter().map(|r| 1 + r.ranks.len()).sum::<usize>()
}

fn facts(state: &State, service: &ServiceView, width: usize) -> Vec<Line<'static>> {
    let theme = &state.theme;
    let field = |name: &str, text: String, style| {
        Line::from(vec![Span::styled(format!("{name:<10} "), theme.dim), Span::styled(text, style)])
    };
    let (mark, style, word) = standing::standing(state, service);
    let standing = match service.condition {
        Condition::Elsewhere => format!("{mark} {word}"),
        _ => format!("{mark} {word}, {}, floor {}", words::ready(service), service.floor),
    };
    let mut out = vec![field("condition", standing, style)];
    for trouble in standing::troubles(state, service) {
        out.extend(crate::tui::dialogs::wrapped(&format!("▲ {trouble}"), width, theme.warn));
    }
    out.push(field("model", format!("{} on {}", service.model, service.engine), theme.text));
    let url = service.url.clone().unwrap_or_else(|| words::ABSENT.to_owned());
    out.push(field("address", url, theme.text));
    let (errors, _) = words::errors(&service.traffic, theme);
    out.push(field(
        "traffic",
        format!(
            "{}, {errors} failed, {}",
            words::rate(&service.traffic),
            words::millis(service.traffic.mean_response_ms)
        ),
        theme.text,
    ));
    let release = service.stable.map_or_else(|| words::ABSENT.to_owned(), |r| r.to_string());
    let active = service.rollout.as_ref().filter(|r| r.outcome.is_none());
    let tried = service.taken_back.filter(|_| service.pending_change);
    let tried = tried.map(|r| format!(", the spec in the deck is that of {r}, taken back"));
    let change = if let Some(tried) = &tried {
        tried
    } else if service.pending_change {
        ", a change waits (a applies it, y shows it)"
    } else if service.queued.as_ref().is_some_and(|queued| queued.to.is_none()) {
        ", the spec in the deck is queued"
    } else if active.is_some_and(|r| Some(r.to) != service.stable) {
        ", the spec in the deck is on its way"
    } else {
        ", as in the deck"
    };
    out.push(field("release", format!("{release}{change}"), theme.text));
    if let Some(memory) = service.memory.first() {
        let words = format!("memory     {}: {}", memory.release, memory.seen.text());
        out.extend(crate::tui::dialogs::wrapped(&words, width, theme.dim));
    }
    if let Some(rollout) = &service.rollout {
        let mut line = super::rollout::headline(state, service, rollout);
        line.spans.insert(0, Span::styled(format!("{:<10} ", "rollout"), theme.dim));
        out.extend(super::rollout::broken(line, width));
        if let Some(gate) = words::gate(rollout, state.now) {
            out.extend(super::rollout::broken(field("", gate, theme.warn), width));
        }
    }
    out
}
