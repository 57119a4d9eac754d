//! A revision made concrete: where every rank runs and with which command line.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::base::{
    Attempt, Bytes, DeckId, DeviceId, HostName, RankId, ReleaseId, ReleaseNumber, ReplicaId,
    ReplicaKey, Revision, ServiceName, Timestamp,
};
use crate::spec::{ParallelShape, ServiceSpec};

/// A release. Immutable once made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Release {
    /// Its identity.
    pub id: ReleaseId,
    /// Its number within the deck.
    pub number: ReleaseNumber,
    /// The deck.
    pub deck: DeckId,
    /// The service.
    pub service: ServiceName,
    /// The commit whose spec it is.
    pub revision: Revision,
    /// The spec, frozen.
    pub spec: ServiceSpec,
    /// One plan a replica; as many as `spec.replicas`.
    pub replicas: Vec<ReplicaPlan>,
    /// The deck's only gateway when this was planned, where the spec names none: it stays this one's when others come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<ServiceName>,
    /// Room that it borrows while it is rolled out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub borrowing: Option<Box<super::lending::Borrowing>>,
    /// The replicas of the release before that it takes over while they run, by what they are here. Not empty only where
    /// nothing differs of what engines are started with: then it has no steps, and goes replica by replica.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub keeps: BTreeMap<ReplicaKey, ReplicaKey>,
    /// When it was made.
    pub created: Timestamp,
    /// Who asked for it: a Unix user.
    pub author: String,
    /// Why, in the author's words.
    pub reason: Option<String>,
}

/// Where one replica runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReplicaPlan {
    /// The ranks of the gang; rank 0 serves the API.
    pub ranks: Vec<RankPlan>,
    /// How it is divided, where that is not tensor parallelism over all its devices: their groups one after another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shape: Option<ParallelShape>,
}

/// Where and how one rank runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RankPlan {
    /// The host.
    pub host: HostName,
    /// Its devices there: GPUs, or just `cpu`.
    pub devices: Vec<DeviceId>,
    /// Memory it takes on each device.
    pub memory_per_device: Bytes,
    /// Address under which the gateway reaches it.
    pub address: String,
    /// The address of its own host on which it listens; none: on all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listen: Option<String>,
    /// The port of its API.
    pub port: u16,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Environment.
    pub env: BTreeMap<String, String>,
    /// Files that must be on the host.
    pub files: Vec<String>,
}

impl Release {
    /// The ids of the ranks of one start of one replica, in rank order.
    pub fn rank_ids(&self, replica: u32, attempt: Attempt) -> Vec<RankId> {
        let count = usize::try_from(replica)
            .ok()
            .and_then(|i| self.replicas.get(i))
            .map_or(0, |plan| plan.ranks.len());
        (0..u32::try_from(count).unwrap_or(0))
            .map(|rank| RankId {
                deck: self.deck,
                service: self.service.clone(),
                release_id: self.id,
                replica: ReplicaId { release: self.number, replica, attempt },
                rank,
            })
            .collect()
    }

    /// The plan of one replica.
    pub fn replica(&self, replica: u32) -> Option<&ReplicaPlan> {
        usize::try_from(replica).ok().and_then(|i| self.replicas.get(i))
    }
}

impl ReplicaPlan {
    /// One that is so divided.
    pub fn new(ranks: Vec<RankPlan>, shape: ParallelShape) -> Self {
        Self { ranks, shape: (shape.groups() > 1).then_some(shape) }
    }

    /// How it is divided.
    pub fn shape(&self) -> ParallelShape {
        let devices = || self.ranks.iter().map(|rank| rank.devices.len()).sum::<usize>();
        let all = || ParallelShape::of_tensor(u32::try_from(devices()).unwrap_or(u32::MAX));
        self.shape.unwrap_or_else(all)
    }

    /// Every GPU this replica holds, with its host. Host memory (`cpu`) is not held exclusively.
    pub fn gpus(&self) -> impl Iterator<Item = (&HostName, &DeviceId)> {
        self.ranks.iter().flat_map(|rank| {
            rank.devices
                .iter()
                .filter(|d| **d != DeviceId::Cpu)
                .map(move |device| (&rank.host, device))
        })
    }

    /// Whether the two replicas hold a GPU in common.
    pub fn conflicts_with(&self, other: &Self) -> bool {
        self.gpus().any(|mine| other.gpus().any(|theirs| mine == theirs))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// As every version before wrote it, where that says all.
    #[test]
    fn only_a_shape_of_several_groups_is_written_down() {
        let old = r#"{"ranks":[{"host":"h","devices":["gpu:a","gpu:b","gpu:c","gpu:d"],"memory_per_device":1,
            "address":"h","port":1,"argv":[],"env":{},"files":[]}]}"#;
        let four = |a: &str| DeviceId::Gpu(a.to_owned());
        let rank = RankPlan {
            host: "h".parse().unwrap(),
            devices: ["a", "b", "c", "d"].map(four).to_vec(),
            memory_per_device: Bytes(1),
            address: "h".to_owned(),
            listen: None,
            port: 1,
            argv: Vec::new(),
            env: BTreeMap::new(),
            files: Vec::new(),
        };
        let plain = ReplicaPlan::new(vec![rank.clone()], ParallelShape::of_tensor(4));
        assert!(!serde_json::to_string(&plain).unwrap().contains("shape"));
        assert_eq!(plain.shape(), ParallelShape::of_tensor(4));
        let devices = serde_json::to_string(&plain.ranks.first().unwrap().devices).unwrap();
        let old = old.replace(r#"["gpu:a","gpu:b","gpu:c","gpu:d"]"#, &devices);
        assert_eq!(serde_json::from_str::<ReplicaPlan>(&old).unwrap(), plain);
        let two = ParallelShape::of_tensor(2);
        let divided = ParallelShape { pipeline: two.tensor, ..two };
        let plan = ReplicaPlan::new(vec![rank], divided);
        let text = serde_json::to_string(&plan).unwrap();
        assert_eq!(serde_json::from_str::<ReplicaPlan>(&text).unwrap().shape(), divided);
    }
}
