//! What is next to be done for services that are rolled out together.

use std::collections::BTreeMap;
use std::time::Duration;

use super::by_people::{Back, back_of};
use super::{Group, GroupEntry, GroupState};
use crate::base::{ReleaseNumber, ServiceName, Timestamp};
use crate::rollout::{Direction, Outcome, Rollout, RolloutKind, ServiceState};

/// What a service has left is free when its hosts say so: until then the next one may find no room.
const SETTLES: Duration = Duration::from_secs(15);

/// The services of a deck.
type Services = BTreeMap<ServiceName, ServiceState>;

/// What is to be done for a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupMove {
    /// One of them has come further: to be journaled.
    Went {
        /// Which.
        service: ServiceName,
        /// How far.
        state: GroupState,
    },
    /// The rollout of one is aborted, since the group was.
    Abort {
        /// Of which.
        service: ServiceName,
        /// Who aborted the group.
        by: String,
        /// Why.
        reason: Option<String>,
    },
    /// One that was not served before is stopped; then it is `Undoing`.
    Stop {
        /// Which.
        service: ServiceName,
    },
    /// A rollout of one is to begin.
    Begin(Begin),
}

/// A rollout that is to begin. `Begin::answered` says what becomes of the service then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Begin {
    /// Of which.
    pub service: ServiceName,
    /// Forward, or back.
    pub kind: RolloutKind,
    /// Back to which release.
    pub to: Option<ReleaseNumber>,
    /// Why.
    pub reason: Option<String>,
}

/// What came of asking for a rollout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It has begun, to this release.
    Begun(ReleaseNumber),
    /// It is so already.
    NothingToDo,
    /// It cannot begin.
    Refused {
        /// Why.
        why: String,
    },
}

impl Begin {
    /// How far the service is after this answer.
    pub fn answered(&self, answer: Answer) -> GroupState {
        let forward = self.kind == RolloutKind::Apply;
        match answer {
            Answer::Begun(release) if forward => GroupState::Rolling { release },
            Answer::Begun(_) => GroupState::Undoing,
            Answer::NothingToDo if forward => GroupState::NothingToDo,
            Answer::NothingToDo => GroupState::Undone,
            Answer::Refused { why } if forward => GroupState::Failed { why },
            Answer::Refused { why } => GroupState::NotUndone { why },
        }
    }
}

impl Group {
    /// What follows by itself from what happened, and begins nothing: also while a rollout is being asked for.
    pub fn follows(&self, services: &Services) -> Option<GroupMove> {
        if self.ended.is_some() {
            return None;
        }
        self.begun_unnoted(services)
            .or_else(|| self.by_people(services))
            .or_else(|| self.withdrawn(services))
    }

    /// Whether it is still this that is to be done, though it takes its time: people may have come first.
    pub fn still(&self, begin: &Begin, services: &Services) -> bool {
        let Some(GroupMove::Begin(next)) = self.next(services) else { return false };
        (next.service, next.kind) == (begin.service.clone(), begin.kind)
    }

    /// What is to be done next, one thing at a time. None: somebody or something is waited for.
    pub fn next(&self, services: &Services) -> Option<GroupMove> {
        if self.ended.is_some() {
            return None;
        }
        if let Some(follows) = self.follows(services) {
            return Some(follows);
        }
        for entry in &self.services {
            if let GroupState::Rolling { release } = entry.state {
                return ended(services.get(&entry.service), release).map(|state| entry.went(state));
            }
        }
        if self.goes_back() {
            return self.back(services);
        }
        let waiting = self.services.iter().find(|e| e.state == GroupState::Waiting)?;
        if self.paused.is_some() {
            return None;
        }
        if let Some(other) = self.stopped_by(waiting) {
            let why = format!("it comes after {}", other.service);
            return Some(waiting.went(GroupState::Skipped { why }));
        }
        Some(GroupMove::Begin(Begin {
            service: waiting.service.clone(),
            kind: RolloutKind::Apply,
            to: None,
            reason: self.reason.clone(),
        }))
    }

    /// Until when what the others of the group have left may not be seen as free.
    pub fn settles(&self, service: &ServiceName) -> Timestamp {
        let others = self.services.iter().filter(|e| e.service != *service);
        others.map(|e| e.since).max().unwrap_or(self.began).plus(SETTLES)
    }

    /// Begun before the controller was killed, and not written down as such.
    fn begun_unnoted(&self, services: &Services) -> Option<GroupMove> {
        let rolls = self.services.iter().any(|e| matches!(e.state, GroupState::Rolling { .. }));
        if rolls {
            return None;
        }
        let entry = self.services.iter().find(|e| e.state == GroupState::Waiting)?;
        if self.stopped_by(entry).is_some() {
            return None;
        }
        let begun = services.get(&entry.service)?.rollout.as_ref()?;
        // Whoever asked for the group may have asked for this one alone, too.
        let is_ours = begun.of_group == Some(self.began);
        is_ours.then(|| entry.went(GroupState::Rolling { release: begun.to }))
    }

