//! Other controllers of the same deck: who holds the hosts is shown, and taken over when a person says so.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::actions::{self, Means};
use super::claims::Other;
use super::core::{Core, now};
use super::gateways::Gateways;
use super::saved::{self, Saved, Unread};
use super::saved_deck::{self, SavedDeck};
use crate::api::view::ClaimView;
use crate::api::{ApiError, DeckConditionKind, ErrorKind, IntentReply, Severity};
use crate::base::{Hint, HostName, ServiceName, Timestamp};
use crate::rollout::{Action, Phase, ServiceState};
use crate::spec::DeckSpec;

/// What was left on the hosts that were taken over.
#[derive(Default)]
pub struct Found {
    services: Vec<Saved>,
    /// What was not read, of services of which no host has anything that was.
    unread: Vec<Unread>,
    decks: Vec<SavedDeck>,
    /// When the last of those who held the hosts renewed a claim, in this machine's time.
    renewed: Timestamp,
}

/// Of so many rounds one asks a host that nobody held: before something is begun all are asked anyway.
const FREE_ROUNDS: usize = 6;

/// Looks after the claims of all hosts of the deck, for ever.
pub async fn look_after_claims(means: Arc<Means>) {
    for round in (0..FREE_ROUNDS).cycle() {
        let hosts = means.ask(|core| core.deck.hosts.keys().cloned().collect::<Vec<HostName>>());
        let Some(hosts) = hosts.await else { return };
        let due = hosts.iter().enumerate().filter(|(place, host)| {
            (place + round) % FREE_ROUNDS == 0 || !means.claims.is_free(host)
        });
        let looks = due.filter_map(|(_, host)| means.fleet.link(host)).map(|link| {
            let means = Arc::clone(&means);
            async move {
                if let Err(error) = means.claims.look_after(link.as_ref()).await {
                    tracing::debug!(host = %link.host(), %error, "a claim was not looked after");
                }
            }
        });
        futures::future::join_all(looks).await;
        tokio::time::sleep(std::time::Duration::from_secs(5)).await;
    }
}

/// The hosts a service lives on or goes to, its gateway's included.
pub fn hosts_of(state: &ServiceState, deck: &DeckSpec) -> BTreeSet<HostName> {
    let target = state.active_rollout().map(|r| r.to);
    let live = state
        .replicas
        .iter()
        .filter(|(_, replica)| replica.phase != Phase::Stopped)
        .filter_map(|(key, _)| state.releases.get(&key.release)?.replica(key.replica));
    let coming = target.and_then(|n| state.releases.get(&n)).into_iter().flat_map(|r| &r.replicas);
    // Asked for at nearly every event: hundreds of ranks are on far fewer hosts, mostly one behind another.
    let mut named: Vec<&HostName> =
        live.chain(coming).flat_map(|plan| &plan.ranks).map(|rank| &rank.host).collect();
    named.dedup();
    named.sort_unstable();
    named.dedup();
    let mut hosts: BTreeSet<HostName> =
        named.into_iter().filter(|host| deck.hosts.contains_key(*host)).cloned().collect();
    let gateways =
        state.releases.values().filter_map(|r| Gateways::of(deck, &state.service, &r.spec));
    hosts.extend(gateways.flat_map(|g| g.hosts()).filter(|h| deck.hosts.contains_key(h)));
    hosts
}

impl Core {
    /// Before actions leave, or when something was decided that leads to none: which hosts have to be held, and what
    /// is to be written there.
    pub(super) fn prepare_hosts(&self, service: &ServiceName, actions: &[Action]) {
        let Some(state) = self.state.services.get(service) else { return };
        let changes_hosts = actions.iter().any(|action| {
            matches!(
                action,
                Action::StartRank { .. } | Action::StopRank { .. } | Action::ApplyTraffic { .. }
            )
        });
        if !changes_hosts && !self.means.saver.is_news(state) {
            return;
        }
        let hosts = Arc::new(hosts_of(state, &self.deck));
        self.means.claims.set_hosts_of(service, Arc::clone(&hosts));
        let saved = Saved {
            holder: self.means.claims.holder().to_owned(),
            term: self.state.term,
            seq: self.journal.last_seq(),
            state: state.clone(),
        };
        self.means.saver.put(saved, hosts);
    }

    /// Refuses to steer what another controller holds or held last.
    pub(super) fn not_fenced(&self) -> Result<(), ApiError> {
        match self.who_holds() {
            None => Ok(()),
            Some((message, hint)) => {
                Err(ApiError { kind: ErrorKind::Fenced, message, hint: Some(hint) })
            }
        }
    }

