//! Kinds: which cells of which hosts each way to divide a replica may use.

use super::super::file::{WorldFile, WorldLink, WorldService, WorldShape};
use super::needs::{lacks_headroom, needed};
use super::tables::{Cell, Host, Kind, Problem};

pub(super) fn is_whole(problem: &Problem<'_>, host: u32) -> bool {
    let cells = &problem.hosts[host as usize].cells;
    let all = mask(&problem.hosts[host as usize], |_| true);
    let island = cells.first().and_then(|c| c.island);
    let alike = |mask: u64| mask == 0 || mask == all;
    island.is_some()
        && cells.iter().all(|c| c.island == island)
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
    let has_near = tensor == 1
        || problem.hosts.iter().any(|host| {
            let of = |i: Option<u32>| {
                let cells = host.cells.iter().filter(move |c| i.is_some() && c.island == i);
                cells.map(|c| c.gpus.len() as u32).sum::<u32>()
            };
            host.cells.iter().any(|c| of(c.island) >= tensor)
        });
    problem.eligible.extend(eligible);
    problem.tight.extend(tight);
    problem.kinds.push(Kind {
        tensor,
        units,
        shape: *shape,
        max_link: match service.link {
            WorldLink::Nvlink => 0,
            WorldLink::Numa => 1,
            WorldLink::Any => 2,
        },
        splits,
        need,
        hosts,
        has_roomy,
        has_near,
    });
    Some(problem.kinds.len() as u32 - 1)
}
