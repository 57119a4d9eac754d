//! The one loop that owns everything that changes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::actions::{Actions, Means};
use super::auditor::Auditor;
use super::begin::{Beginning, Beginnings};
pub use super::clock::now;
use super::conditions::Conditions;
use super::deck_ledger::{DeckEvent, DeckRecord};
use super::gateways::{Gateways, Routes};
use super::measured::Measured;
use super::planning::{self, Draft, Planned};
use super::record::DeckState;
use super::service_view::{self, Surroundings};
use super::stale_views::StaleViews;
use super::traffic::Traffic;
use super::upgrade;
use crate::api::hub::{Change, Hub};
use crate::api::{
    ApiError, ErrorKind, EventLine, HostView, Intent, IntentReply, MemoryView, PlanView,
    ReleaseView, ReplicaTo, Severity,
};
use crate::base::{
    HostName, ReleaseNumber, ReplicaId, ServiceName, Timestamp, TrafficServer, text,
};
use crate::fleet::{FleetEvent, InProcessHosts};
use crate::gateway::ServerCounters;
use crate::journal::{Journal, JournalError};
use crate::revision::DeckRepo;
use crate::rollout::{
    Action, EventKind, Futile, Gate, Outcome, Phase, Release, RolloutKind, ServiceState, Shared,
    step,
};
use crate::spec::{DeckSpec, ServiceSpec, Strategy};
use crate::wire::RankReport;

/// Records after which the journal gets a checkpoint.
const RECORDS_PER_CHECKPOINT: u64 = 2_000;

/// Most inputs that are taken before what they say is written down.
const AT_ONCE: usize = 256;

/// After writing down what was heard the loop rests so many times as long as that took, and no longer than this: what
/// comes meanwhile is written down together. Nobody notices it, and of hundreds of replicas that come up at once
/// many are decided for one fsync and one state on the hosts.
const REST_FACTOR: u32 = 10;
const LONGEST_REST: Duration = Duration::from_millis(80);

/// What links tell is taken so often: hundreds of hosts then wake the loop forty times a second, and not
/// hundreds of times.
const LINKS_REST: Duration = Duration::from_millis(25);

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
        /// Only replicas of this service were looked for; none: all process ranks.
        service: Option<ServiceName>,
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
        counters: Option<Vec<BTreeMap<ReplicaId, ServerCounters>>>,
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

/// The deck's directory as read.
#[derive(Clone, Debug, Default)]
pub struct DeckFiles {
    /// `deck.toml`, or what is wrong with it.
    pub deck: Option<Result<DeckSpec, String>>,
    /// The services, or what is wrong with each.
    pub services: BTreeMap<ServiceName, Result<ServiceSpec, String>>,
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
}

/// Everything the loop owns.
pub struct Core {
    pub(super) options: Options,
    pub(super) deck: DeckSpec,
    pub(super) repo: Option<DeckRepo>,
    pub(super) state: DeckState,
    pub(super) journal: Journal,
    pub(super) unwritten: super::happening::Unwritten,
    pub(super) means: Arc<Means>,
    pub(super) actions: Actions,
    pub(super) hub: Arc<Hub>,
    pub(super) files: DeckFiles,
    pub(super) traffic: BTreeMap<ServiceName, Traffic>,
    pub(super) probes: super::probes::Probes,
    pub(super) trouble: BTreeMap<ServiceName, String>,
    /// Where `gpudeck` finds this controller: `GPUDECK_HOME` of the commands that it runs.
    pub(super) home: Option<PathBuf>,
    /// The last table that each service's gateways have taken.
    pub(super) taken: BTreeMap<ServiceName, Shared<Vec<TrafficServer>>>,
    /// What gateways have not read of their files, by service and host.
    pub(super) gateway_files: BTreeMap<ServiceName, BTreeMap<HostName, String>>,
    pub(super) records_since_checkpoint: u64,
    pub(super) conditions: Conditions,
    pub(super) journal_tried: Timestamp,
    pub(super) company_shown: (u64, u64),
    pub(super) audit: Arc<Auditor>,
    pub(super) idle_since: Option<Timestamp>,
    pub(super) files_stamp: planning::Stamp,
    pub(super) sharing: super::sharing::Sharing,
    pub(super) measured: Measured,
    pub(super) alive: super::absence::Alive,
    pub(super) memory: super::calibration::MemoryReader,
    /// A rollout of the group is being begun.
    pub(super) group_asking: bool,
    /// What the next one of them waits for, as it was told.
    pub(super) group_waits: Option<String>,
    /// Services whose queued rollout is being begun.
    pub(super) queue_asking: std::collections::BTreeSet<ServiceName>,
    /// Releases on their way into Git.
    pub(super) beginnings: Beginnings,
    pub(super) runs: super::runs::Runs,
    pub(super) upgrades: upgrade::UpgradeTasks,
    /// Hosts whose replicas are being placed elsewhere off the loop.
    pub(super) draining: std::collections::BTreeSet<HostName>,
    /// Hosts are being taken over: what was begun for the state before must not reach them any more.
    pub(super) taking_over: bool,
    /// Hosts that do not let us in (any more), and why.
    pub(super) lost_logins: BTreeMap<HostName, String>,
    pub(super) shutdown: bool,
    pub(super) views: StaleViews,
    /// While several services are planned together: what those before will have changed.
    pub(super) ahead: super::world::Ahead,
}

