//! Places one service on a deck: its shapes are tried in order, each with the solver of [`super::global`].

use std::collections::{BTreeMap, BTreeSet};

use super::demand::{Demand, PlacedReplica, Placement, Refusal, ShapeNeed};
use super::explain;
use super::global::answer::{RankAnswer, ServiceAnswer};
use super::global::{Answer, Control, solve};
use super::memory;
use super::rules::{excluded, needed_on};
use super::translate::{Present, Wanted, numbered, possible_when_empty, world_file};
use super::world::{GpuCapacity, HostCapacity, World};
use crate::base::{Bytes, HostName, ReplicaKey};
use crate::spec::DeviceKind;

/// How long to search.
pub struct Budget<'a> {
    /// The share of the time that is used, 1 or more: all of it.
    pub used: &'a mut dyn FnMut() -> f64,
    /// Attempts at most for each shape: with it alone the answer is the same on every machine.
    pub steps: u64,
}

/// Attempts that are enough to know how many replicas of one service fit.
const COUNTING_STEPS: u64 = 64;

/// Finds a place for every replica, or says why there is none. Either says which shapes were not taken, and why.
pub fn place(
    world: &World,
    demand: &Demand,
    budget: &mut Budget<'_>,
) -> Result<Placement, Refusal> {
    let left_out = || demand.refused_shapes.iter().cloned();
    match place_shapes(world, demand, budget) {
        Ok(mut placement) => {
            placement.reasons.extend(left_out());
            Ok(placement)
        }
        Err(mut refusal) => {
            refusal.reasons.extend(left_out());
            Err(refusal)
        }
    }
}

fn place_shapes(
    world: &World,
    demand: &Demand,
    budget: &mut Budget<'_>,
) -> Result<Placement, Refusal> {
    let hosts = sorted(world);
    let mut best: Option<((usize, bool), ShapeNeed, Vec<PlacedReplica>)> = None;
    let mut without_place: Vec<(ShapeNeed, String)> = Vec::new();
    for (tried, need) in demand.shapes.iter().enumerate() {
        let left = demand.shapes.len() - tried;
        let from = (budget.used)();
        let share = (1.0 - from).max(0.0) / left as f64;
        let used = &mut *budget.used;
        let mut used = || (used() - from) / share.max(1e-9);
        let mut found = attempt(&hosts, demand, *need, &mut used, budget.steps);
        if found.replicas.len() as u64 == u64::from(demand.replicas) {
            found.reasons.extend(without_place.into_iter().map(|(_, why)| why));
            return Ok(found);
        }
        let why = explain::shape_without_place(&hosts, demand, *need, found.replicas.len());
        without_place.push((*need, why));
        // For the refusal: the shape that came furthest, or could at least on empty GPUs.
        let score = (found.replicas.len(), possible_when_empty(&hosts, demand, *need));
        if best.as_ref().is_none_or(|(highest, ..)| *highest < score) {
            best = Some((score, *need, found.replicas));
        }
    }
    let best = best.map(|(_, need, placed)| (need, placed));
    // The refusal tells host by host of the best one.
    without_place.retain(|(need, _)| best.as_ref().is_none_or(|(told, _)| told != need));
    let mut refusal = explain::refusal(&hosts, demand, best);
    refusal.reasons.extend(without_place.into_iter().map(|(_, why)| why));
    Err(refusal)
}

/// How many replicas of this shape fit.
pub(super) fn fitting(hosts: &[&HostCapacity], demand: &Demand, need: ShapeNeed) -> usize {
    attempt(hosts, demand, need, &mut || 0.0, COUNTING_STEPS).replicas.len()
}

