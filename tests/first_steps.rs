//! The first steps of somebody new, without any gateway: a deck, this machine as its only host, a service,
//! a change and its undo, the end. Every command's exit code is the documented one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

#[path = "common/mod.rs"]
mod common;

use std::path::Path;
use std::time::Duration;

use common::{Finished, Gpudeck, Traces, wait_until};
use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(60);

/// Runs a command line of words without spaces in them.
fn gpudeck(person: &Gpudeck, words: &str) -> Finished {
    person.run(words.split(' '), DEADLINE)
}

#[track_caller]
fn done(person: &Gpudeck, words: &str) -> String {
    gpudeck(person, words).expect_success().stdout
}

#[track_caller]
fn json(person: &Gpudeck, words: &str, code: i32) -> Value {
    let finished = gpudeck(person, &format!("{words} --output json"));
    assert_eq!(finished.code(), Some(code), "{words}: {finished:#?}");
    serde_json::from_str(&finished.stdout).unwrap_or_else(|e| panic!("{words}: {e}: {finished:#?}"))
}

#[track_caller]
fn says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in:\n{text}");
    }
}

fn add(file: &Path, text: &str) {
    let before = std::fs::read_to_string(file).unwrap();
    std::fs::write(file, before + text).unwrap();
}

const SERVICE: &str = r#"
model  = "tiny"
engine = { command = { run = ["{gpudeck}", "sim-engine", "--port", "{port}", "--load-time", "100ms"] } }
device = "cpu"
memory = "1MiB"
"#;

#[test]
fn from_an_empty_directory_to_an_undo() {
    let person = Gpudeck::new();
    let traces = Traces::of(&person);
    let deck_toml = person.deck().join("deck.toml");
    let chat_toml = person.deck().join("services/chat.toml");

    // A deck.
    says(&done(&person, "init"), &["made a deck in", "next: edit deck.toml"]);
    for file in ["deck.toml", "services/chat.toml.example", ".git"] {
        assert!(person.deck().join(file).exists(), "init made no {file}");
    }
    let again = gpudeck(&person, "init");
    assert_eq!(again.code(), Some(5), "{again:#?}");
    says(&again.stderr, &["exists already", "→ edit it"]);

    // No hosts yet, which is nothing wrong.
    says(&done(&person, "hosts"), &["HOST", "STATE"]);
    assert_eq!(json(&person, "hosts", 0)["hosts"], serde_json::json!({}));
    says(&done(&person, "controller status"), &["runs with pid"]);

    // This machine, without SSH. The running controller takes it up by itself.
    let host = format!(
        "\n[hosts.here]\ntransport = \"local\"\nfirst_engine_port = {}\nagent_env = {{ GPUDECK_STATE_DIR = \"{}\" }}\n",
        common::engine_port(),
        person.home().join("agent").display()
    );
    add(&deck_toml, &host);
    wait_until("the host", DEADLINE, || done(&person, "hosts").contains("here"));
    let hosts = json(&person, "hosts", 0);
    assert_eq!(hosts["hosts"]["here"]["link"]["state"], "up", "{hosts:#}");
    assert!(hosts["hosts"]["here"]["sample"].is_object(), "{hosts:#}");

    // A service: what would an apply do?
    std::fs::write(&chat_toml, SERVICE).unwrap();
    let plan = json(&person, "plan chat", 2);
    assert_eq!(plan["nothing_to_do"], false, "{plan:#}");
    assert_eq!(plan["replicas"][0]["ranks"][0]["host"], "here", "{plan:#}");
    let plan = gpudeck(&person, "plan chat");
    assert_eq!(plan.code(), Some(2), "{plan:#?}");
    says(&plan.stdout, &["chat: nothing → r1", "placement", "chat/0/0  here  cpu", "journey"]);

    // It is rolled out, serves, and logs.
    let applied = done(&person, "apply chat -m first --wait --timeout 50s");
    says(&applied, &["chat: rolling out r1", "generated a token", "r1 is stable"]);
    says(&done(&person, "status"), &["chat", "serving", "1/1", "r1"]);
    says(&done(&person, "status chat"), &["chat: serving, 1/1 ready", "release r1", "chat/0/0"]);
    let status = json(&person, "status chat", 0);
    assert_eq!(status["condition"], "serving", "{status:#}");
    assert_eq!(status["rollout"]["outcome"], "completed", "{status:#}");
    let port = u16::try_from(status["replicas"][0]["ranks"][0]["port"].as_u64().unwrap()).unwrap();
    assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_ok(), "nothing serves on {port}");
    let logs = done(&person, "logs chat/0/0");
    assert!(!logs.trim().is_empty(), "the engine logged nothing");
    assert_eq!(done(&person, "logs chat"), logs);
    says(&done(&person, "events"), &["rolls out r1", "r1-0 starts on here", "r1 is stable"]);

    // Nothing more to do.
    assert_eq!(json(&person, "plan chat", 0)["nothing_to_do"], true);
    says(&done(&person, "plan chat"), &["chat: nothing to do, r1 is served"]);
    says(&done(&person, "apply chat --wait"), &["chat: nothing to do"]);

    // A change. The only replica is replaced: with a spare place first the new one, no outage.
    std::fs::write(&chat_toml, format!("{SERVICE}env = {{ GREETING = \"hello\" }}\n")).unwrap();
    let plan = gpudeck(&person, "plan chat");
    assert_eq!(plan.code(), Some(2), "{plan:#?}");
    says(&plan.stdout, &["chat: r1 → r2", "+", "GREETING"]);
    let lines = gpudeck(&person, "apply chat -m change --accept-outage --wait --output json");
    assert_eq!(lines.code(), Some(0), "{lines:#?}");
    let lines: Vec<Value> =
        lines.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.last().unwrap()["outcome"], "completed", "{lines:#?}");

    says(&done(&person, "history chat"), &["r2", "change", "r1", "first", "completed"]);
    let history = json(&person, "history chat", 0);
    let numbers: Vec<&Value> = history.as_array().unwrap().iter().map(|r| &r["number"]).collect();
    assert_eq!(numbers, [2, 1], "{history:#}");
    let diff = done(&person, "diff r1 r2");
    says(&diff, &["+env = { GREETING = \"hello\" }"]);
    assert!(json(&person, "diff r1 r2", 0).is_string());

    // Back, and the deck says what is served.
    let undone = done(&person, "rollout undo chat --wait --timeout 50s");
    says(&undone, &["chat: rolling out r3", "r3 is stable"]);
    says(&done(&person, "events"), &["goes back with r3"]);
    assert_eq!(std::fs::read_to_string(&chat_toml).unwrap(), SERVICE);
    assert_eq!(json(&person, "plan chat", 0)["nothing_to_do"], true);

    // The end.
    says(&done(&person, "stop chat -m too-costly"), &["accepted"]);
    wait_until("the stop", DEADLINE, || json(&person, "status chat", 0)["condition"] == "stopped");
    let history = done(&person, "history chat");
    let stopped = history.lines().nth(1).unwrap();
    says(stopped, &["stopped r3", "too-costly"]);
    let history = json(&person, "history chat", 0);
    assert_eq!(history[0]["stop"]["reason"], "too-costly", "{history:#}");
    says(&done(&person, "events"), &["stops the service: too-costly"]);
    says(&done(&person, "controller stop"), &["the controller has ended"]);
    says(&done(&person, "controller status"), &["no controller runs"]);
    // It is kept in Git, for whoever comes next.
    assert_eq!(json(&person, "history chat", 0)[0]["stop"]["release"], 3);
    says(&done(&person, "controller stop"), &["the controller has ended"]);
    traces.expect_none(&person);
}
