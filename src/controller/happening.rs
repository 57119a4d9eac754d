//! The one way in which a service's state changes: decide, journal, apply, act, tell.
//!
//! What is heard in one turn of the loop is decided in its order and written down together: one record for each
//! event, one fsync for all. Until that is done nothing of it is told and no action leaves; if it cannot be written,
//! nothing of it has happened.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::core::{Core, journal_error, now};
use super::narrate::narrate;
use super::plan_steps;
use super::record::Record;
use crate::api::ApiError;
use crate::base::{ServiceName, Timestamp};
use crate::journal::JournalError;
use crate::rollout::{Action, Event, EventKind, ServiceState, step};

/// What was decided in this turn and is not in the journal yet, in its order.
#[derive(Default)]
pub struct Unwritten(Vec<Decided>);

/// An event, and what it led to.
struct Decided {
    record: Record,
    /// The service before it. (After it, it is as the next one of the same service found it.)
    before: ServiceState,
    actions: Vec<Action>,
}

impl Core {
    /// Something happened to a service, now.
    pub(super) fn happened(&mut self, service: &ServiceName, kind: EventKind) {
        self.happened_at(service, kind, now());
    }

    pub(super) fn happened_at(&mut self, service: &ServiceName, kind: EventKind, at: Timestamp) {
        if let Err(error) = self.try_happened(service, kind, at) {
            not_written(&error);
        }
    }

    /// The same; what cannot be written down has not happened.
    pub(super) fn try_happened(
        &mut self,
        service: &ServiceName,
        kind: EventKind,
        at: Timestamp,
    ) -> Result<(), JournalError> {
        self.decide(service, kind, at);
        self.write_down()
    }

    /// Sees to it that what is to happen next can be written down, before something is done that cannot be undone.
    pub(super) fn reserve(
        &mut self,
        service: &ServiceName,
        kind: EventKind,
    ) -> Result<(), ApiError> {
        let record = Record { service: service.clone(), event: Event { at: now(), kind } };
        let reserved = self.journal_is_tried().and_then(|()| self.journal.reserve(&record));
        reserved.map_err(|error| {
            self.journal_answered(Some(&error));
            journal_error(&error)
        })
    }

    /// Something was heard of a service: decided now, written down with the rest of this turn.
    pub(super) fn note(&mut self, service: &ServiceName, kind: EventKind) {
        self.decide(service, kind, now());
    }

    /// Writes down what was heard, and lets it take effect; whether there was anything.
    pub(super) fn settle(&mut self) -> bool {
        let something = !self.unwritten.0.is_empty();
        if let Err(error) = self.write_down() {
            not_written(&error);
        }
        something
    }

    fn decide(&mut self, service: &ServiceName, kind: EventKind, at: Timestamp) {
        // It is another's to hear of, and time does not count here.
        if is_heard(&kind) && self.is_elsewhere(service) {
            return;
        }
        // Out of its place meanwhile: a state of five hundred replicas is copied once an event, not more.
        let before = match (self.state.services.remove(service), &kind) {
            (Some(state), _) => state,
            (None, EventKind::RolloutRequested { .. }) => ServiceState::new(service.clone()),
            (None, _) => return,
        };
        let event = Event { at, kind };
        let mut after = before.clone();
        let actions = step::step(&mut after, &event);
        let moment = std::mem::replace(&mut after.now, before.now);
        let changed = after != before;
        if changed || !actions.is_empty() {
            after.now = moment;
            let record = Record { service: service.clone(), event };
            self.unwritten.0.push(Decided { record, before, actions });
        }
        // If nothing has changed: the same, but for what was found out for deciding.
        self.state.services.insert(service.clone(), after);
    }

    fn write_down(&mut self) -> Result<(), JournalError> {
        let decided = std::mem::take(&mut self.unwritten.0);
        if decided.is_empty() {
            return Ok(());
        }
        let records: Vec<&Record> = decided.iter().map(|d| &d.record).collect();
        let appended = self.journal_is_tried().and_then(|()| self.journal.append(&records));
        if let Err(error) = appended {
            return self.take_back(decided, error);
        }
        self.records_since_checkpoint += u64::try_from(decided.len()).unwrap_or(u64::MAX);
        let lines = self.take_effect(&decided);
        // Only now: what it may lead to looks at the services.
        self.journal_answered(None);
        for Decided { record, before, .. } in &decided {
            self.look_at_memory(before, &record.event.kind);
        }
        for line in lines {
            self.tell(line);
        }
        let mut by_service: Vec<(ServiceName, Vec<Action>)> = Vec::new();
        for Decided { record, actions, .. } in decided {
            match by_service.iter_mut().find(|(service, _)| *service == record.service) {
                Some((_, more)) => more.extend(actions),
                None => by_service.push((record.service, actions)),
            }
        }
        for (service, actions) in by_service {
            self.begin(&service, actions);
            self.publish_service(&service);
        }
        Ok(())
    }

