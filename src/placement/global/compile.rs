//! From a checked world to the tables that the search works on.
//!
//! GPUs of a host that nothing tells apart are one *cell*. A *kind* is one way to divide a replica on one GPU
//! model; all GPUs of a replica have the same model and memory, so ranks are equal. A *slot* is a replica that wants
//! a place; an *incumbent* is a replica that runs.
#![allow(clippy::indexing_slicing)] // the tables are made, and indexed, here and by the search alone
#![allow(clippy::cast_possible_truncation)] // counts that `read` bounds

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::alike::{Alike, Mark};
use super::clock::Clock;
use super::file::{
    Running, WorldFile, WorldGpu, WorldHost, WorldLink, WorldService, WorldShape, WorldSpread,
};
use super::layout::HostCost;
use crate::spec::Requirement;
use crate::spec::require::{Fact, Value};

/// No incumbent.
pub(super) const NONE: u32 = u32::MAX;

/// GPUs of one host that nothing tells apart.
#[derive(Clone, Debug)]
pub(super) struct Cell {
    pub island: Option<u32>,
    pub numa: Option<u32>,
    pub model: u32,
    pub total: u64,
    /// Free once what may be moved is gone, on the GPU of them that has most.
    pub free: u64,
    mark: Mark,
    pub mig: Option<String>,
    /// Positions in the host's list.
    pub gpus: Vec<u32>,
}

impl Cell {
    fn is_like(&self, other: &Self) -> bool {
        (self.island, self.numa, self.model, self.total)
            == (other.island, other.numa, other.model, other.total)
            && self.mark == other.mark
            && self.mig == other.mig
    }
}

/// A host.
#[derive(Clone, Debug)]
pub(super) struct Host {
    pub cells: Vec<Cell>,
    pub rack: u32,
    pub zone: u32,
    /// GPUs in cells.
    pub room: u32,
    /// Hosts whose cells differ in nothing but their links, and have the same links, have the same number; [`NONE`]
    /// for a host whose GPUs differ otherwise.
    pub pattern: u32,
    /// All of it is one island, and every kind may use all of it or nothing: counting GPUs is enough.
    pub whole: bool,
}

/// One way to divide a replica, on one GPU model.
#[derive(Clone, Debug)]
pub(super) struct Kind {
    pub tensor: u32,
    /// Tensor-parallel groups.
    pub units: u32,
    pub shape: WorldShape,
    /// Highest link cost of a group that is allowed.
    pub max_link: u32,
    /// Numbers of hosts that it may be divided over, fewest first.
    pub splits: Vec<u32>,
    /// Memory that a GPU of this kind must have, the engine's share aside.
    pub need: u64,
    /// The hosts that it may use, as bits.
    pub hosts: Vec<u64>,
    /// There is a host on which it has headroom, and one on which a group lies in one island.
    pub has_roomy: bool,
    pub has_near: bool,
}

/// A service.
#[derive(Clone, Debug)]
pub(super) struct Service {
    /// Its priority's rank, the highest 0.
    pub class: u32,
    pub kinds: Vec<u32>,
    pub spread: WorldSpread,
    /// Replicas that each failure domain may hold before it counts as crowded.
    pub quota: u32,
    /// Likewise each host, where replicas are kept apart by rack or zone and lie on one host each.
    pub host_quota: u32,
    pub bytes: i64,
    /// Hosts that have the weights, or whose replica has them.
    pub has: Vec<bool>,
    pub homes: Vec<u32>,
    pub incumbents: Vec<u32>,
    /// Its first slot, and how many.
    pub first: u32,
    pub replicas: u32,
    /// Not a service of the world but the replicas of an earlier release of one: they stay or give way.
    pub outgoing: bool,
}

/// The part of an incumbent on one host.
#[derive(Clone, Debug)]
pub(super) struct Pin {
    pub host: u32,
    /// Cell and count; GPUs outside cells (cordoned, immovable) take no room.
    pub cells: Vec<(u32, u32)>,
    /// All its GPUs there, as positions.
    pub gpus: Vec<u32>,
}

