//! From JSON text to a checked world: errors name the line and the field.

use std::collections::{BTreeMap, BTreeSet};

use super::file::{WorldFile, WorldShape};
use super::places::{line_of, path_at};
use crate::base::{Hint, text};
use crate::spec::Requirement;
use crate::spec::parallel::{MOST_DEGREE, MOST_DEVICES, MOST_SHAPES};

/// Longest world that is read, in bytes.
pub const MAX_WORLD_BYTES: usize = 64 << 20;
const MAX_HOSTS: usize = 4096;
/// GPUs of a host are kept as bits of a word.
const MAX_GPUS: usize = 64;
const MAX_SERVICES: usize = 8192;
const MAX_REPLICAS: u64 = 20_000;
/// Bytes of weights that could be copied.
const MAX_COPIED: u128 = 1 << 60;

/// A world that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}{}: {}{message}", .line.map(|l| format!(", line {l}")).unwrap_or_default(),
    if .field.is_empty() { String::new() } else { format!("{}: ", .field) })]
pub struct WorldError {
    /// The file as the person knows it.
    pub file: String,
    /// The line, from 1, where known.
    pub line: Option<usize>,
    /// The field: `services[3].shapes[0].tensor`.
    pub field: String,
    /// What is wrong.
    pub message: String,
    /// What to write instead.
    pub suggestion: Option<String>,
}

impl Hint for WorldError {
    fn hint(&self) -> Option<String> {
        let usual = || "correct it in the file; docs/placement.md describes every field".to_owned();
        Some(self.suggestion.clone().unwrap_or_else(usual))
    }
}

/// Reads and checks a world; `file` is its name in messages.
pub fn read(content: &str, file: &str) -> Result<WorldFile, WorldError> {
    let fail = |line, field, message, suggestion| WorldError {
        file: file.to_owned(),
        line,
        field,
        message,
        suggestion,
    };
    if content.len() > MAX_WORLD_BYTES {
        let message = format!("a world may be {MAX_WORLD_BYTES} bytes long");
        return Err(fail(None, String::new(), message, None));
    }
    // What some editors begin a file with.
    let content = content.strip_prefix('\u{feff}').unwrap_or(content);
    let world: WorldFile = serde_json::from_str(content).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        let message = text::clean(&error.to_string(), 600);
        let message = message.split(" at line ").next().unwrap_or(&message).to_owned();
        let mut quoted = message.split('`').skip(1).step_by(2);
        let wrong = quoted.next().unwrap_or_default();
        let known: Vec<&str> = quoted.collect();
        let unknown = message.starts_with("unknown");
        let suggestion = match text::nearest(wrong, known.iter().copied()) {
            Some(near) if unknown => Some(format!("did you mean `{near}`?")),
            _ if unknown => Some(format!("valid here: {}", known.join(", "))),
            _ => Some("docs/placement.md describes the file".to_owned()),
        };
        let message = match message.split_once(", expected") {
            Some((head, _)) if unknown => head.to_owned(),
            _ => message,
        };
        let message = plainly(&message);
        fail(Some(line), text::clean(&path_at(content, line, column), 200), message, suggestion)
    })?;
    check(&world).map_err(|wrong| {
        let line = line_of(content, &wrong.field);
        fail(line, wrong.field, wrong.message, wrong.hint)
    })?;
    Ok(world)
}

/// A message in JSON's words: nobody who writes a world knows the types that it is read into.
fn plainly(message: &str) -> String {
    let mut message = message.to_owned();
    if let Some((head, _)) = message.split_once("expected struct ") {
        message = format!("{head}expected an object");
    }
    for (theirs, ours) in [
        ("expected u32", "expected a whole number"),
        ("expected u64", "expected a whole number"),
        ("expected i32", "expected a whole number"),
        ("expected f64", "expected a number"),
        ("expected a sequence", "expected a list"),
        ("expected a map", "expected an object"),
        ("expected a boolean", "expected true or false"),
        ("type: map", "type: object"),
        ("type: sequence", "type: list"),
        ("type: unit", "type: null"),
    ] {
        message = message.replace(theirs, ours);
    }
    message
}

