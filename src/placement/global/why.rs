//! Why a host got no rank of a service: the one reason that counts.
#![allow(clippy::indexing_slicing)] // tables of `compile`
#![allow(clippy::cast_possible_truncation)] // counts that `read` bounds

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use super::answer::Rejected;
use super::compile::{Joined, NONE, Problem, shape_trouble};
use super::file::{WorldFile, WorldLink, WorldService};
use super::layout::Part;
use super::never::Asked;
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
    /// Why not, by kind of service and look of host, once that was asked.
    known: Vec<Vec<Option<Option<(u8, Rc<str>)>>>>,
}

/// Why a host got nothing. There are thousands of hosts for each service and few reasons: it becomes text once.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Found {
    /// It could never be there.
    Never(Rc<str>),
    /// Others have the GPUs: so many are left, so many needed. `rank`: they have a higher priority.
    Taken {
        room: u32,
        least: u32,
        rank: bool,
    },
    /// Enough are left, but not together.
    Apart {
        room: u32,
        least: u32,
    },
    /// A part of a replica fits, not the whole.
    Part,
    Worse(&'static str),
    /// So many bytes more would have to be copied.
    Copies(u64),
}

/// The hosts that got nothing for the same reason.
struct Same {
    why: Found,
    /// How near the nearest of them is; also of those that have a replica, and no more room.
    near: u8,
    count: usize,
    hosts: Vec<u32>,
}

impl<'a> Reasons<'a> {
    pub fn new(world: &'a WorldFile, p: &'a Problem<'a>, free: &'a [Vec<u64>]) -> Self {
        Self { world, p, free, looks: Vec::new(), kinds: BTreeMap::new(), known: Vec::new() }
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

    fn never(&mut self, asked: &Asked<'_>, kind: Option<u32>, h: u32) -> Option<(u8, Rc<str>)> {
        let ask = || asked.never(h as usize).map(|(near, why)| (near, Rc::from(why)));
        let Some(kind) = kind else { return ask() };
        let (kind, look) = (kind as usize, self.looks[h as usize] as usize);
        if self.known.len() <= kind {
            self.known.resize_with(kind + 1, Vec::new);
        }
        let of_kind = &mut self.known[kind];
        if of_kind.len() <= look {
            of_kind.resize(look + 1, None);
        }
        of_kind[look].get_or_insert_with(ask).clone()
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
        let text = |found: Found| match found {
            Found::Never(why) => why.to_string(),
            Found::Part => part.clone().unwrap_or_default(),
            Found::Worse(how) => how.to_owned(),
            Found::Copies(bytes) => format!("{} more to copy", Bytes(bytes)),
            Found::Taken { room, least, rank } => {
                let by = if rank { " by services of a higher priority" } else { "" };
                format!("its GPUs are taken{by}: {room} left, {least} needed")
            }
            Found::Apart { room, least } => {
                format!("{room} GPUs are left, but not {least} {}", together(service.link))
            }
        };
        let mut cut = false;
        let mut all: Vec<Same> = Vec::new();
        for h in 0..p.hosts.len() as u32 {
            if h % A_LOOK == A_LOOK - 1 && over() {
                cut = true;
                break;
            }
            if on.contains(&h) && !short {
                continue;
            }
            let (nearness, why) = match self.never(&asked, kind, h) {
                Some((nearness, why)) => (nearness, Found::Never(why)),
                None => match taken(p, state, s, h) {
                    Some(taken) => (TAKEN, taken),
                    None if short => (PART, Found::Part),
                    None => (PART, worse(p, state, s, one, h)),
                },
            };
            let known = all.iter().position(|same| same.why == why);
            let same = known.unwrap_or(all.len());
            if known.is_none() {
                all.push(Same { why, near: nearness, count: 0, hosts: Vec::new() });
            }
            let same = &mut all[same];
            (same.near, same.count) = (same.near.max(nearness), same.count + 1);
            if !on.contains(&h) {
                same.hosts.push(h);
            }
        }
        let mut by_reason: BTreeMap<String, Vec<u32>> = BTreeMap::new();
        let mut nearest: Option<((u8, usize), String)> = None;
        for same in all {
            let why = text(same.why);
            // Of those that are as near and as many the last in the order of the alphabet.
            nearest = nearest.max(Some(((same.near, same.count), why.clone())));
            if !same.hosts.is_empty() {
                by_reason.entry(why).or_default().extend(same.hosts);
            }
        }
        for hosts in by_reason.values_mut() {
            hosts.sort_unstable();
        }
        let nearest = nearest.map(|(near, why)| (why, near));
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

/// How GPUs are to be joined.
fn together(link: WorldLink) -> &'static str {
    match link {
        WorldLink::Nvlink => "joined by NVLink",
        WorldLink::PcieSwitch => "joined by NVLink or on one PCIe switch",
        WorldLink::Numa => "joined by NVLink or on one NUMA node",
        WorldLink::Any => "that suit it together",
    }
}

/// Why there is no room left on it.
fn taken(p: &Problem<'_>, state: &mut State<'_>, s: usize, h: u32) -> Option<Found> {
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
        return Some(Found::Apart { room, least });
    }
    // Would there be room without those that do not go first?
    let class = |part: &Part| p.services[p.slots[part.slot as usize] as usize].class;
    let others = state.parts(h).iter().filter(|part| class(part) >= service.class);
    let others: u32 = others.map(|part| part.gpus).sum();
    Some(Found::Taken { room, least, rank: room + others < least })
}

/// Why it is no better than where the replica is: the first level on which it is worse.
fn worse(p: &Problem<'_>, state: &mut State<'_>, s: usize, slot: Option<u32>, h: u32) -> Found {
    let Some(slot) = slot else {
        let runs = p.services[s].replicas > 0;
        let how = if runs { "not needed: what runs stays" } else { "no replica is wanted" };
        return Found::Worse(how);
    };
    let before = state.score();
    let Some(old) = state.remove(slot) else { return Found::Worse("not needed") };
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
    let Some(now) = best else { return Found::Worse("there is no second host to go with it") };
    let (after, ahead) = (&now.levels, &before.levels);
    Found::Worse(if now.unplaced > before.unplaced {
        "fewer replicas would have a place"
    } else if after.crowded > ahead.crowded {
        match p.services[s].spread {
            super::file::WorldSpread::Pack => "its replicas would lie on more hosts",
            _ => "another replica is in the same failure domain",
        }
    } else if after.moves > ahead.moves {
        "more ranks would have to move"
    } else if after.link > ahead.link {
        "its GPUs are further from each other"
    } else if after.displaced > ahead.displaced {
        "more replicas of the present release would have to go first"
    } else if after.tight > ahead.tight {
        "less memory would be left on its GPUs"
    } else if after.bytes > ahead.bytes {
        return Found::Copies((after.bytes - ahead.bytes).unsigned_abs());
    } else if after.closed > ahead.closed {
        "the largest gang that still fits would be smaller"
    } else {
        "as good, not better"
    })
}

#[cfg(test)]
#[path = "why_tests.rs"]
mod tests;
