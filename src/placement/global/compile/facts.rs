//! What a world says of its GPUs: facts that requirements ask for, free memory, and which are out of use.

use std::collections::BTreeMap;

use super::super::file::{WorldFile, WorldGpu, WorldHost, WorldService};
use super::needs::{need, running_shape};
use crate::spec::require::{Fact, Value};

/// What a requirement wants to know.
pub(in crate::placement::global) fn fact<'a>(
    host: &'a WorldHost,
    gpu: &'a WorldGpu,
    free: u64,
    fact: &Fact,
) -> Option<Value<'a>> {
    let label = |key: &str| host.labels.get(key).map(|v| Value::Text(v));
    match fact {
        Fact::GpuMemory => Some(Value::Size(gpu.memory_total.0)),
        Fact::GpuFree => Some(Value::Size(free)),
        Fact::GpuModel => Some(Value::Text(&gpu.model)),
        Fact::GpuIndex => Some(Value::Number(f64::from(gpu.index))),
        Fact::GpuNuma => gpu.numa.map(|n| Value::Number(f64::from(n))),
        // An instance is in no island.
        Fact::GpuIsland => {
            gpu.island.filter(|_| gpu.mig.is_none()).map(|n| Value::Number(f64::from(n)))
        }
        Fact::GpuPcieSwitch => gpu.pcie_switch.map(|n| Value::Number(f64::from(n))),
        Fact::GpuMig => Some(Value::Bool(gpu.mig.is_some())),
        Fact::GpuProfile => gpu.mig.as_deref().map(Value::Text),
        Fact::HostName => Some(Value::Text(&host.name)),
        Fact::HostRack => host.rack.as_deref().map(Value::Text).or_else(|| label("rack")),
        Fact::HostZone => host.zone.as_deref().map(Value::Text).or_else(|| label("zone")),
        Fact::HostCpus => host.cpus.map(|n| Value::Number(f64::from(n))),
        Fact::HostMemory => host.memory_free.map(|n| Value::Size(n.0)),
        Fact::HostGpus => Some(Value::Number(host.gpus.len() as f64)),
        Fact::HostNic => host.nics.iter().map(|n| n.gbit).reduce(f64::max).map(Value::Number),
        Fact::Label(key) => label(key),
    }
}

/// Free memory of every GPU of a world once what may be moved is gone, by host and position.
pub(in crate::placement::global) fn free_memory(world: &WorldFile) -> Vec<Vec<u64>> {
    let mut own: BTreeMap<(&str, u32), u64> = BTreeMap::new();
    let services: BTreeMap<&str, &WorldService> =
        world.services.iter().map(|s| (s.name.as_str(), s)).collect();
    for running in &world.placements {
        let Some(service) = services.get(running.service.as_str()) else { continue };
        let memory =
            running.memory.map_or_else(|| need(service, &running_shape(service, running)), |m| m.0);
        for rank in &running.ranks {
            own.extend(rank.gpus.iter().map(|g| ((rank.host.as_str(), *g), memory)));
        }
    }
    let free = |host: &WorldHost, gpu: &WorldGpu| {
        let own = own.get(&(host.name.as_str(), gpu.index)).copied().unwrap_or(0);
        gpu.memory_free
            .map_or(gpu.memory_total.0, |f| f.0.saturating_add(own).min(gpu.memory_total.0))
    };
    world.hosts.iter().map(|h| h.gpus.iter().map(|g| free(h, g)).collect()).collect()
}

/// GPUs that nothing new may use, with the reason.
pub(super) fn outside(
    world: &WorldFile,
    host_at: &BTreeMap<&str, u32>,
    service_at: &BTreeMap<&str, usize>,
) -> Vec<BTreeMap<u32, String>> {
    let mut out: Vec<BTreeMap<u32, String>> = vec![BTreeMap::new(); world.hosts.len()];
    let mut mark = |host: &str, indices: Option<&Vec<u32>>, why: &str| {
        let Some(h) = host_at.get(host).map(|h| *h as usize) else { return };
        for (g, gpu) in world.hosts[h].gpus.iter().enumerate() {
            if indices.is_none_or(|list| list.contains(&gpu.index)) {
                out[h].entry(g as u32).or_insert_with(|| why.to_owned());
            }
        }
    };
    for host in &world.hosts {
        if !host.up {
            mark(&host.name, None, "not reached");
        } else if host.draining {
            mark(&host.name, None, "being drained");
        } else if host.cordoned {
            mark(&host.name, None, "cordoned");
        }
        for gpu in host.gpus.iter().filter(|g| g.health != "ok") {
            mark(&host.name, Some(&vec![gpu.index]), &format!("not healthy: {}", gpu.health));
        }
    }
    for cordon in &world.cordons {
        mark(&cordon.host, cordon.gpus.as_ref(), "cordoned");
    }
    for reservation in &world.reservations {
        let by = if reservation.by.is_empty() { "another" } else { &reservation.by };
        mark(&reservation.host, reservation.gpus.as_ref(), &format!("reserved by {by}"));
    }
    for running in &world.placements {
        let service = &world.services[service_at[running.service.as_str()]];
        if !running.movable.unwrap_or(service.movable) {
            for rank in &running.ranks {
                let why = format!(
                    "held by {}/{}, which stays where it is",
                    running.service, running.replica
                );
                mark(&rank.host, Some(&rank.gpus), &why);
            }
        }
    }
    out
}
