//! Engines' own metrics: a bounded reader of Prometheus text and each engine's names.

use std::collections::BTreeMap;

use super::histogram::{Histogram, MAX_BUCKETS};
use crate::spec::{EngineSpec, MetricNames};

/// Where engines' metrics are.
pub const PATH: &str = "/metrics";

/// Longest text that is read; the rest is left out.
pub const MAX_TEXT: usize = 4 << 20;

/// The label that tells pipeline stages apart (`SGLang`'s schedulers).
const STAGE: &str = "pp_rank";

/// Most different bucket bounds of one histogram that are looked at.
const MAX_BOUNDS: usize = 4 * MAX_BUCKETS;

/// The names of one metric, the newest first; none: the engine does not have it.
pub type Aliases = &'static [&'static str];

/// What an engine calls its metrics, in the versions that are in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// Gauge: requests being worked on.
    pub running: Aliases,
    /// Gauge: requests waiting.
    pub waiting: Aliases,
    /// Gauge: share of the KV cache in use, 0 to 1.
    pub kv_usage: Aliases,
    /// Counter of finished requests; with `finished_reason`, `error` is a failure.
    pub finished: Aliases,
    /// Counter of requests that failed, which are among `finished`, where that does not tell.
    pub failed: Aliases,
    /// Counter of requests that were thrown out of the cache and began again.
    pub preemptions: Aliases,
    /// Histogram: time to the first token, seconds.
    pub first_token: Aliases,
    /// Histogram: time between two tokens, seconds.
    pub inter_token: Aliases,
    /// Histogram: time of a whole request, seconds.
    pub end_to_end: Aliases,
    /// Counter of generated tokens.
    pub generated: Aliases,
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

/// vLLM's names (`vllm/v1/metrics/loggers.py`). Until 0.11 the cache's gauge and the time between two tokens were called
/// otherwise; some versions have both.
pub const VLLM: Names = Names {
    running: &["vllm:num_requests_running"],
    waiting: &["vllm:num_requests_waiting"],
    kv_usage: &["vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"],
    finished: &["vllm:request_success_total"],
    failed: &[],
    preemptions: &["vllm:num_preemptions_total"],
    first_token: &["vllm:time_to_first_token_seconds"],
    inter_token: &["vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds"],
    end_to_end: &["vllm:e2e_request_latency_seconds"],
    generated: &["vllm:generation_tokens_total"],
};

/// SGLang's names (`sglang/srt/metrics/collector.py`, with `--enable-metrics`). An aborted request
/// is counted as failed: a client that left and a failure are not told apart there.
pub const SGLANG: Names = Names {
    running: &["sglang:num_running_reqs"],
    waiting: &["sglang:num_queue_reqs"],
    kv_usage: &["sglang:token_usage"],
    finished: &["sglang:num_requests_total"],
    failed: &["sglang:num_aborted_requests_total"],
    preemptions: &[],
    first_token: &["sglang:time_to_first_token_seconds"],
    inter_token: &["sglang:inter_token_latency_seconds", "sglang:time_per_output_token_seconds"],
    end_to_end: &["sglang:e2e_request_latency_seconds"],
    generated: &["sglang:generation_tokens_total"],
};

/// llama.cpp's names (`tools/server/server-context.cpp`): gauges only.
pub const LLAMA_CPP: Names = Names {
    running: &["llamacpp:requests_processing"],
    waiting: &["llamacpp:requests_deferred"],
    kv_usage: &[],
    finished: &[],
    failed: &[],
    preemptions: &[],
    first_token: &[],
    inter_token: &[],
    end_to_end: &[],
    generated: &["llamacpp:tokens_predicted_total"],
};

/// What an engine says of itself; what it does not say is absent. Counters since its start, as it counts them: each
/// becomes smaller only when it was started anew.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EngineMetrics {
    /// Requests being worked on.
    pub running: Option<f64>,
    /// Requests waiting.
    pub waiting: Option<f64>,
    /// Share of the KV cache in use, 0 to 1 (the fullest engine core).
    pub kv_usage: Option<f64>,
    /// Requests that have ended, however.
    pub requests_ended: Option<f64>,
    /// Requests that failed: those of them, though they may be counted a moment earlier.
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

