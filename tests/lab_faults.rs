//! Rollouts that serve throughout, whatever breaks: the faults of `faults/cases/`, each in the middle of a
//! rollout under load, on three hosts with HAProxy.
//!
//! A sample in every run of the tests, all with `GPUDECK_NIGHTLY=1`; `GPUDECK_FAULTS=engine,disk` takes those
//! whose name contains one of the words. `tests/bench/faults` prints the table.
//!
//! What is counted: clients send 10 requests a second through the gateway, half of them streamed. A request has
//! failed when it is not answered whole and well within 20 s. HAProxy's counters say which server had it: failures
//! of the broken part's own servers (the killed host's, the canary that serves errors) are told in a column of
//! their own; any other failed request fails the case.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::assigning_clones)] // a service line is easier to read whole
#![allow(clippy::unused_self)] // that the stage is set is said by its being there

#[path = "faults/cases.rs"]
mod cases;
mod common;
#[path = "faults/eye.rs"]
mod eye;
#[path = "faults/rest.rs"]
mod rest;
#[path = "faults/stage.rs"]
mod stage;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use cases::{Broken, Case, End, cases};
use common::wait_until;
use gpudeck::api::{Gate, Outcome};
use gpudeck::demo::LoadShape;
use stage::Stage;

/// What became of one fault.
#[derive(Default)]
struct Row {
    end: String,
    seconds: f64,
    ok: u64,
    failed: u64,
    on_broken: u64,
    in_flight_there: u64,
    elsewhere: u64,
    lowest: u32,
    wrong: Vec<String>,
}

/// Plays a case. One that breaks off (what it waits for never comes) is as wrong as any other.
fn play(stage: &mut Stage, case: &Case) -> Row {
    let mut row = Row::default();
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| play_through(stage, case, &mut row))) {
        row.wrong.push(format!("broke off: {}", words_of(panic.as_ref())));
        // What is broken may still be; if that cannot be mended, the stage is made anew.
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (case.mend)(stage))) {
            row.wrong.push(format!("could not be mended: {}", words_of(panic.as_ref())));
        }
    }
    if !row.wrong.is_empty() {
        let events = stage.operator.run(&["events"]).stdout;
        let last: Vec<&str> = events.lines().rev().take(40).collect();
        row.wrong.push(last.into_iter().rev().collect::<Vec<_>>().join("\n"));
    }
    row
}

/// The first line of a panic's message: the rest is a whole view of the service.
fn words_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic");
    text.lines().next().unwrap_or_default().to_owned()
}

