//! The deck's repository beyond one rollout: its releases whole, who wrote which line, its remote.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::actions::Means;
use super::core::{Core, Input, now};
use super::planning::{self, Draft};
use super::reach::OwnReach;
use crate::api::release::{BlameLine, ReleaseDetail};
use crate::api::{ApiError, DeckConditionKind, ErrorKind, ReleaseView};
use crate::base::{Hint, ReleaseNumber, ServiceName};
use crate::revision::{DeckRepo, Fetched, RemoteStatus, RevisionError};

/// A remote that could not be heard is asked again after these pauses.
const HEAR_AGAIN: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(10)];

/// After these it is asked again so much later.
const HEAR_LATER: Duration = Duration::from_mins(1);

/// Nobody waits longer for what it has.
const HEAR_WITHIN: Duration = Duration::from_mins(3);

/// How the deck stands to its remote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SharingView {
    /// The branch that is committed to.
    pub branch: String,
    /// The remote; none: the deck has none.
    pub remote: Option<String>,
    /// Its address.
    pub url: Option<String>,
    /// What Git was told that the branch follows, if that is not the remote's branch of the same name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub follows: Option<String>,
    /// Commits that the remote lacks.
    pub ahead: usize,
    /// Commits that are lacking here.
    pub behind: usize,
    /// Both have commits that the other lacks.
    pub diverged: bool,
    /// Files that are edited and not committed.
    pub dirty: Vec<String>,
}

impl SharingView {
    /// What a person should know of it: behind, diverged, edited; nothing when all is well.
    pub fn plainly(&self) -> Vec<String> {
        let mut words = Vec::new();
        if let (Some(follows), Some(remote)) = (&self.follows, &self.remote) {
            let branch = &self.branch;
            words.push(format!(
                "{branch} follows {follows}, and is fetched from, sent to and compared with {remote}/{branch} all the same"
            ));
        }
        if let Some(remote) = self.remote.as_ref().filter(|_| self.behind > 0) {
            let theirs = format!("{remote}/{}", self.branch);
            words.push(if self.diverged {
                format!(
                    "the deck has DIVERGED from {theirs}: {} commits only here, {} only there",
                    self.ahead, self.behind
                )
            } else {
                format!("the deck is {} commits behind {theirs}", self.behind)
            });
        }
        if !self.dirty.is_empty() {
            words.push(format!("edited and not committed: {}", self.dirty.join(", ")));
        }
        words
    }
}

impl From<RemoteStatus> for SharingView {
    fn from(status: RemoteStatus) -> Self {
        Self {
            diverged: status.has_diverged(),
            branch: status.branch,
            remote: status.remote,
            url: status.url,
            follows: status.follows,
            ahead: status.ahead,
            behind: status.behind,
            dirty: status.dirty,
        }
    }
}

/// Whether something is being sent to the deck's remote: one at a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Sharing {
    #[default]
    Idle,
    Once,
    /// There is more to send since that was begun.
    Again,
}

pub(super) fn api_error(error: &RevisionError) -> ApiError {
    let kind = match error {
        RevisionError::NotFound { .. } => ErrorKind::NotFound,
        RevisionError::Diverged { .. }
        | RevisionError::Collides { .. }
        | RevisionError::Outrun { .. }
        | RevisionError::Detached
        | RevisionError::Busy { .. } => ErrorKind::Conflict,
        RevisionError::NoRemote { .. } => ErrorKind::NotFound,
        _ => ErrorKind::Internal,
    };
    ApiError { kind, message: error.to_string(), hint: error.hint() }
}

/// How the deck in `dir` stands to its remote, as far as was fetched.
pub fn status(dir: &Path, remote: Option<&str>) -> Result<SharingView, ApiError> {
    let status = DeckRepo::open(dir).and_then(|repo| repo.remote_status(remote));
    status.map(Into::into).map_err(|e| api_error(&e))
}

