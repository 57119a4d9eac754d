//! Writes the audit trail: every wish before it is looked at, what came of it, and how each rollout, stop, drain
//! and upgrade ended. A wish that cannot be written down is refused.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;
use serde_json::{Value, json};

use super::core::{Core, now};
use super::deck_ledger::DeckEvent;
use crate::api::maintenance::UpgradeHost;
use crate::api::{ApiError, ErrorKind, Intent, IntentReply, Secret, Severity, Who};
use crate::base::{Hint, ReleaseNumber, ServiceName, Timestamp};
use crate::journal::JournalError;
use crate::journal::audit::{Audit, Head, Known, Line};
use crate::rollout::group::GroupState;
use crate::rollout::{Outcome, ServiceState};

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
pub struct Auditor(Arc<Mutex<Audit>>);

/// A wish that was written down; its answer refers to it.
#[derive(Clone, Copy, Debug)]
pub struct Asked(u64);

/// One line of the trail.
#[derive(Debug, Serialize)]
struct Entry<'a> {
    at: Timestamp,
    event: &'static str,
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
        Ok(Self(Arc::new(Mutex::new(Audit::open(dir, known)?))))
    }

    /// The line that was written last.
    pub fn last(&self) -> Head {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).last()
    }

    /// What was missing at its end when it was opened.
    pub fn found_gap(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).found_gap().map(str::to_owned)
    }

    fn write<T: Serialize>(&self, entry: &T) -> Result<u64, JournalError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).append(entry)
    }

    /// The same without holding up the other tasks of this thread.
    async fn write_aside(&self, entry: Value) -> Result<u64, JournalError> {
        let trail = self.clone();
        tokio::task::spawn_blocking(move || trail.write(&entry))
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
        self.write_aside(entry).await.map(|seq| Some(Asked(seq)))
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
        if let Err(error) = self.write_aside(entry).await {
            tracing::error!(%error, "an answer is missing in the audit trail");
        }
    }

    /// Writes down something that the controller did by itself.
    pub fn happened(
        &self,
        event: &'static str,
        service: Option<&ServiceName>,
        result: Value,
    ) -> Result<u64, JournalError> {
        self.write(&Entry { service, result: Some(result), ..Entry::new(event) })
    }
}

impl Auditor {
    /// After a start: the ends of rollouts that are in the journal and not here, since the life before ended between
    /// the two. What ended before the last line is of another controller's time, or was written.
    pub fn make_good(&self, services: &BTreeMap<ServiceName, ServiceState>) {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner).lines();
        let lines = lines.unwrap_or_default();
        let at = |line: &Line| line.entry.get("at").and_then(Value::as_u64).map(Timestamp);
        let last = lines.iter().rev().filter(|line| !Audit::is_gap(line)).find_map(at);
        for state in services.values() {
            let Some((release, _, outcome)) = ended(state) else { continue };
            let since = state.rollout.as_ref().and_then(|r| r.ended);
            if since.is_none_or(|since| last.is_some_and(|last| since < last)) {
                continue;
            }
            let is_written = lines.iter().any(|line| {
                let entry = &line.entry;
                entry.get("event").is_some_and(|event| event == "rollout_ended")
                    && entry.get("service").is_some_and(|s| s == state.service.as_str())
                    && entry.pointer("/result/release") == Some(&json!(release))
            });
            if !is_written && let Err(error) = self.rollout_ended(&state.service, release, &outcome)
            {
                tracing::error!(%error, "the end of a rollout is missing in the audit trail");
            }
        }
    }

    fn rollout_ended(
        &self,
        service: &ServiceName,
        release: ReleaseNumber,
        outcome: &Outcome,
    ) -> Result<u64, JournalError> {
        let (word, why) = match outcome {
            Outcome::Completed => ("completed", None),
            Outcome::RolledBack { why } => ("rolled_back", Some(why)),
            Outcome::Aborted { why } => ("aborted", Some(why)),
            Outcome::Failed { why } => ("failed", Some(why)),
        };
        let result = json!({ "release": release, "outcome": word, "why": why });
        self.happened("rollout_ended", Some(service), result)
    }
}

