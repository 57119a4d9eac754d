//! Times that do not count: a pause, a hold, and hours without a controller.

use std::time::Duration;

use deciding::rollout::{Action, Condition, Direction, EventKind, Outcome, Phase, RolloutKind};
use deciding::spec::StepSpec;

use super::{HOUR, R1, R2, bakes_until, ended, held, outcome, serving, with_steps};
use crate::world::{Nature, World};

#[test]
fn while_paused_nothing_new_begins_but_stable_heals() {
    let mut world = serving(3, 1);
    world.request(&with_steps(3, 0, Vec::new()), RolloutKind::Apply, Nature::Good);
    world.by_ada(|by| EventKind::Paused { by, reason: None });
    assert!(!world.run_until(HOUR, ended), "its deadline does not run");
    assert_eq!(world.state.condition(), Condition::Held);
    let starts =
        |w: &World| w.actions.iter().filter(|a| matches!(a, Action::StartRank { .. })).count();
    let before = starts(&world);
    let rank = world.running().into_iter().find(|r| r.replica.release == R1).unwrap();
    world.kill(&rank, "killed");
    assert!(world.run_until(HOUR, |w| {
        w.state.replicas.values().all(|r| r.attempt.0.get() == 1 || r.phase == Phase::Ready)
    }));
    assert!(starts(&world) > before);
    world.by_ada(|by| EventKind::Resumed { by, reason: None });
    assert!(world.run_until(HOUR, ended));
    assert_eq!(*outcome(&world), Outcome::Completed);
}

#[test]
fn while_held_nothing_is_taken_out_no_clock_runs_and_it_goes_on_by_itself() {
    let mut world = serving(3, 1);
    world.request(&with_steps(3, 0, Vec::new()), RolloutKind::Apply, Nature::Good);
    // In the middle: one drains.
    assert!(world.run_until(HOUR, |w| {
        w.state.replicas.values().any(|r| matches!(r.phase, Phase::Draining { .. }))
    }));
    world.tell(held("login-lost: h0 does not let us in"));
    assert_eq!(world.state.condition(), Condition::Held);
    let ready = world.state.ready_total();
    world.actions.clear();
    // Longer than every deadline there is.
    assert!(!world.run_until(3 * HOUR, ended));
    let stops = |w: &World| w.actions.iter().any(|a| matches!(a, Action::StopRank { .. }));
    assert!(!stops(&world), "{:?}", world.actions);
    assert!(world.state.ready_total() >= ready);
    assert!(world.state.active_rollout().is_some_and(|r| r.direction == Direction::Forward));
    world.tell(EventKind::HoldEnded);
    assert!(world.run_until(HOUR, ended));
    assert_eq!(*outcome(&world), Outcome::Completed);
    assert_eq!(world.lowest_ready, 2);
    world.check_rest();
    world.check_replay();
}

#[test]
fn a_hold_stops_the_way_back_and_a_replica_that_cannot_be_asked_is_not_failed() {
    let mut world = serving(3, 1);
    world.request(&with_steps(3, 0, Vec::new()), RolloutKind::Apply, Nature::Good);
    assert!(world.run_until(HOUR, |w| {
        w.state.replicas.iter().any(|(k, r)| k.release == R2 && r.phase == Phase::Ready)
    }));
    world.tell(held("login-lost"));
    world.by_ada(|by| EventKind::Aborted { by, reason: None });
    world.actions.clear();
    assert!(!world.run_until(2 * HOUR, ended));
    assert!(!world.actions.iter().any(|a| matches!(a, Action::StopRank { .. })));
    assert_eq!(world.state.condition(), Condition::Held);
    world.tell(EventKind::HoldEnded);
    assert!(world.run_until(HOUR, ended));
    assert!(matches!(outcome(&world), Outcome::Aborted { .. }));
    world.check_rest();
}

