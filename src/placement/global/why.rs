//! Why a host got no rank of a service: the one reason that counts.
#![allow(clippy::indexing_slicing)] // tables of `compile`
#![allow(clippy::cast_possible_truncation)] // counts that `read` bounds

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::answer::Rejected;
use super::compile::{Joined, NONE, Problem, shape_trouble};
use super::file::{WorldFile, WorldLink, WorldService};
use super::layout::Part;
use super::never::{Asked, Why};
use super::state::{Position, State};
use crate::base::Bytes;
use crate::spec::Requirement;

/// Hosts named for a reason, unless all are wanted.
const NAMED: usize = 8;
/// Hosts between two looks at the clock.
const A_LOOK: u32 = 16;

/// What is in the way, nearer than all of [`super::never`]: others have the GPUs, or a part of a replica would fit.
const TAKEN: u8 = 32;
const PART: u8 = 33;

/// What is told of a service.
pub(super) struct Told {
    /// The hosts that got nothing, by reason.
    pub rejected: Vec<Rejected>,
    /// Why not every replica has a place.
    pub unplaced: String,
    /// The time was over before every host was asked.
    pub cut: bool,
}

/// What is known for all services: hosts that look alike are asked once for services that are alike.
pub(super) struct Reasons<'a> {
    world: &'a WorldFile,
    p: &'a Problem<'a>,
    free: &'a [Vec<u64>],
    /// Hosts with the same GPUs, of which the same may be used, have the same number.
    looks: Vec<u32>,
    kinds: BTreeMap<String, u32>,
    known: HashMap<(u32, u32), Option<Why>>,
}

impl<'a> Reasons<'a> {
    pub fn new(world: &'a WorldFile, p: &'a Problem<'a>, free: &'a [Vec<u64>]) -> Self {
        Self { world, p, free, looks: Vec::new(), kinds: BTreeMap::new(), known: HashMap::new() }
    }

    fn look(&mut self) {
        if self.looks.len() == self.world.hosts.len() {
            return;
        }
        let mut known: BTreeMap<_, u32> = BTreeMap::new();
        for (h, host) in self.world.hosts.iter().enumerate() {
            let gpus = host.gpus.iter().zip(&self.free[h]);
            let gpus: Vec<_> = gpus
                .map(|(g, free)| (&g.model, g.memory_total, free, Joined::of(g), g.mig.as_deref()))
                .collect();
            let next = known.len() as u32;
            // Of a host without GPUs it counts why there are none.
            let none = gpus.is_empty().then_some((host.up, &host.gpu_trouble));
            self.looks.push(*known.entry((gpus, &self.p.outside[h], none)).or_insert(next));
        }
    }

    /// Services without a requirement and hosts of their own, of which nothing else tells what they need apart.
    fn kind(&mut self, service: &WorldService) -> Option<u32> {
        if service.require.is_some() || !service.hosts.is_empty() {
            return None;
        }
        let s = service;
        let needs = (&s.shapes, s.memory_share, s.within_share, s.kv_heads, s.kv_bytes, s.heads);
        let next = self.kinds.len() as u32;
        Some(*self.kinds.entry(format!("{needs:?} {:?} {}", s.link, s.one_host)).or_insert(next))
    }

    fn never(&mut self, asked: &Asked<'_>, kind: Option<u32>, h: u32) -> Option<Why> {
        let Some(kind) = kind else { return asked.never(h as usize) };
        let key = (kind, self.looks[h as usize]);
        self.known.entry(key).or_insert_with(|| asked.never(h as usize)).clone()
    }

