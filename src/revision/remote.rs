//! The deck's remote: sent and fetched, refused where the two have gone different ways.
//!
//! libgit2 speaks to it: of itself in a directory, over SSH and HTTPS by the [`Reach`](super::reach::Reach) that the
//! deck was given. What is set up for the user's `git` alone (another program for SSH, helpers for passwords, a
//! proxy, other transports) is left to that.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use git2::{BranchType, Direction, ErrorCode, FetchOptions, Oid, PushOptions, RemoteCallbacks};

use super::address::{self, Address};
use super::history::NOTES_REF;
use super::repo::{DeckRepo, RELEASE_REFS, STABLE_REFS, STOPPED_REFS};
use super::transport::Reaching;
use super::{RevisionError, files};
use crate::base::{ReleaseNumber, text};

/// Longest time for the user's `git`.
const PATIENCE: Duration = Duration::from_secs(120);

/// Longest answer of the user's `git` that is read: a list of references, at most.
const MAX_SAID: u64 = 16 << 20;

/// How often sending is tried again when somebody else has sent something at the same moment.
const ATTEMPTS: usize = 5;

/// Who sends at the same moment has so long to come to an end.
const BETWEEN_ATTEMPTS: Duration = Duration::from_millis(30);

/// Where notes of the remote are kept until they are joined with ours.
const THEIR_NOTES: &str = "refs/gpudeck-remote/notes";

/// Where the remote's releases are kept: ours are not overwritten by them.
const THEIR_RELEASE_REFS: &str = "refs/gpudeck-remote/releases/";

/// Where what is stable at the remote is kept until it is joined with ours.
const THEIR_STABLE_REFS: &str = "refs/gpudeck-remote/stable/";

