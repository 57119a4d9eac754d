//! The arithmetic of `max_unavailable`, `max_surge` and canary weights.
//!
//! Copied from Kubernetes' Deployment controller (`pkg/controller/deployment/util/deployment_util.go`
//! and `rolling.go`), so that the numbers people know mean here what they mean there.

use crate::spec::{Count, RolloutSpec};

/// `max_surge` and `max_unavailable` as numbers of replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fenceposts {
    /// So many replicas may exist above the wanted number.
    pub surge: u32,
    /// So many of the wanted replicas may be not ready. Never more than are wanted.
    pub unavailable: u32,
}

/// Kubernetes' `ResolveFenceposts`: surge rounds up, unavailable rounds down; when both come out
/// as 0, unavailable becomes 1, since nothing could ever be replaced otherwise.
pub fn resolve_fenceposts(max_surge: Count, max_unavailable: Count, desired: u32) -> Fenceposts {
    let surge = match max_surge {
        Count::Number(n) => n,
        Count::Percent(p) => percent_up(p, desired),
    };
    let unavailable = match max_unavailable {
        Count::Number(n) => n,
        Count::Percent(p) => percent_down(p, desired),
    };
    let unavailable = if surge == 0 && unavailable == 0 { 1 } else { unavailable };
    Fenceposts { surge, unavailable: unavailable.min(desired) }
}

/// The fewest ready replicas that an action of ours may leave: wanted − unavailable
/// (Kubernetes' `minAvailable`).
pub fn floor(policy: &RolloutSpec, desired: u32) -> u32 {
    let posts = resolve_fenceposts(policy.max_surge, policy.max_unavailable, desired);
    desired.saturating_sub(posts.unavailable)
}

/// How many replicas beyond the wanted number may live at a time. A spare gang is used even with
/// `max_surge = 0`, as far as the policy lets that many replicas be in motion at all.
pub fn extra(policy: &RolloutSpec, desired: u32) -> u32 {
    let posts = resolve_fenceposts(policy.max_surge, policy.max_unavailable, desired);
    posts.surge.max(posts.unavailable)
}

/// Replicas of a canary with this share of the traffic: ⌈percent × replicas / 100⌉.
pub fn canary_replicas(percent: u32, replicas: u32) -> u32 {
    percent_up(percent.min(100), replicas)
}

/// Replicas of a canary of this scale: as with a surge, percentages round up.
pub fn scale(scale: Count, replicas: u32) -> u32 {
    match scale {
        Count::Number(n) => n.min(replicas),
        Count::Percent(percent) => canary_replicas(percent, replicas),
    }
}

fn percent_up(percent: u32, of: u32) -> u32 {
    let product = u64::from(percent) * u64::from(of);
    u32::try_from(product.div_ceil(100)).unwrap_or(u32::MAX)
}

fn percent_down(percent: u32, of: u32) -> u32 {
    let product = u64::from(percent) * u64::from(of);
    u32::try_from(product / 100).unwrap_or(u32::MAX)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn posts(surge: Count, unavailable: Count, desired: u32) -> (u32, u32) {
        let posts = resolve_fenceposts(surge, unavailable, desired);
        (posts.surge, posts.unavailable)
    }

    /// The table of Kubernetes' own `TestResolveFenceposts`, and its documentation's examples.
    #[test]
    fn agrees_with_the_tables_of_kubernetes() {
        use Count::{Number, Percent};
        assert_eq!(posts(Percent(0), Percent(0), 1), (0, 1));
        assert_eq!(posts(Percent(39), Percent(0), 10), (4, 0));
        assert_eq!(posts(Number(0), Number(0), 10), (0, 1));
        assert_eq!(posts(Percent(25), Percent(25), 1), (1, 0));
        assert_eq!(posts(Percent(25), Percent(25), 2), (1, 0));
        assert_eq!(posts(Percent(25), Percent(25), 10), (3, 2));
        assert_eq!(posts(Number(0), Percent(10), 3), (0, 1));
        assert_eq!(posts(Number(0), Number(9), 4), (0, 4));
    }

    #[test]
    fn canaries_round_up_and_never_past_all() {
        assert_eq!(canary_replicas(10, 1), 1);
        assert_eq!(canary_replicas(10, 10), 1);
        assert_eq!(canary_replicas(10, 11), 2);
        assert_eq!(canary_replicas(50, 3), 2);
        assert_eq!(canary_replicas(100, 7), 7);
        assert_eq!(canary_replicas(0, 7), 0);
    }

    fn count() -> impl Strategy<Value = Count> {
        prop_oneof![(0u32..20).prop_map(Count::Number), (0u32..=100).prop_map(Count::Percent)]
    }

    proptest! {
        /// `intstr.GetScaledValueFromIntOrPercent` in floating point, as Kubernetes computes it.
        #[test]
        fn agrees_with_kubernetes_everywhere(s in count(), u in count(), desired in 0u32..2000) {
            let scaled = |c: Count, up: bool| match c {
                Count::Number(n) => n,
                Count::Percent(p) => {
                    let value = f64::from(p) * f64::from(desired) / 100.0;
                    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
                    { (if up { value.ceil() } else { value.floor() }) as u32 }
                }
            };
            let (surge, mut unavailable) = (scaled(s, true), scaled(u, false));
            if surge == 0 && unavailable == 0 {
                unavailable = 1;
            }
            // MaxUnavailable(): never more than there are.
            prop_assert_eq!(posts(s, u, desired), (surge, unavailable.min(desired)));
        }

        /// Something can always be moved.
        #[test]
        fn never_stands_still(s in count(), u in count(), desired in 1u32..2000) {
            let policy =
                RolloutSpec { max_surge: s, max_unavailable: u, ..RolloutSpec::default() };
            prop_assert!(extra(&policy, desired) >= 1);
            prop_assert!(floor(&policy, desired) <= desired);
            let canary = canary_replicas(1, desired);
            prop_assert!(canary >= 1 && canary <= desired);
        }
    }
}
