//! Committing a release.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use git2::{
    ErrorCode, FileMode, Index, IndexEntry, IndexTime, Oid, Repository, RepositoryState, Signature,
};

use super::files::{self, DECK_FILE};
use super::repo::{DeckRepo, release_ref, revision};
use super::sign::Signing;
use super::{RevisionError, service_file};
use crate::base::{ReleaseNumber, Revision, ServiceName, text};

pub(super) const RELEASE_TRAILER: &str = "Gpudeck-Release";
pub(super) const SERVICE_TRAILER: &str = "Gpudeck-Service";
pub(super) const REASON_TRAILER: &str = "Gpudeck-Reason";

/// So long another program that holds the index is waited for, and with which pauses.
const INDEX_PATIENCE: Duration = Duration::from_secs(2);
const BETWEEN_INDEX_ATTEMPTS: Duration = Duration::from_millis(25);

/// The index is looked after for so many releases.
const MOST_BEHIND: usize = 20;

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
    /// Which `deck.toml` stands beside it.
    pub deck: DeckText<'a>,
    /// Which spec it is.
    pub spec: SpecText<'a>,
}

/// The `deck.toml` that is committed with a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeckText<'a> {
    /// Whatever the work tree holds.
    WorkTree,
    /// As it was read and planned with; another text in the work tree is [`RevisionError::Changed`].
    Read(&'a str),
    /// The one that was committed last. The work tree is not looked at.
    AsInGit,
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
    /// The text of `deck.toml` that is committed; none: it stays as it is in Git.
    fn deck_to_commit(&self, deck: DeckText<'_>) -> Result<Option<String>, RevisionError> {
        if deck == DeckText::AsInGit {
            return Ok(None);
        }
        self.check_unfiltered(DECK_FILE)?;
        let present = files::read_text(&self.root, DECK_FILE)?;
        if matches!(deck, DeckText::Read(known) if known != present) {
            return Err(RevisionError::Changed { file: DECK_FILE.to_owned() });
        }
        Ok(Some(present))
    }

    /// Commits the service's spec, and `deck.toml` beside it, as a release to the current branch, and nothing
    /// else that may have been changed. There is always a commit, also without a change. Repeating
    /// a commit that was made already gives the one that was made.
    pub fn commit_service(&self, commit: &ReleaseCommit<'_>) -> Result<Revision, RevisionError> {
        let repo = &self.repo;
        self.check_can_commit()?;
        let spec_file = service_file(commit.service);
        self.check_unfiltered(&spec_file)?;
        let deck = self.deck_to_commit(commit.deck)?;
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
        let spec_blob = repo.blob(spec.as_bytes())?;
        let base = match &head {
            Some(head) => head.tree()?,
            None => repo.find_tree(repo.treebuilder(None)?.write()?)?,
        };
        let mut committed = vec![(spec_file.as_str(), spec_blob, mode_in(&base, &spec_file))];
        if let Some(deck) = deck {
            let blob = repo.blob(deck.as_bytes())?;
            committed.push((DECK_FILE, blob, mode_in(&base, DECK_FILE)));
        }
        let mut tree = git2::build::TreeUpdateBuilder::new();
        for (file, blob, mode) in &committed {
            tree.upsert(*file, *blob, *mode);
        }
        let tree_id = tree.create_updated(repo, &base)?;
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
        // The release stands, whatever is with the index.
        if let Err(error) = self.refresh_index(&committed) {
            tracing::warn!(%error, "the deck's Git index is behind");
        }
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
        self.index().map(drop)
    }

    /// What would be committed is the file as it lies there, and Git would take it for an edit for ever.
    fn check_unfiltered(&self, file: &str) -> Result<(), RevisionError> {
        let flags = git2::AttrCheckFlags::FILE_THEN_INDEX;
        let said = self.repo.get_attr(Path::new(file), "filter", flags)?;
        match git2::AttrValue::from_string(said) {
            git2::AttrValue::String(filter) => Err(RevisionError::Filtered {
                file: file.to_owned(),
                filter: text::clean(filter, 60),
            }),
            _ => Ok(()),
        }
    }

    /// The index as it is on disk.
    pub(super) fn index(&self) -> Result<Index, RevisionError> {
        let read = self.repo.index().and_then(|mut index| {
            index.read(true)?;
            Ok(index)
        });
        read.map_err(|e| RevisionError::Index { what: text::clean(e.message(), 200) })
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
    /// clean; whatever else is staged stays staged. Another Git program that holds the index is waited for a moment.
    pub(super) fn refresh_index(&self, files: &[Committed<'_>]) -> Result<(), RevisionError> {
        if files.is_empty() {
            return Ok(());
        }
        let deadline = Instant::now() + INDEX_PATIENCE;
        loop {
            let mut index = self.index()?;
            for (file, blob, mode) in files {
                index.add(&entry_of(file, *blob, *mode))?;
            }
            match index.write() {
                Err(e) if e.code() == ErrorCode::Locked && Instant::now() < deadline => {
                    std::thread::sleep(BETWEEN_INDEX_ATTEMPTS);
                }
                written => return Ok(written?),
            }
        }
    }

    /// Lets the index follow releases after which another Git program held it: it would take them back with the
    /// user's next `git commit`. The files that were behind. What a person has staged stays staged.
    ///
    /// # Errors
    /// It is behind, and held; or it cannot be read.
    pub fn heal_index(&self) -> Result<Vec<String>, RevisionError> {
        if self.repo.state() != RepositoryState::Clean {
            return Ok(Vec::new());
        }
        let Some(head) = self.head_oid()? else { return Ok(Vec::new()) };
        let mut commit = self.repo.find_commit(head)?;
        let newest = commit.tree()?;
        let mut before: BTreeMap<String, BTreeSet<Option<Oid>>> = BTreeMap::new();
        for _ in 0..MOST_BEHIND {
            let trailers = super::history::trailers(&commit);
            let (Some(_), Some(service)) = (trailers.release, trailers.service) else { break };
            let parent = commit.parent(0).ok();
            let tree = parent.as_ref().map(git2::Commit::tree).transpose()?;
            for file in [DECK_FILE.to_owned(), service_file(&service)] {
                let was = tree.as_ref().and_then(|tree| tree.get_path(Path::new(&file)).ok());
                before.entry(file).or_default().insert(was.map(|entry| entry.id()));
            }
            let Some(parent) = parent else { break };
            commit = parent;
        }
        let mut index = self.index()?;
        let mut healed = Vec::new();
        for (file, before) in before {
            let Ok(committed) = newest.get_path(Path::new(&file)) else { continue };
            let staged = index.get_path(Path::new(&file), 0).map(|entry| entry.id);
            // Whoever has staged an older one on purpose has it in the work tree, too.
            let present = files::read_text(&self.root, &file).ok();
            let present = present
                .and_then(|text| Oid::hash_object(git2::ObjectType::Blob, text.as_bytes()).ok());
            if staged != Some(committed.id()) && before.contains(&staged) && present != staged {
                index.add(&entry_of(&file, committed.id(), mode_in(&newest, &file)))?;
                healed.push(file);
            }
        }
        if !healed.is_empty() {
            index.write()?;
        }
        Ok(healed)
    }
}

/// A file of a commit: its name, its content and its mode.
type Committed<'a> = (&'a str, Oid, FileMode);

/// As before; a new one is a plain file.
fn mode_in(tree: &git2::Tree<'_>, file: &str) -> FileMode {
    match tree.get_path(Path::new(file)) {
        Ok(entry) if entry.filemode() == i32::from(FileMode::BlobExecutable) => {
            FileMode::BlobExecutable
        }
        _ => FileMode::Blob,
    }
}

/// What the index says of a file that was committed. When the file was changed is left open, so that Git looks.
fn entry_of(file: &str, blob: Oid, mode: FileMode) -> IndexEntry {
    IndexEntry {
        ctime: IndexTime::new(0, 0),
        mtime: IndexTime::new(0, 0),
        dev: 0,
        ino: 0,
        mode: mode.into(),
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
