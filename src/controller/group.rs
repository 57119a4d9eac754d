//! Several services in one rollout: one after the other in the order of their `after`; atomic or as far as
//! it goes. What has been reached is journaled; a controller that was killed goes on from there.

use std::time::Duration;

use tokio::sync::oneshot;

use super::begin::Beginning;
use super::core::{Core, Input, Request, now};
use super::deck_ledger::DeckEvent;
use super::maintenance::conflict;
use super::planning::Draft;
use super::together;
use crate::api::hub::Change;
use crate::api::{
    ApiError, DeckView, ErrorKind, Group, GroupEntry, GroupState, GroupSteer, IntentReply, Severity,
};
use crate::base::{ReleaseNumber, ServiceName, Timestamp};
use crate::rollout::{Direction, EventKind, Outcome, Rollout, RolloutKind};

/// What a service has left is free when its hosts say so: until then the next one finds no room.
const SETTLES: Duration = Duration::from_secs(15);

/// What found no room yet is asked for again after so long.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// How several services are to be rolled out.
pub(super) struct Wish {
    /// All or none.
    pub atomic: bool,
    /// Why.
    pub reason: Option<String>,
    /// Outages were accepted.
    pub accept_outage: bool,
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
        tokio::spawn(async move {
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
        let Wish { atomic, reason, accept_outage, by } = wish;
        // While the models were looked at something else may have begun.
        self.no_group()?;
        for draft in drafts {
            self.may_begin(&draft.service)?;
        }
        let plans = self.plan_together(drafts)?;
        if !accept_outage {
            together::no_outage(drafts, &plans)?;
        }
        let began = now();
        let entries = drafts.iter().map(|draft| GroupEntry {
            after: draft.spec.rollout.after.clone(),
            service: draft.service.clone(),
            state: GroupState::Waiting,
            since: began,
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
        self.say(Severity::Info, None, &words);
        self.publish_group();
        Ok(IntentReply::Accepted)
    }

    fn publish_group(&self) {
        let deck = self.hub.with(|s| s.deck.clone());
        let group = self.state.ledger.group.clone().map(Box::new);
        self.hub.publish(Change::Deck(DeckView { group, ..deck }));
    }

    fn group_went(&mut self, service: &ServiceName, state: GroupState) {
        let event = DeckEvent::GroupWent { service: service.clone(), state: state.clone() };
        if let Err(error) = self.deck_happened(event) {
            tracing::error!(%error, "the journal cannot be written");
            return;
        }
        let (word, why) = state.words();
        let why = if why.is_empty() { String::new() } else { format!(": {why}") };
        let severity = match state {
            GroupState::Failed { .. } | GroupState::NotUndone { .. } => Severity::Error,
            GroupState::Skipped { .. } | GroupState::Undoing => Severity::Warning,
            _ => Severity::Info,
        };
        self.say(severity, Some(service), &format!("together with others: {word}{why}"));
        self.publish_group();
    }

    /// Holds the group, lets it go on, or takes it back.
    pub(super) fn steer_group(
        &mut self,
        what: GroupSteer,
        by: &str,
        reason: Option<String>,
    ) -> Result<IntentReply, ApiError> {
        self.note_begun();
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
            Some((&entry.service, self.forward(&entry.service, release)?.paused.is_some()))
        });
        let rolling: Vec<_> = rolling.map(|(service, paused)| (service.clone(), paused)).collect();
        let by_whom = || by.to_owned();
        let mut changes = match what {
            GroupSteer::Pause => group.paused.is_none(),
            GroupSteer::Resume => group.paused.is_some(),
            GroupSteer::Abort => true,
        };
        for (service, paused) in rolling {
            let kind = match what {
                GroupSteer::Pause if !paused => EventKind::Paused { by: by_whom() },
                GroupSteer::Resume if paused => EventKind::Resumed { by: by_whom() },
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
        self.carry_abort_out();
        self.publish_group();
        Ok(IntentReply::Accepted)
    }

    /// The rollout to this release, while it goes forward.
    fn forward(&self, service: &ServiceName, release: ReleaseNumber) -> Option<&Rollout> {
        let rollout = self.state.services.get(service)?.active_rollout()?;
        (rollout.to == release && rollout.direction == Direction::Forward).then_some(rollout)
    }

    /// Begun before the controller was killed, and not written down as such.
    fn note_begun(&mut self) {
        let Some(group) = self.present_group() else { return };
        let rolls = group.services.iter().any(|e| matches!(e.state, GroupState::Rolling { .. }));
        let none_begins = group.aborted.is_none() && group.goes_back();
        let next = group.services.iter().find(|e| e.state == GroupState::Waiting);
        let Some(entry) = next.filter(|_| !rolls && !none_begins) else { return };
        if stopped_by(&group, entry).is_some() {
            return;
        }
        let rollout = self.state.services.get(&entry.service).and_then(|s| s.rollout.as_ref());
        if let Some(begun) = rollout.filter(|r| r.began >= entry.since && r.by == group.by) {
            let release = begun.to;
            self.group_went(&entry.service, GroupState::Rolling { release });
        }
    }

    /// After an abort no other one is begun, and the one that is rolled out is taken back.
    fn carry_abort_out(&mut self) {
        let Some(group) = self.present_group() else { return };
        let (Some(why), Some(aborted)) = (group.abort_words(), &group.aborted) else { return };
        for entry in &group.services {
            match entry.state {
                GroupState::Waiting => {
                    self.group_went(&entry.service, GroupState::Skipped { why: why.clone() });
                }
                GroupState::Rolling { release }
                    if self.forward(&entry.service, release).is_some() =>
                {
                    let (by, reason) = (aborted.by.clone(), aborted.reason.clone());
                    self.happened(&entry.service, EventKind::Aborted { by, reason });
                }
                _ => {}
            }
        }
    }

    /// Brings the group on.
    pub(super) fn tend_group(&mut self) {
        self.note_begun();
        self.carry_abort_out();
        let Some(group) = self.present_group().filter(|_| !self.group_asking) else { return };
        for entry in &group.services {
            if let GroupState::Rolling { release } = entry.state {
                self.look_at_rollout(&entry.service, release);
                return;
            }
        }
        if group.goes_back() {
            self.take_group_back(&group);
            return;
        }
        let next = group.services.iter().find(|e| e.state == GroupState::Waiting);
        if let Some(entry) = next.filter(|_| group.paused.is_none()) {
            self.begin_entry(&group, entry);
        }
    }

    fn begin_entry(&mut self, group: &Group, entry: &GroupEntry) {
        if let Some(other) = stopped_by(group, entry) {
            let why = format!("it comes after {}", other.service);
            self.group_went(&entry.service, GroupState::Skipped { why });
            return;
        }
        if !self.all_hosts_heard_of() || self.waits_for_loans(&entry.service) {
            return;
        }
        let request = Request {
            kind: RolloutKind::Apply,
            by: group.by.clone(),
            reason: group.reason.clone(),
            accept_outage: group.accept_outage,
        };
        let settles = settles(group, &entry.service);
        self.ask_for(&entry.service, None, request, move |reply| {
            Some(match reply {
                Ok(IntentReply::RolloutBegun { release, .. }) => GroupState::Rolling { release },
                Ok(_) => GroupState::NothingToDo,
                Err(error) if no_room_yet(&error, settles) => return None,
                Err(error) => GroupState::Failed { why: error.message },
            })
        });
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

    /// What has changed since the next one was asked for: it is not begun now.
    pub(super) fn is_held_up(&self, service: &ServiceName, kind: RolloutKind) -> bool {
        let group = self.state.ledger.group.as_ref();
        let steered = group.is_none_or(|g| g.paused.is_some() || g.aborted.is_some());
        let lends = self.state.services.get(service).is_some_and(|s| !s.loans.is_empty());
        // What is another's, or could not be written down, is not brought on.
        let ours = self.takes_new_work().and_then(|()| self.not_fenced()).is_ok();
        !ours || lends || (steered && kind == RolloutKind::Apply)
    }

    pub(super) fn all_hosts_heard_of(&self) -> bool {
        self.hub.with(|s| s.hosts.values().all(super::maintenance::settled))
    }

    /// Begins a rollout; what comes of it becomes the state of the service in the group. None: it is asked for again.
    fn ask_for(
        &mut self,
        service: &ServiceName,
        to: Option<ReleaseNumber>,
        request: Request,
        then: impl FnOnce(Result<IntentReply, ApiError>) -> Option<GroupState> + Send + 'static,
    ) {
        let work = self.may_begin(service).map(|()| self.draft(service.clone(), to));
        self.group_asking = true;
        let (inputs, service) = (self.means.inputs.clone(), service.clone());
        tokio::spawn(async move {
            let draft = match work {
                Ok(work) => work.await,
                Err(error) => Err(error),
            };
            let begin = Box::new(move |core: &mut Core| {
                // A pause or an abort that was answered meanwhile holds.
                if core.is_held_up(&service, request.kind) {
                    return core.ask_group_again();
                }
                let kind = request.kind;
                let then = move |core: &mut Core, begun: Result<IntentReply, ApiError>| {
                    core.publish_stale();
                    let held_up = begun.is_err() && core.is_held_up(&service, kind);
                    match then(begun).filter(|_| !held_up) {
                        Some(state) => {
                            core.group_asking = false;
                            core.group_went(&service, state);
                        }
                        None => core.ask_group_again(),
                    }
                };
                match draft {
                    Ok(draft) => core.begin_rollout(Beginning {
                        draft: Box::new(draft),
                        request,
                        of_group: true,
                        then: Box::new(then),
                    }),
                    Err(error) => then(core, Err(error)),
                }
            });
            let _ = inputs.send(Input::Ask(begin)).await;
        });
    }

    /// What could not begin now is asked for again in a moment.
    fn ask_group_again(&self) {
        let inputs = self.means.inputs.clone();
        tokio::spawn(async move {
            tokio::time::sleep(ASK_AGAIN).await;
            let again = Box::new(|core: &mut Self| core.group_asking = false);
            let _ = inputs.send(Input::Ask(again)).await;
        });
    }

    fn look_at_rollout(&mut self, service: &ServiceName, release: ReleaseNumber) {
        let rollout = self.state.services.get(service).and_then(|s| s.rollout.clone());
        let state = match rollout {
            Some(rollout) if rollout.to == release => match rollout.outcome {
                None => return,
                Some(Outcome::Completed) => GroupState::Done { release, before: rollout.from },
                Some(
                    Outcome::RolledBack { why }
                    | Outcome::Aborted { why }
                    | Outcome::Failed { why },
                ) => GroupState::Failed { why },
            },
            _ => GroupState::Failed { why: format!("{release} was replaced by another rollout") },
        };
        self.group_went(service, state);
    }

    /// Takes back what was rolled out, the last one first.
    fn take_group_back(&mut self, group: &Group) {
        let failed = group.services.iter().find(|e| matches!(e.state, GroupState::Failed { .. }));
        let failed = || failed.map(|e| format!("{} failed", e.service));
        let cause = group.abort_words().or_else(failed).unwrap_or_default();
        for entry in group.services.iter().filter(|e| e.state == GroupState::Waiting) {
            self.group_went(&entry.service, GroupState::Skipped { why: cause.clone() });
        }
        for entry in group.services.iter().rev() {
            let service = &entry.service;
            let state = self.state.services.get(service);
            match &entry.state {
                GroupState::Undoing => {
                    // What is served now tells: nothing, or the release of the undo.
                    let Some(state) = state else { return };
                    if state.active_rollout().is_some() || state.stopping {
                        return;
                    }
                    let last = state.rollout.as_ref();
                    let undone = last.filter(|r| r.kind == RolloutKind::Undo);
                    let result = match undone.map(|r| &r.outcome) {
                        _ if state.replicas.is_empty() => GroupState::Undone,
                        Some(Some(Outcome::Completed)) => GroupState::Undone,
                        _ => GroupState::NotUndone {
                            why: "its undo did not complete; `gpudeck rollout undo` again"
                                .to_owned(),
                        },
                    };
                    self.group_went(service, result);
                    return;
                }
                GroupState::Done { release, before } => {
                    let begun = state.and_then(|s| s.rollout.as_ref()).filter(|r| {
                        r.kind == RolloutKind::Undo
                            && r.began >= entry.since
                            && r.from == Some(*release)
                    });
                    if begun.is_some() || state.is_some_and(|s| s.stopping) {
                        self.group_went(service, GroupState::Undoing);
                        return;
                    }
                    let service = service.clone();
                    match before {
                        None => {
                            let by = group.by.clone();
                            self.happened(&service, EventKind::StopRequested { by });
                            self.group_went(&service, GroupState::Undoing);
                        }
                        Some(before) => {
                            if !self.all_hosts_heard_of() || self.waits_for_loans(&service) {
                                return;
                            }
                            let request = Request {
                                kind: RolloutKind::Undo,
                                by: group.by.clone(),
                                reason: Some(cause),
                                accept_outage: group.accept_outage,
                            };
                            let settles = settles(group, &service);
                            self.ask_for(&service, Some(*before), request, move |reply| {
                                Some(match reply {
                                    Ok(IntentReply::NothingToDo) => GroupState::Undone,
                                    Ok(_) => GroupState::Undoing,
                                    Err(error) if no_room_yet(&error, settles) => return None,
                                    Err(error) => GroupState::NotUndone { why: error.message },
                                })
                            });
                        }
                    }
                    return;
                }
                _ => {}
            }
        }
    }
}

/// What failed or was skipped, and comes before it.
fn stopped_by<'a>(group: &'a Group, entry: &GroupEntry) -> Option<&'a GroupEntry> {
    group.services.iter().find(|other| {
        let bad = matches!(other.state, GroupState::Failed { .. } | GroupState::Skipped { .. });
        bad && entry.after.contains(&other.service)
    })
}

/// Until when what the others of the group have left may not be seen as free.
fn settles(group: &Group, service: &ServiceName) -> Timestamp {
    let others = group.services.iter().filter(|e| e.service != *service);
    others.map(|e| e.since).max().unwrap_or(group.began).plus(SETTLES)
}

fn no_room_yet(error: &ApiError, settles: Timestamp) -> bool {
    error.kind == ErrorKind::Unplaceable && now() < settles
}
