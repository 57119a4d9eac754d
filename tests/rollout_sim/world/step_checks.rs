//! What must be true of each step of the decider: who is taken out and stopped, whose time is over.

use super::*;

impl World {
    pub(super) fn check_step(
        &mut self,
        event: &EventKind,
        before: &[(ReplicaId, Phase)],
        actions: &[Action],
    ) {
        let state = &self.state;
        let ready = state.ready_total();
        self.lowest_ready = self.lowest_ready.min(ready);
        // Promise 2. Only a drain takes a ready replica out by our own will.
        for (id, phase) in before {
            let now = self.replica_of(*id);
            let now_phase = now.map(|r| &r.phase);
            let by_fault = is_fault_of(event, *id);
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
                let at_gateway = self.gateway.table.iter().find(|s| s.replica == *id);
                let serves = at_gateway.is_some_and(|s| s.mode == TrafficMode::Ready);
                let alive = self.replica_runs(*id);
                assert!(!(serves && alive), "{id} is stopped while the gateway sends to it");
            }
            // What a rollout takes over runs on, whether it goes on or back.
            let goes = state
                .replica_of(*id)
                .is_some_and(|r| matches!(r.phase, Phase::Draining { .. } | Phase::Stopping));
            if *phase == Phase::Ready && goes && !state.stopping {
                let by = state.active_rollout().filter(|r| self.memory.takes_over(r.to, *id));
                assert!(by.is_none() || by_fault, "{id} is taken out, which is to run on");
            }
            // An attempt is never used again.
            if let Some(now) = state.replicas.get(&self.memory.owner(id.key())) {
                assert!(now.attempt >= id.attempt, "{id} went back to attempt {}", now.attempt);
            }
        }
        self.check_strategy(before, actions);
        for action in actions {
            match action {
                Action::StartRank { rank, plan } => {
                    self.memory.check_place(rank, plan);
                    assert!(!self.stopped.contains(rank), "{rank:?} is started after its stop");
                }
                Action::ApplyTraffic { servers, .. } => self.check_table(servers),
                _ => {}
            }
        }
        for action in actions {
            if let Action::StopRank { rank, .. } = action {
                let id = rank.replica;
                let serves = self.replica_of(id).is_some_and(|r| r.phase == Phase::Ready);
                assert!(!serves, "{id}, which is ready, is told to stop");
                self.stopped.insert(rank.clone());
            }
        }
    }

    /// Replicas of which the last failed attempt, this one or one before it, did not become healthy in time,
    /// with how many have failed.
    pub(super) fn late_for_health(&self) -> BTreeMap<ReplicaId, u32> {
        let late = |trouble: &Option<String>| {
            trouble.as_deref().is_some_and(|why| why.contains("(healthy_deadline)"))
        };
        let replicas = self.state.replicas.iter().filter(|(_, r)| late(&r.trouble));
        let id = |key: &ReplicaKey| self.state.replica_id(key.release, key.replica);
        replicas.filter_map(|(key, r)| Some((id(key)?, r.failures))).collect()
    }

    /// Nobody's time is over before it had all of it while a controller was there.
    pub(super) fn check_healthy_deadline(
        &mut self,
        before: &[(ReplicaId, Phase)],
        late_before: &BTreeMap<ReplicaId, u32>,
        actions: &[Action],
    ) {
        let late_now = self.late_for_health();
        for (id, phase) in before {
            let now = self.replica_of(*id);
            let stops = now.is_some_and(|r| r.phase == Phase::Stopping);
            let is_late = late_now.get(id).is_some_and(|n| late_before.get(id) != Some(n));
            let late = stops && is_late;
            let from = self.healthy_from.get(id).filter(|_| late && *phase != Phase::Stopping);
            let Some((since, clock, away)) = from else { continue };
            // A clock that jumps makes deadlines come early or late.
            if *clock == self.clock_error_ms {
                let owner = self.memory.owner(id.key()).release;
                // In the step in which it is given back both have a say.
                let of = |release| self.memory.spec(release).rollout.healthy_deadline;
                let to = self.state.rollout.as_ref().map(|r| r.to);
                let to = to.filter(|to| self.memory.takes_over(*to, *id)).unwrap_or(owner);
                let deadline = of(owner).min(of(id.release)).min(of(to));
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
                    if self.replica_of(*replica).is_some_and(|r| r.proved) =>
                {
                    *replica
                }
                _ => continue,
            };
            self.healthy_from.insert(began, (self.now, self.clock_error_ms, self.away));
        }
    }
}
