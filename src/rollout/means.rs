//! The mean response of an analysis: its absolute limit, and how it stands to stable's.
//!
//! Two means fail no rollout. The gateway's is `HAProxy`'s `rtime`, an average over the last 1,024 requests
//! of a server: stable's reaches back to before the analysis, so the two are not of the same time. And the
//! mean of a skewed latency is ruled by its few longest requests: two equal releases are apart by a factor of
//! two in 3 to 19 % of analyses, depending on the skew. The engines' rank test compares latencies
//! ([`super::engine_samples`]); where it could not, a person looks.

use super::analysis::{LimitRule, VerdictResult, Window};
use crate::spec::{AnalysisSpec, EngineMetric};

/// What ended an analysis, with its number.
type Decided = (VerdictResult, String);

/// How the canary's mean stands to stable's.
enum Ratio {
    /// Nothing to compare; in words.
    TooFew(String),
    /// Within the spec's ratio; in words.
    Within(String),
    /// Above it; in words.
    Above(String),
}

/// The mean response at the end: within its limits, or what decided. From [`LimitRule::Ranked`] on only its
/// absolute limit counts here, and the rest is [`beside_ranks`].
pub(super) fn latency(
    spec: &AnalysisSpec,
    new: &Window,
    old: &Window,
    rule: LimitRule,
) -> Result<Option<String>, Decided> {
    let enough = enough(spec, rule);
    let mean = new.mean_response_ms().unwrap_or(0.0);
    if let Some(max) = spec.max_latency {
        let max = max.as_secs_f64() * 1000.0;
        if mean > max {
            let why = format!("mean response {} > {}", millis(mean), millis(max));
            return Err(if new.requests >= enough {
                (VerdictResult::Failed, why)
            } else {
                let few = format!("{} requests < {enough} needed", new.requests);
                (VerdictResult::Inconclusive, format!("{why}: may be chance, {few}"))
            });
        }
    }
    if rule >= LimitRule::Ranked {
        return Ok(None);
    }
    match ratio(spec, new, old, enough) {
        Ratio::TooFew(words) | Ratio::Within(words) => Ok(Some(words)),
        Ratio::Above(words) => Err((VerdictResult::Failed, words)),
    }
}

/// What the mean says beside the rank test of the engines' latencies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum BesideRanks {
    /// Within the ratio, or ranks were compared instead.
    Told(String),
    /// Too few requests to compare.
    TooFew(String),
    /// It is above the ratio, and no ranks say whether that is more than chance: a person must look.
    Doubtful(String),
}

/// The mean against stable's, beside the rank test of the engines' latencies (`ranked`: there was one).
pub(super) fn beside_ranks(
    spec: &AnalysisSpec,
    new: &Window,
    old: &Window,
    ranked: bool,
) -> BesideRanks {
    let above = match ratio(spec, new, old, enough(spec, LimitRule::Ranked)) {
        Ratio::TooFew(words) => return BesideRanks::TooFew(words),
        Ratio::Within(words) | Ratio::Above(words) if ranked => {
            return BesideRanks::Told(format!("{words}, not judged: ranks were compared"));
        }
        Ratio::Within(words) => return BesideRanks::Told(words),
        Ratio::Above(words) => words,
    };
    let why = if spec.engine.compare.iter().any(|metric| of_requests(*metric)) {
        "no rank test was possible"
    } else {
        "no rank test was asked for"
    };
    BesideRanks::Doubtful(format!(
        "{above}: may be chance or history, since this is the mean of HAProxy's last 1,024 requests of each server \
         (without a gateway of all that the engines served), and {why}"
    ))
}

/// Latencies of whole requests or of their beginning, as the gateway's mean is. (The pauses between the tokens of
/// one answer say little of others.)
pub(super) const fn of_requests(metric: EngineMetric) -> bool {
    matches!(metric, EngineMetric::FirstToken | EngineMetric::EndToEnd)
}

