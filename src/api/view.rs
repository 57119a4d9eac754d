//! What doors see: the snapshot here, its parts and its changes below.

mod delta;
mod error;
mod event;
mod host;
mod lost;
mod plan;
mod service;
mod unseen;

pub use delta::Delta;
pub use error::{ApiError, ErrorKind};
pub use event::{EventLine, Question, QuestionKind, Severity};
pub use host::{ClaimView, ClockView, HostLinkState, HostView, Looking, age};
pub use plan::{PLAN_CHANGED, PlanBehind, PlanView, PlannedRank, PlannedReplica};
pub use service::{MemoryView, RankView, ReleaseView, ReplicaView, ServiceView, TrafficView};
pub use unseen::Unseen;

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use super::condition::DeckCondition;
use super::maintenance::Upgrade;
use crate::base::{Bytes, HostName, ServiceName};
use crate::rollout::group::Group;

/// Everything a door shows, at one moment. `GET /v1/snapshot`; changes follow as [`Delta`]s on
/// `GET /v1/stream` (one JSON object a line, the first is a snapshot).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Grows by one with each delta; a gap means: fetch a snapshot again.
    pub sequence: u64,
    /// The deck.
    pub deck: DeckView,
    /// The hosts, by name.
    pub hosts: BTreeMap<HostName, HostView>,
    /// The services, by name.
    pub services: BTreeMap<ServiceName, ServiceView>,
    /// What waits for a person.
    pub questions: BTreeMap<u64, Question>,
    /// The latest events, oldest first (at most 1,000).
    pub events: VecDeque<EventLine>,
}

/// Most events a snapshot holds.
pub const MAX_EVENTS: usize = 1_000;

/// The deck, for titles.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DeckView {
    /// What people call it.
    pub name: String,
    /// Its directory; none for the deck-less view of this machine.
    pub path: Option<String>,
    /// The hosts are simulated; every screen says so.
    pub simulated: bool,
    /// Version of the controller.
    pub version: String,
    /// Pid of the controller.
    pub pid: u32,
    /// A mistake in deck.toml or a spec that keeps the last good one in force.
    pub trouble: Option<String>,
    /// Memory of the controller.
    pub controller_memory: Option<Bytes>,
    /// The upgrade of hosts under way, or the last one.
    #[serde(default)]
    pub upgrade: Option<Box<Upgrade>>,
    /// The services that are rolled out together, or were last.
    #[serde(default)]
    pub group: Option<Box<Group>>,
    /// What keeps the deck from something, the gravest first; `trouble` is the first in words.
    #[serde(default)]
    pub conditions: Vec<DeckCondition>,
    /// Its gateways.
    #[serde(default)]
    pub gateways: Vec<GatewayView>,
}

/// A gateway of the deck.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GatewayView {
    /// Its name in the deck.
    pub name: ServiceName,
    /// The host it runs on.
    pub host: HostName,
    /// The directory there in which our sections are; none: a reload or restart loses what was told at run time.
    pub config: Option<String>,
}
