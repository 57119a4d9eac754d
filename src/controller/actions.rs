//! Carrying out actions: one task an action, its result an input of the loop.
//!
//! Every action is idempotent, so carrying one out again after a restart is harmless; an action that
//! is already being carried out is not begun a second time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use super::claims::Claims;
use super::core::{Core, Input};
use super::engine_at::EngineAt;
use super::fence::Doubt;
use super::gateways::{Routes, Written};
use super::observe::{EngineMetricsAt, Said, read_engine};
use super::publish::Published;
use super::saved::{self, Saver};
use crate::base::{
    Bytes, DeckId, DeviceId, EpochCell, HostName, RankId, ReplicaId, ServiceName, TrafficServer,
};
use crate::engine::{self, TokenAnswer, TokenRequest};
use crate::fleet::{Fleet, HostLink, LinkError};
use crate::rollout::{Action, EventKind, RankPlan, Shared, StartRefusal};
use crate::runtime::docker::{DockerRuntime, StartsUnderWay};
use crate::runtime::process::ProcessRuntime;
use crate::runtime::{Runtime, RuntimeError};
use crate::spec::{DeckSpec, EndpointsSpec, RuntimeSpec, ServiceSpec};
use crate::wire::{DeviceNeed, RankStart, Refusal, Reply};

/// Pauses between two askings for the first token: a tenth of the time that it has taken so far.
const TOKEN_SOONEST: Duration = Duration::from_millis(300);
const TOKEN_LATEST: Duration = Duration::from_secs(1);

/// So long an engine's answers are of one sort before they are told; twelve times that for those that every engine gives
/// while it loads.
const ANSWER_TOLD: Duration = Duration::from_secs(10);
const USUAL_TOLD: Duration = Duration::from_mins(2);

/// So long a table that is to be published waits for hosts that were not asked yet who holds them, before it is
/// told that it is not published: a controller that has just begun has no links yet.
const LINKS_UP: Duration = Duration::from_secs(3);
const LINKS_ASKED: Duration = Duration::from_millis(200);

/// Log kept of each rank.
const LOG_LIMIT: Bytes = Bytes::mib(16);

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

/// The actions under way. Dropping it ends them; what they began on hosts goes on.
pub struct Actions {
    means: Arc<Means>,
    running: HashMap<Key, JoinHandle<()>>,
    traffic: HashMap<ServiceName, TrafficWorker>,
}

/// A traffic table and its version.
type Table = (u64, Shared<Vec<TrafficServer>>);

struct TrafficWorker {
    routes: Routes,
    endpoints: Option<EndpointsSpec>,
    table: watch::Sender<Table>,
    task: JoinHandle<()>,
}

impl Drop for Actions {
    fn drop(&mut self) {
        for task in self.running.values() {
            task.abort();
        }
        for worker in self.traffic.values() {
            worker.task.abort();
        }
    }
}

impl Actions {
    /// Nothing under way.
    pub fn new(means: Arc<Means>) -> Self {
        Self { means, running: HashMap::new(), traffic: HashMap::new() }
    }

