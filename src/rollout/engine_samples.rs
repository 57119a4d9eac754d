//! What the engines of one release, and the GPUs under them, said during an analysis, and whether
//! that is good enough.
//!
//! Latencies are compared with stable's over the same time by a rank test on the engines' own
//! buckets ([`super::rank_test`]). A difference counts only when it is both significant and large:
//! the canary is slower with a probability of at least [`MIN_SUPERIORITY`], and by more than the
//! spec's ratio in the mean or, provably from the buckets, in the median.

use serde::{Deserialize, Serialize};

use super::analysis::Look;
use super::engine_limits;
use super::excess::probability;
use super::means;
use super::minimum::TooFew;
use super::rank_test::mann_whitney;
use super::shares::{self, Shares};
use crate::engine::Histogram;
use crate::spec::{AnalysisSpec, EngineMetric};

/// The probability that an observation of the canary is worse than one of stable's from which on a
/// difference matters (0.5: none, 1: each one).
pub const MIN_SUPERIORITY: f64 = 0.6;

/// Before the end of an analysis only a fraction of the significance is enough: it is looked at
/// again and again, and sooner or later chance would have its day.
pub(super) const EARLY: f64 = 0.1;

/// Bounds of the samples of the KV cache's use.
const KV_BOUNDS: [f64; 20] = [
    0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85,
    0.9, 0.95, 1.0,
];

/// Bounds of the samples of waiting requests.
const WAITING_BOUNDS: [f64; 14] =
    [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 32.0, 64.0, 128.0, 256.0, 1024.0];

/// Seen of the engines of one release.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EngineSamples {
    /// Requests that ended, failed ones included.
    pub finished: u64,
    /// Requests that failed.
    pub failed: u64,
    /// Requests that were thrown out of the cache and began again.
    pub preemptions: u64,
    /// Time to the first token, seconds.
    pub first_token: Histogram,
    /// Time between two tokens, seconds.
    pub inter_token: Histogram,
    /// Time of whole requests, seconds.
    pub end_to_end: Histogram,
    /// Share of the KV cache in use, as sampled.
    pub kv_usage: Histogram,
    /// Waiting requests of a replica, as sampled.
    pub waiting: Histogram,
    /// The GPUs.
    pub gpu: GpuSignals,
}

/// Seen of the GPUs of one release.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GpuSignals {
    /// Samples of a GPU.
    pub samples: u64,
    /// Of these, slowed down by heat or by a power brake.
    pub throttled: u64,
    /// Times at which a GPU should have been sampled and was not seen.
    pub unseen: u64,
    /// Of these, of a driver that does not tell whether it was.
    pub untold: u64,
    /// The first error: a new Xid, a new uncorrected memory error, a lost GPU. For people.
    pub error: Option<String>,
}

impl EngineSamples {
    /// Adds what was seen later or elsewhere.
    pub fn add(&mut self, other: &Self) {
        self.finished = self.finished.saturating_add(other.finished);
        self.failed = self.failed.saturating_add(other.failed.min(other.finished));
        self.preemptions = self.preemptions.saturating_add(other.preemptions);
        self.first_token.add(&other.first_token);
        self.inter_token.add(&other.inter_token);
        self.end_to_end.add(&other.end_to_end);
        self.kv_usage.add(&other.kv_usage);
        self.waiting.add(&other.waiting);
        self.gpu.samples = self.gpu.samples.saturating_add(other.gpu.samples);
        self.gpu.throttled = self.gpu.throttled.saturating_add(other.gpu.throttled);
        self.gpu.unseen = self.gpu.unseen.saturating_add(other.gpu.unseen);
        self.gpu.untold = self.gpu.untold.saturating_add(other.gpu.untold);
        if self.gpu.error.is_none() {
            self.gpu.error.clone_from(&other.gpu.error);
        }
    }

    /// One sample of the gauges.
    pub fn sample_gauges(&mut self, kv_usage: Option<f64>, waiting: Option<f64>) {
        let take = |histogram: &mut Histogram, bounds: &[f64], value: Option<f64>| {
            let Some(value) = value else { return };
            if histogram.count() == 0 {
                *histogram = Histogram::with_bounds(bounds);
            }
            histogram.observe(value.clamp(0.0, 1e9));
        };
        take(&mut self.kv_usage, &KV_BOUNDS, kv_usage.map(|v| v.min(1.0)));
        take(&mut self.waiting, &WAITING_BOUNDS, waiting);
    }

