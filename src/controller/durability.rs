//! A journal that cannot be written: no new work is taken, what runs goes on, and when there is space
//! again everything is asked for anew, because what happened meanwhile was not taken down.

use std::time::Duration;

use super::core::{Core, now};
use crate::api::{ApiError, DeckCondition, DeckConditionKind, Severity};
use crate::base::{Hint, HostName, ServiceName};
use crate::journal::JournalError;
use crate::rollout::step;

/// Time between two attempts to write again.
const TRY_AGAIN: Duration = Duration::from_secs(2);

impl Core {
    /// Notes what became of a write to the journal.
    pub(super) fn journal_answered(&mut self, error: Option<&JournalError>) {
        // A record that cannot be written as such says nothing about the disk.
        // Nor does one that was not tried.
        if matches!(error, Some(JournalError::Record { .. } | JournalError::Waits { .. })) {
            return;
        }
        let holds = error.map(|error| {
            let words = format!("no new work is taken, what runs goes on: {error}");
            (words, error.hint())
        });
        if holds.is_some() {
            self.journal_tried = now();
        }
        self.set_condition(DeckConditionKind::JournalUnwritable, holds);
    }

    /// Begins a segment of the journal with the whole state.
    pub(super) fn write_checkpoint(&mut self) -> Result<u64, JournalError> {
        // What stands before a checkpoint is not looked for in the trail any more.
        self.audit.is_whole();
        self.state.audited = Some(self.audit.last());
        self.state.unnoted = self.unnoted.list();
        self.journal.checkpoint(&self.state)
    }

    /// The same; without it the journal is only longer.
    pub(super) fn checkpoint(&mut self) {
        if !self.audit.is_whole() {
            return;
        }
        let written = self.write_checkpoint();
        match written {
            Ok(_) => self.records_since_checkpoint = 0,
            Err(error) => {
                tracing::warn!(%error, "no checkpoint");
                // Nothing more can be written, or it would be tried again with the next tick.
                if matches!(error, JournalError::Broken { .. }) {
                    self.journal_answered(Some(&error));
                }
            }
        }
    }

    /// Refuses what could not be written down, or must not be begun just now.
    pub(super) fn takes_new_work(&self) -> Result<(), ApiError> {
        let refusing = [DeckConditionKind::JournalUnwritable, DeckConditionKind::HandingOver];
        match refusing.iter().find_map(|kind| self.conditions.get(kind)) {
            Some(condition) => Err(ApiError {
                kind: crate::api::ErrorKind::Internal,
                message: format!("{}: {}", condition.kind.name(), condition.text),
                hint: condition.hint.clone(),
            }),
            None => Ok(()),
        }
    }

    /// Once it could not be written nothing is until [`Self::try_journal`] has made good the time in which nothing
    /// was: the first record would else be that of a deadline that ran meanwhile.
    pub(super) fn journal_is_tried(&self) -> Result<(), JournalError> {
        match self.conditions.get(&DeckConditionKind::JournalUnwritable) {
            Some(DeckCondition { text, hint, .. }) => {
                Err(JournalError::Waits { what: text.clone(), hint: hint.clone() })
            }
            None => Ok(()),
        }
    }

    /// Tries to write again, now and then, until it succeeds.
    pub(super) fn recover_journal(&mut self) {
        self.audit.write_again();
        if now().since(self.journal_tried) >= TRY_AGAIN {
            self.try_journal();
        }
    }

    /// Tries at once: a person who made room and asks again does not wait for it.
    pub(super) fn try_journal(&mut self) {
        let unwritable = self.conditions.get(&DeckConditionKind::JournalUnwritable);
        let Some(since) = unwritable.map(|condition| condition.since) else { return };
        // The whole state in a new segment: that it fits means that there is room, and nothing has
        // to be believed of a file in which a write failed.
        self.audit.is_whole();
        self.state.audited = Some(self.audit.last());
        self.state.unnoted = self.unnoted.list();
        let written = self.journal.recover(&self.state);
        self.journal_answered(written.as_ref().err());
        if written.is_err() {
            return;
        }
        self.records_since_checkpoint = 0;
        self.say(Severity::Info, None, "the journal can be written again");
        self.make_good_unwritten(since);
        self.ask_anew();
    }

    /// Carries out again what is awaited, and asks the hosts what there is.
    pub(super) fn ask_anew(&mut self) {
        // What gateways have taken meanwhile is not in the journal, and nobody asks for it again.
        self.actions.retell();
        let services: Vec<ServiceName> = self.state.services.keys().cloned().collect();
        for service in services {
            let actions =
                self.state.services.get(&service).map(step::outstanding).unwrap_or_default();
            self.begin(&service, actions);
            self.publish_service(&service);
        }
        let hosts: Vec<HostName> = self.deck.hosts.keys().cloned().collect();
        for host in hosts {
            self.look_at_ranks(&host);
        }
    }
}
