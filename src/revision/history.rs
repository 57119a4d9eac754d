//! The releases of a deck, read back from its commits, and how they ended.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use git2::{Commit, ErrorCode, Oid, Sort, Tree};
use serde::{Deserialize, Serialize};

use super::RevisionError;
use super::commit::{REASON_TRAILER, RELEASE_TRAILER, SERVICE_TRAILER, signature};
use super::repo::{DeckRepo, RELEASE_REFS, revision};
use crate::base::{ReleaseNumber, Revision, ServiceName, Timestamp, text};
use crate::model::Observation;
use crate::rollout::{Outcome, Stop};

pub(super) const NOTES_REF: &str = "refs/notes/gpudeck";
/// Commits looked at for trailers; more than any deck has, and a bound all the same.
const MAX_COMMITS: usize = 50_000;

/// One release in the history of a service.
#[derive(Clone, Debug, PartialEq)]
pub struct HistoryEntry {
    /// Its number.
    pub release: ReleaseNumber,
    /// Its commit.
    pub revision: Revision,
    /// Who.
    pub author: String,
    /// When.
    pub time: Timestamp,
    /// Why.
    pub reason: Option<String>,
    /// The commit's subject.
    pub subject: String,
    /// How its rollout ended; none while that is open, or if nobody wrote it down.
    pub outcome: Option<Outcome>,
    /// Who stopped the service while it was served, or on its way.
    pub stop: Option<Stop>,
    /// What its engines logged of their memory beside what was foreseen.
    pub memory: Vec<Observation>,
}

/// Most measurements kept of one release, the newest.
pub(super) const MAX_MEMORY: usize = 8;
/// How often a note is tried again, and with which pauses: the loop waits for it.
const NOTE_ATTEMPTS: usize = 5;
const BETWEEN_NOTE_ATTEMPTS: Duration = Duration::from_millis(10);
/// Longest note that is read.
pub(super) const MAX_NOTE: usize = 64 << 10;

/// What a note holds.
#[derive(Default, Serialize, Deserialize)]
pub(super) struct Note {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) outcome: Option<Outcome>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) stop: Option<Stop>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) memory: Vec<Observation>,
}

/// The trailers of a commit of ours.
#[derive(Default)]
pub(super) struct Trailers {
    pub(super) release: Option<ReleaseNumber>,
    pub(super) service: Option<ServiceName>,
    pub(super) reason: Option<String>,
}

impl DeckRepo {
    /// The releases of a service, newest first, at most `limit`.
    pub fn history(
        &self,
        service: &ServiceName,
        limit: usize,
    ) -> Result<Vec<HistoryEntry>, RevisionError> {
        let mut entries = Vec::new();
        for (release, oid) in self.release_commits()? {
            if entries.len() >= limit {
                break;
            }
            let commit = self.repo.find_commit(oid)?;
            let trailers = trailers(&commit);
            if trailers.service.as_ref() != Some(service) {
                continue;
            }
            let seconds = u64::try_from(commit.time().seconds()).unwrap_or(0);
            let note = self.note(oid);
            entries.push(HistoryEntry {
                release,
                revision: revision(oid),
                author: text::clean(&String::from_utf8_lossy(commit.author().name_bytes()), 64),
                time: Timestamp(seconds.saturating_mul(1_000)),
                reason: trailers.reason,
                subject: text::clean(
                    &String::from_utf8_lossy(commit.summary_bytes().unwrap_or_default()),
                    100,
                ),
                outcome: note.outcome,
                stop: note.stop,
                memory: note.memory,
            });
        }
        Ok(entries)
    }

    /// The services that a release was ever of, whether they have a spec in the work tree or not.
    pub fn released_services(&self) -> Result<BTreeSet<ServiceName>, RevisionError> {
        let mut services = BTreeSet::new();
        for (_, oid) in self.release_commits()? {
            services.extend(trailers(&self.repo.find_commit(oid)?).service);
        }
        Ok(services)
    }

    /// The number for the next release of the deck: one more than any that was ever given out here.
    pub fn next_release(&self) -> Result<ReleaseNumber, RevisionError> {
        let newest = self.release_commits()?.first().map_or(0, |(number, _)| number.0);
        Ok(ReleaseNumber(newest.saturating_add(1)))
    }

    /// Writes down how a release ended, in the note on its commit; a later one replaces it.
    pub fn set_outcome(&self, at: &Revision, outcome: &Outcome) -> Result<(), RevisionError> {
        self.change_note(at, |note| note.outcome = Some(outcome.clone()))
    }

    /// Writes down who stopped the service while a release was served, in the note on its commit.
    pub fn set_stop(&self, at: &Revision, stop: &Stop) -> Result<(), RevisionError> {
        self.change_note(at, |note| note.stop = Some(stop.clone()))
    }

    /// Writes down what an engine of a release logged of its memory, in the note on its commit. The
    /// same once more changes nothing.
    pub fn add_memory(&self, at: &Revision, seen: &Observation) -> Result<(), RevisionError> {
        if self.note(self.oid(at)?).memory.last() == Some(seen) {
            return Ok(());
        }
        self.change_note(at, |note| {
            note.memory.push(seen.clone());
            let over = note.memory.len().saturating_sub(MAX_MEMORY);
            note.memory.drain(..over);
        })
    }

