//! The deck as a world for the solver: what hosts said, made safe, with what the services want and hold.

use std::collections::{BTreeMap, BTreeSet};

use super::demand::{Demand, Reuse, ShapeNeed};
use super::global::file::{
    Cordon, Rank, Reservation, Running, WorldFile, WorldGpu, WorldHost, WorldNic, WorldService,
    WorldShape,
};
use super::rules::{available, excluded, excluded_by_spec, needed_on, requirement, unmet};
use super::world::{GpuCapacity, HostCapacity};
use crate::base::{Bytes, DeviceId, ReplicaKey, text};

/// GPUs of a host that the solver takes; no machine has more.
const MAX_GPUS: usize = 64;
/// More memory than this is no GPU's.
const MAX_MEMORY: u64 = 1 << 50;

/// What becomes of a service's present replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Present {
    /// A new release is placed: they give way where their GPUs are wanted.
    GiveWay,
    /// They are the replicas that are wanted: they stay unless something better comes of moving them.
    MayStay,
}

/// One service's part in a world.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// What it wants.
    pub demand: &'a Demand,
    /// The shapes that may be taken.
    pub shapes: &'a [ShapeNeed],
    /// What becomes of its present replicas.
    pub present: Present,
}

/// The GPUs of a host that the solver sees, with the index by which it knows each: the driver's, or the place in the
/// list where a driver gives one twice.
pub fn numbered(host: &HostCapacity) -> Vec<(u32, &GpuCapacity)> {
    let mut uuids = BTreeSet::new();
    let gpus: Vec<&GpuCapacity> =
        host.gpus.iter().filter(|g| uuids.insert(g.uuid.as_str())).take(MAX_GPUS).collect();
    let indices: BTreeSet<u32> = gpus.iter().map(|g| g.index).collect();
    let own = indices.len() == gpus.len();
    (0..).zip(gpus).map(|(at, g)| (if own { g.index } else { at }, g)).collect()
}

/// Whether some host has GPUs enough, and large enough, if nothing were on them.
pub(super) fn possible_when_empty(
    hosts: &[&HostCapacity],
    demand: &Demand,
    need: ShapeNeed,
) -> bool {
    hosts.iter().filter(|h| excluded(h, demand).is_none()).any(|host| {
        let large = host.usable_by(need.devices()).filter(|g| {
            g.total >= needed_on(g, demand, need) && unmet(host, Some(g), demand).is_none()
        });
        large.count() >= need.devices()
    })
}

