//! Answers that are lost, come late or twice, and who goes on waiting for one.

use super::*;

impl World {
    /// Now and then something is done and its answer is lost on the way; whoever asked asks again, and nothing may come of
    /// that. Whether it was so this time.
    pub(super) fn loses_answer(&mut self, task: &Task) -> bool {
        let asks_again = matches!(
            task.action,
            Action::StartRank { .. }
                | Action::StopRank { .. }
                | Action::AwaitToken { .. }
                | Action::ApplyTraffic { .. }
                | Action::RecordOutcome { .. }
        );
        if !self.faults || !asks_again || !self.rng.one_in(50) {
            return false;
        }
        self.count("answer lost");
        let again = self.now.plus(Duration::from_millis(500 + self.rng.below(10_000)));
        match task.action.clone() {
            Action::StartRank { rank, .. } => {
                self.silently(&task.action);
                let refusal = StartRefusal::NotYet { why: "the connection was lost".to_owned() };
                self.tell(EventKind::RankRefused { rank, refusal });
            }
            Action::ApplyTraffic { version, servers } => self.lose_table(version, &servers),
            Action::RecordOutcome { release, outcome } => {
                self.record(release, outcome);
                self.later(task.clone(), again);
            }
            action => {
                self.silently(&action);
                self.later(task.clone(), again);
            }
        }
        true
    }

    /// Nobody waits any more for tokens and drains of what has gone on, as in the controller.
    pub(super) fn stop_waiting(&mut self) {
        let (phases, epoch) = (self.phases(), self.epoch);
        self.tasks.retain(|task| {
            let of = |id: &ReplicaId| {
                phases.iter().find(|(present, _)| present == id).map(|(_, phase)| phase)
            };
            let stays = match &task.action {
                Action::AwaitToken { replica, .. } => matches!(of(replica), Some(Phase::Loading)),
                Action::AwaitDrained { replica } => {
                    matches!(of(replica), Some(Phase::Draining { .. }))
                }
                _ => true,
            };
            stays || task.epoch != epoch
        });
    }

    /// How long a drain takes: most are short, some longer than they may.
    pub(super) fn how_long_it_drains(&mut self, replica: ReplicaId) -> u64 {
        if !self.rng.one_in(6) {
            return self.rng.below(20_000);
        }
        let deadline = self.memory.spec(replica.release).rollout.drain_deadline;
        let drains = self.rng.below(2 * u64::try_from(deadline.as_millis()).unwrap());
        if Duration::from_millis(drains) > deadline {
            self.count("drain takes too long");
        }
        drains
    }

    /// An old event comes again, late.
    pub(super) fn old_event(&mut self) {
        let (state, answers) = (&self.state, self.journal.iter().rev());
        let is_old = |id: &ReplicaId| {
            let present = state.replicas.get(&self.memory.owner(id.key()));
            present.is_none_or(|r| r.attempt > id.attempt)
        };
        let older = self.rng.one_in(3);
        // A word about a replica as it is now would be a lie, not late: its engine may have hung since.
        let comes = |event: &&Event| match &event.kind {
            EventKind::ReplicaReady { replica } | EventKind::Drained { replica } => is_old(replica),
            EventKind::RankRunning { .. }
            | EventKind::RankEnded { .. }
            | EventKind::RankRefused { .. }
            | EventKind::TrafficApplied { .. }
            | EventKind::TrafficFailed { .. }
            | EventKind::RunEnded { .. } => !older,
            _ => false,
        };
        let answers: Vec<&Event> =
            answers.take(if older { 1_000 } else { 60 }).filter(comes).collect();
        if !answers.is_empty() {
            let event = answers[self.rng.index(answers.len())].kind.clone();
            self.count(if older {
                "late word of an older attempt"
            } else {
                "late or doubled event"
            });
            self.tell(event);
        }
    }
}