/// Requests that a mean is of at least.
fn enough(spec: &AnalysisSpec, rule: LimitRule) -> u64 {
    let samples = match rule {
        LimitRule::Plain => 1,
        _ => spec.engine.min_samples,
    };
    spec.min_requests.max(samples).max(1)
}

fn ratio(spec: &AnalysisSpec, new: &Window, old: &Window, enough: u64) -> Ratio {
    let mean = new.mean_response_ms().unwrap_or(0.0);
    let stable_mean = old.mean_response_ms().filter(|stable| *stable > 0.0);
    let Some(stable) = stable_mean.filter(|_| new.requests.min(old.requests) >= enough) else {
        return Ratio::TooFew(format!(
            "mean response {}, not compared: {} requests at the canary and {} at stable, {enough} needed of each",
            millis(mean),
            new.requests,
            old.requests
        ));
    };
    let (ratio, limit) = (mean / stable, spec.max_latency_ratio);
    if ratio > limit {
        return Ratio::Above(format!(
            "mean response {ratio:.2} times stable's ({} against {}) > {limit:.2}",
            millis(mean),
            millis(stable),
        ));
    }
    Ratio::Within(format!("mean response {ratio:.2} times stable's ≤ {limit:.2}"))
}

fn millis(ms: f64) -> String {
    if ms < 10.0 { format!("{ms:.1} ms") } else { format!("{ms:.0} ms") }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
mod tests {
    use super::*;

    fn window(requests: u64, mean_ms: f64) -> Window {
        Window { requests, errors: 0, response_ms_sum: mean_ms * requests as f64 }
    }

    const SLOW: f64 = 250.0;

    #[test]
    fn two_means_fail_only_rollouts_of_older_rules() {
        let spec = AnalysisSpec::default();
        let (new, old) = (window(200, SLOW), window(400, 100.0));
        let why = "mean response 2.50 times stable's (250 ms against 100 ms) > 2.00";
        for rule in [LimitRule::Plain, LimitRule::Sequential] {
            let failed = Err((VerdictResult::Failed, why.to_owned()));
            assert_eq!(latency(&spec, &new, &old, rule), failed);
        }
        assert_eq!(latency(&spec, &new, &old, LimitRule::Ranked), Ok(None));
        assert_eq!(
            beside_ranks(&spec, &new, &old, true),
            BesideRanks::Told(format!("{why}, not judged: ranks were compared"))
        );
        let doubtful = |spec: &AnalysisSpec| match beside_ranks(spec, &new, &old, false) {
            BesideRanks::Doubtful(why) => why,
            other => panic!("{other:?}"),
        };
        let asked = doubtful(&spec);
        assert!(asked.starts_with(&format!("{why}: may be chance or history")), "{asked}");
        assert!(asked.contains("HAProxy's last 1,024 requests"), "{asked}");
        assert!(asked.ends_with("no rank test was possible"), "{asked}");
        let mut unasked = spec;
        unasked.engine.compare = vec![EngineMetric::Waiting];
        let asked = doubtful(&unasked);
        assert!(asked.ends_with("no rank test was asked for"), "{asked}");
    }

    #[test]
    fn a_mean_within_the_ratio_or_of_few_requests_asks_nobody() {
        let spec = AnalysisSpec::default();
        let near = beside_ranks(&spec, &window(200, 110.0), &window(400, 100.0), false);
        let told = "mean response 1.10 times stable's ≤ 2.00".to_owned();
        assert_eq!(near, BesideRanks::Told(told));
        let few = beside_ranks(&spec, &window(29, SLOW), &window(400, 100.0), false);
        let BesideRanks::TooFew(few) = few else { panic!("{few:?}") };
        assert!(few.contains("not compared: 29 requests at the canary and 400"), "{few}");
        let alone = beside_ranks(&spec, &window(50, SLOW), &window(0, 0.0), false);
        assert!(matches!(alone, BesideRanks::TooFew(_)), "{alone:?}");
    }
}