    /// Which hosts are another's, in words, and what to do.
    fn who_holds(&self) -> Option<(String, String)> {
        let mut others = self.means.claims.others();
        others.retain(|host, _| self.deck.hosts.contains_key(host));
        in_words(&others)
    }

    /// Shows what changed about the claims.
    pub(super) fn show_company(&mut self) {
        let changes = self.means.claims.changes();
        // A lease that ends is no change, so it is looked at now and then all the same.
        let moment = now().0 / 1_000;
        if self.company_shown == (changes, moment) {
            return;
        }
        let new = self.company_shown.0 != changes;
        self.company_shown = (changes, moment);
        let holds = self.who_holds().map(|(text, hint)| (text, Some(hint)));
        self.set_condition(DeckConditionKind::HostsHeld, holds);
        if !new {
            return;
        }
        let (others, ours) = (self.means.claims.others(), self.means.claims.ours());
        let hosts: Vec<HostName> = self.deck.hosts.keys().cloned().collect();
        for host in hosts {
            let claim = match others.get(&host) {
                Some(other) => Some(ClaimView {
                    holder: other.holder.clone(),
                    ours: false,
                    since: other.since,
                    until: Some(other.until),
                }),
                None => ours.contains(&host).then(|| ClaimView {
                    holder: self.means.claims.holder().to_owned(),
                    ours: true,
                    since: None,
                    until: None,
                }),
            };
            self.change_host(&host, |view| view.claim = claim);
        }
    }

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
        self.actions = super::actions::Actions::new(std::sync::Arc::clone(&self.means));
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
        let Found { services: found, unread, decks, renewed } = found;
        let mut newest: BTreeMap<ServiceName, Saved> = BTreeMap::new();
        for saved in found {
            let known = newest.get(&saved.state.service);
            if known.is_none_or(|k| (k.term, k.seq) < (saved.term, saved.seq)) {
                newest.insert(saved.state.service.clone(), saved);
            }
        }
        let own = self.means.claims.holder().to_owned();
        let terms = newest.values().map(|s| s.term).chain(decks.iter().map(|d| d.term));
        let term = terms.max().unwrap_or(0).max(self.state.term);
        let before = self.state.clone();
        let journal_is_new = self.state.term == 0 && self.state.services.is_empty();
        let deck_adopted = self.adopt_deck(decks, journal_is_new);
        let (mut adopted, mut names) = (Vec::new(), BTreeSet::new());
        for (service, saved) in newest {
            let unknown = !self.state.services.contains_key(&service);
            // Our own writing is never newer than our journal.
            if saved.holder == own && !unknown {
                continue;
            }
            let last = saved.state.releases.keys().next_back().copied().unwrap_or_default();
            self.state.last_release = self.state.last_release.max(last);
            adopted.push(format!("{service} from {}", saved.holder));
            names.insert(service.clone());
            self.state.services.insert(service, saved.state);
        }
        self.state.term = term.saturating_add(1);
        // In the journal before anything of it is acted on.
        let written = self.journal.checkpoint(&self.state);
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
        let words = match adopted.as_slice() {
            [] => "took the hosts over; nothing was left on them to go on with".to_owned(),
            adopted => format!("took over and goes on with {}", adopted.join(", ")),
        };
        self.say(Severity::Warning, None, &words);
        for unread in unread {
            let words = format!("taken over without what it serves: {}", unread.why);
            self.say(Severity::Error, Some(&unread.service), &words);
        }
        if deck_adopted {
            self.show_adopted_deck();
        }
        self.show_company();
        self.files_stamp.clear();
        self.reload();
        self.make_good_since(renewed, |service| names.contains(service));
        self.ask_anew();
        Ok(IntentReply::Accepted)
    }
}

