//! What is asked of a service: plans, rollouts and what steers them.

use super::confirm::{confirm, confirm_to};
use super::select_service;
use crate::api::{
    Direction, Gate, Intent, Outcome, ReleaseNumber, ReleaseView, Rollout, SeenRollout,
    ServiceName, ServiceView, Severity,
};
use crate::tui::command::{Command, Panel};
use crate::tui::dialogs::{Ask, AskWhat, Deed, PlanState, TextView};
use crate::tui::message::{Effect, PlanOf, Wish};
use crate::tui::state::{Mode, State};

/// Whether `command` would do something to what is selected just now; the hints leave out what would not.
pub fn is_of_use(state: &State, command: Command) -> bool {
    let rollout = state.selected_service().and_then(|s| s.rollout.as_ref());
    let active = rollout.filter(|r| r.outcome.is_none());
    match command {
        // What has failed and is held is not paused, nor passed: it is tried again, or taken back.
        Command::PauseResume => {
            active.is_some_and(|r| r.paused.is_some() || goes_on(r) && !has_failed(r))
        }
        Command::Promote => active.is_some_and(|r| goes_on(r) && !has_failed(r)),
        Command::Abort => active.is_some_and(goes_on),
        Command::Skip => active.is_some_and(can_skip),
        // A first release has nothing behind it.
        Command::Undo => state.selected_service().is_some_and(|s| back_to(s).is_some()),
        Command::Retry => rollout.is_some_and(|r| match &r.outcome {
            None => matches!(r.gate, Some(Gate::Failed { .. } | Gate::Inconclusive { .. })),
            Some(outcome) => *outcome != Outcome::Completed,
        }),
        _ => true,
    }
}

/// Whether it is not on its way back.
fn goes_on(rollout: &Rollout) -> bool {
    rollout.direction == Direction::Forward
}

/// Whether its gate has failed, and it is held there for a person.
const fn has_failed(rollout: &Rollout) -> bool {
    matches!(rollout.gate, Some(Gate::Failed { .. }))
}

/// Whether a gate holds it that need not be waited for.
fn can_skip(rollout: &Rollout) -> bool {
    rollout.direction == Direction::Forward
        && rollout.gate.as_ref().is_some_and(|g| !matches!(g, Gate::Failed { .. }))
}

pub(super) fn on_service(
    state: &mut State,
    command: Command,
    service: Option<&ServiceName>,
) -> Vec<Effect> {
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
            let ticket = state.next_ticket();
            let plan = PlanState::Waiting(ticket);
            confirm(state, Deed::Queue { replace }, &name, target, plan);
            vec![Effect::Plan { ticket, service: name, of: PlanOf::Behind { replace } }]
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
            undo(state, &view, chosen)
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
        Command::Promote | Command::PromoteAll if active.is_some_and(has_failed) => {
            let words =
                format!("{name} has failed: retry (r) or abort (x); nothing can be promoted");
            state.say(Severity::Warning, words);
            Vec::new()
        }
        Command::Promote | Command::PromoteAll => {
            let all = command == Command::PromoteAll;
            let mut words = if all {
                vec![
                    "All remaining steps and gates are skipped:".to_owned(),
                    "every replica is replaced.".to_owned(),
                ]
            } else {
                vec![format!("Passes: {}", step_title(&view))]
            };
            words.extend(active.and_then(also_resumes));
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
            // None is under way only where it was said above.
            if let Some(to) = active.map(|r| r.to) {
                let seen = SeenRollout { to, step: None };
                confirm_to(state, seen, Deed::Abort, (&name, target), words);
            }
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

/// The way back to the release that was `chosen`; none: to the one before.
pub(super) fn undo(
    state: &mut State,
    view: &ServiceView,
    chosen: Option<ReleaseNumber>,
) -> Vec<Effect> {
    let name = view.name.clone();
    let target = match chosen.or_else(|| back_to(view)) {
        Some(to) => format!("{name}: back to {to}"),
        None => format!("{name}: back to the release before"),
    };
    let active = view.rollout.as_ref().filter(|r| r.outcome.is_none());
    let deed = Deed::Undo { to: chosen };
    let alone = active.filter(|r| chosen.is_none_or(|to| Some(to) == r.from));
    if let Some(to) = alone.map(|r| r.to) {
        let words = vec![format!("The rollout to {to} is taken back.")];
        confirm_to(state, SeenRollout { to, step: None }, deed, (&name, target), words);
        return Vec::new();
    }
    let ticket = state.next_ticket();
    confirm(state, deed, &name, target, PlanState::Waiting(ticket));
    vec![Effect::Plan { ticket, service: name, of: PlanOf::Undo(chosen) }]
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

fn retry(state: &mut State, view: &ServiceView) -> Vec<Effect> {
    let name = view.name.clone();
    let words = view.rollout.as_ref().and_then(|rollout| match (&rollout.outcome, &rollout.gate) {
        (None, Some(Gate::Failed { why })) => Some(vec![format!("Tries again: {why}")]),
        (None, Some(Gate::Inconclusive { why })) => Some(vec![format!("Measures again: {why}")]),
        (_, _) => None,
    });
    let target = view.rollout.as_ref().map_or_else(String::new, |r| format!("{name}: {}", r.to));
    if let (Some(words), Some(rollout)) = (words, &view.rollout) {
        let seen = SeenRollout { to: rollout.to, step: Some(rollout.step) };
        confirm_to(state, seen, Deed::Retry, (&name, target), words);
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
    let Some(rollout) = view.rollout.as_ref().filter(|r| can_skip(r)) else {
        state.say(Severity::Warning, format!("no gate holds the rollout of {name}"));
        return Vec::new();
    };
    let mut words = vec![
        format!("Does not wait for: {}", step_title(view)),
        "Who skipped it and why stays in the history and the audit trail.".to_owned(),
    ];
    words.extend(also_resumes(rollout));
    let target = format!("{name}: {}", rollout.to);
    let seen = SeenRollout { to: rollout.to, step: Some(rollout.step) };
    confirm_to(state, seen, Deed::Skip, (&name, target), words);
    Vec::new()
}

/// What passes a gate also ends a pause: whoever does it is told whose.
fn also_resumes(rollout: &Rollout) -> Option<String> {
    rollout.paused?;
    let by = rollout.paused_by.as_ref().map(|by| format!(" by {by}"));
    let why = rollout.paused_why.as_ref().map(|why| format!(" ({why})"));
    let (by, why) = (by.unwrap_or_default(), why.unwrap_or_default());
    Some(format!("▲ It was paused{by}{why}; this also resumes it."))
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
    let older = newer.and_then(|newer| stable_before(view, newer));
    let (Some(from), Some(to)) = (older, newer) else {
        state.say(Severity::Info, format!("no release of {name} before this one was served"));
        return Vec::new();
    };
    state.mode = Mode::Text(TextView::waiting(format!("{name}: {from} → {to}"), ticket));
    vec![Effect::Diff { ticket, service: name, from, to }]
}

/// What was served when a release began: what its rollout under way came from, else the newest before it that stayed.
fn stable_before(view: &ServiceView, newer: ReleaseNumber) -> Option<ReleaseNumber> {
    let under_way = view.rollout.as_ref().filter(|r| r.to == newer && r.from != Some(newer));
    if let Some(from) = under_way.and_then(|r| r.from) {
        return Some(from);
    }
    let stayed =
        |r: &&ReleaseView| r.outcome == Some(Outcome::Completed) || Some(r.number) == view.stable;
    let before = view.history.iter().filter(|r| r.number < newer).filter(stayed);
    before.map(|r| r.number).max()
}
