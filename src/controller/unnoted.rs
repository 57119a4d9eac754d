//! What came of releases is noted in Git: how each ended, what is stable, what was stopped. Where that cannot be
//! written just now (another Git program holds a lock), it is written a little later.
//!
//! How a release ended is noted by who may speak for its service: the service's hosts are asked first who holds them.
//! What a controller decided that was replaced and did not know it is not what became of the release.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::company::hosts_of;
use super::core::{Core, now};
use super::fence::Doubt;
use super::record::{DeckState, EndedRelease};
use super::turns::Turns;
use crate::api::Severity;
use crate::base::{ReleaseNumber, ServiceName, Timestamp};
use crate::revision::{DeckRepo, RevisionError};
use crate::rollout::{Outcome, ServiceState, Stop};

/// Time between two attempts.
const AGAIN: Duration = Duration::from_secs(2);

/// What is not in Git yet.
#[derive(Default)]
pub struct Unnoted {
    outcomes: BTreeMap<(ServiceName, ReleaseNumber), Unsaid>,
    /// Whose hosts are being asked.
    asking: Turns<ServiceName>,
    stopped: BTreeSet<ServiceName>,
    stops: BTreeMap<ServiceName, Stop>,
    /// Git's index may lack releases.
    index: bool,
    tried: Timestamp,
}

/// How a release ended, which is not in Git yet.
#[derive(Clone)]
struct Unsaid {
    outcome: Outcome,
    /// So often it was tried to no avail.
    tries: u32,
    /// Why not, as it was told.
    told: bool,
}

/// How releases ended, by the journal since its checkpoint: an earlier life may have ended before all of it was noted.
#[derive(Debug, Default)]
pub(super) struct Ended(BTreeMap<ServiceName, BTreeMap<ReleaseNumber, Outcome>>);

impl Ended {
    /// After a record of the journal was taken into the state.
    pub fn see(&mut self, state: &DeckState, was_checkpoint: bool) {
        if was_checkpoint {
            self.0.clear();
            for EndedRelease { service, release, outcome } in state.unnoted.iter().cloned() {
                self.0.entry(service).or_default().insert(release, outcome);
            }
        }
        for (service, state) in &state.services {
            let Some(rollout) = &state.rollout else { continue };
            let Some(outcome) = &rollout.outcome else { continue };
            let seen = self.0.get(service).and_then(|all| all.get(&rollout.to));
            if seen != Some(outcome) {
                let all = self.0.entry(service.clone()).or_default();
                all.insert(rollout.to, outcome.clone());
            }
        }
    }

    /// For a checkpoint that is written before anything was looked up in Git.
    pub fn list(&self) -> Vec<EndedRelease> {
        let of = |(service, all): (&ServiceName, &BTreeMap<ReleaseNumber, Outcome>)| {
            let service = service.clone();
            let each = move |(release, outcome): (&ReleaseNumber, &Outcome)| EndedRelease {
                service: service.clone(),
                release: *release,
                outcome: outcome.clone(),
            };
            all.iter().map(each).collect::<Vec<_>>()
        };
        self.0.iter().flat_map(of).collect()
    }
}

impl Unnoted {
    /// For the journal's checkpoint: the records before it are not read any more.
    pub(super) fn list(&self) -> Vec<EndedRelease> {
        let each =
            |((service, release), unsaid): (&(ServiceName, ReleaseNumber), &Unsaid)| EndedRelease {
                service: service.clone(),
                release: *release,
                outcome: unsaid.outcome.clone(),
            };
        self.outcomes.iter().map(each).collect()
    }

    /// Whether what became of a release of the service is just being noted: who hears of it then finds it in Git.
    pub(super) fn is_just_asking(&self, service: &ServiceName) -> bool {
        let mut fresh = self.outcomes.iter().filter(|(_, unsaid)| unsaid.tries == 0);
        self.asking.is_taken(service) && fresh.any(|((of, _), _)| of == service)
    }
}

impl Core {
    /// How a release ended is written into Git, and for doors.
    pub(in crate::controller) fn record_outcome(
        &mut self,
        service: &ServiceName,
        release: ReleaseNumber,
        outcome: &Outcome,
    ) {
        if self.is_elsewhere(service) {
            return;
        }
        self.show_outcome(service, release, outcome);
        let unsaid = Unsaid { outcome: outcome.clone(), tries: 0, told: false };
        self.unnoted.outcomes.insert((service.clone(), release), unsaid);
        self.ask_to_note(service);
    }

