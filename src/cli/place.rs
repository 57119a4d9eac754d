//! `gpudeck place WORLD.json`: solves a world from a file, without hosts or a controller.

use std::path::Path;
use std::time::{Duration, Instant};

use super::args::{Args, Output};
use super::exit::{Failure, Success};
use super::table;
use crate::api::wrap;
use crate::controller::search_threads::helpers;
use crate::placement::global::answer::{Move, RankAnswer, ReplicaAnswer, ServiceAnswer};
use crate::placement::global::file::{Rank, WorldHost};
use crate::placement::global::read::MAX_WORLD_BYTES;
use crate::placement::global::{Answer, Control, WorldFile, read, solve};

/// Reads, solves, prints.
pub fn run(
    args: &Args,
    world: &Path,
    time_limit: Duration,
    steps: Option<u64>,
    explain: bool,
) -> Result<Success, Failure> {
    let started = Instant::now();
    let stdin = world.as_os_str() == "-";
    let name = if stdin { "standard input".to_owned() } else { world.display().to_string() };
    let content = content(world, stdin, &name)?;
    let world = read(&content, &name).map_err(|e| Failure::of(&e))?;
    let mut first = Duration::ZERO;
    let mut control = Control {
        used: &mut || started.elapsed().as_secs_f64() / time_limit.as_secs_f64().max(1e-6),
        first: &mut || first = started.elapsed(),
        max_steps: steps.unwrap_or(u64::MAX),
        explain,
        helpers: helpers(),
    };
    let mut answer =
        solve(&world, &mut control).map_err(|e| Failure::other(e.to_string()).unforeseen())?;
    answer.search.first_feasible_ms = first.as_secs_f64() * 1e3;
    answer.search.elapsed_ms = started.elapsed().as_secs_f64() * 1e3;
    match args.output {
        Output::Json => table::json(&answer)?,
        Output::Text => {
            print(&answer)?;
            if let Some(away) = away(&world) {
                table::out(&away)?;
            }
            if explain {
                print_rejected(&answer)?;
            }
        }
    }
    Ok(Success::Done)
}

fn content(world: &Path, stdin: bool, name: &str) -> Result<String, Failure> {
    use std::io::Read;
    let fail = |e: std::io::Error| {
        Failure::other(format!("{name}: {e}"))
            .with_hint("name a file that you may read, or `-` for standard input")
    };
    let mut content = String::new();
    let limit = u64::try_from(MAX_WORLD_BYTES).unwrap_or(u64::MAX).saturating_add(1);
    if stdin {
        std::io::stdin().lock().take(limit).read_to_string(&mut content).map_err(fail)?;
    } else {
        let file = std::fs::File::open(world).map_err(fail)?;
        file.take(limit).read_to_string(&mut content).map_err(fail)?;
    }
    Ok(content)
}

/// GPUs as people write them: `0-3,6`.
pub fn gpus(list: &[u32]) -> String {
    wrap::ranges(list.to_vec())
}

fn rank(rank: &RankAnswer) -> String {
    format!("{} [{}]", rank.host, gpus(&rank.gpus))
}

fn replica(replica: &ReplicaAnswer) -> String {
    let on = replica.ranks.iter().map(rank).collect::<Vec<_>>().join(" + ");
    let shape = replica.shape;
    let divided = [("pp", shape.pipeline), ("dp", shape.data)].into_iter().filter(|d| d.1 > 1);
    let divided: String = divided.map(|(word, degree)| format!(" {word}{degree}")).collect();
    if divided.is_empty() { on } else { format!("{on} as tp{}{divided}", shape.tensor) }
}

/// The answer for people.
pub fn print(answer: &Answer) -> Result<(), Failure> {
    print_replicas(answer)?;
    print_moves(answer)?;
    table::out("")?;
    print_levels(answer)?;
    table::out("")?;
    let search = &answer.search;
    table::say(&format!(
        "{} of {} replicas placed, {}; first placement after {:.1} ms, all {:.1} ms, {} attempts",
        answer.placed,
        answer.wanted,
        if answer.proven_optimal { "proven optimal" } else { "not proven optimal" },
        search.first_feasible_ms,
        search.elapsed_ms,
        search.steps
    ))?;
    if search.reasons_cut {
        table::out(
            "the time was over before all reasons were told; a longer --time-limit tells them",
        )?;
    }
    Ok(())
}