/// What waits to be taken, once the loop has rested.
async fn heard<T>(inputs: &mut mpsc::Receiver<T>, waiting: &mut Vec<T>, rested: Instant) -> usize {
    if Instant::now() < rested {
        tokio::time::sleep_until(rested).await;
    }
    inputs.recv_many(waiting, AT_ONCE).await
}

impl Core {
    /// Takes inputs, and what the links tell, until told to end.
    pub async fn run(
        mut self,
        mut inputs: mpsc::Receiver<Input>,
        mut of_fleet: mpsc::Receiver<FleetEvent>,
    ) {
        self.make_good_absence();
        self.tell_gap();
        self.note_never_begun();
        self.resume();
        let mut ticks = tokio::time::interval(Duration::from_millis(250));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut awake = now();
        let mut waiting = Vec::with_capacity(AT_ONCE);
        let mut told = Vec::with_capacity(AT_ONCE);
        let (mut rested, mut links_rested) = (Instant::now(), Instant::now());
        while !self.shutdown {
            tokio::select! {
                taken = heard(&mut inputs, &mut waiting, rested) => {
                    if taken == 0 {
                        break;
                    }
                    self.make_good(awake);
                    let began = Instant::now();
                    for input in waiting.drain(..) {
                        self.take(input);
                    }
                    rested = self.settled(began);
                }
                taken = heard(&mut of_fleet, &mut told, rested.max(links_rested)) => {
                    if taken == 0 {
                        break;
                    }
                    self.make_good(awake);
                    let began = Instant::now();
                    for event in told.drain(..) {
                        self.take(Input::Fleet(event));
                    }
                    rested = self.settled(began);
                    links_rested = Instant::now() + LINKS_REST;
                }
                _ = ticks.tick() => {
                    self.make_good(awake);
                    self.take(Input::Tick);
                    self.settle();
                }
                () = self.views.due() => self.publish_stale(),
            }
            awake = now();
        }
        self.measured.save();
        self.note_alive(true);
    }

    /// Writes down what was heard since `began`; until when the loop rests then.
    fn settled(&mut self, began: Instant) -> Instant {
        let rest = if self.settle() { began.elapsed() * REST_FACTOR } else { Duration::ZERO };
        Instant::now() + rest.min(LONGEST_REST)
    }

    /// Carries out again whatever the journal says is still awaited.
    fn resume(&mut self) {
        let services: Vec<ServiceName> = self.state.services.keys().cloned().collect();
        for service in services {
            let actions =
                self.state.services.get(&service).map(step::outstanding).unwrap_or_default();
            if !actions.is_empty() {
                self.say(Severity::Info, Some(&service), "goes on where it was left");
            }
            self.begin(&service, actions);
            self.publish_service(&service);
        }
        self.save_deck_again();
    }

