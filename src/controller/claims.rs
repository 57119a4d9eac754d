//! The leased epochs under which this controller may act on hosts.
//!
//! A controller acts on a service only while it holds all of its hosts. It *holds* a host when the
//! host granted it an epoch and nobody has taken it since, as far as the host can be asked: a host that
//! is not reached now stays held by whom it knew last, so a dead host does not stop its service, and
//! whoever would take a service over has to reach all of its hosts (or be told to force it).
//! What another controller holds, or held last, is never taken here: only [`super::company`] does that,
//! because a person asked.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex as PlainMutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Mutex;

use super::core::now;
use super::lasting;
use super::left_out::LeftOut;
use super::owed::Owed;
use crate::base::{DeckId, Epoch, EpochCell, HostName, ServiceName, Timestamp};
use crate::fleet::{Fleet, HostLink, LinkError};
use crate::wire::{ClaimInfo, Refusal, Reply, Request, is_same_holder};

mod letting_go;

/// How long a claim holds without being renewed.
pub(super) const LEASE: Duration = Duration::from_secs(30);

/// A claim is renewed when less than this is left of it: every few seconds all claims are looked after.
const RENEW_BEFORE: Duration = Duration::from_secs(20);

/// What is to be done on a host renews its claim first when less than this is left of it: only where looking after it
/// has failed. (Who acts with what is left is safe: the host itself refuses an epoch that is not its own.)
const ACT_BEFORE: Duration = Duration::from_secs(10);

/// How long a plan waits for hosts that were never asked who holds them.
const SURVEYED_WITHIN: Duration = Duration::from_secs(3);

/// How long a host that is held is waited for before something is done on another one of its service.
const PATIENCE: Duration = Duration::from_secs(2);

/// Before a host is taken at last that a take-over by force left out, the others are waited for so long in a new life:
/// they may have been taken meanwhile.
const OTHERS_HEARD_WITHIN: Duration = Duration::from_secs(10);

/// The claims of one controller.
pub struct Claims {
    born: Instant,
    deck: DeckId,
    holder: String,
    /// Where it is written down which hosts are held, for the next life.
    file: Option<PathBuf>,
    held: Mutex<BTreeMap<HostName, Claim>>,
    known: PlainMutex<Known>,
    /// Counts changes of what is known, so that the loop looks only then.
    changes: AtomicU64,
    /// The controller ends: no lease is asked for any more.
    is_ending: AtomicBool,
    /// Those that are to be given back: a take-over of them came to nothing.
    owed: Owed,
    /// Those that a take-over by force left out: held, and not heard of since.
    left_out: LeftOut,
    /// When it was last seen to that the hosts of a service are held.
    rounds: PlainMutex<BTreeMap<ServiceName, Round>>,
    /// What is in the file, as far as this life knows; held while it is written.
    written: PlainMutex<Option<BTreeSet<HostName>>>,
}

/// The last round, when it ended and what came of it; and the turn of the next one.
type Round = Arc<Mutex<Option<(Instant, Result<(), LinkError>)>>>;

#[derive(Default)]
struct Known {
    /// The hosts that granted us an epoch which nobody took since.
    ours: BTreeSet<HostName>,
    /// The hosts that were asked in this life who holds them.
    asked: BTreeSet<HostName>,
    /// The hosts that nobody else holds, as they said.
    free: BTreeSet<HostName>,
    /// Who else holds or held a host.
    others: BTreeMap<HostName, Other>,
    /// The hosts of each service.
    services: BTreeMap<ServiceName, Arc<BTreeSet<HostName>>>,
}

#[derive(Clone)]
struct Claim {
    epoch: EpochCell,
    until: Option<Instant>,
}

impl Claim {
    /// More than this is left of it.
    fn has_left(&self, least: Duration) -> bool {
        self.until.is_some_and(|u| u.saturating_duration_since(Instant::now()) > least)
    }
}

/// Another controller's claim on a host, in this machine's time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Other {
    /// Who.
    pub holder: String,
    /// Since when; none if the host did not say.
    pub since: Option<Timestamp>,
    /// When its lease ends, or ended.
    pub until: Timestamp,
    /// When it was there last; none if the host did not say.
    renewed: Option<Timestamp>,
    /// As the host said it.
    held: Epoch,
    until_there: Timestamp,
}

