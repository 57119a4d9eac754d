//! Taking the deck's hosts over from other controllers, when a person says so, and going on with what they left there.

mod found;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::future::BoxFuture;

pub use self::found::Found;
use self::found::{Aged, some_at_a_time};
use super::absence::believable;
use super::actions::{self, Actions, Means};
use super::claims::{Claims, LEASE, Other};
use super::company::in_words;
use super::core::{Core, now};
use super::deck_ledger::{DeckEvent, DeckRecord};
use super::turns::{Token, Turn};
use crate::api::{ApiError, ErrorKind, IntentReply, Severity};
use crate::base::{DeckId, Hint, HostName, ServiceName, Timestamp};
use crate::fleet::HostLink;
use crate::rollout::{LentTo, ServiceState};
use crate::wire::is_same_holder;

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

/// Takes the deck's hosts over: all, by force all that are reached, or none; `term`: the journal's.
///
/// # Errors
/// Another controller holds one, what is there cannot be read, or a host is not reached.
pub async fn take_over(
    means: Arc<Means>,
    hosts: Vec<HostName>,
    term: u64,
    force: bool,
) -> Result<Found, ApiError> {
    let links: Vec<_> = hosts.iter().filter_map(|host| actions::link(&means, host).ok()).collect();
    take(&means.claims, means.deck, &links, term, force).await
}

async fn take(
    ours: &Claims,
    deck: DeckId,
    links: &[Arc<dyn HostLink>],
    term: u64,
    force: bool,
) -> Result<Found, ApiError> {
    let surveys = links.iter().map(|link| -> BoxFuture<'_, _> {
        Box::pin(async move { (link, ours.survey(link.as_ref()).await) })
    });
    let surveys = some_at_a_time(surveys.collect()).await;
    let (mut reached, mut others, mut away) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
    for (link, survey) in surveys {
        match survey {
            Ok(other) => {
                others.extend(other.map(|o| (link.host().clone(), o)));
                reached.push(Arc::clone(link));
            }
            Err(error) => {
                away.insert(link.host().clone(), error.to_string());
            }
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
            let why: Vec<String> = away.into_values().collect();
            return Err(fenced(
                format!("whether another controller acts there is not known: {}", why.join("; ")),
                "wait until all hosts are reached, or take over what is reached with --force",
            ));
        }
    }
    // Who is refused has taken nothing from anybody.
    may_go_on(&Found::read(deck, &reached).await?, force)?;
    // Before the first claim: however this ends, also with this process, it is known whose the hosts were.
    let left_out: BTreeSet<HostName> = away.into_keys().collect();
    ours.begin_taking(term, &others, &left_out).map_err(|error| ApiError {
        kind: ErrorKind::Internal,
        message: format!("nothing was taken: whose the hosts are cannot be written down: {error}"),
        hint: Some(
            "make room in the directory of the deck's state, then take over again".to_owned(),
        ),
    })?;
    let claims = reached.iter().map(|link| -> BoxFuture<'_, _> {
        Box::pin(async move { ours.claim(link.as_ref(), None, LEASE, force).await.map(drop) })
    });
    let claims = some_at_a_time(claims.collect()).await;
    let read = match claims.iter().find_map(|claim| claim.as_ref().err()) {
        Some(error) => Err(fenced(error.to_string(), "try again in a moment")),
        // Once more: only from here on nobody else writes there.
        None => Found::read(deck, &reached).await,
    };
    match read.and_then(|found| may_go_on(&found, force).map(|()| found)) {
        Ok(found) => {
            let renewed = others.values().map(Other::was_there).max().unwrap_or_default();
            let taken = reached.iter().map(|link| link.host().clone()).collect();
            Ok(Found { renewed, taken, left_out, ..found })
        }
        Err(error) => {
            // One that did not answer may have been taken all the same.
            ours.give_up(&reached).await;
            Err(error)
        }
    }
}

