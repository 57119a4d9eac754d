//! An engine that was ready and hangs: it lives, its port takes connections, and nothing is ever answered.

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
"#;

#[test]
fn a_ready_engine_that_hangs_gets_no_requests_until_it_answers_again() {
    let person = Gpudeck::new();
    let traces = Traces::of(&person);
    person.run(["init"], DEADLINE).expect_success();
    let deck = format!(
        "id = \"01930000-0000-7000-8000-000000000001\"\nname = \"hung\"\n\n[hosts.here]\n\
         transport = \"local\"\nfirst_engine_port = {}\n\
         agent_env = {{ GPUDECK_STATE_DIR = \"{}\" }}\n",
        common::engine_port(),
        person.home().join("agent").display(),
    );
    std::fs::write(person.deck().join("deck.toml"), deck).unwrap();
    std::fs::write(person.deck().join("services/chat.toml"), SPEC).unwrap();
    person.run(["apply", "chat", "--yes", "--wait", "--timeout", "60s"], DEADLINE).expect_success();

    let ready = || {
        let status = person.run(["status", "chat", "--output", "json"], DEADLINE);
        let status: Value = serde_json::from_str(&status.stdout).unwrap();
        status["ready"].as_u64().unwrap()
    };
    assert_eq!(ready(), 2);
    let engine = traces.processes().into_iter().find(|(_, line)| line.contains(" sim-engine "));
    let pid = Pid::from_raw(engine.expect("an engine runs").0).unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    wait_until("it is seen that one hangs", DEADLINE, || ready() == 1);
    let status = person.run(["status", "chat"], DEADLINE).expect_success().stdout;
    assert!(status.contains("does not answer any more"), "{status}");

    kill_process(pid, Signal::CONT).unwrap();
    wait_until("it serves again", DEADLINE, || ready() == 2);
    let same = traces.processes().iter().any(|(p, _)| *p == pid.as_raw_nonzero().get());
    assert!(same, "it was not started anew");
    person.run(["stop", "chat", "--yes"], DEADLINE).expect_success();
    person.run(["controller", "stop"], DEADLINE).expect_success();
}