/// A mistake in a world that was not read from text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct Wrong {
    /// The field.
    pub field: String,
    /// What is wrong with it.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
}

fn wrong(field: impl Into<String>, message: impl Into<String>) -> Wrong {
    Wrong { field: field.into(), message: message.into(), hint: None }
}

fn at_most(field: &str, n: usize, limit: usize) -> Result<(), Wrong> {
    if n > limit {
        return Err(wrong(field, format!("{n} of them; at most {limit} can be placed at once")));
    }
    Ok(())
}

fn name(field: &str, name: &str) -> Result<(), Wrong> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > 128 || !name.chars().all(good) {
        let shown = text::clean(name, 40);
        return Err(Wrong {
            field: field.to_owned(),
            message: format!("`{shown}` is not a name"),
            hint: Some("letters, digits, `-`, `_` and `.`, at most 128".to_owned()),
        });
    }
    Ok(())
}

/// Names to look up, with the nearest one for a slip of the pen.
struct Names<'a> {
    what: &'static str,
    known: BTreeMap<&'a str, usize>,
}

impl Names<'_> {
    fn find(&self, field: String, name: &str) -> Result<usize, Wrong> {
        self.known.get(name).copied().ok_or_else(|| Wrong {
            field,
            message: format!("there is no {} `{}`", self.what, text::clean(name, 60)),
            hint: text::nearest(name, self.known.keys().copied())
                .map(|near| format!("did you mean `{near}`?")),
        })
    }
}

