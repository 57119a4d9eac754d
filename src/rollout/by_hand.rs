//! What a person does in mid-rollout: trying again what failed, skipping a gate, and asking for the
//! next rollout while one is under way.

use serde::{Deserialize, Serialize};

use super::analysis::{AnalysisRun, Window};
use super::event::EventKind;
use super::state::{
    Direction, Gate, Outcome, Phase, ReplicaState, Rollout, RolloutKind, ServiceState,
};
use super::step::Decider;
use crate::base::{ReleaseNumber, ReplicaKey, Timestamp, text};
use crate::spec::{RolloutSpec, RunSpec, StepSpec, Strategy};

/// Longest reason that is kept, in characters.
const MAX_WHY: usize = 500;

/// Skipped gates that are remembered of one rollout.
const MAX_SKIPPED: usize = 100;

/// A gate or step that a person passed: skipped, or promoted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SkippedGate {
    /// The index of its step.
    pub step: usize,
    /// Which gate, in words.
    pub gate: String,
    /// Who.
    pub by: String,
    /// Why, in their words; a promotion needs none.
    pub reason: String,
    /// When.
    pub at: Timestamp,
    /// It was passed by a promotion: an approval, or on to the next step.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub promoted: bool,
}

/// That a person stopped a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    /// The release that was served, or was on its way.
    pub release: ReleaseNumber,
    /// When.
    pub at: Timestamp,
    /// Who.
    pub by: String,
    /// Why, in their words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl Stop {
    /// For people: `stopped by ada: too costly`.
    pub fn words(&self) -> String {
        let why = self.reason.as_deref().map(|why| format!(": {why}")).unwrap_or_default();
        format!("stopped by {}{why}", self.by)
    }
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