impl EngineMetrics {
    /// Whether it says how many requests it has. A page that does not is of another engine, or of one whose metrics are
    /// not switched on.
    pub fn tells_load(&self) -> bool {
        self.running.is_some() || self.waiting.is_some()
    }
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
    fn take(&mut self, name: &str, sample: &Sample<'_>) -> bool {
        let Some(part) = sample.name.strip_prefix(name) else { return false };
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

/// A value under one of several names: what the newest of them says counts.
struct Named<T> {
    names: Aliases,
    found: Vec<Option<T>>,
}

impl<T: Default> Named<T> {
    fn new(names: Aliases) -> Self {
        Self { names, found: names.iter().map(|_| None).collect() }
    }

    /// The place of the value that is called so, if it is one of ours.
    fn slot(&mut self, name: &str) -> Option<&mut Option<T>> {
        let at = self.names.iter().position(|n| *n == name)?;
        self.found.get_mut(at)
    }

    fn done(self) -> Option<T> {
        self.found.into_iter().flatten().next()
    }
}

/// A number on its way: an engine has a line for each of its cores, and for each reason.
#[derive(Default)]
struct Sum<'a> {
    lines: f64,
    /// The lines of pipeline stages by their labels around the stage's. The stages of a core have the same requests, each
    /// as it last saw them.
    of_stages: BTreeMap<(&'a str, &'a str), f64>,
}

impl<'a> Sum<'a> {
    fn add(&mut self, sample: &Sample<'a>) {
        match around(sample.labels, STAGE) {
            Some((before, _, after)) => {
                let most = self.of_stages.entry((before, after)).or_default();
                *most = most.max(sample.value);
            }
            None => self.lines += sample.value,
        }
    }

    fn total(self) -> f64 {
        self.of_stages.into_values().fold(self.lines, |sum, most| sum + most)
    }
}

impl<'a> Named<Sum<'a>> {
    /// Adds up.
    fn add(&mut self, sample: &Sample<'a>) -> bool {
        let Some(slot) = self.slot(sample.name) else { return false };
        slot.get_or_insert_default().add(sample);
        true
    }

    fn total(self) -> Option<f64> {
        self.done().map(Sum::total)
    }
}

impl Named<f64> {
    fn largest(&mut self, sample: &Sample<'_>) -> bool {
        let Some(slot) = self.slot(sample.name) else { return false };
        *slot = Some(slot.unwrap_or(0.0).max(sample.value));
        true
    }
}

impl Named<Gathered> {
    fn take(&mut self, sample: &Sample<'_>) -> bool {
        let mut all = self.names.iter().zip(&mut self.found);
        all.any(|(name, found)| {
            let mut gathered = found.take().unwrap_or_default();
            let is_its = gathered.take(name, sample);
            *found = gathered.seen.then_some(gathered);
            is_its
        })
    }

