//! What people ask of one service while it waits for its turn among several: it counts as one whose rollout is under way.
//! What follows for the group is decided in `rollout::group`.

use crate::api::{ApiError, ErrorKind, GroupState, IntentReply};
use crate::base::{ServiceName, text};
use crate::controller::core::Core;
use crate::controller::planning;
use crate::spec::ConcurrencyPolicy;

/// Longest words of why one is left out, in characters.
const MAX_WHY: usize = 500;

impl Core {
    /// It is one of several, and its turn has not come.
    pub(in crate::controller) fn waits_in_group(&self, service: &ServiceName) -> bool {
        let group = self.present_group();
        let entry = group.as_ref().and_then(|group| group.entry(service));
        entry.is_some_and(|entry| entry.state == GroupState::Waiting)
    }

    /// Leaves out one of which nothing runs yet: it is not to be started.
    pub(in crate::controller) fn stop_waiting(
        &mut self,
        service: &ServiceName,
        by: &str,
        reason: Option<String>,
    ) -> Result<IntentReply, ApiError> {
        let reason = reason.filter(|why| !why.trim().is_empty());
        let reason = reason.map(|why| format!(": {why}")).unwrap_or_default();
        let why = text::clean(&format!("stopped by {by}{reason}"), MAX_WHY);
        self.group_goes(service, GroupState::Skipped { why })?;
        self.follow_group();
        Ok(IntentReply::Accepted)
    }

    /// Refuses to roll out alone what waits for its turn, unless that is what `replace` was given for.
    pub(in crate::controller) fn not_waiting_in_group(
        &self,
        service: &ServiceName,
        policy: Option<ConcurrencyPolicy>,
    ) -> Result<(), ApiError> {
        let Some(group) = self.present_group().filter(|_| self.waits_in_group(service)) else {
            return Ok(());
        };
        let policy = match policy {
            Some(policy) => policy,
            None => planning::read_spec(self, service, None)?.0.rollout.concurrency_policy,
        };
        if policy == ConcurrencyPolicy::Replace {
            return Ok(());
        }
        let others = if group.atomic { ", and all of them are taken back" } else { "" };
        Err(ApiError {
            kind: ErrorKind::Conflict,
            message: format!(
                "{service} waits for its turn among the services that {} applies together since {}",
                group.by, group.began
            ),
            hint: Some(format!(
                "wait for it (`gpudeck status` shows how far they are), or apply it with --concurrency-policy replace: then it is left out of them{others}"
            )),
        })
    }

    /// Several services begin from rest.
    pub(in crate::controller) fn may_begin_together(
        &self,
        service: &ServiceName,
    ) -> Result<(), ApiError> {
        // It may just be on its way from the queue.
        if self.state.services.get(service).is_some_and(|s| s.queued.is_some()) {
            return Err(ApiError {
                kind: ErrorKind::Conflict,
                message: format!("a rollout of {service} is queued"),
                hint: Some(format!("wait for it, or `gpudeck rollout cancel-queued {service}`")),
            });
        }
        self.may_begin(service).map_err(|error| {
            if error.kind != ErrorKind::Conflict || !self.is_under_way(service) {
                return error;
            }
            let hint = format!(
                "several services begin from rest: wait for it (`gpudeck rollout status {service} --wait`) or take it back (`gpudeck rollout abort {service}`), then apply them again"
            );
            ApiError { hint: Some(hint), ..error }
        })
    }
}
