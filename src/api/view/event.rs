//! What happened, and what is asked of people.

use serde::{Deserialize, Serialize};

use crate::base::{HostName, ServiceName, Timestamp};

/// Something that happened, for people.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EventLine {
    /// When.
    pub at: Timestamp,
    /// How loud.
    pub severity: Severity,
    /// About which service.
    pub service: Option<ServiceName>,
    /// About which host.
    pub host: Option<HostName>,
    /// What, in words, cleaned.
    pub text: String,
}

/// How loud.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// As expected.
    Info,
    /// Worth a look.
    Warning,
    /// Something failed.
    Error,
}

/// A question that needs a person.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// Its id, for `Intent::Answer`.
    pub id: u64,
    /// Asked by which host's link.
    pub host: Option<HostName>,
    /// What kind.
    pub kind: QuestionKind,
    /// The question, for people.
    pub text: String,
    /// When it was asked.
    pub asked: Timestamp,
}

/// What kind of answer is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QuestionKind {
    /// `yes` or `no`: trust this new host key?
    HostKey,
    /// A passphrase, not to be shown while typed.
    Secret,
}
