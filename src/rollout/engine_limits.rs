//! The limits of an analysis on what the canary's engines say: error rate, latencies, cache, queue.
//!
//! A share (of failed requests, of samples above a latency's limit) decides before the end only when it can
//! hardly be chance ([`super::excess`]). At the end the plain comparison counts, given enough samples.

use std::time::Duration;

use super::analysis::{LimitRule, Look};
use super::engine_samples::{EngineSamples, percent, seconds};
use super::excess::{chance, probability};
use super::shares;
use crate::engine::Histogram;
use crate::spec::{AnalysisSpec, EngineMetric};

/// Share of the samples that may be above the limit of a 95th percentile.
const ABOVE_P95: f64 = 0.05;

/// What the limits say, where none is exceeded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Kept {
    /// The limits that were kept, with their numbers.
    pub kept: Vec<String>,
    /// Limits that are exceeded by what may be chance, with too few samples to say.
    pub doubtful: Vec<String>,
}

/// How a share stands to its limit.
pub(super) enum Standing {
    /// Within it, or not to be told before the end.
    Kept,
    /// Above it: how that is known, to be said after the numbers.
    Above(String),
    /// Above it at the end, and that may be chance: what is missing.
    Doubtful(String),
}

/// Judges a share: `hits` of `of` against `limit`; `plainly`: it is above by plain comparison.
pub(super) fn standing(
    spec: &AnalysisSpec,
    (hits, of): (f64, f64),
    limit: f64,
    plainly: bool,
    (samples, look): (u64, Look),
) -> Standing {
    if !plainly {
        return Standing::Kept;
    }
    if look.rule == LimitRule::Plain {
        return Standing::Above(String::new());
    }
    let p = chance(hits, of, limit);
    let is_sure = p < spec.engine.significance;
    let enough = spec.engine.min_samples;
    match (is_sure, look.last) {
        (true, false) => Standing::Above(format!(" ({} before the end)", probability(p))),
        (false, false) => Standing::Kept,
        (true, true) => Standing::Above(String::new()),
        (false, true) if samples >= enough => Standing::Above(String::new()),
        (false, true) => Standing::Doubtful(format!(
            ": may be chance ({}), and {samples} samples < {enough} needed",
            probability(p)
        )),
    }
}

/// The first limit that is exceeded, with its numbers, or what is doubtful.
pub(super) fn judge(
    spec: &AnalysisSpec,
    (new, old): (&EngineSamples, &EngineSamples),
    look: impl Into<Look>,
) -> Result<Kept, String> {
    let look = look.into();
    let last = look.last;
    let mut kept = Kept::default();
    let mut take = |standing: Standing, numbers: Numbers, beside: &str| match standing {
        Standing::Kept => {
            kept.kept.extend(numbers.kept);
            Ok(())
        }
        Standing::Above(how) => Err(format!("{}{how}{beside}", numbers.above)),
        Standing::Doubtful(why) => {
            kept.doubtful.push(format!("{}{why}{beside}", numbers.above));
            Ok(())
        }
    };
    let enough = spec.min_requests.max(1);
    let limits = &spec.engine;
    if new.finished >= enough {
        let (failed, finished) = (new.failed as f64, new.finished as f64);
        let rate = failed / finished;
        let max = spec.max_error_rate;
        let shown = format!(
            "error rate {} ({} of {}, counted by the engines) > {}",
            percent(rate),
            new.failed,
            new.finished,
            percent(max)
        );
        let when = (new.finished, look);
        let beside = shares::beside(look.rule, (old.failed, old.finished));
        // The gateway's count of the same requests is told.
        let numbers = Numbers { above: shown, kept: None };
        take(standing(spec, (failed, finished), max, rate > max, when), numbers, &beside)?;
    }
    for (metric, max) in [
        (EngineMetric::FirstToken, limits.max_first_token),
        (EngineMetric::InterToken, limits.max_inter_token),
        (EngineMetric::EndToEnd, limits.max_end_to_end),
    ] {
        let Some((max, seen)) = max.zip(new.of(metric)) else { continue };
        let Some(p95) = seen.quantile(0.95).filter(|_| seen.count() >= enough) else { continue };
        let told = |sign: &str| {
            let (p95, max) = (seconds(p95), seconds(max.as_secs_f64()));
            format!(
                "{}: 95th percentile {p95} {sign} {max} ({} samples)",
                metric.title(),
                seen.count()
            )
        };
        let late = late(metric, seen, max, new.finished);
        let plainly = p95 > max.as_secs_f64();
        let numbers = Numbers { above: told(">"), kept: (last && !plainly).then(|| told("≤")) };
        take(standing(spec, late, ABOVE_P95, plainly, (seen.count(), look)), numbers, "")?;
    }
    for (metric, max) in
        [(EngineMetric::KvUsage, limits.max_kv_usage), (EngineMetric::Waiting, limits.max_waiting)]
    {
        if let (true, Some(max), Some(seen)) = (last, max, new.of(metric))
            && let Some(mean) = seen.mean()
        {
            let (title, samples) = (metric.title(), seen.count());
            kept.mean(mean, max, |sign| {
                format!("{title}: mean {mean:.2} {sign} {max:.2} ({samples} samples)")
            })?;
        }
    }
    if let Some(max) = limits.max_preemptions.filter(|_| last && new.finished >= enough) {
        let mean = new.preemptions as f64 / new.finished as f64;
        kept.mean(mean, max, |sign| {
            let (preemptions, finished) = (new.preemptions, new.finished);
            format!("{mean:.2} preemptions a request ({preemptions} in {finished}) {sign} {max:.2}")
        })?;
    }
    Ok(kept)
}

