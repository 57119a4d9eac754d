//! Who is coming and who is going, and how many: the numbers that every decision starts from,
//! derived from the state alone.

use std::time::Duration;

use super::count;
use super::state::{Direction, Gate, Phase, ReplicaState, Rollout, ServiceState};
use crate::base::{ReleaseNumber, ReplicaKey, Timestamp};
use crate::spec::{RolloutSpec, StepSpec};

/// What the present situation asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Roles {
    /// The release whose replicas are meant to live: the new one forward, stable back and at rest.
    /// None: everything goes.
    pub coming: Option<ReleaseNumber>,
    /// Replicas of `coming` that are wanted now (fewer than `full` at a canary step).
    pub target: u32,
    /// Replicas of `coming` that are wanted in the end.
    pub full: u32,
    /// No action of ours leaves fewer ready.
    pub floor: u32,
    /// No more than so many live at a time.
    pub limit: u32,
    /// A rollout goes forward.
    pub forward: bool,
    /// Forward, and past all steps.
    pub last_stretch: bool,
    /// Nothing new is begun: paused, held, or failed and waiting for a person.
    pub held: bool,
    /// Ready for so long counts as available.
    pub min_healthy: Duration,
}

impl ServiceState {
    /// Replicas that this release wants.
    pub fn wanted(&self, release: ReleaseNumber) -> u32 {
        self.releases.get(&release).map_or(0, |r| r.spec.replicas.get())
    }

    /// The fewest ready replicas that an action of ours leaves now. While a rollout changes the
    /// number of replicas, the smaller of the two numbers counts. 0 on a first deployment, and
    /// while a person has asked for the service's end.
    pub fn floor(&self) -> u32 {
        if self.stopping {
            return 0;
        }
        match self.active_rollout() {
            Some(rollout) => {
                let Some(from) = rollout.from else { return 0 };
                let desired = self.wanted(from).min(self.wanted(rollout.to));
                self.policy(rollout.to).map_or(desired, |p| count::floor(p, desired))
            }
            None => self.stable.map_or(0, |stable| {
                let desired = self.wanted(stable);
                self.policy(stable).map_or(desired, |p| count::floor(p, desired))
            }),
        }
    }

    pub(super) fn policy(&self, release: ReleaseNumber) -> Option<&RolloutSpec> {
        self.releases.get(&release).map(|r| &r.spec.rollout)
    }

    pub(super) fn steps(&self, rollout: &Rollout) -> &[StepSpec] {
        self.policy(rollout.to).map_or(&[], |p| p.steps.as_slice())
    }

    /// The canary's share that the steps up to the current one ask for, percent. None: the steps
    /// are over, every replica gets the same.
    pub(super) fn step_weight(&self, rollout: &Rollout) -> Option<u32> {
        let steps = self.steps(rollout);
        let passed = steps.get(..=rollout.step)?;
        let weight = passed.iter().rev().find_map(|step| match step {
            StepSpec::Weight(w) => Some(*w),
            _ => None,
        });
        Some(weight.unwrap_or(0))
    }

    pub(super) fn roles(&self) -> Roles {
        let rollout = self.active_rollout().filter(|_| !self.stopping);
        let forward = rollout.is_some_and(|r| r.direction == Direction::Forward);
        let coming = match rollout {
            _ if self.stopping => None,
            Some(r) if forward => Some(r.to),
            Some(r) => r.from,
            None => self.stable,
        };
        let beside = if rollout.is_none() { self.moving_beside(coming) } else { 0 };
        let full = coming.map_or(0, |c| self.wanted(c)).saturating_add(beside);
        let weight = rollout.filter(|_| forward).and_then(|r| self.step_weight(r));
        let target = weight.map_or(full, |w| count::canary_replicas(w, full));
        let (policy, most) = match rollout {
            Some(r) => (self.policy(r.to), full.max(r.from.map_or(0, |f| self.wanted(f)))),
            None => (coming.and_then(|c| self.policy(c)), full),
        };
        let held = self.is_held()
            || rollout.is_some_and(|r| {
                r.paused.is_some() || (forward && matches!(r.gate, Some(Gate::Failed { .. })))
            });
        Roles {
            coming,
            target,
            full,
            floor: self.floor(),
            limit: most.saturating_add(policy.map_or(0, |p| count::extra(p, most))),
            forward,
            last_stretch: forward && weight.is_none(),
            held,
            min_healthy: policy.map_or(Duration::ZERO, |p| p.min_healthy_time),
        }
    }

    /// Available replicas (Kubernetes' word) of one release: ready for `min_healthy` without
    /// interruption.
    pub(super) fn available(&self, release: ReleaseNumber, min_healthy: Duration) -> u32 {
        let n = self.of(release).filter(|(_, r)| is_available(r, self.now, min_healthy)).count();
        u32::try_from(n).unwrap_or(u32::MAX)
    }

    /// The replicas of one release, in order.
    pub(super) fn of(
        &self,
        release: ReleaseNumber,
    ) -> impl Iterator<Item = (&ReplicaKey, &ReplicaState)> {
        let first = ReplicaKey { release, replica: 0 };
        let last = ReplicaKey { release, replica: u32::MAX };
        self.replicas.range(first..=last)
    }
}

pub(super) fn is_available(replica: &ReplicaState, now: Timestamp, min_healthy: Duration) -> bool {
    replica.phase == Phase::Ready && now.since(replica.since) >= min_healthy
}
