//! What a host or a GPU must be for a demand: asked where places are looked for, and where it is told why there are none.

use std::collections::BTreeMap;

use super::demand::{Demand, ShapeNeed};
use super::global::Share;
use super::world::{GpuCapacity, HostCapacity};
use crate::base::{Bytes, DeviceId, ReplicaKey, text};
use crate::spec::{DeviceKind, Requirement};

/// Why a host is out, whatever it has free.
pub(super) fn excluded(host: &HostCapacity, demand: &Demand) -> Option<String> {
    if let Some(why) = excluded_by_spec(host, demand) {
        return Some(why);
    }
    if !host.up {
        return Some("not reached".to_owned());
    }
    if host.draining {
        return Some("being drained".to_owned());
    }
    if host.cordoned {
        return Some("cordoned".to_owned());
    }
    // Without GPUs to ask, the requirement is asked of the host alone.
    (demand.device == DeviceKind::Cpu).then(|| unmet(host, None, demand)).flatten()
}

/// Why a host is not among those that the service may use.
pub(super) fn excluded_by_spec(host: &HostCapacity, demand: &Demand) -> Option<String> {
    if let Some(why) = demand.lacking.get(&host.name) {
        return Some(text::clean(why, 300));
    }
    let wanted = &demand.placement;
    if !wanted.hosts.is_empty() && !wanted.hosts.contains(&host.name) {
        return Some("not among `placement.hosts`".to_owned());
    }
    for (key, value) in &wanted.labels {
        match host.labels.get(key) {
            Some(has) if has == value => {}
            Some(has) => return Some(format!("label {key} is {has}, not {value}")),
            None => return Some(format!("label {key} = {value} is missing")),
        }
    }
    None
}

/// The part of the requirement that a host and a GPU of it do not meet; none if they meet all.
pub(super) fn unmet(
    host: &HostCapacity,
    gpu: Option<&GpuCapacity>,
    demand: &Demand,
) -> Option<String> {
    if let Some(why) = &demand.whole_gpus
        && gpu.is_some_and(|g| g.instance.is_some())
    {
        return Some(format!("it has MIG instances: {why}"));
    }
    if gpu.is_some_and(|g| demand.refused_on.contains(&g.name)) {
        return Some("the engine refused to start with as much on such a GPU".to_owned());
    }
    let requirement = match Requirement::parse(demand.placement.require.as_ref()?) {
        Ok(requirement) => requirement,
        Err(error) => return Some(format!("require, {error}")),
    };
    requirement.why_not(&|fact| host.fact(gpu, fact))
}

/// The same as a requirement, for a world.
pub(super) fn requirement(demand: &Demand) -> Option<String> {
    let own = demand.placement.require.as_ref().map(|own| format!("({own})"));
    let whole = demand.whole_gpus.as_ref().map(|_| "!gpu.mig".to_owned());
    // A name that cannot be written as a text is of no GPU that exists.
    let refused: Vec<String> = demand
        .refused_on
        .iter()
        .filter(|name| !name.contains(['"', '\\']) && !name.contains(char::is_control))
        .map(|name| format!("gpu.model != \"{name}\""))
        .collect();
    let all: Vec<String> = own.into_iter().chain(whole).chain(refused).collect();
    (!all.is_empty()).then(|| all.join(" && "))
}

/// What this GPU must have free for the need.
pub(super) fn needed_on(gpu: &GpuCapacity, demand: &Demand, need: ShapeNeed) -> Bytes {
    let share = Share { of_total: demand.memory_share, holds_need: demand.within_share };
    Bytes(share.needed(need.memory_per_device.0, gpu.total.0))
}

/// What a GPU of this service's present replica has once that is gone, or what is free on it.
pub(super) fn available(gpu: &GpuCapacity, occupied: bool) -> Bytes {
    if occupied { gpu.total.saturating_sub(gpu.foreign).max(gpu.free) } else { gpu.free }
}

/// The present replica on each reusable device of a host.
pub(super) fn occupants(host: &HostCapacity, demand: &Demand) -> BTreeMap<DeviceId, ReplicaKey> {
    demand
        .reuse
        .iter()
        .filter(|r| r.host == host.name)
        .flat_map(|r| r.devices.iter().map(|d| (d.clone(), r.replica)))
        .collect()
}
