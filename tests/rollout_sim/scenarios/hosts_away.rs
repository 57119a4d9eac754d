//! A rollout while a host is away for good.

use deciding::rollout::{Direction, Outcome, Release, RolloutKind};
use deciding::spec::Strategy;

use super::{HOUR, R2, outcome, serve};
use crate::build::{release, spec};
use crate::world::{Nature, World};

/// r1 on a host of its own each, r2 beside it on others.
fn spread(strategy: Option<Strategy>) -> (World, Release) {
    let mut world = serve(&release(1, spec(3, 1, 0), &[vec![(0, 0)], vec![(1, 0)], vec![(2, 0)]]));
    let mut next = spec(3, 1, 0);
    next.rollout.strategy = strategy;
    world.lose_host("h0", 100 * HOUR);
    (world, release(2, next, &single_on(3)))
}

fn single_on(host: u32) -> Vec<Vec<(u32, u32)>> {
    (0..3).map(|gpu| vec![(host, gpu)]).collect()
}

#[test]
fn a_host_that_is_away_for_good_does_not_keep_the_others_from_going_on() {
    let (mut world, next) = spread(None);
    world.request(&next, RolloutKind::Apply, Nature::Good);
    let whole = |w: &World| w.state.ready(R2) == 3;
    let began = world.now;
    assert!(world.run_until(HOUR, whole), "{:#?}", world.state.replicas);
    // Its stop counted until it had taken longer than any stop does.
    let limit = next.spec.rollout.progress_limit().unwrap();
    assert!(world.now.since(began) < limit, "{:?}", world.now.since(began));
    assert!(world.run_until(2 * HOUR, |w| w.state.active_rollout().is_none()));
    assert_eq!(*outcome(&world), Outcome::Completed);
    assert!(world.lowest_ready >= 2);
}

#[test]
fn what_cannot_go_on_without_a_host_says_which_and_what_to_do() {
    let (mut world, next) = spread(Some(Strategy::Recreate));
    world.request(&next, RolloutKind::Apply, Nature::Good);
    assert!(world.run_until(2 * HOUR, |w| {
        w.state.active_rollout().is_none_or(|r| r.direction != Direction::Forward)
    }));
    let Direction::Back { why, .. } = &world.state.rollout.as_ref().unwrap().direction else {
        panic!("{:?}", world.state.rollout)
    };
    let says = "h0 has not said for ";
    assert!(why.contains(says) && why.contains("take it out of deck.toml"), "{why}");
}
