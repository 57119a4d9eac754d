//! What the trail says of things that end by themselves: a pure function of what the journal says, so that what could
//! not be written before a crash is known after it.

use serde_json::{Value, json};

use super::{Auditor, Entry};
use crate::api::Severity;
use crate::api::maintenance::UpgradeHost;
use crate::base::{ReleaseNumber, ServiceName, Timestamp};
use crate::controller::core::Core;
use crate::controller::deck_ledger::DeckEvent;
use crate::journal::JournalError;
use crate::rollout::group::GroupState;
use crate::rollout::{EventKind, Outcome, ServiceState};

/// A line about something that has happened by itself.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Happened {
    /// What, in a word.
    pub event: &'static str,
    /// To which service.
    pub service: Option<ServiceName>,
    /// How.
    pub result: Value,
}

/// What there was of a service before an event, as far as lines follow from it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(in crate::controller) struct Before {
    /// The rollout that had ended: to which release, and when it began.
    ended: Option<(ReleaseNumber, Timestamp)>,
    stopping: bool,
}

impl Before {
    /// Of this state.
    pub fn of(state: &ServiceState) -> Self {
        let ended = ended(state).map(|(release, began, _)| (release, began));
        Self { ended, stopping: state.stopping }
    }
}

/// The last rollout of a service, if it has ended: to which release, when it began, and how it ended.
fn ended(state: &ServiceState) -> Option<(ReleaseNumber, Timestamp, &Outcome)> {
    let rollout = state.rollout.as_ref()?;
    Some((rollout.to, rollout.began, rollout.outcome.as_ref()?))
}

/// What is to be written of an event of a service: how a rollout ended, the end of a stop, a queued rollout that does
/// not begin.
pub(super) fn of_service(before: &Before, after: &ServiceState, kind: &EventKind) -> Vec<Happened> {
    let happened = |event, result| Happened { event, service: Some(after.service.clone()), result };
    let mut all = Vec::new();
    if let EventKind::QueueRefused { asked, why } = kind {
        all.push(happened("queued_refused", json!({ "queued": asked, "refused": why })));
    }
    if let Some((release, began, outcome)) = ended(after)
        && before.ended != Some((release, began))
    {
        let (word, why) = match outcome {
            Outcome::Completed => ("completed", None),
            Outcome::RolledBack { why } => ("rolled_back", Some(why)),
            Outcome::Aborted { why } => ("aborted", Some(why)),
            Outcome::Failed { why } => ("failed", Some(why)),
        };
        let result = json!({ "release": release, "outcome": word, "why": why });
        all.push(happened("rollout_ended", result));
    }
    if before.stopping && !after.stopping {
        all.push(happened("stopped", json!({})));
    }
    all
}

/// What is to be written of an event of the deck: what came of a drain, of a host's upgrade, and of each of several
/// services.
pub(super) fn of_deck(event: &DeckEvent) -> Option<Happened> {
    let (event, service, result) = match event {
        DeckEvent::DrainEnded { host, trouble } => {
            ("drain_ended", None, json!({ "host": host, "trouble": trouble }))
        }
        DeckEvent::UpgradeWent { host, state } => match state {
            UpgradeHost::Done | UpgradeHost::Failed { .. } | UpgradeHost::Skipped { .. } => {
                ("host_upgraded", None, json!({ "host": host, "state": state }))
            }
            _ => return None,
        },
        // The beginning too: nobody asked for this service's rollout alone.
        DeckEvent::GroupWent { service, state } if *state != GroupState::Waiting => {
            ("together", Some(service.clone()), json!({ "state": state }))
        }
        _ => return None,
    };
    Some(Happened { event, service, result })
}

impl Auditor {
    /// Writes down what has happened; `at`: when, if that was in an earlier life.
    ///
    /// # Errors
    /// It waits until it can be written.
    pub(super) fn happened(
        &self,
        happened: &Happened,
        at: Option<Timestamp>,
    ) -> Result<(), JournalError> {
        let Happened { event, service, result } = happened;
        self.note(&Entry {
            happened: at,
            service: service.as_ref(),
            result: Some(result.clone()),
            ..Entry::new(event)
        })
    }
}

impl Core {
    /// Says that lines were missing in the trail.
    pub(in crate::controller) fn tell_gap(&self) {
        if let Some(what) = self.audit.found_gap() {
            let words =
                format!("the audit trail: {what}; `gpudeck audit verify` says so from now on");
            self.say(Severity::Error, None, &words);
        }
    }

    /// Writes down what has ended with an event of a service, once.
    pub(in crate::controller) fn audit_service(
        &self,
        before: &ServiceState,
        after: &ServiceState,
        kind: &EventKind,
    ) {
        for happened in of_service(&Before::of(before), after, kind) {
            self.audit_happened(&happened);
        }
    }

    /// Writes down what has ended with an event of the deck.
    pub(in crate::controller) fn audit_deck(&self, event: &DeckEvent) {
        if let Some(happened) = of_deck(event) {
            self.audit_happened(&happened);
        }
    }

    fn audit_happened(&self, happened: &Happened) {
        if let Err(error) = self.audit.happened(happened, None) {
            let words =
                format!("a result ({}) is not in the audit trail yet: {error}", happened.event);
            self.say(Severity::Warning, happened.service.as_ref(), &words);
        }
    }
}
