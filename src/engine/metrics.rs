//! Engines' own metrics: a bounded reader of Prometheus text and each engine's names.

use super::histogram::{Histogram, MAX_BUCKETS};
use crate::spec::{EngineSpec, MetricNames};

/// Where engines' metrics are.
pub const PATH: &str = "/metrics";

/// Longest text that is read; the rest is left out.
pub const MAX_TEXT: usize = 4 << 20;

/// Most different bucket bounds of one histogram that are looked at.
const MAX_BOUNDS: usize = 4 * MAX_BUCKETS;

/// What an engine calls its metrics; none: it does not have it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// Gauge: requests being worked on.
    pub running: Option<&'static str>,
    /// Gauge: requests waiting.
    pub waiting: Option<&'static str>,
    /// Gauge: share of the KV cache in use, 0 to 1.
    pub kv_usage: Option<&'static str>,
    /// Counter of finished requests; with `finished_reason`, `error` is a failure.
    pub finished: Option<&'static str>,
    /// Counter of requests that failed, where `finished` does not tell.
    pub failed: Option<&'static str>,
    /// Counter of requests that were thrown out of the cache and began again.
    pub preemptions: Option<&'static str>,
    /// Histogram: time to the first token, seconds.
    pub first_token: Option<&'static str>,
    /// Histogram: time between two tokens, seconds.
    pub inter_token: Option<&'static str>,
    /// Histogram: time of a whole request, seconds.
    pub end_to_end: Option<&'static str>,
    /// Counter of generated tokens.
    pub generated: Option<&'static str>,
}

impl Names {
    /// Those of a spec's engine; none if it has no metrics that are understood.
    pub fn of(engine: &EngineSpec) -> Option<&'static Self> {
        let names = match engine {
            EngineSpec::Vllm => MetricNames::Vllm,
            EngineSpec::LlamaCpp => MetricNames::LlamaCpp,
            EngineSpec::Command(command) => command.metrics?,
        };
        Some(match names {
            MetricNames::Vllm => &VLLM,
            MetricNames::Sglang => &SGLANG,
            MetricNames::LlamaCpp => &LLAMA_CPP,
        })
    }
}

/// vLLM's names (`vllm/v1/metrics/loggers.py`).
pub const VLLM: Names = Names {
    running: Some("vllm:num_requests_running"),
    waiting: Some("vllm:num_requests_waiting"),
    kv_usage: Some("vllm:kv_cache_usage_perc"),
    finished: Some("vllm:request_success_total"),
    failed: None,
    preemptions: Some("vllm:num_preemptions_total"),
    first_token: Some("vllm:time_to_first_token_seconds"),
    inter_token: Some("vllm:inter_token_latency_seconds"),
    end_to_end: Some("vllm:e2e_request_latency_seconds"),
    generated: Some("vllm:generation_tokens_total"),
};

/// SGLang's names (`sglang/srt/metrics/collector.py`, with `--enable-metrics`). An aborted request
/// is counted as failed: a client that left and a failure are not told apart there.
pub const SGLANG: Names = Names {
    running: Some("sglang:num_running_reqs"),
    waiting: Some("sglang:num_queue_reqs"),
    kv_usage: Some("sglang:token_usage"),
    finished: Some("sglang:num_requests_total"),
    failed: Some("sglang:num_aborted_requests_total"),
    preemptions: None,
    first_token: Some("sglang:time_to_first_token_seconds"),
    inter_token: Some("sglang:inter_token_latency_seconds"),
    end_to_end: Some("sglang:e2e_request_latency_seconds"),
    generated: Some("sglang:generation_tokens_total"),
};

/// llama.cpp's names (`tools/server/server-context.cpp`): gauges only.
pub const LLAMA_CPP: Names = Names {
    running: Some("llamacpp:requests_processing"),
    waiting: Some("llamacpp:requests_deferred"),
    kv_usage: None,
    finished: None,
    failed: None,
    preemptions: None,
    first_token: None,
    inter_token: None,
    end_to_end: None,
    generated: Some("llamacpp:tokens_predicted_total"),
};

/// What an engine says of itself; what it does not say is absent. Counters since its start.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EngineMetrics {
    /// Requests being worked on.
    pub running: Option<f64>,
    /// Requests waiting.
    pub waiting: Option<f64>,
    /// Share of the KV cache in use, 0 to 1 (the fullest engine core).
    pub kv_usage: Option<f64>,
    /// Requests finished well or left by their client.
    pub requests_success: Option<f64>,
    /// Requests that failed.
    pub requests_error: Option<f64>,
    /// Requests thrown out of the cache that began again.
    pub preemptions: Option<f64>,
    /// Time to the first token.
    pub first_token: Option<Histogram>,
    /// Time between two tokens.
    pub inter_token: Option<Histogram>,
    /// Time of whole requests.
    pub end_to_end: Option<Histogram>,
    /// Tokens generated.
    pub generated: Option<f64>,
}