/// Fetches; what came of it in words, and how the deck stands then.
pub fn fetch(
    dir: &Path,
    remote: Option<&str>,
    reach: Arc<OwnReach>,
) -> Result<(String, SharingView), ApiError> {
    let done = DeckRepo::open(dir).and_then(|repo| {
        let repo = repo.reached_by(reach);
        let mut words = match repo.fetch(remote)? {
            Fetched::UpToDate => "nothing new".to_owned(),
            Fetched::Forwarded(1) => "moved forward by 1 commit".to_owned(),
            Fetched::Forwarded(n) => format!("moved forward by {n} commits"),
            Fetched::Diverged => {
                "the deck and its remote have gone different ways: merge or rebase".to_owned()
            }
            Fetched::Dirty(files) => {
                format!("not moved forward: edited and not committed: {}", files.join(", "))
            }
        };
        let status = repo.remote_status(remote)?;
        let releases = repo.colliding()?;
        if let Some(remote) = status.remote.clone().filter(|_| !releases.is_empty()) {
            let collides = RevisionError::Collides { remote, releases };
            let hint = collides.hint().unwrap_or_default();
            words = format!("{words}\n{collides}: {hint}");
        }
        Ok((words, status.into()))
    });
    done.map_err(|e| api_error(&e))
}

/// Sends everything; refuses when the remote has commits that are lacking here.
pub fn push(
    dir: &Path,
    remote: Option<&str>,
    reach: Arc<OwnReach>,
) -> Result<SharingView, ApiError> {
    let done = DeckRepo::open(dir).and_then(|repo| repo.reached_by(reach).push(remote));
    done.map(Into::into).map_err(|e| api_error(&e))
}

/// Why the remote was not heard, and what to do.
type Unheard = (String, Option<String>);

/// Asks the remote, again after a while: whoever began the controller may not have lent it its keys yet. Whether there
/// is one.
async fn heard(means: &Means, dir: &Path, remote: Option<String>) -> Result<bool, Unheard> {
    let mut pauses = HEAR_AGAIN.into_iter();
    loop {
        let reach = OwnReach::of_fleet(&means.fleet);
        let (dir, remote) = (dir.to_owned(), remote.clone());
        let hear = move || DeckRepo::open(&dir)?.reached_by(reach).hear(remote.as_deref());
        let hearing = tokio::task::spawn_blocking(hear);
        let why = match tokio::time::timeout(HEAR_WITHIN, hearing).await {
            Ok(Ok(Ok(status))) => return Ok(status.is_some()),
            Ok(Ok(Err(error))) => (error.to_string(), error.hint()),
            Ok(Err(error)) => (error.to_string(), None),
            Err(_) => return Err(("the remote does not come to an end".to_owned(), None)),
        };
        match pauses.next() {
            Some(pause) => tokio::time::sleep(pause).await,
            None => return Err(why),
        }
    }
}

impl Core {
    fn remote_name(&self) -> Option<&str> {
        self.deck.git.as_ref().and_then(|g| g.remote.as_deref())
    }

    fn pushes(&self) -> bool {
        self.deck.git.as_ref().is_some_and(|g| g.push)
    }

    /// What a person should know of the deck's repository before anything is applied.
    pub(super) fn deck_warnings(&self, service: &ServiceName, commits: bool) -> Vec<String> {
        let Some(repo) = &self.repo else { return Vec::new() };
        let mut view = match repo.remote_status(self.remote_name()) {
            Ok(status) => SharingView::from(status),
            Err(error) => {
                let hint = error.hint().map(|hint| format!(" → {hint}")).unwrap_or_default();
                return vec![format!("{error}{hint}")];
            }
        };
        // A release's commit holds the service's own file and the deck's.
        let own = crate::revision::service_file(service);
        let deck = crate::revision::files::DECK_FILE;
        let deck_too = commits && view.dirty.iter().any(|file| file == deck);
        view.dirty.retain(|file| *file != own && !(deck_too && file == deck));
        let mut words = view.plainly();
        if deck_too {
            words.push(format!("{deck} is edited and will be committed with it"));
        }
        words
    }

