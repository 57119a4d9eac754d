//! What doors see.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::condition::DeckCondition;
use super::maintenance::{Maintenance, Upgrade};
use super::plan::{PlanBorrow, PlanProgress, PlanStep, PlanTime};
use super::shared;
use crate::base::{
    Attempt, Bytes, DeviceId, DownCause, Hint, HostName, RankId, ReleaseNumber, ReplicaId,
    ReplicaKey, Revision, ServiceName, Timestamp,
};
use crate::model::Observation;
use crate::rollout::forecast::Forecast;
use crate::rollout::group::Group;
use crate::rollout::{Condition, Outcome, Phase, QueuedRollout, Rollout};
use crate::wire::change::SampleChange;
use crate::wire::{HostFacts, HostSample};

/// Everything a door shows, at one moment. `GET /v1/snapshot`; changes follow as [`Delta`]s on
/// `GET /v1/stream` (one JSON object a line, the first is a snapshot).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Grows by one with each delta; a gap means: fetch a snapshot again.
    pub sequence: u64,
    /// The deck.
    pub deck: DeckView,
    /// The hosts, by name.
    pub hosts: BTreeMap<HostName, HostView>,
    /// The services, by name.
    pub services: BTreeMap<ServiceName, ServiceView>,
    /// What waits for a person.
    pub questions: BTreeMap<u64, Question>,
    /// The latest events, oldest first (at most 1,000).
    pub events: VecDeque<EventLine>,
}

/// Most events a snapshot holds.
pub const MAX_EVENTS: usize = 1_000;

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

/// The deck, for titles.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DeckView {
    /// What people call it.
    pub name: String,
    /// Its directory; none for the deck-less view of this machine.
    pub path: Option<String>,
    /// The hosts are simulated; every screen says so.
    pub simulated: bool,
    /// Version of the controller.
    pub version: String,
    /// Pid of the controller.
    pub pid: u32,
    /// A mistake in deck.toml or a spec that keeps the last good one in force.
    pub trouble: Option<String>,
    /// Memory of the controller.
    pub controller_memory: Option<Bytes>,
    /// The upgrade of hosts under way, or the last one.
    #[serde(default)]
    pub upgrade: Option<Box<Upgrade>>,
    /// The services that are rolled out together, or were last.
    #[serde(default)]
    pub group: Option<Box<Group>>,
    /// What keeps the deck from something, the gravest first; `trouble` is the first in words.
    #[serde(default)]
    pub conditions: Vec<DeckCondition>,
}

/// A host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostView {
    /// Its name in the deck.
    pub name: HostName,
    /// How the link is.
    pub link: HostLinkState,
    /// The phases that the present or last attempt to reach it has gone through, in order.
    #[serde(default)]
    pub way: Vec<String>,
    /// What it is, once known.
    pub facts: Option<HostFacts>,
    /// The newest sample; it stays when the link is lost, with its age.
    #[serde(default, with = "shared::maybe")]
    pub sample: Option<Arc<HostSample>>,
    /// When that sample arrived, by the controller's clock.
    pub sampled: Option<Timestamp>,
    /// How its clock differs from the controller's, once measured.
    #[serde(default)]
    pub clock: Option<ClockView>,
    /// Ranks of this deck on this host.
    pub ranks: Vec<RankView>,
    /// Labels of the deck.
    pub labels: BTreeMap<String, String>,
    /// Cordons, drain, upgrade.
    #[serde(default)]
    pub maintenance: Maintenance,
    /// Who may act on it for this deck; none: nobody yet, as far as is known.
    #[serde(default)]
    pub claim: Option<ClaimView>,
    /// This controller has asked it who may act on it.
    #[serde(default)]
    pub claim_known: bool,
}

/// Who may act on a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimView {
    /// Which controller: `user@machine (directory)`.
    pub holder: String,
    /// It is this one.
    pub ours: bool,
    /// Since when another one holds it.
    pub since: Option<Timestamp>,
    /// When another one's lease ends, or ended.
    pub until: Option<Timestamp>,
}

