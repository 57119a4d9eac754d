//! The rollout's way: steps and gates, its clocks, turning back, and its end.

use super::action::Action;
use super::analysis::{AnalysisRun, Judgement, Verdict, VerdictOf, VerdictResult, Window, judge};
use super::minimum::Terms;
use super::roles::is_available;
use super::state::{Direction, Gate, Outcome, Phase, ReplicaState, ServiceState};
use super::step::Decider;
use crate::base::{text, time};
use crate::spec::{AnalysisSpec, RolloutSpec, StepSpec};

/// Longest reason that is kept, in characters.
const MAX_WHY: usize = 500;

impl Decider<'_> {
    pub(super) fn tend_journey(&mut self) {
        if self.state.stopping {
            self.finish_stopping();
            return;
        }
        let Some(rollout) = self.state.active_rollout() else {
            self.forget_releases();
            return;
        };
        if rollout.paused.is_some() || self.state.is_held() {
            return;
        }
        match rollout.direction {
            Direction::Forward => self.tend_forward(),
            Direction::Back { .. } => self.tend_back(),
        }
    }

    fn tend_forward(&mut self) {
        let Some(rollout) = self.state.active_rollout() else { return };
        if matches!(rollout.gate, Some(Gate::Failed { .. })) {
            return;
        }
        let (to, index, since) = (rollout.to, rollout.step, rollout.step_since);
        let inconclusive = matches!(rollout.gate, Some(Gate::Inconclusive { .. }));
        let roles = self.state.roles();
        let now = self.now();
        match self.state.steps(rollout).get(index).cloned() {
            _ if inconclusive => {}
            Some(StepSpec::Weight(_) | StepSpec::Scale(_)) => {
                self.set_gate(None);
                let available = self.state.available(to, roles.min_healthy);
                if available >= roles.target && self.state.traffic_settled() {
                    self.go_to_step(index + 1);
                }
            }
            Some(StepSpec::Bake(bake)) => {
                let until = since.plus(bake);
                if now >= until {
                    self.go_to_step(index + 1);
                } else {
                    self.set_gate(Some(Gate::Bake { until }));
                }
            }
            Some(StepSpec::Analyse(name)) => self.analyse(&name, index),
            Some(StepSpec::Approve(true)) => self.set_gate(Some(Gate::Approve)),
            Some(StepSpec::Approve(false)) => self.go_to_step(index + 1),
            Some(StepSpec::Run(run)) => self.tend_run(&run, index),
            None => {
                self.set_gate(None);
                let complete = self.state.available(to, roles.min_healthy) >= roles.full;
                let alone = self.state.replicas.keys().all(|key| key.release == to);
                if complete && alone && self.state.traffic_settled() {
                    self.state.stable = Some(to);
                    self.end_rollout(Outcome::Completed);
                }
            }
        }
        self.check_progress();
    }

    fn analyse(&mut self, name: &str, index: usize) {
        let now = self.now();
        let Some(rollout) = self.state.active_rollout() else { return };
        let spec = self
            .state
            .releases
            .get(&rollout.to)
            .and_then(|r| r.spec.analysis.get(name))
            .cloned()
            .unwrap_or_else(AnalysisSpec::default);
        let windows = (&rollout.measured_new, &rollout.measured_old);
        let terms = Terms::of(self.state, rollout, &spec);
        let run = &rollout.analysis;
        let awaits_request = run.began.is_none() && run.unread.is_none() && spec.min_requests > 0;
        let judged = judge(&spec, &terms, &rollout.analysis, windows, rollout.step_since, now);
        let (result, reason) = match judged {
            Judgement::Wait { until } => {
                let name = name.to_owned();
                self.set_gate(Some(Gate::Analyse { name, until, awaits_request }));
                return;
            }
            Judgement::Verdict(result, reason) => (result, reason),
        };
        if let Some(rollout) = self.state.rollout.as_mut() {
            rollout.verdict = Some(Verdict {
                of: VerdictOf::Analysis,
                analysis: name.to_owned(),
                result,
                reason: reason.clone(),
                lines: Vec::new(),
                at: now,
            });
        }
        match result {
            VerdictResult::Success => self.go_to_step(index + 1),
            // Argo's rule: what cannot be measured is not let through.
            VerdictResult::Failed | VerdictResult::Error => {
                self.fail_rollout(&format!("analysis {name}: {reason}"));
            }
            VerdictResult::Inconclusive => self.set_gate(Some(Gate::Inconclusive { why: reason })),
        }
    }

    /// The progress deadline; not counted at gates.
    fn check_progress(&mut self) {
        let Some(rollout) = self.state.active_rollout() else { return };
        if rollout.gate.is_some() || rollout.direction != Direction::Forward {
            return;
        }
        let Some(deadline) = self.state.policy(rollout.to).and_then(RolloutSpec::progress_limit)
        else {
            return;
        };
        if self.now() < self.state.progressed_at(rollout).plus(deadline) {
            return;
        }
        let (to, roles) = (rollout.to, self.state.roles());
        // All of the new release serves, only an old replica cannot be ended (its host or the
        // gateway is away): no reason to take a good release back. The rest goes when it can.
        if roles.last_stretch
            && self.state.available(to, roles.min_healthy) >= roles.full
            && self.state.reached(to) >= roles.full
        {
            self.state.stable = Some(to);
            self.end_rollout(Outcome::Completed);
            return;
        }
        let why = format!(
            "no progress for {} (progress_deadline): {}",
            time::short(deadline),
            self.state.awaited()
        );
        self.fail_rollout(&why);
    }

    fn tend_back(&mut self) {
        let Some(rollout) = self.state.active_rollout() else { return };
        let (from, to) = (rollout.from, rollout.to);
        let roles = self.state.roles();
        let Direction::Back { why, asked } = rollout.direction.clone() else { return };
        let served = from.is_none_or(|f| self.state.available(f, roles.min_healthy) >= roles.full);
        let alone = self.state.replicas.keys().all(|key| Some(key.release) == from);
        let deadline = self.state.policy(to).map(RolloutSpec::return_limit);
        let last = self.state.progressed_at(rollout);
        let late = deadline.is_some_and(|d| self.now() >= last.plus(d));
        let mut why = why;
        if late && !(served && alone) {
            // The journey is over, the work is not: at rest the same rules go on bringing stable
            // back and the others out, and a new rollout may be asked for.
            let rest = match from {
                Some(f) if !served => {
                    format!(
                        "stable is not whole yet ({} of {} ready): {}",
                        self.state.ready(f),
                        roles.full,
                        self.state.awaited()
                    )
                }
                _ => "not all of the new release could be stopped yet".to_owned(),
            };
            why = format!("{why}; {rest}");
        } else if !(served && alone) {
            return;
        } else if !self.state.traffic_settled() {
            // At rest the gateway is told again, too.
            if !late && !self.state.leaves_unrouted() {
                return;
            }
            why = format!("{why}; {}", self.state.awaited());
        }
        self.end_rollout(match (asked, from) {
            (true, _) => Outcome::Aborted { why },
            (false, Some(_)) => Outcome::RolledBack { why },
            (false, None) => Outcome::Failed { why },
        });
    }

    /// The new release is not good: back by itself, or hold and ask.
    pub(super) fn fail_rollout(&mut self, why: &str) {
        let Some(rollout) = self.state.active_rollout() else { return };
        if rollout.direction != Direction::Forward
            || matches!(rollout.gate, Some(Gate::Failed { .. }))
        {
            return;
        }
        let why = text::clean(why, MAX_WHY);
        if self.state.policy(rollout.to).is_some_and(|p| p.auto_rollback) {
            self.turn_back(&why, false);
        } else {
            self.set_gate(Some(Gate::Failed { why }));
        }
    }

    /// Goes back. That ends a pause: going back is what keeps the service serving.
    pub(super) fn turn_back(&mut self, why: &str, asked: bool) {
        let now = self.now();
        self.moved = true;
        if let Some(rollout) = self.state.rollout.as_mut() {
            rollout.direction = Direction::Back { why: text::clean(why, MAX_WHY), asked };
            rollout.gate = None;
            rollout.paused = None;
            rollout.paused_by = None;
            rollout.paused_why = None;
            rollout.progress = now;
        }
        self.give_back_kept();
    }

    pub(super) fn go_to_step(&mut self, step: usize) {
        let now = self.now();
        let Some(rollout) = self.state.active_rollout() else { return };
        let steps = self.state.steps(rollout);
        let moves = |i: usize| {
            matches!(steps.get(i), None | Some(StepSpec::Weight(_) | StepSpec::Scale(_)))
        };
        let settled = if moves(step) {
            None
        } else if moves(rollout.step) {
            Some(now)
        } else {
            rollout.step_settled
        };
        self.moved = true;
        if let Some(rollout) = self.state.rollout.as_mut() {
            rollout.step = step;
            rollout.step_since = now;
            rollout.step_settled = settled;
            rollout.gate = None;
            rollout.progress = now;
            rollout.measured_new = Window::default();
            rollout.measured_old = Window::default();
            rollout.analysis = AnalysisRun::default();
            rollout.run = None;
        }
    }

    pub(super) fn set_gate(&mut self, gate: Option<Gate>) {
        if let Some(rollout) = self.state.rollout.as_mut()
            && rollout.gate != gate
        {
            rollout.gate = gate;
            self.moved = true;
        }
    }

    pub(super) fn end_rollout(&mut self, outcome: Outcome) {
        let now = self.now();
        let Some(rollout) = self.state.rollout.as_mut() else { return };
        rollout.gate = None;
        rollout.paused = None;
        rollout.paused_by = None;
        rollout.paused_why = None;
        rollout.outcome = Some(outcome.clone());
        rollout.ended = Some(now);
        let release = rollout.to;
        self.moved = true;
        // What is not served any more does not come back from a maintenance.
        let stable = self.state.stable;
        self.state.loans.retain(|loan| Some(loan.replica.release) == stable);
        self.act(Action::RecordOutcome { release, outcome });
    }

    /// The service was to be ended, and nothing of it is left.
    fn finish_stopping(&mut self) {
        if self.state.replicas.is_empty() {
            self.state.stopping = false;
            self.state.stable = None;
            self.moved = true;
            self.forget_releases();
        }
    }

    /// Keeps the releases that are served, that the last rollout was between, or that still have
    /// replicas.
    fn forget_releases(&mut self) {
        let state = &mut *self.state;
        let ends = state.rollout.as_ref().map(|r| (r.from, r.to));
        let replicas = &state.replicas;
        let stable = state.stable;
        state.releases.retain(|number, _| {
            stable == Some(*number)
                || ends.is_some_and(|(from, to)| to == *number || from == Some(*number))
                || replicas.keys().any(|key| key.release == *number)
                // Its name is still that of what was taken over from it.
                || replicas.values().any(|r| r.runs_as.is_some_and(|key| key.release == *number))
        });
        let releases = &state.releases;
        state.attempts.retain(|key, _| releases.contains_key(&key.release));
        state.taken_over.retain(|name, _| releases.contains_key(&name.release));
    }
}