    /// Nothing was seen at all.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The samples of a metric; none of those that are shares of requests.
    pub(super) const fn of(&self, metric: EngineMetric) -> Option<&Histogram> {
        match metric {
            EngineMetric::FirstToken => Some(&self.first_token),
            EngineMetric::InterToken => Some(&self.inter_token),
            EngineMetric::EndToEnd => Some(&self.end_to_end),
            EngineMetric::KvUsage => Some(&self.kv_usage),
            EngineMetric::Waiting => Some(&self.waiting),
            EngineMetric::ErrorRate | EngineMetric::Preemptions => None,
        }
    }
}

/// What engines and GPUs said, where nothing of it is wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// What was compared with stable, and the limits that were kept, for the verdict's reason.
    pub compared: Vec<String>,
    /// What was not compared, for too few samples.
    pub too_few: Vec<TooFew>,
    /// Limits of the spec for which too little was measured: nobody can say whether they were kept.
    pub unmeasured: Vec<String>,
    /// A latency of requests was compared with stable's by the rank test.
    pub ranked: bool,
}

/// What is wrong with the canary's engines or GPUs: the first number that decides. `last`: the time
/// is over.
pub(super) fn judge(
    spec: &AnalysisSpec,
    new: &EngineSamples,
    old: &EngineSamples,
    look: impl Into<Look>,
) -> Result<Seen, String> {
    let look = look.into();
    let last = look.last;
    let gpus = judge_gpus(spec, new, last)?;
    let limits = engine_limits::judge(spec, (new, old), look)?;
    let mut compared = Vec::new();
    let mut ranked = false;
    let mut too_few = Vec::new();
    for metric in &spec.engine.compare {
        let (found, counts) = match (*metric, new.of(*metric), old.of(*metric)) {
            // By `shares::error_rate`, which knows what the gateway counted, too.
            (EngineMetric::ErrorRate, ..) => continue,
            (_, Some(new), Some(old)) => {
                (compare(spec, *metric, new, old, last)?, (new.count(), old.count()))
            }
            _ => {
                let preempted = Shares::preempted(new, old);
                (shares::compare(spec, *metric, preempted, "", last)?, preempted.counts())
            }
        };
        if let Some(found) = found {
            ranked |= means::of_requests(*metric);
            compared.push(found);
            continue;
        }
        too_few.push(TooFew { metric: *metric, new: counts.0, old: counts.1 });
    }
    let mut unmeasured = unmeasured(spec, new);
    unmeasured.extend(limits.doubtful);
    compared.extend(limits.kept);
    compared.extend(gpus);
    Ok(Seen { compared, too_few, unmeasured, ranked })
}

/// The limits that were written and could not be judged, with what is missing.
fn unmeasured(spec: &AnalysisSpec, new: &EngineSamples) -> Vec<String> {
    let limits = &spec.engine;
    // Who asks for no requests asks for no latencies of them, either, as long as there are none.
    let enough = spec.min_requests;
    let of_requests = [
        ("max_first_token", limits.max_first_token.is_some(), new.first_token.count()),
        ("max_inter_token", limits.max_inter_token.is_some(), new.inter_token.count()),
        ("max_end_to_end", limits.max_end_to_end.is_some(), new.end_to_end.count()),
        ("max_preemptions", limits.max_preemptions.is_some(), new.finished),
    ];
    let of_samples = [
        ("max_kv_usage", limits.max_kv_usage.is_some(), new.kv_usage.count()),
        ("max_waiting", limits.max_waiting.is_some(), new.waiting.count()),
    ];
    let needed = of_requests.map(|limit| (limit, enough));
    let needed = needed.into_iter().chain(of_samples.map(|limit| (limit, 1)));
    let engines =
        needed.filter(|((_, asked, seen), enough)| *asked && seen < enough).map(|((name, _, seen), enough)| {
            format!("{name} could not be judged: the canary's engines gave {seen} samples < {enough} needed")
        });
    engines.chain(unseen_gpus(spec, &new.gpu)).collect()
}

/// GPUs that were hidden most of the time: what they did is not known. (A host may be asked anew now and then.)
fn unseen_gpus(spec: &AnalysisSpec, gpu: &GpuSignals) -> Option<String> {
    let asked = spec.gpu.errors || spec.gpu.max_throttled < 1.0;
    let all = gpu.samples.saturating_add(gpu.unseen);
    (asked && gpu.unseen > gpu.samples).then(|| {
        format!(
            "GPUs could not be judged: the canary's were not seen in {} of {all} samples",
            gpu.unseen
        )
    })
}

