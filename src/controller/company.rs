//! Other controllers of the same deck: who holds the hosts is looked after and shown. Taking them over is in
//! [`super::take_over`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::actions::Means;
use super::claims::Other;
use super::core::{Core, now};
use super::gateways::Gateways;
use super::saved::Saved;
use crate::api::view::ClaimView;
use crate::api::{ApiError, DeckConditionKind, ErrorKind};
use crate::base::{HostName, ServiceName};
use crate::rollout::{Action, Phase, ServiceState};
use crate::spec::DeckSpec;

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
    let gateways = state.releases.values().filter_map(|r| Gateways::of_release(deck, r));
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
            chronicles: self.state.ledger.shared_chronicles(service),
            measured: self.measured.of_models(state.releases.values().map(|r| &**r)),
        };
        self.means.saver.put(saved, hosts);
    }

    /// Refuses to steer what another controller holds or held last, or what is newer than is known here.
    pub(super) fn not_fenced(&self) -> Result<(), ApiError> {
        self.not_behind()?;
        match self.who_holds() {
            None => Ok(()),
            Some((message, hint)) => {
                Err(ApiError { kind: ErrorKind::Fenced, message, hint: Some(hint) })
            }
        }
    }

    /// Who else holds hosts on which a service lives, in words. Of one of which nothing runs here, any host of the deck
    /// may be such a one.
    pub(super) fn held_elsewhere(&self, service: &ServiceName) -> Option<String> {
        let mut others = self.means.claims.others();
        others.retain(|host, _| self.deck.hosts.contains_key(host));
        if others.is_empty() {
            return None;
        }
        let state = self.state.services.get(service).filter(|s| !s.replicas.is_empty());
        if let Some(state) = state {
            let hosts = hosts_of(state, &self.deck);
            others.retain(|host, _| hosts.contains(host));
        }
        Some(in_words(&others)?.0)
    }

    /// Whether nothing of a service is decided here: another controller has a host of it, or had one when it was heard of
    /// last.
    pub(super) fn is_elsewhere(&self, service: &ServiceName) -> bool {
        let state = self.state.services.get(service);
        state.is_some_and(ServiceState::is_held_elsewhere) || self.held_elsewhere(service).is_some()
    }

    /// Which hosts of a service are another's.
    pub(super) fn others_of(&self, state: &ServiceState) -> BTreeMap<HostName, Other> {
        let mut others = self.means.claims.others();
        others.retain(|host, _| self.deck.hosts.contains_key(host));
        if !others.is_empty() {
            let hosts = hosts_of(state, &self.deck);
            others.retain(|host, _| hosts.contains(host));
        }
        others
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
        // Whose the services are has changed, too: said before the hosts are, so that nobody who has heard of all hosts
        // is told what was so before. A host that answers meanwhile is heard of the next time.
        let asked = self.means.claims.asked();
        for service in self.known_services() {
            self.views.mark(&service);
        }
        self.publish_stale();
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
            let claim_known = asked.contains(&host);
            self.change_host(&host, |view| {
                view.claim = claim;
                view.claim_known = claim_known;
            });
        }
    }
}

/// Who holds these hosts, and what to do about it; none: nobody.
pub(super) fn in_words(others: &BTreeMap<HostName, Other>) -> Option<(String, String)> {
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
