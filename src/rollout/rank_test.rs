//! The Mann-Whitney U test (Wilcoxon's rank-sum test) on counts by bucket.
//!
//! Observations that fall into one bucket are ties. With a histogram that is an approximation: the
//! order within a bucket is not known, so differences smaller than a bucket are not seen, and the
//! test is weaker (never stronger) than on the values themselves. With one bucket for each distinct
//! value it is the exact statistic with the tie-corrected normal approximation of its distribution
//! (as `scipy.stats.mannwhitneyu(x, y, "greater", method="asymptotic")`).

/// What the test found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RankTest {
    /// The statistic: how many pairs (one of each sample) have the larger value in the first
    /// sample, a tie counting a half.
    pub u: f64,
    /// `u` as a share of all pairs: the probability that an observation of the first sample is the
    /// larger one. 0.5: no difference.
    pub superiority: f64,
    /// One-sided: the probability of so large a `u`, or a larger one, if there is no difference.
    pub p: f64,
    /// Observations in the first and the second sample.
    pub samples: (u64, u64),
}

/// Does the first sample tend to larger values than the second? Both are counts of the same
/// buckets in ascending order. None if one is empty.
pub fn mann_whitney(first: &[u64], second: &[u64]) -> Option<RankTest> {
    let total = |counts: &[u64]| counts.iter().fold(0u64, |all, n| all.saturating_add(*n));
    let samples = (total(first), total(second));
    let (mine, theirs) = (samples.0 as f64, samples.1 as f64);
    if mine < 1.0 || theirs < 1.0 {
        return None;
    }
    let mut u = 0.0;
    let mut ties = 0.0;
    let mut smaller = 0.0;
    for bucket in 0..first.len().max(second.len()) {
        let here = first.get(bucket).copied().unwrap_or(0) as f64;
        let there = second.get(bucket).copied().unwrap_or(0) as f64;
        u += here * (smaller + there / 2.0);
        smaller += there;
        let tied = here + there;
        ties += tied * tied * tied - tied;
    }
    let all = mine + theirs;
    let variance = mine * theirs / 12.0 * ((all + 1.0) - ties / (all * (all - 1.0)).max(1.0));
    // All in one bucket: nothing can be told apart.
    let p = if variance > 1e-9 {
        // 0.5: the continuity correction, since u moves in halves.
        normal_tail((u - mine * theirs / 2.0 - 0.5) / variance.sqrt())
    } else {
        1.0
    };
    Some(RankTest { u, superiority: u / (mine * theirs), p, samples })
}

/// The probability that a standard normal variable is above `z`.
fn normal_tail(z: f64) -> f64 {
    0.5 * erfc(z / std::f64::consts::SQRT_2)
}

