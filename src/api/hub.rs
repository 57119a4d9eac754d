//! The one current snapshot and its stream of changes.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::broadcast;

use super::view::{DeckView, Delta, EventLine, HostView, Question, ServiceView, Snapshot};
use crate::base::{HostName, ServiceName, Timestamp};
use crate::wire::HostSample;

/// Deltas a slow reader may lag behind before it gets a fresh snapshot instead.
const BACKLOG: usize = 1024;

/// Holds the snapshot, numbers its changes and tells them to every reader.
pub struct Hub {
    inner: Mutex<Snapshot>,
    deltas: broadcast::Sender<Delta>,
}

/// A change before it has its number.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// See [`Delta::Deck`].
    Deck(DeckView),
    /// See [`Delta::Host`].
    Host(Box<HostView>),
    /// See [`Delta::HostGone`].
    HostGone(HostName),
    /// See [`Delta::Service`].
    Service(Box<ServiceView>),
    /// See [`Delta::ServiceGone`].
    ServiceGone(ServiceName),
    /// See [`Delta::Event`].
    Event(EventLine),
    /// See [`Delta::Question`].
    Question(Question),
    /// See [`Delta::QuestionGone`].
    QuestionGone(u64),
}

impl Hub {
    /// A hub that shows `deck` and nothing else yet.
    pub fn new(deck: DeckView) -> Self {
        let (deltas, _) = broadcast::channel(BACKLOG);
        let snapshot = Snapshot {
            sequence: 0,
            deck,
            hosts: std::collections::BTreeMap::new(),
            services: std::collections::BTreeMap::new(),
            questions: std::collections::BTreeMap::new(),
            events: std::collections::VecDeque::new(),
        };
        Self { inner: Mutex::new(snapshot), deltas }
    }

    fn lock(&self) -> MutexGuard<'_, Snapshot> {
        // A panic elsewhere cannot leave a snapshot half applied: `apply` does not panic.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The snapshot as it is now.
    pub fn snapshot(&self) -> Snapshot {
        self.lock().clone()
    }

    /// Looks at the snapshot without copying it.
    pub fn with<T>(&self, look: impl FnOnce(&Snapshot) -> T) -> T {
        look(&self.lock())
    }

    /// The snapshot and every change after it, without a gap.
    pub fn subscribe(&self) -> (Snapshot, broadcast::Receiver<Delta>) {
        let snapshot = self.lock();
        (snapshot.clone(), self.deltas.subscribe())
    }

    /// How many readers there are.
    pub fn readers(&self) -> usize {
        self.deltas.receiver_count()
    }

    /// A host was sampled: the sample before it, if there was one. None: there is no such host, and nothing
    /// is told.
    #[allow(clippy::option_option)] // Two questions: is there such a host, and had it a sample?
    pub fn sampled(
        &self,
        host: HostName,
        sampled: Timestamp,
        sample: Arc<HostSample>,
    ) -> Option<Option<Arc<HostSample>>> {
        let mut snapshot = self.lock();
        let view = snapshot.hosts.get_mut(&host)?;
        view.sampled = Some(sampled);
        let before = view.sample.replace(Arc::clone(&sample));
        snapshot.sequence += 1;
        // No reader is no error.
        let _ =
            self.deltas.send(Delta::Sample { sequence: snapshot.sequence, host, sampled, sample });
        Some(before)
    }

    /// Makes a change and tells it. A change that changes nothing is not told.
    pub fn publish(&self, change: Change) {
        let mut snapshot = self.lock();
        if is_same(&snapshot, &change) {
            return;
        }
        let sequence = snapshot.sequence + 1;
        let delta = match change {
            Change::Deck(deck) => Delta::Deck { sequence, deck },
            Change::Host(host) => Delta::Host { sequence, host },
            Change::HostGone(host) => Delta::HostGone { sequence, host },
            Change::Service(service) => Delta::Service { sequence, service },
            Change::ServiceGone(service) => Delta::ServiceGone { sequence, service },
            Change::Event(event) => Delta::Event { sequence, event },
            Change::Question(question) => Delta::Question { sequence, question },
            Change::QuestionGone(id) => Delta::QuestionGone { sequence, id },
        };
        let applied = snapshot.apply(delta.clone());
        debug_assert!(applied, "the number was taken under the same lock");
        // No reader is no error.
        let _ = self.deltas.send(delta);
    }
}

fn is_same(snapshot: &Snapshot, change: &Change) -> bool {
    match change {
        Change::Deck(deck) => snapshot.deck == *deck,
        Change::Host(host) => snapshot.hosts.get(&host.name) == Some(host),
        Change::HostGone(host) => !snapshot.hosts.contains_key(host),
        Change::Service(service) => snapshot.services.get(&service.name) == Some(service),
        Change::ServiceGone(service) => !snapshot.services.contains_key(service),
        Change::Event(_) | Change::Question(_) => false,
        Change::QuestionGone(id) => !snapshot.questions.contains_key(id),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::api::view::Severity;

    fn event(text: &str) -> Change {
        Change::Event(EventLine {
            at: Timestamp(1),
            severity: Severity::Info,
            service: None,
            host: None,
            text: text.to_owned(),
        })
    }

    #[test]
    fn a_reader_that_applies_the_deltas_has_the_snapshot() {
        let hub = Hub::new(DeckView::default());
        hub.publish(event("before"));
        let (mut mine, mut deltas) = hub.subscribe();
        hub.publish(event("after"));
        hub.publish(Change::Deck(DeckView { name: "prod".to_owned(), ..DeckView::default() }));
        hub.publish(Change::QuestionGone(7));
        while let Ok(delta) = deltas.try_recv() {
            assert!(mine.apply(delta));
        }
        assert_eq!(mine, hub.snapshot());
        assert_eq!(mine.sequence, 3, "a change that changes nothing has no number");
    }

    #[test]
    fn a_gap_is_noticed() {
        let hub = Hub::new(DeckView::default());
        let (mut mine, mut deltas) = hub.subscribe();
        hub.publish(event("one"));
        hub.publish(event("two"));
        let _lost = deltas.try_recv().unwrap();
        assert!(!mine.apply(deltas.try_recv().unwrap()));
    }
}
