//! From a checked world to the tables that the search works on.
//!
//! GPUs of a host that nothing tells apart are one *cell*. A *kind* is one way to divide a replica on one GPU
//! model; all GPUs of a replica have the same model and memory, so ranks are equal. A *slot* is a replica that wants
//! a place; an *incumbent* is a replica that runs.
#![allow(clippy::indexing_slicing)] // the tables are made, and indexed, here and by the search alone
#![allow(clippy::cast_possible_truncation)] // counts that `read` bounds

mod facts;
mod incumbents;
mod kinds;
mod needs;
mod tables;

use std::cell::{Cell as Flag, RefCell};
use std::collections::{BTreeMap, BTreeSet};

use self::facts::outside;
use self::incumbents::{add_incumbent, add_outgoing};
use self::kinds::{add_kind, is_whole, mask, switches};
use super::alike::Alike;
use super::clock::Clock;
use super::file::{WorldFile, WorldHost, WorldLink, WorldSpread};
use crate::spec::Requirement;

pub(super) use self::facts::{fact, free_memory};
pub(super) use self::needs::{
    A_RACK, most_link, need, needed, running_shape, shape_trouble, span_cost,
};
pub(in crate::placement) use self::needs::{
    APART, Joined, ON_NODE, ON_SWITCH, Share, headroom, link_cost,
};
pub(super) use self::tables::{Cell, Host, Incumbent, NONE, Problem, Service};