    fn take(&mut self, input: Input) {
        match input {
            // What hosts say is written down together; a sample has no part in it.
            Input::Happened { .. } | Input::Ranks { .. } => {}
            Input::Fleet(FleetEvent::Ranks { .. } | FleetEvent::Sample { .. }) => {}
            _ => {
                self.settle();
            }
        }
        match input {
            Input::Intent { intent, by, reply } => self.intent(intent, &by, reply),
            Input::Begin { draft, request, reply } => {
                let then = Box::new(move |core: &mut Self, begun| core.answer(reply, begun));
                self.begin_rollout(Beginning { draft, request, of_group: false, then });
            }
            Input::Plan { draft, kind, reply } => {
                let _ = reply.send(self.plan(&draft, kind).map(|planned| planned.view));
            }
            Input::Fleet(event) => self.fleet_event(event),
            Input::Happened { kind: EventKind::RankRunning { rank }, .. }
                if self.is_known_to_run(&rank) => {}
            Input::Happened { service, kind } => self.note(&service, kind),
            Input::Ranks { host, service, asked, reports } => {
                self.rank_reports(&host, service.as_ref(), asked, &reports);
            }
            Input::Counters { service, counters } => self.counters(&service, counters),
            Input::Scraped { service, readings } => self.scraped(&service, readings),
            Input::Say { service, words } => self.say(Severity::Warning, Some(&service), &words),
            Input::Files(files) => self.take_files(*files),
            Input::Ask(look) => look(self),
            Input::Tick => self.tick(),
        }
    }

    /// The one way in which what concerns the whole deck changes: journal, then apply.
    pub(super) fn deck_happened(&mut self, event: DeckEvent) -> Result<(), JournalError> {
        let record = DeckRecord { deck_at: now(), deck_event: event };
        let record_alone = std::slice::from_ref(&record);
        let appended = self.journal_is_tried().and_then(|()| self.journal.append(record_alone));
        self.journal_answered(appended.as_ref().err());
        appended?;
        self.records_since_checkpoint += 1;
        self.state.ledger.apply(&record);
        self.audit_deck(&record.deck_event);
        if record.deck_event.is_shared() {
            self.save_deck();
        }
        Ok(())
    }

    pub(super) fn begin(&mut self, service: &ServiceName, actions: Vec<Action>) {
        let held = self.is_handing_over() || self.taking_over;
        let actions = if held { Vec::new() } else { actions };
        self.prepare_hosts(service, &actions);
        let routes = self.state.services.get(service).map(|s| Routes::of(&self.deck, s));
        let routes = routes.unwrap_or_default();
        for action in actions {
            if let Action::RecordOutcome { release, outcome } = &action {
                self.record_outcome(service, *release, outcome);
                continue;
            }
            if let Action::RunCommand { release, step, attempt, run } = &action {
                self.begin_command(service, (*release, *step, *attempt), run);
                continue;
            }
            let Some(release) = self.release_of(service, &action) else { continue };
            let engine = match &action {
                Action::AwaitDrained { replica } => self.engine_at(service, *replica),
                _ => None,
            };
            self.actions.begin(service, &self.deck, &release.spec, &routes, engine, action);
        }
        if !held {
            self.actions.reroute(service, &self.deck, routes);
        }
        self.end_commands(service);
        if let Some(state) = self.state.services.get(service) {
            self.actions.keep_waiting_for(service, |id| {
                state.replicas.get(&id.key()).is_some_and(|r| {
                    r.attempt == id.attempt
                        && matches!(r.phase, Phase::Loading | Phase::Draining { .. })
                })
            });
        }
    }

    /// The release an action belongs to.
    fn release_of(&self, service: &ServiceName, action: &Action) -> Option<Shared<Release>> {
        let state = self.state.services.get(service)?;
        let number = match action {
            Action::StartRank { rank, .. } | Action::StopRank { rank, .. } => rank.replica.release,
            Action::AwaitToken { replica, .. } | Action::AwaitDrained { replica } => {
                replica.release
            }
            Action::ApplyTraffic { servers, .. } => servers
                .iter()
                .map(|s| s.replica.release)
                .max()
                .or(state.rollout.as_ref().map(|r| r.to))
                .or(state.stable)?,
            Action::RunCommand { release, .. } | Action::RecordOutcome { release, .. } => *release,
        };
        state.releases.get(&number).or_else(|| state.releases.values().next_back()).cloned()
    }

    pub(super) fn record_outcome(
        &mut self,
        service: &ServiceName,
        release: ReleaseNumber,
        outcome: &Outcome,
    ) {
        let written = self.repo.as_ref().map_or(Ok(()), |repo| {
            let Some(revision) = repo.release(release)? else { return Ok(()) };
            repo.set_outcome(&revision, outcome)?;
            match outcome {
                Outcome::Completed => repo.set_stable(service, &revision),
                _ => Ok(()),
            }
        });
        if let Err(error) = written {
            let words = format!("the outcome of {release} could not be written to Git: {error}");
            self.say(Severity::Warning, Some(service), &words);
        }
        self.share();
        if let Some(history) = self.files.history.get_mut(service) {
            for entry in history.iter_mut().filter(|e| e.number == release) {
                entry.outcome = Some(outcome.clone());
            }
        }
    }

