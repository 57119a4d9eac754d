//! What a person asks for in mid-rollout: the next rollout while one is under way (refused, queued, or
//! in place of it), an undo, trying again, skipping a gate.

use tokio::sync::oneshot;

use super::core::{Core, Input, Request, now};
use super::planning;
use crate::api::{
    ApiError, ErrorKind, IntentReply, PLAN_CHANGED, ROLLOUT_CHANGED, SeenRollout, Severity,
};
use crate::base::{ReleaseNumber, ServiceName, Timestamp};
use crate::rollout::{Direction, EventKind, Outcome, QueuedRollout, RolloutKind, ServiceState};
use crate::spec::ConcurrencyPolicy;

pub(super) type Reply = oneshot::Sender<Result<IntentReply, ApiError>>;

/// Why what waited for its turn does not begin: nobody has seen the plan of what it is now.
pub(super) fn changed_since(service: &ServiceName) -> String {
    format!("services/{service}.toml was changed since it was queued")
}

/// What the deck says of a service, in few characters.
pub(super) fn digest(text: &str) -> String {
    blake3::hash(text.as_bytes()).to_hex().to_string()
}

fn conflict(message: String, hint: Option<String>) -> ApiError {
    ApiError { kind: ErrorKind::Conflict, message, hint }
}

/// The plan that somebody has agreed to was made before the rollout that is under way began: neither is that one what
/// they want to be taken back or waited for, nor is it what they have seen.
pub(super) fn planned_at_rest(service: &ServiceName) -> ApiError {
    let hint = format!("a rollout began meanwhile: `gpudeck rollout status {service}`");
    conflict(PLAN_CHANGED.to_owned(), Some(hint))
}

/// That the rollout under way is the one that somebody saw who asks for something.
fn as_seen(
    service: &ServiceName,
    present: Option<(ReleaseNumber, usize)>,
    seen: Option<SeenRollout>,
) -> Result<(), ApiError> {
    let Some(seen) = seen else { return Ok(()) };
    let why = match present {
        Some((to, step)) if seen.is(to, step) => return Ok(()),
        Some((to, step)) if to == seen.to => format!("it is at step {}", step + 1),
        Some((to, _)) => {
            format!("the one to {} has ended, another one to {to} is under way", seen.to)
        }
        None => format!("the one to {} has ended", seen.to),
    };
    let hint = format!("{why}; nothing was done: `gpudeck rollout status {service}`");
    Err(conflict(ROLLOUT_CHANGED.to_owned(), Some(hint)))
}

/// An undo whose reason nobody gave says at least what it goes back to.
fn back_to(to: ReleaseNumber, request: Request) -> Request {
    let reason = request.reason.filter(|r| !r.trim().is_empty());
    Request { reason: Some(reason.unwrap_or_else(|| format!("back to {to}"))), ..request }
}

/// What a retry is for, with the words of who asked.
fn retry_of(to: ReleaseNumber, words: Option<&str>) -> String {
    match words.map(str::trim).filter(|words| !words.is_empty()) {
        Some(words) => format!("retry of {to}: {words}"),
        None => format!("retry of {to}"),
    }
}

/// Why an undo is not the fast one, for people.
pub(super) fn was_never_stable(to: ReleaseNumber) -> String {
    format!("{to} was never stable: it goes through the steps of its spec, like an apply")
}

impl Core {
    /// Whether the rollout under way is still the one that was `seen`; whatever it is where nobody says.
    pub(super) fn is_as_seen(
        &self,
        service: &ServiceName,
        seen: Option<SeenRollout>,
    ) -> Result<(), ApiError> {
        let state = self.state.services.get(service);
        let present = state.and_then(ServiceState::active_rollout).map(|r| (r.to, r.step));
        as_seen(service, present, seen)
    }

    /// Begins a rollout, or does what the policy says while another one is under way.
    pub(super) fn ask_rollout(
        &mut self,
        service: ServiceName,
        to: Option<ReleaseNumber>,
        request: Request,
        policy: Option<ConcurrencyPolicy>,
        reply: Reply,
    ) {
        if self.state.services.get(&service).and_then(ServiceState::active_rollout).is_none() {
            if let Err(error) = self.not_waiting_in_group(&service, policy) {
                return self.answer(reply, Err(error));
            }
            return self.begin_or_queue(service, to, request, policy, reply);
        }
        if request.agreed.is_some() {
            return self.answer(reply, Err(planned_at_rest(&service)));
        }
        self.queue_as_planned(service, to, request, policy, reply);
    }

