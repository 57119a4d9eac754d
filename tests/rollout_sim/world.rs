//! A simulated world: hosts with GPUs, ranks, a gateway, a controller that can die, and what must
//! always be true of them.

mod answers;
mod carry_out;
mod company;
mod drain_checks;
mod faults;
mod floor_checks;
mod gateway;
mod journey_checks;
mod memory;
mod reports;
mod rest_checks;
mod serving_checks;
mod step_checks;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use deciding::base::{
    Attempt, DeviceId, HostName, RankId, ReleaseId, ReleaseNumber, ReplicaId, ReplicaKey,
    ServiceName, Timestamp, TrafficMode, TrafficServer,
};
use deciding::rollout::{
    Action, Condition, Direction, Event, EventKind, Gate, HoldCause, Outcome, Phase, QueuedRollout,
    RankPlan, Release, ReplicaState, Rollout, RolloutKind, RunEnd, ServiceState, StartRefusal,
    Window, forecast, next_wake, outstanding, step,
};
use deciding::spec::{StepSpec, Strategy};

use crate::build::{Rng, service};
use crate::planted::Bug;
use drain_checks::{Drains, is_fault_of};
use gateway::Gateway;
use memory::Memory;
use reports::Report;

/// What the engines of a release do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Nature {
    #[default]
    Good,
    /// Ends while loading.
    Crashes,
    /// Loads for ever.
    Hangs,
    /// Its command cannot be run.
    Never,
    /// Serves, but answers errors.
    Errors,
    /// Serves for a while, then ends.
    DiesLater,
}

#[derive(Clone, Debug)]
struct Rank {
    running: bool,
    plan: RankPlan,
    /// The GPU memory is free again from here, after the end.
    freed: Timestamp,
}

/// The end of a hang that only a stop ends.
const FOR_EVER: Timestamp = Timestamp(u64::MAX);

/// A person who retried a rollout so often gives it up: what cannot succeed would never end.
const MOST_RETRIES: u32 = 4;

/// Something under way: what the controller was told to do, due at a moment.
#[derive(Clone, Debug)]
struct Task {
    due: Timestamp,
    sequence: u64,
    action: Action,
    /// Of the controller that wants it.
    epoch: u64,
}

/// A controller that was replaced and does not know it yet.
#[derive(Clone, Debug)]
struct Replaced {
    state: ServiceState,
    epoch: u64,
    until: Timestamp,
}

/// A rollout that a person asked for while another one was under way.
#[derive(Clone, Debug)]
struct Wish {
    release: Release,
    kind: RolloutKind,
    nature: Nature,
}

/// One run of a step's command.
type Run = (ReleaseNumber, usize, Attempt);

/// How often each kind of fault was met.
pub type Counts = BTreeMap<&'static str, u64>;