/// A replica that runs.
#[derive(Clone, Debug)]
pub(super) struct Incumbent {
    pub service: u32,
    pub replica: u32,
    pub shape: WorldShape,
    pub pins: Vec<Pin>,
    /// What staying costs.
    pub link: i64,
    pub tight: i64,
    /// Ranks that stop when it does not stay; 0 if it serves no more.
    pub ranks: i64,
    /// The same for a replica of an earlier release.
    pub displaced: i64,
    pub can_stay: bool,
    pub must_stay: bool,
}

/// The tables.
#[derive(Clone, Debug)]
pub(super) struct Problem<'a> {
    /// How much of the time is used.
    pub clock: Clock<'a>,
    pub hosts: Vec<Host>,
    pub kinds: Vec<Kind>,
    pub services: Vec<Service>,
    pub incumbents: Vec<Incumbent>,
    /// The service of each slot.
    pub slots: Vec<u32>,
    /// Priorities, highest first.
    pub classes: Vec<i32>,
    /// Cells that a kind may use and those on which it lacks headroom: `[kind * hosts + host]`.
    eligible: Vec<u64>,
    tight: Vec<u64>,
    pub racks: u32,
    pub zones: u32,
    /// The hosts of each rack.
    pub in_rack: Vec<Vec<u32>>,
    /// GPUs outside cells, with the reason.
    pub outside: Vec<BTreeMap<u32, String>>,
    /// Divisions that were worked out, by pattern and sizes.
    pub divided: RefCell<BTreeMap<(u32, u64), Option<HostCost>>>,
    /// The same for hosts with unlike GPUs, by host and parts (kind, groups, incumbent).
    pub divided_unlike: RefCell<HashMap<(u32, Vec<(u32, u32, u32)>), Option<HostCost>>>,
}

impl Problem<'_> {
    pub fn eligible(&self, kind: u32, host: u32) -> u64 {
        self.eligible[kind as usize * self.hosts.len() + host as usize]
    }

    pub fn tight(&self, kind: u32, host: u32) -> u64 {
        self.tight[kind as usize * self.hosts.len() + host as usize]
    }

    /// The failure domain of a host for a service.
    pub fn domain(&self, spread: WorldSpread, host: u32) -> u32 {
        match spread {
            WorldSpread::None | WorldSpread::Pack => 0,
            WorldSpread::Host => host,
            WorldSpread::Rack => self.hosts[host as usize].rack,
            WorldSpread::Zone => self.hosts[host as usize].zone,
        }
    }
}

/// The link cost of a tensor-parallel group on these cells.
pub(in crate::placement) fn link_cost(group: &[(Option<u32>, Option<u32>)]) -> u32 {
    let same = |of: fn(&(Option<u32>, Option<u32>)) -> Option<u32>| {
        let first = group.first().and_then(of);
        first.is_some() && group.iter().all(|g| of(g) == first)
    };
    match group.len() {
        0 | 1 => 0,
        _ if same(|g| g.0) => 0,
        _ if same(|g| g.1) => 1,
        _ => 2,
    }
}

/// The link cost of lying on more hosts and racks than one.
pub(super) fn span_cost(hosts: usize, racks: usize) -> i64 {
    3 * (hosts as i64 - 1) + (racks as i64 - 1)
}

/// Memory on each GPU of a shape: KV heads beyond the tensor-parallel degree are replicated.
pub(super) fn need(service: &WorldService, shape: &WorldShape) -> u64 {
    let divided = service.kv_heads.map_or(shape.tensor, |kv| kv.min(shape.tensor));
    let over = u64::from(divided) * u64::from(shape.pipeline) * u64::from(shape.data);
    shape.memory.0.saturating_add(service.kv_bytes.0.div_ceil(over.max(1)))
}

