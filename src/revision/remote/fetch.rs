//! What the remote has is fetched, and joined with ours.

use git2::{BranchType, ErrorCode, FetchOptions, Oid};

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
        let (ahead, behind) =
            self.repo.graph_ahead_behind(self.repo.refname_to_id(&ours)?, target)?;
        match (ahead, behind) {
            (_, 0) => return Ok(Fetched::UpToDate),
            (0, _) => {}
            _ => return Ok(Fetched::Diverged),
        }
        let commit = self.repo.find_object(target, None)?;
        let mut checkout = git2::build::CheckoutBuilder::new();
        // Safe: a file that is edited here and changed there stops it before anything is touched.
        checkout.safe();
        match self.repo.checkout_tree(&commit, Some(&mut checkout)) {
            Ok(()) => {}
            Err(e) if e.code() == ErrorCode::Conflict => return Ok(Fetched::Dirty(self.dirty()?)),
            Err(e) => return Err(e.into()),
        }
        let by = super::super::commit::signature(&self.repo, None)?;
        held.set_target(&ours, target, Some(&by), "gpudeck: fast-forward")?;
        held.commit()?;
        Ok(Fetched::Forwarded(behind))
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
