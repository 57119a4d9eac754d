//! The answer: which rank goes on which GPUs, why, and how good that is.
#![allow(clippy::indexing_slicing)] // tables of `compile`
#![allow(clippy::cast_possible_truncation)] // counts that `read` bounds

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use std::borrow::Cow;

use super::compile::{Joined, NONE, ON_NODE, ON_SWITCH, Problem, free_memory, link_cost};
use super::file::{Rank, WorldFile, WorldShape};
use super::layout::divide;
use super::search::Best;
use super::state::{Score, State};
use super::{leaves, why};
use crate::base::Bytes;

/// The whole answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// The format; 1.
    pub version: u32,
    /// Nothing better exists.
    pub proven_optimal: bool,
    /// Replicas wanted.
    pub wanted: u64,
    /// Replicas that have a place.
    pub placed: u64,
    /// What it is worth, the most important first.
    pub objective: Vec<Level>,
    /// The services, as in the world.
    pub services: Vec<ServiceAnswer>,
    /// Replicas that run and do not stay.
    pub moves: Vec<Move>,
    /// What must be copied where.
    pub copies: Vec<Copy>,
    /// The largest gang that could still be placed: GPUs of one model and size, within one `NVLink` island or on a host and
    /// in none.
    pub largest_gang: u64,
    /// How it was found.
    pub search: Search,
}

/// One level of the objective.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Level {
    /// `placed`, `domains`, `moves`, `link`, `headroom`, `weights`, `fragmentation`.
    pub name: Cow<'static, str>,
    /// What the value counts.
    pub unit: Cow<'static, str>,
    /// `max` or `min`.
    pub sense: Cow<'static, str>,
    /// The value.
    pub value: i64,
    /// No placement that is as good on the levels before has a better value than this.
    pub bound: i64,
    /// How far apart they are, of the value.
    pub gap: f64,
    /// They meet, here and on the levels before.
    pub proven: bool,
    /// For `placed`: by priority, the highest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub by_priority: Vec<Priority>,
}

/// How many of one priority have a place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Priority {
    /// The priority.
    pub priority: i32,
    /// Replicas wanted.
    pub wanted: i64,
    /// Replicas placed.
    pub placed: i64,
    /// More cannot be placed, given those of the priorities before.
    pub bound: i64,
}

/// A service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServiceAnswer {
    /// Its name.
    pub name: String,
    /// Its priority.
    pub priority: i32,
    /// Replicas wanted.
    pub wanted: u32,
    /// Replicas placed.
    pub placed: u32,
    /// Those that have a place.
    pub replicas: Vec<ReplicaAnswer>,
    /// Why the others have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unplaced: Option<String>,
    /// Hosts that got no rank of it, by the one reason that counts.
    pub rejected: Vec<Rejected>,
}

/// A replica that has a place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReplicaAnswer {
    /// Its number.
    pub replica: u32,
    /// `stays`, `moves` or `starts`.
    pub state: Cow<'static, str>,
    /// How it is divided.
    pub shape: WorldShape,
    /// What it needs on each GPU.
    pub memory_per_gpu: Bytes,
    /// Its ranks, in order.
    pub ranks: Vec<RankAnswer>,
    /// Why there.
    pub reasons: Vec<String>,
}

/// A rank: the GPUs of a replica on one host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RankAnswer {
    /// Its number.
    pub rank: u32,
    /// The host.
    pub host: String,
    /// Indices of its GPUs.
    pub gpus: Vec<u32>,
    /// Their UUIDs, where the world has them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub uuids: Vec<String>,
    /// The same GPUs by tensor-parallel group.
    pub groups: Vec<Vec<u32>>,
}

/// A replica that runs and does not stay.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Move {
    /// Whose.
    pub service: String,
    /// Its number.
    pub replica: u32,
    /// Where it runs now.
    pub from: Vec<Rank>,
    /// Where it goes; empty: it is stopped.
    pub to: Vec<Rank>,
    /// It serves now: moving it stops ranks.
    pub serving: bool,
}