/// Why a shape cannot be at all.
pub(super) fn shape_trouble(service: &WorldService, shape: &WorldShape) -> Option<String> {
    let tensor = shape.tensor;
    if let Some(heads) = service.heads.filter(|heads| !heads.is_multiple_of(tensor)) {
        return Some(format!("{heads} attention heads cannot be divided by {tensor}"));
    }
    let kv = service.kv_heads?;
    let fits = if tensor <= kv { kv % tensor == 0 } else { tensor.is_multiple_of(kv) };
    (!fits).then(|| format!("{kv} KV heads can be neither divided by {tensor} nor copied evenly"))
}

/// What a requirement wants to know.
pub(super) fn fact<'a>(
    host: &'a WorldHost,
    gpu: &'a WorldGpu,
    free: u64,
    fact: &Fact,
) -> Option<Value<'a>> {
    let label = |key: &str| host.labels.get(key).map(|v| Value::Text(v));
    match fact {
        Fact::GpuMemory => Some(Value::Size(gpu.memory_total.0)),
        Fact::GpuFree => Some(Value::Size(free)),
        Fact::GpuModel => Some(Value::Text(&gpu.model)),
        Fact::GpuIndex => Some(Value::Number(f64::from(gpu.index))),
        Fact::GpuNuma => gpu.numa.map(|n| Value::Number(f64::from(n))),
        Fact::GpuIsland => gpu.island.map(|n| Value::Number(f64::from(n))),
        Fact::GpuMig => Some(Value::Bool(gpu.mig.is_some())),
        Fact::GpuProfile => gpu.mig.as_deref().map(Value::Text),
        Fact::HostName => Some(Value::Text(&host.name)),
        Fact::HostRack => host.rack.as_deref().map(Value::Text).or_else(|| label("rack")),
        Fact::HostZone => host.zone.as_deref().map(Value::Text).or_else(|| label("zone")),
        Fact::HostCpus => host.cpus.map(|n| Value::Number(f64::from(n))),
        Fact::HostMemory => host.memory_free.map(|n| Value::Size(n.0)),
        Fact::HostGpus => Some(Value::Number(host.gpus.len() as f64)),
        Fact::HostNic => host.nics.iter().map(|n| n.gbit).reduce(f64::max).map(Value::Number),
        Fact::Label(key) => label(key),
    }
}

/// Free memory of every GPU of a world once what may be moved is gone, by host and position.
pub(super) fn free_memory(world: &WorldFile) -> Vec<Vec<u64>> {
    let mut own: BTreeMap<(&str, u32), u64> = BTreeMap::new();
    let services: BTreeMap<&str, &WorldService> =
        world.services.iter().map(|s| (s.name.as_str(), s)).collect();
    for running in &world.placements {
        let Some(service) = services.get(running.service.as_str()) else { continue };
        let memory = running.memory.map_or_else(
            || running_shape(service, running).map_or(0, |shape| need(service, &shape)),
            |m| m.0,
        );
        for rank in &running.ranks {
            own.extend(rank.gpus.iter().map(|g| ((rank.host.as_str(), *g), memory)));
        }
    }
    let free = |host: &WorldHost, gpu: &WorldGpu| {
        let own = own.get(&(host.name.as_str(), gpu.index)).copied().unwrap_or(0);
        gpu.memory_free
            .map_or(gpu.memory_total.0, |f| f.0.saturating_add(own).min(gpu.memory_total.0))
    };
    world.hosts.iter().map(|h| h.gpus.iter().map(|g| free(h, g)).collect()).collect()
}

/// The shape a replica runs with: as it says, else the first of its service's with the same degrees, or, where it says
/// nothing, with as many GPUs.
pub(super) fn running_shape(service: &WorldService, running: &Running) -> Option<WorldShape> {
    let count: usize = running.ranks.iter().map(|r| r.gpus.len()).sum();
    let same = |shape: &&WorldShape| shape.gpus() == count as u64;
    match running.shape {
        Some(shape) => {
            let degrees = |s: &WorldShape| (s.tensor, s.pipeline, s.data);
            let like = service.shapes.iter().find(|s| degrees(s) == degrees(&shape)).copied();
            let known = service.shapes.contains(&shape);
            Some(if known { shape } else { like.unwrap_or(shape) })
        }
        None => service.shapes.iter().find(same).copied(),
    }
}