    /// What was stopped is not what is served any more: in Git neither, here and at the remote.
    pub(super) fn note_stopped(&mut self, before: &ServiceState, after: &ServiceState) {
        if !before.stopping || after.stopping {
            return;
        }
        self.audit_stopped(&after.service);
        let cleared = self.repo.as_ref().map_or(Ok(()), |repo| repo.clear_stable(&after.service));
        if let Err(error) = cleared {
            let words = format!("Git still says that it is served: {error}");
            self.say(Severity::Warning, Some(&after.service), &words);
        }
        self.share();
    }

    /// Notes in Git that releases were never begun which were committed here, and whose rollout did not get into the
    /// journal: this controller ended in between, or the commit failed half made.
    pub(super) fn note_never_begun(&mut self) {
        for (service, number) in self.state.ledger.never_begun(&self.state.services) {
            let entries = self.repo.as_ref().and_then(|r| r.history(&service, usize::MAX).ok());
            let is_open = entries
                .is_some_and(|all| all.iter().any(|e| e.release == number && e.outcome.is_none()));
            if is_open {
                let why = "it was never begun: its rollout did not get into the journal".to_owned();
                self.say(Severity::Warning, Some(&service), &format!("{number}: {why}"));
                self.record_outcome(&service, number, &Outcome::Failed { why });
            }
        }
    }

    fn tick(&mut self) {
        let services: Vec<ServiceName> = self.state.services.keys().cloned().collect();
        let now = now();
        for service in services {
            // Time alone changes nothing before the moment that the decider names.
            let due = self.state.services.get(&service).and_then(step::next_wake);
            if due.is_some_and(|due| due <= now) {
                self.note(&service, EventKind::Tick);
            }
        }
        self.settle();
        // What is another's, or could not be written down, is not brought on.
        if self.takes_new_work().is_ok() && self.not_fenced().is_ok() {
            self.tend_loans();
            self.tend_taken_out();
            self.tend_drains();
            self.tend_upgrade();
            self.tend_group();
            self.tend_queue();
        }
        self.tend_logins();
        self.tend_probes();
        self.tend_runs();
        if self.records_since_checkpoint >= RECORDS_PER_CHECKPOINT {
            match self.journal.checkpoint(&self.state) {
                Ok(_) => self.records_since_checkpoint = 0,
                Err(error) => tracing::warn!(%error, "no checkpoint"),
            }
        }
        self.measured.save();
        self.note_alive(false);
        self.recover_journal();
        self.end_hand_over();
        self.show_company();
        self.leave_when_idle();
    }

    fn leave_when_idle(&mut self) {
        let Some(limit) = self.options.leave_when_idle else { return };
        let ledger = &self.state.ledger;
        let upgrades = ledger.upgrade.as_ref().is_some_and(|u| u.ended.is_none())
            || ledger.group.as_ref().is_some_and(|g| g.ended.is_none());
        let serves = upgrades
            || self.beginnings.is_busy()
            || self.state.services.values().any(|s| !s.replicas.is_empty());
        if serves || self.hub.readers() > 0 {
            self.idle_since = None;
            return;
        }
        let since = *self.idle_since.get_or_insert(now());
        if now().since(since) >= limit {
            tracing::info!("nothing to serve and nobody attached: leaving");
            self.shutdown = true;
        }
    }

