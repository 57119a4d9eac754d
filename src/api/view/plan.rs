//! A plan as doors see it.

use serde::{Deserialize, Serialize};

use crate::api::plan::{PlanBorrow, PlanStep, PlanTime};
use crate::base::{Bytes, DeviceId, HostName, ReleaseNumber, ReplicaKey, ServiceName};
use crate::rollout::forecast::Forecast;
use crate::spec::ParallelShape;

/// What a rollout would do. `GET /v1/plan/SERVICE`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlanView {
    /// Which service.
    pub service: ServiceName,
    /// Nothing differs from what is served.
    pub nothing_to_do: bool,
    /// While a rollout is under way: which one it comes after. All else is as it will be then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub behind: Option<PlanBehind>,
    /// The release that is served.
    pub from: Option<ReleaseNumber>,
    /// The number the new release would get.
    pub to: ReleaseNumber,
    /// Difference of the specs, unified.
    pub diff: String,
    /// Where each new replica would go.
    pub replicas: Vec<PlannedReplica>,
    /// Why there: one line a decision, and a line for each host that was passed over.
    pub reasons: Vec<String>,
    /// What stops elsewhere for the time of the rollout.
    #[serde(default)]
    pub borrows: Vec<PlanBorrow>,
    /// What is known of the model: `llama, 32 layers, 4.1 GiB of weights, context 8192`.
    pub model: Vec<String>,
    /// The journey.
    pub forecast: Forecast,
    /// The journey step by step, with hosts, devices, times and why.
    #[serde(default)]
    pub steps: Vec<PlanStep>,
    /// How long all of it takes.
    #[serde(default)]
    pub total: PlanTime,
    /// What the person should know, in capitals where it hurts.
    pub warnings: Vec<String>,
}

/// From which state a plan starts that is made while a rollout is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanBehind {
    /// The release that is being rolled out.
    pub release: ReleaseNumber,
    /// It is taken back first; otherwise it comes to its end.
    pub replaces: bool,
    /// The spec's policy refuses an apply meanwhile.
    pub refused: bool,
}

impl PlanBehind {
    /// For people at a command line.
    pub fn text(&self) -> String {
        self.told(
            " (until then an apply is refused, without --concurrency-policy queue or replace)",
        )
    }

    /// For people who have asked for it to be queued.
    pub fn text_queued(&self) -> String {
        self.told("")
    }

    fn told(&self, refused: &str) -> String {
        let release = self.release;
        if self.replaces {
            return format!(
                "when the rollout to {release} has been taken back, stable whole again:"
            );
        }
        let refused = if self.refused { refused } else { "" };
        format!("when the rollout to {release} has ended as foreseen{refused}:")
    }
}

/// What is said of a plan that is not the one that was agreed to.
pub const PLAN_CHANGED: &str =
    "the plan is not the one that was agreed to any more: the spec or the hosts have changed";

impl PlanView {
    /// Names what a person agrees to: the change of the spec, who goes where in whose place, and how much serves
    /// meanwhile. Times, reasons and free memory may differ from one look to the next.
    pub fn digest(&self) -> String {
        let replicas: Vec<_> = self
            .replicas
            .iter()
            .map(|planned| {
                let ranks: Vec<_> = planned.ranks.iter().map(|r| (&r.host, &r.devices)).collect();
                (planned.replica, ranks, &planned.in_place_of, &planned.runs_on_as)
            })
            .collect();
        let forecast = &self.forecast;
        let lowest = (forecast.lowest_ready, forecast.lowest_serving());
        let forecast = (lowest, forecast.floor, forecast.outage);
        let agreed = (&self.service, self.from, &self.diff, replicas, &self.borrows, forecast);
        let text = serde_json::to_vec(&agreed).unwrap_or_default();
        blake3::hash(&text).to_hex().to_string()
    }

    /// The same for services that are rolled out together, in their order.
    pub fn digest_together(plans: &[Self]) -> String {
        let each: Vec<String> = plans.iter().map(Self::digest).collect();
        blake3::hash(each.join("\n").as_bytes()).to_hex().to_string()
    }
}

/// A replica of a plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlannedReplica {
    /// Its index.
    pub replica: u32,
    /// Host and devices of each rank.
    pub ranks: Vec<PlannedRank>,
    /// The present replicas that must be gone before it can start, on the same devices. Empty: it fits beside them.
    #[serde(default)]
    pub in_place_of: Vec<ReplicaKey>,
    /// How it is divided, where that is not tensor parallelism over all its devices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shape: Option<ParallelShape>,
    /// It runs already, is taken over and goes on under this name: nothing of it is started or stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runs_on_as: Option<ReplicaKey>,
}

impl PlannedReplica {
    /// How it is divided, where that is more than the number of its devices: ` as tp2 pp2`.
    pub fn divided(&self) -> String {
        self.shape.map(|shape| format!(" as {shape}")).unwrap_or_default()
    }

    /// The room a rank of it finds on each device, in words: what is free, or who leaves it theirs.
    pub fn room(&self, rank: &PlannedRank) -> Option<String> {
        if let Some(name) = self.runs_on_as {
            return Some(format!("runs on as {name}"));
        }
        if self.in_place_of.is_empty() {
            return rank.free_per_device.map(|free| format!("{free} free"));
        }
        let leaving: Vec<String> = self.in_place_of.iter().map(ToString::to_string).collect();
        Some(format!("in place of {}", leaving.join(", ")))
    }
}

/// A rank of a plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlannedRank {
    /// Host.
    pub host: HostName,
    /// Devices.
    pub devices: Vec<DeviceId>,
    /// Devices for people: `GPU 0-1`.
    pub devices_text: String,
    /// Memory needed on each.
    pub memory_per_device: Bytes,
    /// Memory free on the fullest of them now.
    pub free_per_device: Option<Bytes>,
    /// The command line.
    pub argv: Vec<String>,
}
