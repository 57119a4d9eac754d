//! The step `run`: a command of the user's that decides by its exit code.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::base::{text, time};

/// A command gets so long unless the spec says otherwise.
const DEFAULT_TIMEOUT: Duration = Duration::from_mins(10);

/// The longest time a command may be given.
const MAX_TIMEOUT: Duration = Duration::from_hours(24);

/// Most words of a command.
const MAX_WORDS: usize = 256;

/// A command that is run in the deck's directory. Written as `run = ["./smoke.sh", "arg"]`, or as
/// `run = { command = ["./smoke.sh"], timeout = "2m" }`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunSpec {
    /// Program and arguments; no shell is between.
    pub command: Vec<String>,
    /// Longest it may run; then it has failed.
    pub timeout: Duration,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    command: Vec<String>,
    #[serde(with = "time::text", default = "default_timeout")]
    timeout: Duration,
}

const fn default_timeout() -> Duration {
    DEFAULT_TIMEOUT
}

impl RunSpec {
    /// The command with the timeout that it gets by default.
    pub const fn new(command: Vec<String>) -> Self {
        Self { command, timeout: DEFAULT_TIMEOUT }
    }

    /// The command for people, shortened.
    pub fn title(&self) -> String {
        text::clean(&self.command.join(" "), 60)
    }

    /// What is wrong with it, and what to write.
    pub(super) fn complaint(&self) -> Option<(String, String)> {
        let example = "write for example run = [\"./smoke.sh\", \"--quick\"]".to_owned();
        let words = &self.command;
        if words.first().is_none_or(|program| program.trim().is_empty()) {
            return Some(("a step `run` has no command".to_owned(), example));
        }
        if words.len() > MAX_WORDS || words.iter().any(|w| w.contains('\0')) {
            return Some(("the command of a step `run` cannot be run".to_owned(), example));
        }
        if self.timeout.is_zero() || self.timeout > MAX_TIMEOUT {
            return Some((
                format!("timeout {} of a step `run` is out of range", time::short(self.timeout)),
                "write a timeout from 1ms to 24h".to_owned(),
            ));
        }
        None
    }
}

impl Serialize for RunSpec {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.timeout == DEFAULT_TIMEOUT {
            return self.command.serialize(serializer);
        }
        Table { command: self.command.clone(), timeout: self.timeout }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for RunSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(
            untagged,
            expecting = "a command such as [\"./smoke.sh\", \"arg\"], or a table with `command` and `timeout`"
        )]
        enum Form {
            Words(Vec<String>),
            Table(Table),
        }
        Ok(match Form::deserialize(deserializer)? {
            Form::Words(command) => Self::new(command),
            Form::Table(Table { command, timeout }) => Self { command, timeout },
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
mod tests {
    use super::*;
    use crate::spec::{StepSpec, parse_service};

    fn steps(step: &str) -> Result<Vec<StepSpec>, String> {
        let text = format!("model = \"/m\"\nengine = \"vllm\"\n[rollout]\nsteps = [{step}]");
        parse_service(&text, "chat").map(|s| s.rollout.steps).map_err(|e| e.to_string())
    }

    #[test]
    fn both_forms_are_read_and_written() {
        let short = steps("{ run = [\"./smoke.sh\", \"a b\"] }").unwrap();
        let words = vec!["./smoke.sh".to_owned(), "a b".to_owned()];
        assert_eq!(short, [StepSpec::Run(RunSpec::new(words.clone()))]);
        let long =
            steps("{ run = { command = [\"./smoke.sh\", \"a b\"], timeout = \"90s\" } }").unwrap();
        let timeout = Duration::from_secs(90);
        assert_eq!(long, [StepSpec::Run(RunSpec { command: words, timeout })]);
        for step in [&short[0], &long[0]] {
            let json = serde_json::to_string(step).unwrap();
            assert_eq!(serde_json::from_str::<StepSpec>(&json).unwrap(), *step);
        }
    }

    #[test]
    fn what_cannot_be_run_is_refused_with_an_example() {
        for bad in [
            "{ run = [] }",
            "{ run = [\"\"] }",
            "{ run = \"./smoke.sh\" }",
            "{ run = { timeout = \"1m\" } }",
            "{ run = { command = [\"x\"], timeout = \"0s\" } }",
            "{ run = { command = [\"x\"], timeout = \"25h\" } }",
            "{ run = { command = [\"x\"], shell = true } }",
        ] {
            assert!(steps(bad).is_err(), "{bad}");
        }
        assert!(steps("{ run = [] }").unwrap_err().contains("has no command"));
    }
}
