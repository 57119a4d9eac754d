//! The deck's remote: sent and fetched, refused where the two have gone different ways.
//!
//! libgit2 speaks to it: of itself in a directory, over SSH and HTTPS by the [`Reach`](super::reach::Reach) that the
//! deck was given. What is set up for the user's `git` alone (another program for SSH, helpers for passwords, a
//! proxy, other transports) is left to that.

mod carrier;
mod fetch;
mod send;

use std::path::Path;

use git2::{BranchType, ErrorCode};

use super::address;
use super::repo::DeckRepo;
use super::{RevisionError, files};
use crate::base::text;

/// How the deck stands to its remote, as far as was fetched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RemoteStatus {
    /// The branch that is committed to.
    pub branch: String,
    /// The remote's name; none: the deck has none.
    pub remote: Option<String>,
    /// Its address.
    pub url: Option<String>,
    /// What Git was told that the branch follows, if that is not the remote's branch of the same name: only that one
    /// is fetched, sent and compared with.
    pub follows: Option<String>,
    /// Commits that the remote lacks.
    pub ahead: usize,
    /// Commits of the remote that are lacking here.
    pub behind: usize,
    /// The remote has the branch, as far as was fetched.
    pub known: bool,
    /// Files of the deck that are edited and not committed.
    pub dirty: Vec<String>,
}

impl RemoteStatus {
    /// Both have commits that the other lacks.
    pub fn has_diverged(&self) -> bool {
        self.ahead > 0 && self.behind > 0
    }
}

/// What a fetch did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fetched {
    /// Nothing new.
    UpToDate,
    /// The branch was moved forward by so many commits.
    Forwarded(usize),
    /// There are new commits, and the branch was left: it has commits of its own.
    Diverged,
    /// There are new commits, and the branch was left: files that they change are edited.
    Dirty(Vec<String>),
}

impl DeckRepo {
    fn branch(&self) -> Result<String, RevisionError> {
        if self.repo.head_detached()? {
            return Err(RevisionError::Detached);
        }
        match self.repo.find_reference("HEAD")?.symbolic_target() {
            Ok(Some(target)) => Ok(target.strip_prefix("refs/heads/").unwrap_or(target).to_owned()),
            _ => Err(RevisionError::Detached),
        }
    }

    /// The remote to use: the named one, that of the branch, or the only one.
    fn remote_name(&self, wanted: Option<&str>) -> Result<Option<String>, RevisionError> {
        if let Some(name) = wanted {
            return match self.repo.find_remote(name) {
                Ok(_) => Ok(Some(name.to_owned())),
                Err(e) if e.code() == ErrorCode::NotFound => {
                    Err(RevisionError::NoRemote { name: Some(text::clean(name, 60)) })
                }
                Err(e) => Err(e.into()),
            };
        }
        let branch = self.branch()?;
        let config = self.repo.config()?;
        match config.get_string(&format!("branch.{branch}.remote")) {
            // It follows another branch here, which is no remote.
            Ok(name) if name == "." => {}
            Ok(name) => return Ok(Some(name)),
            Err(_) => {}
        }
        let all = self.repo.remotes()?;
        let names: Vec<String> =
            (0..all.len()).filter_map(|i| all.get(i).ok().flatten().map(str::to_owned)).collect();
        Ok(match names.as_slice() {
            [only] => Some(only.clone()),
            many => many.iter().find(|n| *n == "origin").cloned(),
        })
    }

    /// What the branch follows, where that is not `name`'s branch of the same name.
    fn follows(&self, name: &str, branch: &str) -> Result<Option<String>, RevisionError> {
        let config = self.repo.config()?;
        let told = |key: &str| config.get_string(&format!("branch.{branch}.{key}")).ok();
        let (Some(remote), Some(merge)) = (told("remote"), told("merge")) else { return Ok(None) };
        let merge = text::clean(merge.strip_prefix("refs/heads/").unwrap_or(&merge), 100);
        Ok(match remote.as_str() {
            "." => Some(format!("the branch {merge} here")),
            remote if remote == name && merge != branch => Some(format!("{name}/{merge}")),
            _ => None,
        })
    }

    /// How the deck stands to its remote, without asking it.
    pub fn remote_status(&self, wanted: Option<&str>) -> Result<RemoteStatus, RevisionError> {
        let branch = self.branch()?;
        let mut status =
            RemoteStatus { branch: branch.clone(), dirty: self.dirty()?, ..Default::default() };
        let Some(name) = self.remote_name(wanted)? else { return Ok(status) };
        status.url = self.repo.find_remote(&name)?.url().ok().map(address::shown);
        let ours = self.head_oid()?;
        let theirs = self.repo.find_branch(&format!("{name}/{branch}"), BranchType::Remote);
        let theirs = theirs.ok().and_then(|b| b.get().target());
        status.known = theirs.is_some();
        (status.ahead, status.behind) = match (ours, theirs) {
            (Some(ours), Some(theirs)) => self.repo.graph_ahead_behind(ours, theirs)?,
            (Some(ours), None) => (self.commits_of(ours)?, 0),
            // Nothing is committed here: all of theirs is lacking.
            (None, Some(theirs)) => (0, self.commits_of(theirs)?),
            (None, None) => (0, 0),
        };
        status.follows = self.follows(&name, &branch)?;
        status.remote = Some(name);
        Ok(status)
    }

    fn commits_of(&self, tip: git2::Oid) -> Result<usize, RevisionError> {
        let mut walk = self.repo.revwalk()?;
        walk.push(tip)?;
        Ok(walk.count())
    }

    /// The deck's own files that differ from the newest commit.
    fn dirty(&self) -> Result<Vec<String>, RevisionError> {
        self.index()?;
        let mut options = git2::StatusOptions::new();
        options.include_untracked(true).recurse_untracked_dirs(true);
        options.pathspec(files::DECK_FILE).pathspec(files::SERVICES_DIR);
        let statuses = self.repo.statuses(Some(&mut options))?;
        let dirty = statuses.iter().filter(|s| !s.status().is_ignored());
        Ok(dirty
            .map(|s| text::clean(&String::from_utf8_lossy(s.path_bytes()), 120))
            .filter(|p| Path::new(p).extension().is_some_and(|e| e == "toml"))
            .collect())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
