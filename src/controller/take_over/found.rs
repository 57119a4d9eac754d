//! What another controller left on the hosts, of everything the newest.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::StreamExt;
use futures::future::BoxFuture;

use crate::api::{ApiError, ErrorKind};
use crate::base::{DeckId, Hint, HostName, ServiceName, Timestamp};
use crate::controller::saved::{self, Age, Saved, Unread};
use crate::controller::saved_deck::{self, SavedDeck};
use crate::fleet::{HostLink, LinkError};

/// So many hosts are asked at a time.
const AT_ONCE: usize = 32;

/// What was left on the hosts that were taken over: of everything the newest.
#[derive(Debug, Default, PartialEq)]
pub struct Found {
    pub(super) services: BTreeMap<ServiceName, Newest<Saved>>,
    pub(super) deck: Newest<SavedDeck>,
    /// When the last of those who held the hosts renewed a claim, in this machine's time.
    pub(super) renewed: Timestamp,
    /// The hosts that were taken.
    pub(super) taken: BTreeSet<HostName>,
    /// Those that were not reached, which force leaves out.
    pub(super) left_out: BTreeSet<HostName>,
}

/// The newest of what hosts keep of one thing.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Newest<T> {
    pub(super) read: Option<T>,
    /// What could not be read, and may be newer.
    pub(super) unread: Option<Unread>,
}

impl<T> Default for Newest<T> {
    fn default() -> Self {
        Self { read: None, unread: None }
    }
}

/// What has a place in the order of writing.
pub(super) trait Aged {
    /// Where.
    fn age(&self) -> Age;
}

impl Aged for Saved {
    fn age(&self) -> Age {
        (self.term, self.seq)
    }
}

impl Aged for SavedDeck {
    fn age(&self) -> Age {
        (self.term, self.seq)
    }
}

impl<T: Aged> Newest<T> {
    fn see(&mut self, kept: Result<T, Unread>) {
        match kept {
            Ok(kept) => {
                if self.read.as_ref().is_none_or(|known| known.age() < kept.age()) {
                    self.read = Some(kept);
                }
            }
            // One of unknown age may be the newest of all.
            Err(unread) => {
                let older = |known: &Unread| {
                    known.age.is_some_and(|a| unread.age.is_none_or(|age| a < age))
                };
                if self.unread.as_ref().is_none_or(older) {
                    self.unread = Some(unread);
                }
            }
        }
        if let (Some(read), Some(unread)) = (&self.read, &self.unread)
            && unread.age.is_some_and(|age| age <= read.age())
        {
            self.unread = None;
        }
    }
}

impl Found {
    /// The first thing of which the newest may be what could not be read.
    pub(super) fn lacks(&self) -> Option<&Unread> {
        self.services
            .values()
            .find_map(|newest| newest.unread.as_ref())
            .or(self.deck.unread.as_ref())
    }

    /// Reads it from these hosts.
    ///
    /// # Errors
    /// One of them is not reached.
    pub(super) async fn read(deck: DeckId, links: &[Arc<dyn HostLink>]) -> Result<Self, ApiError> {
        let reads = links.iter().map(|link| -> BoxFuture<'_, _> {
            Box::pin(async move {
                let read = async {
                    let states = saved::read_all(deck, link.as_ref()).await?;
                    Ok((states, saved_deck::read(deck, link.as_ref()).await?))
                };
                read.await.map_err(|error: LinkError| ApiError {
                    kind: ErrorKind::Unreachable,
                    message: format!("the state on {} was not read: {error}", link.host()),
                    hint: error.hint().or_else(|| Some("take over again".to_owned())),
                })
            })
        });
        let mut found = Self::default();
        for read in some_at_a_time(reads.collect()).await {
            let (states, deck) = read?;
            for (service, kept) in states {
                found.services.entry(service).or_default().see(kept);
            }
            if let Some(kept) = deck {
                found.deck.see(kept);
            }
        }
        Ok(found)
    }
}

/// Hosts are asked side by side, but not hundreds of them at once. The answers are in the order of the questions.
pub(super) async fn some_at_a_time<T>(asks: Vec<BoxFuture<'_, T>>) -> Vec<T> {
    futures::stream::iter(asks).buffered(AT_ONCE).collect().await
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::VecDeque;

    use super::*;
    use crate::controller::measured::Measurements;
    use crate::rollout::ServiceState;

    fn saved(term: u64, seq: u64) -> Saved {
        Saved {
            holder: "ada@m1".to_owned(),
            term,
            seq,
            state: ServiceState::new("chat".parse().unwrap()),
            chronicles: VecDeque::new(),
            measured: Measurements::default(),
        }
    }

    fn unread(age: Option<Age>) -> Result<Saved, Unread> {
        Err(Unread { age, why: "h1".to_owned() })
    }

    #[test]
    fn the_newest_is_taken_and_what_may_be_newer_is_known() {
        let newest = |kept: &[Result<Saved, Unread>]| {
            let mut newest = Newest::default();
            for kept in kept {
                newest.see(kept.clone());
            }
            (newest.read.map(|s: Saved| s.age()), newest.unread.map(|u| u.age))
        };
        let all = [saved(1, 9), saved(2, 3), saved(2, 2)].map(Ok);
        assert_eq!(newest(&all), (Some((2, 3)), None));
        for (age, is_newer) in [
            (None, true),
            (Some((2, 4)), true),
            (Some((3, 0)), true),
            (Some((2, 3)), false),
            (Some((1, 99)), false),
        ] {
            let (mut first, mut last) = (all.to_vec(), all.to_vec());
            first.insert(0, unread(age));
            last.push(unread(age));
            let expected = (Some((2, 3)), is_newer.then_some(age));
            assert_eq!((newest(&first), newest(&last)), (expected, expected), "{age:?}");
        }
        // Of several the one that may be the newest counts.
        let several = [unread(Some((1, 1))), unread(None), unread(Some((9, 9))), Ok(saved(2, 3))];
        assert_eq!(newest(&several), (Some((2, 3)), Some(None)));
        assert_eq!(newest(&[unread(Some((1, 1)))]), (None, Some(Some((1, 1)))));
    }
}
