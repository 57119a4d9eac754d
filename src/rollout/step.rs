//! `step(state, event) -> actions`: the whole of deciding.

use std::time::Duration;

use super::action::Action;
use super::event::Event;
use super::run_step::PATIENCE;
use super::state::{Direction, Gate, Phase, ServiceState};
use crate::base::Timestamp;

/// Rounds of deciding after one event. Every round moves something forward, so a few are enough;
/// the bound is there so that a mistake in here costs a delay until the next event, not a hang.
const MAX_ROUNDS: usize = 100;

/// Applies `event` to `state` and says what is to be done now.
///
/// The caller journals `event` first. The same events in the same order give the same state.
/// Events about other releases, replicas or attempts than the present ones change nothing.
pub fn step(state: &mut ServiceState, event: &Event) -> Vec<Action> {
    state.now = state.now.max(event.at);
    let mut decider = Decider { state, actions: Vec::new(), moved: false };
    decider.apply(&event.kind);
    for _ in 0..MAX_ROUNDS {
        decider.moved = false;
        decider.tend_replicas();
        decider.tend_journey();
        decider.tend_moves();
        decider.tend_capacity();
        if !decider.moved {
            break;
        }
    }
    decider.publish_traffic();
    decider.actions
}

/// The actions whose outcome `state` still waits for: what to carry out (again) after a restart.
/// The present traffic table is always among them, since a gateway may have forgotten it.
pub fn outstanding(state: &ServiceState) -> Vec<Action> {
    let mut actions = Vec::new();
    if state.traffic_version > 0 {
        actions.push(state.apply_traffic());
    }
    for (key, replica) in &state.replicas {
        match replica.phase {
            Phase::Starting => actions.extend(state.start_ranks(*key)),
            Phase::Loading => actions.extend(state.await_token(*key)),
            Phase::Draining { .. } if replica.drain.watched && !replica.drain.done => {
                actions.push(Action::AwaitDrained { replica: replica.id(*key) });
            }
            Phase::Stopping => actions.extend(state.stop_ranks(*key)),
            _ => {}
        }
    }
    if let Some(rollout) = &state.rollout
        && let Some(outcome) = &rollout.outcome
    {
        actions.push(Action::RecordOutcome { release: rollout.to, outcome: outcome.clone() });
    }
    actions
}

/// The next moment at which time alone changes something: a `Tick` is due then (an earlier one
/// does no harm). None: only an event from outside does.
pub fn next_wake(state: &ServiceState) -> Option<Timestamp> {
    let roles = state.roles();
    let mut moments: Vec<Timestamp> = state.traffic_retry.into_iter().collect();
    for (key, replica) in &state.replicas {
        match &replica.phase {
            Phase::Pending { not_before } => moments.push(*not_before),
            Phase::Waiting { retry_at, .. } => moments.push(*retry_at), // soon enough for all else
            Phase::Starting | Phase::Loading => {
                let healthy = state.healthy_deadline(*key);
                moments.extend(replica.started.map(|started| started.plus(healthy)));
            }
            Phase::Ready => moments.push(replica.since.plus(roles.min_healthy)),
            Phase::Draining { deadline } => moments.push(*deadline),
            Phase::Stopping => moments.extend(state.stop_overdue_at(*key, replica)),
            Phase::Stopped | Phase::Failed { .. } => {}
        }
    }
    if let Some(rollout) = state.active_rollout().filter(|r| r.paused.is_none()) {
        match &rollout.gate {
            Some(Gate::Bake { until } | Gate::Analyse { until, .. }) => moments.push(*until),
            Some(Gate::Run { until, .. }) => moments.push(until.plus(PATIENCE)),
            Some(_) if rollout.direction == Direction::Forward => {}
            _ => {
                let limit = state.policy(rollout.to).and_then(|policy| match rollout.direction {
                    Direction::Forward => policy.progress_limit(),
                    Direction::Back { .. } => Some(policy.return_limit()),
                });
                moments.extend(limit.map(|limit| state.progressed_at(rollout).plus(limit)));
            }
        }
    }
    moments.extend(state.move_deadline());
    // A deadline is passed when its moment is reached: only later ones are still to come.
    moments.into_iter().filter(|m| *m > state.now).min()
}

/// The pause before the next start after `failures` failed ones: 1 s, doubling, at most 5 min
/// (Kubernetes' `CrashLoopBackOff` with a shorter beginning).
pub(super) fn backoff(failures: u32) -> Duration {
    let doubled = 1u64.checked_shl(failures.saturating_sub(1).min(32)).unwrap_or(u64::MAX);
    if failures == 0 { Duration::ZERO } else { Duration::from_secs(doubled.min(300)) }
}

/// One event being decided.
pub(super) struct Decider<'a> {
    /// What is known; changed in place.
    pub state: &'a mut ServiceState,
    /// What is to be done.
    pub actions: Vec<Action>,
    /// Something changed in this round: another round may find more to do.
    pub moved: bool,
}

impl Decider<'_> {
    pub(super) fn now(&self) -> Timestamp {
        self.state.now
    }

    /// Something went forward: the progress clock starts again.
    pub(super) fn progressed(&mut self) {
        let now = self.state.now;
        if let Some(rollout) = self.state.rollout.as_mut().filter(|r| r.outcome.is_none()) {
            rollout.progress = now;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_doubles_from_a_second_to_five_minutes() {
        let seconds: Vec<u64> = (0..12).map(|n| backoff(n).as_secs()).collect();
        assert_eq!(seconds, [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
        assert_eq!(backoff(u32::MAX).as_secs(), 300);
    }
}