    /// Reads, changes and writes a note; anew where the remote's notes were joined in between, or another program
    /// holds the notes for a moment. One that says so already is not written.
    fn change_note(&self, at: &Revision, change: impl Fn(&mut Note)) -> Result<(), RevisionError> {
        let oid = self.oid(at)?;
        let mut left = NOTE_ATTEMPTS;
        loop {
            left -= 1;
            match self.change_note_once(oid, &change) {
                Err(RevisionError::Moved | RevisionError::Locked { .. }) if left > 0 => {
                    std::thread::sleep(BETWEEN_NOTE_ATTEMPTS);
                }
                done => return done,
            }
        }
    }

    fn change_note_once(&self, oid: Oid, change: impl Fn(&mut Note)) -> Result<(), RevisionError> {
        let words = "gpudeck: note";
        let tip = self.maybe_oid(NOTES_REF)?;
        let parent = tip.map(|tip| self.repo.find_commit(tip)).transpose()?;
        let base = match &parent {
            Some(parent) => parent.tree()?,
            None => self.repo.find_tree(self.repo.treebuilder(None)?.write()?)?,
        };
        let place = self.note_place(&base, oid)?;
        let present = base.get_path(Path::new(&place)).ok();
        let mut note = match &present {
            Some(entry) => self.note_in(entry.id())?.unwrap_or_default(),
            None => Note::default(),
        };
        change(&mut note);
        let blob = self.write_note(&note)?;
        if present.is_some_and(|entry| entry.id() == blob) {
            return Ok(());
        }
        let tree = git2::build::TreeUpdateBuilder::new()
            .upsert(place, blob, git2::FileMode::Blob)
            .create_updated(&self.repo, &base)?;
        let tree = self.repo.find_tree(tree)?;
        let by = signature(&self.repo, None)?;
        let parents: Vec<&Commit<'_>> = parent.iter().collect();
        let made = self.repo.commit(None, &by, &by, "Note of a release", &tree, &parents)?;
        // Only if nobody else has noted anything since it was read.
        match tip {
            Some(tip) => self.repo.reference_matching(NOTES_REF, made, true, tip, words)?,
            None => self.repo.reference(NOTES_REF, made, false, words).map_err(|e| {
                if e.code() == ErrorCode::Exists { RevisionError::Moved } else { e.into() }
            })?,
        };
        Ok(())
    }

    /// Where the note on a commit is, or belongs: `git` puts many of them into directories.
    fn note_place(&self, notes: &Tree<'_>, about: Oid) -> Result<String, RevisionError> {
        let name = about.to_string();
        let (mut place, mut rest) = (String::new(), name.as_str());
        let mut tree = notes.clone();
        while let Some((first, others)) = rest.split_at_checked(2) {
            let below = tree.get_name(first).filter(|e| e.kind() == Some(git2::ObjectType::Tree));
            let Some(below) = below.map(|entry| entry.id()) else { break };
            place.push_str(first);
            place.push('/');
            rest = others;
            tree = self.repo.find_tree(below)?;
        }
        place.push_str(rest);
        Ok(place)
    }

    /// Every release with its commit, newest number first. A clone has the commits but not our
    /// references, so both are looked at; where they differ, the reference is right, and among
    /// commits of one number (a cherry-pick copies trailers) the oldest.
    pub(super) fn release_commits(&self) -> Result<Vec<(ReleaseNumber, Oid)>, RevisionError> {
        let mut found: BTreeMap<ReleaseNumber, Oid> = BTreeMap::new();
        if let Some(head) = self.head_oid()? {
            let mut walk = self.repo.revwalk()?;
            walk.set_sorting(Sort::TOPOLOGICAL)?;
            walk.push(head)?;
            for oid in walk.take(MAX_COMMITS) {
                let oid = oid?;
                if let Some(number) = trailers(&self.repo.find_commit(oid)?).release {
                    found.insert(number, oid);
                }
            }
        }
        for reference in self.repo.references_glob(&format!("{RELEASE_REFS}*"))? {
            let reference = reference?;
            let number = std::str::from_utf8(reference.name_bytes())
                .ok()
                .and_then(|n| n.strip_prefix(RELEASE_REFS)?.parse().ok());
            if let (Some(number), Ok(commit)) = (number, reference.peel_to_commit()) {
                found.insert(number, commit.id());
            }
        }
        Ok(found.into_iter().rev().collect())
    }

    /// A note that is missing or written by somebody else's hand says nothing, and is no error.
    fn note(&self, oid: Oid) -> Note {
        match self.repo.find_note(Some(NOTES_REF), oid) {
            Ok(note) => Some(note.message_bytes())
                .filter(|bytes| bytes.len() <= MAX_NOTE)
                .and_then(|bytes| serde_json::from_slice::<Note>(bytes).ok())
                .unwrap_or_default(),
            Err(e) if e.code() == ErrorCode::NotFound => Note::default(),
            Err(error) => {
                tracing::warn!(%error, "a note of the deck cannot be read");
                Note::default()
            }
        }
    }
}

