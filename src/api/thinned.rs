//! What a door is told: everything at once, but of hosts that it does not show only now and then
//! a sample. At a thousand hosts most samples are of hosts that are not on the screen.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt as _;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, watch};
use tokio::time::Instant;
use uuid::Uuid;

use super::hub::Hub;
use super::view::{Delta, Looking};
use crate::base::HostName;
use crate::wire::HostSample;
use crate::wire::change::SampleChange;

/// A host that is not shown is told so often: what is sampled every five seconds is told whole.
const SELDOM: Duration = Duration::from_secs(4);

/// So long a sample waits for others that are told with it, and most that are.
const GATHERED: Duration = Duration::from_millis(50);
const MOST_TOGETHER: usize = 256;

/// Most hosts that one door can show.
const MAX_SHOWN: usize = 1024;

/// The hosts that a door shows; none: it has not said, and is told everything.
type Hosts = Option<Arc<BTreeSet<HostName>>>;

/// What every door shows that has a stream.
#[derive(Default)]
pub(super) struct Shown(Mutex<HashMap<Uuid, watch::Sender<Hosts>>>);

impl Shown {
    /// A door opens a stream.
    pub(super) fn opened(&self, door: Uuid) -> watch::Receiver<Hosts> {
        let mut doors = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        doors.retain(|_, hosts| !hosts.is_closed());
        doors.entry(door).or_insert_with(|| watch::channel(None).0).subscribe()
    }

    /// A door says what it shows.
    pub(super) fn says(&self, looking: &Looking) {
        let doors = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(hosts) = looking.door.and_then(|door| doors.get(&door)) else { return };
        let all = looking.hosts.iter().chain(&looking.detail).take(MAX_SHOWN);
        let all: BTreeSet<HostName> = all.cloned().collect();
        hosts.send_if_modified(|known| {
            let changed = known.as_deref() != Some(&all);
            if changed {
                *known = Some(Arc::new(all));
            }
            changed
        });
    }
}

/// The changes as one door gets them, with numbers of their own.
pub(super) struct Thinned {
    hub: Arc<Hub>,
    deltas: Option<broadcast::Receiver<Delta>>,
    shown: Option<watch::Receiver<Hosts>>,
    /// The door takes changes of samples.
    changes: bool,
    told: HashMap<HostName, Told>,
    /// The newest samples that were not told.
    held: HashMap<HostName, Delta>,
    due: VecDeque<Delta>,
    sequence: u64,
    /// [`SELDOM`].
    seldom: Duration,
}

/// What a door knows of a host.
struct Told {
    /// When it was told a sample last.
    at: Instant,
    /// The sample that it has; none if it takes no changes, or has none yet.
    sample: Option<Arc<HostSample>>,
}

impl Thinned {
    pub(super) fn new(hub: Arc<Hub>, shown: Option<watch::Receiver<Hosts>>, changes: bool) -> Self {
        Self {
            hub,
            deltas: None,
            shown,
            changes,
            told: HashMap::new(),
            held: HashMap::new(),
            due: VecDeque::new(),
            sequence: 0,
            seldom: SELDOM,
        }
    }

    /// The next one; first, and after too many were missed, the snapshot. None: the controller ends.
    pub(super) async fn next(&mut self) -> Option<Delta> {
        loop {
            let Some(deltas) = &mut self.deltas else { return Some(self.whole()) };
            if let Some(delta) = self.due.pop_front() {
                return Some(self.numbered(delta));
            }
            let looks = async {
                let said = match &mut self.shown {
                    Some(shown) => shown.changed().await.is_ok(),
                    None => false,
                };
                // A door that is gone says nothing more.
                if !said {
                    std::future::pending::<()>().await;
                }
            };
            let delta = tokio::select! {
                delta = deltas.recv() => delta,
                () = looks => {
                    self.catch_up();
                    continue;
                }
            };
            match delta {
                Ok(delta) => {
                    if let Some(delta) = self.pass(delta, Instant::now()) {
                        return Some(self.numbered(delta));
                    }
                }
                Err(RecvError::Lagged(_)) => return Some(self.whole()),
                Err(RecvError::Closed) => return None,
            }
        }
    }

    /// The next ones that are told together. Samples wait a moment for others: a large fleet then wakes a door
    /// twenty times a second, and not a thousand.
    pub(super) async fn together(&mut self) -> Option<Vec<Delta>> {
        let first = self.next().await?;
        let is_sample = matches!(first, Delta::Sample { .. } | Delta::Change { .. });
        let mut all = vec![first];
        if is_sample {
            tokio::time::sleep(GATHERED).await;
            while all.len() < MOST_TOGETHER
                && let Some(Some(delta)) = self.next().now_or_never()
            {
                all.push(delta);
            }
        }
        Some(all)
    }

