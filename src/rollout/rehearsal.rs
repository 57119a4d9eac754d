//! The world of a forecast: everything that is asked for succeeds, after the time it was measured to
//! take, or at once where that is not known. The decider is the real one.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::action::Action;
use super::analysis::{LimitRule, Window};
use super::checks::CheckResult;
use super::event::{Event, EventKind};
use super::forecast::{Forecast, How, Move, Stage, Timings, Verb, stage_titles};
use super::release::{Release, ReplicaPlan};
use super::run_step::RunEnd;
use super::state::{Direction, Gate, Outcome, RolloutKind, ServiceState};
use super::step::{next_wake, outstanding, step};
use super::told;
use crate::base::{DeviceId, HostName, ReplicaId, ReplicaKey, Timestamp, TrafficMode};
use crate::spec::{RolloutSpec, Strategy};

/// Events after which a forecast is given up; a rollout of a thousand replicas needs far fewer.
const MAX_EVENTS: usize = 200_000;

/// Runs the whole journey. The error says what it would stand still for.
pub(super) fn run(
    state: &ServiceState,
    release: &Release,
    kind: RolloutKind,
    timings: &Timings,
) -> Result<Forecast, String> {
    let forecast = travel(state, release, kind, timings)?.forecast;
    // What was ready before counts: nobody asks a plan for more than there is.
    match forecast.starved(forecast.floor.min(state.ready_total())) {
        Some(why) => Err(why),
        None => Ok(forecast),
    }
}

/// The state at the end of the journey.
pub(super) fn end(state: &ServiceState, release: &Release) -> Result<ServiceState, String> {
    travel(state, release, RolloutKind::Apply, &Timings::default()).map(|world| world.state)
}

fn travel<'a>(
    state: &ServiceState,
    release: &Release,
    kind: RolloutKind,
    timings: &'a Timings,
) -> Result<World<'a>, String> {
    let titles = stage_titles(release, kind, state.stable.is_none());
    let mut world = World::new(state.clone(), timings, titles, places(release));
    world.take(outstanding(&world.state));
    world.settle(MAX_EVENTS / 10);
    world.begin(release, kind);
    for _ in 0..MAX_EVENTS {
        let Some(rollout) = world.state.active_rollout() else { break };
        if let Direction::Back { why, .. } = &rollout.direction {
            return Err(standstill(why));
        }
        if let Some(Gate::Failed { why }) = &rollout.gate {
            return Err(standstill(why));
        }
        world.turn()?;
    }
    world.close_stage();
    match world.state.rollout.as_ref().and_then(|r| r.outcome.as_ref()) {
        Some(Outcome::Completed) => Ok(world),
        Some(Outcome::RolledBack { why } | Outcome::Failed { why } | Outcome::Aborted { why }) => {
            Err(standstill(why))
        }
        None => Err("the journey has no end".to_owned()),
    }
}

/// The state when the rollout under way is over: taken back, or at its own end. Who holds it gives way, every approval
/// is given, and what failed and waits for a person is taken back.
pub(super) fn over(state: &ServiceState, taken_back: bool) -> Result<ServiceState, String> {
    let timings = Timings::default();
    let mut world = World::new(state.clone(), &timings, Vec::new(), Places::new());
    world.state.held = None;
    world.state.queued = None;
    let rollout = state.active_rollout().ok_or_else(|| "nothing is under way".to_owned())?;
    let now = state.now;
    let by = "forecast".to_owned();
    let failed = matches!(rollout.gate, Some(Gate::Failed { .. }));
    world.take(outstanding(&world.state));
    if rollout.direction == Direction::Forward && (taken_back || failed) {
        world.feed_at(now, EventKind::Aborted { by, reason: None });
    } else if rollout.paused.is_some() {
        world.feed_at(now, EventKind::Resumed { by, reason: None });
    } else {
        world.feed_at(now, EventKind::Tick);
    }
    for _ in 0..MAX_EVENTS {
        if world.state.active_rollout().is_none() {
            world.settle(MAX_EVENTS / 10);
            return Ok(world.state);
        }
        world.turn()?;
    }
    Err("the journey has no end".to_owned())
}