    /// Nothing of it has happened.
    fn take_back(
        &mut self,
        decided: Vec<Decided>,
        error: JournalError,
    ) -> Result<(), JournalError> {
        let mut events = Vec::new();
        // The first one of each service was there before all of them.
        for Decided { record, before, .. } in decided.into_iter().rev() {
            self.state.services.insert(record.service.clone(), before);
            events.push(record);
        }
        if matches!(error, JournalError::Record { .. }) && events.len() > 1 {
            // One of them cannot be written as such: the others are not to be lost with it.
            let one_by_one = events
                .into_iter()
                .rev()
                .map(|Record { service, event }| self.try_happened(&service, event.kind, event.at));
            return one_by_one.fold(Ok(()), Result::and);
        }
        self.journal_answered(Some(&error));
        Err(error)
    }

    /// What follows from each event by itself; what is to be told of it.
    fn take_effect(&mut self, decided: &[Decided]) -> Vec<crate::api::EventLine> {
        // Out of their places meanwhile, to be looked at beside all else.
        let mut last: BTreeMap<ServiceName, ServiceState> = BTreeMap::new();
        for Decided { record, .. } in decided {
            if let Some((name, state)) = self.state.services.remove_entry(&record.service) {
                last.insert(name, state);
            }
        }
        let mut lines = Vec::new();
        let mut rest = decided;
        while let Some((Decided { record, before, .. }, more)) = rest.split_first() {
            rest = more;
            let next = rest.iter().find(|d| d.record.service == record.service);
            let after = next.map(|d| &d.before).or_else(|| last.get(&record.service));
            let Some(after) = after else { continue };
            match &record.event.kind {
                EventKind::TrafficFailed { why, .. } => {
                    let why = format!("the gateway was not changed: {why}");
                    self.trouble.insert(record.service.clone(), why);
                }
                EventKind::TrafficApplied { version } => {
                    self.trouble.remove(&record.service);
                    if *version == before.traffic_version {
                        self.taken.insert(record.service.clone(), before.traffic.clone());
                    }
                }
                _ => {}
            }
            self.audit_service(before, after, &record.event.kind);
            self.note_stopped(before, after);
            lines.extend(narrate(before, after, &record.event.kind));
            let hub = Arc::clone(&self.hub);
            self.measured.learn(before, after, |release, replica| {
                plan_steps::key_of(&hub, release, replica)
            });
            self.state.ledger.observe(after);
        }
        self.state.services.extend(last);
        lines
    }
}

/// Whether it is what time, hosts, gateways and commands say, and no wish.
const fn is_heard(kind: &EventKind) -> bool {
    match kind {
        EventKind::Tick
        | EventKind::RunEnded { .. }
        | EventKind::RunLost { .. }
        | EventKind::LoanReady { .. }
        | EventKind::RankRunning { .. }
        | EventKind::RankRefused { .. }
        | EventKind::RankEnded { .. }
        | EventKind::ReplicaReady { .. }
        | EventKind::NoTokenYet { .. }
        | EventKind::ReplicaUnready { .. }
        | EventKind::TrafficApplied { .. }
        | EventKind::TrafficFailed { .. }
        | EventKind::Drained { .. }
        | EventKind::Measured { .. }
        | EventKind::Unmeasured
        | EventKind::Sampled { .. }
        | EventKind::Checked { .. } => true,
        EventKind::RolloutRequested { .. }
        | EventKind::Paused { .. }
        | EventKind::Resumed { .. }
        | EventKind::Promoted { .. }
        | EventKind::Retried { .. }
        | EventKind::Skipped { .. }
        | EventKind::Queued { .. }
        | EventKind::QueueCancelled { .. }
        | EventKind::QueueRefused { .. }
        | EventKind::Aborted { .. }
        | EventKind::StopRequested { .. }
        | EventKind::MovesRequested { .. }
        | EventKind::HoldBegan { .. }
        | EventKind::HoldEnded
        | EventKind::MovesCancelled { .. }
        | EventKind::Lent { .. }
        | EventKind::TakenOut { .. }
        | EventKind::LentReturned { .. } => false,
    }
}

/// Nothing was applied, so nothing is lost: ticks and reports bring it again.
fn not_written(error: &JournalError) {
    tracing::error!(%error, "the journal cannot be written");
}
