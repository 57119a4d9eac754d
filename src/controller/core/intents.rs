//! What people wish for, and its answer.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::super::{maintenance, planning, upgrade};
use super::input::{Input, Request};
use super::{Core, journal_error, now};
use crate::api::{ApiError, ErrorKind, Intent, IntentReply, ReplicaTo};
use crate::base::ServiceName;
use crate::rollout::{EventKind, Futile, RolloutKind};

impl Core {
    pub(super) fn intent(
        &mut self,
        intent: Intent,
        by: &str,
        reply: oneshot::Sender<Result<IntentReply, ApiError>>,
    ) {
        self.idle_since = None;
        self.try_journal();
        let by = by.to_owned();
        let maintains = intent.maintains();
        let mut may = Ok(());
        if intent.service().is_some() || maintains {
            may = self.not_fenced();
        }
        if maintains && may.is_ok() {
            may = self.takes_new_work();
        }
        if let Err(error) = may {
            let _ = reply.send(Err(error));
            return;
        }
        let result = match intent {
            Intent::TakeOver { force, .. } => {
                let token = match self.begin_take_over() {
                    Ok(token) => token,
                    Err(error) => {
                        let _ = reply.send(Err(error));
                        return;
                    }
                };
                let work = super::super::take_over::take_over(
                    Arc::clone(&self.means),
                    self.deck.hosts.keys().cloned().collect(),
                    self.state.term,
                    force,
                );
                let inputs = self.means.inputs.clone();
                self.tasks.spawn(async move {
                    let found = work.await;
                    let end = Box::new(move |core: &mut Core| {
                        drop(token);
                        let ended = core.end_take_over(found);
                        core.answer(reply, ended);
                    });
                    let _ = inputs.send(Input::Ask(end)).await;
                });
                return;
            }
            Intent::Apply { service, reason, accept_outage, concurrency, agreed } => {
                let kind = RolloutKind::Apply;
                let request = Request { kind, by, reason, accept_outage, agreed };
                return self.ask_rollout(service, None, request, concurrency, reply);
            }
            Intent::ApplyTogether { services, atomic, reason, accept_outage, agreed } => {
                let wish = super::super::group::Wish { atomic, reason, accept_outage, agreed, by };
                return self.apply_together(&services, wish, reply);
            }
            Intent::SteerGroup { what, reason } => self.steer_group(what, &by, reason),
            Intent::Undo { service, to, reason, accept_outage, agreed, seen } => {
                if let Err(error) = self.is_as_seen(&service, seen) {
                    return self.answer(reply, Err(error));
                }
                let kind = RolloutKind::Undo;
                let request = Request { kind, by, reason, accept_outage, agreed };
                return self.undo(service, to, request, reply);
            }
            Intent::Retry { service, reason, accept_outage, agreed, seen } => {
                if let Err(error) = self.is_as_seen(&service, seen) {
                    return self.answer(reply, Err(error));
                }
                let kind = RolloutKind::Apply;
                let request = Request { kind, by, reason, accept_outage, agreed };
                return self.retry(service, request, reply);
            }
            Intent::Skip { service, reason, seen } => {
                let as_seen = self.is_as_seen(&service, seen);
                as_seen.and_then(|()| self.skip(&service, by, reason))
            }
            Intent::CancelQueued { service, .. } => self.cancel_queued(&service, by),
            Intent::Pause { service, reason } => {
                self.on_rollout(&service, EventKind::Paused { by, reason })
            }
            Intent::Resume { service, reason } => {
                self.on_rollout(&service, EventKind::Resumed { by, reason })
            }
            Intent::Promote { service, all, step, reason } => {
                self.promote(&service, EventKind::Promoted { all, by, step, reason })
            }
            Intent::Abort { service, reason, seen } => {
                let as_seen = self.is_as_seen(&service, seen);
                as_seen.and_then(|()| self.on_rollout(&service, EventKind::Aborted { by, reason }))
            }
            Intent::Stop { service, reason } => {
                if self.state.services.get(&service).is_some_and(|s| !s.replicas.is_empty()) {
                    self.on_service(&service, EventKind::StopRequested { by, reason })
                } else if self.waits_in_group(&service) {
                    self.stop_waiting(&service, &by, reason)
                } else if self.known_services().contains(&service) {
                    Err(ApiError {
                        kind: ErrorKind::Conflict,
                        message: format!("nothing of {service} runs"),
                        hint: Some(format!(
                            "`gpudeck history {service}` says who stopped it, `gpudeck apply {service}` starts it"
                        )),
                    })
                } else {
                    Err(planning::not_found(&service, self.known_services()))
                }
            }
            Intent::Cordon { host, gpu, reason } => self.cordon(&host, gpu, &by, reason),
            Intent::Uncordon { host, gpu, .. } => self.uncordon(&host, gpu, &by),
            Intent::Drain { host, reason, agreed } => {
                let wish = maintenance::DrainWish { host, by, reason, agreed, for_upgrade: false };
                return self.drain(wish, reply);
            }
            Intent::Move { service, replica, host, gpus, reason } => {
                let to = ReplicaTo { service, replica, host, gpus };
                return self.move_replica(to, by, reason, reply);
            }
            Intent::EndRank { host, rank, .. } => return self.end_rank(host, rank, by, reply),
            Intent::SteerUpgrade { what, reason } => self.steer_upgrade(&what, &by, reason),
            Intent::UpgradeHosts {
                command,
                hosts,
                max_parallel,
                timeout_ms,
                return_ms,
                agreed,
                ..
            } => {
                let wish =
                    upgrade::Wish { command, hosts, max_parallel, timeout_ms, return_ms, agreed };
                return self.ask_upgrade(wish, by, reply);
            }
            Intent::Answer { question, answer } => {
                if self.means.fleet.answer(question, answer.into_answer()) {
                    Ok(IntentReply::Accepted)
                } else {
                    Err(ApiError {
                        kind: ErrorKind::NotFound,
                        message: format!("question {question} is not asked (any more)"),
                        hint: Some("`gpudeck questions` lists those that are".to_owned()),
                    })
                }
            }
            Intent::Reconnect { host } => {
                if self.means.fleet.reconnect(&host) {
                    Ok(IntentReply::Accepted)
                } else {
                    Err(ApiError {
                        kind: ErrorKind::NotFound,
                        message: format!("there is no host {host}"),
                        hint: Some("`gpudeck hosts` lists the deck's hosts".to_owned()),
                    })
                }
            }
            Intent::Reload => {
                self.files_stamp.clear();
                self.reload();
                Ok(IntentReply::Accepted)
            }
            Intent::HandOver => self.hand_over(),
            Intent::Shutdown => {
                self.shutdown = true;
                Ok(IntentReply::Accepted)
            }
        };
        self.answer(reply, result);
    }