    fn whole(&mut self) -> Delta {
        let (snapshot, deltas) = self.hub.subscribe();
        self.deltas = Some(deltas);
        let now = Instant::now();
        let kept = |sample: &Option<Arc<HostSample>>| sample.clone().filter(|_| self.changes);
        let told = snapshot.hosts.iter().filter(|(_, host)| host.sample.is_some());
        let told = told.map(|(name, h)| (name.clone(), Told { at: now, sample: kept(&h.sample) }));
        self.told = told.collect();
        self.held.clear();
        self.due.clear();
        self.sequence = snapshot.sequence;
        Delta::Snapshot(Box::new(snapshot))
    }

    fn numbered(&mut self, mut delta: Delta) -> Delta {
        self.sequence += 1;
        delta.renumber(self.sequence);
        delta
    }

    fn shows(&self, host: &HostName) -> bool {
        let shown = self.shown.as_ref().and_then(|shown| shown.borrow().clone());
        shown.is_none_or(|hosts| hosts.contains(host))
    }

    /// The change, if it is told now.
    fn pass(&mut self, delta: Delta, now: Instant) -> Option<Delta> {
        match &delta {
            Delta::Sample { host, .. } => {
                let early = self.told.get(host).is_some_and(|told| now - told.at < self.seldom);
                if early && !self.shows(host) {
                    self.held.insert(host.clone(), delta);
                    return None;
                }
                self.held.remove(host);
                return Some(self.told_shortly(delta, now));
            }
            // Whole, with its newest sample.
            Delta::Host { host, .. } => {
                self.held.remove(&host.name);
                if let Some(told) = self.told.get_mut(&host.name) {
                    told.sample = host.sample.clone().filter(|_| self.changes);
                }
            }
            Delta::HostGone { host, .. } => {
                self.held.remove(host);
                self.told.remove(host);
            }
            _ => {}
        }
        Some(delta)
    }

    /// A sample as the door gets it: what differs from the one that it has, if that is known.
    fn told_shortly(&mut self, delta: Delta, now: Instant) -> Delta {
        let Delta::Sample { sequence, host, sampled, sample } = delta else { return delta };
        let kept = self.changes.then(|| Arc::clone(&sample));
        let before = match self.told.get_mut(&host) {
            Some(told) => {
                told.at = now;
                std::mem::replace(&mut told.sample, kept)
            }
            None => {
                self.told.insert(host.clone(), Told { at: now, sample: kept });
                None
            }
        };
        match before {
            Some(before) => {
                let change = SampleChange::Between(before, sample);
                Delta::Change { sequence, host, sampled, change }
            }
            None => Delta::Sample { sequence, host, sampled, sample },
        }
    }

