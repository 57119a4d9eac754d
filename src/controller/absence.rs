//! Time in which this controller was not there: it stood still (its process was stopped, its machine suspended), it
//! was down, or its journal could not be written. What runs on the hosts went on meanwhile, but nobody heard of it, so
//! no deadline and no gate counts that time: each service whose clocks run is held from the beginning of it to its end,
//! and the deadlines of an upgrade of hosts are later by it.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::clock;
use super::core::{Core, now};
use super::deck_ledger::DeckEvent;
use super::record::DeckState;
use crate::api::Severity;
use crate::base::{ServiceName, Timestamp, time};
use crate::rollout::{EventKind, HoldCause, Phase, ServiceState};

/// The loop wakes every quarter of a second: after so long its process stood still.
const STOOD_STILL: Duration = Duration::from_secs(3);

/// So often is it written down that this controller lives.
const NOTE_EVERY: Duration = Duration::from_secs(2);

/// A restart within so long is none to speak of.
const WAS_AWAY: Duration = Duration::from_secs(5);

/// Another controller's clock that is ahead of ours by more is not followed: what hosts keep may be anything.
const MOST_AHEAD: Duration = Duration::from_hours(24);

/// When this controller was last seen alive: a small file beside the journal. It need not be on disk: without it the
/// newest event counts, and deadlines are longer by the time since then.
#[derive(Debug)]
pub struct Alive {
    path: PathBuf,
    file: Option<File>,
    noted: Timestamp,
}

impl Alive {
    /// Reads when the earlier life ended.
    pub fn open(path: &Path) -> Self {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let noted = text.trim().parse().map(Timestamp).unwrap_or_default();
        Self { path: path.to_owned(), file: None, noted }
    }

    fn note(&mut self, at: Timestamp) {
        self.noted = at;
        if let Err(error) = self.write(at) {
            tracing::debug!(%error, path = %self.path.display(), "that this controller lives is not noted");
        }
    }

    /// Always as long, and never cut off first: a reader finds the old moment or the new one.
    fn write(&mut self, at: Timestamp) -> io::Result<()> {
        if self.file.is_none() {
            let mut open = OpenOptions::new();
            self.file = Some(open.create(true).write(true).mode(0o600).open(&self.path)?);
        }
        let text = format!("{:020}\n", at.0);
        self.file.as_ref().map_or(Ok(()), |file| file.write_all_at(text.as_bytes(), 0))
    }
}

/// Whether clocks of it run.
fn has_clocks(state: &ServiceState) -> bool {
    let all_ready = state.replicas.values().all(|r| r.phase == Phase::Ready);
    state.held.is_none() && (state.active_rollout().is_some() || !all_ready)
}

/// The latest moment at which anything was decided of a service.
fn latest(state: &DeckState) -> Timestamp {
    state.services.values().map(|service| service.now).max().unwrap_or_default()
}

/// A moment that a host keeps of another controller, as far as its clock can be followed.
pub(super) fn believable(there: Timestamp, here: Timestamp) -> Timestamp {
    there.min(here.plus(MOST_AHEAD))
}

impl Core {
    /// This process stood still since `awake`. What hosts have to say of it is heard only after this.
    pub(super) fn make_good(&mut self, awake: Timestamp) {
        let missed = now().since(awake);
        if missed >= STOOD_STILL {
            let why = format!("this controller stood still for {}", time::short(missed));
            self.forgive(|_| Some(awake), &why);
            self.forgive_upgrade(missed);
        }
    }

    /// Nothing that was heard since then could be written down.
    pub(super) fn make_good_unwritten(&mut self, since: Timestamp) {
        let missed = now().since(since);
        let why = format!("the journal could not be written for {}", time::short(missed));
        self.forgive(|_| Some(since), &why);
        self.forgive_upgrade(missed);
    }

    /// Before anything else in a new life: the time since the earlier one.
    pub(super) fn make_good_absence(&mut self) {
        let alive = self.alive.noted;
        // The machine's clock may have been set back between the two lives.
        clock::not_before(alive.max(latest(&self.state)));
        self.make_good_since(alive, |_| true);
        let upgrade = self.state.ledger.maintenance.upgrade.iter();
        let newest = upgrade.flat_map(|u| &u.hosts).map(|entry| entry.since).max();
        let missed = newest.map(|newest| now().since(newest.max(alive)));
        if let Some(missed) = missed.filter(|missed| *missed >= WAS_AWAY) {
            self.forgive_upgrade(missed);
        }
    }

