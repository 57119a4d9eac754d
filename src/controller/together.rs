//! Several services planned in their order: each on the world as those before it leave it, so that what cannot be
//! done whole is refused before anything is touched.

use futures::future::BoxFuture;

use super::core::Core;
use super::planning::{self, Draft};
use super::world;
use crate::api::{ApiError, ErrorKind, PlanView};
use crate::base::{Hint, ServiceName};
use crate::placement::HostCapacity;
use crate::rollout::{Release, RolloutKind, forecast, group};

/// The drafts of several services, in the order in which they are rolled out.
pub(super) type Drafts = BoxFuture<'static, Result<Vec<Draft>, ApiError>>;

impl Core {
    /// What each host has when what is planned begins. Without a service everything that any replica holds is taken.
    pub(super) fn capacities(&self, service: Option<&ServiceName>) -> Vec<HostCapacity> {
        let mut hosts =
            self.hub.with(|s| world::hosts_beside(s.hosts.values(), &self.state, service));
        self.ahead.on(&mut hosts);
        hosts
    }

    /// Orders the services by the `after` of their specs, and reads what is needed to plan them, off the loop.
    pub(super) fn together_drafts(&self, services: &[ServiceName]) -> Result<Drafts, ApiError> {
        if services.is_empty() {
            return Err(ApiError {
                kind: ErrorKind::Invalid,
                message: "no services are named".to_owned(),
                hint: Some("name those that are to be rolled out together".to_owned()),
            });
        }
        let mut after = std::collections::BTreeMap::new();
        for service in services {
            let (spec, _, _) = planning::read_spec(self, service, None)?;
            self.may_begin_together(service)?;
            after.insert(service.clone(), spec.rollout.after);
        }
        let order = group::order(&after).map_err(|e| ApiError {
            kind: ErrorKind::Invalid,
            message: e.to_string(),
            hint: e.hint(),
        })?;
        let work: Vec<_> = order.into_iter().map(|service| self.draft(service, None)).collect();
        Ok(Box::pin(async move { futures::future::join_all(work).await.into_iter().collect() }))
    }

    /// The plan of each, made in the world that those before it leave. Nothing is touched.
    ///
    /// # Errors
    /// The first one that cannot be planned, with those that come before it.
    pub(super) fn plan_together(&mut self, drafts: &[Draft]) -> Result<Vec<PlanView>, ApiError> {
        let present = self.state.clone();
        let plans = self.plan_in_turn(drafts);
        self.state = present;
        self.ahead = world::Ahead::default();
        plans
    }

    fn plan_in_turn(&mut self, drafts: &[Draft]) -> Result<Vec<PlanView>, ApiError> {
        let mut plans = Vec::new();
        for (index, draft) in drafts.iter().enumerate() {
            let before = drafts.get(..index).unwrap_or_default();
            // Who lends may be rolled out just before, and for the first time.
            let mut draft = draft.clone();
            let lender = draft.spec.rollout.borrow.as_ref();
            if let Some(lender) = before.iter().find(|d| Some(&d.service) == lender) {
                draft.lender = Some(Box::new(lender.clone()));
            }
            let planned = self
                .plan(&draft, RolloutKind::Apply)
                .map_err(|error| refused(&draft.service, before, error))?;
            if !planned.view.nothing_to_do {
                self.go_ahead(&planned.release);
            }
            plans.push(planned.view);
        }
        Ok(plans)
    }

    /// As if the release were rolled out already.
    fn go_ahead(&mut self, release: &Release) {
        let service = &release.service;
        let before = self.state.clone();
        let Some(after) = forecast::state_after(self.state.service(service), release) else {
            return;
        };
        self.state.services.insert(service.clone(), after);
        self.state.last_release = self.state.last_release.max(release.number);
        let mut touched = vec![service];
        if let Some(borrowing) = release.borrowing.as_deref() {
            touched.push(&borrowing.lender);
            let lender = self.state.services.get_mut(&borrowing.lender);
            if let Some(lent_of) = lender.and_then(|l| l.releases.get_mut(&borrowing.of)) {
                for lent in &borrowing.replicas {
                    let taken = release.replicas.iter().any(|new| new.conflicts_with(&lent.plan));
                    let place = usize::try_from(lent.replica)
                        .ok()
                        .and_then(|i| lent_of.change().replicas.get_mut(i));
                    if let (true, Some(place), Some(back)) = (taken, place, &lent.back) {
                        place.clone_from(back);
                    }
                }
            }
        }
        for service in touched {
            let held = world::reusable(&before, service);
            self.ahead.goes(held, world::reusable(&self.state, service));
        }
    }
}

/// An OUTAGE has to be accepted; what would avoid it is told.
pub(super) fn outage_refusal(whose: &str, plan: &PlanView) -> ApiError {
    ApiError {
        kind: ErrorKind::Outage,
        message: format!("{whose}: OUTAGE: no replica would be ready in between"),
        hint: Some(match &plan.forecast.remedy {
            Some(change) => format!("{change}, or accept it with --accept-outage"),
            None => "give it another replica, or accept it with --accept-outage".to_owned(),
        }),
    }
}

/// Refuses an OUTAGE that was not accepted, before the first of them begins.
pub(super) fn no_outage(drafts: &[Draft], plans: &[PlanView]) -> Result<(), ApiError> {
    match plans.iter().enumerate().find(|(_, plan)| plan.forecast.outage) {
        Some((index, plan)) => {
            let before = drafts.get(..index).unwrap_or_default();
            Err(outage_refusal(&in_turn(&plan.service, before), plan))
        }
        None => Ok(()),
    }
}

/// Whose plan cannot be made, and after whose; where nothing less helps, one of them has to give way.
fn refused(service: &ServiceName, before: &[Draft], error: ApiError) -> ApiError {
    let no_room = error.kind == ErrorKind::Unplaceable && !before.is_empty();
    ApiError {
        message: format!("{}: {}", in_turn(service, before), error.message),
        hint: error.hint.or_else(|| {
            no_room.then(|| {
                format!(
                    "leave {service} out, or give {} fewer replicas: there is no room for all",
                    names(before)
                )
            })
        }),
        ..error
    }
}

/// `code, after chat`.
fn in_turn(service: &ServiceName, before: &[Draft]) -> String {
    if before.is_empty() {
        return service.to_string();
    }
    format!("{service}, after {}", names(before))
}

fn names(drafts: &[Draft]) -> String {
    drafts.iter().map(|d| d.service.as_str()).collect::<Vec<_>>().join(" and ")
}