    /// Whether it may wait at all, or replace what is under way: what is said of it whatever its plan is. Its text, too.
    pub(super) fn may_queue(
        &self,
        service: &ServiceName,
        to: Option<ReleaseNumber>,
        policy: Option<ConcurrencyPolicy>,
    ) -> Result<(String, ConcurrencyPolicy, ReleaseNumber, bool), ApiError> {
        self.takes_new_work()?;
        // What cannot be read now is refused now.
        let (spec, text, _) = planning::read_spec(self, service, to)?;
        let state = self.state.services.get(service);
        let Some((state, rollout)) = state.and_then(|s| Some((s, s.active_rollout()?))) else {
            return Err(conflict(
                format!("no rollout of {service} is under way"),
                Some(format!("`gpudeck apply {service}` begins one at once")),
            ));
        };
        let (behind, forward) = (rollout.to, rollout.direction == Direction::Forward);
        let policy = policy.unwrap_or(spec.rollout.concurrency_policy);
        if policy == ConcurrencyPolicy::Forbid {
            self.may_begin(service)?;
        }
        let same = state.releases.get(&behind).is_some_and(|r| r.spec == spec);
        if policy != ConcurrencyPolicy::Forbid && forward && same {
            return Err(conflict(
                format!("the rollout of {service} to {behind} under way is to just this spec"),
                Some(format!("`gpudeck rollout status {service} --wait` waits for its end")),
            ));
        }
        Ok((text, policy, behind, forward))
    }

    /// Lets it wait, or takes back what is under way.
    pub(super) fn queue(
        &mut self,
        service: &ServiceName,
        to: Option<ReleaseNumber>,
        request: &Request,
        policy: Option<ConcurrencyPolicy>,
    ) -> Result<IntentReply, ApiError> {
        let (text, policy, behind, forward) = self.may_queue(service, to, policy)?;
        let wish = QueuedRollout {
            asked: now(),
            kind: request.kind,
            to,
            digest: to.is_none().then(|| digest(&text)),
            by: request.by.clone(),
            reason: request.reason.clone(),
            accept_outage: request.accept_outage,
        };
        let replace = policy == ConcurrencyPolicy::Replace;
        self.on_service(service, EventKind::Queued { wish: Box::new(wish), replace })?;
        let queued = self.state.services.get(service).and_then(|s| s.queued.as_ref());
        let asked = queued.map(|queued| queued.asked);
        Ok(IntentReply::Queued { behind, replaces: replace && forward, asked })
    }

    /// Takes a queued rollout out again.
    pub(super) fn cancel_queued(
        &mut self,
        service: &ServiceName,
        by: String,
    ) -> Result<IntentReply, ApiError> {
        let queued = self.state.services.get(service).and_then(|s| s.queued.as_ref());
        let Some(asked) = queued.map(|q| q.asked) else {
            if !self.known_services().contains(service) {
                return Err(planning::not_found(service, self.known_services()));
            }
            return Err(conflict(
                format!("no rollout of {service} is queued"),
                Some(format!(
                    "`gpudeck status {service}` shows what is under way, `gpudeck audit` what became of it"
                )),
            ));
        };
        self.on_service(service, EventKind::QueueCancelled { asked, by })
    }

    /// Begins the queued rollouts whose turn it is.
    pub(super) fn tend_queue(&mut self) {
        let due: Vec<(ServiceName, QueuedRollout)> = self
            .state
            .services
            .iter()
            .filter(|(name, _)| !self.queue_asking.is_taken(name))
            .filter_map(|(name, state)| Some((name.clone(), state.queued_due()?.clone())))
            .collect();
        if due.is_empty() || self.is_handing_over() || !self.all_hosts_heard_of() {
            return;
        }
        for (service, wish) in due {
            self.begin_queued(service, wish);
        }
    }

    fn begin_queued(&mut self, service: ServiceName, wish: QueuedRollout) {
        if wish.to.is_none() {
            let read = planning::read_spec(self, &service, None);
            let changed = match read {
                Ok((_, text, _)) => wish
                    .digest
                    .as_ref()
                    .is_some_and(|then| *then != digest(&text))
                    .then(|| changed_since(&service)),
                Err(error) => Some(error.message),
            };
            if let Some(why) = changed {
                self.refuse_queued(&service, wish.asked, why);
                return;
            }
        }
        let request = Request {
            kind: wish.kind,
            by: wish.by.clone(),
            reason: wish.reason.clone(),
            accept_outage: wish.accept_outage,
            agreed: None,
        };
        let (reply, answer) = oneshot::channel();
        let Some(token) = self.queue_asking.take(&service) else { return };
        self.prepare(service.clone(), wish.to, request, reply);
        let inputs = self.means.inputs.clone();
        self.tasks.spawn(async move {
            let answer = answer.await;
            let tell = Box::new(move |core: &mut Core| {
                drop(token);
                core.queued_answer(&service, wish.asked, answer.ok());
            });
            let _ = inputs.send(Input::Ask(tell)).await;
        });
    }