    /// What was taken over may be of a controller whose clock is ahead of ours: ours goes on from there, since else no
    /// deadline would come nearer for as long as it was ahead.
    pub(super) fn follow_clock(&self) {
        let (here, there) = (now(), latest(&self.state));
        if there > here {
            clock::not_before(there);
            let ahead = time::short(there.since(here));
            let words = format!(
                "the clock that was there is {ahead} ahead of this one: times go on from there"
            );
            self.say(Severity::Warning, None, &words);
        }
    }

    /// Nobody looked after the upgrade of hosts for so long.
    fn forgive_upgrade(&mut self, missed: Duration) {
        if !self.upgrades_hosts() {
            return;
        }
        let missed_ms = u64::try_from(missed.as_millis()).unwrap_or(u64::MAX);
        match self.deck_happened(DeckEvent::UpgradeMissed { missed_ms }) {
            Ok(()) => self.wait_anew_for_commands(),
            Err(error) => tracing::error!(%error, "the journal cannot be written"),
        }
    }

    /// Whether an upgrade of hosts is under way.
    fn upgrades_hosts(&self) -> bool {
        self.state.ledger.maintenance.present_upgrade().is_some()
    }

    /// Nobody looked after these services since `alive`, or since the newest event of each, whichever is later.
    pub(super) fn make_good_since(
        &mut self,
        alive: Timestamp,
        which: impl Fn(&ServiceName) -> bool,
    ) {
        let here = now();
        let since = |state: &ServiceState| {
            let last = alive.max(state.now);
            (which(&state.service) && here.since(last) >= WAS_AWAY).then_some(last)
        };
        let away = self.state.services.values().filter_map(since).min();
        let Some(away) = away else { return };
        let why = format!("no controller was there for {}", time::short(here.since(away)));
        self.forgive(since, &why);
    }

    fn forgive(&mut self, since: impl Fn(&ServiceState) -> Option<Timestamp>, why: &str) {
        let services = self.state.services.iter().filter(|(_, state)| has_clocks(state));
        let missed: Vec<(ServiceName, Timestamp)> =
            services.filter_map(|(name, state)| Some((name.clone(), since(state)?))).collect();
        if !missed.is_empty() {
            tracing::warn!("{why}");
        }
        for (service, since) in missed {
            let (hosts, why) = (BTreeSet::new(), why.to_owned());
            let began = EventKind::HoldBegan { hosts, why, cause: HoldCause::Away };
            self.happened_at(&service, began, since);
            self.happened(&service, EventKind::HoldEnded);
        }
    }

    /// Writes down that this controller lives, while clocks run; `last`: it ends.
    pub(super) fn note_alive(&mut self, last: bool) {
        let at = now();
        let due = last || at.since(self.alive.noted) >= NOTE_EVERY || at < self.alive.noted;
        if due && (self.upgrades_hosts() || self.state.services.values().any(has_clocks)) {
            self.alive.note(at);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_ahead_is_followed_as_far_as_it_may_be_one() {
        let here = Timestamp(1_700_000_000_000);
        let mut state = DeckState::default();
        assert_eq!(latest(&state), Timestamp(0));
        for (service, ahead) in [("chat", 600_000), ("code", 5_000)] {
            let name: ServiceName = service.parse().unwrap();
            let mut service = ServiceState::new(name.clone());
            service.now = Timestamp(here.0 + ahead);
            state.services.insert(name, service);
        }
        assert_eq!(latest(&state), Timestamp(here.0 + 600_000));
        assert_eq!(believable(latest(&state), here), latest(&state));
        assert_eq!(believable(Timestamp(u64::MAX), here), here.plus(MOST_AHEAD));
        assert_eq!(believable(Timestamp(5), here), Timestamp(5), "one that is behind");
    }

    #[test]
    fn the_next_life_reads_when_this_one_was_last_seen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("alive");
        let mut first = Alive::open(&path);
        assert_eq!(first.noted, Timestamp(0), "there was none");
        first.note(Timestamp(1_700_000_000_000));
        first.note(Timestamp(1_700_000_002_000));
        assert_eq!(Alive::open(&path).noted, Timestamp(1_700_000_002_000));
        std::fs::write(&path, "what?").unwrap();
        assert_eq!(Alive::open(&path).noted, Timestamp(0));
    }
}
