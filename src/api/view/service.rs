//! A service as doors see it: its replicas and ranks, its traffic, its releases.

use serde::{Deserialize, Serialize};

use crate::api::plan::PlanProgress;
use crate::base::{
    DeviceId, HostName, RankId, ReleaseNumber, ReplicaId, ReplicaKey, Revision, ServiceName,
    Timestamp,
};
use crate::model::Observation;
use crate::rollout::{Condition, Outcome, Phase, QueuedRollout, Rollout, Stop};

/// A rank, where it runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RankView {
    /// Which.
    pub rank: RankId,
    /// Where.
    pub host: HostName,
    /// On what.
    pub devices: Vec<DeviceId>,
    /// Port of its API.
    pub port: u16,
}

/// A service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServiceView {
    /// Its name.
    pub name: ServiceName,
    /// In one word.
    pub condition: Condition,
    /// The model.
    pub model: String,
    /// The engine's name.
    pub engine: String,
    /// Replicas wanted.
    pub wanted: u32,
    /// Replicas ready.
    pub ready: u32,
    /// Never fewer ready than this by an action of ours.
    pub floor: u32,
    /// The release served.
    pub stable: Option<ReleaseNumber>,
    /// The rollout that begins when the present one has ended.
    #[serde(default)]
    pub queued: Option<QueuedRollout>,
    /// Why the last queued one did not begin.
    #[serde(default)]
    pub queue_trouble: Option<String>,
    /// The rollout under way, or the last one.
    pub rollout: Option<Rollout>,
    /// Titles of the rollout's steps: `weight 10 %`, `analyse default`, …, `all replicas`.
    pub steps: Vec<String>,
    /// Its replicas, new releases first.
    pub replicas: Vec<ReplicaView>,
    /// Releases, newest first (at most 50).
    pub history: Vec<ReleaseView>,
    /// The spec in the deck differs from what is served: something waits to be applied.
    pub pending_change: bool,
    /// That spec is the one of this release, which was the last on its way and was taken back, or failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub taken_back: Option<ReleaseNumber>,
    /// Where clients reach it.
    pub url: Option<String>,
    /// Seen at the gateway over the last seconds.
    pub traffic: TrafficView,
    /// A mistake that keeps it from being applied or served, and what to do.
    pub trouble: Option<String>,
    /// What was foreseen of the rollout under way, or of the last one, beside what happened.
    #[serde(default)]
    pub progress: Option<PlanProgress>,
    /// What its engines logged of their memory beside what was foreseen, the newest first (at most 8).
    #[serde(default)]
    pub memory: Vec<MemoryView>,
}

impl ServiceView {
    /// Whether the spec in the deck waits to be tried for the first time.
    pub fn has_new_edit(&self) -> bool {
        self.pending_change && self.taken_back.is_none()
    }

    /// How many replicas are ready of those that are wanted: `3/4`, and `4/4+1` with one more than wanted.
    pub fn ready_in_short(&self) -> String {
        let (ready, wanted) = (self.ready, self.wanted);
        match ready.checked_sub(wanted) {
            None | Some(0) => format!("{ready}/{wanted}"),
            Some(more) => format!("{wanted}/{wanted}+{more}"),
        }
    }
}

/// What an engine of a release logged of its memory when it had loaded, or refused to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryView {
    /// The release.
    pub release: ReleaseNumber,
    /// Measured and foreseen.
    #[serde(flatten)]
    pub seen: Observation,
}

/// Traffic of a service or replica over the last ten seconds, as the gateway saw it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TrafficView {
    /// Requests a second; none without a gateway.
    pub requests_per_s: Option<f64>,
    /// Share that failed, 0 to 1; none without requests.
    pub error_rate: Option<f64>,
    /// Mean time to the response's head, milliseconds.
    pub mean_response_ms: Option<f64>,
}

/// A replica.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReplicaView {
    /// Release, index and attempt, as it was started: what its host calls it.
    pub id: ReplicaId,
    /// What it is by now, if another release than the one it was started for took it over while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub taken_over_by: Option<ReplicaKey>,
    /// How far it has come.
    pub phase: Phase,
    /// Since when.
    pub since: Timestamp,
    /// The last thing that went wrong.
    pub trouble: Option<String>,
    /// It was ready, does not serve any more though it runs, and gets no requests until it generates a token.
    #[serde(default)]
    pub silent: bool,
    /// Its ranks.
    pub ranks: Vec<RankView>,
    /// Its share of the service's traffic by weight, percent: of the table that the gateways have taken.
    pub weight_percent: u32,
    /// What it is to be by the table that the gateways were told and have not taken; none once they have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight_wanted_percent: Option<u32>,
    /// What the gateway saw of it.
    pub traffic: TrafficView,
}

impl ReplicaView {
    /// Which replica of which release it is.
    pub fn key(&self) -> ReplicaKey {
        self.taken_over_by.unwrap_or(self.id.key())
    }

    /// The release that it belongs to.
    pub fn release(&self) -> ReleaseNumber {
        self.key().release
    }
}

/// A release in the history.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReleaseView {
    /// Its number.
    pub number: ReleaseNumber,
    /// Its commit.
    pub revision: Revision,
    /// When.
    pub created: Timestamp,
    /// Who.
    pub author: String,
    /// Why.
    pub reason: Option<String>,
    /// How its rollout ended; none while it is under way.
    pub outcome: Option<Outcome>,
    /// Who stopped the service while this was served, or on its way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop: Option<Stop>,
    /// What was foreseen of its rollout beside what happened; none if that is not known (any more).
    #[serde(default)]
    pub progress: Option<Box<PlanProgress>>,
    /// Its commit is not in this deck: it was begun in another one, and was not sent or fetched yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub not_here: bool,
}
