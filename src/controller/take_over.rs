//! Taking the deck's hosts over from other controllers, when a person says so, and going on with what they left there.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::StreamExt;
use futures::future::BoxFuture;

use super::actions::{self, Actions, Means};
use super::claims::LEASE;
use super::company::in_words;
use super::core::{Core, now};
use super::deck_ledger::{DeckEvent, DeckRecord};
use super::saved::{self, Age, Saved, Unread};
use super::saved_deck::{self, SavedDeck};
use crate::api::{ApiError, ErrorKind, IntentReply, Severity};
use crate::base::{Hint, HostName, ServiceName, Timestamp};
use crate::fleet::{HostLink, LinkError};
use crate::rollout::{LentTo, ServiceState};
use crate::wire::is_same_holder;

/// So many hosts are asked at a time.
const AT_ONCE: usize = 32;

/// What was left on the hosts that were taken over: of everything the newest.
#[derive(Debug, Default, PartialEq)]
pub struct Found {
    services: BTreeMap<ServiceName, Newest<Saved>>,
    deck: Newest<SavedDeck>,
    /// When the last of those who held the hosts renewed a claim, in this machine's time.
    renewed: Timestamp,
}

/// The newest of what hosts keep of one thing.
#[derive(Clone, Debug, PartialEq)]
struct Newest<T> {
    read: Option<T>,
    /// What could not be read, and may be newer.
    unread: Option<Unread>,
}

impl<T> Default for Newest<T> {
    fn default() -> Self {
        Self { read: None, unread: None }
    }
}

/// What has a place in the order of writing.
trait Aged {
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
    fn lacks(&self) -> Option<&Unread> {
        self.services
            .values()
            .find_map(|newest| newest.unread.as_ref())
            .or(self.deck.unread.as_ref())
    }

