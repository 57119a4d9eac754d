//! Why a host was taken or passed over, and the smallest change that would help.

use std::collections::{BTreeMap, BTreeSet};

use super::demand::{Demand, PlacedReplica, Refusal, ShapeNeed};
use super::global::answer::{Rejected, ServiceAnswer};
use super::global::{Joined, ON_NODE, ON_SWITCH, link_cost};
use super::rules::{available, excluded, excluded_by_spec, needed_on, occupants, unmet};
use super::service::fitting;
use super::world::{GpuCapacity, HostCapacity};
use crate::base::{Bytes, text, wrap};
use crate::spec::{DeviceKind, Link, ParallelShape};

/// What these GPUs are and how they are joined, which says why these.
pub(super) fn chosen(gpus: &[&GpuCapacity], groups: &[Vec<&GpuCapacity>]) -> String {
    let name = gpus.first().map_or(String::new(), |g| text::clean(&g.name, 40));
    let joined =
        |g: &&GpuCapacity| Joined { island: g.island, pcie_switch: g.pcie_switch, numa: g.numa };
    let links = |group: &Vec<&GpuCapacity>| link_cost(group.iter().map(joined));
    let worst = groups.iter().map(links).max().unwrap_or(0);
    let near = match (groups.iter().map(Vec::len).max().unwrap_or(1), worst) {
        (1, _) => "",
        (_, 0) => ", joined by NVLink",
        (_, ON_SWITCH) => ", on one PCIe switch without NVLink",
        (_, ON_NODE) => ", on one NUMA node without NVLink",
        _ => ", neither joined by NVLink nor on one NUMA node: slow",
    };
    format!("{name}{near}")
}

/// The replicas that have the same reason in a line: `replicas 0-3: H80, joined by NVLink`. Where each is stands in
/// its own row.
pub(super) fn together(replicas: impl Iterator<Item = (u32, String)>) -> Vec<String> {
    let mut all: Vec<(String, Vec<u32>)> = Vec::new();
    for (replica, why) in replicas {
        match all.iter_mut().find(|(known, _)| *known == why) {
            Some((_, same)) => same.push(replica),
            None => all.push((why, vec![replica])),
        }
    }
    let line = |(why, replicas): (String, Vec<u32>)| {
        let word = if replicas.len() == 1 { "replica" } else { "replicas" };
        format!("{word} {}: {why}", wrap::ranges(replicas))
    };
    all.into_iter().map(line).collect()
}

/// A line for each host that got no replica.
pub(super) fn passed_over(
    hosts: &[&HostCapacity],
    demand: &Demand,
    need: ShapeNeed,
    placed: &[PlacedReplica],
    answer: Option<&ServiceAnswer>,
) -> Vec<String> {
    // Where it would fit, the solver knows on which level it would be worse.
    let worse = |host: &HostCapacity| {
        let rejected = &answer?.rejected;
        let of_host = |r: &&Rejected| r.hosts.iter().any(|h| h == host.name.as_str());
        rejected.iter().find(of_host).map(|r| r.reason.clone())
    };
    let without = hosts.iter().filter(|h| placed.iter().all(|p| p.host != h.name));
    without
        .map(|host| {
            let why = reason(host, demand, need)
                .or_else(|| worse(host))
                .unwrap_or_else(|| "not needed".to_owned());
            format!("{}: {why}", host.name)
        })
        .collect()
}