/// The state when something that was asked of a service outside of rollouts has come to its end (moves, replicas that are
/// taken out or come back), and the fewest ready replicas on the way.
pub(super) fn told(state: &ServiceState, kind: EventKind) -> Result<(ServiceState, u32), String> {
    let timings = Timings::default();
    let mut world = World::new(state.clone(), &timings, Vec::new(), Places::new());
    world.take(outstanding(&world.state));
    world.settle(MAX_EVENTS / 10);
    let mut lowest = state.ready_total().min(world.state.ready_total());
    world.feed_at(world.state.now, kind);
    for _ in 0..MAX_EVENTS {
        lowest = lowest.min(world.state.ready_total());
        if world.queue.is_empty() && world.state.moves.is_empty() {
            return match world.state.move_trouble.take() {
                Some(why) => Err(why),
                None => Ok((world.state, lowest)),
            };
        }
        world.turn()?;
    }
    Err("it has no end".to_owned())
}

/// In a rehearsal nothing fails, so only the progress deadline does: what counts is what it waited for.
fn standstill(why: &str) -> String {
    match why.split_once("(progress_deadline): ") {
        Some((_, awaited)) => format!("the rollout would stand still: {awaited}"),
        None => why.to_owned(),
    }
}

type Places = BTreeMap<(HostName, DeviceId), ReplicaKey>;

/// The devices of a release, with the replica that is to have each.
fn places(release: &Release) -> Places {
    let mut places = Places::new();
    for (index, plan) in (0..).zip(&release.replicas) {
        for (host, device) in plan.gpus() {
            let key = ReplicaKey { release: release.number, replica: index };
            places.insert((host.clone(), device.clone()), key);
        }
    }
    places
}

struct World<'a> {
    state: ServiceState,
    /// What is going to happen, by time and in the order in which it was begun.
    queue: BTreeMap<(Timestamp, u64), EventKind>,
    queued: u64,
    timings: &'a Timings,
    titles: Vec<String>,
    forecast: Forecast,
    stage: usize,
    stage_began: Timestamp,
    began: Timestamp,
    measuring: bool,
    places: Places,
    stopped: BTreeSet<ReplicaKey>,
    /// The step whose golden prompts and queries are under way.
    checked: Option<usize>,
}

impl<'a> World<'a> {
    fn new(state: ServiceState, timings: &'a Timings, titles: Vec<String>, places: Places) -> Self {
        let now = state.now;
        Self {
            state,
            queue: BTreeMap::new(),
            queued: 0,
            timings,
            titles,
            forecast: Forecast::default(),
            stage: 0,
            stage_began: now,
            began: now,
            measuring: false,
            places,
            stopped: BTreeSet::new(),
            checked: None,
        }
    }
}

