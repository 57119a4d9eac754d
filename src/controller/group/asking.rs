//! How the rollout of one of several services is begun: planned and committed off the loop, and asked for again for a while
//! where what refused it may pass, or be mended.

use std::time::Duration;

use crate::api::{ApiError, ErrorKind, Group, IntentReply, Severity};
use crate::base::{ServiceName, Timestamp};
use crate::controller::begin::Beginning;
use crate::controller::core::{Core, Input, Request, now};
use crate::controller::planning;
use crate::controller::steer::{changed_since, digest};
use crate::controller::turns::Token;
use crate::rollout::RolloutKind;
use crate::rollout::group::{Answer, Begin};

/// What found no room yet is asked for again after so long.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// What was refused for something that people can mend is asked for again after so long.
const ASK_REFUSED_AGAIN: Duration = Duration::from_secs(5);

/// So long a way forward is asked for again: what fails leaves the service as it is.
const FORWARD_FOR: Duration = Duration::from_secs(30);

/// So long a way back is asked for again: without it some of what is all or none stays.
const BACK_FOR: Duration = Duration::from_mins(10);

/// A rollout of one of them that was refused, and is asked for again.
pub(in crate::controller) struct PutOff {
    service: ServiceName,
    kind: RolloutKind,
    since: Timestamp,
    /// As it was told.
    why: String,
}

impl Core {
    /// Why the spec of one is not rolled out: it is not the one whose plan was agreed to.
    pub(super) fn changed_since_agreed(&self, group: &Group, begin: &Begin) -> Option<String> {
        let entry = group.entry(&begin.service).filter(|_| begin.kind == RolloutKind::Apply)?;
        entry.digest.as_ref()?;
        match planning::read_spec(self, &begin.service, None) {
            Ok((_, text, _)) if entry.is_as_agreed(&digest(&text)) => None,
            Ok(_) => Some(changed_since(&begin.service)),
            Err(error) => Some(error.message),
        }
    }

    /// What has changed since this one was asked for: it is not begun now.
    fn is_overtaken(&self, begin: &Begin) -> bool {
        let group = self.state.ledger.group.as_ref();
        let still = group.is_some_and(|group| group.still(begin, &self.state.services));
        let lends = self.state.services.get(&begin.service).is_some_and(|s| !s.loans.is_empty());
        // What is another's, or could not be written down, is not brought on.
        let ours = self.takes_new_work().and_then(|()| self.not_fenced()).is_ok();
        !ours || lends || !still
    }

    /// The same of one that is in Git already.
    pub(in crate::controller) fn is_held_up(
        &self,
        service: &ServiceName,
        kind: RolloutKind,
    ) -> bool {
        self.is_overtaken(&Begin { service: service.clone(), kind, to: None, reason: None })
    }

    /// Begins a rollout; what comes of it becomes the state of the service in the group, unless it is asked for again.
    pub(super) fn ask_for(&mut self, group: &Group, begin: Begin) {
        let service = begin.service.clone();
        let request = Request {
            kind: begin.kind,
            by: group.by.clone(),
            reason: begin.reason.clone(),
            accept_outage: group.accepts_outage(&service, begin.kind),
            agreed: None,
        };
        let settles = group.settles(&service);
        let work = self.may_begin(&service).map(|()| self.draft(service.clone(), begin.to));
        let Some(token) = self.group_asking.take() else { return };
        let entry = group.entry(&service).cloned();
        let inputs = self.means.inputs.clone();
        self.tasks.spawn(async move {
            let draft = match work {
                Ok(work) => work.await,
                Err(error) => Err(error),
            };
            let ask = Box::new(move |core: &mut Core| {
                // What people did meanwhile holds: a pause, an abort, a stop, a newer release.
                if core.is_overtaken(&begin) {
                    core.group_put_off = None;
                    return core.ask_group_again(token, ASK_AGAIN);
                }
                let forward = begin.kind == RolloutKind::Apply;
                let as_agreed = |text: &str| entry.is_none_or(|e| e.is_as_agreed(&digest(text)));
                if let Ok(draft) = &draft
                    && forward
                    && !as_agreed(&draft.text)
                {
                    drop(token);
                    let why = changed_since(&service);
                    core.group_went(&service, begin.answered(Answer::Refused { why }));
                    return;
                }
                let then = move |core: &mut Core, begun: Result<IntentReply, ApiError>| {
                    core.publish_stale();
                    core.group_answer(begin, begun, settles, token);
                };
                match draft {
                    Ok(draft) => core.begin_rollout(Beginning {
                        draft: Box::new(draft),
                        request,
                        of_group: true,
                        then: Box::new(then),
                    }),
                    Err(error) => then(core, Err(error)),
                }
            });
            let _ = inputs.send(Input::Ask(ask)).await;
        });
    }

