//! What happened, or was asked, to one service.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::analysis::{LimitRule, Window};
use super::by_hand::QueuedRollout;
use super::checks::CheckResult;
use super::engine_samples::EngineSamples;
use super::hold::HoldCause;
use super::lending::Borrowing;
use super::moves::RequestedMove;
use super::release::Release;
use super::run_step::RunEnd;
use super::state::RolloutKind;
use crate::base::{
    Attempt, HostName, RankId, ReleaseNumber, ReplicaId, ReplicaKey, ServiceName, Timestamp,
};

/// An event with its time. The time never comes from a clock inside the decider.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// When, by the controller's clock.
    pub at: Timestamp,
    /// What.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// What happened or was asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum EventKind {
    /// Time has passed.
    Tick,

    // What people ask.
    /// Roll out this release.
    RolloutRequested {
        /// The release, already placed.
        release: Box<Release>,
        /// What for.
        kind: RolloutKind,
        /// Who.
        by: String,
        /// How its analyses look at limits.
        #[serde(default)]
        limits: LimitRule,
        /// When the rollout of several services began that this one belongs to.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        of_group: Option<Timestamp>,
    },
    /// Hold the rollout where it is.
    Paused {
        /// Who.
        by: String,
        /// Why, in their words.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// Go on after a pause.
    Resumed {
        /// Who.
        by: String,
        /// Why, in their words.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// Pass the gate that holds it, or go on to the next step.
    Promoted {
        /// Skip all remaining steps and gates.
        all: bool,
        /// Who.
        by: String,
        /// The step that they saw; none: whichever is the present one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        step: Option<usize>,
        /// Why, in their words.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// Try again what failed or could not be judged.
    Retried {
        /// Who.
        by: String,
        /// Why, in their words.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// Do not wait for the gate that holds it.
    Skipped {
        /// Who.
        by: String,
        /// Why, in their words.
        reason: String,
    },
    /// Roll this out when the present rollout has ended.
    Queued {
        /// What.
        wish: Box<QueuedRollout>,
        /// Take the present one back now.
        replace: bool,
    },
    /// Do not roll out what is queued.
    QueueCancelled {
        /// Which.
        asked: Timestamp,
        /// Who.
        by: String,
    },
    /// What was queued cannot begin, or there is nothing to do.
    QueueRefused {
        /// Which.
        asked: Timestamp,
        /// Why.
        why: String,
    },
    /// Take it back.
    Aborted {
        /// Who.
        by: String,
        /// Why, in their words.
        reason: Option<String>,
    },
    /// Drain and stop everything of this service.
    StopRequested {
        /// Who.
        by: String,
        /// Why, in their words.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },

    /// Move these replicas of the stable release to other devices.
    MovesRequested {
        /// The release.
        release: ReleaseNumber,
        /// Which, and where to.
        moves: Vec<RequestedMove>,
        /// Who.
        by: String,
        /// What for: `node1 is being drained`.
        why: String,
    },
    /// Hosts of the service cannot be acted on: take nothing out until [`EventKind::HoldEnded`].
    HoldBegan {
        /// Which hosts.
        hosts: BTreeSet<HostName>,
        /// Why, for people.
        why: String,
        /// What for.
        #[serde(default, skip_serializing_if = "HoldCause::is_away")]
        cause: HoldCause,
    },
    /// They can be acted on again.
    HoldEnded,

    /// Do not move what was not moved yet.
    MovesCancelled {
        /// Who.
        by: String,
    },

    // What becomes of a `run` step's command.
    /// It has ended.
    RunEnded {
        /// Of the rollout to this release.
        release: ReleaseNumber,
        /// At this step.
        step: usize,
        /// Which run of it.
        attempt: Attempt,
        /// How.
        end: RunEnd,
        /// The last lines of its output.
        output: Vec<String>,
    },
    /// Whoever ran it is gone, and how it ended is not known.
    RunLost {
        /// Of the rollout to this release.
        release: ReleaseNumber,
        /// At this step.
        step: usize,
        /// Which run of it.
        attempt: Attempt,
    },

    // What follows from a rollout of another service that borrows from this one, and the reverse.
    /// Replicas of this service stop for the time of another's rollout.
    Lent {
        /// Whose.
        borrower: ServiceName,
        /// To which release of it.
        to: ReleaseNumber,
        /// Which replicas, and where they come back.
        what: Box<Borrowing>,
    },
    /// Replicas stop while their host is maintained: there is no other place for them.
    TakenOut {
        /// Of which release.
        release: ReleaseNumber,
        /// Their indexes.
        replicas: Vec<u32>,
        /// Which host.
        host: HostName,
    },
    /// A replica that was lent or taken out comes back.
    LentReturned {
        /// Which.
        replica: ReplicaKey,
        /// To the place that the plan found for it; its own is another's now.
        elsewhere: bool,
    },
    /// The devices that this service's rollout borrows are free of their lender.
    LoanReady {
        /// The release that is rolled out.
        release: ReleaseNumber,
    },

    // What the runtime reports.
    /// A rank runs (a report or the answer to a start).
    RankRunning {
        /// Which.
        rank: RankId,
    },
    /// A start was refused; nothing was started.
    RankRefused {
        /// Which.
        rank: RankId,
        /// Whether asking again can help.
        refusal: StartRefusal,
    },
    /// A rank has ended (by itself, by us, or with its host).
    RankEnded {
        /// Which.
        rank: RankId,
        /// How, for people: `exit code 1: …last lines…`.
        how: String,
    },
    /// The replica generated a token.
    ReplicaReady {
        /// Which.
        replica: ReplicaId,
    },
    /// The replica is asked for a token and gives none: what it answers instead.
    NoTokenYet {
        /// Which.
        replica: ReplicaId,
        /// The answer, for people: `HTTP 401: …`.
        why: String,
    },
    /// The replica that was ready does not answer any more; nothing is known of its ranks' end.
    ReplicaUnready {
        /// Which.
        replica: ReplicaId,
        /// What was seen, for people.
        why: String,
    },

    // What the gateway reports.
    /// The traffic table of this version is at every gateway of the service.
    TrafficApplied {
        /// Which version.
        version: u64,
    },
    /// The gateway could not be changed; it is tried again.
    TrafficFailed {
        /// Which version.
        version: u64,
        /// Why, for people.
        why: String,
        /// Each gateway that did not take it says that it has no such backend: nothing is sent through it.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        lacks_backend: bool,
    },
    /// No request is in flight at this draining replica.
    Drained {
        /// Which.
        replica: ReplicaId,
    },
    /// What each replica did since the last measurement.
    Measured {
        /// Increments, by replica.
        windows: BTreeMap<ReplicaId, Window>,
    },
    /// The requests that reach the canary cannot be counted at present: told once, until [`Self::Measured`] tells of
    /// the canary again. What came meanwhile is counted then.
    Unmeasured,
    /// What engines and GPUs said since the last measurement, while an analysis is under way.
    Sampled {
        /// Increments, by release.
        samples: BTreeMap<ReleaseNumber, EngineSamples>,
    },
    /// A golden prompt or a query of the analysis was measured.
    Checked {
        /// Of the rollout to this release.
        release: ReleaseNumber,
        /// At this step.
        step: usize,
        /// Which one, as the spec's order names it: `golden 1`, `prometheus 2`.
        check: String,
        /// What it said.
        result: CheckResult,
        /// The number or the answer, for people.
        why: String,
    },
}

/// Why a rank was not started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StartRefusal {
    /// Not yet: memory is not free, the host is not reached, another controller holds it.
    NotYet {
        /// For people.
        why: String,
    },
    /// Never: a missing file or image, a port in use, a command that cannot be run.
    Never {
        /// For people.
        why: String,
    },
}