/// What is wrong with the canary's GPUs, or how well they were.
fn judge_gpus(
    spec: &AnalysisSpec,
    new: &EngineSamples,
    last: bool,
) -> Result<Option<String>, String> {
    let gpu = &new.gpu;
    if spec.gpu.errors
        && let Some(error) = &gpu.error
    {
        return Err(format!("GPU: {error}"));
    }
    let told = gpu.samples.saturating_sub(gpu.untold);
    let share = gpu.throttled as f64 / told.max(1) as f64;
    if last && told > 0 && share > spec.gpu.max_throttled {
        return Err(format!(
            "GPU throttled in {} of {} samples ({}) > {}",
            gpu.throttled,
            told,
            percent(share),
            percent(spec.gpu.max_throttled)
        ));
    }
    let asked = spec.gpu.errors || spec.gpu.max_throttled < 1.0;
    Ok((asked && gpu.samples > 0).then(|| {
        let samples = gpu.samples;
        match (spec.gpu.errors, spec.gpu.max_throttled < 1.0) {
            (_, false) => format!("no GPU error in {samples} samples"),
            (false, true) => format!("GPUs throttled in {} of {told} samples", gpu.throttled),
            (true, true) => format!(
                "no GPU error in {samples} samples, throttled in {} of {told}",
                gpu.throttled
            ),
        }
    }))
}

/// Observations that a comparison needs of each side.
pub(super) fn enough_to_compare(spec: &AnalysisSpec) -> u64 {
    spec.engine.min_samples.max(2)
}

/// The canary against stable: worse, or (if there was enough) what was found.
fn compare(
    spec: &AnalysisSpec,
    metric: EngineMetric,
    new: &Histogram,
    old: &Histogram,
    last: bool,
) -> Result<Option<String>, String> {
    let enough = enough_to_compare(spec);
    if new.count() < enough || old.count() < enough {
        return Ok(None);
    }
    let (mine, theirs) = new.aligned(old);
    let Some(test) = mann_whitney(&mine, &theirs) else { return Ok(None) };
    let (Some(mean), Some(stable)) = (new.mean(), old.mean()) else { return Ok(None) };
    let by_mean = if stable > 0.0 { mean / stable } else { f64::INFINITY };
    let by_mean = if mean > 0.0 { by_mean } else { 1.0 };
    let ratio = by_mean.max(provable_median_ratio(new, old));
    let limit = spec.max_latency_ratio;
    let alpha = spec.engine.significance * if last { 1.0 } else { EARLY };
    let found = format!(
        "{} {ratio:.2} times stable's ({} against {}; worse in {} of pairs, {} at {} and {} samples)",
        metric.title(),
        value(metric, mean),
        value(metric, stable),
        percent(test.superiority),
        probability(test.p),
        test.samples.0,
        test.samples.1
    );
    if ratio > limit && test.p < alpha && test.superiority >= MIN_SUPERIORITY {
        return Err(format!("{found} > {limit:.2}"));
    }
    let short = format!("{} {ratio:.2} times stable's ({})", metric.title(), probability(test.p));
    Ok(Some(short))
}

/// How much larger the canary's median is at least, whatever the values within the buckets are.
fn provable_median_ratio(new: &Histogram, old: &Histogram) -> f64 {
    match (new.quantile_bucket(0.5), old.quantile_bucket(0.5)) {
        (Some((bottom, _)), Some((_, Some(top)))) if top > 0.0 => bottom / top,
        _ => 0.0,
    }
}

fn value(metric: EngineMetric, value: f64) -> String {
    match metric {
        EngineMetric::FirstToken | EngineMetric::InterToken | EngineMetric::EndToEnd => {
            seconds(value)
        }
        EngineMetric::KvUsage | EngineMetric::ErrorRate | EngineMetric::Preemptions => {
            percent(value)
        }
        EngineMetric::Waiting => format!("{value:.1}"),
    }
}

pub(super) fn seconds(value: f64) -> String {
    if value < 0.01 {
        format!("{:.1} ms", value * 1000.0)
    } else if value < 10.0 {
        format!("{:.0} ms", value * 1000.0)
    } else {
        format!("{value:.1} s")
    }
}

