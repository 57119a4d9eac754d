//! The whole screen: title, panels, strip, hints, and the dialog over them.
//!
//! ```text
//! ┌──────────────────────────────────────────────────────────────────────────────┐
//! │ gpudeck  lab  SIMULATED   ? 1 question                      controller ● 14:03│ title
//! │ 1 Fleet  2 Services  3 Rollout  4 Events  5 Logs                             │ tabs
//! │ …                                                                            │ panels
//! │ ▶ chat 2/2 r11→r12   ● code 2/2 r9                                           │ strip
//! │ 14:04:12 ✖ chat analysis default failed                                      │
//! │ d describe  l logs  a apply  …                          ? help  q quit       │ hints
//! └──────────────────────────────────────────────────────────────────────────────┘
//! ```

use ratatui::Frame;
use ratatui::buffer::Buffer;
use ratatui::layout::{Position, Rect};

use super::command::{Command, Panel};
use super::draw::Pen;
use super::layout::{self, Areas};
use super::state::{Controller, Mode, State};
use super::{act, ascii, dialogs, keymap, panels, strip, words};
use crate::api::Severity;

/// Draws the screen.
pub fn view(state: &State, frame: &mut Frame<'_>) {
    if let Some(cursor) = draw(state, frame.buffer_mut()) {
        frame.set_cursor_position(cursor);
    }
}

/// Draws the screen into a buffer; says where the cursor is.
pub fn draw(state: &State, buffer: &mut Buffer) -> Option<Position> {
    let (width, height) = (buffer.area.width, buffer.area.height);
    let areas = if state.size == (width, height) {
        layout::areas(state)
    } else {
        // The terminal has changed its size, and the message about it is still on its way.
        layout::areas(&State { size: (width, height), ..state.clone() })
    };
    let mut pen = Pen { buffer, theme: &state.theme };
    let pen = &mut pen;
    title(pen, state, areas.title);
    tabs(pen, state, areas.tabs);
    if state.snapshot.is_some() {
        for (panel, area) in &areas.panels {
            panels::draw(pen, state, *panel, *area);
        }
    } else {
        waiting(pen, state, areas.body);
    }
    strip::draw(pen, state, areas.strip);
    old(pen, state, &areas);
    let mut cursor = hints(pen, state, &areas);
    cursor = dialogs::draw(pen, state, areas.body).or(cursor);
    if state.look.ascii {
        ascii::replace(pen.buffer);
    }
    cursor.filter(|c| c.x < width && c.y < height)
}

fn title(pen: &mut Pen<'_>, state: &State, area: Rect) {
    let theme = pen.theme;
    let (y, right) = (area.y, area.right());
    let clock = state.clock(state.now);
    let clock = clock.get(..5).unwrap_or(&clock);
    let mut x = area.x;
    let deck = state.snapshot.as_ref().map(|s| &s.deck);
    // On a narrow screen the badge stays and the brand goes.
    if area.width >= 60 {
        x = pen.put(x, y, right, " gpudeck ", theme.brand) + 1;
    }
    if deck.is_some_and(|d| d.simulated) {
        x = pen.put(x, y, right, " SIMULATED ", theme.simulated) + 1;
    }
    let mut end = right;
    if area.width >= 40 {
        end = pen.put_right(x, y, right, &format!(" {clock} "), theme.text);
        end = link(pen, state, x, y, end);
    } else if matches!(state.controller, Controller::Lost { .. }) {
        x = pen.put(x, y, right, " LOST ", theme.badge_bad) + 1;
    }
    if let Some(deck) = deck {
        x = pen.put_cut(x, y, end, &deck.name, theme.strong) + 1;
    }
    let questions = state.questions();
    if questions > 0 {
        let noun = if questions == 1 { "question" } else { "questions" };
        let text = if area.width >= 80 {
            format!(" ? {questions} {noun}: press Q ")
        } else {
            format!(" ?{questions} Q ")
        };
        x = pen.put(x, y, end, &text, theme.badge) + 1;
    }
    if state.look.read_only {
        x = pen.put(x, y, end, " READ-ONLY ", theme.badge) + 1;
    }
    if let Some(trouble) = deck.and_then(|d| d.trouble.as_ref()) {
        pen.put_cut(x, y, end, &format!("▲ {trouble}"), theme.warn);
    }
}

