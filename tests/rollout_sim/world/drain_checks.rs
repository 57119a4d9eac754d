//! No drain is cut short: it ends when nothing is in flight any more, or at its deadline.

use super::*;

/// What was heard of the drains.
#[derive(Default)]
pub(super) struct Drains {
    /// Since when the gateway sends nothing new, and how often the clock had jumped by then.
    since: BTreeMap<ReplicaId, (Timestamp, u64)>,
    /// Nothing is in flight there any more.
    told: BTreeSet<ReplicaId>,
}

impl World {
    /// Who drained before this step is told to stop only by a fault of its own, at the end of its drain, or because a
    /// person ends the service.
    pub(super) fn check_drains(
        &mut self,
        event: &EventKind,
        before: &[(ReplicaId, Phase)],
        actions: &[Action],
        stopping: bool,
    ) {
        if let EventKind::Drained { replica } = event
            && self.drains.since.contains_key(replica)
        {
            self.drains.told.insert(*replica);
        }
        for action in actions {
            if let Action::AwaitDrained { replica } = action {
                self.drains.since.insert(*replica, (self.now, self.clock_jumps));
                self.drains.told.remove(replica);
            }
        }
        for action in actions {
            let Action::StopRank { rank, .. } = action else { continue };
            let id = rank.replica;
            let drained =
                before.iter().any(|(b, p)| *b == id && matches!(p, Phase::Draining { .. }));
            if !drained || stopping || is_fault_of(event, id) {
                continue;
            }
            let since = self.drains.since.get(&id);
            let Some((since, jumps)) = since else {
                // Which never sends it anything: only how long it has drained counts.
                if self.lacks_backend {
                    continue;
                }
                panic!("{id} is stopped before its drain has begun at the gateway");
            };
            let owner = self.memory.owner(id.key()).release;
            let deadline = self.memory.spec(owner).rollout.drain_deadline;
            let had = self.now.since(*since);
            let is_over = self.drains.told.contains(&id) || had >= deadline;
            // A clock that jumps makes deadlines come early or late.
            assert!(
                is_over || *jumps != self.clock_jumps,
                "{id} is stopped before its drain was over: after {had:?} of {deadline:?}"
            );
        }
    }
}

/// Whether the event tells that something happened to the replica.
pub(super) fn is_fault_of(event: &EventKind, id: ReplicaId) -> bool {
    match event {
        EventKind::RankEnded { rank, .. } => rank.replica == id,
        EventKind::ReplicaUnready { replica, .. } => *replica == id,
        _ => false,
    }
}
