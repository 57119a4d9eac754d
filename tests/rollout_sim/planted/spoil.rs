//! What comes out of a decider with a mistake.

use deciding::base::{ReleaseNumber, TrafficMode};
use deciding::rollout::{Action, Direction, Outcome, Phase, RolloutKind, ServiceState};
use deciding::spec::Strategy;

use super::Bug;
use crate::build::Rng;

impl Bug {
    /// What comes out of the decider instead.
    pub fn spoil(self, state: &ServiceState, actions: &mut Vec<Action>, rng: &mut Rng) {
        match self {
            Self::ForgetStop => {
                actions.retain(|a| !matches!(a, Action::StopRank { .. }) || !rng.one_in(4));
            }
            Self::ForgetOutcome => actions.retain(|a| !matches!(a, Action::RecordOutcome { .. })),
            Self::ForgetTraffic => {
                actions.retain(|a| !matches!(a, Action::ApplyTraffic { .. }) || !rng.one_in(6));
            }
            Self::LieAboutOutcome => {
                for action in actions.iter_mut() {
                    if let Action::RecordOutcome { outcome, .. } = action {
                        *outcome = Outcome::Completed;
                    }
                }
            }
            Self::ReuseAttempt => {
                for action in actions.iter_mut() {
                    let Action::StartRank { rank, .. } = action else { continue };
                    let before = rank.replica.attempt.0.get() - 1;
                    if let Some(before) = std::num::NonZero::new(before) {
                        rank.replica.attempt.0 = before;
                    }
                }
            }
            Self::WrongPlace => {
                for action in actions.iter_mut() {
                    let Action::StartRank { rank, plan } = action else { continue };
                    let release = &state.releases[&rank.replica.release];
                    let next = (rank.replica.replica as usize + 1) % release.replicas.len();
                    if let Some(other) = release.replicas[next].ranks.get(rank.rank as usize) {
                        plan.devices.clone_from(&other.devices);
                        plan.host.clone_from(&other.host);
                    }
                }
            }
            Self::TrafficBeforeReady => {
                let loading: Vec<_> = state
                    .replicas
                    .iter()
                    .filter(|(_, r)| r.phase == Phase::Loading)
                    .filter_map(|(key, _)| state.replica_id(key.release, key.replica))
                    .collect();
                for action in actions.iter_mut() {
                    let Action::ApplyTraffic { servers, .. } = action else { continue };
                    for server in servers.iter_mut().filter(|s| loading.contains(&s.replica)) {
                        server.mode = TrafficMode::Ready;
                        server.weight = 100;
                    }
                    if let (Some(first), Some(like)) = (loading.first(), servers.first().cloned())
                        && !servers.iter().any(|s| s.replica == *first)
                    {
                        servers.push(deciding::base::TrafficServer {
                            replica: *first,
                            mode: TrafficMode::Ready,
                            weight: 100,
                            ..like
                        });
                    }
                }
            }
            Self::EmptyTable => {
                for action in actions.iter_mut() {
                    let Action::ApplyTraffic { servers, .. } = action else { continue };
                    if rng.one_in(5) {
                        for server in servers.iter_mut() {
                            server.weight = 0;
                        }
                    }
                }
            }
            Self::KeepCanaryTraffic => {
                let Some(to) = state.rollout.as_ref().map(|r| r.to) else { return };
                for action in actions.iter_mut() {
                    let Action::ApplyTraffic { servers, .. } = action else { continue };
                    for server in servers.iter_mut() {
                        if server.replica.release == to && server.mode == TrafficMode::Ready {
                            server.weight = server.weight.max(10);
                        }
                    }
                }
            }
            Self::SwitchEarly => {
                let Some(to) = of_strategy(state, Strategy::BlueGreen) else { return };
                for action in actions.iter_mut() {
                    let Action::ApplyTraffic { servers, .. } = action else { continue };
                    if servers.iter().any(|s| s.replica.release == to) {
                        for server in servers.iter_mut() {
                            server.weight = if server.replica.release == to { 100 } else { 0 };
                        }
                    }
                }
            }
            Self::DropOldSet => {
                let Some(to) = of_strategy(state, Strategy::BlueGreen) else { return };
                let switched =
                    state.traffic.iter().any(|s| s.replica.release == to && s.weight > 0);
                let old = state
                    .replicas
                    .iter()
                    .find(|(key, r)| key.release != to && r.phase == Phase::Ready);
                if let Some((key, _)) = old.filter(|_| switched)
                    && let Some(id) = state.replica_id(key.release, key.replica)
                {
                    stop(state, actions, id);
                }
            }
            Self::RecreateBeside => {
                let Some(to) = of_strategy(state, Strategy::Recreate) else { return };
                let Some(release) = state.releases.get(&to) else { return };
                let pending = state.replicas.iter().filter(|(key, r)| {
                    key.release == to && matches!(r.phase, Phase::Pending { .. })
                });
                for (key, _) in pending {
                    let Some(id) = state.replica_id(to, key.replica) else { continue };
                    let Some(plan) = release.replica(id.replica) else { continue };
                    let ranks = release.rank_ids(id.replica, id.attempt).into_iter();
                    for (rank, plan) in ranks.zip(&plan.ranks) {
                        actions.push(Action::StartRank { rank, plan: Box::new(plan.clone()) });
                    }
                }
            }
            Self::ForgetDrain => {
                let draining: Vec<_> = actions
                    .iter()
                    .filter_map(|a| match a {
                        Action::AwaitDrained { replica } => Some(*replica),
                        _ => None,
                    })
                    .collect();
                for id in draining {
                    stop(state, actions, id);
                }
            }
            Self::ReplaceWithoutDrain => {
                let Some(rollout) = &state.rollout else { return };
                let replaced = matches!(&rollout.direction,
                    Direction::Back { why, .. } if why.starts_with("replaced"));
                if !replaced || rollout.progress != state.now {
                    return;
                }
                let ready = state
                    .replicas
                    .iter()
                    .filter(|(key, r)| key.release == rollout.to && r.phase == Phase::Ready);
                let ids: Vec<_> = ready
                    .filter_map(|(key, _)| state.replica_id(key.release, key.replica))
                    .collect();
                for id in ids {
                    stop(state, actions, id);
                }
            }
            Self::StopReady if rng.one_in(40) => {
                let ready = state.replicas.iter().find(|(_, r)| r.phase == Phase::Ready);
                if let Some(id) =
                    ready.and_then(|(key, _)| state.replica_id(key.release, key.replica))
                {
                    stop(state, actions, id);
                }
            }
            _ => {}
        }
    }
}

/// The release that is being rolled out with this strategy, if one is.
fn of_strategy(state: &ServiceState, strategy: Strategy) -> Option<ReleaseNumber> {
    let rollout = state.active_rollout().filter(|r| r.from.is_some())?;
    let forward = rollout.direction == Direction::Forward && rollout.kind == RolloutKind::Apply;
    let written = state.releases.get(&rollout.to)?.spec.rollout.strategy;
    (forward && written == Some(strategy)).then_some(rollout.to)
}

/// Stops the ranks of a replica, whatever it does.
fn stop(state: &ServiceState, actions: &mut Vec<Action>, id: deciding::base::ReplicaId) {
    let Some(release) = state.releases.get(&id.release) else { return };
    let Some(plan) = release.replica(id.replica) else { return };
    for (rank, plan) in release.rank_ids(id.replica, id.attempt).into_iter().zip(&plan.ranks) {
        let grace = release.spec.rollout.stop_grace;
        actions.push(Action::StopRank { rank, host: plan.host.clone(), grace, keep_log: false });
    }
}
