//! Services that are rolled out together, as doors see them.

use serde::{Deserialize, Serialize};

use crate::base::{ReleaseNumber, ServiceName, Timestamp};

/// Several services, rolled out one after the other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// The services in order, and how far each is.
    pub services: Vec<GroupEntry>,
    /// If one fails, those already rolled out are taken back.
    pub atomic: bool,
    /// Who asked.
    pub by: String,
    /// Why.
    pub reason: Option<String>,
    /// Outages were accepted.
    pub accept_outage: bool,
    /// When it began.
    pub began: Timestamp,
    /// When it was over.
    pub ended: Option<Timestamp>,
}

/// One service of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupEntry {
    /// The service.
    pub service: ServiceName,
    /// Those of the group that it comes after.
    pub after: Vec<ServiceName>,
    /// How far it is.
    pub state: GroupState,
    /// Since when.
    pub since: Timestamp,
}

/// How far a service of a group is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum GroupState {
    /// Its turn has not come.
    Waiting,
    /// It is rolled out.
    Rolling {
        /// The new release.
        release: ReleaseNumber,
    },
    /// It was rolled out.
    Done {
        /// The new release.
        release: ReleaseNumber,
        /// What was served before.
        before: Option<ReleaseNumber>,
    },
    /// What is served is what its spec says.
    NothingToDo,
    /// It failed, and what was served before is served again.
    Failed {
        /// Why.
        why: String,
    },
    /// Its turn will not come.
    Skipped {
        /// Why.
        why: String,
    },
    /// It is taken back, since another one failed.
    Undoing,
    /// It was taken back.
    Undone,
    /// It could not be taken back.
    NotUndone {
        /// Why.
        why: String,
    },
}

impl GroupState {
    /// In a word, and why.
    pub fn words(&self) -> (&'static str, &str) {
        match self {
            Self::Waiting => ("waiting", ""),
            Self::Rolling { .. } => ("rolling out", ""),
            Self::Done { .. } => ("completed", ""),
            Self::NothingToDo => ("nothing to do", ""),
            Self::Failed { why } => ("FAILED", why),
            Self::Skipped { why } => ("skipped", why),
            Self::Undoing => ("being undone", ""),
            Self::Undone => ("undone", ""),
            Self::NotUndone { why } => ("NOT undone", why),
        }
    }

    /// It is as it was asked for.
    pub const fn is_good(&self) -> bool {
        matches!(self, Self::Done { .. } | Self::NothingToDo)
    }
}

impl Group {
    /// Whether one of them failed.
    pub fn failed(&self) -> bool {
        self.services.iter().any(|e| matches!(e.state, GroupState::Failed { .. }))
    }

    /// One of them has come further.
    pub fn went(&mut self, service: &ServiceName, state: &GroupState, at: Timestamp) {
        for entry in self.services.iter_mut().filter(|e| e.service == *service) {
            entry.state = state.clone();
            entry.since = at;
        }
        let undo = self.atomic && self.failed();
        let over = self.services.iter().all(|e| match e.state {
            GroupState::Waiting | GroupState::Rolling { .. } | GroupState::Undoing => false,
            GroupState::Done { .. } => !undo,
            _ => true,
        });
        if over {
            self.ended = Some(at);
        }
    }
}
