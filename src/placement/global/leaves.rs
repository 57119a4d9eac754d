//! Why a replica that runs does not stay.
#![allow(clippy::indexing_slicing)] // tables of `compile`

use std::collections::BTreeSet;

use super::answer::{Move, ServiceAnswer};
use super::compile::{Incumbent, Joined, fact, link_cost, most_link, shape_trouble};
use super::file::{HOLE, Rank, WorldFile, WorldLink};
use crate::base::text;
use crate::spec::Requirement;

/// Where nothing is wrong with its place.
const BETTER: &str = "elsewhere is better for the whole";

/// In one line; `free` is the free memory of every GPU once what may be moved is gone.
pub(super) fn why(world: &WorldFile, free: &[Vec<u64>], i: &Incumbent) -> String {
    let service = &world.services[i.service as usize];
    let gpus = || {
        i.pins.iter().flat_map(|pin| {
            let host = &world.hosts[pin.host as usize];
            pin.gpus.iter().map(move |g| (pin.host as usize, *g as usize, host))
        })
    };
    for pin in &i.pins {
        let host = &world.hosts[pin.host as usize];
        if !host.up {
            return format!("{} is lost", host.name);
        }
    }
    if let Some((_, g, host)) = gpus().find(|(_, g, host)| host.gpus[*g].health != "ok") {
        let (index, health) = (host.gpus[g].index, text::clean(&host.gpus[g].health, 80));
        return format!("GPU {index} of {} is not healthy: {health}", host.name);
    }
    for pin in &i.pins {
        let host = &world.hosts[pin.host as usize];
        if host.draining {
            return format!("{} is drained", host.name);
        }
        if !service.hosts.is_empty() && !service.hosts.contains(&host.name) {
            return format!("{} is not among its hosts any more", host.name);
        }
    }
    if !service.shapes.contains(&i.shape) || i.shape.gpus() != gpus().count() as u64 {
        return "a replica is divided otherwise now".to_owned();
    }
    if let Some(trouble) = shape_trouble(service, &i.shape) {
        return trouble;
    }
    if let Some(requirement) = service.require.as_ref().and_then(|r| Requirement::parse(r).ok()) {
        let fails = gpus().find_map(|(h, g, host)| {
            let why = requirement.why_not(&|f| fact(host, &host.gpus[g], free[h][g], f))?;
            Some(format!("{} no longer meets the requirement: {why}", host.name))
        });
        if let Some(why) = fails {
            return why;
        }
    }
    let models: BTreeSet<(&str, u64)> = gpus()
        .map(|(_, g, host)| (host.gpus[g].model.as_str(), host.gpus[g].memory_total.0))
        .collect();
    if models.len() > 1 {
        return "its GPUs are not alike".to_owned();
    }
    let links: Vec<Joined> = gpus().map(|(_, g, host)| Joined::of(&host.gpus[g])).collect();
    let groups = links.chunks((i.shape.tensor as usize).max(1));
    let worst = groups.map(|group| link_cost(group.iter().copied())).max().unwrap_or(0);
    if worst > most_link(service.link) {
        let how = match service.link {
            WorldLink::Nvlink => "not joined by NVLink",
            WorldLink::PcieSwitch => "on several PCIe switches",
            WorldLink::Numa | WorldLink::Any => "on several NUMA nodes",
        };
        return format!("its GPUs are {how}");
    }
    if !i.can_stay {
        return "its ranks do not divide it evenly".to_owned();
    }
    BETTER.to_owned()
}

/// What moves for a hole says so: what lay on its GPUs, and what lay where that goes.
pub(super) fn name_hole(services: &mut [ServiceAnswer], moves: &[Move]) {
    let hole = services.iter().find(|s| s.name == HOLE).and_then(|s| s.replicas.first());
    let Some(hole) = hole.and_then(|r| r.ranks.first()) else { return };
    let size = match hole.gpus.len() {
        1 => "1 GPU".to_owned(),
        n => format!("{n} GPUs"),
    };
    let frees = format!("frees the hole of {size} on {}", hole.host);
    let mut wanted = vec![Rank { host: hole.host.clone(), gpus: hole.gpus.clone() }];
    let mut why = frees.clone();
    let mut waiting: Vec<&Move> = moves.iter().collect();
    while !wanted.is_empty() {
        let on = |from: &Rank| {
            let meets =
                |to: &Rank| to.host == from.host && to.gpus.iter().any(|g| from.gpus.contains(g));
            wanted.iter().any(meets)
        };
        let (makes_room, others): (Vec<&Move>, Vec<&Move>) =
            waiting.into_iter().partition(|m| m.from.iter().any(on));
        for moved in &makes_room {
            let service = services.iter_mut().find(|s| s.name == moved.service);
            let replicas = service.into_iter().flat_map(|s| &mut s.replicas);
            let replica =
                replicas.filter(|r| r.state == "moves").find(|r| r.replica == moved.replica);
            let said = replica.and_then(|r| r.reasons.first_mut()).filter(|said| *said == BETTER);
            if let Some(said) = said {
                said.clone_from(&why);
            }
        }
        wanted = makes_room.into_iter().flat_map(|m| m.to.iter().cloned()).collect();
        why = format!("makes room for what {frees}");
        waiting = others;
    }
}
