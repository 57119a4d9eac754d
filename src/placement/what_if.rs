//! Questions about a world: what if a host were lost, hosts were added, a hole were wanted, a replica lay elsewhere.
//! Worlds in, answers out; nothing is touched.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use super::global::file::HOLE;
use super::global::file::{
    Rank, Reservation, Running, WorldFile, WorldGpu, WorldHost, WorldLink, WorldService,
    WorldShape, WorldSpread,
};
use super::global::{
    Answer, Control, Helpers, Joined, Level, Offers, Share, Wrong, headroom, link_cost, solve,
    solve_as, solve_offering, vacated,
};
use crate::base::{Bytes, Hint, HostName, ServiceName};
use crate::engine::memory::gpu_memory;

/// A GPU of a hole is free when this share of its memory is.
const FREE_SHARE: f64 = 0.9;
/// Hosts that can be added at once.
const MAX_NEW_HOSTS: u32 = 1024;

/// A question. Without anything it asks for the best placement of all services.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WhatIf {
    /// Only these services may change, and what the lost hosts had; none: all.
    pub services: Vec<ServiceName>,
    /// As if these hosts were lost.
    pub without: Vec<HostName>,
    /// As if these hosts were there too.
    pub add: Vec<NewHosts>,
    /// Free so many GPUs for a gang; 0: the largest gang of any service.
    pub defrag: Option<u32>,
    /// As if this replica lay there.
    pub to: Option<ReplicaTo>,
    /// Name every host that was passed over, not just some.
    pub explain: bool,
}

/// Hosts that are not there (yet).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewHosts {
    /// How many.
    pub hosts: u32,
    /// GPUs of each, joined by `NVLink`.
    pub gpus: u32,
    /// Their model: `h200`.
    pub model: String,
}

/// Another place for a replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaTo {
    /// The service.
    pub service: ServiceName,
    /// Its number in the release.
    pub replica: u32,
    /// The host.
    pub host: HostName,
    /// The indices of the GPUs there.
    pub gpus: Vec<u32>,
}

/// The answer to a question.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WhatIfView {
    /// The world that was solved: what runs now, with what is only supposed. `gpudeck place` takes it.
    pub world: WorldFile,
    /// The best placement that was found.
    pub answer: Answer,
    /// What the present placement is worth, level by level.
    #[serde(default)]
    pub before: Vec<Level>,
    /// The largest gang that could be placed as it is now: GPUs of one model and size, within one island or on a host and in
    /// none.
    pub largest_gang_before: u64,
    /// The hole that was asked for.
    pub hole: Option<Hole>,
    /// What speaks against the place that was asked for.
    pub check: Option<PlaceCheck>,
    /// Services that could not be looked at, with the reason.
    pub left_out: BTreeMap<ServiceName, String>,
    /// Those of them with a mistake: their spec or their model cannot be placed as it is.
    #[serde(default)]
    pub mistaken: BTreeSet<ServiceName>,
}

/// A hole and what it costs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Hole {
    /// GPUs wanted.
    pub gpus: u32,
    /// Where it is; none: not even moving makes one.
    pub at: Option<Rank>,
    /// Replicas that are restarted for it.
    pub restarts: u32,
    /// Weights that are copied for it.
    pub copied: Bytes,
    /// The service that stands for it in a world: with it among the services the answer is this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stand_in: Option<WorldService>,
}

/// What speaks against a place.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlaceCheck {
    /// The rule that is violated: it cannot be there.
    pub violated: Option<String>,
    /// What becomes worse if it goes there.
    pub worse: Vec<String>,
    /// What becomes better.
    pub better: Vec<String>,
}

/// A question that cannot be answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct WhatIfError {
    /// Why.
    pub message: String,
    /// What to ask instead.
    pub suggestion: Option<String>,
}

impl Hint for WhatIfError {
    fn hint(&self) -> Option<String> {
        self.suggestion.clone()
    }
}

impl From<Wrong> for WhatIfError {
    fn from(wrong: Wrong) -> Self {
        Self { message: wrong.to_string(), suggestion: wrong.hint }
    }
}

fn error(message: impl Into<String>, suggestion: &str) -> WhatIfError {
    WhatIfError { message: message.into(), suggestion: Some(suggestion.to_owned()) }
}

impl FromStr for NewHosts {
    type Err = WhatIfError;

