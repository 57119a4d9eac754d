//! Replicas that run, and those of earlier releases.

use std::collections::{BTreeMap, BTreeSet};

use super::super::file::{Running, WorldFile, WorldSpread};
use super::facts::fact;
use super::needs::{
    Joined, lacks_headroom, link_cost, most_link, needed, running_shape, shape_trouble, span_cost,
};
use super::tables::{Incumbent, Pin, Problem, Service};
use crate::spec::Requirement;

/// A service of its own for the replicas of each service's earlier releases; gives where it is. It has no way to be
/// placed anew, so they stay where they are or are gone.
pub(super) fn add_outgoing(
    problem: &mut Problem<'_>,
    world: &WorldFile,
    service_at: &BTreeMap<&str, usize>,
) -> BTreeMap<usize, usize> {
    let mut counts: BTreeMap<usize, u32> = BTreeMap::new();
    for running in world.placements.iter().filter(|r| r.outgoing) {
        *counts.entry(service_at[running.service.as_str()]).or_default() += 1;
    }
    let mut at = BTreeMap::new();
    for (s, count) in counts {
        let number = problem.services.len();
        let first = problem.slots.len() as u32;
        problem.slots.extend((0..count).map(|_| number as u32));
        problem.services.push(Service {
            class: problem.classes.len() as u32 - 1,
            kinds: Vec::new(),
            spread: WorldSpread::None,
            quota: 0,
            host_quota: u32::MAX,
            bytes: 0,
            has: vec![false; world.hosts.len()],
            homes: Vec::new(),
            incumbents: Vec::new(),
            first,
            replicas: count,
            outgoing: true,
        });
        at.insert(s, number);
    }
    at
}

pub(super) fn add_incumbent(
    problem: &mut Problem<'_>,
    world: &WorldFile,
    running: &Running,
    (s, to): (usize, usize),
    host_at: &BTreeMap<&str, u32>,
    free: &[Vec<u64>],
    required: &BTreeMap<&str, Vec<u64>>,
) {
    let service = &world.services[s];
    let must_stay = !running.movable.unwrap_or(service.movable);
    let shape = running_shape(service, running);
    let known = service.shapes.contains(&shape) && shape_trouble(service, &shape).is_none();
    let tensor = shape.tensor as usize;
    let worst = most_link(service.link);
    let (mut alive, mut allowed) = (true, known);
    let (mut tight, mut link) = (0, 0);
    let mut pins = Vec::new();
    let mut models = BTreeSet::new();
    for rank in &running.ranks {
        let h = host_at[rank.host.as_str()];
        let host = &world.hosts[h as usize];
        alive &= host.up;
        allowed &= !host.draining;
        allowed &= service.hosts.is_empty() || service.hosts.contains(&host.name);
        let mut pin = Pin { host: h, cells: Vec::new(), gpus: Vec::new() };
        let mut links: Vec<Joined> = Vec::new();
        for index in &rank.gpus {
            let Some(g) = host.gpus.iter().position(|g| g.index == *index) else { continue };
            let gpu = &host.gpus[g];
            alive &= gpu.health == "ok";
            models.insert((gpu.model.as_str(), gpu.memory_total));
            links.push(Joined::of(gpu));
            pin.gpus.push(g as u32);
            let cells = &problem.hosts[h as usize].cells;
            let cell = cells.iter().position(|c| c.gpus.contains(&(g as u32)));
            if let Some(c) = cell {
                match pin.cells.iter_mut().find(|(cell, _)| *cell == c as u32) {
                    Some((_, n)) => *n += 1,
                    None => pin.cells.push((c as u32, 1)),
                }
            }
            let requirement = service.require.as_deref().filter(|r| required.contains_key(r));
            if let Some(text) = requirement {
                allowed &= match cell {
                    Some(c) => required[text][h as usize] & (1 << c) != 0,
                    // Outside the cells, as on a cordoned host, it is asked again.
                    None => Requirement::parse(text)
                        .is_ok_and(|r| r.holds(&|f| fact(host, gpu, free[h as usize][g], f))),
                };
            }
            let needed = needed(service, &shape, gpu.memory_total.0);
            let free = free[h as usize][g];
            tight += i64::from(lacks_headroom(world, gpu.memory_total.0, free, needed));
        }
        // A group does not go on over the end of a rank.
        for group in links.chunks(tensor) {
            let cost = link_cost(group.iter().copied());
            allowed &= cost <= worst;
            link += i64::from(cost);
        }
        // Equal ranks, whole tensor-parallel groups.
        allowed &= rank.gpus.len() % tensor == 0;
        allowed &= running.ranks.iter().all(|other| other.gpus.len() == rank.gpus.len());
        pins.push(pin);
    }
    allowed &= models.len() == 1;
    let racks: BTreeSet<u32> = pins.iter().map(|p| problem.hosts[p.host as usize].rack).collect();
    link += span_cost(pins.len(), racks.len());
    let i = problem.incumbents.len() as u32;
    let of = &mut problem.services[to];
    of.incumbents.push(i);
    let ranks = if alive { pins.len() as i64 } else { 0 };
    let incumbent = Incumbent {
        service: to as u32,
        replica: running.replica,
        shape,
        ranks,
        displaced: 0,
        pins,
        link,
        tight,
        can_stay: must_stay || (alive && allowed),
        must_stay,
    };
    if running.outgoing {
        // It goes anyway: how it lies, and what the service wants now, is nothing to it.
        problem.incumbents.push(Incumbent {
            ranks: 0,
            displaced: if must_stay { 0 } else { ranks },
            link: 0,
            tight: 0,
            can_stay: must_stay || alive,
            ..incumbent
        });
        return;
    }
    for pin in &incumbent.pins {
        of.has[pin.host as usize] |= world.hosts[pin.host as usize].up;
    }
    problem.incumbents.push(incumbent);
}
