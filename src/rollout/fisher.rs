//! Fisher's exact test: is a share larger than another one?
//!
//! Of all requests of both sides so many were bad; if it makes no difference which side serves, how likely are
//! so many bad ones, or more, at the first? That is the upper tail of a hypergeometric distribution, exact for
//! few requests as for many (as `scipy.stats.fisher_exact(table, "greater")`), and never too sure.
//!
//! It is summed outwards from the end of the tail that is nearer to the middle, so that terms only become
//! smaller; what is left out is below 1e-13 of the sum or is bounded from above by a geometric series. Beyond
//! [`MOST`] requests all counts are scaled down to it, as if fewer had been seen. So a test takes some ten
//! thousand steps at most, and both approximations make `p` larger, never smaller.

/// Most requests of both sides that are counted one by one.
const MOST: f64 = 1e8;

/// Most terms of the tail that are summed. (From the middle of the distribution of [`MOST`] requests to where
/// the terms vanish are about 20,000.)
const MAX_TERMS: u32 = 100_000;

/// One-sided: the probability of so many hits of the first sample, or more, if both have the same share of them.
/// Each is `(hits, of)`. None if one of them is empty.
pub fn greater(first: (u64, u64), second: (u64, u64)) -> Option<f64> {
    if first.1 == 0 || second.1 == 0 {
        return None;
    }
    let scale = ((first.1 as f64 + second.1 as f64) / MOST).max(1.0);
    // Rounded against a difference.
    let mine = (first.1 as f64 / scale).floor();
    let hits = (first.0 as f64 / scale).floor().min(mine);
    let theirs = (second.1 as f64 / scale).floor();
    let other = (second.0 as f64 / scale).ceil().min(theirs);
    let (all, bad) = (mine + theirs, hits + other);
    if hits <= 0.0 {
        return Some(1.0);
    }
    let misses = theirs - other;
    let ln_here = ln_choose(bad, hits) + ln_choose(all - bad, mine - hits) - ln_choose(all, mine);
    let here = ln_here.exp();
    let good = all - bad;
    // How much more probable one hit more is, and one fewer.
    let up = |k: f64| (bad - k) * (mine - k) / ((k + 1.0) * (good - mine + k + 1.0));
    let down = |k: f64| k * (good - mine + k) / ((bad - k + 1.0) * (mine - k + 1.0));
    let p = if up(hits) < 1.0 {
        here * tail(hits, 1.0, up)
    } else if misses <= 0.0 {
        1.0
    } else {
        let below = here * down(hits);
        1.0 - below * tail(hits - 1.0, -1.0, down)
    };
    Some(p.clamp(0.0, 1.0))
}

/// The sum of the terms from `k` in one direction, as a multiple of the first; `ratio` is that of the next
/// term to the one at `k`, and becomes smaller with each.
fn tail(mut k: f64, step: f64, ratio: impl Fn(f64) -> f64) -> f64 {
    let (mut term, mut sum) = (1.0, 1.0);
    for _ in 0..MAX_TERMS {
        let next = ratio(k);
        if next <= 0.0 {
            return sum;
        }
        // All that is left is at most this much.
        let rest = if next < 1.0 { term * next / (1.0 - next) } else { f64::INFINITY };
        if rest < sum * 1e-13 {
            return sum;
        }
        term *= next;
        sum += term;
        k += step;
    }
    let next = ratio(k);
    if next < 1.0 { sum + term * next.max(0.0) / (1.0 - next) } else { f64::INFINITY }
}

/// The logarithm of the number of ways to pick `k` of `n`.
fn ln_choose(n: f64, k: f64) -> f64 {
    ln_factorial(n) - ln_factorial(k) - ln_factorial(n - k)
}

/// The logarithm of `n!`: Stirling's series from 16 on, where its error is below 1e-11.
fn ln_factorial(n: f64) -> f64 {
    if n < 16.0 {
        let mut product = 1.0;
        let mut factor = 2.0;
        while factor <= n {
            product *= factor;
            factor += 1.0;
        }
        return f64::ln(product);
    }
    let square = n * n;
    (n + 0.5) * n.ln() - n
        + 0.5 * (2.0 * std::f64::consts::PI).ln()
        + (1.0 / 12.0 - (1.0 / 360.0 - 1.0 / (1260.0 * square)) / square) / n
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Values of scipy 1.17: `fisher_exact([[a, n - a], [c, m - c]], alternative="greater")`.
    #[test]
    fn agrees_with_scipy() {
        for (first, second, p) in [
            ((5, 30), (0, 30), 0.026_092_774_308_652_99),
            ((3, 30), (3, 30), 0.664_625_740_004_865_9),
            ((7, 30), (1, 60), 0.001_651_294_123_169_05),
            ((1, 30), (4, 30), 0.973_907_225_691_347),
            ((0, 40), (3, 40), 1.0),
            ((30, 30), (0, 30), 8.455_616_946_072_368e-18),
            ((12, 200), (2, 400), 6.790_637_218_190_462e-5),
            ((300, 1_000), (310, 1_000), 0.703_402_307_086_009_4),
            ((90, 2_000), (58, 2_000), 0.004_599_329_599_859_752),
            ((450, 10_000), (290, 10_000), 1.129_484_785_026_685_5e-9),
            ((20_500, 1_000_000), (20_000, 1_000_000), 0.006_121_352_340_641_212),
            ((29_500, 1_000_000), (29_000, 1_000_000), 0.018_131_233_824_588_42),
            ((31_000, 1_000_000), (29_000, 1_000_000), 5.814_134_794_916_1e-17),
            ((1, 30), (0, 2_000_000), 1.499_977_500_538_422_7e-5),
        ] {
            let found = greater(first, second).unwrap();
            assert!((found / p - 1.0).abs() < 1e-6, "{first:?} {second:?}: {found}, {p} expected");
        }
    }

    #[test]
    fn no_counts_break_it() {
        assert_eq!(greater((0, 0), (1, 10)), None);
        assert_eq!(greater((1, 10), (0, 0)), None);
        assert_eq!(greater((40, 40), (40, 40)), Some(1.0));
        // Beyond what is counted one by one, less is believed than was seen.
        let p =
            greater((3_100_000_000, 100_000_000_000), (2_900_000_000, 100_000_000_000)).unwrap();
        assert!(p < 1e-9, "{p}");
        for huge in [u64::MAX, u64::MAX / 2, 1 << 60] {
            for hits in [0, 1, huge / 2, huge] {
                for few in [1, 30, huge] {
                    let p = greater((hits, huge), (few / 2, few)).unwrap();
                    assert!((0.0..=1.0).contains(&p), "{hits} of {huge}, {few}: {p}");
                }
            }
        }
    }

    proptest! {
        /// Term by term from the definition.
        #[test]
        fn sums_the_hypergeometric_tail(a in 0u64..40, n in 1u64..40, c in 0u64..40, m in 1u64..40) {
            let (a, c) = (a.min(n), c.min(m));
            let choose = |n: u64, k: u64| (0..k).fold(1.0, |all, i| all * (n - i) as f64 / (i + 1) as f64);
            let ways = |k: u64| {
                let misses = n - k;
                let good = n + m - a - c;
                if misses > good { 0.0 } else { choose(a + c, k) * choose(good, misses) }
            };
            let expected = (a..=n.min(a + c)).map(ways).sum::<f64>() / choose(n + m, n);
            let found = greater((a, n), (c, m)).unwrap();
            prop_assert!((found - expected).abs() < 1e-9, "{found}, {expected} expected");
        }
    }
}
