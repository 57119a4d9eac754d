//! A release that changes nothing of what its engines are started with takes over the replicas of the release before
//! it while they run: scaling, or another rollout policy, restarts nothing (as a Kubernetes Deployment makes a new
//! `ReplicaSet` only for another pod template).
//!
//! Such a replica changes its key, and keeps the name under which its ranks were started until they end
//! ([`ReplicaState::runs_as`]): hosts, gateways and logs know it by that one. So keys say to whom a replica belongs, and
//! a [`ReplicaId`] always says what runs.

use std::time::Duration;

use super::release::Release;
use super::state::{Direction, Phase, ReplicaState, RolloutKind, ServiceState};
use super::step::{Decider, backoff};
use crate::base::{Attempt, RankId, ReleaseNumber, ReplicaId, ReplicaKey};

impl ReplicaState {
    /// Under which name its present start was begun: `key` is its own.
    pub(super) fn started_as(&self, key: ReplicaKey) -> ReplicaKey {
        self.runs_as.unwrap_or(key)
    }

    /// The id of this start: what hosts and gateways call it.
    pub fn id(&self, key: ReplicaKey) -> ReplicaId {
        let ReplicaKey { release, replica } = self.started_as(key);
        ReplicaId { release, replica, attempt: self.attempt }
    }
}

impl Release {
    /// It takes over replicas that run.
    pub fn keeps_any(&self) -> bool {
        !self.keeps.is_empty()
    }
}

impl ServiceState {
    /// The replica that has what was started under this name.
    pub(super) fn owner(&self, name: ReplicaKey) -> ReplicaKey {
        self.taken_over.get(&name).copied().unwrap_or(name)
    }

    /// The replica whose present start this is.
    pub fn key_of(&self, id: ReplicaId) -> Option<ReplicaKey> {
        let key = self.owner(id.key());
        self.replicas.get(&key).filter(|replica| replica.id(key) == id).map(|_| key)
    }

    /// The replica whose present start this is, as far as it has come.
    pub fn replica_of(&self, id: ReplicaId) -> Option<&ReplicaState> {
        self.key_of(id).and_then(|key| self.replicas.get(&key)).map(|replica| &**replica)
    }

    /// The release that a start belongs to, or belonged to before it ended: another than its name says where it was
    /// taken over.
    pub fn owner_of(&self, id: ReplicaId) -> ReleaseNumber {
        self.owner(id.key()).release
    }

    /// The names of a replica's ranks in its present start, in rank order.
    pub fn rank_ids(&self, key: ReplicaKey) -> Vec<RankId> {
        let Some(replica) = self.replicas.get(&key) else { return Vec::new() };
        let started_as = replica.started_as(key);
        let release = self.releases.get(&started_as.release);
        release.map(|r| r.rank_ids(started_as.replica, replica.attempt)).unwrap_or_default()
    }

    /// How long its present start may take. One that was taken over has all the time that it was started with.
    pub(super) fn healthy_deadline(&self, key: ReplicaKey) -> Duration {
        let started_as = self.replicas.get(&key).map_or(key, |replica| replica.started_as(key));
        let of = |release| self.policy(release).map_or(Duration::ZERO, |p| p.healthy_deadline);
        of(key.release).max(of(started_as.release))
    }

    /// The number of a replica's next start: later than the present one, and than any that had its name.
    pub(super) fn next_attempt(&self, key: ReplicaKey) -> Attempt {
        let present = self.replicas.get(&key).map(|replica| replica.attempt);
        let last = present.max(self.attempts.get(&key).copied());
        last.map_or(Attempt::FIRST, Attempt::next)
    }

    /// What a rollout under way has started: its failure is the new release's. (What was taken over and runs as it did
    /// is not, until it has to be started again.)
    pub(super) fn is_brought(&self, key: ReplicaKey) -> bool {
        let rollout = self.active_rollout().filter(|r| r.direction == Direction::Forward);
        rollout.is_some_and(|r| r.to == key.release)
            && self.replicas.get(&key).is_some_and(|replica| replica.runs_as.is_none())
    }

    /// Whether a start belongs to what a rollout is just bringing through its steps. (Not to what served before, nor to
    /// what one goes back to: that is known to be good, and what it ran on may have to do.)
    pub fn is_new(&self, id: ReplicaId) -> bool {
        let bringing = self.active_rollout().filter(|rollout| {
            rollout.kind == RolloutKind::Apply && rollout.direction == Direction::Forward
        });
        let key = self.key_of(id).filter(|key| !self.is_kept(*key));
        bringing.zip(key).is_some_and(|(rollout, key)| rollout.to == key.release)
    }

    /// It served before the rollout under way began, and is not new to it.
    pub(super) fn is_kept(&self, key: ReplicaKey) -> bool {
        self.stable == Some(key.release)
            || self
                .releases
                .get(&key.release)
                .is_some_and(|release| release.keeps.contains_key(&key))
    }
}

impl Decider<'_> {
    /// The release that is rolled out takes over what it keeps of the one before.
    pub(super) fn take_over_kept(&mut self) {
        for (new, old) in self.kept_pairs() {
            self.rename(old, new);
        }
    }

    /// On the way back the release before has again what was taken over from it.
    pub(super) fn give_back_kept(&mut self) {
        for (new, old) in self.kept_pairs() {
            self.rename(new, old);
        }
    }

    /// The keys of what is kept: as it is called in the new release, and in the one before.
    fn kept_pairs(&self) -> Vec<(ReplicaKey, ReplicaKey)> {
        let Some(rollout) = &self.state.rollout else { return Vec::new() };
        let to = self.state.releases.get(&rollout.to);
        let pairs = to.into_iter().flat_map(|to| &to.keeps).map(|(new, old)| (*new, *old));
        let between = |(new, old): &(ReplicaKey, ReplicaKey)| {
            new.release == rollout.to && Some(old.release) == rollout.from
        };
        pairs.filter(between).collect()
    }

    fn rename(&mut self, from: ReplicaKey, to: ReplicaKey) {
        if self.state.replicas.contains_key(&to) || self.state.vacated.contains(&from) {
            return;
        }
        // Also where it is gone: one may come there again.
        let names = self.state.taken_over.iter().filter(|(_, owner)| **owner == from);
        let mut names: Vec<ReplicaKey> = names.map(|(name, _)| *name).collect();
        names.push(from);
        for name in names {
            self.state.taken_over.insert(name, to);
        }
        self.state.taken_over.remove(&to);
        let Some(mut replica) = self.state.replicas.remove(&from) else { return };
        let started_as = replica.started_as(from);
        if matches!(replica.phase, Phase::Pending { .. }) {
            // Nothing runs that has the old name.
            let last = self.state.attempts.get(&to).map(|last| last.next());
            replica.attempt = last.map_or(replica.attempt, |next| replica.attempt.max(next));
        } else {
            replica.runs_as = (started_as != to).then_some(started_as);
        }
        self.state.replicas.insert(to, replica);
        self.moved = true;
        self.heal_kept(to);
    }

    /// One that failed as a part of what is taken back is started again: it is stable's once more.
    fn heal_kept(&mut self, key: ReplicaKey) {
        let (now, attempt) = (self.now(), self.state.next_attempt(key));
        if let Some(replica) = self.state.replicas.get_mut(&key)
            && matches!(replica.phase, Phase::Failed { .. })
        {
            **replica = ReplicaState {
                failures: replica.failures,
                trouble: replica.trouble.take(),
                last_failure: replica.last_failure.take(),
                ..ReplicaState::pending(attempt, now, now.plus(backoff(replica.failures)))
            };
        }
    }
}