/// A histogram on its way: lines of several engine cores are added up by bound.
#[derive(Default)]
struct Gathered {
    buckets: Vec<(f64, f64)>,
    sum: f64,
    count: f64,
    seen: bool,
}

impl Gathered {
    /// Takes the line if it belongs to the histogram `name`.
    fn take(&mut self, name: Option<&str>, sample: &Sample<'_>) -> bool {
        let Some(part) = name.and_then(|n| sample.name.strip_prefix(n)) else { return false };
        match part {
            "_sum" => self.sum += sample.value,
            "_count" => self.count += sample.value,
            "_bucket" => {
                let bound = match label(sample.labels, "le") {
                    Some("+Inf") => f64::INFINITY,
                    Some(text) => match text.parse::<f64>() {
                        Ok(bound) if !bound.is_nan() => bound,
                        _ => return true,
                    },
                    None => return true,
                };
                let full = self.buckets.len() >= MAX_BOUNDS;
                match self.buckets.iter_mut().find(|(b, _)| b.total_cmp(&bound).is_eq()) {
                    Some((_, count)) => *count += sample.value,
                    None if full => {}
                    None => self.buckets.push((bound, sample.value)),
                }
            }
            _ => return false,
        }
        self.seen = true;
        true
    }

    fn done(mut self) -> Option<Histogram> {
        // A text that was cut, or an engine without buckets, still has its count.
        let inner = self.buckets.iter().map(|(_, count)| *count).fold(0.0, f64::max);
        if self.count > inner {
            self.buckets.retain(|(bound, _)| bound.is_finite());
            self.buckets.push((f64::INFINITY, self.count));
        }
        self.seen.then(|| Histogram::from_cumulative(self.buckets, self.sum))
    }
}

/// Reads a `/metrics` text. Lines that make no sense are passed over.
pub fn parse(text: &str, names: &Names) -> EngineMetrics {
    let mut end = text.len().min(MAX_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let mut out = EngineMetrics::default();
    let (mut first_token, mut inter_token, mut end_to_end) =
        (Gathered::default(), Gathered::default(), Gathered::default());
    for line in text.get(..end).unwrap_or("").lines() {
        let Some(sample) = sample(line) else { continue };
        let is = |name: Option<&str>| name == Some(sample.name);
        if is(names.running) {
            add(&mut out.running, sample.value);
        } else if is(names.waiting) {
            add(&mut out.waiting, sample.value);
        } else if is(names.kv_usage) {
            out.kv_usage = Some(out.kv_usage.unwrap_or(0.0).max(sample.value));
        } else if is(names.preemptions) {
            add(&mut out.preemptions, sample.value);
        } else if is(names.finished) {
            let failed = label(sample.labels, "finished_reason").is_some_and(|r| r == "error");
            let slot = if failed { &mut out.requests_error } else { &mut out.requests_success };
            add(slot, sample.value);
        } else if is(names.generated) {
            add(&mut out.generated, sample.value);
        } else if is(names.failed) {
            add(&mut out.requests_error, sample.value);
        } else {
            let _ = first_token.take(names.first_token, &sample)
                || inter_token.take(names.inter_token, &sample)
                || end_to_end.take(names.end_to_end, &sample);
        }
    }
    if names.failed.is_some()
        && let (Some(all), Some(failed)) = (out.requests_success.as_mut(), out.requests_error)
    {
        // There the counter of finished requests holds the failed ones, too.
        *all = (*all - failed).max(0.0);
    }
    out.first_token = first_token.done();
    out.inter_token = inter_token.done();
    out.end_to_end = end_to_end.done();
    out
}

fn add(slot: &mut Option<f64>, value: f64) {
    *slot = Some(slot.unwrap_or(0.0) + value);
}

struct Sample<'a> {
    name: &'a str,
    labels: &'a str,
    value: f64,
}

/// `name{labels} value [timestamp]`; none for comments and nonsense (NaN, infinite, negative).
fn sample(line: &str) -> Option<Sample<'_>> {
    let line = line.trim();
    if line.starts_with('#') {
        return None;
    }
    let (name, labels, rest) = if let Some((name, rest)) = line.split_once('{') {
        let (labels, rest) = split_labels(rest)?;
        (name, labels, rest)
    } else {
        let (name, rest) = line.split_once([' ', '\t'])?;
        (name, "", rest)
    };
    let value: f64 = rest.split_whitespace().next()?.parse().ok()?;
    (value.is_finite() && value >= 0.0).then_some(Sample { name, labels, value })
}

