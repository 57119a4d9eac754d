//! What a rollout would do, step by step, before anything is touched.
//!
//! Not a second set of rules: the decider itself is run in a tiny world where every start succeeds,
//! every analysis passes and every approval is given (`rehearsal`). What would make a plan that
//! cannot work possible is found by trying (`remedy`).

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::event::EventKind;
use super::release::Release;
use super::state::{RolloutKind, ServiceState};
use super::{rehearsal, remedy};
use crate::base::{Hint, ReplicaId, ReplicaKey, time};
use crate::spec::{AnalysisSpec, StepSpec, Strategy};

/// How long things take, as measured. What was never measured is not guessed: it counts as no time
/// and is told apart in [`Stage::unknown`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Timings {
    /// From a replica's start to its first token.
    pub loads: BTreeMap<ReplicaKey, Duration>,
    /// From the moment a replica gets no new requests to its last answer.
    pub drain: Option<Duration>,
    /// From SIGTERM to the end of all ranks.
    pub stop: Option<Duration>,
    /// The last two of the service that lends its place for the rollout.
    pub lender: (Option<Duration>, Option<Duration>),
}

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
    /// With an outage: the smallest change without one, where one was found.
    #[serde(default)]
    pub remedy: Option<String>,
}

/// One stage of the journey.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
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
    /// Of `ready_after`, those that get no requests: no capacity. Not those that only a canary's rule reaches.
    #[serde(default)]
    pub idle_after: u32,
    /// Fewest replicas during it that are ready and get requests.
    #[serde(default)]
    pub lowest_serving: u32,
    /// Its analysis is foreseen to be inconclusive: what will be missing, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inconclusive: Option<String>,
    /// Every start and stop, in order.
    #[serde(default)]
    pub moves: Vec<Move>,
    /// How long it takes, milliseconds; a lower bound where something is unknown.
    #[serde(default)]
    pub took_ms: u64,
    /// What its time is not known of.
    #[serde(default)]
    pub unknown: Unknown,
}

/// What the time of a stage is not known of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unknown {
    /// So many replicas load, and how long that takes was never measured.
    pub loads: u32,
    /// So many replicas drain, and how long that takes was never measured.
    pub drains: u32,
    /// So many commands are run.
    #[serde(default)]
    pub commands: u32,
    /// A person is waited for.
    pub person: bool,
}

/// The start or the stop of one replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Move {
    /// Which replica.
    pub replica: ReplicaId,
    /// What is done.
    pub verb: Verb,
    /// How its place was found, or why it goes.
    pub how: How,
    /// When it begins, milliseconds after the rollout's begin.
    pub at_ms: u64,
    /// When it is done (the first token; the end of all ranks), likewise.
    pub done_ms: u64,
    /// Ready replicas when it is done.
    pub ready_after: u32,
}

/// What is done to a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verb {
    /// Its ranks start.
    Start,
    /// It is drained and its ranks stop.
    Stop,
}

/// How the place of a start was found, or why a replica goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum How {
    /// Start: on spare devices, beside the others.
    Beside,
    /// Start: where these were.
    InPlaceOf {
        /// Gone before.
        replicas: Vec<ReplicaKey>,
    },
    /// Stop: the strategy is recreate, all old ones go first.
    GoesFirst,
    /// Stop: its devices are needed.
    MakesWay {
        /// By this one.
        for_replica: ReplicaKey,
    },
    /// Stop: no more may live at a time (`max_surge`, `max_unavailable`).
    MakesRoom,
    /// Stop: the new release is complete.
    Surplus,
}

impl Forecast {
    /// The first stage in which the capacity is lowest: what is ready and gets no requests is none.
    pub fn lowest_stage(&self) -> Option<usize> {
        let lowest = self.lowest_serving();
        self.stages.iter().position(|s| s.lowest_serving == lowest)
    }

    /// Analyses to which nothing is sent, for people: they cannot pass by themselves.
    pub fn blind_analyses(&self) -> Vec<String> {
        let blind = self.stages.iter().filter(|s| s.new_weight_percent == 0);
        blind
            .filter_map(|stage| {
                let why = stage.inconclusive.as_ref()?;
                Some(format!(
                    "`{}` will be inconclusive and wait for a person, since nothing is sent to the new release before \
                     it ({why}) → put a weight before it, or write min_requests = 0 in its analysis",
                    stage.title
                ))
            })
            .collect()
    }

    /// Fewest replicas on the way that are ready and get requests.
    pub fn lowest_serving(&self) -> u32 {
        self.stages.iter().map(|s| s.lowest_serving).min().unwrap_or(self.lowest_ready)
    }

    /// The first step at which enough replicas are ready, and fewer than `needed` get requests, in words.
    pub(super) fn starved(&self, needed: u32) -> Option<String> {
        let stage = self.stages.get(self.starved_stage(needed)?)?;
        Some(format!(
            "at its step `{}` only {} of {} ready replicas would get requests, fewer than the floor of {}",
            stage.title, stage.lowest_serving, stage.ready_after, self.floor
        ))
    }