    fn intent(
        &mut self,
        intent: Intent,
        by: &str,
        reply: oneshot::Sender<Result<IntentReply, ApiError>>,
    ) {
        self.idle_since = None;
        self.try_journal();
        let by = by.to_owned();
        let maintains = intent.maintains();
        let mut may = Ok(());
        if intent.service().is_some() || maintains {
            may = self.not_fenced();
        }
        if maintains && may.is_ok() {
            may = self.takes_new_work();
        }
        if let Err(error) = may {
            let _ = reply.send(Err(error));
            return;
        }
        let result = match intent {
            Intent::TakeOver { force, .. } => {
                if let Err(error) = self.begin_take_over() {
                    let _ = reply.send(Err(error));
                    return;
                }
                let work = super::take_over::take_over(
                    Arc::clone(&self.means),
                    self.deck.hosts.keys().cloned().collect(),
                    force,
                );
                let inputs = self.means.inputs.clone();
                tokio::spawn(async move {
                    let found = work.await;
                    let end = Box::new(move |core: &mut Core| {
                        let ended = core.end_take_over(found);
                        core.answer(reply, ended);
                    });
                    let _ = inputs.send(Input::Ask(end)).await;
                });
                return;
            }
            Intent::Apply { service, reason, accept_outage, concurrency } => {
                let request = Request { kind: RolloutKind::Apply, by, reason, accept_outage };
                return self.ask_rollout(service, None, request, concurrency, reply);
            }
            Intent::ApplyTogether { services, atomic, reason, accept_outage } => {
                let wish = super::group::Wish { atomic, reason, accept_outage, by };
                return self.apply_together(&services, wish, reply);
            }
            Intent::SteerGroup { what, reason } => self.steer_group(what, &by, reason),
            Intent::Undo { service, to, reason, accept_outage } => {
                let request = Request { kind: RolloutKind::Undo, by, reason, accept_outage };
                return self.undo(service, to, request, reply);
            }
            Intent::Retry { service, accept_outage, .. } => {
                return self.retry(service, by, accept_outage, reply);
            }
            Intent::Skip { service, reason } => self.skip(&service, by, reason),
            Intent::CancelQueued { service, .. } => self.cancel_queued(&service, by),
            Intent::Pause { service, .. } => self.on_rollout(&service, EventKind::Paused { by }),
            Intent::Resume { service, .. } => self.on_rollout(&service, EventKind::Resumed { by }),
            Intent::Promote { service, all, step, reason } => {
                self.promote(&service, EventKind::Promoted { all, by, step, reason })
            }
            Intent::Abort { service, reason } => {
                self.on_rollout(&service, EventKind::Aborted { by, reason })
            }
            Intent::Stop { service, .. } => {
                if self.state.services.get(&service).is_some_and(|s| !s.replicas.is_empty()) {
                    self.on_service(&service, EventKind::StopRequested { by })
                } else if self.known_services().contains(&service) {
                    Err(ApiError {
                        kind: ErrorKind::Conflict,
                        message: format!("nothing of {service} runs"),
                        hint: None,
                    })
                } else {
                    Err(planning::not_found(&service, self.known_services()))
                }
            }
            Intent::Cordon { host, gpu, reason } => self.cordon(&host, gpu, &by, reason),
            Intent::Uncordon { host, gpu, .. } => self.uncordon(&host, gpu, &by),
            Intent::Drain { host, reason } => return self.drain(host, by, reason, reply),
            Intent::Move { service, replica, host, gpus, reason } => {
                let to = ReplicaTo { service, replica, host, gpus };
                return self.move_replica(to, by, reason, reply);
            }
            Intent::StopUpgrade => Ok(self.stop_upgrade(&by)),
            Intent::UpgradeHosts {
                command, hosts, max_parallel, timeout_ms, return_ms, ..
            } => {
                let wish = upgrade::Wish { command, hosts, max_parallel, timeout_ms, return_ms };
                self.begin_upgrade(wish, by)
            }
            Intent::Answer { question, answer } => {
                if self.means.fleet.answer(question, answer.into_answer()) {
                    Ok(IntentReply::Accepted)
                } else {
                    Err(ApiError {
                        kind: ErrorKind::NotFound,
                        message: format!("question {question} is not asked (any more)"),
                        hint: Some("`gpudeck questions` lists those that are".to_owned()),
                    })
                }
            }
            Intent::Reconnect { host } => {
                if self.means.fleet.reconnect(&host) {
                    Ok(IntentReply::Accepted)
                } else {
                    Err(ApiError {
                        kind: ErrorKind::NotFound,
                        message: format!("there is no host {host}"),
                        hint: Some("`gpudeck hosts` lists the deck's hosts".to_owned()),
                    })
                }
            }
            Intent::Reload => {
                self.files_stamp.clear();
                self.reload();
                Ok(IntentReply::Accepted)
            }
            Intent::HandOver => self.hand_over(),
            Intent::Shutdown => {
                self.shutdown = true;
                Ok(IntentReply::Accepted)
            }
        };
        self.answer(reply, result);
    }

    /// Answers an intent. Whoever asked and then looks sees what came of it.
    pub(super) fn answer(
        &mut self,
        reply: oneshot::Sender<Result<IntentReply, ApiError>>,
        result: Result<IntentReply, ApiError>,
    ) {
        self.publish_stale();
        // An asker that went away does not undo what was done.
        let _ = reply.send(result);
    }