pub struct World {
    pub state: ServiceState,
    pub now: Timestamp,
    pub rng: Rng,
    pub natures: BTreeMap<ReleaseNumber, Nature>,
    pub faults: bool,
    pub counts: Counts,
    pub trace: bool,
    pub lowest_ready: u32,
    pub actions: Vec<Action>,
    /// Host memory suffices for so many ranks on `cpu`.
    pub memory_for: Option<usize>,
    journal: Vec<Event>,
    /// The state after so many events of the journal, as the last crash left it.
    checkpoint: (usize, ServiceState),
    tasks: Vec<Task>,
    /// What will be told by itself.
    reports: Vec<Report>,
    sequence: u64,
    ranks: BTreeMap<RankId, Rank>,
    stopped: BTreeSet<RankId>,
    gateway: Gateway,
    memory: Memory,
    drains: Drains,
    /// What the decider wanted the table to be last.
    wanted_table: Vec<TrafficServer>,
    /// What is asked for belongs to a rollout of several services, which began then.
    pub of_group: Option<Timestamp>,
    /// The gateway answers, and has no backend of the service.
    pub lacks_backend: bool,
    hosts_down: BTreeMap<HostName, Timestamp>,
    recorded: BTreeMap<ReleaseNumber, Outcome>,
    last_measured: Timestamp,
    /// The fencing number of the present controller; the hosts know it.
    epoch: u64,
    replaced: Option<Replaced>,
    /// Replicas whose engine really generated a token, this start, since it last hung.
    generated: BTreeSet<ReplicaId>,
    /// Those of them of which that was told, and nothing worse since.
    proved: BTreeSet<ReplicaId>,
    /// Engines that were ready, live, and answer nothing before then.
    hung: BTreeMap<ReplicaId, Timestamp>,
    /// What the controller's clock says more (or less) than the time.
    clock_error_ms: i64,
    clock_jumps: u64,
    /// The journal cannot be written until then; what happens waits in order.
    disk_full_until: Timestamp,
    waiting: VecDeque<EventKind>,
    /// Events of the journal that are on the disk.
    durable: usize,
    /// What is in the deck for each queued rollout, by its digest.
    wishes: BTreeMap<String, Wish>,
    /// The newest run of each step's command that was ever asked for.
    runs: BTreeMap<(ReleaseNumber, usize), Attempt>,
    /// Runs whose command really ended with exit code 0.
    good_runs: BTreeSet<Run>,
    /// The number of the newest release.
    last_number: u64,
    /// How often the person retried the present rollout.
    retries: u32,
    /// So long no controller was there, in all.
    away: Duration,
    /// When the healthy deadline of a start began to count: the time, what the controller's clock said more, and how
    /// long no controller had been there until then.
    healthy_from: BTreeMap<ReplicaId, (Timestamp, i64, Duration)>,
    /// A bug that was planted.
    pub bug: Option<Bug>,
    /// The controller's clock does not jump: it is that of other worlds, too.
    pub one_clock: bool,
    /// Nothing switches the traffic: endpoints are published, and nobody counts.
    pub no_gateway: bool,
    /// Hosts refuse our login now and then; with dice of its own, so that other plays stay as they are.
    pub holds: Option<Rng>,
}

impl World {
    pub fn new(seed: u64) -> Self {
        Self::of(service(), seed)
    }

    /// The world of one service.
    pub fn of(service: ServiceName, seed: u64) -> Self {
        Self {
            state: ServiceState::new(service.clone()),
            now: Timestamp(1_000_000),
            rng: Rng(seed),
            natures: BTreeMap::new(),
            faults: false,
            counts: Counts::new(),
            trace: false,
            lowest_ready: u32::MAX,
            actions: Vec::new(),
            memory_for: None,
            journal: Vec::new(),
            checkpoint: (0, ServiceState::new(service)),
            tasks: Vec::new(),
            reports: Vec::new(),
            sequence: 0,
            ranks: BTreeMap::new(),
            stopped: BTreeSet::new(),
            wanted_table: Vec::new(),
            of_group: None,
            lacks_backend: false,
            gateway: Gateway::default(),
            memory: Memory::default(),
            drains: Drains::default(),
            hosts_down: BTreeMap::new(),
            recorded: BTreeMap::new(),
            last_measured: Timestamp(0),
            epoch: 1,
            replaced: None,
            generated: BTreeSet::new(),
            proved: BTreeSet::new(),
            hung: BTreeMap::new(),
            clock_error_ms: 0,
            clock_jumps: 0,
            disk_full_until: Timestamp(0),
            waiting: VecDeque::new(),
            durable: 0,
            wishes: BTreeMap::new(),
            runs: BTreeMap::new(),
            good_runs: BTreeSet::new(),
            last_number: 0,
            retries: 0,
            away: Duration::ZERO,
            healthy_from: BTreeMap::new(),
            bug: None,
            one_clock: false,
            no_gateway: false,
            holds: None,
        }
    }

    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    fn say(&self, text: impl FnOnce() -> String) {
        if self.trace {
            println!("{:>8} {}", (self.now.0 - 1_000_000) / 1000, text());
        }
    }

    /// The number of the next release.
    pub fn fresh_number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    /// What lies can be told from what is good only by an analysis.
    pub fn tellable(&self, release: &Release, kind: RolloutKind, nature: Nature) -> Nature {
        let analysed = self.state.stable.is_some()
            && kind == RolloutKind::Apply
            && release.spec.rollout.steps.contains(&StepSpec::Analyse("default".to_owned()));
        match nature {
            Nature::Errors | Nature::DiesLater if !analysed => Nature::Good,
            // Nobody counts errors.
            Nature::Errors if self.no_gateway => Nature::Good,
            nature => nature,
        }
    }

