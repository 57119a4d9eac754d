//! Rollouts, stops and changes of size that arrive where they were to.

use std::time::Duration;

use deciding::rollout::{Action, Condition, EventKind, Outcome, RolloutKind};

use super::{HOUR, R1, ended, outcome, serve, serving, with_steps};
use crate::build::{canary, on_cpu, release, single, spec};
use crate::world::{Nature, World};

#[test]
fn in_place_goes_replica_by_replica_and_keeps_the_floor() {
    let mut world = serving(3, 1);
    world.request(&with_steps(3, 0, Vec::new()), RolloutKind::Apply, Nature::Good);
    assert!(world.run_until(HOUR, ended));
    assert_eq!(*outcome(&world), Outcome::Completed);
    assert_eq!(world.lowest_ready, 2);
    world.check_rest();
    world.check_replay();
}

#[test]
fn a_spare_gang_is_used_before_anything_is_taken_out() {
    let mut world = serving(3, 1);
    // On GPUs of its own: never fewer than three ready.
    world.request(&with_steps(3, 4, Vec::new()), RolloutKind::Apply, Nature::Good);
    assert!(world.run_until(HOUR, ended));
    assert_eq!(world.lowest_ready, 3);
    world.check_rest();
}

/// Its replicas are ready, and nobody can reach them.
#[test]
fn what_the_gateway_never_took_is_not_completed() {
    let mut world = World::new(5);
    world.break_gateway(HOUR * 3);
    let first = release(1, spec(2, 1, 0), &single(0, 2));
    world.request(&first, RolloutKind::Apply, Nature::Good);
    assert!(world.run_until(HOUR, |w| w.state.ready_total() == 2));
    world.run_until(HOUR * 2, ended);
    let Outcome::Failed { why } = outcome(&world) else { panic!("{:?}", outcome(&world)) };
    assert!(why.contains("no such socket"), "{why}");
    assert_eq!(world.state.stable, None);
}

#[test]
fn a_gateway_that_is_away_keeps_the_replica_serving_until_it_is_back() {
    let mut world = serving(2, 1);
    world.break_gateway(Duration::from_mins(20));
    world.request(&with_steps(2, 0, Vec::new()), RolloutKind::Apply, Nature::Good);
    world.run_until(Duration::from_mins(15), ended);
    assert!(world.actions.iter().all(|a| !matches!(a, Action::StopRank { .. })), "nothing stops");
    assert!(world.run_until(HOUR, ended));
    assert_eq!(*outcome(&world), Outcome::Completed);
    world.check_rest();
}

#[test]
fn a_stop_drains_and_ends_everything_and_a_new_deployment_follows() {
    let mut world = serving(2, 1);
    world.request(&with_steps(2, 0, canary()), RolloutKind::Apply, Nature::Good);
    let why = || Some(" too costly\n".to_owned());
    world.by_ada(|by| EventKind::StopRequested { by, reason: why() });
    let stop = world.state.stopped.clone().unwrap();
    assert_eq!((stop.release, stop.words().as_str()), (R1, "stopped by ada: too costly"));
    // Whoever asks once more while it stops is not who stopped it.
    world.tell(EventKind::StopRequested { by: "bob".to_owned(), reason: None });
    assert_eq!(world.state.stopped.as_ref(), Some(&stop));
    assert!(matches!(outcome(&world), Outcome::Aborted { .. }));
    assert!(world.run_until(HOUR, |w| w.state.replicas.is_empty() && w.quiet()));
    assert_eq!(world.state.condition(), Condition::Stopped);
    world.check_rest();
    let again = release(3, spec(1, 1, 0), &single(0, 1));
    world.request(&again, RolloutKind::Apply, Nature::Good);
    assert!(world.run_until(HOUR, ended));
    world.check_rest();
}

#[test]
fn the_number_of_replicas_can_change_both_ways() {
    let mut world = serving(2, 1);
    world.request(&release(2, spec(5, 1, 0), &single(0, 5)), RolloutKind::Apply, Nature::Good);
    assert!(world.run_until(HOUR, ended));
    world.check_rest();
    assert!(world.lowest_ready >= 1);
    world.request(&release(3, spec(2, 1, 0), &single(0, 2)), RolloutKind::Apply, Nature::Good);
    assert!(world.run_until(HOUR, ended));
    world.check_rest();
    assert!(world.lowest_ready >= 1);
}

#[test]
fn host_memory_that_does_not_come_free_makes_an_old_replica_give_way() {
    let first = release(1, spec(2, 1, 0), &on_cpu(2));
    let mut world = serve(&first);
    let second = release(2, spec(2, 1, 0), &on_cpu(2));
    // The host has no memory for a third replica: the start is refused until one is gone.
    world.memory_for = Some(2);
    world.request(&second, RolloutKind::Apply, Nature::Good);
    assert!(world.run_until(HOUR, ended));
    assert_eq!(*outcome(&world), Outcome::Completed);
    assert!(world.lowest_ready >= 1);
    world.check_rest();
}
