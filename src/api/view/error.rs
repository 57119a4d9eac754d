//! Errors as doors get them.

use serde::{Deserialize, Serialize};

use crate::base::Hint;

/// An error as doors get it: HTTP status by kind, this as the body.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// What kind, for exit codes.
    pub kind: ErrorKind,
    /// What is wrong.
    pub message: String,
    /// What to do next.
    pub hint: Option<String>,
}

impl Hint for ApiError {
    fn hint(&self) -> Option<String> {
        self.hint.clone()
    }
}

/// Kinds of errors; each has its exit code (documented in `docs/cli.md`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The spec or the request is wrong.
    Invalid,
    /// There is no such service, release, replica or host.
    NotFound,
    /// Not now: a rollout is under way, or none is.
    Conflict,
    /// It cannot be placed.
    Unplaceable,
    /// It would stop serving, and `--accept-outage` was not given.
    Outage,
    /// A host, a gateway or the controller is not reached.
    Unreachable,
    /// Another controller holds the hosts.
    Fenced,
    /// Anything else.
    Internal,
}
