//! What the loop is given: at its start, and from then on.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::super::planning::Draft;
use super::Core;
use crate::api::{ApiError, Intent, IntentReply, MemoryView, PlanView, ReleaseView};
use crate::base::{HostName, ReplicaId, ServiceName, Timestamp};
use crate::controller::traffic::Totals;
use crate::fleet::{FleetEvent, InProcessHosts};
use crate::rollout::{EventKind, RolloutKind};
use crate::spec::{DeckSpec, RuntimeSpec, ServiceSpec};
use crate::wire::RankReport;

/// How a controller is run.
#[derive(Clone, Debug)]
pub struct Options {
    /// The deck's directory; none: just this machine, nothing can be rolled out.
    pub deck_dir: Option<PathBuf>,
    /// The deck.
    pub deck: DeckSpec,
    /// The binary that is copied to hosts; none: the running one.
    pub agent_binary: Option<PathBuf>,
    /// End after this long with nothing to serve and nobody attached.
    pub leave_when_idle: Option<Duration>,
    /// Hosts that are played in this process.
    pub in_process: Option<Arc<dyn InProcessHosts>>,
}

/// What the loop is fed with.
pub enum Input {
    /// A person's wish.
    Intent {
        /// Which.
        intent: Intent,
        /// Whose.
        by: String,
        /// Where the answer goes.
        reply: oneshot::Sender<Result<IntentReply, ApiError>>,
    },
    /// A draft is ready to be placed and begun.
    Begin {
        /// What to roll out.
        draft: Box<Draft>,
        /// What for.
        request: Request,
        /// Where the answer goes.
        reply: oneshot::Sender<Result<IntentReply, ApiError>>,
    },
    /// A draft is ready to be looked at.
    Plan {
        /// What would be rolled out.
        draft: Box<Draft>,
        /// Apply or undo.
        kind: RolloutKind,
        /// Where the answer goes.
        reply: oneshot::Sender<Result<PlanView, ApiError>>,
    },
    /// From the hosts.
    Fleet(FleetEvent),
    /// Something happened to a service.
    Happened {
        /// Which.
        service: ServiceName,
        /// What.
        kind: EventKind,
    },
    /// Everything a runtime knows of our ranks on a host. What we thought to run there and is not
    /// among it, though it ran before `asked`, is gone.
    Ranks {
        /// The host.
        host: HostName,
        /// Which runtime told it.
        of: Listed,
        /// When it was asked for.
        asked: Timestamp,
        /// What there is.
        reports: Vec<RankReport>,
    },
    /// The gateway's totals of a service.
    Counters {
        /// Which service.
        service: ServiceName,
        /// The totals, by the place that counts; none: not all of them can be read.
        counters: Option<Totals>,
    },
    /// What the engines of a service say of themselves, while its analysis is under way.
    Scraped {
        /// Which service.
        service: ServiceName,
        /// The readings.
        readings: BTreeMap<ReplicaId, crate::engine::EngineMetrics>,
    },
    /// A line for the Events panel.
    Say {
        /// About which service.
        service: ServiceName,
        /// The words.
        words: String,
    },
    /// The deck's files were read again.
    Files(Box<DeckFiles>),
    /// Look at the state.
    Ask(Box<dyn FnOnce(&mut Core) + Send>),
    /// Time passes.
    Tick,
}

/// Which runtime of a host a list of ranks is from: whose absence in it proves something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listed {
    /// The agent's own: the processes.
    Processes,
    /// The container engine behind this socket, asked for this service. A host can have several engines: what one
    /// does not know may run in another.
    Containers {
        /// Whose containers were looked for.
        service: ServiceName,
        /// The engine's socket.
        socket: String,
    },
}

impl Listed {
    /// Whether a rank of `service` that `runtime` runs there would be in the list.
    pub fn covers(&self, service: &ServiceName, runtime: &RuntimeSpec) -> bool {
        match (self, runtime) {
            (Self::Processes, RuntimeSpec::Process) => true,
            (Self::Containers { service: of, socket }, RuntimeSpec::Docker(docker)) => {
                of == service && *socket == docker.socket
            }
            _ => false,
        }
    }
}

/// The deck's directory as read.
#[derive(Clone, Debug, Default)]
pub struct DeckFiles {
    /// `deck.toml`, or what is wrong with it.
    pub deck: Option<Result<DeckSpec, String>>,
    /// The services, or what is wrong with each.
    pub services: BTreeMap<ServiceName, Result<ServiceSpec, String>>,
    /// Files that should be services' and cannot be read as such, and what to do.
    pub unreadable: Vec<String>,
    /// History by service.
    pub history: BTreeMap<ServiceName, Vec<ReleaseView>>,
    /// What engines logged of their memory, by service, the oldest first.
    pub memory: BTreeMap<ServiceName, Vec<MemoryView>>,
}

/// What a rollout is begun for.
#[derive(Clone, Debug)]
pub struct Request {
    /// Apply or undo.
    pub kind: RolloutKind,
    /// Who asked.
    pub by: String,
    /// Why.
    pub reason: Option<String>,
    /// An outage was accepted.
    pub accept_outage: bool,
    /// The plan that was agreed to; none: whatever it is.
    pub agreed: Option<String>,
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// A service that moves from one engine of a host to another has containers in both.
    #[test]
    fn a_list_says_nothing_of_what_another_engine_of_the_host_runs() {
        let chat: ServiceName = "chat".parse().unwrap();
        let docker = |socket: &str| {
            RuntimeSpec::Docker(crate::spec::DockerRuntime {
                image: "vllm:1".to_owned(),
                socket: socket.to_owned(),
                mounts: Vec::new(),
            })
        };
        let of = |service: &ServiceName| Listed::Containers {
            service: service.clone(),
            socket: "/run/a.sock".to_owned(),
        };
        assert!(of(&chat).covers(&chat, &docker("/run/a.sock")));
        assert!(!of(&chat).covers(&chat, &docker("/run/b.sock")));
        assert!(!of(&"draft".parse().unwrap()).covers(&chat, &docker("/run/a.sock")));
        assert!(!of(&chat).covers(&chat, &RuntimeSpec::Process));
        assert!(Listed::Processes.covers(&chat, &RuntimeSpec::Process));
        assert!(!Listed::Processes.covers(&chat, &docker("/run/a.sock")));
    }
}
