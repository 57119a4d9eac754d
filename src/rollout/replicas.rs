//! One replica's way through its phases, as far as it concerns nobody else: asking refused starts
//! again, deadlines, the end of a drain, and what comes after a stop.

use std::collections::BTreeSet;
use std::time::Duration;

use super::action::Action;
use super::release::{RankPlan, Release};
use super::state::{Drain, Gate, Phase, ReplicaState, Rollout, ServiceState};
use super::step::{Decider, backoff};
use crate::base::{HostName, RankId, ReplicaKey, Timestamp, time};

/// A replica that was ready for so long starts with a clean record (Kubernetes' rule for
/// `CrashLoopBackOff`).
const GOOD_RECORD: Duration = Duration::from_mins(10);

/// So long beyond its grace a stop may take before it counts as one that nobody carries out: the host is away.
const STOP_PATIENCE: Duration = Duration::from_mins(1);

/// Pauses between two askings of a host that refused for now.
const RETRY_SHORTEST: Duration = Duration::from_secs(1);
const RETRY_LONGEST: Duration = Duration::from_secs(5);

impl ReplicaState {
    /// Begins a phase.
    pub(super) fn enter(&mut self, phase: Phase, now: Timestamp) {
        self.phase = phase;
        self.since = now;
    }

    pub(super) fn note_running(&mut self, rank: u32) {
        self.running.insert(rank);
        self.running_ranks = u32::try_from(self.running.len()).unwrap_or(u32::MAX);
    }

    pub(super) fn note_ended(&mut self, rank: u32) {
        self.ended.insert(rank);
        self.running.remove(&rank);
        self.running_ranks = u32::try_from(self.running.len()).unwrap_or(u32::MAX);
    }

    /// A host refused for now: to be asked again, more and more rarely.
    pub(super) fn wait(&mut self, now: Timestamp, why: String) {
        let began = *self.waiting_since.get_or_insert(now);
        let pause = (now.since(began) / 4).clamp(RETRY_SHORTEST, RETRY_LONGEST);
        self.trouble = Some(why.clone());
        self.enter(Phase::Waiting { why, retry_at: now.plus(pause), began }, now);
    }

    /// Until when it has drained so far, or until its deadline if that is over; none: it does not drain.
    pub(super) fn drained_until(&self, now: Timestamp) -> Option<Timestamp> {
        match self.phase {
            Phase::Draining { deadline } => Some(now.min(deadline)),
            _ => None,
        }
    }

    /// Whether this start has failed, if any of it ever ran.
    fn has_failed(&self) -> bool {
        // Whoever runs or serves well has no trouble any more, whatever failed before.
        self.failures > 0 && self.trouble.is_some()
    }

    /// Writes a failure into the record.
    pub(super) fn failed(&mut self, now: Timestamp, cause: String) {
        self.failures = self.failures_in_a_row(now).saturating_add(1);
        self.last_failure = Some(cause.clone());
        self.trouble = Some(cause);
    }

    /// How often it failed in a row: not at all once it has been ready for ten minutes.
    pub fn failures_in_a_row(&self, now: Timestamp) -> u32 {
        let is_clean = self.phase == Phase::Ready && now.since(self.since) >= GOOD_RECORD;
        if is_clean { 0 } else { self.failures }
    }
}

impl Release {
    fn ranks_of(&self, key: ReplicaKey) -> usize {
        self.replica(key.replica).map_or(0, |plan| plan.ranks.len())
    }
}

impl ServiceState {
    /// The ranks of a replica's present start, with what each was planned as.
    fn ranks_with_plans(&self, key: ReplicaKey) -> impl Iterator<Item = (RankId, &RankPlan)> {
        let plan = self.releases.get(&key.release).and_then(|r| r.replica(key.replica));
        self.rank_ids(key).into_iter().zip(plan.map_or(&[][..], |plan| plan.ranks.as_slice()))
    }

    /// Starts of all ranks that are not known to run.
    pub(super) fn start_ranks(&self, key: ReplicaKey) -> Vec<Action> {
        let Some(replica) = self.replicas.get(&key) else { return Vec::new() };
        self.ranks_with_plans(key)
            .filter(|(rank, _)| !replica.running.contains(&rank.rank))
            .map(|(rank, plan)| Action::StartRank { rank, plan: Box::new(plan.clone()) })
            .collect()
    }

    /// Stops of all ranks that are not known to have ended, those never seen running included.
    pub(super) fn stop_ranks(&self, key: ReplicaKey) -> Vec<Action> {
        let Some(replica) = self.replicas.get(&key) else { return Vec::new() };
        let grace = self.policy(key.release).map_or(Duration::ZERO, |p| p.stop_grace);
        let keep_log = replica.has_failed();
        self.ranks_with_plans(key)
            .filter(|(rank, _)| !replica.ended.contains(&rank.rank))
            .map(|(rank, plan)| Action::StopRank { rank, host: plan.host.clone(), grace, keep_log })
            .collect()
    }

