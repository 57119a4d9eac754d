//! What must be true of hosts, and of everything once it has come to rest.

use super::*;

impl World {
    pub(super) fn replica_runs(&self, id: ReplicaId) -> bool {
        let mut ranks = self.ranks.iter().filter(|(rank, _)| rank.replica == id).peekable();
        ranks.peek().is_some() && ranks.all(|(_, r)| r.running)
    }

    pub(super) fn check_devices(&self) {
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
                    && state.ready_total() < self.memory.floor() + serving
            })
    }

    /// What a person rolls out where it may serve less for a while.
    pub fn serve_less(&mut self) -> Release {
        let mut release = self.memory.serves_less().unwrap();
        release.number = ReleaseNumber(self.fresh_number());
        release.id = ReleaseId(uuid::Uuid::from_u128(0x1000 + u128::from(release.number.0)));
        release
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
            assert_eq!(wanted.len(), usize::try_from(there).unwrap(), "too many or too few places");
            for key in wanted {
                let replica_state = &state.replicas[&key];
                assert_eq!(replica_state.phase, Phase::Ready, "{key} does not come to rest");
                expected.extend(state.rank_ids(key));
            }
            assert_eq!(state.condition(), Condition::Serving, "it does not serve at rest");
        } else {
            assert_eq!(state.condition(), Condition::Stopped, "it is not stopped at rest");
        }
        let left = state.replicas.keys().find(|k| Some(k.release) != state.stable);
        assert_eq!(left, None, "something that is not stable stays in the books");
        let runs: BTreeSet<RankId> =
            self.ranks.iter().filter(|(_, r)| r.running).map(|(id, _)| id.clone()).collect();
        assert_eq!(runs, expected, "the hosts hold something else than the release says");
        let served: BTreeSet<ReplicaId> = self
            .gateway
            .table
            .iter()
            .filter(|s| s.mode == TrafficMode::Ready && s.weight > 0)
            .map(|s| s.replica)
            .collect();
        let ready: BTreeSet<ReplicaId> = self.phases().into_iter().map(|(id, _)| id).collect();
        assert_eq!(served, ready, "the gateway sends elsewhere");
        self.memory.check_whole(&self.ranks);
        if let Some(rollout) = &state.rollout {
            assert_eq!(self.recorded.get(&rollout.to), rollout.outcome.as_ref(), "not recorded");
        }
    }
}
