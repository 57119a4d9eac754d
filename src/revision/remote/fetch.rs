//! What the remote has is fetched, and joined with ours.

use std::path::Path;

use git2::{BranchType, ErrorCode, FetchOptions, FileMode, ObjectType, Oid};

use super::super::RevisionError;
use super::super::history::NOTES_REF;
use super::super::repo::{DeckRepo, RELEASE_REFS, STABLE_REFS, STOPPED_REFS};
use super::super::transport::Reaching;
use super::carrier::Carrier;
use super::{Fetched, RemoteStatus};
use crate::base::ReleaseNumber;

/// Where notes of the remote are kept until they are joined with ours.
const THEIR_NOTES: &str = "refs/gpudeck-remote/notes";

/// Where the remote's releases are kept: ours are not overwritten by them.
const THEIR_RELEASE_REFS: &str = "refs/gpudeck-remote/releases/";

/// Where what is stable at the remote is kept until it is joined with ours.
const THEIR_STABLE_REFS: &str = "refs/gpudeck-remote/stable/";

/// Where what was stopped at the remote is kept until it is joined with ours.
const THEIR_STOPPED_REFS: &str = "refs/gpudeck-remote/stopped/";

impl DeckRepo {
    /// Fetches the branch, the releases, what is stable and the notes; moves the branch forward where
    /// nothing of one's own is in the way.
    pub fn fetch(&self, wanted: Option<&str>) -> Result<Fetched, RevisionError> {
        let name = self.remote_name(wanted)?.ok_or(RevisionError::NoRemote { name: None })?;
        let status = self.look(&name)?;
        match (status.ahead, status.behind) {
            (_, 0) => Ok(Fetched::UpToDate),
            (0, _) => self.forward(&name, &status.branch),
            _ => Ok(Fetched::Diverged),
        }
    }

    /// Fetches the same unasked: never moves the branch or a file. None: the deck has no remote.
    pub fn hear(&self, wanted: Option<&str>) -> Result<Option<RemoteStatus>, RevisionError> {
        if self.repo.remotes()?.is_empty() {
            return Ok(None);
        }
        match self.remote_name(wanted)? {
            Some(name) => self.look(&name).map(Some),
            None => Ok(None),
        }
    }

    /// Fetches and joins everything; branch and files stay where they are.
    pub(super) fn look(&self, name: &str) -> Result<RemoteStatus, RevisionError> {
        let mut remote = self.opened(name)?;
        let carrier = self.carrier(name, remote.url().unwrap_or_default());
        // `git` refuses to fetch a reference that is not there, but not a pattern.
        let notes = if matches!(carrier, Carrier::Libgit2) { "" } else { "*" };
        let specs = [
            format!("+refs/heads/*:refs/remotes/{name}/*"),
            format!("+{RELEASE_REFS}*:{THEIR_RELEASE_REFS}*"),
            format!("+{STABLE_REFS}*:{THEIR_STABLE_REFS}*"),
            format!("+{STOPPED_REFS}*:{THEIR_STOPPED_REFS}*"),
            format!("+{NOTES_REF}{notes}:{THEIR_NOTES}{notes}"),
        ];
        match carrier {
            Carrier::Libgit2 => {
                let _reaching = Reaching::by(self.reach.as_ref())?;
                let mut options = FetchOptions::new();
                options.download_tags(git2::AutotagOption::None);
                remote.fetch(&specs, Some(&mut options), Some("gpudeck: fetch"))?;
            }
            Carrier::Git { why } => {
                let specs = specs.iter().map(String::as_str);
                let words = ["fetch", "--no-tags", name].into_iter().chain(specs);
                self.git(&words.collect::<Vec<_>>(), why)?;
            }
        }
        self.join_releases()?;
        self.join_notes(THEIR_NOTES)?;
        self.join_stable()?;
        self.remote_status(Some(name))
    }

    /// Moves branch and work tree to what was fetched.
    pub(super) fn forward(&self, name: &str, branch: &str) -> Result<Fetched, RevisionError> {
        let theirs = self.repo.find_branch(&format!("{name}/{branch}"), BranchType::Remote)?;
        let Some(target) = theirs.get().target() else { return Ok(Fetched::UpToDate) };
        let ours = format!("refs/heads/{branch}");
        // Nobody commits to it from here until the files are there: the controller may have done so since
        // the two were compared, and that release would be lost from the branch.
        let mut held = self.repo.transaction()?;
        held.lock_ref(&ours)?;
        let from = self.maybe_oid(&ours)?;
        let (ahead, behind) = match from {
            Some(from) => self.repo.graph_ahead_behind(from, target)?,
            None => (0, self.commits_of(target)?),
        };
        match (ahead, behind) {
            (_, 0) => return Ok(Fetched::UpToDate),
            (0, _) => {}
            _ => return Ok(Fetched::Diverged),
        }
        if !self.check_out(from, target)? {
            return Ok(Fetched::Dirty(self.dirty()?));
        }
        let by = super::super::commit::signature(&self.repo, None)?;
        held.set_target(&ours, target, Some(&by), "gpudeck: fast-forward")?;
        held.commit()?;
        Ok(Fetched::Forwarded(behind))
    }