/// The one reason that counts why a replica does not fit on a host; none if it does.
fn reason(host: &HostCapacity, demand: &Demand, need: ShapeNeed) -> Option<String> {
    if let Some(why) = excluded(host, demand) {
        return Some(why);
    }
    if demand.device == DeviceKind::Cpu {
        let reusable: u64 = demand
            .reuse
            .iter()
            .filter(|r| r.host == host.name)
            .fold(0, |n, r| n.saturating_add(r.memory_per_device.0));
        let has = host.memory_free.saturating_add(Bytes(reusable));
        let wanted = need.memory_per_device;
        return (has < wanted).then(|| format!("{has} host memory free, {wanted} needed"));
    }
    let wanted = need.devices();
    if host.gpus.is_empty() {
        return Some(host.gpu_trouble.clone().unwrap_or_else(|| "it has no GPU".to_owned()));
    }
    let gpus: Vec<&GpuCapacity> = host.usable_by(wanted).collect();
    if gpus.len() < wanted {
        let word = if gpus.len() == 1 { "GPU" } else { "GPUs" };
        let parts = match host.gpus.len() - gpus.len() {
            0 => String::new(),
            n => format!(" and {n} MIG instances, which are not joined"),
        };
        return Some(format!("it has {} {word}{parts}, {wanted} needed", gpus.len()));
    }
    let all = gpus.len();
    let short = |gpus: &[&GpuCapacity], what: &str| {
        (gpus.len() < wanted)
            .then(|| format!("GPUs {what}: {} of {all}, {wanted} needed", gpus.len()))
    };
    let wrong: Vec<String> = gpus.iter().filter_map(|g| unmet(host, Some(g), demand)).collect();
    if gpus.len() - wrong.len() < wanted
        && let Some(why) = wrong.first()
    {
        return Some(why.clone());
    }
    let large: Vec<&GpuCapacity> = gpus
        .into_iter()
        .filter(|g| unmet(host, Some(g), demand).is_none())
        .filter(|g| g.total >= needed_on(g, demand, need))
        .collect();
    if large.is_empty() {
        let largest = host.gpus.iter().max_by_key(|g| g.total)?;
        let why = match demand.memory_share.filter(|_| demand.within_share) {
            Some(share) => format!(": the engine takes {:.0} % of a GPU", share * 100.0),
            None => String::new(),
        };
        let needed = needed_on(largest, demand, need);
        return Some(format!("its GPUs have {}, {needed} needed{why}", largest.total));
    }
    if let Some(why) = short(&large, &format!("of {}", need.memory_per_device)) {
        return Some(why);
    }
    let healthy: Vec<&GpuCapacity> =
        large.into_iter().filter(|g| g.refuses_new().is_none()).collect();
    if let Some(why) = short(&healthy, "that are large enough and healthy") {
        if let Some(cordoned) = cordoned_gpus(host, demand, need) {
            return Some(format!("{why}; {cordoned}"));
        }
        let sick = host.gpus.iter().find_map(|g| {
            Some(format!("; GPU {}: {}", g.label(), text::clean(&g.refuses_new()?, 80)))
        });
        return Some(why + &sick.unwrap_or_default());
    }
    let occupied = occupants(host, demand);
    let is_ours = |g: &GpuCapacity| occupied.contains_key(&g.device());
    let ours: Vec<&GpuCapacity> =
        healthy.into_iter().filter(|g| g.reserved_by.is_none() || is_ours(g)).collect();
    if let Some(why) = short(&ours, "not held by other services") {
        if let Some(cordoned) = cordoned_gpus(host, demand, need) {
            return Some(format!("{why}; {cordoned}"));
        }
        let holders: BTreeSet<&str> =
            host.gpus.iter().filter_map(|g| g.reserved_by.as_deref()).collect();
        let holders: Vec<&str> = holders.into_iter().take(4).collect();
        return Some(format!("{why}; held by {}", holders.join(", ")));
    }
    let free: Vec<&GpuCapacity> = ours
        .into_iter()
        .filter(|g| available(g, is_ours(g)) >= needed_on(g, demand, need))
        .collect();
    let needed = host.gpus.iter().map(|g| needed_on(g, demand, need)).max().unwrap_or_default();
    short(&free, &format!("with {needed} free")).or_else(|| unjoined(&free, demand, need.shape))
}

/// The cordoned GPUs with which a replica would have room, and what opens them; none: that alone would not do.
fn cordoned_gpus(host: &HostCapacity, demand: &Demand, need: ShapeNeed) -> Option<String> {
    let occupied = occupants(host, demand);
    let suits = |g: &&GpuCapacity| {
        g.healthy.is_ok()
            && (g.reserved_by.is_none() || occupied.contains_key(&g.device()))
            && g.total >= needed_on(g, demand, need)
            && unmet(host, Some(g), demand).is_none()
    };
    let (closed, open): (Vec<&GpuCapacity>, Vec<&GpuCapacity>) =
        host.usable_by(need.devices()).filter(suits).partition(|g| g.cordoned.is_some());
    let first = closed.first().filter(|_| closed.len() + open.len() >= need.devices())?;
    let by = text::clean(first.cordoned.as_deref().unwrap_or_default(), 80);
    let labels: Vec<String> = closed.iter().map(|g| g.label()).collect();
    let (noun, is) = if closed.len() == 1 { ("GPU", "is") } else { ("GPUs", "are") };
    let opens = format!("`gpudeck uncordon {}/{}`", host.name, first.label());
    Some(format!("{noun} {} {is} cordoned by {by}: {opens}", labels.join(", ")))
}