    /// `2xh200`: a host with two; `3x8xh200`: three hosts with eight each.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || {
            error(
                format!("`{}` is not a number of GPUs", crate::base::text::clean(text, 40)),
                "write for example 2xh200 (a host with two) or 3x8xh200 (three hosts with eight)",
            )
        };
        let number = |t: &str| t.parse::<u32>().ok().filter(|n| *n > 0);
        let parts: Vec<&str> = text.splitn(3, 'x').collect();
        let (hosts, gpus, model) = match parts.as_slice() {
            [hosts, gpus, model] if number(gpus).is_some() => (*hosts, *gpus, (*model).to_owned()),
            [gpus, model, rest] => ("1", *gpus, format!("{model}x{rest}")),
            [gpus, model] => ("1", *gpus, (*model).to_owned()),
            _ => return Err(bad()),
        };
        let (Some(hosts), Some(gpus)) = (number(hosts), number(gpus)) else { return Err(bad()) };
        if model.is_empty() {
            return Err(bad());
        }
        if gpus > 64 || hosts > MAX_NEW_HOSTS {
            return Err(error(
                format!("{text} is too much to suppose"),
                "at most 1024 hosts with 64 GPUs each",
            ));
        }
        Ok(Self { hosts, gpus, model })
    }
}

/// Answers a question about a world, whose services have their shapes in the order in which they are to be tried. Helpers
/// help where attempts are not bounded.
pub fn answer(
    world: WorldFile,
    question: &WhatIf,
    used: &mut dyn FnMut() -> f64,
    steps: u64,
    helpers: Option<Helpers<'_>>,
) -> Result<WhatIfView, WhatIfError> {
    let mut check = None;
    let mut supposed = world.clone();
    for host in &mut supposed.hosts {
        host.up &= !question.without.iter().any(|lost| lost.as_str() == host.name);
    }
    for new in &question.add {
        add_hosts(&mut supposed, new)?;
    }
    let mut offers = Offers::narrow(&mut supposed);
    let mut present = world;
    Offers::as_in(&supposed, &mut present);
    let mut now = as_it_is(&present, &present)?;
    let asked = supposed.clone();
    if !question.services.is_empty() {
        hold_others(&mut supposed, question);
    }
    let mut moved = None;
    if let Some(to) = &question.to {
        let moved = moved.insert(supposed.clone());
        check = Some(check_place(moved, to, &now, &asked)?);
    }
    let wanted = question.defrag.map(|gpus| want_hole(&mut supposed, gpus));
    let mut control =
        Control { used, first: &mut || (), max_steps: steps, explain: question.explain, helpers };
    let mut answer = match &moved {
        // Where one replica is moved by hand nothing else moves.
        Some(moved) => as_it_is(moved, &asked)?,
        None => solve_offering(&mut supposed, &mut offers, &mut control)?,
    };
    if Offers::as_in(&supposed, &mut present) {
        now = as_it_is(&present, &present)?;
    }
    let hole = match wanted {
        Some(gpus) => Some(take_hole(&mut supposed, &mut answer, gpus)?),
        None => None,
    };
    Ok(WhatIfView {
        world: supposed,
        answer,
        largest_gang_before: now.largest_gang,
        before: now.objective,
        hole,
        check,
        left_out: BTreeMap::new(),
        mistaken: BTreeSet::new(),
    })
}

/// What the present placement is worth: nothing may be moved, nothing is started. How replicas are to be kept apart is
/// as in the world that is asked about, where they may be moved.
fn as_it_is(world: &WorldFile, asked: &WorldFile) -> Result<Answer, WhatIfError> {
    let mut still = world.clone();
    for service in &mut still.services {
        let here = still.placements.iter().filter(|p| p.service == service.name && !p.outgoing);
        service.replicas = u32::try_from(here.count()).unwrap_or(u32::MAX);
    }
    for running in &mut still.placements {
        running.movable = Some(false);
    }
    let mut control = Control {
        used: &mut || 0.0,
        first: &mut || (),
        max_steps: 64,
        explain: false,
        helpers: None,
    };
    Ok(solve_as(&still, Some(asked), &mut control)?)
}