/// The complementary error function with a relative error below 1.2e-7 (Press et al., Numerical
/// Recipes, 6.2: a Chebyshev fit).
fn erfc(x: f64) -> f64 {
    const FIT: [f64; 10] = [
        -1.265_512_23,
        1.000_023_68,
        0.374_091_96,
        0.096_784_18,
        -0.186_288_06,
        0.278_868_07,
        -1.135_203_98,
        1.488_515_87,
        -0.822_152_23,
        0.170_872_77,
    ];
    let t = 1.0 / (1.0 + 0.5 * x.abs());
    let fit = FIT.iter().rev().fold(0.0, |sum, c| sum * t + c);
    let tail = t * (fit - x * x).exp();
    if x >= 0.0 { tail } else { 2.0 - tail }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// One bucket for each distinct value of either sample.
    fn by_value(x: &[u32], y: &[u32]) -> (Vec<u64>, Vec<u64>) {
        let mut values: Vec<u32> = x.iter().chain(y).copied().collect();
        values.sort_unstable();
        values.dedup();
        let count = |of: &[u32]| {
            let count = |v: &u32| of.iter().filter(|o| *o == v).count() as u64;
            values.iter().map(count).collect()
        };
        (count(x), count(y))
    }

    fn test(x: &[u32], y: &[u32]) -> RankTest {
        let (x, y) = by_value(x, y);
        mann_whitney(&x, &y).unwrap()
    }

    /// Values of scipy 1.x: `mannwhitneyu(x, y, alternative="greater", method="asymptotic")`.
    #[test]
    fn agrees_with_scipy() {
        #[rustfmt::skip]
        let table: [(&[u32], &[u32], f64, f64); 6] = [
            (&[3, 4, 5, 6, 7], &[1, 2, 3, 4, 5], 20.5, 0.056_923_149),
            (&[10, 12, 14, 16, 18, 20, 22, 24], &[1, 3, 5, 7, 9, 11, 13, 15], 58.0, 0.003_702_767),
            (&[1, 1, 1, 2, 2, 3, 3, 3, 3, 4], &[1, 1, 2, 2, 2, 2, 3, 4, 4, 4], 45.5, 0.651_973_447),
            (&[5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6], &[5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 6, 6, 6, 6, 6], 250.0, 0.055_207_899),
            (&[0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30, 32, 34, 36, 38, 40, 42, 44, 46, 48, 50, 52, 54, 56, 58], &[10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30, 32, 34, 36, 38, 40, 42, 44, 46, 48, 50, 52, 54, 56, 58, 60, 62, 64, 66, 68], 312.5, 0.979_372_583),
            (&[19, 22, 16, 29, 24], &[20, 11, 17, 12], 17.0, 0.055_673_443),
        ];
        for (x, y, u, p) in table {
            let found = test(x, y);
            assert!((found.u - u).abs() < 1e-9, "{x:?} {y:?}: {found:?}");
            assert!((found.p - p).abs() < 1e-6, "{x:?} {y:?}: {found:?}, {p} expected");
        }
    }

    #[test]
    fn nothing_to_compare_is_no_result() {
        assert_eq!(mann_whitney(&[0, 0], &[1, 2]), None);
        assert_eq!(mann_whitney(&[], &[]), None);
        let tied = mann_whitney(&[50], &[60]).unwrap();
        assert_eq!((tied.p, tied.superiority), (1.0, 0.5));
    }

    proptest! {
        /// The statistic is what its definition says: pairs won, ties half.
        #[test]
        fn u_counts_the_pairs(
            x in prop::collection::vec(0u32..20, 1..30),
            y in prop::collection::vec(0u32..20, 1..30),
        ) {
            let mut pairs = 0.0;
            for a in &x {
                for b in &y {
                    pairs += match a.cmp(b) {
                        std::cmp::Ordering::Greater => 1.0,
                        std::cmp::Ordering::Equal => 0.5,
                        std::cmp::Ordering::Less => 0.0,
                    };
                }
            }
            let found = test(&x, &y);
            prop_assert!((found.u - pairs).abs() < 1e-6);
            prop_assert!((0.0..=1.0).contains(&found.p) && (0.0..=1.0).contains(&found.superiority));
            // The other way round every pair is won by the other side.
            let reverse = test(&y, &x);
            prop_assert!((found.u + reverse.u - (x.len() * y.len()) as f64).abs() < 1e-6);
        }

        /// Bucketing (merging neighbours) never turns a difference round.
        #[test]
        fn coarser_buckets_keep_the_direction_of_a_clear_shift(
            x in prop::collection::vec(0u32..10, 20..60),
            shift in 20u32..40,
        ) {
            let y: Vec<u32> = x.clone();
            let slower: Vec<u32> = x.iter().map(|v| v + shift).collect();
            let coarse = |v: &[u32]| v.iter().map(|v| v / 8).collect::<Vec<u32>>();
            let found = test(&coarse(&slower), &coarse(&y));
            prop_assert!(found.superiority > 0.9 && found.p < 1e-4, "{found:?}");
        }
    }
}