    /// Answers an intent. Whoever asked and then looks sees what came of it.
    pub(in crate::controller) fn answer(
        &mut self,
        reply: oneshot::Sender<Result<IntentReply, ApiError>>,
        result: Result<IntentReply, ApiError>,
    ) {
        self.publish_stale();
        // An asker that went away does not undo what was done.
        let _ = reply.send(result);
    }

    pub(in crate::controller) fn on_rollout(
        &mut self,
        service: &ServiceName,
        kind: EventKind,
    ) -> Result<IntentReply, ApiError> {
        let Some(state) = self.state.services.get(service) else {
            return Err(if self.files.services.contains_key(service) {
                super::super::maintenance::conflict(
                    format!("no rollout of {service} is under way"),
                    &format!("`gpudeck apply {service}` begins one"),
                )
            } else {
                planning::not_found(service, self.known_services())
            });
        };
        if state.active_rollout().is_none() {
            return Err(ApiError {
                kind: ErrorKind::Conflict,
                message: format!("no rollout of {service} is under way"),
                hint: Some(format!("`gpudeck apply {service}` begins one")),
            });
        }
        if let Some(Futile { why, instead }) = state.futile(&kind) {
            return Err(super::super::maintenance::conflict(why, &instead));
        }
        self.on_service(service, kind)
    }

    pub(in crate::controller) fn on_service(
        &mut self,
        service: &ServiceName,
        kind: EventKind,
    ) -> Result<IntentReply, ApiError> {
        self.try_happened(service, kind, now()).map_err(|e| journal_error(&e))?;
        Ok(IntentReply::Accepted)
    }
}