    pub(super) fn on_rollout(
        &mut self,
        service: &ServiceName,
        kind: EventKind,
    ) -> Result<IntentReply, ApiError> {
        let Some(state) = self.state.services.get(service) else {
            return Err(if self.files.services.contains_key(service) {
                super::maintenance::conflict(
                    format!("no rollout of {service} is under way"),
                    &format!("`gpudeck apply {service}` begins one"),
                )
            } else {
                planning::not_found(service, self.known_services())
            });
        };
        if state.active_rollout().is_none() {
            return Err(ApiError {
                kind: ErrorKind::Conflict,
                message: format!("no rollout of {service} is under way"),
                hint: Some(format!("`gpudeck apply {service}` begins one")),
            });
        }
        if let Some(Futile { why, instead }) = state.futile(&kind) {
            return Err(super::maintenance::conflict(why, &instead));
        }
        self.on_service(service, kind)
    }

    pub(super) fn on_service(
        &mut self,
        service: &ServiceName,
        kind: EventKind,
    ) -> Result<IntentReply, ApiError> {
        self.try_happened(service, kind, now()).map_err(|e| journal_error(&e))?;
        Ok(IntentReply::Accepted)
    }

    /// The release an undo goes back to.
    pub(super) fn undo_target(
        &self,
        service: &ServiceName,
        to: Option<ReleaseNumber>,
    ) -> Result<ReleaseNumber, ApiError> {
        let history = self.files.history.get(service).map(Vec::as_slice).unwrap_or_default();
        let present = self.state.services.get(service).and_then(|s| s.stable);
        if let Some(to) = to {
            let shown = history.iter().any(|r| r.number == to);
            return if shown || self.was_ever(service, to) {
                Ok(to)
            } else {
                Err(ApiError {
                    kind: ErrorKind::NotFound,
                    message: format!("{service} has no release {to}"),
                    hint: Some(format!("`gpudeck history {service}` lists them")),
                })
            };
        }
        let target = history
            .iter()
            .find(|r| Some(r.number) != present && r.outcome == Some(Outcome::Completed))
            .map(|r| r.number)
            .ok_or_else(|| ApiError {
                kind: ErrorKind::Conflict,
                message: format!("{service} has no earlier release that was ever stable"),
                hint: Some(format!("`gpudeck history {service}` shows what there is")),
            })?;
        // Who means the release that failed a moment ago must not take back the good one.
        let last = self.state.services.get(service).and_then(|s| s.rollout.as_ref());
        let taken_back =
            last.filter(|r| r.outcome.as_ref().is_some_and(|o| *o != Outcome::Completed));
        match (taken_back, present) {
            (Some(rollout), Some(present)) if rollout.to > present => Err(ApiError {
                kind: ErrorKind::Conflict,
                message: format!(
                    "{} of {service} was taken back already; {present} is served",
                    rollout.to
                ),
                hint: Some(format!(
                    "`gpudeck rollout undo {service} --to {target}` goes further back"
                )),
            }),
            _ => Ok(target),
        }
    }

    /// The fast way back, if the release was ever stable; else through its steps.
    pub(super) fn undo_kind(&self, service: &ServiceName, to: ReleaseNumber) -> RolloutKind {
        if self.state.services.get(service).is_some_and(|s| s.stable == Some(to)) {
            return RolloutKind::Undo;
        }
        let history = self.files.history.get(service).map(Vec::as_slice).unwrap_or_default();
        if let Some(shown) = history.iter().find(|r| r.number == to) {
            return RolloutKind::of_undo(shown.outcome.as_ref());
        }
        let entries = self.repo.as_ref().and_then(|r| r.history(service, usize::MAX).ok());
        let entry = entries.and_then(|all| all.into_iter().find(|e| e.release == to));
        RolloutKind::of_undo(entry.and_then(|e| e.outcome).as_ref())
    }

    /// Whether Git has this release of the service, though it is older than what is shown.
    fn was_ever(&self, service: &ServiceName, number: ReleaseNumber) -> bool {
        let entries = self.repo.as_ref().and_then(|r| r.history(service, usize::MAX).ok());
        entries.is_some_and(|entries| entries.iter().any(|e| e.release == number))
    }

