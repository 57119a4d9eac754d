//! What the server needs of the controller.

use std::sync::Arc;

use async_trait::async_trait;

use super::hub::Hub;
use super::intent::{Intent, IntentReply};
use super::server::CheckupRequest;
use super::view::{ApiError, ErrorKind, Looking, PlanView, ReleaseView};
use crate::base::{RankId, ReleaseNumber, ServiceName};
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

    /// What an apply would do.
    async fn plan(&self, service: ServiceName) -> Result<PlanView, ApiError>;

    /// What an undo would do.
    async fn plan_undo(
        &self,
        service: ServiceName,
        to: Option<ReleaseNumber>,
    ) -> Result<PlanView, ApiError>;

    /// The spec of one release against another's, as a unified diff.
    async fn diff(
        &self,
        service: ServiceName,
        from: ReleaseNumber,
        to: ReleaseNumber,
    ) -> Result<String, ApiError>;

    /// The releases of a service, newest first.
    async fn history(&self, service: ServiceName) -> Result<Vec<ReleaseView>, ApiError>;

    /// What a door shows now.
    fn look(&self, looking: Looking) {
        let _ = looking;
    }

    /// How a host is, beyond its samples. See [`Checkup`].
    async fn check_up(&self, request: CheckupRequest) -> Result<Checkup, ApiError> {
        let _ = request;
        Err(ApiError {
            kind: ErrorKind::Internal,
            message: "this controller cannot check a host up".to_owned(),
            hint: None,
        })
    }

    /// A piece of a rank's log, as it was logged: doors clean it before they draw it.
    async fn log(
        &self,
        rank: RankId,
        offset: Option<u64>,
        length: u32,
    ) -> Result<LogChunk, ApiError>;
}