impl Other {
    /// Whether its lease has ended.
    pub fn has_lapsed(&self, now: Timestamp) -> bool {
        self.until <= now
    }

    /// When it was there last: as its lease tells where the host did not say, which one that was stopped has ended
    /// early.
    pub fn was_there(&self) -> Timestamp {
        let lease = u64::try_from(LEASE.as_millis()).unwrap_or(u64::MAX);
        self.renewed.unwrap_or_else(|| Timestamp(self.until.0.saturating_sub(lease)))
    }

    fn refusal(&self) -> Refusal {
        Refusal::Held { held: self.held, holder: self.holder.clone(), until: self.until_there }
    }

    /// The same claim began when it began: reckoned from its age it would be a little earlier or later at each look.
    fn has_held_as(&mut self, before: &Self) {
        if (self.held, &self.holder) == (before.held, &before.holder) {
            self.since = before.since.or(self.since);
            // Not renewed since.
            if self.until_there == before.until_there {
                (self.until, self.renewed) = (before.until, before.renewed);
            }
        }
    }

    /// Who had it before a take-over that came to nothing: its lease has ended with that.
    fn before_us(holder: String) -> Self {
        let here = now();
        Self { holder, since: None, until: here, renewed: None, held: Epoch(0), until_there: here }
    }

    fn of(info: &ClaimInfo) -> Self {
        let here = now();
        // The clocks of two machines differ; ages do not.
        let local = |there: Timestamp| {
            if there >= info.now {
                here.plus(there.since(info.now))
            } else {
                Timestamp(here.0.saturating_sub(info.now.0 - there.0))
            }
        };
        Self {
            holder: info.holder.clone(),
            since: (info.since.0 > 0).then(|| local(info.since)),
            until: local(info.until),
            renewed: info.renewed.map(local),
            held: info.epoch,
            until_there: info.until,
        }
    }
}

impl Claims {
    /// No claims yet. `holder` names this controller to people and to its own next life; `file` is
    /// where that one reads which hosts it held; `owed`: what an earlier one is to give back.
    pub fn new(deck: DeckId, holder: String, file: Option<PathBuf>, owed: Owed) -> Self {
        let mut ours: BTreeSet<HostName> = file
            .as_ref()
            .and_then(|f| std::fs::read(f).ok())
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default();
        ours.retain(|host| !owed.has(host));
        let known = Known { ours, ..Known::default() };
        Self {
            born: Instant::now(),
            deck,
            holder,
            file,
            held: Mutex::new(BTreeMap::new()),
            known: PlainMutex::new(known),
            changes: AtomicU64::new(1),
            is_ending: AtomicBool::new(false),
            owed,
            left_out: LeftOut::default(),
            rounds: PlainMutex::default(),
            written: PlainMutex::default(),
        }
    }

    /// The same; these hosts are held until they say otherwise.
    #[must_use]
    pub fn leaving_out(self, left_out: LeftOut) -> Self {
        let held = left_out.hosts();
        self.known().ours.extend(held.into_iter().filter(|host| !self.owed.has(host)));
        Self { left_out, ..self }
    }

