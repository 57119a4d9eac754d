//! The dialogs in which a person agrees.

use crate::api::{ReplicaTo, ServiceName};
use crate::tui::dialogs::{Confirm, Deed, Map, PlanState};
use crate::tui::state::{Mode, State};

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

pub(super) fn confirm(
    state: &mut State,
    deed: Deed,
    name: &ServiceName,
    target: String,
    plan: PlanState,
) {
    state.mode = Mode::Confirm(Box::new(Confirm::new(deed, name.clone(), target, plan)));
}
