//! Why a host got no rank of a service: the one reason that counts.
#![allow(clippy::indexing_slicing)] // tables of `compile`
#![allow(clippy::cast_possible_truncation)] // counts that `read` bounds

use std::collections::{BTreeMap, BTreeSet};

use super::answer::Rejected;
use super::compile::{NONE, Problem, fact, needed, shape_trouble};
use super::file::{WorldFile, WorldService};
use super::state::{Position, State};
use crate::base::{Bytes, text};
use crate::spec::Requirement;

/// Hosts named for a reason, unless all are wanted.
const NAMED: usize = 8;

/// Hosts between two looks at the clock.
const A_LOOK: u32 = 16;

/// What is told of a service.
pub(super) struct Told {
    /// The hosts that got nothing, by reason.
    pub rejected: Vec<Rejected>,
    /// Why not every replica has a place.
    pub unplaced: String,
    /// The time was over before every host was asked.
    pub cut: bool,
}

/// The hosts that got nothing, by reason, and why not every replica has a place, as long as there is time.
pub(super) fn rejected(
    world: &WorldFile,
    p: &Problem<'_>,
    state: &mut State<'_>,
    s: usize,
    explain: bool,
    over: &mut dyn FnMut() -> bool,
) -> Told {
    if over() {
        let unplaced = "the time was over before a reason was found".to_owned();
        return Told { rejected: Vec::new(), unplaced, cut: true };
    }
    let mut cut = false;
    let service = &world.services[s];
    let requirement = service.require.as_ref().and_then(|r| Requirement::parse(r).ok());
    let mut by_reason: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    // One replica that was placed now stands for all: it is what is tried elsewhere.
    let slots = p.services[s].first..p.services[s].first + p.services[s].replicas;
    let placed = slots.clone().filter_map(|slot| state.at[slot as usize].as_ref());
    let on: BTreeSet<u32> = placed.flat_map(|at| at.hosts.iter().copied()).collect();
    let one = slots
        .rev()
        .find(|slot| state.at[*slot as usize].as_ref().is_some_and(|at| at.keep == NONE));
    for h in 0..p.hosts.len() as u32 {
        if h % A_LOOK == A_LOOK - 1 && over() {
            cut = true;
            break;
        }
        if on.contains(&h) {
            continue;
        }
        let why = never(world, p, s, h, requirement.as_ref())
            .or_else(|| taken(p, state, s, h))
            .unwrap_or_else(|| worse(p, state, s, one, h));
        by_reason.entry(why).or_default().push(h);
    }
    let mut list: Vec<(String, Vec<u32>)> = by_reason.into_iter().collect();
    list.sort_by_key(|(_, hosts)| std::cmp::Reverse(hosts.len()));
    let unplaced = list.first().map_or_else(
        || "every host has all of it that fits".to_owned(),
        |(why, hosts)| match hosts.len() {
            n if n == p.hosts.len() => why.clone(),
            n => format!("{why} ({n} of {} hosts)", p.hosts.len()),
        },
    );
    let shapes: Vec<String> =
        service.shapes.iter().filter_map(|shape| shape_trouble(service, shape)).collect();
    let unplaced = if shapes.len() == service.shapes.len() { shapes.join("; ") } else { unplaced };
    let rejected = list
        .into_iter()
        .map(|(reason, hosts)| Rejected {
            reason,
            count: hosts.len(),
            hosts: hosts
                .iter()
                .take(if explain { hosts.len() } else { NAMED })
                .map(|h| world.hosts[*h as usize].name.clone())
                .collect(),
        })
        .collect();
    Told { rejected, unplaced, cut }
}

/// Why nothing of it could be on this host even if it were empty of what may be moved.
fn never(
    world: &WorldFile,
    p: &Problem<'_>,
    s: usize,
    h: u32,
    requirement: Option<&Requirement>,
) -> Option<String> {
    let service = &world.services[s];
    let host = &world.hosts[h as usize];
    if p.services[s].kinds.iter().any(|k| p.eligible(*k, h) != 0) {
        return None;
    }
    if !service.hosts.is_empty() && !service.hosts.contains(&host.name) {
        return Some("not among the service's hosts".to_owned());
    }
    if host.gpus.is_empty() {
        return Some("it has no GPU".to_owned());
    }
    let outside = &p.outside[h as usize];
    if outside.len() == host.gpus.len()
        && let Some(why) = outside.values().next()
    {
        return Some(text::clean(why, 200));
    }
    let cells = &p.hosts[h as usize].cells;
    let first = |c: &super::compile::Cell| &host.gpus[c.gpus[0] as usize];
    if let Some(requirement) = requirement {
        let why: Vec<String> = cells
            .iter()
            .filter_map(|c| requirement.why_not(&|f| fact(host, first(c), c.free, f)))
            .collect();
        if why.len() == cells.len() {
            return why.into_iter().next();
        }
    }
    let fewest = service.shapes.iter().map(|shape| shape.tensor).min().unwrap_or(1);
    let room = p.hosts[h as usize].room;
    if (host.gpus.len() as u32) < fewest {
        return Some(format!("it has {} GPUs, {fewest} needed together", host.gpus.len()));
    }
    if room < fewest
        && let Some(why) = outside.values().next()
    {
        let why = text::clean(why, 200);
        return Some(format!("{room} GPUs can be used, {fewest} needed together; one is {why}"));
    }
    memory(service, cells).or_else(|| Some("its GPUs are not alike enough".to_owned()))
}

fn memory(service: &WorldService, cells: &[super::compile::Cell]) -> Option<String> {
    let largest = cells.iter().map(|c| c.total).max()?;
    let needs = |total: u64| {
        let all = service.shapes.iter().filter(|s| shape_trouble(service, s).is_none());
        all.map(|shape| needed(service, shape, total)).min()
    };
    let wanted = needs(largest)?;
    if largest < wanted {
        let why = match service.memory_share.filter(|_| service.within_share) {
            Some(share) => format!(": the engine takes {:.0} % of a GPU", share * 100.0),
            None => String::new(),
        };
        return Some(format!("its GPUs have {}, {} needed{why}", Bytes(largest), Bytes(wanted)));
    }
    let free = cells.iter().map(|c| c.free).max()?;
    (free < wanted).then(|| format!("{} free on its GPUs, {} needed", Bytes(free), Bytes(wanted)))
}

/// Why there is no room left on it.
fn taken(p: &Problem<'_>, state: &mut State<'_>, s: usize, h: u32) -> Option<String> {
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
        return Some(format!("{room} GPUs are left, but not {least} that suit it together"));
    }
    let best = state
        .parts(h)
        .iter()
        .map(|part| p.slots[part.slot as usize])
        .map(|s| p.services[s as usize].class)
        .min();
    let by = match best {
        Some(class) if class < service.class => " by services of a higher priority",
        _ => "",
    };
    Some(format!("its GPUs are taken{by}: {room} left, {least} needed"))
}

/// Why it is no better than where the replica is: the first level on which it is worse.
fn worse(p: &Problem<'_>, state: &mut State<'_>, s: usize, slot: Option<u32>, h: u32) -> String {
    let Some(slot) = slot else { return "not needed: what runs stays".to_owned() };
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
        "the largest free island would be smaller".to_owned()
    } else {
        "as good, not better".to_owned()
    }
}
