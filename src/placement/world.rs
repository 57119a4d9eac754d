//! What the hosts have, as far as placing needs to know it.

use std::collections::BTreeMap;

use crate::base::{Bytes, DeviceId, HostName};
use crate::spec::require::{Fact, Value};
use crate::wire::{Gpu, GpuHealth, GpuVendor, Gpus, HostFacts, HostSample};

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
    /// An upgrade of hosts is at it, which nobody's `uncordon` ends.
    pub upgrading: bool,
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

/// A GPU, or an instance of one that is divided by MIG.
#[derive(Clone, Debug, PartialEq)]
pub struct GpuCapacity {
    /// The driver's UUID.
    pub uuid: String,
    /// Index in the driver's order. Instances are numbered after the last GPU.
    pub index: u32,
    /// Of which GPU it is an instance, if it is one.
    pub instance: Option<Instance>,
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
    /// No new ranks there: by whom it was cordoned. What runs there serves on.
    pub cordoned: Option<String>,
    /// Its `NVLink` island on this host; none: no links.
    pub island: Option<u32>,
    /// The `PCIe` switch on this host that it shares with other GPUs, or switches below one root port; none: it shares
    /// none, or that is not known.
    pub pcie_switch: Option<u32>,
    /// Its NUMA node.
    pub numa: Option<u32>,
    /// The service whose replica holds it (another one than the one that is placed).
    pub reserved_by: Option<String>,
}

/// What makes a device a MIG instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// UUID of the GPU that is divided.
    pub of: String,
    /// How much of it: `3g.40gb`.
    pub profile: String,
    /// As people call it: `7:1` is the second instance of GPU 7.
    pub label: String,
}

impl GpuCapacity {
    /// Why nothing new may come there, if so.
    pub fn refuses_new(&self) -> Option<String> {
        let cordon = self.cordoned.as_ref().map(|by| format!("cordoned by {by}"));
        self.healthy.clone().err().or(cordon)
    }

    /// Its id as a device.
    pub fn device(&self) -> DeviceId {
        DeviceId::Gpu(self.uuid.clone())
    }

    /// How people call it: its index, of an instance that of its GPU and its own.
    pub fn label(&self) -> String {
        self.instance.as_ref().map_or_else(|| self.index.to_string(), |i| i.label.clone())
    }

    /// Whether it is this device, or an instance of it.
    pub fn is_of(&self, device: &DeviceId) -> bool {
        let DeviceId::Gpu(uuid) = device else { return false };
        self.uuid == *uuid || self.instance.as_ref().is_some_and(|i| i.of == *uuid)
    }

    fn observed(
        gpu: &Gpu,
        islands: &BTreeMap<&str, u32>,
        switches: &BTreeMap<&str, u32>,
        reserved: &BTreeMap<DeviceId, String>,
    ) -> Self {
        Self {
            uuid: gpu.uuid.to_string(),
            index: gpu.index,
            instance: None,
            name: gpu.name.to_string(),
            total: gpu.memory.map_or(Bytes::ZERO, |m| m.total),
            free: gpu.memory.map_or(Bytes::ZERO, |m| m.free()),
            foreign: Bytes::ZERO,
            healthy: match &gpu.health {
                // No runtime gives a rank just these: Docker is asked for NVIDIA's, and a process is told by
                // `CUDA_VISIBLE_DEVICES`.
                GpuHealth::Ok if gpu.vendor == GpuVendor::Amd => {
                    Err("GPUs of AMD are shown and not placed on yet".to_owned())
                }
                GpuHealth::Ok if gpu.memory.is_none() => {
                    Err("its memory cannot be read".to_owned())
                }
                GpuHealth::Ok if gpu.mig == Some(true) => {
                    Err("it is to be divided, and has no instances".to_owned())
                }
                GpuHealth::Ok => Ok(()),
                GpuHealth::Degraded { why } => Err(why.clone()),
                GpuHealth::Lost => Err("it has fallen off the bus".to_owned()),
            },
            cordoned: None,
            island: islands.get(gpu.uuid.as_str()).copied(),
            pcie_switch: switches.get(gpu.uuid.as_str()).copied(),
            numa: gpu.numa_node,
            reserved_by: reserved.get(&gpu.device()).cloned(),
        }
    }

    /// The `at`th instance of a GPU. What is wrong with the GPU is wrong with it.
    fn instance_of(
        gpu: &Gpu,
        at: usize,
        index: u32,
        switches: &BTreeMap<&str, u32>,
        reserved: &BTreeMap<DeviceId, String>,
    ) -> Option<Self> {
        let part = gpu.mig_instances.get(at)?;
        Some(Self {
            uuid: part.uuid.to_string(),
            index,
            instance: Some(Instance {
                of: gpu.uuid.to_string(),
                profile: part.profile().to_owned(),
                label: format!("{}:{at}", gpu.index),
            }),
            name: part.name.to_string(),
            total: part.memory.map_or(Bytes::ZERO, |m| m.total),
            free: part.memory.map_or(Bytes::ZERO, |m| m.free()),
            foreign: Bytes::ZERO,
            healthy: match &gpu.health {
                GpuHealth::Ok if part.memory.is_none() => {
                    Err("its memory cannot be read".to_owned())
                }
                GpuHealth::Ok => Ok(()),
                GpuHealth::Degraded { why } => Err(why.clone()),
                GpuHealth::Lost => Err("its GPU has fallen off the bus".to_owned()),
            },
            cordoned: None,
            island: None,
            pcie_switch: switches.get(gpu.uuid.as_str()).copied(),
            numa: gpu.numa_node,
            reserved_by: reserved.get(&part.device()).cloned(),
        })
    }
}

