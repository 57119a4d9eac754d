//! Is the new release as good as the old one? What was measured, and the verdict.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::checks::{CheckResult, CheckRun};
use super::engine_limits::{Standing, standing};
use super::engine_samples::{self, EngineSamples, percent};
use super::means::{self, BesideRanks};
use super::minimum::{self, Terms};
use super::shares;
use crate::base::{Timestamp, text};
use crate::spec::AnalysisSpec;

/// Longest words of a measurement that are kept, in characters.
const MAX_WHY: usize = 400;

/// How long after its time golden prompts and queries may still be without a result. (Five tries
/// 10 s apart, and time for slow answers.)
const OVERTIME: Duration = Duration::from_secs(180);

/// Requests that were not counted for so long at the end of an analysis leave its result open.
const UNREAD: Duration = Duration::from_secs(10);

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
    /// An analysis, or a command.
    #[serde(default)]
    pub of: VerdictOf,
    /// Its name in the spec, or the command.
    pub analysis: String,
    /// Go on, go back, or ask a person.
    pub result: VerdictResult,
    /// The number that decided: `error rate 31.0 % (62 of 200) > 2.0 %`.
    pub reason: String,
    /// The last lines of a command's output.
    #[serde(default)]
    pub lines: Vec<String>,
    /// When.
    pub at: Timestamp,
}

impl Verdict {
    /// What was judged: `analysis default`, `run ./smoke.sh`.
    pub fn title(&self) -> String {
        match self.of {
            VerdictOf::Analysis => format!("analysis {}", self.analysis),
            VerdictOf::Run => format!("run {}", self.analysis),
        }
    }
}

/// What a verdict is of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VerdictOf {
    /// An analysis of the spec.
    #[default]
    Analysis,
    /// The command of a `run` step.
    Run,
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
    /// It could not be measured.
    Error,
}

/// The analysis under way, besides the [`Window`]s.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AnalysisRun {
    /// When the first request reached the canary: the analysis's time counts from here.
    pub began: Option<Timestamp>,
    /// What the canary's engines said.
    pub new: EngineSamples,
    /// What stable's engines said over the same time.
    pub old: EngineSamples,
    /// Golden prompts and queries, by name.
    pub checks: BTreeMap<String, CheckRun>,
    /// Since when the canary's requests cannot be counted; none: they can.
    pub unread: Option<Timestamp>,
}

impl AnalysisRun {
    /// The first request has reached the canary. What stable did until then was not at the same time; that a GPU is
    /// broken stays true.
    pub fn begin(&mut self, now: Timestamp) {
        self.began = Some(now);
        for side in [&mut self.new, &mut self.old] {
            let gpu = std::mem::take(&mut side.gpu);
            *side = EngineSamples { gpu, ..EngineSamples::default() };
        }
    }

    /// Takes a measurement of a golden prompt or query; an unknown one is left out.
    pub fn check(&mut self, spec: &AnalysisSpec, name: &str, result: CheckResult, why: &str) {
        if spec.checks().iter().any(|(known, _)| known == name) {
            self.checks.entry(name.to_owned()).or_default().add(result, &text::clean(why, MAX_WHY));
        }
    }
}

/// Where an analysis stands.
#[derive(Clone, Debug, PartialEq)]
pub enum Judgement {
    /// It goes on; a verdict is due then.
    Wait {
        /// The moment.
        until: Timestamp,
    },
    /// It is over: how, and the number that decided.
    Verdict(VerdictResult, String),
}

