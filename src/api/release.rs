//! What is known of releases beyond the list of a service: one release whole, who wrote which line, and
//! how hosts differ from what the releases say.

use serde::{Deserialize, Serialize};

use super::view::ReleaseView;
use crate::base::{HostName, RankId, ReleaseNumber, ServiceName};

/// One release. `GET /v1/releases/r3`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReleaseDetail {
    /// Of which service.
    pub service: ServiceName,
    /// Its place in the history.
    pub release: ReleaseView,
    /// It is what is served.
    pub stable: bool,
    /// The spec, as it was committed.
    pub spec: String,
}

/// A line of a spec and the release that last changed it. `GET /v1/services/{name}/blame`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BlameLine {
    /// Its number, from 1.
    pub line: u32,
    /// The release; none: the line was never applied.
    pub release: Option<ReleaseView>,
    /// The text.
    pub text: String,
}

/// How the hosts differ from the releases. `GET /v1/drift?service=chat`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DriftView {
    /// What differs.
    pub items: Vec<DriftItem>,
    /// Hosts that could not be looked at, with the reason.
    pub not_seen: Vec<String>,
    /// Hosts that were looked at.
    #[serde(default)]
    pub looked_at: usize,
    /// Some of those not seen are another controller's.
    #[serde(default)]
    pub held_elsewhere: bool,
}

/// One difference. Nothing is done about it unless a person asks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DriftItem {
    /// Where.
    pub host: HostName,
    /// Which rank.
    pub rank: RankId,
    /// Its release.
    pub release: ReleaseNumber,
    /// What kind.
    pub kind: DriftKind,
    /// In words.
    pub text: String,
    /// What to do about it, if somebody wants to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// Kinds of differences.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DriftKind {
    /// It runs with our labels, and no release wants it.
    Unknown,
    /// It should run and does not.
    Missing,
    /// It was started with another command line than its release says, or its process has other arguments.
    Command,
    /// Its container has another image than its release says.
    Image,
    /// Its container or process has another environment.
    Environment,
    /// Its container or process has other GPUs.
    Devices,
    /// Its container sees other paths of the host.
    Mounts,
}