/// Where each replica goes, and why some have no place.
pub fn print_replicas(answer: &Answer) -> Result<(), Failure> {
    let rows: Vec<Vec<String>> = answer.services.iter().flat_map(service_rows).collect();
    if rows.is_empty() {
        return table::out(if answer.wanted == 0 {
            "no replica is wanted"
        } else {
            "every replica stays where it is"
        });
    }
    table::print(&["REPLICA", "", "WHERE", "WHY"], &rows)
}

/// A row for each replica of a service; what holds for all of them stands once, in a row before them.
fn service_rows(service: &ServiceAnswer) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    let of_all: Vec<&String> = match service.replicas.as_slice() {
        [first, _, ..] => {
            let all = |why: &&String| service.replicas.iter().all(|r| r.reasons.contains(*why));
            first.reasons.iter().filter(all).collect()
        }
        _ => Vec::new(),
    };
    let words = |reasons: &[&String]| {
        reasons.iter().map(|reason| reason.as_str()).collect::<Vec<_>>().join("; ")
    };
    if !of_all.is_empty() {
        let name = format!("{} (all)", service.name);
        rows.push(vec![name, String::new(), String::new(), words(&of_all)]);
    }
    for placed in &service.replicas {
        let own: Vec<&String> = placed.reasons.iter().filter(|r| !of_all.contains(r)).collect();
        rows.push(vec![
            format!("{}/{}", service.name, placed.replica),
            placed.state.to_string(),
            replica(placed),
            words(&own),
        ]);
    }
    if let Some(why) = &service.unplaced {
        let missing = service.wanted - service.placed;
        let name = format!("{} ({missing} of {})", service.name, service.wanted);
        rows.push(vec![name, "NO PLACE".to_owned(), String::new(), why.clone()]);
    }
    rows
}

/// What runs and does not stay, a line each: from where, and where it goes or that it stops.
pub fn print_moves(answer: &Answer) -> Result<(), Failure> {
    for moved in &answer.moves {
        table::say(&format!("  {}", one_move(answer, moved)))?;
    }
    Ok(())
}

/// `chat/0: h1 [0-3] → h2 [0-3], 40.0 GiB to copy`.
fn one_move(answer: &Answer, moved: &Move) -> String {
    let on = |ranks: &[Rank]| {
        let on = |r: &Rank| format!("{} [{}]", r.host, gpus(&r.gpus));
        ranks.iter().map(on).collect::<Vec<_>>().join(" + ")
    };
    let to = match (moved.to.is_empty(), moved.serving) {
        (false, _) => on(&moved.to),
        (true, true) => "STOPS".to_owned(),
        (true, false) => "no other place; it serves nothing now".to_owned(),
    };
    let copied: u64 = answer
        .copies
        .iter()
        .filter(|c| c.service == moved.service && moved.to.iter().any(|r| r.host == c.host))
        .map(|c| c.bytes.0)
        .sum();
    let copied = match copied {
        0 => String::new(),
        n => format!(", {} to copy", crate::api::Bytes(n)),
    };
    format!("{}/{}: {} → {to}{copied}", moved.service, moved.replica, on(&moved.from))
}

/// The hosts that are not there, in a line; none if all are.
pub fn away(world: &WorldFile) -> Option<String> {
    let names: Vec<&str> = world.hosts.iter().filter(|h| !h.up).map(|h| h.name.as_str()).collect();
    let shown = names.get(..names.len().min(8))?.join(", ");
    let more =
        if names.len() > 8 { format!(" and {} more", names.len() - 8) } else { String::new() };
    (!names.is_empty()).then(|| format!("! not there: {shown}{more}"))
}

/// The hosts that are there and whose GPUs are not seen, though replicas run on them; a line each.
pub fn unread(world: &WorldFile) -> Vec<String> {
    let runs_on = |host: &WorldHost| {
        let ranks = world.placements.iter().flat_map(|p| &p.ranks);
        ranks.filter(|rank| rank.host == host.name).count()
    };
    let hosts = world.hosts.iter().filter(|host| host.up && runs_on(host) > 0);
    let told = hosts.filter_map(|host| {
        let why = host.gpu_trouble.as_ref()?;
        let count = table::plural(runs_on(host) as u64, "rank");
        Some(format!(
            "! {}: {why}; what runs there ({count}) stays, on GPUs that are not seen",
            host.name
        ))
    });
    told.collect()
}