/// How it is with the controller, before the clock; returns where it begins.
fn link(pen: &mut Pen<'_>, state: &State, left: u16, y: u16, right: u16) -> u16 {
    let theme = pen.theme;
    match &state.controller {
        Controller::Live => {
            let wide = right.saturating_sub(left) >= 60;
            let version = state.snapshot.as_ref().map_or("", |s| s.deck.version.as_str());
            let text = if wide { format!("controller {version} ● ") } else { "● ".to_owned() };
            pen.put_right(left, y, right, &text, theme.good)
        }
        Controller::Connecting => pen.put_right(left, y, right, " connecting … ", theme.badge),
        Controller::Resync => pen.put_right(left, y, right, " catching up … ", theme.badge),
        Controller::Lost { since, retry_at, .. } => {
            let age = words::ago(state.now, *since);
            let again = words::left(state.now, *retry_at);
            let room = right.saturating_sub(left);
            let start = if state.look.can_start && room >= 80 { "· R starts one " } else { "" };
            let text = if room >= 64 {
                format!(" ✖ CONTROLLER LOST {age} · what you see is old · again in {again} {start}")
            } else {
                format!(" ✖ LOST {age} ")
            };
            pen.put_right(left, y, right, &text, theme.badge_bad)
        }
    }
}

fn tabs(pen: &mut Pen<'_>, state: &State, area: Rect) {
    if area.height == 0 {
        return;
    }
    let theme = pen.theme;
    let mut x = area.x + 1;
    for panel in Panel::ALL {
        let here = panel == state.panel;
        let style = if here { theme.selected } else { theme.dim };
        let digit = if here { style } else { theme.accent };
        let wide = area.width >= 60;
        x = pen.put(x, area.y, area.right(), &format!(" {}", panel.digit()), digit);
        let name = if wide || here { panel.title() } else { "" };
        x = pen.put(x, area.y, area.right(), &format!(" {name} "), style);
        if wide {
            x += 1;
        }
    }
}

fn waiting(pen: &mut Pen<'_>, state: &State, body: Rect) {
    match &state.controller {
        Controller::Lost { why, hint, retry_at, .. } => {
            let again = format!("tried again in {}", words::left(state.now, *retry_at));
            let hint = match hint {
                Some(hint) if state.look.can_start && hint.contains("starts one") => {
                    "→ R starts one".to_owned()
                }
                Some(hint) => format!("→ {hint}"),
                None => String::new(),
            };
            let why = format!("✖ the controller is not reached: {why}");
            panels::nothing(pen, body, &[&why, &hint, &again]);
        }
        _ => panels::nothing(pen, body, &["asking the controller …"]),
    }
}

/// While the controller is lost, what is seen is of then: all of it is pale, and the strip says how old it is.
fn old(pen: &mut Pen<'_>, state: &State, areas: &Areas) {
    let Controller::Lost { since, .. } = &state.controller else { return };
    if state.snapshot.is_none() {
        return;
    }
    pen.fade(areas.body);
    let row = Rect { height: 1, ..areas.strip };
    if areas.strip.height >= 2 {
        pen.clear(row);
        let age = words::ago(state.now, *since);
        let start = if state.look.can_start { " · R starts one" } else { "" };
        let text = format!(" ✖ the controller is lost: what is seen is {age} old{start}");
        pen.put_cut(row.x, row.y, row.right(), &text, pen.theme.bad);
    }
}

