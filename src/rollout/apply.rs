//! Writing down what happened. Nothing is decided here beyond what the event itself says; what
//! follows from it is found by the rounds after it.

use super::action::Action;
use super::analysis::{AnalysisRun, LimitRule, Window};
use super::checks::CheckResult;
use super::engine_samples::EngineSamples;
use super::event::{EventKind, StartRefusal};
use super::release::Release;
use super::state::{Direction, Gate, Outcome, Phase, Rollout, RolloutKind};
use super::step::Decider;
use crate::base::{
    RankId, ReleaseNumber, ReplicaId, ReplicaKey, Timestamp, TrafficMode, TrafficServer, text,
};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Longest cause that is kept, in characters: the last lines of a log fit.
const MAX_CAUSE: usize = 400;

/// Longest answer of an engine that is kept, in characters: it is a part of a cause.
const MAX_ANSWER: usize = 240;

/// A gateway that refused is told again after this long.
const TRAFFIC_RETRY: Duration = Duration::from_secs(2);

impl Decider<'_> {
    pub(super) fn apply(&mut self, event: &EventKind) {
        match event {
            EventKind::Tick => {}
            EventKind::RolloutRequested { release, kind, by, limits, of_group } => {
                self.begin_rollout(release, *kind, by, *limits, *of_group);
            }
            EventKind::Paused { by, reason } => self.pause(by, reason.as_deref()),
            EventKind::Resumed { .. } => self.resume(),
            EventKind::Promoted { all, by, step, reason } => {
                self.promote(*all, *step, by, reason.as_deref());
            }
            EventKind::Retried { .. } => self.retry(),
            EventKind::Skipped { by, reason } => self.skip(by, reason),
            EventKind::Queued { wish, replace } => self.queue(wish, *replace),
            EventKind::QueueCancelled { asked, .. } => self.unqueue(*asked, None),
            EventKind::QueueRefused { asked, why } => self.unqueue(*asked, Some(why)),
            EventKind::RunEnded { release, step, attempt, end, output } => {
                self.run_ended(*release, *step, *attempt, end, output);
            }
            EventKind::RunLost { release, step, attempt } => {
                self.run_lost(*release, *step, *attempt);
            }
            EventKind::Aborted { by, reason } => self.abort(by, reason.as_deref()),
            EventKind::StopRequested { by, reason } => self.stop_service(by, reason.as_deref()),
            EventKind::MovesRequested { release, moves, why, .. } => {
                self.request_moves(*release, moves, why);
            }
            EventKind::MovesCancelled { by } => {
                self.cancel_moves(Some(&format!("{by} cancelled it")));
            }
            EventKind::HoldBegan { hosts, why, cause } => self.hold(hosts, why, *cause),
            EventKind::HoldEnded => self.release_hold(),
            EventKind::Lent { borrower, to, what } => self.lend(borrower, *to, what),
            EventKind::TakenOut { release, replicas, host } => {
                self.take_out_for(*release, replicas, host);
            }
            EventKind::LentReturned { replica, elsewhere } => self.take_back(*replica, *elsewhere),
            EventKind::LoanReady { release } => self.loan_ready(*release),
            EventKind::RankRunning { rank } => self.rank_running(rank),
            EventKind::RankRefused { rank, refusal } => self.rank_refused(rank, refusal),
            EventKind::RankEnded { rank, how } => self.rank_ended(rank, how),
            EventKind::ReplicaReady { replica } => self.replica_ready(*replica),
            EventKind::NoTokenYet { replica, why } => self.no_token_yet(*replica, why),
            EventKind::ReplicaUnready { replica, why } => self.replica_unready(*replica, why),
            EventKind::TrafficApplied { version } => self.traffic_applied(*version),
            EventKind::TrafficFailed { version, why, lacks_backend } => {
                self.traffic_failed(*version, why, *lacks_backend);
            }
            EventKind::Drained { replica } => self.drained(*replica),
            EventKind::Measured { windows } => {
                self.begin_analysis(windows);
                for (replica, window) in windows {
                    self.measured(*replica, window);
                }
            }
            EventKind::Unmeasured => self.unmeasured(),
            EventKind::Sampled { samples } => self.sampled(samples),
            EventKind::Checked { release, step, check, result, why } => {
                self.checked(*release, *step, check, *result, why);
            }
        }
    }

    fn begin_rollout(
        &mut self,
        release: &Release,
        kind: RolloutKind,
        by: &str,
        limits: LimitRule,
        of_group: Option<Timestamp>,
    ) {
        let number = release.number;
        let known = self.state.releases.contains_key(&number);
        // What is lent has to come back first: its place belongs to the stable release.
        let lends = self.state.binding_loan().is_some();
        if known || lends || self.state.stopping || self.state.active_rollout().is_some() {
            return;
        }
        // The latest wish counts: whatever waited is overtaken by what begins now.
        self.state.queued = None;
        self.state.queue_trouble = None;
        let from = self.state.stable;
        let now = self.now();
        let steps = release.spec.rollout.journey().len();
        self.state.releases.insert(number, release.clone().into());
        let at_once = from.is_none() || kind == RolloutKind::Undo || release.keeps_any();
        let first_step = if at_once { steps } else { 0 };
        self.state.rollout = Some(Rollout {
            from,
            to: number,
            kind,
            direction: Direction::Forward,
            step: first_step,
            step_since: now,
            step_settled: None,
            gate: None,
            paused: None,
            paused_by: None,
            paused_why: None,
            began: now,
            progress: now,
            by: text::clean(by, 100),
            of_group,
            measured_new: Window::default(),
            measured_old: Window::default(),
            limits,
            analysis: AnalysisRun::default(),
            run: None,
            skipped: Vec::new(),
            verdict: None,
            outcome: None,
            ended: None,
        });
        self.take_over_kept();
    }

    fn active(&mut self) -> Option<&mut Rollout> {
        self.state.rollout.as_mut().filter(|r| r.outcome.is_none())
    }

    fn pause(&mut self, by: &str, why: Option<&str>) {
        let now = self.now();
        let pausable = self.active().filter(|r| {
            r.direction == Direction::Forward
                && !matches!(r.gate, Some(Gate::Failed { .. }))
                && r.paused.is_none()
        });
        let Some(since) = pausable.map(|r| r.step_since) else { return };
        // What a hold has lasted by now counts now: the end of the pause knows only of the pause.
        let owed = self.state.held.as_mut().map(|held| {
            let owed = now.since(held.owed_from.max(since));
            held.owed_from = now;
            owed
        });
        if let Some(rollout) = self.active() {
            rollout.shift_step(owed.unwrap_or_default());
            rollout.paused = Some(now);
            rollout.paused_by = Some(by.to_owned());
            rollout.paused_why =
                why.map(|why| text::clean(why.trim(), 300)).filter(|why| !why.is_empty());
        }
    }

    pub(super) fn resume(&mut self) {
        let now = self.now();
        if let Some(rollout) = self.active()
            && let Some(since) = rollout.paused.take()
        {
            // The time of the pause does not count: the step's clock is moved by it, the progress
            // clock starts again (Nomad's rule).
            rollout.paused_by = None;
            rollout.paused_why = None;
            let pause = now.since(since.max(rollout.step_since));
            // What a hold lasts beyond the pause counts when it ends.
            if let Some(held) = &mut self.state.held {
                held.owed_from = now;
            }
            let Some(rollout) = self.active() else { return };
            rollout.shift_step(pause);
            rollout.progress = now;
        }
    }

    fn abort(&mut self, by: &str, reason: Option<&str>) {
        let why = match reason.filter(|r| !r.trim().is_empty()) {
            Some(reason) => format!("aborted by {by}: {reason}"),
            None => format!("aborted by {by}"),
        };
        if self.active().is_some_and(|r| r.direction == Direction::Forward) {
            self.turn_back(&why, true);
            // Who aborts wants rest: nothing begins by itself after it.
            if self.state.queued.take().is_some() {
                let why = format!("the rollout that it waited for was {why}");
                self.state.queue_trouble = Some(text::clean(&why, MAX_CAUSE));
            }
        }
    }

    fn stop_service(&mut self, by: &str, reason: Option<&str>) {
        if self.state.replicas.is_empty()
            && self.state.stable.is_none()
            && self.state.active_rollout().is_none()
        {
            return;
        }
        self.note_stop(by, reason);
        self.state.stopping = true;
        self.state.loans.clear();
        self.state.queued = None;
        if self.active().is_some() {
            let why = text::clean(&format!("the service was stopped by {by}"), MAX_CAUSE);
            self.end_rollout(Outcome::Aborted { why });
        }
    }

    /// The replica's key, if the rank is one of its present attempt.
    fn present_rank(&self, rank: &RankId) -> Option<ReplicaKey> {
        let release = self.state.releases.get(&rank.replica.release)?;
        let plan = release.replica(rank.replica.replica)?;
        let ours = release.id == rank.release_id
            && usize::try_from(rank.rank).is_ok_and(|i| i < plan.ranks.len());
        ours.then(|| self.present(rank.replica)).flatten()
    }

    /// The replica's key, if the attempt is the present one.
    fn present(&self, id: ReplicaId) -> Option<ReplicaKey> {
        self.state.key_of(id)
    }

    fn rank_running(&mut self, rank: &RankId) {
        let Some(key) = self.present_rank(rank) else { return };
        let Some(replica) = self.state.replicas.get_mut(&key) else { return };
        let starting = matches!(replica.phase, Phase::Starting | Phase::Waiting { .. });
        if starting && !replica.ended.contains(&rank.rank) {
            replica.note_running(rank.rank);
        }
    }

    fn rank_refused(&mut self, rank: &RankId, refusal: &StartRefusal) {
        let Some(key) = self.present_rank(rank) else { return };
        let now = self.now();
        let Some(replica) = self.state.replicas.get_mut(&key) else { return };
        let starting = matches!(replica.phase, Phase::Starting | Phase::Waiting { .. });
        if !starting || replica.running.contains(&rank.rank) {
            return;
        }
        match refusal {
            StartRefusal::NotYet { why } => {
                let why = text::clean(&format!("rank {}: {why}", rank.rank), MAX_CAUSE);
                replica.wait(now, why);
            }
            StartRefusal::Never { why } => {
                self.replica_failed(key, &format!("rank {} cannot start: {why}", rank.rank));
            }
        }
    }

    fn rank_ended(&mut self, rank: &RankId, how: &str) {
        let Some(key) = self.present_rank(rank) else { return };
        let Some(replica) = self.state.replicas.get_mut(&key) else { return };
        match replica.phase {
            // Nothing of this attempt was started.
            Phase::Pending { .. } | Phase::Stopped | Phase::Failed { .. } => {}
            Phase::Stopping => {
                replica.note_ended(rank.rank);
            }
            // It was to go anyway; one rank is gone, so the gang is.
            Phase::Draining { .. } => {
                replica.note_ended(rank.rank);
                self.stop_replica(key);
            }
            Phase::Starting | Phase::Waiting { .. } | Phase::Loading | Phase::Ready => {
                replica.note_ended(rank.rank);
                self.replica_failed(key, &format!("rank {} ended: {how}", rank.rank));
            }
        }
    }

    fn replica_ready(&mut self, id: ReplicaId) {
        let Some(key) = self.present(id) else { return };
        let now = self.now();
        let Some(replica) = self.state.replicas.get_mut(&key) else { return };
        // Progress it is when it is available: `progressed_at`.
        if replica.phase == Phase::Loading {
            replica.trouble = None;
            replica.no_token = None;
            replica.enter(Phase::Ready, now);
        }
    }

    fn no_token_yet(&mut self, id: ReplicaId, why: &str) {
        let Some(key) = self.present(id) else { return };
        let Some(replica) = self.state.replicas.get_mut(&key) else { return };
        if replica.phase != Phase::Loading {
            return;
        }
        let why = text::clean(why, MAX_ANSWER);
        // What made a ready one be asked again says more.
        if !replica.proved {
            replica.trouble = Some(format!("no token yet: {why}"));
        }
        replica.no_token = Some(why);
    }

    fn replica_unready(&mut self, id: ReplicaId, why: &str) {
        let Some(key) = self.present(id) else { return };
        match self.state.replicas.get(&key).map(|r| &r.phase) {
            Some(Phase::Ready) => {
                let cause = format!("it does not answer any more: {why}");
                if self.state.is_brought(key) {
                    self.replica_failed(key, &cause);
                } else {
                    self.ask_for_token_again(key, &cause);
                }
            }
            // Nobody is answered any more, so there is nothing to wait for.
            Some(Phase::Draining { .. }) => self.stop_replica(key),
            _ => {}
        }
    }

    /// Out of the traffic until it generates a token. Its ranks may well run (a cable was pulled), and loading a
    /// large model again would take longer than waiting; the healthy deadline bounds that.
    fn ask_for_token_again(&mut self, key: ReplicaKey, cause: &str) {
        let now = self.now();
        let Some(replica) = self.state.replicas.get_mut(&key) else { return };
        replica.trouble = Some(text::clean(cause, MAX_CAUSE));
        replica.started = Some(now);
        replica.proved = true;
        replica.no_token = None;
        replica.enter(Phase::Loading, now);
        self.actions.extend(self.state.await_token(key));
    }

    fn traffic_applied(&mut self, version: u64) {
        if version > self.state.traffic_version {
            return;
        }
        self.state.traffic_applied = self.state.traffic_applied.max(version);
        if version == self.state.traffic_version {
            self.state.traffic_trouble = None;
            self.state.lacks_backend = false;
            self.state.traffic_retry = None;
            let gets_some = |s: &&TrafficServer| s.mode == TrafficMode::Ready && s.weight > 0;
            let reached: BTreeSet<_> =
                self.state.traffic.iter().filter(gets_some).map(|s| s.replica).collect();
            if *self.state.traffic_reached != reached {
                self.state.traffic_reached = reached.into();
            }
        }
    }

    fn traffic_failed(&mut self, version: u64, why: &str, lacks_backend: bool) {
        // An older table is overtaken by a newer one that is on its way already.
        if version != self.state.traffic_version {
            return;
        }
        self.state.traffic_trouble = Some(text::clean(why, MAX_CAUSE));
        self.state.lacks_backend = lacks_backend;
        // One that was taken before is kept by whoever carries it out.
        if self.state.traffic_applied < version {
            self.state.traffic_retry = Some(self.now().plus(TRAFFIC_RETRY));
        }
    }

    fn drained(&mut self, id: ReplicaId) {
        let Some(key) = self.present(id) else { return };
        if let Some(replica) = self.state.replicas.get_mut(&key)
            && matches!(replica.phase, Phase::Draining { .. })
            && replica.drain.watched
        {
            replica.drain.done = true;
        }
    }

    fn measured(&mut self, id: ReplicaId, window: &Window) {
        if self.present(id).is_none() {
            return;
        }
        let Some(rollout) = self.active() else { return };
        if rollout.paused.is_some() || !matches!(rollout.gate, Some(Gate::Analyse { .. })) {
            return;
        }
        if id.release == rollout.to {
            rollout.measured_new.add(window);
        } else {
            rollout.measured_old.add(window);
        }
    }

    fn unmeasured(&mut self) {
        let now = self.now();
        if let Some(rollout) = self.active()
            && matches!(rollout.gate, Some(Gate::Analyse { .. }))
        {
            rollout.analysis.unread.get_or_insert(now);
        }
    }

    /// The canary's requests are counted (again); with the first of them its analysis begins.
    fn begin_analysis(&mut self, windows: &BTreeMap<ReplicaId, Window>) {
        let now = self.now();
        let Some(to) = self.active().map(|rollout| rollout.to) else { return };
        let of_canary = |id: &ReplicaId| id.release == to && self.present(*id).is_some();
        let is_counted = windows.keys().any(of_canary);
        let has_some = windows.iter().any(|(id, window)| of_canary(id) && window.requests > 0);
        let Some(rollout) = self.active() else { return };
        if is_counted {
            rollout.analysis.unread = None;
        }
        let is_analysed =
            rollout.paused.is_none() && matches!(rollout.gate, Some(Gate::Analyse { .. }));
        if has_some && is_analysed && rollout.analysis.began.is_none() {
            rollout.analysis.begin(now);
            rollout.measured_old = Window::default();
        }
    }

    fn sampled(&mut self, samples: &BTreeMap<ReleaseNumber, EngineSamples>) {
        let Some(rollout) = self.active() else { return };
        if rollout.paused.is_some() || !matches!(rollout.gate, Some(Gate::Analyse { .. })) {
            return;
        }
        for (release, seen) in samples {
            let side = if *release == rollout.to {
                &mut rollout.analysis.new
            } else {
                &mut rollout.analysis.old
            };
            side.add(seen);
            if let Some(error) = &mut side.gpu.error {
                *error = text::clean(error, MAX_CAUSE);
            }
        }
    }

    /// Also taken in a pause: whoever measured it does not measure it again.
    fn checked(
        &mut self,
        release: ReleaseNumber,
        step: usize,
        check: &str,
        result: CheckResult,
        why: &str,
    ) {
        let Some((rollout, _, spec)) = self.state.analysing() else { return };
        if rollout.to != release || rollout.step != step {
            return;
        }
        if let Some(rollout) = self.active() {
            rollout.analysis.check(&spec, check, result, why);
        }
    }

    /// The gang is out of the traffic and is stopped, whatever is left of it. It is started again
    /// after a pause, unless it belongs to a release that is being rolled out: that has failed.
    pub(super) fn replica_failed(&mut self, key: ReplicaKey, cause: &str) {
        let now = self.now();
        let Some(replica) = self.state.replicas.get_mut(&key) else { return };
        let cause = text::clean(cause, MAX_CAUSE);
        replica.failed(now, cause.clone());
        let id = replica.id(key);
        self.stop_replica(key);
        if self.state.is_brought(key) {
            self.fail_rollout(&format!("replica {id} failed: {cause}"));
        }
    }

    /// Ends the replica's ranks, without waiting for anything.
    pub(super) fn stop_replica(&mut self, key: ReplicaKey) {
        self.moved = true;
        let now = self.now();
        let Some(replica) = self.state.replicas.get_mut(&key) else { return };
        let drained = replica.drained_until(now);
        replica.enter(Phase::Stopping, now);
        // The progress clock, which stood while it drained, goes on from here.
        if let Some((until, rollout)) = drained.zip(self.active()) {
            rollout.progress = rollout.progress.max(until);
        }
        let stops = self.state.stop_ranks(key);
        self.actions.extend(stops);
    }

    pub(super) fn act(&mut self, action: Action) {
        self.actions.push(action);
    }
}
