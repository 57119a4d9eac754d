//! Chooses hosts and devices.
//!
//! Every replica of one shape takes the same number of devices of one host, so taking them one
//! replica at a time from the best host is complete: if it fails, no other order succeeds.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::demand::{Demand, PlacedReplica, Placement, Refusal, ShapeNeed};
use super::explain;
use super::topology::{self, Candidate, Distance, Group};
use super::world::{GpuCapacity, HostCapacity, World};
use crate::base::{Bytes, DeviceId, ReplicaKey};
use crate::spec::{DeviceKind, Requirement, Spread};

/// Finds a place for every replica, or says why there is none.
pub fn place(world: &World, demand: &Demand) -> Result<Placement, Refusal> {
    let hosts = sorted(world);
    let mut best: Option<((usize, bool), ShapeNeed, Vec<PlacedReplica>)> = None;
    for need in &demand.shapes {
        let mut attempt = Attempt::new(&hosts, demand, *need);
        if attempt.run() {
            let mut reasons = attempt.reasons;
            reasons.extend(explain::passed_over(&hosts, demand, *need, &attempt.placed));
            return Ok(Placement { replicas: attempt.placed, reasons });
        }
        // For the refusal: the shape that came furthest, or could at least on empty GPUs.
        let score = (attempt.placed.len(), possible_when_empty(&hosts, demand, *need));
        if best.as_ref().is_none_or(|(highest, ..)| *highest < score) {
            best = Some((score, *need, attempt.placed));
        }
    }
    let best = best.map(|(_, need, placed)| (need, placed));
    Err(explain::refusal(&hosts, demand, best))
}

/// How many replicas of this shape fit.
pub(super) fn fitting(hosts: &[&HostCapacity], demand: &Demand, need: ShapeNeed) -> usize {
    let mut attempt = Attempt::new(hosts, demand, need);
    attempt.run();
    attempt.placed.len()
}

/// Whether some host has GPUs enough, and large enough, if nothing were on them.
fn possible_when_empty(hosts: &[&HostCapacity], demand: &Demand, need: ShapeNeed) -> bool {
    hosts.iter().filter(|h| excluded(h, demand).is_none()).any(|host| {
        let large = host.gpus.iter().filter(|g| {
            g.total >= needed_on(g, demand, need) && unmet(host, Some(g), demand).is_none()
        });
        let large = large.count();
        large >= need.devices()
    })
}

fn sorted(world: &World) -> Vec<&HostCapacity> {
    let mut hosts: Vec<&HostCapacity> = world.hosts.iter().collect();
    hosts.sort_by(|a, b| a.name.cmp(&b.name));
    hosts.dedup_by(|a, b| a.name == b.name);
    hosts
}

/// Why a host is out, whatever it has free.
pub(super) fn excluded(host: &HostCapacity, demand: &Demand) -> Option<String> {
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
    if !host.up {
        return Some("not reached".to_owned());
    }
    if host.cordoned {
        return Some("cordoned".to_owned());
    }
    // Without GPUs to ask, the requirement is asked of the host alone.
    (demand.device == DeviceKind::Cpu).then(|| unmet(host, None, demand)).flatten()
}

/// The part of the requirement that a host and a GPU of it do not meet; none if they meet all.
pub(super) fn unmet(
    host: &HostCapacity,
    gpu: Option<&GpuCapacity>,
    demand: &Demand,
) -> Option<String> {
    let requirement = match Requirement::parse(demand.placement.require.as_ref()?) {
        Ok(requirement) => requirement,
        Err(error) => return Some(format!("require, {error}")),
    };
    requirement.why_not(&|fact| host.fact(gpu, fact))
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

/// One way to place one replica, with what speaks for it; the smallest is taken.
#[derive(Debug)]
struct Proposal {
    host: usize,
    devices: Vec<DeviceId>,
    memory: Bytes,
    in_place_of: BTreeSet<ReplicaKey>,
    rank: Rank,
    why: String,
}

/// Compared from the first field on; smaller is better.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    /// How near the GPUs are to each other; a replica without `NVLink` is slow for its whole life.
    distance: Distance,
    /// Replicas of this service already in the rack or zone, where they are kept apart.
    domain: i64,
    /// Replicas of this service already on the host; negative to pack.
    crowd: i64,
    /// What has to go for it.
    displaced: usize,
    /// Total memory of the GPUs: the smallest that suffice.
    size: Bytes,
    /// Usable GPUs left beside them in their island or host.
    left: usize,
    /// For host memory: most free first.
    free: Reverse<Bytes>,
    /// Order of hosts and devices.
    host: usize,
    indices: Vec<u32>,
}