    fn histogram(self) -> Option<Histogram> {
        self.done().and_then(Gathered::done)
    }
}

/// Reads a `/metrics` text. Lines that make no sense are passed over.
pub fn parse(text: &str, names: &Names) -> EngineMetrics {
    let mut end = text.len().min(MAX_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let [mut running, mut waiting, mut finished, mut failed, mut preemptions, mut generated] = [
        names.running,
        names.waiting,
        names.finished,
        names.failed,
        names.preemptions,
        names.generated,
    ]
    .map(Named::<Sum<'_>>::new);
    let mut kv_usage = Named::<f64>::new(names.kv_usage);
    let [mut first_token, mut inter_token, mut end_to_end] =
        [names.first_token, names.inter_token, names.end_to_end].map(Named::<Gathered>::new);
    let mut error: Option<f64> = None;
    for line in text.get(..end).unwrap_or("").lines() {
        let Some(sample) = sample(line) else { continue };
        if finished.add(&sample) {
            let is_error = label(sample.labels, "finished_reason").is_some_and(|r| r == "error");
            if is_error {
                error = Some(error.unwrap_or(0.0) + sample.value);
            }
            continue;
        }
        let _ = running.add(&sample)
            || waiting.add(&sample)
            || kv_usage.largest(&sample)
            || failed.add(&sample)
            || preemptions.add(&sample)
            || generated.add(&sample)
            || first_token.take(&sample)
            || inter_token.take(&sample)
            || end_to_end.take(&sample);
    }
    EngineMetrics {
        running: running.total(),
        waiting: waiting.total(),
        kv_usage: kv_usage.done(),
        requests_ended: finished.total(),
        requests_error: failed.total().or(error),
        preemptions: preemptions.total(),
        first_token: first_token.histogram(),
        inter_token: inter_token.histogram(),
        end_to_end: end_to_end.histogram(),
        generated: generated.total(),
    }
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
    around(labels, name).map(|(_, value, _)| value)
}

/// The same, between the labels before it and those after it.
fn around<'a>(labels: &'a str, name: &str) -> Option<(&'a str, &'a str, &'a str)> {
    let at = labels.match_indices(name).map(|(at, _)| at).find(|at| {
        let before = labels.get(..*at).unwrap_or("").trim_end();
        let after = labels.get(at + name.len()..).unwrap_or("");
        (before.is_empty() || before.ends_with(',')) && after.starts_with("=\"")
    })?;
    let rest = labels.get(at + name.len() + 2..)?;
    let (value, after) = rest.split_once('"').unwrap_or((rest, ""));
    Some((labels.get(..at)?, value, after))
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
        assert_eq!((m.requests_ended, m.requests_error), (Some(17.0), Some(2.0)));
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

    /// Until vLLM 0.11; between the two the old names are there beside the new ones.
    #[test]
    fn the_newest_of_a_metrics_names_counts() {
        let old = "vllm:gpu_cache_usage_perc{engine=\"0\"} 0.5\n\
            vllm:time_per_output_token_seconds_bucket{le=\"0.1\"} 3\n\
            vllm:time_per_output_token_seconds_count 3\n";
        let m = parse(old, &VLLM);
        assert_eq!((m.kv_usage, m.inter_token.map(|h| h.count())), (Some(0.5), Some(3)));
        assert!(!parse(old, &VLLM).tells_load());
        let new = "vllm:kv_cache_usage_perc{engine=\"0\"} 0.25\n\
            vllm:inter_token_latency_seconds_bucket{le=\"0.1\"} 2\nvllm:num_requests_waiting 0\n";
        let m = parse(&format!("{old}{new}"), &VLLM);
        assert_eq!((m.kv_usage, m.inter_token.clone().map(|h| h.count())), (Some(0.25), Some(2)));
        assert!(m.tells_load());
    }

    #[test]
    fn sglang_counts_failed_requests_among_all() {
        let text = "sglang:num_requests_total{m=\"x\"} 10\nsglang:num_aborted_requests_total 3\n\
            sglang:token_usage 0.5\nsglang:num_queue_reqs 4\n";
        let m = parse(text, &SGLANG);
        assert_eq!((m.requests_ended, m.requests_error), (Some(10.0), Some(3.0)));
        assert_eq!((m.kv_usage, m.waiting), (Some(0.5), Some(4.0)));
    }

    /// The scheduler of each stage tells of the requests of its copy: they are there once.
    #[test]
    fn stages_of_a_copy_are_counted_once() {
        let line = |name: &str, stage: u32, copy: Option<u32>, n: u32| {
            let copy = copy.map(|copy| format!(",dp_rank=\"{copy}\"")).unwrap_or_default();
            format!(
                "sglang:{name}{{engine_type=\"unified\",model_name=\"m\",pp_rank=\"{stage}\"{copy},tp_rank=\"0\"}} {n}\n"
            )
        };
        let running = |stage, copy, n| line("num_running_reqs", stage, copy, n);
        let waiting = |stage, copy, n| line("num_queue_reqs", stage, copy, n);
        let two =
            [running(0, None, 3), running(1, None, 2), waiting(0, None, 0), waiting(1, None, 4)];
        let m = parse(&two.concat(), &SGLANG);
        assert_eq!((m.running, m.waiting), (Some(3.0), Some(4.0)));
        let copies = [
            running(0, Some(0), 3),
            running(1, Some(0), 3),
            running(0, Some(1), 1),
            running(1, Some(1), 2),
            waiting(0, Some(0), 0),
            waiting(1, Some(1), 0),
        ];
        let m = parse(&copies.concat(), &SGLANG);
        assert_eq!((m.running, m.waiting), (Some(5.0), Some(0.0)));
        // What has no stages is added as ever.
        let counted =
            "sglang:num_requests_total{a=\"x\"} 10\nsglang:num_requests_total{a=\"y\"} 2\n";
        assert_eq!(parse(counted, &SGLANG).requests_ended, Some(12.0));
        assert_eq!(
            around("a=\"1\",pp_rank=\"2\",b=\"3\"", STAGE),
            Some(("a=\"1\",", "2", ",b=\"3\""))
        );
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
