//! What a door needs of the front desk; the client implements it over the socket.

use async_trait::async_trait;
use futures::stream::BoxStream;

use super::intent::{Intent, IntentReply};
use super::view::{ApiError, Delta, PlanView, ReleaseView};
use crate::base::{RankId, ReleaseNumber, ServiceName};
use crate::wire::LogChunk;

/// Everything a door can do.
#[async_trait]
pub trait Door: Send + Sync {
    /// The snapshot, then its changes. Ends when the controller ends or the reader lags too far.
    async fn stream(&self) -> Result<BoxStream<'static, Delta>, ApiError>;

    /// A wish.
    async fn send(&self, intent: Intent) -> Result<IntentReply, ApiError>;

    /// What an apply would do.
    async fn plan(&self, service: &ServiceName) -> Result<PlanView, ApiError>;

    /// What an undo would do.
    async fn plan_undo(
        &self,
        service: &ServiceName,
        to: Option<ReleaseNumber>,
    ) -> Result<PlanView, ApiError>;

    /// The spec of one release against another's, as a unified diff.
    async fn diff(
        &self,
        service: &ServiceName,
        from: ReleaseNumber,
        to: ReleaseNumber,
    ) -> Result<String, ApiError>;

    /// The releases of a service, newest first.
    async fn history(&self, service: &ServiceName) -> Result<Vec<ReleaseView>, ApiError>;

    /// A piece of a rank's log.
    async fn log(
        &self,
        rank: &RankId,
        offset: Option<u64>,
        length: u32,
    ) -> Result<LogChunk, ApiError>;
}
