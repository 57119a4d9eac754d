//! `update(state, message) -> effects`: the only place where the screen's state changes.

use std::time::Duration;

use super::act;
use super::command::{Command, Panel};
use super::dialogs::{
    ConfirmKey, Deed, MapKey, PlanState, QuestionDialog, QuestionKey, TextView, diff_lines,
    help_lines, plan_lines,
};
use super::field::Field;
use super::filter::Filter;
use super::key::Key;
use super::keymap;
use super::layout;
use super::message::{Effect, Message, Wish};
use super::state::{Controller, Mode, ServiceRow, State};
use crate::api::{
    ApiError, Delta, EventLine, Hint as _, HostName, Intent, IntentReply, PLAN_CHANGED, PlanView,
    ROLLOUT_CHANGED, ReleaseNumber, Severity, Timestamp,
};

/// Columns that a plan or a difference is wrapped to.
const TEXT_WIDTH: usize = 96;

/// Takes a message in. What has to be done outside is returned.
pub fn update(state: &mut State, message: Message) -> Vec<Effect> {
    state.dirty = true;
    match message {
        Message::Key(key) => on_key(state, key),
        Message::Paste(text) => {
            paste(state, &text);
            Vec::new()
        }
        Message::Resize { width, height } => {
            state.size = (width, height);
            Vec::new()
        }
        Message::Resumed => vec![Effect::Redraw],
        Message::Tick(now) => {
            tick(state, now);
            Vec::new()
        }
        Message::Delta(delta) => on_delta(state, *delta),
        Message::Lost { why, hint, retry_after } => {
            lost(state, why, hint, retry_after);
            Vec::new()
        }
        Message::Replied { what, again, result } => replied(state, &what, again.as_deref(), result),
        Message::Planned { ticket, result } => {
            planned(state, ticket, result);
            Vec::new()
        }
        Message::WhatIf { ticket, result } => {
            if let Mode::Map(map) = &mut state.mode
                && map.ticket == Some(ticket)
            {
                map.answered(result);
            }
            Vec::new()
        }
        Message::Diffed { ticket, result } => {
            diffed(state, ticket, &result);
            Vec::new()
        }
        Message::Logged { ticket, result } => logged(state, ticket, result),
        Message::Started(result) => started(state, result),
        Message::Pictured(result) => {
            match result {
                Ok(path) => state.say(Severity::Info, format!("wrote {path}")),
                Err(why) => state.say(Severity::Error, format!("no picture: {why}")),
            }
            Vec::new()
        }
    }
}

fn started(state: &mut State, result: Result<(), ApiError>) -> Vec<Effect> {
    state.starting = false;
    let Err(error) = result else {
        state.say(Severity::Info, "a controller was started");
        return vec![Effect::Resync];
    };
    let hint = error.hint.map(|hint| format!("; {hint}")).unwrap_or_default();
    let words = format!("no controller was started: {}{hint}", error.message);
    state.say(Severity::Error, crate::api::text::clean(&words, 300));
    Vec::new()
}

fn tick(state: &mut State, now: Timestamp) {
    // The clock of the title shows minutes: a tick in between changes nothing unless ages count.
    let minute = now.0 / 60_000 != state.now.0 / 60_000;
    state.now = now;
    state.dirty = minute || state.next_tick() <= Duration::from_secs(1);
    if state.notice.is_some() && state.standing_notice().is_none() {
        state.notice = None;
        state.dirty = true;
    }
}

fn lost(state: &mut State, why: String, hint: Option<String>, retry_after: Duration) {
    let since = match &state.controller {
        Controller::Lost { since, .. } => *since,
        _ => state.now,
    };
    let retry_at = state.now.plus(retry_after);
    state.controller = Controller::Lost { since, why, hint, retry_at };
}

fn on_delta(state: &mut State, delta: Delta) -> Vec<Effect> {
    match delta {
        Delta::Snapshot(snapshot) => {
            state.snapshot = Some(*snapshot);
            state.controller = Controller::Live;
        }
        delta => {
            // After a gap everything is old until a fresh snapshot is here.
            if state.controller != Controller::Live {
                return Vec::new();
            }
            let event = match &delta {
                Delta::Event { event, .. } => Some(event.clone()),
                _ => None,
            };
            let Some(snapshot) = &mut state.snapshot else { return Vec::new() };
            let sample = matches!(delta, Delta::Sample { .. } | Delta::Change { .. });
            if !snapshot.apply(delta) {
                state.controller = Controller::Resync;
                return vec![Effect::Resync];
            }
            if sample {
                // Of many hosts one comes every few milliseconds: nothing else depends on them,
                // and the eye does not either.
                state.dirty = false;
                state.fresh = true;
                return Vec::new();
            }
            if let Some(event) = event {
                hold_events(state, &event);
            }
        }
    }
    settle(state);
    act::renew(state)
}

