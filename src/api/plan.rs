//! The steps of a plan as doors show them, and how a rollout went beside what was foreseen.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::base::{
    DeviceId, HostName, ReleaseNumber, ReplicaId, ReplicaKey, ServiceName, Timestamp, time,
};
use crate::rollout::forecast::Verb;

/// A step of a plan, in full.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlanStep {
    /// What it is: `weight 10 %`, `analyse default (1m)`, `all replicas`.
    pub title: String,
    /// What passes it, where it is a gate.
    pub gate: Option<String>,
    /// Every start and stop, in order.
    pub moves: Vec<PlanMove>,
    /// Share of the traffic at the new release after it, percent.
    pub new_weight_percent: u32,
    /// Ready replicas after it.
    pub ready_after: u32,
    /// Of these, so many get no requests: no capacity.
    #[serde(default)]
    pub idle_after: u32,
    /// Fewest ready replicas during it.
    pub lowest_ready: u32,
    /// Fewest replicas during it that are ready and get requests: its lowest capacity.
    #[serde(default)]
    pub lowest_serving: u32,
    /// The capacity is lowest in this step (the first such one).
    pub lowest: bool,
    /// Capacity after it in tokens a second: ready replicas × the most that one was seen to generate.
    pub tokens_per_s_after: Option<f64>,
    /// Likewise at its lowest point.
    pub tokens_per_s_lowest: Option<f64>,
    /// How long it takes.
    pub time: PlanTime,
}

/// The start or the stop of a replica.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlanMove {
    /// Which replica.
    pub replica: ReplicaId,
    /// What is done.
    pub verb: Verb,
    /// Its ranks and their devices.
    pub ranks: Vec<PlanPlace>,
    /// How its place was found or why it goes: `surge: on spare GPUs`, `in place of r1-0`.
    pub how: String,
    /// When it begins, milliseconds after the rollout's begin; a lower bound where times are unknown.
    pub at_ms: u64,
    /// Ready replicas when it is done.
    pub ready_after: u32,
}

/// A replica of another service that stops for the time of the rollout.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlanBorrow {
    /// Of which service.
    pub lender: ServiceName,
    /// Which replica.
    pub replica: ReplicaKey,
    /// Where it is.
    pub from: Vec<PlanPlace>,
    /// Where it comes back when the rollout completed (if it is taken back: where it was).
    pub back: Vec<PlanPlace>,
}

impl PlanBorrow {
    /// `batch r5-1 stops on node1 GPU 3 until the rollout is over, and comes back on node1 GPU 0`.
    pub fn text(&self) -> String {
        let on = |places: &[PlanPlace]| {
            let places: Vec<String> =
                places.iter().map(|p| format!("{} {}", p.host, p.devices_text)).collect();
            places.join(" + ")
        };
        format!(
            "{} {} stops on {} until the rollout is over, and comes back on {}",
            self.lender,
            self.replica,
            on(&self.from),
            on(&self.back)
        )
    }
}

/// Where a rank is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlanPlace {
    /// The host.
    pub host: HostName,
    /// The devices there.
    pub devices: Vec<DeviceId>,
    /// The devices for people, by their index on the host: `GPU 0-1`.
    pub devices_text: String,
}

/// A time that was worked out from measured ones.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanTime {
    /// What is known of it, milliseconds.
    pub known_ms: u64,
    /// What is not in it, because it was never measured or a person decides.
    pub unknown: Vec<String>,
}

impl PlanTime {
    /// For people: `2m10s`, `at least 2m10s`, `unknown`.
    pub fn text(&self) -> String {
        let known = time::short(Duration::from_millis(self.known_ms));
        match (self.unknown.is_empty(), self.known_ms) {
            (true, _) => known,
            (false, 0) => "unknown".to_owned(),
            (false, _) => format!("at least {known}"),
        }
    }

    /// The whole time, if all of it is known.
    pub fn whole_ms(&self) -> Option<u64> {
        self.unknown.is_empty().then_some(self.known_ms)
    }
}

/// `4 ready`, `6 ready (2 without traffic)`.
pub fn ready_text(ready: u32, idle: u32) -> String {
    match idle {
        0 => format!("{ready} ready"),
        idle => format!("{ready} ready ({idle} without traffic)"),
    }
}

/// `4 ready`, `2 with traffic (4 ready)`: the capacity at its lowest point.
pub fn lowest_text(ready: u32, serving: u32) -> String {
    if serving >= ready {
        return format!("{ready} ready");
    }
    format!("{serving} with traffic ({ready} ready)")
}

impl PlanMove {
    /// `start r2-0 on node1 GPU 0-1`.
    pub fn text(&self) -> String {
        let verb = match self.verb {
            Verb::Start => "start",
            Verb::Stop => "stop",
        };
        let places: Vec<String> =
            self.ranks.iter().map(|p| format!("{} {}", p.host, p.devices_text)).collect();
        format!("{verb} {} on {}", self.replica.key(), places.join(" + "))
    }
}

