//! Which replicas start and which go: the part that must never take the service below its floor.
//!
//! Replicas of the release that is *coming* take the places of those that are *going*. A place is
//! free when no live replica of ours holds one of its GPUs. Going replicas are taken out only
//! - to free GPUs that the next coming replica needs,
//! - to make room when as many live as the policy allows,
//! - when the coming release is complete,
//!
//! and each time only as far as the floor allows; on the way back to more replicas than the floor is
//! reckoned from, a few at a time. So the old release keeps all it can until the
//! new one has proved itself, and one rule serves in-place, surge and mixed rollouts, and the way
//! back, where the roles are swapped.

use std::collections::BTreeSet;
use std::time::Duration;

use super::neighbours::{Candidate, Candidates};
use super::roles::{Roles, is_available};
use super::shared::Shared;
use super::state::{Phase, ReplicaState};
use super::step::Decider;
use crate::base::{DeviceId, HostName, ReplicaKey};
use crate::spec::Strategy;

/// A coming replica on host memory that has been refused for so long makes a going one on the same
/// host give way. (GPUs are known to be held; how much host memory a process will free is not.)
const MEMORY_PATIENCE: Duration = Duration::from_secs(30);

/// What may still be taken out in this round, and what may still be started.
struct Budget {
    available: u32,
    /// Those of them that get requests.
    serving: u32,
    /// What one of the coming replicas gets of the requests, and one of the others.
    weights: (u16, u16),
    floor: u32,
    live: u32,
    /// Replicas of the coming release that start, load, or have yet to prove themselves.
    arriving: u32,
    leaving: u32,
    /// Places that are becoming free and for which a replica waits already.
    reserved: u32,
    limit: u32,
    /// No going replica can make room as things are: not to be looked for again until one is taken out.
    no_room: bool,
}

