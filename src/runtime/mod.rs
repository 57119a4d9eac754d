//! How ranks are run on a host: as processes under gpudeck's supervisor, or as containers.
//!
//! One trait, one conformance suite, every implementation.

pub mod difference;
pub mod docker;
pub mod process;

pub use difference::Difference;
pub use docker::DockerRuntime;
pub use process::ProcessRuntime;

use std::time::Duration;

use async_trait::async_trait;

use crate::base::{Hint, RankId};
use crate::fleet::LinkError;
use crate::wire::{LogChunk, RankReport, RankStart, RankStatus, Refusal};

/// A way to run ranks on one host.
#[async_trait]
pub trait Runtime: Send + Sync {
    /// Starts a rank. Starting what was started already (same id) is success and starts nothing.
    async fn start(&self, start: &RankStart) -> Result<(), RuntimeError>;

    /// Stops a rank: SIGTERM, SIGKILL after `grace`; returns when it is gone. Stopping what is gone
    /// or never was is success.
    async fn stop(&self, rank: &RankId, grace: Duration) -> Result<(), RuntimeError>;

    /// Forgets a rank that has ended, with its log.
    async fn remove(&self, rank: &RankId) -> Result<(), RuntimeError>;

    /// Every rank of the deck that this runtime knows on the host, ended ones included.
    async fn list(&self) -> Result<Vec<RankReport>, RuntimeError>;

    /// What runs with our labels, with how it was started as far as this runtime can tell.
    async fn running(&self) -> Result<Vec<RunningRank>, RuntimeError> {
        let reports = self.list().await?;
        Ok(reports
            .into_iter()
            .filter(|r| matches!(r.status, RankStatus::Running { .. }))
            .map(|r| RunningRank { rank: r.rank, argv: None, image: None, setup: None, told: None })
            .collect())
    }

    /// How a rank that runs differs from how it was to be started, as its host tells; none: not known, or seen by
    /// [`Self::running`] already.
    async fn differences(
        &self,
        _wanted: &RankStart,
    ) -> Result<Option<Vec<Difference>>, RuntimeError> {
        Ok(None)
    }

    /// A piece of a rank's log, from `offset` (none: the end), at most `length` bytes.
    async fn read_log(
        &self,
        rank: &RankId,
        offset: Option<u64>,
        length: u32,
    ) -> Result<LogChunk, RuntimeError>;
}

/// A rank that runs, and how it was started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunningRank {
    /// Which.
    pub rank: RankId,
    /// Program and arguments, where known.
    pub argv: Option<Vec<String>>,
    /// The container's image, where it is one.
    pub image: Option<String>,
    /// What its container was given, where it is one.
    pub setup: Option<docker::setup::Setup>,
    /// How its process differs from its release, as its host told; none: not asked, or not known.
    pub told: Option<Vec<Difference>>,
}

/// Why a runtime could not do something.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuntimeError {
    /// The host or its agent.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The container engine.
    #[error("the container engine of {host} says: {message}")]
    Engine {
        /// Which host.
        host: crate::base::HostName,
        /// What it said, cleaned.
        message: String,
        /// What to do.
        hint: Option<String>,
        /// Asking again later can help.
        transient: bool,
    },
}

impl RuntimeError {
    /// Whether asking again later can help.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Link(LinkError::Down { .. } | LinkError::Timeout { .. }) => true,
            Self::Link(LinkError::Refused { refusal, .. }) => {
                matches!(
                    refusal,
                    Refusal::MemoryBusy { .. }
                        | Refusal::Held { .. }
                        | Refusal::PortLingers { .. }
                        | Refusal::Busy { .. }
                )
            }
            Self::Link(LinkError::Unexpected { .. }) => false,
            Self::Engine { transient, .. } => *transient,
        }
    }
}

impl Hint for RuntimeError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Link(error) => error.hint(),
            Self::Engine { hint, .. } => hint.clone(),
        }
    }
}
