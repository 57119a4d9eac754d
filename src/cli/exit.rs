//! Exit codes (documented in `docs/cli.md`) and how errors are told.

use std::process::ExitCode;

use super::args::{Args, Output};
use crate::api::{ApiError, ErrorKind, Hint, HostName, text};

/// The command line was not understood.
pub const USAGE: u8 = 64;

/// A command that did what it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Success {
    /// 0.
    Done,
    /// 2: `plan` found changes.
    Changes,
    /// 3: the rollout, drain or upgrade that was waited for was taken back or failed.
    TakenBack,
    /// 4: the time for waiting is up; the rollout goes on.
    TimeIsUp,
}

impl From<Success> for ExitCode {
    fn from(success: Success) -> Self {
        Self::from(match success {
            Success::Done => 0,
            Success::Changes => 2,
            Success::TakenBack => 3,
            Success::TimeIsUp => 4,
        })
    }
}

/// A command that failed.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The exit code.
    pub code: u8,
    /// What is wrong.
    pub message: String,
    /// What to do next.
    pub hint: Option<String>,
}

/// What is wrong, and not yet what to do about it: no command fails without a next step.
#[derive(Clone, Debug)]
pub struct Wrong {
    code: u8,
    message: String,
}

impl Wrong {
    /// The same with this exit code.
    #[must_use]
    pub fn code(self, code: u8) -> Self {
        Self { code, ..self }
    }

    /// With what to do next.
    #[must_use]
    pub fn with_hint(self, hint: impl Into<String>) -> Failure {
        Failure { code: self.code, message: self.message, hint: Some(hint.into()) }
    }

    /// Of what does not depend on anything that the person did.
    #[must_use]
    pub fn unforeseen(self) -> Failure {
        self.with_hint(UNFORESEEN)
    }
}

/// What to do about what nobody has thought of.
const UNFORESEEN: &str = "run it again; `gpudeck events` and controller.log (`gpudeck controller status` says where) tell more";

impl Failure {
    /// Exit code 1, unless it is given another one.
    pub fn other(message: impl Into<String>) -> Wrong {
        Wrong { code: 1, message: message.into() }
    }

    /// The deck has no such host: the nearest name, or all of them where they are few.
    pub fn no_host<'a>(host: &HostName, known: impl Iterator<Item = &'a HostName>) -> Self {
        let known: Vec<&str> = known.map(HostName::as_str).collect();
        let hint = match text::nearest(host.as_str(), known.iter().copied()) {
            Some(near) => format!("did you mean `{near}`?"),
            None if known.is_empty() => {
                "the deck has no host: write them into deck.toml".to_owned()
            }
            None if known.len() > 20 => "`gpudeck hosts` lists them".to_owned(),
            None => format!("the deck has {}", known.join(", ")),
        };
        Self::other(format!("there is no host {host}")).code(8).with_hint(hint)
    }

    /// What an error of ours says, with its next step.
    pub fn of<E: std::fmt::Display + Hint>(error: &E) -> Self {
        let wrong = Self::other(error.to_string());
        match error.hint() {
            Some(hint) => wrong.with_hint(hint),
            None => wrong.unforeseen(),
        }
    }

    /// Exit code 130, as shells have it for Ctrl-C. What a command has begun goes on (`begun`); of one that only shows
    /// there is no more to say.
    pub fn interrupted(begun: bool) -> Self {
        let hint = begun.then(|| "what was begun goes on; `gpudeck status` shows it".to_owned());
        Self { code: 130, message: "interrupted".to_owned(), hint }
    }

    /// Exit code 141, as shells have it for SIGPIPE: who read the output wants no more of it. Nothing is told, as
    /// other tools tell nothing to `head` or `grep -q`.
    pub fn unread() -> Self {
        Self { code: 141, message: String::new(), hint: None }
    }

    /// The same for `plan`, whose codes are 0, 2 and 1, as the plan commands of other tools have them: whatever
    /// went wrong is 1.
    #[must_use]
    pub fn of_a_plan(self) -> Self {
        let code = if (5..=9).contains(&self.code) { 1 } else { self.code };
        Self { code, ..self }
    }

    /// The same with another next step.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        let code = match error.kind {
            ErrorKind::Invalid | ErrorKind::Internal => 1,
            ErrorKind::Conflict => 5,
            ErrorKind::Unplaceable | ErrorKind::Outage => 6,
            ErrorKind::Unreachable => 7,
            ErrorKind::NotFound => 8,
            ErrorKind::Fenced => 9,
        };
        let wrong = Self::other(error.message).code(code);
        match (error.hint, error.kind) {
            (Some(hint), _) => wrong.with_hint(hint),
            (None, ErrorKind::Unreachable) => {
                wrong.with_hint("`gpudeck hosts` says how the hosts are; `gpudeck doctor HOST` looks closer")
            }
            (None, ErrorKind::Fenced) => {
                wrong.with_hint("`gpudeck status` says who holds the hosts; `gpudeck controller take-over` takes them")
            }
            (None, _) => wrong.unforeseen(),
        }
    }
}

/// Tells the error as a JSON object on standard error and gives its code.
pub fn report_json(failure: &Failure) -> ExitCode {
    let value = serde_json::json!({
        "error": failure.message, "hint": failure.hint, "exit_code": failure.code,
    });
    eprintln!("{value}");
    ExitCode::from(failure.code)
}

/// Tells the error on standard error and gives its code.
pub fn report(args: &Args, failure: &Failure) -> ExitCode {
    match args.output {
        _ if failure.message.is_empty() => {}
        Output::Json => return report_json(failure),
        Output::Text => {
            eprintln!("gpudeck: {}", failure.message);
            if let Some(hint) = &failure.hint {
                eprintln!("  → {hint}");
            }
        }
    }
    ExitCode::from(failure.code)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_has_its_documented_code_and_a_next_step() {
        let documented = include_str!("../../docs/cli.md");
        for kind in [
            ErrorKind::Invalid,
            ErrorKind::NotFound,
            ErrorKind::Conflict,
            ErrorKind::Unplaceable,
            ErrorKind::Outage,
            ErrorKind::Unreachable,
            ErrorKind::Fenced,
            ErrorKind::Internal,
        ] {
            let error = |hint| ApiError { kind, message: "no".to_owned(), hint };
            let bare = Failure::from(error(None));
            assert!(bare.hint.is_some(), "{kind:?}");
            assert!(documented.contains(&format!("\n| {} |", bare.code)), "{kind:?}: {bare:?}");
            let told = Failure::from(error(Some("do this".to_owned())));
            assert_eq!((told.code, told.hint.as_deref()), (bare.code, Some("do this")));
        }
        assert!(Failure::interrupted(true).hint.is_some());
    }
}
