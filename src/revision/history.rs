//! The releases of a deck, read back from its commits, and how they ended.

use std::collections::BTreeMap;

use git2::{Commit, ErrorCode, Oid, Sort};
use serde::{Deserialize, Serialize};

use super::RevisionError;
use super::commit::{REASON_TRAILER, RELEASE_TRAILER, SERVICE_TRAILER, signature};
use super::repo::{DeckRepo, RELEASE_REFS, revision};
use crate::base::{ReleaseNumber, Revision, ServiceName, Timestamp, text};
use crate::model::Observation;
use crate::rollout::Outcome;

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
    /// What its engines logged of their memory beside what was foreseen.
    pub memory: Vec<Observation>,
}

/// Most measurements kept of one release, the newest.
pub(super) const MAX_MEMORY: usize = 8;
/// Longest note that is read.
pub(super) const MAX_NOTE: usize = 64 << 10;

/// What a note holds.
#[derive(Default, Serialize, Deserialize)]
pub(super) struct Note {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) outcome: Option<Outcome>,
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
                memory: note.memory,
            });
        }
        Ok(entries)
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

    /// Reads, changes and writes a note; anew where the remote's notes were joined in between.
    fn change_note(&self, at: &Revision, change: impl Fn(&mut Note)) -> Result<(), RevisionError> {
        let oid = self.oid(at)?;
        let by = signature(&self.repo, None)?;
        let mut left = 5;
        loop {
            left -= 1;
            let mut note = self.note(oid);
            change(&mut note);
            let note = serde_json::to_string(&note)
                .map_err(|e| RevisionError::Git { message: e.to_string() })?;
            match self.repo.note(&by, &by, Some(NOTES_REF), oid, &note, true) {
                Err(e) if e.code() == ErrorCode::Modified && left > 0 => {}
                written => return Ok(written.map(drop)?),
            }
        }
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