/// What was foreseen of a rollout beside what happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlanProgress {
    /// The release that was rolled out.
    pub release: ReleaseNumber,
    /// When it began.
    pub began: Timestamp,
    /// Its steps; the way back, if there was one, is the last.
    pub steps: Vec<StepProgress>,
    /// The time foreseen for all.
    pub predicted: PlanTime,
    /// The fewest ready replicas foreseen.
    pub predicted_lowest: u32,
    /// The fewest ready replicas seen so far.
    pub lowest_ready: u32,
    /// The same of replicas that are ready and get requests, which is the capacity; none: planned before that was kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serving: Option<Capacity>,
    /// When it was over.
    pub ended: Option<Timestamp>,
}

/// The fewest replicas that are ready and get requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capacity {
    /// Foreseen.
    pub predicted: u32,
    /// Seen; none before it began.
    pub seen: Option<u32>,
}

impl Capacity {
    /// Sees so many.
    pub fn see(&mut self, serving: u32) {
        self.seen = Some(self.seen.map_or(serving, |low| low.min(serving)));
    }
}

/// One step of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepProgress {
    /// What it is.
    pub title: String,
    /// The time foreseen.
    pub predicted: PlanTime,
    /// The fewest ready replicas foreseen; none for the way back, which nobody planned.
    pub predicted_lowest: Option<u32>,
    /// When it began.
    pub began: Option<Timestamp>,
    /// When it was passed.
    pub ended: Option<Timestamp>,
    /// The fewest ready replicas seen in it.
    pub lowest_ready: Option<u32>,
    /// The same of replicas that are ready and get requests; none for the way back, and of older plans.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serving: Option<Capacity>,
    /// Its gate was not waited for: who skipped it, and why.
    #[serde(default)]
    pub skipped: Option<String>,
    /// A person promoted it: who, and why if they said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promoted: Option<String>,
}

impl StepProgress {
    /// Its lowest capacity, seen and foreseen, and what is counted.
    pub fn lowest(&self) -> (Option<u32>, Option<u32>, &'static str) {
        match self.serving {
            Some(serving) => (serving.seen, Some(serving.predicted), "with traffic"),
            None => (self.lowest_ready, self.predicted_lowest, "ready"),
        }
    }

    /// How long it took, or has taken until `now`.
    pub fn took(&self, now: Timestamp) -> Option<Duration> {
        Some(self.ended.unwrap_or(now).since(self.began?))
    }
}

impl PlanProgress {
    /// Whether its rollout has begun: what was only planned is not under way.
    pub fn has_begun(&self) -> bool {
        self.steps.iter().any(|step| step.began.is_some())
    }

    /// Its lowest capacity, seen and foreseen, and what is counted.
    pub fn lowest(&self) -> (u32, u32, &'static str) {
        match self.serving {
            Some(Capacity { predicted, seen: Some(seen) }) => (seen, predicted, "with traffic"),
            _ => (self.lowest_ready, self.predicted_lowest, "ready"),
        }
    }

    /// In a line: `took 1m05s (foreseen 1m00s), lowest 2 with traffic (foreseen 2)`, and what a person passed.
    pub fn summary(&self, now: Timestamp) -> String {
        let took = time::short(self.ended.unwrap_or(now).since(self.began));
        let verb = if self.ended.is_some() { "took" } else { "under way for" };
        let by_hand = |step: &StepProgress| {
            let title = &step.title;
            let skipped = step.skipped.as_ref().map(|who| format!("; skipped {title} ({who})"));
            let promoted = step.promoted.as_ref().map(|who| format!("; promoted {title} ({who})"));
            skipped.into_iter().chain(promoted).collect::<String>()
        };
        let by_hand: String = self.steps.iter().map(by_hand).collect();
        let (seen, predicted, what) = self.lowest();
        format!(
            "{verb} {took} (foreseen {}), lowest {seen} {what} (foreseen {predicted}){by_hand}",
            self.predicted.text(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_gets_no_requests_is_no_capacity() {
        assert_eq!(lowest_text(4, 4), "4 ready");
        assert_eq!(lowest_text(4, 2), "2 with traffic (4 ready)");
        let mut progress = PlanProgress {
            release: ReleaseNumber(2),
            began: Timestamp(0),
            steps: Vec::new(),
            predicted: PlanTime::default(),
            predicted_lowest: 4,
            lowest_ready: 4,
            serving: None,
            ended: Some(Timestamp(0)),
        };
        assert!(progress.summary(Timestamp(0)).ends_with("lowest 4 ready (foreseen 4)"));
        let mut serving = Capacity { predicted: 2, seen: None };
        serving.see(4);
        serving.see(1);
        progress.serving = Some(serving);
        assert!(progress.summary(Timestamp(0)).ends_with("lowest 1 with traffic (foreseen 2)"));
    }
}