/// Weights to be copied.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Copy {
    /// Whose.
    pub service: String,
    /// To which host.
    pub host: String,
    /// How much.
    pub bytes: Bytes,
}

/// Hosts that were passed over for one reason.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rejected {
    /// The reason.
    pub reason: String,
    /// How many hosts.
    pub count: usize,
    /// Some of them, or all.
    pub hosts: Vec<String>,
}

/// How it was found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Search {
    /// Attempts to better it.
    pub steps: u64,
    /// `proven`, `time` or `steps`.
    pub ended: String,
    /// Until the first placement was there.
    pub first_feasible_ms: f64,
    /// All of it.
    pub elapsed_ms: f64,
    /// The time was over before all reasons were told.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reasons_cut: bool,
}

pub(super) fn tell(
    world: &WorldFile,
    p: &Problem<'_>,
    best: &Best,
    bounds: &Score,
    explain: bool,
    over: &mut dyn FnMut() -> bool,
) -> Answer {
    // What was found is told whole.
    p.clock.hurry_from(f64::INFINITY);
    let mut state = State::new(p);
    // Those that stay first: the others are fitted around them.
    let keeps = |keep: bool| {
        let at = best.at.iter().enumerate();
        at.filter_map(move |(slot, at)| Some((slot as u32, at.clone()?)))
            .filter(move |(_, at)| (at.keep != NONE) == keep)
    };
    for (slot, position) in keeps(true).chain(keeps(false)) {
        state.place(slot, position);
    }
    let groups = gpus(p, &mut state);
    // What is told is what it is worth with these GPUs.
    let score = state.score();
    let free = free_memory(world);
    let mut services = Vec::new();
    let mut moves = Vec::new();
    let mut copies = Vec::new();
    for (s, service) in p.services.iter().enumerate().take(world.services.len()) {
        let asked = &world.services[s];
        let (replicas, mut moved) = replicas(world, p, &state, s, &groups, &free);
        moves.append(&mut moved);
        let on: BTreeSet<u32> = (service.first..service.first + service.replicas)
            .filter_map(|slot| state.at[slot as usize].as_ref())
            .flat_map(|at| at.hosts.iter().copied())
            .collect();
        copies.extend(on.iter().filter(|h| !service.has[**h as usize] && service.bytes > 0).map(
            |h| Copy {
                service: asked.name.clone(),
                host: world.hosts[*h as usize].name.clone(),
                bytes: asked.weights_bytes,
            },
        ));
        let placed = replicas.len() as u32;
        services.push(ServiceAnswer {
            name: asked.name.clone(),
            priority: asked.priority,
            wanted: asked.replicas,
            placed,
            replicas,
            unplaced: None,
            rejected: Vec::new(),
        });
    }
    leaves::name_hole(&mut services, &moves);
    // Those without a place first: their reasons are what is looked for.
    let (short, whole): (Vec<usize>, Vec<usize>) =
        (0..services.len()).partition(|s| services[*s].placed < services[*s].wanted);
    let mut reasons_cut = false;
    let mut reasons = why::Reasons::new(world, p, &free);
    for s in short.into_iter().chain(whole) {
        let missing = services[s].wanted - services[s].placed;
        let told = reasons.of(&mut state, s, explain, over);
        reasons_cut |= told.cut;
        services[s].rejected = told.rejected;
        services[s].unplaced = (missing > 0).then_some(told.unplaced);
    }
    let objective = levels(p, &score, bounds);
    let proven_optimal = objective.iter().all(|l| l.proven);
    let placed = services.iter().map(|s| u64::from(s.placed)).sum();
    Answer {
        version: 1,
        proven_optimal,
        wanted: services.iter().map(|s| u64::from(s.wanted)).sum(),
        placed,
        objective,
        services,
        moves,
        copies,
        largest_gang: (64 - score.levels.closed).unsigned_abs(),
        search: Search { reasons_cut, ..Search::default() },
    }
}

