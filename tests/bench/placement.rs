//! The figures of placement: how soon, how near the optimum, how many bytes of weights are copied.
//!
//!     cargo bench --bench placement -- farm [--worlds 5] [--limit-ms 100] [--threads N] [--cpsat-s 30]
//!     cargo bench --bench placement -- lost [--worlds 3] [--limit-ms 1000] [--threads N]
//!
//! `farm`: 200 gangs on 128 hosts × 8, beside first fit decreasing in the same run, and CP-SAT's optimum where
//! `--cpsat-s` gives it seconds a level (it needs the Python that `cargo test --test placement_oracle` makes).
//! `lost`: 1,000 hosts × 8, 500 services, one host lost. The worlds are those of `tests/placement_oracle/worlds.py`.
//! Threads are as many as `gpudeck place` takes, unless told. Times count from the world as it was read, whose own time is
//! beside them. Prints one JSON object.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod first_fit;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use gpudeck::base::Bytes;
use gpudeck::controller::search_threads;
use gpudeck::placement::global::{Answer, Control, Helpers, WorldFile, read, solve};
use serde_json::{Value, json};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let number = |name: &str, default: u64| {
        let at = args.iter().position(|a| a == name);
        at.and_then(|at| args.get(at + 1)?.parse().ok()).unwrap_or(default)
    };
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let threads = match number("--threads", 0) {
        0 => search_threads::helpers(),
        n => search_threads::these(usize::try_from(n).unwrap()),
    };
    let mut result = match args.first().map(String::as_str) {
        Some("farm") => {
            let (limit, cpsat) = (number("--limit-ms", 100), number("--cpsat-s", 0));
            farm(number("--worlds", 5), limit, threads, cpsat)
        }
        Some("lost") => lost(number("--worlds", 3), number("--limit-ms", 1000), threads),
        // `cargo test --all-targets` runs benches without arguments: there is nothing to measure.
        _ => json!({ "usage": "placement farm|lost" }),
    };
    result["load_before"] = load.split(' ').next().unwrap_or_default().into();
    println!("{result:#}");
}

fn oracle() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/placement_oracle")
}

/// The text of a random world.
fn world(kind: &str, seed: u64) -> String {
    let mut python = Command::new("python3");
    python.arg(oracle().join("oracle.py")).args(["-", kind, &seed.to_string()]);
    let out = python.stderr(Stdio::inherit()).output().expect("python3");
    assert!(out.status.success());
    String::from_utf8(out.stdout).unwrap()
}

/// Milliseconds since.
fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

/// An answer, with what it took.
fn timed(text: &str, limit_ms: u64, helpers: Option<Helpers<'_>>) -> (WorldFile, Answer, Value) {
    let begun = Instant::now();
    let world = read(text, "world").unwrap();
    let read_ms = ms(begun);
    let begun = Instant::now();
    let mut first_ms = 0.0;
    let mut control = Control {
        used: &mut || ms(begun) / limit_ms as f64,
        first: &mut || first_ms = ms(begun),
        max_steps: u64::MAX,
        explain: false,
        helpers,
    };
    let answer = solve(&world, &mut control).unwrap();
    let all_ms = ms(begun);
    let times = json!({ "read_ms": read_ms, "first_ms": first_ms, "all_ms": all_ms });
    (world, answer, times)
}

fn level(answer: &Answer, name: &str) -> i64 {
    answer.objective.iter().find(|l| l.name == name).unwrap().value
}

/// Per level what was reached; what is not placed comes first, by priority.
fn levels(answer: &Answer) -> Vec<i64> {
    let priorities = answer.objective[0].by_priority.iter();
    let mut by_priority: Vec<_> = priorities.map(|p| (p.priority, p.wanted - p.placed)).collect();
    by_priority.sort_unstable_by_key(|(priority, _)| std::cmp::Reverse(*priority));
    let mut all: Vec<i64> = by_priority.into_iter().map(|(_, unplaced)| unplaced).collect();
    all.extend(["domains", "moves", "link", "headroom", "weights"].map(|name| level(answer, name)));
    all.push(-level(answer, "fragmentation"));
    all
}

