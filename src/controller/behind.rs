//! A journal that is older than what this controller did: its directory, or the whole machine, was restored from a
//! copy. What was done since is known only to the hosts, which keep the states of services with their ages. To go on
//! from the older state would stop what is served, start what was replaced, and write over the only record of it.
//!
//! So every host is looked at once in a life before anything is done there. Where one keeps a state of ours that is
//! newer than the journal was when it was opened, nothing is done anywhere until a person takes over: that reads the
//! state back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex as PlainMutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Mutex;

use super::actions::{self, Actions, Means};
use super::core::Core;
use super::record::DeckState;
use super::saved::{self, Age};
use super::saved_deck;
use crate::api::{ApiError, DeckConditionKind, ErrorKind};
use crate::base::{HostName, ServiceName, Timestamp};
use crate::fleet::{HostLink, LinkError};

/// How long the other hosts of a service are waited for, once.
const PATIENCE: Duration = Duration::from_secs(2);

/// What to do about it.
const HINT: &str = "`gpudeck controller take-over` goes on from what the hosts keep";

/// What the journal knew when it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Begun {
    /// Term and number of its last record.
    pub age: Age,
    /// When something last happened to a service.
    pub at: Timestamp,
}

impl Begun {
    /// With this state and so many records.
    pub fn of(state: &DeckState, last_seq: u64) -> Self {
        let at = state.services.values().map(|s| s.now).max().unwrap_or_default();
        Self { age: (state.term, last_seq), at }
    }

    /// Whether a service's state that this controller wrote at that age is of a later time than the journal. One
    /// of an earlier journal that is gone may have had more records, and is of an earlier time.
    pub fn is_before(self, age: Age, at: Timestamp) -> bool {
        age > self.age && at > self.at
    }

    /// Nothing is known at all: then [`saved::left_by_us`] asks.
    fn is_nothing(self) -> bool {
        self == Self::default()
    }
}

/// Which hosts were looked at.
#[derive(Default)]
pub struct Looks {
    begun: PlainMutex<Begun>,
    of_hosts: PlainMutex<BTreeMap<HostName, Look>>,
    /// Hosts that were waited for beside the one that is acted on.
    waited: PlainMutex<BTreeSet<HostName>>,
}

/// What was found; none: it was not looked at yet. One look at a time.
type Look = Arc<Mutex<Option<Found>>>;

/// Whether a host keeps something newer, in words.
type Found = Option<String>;

