//! A rollout in which nothing goes forward ends: the oracle has its own idea of going forward, and its own clock.

use std::time::Duration;

use deciding::base::{ReleaseNumber, ReplicaKey, Timestamp};
use deciding::rollout::{Direction, Phase};

use crate::world::World;

/// What a turn of the world, a drain after the last step and the gateway's word may add.
const SLACK: Duration = Duration::from_mins(5);

/// What a person would see move.
#[derive(PartialEq)]
struct Seen {
    to: ReleaseNumber,
    back: bool,
    step: usize,
    ready: Vec<ReplicaKey>,
    draining: Vec<ReplicaKey>,
}

/// Since when nothing has moved.
#[derive(Default)]
pub struct Standstill(Option<(Seen, Timestamp)>);

impl Standstill {
    /// Fails when the rollout stands still for longer than its deadlines allow, though nobody is waited for.
    /// Only in a world without faults: the deadlines count no time in which a controller or a login was away. By
    /// the controller's clock: one that was set back stands still until it has caught up with itself.
    pub fn look(&mut self, world: &World) {
        let state = &world.state;
        let rollout = state.active_rollout().filter(|rollout| {
            let waits = rollout.gate.is_some() || rollout.paused.is_some() || state.is_held();
            !waits && !state.stopping
        });
        let Some(rollout) = rollout else {
            self.0 = None;
            return;
        };
        let those = |which: fn(&Phase) -> bool| {
            let all = state.replicas.iter().filter(move |(_, r)| which(&r.phase));
            all.map(|(key, _)| *key).collect()
        };
        let seen = Seen {
            to: rollout.to,
            back: matches!(rollout.direction, Direction::Back { .. }),
            step: rollout.step,
            ready: those(|phase| *phase == Phase::Ready),
            draining: those(|phase| matches!(phase, Phase::Draining { .. })),
        };
        match &self.0 {
            Some((before, since)) if *before == seen => {
                // As people wrote it; what the decider has would be its own word.
                let times = world.policy(rollout.to);
                let drain = rollout.from.map_or(Duration::ZERO, |f| world.policy(f).drain_deadline);
                let most = times.return_limit() + times.drain_deadline.max(drain) + SLACK;
                let endless = times.progress_deadline.is_zero() && !seen.back;
                let stood = state.now.since(*since);
                assert!(endless || stood <= most, "nothing has moved for {stood:?}: {rollout:#?}");
            }
            _ => self.0 = Some((seen, state.now)),
        }
    }
}