struct Attempt<'a> {
    hosts: &'a [&'a HostCapacity],
    demand: &'a Demand,
    need: ShapeNeed,
    taken: BTreeSet<DeviceKey>,
    /// Host memory promised to replicas placed here, and present replicas that go for them.
    promised: BTreeMap<usize, u64>,
    displaced: BTreeSet<ReplicaKey>,
    per_host: BTreeMap<usize, i64>,
    placed: Vec<PlacedReplica>,
    reasons: Vec<String>,
}

type DeviceKey = (usize, DeviceId);

impl<'a> Attempt<'a> {
    fn new(hosts: &'a [&'a HostCapacity], demand: &'a Demand, need: ShapeNeed) -> Self {
        Self {
            hosts,
            demand,
            need,
            taken: BTreeSet::new(),
            promised: BTreeMap::new(),
            displaced: BTreeSet::new(),
            per_host: BTreeMap::new(),
            placed: Vec::new(),
            reasons: Vec::new(),
        }
    }

    /// Places as many replicas as fit; true if that is all of them.
    fn run(&mut self) -> bool {
        for replica in 0..self.demand.replicas {
            let best = (0..self.hosts.len())
                .filter_map(|host| self.propose(host))
                .min_by(|a, b| a.rank.cmp(&b.rank));
            let Some(best) = best else { return false };
            self.take(replica, best);
        }
        true
    }

    fn take(&mut self, replica: u32, proposal: Proposal) {
        let Some(host) = self.hosts.get(proposal.host) else { return };
        *self.per_host.entry(proposal.host).or_default() += 1;
        self.displaced.extend(proposal.in_place_of.iter().copied());
        match self.demand.device {
            DeviceKind::Gpu => {
                self.taken.extend(proposal.devices.iter().map(|d| (proposal.host, d.clone())));
            }
            DeviceKind::Cpu => {
                let promised = self.promised.entry(proposal.host).or_default();
                *promised = promised.saturating_add(proposal.memory.0);
            }
        }
        self.reasons.push(format!("replica {replica} on {}: {}", host.name, proposal.why));
        self.placed.push(PlacedReplica {
            host: host.name.clone(),
            devices: proposal.devices,
            memory_per_device: proposal.memory,
            shape: self.need.shape,
            in_place_of: proposal.in_place_of.into_iter().collect(),
        });
    }

    fn propose(&self, at: usize) -> Option<Proposal> {
        let host = self.hosts.get(at)?;
        if excluded(host, self.demand).is_some() {
            return None;
        }
        match self.demand.device {
            DeviceKind::Gpu => self.propose_gpus(at, host),
            DeviceKind::Cpu => self.propose_memory(at, host),
        }
    }

    fn crowd(&self, at: usize) -> i64 {
        let here = self.per_host.get(&at).copied().unwrap_or(0);
        match self.demand.placement.spread {
            Spread::Host | Spread::Rack | Spread::Zone => here,
            Spread::Pack => -here,
        }
    }

    /// Replicas already in the failure domain of a host; hosts without the label are one domain.
    fn domain(&self, at: usize) -> i64 {
        let key = match self.demand.placement.spread {
            Spread::Rack => "rack",
            Spread::Zone => "zone",
            Spread::Host | Spread::Pack => return 0,
        };
        let of = |at: usize| self.hosts.get(at).and_then(|h| h.labels.get(key));
        self.per_host.iter().filter(|(other, _)| of(**other) == of(at)).map(|(_, n)| n).sum()
    }

    /// What having to replace these counts in the order: as little as possible has to go, and
    /// free devices come first or last as the demand prefers.
    fn cost(&self, in_place_of: &BTreeSet<ReplicaKey>) -> usize {
        let new = in_place_of.difference(&self.displaced).count();
        match (in_place_of.is_empty(), self.demand.prefer_spare) {
            (true, true) => 0,
            (true, false) => usize::MAX,
            (false, _) => 1 + new,
        }
    }

    fn candidates(&self, at: usize, host: &'a HostCapacity) -> Vec<Candidate<'a>> {
        let occupants = occupants(host, self.demand);
        let mut seen = BTreeSet::new();
        host.gpus
            .iter()
            .filter_map(|gpu| {
                let device = gpu.device();
                let occupant = occupants.get(&device).copied();
                if gpu.healthy.is_err()
                    || (gpu.reserved_by.is_some() && occupant.is_none())
                    || !seen.insert(gpu.uuid.as_str())
                    || self.taken.contains(&(at, device.clone()))
                    || unmet(host, Some(gpu), self.demand).is_some()
                {
                    return None;
                }
                let has = available(gpu, occupant.is_some());
                let fits = has >= needed_on(gpu, self.demand, self.need);
                fits.then_some(Candidate { gpu, occupant })
            })
            .collect()
    }

    fn propose_gpus(&self, at: usize, host: &'a HostCapacity) -> Option<Proposal> {
        let wanted = self.need.devices();
        let all = self.candidates(at, host);
        if wanted == 0 || all.len() < wanted {
            return None;
        }
        topology::groups(&all, wanted)
            .into_iter()
            .filter_map(|group| self.propose_group(at, &group, wanted))
            .min_by(|a, b| a.rank.cmp(&b.rank))
    }

    fn propose_group(&self, at: usize, group: &Group<'a>, wanted: usize) -> Option<Proposal> {
        let chosen = self.choose(&group.members, wanted)?;
        let in_place_of: BTreeSet<ReplicaKey> = chosen.iter().filter_map(|c| c.occupant).collect();
        let gpus: Vec<&GpuCapacity> = chosen.iter().map(|c| c.gpu).collect();
        let needed = gpus.iter().map(|g| needed_on(g, self.demand, self.need));
        let memory = needed.max().unwrap_or_default();
        let rank = Rank {
            distance: group.distance,
            domain: self.domain(at),
            crowd: self.crowd(at),
            displaced: self.cost(&in_place_of),
            size: gpus.iter().map(|g| g.total).max().unwrap_or_default(),
            left: group.members.len().saturating_sub(wanted),
            free: Reverse(Bytes::ZERO),
            host: at,
            indices: gpus.iter().map(|g| g.index).collect(),
        };
        let why = explain::chosen(&gpus, memory, group.distance, &in_place_of);
        let devices = gpus.iter().map(|g| g.device()).collect();
        Some(Proposal { host: at, devices, memory, in_place_of, rank, why })
    }

    /// The best `wanted` of a group: free ones first (or whole present replicas first), then the
    /// smallest, then the driver's order.
    fn choose(&self, group: &[Candidate<'a>], wanted: usize) -> Option<Vec<Candidate<'a>>> {
        let mut on: BTreeMap<ReplicaKey, usize> = BTreeMap::new();
        for key in group.iter().filter_map(|c| c.occupant) {
            *on.entry(key).or_default() += 1;
        }
        let mut sorted = group.to_vec();
        let spare_first = self.demand.prefer_spare;
        sorted.sort_by_key(|c| {
            let class = match c.occupant {
                None => u8::from(!spare_first) * 2,
                // It goes anyway.
                Some(key) if self.displaced.contains(&key) => u8::from(spare_first),
                Some(_) => 1 + u8::from(spare_first),
            };
            // Of present replicas those with most devices here: fewest have to go.
            let mates = c.occupant.map_or(0, |key| on.get(&key).copied().unwrap_or(0));
            let mates = Reverse(mates.min(wanted));
            (class, c.gpu.total, mates, c.occupant, c.gpu.index, c.gpu.uuid.clone())
        });
        let mut chosen: Vec<Candidate<'a>> = sorted.get(..wanted)?.to_vec();
        chosen.sort_by_key(|c| (c.gpu.index, c.gpu.uuid.clone()));
        Some(chosen)
    }

    fn propose_memory(&self, at: usize, host: &HostCapacity) -> Option<Proposal> {
        let factor = u64::try_from(self.need.devices()).unwrap_or(u64::MAX);
        let need = Bytes(self.need.memory_per_device.0.saturating_mul(factor));
        let promised = Bytes(self.promised.get(&at).copied().unwrap_or(0));
        // Present replicas that go for a replica placed before give their memory back.
        let given = |key: &ReplicaKey| self.displaced.contains(key);
        let here = || self.demand.reuse.iter().filter(|r| r.host == host.name);
        let returned: u64 = here()
            .filter(|r| given(&r.replica))
            .fold(0, |n, r| n.saturating_add(r.memory_per_device.0));
        let mut has = Bytes(host.memory_free.0.saturating_add(returned)).saturating_sub(promised);
        let mut in_place_of = BTreeSet::new();
        let mut rest: Vec<_> = here().filter(|r| !given(&r.replica)).collect();
        rest.sort_by_key(|r| (Reverse(r.memory_per_device), r.replica));
        for reuse in rest {
            if has >= need {
                break;
            }
            has = has.saturating_add(reuse.memory_per_device);
            in_place_of.insert(reuse.replica);
        }
        if has < need {
            return None;
        }
        let rank = Rank {
            distance: Distance::Near,
            domain: self.domain(at),
            crowd: self.crowd(at),
            displaced: self.cost(&in_place_of),
            size: Bytes::ZERO,
            left: 0,
            free: Reverse(has),
            host: at,
            indices: Vec::new(),
        };
        let why = format!("{need} of {has} host memory{}", explain::in_place(&in_place_of));
        Some(Proposal {
            host: at,
            devices: vec![DeviceId::Cpu],
            memory: need,
            in_place_of,
            rank,
            why,
        })
    }
}