fn levels(p: &Problem<'_>, score: &Score, bounds: &Score) -> Vec<Level> {
    let mut wanted = vec![0i64; p.classes.len()];
    for service in p.slots.iter().map(|s| &p.services[*s as usize]).filter(|s| !s.outgoing) {
        wanted[service.class as usize] += 1;
    }
    let sum = |unplaced: &[i64]| wanted.iter().zip(unplaced).map(|(w, u)| w - u).sum::<i64>();
    let by_priority: Vec<Priority> = p
        .classes
        .iter()
        .enumerate()
        .map(|(c, priority)| Priority {
            priority: *priority,
            wanted: wanted[c],
            placed: wanted[c] - score.unplaced[c],
            bound: wanted[c] - bounds.unplaced[c].min(score.unplaced[c]),
        })
        .collect();
    let (now, bound) = (&score.levels, &bounds.levels);
    let all = [
        ("placed", "replicas", "max", sum(&score.unplaced), sum(&bounds.unplaced)),
        ("domains", "replicas too many in a failure domain", "min", now.crowded, bound.crowded),
        ("moves", "serving ranks that stop", "min", now.moves, bound.moves),
        ("link", "link cost", "min", now.link, bound.link),
        (
            "in_place",
            "ranks of earlier releases that go first",
            "min",
            now.displaced,
            bound.displaced,
        ),
        ("headroom", "GPUs without headroom", "min", now.tight, bound.tight),
        ("weights", "bytes to copy", "min", now.bytes, bound.bytes),
        (
            "fragmentation",
            "GPUs of the largest gang that still fits",
            "max",
            64 - now.closed,
            64 - bound.closed,
        ),
    ];
    let mut proven = true;
    let gives_way = p.services.iter().any(|s| s.outgoing);
    all.into_iter()
        .filter(|level| gives_way || level.0 != "in_place")
        .enumerate()
        .map(|(i, (name, unit, sense, value, bound))| {
            // A bound that was found for itself says nothing once a level before it is worse than its own.
            let bound = if sense == "max" { bound.max(value) } else { bound.min(value) };
            let met = if i == 0 {
                by_priority.iter().all(|p| p.placed == p.bound)
            } else {
                value == bound
            };
            proven &= met;
            Level {
                name: name.into(),
                unit: unit.into(),
                sense: sense.into(),
                value,
                bound,
                gap: if value == bound {
                    0.0
                } else {
                    (value - bound).abs() as f64 / (value.abs().max(1)) as f64
                },
                proven,
                by_priority: if i == 0 { by_priority.clone() } else { Vec::new() },
            }
        })
        .collect()
}

/// Positions of the GPUs of each slot's groups, by its hosts.
pub(super) type Groups = Vec<Vec<Vec<Vec<u32>>>>;

