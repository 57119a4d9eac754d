//! Why nothing of a service could be on a host even if that were empty of what may be moved: the first rule that leaves
//! too few of its GPUs.
#![allow(clippy::indexing_slicing)] // tables of `compile`

use std::collections::BTreeMap;

use super::compile::{Joined, Problem, fact, needed, shape_trouble};
use super::file::{WorldFile, WorldGpu, WorldHost, WorldLink, WorldService, WorldShape};
use crate::base::{Bytes, text};
use crate::spec::Requirement;

/// How near a host is to having room, the nearest last; and why it has none.
pub(super) type Why = (u8, String);

/// It is none of the service's hosts, or has nothing that could ever suit.
pub(super) const FAR: u8 = 0;
/// It would do but for what holds its GPUs; more where fewer are held. Between the two, by rule.
pub(super) const BLOCKED: u8 = 16;

/// What is asked of the hosts for one service.
pub(super) struct Asked<'a> {
    pub world: &'a WorldFile,
    pub p: &'a Problem<'a>,
    /// Free memory of every GPU once what may be moved is gone.
    pub free: &'a [Vec<u64>],
    pub service: &'a WorldService,
    pub requirement: Option<Requirement>,
}

impl Asked<'_> {
    /// None: there could be room.
    pub fn never(&self, h: usize) -> Option<Why> {
        let host = &self.world.hosts[h];
        if !self.service.hosts.is_empty() && !self.service.hosts.contains(&host.name) {
            return Some((FAR, "not among the service's hosts".to_owned()));
        }
        if host.gpus.is_empty() {
            return Some((FAR, no_gpus(host)));
        }
        let outside = &self.p.outside[h];
        let all: Vec<usize> = (0..host.gpus.len()).collect();
        let usable = |g: &usize| u32::try_from(*g).is_ok_and(|g| !outside.contains_key(&g));
        let left: Vec<usize> = all.iter().copied().filter(usable).collect();
        let short = self.best_shape(h, &left)?;
        // Without what holds its GPUs: would it do?
        let anyway = self.best_shape(h, &all);
        let part = short.left.min(short.wanted) * 15 / short.wanted.max(1);
        let near = match anyway {
            None => BLOCKED + u8::try_from(part).unwrap_or(0),
            Some(_) => FAR,
        };
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for why in outside.values() {
            *counts.entry(why).or_default() += 1;
        }
        if left.is_empty() {
            let mut why = counts.keys();
            if let (Some(why), None) = (why.next(), why.next()) {
                return Some((near, text::clean(why, 200)));
            }
        }
        if let Some(short) = anyway {
            return Some((short.rule, short.why));
        }
        let mut counts: Vec<(&str, usize)> = counts.into_iter().collect();
        counts.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
        let held: Vec<String> = counts
            .iter()
            .map(|(why, n)| {
                let is = if *n == 1 { "is" } else { "are" };
                format!("{n} {is} {}", text::clean(why, 200))
            })
            .collect();
        let (wanted, left) = (short.wanted, short.left);
        let what = if left >= wanted {
            format!("no {wanted} GPUs that suit it together can be used")
        } else {
            format!("{left} GPUs can be used, {wanted} needed together")
        };
        Some((near, format!("{what}: {}", held.join(", "))))
    }

    /// Of all shapes the one that comes furthest; none if one of them could lie here.
    fn best_shape(&self, h: usize, gpus: &[usize]) -> Option<Short> {
        let possible = |s: &&WorldShape| shape_trouble(self.service, s).is_none();
        let mut nearest: Option<Short> = None;
        for shape in self.service.shapes.iter().filter(possible) {
            let short = self.rules(&self.world.hosts[h], h, shape, gpus)?;
            if nearest.as_ref().is_none_or(|n| n.rule < short.rule) {
                nearest = Some(short);
            }
        }
        nearest
    }

    /// The first rule that leaves too few of these GPUs.
    fn rules(
        &self,
        host: &WorldHost,
        h: usize,
        shape: &WorldShape,
        gpus: &[usize],
    ) -> Option<Short> {
        let service = self.service;
        let one_host = service.one_host && shape.gpus() > u64::from(shape.tensor);
        let wanted = if service.one_host { shape.gpus() } else { u64::from(shape.tensor) };
        let wanted = usize::try_from(wanted).unwrap_or(usize::MAX);
        let together = if one_host { "on one host" } else { "together" };
        let needs =
            if wanted == 1 { String::new() } else { format!(", {wanted} needed {together}") };
        let short = |rule: u8, left: usize, why: String| Some(Short { rule, wanted, left, why });
        let gpu = |g: &usize| -> &WorldGpu { &host.gpus[*g] };
        let mut left: Vec<usize> = gpus.to_vec();
        if left.len() < wanted {
            let word = if host.gpus.len() == 1 { "GPU" } else { "GPUs" };
            return short(1, left.len(), format!("it has {} {word}{needs}", host.gpus.len()));
        }
        if shape.gpus() > 1 {
            left.retain(|g| gpu(g).mig.is_none());
            if left.len() < wanted {
                let others = match left.len() {
                    0 => String::new(),
                    n => format!("it has {n} whole GPUs, and "),
                };
                let why = format!("{others}its MIG instances are not joined{needs}");
                return short(2, left.len(), why);
            }
        }
        if let Some(requirement) = &self.requirement {
            let why_not =
                |g: &usize| requirement.why_not(&|f| fact(host, gpu(g), self.free[h][*g], f));
            let fails = left.iter().find_map(why_not);
            left.retain(|g| requirement.holds(&|f| fact(host, gpu(g), self.free[h][*g], f)));
            if let Some(fails) = fails.filter(|_| left.len() < wanted) {
                let why = match left.len() {
                    0 => fails,
                    n => format!("{n} of its GPUs meet the requirement{needs}: {fails}"),
                };
                return short(3, left.len(), why);
            }
        }
        let need = |g: &usize| needed(service, shape, gpu(g).memory_total.0);
        let largest = left.iter().map(|g| gpu(g).memory_total.0).max().unwrap_or(0);
        let wanted_memory = Bytes(needed(service, shape, largest));
        left.retain(|g| gpu(g).memory_total.0 >= need(g));
        if left.len() < wanted {
            let share = service.memory_share.filter(|_| service.within_share);
            let share = share.map_or_else(String::new, |share| {
                format!(": the engine takes {:.0} % of a GPU", share * 100.0)
            });
            let why = match left.len() {
                0 => format!("its GPUs have {}, {wanted_memory} needed{share}", Bytes(largest)),
                n => format!("{n} of its GPUs have {wanted_memory}{needs}{share}"),
            };
            return short(4, left.len(), why);
        }
        let most = left.iter().map(|g| self.free[h][*g]).max().unwrap_or(0);
        left.retain(|g| self.free[h][*g] >= need(g));
        if left.len() < wanted {
            let why = match left.len() {
                0 => format!("{} free on its GPUs, {wanted_memory} needed", Bytes(most)),
                n => format!("{wanted_memory} are free on {n} of its GPUs{needs}"),
            };
            return short(5, left.len(), why);
        }
        let most_of = |key: &dyn Fn(&WorldGpu) -> Option<u32>| {
            let mut counts: BTreeMap<(&str, u64, u32), usize> = BTreeMap::new();
            for gpu in left.iter().map(gpu) {
                if let Some(key) = key(gpu) {
                    *counts.entry((&gpu.model, gpu.memory_total.0, key)).or_default() += 1;
                }
            }
            counts.into_values().max().unwrap_or(0)
        };
        let alike = most_of(&|_| Some(0));
        if alike < wanted {
            let why = format!("its GPUs are not alike: at most {alike} of one model{needs}");
            return short(6, left.len(), why);
        }
        // A group, not the whole replica, is joined.
        let tensor = shape.tensor as usize;
        let island = most_of(&|g| Joined::of(g).island);
        let switch = island.max(most_of(&|g| g.pcie_switch));
        let node = switch.max(most_of(&|g| g.numa));
        let (joined, how) = match service.link {
            _ if tensor == 1 => return None,
            WorldLink::Any => return None,
            WorldLink::Nvlink => (island, "joined by NVLink"),
            WorldLink::PcieSwitch => (switch, "joined by NVLink or on one PCIe switch"),
            WorldLink::Numa => (node, "joined by NVLink or on one NUMA node"),
        };
        let why = match joined {
            n if n >= tensor => return None,
            0 | 1 => format!("its GPUs are not {how}, {tensor} needed together"),
            n => format!("at most {n} of its GPUs are {how}, {tensor} needed together"),
        };
        short(7, left.len(), why)
    }
}

/// Why nothing can be told of a host's GPUs; one that is not reached may well have some.
fn no_gpus(host: &WorldHost) -> String {
    match &host.gpu_trouble {
        _ if !host.up => "not reached".to_owned(),
        Some(why) => text::clean(why, 200),
        None => "it has no GPU".to_owned(),
    }
}

/// A rule that leaves too few GPUs.
struct Short {
    /// Its place in their order.
    rule: u8,
    wanted: usize,
    left: usize,
    why: String,
}