/// Whether everything in a world refers to something and is within bounds.
pub fn check(world: &WorldFile) -> Result<(), Wrong> {
    if world.version != 1 {
        return Err(wrong("version", format!("{} is not known; write 1", world.version)));
    }
    if world.headroom_percent > 100 {
        return Err(wrong("headroom_percent", "a share in percent goes from 0 to 100"));
    }
    at_most("hosts", world.hosts.len(), MAX_HOSTS)?;
    at_most("services", world.services.len(), MAX_SERVICES)?;
    at_most("reservations", world.reservations.len(), MAX_HOSTS * MAX_GPUS)?;
    at_most("cordons", world.cordons.len(), MAX_HOSTS * MAX_GPUS)?;
    let mut hosts = Names { what: "host", known: BTreeMap::new() };
    let mut gpus: Vec<BTreeSet<u32>> = Vec::new();
    for (h, host) in world.hosts.iter().enumerate() {
        let field = format!("hosts[{h}]");
        name(&format!("{field}.name"), &host.name)?;
        if hosts.known.insert(&host.name, h).is_some() {
            let message = format!("there are two hosts `{}`", host.name);
            return Err(wrong(format!("{field}.name"), message));
        }
        at_most(&format!("{field}.gpus"), host.gpus.len(), MAX_GPUS)?;
        for (n, nic) in host.nics.iter().enumerate() {
            if !(0.0..=1e6).contains(&nic.gbit) {
                return Err(wrong(format!("{field}.nics[{n}].gbit"), "is not a speed in Gbit/s"));
            }
        }
        let mut indices = BTreeSet::new();
        for (g, gpu) in host.gpus.iter().enumerate() {
            let field = format!("{field}.gpus[{g}]");
            if !indices.insert(gpu.index) {
                let message = format!("there are two GPUs {} on {}", gpu.index, host.name);
                return Err(wrong(format!("{field}.index"), message));
            }
            if gpu.memory_total.0 == 0 || gpu.memory_total.0 > 1 << 50 {
                return Err(wrong(format!("{field}.memory_total"), "must be from 1 B to 1 PiB"));
            }
            if gpu.memory_free.is_some_and(|free| free > gpu.memory_total) {
                return Err(wrong(format!("{field}.memory_free"), "is more than memory_total"));
            }
        }
        gpus.push(indices);
    }
    let labels: BTreeSet<&str> =
        world.hosts.iter().flat_map(|h| h.labels.keys().map(String::as_str)).collect();
    let mut services = Names { what: "service", known: BTreeMap::new() };
    let mut replicas: u64 = 0;
    let mut copied: u128 = 0;
    for (s, service) in world.services.iter().enumerate() {
        let field = format!("services[{s}]");
        name(&format!("{field}.name"), &service.name)?;
        if services.known.insert(&service.name, s).is_some() {
            let message = format!("there are two services `{}`", service.name);
            return Err(wrong(format!("{field}.name"), message));
        }
        replicas = replicas.saturating_add(u64::from(service.replicas));
        if replicas > MAX_REPLICAS {
            let message = format!("more than {MAX_REPLICAS} replicas in all");
            return Err(wrong(format!("{field}.replicas"), message));
        }
        if service.shapes.is_empty() {
            let message =
                "there is no shape; write for example [{\"tensor\": 8, \"memory\": \"70GiB\"}]";
            return Err(wrong(format!("{field}.shapes"), message));
        }
        at_most(&format!("{field}.shapes"), service.shapes.len(), MOST_SHAPES)?;
        for (i, shape) in service.shapes.iter().enumerate() {
            check_shape(&format!("{field}.shapes[{i}]"), shape)?;
        }
        for (key, n) in [("heads", service.heads), ("kv_heads", service.kv_heads)] {
            if n == Some(0) {
                return Err(wrong(format!("{field}.{key}"), "must be at least 1"));
            }
        }
        if service.memory_share.is_some_and(|share| !(0.0..=1.0).contains(&share)) {
            return Err(wrong(format!("{field}.memory_share"), "goes from 0 to 1"));
        }
        if service.weights_bytes.0 > 1 << 50 || service.kv_bytes.0 > 1 << 50 {
            return Err(wrong(field, "weights_bytes and kv_bytes may be 1 PiB at most"));
        }
        // Every copy that there could be, so that sums of them are numbers.
        let parts = service.shapes.iter().map(WorldShape::gpus).max().unwrap_or(0);
        let copies = parts.saturating_mul(u64::from(service.replicas));
        let copies = copies.min(world.hosts.len() as u64);
        copied += u128::from(service.weights_bytes.0) * u128::from(copies);
        if copied > MAX_COPIED {
            let message = "all copies of all weights together may be 1 EiB at most";
            return Err(wrong(format!("{field}.weights_bytes"), message));
        }
        for (i, host) in service.hosts.iter().enumerate() {
            hosts.find(format!("{field}.hosts[{i}]"), host)?;
        }
        for (i, host) in service.weights_on.iter().enumerate() {
            hosts.find(format!("{field}.weights_on[{i}]"), host)?;
        }
        if let Some(require) = &service.require {
            Requirement::parse(require)
                .and_then(|r| r.check_labels(labels.iter().copied()))
                .map_err(|e| Wrong {
                    field: format!("{field}.require"),
                    message: e.to_string(),
                    hint: e.suggestion,
                })?;
        }
    }
    check_gpus_of(world, &hosts, &gpus)?;
    check_running(world, &hosts, &services, &gpus)
}

fn check_shape(field: &str, shape: &WorldShape) -> Result<(), Wrong> {
    let degrees = [("tensor", shape.tensor), ("pipeline", shape.pipeline), ("data", shape.data)];
    for (key, degree) in degrees {
        if degree == 0 || degree > MOST_DEGREE {
            return Err(wrong(format!("{field}.{key}"), format!("goes from 1 to {MOST_DEGREE}")));
        }
    }
    let gpus = shape.gpus();
    if gpus > MOST_DEVICES {
        return Err(wrong(field, format!("{gpus} GPUs for one replica; at most {MOST_DEVICES}")));
    }
    if shape.memory.0 > 1 << 50 {
        return Err(wrong(format!("{field}.memory"), "may be 1 PiB at most"));
    }
    Ok(())
}

