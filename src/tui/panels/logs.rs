//! The log of the rank that is followed.
//!
//! ```text
//! ╭ 5 Logs ─ chat r12-0 rank 0 · live · 4,211 lines ──────────────────────────────╮
//! │ INFO:     Started server process [4711]                                       │
//! │ INFO:     "POST /v1/chat/completions HTTP/1.1" 200 OK                         │
//! ╰────────────────────────────────────────────────────────────────────────────────╯
//! ```

use std::fmt::Write as _;

use ratatui::layout::Rect;

use super::{nothing, title};
use crate::api::Bytes;
use crate::tui::command::Panel;
use crate::tui::draw::Pen;
use crate::tui::state::State;

/// Draws the panel.
pub fn draw(pen: &mut Pen<'_>, state: &State, area: Rect, focused: bool) {
    let Some(follow) = &state.follow else {
        let inside = pen.frame(area, focused, &title(state, Panel::Logs, ""));
        let lines = ["no log is followed", "press l on a service, a replica or a host"];
        return nothing(pen, inside, &lines);
    };
    let rank = &follow.rank;
    let mut more = format!("{} {} rank {}", rank.service, rank.replica.key(), rank.rank);
    if follow.back == 0 {
        more.push_str(" · live");
    } else {
        let _ = write!(more, " · PAUSED {} back, G live", follow.back);
    }
    let _ = write!(more, " · {} lines", follow.lines.len());
    if follow.skipped_bytes > 0 {
        let _ = write!(more, " · SKIPPED {}", Bytes(follow.skipped_bytes));
    }
    let inside = pen.frame(area, focused, &title(state, Panel::Logs, &more));
    let mut text = Rect { x: inside.x + 1, width: inside.width.saturating_sub(1), ..inside };
    if let Some(trouble) = &follow.trouble
        && text.height > 1
    {
        text.height -= 1;
        pen.put_cut(text.x, text.bottom(), text.right(), &format!("▲ {trouble}"), pen.theme.warn);
    }
    let filter = state.filter(Panel::Logs);
    let lines = follow.lines.iter().rev();
    let shown = lines.filter(|l| filter.is_none_or(|f| f.matches(l))).skip(follow.back);
    let rows: Vec<&String> = shown.take(usize::from(text.height)).collect();
    if rows.is_empty() && follow.trouble.is_none() {
        let words = if filter.is_some() { "no line matches" } else { "nothing written yet" };
        return nothing(pen, inside, &[words]);
    }
    for (line, y) in rows.iter().rev().zip(text.y..text.bottom()) {
        let style = tone(pen, line);
        let from = line.char_indices().nth(follow.left).map_or(line.len(), |(at, _)| at);
        pen.put_cut(text.x, y, text.right(), line.get(from..).unwrap_or_default(), style);
    }
}

/// Errors and warnings stand out; the words themselves say it, too.
fn tone(pen: &Pen<'_>, line: &str) -> ratatui::style::Style {
    let head: String = line.chars().take(120).collect();
    if head.contains("ERROR") || head.contains("Traceback") || head.contains("CRITICAL") {
        pen.theme.bad
    } else if head.contains("WARN") {
        pen.theme.warn
    } else {
        pen.theme.text
    }
}