/// That too few of these GPUs are joined as the service asks for.
fn unjoined(free: &[&GpuCapacity], demand: &Demand, shape: ParallelShape) -> Option<String> {
    let tensor = usize::try_from(shape.tensor.get()).unwrap_or(usize::MAX);
    let all: [JoinedBy; 3] = [|g| g.island, |g| g.pcie_switch, |g| g.numa];
    let (kinds, by) = match demand.placement.link {
        Link::Any => return None,
        Link::Nvlink => (1, "joined by NVLink"),
        Link::PcieSwitch => (2, "on one PCIe switch"),
        Link::Numa => (3, "of one NUMA node"),
    };
    let kinds = all.get(..kinds).unwrap_or_default();
    let wanted = usize::try_from(shape.groups()).unwrap_or(usize::MAX);
    let groups = groups_of(tensor, free, kinds);
    if tensor < 2 || groups >= wanted {
        return None;
    }
    let sets = kinds.iter().flat_map(|of| by_number(free, *of).into_values());
    let joined = sets.map(|set| set.len()).max().unwrap_or(0);
    Some(match wanted {
        1 => format!("at most {joined} of its free GPUs are {by}, {tensor} needed"),
        _ => {
            format!("its free GPUs make {groups} groups of {tensor} that are {by}, {wanted} needed")
        }
    })
}

/// What joins a GPU to others: the number of its island, its switch or its NUMA node.
type JoinedBy = fn(&GpuCapacity) -> Option<u32>;

/// The GPUs that are joined so, by that number.
fn by_number<'a>(gpus: &[&'a GpuCapacity], of: JoinedBy) -> BTreeMap<u32, Vec<&'a GpuCapacity>> {
    let mut sets: BTreeMap<u32, Vec<&GpuCapacity>> = BTreeMap::new();
    for gpu in gpus.iter().copied() {
        if let Some(number) = of(gpu) {
            sets.entry(number).or_default().push(gpu);
        }
    }
    sets
}

/// How many groups of so many GPUs there are, each joined by one of these kinds: as many as the first makes, then those
/// that the next makes of what that leaves over. Where a set is no multiple, those stay that have most others left.
fn groups_of(tensor: usize, gpus: &[&GpuCapacity], kinds: &[JoinedBy]) -> usize {
    let Some((of, nearer)) = kinds.split_first() else { return 0 };
    if tensor == 0 {
        return 0;
    }
    let mut groups = 0;
    let mut left: Vec<&GpuCapacity> =
        gpus.iter().copied().filter(|gpu| of(gpu).is_none()).collect();
    for (number, mut set) in by_number(gpus, *of) {
        let beside = |gpu: &&GpuCapacity| {
            let others = gpus.iter().filter(|other| of(other) != Some(number));
            let mates = |next: &JoinedBy| {
                let is_mate =
                    |other: &&&GpuCapacity| next(gpu).is_some() && next(other) == next(gpu);
                others.clone().filter(is_mate).count()
            };
            nearer.iter().map(mates).collect::<Vec<usize>>()
        };
        set.sort_by_key(beside);
        groups += set.len() / tensor;
        left.extend(set.split_off(set.len() - set.len() % tensor));
    }
    groups + groups_of(tensor, &left, nearer)
}

/// A cordoned host that would do, but for that.
fn cordoned<'a>(
    hosts: &[&'a HostCapacity],
    demand: &Demand,
    need: ShapeNeed,
) -> Option<&'a HostCapacity> {
    let would_do = |host: &HostCapacity| {
        if !host.cordoned || host.draining || host.upgrading {
            return false;
        }
        let opened = HostCapacity { cordoned: false, ..host.clone() };
        reason(&opened, demand, need).is_none()
    };
    hosts.iter().copied().find(|host| would_do(host))
}

/// What opens a host where none may be used.
fn way_to_a_host(hosts: &[&HostCapacity], demand: &Demand, need: ShapeNeed) -> String {
    if hosts.is_empty() {
        return "add a host to deck.toml".to_owned();
    }
    let mut ways: Vec<String> = Vec::new();
    let lacks = |h: &&&HostCapacity| h.up && demand.lacking.contains_key(&h.name);
    let is_away = |h: &&&HostCapacity| !h.up && excluded_by_spec(h, demand).is_none();
    let by_spec = |h: &HostCapacity| {
        excluded_by_spec(h, demand).is_some() && !demand.lacking.contains_key(&h.name)
    };
    ways.extend(
        cordoned(hosts, demand, need).map(|host| format!("`gpudeck uncordon {}`", host.name)),
    );
    ways.extend(hosts.iter().find(lacks).map(|host| format!("see to what {} lacks", host.name)));
    ways.extend(hosts.iter().find(is_away).map(|host| format!("bring {} back", host.name)));
    if hosts.iter().any(|host| by_spec(host)) {
        ways.push("loosen `placement` in the spec".to_owned());
    }
    match ways.len() {
        0 => "add a host to deck.toml".to_owned(),
        _ => ways.join(", or "),
    }
}

