//! The step `run`: a command of the user's decides by its exit code.
//!
//! The decider says that it is to be run and hears how it ended. Every run of the same step has an
//! attempt of its own, which the command sees: a controller that was killed in the middle cannot
//! know how far it came, and runs it again.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::action::Action;
use super::analysis::{Verdict, VerdictOf, VerdictResult};
use super::state::{Direction, Gate, Rollout, ServiceState};
use super::step::Decider;
use crate::base::{Attempt, ReleaseNumber, Timestamp, text, time};
use crate::spec::RunSpec;

/// So long after its timeout a command that nobody has heard of counts as lost. Whoever runs it ends
/// it at its timeout; this is for the case that it does not.
pub(super) const PATIENCE: Duration = Duration::from_mins(1);

/// Lines of a command's output that are kept.
pub const MAX_LINES: usize = 20;

/// Longest line that is kept, in characters.
pub const MAX_LINE: usize = 300;

/// One run of a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepRun {
    /// Which run of this step's command it is.
    pub attempt: Attempt,
    /// When it was asked for.
    pub began: Timestamp,
    /// How it ended.
    pub ended: Option<RunEnd>,
    /// The last lines of its output.
    pub output: Vec<String>,
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunEnd {
    /// By itself; 0 is good.
    Exited {
        /// The exit code.
        code: i32,
    },
    /// By a signal that was not ours.
    Killed {
        /// Its number.
        signal: i32,
    },
    /// It took longer than its timeout and was ended.
    TimedOut,
    /// It could not be started.
    NotStarted {
        /// Why.
        why: String,
    },
}

impl RunEnd {
    /// Whether the rollout goes on.
    pub const fn is_good(&self) -> bool {
        matches!(self, Self::Exited { code: 0 })
    }

    fn words(&self, timeout: Duration) -> String {
        match self {
            Self::TimedOut => format!("took longer than {} (timeout)", time::short(timeout)),
            end => end.to_string(),
        }
    }
}

impl fmt::Display for RunEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited { code } => write!(f, "exit code {code}"),
            Self::Killed { signal } => write!(f, "killed by signal {signal}"),
            Self::TimedOut => write!(f, "took longer than its timeout"),
            Self::NotStarted { why } => write!(f, "cannot be run: {}", text::clean(why, 200)),
        }
    }
}

impl ServiceState {
    /// The run of a command that is waited for.
    pub fn awaited_run(&self) -> Option<(&Rollout, &StepRun)> {
        let rollout = self.active_rollout().filter(|r| r.direction == Direction::Forward)?;
        let failed = matches!(rollout.gate, Some(Gate::Failed { .. }));
        let run = rollout.run.as_ref().filter(|r| r.ended.is_none() && !failed)?;
        Some((rollout, run))
    }
}

impl Decider<'_> {
    /// At the step: begins the command, waits for it, judges it.
    pub(super) fn tend_run(&mut self, run: &RunSpec, index: usize) {
        let now = self.now();
        let Some(rollout) = self.state.active_rollout() else { return };
        let Some(present) = rollout.run.clone() else {
            self.begin_run(run, Attempt::FIRST);
            return;
        };
        let lost = now >= present.began.plus(run.timeout).plus(PATIENCE);
        let Some(end) = present.ended.or(lost.then_some(RunEnd::TimedOut)) else {
            self.set_run_gate(run, present.attempt, present.began);
            return;
        };
        let mut reason = end.words(run.timeout);
        if let Some(last) = present.output.last() {
            reason = format!("{reason}: {last}");
        }
        let result = if end.is_good() { VerdictResult::Success } else { VerdictResult::Failed };
        if let Some(rollout) = self.state.rollout.as_mut() {
            rollout.verdict = Some(Verdict {
                of: VerdictOf::Run,
                analysis: run.title(),
                result,
                reason: reason.clone(),
                lines: present.output,
                at: now,
            });
        }
        if end.is_good() {
            self.go_to_step(index + 1);
        } else {
            self.fail_rollout(&format!("run {}: {reason}", run.title()));
        }
    }

    /// Runs the command of the present step, under this attempt.
    pub(super) fn begin_run(&mut self, run: &RunSpec, attempt: Attempt) {
        let now = self.now();
        let Some(rollout) = self.state.rollout.as_mut() else { return };
        rollout.run = Some(StepRun { attempt, began: now, ended: None, output: Vec::new() });
        let (release, step) = (rollout.to, rollout.step);
        self.set_run_gate(run, attempt, now);
        self.moved = true;
        self.act(Action::RunCommand { release, step, attempt, run: Box::new(run.clone()) });
    }

    fn set_run_gate(&mut self, run: &RunSpec, attempt: Attempt, began: Timestamp) {
        let until = began.plus(run.timeout);
        self.set_gate(Some(Gate::Run { command: run.title(), attempt, until }));
    }

    /// A command has ended. What is told of another run than the present one says nothing.
    pub(super) fn run_ended(
        &mut self,
        release: ReleaseNumber,
        step: usize,
        attempt: Attempt,
        end: &RunEnd,
        output: &[String],
    ) {
        let Some(run) = self.present_run(release, step, attempt) else { return };
        run.ended = Some(end.clone());
        let skip = output.len().saturating_sub(MAX_LINES);
        run.output = output.iter().skip(skip).map(|line| text::clean(line, MAX_LINE)).collect();
    }

    /// Whoever ran the command is gone, and how far it came is not known: it is run again. Also in a
    /// pause, since it was under way before.
    pub(super) fn run_lost(&mut self, release: ReleaseNumber, step: usize, attempt: Attempt) {
        if self.present_run(release, step, attempt).is_none() {
            return;
        }
        if let Some(run) = self.state.present_command() {
            self.begin_run(&run, attempt.next());
        }
    }

    fn present_run(
        &mut self,
        release: ReleaseNumber,
        step: usize,
        attempt: Attempt,
    ) -> Option<&mut StepRun> {
        let rollout = self.state.rollout.as_mut().filter(|r| r.outcome.is_none())?;
        let here = rollout.to == release
            && rollout.step == step
            && rollout.direction == Direction::Forward
            && !matches!(rollout.gate, Some(Gate::Failed { .. }));
        rollout.run.as_mut().filter(|r| here && r.attempt == attempt && r.ended.is_none())
    }
}
