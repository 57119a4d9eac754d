//! The dialogs in which a person agrees.

use super::steer::{on_service, undo};
use crate::api::{
    ApiError, ErrorKind, Intent, ROLLOUT_CHANGED, ReplicaTo, SeenRollout, ServiceName, wrap,
};
use crate::tui::command::Command;
use crate::tui::dialogs::{Confirm, Deed, Map, PlanState};
use crate::tui::message::Effect;
use crate::tui::state::{Mode, State};

/// The dialog before a replica is moved by hand.
pub fn confirm_move(state: &mut State, to: ReplicaTo, words: Vec<String>, behind: Box<Map>) {
    let gpus = wrap::ranges(to.gpus.clone());
    let target = format!("{}/{} to {} GPU {gpus}", to.service, to.replica, to.host);
    let service = to.service.clone();
    let mut dialog = Confirm::new(Deed::Move, service, target, PlanState::Words(words));
    dialog.to = Some(Box::new(to));
    dialog.behind = Some(behind);
    state.mode = Mode::Confirm(Box::new(dialog));
}

pub(super) fn confirm(
    state: &mut State,
    deed: Deed,
    name: &ServiceName,
    target: String,
    plan: PlanState,
) {
    state.mode = Mode::Confirm(Box::new(Confirm::new(deed, name.clone(), target, plan)));
}

/// The same for what is done to a rollout under way, and to no other one.
pub(super) fn confirm_to(
    state: &mut State,
    seen: SeenRollout,
    deed: Deed,
    (name, target): (&ServiceName, String),
    words: Vec<String>,
) {
    let mut dialog = Confirm::new(deed, name.clone(), target, PlanState::Words(words));
    dialog.seen = Some(seen);
    state.mode = Mode::Confirm(Box::new(dialog));
}

/// Asks anew, or refuses, where the rollout that a dialog is about is not under way as it was seen.
pub fn renew(state: &mut State) -> Vec<Effect> {
    let Mode::Confirm(dialog) = &state.mode else { return Vec::new() };
    let Some(seen) = dialog.seen else { return Vec::new() };
    let view = state.service_named(&dialog.service);
    let present = view.and_then(|v| v.rollout.as_ref()).filter(|r| r.outcome.is_none());
    if present.is_some_and(|r| seen.is(r.to, r.step)) {
        return Vec::new();
    }
    // What an undo means then has a plan of its own. Anything else has lost its object.
    if let (Deed::Undo { .. }, Some(intent)) = (dialog.deed, dialog.intent()) {
        return again(state, &intent);
    }
    if let Mode::Confirm(dialog) = &mut state.mode {
        dialog.seen = None;
        dialog.plan = PlanState::Failed(ApiError {
            kind: ErrorKind::Conflict,
            message: ROLLOUT_CHANGED.to_owned(),
            hint: Some("nothing was done; look at it and ask again".to_owned()),
        });
    }
    Vec::new()
}

/// Asks once more for what was not done since it is not as it was shown any more, with the reason that was given.
pub fn again(state: &mut State, intent: &Intent) -> Vec<Effect> {
    let (effects, reason) = match intent {
        Intent::Apply { service, reason, .. } => {
            (on_service(state, Command::Apply, Some(service)), reason)
        }
        Intent::Retry { service, reason, .. } => {
            (on_service(state, Command::Retry, Some(service)), reason)
        }
        Intent::Undo { service, to, reason, .. } => {
            let view = state.service_named(service).cloned();
            (view.map(|view| undo(state, &view, *to)).unwrap_or_default(), reason)
        }
        _ => return Vec::new(),
    };
    if let Mode::Confirm(dialog) = &mut state.mode {
        dialog.reason.insert(reason.as_deref().unwrap_or_default());
        dialog.said = Some("what was shown has changed: this is how it is now".to_owned());
    }
    effects
}
