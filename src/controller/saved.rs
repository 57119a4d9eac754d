//! The compact state of a service on its hosts, written before each step, and soon after what people decide
//! (a pause, a promotion, a queued rollout) or a gate says: whoever takes the hosts over goes on from it.
//!
//! The text is JSON, deflated and in base64 (`z1:…`), bounded by the agent at 1 MiB. It is written
//! whole or not at all, under the host's lock and only with the host's epoch.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::actions::{self, Means};
use super::behind::Begun;
use super::core::{Core, Input};
use super::measured::Measurements;
use super::packed::{Releases, pack_with, unpack_json};
use crate::api::DeckConditionKind;
use crate::api::plan::PlanProgress;
use crate::base::{DeckId, EpochCell, Hint, HostName, ServiceName};
use crate::fleet::{HostLink, LinkError};
use crate::rollout::{Direction, Rollout, ServiceState};
use crate::wire::{Refusal, Reply, Request, Verb, is_same_holder};

/// Hosts that lack what people decided are tried again after so long.
const AGAIN: Duration = Duration::from_secs(5);

/// How long other hosts than the one that is acted on are waited for.
pub(super) const OTHERS: Duration = Duration::from_secs(2);

/// How the text of a service's state begins.
const PREFIX: &str = "z1:";

/// The same where replicas run under the name of another release: an older gpudeck, which would look for them in vain, does
/// not read it.
const PREFIX_OF_KEPT: &str = "z2:";

fn prefix_of(text: &str) -> &'static str {
    if text.starts_with(PREFIX_OF_KEPT) { PREFIX_OF_KEPT } else { PREFIX }
}

/// With every change of a service on many hosts, so many of them have the state beside those that are acted on.
/// All have it when a rollout begins, goes to another step, turns back, or ends.
const BESIDE: usize = 5;

/// What a host keeps of a service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Saved {
    /// Who wrote it.
    pub holder: String,
    /// Counts the take-overs of the deck: the higher one is newer.
    pub term: u64,
    /// Number of the journal's last record then: newer within a term.
    pub seq: u64,
    /// The state.
    pub state: ServiceState,
    /// How its rollouts went beside their plans, the newest last.
    #[serde(default, skip_serializing_if = "VecDeque::is_empty")]
    pub chronicles: VecDeque<PlanProgress>,
    /// What was measured of the models of its releases.
    #[serde(default, skip_serializing_if = "Measurements::is_empty")]
    pub measured: Measurements,
}

impl Saved {
    /// Reads what a host kept for a service of a deck: hostile bytes.
    pub fn unpack(text: &str, deck: DeckId, service: &ServiceName) -> Result<Self, String> {
        let saved: Self = unpack_json(prefix_of(text), text)?;
        let fits =
            saved.state.service == *service
                && saved.state.releases.iter().all(|(number, r)| {
                    r.number == *number && r.deck == deck && r.service == *service
                });
        if !fits {
            return Err("it is of another deck or service".to_owned());
        }
        Ok(Self { measured: saved.measured.bounded(), ..saved })
    }
}

/// What is to be on the hosts of each service.
#[derive(Default)]
pub struct Saver {
    wanted: Mutex<BTreeMap<ServiceName, Arc<Wanted>>>,
    /// The newest that each host has of each service. One write at a time: an older state never lands after a newer.
    written: Mutex<BTreeMap<(ServiceName, HostName), Written>>,
    /// There is something that goes to all hosts.
    changed: Notify,
    failed: AtomicBool,
}

/// Term and number of the journal's last record: the higher one is newer.
pub type Age = (u64, u64);

/// What one host has.
type Written = Arc<tokio::sync::Mutex<Age>>;

struct Wanted {
    /// Without the state's releases.
    saved: Saved,
    releases: Arc<Releases>,
    hosts: Arc<BTreeSet<HostName>>,
    /// Of the last decision in it: all hosts are to have what is as new as that, also those that are away now.
    decided: Age,
    /// All hosts are to have this very state before the step, not just some.
    wants_all: bool,
    /// All that are to have it have it, as far as they are reached.
    is_whole: AtomicBool,
    /// All of its hosts have the last decision, also those that were away at first.
    is_everywhere: AtomicBool,
    text: Mutex<Option<Arc<str>>>,
    /// Those that have it beside the ones that are acted on; the same for all actions of it.
    beside: OnceLock<Vec<HostName>>,
}