impl Kept {
    /// A mean against its limit at the end.
    fn mean(&mut self, mean: f64, max: f64, told: impl Fn(&str) -> String) -> Result<(), String> {
        if mean > max {
            return Err(told(">"));
        }
        self.kept.push(told("≤"));
        Ok(())
    }
}

/// A limit's numbers in words.
struct Numbers {
    /// Where it is exceeded.
    above: String,
    /// Where it is kept.
    kept: Option<String>,
}

/// Samples that are provably above the limit (from the bounds of their buckets), and all of them. The tokens of one
/// answer are slow together: all of its pauses count as one sample.
fn late(metric: EngineMetric, seen: &Histogram, max: Duration, answers: u64) -> (f64, f64) {
    let (above, all) = (seen.above(max.as_secs_f64()) as f64, seen.count() as f64);
    match metric {
        EngineMetric::InterToken if all > 0.0 => {
            let independent = (answers as f64 / all).min(1.0);
            (above * independent, all * independent)
        }
        _ => (above, all),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
mod tests {
    use super::*;

    fn slow(times: usize, of: usize) -> Histogram {
        let mut seen = Histogram::with_bounds(&[0.1, 0.3, 1.0]);
        (0..of).for_each(|i| seen.observe(if i < times { 0.6 } else { 0.05 }));
        seen
    }

    #[test]
    fn a_percentile_fails_early_only_when_it_can_hardly_be_chance() {
        let mut spec = AnalysisSpec::default();
        spec.engine.max_first_token = Some(Duration::from_millis(300));
        let judge = |slow_ones, of, last| {
            let new =
                EngineSamples { first_token: slow(slow_ones, of), ..EngineSamples::default() };
            judge(&spec, (&new, &EngineSamples::default()), last)
        };
        // Two of thirty: a percentile above the limit, and quite likely with one in twenty.
        assert_eq!(judge(2, 30, false), Ok(Kept::default()));
        let plain = "time to first token: 95th percentile 475 ms > 300 ms (30 samples)";
        assert_eq!(judge(2, 30, true), Err(plain.to_owned()));
        let doubtful = judge(2, 20, true).unwrap().doubtful.join("; ");
        assert!(doubtful.contains("may be chance (p ") && doubtful.contains("20 samples < 30"));
        let early = judge(15, 30, false).unwrap_err();
        assert!(early.ends_with("> 300 ms (30 samples) (p < 0.0001 before the end)"), "{early}");
    }

    /// One long answer whose tokens were all slow is one sample, not five hundred.
    #[test]
    fn the_tokens_of_one_answer_are_no_crowd() {
        let mut spec = AnalysisSpec::default();
        spec.engine.max_inter_token = Some(Duration::from_millis(300));
        let inter_token = slow(500, 5_000);
        let few = EngineSamples { finished: 10, inter_token, ..EngineSamples::default() };
        let none = EngineSamples::default();
        assert_eq!(judge(&spec, (&few, &none), false), Ok(Kept::default()));
        let many = EngineSamples { finished: 5_000, ..few };
        assert!(judge(&spec, (&many, &none), false).is_err());
    }

    #[test]
    fn stables_errors_are_told_beside_the_canarys() {
        let seen = |failed| EngineSamples { finished: 100, failed, ..EngineSamples::default() };
        let judge = |rule| {
            let look = Look { last: true, rule };
            judge(&AnalysisSpec::default(), (&seen(3), &seen(4)), look).unwrap_err()
        };
        let numbers = "error rate 3.0 % (3 of 100, counted by the engines) > 2.0 %";
        assert_eq!(judge(LimitRule::Sequential), numbers);
        let beside = format!("{numbers}; stable 4.0 % (4 of 100) at the same time");
        assert_eq!(judge(LimitRule::PRESENT), beside);
    }
}
