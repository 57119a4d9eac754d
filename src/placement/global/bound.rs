//! What no placement can do better than, level by level.
#![allow(clippy::indexing_slicing)] // tables of `compile`
#![allow(clippy::cast_possible_truncation)] // counts that `read` bounds

use std::collections::{BTreeMap, BTreeSet};

use super::compile::{Problem, Service, span_cost};
use super::state::{Levels, Score, State};

/// The least that a slot of a service costs wherever it is.
#[derive(Clone, Copy, Debug, Default)]
struct Least {
    link: i64,
    tight: i64,
    bytes: i64,
    gpus: i64,
}

/// A bound for every level, taken by itself (given that no slot more is without a place than must be).
pub(super) fn ideal(p: &Problem<'_>) -> Score {
    let unplaced = unplaced(p);
    let levels = levels(p, &unplaced);
    Score { unplaced, levels }
}

/// A bound for every level after the first, given how many slots of each priority have no place.
pub(super) fn levels(p: &Problem<'_>, unplaced: &[i64]) -> Levels {
    let nearest: Vec<(u32, i64)> = (0..p.kinds.len() as u32).map(|k| nearest(p, k)).collect();
    let least: Vec<Option<Least>> = (0..p.services.len()).map(|s| least(p, s, &nearest)).collect();
    // Of a priority that is not placed whole, the cheapest.
    let sum = |of: fn(&Least) -> i64| -> i64 {
        (0..p.classes.len())
            .map(|class| {
                let all = || wanted(p).filter(move |s| p.services[*s].class as usize == class);
                let mut costs: Vec<i64> = all().filter_map(|s| least[s].as_ref().map(of)).collect();
                costs.sort_unstable();
                let placed = all().count().saturating_sub(unplaced[class] as usize);
                costs.iter().take(placed).sum::<i64>()
            })
            .sum()
    };
    let moves = p
        .services
        .iter()
        .map(|service| {
            let ranks = |stay: bool| {
                let of = service.incumbents.iter().map(|i| &p.incumbents[*i as usize]);
                of.filter(move |i| i.can_stay == stay).map(|i| i.ranks).collect::<Vec<i64>>()
            };
            let mut could = ranks(true);
            could.sort_unstable();
            let surplus = could.len().saturating_sub(service.replicas as usize);
            ranks(false).iter().sum::<i64>() + could.iter().take(surplus).sum::<i64>()
        })
        .sum();
    let room: i64 = p.hosts.iter().map(|h| i64::from(h.room)).sum();
    // Immovable replicas take no room of the cells.
    let fixed: i64 = p
        .incumbents
        .iter()
        .map(|i| {
            let all: usize = i.pins.iter().map(|pin| pin.gpus.len()).sum();
            let inside: u32 = i.pins.iter().flat_map(|pin| &pin.cells).map(|(_, n)| n).sum();
            if i.can_stay { all as i64 - i64::from(inside) } else { 0 }
        })
        .sum();
    let free = (room + fixed - sum(|l| l.gpus)).max(0);
    let hole = (64 - State::new(p).levels().closed).min(free);
    Levels {
        crowded: 0,
        moves,
        link: sum(|l| l.link),
        displaced: 0,
        tight: sum(|l| l.tight),
        bytes: sum(|l| l.bytes),
        closed: 64 - hole,
    }
}

/// The least that each slot costs wherever it is; nothing for replicas of earlier releases, which may be gone.
pub(super) fn floors(p: &Problem<'_>) -> Vec<Levels> {
    let nearest: Vec<(u32, i64)> = (0..p.kinds.len() as u32).map(|k| nearest(p, k)).collect();
    let floor = |(s, service): (usize, &Service)| match least(p, s, &nearest) {
        Some(Least { link, tight, bytes, .. }) if !service.outgoing => {
            Levels { link, tight, bytes, ..Levels::default() }
        }
        _ => Levels::default(),
    };
    let of_service: Vec<Levels> = p.services.iter().enumerate().map(floor).collect();
    p.slots.iter().map(|s| of_service[*s as usize]).collect()
}