/// The bottom line: what is being filtered, what was said, or the keys.
fn hints(pen: &mut Pen<'_>, state: &State, areas: &Areas) -> Option<Position> {
    let area = areas.hints;
    if area.height == 0 {
        return None;
    }
    let theme = pen.theme;
    let (y, right) = (area.y, area.right());
    if let Mode::Filter { field, .. } = &state.mode {
        let x = pen.put(area.x, y, right, " /", theme.accent);
        let end = pen.put(x, y, right, &field.shown(), theme.strong);
        let trouble = state.filter(state.panel).and_then(|f| f.trouble.as_deref());
        match trouble {
            Some(why) => {
                let text = format!("▲ {why} · Enter looks for it as it is · Esc drops");
                pen.put_cut(end + 2, y, right, &text, theme.warn)
            }
            None => pen.put(end + 2, y, right, "Enter keeps · Esc drops", theme.dim),
        };
        let before: String = field.text().chars().take(field.cursor()).collect();
        let columns = unicode_width::UnicodeWidthStr::width(before.as_str());
        let x = x.saturating_add(u16::try_from(columns).unwrap_or(u16::MAX));
        return Some(Position { x: x.min(right.saturating_sub(1)), y });
    }
    let notice = |pen: &mut Pen<'_>, x: u16| {
        let Some(notice) = state.standing_notice() else { return false };
        let (mark, style) = match notice.severity {
            Severity::Info => ("›", theme.accent),
            Severity::Warning => ("▲", theme.warn),
            Severity::Error => ("✖", theme.bad),
        };
        pen.put_cut(x, y, right, &format!(" {mark} {}", notice.text), style);
        true
    };
    // The panel's keys do nothing while a dialog has them; how to get out of it is said before all else.
    let in_dialog = match &state.mode {
        Mode::Browse | Mode::Filter { .. } => None,
        Mode::Palette(_) => Some("type a command · ↑↓ choose · Enter runs it · Esc closes"),
        Mode::Help { .. } | Mode::Text(_) => Some("↑↓ scrolls · Esc closes"),
        Mode::Confirm(confirm) if !confirm.asks() => Some("↑↓ scrolls · Enter or Esc closes"),
        Mode::Confirm(_) => Some("type the name, then Enter · ↑↓ scrolls the plan · Esc cancels"),
        Mode::Map(map) => Some(map.hint()),
        Mode::Ask(_) => Some("← → choose · Enter · Esc cancels"),
        Mode::Question(_) => Some("type the answer, then Enter · Esc leaves it for later"),
    };
    if let Some(text) = in_dialog {
        let x = pen.put_cut(area.x + 1, y, right, text, theme.dim);
        notice(pen, x + 1);
        return None;
    }
    if notice(pen, area.x) {
        return None;
    }
    let mut x = area.x + 1;
    // Help and quit stand at the right, so that they are seen however narrow it is.
    let mut tail = right;
    for command in [Command::BackOrQuit, Command::Help, Command::Palette] {
        if let Some(binding) = keymap::BINDINGS.iter().find(|b| b.command == command) {
            let (Some(key), Some(hint)) = (binding.keys.first(), binding.hint) else { continue };
            let hint =
                if command == Command::BackOrQuit && goes_back(state) { "back" } else { hint };
            tail = pen.put_right(x, y, tail, &format!("{hint}  "), theme.dim);
            tail = pen.put_right(x, y, tail, &format!("{key} "), theme.accent);
        }
    }
    for binding in keymap::of(state.panel, state.look.read_only) {
        let (Some(key), Some(hint)) = (binding.keys.first(), binding.hint) else { continue };
        if matches!(binding.command, Command::BackOrQuit | Command::Help | Command::Palette)
            || !act::is_of_use(state, binding.command)
        {
            continue;
        }
        let hint = if binding.command == Command::PauseResume && is_paused(state) {
            "resume"
        } else {
            hint
        };
        let text = format!("{key} ");
        let needs = u16::try_from(text.chars().count() + hint.len() + 2).unwrap_or(u16::MAX);
        if x.saturating_add(needs) > tail {
            break;
        }
        x = pen.put(x, y, tail, &text, theme.accent);
        x = pen.put(x, y, tail, hint, theme.dim) + 2;
    }
    None
}

/// Whether the rollout of the selected service is paused.
fn is_paused(state: &State) -> bool {
    let rollout = state.selected_service().and_then(|s| s.rollout.as_ref());
    rollout.is_some_and(|r| r.outcome.is_none() && r.paused.is_some())
}

fn goes_back(state: &State) -> bool {
    state.detail.is_some()
        || state.zoom
        || state.filter(state.panel).is_some()
        || (state.panel == Panel::Logs && state.follow.is_some())
}
