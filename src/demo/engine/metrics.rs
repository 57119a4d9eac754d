//! The engine's `/metrics` under vLLM's names (read from vLLM's `v1/metrics/loggers.py`).

use std::fmt::Write as _;
use std::time::Duration;

const TTFT_BUCKETS: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
];
const TOKEN_BUCKETS: &[f64] = &[
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
    40.0, 80.0,
];
const E2E_BUCKETS: &[f64] = &[
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    480.0, 960.0, 1920.0, 7680.0,
];

/// How a request ended, as vLLM names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Finished {
    /// The answer came to its own end.
    Stop,
    /// It was cut at `max_tokens`.
    Length,
    /// The client left.
    Abort,
    /// It failed.
    Error,
}

const FINISHED: [(Finished, &str); 4] = [
    (Finished::Stop, "stop"),
    (Finished::Length, "length"),
    (Finished::Abort, "abort"),
    (Finished::Error, "error"),
];

/// A Prometheus histogram.
#[derive(Debug)]
struct Histogram {
    buckets: &'static [f64],
    counts: Vec<u64>,
    sum: f64,
    count: u64,
}

impl Histogram {
    fn new(buckets: &'static [f64]) -> Self {
        Self { buckets, counts: vec![0; buckets.len()], sum: 0.0, count: 0 }
    }

    fn observe(&mut self, value: Duration) {
        let value = value.as_secs_f64();
        for (bound, count) in self.buckets.iter().zip(&mut self.counts) {
            *count += u64::from(value <= *bound);
        }
        self.sum += value;
        self.count += 1;
    }

    fn write(&self, out: &mut String, name: &str, labels: &str) {
        let _ = writeln!(out, "# TYPE {name} histogram");
        for (bound, count) in self.buckets.iter().zip(&self.counts) {
            let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{bound:?}\"}} {count}");
        }
        let _ = writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {}", self.count);
        let _ = writeln!(out, "{name}_sum{{{labels}}} {}", self.sum);
        let _ = writeln!(out, "{name}_count{{{labels}}} {}", self.count);
    }
}

/// Everything that is counted.
#[derive(Debug)]
pub(super) struct Metrics {
    pub running: u64,
    pub waiting: u64,
    finished: [u64; 4],
    pub prompt_tokens: u64,
    pub generation_tokens: u64,
    first_token: Histogram,
    inter_token: Histogram,
    per_output_token: Histogram,
    whole: Histogram,
}

impl Metrics {
    pub(super) fn new() -> Self {
        Self {
            running: 0,
            waiting: 0,
            finished: [0; 4],
            prompt_tokens: 0,
            generation_tokens: 0,
            first_token: Histogram::new(TTFT_BUCKETS),
            inter_token: Histogram::new(TOKEN_BUCKETS),
            per_output_token: Histogram::new(TOKEN_BUCKETS),
            whole: Histogram::new(E2E_BUCKETS),
        }
    }

    /// A token after `since` the request (the first one) or the token before it.
    pub(super) fn token(&mut self, first: bool, since: Duration) {
        self.generation_tokens += 1;
        if first { self.first_token.observe(since) } else { self.inter_token.observe(since) }
    }

    /// A request of `tokens` tokens ended `total` after it began; the first came after `first`.
    pub(super) fn end(&mut self, how: Finished, tokens: u32, first: Duration, total: Duration) {
        for ((kind, _), count) in FINISHED.iter().zip(&mut self.finished) {
            *count += u64::from(*kind == how);
        }
        if matches!(how, Finished::Stop | Finished::Length) {
            self.whole.observe(total);
            if let Some(gaps) = tokens.checked_sub(1).filter(|gaps| *gaps > 0) {
                self.per_output_token.observe(total.saturating_sub(first) / gaps);
            }
        }
    }

    /// The text of `/metrics`.
    pub(super) fn text(&self, model: &str, capacity: u32) -> String {
        let model = model.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n");
        let labels = format!("engine=\"0\",model_name=\"{model}\"");
        let mut out = String::from("# SIMULATED by gpudeck: no model, no GPU\n");
        let usage = (self.running as f64 / f64::from(capacity)).min(1.0);
        for (name, value) in [
            ("vllm:num_requests_running", self.running as f64),
            ("vllm:num_requests_waiting", self.waiting as f64),
            ("vllm:kv_cache_usage_perc", usage),
        ] {
            let _ = writeln!(out, "# TYPE {name} gauge\n{name}{{{labels}}} {value:?}");
        }
        for (name, value) in [
            ("vllm:num_preemptions_total", 0),
            ("vllm:prompt_tokens_total", self.prompt_tokens),
            ("vllm:generation_tokens_total", self.generation_tokens),
        ] {
            let _ = writeln!(out, "# TYPE {name} counter\n{name}{{{labels}}} {value}.0");
        }
        let name = "vllm:request_success_total";
        let _ = writeln!(out, "# TYPE {name} counter");
        for ((_, reason), count) in FINISHED.iter().zip(self.finished) {
            let _ = writeln!(out, "{name}{{{labels},finished_reason=\"{reason}\"}} {count}.0");
        }
        self.first_token.write(&mut out, "vllm:time_to_first_token_seconds", &labels);
        self.inter_token.write(&mut out, "vllm:inter_token_latency_seconds", &labels);
        let per_token = "vllm:request_time_per_output_token_seconds";
        self.per_output_token.write(&mut out, per_token, &labels);
        self.whole.write(&mut out, "vllm:e2e_request_latency_seconds", &labels);
        out
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn histograms_are_cumulative_and_labels_are_escaped() {
        let mut metrics = Metrics::new();
        metrics.token(true, Duration::from_millis(90));
        metrics.token(false, Duration::from_millis(15));
        metrics.end(Finished::Stop, 2, Duration::from_millis(90), Duration::from_millis(105));
        let text = metrics.text("a\"b", 4);
        let labels = "engine=\"0\",model_name=\"a\\\"b\"";
        for line in [
            format!("vllm:time_to_first_token_seconds_bucket{{{labels},le=\"0.08\"}} 0"),
            format!("vllm:time_to_first_token_seconds_bucket{{{labels},le=\"0.1\"}} 1"),
            format!("vllm:time_to_first_token_seconds_bucket{{{labels},le=\"+Inf\"}} 1"),
            format!("vllm:inter_token_latency_seconds_count{{{labels}}} 1"),
            format!("vllm:request_success_total{{{labels},finished_reason=\"stop\"}} 1.0"),
            format!("vllm:num_requests_running{{{labels}}} 0.0"),
        ] {
            assert!(text.lines().any(|l| l == line), "no {line} in\n{text}");
        }
    }
}
