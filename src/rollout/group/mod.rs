//! Several services in one rollout: one after the other in the order of their `after`; atomic or as far as it goes.
//! How far they are is here, in which order they come in `order`, what is to be done in `next`, what people did to one of
//! them meanwhile in `by_people`. Who asks, and who carries it out, is elsewhere.

mod by_people;
mod next;
mod order;

use serde::{Deserialize, Serialize};

use super::RolloutKind;
use crate::base::{ReleaseNumber, ServiceName, Timestamp};

pub use next::{Answer, Begin, GroupMove, forward};
pub use order::{Cycle, order};

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
    /// A person holds it.
    #[serde(default)]
    pub paused: Option<Steered>,
    /// A person had it taken back.
    #[serde(default)]
    pub aborted: Option<Steered>,
}

/// Who asked for something in the middle of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Steered {
    /// Who.
    pub by: String,
    /// When.
    pub since: Timestamp,
    /// Why.
    pub reason: Option<String>,
}

/// What a person wants of several services that are being rolled out together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GroupSteer {
    /// Hold the one that is rolled out, and begin no other.
    Pause,
    /// Go on after a pause.
    Resume,
    /// Take back the one that is rolled out and begin no other; if it is atomic, take back all.
    Abort,
}

impl GroupSteer {
    /// What a person does who asks for it.
    pub const fn verb(self) -> &'static str {
        match self {
            Self::Pause => "pauses",
            Self::Resume => "resumes",
            Self::Abort => "aborts",
        }
    }
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
    /// A digest of its spec as it was agreed to; none: one of an earlier build, whatever its spec is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Its plan had an OUTAGE, which was accepted; none: one of an earlier build, what was accepted of all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accept_outage: Option<bool>,
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

impl GroupEntry {
    /// Whether its spec, of which this is the digest, is the one that was agreed to.
    pub fn is_as_agreed(&self, digest: &str) -> bool {
        self.digest.as_ref().is_none_or(|agreed| agreed == digest)
    }
}

impl Group {
    /// Whether one of them failed, or a person aborted all.
    pub fn failed(&self) -> bool {
        self.aborted.is_some()
            || self.services.iter().any(|e| matches!(e.state, GroupState::Failed { .. }))
    }

    /// What was rolled out is taken back. Of what is atomic none may be missing, whoever wanted it out.
    pub fn goes_back(&self) -> bool {
        let is_out = |e: &GroupEntry| matches!(e.state, GroupState::Skipped { .. });
        self.atomic && (self.failed() || self.services.iter().any(is_out))
    }

    /// It is under way, or has ended otherwise than it was asked for: people are to see it.
    pub fn is_shown(&self) -> bool {
        self.ended.is_none() || !self.services.iter().all(|e| e.state.is_good())
    }

    /// Whether an OUTAGE of this one was accepted; on the way back what was accepted of any.
    pub fn accepts_outage(&self, service: &ServiceName, kind: RolloutKind) -> bool {
        let entry = self.entry(service).filter(|_| kind == RolloutKind::Apply);
        entry.and_then(|e| e.accept_outage).unwrap_or(self.accept_outage)
    }

    /// This one of them.
    pub fn entry(&self, service: &ServiceName) -> Option<&GroupEntry> {
        self.services.iter().find(|e| e.service == *service)
    }

    /// Who aborted it and why, in words.
    pub fn abort_words(&self) -> Option<String> {
        let aborted = self.aborted.as_ref()?;
        let reason = aborted.reason.as_deref().map(|r| format!(": {r}")).unwrap_or_default();
        Some(format!("aborted by {}{reason}", aborted.by))
    }

    /// A person held it, let it go on, or aborted it.
    pub fn steered(&mut self, what: GroupSteer, by: &str, reason: Option<&str>, at: Timestamp) {
        let reason = reason.filter(|r| !r.trim().is_empty()).map(str::to_owned);
        let steered = Steered { by: by.to_owned(), since: at, reason };
        match what {
            GroupSteer::Pause => {
                self.paused.get_or_insert(steered);
            }
            GroupSteer::Resume => self.paused = None,
            GroupSteer::Abort => {
                self.aborted.get_or_insert(steered);
            }
        }
        self.settle(at);
    }

    /// One of them has come further.
    pub fn went(&mut self, service: &ServiceName, state: &GroupState, at: Timestamp) {
        for entry in self.services.iter_mut().filter(|e| e.service == *service) {
            entry.state = state.clone();
            entry.since = at;
        }
        self.settle(at);
    }

    /// What follows from how far each is.
    fn settle(&mut self, at: Timestamp) {
        let undo = self.goes_back();
        // Nothing is held on the way back.
        if undo || self.aborted.is_some() {
            self.paused = None;
        }
        let over = self.services.iter().all(|e| match e.state {
            GroupState::Waiting | GroupState::Rolling { .. } | GroupState::Undoing => false,
            GroupState::Done { .. } => !undo,
            _ => true,
        });
        if over {
            self.ended.get_or_insert(at);
            self.paused = None;
        }
    }
}