/// What it is worth, level by level.
pub fn print_levels(answer: &Answer) -> Result<(), Failure> {
    let rows: Vec<Vec<String>> = answer
        .objective
        .iter()
        .map(|level| {
            let proven = if level.proven {
                "best there is".to_owned()
            } else {
                format!("bound {} ({:.1} %)", level.bound, level.gap * 100.0)
            };
            vec![level.name.to_string(), level.value.to_string(), level.unit.to_string(), proven]
        })
        .collect();
    table::print(&["LEVEL", "VALUE", "", ""], &rows)
}

/// Which hosts got nothing of a service, by the one reason that counts.
pub fn print_rejected(answer: &Answer) -> Result<(), Failure> {
    for service in &answer.services {
        for rejected in &service.rejected {
            let hosts = rejected.hosts.join(" ");
            table::say(&format!("  {} not on {hosts}: {}", service.name, rejected.reason))?;
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    /// A replica that is stopped is seen, and where all came from.
    fn solved(world: &WorldFile) -> Answer {
        let mut control = Control {
            used: &mut || 0.0,
            first: &mut || (),
            max_steps: 100,
            explain: false,
            helpers: None,
        };
        solve(world, &mut control).unwrap()
    }

    #[test]
    fn what_leaves_says_from_where_and_whether_it_stops() {
        let world = r#"{"hosts": [{"name": "a", "gpus": [{"index": 0, "memory_total": "80GiB"}]},
                {"name": "b", "up": false, "gpus": [{"index": 0, "memory_total": "80GiB"}]}],
            "services": [{"name": "low", "replicas": 1, "shapes": [{}]},
                {"name": "high", "replicas": 1, "priority": 1, "shapes": [{}]}],
            "placements": [{"service": "low", "replica": 0, "ranks": [{"host": "a", "gpus": [0]}]},
                {"service": "high", "replica": 0, "ranks": [{"host": "b", "gpus": [0]}]}]}"#;
        let world = read(world, "world").unwrap();
        let answer = solved(&world);
        let lines: Vec<String> = answer.moves.iter().map(|m| one_move(&answer, m)).collect();
        assert_eq!(lines, ["low/0: a [0] → STOPS", "high/0: b [0] → a [0]"]);
        assert_eq!(away(&world).as_deref(), Some("! not there: b"));
    }

    #[test]
    fn gpus_that_are_not_seen_are_told_where_something_runs_on_them() {
        let world = r#"{"hosts": [
                {"name": "a", "gpu_trouble": "its GPU driver has not answered for 45 s",
                    "gpus": [{"index": 0, "memory_total": "80GiB", "health": "not seen"}]},
                {"name": "b", "gpu_trouble": "it has no GPU", "gpus": []}],
            "services": [{"name": "chat", "replicas": 1, "shapes": [{}]}],
            "placements": [{"service": "chat", "replica": 0, "ranks": [{"host": "a", "gpus": [0]}]}]}"#;
        let told = unread(&read(world, "world").unwrap());
        assert_eq!(told.len(), 1, "{told:?}");
        let words = "! a: its GPU driver has not answered for 45 s; what runs there (1 rank) stays";
        assert!(told[0].starts_with(words), "{told:?}");
    }

    #[test]
    fn what_holds_for_all_replicas_is_told_once() {
        let world = r#"{"hosts": [{"name": "a", "gpus": [{"index": 0, "memory_total": "80GiB"},
                {"index": 1, "memory_total": "80GiB"}]}],
            "services": [{"name": "chat", "replicas": 2, "shapes": [{}]}]}"#;
        let world = read(world, "world").unwrap();
        let mut service = solved(&world).services.remove(0);
        let said = |text: &str| text.to_owned();
        service.replicas[0].reasons = vec![said("within one island"), said("runs here")];
        service.replicas[1].reasons = vec![said("within one island")];
        let told: Vec<String> = service_rows(&service)
            .into_iter()
            .map(|row| [&row[0], &row[3]].map(String::as_str).join("|"))
            .collect();
        assert_eq!(told, ["chat (all)|within one island", "chat/0|runs here", "chat/1|"]);
        service.replicas.truncate(1);
        assert_eq!(service_rows(&service).len(), 1);
    }

    #[test]
    fn gpus_in_runs() {
        assert_eq!(super::gpus(&[3, 0, 1, 2, 6]), "0-3,6");
        assert_eq!(super::gpus(&[]), "");
    }
}
