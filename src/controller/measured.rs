//! What was measured of loads, drains and throughput, by model, engine and kind of GPU: what plans take
//! their times from. A small file of its own beside the journal; losing it loses no intention.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::plan_steps;
use crate::base::{Attempt, ReplicaId, ReplicaKey, ServiceName, Timestamp};
use crate::rollout::{Phase, Release, ServiceState, Timings};

/// Measurements kept of each kind; the median of them is what plans say.
const KEPT: usize = 9;

/// Most combinations that are remembered; the one that was used longest ago goes first.
const MAX_KEYS: usize = 500;

/// Longest time that a killed engine takes to give its memory back. What took longer than that and the grace was
/// an outage (nobody could tell the host to stop it), and says nothing of the next stop.
const SLOWEST_KILL: Duration = Duration::from_secs(30);

/// The present format of the file.
const FORMAT: u32 = 1;

/// A model with an engine on a kind of device: `path | vllm | 2×NVIDIA H100`.
pub type Key = String;

/// Measurements of one combination.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Series {
    /// From start to first token, milliseconds, the newest last.
    loads: VecDeque<u64>,
    /// From the first to the last moment of a drain.
    drains: VecDeque<u64>,
    /// From SIGTERM to the end.
    stops: VecDeque<u64>,
    /// The most tokens a second that one replica was seen to generate.
    tokens_per_s: Option<f64>,
    /// When it was last written to.
    used: Timestamp,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct File {
    format: u32,
    series: BTreeMap<Key, Series>,
}

/// Combinations that go to a service's hosts, for whoever takes over.
const MAX_SHARED: usize = 32;

/// Longest name of a combination that is taken from elsewhere.
const MAX_NAME: usize = 1024;

/// What was measured of some combinations, as it goes from one controller to the next.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Measurements(BTreeMap<Key, Series>);

impl Measurements {
    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Without what no controller of ours would have written: it may come from anywhere.
    pub(super) fn bounded(mut self) -> Self {
        self.0.retain(|key, _| key.len() <= MAX_NAME);
        while self.0.len() > MAX_SHARED {
            self.0.pop_last();
        }
        for series in self.0.values_mut() {
            for kept in [&mut series.loads, &mut series.drains, &mut series.stops] {
                kept.truncate(KEPT);
            }
            series.tokens_per_s =
                series.tokens_per_s.filter(|rate| rate.is_finite() && *rate > 0.0);
        }
        self
    }
}

/// All measurements of a deck.
#[derive(Debug, Default)]
pub struct Measured {
    path: Option<PathBuf>,
    series: BTreeMap<Key, Series>,
    tokens: BTreeMap<(ServiceName, ReplicaId), (Timestamp, f64)>,
    /// What was under way while its service was held: its clock stood then, what it did went on.
    held: BTreeSet<(ServiceName, ReplicaKey, Attempt)>,
    /// Something was learnt that is not in the file.
    unsaved: bool,
}

impl Measured {
    /// Reads the file; what cannot be read is forgotten, with a word in the log.
    pub fn open(path: &Path) -> Self {
        let series = match std::fs::read(path) {
            Err(_) => BTreeMap::new(),
            Ok(bytes) => match serde_json::from_slice::<File>(&bytes) {
                Ok(file) if file.format == FORMAT => file.series,
                Ok(_) => BTreeMap::new(),
                Err(error) => {
                    tracing::warn!(%error, path = %path.display(), "measurements are forgotten");
                    BTreeMap::new()
                }
            },
        };
        Self { path: Some(path.to_owned()), series, ..Self::default() }
    }

    /// Writes the file if something was learnt. Not with every measurement: hundreds of replicas that come up
    /// together are one write.
    pub fn save(&mut self) {
        if !std::mem::take(&mut self.unsaved) {
            return;
        }
        let Some(path) = &self.path else { return };
        let file = File { format: FORMAT, series: self.series.clone() };
        let written = serde_json::to_vec(&file).map_err(std::io::Error::from).and_then(|bytes| {
            let new = path.with_extension("new");
            std::fs::write(&new, bytes)?;
            std::fs::rename(&new, path)
        });
        if let Err(error) = written {
            tracing::warn!(%error, path = %path.display(), "measurements cannot be written");
        }
    }

