//! Everything that is known and intended of one service. Serialised as it is into the journal's
//! checkpoints and, compactly, onto the hosts.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::analysis::{AnalysisRun, Verdict, Window};
use super::by_hand::{QueuedRollout, SkippedGate, Stop};
use super::neighbours::Neighbours;
use super::release::Release;
use super::run_step::StepRun;
use super::shared::Shared;
use crate::base::{
    Attempt, ReleaseNumber, ReplicaId, ReplicaKey, ServiceName, Timestamp, TrafficMode,
    TrafficServer,
};

/// One service. Ordered maps only: a seed must replay exactly.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServiceState {
    /// Its name.
    pub service: ServiceName,
    /// The releases that have replicas or that the rollout is between, by number.
    pub releases: BTreeMap<ReleaseNumber, Shared<Release>>,
    /// The release that is served when no rollout is under way.
    pub stable: Option<ReleaseNumber>,
    /// Every replica that lives or is meant to live, by release and index.
    pub replicas: BTreeMap<ReplicaKey, Shared<ReplicaState>>,
    /// The rollout under way, or the last one.
    pub rollout: Option<Rollout>,
    /// The service is being ended: everything is drained and stopped.
    pub stopping: bool,
    /// Who stopped it last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped: Option<Stop>,
    /// The traffic table that should be at the gateway: counts up with each change.
    pub traffic_version: u64,
    /// The traffic table that is at the gateway.
    pub traffic_applied: u64,
    /// The table of version `traffic_version`.
    #[serde(default)]
    pub traffic: Shared<Vec<TrafficServer>>,
    /// The replicas that got requests by the last table that the gateway took while it was the newest.
    #[serde(default)]
    pub traffic_reached: Shared<BTreeSet<ReplicaId>>,
    /// The gateway refused the table: why, for people.
    #[serde(default)]
    pub traffic_trouble: Option<String>,
    /// What refused the table has no such backend (any more): nothing is sent through it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub lacks_backend: bool,
    /// The gateway is told the table again at this moment.
    #[serde(default)]
    pub traffic_retry: Option<Timestamp>,
    /// The newest attempt that was ever begun of each replica, gone ones included: no start is
    /// ever given the name of an earlier one.
    #[serde(default)]
    pub attempts: BTreeMap<ReplicaKey, Attempt>,
    /// To whom what was started under a name belongs, where another release has taken it over.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub taken_over: BTreeMap<ReplicaKey, ReplicaKey>,
    /// The rollout that begins when the present one has ended.
    #[serde(default)]
    pub queued: Option<QueuedRollout>,
    /// Why the last queued one did not begin.
    #[serde(default)]
    pub queue_trouble: Option<String>,
    /// Replicas that are to be moved, the first one in work.
    #[serde(default)]
    pub moves: Vec<super::moves::ReplicaMove>,
    /// Replicas whose place was given up for good: moved away, or successors that failed.
    #[serde(default)]
    pub vacated: BTreeSet<ReplicaKey>,
    /// Replicas that are lent to rollouts of other services; they are `vacated`, too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub loans: Vec<super::lending::Loan>,
    /// What the rollout to this release borrows is free of its lender.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub borrowed: Option<ReleaseNumber>,
    /// Why the last moves were given up.
    #[serde(default)]
    pub move_trouble: Option<String>,
    /// Hosts of it cannot be acted on just now: nothing is taken out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<super::hold::Hold>,
    /// The time of the newest event.
    pub now: Timestamp,
    /// What was found for `releases` already.
    #[serde(skip)]
    pub(super) neighbours: Neighbours,
}

/// One replica, in its current start.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReplicaState {
    /// Which start this is.
    pub attempt: Attempt,
    /// The name of another release under which this start was begun, which was taken over from there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runs_as: Option<ReplicaKey>,
    /// How far it has come.
    pub phase: Phase,
    /// Since when it is in that phase.
    pub since: Timestamp,
    /// Starts that failed in a row; sets the pause before the next one.
    pub failures: u32,
    /// Ranks (of the gang) that are known to run: the size of `running`.
    pub running_ranks: u32,
    /// The last thing that went wrong, for people.
    pub trouble: Option<String>,
    /// Of what the last start failed that counts as one in a row: kept when a later one is ready, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<String>,
    /// The ranks that are known to run.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub running: BTreeSet<u32>,
    /// The ranks that are known to have ended in this attempt.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub ended: BTreeSet<u32>,
    /// It is on its way out: once stopped it is not started again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub retiring: bool,
    /// When its ranks were last told to start: the healthy deadline counts from here, so that
    /// waiting for memory does not count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<Timestamp>,
    /// When a host first refused this attempt for now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting_since: Option<Timestamp>,
    /// How far the drain has come, while it drains.
    #[serde(default, skip_serializing_if = "Drain::is_none")]
    pub drain: Drain,
    /// It was ready before in this attempt: a token is awaited that shows that it still serves.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub proved: bool,
    /// What its engine last answered instead of the token that is awaited, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_token: Option<String>,
}

