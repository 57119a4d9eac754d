//! What concerns the deck as a whole (cordons, drains, an upgrade of hosts, services rolled out together), kept
//! on every host of the deck beside the services' states: whoever takes the hosts over sees it and goes on
//! with it.
//!
//! It is written soon after each change, under the host's lock and with the host's epoch, and again when a
//! host that was away is back. Never onto a host that another controller holds.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::actions::Means;
use super::core::Core;
use super::deck_ledger::{DeckEvent, Ledger};
use super::packed;
use super::saved::{self, Age, Unread};
use crate::api::hub::Change;
use crate::api::{DeckView, Severity};
use crate::base::{DeckId, HostName};
use crate::fleet::{HostLink, LinkError};
use crate::wire::{Reply, Request, Verb, is_same_holder};

/// Hosts that lack the newest text are tried again after so long.
const AGAIN: Duration = Duration::from_secs(5);

/// What a host keeps of the deck.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SavedDeck {
    /// Of which deck.
    pub deck: DeckId,
    /// Who wrote it.
    pub holder: String,
    /// Counts the take-overs of the deck: the higher one is newer.
    pub term: u64,
    /// Number of the journal's last record then: newer within a term.
    pub seq: u64,
    /// Cordons, drains, upgrade and group; how rollouts went stays with whoever saw it.
    pub ledger: Ledger,
}

impl SavedDeck {
    const PREFIX: &str = "d1:";

    /// Reads what a host kept: hostile bytes.
    ///
    /// # Errors
    /// In words, what is wrong with it.
    pub fn unpack(text: &str, deck: DeckId) -> Result<Self, String> {
        let saved: Self = packed::unpack_json(Self::PREFIX, text)?;
        if saved.deck == deck { Ok(saved) } else { Err("it is of another deck".to_owned()) }
    }
}

/// What is to be on all hosts of the deck, and where it is already.
#[derive(Default)]
pub struct DeckSaver {
    wanted: Mutex<Option<Arc<Wanted>>>,
    changed: Notify,
}

struct Wanted {
    saved: SavedDeck,
    done: Mutex<BTreeSet<HostName>>,
}

impl DeckSaver {
    fn put(&self, saved: SavedDeck) {
        let wanted = Arc::new(Wanted { saved, done: Mutex::default() });
        *self.wanted.lock().unwrap_or_else(PoisonError::into_inner) = Some(wanted);
        self.changed.notify_one();
    }

    fn wanted(&self) -> Option<Arc<Wanted>> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Brings what is wanted to the hosts of the deck, for ever.
pub async fn keep(means: Arc<Means>) {
    loop {
        if let Some(wanted) = means.deck_saver.wanted() {
            // What is another's is not written to.
            let ours = |core: &mut Core| {
                let hosts = core.not_fenced().map(|()| core.deck.hosts.keys().cloned().collect());
                hosts.unwrap_or_default()
            };
            let Some(hosts) = means.ask(ours).await else { return };
            bring(&means, &wanted, hosts).await;
        }
        tokio::select! {
            () = means.deck_saver.changed.notified() => {}
            () = tokio::time::sleep(AGAIN) => {}
        }
    }
}

async fn bring(means: &Means, wanted: &Wanted, hosts: Vec<HostName>) {
    let lacking: Vec<_> = {
        let done = wanted.done.lock().unwrap_or_else(PoisonError::into_inner);
        let lacking = hosts.iter().filter(|host| !done.contains(*host));
        lacking.filter_map(|host| means.fleet.link(host)).collect()
    };
    if lacking.is_empty() {
        return;
    }
    let text = match packed::pack_json(SavedDeck::PREFIX, &wanted.saved) {
        Ok(text) => text,
        Err(error) => {
            tracing::error!(%error, "the deck's state could not be packed");
            return;
        }
    };
    let writes = lacking.iter().map(|link| {
        let text = text.clone();
        async move {
            let write = write(means, link.as_ref(), wanted, text);
            // One that hangs does not keep the next decision from the others.
            let Ok(written) = tokio::time::timeout(saved::OTHERS, write).await else { return };
            match written {
                Ok(()) => {
                    let mut done = wanted.done.lock().unwrap_or_else(PoisonError::into_inner);
                    done.insert(link.host().clone());
                }
                Err(error) => {
                    tracing::debug!(host = %link.host(), %error, "the deck's state is not there yet");
                }
            }
        }
    });
    futures::future::join_all(writes).await;
}

async fn write(
    means: &Means,
    link: &dyn HostLink,
    wanted: &Wanted,
    state: String,
) -> Result<(), LinkError> {
    means.may_save_to(link).await?;
    let epoch = means.claims.ensure(link).await?;
    let verb = Verb::SaveState { state, age: (wanted.saved.term, wanted.saved.seq) };
    let act = Request::Act { deck: means.deck, epoch: epoch.get(), verb };
    match link.request(act).await? {
        Reply::Done => Ok(()),
        other => Err(LinkError::Unexpected {
            host: link.host().clone(),
            what: format!("{other:?}").chars().take(80).collect(),
        }),
    }
}

/// What a host keeps of the deck, if it keeps anything.
///
/// # Errors
/// It is not reached.
pub async fn read(
    deck: DeckId,
    link: &dyn HostLink,
) -> Result<Option<Result<SavedDeck, Unread>>, LinkError> {
    match link.request(Request::LoadState { deck }).await? {
        Reply::State(Some(text)) => {
            Ok(Some(SavedDeck::unpack(&text, deck).map_err(|why| Unread {
                age: saved::age_of(SavedDeck::PREFIX, &text),
                why: format!("{}: state of the deck: {why}", link.host()),
            })))
        }
        _ => Ok(None),
    }
}

/// Whether a host keeps something of the deck that is of this holder and newer than the journal.
///
/// # Errors
/// It is not reached.
pub(super) async fn newer_of_ours(
    deck: DeckId,
    link: &dyn HostLink,
    own: &str,
    journal: Age,
) -> Result<bool, LinkError> {
    let Some(Ok(kept)) = read(deck, link).await? else { return Ok(false) };
    let says_something = kept.ledger != Ledger::default();
    Ok(is_same_holder(&kept.holder, own) && (kept.term, kept.seq) > journal && says_something)
}

impl DeckEvent {
    /// Whether whoever takes over has to know of it.
    pub(super) const fn is_shared(&self) -> bool {
        !matches!(self, Self::Planned { .. } | Self::ClockAhead { .. })
    }
}

impl Core {
    /// From now on the hosts are to have what the ledger says.
    pub(super) fn save_deck(&self) {
        let ledger = Ledger { chronicles: BTreeMap::new(), ..self.state.ledger.clone() };
        self.means.deck_saver.put(SavedDeck {
            deck: self.deck.id,
            holder: self.means.claims.holder().to_owned(),
            term: self.state.term,
            seq: self.journal.last_seq(),
            ledger,
        });
    }