/// A step as it is remembered when a person passes it.
fn gate_words(step: &StepSpec) -> String {
    match step {
        StepSpec::Weight(weight) => format!("weight {weight} %"),
        StepSpec::Scale(scale) => format!("scale {scale}"),
        StepSpec::Bake(_) => "bake".to_owned(),
        StepSpec::Analyse(name) => format!("analyse {name}"),
        StepSpec::Approve(_) => "approve".to_owned(),
        StepSpec::Run(run) => format!("run {}", run.title()),
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
            EventKind::Promoted { all, step, .. } => self.futile_promotion(rollout, *all, *step),
            EventKind::Resumed { .. } if rollout.paused.is_none() => Some(Futile {
                why: format!("the rollout of {} is not paused", self.service),
                instead: self.what_holds(rollout),
            }),
            EventKind::Aborted { .. } => self.already_goes_back(rollout),
            // The way back is what keeps the service serving: nothing may hold it up.
            EventKind::Paused { .. } => {
                self.already_goes_back(rollout).or_else(|| self.already_held(rollout))
            }
            _ => None,
        }
    }

    fn futile_promotion(
        &self,
        rollout: &Rollout,
        all: bool,
        seen: Option<usize>,
    ) -> Option<Futile> {
        if let Some(back) = self.already_goes_back(rollout) {
            return Some(back);
        }
        if let Some(seen) = seen.filter(|_| self.is_other_step(rollout, all, seen)) {
            let (seen, present) = (seen + 1, rollout.step + 1);
            let how = if seen < present { "is already passed" } else { "has not come yet" };
            return Some(Futile {
                why: format!(
                    "step {seen} {how}: the rollout of {} is at step {present}",
                    self.service
                ),
                instead: self.what_holds(rollout),
            });
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

    /// The person meant another step than the present one: a key pressed twice, a screen of before. Who wants all
    /// that is left passed means what is left then, too.
    fn is_other_step(&self, rollout: &Rollout, all: bool, seen: Option<usize>) -> bool {
        let over = rollout.step >= self.steps(rollout).len();
        seen.is_some_and(|seen| seen > rollout.step || (seen < rollout.step && (!all || over)))
    }

    /// The step that was promoted is behind the rollout already: there is nothing left to do for who asks twice.
    pub fn already_passed(&self, seen: usize) -> bool {
        self.rollout.as_ref().is_some_and(|rollout| {
            let forward = rollout.direction == Direction::Forward;
            let goes_on = matches!(rollout.outcome, None | Some(Outcome::Completed));
            let steps = self.steps(rollout).len();
            forward && goes_on && seen < rollout.step.min(steps)
        })
    }

    /// Where a promotion leads; none: there is nothing to promote.
    fn promoted_to(&self, rollout: &Rollout, all: bool) -> Option<usize> {
        if rollout.direction != Direction::Forward
            || matches!(rollout.gate, Some(Gate::Failed { .. }))
        {
            return None;
        }
        let (step, steps) = (rollout.step, self.steps(rollout).len());
        let switch = self.policy(rollout.to).map_or(0, RolloutSpec::switch_step);
        if self.strategy(rollout) == Strategy::BlueGreen && step <= switch {
            // Nobody can wish the second set of blue-green whole: gates are passed, not its capacity.
            let next = if all { switch } else { step + 1 };
            return (step < switch && (all || step > 0)).then_some(next);
        }
        let next = if all { steps } else { step + 1 };
        (step < steps).then_some(next)
    }

    /// The steps from the present one to before `next`, in words.
    fn passed_on_the_way(&self, rollout: &Rollout, next: usize) -> Vec<(usize, String)> {
        let steps = self.steps(rollout);
        let present = rollout.step;
        let ahead = steps.iter().enumerate().take(next).skip(present);
        ahead
            .map(|(index, step)| {
                let gate = if index == present { self.skippable() } else { None };
                (index, gate.unwrap_or_else(|| gate_words(step)))
            })
            .collect()
    }

    fn already_goes_back(&self, rollout: &Rollout) -> Option<Futile> {
        matches!(rollout.direction, Direction::Back { .. }).then(|| Futile {
            why: format!("{} of {} is being taken back", rollout.to, self.service),
            instead: self.what_holds(rollout),
        })
    }

    /// It is paused already, or has failed and waits for a person as it is: a pause would only hide why.
    fn already_held(&self, rollout: &Rollout) -> Option<Futile> {
        let service = &self.service;
        let why = match &rollout.gate {
            _ if rollout.paused.is_some() => format!("the rollout of {service} is paused already"),
            Some(Gate::Failed { why }) => {
                format!("the rollout of {service} has failed and is held: {why}")
            }
            _ => return None,
        };
        Some(Futile { why, instead: self.what_holds(rollout) })
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
    /// Remembers who stopped the service; whoever asks again while it stops changes nothing.
    pub(super) fn note_stop(&mut self, by: &str, reason: Option<&str>) {
        if self.state.stopping {
            return;
        }
        let reason = reason.map(|why| text::clean(why.trim(), MAX_WHY));
        let coming = self.state.rollout.as_ref().map(|rollout| rollout.to);
        self.state.stopped = self.state.stable.or(coming).map(|release| Stop {
            release,
            at: self.now(),
            by: text::clean(by, 100),
            reason: reason.filter(|why| !why.is_empty()),
        });
    }

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
        rollout.verdict = None;
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
            let attempt = self.state.next_attempt(key);
            if let Some(replica) = self.state.replicas.get_mut(&key) {
                **replica = ReplicaState {
                    failures: replica.failures,
                    trouble: replica.trouble.take(),
                    last_failure: replica.last_failure.take(),
                    ..ReplicaState::pending(attempt, now, now)
                };
            }
        }
    }

    /// Passes the present gate or step, or all that is left, and ends a pause. `seen`: the step that the
    /// person meant; another one is not passed.
    pub(super) fn promote(
        &mut self,
        all: bool,
        seen: Option<usize>,
        by: &str,
        reason: Option<&str>,
    ) {
        let Some(rollout) = self.state.active_rollout() else { return };
        if self.state.is_other_step(rollout, all, seen) {
            return;
        }
        self.resume();
        let Some(rollout) = self.state.active_rollout() else { return };
        let Some(next) = self.state.promoted_to(rollout, all) else { return };
        let reason = text::clean(reason.unwrap_or_default().trim(), MAX_WHY);
        let passed = self.state.passed_on_the_way(rollout, next);
        for (step, gate) in passed {
            self.note_passed(step, gate, by, reason.clone(), true);
        }
        self.go_to_step(next);
    }

    fn note_passed(&mut self, step: usize, gate: String, by: &str, reason: String, promoted: bool) {
        let at = self.now();
        let Some(rollout) = self.state.rollout.as_mut() else { return };
        if rollout.skipped.len() < MAX_SKIPPED {
            let by = text::clean(by, 100);
            rollout.skipped.push(SkippedGate { step, gate, by, reason, at, promoted });
        }
    }

    /// Does not wait for the present gate.
    pub(super) fn skip(&mut self, by: &str, reason: &str) {
        let reason = text::clean(reason.trim(), MAX_WHY);
        let Some(gate) = self.state.skippable().filter(|_| !reason.is_empty()) else { return };
        self.resume();
        let Some(step) = self.state.active_rollout().map(|r| r.step) else { return };
        self.note_passed(step, gate, by, reason, false);
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
