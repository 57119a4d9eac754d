//! Committing a release.

use std::path::Path;

use git2::{ErrorCode, IndexEntry, IndexTime, Oid, Repository, RepositoryState, Signature};

use super::files::{self, DECK_FILE};
use super::repo::{DeckRepo, release_ref, revision};
use super::sign::Signing;
use super::{RevisionError, service_file};
use crate::base::{ReleaseNumber, Revision, ServiceName, text};

pub(super) const RELEASE_TRAILER: &str = "Gpudeck-Release";
pub(super) const SERVICE_TRAILER: &str = "Gpudeck-Service";
pub(super) const REASON_TRAILER: &str = "Gpudeck-Reason";

/// A release to be committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReleaseCommit<'a> {
    /// The service.
    pub service: &'a ServiceName,
    /// The release's number, from [`DeckRepo::next_release`].
    pub release: ReleaseNumber,
    /// What it is, one line: `Apply chat`.
    pub subject: &'a str,
    /// Why, in the author's words.
    pub reason: Option<&'a str>,
    /// Who asked for it: a Unix user. None: whoever runs this.
    pub author: Option<&'a str>,
    /// Which spec it is.
    pub spec: SpecText<'a>,
}

/// The spec that a release is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpecText<'a> {
    /// Whatever the work tree holds.
    WorkTree,
    /// As it was read and planned with; another text in the work tree is [`RevisionError::Changed`].
    Read(&'a str),
    /// This one, of an earlier release. The work tree is not looked at.
    Earlier(&'a str),
}

impl DeckRepo {
    /// Commits `deck.toml` and the service's spec as a release to the current branch, and nothing
    /// else that may have been changed. There is always a commit, also without a change. Repeating
    /// a commit that was made already gives the one that was made.
    pub fn commit_service(&self, commit: &ReleaseCommit<'_>) -> Result<Revision, RevisionError> {
        let repo = &self.repo;
        self.check_can_commit()?;
        let spec_file = service_file(commit.service);
        let deck = files::read_text(&self.root, DECK_FILE)?;
        let spec = match commit.spec {
            SpecText::Earlier(spec) => spec.to_owned(),
            SpecText::WorkTree => files::read_text(&self.root, &spec_file)?,
            SpecText::Read(known) => {
                let present = files::read_text(&self.root, &spec_file)?;
                if known != present {
                    return Err(RevisionError::Changed { file: spec_file });
                }
                present
            }
        };
        let head = match self.head_oid()? {
            Some(oid) => Some(repo.find_commit(oid)?),
            None => None,
        };
        let deck_blob = repo.blob(deck.as_bytes())?;
        let spec_blob = repo.blob(spec.as_bytes())?;
        let base = match &head {
            Some(head) => head.tree()?,
            None => repo.find_tree(repo.treebuilder(None)?.write()?)?,
        };
        let tree_id = git2::build::TreeUpdateBuilder::new()
            .upsert(DECK_FILE, deck_blob, git2::FileMode::Blob)
            .upsert(spec_file.as_str(), spec_blob, git2::FileMode::Blob)
            .create_updated(repo, &base)?;
        if let Some(made) = self.already_made(commit, spec_blob)? {
            self.bring_along(&made, head.as_ref().map(git2::Commit::id), commit.subject)?;
            return Ok(made);
        }

        let committer = signature(repo, None)?;
        let author = match commit.author {
            Some(user) => signature(repo, Some(user))?,
            None => committer.clone(),
        };
        let parents: Vec<&git2::Commit<'_>> = head.iter().collect();
        let tree = repo.find_tree(tree_id)?;
        let words = message(commit);
        let oid = match Signing::of(repo)? {
            None => repo.commit(None, &author, &committer, &words, &tree, &parents)?,
            Some(signing) => {
                let content =
                    repo.commit_create_buffer(&author, &committer, &words, &tree, &parents)?;
                let content = std::str::from_utf8(&content)
                    .map_err(|_| RevisionError::Signing { why: "it is not text".to_owned() })?
                    .to_owned();
                let signature = signing.sign(&content)?;
                repo.commit_signed(&content, signature.trim_end(), Some("gpgsig"))?
            }
        };
        // The number first: what is on the branch is not taken back, and one that was given out is found there.
        let number = release_ref(commit.release);
        match repo.reference(&number, oid, false, "gpudeck: release") {
            Err(e) if e.code() == ErrorCode::Exists => {
                return Err(RevisionError::Taken { release: commit.release });
            }
            made => made.map(drop)?,
        }
        let from = head.as_ref().map(git2::Commit::id);
        if let Err(error) = self.advance_head(from, oid, commit.subject) {
            if let Ok(mut made) = repo.find_reference(&number)
                && made.target() == Some(oid)
            {
                made.delete()?;
            }
            return Err(error);
        }
        self.refresh_index(&[(DECK_FILE, deck_blob), (&spec_file, spec_blob)])?;
        Ok(revision(oid))
    }

    /// Moves the branch to a commit that was made aside, if it is still where it was.
    fn advance_head(&self, from: Option<Oid>, to: Oid, what: &str) -> Result<(), RevisionError> {
        let head = self.repo.find_reference("HEAD")?;
        let branch = match head.symbolic_target() {
            Ok(Some(branch)) => branch.to_owned(),
            _ => return Err(RevisionError::Detached),
        };
        let log = format!("commit: {}", text::clean(what, 100));
        let moved = match from {
            Some(from) => self.repo.reference_matching(&branch, to, true, from, &log),
            None => self.repo.reference(&branch, to, false, &log),
        };
        match moved {
            Err(e) if e.code() == ErrorCode::Exists => Err(RevisionError::Moved),
            moved => Ok(moved.map(drop)?),
        }
    }

    fn check_can_commit(&self) -> Result<(), RevisionError> {
        let what = match self.repo.state() {
            RepositoryState::Clean => None,
            RepositoryState::Merge => Some("merge"),
            RepositoryState::Revert | RepositoryState::RevertSequence => Some("revert"),
            RepositoryState::CherryPick | RepositoryState::CherryPickSequence => {
                Some("cherry-pick")
            }
            RepositoryState::Bisect => Some("bisect"),
            RepositoryState::Rebase
            | RepositoryState::RebaseInteractive
            | RepositoryState::RebaseMerge => Some("rebase"),
            RepositoryState::ApplyMailbox | RepositoryState::ApplyMailboxOrRebase => {
                Some("patch series")
            }
        };
        if let Some(what) = what {
            return Err(RevisionError::Busy { what: what.to_owned() });
        }
        if self.repo.head_detached()? {
            return Err(RevisionError::Detached);
        }
        Ok(())
    }

    /// The commit of this release number, if it is of this service with just this spec: then a
    /// commit was repeated after a crash. Anything else under the number is a conflict.
    fn already_made(
        &self,
        commit: &ReleaseCommit<'_>,
        spec_blob: Oid,
    ) -> Result<Option<Revision>, RevisionError> {
        let Some(found) = self.release(commit.release)? else { return Ok(None) };
        let oid = self.oid(&found)?;
        let made = self.repo.find_commit(oid)?;
        let same_service = super::history::trailers(&made).service.as_ref() == Some(commit.service);
        let file = service_file(commit.service);
        let same_spec =
            made.tree()?.get_path(Path::new(&file)).is_ok_and(|entry| entry.id() == spec_blob);
        if same_service && same_spec {
            Ok(Some(found))
        } else {
            Err(RevisionError::Taken { release: commit.release })
        }
    }

    /// A release that was cut off before its branch was moved: if that is still where the release came from, it follows.
    fn bring_along(
        &self,
        made: &Revision,
        head: Option<Oid>,
        what: &str,
    ) -> Result<(), RevisionError> {
        let oid = self.oid(made)?;
        if self.repo.find_commit(oid)?.parent_ids().next() == head && head != Some(oid) {
            self.advance_head(head, oid, what)?;
        }
        Ok(())
    }

    /// Lets the index agree with what was committed, so that `git status` shows these files as
    /// clean; whatever else is staged stays staged. The commit stands even if another Git program
    /// holds the index just now: then only `git status` is behind.
    fn refresh_index(&self, files: &[(&str, Oid)]) -> Result<(), RevisionError> {
        let mut index = self.repo.index()?;
        index.read(false)?;
        for (file, blob) in files {
            index.add(&entry_of(file, *blob))?;
        }
        match index.write() {
            Err(e) if e.code() == ErrorCode::Locked => {
                tracing::warn!("the deck's Git index is locked; `git status` will be behind");
                Ok(())
            }
            other => Ok(other?),
        }
    }
}

/// What the index says of a file that was committed. When the file was changed is left open, so that Git looks.
fn entry_of(file: &str, blob: Oid) -> IndexEntry {
    IndexEntry {
        ctime: IndexTime::new(0, 0),
        mtime: IndexTime::new(0, 0),
        dev: 0,
        ino: 0,
        mode: git2::FileMode::Blob.into(),
        uid: 0,
        gid: 0,
        file_size: 0,
        id: blob,
        flags: 0,
        flags_extended: 0,
        path: file.as_bytes().to_vec(),
    }
}

/// Subject and trailers. Everything is one line each, so that no text can pose as a trailer.
fn message(commit: &ReleaseCommit<'_>) -> String {
    let subject = text::clean(commit.subject, 100);
    let reason = commit.reason.map(|r| text::clean(r, 500)).filter(|r| !r.trim().is_empty());
    let reason = reason.map(|r| format!("{REASON_TRAILER}: {}\n", r.trim())).unwrap_or_default();
    format!(
        "{}\n\n{reason}{SERVICE_TRAILER}: {}\n{RELEASE_TRAILER}: {}\n",
        subject.trim(),
        commit.service,
        commit.release
    )
}

/// Git's configured name and address, else `user@machine`; a named user that is not the one who
/// runs this gets `user@machine` too.
pub(super) fn signature(
    repo: &Repository,
    user: Option<&str>,
) -> Result<Signature<'static>, RevisionError> {
    let own = own_user();
    if user.is_none_or(|u| u == own) {
        match repo.signature() {
            Ok(configured) => return Ok(configured),
            Err(e) if e.code() == ErrorCode::NotFound => {}
            Err(e) => return Err(e.into()),
        }
    }
    let name: String =
        text::clean(user.unwrap_or(&own), 64).chars().filter(|c| !matches!(c, '<' | '>')).collect();
    let name = if name.trim().is_empty() { "unknown" } else { name.trim() };
    let machine = sysinfo::System::host_name().unwrap_or_else(|_| "localhost".to_owned());
    Ok(Signature::now(name, &format!("{name}@{machine}"))?)
}

fn own_user() -> String {
    ["USER", "LOGNAME"]
        .iter()
        .find_map(|v| std::env::var(v).ok().filter(|u| !u.is_empty()))
        .unwrap_or_else(|| format!("uid-{}", rustix::process::getuid().as_raw()))
}
