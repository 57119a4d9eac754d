//! What each command does to the screen's state: what is shown here, what moves, is followed or steered below.

mod confirm;
mod follow;
mod moving;
mod steer;

pub use confirm::{again, confirm_move, renew};
pub use steer::is_of_use;

use super::command::{Command, Danger, Panel};
use super::dialogs::{Ask, AskWhat, Map, Palette, QuestionDialog};
use super::message::Effect;
use super::state::{Controller, Detail, DetailOf, Mode, Selected, ServiceRow, State};
use super::update::open_filter;
use crate::api::{ServiceName, Severity};
use follow::{logs, next_rank};
use moving::{half, scroll, sideways};
use steer::on_service;

/// Carries out `command`; about `service` when it was named, else about what is selected.
pub fn run(state: &mut State, command: Command, service: Option<ServiceName>) -> Vec<Effect> {
    if state.look.read_only && command.danger() != Danger::None {
        state.say(Severity::Warning, "this screen only looks (read-only)");
        return Vec::new();
    }
    match command {
        Command::Up => scroll(state, -1),
        Command::Down => scroll(state, 1),
        Command::Top => scroll(state, isize::MIN / 2),
        Command::Bottom => scroll(state, isize::MAX / 2),
        Command::HalfUp => half(state, -1),
        Command::HalfDown => half(state, 1),
        Command::PageUp => half(state, -2),
        Command::PageDown => half(state, 2),
        Command::Left => sideways(state, -1),
        Command::Right => sideways(state, 1),
        Command::Fleet => show(state, Panel::Fleet),
        Command::Services => show(state, Panel::Services),
        Command::Rollout => show(state, Panel::Rollout),
        Command::Events => show(state, Panel::Events),
        Command::ShowLogs => show(state, Panel::Logs),
        Command::NextPanel => show(state, state.panel.step(1)),
        Command::PreviousPanel => show(state, state.panel.step(Panel::ALL.len() - 1)),
        Command::Zoom => state.zoom = !state.zoom,
        Command::Filter => open_filter(state),
        Command::Palette => state.mode = Mode::Palette(Palette::new(state)),
        Command::Help => state.mode = Mode::Help { scroll: 0 },
        Command::Back => {
            back(state);
        }
        Command::BackOrQuit => {
            if !back(state) {
                return vec![Effect::Quit];
            }
        }
        Command::AskQuit => state.mode = Mode::Ask(Ask::new(AskWhat::Quit)),
        Command::Quit => return vec![Effect::Quit],
        Command::Suspend => return vec![Effect::Suspend],
        Command::Redraw => return vec![Effect::Redraw],
        Command::Severity => severity(state),
        Command::Copy => return copy(state),
        Command::Describe => describe(state, service),
        Command::Logs => return logs(state, service.as_ref()),
        Command::NextRank => return next_rank(state, 1),
        Command::PreviousRank => return next_rank(state, -1),
        Command::Map => {
            let ticket = state.next_ticket();
            state.mode = Mode::Map(Box::new(Map::new(ticket, state.look.read_only)));
            return vec![Effect::WhatIf { ticket, question: Box::default() }];
        }
        Command::Questions => questions(state),
        Command::Reload => state.mode = Mode::Ask(Ask::new(AskWhat::Reload)),
        Command::Shutdown => state.mode = Mode::Ask(Ask::new(AskWhat::Shutdown)),
        Command::StartController => return start_controller(state),
        Command::Diff
        | Command::Plan
        | Command::Apply
        | Command::Undo
        | Command::PauseResume
        | Command::Pause
        | Command::Resume
        | Command::Promote
        | Command::PromoteAll
        | Command::Retry
        | Command::Skip
        | Command::Replace
        | Command::CancelQueued
        | Command::Abort
        | Command::Stop => return on_service(state, command, service.as_ref()),
    }
    Vec::new()
}

/// Starts a controller where the deck's is gone; nobody but a person does: it may have been ended on purpose.
fn start_controller(state: &mut State) -> Vec<Effect> {
    if !matches!(state.controller, Controller::Lost { .. }) {
        state.say(Severity::Info, "the controller runs");
        return Vec::new();
    }
    if !state.look.can_start {
        state.say(Severity::Warning, "a controller cannot be started from here");
        return Vec::new();
    }
    if std::mem::replace(&mut state.starting, true) {
        return Vec::new();
    }
    state.say(Severity::Info, "a controller is being started");
    vec![Effect::StartController]
}

fn show(state: &mut State, panel: Panel) {
    state.panel = panel;
    state.detail = None;
}

/// One step back; `false`: there was nothing to go back from.
fn back(state: &mut State) -> bool {
    if state.detail.take().is_some() {
        return true;
    }
    if state.filter(state.panel).is_some() {
        state.set_filter(None);
        return true;
    }
    // Out of a log: it is not followed any more, and not asked for either.
    if state.panel == Panel::Logs && state.follow.take().is_some() {
        state.panel = Panel::Services;
        return true;
    }
    std::mem::take(&mut state.zoom)
}

fn select_service(state: &mut State, name: ServiceName) {
    state.service.id = Some(ServiceRow::Service(name));
    state.release = Selected::default();
    let rows = state.service_rows();
    state.service.settle(&rows);
    super::update::settle(state);
}

fn severity(state: &mut State) {
    state.severity = match state.severity {
        Severity::Info => Severity::Warning,
        Severity::Warning => Severity::Error,
        Severity::Error => Severity::Info,
    };
    state.events_back = 0;
}

fn describe(state: &mut State, service: Option<ServiceName>) {
    let of = match service {
        Some(name) => {
            state.panel = Panel::Services;
            select_service(state, name.clone());
            Some(DetailOf::Service(name))
        }
        None if state.panel == Panel::Fleet => {
            state.selected_host().map(|h| DetailOf::Host(h.name.clone()))
        }
        None => state.selected_service().map(|s| DetailOf::Service(s.name.clone())),
    };
    state.detail = of.map(|of| Detail { of, scroll: 0 });
}

fn copy(state: &mut State) -> Vec<Effect> {
    let text = match state.panel {
        Panel::Fleet => state.selected_host().map(|h| h.name.to_string()),
        Panel::Services | Panel::Rollout => {
            state.selected_service().map(|s| s.url.clone().unwrap_or_else(|| s.name.to_string()))
        }
        Panel::Events => {
            let events = state.snapshot.iter().flat_map(|s| s.events.iter().rev());
            let mut shown = events.filter(|e| super::update::shows_event(state, e));
            shown.nth(state.events_back).map(|e| e.text.clone())
        }
        Panel::Logs => state.follow.as_ref().and_then(|f| {
            let filter = state.filter(Panel::Logs);
            let mut shown = f.lines.iter().rev().filter(|l| filter.is_none_or(|f| f.matches(l)));
            shown.nth(f.back).cloned()
        }),
    };
    let Some(text) = text else { return Vec::new() };
    let text = crate::api::text::clean(&text, 4_000);
    state.say(Severity::Info, format!("copied {}", crate::api::text::clean(&text, 60)));
    vec![Effect::Copy(text)]
}

fn questions(state: &mut State) {
    let first = state.snapshot.as_ref().and_then(|s| s.questions.values().next());
    match first.map(|q| (q.id, q.kind)) {
        Some((id, kind)) => {
            // The others come up one after the other.
            state.later.clear();
            state.mode = Mode::Question(QuestionDialog::new(id, kind));
        }
        None => state.say(Severity::Info, "no question waits"),
    }
}
