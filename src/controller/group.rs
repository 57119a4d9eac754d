//! Several services in one rollout: taken on, held, and carried out as `rollout::group` decides. What has been reached
//! is journaled; a controller that was killed goes on from there. How one is begun is in `asking`, what people do to one
//! of them meanwhile in `people`.

mod asking;
mod people;

use std::collections::BTreeMap;

use tokio::sync::oneshot;

use super::core::{Core, Input, now};
use super::deck_ledger::DeckEvent;
use super::maintenance::conflict;
use super::planning::Draft;
use super::steer::digest;
use super::together;
use crate::api::hub::Change;
use crate::api::{
    ApiError, DeckView, ErrorKind, Group, GroupEntry, GroupState, GroupSteer, IntentReply,
    PlanView, Severity,
};
use crate::base::ServiceName;
use crate::rollout::group::{GroupMove, forward};
use crate::rollout::{EventKind, ServiceState};

pub(super) use asking::PutOff;

/// One of the group's deciders.
type Decide = fn(&Group, &BTreeMap<ServiceName, ServiceState>) -> Option<GroupMove>;

/// How several services are to be rolled out.
pub(super) struct Wish {
    /// All or none.
    pub atomic: bool,
    /// Why.
    pub reason: Option<String>,
    /// Outages were accepted.
    pub accept_outage: bool,
    /// The plans that were agreed to; none: whatever they are.
    pub agreed: Option<String>,
    /// Who asked.
    pub by: String,
}

impl Core {
    /// Takes a wish for several services: they are planned together, and then begun or refused whole.
    pub(super) fn apply_together(
        &mut self,
        services: &[ServiceName],
        wish: Wish,
        reply: oneshot::Sender<Result<IntentReply, ApiError>>,
    ) {
        let work = match self.no_group().and_then(|()| self.together_drafts(services)) {
            Ok(work) => work,
            Err(error) => {
                let _ = reply.send(Err(error));
                return;
            }
        };
        let inputs = self.means.inputs.clone();
        self.tasks.spawn(async move {
            let drafts = work.await;
            let begin = Box::new(move |core: &mut Self| {
                let begun = drafts.and_then(|drafts| core.begin_group(&drafts, wish));
                core.answer(reply, begun);
            });
            let _ = inputs.send(Input::Ask(begin)).await;
        });
    }

    fn no_group(&self) -> Result<(), ApiError> {
        if let Some(group) = self.state.ledger.group.as_ref().filter(|g| g.ended.is_none()) {
            return Err(ApiError {
                kind: ErrorKind::Conflict,
                message: format!("{} applies several services since {}", group.by, group.began),
                hint: Some(
                    "wait for its end (`gpudeck status` shows how far it is), or take it back with `gpudeck rollout abort --together`"
                        .to_owned(),
                ),
            });
        }
        Ok(())
    }

    /// The services that are being rolled out together.
    fn present_group(&self) -> Option<Group> {
        self.state.ledger.group.clone().filter(|g| g.ended.is_none())
    }

    fn begin_group(&mut self, drafts: &[Draft], wish: Wish) -> Result<IntentReply, ApiError> {
        let Wish { atomic, reason, accept_outage, agreed, by } = wish;
        // While the models were looked at something else may have begun.
        self.no_group()?;
        for draft in drafts {
            self.may_begin_together(&draft.service)?;
        }
        let plans = self.plan_together(drafts)?;
        if !accept_outage {
            together::no_outage(drafts, &plans)?;
        }
        if agreed.is_some_and(|agreed| agreed != PlanView::digest_together(&plans)) {
            return Err(super::begin::plan_changed());
        }
        let began = now();
        let entries = drafts.iter().zip(&plans).map(|(draft, plan)| GroupEntry {
            after: draft.spec.rollout.after.clone(),
            service: draft.service.clone(),
            state: GroupState::Waiting,
            since: began,
            digest: Some(digest(&draft.text)),
            accept_outage: Some(accept_outage && plan.forecast.outage),
        });
        let group = Group {
            services: entries.collect(),
            atomic,
            by: by.clone(),
            reason,
            accept_outage,
            began,
            ended: None,
            paused: None,
            aborted: None,
        };
        let names: Vec<&str> = group.services.iter().map(|e| e.service.as_str()).collect();
        let words = format!("{by} rolls out {}, in this order", names.join(", "));
        self.deck_told(DeckEvent::GroupBegun { group: group.clone() })?;
        self.group_put_off = None;
        self.say(Severity::Info, None, &words);
        self.publish_group();
        Ok(IntentReply::Accepted)
    }

    fn publish_group(&self) {
        let deck = self.hub.with(|s| s.deck.clone());
        let group = self.state.ledger.group.clone().map(Box::new);
        self.hub.publish(Change::Deck(DeckView { group, ..deck }));
    }

    /// Whether it could be written down; what could not is tried again at the next tick.
    fn group_went(&mut self, service: &ServiceName, state: GroupState) -> bool {
        let written = self.group_goes(service, state);
        let untold = |error: &ApiError| {
            tracing::error!(error = %error.message, "the journal cannot be written");
        };
        written.inspect_err(untold).is_ok()
    }

    /// Writes down how far one is, and tells it.
    fn group_goes(&mut self, service: &ServiceName, state: GroupState) -> Result<(), ApiError> {
        self.deck_told(DeckEvent::GroupWent { service: service.clone(), state: state.clone() })?;
        let (word, why) = state.words();
        let why = if why.is_empty() { String::new() } else { format!(": {why}") };
        let severity = match state {
            GroupState::Failed { .. } | GroupState::NotUndone { .. } => Severity::Error,
            GroupState::Skipped { .. } | GroupState::Undoing => Severity::Warning,
            _ => Severity::Info,
        };
        self.say(severity, Some(service), &format!("together with others: {word}{why}"));
        self.publish_group();
        Ok(())
    }

