//! What an analysis was asked to compare with stable and could not, for too few samples: that is no success. It is
//! measured as long as the analysis lasts; what then still lacks a person decides.
//!
//! Only what could have been compared lacks: what the engines of both releases tell, while requests are sent to
//! stable, too. An analysis without `min_requests` asks for no requests, so nothing of them lacks.

use super::analysis::LimitRule;
use super::engine_samples::enough_to_compare;
use super::means;
use super::state::{Rollout, ServiceState};
use super::told;
use crate::base::TrafficMode;
use crate::spec::{AnalysisSpec, EngineMetric};

/// A comparison that was not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooFew {
    /// What was to be compared.
    pub metric: EngineMetric,
    /// Samples of the canary.
    pub new: u64,
    /// Samples of stable.
    pub old: u64,
}

/// What an analysis goes by, besides its spec and what was measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    /// How its limits are looked at.
    pub rule: LimitRule,
    /// Requests are sent to stable, too: there is something to compare with.
    pub stable_reached: bool,
    /// What the engines of both releases tell.
    pub told: Vec<EngineMetric>,
}

impl Terms {
    /// Those of the rollout under way.
    pub(super) fn of(state: &ServiceState, rollout: &Rollout, spec: &AnalysisSpec) -> Self {
        let stable_reached = state.traffic.iter().any(|server| {
            state.owner_of(server.replica) != rollout.to
                && server.mode == TrafficMode::Ready
                && server.weight > 0
        });
        let releases: Vec<_> = [Some(rollout.to), rollout.from]
            .into_iter()
            .flatten()
            .filter_map(|number| state.releases.get(&number))
            .collect();
        let told_by_both = |metric: &EngineMetric| {
            releases.iter().all(|release| told::tells(&release.spec, *metric))
        };
        let told = spec.engine.compare.iter().copied().filter(told_by_both).collect();
        Self { rule: rollout.limits, stable_reached, told }
    }

    /// Whether anything has to be compared for a success.
    fn asks(&self, spec: &AnalysisSpec) -> bool {
        self.rule >= LimitRule::Compared && self.stable_reached && spec.min_requests > 0
    }

    /// Whether the gateway's mean has to stand in for latencies that no rank test compared.
    pub(super) fn asks_for_mean(&self, spec: &AnalysisSpec, lacking: &[TooFew]) -> bool {
        let is_latency = |metric: EngineMetric| means::of_requests(metric);
        self.asks(spec)
            && spec.engine.compare.iter().copied().any(is_latency)
            && !lacking.iter().any(|few| is_latency(few.metric))
    }

    /// Whether a comparison of shares by the gateway's own counts has to be made.
    pub(super) fn asks_for_errors(&self, spec: &AnalysisSpec) -> bool {
        self.asks(spec)
    }

    /// Parts what was not compared into what lacks and what could not have been compared anyway: an engine that gave
    /// no such number of either release has none (an answer of one token has no pauses).
    pub(super) fn part(
        &self,
        spec: &AnalysisSpec,
        too_few: &[TooFew],
    ) -> (Vec<TooFew>, Vec<TooFew>) {
        let lacks = |few: &TooFew| {
            self.asks(spec) && self.told.contains(&few.metric) && few.new.max(few.old) > 0
        };
        too_few.iter().copied().partition(lacks)
    }
}

/// What was not compared, for people; those with the same number of samples are told together.
pub(super) fn words(spec: &AnalysisSpec, too_few: &[TooFew]) -> Vec<String> {
    let mut groups: Vec<((u64, u64), Vec<&str>)> = Vec::new();
    for few in too_few {
        let counts = (few.new, few.old);
        match groups.iter_mut().find(|(seen, _)| *seen == counts) {
            Some((_, titles)) => titles.push(few.metric.title()),
            None => groups.push((counts, vec![few.metric.title()])),
        }
    }
    let tell = |((mine, theirs), titles): ((u64, u64), Vec<&str>)| {
        format!(
            "{} not compared: {mine} samples of the canary and {theirs} of stable, {} needed of each",
            titles.join(", "),
            enough_to_compare(spec)
        )
    };
    groups.into_iter().map(tell).collect()
}

/// What can be done about it, for people.
pub(super) const WAY_OUT: &str =
    "give the analysis more traffic or a longer duration, or ask for fewer min_samples";