    /// An edit of the spec that an undo or a retry moves out of its way.
    pub(super) fn edit_warnings(
        &self,
        draft: &Draft,
        number: ReleaseNumber,
    ) -> Result<Option<String>, RevisionError> {
        let Some(repo) = &self.repo else { return Ok(None) };
        let kept = planning::kept_edit(repo, draft, number)?;
        Ok(kept.map(|kept| planning::moved_edit(&draft.service, &kept)))
    }

    /// Nothing is committed onto a deck whose remote went another way, if releases are sent there.
    pub(super) fn may_commit(&self) -> Result<(), ApiError> {
        let Some(repo) = self.repo.as_ref().filter(|_| self.pushes()) else { return Ok(()) };
        let status = repo.remote_status(self.remote_name()).map_err(|e| api_error(&e))?;
        match status.remote {
            Some(remote) if status.behind > 0 => Err(api_error(&RevisionError::Diverged {
                remote: format!("{remote}/{}", status.branch),
                ahead: status.ahead,
                behind: status.behind,
            })),
            _ => Ok(()),
        }
    }

    /// Sends what was committed or noted, if the deck says so; what comes of it is a named state. Files of
    /// the deck move only when a person says so.
    pub(super) fn share(&mut self) {
        let Some(repo) = self.repo.as_ref().filter(|_| self.pushes()) else { return };
        if self.sharing != Sharing::Idle {
            self.sharing = Sharing::Again;
            return;
        }
        // Both write what the remote has.
        if self.hearing.is_taken() {
            self.share_waits = true;
            return;
        }
        let dir = repo.root().to_owned();
        let remote = self.remote_name().map(str::to_owned);
        let inputs = self.means.inputs.clone();
        let reach = OwnReach::of_fleet(&self.means.fleet);
        self.sharing = Sharing::Once;
        tokio::spawn(async move {
            let share = move || DeckRepo::open(&dir)?.reached_by(reach).share(remote.as_deref());
            let holds = match tokio::task::spawn_blocking(share).await {
                Ok(Ok(_)) => None,
                Ok(Err(error @ RevisionError::Diverged { ahead: 0, .. })) => {
                    Some((format!("{error}; files move only when asked"), error.hint()))
                }
                Ok(Err(
                    error @ (RevisionError::Collides { .. } | RevisionError::PartlySent { .. }),
                )) => Some((error.to_string(), error.hint())),
                Ok(Err(error)) => Some((
                    format!("the release is committed here and was not sent: {error}"),
                    error.hint(),
                )),
                Err(error) => Some((error.to_string(), None)),
            };
            let tell = Input::Ask(Box::new(move |core: &mut Core| core.shared(holds)));
            let _ = inputs.send(tell).await;
        });
    }

    /// Fetches what the remote has: how releases ended that another controller rolled out. Files of the deck stay as they
    /// are. What is in the way is a named state, and nothing waits for it.
    pub(super) fn hear_remote(&mut self) {
        let Some(dir) = self.repo.as_ref().map(|repo| repo.root().to_owned()) else { return };
        if self.sharing != Sharing::Idle {
            // That hears it, too; what is in the way there is a state of its own.
            self.hear_after = Some(now().plus(HEAR_LATER));
            return;
        }
        let Some(token) = self.hearing.take() else { return };
        let remote = self.remote_name().map(str::to_owned);
        let means = Arc::clone(&self.means);
        self.tasks.spawn(async move {
            let heard = heard(&means, &dir, remote).await;
            let tell = move |core: &mut Core| {
                drop(token);
                core.heard_remote(heard);
            };
            let _ = means.ask(tell).await;
        });
    }

