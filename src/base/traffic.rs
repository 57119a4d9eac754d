//! What the deciding floors tell a gateway.

use serde::{Deserialize, Serialize};

use super::{ReleaseNumber, ReplicaId};

/// A replica as the gateway sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrafficServer {
    /// The replica; its `Display` is the server's name.
    pub replica: ReplicaId,
    /// Address of its rank 0.
    pub address: String,
    /// Port of its rank 0.
    pub port: u16,
    /// HAProxy weight, 0 to 256.
    pub weight: u16,
    /// Whether it takes new requests.
    pub mode: TrafficMode,
    /// Requests that ask for the canary (`canary_header`, `canary_cookie`) are sent to it, whatever its weight.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub by_rule: bool,
    /// The release that it is of, where that took it over from the one in its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub taken_over_by: Option<ReleaseNumber>,
}

impl TrafficServer {
    /// The release that it is of.
    pub fn release(&self) -> ReleaseNumber {
        self.taken_over_by.unwrap_or(self.replica.release)
    }
}

/// Whether a server takes new requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrafficMode {
    /// It does.
    Ready,
    /// It finishes those in flight and takes no new ones.
    Drain,
}