/// Reads the trailers of a commit; those that do not parse are as if they were not there.
pub(super) fn trailers(commit: &Commit<'_>) -> Trailers {
    let mut found = Trailers::default();
    let Ok(parsed) = git2::message_trailers_bytes(commit.message_bytes()) else { return found };
    for (key, value) in parsed.iter() {
        let Ok(value) = std::str::from_utf8(value) else { continue };
        match key {
            k if k == RELEASE_TRAILER.as_bytes() => {
                found.release =
                    value.strip_prefix('r').and_then(|n| n.parse().ok().map(ReleaseNumber));
            }
            k if k == SERVICE_TRAILER.as_bytes() => found.service = value.parse().ok(),
            k if k == REASON_TRAILER.as_bytes() => found.reason = Some(text::clean(value, 500)),
            _ => {}
        }
    }
    found
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::revision::{DeckText, ReleaseCommit, SpecText};

    fn deck(dir: &Path) -> (DeckRepo, Revision) {
        let deck = DeckRepo::init(dir).unwrap();
        std::fs::write(dir.join("deck.toml"), "name = \"test\"\n").unwrap();
        std::fs::create_dir(dir.join("services")).unwrap();
        std::fs::write(dir.join("services/chat.toml"), "a = 1\n").unwrap();
        let made = deck.commit_service(&ReleaseCommit {
            service: &"chat".parse().unwrap(),
            release: ReleaseNumber(1),
            subject: "Apply chat",
            reason: None,
            author: None,
            deck: DeckText::WorkTree,
            spec: SpecText::WorkTree,
        });
        (deck, made.unwrap())
    }

    fn outcome_of(deck: &DeckRepo) -> Option<Outcome> {
        let history = deck.history(&"chat".parse().unwrap(), 1).unwrap();
        history.into_iter().next().unwrap().outcome
    }

    #[test]
    fn what_is_noted_between_reading_and_writing_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let (deck, at) = deck(dir.path());
        let other = DeckRepo::open(dir.path()).unwrap();
        let first = Cell::new(true);
        deck.change_note(&at, |note| {
            if first.replace(false) {
                // As a fetch does that joins the remote's notes just now.
                other.set_outcome(&at, &Outcome::Completed).unwrap();
            }
            note.memory.clear();
        })
        .unwrap();
        assert_eq!(outcome_of(&deck), Some(Outcome::Completed));
    }

    #[test]
    fn a_held_lock_is_told_and_the_same_once_more_is_no_commit() {
        let dir = tempfile::tempdir().unwrap();
        let (deck, at) = deck(dir.path());
        deck.set_outcome(&at, &Outcome::Completed).unwrap();
        let tip = deck.maybe_oid(NOTES_REF).unwrap();
        deck.set_outcome(&at, &Outcome::Completed).unwrap();
        assert_eq!(deck.maybe_oid(NOTES_REF).unwrap(), tip);
        let lock = dir.path().join(".git/refs/notes/gpudeck.lock");
        std::fs::write(&lock, "").unwrap();
        let failed = Outcome::Failed { why: "no".to_owned() };
        let refused = deck.set_outcome(&at, &failed).unwrap_err();
        assert!(matches!(refused, RevisionError::Locked { .. }), "{refused}");
        std::fs::remove_file(&lock).unwrap();
        deck.set_outcome(&at, &failed).unwrap();
        assert_eq!(outcome_of(&deck), Some(failed));
    }

    #[test]
    fn notes_that_git_put_into_directories_are_changed_where_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let (deck, at) = deck(dir.path());
        deck.set_outcome(&at, &Outcome::Completed).unwrap();
        let tip = deck.maybe_oid(NOTES_REF).unwrap().unwrap();
        let flat = deck.repo.find_commit(tip).unwrap().tree().unwrap();
        let blob = flat.get_name(&at.0).unwrap().id();
        let (first, rest) = at.0.split_at(2);
        let fanned = git2::build::TreeUpdateBuilder::new()
            .remove(at.0.as_str())
            .upsert(format!("{first}/{rest}"), blob, git2::FileMode::Blob)
            .create_updated(&deck.repo, &flat)
            .unwrap();
        let fanned = deck.repo.find_tree(fanned).unwrap();
        let by = signature(&deck.repo, None).unwrap();
        let parent = deck.repo.find_commit(tip).unwrap();
        deck.repo.commit(Some(NOTES_REF), &by, &by, "fan", &fanned, &[&parent]).unwrap();
        assert_eq!(outcome_of(&deck), Some(Outcome::Completed));
        let failed = Outcome::Failed { why: "no".to_owned() };
        deck.set_outcome(&at, &failed).unwrap();
        assert_eq!(outcome_of(&deck), Some(failed));
        let tip = deck.maybe_oid(NOTES_REF).unwrap().unwrap();
        assert_eq!(deck.repo.find_commit(tip).unwrap().tree().unwrap().len(), 1);
    }
}