/// Who has scrolled up keeps seeing the same events.
fn hold_events(state: &mut State, event: &EventLine) {
    if state.events_back > 0 && shows_event(state, event) {
        state.events_back += 1;
    }
}

/// Whether the events panel shows this one.
pub fn shows_event(state: &State, event: &EventLine) -> bool {
    if event.severity < state.severity {
        return false;
    }
    state.filter(Panel::Events).is_none_or(|f| {
        let service = event.service.as_ref().map_or("", |s| s.as_str());
        let host = event.host.as_ref().map_or("", |h| h.as_str());
        f.matches(&format!("{service} {host} {}", event.text))
    })
}

/// Holds selections and dialogs to what is still there, and lets new questions come up.
pub fn settle(state: &mut State) {
    if let Some(snapshot) = &state.snapshot {
        state.letters.settle(snapshot);
    }
    let hosts: Vec<HostName> = state.hosts().iter().map(|h| h.name.clone()).collect();
    state.host.settle(&hosts);
    let rows = state.service_rows();
    // A replica that is gone leaves the selection with its service, not with a neighbour's.
    if let Some(ServiceRow::Replica(name, _)) = &state.service.id {
        let name = name.clone();
        if state.service.id.as_ref().is_some_and(|id| !rows.contains(id)) {
            let service = ServiceRow::Service(name);
            if rows.contains(&service) {
                state.service.id = Some(service);
            }
        }
    }
    state.service.settle(&rows);
    let releases = releases(state);
    // The newest release stays selected when a newer one comes, unless another was chosen.
    if state.release.row == 0 {
        state.release.id = releases.first().copied();
    }
    state.release.settle(&releases);

    let Some(snapshot) = &state.snapshot else { return };
    state.later.retain(|id| snapshot.questions.contains_key(id));
    let gone = match &state.mode {
        Mode::Question(q) if !snapshot.questions.contains_key(&q.id) => {
            Some("the question is gone")
        }
        Mode::Confirm(c) if !snapshot.services.contains_key(&c.service) => {
            Some("the service is gone; nothing was done")
        }
        _ => None,
    };
    if let Some(why) = gone {
        state.mode = Mode::Browse;
        state.say(Severity::Warning, why);
    }
    if matches!(state.mode, Mode::Browse) && !state.look.read_only {
        let snapshot = state.snapshot.iter().flat_map(|s| s.questions.values());
        if let Some(q) = snapshot.into_iter().find(|q| !state.later.contains(&q.id)) {
            state.mode = Mode::Question(QuestionDialog::new(q.id, q.kind));
        }
    }
}

/// The rows of the rollout panel.
pub fn releases(state: &State) -> Vec<ReleaseNumber> {
    let service = state.selected_service();
    service.iter().flat_map(|s| &s.history).map(|r| r.number).collect()
}

fn on_key(state: &mut State, key: Key) -> Vec<Effect> {
    let page = layout::dialog_page(state);
    let text_page = layout::text_page(state);
    let body = layout::areas(state).body;
    let help_rows = help_lines(state).len();
    let mut close = false;
    let mut effects = Vec::new();
    // Read, or not worth it: the next key wants to see the hints. What came up while a dialog has the
    // keys was not seen yet.
    if matches!(state.mode, Mode::Browse) {
        state.notice = None;
    }
    match &mut state.mode {
        Mode::Browse => {
            if let Some(command) = keymap::lookup(state.panel, key, state.look.read_only) {
                effects = act::run(state, command, None);
            }
        }
        Mode::Filter { .. } => filter_key(state, key),
        Mode::Palette(_) => return palette_key(state, key),
        Mode::Help { scroll } => {
            match super::dialogs::scroll_key(key, *scroll, text_page, help_rows) {
                Some(to) => *scroll = to,
                None => close = true,
            }
        }
        Mode::Text(view) => close = !view.key(key, text_page),
        Mode::Map(map) => match map.key(key, page) {
            MapKey::Stay => {}
            MapKey::Close => close = true,
            MapKey::Ask => {
                let question = Box::new(map.question.clone());
                state.ticket += 1;
                map.ticket = Some(state.ticket);
                effects.push(Effect::WhatIf { ticket: state.ticket, question });
            }
            MapKey::Move(to) => {
                let words = map.words(&to);
                let map = map.clone();
                act::confirm_move(state, to, words, map);
            }
        },
        Mode::Ask(ask) => {
            if let Some(done) = ask.key(key) {
                close = true;
                effects = done;
            }
        }
        Mode::Confirm(confirm) => {
            let most = confirm.most_scrolled(&state.theme, body);
            match confirm.key(key, page, most) {
                ConfirmKey::Stay => {}
                ConfirmKey::Cancel => match confirm.behind.take() {
                    Some(map) => state.mode = Mode::Map(map),
                    None => close = true,
                },
                ConfirmKey::Do(intent) => {
                    let verb = confirm.deed.verb().to_lowercase();
                    let what = format!("{verb} {}", confirm.service);
                    close = true;
                    effects.push(Effect::Send { intent: Wish(intent), what });
                }
            }
        }
        Mode::Question(dialog) => match dialog.key(key) {
            QuestionKey::Stay => {}
            QuestionKey::Later => {
                state.later.insert(dialog.id);
                close = true;
            }
            QuestionKey::Answer(answer) => {
                // Not asked again while the answer is on its way.
                state.later.insert(dialog.id);
                let intent = Intent::Answer { question: dialog.id, answer };
                close = true;
                effects.push(Effect::Send { intent: Wish(intent), what: "answer".to_owned() });
            }
        },
    }
    if close {
        state.mode = Mode::Browse;
        settle(state);
    }
    effects
}

