//! Shares of requests, of the canary against stable's over the same time: failed ones, and those that were thrown
//! out of the cache.
//!
//! As with latencies a difference counts only when it is both significant ([`super::fisher`]) and large: more than
//! [`MIN_DIFFERENCE`]. One failed request more in a hundred is harm, whatever share fails anyway. A preemption is
//! only a delay, and they come in bursts (when the cache is full all of its requests suffer), for which `p` is too
//! small: there the canary's share must also be more than the spec's ratio times stable's.

use super::analysis::{LimitRule, Window};
use super::engine_samples::{EARLY, EngineSamples, enough_to_compare, percent};
use super::excess::probability;
use super::fisher;
use crate::spec::{AnalysisSpec, EngineMetric};

/// The smallest difference of two shares that matters: one request in a hundred.
pub const MIN_DIFFERENCE: f64 = 0.01;

/// Requests of the canary and of stable: those that are counted, and all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shares {
    /// The canary's.
    pub new: (u64, u64),
    /// Stable's.
    pub old: (u64, u64),
}

impl Shares {
    /// Failed requests, as the gateway counts them.
    fn failed_at_gateway(new: &Window, old: &Window) -> Self {
        Self { new: (new.errors, new.requests), old: (old.errors, old.requests) }
    }

    /// Failed requests, as the engines count them.
    fn failed_at_engines(new: &EngineSamples, old: &EngineSamples) -> Self {
        Self { new: (new.failed, new.finished), old: (old.failed, old.finished) }
    }

    /// Preemptions as a share of the finished requests. One may suffer several; they count as long as they
    /// are no more than the requests.
    pub(super) fn preempted(new: &EngineSamples, old: &EngineSamples) -> Self {
        let of = |seen: &EngineSamples| (seen.preemptions.min(seen.finished), seen.finished);
        Self { new: of(new), old: of(old) }
    }

    /// How much was seen of the canary and of stable.
    pub(super) const fn counts(self) -> (u64, u64) {
        (self.new.1, self.old.1)
    }
}

/// The error rate against stable's, if the spec asks for that: by the gateway's counts and by the engines' (which
/// alone see what breaks in the middle of an answer), each with its own significance. `Ok(Some(Err(_)))`: too few were
/// seen. `Err`: the canary is worse.
pub(super) fn error_rate(
    spec: &AnalysisSpec,
    (new, old): (&Window, &Window),
    (mine, theirs): (&EngineSamples, &EngineSamples),
    last: bool,
) -> Result<Option<Result<String, String>>, String> {
    let metric = EngineMetric::ErrorRate;
    if !spec.engine.compare.contains(&metric) {
        return Ok(None);
    }
    let gateway = Shares::failed_at_gateway(new, old);
    let engines = Shares::failed_at_engines(mine, theirs);
    let by_gateway = compare(spec, metric, gateway, "", last)?;
    let by_engines = compare(spec, metric, engines, ", counted by the engines", last)?;
    Ok(Some(by_gateway.or(by_engines).ok_or_else(|| {
        let ((a, b), (c, d)) = (gateway.counts(), engines.counts());
        format!(
            "error rate not compared: {} requests of the canary and {} of stable, {} needed of each",
            a.max(c),
            b.max(d),
            enough_to_compare(spec)
        )
    })))
}

/// Stable's share of failed requests, to be said after the canary's that is above its limit: where clients cause the
/// errors stable has them, too. Nothing without requests, and in the words of older rules.
pub(super) fn beside(rule: LimitRule, (failed, of): (u64, u64)) -> String {
    if of == 0 || rule < LimitRule::Ranked {
        return String::new();
    }
    let share = percent(failed as f64 / of as f64);
    format!("; stable {share} ({failed} of {of}) at the same time")
}