/// Makes the world. Hosts are in the order of their names, services in the order given.
pub fn world_file(hosts: &[&HostCapacity], wanted: &[Wanted<'_>]) -> WorldFile {
    let mut world = WorldFile { version: 1, headroom_percent: 5, ..WorldFile::default() };
    // What the present replicas of these services hold is theirs, whatever else is said of it.
    let present = || wanted.iter().flat_map(|w| w.demand.reuse.iter().chain(&w.demand.staying));
    let held: BTreeMap<(&str, DeviceId), &Reuse> = present()
        .flat_map(|r| r.devices.iter().map(move |d| ((r.host.as_str(), d.clone()), r)))
        .collect();
    for host in hosts {
        let gpus = numbered(host);
        for (index, gpu) in &gpus {
            if gpu.cordoned.is_some() {
                let (host, gpus) = (host.name.to_string(), Some(vec![*index]));
                world.cordons.push(Cordon { host, gpus });
            }
            let holder = held.get(&(host.name.as_str(), gpu.device()));
            if let (Some(by), None) = (&gpu.reserved_by, holder) {
                world.reservations.push(Reservation {
                    host: host.name.to_string(),
                    gpus: Some(vec![*index]),
                    by: text::clean(by, 80),
                });
            }
        }
        let gpus = gpus.iter().map(|(index, gpu)| {
            let holder = held.get(&(host.name.as_str(), gpu.device())).copied();
            world_gpu(*index, gpu, holder)
        });
        world.hosts.push(WorldHost {
            name: host.name.to_string(),
            labels: host.labels.clone(),
            rack: None,
            zone: None,
            up: host.up,
            cordoned: host.cordoned,
            draining: host.draining,
            cpus: Some(host.cpus),
            memory_free: Some(host.memory_free),
            nics: host
                .nics
                .iter()
                .map(|(name, gbit)| WorldNic {
                    name: text::clean(name, 40),
                    gbit: *gbit,
                    numa: None,
                })
                .collect(),
            gpu_trouble: host.gpu_trouble.as_ref().map(|why| text::clean(why, 200)),
            gpus: gpus.collect(),
        });
    }
    let mut taken = BTreeSet::new();
    for one in wanted {
        add_service(&mut world, hosts, one, &mut taken);
    }
    world
}

fn world_gpu(index: u32, gpu: &GpuCapacity, holder: Option<&Reuse>) -> WorldGpu {
    let known = (1..=MAX_MEMORY).contains(&gpu.total.0);
    let total = Bytes(gpu.total.0.clamp(1, MAX_MEMORY));
    // With what the present replica takes it must come to what is there once that is gone.
    let free = match holder {
        Some(holder) => available(gpu, true).saturating_sub(holder.memory_per_device),
        None => gpu.free,
    };
    WorldGpu {
        index,
        uuid: Some(gpu.uuid.clone()),
        model: text::clean(&gpu.name, 80),
        memory_total: total,
        memory_free: Some(free.min(total)),
        health: match &gpu.healthy {
            Ok(()) if known => "ok".to_owned(),
            Ok(()) => "its memory is not known".to_owned(),
            Err(why) => text::clean(why, 120),
        },
        island: gpu.island,
        numa: gpu.numa,
        pcie_switch: gpu.pcie_switch,
        mig: gpu.instance.as_ref().map(|i| text::clean(&i.profile, 40)),
    }
}

fn add_service(
    world: &mut WorldFile,
    hosts: &[&HostCapacity],
    wanted: &Wanted<'_>,
    taken: &mut BTreeSet<(String, u32)>,
) {
    let demand = wanted.demand;
    let allowed: Vec<String> = hosts
        .iter()
        .filter(|h| excluded_by_spec(h, demand).is_none())
        .map(|h| h.name.to_string())
        .collect();
    let shapes: Vec<WorldShape> = wanted
        .shapes
        .iter()
        .take(16)
        .map(|need| WorldShape {
            tensor: need.shape.tensor.get(),
            pipeline: need.shape.pipeline.get(),
            data: need.shape.data.get(),
            memory: need.memory_per_device,
        })
        .collect();
    let staying = add_present(world, hosts, demand, &demand.staying, Some(false), false, taken);
    add_present(
        world,
        hosts,
        demand,
        &demand.reuse,
        // Those of its own earlier release make room for the new one either way.
        (wanted.present == Present::GiveWay).then_some(true),
        wanted.present == Present::GiveWay,
        taken,
    );
    let on: BTreeSet<String> = demand.weights_on.iter().map(ToString::to_string).collect();
    world.services.push(WorldService {
        name: demand.service.to_string(),
        replicas: demand.replicas.saturating_add(staying),
        shapes,
        priority: demand.placement.priority,
        require: requirement(demand),
        hosts: if allowed.len() == hosts.len() { Vec::new() } else { allowed },
        spread: demand.placement.spread.into(),
        link: demand.placement.link.into(),
        heads: None,
        kv_heads: None,
        kv_bytes: Bytes::ZERO,
        memory_share: demand.memory_share,
        within_share: demand.within_share,
        weights_bytes: Bytes(demand.weights.0.min(MAX_MEMORY)),
        weights_on: hosts.iter().map(|h| h.name.to_string()).filter(|h| on.contains(h)).collect(),
        movable: demand.placement.movable,
        one_host: true,
    });
}

/// The present replicas of a service; gives how many there are. One on GPUs that are not seen any more, or that
/// another holds by now, holds nothing.
fn add_present(
    world: &mut WorldFile,
    hosts: &[&HostCapacity],
    demand: &Demand,
    present: &[Reuse],
    movable: Option<bool>,
    outgoing: bool,
    taken: &mut BTreeSet<(String, u32)>,
) -> u32 {
    let mut by_replica: BTreeMap<ReplicaKey, Vec<&Reuse>> = BTreeMap::new();
    for reuse in present {
        by_replica.entry(reuse.replica).or_default().push(reuse);
    }
    let mut count = 0;
    for (key, parts) in &by_replica {
        let ranks: Vec<Rank> = parts.iter().filter_map(|part| rank(hosts, part)).collect();
        if ranks.is_empty() {
            continue;
        }
        let gpus: BTreeSet<(String, u32)> =
            ranks.iter().flat_map(|r| r.gpus.iter().map(|g| (r.host.clone(), *g))).collect();
        if !gpus.is_disjoint(taken) {
            continue;
        }
        taken.extend(gpus);
        let known = || {
            let of = world.placements.iter().filter(|p| p.service == demand.service.as_str());
            of.map(|p| p.replica)
        };
        let number = match key.replica {
            own if known().all(|n| n != own) => own,
            _ => known().max().map_or(0, |n| n.saturating_add(1)),
        };
        // One that has lost a GPU is divided no more.
        let left: u64 = ranks.iter().map(|r| r.gpus.len() as u64).sum();
        let shape = parts.first().map(|part| part.shape).filter(|s| s.devices() == left);
        world.placements.push(Running {
            service: demand.service.to_string(),
            replica: number,
            shape: shape.map(|shape| WorldShape {
                tensor: shape.tensor.get(),
                pipeline: shape.pipeline.get(),
                data: shape.data.get(),
                memory: parts.iter().map(|p| p.memory_per_device).max().unwrap_or_default(),
            }),
            memory: parts.iter().map(|p| p.memory_per_device).max(),
            movable,
            outgoing,
            ranks,
        });
        count += 1;
    }
    count
}

fn rank(hosts: &[&HostCapacity], part: &Reuse) -> Option<Rank> {
    let host = hosts.iter().find(|h| h.name == part.host)?;
    let gpus = numbered(host);
    let index = |d: &DeviceId| gpus.iter().find(|(_, g)| g.device() == *d).map(|(i, _)| *i);
    // A GPU that has fallen off the bus is not among them any more.
    let gpus: Vec<u32> = part.devices.iter().filter_map(index).collect();
    (!gpus.is_empty()).then(|| Rank { host: part.host.to_string(), gpus })
}