impl Saver {
    /// Whether people or gates have decided something since the last state that is to be on the hosts. What nobody
    /// has to go on with is no news at a controller that has just begun.
    pub fn is_news(&self, state: &ServiceState) -> bool {
        let kept = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        match kept.get(&state.service) {
            Some(before) => !stands_alike(&before.saved.state, state),
            None => state.active_rollout().is_some() || state.queued.is_some(),
        }
    }

    /// From now on this is to be on these hosts before anything is done there.
    pub fn put(&self, mut saved: Saved, hosts: Arc<BTreeSet<HostName>>) {
        let service = saved.state.service.clone();
        let mut kept = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        let before = kept.get(&service);
        let alike = before.filter(|before| stands_alike(&before.saved.state, &saved.state));
        let wants_all = alike.is_none_or(|b| b.wants_all && !b.is_whole.load(Ordering::Acquire));
        // A host that was away when it was decided still lacks it.
        let decided = alike.map_or((saved.term, saved.seq), |before| before.decided);
        let is_everywhere = alike.is_some_and(|before| {
            before.is_everywhere.load(Ordering::Acquire) && hosts.is_subset(&before.hosts)
        });
        let releases = std::mem::take(&mut saved.state.releases);
        let known = before.map(|before| &before.releases);
        let releases = match known.filter(|known| known.is_of(&releases)) {
            Some(known) => Arc::clone(known),
            None => Arc::new(Releases::new(releases)),
        };
        let wanted = Wanted {
            saved,
            releases,
            hosts,
            decided,
            wants_all,
            is_whole: AtomicBool::new(false),
            is_everywhere: AtomicBool::new(is_everywhere),
            text: Mutex::default(),
            beside: OnceLock::new(),
        };
        kept.insert(service, Arc::new(wanted));
        drop(kept);
        if wants_all {
            self.changed.notify_one();
        }
    }

    /// What was decided and is perhaps not on all hosts yet.
    fn incomplete(&self) -> Vec<Arc<Wanted>> {
        let kept = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        let lacks = |w: &&Arc<Wanted>| !w.is_everywhere.load(Ordering::Acquire);
        kept.values().filter(lacks).cloned().collect()
    }

    fn written(&self, service: &ServiceName, host: &HostName) -> Written {
        let mut all = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(all.entry((service.clone(), host.clone())).or_default())
    }

    fn wanted(&self, service: &ServiceName) -> Option<Arc<Wanted>> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner).get(service).cloned()
    }
}

/// Whether a rollout is as far in both, coarsely, and people and gates have decided the same.
fn stands_alike(a: &ServiceState, b: &ServiceState) -> bool {
    let back = |r: &Rollout| matches!(r.direction, Direction::Back { .. });
    let rollouts = match (&a.rollout, &b.rollout) {
        (None, None) => true,
        (Some(a), Some(b)) => {
            (a.to, a.step, back(a), a.outcome.is_some())
                == (b.to, b.step, back(b), b.outcome.is_some())
                && a.paused == b.paused
                && a.gate == b.gate
                && a.skipped == b.skipped
        }
        _ => false,
    };
    rollouts
        && a.queued == b.queued
        && a.stopping == b.stopping
        && a.moves.len() == b.moves.len()
        && a.loans == b.loans
        && a.stable == b.stable
}

impl Wanted {
    /// The hosts beside the one that is acted on which are to have it before the step.
    fn others(&self, own: &HostName) -> Vec<&HostName> {
        if self.wants_all {
            return self.hosts.iter().filter(|host| *host != own).collect();
        }
        let beside = self.beside.get_or_init(|| {
            let after = self.hosts.iter().skip_while(|host| *host <= own);
            let before = self.hosts.iter().take_while(|host| *host < own);
            after.chain(before).take(BESIDE).cloned().collect()
        });
        beside.iter().filter(|host| *host != own).collect()
    }