/// Makes the tables.
pub(super) fn compile<'a>(world: &WorldFile, clock: Clock<'a>) -> Problem<'a> {
    let host_at: BTreeMap<&str, u32> =
        world.hosts.iter().enumerate().map(|(i, h)| (h.name.as_str(), i as u32)).collect();
    let service_at: BTreeMap<&str, usize> =
        world.services.iter().enumerate().map(|(i, s)| (s.name.as_str(), i)).collect();
    let free = free_memory(world);
    let outside = outside(world, &host_at, &service_at);
    let requirements: Vec<Option<Requirement>> = world
        .services
        .iter()
        .map(|s| s.require.as_ref().and_then(|r| Requirement::parse(r).ok()))
        .collect();
    let alike = Alike::new(world, &requirements);
    let mut models: BTreeMap<(&str, u64), u32> = BTreeMap::new();
    for gpu in world.hosts.iter().flat_map(|h| &h.gpus) {
        let next = models.len() as u32;
        models.entry((&gpu.model, gpu.memory_total.0)).or_insert(next);
    }
    let numbers = |of: fn(&WorldHost) -> Option<&str>| {
        let mut known: BTreeMap<&str, u32> = BTreeMap::new();
        let list: Vec<u32> = world
            .hosts
            .iter()
            .map(|h| {
                let next = known.len() as u32;
                *known.entry(of(h).unwrap_or("")).or_insert(next)
            })
            .collect();
        (list, known.len() as u32)
    };
    let (rack_of, racks) =
        numbers(|h| h.rack.as_deref().or_else(|| h.labels.get("rack").map(String::as_str)));
    let (zone_of, zones) =
        numbers(|h| h.zone.as_deref().or_else(|| h.labels.get("zone").map(String::as_str)));
    let mut patterns = BTreeMap::new();
    let sizes = world.services.iter().flat_map(|s| &s.shapes).map(|shape| shape.tensor);
    let smallest = sizes.filter(|tensor| *tensor > 1).min().unwrap_or(u32::MAX);
    let hosts: Vec<Host> = world
        .hosts
        .iter()
        .enumerate()
        .map(|(h, host)| {
            let mut cells: Vec<Cell> = Vec::new();
            let inside = |g: usize| !outside[h].contains_key(&(g as u32));
            let switch_of = switches(&host.gpus, &inside, smallest);
            for (g, gpu) in host.gpus.iter().enumerate() {
                if !inside(g) {
                    continue;
                }
                let cell = Cell {
                    joined: Joined { pcie_switch: switch_of[g], ..Joined::of(gpu) },
                    model: models[&(gpu.model.as_str(), gpu.memory_total.0)],
                    total: gpu.memory_total.0,
                    free: free[h][g],
                    mark: alike.mark(h, gpu, free[h][g]),
                    mig: gpu.mig.clone(),
                    gpus: vec![g as u32],
                };
                match cells.iter_mut().find(|known| known.is_like(&cell)) {
                    Some(known) => {
                        known.gpus.push(g as u32);
                        known.free = known.free.max(cell.free);
                    }
                    None => cells.push(cell),
                }
            }
            let room = cells.iter().map(|c| c.gpus.len() as u32).sum();
            let pattern = pattern(&cells, &mut patterns);
            Host { cells, rack: rack_of[h], zone: zone_of[h], room, pattern, whole: false }
        })
        .collect();

    let mut classes: Vec<i32> =
        world.services.iter().map(|s| s.priority).collect::<BTreeSet<_>>().into_iter().collect();
    classes.reverse();
    let mut in_rack = vec![Vec::new(); racks as usize];
    for (h, host) in hosts.iter().enumerate() {
        in_rack[host.rack as usize].push(h as u32);
    }
    let mut problem = Problem {
        clock,
        hosts,
        kinds: Vec::new(),
        services: Vec::new(),
        incumbents: Vec::new(),
        slots: Vec::new(),
        classes,
        eligible: Vec::new(),
        tight: Vec::new(),
        racks,
        zones,
        in_rack,
        outside,
        divided: RefCell::default(),
        divided_unlike: RefCell::default(),
        guessed: Flag::default(),
    };
    // The cells on which each different requirement holds, with the model of each cell.
    let mut required: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    for (service, requirement) in world.services.iter().zip(&requirements) {
        let (Some(text), Some(requirement)) = (&service.require, requirement) else { continue };
        required.entry(text).or_insert_with(|| {
            let holds = |h: usize, cell: &Cell| {
                let gpu = &world.hosts[h].gpus[cell.gpus[0] as usize];
                requirement.holds(&|f| fact(&world.hosts[h], gpu, cell.free, f))
            };
            problem.hosts.iter().enumerate().map(|(h, host)| mask(host, |c| holds(h, c))).collect()
        });
    }
    let model_masks: Vec<Vec<u64>> = (0..models.len() as u32)
        .map(|m| problem.hosts.iter().map(|host| mask(host, |c| c.model == m)).collect())
        .collect();
    let mut made: BTreeMap<
        (WorldShape2, u64, (u64, bool), u32, WorldLink, bool, &str, Vec<&str>),
        Option<u32>,
    > = BTreeMap::new();
    for service in &world.services {
        let mut kinds = Vec::new();
        let only: BTreeSet<&str> = service.hosts.iter().map(String::as_str).collect();
        for shape in service.shapes.iter().filter(|s| shape_trouble(service, s).is_none()) {
            for model in 0..models.len() as u32 {
                let need = need(service, shape);
                let share = (service.memory_share.unwrap_or(0.0).to_bits(), service.within_share);
                let key = (
                    (shape.tensor, shape.pipeline, shape.data, shape.memory.0),
                    need,
                    share,
                    model,
                    service.link,
                    service.one_host,
                    service.require.as_deref().unwrap_or(""),
                    only.iter().copied().collect(),
                );
                let kind = *made.entry(key).or_insert_with(|| {
                    let may = |h: usize| {
                        let all = model_masks[model as usize][h];
                        let on = only.is_empty() || only.contains(world.hosts[h].name.as_str());
                        match required.get(service.require.as_deref().unwrap_or("")) {
                            _ if !on => 0,
                            Some(mask) => all & mask[h],
                            None => all,
                        }
                    };
                    add_kind(&mut problem, world, service, shape, need, &may)
                });
                kinds.extend(kind.filter(|k| !kinds.contains(k)));
            }
        }
        let s = problem.services.len() as u32;
        let mut has: Vec<bool> = vec![false; world.hosts.len()];
        for host in &service.weights_on {
            has[host_at[host.as_str()] as usize] = true;
        }
        let class = problem.classes.iter().position(|p| *p == service.priority).unwrap_or(0);
        let first = problem.slots.len() as u32;
        problem.slots.extend((0..service.replicas).map(|_| s));
        problem.services.push(Service {
            class: class as u32,
            kinds,
            spread: service.spread,
            quota: 0,
            host_quota: u32::MAX,
            bytes: i64::try_from(service.weights_bytes.0).unwrap_or(i64::MAX),
            has,
            homes: Vec::new(),
            incumbents: Vec::new(),
            first,
            replicas: service.replicas,
            outgoing: false,
        });
    }
    let outgoing = add_outgoing(&mut problem, world, &service_at);
    for running in &world.placements {
        let s = service_at[running.service.as_str()];
        let to = if running.outgoing { outgoing[&s] } else { s };
        add_incumbent(&mut problem, world, running, (s, to), &host_at, &free, &required);
    }
    for s in 0..problem.services.len() {
        let service = &problem.services[s];
        let usable = |h: u32| service.kinds.iter().any(|k| problem.eligible(*k, h) != 0);
        let all: Vec<u32> = (0..problem.hosts.len() as u32).filter(|h| usable(*h)).collect();
        let domains: BTreeSet<u32> =
            all.iter().map(|h| problem.domain(service.spread, *h)).collect();
        let quota = service.replicas.div_ceil((domains.len() as u32).max(1));
        let apart = matches!(service.spread, WorldSpread::Rack | WorldSpread::Zone);
        let by_host = apart && world.services.get(s).is_some_and(|s| s.one_host);
        let hosts = (all.len() as u32).max(1);
        let host_quota = if by_host { service.replicas.div_ceil(hosts) } else { u32::MAX };
        let mut homes: Vec<u32> = all.into_iter().filter(|h| service.has[*h as usize]).collect();
        // Where its earlier release runs is room that it may take over.
        if let Some(earlier) = outgoing.get(&s) {
            let incumbents = problem.services[*earlier].incumbents.iter();
            let pins = incumbents.flat_map(|i| &problem.incumbents[*i as usize].pins);
            homes.extend(pins.map(|pin| pin.host).filter(|h| usable(*h)));
            homes.sort_unstable();
            homes.dedup();
        }
        let service = &mut problem.services[s];
        service.quota = quota;
        service.host_quota = host_quota;
        service.homes = homes;
    }
    for h in 0..problem.hosts.len() {
        problem.hosts[h].whole = is_whole(&problem, h as u32);
    }
    problem
}