    /// Another part of the fleet is shown: at once as it is now.
    fn catch_up(&mut self) {
        let now = Instant::now();
        let hosts: Vec<HostName> =
            self.held.keys().filter(|host| self.shows(host)).cloned().collect();
        for host in hosts {
            let Some(held) = self.held.remove(&host) else { continue };
            let held = self.told_shortly(held, now);
            self.due.push_back(held);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;
    use crate::api::hub::Change;
    use crate::api::{DeckView, HostLinkState, HostView, Snapshot};
    use crate::base::Timestamp;

    fn host(name: &str) -> HostName {
        name.parse().unwrap()
    }

    fn sample(hub: &Hub, name: &str, at: u64) {
        let sample = HostSample { monotonic_ms: at, ..HostSample::default() };
        hub.sampled(host(name), Timestamp(at), Arc::new(sample));
    }

    fn hub() -> Arc<Hub> {
        let hub = Hub::new(DeckView::default());
        for name in ["a", "b"] {
            hub.publish(Change::Host(Box::new(HostView {
                name: host(name),
                link: HostLinkState::Up,
                way: Vec::new(),
                facts: None,
                sample: None,
                sampled: None,
                clock: None,
                ranks: Vec::new(),
                labels: std::collections::BTreeMap::new(),
                maintenance: crate::api::Maintenance::default(),
                claim: None,
                claim_known: false,
            })));
        }
        Arc::new(hub)
    }

    /// Takes in what is there, and checks that nothing is missing in between.
    async fn read(deltas: &mut Thinned, into: &mut Snapshot) -> usize {
        let mut count = 0;
        // What is there comes without waiting.
        while let Some(delta) = deltas.next().now_or_never() {
            assert!(into.apply(delta.unwrap()), "a gap");
            count += 1;
        }
        count
    }

    fn at(snapshot: &Snapshot, name: &str) -> Option<u64> {
        snapshot.hosts.get(&host(name)).unwrap().sampled.map(|t| t.0)
    }

    #[tokio::test]
    async fn what_is_not_shown_is_told_seldom_and_at_once_when_it_is() {
        let (hub, shown, door) = (hub(), Shown::default(), Uuid::from_u128(1));
        let mut deltas = Thinned::new(Arc::clone(&hub), Some(shown.opened(door)), true);
        let Some(Delta::Snapshot(mut mine)) = deltas.next().await else { panic!() };
        let both = |at| ["a", "b"].map(|name| sample(&hub, name, at));
        both(1);
        both(2);
        assert_eq!(read(&mut deltas, &mut mine).await, 4, "a door that says nothing gets all");
        let look = |names: &[&str]| {
            let hosts = names.iter().map(|name| host(name)).collect();
            shown.says(&Looking { hosts, detail: None, door: Some(door) });
        };
        look(&["a"]);
        both(3);
        both(4);
        read(&mut deltas, &mut mine).await;
        assert_eq!((at(&mine, "a"), at(&mine, "b")), (Some(4), Some(2)));
        look(&["b"]);
        read(&mut deltas, &mut mine).await;
        assert_eq!(at(&mine, "b"), Some(4), "it is shown now");
        deltas.seldom = Duration::ZERO;
        both(5);
        read(&mut deltas, &mut mine).await;
        assert_eq!((at(&mine, "a"), at(&mine, "b")), (Some(5), Some(5)), "seldom, not never");
        deltas.seldom = SELDOM;
        both(6);
        // A change of another kind comes with what was held back.
        let mut view = hub.with(|s| s.hosts.get(&host("a")).cloned()).unwrap();
        view.link = HostLinkState::Connecting { phase: "x".to_owned() };
        hub.publish(Change::Host(Box::new(view)));
        read(&mut deltas, &mut mine).await;
        assert_eq!(mine.hosts, hub.snapshot().hosts);
    }

    /// What comes over the socket leads to what the controller has, told whole or as changes.
    #[tokio::test]
    async fn changes_lead_to_the_same_samples() {
        let (hub, shown, door) = (hub(), Shown::default(), Uuid::from_u128(1));
        let mut deltas = Thinned::new(Arc::clone(&hub), Some(shown.opened(door)), true);
        let Some(Delta::Snapshot(mut mine)) = deltas.next().await else { panic!() };
        let look = |names: &[&str]| {
            let hosts = names.iter().map(|name| host(name)).collect();
            shown.says(&Looking { hosts, detail: None, door: Some(door) });
        };
        let mut changes = 0;
        look(&["a"]);
        for at in 1..40 {
            match at {
                10 | 30 => look(&["b"]),
                20 => look(&["a", "b"]),
                _ => {}
            }
            deltas.seldom = if at % 3 == 0 { Duration::ZERO } else { SELDOM };
            for name in ["a", "b"] {
                sample(&hub, name, at);
            }
            if at % 7 == 0 {
                let mut view = hub.with(|s| s.hosts.get(&host("a")).cloned()).unwrap();
                view.link = HostLinkState::Connecting { phase: at.to_string() };
                view.sample = Some(Arc::new(HostSample::default())).filter(|_| at != 14);
                hub.publish(Change::Host(Box::new(view)));
            }
            while let Some(delta) = deltas.next().now_or_never().flatten() {
                changes += usize::from(matches!(delta, Delta::Change { .. }));
                let line = serde_json::to_string(&delta).unwrap();
                assert!(mine.apply(serde_json::from_str(&line).unwrap()), "{line}");
            }
            for name in ["a", "b"] {
                let has = |s: &Snapshot| s.hosts.get(&host(name)).unwrap().sample.clone();
                if deltas.shows(&host(name)) {
                    assert_eq!(has(&mine), hub.with(has), "{name} at {at}");
                }
            }
        }
        assert!(changes > 20, "{changes}");
    }

    #[tokio::test]
    async fn who_was_too_slow_begins_again() {
        let hub = hub();
        let mut deltas = Thinned::new(Arc::clone(&hub), None, false);
        let Some(Delta::Snapshot(mut mine)) = deltas.next().await else { panic!() };
        for at in 0..5_000 {
            sample(&hub, "a", at);
        }
        read(&mut deltas, &mut mine).await;
        sample(&hub, "b", 9);
        read(&mut deltas, &mut mine).await;
        assert_eq!(mine.hosts, hub.snapshot().hosts);
    }

    #[tokio::test]
    async fn samples_are_told_together_and_whatever_else_at_once() {
        let hub = hub();
        let mut deltas = Thinned::new(Arc::clone(&hub), None, false);
        assert!(matches!(deltas.together().await.as_deref(), Some([Delta::Snapshot(_)])));
        for (name, at) in [("a", 1), ("b", 1), ("a", 2)] {
            sample(&hub, name, at);
        }
        let told = deltas.together().await.unwrap();
        assert!(told.len() == 3 && told.iter().all(|d| matches!(d, Delta::Sample { .. })));
        hub.publish(Change::HostGone(host("b")));
        let told = deltas.together().now_or_never().flatten();
        assert!(matches!(told.as_deref(), Some([Delta::HostGone { .. }])), "it does not wait");
    }
}