/// Makes the tables.
pub(super) fn compile<'a>(world: &WorldFile, clock: Clock<'a>) -> Problem<'a> {
    let host_at: BTreeMap<&str, u32> =
        world.hosts.iter().enumerate().map(|(i, h)| (h.name.as_str(), i as u32)).collect();
    let service_at: BTreeMap<&str, usize> =
        world.services.iter().enumerate().map(|(i, s)| (s.name.as_str(), i)).collect();
    let free = free_memory(world);
    let outside = outside(world, &host_at, &service_at);
    let requirements: Vec<Option<Requirement>> = world
        .services
        .iter()
        .map(|s| s.require.as_ref().and_then(|r| Requirement::parse(r).ok()))
        .collect();
    let alike = Alike::new(world, &requirements);
    let mut models: BTreeMap<(&str, u64), u32> = BTreeMap::new();
    for gpu in world.hosts.iter().flat_map(|h| &h.gpus) {
        let next = models.len() as u32;
        models.entry((&gpu.model, gpu.memory_total.0)).or_insert(next);
    }
    let numbers = |of: fn(&WorldHost) -> Option<&str>| {
        let mut known: BTreeMap<&str, u32> = BTreeMap::new();
        let list: Vec<u32> = world
            .hosts
            .iter()
            .map(|h| {
                let next = known.len() as u32;
                *known.entry(of(h).unwrap_or("")).or_insert(next)
            })
            .collect();
        (list, known.len() as u32)
    };
    let (rack_of, racks) =
        numbers(|h| h.rack.as_deref().or_else(|| h.labels.get("rack").map(String::as_str)));
    let (zone_of, zones) =
        numbers(|h| h.zone.as_deref().or_else(|| h.labels.get("zone").map(String::as_str)));
    let mut patterns = BTreeMap::new();
    let hosts: Vec<Host> = world
        .hosts
        .iter()
        .enumerate()
        .map(|(h, host)| {
            let mut cells: Vec<Cell> = Vec::new();
            for (g, gpu) in host.gpus.iter().enumerate() {
                if outside[h].contains_key(&(g as u32)) {
                    continue;
                }
                let cell = Cell {
                    island: gpu.island.filter(|_| gpu.mig.is_none()),
                    numa: gpu.numa,
                    model: models[&(gpu.model.as_str(), gpu.memory_total.0)],
                    total: gpu.memory_total.0,
                    free: free[h][g],
                    mark: alike.mark(h, gpu, free[h][g]),
                    mig: gpu.mig.clone(),
                    gpus: vec![g as u32],
                };
                match cells.iter_mut().find(|known| known.is_like(&cell)) {
                    Some(known) => {
                        known.gpus.push(g as u32);
                        known.free = known.free.max(cell.free);
                    }
                    None => cells.push(cell),
                }
            }
            let room = cells.iter().map(|c| c.gpus.len() as u32).sum();
            let pattern = pattern(&cells, &mut patterns);
            Host { cells, rack: rack_of[h], zone: zone_of[h], room, pattern, whole: false }
        })
        .collect();

    let mut classes: Vec<i32> =
        world.services.iter().map(|s| s.priority).collect::<BTreeSet<_>>().into_iter().collect();
    classes.reverse();
    let mut in_rack = vec![Vec::new(); racks as usize];
    for (h, host) in hosts.iter().enumerate() {
        in_rack[host.rack as usize].push(h as u32);
    }
    let mut problem = Problem {
        clock,
        hosts,
        kinds: Vec::new(),
        services: Vec::new(),
        incumbents: Vec::new(),
        slots: Vec::new(),
        classes,
        eligible: Vec::new(),
        tight: Vec::new(),
        racks,
        zones,
        in_rack,
        outside,
        divided: RefCell::default(),
        divided_unlike: RefCell::default(),
    };
    // The cells on which each different requirement holds, with the model of each cell.
    let mut required: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    for (service, requirement) in world.services.iter().zip(&requirements) {
        let (Some(text), Some(requirement)) = (&service.require, requirement) else { continue };
        required.entry(text).or_insert_with(|| {
            let holds = |h: usize, cell: &Cell| {
                let gpu = &world.hosts[h].gpus[cell.gpus[0] as usize];
                requirement.holds(&|f| fact(&world.hosts[h], gpu, cell.free, f))
            };
            problem.hosts.iter().enumerate().map(|(h, host)| mask(host, |c| holds(h, c))).collect()
        });
    }
    let model_masks: Vec<Vec<u64>> = (0..models.len() as u32)
        .map(|m| problem.hosts.iter().map(|host| mask(host, |c| c.model == m)).collect())
        .collect();
    let mut made: BTreeMap<
        (WorldShape2, u64, (u64, bool), u32, WorldLink, bool, &str, Vec<&str>),
        Option<u32>,
    > = BTreeMap::new();
    for service in &world.services {
        let mut kinds = Vec::new();
        let only: BTreeSet<&str> = service.hosts.iter().map(String::as_str).collect();
        for shape in service.shapes.iter().filter(|s| shape_trouble(service, s).is_none()) {
            for model in 0..models.len() as u32 {
                let need = need(service, shape);
                let share = (service.memory_share.unwrap_or(0.0).to_bits(), service.within_share);
                let key = (
                    (shape.tensor, shape.pipeline, shape.data, shape.memory.0),
                    need,
                    share,
                    model,
                    service.link,
                    service.one_host,
                    service.require.as_deref().unwrap_or(""),
                    only.iter().copied().collect(),
                );
                let kind = *made.entry(key).or_insert_with(|| {
                    let may = |h: usize| {
                        let all = model_masks[model as usize][h];
                        let on = only.is_empty() || only.contains(world.hosts[h].name.as_str());
                        match required.get(service.require.as_deref().unwrap_or("")) {
                            _ if !on => 0,
                            Some(mask) => all & mask[h],
                            None => all,
                        }
                    };
                    add_kind(&mut problem, world, service, shape, need, &may)
                });
                kinds.extend(kind.filter(|k| !kinds.contains(k)));
            }
        }
        let s = problem.services.len() as u32;
        let mut has: Vec<bool> = vec![false; world.hosts.len()];
        for host in &service.weights_on {
            has[host_at[host.as_str()] as usize] = true;
        }
        let class = problem.classes.iter().position(|p| *p == service.priority).unwrap_or(0);
        let first = problem.slots.len() as u32;
        problem.slots.extend((0..service.replicas).map(|_| s));
        problem.services.push(Service {
            class: class as u32,
            kinds,
            spread: service.spread,
            quota: 0,
            host_quota: u32::MAX,
            bytes: i64::try_from(service.weights_bytes.0).unwrap_or(i64::MAX),
            has,
            homes: Vec::new(),
            incumbents: Vec::new(),
            first,
            replicas: service.replicas,
            outgoing: false,
        });
    }
    let outgoing = add_outgoing(&mut problem, world, &service_at);
    for running in &world.placements {
        let s = service_at[running.service.as_str()];
        let to = if running.outgoing { outgoing[&s] } else { s };
        add_incumbent(&mut problem, world, running, (s, to), &host_at, &free, &required);
    }
    for s in 0..problem.services.len() {
        let service = &problem.services[s];
        let usable = |h: u32| service.kinds.iter().any(|k| problem.eligible(*k, h) != 0);
        let all: Vec<u32> = (0..problem.hosts.len() as u32).filter(|h| usable(*h)).collect();
        let domains: BTreeSet<u32> =
            all.iter().map(|h| problem.domain(service.spread, *h)).collect();
        let quota = service.replicas.div_ceil((domains.len() as u32).max(1));
        let apart = matches!(service.spread, WorldSpread::Rack | WorldSpread::Zone);
        let by_host = apart && world.services.get(s).is_some_and(|s| s.one_host);
        let hosts = (all.len() as u32).max(1);
        let host_quota = if by_host { service.replicas.div_ceil(hosts) } else { u32::MAX };
        let mut homes: Vec<u32> = all.into_iter().filter(|h| service.has[*h as usize]).collect();
        // Where its earlier release runs is room that it may take over.
        if let Some(earlier) = outgoing.get(&s) {
            let incumbents = problem.services[*earlier].incumbents.iter();
            let pins = incumbents.flat_map(|i| &problem.incumbents[*i as usize].pins);
            homes.extend(pins.map(|pin| pin.host).filter(|h| usable(*h)));
            homes.sort_unstable();
            homes.dedup();
        }
        let service = &mut problem.services[s];
        service.quota = quota;
        service.host_quota = host_quota;
        service.homes = homes;
    }
    for h in 0..problem.hosts.len() {
        problem.hosts[h].whole = is_whole(&problem, h as u32);
    }
    problem
}

