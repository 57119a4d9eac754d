//! From the gateway's running totals to rates for people and windows for the analysis.

use std::collections::{BTreeMap, VecDeque};

use crate::api::TrafficView;
use crate::base::{ReleaseNumber, ReplicaId, Timestamp};
use crate::gateway::ServerCounters;
use crate::rollout::Window;

/// Over how many milliseconds rates are shown.
const SHOWN_MS: u64 = 10_000;

/// The totals of each place that counts: a backend of a gateway, or the engines themselves.
pub type Totals = BTreeMap<String, BTreeMap<ReplicaId, ServerCounters>>;

/// The place of engines that are asked themselves: each of them may fail to answer alone.
pub const ENGINES: &str = "engines";

/// Totals of engines that are kept although they were not read lately.
const MAX_KEPT: usize = 4_096;

/// What was seen of one service's replicas lately.
#[derive(Default)]
pub struct Traffic {
    last: Totals,
    /// The last totals of each engine, also of those that did not answer since.
    engines: BTreeMap<ReplicaId, ServerCounters>,
    recent: VecDeque<(Timestamp, BTreeMap<ReplicaId, Window>)>,
    /// The totals are from before a time in which nothing could be read.
    unread: bool,
}

impl Traffic {
    /// Takes new totals; returns what was added since the last ones. At a place that was not read before counting
    /// begins with these.
    pub fn observe(&mut self, now: Timestamp, counters: Totals) -> BTreeMap<ReplicaId, Window> {
        let mut windows: BTreeMap<ReplicaId, Window> = BTreeMap::new();
        for (place, totals) in &counters {
            let known = self.last.get(place);
            for (replica, total) in totals {
                let before = if place == ENGINES {
                    self.engines.get(replica)
                } else {
                    known.and_then(|last| last.get(replica))
                };
                let before = match before {
                    Some(before) if before.requests <= total.requests => *before,
                    // It has begun anew.
                    Some(_) => ServerCounters::default(),
                    // A server seen for the first time is new at the gateway. An engine may only not have answered yet.
                    None if known.is_some() && place != ENGINES => ServerCounters::default(),
                    None => *total,
                };
                let requests = total.requests.saturating_sub(before.requests);
                windows.entry(*replica).or_default().add(&Window {
                    requests,
                    errors: total.errors.saturating_sub(before.errors).min(requests),
                    response_ms_sum: requests as f64 * total.mean_response_ms,
                });
            }
        }
        if let Some(engines) = counters.get(ENGINES) {
            self.engines.extend(engines.iter().map(|(replica, total)| (*replica, *total)));
            while self.engines.len() > MAX_KEPT {
                // Of the oldest release.
                self.engines.pop_first();
            }
        }
        self.last = counters;
        // What came in minutes is no rate of the last seconds.
        if !std::mem::take(&mut self.unread) {
            self.recent.push_back((now, windows.clone()));
        }
        while self.recent.front().is_some_and(|(at, _)| now.0.saturating_sub(at.0) > SHOWN_MS) {
            self.recent.pop_front();
        }
        windows
    }

    /// Whether requests to a release were ever counted.
    pub fn has_counted(&self, release: ReleaseNumber) -> bool {
        let of_release = |id: &ReplicaId| id.release == release;
        self.engines.keys().any(of_release)
            || self.last.values().flat_map(BTreeMap::keys).any(of_release)
    }

