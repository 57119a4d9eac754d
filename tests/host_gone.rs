//! What is taken out of the deck while it is served: a host (the person says that it is gone, and nobody waits for it
//! any more), and a service's spec, whose releases are in Git.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::time::Duration;

use common::{Gpudeck, Traces, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(90);

const SPEC: &str = r#"
model    = "tiny"
engine   = { command = { run = ["{gpudeck}", "sim-engine", "--port", "{port}", "--load-time", "50ms"] } }
device   = "cpu"
memory   = "1MiB"
replicas = 2

[placement]
spread = "host"

[rollout]
drain_deadline = "1s"
"#;

/// The deck's file with these hosts, all of them this machine.
fn hosts(person: &Gpudeck, names: &[&str]) -> String {
    let head = "id = \"01930000-0000-7000-8000-000000000001\"\nname = \"gone\"\n";
    let sections = names.iter().map(|name| {
        format!(
            "\n[hosts.{name}]\ntransport = \"local\"\nfirst_engine_port = {}\n\
             agent_env = {{ GPUDECK_STATE_DIR = \"{}\" }}\n",
            common::engine_port(),
            person.home().join(name).display(),
        )
    });
    format!("{head}{}", sections.collect::<String>())
}

#[test]
fn a_service_is_stopped_though_one_of_its_hosts_has_left_the_deck() {
    let person = Gpudeck::new();
    let traces = Traces::of(&person);
    person.run(["init"], DEADLINE).expect_success();
    let deck = person.deck().join("deck.toml");
    let both = hosts(&person, &["here", "there"]);
    std::fs::write(&deck, &both).unwrap();
    std::fs::write(person.deck().join("services/chat.toml"), SPEC).unwrap();
    person.run(["apply", "chat", "--yes", "--wait", "--timeout", "60s"], DEADLINE).expect_success();

    let (here, _) = both.split_once("\n[hosts.there]").unwrap();
    std::fs::write(&deck, here).unwrap();
    person.run(["stop", "chat", "--yes"], DEADLINE).expect_success();
    wait_until("nobody waits for the host that has left", DEADLINE, || {
        let status = person.run(["status", "chat", "--output", "json"], DEADLINE);
        let status: Value = serde_json::from_str(&status.stdout).unwrap();
        status["condition"] == "stopped"
    });
    person.run(["controller", "stop"], DEADLINE).expect_success();

    // What runs there was left alone: only its host could have ended it.
    let left = || {
        let all = traces.processes().into_iter();
        all.filter(|(_, line)| line.contains(" sim-engine "))
            .map(|(pid, _)| pid)
            .collect::<Vec<_>>()
    };
    let [pid] = left()[..] else { panic!("{:?}", left()) };
    kill_process(Pid::from_raw(pid).unwrap(), Signal::TERM).unwrap();
    wait_until("it ends", DEADLINE, || left().is_empty());
}

#[test]
fn what_a_host_had_that_has_left_the_deck_is_placed_elsewhere() {
    let person = Gpudeck::new();
    let traces = Traces::of(&person);
    person.run(["init"], DEADLINE).expect_success();
    let deck = person.deck().join("deck.toml");
    std::fs::write(&deck, hosts(&person, &["here", "there"])).unwrap();
    std::fs::write(person.deck().join("services/chat.toml"), SPEC).unwrap();
    person.run(["apply", "chat", "--yes", "--wait", "--timeout", "60s"], DEADLINE).expect_success();
    let engines = || -> Vec<i32> {
        let all = traces.processes().into_iter();
        all.filter(|(_, line)| line.contains(" sim-engine ")).map(|(pid, _)| pid).collect()
    };
    let first = engines();
    assert_eq!(first.len(), 2);

    std::fs::write(&deck, hosts(&person, &["here", "spare"])).unwrap();
    let drain = ["drain", "there", "--yes", "--wait", "--timeout", "60s"];
    person.run(drain, DEADLINE).expect_success();
    let status = person.run(["status", "chat", "--output", "json"], DEADLINE).stdout;
    let status: Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["ready"], 2, "{status:#}");
    assert!(!status["replicas"].to_string().contains("there"), "{status:#}");
    let unknown = person.run(["drain", "nowhere", "--yes"], DEADLINE);
    assert_eq!(unknown.code(), Some(8), "{unknown:?}");

    person.run(["stop", "chat", "--yes"], DEADLINE).expect_success();
    wait_until("it stops", DEADLINE, || {
        let status = person.run(["status", "chat", "--output", "json"], DEADLINE);
        let status: Value = serde_json::from_str(&status.stdout).unwrap();
        status["condition"] == "stopped"
    });
    person.run(["controller", "stop"], DEADLINE).expect_success();
    // What ran on the host that is gone was left alone.
    let [left] = engines()[..] else { panic!("{:?}", engines()) };
    assert!(first.contains(&left));
    kill_process(Pid::from_raw(left).unwrap(), Signal::TERM).unwrap();
    wait_until("it ends", DEADLINE, || engines().is_empty());
}

#[test]
fn a_service_whose_spec_was_taken_away_can_be_gone_back_to() {
    let person = Gpudeck::new();
    let traces = Traces::of(&person);
    person.run(["init"], DEADLINE).expect_success();
    std::fs::write(person.deck().join("deck.toml"), hosts(&person, &["here"])).unwrap();
    let spec = person.deck().join("services/chat.toml");
    let first = SPEC.replace("replicas = 2", "replicas = 1");
    let apply = || {
        let apply = ["apply", "chat", "--yes", "--wait", "--timeout", "60s"];
        person.run(apply, DEADLINE).expect_success();
    };
    std::fs::write(&spec, &first).unwrap();
    apply();
    std::fs::write(&spec, first.replace("50ms", "60ms")).unwrap();
    apply();
    std::fs::remove_file(&spec).unwrap();

    let history = person.run(["history", "chat"], DEADLINE).expect_success().stdout;
    assert!(history.contains("r1") && history.contains("r2"), "{history}");
    let refused = person.run(["plan", "chat"], DEADLINE);
    assert_eq!(refused.code(), Some(1), "{refused:?}");
    let said = format!("{}{}", refused.stdout, refused.stderr);
    assert!(said.contains("services/chat.toml is not there; r2 is served on"), "{said}");
    let way = said.split_once("`git checkout ").unwrap().1.split_once('`').unwrap().0;
    let (revision, file) = way.split_once(" -- ").unwrap();
    assert!(revision.len() >= 7 && file == "services/chat.toml", "{said}");

    // Without the file: both ways of saying where to.
    person.run(["rollout", "undo", "chat", "--yes", "--wait"], DEADLINE).expect_success();
    assert_eq!(std::fs::read_to_string(&spec).unwrap(), first, "the deck says what is served");
    std::fs::remove_file(&spec).unwrap();
    let back = ["rollout", "undo", "chat", "--to", "r2", "--yes", "--wait"];
    person.run(back, DEADLINE).expect_success();
    assert!(std::fs::read_to_string(&spec).unwrap().contains("60ms"));

    person.run(["stop", "chat", "--yes"], DEADLINE).expect_success();
    wait_until("it stops", DEADLINE, || {
        person.run(["status", "chat"], DEADLINE).stdout.contains("stopped")
    });
    person.run(["controller", "stop"], DEADLINE).expect_success();
    traces.expect_none(&person);
}
