//! The load balancer in front of the replicas: weights, drains, and what it saw of them.

//!
//! The trait, and HAProxy behind it. Nothing here decides a weight: that is for `rollout`.

pub mod endpoints;
pub mod haproxy;
mod haproxy_plan;
mod haproxy_text;
pub mod section;

use std::collections::BTreeMap;

use async_trait::async_trait;

use crate::base::{Hint, ReplicaId, TrafficServer};
use crate::fleet::LinkError;

pub use endpoints::Endpoints;
pub use haproxy::HaproxyGateway;

/// A gateway's backend of one service.
#[async_trait]
pub trait Gateway: Send + Sync {
    /// Makes the backend's servers exactly `servers`: adds what is missing, sets weights and modes,
    /// removes what is not named (only once it is drained; until then it stays in drain mode).
    async fn apply(&self, servers: &[TrafficServer]) -> Result<(), GatewayError>;

    /// What the backend is like that is to be filled.
    async fn backend(&self) -> Result<BackendSeen, GatewayError>;

    /// What the gateway has counted of each of our servers since it knows them.
    async fn counters(&self) -> Result<BTreeMap<ReplicaId, ServerCounters>, GatewayError>;
}

/// A backend as a gateway has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BackendSeen {
    /// How it balances, in the gateway's own word; none if it does not say.
    pub balance: Option<String>,
    /// Servers in it that are not ours and get requests, at most [`FOREIGN_NAMED`] of them.
    pub foreign: Vec<String>,
}

/// So many servers that are not ours are told by name.
pub const FOREIGN_NAMED: usize = 8;

/// Running totals of one server. They start again from 0 when the gateway is restarted.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ServerCounters {
    /// Requests in flight now.
    pub in_flight: u64,
    /// Requests answered or failed.
    pub requests: u64,
    /// Of these, failed: 5xx, refused or broken connections.
    pub errors: u64,
    /// Mean time to the response's head of the latest requests (HAProxy: the last 1024), ms.
    pub mean_response_ms: f64,
}

/// Why the gateway could not be changed or read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GatewayError {
    /// The host or its agent.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// HAProxy is not there or has no such backend.
    #[error("gateway on {host}: {message}")]
    Gateway {
        /// Which host.
        host: crate::base::HostName,
        /// What it said, cleaned.
        message: String,
        /// What to do.
        hint: Option<String>,
    },
}

impl Hint for GatewayError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Link(error) => error.hint(),
            Self::Gateway { hint, .. } => hint.clone(),
        }
    }
}
