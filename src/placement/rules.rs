//! What a host or a GPU must be for a demand: asked where places are looked for, and where it is told why there are none.

use std::collections::BTreeMap;

use super::demand::{Demand, ShapeNeed};
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
        return Some(format!("the model is not there: {}", text::clean(why, 200)));
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
    let requirement = match Requirement::parse(demand.placement.require.as_ref()?) {
        Ok(requirement) => requirement,
        Err(error) => return Some(format!("require, {error}")),
    };
    requirement.why_not(&|fact| host.fact(gpu, fact))
}

/// The same as a requirement, for a world.
pub(super) fn requirement(demand: &Demand) -> Option<String> {
    let own = demand.placement.require.clone();
    match (own, &demand.whole_gpus) {
        (own, None) => own,
        (None, Some(_)) => Some("!gpu.mig".to_owned()),
        (Some(own), Some(_)) => Some(format!("({own}) && !gpu.mig")),
    }
}

/// What this GPU must have free for the need.
pub(super) fn needed_on(gpu: &GpuCapacity, demand: &Demand, need: ShapeNeed) -> Bytes {
    let share = demand.memory_share.map_or(Bytes::ZERO, |share| {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // within 0 and total
        Bytes((gpu.total.0 as f64 * share.clamp(0.0, 1.0)) as u64)
    });
    need.memory_per_device.max(share)
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