    /// What is rolled out, if anything is, behaves from here on.
    pub fn all_behave(&mut self) {
        self.natures.values_mut().for_each(|n| *n = Nature::Good);
    }

    /// A person asks for a rollout, whether or not one is under way.
    pub fn wish(&mut self, release: &Release, kind: RolloutKind, nature: Nature, replace: bool) {
        if self.state.active_rollout().is_none() {
            return;
        }
        self.count(if replace { "rollout replaced" } else { "rollout queued" });
        let digest = release.number.to_string();
        let wish = Wish { release: release.clone(), kind, nature };
        self.wishes.insert(digest.clone(), wish);
        let wish = QueuedRollout {
            asked: self.clock(),
            kind,
            to: None,
            digest: Some(digest),
            by: "ada".to_owned(),
            reason: None,
            accept_outage: false,
        };
        self.tell(EventKind::Queued { wish: Box::new(wish), replace });
    }

    /// The controller begins what is queued, some time after its turn has come, or refuses it: its plan
    /// is made only now.
    fn tend_queue(&mut self) {
        if self.disk_full_until > self.now || !self.waiting.is_empty() {
            return;
        }
        let Some(due) = self.state.queued_due().cloned().filter(|_| self.rng.one_in(3)) else {
            return;
        };
        let Some(wish) = due.digest.as_ref().and_then(|d| self.wishes.get(d)).cloned() else {
            return;
        };
        if self.rng.one_in(6) {
            self.count("queued rollout refused");
            let why = "it does not fit".to_owned();
            self.tell(EventKind::QueueRefused { asked: due.asked, why });
            return;
        }
        let nature = self.tellable(&wish.release, wish.kind, wish.nature);
        let release = self.planned(wish.release, wish.kind);
        self.request(&release, wish.kind, nature);
        assert!(self.state.queued.is_none(), "what has begun is still queued");
    }

    /// As it is asked for after its plan was read: one that leaves replicas without traffic, and too few others, is refused,
    /// and the smallest change is to leave those steps out.
    pub fn planned(&mut self, mut release: Release, kind: RolloutKind) -> Release {
        let is_scale = |step: &StepSpec| matches!(step, StepSpec::Scale(_));
        if release.spec.rollout.steps.iter().any(is_scale)
            && forecast(&self.state, &release, kind).is_err()
        {
            self.count("plan refused");
            release.spec.rollout.steps.retain(|step| !is_scale(step));
        }
        release
    }

    pub fn request(&mut self, release: &Release, kind: RolloutKind, nature: Nature) {
        self.last_number = self.last_number.max(release.number.0);
        self.natures.insert(release.number, nature);
        self.retries = 0;
        self.count_policy(&release.spec.rollout);
        self.say(|| format!("-- {} is {nature:?}: {:?}", release.number, release.spec.rollout));
        let release = Box::new(release.clone());
        self.tell(EventKind::RolloutRequested {
            release,
            kind,
            by: "ada".to_owned(),
            limits: deciding::rollout::LimitRule::PRESENT,
            of_group: self.of_group,
        });
    }

    pub fn by_ada(&mut self, make: impl FnOnce(String) -> EventKind) {
        self.tell(make("ada".to_owned()));
    }

    /// Journals an event, lets it be decided, and takes the actions on.
    ///
    /// While the disk is full nothing is decided: what happens waits in its order, time does not.
    pub fn tell(&mut self, kind: EventKind) {
        if self.disk_full_until > self.now {
            if kind != EventKind::Tick {
                self.waiting.push_back(kind);
            }
            return;
        }
        while let Some(waited) = self.waiting.pop_front() {
            self.decide(waited);
        }
        self.decide(kind);
    }

    fn decide(&mut self, kind: EventKind) {
        self.decide_at(kind, self.clock());
    }

