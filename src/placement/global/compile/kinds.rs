//! Kinds: which cells of which hosts each way to divide a replica may use.

use super::super::file::{WorldFile, WorldGpu, WorldService, WorldShape};
use super::needs::{APART, Joined, ON_NODE, ON_SWITCH, lacks_headroom, most_link, needed};
use super::tables::{Cell, Host, Kind, Problem};

pub(super) fn is_whole(problem: &Problem<'_>, host: u32) -> bool {
    let cells = &problem.hosts[host as usize].cells;
    let all = mask(&problem.hosts[host as usize], |_| true);
    let first = cells.first().map(|c| (c.joined.island, c.model));
    let alike = |mask: u64| mask == 0 || mask == all;
    first.is_some_and(|(island, _)| island.is_some())
        && cells.iter().all(|c| first == Some((c.joined.island, c.model)))
        && (0..problem.kinds.len() as u32)
            .all(|k| alike(problem.eligible(k, host)) && alike(problem.tight(k, host)))
}

pub(super) fn mask(host: &Host, is: impl Fn(&Cell) -> bool) -> u64 {
    host.cells.iter().enumerate().filter(|(_, c)| is(c)).fold(0, |m, (i, _)| m | 1 << i)
}

/// A kind, if any host could hold a part of it.
pub(super) fn add_kind(
    problem: &mut Problem<'_>,
    world: &WorldFile,
    service: &WorldService,
    shape: &WorldShape,
    need: u64,
    may: &dyn Fn(usize) -> u64,
) -> Option<u32> {
    let tensor = shape.tensor;
    let units = shape.pipeline * shape.data;
    let (mut eligible, mut tight) = (Vec::new(), Vec::new());
    let mut most = 0;
    for (h, host) in problem.hosts.iter().enumerate() {
        let may = may(h);
        if may == 0 {
            eligible.push(0);
            tight.push(0);
            continue;
        }
        let (mut yes, mut short) = (0u64, 0u64);
        let mut count = 0;
        for (c, cell) in host.cells.iter().enumerate() {
            let needed = needed(service, shape, cell.total);
            if may & (1 << c) == 0 || cell.free < needed || (cell.mig.is_some() && shape.gpus() > 1)
            {
                continue;
            }
            yes |= 1 << c;
            count += cell.gpus.len() as u32;
            if lacks_headroom(world, cell.total, cell.free, needed) {
                short |= 1 << c;
            }
        }
        // Less than the smallest part that may lie here is nothing.
        if count < if service.one_host { units * tensor } else { tensor } {
            (yes, short, count) = (0, 0, 0);
        }
        most = most.max(count / tensor);
        eligible.push(yes);
        tight.push(short);
    }
    let splits: Vec<u32> = (1..=if service.one_host { 1 } else { units })
        .filter(|m| units.is_multiple_of(*m) && units / m <= most)
        .collect();
    if splits.is_empty() {
        return None;
    }
    let mut hosts = vec![0u64; problem.hosts.len().div_ceil(64)];
    for (h, yes) in eligible.iter().enumerate() {
        hosts[h / 64] |= u64::from(*yes != 0) << (h % 64);
    }
    let has_roomy = eligible.iter().zip(&tight).any(|(e, t)| *e & !*t != 0);
    let nearest = nearest(&problem.hosts, &eligible, tensor);
    problem.eligible.extend(eligible);
    problem.tight.extend(tight);
    problem.kinds.push(Kind {
        tensor,
        units,
        shape: *shape,
        max_link: most_link(service.link),
        splits,
        need,
        hosts,
        has_roomy,
        nearest,
    });
    Some(problem.kinds.len() as u32 - 1)
}

/// The least link cost of so many GPUs together, on whichever host, among the cells that may be used.
fn nearest(hosts: &[Host], eligible: &[u64], tensor: u32) -> u32 {
    if tensor == 1 {
        return 0;
    }
    let mut least = APART;
    for (host, eligible) in hosts.iter().zip(eligible).filter(|(_, yes)| **yes != 0) {
        let mine = host.cells.iter().enumerate().filter(|(c, _)| eligible & (1 << c) != 0);
        let mine: Vec<&Cell> = mine.map(|(_, cell)| cell).collect();
        let holds = |of: fn(&Joined) -> Option<u32>| {
            mine.iter().any(|one| {
                let place = of(&one.joined);
                let same = mine.iter().filter(|c| of(&c.joined) == place);
                place.is_some() && same.map(|c| c.gpus.len() as u32).sum::<u32>() >= tensor
            })
        };
        if holds(|j| j.island) {
            return 0;
        }
        if least > ON_SWITCH && holds(|j| j.pcie_switch) {
            least = ON_SWITCH;
        } else if least > ON_NODE && holds(|j| j.numa) {
            least = ON_NODE;
        }
    }
    least
}

/// The switches of a host's GPUs, where they can matter, by place in its list and numbered from 0. A group in an island
/// asks for no switch, and a switch with fewer GPUs than the smallest group (`least`) holds none: GPUs that only such a
/// switch tells apart stay one cell. `inside`: the GPUs that may be in cells.
pub(super) fn switches(
    gpus: &[WorldGpu],
    inside: &dyn Fn(usize) -> bool,
    least: u32,
) -> Vec<Option<u32>> {
    let usable = |at: usize| inside(at) && gpus[at].mig.is_none();
    let mut known: Vec<u32> = Vec::new();
    let mut matters = |switch: u32| {
        let on = (0..gpus.len()).filter(|at| usable(*at) && gpus[*at].pcie_switch == Some(switch));
        let on: Vec<&WorldGpu> = on.map(|at| &gpus[at]).collect();
        let island = on.first().and_then(|gpu| gpu.island);
        let within = island.is_some() && on.iter().all(|gpu| gpu.island == island);
        if within || (on.len() as u32) < least {
            return None;
        }
        let at = known.iter().position(|k| *k == switch).unwrap_or_else(|| {
            known.push(switch);
            known.len() - 1
        });
        Some(at as u32)
    };
    let of = |at: usize| gpus[at].pcie_switch.filter(|_| usable(at)).and_then(&mut matters);
    (0..gpus.len()).map(of).collect()
}
