//! Bugs that are planted in the controller or an agent, to see that the simulation has teeth: each
//! must be caught within 500 seeds.
//!
//! They are planted at the joints (the journal, the events that go into the decider, the actions
//! that come out, what an agent accepts), so the program itself holds no switch for them.

mod caught;
mod spoil;

use deciding::rollout::{EventKind, RunEnd, ServiceState};
use deciding::spec::Count;

use crate::build::Rng;

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
    /// What is told of an older attempt is taken for news of the present one.
    MistakeAttempt,
    /// A replica is started on the place of its neighbour.
    WrongPlace,
    /// An agent carries out what a controller with an older epoch asks.
    AcceptOldEpoch,
    /// A host grants whoever takes it over the epoch that the one before still has.
    ReuseEpoch,
    /// An agent starts a rank while the memory of the one before it is not free.
    NoMemoryGate,
    /// A stop that failed once is not tried again.
    ForgetStop,
    /// The end of a rank is not noticed.
    MissEnd,
    /// All weights are zero for a moment.
    EmptyTable,
    /// A table is not told to the gateway.
    ForgetTraffic,
    /// The gateway is not told again after it restarted without its table.
    ForgetRestart,
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
    /// A release that changes only the number of replicas replaces all that run.
    ReplaceWhatRunsOn,
}

/// All of them.
pub const BUGS: [Bug; 36] = [
    Bug::SkipFsync,
    Bug::ReplayTwice,
    Bug::ForgetOutstanding,
    Bug::TrafficBeforeReady,
    Bug::BelieveHealth,
    Bug::ForgetDrain,
    Bug::StopReady,
    Bug::IgnoreFloor,
    Bug::ReuseAttempt,
    Bug::MistakeAttempt,
    Bug::WrongPlace,
    Bug::AcceptOldEpoch,
    Bug::ReuseEpoch,
    Bug::NoMemoryGate,
    Bug::ForgetStop,
    Bug::MissEnd,
    Bug::EmptyTable,
    Bug::ForgetTraffic,
    Bug::ForgetRestart,
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
    Bug::ReplaceWhatRunsOn,
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
    pub fn alter(self, state: &ServiceState, event: &mut EventKind) {
        match (self, event) {
            (Self::IgnoreExitCode, EventKind::RunEnded { end: RunEnd::Exited { code }, .. }) => {
                *code = 0;
            }
            (Self::MistakeAttempt, EventKind::ReplicaReady { replica }) => {
                let present = state.key_of(*replica).or(Some(replica.key()));
                let present = present.and_then(|key| state.replicas.get(&key));
                replica.attempt = present.map_or(replica.attempt, |r| r.attempt);
            }
            (Self::IgnoreFloor, EventKind::RolloutRequested { release, .. }) => {
                match &mut release.spec.rollout.max_unavailable {
                    Count::Number(n) => *n += 1,
                    Count::Percent(percent) => *percent = (*percent + 50).min(100),
                }
            }
            (Self::ReplaceWhatRunsOn, EventKind::RolloutRequested { release, .. }) => {
                release.keeps.clear();
            }
            (Self::LateDeadlines, EventKind::RolloutRequested { release, .. }) => {
                let rollout = &mut release.spec.rollout;
                rollout.progress_deadline *= 4;
                rollout.healthy_deadline *= 4;
            }
            _ => {}
        }
    }
}