/// Why it cannot be placed, and the smallest change that would help.
pub(super) fn refusal(
    hosts: &[&HostCapacity],
    demand: &Demand,
    best: Option<(ShapeNeed, Vec<PlacedReplica>)>,
) -> Refusal {
    let refuse = |message: String, fitting: usize, reasons: Vec<String>, change: Option<String>| {
        let fitting = u32::try_from(fitting).unwrap_or(u32::MAX);
        Refusal { service: demand.service.clone(), message, fitting, reasons, change }
    };
    let Some((need, placed)) = best else {
        return refuse("no shape can be tried".to_owned(), 0, Vec::new(), None);
    };
    let reasons: Vec<String> = hosts
        .iter()
        .map(|host| {
            let here = placed.iter().filter(|p| p.host == host.name).count();
            let why = match here {
                0 => reason(host, demand, need).unwrap_or_else(|| "taken".to_owned()),
                n => format!("room for {n} replica{} and no more", if n == 1 { "" } else { "s" }),
            };
            format!("{}: {why}", host.name)
        })
        .collect();
    let eligible: Vec<&&HostCapacity> =
        hosts.iter().filter(|h| excluded(h, demand).is_none()).collect();
    if eligible.is_empty() {
        if let Some((message, change)) = no_label(hosts, demand) {
            return refuse(message, 0, reasons, Some(change));
        }
        let change = way_to_a_host(hosts, demand, need);
        return refuse("no host may be used".to_owned(), 0, reasons, Some(change));
    }
    if let Some((message, change)) = unmet_everywhere(&eligible, demand) {
        return refuse(message, 0, reasons, Some(change));
    }
    let change = change(hosts, demand, need, placed.len())
        .or_else(|| (demand.device == DeviceKind::Gpu).then(|| free_some(&eligible, demand, need)));
    // The smallest that a person can do.
    let opens =
        cordoned(hosts, demand, need).map(|host| format!("`gpudeck uncordon {}`", host.name));
    let change = match (opens, change) {
        (Some(opens), Some(change)) => Some(format!("{opens}, or {change}")),
        (opens, change) => opens.or(change),
    };
    if !placed.is_empty() {
        let message = format!("{} of {} replicas fit", placed.len(), demand.replicas);
        return refuse(message, placed.len(), reasons, change);
    }
    if demand.device == DeviceKind::Gpu {
        let wanted = demand.shapes.iter().map(ShapeNeed::devices).min().unwrap_or(1);
        let count = |h: &HostCapacity| h.usable_by(wanted).count();
        let most = eligible.iter().max_by_key(|h| count(h));
        if let Some(host) = most.filter(|h| count(h) < wanted) {
            let message = format!(
                "a replica needs {wanted} GPUs, the largest host ({}) has {}; \
                 spanning hosts is not supported yet",
                host.name,
                count(host)
            );
            let change = match count(host) {
                0 => {
                    "add a host with GPUs, or set device = \"cpu\" where the engine can".to_owned()
                }
                n => format!("set {} or less, or use smaller weights", fewer(n, need.shape)),
            };
            return refuse(message, 0, reasons, Some(change));
        }
        let largest = eligible
            .iter()
            .flat_map(|h| h.gpus.iter().map(move |g| (g, *h)))
            .max_by_key(|(g, _)| g.total);
        // With every shape the GPUs are too small, even empty ones.
        let too_large =
            |n: &ShapeNeed| largest.is_some_and(|(g, _)| g.total < needed_on(g, demand, *n));
        if demand.shapes.iter().all(too_large)
            && let Some((gpu, host)) = largest
        {
            let smallest = demand.shapes.iter().min_by_key(|n| n.memory_per_device);
            let devices = smallest.map_or(1, ShapeNeed::devices);
            let message = format!(
                "no GPU is large enough: {} needed on each of {devices} GPU{}, the largest is {} on {} with {}",
                smallest.map_or(Bytes::ZERO, |n| needed_on(gpu, demand, *n)),
                if devices == 1 { "" } else { "s" },
                text::clean(&gpu.name, 40),
                host.name,
                gpu.total
            );
            let change = change.unwrap_or_else(|| {
                "use a quantised model, a shorter `context`, or more GPUs per replica".to_owned()
            });
            return refuse(message, 0, reasons, Some(change));
        }
    }
    let what = match demand.device {
        DeviceKind::Cpu => format!("no host has {} of memory free", need.memory_per_device),
        DeviceKind::Gpu if need.devices() == 1 => {
            format!("no host has a GPU with {} free", wanted_free(&eligible, demand, need))
        }
        DeviceKind::Gpu => format!(
            "no host has {} GPUs with {} free on each",
            need.devices(),
            wanted_free(&eligible, demand, need)
        ),
    };
    refuse(what, 0, reasons, change)
}

