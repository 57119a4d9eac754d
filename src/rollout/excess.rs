//! Is a share above its limit, or may that be chance? A test that may be looked at after every sample.
//!
//! A binomial tail at each look would be wrong sooner or later: whoever looks often enough sees chance have
//! its day. Here the evidence is a likelihood ratio: how much more probable what was seen is under larger
//! shares than at the limit, as the mean over a fixed set of larger shares. While the real share is within
//! the limit, the probability that this ever reaches 1/p is at most p, however often it is looked at
//! (Ville's inequality for the test martingale of a mixture; Robbins 1970, Howard et al. 2021). So one
//! `significance` is enough for all looks together, and no correction for their number is needed.

/// The larger shares: the limit and a half, a quarter, … of what is above it. The last is near the limit,
/// for slow drifts; the first ones find what is broken within a few samples.
const ALTERNATIVES: i32 = 10;

/// The largest probability with which chance shows so much at this or any earlier look, if the real share is
/// at most `limit`: `hits` of `of`, which may be parts of samples where those are not independent.
pub fn chance(hits: f64, of: f64, limit: f64) -> f64 {
    let hits = hits.clamp(0.0, of.max(0.0));
    let misses = of - hits;
    if hits <= 0.0 || limit >= 1.0 || !of.is_finite() {
        return 1.0;
    }
    if limit <= 0.0 {
        return 0.0;
    }
    let ratios = (0..ALTERNATIVES).map(|i| {
        let share = limit + (1.0 - limit) * 0.5f64.powi(i);
        let without =
            if misses > 0.0 { misses * ((1.0 - share) / (1.0 - limit)).ln() } else { 0.0 };
        hits * (share / limit).ln() + without
    });
    let ratios: Vec<f64> = ratios.collect();
    let largest = ratios.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = ratios.iter().map(|r| (r - largest).exp()).sum();
    let evidence = largest + (sum / f64::from(ALTERNATIVES)).ln();
    (-evidence).exp().min(1.0)
}

/// For people: `p 0.0042`, `p < 0.0001`.
pub fn probability(p: f64) -> String {
    if p < 0.0001 { "p < 0.0001".to_owned() } else { format!("p {p:.4}") }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn few_are_chance_and_many_are_not() {
        for (hits, of, limit, most, least) in [
            (1.0, 25.0, 0.02, 1.0, 0.3),
            (3.0, 100.0, 0.02, 1.0, 0.3),
            (5.0, 10.0, 0.02, 1e-4, 0.0),
            (62.0, 200.0, 0.02, 1e-20, 0.0),
            (10.0, 10.0, 0.02, 1e-10, 0.0),
            (1.0, 1000.0, 0.0, 0.0, 0.0),
            (5.0, 5.0, 1.0, 1.0, 1.0),
            (0.0, 1000.0, 0.02, 1.0, 1.0),
        ] {
            let p = chance(hits, of, limit);
            assert!(p <= most && p >= least, "{hits} of {of} at {limit}: {p}");
        }
        assert_eq!((probability(0.5), probability(1e-9)), ("p 0.5000".into(), "p < 0.0001".into()));
    }

    proptest! {
        #![proptest_config(ProptestConfig { max_global_rejects: 100_000, ..ProptestConfig::default() })]

        /// The ratio is a martingale at the limit: its mean over the next sample is what it was.
        #[test]
        fn it_is_fair_at_the_limit(hits in 1u32..200, misses in 1u32..2_000, limit in 0.001f64..0.5) {
            let evidence = |hits: u32, misses: u32| {
                1.0 / chance(f64::from(hits), f64::from(hits + misses), limit)
            };
            let now = evidence(hits, misses);
            // Bounded at 1 it is no martingale, and beyond 1e300 no number.
            prop_assume!(now > 2.0 && now < 1e200);
            let next = limit * evidence(hits + 1, misses) + (1.0 - limit) * evidence(hits, misses + 1);
            prop_assume!(evidence(hits, misses + 1) > 1.0);
            prop_assert!((next / now - 1.0).abs() < 1e-6, "{next} after {now}");
        }

        /// More failures are never less evidence; nothing breaks it.
        #[test]
        fn more_hits_are_more_evidence(hits in 0u32..500, misses in 0u32..500, limit in 0.0f64..1.0) {
            let p = |hits: u32| chance(f64::from(hits), f64::from(hits + misses), limit);
            prop_assert!(p(hits + 1) <= p(hits) + 1e-12);
            prop_assert!((0.0..=1.0).contains(&p(hits)));
        }
    }
}
