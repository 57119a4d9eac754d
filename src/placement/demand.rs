//! What a service wants, and the answer: a placement, or a refusal.

use std::collections::BTreeSet;

use crate::base::{Bytes, DeviceId, Hint, HostName, ReplicaKey, ServiceName};
use crate::spec::{DeviceKind, ParallelShape, PlacementSpec};

/// What a service wants.
#[derive(Clone, Debug, PartialEq)]
pub struct Demand {
    /// The service.
    pub service: ServiceName,
    /// How many replicas.
    pub replicas: u32,
    /// What they are called, in order, in what is told of them; as many as are given, the others by their place.
    pub indexes: Vec<u32>,
    /// Shapes with their memory, to be tried in order; the first that fits is taken for all.
    pub shapes: Vec<ShapeNeed>,
    /// Shapes that the engine refuses whatever the memory, a line each.
    pub refused_shapes: Vec<String>,
    /// GPUs, or host memory.
    pub device: DeviceKind,
    /// The share of each GPU's memory that the engine takes whatever the model needs, 0 to 1.
    pub memory_share: Option<f64>,
    /// What it needs must fit into that share: the engine refuses to start otherwise.
    pub within_share: bool,
    /// Names of GPUs on which the engine refused to start with as much.
    pub refused_on: BTreeSet<String>,
    /// Why it cannot run on an instance of a divided GPU, if it cannot.
    pub whole_gpus: Option<String>,
    /// Where replicas may go.
    pub placement: PlacementSpec,
    /// Present replicas of this service whose devices may be taken over; free ones are taken first.
    pub reuse: Vec<Reuse>,
    /// Present replicas that stay beside those that are wanted.
    pub staying: Vec<Reuse>,
    /// The model's files: what is copied to a host that does not have them.
    pub weights: Bytes,
    /// Hosts that have them.
    pub weights_on: Vec<HostName>,
    /// Hosts on which it cannot run for want of the model, its program or its key, with the reason.
    pub lacking: std::collections::BTreeMap<HostName, String>,
}

/// A shape and the memory that it needs on each device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShapeNeed {
    /// How a replica is divided.
    pub shape: ParallelShape,
    /// Memory on each device.
    pub memory_per_device: Bytes,
}

impl ShapeNeed {
    /// Devices of one replica.
    pub fn devices(&self) -> usize {
        usize::try_from(self.shape.devices()).unwrap_or(usize::MAX)
    }
}

impl Demand {
    /// What the `n`th of its replicas is called.
    pub(super) fn index(&self, n: u32) -> u32 {
        usize::try_from(n).ok().and_then(|n| self.indexes.get(n)).copied().unwrap_or(n)
    }
}

/// A present replica, or the part of it on one host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reuse {
    /// Which.
    pub replica: ReplicaKey,
    /// Its host.
    pub host: HostName,
    /// Its devices there.
    pub devices: Vec<DeviceId>,
    /// What it takes on each.
    pub memory_per_device: Bytes,
    /// How all of the replica is divided.
    pub shape: ParallelShape,
}

/// Where every replica goes.
#[derive(Clone, Debug, PartialEq)]
pub struct Placement {
    /// The replicas, in order.
    pub replicas: Vec<PlacedReplica>,
    /// One line a decision, one for each host that was passed over, and one for each shape that was
    /// not taken.
    pub reasons: Vec<String>,
}

/// Where one replica goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacedReplica {
    /// The host.
    pub host: HostName,
    /// The devices: GPUs, or just `cpu`.
    pub devices: Vec<DeviceId>,
    /// Memory it takes on each.
    pub memory_per_device: Bytes,
    /// How it is divided.
    pub shape: ParallelShape,
    /// Present replicas that must be gone before it can start. Empty: it fits beside them.
    pub in_place_of: Vec<ReplicaKey>,
}

/// Why not every replica has a place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{service} cannot be placed: {message}")]
pub struct Refusal {
    /// The service.
    pub service: ServiceName,
    /// The cause.
    pub message: String,
    /// How many replicas would fit.
    pub fitting: u32,
    /// Why each host was passed over, and each shape but the one that came nearest.
    pub reasons: Vec<String>,
    /// The smallest change that would help.
    pub change: Option<String>,
}

impl Hint for Refusal {
    fn hint(&self) -> Option<String> {
        self.change.clone()
    }
}