/// Which GPUs each group gets.
fn gpus(p: &Problem<'_>, state: &mut State<'_>) -> Groups {
    let mut out: Groups = vec![Vec::new(); p.slots.len()];
    for (slot, at) in state.at.iter().enumerate() {
        out[slot] = vec![Vec::new(); at.as_ref().map_or(0, |at| at.hosts.len())];
    }
    let mut costs = Vec::new();
    let place = |slot: u32, host: u32| {
        let at = state.at[slot as usize].as_ref();
        at.and_then(|at| at.hosts.iter().position(|h| *h == host)).unwrap_or(0)
    };
    for (h, host) in p.hosts.iter().enumerate() {
        let h = h as u32;
        let parts = state.parts(h);
        let mut taken: BTreeSet<u32> = BTreeSet::new();
        for part in parts.iter().filter(|part| part.pin != NONE) {
            let incumbent = &p.incumbents[part.pin as usize];
            let tensor = incumbent.shape.tensor as usize;
            for pin in incumbent.pins.iter().filter(|pin| pin.host == h) {
                taken.extend(&pin.gpus);
                out[part.slot as usize][place(part.slot, h)] =
                    pin.gpus.chunks(tensor.max(1)).map(<[u32]>::to_vec).collect();
            }
        }
        let mut counts = Vec::new();
        let Some(cost) = divide(p, h, parts, Some(&mut counts)) else { continue };
        costs.push((h, cost));
        let mut free: Vec<Vec<u32>> = host
            .cells
            .iter()
            .map(|c| c.gpus.iter().rev().copied().filter(|g| !taken.contains(g)).collect())
            .collect();
        let loose = parts.iter().filter(|part| part.pin == NONE);
        for (part, groups) in loose.zip(counts) {
            let groups: Vec<Vec<u32>> = groups
                .iter()
                .map(|group| {
                    let mut list = Vec::new();
                    for (cell, count) in free.iter_mut().zip(group) {
                        list.extend((0..*count).filter_map(|_| cell.pop()));
                    }
                    list.sort_unstable();
                    list
                })
                .collect();
            out[part.slot as usize][place(part.slot, h)] = groups;
        }
    }
    for (host, cost) in costs {
        state.divided(host, cost);
    }
    out
}

fn replicas(
    world: &WorldFile,
    p: &Problem<'_>,
    state: &State<'_>,
    s: usize,
    groups: &Groups,
    free: &[Vec<u64>],
) -> (Vec<ReplicaAnswer>, Vec<Move>) {
    let service = &p.services[s];
    let slots = service.first..service.first + service.replicas;
    let mut numbers: BTreeSet<u32> = BTreeSet::new();
    for slot in slots.clone() {
        if let Some(at) = state.at[slot as usize].as_ref().filter(|at| at.keep != NONE) {
            numbers.insert(p.incumbents[at.keep as usize].replica);
        }
    }
    // Replicas that run and do not stay keep their numbers where they go.
    let leaving: Vec<u32> =
        service.incumbents.iter().copied().filter(|i| !state.stays(*i)).collect();
    let mut waiting = leaving.clone().into_iter();
    let mut replicas: Vec<ReplicaAnswer> = Vec::new();
    let mut moves = Vec::new();
    let index = |h: u32, g: u32| world.hosts[h as usize].gpus[g as usize].index;
    for slot in slots {
        let Some(at) = &state.at[slot as usize] else { continue };
        let mut from = NONE;
        let number = if at.keep == NONE {
            match waiting.next() {
                Some(i) => {
                    from = i;
                    p.incumbents[i as usize].replica
                }
                None => {
                    let taken = |n: &u32| {
                        numbers.contains(n)
                            || leaving.iter().any(|i| p.incumbents[*i as usize].replica == *n)
                    };
                    (0..=u32::MAX).find(|n| !taken(n)).unwrap_or(0)
                }
            }
        } else {
            p.incumbents[at.keep as usize].replica
        };
        numbers.insert(number);
        let (shape, memory) = match at.keep {
            NONE => {
                let kind = &p.kinds[at.kind as usize];
                (kind.shape, kind.need)
            }
            keep => {
                let shape = p.incumbents[keep as usize].shape;
                (shape, super::compile::need(&world.services[s], &shape))
            }
        };
        let ranks: Vec<RankAnswer> = at
            .hosts
            .iter()
            .zip(&groups[slot as usize])
            .enumerate()
            .map(|(rank, (h, groups))| {
                let groups: Vec<Vec<u32>> =
                    groups.iter().map(|g| g.iter().map(|g| index(*h, *g)).collect()).collect();
                let gpus: Vec<u32> = groups.iter().flatten().copied().collect();
                let host = &world.hosts[*h as usize];
                let of = |i: &u32| host.gpus.iter().find(|g| g.index == *i)?.uuid.clone();
                RankAnswer {
                    rank: rank as u32,
                    host: host.name.clone(),
                    uuids: gpus.iter().filter_map(of).collect(),
                    gpus,
                    groups,
                }
            })
            .collect();
        if from != NONE {
            moves.push(leave(world, p, from, &ranks));
        }
        let mut reasons = reasons(world, p, state, s, slot, &ranks);
        if let Some(i) = p.incumbents.get(from as usize) {
            reasons.insert(0, leaves::why(world, free, i));
        }
        replicas.push(ReplicaAnswer {
            replica: number,
            state: match (at.keep, from) {
                (NONE, NONE) => "starts",
                (NONE, _) => "moves",
                _ => "stays",
            }
            .into(),
            shape,
            memory_per_gpu: Bytes(memory),
            ranks,
            reasons,
        });
    }
    moves.extend(waiting.map(|i| leave(world, p, i, &[])));
    replicas.sort_by_key(|r| r.replica);
    (replicas, moves)
}

