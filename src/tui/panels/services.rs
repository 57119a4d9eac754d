//! Services, with their replicas below them.
//!
//! ```text
//! ╭ 2 Services ────────────────────────────────────────────────────────────────────╮
//! │   NAME   CONDITION  READY   RELEASE  ENGINE  MODEL  REQ/S ERRORS   MEAN  SHARE │
//! │▌▶ chat   rolling    2/2 ≥1  r11→r12  vllm    Llama… 41.2/s    0% 182 ms        │
//! │     r12-0  ◑ ▰▰▰▱ loading  34s   node3 GPU 0-3 try 2  1.3/s   0% 182 ms    10% │
//! │     r11-0  ● ▰▰▰▰ ready    2h10m node1 GPU 0-3       20.0/s   0% 181 ms    45% │
//! │ ● code   serving    2/2 ≥1  r9 ✎     vllm    …      12.0/s    0%  95 ms        │
//! ╰────────────────────────────────────────────────────────────────────────────────╯
//! ```

use std::fmt::Write as _;

use ratatui::layout::Rect;
use ratatui::text::{Line, Span};

use super::replica::replica_row;
use super::standing::{self, standing};
use super::{nothing, title};
use crate::api::{Condition, ServiceView};
use crate::tui::command::Panel;
use crate::tui::draw::{Column, Pen, col, grow, num, places, window};
use crate::tui::state::{ServiceRow, State};
use crate::tui::words;

const COLUMNS: [Column; 11] = [
    col("", 2, 0),
    grow("NAME", 11, 1),
    col("CONDITION", 12, 2),
    col("READY", 8, 3),
    col("RELEASE", 9, 4),
    col("ENGINE", 9, 9),
    grow("MODEL", 11, 8),
    grow("URL", 22, 10),
    num("REQ/S", RATE, 5),
    num("ERRORS", ERRORS, 6),
    num("MEAN", MEAN, 7),
];

/// Columns at the right of all rows: the share of the traffic of a replica, with room on both sides.
pub(super) const SHARE: u16 = 7;
/// Columns of what the gateway sees. They stand last, so that a replica's are below its service's.
pub(super) const RATE: u16 = 8;
pub(super) const ERRORS: u16 = 6;
pub(super) const MEAN: u16 = 7;

/// Rows that the panel would like to have.
pub fn height(state: &State) -> u16 {
    let trouble: usize = state.services().iter().map(|s| standing::troubles(state, s).len()).sum();
    let rows = state.service_rows().len() + trouble + 3;
    u16::try_from(rows).unwrap_or(u16::MAX)
}

/// Draws the panel.
pub fn draw(pen: &mut Pen<'_>, state: &State, area: Rect, focused: bool) {
    let services = state.services();
    let ready: u32 = services.iter().map(|s| s.ready).sum();
    let pending = services.iter().filter(|s| s.has_new_edit()).count();
    let mut more = format!("{} · {ready} replicas ready", services.len());
    match standing::unseen(state, &services) {
        0 => {}
        unseen => {
            let _ = write!(more, " ({unseen} not seen)");
        }
    }
    if pending > 0 {
        let noun = if pending == 1 { "change waits" } else { "changes wait" };
        let _ = write!(more, " · ✎ {pending} {noun}: press a");
    }
    let inside = pen.frame(area, focused, &title(state, Panel::Services, &more));
    if services.is_empty() {
        let lines: &[&str] = if state.filter(Panel::Services).is_some() {
            &["no service matches the filter", "Esc clears it"]
        } else {
            &["no services yet", "write services/NAME.toml, then :reload"]
        };
        return nothing(pen, inside, lines);
    }
    let left = inside.x + 1;
    // The last column of the inside stays free.
    let right = inside.right().saturating_sub(1);
    let at = places(&COLUMNS, left, inside.right().saturating_sub(SHARE));
    pen.head(&COLUMNS, &at, inside.y);
    pen.put_right(left, inside.y, right, "SHARE", pen.theme.header);
    let list =
        Rect { y: inside.y.saturating_add(1), height: inside.height.saturating_sub(1), ..inside };
    let rows = state.service_rows();
    let selected = state.service.row_in(&rows);
    let from = window(rows.len(), selected, usize::from(list.height));
    let mut y = list.y;
    for (i, row) in rows.iter().enumerate().skip(from) {
        if y >= list.bottom() {
            break;
        }
        let Some(service) = state.service_named(row.service()) else { continue };
        if i == selected {
            pen.put(list.x, y, list.right(), "▌", pen.theme.accent);
        }
        let begun = y;
        match row {
            ServiceRow::Service(_) => {
                service_row(pen, state, service, &at, y);
                for trouble in standing::troubles(state, service) {
                    if y + 1 >= list.bottom() {
                        break;
                    }
                    y += 1;
                    let text = format!("▲ {trouble}");
                    pen.put_cut(left + 3, y, right, &text, pen.theme.warn);
                }
            }
            ServiceRow::Replica(_, id) => {
                if let Some(replica) = service.replicas.iter().find(|r| r.id == *id) {
                    replica_row(pen, state, service, replica, left + 3, y, right);
                }
            }
        }
        if i == selected {
            let theme = &state.theme;
            pen.select(
                list,
                begun,
                if focused { theme.selected } else { theme.selected_elsewhere },
            );
        }
        y += 1;
    }
}

