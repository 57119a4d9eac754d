//! From a wish for a release to a draft of it: which one an undo goes back to, whether one may begin.

use std::sync::Arc;

use futures::future::BoxFuture;
use tokio::sync::oneshot;

use super::super::gateways::Gateways;
use super::super::planning::{self, Draft, Planned};
use super::Core;
use super::input::{Input, Request};
use crate::api::{ApiError, ErrorKind, IntentReply};
use crate::base::{HostName, ReleaseNumber, ServiceName};
use crate::rollout::{Outcome, RolloutKind};
use crate::spec::Strategy;

impl Core {
    /// The release an undo goes back to.
    pub(in crate::controller) fn undo_target(
        &self,
        service: &ServiceName,
        to: Option<ReleaseNumber>,
    ) -> Result<ReleaseNumber, ApiError> {
        let history = self.files.history.get(service).map(Vec::as_slice).unwrap_or_default();
        let present = self.state.services.get(service).and_then(|s| s.stable);
        if let Some(to) = to {
            let shown = history.iter().any(|r| r.number == to);
            return if shown || self.was_ever(service, to) {
                Ok(to)
            } else {
                Err(ApiError {
                    kind: ErrorKind::NotFound,
                    message: format!("{service} has no release {to}"),
                    hint: Some(format!("`gpudeck history {service}` lists them")),
                })
            };
        }
        let target = history
            .iter()
            .find(|r| Some(r.number) != present && r.outcome == Some(Outcome::Completed))
            .map(|r| r.number)
            .ok_or_else(|| ApiError {
                kind: ErrorKind::Conflict,
                message: format!("{service} has no earlier release that is known to have been stable"),
                hint: Some(if history.iter().any(|r| r.outcome.is_none()) {
                    // A clone brings the commits alone; how rollouts ended stands in notes.
                    "how some ended is not known here: `gpudeck deck fetch` brings it from the remote, \
                     and `--to` goes to any release"
                        .to_owned()
                } else {
                    format!("`gpudeck history {service}` shows what there is")
                }),
            })?;
        // Who means the release that failed a moment ago must not take back the good one.
        let last = self.state.services.get(service).and_then(|s| s.rollout.as_ref());
        let taken_back =
            last.filter(|r| r.outcome.as_ref().is_some_and(|o| *o != Outcome::Completed));
        match (taken_back, present) {
            (Some(rollout), Some(present)) if rollout.to > present => Err(ApiError {
                kind: ErrorKind::Conflict,
                message: format!(
                    "{} of {service} was taken back already; {present} is served",
                    rollout.to
                ),
                hint: Some(format!(
                    "`gpudeck rollout undo {service} --to {target}` goes further back"
                )),
            }),
            _ => Ok(target),
        }
    }

    /// The fast way back, if the release was ever stable; else through its steps.
    pub(in crate::controller) fn undo_kind(
        &self,
        service: &ServiceName,
        to: ReleaseNumber,
    ) -> RolloutKind {
        if self.state.services.get(service).is_some_and(|s| s.stable == Some(to)) {
            return RolloutKind::Undo;
        }
        let history = self.files.history.get(service).map(Vec::as_slice).unwrap_or_default();
        if let Some(shown) = history.iter().find(|r| r.number == to) {
            return RolloutKind::of_undo(shown.outcome.as_ref());
        }
        let entries = self.repo.as_ref().and_then(|r| r.history(service, usize::MAX).ok());
        let entry = entries.and_then(|all| all.into_iter().find(|e| e.release == to));
        RolloutKind::of_undo(entry.and_then(|e| e.outcome).as_ref())
    }

    /// Whether Git has this release of the service, though it is older than what is shown.
    fn was_ever(&self, service: &ServiceName, number: ReleaseNumber) -> bool {
        let entries = self.repo.as_ref().and_then(|r| r.history(service, usize::MAX).ok());
        entries.is_some_and(|entries| entries.iter().any(|e| e.release == number))
    }