impl Decider<'_> {
    pub(super) fn tend_capacity(&mut self) {
        let roles = self.state.roles();
        let is_held = self.state.is_held();
        let Some(coming) = roles.coming else {
            if is_held {
                return;
            }
            // Stopping, or taking back a first deployment: everything goes.
            for key in self.keys(|_, _| true) {
                self.retire(key);
            }
            return;
        };
        let vacated = self.state.vacated.clone();
        for key in self.keys(|key, r| key.release == coming && r.retiring && !vacated.contains(key))
        {
            self.keep(key);
        }
        let stable = self.state.stable;
        if roles.alone && !roles.held {
            for key in self.keys(|key, r| key.release != coming && !r.retiring) {
                self.retire(key);
            }
        }
        for key in self.keys(|key, r| {
            if is_held {
                return false;
            }
            let serves_on = roles.forward && !roles.alone && Some(key.release) == stable;
            key.release != coming && !serves_on && r.phase != Phase::Ready
        }) {
            self.retire(key);
        }
        let missing_or_pending = roles.full
            > u32::try_from(
                self.state
                    .of(coming)
                    .filter(|(key, r)| {
                        !vacated.contains(key) && !matches!(r.phase, Phase::Pending { .. })
                    })
                    .count(),
            )
            .unwrap_or(u32::MAX);
        let mut budget = self.budget(&roles);
        for key in self.keys(|key, r| !is_held && vacated.contains(key) && !r.retiring) {
            self.take_out(&[key], &roles, &mut budget);
        }
        if missing_or_pending {
            let Candidates { list, committed, others } = self.state.candidates(coming, roles.full);
            for candidate in self.choose(&roles, list, committed) {
                self.try_start(candidate.key, others.of(&candidate), &roles, &mut budget);
            }
        }
        if !roles.held {
            self.relieve_memory(&roles, &mut budget);
            self.retire_surplus(&roles, &mut budget);
        }
        if roles.forward && !roles.alone {
            self.restart_stable(&roles, &mut budget);
        }
    }

    fn keys(&self, which: impl Fn(&ReplicaKey, &ReplicaState) -> bool) -> Vec<ReplicaKey> {
        self.state.replicas.iter().filter(|(k, r)| which(k, r)).map(|(k, _)| *k).collect()
    }

    fn budget(&self, roles: &Roles) -> Budget {
        let now = self.now();
        let mut budget = Budget {
            available: 0,
            serving: 0,
            weights: self.state.weights(roles),
            floor: roles.floor,
            live: 0,
            arriving: 0,
            leaving: 0,
            reserved: 0,
            limit: roles.limit,
            no_room: false,
        };
        // Of blue-green's sets one serves: while the new one does in place of the old, what is ready of that is none.
        let stands_in = self.state.active_rollout().is_some_and(|rollout| {
            !roles.forward && self.state.strategy(rollout) == Strategy::BlueGreen
        }) && self.state.has_none(roles);
        for (key, replica) in &self.state.replicas {
            let serves = !stands_in || Some(key.release) != roles.coming;
            budget.available += u32::from(serves && is_available(replica, now, roles.min_healthy));
            let served = self.serves(*key, replica, roles, budget.weights);
            budget.serving += u32::from(served);
            // Kubernetes never counts a pod that terminates; here it counts as long as that takes no longer than
            // it should. Whose host is away must not keep others from starting. (Its devices stay its own.)
            let counts = replica.phase.is_live() && !self.state.stop_is_overdue(*key, replica);
            budget.live += u32::from(counts);
            budget.leaving += u32::from(counts && replica.retiring);
            // Not those that wait: they may wait for what one that goes still holds. Nor those that have failed
            // before: others must not wait for what may never come.
            let arrives = match replica.phase {
                Phase::Starting | Phase::Loading => true,
                Phase::Ready => !is_available(replica, now, roles.min_healthy),
                _ => false,
            };
            let arrives = arrives && replica.failures == 0 && !replica.retiring;
            budget.arriving += u32::from(arrives && Some(key.release) == roles.coming);
        }
        budget
    }

    /// It is available and gets requests: before the first weight, and beside the set of blue-green that serves, what is
    /// ready gets none, and nothing goes because of it.
    fn serves(
        &self,
        key: ReplicaKey,
        replica: &ReplicaState,
        roles: &Roles,
        (coming, going): (u16, u16),
    ) -> bool {
        let weight = if Some(key.release) == roles.coming { coming } else { going };
        weight > 0 && is_available(replica, self.now(), roles.min_healthy)
    }

    /// Chooses which replicas of the coming release to have (a canary takes the cheapest places:
    /// those that cost the fewest ready replicas), enters them as pending, and returns all pending
    /// ones in the order in which to try them.
    fn choose(
        &mut self,
        roles: &Roles,
        candidates: Vec<Candidate>,
        committed: u32,
    ) -> Vec<Candidate> {
        let now = self.now();
        let (again, mut order): (Vec<_>, Vec<_>) = candidates.into_iter().partition(|c| c.failed);
        order.sort_unstable_by_key(|c| (c.ready, c.staying, c.key));
        let places = usize::try_from(roles.target.saturating_sub(committed)).unwrap_or(0);
        for candidate in order.iter().take(places).filter(|c| !c.is_there && !roles.held) {
            let attempt = self.state.next_attempt(candidate.key);
            let replica = ReplicaState::pending(attempt, now, now);
            self.state.replicas.insert(candidate.key, replica.into());
            self.moved = true;
        }
        for candidate in order.drain(places.min(order.len())..).filter(|c| c.is_there) {
            self.state.replicas.remove(&candidate.key);
            self.moved = true;
        }
        order.extend(again);
        order
    }

    /// Starts a pending replica, or takes out what is in its way.
    fn try_start(
        &mut self,
        key: ReplicaKey,
        others: &[ReplicaKey],
        roles: &Roles,
        budget: &mut Budget,
    ) {
        let now = self.now();
        let Some(replica) = self.state.replicas.get(&key) else { return };
        let Phase::Pending { not_before } = replica.phase else { return };
        // A pause holds what is new, not the healing of what serves.
        let heals = self.state.is_kept(key) && replica.failures > 0;
        if now < not_before || (roles.held && !heals) {
            return;
        }
        if self.state.waits_for_loan(key) {
            return;
        }
        if roles.alone && self.state.replicas.keys().any(|other| other.release != key.release) {
            return;
        }
        let (mine, theirs) = (
            |other: &&ReplicaKey| other.release == key.release,
            |other: &&ReplicaKey| other.release != key.release,
        );
        let others = others.iter();
        if others.clone().filter(mine).any(|other| self.is_live(*other)) {
            return;
        }
        if !roles.held {
            let staying: Vec<ReplicaKey> = others
                .clone()
                .filter(theirs)
                .filter(|other| self.state.replicas.get(other).is_some_and(|r| !r.retiring))
                .copied()
                .collect();
            if !self.take_out(&staying, roles, budget) {
                return;
            }
        }
        if others.filter(theirs).any(|other| self.is_live(*other)) {
            return;
        }
        if budget.live >= budget.limit {
            let staying = budget.live.saturating_sub(budget.leaving);
            let room_is_coming = staying + budget.reserved < budget.limit;
            if room_is_coming || (!roles.held && self.make_room(roles, budget)) {
                budget.reserved += 1;
            }
            return;
        }
        budget.live += 1;
        budget.arriving += 1;
        self.start_replica(key);
    }

    fn is_live(&self, key: ReplicaKey) -> bool {
        self.state.replicas.get(&key).is_some_and(|r| r.phase.is_live())
    }

    /// Takes all of these out, or none if the floor does not allow it.
    fn take_out(&mut self, keys: &[ReplicaKey], roles: &Roles, budget: &mut Budget) -> bool {
        let now = self.now();
        let kept = |key: &&ReplicaKey| {
            roles.keeps == Some(key.release) && !self.state.vacated.contains(key)
        };
        if keys.iter().any(|key| kept(&key)) {
            return false;
        }
        let victims: Vec<&Shared<ReplicaState>> =
            keys.iter().filter_map(|key| self.state.replicas.get(key)).collect();
        let any_ready = victims.iter().any(|r| r.phase == Phase::Ready);
        let available = victims.iter().filter(|r| is_available(r, now, roles.min_healthy)).count();
        let available = u32::try_from(available).unwrap_or(u32::MAX);
        let served = keys
            .iter()
            .filter_map(|key| Some((*key, self.state.replicas.get(key)?)))
            .filter(|(key, replica)| self.serves(*key, replica, roles, budget.weights));
        let served = u32::try_from(served.count()).unwrap_or(u32::MAX);
        let live = victims.iter().filter(|r| r.phase.is_live()).count();
        let left = budget.available.saturating_sub(available);
        if any_ready && left < budget.floor {
            return false;
        }
        let serving = budget.serving.saturating_sub(served);
        if served > 0 && serving < budget.floor {
            return false;
        }
        let in_motion = budget.arriving.saturating_add(budget.leaving);
        if any_ready && left < roles.whole && in_motion >= roles.pace {
            return false;
        }
        budget.available = left;
        budget.serving = serving;
        budget.leaving += u32::try_from(live).unwrap_or(0);
        budget.no_room &= keys.is_empty();
        for key in keys {
            self.retire(*key);
        }
        true
    }

    /// As many live as may: one going replica makes room, one that is not ready before one that is
    /// (Kubernetes' `cleanupUnhealthyReplicas`). One that is ready goes only when nothing is lost
    /// by waiting: either enough are available without it, or no coming one is on its way.
    fn make_room(&mut self, roles: &Roles, budget: &mut Budget) -> bool {
        // Every pending replica asks. What starts or is awaited meanwhile only makes it harder.
        if !budget.no_room {
            budget.no_room = !self.try_make_room(roles, budget);
        }
        !budget.no_room
    }

    fn try_make_room(&mut self, roles: &Roles, budget: &mut Budget) -> bool {
        let going = self.state.replicas.iter().filter(|(key, r)| {
            let others = Some(key.release) != roles.coming && roles.keeps != Some(key.release);
            others && r.phase.is_live() && !r.retiring
        });
        let victim = going.map(|(key, r)| (r.phase == Phase::Ready, *key)).min();
        let Some((ready, victim)) = victim else { return false };
        let plenty = budget.available > roles.full;
        let on_its_way = |r: &ReplicaState| {
            matches!(r.phase, Phase::Starting | Phase::Waiting { .. } | Phase::Loading)
        };
        let waits = budget.reserved > 0
            || roles.coming.is_some_and(|c| self.state.of(c).any(|(_, r)| on_its_way(r)));
        if ready && waits && !plenty {
            return false;
        }
        self.take_out(&[victim], roles, budget)
    }

    /// The coming release is complete: the others are surplus.
    fn retire_surplus(&mut self, roles: &Roles, budget: &mut Budget) {
        let Some(coming) = roles.coming else { return };
        if roles.forward && !roles.last_stretch {
            return;
        }
        if self.state.available(coming, roles.min_healthy) < roles.full {
            return;
        }
        for key in self.keys(|key, r| key.release != coming && !r.retiring) {
            self.take_out(&[key], roles, budget);
        }
    }

    /// Host memory is not reserved as GPUs are: when a coming replica is refused for long, one
    /// going replica on one of its hosts gives way, as far as the floor allows.
    fn relieve_memory(&mut self, roles: &Roles, budget: &mut Budget) {
        let now = self.now();
        if budget.leaving > 0 {
            return;
        }
        let Some(release) = roles.coming.and_then(|c| self.state.releases.get(&c)) else { return };
        let mut hosts: BTreeSet<&HostName> = BTreeSet::new();
        for (key, replica) in self.state.of(release.number) {
            let long = replica.waiting_since.is_some_and(|t| now.since(t) >= MEMORY_PATIENCE);
            if long && matches!(replica.phase, Phase::Waiting { .. }) {
                let ranks = release.replica(key.replica).map_or(&[][..], |p| p.ranks.as_slice());
                let on_cpu = ranks.iter().filter(|r| r.devices.contains(&DeviceId::Cpu));
                hosts.extend(on_cpu.map(|r| &r.host));
            }
        }
        if hosts.is_empty() {
            return;
        }
        let near = self.keys(|key, r| {
            let plan = self.state.releases.get(&key.release).and_then(|r| r.replica(key.replica));
            Some(key.release) != roles.coming
                && roles.keeps != Some(key.release)
                && r.phase.is_live()
                && !r.retiring
                && plan.is_some_and(|p| p.ranks.iter().any(|rank| hosts.contains(&rank.host)))
        });
        let victim = near.into_iter().min_by_key(|key| {
            let ready = self.state.replicas.get(key).is_some_and(|r| r.phase == Phase::Ready);
            (ready, *key)
        });
        let Some(victim) = victim else { return };
        if self.take_out(&[victim], roles, budget) {
            // The next one gives way only after a new spell of patience.
            for replica in self.state.replicas.values_mut() {
                replica.waiting_since = replica.waiting_since.map(|_| now);
            }
        }
    }

    /// While a rollout goes forward the stable release heals as ever, where its place is still
    /// free.
    fn restart_stable(&mut self, roles: &Roles, budget: &mut Budget) {
        let now = self.now();
        let pending = self.keys(|key, r| {
            let due = matches!(r.phase, Phase::Pending { not_before } if now >= not_before);
            Some(key.release) != roles.coming && due
        });
        for key in pending {
            if budget.live >= budget.limit {
                return;
            }
            let has_plan = self
                .state
                .releases
                .get(&key.release)
                .is_some_and(|r| r.replica(key.replica).is_some());
            if !has_plan {
                continue;
            }
            let neighbours = self.state.neighbours();
            let taken = neighbours.of(key).iter().any(|other| self.is_live(*other));
            if !taken {
                budget.live += 1;
                self.start_replica(key);
            }
        }
    }
}