/// Judges an analysis as a whole: `since` is when its step began.
///
/// The time counts from the first request that reached the canary (`HAProxy` gives a server that was
/// just added nothing until its round is over); without any it is over after twice its duration.
/// A failure ends it at once (Argo's rule: Failed goes before Error before Inconclusive).
pub fn judge(
    spec: &AnalysisSpec,
    terms: &Terms,
    run: &AnalysisRun,
    (new, old): (&Window, &Window),
    since: Timestamp,
    now: Timestamp,
) -> Judgement {
    let rule = terms.rule;
    let until = match run.began {
        Some(began) => began.plus(spec.duration),
        None if spec.min_requests == 0 => since.plus(spec.duration),
        None => since.plus(spec.duration.saturating_mul(2)),
    };
    let last = now >= until;
    let look = Look { last, rule };
    let checks = spec.checks();
    let mut worst: BTreeMap<u8, (VerdictResult, String)> = BTreeMap::new();
    let mut open = Vec::new();
    let mut longest = Duration::ZERO;
    let mut passed = Vec::new();
    let none = CheckRun::default();
    for (name, plan) in &checks {
        let seen = run.checks.get(name).unwrap_or(&none);
        longest = longest.max(plan.longest());
        match seen.result(*plan) {
            None => open.push(name.clone()),
            Some(VerdictResult::Success) => passed.push(format!("{name}: {}", seen.why)),
            Some(result) => {
                let rank = match result {
                    VerdictResult::Failed => 0,
                    VerdictResult::Error => 1,
                    _ => 2,
                };
                worst.entry(rank).or_insert((result, format!("{name}: {}", seen.why)));
            }
        }
    }
    if let Some((result, why)) = worst.remove(&0) {
        return Judgement::Verdict(result, why);
    }
    let window = evaluate(spec, new, old, look);
    if let Some((VerdictResult::Failed, why)) = window {
        return Judgement::Verdict(VerdictResult::Failed, why);
    }
    let engines = engine_samples::judge(spec, &run.new, &run.old, look);
    let seen = match engines {
        Ok(seen) => seen,
        Err(why) => return Judgement::Verdict(VerdictResult::Failed, why),
    };
    let errors = match shares::error_rate(spec, (new, old), (&run.new, &run.old), last) {
        Ok(errors) => errors,
        Err(why) => return Judgement::Verdict(VerdictResult::Failed, why),
    };
    if let Some((result, why)) = worst.remove(&1) {
        return Judgement::Verdict(result, why);
    }
    let Some((result, why)) = window else { return Judgement::Wait { until } };
    if let Some(since) = run.unread {
        // A reading may come late; and what comes then counts what was missed.
        let missing = since.plus(UNREAD);
        if now < missing {
            return Judgement::Wait { until: missing };
        }
        let why = format!(
            "the canary's requests could not be counted in the last {}",
            crate::base::time::short(now.since(since))
        );
        return Judgement::Verdict(VerdictResult::Inconclusive, why);
    }
    if !open.is_empty() {
        let overtime = until.max(since.plus(longest)).plus(OVERTIME);
        if now < overtime {
            return Judgement::Wait { until: overtime };
        }
        let why = format!("{} has no result", open.join(", "));
        return Judgement::Verdict(VerdictResult::Error, why);
    }
    if let Some((result, why)) = worst.remove(&2) {
        return Judgement::Verdict(result, why);
    }
    if result != VerdictResult::Success {
        return Judgement::Verdict(result, why);
    }
    // What was asked for and could not be measured was not kept.
    let mut unmeasured = seen.unmeasured;
    let (lacking, left_out) = terms.part(spec, &seen.too_few);
    let mut lacks = minimum::words(spec, &lacking);
    let mut told = vec![why];
    match errors {
        Some(Err(words)) if terms.asks_for_errors(spec) => lacks.push(words),
        Some(Ok(words) | Err(words)) => told.push(words),
        None => {}
    }
    if rule >= LimitRule::Ranked && new.requests > 0 {
        match means::beside_ranks(spec, new, old, seen.ranked) {
            BesideRanks::Doubtful(doubt) => unmeasured.push(doubt),
            BesideRanks::TooFew(words) if !seen.ranked && terms.asks_for_mean(spec, &lacking) => {
                lacks.push(words);
            }
            BesideRanks::Told(words) | BesideRanks::TooFew(words) => told.push(words),
        }
    }
    if !lacks.is_empty() {
        unmeasured.extend(lacks);
        unmeasured.push(minimum::WAY_OUT.to_owned());
    }
    if !unmeasured.is_empty() {
        let why = text::clean(&unmeasured.join("; "), 3 * MAX_WHY);
        return Judgement::Verdict(VerdictResult::Inconclusive, why);
    }
    let left_out = minimum::words(spec, &left_out);
    let all: Vec<String> =
        told.into_iter().chain(seen.compared).chain(left_out).chain(passed).collect();
    Judgement::Verdict(VerdictResult::Success, text::clean(&all.join("; "), 3 * MAX_WHY))
}

