//! From the gateway's running totals to rates for people and windows for the analysis.

use std::collections::{BTreeMap, VecDeque};

use crate::api::TrafficView;
use crate::base::{ReplicaId, Timestamp};
use crate::gateway::ServerCounters;
use crate::rollout::Window;

/// Over how many milliseconds rates are shown.
const SHOWN_MS: u64 = 10_000;

/// What was seen of one service's replicas lately.
#[derive(Default)]
pub struct Traffic {
    last: Vec<BTreeMap<ReplicaId, ServerCounters>>,
    recent: VecDeque<(Timestamp, BTreeMap<ReplicaId, Window>)>,
    began: Option<Timestamp>,
}

impl Traffic {
    /// Takes new totals, by the place that counts (each backend of each gateway, always in the
    /// same order); returns what was added since the last ones.
    pub fn observe(
        &mut self,
        now: Timestamp,
        counters: Vec<BTreeMap<ReplicaId, ServerCounters>>,
    ) -> BTreeMap<ReplicaId, Window> {
        let mut windows: BTreeMap<ReplicaId, Window> = BTreeMap::new();
        if self.last.len() != counters.len() {
            // The gateways of the service changed: counting begins anew.
            self.began = None;
        }
        for (place, totals) in counters.iter().enumerate() {
            for (replica, total) in totals {
                // A server seen for the first time is new at the gateway, unless we are new here.
                let before = match self.last.get(place).and_then(|last| last.get(replica)) {
                    Some(before) if before.requests <= total.requests => *before,
                    Some(_) => ServerCounters::default(),
                    None if self.began.is_none() => *total,
                    None => ServerCounters::default(),
                };
                let requests = total.requests.saturating_sub(before.requests);
                windows.entry(*replica).or_default().add(&Window {
                    requests,
                    errors: total.errors.saturating_sub(before.errors).min(requests),
                    response_ms_sum: requests as f64 * total.mean_response_ms,
                });
            }
        }
        self.began.get_or_insert(now);
        self.last = counters;
        self.recent.push_back((now, windows.clone()));
        while self.recent.front().is_some_and(|(at, _)| now.0.saturating_sub(at.0) > SHOWN_MS) {
            self.recent.pop_front();
        }
        windows
    }

    /// Nothing was read for so long that the last figures say nothing of now.
    pub fn is_old(&self, now: Timestamp) -> bool {
        self.recent.back().is_some_and(|(at, _)| now.0.saturating_sub(at.0) > SHOWN_MS)
    }

    /// Rates over the last seconds of the replicas that `which` picks.
    pub fn view(&self, which: impl Fn(&ReplicaId) -> bool) -> TrafficView {
        self.rates(|windows| {
            let those = windows.iter().filter(|(replica, _)| which(replica));
            those.fold(Window::default(), |mut sum, (_, window)| {
                sum.add(window);
                sum
            })
        })
    }

    /// Rates over the last seconds of one replica.
    pub fn view_of(&self, replica: &ReplicaId) -> TrafficView {
        self.rates(|windows| windows.get(replica).copied().unwrap_or_default())
    }

    fn rates(&self, of: impl Fn(&BTreeMap<ReplicaId, Window>) -> Window) -> TrafficView {
        let (Some((first, _)), Some((last, _))) = (self.recent.front(), self.recent.back()) else {
            return TrafficView::default();
        };
        // The first entry's window reaches back to the reading before it.
        let readings = self.recent.len() as f64;
        let span_s = last.0.saturating_sub(first.0) as f64 / 1000.0;
        let span_s = if readings > 1.0 { span_s * readings / (readings - 1.0) } else { 1.0 };
        let mut sum = Window::default();
        for (_, windows) in &self.recent {
            sum.add(&of(windows));
        }
        let some = sum.requests > 0;
        let round = |value: f64| (value * 10.0).round() / 10.0;
        TrafficView {
            requests_per_s: Some(round(sum.requests as f64 / span_s.max(0.1))),
            error_rate: some.then(|| (sum.errors as f64 / sum.requests as f64 * 1e4).round() / 1e4),
            mean_response_ms: some.then(|| round(sum.response_ms_sum / sum.requests as f64)),
        }
    }

    /// Requests in flight at a replica, as last seen; none if the gateway does not know it.
    pub fn in_flight(&self, replica: &ReplicaId) -> Option<u64> {
        let seen: Vec<u64> =
            self.last.iter().filter_map(|l| l.get(replica)).map(|c| c.in_flight).collect();
        (!seen.is_empty()).then(|| seen.iter().sum())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::base::{Attempt, ReleaseNumber};

    fn one(requests: u64, errors: u64) -> BTreeMap<ReplicaId, ServerCounters> {
        let id = ReplicaId { release: ReleaseNumber(1), replica: 0, attempt: Attempt::FIRST };
        BTreeMap::from([(
            id,
            ServerCounters { in_flight: 1, requests, errors, mean_response_ms: 20.0 },
        )])
    }

    fn totals(requests: u64, errors: u64) -> Vec<BTreeMap<ReplicaId, ServerCounters>> {
        vec![one(requests, errors)]
    }

    #[test]
    fn the_restart_of_one_of_two_gateways_adds_only_what_it_saw() {
        let mut traffic = Traffic::default();
        let id = *one(0, 0).keys().next().unwrap();
        traffic.observe(Timestamp(0), vec![one(1000, 0), one(500, 0)]);
        let both = traffic.observe(Timestamp(1000), vec![one(1010, 1), one(505, 1)]);
        assert_eq!(both.get(&id).map(|w| (w.requests, w.errors)), Some((15, 2)));
        let after = traffic.observe(Timestamp(2000), vec![one(1020, 1), one(3, 0)]);
        assert_eq!(after.get(&id).map(|w| (w.requests, w.errors)), Some((13, 0)));
        assert_eq!(traffic.in_flight(&id), Some(2));
    }

    #[test]
    fn totals_become_increments_and_survive_a_restart_of_the_gateway() {
        let mut traffic = Traffic::default();
        let first = |w: BTreeMap<ReplicaId, Window>| *w.values().next().unwrap();
        assert_eq!(first(traffic.observe(Timestamp(0), totals(1000, 5))).requests, 0);
        assert_eq!(first(traffic.observe(Timestamp(1000), totals(1010, 6))).errors, 1);
        assert_eq!(first(traffic.observe(Timestamp(2000), totals(4, 0))).requests, 4);
        let view = traffic.view(|_| true);
        assert_eq!(view.error_rate, Some(0.0714));
        let id = *one(0, 0).keys().next().unwrap();
        assert_eq!(traffic.view_of(&id), view);
    }
}