/// A share against stable's: what was found, or nothing if too little was seen. `Err`: the canary's is worse.
pub(super) fn compare(
    spec: &AnalysisSpec,
    metric: EngineMetric,
    shares: Shares,
    by: &str,
    last: bool,
) -> Result<Option<String>, String> {
    let enough = enough_to_compare(spec);
    let Shares { new, old } = shares;
    if new.1 < enough || old.1 < enough {
        return Ok(None);
    }
    let Some(p) = fisher::greater(new, old) else { return Ok(None) };
    let share = |(hits, of): (u64, u64)| hits as f64 / of as f64;
    let (mine, theirs) = (share(new), share(old));
    let alpha = spec.engine.significance * if last { 1.0 } else { EARLY };
    let title = metric.title();
    let told = |(hits, of): (u64, u64)| format!("{hits} of {of}");
    let numbers = format!(
        "({} against {}; {} against {}{by}; {})",
        percent(mine),
        percent(theirs),
        told(new),
        told(old),
        probability(p)
    );
    let points = (mine - theirs) * 100.0;
    let ratio = spec.max_latency_ratio;
    let is_large = mine - theirs > MIN_DIFFERENCE
        && (metric != EngineMetric::Preemptions || mine > theirs * ratio);
    if is_large && p < alpha {
        let least = MIN_DIFFERENCE * 100.0;
        let times = if metric == EngineMetric::Preemptions {
            format!(", and > {ratio:.2} times stable's")
        } else {
            String::new()
        };
        return Err(format!(
            "{title} {points:.1} percentage points above stable's {numbers} > {least:.1}{times}"
        ));
    }
    if new.0 == 0 && old.0 == 0 {
        return Ok(Some(format!("{title}: none counted of the canary or stable")));
    }
    Ok(Some(format!(
        "{title} {} against stable's {} ({})",
        percent(mine),
        percent(theirs),
        probability(p)
    )))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
mod tests {
    use super::*;

    fn spec() -> AnalysisSpec {
        toml::from_str("[engine]\ncompare = [\"error_rate\", \"preemptions\"]\n").unwrap()
    }

    fn by(
        metric: EngineMetric,
        new: (u64, u64),
        old: (u64, u64),
        last: bool,
    ) -> Result<Option<String>, String> {
        compare(&spec(), metric, Shares { new, old }, "", last)
    }

    fn errors(new: (u64, u64), old: (u64, u64), last: bool) -> Result<Option<String>, String> {
        by(EngineMetric::ErrorRate, new, old, last)
    }

    #[test]
    fn more_errors_than_stable_fail_with_their_numbers() {
        // scipy: p 0.0045993, which is enough at the end and not before.
        let (new, old) = ((90, 2_000), (58, 2_000));
        assert_eq!(
            errors(new, old, true).unwrap_err(),
            "error rate 1.6 percentage points above stable's (4.5 % against 2.9 %; 90 of 2000 against \
             58 of 2000; p 0.0046) > 1.0"
        );
        let told = "error rate 4.5 % against stable's 2.9 % (p 0.0046)";
        assert_eq!(errors(new, old, false), Ok(Some(told.to_owned())));
        // Ten times as many of each: sure before the end.
        assert!(errors((900, 20_000), (580, 20_000), false).is_err());
    }

    #[test]
    fn what_is_small_or_may_be_chance_passes() {
        // p < 1e-16, and two requests in a thousand more.
        assert!(errors((31_000, 1_000_000), (29_000, 1_000_000), true).is_ok());
        // 16.7 points, p 0.026.
        assert!(errors((5, 30), (0, 30), true).is_ok());
        // Better is not worse.
        assert!(errors((0, 1_000), (500, 1_000), true).is_ok());
        assert_eq!(errors((29, 29), (0, 1_000), true), Ok(None));
        assert_eq!(errors((1_000, 1_000), (0, 29), true), Ok(None));
        let none = "error rate: none counted of the canary or stable";
        assert_eq!(errors((0, 40), (0, 40), true), Ok(Some(none.to_owned())));
    }

    #[test]
    fn preemptions_must_be_a_multiple_too() {
        let preempted = |new, old| by(EngineMetric::Preemptions, new, old, true);
        // Six points more and p < 1e-9, but by a fifth.
        assert!(preempted((3_600, 10_000), (3_000, 10_000)).is_ok());
        let why = preempted((90, 300), (30, 300)).unwrap_err();
        assert!(
            why.starts_with("preemptions 20.0 percentage points above stable's (30.0 %"),
            "{why}"
        );
        assert!(why.ends_with("> 1.0, and > 2.00 times stable's"), "{why}");
        // Several of one request are no more than all.
        let new = EngineSamples { finished: 40, preemptions: 100, ..EngineSamples::default() };
        let shares = Shares::preempted(&new, &EngineSamples::default());
        assert_eq!((shares.new, shares.old), ((40, 40), (0, 0)));
    }

    #[test]
    fn the_gateway_and_the_engines_both_count_errors() {
        let window = |errors| Window { requests: 200, errors, response_ms_sum: 1.0 };
        let seen = |failed| EngineSamples { finished: 200, failed, ..EngineSamples::default() };
        let none = EngineSamples::default();
        let judge = |windows: (u64, u64), engines: (&EngineSamples, &EngineSamples)| {
            error_rate(&spec(), (&window(windows.0), &window(windows.1)), engines, true)
        };
        let why = judge((40, 2), (&none, &none)).unwrap_err();
        assert!(why.contains("40 of 200 against 2 of 200; p < 0.0001"), "{why}");
        let why = judge((2, 2), (&seen(40), &seen(2))).unwrap_err();
        assert!(why.contains("40 of 200 against 2 of 200, counted by the engines"), "{why}");
        let told = "error rate 1.0 % against stable's 1.0 % (p 0.6884)";
        assert_eq!(judge((2, 2), (&none, &none)), Ok(Some(Ok(told.to_owned()))));
        let few = Window { requests: 12, ..Window::default() };
        let said = error_rate(&spec(), (&few, &window(0)), (&none, &none), true);
        let words = "error rate not compared: 12 requests of the canary and 200 of stable, 30 needed of each";
        assert_eq!(said, Ok(Some(Err(words.to_owned()))));
        // Only who asks for it.
        let unasked = AnalysisSpec::default();
        assert_eq!(
            error_rate(&unasked, (&window(100), &window(0)), (&none, &none), true),
            Ok(None)
        );
    }
}
