//! What is to be done to the world. Every action is idempotent.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::release::RankPlan;
use super::shared::Shared;
use super::state::Outcome;
use crate::base::{Attempt, HostName, RankId, ReleaseNumber, ReplicaId, TrafficServer};
use crate::spec::RunSpec;

/// One thing to do; what comes of it returns as an event.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "snake_case")]
pub enum Action {
    /// Start a rank → `RankRunning`, `RankRefused`.
    StartRank {
        /// Which.
        rank: RankId,
        /// Where and how.
        plan: Box<RankPlan>,
    },
    /// Stop a rank → `RankEnded`.
    StopRank {
        /// Which.
        rank: RankId,
        /// Where.
        host: HostName,
        /// From SIGTERM to SIGKILL.
        grace: Duration,
        /// Its log is kept as that of one that ended by itself: its replica has failed.
        #[serde(default)]
        keep_log: bool,
    },
    /// Ask the replica for a token until it gives one → `ReplicaReady`.
    AwaitToken {
        /// Which.
        replica: ReplicaId,
        /// Its rank 0.
        plan: Box<RankPlan>,
    },
    /// Make the gateway's table exactly this → `TrafficApplied`, `TrafficFailed`.
    ApplyTraffic {
        /// Of this version.
        version: u64,
        /// All servers of the backend.
        servers: Shared<Vec<TrafficServer>>,
    },
    /// Watch the requests in flight at a draining replica → `Drained`.
    AwaitDrained {
        /// Which.
        replica: ReplicaId,
    },
    /// Run the command of a `run` step → `RunEnded`. Not asked for again after a restart: then
    /// `RunLost` is told first.
    RunCommand {
        /// Of the rollout to this release.
        release: ReleaseNumber,
        /// At this step.
        step: usize,
        /// Which run of it.
        attempt: Attempt,
        /// The command.
        run: Box<RunSpec>,
    },
    /// Write down how a rollout ended: in Git, as the outcome of its release.
    RecordOutcome {
        /// Of which release.
        release: ReleaseNumber,
        /// How it ended.
        outcome: Outcome,
    },
}