/// The services that are not asked about stay where they are, unless that host is lost.
fn hold_others(world: &mut WorldFile, question: &WhatIf) {
    let lost: BTreeSet<&str> = question.without.iter().map(HostName::as_str).collect();
    let asked: BTreeSet<&str> = question.services.iter().map(ServiceName::as_str).collect();
    for running in &mut world.placements {
        let is_lost = running.ranks.iter().any(|r| lost.contains(r.host.as_str()));
        if !asked.contains(running.service.as_str()) && !is_lost {
            running.movable = Some(false);
        }
    }
    let mut counts: BTreeMap<String, u32> = BTreeMap::new();
    for running in world.placements.iter().filter(|p| !p.outgoing) {
        *counts.entry(running.service.clone()).or_default() += 1;
    }
    for service in &mut world.services {
        if !asked.contains(service.name.as_str()) {
            service.replicas = counts.get(&service.name).copied().unwrap_or(0);
        }
    }
}

/// GPUs as the deck has them where it has that model, else by the table of models.
fn add_hosts(world: &mut WorldFile, new: &NewHosts) -> Result<(), WhatIfError> {
    let plain = |text: &str| {
        text.to_lowercase().chars().filter(char::is_ascii_alphanumeric).collect::<String>()
    };
    let wanted = plain(&new.model);
    let known =
        world.hosts.iter().flat_map(|h| &h.gpus).find(|g| plain(&g.model).contains(&wanted));
    let (model, total) = match (known, gpu_memory(&new.model)) {
        (Some(gpu), _) => (gpu.model.clone(), gpu.memory_total),
        (None, Some(memory)) => (new.model.to_uppercase(), memory),
        (None, None) => {
            return Err(error(
                format!("what a `{}` is, is not known", crate::base::text::clean(&new.model, 40)),
                "name a GPU as in `gpudeck model inspect --gpu`: h100-80, h200, a100-40, l40s",
            ));
        }
    };
    for _ in 0..new.hosts {
        let taken: BTreeSet<&str> = world.hosts.iter().map(|h| h.name.as_str()).collect();
        // One more than there are hosts: one of them is free.
        let most = world.hosts.len() + 1;
        let name = (1..=most).map(|n| format!("new{n}")).find(|n| !taken.contains(n.as_str()));
        let gpu = |index: u32| WorldGpu {
            index,
            uuid: None,
            model: model.clone(),
            memory_total: total,
            memory_free: None,
            health: "ok".to_owned(),
            island: (new.gpus > 1).then_some(0),
            numa: None,
            pcie_switch: None,
            mig: None,
        };
        world.hosts.push(WorldHost {
            name: name.unwrap_or_default(),
            labels: BTreeMap::new(),
            rack: None,
            zone: None,
            up: true,
            cordoned: false,
            draining: false,
            cpus: None,
            memory_free: None,
            nics: Vec::new(),
            gpu_trouble: None,
            gpus: (0..new.gpus).map(gpu).collect(),
        });
    }
    Ok(())
}

/// Adds the stand-in for a gang: the last to be placed, and worth any move.
fn want_hole(world: &mut WorldFile, gpus: u32) -> u32 {
    let of = |s: &WorldService| s.shapes.iter().map(|shape| shape.tensor).min().unwrap_or(1);
    let (gpus, for_nvlink) = match gpus {
        0 => {
            let largest = world.services.iter().map(of).max().unwrap_or(1);
            let mut such = world.services.iter().filter(|s| of(s) == largest);
            (largest, such.all(|s| s.link == WorldLink::Nvlink))
        }
        n => (n, false),
    };
    let (link, require) = joined_hole(world, gpus, for_nvlink);
    let lowest = world.services.iter().map(|s| s.priority).min().unwrap_or(0);
    world.services.push(WorldService {
        name: HOLE.to_owned(),
        replicas: 1,
        shapes: vec![WorldShape { tensor: gpus, pipeline: 1, data: 1, memory: Bytes::ZERO }],
        priority: lowest.saturating_sub(1),
        require,
        hosts: Vec::new(),
        spread: WorldSpread::None,
        link,
        heads: None,
        kv_heads: None,
        kv_bytes: Bytes::ZERO,
        memory_share: Some(FREE_SHARE),
        within_share: false,
        weights_bytes: Bytes::ZERO,
        weights_on: Vec::new(),
        movable: true,
        one_host: true,
    });
    gpus
}