impl Core {
    /// What is under way ends: a start that waits for its host, of the state before, would be let in
    /// as soon as the host is ours, beside the one that the adopted state asks for.
    pub(super) fn begin_take_over(&mut self) -> Result<Token, ApiError> {
        let mut turn = Turn::default();
        let Some(token) = turn.take().filter(|_| self.taking_over.is_none()) else {
            return Err(ApiError {
                kind: ErrorKind::Conflict,
                message: "the hosts are being taken over already".to_owned(),
                hint: Some("`gpudeck status` says when it is done".to_owned()),
            });
        };
        self.taking_over = Some(turn);
        self.actions = Actions::new(Arc::clone(&self.means));
        self.end_upgrade_tasks();
        Ok(token)
    }

    /// Goes on with what was taken over, or with what was there before.
    pub(super) fn end_take_over(
        &mut self,
        found: Result<Found, ApiError>,
    ) -> Result<IntentReply, ApiError> {
        self.taking_over = None;
        let adopted = found.and_then(|found| self.adopt(found));
        if adopted.is_err() {
            self.ask_anew();
        }
        adopted
    }

    /// What was taken is given back.
    fn let_go(&self, taken: &BTreeSet<HostName>) {
        self.means.claims.let_go(taken);
        let means = Arc::clone(&self.means);
        let links: Vec<_> =
            taken.iter().filter_map(|host| actions::link(&means, host).ok()).collect();
        tokio::spawn(async move { means.claims.give_up(&links).await });
    }

    /// Takes over what other controllers left on the hosts, with the next term.
    fn adopt(&mut self, found: Found) -> Result<IntentReply, ApiError> {
        let Found { services, deck, renewed, taken, left_out } = found;
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
        let mut measured = Vec::new();
        for (service, newest) in services {
            if let Some(unread) = newest.unread {
                let words = match newest.read {
                    Some(_) => "taken over as it was before",
                    None => "taken over without what it serves",
                };
                trouble.push((Some(service.clone()), format!("{words}: {}", unread.why)));
            }
            let Some(mut saved) = newest.read else { continue };
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
            saved.state.now = believable(saved.state.now, now());
            self.state.ledger.adopt_chronicles(&service, saved.chronicles);
            measured.push(saved.measured);
            self.forget_outcomes(&service);
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
            self.let_go(&taken);
            return Err(ApiError {
                kind: ErrorKind::Internal,
                message: format!(
                    "nothing was taken over: what was left there cannot be written down: {error}"
                ),
                hint: error.hint(),
            });
        }
        self.means.claims.settle(self.state.term, &taken);
        for measured in measured {
            self.measured.adopt(measured, now());
        }
        self.records_since_checkpoint = 0;
        self.follow_clock();
        self.caught_up();
        // Nobody else was there: that would have been later than the beginning of all times.
        let others_had_none =
            renewed == Timestamp::default() && adopted_deck.is_none() && maintained.is_empty();
        let has_nothing_new = others_had_none && adopted.is_empty() && trouble.is_empty();
        let words = match (adopted.as_slice(), trouble.is_empty()) {
            ([], true) if others_had_none => "this controller holds the hosts".to_owned(),
            ([], true) => "took the hosts over; nothing was left on them to go on with".to_owned(),
            ([], false) => "took the hosts over, and not all that was left on them".to_owned(),
            (adopted, _) => format!("took over and goes on with {}", adopted.join(", ")),
        };
        // A surprise it is only where somebody else had them.
        let severity = if others_had_none { Severity::Info } else { Severity::Warning };
        self.say(severity, None, &words);
        if !left_out.is_empty() {
            let names: Vec<&str> = left_out.iter().map(HostName::as_str).collect();
            let words = format!(
                "not reached, and taken over when they are back, unless somebody takes them before: {}",
                names.join(", ")
            );
            self.say(Severity::Warning, None, &words);
        }
        for (service, words) in trouble {
            self.say(Severity::Error, service.as_ref(), &words);
        }
        if adopted_deck.is_some() || !maintained.is_empty() {
            self.show_adopted_deck();
        }
        self.show_company();
        self.files_stamp.clear();
        self.reload();
        // How what was taken over came to be stands in notes that the other one wrote.
        self.hear_remote();
        self.make_good_since(renewed, |service| ages.contains_key(service));
        self.ask_anew();
        if left_out.is_empty() {
            return Ok(if has_nothing_new {
                IntentReply::NothingToDo
            } else {
                IntentReply::Accepted
            });
        }
        Ok(IntentReply::TakenOver { left_out: left_out.into_iter().collect() })
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
mod tests;