/// The service of every slot that wants a place. Replicas of earlier releases do not: whether they stay or are gone,
/// none of them is missed.
fn wanted(p: &Problem<'_>) -> impl Iterator<Item = usize> {
    p.slots.iter().map(|s| *s as usize).filter(|s| !p.services[*s].outgoing)
}

/// How many of the slots of each priority, highest first, cannot have a place.
///
/// For each set of GPUs that some kinds are confined to, and each size `g`: groups count `⌊part / g⌋`, hosts hold
/// `⌊GPUs / g⌋` (rounding a dual feasible function of the packing).
fn unplaced(p: &Problem<'_>) -> Vec<i64> {
    let count = p.hosts.len() as u32;
    // The GPUs that services can use at all, by host; many have the same kinds.
    let mut by_kinds: BTreeMap<&[u32], Vec<u64>> = BTreeMap::new();
    for s in &p.services {
        by_kinds.entry(&s.kinds).or_insert_with(|| {
            (0..count).map(|h| s.kinds.iter().fold(0, |m, k| m | p.eligible(*k, h))).collect()
        });
    }
    let pinned =
        |s: usize| p.services[s].incumbents.iter().any(|i| p.incumbents[*i as usize].can_stay);
    let sets: BTreeSet<&Vec<u64>> = by_kinds.values().collect();
    let mut placed: Vec<i64> = vec![0; p.classes.len()];
    for s in wanted(p) {
        if !p.services[s].kinds.is_empty() || pinned(s) {
            placed[p.services[s].class as usize] += 1;
        }
    }
    let sizes: BTreeSet<u32> = p
        .kinds
        .iter()
        .flat_map(|k| k.splits.iter().map(|m| k.units / m * k.tensor))
        .filter(|g| *g <= 64)
        .collect();
    // Which services are confined to which set.
    let inside: Vec<BTreeMap<&[u32], bool>> = sets
        .iter()
        .take(16)
        .map(|set| by_kinds.iter().map(|(kinds, usable)| (*kinds, subset(usable, set))).collect())
        .collect();
    for class in 0..p.classes.len() {
        for (set, confined) in sets.iter().zip(&inside) {
            for g in &sizes {
                let holds: u64 = set
                    .iter()
                    .zip(&p.hosts)
                    .map(|(mask, host)| {
                        let cells = host.cells.iter().enumerate();
                        let n: usize = cells
                            .filter(|(c, _)| mask & (1 << c) != 0)
                            .map(|(_, c)| c.gpus.len())
                            .sum();
                        u64::from(n as u32 / g)
                    })
                    .sum();
                let mut left = holds as i64;
                for c in 0..=class {
                    let (mut inside, mut others) = (Vec::new(), 0i64);
                    for (s, service) in p.services.iter().enumerate() {
                        let n = i64::from(service.replicas);
                        if service.class as usize != c || service.outgoing {
                            continue;
                        }
                        // What may stay outside the cells takes no room there.
                        if pinned(s) || !confined[service.kinds.as_slice()] {
                            others += n;
                            continue;
                        }
                        let weight = service.kinds.iter().flat_map(|k| {
                            let k = &p.kinds[*k as usize];
                            k.splits
                                .iter()
                                .map(move |m| i64::from(m * (k.units / m * k.tensor / g)))
                        });
                        let Some(weight) = weight.min() else { continue };
                        inside.extend((0..n).map(|_| weight));
                    }
                    inside.sort_unstable();
                    if c < class {
                        let must = (placed[c] - others).max(0) as usize;
                        left -= inside.iter().take(must).sum::<i64>();
                    } else {
                        let mut fitting = 0;
                        for weight in inside {
                            left -= weight;
                            if left < 0 {
                                break;
                            }
                            fitting += 1;
                        }
                        placed[c] = placed[c].min(others + fitting);
                    }
                }
            }
        }
    }
    let mut all = vec![0; p.classes.len()];
    for s in wanted(p) {
        all[p.services[s].class as usize] += 1;
    }
    all.iter().zip(&placed).map(|(w, n)| w - n).collect()
}

