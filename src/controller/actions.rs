//! Carrying out actions: one task an action, its result an input of the loop.
//!
//! Every action is idempotent, so carrying one out again after a restart is harmless; an action that
//! is already being carried out is not begun a second time.

mod ranks;
mod runtimes;
mod tables;
mod waits;

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::claims::Claims;
use super::core::{Core, Input};
use super::engine_at::EngineAt;
use super::gateways::Routes;
use super::observe::EngineMetricsAt;
use super::publish::Published;
use super::saved::Saver;
use crate::base::{DeckId, RankId, ReplicaId, ServiceName};
use crate::engine;
use crate::fleet::Fleet;
use crate::rollout::{Action, EventKind};
use crate::spec::{DeckSpec, ServiceSpec};

pub(super) use self::ranks::start_of;
pub(super) use self::runtimes::clearing_runtime;
pub(super) use self::runtimes::right_to_act;
pub use self::runtimes::{Runtimes, link, reading_runtime};
use self::tables::TrafficWorker;
pub(super) use self::waits::{Asked, generates};

/// What every action needs.
pub struct Means {
    /// The deck.
    pub deck: DeckId,
    /// The hosts.
    pub fleet: Fleet,
    /// The right to act on them.
    pub claims: Claims,
    /// Whether they keep something newer than the journal.
    pub looks: super::behind::Looks,
    /// What is written to hosts before a step.
    pub saver: Saver,
    /// What is written to all hosts of the deck.
    pub deck_saver: super::saved_deck::DeckSaver,
    /// How ranks are run.
    pub runtimes: Runtimes,
    /// Where results go.
    pub inputs: mpsc::Sender<Input>,
    /// The endpoints as others see them.
    pub published: Published,
    /// Whether they may be told.
    pub fence: super::fence::Fence,
    /// Who looks at which host.
    pub attention: super::attention::Attentions,
}

impl Means {
    /// Asks the loop and waits for its answer; none: the controller ends.
    pub(super) async fn ask<T: Send + 'static>(
        &self,
        look: impl FnOnce(&mut Core) -> T + Send + 'static,
    ) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        let ask = Input::Ask(Box::new(move |core| {
            // Whoever asked and went away needs no answer.
            let _ = reply.send(look(core));
        }));
        self.inputs.send(ask).await.ok()?;
        answer.await.ok()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    Start(RankId),
    Stop(RankId),
    Token(ServiceName, ReplicaId),
    Drained(ServiceName, ReplicaId),
}

/// What an action belongs to.
pub struct Of<'a> {
    /// The release's spec.
    pub spec: &'a ServiceSpec,
    /// Where the engine of the replica that it drains tells its metrics.
    pub engine: Option<EngineMetricsAt>,
    /// It starts what is just being rolled out and never served.
    pub is_new: bool,
}

/// The actions under way. Dropping it ends them; what they began on hosts goes on.
pub struct Actions {
    means: Arc<Means>,
    running: HashMap<Key, JoinHandle<()>>,
    traffic: HashMap<ServiceName, TrafficWorker>,
}

impl Drop for Actions {
    fn drop(&mut self) {
        for task in self.running.values() {
            task.abort();
        }
    }
}

impl Actions {
    /// Nothing under way.
    pub fn new(means: Arc<Means>) -> Self {
        Self { means, running: HashMap::new(), traffic: HashMap::new() }
    }

    /// Begins an action of `service`.
    pub fn begin(
        &mut self,
        service: &ServiceName,
        deck: &DeckSpec,
        routes: &Routes,
        of: Of<'_>,
        action: Action,
    ) {
        let Of { spec, engine, is_new } = of;
        self.running.retain(|_, task| !task.is_finished());
        match action {
            Action::StartRank { rank, plan } => {
                let (runtime, key_file) = (spec.runtime.clone(), spec.api_key_file.clone());
                self.spawn(Key::Start(rank.clone()), service, move |means| async move {
                    vec![ranks::start_rank(&means, &runtime, key_file, &rank, &plan, is_new).await]
                });
            }
            Action::StopRank { rank, host, grace, keep_log } => {
                let runtime = spec.runtime.clone();
                // A start that is still being asked for must not win over the stop.
                self.cancel(&Key::Start(rank.clone()));
                self.spawn(Key::Stop(rank.clone()), service, move |means| async move {
                    let stop = ranks::Stop { host: &host, grace, keep_log };
                    let how = ranks::stop_rank(&means, &runtime, &rank, stop).await;
                    vec![EventKind::RankEnded { rank, how }]
                });
            }
            Action::AwaitToken { replica, plan } => {
                let key = Key::Token(service.clone(), replica);
                let asks = engine::of(&spec.engine).token_requests(service);
                let at = EngineAt::of(spec, &plan);
                let name = service.clone();
                self.spawn(key, service, move |means| async move {
                    waits::await_token(&means, &asks, &at, &plan.host, &name, replica).await;
                    vec![EventKind::ReplicaReady { replica }]
                });
            }
            Action::AwaitDrained { replica } => {
                let key = Key::Drained(service.clone(), replica);
                let routes = routes.clone();
                self.spawn(key, service, move |means| async move {
                    waits::await_drained(&means, &routes, engine.as_ref(), replica).await;
                    vec![EventKind::Drained { replica }]
                });
            }
            Action::ApplyTraffic { version, servers } => {
                self.apply_traffic(service, deck, routes.clone(), version, servers);
            }
            // Done by the core, which owns the deck's repository and its commands.
            Action::RunCommand { .. } | Action::RecordOutcome { .. } => {}
        }
    }

    /// Whether no start and no stop is under way.
    pub fn is_quiet(&self) -> bool {
        !self
            .running
            .iter()
            .any(|(key, task)| matches!(key, Key::Start(_) | Key::Stop(_)) && !task.is_finished())
    }

    /// Ends the wait for tokens and drains that nobody waits for any more.
    pub fn keep_waiting_for(&mut self, service: &ServiceName, wanted: impl Fn(&ReplicaId) -> bool) {
        self.running.retain(|key, task| {
            let obsolete = match key {
                Key::Token(s, replica) | Key::Drained(s, replica) => {
                    s == service && !wanted(replica)
                }
                Key::Start(_) | Key::Stop(_) => false,
            };
            if obsolete {
                task.abort();
            }
            !obsolete
        });
    }

    /// Ends all that is under way for a service.
    pub fn end(&mut self, service: &ServiceName) {
        self.running.retain(|key, task| {
            let of = match key {
                Key::Start(rank) | Key::Stop(rank) => &rank.service,
                Key::Token(of, _) | Key::Drained(of, _) => of,
            };
            if of == service {
                task.abort();
            }
            of != service
        });
        self.traffic.remove(service);
    }

    fn cancel(&mut self, key: &Key) {
        if let Some(task) = self.running.remove(key) {
            task.abort();
        }
    }

    fn spawn<F, Fut>(&mut self, key: Key, service: &ServiceName, work: F)
    where
        F: FnOnce(Arc<Means>) -> Fut + Send + 'static,
        Fut: Future<Output = Vec<EventKind>> + Send + 'static,
    {
        if self.running.contains_key(&key) {
            return;
        }
        let means = Arc::clone(&self.means);
        let service = service.clone();
        let task = tokio::spawn(async move {
            let inputs = means.inputs.clone();
            for kind in work(means).await {
                let _ = inputs.send(Input::Happened { service: service.clone(), kind }).await;
            }
        });
        self.running.insert(key, task);
    }
}
