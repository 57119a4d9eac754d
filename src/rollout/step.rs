//! `step(state, event) -> actions`: the whole of deciding.

use super::{Action, Event, ServiceState};

/// Applies `event` to `state` and says what is to be done now.
pub fn step(state: &mut ServiceState, event: &Event) -> Vec<Action> {
    state.now = state.now.max(event.at);
    Vec::new()
}

/// The actions whose outcome `state` still waits for: what to carry out (again) after a restart.
pub fn outstanding(_state: &ServiceState) -> Vec<Action> {
    Vec::new()
}