    /// Begins an action of `service`, whose release has `spec`; `engine`: where the engine of the
    /// replica that it drains tells its metrics.
    pub fn begin(
        &mut self,
        service: &ServiceName,
        deck: &DeckSpec,
        spec: &ServiceSpec,
        routes: &Routes,
        engine: Option<EngineMetricsAt>,
        action: Action,
    ) {
        self.running.retain(|_, task| !task.is_finished());
        match action {
            Action::StartRank { rank, plan } => {
                let (runtime, key_file) = (spec.runtime.clone(), spec.api_key_file.clone());
                self.spawn(Key::Start(rank.clone()), service, move |means| async move {
                    vec![start_rank(&means, &runtime, key_file, &rank, &plan).await]
                });
            }
            Action::StopRank { rank, host, grace } => {
                let runtime = spec.runtime.clone();
                // A start that is still being asked for must not win over the stop.
                self.cancel(&Key::Start(rank.clone()));
                self.spawn(Key::Stop(rank.clone()), service, move |means| async move {
                    let how = stop_rank(&means, &runtime, &rank, &host, grace).await;
                    vec![EventKind::RankEnded { rank, how }]
                });
            }
            Action::AwaitToken { replica, plan } => {
                let key = Key::Token(service.clone(), replica);
                let asks = engine::of(&spec.engine).token_requests(service);
                let at = EngineAt::of(spec, &plan);
                let name = service.clone();
                self.spawn(key, service, move |means| async move {
                    await_token(&means, &asks, &at, &plan.host, &name, replica).await;
                    vec![EventKind::ReplicaReady { replica }]
                });
            }
            Action::AwaitDrained { replica } => {
                let key = Key::Drained(service.clone(), replica);
                let routes = routes.clone();
                self.spawn(key, service, move |means| async move {
                    await_drained(&means, &routes, engine.as_ref(), replica).await;
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

    fn apply_traffic(
        &mut self,
        service: &ServiceName,
        deck: &DeckSpec,
        routes: Routes,
        version: u64,
        servers: Shared<Vec<TrafficServer>>,
    ) {
        let endpoints = deck.endpoints.clone();
        if let Some(worker) = self.traffic.get(service) {
            let same = worker.routes == routes && worker.endpoints == endpoints;
            if same && !worker.task.is_finished() {
                worker.table.send_replace((version, servers));
                return;
            }
            worker.task.abort();
        }
        let (table, receiver) = watch::channel((version, servers));
        let keeper = Keeper {
            means: Arc::clone(&self.means),
            service: service.clone(),
            routes: routes.clone(),
            endpoints: endpoints.clone(),
        };
        let task = tokio::spawn(keeper.keep(receiver));
        let worker = TrafficWorker { routes, endpoints, table, task };
        self.traffic.insert(service.clone(), worker);
    }

    /// The table of a service goes elsewhere now, if it goes anywhere.
    pub fn reroute(&mut self, service: &ServiceName, deck: &DeckSpec, routes: Routes) {
        let Some(worker) = self.traffic.get(service) else { return };
        if worker.routes != routes {
            let (version, servers) = worker.table.borrow().clone();
            self.apply_traffic(service, deck, routes, version, servers);
        }
    }
}

/// The link of a host, or why there is none.
pub fn link(means: &Means, host: &HostName) -> Result<Arc<dyn HostLink>, LinkError> {
    means.fleet.link(host).ok_or_else(|| LinkError::Down {
        host: host.clone(),
        why: "it is not in the deck any more".to_owned(),
        hint: Some(format!("add a [hosts.{host}] section to deck.toml")),
    })
}

/// The runtime of a service on a host, with the right to act there.
async fn acting_runtime(
    means: &Means,
    spec: &RuntimeSpec,
    service: &ServiceName,
    host: &HostName,
) -> Result<Arc<dyn Runtime>, LinkError> {
    let link = link(means, host)?;
    let epoch = right_to_act(means, service, link.as_ref()).await?;
    Ok(runtime(means, spec, &link, epoch))
}

/// The right to act on a host of a service: all of its hosts are held, none keeps anything newer, and its state is
/// on them.
pub(super) async fn right_to_act(
    means: &Means,
    service: &ServiceName,
    link: &dyn HostLink,
) -> Result<EpochCell, LinkError> {
    means.is_up_to_date(service, link).await?;
    let epoch = means.claims.ensure_for(&means.fleet, service, link).await?;
    saved::before_step(means, service, link, &epoch).await?;
    Ok(epoch)
}

/// The runtime of a service on a host, to look only.
pub async fn reading_runtime(
    means: &Means,
    spec: &RuntimeSpec,
    host: &HostName,
) -> Result<Arc<dyn Runtime>, LinkError> {
    let link = link(means, host)?;
    let epoch = means.claims.cell(host).await;
    Ok(runtime(means, spec, &link, epoch))
}

/// The runtime objects, kept because they remember how far logs were read.
#[derive(Default)]
pub struct Runtimes {
    kept: Mutex<Vec<Kept>>,
    starting: StartsUnderWay,
}

struct Kept {
    link: Arc<dyn HostLink>,
    spec: RuntimeSpec,
    runtime: Arc<dyn Runtime>,
}

fn runtime(
    means: &Means,
    spec: &RuntimeSpec,
    link: &Arc<dyn HostLink>,
    epoch: EpochCell,
) -> Arc<dyn Runtime> {
    let mut kept = means.runtimes.kept.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(kept) = kept.iter().find(|k| k.spec == *spec && Arc::ptr_eq(&k.link, link)) {
        return Arc::clone(&kept.runtime);
    }
    // A host whose settings changed has a new link; what was kept of the old one goes.
    kept.retain(|k| k.link.host() != link.host() || Arc::ptr_eq(&k.link, link));
    let runtime: Arc<dyn Runtime> = match spec {
        RuntimeSpec::Process => Arc::new(ProcessRuntime::new(Arc::clone(link), means.deck, epoch)),
        RuntimeSpec::Docker(docker) => {
            let runtime = DockerRuntime::new(Arc::clone(link), means.deck, epoch, docker);
            Arc::new(runtime.beside(&means.runtimes.starting))
        }
    };
    kept.push(Kept { link: Arc::clone(link), spec: spec.clone(), runtime: Arc::clone(&runtime) });
    runtime
}

async fn start_rank(
    means: &Means,
    spec: &RuntimeSpec,
    key_file: Option<String>,
    rank: &RankId,
    plan: &RankPlan,
) -> EventKind {
    let start = RankStart {
        rank: rank.clone(),
        argv: plan.argv.clone(),
        env: plan.env.clone(),
        needs: needs(plan),
        ports: vec![plan.port],
        files: plan.files.clone(),
        key_file,
        log_limit: LOG_LIMIT,
    };
    let result = match acting_runtime(means, spec, &rank.service, &plan.host).await {
        Ok(runtime) => runtime.start(&start).await,
        Err(error) => Err(RuntimeError::Link(error)),
    };
    match result {
        Ok(()) => EventKind::RankRunning { rank: rank.clone() },
        Err(error) => {
            if let RuntimeError::Link(LinkError::Refused {
                refusal: Refusal::PortInUse { port, .. },
                ..
            }) = &error
            {
                let taken = (plan.host.clone(), *port);
                let note = move |core: &mut Core| {
                    core.foreign_ports.insert(taken);
                };
                // Heard before the refusal: the next plan leaves the port out.
                let _ = means.inputs.send(Input::Ask(Box::new(note))).await;
            }
            let why = error.to_string();
            let refusal = if error.is_transient() {
                StartRefusal::NotYet { why }
            } else {
                StartRefusal::Never { why }
            };
            EventKind::RankRefused { rank: rank.clone(), refusal }
        }
    }
}

fn needs(plan: &RankPlan) -> Vec<DeviceNeed> {
    plan.devices
        .iter()
        .filter(|d| **d != DeviceId::Cpu || plan.memory_per_device > Bytes::ZERO)
        .map(|device| DeviceNeed { device: device.clone(), memory: plan.memory_per_device })
        .collect()
}

async fn stop_rank(
    means: &Means,
    spec: &RuntimeSpec,
    rank: &RankId,
    host: &HostName,
    grace: Duration,
) -> String {
    let mut pause = Duration::from_millis(500);
    loop {
        let result = match acting_runtime(means, spec, &rank.service, host).await {
            Ok(runtime) => match runtime.stop(rank, grace).await {
                Ok(()) => runtime.remove(rank).await,
                Err(error) => Err(error),
            },
            Err(error) => Err(RuntimeError::Link(error)),
        };
        match result {
            Ok(()) => return "stopped".to_owned(),
            // Whoever took the host out of the deck has said that it is gone, and what ran there with it.
            Err(_) if means.fleet.link(host).is_none() => {
                return format!("{host} is not in the deck any more");
            }
            Err(error) => {
                tracing::warn!(%rank, %host, %error, "a rank could not be stopped yet");
                // That the hosts are another controller's is said once, for the whole deck.
                if !is_held(&error) {
                    let words = format!("{rank} on {host} could not be stopped yet: {error}");
                    let say = Input::Say { service: rank.service.clone(), words };
                    let _ = means.inputs.send(say).await;
                }
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(15));
    }
}

fn is_held(error: &RuntimeError) -> bool {
    matches!(error, RuntimeError::Link(LinkError::Refused { refusal: Refusal::Held { .. }, .. }))
}

/// Asks until the replica generates a token. What it answers instead is told, so that the cause is known when its time
/// is over.
async fn await_token(
    means: &Means,
    asks: &[TokenRequest],
    at: &EngineAt,
    host: &HostName,
    service: &ServiceName,
    replica: ReplicaId,
) {
    let began = tokio::time::Instant::now();
    let mut answers = Answers::default();
    loop {
        if let Ok(link) = link(means, host) {
            let (why, usual) = match generates(link.as_ref(), asks, at).await {
                Ok(Asked::Token) => return,
                Ok(Asked::NoToken { why, usual }) => (Some(why), usual),
                Err(LinkError::Refused { refusal: refusal @ Refusal::NoAnswer { .. }, .. }) => {
                    (Some(refusal.to_string()), true)
                }
                Err(LinkError::Refused { refusal: refusal @ Refusal::NoKey { .. }, .. }) => {
                    (Some(refusal.to_string()), false)
                }
                // The host's matter, which is told as that.
                Err(_) => (None, true),
            };
            if let Some(why) = why.filter(|why| answers.is_news(why, usual, began.elapsed())) {
                let kind = EventKind::NoTokenYet { replica, why };
                let _ = means.inputs.send(Input::Happened { service: service.clone(), kind }).await;
            }
        }
        tokio::time::sleep((began.elapsed() / 10).clamp(TOKEN_SOONEST, TOKEN_LATEST)).await;
    }
}

/// Which of an engine's answers are worth telling: those that stay, each sort once.
#[derive(Default)]
struct Answers {
    /// The sort of the newest one, and since when all are of it.
    now: Option<(String, Duration)>,
    told: Option<String>,
}

impl Answers {
    /// `usual`: an engine that loads says that, too.
    fn is_news(&mut self, why: &str, usual: bool, at: Duration) -> bool {
        // `HTTP 401`, or the first words of another: what follows differs from time to time.
        let sort: String = why.chars().take(8).collect();
        let since = match &self.now {
            Some((same, since)) if *same == sort => *since,
            _ => at,
        };
        let stays = at.saturating_sub(since) >= if usual { USUAL_TOLD } else { ANSWER_TOLD };
        let is_news = stays && self.told.as_ref() != Some(&sort);
        if is_news {
            self.told = Some(sort.clone());
        }
        self.now = Some((sort, since));
        is_news
    }
}

/// What came of asking an engine for a token.
pub(super) enum Asked {
    /// It generated one.
    Token,
    /// It did not.
    NoToken {
        /// What it answered, for people.
        why: String,
        /// As long as it loads an engine answers so.
        usual: bool,
    },
}

/// Asks an engine once for a token, in the ways that it may offer.
pub(super) async fn generates(
    link: &dyn HostLink,
    asks: &[TokenRequest],
    at: &EngineAt,
) -> Result<Asked, LinkError> {
    // The way that is tried first says most of what is wrong.
    let mut refused = None;
    for ask in asks {
        let request = at.post(ask.path, &ask.body, 20_000);
        let Reply::Http(reply) = link.request(request).await? else {
            return Ok(Asked::NoToken { why: "it does not speak HTTP".to_owned(), usual: false });
        };
        match ask.judge(reply.status, &reply.body) {
            TokenAnswer::Token => return Ok(Asked::Token),
            TokenAnswer::NotYet { why } => {
                return Ok(Asked::NoToken { why, usual: reply.status == 503 });
            }
            // The way that is tried first says most of what is wrong.
            TokenAnswer::NotOffered { why } => refused = refused.or(Some(why)),
        }
    }
    let why = refused.unwrap_or_else(|| "it offers no request for one".to_owned());
    Ok(Asked::NoToken { why, usual: false })
}

/// Waits until no gateway has a request of the replica in flight, and its engine none either: what
/// an earlier process of a reloaded HAProxy still serves is known to the engine alone. The decider
/// waits no longer than the drain deadline.
async fn await_drained(
    means: &Means,
    routes: &Routes,
    engine: Option<&EngineMetricsAt>,
    replica: ReplicaId,
) {
    loop {
        let left = routes.is_empty()
            || routes.counters(means).await.is_some_and(|all| {
                all.values().all(|c| c.get(&replica).is_none_or(|c| c.in_flight == 0))
            });
        if left && engine_is_quiet(means, engine, routes.is_empty()).await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

/// Whether the engine has nothing in flight. One that does not answer is quiet only if a gateway
/// (`alone`: there is none) has said so already; one without metrics cannot be waited for.
async fn engine_is_quiet(means: &Means, engine: Option<&EngineMetricsAt>, alone: bool) -> bool {
    let Some(engine) = engine.filter(|at| at.has_metrics()) else { return true };
    match read_engine(means, engine).await {
        Said::Metrics(seen) => seen.running.unwrap_or(0.0) + seen.waiting.unwrap_or(0.0) < 0.5,
        Said::None => true,
        Said::Nothing => !alone,
    }
}

/// Brings each new table of a service to its gateways and publishes it, and brings it again when a
/// gateway forgot it.
struct Keeper {
    means: Arc<Means>,
    service: ServiceName,
    routes: Routes,
    endpoints: Option<EndpointsSpec>,
}

/// What was written to the files of each of a service's gateways.
struct Files {
    serving: Vec<Written>,
    /// Those that are left; none: nothing of the service is there any more.
    leaving: Vec<Option<Written>>,
}

impl Keeper {
    async fn keep(self, mut table: watch::Receiver<Table>) {
        let mut told_failure = None;
        let mut told_success = None;
        let mut files = Files {
            serving: self.routes.serving.iter().map(|_| Written::default()).collect(),
            leaving: self.routes.leaving.iter().map(|_| Some(Written::default())).collect(),
        };
        loop {
            let (version, servers) = table.borrow_and_update().clone();
            let news = told_success != Some(version) || told_failure.is_some();
            let (kind, again) = match self.apply(version, &servers, &mut files, news).await {
                Ok(()) => {
                    told_failure = None;
                    told_success = Some(version);
                    (news.then_some(EventKind::TrafficApplied { version }), Duration::from_secs(2))
                }
                Err(why) => {
                    let news = told_failure.as_ref() != Some(&(version, why.clone()));
                    told_failure = Some((version, why.clone()));
                    let kind = news.then_some(EventKind::TrafficFailed { version, why });
                    (kind, Duration::from_secs(1))
                }
            };
            if let Some(kind) = kind {
                let input = Input::Happened { service: self.service.clone(), kind };
                if self.means.inputs.send(input).await.is_err() {
                    return;
                }
            }
            // Only what serves is waited for.
            if told_failure.is_none() {
                self.leave(&mut files).await;
            }
            tokio::select! {
                changed = table.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(again) => {}
            }
        }
    }

    /// Empties the gateways that the service has left, once each.
    async fn leave(&self, files: &mut Files) {
        for (gateways, written) in self.routes.leaving.iter().zip(&mut files.leaving) {
            let Some(kept) = written else { continue };
            match gateways.leave(&self.means, kept).await {
                Ok(true) => *written = None,
                Ok(false) => {}
                Err(why) => {
                    tracing::warn!(service = %self.service, why, "a gateway was not left yet");
                }
            }
        }
    }

    /// Tells the endpoints, if this controller may speak for the service. Before anything is written its hosts
    /// are asked; what is out already is looked at every time.
    async fn publish(&self, version: u64, servers: &[TrafficServer]) -> Result<(), String> {
        let Some(spec) = &self.endpoints else { return Ok(()) };
        let (means, service) = (&self.means, &self.service);
        if means.published.is_current(spec, service, version, servers)
            && means.doubt(service).is_none()
        {
            return Ok(());
        }
        let end = tokio::time::Instant::now() + LINKS_UP;
        let doubt = loop {
            match means.may_speak_for(service, Duration::ZERO).await {
                Ok(()) => return means.published.publish(spec, service, version, servers),
                Err(doubt @ Doubt::Unknown { .. }) => {
                    means.published.withhold(service, &doubt.to_string());
                    if tokio::time::Instant::now() > end {
                        break doubt;
                    }
                    tokio::time::sleep(LINKS_ASKED).await;
                }
                Err(doubt @ Doubt::Held { .. }) => break doubt,
            }
        };
        means.published.withhold(service, &doubt.to_string());
        Err(format!("the endpoints are not published: {doubt}"))
    }

    async fn apply(
        &self,
        version: u64,
        servers: &[TrafficServer],
        files: &mut Files,
        news: bool,
    ) -> Result<(), String> {
        let tell = async {
            let mut wrong = Vec::new();
            for (gateways, written) in self.routes.serving.iter().zip(&mut files.serving) {
                wrong.extend(gateways.apply(&self.means, servers, written).await.err());
            }
            wrong
        };
        // Beside each other: a host that is waited for here may be another's matter there.
        let (published, wrong) = tokio::join!(self.publish(version, servers), tell);
        if !wrong.is_empty() {
            return Err(wrong.join("; "));
        }
        // Whoever balances reads the endpoints when it will.
        if let Some(spec) = &self.endpoints
            && self.routes.is_empty()
            && news
            && published.is_ok()
        {
            tokio::time::sleep(spec.settle).await;
        }
        published
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_an_engines_answers_those_that_stay_are_told_once() {
        let mut answers = Answers::default();
        let mut at =
            |second, why: &str, usual| answers.is_news(why, usual, Duration::from_secs(second));
        assert!(!at(0, "nothing listens", true));
        assert!(!at(60, "HTTP 503: loading", true));
        assert!(!at(179, "HTTP 503: loading 80 %", true));
        assert!(at(180, "HTTP 503: loading 81 %", true), "for two minutes");
        assert!(!at(181, "HTTP 401: no key", false));
        assert!(at(191, "HTTP 401: no key (request 7)", false));
        assert!(!at(300, "HTTP 401: no key (request 9)", false), "it was told");
    }
}