fn paste(state: &mut State, text: &str) {
    let field = match &mut state.mode {
        Mode::Filter { field, .. } => field,
        Mode::Palette(palette) => &mut palette.field,
        Mode::Question(question) => &mut question.field,
        Mode::Confirm(confirm) if confirm.on_reason => &mut confirm.reason,
        // A name that is pasted was not typed: it is what the dialog asks for.
        _ => return,
    };
    field.insert(text);
    if let Mode::Filter { field, .. } = &state.mode {
        let filter = Filter::new(field.text());
        state.set_filter(filter);
        settle_filter(state);
    }
}

fn filter_key(state: &mut State, key: Key) {
    let Mode::Filter { field, before } = &mut state.mode else { return };
    match key {
        Key::Enter => {
            // What is no expression is looked for as it is.
            let filter = Filter::new(field.text());
            state.mode = Mode::Browse;
            if filter.as_ref().is_some_and(|f| f.trouble.is_some()) {
                state.set_filter(filter);
                settle_filter(state);
            }
        }
        Key::Esc | Key::Ctrl('c') => {
            let before = before.take();
            state.mode = Mode::Browse;
            state.set_filter(before);
            settle_filter(state);
        }
        Key::Backspace if field.text().is_empty() => {
            state.mode = Mode::Browse;
            state.set_filter(None);
        }
        other => {
            field.key(other);
            let text = field.text().to_owned();
            let filter = Filter::typed(&text, state.filter(state.panel));
            state.set_filter(filter);
            settle_filter(state);
        }
    }
}

fn settle_filter(state: &mut State) {
    state.events_back = 0;
    if let Some(follow) = &mut state.follow {
        follow.back = 0;
    }
    settle(state);
}

fn palette_key(state: &mut State, key: Key) -> Vec<Effect> {
    let Mode::Palette(palette) = &mut state.mode else { return Vec::new() };
    match key {
        Key::Esc | Key::Ctrl('c') => state.mode = Mode::Browse,
        Key::Backspace if palette.field.text().is_empty() => state.mode = Mode::Browse,
        Key::Enter => {
            let typed = palette.field.text().trim().to_owned();
            if let Some(path) = typed.strip_prefix("picture ") {
                let path = path.trim().to_owned();
                state.mode = Mode::Browse;
                return vec![Effect::Picture(path)];
            }
            let chosen = palette.matching().get(palette.chosen).map(|e| (*e).clone());
            let Some(entry) = chosen else { return Vec::new() };
            state.mode = Mode::Browse;
            let command = if typed == "q" { Command::Quit } else { entry.command };
            return act::run(state, command, entry.service);
        }
        other => {
            palette.key(other);
        }
    }
    Vec::new()
}