    fn text(&self) -> std::io::Result<Arc<str>> {
        let mut text = self.text.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(text) = &*text {
            return Ok(Arc::clone(text));
        }
        let is_plain = self.saved.state.taken_over.is_empty();
        let prefix = if is_plain { PREFIX } else { PREFIX_OF_KEPT };
        let packed: Arc<str> = pack_with(prefix, &self.saved, &self.releases)?.into();
        *text = Some(Arc::clone(&packed));
        Ok(packed)
    }
}

/// Writes the state of a service to its hosts, unless it is there. That it cannot be written (a full
/// disk) does not hold a step up; that the host is another controller's does.
pub async fn before_step(
    means: &Means,
    service: &ServiceName,
    link: &dyn HostLink,
    epoch: &EpochCell,
) -> Result<(), LinkError> {
    let Some(wanted) = means.saver.wanted(service) else { return Ok(()) };
    let others = wanted.others(link.host()).into_iter().map(|host| {
        let wanted = &wanted;
        async move {
            let Ok(link) = actions::link(means, host) else { return };
            // What it keeps is looked at first: this would be taken for a state that is newer than the journal.
            if means.may_save_to(link.as_ref()).await.is_err() {
                return;
            }
            let epoch = means.claims.cell(host).await;
            let _ = write(means, wanted, link.as_ref(), &epoch).await;
        }
    });
    let others = tokio::time::timeout(OTHERS, futures::future::join_all(others));
    let (own, others) = tokio::join!(write(means, &wanted, link, epoch), others);
    if others.is_ok() {
        wanted.is_whole.store(true, Ordering::Release);
    }
    match own {
        Err(LinkError::Refused { refusal: Refusal::Held { .. }, .. }) => own,
        Err(error) => {
            tracing::warn!(%service, host = %link.host(), %error, "the state could not be saved");
            let words = format!("the state of {service} is not on {}: {error}", link.host());
            tell(means, Some((words, error.hint()))).await;
            Ok(())
        }
        Ok(()) => {
            tell(means, None).await;
            Ok(())
        }
    }
}

/// Brings what people and gates decided to all hosts of the service, for ever: not every decision leads to an
/// action, before which it would be written.
pub async fn keep(means: Arc<Means>) {
    loop {
        let incomplete = means.saver.incomplete();
        if !incomplete.is_empty() {
            // What is another's is not written to.
            let Some(fenced) = means.ask(|core| core.not_fenced().is_err()).await else { return };
            if !fenced {
                let brings = incomplete.iter().map(|wanted| bring(&means, wanted));
                futures::future::join_all(brings).await;
            }
        }
        tokio::select! {
            () = means.saver.changed.notified() => {}
            () = tokio::time::sleep(AGAIN) => {}
        }
    }
}

async fn bring(means: &Means, wanted: &Wanted) {
    let writes = wanted.hosts.iter().map(|host| async move {
        let Ok(link) = actions::link(means, host) else { return false };
        let written = async {
            let known = means.saver.written(&wanted.saved.state.service, host);
            if *known.lock().await >= wanted.decided {
                return Ok(());
            }
            means.may_save_to(link.as_ref()).await?;
            let epoch = means.claims.ensure(link.as_ref()).await?;
            write(means, wanted, link.as_ref(), &epoch).await
        };
        // One that hangs does not keep the next decision from the others.
        match tokio::time::timeout(OTHERS, written).await {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                tracing::debug!(%host, %error, "the state is not there yet");
                false
            }
            Err(_) => false,
        }
    });
    let written = futures::future::join_all(writes).await;
    if written.into_iter().all(|done| done) {
        wanted.is_everywhere.store(true, Ordering::Release);
    }
}

/// Shows that nobody else could go on from here, or that it is over; only changes are told.
async fn tell(means: &Means, failed: Option<(String, Option<String>)>) {
    if means.saver.failed.swap(failed.is_some(), Ordering::AcqRel) == failed.is_some() {
        return;
    }
    let tell = Input::Ask(Box::new(move |core: &mut Core| {
        core.set_condition(DeckConditionKind::StateNotSaved, failed);
    }));
    let _ = means.inputs.send(tell).await;
}

