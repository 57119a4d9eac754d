//! Journeys told one by one, a file for each kind; here is how each of them begins.

mod canaries;
mod forecasts;
mod healing;
mod holds;
mod hosts_away;
mod journeys;
mod scalings;
mod step_by_step;
mod ways_back;

use std::time::Duration;

use deciding::base::{ReleaseNumber, Timestamp};
use deciding::rollout::{EventKind, Gate, HoldCause, LimitRule, Outcome, Release, RolloutKind};
use deciding::spec::StepSpec;

use crate::build::{release, single, spec};
use crate::world::{Nature, World};

pub const HOUR: Duration = Duration::from_hours(1);
pub const MINUTE: Duration = Duration::from_mins(1);
pub const R1: ReleaseNumber = ReleaseNumber(1);
pub const R2: ReleaseNumber = ReleaseNumber(2);

pub fn ended(world: &World) -> bool {
    world.state.active_rollout().is_none() && world.quiet()
}

pub fn outcome(world: &World) -> &Outcome {
    world.state.rollout.as_ref().unwrap().outcome.as_ref().unwrap()
}

/// A world that serves `replicas` of r1 on GPUs 0.. of host 0.
pub fn serving(replicas: u32, unavailable: u32) -> World {
    let first = release(1, spec(replicas, unavailable, 0), &single(0, replicas));
    serve(&first)
}

fn serve(first: &Release) -> World {
    let mut world = World::new(1);
    world.request(first, RolloutKind::Apply, Nature::Good);
    assert!(world.run_until(HOUR, ended));
    assert_eq!(*outcome(&world), Outcome::Completed);
    world.check_rest();
    world.lowest_ready = u32::MAX;
    world.actions.clear();
    world
}

pub fn with_steps(replicas: u32, first_gpu: u32, steps: Vec<StepSpec>) -> Release {
    let mut spec = spec(replicas, 1, 0);
    spec.rollout.steps = steps;
    release(2, spec, &single(first_gpu, replicas))
}

fn held(why: &str) -> EventKind {
    let (hosts, why) = (["h0".parse().unwrap()].into(), why.to_owned());
    EventKind::HoldBegan { hosts, why, cause: HoldCause::Away }
}

/// That ada asks for it.
fn requested(release: &Release, kind: RolloutKind) -> EventKind {
    let (release, by) = (Box::new(release.clone()), "ada".to_owned());
    EventKind::RolloutRequested { release, kind, by, limits: LimitRule::PRESENT, of_group: None }
}

/// The end of the bake that is under way.
fn bakes_until(world: &World) -> Option<Timestamp> {
    match world.state.active_rollout()?.gate {
        Some(Gate::Bake { until }) => Some(until),
        _ => None,
    }
}