    async fn read(means: &Means, links: &[Arc<dyn HostLink>]) -> Result<Self, ApiError> {
        let reads = links.iter().map(|link| -> BoxFuture<'_, _> {
            Box::pin(async move {
                let read = async {
                    let states = saved::read_all(means.deck, link.as_ref()).await?;
                    Ok((states, saved_deck::read(means.deck, link.as_ref()).await?))
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
async fn some_at_a_time<T>(asks: Vec<BoxFuture<'_, T>>) -> Vec<T> {
    futures::stream::iter(asks).buffered(AT_ONCE).collect().await
}

fn fenced(message: String, hint: &str) -> ApiError {
    ApiError { kind: ErrorKind::Fenced, message, hint: Some(hint.to_owned()) }
}

/// Without force nothing is left behind.
fn may_go_on(found: &Found, force: bool) -> Result<(), ApiError> {
    match found.lacks().filter(|_| !force) {
        None => Ok(()),
        Some(unread) => Err(fenced(
            format!("what is served there cannot be read: {}", unread.why),
            "take over with the gpudeck that wrote it, or a newer one; --force goes on from what can be read",
        )),
    }
}

/// Takes the deck's hosts over: all that are reached, or none.
///
/// # Errors
/// Another controller holds one, what is there cannot be read, or a host is not reached.
pub async fn take_over(
    means: Arc<Means>,
    hosts: Vec<HostName>,
    force: bool,
) -> Result<Found, ApiError> {
    let links: Vec<_> = hosts.iter().filter_map(|host| actions::link(&means, host).ok()).collect();
    let surveys = links.iter().map(|link| -> BoxFuture<'_, _> {
        let means = &means;
        Box::pin(async move { (link, means.claims.survey(link.as_ref()).await) })
    });
    let surveys = some_at_a_time(surveys.collect()).await;
    let (mut reached, mut others, mut away) = (Vec::new(), BTreeMap::new(), Vec::new());
    for (link, survey) in surveys {
        match survey {
            Ok(other) => {
                others.extend(other.map(|o| (link.host().clone(), o)));
                reached.push(Arc::clone(link));
            }
            Err(error) => away.push(format!("{error}")),
        }
    }
    let here = now();
    let mut live = others.clone();
    live.retain(|_, o| !o.has_lapsed(here));
    if !force {
        if let Some((words, hint)) = in_words(&live) {
            return Err(fenced(words, &hint));
        }
        if !away.is_empty() {
            return Err(fenced(
                format!("whether another controller acts there is not known: {}", away.join("; ")),
                "wait until all hosts are reached, or take over what is reached with --force",
            ));
        }
    }
    // Who is refused has taken nothing from anybody.
    may_go_on(&Found::read(&means, &reached).await?, force)?;
    let claims = reached.iter().map(|link| -> BoxFuture<'_, _> {
        let means = &means;
        Box::pin(async move {
            means.claims.claim(link.as_ref(), None, LEASE, force).await.map(|_| link)
        })
    });
    let claims = some_at_a_time(claims.collect()).await;
    let read = match claims.iter().find_map(|claim| claim.as_ref().err()) {
        Some(error) => Err(fenced(error.to_string(), "try again in a moment")),
        // Once more: only from here on nobody else writes there.
        None => Found::read(&means, &reached).await,
    };
    match read.and_then(|found| may_go_on(&found, force).map(|()| found)) {
        Ok(found) => {
            let last = others.values().map(|o| o.until).max().unwrap_or_default();
            let lease = u64::try_from(LEASE.as_millis()).unwrap_or(u64::MAX);
            Ok(Found { renewed: Timestamp(last.0.saturating_sub(lease)), ..found })
        }
        Err(error) => {
            for link in claims.into_iter().flatten() {
                means.claims.give_up(link.as_ref()).await;
            }
            Err(error)
        }
    }
}

impl Core {
    /// What is under way ends: a start that waits for its host, of the state before, would be let in
    /// as soon as the host is ours, beside the one that the adopted state asks for.
    pub(super) fn begin_take_over(&mut self) -> Result<(), ApiError> {
        if self.taking_over {
            return Err(ApiError {
                kind: ErrorKind::Conflict,
                message: "the hosts are being taken over already".to_owned(),
                hint: Some("`gpudeck status` says when it is done".to_owned()),
            });
        }
        self.taking_over = true;
        self.actions = Actions::new(Arc::clone(&self.means));
        Ok(())
    }

    /// Goes on with what was taken over, or with what was there before.
    pub(super) fn end_take_over(
        &mut self,
        found: Result<Found, ApiError>,
    ) -> Result<IntentReply, ApiError> {
        self.taking_over = false;
        let adopted = found.and_then(|found| self.adopt(found));
        if adopted.is_err() {
            self.ask_anew();
        }
        adopted
    }

    /// Takes over what other controllers left on the hosts, with the next term.
    fn adopt(&mut self, found: Found) -> Result<IntentReply, ApiError> {
        let Found { services, deck, renewed } = found;
        let own = self.means.claims.holder().to_owned();
        let read = || services.values().filter_map(|newest| newest.read.as_ref());
        let terms = read().map(|s| s.term).chain(deck.read.as_ref().map(|d| d.term));
        let term = terms.max().unwrap_or(0).max(self.state.term);
        let before = self.state.clone();
        let journal_is_new = self.state.term == 0 && self.state.services.is_empty();
        let mut trouble: Vec<(Option<ServiceName>, String)> = Vec::new();
        if let Some(unread) = deck.unread {
            let words =
                "cordons, drains and what is rolled out together may be older than they were";
            trouble.push((None, format!("{words}: {}", unread.why)));
        }
        let own_age = self.own_age();
        let adopted_deck = self.adopt_deck(deck.read, journal_is_new);
        let ledger_age = adopted_deck.unwrap_or(own_age);
        let (mut adopted, mut ages) = (Vec::new(), BTreeMap::new());
        for (service, newest) in services {
            if let Some(unread) = newest.unread {
                let words = match newest.read {
                    Some(_) => "taken over as it was before",
                    None => "taken over without what it serves",
                };
                trouble.push((Some(service.clone()), format!("{words}: {}", unread.why)));
            }
            let Some(saved) = newest.read else { continue };
            let is_known = self.state.services.contains_key(&service);
            // What was written before we took over last is older, and so is our own writing, unless the journal was
            // restored from a copy.
            let is_own = is_same_holder(&saved.holder, &own) && saved.age() <= own_age;
            if is_known && (is_own || saved.term < before.term) {
                continue;
            }
            let last = saved.state.releases.keys().next_back().copied().unwrap_or_default();
            self.state.last_release = self.state.last_release.max(last);
            adopted.push(format!("{service} from {}", saved.holder));
            ages.insert(service.clone(), saved.age());
            self.state.services.insert(service, saved.state);
        }
        let is_newer =
            |service: &ServiceName| ages.get(service).is_some_and(|age| *age > ledger_age);
        let newer = self.state.services.values().filter(|state| is_newer(&state.service));
        let maintained =
            uncordoned(newer, |host| self.state.ledger.maintenance.host_cordon(host).is_some());
        for (host, service) in &maintained {
            self.state.ledger.apply(&DeckRecord {
                deck_at: now(),
                deck_event: DeckEvent::Cordoned {
                    host: host.clone(),
                    gpu: None,
                    by: "take-over".to_owned(),
                    reason: Some(format!("{service} has a replica out for its maintenance")),
                },
            });
            trouble.push((
                Some(service.clone()),
                format!(
                    "{host} is cordoned: a replica is out for its maintenance, and the newest list of cordons was \
                     not found; `gpudeck uncordon {host}` brings it back"
                ),
            ));
        }
        self.state.term = term.saturating_add(1);
        // In the journal before anything of it is acted on.
        let written = self.write_checkpoint();
        self.journal_answered(written.as_ref().err());
        if let Err(error) = written {
            self.state = before;
            return Err(ApiError {
                kind: ErrorKind::Internal,
                message: format!("the hosts are held, but their state was not taken over: {error}"),
                hint: error.hint(),
            });
        }
        self.records_since_checkpoint = 0;
        self.caught_up();
        let words = match (adopted.as_slice(), trouble.is_empty()) {
            ([], true) => "took the hosts over; nothing was left on them to go on with".to_owned(),
            ([], false) => "took the hosts over, and not all that was left on them".to_owned(),
            (adopted, _) => format!("took over and goes on with {}", adopted.join(", ")),
        };
        self.say(Severity::Warning, None, &words);
        for (service, words) in trouble {
            self.say(Severity::Error, service.as_ref(), &words);
        }
        if adopted_deck.is_some() || !maintained.is_empty() {
            self.show_adopted_deck();
        }
        self.show_company();
        self.files_stamp.clear();
        self.reload();
        self.make_good_since(renewed, |service| ages.contains_key(service));
        self.ask_anew();
        Ok(IntentReply::Accepted)
    }
}

/// Hosts for whose maintenance a replica is out although nothing says that they are cordoned, each with such a service.
/// Somebody may be at work there: the replica must not come back by itself.
fn uncordoned<'a>(
    services: impl Iterator<Item = &'a ServiceState>,
    is_cordoned: impl Fn(&HostName) -> bool,
) -> BTreeMap<HostName, ServiceName> {
    let mut hosts = BTreeMap::new();
    for state in services {
        for loan in &state.loans {
            if let LentTo::Maintenance { host } = &loan.to
                && !is_cordoned(host)
            {
                hosts.entry(host.clone()).or_insert_with(|| state.service.clone());
            }
        }
    }
    hosts
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::base::{ReleaseNumber, ReplicaKey};
    use crate::rollout::Loan;

    fn saved(term: u64, seq: u64) -> Saved {
        let state = ServiceState::new("chat".parse().unwrap());
        Saved { holder: "ada@m1".to_owned(), term, seq, state }
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

    #[test]
    fn a_host_for_whose_maintenance_something_is_out_is_cordoned() {
        let mut state = ServiceState::new("chat".parse().unwrap());
        for (replica, host) in [(0, "h1"), (1, "h2"), (2, "h1")] {
            state.loans.push(Loan {
                to: LentTo::Maintenance { host: host.parse().unwrap() },
                replica: ReplicaKey { release: ReleaseNumber(1), replica },
                back: None,
            });
        }
        let to = ReleaseNumber(2);
        state.loans.push(Loan {
            to: LentTo::Rollout { borrower: "code".parse().unwrap(), to },
            replica: ReplicaKey { release: ReleaseNumber(1), replica: 3 },
            back: None,
        });
        let found = uncordoned(std::iter::once(&state), |host| host.as_str() == "h2");
        let expected = BTreeMap::from([("h1".parse().unwrap(), "chat".parse().unwrap())]);
        assert_eq!(found, expected);
    }
}
