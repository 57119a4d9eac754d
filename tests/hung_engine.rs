//! Engines that were ready, live on and do not serve: one that hangs (its port takes connections, and nothing is
//! ever answered), and one that answers everything with a 503.

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

/// A person whose deck has this machine and two replicas that serve.
struct Served {
    person: Gpudeck,
    traces: Traces,
}

impl Served {
    fn begin() -> Self {
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
        let apply = ["apply", "chat", "--yes", "--wait", "--timeout", "60s"];
        person.run(apply, DEADLINE).expect_success();
        Self { person, traces }
    }

    fn status(&self) -> String {
        self.person.run(["status", "chat"], DEADLINE).expect_success().stdout
    }

    fn ready(&self) -> u64 {
        let status = self.person.run(["status", "chat", "--output", "json"], DEADLINE);
        let status: Value = serde_json::from_str(&status.stdout).unwrap();
        status["ready"].as_u64().unwrap()
    }

    fn engine(&self) -> Pid {
        let mut all = self.traces.processes().into_iter();
        let engine = all.find(|(_, line)| line.contains(" sim-engine ")).expect("an engine runs");
        Pid::from_raw(engine.0).unwrap()
    }

    /// One engine is told to serve no more, and then to serve again.
    fn an_engine_stops_serving_and_comes_back(&self, stop: Signal, go_on: Signal, why: &str) {
        assert_eq!(self.ready(), 2);
        let engine = self.engine();
        kill_process(engine, stop).unwrap();
        wait_until("it is seen that one does not serve", DEADLINE, || self.ready() == 1);
        let status = self.status();
        assert!(status.contains(why) && status.contains("no token"), "{status}");

        kill_process(engine, go_on).unwrap();
        wait_until("it serves again", DEADLINE, || self.ready() == 2);
        let same = self.traces.processes().iter().any(|(p, _)| *p == engine.as_raw_nonzero().get());
        assert!(same, "it was not started anew");
    }

    fn end(self) {
        self.person.run(["stop", "chat", "--yes"], DEADLINE).expect_success();
        self.person.run(["controller", "stop"], DEADLINE).expect_success();
    }
}

#[test]
fn a_ready_engine_that_hangs_gets_no_requests_until_it_answers_again() {
    let served = Served::begin();
    let why = "nothing for 30 s, though it runs";
    served.an_engine_stops_serving_and_comes_back(Signal::STOP, Signal::CONT, why);
    served.end();
}

#[test]
fn a_ready_engine_that_answers_only_errors_gets_no_requests_until_it_generates_again() {
    let served = Served::begin();
    let why = "503 from /health and no token for 30 s";
    served.an_engine_stops_serving_and_comes_back(Signal::USR1, Signal::USR1, why);
    served.end();
}