    /// Reads and inspects what is to be rolled out, off the loop; it comes back as `Begin`.
    pub(super) fn prepare(
        &mut self,
        service: ServiceName,
        to: Option<ReleaseNumber>,
        request: Request,
        reply: oneshot::Sender<Result<IntentReply, ApiError>>,
    ) {
        if let Err(error) = self.may_begin(&service) {
            let _ = reply.send(Err(error));
            return;
        }
        let work = self.draft(service, to);
        let inputs = self.means.inputs.clone();
        tokio::spawn(async move {
            match work.await {
                Ok(draft) => {
                    let input = Input::Begin { draft: Box::new(draft), request, reply };
                    let _ = inputs.send(input).await;
                }
                Err(error) => {
                    let _ = reply.send(Err(error));
                }
            }
        });
    }

    pub(super) fn may_begin(&self, service: &ServiceName) -> Result<(), ApiError> {
        self.takes_new_work()?;
        self.not_fenced()?;
        if self.repo.is_none() {
            return Err(ApiError {
                kind: ErrorKind::Conflict,
                message: "there is no deck here, so nothing can be rolled out".to_owned(),
                hint: Some("`gpudeck init` makes one".to_owned()),
            });
        }
        if let Some(state) = self.state.services.get(service)
            && let Some(rollout) = state.active_rollout()
        {
            return Err(ApiError {
                kind: ErrorKind::Conflict,
                message: format!("a rollout of {service} to {} is under way", rollout.to),
                hint: Some(format!(
                    "wait for it (`gpudeck rollout status {service} --wait`), take it back (`gpudeck rollout abort {service}`), or apply with --concurrency-policy queue or replace"
                )),
            });
        }
        if self.state.services.get(service).is_some_and(|s| s.stopping) {
            return Err(ApiError {
                kind: ErrorKind::Conflict,
                message: format!("{service} is being stopped"),
                hint: Some("wait until it has stopped, then apply again".to_owned()),
            });
        }
        Ok(())
    }

