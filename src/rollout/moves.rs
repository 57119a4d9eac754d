//! Moving single replicas of the stable release to other devices, for maintenance: one at a time, the
//! successor ready and in the traffic before its predecessor is drained.
//!
//! A successor is a further replica of the same release: the release's list of plans only ever grows, so
//! what an index means never changes, and every rank keeps its name. Which indexes are wanted follows from
//! `vacated`. A rollout that begins, a stop, or a successor that fails ends the moves; what was moved stays.

use serde::{Deserialize, Serialize};

use super::release::ReplicaPlan;
use super::state::{Phase, ServiceState};
use super::step::Decider;
use crate::base::{ReleaseNumber, ReplicaKey, Timestamp, text};

/// Longest reason that is kept, in characters.
const MAX_WHY: usize = 300;

/// A replica that is to be moved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RequestedMove {
    /// Its index.
    pub replica: u32,
    /// Where its successor runs.
    pub plan: ReplicaPlan,
}

/// A move that was asked for and is not over.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReplicaMove {
    /// Of which release.
    pub release: ReleaseNumber,
    /// The index of the predecessor.
    pub from: u32,
    /// Where the successor runs.
    pub plan: ReplicaPlan,
    /// The index of the successor, once it has one.
    pub to: Option<u32>,
    /// When its turn came.
    pub began: Option<Timestamp>,
    /// What for, in words: `node1 is being drained`.
    pub why: String,
}

impl ServiceState {
    /// The indexes of a release that are wanted, at most `full`.
    pub(super) fn wanted_indexes(&self, release: ReleaseNumber, full: u32) -> Vec<u32> {
        let plans = self.releases.get(&release).map_or(0, |r| r.replicas.len());
        (0..u32::try_from(plans).unwrap_or(u32::MAX))
            .filter(|replica| !self.vacated.contains(&ReplicaKey { release, replica: *replica }))
            .take(usize::try_from(full).unwrap_or(usize::MAX))
            .collect()
    }

    /// 1 while a successor is wanted beside its predecessor.
    pub(super) fn moving_beside(&self, coming: Option<ReleaseNumber>) -> u32 {
        let beside = self.moves.first().is_some_and(|m| {
            let from = ReplicaKey { release: m.release, replica: m.from };
            Some(m.release) == coming && m.to.is_some() && !self.vacated.contains(&from)
        });
        u32::from(beside)
    }

    /// When the present move is given up.
    pub(super) fn move_deadline(&self) -> Option<Timestamp> {
        let first = self.moves.first()?;
        Some(first.began?.plus(self.policy(first.release)?.return_limit()))
    }
}

impl Decider<'_> {
    pub(super) fn request_moves(
        &mut self,
        release: ReleaseNumber,
        moves: &[RequestedMove],
        why: &str,
    ) {
        let state = &mut *self.state;
        if state.stable != Some(release) || state.stopping || state.active_rollout().is_some() {
            return;
        }
        let full = state.wanted(release);
        let wanted = state.wanted_indexes(release, full.saturating_add(1));
        state.move_trouble = None;
        for request in moves {
            let known = state.moves.iter().any(|m| m.from == request.replica);
            if known || !wanted.contains(&request.replica) || request.plan.ranks.is_empty() {
                continue;
            }
            state.moves.push(ReplicaMove {
                release,
                from: request.replica,
                plan: request.plan.clone(),
                to: None,
                began: None,
                why: text::clean(why, MAX_WHY),
            });
        }
        self.moved = true;
    }

    /// Ends all moves: a successor that has not taken over goes again, a predecessor that is on its way
    /// out goes on.
    pub(super) fn cancel_moves(&mut self, why: Option<&str>) {
        let Some(first) = self.state.moves.first() else { return };
        let from = ReplicaKey { release: first.release, replica: first.from };
        if let Some(to) = first.to
            && !self.state.vacated.contains(&from)
        {
            self.state.vacated.insert(ReplicaKey { release: first.release, replica: to });
        }
        if let Some(why) = why {
            self.state.move_trouble = Some(text::clean(&format!("{from}: {why}"), MAX_WHY));
        }
        self.state.moves.clear();
        self.moved = true;
    }

    pub(super) fn tend_moves(&mut self) {
        let releases = &self.state.releases;
        self.state.vacated.retain(|key| releases.contains_key(&key.release));
        let Some(first) = self.state.moves.first().cloned() else { return };
        if self.state.stopping || self.state.active_rollout().is_some() {
            self.cancel_moves(None);
            return;
        }
        if self.state.stable != Some(first.release) {
            self.cancel_moves(None);
            return;
        }
        if self.state.is_held() {
            return;
        }
        let now = self.now();
        let from = ReplicaKey { release: first.release, replica: first.from };
        let Some(to) = first.to else {
            let Some(release) = self.state.releases.get_mut(&first.release) else { return };
            let index = u32::try_from(release.replicas.len()).unwrap_or(u32::MAX);
            release.change().replicas.push(first.plan.clone());
            if let Some(entry) = self.state.moves.first_mut() {
                entry.to = Some(index);
                entry.began = Some(now);
            }
            self.moved = true;
            return;
        };
        let to = ReplicaKey { release: first.release, replica: to };
        if self.state.vacated.contains(&from) {
            // A host that died meanwhile will not say that it stopped: the others on it are not to wait for that.
            let leaving = self.state.replicas.get(&from);
            if leaving.is_none_or(|replica| self.state.stop_is_overdue(from, replica)) {
                self.state.moves.remove(0);
                self.moved = true;
            }
            return;
        }
        let successor = self.state.replicas.get(&to);
        if let Some(trouble) = successor.filter(|r| r.failures > 0).map(|r| r.trouble.clone()) {
            let cause = trouble.unwrap_or_else(|| "it ended".to_owned());
            self.cancel_moves(Some(&format!("its successor {to} failed: {cause}")));
            return;
        }
        if self.state.move_deadline().is_some_and(|deadline| now >= deadline) {
            let waits = match successor.map(|r| &r.phase) {
                Some(Phase::Waiting { why, .. }) => why.clone(),
                _ => "it did not get ready".to_owned(),
            };
            self.cancel_moves(Some(&format!("its successor {to} took too long: {waits}")));
            return;
        }
        let min_healthy = self.state.roles().min_healthy;
        let takes_over = self
            .state
            .replicas
            .get(&to)
            .is_some_and(|r| super::roles::is_available(r, now, min_healthy));
        // In the gateway's table, too: the floor counts what is ready, people feel what is reached.
        if takes_over && self.state.traffic_settled() {
            self.state.vacated.insert(from);
            self.moved = true;
        }
    }
}
