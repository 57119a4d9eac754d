//! What each command does to the screen's state.

use super::command::{Command, Danger, Panel};
use super::dialogs::{
    Ask, AskWhat, Confirm, Deed, Map, Palette, PlanState, QuestionDialog, TextView,
};
use super::layout;
use super::logs::Follow;
use super::message::{Effect, PlanOf, Wish};
use super::panels;
use super::state::{Detail, DetailOf, Mode, Selected, ServiceRow, State};
use super::update::{open_filter, releases};
use crate::api::{
    Direction, Gate, HostName, Intent, Outcome, RankId, ReleaseNumber, ReleaseView, ReplicaTo,
    Rollout, ServiceName, ServiceView, Severity,
};

/// Whether `command` would do something to what is selected just now; the hints leave out what would not.
pub fn is_of_use(state: &State, command: Command) -> bool {
    let rollout = state.selected_service().and_then(|s| s.rollout.as_ref());
    let active = rollout.filter(|r| r.outcome.is_none());
    match command {
        Command::PauseResume | Command::Promote | Command::Abort => active.is_some(),
        Command::Skip => active.is_some_and(can_skip),
        Command::Retry => rollout.is_some_and(|r| match &r.outcome {
            None => matches!(r.gate, Some(Gate::Failed { .. } | Gate::Inconclusive { .. })),
            Some(outcome) => *outcome != Outcome::Completed,
        }),
        _ => true,
    }
}

/// Whether a gate holds it that need not be waited for.
fn can_skip(rollout: &Rollout) -> bool {
    rollout.direction == Direction::Forward
        && rollout.gate.as_ref().is_some_and(|g| !matches!(g, Gate::Failed { .. }))
}

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

fn half(state: &mut State, halves: isize) {
    let half = isize::try_from(layout::page(state) / 2).unwrap_or(1).max(1);
    scroll(state, half * halves);
}

fn scroll(state: &mut State, by: isize) {
    // A position beyond the end would have to be scrolled back before anything moves.
    let most = panels::most_scrolled(state);
    if let Some(detail) = &mut state.detail {
        detail.scroll = detail.scroll.min(most).saturating_add_signed(by).min(most);
        return;
    }
    let page = layout::page(state).saturating_sub(1);
    match state.panel {
        Panel::Fleet => {
            let rows: Vec<HostName> = state.hosts().iter().map(|h| h.name.clone()).collect();
            state.host.step(&rows, by);
        }
        Panel::Services => {
            let rows = state.service_rows();
            let before = state.selected_row().map(|r| r.service().clone());
            state.service.step(&rows, by);
            if state.selected_row().map(|r| r.service().clone()) != before {
                state.release = Selected::default();
            }
        }
        Panel::Rollout => {
            let rows = releases(state);
            state.release.step(&rows, by);
        }
        Panel::Events => {
            let events = state.snapshot.iter().flat_map(|s| &s.events);
            let count = events.filter(|e| super::update::shows_event(state, e)).count();
            let most = count.saturating_sub(page);
            state.events_back = state.events_back.min(most).saturating_add_signed(-by).min(most);
        }
        Panel::Logs => {
            let filter = state.filter(Panel::Logs).cloned();
            if let Some(follow) = &mut state.follow {
                let shown = |l: &&String| filter.as_ref().is_none_or(|f| f.matches(l));
                let most = follow.lines.iter().filter(shown).count().saturating_sub(page);
                follow.back = follow.back.min(most).saturating_add_signed(-by).min(most);
            }
        }
    }
}