/// How far the drain of one replica has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    /// The first traffic table that takes new requests from it; 0: not yet in a table.
    pub version: u64,
    /// That table is at the gateway, and the requests in flight are being watched.
    pub watched: bool,
    /// No request is in flight any more.
    pub done: bool,
}

impl Drain {
    /// It does not drain.
    fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// How far a replica has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// To be started once its devices are free of replicas of ours and the pause after a failure
    /// is over.
    Pending {
        /// Not before this moment.
        not_before: Timestamp,
    },
    /// Its ranks were told to start.
    Starting,
    /// A host refused for now (memory not yet free, host not reached); it is asked again.
    Waiting {
        /// What it waits for, for people.
        why: String,
        /// Asked again at this moment.
        retry_at: Timestamp,
        /// When waiting began: the healthy deadline counts from the first start.
        began: Timestamp,
    },
    /// All ranks run; no token has been generated yet.
    Loading,
    /// It generated a token.
    Ready,
    /// It gets no new requests; those in flight are waited for.
    Draining {
        /// Not longer than this.
        deadline: Timestamp,
    },
    /// Its ranks were told to stop.
    Stopping,
    /// All its ranks are gone; the entry goes with the next step.
    Stopped,
    /// It failed and is not started again.
    Failed {
        /// Why, for people.
        cause: String,
    },
}

/// The journey from `from` to `to`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rollout {
    /// The release served when it began; none on a first deployment.
    pub from: Option<ReleaseNumber>,
    /// The release to be served.
    pub to: ReleaseNumber,
    /// How its analyses look at limits.
    #[serde(default)]
    pub limits: super::analysis::LimitRule,
    /// What it is for.
    pub kind: RolloutKind,
    /// Onwards or back.
    pub direction: Direction,
    /// Index into the spec's steps; `steps.len()` means the last stretch, to all replicas.
    pub step: usize,
    /// When the current step began.
    pub step_since: Timestamp,
    /// Capacity and weight of the current step were reached at this moment.
    pub step_settled: Option<Timestamp>,
    /// The gate that holds it, for people.
    pub gate: Option<Gate>,
    /// Paused by a person, since then.
    pub paused: Option<Timestamp>,
    /// By whom.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused_by: Option<String>,
    /// Why, in their words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused_why: Option<String>,
    /// When it began.
    pub began: Timestamp,
    /// When something last went forward: the progress clock.
    pub progress: Timestamp,
    /// Who began it: a Unix user.
    pub by: String,
    /// When the rollout of several services began that it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of_group: Option<Timestamp>,
    /// The analysis under way: what was measured of the new and of the old release.
    pub measured_new: Window,
    /// See `measured_new`.
    pub measured_old: Window,
    /// The rest of the analysis under way: engines, GPUs, golden prompts, queries.
    #[serde(default)]
    pub analysis: AnalysisRun,
    /// The command of the present step, if it is a `run` step.
    #[serde(default)]
    pub run: Option<StepRun>,
    /// The gates that a person skipped.
    #[serde(default)]
    pub skipped: Vec<SkippedGate>,
    /// The verdict of the last analysis or command.
    pub verdict: Option<Verdict>,
    /// It is over.
    pub outcome: Option<Outcome>,
    /// When it was over.
    pub ended: Option<Timestamp>,
}

/// What a rollout is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RolloutKind {
    /// A new revision, through all steps.
    Apply,
    /// Back to an earlier revision that was stable: no canary steps, replica by replica.
    Undo,
}

impl RolloutKind {
    /// How one goes back to a release whose rollout ended so. Only what was stable before is known to be good;
    /// anything else is rolled out through its steps, as if it were new.
    pub fn of_undo(outcome: Option<&Outcome>) -> Self {
        match outcome {
            Some(Outcome::Completed) => Self::Undo,
            _ => Self::Apply,
        }
    }
}

/// Onwards or back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// To the new release.
    Forward,
    /// Back to the release before.
    Back {
        /// Why: the number that decided, or who asked.
        why: String,
        /// A person asked (abort); otherwise it failed.
        asked: bool,
    },
}