fn replied(
    state: &mut State,
    what: &str,
    again: Option<&Wish>,
    result: Result<Box<IntentReply>, ApiError>,
) -> Vec<Effect> {
    match result.map(|r| *r) {
        Ok(IntentReply::RolloutBegun { release, .. }) => {
            state.say(Severity::Info, format!("{what}: {release} is on its way"));
            state.panel = Panel::Rollout;
            state.detail = None;
        }
        Ok(IntentReply::NothingToDo) => {
            state.say(Severity::Info, format!("{what}: nothing to do"));
        }
        Ok(IntentReply::Queued { behind, .. }) => {
            state.say(Severity::Info, format!("{what}: queued behind {behind}"));
        }
        Ok(IntentReply::AlreadyPassed { step }) => {
            state.say(Severity::Info, format!("{what}: step {step} is already passed"));
        }
        Ok(IntentReply::CordonedBut { comes }) => {
            let words = format!("{what}: still to come there, by {}", comes.join("; "));
            state.say(Severity::Warning, words);
        }
        Ok(IntentReply::Accepted | IntentReply::TakenOver { .. }) => {
            state.say(Severity::Info, format!("{what}: accepted"));
        }
        Err(error) => {
            // Never over something that is being typed.
            if matches!(state.mode, Mode::Browse) {
                if let Some(Wish(intent)) = again
                    && [PLAN_CHANGED, ROLLOUT_CHANGED].contains(&error.message.as_str())
                {
                    let effects = act::again(state, intent);
                    if matches!(state.mode, Mode::Confirm(_)) {
                        return effects;
                    }
                }
                let title = format!("{what} was refused");
                state.mode = Mode::Text(TextView::new(title, error_lines(state, &error)));
            } else {
                state.say(Severity::Error, format!("{what}: {}", error.message));
            }
        }
    }
    Vec::new()
}

fn error_lines(state: &State, error: &ApiError) -> Vec<ratatui::text::Line<'static>> {
    let wrap = super::dialogs::wrapped;
    let width = usize::from(state.size.0.saturating_sub(6)).min(TEXT_WIDTH);
    let mut lines = wrap(&format!("✖ {}", error.message), width, state.theme.bad);
    if let Some(hint) = error.hint() {
        lines.extend(wrap(&format!("→ {hint}"), width, state.theme.accent));
    }
    lines
}

fn planned(state: &mut State, ticket: u64, result: Result<Box<PlanView>, ApiError>) {
    let width = usize::from(state.size.0.saturating_sub(6)).min(TEXT_WIDTH);
    let text = match &result {
        Ok(plan) => plan_lines(plan, &state.theme, width),
        Err(error) => error_lines(state, error),
    };
    match &mut state.mode {
        Mode::Confirm(confirm) if matches!(confirm.plan, PlanState::Waiting(t) if t == ticket) => {
            if let Ok(plan) = &result
                && let Some(from) = plan.from
            {
                let journey = format!("{}: {from} → {}", confirm.service, plan.to);
                match confirm.deed {
                    Deed::Apply => confirm.target = journey,
                    Deed::Retry => confirm.target = format!("{journey} ({})", confirm.target),
                    Deed::Undo { .. } => {
                        confirm.target = format!("{} ({from} → {})", confirm.target, plan.to);
                    }
                    _ => {}
                }
            }
            confirm.plan = match result {
                Ok(plan) => PlanState::Ready(plan),
                Err(error) => PlanState::Failed(error),
            };
        }
        Mode::Text(view) if view.ticket == Some(ticket) => {
            view.ticket = None;
            view.lines = text;
        }
        _ => state.dirty = false,
    }
}

fn diffed(state: &mut State, ticket: u64, result: &Result<String, ApiError>) {
    let width = usize::from(state.size.0.saturating_sub(6)).min(TEXT_WIDTH);
    let mut lines = match result {
        Ok(diff) => diff_lines(diff, &state.theme, width),
        Err(error) => error_lines(state, error),
    };
    if lines.is_empty() {
        lines.push(ratatui::text::Line::raw("no difference"));
    }
    if let Mode::Text(view) = &mut state.mode
        && view.ticket == Some(ticket)
    {
        view.ticket = None;
        view.lines = lines;
    }
}

fn logged(
    state: &mut State,
    ticket: u64,
    result: Result<crate::api::LogChunk, ApiError>,
) -> Vec<Effect> {
    let filter = state.filter(Panel::Logs).cloned();
    let Some(follow) = &mut state.follow else { return Vec::new() };
    let trouble = follow.trouble.clone();
    let Some((added, next)) = follow.take(ticket, result) else { return Vec::new() };
    if follow.back > 0 {
        let new = follow.lines.iter().rev().take(added);
        follow.back += new.filter(|l| filter.as_ref().is_none_or(|f| f.matches(l))).count();
    }
    // An empty answer changes nothing on the screen.
    state.dirty = added > 0 || trouble != follow.trouble;
    vec![next]
}

/// Opens the filter line of the panel with the keys. What lies before its rows is closed: they are what is
/// filtered.
pub fn open_filter(state: &mut State) {
    state.detail = None;
    let before = state.filter(state.panel).cloned();
    let field = Field::with(before.as_ref().map_or("", Filter::text));
    state.mode = Mode::Filter { field, before };
}
