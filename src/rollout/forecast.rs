//! What a rollout would do, step by step, before anything is touched.
//!
//! Not a second set of rules: the decider itself is run in a tiny world where every start succeeds
//! at once, every analysis passes and every approval is given.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use super::action::Action;
use super::analysis::Window;
use super::checks::CheckResult;
use super::event::{Event, EventKind};
use super::release::Release;
use super::state::{Direction, Gate, Outcome, Phase, RolloutKind, ServiceState};
use super::step::{next_wake, outstanding, step};
use crate::base::{Hint, ReplicaId, Timestamp, time};
use crate::spec::{AnalysisSpec, Count, ServiceSpec, StepSpec};

/// Events after which a forecast is given up; a rollout of a thousand replicas needs far fewer.
const MAX_EVENTS: usize = 200_000;

/// The journey as foreseen.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Forecast {
    /// What happens, in order.
    pub stages: Vec<Stage>,
    /// Fewest ready replicas on the way.
    pub lowest_ready: u32,
    /// Never fewer than this by an action of ours.
    pub floor: u32,
    /// The service stops serving on the way.
    pub outage: bool,
}

/// One stage of the journey.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    /// What it is, for people: `weight 10 %`, `analyse default (1m)`, `all replicas`.
    pub title: String,
    /// Replicas that are started, in order.
    pub starts: Vec<ReplicaId>,
    /// Replicas that are stopped, in order.
    pub stops: Vec<ReplicaId>,
    /// Share of the traffic at the new release after it, percent.
    pub new_weight_percent: u32,
    /// Ready replicas after it.
    pub ready_after: u32,
    /// Fewest ready replicas during it.
    pub lowest_ready: u32,
}

/// Why a rollout cannot work, before anything is touched.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct ForecastError {
    /// What stands in the way.
    pub reason: String,
    /// The smallest change that would make it work, where one is known.
    pub change: Option<String>,
}

impl Hint for ForecastError {
    fn hint(&self) -> Option<String> {
        self.change.clone()
    }
}

/// Foresees the rollout of `release` from `state`.
///
/// # Errors
/// When it could never end: the floor and the GPUs leave no way, or the release is not whole.
pub fn forecast(
    state: &ServiceState,
    release: &Release,
    kind: RolloutKind,
) -> Result<Forecast, ForecastError> {
    check(state, release)?;
    run(state, release, kind).map_err(|reason| {
        let change = smallest_change(state, release, kind);
        ForecastError { reason, change }
    })
}

/// The titles of a rollout's stages: one for each step, and `all replicas`. A first deployment and
/// an undo have only the last.
pub fn stage_titles(spec: &ServiceSpec, kind: RolloutKind, first_deployment: bool) -> Vec<String> {
    let steps: &[StepSpec] =
        if first_deployment || kind == RolloutKind::Undo { &[] } else { &spec.rollout.steps };
    let title = |step: &StepSpec| match step {
        StepSpec::Weight(w) => format!("weight {w} %"),
        StepSpec::Bake(d) => format!("bake {}", time::short(*d)),
        StepSpec::Analyse(name) => {
            let duration =
                spec.analysis.get(name).map_or(AnalysisSpec::default().duration, |a| a.duration);
            format!("analyse {name} ({})", time::short(duration))
        }
        StepSpec::Approve(true) => "approve".to_owned(),
        StepSpec::Approve(false) => "approve (off)".to_owned(),
    };
    steps.iter().map(title).chain(["all replicas".to_owned()]).collect()
}

fn check(state: &ServiceState, release: &Release) -> Result<(), ForecastError> {
    let refuse = |reason: String, change: &str| {
        Err(ForecastError { reason, change: Some(change.to_owned()) })
    };
    if state.active_rollout().is_some() {
        return refuse(
            "a rollout of this service is under way".to_owned(),
            "wait for its end, or take it back with `gpudeck rollout abort`",
        );
    }
    if state.stopping {
        return refuse("the service is being stopped".to_owned(), "wait until it has stopped");
    }
    if state.releases.contains_key(&release.number) {
        return refuse(
            format!("there is a release {} already", release.number),
            "make the plan again",
        );
    }
    let wanted = release.spec.replicas.get();
    let placed = u32::try_from(release.replicas.len()).unwrap_or(u32::MAX);
    if placed != wanted || release.replicas.iter().any(|plan| plan.ranks.is_empty()) {
        return refuse(
            format!("{placed} of {wanted} replicas are placed"),
            "lower `replicas`, or free devices",
        );
    }
    let mut held = BTreeMap::new();
    for (index, plan) in release.replicas.iter().enumerate() {
        for gpu in plan.gpus() {
            if let Some(other) = held.insert(gpu, index) {
                let (host, device) = gpu;
                return refuse(
                    format!("replicas {other} and {index} are both placed on {device} of {host}"),
                    "make the plan again",
                );
            }
        }
    }
    Ok(())
}