impl ServiceState {
    /// What the rollout waits for, for people.
    fn awaited(&self) -> String {
        let roles = self.roles();
        if let Some(trouble) = &self.traffic_trouble {
            return format!("the gateway was not changed: {trouble}");
        }
        let Some(coming) = roles.coming else { return "replicas to stop".to_owned() };
        if let Some(loan) = self.awaited_loan() {
            return loan;
        }
        let id = |key, r: &ReplicaState| r.id(key);
        for (key, replica) in self.of(coming) {
            let id = id(*key, replica);
            match &replica.phase {
                Phase::Waiting { why, .. } => return format!("replica {id} waits: {why}"),
                // It is being asked again, and that says less than why it was refused.
                Phase::Starting if replica.waiting_since.is_some() => {
                    let why = replica.trouble.as_deref().unwrap_or("it was refused for now");
                    return format!("replica {id} waits: {why}");
                }
                Phase::Starting => return format!("replica {id} is starting"),
                Phase::Loading => return format!("replica {id} has not generated a token"),
                Phase::Ready if !is_available(replica, self.now, roles.min_healthy) => {
                    return format!("replica {id} is ready, but not yet for min_healthy_time");
                }
                _ => {}
            }
        }
        let leaving = self.replicas.iter().find(|(_, r)| r.retiring);
        if let Some((key, replica)) = leaving {
            let id = id(*key, replica);
            return match replica.phase {
                Phase::Draining { .. } => format!("replica {id} drains"),
                _ => self.stopping_on(*key, replica),
            };
        }
        if self.ready(coming) < roles.target && roles.keeps.is_some() {
            return "the devices of the next replica are held by the old set, which stays beside \
                    the new one until the traffic has switched (blue-green)"
                .to_owned();
        }
        let serving = self.served();
        if self.ready(coming) < roles.target && serving < self.ready_total() {
            return format!(
                "the devices of the next replica are held by replicas that cannot be stopped: {serving} of at least {} \
                 get requests, and {} more that are ready get none yet",
                roles.floor,
                self.ready_total() - serving
            );
        }
        if self.ready(coming) < roles.target {
            return format!(
                "the devices of the next replica are held by replicas that cannot be stopped \
                 while {} of at least {} are ready",
                self.ready_total(),
                roles.floor
            );
        }
        "the gateway has not confirmed the traffic table".to_owned()
    }
}
