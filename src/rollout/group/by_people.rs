//! What people ask of one service while it is rolled out together with others: that counts more than the group. It is
//! read from the service's state, so that a controller which was killed meanwhile finds it, too.

use super::{Group, GroupEntry, GroupState};
use crate::base::{ReleaseNumber, Timestamp};
use crate::rollout::{Direction, Outcome, Rollout, RolloutKind, ServiceState, Stop};

/// What becomes of a service that was rolled out, when all are taken back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Back {
    /// What goes on there has to end first.
    Wait,
    /// It is taken back already, or is left as it is.
    Went(GroupState),
    /// It is to be taken back.
    Take,
}

impl Group {
    /// Why one that waits for its turn is not begun: a person stopped it, or asked for another rollout of it.
    pub(super) fn overtaken(&self, state: &ServiceState) -> Option<String> {
        let stopped = state.stopped.as_ref().filter(|stop| stop.at >= self.began);
        match (stopped, self.others_rollout(state, self.began)) {
            (Some(stop), Some(rollout)) if rollout.began > stop.at => Some(asked_since(rollout)),
            (Some(stop), _) => Some(stop.words()),
            (None, rollout) => rollout.map(asked_since),
        }
    }

    /// What came of being taken back, once that is over, or as soon as somebody else asked for another rollout.
    pub(super) fn undone(&self, entry: &GroupEntry, state: &ServiceState) -> Option<GroupState> {
        let not_undone = |why: String| Some(GroupState::NotUndone { why });
        let others = self.others_rollout(state, entry.since);
        let others = others.filter(|rollout| rollout.kind == RolloutKind::Apply);
        if let Some(rollout) = state.active_rollout() {
            let other = others.filter(|_| rollout.direction == Direction::Forward);
            return not_undone(asked_since(other?));
        }
        if state.stopping {
            return None;
        }
        let undo = state.rollout.as_ref().filter(|r| r.kind == RolloutKind::Undo);
        let is_undone = undo.is_some_and(|r| r.outcome == Some(Outcome::Completed));
        match (is_undone, state.replicas.is_empty()) {
            (true, _) => Some(GroupState::Undone),
            // Something was served before, and is to be again.
            (false, true) if undo.is_some() => not_undone(stopped_words(state)),
            (false, true) => Some(GroupState::Undone),
            (false, false) => not_undone(others.map_or_else(
                || "its undo did not complete; `gpudeck rollout undo` again".to_owned(),
                asked_since,
            )),
        }
    }

    /// The last rollout of a service, if it began since then and is none of this group's.
    fn others_rollout<'a>(&self, state: &'a ServiceState, since: Timestamp) -> Option<&'a Rollout> {
        let rollout = state.rollout.as_ref()?;
        (rollout.of_group != Some(self.began) && rollout.began >= since).then_some(rollout)
    }
}

/// What becomes of one that was rolled out, when all are taken back.
pub(super) fn back_of(
    entry: &GroupEntry,
    (release, before): (ReleaseNumber, Option<ReleaseNumber>),
    state: &ServiceState,
) -> Back {
    if is_undone_from(state, release, entry.since) {
        return Back::Went(GroupState::Undoing);
    }
    if let Some(rollout) = state.active_rollout() {
        let not_undone = || GroupState::NotUndone { why: asked_since(rollout) };
        let is_forward = rollout.direction == Direction::Forward;
        return if is_forward { Back::Went(not_undone()) } else { Back::Wait };
    }
    match state.stable.filter(|_| !state.stopping) {
        Some(stable) if stable == release => Back::Take,
        Some(stable) => {
            let last = state.rollout.as_ref().filter(|rollout| rollout.to == stable);
            let unnamed = || format!("{stable} was rolled out since");
            Back::Went(GroupState::NotUndone { why: last.map_or_else(unnamed, asked_since) })
        }
        // Nothing was served before it, either.
        None if before.is_none() => Back::Went(GroupState::Undoing),
        None => Back::Went(GroupState::NotUndone { why: stopped_words(state) }),
    }
}

/// An undo of this release has begun, and has not come to nothing.
fn is_undone_from(state: &ServiceState, release: ReleaseNumber, since: Timestamp) -> bool {
    state
        .rollout
        .as_ref()
        .filter(|r| matches!(r.outcome, None | Some(Outcome::Completed)))
        .is_some_and(|r| r.kind == RolloutKind::Undo && r.began >= since && r.from == Some(release))
}

/// `r25 was rolled out since, as ada asked`.
fn asked_since(rollout: &Rollout) -> String {
    let (to, by) = (rollout.to, &rollout.by);
    match rollout.outcome {
        None => format!("{to} is being rolled out since, as {by} asked"),
        Some(Outcome::Completed) => format!("{to} was rolled out since, as {by} asked"),
        Some(_) => format!("{by} asked for {to} since, which did not stay"),
    }
}

fn stopped_words(state: &ServiceState) -> String {
    let stop = state.stopped.as_ref();
    stop.map_or_else(|| "it was stopped".to_owned(), Stop::words)
}