fn subset(inner: &[u64], outer: &[u64]) -> bool {
    inner.iter().zip(outer).all(|(a, b)| a & !b == 0)
}

/// Link cost of a group, and whether there is a host with headroom, at best; the same for all services of a kind.
fn nearest(p: &Problem<'_>, kind: u32) -> (u32, i64) {
    let k = &p.kinds[kind as usize];
    // A host that could hold a part without a cost of its own makes all parts free of it.
    let tight = if k.has_roomy { 0 } else { i64::from(k.tensor * k.units) };
    (k.nearest, tight)
}

fn least(p: &Problem<'_>, s: usize, nearest: &[(u32, i64)]) -> Option<Least> {
    let service = &p.services[s];
    let mut found: Option<Least> = None;
    let mut offer = |new: Least| {
        let best = found.get_or_insert(new);
        best.link = best.link.min(new.link);
        best.tight = best.tight.min(new.tight);
        best.bytes = best.bytes.min(new.bytes);
        best.gpus = best.gpus.min(new.gpus);
    };
    for i in service.incumbents.iter().map(|i| &p.incumbents[*i as usize]).filter(|i| i.can_stay) {
        let gpus: usize = i.pins.iter().map(|pin| pin.gpus.len()).sum();
        // What gives way need not take any.
        let gpus = if service.outgoing { 0 } else { gpus as i64 };
        offer(Least { link: i.link, tight: i.tight, bytes: 0, gpus });
    }
    for kind in &service.kinds {
        let k = &p.kinds[*kind as usize];
        let split = i64::from(k.splits.first().copied().unwrap_or(1));
        let (link, tight) = nearest[*kind as usize];
        let there = || {
            let hosts = 0..p.hosts.len() as u32;
            hosts.clone().any(|h| service.has[h as usize] && p.eligible(*kind, h) != 0)
        };
        // Copies are paid once a host, whoever shares them.
        let bytes =
            if service.replicas > 1 || service.bytes == 0 || there() { 0 } else { service.bytes };
        offer(Least {
            link: i64::from(link) * i64::from(k.units) + span_cost(split as usize, 1),
            tight,
            bytes,
            gpus: i64::from(k.units * k.tensor),
        });
    }
    found
}

