//! The floor: what serves is counted by what engines, hosts and people told the controller, and by the tables that
//! it ordered.

use super::*;

impl World {
    /// Replicas that serve as far as anybody can know: a token of theirs was told, nothing worse since, and the newest
    /// table sends them requests.
    pub(super) fn serving(&self) -> BTreeSet<ReplicaId> {
        let served = self.wanted_table.iter();
        let served = served.filter(|s| s.mode == TrafficMode::Ready && s.weight > 0);
        served.map(|s| s.replica).filter(|id| self.proved.contains(id)).collect()
    }

    /// No action takes what serves below the floor, or below what there was. `before`: what served with
    /// what the event told, and the floor before it.
    pub(super) fn check_floor(&mut self, before: (&BTreeSet<ReplicaId>, u32), actions: &[Action]) {
        for action in actions {
            match action {
                Action::ApplyTraffic { servers, .. } => self.wanted_table = servers.to_vec(),
                // Whoever is told to stop serves nobody any more, by whatever way it came to that.
                Action::StopRank { rank, .. } => {
                    self.proved.remove(&rank.replica);
                }
                _ => {}
            }
        }
        let (served, floor_before) = before;
        let after = self.serving();
        let left = u32::try_from(after.len()).unwrap();
        let there = u32::try_from(served.len()).unwrap();
        // In the step in which a rollout begins or ends the floors before and after it both have a say.
        let floor = self.memory.floor().min(floor_before);
        let taken: Vec<String> = served.difference(&after).map(ReplicaId::to_string).collect();
        assert!(
            left >= there.min(floor),
            "below the floor: {taken:?} are taken out, {left} of {there} serve on, the floor is {floor}"
        );
    }
}