/// What holds a rollout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gate {
    /// Time has to pass.
    Bake {
        /// Until then.
        until: Timestamp,
    },
    /// An analysis is measured.
    Analyse {
        /// Its name in the spec.
        name: String,
        /// A verdict is due then.
        until: Timestamp,
        /// Its time has not begun: the first request to the canary is waited for, and not longer than `until`.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        awaits_request: bool,
    },
    /// The analysis was inconclusive: a person decides (promote or abort).
    Inconclusive {
        /// What was missing.
        why: String,
    },
    /// A person approves (promote) or refuses (abort).
    Approve,
    /// A command of the user's runs.
    Run {
        /// The command, shortened.
        command: String,
        /// Which run of it.
        attempt: Attempt,
        /// Not longer than this.
        until: Timestamp,
    },
    /// It failed and the spec forbids automatic rollback: a person decides (retry or abort).
    Failed {
        /// What failed.
        why: String,
    },
}

/// How a rollout ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The new release is stable.
    Completed,
    /// Taken back by itself.
    RolledBack {
        /// The number or the event that decided.
        why: String,
    },
    /// Taken back because a person asked.
    Aborted {
        /// Who and why.
        why: String,
    },
    /// A first deployment that failed: there is nothing to go back to, what was started is stopped.
    Failed {
        /// The cause.
        why: String,
    },
}

impl Outcome {
    /// How it ended in a word or two, and why: who aborted it is told without that word once more.
    pub fn words(&self) -> (&'static str, &str) {
        match self {
            Self::Completed => ("completed", ""),
            Self::RolledBack { why } => ("rolled back", why),
            Self::Aborted { why } => ("aborted", why.strip_prefix("aborted ").unwrap_or(why)),
            Self::Failed { why } => ("failed", why),
        }
    }

    /// Both in a line: `rolled back: the canary failed`, `aborted by ada: too late`.
    pub fn text(&self) -> String {
        match self.words() {
            (word, "") => word.to_owned(),
            (word, why) if why.starts_with("by ") => format!("{word} {why}"),
            (word, why) => format!("{word}: {why}"),
        }
    }
}

/// A service in one word, for lists and exit codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Condition {
    /// Nothing of it runs.
    Stopped,
    /// All replicas of the stable release are ready.
    Serving,
    /// Some are, not all, and no rollout is under way.
    Degraded,
    /// None is.
    Down,
    /// A rollout goes forward.
    Rolling,
    /// A rollout waits: for a gate, a person, or hosts that can be acted on again.
    Held,
    /// A rollout goes back.
    RollingBack,
    /// A person stops it, and something of it runs yet.
    Stopping,
    /// Another controller holds its hosts: what it does is known there. The decider never says so.
    Elsewhere,
}

impl Condition {
    /// The same word everywhere.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Serving => "serving",
            Self::Degraded => "degraded",
            Self::Down => "DOWN",
            Self::Rolling => "rolling",
            Self::Held => "held",
            Self::RollingBack => "rolling back",
            Self::Stopping => "stopping",
            Self::Elsewhere => "elsewhere",
        }
    }
}

impl ReplicaState {
    /// A replica that waits to be started.
    pub fn pending(attempt: Attempt, now: Timestamp, not_before: Timestamp) -> Self {
        Self {
            attempt,
            runs_as: None,
            phase: Phase::Pending { not_before },
            since: now,
            failures: 0,
            running_ranks: 0,
            trouble: None,
            last_failure: None,
            running: BTreeSet::new(),
            ended: BTreeSet::new(),
            retiring: false,
            started: None,
            waiting_since: None,
            drain: Drain::default(),
            proved: false,
            no_token: None,
        }
    }
}

impl Phase {
    /// Whether processes of it may exist: it holds its devices.
    pub const fn is_live(&self) -> bool {
        !matches!(self, Self::Pending { .. } | Self::Stopped | Self::Failed { .. })
    }
}

impl Rollout {
    /// Moves the step's clock by a time that does not count.
    pub(super) fn shift_step(&mut self, by: Duration) {
        self.step_since = self.step_since.plus(by);
        self.step_settled = self.step_settled.map(|t| t.plus(by));
        self.analysis.began = self.analysis.began.map(|t| t.plus(by));
    }
}

impl ServiceState {
    /// A service nothing is known of.
    pub fn new(service: ServiceName) -> Self {
        Self {
            service,
            releases: BTreeMap::new(),
            stable: None,
            replicas: BTreeMap::new(),
            rollout: None,
            stopping: false,
            stopped: None,
            traffic_version: 0,
            traffic_applied: 0,
            traffic: Shared::default(),
            traffic_reached: Shared::default(),
            traffic_trouble: None,
            lacks_backend: false,
            traffic_retry: None,
            attempts: BTreeMap::new(),
            taken_over: BTreeMap::new(),
            queued: None,
            queue_trouble: None,
            moves: Vec::new(),
            vacated: BTreeSet::new(),
            loans: Vec::new(),
            borrowed: None,
            move_trouble: None,
            held: None,
            now: Timestamp(0),
            neighbours: Neighbours::default(),
        }
    }