fn is_whole(problem: &Problem<'_>, host: u32) -> bool {
    let cells = &problem.hosts[host as usize].cells;
    let all = mask(&problem.hosts[host as usize], |_| true);
    let island = cells.first().and_then(|c| c.island);
    let alike = |mask: u64| mask == 0 || mask == all;
    island.is_some()
        && cells.iter().all(|c| c.island == island)
        && (0..problem.kinds.len() as u32)
            .all(|k| alike(problem.eligible(k, host)) && alike(problem.tight(k, host)))
}

/// A service of its own for the replicas of each service's earlier releases; gives where it is. It has no way to be
/// placed anew, so they stay where they are or are gone.
fn add_outgoing(
    problem: &mut Problem<'_>,
    world: &WorldFile,
    service_at: &BTreeMap<&str, usize>,
) -> BTreeMap<usize, usize> {
    let mut counts: BTreeMap<usize, u32> = BTreeMap::new();
    for running in world.placements.iter().filter(|r| r.outgoing) {
        *counts.entry(service_at[running.service.as_str()]).or_default() += 1;
    }
    let mut at = BTreeMap::new();
    for (s, count) in counts {
        let number = problem.services.len();
        let first = problem.slots.len() as u32;
        problem.slots.extend((0..count).map(|_| number as u32));
        problem.services.push(Service {
            class: problem.classes.len() as u32 - 1,
            kinds: Vec::new(),
            spread: WorldSpread::None,
            quota: 0,
            host_quota: u32::MAX,
            bytes: 0,
            has: vec![false; world.hosts.len()],
            homes: Vec::new(),
            incumbents: Vec::new(),
            first,
            replicas: count,
            outgoing: true,
        });
        at.insert(s, number);
    }
    at
}