    /// The name of this controller.
    pub fn holder(&self) -> &str {
        &self.holder
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Grows with each change of what is known of the hosts' claims.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// Who else holds hosts of the deck, or held them last.
    pub fn others(&self) -> BTreeMap<HostName, Other> {
        self.known().others.clone()
    }

    /// The hosts that this controller holds.
    pub fn ours(&self) -> BTreeSet<HostName> {
        self.known().ours.clone()
    }

    /// Whether this controller holds a host.
    pub fn holds(&self, host: &HostName) -> bool {
        self.known().ours.contains(host)
    }

    /// The hosts that were asked who holds them, and said that nobody else does.
    pub fn known_hosts(&self) -> BTreeSet<HostName> {
        self.known().free.clone()
    }

    /// The host said in this life who holds it: what an earlier one knew may be another's by now.
    pub fn was_asked(&self, host: &HostName) -> bool {
        self.known().asked.contains(host)
    }

    /// The hosts of which [`Self::was_asked`] holds.
    pub fn asked(&self) -> BTreeSet<HostName> {
        self.known().asked.clone()
    }

    /// Forgets hosts that left the deck.
    pub fn keep_hosts(&self, wanted: impl Fn(&HostName) -> bool) {
        let mut known = self.known();
        known.others.retain(|host, _| wanted(host));
        known.ours.retain(|host| wanted(host));
        known.free.retain(|host| wanted(host));
        known.asked.retain(|host| wanted(host));
        drop(known);
        self.left_out.keep(wanted);
        self.changes.fetch_add(1, Ordering::AcqRel);
    }

    /// The hosts on which a service lives, as was said last.
    pub fn hosts_of(&self, service: &ServiceName) -> Arc<BTreeSet<HostName>> {
        self.known().services.get(service).cloned().unwrap_or_default()
    }

    /// Says on which hosts a service lives: they are held together or not at all.
    pub fn set_hosts_of(&self, service: &ServiceName, hosts: Arc<BTreeSet<HostName>>) {
        self.known().services.insert(service.clone(), hosts);
    }

    fn note(&self, host: &HostName, other: Option<Other>) {
        {
            let mut known = self.known();
            let before = (known.ours.contains(host), known.others.get(host).cloned());
            match other {
                None => {
                    known.others.remove(host);
                    known.ours.insert(host.clone());
                }
                Some(mut other) => {
                    self.left_out.is_heard(host);
                    known.ours.remove(host);
                    if let Some(before) = known.others.get(host) {
                        other.has_held_as(before);
                    }
                    known.others.insert(host.clone(), other);
                }
            }
            if before == (known.ours.contains(host), known.others.get(host).cloned()) {
                return;
            }
        }
        self.changes.fetch_add(1, Ordering::AcqRel);
        self.write_down();
    }

    /// Writes down which hosts are held, by now: what came meanwhile is in it, and whoever waited for this need not
    /// write it again.
    fn write_down(&self) {
        let Some(file) = &self.file else { return };
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let ours = self.ours();
        if written.as_ref() == Some(&ours) {
            return;
        }
        let bytes = serde_json::to_vec(&ours).map_err(std::io::Error::other);
        match bytes.and_then(|bytes| lasting::replace(file, &bytes)) {
            Ok(()) => *written = Some(ours),
            Err(error) => {
                tracing::warn!(%error, "which hosts are held could not be written down");
            }
        }
    }

    /// The cell that holds the host's epoch, claimed or renewed if need be. A host that another
    /// controller holds, or held last, is refused.
    pub async fn ensure(&self, link: &dyn HostLink) -> Result<EpochCell, LinkError> {
        self.ensure_left(link, ACT_BEFORE).await
    }

    async fn ensure_left(
        &self,
        link: &dyn HostLink,
        least: Duration,
    ) -> Result<EpochCell, LinkError> {
        let known = self.held.lock().await.get(link.host()).cloned();
        if let Some(claim) = &known
            && claim.has_left(least)
        {
            return Ok(claim.epoch.clone());
        }
        let held = known.filter(|c| c.until.is_some());
        let renewed = held.as_ref().map(|c| c.epoch.get());
        // A new claim of ours would succeed where somebody's lease has ended: asked first, because
        // that is for a person to decide.
        if renewed.is_none()
            && let Some(other) = self.survey(link).await?
        {
            return Err(LinkError::Refused { host: link.host().clone(), refusal: other.refusal() });
        }
        match (self.claim(link, renewed, LEASE, false).await, held) {
            // A full disk: the lease is not renewed, but its epoch is the host's until somebody takes it, and
            // the host itself checks that.
            (Err(LinkError::Refused { refusal: Refusal::NoSpace { .. }, .. }), Some(held)) => {
                Ok(held.epoch)
            }
            (claimed, _) => claimed,
        }
    }

    /// Asks a host who holds it; none: nobody, or we.
    pub async fn survey(&self, link: &dyn HostLink) -> Result<Option<Other>, LinkError> {
        let said = link.request(Request::ShowClaim { deck: self.deck }).await?;
        self.heard(link, said).await
    }

    /// A host has said who holds it.
    async fn heard(&self, link: &dyn HostLink, said: Reply) -> Result<Option<Other>, LinkError> {
        match said {
            Reply::Claim(info) => {
                let other = match info {
                    Some(info) if is_same_holder(&info.holder, &self.holder) => {
                        self.give_back(link, info.epoch).await
                    }
                    Some(info) => {
                        self.owed.is_given_back(link.host());
                        let other = Other::of(&info);
                        if self.is_left_to_us(link.host(), &other)? {
                            self.take_at_last(link).await?;
                            None
                        } else {
                            Some(other)
                        }
                    }
                    None => None,
                };
                let known = self.known().others.get(link.host()).cloned();
                if self.known().asked.insert(link.host().clone()) {
                    self.changes.fetch_add(1, Ordering::AcqRel);
                }
                if other.is_none() {
                    self.known().free.insert(link.host().clone());
                }
                match &other {
                    Some(other) => self.note(link.host(), Some(other.clone())),
                    // It became free, but is not ours yet.
                    None if known.is_some() => {
                        self.known().others.remove(link.host());
                        self.changes.fetch_add(1, Ordering::AcqRel);
                    }
                    None => {}
                }
                Ok(other)
            }
            other => Err(unexpected(link, &other)),
        }
    }

    /// Asks a host who holds it unless it was asked before; whether something new was heard.
    pub async fn survey_first(&self, link: &dyn HostLink) -> bool {
        if self.was_asked(link.host()) {
            return false;
        }
        // What it was asked with the first words is good enough to begin with: before anything is done it is asked anew.
        let surveyed = match link.first_answer().await {
            Some(said) => self.heard(link, said).await,
            None => self.survey(link).await,
        };
        match surveyed {
            Ok(_) => true,
            Err(error) => {
                tracing::debug!(host = %link.host(), %error, "who holds it is not known");
                false
            }
        }
    }

    /// Nobody held it when it was asked last.
    pub fn is_free(&self, host: &HostName) -> bool {
        let known = self.known();
        known.free.contains(host) && !known.ours.contains(host) && !known.others.contains_key(host)
    }

    /// Asks those of these hosts of which nothing is known yet, and waits a moment for those that answer.
    pub async fn survey_unknown(&self, fleet: &Fleet, hosts: &[HostName]) {
        let unknown = |host: &&HostName| !self.was_asked(host);
        let links = hosts.iter().filter(unknown).filter_map(|host| fleet.link(host));
        let surveys = links.map(|link| async move {
            self.survey_first(link.as_ref()).await;
        });
        let all = futures::future::join_all(surveys);
        let _ = tokio::time::timeout(SURVEYED_WITHIN, all).await;
    }

    /// Asks a host for a claim.
    pub async fn claim(
        &self,
        link: &dyn HostLink,
        epoch: Option<Epoch>,
        lease: Duration,
        force: bool,
    ) -> Result<EpochCell, LinkError> {
        let asked = Instant::now();
        // Nothing that still looks after its claims brings back what has ended.
        let lease = if self.is_ending.load(Ordering::Acquire) { Duration::ZERO } else { lease };
        let request = Request::Claim {
            deck: self.deck,
            epoch,
            holder: self.holder.clone(),
            lease_ms: u64::try_from(lease.as_millis()).unwrap_or(u64::MAX),
            force,
        };
        match link.request(request).await {
            Ok(Reply::Claimed { epoch }) => Ok(self.granted(link, epoch, asked + lease).await),
            Ok(other) => Err(unexpected(link, &other)),
            Err(error) => {
                if let LinkError::Refused { refusal: Refusal::Held { .. }, .. } = &error {
                    self.lost(link).await;
                }
                Err(error)
            }
        }
    }

    /// The host granted an epoch until then.
    async fn granted(&self, link: &dyn HostLink, epoch: Epoch, until: Instant) -> EpochCell {
        self.known().asked.insert(link.host().clone());
        self.left_out.is_heard(link.host());
        self.note(link.host(), None);
        self.known().free.insert(link.host().clone());
        let mut held = self.held.lock().await;
        let claim = held
            .entry(link.host().clone())
            .or_insert_with(|| Claim { epoch: EpochCell::new(epoch), until: None });
        // Two that asked at once are answered in any order: the later epoch is the host's.
        if claim.until.is_none() || epoch > claim.epoch.get() {
            claim.epoch.set(epoch);
        }
        claim.until = Some(until);
        claim.epoch.clone()
    }

    /// A host that a take-over by force left out is back, and whoever says to have it had it then. Not where somebody
    /// has taken it since, or another host: then it is for a person to decide again.
    ///
    /// # Errors
    /// It is not known yet: the others were not heard of in this life.
    fn is_left_to_us(&self, host: &HostName, other: &Other) -> Result<bool, LinkError> {
        let Some(left) = self.left_out.since(host) else { return Ok(false) };
        let known = self.known();
        let is_alone = known.others.keys().all(|known| known == host);
        if !is_alone || other.since.is_none_or(|since| since > left) {
            return Ok(false);
        }
        let is_unheard =
            |ours: &&HostName| !known.asked.contains(*ours) && self.left_out.since(ours).is_none();
        match known.ours.iter().find(is_unheard) {
            Some(unheard) if self.born.elapsed() < OTHERS_HEARD_WITHIN => Err(LinkError::Down {
                host: host.clone(),
                why: format!("a take-over left it out, and {unheard} is asked first whose it is"),
                hint: Some("try again in a moment".to_owned()),
            }),
            _ => Ok(true),
        }
    }

    /// Takes a host that a take-over by force left out.
    async fn take_at_last(&self, link: &dyn HostLink) -> Result<(), LinkError> {
        if self.is_ending.load(Ordering::Acquire) {
            return Ok(());
        }
        let asked = Instant::now();
        let request = Request::Claim {
            deck: self.deck,
            epoch: None,
            holder: self.holder.clone(),
            lease_ms: u64::try_from(LEASE.as_millis()).unwrap_or(u64::MAX),
            force: true,
        };
        match link.request(request).await? {
            Reply::Claimed { epoch } => {
                tracing::warn!(host = %link.host(), "it is back, and taken over as the others were");
                self.granted(link, epoch, asked + LEASE).await;
                Ok(())
            }
            other => Err(unexpected(link, &other)),
        }
    }

    /// Somebody else has the host: nothing is done there any more, and who it is is asked.
    async fn lost(&self, link: &dyn HostLink) {
        if let Some(claim) = self.held.lock().await.get_mut(link.host()) {
            claim.until = None;
        }
        if let Err(error) = self.survey(link).await {
            tracing::warn!(host = %link.host(), %error, "who holds the host is not known");
        }
    }

    /// The right to act on one host of a service: all of the service's hosts must be held.
    pub async fn ensure_for(
        &self,
        fleet: &Fleet,
        service: &ServiceName,
        link: &dyn HostLink,
    ) -> Result<EpochCell, LinkError> {
        let asked = Instant::now();
        let round = Arc::clone(self.rounds().entry(service.clone()).or_default());
        // Of hundreds of actions that begin at once one asks all hosts, and the others take its word.
        let mut last = round.lock().await;
        let held = match &*last {
            Some((ended, held)) if *ended >= asked => held.clone(),
            _ => {
                let held = self.hold_all(fleet, service).await;
                *last = Some((Instant::now(), held.clone()));
                held
            }
        };
        drop(last);
        held?;
        self.ensure(link).await
    }

    fn rounds(&self) -> MutexGuard<'_, BTreeMap<ServiceName, Round>> {
        self.rounds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sees to it that all hosts of a service are held.
    async fn hold_all(&self, fleet: &Fleet, service: &ServiceName) -> Result<(), LinkError> {
        // Of two hundred hosts hardly one is to be asked; each action goes through here.
        let (stale, ours) = {
            let held = self.held.lock().await;
            let known = self.known();
            let hosts = known.services.get(service).cloned().unwrap_or_default();
            let other = known.others.iter().find(|(host, _)| hosts.contains(*host));
            if let Some((host, other)) = other {
                return Err(LinkError::Refused { host: host.clone(), refusal: other.refusal() });
            }
            let is_fresh = |host: &HostName| {
                known.ours.contains(host) && held.get(host).is_some_and(|c| c.has_left(ACT_BEFORE))
            };
            let stale: Vec<HostName> =
                hosts.iter().filter(|host| !is_fresh(host)).cloned().collect();
            let ours: BTreeSet<HostName> =
                stale.iter().filter(|host| known.ours.contains(*host)).cloned().collect();
            (stale, ours)
        };
        let links: Vec<_> =
            stale.iter().filter_map(|host| Some((host, fleet.link(host)?))).collect();
        // What is new is looked at before anything of it is claimed: all of it or nothing.
        let new = links.iter().filter(|(host, _)| !ours.contains(*host));
        let looks = new.map(|(_, l)| async move {
            match self.survey(l.as_ref()).await? {
                None => Ok(()),
                Some(other) => {
                    Err(LinkError::Refused { host: l.host().clone(), refusal: other.refusal() })
                }
            }
        });
        futures::future::try_join_all(looks).await?;
        let ours = &ours;
        let claims = links.iter().map(|(host, l)| async move {
            let ensured = self.ensure(l.as_ref());
            let ensured = if ours.contains(*host) {
                // A host without power says nothing, not even that it is gone: what is done on the others
                // (the gateway!) does not wait until its link is given up.
                match tokio::time::timeout(PATIENCE, ensured).await {
                    Ok(ensured) => ensured,
                    Err(_) => return Ok(()),
                }
            } else {
                ensured.await
            };
            match ensured {
                Ok(_) => Ok(()),
                // Held, as far as anybody knows who can be asked.
                Err(LinkError::Down { .. } | LinkError::Timeout { .. }) if ours.contains(*host) => {
                    Ok(())
                }
                Err(error) => Err(error),
            }
        });
        futures::future::try_join_all(claims).await?;
        Ok(())
    }

    /// Renews what is held, and asks about what is not.
    pub async fn look_after(&self, link: &dyn HostLink) -> Result<(), LinkError> {
        if self.is_ending.load(Ordering::Acquire) {
            return Ok(());
        }
        let claimed =
            self.held.lock().await.get(link.host()).is_some_and(|claim| claim.until.is_some());
        if claimed {
            self.ensure_left(link, RENEW_BEFORE).await.map(|_| ())
        } else {
            self.survey(link).await.map(|_| ())
        }
    }

    /// The cell of a host's epoch, claimed or not: what reads needs no claim.
    pub async fn cell(&self, host: &HostName) -> EpochCell {
        let mut held = self.held.lock().await;
        let unclaimed = || Claim { epoch: EpochCell::new(Epoch(0)), until: None };
        held.entry(host.clone()).or_insert_with(unclaimed).epoch.clone()
    }
}

fn unexpected(link: &dyn HostLink, reply: &Reply) -> LinkError {
    LinkError::Unexpected {
        host: link.host().clone(),
        what: format!("{reply:?} instead of a claim").chars().take(120).collect(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Clocks are read to the millisecond, and an answer takes some: the same claim must not look as if it had just begun.
    #[test]
    fn a_claim_that_goes_on_began_when_it_began() {
        let said = |epoch, now| ClaimInfo {
            epoch: Epoch(epoch),
            holder: "bob@m2 (/d)".to_owned(),
            since: Timestamp(1_000),
            until: Timestamp(90_000),
            now: Timestamp(now),
            renewed: None,
        };
        let first = Other::of(&said(3, 50_000));
        let mut again = Other::of(&said(3, 50_021));
        assert_ne!(first.since, again.since);
        again.has_held_as(&first);
        assert_eq!(first, again, "nothing is new of it");
        let mut taken = Other::of(&said(4, 50_021));
        let since = taken.since;
        taken.has_held_as(&first);
        assert_eq!(taken.since, since, "it was taken anew");
    }

    /// Hosts answer side by side; what one of them wrote down last must not lack what another one said.
    #[test]
    fn what_is_written_down_is_what_is_held_whoever_writes_last() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("claims.json");
        let claims = |file| {
            let deck = DeckId(uuid::Uuid::from_u128(1));
            Claims::new(deck, "ada@m1 (/d)".to_owned(), Some(file), Owed::default())
        };
        let first = claims(file.clone());
        std::thread::scope(|threads| {
            for thread in 0..8 {
                let first = &first;
                threads.spawn(move || {
                    for n in 0..8 {
                        let host = format!("h{thread}-{n}").parse().unwrap();
                        first.note(&host, None);
                        if n % 2 == 1 {
                            first.note(&host, Some(Other::before_us("bob".to_owned())));
                        }
                    }
                });
            }
        });
        let next = claims(file);
        assert_eq!(next.ours(), first.ours());
        assert_eq!(next.ours().len(), 32);
    }
}
