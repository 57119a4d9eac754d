//! The notes of two clones made one: what each says of a release is kept.

use std::collections::{BTreeMap, BTreeSet};

use git2::{ErrorCode, ObjectType, Oid, TreeWalkMode, TreeWalkResult};

use super::RevisionError;
use super::commit::signature;
use super::history::{MAX_MEMORY, MAX_NOTE, NOTES_REF, Note};
use super::repo::DeckRepo;

/// How often it is tried again when a note was written at the same moment.
const ATTEMPTS: usize = 5;

/// Blobs by the commit that they are about.
type Notes = BTreeMap<Oid, Oid>;

impl DeckRepo {
    /// Joins notes that were fetched with ours. The result comes after both, so that it can be sent without
    /// putting anything back that somebody else has sent.
    pub(super) fn join_notes(&self, fetched: &str) -> Result<(), RevisionError> {
        let Some(theirs) = self.maybe_oid(fetched)? else { return Ok(()) };
        let mut left = ATTEMPTS;
        loop {
            left -= 1;
            match self.join_notes_once(theirs) {
                // The controller noted something just now.
                Err(RevisionError::Moved | RevisionError::Locked { .. }) if left > 0 => {
                    std::thread::sleep(std::time::Duration::from_millis(20));
                }
                done => return done,
            }
        }
    }

    fn join_notes_once(&self, theirs: Oid) -> Result<(), RevisionError> {
        let words = "gpudeck: notes of the remote";
        let Some(ours) = self.maybe_oid(NOTES_REF)? else {
            return match self.repo.reference(NOTES_REF, theirs, false, words) {
                Err(e) if e.code() == ErrorCode::Exists => Err(RevisionError::Moved),
                made => Ok(made.map(drop)?),
            };
        };
        if ours == theirs || self.repo.graph_descendant_of(ours, theirs)? {
            return Ok(());
        }
        let to = if self.repo.graph_descendant_of(theirs, ours)? {
            theirs
        } else {
            self.merge_notes(ours, theirs)?
        };
        self.repo.reference_matching(NOTES_REF, to, true, ours, words)?;
        Ok(())
    }

    fn merge_notes(&self, ours: Oid, theirs: Oid) -> Result<Oid, RevisionError> {
        let base = match self.repo.merge_base(ours, theirs) {
            Ok(base) => self.notes_at(base)?,
            // Each clone began its notes by itself.
            Err(e) if e.code() == ErrorCode::NotFound => Notes::new(),
            Err(e) => return Err(e.into()),
        };
        let (mine, other) = (self.notes_at(ours)?, self.notes_at(theirs)?);
        let mut tree = self.repo.treebuilder(None)?;
        let about: BTreeSet<Oid> = mine.keys().chain(other.keys()).copied().collect();
        for commit in about {
            let was = base.get(&commit);
            let blob = match (mine.get(&commit), other.get(&commit)) {
                (Some(mine), Some(other)) if mine == other || Some(other) == was => *mine,
                (Some(mine), Some(other)) if Some(mine) == was => *other,
                (Some(mine), Some(other)) => self.merge_note(was.copied(), *mine, *other)?,
                (Some(only), None) | (None, Some(only)) => *only,
                (None, None) => continue,
            };
            tree.insert(commit.to_string(), blob, git2::FileMode::Blob.into())?;
        }
        let tree = self.repo.find_tree(tree.write()?)?;
        let by = signature(&self.repo, None)?;
        let parents = [self.repo.find_commit(ours)?, self.repo.find_commit(theirs)?];
        let parents: Vec<&git2::Commit<'_>> = parents.iter().collect();
        Ok(self.repo.commit(None, &by, &by, "Notes of two decks joined", &tree, &parents)?)
    }

    /// The outcome of whoever has one, of both that which changed, else what the remote has; everything that was
    /// logged of memory.
    fn merge_note(&self, was: Option<Oid>, mine: Oid, other: Oid) -> Result<Oid, RevisionError> {
        // What is no note of ours is kept out of the way of what is one.
        let Some(other) = self.note_in(other)? else { return Ok(mine) };
        let Some(own) = self.note_in(mine)? else { return self.write_note(&other) };
        let was = was.map(|b| self.note_in(b)).transpose()?.flatten().unwrap_or_default();
        let outcome = match (own.outcome, other.outcome) {
            (Some(own), Some(other)) if Some(&other) == was.outcome.as_ref() => Some(own),
            (own, other) => other.or(own),
        };
        let mut memory = other.memory;
        for seen in own.memory {
            if !memory.contains(&seen) {
                memory.push(seen);
            }
        }
        let over = memory.len().saturating_sub(MAX_MEMORY);
        memory.drain(..over);
        // A release is stopped once at most.
        let stop = other.stop.or(own.stop);
        self.write_note(&Note { outcome, stop, memory })
    }

    pub(super) fn write_note(&self, note: &Note) -> Result<Oid, RevisionError> {
        let text = serde_json::to_string(note)
            .map_err(|e| RevisionError::Git { message: e.to_string() })?;
        Ok(self.repo.blob(text.as_bytes())?)
    }

    /// None: it is not a note of ours.
    pub(super) fn note_in(&self, blob: Oid) -> Result<Option<Note>, RevisionError> {
        // The size is asked first: a blob is loaded whole.
        if self.repo.odb()?.read_header(blob)?.0 > MAX_NOTE {
            return Ok(None);
        }
        Ok(serde_json::from_slice(self.repo.find_blob(blob)?.content()).ok())
    }

    /// The notes in a commit, also those that `git` put into directories.
    fn notes_at(&self, commit: Oid) -> Result<Notes, RevisionError> {
        let mut notes = Notes::new();
        self.repo.find_commit(commit)?.tree()?.walk(TreeWalkMode::PreOrder, |dir, entry| {
            let name = String::from_utf8_lossy(entry.name_bytes());
            let about = format!("{dir}{name}").replace('/', "");
            if entry.kind() == Some(ObjectType::Blob)
                && about.len() == 40
                && let Ok(about) = Oid::from_str(&about)
            {
                notes.insert(about, entry.id());
            }
            TreeWalkResult::Ok
        })?;
        Ok(notes)
    }
}