/// Island, NUMA node and GPUs of each cell.
type Pattern = Vec<(Option<u32>, Option<u32>, usize)>;

fn pattern(cells: &[Cell], known: &mut BTreeMap<Pattern, u32>) -> u32 {
    let unlinked = |c: &Cell| Cell { island: None, numa: None, ..c.clone() };
    if cells.iter().any(|c| !unlinked(c).is_like(&unlinked(&cells[0]))) {
        return NONE;
    }
    let links = cells.iter().map(|c| (c.island, c.numa, c.gpus.len())).collect();
    let next = known.len() as u32;
    *known.entry(links).or_insert(next)
}

/// Tensor, pipeline, data, memory.
type WorldShape2 = (u32, u32, u32, u64);

fn mask(host: &Host, is: impl Fn(&Cell) -> bool) -> u64 {
    host.cells.iter().enumerate().filter(|(_, c)| is(c)).fold(0, |m, (i, _)| m | 1 << i)
}

/// What an engine takes of each GPU.
#[derive(Clone, Copy, Debug)]
pub(in crate::placement) struct Share {
    /// This share of its memory whatever the model needs.
    pub of_total: Option<f64>,
    /// And no more: the need has to fit into it.
    pub holds_need: bool,
}

impl Share {
    /// What a GPU of so much memory must have free for a need. More than it has where the need does not fit into
    /// the share: the least that a GPU would have to have.
    #[allow(clippy::cast_sign_loss)] // shares are between 0 and 1
    pub fn needed(self, need: u64, total: u64) -> u64 {
        let Some(share) = self.of_total.map(|s| s.clamp(0.0, 1.0)).filter(|s| *s > 0.0) else {
            return need;
        };
        let taken = (total as f64 * share) as u64;
        if !self.holds_need || need <= taken {
            return need.max(taken);
        }
        ((need as f64 / share).ceil() as u64).max(total.saturating_add(1))
    }
}