#[test]
fn a_hold_during_a_bake_does_not_count_and_a_service_can_still_be_ended() {
    let mut world = serving(2, 1);
    let bake = Duration::from_mins(10);
    let steps = vec![StepSpec::Weight(50), StepSpec::Bake(bake)];
    world.request(&with_steps(2, 0, steps), RolloutKind::Apply, Nature::Good);
    assert!(world.run_until(HOUR, |w| bakes_until(w).is_some()));
    let until = bakes_until(&world).unwrap();
    world.tell(held("login-lost"));
    assert!(!world.run_until(HOUR, ended));
    world.tell(EventKind::HoldEnded);
    let now = bakes_until(&world).unwrap();
    assert!(now.since(until) >= HOUR, "{until} {now}");
    world.tell(held("login-lost"));
    world.by_ada(|by| EventKind::StopRequested { by, reason: None });
    assert!(world.run_until(HOUR, |w| w.state.replicas.is_empty()));
}

/// Whichever of the two ends first: the time of both does not count, and the time of neither counts twice.
#[test]
fn a_pause_within_a_hold_and_a_hold_within_a_pause_count_once() {
    let minutes = |n: u64| Duration::from_mins(n);
    for hold_ends_first in [true, false] {
        let mut world = serving(2, 1);
        let steps = vec![StepSpec::Weight(50), StepSpec::Bake(minutes(10))];
        world.request(&with_steps(2, 0, steps), RolloutKind::Apply, Nature::Good);
        assert!(world.run_until(HOUR, |w| bakes_until(w).is_some()));
        let until = bakes_until(&world).unwrap();
        world.tell(held("login-lost"));
        world.run_until(minutes(60), |_| false);
        world.by_ada(|by| EventKind::Paused { by, reason: None });
        world.run_until(minutes(30), |_| false);
        let hold_ends = |w: &mut World| w.tell(EventKind::HoldEnded);
        let resumes = |w: &mut World| w.by_ada(|by| EventKind::Resumed { by, reason: None });
        if hold_ends_first {
            hold_ends(&mut world)
        } else {
            resumes(&mut world)
        }
        world.run_until(minutes(20), |_| false);
        assert!(!ended(&world));
        if hold_ends_first {
            resumes(&mut world)
        } else {
            hold_ends(&mut world)
        }
        let moved = bakes_until(&world).unwrap().since(until);
        let expected = minutes(110);
        assert!(moved >= expected && moved < expected + minutes(1), "{hold_ends_first}: {moved:?}");
    }
}

#[test]
fn a_restart_after_hours_fails_nothing_that_was_fine() {
    let mut world = serving(3, 1);
    world.request(&with_steps(3, 0, Vec::new()), RolloutKind::Apply, Nature::Good);
    assert!(world.run_until(HOUR, |w| {
        w.state.replicas.iter().any(|(k, r)| k.release == R2 && r.phase == Phase::Loading)
    }));
    // Longer than every deadline there is.
    world.crash_for(5 * HOUR);
    assert!(world.state.held.is_none() && world.state.active_rollout().is_some());
    assert!(world.run_until(HOUR, ended));
    assert_eq!(*outcome(&world), Outcome::Completed);
    assert_eq!(world.lowest_ready, 2);
    world.check_rest();
    world.check_replay();
}

#[test]
fn a_bake_and_the_time_to_be_healthy_do_not_go_on_while_nobody_looks() {
    let mut world = serving(2, 1);
    let bake = Duration::from_mins(10);
    let mut next = with_steps(2, 2, vec![StepSpec::Weight(50), StepSpec::Bake(bake)]);
    next.spec.rollout.min_healthy_time = Duration::from_mins(5);
    world.request(&next, RolloutKind::Apply, Nature::Good);
    let ready = |w: &World| w.state.ready(R2) == 1;
    assert!(world.run_until(HOUR, ready));
    world.crash_for(HOUR);
    let back = world.now;
    assert!(world.run_until(HOUR, |w| bakes_until(w).is_some()));
    let took = world.now.since(back);
    assert!(took >= Duration::from_secs(290) && took < Duration::from_mins(6), "{took:?}");
    world.crash_for(2 * HOUR);
    let until = bakes_until(&world).unwrap();
    let left = until.since(world.now) + Duration::from_secs(30);
    assert!(left > bake, "{until} {}", world.now);
    assert!(world.run_until(HOUR, ended));
    assert_eq!(*outcome(&world), Outcome::Completed);
}