/// A host's clock against the controller's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockView {
    /// The host's less ours, milliseconds.
    pub offset_ms: i64,
    /// The round trip it was measured over, microseconds: the offset is right to half of it.
    pub round_trip_us: u64,
}

/// What a door shows at this moment: hosts that are looked at are sampled more often. Said again
/// every few seconds; after fifteen without it the door counts as looking away.
/// `POST /v1/look`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Looking {
    /// Hosts that can be seen.
    pub hosts: Vec<HostName>,
    /// The host whose details are open.
    pub detail: Option<HostName>,
    /// Which door says so: the samples of other hosts are told less often on its stream.
    #[serde(default)]
    pub door: Option<Uuid>,
}

/// How the link to a host is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum HostLinkState {
    /// On the way for the first time, or after it was up: `connecting`, `authenticating`, `installing the agent`.
    Connecting {
        /// Which phase.
        phase: String,
    },
    /// The agent answers.
    Up,
    /// The host is reached, and the agent cannot be there: only `nvidia-smi` and `/proc` are read.
    Limited {
        /// Why no agent.
        why: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// A person has to answer a question first.
    Asking {
        /// The question.
        question: u64,
    },
    /// Not reached.
    Down {
        /// Which of the named causes.
        #[serde(default)]
        kind: DownCause,
        /// The cause in words.
        cause: String,
        /// What to do about it.
        hint: Option<String>,
        /// Since when it has not been reached, over all attempts.
        since: Timestamp,
        /// When the last attempt failed, of which the cause tells.
        #[serde(default)]
        tried: Timestamp,
        /// When it is tried again; none: only after something changes.
        retry_at: Option<Timestamp>,
        /// How far the attempt is that goes on now: `connecting`, `authenticating`, …
        #[serde(default, skip_serializing_if = "Option::is_none")]
        trying: Option<String>,
    },
}

/// A rank, where it runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RankView {
    /// Which.
    pub rank: RankId,
    /// Where.
    pub host: HostName,
    /// On what.
    pub devices: Vec<DeviceId>,
    /// Port of its API.
    pub port: u16,
}

/// A service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServiceView {
    /// Its name.
    pub name: ServiceName,
    /// In one word.
    pub condition: Condition,
    /// The model.
    pub model: String,
    /// The engine's name.
    pub engine: String,
    /// Replicas wanted.
    pub wanted: u32,
    /// Replicas ready.
    pub ready: u32,
    /// Never fewer ready than this by an action of ours.
    pub floor: u32,
    /// The release served.
    pub stable: Option<ReleaseNumber>,
    /// The rollout that begins when the present one has ended.
    #[serde(default)]
    pub queued: Option<QueuedRollout>,
    /// Why the last queued one did not begin.
    #[serde(default)]
    pub queue_trouble: Option<String>,
    /// The rollout under way, or the last one.
    pub rollout: Option<Rollout>,
    /// Titles of the rollout's steps: `weight 10 %`, `analyse default`, …, `all replicas`.
    pub steps: Vec<String>,
    /// Its replicas, new releases first.
    pub replicas: Vec<ReplicaView>,
    /// Releases, newest first (at most 50).
    pub history: Vec<ReleaseView>,
    /// The spec in the deck differs from what is served: something waits to be applied.
    pub pending_change: bool,
    /// Where clients reach it.
    pub url: Option<String>,
    /// Seen at the gateway over the last seconds.
    pub traffic: TrafficView,
    /// A mistake that keeps it from being applied or served, and what to do.
    pub trouble: Option<String>,
    /// What was foreseen of the rollout under way, or of the last one, beside what happened.
    #[serde(default)]
    pub progress: Option<PlanProgress>,
    /// What its engines logged of their memory beside what was foreseen, the newest first (at most 8).
    #[serde(default)]
    pub memory: Vec<MemoryView>,
}