    pub(super) fn await_token(&self, key: ReplicaKey) -> Option<Action> {
        let replica = self.replicas.get(&key)?;
        let first = self.releases.get(&key.release)?.replica(key.replica)?.ranks.first()?;
        let plan = Box::new(first.clone());
        Some(Action::AwaitToken { replica: replica.id(key), plan })
    }

    /// When the stop of a replica that is being stopped will have taken longer than any host takes that can be asked.
    pub(super) fn stop_overdue_at(
        &self,
        key: ReplicaKey,
        replica: &ReplicaState,
    ) -> Option<Timestamp> {
        let grace = self.policy(key.release).map_or(Duration::ZERO, |p| p.stop_grace);
        (replica.phase == Phase::Stopping).then(|| replica.since.plus(grace + STOP_PATIENCE))
    }

    /// Whether that moment has passed.
    pub(super) fn stop_is_overdue(&self, key: ReplicaKey, replica: &ReplicaState) -> bool {
        self.stop_overdue_at(key, replica).is_some_and(|at| self.now >= at)
    }

    /// What should have stopped on this host long ago, for people.
    pub fn overdue_stop_on(&self, host: &HostName) -> Option<String> {
        let overdue = self.replicas.iter().filter(|(key, r)| self.stop_is_overdue(**key, r));
        let is_there = |key: &ReplicaKey| {
            let plan = self.releases.get(&key.release).and_then(|r| r.replica(key.replica));
            plan.is_some_and(|plan| plan.ranks.iter().any(|rank| rank.host == *host))
        };
        let mut there = overdue.filter(|(key, _)| is_there(key));
        there.next().map(|(key, replica)| self.stopping_on(*key, replica))
    }

    /// What keeps a replica from being gone, for people.
    pub(super) fn stopping_on(&self, key: ReplicaKey, replica: &ReplicaState) -> String {
        let id = replica.id(key);
        let plan = self.releases.get(&key.release).and_then(|r| r.replica(key.replica));
        let ranks = plan.map_or(&[][..], |plan| plan.ranks.as_slice());
        let left = (0..).zip(ranks).filter(|(rank, _)| !replica.ended.contains(rank));
        let hosts: BTreeSet<&str> = left.map(|(_, rank)| rank.host.as_str()).collect();
        let hosts = hosts.into_iter().collect::<Vec<_>>().join(", ");
        if !self.stop_is_overdue(key, replica) {
            return format!("replica {id} is being stopped on {hosts}");
        }
        format!(
            "{hosts} has not said for {} that replica {id} is stopped: bring the host back, or take it out of \
             deck.toml if it is gone for good",
            time::short(self.now.since(replica.since))
        )
    }
}

