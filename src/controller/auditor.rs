//! Writes the audit trail: every wish before it is looked at, what came of it, and how each rollout, stop, drain
//! and upgrade ended. A wish that cannot be written down is refused.

mod ends;
mod late;
mod owed;

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use serde_json::{Value, json};

pub(super) use self::late::Since;
use self::owed::Owed;
use super::core::now;
use crate::api::{ApiError, ErrorKind, Intent, IntentReply, Secret, Who};
use crate::base::{Hint, ServiceName, Timestamp};
use crate::journal::JournalError;
use crate::journal::audit::{Audit, Head, Known, Line};

/// Why nothing is done that cannot be written down.
pub fn refusal(error: &JournalError) -> ApiError {
    ApiError {
        kind: ErrorKind::Internal,
        message: format!("the audit trail cannot be written, so nothing was done: {error}"),
        hint: error.hint(),
    }
}

/// The open trail, shared by the front desk and the loop.
#[derive(Clone)]
pub struct Auditor(Arc<Mutex<Trail>>);

struct Trail {
    audit: Audit,
    owed: Owed,
}

impl Trail {
    /// What waits comes before anything else.
    fn write_owed(&mut self) -> Result<(), JournalError> {
        self.owed.write(now(), |line| self.audit.append(line))
    }
}

/// A wish that was written down; its answer refers to it.
#[derive(Clone, Copy, Debug)]
pub struct Asked(u64);

/// One line of the trail.
#[derive(Debug, Serialize)]
struct Entry<'a> {
    at: Timestamp,
    event: &'static str,
    /// Of what could not be written at once, or an earlier life did not come to write: when it happened.
    #[serde(skip_serializing_if = "Option::is_none")]
    happened: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    who: Option<&'a Who>,
    #[serde(skip_serializing_if = "Option::is_none")]
    of: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    what: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<&'a ServiceName>,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<Value>,
}

impl Entry<'_> {
    fn new(event: &'static str) -> Self {
        Self {
            at: now(),
            event,
            happened: None,
            who: None,
            of: None,
            what: None,
            service: None,
            why: None,
            result: None,
        }
    }
}

impl Auditor {
    /// Opens the trail in the deck's state directory; `known`: what the journal says of it.
    pub fn open(dir: &Path, known: &Known) -> Result<Self, JournalError> {
        let trail = Trail { audit: Audit::open(dir, known)?, owed: Owed::default() };
        Ok(Self(Arc::new(Mutex::new(trail))))
    }

    fn trail(&self) -> MutexGuard<'_, Trail> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The line that was written last.
    pub fn last(&self) -> Head {
        self.trail().audit.last()
    }

    /// What was missing at its end when it was opened.
    pub fn found_gap(&self) -> Option<String> {
        self.trail().audit.found_gap().map(str::to_owned)
    }

    fn lines(&self) -> Result<Vec<Line>, JournalError> {
        self.trail().audit.lines()
    }

    /// Writes a line, after those that wait.
    fn write(&self, entry: &Value) -> Result<u64, JournalError> {
        let mut trail = self.trail();
        match trail.write_owed() {
            // What can never be written is no reason not to write this.
            Ok(()) | Err(JournalError::Record { .. }) => trail.audit.append(entry),
            Err(error) => Err(error),
        }
    }

    /// Writes a line about what has happened, or keeps it until it can be written.
    ///
    /// # Errors
    /// It waits.
    fn note<T: Serialize>(&self, entry: &T) -> Result<(), JournalError> {
        let mut trail = self.trail();
        trail.owed.push(serde_json::to_value(entry).unwrap_or_default());
        trail.write_owed()
    }

    /// Whether all that has happened is written down; what waits is tried first.
    pub(super) fn is_whole(&self) -> bool {
        let mut trail = self.trail();
        if !trail.owed.is_empty()
            && let Err(error) = trail.write_owed()
        {
            tracing::warn!(%error, "results and answers are not in the audit trail yet");
        }
        trail.owed.is_empty()
    }

    /// Tries now and then what waits.
    pub(super) fn write_again(&self) {
        let is_due = self.trail().owed.is_due();
        if is_due {
            self.is_whole();
        }
    }

    /// Does so without holding up the other tasks of this thread.
    async fn aside<T: Send + 'static>(
        &self,
        write: impl FnOnce(&Self) -> Result<T, JournalError> + Send + 'static,
    ) -> Result<T, JournalError> {
        let trail = self.clone();
        tokio::task::spawn_blocking(move || write(&trail))
            .await
            .map_err(|e| JournalError::Record { what: format!("it was not written: {e}") })?
    }

    /// Writes a wish down. None: it changes nothing that anybody would ask about later.
    pub async fn asked(&self, intent: &Intent, who: &Who) -> Result<Option<Asked>, JournalError> {
        if matches!(intent, Intent::Reload) {
            return Ok(None);
        }
        // A passphrase is nobody's business, nor is whether a new key was trusted by "yes".
        let hidden = match intent {
            Intent::Answer { question, .. } => {
                Some(Intent::Answer { question: *question, answer: Secret::default() })
            }
            _ => None,
        };
        let shown = hidden.as_ref().unwrap_or(intent);
        let mut what = serde_json::to_value(shown).unwrap_or_default();
        let mut why = None;
        if let Some(fields) = what.as_object_mut() {
            fields.remove("answer");
            fields.remove("service");
            why = fields.remove("reason").filter(|r| !r.is_null());
        }
        let entry = Entry {
            who: Some(who),
            what: Some(what),
            service: intent.service(),
            why,
            ..Entry::new("asked")
        };
        let entry = serde_json::to_value(&entry).unwrap_or_default();
        self.aside(move |trail| trail.write(&entry)).await.map(|seq| Some(Asked(seq)))
    }

    /// Writes down what came of it.
    pub async fn answered(&self, asked: Asked, result: &Result<IntentReply, ApiError>) {
        let result = match result {
            Ok(IntentReply::RolloutBegun { release, .. }) => {
                json!({ "result": "rollout_begun", "release": release })
            }
            Ok(reply) => serde_json::to_value(reply).unwrap_or_default(),
            Err(error) => json!({ "refused": error.message, "kind": error.kind }),
        };
        let entry = Entry { of: Some(asked.0), result: Some(result), ..Entry::new("answered") };
        let entry = serde_json::to_value(&entry).unwrap_or_default();
        if let Err(error) = self.aside(move |trail| trail.note(&entry)).await {
            tracing::error!(%error, "an answer is not in the audit trail yet");
        }
    }
}
