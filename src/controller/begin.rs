//! The beginning of a rollout: planned in the loop, committed off it (a program that signs may wait for a person), and
//! then begun as the hosts are by then.

use std::collections::VecDeque;

use super::core::{Core, Input, Request, journal_error, no_deck, now};
use super::deck_ledger::{self, DeckEvent};
use super::planning::{self, Committed, DeckBeside, Draft, Planned};
use crate::api::{ApiError, ErrorKind, IntentReply, PLAN_CHANGED, ReleaseView, Severity};
use crate::base::{ReleaseNumber, Revision, ServiceName, Timestamp};
use crate::revision::DeckRepo;
use crate::rollout::{EventKind, LimitRule, Outcome, Release, RolloutKind, ServiceState};

/// More than so many do not wait for their turn.
const MOST_WAITING: usize = 64;

/// Told in the loop what came of it.
pub(super) type Told = Box<dyn FnOnce(&mut Core, Result<IntentReply, ApiError>) + Send>;

/// A rollout that is to begin.
pub(super) struct Beginning {
    /// What was read and inspected for it.
    pub draft: Box<Draft>,
    /// Who asked, and for what.
    pub request: Request,
    /// Several services are rolled out together, and this is one of them.
    pub of_group: bool,
    /// Who waits for the answer.
    pub then: Told,
}

/// Releases are committed one after the other: the next one is planned when this one has its GPUs.
#[derive(Default)]
pub(super) struct Beginnings {
    committing: Option<(ServiceName, ReleaseNumber)>,
    waiting: VecDeque<Beginning>,
}

impl Beginnings {
    /// The number of the release of this service that is being committed.
    pub fn number_of(&self, service: &ServiceName) -> Option<ReleaseNumber> {
        self.committing.as_ref().filter(|(name, _)| name == service).map(|(_, number)| *number)
    }

    /// Something is on its way into Git.
    pub const fn is_busy(&self) -> bool {
        self.committing.is_some()
    }
}

/// A release on its way into Git.
struct Commit {
    draft: Box<Draft>,
    request: Request,
    of_group: bool,
    planned: Planned,
    deck: DeckBeside,
    /// The journal's last record when it was planned.
    seq: u64,
}

/// What was agreed to is not what would be begun.
pub(super) fn plan_changed() -> ApiError {
    ApiError {
        kind: ErrorKind::Conflict,
        message: PLAN_CHANGED.to_owned(),
        hint: Some("look at the plan as it is now".to_owned()),
    }
}

/// To what was stable before: neither a mistake in `deck.toml` nor what others sent to the remote stands in its way.
fn goes_back(draft: &Draft, request: &Request) -> bool {
    request.kind == RolloutKind::Undo && draft.revision.is_some()
}

/// With this it is under way.
fn requested(release: Release, request: &Request, of_group: Option<Timestamp>) -> EventKind {
    EventKind::RolloutRequested {
        release: Box::new(release),
        kind: request.kind,
        by: request.by.clone(),
        limits: LimitRule::PRESENT,
        of_group,
    }
}

impl Core {
    /// Plans, commits, begins. It waits while another release is being committed.
    pub(super) fn begin_rollout(&mut self, beginning: Beginning) {
        if self.beginnings.is_busy() {
            if self.beginnings.waiting.len() < MOST_WAITING {
                return self.beginnings.waiting.push_back(beginning);
            }
            let busy = ApiError {
                kind: ErrorKind::Conflict,
                message: "too many releases wait to be committed".to_owned(),
                hint: Some("try again when the one before is signed".to_owned()),
            };
            return (beginning.then)(self, Err(busy));
        }
        let Beginning { draft, request, of_group, then } = beginning;
        match self.plan_beginning(draft, request, of_group) {
            Ok(Some((repo, commit))) => self.commit_release(repo, commit, then),
            Ok(None) => then(self, Ok(IntentReply::NothingToDo)),
            Err(error) => then(self, Err(error)),
        }
    }