fn farm(worlds: u64, limit_ms: u64, helpers: Option<Helpers<'_>>, cpsat_s: u64) -> Value {
    let mut rows = Vec::new();
    for seed in 0..worlds {
        let text = world("farm", seed);
        let (file, answer, times) = timed(&text, limit_ms, helpers);
        let ours = levels(&answer);
        let begun = Instant::now();
        let first_fit = first_fit::place(&file);
        let first_fit_ms = ms(begun);
        let bytes = ours[ours.len() - 2];
        let mut row = json!({
            "seed": seed, "times": times, "wanted": answer.wanted,
            "unplaced_then_levels": ours, "placed": answer.placed,
            "bounds": answer.objective.iter().map(|l| l.bound).collect::<Vec<_>>(),
            "first_fit": {
                "ms": first_fit_ms, "unplaced": first_fit.unplaced, "placed": first_fit.placed,
                "bytes": first_fit.bytes,
                "bytes_to_ours": first_fit.bytes as f64 / bytes.max(1) as f64,
            },
        });
        if cpsat_s > 0 {
            row["cpsat"] = optimum(&text, &ours, cpsat_s);
            let best = row["cpsat"]["levels"].as_array().unwrap();
            let best_bytes = best[best.len() - 1].as_f64().unwrap();
            row["bytes_to_optimum"] = ((bytes >> 30) as f64 / best_bytes.max(1.0)).into();
            row["first_fit"]["bytes_to_optimum"] =
                ((first_fit.bytes >> 30) as f64 / best_bytes.max(1.0)).into();
        }
        rows.push(row);
    }
    let median = |pointer: &str| {
        let mut all: Vec<f64> =
            rows.iter().filter_map(|r| r.pointer(pointer).and_then(Value::as_f64)).collect();
        all.sort_by(f64::total_cmp);
        all.get(all.len() / 2).copied()
    };
    json!({
        "median": {
            "first_ms": median("/times/first_ms"), "all_ms": median("/times/all_ms"),
            "bytes_to_optimum": median("/bytes_to_optimum"),
            "first_fit_bytes_to_ours": median("/first_fit/bytes_to_ours"),
            "first_fit_bytes_to_optimum": median("/first_fit/bytes_to_optimum"),
        },
        "worlds": rows,
    })
}

/// What CP-SAT reaches from our levels on, and whether it proves that.
fn optimum(text: &str, ours: &[i64], seconds: u64) -> Value {
    let python = Path::new(env!("CARGO_TARGET_TMPDIR")).join("ortools-9.15/bin/python");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("world.json");
    std::fs::write(&file, text).unwrap();
    let mut command = Command::new(python);
    command.arg(oracle().join("farm.py")).arg(&file);
    command.arg(serde_json::to_string(ours).unwrap()).arg(seconds.to_string());
    let out = command.stderr(Stdio::inherit()).output().expect("run the oracle's test first");
    assert!(out.status.success());
    serde_json::from_slice(&out.stdout).unwrap()
}

fn lost(worlds: u64, limit_ms: u64, helpers: Option<Helpers<'_>>) -> Value {
    let mut rows = Vec::new();
    for seed in 0..worlds {
        let (file, answer, times) = timed(&world("lost", seed), limit_ms, helpers);
        let down = |host: &str| file.hosts.iter().any(|h| h.name == host && !h.up);
        let lost = file.placements.iter().flat_map(|p| &p.ranks).filter(|r| down(&r.host)).count();
        let serving = answer.moves.iter().filter(|m| m.serving);
        let moved: usize = serving.map(|m| m.from.len()).sum();
        let forced = usize::from(lacks_a_hole(&file));
        rows.push(json!({
            "seed": seed, "times": times, "wanted": answer.wanted, "placed": answer.placed,
            "ranks_lost": lost, "serving_ranks_moved": moved, "serving_ranks_that_must_move": forced,
            "moves_to_lower_bound": (lost + moved) as f64 / (lost + forced).max(1) as f64,
            "proven_optimal": answer.proven_optimal, "levels": levels(&answer),
            "bounds": answer.objective.iter().map(|l| l.bound).collect::<Vec<_>>(),
        }));
    }
    json!({ "worlds": rows })
}

/// Whether a rank that was lost fits nowhere as things are, so that at least one that serves has to move. The
/// worlds of `lost` have ranks of one shape, and devices that are either whole and free or taken.
fn lacks_a_hole(file: &WorldFile) -> bool {
    let up = || file.hosts.iter().filter(|h| h.up);
    let taken: BTreeSet<(&str, u32)> = file
        .placements
        .iter()
        .flat_map(|p| &p.ranks)
        .flat_map(|r| r.gpus.iter().map(|gpu| (r.host.as_str(), *gpu)))
        .collect();
    let fits = |tensor: u32, memory: Bytes| {
        up().any(|host| {
            let mut free: BTreeMap<Option<u32>, u32> = BTreeMap::new();
            for gpu in &host.gpus {
                let is_free = !taken.contains(&(host.name.as_str(), gpu.index));
                if is_free && gpu.memory_total >= memory {
                    *free.entry(gpu.island).or_default() += 1;
                }
            }
            free.values().any(|count| *count >= tensor)
        })
    };
    let is_up = |name: &str| up().any(|h| h.name == name);
    let lost = file.placements.iter().filter(|p| p.ranks.iter().any(|r| !is_up(&r.host)));
    lost.filter_map(|p| file.services.iter().find(|s| s.name == p.service))
        .any(|service| !fits(service.shapes[0].tensor, service.shapes[0].memory))
}