/// What a GPU of so much memory must have free for a shape of a service.
pub(super) fn needed(service: &WorldService, shape: &WorldShape, total: u64) -> u64 {
    let share = Share { of_total: service.memory_share, holds_need: service.within_share };
    share.needed(need(service, shape), total)
}

/// Free memory beyond its need with which a GPU has headroom.
pub(super) fn headroom(world: &WorldFile, total: u64) -> u64 {
    let share = u128::from(total) * u128::from(world.headroom_percent);
    u64::try_from(share.div_ceil(100)).unwrap_or(u64::MAX)
}

fn lacks_headroom(world: &WorldFile, total: u64, free: u64, needed: u64) -> bool {
    free.saturating_sub(needed) < headroom(world, total)
}

/// A kind, if any host could hold a part of it.
fn add_kind(
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

/// GPUs that nothing new may use, with the reason.
fn outside(
    world: &WorldFile,
    host_at: &BTreeMap<&str, u32>,
    service_at: &BTreeMap<&str, usize>,
) -> Vec<BTreeMap<u32, String>> {
    let mut out: Vec<BTreeMap<u32, String>> = vec![BTreeMap::new(); world.hosts.len()];
    let mut mark = |host: &str, indices: Option<&Vec<u32>>, why: &str| {
        let Some(h) = host_at.get(host).map(|h| *h as usize) else { return };
        for (g, gpu) in world.hosts[h].gpus.iter().enumerate() {
            if indices.is_none_or(|list| list.contains(&gpu.index)) {
                out[h].entry(g as u32).or_insert_with(|| why.to_owned());
            }
        }
    };
    for host in &world.hosts {
        if !host.up {
            mark(&host.name, None, "not reached");
        } else if host.draining {
            mark(&host.name, None, "being drained");
        } else if host.cordoned {
            mark(&host.name, None, "cordoned");
        }
        for gpu in host.gpus.iter().filter(|g| g.health != "ok") {
            mark(&host.name, Some(&vec![gpu.index]), &format!("not healthy: {}", gpu.health));
        }
    }
    for cordon in &world.cordons {
        mark(&cordon.host, cordon.gpus.as_ref(), "cordoned");
    }
    for reservation in &world.reservations {
        let by = if reservation.by.is_empty() { "another" } else { &reservation.by };
        mark(&reservation.host, reservation.gpus.as_ref(), &format!("reserved by {by}"));
    }
    for running in &world.placements {
        let service = &world.services[service_at[running.service.as_str()]];
        if !running.movable.unwrap_or(service.movable) {
            for rank in &running.ranks {
                let why = format!(
                    "held by {}/{}, which stays where it is",
                    running.service, running.replica
                );
                mark(&rank.host, Some(&rank.gpus), &why);
            }
        }
    }
    out
}

fn add_incumbent(
    problem: &mut Problem<'_>,
    world: &WorldFile,
    running: &Running,
    (s, to): (usize, usize),
    host_at: &BTreeMap<&str, u32>,
    free: &[Vec<u64>],
    required: &BTreeMap<&str, Vec<u64>>,
) {
    let service = &world.services[s];
    let must_stay = !running.movable.unwrap_or(service.movable);
    let shape = running_shape(service, running);
    let known = shape.is_some_and(|shape| {
        service.shapes.contains(&shape) && shape_trouble(service, &shape).is_none()
    });
    let (mut alive, mut allowed) = (true, known);
    let (mut tight, mut link) = (0, 0);
    let mut pins = Vec::new();
    let mut groups: Vec<(Option<u32>, Option<u32>)> = Vec::new();
    let mut models = BTreeSet::new();
    for rank in &running.ranks {
        let h = host_at[rank.host.as_str()];
        let host = &world.hosts[h as usize];
        alive &= host.up;
        allowed &= !host.draining;
        allowed &= service.hosts.is_empty() || service.hosts.contains(&host.name);
        let mut pin = Pin { host: h, cells: Vec::new(), gpus: Vec::new() };
        for index in &rank.gpus {
            let Some(g) = host.gpus.iter().position(|g| g.index == *index) else { continue };
            let gpu = &host.gpus[g];
            alive &= gpu.health == "ok";
            models.insert((gpu.model.as_str(), gpu.memory_total));
            groups.push((gpu.island.filter(|_| gpu.mig.is_none()), gpu.numa));
            pin.gpus.push(g as u32);
            let cells = &problem.hosts[h as usize].cells;
            let cell = cells.iter().position(|c| c.gpus.contains(&(g as u32)));
            if let Some(c) = cell {
                match pin.cells.iter_mut().find(|(cell, _)| *cell == c as u32) {
                    Some((_, n)) => *n += 1,
                    None => pin.cells.push((c as u32, 1)),
                }
            }
            let requirement = service.require.as_deref().filter(|r| required.contains_key(r));
            if let Some(text) = requirement {
                allowed &= match cell {
                    Some(c) => required[text][h as usize] & (1 << c) != 0,
                    // Outside the cells, as on a cordoned host, it is asked again.
                    None => Requirement::parse(text)
                        .is_ok_and(|r| r.holds(&|f| fact(host, gpu, free[h as usize][g], f))),
                };
            }
            if let Some(shape) = &shape {
                let needed = needed(service, shape, gpu.memory_total.0);
                let free = free[h as usize][g];
                tight += i64::from(lacks_headroom(world, gpu.memory_total.0, free, needed));
            }
        }
        // Equal ranks, whole tensor-parallel groups.
        let tensor = shape.map_or(1, |s| s.tensor as usize);
        allowed &= rank.gpus.len() % tensor == 0;
        allowed &= running.ranks.iter().all(|other| other.gpus.len() == rank.gpus.len());
        pins.push(pin);
    }
    allowed &= models.len() == 1;
    let worst = match service.link {
        WorldLink::Nvlink => 0,
        WorldLink::Numa => 1,
        WorldLink::Any => 2,
    };
    for group in groups.chunks(shape.map_or(1, |s| s.tensor as usize)) {
        let cost = link_cost(group);
        allowed &= cost <= worst;
        link += i64::from(cost);
    }
    let racks: BTreeSet<u32> = pins.iter().map(|p| problem.hosts[p.host as usize].rack).collect();
    link += span_cost(pins.len(), racks.len());
    let i = problem.incumbents.len() as u32;
    let of = &mut problem.services[to];
    of.incumbents.push(i);
    let ranks = if alive { pins.len() as i64 } else { 0 };
    let incumbent = Incumbent {
        service: to as u32,
        replica: running.replica,
        shape: shape.unwrap_or(service.shapes[0]),
        ranks,
        displaced: 0,
        pins,
        link,
        tight,
        can_stay: must_stay || (alive && allowed),
        must_stay,
    };
    if running.outgoing {
        // It goes anyway: how it lies, and what the service wants now, is nothing to it.
        problem.incumbents.push(Incumbent {
            ranks: 0,
            displaced: if must_stay { 0 } else { ranks },
            link: 0,
            tight: 0,
            can_stay: must_stay || alive,
            ..incumbent
        });
        return;
    }
    for pin in &incumbent.pins {
        of.has[pin.host as usize] |= world.hosts[pin.host as usize].up;
    }
    problem.incumbents.push(incumbent);
}