/// A bound for the bytes, given how many slots of each priority have a place: hosts' rooms are priced instead of
/// kept to, and the prices raised where more is wanted than there is (Lagrangian relaxation, subgradient steps).
pub(super) fn bytes(
    p: &Problem<'_>,
    score: &Score,
    rounds: u32,
    over: &mut dyn FnMut() -> bool,
) -> i64 {
    let hosts = p.hosts.len();
    let room: Vec<f64> = p.hosts.iter().map(|h| f64::from(h.room)).collect();
    let mut price = vec![0.0f64; hosts];
    let mut best = 0.0f64;
    let mut pace = 1.0;
    let mut idle = 0;
    for _ in 0..rounds {
        if over() {
            break;
        }
        let mut used = vec![0.0f64; hosts];
        let mut value: f64 = -price.iter().zip(&room).map(|(a, b)| a * b).sum::<f64>();
        let mut by_class: Vec<Vec<(f64, Vec<(usize, f64)>)>> = vec![Vec::new(); p.classes.len()];
        let mut broken_off = false;
        for (s, service) in p.services.iter().enumerate().filter(|(_, s)| !s.outgoing) {
            broken_off = broken_off || (s % 64 == 63 && over());
            if broken_off {
                break;
            }
            let (cost, takes) = cheapest(p, s, &price);
            if cost.is_finite() {
                let class = &mut by_class[service.class as usize];
                class.extend((0..service.replicas).map(|_| (cost, takes.clone())));
            }
        }
        if broken_off {
            break;
        }
        for (class, mut all) in by_class.into_iter().enumerate() {
            let wanted = p
                .services
                .iter()
                .filter(|s| s.class as usize == class && !s.outgoing)
                .map(|s| i64::from(s.replicas))
                .sum::<i64>();
            all.sort_by(|a, b| a.0.total_cmp(&b.0));
            let placed = (wanted - score.unplaced[class]).max(0) as usize;
            for (cost, takes) in all.into_iter().take(placed) {
                value += cost;
                for (h, gpus) in takes {
                    used[h] += gpus;
                }
            }
        }
        if value > best {
            best = value;
            idle = 0;
        } else {
            idle += 1;
            if idle == 4 {
                (pace, idle) = (pace * 0.7, 0);
            }
        }
        let over: Vec<f64> = used.iter().zip(&room).map(|(u, r)| u - r).collect();
        let length: f64 = over
            .iter()
            .zip(&price)
            .filter(|(o, price)| **o > 0.0 || **price > 0.0)
            .map(|(o, _)| o * o)
            .sum();
        let gap = score.levels.bytes as f64 - value;
        if length <= 0.0 || gap <= 0.0 {
            break;
        }
        for (price, over) in price.iter_mut().zip(&over) {
            *price = (*price + pace * gap / length * over).max(0.0);
        }
    }
    // Rounded against us: what is summed in floating point may be off by a little.
    ((best * (1.0 - 1e-9)) as i64).clamp(0, score.levels.bytes)
}

/// The cheapest place of a slot of a service at these prices, and what it takes there.
fn cheapest(p: &Problem<'_>, s: usize, price: &[f64]) -> (f64, Vec<(usize, f64)>) {
    let service = &p.services[s];
    let mut best = (f64::INFINITY, Vec::new());
    for i in service.incumbents.iter().map(|i| &p.incumbents[*i as usize]).filter(|i| i.can_stay) {
        let takes: Vec<(usize, f64)> = i
            .pins
            .iter()
            .map(|pin| {
                let n: u32 = pin.cells.iter().map(|(_, n)| n).sum();
                (pin.host as usize, f64::from(n))
            })
            .collect();
        let cost: f64 = takes.iter().map(|(h, n)| price[*h] * n).sum();
        if cost < best.0 {
            best = (cost, takes);
        }
    }
    let mut costs: Vec<(f64, usize)> = Vec::new();
    for kind in &service.kinds {
        let k = &p.kinds[*kind as usize];
        for split in &k.splits {
            let gpus = f64::from(k.units / split * k.tensor);
            costs.clear();
            for h in 0..p.hosts.len() {
                if p.eligible(*kind, h as u32) == 0 || f64::from(p.hosts[h].room) < gpus {
                    continue;
                }
                let copy = match service.replicas {
                    _ if service.has[h] => 0.0,
                    0 | 1 => service.bytes as f64,
                    // Replicas that lie together share a copy.
                    replicas => {
                        let sharing = (f64::from(p.hosts[h].room) / gpus).floor();
                        service.bytes as f64 / sharing.min(f64::from(replicas)).max(1.0)
                    }
                };
                costs.push((copy + price[h] * gpus, h));
            }
            let split = *split as usize;
            if costs.len() < split {
                continue;
            }
            if split < costs.len() {
                costs.select_nth_unstable_by(split - 1, |a, b| a.0.total_cmp(&b.0));
            }
            let cost: f64 = costs.iter().take(split).map(|c| c.0).sum();
            if cost < best.0 {
                best = (cost, costs.iter().take(split).map(|(_, h)| (*h, gpus)).collect());
            }
        }
    }
    best
}
