//! Changes of a snapshot, and how they are applied to it.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::event::{EventLine, Question};
use super::host::HostView;
use super::service::ServiceView;
use super::{DeckView, MAX_EVENTS, Snapshot};
use crate::api::shared;
use crate::base::{HostName, ServiceName, Timestamp};
use crate::wire::HostSample;
use crate::wire::change::SampleChange;

/// A change of a snapshot.
///
/// On the wire its kind is the name of its only member: what comes after it is then read straight into its
/// place. A kind that may stand anywhere would make every reader keep the whole line as a tree first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Delta {
    /// The whole snapshot: the first line of a stream.
    Snapshot(Box<Snapshot>),
    /// The deck changed.
    Deck {
        /// The new sequence number.
        sequence: u64,
        /// What it is now.
        deck: DeckView,
    },
    /// A host changed (link state, sample, ranks).
    Host {
        /// The new sequence number.
        sequence: u64,
        /// What it is now.
        host: Box<HostView>,
    },
    /// A host was sampled, and nothing else about it has changed.
    Sample {
        /// The new sequence number.
        sequence: u64,
        /// Which host.
        host: HostName,
        /// When the sample arrived, by the controller's clock.
        sampled: Timestamp,
        /// The sample.
        #[serde(with = "shared")]
        sample: Arc<HostSample>,
    },
    /// As `Sample`, told as what has changed since the sample before that was told; only to doors
    /// that ask for changes.
    Change {
        /// The new sequence number.
        sequence: u64,
        /// Which host.
        host: HostName,
        /// When the sample arrived, by the controller's clock.
        sampled: Timestamp,
        /// What has changed.
        change: SampleChange,
    },
    /// A host left the deck.
    HostGone {
        /// The new sequence number.
        sequence: u64,
        /// Which.
        host: HostName,
    },
    /// A service changed.
    Service {
        /// The new sequence number.
        sequence: u64,
        /// What it is now.
        service: Box<ServiceView>,
    },
    /// A service left the deck.
    ServiceGone {
        /// The new sequence number.
        sequence: u64,
        /// Which.
        service: ServiceName,
    },
    /// Something happened.
    Event {
        /// The new sequence number.
        sequence: u64,
        /// What.
        event: EventLine,
    },
    /// A question was asked.
    Question {
        /// The new sequence number.
        sequence: u64,
        /// What is asked.
        question: Question,
    },
    /// A question was answered or fell away.
    QuestionGone {
        /// The new sequence number.
        sequence: u64,
        /// Which.
        id: u64,
    },
}

impl Delta {
    /// Its number; none for a whole snapshot.
    pub fn sequence(&self) -> Option<u64> {
        match self {
            Self::Snapshot(_) => None,
            Self::Deck { sequence, .. }
            | Self::Host { sequence, .. }
            | Self::Sample { sequence, .. }
            | Self::Change { sequence, .. }
            | Self::HostGone { sequence, .. }
            | Self::Service { sequence, .. }
            | Self::ServiceGone { sequence, .. }
            | Self::Event { sequence, .. }
            | Self::Question { sequence, .. }
            | Self::QuestionGone { sequence, .. } => Some(*sequence),
        }
    }

    /// Gives it another number: a reader who is spared some has numbers of his own.
    pub fn renumber(&mut self, number: u64) {
        match self {
            Self::Snapshot(snapshot) => snapshot.sequence = number,
            Self::Deck { sequence, .. }
            | Self::Host { sequence, .. }
            | Self::Sample { sequence, .. }
            | Self::Change { sequence, .. }
            | Self::HostGone { sequence, .. }
            | Self::Service { sequence, .. }
            | Self::ServiceGone { sequence, .. }
            | Self::Event { sequence, .. }
            | Self::Question { sequence, .. }
            | Self::QuestionGone { sequence, .. } => *sequence = number,
        }
    }
}

impl Snapshot {
    /// Applies a delta. `false`: there is a gap, fetch a snapshot again.
    #[must_use]
    pub fn apply(&mut self, delta: Delta) -> bool {
        if let Some(next) = delta.sequence() {
            if next != self.sequence + 1 {
                return false;
            }
            self.sequence = next;
        }
        match delta {
            Delta::Snapshot(snapshot) => *self = *snapshot,
            Delta::Deck { deck, .. } => self.deck = deck,
            Delta::Host { host, .. } => {
                self.hosts.insert(host.name.clone(), *host);
            }
            Delta::Sample { host, sampled, sample, .. } => {
                if let Some(view) = self.hosts.get_mut(&host) {
                    view.sample = Some(sample);
                    view.sampled = Some(sampled);
                }
            }
            Delta::Change { host, sampled, change, .. } => {
                let Some(view) = self.hosts.get_mut(&host) else { return false };
                let changed = view.sample.as_mut().map(|sample| change.apply(sample));
                if !matches!(changed, Some(Ok(()))) {
                    return false;
                }
                view.sampled = Some(sampled);
            }
            Delta::HostGone { host, .. } => {
                self.hosts.remove(&host);
            }
            Delta::Service { service, .. } => {
                self.services.insert(service.name.clone(), *service);
            }
            Delta::ServiceGone { service, .. } => {
                self.services.remove(&service);
            }
            Delta::Event { event, .. } => {
                self.events.push_back(event);
                while self.events.len() > MAX_EVENTS {
                    self.events.pop_front();
                }
            }
            Delta::Question { question, .. } => {
                self.questions.insert(question.id, question);
            }
            Delta::QuestionGone { id, .. } => {
                self.questions.remove(&id);
            }
        }
        true
    }
}
