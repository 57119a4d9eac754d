//! What is planned while a rollout is under way: on the service as it will be when that one has ended, or was taken
//! back for it. Nothing is touched.

use super::begin::{Beginning, Told};
use super::core::{Core, Input, Request};
use super::planning::Draft;
use super::steer::{Reply, planned_at_rest};
use super::{together, world};
use crate::api::{ApiError, ErrorKind, PlanBehind, PlanView};
use crate::base::{ReleaseNumber, ServiceName};
use crate::rollout::{Direction, RolloutKind, ServiceState, forecast};
use crate::spec::ConcurrencyPolicy;

impl Core {
    /// A rollout of this service is under way.
    pub(super) fn is_under_way(&self, service: &ServiceName) -> bool {
        self.state.services.get(service).and_then(ServiceState::active_rollout).is_some()
    }

    /// The plan of what comes after the rollout under way; none where nobody can say how that one leaves the service.
    ///
    /// # Errors
    /// It could not be begun then, either.
    pub(super) fn plan_behind(
        &mut self,
        draft: &Draft,
        kind: RolloutKind,
        policy: Option<ConcurrencyPolicy>,
    ) -> Result<Option<PlanView>, ApiError> {
        let service = draft.service.clone();
        let policy = policy.unwrap_or(draft.spec.rollout.concurrency_policy);
        let Some(state) = self.state.services.get(&service) else { return Ok(None) };
        let Some(rollout) = state.active_rollout() else { return Ok(None) };
        let replaces =
            policy == ConcurrencyPolicy::Replace && rollout.direction == Direction::Forward;
        let behind = PlanBehind {
            release: rollout.to,
            replaces,
            refused: policy == ConcurrencyPolicy::Forbid,
        };
        // What it has borrowed comes back to the lender in the lender's own time.
        if state.releases.get(&rollout.to).is_some_and(|r| r.borrowing.is_some()) {
            return Ok(None);
        }
        let given_up = state.queued.as_ref().map(|queued| {
            format!("what {} queued ({}) is given up for it", queued.by, queued.what())
        });
        let Some(after) = forecast::state_when_over(state, replaces) else { return Ok(None) };
        let present = self.state.clone();
        self.state.services.insert(service.clone(), after);
        let before = world::reusable(&present, &service);
        self.ahead.foresees(&service, behind.release);
        self.ahead.goes(before, world::reusable(&self.state, &service));
        let planned = self.plan(draft, kind);
        self.state = present;
        self.ahead = world::Ahead::default();
        let mut view = planned?.view;
        view.warnings.extend(given_up);
        view.behind = Some(behind);
        Ok(Some(view))
    }

    /// Begins it. If another rollout of the service begins while this one is planned, it does what its policy says of
    /// one under way: it was given for that.
    pub(super) fn begin_or_queue(
        &mut self,
        service: ServiceName,
        to: Option<ReleaseNumber>,
        request: Request,
        policy: Option<ConcurrencyPolicy>,
        reply: Reply,
    ) {
        if let Err(error) = self.may_begin(&service) {
            return self.answer(reply, Err(error));
        }
        let work = self.draft(service.clone(), to);
        let inputs = self.means.inputs.clone();
        self.tasks.spawn(async move {
            let draft = work.await;
            let again = request.clone();
            let then: Told = Box::new(move |core, begun| {
                let is_late = begun.as_ref().is_err_and(|e| e.kind == ErrorKind::Conflict)
                    && core.is_under_way(&service);
                match begun {
                    Err(_) if is_late && again.agreed.is_some() => {
                        core.answer(reply, Err(planned_at_rest(&service)));
                    }
                    Err(_) if is_late => core.queue_as_planned(service, to, again, policy, reply),
                    begun => core.answer(reply, begun),
                }
            });
            let begin = Box::new(move |core: &mut Core| match draft {
                Ok(draft) => {
                    let draft = Box::new(draft);
                    core.begin_rollout(Beginning { draft, request, of_group: false, then });
                }
                Err(error) => then(core, Err(error)),
            });
            let _ = inputs.send(Input::Ask(begin)).await;
        });
    }

    /// Queues it, if it could be begun on the service as it will be: before anything good is taken back.
    pub(super) fn queue_as_planned(
        &mut self,
        service: ServiceName,
        to: Option<ReleaseNumber>,
        request: Request,
        policy: Option<ConcurrencyPolicy>,
        reply: Reply,
    ) {
        if let Err(error) = self.may_queue(&service, to, policy) {
            return self.answer(reply, Err(error));
        }
        let work = self.draft(service, to);
        let inputs = self.means.inputs.clone();
        tokio::spawn(async move {
            let draft = work.await;
            let tell = Box::new(move |core: &mut Core| match draft {
                Ok(draft) => core.queue_draft(&draft, to, request, policy, reply),
                Err(error) => core.answer(reply, Err(error)),
            });
            let _ = inputs.send(Input::Ask(tell)).await;
        });
    }

    fn queue_draft(
        &mut self,
        draft: &Draft,
        to: Option<ReleaseNumber>,
        request: Request,
        policy: Option<ConcurrencyPolicy>,
        reply: Reply,
    ) {
        let service = draft.service.clone();
        if !self.is_under_way(&service) {
            // It has ended meanwhile: the turn is now.
            return self.prepare(service, to, request, reply);
        }
        let queued = self
            .good_behind(draft, &request, policy)
            .and_then(|()| self.queue(&service, to, &request, policy));
        self.answer(reply, queued);
    }

    fn good_behind(
        &mut self,
        draft: &Draft,
        request: &Request,
        policy: Option<ConcurrencyPolicy>,
    ) -> Result<(), ApiError> {
        let Some(plan) = self.plan_behind(draft, request.kind, policy)? else { return Ok(()) };
        if plan.forecast.outage && !request.accept_outage && !plan.nothing_to_do {
            return Err(together::outage_refusal(draft.service.as_str(), &plan));
        }
        Ok(())
    }
}

/// Nobody can say how the rollout under way leaves the service.
pub(super) fn not_foreseen(service: &ServiceName) -> ApiError {
    ApiError {
        kind: ErrorKind::Conflict,
        message: format!(
            "a rollout of {service} is under way, and how it leaves the service cannot be foreseen"
        ),
        hint: Some(format!(
            "`gpudeck rollout status {service} --wait` waits for its end; what is queued is planned then"
        )),
    }
}