/// How limits on rates and means are looked at before the end of an analysis. It is kept with the rollout, so that a
/// journal that is read again is decided as its writer decided.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitRule {
    /// Compared plainly at each look: of rollouts that began before there was another rule.
    #[default]
    Plain,
    /// Before the end only what can hardly be chance counts ([`super::excess`]).
    Sequential,
    /// The same, and the gateway's mean against stable's fails nothing: ranks compare latencies
    /// ([`super::means`]). Stable's error rate is told beside the canary's.
    Ranked,
    /// The same, and what was asked to be compared with stable must have been ([`super::minimum`]).
    Compared,
}

impl LimitRule {
    /// That of a rollout which begins now.
    pub const PRESENT: Self = Self::Compared;
}

/// When is looked, and by which rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// The time is over, and a verdict is due.
    pub last: bool,
    /// How limits are looked at.
    pub rule: LimitRule,
}

impl From<bool> for Look {
    fn from(last: bool) -> Self {
        Self { last, rule: LimitRule::PRESENT }
    }
}

/// Judges what was measured. `last`: the time is over and a verdict is due; before that only a
/// failure is final: a share of errors above its limit that can hardly be chance ([`super::excess`]).
///
/// Means are judged only at the end, and with `min_samples` requests ([`super::means`]).
pub fn evaluate(
    spec: &AnalysisSpec,
    new: &Window,
    old: &Window,
    look: impl Into<Look>,
) -> Option<(VerdictResult, String)> {
    let look = look.into();
    let last = look.last;
    if spec.min_requests == 0 && new.requests == 0 {
        return last.then(|| (VerdictResult::Success, "no requests are asked for".to_owned()));
    }
    let enough = spec.min_requests.max(1);
    if new.requests < enough {
        return last.then(|| {
            (
                VerdictResult::Inconclusive,
                match new.requests {
                    // Perhaps nobody counts them: no gateway, and an engine that does not tell.
                    0 => format!("no request to the canary was counted, {enough} are needed"),
                    few => format!("{few} requests reached the canary < {enough} needed"),
                },
            )
        });
    }
    let error_rate = new.error_rate().unwrap_or(0.0);
    let errors = format!("({} of {})", new.errors, new.requests);
    let limit = spec.max_error_rate;
    let share = (new.errors as f64, new.requests as f64);
    let above = format!("error rate {} {errors} > {}", percent(error_rate), percent(limit));
    let beside = shares::beside(look.rule, (old.errors, old.requests));
    match standing(spec, share, limit, error_rate > limit, (new.requests, look)) {
        Standing::Kept => {}
        Standing::Above(how) => {
            return Some((VerdictResult::Failed, format!("{above}{how}{beside}")));
        }
        Standing::Doubtful(why) => {
            return Some((VerdictResult::Inconclusive, format!("{above}{why}{beside}")));
        }
    }
    if look.rule == LimitRule::Plain
        && let Err((VerdictResult::Failed, why)) = means::latency(spec, new, old, look.rule)
    {
        return Some((VerdictResult::Failed, why));
    }
    last.then(|| {
        let errors = format!("error rate {} {errors} ≤ {}", percent(error_rate), percent(limit));
        match means::latency(spec, new, old, look.rule) {
            Ok(Some(latency)) => (VerdictResult::Success, format!("{errors}; {latency}")),
            Ok(None) => (VerdictResult::Success, errors),
            Err(decided) => decided,
        }
    })
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
        assert_eq!(
            why,
            "error rate 31.0 % (62 of 200) > 2.0 % (p < 0.0001 before the end); stable 0.0 % (0 of 400) at the same time"
        );
        // Where clients cause the errors, stable has them, too.
        let (_, why) = judge(window(200, 62, 100.0), window(400, 120, 100.0), true).unwrap();
        assert_eq!(
            why,
            "error rate 31.0 % (62 of 200) > 2.0 %; stable 30.0 % (120 of 400) at the same time"
        );
        let (_, why) = judge(window(200, 62, 100.0), window(0, 0, 0.0), true).unwrap();
        assert_eq!(why, "error rate 31.0 % (62 of 200) > 2.0 %");
        let spec = AnalysisSpec::default();
        let sequential = Look { last: true, rule: LimitRule::Sequential };
        let (_, why) = evaluate(&spec, &window(200, 62, 100.0), &old, sequential).unwrap();
        assert_eq!(why, "error rate 31.0 % (62 of 200) > 2.0 %", "the words of older journals");
        let (_, why) = judge(window(200, 0, 2500.0), window(400, 0, 2000.0), true).unwrap();
        assert_eq!(why, "mean response 2500 ms > 2000 ms");
        let (result, why) = judge(window(200, 1, 110.0), old, true).unwrap();
        assert_eq!(result, VerdictResult::Success);
        assert_eq!(why, "error rate 0.5 % (1 of 200) ≤ 2.0 %");
    }

    #[test]
    fn fails_early_but_passes_only_at_the_end() {
        let old = window(400, 0, 100.0);
        assert_eq!(judge(window(200, 0, 100.0), old, false), None);
        assert_eq!(judge(window(9, 9, 100.0), old, false), None);
        // Above its limit by chance; so are means, which one long answer changes.
        assert_eq!(judge(window(25, 1, 100.0), old, false), None);
        assert_eq!(judge(window(200, 0, 2500.0), old, false), None);
        let (result, why) = judge(window(9, 9, 100.0), old, true).unwrap();
        assert_eq!(result, VerdictResult::Inconclusive);
        assert_eq!(why, "9 requests reached the canary < 10 needed");
    }

    #[test]
    fn what_may_be_chance_is_no_verdict_of_few_requests() {
        let old = window(400, 0, 100.0);
        let (result, why) = judge(window(12, 1, 100.0), old, true).unwrap();
        assert_eq!(result, VerdictResult::Inconclusive);
        assert!(why.starts_with("error rate 8.3 % (1 of 12) > 2.0 %: may be chance (p "), "{why}");
        assert!(why.contains("12 samples < 30 needed; stable 0.0 % (0 of 400)"), "{why}");
        // Half of twelve are no chance, and of thirty the plain comparison counts.
        for (requests, errors) in [(12, 6), (30, 1)] {
            let (result, why) = judge(window(requests, errors, 100.0), old, true).unwrap();
            assert_eq!(result, VerdictResult::Failed, "{why}");
        }
        let (result, why) = judge(window(12, 0, 2500.0), old, true).unwrap();
        assert_eq!(result, VerdictResult::Inconclusive);
        assert_eq!(why, "mean response 2500 ms > 2000 ms: may be chance, 12 requests < 30 needed");
    }

    fn terms(rule: LimitRule, spec: &AnalysisSpec) -> Terms {
        Terms { rule, stable_reached: true, told: spec.engine.compare.clone() }
    }

    fn verdict(spec: &AnalysisSpec, run: &AnalysisRun, new: Window, at: u64) -> Judgement {
        super::judge(
            spec,
            &terms(LimitRule::PRESENT, spec),
            run,
            (&new, &window(400, 0, 100.0)),
            Timestamp(0),
            Timestamp(at),
        )
    }

    #[test]
    fn the_time_counts_from_the_first_request() {
        let spec = AnalysisSpec { duration: Duration::from_secs(10), ..AnalysisSpec::default() };
        let mut run = AnalysisRun::default();
        let idle = verdict(&spec, &run, window(0, 0, 0.0), 15_000);
        assert_eq!(idle, Judgement::Wait { until: Timestamp(20_000) });
        let Judgement::Verdict(result, why) = verdict(&spec, &run, window(0, 0, 0.0), 20_000)
        else {
            panic!("no verdict")
        };
        assert_eq!(result, VerdictResult::Inconclusive);
        assert_eq!(why, "no request to the canary was counted, 10 are needed");
        run.began = Some(Timestamp(12_000));
        let begun = verdict(&spec, &run, window(50, 0, 100.0), 20_000);
        assert_eq!(begun, Judgement::Wait { until: Timestamp(22_000) });
        let over = verdict(&spec, &run, window(50, 0, 100.0), 22_000);
        assert!(matches!(over, Judgement::Verdict(VerdictResult::Success, _)), "{over:?}");
        let unasked = AnalysisSpec { min_requests: 0, ..spec };
        let over = verdict(&unasked, &AnalysisRun::default(), window(0, 0, 0.0), 10_000);
        assert!(matches!(over, Judgement::Verdict(VerdictResult::Success, _)), "{over:?}");
    }

    #[test]
    fn requests_that_could_not_be_counted_at_the_end_leave_the_result_open() {
        let spec = AnalysisSpec { duration: Duration::from_secs(60), ..AnalysisSpec::default() };
        let mut run = AnalysisRun { began: Some(Timestamp(0)), ..AnalysisRun::default() };
        run.unread = Some(Timestamp(20_000));
        let Judgement::Verdict(result, why) = verdict(&spec, &run, window(12, 0, 100.0), 60_000)
        else {
            panic!("no verdict")
        };
        assert_eq!(result, VerdictResult::Inconclusive);
        assert_eq!(why, "the canary's requests could not be counted in the last 40s");
        // A reading that is a moment late is waited for, and counts what came meanwhile.
        run.unread = Some(Timestamp(58_000));
        let late = verdict(&spec, &run, window(12, 0, 100.0), 60_000);
        assert_eq!(late, Judgement::Wait { until: Timestamp(68_000) });
        // What was counted and is bad enough stays bad.
        let bad = verdict(&spec, &run, window(200, 62, 100.0), 60_000);
        assert!(matches!(bad, Judgement::Verdict(VerdictResult::Failed, _)), "{bad:?}");
    }

    #[test]
    fn what_stable_did_before_the_first_request_is_not_compared_and_a_broken_gpu_stays_broken() {
        let mut run = AnalysisRun::default();
        run.old.finished = 500;
        run.new.gpu.error = Some("Xid 79".to_owned());
        run.new.gpu.samples = 7;
        run.begin(Timestamp(9));
        assert_eq!((run.began, run.old.finished), (Some(Timestamp(9)), 0));
        assert_eq!((run.new.gpu.samples, run.new.gpu.error.as_deref()), (7, Some("Xid 79")));
    }

    #[test]
    fn a_ratio_of_means_asks_a_person_only_where_no_ranks_were_compared() {
        let spec = AnalysisSpec::default();
        let mut run = AnalysisRun { began: Some(Timestamp(0)), ..AnalysisRun::default() };
        let over = 60_000;
        let slow = window(200, 0, 250.0);
        let Judgement::Verdict(result, why) = verdict(&spec, &run, slow, over) else {
            panic!("no verdict")
        };
        assert_eq!(result, VerdictResult::Inconclusive, "{why}");
        assert!(why.starts_with("mean response 2.50 times stable's"), "{why}");
        assert!(why.contains("last 1,024 requests"), "{why}");
        let mut same = crate::engine::Histogram::with_bounds(&[0.1, 1.0]);
        (0..200).for_each(|_| same.observe(0.05));
        (run.new.first_token, run.old.first_token) = (same.clone(), same);
        let Judgement::Verdict(result, why) = verdict(&spec, &run, slow, over) else {
            panic!("no verdict")
        };
        assert_eq!(result, VerdictResult::Success, "{why}");
        let told =
            "> 2.00, not judged: ranks were compared; time to first token 1.00 times stable's";
        assert!(why.contains(told), "{why}");
        // A journal of a gpudeck with the older rule says what it said.
        let old = window(400, 0, 100.0);
        let (since, now) = (Timestamp(0), Timestamp(over));
        let rule = LimitRule::Sequential;
        let Judgement::Verdict(result, why) =
            super::judge(&spec, &terms(rule, &spec), &run, (&slow, &old), since, now)
        else {
            panic!("no verdict")
        };
        assert_eq!(result, VerdictResult::Failed);
        assert_eq!(why, "mean response 2.50 times stable's (250 ms against 100 ms) > 2.00");
        assert_eq!(serde_json::from_str::<LimitRule>("\"sequential\"").unwrap(), rule);
    }

    #[test]
    fn errors_are_compared_with_stables_where_that_is_asked_for() {
        let run = AnalysisRun { began: Some(Timestamp(0)), ..AnalysisRun::default() };
        let mut spec = AnalysisSpec { max_error_rate: 0.2, ..AnalysisSpec::default() };
        let failing = window(400, 60, 100.0);
        let Judgement::Verdict(result, why) = verdict(&spec, &run, failing, 60_000) else {
            panic!("no verdict")
        };
        assert_eq!(result, VerdictResult::Success, "{why}");
        spec.engine.compare.push(crate::spec::EngineMetric::ErrorRate);
        let Judgement::Verdict(result, why) = verdict(&spec, &run, failing, 1_000) else {
            panic!("no verdict")
        };
        assert_eq!(result, VerdictResult::Failed, "{why}");
        assert!(why.starts_with("error rate 15.0 percentage points above stable's"), "{why}");
        let Judgement::Verdict(result, why) = verdict(&spec, &run, window(400, 2, 100.0), 60_000)
        else {
            panic!("no verdict")
        };
        assert_eq!(result, VerdictResult::Success, "{why}");
        assert!(why.contains("; error rate 0.5 % against stable's 0.0 % (p 0.2497)"), "{why}");
        // Asked for, and not seen enough of.
        spec.engine.compare = vec![crate::spec::EngineMetric::ErrorRate];
        let Judgement::Verdict(result, why) = verdict(&spec, &run, window(24, 0, 100.0), 60_000)
        else {
            panic!("no verdict")
        };
        assert_eq!(result, VerdictResult::Inconclusive, "{why}");
        let lacks = "error rate not compared: 24 requests of the canary and 400 of stable, 30 needed of each; give";
        assert!(why.starts_with(lacks), "{why}");
    }

    #[test]
    fn what_was_asked_for_and_not_measured_is_no_success() {
        let spec: AnalysisSpec =
            toml::from_str("duration = \"10s\"\n[engine]\nmax_first_token = \"2s\"\n").unwrap();
        // The gateway counted enough; the engines' metrics could not be read.
        let run = AnalysisRun { began: Some(Timestamp(0)), ..AnalysisRun::default() };
        let Judgement::Verdict(result, why) = verdict(&spec, &run, window(50, 0, 100.0), 10_000)
        else {
            panic!("no verdict")
        };
        assert_eq!(result, VerdictResult::Inconclusive);
        assert!(why.starts_with("max_first_token could not be judged"), "{why}");
        // What no engine gave is left out, and the gateway's mean stands in for it.
        let unasked = AnalysisSpec { engine: crate::spec::EngineAnalysis::default(), ..spec };
        let Judgement::Verdict(result, why) = verdict(&unasked, &run, window(40, 0, 100.0), 10_000)
        else {
            panic!("no verdict")
        };
        assert_eq!(result, VerdictResult::Success);
        assert!(why.contains("end-to-end latency not compared: 0 samples"), "{why}");
    }

    /// Latencies of so many requests.
    fn latencies(of: u64, seconds: f64) -> EngineSamples {
        let mut seen = crate::engine::Histogram::with_bounds(&[0.1, 0.5, 1.0, 2.5]);
        (0..of).for_each(|_| seen.observe(seconds));
        EngineSamples {
            finished: of,
            first_token: seen.clone(),
            end_to_end: seen,
            ..Default::default()
        }
    }

    #[test]
    fn what_was_to_be_compared_and_was_not_is_no_success() {
        let over = 60_000;
        let mut spec = AnalysisSpec { max_latency_ratio: 3.0, ..AnalysisSpec::default() };
        let began = Some(Timestamp(0));
        let run = AnalysisRun {
            began,
            new: latencies(24, 1.5),
            old: latencies(72, 0.08),
            ..AnalysisRun::default()
        };
        let slow = window(24, 0, 1_913.0);
        // It is measured on until the time is over.
        let early = verdict(&spec, &run, slow, over - 1);
        assert_eq!(early, Judgement::Wait { until: Timestamp(over) });
        assert_eq!(
            verdict(&spec, &run, slow, over),
            Judgement::Verdict(
                VerdictResult::Inconclusive,
                "time to first token, end-to-end latency not compared: 24 samples of the canary and 72 of stable, 30 \
                 needed of each; give the analysis more traffic or a longer duration, or ask for fewer min_samples"
                    .to_owned()
            )
        );
        // As a journal of before that rule was decided.
        let (old, rule) = (window(400, 0, 100.0), terms(LimitRule::Ranked, &spec));
        let (since, now) = (Timestamp(0), Timestamp(over));
        let before = super::judge(&spec, &rule, &run, (&slow, &old), since, now);
        assert!(matches!(before, Judgement::Verdict(VerdictResult::Success, _)), "{before:?}");
        // Nothing is sent to stable, or no requests are asked for: nothing can or must be compared.
        let alone = Terms { stable_reached: false, ..terms(LimitRule::PRESENT, &spec) };
        let none = window(0, 0, 0.0);
        let unopposed = AnalysisRun { old: EngineSamples::default(), ..run.clone() };
        let last = super::judge(&spec, &alone, &unopposed, (&slow, &none), since, now);
        assert!(matches!(last, Judgement::Verdict(VerdictResult::Success, _)), "{last:?}");
        let unasked = AnalysisSpec { min_requests: 0, ..spec.clone() };
        let last = verdict(&unasked, &run, slow, over);
        assert!(matches!(last, Judgement::Verdict(VerdictResult::Success, _)), "{last:?}");
        // Who asks for fewer gets a comparison.
        spec.engine.min_samples = 10;
        let Judgement::Verdict(result, why) = verdict(&spec, &run, slow, over) else {
            panic!("no verdict")
        };
        assert_eq!(result, VerdictResult::Failed, "{why}");
    }

    #[test]
    fn without_histograms_the_mean_needs_its_requests() {
        let over = 60_000;
        let spec = AnalysisSpec::default();
        let run = AnalysisRun { began: Some(Timestamp(0)), ..AnalysisRun::default() };
        let Judgement::Verdict(result, why) = verdict(&spec, &run, window(24, 0, 110.0), over)
        else {
            panic!("no verdict")
        };
        assert_eq!(result, VerdictResult::Inconclusive, "{why}");
        let lacks = "mean response 110 ms, not compared: 24 requests at the canary and 400 at stable, 30 needed of each";
        assert!(why.starts_with(lacks), "{why}");
        let enough = verdict(&spec, &run, window(30, 0, 110.0), over);
        assert!(matches!(enough, Judgement::Verdict(VerdictResult::Success, _)), "{enough:?}");
        // An engine that told it of stable alone, and is replaced by one that tells nothing.
        let mixed = AnalysisRun { old: latencies(400, 0.08), ..run.clone() };
        let llama = Terms { told: Vec::new(), ..terms(LimitRule::PRESENT, &spec) };
        let windows = (&window(30, 0, 110.0), &window(400, 0, 100.0));
        let judged = |terms: &Terms| {
            super::judge(&spec, terms, &mixed, windows, Timestamp(0), Timestamp(over))
        };
        let by_mean = judged(&llama);
        assert!(matches!(by_mean, Judgement::Verdict(VerdictResult::Success, _)), "{by_mean:?}");
        // One that should tell it and does not is not compared.
        let Judgement::Verdict(result, why) = judged(&terms(LimitRule::PRESENT, &spec)) else {
            panic!("no verdict")
        };
        assert_eq!(result, VerdictResult::Inconclusive, "{why}");
        assert!(why.contains("not compared: 0 samples of the canary and 400 of stable"), "{why}");
        // Nobody asked for latencies.
        let mut unasked = spec.clone();
        unasked.engine.compare = Vec::new();
        let last = verdict(&unasked, &run, window(24, 0, 110.0), over);
        assert!(matches!(last, Judgement::Verdict(VerdictResult::Success, _)), "{last:?}");
    }

    #[test]
    fn checks_decide_in_argos_order_and_are_waited_for() {
        let spec: AnalysisSpec = toml::from_str(
            "min_requests = 0\nduration = \"1s\"\n[[golden]]\nprompt = \"a\"\ncontains = \"b\"\n\
             [[prometheus]]\nurl = \"http://p\"\nquery = \"q\"\nsuccess = \"result < 1\"\n",
        )
        .unwrap();
        let mut run = AnalysisRun::default();
        let none = window(0, 0, 0.0);
        run.check(&spec, "golden 1", CheckResult::Successful, "r2-0-a1 said b");
        run.check(&spec, "golden 7", CheckResult::Failed, "there is none");
        assert_eq!(run.checks.len(), 1);
        let waits = verdict(&spec, &run, none, 2_000);
        assert_eq!(waits, Judgement::Wait { until: Timestamp(240_000) });
        let late = verdict(&spec, &run, none, 240_000);
        let expected =
            Judgement::Verdict(VerdictResult::Error, "prometheus 1 has no result".to_owned());
        assert_eq!(late, expected);
        let mut good = run.clone();
        good.check(&spec, "prometheus 1", CheckResult::Successful, "0.5 (result < 1)");
        assert_eq!(
            verdict(&spec, &good, none, 2_000),
            Judgement::Verdict(
                VerdictResult::Success,
                "no requests are asked for; time to first token, inter-token latency, end-to-end \
                 latency not compared: 0 samples of the canary and 0 of stable, 30 needed of each; \
                 golden 1: r2-0-a1 said b; prometheus 1: 0.5 (result < 1)"
                    .to_owned()
            )
        );
        for _ in 0..5 {
            run.check(&spec, "prometheus 1", CheckResult::Error, "refused");
        }
        let error = Judgement::Verdict(VerdictResult::Error, "prometheus 1: refused".to_owned());
        assert_eq!(verdict(&spec, &run, none, 100), error);
        run.check(&spec, "golden 1", CheckResult::Failed, "r2-1-a1 said c, not `b` in it");
        let failed = Judgement::Verdict(
            VerdictResult::Failed,
            "golden 1: r2-1-a1 said c, not `b` in it".to_owned(),
        );
        assert_eq!(verdict(&spec, &run, none, 100), failed);
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
