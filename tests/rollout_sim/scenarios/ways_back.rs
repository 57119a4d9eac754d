//! Rollouts that fail or are aborted, and how stable comes back.

use deciding::base::ReleaseNumber;
use deciding::rollout::{Action, Condition, Direction, EventKind, Outcome, Phase, RolloutKind};

use super::{HOUR, MINUTE, R1, R2, ended, outcome, serving, with_steps};
use crate::build::{canary, release, single, spec};
use crate::world::{Nature, World};

#[test]
fn a_new_replica_that_ends_takes_the_rollout_back_with_its_last_words() {
    for nature in [Nature::Crashes, Nature::Never, Nature::Hangs] {
        let mut world = serving(2, 1);
        world.request(&with_steps(2, 0, Vec::new()), RolloutKind::Apply, nature);
        assert!(world.run_until(HOUR, ended), "{nature:?}");
        let Outcome::RolledBack { why } = outcome(&world) else { panic!("{:?}", outcome(&world)) };
        let words = match nature {
            Nature::Crashes => "rank 0 ended: exit code 1: CUDA out of memory",
            Nature::Never => "rank 0 cannot start: no such file",
            _ => "no token was generated within 20m00s (healthy_deadline)",
        };
        assert!(why.contains(words), "{why}");
        assert_eq!(world.lowest_ready, 1);
        // The place of the stable replica was used: it comes back as another attempt.
        assert!(world.state.replicas.values().any(|r| r.attempt.0.get() == 2));
        world.check_rest();
    }
}

#[test]
fn without_auto_rollback_a_failure_holds_until_a_person_decides() {
    let mut world = serving(2, 1);
    let mut release = with_steps(2, 0, Vec::new());
    release.spec.rollout.auto_rollback = false;
    world.request(&release, RolloutKind::Apply, Nature::Crashes);
    assert!(world.run_until(HOUR, |w| w.state.condition() == Condition::Held));
    assert!(!world.run_until(HOUR, ended), "it holds");
    assert_eq!(world.state.ready(R1), 1, "the old one keeps serving");
    assert!(world.state.replicas.values().any(|r| matches!(r.phase, Phase::Failed { .. })));
    world.by_ada(|by| EventKind::Aborted { by, reason: Some("seen enough".to_owned()) });
    assert!(world.run_until(HOUR, ended));
    assert_eq!(
        *outcome(&world),
        Outcome::Aborted { why: "aborted by ada: seen enough".to_owned() }
    );
    world.check_rest();
}

#[test]
fn a_first_deployment_that_fails_leaves_nothing_behind() {
    let mut world = World::new(3);
    let first = release(1, spec(2, 1, 0), &single(0, 2));
    world.request(&first, RolloutKind::Apply, Nature::Crashes);
    assert!(world.run_until(HOUR, ended));
    assert!(matches!(outcome(&world), Outcome::Failed { why } if why.contains("CUDA")));
    assert_eq!(world.state.stable, None);
    world.check_rest();
}

#[test]
fn an_abort_in_the_middle_of_a_drain_lets_the_draining_replica_serve_on() {
    let mut world = serving(2, 1);
    world.request(&with_steps(2, 0, Vec::new()), RolloutKind::Apply, Nature::Good);
    assert!(world.state.replicas.values().any(|r| matches!(r.phase, Phase::Draining { .. })));
    world.by_ada(|by| EventKind::Aborted { by, reason: None });
    assert!(world.run_until(HOUR, ended));
    assert!(world.actions.iter().all(|a| !matches!(a, Action::StopRank { .. })));
    assert!(world.state.replicas.values().all(|r| r.attempt.0.get() == 1));
    world.check_rest();
}

#[test]
fn a_way_back_that_cannot_be_walked_still_ends_and_goes_on_at_rest() {
    let mut world = serving(2, 1);
    world.request(&with_steps(2, 0, canary()), RolloutKind::Apply, Nature::Good);
    assert!(world.run_until(HOUR, |w| w.state.ready(R2) == 1));
    world.natures.insert(R1, Nature::Never);
    world.by_ada(|by| EventKind::Aborted { by, reason: None });
    assert!(matches!(
        world.state.active_rollout().unwrap().direction,
        Direction::Back { asked: true, .. }
    ));
    assert!(world.run_until(HOUR, |w| w.state.active_rollout().is_none()));
    assert!(matches!(outcome(&world), Outcome::Aborted { why } if why.contains("(1 of 2 ready)")));
    world.natures.insert(R1, Nature::Good);
    assert!(world.run_until(HOUR, |w| w.state.condition() == Condition::Serving && w.quiet()));
    world.check_rest();
}

/// Six become four in place, and it is taken back when only a part of the six is left: going back to six, no more
/// than the policy's one is out at a time, though four would be served by three.
#[test]
fn the_way_back_to_more_replicas_goes_one_at_a_time() {
    let mut world = serving(6, 1);
    world.request(&release(2, spec(4, 1, 0), &single(0, 4)), RolloutKind::Apply, Nature::Good);
    let ready_new = |w: &World| {
        let new = w.state.replicas.iter().filter(|(k, _)| k.release == ReleaseNumber(2));
        new.filter(|(_, r)| r.phase == Phase::Ready).count()
    };
    assert!(world.run_until(HOUR, |w| ready_new(w) >= 3));
    let ready = world.state.ready_total();
    world.lowest_ready = u32::MAX;
    world.by_ada(|by| EventKind::Aborted { by, reason: None });
    assert!(world.run_until(HOUR, ended));
    assert!(world.lowest_ready + 1 >= ready, "{} of {ready}", world.lowest_ready);
    world.check_rest();
    assert_eq!(world.state.ready_total(), 6);
}

/// A gateway that has no backend of the service sends it nothing and never takes its table: what drains ends at its
/// deadline, and the way back with it, saying why.
#[test]
fn an_abort_does_not_wait_for_a_gateway_that_has_no_backend() {
    let mut world = serving(2, 1);
    world.request(&with_steps(2, 0, canary()), RolloutKind::Apply, Nature::Good);
    assert!(world.run_until(HOUR, |w| w.state.ready(R2) == 1));
    world.lacks_backend = true;
    world.by_ada(|by| EventKind::Aborted { by, reason: None });
    let drain = world.state.releases[&R2].spec.rollout.drain_deadline;
    let began = world.now;
    assert!(world.run_until(HOUR, ended), "{:?}", world.state.replicas);
    assert!(world.now.since(began) <= drain + MINUTE * 3, "{:?}", world.now.since(began));
    assert!(
        matches!(outcome(&world), Outcome::Aborted { why } if why.contains("no such backend")),
        "{:?}",
        outcome(&world)
    );
    assert!(world.state.replicas.keys().all(|key| key.release == R1));
    world.gets_backend();
    assert!(world.run_until(HOUR, |w| w.state.condition() == Condition::Serving && w.quiet()));
    world.check_rest();
}

#[test]
fn an_aborted_first_deployment_ends_without_a_backend() {
    let mut world = World::new(3);
    world.lacks_backend = true;
    let first = release(1, spec(2, 1, 0), &single(0, 2));
    world.request(&first, RolloutKind::Apply, Nature::Good);
    assert!(world.run_until(MINUTE * 10, |w| w.state.ready(R1) == 2));
    world.by_ada(|by| EventKind::Aborted { by, reason: None });
    assert!(world.run_until(MINUTE * 10, ended), "{:?}", world.state.replicas);
    assert!(world.state.replicas.is_empty());
}