    /// The work of reading a spec and inspecting its model.
    pub(super) fn draft(
        &self,
        service: ServiceName,
        to: Option<ReleaseNumber>,
    ) -> BoxFuture<'static, Result<Draft, ApiError>> {
        let spec = planning::read_spec(self, &service, to);
        let lender = spec.as_ref().ok().and_then(|(spec, _, _)| self.lender_of(spec));
        // Only a canary lives by its weight.
        let weighed = spec.as_ref().ok().and_then(|(spec, _, _)| {
            let canary = spec.rollout.effective_strategy() == Strategy::Canary;
            canary.then(|| Gateways::of(&self.deck, &service, spec)).flatten()
        });
        let means = Arc::clone(&self.means);
        // Only a journal that begins with nothing can have lost something.
        let knows_nothing = self.state.term == 0 && self.state.services.is_empty();
        let hosts: Vec<HostName> = self.hub.with(|s| {
            s.hosts.values().filter(|h| super::world::is_up(h)).map(|h| h.name.clone()).collect()
        });
        Box::pin(async move {
            let (spec, text, revision) = spec?;
            // Who holds the hosts must be known before anything is begun.
            let links: Vec<_> = hosts.iter().filter_map(|host| means.fleet.link(host)).collect();
            let looks = links.iter().map(|link| means.claims.look_after(link.as_ref()));
            futures::future::join_all(looks).await;
            if knows_nothing && let Some(left) = super::saved::left_by_us(&means).await {
                return Err(ApiError {
                    kind: ErrorKind::Fenced,
                    message: format!(
                        "{left} was rolled out by an earlier controller whose journal is not here"
                    ),
                    hint: Some(
                        "`gpudeck controller take-over` goes on from what it left on the hosts"
                            .to_owned(),
                    ),
                });
            }
            let mut draft =
                planning::draft(&means, service, spec, text, revision, hosts.clone()).await?;
            if let Some(gateways) = weighed {
                draft.warnings.extend(gateways.balance_warnings(&means).await);
            }
            if let Some((lender, spec)) = lender {
                // Where its replicas come back is part of the plan. Without it nothing is borrowed.
                let lenders =
                    planning::draft(&means, lender, spec, String::new(), None, hosts).await;
                draft.lender = lenders.ok().map(Box::new);
            }
            Ok(draft)
        })
    }

    pub(super) fn plan(&self, draft: &Draft, kind: RolloutKind) -> Result<Planned, ApiError> {
        planning::plan(self, draft, kind)
    }

    fn counters(
        &mut self,
        service: &ServiceName,
        counters: Option<Vec<BTreeMap<ReplicaId, ServerCounters>>>,
    ) {
        let Some(counters) = counters else {
            // Counting begins anew when they can be read again.
            if self.traffic.get(service).is_some_and(|traffic| traffic.is_old(now())) {
                self.traffic.remove(service);
                self.publish_service(service);
            }
            return;
        };
        let windows = self.traffic.entry(service.clone()).or_default().observe(now(), counters);
        let measuring = self
            .state
            .services
            .get(service)
            .and_then(ServiceState::active_rollout)
            .is_some_and(|r| matches!(r.gate, Some(Gate::Analyse { .. })));
        if measuring && windows.values().any(|w| w.requests > 0) {
            self.happened(service, EventKind::Measured { windows });
        }
        self.publish_service(service);
    }

    /// Names of all services, of the deck and of the journal.
    pub(super) fn known_services(&self) -> Vec<ServiceName> {
        let all: BTreeSet<_> =
            self.files.services.keys().chain(self.state.services.keys()).cloned().collect();
        all.into_iter().collect()
    }

    /// Shows a service as it is now, or soon when showing it took long lately.
    pub(super) fn publish_service(&mut self, service: &ServiceName) {
        self.views.mark(service);
        if self.views.is_due() {
            self.publish_stale();
        }
    }

    /// Shows every service whose view is behind.
    pub(super) fn publish_stale(&mut self) {
        let began = std::time::Instant::now();
        let services = self.views.take();
        if services.is_empty() {
            return;
        }
        for service in &services {
            self.show_service(service);
        }
        self.views.shown(began);
    }

    fn show_service(&self, service: &ServiceName) {
        let history = self.files.history.get(service).map(Vec::as_slice).unwrap_or_default();
        let elsewhere = self.held_elsewhere(service);
        let around = Surroundings {
            deck: &self.deck,
            elsewhere: elsewhere.as_deref(),
            spec: self.files.services.get(service),
            traffic: self.traffic.get(service),
            history,
            taken: self.taken.get(service).map(|table| table.as_slice()),
            trouble: self.trouble.get(service).map(String::as_str),
            gateway_file: self.gateway_files.get(service).and_then(|f| f.values().next()),
            ledger: &self.state.ledger,
            memory: self.files.memory.get(service).map(Vec::as_slice).unwrap_or_default(),
        };
        let view = service_view::view(service, self.state.services.get(service), &around);
        let before = self.hub.with(|s| s.services.get(service).map(|v| ids(&v.replicas)));
        let ranks_changed = before != Some(ids(&view.replicas));
        self.hub.publish(Change::Service(Box::new(view)));
        if ranks_changed {
            self.publish_ranks();
        }
    }

    /// Brings the hosts' lists of ranks up to date.
    pub(super) fn publish_ranks(&self) {
        let hosts: Vec<HostView> = self.hub.with(|s| {
            let mut by_host = service_view::ranks_by_host(s.services.values());
            s.hosts
                .values()
                .filter_map(|host| {
                    let ranks = by_host.remove(&host.name).unwrap_or_default();
                    (ranks != host.ranks).then(|| HostView { ranks, ..host.clone() })
                })
                .collect()
        });
        for host in hosts {
            self.hub.publish(Change::Host(Box::new(host)));
        }
    }

    pub(super) fn say(&self, severity: Severity, service: Option<&ServiceName>, words: &str) {
        self.tell(EventLine {
            at: now(),
            severity,
            service: service.cloned(),
            host: None,
            text: text::clean(words, 400),
        });
    }

    pub(super) fn tell(&self, line: EventLine) {
        tracing::info!(
            service = line.service.as_ref().map(ServiceName::as_str),
            host = line.host.as_ref().map(HostName::as_str),
            "{}",
            line.text
        );
        self.hub.publish(Change::Event(line));
    }
}

fn ids(replicas: &[crate::api::ReplicaView]) -> Vec<ReplicaId> {
    replicas.iter().map(|r| r.id).collect()
}

pub(super) fn no_deck() -> ApiError {
    ApiError { kind: ErrorKind::Conflict, message: "there is no deck".to_owned(), hint: None }
}

/// A journal that cannot be written refuses new work; what runs goes on.
pub(super) fn journal_error(error: &JournalError) -> ApiError {
    use crate::base::Hint;
    ApiError {
        kind: ErrorKind::Internal,
        message: format!("the journal cannot be written, so nothing was begun: {error}"),
        hint: error.hint(),
    }
}