    /// The same after a start, if there is something: a host may have been away when it changed.
    pub(super) fn save_deck_again(&self) {
        let ledger = &self.state.ledger;
        let plain = Ledger { chronicles: ledger.chronicles.clone(), ..Ledger::default() };
        if *ledger != plain {
            self.save_deck();
        }
    }

    /// Takes what another controller left, unless what is here is newer; its age when it was taken.
    pub(super) fn adopt_deck(
        &mut self,
        newest: Option<SavedDeck>,
        journal_is_new: bool,
    ) -> Option<Age> {
        let newest = newest?;
        // What was written before we took over last is older, and so is our own writing, unless the journal was
        // restored from a copy.
        let is_own = is_same_holder(&newest.holder, self.means.claims.holder())
            && (newest.term, newest.seq) <= self.own_age();
        let is_older = is_own || newest.term < self.state.term;
        if is_older && !journal_is_new {
            return None;
        }
        let chronicles = std::mem::take(&mut self.state.ledger.chronicles);
        self.state.ledger = Ledger { chronicles, ..newest.ledger };
        Some((newest.term, newest.seq))
    }

    /// Shows cordons, drains, upgrade and group as they were taken over, and has them written anew.
    pub(super) fn show_adopted_deck(&self) {
        let ledger = &self.state.ledger;
        let deck = self.hub.with(|s| s.deck.clone());
        let upgrade = ledger.maintenance.upgrade.clone().map(Box::new);
        let group = ledger.group.clone().map(Box::new);
        self.hub.publish(Change::Deck(DeckView { upgrade, group, ..deck }));
        for host in self.deck.hosts.keys() {
            self.change_host(host, |_| {});
        }
        for (host, drain) in &ledger.maintenance.drains {
            if drain.ended.is_none() {
                let words = format!("goes on with the drain of {host} that {} began", drain.by);
                self.say(Severity::Info, None, &words);
            }
        }
        self.save_deck_again();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::deck_ledger::DeckRecord;
    use super::*;
    use crate::base::Timestamp;

    #[test]
    fn what_is_packed_is_read_back_and_nothing_else() {
        let deck = DeckId(uuid::Uuid::from_u128(1));
        let host: HostName = "h1".parse().unwrap();
        let mut ledger = Ledger::default();
        for deck_event in [
            DeckEvent::Cordoned {
                host: host.clone(),
                gpu: None,
                by: "ada".to_owned(),
                reason: Some("fans".to_owned()),
            },
            DeckEvent::DrainBegun { host: host.clone(), by: "ada".to_owned() },
        ] {
            ledger.apply(&DeckRecord { deck_at: Timestamp(5), deck_event });
        }
        let saved = SavedDeck { deck, holder: "ada@m1".to_owned(), term: 2, seq: 17, ledger };
        let text = packed::pack_json(SavedDeck::PREFIX, &saved).unwrap();
        assert_eq!(SavedDeck::unpack(&text, deck), Ok(saved));
        assert!(SavedDeck::unpack(&text, DeckId(uuid::Uuid::from_u128(2))).is_err());
        for bad in ["", "d1:", "d1:????", "z1:abcd", text.get(..text.len() / 2).unwrap()] {
            assert!(SavedDeck::unpack(bad, deck).is_err(), "{bad}");
        }
    }
}