    /// What the group makes of a reply.
    fn group_answer(
        &mut self,
        begin: Begin,
        begun: Result<IntentReply, ApiError>,
        settles: Timestamp,
        token: Token,
    ) {
        let has_begun = matches!(begun, Ok(IntentReply::RolloutBegun { .. }));
        if !has_begun && self.is_overtaken(&begin) {
            // What was refused before says nothing of what is asked for after it.
            self.group_put_off = None;
            return self.ask_group_again(token, ASK_AGAIN);
        }
        let answer = match begun {
            Ok(IntentReply::RolloutBegun { release, .. }) => Answer::Begun(release),
            Ok(_) => Answer::NothingToDo,
            Err(error) if error.kind == ErrorKind::Unplaceable && now() < settles => {
                return self.ask_group_again(token, ASK_AGAIN);
            }
            Err(error) => {
                let hint = error.hint.map(|hint| format!(" → {hint}")).unwrap_or_default();
                let why = error.message + &hint;
                if may_pass(error.kind, begin.kind) && self.puts_off(&begin, &why) {
                    return self.ask_group_again(token, ASK_REFUSED_AGAIN);
                }
                Answer::Refused { why }
            }
        };
        drop(token);
        self.group_put_off = None;
        self.group_went(&begin.service, begin.answered(answer));
    }

    /// Whether one that was refused is asked for again: for a while, which is told once.
    fn puts_off(&mut self, begin: &Begin, why: &str) -> bool {
        let same =
            |put_off: &PutOff| (&put_off.service, put_off.kind) == (&begin.service, begin.kind);
        let before = self.group_put_off.take().filter(same);
        let since = before.as_ref().map_or_else(now, |put_off| put_off.since);
        let (what, limit) = match begin.kind {
            RolloutKind::Apply => ("its rollout", FORWARD_FOR),
            RolloutKind::Undo => ("its way back", BACK_FOR),
        };
        let until = since.plus(limit);
        if now() >= until {
            return false;
        }
        if before.is_none_or(|put_off| put_off.why != why) {
            let words =
                format!("together with others: {what} is asked for again until {until}: {why}");
            self.say(Severity::Warning, Some(&begin.service), &words);
        }
        let (service, kind) = (begin.service.clone(), begin.kind);
        self.group_put_off = Some(PutOff { service, kind, since, why: why.to_owned() });
        true
    }

    /// What could not begin now is asked for again in a moment.
    fn ask_group_again(&mut self, token: Token, after: Duration) {
        self.tasks.spawn(async move {
            tokio::time::sleep(after).await;
            drop(token);
        });
    }
}

/// What was refused so may be granted later: people mend files and finish a merge, and on the way back also a replica that
/// is down, and room.
fn may_pass(refused: ErrorKind, kind: RolloutKind) -> bool {
    match refused {
        ErrorKind::Invalid | ErrorKind::Conflict => true,
        ErrorKind::Unplaceable | ErrorKind::Outage => kind == RolloutKind::Undo,
        _ => false,
    }
}