/// What an engine of a release logged of its memory when it had loaded, or refused to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryView {
    /// The release.
    pub release: ReleaseNumber,
    /// Measured and foreseen.
    #[serde(flatten)]
    pub seen: Observation,
}

/// Traffic of a service or replica over the last ten seconds, as the gateway saw it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TrafficView {
    /// Requests a second; none without a gateway.
    pub requests_per_s: Option<f64>,
    /// Share that failed, 0 to 1; none without requests.
    pub error_rate: Option<f64>,
    /// Mean time to the response's head, milliseconds.
    pub mean_response_ms: Option<f64>,
}

/// A replica.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReplicaView {
    /// Release, index and attempt.
    pub id: ReplicaId,
    /// How far it has come.
    pub phase: Phase,
    /// Since when.
    pub since: Timestamp,
    /// The last thing that went wrong.
    pub trouble: Option<String>,
    /// It was ready, does not serve any more though it runs, and gets no requests until it generates a token.
    #[serde(default)]
    pub silent: bool,
    /// Its ranks.
    pub ranks: Vec<RankView>,
    /// Its share of the service's traffic by weight, percent: of the table that the gateways have taken.
    pub weight_percent: u32,
    /// What it is to be by the table that the gateways were told and have not taken; none once they have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight_wanted_percent: Option<u32>,
    /// What the gateway saw of it.
    pub traffic: TrafficView,
}

/// A release in the history.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReleaseView {
    /// Its number.
    pub number: ReleaseNumber,
    /// Its commit.
    pub revision: Revision,
    /// When.
    pub created: Timestamp,
    /// Who.
    pub author: String,
    /// Why.
    pub reason: Option<String>,
    /// How its rollout ended; none while it is under way.
    pub outcome: Option<Outcome>,
    /// What was foreseen of its rollout beside what happened; none if that is not known (any more).
    #[serde(default)]
    pub progress: Option<Box<PlanProgress>>,
}

/// Something that happened, for people.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EventLine {
    /// When.
    pub at: Timestamp,
    /// How loud.
    pub severity: Severity,
    /// About which service.
    pub service: Option<ServiceName>,
    /// About which host.
    pub host: Option<HostName>,
    /// What, in words, cleaned.
    pub text: String,
}

/// How loud.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// As expected.
    Info,
    /// Worth a look.
    Warning,
    /// Something failed.
    Error,
}

/// A question that needs a person.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// Its id, for `Intent::Answer`.
    pub id: u64,
    /// Asked by which host's link.
    pub host: Option<HostName>,
    /// What kind.
    pub kind: QuestionKind,
    /// The question, for people.
    pub text: String,
    /// When it was asked.
    pub asked: Timestamp,
}

/// What kind of answer is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QuestionKind {
    /// `yes` or `no`: trust this new host key?
    HostKey,
    /// A passphrase, not to be shown while typed.
    Secret,
}

/// What a rollout would do. `GET /v1/plan/SERVICE`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlanView {
    /// Which service.
    pub service: ServiceName,
    /// Nothing differs from what is served.
    pub nothing_to_do: bool,
    /// The release that is served.
    pub from: Option<ReleaseNumber>,
    /// The number the new release would get.
    pub to: ReleaseNumber,
    /// Difference of the specs, unified.
    pub diff: String,
    /// Where each new replica would go.
    pub replicas: Vec<PlannedReplica>,
    /// Why there: one line a decision, and a line for each host that was passed over.
    pub reasons: Vec<String>,
    /// What stops elsewhere for the time of the rollout.
    #[serde(default)]
    pub borrows: Vec<PlanBorrow>,
    /// What is known of the model: `llama, 32 layers, 4.1 GiB of weights, context 8192`.
    pub model: Vec<String>,
    /// The journey.
    pub forecast: Forecast,
    /// The journey step by step, with hosts, devices, times and why.
    #[serde(default)]
    pub steps: Vec<PlanStep>,
    /// How long all of it takes.
    #[serde(default)]
    pub total: PlanTime,
    /// What the person should know, in capitals where it hurts.
    pub warnings: Vec<String>,
}