/// Splits at the `}` that is outside of quotes.
fn split_labels(text: &str) -> Option<(&str, &str)> {
    let mut quoted = false;
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            '}' if !quoted => return Some((text.get(..at)?, text.get(at + 1..)?)),
            _ => {}
        }
    }
    None
}

/// The value of a label without escapes in it.
fn label<'a>(labels: &'a str, name: &str) -> Option<&'a str> {
    let at = labels.match_indices(name).map(|(at, _)| at).find(|at| {
        let before = labels.get(..*at).unwrap_or("").trim_end();
        let after = labels.get(at + name.len()..).unwrap_or("");
        (before.is_empty() || before.ends_with(',')) && after.starts_with("=\"")
    })?;
    labels.get(at + name.len() + 2..)?.split('"').next()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_vllm() {
        let text = r#"
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a}b\"c"} 3.0
vllm:num_requests_running{engine="1",model_name="x"} 1.0
vllm:num_requests_waiting{engine="0"} 2
vllm:kv_cache_usage_perc{engine="0"} 0.25
vllm:kv_cache_usage_perc{engine="1"} 0.5
vllm:request_success_total{engine="0",finished_reason="stop"} 10.0
vllm:request_success_total{engine="0",finished_reason="length"} 5.0
vllm:request_success_total{engine="0",finished_reason="error"} 2.0
vllm:time_to_first_token_seconds_bucket{le="0.1"} 7
vllm:time_to_first_token_seconds_sum{engine="0"} 1.5
vllm:time_to_first_token_seconds_count{engine="0"} 15
vllm:e2e_request_latency_seconds_sum 30 1700000000
vllm:e2e_request_latency_seconds_count 15
vllm:num_requests_running NaN
"#;
        let m = parse(text, &VLLM);
        assert_eq!((m.running, m.waiting, m.kv_usage), (Some(4.0), Some(2.0), Some(0.5)));
        assert_eq!((m.requests_success, m.requests_error), (Some(15.0), Some(2.0)));
        let first = m.first_token.unwrap();
        assert_eq!((first.count(), first.sum()), (15, 1.5));
        assert!(first.quantile(0.4).unwrap() < 0.1 && first.quantile(0.9).unwrap() >= 0.1);
        let whole = m.end_to_end.unwrap();
        assert_eq!((whole.count(), whole.sum()), (15, 30.0));
        assert_eq!(m.inter_token, None);
    }

    #[test]
    fn buckets_of_several_cores_are_added_by_bound() {
        let mut text = String::new();
        for core in 0..2 {
            for (le, n) in [("0.1", 1), ("0.5", 3), ("+Inf", 4)] {
                let labels = format!("engine=\"{core}\",le=\"{le}\"");
                let name = "vllm:inter_token_latency_seconds_bucket";
                text.push_str(&format!("{name}{{{labels}}} {n}\n"));
            }
        }
        text.push_str("vllm:inter_token_latency_seconds_bucket{le=\"NaN\"} 1\n");
        text.push_str("vllm:num_preemptions_total{engine=\"0\"} 7.0\n");
        let m = parse(&text, &VLLM);
        let gaps = m.inter_token.unwrap();
        assert_eq!((gaps.count(), gaps.quantile_bucket(0.5)), (8, Some((0.1, Some(0.5)))));
        assert_eq!(m.preemptions, Some(7.0));
    }

    #[test]
    fn sglang_counts_failed_requests_among_all() {
        let text = "sglang:num_requests_total{m=\"x\"} 10\nsglang:num_aborted_requests_total 3\n\
            sglang:token_usage 0.5\nsglang:num_queue_reqs 4\n";
        let m = parse(text, &SGLANG);
        assert_eq!((m.requests_success, m.requests_error), (Some(7.0), Some(3.0)));
        assert_eq!((m.kv_usage, m.waiting), (Some(0.5), Some(4.0)));
    }

    #[test]
    fn what_llama_cpp_does_not_say_is_absent() {
        let text = "llamacpp:requests_processing 1\nllamacpp:requests_deferred 0\n";
        let m = parse(text, &LLAMA_CPP);
        let said = EngineMetrics { running: Some(1.0), waiting: Some(0.0), ..Default::default() };
        assert_eq!(m, said);
        assert_eq!(parse("", &VLLM), EngineMetrics::default());
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "(vllm:num_requests_running|vllm:inter_token_latency_seconds_bucket|le=|[{}\"\\\\ =,a0\u{e9}\n]){0,40}") {
            let _ = parse(&text, &VLLM);
            let _ = label(&text, "a");
        }
    }
}