    /// The index of that step. (Where too few are ready is another matter: the floor, and OUTAGE.)
    pub(super) fn starved_stage(&self, needed: u32) -> Option<usize> {
        self.stages.iter().position(|s| s.lowest_serving < needed.min(s.lowest_ready))
    }
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
    forecast_with(state, release, kind, &Timings::default())
}

/// The same, with the time that everything takes as far as it was measured.
///
/// # Errors
/// As [`forecast`].
pub fn forecast_with(
    state: &ServiceState,
    release: &Release,
    kind: RolloutKind,
    timings: &Timings,
) -> Result<Forecast, ForecastError> {
    check(state, release)?;
    let mut forecast = rehearsal::run(state, release, kind, timings).map_err(|reason| {
        let change = remedy::for_standstill(state, release, kind);
        ForecastError { reason, change }
    })?;
    if forecast.outage {
        forecast.remedy = remedy::for_outage(state, release, kind);
    }
    Ok(forecast)
}

/// The service as it is when `release` is rolled out; none: it would not come to its end.
pub fn state_after(state: &ServiceState, release: &Release) -> Option<ServiceState> {
    rehearsal::end(state, release).ok()
}

/// The service as it is when the rollout under way has come to its end, as well as it can, or was `taken_back`; none: it
/// would not end.
pub fn state_when_over(state: &ServiceState, taken_back: bool) -> Option<ServiceState> {
    rehearsal::over(state, taken_back).ok()
}

/// The service as it is when this, which is no rollout, has come to its end (moves, replicas that are taken out or come
/// back), and the fewest ready replicas on the way; none: it would not end well.
pub fn state_when_told(state: &ServiceState, kind: EventKind) -> Option<(ServiceState, u32)> {
    rehearsal::told(state, kind).ok()
}

/// The titles of a rollout's stages: one for each step, and `all replicas`. A first deployment,
/// an undo, and a release that keeps what runs have only the last.
pub fn stage_titles(release: &Release, kind: RolloutKind, first_deployment: bool) -> Vec<String> {
    let spec = &release.spec;
    let skipped = first_deployment || kind == RolloutKind::Undo || release.keeps_any();
    let strategy = spec.rollout.effective_strategy();
    let blue_green = !skipped && strategy == Strategy::BlueGreen;
    let switch = spec.rollout.switch_step();
    let journey = spec.rollout.journey();
    let steps: &[StepSpec] = if skipped { &[] } else { &journey };
    let title = |step: &StepSpec| match step {
        StepSpec::Weight(w) => format!("weight {w} %"),
        StepSpec::Scale(scale) => format!("scale {scale}"),
        StepSpec::Bake(d) => format!("bake {}", time::short(*d)),
        StepSpec::Analyse(name) => {
            let duration =
                spec.analysis.get(name).map_or(AnalysisSpec::default().duration, |a| a.duration);
            format!("analyse {name} ({})", time::short(duration))
        }
        StepSpec::Approve(true) => "approve".to_owned(),
        StepSpec::Approve(false) => "approve (off)".to_owned(),
        StepSpec::Run(run) => format!("run {}", run.title()),
    };
    let last = match strategy {
        Strategy::BlueGreen if !skipped => "the old set goes",
        Strategy::Recreate if !first_deployment && !release.keeps_any() => {
            "all old ones go, then all replicas"
        }
        _ => "all replicas",
    };
    let titles = steps.iter().enumerate().map(|(index, step)| match step {
        StepSpec::Scale(_) if blue_green && index == 0 => "second set, no traffic".to_owned(),
        StepSpec::Weight(_) if blue_green => "switch all traffic".to_owned(),
        StepSpec::Bake(delay) if blue_green && index > switch => {
            format!("keep the old set {}", time::short(*delay))
        }
        step => title(step),
    });
    titles.chain([last.to_owned()]).collect()
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
    if let Some(held) = &state.held {
        return refuse(
            format!("the service is held: {}", held.why),
            "mend that first: nothing of it is taken out or begun until then",
        );
    }
    if let Some(loan) = state.binding_loan() {
        return refuse(format!("{} is {}", loan.replica, loan.to), &loan.to.way_back());
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

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_point_is_where_the_fewest_get_requests() {
        let stage = |ready, serving| Stage {
            lowest_ready: ready,
            lowest_serving: serving,
            ..Stage::default()
        };
        let forecast = Forecast {
            stages: vec![stage(4, 4), stage(4, 2), stage(5, 2)],
            lowest_ready: 4,
            floor: 2,
            ..Forecast::default()
        };
        assert_eq!((forecast.lowest_stage(), forecast.lowest_serving()), (Some(1), 2));
    }
}