    fn plan_beginning(
        &mut self,
        draft: Box<Draft>,
        request: Request,
        of_group: bool,
    ) -> Result<Option<(std::path::PathBuf, Commit)>, ApiError> {
        self.may_begin(&draft.service)?;
        self.reload();
        let deck = self.deck_beside(goes_back(&draft, &request))?;
        let planned = self.plan_to_begin(&draft, &request)?;
        if planned.view.nothing_to_do {
            return Ok(None);
        }
        if !goes_back(&draft, &request) {
            self.may_commit()?;
        }
        let repo = self.repo.as_ref().ok_or_else(no_deck)?.root().to_owned();
        // What is in Git is to get into the journal, too.
        self.reserve(&draft.service, requested(planned.release.clone(), &request, None))?;
        // Before the commit: of a release of which only this is known nothing was ever begun.
        self.note_planned(&draft.service, &planned)?;
        let seq = self.journal.last_seq();
        Ok(Some((repo, Commit { draft, request, of_group, planned, deck, seq })))
    }

    /// The `deck.toml` of a release's commit. Who goes back to what was stable is not kept from it by the file.
    fn deck_beside(&self, goes_back: bool) -> Result<DeckBeside, ApiError> {
        match self.deck_is_good() {
            Ok(()) => Ok(DeckBeside::Planned(Box::new(self.files.deck.clone()))),
            Err(_) if goes_back => Ok(DeckBeside::AsInGit),
            Err(error) => Err(error),
        }
    }

    /// A release's commit holds `deck.toml`, too: one with a mistake, or of another deck, is not what is planned with.
    fn deck_is_good(&self) -> Result<(), ApiError> {
        let (kind, message, hint) = match &self.files.deck {
            Some(Ok(deck)) if deck.id != self.deck.id => (
                ErrorKind::Conflict,
                "deck.toml has another `id` than the deck that this controller serves".to_owned(),
                format!("put `id = \"{}\"` back", self.deck.id.0),
            ),
            Some(Err(mistake)) => (
                ErrorKind::Invalid,
                format!("deck.toml would be committed with a mistake: {mistake}"),
                "mend deck.toml, then try again".to_owned(),
            ),
            _ => return Ok(()),
        };
        Err(ApiError { kind, message, hint: Some(hint) })
    }

    /// The plan, if it may be begun: with what is accepted and by whom.
    fn plan_to_begin(&self, draft: &Draft, request: &Request) -> Result<Planned, ApiError> {
        let mut planned = self.plan(draft, request.kind)?;
        if planned.view.forecast.outage && !request.accept_outage && !planned.view.nothing_to_do {
            return Err(super::together::outage_refusal(draft.service.as_str(), &planned.view));
        }
        if request.agreed.as_ref().is_some_and(|agreed| *agreed != planned.view.digest())
            && !planned.view.nothing_to_do
        {
            return Err(plan_changed());
        }
        planned.release.author.clone_from(&request.by);
        planned.release.reason.clone_from(&request.reason);
        Ok(planned)
    }

    fn note_planned(&mut self, service: &ServiceName, planned: &Planned) -> Result<(), ApiError> {
        let ready = self.state.services.get(service).map_or(0, ServiceState::ready_total);
        let progress = deck_ledger::foreseen(&planned.view, ready, now());
        self.deck_happened(DeckEvent::Planned { service: service.clone(), progress })
            .map_err(|e| journal_error(&e))
    }