    /// What people did to one that waits is seen at once, also beside another one that is rolled out.
    fn by_people(&self, services: &Services) -> Option<GroupMove> {
        let mut waiting = self.services.iter().filter(|e| e.state == GroupState::Waiting);
        waiting.find_map(|entry| {
            let why = self.overtaken(services.get(&entry.service)?)?;
            Some(entry.went(GroupState::Skipped { why }))
        })
    }

    /// After an abort, and when all are taken back, no other one is begun, and the one that is rolled out is taken back.
    fn withdrawn(&self, services: &Services) -> Option<GroupMove> {
        let why = self.cause()?;
        let (by, reason) = match &self.aborted {
            Some(aborted) => (aborted.by.clone(), aborted.reason.clone()),
            None => (self.by.clone(), Some(why.clone())),
        };
        self.services.iter().find_map(|entry| match entry.state {
            GroupState::Waiting => Some(entry.went(GroupState::Skipped { why: why.clone() })),
            GroupState::Rolling { release } => {
                forward(services.get(&entry.service)?, release)?;
                Some(GroupMove::Abort {
                    service: entry.service.clone(),
                    by: by.clone(),
                    reason: reason.clone(),
                })
            }
            _ => None,
        })
    }

    /// Why none is begun any more, or all are taken back; none: they go on.
    fn cause(&self) -> Option<String> {
        if let Some(aborted) = self.abort_words() {
            return Some(aborted);
        }
        if !self.goes_back() {
            return None;
        }
        let failed = self.services.iter().find(|e| matches!(e.state, GroupState::Failed { .. }));
        // Those that were skipped since the first one name its reason, too.
        let skipped = self.services.iter().filter_map(|e| match &e.state {
            GroupState::Skipped { why } => Some((e.since, why.len(), e, why)),
            _ => None,
        });
        let skipped = skipped.min_by_key(|(since, length, ..)| (*since, *length));
        let skipped = skipped.map(|(_, _, e, why)| format!("{}: {why}", e.service));
        failed.map(|e| format!("{} failed", e.service)).or(skipped)
    }

    /// Takes back what was rolled out, the last one first.
    fn back(&self, services: &Services) -> Option<GroupMove> {
        for entry in self.services.iter().rev() {
            let state = services.get(&entry.service);
            match entry.state {
                GroupState::Undoing => {
                    return self.undone(entry, state?).map(|state| entry.went(state));
                }
                GroupState::Done { release, before } => {
                    let back = state.map(|s| back_of(entry, (release, before), s));
                    match back.unwrap_or(Back::Take) {
                        Back::Wait => return None,
                        Back::Went(state) => return Some(entry.went(state)),
                        Back::Take => {}
                    }
                    let service = entry.service.clone();
                    return Some(match before {
                        None => GroupMove::Stop { service },
                        Some(_) => GroupMove::Begin(Begin {
                            service,
                            kind: RolloutKind::Undo,
                            to: before,
                            reason: self.cause(),
                        }),
                    });
                }
                _ => {}
            }
        }
        None
    }

    /// What failed or was skipped, and comes before this one.
    fn stopped_by(&self, entry: &GroupEntry) -> Option<&GroupEntry> {
        self.services.iter().find(|other| {
            let bad = matches!(other.state, GroupState::Failed { .. } | GroupState::Skipped { .. });
            bad && entry.after.contains(&other.service)
        })
    }
}

impl GroupEntry {
    fn went(&self, state: GroupState) -> GroupMove {
        GroupMove::Went { service: self.service.clone(), state }
    }
}

/// The rollout to this release, while it goes forward.
pub fn forward(state: &ServiceState, release: ReleaseNumber) -> Option<&Rollout> {
    let rollout = state.active_rollout()?;
    (rollout.to == release && rollout.direction == Direction::Forward).then_some(rollout)
}

/// How the rollout to this release ended, if it has.
fn ended(state: Option<&ServiceState>, release: ReleaseNumber) -> Option<GroupState> {
    let rollout = state.and_then(|s| s.rollout.as_ref()).filter(|r| r.to == release);
    let Some(rollout) = rollout else {
        let why = format!("{release} was replaced by another rollout");
        return Some(GroupState::Failed { why });
    };
    Some(match rollout.outcome.clone()? {
        Outcome::Completed => GroupState::Done { release, before: rollout.from },
        Outcome::RolledBack { why } | Outcome::Aborted { why } | Outcome::Failed { why } => {
            GroupState::Failed { why }
        }
    })
}