    /// What is known of the models of these releases, on whatever kind of device: of the combinations that were used
    /// last.
    pub(super) fn of_models<'a>(
        &self,
        releases: impl Iterator<Item = &'a Release>,
    ) -> Measurements {
        let models: BTreeSet<Key> = releases.map(plan_steps::key_of_model).collect();
        let is_theirs = |key: &Key| models.iter().any(|model| key.starts_with(model.as_str()));
        let mut found: Vec<_> = self.series.iter().filter(|(key, _)| is_theirs(key)).collect();
        found.sort_by_key(|(_, series)| std::cmp::Reverse(series.used));
        let found = found.into_iter().filter(|(key, _)| key.len() <= MAX_NAME).take(MAX_SHARED);
        Measurements(found.map(|(key, series)| (key.clone(), series.clone())).collect())
    }

    /// Takes what another controller measured, where what is known here is older.
    pub(super) fn adopt(&mut self, theirs: Measurements, now: Timestamp) {
        for (key, series) in theirs.0 {
            let used = series.used.min(now);
            if self.series.get(&key).is_some_and(|own| own.used >= used) {
                continue;
            }
            *self.entry(key, used) = Series { used, ..series };
            self.unsaved = true;
        }
    }

    fn entry(&mut self, key: Key, now: Timestamp) -> &mut Series {
        while self.series.len() >= MAX_KEYS && !self.series.contains_key(&key) {
            let oldest = self.series.iter().min_by_key(|(_, s)| s.used).map(|(k, _)| k.clone());
            let Some(oldest) = oldest else { break };
            self.series.remove(&oldest);
        }
        let series = self.series.entry(key).or_default();
        series.used = now;
        series
    }

    /// Learns from a change of a service's state. `key_of` names the combination of a replica.
    pub fn learn(
        &mut self,
        before: &ServiceState,
        after: &ServiceState,
        key_of: impl Fn(&Release, u32) -> Key,
    ) {
        let now = after.now;
        for (key, was) in &before.replicas {
            if !matches!(was.phase, Phase::Loading | Phase::Draining { .. } | Phase::Stopping) {
                continue;
            }
            let Some(release) = before.releases.get(&key.release) else { continue };
            let is = after.replica_of(was.id(*key));
            let phase = is.map(|r| &r.phase);
            let this = (before.service.clone(), *key, was.attempt);
            if after.held.is_some() {
                self.held.insert(this);
                continue;
            }
            if phase != Some(&was.phase) && self.held.remove(&this) {
                continue;
            }
            let since = |t: Timestamp| u64::try_from(now.since(t).as_millis()).unwrap_or(u64::MAX);
            let (which, took): (fn(&mut Series) -> &mut VecDeque<u64>, u64) =
                match (&was.phase, phase) {
                    (Phase::Loading, Some(Phase::Ready)) => match was.started {
                        // It had loaded long ago and was only not reached.
                        _ if was.proved => continue,
                        Some(started) => (|s| &mut s.loads, since(started)),
                        None => continue,
                    },
                    (Phase::Draining { .. }, Some(Phase::Stopping)) if was.drain.done => {
                        (|s| &mut s.drains, since(was.since))
                    }
                    // The drain's end and the stop come of one event: the end was not seen before.
                    (Phase::Draining { deadline }, Some(Phase::Stopping)) if now < *deadline => {
                        (|s| &mut s.drains, since(was.since))
                    }
                    (Phase::Stopping, None | Some(Phase::Stopped)) => {
                        let took = since(was.since);
                        let most = release.spec.rollout.stop_grace + SLOWEST_KILL;
                        if Duration::from_millis(took) > most {
                            continue;
                        }
                        (|s| &mut s.stops, took)
                    }
                    _ => continue,
                };
            let series = self.entry(key_of(release, key.replica), now);
            let series = which(series);
            series.push_back(took);
            while series.len() > KEPT {
                series.pop_front();
            }
            self.unsaved = true;
        }
    }

    /// Takes a replica's total of generated tokens.
    pub fn tokens(
        &mut self,
        service: &ServiceName,
        replica: ReplicaId,
        key: Key,
        total: f64,
        now: Timestamp,
    ) {
        let last = self.tokens.insert((service.clone(), replica), (now, total));
        let Some((at, before)) = last else { return };
        let seconds = now.since(at).as_secs_f64();
        // A restarted engine counts from zero; too short a time says nothing.
        if seconds < 1.0 || total <= before {
            return;
        }
        let rate = (total - before) / seconds;
        let series = self.entry(key, now);
        let known = series.tokens_per_s.unwrap_or(0.0);
        if rate > known {
            series.tokens_per_s = Some(rate);
            // Small steps up are not worth a write each; a larger one brings them along.
            self.unsaved |= rate > known * 1.05;
        }
    }

    /// Forgets the totals of replicas that are gone.
    pub fn keep_tokens_of(&mut self, lives: impl Fn(&ServiceName, &ReplicaId) -> bool) {
        self.tokens.retain(|(service, replica), _| lives(service, replica));
    }

    /// How long a load takes: the median.
    pub fn load(&self, key: &str) -> Option<Duration> {
        median(&self.series.get(key)?.loads)
    }

    /// Tokens a second of one replica, the most that was seen.
    pub fn tokens_per_s(&self, key: &str) -> Option<f64> {
        self.series.get(key)?.tokens_per_s
    }

    /// The times of a rollout: loads by the new replicas' combinations, drains and stops by the old one's.
    pub fn timings(
        &self,
        release: &Release,
        keys: &BTreeMap<ReplicaKey, Key>,
        old: Option<&Key>,
        lender: Option<&Key>,
    ) -> Timings {
        let indexes = 0..u32::try_from(release.replicas.len()).unwrap_or(0);
        let loads = indexes.filter_map(|replica| {
            let key = ReplicaKey { release: release.number, replica };
            Some((key, self.load(keys.get(&key)?)?))
        });
        let leaving = |key: Option<&Key>| {
            let series = key.and_then(|key| self.series.get(key));
            (series.and_then(|s| median(&s.drains)), series.and_then(|s| median(&s.stops)))
        };
        let (drain, stop) = leaving(old);
        Timings { loads: loads.collect(), drain, stop, lender: leaving(lender) }
    }
}