    /// The hosts that got nothing, by reason, and why not every replica has a place, as long as there is time.
    pub fn of(
        &mut self,
        state: &mut State<'_>,
        s: usize,
        explain: bool,
        over: &mut dyn FnMut() -> bool,
    ) -> Told {
        if over() {
            let unplaced = "the time was over before a reason was found".to_owned();
            return Told { rejected: Vec::new(), unplaced, cut: true };
        }
        self.look();
        let (world, p) = (self.world, self.p);
        let service = &world.services[s];
        let slots = p.services[s].first..p.services[s].first + p.services[s].replicas;
        let trouble: Vec<String> =
            service.shapes.iter().filter_map(|shape| shape_trouble(service, shape)).collect();
        if trouble.len() == service.shapes.len() {
            return self.nowhere(state, slots, trouble.join("; "), explain);
        }
        let requirement = service.require.as_ref().and_then(|r| Requirement::parse(r).ok());
        let asked = Asked { world, p, free: self.free, service, requirement };
        let kind = self.kind(service);
        let at = |slot: u32| state.at[slot as usize].as_ref();
        let on: BTreeSet<u32> =
            slots.clone().filter_map(at).flat_map(|at| at.hosts.iter().copied()).collect();
        let short = slots.clone().any(|slot| at(slot).is_none());
        // One replica that was placed now stands for all: it is what is tried elsewhere.
        let one = slots.rev().find(|slot| at(*slot).is_some_and(|at| at.keep == NONE));
        let part = if short { Some(part(p, state, s)) } else { None };
        let mut cut = false;
        let mut by_reason: BTreeMap<String, Vec<u32>> = BTreeMap::new();
        // How near the hosts with each reason are; also those that have a replica, and no more room.
        let mut near: BTreeMap<String, (u8, usize)> = BTreeMap::new();
        for h in 0..p.hosts.len() as u32 {
            if h % A_LOOK == A_LOOK - 1 && over() {
                cut = true;
                break;
            }
            if on.contains(&h) && !short {
                continue;
            }
            let (nearness, why) = self
                .never(&asked, kind, h)
                .or_else(|| taken(p, state, service, s, h).map(|why| (TAKEN, why)))
                .unwrap_or_else(|| {
                    let why = part.clone().unwrap_or_else(|| worse(p, state, s, one, h));
                    (PART, why)
                });
            let entry = near.entry(why.clone()).or_insert((nearness, 0));
            *entry = (entry.0.max(nearness), entry.1 + 1);
            if !on.contains(&h) {
                by_reason.entry(why).or_default().push(h);
            }
        }
        let nearest = near.into_iter().max_by_key(|(_, near)| *near);
        let unplaced = match nearest {
            None => "there is no host".to_owned(),
            Some((why, (PART, _))) => why,
            Some((why, (_, n))) if n == p.hosts.len() => why,
            Some((why, (_, n))) => format!("{why} ({n} of {} hosts)", p.hosts.len()),
        };
        Told { rejected: self.list(by_reason, explain), unplaced, cut }
    }

    /// Nowhere, for a reason of its own.
    fn nowhere(
        &self,
        state: &State<'_>,
        slots: std::ops::Range<u32>,
        why: String,
        explain: bool,
    ) -> Told {
        let on = |h: u32, slot: u32| {
            state.at[slot as usize].as_ref().is_some_and(|at| at.hosts.contains(&h))
        };
        let hosts: Vec<u32> = (0..self.p.hosts.len() as u32)
            .filter(|h| !slots.clone().any(|slot| on(*h, slot)))
            .collect();
        let by_reason =
            if hosts.is_empty() { BTreeMap::new() } else { BTreeMap::from([(why.clone(), hosts)]) };
        Told { rejected: self.list(by_reason, explain), unplaced: why, cut: false }
    }

    fn list(&self, by_reason: BTreeMap<String, Vec<u32>>, explain: bool) -> Vec<Rejected> {
        let mut list: Vec<(String, Vec<u32>)> = by_reason.into_iter().collect();
        list.sort_by_key(|(_, hosts)| std::cmp::Reverse(hosts.len()));
        list.into_iter()
            .map(|(reason, hosts)| Rejected {
                reason,
                count: hosts.len(),
                hosts: hosts
                    .iter()
                    .take(if explain { hosts.len() } else { NAMED })
                    .map(|h| self.world.hosts[*h as usize].name.clone())
                    .collect(),
            })
            .collect()
    }
}

/// A replica has no place although a part of one would fit on some host: how many hosts it needs.
fn part(p: &Problem<'_>, state: &mut State<'_>, s: usize) -> String {
    let mut nearest: Option<(u32, u32)> = None;
    for kind in &p.services[s].kinds {
        let k = &p.kinds[*kind as usize];
        for split in &k.splits {
            let hosts = 0..p.hosts.len() as u32;
            let fits =
                hosts.filter(|h| state.price(s as u32, *kind, k.units / split, *h).is_some());
            let fitting = fits.count() as u32;
            if fitting >= *split {
                return "it would fit: the search ended before it was tried".to_owned();
            }
            if nearest.is_none_or(|(wanted, have)| split - fitting < wanted - have) {
                nearest = Some((*split, fitting));
            }
        }
    }
    match nearest {
        Some((wanted, have)) => format!("it needs {wanted} hosts, {have} can take a part"),
        None => "no host can take a part".to_owned(),
    }
}

