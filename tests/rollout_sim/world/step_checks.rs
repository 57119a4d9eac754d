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
            let now = state.replicas.get(&id.key()).filter(|r| r.attempt == id.attempt);
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
            // An attempt is never used again.
            if let Some(now) = state.replicas.get(&id.key()) {
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
                let serves = state.replica_id(id.release, id.replica) == Some(id)
                    && state.replicas[&id.key()].phase == Phase::Ready;
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
}