/// Where what was stopped at the remote is kept until it is joined with ours.
const THEIR_STOPPED_REFS: &str = "refs/gpudeck-remote/stopped/";

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
        status.url = self.repo.find_remote(&name)?.url().ok().map(address::shown);
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
            (0, _) => self.forward(&name, &status.branch),
            _ => Ok(Fetched::Diverged),
        }
    }

    /// Fetches and joins everything; branch and files stay where they are.
    fn look(&self, name: &str) -> Result<RemoteStatus, RevisionError> {
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
    fn forward(&self, name: &str, branch: &str) -> Result<Fetched, RevisionError> {
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
        let by = super::commit::signature(&self.repo, None)?;
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
        let mut left = ATTEMPTS;
        loop {
            left -= 1;
            let status = self.remote_status(Some(name))?;
            let lacking = || RevisionError::Diverged {
                remote: format!("{name}/{}", status.branch),
                ahead: status.ahead,
                behind: status.behind,
            };
            if status.has_diverged() {
                return Err(lacking());
            }
            let (specs, releases) = self.to_send(name, &status)?;
            match self.send_these(name, &specs) {
                // What was sent meanwhile is joined first: nothing of it is put back.
                Err(RevisionError::Outrun { .. }) if left > 0 => {
                    std::thread::sleep(BETWEEN_ATTEMPTS);
                    self.look(name)?;
                    continue;
                }
                sent => sent?,
            }
            if status.behind > 0 {
                return Err(lacking());
            }
            if !releases.is_empty() {
                return Err(RevisionError::Collides { remote: name.to_owned(), releases });
            }
            return self.remote_status(Some(name));
        }
    }

    /// What the remote lacks, and the releases that are other commits there.
    fn to_send(
        &self,
        name: &str,
        status: &RemoteStatus,
    ) -> Result<(Vec<String>, Vec<ReleaseNumber>), RevisionError> {
        let there = self.list(name, &status.branch)?;
        let (mut specs, mut colliding) = (Vec::new(), Vec::new());
        let branch = format!("refs/heads/{}", status.branch);
        if status.behind == 0 && self.maybe_oid(&branch)? != there.get(&branch).copied() {
            specs.push(format!("{branch}:{branch}"));
        }
        for reference in self.repo.references()? {
            let reference = reference?;
            let Ok(full) = reference.name() else { continue };
            let known = there.get(full).copied();
            if reference.target() == known {
                continue;
            }
            if let Some(release) = full.strip_prefix(RELEASE_REFS) {
                match known {
                    None => specs.push(format!("{full}:{full}")),
                    Some(_) => colliding.extend(release.parse::<ReleaseNumber>()),
                }
            } else if full == NOTES_REF {
                // Joined just now, so ours come after the remote's. If not any more, it is refused.
                specs.push(format!("{full}:{full}"));
            } else if full.starts_with(STABLE_REFS) || full.starts_with(STOPPED_REFS) {
                specs.push(format!("+{full}:{full}"));
            }
        }
        for (full, commit) in &there {
            let Some(part) = full.strip_prefix(STABLE_REFS) else { continue };
            if self.maybe_oid(full)?.is_none() && self.is_stopped(part, *commit)? {
                specs.push(format!(":{full}"));
            }
        }
        colliding.sort();
        Ok((specs, colliding))
    }

    /// The remote's references as they are now.
    fn list(&self, name: &str, branch: &str) -> Result<BTreeMap<String, Oid>, RevisionError> {
        let mut remote = self.opened(name)?;
        let Carrier::Git { why } = self.carrier(name, remote.url().unwrap_or_default()) else {
            let _reaching = Reaching::by(self.reach.as_ref())?;
            remote.connect(Direction::Fetch)?;
            let there = remote.list()?.iter().map(|h| (h.name().to_owned(), h.oid())).collect();
            let _ = remote.disconnect();
            return Ok(there);
        };
        let branch = format!("refs/heads/{branch}");
        let told =
            self.git(&["ls-remote", "--refs", name, &branch, "refs/gpudeck/*", NOTES_REF], why)?;
        let pairs = told.lines().filter_map(|line| line.split_once('\t'));
        Ok(pairs.filter_map(|(oid, full)| Some((full.to_owned(), oid.parse().ok()?))).collect())
    }

    fn send_these(&self, name: &str, specs: &[String]) -> Result<(), RevisionError> {
        if specs.is_empty() {
            return Ok(());
        }
        let mut remote = self.opened(name)?;
        // It may be sent elsewhere than it is fetched from.
        let to = remote.pushurl().ok().flatten().map(str::to_owned);
        let to = to.or_else(|| remote.url().ok().map(str::to_owned)).unwrap_or_default();
        let from = remote.url().unwrap_or_default();
        let carriers = [self.carrier(name, &to), self.carrier(name, from)];
        if let Some(why) = carriers.into_iter().find_map(Carrier::git) {
            let specs = specs.iter().map(String::as_str);
            self.git(&["push", "--quiet", name].into_iter().chain(specs).collect::<Vec<_>>(), why)
                .map_err(|e| match e {
                    RevisionError::Git { message } if is_outrun(&message) => {
                        RevisionError::Outrun { remote: name.to_owned() }
                    }
                    e => e,
                })?;
            self.git(&["fetch", "--no-tags", "--quiet", name], why)?;
            return Ok(());
        }
        let _reaching = Reaching::by(self.reach.as_ref())?;
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
            remote.push(specs, Some(&mut options)).map_err(|e| match e.code() {
                ErrorCode::NotFastForward | ErrorCode::Locked => {
                    RevisionError::Outrun { remote: name.to_owned() }
                }
                _ => e.into(),
            })?;
        }
        if let Some(why) = refused.into_inner() {
            if is_outrun(&why) {
                return Err(RevisionError::Outrun { remote: name.to_owned() });
            }
            return Err(RevisionError::Git { message: text::clean(&why, 300) });
        }
        let branches = format!("+refs/heads/*:refs/remotes/{name}/*");
        self.opened(name)?
            .fetch(&[branches], None, Some("gpudeck: push"))
            .map_err(RevisionError::from)
    }

    /// Runs the user's `git` in the deck.
    fn git(&self, arguments: &[&str], why: &'static str) -> Result<String, RevisionError> {
        run_git(self.root(), arguments, why)
    }

    /// Who speaks to a remote that has this address.
    fn carrier(&self, name: &str, url: &str) -> Carrier {
        let is_set = |name: &str| std::env::var_os(name).is_some_and(|v| !v.is_empty());
        let git = |why| Carrier::Git { why };
        match Address::of(url) {
            Address::Plain => Carrier::Libgit2,
            Address::Other => git("its address is of another kind"),
            _ if self.reach.is_none() => git("it is on another machine"),
            Address::Ssh(..) => {
                let mut named = ["core.sshCommand".to_owned()]
                    .into_iter()
                    .chain(["uploadpack", "receivepack"].map(|key| format!("remote.{name}.{key}")));
                let config = self.repo.config();
                let is_named =
                    |key: String| config.as_ref().is_ok_and(|c| c.get_entry(&key).is_ok());
                if SSH_BY_ENVIRONMENT.iter().any(|name| is_set(name)) || named.any(is_named) {
                    return git("Git was told of another program for SSH");
                }
                // Configuration that libgit2 does not read.
                if GIT_BY_ENVIRONMENT.iter().any(|name| is_set(name)) && git_is_installed() {
                    return git("Git's configuration is in the environment");
                }
                Carrier::Libgit2
            }
            // Proxies, certificates, helpers for passwords, kinds of logins: where it is, it knows them all.
            Address::Http(_) if git_is_installed() => git("it is installed"),
            Address::Http(_) => Carrier::Libgit2,
        }
    }

    /// The remote for libgit2. It would take a path with a colon in it for a server's name.
    fn opened(&self, name: &str) -> Result<git2::Remote<'_>, RevisionError> {
        let remote = self.repo.find_remote(name)?;
        let url = remote.url().unwrap_or_default();
        if !matches!(Address::of(url), Address::Plain) || !url.contains(':') || url.contains("://")
        {
            return Ok(remote);
        }
        let path = self.root.join(url).display().to_string().replace('%', "%25");
        Ok(self.repo.remote_anonymous(&format!("file://{path}"))?)
    }
}