fn in_words(others: &BTreeMap<HostName, Other>) -> Option<(String, String)> {
    let (_, first) = others.iter().next()?;
    let here = now();
    let mut by: BTreeMap<&str, Vec<(&HostName, &Other)>> = BTreeMap::new();
    for (host, other) in others {
        by.entry(&other.holder).or_default().push((host, other));
    }
    let parts: Vec<String> = by
        .iter()
        .map(|(holder, hosts)| {
            let names: Vec<&str> = hosts.iter().map(|(h, _)| h.as_str()).collect();
            let shown = match names.len() {
                0..=5 => names.join(", "),
                n => format!(
                    "{} and {} more",
                    names.iter().take(4).copied().collect::<Vec<_>>().join(", "),
                    n - 4
                ),
            };
            let verb = if hosts.len() == 1 { "is" } else { "are" };
            let since = hosts
                .iter()
                .filter_map(|(_, o)| o.since)
                .min()
                .map(|s| format!(" since {s}"))
                .unwrap_or_default();
            let until = hosts.iter().map(|(_, o)| o.until).max().unwrap_or_default();
            if hosts.iter().all(|(_, o)| o.has_lapsed(here)) {
                let verb = if hosts.len() == 1 { "was" } else { "were" };
                format!("{shown} {verb} held by {holder}{since}; its lease ended at {until}")
            } else {
                // Renewed every few seconds: to the second it would only flicker.
                format!("{shown} {verb} held by {holder}{since}")
            }
        })
        .collect();
    let hint = if others.values().all(|o| o.has_lapsed(here)) {
        "`gpudeck controller take-over` goes on from where it left".to_owned()
    } else {
        format!(
            "work there, or end that controller: its lease runs {} without being renewed, then \
             `gpudeck controller take-over`",
            crate::base::time::short(
                first.until.since(here).max(std::time::Duration::from_secs(1))
            )
        )
    };
    Some((parts.join("; "), hint))
}

/// Takes the deck's hosts over: all that are reached, or none.
pub async fn take_over(
    means: Arc<Means>,
    hosts: Vec<HostName>,
    force: bool,
) -> Result<Found, ApiError> {
    let fenced = |message: String, hint: &str| ApiError {
        kind: ErrorKind::Fenced,
        message,
        hint: Some(hint.to_owned()),
    };
    let mut reached = Vec::new();
    let mut others = BTreeMap::new();
    let mut away = Vec::new();
    for host in hosts {
        let Ok(link) = actions::link(&means, &host) else { continue };
        match means.claims.survey(link.as_ref()).await {
            Ok(other) => {
                others.extend(other.map(|o| (host.clone(), o)));
                reached.push(link);
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
    let mut taken = Vec::new();
    for link in &reached {
        match means.claims.claim(link.as_ref(), None, LEASE, force).await {
            Ok(_) => taken.push(Arc::clone(link)),
            Err(error) => {
                for link in taken {
                    means.claims.give_up(link.as_ref()).await;
                }
                return Err(fenced(error.to_string(), "try again in a moment"));
            }
        }
    }
    let last = others.values().map(|o| o.until).max().unwrap_or_default();
    let lease = u64::try_from(LEASE.as_millis()).unwrap_or(u64::MAX);
    let mut found = Found { renewed: Timestamp(last.0.saturating_sub(lease)), ..Found::default() };
    for link in &taken {
        let read = async {
            let states = saved::read_all(means.deck, link.as_ref()).await?;
            Ok((states, saved_deck::read(means.deck, link.as_ref()).await?))
        };
        match read.await {
            Ok((states, deck)) => {
                for state in states {
                    match state {
                        Ok(state) => found.services.push(state),
                        Err(unread) => {
                            tracing::warn!("{}", unread.why);
                            found.unread.push(unread);
                        }
                    }
                }
                match deck {
                    Some(Ok(deck)) => found.decks.push(deck),
                    Some(Err(why)) => tracing::warn!("{why}"),
                    None => {}
                }
            }
            Err::<_, crate::fleet::LinkError>(error) => {
                return Err(ApiError {
                    kind: ErrorKind::Unreachable,
                    message: format!("the state on {} was not read: {error}", link.host()),
                    hint: error.hint().or_else(|| Some("take over again".to_owned())),
                });
            }
        }
    }
    let is_read = |of: &Unread| found.services.iter().any(|s| s.state.service == of.service);
    let mut seen = BTreeSet::new();
    let unread = std::mem::take(&mut found.unread);
    let lacking = unread.into_iter().filter(|of| !is_read(of));
    let lacking: Vec<Unread> = lacking.filter(|of| seen.insert(of.service.clone())).collect();
    if let Some(first) = lacking.first().filter(|_| !force) {
        for link in &taken {
            means.claims.give_up(link.as_ref()).await;
        }
        return Err(fenced(
            format!("what is served there cannot be read: {}", first.why),
            "take over with the gpudeck that wrote it, or a newer one; with --force without that service",
        ));
    }
    found.unread = lacking;
    Ok(found)
}

/// The first lease of a host that is taken over; renewed like any other, and as long as those are.
const LEASE: std::time::Duration = super::claims::LEASE;
