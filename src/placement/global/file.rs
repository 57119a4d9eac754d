//! The world as one JSON file (`docs/placement.md`), as types. What it means is decided in `compile`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::base::Bytes;
use crate::spec::{Link as SpecLink, Spread as SpecSpread};

/// A whole world.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorldFile {
    /// The format; 1.
    #[serde(default = "one")]
    pub version: u32,
    /// The hosts.
    pub hosts: Vec<WorldHost>,
    /// What is wanted.
    pub services: Vec<WorldService>,
    /// What runs now.
    #[serde(default)]
    pub placements: Vec<Running>,
    /// GPUs that are held by something else.
    #[serde(default)]
    pub reservations: Vec<Reservation>,
    /// Hosts or GPUs that get nothing new.
    #[serde(default)]
    pub cordons: Vec<Cordon>,
    /// A GPU with less than this share of its memory left, in percent, lacks headroom.
    #[serde(default = "five")]
    pub headroom_percent: u32,
}

const fn one() -> u32 {
    1
}

const fn five() -> u32 {
    5
}

const fn yes() -> bool {
    true
}

/// A host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorldHost {
    /// Its name, unique.
    pub name: String,
    /// Labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Its rack; default: the label `rack`.
    #[serde(default)]
    pub rack: Option<String>,
    /// Its zone; default: the label `zone`.
    #[serde(default)]
    pub zone: Option<String>,
    /// It is reached.
    #[serde(default = "yes")]
    pub up: bool,
    /// It gets nothing new.
    #[serde(default)]
    pub cordoned: bool,
    /// It gets nothing new, and what runs there must leave.
    #[serde(default)]
    pub draining: bool,
    /// Logical processors.
    #[serde(default)]
    pub cpus: Option<u32>,
    /// Main memory that is free.
    #[serde(default)]
    pub memory_free: Option<Bytes>,
    /// Network interfaces.
    #[serde(default)]
    pub nics: Vec<WorldNic>,
    /// Why it has no GPUs, or none can be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_trouble: Option<String>,
    /// Its GPUs and MIG instances.
    pub gpus: Vec<WorldGpu>,
}

/// A network interface.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorldNic {
    /// Its name.
    #[serde(default)]
    pub name: String,
    /// Speed in Gbit/s.
    pub gbit: f64,
    /// Its NUMA node.
    #[serde(default)]
    pub numa: Option<u32>,
}

/// A GPU, or one MIG instance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorldGpu {
    /// Index, unique on the host.
    pub index: u32,
    /// The driver's UUID.
    #[serde(default)]
    pub uuid: Option<String>,
    /// Product name.
    #[serde(default)]
    pub model: String,
    /// All its memory.
    pub memory_total: Bytes,
    /// Memory that is free as NVML sees it, with what runs now; default: all that what runs leaves.
    #[serde(default)]
    pub memory_free: Option<Bytes>,
    /// `"ok"`, or what is wrong with it.
    #[serde(default = "ok")]
    pub health: String,
    /// Its `NVLink` island on this host.
    #[serde(default)]
    pub island: Option<u32>,
    /// Its NUMA node.
    #[serde(default)]
    pub numa: Option<u32>,
    /// The `PCIe` switch that it hangs on, or switches below one root port.
    #[serde(default)]
    pub pcie_switch: Option<u32>,
    /// The profile, if it is a MIG instance: `3g.40gb`.
    #[serde(default)]
    pub mig: Option<String>,
}

fn ok() -> String {
    "ok".to_owned()
}

/// The stand-in for a gang that is to find room; no service of a deck can have this name.
pub const HOLE: &str = "_hole";

