//! What must be true of the table that the gateway is ordered to have.

use super::*;

impl World {
    pub(super) fn check_table(&self, servers: &[TrafficServer]) {
        let mut sum = 0u32;
        for server in servers {
            let replica = self.replica_of(server.replica);
            if server.mode == TrafficMode::Ready {
                assert!(
                    replica.is_some_and(|r| r.phase == Phase::Ready),
                    "traffic to {}, which is not ready",
                    server.replica
                );
                assert!(
                    self.proved.contains(&server.replica),
                    "traffic to {}, which never generated a token",
                    server.replica
                );
                sum += u32::from(server.weight);
            }
            assert!(server.weight <= 256);
        }
        let back = self.state.active_rollout().filter(|r| r.direction != Direction::Forward);
        if let Some(from) = back.and_then(|r| r.from)
            && self.state.ready(from) >= self.memory.whole_floor().max(1)
        {
            let canary = servers
                .iter()
                .find(|s| self.memory.owner(s.replica.key()).release != from && s.weight > 0);
            assert!(
                canary.is_none() || self.comes_beside(from),
                "stable carries the floor, no more of it comes, and traffic goes to {canary:?}"
            );
        }
        let forward =
            self.state.active_rollout().is_some_and(|r| r.direction == Direction::Forward);
        let other = |s: &&TrafficServer| {
            s.weight > 0 && Some(self.memory.owner(s.replica.key()).release) != self.state.stable
        };
        if let Some(stable) = self.state.stable.filter(|_| !forward)
            && self.state.ready(stable) >= self.memory.whole_floor().max(1)
            && let Some(canary) = servers.iter().find(other)
        {
            let had_none = !self.wanted_table.iter().any(|s| other(&s));
            assert!(
                !had_none,
                "all traffic had returned to stable, and {canary:?} gets some again"
            );
            assert!(self.state.active_rollout().is_some(), "at rest {canary:?} gets traffic");
        }
        assert!(
            sum > 0 || self.state.ready_total() == 0,
            "replicas are ready and none of them gets traffic"
        );
    }

    /// A replica of the release starts or may, without one of another release being taken out for it first.
    pub(super) fn comes_beside(&self, release: ReleaseNumber) -> bool {
        let plan =
            |key: &ReplicaKey| self.state.releases[&key.release].replica(key.replica).unwrap();
        let stays = |key: &ReplicaKey| {
            let others = self.state.replicas.iter().filter(|(other, _)| other.release != release);
            let mut others = others.filter(|(_, r)| r.phase.is_live() && !r.retiring);
            others.any(|(other, _)| plan(other).conflicts_with(plan(key)))
        };
        let of_release = self.state.replicas.iter().filter(|(key, _)| key.release == release);
        of_release.filter(|(_, r)| r.failures == 0).any(|(key, r)| match r.phase {
            Phase::Starting | Phase::Loading => true,
            Phase::Pending { .. } => !stays(key),
            _ => false,
        })
    }
}