fn leave(world: &WorldFile, p: &Problem<'_>, incumbent: u32, to: &[RankAnswer]) -> Move {
    let i = &p.incumbents[incumbent as usize];
    let from = i.pins.iter().map(|pin| {
        let host = &world.hosts[pin.host as usize];
        Rank {
            host: host.name.clone(),
            gpus: pin.gpus.iter().map(|g| host.gpus[*g as usize].index).collect(),
        }
    });
    Move {
        service: world.services[i.service as usize].name.clone(),
        replica: i.replica,
        from: from.collect(),
        to: to.iter().map(|r| Rank { host: r.host.clone(), gpus: r.gpus.clone() }).collect(),
        serving: i.ranks > 0,
    }
}

/// Why a replica is where it is, a line each.
fn reasons(
    world: &WorldFile,
    p: &Problem<'_>,
    state: &State<'_>,
    s: usize,
    slot: u32,
    ranks: &[RankAnswer],
) -> Vec<String> {
    let Some(at) = &state.at[slot as usize] else { return Vec::new() };
    let service = &p.services[s];
    let mut lines = Vec::new();
    if at.keep != NONE {
        let must = p.incumbents[at.keep as usize].must_stay;
        lines.push(
            if must { "runs here and is to stay" } else { "runs here: nothing moves" }.to_owned(),
        );
    }
    let mut worst = 0;
    let mut tensor = 1;
    for rank in ranks {
        let Some(host) = world.hosts.iter().find(|h| h.name == rank.host) else { continue };
        for group in &rank.groups {
            tensor = group.len().max(tensor);
            let of = group.iter().filter_map(|i| host.gpus.iter().find(|g| g.index == *i));
            worst = worst.max(link_cost(of.map(Joined::of)));
        }
    }
    if tensor > 1 {
        lines.push(
            match worst {
                0 => "each tensor-parallel group within one NVLink island",
                ON_SWITCH => "tensor parallel on one PCIe switch without a common NVLink island",
                ON_NODE => "tensor parallel on one NUMA node without a common NVLink island or PCIe switch",
                _ if at.keep != NONE => "tensor parallel over PCIe",
                _ => "tensor parallel over PCIe: no island, PCIe switch or NUMA node with so many GPUs was to be had",
            }
            .to_owned(),
        );
    }
    if ranks.len() > 1 {
        lines.push(format!("divided over {} hosts between its stages", ranks.len()));
    }
    let copied: Vec<&str> = at
        .hosts
        .iter()
        .filter(|h| !service.has[**h as usize])
        .map(|h| world.hosts[*h as usize].name.as_str())
        .collect();
    if service.bytes > 0 {
        let size = world.services[s].weights_bytes;
        lines.push(match copied.as_slice() {
            [] => "the weights are there".to_owned(),
            on => format!("{size} of weights to be copied to {}", on.join(", ")),
        });
    }
    lines
}
