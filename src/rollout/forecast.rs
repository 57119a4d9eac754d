//! What a rollout would do, step by step, before anything is touched.

use serde::{Deserialize, Serialize};

use crate::base::ReplicaId;

/// The journey as foreseen.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Forecast {
    /// What happens, in order.
    pub stages: Vec<Stage>,
    /// Fewest ready replicas on the way.
    pub lowest_ready: u32,
    /// Never fewer than this by an action of ours.
    pub floor: u32,
    /// The service stops serving on the way.
    pub outage: bool,
}

/// One stage of the journey.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    /// What it is, for people: `weight 10 %`, `analyse default (1m)`, `all replicas`.
    pub title: String,
    /// Replicas that are started, in order.
    pub starts: Vec<ReplicaId>,
    /// Replicas that are stopped, in order.
    pub stops: Vec<ReplicaId>,
    /// Share of the traffic at the new release after it, percent.
    pub new_weight_percent: u32,
    /// Ready replicas after it.
    pub ready_after: u32,
    /// Fewest ready replicas during it.
    pub lowest_ready: u32,
}
