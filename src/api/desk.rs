//! What the server needs of the controller.

use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::BoxStream;

use super::hub::Hub;
use super::intent::{Intent, IntentReply};
use super::lend::{AgentAnswer, ToLender};
use super::maintenance::{DrainPlan, UpgradePlan, UpgradeQuestion};
use super::release::{BlameLine, DriftView, ReleaseDetail};
use super::server::{CheckupRequest, PreviousLog, PreviousLogRequest};
use super::view::{ApiError, ErrorKind, Looking, PlanView, ReleaseView};
use super::who::Who;
use crate::base::{HostName, RankId, ReleaseNumber, ServiceName};
use crate::model::ModelFacts;
use crate::placement::what_if::{WhatIf, WhatIfView};
use crate::spec::ConcurrencyPolicy;
use crate::wire::{Checkup, LogChunk};

/// The controller as the front desk sees it.
#[async_trait]
pub trait Desk: Send + Sync + 'static {
    /// The snapshot and its changes.
    fn hub(&self) -> &Arc<Hub>;

    /// Reads again what people may have edited, so that the snapshot is of now.
    async fn refresh(&self) -> Result<(), ApiError>;

    /// A wish of `by` (a Unix user).
    async fn intent(&self, intent: Intent, by: String) -> Result<IntentReply, ApiError>;

    /// The same with everything that is known of who asks.
    async fn intent_of(&self, intent: Intent, who: Who) -> Result<IntentReply, ApiError> {
        self.intent(intent, who.user).await
    }

    /// What an apply would do.
    async fn plan(&self, service: ServiceName) -> Result<PlanView, ApiError>;

    /// What model lies at an absolute path on a host.
    async fn inspect(&self, _host: HostName, _path: String) -> Result<ModelFacts, ApiError> {
        Err(not_here())
    }

    /// What an undo would do.
    async fn plan_undo(
        &self,
        service: ServiceName,
        to: Option<ReleaseNumber>,
    ) -> Result<PlanView, ApiError>;

    /// What an apply would do after the rollout under way, or in place of it.
    async fn plan_behind(
        &self,
        _service: ServiceName,
        _policy: Option<ConcurrencyPolicy>,
    ) -> Result<PlanView, ApiError> {
        Err(not_here())
    }

    /// What a retry would do after a rollout that was taken back.
    async fn plan_retry(&self, _service: ServiceName) -> Result<PlanView, ApiError> {
        Err(not_here())
    }

    /// What an apply of several services would do: the plan of each, in their order, in the world that those before
    /// it leave.
    async fn plan_together(&self, _services: Vec<ServiceName>) -> Result<Vec<PlanView>, ApiError> {
        Err(not_here())
    }

    /// Where everything would go if something were otherwise; nothing is touched.
    async fn what_if(&self, _question: WhatIf) -> Result<WhatIfView, ApiError> {
        Err(not_here())
    }

    /// What a drain of a host would do.
    async fn plan_drain(&self, host: HostName) -> Result<DrainPlan, ApiError>;

    /// What an upgrade of hosts would do.
    async fn plan_upgrade(&self, _question: UpgradeQuestion) -> Result<UpgradePlan, ApiError> {
        Err(not_here())
    }

    /// The spec of one release against another's, as a unified diff.
    async fn diff(
        &self,
        service: ServiceName,
        from: ReleaseNumber,
        to: ReleaseNumber,
    ) -> Result<String, ApiError>;

    /// Our part of the configuration of a service's gateways.
    async fn gateway_config(&self, service: ServiceName) -> Result<String, ApiError>;

    /// The releases of a service, newest first.
    async fn history(&self, service: ServiceName) -> Result<Vec<ReleaseView>, ApiError>;

    /// One release, whole.
    async fn release(&self, number: ReleaseNumber) -> Result<ReleaseDetail, ApiError>;

    /// Which release last changed each line of a service's spec.
    async fn blame(&self, service: ServiceName) -> Result<Vec<BlameLine>, ApiError>;

    /// How the hosts differ from what the releases say.
    async fn drift(&self, service: Option<ServiceName>) -> Result<DriftView, ApiError>;

    /// What a door shows now.
    fn look(&self, looking: Looking) {
        let _ = looking;
    }

    /// A door lends its SSH agent: what is asked of it, until the stream is dropped.
    fn borrow_agent(&self) -> Result<BoxStream<'static, ToLender>, ApiError> {
        Err(ApiError {
            kind: ErrorKind::Conflict,
            message: "no agents are lent here".to_owned(),
            hint: Some(NOT_HERE.to_owned()),
        })
    }

    /// What a lent agent answers.
    fn agent_answers(&self, answer: AgentAnswer) -> Result<(), ApiError> {
        Err(ApiError {
            kind: ErrorKind::NotFound,
            message: format!("agent {} is not lent (any more)", answer.lease),
            hint: Some("run the command again: it lends its agent anew".to_owned()),
        })
    }

    /// How a host is, beyond its samples. See [`Checkup`].
    async fn check_up(&self, request: CheckupRequest) -> Result<Checkup, ApiError> {
        let _ = request;
        Err(ApiError {
            kind: ErrorKind::Internal,
            message: "this controller cannot check a host up".to_owned(),
            hint: Some(NOT_HERE.to_owned()),
        })
    }

    /// A piece of a rank's log, as it was logged: doors clean it before they draw it.
    async fn log(
        &self,
        rank: RankId,
        offset: Option<u64>,
        length: u32,
    ) -> Result<LogChunk, ApiError>;

    /// The end of what a rank logged that has ended and was replaced.
    async fn previous_log(&self, wanted: PreviousLogRequest) -> Result<PreviousLog, ApiError> {
        let _ = wanted;
        Err(not_here())
    }
}

/// What to do about what this desk does not know.
const NOT_HERE: &str = "ask a deck's controller of this build: `gpudeck controller upgrade`";

/// A door that cannot look at the files of hosts.
pub(super) fn not_here() -> ApiError {
    ApiError {
        kind: ErrorKind::Internal,
        message: "this cannot be asked here".to_owned(),
        hint: Some(NOT_HERE.to_owned()),
    }
}
