//! What an analysis asks for, in words: all of it, so that a plan says what it will be judged by.

use super::{AnalysisSpec, DeviceKind, EngineMetric, GoldenPrompt, PrometheusCheck};
use crate::base::text;

/// Longest words of a prompt, an answer or a query that are shown, in characters.
const SHOWN: usize = 80;

impl EngineMetric {
    /// For people.
    pub const fn title(self) -> &'static str {
        match self {
            Self::FirstToken => "time to first token",
            Self::InterToken => "inter-token latency",
            Self::EndToEnd => "end-to-end latency",
            Self::KvUsage => "KV cache use",
            Self::Waiting => "waiting requests",
            Self::ErrorRate => "error rate",
            Self::Preemptions => "preemptions",
        }
    }

    /// A share of requests, not a value of each.
    const fn is_share(self) -> bool {
        matches!(self, Self::ErrorRate | Self::Preemptions)
    }
}

impl AnalysisSpec {
    /// Everything that it judges, for a service on such devices.
    pub fn gates(&self, device: DeviceKind) -> Vec<String> {
        let mut gates = vec![format!(
            "errors ≤ {:.1} % of ≥ {} requests",
            self.max_error_rate * 100.0,
            self.min_requests
        )];
        if let Some(max) = self.max_latency {
            gates.push(format!("latency ≤ {} (mean)", humantime::format_duration(max)));
        }
        self.engine_gates(&mut gates);
        gates.push(format!(
            "where no latencies can be compared: mean latency ≤ {:.1}× the old release's, or a person decides",
            self.max_latency_ratio
        ));
        if device == DeviceKind::Gpu {
            if self.gpu.errors {
                gates.push("no new GPU error".to_owned());
            }
            if self.gpu.max_throttled < 1.0 {
                let share = self.gpu.max_throttled * 100.0;
                gates.push(format!("GPUs throttled in ≤ {share:.0} % of the samples"));
            }
        }
        gates.extend(self.golden.iter().map(golden));
        gates.extend(self.prometheus.iter().map(query));
        gates
    }

    fn engine_gates(&self, gates: &mut Vec<String>) {
        let engine = &self.engine;
        let (shares, values): (Vec<EngineMetric>, Vec<EngineMetric>) =
            engine.compare.iter().partition(|metric| metric.is_share());
        if !values.is_empty() {
            let titles: Vec<&str> = values.iter().map(|m| m.title()).collect();
            gates.push(format!(
                "{} not significantly over {:.1}× the old release's (p < {}; with < {} samples of each a person decides)",
                titles.join(", "),
                self.max_latency_ratio,
                engine.significance,
                engine.min_samples
            ));
        }
        if !shares.is_empty() {
            let titles: Vec<&str> = shares.iter().map(|m| m.title()).collect();
            gates.push(format!(
                "{} not significantly over the old release's by 1 % of the requests (p < {}; with < {} of each a person decides)",
                titles.join(", "),
                engine.significance,
                engine.min_samples
            ));
        }
        for (metric, max) in [
            (EngineMetric::FirstToken, engine.max_first_token),
            (EngineMetric::InterToken, engine.max_inter_token),
            (EngineMetric::EndToEnd, engine.max_end_to_end),
        ] {
            if let Some(max) = max {
                let max = humantime::format_duration(max);
                gates.push(format!("{} ≤ {max} (95th percentile)", metric.title()));
            }
        }
        if let Some(max) = engine.max_kv_usage {
            let share = max * 100.0;
            gates.push(format!("{} ≤ {share:.0} % (mean)", EngineMetric::KvUsage.title()));
        }
        if let Some(max) = engine.max_waiting {
            gates.push(format!("{} ≤ {max} (mean of a replica)", EngineMetric::Waiting.title()));
        }
        if let Some(max) = engine.max_preemptions {
            gates.push(format!("preemptions ≤ {max} for each finished request"));
        }
    }
}

fn golden(golden: &GoldenPrompt) -> String {
    let words = golden.contains.iter().map(|w| format!("`{}`", text::clean(w, SHOWN)));
    let expression = golden.expect.iter().map(|e| format!("/{}/", text::clean(e, SHOWN)));
    let expected: Vec<String> = words.chain(expression).collect();
    format!("`{}` → {}", text::clean(&golden.prompt, SHOWN), expected.join(" and "))
}

fn query(check: &PrometheusCheck) -> String {
    let good = check.success.iter().map(ToString::to_string);
    let bad = check.failure.iter().map(|c| format!("not {c}"));
    let conditions: Vec<String> = good.chain(bad).collect();
    let delay = check.delay();
    let interval = humantime::format_duration(check.interval);
    let first = humantime::format_duration(delay);
    let when = match check.count {
        0 | 1 => format!("once, after {first}"),
        count if delay == check.interval => format!("{count} times, every {interval}"),
        count => format!("{count} times, every {interval}, the first after {first}"),
    };
    format!("`{}`: {} ({when})", text::clean(&check.query, SHOWN), conditions.join(", "))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_source_is_named() {
        let spec: AnalysisSpec = toml::from_str(
            r#"
            max_latency = "2s"
            gpu = { max_throttled = 0.1 }
            prometheus = { url = "http://p", query = "up", failure = "result < 1", count = 3 }
            [engine]
            compare = ["first_token", "error_rate", "waiting", "preemptions"]
            max_first_token = "2s"
            max_inter_token = "100ms"
            max_end_to_end = "1m"
            max_kv_usage = 0.95
            max_waiting = 10
            max_preemptions = 0.1
            [[golden]]
            prompt = "2+2="
            expect = "^ ?4"
            "#,
        )
        .unwrap();
        assert_eq!(
            spec.gates(DeviceKind::Gpu),
            [
                "errors ≤ 2.0 % of ≥ 10 requests",
                "latency ≤ 2s (mean)",
                "time to first token, waiting requests not significantly over 2.0× the old release's \
                 (p < 0.01; with < 30 samples of each a person decides)",
                "error rate, preemptions not significantly over the old release's by 1 % of the requests \
                 (p < 0.01; with < 30 of each a person decides)",
                "time to first token ≤ 2s (95th percentile)",
                "inter-token latency ≤ 100ms (95th percentile)",
                "end-to-end latency ≤ 1m (95th percentile)",
                "KV cache use ≤ 95 % (mean)",
                "waiting requests ≤ 10 (mean of a replica)",
                "preemptions ≤ 0.1 for each finished request",
                "where no latencies can be compared: mean latency ≤ 2.0× the old release's, or a person decides",
                "no new GPU error",
                "GPUs throttled in ≤ 10 % of the samples",
                "`2+2=` → /^ ?4/",
                "`up`: not result < 1 (3 times, every 1m)",
            ]
        );
        let gates = AnalysisSpec::default().gates(DeviceKind::Cpu);
        assert!(gates.iter().all(|g| !g.contains("GPU")), "{gates:?}");
    }
}