/// A service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorldService {
    /// Its name, unique.
    pub name: String,
    /// How many replicas.
    pub replicas: u32,
    /// The ways in which one replica may be divided.
    pub shapes: Vec<WorldShape>,
    /// Higher goes first.
    #[serde(default)]
    pub priority: i32,
    /// What host and GPU must be, in the requirement language.
    #[serde(default)]
    pub require: Option<String>,
    /// Only on these hosts; empty: all.
    #[serde(default)]
    pub hosts: Vec<String>,
    /// How replicas are kept apart.
    #[serde(default)]
    pub spread: WorldSpread,
    /// What a tensor-parallel group needs at least.
    #[serde(default)]
    pub link: WorldLink,
    /// Attention heads; a tensor-parallel degree must divide them.
    #[serde(default)]
    pub heads: Option<u32>,
    /// KV heads; beyond them the KV cache is replicated.
    #[serde(default)]
    pub kv_heads: Option<u32>,
    /// KV cache of a whole replica, to be divided over its GPUs.
    #[serde(default)]
    pub kv_bytes: Bytes,
    /// The share of each GPU that the engine takes whatever the model needs, 0 to 1.
    #[serde(default)]
    pub memory_share: Option<f64>,
    /// The need must fit into that share: the engine takes no more.
    #[serde(default)]
    pub within_share: bool,
    /// The model's files: what is copied to a host that does not have them.
    #[serde(default)]
    pub weights_bytes: Bytes,
    /// Hosts that have them.
    #[serde(default)]
    pub weights_on: Vec<String>,
    /// Its running replicas may be moved.
    #[serde(default = "yes")]
    pub movable: bool,
    /// A replica is never divided over hosts.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub one_host: bool,
}

/// A way to divide a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorldShape {
    /// GPUs of a tensor-parallel group.
    #[serde(default = "one")]
    pub tensor: u32,
    /// Pipeline stages.
    #[serde(default = "one")]
    pub pipeline: u32,
    /// Data-parallel copies within the replica.
    #[serde(default = "one")]
    pub data: u32,
    /// Memory on each GPU, without `kv_bytes`.
    #[serde(default)]
    pub memory: Bytes,
}

impl WorldShape {
    /// GPUs of a replica.
    pub fn gpus(&self) -> u64 {
        u64::from(self.tensor)
            .saturating_mul(u64::from(self.pipeline))
            .saturating_mul(u64::from(self.data))
    }
}

/// How replicas are kept apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WorldSpread {
    /// They need not be.
    #[default]
    None,
    /// Over hosts.
    Host,
    /// Over racks.
    Rack,
    /// Over zones.
    Zone,
    /// On as few hosts as possible.
    Pack,
}

impl From<SpecSpread> for WorldSpread {
    fn from(spread: SpecSpread) -> Self {
        match spread {
            SpecSpread::Host => Self::Host,
            SpecSpread::Rack => Self::Rack,
            SpecSpread::Zone => Self::Zone,
            SpecSpread::Pack => Self::Pack,
        }
    }
}

/// What a tensor-parallel group needs at least.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorldLink {
    /// GPUs of one `NVLink` island.
    Nvlink,
    /// GPUs on one `PCIe` switch, or that.
    PcieSwitch,
    /// GPUs of one NUMA node, or one of these.
    Numa,
    /// GPUs of one host.
    #[default]
    Any,
}

impl From<SpecLink> for WorldLink {
    fn from(link: SpecLink) -> Self {
        match link {
            SpecLink::Any => Self::Any,
            SpecLink::Numa => Self::Numa,
            SpecLink::PcieSwitch => Self::PcieSwitch,
            SpecLink::Nvlink => Self::Nvlink,
        }
    }
}

/// A replica that runs now.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Running {
    /// Whose.
    pub service: String,
    /// Its number within the service.
    pub replica: u32,
    /// How it is divided; default: the first of the service's shapes with as many GPUs.
    #[serde(default)]
    pub shape: Option<WorldShape>,
    /// Memory it takes on each GPU; default: what its shape needs.
    #[serde(default)]
    pub memory: Option<Bytes>,
    /// It may be moved; default: as its service says.
    #[serde(default)]
    pub movable: Option<bool>,
    /// It is of an earlier release: it is not one of the replicas that are wanted, and gives way where its GPUs
    /// are needed for them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub outgoing: bool,
    /// Its ranks, in order.
    pub ranks: Vec<Rank>,
}

/// GPUs of one host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rank {
    /// The host.
    pub host: String,
    /// Indices of its GPUs; tensor-parallel groups one after another.
    pub gpus: Vec<u32>,
}

/// GPUs that are held by something else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reservation {
    /// The host.
    pub host: String,
    /// Indices of its GPUs; default: all.
    #[serde(default)]
    pub gpus: Option<Vec<u32>>,
    /// Who holds them, for people.
    #[serde(default)]
    pub by: String,
}

/// A host or GPUs that get nothing new; what runs there stays.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cordon {
    /// The host.
    pub host: String,
    /// Indices of its GPUs; default: all.
    #[serde(default)]
    pub gpus: Option<Vec<u32>>,
}
