//! A simulated world: hosts with GPUs, ranks, a gateway, a controller that can die, and what must
//! always be true of them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use deciding::base::{
    Attempt, DeviceId, HostName, RankId, ReleaseNumber, ReplicaId, ReplicaKey, ServiceName,
    Timestamp, TrafficMode, TrafficServer,
};
use deciding::rollout::{
    Action, Condition, Direction, Event, EventKind, Gate, Outcome, Phase, QueuedRollout, RankPlan,
    Release, Rollout, RolloutKind, RunEnd, ServiceState, StartRefusal, Window, next_wake,
    outstanding, step,
};
use deciding::spec::{StepSpec, Strategy};

use crate::build::{Rng, service};
use crate::planted::Bug;

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
    sequence: u64,
    ranks: BTreeMap<RankId, Rank>,
    stopped: BTreeSet<RankId>,
    table: Vec<TrafficServer>,
    table_version: u64,
    /// What the decider wanted the table to be last.
    wanted_table: Vec<TrafficServer>,
    gateway_down_until: Timestamp,
    hosts_down: BTreeMap<HostName, Timestamp>,
    recorded: BTreeMap<ReleaseNumber, Outcome>,
    last_measured: Timestamp,
    /// The fencing number of the present controller; the hosts know it.
    epoch: u64,
    replaced: Option<Replaced>,
    /// Replicas whose engine really generated a token.
    generated: BTreeSet<ReplicaId>,
    /// Engines that were ready, live, and answer nothing before then.
    hung: BTreeMap<ReplicaId, Timestamp>,
    /// What the controller's clock says more (or less) than the time.
    clock_error_ms: i64,
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
            sequence: 0,
            ranks: BTreeMap::new(),
            stopped: BTreeSet::new(),
            table: Vec::new(),
            wanted_table: Vec::new(),
            table_version: 0,
            gateway_down_until: Timestamp(0),
            hosts_down: BTreeMap::new(),
            recorded: BTreeMap::new(),
            last_measured: Timestamp(0),
            epoch: 1,
            replaced: None,
            generated: BTreeSet::new(),
            hung: BTreeMap::new(),
            clock_error_ms: 0,
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
        self.request(&wish.release, wish.kind, nature);
        assert!(self.state.queued.is_none(), "what has begun is still queued");
    }

    pub fn request(&mut self, release: &Release, kind: RolloutKind, nature: Nature) {
        self.last_number = self.last_number.max(release.number.0);
        self.natures.insert(release.number, nature);
        self.retries = 0;
        self.say(|| format!("-- {} is {nature:?}: {:?}", release.number, release.spec.rollout));
        let mut release = Box::new(release.clone());
        if let (Some(Bug::IgnoreFloor), deciding::spec::Count::Number(n)) =
            (self.bug, &mut release.spec.rollout.max_unavailable)
        {
            *n += 1;
        }
        self.tell(EventKind::RolloutRequested {
            release,
            kind,
            by: "ada".to_owned(),
            limits: deciding::rollout::LimitRule::PRESENT,
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
        if let Some(bug) = self.bug {
            if bug.swallows(&kind, &mut self.rng) {
                return;
            }
            bug.alter(&mut kind);
        }
        let event = Event { at, kind };
        self.journal.push(event.clone());
        if self.bug != Some(Bug::SkipFsync) || self.journal.len().is_multiple_of(5) {
            self.durable = self.journal.len();
        }
        let before: Vec<(ReplicaId, Phase)> = self.phases();
        let late_before = self.late_for_health();
        let was_stopping = self.state.stopping;
        let journey = self.journey();
        let mut actions = step(&mut self.state, &event);
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
        self.check_step(&event.kind, &before, &actions, was_stopping);
        self.check_healthy_deadline(&before, &late_before, &actions);
        self.check_journey(&event.kind, journey, &actions);
        self.take(actions);
    }

    /// What the controller's clock says.
    fn clock(&self) -> Timestamp {
        if self.bug == Some(Bug::StopTheClock) {
            return Timestamp(self.now.0.min(1_000));
        }
        Timestamp(self.now.0.saturating_add_signed(self.clock_error_ms))
    }

    fn phases(&self) -> Vec<(ReplicaId, Phase)> {
        self.state
            .replicas
            .iter()
            .map(|(key, r)| {
                let id =
                    ReplicaId { release: key.release, replica: key.replica, attempt: r.attempt };
                (id, r.phase.clone())
            })
            .collect()
    }

    fn take(&mut self, actions: Vec<Action>) {
        for action in actions {
            let delay = match &action {
                Action::StartRank { .. } => 200 + self.rng.below(2_000),
                Action::StopRank { .. } => 100 + self.rng.below(5_000),
                Action::AwaitToken { .. } => 5_000 + self.rng.below(60_000),
                Action::ApplyTraffic { .. } => 50 + self.rng.below(1_000),
                Action::AwaitDrained { .. } => self.rng.below(20_000),
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

    // ---- what must always be true -------------------------------------------------------------

    fn check_step(
        &mut self,
        event: &EventKind,
        before: &[(ReplicaId, Phase)],
        actions: &[Action],
        was_stopping: bool,
    ) {
        let state = &self.state;
        let ready = state.ready_total();
        self.lowest_ready = self.lowest_ready.min(ready);
        // Promise 2. Only a drain takes a ready replica out by our own will.
        let mut taken_out = 0;
        for (id, phase) in before {
            let now = state.replicas.get(&id.key()).filter(|r| r.attempt == id.attempt);
            let now_phase = now.map(|r| &r.phase);
            if *phase == Phase::Ready && matches!(now_phase, Some(Phase::Draining { .. })) {
                taken_out += 1;
            }
            let by_fault = match event {
                EventKind::RankEnded { rank, .. } => rank.replica == *id,
                EventKind::ReplicaUnready { replica, .. } => replica == id,
                _ => false,
            };
            // While hosts cannot be acted on, nothing is taken out or ended by our own will.
            let serves = matches!(phase, Phase::Ready | Phase::Draining { .. });
            let leaves = match now_phase {
                Some(Phase::Draining { .. }) => *phase == Phase::Ready,
                Some(Phase::Stopping) => true,
                _ => false,
            };
            assert!(
                !(state.is_held() && serves && leaves) || by_fault,
                "{id} is taken out during a hold"
            );
            // From serving to stopping only by a fault of its own …
            if *phase == Phase::Ready && matches!(now_phase, Some(Phase::Stopping)) {
                assert!(by_fault, "{id} is stopped without a drain");
            }
            // … or by a drain that is at the gateway.
            if matches!(phase, Phase::Draining { .. })
                && matches!(now_phase, Some(Phase::Stopping))
                && !state.stopping
                && !by_fault
            {
                let at_gateway = self.table.iter().find(|s| s.replica == *id);
                let serves = at_gateway.is_some_and(|s| s.mode == TrafficMode::Ready);
                let alive = self.replica_runs(*id);
                assert!(!(serves && alive), "{id} is stopped while the gateway sends to it");
            }
            // An attempt is never used again.
            if let Some(now) = state.replicas.get(&id.key()) {
                assert!(now.attempt >= id.attempt, "{id} went back to attempt {}", now.attempt);
            }
        }
        self.check_strategy(before, actions);
        if taken_out > 0 && !state.stopping && !was_stopping {
            let floor = self.own_floor();
            assert!(
                ready >= floor.min(ready + taken_out),
                "{taken_out} taken out, {ready} left, floor {floor}"
            );
        }
        for action in actions {
            match action {
                Action::StartRank { rank, .. } => {
                    assert!(!self.stopped.contains(rank), "{rank:?} is started after its stop");
                }
                Action::ApplyTraffic { servers, .. } => self.check_table(servers),
                _ => {}
            }
        }
        for action in actions {
            if let Action::StopRank { rank, .. } = action {
                self.stopped.insert(rank.clone());
            }
        }
    }

    /// Replicas of which the last failed attempt, this one or one before it, did not become healthy in time,
    /// with how many have failed.
    fn late_for_health(&self) -> BTreeMap<ReplicaId, u32> {
        let late = |trouble: &Option<String>| {
            trouble.as_deref().is_some_and(|why| why.contains("(healthy_deadline)"))
        };
        let replicas = self.state.replicas.iter().filter(|(_, r)| late(&r.trouble));
        let id = |key: &ReplicaKey| self.state.replica_id(key.release, key.replica);
        replicas.filter_map(|(key, r)| Some((id(key)?, r.failures))).collect()
    }

    /// Nobody's time is over before it had all of it while a controller was there.
    fn check_healthy_deadline(
        &mut self,
        before: &[(ReplicaId, Phase)],
        late_before: &BTreeMap<ReplicaId, u32>,
        actions: &[Action],
    ) {
        let late_now = self.late_for_health();
        for (id, phase) in before {
            let now = self.state.replicas.get(&id.key()).filter(|r| r.attempt == id.attempt);
            let stops = now.is_some_and(|r| r.phase == Phase::Stopping);
            let late = stops && late_now.get(id) != late_before.get(id);
            let from = self.healthy_from.get(id).filter(|_| late && *phase != Phase::Stopping);
            let Some((since, clock, away)) = from else { continue };
            // A clock that jumps makes deadlines come early or late.
            if *clock == self.clock_error_ms {
                let deadline = self.state.releases[&id.release].spec.rollout.healthy_deadline;
                let had = self.now.since(*since).saturating_sub(self.away.saturating_sub(*away));
                assert!(
                    had >= deadline,
                    "{id} had only {had:?} of {deadline:?} (healthy_deadline)"
                );
            }
        }
        for action in actions {
            let began = match action {
                Action::StartRank { rank, .. } => rank.replica,
                Action::AwaitToken { replica, .. }
                    if self.state.replicas.get(&replica.key()).is_some_and(|r| r.proved) =>
                {
                    *replica
                }
                _ => continue,
            };
            self.healthy_from.insert(began, (self.now, self.clock_error_ms, self.away));
        }
    }

    /// The strategy of the rollout under way, and its beginning: from the specs here.
    fn strategy(&self) -> Option<(&Rollout, Strategy)> {
        let rollout = self.state.rollout.as_ref().filter(|r| r.outcome.is_none())?;
        let written = self.state.releases[&rollout.to].spec.rollout.strategy?;
        rollout.from?;
        let undo = rollout.kind == RolloutKind::Undo;
        (written == Strategy::Recreate || !undo).then_some((rollout, written))
    }

    /// What each strategy promises.
    fn check_strategy(&self, before: &[(ReplicaId, Phase)], actions: &[Action]) {
        if self.state.stopping {
            return;
        }
        let Some((rollout, strategy)) = self.strategy() else { return };
        if strategy == Strategy::Recreate {
            for action in actions {
                let Action::StartRank { rank, .. } = action else { continue };
                let mine = rank.replica.release;
                // One that waits for its turn is no process yet.
                let there = |key: &ReplicaKey, r: &deciding::rollout::ReplicaState| {
                    key.release != mine && r.phase.is_live()
                };
                let other = self.state.replicas.iter().find(|(key, r)| there(key, r));
                let other = other.map(|(key, _)| key);
                assert!(other.is_none(), "recreate: {rank:?} starts while {other:?} is there");
            }
        }
        if strategy != Strategy::BlueGreen || rollout.direction != Direction::Forward {
            return;
        }
        let spec = &self.state.releases[&rollout.to].spec;
        let switch = spec.rollout.steps.len() + 1;
        // The successor of a move that the rollout ended is one more than the old set has.
        let of_old_set = |id: &ReplicaId| {
            Some(id.release) == rollout.from && !self.state.vacated.contains(&id.key())
        };
        for (id, phase) in before.iter().filter(|(id, _)| of_old_set(id)) {
            let now = self.state.replicas.get(&id.key()).filter(|r| r.attempt == id.attempt);
            let goes = now.is_some_and(|r| matches!(r.phase, Phase::Draining { .. }));
            // After the switch and its delay.
            assert!(
                !(goes && *phase == Phase::Ready && rollout.step <= switch + 1),
                "blue-green: {id} of the old set goes in step {}",
                rollout.step
            );
        }
        for action in actions {
            let Action::ApplyTraffic { servers, .. } = action else { continue };
            let gets = |new: bool| {
                servers
                    .iter()
                    .filter(|s| (s.replica.release == rollout.to) == new)
                    .any(|s| s.weight > 0 && s.mode == TrafficMode::Ready)
            };
            assert!(!(gets(true) && gets(false)), "blue-green: both sets get traffic");
            let whole = self.state.ready(rollout.to) >= spec.replicas.get();
            let old = rollout.from.map_or(0, |from| self.state.ready(from));
            assert!(
                !gets(true)
                    || old == 0
                    || rollout.step > switch
                    || (rollout.step == switch && whole),
                "blue-green: the switch comes in step {} with {} ready",
                rollout.step,
                self.state.ready(rollout.to)
            );
        }
    }

    /// The rollout under way, as far as it is checked from one event to the next.
    fn journey(&self) -> Option<(ReleaseNumber, Timestamp, bool, usize, bool)> {
        let rollout = self.state.rollout.as_ref()?;
        let forward = rollout.direction == Direction::Forward;
        Some((rollout.to, rollout.began, forward, rollout.step, rollout.outcome.is_some()))
    }

    /// Rollouts begin because a person asked, turn back at most once, to stable; a command's step is
    /// passed only by a good end of its newest run or by a person, and no run has the number of another.
    fn check_journey(
        &mut self,
        event: &EventKind,
        before: Option<(ReleaseNumber, Timestamp, bool, usize, bool)>,
        actions: &[Action],
    ) {
        for action in actions {
            if let Action::RunCommand { release, step, attempt, .. } = action {
                let last = self.runs.insert((*release, *step), *attempt);
                assert!(
                    last.is_none_or(|last| last < *attempt),
                    "attempt {attempt} of a command after {last:?}"
                );
            }
        }
        let Some(rollout) = &self.state.rollout else { return };
        let same = before.filter(|b| (b.0, b.1) == (rollout.to, rollout.began));
        let Some((to, _, was_forward, step, was_over)) = same else {
            let asked = matches!(event, EventKind::RolloutRequested { .. });
            assert!(asked, "{} began by itself", rollout.to);
            return;
        };
        let forward = rollout.direction == Direction::Forward;
        assert!(was_forward || !forward, "{to} turned back and forward again");
        assert!(!was_over || rollout.outcome.is_some(), "{to} had ended and goes on");
        if !forward && rollout.outcome.is_none() {
            assert_eq!(rollout.from, self.state.stable, "it goes back to something else");
        }
        let steps = &self.state.releases[&to].spec.rollout.steps;
        let by_person = matches!(event, EventKind::Promoted { .. } | EventKind::Skipped { .. });
        for (index, passed) in steps.iter().enumerate().take(rollout.step).skip(step) {
            if let (StepSpec::Run(_), false, true) = (passed, by_person, forward) {
                let run = self.runs.get(&(to, index)).copied();
                assert!(
                    run.is_some_and(|run| self.good_runs.contains(&(to, index, run))),
                    "step {index} of {to} was passed without a good end of its command"
                );
            }
        }
    }

    /// The floor, computed from the specs here and not by the decider.
    fn own_floor(&self) -> u32 {
        let state = &self.state;
        let at_rest = state.stable.and_then(|s| state.releases.get(&s)).map_or(0, |stable| {
            stable.spec.replicas.get().saturating_sub(self.may_be_missing(&stable.spec.rollout))
        });
        // In the step in which a rollout ends, its own floor and that of the rest both have a say.
        let ended = state.rollout.as_ref().and_then(|r| r.ended);
        let Some(rollout) = state.rollout.as_ref().filter(|_| ended.is_none_or(|e| e == self.now))
        else {
            return at_rest;
        };
        let Some(from) = rollout.from else { return 0 };
        let desired = state.wanted(from).min(state.wanted(rollout.to));
        let policy = &state.releases[&rollout.to].spec.rollout;
        let floor = match self.strategy() {
            // The person accepted its outage.
            Some((_, Strategy::Recreate)) => 0,
            Some((_, Strategy::BlueGreen)) => desired,
            _ => desired.saturating_sub(self.may_be_missing(policy)),
        };
        if ended.is_some() { floor.min(at_rest) } else { floor }
    }

    /// What the person allowed to be missing; with the floor ignored the decider was told one more.
    fn may_be_missing(&self, policy: &deciding::spec::RolloutSpec) -> u32 {
        let deciding::spec::Count::Number(n) = policy.max_unavailable else { unreachable!() };
        n - u32::from(self.bug == Some(Bug::IgnoreFloor))
    }

    fn check_table(&mut self, servers: &[TrafficServer]) {
        let mut sum = 0u32;
        for server in servers {
            let replica = self.state.replicas.get(&server.replica.key());
            let replica = replica.filter(|r| r.attempt == server.replica.attempt);
            if server.mode == TrafficMode::Ready {
                assert!(
                    replica.is_some_and(|r| r.phase == Phase::Ready),
                    "traffic to {}, which is not ready",
                    server.replica
                );
                assert!(
                    self.generated.contains(&server.replica),
                    "traffic to {}, which never generated a token",
                    server.replica
                );
                sum += u32::from(server.weight);
            }
            assert!(server.weight <= 256);
        }
        let back = self.state.active_rollout().filter(|r| r.direction != Direction::Forward);
        if let Some(from) = back.and_then(|r| r.from)
            && self.state.ready(from) >= self.own_floor().max(1)
        {
            let canary = servers.iter().find(|s| s.replica.release != from && s.weight > 0);
            assert!(
                canary.is_none() || self.comes_beside(from),
                "stable carries the floor, no more of it comes, and traffic goes to {canary:?}"
            );
        }
        let forward =
            self.state.active_rollout().is_some_and(|r| r.direction == Direction::Forward);
        let other =
            |s: &&TrafficServer| s.weight > 0 && Some(s.replica.release) != self.state.stable;
        if let Some(stable) = self.state.stable.filter(|_| !forward)
            && self.state.ready(stable) >= self.own_floor().max(1)
            && let Some(canary) = servers.iter().find(other)
        {
            let had_none = !self.wanted_table.iter().any(|s| other(&s));
            assert!(
                !had_none,
                "all traffic had returned to stable, and {canary:?} gets some again"
            );
            assert!(self.state.active_rollout().is_some(), "at rest {canary:?} gets traffic");
        }
        self.wanted_table = servers.to_vec();
        assert!(
            sum > 0 || self.state.ready_total() == 0,
            "replicas are ready and none of them gets traffic"
        );
    }

    /// A replica of the release starts or may, without one of another release being taken out for it first.
    fn comes_beside(&self, release: ReleaseNumber) -> bool {
        let plan =
            |key: &ReplicaKey| self.state.releases[&key.release].replica(key.replica).unwrap();
        let stays = |key: &ReplicaKey| {
            let others = self.state.replicas.iter().filter(|(other, _)| other.release != release);
            let mut others = others.filter(|(_, r)| r.phase.is_live() && !r.retiring);
            others.any(|(other, _)| plan(other).conflicts_with(plan(key)))
        };
        let of_release = self.state.replicas.iter().filter(|(key, _)| key.release == release);
        of_release.filter(|(_, r)| r.failures == 0).any(|(key, r)| match r.phase {
            Phase::Starting | Phase::Loading => true,
            Phase::Pending { .. } => !stays(key),
            _ => false,
        })
    }

    fn replica_runs(&self, id: ReplicaId) -> bool {
        let mut ranks = self.ranks.iter().filter(|(rank, _)| rank.replica == id).peekable();
        ranks.peek().is_some() && ranks.all(|(_, r)| r.running)
    }

    fn check_devices(&self) {
        let mut held: BTreeMap<(HostName, DeviceId), &RankId> = BTreeMap::new();
        for (id, rank) in self.ranks.iter().filter(|(_, r)| r.running) {
            for device in rank.plan.devices.iter().filter(|d| **d != DeviceId::Cpu) {
                let other = held.insert((rank.plan.host.clone(), device.clone()), id);
                assert!(other.is_none(), "{id:?} and {other:?} both run on {device}");
            }
        }
    }

    /// The journal alone gives the same state, and the state survives JSON.
    pub fn check_replay(&self) {
        let mut again = ServiceState::new(self.state.service.clone());
        for event in &self.journal {
            step(&mut again, event);
        }
        assert_eq!(again, self.state, "replay differs");
        let text = serde_json::to_string(&self.state).unwrap();
        let back: ServiceState = serde_json::from_str(&text).unwrap();
        assert_eq!(back, self.state, "JSON differs");
    }

    /// Nothing may move: a replica of stable waits for GPUs of one that serves in its stead, and
    /// that one cannot be taken out without falling below the floor.
    pub fn held_by_the_floor(&self) -> bool {
        let state = &self.state;
        let Some(stable) = state.stable.filter(|_| state.active_rollout().is_none()) else {
            return false;
        };
        let plan = |key: &ReplicaKey| state.releases[&key.release].replica(key.replica).unwrap();
        let mut waiting = state
            .replicas
            .iter()
            .filter(|(key, r)| key.release == stable && r.phase != Phase::Ready)
            .peekable();
        // Those that serve on the GPUs of one that waits: all of them would have to go.
        let in_its_stead = |key: &ReplicaKey| {
            let serves = state.replicas.iter().filter(|(other, o)| {
                other.release != stable
                    && o.phase == Phase::Ready
                    && plan(other).conflicts_with(plan(key))
            });
            u32::try_from(serves.count()).unwrap()
        };
        self.quiet()
            && waiting.peek().is_some()
            && waiting.all(|(key, r)| {
                let serving = in_its_stead(key);
                matches!(r.phase, Phase::Pending { .. })
                    && serving > 0
                    && state.ready_total() < self.own_floor() + serving
            })
    }

    /// At rest the world holds what the stable release says and nothing else.
    pub fn check_rest(&self) {
        let state = &self.state;
        assert!(
            state.active_rollout().is_none(),
            "the rollout has not ended: {:#?}",
            state.rollout
        );
        assert!(state.queued.is_none(), "a queued rollout was never begun");
        let mut expected = BTreeSet::new();
        if let Some(stable) = state.stable {
            let release = &state.releases[&stable];
            let plans = u32::try_from(release.replicas.len()).unwrap();
            let keys = (0..plans).map(|replica| ReplicaKey { release: stable, replica });
            let wanted: Vec<_> = keys.filter(|key| !state.vacated.contains(key)).collect();
            let there = release.spec.replicas.get() - state.lent(stable);
            assert_eq!(wanted.len(), usize::try_from(there).unwrap());
            for key in wanted {
                let replica = key.replica;
                let replica_state = &state.replicas[&key];
                assert_eq!(replica_state.phase, Phase::Ready, "{key}");
                expected.extend(release.rank_ids(replica, replica_state.attempt));
            }
            assert_eq!(state.condition(), Condition::Serving);
        } else {
            assert_eq!(state.condition(), Condition::Stopped);
        }
        assert_eq!(
            state.replicas.len(),
            state.replicas.keys().filter(|k| Some(k.release) == state.stable).count()
        );
        let runs: BTreeSet<RankId> =
            self.ranks.iter().filter(|(_, r)| r.running).map(|(id, _)| id.clone()).collect();
        assert_eq!(runs, expected, "the hosts hold something else than the release says");
        let served: BTreeSet<ReplicaId> = self
            .table
            .iter()
            .filter(|s| s.mode == TrafficMode::Ready && s.weight > 0)
            .map(|s| s.replica)
            .collect();
        let ready: BTreeSet<ReplicaId> = self.phases().into_iter().map(|(id, _)| id).collect();
        assert_eq!(served, ready, "the gateway sends elsewhere");
        if let Some(rollout) = &state.rollout {
            assert_eq!(self.recorded.get(&rollout.to), rollout.outcome.as_ref(), "not recorded");
        }
    }

    // ---- what happens -------------------------------------------------------------------------

    /// Lets the next thing happen.
    pub fn turn(&mut self) {
        if self.faults && self.rng.one_in(25) {
            self.fault();
        }
        let held = self.state.held.is_some();
        if self.faults
            && let Some(dice) = &mut self.holds
            && dice.one_in(if held { 15 } else { 40 })
        {
            self.count("login lost or back");
            self.tell(if held { EventKind::HoldEnded } else { Self::hold() });
        }
        self.tend_queue();
        let next_task = self.tasks.iter().map(|t| (t.due, t.sequence)).min();
        self.play_replaced();
        let tick = Timestamp(self.now.0 + if self.faults { 1_000 } else { 5_000 });
        // The decider names a moment of the controller's clock.
        let wake = next_wake(&self.state).filter(|_| self.bug != Some(Bug::StopTheClock));
        let wake = wake.map_or(tick, |w| {
            let at = w.0.saturating_add_signed(-self.clock_error_ms).max(self.now.0 + 1);
            Timestamp(at).min(tick)
        });
        match next_task {
            Some((due, sequence)) if due <= wake => {
                self.now = self.now.max(due);
                let index = self.tasks.iter().position(|t| t.sequence == sequence).unwrap();
                let task = self.tasks.swap_remove(index);
                self.carry_out(task);
            }
            _ => {
                self.now = wake;
                self.measure();
                self.tell(EventKind::Tick);
            }
        }
    }

    fn down_until(&self, host: &HostName) -> Option<Timestamp> {
        self.hosts_down.get(host).copied().filter(|until| *until > self.now)
    }

    fn later(&mut self, task: Task, at: Timestamp) {
        self.sequence += 1;
        self.tasks.push(Task { due: at, sequence: self.sequence, ..task });
    }

    fn nature(&self, rank: &RankId) -> Nature {
        self.natures.get(&rank.replica.release).copied().unwrap_or_default()
    }

    fn carry_out(&mut self, task: Task) {
        if task.epoch < self.epoch {
            let acts = !matches!(
                task.action,
                Action::AwaitToken { .. }
                    | Action::AwaitDrained { .. }
                    | Action::RunCommand { .. }
                    | Action::RecordOutcome { .. }
            );
            if acts && self.bug != Some(Bug::AcceptOldEpoch) {
                self.count("older epoch refused");
                // So it learns that it was replaced.
                self.replaced = None;
            }
            if !acts || self.bug != Some(Bug::AcceptOldEpoch) {
                return;
            }
        }
        match task.action.clone() {
            Action::StartRank { rank, plan } => {
                if let Some(until) = self.down_until(&plan.host) {
                    let why = "the host is not reached".to_owned();
                    if self.rng.one_in(2) {
                        let refusal = StartRefusal::NotYet { why };
                        return self.tell(EventKind::RankRefused { rank, refusal });
                    }
                    return self.later(task, until);
                }
                self.start(rank, *plan);
            }
            Action::StopRank { rank, host, .. } => {
                if let Some(until) = self.down_until(&host) {
                    return self.later(task, until);
                }
                let freed = self.now.plus(Duration::from_millis(self.rng.below(8_000)));
                let there = self.state.replicas.get(&rank.replica.key());
                let serves = there
                    .is_some_and(|r| r.attempt == rank.replica.attempt && r.phase == Phase::Ready);
                if let Some(there) = self.ranks.get_mut(&rank)
                    && there.running
                {
                    // What is told late about one that died and came back under its number would
                    // be another attempt.
                    assert!(!serves, "a rank of {}, which is ready, is stopped", rank.replica);
                    there.running = false;
                    there.freed = freed;
                    if self.hung.remove(&rank.replica).is_some() {
                        self.count("hung engine stopped");
                    }
                }
                self.tell(EventKind::RankEnded { rank, how: "stopped".to_owned() });
            }
            Action::AwaitToken { replica, .. } => {
                if !self.replica_runs(replica) {
                    return; // its end is told by itself
                }
                match self.hung.get(&replica) {
                    Some(&FOR_EVER) => return,
                    Some(&until) if until > self.now => return self.later(task, until),
                    Some(_) => {
                        self.hung.remove(&replica);
                        self.count("hung engine answers again");
                    }
                    None => {}
                }
                let nature = self.natures.get(&replica.release).copied().unwrap_or_default();
                match nature {
                    Nature::Crashes => {
                        let rank =
                            self.ranks.keys().find(|r| r.replica == replica).unwrap().clone();
                        self.kill(&rank, "exit code 1: CUDA out of memory");
                    }
                    // `/health` is fine, and no token ever comes.
                    Nature::Hangs => self.count("engine lies in /health"),
                    _ => {
                        self.generated.insert(replica);
                        self.tell(EventKind::ReplicaReady { replica });
                    }
                }
            }
            Action::ApplyTraffic { version, servers } => {
                if self.gateway_down_until > self.now {
                    let why = "no such socket".to_owned();
                    return self.tell(EventKind::TrafficFailed { version, why });
                }
                // Left over from a controller that was killed: it was overtaken.
                if version >= self.table_version {
                    self.table = servers.to_vec();
                    self.table_version = version;
                }
                self.tell(EventKind::TrafficApplied { version });
            }
            Action::AwaitDrained { replica } => self.tell(EventKind::Drained { replica }),
            Action::RunCommand { release, step, attempt, run } => {
                let first = attempt == Attempt::FIRST;
                let end = match run.command.first().map(String::as_str) {
                    Some("fails") => RunEnd::Exited { code: 3 },
                    Some("fails-once") if first => RunEnd::Killed { signal: 11 },
                    Some("hangs") => RunEnd::TimedOut,
                    _ => RunEnd::Exited { code: 0 },
                };
                match end {
                    RunEnd::Exited { code: 0 } => {
                        self.count("command ends well");
                        self.good_runs.insert((release, step, attempt));
                    }
                    RunEnd::TimedOut => self.count("command hangs"),
                    _ => self.count("command fails"),
                }
                // Sometimes whoever runs it never says how a hanging one ended.
                if end == RunEnd::TimedOut && self.rng.one_in(3) {
                    return;
                }
                let output = vec!["the last line".to_owned()];
                self.tell(EventKind::RunEnded { release, step, attempt, end, output });
            }
            Action::RecordOutcome { release, outcome } => {
                if let Some(other) = self.recorded.insert(release, outcome.clone()) {
                    assert_eq!(other, outcome, "two outcomes of {release}");
                }
            }
        }
    }

    fn start(&mut self, rank: RankId, plan: RankPlan) {
        if let Some(there) = self.ranks.get(&rank) {
            // The same generation again: it conflicts instead of doubling.
            let kind = if there.running {
                EventKind::RankRunning { rank }
            } else {
                EventKind::RankEnded { rank, how: "exit code 1".to_owned() }
            };
            return self.tell(kind);
        }
        if self.nature(&rank) == Nature::Never {
            let refusal = StartRefusal::Never { why: "no such file".to_owned() };
            return self.tell(EventKind::RankRefused { rank, refusal });
        }
        let taken = self.ranks.values().any(|r| {
            r.plan.host == plan.host
                && r.plan.devices.iter().any(|d| *d != DeviceId::Cpu && plan.devices.contains(d))
                && !r.running
                && r.freed > self.now
        });
        let busy = taken && self.bug != Some(Bug::NoMemoryGate);
        let on_cpu = self.ranks.values().filter(|r| r.running && r.plan.devices == [DeviceId::Cpu]);
        let full = self.memory_for.is_some_and(|most| on_cpu.count() >= most);
        if busy || full {
            self.count("memory not yet free");
            let refusal = StartRefusal::NotYet { why: "GPU memory is not free".to_owned() };
            return self.tell(EventKind::RankRefused { rank, refusal });
        }
        assert!(!taken, "{rank:?} starts while the memory of the one before is not free");
        let entry = Rank { running: true, plan, freed: self.now };
        self.ranks.insert(rank.clone(), entry);
        self.check_devices();
        let replica = rank.replica;
        self.tell(EventKind::RankRunning { rank });
        if self.bug == Some(Bug::BelieveHealth) && self.replica_runs(replica) {
            self.tell(EventKind::ReplicaReady { replica });
        }
    }

    /// A rank ends by itself.
    pub fn kill(&mut self, rank: &RankId, how: &str) {
        let freed = self.now.plus(Duration::from_millis(self.rng.below(8_000)));
        if let Some(there) = self.ranks.get_mut(rank)
            && there.running
        {
            there.running = false;
            there.freed = freed;
            self.tell(EventKind::RankEnded { rank: rank.clone(), how: how.to_owned() });
        }
    }

    pub fn running(&self) -> Vec<RankId> {
        self.ranks.iter().filter(|(_, r)| r.running).map(|(id, _)| id.clone()).collect()
    }

    /// The devices that running ranks hold.
    pub fn held(&self) -> BTreeMap<(HostName, DeviceId), RankId> {
        let running = self.ranks.iter().filter(|(_, r)| r.running);
        running
            .flat_map(|(id, r)| {
                r.plan.devices.iter().map(|d| ((r.plan.host.clone(), d.clone()), id.clone()))
            })
            .collect()
    }

    pub fn disk_is_full(&self) -> bool {
        self.disk_full_until > self.now || !self.waiting.is_empty()
    }

    pub fn table(&self) -> &[TrafficServer] {
        &self.table
    }

    /// A host is without power, and its ranks are not heard of.
    pub fn lose_host(&mut self, host: &str, time: Duration) {
        self.hosts_down.insert(host.parse().unwrap(), self.now.plus(time));
    }

    pub fn break_gateway(&mut self, time: Duration) {
        self.gateway_down_until = self.now.plus(time);
    }

    /// What the gateway counted over the last seconds, by the nature of the releases.
    fn measure(&mut self) {
        if self.now.since(self.last_measured) < Duration::from_secs(5) {
            return;
        }
        self.last_measured = self.now;
        let mut windows = BTreeMap::new();
        let later: Vec<RankId> =
            self.running().into_iter().filter(|r| self.nature(r) == Nature::DiesLater).collect();
        for server in &self.table {
            if server.mode != TrafficMode::Ready || server.weight == 0 {
                continue;
            }
            let bad = self.natures.get(&server.replica.release) == Some(&Nature::Errors);
            let requests = 20;
            let errors = if bad { 7 } else { 0 };
            let window = Window { requests, errors, response_ms_sum: 2_000.0 };
            windows.insert(server.replica, window);
        }
        self.tell(EventKind::Measured { windows });
        for rank in later {
            if self.rng.one_in(30) {
                self.kill(&rank, "segmentation fault");
            }
        }
    }

    // ---- faults -------------------------------------------------------------------------------

    fn hold() -> EventKind {
        EventKind::HoldBegan { hosts: ["h0".parse().unwrap()].into(), why: "login-lost".to_owned() }
    }

    /// An engine lives on and answers nothing, for a while or until it is ended.
    fn hang(&mut self, replica: ReplicaId) {
        self.count("engine hangs after ready");
        let for_ever = self.rng.one_in(2);
        let until = self.now.plus(Duration::from_secs(self.rng.below(1_800)));
        self.hung.insert(replica, if for_ever { FOR_EVER } else { until });
        self.tell(EventKind::ReplicaUnready { replica, why: "timeout".to_owned() });
        let state = self.state.replicas.get(&replica.key());
        let serves = state.is_some_and(|r| r.attempt == replica.attempt && r.phase == Phase::Ready);
        if !serves {
            // From here on only a new token may bring traffic back. (It serves on where the full disk kept
            // the controller from taking note.)
            self.generated.remove(&replica);
        }
    }

    fn fault(&mut self) {
        match self.rng.below(14) {
            12 => {
                if self.state.retryable() {
                    self.count("person retries");
                }
                self.by_ada(|by| EventKind::Retried { by });
            }
            13 => {
                if self.rng.one_in(3) {
                    self.skip();
                }
            }
            8 => self.take_over(),
            9 => {
                self.count("clock jumps");
                let jump = i64::try_from(self.rng.below(1_200_000)).unwrap() - 600_000;
                self.clock_error_ms = jump;
            }
            10 => {
                self.count("disk full");
                self.disk_full_until = self.now.plus(Duration::from_secs(self.rng.below(90)));
            }
            0 => {
                let running = self.running();
                if !running.is_empty() {
                    let rank = running[self.rng.index(running.len())].clone();
                    self.count("rank dies");
                    self.kill(&rank, "killed");
                }
            }
            1 => {
                self.count("gateway away");
                let time = Duration::from_secs(self.rng.below(400));
                self.break_gateway(time);
            }
            2 => {
                let host: HostName = format!("h{}", self.rng.below(4)).parse().unwrap();
                let until = self.now.plus(Duration::from_secs(self.rng.below(600)));
                if self.rng.one_in(2) {
                    self.count("host dies");
                    let there: Vec<RankId> = self.running();
                    for rank in there {
                        if self.ranks[&rank].plan.host == host {
                            self.kill(&rank, "the host restarted");
                        }
                    }
                } else {
                    self.count("host not reached");
                }
                self.hosts_down.insert(host, until);
            }
            3 => {
                let long = self.rng.one_in(3);
                let away = if long { 60 + self.rng.below(5_400) } else { 0 };
                self.crash_for(Duration::from_secs(away));
            }
            4 => {
                let ready: Vec<ReplicaId> = self
                    .phases()
                    .into_iter()
                    .filter(|(_, p)| *p == Phase::Ready)
                    .map(|(id, _)| id)
                    .collect();
                if !ready.is_empty() && self.rng.one_in(3) {
                    let replica = ready[self.rng.index(ready.len())];
                    self.hang(replica);
                }
            }
            5 | 6 => {
                // An old event comes again, late.
                self.count("late or doubled event");
                let answers: Vec<&Event> = self
                    .journal
                    .iter()
                    .rev()
                    .take(60)
                    .filter(|e| {
                        matches!(
                            e.kind,
                            EventKind::RankRunning { .. }
                                | EventKind::RankEnded { .. }
                                | EventKind::RankRefused { .. }
                                | EventKind::TrafficApplied { .. }
                                | EventKind::TrafficFailed { .. }
                                | EventKind::RunEnded { .. }
                        )
                    })
                    .collect();
                if !answers.is_empty() {
                    let event = answers[self.rng.index(answers.len())].kind.clone();
                    // A report that a rank runs which has ended since would be a lie, not late.
                    self.tell(event);
                }
            }
            7 => {
                self.count("person pauses");
                self.by_ada(|by| EventKind::Paused { by });
            }
            _ => {
                self.count("person resumes or promotes");
                if self.rng.one_in(4) {
                    let all = self.rng.one_in(3);
                    self.by_ada(|by| EventKind::Promoted { all, by, step: None, reason: None });
                } else if self.rng.one_in(8) {
                    self.count("person aborts");
                    self.by_ada(|by| EventKind::Aborted { by, reason: None });
                } else {
                    self.by_ada(|by| EventKind::Resumed { by });
                }
            }
        }
    }

    fn skip(&mut self) {
        if self.state.skippable().is_some() {
            self.count("person skips");
        }
        let reason = "it is known".to_owned();
        self.by_ada(|by| EventKind::Skipped { by, reason });
    }

    fn awaited_run(&self) -> Option<Run> {
        let (rollout, run) = self.state.awaited_run()?;
        Some((rollout.to, rollout.step, run.attempt))
    }

    /// Whoever ran this command is gone.
    fn lose_command(&mut self, lost: Option<Run>) {
        let Some((release, step, attempt)) = lost.filter(|_| self.awaited_run() == lost) else {
            return;
        };
        self.count("command lost with its controller");
        if self.bug == Some(Bug::RunAgainUnderItsName) {
            if let Some(StepSpec::Run(run)) =
                self.state.releases[&release].spec.rollout.steps.get(step)
            {
                let run = Box::new(run.clone());
                let again = vec![Action::RunCommand { release, step, attempt, run }];
                let journey = self.journey();
                self.check_journey(&EventKind::Tick, journey, &again);
                self.take(again);
            }
            return;
        }
        self.tell(EventKind::RunLost { release, step, attempt });
    }

    /// The controller dies: of what was under way some was done and nobody heard of it, some was
    /// never done, some goes on. A new one has the journal.
    pub fn crash(&mut self) {
        self.crash_for(Duration::ZERO);
    }

    /// The same, and for so long there is no other one.
    pub fn crash_for(&mut self, away: Duration) {
        self.count("controller killed");
        self.say(|| format!("## the controller is killed; the next one comes after {away:?}"));
        self.journal.truncate(self.durable);
        self.waiting.clear();
        let (read, mut again) = self.checkpoint.clone();
        let read = if self.bug == Some(Bug::ReplayTwice) { read.saturating_sub(20) } else { read };
        for event in self.journal.iter().skip(read) {
            let text = serde_json::to_string(event).unwrap();
            step(&mut again, &serde_json::from_str(&text).unwrap());
        }
        assert_eq!(again, self.state, "replay differs");
        let text = serde_json::to_string(&again).unwrap();
        self.state = serde_json::from_str(&text).unwrap();
        self.checkpoint = (self.journal.len(), again);
        let (seen_alive, lost) = (self.clock(), self.awaited_run());
        self.now = self.now.plus(away);
        let tasks = std::mem::take(&mut self.tasks);
        for task in tasks {
            match self.rng.below(3) {
                0 => {}
                // A command is ended before it is run again.
                _ if matches!(task.action, Action::RunCommand { .. }) => {}
                // What a replaced controller sent is refused also when nobody hears of it.
                1 if task.epoch < self.epoch => {}
                1 => self.silently(&task.action),
                _ => self.tasks.push(task),
            }
        }
        self.make_good(seen_alive, away);
        let mut actions = outstanding(&self.state);
        if self.bug == Some(Bug::ForgetOutstanding) {
            actions.clear();
        }
        self.take(actions);
        self.lose_command(lost);
        self.hosts_report();
        if self.bug == Some(Bug::LoseQueued) {
            self.wishes.clear();
        }
    }

    /// What the next controller does first: it writes down that nobody was there. (Not on a full disk.)
    fn make_good(&mut self, seen_alive: Timestamp, away: Duration) {
        let runs = self.state.active_rollout().is_some()
            || self.state.replicas.values().any(|r| r.phase != Phase::Ready);
        let is_held = self.state.held.is_some();
        if away.is_zero() || is_held || !runs || self.disk_full_until > self.now {
            return;
        }
        self.count("nobody there for long");
        self.away += away;
        if self.bug != Some(Bug::CountTheAbsence) {
            let why = "no controller was there".to_owned();
            self.decide_at(EventKind::HoldBegan { hosts: BTreeSet::new(), why }, seen_alive);
            self.decide(EventKind::HoldEnded);
        }
    }

    /// The hosts say what runs: whatever ended while nobody listened is told now.
    fn hosts_report(&mut self) {
        let state = &self.state;
        let gone: Vec<RankId> = state
            .replicas
            .iter()
            .filter(|(_, r)| {
                matches!(r.phase, Phase::Loading | Phase::Ready | Phase::Draining { .. })
            })
            .flat_map(|(key, r)| state.releases[&key.release].rank_ids(key.replica, r.attempt))
            .filter(|rank| self.ranks.get(rank).is_none_or(|there| !there.running))
            .collect();
        for rank in gone {
            self.tell(EventKind::RankEnded { rank, how: "it is not there any more".to_owned() });
        }
    }

    /// Another controller takes the hosts over, knowing what the first one journaled. The first one
    /// lives, has tasks under way and may decide more, until a host tells it.
    fn take_over(&mut self) {
        if !self.waiting.is_empty() {
            return;
        }
        self.count("another controller takes over");
        self.say(|| "## another controller takes over".to_owned());
        let until = self.now.plus(Duration::from_mins(5));
        self.replaced = Some(Replaced { state: self.state.clone(), epoch: self.epoch, until });
        self.epoch += 1;
        let (actions, lost) = (outstanding(&self.state), self.awaited_run());
        self.take(actions);
        self.lose_command(lost);
    }

    /// What a replaced controller does in its ignorance.
    fn play_replaced(&mut self) {
        let Some(mut replaced) = self.replaced.take().filter(|r| r.until > self.now) else {
            return;
        };
        if self.rng.one_in(8) {
            let ready = replaced.state.replicas.iter().find(|(_, r)| r.phase == Phase::Ready);
            let id = ready.and_then(|(k, _)| replaced.state.replica_id(k.release, k.replica));
            let kind = match (self.rng.below(3), id) {
                (0, Some(replica)) => {
                    EventKind::ReplicaUnready { replica, why: "not reached".to_owned() }
                }
                (1, _) => EventKind::Aborted { by: "bob".to_owned(), reason: None },
                _ => EventKind::Tick,
            };
            let event = Event { at: self.clock(), kind };
            for action in step(&mut replaced.state, &event) {
                self.sequence += 1;
                let due = self.now.plus(Duration::from_millis(self.rng.below(3_000)));
                let epoch = replaced.epoch;
                self.tasks.push(Task { due, sequence: self.sequence, action, epoch });
            }
        }
        self.replaced = Some(replaced);
    }

    /// Done, and nobody heard of it.
    fn silently(&mut self, action: &Action) {
        match action {
            Action::StartRank { rank, plan } => {
                let plan = (**plan).clone();
                let busy = self.ranks.values().any(|r| {
                    r.plan.host == plan.host
                        && r.plan.devices.iter().any(|d| plan.devices.contains(d))
                        && (r.running || r.freed > self.now)
                });
                let never = self.nature(rank) == Nature::Never;
                // Started before the kill: only if it could have been, and no stop came since.
                if !busy && !never && !self.ranks.contains_key(rank) && !self.stopped.contains(rank)
                {
                    let entry = Rank { running: true, plan, freed: self.now };
                    self.ranks.insert(rank.clone(), entry);
                    self.check_devices();
                }
            }
            Action::StopRank { rank, .. } => {
                if let Some(there) = self.ranks.get_mut(rank) {
                    there.running = false;
                    there.freed = self.now;
                }
            }
            Action::ApplyTraffic { version, servers } if *version >= self.table_version => {
                self.table.clone_from(servers);
                self.table_version = *version;
            }
            _ => {}
        }
    }

    /// Faults end; whoever holds the rollout lets it go.
    pub fn calm(&mut self) {
        self.faults = false;
        self.gateway_down_until = Timestamp(0);
        self.hosts_down.clear();
        self.disk_full_until = Timestamp(0);
        self.replaced = None;
        if self.holds.is_some() {
            self.tell(EventKind::HoldEnded);
        }
        self.by_ada(|by| EventKind::Resumed { by });
    }

    /// A person who passes approvals and gives up what failed or is inconclusive.
    pub fn person(&mut self) {
        let Some(rollout) = self.state.active_rollout() else { return };
        let paused = rollout.paused.is_some();
        if paused && !self.faults {
            self.by_ada(|by| EventKind::Resumed { by });
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
                self.by_ada(|by| EventKind::Retried { by });
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
        self.tasks.is_empty()
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
