//! What a person does in mid-rollout: trying again what failed, skipping a gate, and asking for the
//! next rollout while one is under way.

use serde::{Deserialize, Serialize};

use super::analysis::{AnalysisRun, Window};
use super::event::EventKind;
use super::state::{Direction, Gate, Phase, ReplicaState, Rollout, RolloutKind, ServiceState};
use super::step::Decider;
use crate::base::{ReleaseNumber, ReplicaKey, Timestamp, text};
use crate::spec::{RolloutSpec, RunSpec, StepSpec, Strategy};

/// Longest reason that is kept, in characters.
const MAX_WHY: usize = 500;

/// Skipped gates that are remembered of one rollout.
const MAX_SKIPPED: usize = 100;

/// A gate that a person did not wait for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SkippedGate {
    /// The index of its step.
    pub step: usize,
    /// Which gate, in words.
    pub gate: String,
    /// Who.
    pub by: String,
    /// Why, in their words.
    pub reason: String,
    /// When.
    pub at: Timestamp,
}

/// A rollout that was asked for while another one was under way. It begins when that one has ended;
/// its plan is made then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueuedRollout {
    /// When it was asked for; names it, since no two of a service have the same.
    pub asked: Timestamp,
    /// What for.
    pub kind: RolloutKind,
    /// The release whose revision it shall be; none: the spec in the deck.
    pub to: Option<ReleaseNumber>,
    /// What the spec in the deck was when it was asked for: a digest of the file.
    pub digest: Option<String>,
    /// Who asked.
    pub by: String,
    /// Why, for the history.
    pub reason: Option<String>,
    /// OUTAGE was accepted.
    pub accept_outage: bool,
}

impl QueuedRollout {
    /// For people: `r7 again`, `the spec in the deck`.
    pub fn what(&self) -> String {
        match (self.kind, self.to) {
            (RolloutKind::Undo, Some(to)) => format!("back to {to}"),
            (_, Some(to)) => format!("{to} again"),
            (_, None) => "the spec in the deck".to_owned(),
        }
    }
}

/// A wish that would change nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Futile {
    /// Why it would not.
    pub why: String,
    /// What would.
    pub instead: String,
}

impl ServiceState {
    /// Why this wish of a person would change nothing in the rollout under way; none: it would.
    pub fn futile(&self, wish: &EventKind) -> Option<Futile> {
        let rollout = self.active_rollout()?;
        match wish {
            EventKind::Promoted { all, .. } => self.futile_promotion(rollout, *all),
            EventKind::Resumed { .. } if rollout.paused.is_none() => Some(Futile {
                why: format!("the rollout of {} is not paused", self.service),
                instead: self.what_holds(rollout),
            }),
            EventKind::Aborted { .. } => self.already_goes_back(rollout),
            _ => None,
        }
    }

    fn futile_promotion(&self, rollout: &Rollout, all: bool) -> Option<Futile> {
        if let Some(back) = self.already_goes_back(rollout) {
            return Some(back);
        }
        let (service, to) = (&self.service, rollout.to);
        if let Some(Gate::Failed { why }) = &rollout.gate {
            let why = format!("the rollout of {service} to {to} has failed: {why}");
            return Some(Futile { why, instead: self.what_holds(rollout) });
        }
        if rollout.paused.is_some() {
            return None;
        }
        let switch = self.policy(rollout.to).map_or(0, RolloutSpec::switch_step);
        let held_by = match rollout.step {
            step if self.strategy(rollout) == Strategy::BlueGreen && step <= switch => {
                if step == switch {
                    "the switch of all traffic is under way"
                } else if step == 0 && !all {
                    "the second set is not whole yet"
                } else {
                    return None;
                }
            }
            step if step >= self.steps(rollout).len() => "the last replicas are on their way",
            _ => return None,
        };
        Some(Futile {
            why: format!("no gate holds the rollout of {service} to {to}: {held_by}"),
            instead: self.what_holds(rollout),
        })
    }

    fn already_goes_back(&self, rollout: &Rollout) -> Option<Futile> {
        matches!(rollout.direction, Direction::Back { .. }).then(|| Futile {
            why: format!("{} of {} is being taken back", rollout.to, self.service),
            instead: self.what_holds(rollout),
        })
    }

    /// What brings the rollout on.
    fn what_holds(&self, rollout: &Rollout) -> String {
        let service = &self.service;
        let command = |verb: &str| format!("`gpudeck rollout {verb} {service}`");
        match (&rollout.gate, &rollout.direction) {
            _ if rollout.paused.is_some() => format!("{} ends the pause", command("resume")),
            (Some(Gate::Failed { .. }), _) => {
                format!("{} tries again, {} takes it back", command("retry"), command("abort"))
            }
            (Some(_), Direction::Forward) => format!("{} passes its gate", command("promote")),
            _ => format!("wait for its end: {}", command("status --wait")),
        }
    }