    fn queued_answer(
        &mut self,
        service: &ServiceName,
        asked: Timestamp,
        answer: Option<Result<IntentReply, ApiError>>,
    ) {
        match answer {
            Some(Ok(IntentReply::NothingToDo)) => {
                let why = "nothing to do: it is what is served".to_owned();
                self.refuse_queued(service, asked, why);
            }
            // Somebody else was faster, or these hosts are not ours now: it waits on.
            Some(Err(error)) if matches!(error.kind, ErrorKind::Conflict | ErrorKind::Fenced) => {
                let waits = self
                    .state
                    .services
                    .get(service)
                    .is_some_and(|s| s.active_rollout().is_some() || s.stopping);
                if !waits && error.kind == ErrorKind::Conflict {
                    self.refuse_queued(service, asked, error.message);
                }
            }
            Some(Err(error)) => self.refuse_queued(service, asked, error.message),
            // It has begun, which ends the waiting; or there was no answer, and the next tick asks.
            Some(Ok(_)) | None => {}
        }
    }

    fn refuse_queued(&mut self, service: &ServiceName, asked: Timestamp, why: String) {
        self.happened(service, EventKind::QueueRefused { asked, why });
    }

    /// Goes back to an earlier release. In mid-rollout the one before the present is what the rollout
    /// came from, so it is taken back; another one comes after that.
    pub(super) fn undo(
        &mut self,
        service: ServiceName,
        to: Option<ReleaseNumber>,
        request: Request,
        reply: Reply,
    ) {
        let state = self.state.services.get(&service);
        let Some(rollout) = state.and_then(ServiceState::active_rollout) else {
            match self.undo_target(&service, to) {
                Ok(to) => {
                    let request = self.undo_request(&service, to, request);
                    self.prepare(service, Some(to), request, reply);
                }
                Err(error) => {
                    let _ = reply.send(Err(error));
                }
            }
            return;
        };
        if request.agreed.is_some() {
            return self.answer(reply, Err(planned_at_rest(&service)));
        }
        let (from, present) = (rollout.from, rollout.to);
        let forward = rollout.direction == Direction::Forward;
        let result = match to {
            _ if from.is_none() && to.is_none() => Err(conflict(
                format!("the first rollout of {service} is under way: there is nothing before it"),
                Some(format!("`gpudeck rollout abort {service}` stops what was started")),
            )),
            Some(to) if to == present && forward => Err(conflict(
                format!("the rollout of {service} to {to} is under way"),
                Some(format!("`gpudeck rollout abort {service}` takes it back")),
            )),
            Some(to) if from != Some(to) => match self.undo_target(&service, Some(to)) {
                Ok(to) => {
                    let request = self.undo_request(&service, to, request);
                    let policy = Some(ConcurrencyPolicy::Replace);
                    return self.queue_as_planned(service, Some(to), request, policy, reply);
                }
                Err(error) => Err(error),
            },
            _ if forward => {
                let (by, reason) = (request.by, request.reason.or(Some("undo".to_owned())));
                self.on_service(&service, EventKind::Aborted { by, reason })
            }
            // It goes back there already.
            _ => Ok(IntentReply::Accepted),
        };
        self.answer(reply, result);
    }

    /// With what an undo has to say, and as the kind that it is.
    fn undo_request(
        &mut self,
        service: &ServiceName,
        to: ReleaseNumber,
        request: Request,
    ) -> Request {
        let kind = self.undo_kind(service, to);
        if kind == RolloutKind::Apply {
            self.say(Severity::Info, Some(service), &was_never_stable(to));
        }
        Request { kind, ..back_to(to, request) }
    }

    /// Tries again what failed: within the rollout that is held, or by a new one of the same revision. Who has `agreed`
    /// to the plan of a new one does not mean the one that is held by now.
    pub(super) fn retry(&mut self, service: ServiceName, request: Request, reply: Reply) {
        let is_held = self.state.services.get(&service).is_some_and(ServiceState::retryable);
        if is_held && request.agreed.is_none() {
            let (by, reason) = (request.by, request.reason);
            let retried = self.on_service(&service, EventKind::Retried { by, reason });
            return self.answer(reply, retried);
        }
        match self.retry_target(&service) {
            Ok((to, kind)) => {
                let reason = Some(retry_of(to, request.reason.as_deref()));
                let request = Request { kind, reason, ..request };
                self.prepare(service, Some(to), request, reply);
            }
            Err(error) => self.answer(reply, Err(error)),
        }
    }

