//! A histogram as Prometheus knows it: counts by bucket, and the sum of what was observed.

use serde::{Deserialize, Serialize};

/// Most buckets that are kept; what an engine says beyond is put into the last one.
pub const MAX_BUCKETS: usize = 128;

/// Largest count that is believed: exact as a floating-point number.
const MAX_COUNT: f64 = 9_007_199_254_740_992.0;

/// Observations by bucket. Bucket `i` holds those of at most `bounds[i]` (and more than the bound
/// before); the last bucket, one more than there are bounds, those above all bounds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Histogram {
    bounds: Vec<f64>,
    counts: Vec<u64>,
    sum: f64,
}

impl Histogram {
    /// From `(le, cumulative count)` pairs in any order, the `+Inf` one included, and the sum.
    /// Nonsense (counts that fall, bounds that are no numbers) is bounded, not believed.
    pub fn from_cumulative(mut pairs: Vec<(f64, f64)>, sum: f64) -> Self {
        pairs.retain(|(bound, count)| !bound.is_nan() && count.is_finite() && *count >= 0.0);
        pairs.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut out = Self { sum: sane(sum), ..Self::default() };
        let mut below = 0;
        for (bound, count) in pairs {
            let cumulative = whole(count).max(below);
            if bound.is_infinite() || out.bounds.len() + 1 >= MAX_BUCKETS {
                // Several bounds may fall into the last bucket; the largest count is all of them.
                out.counts.truncate(out.bounds.len());
                let inner: u64 = out.counts.iter().sum();
                out.counts.push(cumulative.saturating_sub(inner));
            } else {
                out.bounds.push(bound);
                out.counts.push(cumulative - below);
            }
            below = cumulative;
        }
        out.counts.resize(out.bounds.len() + 1, 0);
        out
    }

    /// An empty one with these bounds, ascending.
    pub fn with_bounds(bounds: &[f64]) -> Self {
        Self { bounds: bounds.to_vec(), counts: vec![0; bounds.len() + 1], sum: 0.0 }
    }

    /// One observation more.
    pub fn observe(&mut self, value: f64) {
        if !value.is_finite() {
            return;
        }
        if self.counts.len() != self.bounds.len() + 1 {
            self.counts.resize(self.bounds.len() + 1, 0);
        }
        let bucket = self.bounds.iter().position(|b| value <= *b).unwrap_or(self.bounds.len());
        if let Some(count) = self.counts.get_mut(bucket) {
            *count = count.saturating_add(1);
        }
        self.sum = sane(self.sum + value);
    }

    /// Number of observations.
    pub fn count(&self) -> u64 {
        self.counts.iter().fold(0, |all, n| all.saturating_add(*n))
    }

    /// Sum of the observations.
    pub const fn sum(&self) -> f64 {
        self.sum
    }

    /// Mean of the observations; exact, whatever the buckets are. None without any.
    pub fn mean(&self) -> Option<f64> {
        let count = self.count();
        (count > 0).then(|| self.sum / count as f64)
    }

    /// The `q`-quantile (0 to 1) as `PromQL`'s `histogram_quantile` gives it: straight lines within
    /// a bucket, the highest bound for what lies above it. None without observations.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let (bucket, into) = self.find(q)?;
        let top = self.bounds.get(bucket);
        let bottom = bucket.checked_sub(1).and_then(|i| self.bounds.get(i)).copied();
        Some(match (bottom, top) {
            (None, Some(top)) if *top <= 0.0 => *top,
            (bottom, Some(top)) => {
                let bottom = bottom.unwrap_or(0.0);
                bottom + (top - bottom) * into
            }
            (bottom, None) => bottom.unwrap_or(0.0),
        })
    }

    /// The bounds of the bucket that holds the `q`-quantile: `None` above for the last one.
    pub fn quantile_bucket(&self, q: f64) -> Option<(f64, Option<f64>)> {
        let (bucket, _) = self.find(q)?;
        let bottom = bucket.checked_sub(1).and_then(|i| self.bounds.get(i)).copied();
        Some((bottom.unwrap_or(0.0), self.bounds.get(bucket).copied()))
    }

    /// Observations that are provably above `limit`: in buckets that begin there or higher.
    pub fn above(&self, limit: f64) -> u64 {
        let begins = |bucket: usize| bucket.checked_sub(1).and_then(|i| self.bounds.get(i));
        let counts = self.counts.iter().enumerate();
        let above = counts.filter(|(bucket, _)| begins(*bucket).is_some_and(|b| *b >= limit));
        above.fold(0, |all, (_, n)| all.saturating_add(*n))
    }

    /// The bucket of a quantile, and how far into it, 0 to 1.
    fn find(&self, q: f64) -> Option<(usize, f64)> {
        let all = self.count();
        if all == 0 {
            return None;
        }
        let rank = q.clamp(0.0, 1.0) * all as f64;
        let mut below = 0.0;
        for (bucket, count) in self.counts.iter().enumerate().filter(|(_, n)| **n > 0) {
            let count = *count as f64;
            if below + count >= rank {
                return Some((bucket, ((rank - below) / count).clamp(0.0, 1.0)));
            }
            below += count;
        }
        Some((self.counts.len().saturating_sub(1), 1.0))
    }

    /// What was observed since `earlier`, an older reading of the same engine process. Counts that
    /// fell mean that it was restarted: then everything is new.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let grew = self.bounds == earlier.bounds
            && self.counts.len() == earlier.counts.len()
            && self.counts.iter().zip(&earlier.counts).all(|(now, was)| now >= was);
        if !grew {
            return self.clone();
        }
        let counts = self.counts.iter().zip(&earlier.counts).map(|(now, was)| now - was).collect();
        Self { bounds: self.bounds.clone(), counts, sum: (self.sum - earlier.sum).max(0.0) }
    }

    /// Adds what was observed elsewhere. Where the bounds differ, only those in both remain.
    pub fn add(&mut self, other: &Self) {
        if other.count() == 0 {
            return;
        }
        if self.count() == 0 {
            self.clone_from(other);
            return;
        }
        let (mine, theirs) = self.aligned(other);
        let bounds = self.common_bounds(other);
        let counts = mine.iter().zip(&theirs).map(|(a, b)| a.saturating_add(*b)).collect();
        *self = Self { bounds, counts, sum: sane(self.sum + other.sum) };
    }

    /// The counts of both over the bounds they have in common: comparable bucket by bucket.
    pub fn aligned(&self, other: &Self) -> (Vec<u64>, Vec<u64>) {
        let bounds = self.common_bounds(other);
        (self.counts_over(&bounds), other.counts_over(&bounds))
    }

    fn common_bounds(&self, other: &Self) -> Vec<f64> {
        if self.bounds == other.bounds {
            return self.bounds.clone();
        }
        let theirs = |b: &f64| other.bounds.iter().any(|o| o.total_cmp(b).is_eq());
        self.bounds.iter().filter(|b| theirs(b)).copied().collect()
    }

    fn counts_over(&self, bounds: &[f64]) -> Vec<u64> {
        let mut out = vec![0u64; bounds.len() + 1];
        for (i, count) in self.counts.iter().enumerate() {
            let bucket = match self.bounds.get(i) {
                Some(top) => bounds.iter().position(|b| top <= b).unwrap_or(bounds.len()),
                None => bounds.len(),
            };
            if let Some(slot) = out.get_mut(bucket) {
                *slot = slot.saturating_add(*count);
            }
        }
        out
    }
}