fn sideways(state: &mut State, by: isize) {
    match state.panel {
        Panel::Logs => {
            if let Some(follow) = &mut state.follow {
                follow.left = follow.left.saturating_add_signed(by * 16).min(4_000);
            }
        }
        Panel::Events => {
            state.events_left = state.events_left.saturating_add_signed(by * 16).min(1_000);
        }
        Panel::Rollout => {
            let names: Vec<ServiceName> = state.services().iter().map(|s| s.name.clone()).collect();
            let Some(now) = state.selected_service().map(|s| s.name.clone()) else { return };
            let at = names.iter().position(|n| *n == now).unwrap_or(0);
            let to = at.saturating_add_signed(by).min(names.len().saturating_sub(1));
            if let Some(name) = names.get(to) {
                select_service(state, name.clone());
            }
        }
        Panel::Fleet | Panel::Services => {}
    }
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

fn logs(state: &mut State, service: Option<&ServiceName>) -> Vec<Effect> {
    let first_of = |service: &ServiceView| {
        service.replicas.iter().flat_map(|r| &r.ranks).map(|r| r.rank.clone()).next()
    };
    let rank = match (service, state.panel) {
        (Some(name), _) => state.service_named(name).and_then(first_of),
        (None, Panel::Fleet) => {
            state.selected_host().and_then(|h| h.ranks.first()).map(|r| r.rank.clone())
        }
        (None, _) => match state.selected_row() {
            Some(ServiceRow::Replica(name, id)) if state.panel == Panel::Services => {
                let service = state.service_named(&name);
                let replica = service.and_then(|s| s.replicas.iter().find(|r| r.id == id));
                replica.and_then(|r| r.ranks.first()).map(|r| r.rank.clone())
            }
            _ => state.selected_service().and_then(first_of),
        },
    };
    if let Some(rank) = rank {
        follow(state, rank)
    } else {
        state.say(Severity::Warning, "no rank runs here: there is no log to follow");
        Vec::new()
    }
}

fn follow(state: &mut State, rank: RankId) -> Vec<Effect> {
    show(state, Panel::Logs);
    if state.follow.as_ref().is_some_and(|f| f.rank == rank) {
        return Vec::new();
    }
    let ticket = state.next_ticket();
    let (follow, effect) = Follow::start(rank, ticket);
    state.follow = Some(follow);
    vec![effect]
}

fn next_rank(state: &mut State, by: isize) -> Vec<Effect> {
    let Some(current) = state.follow.as_ref().map(|f| f.rank.clone()) else { return Vec::new() };
    let ranks = state.ranks_beside(&current);
    let count = isize::try_from(ranks.len()).unwrap_or(0);
    if count == 0 {
        return Vec::new();
    }
    let at = ranks.iter().position(|r| *r == current);
    let at = at.and_then(|i| isize::try_from(i).ok()).map_or(0, |i| (i + by).rem_euclid(count));
    match usize::try_from(at).ok().and_then(|i| ranks.get(i)) {
        Some(rank) => follow(state, rank.clone()),
        None => Vec::new(),
    }
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

fn on_service(state: &mut State, command: Command, service: Option<&ServiceName>) -> Vec<Effect> {
    let named = service.is_some();
    let view = match service {
        Some(name) => state.service_named(name),
        None => state.selected_service(),
    };
    let Some(view) = view.cloned() else {
        state.say(Severity::Warning, "select a service first");
        return Vec::new();
    };
    let name = view.name.clone();
    if named {
        select_service(state, name.clone());
    }
    let active = view.rollout.as_ref().filter(|r| r.outcome.is_none());
    let needs_rollout = matches!(
        command,
        Command::PauseResume
            | Command::Pause
            | Command::Resume
            | Command::Promote
            | Command::PromoteAll
            | Command::Skip
            | Command::Replace
            | Command::Abort
    );
    let Some(command) = (if needs_rollout && active.is_none() { None } else { Some(command) })
    else {
        state.say(Severity::Warning, format!("no rollout of {name} is under way"));
        return Vec::new();
    };
    let paused = active.is_some_and(|r| r.paused.is_some());
    let journey = active.map(|r| {
        let from = r.from.map_or_else(|| "nothing".to_owned(), |f| f.to_string());
        format!("{name}: {from} → {}", r.to)
    });
    match command {
        Command::Plan => {
            let ticket = state.next_ticket();
            state.mode = Mode::Text(TextView::waiting(format!("Plan for {name}"), ticket));
            vec![Effect::Plan { ticket, service: name, of: PlanOf::Apply }]
        }
        Command::Diff => diff(state, &view, named),
        Command::Apply | Command::Replace if active.is_some() => {
            let replace = command == Command::Replace;
            let how = if replace { "in place of" } else { "after" };
            let target = match active {
                Some(r) => format!("{name}: the spec in the deck {how} {}", r.to),
                None => name.to_string(),
            };
            let words = queue_words(&view, replace);
            confirm_in_advance(state, Deed::Queue { replace }, &name, target, words);
            Vec::new()
        }
        Command::Retry => retry(state, &view),
        Command::Skip => skip(state, &view),
        Command::CancelQueued => cancel_queued(state, &view),
        Command::Apply => {
            let ticket = state.next_ticket();
            confirm(state, Deed::Apply, &name, name.to_string(), PlanState::Waiting(ticket));
            vec![Effect::Plan { ticket, service: name, of: PlanOf::Apply }]
        }
        Command::Undo => {
            // Only who looks at the history and has chosen another release means that one.
            let chosen = Some(state.release.row)
                .filter(|row| *row > 0 && state.panel == Panel::Rollout && !named)
                .and_then(|_| state.selected_release())
                .filter(|r| Some(*r) != view.stable);
            let target = match chosen.or_else(|| back_to(&view)) {
                Some(to) => format!("{name}: back to {to}"),
                None => format!("{name}: back to the release before"),
            };
            if let Some(rollout) = active {
                let words = undo_words(rollout, chosen);
                let deed = Deed::Undo { to: chosen };
                if chosen.is_some_and(|to| Some(to) != rollout.from) {
                    confirm_in_advance(state, deed, &name, target, words);
                } else {
                    confirm(state, deed, &name, target, PlanState::Words(words));
                }
                return Vec::new();
            }
            let ticket = state.next_ticket();
            let plan = PlanState::Waiting(ticket);
            confirm(state, Deed::Undo { to: chosen }, &name, target, plan);
            vec![Effect::Plan { ticket, service: name, of: PlanOf::Undo(chosen) }]
        }
        Command::PauseResume | Command::Resume if paused => {
            state.mode = Mode::Ask(Ask::new(AskWhat::Resume(name)));
            Vec::new()
        }
        // Pausing is the brake: it harms nothing and must be quick.
        Command::PauseResume | Command::Pause => {
            let what = format!("pause {name}");
            vec![Effect::Send { intent: Wish(Intent::Pause { service: name, reason: None }), what }]
        }
        Command::Promote | Command::PromoteAll => {
            let all = command == Command::PromoteAll;
            let mut words = if all {
                vec![
                    "All remaining steps and gates are skipped:".to_owned(),
                    "every replica is replaced, one after the other.".to_owned(),
                ]
            } else {
                vec![format!("Passes: {}", step_title(&view))]
            };
            words.extend(active.filter(|r| r.paused.is_some()).map(|rollout| {
                let by = rollout.paused_by.as_ref().map(|by| format!(" by {by}"));
                format!("▲ It was paused{}; this also resumes it.", by.unwrap_or_default())
            }));
            let target = journey.unwrap_or_else(|| name.to_string());
            let step = active.map(|r| r.step);
            confirm(state, Deed::Promote { all, step }, &name, target, PlanState::Words(words));
            Vec::new()
        }
        Command::Abort => {
            let from = active.and_then(|r| r.from);
            let words = match from {
                Some(from) => vec![
                    format!("Takes the rollout back: {from} is served again by all replicas."),
                    "Stable is scaled back first, then the new release is drained.".to_owned(),
                ],
                None => vec![
                    "A first deployment: there is nothing to go back to.".to_owned(),
                    "What was started is stopped.".to_owned(),
                ],
            };
            let target = journey.unwrap_or_else(|| name.to_string());
            confirm(state, Deed::Abort, &name, target, PlanState::Words(words));
            Vec::new()
        }
        Command::Stop => {
            let words = vec![
                format!("▲ OUTAGE: all {} replicas of {name} are drained and stopped.", view.ready),
                "Nothing serves it afterwards, until it is applied again.".to_owned(),
            ];
            confirm(state, Deed::Stop, &name, name.to_string(), PlanState::Words(words));
            Vec::new()
        }
        _ => {
            state.say(Severity::Warning, format!("the rollout of {name} is not paused"));
            Vec::new()
        }
    }
}

fn queue_words(view: &ServiceView, replace: bool) -> Vec<String> {
    let first = if replace {
        "The rollout under way is taken back: stable is scaled back first.".to_owned()
    } else {
        "A rollout is under way. This one begins when it has ended.".to_owned()
    };
    let mut words = vec![first, "The plan is made then.".to_owned()];
    let forward = view.rollout.as_ref().is_some_and(|r| r.direction == Direction::Forward);
    if forward && !view.pending_change && view.queued.is_none() {
        words.push("The spec in the deck is the one that is being rolled out already.".to_owned());
    }
    if let Some(queued) = &view.queued {
        words.push(format!("What {} queued ({}) is given up.", queued.by, queued.what()));
    }
    words
}

/// Where an undo goes that names no release: what the rollout under way came from, else the newest that ever
/// served beside the present one.
fn back_to(view: &ServiceView) -> Option<ReleaseNumber> {
    if let Some(rollout) = view.rollout.as_ref().filter(|r| r.outcome.is_none()) {
        return rollout.from;
    }
    let served = |r: &&ReleaseView| r.outcome == Some(Outcome::Completed);
    let mut others = view.history.iter().filter(|r| Some(r.number) != view.stable);
    others.find(served).map(|r| r.number)
}

fn undo_words(rollout: &Rollout, chosen: Option<ReleaseNumber>) -> Vec<String> {
    let mut words = vec![format!("The rollout to {} is taken back.", rollout.to)];
    if let Some(to) = chosen.filter(|to| Some(*to) != rollout.from) {
        words.push(format!("Then a rollout back to {to} begins; its plan is made then."));
    }
    words
}

fn retry(state: &mut State, view: &ServiceView) -> Vec<Effect> {
    let name = view.name.clone();
    let words = view.rollout.as_ref().and_then(|rollout| match (&rollout.outcome, &rollout.gate) {
        (None, Some(Gate::Failed { why })) => Some(vec![format!("Tries again: {why}")]),
        (None, Some(Gate::Inconclusive { why })) => Some(vec![format!("Measures again: {why}")]),
        (_, _) => None,
    });
    let target = view.rollout.as_ref().map_or_else(String::new, |r| format!("{name}: {}", r.to));
    if let Some(words) = words {
        confirm(state, Deed::Retry, &name, target, PlanState::Words(words));
        return Vec::new();
    }
    // What is over begins anew, with a plan of its own.
    let outcome = view.rollout.as_ref().and_then(|r| r.outcome.as_ref());
    if outcome.is_none_or(|o| *o == Outcome::Completed) {
        state.say(Severity::Warning, format!("nothing of {name} has failed"));
        return Vec::new();
    }
    let ticket = state.next_ticket();
    confirm(state, Deed::Retry, &name, format!("{target} again"), PlanState::Waiting(ticket));
    vec![Effect::Plan { ticket, service: name, of: PlanOf::Retry }]
}

fn skip(state: &mut State, view: &ServiceView) -> Vec<Effect> {
    let name = view.name.clone();
    let rollout = view.rollout.as_ref().filter(|r| can_skip(r));
    if rollout.is_none() {
        state.say(Severity::Warning, format!("no gate holds the rollout of {name}"));
        return Vec::new();
    }
    let words = vec![
        format!("Does not wait for: {}", step_title(view)),
        "Who skipped it and why stays in the history and the audit trail.".to_owned(),
    ];
    let target = rollout.map_or_else(String::new, |r| format!("{name}: {}", r.to));
    confirm(state, Deed::Skip, &name, target, PlanState::Words(words));
    Vec::new()
}

fn cancel_queued(state: &mut State, view: &ServiceView) -> Vec<Effect> {
    let name = view.name.clone();
    let Some(queued) = &view.queued else {
        state.say(Severity::Warning, format!("no rollout of {name} is queued"));
        return Vec::new();
    };
    let words = vec![format!("{} queued {}; it does not begin.", queued.by, queued.what())];
    confirm(state, Deed::CancelQueued, &name, name.to_string(), PlanState::Words(words));
    Vec::new()
}

fn step_title(view: &ServiceView) -> String {
    let step = view.rollout.as_ref().map_or(0, |r| r.step);
    view.steps.get(step).cloned().unwrap_or_else(|| "the current step".to_owned())
}

/// The dialog before a replica is moved by hand.
pub fn confirm_move(state: &mut State, to: ReplicaTo, words: Vec<String>, behind: Box<Map>) {
    let gpus: Vec<String> = to.gpus.iter().map(ToString::to_string).collect();
    let target = format!("{}/{} to {} GPU {}", to.service, to.replica, to.host, gpus.join(", "));
    let service = to.service.clone();
    let mut dialog = Confirm::new(Deed::Move, service, target, PlanState::Words(words));
    dialog.to = Some(Box::new(to));
    dialog.behind = Some(behind);
    state.mode = Mode::Confirm(Box::new(dialog));
}

fn confirm(state: &mut State, deed: Deed, name: &ServiceName, target: String, plan: PlanState) {
    state.mode = Mode::Confirm(Box::new(Confirm::new(deed, name.clone(), target, plan)));
}

/// The same for what is planned only when its turn has come: an OUTAGE can be accepted now, or it is refused then.
fn confirm_in_advance(
    state: &mut State,
    deed: Deed,
    name: &ServiceName,
    target: String,
    mut words: Vec<String>,
) {
    words.push(format!("With an OUTAGE in it, it begins only if you type `{name} outage` here."));
    let mut dialog = Confirm::new(deed, name.clone(), target, PlanState::Words(words));
    dialog.in_advance = true;
    state.mode = Mode::Confirm(Box::new(dialog));
}

fn diff(state: &mut State, view: &ServiceView, named: bool) -> Vec<Effect> {
    let name = view.name.clone();
    let ticket = state.next_ticket();
    if (state.panel != Panel::Rollout || named) && view.pending_change {
        state.mode = Mode::Text(TextView::waiting(format!("What waits for {name}"), ticket));
        return vec![Effect::Plan { ticket, service: name, of: PlanOf::Apply }];
    }
    // The selected release against the one before it.
    let newer = state.selected_release().filter(|_| state.panel == Panel::Rollout && !named);
    let newer = newer.or(view.stable).or_else(|| view.history.first().map(|r| r.number));
    let older: Option<ReleaseNumber> =
        view.history.iter().map(|r| r.number).filter(|n| Some(*n) < newer).max();
    let (Some(from), Some(to)) = (older, newer) else {
        state.say(Severity::Info, format!("{name} has no release before this one"));
        return Vec::new();
    };
    state.mode = Mode::Text(TextView::waiting(format!("{name}: {from} → {to}"), ticket));
    vec![Effect::Diff { ticket, service: name, from, to }]
}
