//! Engines' own metrics: a bounded reader of Prometheus text and each engine's names.

/// Longest text that is read; the rest is left out.
pub const MAX_TEXT: usize = 4 << 20;

/// What an engine calls its metrics; none: it does not have it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// Gauge: requests being worked on.
    pub running: Option<&'static str>,
    /// Gauge: requests waiting.
    pub waiting: Option<&'static str>,
    /// Gauge: share of the KV cache in use, 0 to 1.
    pub kv_usage: Option<&'static str>,
    /// Counter of finished requests, by `finished_reason`.
    pub finished: Option<&'static str>,
    /// Histogram: time to the first token, seconds.
    pub first_token: Option<&'static str>,
    /// Histogram: time of a whole request, seconds.
    pub end_to_end: Option<&'static str>,
    /// Counter of generated tokens.
    pub generated: Option<&'static str>,
}

/// vLLM's names (`vllm/v1/metrics/loggers.py`).
pub const VLLM: Names = Names {
    running: Some("vllm:num_requests_running"),
    waiting: Some("vllm:num_requests_waiting"),
    kv_usage: Some("vllm:kv_cache_usage_perc"),
    finished: Some("vllm:request_success_total"),
    first_token: Some("vllm:time_to_first_token_seconds"),
    end_to_end: Some("vllm:e2e_request_latency_seconds"),
    generated: Some("vllm:generation_tokens_total"),
};

/// llama.cpp's names (`tools/server/server-context.cpp`).
pub const LLAMA_CPP: Names = Names {
    running: Some("llamacpp:requests_processing"),
    waiting: Some("llamacpp:requests_deferred"),
    kv_usage: None,
    finished: None,
    first_token: None,
    end_to_end: None,
    generated: Some("llamacpp:tokens_predicted_total"),
};

/// Sum and count of a histogram since the engine started.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Totals {
    /// Sum of all observations, in seconds.
    pub sum_s: f64,
    /// Number of observations.
    pub count: f64,
}

/// What an engine says of itself; what it does not say is absent. Counters since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
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
    /// Time to the first token.
    pub first_token: Option<Totals>,
    /// Time of whole requests.
    pub end_to_end: Option<Totals>,
    /// Tokens generated.
    pub generated: Option<f64>,
}

/// Reads a `/metrics` text. Lines that make no sense are passed over.
pub fn parse(text: &str, names: &Names) -> EngineMetrics {
    let mut end = text.len().min(MAX_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let mut out = EngineMetrics::default();
    for line in text.get(..end).unwrap_or("").lines() {
        let Some(sample) = sample(line) else { continue };
        let is = |name: Option<&str>| name == Some(sample.name);
        let part = |name: Option<&str>, end: &str| {
            name.is_some_and(|n| sample.name.strip_prefix(n) == Some(end))
        };
        if is(names.running) {
            add(&mut out.running, sample.value);
        } else if is(names.waiting) {
            add(&mut out.waiting, sample.value);
        } else if is(names.kv_usage) {
            out.kv_usage = Some(out.kv_usage.unwrap_or(0.0).max(sample.value));
        } else if is(names.finished) {
            let failed = label(sample.labels, "finished_reason").is_some_and(|r| r == "error");
            let slot = if failed { &mut out.requests_error } else { &mut out.requests_success };
            add(slot, sample.value);
        } else if is(names.generated) {
            add(&mut out.generated, sample.value);
        } else if part(names.first_token, "_sum") {
            out.first_token.get_or_insert_default().sum_s += sample.value;
        } else if part(names.first_token, "_count") {
            out.first_token.get_or_insert_default().count += sample.value;
        } else if part(names.end_to_end, "_sum") {
            out.end_to_end.get_or_insert_default().sum_s += sample.value;
        } else if part(names.end_to_end, "_count") {
            out.end_to_end.get_or_insert_default().count += sample.value;
        }
    }
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
        assert_eq!(m.first_token, Some(Totals { sum_s: 1.5, count: 15.0 }));
        assert_eq!(m.end_to_end, Some(Totals { sum_s: 30.0, count: 15.0 }));
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
        fn no_text_makes_it_panic(text in "(vllm:num_requests_running|[{}\"\\\\ =,a0\u{e9}\n]){0,40}") {
            let _ = parse(&text, &VLLM);
            let _ = label(&text, "a");
        }
    }
}
