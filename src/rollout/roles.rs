//! Who is coming and who is going, and how many: the numbers that every decision starts from,
//! derived from the state alone.

use std::borrow::Cow;
use std::time::Duration;

use super::count;
use super::state::{Direction, Gate, Phase, ReplicaState, Rollout, RolloutKind, ServiceState};
use crate::base::{ReleaseNumber, ReplicaKey, Timestamp};
use crate::spec::{RolloutSpec, StepSpec, Strategy};

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
    /// What is ready goes below this only a few at a time, `pace` of them in motion. The floor, but on the way back
    /// to a release with more replicas: that release's floor.
    pub whole: u32,
    /// How many may be in motion below `whole`: at least 1.
    pub pace: u32,
    /// No more than so many live at a time.
    pub limit: u32,
    /// A rollout goes forward.
    pub forward: bool,
    /// Forward, and past all steps.
    pub last_stretch: bool,
    /// Blue-green before the old set's end: nothing of this release is taken out.
    pub keeps: Option<ReleaseNumber>,
    /// Recreate: no replica of `coming` starts while one of another release is there.
    pub alone: bool,
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
    /// number of replicas, the smaller of the two numbers counts. At rest not more than there are while some are
    /// out: what is left could not be moved any more. 0 on a first deployment, and
    /// while a person has asked for the service's end.
    pub fn floor(&self) -> u32 {
        if self.stopping {
            return 0;
        }
        match self.active_rollout() {
            Some(rollout) => {
                let Some(from) = rollout.from else { return 0 };
                self.floor_of(rollout, self.wanted(from).min(self.wanted(rollout.to)))
            }
            None => self.stable.map_or(0, |stable| {
                let desired = self.wanted(stable);
                let floor = self.policy(stable).map_or(desired, |p| count::floor(p, desired));
                let floor = floor.min(desired.saturating_sub(self.lent(stable)));
                // Nobody stops serving for another's rollout.
                if self.binding_loan().is_none() { floor } else { floor.max(1) }
            }),
        }
    }

    /// The fewest of `desired` replicas that this rollout leaves.
    fn floor_of(&self, rollout: &Rollout, desired: u32) -> u32 {
        match self.strategy(rollout) {
            Strategy::Recreate => 0,
            Strategy::BlueGreen => desired,
            Strategy::Rolling | Strategy::Canary => {
                self.policy(rollout.to).map_or(desired, |p| count::floor(p, desired))
            }
        }
    }

    pub(super) fn policy(&self, release: ReleaseNumber) -> Option<&RolloutSpec> {
        self.releases.get(&release).map(|r| &r.spec.rollout)
    }

    pub(super) fn steps(&self, rollout: &Rollout) -> Cow<'_, [StepSpec]> {
        self.policy(rollout.to).map_or(Cow::Borrowed(&[]), RolloutSpec::journey)
    }

    /// How this rollout goes. A first deployment has nothing to be careful of, and an undo goes
    /// replica by replica, so that it needs no room for a second set.
    pub(super) fn strategy(&self, rollout: &Rollout) -> Strategy {
        let written = self.policy(rollout.to).map(RolloutSpec::effective_strategy);
        match written {
            // What runs on is in nobody's way.
            _ if self.releases.get(&rollout.to).is_some_and(|to| to.keeps_any()) => {
                Strategy::Rolling
            }
            Some(Strategy::Recreate) if rollout.from.is_some() => Strategy::Recreate,
            Some(Strategy::BlueGreen)
                if rollout.from.is_some() && rollout.kind == RolloutKind::Apply =>
            {
                Strategy::BlueGreen
            }
            Some(Strategy::Canary) => Strategy::Canary,
            _ => Strategy::Rolling,
        }
    }

    /// When something last went forward: what the rollout notes itself, or a replica of the coming
    /// release became available (Nomad's rule: the progress clock is reset by each healthy one). While a
    /// replica drains within its `drain_deadline` the clock does not run: nothing hangs, answers are
    /// given to their end.
    pub(super) fn progressed_at(&self, rollout: &Rollout) -> Timestamp {
        let coming = match rollout.direction {
            Direction::Forward => Some(rollout.to),
            Direction::Back { .. } => rollout.from,
        };
        let min_healthy = self.policy(rollout.to).map_or(Duration::ZERO, |p| p.min_healthy_time);
        coming
            .into_iter()
            .flat_map(|c| self.of(c))
            .filter(|(_, r)| is_available(r, self.now, min_healthy))
            .map(|(_, r)| r.since.plus(min_healthy))
            .chain(self.replicas.values().filter_map(|r| r.drained_until(self.now)))
            .fold(rollout.progress, Timestamp::max)
    }

    /// Replicas of the new release that the steps up to the current one ask for. None: all.
    fn step_scale(&self, rollout: &Rollout, full: u32) -> Option<u32> {
        let weight = self.step_weight(rollout)?;
        let steps = self.steps(rollout);
        let scale = steps.get(..=rollout.step)?.iter().rev().find_map(|step| match step {
            StepSpec::Scale(scale) => Some(*scale),
            _ => None,
        });
        Some(match scale {
            Some(scale) => count::scale(scale, full),
            None => count::canary_replicas(weight, full),
        })
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
        let full = coming
            .map_or(0, |c| self.wanted(c).saturating_sub(self.lent(c)))
            .saturating_add(beside);
        let scale = rollout.filter(|_| forward).and_then(|r| self.step_scale(r, full));
        let target = scale.unwrap_or(full);
        let strategy = rollout.map(|r| self.strategy(r));
        let last_stretch = forward && scale.is_none();
        let (policy, most) = match rollout {
            Some(r) => (self.policy(r.to), full.max(r.from.map_or(0, |f| self.wanted(f)))),
            None => (coming.and_then(|c| self.policy(c)), full),
        };
        let held = self.is_held()
            || rollout.is_some_and(|r| {
                r.paused.is_some() || (forward && matches!(r.gate, Some(Gate::Failed { .. })))
            });
        let floor = self.floor();
        let back = rollout.filter(|_| !forward).and_then(|r| Some((r, self.wanted(r.from?))));
        let whole = back.map_or(floor, |(r, desired)| self.floor_of(r, desired).max(floor));
        let pace = back.map_or(0, |(_, desired)| desired.saturating_sub(whole)).max(1);
        Roles {
            coming,
            target,
            full,
            floor,
            whole,
            pace,
            limit: most.saturating_add(match (strategy, rollout) {
                (Some(Strategy::BlueGreen), Some(r)) => {
                    self.wanted(r.to).min(r.from.map_or(0, |f| self.wanted(f)))
                }
                _ => policy.map_or(0, |p| count::extra(p, most)),
            }),
            forward,
            last_stretch,
            keeps: rollout
                .filter(|_| forward && !last_stretch && strategy == Some(Strategy::BlueGreen))
                .and_then(|r| r.from),
            alone: strategy == Some(Strategy::Recreate),
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
        self.replicas.range(first..=last).map(|(key, replica)| (key, &**replica))
    }
}

pub(super) fn is_available(replica: &ReplicaState, now: Timestamp, min_healthy: Duration) -> bool {
    replica.phase == Phase::Ready && now.since(replica.since) >= min_healthy
}