    /// After a start: what an earlier life did not come to note is noted when the hosts have said whose they are. How the
    /// last rollout of each service ended is among what is still awaited.
    pub(super) fn note_earlier(&mut self, ended: &Ended) {
        for EndedRelease { service, release, outcome } in ended.list() {
            let history = self.files.history.get(&service).into_iter().flatten();
            let is_open =
                history.filter(|e| e.number == release).any(|entry| entry.outcome.is_none());
            if is_open {
                self.show_outcome(&service, release, &outcome);
                let unsaid = Unsaid { outcome, tries: 0, told: false };
                self.unnoted.outcomes.insert((service, release), unsaid);
            }
        }
    }

    /// Asks the hosts of a service who holds them, and notes how its releases ended.
    fn ask_to_note(&mut self, service: &ServiceName) {
        let Some(token) = self.unnoted.asking.take(service) else { return };
        let state = self.state.services.get(service);
        let hosts = state.map(|state| hosts_of(state, &self.deck)).unwrap_or_default();
        let of_it = self.unnoted.outcomes.keys().filter(|(of, _)| of == service);
        let asked: Vec<ReleaseNumber> = of_it.map(|(_, release)| *release).collect();
        let (means, service) = (Arc::clone(&self.means), service.clone());
        self.tasks.spawn(async move {
            let doubt = means.ask_hosts(&hosts).await.against_noting();
            let noted = move |core: &mut Self| {
                drop(token);
                core.note_asked(&service, &asked, doubt.as_ref());
            };
            means.ask(noted).await;
        });
    }

    /// The hosts have answered.
    fn note_asked(
        &mut self,
        service: &ServiceName,
        releases: &[ReleaseNumber],
        doubt: Option<&Doubt>,
    ) {
        if self.is_elsewhere(service) {
            self.forget_outcomes(service);
            return self.publish_service(service);
        }
        let mut noted = false;
        for release in releases {
            let key = (service.clone(), *release);
            let Some(unsaid) = self.unnoted.outcomes.get(&key).cloned() else { continue };
            if !self.still_stands(service, *release, &unsaid.outcome) {
                self.unnoted.outcomes.remove(&key);
                continue;
            }
            let why = match doubt {
                // What is taken over may say otherwise.
                _ if self.taking_over.is_some() => continue,
                Some(doubt) => doubt.to_string(),
                None => match self.note_outcome(service, *release, &unsaid.outcome) {
                    Ok(()) => {
                        self.unnoted.outcomes.remove(&key);
                        noted = true;
                        continue;
                    }
                    Err(error) => error.to_string(),
                },
            };
            // Links come up, locks go: told when it lasts.
            let tell = !unsaid.told && (doubt.is_none() || unsaid.tries > 1);
            if tell {
                let words = format!("how {release} ended is not in Git yet: {why}");
                self.say(Severity::Warning, Some(service), &words);
            }
            if let Some(unsaid) = self.unnoted.outcomes.get_mut(&key) {
                unsaid.tries += 1;
                unsaid.told |= tell;
            }
        }
        if noted {
            self.share();
        }
        let fresh = |(key, unsaid): (&(ServiceName, ReleaseNumber), &Unsaid)| {
            key.0 == *service && unsaid.tries == 0
        };
        if self.unnoted.outcomes.iter().any(fresh) && self.taking_over.is_none() {
            self.ask_to_note(service);
        }
        self.publish_service(service);
    }

    /// Whether that is still how it ended, as far as is known here.
    fn still_stands(
        &self,
        service: &ServiceName,
        release: ReleaseNumber,
        outcome: &Outcome,
    ) -> bool {
        let rollout = self.state.services.get(service).and_then(|s| s.rollout.as_ref());
        rollout.filter(|r| r.to == release).is_none_or(|r| r.outcome.as_ref() == Some(outcome))
    }

    /// What became of releases of a service is another controller's to note.
    pub(super) fn forget_outcomes(&mut self, service: &ServiceName) {
        self.unnoted.outcomes.retain(|(of, _), _| of != service);
    }

    fn show_outcome(&mut self, service: &ServiceName, release: ReleaseNumber, outcome: &Outcome) {
        let history = self.files.history.get_mut(service).into_iter().flatten();
        for entry in history.filter(|e| e.number == release) {
            entry.outcome = Some(outcome.clone());
        }
    }

    /// What was read again of Git lacks what could not be noted there yet.
    pub(super) fn show_unnoted(&mut self) {
        for ((service, release), unsaid) in self.unnoted.outcomes.clone() {
            self.show_outcome(&service, release, &unsaid.outcome);
        }
    }