fn service_row(
    pen: &mut Pen<'_>,
    state: &State,
    service: &ServiceView,
    at: &crate::tui::draw::Places,
    y: u16,
) {
    let theme = pen.theme;
    let (mark, style, word) = standing(state, service);
    let name = theme.service(state.service_index(&service.name)).patch(theme.strong);
    let ready_style = if service.ready < service.floor {
        theme.bad
    } else if service.ready < service.wanted {
        theme.warn
    } else {
        theme.text
    };
    let (errors, errors_style) = words::errors(&service.traffic, theme);
    let ready = match service.condition {
        Condition::Elsewhere => words::ABSENT.to_owned(),
        _ => format!("{} ≥{}", service.ready_in_short(), service.floor),
    };
    let mut cell = |i, text: &str, style| pen.cell(&COLUMNS, at, i, y, text, style);
    cell(0, mark, style);
    cell(1, service.name.as_str(), name);
    cell(2, word, style);
    cell(3, &ready, ready_style);
    cell(4, &release_words(service), theme.text);
    cell(5, &service.engine, theme.dim);
    cell(6, short_model(&service.model), theme.dim);
    cell(7, service.url.as_deref().unwrap_or(words::ABSENT), theme.dim);
    cell(8, &words::rate(&service.traffic), theme.text);
    cell(9, &errors, errors_style);
    cell(10, &words::millis(service.traffic.mean_response_ms), theme.text);
}

/// The last part of a model's path, as people call it.
pub fn short_model(model: &str) -> &str {
    model.rsplit('/').find(|part| !part.is_empty()).unwrap_or(model)
}

/// `r11`, `r11→r12`, and a mark for what waits to be applied, or to begin.
pub fn release_words(service: &ServiceView) -> String {
    let stable = service.stable.map_or_else(|| words::ABSENT.to_owned(), |s| s.to_string());
    let rolling = service.rollout.as_ref().filter(|r| r.outcome.is_none());
    let mut out = match rolling {
        Some(r) if Some(r.to) != service.stable => format!("{stable}→{}", r.to),
        _ => stable,
    };
    if service.queued.is_some() {
        out.push_str(" »");
    } else if service.has_new_edit() {
        out.push_str(" ✎");
    } else if service.pending_change {
        out.push_str(" ↩");
    }
    out
}

/// A service in a few words, for the strip of small screens.
pub fn in_short(state: &State, service: &ServiceView) -> Line<'static> {
    let theme = &state.theme;
    let (mark, style, _) = standing(state, service);
    Line::from(vec![
        Span::styled(format!("{mark} "), style),
        Span::styled(service.name.to_string(), theme.strong),
        Span::styled(format!(" {} ", service.ready_in_short()), theme.text),
        Span::styled(release_words(service), theme.dim),
        Span::raw("   "),
    ])
}