fn sane(sum: f64) -> f64 {
    if sum.is_finite() { sum.clamp(-1e18, 1e18) } else { 0.0 }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // clamped
fn whole(count: f64) -> u64 {
    count.clamp(0.0, MAX_COUNT) as u64
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn three() -> Histogram {
        let pairs = vec![(0.1, 2.0), (f64::INFINITY, 10.0), (0.5, 8.0)];
        Histogram::from_cumulative(pairs, 3.0)
    }

    #[test]
    fn reads_cumulative_counts_in_any_order() {
        let histogram = three();
        assert_eq!(histogram.counts, [2, 6, 2]);
        assert_eq!((histogram.count(), histogram.mean()), (10, Some(0.3)));
    }

    #[test]
    fn quantiles_are_those_of_promql() {
        let histogram = three();
        // 5 of 10: 3 of the 6 in (0.1, 0.5].
        assert!((histogram.quantile(0.5).unwrap() - 0.3).abs() < 1e-9);
        assert!((histogram.quantile(0.1).unwrap() - 0.05).abs() < 1e-9);
        assert!((histogram.quantile(0.95).unwrap() - 0.5).abs() < 1e-9, "the highest bound");
        assert_eq!(histogram.quantile_bucket(0.5), Some((0.1, Some(0.5))));
        assert_eq!(histogram.quantile_bucket(0.95), Some((0.5, None)));
        assert_eq!(Histogram::default().quantile(0.5), None);
    }

    #[test]
    fn differences_survive_a_restart_of_the_engine() {
        let earlier = Histogram::from_cumulative(vec![(0.1, 1.0), (f64::INFINITY, 4.0)], 1.0);
        let later = Histogram::from_cumulative(vec![(0.1, 3.0), (f64::INFINITY, 9.0)], 2.5);
        let between = later.since(&earlier);
        assert_eq!((between.counts.clone(), between.sum), (vec![2, 3], 1.5));
        assert_eq!(earlier.since(&later), earlier);
    }

    #[test]
    fn different_bounds_meet_at_the_common_ones() {
        let mut coarse = Histogram::from_cumulative(vec![(0.5, 4.0), (f64::INFINITY, 5.0)], 1.0);
        assert_eq!(three().aligned(&coarse), (vec![8, 2], vec![4, 1]));
        coarse.add(&three());
        assert_eq!((coarse.counts.clone(), coarse.sum), (vec![12, 3], 4.0));
    }

    proptest! {
        #[test]
        fn no_input_breaks_it(
            pairs in prop::collection::vec((any::<f64>(), any::<f64>()), 0..300),
            sum in any::<f64>(),
            q in any::<f64>(),
        ) {
            let a = Histogram::from_cumulative(pairs.clone(), sum);
            prop_assert!(a.counts.len() == a.bounds.len() + 1 && a.counts.len() <= MAX_BUCKETS + 1);
            let _ = (a.quantile(q), a.quantile_bucket(q), a.mean());
            let mut b = three();
            b.add(&a);
            let _ = b.since(&a);
        }

        /// Adding is counting together, whatever the bounds.
        #[test]
        fn nothing_is_lost_by_adding(
            xs in prop::collection::vec(0.0f64..10.0, 0..50),
            ys in prop::collection::vec(0.0f64..10.0, 0..50),
        ) {
            let mut a = Histogram::with_bounds(&[1.0, 2.0, 5.0]);
            let mut b = Histogram::with_bounds(&[0.5, 2.0]);
            for x in &xs { a.observe(*x); }
            for y in &ys { b.observe(*y); }
            let all = a.count() + b.count();
            a.add(&b);
            prop_assert_eq!(a.count(), all);
        }
    }
}