    /// The command of the present step.
    pub(super) fn present_command(&self) -> Option<RunSpec> {
        let rollout = self.active_rollout()?;
        match self.steps(rollout).get(rollout.step) {
            Some(StepSpec::Run(run)) => Some(run.clone()),
            _ => None,
        }
    }

    /// The gate that could be skipped now, in words.
    pub fn skippable(&self) -> Option<String> {
        let rollout = self.active_rollout().filter(|r| r.direction == Direction::Forward)?;
        Some(match rollout.gate.as_ref()? {
            Gate::Bake { .. } => "bake".to_owned(),
            Gate::Analyse { name, .. } => format!("analyse {name}"),
            Gate::Inconclusive { .. } => "an inconclusive analysis".to_owned(),
            Gate::Approve => "approve".to_owned(),
            Gate::Run { command, .. } => format!("run {command}"),
            Gate::Failed { .. } => return None,
        })
    }

    /// Whether something failed, or could not be judged, that can be tried again within the rollout.
    pub fn retryable(&self) -> bool {
        self.active_rollout().is_some_and(|r| {
            r.direction == Direction::Forward
                && matches!(r.gate, Some(Gate::Failed { .. } | Gate::Inconclusive { .. }))
        })
    }

    /// The queued rollout whose turn it is.
    pub fn queued_due(&self) -> Option<&QueuedRollout> {
        let waits = self.active_rollout().is_some() || self.stopping || self.is_held();
        self.queued.as_ref().filter(|_| !waits)
    }
}

impl Decider<'_> {
    /// Tries again what failed: the step's command, its analysis, the replicas that failed.
    pub(super) fn retry(&mut self) {
        if !self.state.retryable() {
            return;
        }
        self.resume();
        let now = self.now();
        let run = self.state.present_command();
        let Some(rollout) = self.state.rollout.as_mut() else { return };
        rollout.gate = None;
        rollout.step_since = now;
        rollout.progress = now;
        rollout.measured_new = Window::default();
        rollout.measured_old = Window::default();
        rollout.analysis = AnalysisRun::default();
        let (to, attempt) = (rollout.to, rollout.run.as_ref().map(|r| r.attempt.next()));
        self.moved = true;
        if let (Some(run), Some(attempt)) = (run, attempt) {
            self.begin_run(&run, attempt);
        }
        // What still stops is started again by itself once it is gone.
        let failed: Vec<ReplicaKey> = self
            .state
            .of(to)
            .filter(|(_, r)| matches!(r.phase, Phase::Failed { .. }))
            .map(|(key, _)| *key)
            .collect();
        for key in failed {
            if let Some(replica) = self.state.replicas.get_mut(&key) {
                **replica = ReplicaState {
                    failures: replica.failures,
                    trouble: replica.trouble.take(),
                    ..ReplicaState::pending(replica.attempt.next(), now, now)
                };
            }
        }
    }

    /// Does not wait for the present gate.
    pub(super) fn skip(&mut self, by: &str, reason: &str) {
        let reason = text::clean(reason.trim(), MAX_WHY);
        let Some(gate) = self.state.skippable().filter(|_| !reason.is_empty()) else { return };
        self.resume();
        let now = self.now();
        let Some(rollout) = self.state.rollout.as_mut() else { return };
        let step = rollout.step;
        if rollout.skipped.len() < MAX_SKIPPED {
            let by = text::clean(by, 100);
            rollout.skipped.push(SkippedGate { step, gate, by, reason, at: now });
        }
        self.go_to_step(step + 1);
    }

    /// The next rollout waits for the end of this one; the latest wish counts. With `replace` this one
    /// is taken back first, which is its end.
    pub(super) fn queue(&mut self, wish: &QueuedRollout, replace: bool) {
        let Some(rollout) = self.state.active_rollout() else { return };
        if self.state.stopping {
            return;
        }
        let forward = rollout.direction == Direction::Forward;
        let last = self.state.queued.as_ref().map_or(Timestamp(0), |q| q.asked);
        let by = text::clean(&wish.by, 100);
        let why = format!("replaced by a newer rollout of {by} ({})", wish.what());
        self.state.queue_trouble = None;
        self.state.queued = Some(QueuedRollout {
            asked: self.now().max(last.plus(std::time::Duration::from_millis(1))),
            by,
            reason: wish.reason.as_deref().map(|r| text::clean(r, MAX_WHY)),
            ..wish.clone()
        });
        self.moved = true;
        if replace && forward {
            self.turn_back(&why, true);
        }
    }

    /// The queued rollout does not begin: it was cancelled, or it is refused.
    pub(super) fn unqueue(&mut self, asked: Timestamp, trouble: Option<&str>) {
        if self.state.queued.as_ref().is_none_or(|q| q.asked != asked) {
            return;
        }
        self.state.queued = None;
        self.state.queue_trouble = trouble.map(|why| text::clean(why, MAX_WHY));
        self.moved = true;
    }
}