pub(super) fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::rollout::minimum;

    const BOUNDS: [f64; 8] = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5];

    fn seen(values: impl IntoIterator<Item = f64>) -> Histogram {
        let mut histogram = Histogram::with_bounds(&BOUNDS);
        values.into_iter().for_each(|v| histogram.observe(v));
        histogram
    }

    fn first_token(histogram: Histogram) -> EngineSamples {
        EngineSamples { first_token: histogram, ..EngineSamples::default() }
    }

    /// The verdict on the time to the first token alone.
    fn run(new: &EngineSamples, old: &EngineSamples) -> Result<Vec<String>, String> {
        let mut spec = AnalysisSpec::default();
        spec.engine.compare = vec![EngineMetric::FirstToken];
        judge(&spec, new, old, true).map(|seen| {
            let too_few = minimum::words(&spec, &seen.too_few);
            seen.compared.into_iter().chain(too_few).collect()
        })
    }

    #[test]
    fn a_slow_canary_fails_with_its_numbers() {
        let old = first_token(seen((0..200).map(|i| 0.08 + f64::from(i % 5) * 0.01)));
        let new = first_token(seen((0..60).map(|i| 0.28 + f64::from(i % 5) * 0.02)));
        let why = run(&new, &old).unwrap_err();
        assert_eq!(
            why,
            "time to first token 3.20 times stable's (320 ms against 100 ms; worse in 100.0 % of \
             pairs, p < 0.0001 at 60 and 200 samples) > 2.00"
        );
    }

    #[test]
    fn a_tiny_but_significant_difference_passes() {
        // Every one of 5,000 is slower, by 2 %, and into the next bucket.
        let old = first_token(seen(vec![0.0995; 5_000]));
        let new = first_token(seen(vec![0.1015; 5_000]));
        let compared = run(&new, &old).unwrap();
        assert_eq!(compared, ["time to first token 1.02 times stable's (p < 0.0001)"]);
    }

    #[test]
    fn a_large_difference_that_may_be_chance_passes() {
        // One request in thirty took very long: the mean is far off, the ranks are not.
        let old = first_token(seen(vec![0.08; 30]));
        let mut values = vec![0.08; 29];
        values.push(60.0);
        let new = first_token(seen(values));
        assert!(run(&new, &old).is_ok());
        // Too few are not compared at all, which the verdict says.
        let few = first_token(seen(vec![2.0; 29]));
        let said = "time to first token not compared: 29 samples of the canary and 30 of stable, \
                    30 needed of each";
        assert_eq!(run(&few, &old), Ok(vec![said.to_owned()]));
    }

    #[test]
    fn what_is_not_compared_is_told_once_for_each_number_of_samples() {
        let old = first_token(seen(vec![0.08; 200]));
        let new = first_token(seen(vec![0.08; 12]));
        let spec = AnalysisSpec::default();
        let too_few = judge(&spec, &new, &old, true).unwrap().too_few;
        let needed = "30 needed of each";
        assert_eq!(
            minimum::words(&spec, &too_few),
            [
                format!(
                    "time to first token not compared: 12 samples of the canary and 200 of stable, \
                     {needed}"
                ),
                format!(
                    "inter-token latency, end-to-end latency not compared: 0 samples of the canary \
                     and 0 of stable, {needed}"
                ),
            ]
        );
    }

    #[test]
    fn gpus_that_are_hardly_seen_are_not_judged_as_well() {
        let unmeasured = |spec: &AnalysisSpec, samples, unseen| {
            let gpu = GpuSignals { samples, unseen, ..GpuSignals::default() };
            let new = EngineSamples { gpu, ..EngineSamples::default() };
            super::judge(spec, &new, &EngineSamples::default(), true).unwrap().unmeasured
        };
        let mut spec = AnalysisSpec::default();
        assert_eq!(unmeasured(&spec, 10, 4), [""; 0]);
        let said = "GPUs could not be judged: the canary's were not seen in 7 of 10 samples";
        assert_eq!(unmeasured(&spec, 3, 7), [said]);
        (spec.gpu.errors, spec.gpu.max_throttled) = (false, 1.0);
        assert_eq!(unmeasured(&spec, 0, 10), [""; 0], "nobody asked for it");
    }

    #[test]
    fn a_limit_that_was_written_needs_something_to_judge() {
        let spec: AnalysisSpec = toml::from_str(
            "min_requests = 10\n[engine]\nmax_first_token = \"2s\"\nmax_kv_usage = 0.9\n\
             max_preemptions = 0.1\n",
        )
        .unwrap();
        let none = EngineSamples::default();
        let missing = |spec: &AnalysisSpec, new| judge(spec, new, &none, true).unwrap().unmeasured;
        assert_eq!(
            missing(&spec, &none),
            [
                "max_first_token could not be judged: the canary's engines gave 0 samples < 10 needed",
                "max_preemptions could not be judged: the canary's engines gave 0 samples < 10 needed",
                "max_kv_usage could not be judged: the canary's engines gave 0 samples < 1 needed",
            ]
        );
        let mut some = first_token(seen(vec![0.1; 10]));
        some.finished = 10;
        some.sample_gauges(Some(0.2), None);
        assert_eq!(missing(&spec, &some), Vec::<String>::new());
        // Without requests there are no latencies of them; the cache is there all the same.
        let unasked = AnalysisSpec { min_requests: 0, ..spec };
        assert_eq!(missing(&unasked, &none).len(), 1);
        assert_eq!(missing(&AnalysisSpec::default(), &none), Vec::<String>::new());
    }

    #[test]
    fn an_outlier_of_stable_does_not_hide_a_slow_canary() {
        let mut values = vec![0.04; 99];
        values.push(100.0);
        let old = first_token(seen(values));
        let new = first_token(seen(vec![0.4; 100]));
        assert!(run(&new, &old).unwrap_err().contains("5.00 times"));
    }

    #[test]
    fn absolute_limits_and_gpus_decide_alone() {
        let mut spec = AnalysisSpec::default();
        spec.engine.max_first_token = Some(Duration::from_millis(300));
        spec.engine.max_kv_usage = Some(0.9);
        spec.engine.max_waiting = Some(5.0);
        spec.engine.max_preemptions = Some(0.1);
        let none = EngineSamples::default();
        let judge = |new: &EngineSamples| judge(&spec, new, &none, true).unwrap_err();
        let slow = first_token(seen(vec![0.4; 40]));
        assert_eq!(
            judge(&slow),
            "time to first token: 95th percentile 488 ms > 300 ms (40 samples)"
        );
        let mut full = EngineSamples::default();
        full.sample_gauges(Some(0.97), Some(7.0));
        assert_eq!(judge(&full), "KV cache use: mean 0.97 > 0.90 (1 samples)");
        full.kv_usage = Histogram::default();
        assert_eq!(judge(&full), "waiting requests: mean 7.00 > 5.00 (1 samples)");
        let failing = EngineSamples { finished: 100, failed: 3, ..none.clone() };
        assert_eq!(judge(&failing), "error rate 3.0 % (3 of 100, counted by the engines) > 2.0 %");
        let thrown = EngineSamples { finished: 100, preemptions: 30, ..none.clone() };
        assert_eq!(judge(&thrown), "0.30 preemptions a request (30 in 100) > 0.10");
        let mut gpu = none.clone();
        gpu.gpu = GpuSignals { samples: 14, throttled: 6, unseen: 0, untold: 4, error: None };
        assert_eq!(judge(&gpu), "GPU throttled in 6 of 10 samples (60.0 %) > 50.0 %");
        gpu.gpu.error = Some("gpu1 GPU-1: Xid 79".to_owned());
        assert_eq!(judge(&gpu), "GPU: gpu1 GPU-1: Xid 79");
    }

    proptest! {
        /// Samples of the same distribution hardly ever fail, at any look.
        #[test]
        fn the_same_is_not_worse(
            x in prop::collection::vec(0.0f64..1.0, 30..200),
            y in prop::collection::vec(0.0f64..1.0, 30..200),
        ) {
            prop_assert!(run(&first_token(seen(x)), &first_token(seen(y))).is_ok());
        }

        /// Whatever was counted, judging it does not break.
        #[test]
        fn no_numbers_break_it(
            finished in any::<u64>(), failed in any::<u64>(), kv in any::<f64>(), n in 0usize..50,
        ) {
            let mut new = EngineSamples { finished, failed, ..first_token(seen(vec![kv; n])) };
            new.sample_gauges(Some(kv), Some(kv));
            let mut sum = new.clone();
            sum.add(&new);
            let _ = run(&sum, &new);
        }
    }
}