    /// Forgets the rates where nothing was read for so long that they say nothing of now; true if there were any.
    /// The totals stay: what came meanwhile is counted when they can be read again.
    pub fn forget_old_rates(&mut self, now: Timestamp) -> bool {
        let is_old =
            self.recent.back().is_some_and(|(at, _)| now.0.saturating_sub(at.0) > SHOWN_MS);
        if is_old {
            self.recent.clear();
            self.unread = true;
        }
        is_old
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
        if self.unread {
            return None;
        }
        let seen: Vec<u64> =
            self.last.values().filter_map(|l| l.get(replica)).map(|c| c.in_flight).collect();
        (!seen.is_empty()).then(|| seen.iter().sum())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::base::Attempt;

    fn one(requests: u64, errors: u64) -> BTreeMap<ReplicaId, ServerCounters> {
        let id = ReplicaId { release: ReleaseNumber(1), replica: 0, attempt: Attempt::FIRST };
        BTreeMap::from([(
            id,
            ServerCounters { in_flight: 1, requests, errors, mean_response_ms: 20.0 },
        )])
    }

    fn totals(requests: u64, errors: u64) -> Totals {
        at([("g chat", requests, errors)])
    }

    fn at<const N: usize>(places: [(&str, u64, u64); N]) -> Totals {
        places.map(|(place, requests, errors)| (place.to_owned(), one(requests, errors))).into()
    }

    /// A place is known by its name: what another one counted before is no request of now.
    #[test]
    fn a_gateway_that_is_new_counts_from_now_on() {
        let mut traffic = Traffic::default();
        let id = *one(0, 0).keys().next().unwrap();
        let requests = |seen: BTreeMap<ReplicaId, Window>| seen.get(&id).map_or(0, |w| w.requests);
        traffic.observe(Timestamp(0), at([("b chat", 1000, 0)]));
        let both = traffic.observe(Timestamp(1000), at([("a chat", 9000, 5), ("b chat", 1010, 0)]));
        assert_eq!(requests(both), 10);
        let other =
            traffic.observe(Timestamp(2000), at([("c chat", 5000, 0), ("b chat", 1020, 0)]));
        assert_eq!(requests(other), 10);
    }

    #[test]
    fn an_engine_that_did_not_answer_once_is_counted_from_where_it_was() {
        let mut traffic = Traffic::default();
        let of = |entries: &[(u32, u64)]| -> Totals {
            let counters = |(replica, requests): &(u32, u64)| {
                let id = ReplicaId {
                    release: ReleaseNumber(1),
                    replica: *replica,
                    attempt: Attempt::FIRST,
                };
                (id, ServerCounters { requests: *requests, ..ServerCounters::default() })
            };
            [(ENGINES.to_owned(), entries.iter().map(counters).collect())].into()
        };
        let sum =
            |seen: BTreeMap<ReplicaId, Window>| seen.values().map(|w| w.requests).sum::<u64>();
        assert_eq!(sum(traffic.observe(Timestamp(0), of(&[(0, 10_000), (1, 500)]))), 0);
        assert_eq!(sum(traffic.observe(Timestamp(1000), of(&[(1, 501)]))), 1);
        assert_eq!(sum(traffic.observe(Timestamp(2000), of(&[(0, 10_004), (1, 501)]))), 4);
        // One that answers for the first time begins to count then.
        assert_eq!(sum(traffic.observe(Timestamp(3000), of(&[(0, 10_004), (1, 501), (2, 77)]))), 0);
        assert_eq!(
            sum(traffic.observe(Timestamp(4000), of(&[(0, 2), (1, 501), (2, 80)]))),
            5,
            "one began anew"
        );
    }

    #[test]
    fn what_came_while_a_gateway_could_not_be_read_is_counted_and_is_no_rate() {
        let mut traffic = Traffic::default();
        traffic.observe(Timestamp(0), totals(100, 0));
        assert!(!traffic.forget_old_rates(Timestamp(5_000)));
        assert!(traffic.forget_old_rates(Timestamp(11_000)));
        let id = *one(0, 0).keys().next().unwrap();
        assert_eq!((traffic.view_of(&id), traffic.in_flight(&id)), (TrafficView::default(), None));
        let windows = traffic.observe(Timestamp(60_000), totals(400, 30));
        assert_eq!(windows.get(&id).map(|w| (w.requests, w.errors)), Some((300, 30)));
        assert_eq!(traffic.view_of(&id), TrafficView::default());
        traffic.observe(Timestamp(61_000), totals(410, 30));
        assert_eq!(traffic.view_of(&id).requests_per_s, Some(10.0));
    }

    #[test]
    fn the_restart_of_one_of_two_gateways_adds_only_what_it_saw() {
        let mut traffic = Traffic::default();
        let id = *one(0, 0).keys().next().unwrap();
        traffic.observe(Timestamp(0), at([("a", 1000, 0), ("b", 500, 0)]));
        let both = traffic.observe(Timestamp(1000), at([("a", 1010, 1), ("b", 505, 1)]));
        assert_eq!(both.get(&id).map(|w| (w.requests, w.errors)), Some((15, 2)));
        let after = traffic.observe(Timestamp(2000), at([("a", 1020, 1), ("b", 3, 0)]));
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