    /// What ended here before its commit was: how, is noted once that has been fetched.
    pub(super) fn note_what_came(&mut self) {
        let lacks = |(service, state): (&ServiceName, &ServiceState)| {
            let rollout = state.rollout.as_ref()?;
            let outcome = rollout.outcome.clone()?;
            let history = self.files.history.get(service)?;
            let is_open = history.iter().any(|e| e.number == rollout.to && e.outcome.is_none());
            is_open.then(|| (service.clone(), rollout.to, outcome))
        };
        let lacking: Vec<_> = self.state.services.iter().filter_map(lacks).collect();
        for (service, release, outcome) in lacking {
            self.record_outcome(&service, release, &outcome);
        }
    }

    fn note_outcome(
        &self,
        service: &ServiceName,
        release: ReleaseNumber,
        outcome: &Outcome,
    ) -> Result<(), RevisionError> {
        let Some(repo) = &self.repo else { return Ok(()) };
        let Some(revision) = repo.release(release)? else { return Ok(()) };
        repo.set_outcome(&revision, outcome)?;
        // It may have been stopped, or replaced, since it was completed.
        let is_served = self.state.services.get(service).is_some_and(|s| s.stable == Some(release));
        if *outcome == Outcome::Completed && is_served {
            repo.set_stable(service, &revision)?;
        }
        Ok(())
    }

    /// What was stopped is not what is served any more: in Git neither, here and at the remote.
    pub(in crate::controller) fn note_stopped(
        &mut self,
        before: &ServiceState,
        after: &ServiceState,
    ) {
        if let Some(stop) = after.stopped.as_ref().filter(|_| before.stopped != after.stopped) {
            self.record_stop(&after.service, stop);
        }
        if before.stopping && !after.stopping {
            self.clear_stable(&after.service);
        }
    }

    /// Who stopped a service is written into Git, and for doors.
    fn record_stop(&mut self, service: &ServiceName, stop: &Stop) {
        if let Err(error) = self.note_stop(stop)
            && self.unnoted.stops.insert(service.clone(), stop.clone()).is_none()
        {
            let words = format!("who stopped it is not in Git yet: {error}");
            self.say(Severity::Warning, Some(service), &words);
        }
        let history = self.files.history.get_mut(service).into_iter().flatten();
        for entry in history.filter(|entry| entry.number == stop.release) {
            entry.stop = Some(stop.clone());
        }
    }

    fn note_stop(&self, stop: &Stop) -> Result<(), RevisionError> {
        let Some(repo) = &self.repo else { return Ok(()) };
        let revision = repo.release(stop.release)?;
        revision.map_or(Ok(()), |revision| repo.set_stop(&revision, stop))
    }

    fn clear_stable(&mut self, service: &ServiceName) {
        let cleared = self.repo.as_ref().map_or(Ok(()), |repo| repo.clear_stable(service));
        if let Err(error) = cleared
            && self.unnoted.stopped.insert(service.clone())
        {
            let words = format!("Git still says that it is served: {error}");
            self.say(Severity::Warning, Some(service), &words);
        }
        self.share();
    }

    /// Tries again what could not be noted.
    pub(super) fn note_again(&mut self) {
        let Unnoted { outcomes, stopped, stops, .. } = &self.unnoted;
        let is_empty = stopped.is_empty() && stops.is_empty();
        if !outcomes.is_empty() && now().since(self.unnoted.tried) >= AGAIN {
            self.unnoted.tried = now();
            let outcomes = self.unnoted.outcomes.keys().map(|(service, _)| service.clone());
            for service in outcomes.collect::<BTreeSet<_>>() {
                self.ask_to_note(&service);
            }
        }
        if is_empty && !self.unnoted.index || now().since(self.unnoted.tried) < AGAIN {
            return;
        }
        self.unnoted.tried = now();
        let stopped = std::mem::take(&mut self.unnoted.stopped);
        let stops = std::mem::take(&mut self.unnoted.stops);
        if std::mem::take(&mut self.unnoted.index) {
            self.heal_index();
        }
        if is_empty {
            return;
        }
        for (service, stop) in stops {
            if self.is_elsewhere(&service) || self.note_stop(&stop).is_err() {
                self.unnoted.stops.insert(service, stop);
            }
        }
        for service in stopped {
            // Rolled out anew since: what is stable now says so itself.
            let is_served = self.state.services.get(&service).is_some_and(|s| s.stable.is_some());
            let cleared = match &self.repo {
                Some(repo) if !is_served && !self.is_elsewhere(&service) => {
                    repo.clear_stable(&service)
                }
                _ => Ok(()),
            };
            if cleared.is_err() {
                self.unnoted.stopped.insert(service);
            }
        }
        self.share();
    }

