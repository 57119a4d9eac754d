//! The open repository: opening, making one, references and single files of a revision.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use git2::{ConfigLevel, ErrorCode, Oid, Repository, RepositoryInitOptions, RepositoryOpenFlags};

use super::files::{self, DECK_FILE, DeckFiles};
use super::history::trailers;
use super::reach::Reach;
use super::{RevisionError, service_file};
use crate::base::{ReleaseNumber, Revision, ServiceName, text};
use crate::spec::parse::MAX_SPEC_BYTES;

/// What libgit2 goes by when it writes objects and references. `git` has another one (`core.fsync`) and
/// complains of this.
const FSYNC: &str = "core.fsyncObjectFiles";
/// Settings for libgit2 alone, in the repository's own directory.
const OWN_CONFIG: &str = "gpudeck.config";

pub(super) const STABLE_REFS: &str = "refs/gpudeck/stable/";
pub(super) const STOPPED_REFS: &str = "refs/gpudeck/stopped/";
pub(super) const RELEASE_REFS: &str = "refs/gpudeck/releases/";

/// A deck: a Git repository whose root holds `deck.toml` and `services/`.
pub struct DeckRepo {
    pub(super) repo: Repository,
    pub(super) root: PathBuf,
    pub(super) reach: Option<Arc<dyn Reach>>,
}

impl DeckRepo {
    /// Opens the deck in `path`, which must be the root of its repository.
    pub fn open(path: &Path) -> Result<Self, RevisionError> {
        let repo = open_exactly(path)?.ok_or_else(|| RevisionError::NotARepository {
            path: path.to_owned(),
            inside: Repository::discover(path).ok().and_then(|r| r.workdir().map(Path::to_owned)),
        })?;
        Self::over(repo, path)
    }

    /// Makes `path` the root of a repository on branch `main` (or opens the one that is there) and
    /// sees to a `.gitignore`. Writes no `deck.toml` and commits nothing.
    pub fn init(path: &Path) -> Result<Self, RevisionError> {
        let repo = if let Some(repo) = open_exactly(path)? {
            repo
        } else {
            let mut options = RepositoryInitOptions::new();
            options.no_reinit(true).mkpath(true).initial_head("main").external_template(false);
            Repository::init_opts(path, &options)?
        };
        // Earlier versions set it here, and `git` warned of it with every command.
        match repo.config()?.open_level(ConfigLevel::Local)?.remove(FSYNC) {
            Err(e) if e.code() != ErrorCode::NotFound => return Err(e.into()),
            _ => {}
        }
        let deck = Self::over(repo, path)?;
        deck.ignore_own_files()?;
        Ok(deck)
    }

    fn over(repo: Repository, path: &Path) -> Result<Self, RevisionError> {
        sync_what_is_written(&repo)?;
        match repo.workdir().map(Path::to_owned) {
            Some(root) => Ok(Self { repo, root, reach: None }),
            None => Err(RevisionError::Bare { path: path.to_owned() }),
        }
    }

    /// Remotes on other machines are reached by `reach` from now on. Without one the user's `git` is run.
    #[must_use]
    pub fn reached_by(self, reach: Arc<dyn Reach>) -> Self {
        Self { reach: Some(reach), ..self }
    }

    /// The deck's directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The texts in the work tree.
    pub fn read(&self) -> Result<DeckFiles, RevisionError> {
        files::read_all(&self.root)
    }

    /// The spec of one service in the work tree.
    pub fn read_service(&self, service: &ServiceName) -> Result<String, RevisionError> {
        files::read_text(&self.root, &service_file(service))
    }

    /// `deck.toml` in the work tree.
    pub fn read_deck(&self) -> Result<String, RevisionError> {
        files::read_text(&self.root, DECK_FILE)
    }

    /// Replaces the spec in the work tree, if it is still as it was read (none: there was no file).
    pub fn replace_spec(
        &self,
        service: &ServiceName,
        text: &str,
        known: Option<&str>,
    ) -> Result<(), RevisionError> {
        files::replace_spec(&self.root, service, text, known)
    }