fn locked<T>(of: &PlainMutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Looks {
    /// Against a journal that is at this age.
    pub fn against(begun: Begun) -> Self {
        Self { begun: PlainMutex::new(begun), ..Self::default() }
    }

    /// From now on this is what the journal knows.
    fn begin(&self, begun: Begun) {
        *locked(&self.begun) = begun;
        locked(&self.of_hosts).clear();
    }

    /// What the journal knew.
    pub(super) fn begun(&self) -> Begun {
        *locked(&self.begun)
    }
}

impl Means {
    /// Looks at a host, once in a life; whether it keeps something newer than the journal. The loop has heard of it
    /// when this returns.
    ///
    /// # Errors
    /// It is not reached.
    pub(super) async fn keeps_newer(&self, link: &dyn HostLink) -> Result<bool, LinkError> {
        let look = Arc::clone(locked(&self.looks.of_hosts).entry(link.host().clone()).or_default());
        let mut look = look.lock().await;
        if let Some(found) = &*look {
            return Ok(found.is_some());
        }
        let begun = self.looks.begun();
        let found = if begun.is_nothing() { None } else { self.newer_at(link, begun).await? };
        if let Some(words) = found.clone() {
            tracing::error!(host = %link.host(), "{words}");
            self.ask(move |core| core.journal_is_behind(&words)).await;
        }
        let is_newer = found.is_some();
        *look = Some(found);
        Ok(is_newer)
    }

    /// What a host keeps of ours that is newer, in words.
    async fn newer_at(&self, link: &dyn HostLink, begun: Begun) -> Result<Found, LinkError> {
        let own = self.claims.holder();
        let read = async {
            let service = saved::newer_of_ours(self.deck, link, own, begun).await?;
            let deck = saved_deck::newer_of_ours(self.deck, link, own, begun.age).await?;
            Ok(service.map(|service| format!("of {service}")).or_else(|| {
                deck.then(|| "of cordons, drains and what is rolled out together".to_owned())
            }))
        };
        match read.await {
            Ok(what) => {
                let host = link.host();
                Ok(what.map(|what| format!("{host} keeps a newer state {what} than the journal")))
            }
            // It answers, and keeps nothing that could be read.
            Err(error @ (LinkError::Refused { .. } | LinkError::Unexpected { .. })) => {
                tracing::warn!(host = %link.host(), %error, "what it keeps was not looked at");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Before a state is written to a host: it keeps none that is newer.
    ///
    /// # Errors
    /// It does, or is not reached.
    pub(super) async fn may_save_to(&self, link: &dyn HostLink) -> Result<(), LinkError> {
        if self.keeps_newer(link).await? {
            let what = "a newer state than the journal".to_owned();
            return Err(LinkError::Unexpected { host: link.host().clone(), what });
        }
        Ok(())
    }

    /// Before something is done on a host of a service: it and, as far as they are reached, the others do not keep
    /// anything newer. Does not return where one does: what is under way ends.
    ///
    /// # Errors
    /// The host is not reached.
    pub(super) async fn is_up_to_date(
        &self,
        service: &ServiceName,
        link: &dyn HostLink,
    ) -> Result<(), LinkError> {
        let hosts = self.claims.hosts_of(service);
        let fresh: Vec<HostName> = {
            let mut waited = locked(&self.looks.waited);
            hosts.iter().filter(|host| waited.insert((*host).clone())).cloned().collect()
        };
        let others = fresh.iter().filter(|host| *host != link.host()).map(|host| async move {
            let Ok(link) = actions::link(self, host) else { return false };
            self.keeps_newer(link.as_ref()).await.unwrap_or_default()
        });
        let others = tokio::time::timeout(PATIENCE, futures::future::join_all(others));
        let (own, others) = tokio::join!(self.keeps_newer(link), others);
        if own? || others.is_ok_and(|found| found.contains(&true)) {
            // The loop drops all that is under way.
            std::future::pending::<()>().await;
        }
        Ok(())
    }
}

impl Core {
    /// A host keeps something newer: nothing is done any more until a person takes over.
    pub(super) fn journal_is_behind(&mut self, words: &str) {
        if self.is_behind() {
            return;
        }
        self.actions = Actions::new(Arc::clone(&self.means));
        self.end_upgrade_tasks();
        let words =
            format!("nothing is done: {words}, which seems to have been restored from a copy");
        let holds = Some((words, Some(HINT.to_owned())));
        self.set_condition(DeckConditionKind::JournalBehind, holds);
    }

    /// Whether the journal is older than what was done.
    pub(super) fn is_behind(&self) -> bool {
        self.conditions.contains_key(&DeckConditionKind::JournalBehind)
    }

    /// Refuses to act on an older state than that of the hosts.
    pub(super) fn not_behind(&self) -> Result<(), ApiError> {
        match self.conditions.get(&DeckConditionKind::JournalBehind) {
            None => Ok(()),
            Some(condition) => Err(ApiError {
                kind: ErrorKind::Fenced,
                message: format!("{}: {}", condition.kind.name(), condition.text),
                hint: condition.hint.clone(),
            }),
        }
    }

    /// How old what is known here is: what hosts keep of ours and is newer is to be taken over.
    pub(super) fn own_age(&self) -> Age {
        // What was heard since the start is of a life that has not done anything.
        if self.is_behind() {
            self.means.looks.begun().age
        } else {
            (self.state.term, self.journal.last_seq())
        }
    }

    /// What the hosts keep was taken over, and is in the journal.
    pub(super) fn caught_up(&mut self) {
        self.means.looks.begin(Begun::of(&self.state, self.journal.last_seq()));
        self.set_condition(DeckConditionKind::JournalBehind, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_newer_by_its_age_and_by_its_time() {
        let begun = Begun { age: (1, 40), at: Timestamp(7_000) };
        for (age, at, is_newer) in [
            ((1, 41), 7_001, true),
            ((2, 1), 7_001, true),
            ((1, 40), 7_000, false),
            ((1, 40), 9_000, false),
            ((0, 90), 9_000, false),
            // Of a journal that is gone.
            ((1, 90), 6_000, false),
        ] {
            assert_eq!(begun.is_before(age, Timestamp(at)), is_newer, "{age:?} {at}");
        }
        assert!(Begun::default().is_nothing() && !begun.is_nothing());
    }
}
