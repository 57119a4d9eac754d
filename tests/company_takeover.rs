//! Two operators of one deck: the second waits and is told who holds the hosts, takes over when the
//! first has fallen silent, goes on in the middle of its rollout, and the first is refused when it is back.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

#[path = "common/mod.rs"]
mod common;
#[path = "company_takeover/decisions.rs"]
mod decisions;
#[path = "company_takeover/handover.rs"]
mod handover;
#[path = "company_takeover/left_out.rs"]
mod left_out;
#[path = "company_takeover/losses.rs"]
mod losses;
#[path = "company_takeover/replaced.rs"]
mod replaced;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{Finished, Gpudeck, Traces, run, wait_until};
use gpudeck::base::DeckId;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(120);

/// The deck and its two operators, each with a state directory (and a working copy) of its own. The
/// hosts are two agents of this machine.
struct Company {
    // What is left of it is killed at the end, before its folders go.
    traces: Traces,
    person: Gpudeck,
}

impl Company {
    fn new() -> Self {
        use std::os::unix::fs::PermissionsExt;
        let person = Gpudeck::new();
        person.run(["init", "--name", "shop"], DEADLINE).expect_success();
        let file = person.deck().join("deck.toml");
        let mut text = std::fs::read_to_string(&file).unwrap();
        for host in ["h1", "h2"] {
            text.push_str(&format!(
                "\n[hosts.{host}]\ntransport = \"local\"\nfirst_engine_port = {}\nagent_env = {{ GPUDECK_STATE_DIR = \"{}\" }}\n",
                common::engine_port(),
                person.home().join(host).display()
            ));
        }
        std::fs::write(&file, text).unwrap();
        // Notes every start before it becomes the engine.
        let note = person.home().join("note");
        std::fs::write(
            &note,
            "#!/bin/sh\necho \"$1\" >>\"$(dirname \"$0\")/starts\"\nshift\nexec \"$@\"\n",
        )
        .unwrap();
        std::fs::set_permissions(&note, std::fs::Permissions::from_mode(0o755)).unwrap();
        let company = Self { traces: Traces::of(&person), person };
        company.write_spec(&company.person.deck(), "one");
        company
    }

    fn write_spec(&self, deck: &Path, greeting: &str) {
        let spec = format!(
            r#"
model    = "tiny"
replicas = 2
device   = "cpu"
memory   = "1MiB"
env      = {{ GREETING = "{greeting}" }}

[engine.command]
run = ["{}", "{{release}}-{{replica}}", "{{gpudeck}}", "sim-engine", "--port", "{{port}}", "--load-time", "100ms"]

[placement]
spread = "host"

[rollout]
steps = [{{ weight = 50 }}, {{ approve = true }}]
"#,
            self.person.home().join("note").display()
        );
        std::fs::write(deck.join("services/chat.toml"), spec).unwrap();
    }

    fn home(&self, operator: &str) -> PathBuf {
        self.person.home().join(operator)
    }

    fn run(&self, operator: &str, deck: &Path, words: &str) -> Finished {
        let mut command = self.person.command(words.split(' '));
        run(command.current_dir(deck).env("GPUDECK_HOME", self.home(operator)), DEADLINE)
    }

    fn a(&self, words: &str) -> Finished {
        self.run("a", &self.person.deck(), words)
    }

    /// The second operator's working copy.
    fn clone(&self) -> PathBuf {
        self.person.home().join("clone")
    }

    fn b(&self, words: &str) -> Finished {
        self.run("b", &self.clone(), words)
    }

    fn make_clone(&self) {
        let from = self.person.deck();
        let mut builder = git2::build::RepoBuilder::new();
        builder.clone(from.to_str().unwrap(), &self.clone()).unwrap();
    }

    /// The spec without its gate for a person: a rollout goes through by itself.
    fn write_spec_without_gate(&self, greeting: &str) {
        self.write_spec(&self.person.deck(), greeting);
        let file = self.person.deck().join("services/chat.toml");
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, text.replace(", { approve = true }", "")).unwrap();
    }

    /// The state directory of the first operator.
    fn state(&self) -> PathBuf {
        std::fs::read_dir(self.home("a")).unwrap().flatten().next().unwrap().path()
    }

    /// Sends the first operator's controller a signal; returns which process it is.
    fn signal_first(&self, signal: Signal) -> Pid {
        let first = Self::pid(&self.a("controller status --output json"));
        kill_process(first, signal).unwrap();
        first
    }

    /// Waits for the gate of the first operator's rollout.
    #[track_caller]
    fn await_gate(&self) {
        wait_until("the gate", DEADLINE, || {
            self.a("status chat").stdout.contains("waits for approval")
        });
    }

    /// The service and the controller of `gpudeck` are stopped, and nothing of any of it is there afterwards.
    #[track_caller]
    fn ends(&self, gpudeck: impl Fn(&str) -> Finished) {
        stop_chat(&gpudeck);
        gpudeck("controller stop").expect_success();
        self.traces.expect_none(&self.person);
    }

    fn starts(&self) -> BTreeMap<String, usize> {
        let text = std::fs::read_to_string(self.person.home().join("starts")).unwrap_or_default();
        let mut counts = BTreeMap::new();
        for line in text.lines() {
            *counts.entry(line.trim_start_matches('r').to_owned()).or_default() += 1;
        }
        counts
    }

    fn id(&self) -> DeckId {
        let state = self.state();
        DeckId(state.file_name().unwrap().to_string_lossy().parse().unwrap())
    }

    /// What a host keeps for whoever takes over: HOST/MACHINE/decks/DECK/NAME.
    fn kept_at(&self, host: &str, name: &str) -> Option<PathBuf> {
        let within = |dir: PathBuf| std::fs::read_dir(dir).ok()?.flatten().next().map(|e| e.path());
        let decks = within(self.person.home().join(host))?.join("decks");
        Some(within(decks)?.join(name))
    }

    fn kept(&self, host: &str, name: &str) -> Option<String> {
        std::fs::read_to_string(self.kept_at(host, name)?).ok()
    }

    fn pid(done: &Finished) -> Pid {
        let status: Value = serde_json::from_str(&done.stdout).unwrap();
        Pid::from_raw(i32::try_from(status["version"]["pid"].as_i64().unwrap()).unwrap()).unwrap()
    }
}

fn json(done: Finished) -> Value {
    serde_json::from_str(&done.expect_success().stdout).unwrap()
}

/// Stops the service, and waits for it.
#[track_caller]
fn stop_chat(gpudeck: impl Fn(&str) -> Finished) {
    gpudeck("stop chat --yes").expect_success();
    wait_until("the stop", DEADLINE, || gpudeck("status chat").stdout.contains("stopped"));
}

/// Each of these replicas (`RELEASE-REPLICA`) was started once.
fn once<const N: usize>(replicas: [&str; N]) -> BTreeMap<String, usize> {
    replicas.into_iter().map(|replica| (replica.to_owned(), 1)).collect()
}