/// Tries larger `max_unavailable` until the journey ends well.
fn smallest_change(state: &ServiceState, release: &Release, kind: RolloutKind) -> Option<String> {
    let desired = release.spec.replicas.get();
    let mut changed = release.clone();
    // Powers of two first bound the work for large services; small ones are tried one by one.
    for unavailable in (1..=desired).filter(|n| *n <= 16 || n.is_power_of_two() || *n == desired) {
        changed.spec.rollout.max_unavailable = Count::Number(unavailable);
        if let Ok(forecast) = run(state, &changed, kind) {
            let outage = if forecast.outage { ", an OUTAGE" } else { "" };
            return Some(format!(
                "set max_unavailable = {unavailable} (then {} of {desired} stay ready{outage}), \
                 or free the GPUs of one replica",
                forecast.lowest_ready
            ));
        }
    }
    None
}

fn run(state: &ServiceState, release: &Release, kind: RolloutKind) -> Result<Forecast, String> {
    let mut world = World {
        state: state.clone(),
        queue: VecDeque::new(),
        titles: stage_titles(&release.spec, kind, state.stable.is_none()),
        forecast: Forecast::default(),
        stage: 0,
        measuring: false,
    };
    world.take(outstanding(&world.state));
    world.settle(MAX_EVENTS / 10);
    world.begin(release, kind);
    for _ in 0..MAX_EVENTS {
        let Some(rollout) = world.state.active_rollout() else { break };
        if let Direction::Back { why, .. } = &rollout.direction {
            return Err(why.clone());
        }
        if let Some(Gate::Failed { why }) = &rollout.gate {
            return Err(why.clone());
        }
        if let Some(event) = world.queue.pop_front() {
            world.feed(event);
        } else {
            world.pass_time()?;
        }
    }
    match world.state.rollout.as_ref().and_then(|r| r.outcome.as_ref()) {
        Some(Outcome::Completed) => Ok(world.forecast),
        Some(Outcome::RolledBack { why } | Outcome::Failed { why } | Outcome::Aborted { why }) => {
            Err(why.clone())
        }
        None => Err("the journey has no end".to_owned()),
    }
}

/// A world where everything that is asked for succeeds at once.
struct World {
    state: ServiceState,
    queue: VecDeque<EventKind>,
    titles: Vec<String>,
    forecast: Forecast,
    stage: usize,
    measuring: bool,
}

impl World {
    /// Lets what is under way already come to its end, for instance replicas that are loading.
    fn settle(&mut self, most: usize) {
        for _ in 0..most {
            let Some(event) = self.queue.pop_front() else { break };
            self.feed(event);
        }
    }

    fn begin(&mut self, release: &Release, kind: RolloutKind) {
        self.measuring = true;
        let ready = self.state.ready_total();
        self.forecast.lowest_ready = ready;
        for title in &self.titles {
            self.forecast.stages.push(Stage {
                title: title.clone(),
                starts: Vec::new(),
                stops: Vec::new(),
                new_weight_percent: 0,
                ready_after: ready,
                lowest_ready: ready,
            });
        }
        self.forecast.outage = false;
        let release = Box::new(release.clone());
        self.feed(EventKind::RolloutRequested { release, kind, by: "forecast".to_owned() });
        self.forecast.floor = self.state.floor();
    }

    fn feed(&mut self, kind: EventKind) {
        let at = self.state.now;
        self.feed_at(at, kind);
    }