/// What keeps a hole within what the objective counts together, where that could have so many free GPUs: those of one
/// model and size in an island, or on a host beside its islands.
fn joined_hole(world: &WorldFile, gpus: u32, for_nvlink: bool) -> (WorldLink, Option<String>) {
    let (mut island, mut beside, mut both) = (false, false, false);
    for (host, free) in world.hosts.iter().zip(vacated(world)).filter(|_| gpus > 1) {
        let mut alike: BTreeMap<(&str, Bytes), BTreeMap<Option<u32>, u32>> = BTreeMap::new();
        for (gpu, free) in host.gpus.iter().zip(free).filter(|(gpu, _)| gpu.mig.is_none()) {
            if free.is_some_and(|free| free >= of_hole(gpu)) {
                let pools = alike.entry((&gpu.model, gpu.memory_total)).or_default();
                *pools.entry(gpu.island).or_default() += 1;
            }
        }
        for pools in alike.into_values() {
            let has = |is_island: bool| {
                pools.iter().any(|(island, n)| island.is_some() == is_island && *n >= gpus)
            };
            island |= has(true);
            beside |= has(false);
            both |= pools.len() > 1 && pools.values().sum::<u32>() >= gpus;
        }
    }
    match (island, beside) {
        // Wherever it lies on a host, it lies in one.
        (true, true) if !both && !for_nvlink => (WorldLink::Any, None),
        (true, _) => (WorldLink::Nvlink, None),
        // What is not known is not less or more than anything.
        (false, true) => (WorldLink::Any, Some("!(gpu.island >= 0)".to_owned())),
        (false, false) => (WorldLink::Any, None),
    }
}

/// What a GPU must have free to be one of a hole.
fn of_hole(gpu: &WorldGpu) -> u64 {
    Share { of_total: Some(FREE_SHARE), holds_need: false }.needed(0, gpu.memory_total.0)
}

/// What the stand-in itself is worth on the levels `link` and `headroom`.
fn cost_of_hole(world: &WorldFile, at: &Rank) -> (i64, i64) {
    let on = world.hosts.iter().zip(vacated(world)).find(|(host, _)| host.name == at.host);
    let gpus = on.into_iter().flat_map(|(host, free)| host.gpus.iter().zip(free));
    let gpus: Vec<(&WorldGpu, Option<u64>)> =
        gpus.filter(|(gpu, _)| at.gpus.contains(&gpu.index)).collect();
    let tight = gpus.iter().filter(|(gpu, free)| {
        let roomy = of_hole(gpu).saturating_add(headroom(world, gpu.memory_total.0));
        free.is_some_and(|free| free < roomy)
    });
    let tight = i64::try_from(tight.count()).unwrap_or(i64::MAX);
    (i64::from(link_cost(gpus.iter().map(|(gpu, _)| Joined::of(gpu)))), tight)
}

/// The stand-in is no service of anybody's: it is taken out of the answer again.
fn take_hole(world: &mut WorldFile, answer: &mut Answer, gpus: u32) -> Result<Hole, WhatIfError> {
    let asked = world.services.iter().find(|s| s.name == HOLE).cloned();
    world.services.retain(|s| s.name != HOLE);
    let stand_in = answer.services.iter().position(|s| s.name == HOLE);
    let stand_in = stand_in.map(|at| answer.services.remove(at));
    let rank = stand_in.as_ref().and_then(|s| s.replicas.first()?.ranks.first());
    let at = rank.map(|r| Rank { host: r.host.clone(), gpus: r.gpus.clone() });
    answer.wanted = answer.wanted.saturating_sub(1);
    if let Some(at) = &at {
        answer.placed = answer.placed.saturating_sub(1);
        let (link, tight) = cost_of_hole(world, at);
        for level in &mut answer.objective {
            let own = match &*level.name {
                "link" => link,
                "headroom" => tight,
                _ => continue,
            };
            level.value -= own;
            level.bound = (level.bound - own).max(0);
            level.gap = (level.value - level.bound) as f64 / level.value.max(1) as f64;
        }
        // The hole is free, with whatever is free beside it.
        let then = as_it_is(&as_answered(world, answer), world)?;
        answer.largest_gang = then.largest_gang;
        for level in answer.objective.iter_mut().filter(|l| l.name == "fragmentation") {
            level.value = i64::try_from(then.largest_gang).unwrap_or(i64::MAX);
            level.bound = level.bound.max(level.value);
        }
    }
    for level in answer.objective.iter_mut().filter(|l| l.name == "placed") {
        level.value -= i64::from(at.is_some());
        level.bound -= i64::from(at.is_some());
        level.by_priority.pop();
    }
    Ok(Hole {
        gpus,
        at,
        restarts: u32::try_from(answer.moves.iter().filter(|m| m.serving).count())
            .unwrap_or(u32::MAX),
        copied: Bytes(answer.copies.iter().fold(0, |n, c| n.saturating_add(c.bytes.0))),
        stand_in: asked,
    })
}