impl Decider<'_> {
    pub(super) fn tend_replicas(&mut self) {
        let keys: Vec<ReplicaKey> = self
            .state
            .replicas
            .iter()
            .filter(|(key, r)| match r.phase {
                Phase::Ready => false,
                // Hundreds may be pending: nothing comes of that alone.
                Phase::Pending { .. } => !self.state.releases.contains_key(&key.release),
                _ => true,
            })
            .map(|(key, _)| *key)
            .collect();
        for key in keys {
            self.tend_replica(key);
        }
    }

    fn tend_replica(&mut self, key: ReplicaKey) {
        let now = self.now();
        let Some(release) = self.state.releases.get(&key.release) else {
            // Cannot be: releases with replicas are kept. An entry without one can only be dropped.
            self.state.replicas.remove(&key);
            return;
        };
        let ranks = release.ranks_of(key);
        let policy = &release.spec.rollout;
        let (healthy, drain) = (self.state.healthy_deadline(key), policy.drain_deadline);
        let (held, unrouted) = (self.state.is_held(), self.state.leaves_unrouted());
        let Some(replica) = self.state.replicas.get_mut(&key) else { return };
        match replica.phase {
            Phase::Starting | Phase::Waiting { .. } if replica.running.len() >= ranks => {
                replica.enter(Phase::Loading, now);
                replica.trouble = None;
                self.moved = true;
                self.actions.extend(self.state.await_token(key));
            }
            Phase::Waiting { retry_at, .. } if now >= retry_at => self.start_replica(key),
            Phase::Starting | Phase::Loading
                if !held && replica.started.is_some_and(|s| now >= s.plus(healthy)) =>
            {
                let what = if replica.phase == Phase::Loading {
                    "no token was generated"
                } else {
                    "its ranks did not start"
                };
                let answer = replica.no_token.as_ref().filter(|_| replica.phase == Phase::Loading);
                let answer = answer.map(|why| format!(": {why}")).unwrap_or_default();
                let within = time::short(healthy);
                let cause = format!("{what} within {within} (healthy_deadline){answer}");
                self.replica_failed(key, &cause);
            }
            Phase::Draining { deadline } => {
                let applied = replica.drain.version > 0
                    && self.state.traffic_applied >= replica.drain.version;
                if applied && !replica.drain.watched {
                    // The requests in flight have their full time from the moment no new ones come.
                    replica.drain.watched = true;
                    replica.phase = Phase::Draining { deadline: now.plus(drain) };
                    let id = replica.id(key);
                    self.moved = true;
                    self.act(Action::AwaitDrained { replica: id });
                } else if held {
                    // It gets no new requests and is not ended until its hosts can be acted on.
                } else if (applied && (replica.drain.done || now >= deadline))
                    // Whoever asked for the service's end is not kept waiting by a dead gateway, nor is a way
                    // back by one that has no backend for it.
                    || ((self.state.stopping || unrouted) && now >= deadline)
                {
                    self.stop_replica(key);
                }
            }
            Phase::Stopping if replica.ended.len() >= ranks => {
                replica.enter(Phase::Stopped, now);
                self.moved = true;
                self.after_stop(key);
            }
            Phase::Stopped => self.after_stop(key),
            _ => {}
        }
    }

    /// All ranks are gone: the replica goes from the books, stays as a failure to be looked at, or
    /// is to be started again.
    fn after_stop(&mut self, key: ReplicaKey) {
        let now = self.now();
        let failed = |r: &Rollout| matches!(r.gate, Some(Gate::Failed { .. }));
        let held_failure = self.state.is_brought(key)
            && !self.state.is_kept(key)
            && self.state.active_rollout().is_some_and(failed);
        let next_attempt = self.state.next_attempt(key);
        let Some(replica) = self.state.replicas.get_mut(&key) else { return };
        self.moved = true;
        if replica.retiring {
            self.state.replicas.remove(&key);
            self.progressed();
        } else if held_failure {
            let cause = replica.trouble.clone().unwrap_or_default();
            replica.enter(Phase::Failed { cause }, now);
        } else {
            let not_before = now.plus(backoff(replica.failures));
            let next = ReplicaState {
                failures: replica.failures,
                trouble: replica.trouble.take(),
                last_failure: replica.last_failure.take(),
                ..ReplicaState::pending(next_attempt, now, not_before)
            };
            **replica = next;
        }
    }

    /// Tells the ranks that do not run to start.
    pub(super) fn start_replica(&mut self, key: ReplicaKey) {
        let now = self.now();
        let keeps_some = self.state.releases.get(&key.release).is_some_and(|r| r.keeps_any());
        if self.state.is_brought(key)
            && !keeps_some
            && !self.state.attempts.keys().any(|k| k.release == key.release)
        {
            // Nomad's rule: the progress clock starts at the first allocation. (It runs before,
            // too, so that a rollout that cannot even begin ends. What it keeps is allocated.)
            self.progressed();
        }
        let Some(replica) = self.state.replicas.get_mut(&key) else { return };
        replica.started = Some(now);
        replica.enter(Phase::Starting, now);
        self.state.attempts.insert(key, replica.attempt);
        self.moved = true;
        let starts = self.state.start_ranks(key);
        self.actions.extend(starts);
    }

    /// Takes a replica out for good: from the traffic first if it is in it.
    pub(super) fn retire(&mut self, key: ReplicaKey) {
        let now = self.now();
        let drain = self.state.policy(key.release).map_or(Duration::ZERO, |p| p.drain_deadline);
        let Some(replica) = self.state.replicas.get_mut(&key) else { return };
        if !replica.retiring {
            replica.retiring = true;
            self.moved = true;
        }
        match replica.phase {
            Phase::Pending { .. } | Phase::Stopped | Phase::Failed { .. } => {
                self.state.replicas.remove(&key);
                self.moved = true;
            }
            Phase::Ready => {
                replica.drain = Drain::default();
                replica.enter(Phase::Draining { deadline: now.plus(drain) }, now);
                self.moved = true;
            }
            Phase::Starting | Phase::Waiting { .. } | Phase::Loading => self.stop_replica(key),
            Phase::Draining { .. } | Phase::Stopping => {}
        }
    }

    /// A replica that was on its way out is wanted again.
    pub(super) fn keep(&mut self, key: ReplicaKey) {
        let now = self.now();
        let Some(replica) = self.state.replicas.get_mut(&key) else { return };
        if !replica.retiring {
            return;
        }
        replica.retiring = false;
        self.moved = true;
        // While it only drains, nothing was told to stop: it can simply serve again.
        if matches!(replica.phase, Phase::Draining { .. }) {
            replica.drain = Drain::default();
            replica.enter(Phase::Ready, now);
        }
    }
}
