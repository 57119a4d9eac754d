//! The deck's remote: sent and fetched, refused where the two have gone different ways.
//!
//! A remote in a directory is reached by libgit2. Any other (ssh, https) needs the user's own `git`,
//! with its keys and its helpers: gpudeck does not ask for passwords of remotes.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use git2::{BranchType, Direction, ErrorCode, FetchOptions, Oid, PushOptions, RemoteCallbacks};

use super::history::NOTES_REF;
use super::repo::{DeckRepo, RELEASE_REFS, STABLE_REFS};
use super::{RevisionError, files};
use crate::base::text;

/// Longest time for the user's `git`.
const PATIENCE: Duration = Duration::from_secs(120);

/// Where notes of the remote are kept until they are joined with ours.
const THEIR_NOTES: &str = "refs/gpudeck-remote/notes";

/// Where what is stable at the remote is kept until it is joined with ours.
const THEIR_STABLE_REFS: &str = "refs/gpudeck-remote/stable/";

/// How the deck stands to its remote, as far as was fetched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RemoteStatus {
    /// The branch that is committed to.
    pub branch: String,
    /// The remote's name; none: the deck has none.
    pub remote: Option<String>,
    /// Its address.
    pub url: Option<String>,
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
        if let Ok(name) = config.get_string(&format!("branch.{branch}.remote")) {
            return Ok(Some(name));
        }
        let all = self.repo.remotes()?;
        let names: Vec<String> =
            (0..all.len()).filter_map(|i| all.get(i).ok().flatten().map(str::to_owned)).collect();
        Ok(match names.as_slice() {
            [only] => Some(only.clone()),
            many => many.iter().find(|n| *n == "origin").cloned(),
        })
    }

    /// How the deck stands to its remote, without asking it.
    pub fn remote_status(&self, wanted: Option<&str>) -> Result<RemoteStatus, RevisionError> {
        let branch = self.branch()?;
        let mut status =
            RemoteStatus { branch: branch.clone(), dirty: self.dirty()?, ..Default::default() };
        let Some(name) = self.remote_name(wanted)? else { return Ok(status) };
        status.url = self.repo.find_remote(&name)?.url().ok().map(|u| text::clean(u, 300));
        let ours = self.head_oid()?;
        let theirs = self.repo.find_branch(&format!("{name}/{branch}"), BranchType::Remote);
        let theirs = theirs.ok().and_then(|b| b.get().target());
        status.known = theirs.is_some();
        (status.ahead, status.behind) = match (ours, theirs) {
            (Some(ours), Some(theirs)) => self.repo.graph_ahead_behind(ours, theirs)?,
            (Some(ours), None) => {
                let mut walk = self.repo.revwalk()?;
                walk.push(ours)?;
                (walk.count(), 0)
            }
            (None, _) => (0, 0),
        };
        status.remote = Some(name);
        Ok(status)
    }

    /// The deck's own files that differ from the newest commit.
    fn dirty(&self) -> Result<Vec<String>, RevisionError> {
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

    /// Fetches the branch, the releases, what is stable and the notes; moves the branch forward where
    /// nothing of one's own is in the way.
    pub fn fetch(&self, wanted: Option<&str>) -> Result<Fetched, RevisionError> {
        let name = self.remote_name(wanted)?.ok_or(RevisionError::NoRemote { name: None })?;
        let status = self.look(&name)?;
        match (status.ahead, status.behind) {
            (_, 0) => Ok(Fetched::UpToDate),
            (0, behind) => self.forward(&name, &status.branch, behind),
            _ => Ok(Fetched::Diverged),
        }
    }

    /// Fetches and joins everything; branch and files stay where they are.
    fn look(&self, name: &str) -> Result<RemoteStatus, RevisionError> {
        let specs = [
            format!("+refs/heads/*:refs/remotes/{name}/*"),
            // A release is given out once: one that differs stays as it is here.
            "refs/gpudeck/releases/*:refs/gpudeck/releases/*".to_owned(),
            format!("+{STABLE_REFS}*:{THEIR_STABLE_REFS}*"),
            format!("+{NOTES_REF}:{THEIR_NOTES}"),
        ];
        let mut remote = self.repo.find_remote(name)?;
        if is_local(remote.url().unwrap_or_default()) {
            let mut options = FetchOptions::new();
            options.download_tags(git2::AutotagOption::None);
            remote.fetch(&specs, Some(&mut options), Some("gpudeck: fetch"))?;
        } else {
            // `git` refuses to fetch a reference that is not there.
            let all: Vec<&str> = specs.iter().map(String::as_str).collect();
            let (notes, rest) = all.split_last().unwrap_or((&"", &[]));
            self.git(&[&["fetch", "--no-tags", name], rest].concat())?;
            let _ = self.git(&["fetch", "--no-tags", name, notes]);
        }
        self.join_notes()?;
        self.join_stable()?;
        self.remote_status(Some(name))
    }

    /// Moves branch and work tree to what was fetched.
    fn forward(&self, name: &str, branch: &str, by: usize) -> Result<Fetched, RevisionError> {
        let theirs = self.repo.find_branch(&format!("{name}/{branch}"), BranchType::Remote)?;
        let Some(target) = theirs.get().target() else { return Ok(Fetched::UpToDate) };
        let commit = self.repo.find_object(target, None)?;
        let mut checkout = git2::build::CheckoutBuilder::new();
        // Safe: a file that is edited here and changed there stops it before anything is touched.
        checkout.safe();
        match self.repo.checkout_tree(&commit, Some(&mut checkout)) {
            Ok(()) => {}
            Err(e) if e.code() == ErrorCode::Conflict => return Ok(Fetched::Dirty(self.dirty()?)),
            Err(e) => return Err(e.into()),
        }
        self.repo.reference(
            &format!("refs/heads/{branch}"),
            target,
            true,
            "gpudeck: fast-forward",
        )?;
        Ok(Fetched::Forwarded(by))
    }

    /// Adds the remote's notes that we lack to ours.
    fn join_notes(&self) -> Result<(), RevisionError> {
        let theirs = match self.repo.notes(Some(THEIR_NOTES)) {
            Ok(notes) => notes,
            Err(e) if e.code() == ErrorCode::NotFound => return Ok(()),
            Err(e) => return Err(e.into()),
        };
        let pairs: Vec<(Oid, Oid)> = theirs.filter_map(Result::ok).collect();
        for (_, about) in pairs {
            if self.repo.find_note(Some(NOTES_REF), about).is_ok() {
                continue;
            }
            let note = self.repo.find_note(Some(THEIR_NOTES), about)?;
            let Ok(words) = std::str::from_utf8(note.message_bytes()) else { continue };
            let by = super::commit::signature(&self.repo, None)?;
            self.repo.note(&by, &by, Some(NOTES_REF), about, words, false)?;
        }
        Ok(())
    }

    /// Takes over what is stable at the remote where that is a newer release than ours.
    fn join_stable(&self) -> Result<(), RevisionError> {
        for theirs in self.repo.references_glob(&format!("{THEIR_STABLE_REFS}*"))? {
            let theirs = theirs?;
            let name = std::str::from_utf8(theirs.name_bytes()).ok();
            let name = name.and_then(|n| n.strip_prefix(THEIR_STABLE_REFS));
            if let (Some(service), Ok(commit)) = (name, theirs.peel_to_commit()) {
                self.move_stable(&format!("{STABLE_REFS}{service}"), commit.id())?;
            }
        }
        Ok(())
    }

    /// Sends the branch, the releases, what is stable and the notes. Fetches first, and refuses when the
    /// remote has commits that are lacking here and could not be taken.
    pub fn push(&self, wanted: Option<&str>) -> Result<RemoteStatus, RevisionError> {
        let name = self.remote_name(wanted)?.ok_or(RevisionError::NoRemote { name: None })?;
        self.fetch(Some(&name))?;
        self.send(&name)
    }

    /// Sends the same unasked: never moves the branch or a file. Where the remote only has moved on,
    /// everything but the branch is sent, and what is lacking here is told all the same.
    pub fn share(&self, wanted: Option<&str>) -> Result<RemoteStatus, RevisionError> {
        let name = self.remote_name(wanted)?.ok_or(RevisionError::NoRemote { name: None })?;
        self.look(&name)?;
        self.send(&name)
    }

    fn send(&self, name: &str) -> Result<RemoteStatus, RevisionError> {
        let status = self.remote_status(Some(name))?;
        let lacking = || RevisionError::Diverged {
            remote: format!("{name}/{}", status.branch),
            ahead: status.ahead,
            behind: status.behind,
        };
        if status.has_diverged() {
            return Err(lacking());
        }
        let branch = format!("refs/heads/{0}:refs/heads/{0}", status.branch);
        let branch = (status.behind == 0).then_some(branch);
        let url = self.repo.find_remote(name)?.url().unwrap_or_default().to_owned();
        if is_local(&url) {
            self.push_local(name, branch)?;
        } else {
            let refs = [
                "refs/gpudeck/releases/*:refs/gpudeck/releases/*".to_owned(),
                format!("+{STABLE_REFS}*:{STABLE_REFS}*"),
            ];
            let specs = branch.iter().chain(&refs).map(String::as_str);
            self.git(&["push", "--quiet", name].into_iter().chain(specs).collect::<Vec<_>>())?;
            if self.repo.find_reference(NOTES_REF).is_ok() {
                // Joined just now: what the remote has is in ours, though not below it.
                self.git(&["push", "--quiet", name, &format!("+{NOTES_REF}:{NOTES_REF}")])?;
            }
            self.git(&["fetch", "--no-tags", "--quiet", name])?;
        }
        if status.behind > 0 {
            return Err(lacking());
        }
        self.remote_status(Some(name))
    }

    fn push_local(&self, name: &str, branch: Option<String>) -> Result<(), RevisionError> {
        let mut remote = self.repo.find_remote(name)?;
        remote.connect(Direction::Push)?;
        let there: std::collections::BTreeMap<String, Oid> =
            remote.list()?.iter().map(|h| (h.name().to_owned(), h.oid())).collect();
        let mut specs = Vec::from_iter(branch);
        for reference in self.repo.references()? {
            let reference = reference?;
            let Ok(full) = reference.name() else { continue };
            if !full.starts_with("refs/gpudeck/") && full != NOTES_REF {
                continue;
            }
            let known = there.get(full).copied();
            if reference.target() == known {
                continue;
            }
            if let Some(release) = full.strip_prefix(RELEASE_REFS).filter(|_| known.is_some()) {
                return Err(RevisionError::Git {
                    message: format!("release {release} is another commit at {name}"),
                });
            }
            specs.push(format!("+{full}:{full}"));
        }
        if specs.is_empty() {
            return Ok(());
        }
        let refused = std::cell::RefCell::new(None);
        {
            let mut callbacks = RemoteCallbacks::new();
            callbacks.push_update_reference(|reference, status| {
                if let Some(why) = status {
                    refused.replace(Some(format!("{reference}: {why}")));
                }
                Ok(())
            });
            let mut options = PushOptions::new();
            options.remote_callbacks(callbacks);
            remote.push(&specs, Some(&mut options))?;
        }
        if let Some(why) = refused.into_inner() {
            return Err(RevisionError::Git { message: text::clean(&why, 300) });
        }
        let _ = remote.disconnect();
        self.repo
            .find_remote(name)?
            .fetch::<&str>(&[], None, Some("gpudeck: push"))
            .map_err(RevisionError::from)
    }

    /// Runs the user's `git` in the deck.
    fn git(&self, arguments: &[&str]) -> Result<String, RevisionError> {
        let dir = self.root().to_owned();
        run_git(&dir, arguments)
    }
}