    /// Reads and inspects what is to be rolled out, off the loop; it comes back as `Begin`.
    pub(in crate::controller) fn prepare(
        &mut self,
        service: ServiceName,
        to: Option<ReleaseNumber>,
        request: Request,
        reply: oneshot::Sender<Result<IntentReply, ApiError>>,
    ) {
        if let Err(error) = self.may_begin(&service) {
            let _ = reply.send(Err(error));
            return;
        }
        let work = self.draft(service, to);
        let inputs = self.means.inputs.clone();
        self.tasks.spawn(async move {
            match work.await {
                Ok(draft) => {
                    let input = Input::Begin { draft: Box::new(draft), request, reply };
                    let _ = inputs.send(input).await;
                }
                Err(error) => {
                    let _ = reply.send(Err(error));
                }
            }
        });
    }

    pub(in crate::controller) fn may_begin(&self, service: &ServiceName) -> Result<(), ApiError> {
        self.takes_new_work()?;
        self.not_fenced()?;
        if self.repo.is_none() {
            return Err(ApiError {
                kind: ErrorKind::Conflict,
                message: "there is no deck here, so nothing can be rolled out".to_owned(),
                hint: Some("`gpudeck init` makes one".to_owned()),
            });
        }
        if let Some(state) = self.state.services.get(service)
            && let Some(rollout) = state.active_rollout()
        {
            return Err(ApiError {
                kind: ErrorKind::Conflict,
                message: format!("a rollout of {service} to {} is under way", rollout.to),
                hint: Some(format!(
                    "wait for it (`gpudeck rollout status {service} --wait`), take it back (`gpudeck rollout abort {service}`), or apply with --concurrency-policy queue or replace"
                )),
            });
        }
        if self.state.services.get(service).is_some_and(|s| s.stopping) {
            return Err(ApiError {
                kind: ErrorKind::Conflict,
                message: format!("{service} is being stopped"),
                hint: Some("wait until it has stopped, then apply again".to_owned()),
            });
        }
        Ok(())
    }

    /// The work of reading a spec and inspecting its model.
    pub(in crate::controller) fn draft(
        &self,
        service: ServiceName,
        to: Option<ReleaseNumber>,
    ) -> BoxFuture<'static, Result<Draft, ApiError>> {
        let spec = planning::read_spec(self, &service, to);
        let lender = spec.as_ref().ok().and_then(|(spec, _, _)| self.lender_of(spec));
        let gateways = spec.as_ref().ok().and_then(|(spec, _, _)| {
            // Only a canary lives by its weight.
            let weighed = spec.rollout.effective_strategy() == Strategy::Canary;
            let state = self.state.services.get(&service);
            Some((Gateways::to_be(&self.deck, &service, state, spec)?, weighed))
        });
        let means = Arc::clone(&self.means);
        // Only a journal that begins with nothing can have lost something.
        let knows_nothing = self.state.term == 0 && self.state.services.is_empty();
        let hosts: Vec<HostName> = self.hub.with(|s| {
            s.hosts
                .values()
                .filter(|h| super::super::world::is_up(h))
                .map(|h| h.name.clone())
                .collect()
        });
        Box::pin(async move {
            let (spec, text, revision) = spec?;
            // Who holds the hosts must be known before anything is begun.
            let links: Vec<_> = hosts.iter().filter_map(|host| means.fleet.link(host)).collect();
            let looks = links.iter().map(|link| means.claims.look_after(link.as_ref()));
            futures::future::join_all(looks).await;
            if knows_nothing && let Some(left) = super::super::saved::left_by_us(&means).await {
                return Err(ApiError {
                    kind: ErrorKind::Fenced,
                    message: format!(
                        "{left} was rolled out by an earlier controller whose journal is not here"
                    ),
                    hint: Some(
                        "`gpudeck controller take-over` goes on from what it left on the hosts"
                            .to_owned(),
                    ),
                });
            }
            let mut draft =
                planning::draft(&means, service, spec, text, revision, hosts.clone()).await?;
            planning::look_for(&means, &mut draft, hosts.clone()).await;
            if let Some((gateways, weighed)) = gateways {
                draft.warnings.extend(gateways.look(&means, weighed).await?);
            }
            if let Some((lender, spec)) = lender {
                // Where its replicas come back is part of the plan. Without it nothing is borrowed.
                let lenders =
                    planning::draft(&means, lender, spec, String::new(), None, hosts).await;
                draft.lender = lenders.ok().map(Box::new);
            }
            Ok(draft)
        })
    }

    pub(in crate::controller) fn plan(
        &self,
        draft: &Draft,
        kind: RolloutKind,
    ) -> Result<Planned, ApiError> {
        planning::plan(self, draft, kind)
    }
}