    /// Holds the group, lets it go on, or takes it back.
    pub(super) fn steer_group(
        &mut self,
        what: GroupSteer,
        by: &str,
        reason: Option<String>,
    ) -> Result<IntentReply, ApiError> {
        self.follow_group();
        let Some(group) = self.present_group() else {
            return Err(conflict(
                "no services are being rolled out together".to_owned(),
                "`gpudeck apply A B` begins that; with SERVICE instead of --together it is about that one's rollout",
            ));
        };
        if what != GroupSteer::Resume && (group.goes_back() || group.aborted.is_some()) {
            return Err(conflict(
                "the services are being taken back already".to_owned(),
                "wait for its end; `gpudeck status` shows how far it is",
            ));
        }
        // The one that is rolled out is held, or goes on, with the others.
        let rolling = group.services.iter().filter_map(|entry| {
            let GroupState::Rolling { release } = entry.state else { return None };
            let state = self.state.services.get(&entry.service)?;
            Some((&entry.service, forward(state, release)?.paused.is_some()))
        });
        let rolling: Vec<_> = rolling.map(|(service, paused)| (service.clone(), paused)).collect();
        let (by_whom, why) = (|| by.to_owned(), || reason.clone());
        let mut changes = match what {
            GroupSteer::Pause => group.paused.is_none(),
            GroupSteer::Resume => group.paused.is_some(),
            GroupSteer::Abort => true,
        };
        for (service, paused) in rolling {
            let kind = match what {
                GroupSteer::Pause if !paused => EventKind::Paused { by: by_whom(), reason: why() },
                GroupSteer::Resume if paused => EventKind::Resumed { by: by_whom(), reason: why() },
                _ => continue,
            };
            self.on_service(&service, kind)?;
            changes = true;
        }
        if !changes && what == GroupSteer::Resume {
            return Err(conflict(
                "the rollout of several services is not paused".to_owned(),
                "`gpudeck status` shows how far it is",
            ));
        }
        if !changes {
            return Ok(IntentReply::NothingToDo);
        }
        let why = reason.as_deref().map(|r| format!(": {r}")).unwrap_or_default();
        let words = format!("{by} {} the rollout of several services{why}", what.verb());
        self.deck_told(DeckEvent::GroupSteered { what, by: by_whom(), reason })?;
        let severity = match what {
            GroupSteer::Abort => Severity::Warning,
            GroupSteer::Pause | GroupSteer::Resume => Severity::Info,
        };
        self.say(severity, None, &words);
        self.follow_group();
        self.publish_group();
        Ok(IntentReply::Accepted)
    }

    /// Brings the group on.
    pub(super) fn tend_group(&mut self) {
        self.go_on_with_group(Group::next);
    }

    /// What follows by itself, and begins nothing.
    pub(super) fn follow_group(&mut self) {
        self.go_on_with_group(Group::follows);
    }

    fn go_on_with_group(&mut self, decide: Decide) {
        // Each of them goes a few steps at most; what could not be written down is tried again at the next tick.
        let most = self.present_group().map_or(0, |group| 4 * group.services.len());
        for _ in 0..most {
            let decide = if self.group_asking.is_taken() { Group::follows } else { decide };
            let Some(group) = self.present_group() else { return };
            let next = decide(&group, &self.state.services);
            if !next.is_some_and(|next| self.carry_out_for(&group, next)) {
                return;
            }
        }
    }

    /// Whether it is done, so that more may follow.
    fn carry_out_for(&mut self, group: &Group, next: GroupMove) -> bool {
        match next {
            GroupMove::Went { service, state } => self.group_went(&service, state),
            GroupMove::Abort { service, by, reason } => {
                self.is_written(&service, EventKind::Aborted { by, reason })
            }
            GroupMove::Stop { service } => {
                self.is_written(
                    &service,
                    EventKind::StopRequested { by: group.by.clone(), reason: None },
                ) && self.group_went(&service, GroupState::Undoing)
            }
            GroupMove::Begin(begin) => {
                if !self.all_hosts_heard_of() || self.waits_for_loans(&begin.service) {
                    return false;
                }
                if let Some(why) = self.changed_since_agreed(group, &begin) {
                    return self.group_went(&begin.service, GroupState::Failed { why });
                }
                self.ask_for(group, begin);
                false
            }
        }
    }

    /// Whether it could be written down; what could not is tried again at the next tick.
    fn is_written(&mut self, service: &ServiceName, kind: EventKind) -> bool {
        let written = self.try_happened(service, kind, now());
        written
            .inspect_err(|error| tracing::error!(%error, "the journal cannot be written"))
            .is_ok()
    }

    /// What of a service is lent, or out while its host is maintained, has to come back before anything of it is
    /// rolled out. Told once.
    fn waits_for_loans(&mut self, service: &ServiceName) -> bool {
        let loan = self.state.services.get(service).and_then(|s| s.loans.first());
        let words = loan.map(|loan| {
            let (replica, to) = (loan.replica, &loan.to);
            format!("together with others: waits, since {replica} is {to}; {}", to.way_back())
        });
        let told = std::mem::replace(&mut self.group_waits, words.clone());
        if let Some(words) = words.as_ref().filter(|w| told.as_ref() != Some(w)) {
            self.say(Severity::Warning, Some(service), words);
        }
        words.is_some()
    }

    pub(super) fn all_hosts_heard_of(&self) -> bool {
        self.hub.with(|s| s.hosts.values().all(super::maintenance::settled))
    }
}
