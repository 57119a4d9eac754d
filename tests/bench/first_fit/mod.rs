//! First fit decreasing, what people have today: by priority, the largest first, each on the first host where it fits, within
//! an island if there is one, else anywhere on a host, else over as few hosts as can be.

use std::collections::{BTreeMap, BTreeSet};

use gpudeck::placement::global::WorldFile;

/// What came of it.
pub struct FirstFit {
    /// Gangs with a place.
    pub placed: u64,
    /// Gangs without one, by priority, the highest first.
    pub unplaced: Vec<u64>,
    /// Weights to be copied.
    pub bytes: u64,
}

/// Free GPUs of a host by island.
struct Host<'a> {
    name: &'a str,
    memory: u64,
    islands: BTreeMap<u32, u32>,
}

impl Host<'_> {
    /// Groups of `tensor` GPUs within islands, or where that is not asked anywhere on the host.
    fn groups(&self, tensor: u32, within: bool) -> u32 {
        if within {
            self.islands.values().map(|n| n / tensor).sum()
        } else {
            self.islands.values().sum::<u32>() / tensor
        }
    }

    fn take(&mut self, tensor: u32, groups: u32) {
        for _ in 0..groups {
            if let Some(room) = self.islands.values_mut().find(|n| **n >= tensor) {
                *room -= tensor;
                continue;
            }
            let mut left = tensor;
            for room in self.islands.values_mut() {
                let take = left.min(*room);
                *room -= take;
                left -= take;
            }
        }
    }
}

/// Places the gangs of a world in which nothing runs.
pub fn place(world: &WorldFile) -> FirstFit {
    let mut held: BTreeSet<(&str, u32)> = BTreeSet::new();
    for reservation in &world.reservations {
        let gpus = reservation.gpus.iter().flatten();
        held.extend(gpus.map(|g| (reservation.host.as_str(), *g)));
    }
    let mut hosts: Vec<Host<'_>> = world
        .hosts
        .iter()
        .map(|host| {
            let mut islands = BTreeMap::new();
            for gpu in host.gpus.iter().filter(|g| !held.contains(&(host.name.as_str(), g.index))) {
                *islands.entry(gpu.island.unwrap_or(1000 + gpu.index)).or_default() += 1;
            }
            let memory = host.gpus.first().map_or(0, |g| g.memory_total.0);
            Host { name: &host.name, memory, islands }
        })
        .collect();
    let mut gangs: Vec<_> = world.services.iter().collect();
    gangs.sort_by_key(|s| std::cmp::Reverse((s.priority, s.shapes[0].gpus())));
    let mut unplaced: BTreeMap<std::cmp::Reverse<i32>, u64> = BTreeMap::new();
    let (mut placed, mut bytes) = (0, 0);
    for gang in gangs {
        let missing = unplaced.entry(std::cmp::Reverse(gang.priority)).or_default();
        let shape = gang.shapes[0];
        let units = shape.pipeline * shape.data;
        // One rack or model for all is the first host's: the farm has two kinds of GPUs.
        let ways = (1..=units).filter(|m| units.is_multiple_of(*m));
        let chosen = ways.flat_map(|m| [(m, true), (m, false)]).find_map(|(split, within)| {
            let each = units / split;
            let mut memories: Vec<u64> = hosts.iter().map(|h| h.memory).collect();
            memories.dedup();
            memories.into_iter().find_map(|memory| {
                let fits = |h: &Host<'_>| {
                    h.memory == memory
                        && memory >= shape.memory.0
                        && h.groups(shape.tensor, within) >= each
                };
                let on: Vec<usize> =
                    (0..hosts.len()).filter(|i| fits(&hosts[*i])).take(split as usize).collect();
                (on.len() == split as usize).then_some((on, each))
            })
        });
        let Some((on, each)) = chosen else {
            *missing += 1;
            continue;
        };
        placed += 1;
        for index in on {
            let host = &mut hosts[index];
            host.take(shape.tensor, each);
            if !gang.weights_on.iter().any(|h| h == host.name) {
                bytes += gang.weights_bytes.0;
            }
        }
    }
    FirstFit { placed, unplaced: unplaced.into_values().collect(), bytes }
}
