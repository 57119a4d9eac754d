//! A host that is taken out of deck.toml while something of ours is to be stopped there: the person says that it is
//! gone, and nobody waits for it any more.

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

#[test]
fn a_service_is_stopped_though_one_of_its_hosts_has_left_the_deck() {
    let person = Gpudeck::new();
    let traces = Traces::of(&person);
    person.run(["init"], DEADLINE).expect_success();
    let hosts = |names: &[&str]| {
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
    };
    let deck = person.deck().join("deck.toml");
    let both = hosts(&["here", "there"]);
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