/// What each GPU has free once what may be moved is gone, by host and position; none where nothing new may be. The world
/// must have passed `check`.
pub(in crate::placement) fn vacated(world: &WorldFile) -> Vec<Vec<Option<u64>>> {
    let hosts = world.hosts.iter().enumerate();
    let services = world.services.iter().enumerate();
    let outside = outside(
        world,
        &hosts.map(|(i, h)| (h.name.as_str(), i as u32)).collect(),
        &services.map(|(i, s)| (s.name.as_str(), i)).collect(),
    );
    let free = free_memory(world).into_iter().zip(&outside);
    free.map(|(free, outside)| {
        let gpus = free.into_iter().zip(0..);
        gpus.map(|(free, g)| (!outside.contains_key(&g)).then_some(free)).collect()
    })
    .collect()
}

/// What joins the GPUs of each cell, and how many they are; and whether they are MIG instances, which are alike in that.
type Pattern = (bool, Vec<(Joined, usize)>);

fn pattern(cells: &[Cell], known: &mut BTreeMap<Pattern, u32>) -> u32 {
    let unlinked = |c: &Cell| Cell { joined: Joined::default(), ..c.clone() };
    if cells.iter().any(|c| !unlinked(c).is_like(&unlinked(&cells[0]))) {
        return NONE;
    }
    // Free instances are no room for a gang, whatever joins them.
    let instances = cells.first().is_some_and(|c| c.mig.is_some());
    let links = cells.iter().map(|c| (c.joined, c.gpus.len())).collect();
    let next = known.len() as u32;
    *known.entry((instances, links)).or_insert(next)
}

/// Tensor, pipeline, data, memory.
type WorldShape2 = (u32, u32, u32, u64);
