//! The front desk's way to the loop.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot};

use super::actions::{self, Means};
use super::core::{Core, Input};
use super::{planning, world};
use crate::api::desk::Desk;
use crate::api::hub::Hub;
use crate::api::{
    ApiError, CheckupRequest, ErrorKind, Intent, IntentReply, Looking, PlanView, ReleaseView,
};
use crate::base::{Hint, HostName, RankId, ReleaseNumber, ServiceName};
use crate::rollout::RolloutKind;
use crate::wire::{Checkup, LogChunk, Reply, Request};

/// A handle on the loop.
pub struct Handle {
    /// What doors see.
    pub hub: Arc<Hub>,
    /// The loop's inputs.
    pub inputs: mpsc::Sender<Input>,
    /// For reading from hosts without the loop.
    pub means: Arc<Means>,
}

fn gone() -> ApiError {
    ApiError {
        kind: ErrorKind::Unreachable,
        message: "the controller is ending".to_owned(),
        hint: Some("run the command again: it starts a new one".to_owned()),
    }
}

impl Handle {
    async fn ask<T: Send + 'static>(
        &self,
        look: impl FnOnce(&mut Core) -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let (reply, answer) = oneshot::channel();
        let input = Input::Ask(Box::new(move |core| {
            let _ = reply.send(look(core));
        }));
        self.inputs.send(input).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())
    }

    async fn plan_of(
        &self,
        service: ServiceName,
        to: Option<ReleaseNumber>,
        kind: RolloutKind,
    ) -> Result<PlanView, ApiError> {
        let draft = self.ask(move |core| core.draft(service, to)).await?.await?;
        let (reply, answer) = oneshot::channel();
        let input = Input::Plan { draft: Box::new(draft), kind, reply };
        self.inputs.send(input).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

#[async_trait]
impl Desk for Handle {
    fn hub(&self) -> &Arc<Hub> {
        &self.hub
    }

    async fn refresh(&self) -> Result<(), ApiError> {
        self.ask(Core::reload).await
    }

    async fn intent(&self, intent: Intent, by: String) -> Result<IntentReply, ApiError> {
        let (reply, answer) = oneshot::channel();
        self.inputs.send(Input::Intent { intent, by, reply }).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }

    async fn plan(&self, service: ServiceName) -> Result<PlanView, ApiError> {
        self.plan_of(service, None, RolloutKind::Apply).await
    }

    async fn plan_undo(
        &self,
        service: ServiceName,
        to: Option<ReleaseNumber>,
    ) -> Result<PlanView, ApiError> {
        let name = service.clone();
        let to = self.ask(move |core| core.undo_target(&name, to)).await??;
        self.plan_of(service, Some(to), RolloutKind::Undo).await
    }

    async fn diff(
        &self,
        service: ServiceName,
        from: ReleaseNumber,
        to: ReleaseNumber,
    ) -> Result<String, ApiError> {
        self.ask(move |core| planning::diff(core, &service, from, to)).await?
    }

    async fn history(&self, service: ServiceName) -> Result<Vec<ReleaseView>, ApiError> {
        self.ask(move |core| match core.files.history.get(&service) {
            Some(history) => Ok(history.clone()),
            None if core.known_services().contains(&service) => Ok(Vec::new()),
            None => Err(planning::not_found(&service, core.known_services())),
        })
        .await?
    }

    fn look(&self, looking: Looking) {
        let hosts: Vec<HostName> =
            looking.hosts.iter().chain(&looking.detail).take(1024).cloned().collect();
        self.means.attention.look(looking);
        self.means.pay_attention(hosts.iter());
    }

    async fn check_up(&self, request: CheckupRequest) -> Result<Checkup, ApiError> {
        let CheckupRequest { host, disk_bytes } = request;
        let asked = host.clone();
        let others = self
            .ask(move |core| {
                core.deck.hosts.contains_key(&asked).then(|| {
                    let others = core.deck.hosts.keys().filter(|other| **other != asked);
                    let place = |other: &HostName| {
                        let address = world::engine_address(&core.deck, other);
                        (
                            other.clone(),
                            format!("{address}:{}", world::first_port(&core.deck, other)),
                        )
                    };
                    others.map(place).take(32).collect::<Vec<_>>()
                })
            })
            .await?;
        let Some(others) = others else {
            return Err(ApiError {
                kind: ErrorKind::NotFound,
                message: format!("there is no host {host} in this deck"),
                hint: Some("`gpudeck hosts` lists them".to_owned()),
            });
        };
        let unreachable = |message: String, hint: Option<String>| ApiError {
            kind: ErrorKind::Unreachable,
            message,
            hint,
        };
        let link =
            actions::link(&self.means, &host).map_err(|e| unreachable(e.to_string(), e.hint()))?;
        let reach = others.iter().map(|(_, address)| address.clone()).collect();
        let reply = link
            .request(Request::CheckUp { reach, disk_bytes })
            .await
            .map_err(|e| unreachable(e.to_string(), e.hint()))?;
        let Reply::CheckUp(mut checkup) = reply else {
            return Err(unreachable(format!("{host} answered something else"), None));
        };
        for ((name, address), reached) in others.iter().zip(&mut checkup.reached) {
            reached.address = format!("{name} ({address})");
        }
        Ok(*checkup)
    }

    async fn log(
        &self,
        rank: RankId,
        offset: Option<u64>,
        length: u32,
    ) -> Result<LogChunk, ApiError> {
        let wanted = rank.clone();
        let place = self
            .ask(move |core| {
                let state = core.state.services.get(&wanted.service)?;
                let release = state.releases.get(&wanted.replica.release)?;
                let plan = release.replica(wanted.replica.replica)?;
                let plan = plan.ranks.get(usize::try_from(wanted.rank).ok()?)?;
                Some((plan.host.clone(), release.spec.runtime.clone()))
            })
            .await?;
        let Some((host, spec)) = place else {
            return Err(ApiError {
                kind: ErrorKind::NotFound,
                message: format!("{rank} of {} is not known", rank.replica.release),
                hint: Some(format!("`gpudeck status {}` lists its replicas", rank.service)),
            });
        };
        let unreachable = |message: String, hint: Option<String>| ApiError {
            kind: ErrorKind::Unreachable,
            message,
            hint,
        };
        let runtime = actions::reading_runtime(&self.means, &spec, &host)
            .await
            .map_err(|e| unreachable(e.to_string(), e.hint()))?;
        runtime
            .read_log(&rank, offset, length.min(256 << 10))
            .await
            .map_err(|e| unreachable(e.to_string(), e.hint()))
    }
}
