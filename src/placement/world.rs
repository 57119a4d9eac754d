//! What the hosts have, as far as placing needs to know it.

use std::collections::BTreeMap;

use crate::base::{Bytes, DeviceId, HostName};
use crate::spec::require::{Fact, Value};
use crate::wire::{Gpu, GpuHealth, Gpus, HostFacts, HostSample};

/// All hosts of a deck.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct World {
    /// The hosts.
    pub hosts: Vec<HostCapacity>,
}

/// A host.
#[derive(Clone, Debug, PartialEq)]
pub struct HostCapacity {
    /// Its name.
    pub name: HostName,
    /// Its labels in the deck.
    pub labels: BTreeMap<String, String>,
    /// Its agent answers and its sample is fresh.
    pub up: bool,
    /// It gets no new ranks.
    pub cordoned: bool,
    /// Likewise, and what runs there leaves.
    pub draining: bool,
    /// Its network interfaces, with their speed in Gbit/s.
    pub nics: Vec<(String, f64)>,
    /// Logical processors.
    pub cpus: u32,
    /// Host memory that is free, promises to ranks that are still loading taken off.
    pub memory_free: Bytes,
    /// Its GPUs.
    pub gpus: Vec<GpuCapacity>,
    /// Why there are no GPUs or none can be read, for people.
    pub gpu_trouble: Option<String>,
}

/// A GPU.
#[derive(Clone, Debug, PartialEq)]
pub struct GpuCapacity {
    /// The driver's UUID.
    pub uuid: String,
    /// Index in the driver's order, for people.
    pub index: u32,
    /// Product name.
    pub name: String,
    /// Its memory.
    pub total: Bytes,
    /// Memory that is free now, as NVML says.
    pub free: Bytes,
    /// Memory held by programs that are not ours; counts only where a replica is replaced.
    pub foreign: Bytes,
    /// Whether it can be used, or what is wrong with it.
    pub healthy: Result<(), String>,
    /// Its `NVLink` island on this host; none: no links.
    pub island: Option<u32>,
    /// Its NUMA node.
    pub numa: Option<u32>,
    /// The service whose replica holds it (another one than the one that is placed).
    pub reserved_by: Option<String>,
}

impl GpuCapacity {
    /// Its id as a device.
    pub fn device(&self) -> DeviceId {
        DeviceId::Gpu(self.uuid.clone())
    }
}

impl HostCapacity {
    /// What a requirement wants to know of this host and one of its GPUs.
    pub fn fact<'a>(&'a self, gpu: Option<&'a GpuCapacity>, fact: &Fact) -> Option<Value<'a>> {
        let label = |key: &str| self.labels.get(key).map(|v| Value::Text(v));
        match fact {
            Fact::GpuMemory => gpu.map(|g| Value::Size(g.total.0)),
            Fact::GpuFree => gpu.map(|g| Value::Size(g.free.0)),
            Fact::GpuModel => gpu.map(|g| Value::Text(&g.name)),
            Fact::GpuIndex => gpu.map(|g| Value::Number(f64::from(g.index))),
            Fact::GpuNuma => gpu?.numa.map(|n| Value::Number(f64::from(n))),
            Fact::GpuIsland => gpu?.island.map(|n| Value::Number(f64::from(n))),
            // MIG instances are not listed by the agent.
            Fact::GpuMig => gpu.map(|_| Value::Bool(false)),
            Fact::GpuProfile => None,
            Fact::HostNic => {
                self.nics.iter().map(|(_, gbit)| *gbit).reduce(f64::max).map(Value::Number)
            }
            Fact::HostName => Some(Value::Text(self.name.as_str())),
            Fact::HostRack => label("rack"),
            Fact::HostZone => label("zone"),
            Fact::HostCpus => Some(Value::Number(f64::from(self.cpus))),
            Fact::HostMemory => Some(Value::Size(self.memory_free.0)),
            Fact::HostGpus => Some(Value::Number(self.gpus.len() as f64)),
            Fact::Label(key) => label(key),
        }
    }