/// The world once all is where the answer puts it.
fn as_answered(world: &WorldFile, answer: &Answer) -> WorldFile {
    let mut then = world.clone();
    then.placements.clear();
    for service in &answer.services {
        then.placements.extend(service.replicas.iter().map(|replica| {
            Running {
                service: service.name.clone(),
                replica: replica.replica,
                shape: Some(replica.shape),
                memory: Some(replica.memory_per_gpu),
                movable: Some(false),
                outgoing: false,
                ranks: replica
                    .ranks
                    .iter()
                    .map(|r| Rank { host: r.host.clone(), gpus: r.gpus.clone() })
                    .collect(),
            }
        }));
    }
    // What is free is only what the placement says.
    for gpu in then.hosts.iter_mut().flat_map(|h| &mut h.gpus) {
        gpu.memory_free = None;
    }
    then
}

/// Puts a replica where it was asked for, and says what speaks against that.
fn check_place(
    world: &mut WorldFile,
    to: &ReplicaTo,
    now: &Answer,
    asked: &WorldFile,
) -> Result<PlaceCheck, WhatIfError> {
    let is_it =
        |p: &Running| p.service == to.service.as_str() && p.replica == to.replica && !p.outgoing;
    let Some(old) = world.placements.iter().find(|p| is_it(p)).cloned() else {
        return Err(error(
            format!("no replica {} of {} runs", to.replica, to.service),
            "`gpudeck status` lists what runs",
        ));
    };
    let mut trial = world.clone();
    trial.placements.retain(|p| !is_it(p));
    for running in &mut trial.placements {
        running.movable = Some(false);
    }
    // The successor starts before the replica stops: its own GPUs are not free for it.
    for rank in &old.ranks {
        trial.reservations.push(Reservation {
            host: rank.host.clone(),
            gpus: Some(rank.gpus.clone()),
            by: format!("{}/{} until it has moved", old.service, old.replica),
        });
    }
    let others: Vec<(String, usize)> = trial
        .services
        .iter()
        .map(|s| (s.name.clone(), trial.placements.iter().filter(|p| p.service == s.name).count()))
        .collect();
    for (service, (_, count)) in trial.services.iter_mut().zip(others) {
        service.replicas = u32::try_from(count).unwrap_or(u32::MAX);
        if service.name == to.service.as_str() {
            service.replicas = service.replicas.saturating_add(1);
            // Only the shape that it has.
            let count: usize = old.ranks.iter().map(|r| r.gpus.len()).sum();
            let is_its = |s: &WorldShape| match old.shape {
                Some(own) => (s.tensor, s.pipeline, s.data) == (own.tensor, own.pipeline, own.data),
                None => s.gpus() == count as u64,
            };
            let same: Vec<WorldShape> = service.shapes.iter().copied().filter(is_its).collect();
            if !same.is_empty() {
                service.shapes = same;
            }
        }
    }
    let violated = violated(&mut trial, to)?;
    let mut check = PlaceCheck { violated, ..PlaceCheck::default() };
    if let Some(running) = world.placements.iter_mut().find(|p| is_it(p))
        && check.violated.is_none()
    {
        running.ranks = vec![Rank { host: to.host.to_string(), gpus: to.gpus.clone() }];
        let free: BTreeMap<(String, u32), Bytes> = old
            .ranks
            .iter()
            .flat_map(|r| {
                r.gpus.iter().map(|g| ((r.host.clone(), *g), old.memory.unwrap_or_default()))
            })
            .collect();
        hand_over_memory(world, to, &free, old.memory.unwrap_or_default());
        compare(now, &as_it_is(world, asked)?, &mut check);
    }
    Ok(check)
}

/// The memory that a moved replica takes goes with it.
fn hand_over_memory(
    world: &mut WorldFile,
    to: &ReplicaTo,
    left: &BTreeMap<(String, u32), Bytes>,
    memory: Bytes,
) {
    for host in &mut world.hosts {
        let name = host.name.clone();
        for gpu in &mut host.gpus {
            let Some(free) = gpu.memory_free.as_mut() else { continue };
            if let Some(more) = left.get(&(name.clone(), gpu.index)) {
                *free = Bytes(free.0.saturating_add(more.0).min(gpu.memory_total.0));
            }
            if name == to.host.as_str() && to.gpus.contains(&gpu.index) {
                *free = free.saturating_sub(memory);
            }
        }
    }
}