    fn heard_remote(&mut self, heard: Result<bool, Unheard>) {
        let news = matches!(heard, Ok(true));
        let holds = heard.err().map(|(why, hint)| {
            let words =
                format!("how releases ended that others rolled out may not be known here: {why}");
            let hint = hint.map_or_else(String::new, |hint| format!("{hint}; "));
            let again = "it is tried again every minute, and `gpudeck deck fetch` asks what only a \
                         person can answer";
            (words, Some(format!("{hint}{again}")))
        });
        self.hear_after = holds.is_some().then(|| now().plus(HEAR_LATER));
        self.set_condition(DeckConditionKind::RemoteUnheard, holds);
        if news {
            // Notes alone do not show in what is looked at else.
            self.files_stamp.clear();
            self.reload();
        }
    }

    /// What could not be heard is asked for again, now and then.
    pub(super) fn tend_hearing(&mut self) {
        if self.hearing.is_taken() {
            return;
        }
        if std::mem::take(&mut self.share_waits) {
            self.share();
        }
        if self.hear_after.is_some_and(|after| now() >= after) {
            self.hear_after = None;
            self.hear_remote();
        }
    }

    fn shared(&mut self, holds: Option<(String, Option<String>)>) {
        self.set_condition(DeckConditionKind::DeckDiverged, holds);
        if std::mem::take(&mut self.sharing) == Sharing::Again {
            self.share();
        }
    }

    /// The deck has changed: what could not be sent is tried again, and what was lacking may be here.
    pub(super) fn share_again(&mut self) {
        let failed = self.conditions.contains_key(&DeckConditionKind::DeckDiverged);
        if failed && self.sharing == Sharing::Idle {
            self.share();
        }
    }

    /// One release, whole.
    pub(super) fn release_detail(&self, number: ReleaseNumber) -> Result<ReleaseDetail, ApiError> {
        let missing = || self.no_release(number);
        let repo = self.repo.as_ref().ok_or_else(missing)?;
        let texts = repo.release_texts(number).map_err(|e| match e {
            RevisionError::NotFound { .. } => missing(),
            e => api_error(&e),
        })?;
        let release = self.release_view(&texts.service, number).ok_or_else(missing)?;
        let stable = self.state.services.get(&texts.service).and_then(|s| s.stable) == Some(number);
        Ok(ReleaseDetail { service: texts.service, release, stable, spec: texts.spec })
    }

    /// Also one that is too old for the list that doors get.
    fn release_view(&self, service: &ServiceName, number: ReleaseNumber) -> Option<ReleaseView> {
        let known = self.files.history.get(service).map(Vec::as_slice).unwrap_or_default();
        if let Some(view) = known.iter().find(|r| r.number == number) {
            return Some(view.clone());
        }
        let entries = self.repo.as_ref()?.history(service, usize::MAX).ok()?;
        entries.into_iter().find(|e| e.release == number).map(|e| ReleaseView {
            number: e.release,
            revision: e.revision,
            created: e.time,
            author: e.author,
            reason: e.reason,
            outcome: e.outcome,
            stop: e.stop,
            progress: None,
            not_here: false,
        })
    }

    /// Which release last changed each line of the spec.
    pub(super) fn blame(&self, service: &ServiceName) -> Result<Vec<BlameLine>, ApiError> {
        let Some(repo) = self.repo.as_ref() else {
            return Err(planning::not_found(service, self.known_services()));
        };
        let lines = repo.blame(service).map_err(|e| match e {
            RevisionError::NoFile { .. } => planning::no_spec(self, service),
            e => api_error(&e),
        })?;
        let mut views = std::collections::BTreeMap::new();
        Ok(lines
            .into_iter()
            .map(|l| BlameLine {
                line: l.line,
                release: l.release.and_then(|number| {
                    views
                        .entry(number)
                        .or_insert_with(|| self.release_view(service, number))
                        .clone()
                }),
                text: l.text,
            })
            .collect())
    }
}
