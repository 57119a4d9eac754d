//! What the links have to tell.

use std::sync::Arc;
use std::time::Duration;

use crate::base::{DownCause, HostName};
use crate::wire::{HostFacts, HostSample, RankReport};

/// Something happened on a link. States are newest-wins: a reader who is slow misses states in
/// between, never the last one.
#[derive(Clone, Debug, PartialEq)]
pub enum FleetEvent {
    /// How the link is.
    Link {
        /// Which host.
        host: HostName,
        /// How its link is now.
        state: LinkState,
        /// The phases that the present or last attempt has gone through, in order; a slow reader
        /// misses none of them.
        way: Vec<String>,
    },
    /// What the host is; with each connection, and when it has changed.
    Facts {
        /// Which host.
        host: HostName,
        /// What it says of itself.
        facts: Box<HostFacts>,
    },
    /// A sample.
    Sample {
        /// Which host.
        host: HostName,
        /// The newest one.
        sample: Arc<HostSample>,
    },
    /// How the host's clock differs from ours; now and then.
    Clock {
        /// Which host.
        host: HostName,
        /// Its wall clock less ours, milliseconds.
        offset_ms: i64,
        /// The round trip it was measured over, microseconds: the offset is right to half of it.
        round_trip_us: u64,
    },
    /// All process ranks on the host.
    Ranks {
        /// Which host.
        host: HostName,
        /// All of them, ended ones included.
        ranks: Vec<RankReport>,
    },
    /// A person is needed; answer with [`super::Fleet::answer`] within five minutes.
    Question {
        /// Number of the question.
        id: u64,
        /// Which host asks.
        host: HostName,
        /// What kind of answer is wanted.
        kind: QuestionKind,
        /// The question, cleaned.
        text: String,
    },
    /// The question was answered, or is no longer asked.
    QuestionGone {
        /// Number of the question.
        id: u64,
    },
    /// The host is not reached before a person has answered what another one asks: a bastion's code, the
    /// passphrase of a key that both use.
    Waits {
        /// Which host.
        host: HostName,
        /// That question, cleaned.
        question: String,
    },
    /// Something about the host that works otherwise than its configuration asks.
    Warning {
        /// Which host.
        host: HostName,
        /// What, cleaned.
        text: String,
    },
}

/// What kind of answer a question wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuestionKind {
    /// Is this the host's key? `yes` accepts it, everything else does not.
    HostKey,
    /// A passphrase. Nothing of it may be shown.
    Secret,
}

/// How a link is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// On the way.
    Connecting {
        /// For people: `logging in`, `installing the agent 43%`.
        phase: String,
    },
    /// Waiting for a person.
    Asking {
        /// Number of the question.
        question: u64,
    },
    /// The agent answers.
    Up,
    /// The host is reached, and the agent cannot be there: only `nvidia-smi` and `/proc` are read,
    /// nothing can be changed.
    Limited {
        /// Why no agent.
        why: String,
        /// What to do about it, where known.
        hint: Option<String>,
    },
    /// Not reached.
    Down {
        /// Which of the named causes.
        kind: DownCause,
        /// The cause in words.
        cause: String,
        /// What to do about it, where known.
        hint: Option<String>,
        /// When it is tried again; none: when told to.
        retry_in: Option<Duration>,
    },
}