    /// Keeps a text in the deck's `.gpudeck`, which Git does not see; on disk when this returns.
    pub fn keep_aside(&self, name: &str, text: &str) -> Result<(), RevisionError> {
        files::keep_aside(&self.root, name, text)
    }

    /// The newest commit of the current branch; none before the first.
    pub fn head(&self) -> Result<Option<Revision>, RevisionError> {
        Ok(self.head_oid()?.map(revision))
    }

    /// The spec of a service as committed in a revision.
    pub fn spec_at(
        &self,
        revision: &Revision,
        service: &ServiceName,
    ) -> Result<String, RevisionError> {
        let file = service_file(service);
        self.text_at(revision, &file)?.ok_or_else(|| RevisionError::NotFound {
            what: format!("{file} in revision {revision}"),
        })
    }

    /// `deck.toml` as committed in a revision.
    pub fn deck_at(&self, revision: &Revision) -> Result<String, RevisionError> {
        self.text_at(revision, DECK_FILE)?.ok_or_else(|| RevisionError::NotFound {
            what: format!("{DECK_FILE} in revision {revision}"),
        })
    }

    /// Whether the work tree's spec of the service, or `deck.toml`, differs from the newest commit.
    pub fn is_dirty(&self, service: &ServiceName) -> Result<bool, RevisionError> {
        let head = self.head()?;
        for file in [DECK_FILE, &service_file(service)] {
            let committed = match &head {
                Some(head) => self.text_at(head, file)?,
                None => None,
            };
            let present = match files::read_text(&self.root, file) {
                Ok(text) => Some(text),
                Err(RevisionError::NoFile { .. }) => None,
                Err(other) => return Err(other),
            };
            if committed != present {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The revision that is served, as [`Self::set_stable`] last said.
    pub fn stable(&self, service: &ServiceName) -> Result<Option<Revision>, RevisionError> {
        Ok(self.maybe_oid(&format!("{STABLE_REFS}{}", ref_part(service)))?.map(revision))
    }

    /// The release that is served, as [`Self::set_stable`] last said.
    pub fn stable_release(
        &self,
        service: &ServiceName,
    ) -> Result<Option<ReleaseNumber>, RevisionError> {
        let served = self.maybe_oid(&format!("{STABLE_REFS}{}", ref_part(service)))?;
        Ok(served.and_then(|oid| self.number_of(oid)))
    }

    /// Says that this revision is served now. What is stable only goes to newer releases (an undo is a
    /// newer one, too), so an older one changes nothing: whoever says it has not heard of the newer one.
    pub fn set_stable(
        &self,
        service: &ServiceName,
        revision: &Revision,
    ) -> Result<(), RevisionError> {
        self.set_stable_of(&ref_part(service), self.oid(revision)?)
    }

    /// Says that nothing of the service is served any more.
    pub fn clear_stable(&self, service: &ServiceName) -> Result<(), RevisionError> {
        let part = ref_part(service);
        let Some(served) = self.maybe_oid(&format!("{STABLE_REFS}{part}"))? else { return Ok(()) };
        self.set_stopped_of(&part, served)
    }

    /// The same by the service's part of a reference's name.
    pub(super) fn set_stable_of(&self, part: &str, to: Oid) -> Result<(), RevisionError> {
        if self.is_stopped(part, to)? {
            return Ok(());
        }
        self.move_newer(&format!("{STABLE_REFS}{part}"), to)
    }

    /// The service was stopped while this commit was served. That is written down, or a remote that still has
    /// the commit as what is served would bring it back.
    pub(super) fn set_stopped_of(&self, part: &str, at: Oid) -> Result<(), RevisionError> {
        self.move_newer(&format!("{STOPPED_REFS}{part}"), at)?;
        let stable = format!("{STABLE_REFS}{part}");
        let Some(served) = self.maybe_oid(&stable)? else { return Ok(()) };
        if self.is_stopped(part, served)? {
            match self.repo.find_reference(&stable) {
                Ok(mut found) if found.target() == Some(served) => found.delete()?,
                Ok(_) => {}
                Err(e) if e.code() == ErrorCode::NotFound => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    /// Whether the service was stopped after this commit was served.
    pub(super) fn is_stopped(&self, part: &str, commit: Oid) -> Result<bool, RevisionError> {
        let stopped = self.maybe_oid(&format!("{STOPPED_REFS}{part}"))?;
        Ok(stopped.is_some_and(|at| {
            at == commit
                || matches!((self.number_of(commit), self.number_of(at)),
                    (Some(commit), Some(at)) if commit <= at)
        }))
    }

    fn number_of(&self, commit: Oid) -> Option<ReleaseNumber> {
        self.repo.find_commit(commit).ok().and_then(|c| trailers(&c).release)
    }

    /// Moves a reference to the commit of a release, unless it is at a newer one.
    fn move_newer(&self, name: &str, to: Oid) -> Result<(), RevisionError> {
        let from = self.maybe_oid(name)?;
        if from.is_some_and(|from| self.number_of(from) > self.number_of(to)) {
            return Ok(());
        }
        let moved = match from {
            Some(from) => self.repo.reference_matching(name, to, true, from, "gpudeck: stable"),
            None => self.repo.reference(name, to, false, "gpudeck: stable"),
        };
        match moved {
            Ok(_) => Ok(()),
            // Somebody else moved it just now: what is newer of both is found out anew.
            Err(e) if matches!(e.code(), ErrorCode::Modified | ErrorCode::Exists) => {
                self.move_newer(name, to)
            }
            Err(e) => Err(e.into()),
        }
    }

    /// The commit that a reference names; none: there is no such reference.
    pub(super) fn maybe_oid(&self, name: &str) -> Result<Option<Oid>, RevisionError> {
        match self.repo.refname_to_id(name) {
            Ok(oid) => Ok(Some(oid)),
            Err(e) if e.code() == ErrorCode::NotFound => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// The commit of a release, whichever service it is of.
    pub fn release(&self, number: ReleaseNumber) -> Result<Option<Revision>, RevisionError> {
        match self.repo.refname_to_id(&release_ref(number)) {
            Ok(oid) => Ok(Some(revision(oid))),
            Err(e) if e.code() == ErrorCode::NotFound => Ok(self
                .release_commits()?
                .into_iter()
                .find(|(n, _)| *n == number)
                .map(|(_, oid)| revision(oid))),
            Err(e) => Err(e.into()),
        }
    }

    /// Checks that the revision is a commit here.
    pub(super) fn oid(&self, revision: &Revision) -> Result<Oid, RevisionError> {
        let missing = || RevisionError::NotFound {
            what: format!("revision {}", text::clean(&revision.0, 40)),
        };
        // `Oid::from_str` would fill up a short one with zeroes.
        if revision.0.len() != 40 {
            return Err(missing());
        }
        let oid = Oid::from_str(&revision.0).map_err(|_| missing())?;
        self.repo.find_commit(oid).map_err(|_| missing())?;
        Ok(oid)
    }

    pub(super) fn head_oid(&self) -> Result<Option<Oid>, RevisionError> {
        match self.repo.head() {
            Ok(head) => Ok(Some(head.peel_to_commit()?.id())),
            Err(e) if matches!(e.code(), ErrorCode::UnbornBranch | ErrorCode::NotFound) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// A file of a commit; none if it is not in it.
    pub(super) fn text_at(
        &self,
        revision: &Revision,
        file: &str,
    ) -> Result<Option<String>, RevisionError> {
        let tree = self.repo.find_commit(self.oid(revision)?)?.tree()?;
        let entry = match tree.get_path(Path::new(file)) {
            Ok(entry) => entry,
            Err(e) if e.code() == ErrorCode::NotFound => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        let unreadable = |why: &str| RevisionError::Unreadable {
            file: format!("{file} of revision {revision}"),
            why: why.to_owned(),
        };
        // The size is asked first: a blob is loaded whole.
        let (size, kind) = self.repo.odb()?.read_header(entry.id())?;
        if kind != git2::ObjectType::Blob || entry.filemode() == 0o120_000 {
            return Err(unreadable("it is not a plain file"));
        }
        if size > MAX_SPEC_BYTES {
            return Err(unreadable("it is too long"));
        }
        let blob = self.repo.find_blob(entry.id())?;
        let text = std::str::from_utf8(blob.content()).map_err(|_| unreadable("it is not text"))?;
        Ok(Some(text.to_owned()))
    }

    fn ignore_own_files(&self) -> Result<(), RevisionError> {
        const LINE: &str = "/.gpudeck/";
        let unwritable = |e: std::io::Error| RevisionError::Unreadable {
            file: ".gitignore".to_owned(),
            why: e.to_string(),
        };
        let path = self.root.join(".gitignore");
        let mut lines = match fs::read_to_string(&path) {
            Ok(present) => present,
            Err(e) if e.kind() == ErrorKind::NotFound => String::new(),
            Err(e) => return Err(unwritable(e)),
        };
        if lines.lines().any(|l| l.trim() == LINE) {
            return Ok(());
        }
        if !lines.is_empty() && !lines.ends_with('\n') {
            lines.push('\n');
        }
        lines.push_str(LINE);
        lines.push('\n');
        fs::write(&path, lines).map_err(unwritable)
    }
}

fn open_exactly(path: &Path) -> Result<Option<Repository>, RevisionError> {
    let flags = RepositoryOpenFlags::NO_SEARCH;
    match Repository::open_ext(path, flags, std::iter::empty::<&Path>()) {
        Ok(repo) => Ok(Some(repo)),
        Err(e) if e.code() == ErrorCode::NotFound => Ok(None),
        Err(e) if e.code() == ErrorCode::Owner => {
            Err(RevisionError::Owner { path: path.to_owned() })
        }
        Err(e) => Err(e.into()),
    }
}

pub(super) fn revision(oid: Oid) -> Revision {
    Revision(oid.to_string())
}

pub(super) fn release_ref(number: ReleaseNumber) -> String {
    format!("{RELEASE_REFS}{number}")
}

/// Git forbids some dots in references (`a..b`, `x.lock`, a dot at the end): all are written `%2E`.
fn ref_part(service: &ServiceName) -> String {
    service.as_str().replace('.', "%2E")
}

/// Lets libgit2 sync what it writes, in every deck, without a word in a file that `git` reads.
fn sync_what_is_written(repo: &Repository) -> Result<(), RevisionError> {
    let path = repo.path().join(OWN_CONFIG);
    if !path.exists()
        && let Err(error) = fs::write(&path, "[core]\n\tfsyncObjectFiles = true\n")
    {
        // A deck that cannot be written can be read.
        tracing::debug!(path = %path.display(), %error, "settings for libgit2 are not written");
        return Ok(());
    }
    repo.config()?.add_file(&path, ConfigLevel::App, true)?;
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_synced_and_git_reads_nothing_of_it() {
        let dir = tempfile::tempdir().unwrap();
        Repository::init(dir.path()).unwrap().config().unwrap().set_bool(FSYNC, true).unwrap();
        DeckRepo::init(dir.path()).unwrap();
        for _ in 0..2 {
            let deck = DeckRepo::open(dir.path()).unwrap();
            assert!(deck.repo.config().unwrap().get_bool(FSYNC).unwrap());
        }
        let read_by_git = fs::read_to_string(dir.path().join(".git/config")).unwrap();
        assert!(!read_by_git.to_lowercase().contains("fsync"), "{read_by_git}");
    }
}