/// Whether libgit2 reaches the remote by itself.
fn is_local(url: &str) -> bool {
    if url.starts_with("file://") {
        return true;
    }
    // `host:path` and `scheme://…` are not paths; a path with a colon in it would have a slash first.
    let scheme = url.contains("://");
    let scp = url.split_once(':').is_some_and(|(host, _)| !host.contains('/'));
    !scheme && !scp
}

fn run_git(dir: &Path, arguments: &[&str]) -> Result<String, RevisionError> {
    let mut child = Command::new("git")
        .arg("-C")
        .arg(dir)
        .args(arguments)
        .env("GIT_TERMINAL_PROMPT", "0")
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => RevisionError::NoGitProgram,
            _ => RevisionError::Git { message: format!("git cannot be run: {e}") },
        })?;
    let (out, errors) = (child.stdout.take(), child.stderr.take());
    let gather = |stream: Option<Box<dyn std::io::Read + Send>>| {
        std::thread::spawn(move || {
            use std::io::Read as _;
            let mut text = Vec::new();
            if let Some(stream) = stream {
                let _ = stream.take(1 << 20).read_to_end(&mut text);
            }
            String::from_utf8_lossy(&text).into_owned()
        })
    };
    let out = gather(out.map(|s| Box::new(s) as Box<_>));
    let errors = gather(errors.map(|s| Box::new(s) as Box<_>));
    let deadline = Instant::now() + PATIENCE;
    let failed = |message: String| RevisionError::Git { message };
    let status = loop {
        match child.try_wait().map_err(|e| failed(e.to_string()))? {
            Some(status) => break status,
            None if Instant::now() > deadline => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(failed(format!("git did not answer in {} s", PATIENCE.as_secs())));
            }
            None => std::thread::sleep(Duration::from_millis(10)),
        }
    };
    let said = errors.join().unwrap_or_default();
    if status.success() {
        return Ok(out.join().unwrap_or_default());
    }
    let last = said.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or("no message");
    Err(failed(format!("git {}: {}", arguments.first().unwrap_or(&""), text::clean(last, 300))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_need_no_git_program() {
        for url in ["/srv/deck.git", "../deck", "file:///srv/deck.git", "./a:b"] {
            assert!(is_local(url), "{url}");
        }
        for url in ["git@host:deck.git", "ssh://host/deck", "https://host/deck", "host:deck"] {
            assert!(!is_local(url), "{url}");
        }
    }
}