fn median(series: &VecDeque<u64>) -> Option<Duration> {
    let mut sorted: Vec<u64> = series.iter().copied().collect();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).map(|ms| Duration::from_millis(*ms))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::base::{Attempt, ReleaseNumber};
    use crate::rollout::{Hold, HoldCause, ReplicaState};

    #[test]
    fn the_median_of_what_was_measured_is_told_and_survives_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("measured.json");
        let mut measured = Measured::open(&path);
        assert_eq!(measured.load("m | vllm | H100"), None);
        let series = measured.entry("m | vllm | H100".to_owned(), Timestamp(1));
        series.loads.extend([60_000, 61_000, 900_000]);
        measured.unsaved = true;
        measured.save();
        let again = Measured::open(&path);
        assert_eq!(again.load("m | vllm | H100"), Some(Duration::from_secs(61)));
        assert_eq!(again.load("m | vllm | A100"), None);
    }

    #[test]
    fn the_highest_rate_of_tokens_counts_and_a_restarted_engine_does_not() {
        let mut measured = Measured::default();
        let service: ServiceName = "chat".parse().unwrap();
        let id = ReplicaId { release: ReleaseNumber(1), replica: 0, attempt: Attempt::FIRST };
        for (at, total) in [(0, 0.0), (5_000, 500.0), (10_000, 2_500.0), (15_000, 10.0)] {
            measured.tokens(&service, id, "k".to_owned(), total, Timestamp(at));
        }
        assert_eq!(measured.tokens_per_s("k"), Some(400.0));
    }

    #[test]
    fn a_load_during_which_nobody_listened_says_nothing() {
        let service: ServiceName = "chat".parse().unwrap();
        let deck = crate::base::DeckId(uuid::Uuid::from_u128(1));
        let release = crate::controller::saved::tests::release(deck, &service);
        let key = ReplicaKey { release: release.number, replica: 0 };
        let at = |phase, seconds: u64| {
            let mut state = ServiceState::new(service.clone());
            state.releases.insert(key.release, release.clone().into());
            let mut replica = ReplicaState::pending(Attempt::FIRST, Timestamp(0), Timestamp(0));
            replica.started = Some(Timestamp(0));
            replica.phase = phase;
            state.replicas.insert(key, replica.into());
            state.now = Timestamp(seconds * 1_000);
            state
        };
        let learnt = |held: bool| {
            let mut measured = Measured::default();
            let mut middle = at(Phase::Loading, 10);
            if held {
                let (since, why) = (Timestamp(6_000), "no controller was there".to_owned());
                let hosts = BTreeSet::new();
                let cause = HoldCause::Away;
                middle.held = Some(Hold { since, hosts, why, owed_from: since, cause });
            }
            measured.learn(&at(Phase::Loading, 5), &middle, |_, _| "k".to_owned());
            middle.held = None;
            measured.learn(&middle, &at(Phase::Ready, 60), |_, _| "k".to_owned());
            assert!(measured.held.is_empty(), "what is over is forgotten");
            measured.load("k")
        };
        assert_eq!(learnt(false), Some(Duration::from_secs(60)));
        assert_eq!(learnt(true), None);
    }

    #[test]
    fn what_was_measured_of_a_model_goes_on_elsewhere() {
        let service: ServiceName = "chat".parse().unwrap();
        let deck = crate::base::DeckId(uuid::Uuid::from_u128(1));
        let release = crate::controller::saved::tests::release(deck, &service);
        let mut measured = Measured::default();
        for (name, used) in [("/m | vllm | H100", 7), ("/m2 | vllm | H100", 8)] {
            measured.entry(name.to_owned(), Timestamp(used)).loads.push_back(used * 1_000);
        }
        for n in 0..2 * MAX_SHARED {
            measured.entry(format!("/m | vllm | {n}×A100"), Timestamp(1));
        }
        let shared = measured.of_models([&release].into_iter());
        assert_eq!(shared.0.len(), MAX_SHARED);
        assert_eq!(shared.clone().bounded(), shared);
        let mut other = Measured::default();
        other.adopt(shared.clone(), Timestamp(5));
        assert_eq!(other.load("/m | vllm | H100"), Some(Duration::from_secs(7)));
        assert_eq!(other.load("/m2 | vllm | H100"), None);
        assert!(other.unsaved);
        // What is newer here stays.
        let own = other.entry("/m | vllm | H100".to_owned(), Timestamp(9));
        own.loads = VecDeque::from([1_000]);
        other.adopt(shared, Timestamp(9));
        assert_eq!(other.load("/m | vllm | H100"), Some(Duration::from_secs(1)));
    }

    #[test]
    fn a_broken_file_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("measured.json");
        std::fs::write(&path, b"{ not json").unwrap();
        assert_eq!(Measured::open(&path).load("k"), None);
    }
}