    /// A host as its agent described it. `reserved` says which of its GPUs are held by other
    /// services, by whom. Without a sample the host is down.
    pub fn observed(
        name: HostName,
        labels: BTreeMap<String, String>,
        up: bool,
        facts: Option<&HostFacts>,
        sample: Option<&HostSample>,
        reserved: &BTreeMap<DeviceId, String>,
    ) -> Self {
        let gpus = sample.map_or(&[][..], |s| s.gpus.list());
        let islands = islands(gpus);
        let gpu_trouble = sample.and_then(|s| match &s.gpus {
            Gpus::None { why } => Some(format!("it has no GPU ({why})")),
            Gpus::Hung { for_ms } => {
                Some(format!("its GPU driver has not answered for {} s", for_ms / 1000))
            }
            Gpus::Some(list) => list.is_empty().then(|| "it has no GPU".to_owned()),
        });
        Self {
            name,
            labels,
            up: up && sample.is_some(),
            cordoned: false,
            draining: false,
            nics: facts.map(nics).unwrap_or_default(),
            cpus: facts.map_or(0, |f| f.cpus),
            memory_free: sample.and_then(|s| s.memory).map_or(Bytes::ZERO, |m| m.free()),
            gpus: gpus
                .iter()
                .map(|gpu| GpuCapacity {
                    uuid: gpu.uuid.clone(),
                    index: gpu.index,
                    name: gpu.name.clone(),
                    total: gpu.memory.map_or(Bytes::ZERO, |m| m.total),
                    free: gpu.memory.map_or(Bytes::ZERO, |m| m.free()),
                    foreign: Bytes::ZERO,
                    healthy: match &gpu.health {
                        GpuHealth::Ok if gpu.memory.is_none() => {
                            Err("its memory cannot be read".to_owned())
                        }
                        // Whole it cannot be used, and ranks are not given instances yet.
                        GpuHealth::Ok if gpu.mig == Some(true) => {
                            Err("it is divided into MIG instances".to_owned())
                        }
                        GpuHealth::Ok => Ok(()),
                        GpuHealth::Degraded { why } => Err(why.clone()),
                        GpuHealth::Lost => Err("it has fallen off the bus".to_owned()),
                    },
                    island: islands.get(gpu.uuid.as_str()).copied(),
                    numa: gpu.numa_node,
                    reserved_by: reserved.get(&gpu.device()).cloned(),
                })
                .collect(),
            gpu_trouble,
        }
    }
}

/// Interfaces whose link is up and whose speed is known, in Gbit/s.
fn nics(facts: &HostFacts) -> Vec<(String, f64)> {
    let up = facts.nics.iter().filter(|nic| nic.up).take(64);
    up.filter_map(|nic| Some((nic.name.clone(), f64::from(nic.speed_mbit_per_s?) / 1000.0)))
        .collect()
}

/// Numbers the `NVLink` islands: GPUs that reach each other over links, directly or not.
fn islands(gpus: &[Gpu]) -> BTreeMap<&str, u32> {
    let mut found: BTreeMap<&str, u32> = BTreeMap::new();
    let mut next = 0;
    for gpu in gpus {
        let joined = |other: &Gpu| {
            other.nvlink_peers.contains(&gpu.uuid) || gpu.nvlink_peers.contains(&other.uuid)
        };
        let mut touched: Vec<u32> = gpus
            .iter()
            .filter(|other| other.uuid != gpu.uuid && joined(other))
            .filter_map(|other| found.get(other.uuid.as_str()).copied())
            .collect();
        let linked = gpus.iter().any(|other| other.uuid != gpu.uuid && joined(other));
        if !linked {
            continue;
        }
        touched.sort_unstable();
        let island = touched.first().copied().unwrap_or_else(|| {
            next += 1;
            next - 1
        });
        for number in found.values_mut().filter(|n| touched.contains(n)) {
            *number = island;
        }
        found.insert(&gpu.uuid, island);
    }
    found
}