fn play_through(stage: &mut Stage, case: &Case, row: &mut Row) {
    let rest = match stage.come_to_rest() {
        Ok(rest) => rest,
        Err(why) => {
            row.wrong.push(format!("before the fault: {why}"));
            return;
        }
    };
    let stable = rest.stable;
    // The clients of the case before gave up when their load ended: that is counted by now.
    std::thread::sleep(Duration::from_secs(1));
    (case.before)(stage);
    let shape = LoadShape { request_time: Duration::from_secs(20), ..LoadShape::of_rate(10.0) };
    let errors = |stage: &Stage| -> BTreeMap<String, eye::Server> {
        stage.eye.servers().into_iter().map(|s| (s.name.clone(), s)).collect()
    };
    stage.eye.forget_peaks();
    let before = errors(stage);
    stage.write(case.spec);
    let stage = &*stage;
    let traffic = stage.operator.load_shaped(shape);
    wait_until("the first answers", Duration::from_secs(20), || traffic.counts().ok >= 3);

    let began = Instant::now();
    let applied = stage.operator.run(&["apply", "chat", "--yes"]);
    let mut release = 0;
    row.lowest = rest.ready;
    if case.end == End::Refused {
        row.end = "refused".to_owned();
        if !matches!(applied.code(), Some(1 | 6)) || !case.is_why(&applied.stderr) {
            row.wrong.push(format!("not refused for `{}`: {applied:#?}", case.why));
        }
    } else if applied.code() != Some(0) {
        // A model that cannot be read is refused before anything is touched, which is as good.
        row.end = format!("refused ({:?})", applied.code());
        if case.end != End::RolledBack || !case.why.is_empty() {
            row.wrong.push(format!("apply: {applied:#?}"));
        }
    } else {
        (case.fault)(stage);
        let mut floor_broken = None;
        let mut asks = None;
        let outcome = loop {
            if let Some(chat) = stage.operator.look() {
                row.lowest = row.lowest.min(chat.ready);
                if chat.ready < chat.floor && case.broken == Broken::Nothing {
                    floor_broken =
                        Some(format!("{} ready, the floor is {}", chat.ready, chat.floor));
                }
                let to = chat.rollout.as_ref().filter(|r| Some(r.to) != stable);
                release = to.map_or(release, |r| r.to.0);
                if let Some(outcome) = to.and_then(|r| r.outcome.clone()) {
                    break Some(outcome);
                }
                if let Some(Gate::Inconclusive { why }) = to.and_then(|r| r.gate.clone()) {
                    asks = Some(why);
                    break None;
                }
            } else {
                // Whoever was killed is started by the next command.
                let _ = stage.operator.run(&["status", "chat"]);
            }
            if began.elapsed() > case.within {
                break None;
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        row.wrong.extend(floor_broken);
        let (end, why) = match &outcome {
            None if asks.is_some() => ("asks", asks.unwrap_or_default()),
            None => ("not over", String::new()),
            Some(Outcome::Completed) => ("completed", String::new()),
            Some(Outcome::RolledBack { why }) => ("rolled back", why.clone()),
            Some(Outcome::Aborted { why }) => ("aborted", why.clone()),
            Some(Outcome::Failed { why }) => ("failed", why.clone()),
        };
        row.end = if why.is_empty() { end.to_owned() } else { format!("{end}: {why}") };
        let wanted = match case.end {
            End::Completed => "completed",
            End::RolledBack => "rolled back",
            End::Aborted => "aborted",
            End::Asks => "asks",
            End::Refused => "refused",
        };
        if end != wanted || !case.is_why(&why) {
            row.wrong.push(format!("expected {wanted} ({})", case.why));
        }
    }
    row.seconds = began.elapsed().as_secs_f64();
    (case.mend)(stage);
    match stage.come_to_rest() {
        Ok(rest) => {
            let kept = rest.stable == stable;
            if row.end != "completed" && !kept {
                row.wrong.push(format!("stable was {stable:?} and is {:?}", rest.stable));
            }
        }
        Err(why) => row.wrong.push(format!("afterwards: {why}")),
    }
    // Everything that was sent comes to its end.
    let sent = traffic.counts();
    let sent = sent.ok + sent.failed + sent.in_flight;
    wait_until("the requests in flight", Duration::from_secs(40), || {
        let counts = traffic.counts();
        counts.ok + counts.failed >= sent
    });
    let counts = traffic.counts();
    (row.ok, row.failed) = (counts.ok, counts.failed);
    std::thread::sleep(Duration::from_millis(500));
    for (name, server) in errors(stage) {
        let new = server.errors - before.get(&name).map_or(0, |b| b.errors);
        if case.broken.is_of(&server, release, stage.chosen()) {
            row.on_broken += new;
            // Of a host without power nobody hears what became of them, HAProxy neither.
            row.in_flight_there += if new == 0 { server.peak } else { 0 };
        } else {
            row.elsewhere += new;
            if new > 0 {
                row.wrong.push(format!("{new} failed on {name} of {}", server.host));
            }
        }
    }
    match case.broken {
        Broken::Nothing if row.failed > 0 => row.wrong.push("requests failed".to_owned()),
        Broken::Canary | Broken::Host(_) | Broken::Chosen
            if row.failed > row.on_broken + row.in_flight_there =>
        {
            row.wrong.push("requests failed that no broken server had".to_owned());
        }
        // In flight then, and what came until it was back with its table.
        Broken::Gateway if row.failed > 100 => {
            row.wrong.push("the gateway was away for too long".to_owned());
        }
        _ => {}
    }
}

#[test]
fn rollouts_serve_throughout_whatever_breaks() {
    let all = std::env::var("GPUDECK_NIGHTLY").is_ok_and(|v| v == "1");
    let words = std::env::var("GPUDECK_FAULTS").unwrap_or_default();
    let words: Vec<&str> = words.split(',').filter(|w| !w.is_empty()).collect();
    let chosen = |case: &Case| {
        if words.is_empty() {
            all || case.sample
        } else {
            words.iter().any(|w| case.name.contains(w))
        }
    };
    let Some(mut stage) = Stage::new() else { return };
    println!(
        "| fault | end | s | answered | failed | on the broken part | elsewhere | fewest ready | |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    let mut bad = Vec::new();
    let mut played = 0;
    for case in cases().iter().filter(|c| chosen(c)) {
        // Each begins from rest, whatever became of the one before.
        if let Err(why) = stage.come_to_rest() {
            println!("  the stage is made anew: {why}");
            stage = stage.anew();
        }
        let row = play(&mut stage, case);
        played += 1;
        let mark = if row.wrong.is_empty() { "✓" } else { "✗" };
        println!(
            "| {} | {} | {:.1} | {} | {} | {} | {} | {} | {mark} |",
            case.name,
            row.end.chars().take(110).collect::<String>(),
            row.seconds,
            row.ok,
            row.failed,
            row.on_broken,
            row.elsewhere,
            row.lowest
        );
        if !row.wrong.is_empty() {
            println!("  {}", row.wrong.join("\n  "));
            bad.push(case.name);
        }
    }
    println!("{played} faults, {} of them not as they should be: {bad:?}", bad.len());
    assert!(played > 0, "no fault has such a name");
    assert!(bad.is_empty(), "{bad:?}");
}
