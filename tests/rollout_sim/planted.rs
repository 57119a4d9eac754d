//! Bugs that are planted in the controller or an agent, to see that the simulation has teeth: each
//! must be caught within 500 seeds.
//!
//! They are planted at the joints (the journal, the events that go into the decider, the actions
//! that come out, what an agent accepts), so the program itself holds no switch for them.

use std::time::Instant;

use deciding::base::{ReleaseNumber, TrafficMode};
use deciding::rollout::{
    Action, Direction, EventKind, Outcome, Phase, RolloutKind, RunEnd, ServiceState,
};
use deciding::spec::Strategy;

use crate::build::Rng;
use crate::simulation::seed;

/// Seeds within which every bug must be caught.
const WITHIN: u64 = 500;

/// A mistake that somebody could make.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Bug {
    /// Actions leave before the record of their event is on the disk.
    SkipFsync,
    /// After a restart the last records before the checkpoint are applied a second time.
    ReplayTwice,
    /// After a restart nothing that was awaited is asked for again.
    ForgetOutstanding,
    /// The gateway is told of replicas that are still loading.
    TrafficBeforeReady,
    /// `/health` is taken for a token.
    BelieveHealth,
    /// A drained replica is stopped without waiting for the gateway.
    ForgetDrain,
    /// A ready replica is stopped, without any drain.
    StopReady,
    /// One more replica than the floor allows is drained.
    IgnoreFloor,
    /// What is started again has the number of the attempt before.
    ReuseAttempt,
    /// An agent carries out what a controller with an older epoch asks.
    AcceptOldEpoch,
    /// An agent starts a rank while the memory of the one before it is not free.
    NoMemoryGate,
    /// A stop that failed once is not tried again.
    ForgetStop,
    /// The end of a rank is not noticed.
    MissEnd,
    /// All weights are zero for a moment.
    EmptyTable,
    /// The gateway is not told again after it was away.
    ForgetTraffic,
    /// The outcome is not written down.
    ForgetOutcome,
    /// A rollout that was taken back is recorded as completed after all.
    LieAboutOutcome,
    /// Time does not pass: no deadline is ever reached.
    StopTheClock,
    /// A rollout has four times the time that its spec gives it.
    LateDeadlines,
    /// The canary keeps its traffic though stable carries the floor again.
    KeepCanaryTraffic,
    /// Blue-green switches the traffic to what is ready of the second set.
    SwitchEarly,
    /// Blue-green takes the old set out at the switch: going back is not instant any more.
    DropOldSet,
    /// Recreate starts the new replicas while the old ones drain.
    RecreateBeside,
    /// A borrowed gang is never given back.
    ForgetReturn,
    /// A borrowed gang is given back while the rollout still needs its place.
    ReturnEarly,
    /// The rollout starts on borrowed GPUs before the lender is gone from them.
    StartOnBorrowed,
    /// Whatever a command's exit code is, it is taken for 0.
    IgnoreExitCode,
    /// A command that was lost with its controller is run again under the same attempt.
    RunAgainUnderItsName,
    /// What was queued is forgotten when the controller dies.
    LoseQueued,
    /// A rollout that is replaced has its ready replicas stopped at once.
    ReplaceWithoutDrain,
    /// The time in which there was no controller counts for deadlines.
    CountTheAbsence,
}

/// All of them.
pub const BUGS: [Bug; 31] = [
    Bug::SkipFsync,
    Bug::ReplayTwice,
    Bug::ForgetOutstanding,
    Bug::TrafficBeforeReady,
    Bug::BelieveHealth,
    Bug::ForgetDrain,
    Bug::StopReady,
    Bug::IgnoreFloor,
    Bug::ReuseAttempt,
    Bug::AcceptOldEpoch,
    Bug::NoMemoryGate,
    Bug::ForgetStop,
    Bug::MissEnd,
    Bug::EmptyTable,
    Bug::ForgetTraffic,
    Bug::ForgetOutcome,
    Bug::LieAboutOutcome,
    Bug::StopTheClock,
    Bug::LateDeadlines,
    Bug::KeepCanaryTraffic,
    Bug::SwitchEarly,
    Bug::DropOldSet,
    Bug::RecreateBeside,
    Bug::ForgetReturn,
    Bug::ReturnEarly,
    Bug::StartOnBorrowed,
    Bug::IgnoreExitCode,
    Bug::RunAgainUnderItsName,
    Bug::LoseQueued,
    Bug::ReplaceWithoutDrain,
    Bug::CountTheAbsence,
];

impl Bug {
    /// Planted between two services of which one borrows from the other.
    pub fn is_of_lending(self) -> bool {
        matches!(self, Self::ForgetReturn | Self::ReturnEarly | Self::StartOnBorrowed)
    }

    /// Whether an event never reaches the decider.
    pub fn swallows(self, event: &EventKind, rng: &mut Rng) -> bool {
        match (self, event) {
            (Self::MissEnd, EventKind::RankEnded { how, .. }) => how != "stopped" && rng.one_in(2),
            _ => false,
        }
    }

    /// What reaches the decider instead.
    pub fn alter(self, event: &mut EventKind) {
        match (self, event) {
            (Self::IgnoreExitCode, EventKind::RunEnded { end: RunEnd::Exited { code }, .. }) => {
                *code = 0;
            }
            (Self::LateDeadlines, EventKind::RolloutRequested { release, .. }) => {
                let rollout = &mut release.spec.rollout;
                rollout.progress_deadline *= 4;
                rollout.healthy_deadline *= 4;
            }
            _ => {}
        }
    }

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
        actions.push(Action::StopRank { rank, host: plan.host.clone(), grace });
    }
}

#[test]
fn planted_bugs_are_caught() {
    let mut missed = Vec::new();
    for bug in BUGS {
        let began = Instant::now();
        let caught = (0..WITHIN).find_map(|number| {
            let run = std::panic::catch_unwind(|| seed(number, false, Some(bug)));
            let why = run.err()?;
            let words = why
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| why.downcast_ref::<&str>().map(|s| (*s).to_owned()));
            Some((number, words.unwrap_or_default()))
        });
        match caught {
            Some((number, why)) => {
                let why: String =
                    why.lines().next().unwrap_or_default().chars().take(110).collect();
                println!("{bug:?}: seed {number}, {:.1?}: {why}", began.elapsed());
            }
            None => missed.push(bug),
        }
    }
    assert!(missed.is_empty(), "not caught within {WITHIN} seeds: {missed:?}");
}