    /// Git's index lacks a release.
    pub(super) const fn index_lags(&mut self) {
        self.unnoted.index = true;
    }

    fn heal_index(&mut self) {
        match self.repo.as_ref().map_or(Ok(Vec::new()), DeckRepo::heal_index) {
            Ok(files) if files.is_empty() => {}
            Ok(files) => {
                let words = format!("Git's index has followed the releases: {}", files.join(", "));
                self.say(Severity::Info, None, &words);
            }
            Err(RevisionError::Locked { .. }) => self.index_lags(),
            // Whoever plans the next release is told.
            Err(error) => tracing::warn!(%error, "Git's index was not looked after"),
        }
    }

    /// After a start: what was stopped in an earlier life that ended before it was noted. (How the last rollout of
    /// each service ended is among what is still awaited.)
    pub(super) fn note_unserved(&mut self) {
        self.index_lags();
        let stopped =
            self.state.services.values().filter_map(|s| Some((&s.service, s.stopped.as_ref()?)));
        let stopped: Vec<_> = stopped.map(|(name, stop)| (name.clone(), stop.clone())).collect();
        for (service, stop) in stopped {
            if self.held_elsewhere(&service).is_none() {
                self.record_stop(&service, &stop);
            }
        }
        let gone = self.state.services.values().filter(|state| {
            let known = state.releases.keys().next_back().copied();
            serves_nothing(state)
                && self.repo.as_ref().is_some_and(|repo| {
                    let noted = repo.stable_release(&state.service).ok().flatten();
                    // A newer one is another controller's.
                    noted.is_some_and(|noted| known.is_some_and(|known| noted <= known))
                })
        });
        let gone: Vec<ServiceName> = gone.map(|state| state.service.clone()).collect();
        for service in gone {
            if self.held_elsewhere(&service).is_none() {
                self.clear_stable(&service);
            }
        }
    }
}

fn serves_nothing(state: &ServiceState) -> bool {
    let is_coming = state.active_rollout().is_some() || state.stopping;
    state.stable.is_none() && state.replicas.is_empty() && !is_coming
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::base::DeckId;
    use crate::rollout::{Event, EventKind, Release, step};

    /// The release before the last one is in no service's state any more.
    #[test]
    fn how_earlier_releases_ended_is_read_out_of_the_journal() {
        let service: ServiceName = "chat".parse().unwrap();
        let deck = DeckId(uuid::Uuid::from_u128(1));
        let made = crate::controller::saved::tests::release(deck, &service);
        let (mut state, mut ended) = (DeckState::default(), Ended::default());
        let tell = |state: &mut DeckState, ended: &mut Ended, at: u64, kind: EventKind| {
            step(state.service(&service), &Event { at: Timestamp(at), kind });
            ended.see(state, false);
        };
        for number in 1..=3 {
            let release = Release { number: ReleaseNumber(number), ..made.clone() };
            let begun = crate::controller::saved::tests::requested(release);
            let mut at = number * 1_000_000;
            tell(&mut state, &mut ended, at, begun);
            let reason = Some(format!("no {number}"));
            let abort = EventKind::Aborted { by: "ada".to_owned(), reason };
            tell(&mut state, &mut ended, at, abort);
            while state.service(&service).active_rollout().is_some() {
                at += 1_000;
                assert!(at < (number + 1) * 1_000_000, "it does not end");
                tell(&mut state, &mut ended, at, EventKind::Tick);
            }
        }
        let told = |ended: &Ended| {
            let each = |e: EndedRelease| (e.release.0, format!("{:?}", e.outcome));
            ended.list().into_iter().map(each).collect::<Vec<_>>()
        };
        let all = told(&ended);
        assert_eq!(all.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [1, 2, 3]);
        assert!(all.iter().all(|(number, how)| how.contains(&format!("no {number}"))), "{all:?}");

        // A checkpoint stands for all before it: with what was not noted then.
        state.unnoted = ended.list().drain(..1).collect();
        let mut later = Ended::default();
        later.see(&state, true);
        assert_eq!(told(&later), [all.first().unwrap().clone(), all.last().unwrap().clone()]);
        let read = serde_json::to_value(&state).unwrap();
        assert_eq!(serde_json::from_value::<DeckState>(read).unwrap(), state);
    }
}
