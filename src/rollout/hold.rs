//! A hold: hosts of the service cannot be acted on just now, though they are there (their login is lost, or another
//! controller has them).
//! Until it is over nothing is taken out and nothing new is begun, in whatever direction the rollout
//! goes; what serves, serves on, and what has died is started again where that is possible. No
//! deadline runs meanwhile: nobody could have kept it.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::roles::is_available;
use super::state::{Phase, ServiceState};
use super::step::Decider;
use crate::base::{HostName, Timestamp, text};

/// Longest reason that is kept, in characters.
const MAX_WHY: usize = 300;

/// What a service is held for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HoldCause {
    /// Hosts do not let us in, or no controller was there.
    #[default]
    Away,
    /// Another controller holds hosts of it, or held them last: nothing of it is decided here.
    Elsewhere,
    /// Hosts of it could not be asked who holds them before its step's command begins.
    Unasked,
}

impl HoldCause {
    /// Whether it is the one that is not written down.
    pub fn is_away(&self) -> bool {
        *self == Self::Away
    }
}

/// Since when a service is held, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// Since when.
    pub since: Timestamp,
    /// The hosts that cannot be acted on.
    pub hosts: BTreeSet<HostName>,
    /// Why, for people: `login-lost: node1 does not let us in any more`.
    pub why: String,
    /// The step's clock stands since then; what stood before was made good at the end of a pause.
    pub owed_from: Timestamp,
    /// What for.
    #[serde(default, skip_serializing_if = "HoldCause::is_away")]
    pub cause: HoldCause,
}

impl ServiceState {
    /// Whether nothing may be taken out. A person who asks for the service's end is not held up.
    pub fn is_held(&self) -> bool {
        self.held.is_some() && !self.stopping
    }

    /// Whether another controller has hosts of it, as this one heard last.
    pub fn is_held_elsewhere(&self) -> bool {
        self.held.as_ref().is_some_and(|held| held.cause == HoldCause::Elsewhere)
    }
}

impl Decider<'_> {
    /// Begins a hold, or gives another reason for it.
    pub(super) fn hold(&mut self, hosts: &BTreeSet<HostName>, why: &str, cause: HoldCause) {
        let now = self.state.now;
        let why = text::clean(why, MAX_WHY);
        match &mut self.state.held {
            Some(held) => {
                held.why = why;
                held.hosts.clone_from(hosts);
                held.cause = cause;
            }
            None => {
                let hosts = hosts.clone();
                self.state.held = Some(Hold { since: now, hosts, why, owed_from: now, cause });
            }
        }
    }

    /// Ends it: every clock goes on where it stood.
    pub(super) fn release_hold(&mut self) {
        let Some(held) = self.state.held.take() else { return };
        let now = self.state.now;
        let min_healthy = self.state.roles().min_healthy;
        for replica in self.state.replicas.values_mut() {
            // Nobody heard whether it went on without interruption, unless it had been long enough before.
            if replica.phase == Phase::Ready && !is_available(replica, held.since, min_healthy) {
                replica.since = replica.since.plus(now.since(replica.since.max(held.since)));
            }
            let began = replica.since.max(held.since);
            match &mut replica.phase {
                Phase::Starting | Phase::Loading => {
                    replica.started = replica.started.map(|t| t.plus(now.since(t.max(held.since))));
                }
                Phase::Draining { deadline } => *deadline = deadline.plus(now.since(began)),
                _ => {}
            }
        }
        for moved in &mut self.state.moves {
            moved.began = moved.began.map(|t| t.plus(now.since(t.max(held.since))));
        }
        if let Some(rollout) = self.state.rollout.as_mut().filter(|r| r.outcome.is_none()) {
            // A pause that goes on shifts the step's clock when it ends.
            if rollout.paused.is_none() {
                let pause = now.since(held.owed_from.max(rollout.step_since));
                rollout.shift_step(pause);
            }
            rollout.progress = now;
            if let Some(run) = rollout.run.as_mut().filter(|run| run.ended.is_none()) {
                run.began = run.began.plus(now.since(run.began.max(held.since)));
            }
        }
    }
}