/// The last rollout of a service, if it has ended: to which release, when it began, and how it ended.
fn ended(state: &ServiceState) -> Option<(ReleaseNumber, Timestamp, Outcome)> {
    let rollout = state.rollout.as_ref()?;
    Some((rollout.to, rollout.began, rollout.outcome.clone()?))
}

impl Core {
    /// Says that lines were missing in the trail.
    pub(super) fn tell_gap(&self) {
        if let Some(what) = self.audit.found_gap() {
            let words =
                format!("the audit trail: {what}; `gpudeck audit verify` says so from now on");
            self.say(Severity::Error, None, &words);
        }
    }

    /// Writes down how a rollout ended, once.
    pub(super) fn audit_outcome(&self, before: &ServiceState, after: &ServiceState) {
        let Some((release, began, outcome)) = ended(after) else { return };
        if ended(before).is_some_and(|(r, b, _)| (r, b) == (release, began)) {
            return;
        }
        if let Err(error) = self.audit.rollout_ended(&after.service, release, &outcome) {
            let words = format!("the end of {release} is missing in the audit trail: {error}");
            self.say(Severity::Warning, Some(&after.service), &words);
        }
    }

    /// Writes down what came of a drain, of a host's upgrade, and of each of several services.
    pub(super) fn audit_deck(&self, event: &DeckEvent) {
        let (word, service, result) = match event {
            DeckEvent::DrainEnded { host, trouble } => {
                ("drain_ended", None, json!({ "host": host, "trouble": trouble }))
            }
            DeckEvent::UpgradeWent { host, state } => match state {
                UpgradeHost::Done | UpgradeHost::Failed { .. } | UpgradeHost::Skipped => {
                    ("host_upgraded", None, json!({ "host": host, "state": state }))
                }
                _ => return,
            },
            // The beginning too: nobody asked for this service's rollout alone.
            DeckEvent::GroupWent { service, state } if *state != GroupState::Waiting => {
                ("together", Some(service), json!({ "state": state }))
            }
            _ => return,
        };
        if let Err(error) = self.audit.happened(word, service, result) {
            let words = format!("a result ({word}) is missing in the audit trail: {error}");
            self.say(Severity::Warning, service, &words);
        }
    }

    /// Writes down that a stop has ended.
    pub(super) fn audit_stopped(&self, service: &ServiceName) {
        if let Err(error) = self.audit.happened("stopped", Some(service), json!({})) {
            let words = format!("the end of the stop is missing in the audit trail: {error}");
            self.say(Severity::Warning, Some(service), &words);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::controller::record::Record;
    use crate::rollout::{Event, EventKind, LimitRule, RolloutKind};

    #[test]
    fn an_end_that_came_just_before_a_crash_is_written_once() {
        let dir = tempfile::tempdir().unwrap();
        let auditor = Auditor::open(dir.path(), &Known::default()).unwrap();
        let service: ServiceName = "chat".parse().unwrap();
        let id = crate::base::DeckId(uuid::Uuid::from_u128(1));
        let release = crate::controller::saved::tests::release(id, &service);
        let mut state = crate::controller::record::DeckState::default();
        let asked = now();
        let kind = EventKind::RolloutRequested {
            release: Box::new(release),
            kind: RolloutKind::Apply,
            by: "ada".to_owned(),
            limits: LimitRule::PRESENT,
        };
        let event = Event { at: asked, kind };
        state.replay(&Record { service: service.clone(), event });
        auditor.make_good(&state.services);
        let count = || auditor.0.lock().unwrap().lines().unwrap().len();
        assert_eq!(count(), 0, "it has not ended");
        let rollout = state.services.get_mut(&service).unwrap().rollout.as_mut().unwrap();
        rollout.outcome = Some(Outcome::Completed);
        rollout.ended = Some(asked);
        for _ in 0..2 {
            auditor.make_good(&state.services);
            assert_eq!(count(), 1);
        }
        // One that ended before the last line was another controller's.
        let rollout = state.services.get_mut(&service).unwrap().rollout.as_mut().unwrap();
        rollout.to = ReleaseNumber(4);
        rollout.ended = Some(Timestamp(asked.0 - 1));
        auditor.make_good(&state.services);
        assert_eq!(count(), 1);
    }
}
