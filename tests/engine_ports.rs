//! The ports of engines: which one a plan takes, and on which address of its host an engine listens.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod common;

use std::net::TcpListener;
use std::time::Duration;

use common::{Gpudeck, Traces};
use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(90);

const SPEC: &str = r#"
model  = "tiny"
engine = { command = { run = ["{gpudeck}", "sim-engine", "--address", "{address}", "--port", "{port}", "--load-time", "50ms"] } }
device = "cpu"
memory = "1MiB"
"#;

/// A person whose deck has this machine, with engine ports from the one that is returned on.
fn begin(more: &str) -> (Gpudeck, Traces, u16) {
    let person = Gpudeck::new();
    let traces = Traces::of(&person);
    person.run(["init"], DEADLINE).expect_success();
    let first = common::engine_port();
    let deck = format!(
        "id = \"01930000-0000-7000-8000-000000000001\"\nname = \"ports\"\n\n[hosts.here]\n\
         transport = \"local\"\nfirst_engine_port = {first}\n{more}\
         agent_env = {{ GPUDECK_STATE_DIR = \"{}\" }}\n",
        person.home().join("agent").display(),
    );
    std::fs::write(person.deck().join("deck.toml"), deck).unwrap();
    std::fs::write(person.deck().join("services/chat.toml"), SPEC).unwrap();
    (person, traces, first)
}

fn apply(person: &Gpudeck) -> common::Finished {
    person.run(["apply", "chat", "--yes", "--wait", "--timeout", "60s"], DEADLINE)
}

fn end(person: &Gpudeck) {
    person.run(["stop", "chat", "--yes"], DEADLINE).expect_success();
    person.run(["controller", "stop"], DEADLINE).expect_success();
}

fn port_of_the_engine(person: &Gpudeck) -> Value {
    let status = person.run(["status", "chat", "--output", "json"], DEADLINE);
    let status: Value = serde_json::from_str(&status.stdout).unwrap();
    status["replicas"][0]["ranks"][0]["port"].clone()
}

#[test]
fn a_port_at_which_something_else_listens_is_given_to_no_engine() {
    let (person, _traces, first) = begin("");
    let foreign = TcpListener::bind(("0.0.0.0", first)).unwrap();
    apply(&person).expect_success();
    assert_eq!(port_of_the_engine(&person), first + 1);
    // Its owner has gone: the port is there again for the next one.
    drop(foreign);
    let spec = person.deck().join("services/chat.toml");
    std::fs::write(spec, SPEC.replace("50ms", "60ms")).unwrap();
    apply(&person).expect_success();
    assert_eq!(port_of_the_engine(&person), first);
    end(&person);
}

#[test]
fn a_port_that_is_taken_after_the_plan_is_left_out_the_next_time() {
    let (person, _traces, first) = begin("");
    // It stands in no table of the kernel until somebody listens there: a plan cannot know of it.
    let foreign = common::bound(first);
    let refused = apply(&person);
    assert_ne!(refused.code(), Some(0), "{refused:#?}");
    assert!(format!("{refused:?}").contains("in use"), "{refused:#?}");
    apply(&person).expect_success();
    assert_eq!(port_of_the_engine(&person), first + 1);
    drop(foreign);
    end(&person);
}

#[test]
fn an_engine_listens_where_its_host_says_and_is_asked_there() {
    let (person, _traces, first) = begin("engine_listen = \"127.0.0.2\"\n");
    apply(&person).expect_success();
    assert!(std::net::TcpStream::connect(("127.0.0.2", first)).is_ok());
    assert!(std::net::TcpStream::connect(("127.0.0.1", first)).is_err());
    end(&person);
}