impl World<'_> {
    /// Lets what is under way already come to its end, for instance replicas that are loading.
    fn settle(&mut self, most: usize) {
        for _ in 0..most {
            let Some(((at, _), event)) = self.queue.pop_first() else { break };
            self.feed_at(at, event);
        }
    }

    fn begin(&mut self, release: &Release, kind: RolloutKind) {
        self.measuring = true;
        self.began = self.state.now;
        self.stage_began = self.began;
        let ready = self.state.ready_total();
        self.forecast.lowest_ready = ready;
        self.forecast.stages = self
            .titles
            .iter()
            .map(|title| Stage {
                title: title.clone(),
                ready_after: ready,
                lowest_ready: ready,
                lowest_serving: ready,
                ..Stage::default()
            })
            .collect();
        let mut release = Box::new(release.clone());
        release.spec = told::within_limits(release.spec);
        let by = "forecast".to_owned();
        self.feed_at(
            self.began,
            EventKind::RolloutRequested {
                release,
                kind,
                by,
                limits: LimitRule::PRESENT,
                of_group: None,
            },
        );
        self.forecast.floor = self.state.floor();
        self.await_loan();
    }

    /// What is borrowed is free when the lender's replicas have drained and stopped.
    fn await_loan(&mut self) {
        let Some(to) = self.state.active_rollout().map(|r| r.to) else { return };
        let borrowing = self.state.releases.get(&to).and_then(|r| r.borrowing.as_ref());
        let Some(borrowing) = borrowing else { return };
        let lent = u32::try_from(borrowing.replicas.len()).unwrap_or(u32::MAX);
        let (drain, stop) = self.timings.lender;
        if drain.is_none()
            && let Some(stage) = self.forecast.stages.get_mut(self.stage)
        {
            stage.unknown.drains += lent;
        }
        let away = drain.unwrap_or_default() + stop.unwrap_or_default();
        self.later(away, EventKind::LoanReady { release: to });
    }

    /// The next thing happens: something begun comes to its end, or time goes on to where it matters.
    fn turn(&mut self) -> Result<(), String> {
        let due = self.queue.first_key_value().map(|((at, _), _)| *at);
        let gate = self.state.active_rollout().and_then(|r| r.gate.clone());
        let wake = match &gate {
            Some(Gate::Approve | Gate::Inconclusive { .. }) => None,
            Some(Gate::Analyse { until, .. }) => Some(*until),
            _ => next_wake(&self.state),
        };
        if let Some(due) = due
            && wake.is_none_or(|wake| due <= wake)
            && let Some((_, event)) = self.queue.pop_first()
        {
            self.feed_at(due, event);
            return Ok(());
        }
        match gate {
            Some(gate @ (Gate::Approve | Gate::Inconclusive { .. })) => {
                if let Some(stage) = self.forecast.stages.get_mut(self.stage) {
                    stage.unknown.person = true;
                    if let Gate::Inconclusive { why } = gate {
                        stage.inconclusive = Some(why);
                    }
                }
                let by = "forecast".to_owned();
                self.feed_at(
                    self.state.now,
                    EventKind::Promoted { all: false, by, step: None, reason: None },
                );
            }
            Some(Gate::Analyse { until, .. }) => {
                let good = Window { requests: 1_000_000, errors: 0, response_ms_sum: 1.0 };
                // Requests reach who has a weight or is asked for by the canary's rule, nobody else.
                let reached = self.state.traffic.iter().filter(|server| {
                    server.mode == TrafficMode::Ready && (server.weight > 0 || server.by_rule)
                });
                let windows = reached.map(|server| (server.replica, good)).collect();
                self.feed_at(self.state.now, EventKind::Measured { windows });
                if self.begin_checks() {
                    return Ok(());
                }
                // The time of the analysis counts from the first request.
                let until = match self.state.active_rollout().and_then(|r| r.gate.as_ref()) {
                    Some(Gate::Analyse { until, .. }) => *until,
                    _ => until,
                };
                self.feed_at(until, EventKind::Tick);
            }
            _ => {
                let next =
                    wake.ok_or_else(|| "nothing that could happen would bring it on".to_owned())?;
                self.feed_at(next, EventKind::Tick);
            }
        }
        Ok(())
    }

    /// Every golden prompt and query of the step will be as it should be, a query when it is due.
    /// Whether there are any that were not begun before.
    fn begin_checks(&mut self) -> bool {
        let Some((rollout, _, spec)) = self.state.analysing() else { return false };
        let (release, step) = (rollout.to, rollout.step);
        if self.checked.replace(step) == Some(step) {
            return false;
        }
        // Without a replica of the canary there is nobody to ask a golden prompt.
        let is_there = self.state.ready(release) > 0;
        let is_asked = |check: &str| is_there || !check.starts_with("golden ");
        let checks: Vec<_> = spec.checks().into_iter().filter(|(c, _)| is_asked(c)).collect();
        for (check, plan) in &checks {
            for nth in 0..plan.count {
                let (check, why) = (check.clone(), "forecast".to_owned());
                let result = CheckResult::Successful;
                let kind = EventKind::Checked { release, step, check, result, why };
                self.later(plan.due(nth), kind);
            }
        }
        !checks.is_empty()
    }

    fn feed_at(&mut self, at: Timestamp, kind: EventKind) {
        let ready_before = self.state.ready_total();
        let done = match &kind {
            EventKind::ReplicaReady { replica } => Some((*replica, Verb::Start)),
            EventKind::RankEnded { rank, .. } => Some((rank.replica, Verb::Stop)),
            _ => None,
        };
        let actions = step(&mut self.state, &Event { at, kind });
        let ready = self.state.ready_total();
        if self.measuring {
            self.forecast.outage |= ready == 0 && ready_before > 0;
            if let Some((replica, verb)) = done {
                self.note_done(replica, verb, ready);
            }
            self.note(ready, &actions);
        }
        self.take(actions);
    }

    fn elapsed_ms(&self) -> u64 {
        self.state.now.0.saturating_sub(self.began.0)
    }

    fn note_done(&mut self, replica: ReplicaId, verb: Verb, ready: u32) {
        let now = self.elapsed_ms();
        let moves = self.forecast.stages.iter_mut().rev().flat_map(|s| s.moves.iter_mut().rev());
        for entry in moves.filter(|m| m.replica == replica && m.verb == verb).take(1) {
            entry.done_ms = now;
            entry.ready_after = ready;
        }
    }

    /// Writes the stage down that this event belongs to: the step that is current after it.
    fn note(&mut self, ready: u32, actions: &[Action]) {
        let Some(rollout) = self.state.rollout.as_ref() else { return };
        let steps = self.titles.len().saturating_sub(1);
        // Where the steps are skipped, the first stage is the last.
        let now_at = if steps == 0 { 0 } else { rollout.step.min(steps) };
        let to = rollout.to;
        let percent = self.state.release_weight_percent(to);
        let serving = self.state.serving_total();
        let lowest_ready = self.forecast.lowest_ready.min(ready);
        self.forecast.lowest_ready = lowest_ready;
        // What the event that passed a step sets going belongs to the next one.
        if now_at != self.stage {
            self.close_stage();
            self.stage = now_at;
            for stage in self.forecast.stages.iter_mut().skip(now_at) {
                stage.lowest_ready = ready;
                stage.lowest_serving = serving;
            }
        }
        // A step that was passed leaves everything as it is: later stages begin from here.
        for stage in self.forecast.stages.iter_mut().skip(self.stage) {
            stage.ready_after = ready;
            stage.idle_after = ready.saturating_sub(serving);
            stage.new_weight_percent = percent;
        }
        if let Some(stage) = self.forecast.stages.get_mut(self.stage) {
            stage.lowest_ready = stage.lowest_ready.min(ready);
            stage.lowest_serving = stage.lowest_serving.min(serving);
        }
        for action in actions {
            let entry = match action {
                Action::StartRank { rank, .. } if rank.rank == 0 => {
                    self.entry(rank.replica, Verb::Start, ready)
                }
                Action::StopRank { rank, .. } if rank.rank == 0 => {
                    self.stopped.insert(rank.replica.key());
                    self.entry(rank.replica, Verb::Stop, ready)
                }
                _ => continue,
            };
            let Some(stage) = self.forecast.stages.get_mut(self.stage) else { return };
            match entry.verb {
                Verb::Start => stage.starts.push(entry.replica),
                Verb::Stop => stage.stops.push(entry.replica),
            }
            stage.moves.push(entry);
        }
    }

    fn entry(&self, replica: ReplicaId, verb: Verb, ready: u32) -> Move {
        let how = match verb {
            Verb::Start => self.how_placed(replica.key()),
            Verb::Stop => self.why_gone(replica.key()),
        };
        let now = self.elapsed_ms();
        Move { replica, verb, how, at_ms: now, done_ms: now, ready_after: ready }
    }

    fn how_placed(&self, key: ReplicaKey) -> How {
        let plan = |k: &ReplicaKey| self.state.releases.get(&k.release)?.replica(k.replica);
        let Some(mine) = plan(&key) else { return How::Beside };
        let mine: BTreeSet<_> = mine.gpus().collect();
        let before = |other: &&ReplicaKey| {
            **other != key && plan(other).is_some_and(|p| p.gpus().any(|gpu| mine.contains(&gpu)))
        };
        let replicas: Vec<ReplicaKey> = self.stopped.iter().filter(before).copied().collect();
        if replicas.is_empty() { How::Beside } else { How::InPlaceOf { replicas } }
    }

    fn why_gone(&self, key: ReplicaKey) -> How {
        let Some(release) = self.state.releases.get(&key.release) else { return How::Surplus };
        let rollout = self.state.rollout.as_ref();
        if rollout.is_some_and(|r| self.state.strategy(r) == Strategy::Recreate) {
            return How::GoesFirst;
        }
        let plan = release.replica(key.replica);
        let needed_by = plan.into_iter().flat_map(ReplicaPlan::gpus).find_map(|(host, device)| {
            self.places.get(&(host.clone(), device.clone())).filter(|k| **k != key)
        });
        if let Some(for_replica) = needed_by {
            return How::MakesWay { for_replica: *for_replica };
        }
        let complete = self
            .state
            .rollout
            .as_ref()
            .is_some_and(|r| self.state.ready(r.to) >= self.state.wanted(r.to));
        if complete { How::Surplus } else { How::MakesRoom }
    }

    fn close_stage(&mut self) {
        let now = self.state.now;
        if let Some(stage) = self.forecast.stages.get_mut(self.stage) {
            stage.took_ms = now.0.saturating_sub(self.stage_began.0);
        }
        self.stage_began = now;
    }

    fn later(&mut self, after: Duration, event: EventKind) {
        // What is under way when the rollout begins is over by then.
        let after = if self.measuring { after } else { Duration::ZERO };
        self.queued += 1;
        self.queue.insert((self.state.now.plus(after), self.queued), event);
    }

    fn take(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::StartRank { rank, .. } => {
                    self.later(Duration::ZERO, EventKind::RankRunning { rank });
                }
                Action::StopRank { rank, .. } => {
                    let how = "stopped".to_owned();
                    let (_, stop) = self.out_of_service();
                    self.later(stop, EventKind::RankEnded { rank, how });
                }
                Action::AwaitToken { replica, .. } => {
                    let load = self.load(replica.key());
                    self.later(load, EventKind::ReplicaReady { replica });
                }
                Action::ApplyTraffic { version, .. } => {
                    self.later(Duration::ZERO, EventKind::TrafficApplied { version });
                }
                Action::AwaitDrained { replica } => {
                    if self.measuring
                        && self.timings.drain.is_none()
                        && let Some(stage) = self.forecast.stages.get_mut(self.stage)
                    {
                        stage.unknown.drains += 1;
                    }
                    let (drain, _) = self.out_of_service();
                    self.later(drain, EventKind::Drained { replica });
                }
                // How long a command takes is not known; a good one ends well.
                Action::RunCommand { release, step, attempt, .. } => {
                    if self.measuring
                        && let Some(stage) = self.forecast.stages.get_mut(self.stage)
                    {
                        stage.unknown.commands += 1;
                    }
                    let (end, output) = (RunEnd::Exited { code: 0 }, Vec::new());
                    let ended = EventKind::RunEnded { release, step, attempt, end, output };
                    self.later(Duration::ZERO, ended);
                }
                Action::RecordOutcome { .. } => {}
            }
        }
    }

    /// Drain and stop of a replica. A stop longer than the progress deadline is told as a warning, too: a
    /// journey that waits for something that ends does not stand still. (A drain does not count.)
    fn out_of_service(&self) -> (Duration, Duration) {
        let (drain, stop) = (self.timings.drain, self.timings.stop);
        let (drain, stop) = (drain.unwrap_or_default(), stop.unwrap_or_default());
        let policy = self.state.active_rollout().and_then(|r| self.state.policy(r.to));
        let limit = policy.and_then(RolloutSpec::progress_limit);
        let most = limit.map(|limit| limit.saturating_sub(Duration::from_secs(1)));
        (drain, most.map_or(stop, |most| stop.min(most)))
    }

    /// A load that was measured to be longer than its deadline is told as a warning beside the plan;
    /// here the journey goes on.
    fn load(&mut self, key: ReplicaKey) -> Duration {
        let Some(load) = self.timings.loads.get(&key).copied() else {
            if self.measuring
                && let Some(stage) = self.forecast.stages.get_mut(self.stage)
            {
                stage.unknown.loads += 1;
            }
            return Duration::ZERO;
        };
        let deadline = self.state.policy(key.release).map(|p| p.healthy_deadline);
        deadline.map_or(load, |d| load.min(d.saturating_sub(Duration::from_secs(1))))
    }
}
