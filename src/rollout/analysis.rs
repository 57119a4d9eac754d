//! Is the new release as good as the old one? What was measured, and the verdict.

use serde::{Deserialize, Serialize};

use crate::base::Timestamp;

/// What was seen of some replicas over some time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Window {
    /// Finished requests.
    pub requests: u64,
    /// Those that failed: a 5xx status, a refused or a broken connection.
    pub errors: u64,
    /// Sum of their response times, milliseconds.
    pub response_ms_sum: f64,
}

/// What an analysis says, and the number that decided.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// Its name in the spec.
    pub analysis: String,
    /// Go on, go back, or ask a person.
    pub result: VerdictResult,
    /// The number that decided: `error rate 0.31 (62 of 200) > 0.02`.
    pub reason: String,
    /// When.
    pub at: Timestamp,
}

/// Go on, go back, or ask a person.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VerdictResult {
    /// As good as the old one.
    Success,
    /// Worse.
    Failed,
    /// Too little was seen.
    Inconclusive,
}
