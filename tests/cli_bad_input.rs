//! What can be wrong: each gives one clear message with the cause and the next step, the documented exit
//! code, and leaves nothing half-done. (Host keys and keys of users: `ssh_real`.)
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

#[path = "common/mod.rs"]
mod common;
#[path = "cli_bad_input/decks.rs"]
mod decks;
#[path = "cli_bad_input/models.rs"]
mod models;
#[path = "cli_bad_input/next_steps.rs"]
mod next_steps;
#[path = "cli_bad_input/surroundings.rs"]
mod surroundings;
#[path = "cli_bad_input/words.rs"]
mod words;

use std::time::Duration;

use common::{Finished, Gpudeck, Traces};
use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(60);

/// An engine of the user's that the simulated one plays.
const COMMAND: &str = r#"
model  = "tiny"
engine = { command = { run = ["{gpudeck}", "sim-engine", "--port", "{port}", "--load-time", "50ms"] } }
device = "cpu"
memory = "1MiB"
"#;

/// A deck with this machine as its host `here`; what is left of it is killed at the end.
struct Deck {
    traces: Traces,
    person: Gpudeck,
    port: u16,
}

impl Deck {
    fn new() -> Self {
        let person = Gpudeck::new();
        let traces = Traces::of(&person);
        let port = common::engine_port();
        let deck = Self { traces, person, port };
        deck.run("init").expect_success();
        deck.write("deck.toml", &deck.deck_toml());
        deck
    }

    fn deck_toml(&self) -> String {
        format!(
            "id = \"01930000-0000-7000-8000-000000000001\"\nname = \"bad\"\n\n[hosts.here]\n\
             transport = \"local\"\nfirst_engine_port = {}\n\
             agent_env = {{ GPUDECK_STATE_DIR = \"{}\" }}\n",
            self.port,
            self.person.home().join("agent").display()
        )
    }

    fn write(&self, file: &str, text: &str) {
        std::fs::write(self.person.deck().join(file), text).unwrap();
    }

    fn run(&self, words: &str) -> Finished {
        self.person.run(words.split(' '), DEADLINE)
    }

    /// The command is refused with this code, and the message and the next step have these words; in JSON
    /// it is the same.
    #[track_caller]
    fn refused(&self, words: &str, code: i32, message: &[&str], hint: &[&str]) {
        let finished = self.run(words);
        assert_eq!(finished.code(), Some(code), "{words}: {finished:#?}");
        let (said, next) = finished
            .stderr
            .split_once("\n  → ")
            .unwrap_or_else(|| panic!("{words}: no next step: {finished:#?}"));
        for part in message {
            assert!(said.contains(part), "{words}: `{part}` is not in {said}");
        }
        for part in hint {
            assert!(next.contains(part), "{words}: `{part}` is not in {next}");
        }
        assert!(!said.contains("panicked"), "{said}");

        let json = self.run(&format!("{words} --output json"));
        assert_eq!(json.code(), Some(code), "{words}: {json:#?}");
        let error: Value = serde_json::from_str(json.stderr.trim()).unwrap();
        assert_eq!(error["exit_code"], code, "{error}");
        assert!(error["hint"].is_string() && error["error"].is_string(), "{error}");
    }

    /// No release was made, nothing runs, nothing was committed.
    #[track_caller]
    fn nothing_was_done(&self, service: &str) {
        let history = self.run(&format!("history {service} --output json")).expect_success();
        assert_eq!(history.stdout.trim(), "[]", "a release was made");
        let status = self.run(&format!("status {service} --output json")).expect_success();
        let status: Value = serde_json::from_str(&status.stdout).unwrap();
        assert!(status["rollout"].is_null() && status["stable"].is_null(), "{status:#}");
        assert_eq!(status["replicas"], serde_json::json!([]), "{status:#}");
    }

    fn status(&self, service: &str) -> Value {
        let status = self.run(&format!("status {service} --output json")).expect_success();
        serde_json::from_str(&status.stdout).unwrap()
    }
}

impl Drop for Deck {
    fn drop(&mut self) {
        // The rest of what runs goes with the traces.
        drop(self.person.run(["controller", "stop"], Duration::from_secs(15)));
    }
}
