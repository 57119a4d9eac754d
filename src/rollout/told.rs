//! Which limits of an analysis an engine's metrics can be measured by. Pure tables; what was measured is in
//! `engine_samples`.

use crate::engine::metrics::{Aliases, Names};
use crate::spec::{EngineAnalysis, EngineMetric, ServiceSpec, StepSpec};

/// What an engine tells of itself, as far as limits ask for it.
struct Told {
    first_token: bool,
    inter_token: bool,
    end_to_end: bool,
    kv_usage: bool,
    waiting: bool,
    preemptions: bool,
}

impl Told {
    fn by(spec: &ServiceSpec) -> Self {
        let names = Names::of(&spec.engine);
        let tells = |what: fn(&Names) -> Aliases| names.is_some_and(|n| !what(n).is_empty());
        Self {
            first_token: tells(|n| n.first_token),
            inter_token: tells(|n| n.inter_token),
            end_to_end: tells(|n| n.end_to_end),
            kv_usage: tells(|n| n.kv_usage),
            waiting: tells(|n| n.waiting),
            // For each finished request.
            preemptions: tells(|n| n.preemptions) && tells(|n| n.finished),
        }
    }

    const fn tells(&self, metric: EngineMetric) -> bool {
        match metric {
            EngineMetric::FirstToken => self.first_token,
            EngineMetric::InterToken => self.inter_token,
            EngineMetric::EndToEnd => self.end_to_end,
            EngineMetric::KvUsage => self.kv_usage,
            EngineMetric::Waiting => self.waiting,
            EngineMetric::Preemptions => self.preemptions,
            // The gateway counts them, whatever the engine says.
            EngineMetric::ErrorRate => true,
        }
    }

    fn lacks(&self, asked: &EngineAnalysis) -> Vec<&'static str> {
        let limits = [
            ("max_first_token", asked.max_first_token.is_some(), self.first_token),
            ("max_inter_token", asked.max_inter_token.is_some(), self.inter_token),
            ("max_end_to_end", asked.max_end_to_end.is_some(), self.end_to_end),
            ("max_kv_usage", asked.max_kv_usage.is_some(), self.kv_usage),
            ("max_waiting", asked.max_waiting.is_some(), self.waiting),
            ("max_preemptions", asked.max_preemptions.is_some(), self.preemptions),
        ];
        let lacking = limits.into_iter().filter(|(_, asked, told)| *asked && !told);
        lacking.map(|(name, ..)| name).collect()
    }
}

/// Limits of the analyses on a service's journey that its engine can never be measured by, for people: each
/// analysis with one waits for a person in the middle of the rollout.
pub fn untold_limits(spec: &ServiceSpec) -> Vec<String> {
    let told = Told::by(spec);
    let mut found = Vec::new();
    for step in &spec.rollout.steps {
        let StepSpec::Analyse(name) = step else { continue };
        let Some(analysis) = spec.analysis.get(name) else { continue };
        let lacking = told.lacks(&analysis.engine);
        found.extend(lacking.into_iter().map(|limit| format!("{limit} of analysis {name}")));
    }
    found.sort();
    found.dedup();
    found
}

/// Analyses on a service's journey that are decided by counted requests, for people: where no gateway counts them and
/// the engine does not tell them either, each waits for a person.
pub fn uncounted_analyses(spec: &ServiceSpec) -> Vec<String> {
    if Names::of(&spec.engine).is_some_and(|names| !names.finished.is_empty()) {
        return Vec::new();
    }
    let steps = spec.rollout.steps.iter();
    let mut found: Vec<String> = steps
        .filter_map(|step| match step {
            StepSpec::Analyse(name) => Some(name),
            _ => None,
        })
        .filter(|name| spec.analysis.get(*name).is_some_and(|a| a.min_requests > 0))
        .cloned()
        .collect();
    found.sort();
    found.dedup();
    found
}

/// Whether the engine of a spec (or the gateway before it) tells of this.
pub(super) fn tells(spec: &ServiceSpec, metric: EngineMetric) -> bool {
    Told::by(spec).tells(metric)
}

/// The spec for a rehearsal, in which whatever the engine tells is within its limits.
pub(super) fn within_limits(mut spec: ServiceSpec) -> ServiceSpec {
    let told = Told::by(&spec);
    for analysis in spec.analysis.values_mut() {
        let asked = &mut analysis.engine;
        asked.max_first_token.take_if(|_| told.first_token);
        asked.max_inter_token.take_if(|_| told.inter_token);
        asked.max_end_to_end.take_if(|_| told.end_to_end);
        asked.max_kv_usage.take_if(|_| told.kv_usage);
        asked.max_waiting.take_if(|_| told.waiting);
        asked.max_preemptions.take_if(|_| told.preemptions);
    }
    spec
}