/// What is said of a plan that is not the one that was agreed to.
pub const PLAN_CHANGED: &str =
    "the plan is not the one that was agreed to any more: the spec or the hosts have changed";

impl PlanView {
    /// Names what a person agrees to: the change of the spec, who goes where in whose place, and how much serves
    /// meanwhile. Times, reasons and free memory may differ from one look to the next.
    pub fn digest(&self) -> String {
        let replicas: Vec<_> = self
            .replicas
            .iter()
            .map(|planned| {
                let ranks: Vec<_> = planned.ranks.iter().map(|r| (&r.host, &r.devices)).collect();
                (planned.replica, ranks, &planned.in_place_of)
            })
            .collect();
        let forecast = (self.forecast.lowest_ready, self.forecast.floor, self.forecast.outage);
        let agreed = (&self.service, self.from, &self.diff, replicas, &self.borrows, forecast);
        let text = serde_json::to_vec(&agreed).unwrap_or_default();
        blake3::hash(&text).to_hex().to_string()
    }
}

/// A replica of a plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlannedReplica {
    /// Its index.
    pub replica: u32,
    /// Host and devices of each rank.
    pub ranks: Vec<PlannedRank>,
    /// The present replicas that must be gone before it can start, on the same devices. Empty: it fits beside them.
    #[serde(default)]
    pub in_place_of: Vec<ReplicaKey>,
}

impl PlannedReplica {
    /// The room a rank of it finds on each device, in words: what is free, or who leaves it theirs.
    pub fn room(&self, rank: &PlannedRank) -> Option<String> {
        if self.in_place_of.is_empty() {
            return rank.free_per_device.map(|free| format!("{free} free"));
        }
        let leaving: Vec<String> = self.in_place_of.iter().map(ToString::to_string).collect();
        Some(format!("in place of {}", leaving.join(", ")))
    }
}

/// A rank of a plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlannedRank {
    /// Host.
    pub host: HostName,
    /// Devices.
    pub devices: Vec<DeviceId>,
    /// Devices for people: `GPU 0, GPU 1`.
    pub devices_text: String,
    /// Memory needed on each.
    pub memory_per_device: Bytes,
    /// Memory free on the fullest of them now.
    pub free_per_device: Option<Bytes>,
    /// The command line.
    pub argv: Vec<String>,
}

/// An error as doors get it: HTTP status by kind, this as the body.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// What kind, for exit codes.
    pub kind: ErrorKind,
    /// What is wrong.
    pub message: String,
    /// What to do next.
    pub hint: Option<String>,
}

impl Hint for ApiError {
    fn hint(&self) -> Option<String> {
        self.hint.clone()
    }
}

/// Kinds of errors; each has its exit code (documented in `docs/cli.md`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The spec or the request is wrong.
    Invalid,
    /// There is no such service, release, replica or host.
    NotFound,
    /// Not now: a rollout is under way, or none is.
    Conflict,
    /// It cannot be placed.
    Unplaceable,
    /// It would stop serving, and `--accept-outage` was not given.
    Outage,
    /// A host, a gateway or the controller is not reached.
    Unreachable,
    /// Another controller holds the hosts.
    Fenced,
    /// Anything else.
    Internal,
}

/// How old a sample is, for showing.
pub fn age(now: Timestamp, sampled: Option<Timestamp>) -> Option<Duration> {
    sampled.map(|s| now.since(s))
}

/// The current attempt of a replica, for `chat/0/0` style names.
pub fn current_attempt(
    service: &ServiceView,
    release: ReleaseNumber,
    replica: u32,
) -> Option<Attempt> {
    service
        .replicas
        .iter()
        .find(|r| r.id.release == release && r.id.replica == replica)
        .map(|r| r.id.attempt)
}