/// After the journal was lost: whether hosts keep what an earlier life of this controller did, which
/// must be taken up before anything new is begun. What cannot be read may be just that.
pub async fn left_by_us(means: &Means) -> Option<ServiceName> {
    for host in means.claims.known_hosts() {
        let Ok(link) = actions::link(means, &host) else { continue };
        let Ok(found) = read_all(means.deck, link.as_ref()).await else { continue };
        let is_left = |kept: &Result<Saved, Unread>| match kept {
            Ok(saved) => !saved.state.replicas.is_empty(),
            Err(_) => true,
        };
        let left = found.into_iter().find(|(_, kept)| is_left(kept));
        if let Some((service, _)) = left {
            return Some(service);
        }
    }
    None
}

async fn write(
    means: &Means,
    wanted: &Wanted,
    link: &dyn HostLink,
    epoch: &EpochCell,
) -> Result<(), LinkError> {
    if !wanted.hosts.contains(link.host()) {
        return Ok(());
    }
    let age = (wanted.saved.term, wanted.saved.seq);
    let service = &wanted.saved.state.service;
    let written = means.saver.written(service, link.host());
    // Several actions of a step wait for one write.
    let mut written = written.lock().await;
    if *written >= age || epoch.get().0 == 0 {
        return Ok(());
    }
    let unexpected = |what: String| LinkError::Unexpected { host: link.host().clone(), what };
    let state = wanted.text().map_err(|e| unexpected(e.to_string()))?.to_string();
    let verb = Verb::SaveServiceState { service: service.clone(), state, age };
    match link.request(Request::Act { deck: means.deck, epoch: epoch.get(), verb }).await? {
        Reply::Done => {
            *written = age;
            Ok(())
        }
        other => Err(unexpected(format!("{other:?}").chars().take(80).collect())),
    }
}

/// A state on a host that this gpudeck cannot read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unread {
    /// When it was written, as far as that can be read.
    pub age: Option<Age>,
    /// Where it is, of what, and why.
    pub why: String,
}

/// The age of a state, also of one whose rest a newer gpudeck writes otherwise.
pub(super) fn age_of(prefix: &str, text: &str) -> Option<Age> {
    #[derive(Deserialize)]
    struct Head {
        term: u64,
        seq: u64,
    }
    let head: Head = unpack_json(prefix, text).ok()?;
    Some((head.term, head.seq))
}

/// A service of which a host keeps a state that is of this holder and newer than the journal. One that says nothing of
/// what serves is no loss; one that cannot be read may be anything.
///
/// # Errors
/// The host is not reached.
pub(super) async fn newer_of_ours(
    deck: DeckId,
    link: &dyn HostLink,
    own: &str,
    begun: Begun,
) -> Result<Option<ServiceName>, LinkError> {
    let found = read_all(deck, link).await?.into_iter().find(|(_, kept)| match kept {
        Ok(saved) => {
            is_same_holder(&saved.holder, own)
                && begun.is_before((saved.term, saved.seq), saved.state.now)
                && !(saved.state.replicas.is_empty() && saved.state.rollout.is_none())
        }
        Err(_) => false,
    });
    Ok(found.map(|(service, _)| service))
}

