//! What a door needs of the controller, as a trait: the client implements it over the socket, tests
//! implement it in memory.

use async_trait::async_trait;
use futures::stream::BoxStream;

use crate::model::ModelFacts;

use super::{
    ApiError, ConcurrencyPolicy, Delta, HostName, Intent, IntentReply, LogChunk, Looking, PlanView,
    RankId, ReleaseNumber, ServiceName, WhatIf, WhatIfView,
};

/// A way to the controller.
#[async_trait]
pub trait Door: Send + Sync {
    /// The snapshot and every change after it. The first item is [`Delta::Snapshot`]; the stream ends
    /// when the controller is lost, and is asked for again then.
    async fn stream(&self) -> Result<BoxStream<'static, Delta>, ApiError>;

    /// Asks for something.
    async fn send(&self, intent: Intent) -> Result<IntentReply, ApiError>;

    /// What applying the service's spec would do.
    async fn plan(&self, service: &ServiceName) -> Result<PlanView, ApiError>;

    /// What model lies at an absolute path on a host.
    async fn inspect(&self, _host: &HostName, _path: &str) -> Result<ModelFacts, ApiError> {
        Err(super::desk::not_here())
    }

    /// What an undo would do; `to` none: to the release before the present one.
    async fn plan_undo(
        &self,
        service: &ServiceName,
        to: Option<ReleaseNumber>,
    ) -> Result<PlanView, ApiError>;

    /// What applying the service's spec would do after the rollout under way, or in place of it; without a policy: by
    /// that of the spec. With nothing under way: the same as [`Self::plan`].
    async fn plan_behind(
        &self,
        _service: &ServiceName,
        _policy: Option<ConcurrencyPolicy>,
    ) -> Result<PlanView, ApiError> {
        Err(super::desk::not_here())
    }

    /// What a retry would do after a rollout that was taken back.
    async fn plan_retry(&self, _service: &ServiceName) -> Result<PlanView, ApiError> {
        Err(super::desk::not_here())
    }

    /// The difference between the specs of two releases, unified.
    async fn diff(
        &self,
        service: &ServiceName,
        from: ReleaseNumber,
        to: ReleaseNumber,
    ) -> Result<String, ApiError>;

    /// Where everything would go if something were otherwise; nothing is touched.
    async fn what_if(&self, _question: &WhatIf) -> Result<WhatIfView, ApiError> {
        Err(super::desk::not_here())
    }

    /// What this door shows now. See [`Looking`].
    async fn look(&self, looking: &Looking) -> Result<(), ApiError> {
        let _ = looking;
        Ok(())
    }

    /// A piece of a rank's log from `offset` (none: its end), at most `length` bytes.
    async fn log(
        &self,
        rank: &RankId,
        offset: Option<u64>,
        length: u32,
    ) -> Result<LogChunk, ApiError>;
}