    /// The analysis that is being measured, if one is: of the rollout under way, at its gate.
    pub fn analysing(&self) -> Option<(&Rollout, &str, crate::spec::AnalysisSpec)> {
        let rollout = self.active_rollout()?;
        let Some(Gate::Analyse { name, .. }) = &rollout.gate else { return None };
        let spec = self.releases.get(&rollout.to).and_then(|r| r.spec.analysis.get(name));
        Some((rollout, name, spec.cloned().unwrap_or_default()))
    }

    /// The rollout, if one is under way.
    pub fn active_rollout(&self) -> Option<&Rollout> {
        self.rollout.as_ref().filter(|r| r.outcome.is_none())
    }

    /// Ready replicas of one release.
    pub fn ready(&self, release: ReleaseNumber) -> u32 {
        self.count(|number, replica| number == release && replica.phase == Phase::Ready)
    }

    /// Ready replicas of all releases: the serving capacity.
    pub fn ready_total(&self) -> u32 {
        self.count(|_, replica| replica.phase == Phase::Ready)
    }

    /// Ready replicas that get requests by the traffic table as it is wanted. (Not those that only a
    /// canary's header or cookie reaches: they carry nothing of the others' traffic.)
    pub fn serving_total(&self) -> u32 {
        let serves = |s: &&TrafficServer| {
            let replica = self.replica_of(s.replica);
            let is_ready = replica.is_some_and(|r| r.phase == Phase::Ready);
            is_ready && s.mode == TrafficMode::Ready && s.weight > 0
        };
        u32::try_from(self.traffic.iter().filter(serves).count()).unwrap_or(u32::MAX)
    }

    fn count(&self, which: impl Fn(ReleaseNumber, &ReplicaState) -> bool) -> u32 {
        let n = self.replicas.iter().filter(|(key, r)| which(key.release, r)).count();
        u32::try_from(n).unwrap_or(u32::MAX)
    }

    /// The id of a replica's current start.
    pub fn replica_id(&self, release: ReleaseNumber, replica: u32) -> Option<ReplicaId> {
        let key = ReplicaKey { release, replica };
        self.replicas.get(&key).map(|r| r.id(key))
    }

    /// Share of the service's traffic that goes to this replica by weight, percent, rounded.
    pub fn weight_percent(&self, key: ReplicaKey) -> u32 {
        self.share_percent(|id| self.key_of(*id) == Some(key))
    }

    /// Share of the service's traffic that goes to this release by weight, percent, rounded.
    pub fn release_weight_percent(&self, release: ReleaseNumber) -> u32 {
        self.share_percent(|id| self.owner_of(*id) == release)
    }

    fn share_percent(&self, which: impl Fn(&ReplicaId) -> bool) -> u32 {
        let weight = |s: &TrafficServer| match s.mode {
            TrafficMode::Ready => u64::from(s.weight),
            TrafficMode::Drain => 0,
        };
        let all: u64 = self.traffic.iter().map(weight).sum();
        let part: u64 = self.traffic.iter().filter(|s| which(&s.replica)).map(weight).sum();
        u32::try_from((part * 100 + all / 2).checked_div(all).unwrap_or(0)).unwrap_or(100)
    }

    /// The service in one word.
    pub fn condition(&self) -> Condition {
        if self.stopping {
            return Condition::Stopping;
        }
        if let Some(rollout) = self.active_rollout() {
            if self.is_held() {
                return Condition::Held;
            }
            return match (&rollout.direction, &rollout.gate, rollout.paused) {
                (Direction::Back { .. }, _, _) => Condition::RollingBack,
                (Direction::Forward, _, Some(_))
                | (
                    Direction::Forward,
                    Some(Gate::Approve | Gate::Inconclusive { .. } | Gate::Failed { .. }),
                    _,
                ) => Condition::Held,
                (Direction::Forward, _, None) => Condition::Rolling,
            };
        }
        let Some(stable) = self.stable else { return Condition::Stopped };
        let wanted = self.wanted(stable).saturating_sub(self.lent(stable));
        match self.ready(stable) {
            n if n >= wanted => Condition::Serving,
            // Remains of a release that was taken back serve until stable can.
            _ if self.ready_total() > 0 => Condition::Degraded,
            _ => Condition::Down,
        }
    }
}
