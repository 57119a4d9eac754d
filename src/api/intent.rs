//! What a person (or a script) can ask for. One enum for every door.

use serde::{Deserialize, Serialize};

use super::secret::Secret;
use super::view::PlanView;
use crate::base::{HostName, RankId, ReleaseNumber, ServiceName, Timestamp};
use crate::rollout::group::GroupSteer;
use crate::rollout::maintenance::UpgradeSteer;
use crate::spec::ConcurrencyPolicy;

/// What is said of a rollout that is not as the person saw it who asked for something.
pub const ROLLOUT_CHANGED: &str = "the rollout is not the one that was seen any more";

/// A rollout under way, as a person saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeenRollout {
    /// The release it goes to.
    pub to: ReleaseNumber,
    /// The index of the step at which it was; none: any of them is meant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<usize>,
}

impl SeenRollout {
    /// Whether the rollout to `to` that is at `step` is this one.
    pub fn is(self, to: ReleaseNumber, step: usize) -> bool {
        self.to == to && self.step.is_none_or(|seen| seen == step)
    }
}

/// A wish. `POST /v1/intents`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "intent", rename_all = "snake_case")]
pub enum Intent {
    /// Commit the service's spec and roll it out.
    Apply {
        /// Which service.
        service: ServiceName,
        /// Why, for the history.
        reason: Option<String>,
        /// The person has read OUTAGE in the plan and wants it all the same.
        accept_outage: bool,
        /// What happens while another rollout is under way; none: what the spec says.
        #[serde(default)]
        concurrency: Option<ConcurrencyPolicy>,
        /// The plan that a person has agreed to ([`PlanView::digest`]): another one is not begun.
        #[serde(default)]
        agreed: Option<String>,
    },
    /// Commit the specs of several services and roll them out, one after the other, in the order of their
    /// `after`.
    ApplyTogether {
        /// Which services.
        services: Vec<ServiceName>,
        /// If one fails, those already rolled out are taken back, in reverse order.
        atomic: bool,
        /// Why, for the history.
        reason: Option<String>,
        /// The person has read OUTAGE in the plans and wants it all the same.
        accept_outage: bool,
        /// The plans that a person has agreed to ([`PlanView::digest_together`]): with others none of them is begun.
        #[serde(default)]
        agreed: Option<String>,
    },
    /// Hold, let go on or take back all of the services that are being rolled out together.
    SteerGroup {
        /// Which of it.
        what: GroupSteer,
        /// Why, for the history.
        reason: Option<String>,
    },
    /// Roll out an earlier revision again.
    Undo {
        /// Which service.
        service: ServiceName,
        /// The release whose revision it shall be; none: the one before the present one.
        to: Option<ReleaseNumber>,
        /// Why, for the history.
        reason: Option<String>,
        /// The person has read OUTAGE in the plan and wants it all the same.
        #[serde(default)]
        accept_outage: bool,
        /// The plan that a person has agreed to ([`PlanView::digest`]): another one is not begun.
        #[serde(default)]
        agreed: Option<String>,
        /// The rollout under way that the person has looked at: nothing is done to another one, nor where it has ended.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        seen: Option<SeenRollout>,
    },
    /// Try again what failed: in the rollout that is held, or, after it was taken back, by a new one
    /// of the same revision.
    Retry {
        /// Which service.
        service: ServiceName,
        /// The person has read OUTAGE in the plan and wants it all the same.
        #[serde(default)]
        accept_outage: bool,
        /// Why: for the audit trail and, where a new rollout begins, for Git.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
        /// The plan of the new rollout that a person has agreed to ([`PlanView::digest`]): another one is not begun. What
        /// is held goes on within its own.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        agreed: Option<String>,
        /// The rollout under way that the person has looked at: nothing is done to another one, nor where it has ended.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        seen: Option<SeenRollout>,
    },
    /// Do not wait for the gate that holds the rollout.
    Skip {
        /// Which service.
        service: ServiceName,
        /// Why; must not be empty.
        reason: String,
        /// The rollout under way that the person has looked at: nothing is done to another one, nor where it has ended.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        seen: Option<SeenRollout>,
    },
    /// Do not begin the rollout that is queued.
    CancelQueued {
        /// Which service.
        service: ServiceName,
        /// Why, for the audit trail.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// Hold the rollout.
    Pause {
        /// Which service.
        service: ServiceName,
        /// Why: for the events and the audit trail.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// Go on after a pause.
    Resume {
        /// Which service.
        service: ServiceName,
        /// Why: for the events and the audit trail.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// Pass the gate or step that holds the rollout.
    Promote {
        /// Which service.
        service: ServiceName,
        /// Skip everything that is left.
        all: bool,
        /// The index of the step that the person saw: another one is not passed. None: the present one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        step: Option<usize>,
        /// Why, for the history.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// Take the rollout back.
    Abort {
        /// Which service.
        service: ServiceName,
        /// Why, for the history.
        reason: Option<String>,
        /// The rollout under way that the person has looked at: nothing is done to another one, nor where it has ended.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        seen: Option<SeenRollout>,
    },
    /// Drain and stop all replicas.
    Stop {
        /// Which service.
        service: ServiceName,
        /// Why, for the audit trail.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// No new ranks on a host, or on one GPU of it; what runs there goes on.
    Cordon {
        /// The host.
        host: HostName,
        /// Only the GPU of this index.
        gpu: Option<u32>,
        /// Why.
        reason: Option<String>,
    },
    /// New ranks are welcome again; ends a drain.
    Uncordon {
        /// The host.
        host: HostName,
        /// Only the GPU of this index.
        gpu: Option<u32>,
        /// Why, for the audit trail.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// Cordon a host and move away what runs there, one replica of each service at a time.
    Drain {
        /// The host.
        host: HostName,
        /// Why.
        reason: Option<String>,
        /// The plan that a person has agreed to ([`super::DrainPlan::digest`]): another one is not begun.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        agreed: Option<String>,
    },
    /// Move one replica of the served release to other GPUs, by the rules of placement.
    Move {
        /// Which service.
        service: ServiceName,
        /// The replica's number in its release.
        replica: u32,
        /// The host it goes to.
        host: HostName,
        /// Indices of the GPUs there.
        gpus: Vec<u32>,
        /// Why.
        reason: Option<String>,
    },
    /// Host after host: drain it, run a command there, wait until it is back whole, uncordon it.
    UpgradeHosts {
        /// The command, for `sh -c`.
        command: String,
        /// Which hosts, in order; none: all.
        hosts: Vec<HostName>,
        /// So many at a time.
        max_parallel: u32,
        /// Longest the command may run, milliseconds.
        timeout_ms: u64,
        /// Longest a host may be away, milliseconds.
        return_ms: u64,
        /// Why, for the audit trail.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
        /// The plan that a person has agreed to ([`super::UpgradePlan::digest`]): another one is not begun.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        agreed: Option<String>,
    },
    /// End a rank that runs on a host and that no release wants: `drift` shows it.
    EndRank {
        /// On which host.
        host: HostName,
        /// Which.
        rank: RankId,
        /// Why, for the audit trail.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// Hold the upgrade of hosts, let it go on, try a host again, leave one out, or stop it.
    SteerUpgrade {
        /// Which of it.
        #[serde(flatten)]
        what: UpgradeSteer,
        /// Why, for the audit trail; must not be empty where a host is left out.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// Answer a question.
    Answer {
        /// The question's id.
        question: u64,
        /// `yes`, `no`, or the text asked for. Never logged, never journaled.
        answer: Secret,
    },
    /// Try now to reach a host that is away, instead of when its time has come.
    Reconnect {
        /// Which.
        host: HostName,
    },
    /// Take the deck's hosts over from another controller and go on from what it left there.
    TakeOver {
        /// Also from one whose lease has not ended, and although hosts are not reached.
        force: bool,
        /// Why, for the audit trail.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// Read deck.toml and the specs again.
    Reload,
    /// Come to the end of a step, write everything down and end, for another build to go on.
    HandOver,
    /// End the controller; what serves goes on serving.
    Shutdown,
}

impl Intent {
    /// Whether it changes hosts or several services at once.
    pub const fn maintains(&self) -> bool {
        matches!(
            self,
            Self::ApplyTogether { .. }
                | Self::SteerGroup { .. }
                | Self::Cordon { .. }
                | Self::Uncordon { .. }
                | Self::Drain { .. }
                | Self::Move { .. }
                | Self::UpgradeHosts { .. }
                | Self::EndRank { .. }
                | Self::SteerUpgrade { .. }
        )
    }

    /// The service it is about.
    pub fn service(&self) -> Option<&ServiceName> {
        match self {
            Self::Apply { service, .. }
            | Self::Undo { service, .. }
            | Self::Retry { service, .. }
            | Self::Skip { service, .. }
            | Self::CancelQueued { service, .. }
            | Self::Pause { service, .. }
            | Self::Resume { service, .. }
            | Self::Promote { service, .. }
            | Self::Abort { service, .. }
            | Self::Stop { service, .. }
            | Self::Move { service, .. } => Some(service),
            Self::ApplyTogether { .. }
            | Self::SteerGroup { .. }
            | Self::Cordon { .. }
            | Self::Uncordon { .. }
            | Self::Drain { .. }
            | Self::UpgradeHosts { .. }
            | Self::EndRank { .. }
            | Self::SteerUpgrade { .. }
            | Self::Answer { .. }
            | Self::Reconnect { .. }
            | Self::TakeOver { .. }
            | Self::HandOver
            | Self::Reload
            | Self::Shutdown => None,
        }
    }

    /// Whether it touches what serves, so that a person is asked to confirm it by name.
    pub fn is_dangerous(&self) -> bool {
        matches!(
            self,
            Self::Apply { .. }
                | Self::Undo { .. }
                | Self::Retry { .. }
                | Self::Skip { .. }
                | Self::Abort { .. }
                | Self::Stop { .. }
                | Self::Promote { .. }
                | Self::ApplyTogether { .. }
                | Self::SteerGroup { what: GroupSteer::Abort, .. }
                | Self::Drain { .. }
                | Self::Move { .. }
                | Self::UpgradeHosts { .. }
                | Self::SteerUpgrade {
                    what: UpgradeSteer::Retry { .. } | UpgradeSteer::Skip { .. },
                    ..
                }
                | Self::EndRank { .. }
        )
    }
}

/// What came of a wish that was accepted. What follows from it is seen in the snapshot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "snake_case")]
pub enum IntentReply {
    /// A rollout to this release has begun.
    RolloutBegun {
        /// The new release.
        release: ReleaseNumber,
        /// What will happen.
        plan: Box<PlanView>,
    },
    /// The release that is served is just this; nothing to do.
    NothingToDo,
    /// It begins when the rollout under way has ended.
    Queued {
        /// The release of that rollout.
        behind: ReleaseNumber,
        /// That rollout is being taken back for it.
        replaces: bool,
        /// When it was asked for, which names it among the queued ones of its service.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        asked: Option<Timestamp>,
    },
    /// The step that was to be promoted is passed already: nothing was done.
    AlreadyPassed {
        /// Its number, from 1.
        step: usize,
    },
    /// The hosts were taken over by force, but for those that were not reached.
    TakenOver {
        /// They count as held, and are taken over when they are back.
        left_out: Vec<HostName>,
    },
    /// The host or GPU is cordoned, but plans under way still start something there.
    CordonedBut {
        /// What, one line a service: `chat: the rollout to r32 starts 2 replicas`.
        comes: Vec<String>,
    },
    /// It is done or under way.
    Accepted,
}