/// Who speaks to a remote.
enum Carrier {
    /// Linked in.
    Libgit2,
    /// The user's program, and what for.
    Git { why: &'static str },
}

impl Carrier {
    fn git(self) -> Option<&'static str> {
        match self {
            Self::Libgit2 => None,
            Self::Git { why } => Some(why),
        }
    }
}

fn git_is_installed() -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|place| place.join("git").is_file())
}

const SSH_BY_ENVIRONMENT: [&str; 2] = ["GIT_SSH_COMMAND", "GIT_SSH"];

const GIT_BY_ENVIRONMENT: [&str; 4] =
    ["GIT_CONFIG_COUNT", "GIT_CONFIG_PARAMETERS", "GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"];

/// Whether a push was refused because somebody else has sent something at the same moment.
fn is_outrun(message: &str) -> bool {
    let by_git = ["[rejected]", "cannot lock ref", "failed to update ref", "incorrect old value"];
    let by_libgit2 = [
        "a reference with that name already exists",
        "failed to lock",
        "failed to create locked file",
    ];
    let mut words = by_git.iter().chain(&by_libgit2);
    words.any(|w| message.contains(w))
}

fn run_git(dir: &Path, arguments: &[&str], why: &'static str) -> Result<String, RevisionError> {
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
            std::io::ErrorKind::NotFound => RevisionError::NoGitProgram { why: why.to_owned() },
            _ => RevisionError::Git { message: format!("git cannot be run: {e}") },
        })?;
    let (out, errors) = (child.stdout.take(), child.stderr.take());
    let gather = |stream: Option<Box<dyn std::io::Read + Send>>| {
        std::thread::spawn(move || {
            use std::io::Read as _;
            let mut text = Vec::new();
            if let Some(stream) = stream {
                let _ = stream.take(MAX_SAID).read_to_end(&mut text);
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
    // A push says what was refused, and then that something was.
    let refused = said.lines().find(|l| l.trim_start().starts_with("! ["));
    let last = said.lines().rev().find(|l| !l.trim().is_empty());
    let last = refused.or(last).unwrap_or("no message").trim();
    Err(failed(format!("git {}: {}", arguments.first().unwrap_or(&""), text::clean(last, 300))))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::revision::ReleaseCommit;

    fn release(deck: &DeckRepo, text: &str) -> Oid {
        std::fs::create_dir_all(deck.root().join("services")).unwrap();
        std::fs::write(deck.root().join("services/chat.toml"), text).unwrap();
        let made = deck.commit_service(&ReleaseCommit {
            service: &"chat".parse().unwrap(),
            release: deck.next_release().unwrap(),
            subject: "Apply chat",
            reason: None,
            author: None,
            expected: None,
        });
        deck.oid(&made.unwrap()).unwrap()
    }

    #[test]
    fn a_release_that_is_committed_during_a_fetch_stays_on_the_branch() {
        let dir = tempfile::tempdir().unwrap();
        let first = DeckRepo::init(&dir.path().join("first")).unwrap();
        std::fs::write(first.root().join("deck.toml"), "name = \"test\"\n").unwrap();
        release(&first, "a = 1\n");
        let bare = dir.path().join("bare");
        git2::Repository::init_bare(&bare).unwrap();
        let url = bare.display().to_string();
        first.repo.remote("origin", &url).unwrap();
        first.push(None).unwrap();
        let second = dir.path().join("second");
        git2::build::RepoBuilder::new().branch("main").clone(&url, &second).unwrap();
        let second = DeckRepo::open(&second).unwrap();
        release(&first, "a = 2\n");
        first.push(None).unwrap();

        // Another program holds the branch: nothing is touched.
        let status = second.look("origin").unwrap();
        assert_eq!((status.ahead, status.behind), (0, 1));
        let lock = second.root().join(".git/refs/heads/main.lock");
        std::fs::write(&lock, "").unwrap();
        let refused = second.forward("origin", "main").unwrap_err();
        assert!(matches!(refused, RevisionError::Locked { .. }), "{refused}");
        let file = second.root().join("services/chat.toml");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "a = 1\n");
        std::fs::remove_file(&lock).unwrap();

        // The controller commits after the two were compared.
        let ours = release(&second, "a = 3\n");
        assert_eq!(second.forward("origin", "main").unwrap(), Fetched::Diverged);
        assert_eq!(second.head_oid().unwrap(), Some(ours));
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "a = 3\n");
    }
}
