//! The one loop that owns everything that changes.

pub(in crate::controller) mod acts;
mod drafts;
mod input;
mod intents;
mod show;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::actions::{Actions, Means};
use super::auditor::Auditor;
use super::begin::{Beginning, Beginnings};
use super::conditions::Conditions;
use super::deck_ledger::{DeckEvent, DeckRecord};
use super::measured::Measured;
use super::planning;
use super::record::DeckState;
use super::stale_views::StaleViews;
use super::traffic::Traffic;
use super::turns::{Tasks, Turn, Turns};
use super::upgrade;
use crate::api::hub::Hub;
use crate::api::{ApiError, DeckConditionKind, ErrorKind, Severity};
use crate::base::{HostName, ServiceName, Timestamp, TrafficServer};
use crate::fleet::FleetEvent;
use crate::journal::{Journal, JournalError};
use crate::revision::DeckRepo;
use crate::rollout::{EventKind, Shared, step};
use crate::spec::DeckSpec;

pub use self::input::{DeckFiles, Input, Listed, Options, Request};
pub use super::clock::now;

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

/// Everything the loop owns.
pub struct Core {
    pub(super) options: Options,
    pub(super) deck: DeckSpec,
    pub(super) repo: Option<DeckRepo>,
    pub(super) state: DeckState,
    pub(super) journal: Journal,
    pub(super) unwritten: super::happening::Unwritten,
    pub(super) unnoted: super::unnoted::Unnoted,
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
    /// The deck's remote is being asked what it has.
    pub(super) hearing: Turn,
    /// Something is to be sent there afterwards.
    pub(super) share_waits: bool,
    /// When that is tried again.
    pub(super) hear_after: Option<Timestamp>,
    pub(super) measured: Measured,
    pub(super) alive: super::absence::Alive,
    pub(super) memory: super::calibration::MemoryReader,
    /// A rollout of the group is being begun.
    pub(super) group_asking: Turn,
    /// What the next one of them waits for, as it was told.
    pub(super) group_waits: Option<String>,
    /// Which of them was refused, and is asked for again.
    pub(super) group_put_off: Option<super::group::PutOff>,
    /// Engine ports that a start found taken by something that is none of ours.
    pub(super) foreign_ports: BTreeSet<(HostName, u16)>,
    /// TCP ports on which hosts were seen to listen when a plan last asked, of whatever program.
    pub(super) listening_ports: BTreeMap<HostName, BTreeSet<u16>>,
    /// Ranks that no release wants, and which hosts are being looked at for them.
    pub(super) strays: super::strays::Strays,
    pub(super) stray_looks: Turns<HostName>,
    /// Services whose queued rollout is being begun.
    pub(super) queue_asking: Turns<ServiceName>,
    /// Releases on their way into Git.
    pub(super) beginnings: Beginnings,
    pub(super) runs: super::runs::Runs,
    pub(super) upgrades: upgrade::UpgradeTasks,
    /// Hosts whose replicas are being placed elsewhere off the loop.
    pub(super) draining: Turns<HostName>,
    /// Hosts are being taken over: what was begun for the state before must not reach them any more.
    pub(super) taking_over: Option<Turn>,
    /// What is asked off the loop.
    pub(super) tasks: Tasks,
    pub(super) clock_told: super::clock::Told,
    /// Hosts that do not let us in (any more), and why.
    pub(super) lost_logins: BTreeMap<HostName, String>,
    /// What is told of services whose replicas fail again and again.
    pub(super) restarting: BTreeMap<ServiceName, String>,
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
    /// Takes inputs, and what the links tell, until told to end: whether another build goes on with it.
    pub async fn run(
        mut self,
        mut inputs: mpsc::Receiver<Input>,
        mut of_fleet: mpsc::Receiver<FleetEvent>,
    ) -> bool {
        self.make_good_absence();
        self.tell_gap();
        self.note_never_begun();
        self.end_left_commands();
        self.resume();
        self.note_unserved();
        self.hear_remote();
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
        self.conditions.contains_key(&DeckConditionKind::HandingOver)
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
            Input::Ranks { host, of, asked, reports } => {
                self.rank_reports(&host, &of, asked, &reports);
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
        // What is another's, is just being taken over, or could not be written down, is not brought on.
        if self.takes_new_work().is_ok() && self.not_fenced().is_ok() && self.taking_over.is_none()
        {
            self.tend_loans();
            self.tend_taken_out();
            self.tend_drains();
            self.tend_upgrade();
            self.tend_group();
            self.tend_queue();
        }
        self.forget_old_rates();
        self.tend_tasks();
        self.tend_clock();
        self.tend_restarts();
        self.tend_hearing();
        self.tend_logins();
        self.tend_hosts_away();
        self.tend_probes();
        self.tend_runs();
        if self.records_since_checkpoint >= RECORDS_PER_CHECKPOINT {
            self.checkpoint();
        }
        self.note_again();
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
        let upgrades = ledger.maintenance.present_upgrade().is_some()
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
}

pub(super) fn no_deck() -> ApiError {
    ApiError {
        kind: ErrorKind::Conflict,
        message: "there is no deck".to_owned(),
        hint: Some("`gpudeck init` makes one".to_owned()),
    }
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
