//! Engines that answer only to who has their key: it lies in a file on the hosts, and is found nowhere else.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{Finished, Gpudeck, Traces};

const DEADLINE: Duration = Duration::from_secs(120);

const KEY: &str = "sk-7hXz.that-nobody-else-has";

/// A person whose deck has this machine.
struct Person {
    gpudeck: Gpudeck,
    traces: Traces,
    key_file: PathBuf,
}

impl Person {
    fn new() -> Self {
        let gpudeck = Gpudeck::new();
        let traces = Traces::of(&gpudeck);
        gpudeck.run(["init"], DEADLINE).expect_success();
        let deck = format!(
            "id = \"01930000-0000-7000-8000-000000000001\"\nname = \"keys\"\n\n[hosts.here]\n\
             transport = \"local\"\nfirst_engine_port = {}\n\
             agent_env = {{ GPUDECK_STATE_DIR = \"{}\" }}\n",
            common::engine_port(),
            gpudeck.home().join("agent").display(),
        );
        fs::write(gpudeck.deck().join("deck.toml"), deck).unwrap();
        // Outside of all that is searched for the key afterwards.
        let key_file = gpudeck.scratch().join("keys").join("chat.key");
        fs::create_dir(key_file.parent().unwrap()).unwrap();
        fs::write(&key_file, format!("{KEY}\n")).unwrap();
        Self { gpudeck, traces, key_file }
    }

    /// Rolls out a service whose engine is run by `run`, and has its answers looked at.
    fn apply(&self, run: &str, more: &str) -> Finished {
        let spec = format!(
            "model = \"tiny\"\ndevice = \"cpu\"\nmemory = \"1MiB\"\napi_key_file = \"{}\"\n\n\
             [engine.command]\nrun = [\"{{gpudeck}}\", \"sim-engine\", \"--port\", \"{{port}}\", \"--load-time\", \
             \"50ms\"{run}]\n{more}\n[rollout]\nsteps = [{{ weight = 100 }}, {{ analyse = \"a\" }}]\n\
             max_surge = 1\n\n[analysis.a]\nduration = \"1s\"\nmin_requests = 0\n\n\
             [[analysis.a.golden]]\nprompt = \"Say it\"\ncontains = \"SIMULATED\"\n",
            self.key_file.display(),
        );
        fs::write(self.gpudeck.deck().join("services/chat.toml"), spec).unwrap();
        let apply = ["apply", "chat", "--yes", "--wait", "--timeout", "90s"];
        self.gpudeck.run(apply, DEADLINE)
    }

    /// The port of the engine that runs.
    fn port(&self) -> u16 {
        let mut all = self.traces.processes().into_iter().map(|(_, line)| line);
        let line = all.find(|line| line.contains(" sim-engine ")).expect("an engine runs");
        let mut words = line.split(' ').skip_while(|word| *word != "--port");
        words.nth(1).unwrap().parse().unwrap()
    }

    fn end(&self) {
        self.gpudeck.run(["stop", "chat", "--yes"], DEADLINE).expect_success();
        self.gpudeck.run(["controller", "stop"], DEADLINE).expect_success();
    }
}

/// The status of a page of the engine.
fn status_of(port: u16, path: &str, header: &str) -> u16 {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{header}\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text.split(' ').nth(1).unwrap().parse().unwrap()
}

/// Files under a folder that hold the key.
fn holding(folder: &Path, key_file: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            found.extend(holding(&path, key_file));
        } else if kind.is_file() && path != key_file {
            let bytes = fs::read(&path).unwrap_or_default();
            if bytes.windows(KEY.len()).any(|window| window == KEY.as_bytes()) {
                found.push(path);
            }
        }
    }
    found
}

#[test]
fn an_engine_with_a_key_is_rolled_out_and_the_key_stays_in_its_file() {
    let person = Person::new();
    // By its file; with the page of metrics behind the key, too.
    person.apply(", \"--api-key-file\", \"{api_key_file}\"", "metrics = \"vllm\"").expect_success();
    let port = person.port();
    assert_eq!(status_of(port, "/metrics", ""), 401, "it answers to nobody without the key");
    assert_eq!(status_of(port, "/metrics", &format!("authorization: Bearer {KEY}\r\n")), 200);

    // As vLLM is given it: by a variable. The golden prompt is asked of the new release.
    let told = ", \"--api-key-variable\", \"VLLM_API_KEY\"";
    person.apply(told, "metrics = \"vllm\"").expect_success();
    let variable = person.port();
    assert_ne!(variable, port, "another engine serves");
    assert_eq!(status_of(variable, "/v1/models", ""), 401);

    let lines: Vec<String> = person.traces.processes().into_iter().map(|(_, line)| line).collect();
    assert!(!lines.iter().any(|line| line.contains(KEY)), "{lines:?}");
    let logs = person.gpudeck.run(["logs", "chat"], DEADLINE).expect_success();
    assert!(!logs.stdout.contains(KEY), "{}", logs.stdout);
    person.end();
    // Its deck, its journal and logs, and what the agent keeps.
    let all = person.gpudeck.home().parent().unwrap().to_owned();
    assert_eq!(holding(&all, &person.key_file), Vec::<PathBuf>::new());
}

#[test]
fn a_key_that_is_not_there_is_the_reason_and_not_a_timeout() {
    let person = Person::new();
    fs::write(&person.key_file, "two words\n").unwrap();
    let failed = person.apply("", "metrics = \"vllm\"");
    assert_eq!(failed.code(), Some(3), "{}{}", failed.stdout, failed.stderr);
    let said = format!("{}{}", failed.stdout, failed.stderr);
    assert!(said.contains("chat.key cannot be used: its first line is not a key"), "{said}");
    assert!(!said.contains("two words"), "{said}");
    person.gpudeck.run(["controller", "stop"], DEADLINE).expect_success();
}
