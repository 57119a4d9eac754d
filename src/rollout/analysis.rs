//! Is the new release as good as the old one? What was measured, and the verdict.

use serde::{Deserialize, Serialize};

use crate::base::Timestamp;
use crate::spec::AnalysisSpec;

/// What was seen of some replicas over some time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Window {
    /// Finished requests.
    pub requests: u64,
    /// Those that failed: a 5xx status, a refused or a broken connection.
    pub errors: u64,
    /// Sum of their response times, milliseconds.
    pub response_ms_sum: f64,
}

impl Window {
    /// Adds what was seen later or elsewhere. Nonsense (not a number, negative, more errors than
    /// requests) is bounded instead of believed: the numbers come from the network.
    pub fn add(&mut self, other: &Self) {
        self.requests = self.requests.saturating_add(other.requests);
        self.errors = self.errors.saturating_add(other.errors.min(other.requests));
        if other.response_ms_sum.is_finite() && other.response_ms_sum > 0.0 {
            self.response_ms_sum = (self.response_ms_sum + other.response_ms_sum).min(1e15);
        }
    }

    /// Share of failed requests, 0 to 1; none without requests.
    pub fn error_rate(&self) -> Option<f64> {
        (self.requests > 0).then(|| self.errors as f64 / self.requests as f64)
    }

    /// Mean response time in milliseconds; none without requests.
    pub fn mean_response_ms(&self) -> Option<f64> {
        (self.requests > 0).then(|| self.response_ms_sum / self.requests as f64)
    }
}

/// What an analysis says, and the number that decided.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// Its name in the spec.
    pub analysis: String,
    /// Go on, go back, or ask a person.
    pub result: VerdictResult,
    /// The number that decided: `error rate 31.0 % (62 of 200) > 2.0 %`.
    pub reason: String,
    /// When.
    pub at: Timestamp,
}

/// Go on, go back, or ask a person.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VerdictResult {
    /// As good as the old one.
    Success,
    /// Worse.
    Failed,
    /// Too little was seen.
    Inconclusive,
}

/// Judges what was measured. `last`: the time is over and a verdict is due; before that only a
/// failure is final (enough requests, and a limit exceeded), anything else is none.
///
/// The latency ratio is judged only when stable, too, had `min_requests`.
pub fn evaluate(
    spec: &AnalysisSpec,
    new: &Window,
    old: &Window,
    last: bool,
) -> Option<(VerdictResult, String)> {
    let enough = spec.min_requests.max(1);
    if new.requests < enough {
        return last.then(|| {
            (
                VerdictResult::Inconclusive,
                format!("{} requests reached the canary < {enough} needed", new.requests),
            )
        });
    }
    let error_rate = new.error_rate().unwrap_or(0.0);
    let errors = format!("({} of {})", new.errors, new.requests);
    let limit = spec.max_error_rate;
    if error_rate > limit {
        let why = format!("error rate {} {errors} > {}", percent(error_rate), percent(limit));
        return Some((VerdictResult::Failed, why));
    }
    let mean = new.mean_response_ms().unwrap_or(0.0);
    if let Some(max) = spec.max_latency {
        let max = max.as_secs_f64() * 1000.0;
        if mean > max {
            let why = format!("mean response {} > {}", millis(mean), millis(max));
            return Some((VerdictResult::Failed, why));
        }
    }
    let stable_mean = old.mean_response_ms().filter(|m| old.requests >= enough && *m > 0.0);
    let ratio = stable_mean.map(|stable| (mean / stable, stable));
    if let Some((ratio, stable)) = ratio
        && ratio > spec.max_latency_ratio
    {
        let why = format!(
            "mean response {ratio:.2} times stable's ({} against {}) > {:.2}",
            millis(mean),
            millis(stable),
            spec.max_latency_ratio
        );
        return Some((VerdictResult::Failed, why));
    }
    last.then(|| {
        let latency = match ratio {
            Some((ratio, _)) => {
                format!("mean response {ratio:.2} times stable's ≤ {:.2}", spec.max_latency_ratio)
            }
            None => format!(
                "mean response {}, not compared: {} requests at stable < {enough}",
                millis(mean),
                old.requests
            ),
        };
        let why =
            format!("error rate {} {errors} ≤ {}; {latency}", percent(error_rate), percent(limit));
        (VerdictResult::Success, why)
    })
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

fn millis(ms: f64) -> String {
    if ms < 10.0 { format!("{ms:.1} ms") } else { format!("{ms:.0} ms") }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn window(requests: u64, errors: u64, mean_ms: f64) -> Window {
        Window { requests, errors, response_ms_sum: mean_ms * requests as f64 }
    }

    fn judge(new: Window, old: Window, last: bool) -> Option<(VerdictResult, String)> {
        let spec =
            AnalysisSpec { max_latency: Some(Duration::from_secs(2)), ..AnalysisSpec::default() };
        evaluate(&spec, &new, &old, last)
    }

    #[test]
    fn says_which_number_decided() {
        let old = window(400, 0, 100.0);
        let (result, why) = judge(window(200, 62, 100.0), old, false).unwrap();
        assert_eq!(result, VerdictResult::Failed);
        assert_eq!(why, "error rate 31.0 % (62 of 200) > 2.0 %");
        let (_, why) = judge(window(200, 0, 250.0), old, false).unwrap();
        assert_eq!(why, "mean response 2.50 times stable's (250 ms against 100 ms) > 2.00");
        let (_, why) = judge(window(200, 0, 2500.0), window(400, 0, 2000.0), false).unwrap();
        assert_eq!(why, "mean response 2500 ms > 2000 ms");
        let (result, why) = judge(window(200, 1, 110.0), old, true).unwrap();
        assert_eq!(result, VerdictResult::Success);
        assert_eq!(
            why,
            "error rate 0.5 % (1 of 200) ≤ 2.0 %; mean response 1.10 times stable's ≤ 2.00"
        );
    }

    #[test]
    fn fails_early_but_passes_only_at_the_end() {
        let old = window(400, 0, 100.0);
        assert_eq!(judge(window(200, 0, 100.0), old, false), None);
        assert_eq!(judge(window(9, 9, 100.0), old, false), None);
        let (result, why) = judge(window(9, 9, 100.0), old, true).unwrap();
        assert_eq!(result, VerdictResult::Inconclusive);
        assert_eq!(why, "9 requests reached the canary < 10 needed");
    }

    #[test]
    fn without_requests_at_stable_only_the_absolute_limits_count() {
        let (result, why) = judge(window(50, 0, 900.0), window(0, 0, 0.0), true).unwrap();
        assert_eq!(result, VerdictResult::Success);
        assert!(why.contains("not compared"), "{why}");
    }

    #[test]
    fn nonsense_from_the_network_is_bounded() {
        let mut sum = window(10, 1, 10.0);
        sum.add(&Window { requests: 5, errors: 50, response_ms_sum: f64::NAN });
        sum.add(&Window { requests: u64::MAX, errors: 0, response_ms_sum: -3.0 });
        assert_eq!(sum.errors, 6);
        assert_eq!(sum.requests, u64::MAX);
        assert!((sum.response_ms_sum - 100.0).abs() < 1e-9);
    }
}