    fn decide_at(&mut self, kind: EventKind, at: Timestamp) {
        let mut kind = kind;
        self.memory.hear(&kind);
        if let Some(bug) = self.bug {
            if bug.swallows(&kind, &mut self.rng) {
                return;
            }
            bug.alter(&self.state, &mut kind);
        }
        let event = Event { at, kind };
        self.journal.push(event.clone());
        if self.bug != Some(Bug::SkipFsync) || self.journal.len().is_multiple_of(5) {
            self.durable = self.journal.len();
        }
        let before: Vec<(ReplicaId, Phase)> = self.phases();
        let late_before = self.late_for_health();
        let journey = self.journey();
        let mut actions = step(&mut self.state, &event);
        let (floor, stopping) = (self.memory.floor(), self.memory.stopping);
        self.note_tokens(&event.kind);
        let served = self.serving();
        self.memory.follow(&event.kind, &self.state);
        if let Some(bug) = self.bug {
            bug.spoil(&self.state, &mut actions, &mut self.rng);
        }
        self.say(|| match &event.kind {
            EventKind::Tick => String::new(),
            EventKind::RolloutRequested { release, .. } => format!("rollout of {}", release.number),
            kind => format!("{kind:?}").chars().take(150).collect(),
        });
        for action in &actions {
            self.say(|| format!("      → {}", brief(action)));
        }
        self.note_orders(&actions);
        self.check_gateway();
        self.check_step(&event.kind, &before, &actions);
        self.check_drains(&event.kind, &before, &actions, stopping || self.memory.stopping);
        self.check_floor((&served, floor), &actions);
        self.check_healthy_deadline(&before, &late_before, &actions);
        self.check_journey(&event.kind, journey, &actions);
        self.take(actions);
        self.stop_waiting();
    }

    /// What the controller's clock says.
    fn clock(&self) -> Timestamp {
        if self.bug == Some(Bug::StopTheClock) {
            return Timestamp(self.now.0.min(1_000));
        }
        Timestamp(self.now.0.saturating_add_signed(self.clock_error_ms))
    }

    /// The replica whose present start this is.
    fn replica_of(&self, id: ReplicaId) -> Option<&ReplicaState> {
        let key = self.memory.owner(id.key());
        let replica = self.state.replicas.get(&key)?;
        (replica.id(key) == id).then_some(&**replica)
    }

    fn phases(&self) -> Vec<(ReplicaId, Phase)> {
        self.state.replicas.iter().map(|(key, r)| (r.id(*key), r.phase.clone())).collect()
    }

    fn take(&mut self, actions: Vec<Action>) {
        for action in actions {
            let delay = match &action {
                Action::StartRank { .. } => 200 + self.rng.below(2_000),
                Action::StopRank { .. } => 100 + self.rng.below(5_000),
                Action::AwaitToken { .. } => 5_000 + self.rng.below(60_000),
                Action::ApplyTraffic { .. } => 50 + self.rng.below(1_000),
                Action::AwaitDrained { replica } => self.how_long_it_drains(*replica),
                Action::RunCommand { run, .. } => self.how_long(run),
                Action::RecordOutcome { .. } => 0,
            };
            self.sequence += 1;
            if let Action::StopRank { rank, .. } = &action {
                self.cancel_start(rank);
            }
            let mut due = self.now.plus(Duration::from_millis(delay));
            // What is told about one rank, and to the gateway, is carried out in that order.
            for task in &self.tasks {
                if task.epoch == self.epoch && same_queue(&task.action, &action) {
                    due = due.max(Timestamp(task.due.0 + 1));
                }
            }
            self.tasks.push(Task {
                due,
                sequence: self.sequence,
                action: action.clone(),
                epoch: self.epoch,
            });
            self.actions.push(action);
        }
    }