/// The rule against a replica on just these GPUs; none: it can be there.
fn violated(trial: &mut WorldFile, to: &ReplicaTo) -> Result<Option<String>, WhatIfError> {
    let Some(host) = trial.hosts.iter().find(|h| h.name == to.host.as_str()) else {
        return Ok(Some(format!("there is no host {}", to.host)));
    };
    if let Some(missing) = to.gpus.iter().find(|i| host.gpus.iter().all(|g| g.index != **i)) {
        return Ok(Some(format!("{} has no GPU {missing}", to.host)));
    }
    let Some(service) = trial.services.iter_mut().find(|s| s.name == to.service.as_str()) else {
        return Ok(Some(format!("{} is not known", to.service)));
    };
    let needed = service.shapes.iter().map(WorldShape::gpus).min().unwrap_or(0);
    let has = to.gpus.iter().collect::<BTreeSet<_>>().len();
    if needed != has as u64 {
        return Ok(Some(format!("{has} GPUs are marked, it needs {needed}")));
    }
    if !service.hosts.is_empty() && !service.hosts.contains(&to.host.to_string()) {
        return Ok(Some(format!("{} may not lie on {}", to.service, to.host)));
    }
    service.hosts = vec![to.host.to_string()];
    service.replicas = 1;
    let name = service.name.clone();
    // What lies there is held by somebody; whatever else is free there is not what was asked for.
    let mut held: Vec<Reservation> = Vec::new();
    for rank in trial.placements.iter().flat_map(|p| p.ranks.iter().map(move |r| (p, r))) {
        let (running, rank) = rank;
        let by = format!("{}/{}", running.service, running.replica);
        held.push(Reservation { host: rank.host.clone(), gpus: Some(rank.gpus.clone()), by });
    }
    trial.placements.clear();
    trial.services.retain(|s| s.name == name);
    trial.reservations.extend(held);
    let here = |r: &&Reservation| r.host == to.host.as_str();
    let marked = |r: &&Reservation| {
        r.gpus.as_ref().is_none_or(|gpus| gpus.iter().any(|g| to.gpus.contains(g)))
    };
    if let Some(holder) = trial.reservations.iter().filter(here).find(marked) {
        return Ok(Some(format!("held by {}", holder.by)));
    }
    let host = trial.hosts.iter().find(|h| h.name == to.host.as_str());
    let sick = host
        .into_iter()
        .flat_map(|h| &h.gpus)
        .find(|g| to.gpus.contains(&g.index) && g.health != "ok");
    if let Some(gpu) = sick {
        return Ok(Some(format!("GPU {} is not healthy: {}", gpu.index, gpu.health)));
    }
    let others = host.into_iter().flat_map(|h| &h.gpus).map(|g| g.index);
    let others: Vec<u32> = others.filter(|i| !to.gpus.contains(i)).collect();
    let host = to.host.to_string();
    trial.reservations.push(Reservation { host, gpus: Some(others), by: "not marked".to_owned() });
    let mut control = Control {
        used: &mut || 0.0,
        first: &mut || (),
        max_steps: 256,
        explain: true,
        helpers: None,
    };
    let answer = solve(trial, &mut control)?;
    let Some(service) = answer.services.first().filter(|s| s.placed == 0) else { return Ok(None) };
    let of_host =
        |r: &&super::global::answer::Rejected| r.hosts.iter().any(|h| h == to.host.as_str());
    let why = service.rejected.iter().find(of_host).map(|r| r.reason.clone());
    Ok(why.or_else(|| service.unplaced.clone()).or_else(|| Some("it does not fit".to_owned())))
}

/// Which levels of the objective get worse and which better.
fn compare(before: &Answer, after: &Answer, check: &mut PlaceCheck) {
    for (old, new) in before.objective.iter().zip(&after.objective) {
        if old.value == new.value || old.name == "placed" || old.name == "moves" {
            continue;
        }
        let value = |v: i64| match &*old.name {
            "weights" => Bytes(v.unsigned_abs()).to_string(),
            _ => v.to_string(),
        };
        let text = format!("{}: {} → {}", old.unit, value(old.value), value(new.value));
        let better = (new.value < old.value) == (old.sense == "min");
        if better { check.better.push(text) } else { check.worse.push(text) }
    }
}

#[cfg(test)]
#[path = "what_if_tests.rs"]
mod tests;