/// What ranks can be placed on: the GPUs, and in the place of those that are divided their instances.
fn devices(gpus: &[Gpu], reserved: &BTreeMap<DeviceId, String>) -> Vec<GpuCapacity> {
    // Numbers `NVLink` islands, GPUs that reach each other over links, directly or not, and switches.
    let islands = joined(gpus, &|gpu, other| gpu.nvlink_peers.contains(&other.uuid));
    let switches = joined(gpus, &|gpu, other| {
        gpu.paths.iter().any(|path| path.over.is_below_one_port() && path.to == other.uuid)
    });
    let mut next = gpus.iter().map(|g| g.index.saturating_add(1)).max().unwrap_or(0);
    let mut found = Vec::new();
    for gpu in gpus {
        if gpu.mig != Some(true) || gpu.mig_instances.is_empty() {
            found.push(GpuCapacity::observed(gpu, &islands, &switches, reserved));
            continue;
        }
        for at in 0..gpu.mig_instances.len() {
            found.extend(GpuCapacity::instance_of(gpu, at, next, &switches, reserved));
            next = next.saturating_add(1);
        }
    }
    found
}

impl HostCapacity {
    /// The devices that a replica of so many can have here: instances of divided GPUs are never joined.
    pub fn usable_by(&self, devices: usize) -> impl Iterator<Item = &GpuCapacity> {
        self.gpus.iter().filter(move |g| devices <= 1 || g.instance.is_none())
    }

    /// What a requirement wants to know of this host and one of its GPUs.
    pub fn fact<'a>(&'a self, gpu: Option<&'a GpuCapacity>, fact: &Fact) -> Option<Value<'a>> {
        let label = |key: &str| self.labels.get(key).map(|v| Value::Text(v));
        match fact {
            Fact::GpuMemory => gpu.map(|g| Value::Size(g.total.0)),
            Fact::GpuFree => gpu.map(|g| Value::Size(g.free.0)),
            Fact::GpuModel => gpu.map(|g| Value::Text(&g.name)),
            Fact::GpuIndex => gpu.map(|g| Value::Number(f64::from(g.index))),
            Fact::GpuNuma => gpu?.numa.map(|n| Value::Number(f64::from(n))),
            Fact::GpuPcieSwitch => gpu?.pcie_switch.map(|n| Value::Number(f64::from(n))),
            Fact::GpuIsland => gpu?.island.map(|n| Value::Number(f64::from(n))),
            Fact::GpuMig => gpu.map(|g| Value::Bool(g.instance.is_some())),
            Fact::GpuProfile => gpu?.instance.as_ref().map(|i| Value::Text(&i.profile)),
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
        let gpu_trouble = sample.and_then(|s| match &s.gpus {
            Gpus::None { why } => Some(format!("it has no GPU ({why})")),
            Gpus::Hung { .. } if s.gpu_trouble.is_some() => {
                s.gpu_trouble.as_ref().map(|why| format!("its GPUs cannot be read ({why})"))
            }
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
            upgrading: false,
            nics: facts.map(nics).unwrap_or_default(),
            cpus: facts.map_or(0, |f| f.cpus),
            memory_free: sample.and_then(|s| s.memory).map_or(Bytes::ZERO, |m| m.free()),
            gpus: devices(gpus, reserved),
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

/// Numbers the sets of GPUs that are joined, directly or over others; what one of two says of both is enough.
fn joined<'a>(gpus: &'a [Gpu], joins: &dyn Fn(&Gpu, &Gpu) -> bool) -> BTreeMap<&'a str, u32> {
    let mut found: BTreeMap<&str, u32> = BTreeMap::new();
    let mut next = 0;
    for gpu in gpus {
        let joined = |other: &Gpu| joins(gpu, other) || joins(other, gpu);
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
        let set = touched.first().copied().unwrap_or_else(|| {
            next += 1;
            next - 1
        });
        for number in found.values_mut().filter(|n| touched.contains(n)) {
            *number = set;
        }
        found.insert(&gpu.uuid, set);
    }
    found
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_that_no_runtime_can_give_a_rank_is_not_placed_on() {
        let gpu = |vendor: &str| -> Gpu {
            let text = format!(
                "{{\"index\":0,\"uuid\":\"GPU-1\",\"name\":\"x\",\"vendor\":\"{vendor}\",\
                 \"memory\":{{\"total\":1000,\"used\":0}},\"health\":\"ok\",\
                 \"nvlink_peers\":[],\"processes\":[]}}"
            );
            serde_json::from_str(&text).unwrap()
        };
        let seen = |vendor: &str| {
            let none = BTreeMap::new();
            GpuCapacity::observed(&gpu(vendor), &none, &none, &BTreeMap::new()).healthy
        };
        assert_eq!(seen("nvidia"), Ok(()));
        assert!(seen("amd").unwrap_err().contains("AMD"));
    }
}