    /// Commits off the loop.
    fn commit_release(&mut self, repo: std::path::PathBuf, commit: Commit, then: Told) {
        let number = commit.planned.release.number;
        self.beginnings.committing = Some((commit.draft.service.clone(), number));
        let inputs = self.means.inputs.clone();
        tokio::spawn(async move {
            let committed = tokio::task::spawn_blocking(move || {
                let made = DeckRepo::open(&repo).map_err(|e| planning::commit_error(&e)).and_then(
                    |repo| {
                        let (release, kind) = (&commit.planned.release, commit.request.kind);
                        planning::commit(&repo, &commit.deck, &commit.draft, release, kind)
                    },
                );
                (commit, made)
            })
            .await;
            let end = Box::new(move |core: &mut Core| {
                let begun = match committed {
                    Ok((commit, Ok(made))) => core.begin_committed(commit, made),
                    Ok((_, Err(error))) => {
                        core.note_never_begun();
                        Err(error)
                    }
                    Err(error) => {
                        core.note_never_begun();
                        Err(ApiError {
                            kind: ErrorKind::Internal,
                            message: format!("the release was not committed: {error}"),
                            hint: Some("apply it again: nothing was begun".to_owned()),
                        })
                    }
                };
                core.beginnings.committing = None;
                then(core, begun);
                if let Some(next) = core.beginnings.waiting.pop_front() {
                    core.begin_rollout(next);
                }
            });
            let _ = inputs.send(Input::Ask(end)).await;
        });
    }

    /// The release is in Git: it begins, or is noted there as one that did not.
    fn begin_committed(
        &mut self,
        commit: Commit,
        Committed { revision, words, index_lags }: Committed,
    ) -> Result<IntentReply, ApiError> {
        let service = commit.draft.service.clone();
        let number = commit.planned.release.number;
        self.state.last_release = self.state.last_release.max(number);
        if index_lags {
            self.index_lags();
        }
        for words in &words {
            self.say(Severity::Warning, Some(&service), words);
        }
        if let (DeckBeside::AsInGit, Err(why)) = (&commit.deck, self.deck_is_good()) {
            let words = format!("deck.toml is left out of the commit of {number}: {}", why.message);
            self.say(Severity::Warning, Some(&service), &words);
        }
        self.share();
        let release = &commit.planned.release;
        self.files.history.entry(service.clone()).or_default().insert(
            0,
            ReleaseView {
                number,
                revision: revision.clone(),
                created: release.created,
                author: release.author.clone(),
                reason: release.reason.clone(),
                outcome: None,
                stop: None,
                progress: None,
                not_here: false,
            },
        );
        self.begin_as_it_is_now(commit, revision).map_err(|error| {
            // The release is in Git already: there it must not look as if it were under way.
            let why = error.message.clone();
            self.record_outcome(&service, number, &Outcome::Failed { why });
            // Its spec is in the work tree, too.
            let told = words.iter().map(|words| format!("; {words}")).collect::<String>();
            ApiError { message: format!("{}{told}", error.message), ..error }
        })
    }

    /// While somebody looked for the key to sign with, hosts may have gone or been taken, and GPUs been given away.
    fn begin_as_it_is_now(
        &mut self,
        commit: Commit,
        revision: Revision,
    ) -> Result<IntentReply, ApiError> {
        let Commit { draft, request, of_group, mut planned, seq, .. } = commit;
        self.may_begin(&draft.service)?;
        // What others of the group were told meanwhile is noted first: it says nothing of this one.
        if of_group {
            self.follow_group();
        }
        if of_group && self.is_held_up(&draft.service, request.kind) {
            return Err(ApiError {
                kind: ErrorKind::Conflict,
                message: "the services that are rolled out together were steered meanwhile"
                    .to_owned(),
                hint: Some("`gpudeck status` shows how far they are".to_owned()),
            });
        }
        if self.journal.last_seq() != seq {
            planned = self.plan_to_begin(&draft, &request)?;
            if planned.view.nothing_to_do {
                return Err(ApiError {
                    kind: ErrorKind::Conflict,
                    message: format!("{} serves this by now", draft.service),
                    hint: Some(format!("`gpudeck status {}` shows it", draft.service)),
                });
            }
            self.note_planned(&draft.service, &planned)?;
        }
        let Planned { mut release, view } = planned;
        release.revision = revision;
        let number = release.number;
        let group = self.state.ledger.group.as_ref().filter(|_| of_group);
        let of_group = group.map(|group| group.began);
        let kind = requested(release, &request, of_group);
        self.try_happened(&draft.service, kind, now()).map_err(|e| journal_error(&e))?;
        Ok(IntentReply::RolloutBegun { release: number, plan: Box::new(view) })
    }
}