    /// Brings the work tree from one commit to another; false: a file that is edited here and changed there is in the
    /// way, and nothing was touched. What is as it is to be already (it was cut off, and is repeated) is not in the way.
    fn check_out(&self, from: Option<Oid>, to: Oid) -> Result<bool, RevisionError> {
        // It is written after the files, and would be found held only then.
        if self.repo.path().join("index.lock").exists() {
            return Err(RevisionError::Locked { what: "index.lock".to_owned() });
        }
        let before = from.map(|from| self.repo.find_commit(from)?.tree()).transpose()?;
        let after = self.repo.find_commit(to)?.tree()?;
        let diff = self.repo.diff_tree_to_tree(before.as_ref(), Some(&after), None)?;
        let mut checkout = git2::build::CheckoutBuilder::new();
        checkout.safe().disable_pathspec_match(true);
        let (mut lacking, mut there) = (false, Vec::new());
        for delta in diff.deltas() {
            let file = delta.new_file();
            let Some(path) = file.path().or_else(|| delta.old_file().path()) else { continue };
            if delta.status() == git2::Delta::Added && self.is_there(path, file.id(), file.mode()) {
                there.extend(path.to_str().map(|name| (name.to_owned(), file.id(), file.mode())));
            } else {
                lacking = true;
                checkout.path(path);
            }
        }
        if lacking {
            match self.repo.checkout_tree(after.as_object(), Some(&mut checkout)) {
                Ok(()) => {}
                Err(e) if e.code() == ErrorCode::Conflict => return Ok(false),
                Err(e) => return Err(e.into()),
            }
        }
        let there: Vec<_> =
            there.iter().map(|(name, id, mode)| (name.as_str(), *id, *mode)).collect();
        self.refresh_index(&there)?;
        Ok(true)
    }

    /// Whether the work tree has a file that is to be added as it is to be.
    fn is_there(&self, path: &Path, wanted: Oid, mode: FileMode) -> bool {
        let path = self.root().join(path);
        matches!(mode, FileMode::Blob | FileMode::BlobExecutable)
            && path.symlink_metadata().is_ok_and(|about| about.is_file())
            && Oid::hash_file(ObjectType::Blob, &path).is_ok_and(|found| found == wanted)
    }

    /// What the remote has below `prefix`, as fetched: the rest of each name, and its commit.
    fn fetched(&self, prefix: &str) -> Result<Vec<(String, Oid)>, RevisionError> {
        let mut found = Vec::new();
        for theirs in self.repo.references_glob(&format!("{prefix}*"))? {
            let theirs = theirs?;
            let part = std::str::from_utf8(theirs.name_bytes()).ok();
            let part = part.and_then(|n| n.strip_prefix(prefix)).map(str::to_owned);
            if let (Some(part), Ok(commit)) = (part, theirs.peel_to_commit()) {
                found.push((part, commit.id()));
            }
        }
        Ok(found)
    }

    /// Takes over the remote's releases that are lacking here. A release is given out once: one that differs
    /// stays as it is here.
    fn join_releases(&self) -> Result<(), RevisionError> {
        for (part, commit) in self.fetched(THEIR_RELEASE_REFS)? {
            match self.repo.reference(
                &format!("{RELEASE_REFS}{part}"),
                commit,
                false,
                "gpudeck: fetch",
            ) {
                Err(e) if e.code() != ErrorCode::Exists => return Err(e.into()),
                _ => {}
            }
        }
        Ok(())
    }

    /// Releases that are other commits at the remote, as far as was fetched.
    pub fn colliding(&self) -> Result<Vec<ReleaseNumber>, RevisionError> {
        let mut found = Vec::new();
        for (part, theirs) in self.fetched(THEIR_RELEASE_REFS)? {
            let ours = self.maybe_oid(&format!("{RELEASE_REFS}{part}"))?;
            if ours.is_some_and(|ours| ours != theirs) {
                found.extend(part.parse::<ReleaseNumber>());
            }
        }
        found.sort();
        Ok(found)
    }

    /// Takes over what is stable at the remote where that is a newer release than ours, unless it was stopped.
    fn join_stable(&self) -> Result<(), RevisionError> {
        for (part, commit) in self.fetched(THEIR_STOPPED_REFS)? {
            self.set_stopped_of(&part, commit)?;
        }
        for (part, commit) in self.fetched(THEIR_STABLE_REFS)? {
            self.set_stable_of(&part, commit)?;
        }
        Ok(())
    }
}