    /// A stop cancels a start that is still being asked for; by then it may have been carried out.
    fn cancel_start(&mut self, rank: &RankId) {
        let epoch = self.epoch;
        let asked = |task: &Task| {
            task.epoch == epoch
                && matches!(&task.action, Action::StartRank { rank: r, .. } if r == rank)
        };
        let (cancelled, rest): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.tasks).into_iter().partition(asked);
        self.tasks = rest;
        if let Some(task) = cancelled.first()
            && self.rng.one_in(2)
        {
            self.silently(&task.action);
        }
    }

    /// How long a command runs; one that hangs is ended at its timeout.
    fn how_long(&mut self, run: &deciding::spec::RunSpec) -> u64 {
        if run.command == ["hangs"] {
            return u64::try_from(run.timeout.as_millis()).unwrap();
        }
        self.rng.below(90_000)
    }

    /// Faults end; whoever holds the rollout lets it go.
    pub fn calm(&mut self) {
        self.faults = false;
        self.gateway_is_back();
        self.hosts_are_back();
        self.disk_full_until = Timestamp(0);
        self.replaced = None;
        if self.holds.is_some() {
            self.tell(EventKind::HoldEnded);
        }
        self.by_ada(|by| EventKind::Resumed { by, reason: None });
    }

    /// A person who passes approvals and gives up what failed or is inconclusive.
    pub fn person(&mut self) {
        let Some(rollout) = self.state.active_rollout() else { return };
        let paused = rollout.paused.is_some();
        if paused && !self.faults {
            self.by_ada(|by| EventKind::Resumed { by, reason: None });
            return;
        }
        match (&rollout.direction, &rollout.gate) {
            (Direction::Forward, Some(Gate::Approve)) => {
                self.by_ada(|by| EventKind::Promoted { all: false, by, step: None, reason: None });
            }
            (Direction::Forward, Some(Gate::Inconclusive { .. } | Gate::Failed { .. }))
                if self.rng.one_in(3) && self.retries < MOST_RETRIES =>
            {
                self.retries += 1;
                self.count("person retries");
                self.by_ada(|by| EventKind::Retried { by, reason: None });
            }
            (Direction::Forward, Some(Gate::Inconclusive { .. })) if self.rng.one_in(2) => {
                self.skip();
            }
            (Direction::Forward, Some(Gate::Inconclusive { .. } | Gate::Failed { .. })) => {
                self.by_ada(|by| EventKind::Aborted { by, reason: Some("no good".to_owned()) });
            }
            _ => {}
        }
    }

    /// Turns until `done`, at most until `limit` of simulated time has gone by.
    pub fn run_until(&mut self, limit: Duration, done: impl Fn(&Self) -> bool) -> bool {
        let end = self.now.plus(limit);
        while self.now < end {
            if done(self) {
                return true;
            }
            self.turn();
        }
        done(self)
    }

    /// Events journaled so far.
    pub fn events(&self) -> u64 {
        self.journal.len() as u64
    }

    /// Everything is told and done.
    pub fn quiet(&self) -> bool {
        self.tasks.is_empty() && self.reports.is_empty()
    }
}

fn same_queue(a: &Action, b: &Action) -> bool {
    let rank = |action: &Action| match action {
        Action::StartRank { rank, .. } | Action::StopRank { rank, .. } => Some(rank.clone()),
        _ => None,
    };
    match (a, b) {
        (Action::ApplyTraffic { .. }, Action::ApplyTraffic { .. }) => true,
        _ => rank(a).is_some() && rank(a) == rank(b),
    }
}

fn brief(action: &Action) -> String {
    match action {
        Action::StartRank { rank, .. } => format!("start {} rank {}", rank.replica, rank.rank),
        Action::StopRank { rank, .. } => format!("stop {} rank {}", rank.replica, rank.rank),
        Action::AwaitToken { replica, .. } => format!("await token {replica}"),
        Action::ApplyTraffic { version, servers } => {
            let servers: Vec<String> = servers
                .iter()
                .map(|s| {
                    format!(
                        "{}={}{}",
                        s.replica,
                        s.weight,
                        if s.mode == TrafficMode::Drain { "d" } else { "" }
                    )
                })
                .collect();
            format!("traffic {version}: {}", servers.join(" "))
        }
        Action::AwaitDrained { replica } => format!("await drained {replica}"),
        Action::RunCommand { step, attempt, run, .. } => {
            format!("run {:?} of step {step}, attempt {attempt}", run.command)
        }
        Action::RecordOutcome { release, outcome } => format!("record {release}: {outcome:?}"),
    }
}