/// Why there is no room left on it.
fn taken(
    p: &Problem<'_>,
    state: &mut State<'_>,
    asked: &WorldService,
    s: usize,
    h: u32,
) -> Option<String> {
    let service = &p.services[s];
    // The smallest part that could lie here.
    let mut least = u32::MAX;
    for kind in service.kinds.iter().filter(|k| p.eligible(**k, h) != 0) {
        let k = &p.kinds[*kind as usize];
        for split in &k.splits {
            let units = k.units / split;
            least = least.min(units * k.tensor);
            if state.price(s as u32, *kind, units, h).is_some() {
                return None;
            }
        }
    }
    let room = state.room(h);
    if room >= least {
        let how = match asked.link {
            WorldLink::Nvlink => "joined by NVLink",
            WorldLink::PcieSwitch => "joined by NVLink or on one PCIe switch",
            WorldLink::Numa => "joined by NVLink or on one NUMA node",
            WorldLink::Any => "that suit it together",
        };
        return Some(format!("{room} GPUs are left, but not {least} {how}"));
    }
    // Would there be room without those that do not go first?
    let class = |part: &Part| p.services[p.slots[part.slot as usize] as usize].class;
    let others = state.parts(h).iter().filter(|part| class(part) >= service.class);
    let others: u32 = others.map(|part| state.size(h, part)).sum();
    let by = if room + others < least { " by services of a higher priority" } else { "" };
    Some(format!("its GPUs are taken{by}: {room} left, {least} needed"))
}

/// Why it is no better than where the replica is: the first level on which it is worse.
fn worse(p: &Problem<'_>, state: &mut State<'_>, s: usize, slot: Option<u32>, h: u32) -> String {
    let Some(slot) = slot else {
        let runs = p.services[s].replicas > 0;
        return if runs { "not needed: what runs stays" } else { "no replica is wanted" }
            .to_owned();
    };
    let before = state.score();
    let Some(old) = state.remove(slot) else { return "not needed".to_owned() };
    let mut best = None;
    for kind in p.services[s].kinds.iter().filter(|k| p.eligible(**k, h) != 0) {
        for split in &p.kinds[*kind as usize].splits {
            let mut hosts = vec![h];
            hosts.extend(old.hosts.iter().copied().skip(1).filter(|o| *o != h));
            hosts.truncate(*split as usize);
            if hosts.len() == *split as usize
                && state.place(
                    slot,
                    Position { kind: *kind, keep: NONE, hosts: hosts.into_iter().collect() },
                )
            {
                let score = state.score();
                if best.as_ref().is_none_or(|b| score < *b) {
                    best = Some(score);
                }
                state.remove(slot);
            }
        }
    }
    state.place(slot, old);
    let Some(now) = best else { return "there is no second host to go with it".to_owned() };
    let (after, ahead) = (&now.levels, &before.levels);
    if now.unplaced > before.unplaced {
        "fewer replicas would have a place".to_owned()
    } else if after.crowded > ahead.crowded {
        match p.services[s].spread {
            super::file::WorldSpread::Pack => "its replicas would lie on more hosts".to_owned(),
            _ => "another replica is in the same failure domain".to_owned(),
        }
    } else if after.moves > ahead.moves {
        "more ranks would have to move".to_owned()
    } else if after.link > ahead.link {
        "its GPUs are further from each other".to_owned()
    } else if after.displaced > ahead.displaced {
        "more replicas of the present release would have to go first".to_owned()
    } else if after.tight > ahead.tight {
        "less memory would be left on its GPUs".to_owned()
    } else if after.bytes > ahead.bytes {
        format!("{} more to copy", Bytes((after.bytes - ahead.bytes).unsigned_abs()))
    } else if after.closed > ahead.closed {
        "the largest gang that still fits would be smaller".to_owned()
    } else {
        "as good, not better".to_owned()
    }
}

#[cfg(test)]
#[path = "why_tests.rs"]
mod tests;
