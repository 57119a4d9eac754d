//! Limits on rates are looked at after every sample: how often chance ends a good canary, and how soon a
//! broken one is ended. Draws are pseudo-random and the same in each run.

use deciding::base::Timestamp;
use deciding::engine::Histogram;
use deciding::rollout::analysis::{AnalysisRun, Judgement, VerdictResult, judge};
use deciding::rollout::{EngineSamples, LimitRule, Terms, Window};
use deciding::spec::AnalysisSpec;

use crate::build::Rng;

const REQUESTS: u32 = 600;

/// A limit of 2 % on errors and of 300 ms on the first token, nothing else; it goes on for long.
fn spec() -> AnalysisSpec {
    let text = "duration = \"10h\"\nmax_error_rate = 0.02\ngpu = { errors = false, max_throttled = 1.0 }\n\
                [engine]\ncompare = []\nmax_first_token = \"300ms\"\n";
    toml::from_str(text).unwrap()
}

fn terms(spec: &AnalysisSpec) -> Terms {
    let told = spec.engine.compare.clone();
    Terms { rule: LimitRule::PRESENT, stable_reached: true, told }
}

/// True so often in a million.
fn happens(rng: &mut Rng, per_million: u64) -> bool {
    rng.below(1_000_000) < per_million
}

/// After how many requests the analysis ends, if it ends before its time: errors as often as that are
/// counted by the gateway or by the engines, or first tokens come too late as often as that.
fn ends_early(rng: &mut Rng, spec: &AnalysisSpec, how: How, per_million: u64) -> Option<u32> {
    let mut window = Window::default();
    let mut run = AnalysisRun { began: Some(Timestamp(0)), ..AnalysisRun::default() };
    for n in 1..=REQUESTS {
        let bad = happens(rng, per_million);
        let errors = u64::from(bad && how == How::Gateway);
        window.add(&Window { requests: 1, errors, response_ms_sum: 100.0 });
        let mut first_token = Histogram::with_bounds(&[0.1, 0.3, 1.0]);
        first_token.observe(if bad && how == How::FirstToken { 0.6 } else { 0.05 });
        let failed = u64::from(bad && how == How::Engines);
        let seen = EngineSamples { finished: 1, failed, first_token, ..EngineSamples::default() };
        run.new.add(&seen);
        let windows = (&window, &Window::default());
        match judge(spec, &terms(spec), &run, windows, Timestamp(0), Timestamp(u64::from(n))) {
            Judgement::Wait { .. } => {}
            Judgement::Verdict(VerdictResult::Failed, why) => {
                assert!(why.contains(" > "), "{why}");
                return Some(n);
            }
            other @ Judgement::Verdict(..) => panic!("{other:?}"),
        }
    }
    None
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Gateway,
    Engines,
    FirstToken,
}

#[test]
fn chance_hardly_ever_ends_a_good_canary_early() {
    let spec = spec();
    let runs = 300;
    // Well within the limit, and just at it: 0.5 and 2 % of errors, 3.5 and 5 % of late first tokens.
    for (how, per_million) in [
        (How::Gateway, 5_000),
        (How::Gateway, 20_000),
        (How::Engines, 5_000),
        (How::FirstToken, 35_000),
        (How::FirstToken, 50_000),
    ] {
        let mut rng = Rng(17 + per_million);
        let ended =
            (0..runs).filter(|_| ends_early(&mut rng, &spec, how, per_million).is_some()).count();
        let most = 2.0 * spec.engine.significance * f64::from(runs);
        assert!(ended as f64 <= most, "{how:?} {per_million}: {ended} of {runs}");
    }
}

#[test]
fn a_broken_canary_is_ended_early() {
    let spec = spec();
    // Half of all: at once; ten per cent: before the end.
    for (how, per_million, within) in [
        (How::Gateway, 500_000, 20),
        (How::Engines, 500_000, 20),
        (How::FirstToken, 500_000, 30),
        (How::Gateway, 100_000, 400),
    ] {
        let mut rng = Rng(99);
        for _ in 0..100 {
            let ended = ends_early(&mut rng, &spec, how, per_million);
            assert!(ended.is_some_and(|n| n <= within), "{how:?} {per_million}: {ended:?}");
        }
    }
}

/// Two equal releases, 5 % of errors each, and one request in a hundred that takes a minute.
#[test]
fn two_equal_releases_hardly_ever_differ() {
    let text = "duration = \"10s\"\nmax_error_rate = 1.0\n[engine]\ncompare = [\"error_rate\"]\n";
    let spec: AnalysisSpec = toml::from_str(text).unwrap();
    let mut rng = Rng(5);
    let request = |rng: &mut Rng| {
        let response_ms_sum = if happens(rng, 10_000) { 60_000.0 } else { 100.0 };
        Window { requests: 1, errors: u64::from(happens(rng, 50_000)), response_ms_sum }
    };
    let run = AnalysisRun { began: Some(Timestamp(0)), ..AnalysisRun::default() };
    let runs = 300;
    let (mut failed, mut asked) = (0, 0);
    for _ in 0..runs {
        let (mut new, mut old) = (Window::default(), Window::default());
        for n in 1..=REQUESTS {
            new.add(&request(&mut rng));
            old.add(&request(&mut rng));
            let at = Timestamp(if n == REQUESTS { 10_000 } else { u64::from(n) });
            match judge(&spec, &terms(&spec), &run, (&new, &old), Timestamp(0), at) {
                Judgement::Wait { .. } | Judgement::Verdict(VerdictResult::Success, _) => {}
                Judgement::Verdict(VerdictResult::Failed, why) => {
                    assert!(why.contains("percentage points above stable's"), "{why}");
                    failed += 1;
                    break;
                }
                // The means are apart by chance: no rollout is taken back for that.
                Judgement::Verdict(VerdictResult::Inconclusive, why) => {
                    assert!(why.contains("last 1,024 requests"), "{why}");
                    asked += 1;
                }
                other @ Judgement::Verdict(..) => panic!("{other:?}"),
            }
        }
    }
    let most = 3.0 * spec.engine.significance * f64::from(runs);
    assert!(f64::from(failed) <= most, "{failed} of {runs}");
    assert!(asked > 0, "it is a test of means that are apart");
}