/// The first label that is wanted and that no host has, with those that hosts do have.
fn no_label(hosts: &[&HostCapacity], demand: &Demand) -> Option<(String, String)> {
    let (key, value) = demand
        .placement
        .labels
        .iter()
        .find(|(key, value)| hosts.iter().all(|h| h.labels.get(*key) != Some(*value)))
        .filter(|_| !hosts.is_empty())?;
    let known: BTreeSet<&str> =
        hosts.iter().filter_map(|h| h.labels.get(key).map(String::as_str)).collect();
    let known: Vec<&str> = known.into_iter().take(8).collect();
    let change = match known.as_slice() {
        [] => format!("give a host in deck.toml the label {key} = {value}"),
        known => format!("hosts have {key} = {}", known.join(", ")),
    };
    Some((format!("no host has the label {key} = {value}"), change))
}

/// The requirement excludes every GPU of every host: what it meets instead, by host.
fn unmet_everywhere(hosts: &[&&HostCapacity], demand: &Demand) -> Option<(String, String)> {
    demand.placement.require.as_ref()?;
    if demand.device == DeviceKind::Cpu {
        return None;
    }
    let mut fails: Vec<(&str, String)> = Vec::new();
    for host in hosts.iter().filter(|h| !h.gpus.is_empty()) {
        let mut gpus = host.gpus.iter().map(|g| unmet(host, Some(g), demand));
        fails.push((host.name.as_str(), gpus.next()??));
        if gpus.any(|why| why.is_none()) {
            return None;
        }
    }
    let (_, first) = fails.first()?;
    let message = format!("no host meets `require`: {first}");
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    let is: Vec<String> = fails
        .iter()
        .filter_map(|(host, why)| Some((host, why.split_once(" fails: ")?.1)))
        .filter(|(_, is)| seen.insert(is))
        .take(4)
        .map(|(host, is)| format!("on {host} {is}"))
        .collect();
    let change = match is.as_slice() {
        [] => "loosen `require`".to_owned(),
        is => format!("loosen `require`: {}", is.join("; ")),
    };
    Some((message, change))
}

/// How many GPUs of a host could be given to one replica at once, as many as it wants at most.
fn free_enough(host: &HostCapacity, demand: &Demand, need: ShapeNeed) -> usize {
    let wanted = need.devices();
    let occupied = occupants(host, demand);
    let is_free = |g: &&GpuCapacity| {
        let ours = occupied.contains_key(&g.device());
        g.refuses_new().is_none()
            && (g.reserved_by.is_none() || ours)
            && unmet(host, Some(g), demand).is_none()
            && available(g, ours) >= needed_on(g, demand, need)
    };
    host.usable_by(wanted).filter(is_free).count().min(wanted)
}

/// A line for a shape that not all replicas could have: how many could, or what the host lacks that comes nearest to one.
pub(super) fn shape_without_place(
    hosts: &[&HostCapacity],
    demand: &Demand,
    need: ShapeNeed,
    placed: usize,
) -> String {
    let not = not_as(&need.shape);
    if placed > 0 {
        return format!("{not}: room for {placed} of {} replicas", demand.replicas);
    }
    let near = |h: &HostCapacity| {
        let largest = h.gpus.iter().map(|g| g.total).max();
        let may = excluded(h, demand).is_none();
        (may, free_enough(h, demand, need), h.usable_by(need.devices()).count(), largest)
    };
    // The first of those that are equal.
    match hosts.iter().rev().max_by_key(|h| near(h)) {
        None => format!("{not}: there is no host"),
        Some(host) => {
            let why = reason(host, demand, need).unwrap_or_else(|| "no place was found".to_owned());
            let nearest = if hosts.len() > 1 { "nearest is " } else { "" };
            format!("{not}: {nearest}{}: {why}", host.name)
        }
    }
}