    fn feed_at(&mut self, at: Timestamp, kind: EventKind) {
        let ready_before = self.state.ready_total();
        let actions = step(&mut self.state, &Event { at, kind });
        let ready = self.state.ready_total();
        if self.measuring {
            self.forecast.outage |= ready == 0 && ready_before > 0;
            self.note(ready, &actions);
        }
        self.take(actions);
    }

    /// Writes the stage down that this event belongs to: the step that was current before it.
    fn note(&mut self, ready: u32, actions: &[Action]) {
        let Some(rollout) = self.state.rollout.as_ref() else { return };
        let steps = self.titles.len().saturating_sub(1);
        // Where the steps are skipped, the first stage is the last.
        let now_at = if steps == 0 { 0 } else { rollout.step.min(steps) };
        let to = rollout.to;
        let percent = self.state.release_weight_percent(to);
        let lowest_ready = self.forecast.lowest_ready.min(ready);
        self.forecast.lowest_ready = lowest_ready;
        // A step that was passed leaves everything as it is: later stages begin from here.
        for stage in self.forecast.stages.iter_mut().skip(self.stage) {
            stage.ready_after = ready;
            stage.new_weight_percent = percent;
        }
        if let Some(stage) = self.forecast.stages.get_mut(self.stage) {
            stage.lowest_ready = stage.lowest_ready.min(ready);
        }
        if now_at != self.stage {
            self.stage = now_at;
            for stage in self.forecast.stages.iter_mut().skip(now_at) {
                stage.lowest_ready = ready;
            }
        }
        let Some(stage) = self.forecast.stages.get_mut(self.stage) else { return };
        for action in actions {
            match action {
                Action::StartRank { rank, .. } if rank.rank == 0 => stage.starts.push(rank.replica),
                Action::StopRank { rank, .. } if rank.rank == 0 => stage.stops.push(rank.replica),
                _ => {}
            }
        }
    }

    fn take(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::StartRank { rank, .. } => {
                    self.queue.push_back(EventKind::RankRunning { rank });
                }
                Action::StopRank { rank, .. } => {
                    let how = "stopped".to_owned();
                    self.queue.push_back(EventKind::RankEnded { rank, how });
                }
                Action::AwaitToken { replica, .. } => {
                    self.queue.push_back(EventKind::ReplicaReady { replica });
                }
                Action::ApplyTraffic { version, .. } => {
                    self.queue.push_back(EventKind::TrafficApplied { version });
                }
                Action::AwaitDrained { replica } => {
                    self.queue.push_back(EventKind::Drained { replica });
                }
                Action::RecordOutcome { .. } => {}
            }
        }
    }

    /// Every golden prompt and query is as it should be.
    fn pass_checks(&mut self) {
        let Some((rollout, _, spec)) = self.state.analysing() else { return };
        let (release, step) = (rollout.to, rollout.step);
        for (check, plan) in spec.checks() {
            for _ in 0..plan.count {
                let (check, why) = (check.clone(), "forecast".to_owned());
                let result = CheckResult::Successful;
                self.feed(EventKind::Checked { release, step, check, result, why });
            }
        }
    }

    /// Nothing is under way: a gate is passed, or time goes on to the next moment that matters.
    fn pass_time(&mut self) -> Result<(), String> {
        match self.state.active_rollout().and_then(|r| r.gate.clone()) {
            Some(Gate::Approve | Gate::Inconclusive { .. }) => {
                self.feed(EventKind::Promoted { all: false, by: "forecast".to_owned() });
            }
            Some(Gate::Analyse { until, .. }) => {
                let good = Window { requests: 1_000_000, errors: 0, response_ms_sum: 1.0 };
                let ready = self.state.replicas.iter().filter(|(_, r)| r.phase == Phase::Ready);
                let windows = ready.map(|(key, r)| (r.id(*key), good)).collect();
                self.feed(EventKind::Measured { windows });
                self.pass_checks();
                // The time of the analysis counts from the first request.
                let until = match self.state.active_rollout().and_then(|r| r.gate.as_ref()) {
                    Some(Gate::Analyse { until, .. }) => *until,
                    _ => until,
                };
                self.feed_at(until, EventKind::Tick);
            }
            _ => {
                let next = next_wake(&self.state)
                    .ok_or_else(|| "nothing that could happen would bring it on".to_owned())?;
                self.feed_at(next, EventKind::Tick);
            }
        }
        Ok(())
    }
}