/// What a host keeps of the deck's services.
pub async fn read_all(
    deck: DeckId,
    link: &dyn HostLink,
) -> Result<Vec<(ServiceName, Result<Saved, Unread>)>, LinkError> {
    let names = match link.request(Request::ListServiceStates { deck }).await? {
        Reply::Texts(names) => names,
        _ => Vec::new(),
    };
    let mut found = Vec::new();
    for name in names {
        let Ok(service) = name.parse::<ServiceName>() else { continue };
        let asked = Request::LoadServiceState { deck, service: service.clone() };
        if let Reply::State(Some(text)) = link.request(asked).await? {
            let kept = Saved::unpack(&text, deck, &service).map_err(|why| Unread {
                age: age_of(prefix_of(&text), &text),
                why: format!("{}: state of {service}: {why}", link.host()),
            });
            found.push((service, kept));
        }
    }
    Ok(found)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
pub(super) mod tests {
    use super::*;
    use crate::base::ReleaseNumber;
    use crate::rollout::{EventKind, LimitRule, Release, RolloutKind, Shared};

    /// That ada asked for a release.
    pub(in crate::controller) fn requested(release: Release) -> EventKind {
        EventKind::RolloutRequested {
            release: Box::new(release),
            kind: RolloutKind::Apply,
            by: "ada".to_owned(),
            limits: LimitRule::default(),
            of_group: None,
        }
    }

    pub(in crate::controller) fn release(deck: DeckId, service: &ServiceName) -> Release {
        Release {
            id: crate::base::ReleaseId(uuid::Uuid::from_u128(9)),
            number: ReleaseNumber(3),
            deck,
            service: service.clone(),
            revision: crate::base::Revision("c0ffee".to_owned()),
            spec: crate::spec::parse_service("model = \"/m\"\nengine = \"vllm\"", "chat").unwrap(),
            replicas: vec![crate::rollout::ReplicaPlan { ranks: Vec::new(), shape: None }; 40],
            gateway: None,
            borrowing: None,
            keeps: BTreeMap::new(),
            created: crate::base::Timestamp(5),
            author: "ada".to_owned(),
            reason: None,
        }
    }

    fn saved(seq: u64, state: ServiceState) -> Saved {
        let (chronicles, measured) = (VecDeque::new(), Measurements::default());
        Saved { holder: "ada@m1".to_owned(), term: 0, seq, state, chronicles, measured }
    }

    #[test]
    fn a_change_goes_to_some_hosts_and_a_step_to_all() {
        let hosts: BTreeSet<HostName> = (1..=9).map(|n| format!("h{n}").parse().unwrap()).collect();
        let hosts = Arc::new(hosts);
        let saver = Saver::default();
        let service: ServiceName = "chat".parse().unwrap();
        let saved = saved(1, ServiceState::new(service.clone()));
        let names = |own: &str| -> Vec<String> {
            let wanted = saver.wanted(&service).unwrap();
            let others = wanted.others(&own.parse().unwrap());
            others.iter().map(ToString::to_string).collect()
        };
        saver.put(saved.clone(), hosts.clone());
        assert_eq!(names("h4").len(), 8, "the first goes everywhere");
        saver.put(saved.clone(), hosts.clone());
        assert_eq!(names("h4").len(), 8, "which has not happened yet");
        saver.wanted(&service).unwrap().is_whole.store(true, Ordering::Release);
        saver.put(saved, hosts);
        let beside = ["h8", "h9", "h1", "h2", "h3"];
        assert_eq!(names("h7"), beside);
        assert_eq!(names("h4"), beside, "the same ones, whoever else is acted on");
        assert_eq!(names("h9"), ["h8", "h1", "h2", "h3"]);
    }

    #[test]
    fn a_decision_goes_to_those_that_were_away_when_it_was_made() {
        let of = |names: &[&str]| Arc::new(names.iter().map(|n| n.parse().unwrap()).collect());
        let (hosts, more) = (of(&["h1", "h2"]), of(&["h1", "h2", "h3"]));
        let saver = Saver::default();
        let service: ServiceName = "chat".parse().unwrap();
        let mut saved = saved(7, ServiceState::new(service.clone()));
        saver.put(saved.clone(), Arc::clone(&hosts));
        saver.wanted(&service).unwrap().is_whole.store(true, Ordering::Release);
        // Things go on while h2 is away.
        saved.seq = 9;
        saver.put(saved.clone(), Arc::clone(&hosts));
        let lacking = saver.incomplete();
        assert_eq!(lacking.len(), 1);
        assert_eq!((lacking[0].saved.seq, lacking[0].decided), (9, (0, 7)));
        lacking[0].is_everywhere.store(true, Ordering::Release);
        assert!(saver.incomplete().is_empty());
        saved.seq = 10;
        saver.put(saved.clone(), hosts);
        assert!(saver.incomplete().is_empty(), "nothing was decided since");
        saver.put(saved.clone(), Arc::clone(&more));
        assert_eq!(saver.incomplete().len(), 1, "a host that came lacks it");
        saver.incomplete()[0].is_everywhere.store(true, Ordering::Release);
        saved.state.stopping = true;
        saver.put(saved, more);
        assert_eq!(saver.incomplete()[0].decided, (0, 10));
    }

    #[test]
    fn the_age_of_what_cannot_be_read() {
        #[derive(Serialize)]
        struct Newer {
            holder: &'static str,
            term: u64,
            seq: u64,
            state: &'static str,
        }
        let newer = Newer { holder: "bob@m2", term: 3, seq: 4, state: "what will be thought of" };
        let text = super::super::packed::pack_json(PREFIX, &newer).unwrap();
        let deck = DeckId(uuid::Uuid::from_u128(1));
        assert!(Saved::unpack(&text, deck, &"chat".parse().unwrap()).is_err());
        assert_eq!(age_of(PREFIX, &text), Some((3, 4)));
        assert_eq!(age_of(PREFIX, "z3:AAAA"), None);
    }

    #[test]
    fn what_an_older_gpudeck_would_misread_is_of_another_version_to_it() {
        let (deck, service) = (DeckId(uuid::Uuid::from_u128(1)), "chat".parse().unwrap());
        let mut saved = saved(17, ServiceState::new(service));
        let service = saved.state.service.clone();
        let text_of = |saved: &Saved| {
            let saver = Saver::default();
            saver.put(saved.clone(), Arc::default());
            saver.wanted(&service).unwrap().text().unwrap()
        };
        assert!(text_of(&saved).starts_with("z1:"));
        let key = |release| crate::base::ReplicaKey { release: ReleaseNumber(release), replica: 0 };
        saved.state.taken_over.insert(key(7), key(8));
        let text = text_of(&saved);
        assert!(text.starts_with("z2:"));
        assert!(unpack_json::<Saved>(PREFIX, &text).is_err());
        assert_eq!(Saved::unpack(&text, deck, &service), Ok(saved));
    }

    #[test]
    fn what_is_packed_is_read_back_and_nothing_else() {
        let deck = DeckId(uuid::Uuid::from_u128(1));
        let service: ServiceName = "chat".parse().unwrap();
        let mut saved = Saved {
            // Looks like the place of the releases, and is none.
            holder: "\"state\":{\"service\":\"chat\",\"releases\":{}".to_owned(),
            term: 2,
            ..saved(17, ServiceState::new(service.clone()))
        };
        let release = Shared::from(release(deck, &service));
        saved.state.releases.insert(release.number, release);
        let saver = Saver::default();
        saver.put(saved.clone(), Arc::default());
        let first = saver.wanted(&service).unwrap();
        let text = first.text().unwrap();
        assert_eq!(Saved::unpack(&text, deck, &service), Ok(saved.clone()));
        assert!(Saved::unpack(&text, deck, &"code".parse().unwrap()).is_err());
        for bad in ["", "z1:", "z1:????", "z2:abcd", &text[..text.len() / 2]] {
            assert!(Saved::unpack(bad, deck, &service).is_err(), "{bad}");
        }

        saved.seq += 1;
        saver.put(saved.clone(), Arc::default());
        let second = saver.wanted(&service).unwrap();
        assert!(Arc::ptr_eq(&first.releases, &second.releases), "packed once");
        assert_eq!(Saved::unpack(&second.text().unwrap(), deck, &service), Ok(saved.clone()));

        saved.state.releases.get_mut(&ReleaseNumber(3)).unwrap().change().author = "bob".to_owned();
        saver.put(saved.clone(), Arc::default());
        let third = saver.wanted(&service).unwrap().text().unwrap();
        assert_eq!(Saved::unpack(&third, deck, &service), Ok(saved.clone()));

        // As it was written before it told how rollouts went, and with that.
        assert!(!serde_json::to_string(&saved).unwrap().contains("chronicles"));
        saved.chronicles.push_back(PlanProgress {
            release: ReleaseNumber(3),
            began: crate::base::Timestamp(7),
            steps: Vec::new(),
            predicted: crate::api::PlanTime::default(),
            predicted_lowest: 1,
            lowest_ready: 1,
            serving: None,
            ended: None,
        });
        saver.put(saved.clone(), Arc::default());
        let told = saver.wanted(&service).unwrap().text().unwrap();
        assert_eq!(Saved::unpack(&told, deck, &service), Ok(saved));
    }
}