fn check_gpus_of(
    world: &WorldFile,
    hosts: &Names<'_>,
    gpus: &[BTreeSet<u32>],
) -> Result<(), Wrong> {
    let reservations = world.reservations.iter().map(|r| (&r.host, &r.gpus));
    let cordons = world.cordons.iter().map(|c| (&c.host, &c.gpus));
    let all = reservations
        .enumerate()
        .map(|(i, of)| (format!("reservations[{i}]"), of))
        .chain(cordons.enumerate().map(|(i, of)| (format!("cordons[{i}]"), of)));
    for (field, (host, indices)) in all {
        let h = hosts.find(format!("{field}.host"), host)?;
        for (i, index) in indices.iter().flatten().enumerate() {
            if !gpus.get(h).is_some_and(|g| g.contains(index)) {
                let message = format!("{host} has no GPU {index}");
                return Err(wrong(format!("{field}.gpus[{i}]"), message));
            }
        }
    }
    Ok(())
}

fn check_running(
    world: &WorldFile,
    hosts: &Names<'_>,
    services: &Names<'_>,
    gpus: &[BTreeSet<u32>],
) -> Result<(), Wrong> {
    let mut taken: BTreeMap<(usize, u32), usize> = BTreeMap::new();
    let mut numbers = BTreeSet::new();
    let mut immovable: BTreeMap<usize, u32> = BTreeMap::new();
    at_most("placements", world.placements.len(), 20_000)?;
    for (p, running) in world.placements.iter().enumerate() {
        let field = format!("placements[{p}]");
        let s = services.find(format!("{field}.service"), &running.service)?;
        let Some(service) = world.services.get(s) else { continue };
        if !numbers.insert((s, running.replica, running.outgoing)) {
            let message = format!("replica {} of {} runs twice", running.replica, service.name);
            return Err(wrong(format!("{field}.replica"), message));
        }
        if running.ranks.is_empty() || running.ranks.iter().any(|r| r.gpus.is_empty()) {
            return Err(wrong(format!("{field}.ranks"), "a rank has a host and GPUs"));
        }
        let mut count: u64 = 0;
        let mut on = BTreeSet::new();
        for (r, rank) in running.ranks.iter().enumerate() {
            let field = format!("{field}.ranks[{r}]");
            let h = hosts.find(format!("{field}.host"), &rank.host)?;
            if !on.insert(h) {
                let message = format!("{} is named twice; write its GPUs as one rank", rank.host);
                return Err(wrong(format!("{field}.host"), message));
            }
            for (i, index) in rank.gpus.iter().enumerate() {
                let field = format!("{field}.gpus[{i}]");
                if !gpus.get(h).is_some_and(|g| g.contains(index)) {
                    return Err(wrong(field, format!("{} has no GPU {index}", rank.host)));
                }
                if let Some(other) = taken.insert((h, *index), p) {
                    let message =
                        format!("GPU {index} of {} is also held by placements[{other}]", rank.host);
                    return Err(wrong(field, message));
                }
                count += 1;
            }
        }
        if let Some(shape) = &running.shape {
            check_shape(&format!("{field}.shape"), shape)?;
            if shape.gpus() != count {
                let message = format!("is for {} GPUs, the ranks have {count}", shape.gpus());
                return Err(wrong(format!("{field}.shape"), message));
            }
        }
        if !running.outgoing && !running.movable.unwrap_or(service.movable) {
            let n = immovable.entry(s).or_default();
            *n += 1;
            if *n > service.replicas {
                let message = format!(
                    "{n} replicas of {} may not be moved, but only {} are wanted",
                    service.name, service.replicas
                );
                return Err(wrong(field, message));
            }
        }
    }
    for (i, reservation) in world.reservations.iter().enumerate() {
        let Some(h) = hosts.known.get(reservation.host.as_str()) else { continue };
        let Some(all) = gpus.get(*h) else { continue };
        let held: Vec<u32> =
            reservation.gpus.clone().unwrap_or_else(|| all.iter().copied().collect());
        if let Some((index, p)) =
            held.iter().find_map(|index| taken.get(&(*h, *index)).map(|p| (index, p)))
        {
            let message = format!(
                "GPU {index} of {} is reserved, but placements[{p}] runs on it",
                reservation.host
            );
            return Err(wrong(format!("reservations[{i}]"), message));
        }
    }
    Ok(())
}