    /// What a retry begins anew after a rollout that was taken back, aborted or failed.
    pub(super) fn retry_target(
        &self,
        service: &ServiceName,
    ) -> Result<(ReleaseNumber, RolloutKind), ApiError> {
        let Some(state) = self.state.services.get(service) else {
            if !self.known_services().contains(service) {
                return Err(planning::not_found(service, self.known_services()));
            }
            return Err(conflict(
                format!("nothing of {service} was rolled out yet"),
                Some(format!("`gpudeck apply {service}` rolls out its spec")),
            ));
        };
        match &state.rollout {
            Some(rollout) if state.retryable() => Err(conflict(
                format!(
                    "what failed in the rollout of {service} to {} needs no new plan",
                    rollout.to
                ),
                Some(format!("`gpudeck rollout retry {service}` tries it again")),
            )),
            Some(rollout) if rollout.outcome.is_none() => Err(match rollout.direction {
                Direction::Forward => conflict(
                    format!("nothing of the rollout of {service} to {} has failed", rollout.to),
                    Some(format!(
                        "`gpudeck rollout skip {service}` or `promote {service}` pass what holds it"
                    )),
                ),
                Direction::Back { .. } => conflict(
                    format!("{} is being taken back", rollout.to),
                    Some(format!(
                        "wait for its end (`gpudeck rollout status {service} --wait`), then retry"
                    )),
                ),
            }),
            Some(rollout) if !matches!(rollout.outcome, None | Some(Outcome::Completed)) => {
                Ok((rollout.to, rollout.kind))
            }
            _ => Err(conflict(
                format!("the last rollout of {service} did not fail"),
                Some(format!("`gpudeck apply {service}` rolls out its spec")),
            )),
        }
    }

    /// Passes the present step. Who asks twice for the same one has what they asked for.
    pub(super) fn promote(
        &mut self,
        service: &ServiceName,
        wish: EventKind,
    ) -> Result<IntentReply, ApiError> {
        if let (EventKind::Promoted { step: Some(step), .. }, Some(state)) =
            (&wish, self.state.services.get(service))
            && state.already_passed(*step)
            && state.active_rollout().is_none_or(|_| state.futile(&wish).is_some())
        {
            return Ok(IntentReply::AlreadyPassed { step: *step + 1 });
        }
        self.on_rollout(service, wish)
    }

    /// Does not wait for the present gate.
    pub(super) fn skip(
        &mut self,
        service: &ServiceName,
        by: String,
        reason: String,
    ) -> Result<IntentReply, ApiError> {
        if reason.trim().is_empty() {
            return Err(ApiError {
                kind: ErrorKind::Invalid,
                message: "a gate is skipped only with a reason".to_owned(),
                hint: Some("--reason \"…\" stays in the history and the audit trail".to_owned()),
            });
        }
        let state = self.state.services.get(service);
        if let Some(state) = state.filter(|s| s.active_rollout().is_some())
            && state.skippable().is_none()
        {
            let rollout = state.active_rollout();
            let goes_back = rollout.is_some_and(|r| matches!(r.direction, Direction::Back { .. }));
            let hint = if state.retryable() {
                format!("it failed: `gpudeck rollout retry {service}` or `abort {service}`")
            } else if goes_back {
                format!(
                    "it is on its way back: `gpudeck rollout status {service}` shows how far it is"
                )
            } else {
                format!("`gpudeck rollout promote {service}` goes on to the next step")
            };
            return Err(conflict(format!("no gate holds the rollout of {service}"), Some(hint)));
        }
        self.on_rollout(service, EventKind::Skipped { by, reason })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rollout_that_is_not_the_one_that_was_seen_is_left_alone() {
        let service: ServiceName = "chat".parse().unwrap();
        let present = Some((ReleaseNumber(4), 2));
        assert!(as_seen(&service, None, None).is_ok());
        assert!(as_seen(&service, present, None).is_ok());
        for (to, step, present, why) in [
            (4, None, present, None),
            (4, Some(2), present, None),
            (4, Some(1), present, Some("it is at step 3;")),
            (3, None, present, Some("the one to r3 has ended, another one to r4 is under way;")),
            (4, None, None, Some("the one to r4 has ended;")),
        ] {
            let seen = Some(SeenRollout { to: ReleaseNumber(to), step });
            let error = as_seen(&service, present, seen).err();
            assert_eq!(error.is_some(), why.is_some(), "{error:?}");
            if let (Some(error), Some(why)) = (error, why) {
                assert_eq!(error.message, ROLLOUT_CHANGED);
                assert!(error.hint.as_ref().unwrap().starts_with(why), "{error:?}");
            }
        }
    }

    #[test]
    fn a_retry_says_why_in_the_words_of_who_asked() {
        let to = ReleaseNumber(3);
        assert_eq!(retry_of(to, None), "retry of r3");
        assert_eq!(retry_of(to, Some(" ")), "retry of r3");
        assert_eq!(
            retry_of(to, Some("the driver was mended")),
            "retry of r3: the driver was mended"
        );
    }
}
