//! A host as doors see it: its link, its newest sample, its claim.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::service::RankView;
use crate::api::maintenance::Maintenance;
use crate::api::shared;
use crate::base::{DownCause, HostName, Timestamp};
use crate::wire::{HostFacts, HostSample};

/// A host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostView {
    /// Its name in the deck.
    pub name: HostName,
    /// How the link is.
    pub link: HostLinkState,
    /// The phases that the present or last attempt to reach it has gone through, in order.
    #[serde(default)]
    pub way: Vec<String>,
    /// What it is, once known.
    pub facts: Option<HostFacts>,
    /// The newest sample; it stays when the link is lost, with its age.
    #[serde(default, with = "shared::maybe")]
    pub sample: Option<Arc<HostSample>>,
    /// When that sample arrived, by the controller's clock.
    pub sampled: Option<Timestamp>,
    /// How its clock differs from the controller's, once measured.
    #[serde(default)]
    pub clock: Option<ClockView>,
    /// Ranks of this deck on this host.
    pub ranks: Vec<RankView>,
    /// Labels of the deck.
    pub labels: BTreeMap<String, String>,
    /// Cordons, drain, upgrade.
    #[serde(default)]
    pub maintenance: Maintenance,
    /// Who may act on it for this deck; none: nobody yet, as far as is known.
    #[serde(default)]
    pub claim: Option<ClaimView>,
    /// This controller has asked it who may act on it.
    #[serde(default)]
    pub claim_known: bool,
}

/// Who may act on a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimView {
    /// Which controller: `user@machine (directory)`.
    pub holder: String,
    /// It is this one.
    pub ours: bool,
    /// Since when another one holds it.
    pub since: Option<Timestamp>,
    /// When another one's lease ends, or ended.
    pub until: Option<Timestamp>,
}

/// A host's clock against the controller's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockView {
    /// The host's less ours, milliseconds.
    pub offset_ms: i64,
    /// The round trip it was measured over, microseconds: the offset is right to half of it.
    pub round_trip_us: u64,
}

/// What a door shows at this moment: hosts that are looked at are sampled more often. Said again
/// every few seconds; after fifteen without it the door counts as looking away.
/// `POST /v1/look`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Looking {
    /// Hosts that can be seen.
    pub hosts: Vec<HostName>,
    /// The host whose details are open.
    pub detail: Option<HostName>,
    /// Which door says so: the samples of other hosts are told less often on its stream.
    #[serde(default)]
    pub door: Option<Uuid>,
}

/// How the link to a host is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum HostLinkState {
    /// On the way for the first time, or after it was up: `connecting`, `authenticating`, `installing the agent`.
    Connecting {
        /// Which phase.
        phase: String,
    },
    /// The agent answers.
    Up,
    /// The host is reached, and the agent cannot be there: only `nvidia-smi` and `/proc` are read.
    Limited {
        /// Why no agent.
        why: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// A person has to answer a question first.
    Asking {
        /// The question.
        question: u64,
    },
    /// Not reached.
    Down {
        /// Which of the named causes.
        #[serde(default)]
        kind: DownCause,
        /// The cause in words.
        cause: String,
        /// What to do about it.
        hint: Option<String>,
        /// Since when it has not been reached, over all attempts.
        since: Timestamp,
        /// When the last attempt failed, of which the cause tells.
        #[serde(default)]
        tried: Timestamp,
        /// When it is tried again; none: only after something changes.
        retry_at: Option<Timestamp>,
        /// How far the attempt is that goes on now: `connecting`, `authenticating`, …
        #[serde(default, skip_serializing_if = "Option::is_none")]
        trying: Option<String>,
    },
}

/// How old a sample is, for showing.
pub fn age(now: Timestamp, sampled: Option<Timestamp>) -> Option<Duration> {
    sampled.map(|s| now.since(s))
}