/// How a line begins that says why a shape is not taken.
pub fn not_as(shape: &ParallelShape) -> String {
    match (shape.groups(), shape.tensor.get()) {
        (1, 1) => "not on 1 GPU each".to_owned(),
        (1, tensor) => format!("not on {tensor} GPUs each"),
        _ => format!("not as {shape}"),
    }
}

/// Where nothing else helps: the host on which the most GPUs are free enough.
fn free_some(hosts: &[&&HostCapacity], demand: &Demand, need: ShapeNeed) -> String {
    let wanted = need.devices();
    let free = |host: &HostCapacity| free_enough(host, demand, need);
    // The first of those that are equal.
    let best = hosts.iter().rev().max_by_key(|h| free(h));
    let Some((host, n)) = best.map(|h| (h, free(h))) else {
        return "add a host to deck.toml".to_owned();
    };
    let more = wanted.saturating_sub(n);
    let word = if more == 1 { "GPU" } else { "GPUs" };
    match n {
        0 => format!("free {more} {word} on {}, or add a host", host.name),
        n => format!(
            "set {} or less if the model allows it, or free {more} more {word} on {}",
            fewer(n, need.shape),
            host.name
        ),
    }
}

/// What to write so that a replica of this shape has so many GPUs.
fn fewer(gpus: usize, shape: ParallelShape) -> String {
    match shape.groups() {
        1 => format!("parallel = {{ tensor = {gpus} }}"),
        _ => format!("`parallel` to a shape of {gpus} GPUs"),
    }
}

/// What must be free on a GPU: what the model needs, or the share that the engine takes anyhow.
fn wanted_free(hosts: &[&&HostCapacity], demand: &Demand, need: ShapeNeed) -> String {
    let mut gpus = hosts.iter().flat_map(|host| &host.gpus);
    let share = demand
        .memory_share
        .filter(|_| gpus.all(|gpu| needed_on(gpu, demand, need) > need.memory_per_device));
    share.map_or_else(
        || need.memory_per_device.to_string(),
        |share| format!("{:.0} % of the memory", share * 100.0),
    )
}

/// This share of so much memory.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a share of a u64
fn part_of(total: Bytes, share: f64) -> Bytes {
    Bytes((total.0 as f64 * share.clamp(0.0, 1.0)) as u64)
}

/// Fewer replicas, or the largest memory with which all of them would fit.
fn change(
    hosts: &[&HostCapacity],
    demand: &Demand,
    need: ShapeNeed,
    placed: usize,
) -> Option<String> {
    let mut sizes: BTreeSet<Bytes> = BTreeSet::new();
    for host in hosts {
        let occupied = occupants(host, demand);
        match demand.device {
            DeviceKind::Gpu => {
                let free = |g: &GpuCapacity| available(g, occupied.contains_key(&g.device()));
                sizes.extend(host.gpus.iter().map(free));
                // An engine with a share of the GPU wants no more free than that, and takes no more either.
                let share = demand.memory_share.filter(|_| demand.within_share);
                sizes.extend(
                    share
                        .iter()
                        .flat_map(|share| host.gpus.iter().map(|g| part_of(g.total, *share))),
                );
            }
            // Any whole part of a host's memory may be what fits.
            DeviceKind::Cpu => sizes.extend(
                (1..=u64::from(demand.replicas.clamp(1, 64)))
                    .map(|n| Bytes(host.memory_free.0 / n)),
            ),
        }
    }
    let wanted = usize::try_from(demand.replicas).unwrap_or(usize::MAX);
    let sizes: Vec<Bytes> =
        sizes.into_iter().filter(|s| *s < need.memory_per_device && *s > Bytes::ZERO).collect();
    // What fits with more memory fits with less: the largest is found by halving.
    let fits =
        |s: &Bytes| fitting(hosts, demand, ShapeNeed { memory_per_device: *s, ..need }) >= wanted;
    let enough = sizes.partition_point(fits).checked_sub(1).and_then(|at| sizes.get(at));
    let mut changes = Vec::new();
    if placed > 0 {
        changes.push(format!("lower replicas to {placed}"));
    }
    if let Some(size) = enough {
        let per = if demand.device == DeviceKind::Gpu { " on each GPU" } else { "" };
        changes.push(format!("bring the memory it needs down to {size}{per}"));
    }
    (!changes.is_empty()).then(|| changes.join(", or "))
}