/// Places as many replicas of one shape as fit.
fn attempt(
    hosts: &[&HostCapacity],
    demand: &Demand,
    need: ShapeNeed,
    used: &mut dyn FnMut() -> f64,
    steps: u64,
) -> Placement {
    if demand.device == DeviceKind::Cpu {
        let replicas = memory::place(hosts, demand, need);
        let reasons = explain::passed_over(hosts, demand, need, &replicas, None);
        return Placement { replicas, reasons };
    }
    let nothing = Placement { replicas: Vec::new(), reasons: Vec::new() };
    if hosts.iter().all(|h| excluded(h, demand).is_some()) {
        return nothing;
    }
    let present = Present::GiveWay;
    let world = world_file(hosts, &[Wanted { demand, shapes: &[need], present }]);
    let mut control =
        Control { used, first: &mut || (), max_steps: steps, explain: true, helpers: None };
    // What the deck's files say was checked before, and what hosts say was made safe.
    match solve(&world, &mut control) {
        Ok(answer) => told(hosts, demand, need, &answer),
        Err(wrong) => Placement { reasons: vec![wrong.to_string()], ..nothing },
    }
}

fn told(hosts: &[&HostCapacity], demand: &Demand, need: ShapeNeed, answer: &Answer) -> Placement {
    let empty = Vec::new();
    let service: Option<&ServiceAnswer> = answer.services.first();
    let found: Vec<(PlacedReplica, String)> = service
        .map_or(&empty, |s| &s.replicas)
        .iter()
        .filter(|r| r.state == "starts")
        .filter_map(|r| placed(hosts, demand, need, r.ranks.first()?))
        .collect();
    // Those that need not wait for another to go come first, and first one of each host: a canary of two is on two.
    let mut on: BTreeMap<HostName, usize> = BTreeMap::new();
    let mut found: Vec<_> = found
        .into_iter()
        .map(|(replica, why)| {
            let nth = on.entry(replica.host.clone()).or_default();
            *nth += 1;
            ((replica.in_place_of.len(), *nth), replica, why)
        })
        .collect();
    found.sort_by_key(|(order, ..)| *order);
    let whys = (0..).zip(&found).map(|(n, (_, _, why))| (demand.index(n), why.clone()));
    let mut reasons = explain::together(whys);
    let replicas: Vec<PlacedReplica> = found.into_iter().map(|(_, r, _)| r).collect();
    reasons.extend(explain::passed_over(hosts, demand, need, &replicas, service));
    Placement { replicas, reasons }
}

fn placed(
    hosts: &[&HostCapacity],
    demand: &Demand,
    need: ShapeNeed,
    rank: &RankAnswer,
) -> Option<(PlacedReplica, String)> {
    let host = hosts.iter().find(|h| h.name.as_str() == rank.host)?;
    let known = numbered(host);
    let gpu = |index: &u32| known.iter().find(|(i, _)| i == index).map(|(_, g)| *g);
    let gpus: Vec<&GpuCapacity> = rank.gpus.iter().map(gpu).collect::<Option<_>>()?;
    let groups: Vec<Vec<&GpuCapacity>> =
        rank.groups.iter().map(|g| g.iter().filter_map(gpu).collect()).collect();
    let on = |d: &crate::base::DeviceId| gpus.iter().any(|g| g.device() == *d);
    let in_place_of: BTreeSet<ReplicaKey> = demand
        .reuse
        .iter()
        .filter(|r| r.host == host.name && r.devices.iter().any(on))
        .map(|r| r.replica)
        .collect();
    let memory: Bytes = gpus.iter().map(|g| needed_on(g, demand, need)).max().unwrap_or_default();
    let why = explain::chosen(&gpus, &groups);
    let replica = PlacedReplica {
        host: host.name.clone(),
        devices: gpus.iter().map(|g| g.device()).collect(),
        memory_per_device: memory,
        shape: need.shape,
        in_place_of: in_place_of.into_iter().collect(),
    };
    Some((replica, why))
}

/// The hosts by name: their order in a world does not matter.
pub fn sorted(world: &World) -> Vec<&HostCapacity> {
    let mut hosts: Vec<&HostCapacity> = world.hosts.iter().collect();
    hosts.sort_by(|a, b| a.name.cmp(&b.name));
    hosts.dedup_by(|a, b| a.name == b.name);
    hosts
}
