//! What the remote lacks is sent, again where somebody else was faster.

use std::collections::BTreeMap;
use std::time::Duration;

use git2::{Direction, ErrorCode, Oid, PushOptions, RemoteCallbacks};

use super::super::RevisionError;
use super::super::history::NOTES_REF;
use super::super::repo::{DeckRepo, RELEASE_REFS, STABLE_REFS, STOPPED_REFS};
use super::super::transport::Reaching;
use super::RemoteStatus;
use super::carrier::Carrier;
use crate::base::{ReleaseNumber, text};

/// How often sending is tried again when somebody else has sent something at the same moment.
const ATTEMPTS: usize = 5;

/// Who sends at the same moment has so long to come to an end.
const BETWEEN_ATTEMPTS: Duration = Duration::from_millis(30);

impl DeckRepo {
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
                Err(RevisionError::Git { message }) => {
                    return Err(self.partly_sent(name, &status.branch, &specs, message));
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

    /// What the remote refused, where it took anything of it.
    pub(super) fn partly_sent(
        &self,
        name: &str,
        branch: &str,
        specs: &[String],
        message: String,
    ) -> RevisionError {
        let Ok(there) = self.list(name, branch) else { return RevisionError::Git { message } };
        let (mut taken, mut refused) = (Vec::new(), Vec::new());
        for spec in specs {
            let (from, to) = spec.trim_start_matches('+').split_once(':').unwrap_or_default();
            let ours = if from.is_empty() { None } else { self.maybe_oid(from).ok().flatten() };
            let is_taken = there.get(to).copied() == ours;
            if is_taken { &mut taken } else { &mut refused }.push(in_words(to));
        }
        if taken.is_empty() || refused.is_empty() {
            return RevisionError::Git { message };
        }
        // What it has now is known here, too; it is only not told where that fails.
        let _ = self.look(name);
        let (taken, refused) = (listed(&taken), listed(&refused));
        RevisionError::PartlySent { remote: name.to_owned(), taken, refused, message }
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

    pub(super) fn send_these(&self, name: &str, specs: &[String]) -> Result<(), RevisionError> {
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
}

/// What a reference is for people.
fn in_words(full: &str) -> String {
    let part = |prefix: &str| full.strip_prefix(prefix);
    if full == NOTES_REF {
        "the notes of how releases ended".to_owned()
    } else if let Some(branch) = part("refs/heads/") {
        format!("the branch {branch}")
    } else if let Some(release) = part(RELEASE_REFS) {
        format!("release {release}")
    } else if let Some(service) = part(STABLE_REFS) {
        format!("what is stable of {service}")
    } else if let Some(service) = part(STOPPED_REFS) {
        format!("that {service} was stopped")
    } else {
        full.to_owned()
    }
}

fn listed(words: &[String]) -> String {
    const MOST: usize = 4;
    let named = words.iter().take(MOST).cloned().collect::<Vec<_>>().join(", ");
    match words.len().saturating_sub(MOST) {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}

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
