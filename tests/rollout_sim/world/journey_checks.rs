//! What must be true of a journey: what each strategy promises, how rollouts begin, turn back and pass steps.

use super::*;

impl World {
    /// The strategy of the rollout under way, and its beginning: from the specs here.
    pub(super) fn strategy(&self) -> Option<(&Rollout, Strategy)> {
        let rollout = self.state.rollout.as_ref().filter(|r| r.outcome.is_none())?;
        let written = self.state.releases[&rollout.to].spec.rollout.strategy?;
        rollout.from?;
        if self.memory.keeps_any(rollout.to) {
            return None;
        }
        let undo = rollout.kind == RolloutKind::Undo;
        (written == Strategy::Recreate || !undo).then_some((rollout, written))
    }

    /// What each strategy promises.
    pub(super) fn check_strategy(&self, before: &[(ReplicaId, Phase)], actions: &[Action]) {
        if self.state.stopping {
            return;
        }
        let Some((rollout, strategy)) = self.strategy() else { return };
        if strategy == Strategy::Recreate {
            for action in actions {
                let Action::StartRank { rank, .. } = action else { continue };
                let mine = rank.replica.release;
                // One that waits for its turn is no process yet.
                let there = |key: &ReplicaKey, r: &deciding::rollout::ReplicaState| {
                    key.release != mine && r.phase.is_live()
                };
                let other = self.state.replicas.iter().find(|(key, r)| there(key, r));
                let other = other.map(|(key, _)| key);
                assert!(other.is_none(), "recreate: {rank:?} starts while {other:?} is there");
            }
        }
        if strategy != Strategy::BlueGreen || rollout.direction != Direction::Forward {
            return;
        }
        let spec = &self.state.releases[&rollout.to].spec;
        let switch = spec.rollout.steps.len() + 1;
        // The successor of a move that the rollout ended is one more than the old set has.
        let of_old_set = |id: &ReplicaId| {
            Some(id.release) == rollout.from && !self.state.vacated.contains(&id.key())
        };
        for (id, phase) in before.iter().filter(|(id, _)| of_old_set(id)) {
            let now = self.replica_of(*id);
            let goes = now.is_some_and(|r| matches!(r.phase, Phase::Draining { .. }));
            // After the switch and its delay.
            assert!(
                !(goes && *phase == Phase::Ready && rollout.step <= switch + 1),
                "blue-green: {id} of the old set goes in step {}",
                rollout.step
            );
        }
        for action in actions {
            let Action::ApplyTraffic { servers, .. } = action else { continue };
            let gets = |new: bool| {
                servers
                    .iter()
                    .filter(|s| (s.replica.release == rollout.to) == new)
                    .any(|s| s.weight > 0 && s.mode == TrafficMode::Ready)
            };
            assert!(!(gets(true) && gets(false)), "blue-green: both sets get traffic");
            let whole = self.state.ready(rollout.to) >= spec.replicas.get();
            let old = rollout.from.map_or(0, |from| self.state.ready(from));
            // It serves in place of a set that was lost, and that does not carry the floor yet.
            let mut had = self.wanted_table.iter().filter(|s| s.weight > 0).peekable();
            let had_all = had.peek().is_some() && had.all(|s| s.replica.release == rollout.to);
            assert!(
                !gets(true)
                    || old == 0
                    || had_all && old < self.memory.whole_floor()
                    || rollout.step > switch
                    || (rollout.step == switch && whole),
                "blue-green: the switch comes in step {} with {} ready",
                rollout.step,
                self.state.ready(rollout.to)
            );
        }
    }

    /// The rollout under way, as far as it is checked from one event to the next.
    pub(super) fn journey(&self) -> Option<(ReleaseNumber, Timestamp, bool, usize, bool)> {
        let rollout = self.state.rollout.as_ref()?;
        let forward = rollout.direction == Direction::Forward;
        Some((rollout.to, rollout.began, forward, rollout.step, rollout.outcome.is_some()))
    }

    /// Rollouts begin because a person asked, turn back at most once, to stable; a command's step is
    /// passed only by a good end of its newest run or by a person, and no run has the number of another.
    pub(super) fn check_journey(
        &mut self,
        event: &EventKind,
        before: Option<(ReleaseNumber, Timestamp, bool, usize, bool)>,
        actions: &[Action],
    ) {
        for action in actions {
            if let Action::RunCommand { release, step, attempt, .. } = action {
                let last = self.runs.insert((*release, *step), *attempt);
                assert!(
                    last.is_none_or(|last| last < *attempt),
                    "attempt {attempt} of a command after {last:?}"
                );
            }
        }
        let Some(rollout) = &self.state.rollout else { return };
        let same = before.filter(|b| (b.0, b.1) == (rollout.to, rollout.began));
        let Some((to, _, was_forward, step, was_over)) = same else {
            let asked = matches!(event, EventKind::RolloutRequested { .. });
            assert!(asked, "{} began by itself", rollout.to);
            return;
        };
        let forward = rollout.direction == Direction::Forward;
        assert!(was_forward || !forward, "{to} turned back and forward again");
        assert!(!was_over || rollout.outcome.is_some(), "{to} had ended and goes on");
        if !forward && rollout.outcome.is_none() {
            assert_eq!(rollout.from, self.state.stable, "it goes back to something else");
        }
        let steps = &self.state.releases[&to].spec.rollout.steps;
        let by_person = matches!(event, EventKind::Promoted { .. } | EventKind::Skipped { .. });
        for (index, passed) in steps.iter().enumerate().take(rollout.step).skip(step) {
            if let (StepSpec::Run(_), false, true) = (passed, by_person, forward) {
                let run = self.runs.get(&(to, index)).copied();
                assert!(
                    run.is_some_and(|run| self.good_runs.contains(&(to, index, run))),
                    "step {index} of {to} was passed without a good end of its command"
                );
            }
        }
    }
}
