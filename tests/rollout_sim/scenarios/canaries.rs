//! A canary's share of the traffic: by its steps, by its verdict, and on the way back.

use std::time::Duration;

use deciding::base::{ReleaseNumber, TrafficMode};
use deciding::rollout::{Action, Condition, EventKind, Gate, Outcome, RolloutKind};

use super::{HOUR, R1, R2, ended, outcome, serving, with_steps};
use crate::build::canary;
use crate::world::{Nature, World};

/// Share of the traffic by the gateway's own table.
fn share(world: &World, number: ReleaseNumber) -> f64 {
    let weight = |which: &dyn Fn(ReleaseNumber) -> bool| -> u32 {
        let servers = world.table().iter().filter(|s| s.mode == TrafficMode::Ready);
        servers.filter(|s| which(s.replica.release)).map(|s| u32::from(s.weight)).sum()
    };
    100.0 * f64::from(weight(&|n| n == number)) / f64::from(weight(&|_| true))
}

fn approve(world: &mut World) {
    assert!(world.run_until(HOUR, |w| matches!(
        w.state.active_rollout().and_then(|r| r.gate.as_ref()),
        Some(Gate::Approve)
    )));
    world.by_ada(|by| EventKind::Promoted { all: false, by, step: None, reason: None });
}

#[test]
fn a_canary_gets_its_share_passes_its_gates_and_becomes_stable() {
    let mut world = serving(3, 1);
    world.request(&with_steps(3, 3, canary()), RolloutKind::Apply, Nature::Good);
    let baking = |w: &World| {
        let gate = w.state.active_rollout().and_then(|r| r.gate.as_ref());
        matches!(gate, Some(Gate::Bake { .. }))
    };
    assert!(world.run_until(HOUR, baking));
    assert!((share(&world, R2) - 10.0).abs() < 1.0, "{}", share(&world, R2));
    assert_eq!((world.state.ready(R1), world.state.ready(R2)), (3, 1));
    let since = world.now;
    assert!(world.run_until(HOUR, |w| !baking(w)));
    assert!(world.now.since(since) >= Duration::from_secs(59));
    approve(&mut world);
    assert!((share(&world, R2) - 50.0).abs() < 1.0, "{}", share(&world, R2));
    assert_eq!(world.state.ready(R2), 2);
    assert!(world.run_until(HOUR, ended));
    let verdict = world.state.rollout.as_ref().unwrap().verdict.clone().unwrap();
    assert!(verdict.reason.starts_with("error rate 0.0 % (0 of"), "{}", verdict.reason);
    assert_eq!(*outcome(&world), Outcome::Completed);
    assert!(world.lowest_ready >= 2);
    world.check_rest();
}

#[test]
fn a_canary_that_answers_errors_is_taken_back_and_the_number_is_told() {
    let mut world = serving(3, 1);
    world.request(&with_steps(3, 0, canary()), RolloutKind::Apply, Nature::Errors);
    let back = |w: &World| w.state.condition() == Condition::RollingBack;
    assert!(world.run_until(HOUR, back));
    // Two of r1 are ready, which is the floor: the canary loses its traffic with the very verdict.
    let last = world.actions.iter().rev().find_map(|a| match a {
        Action::ApplyTraffic { servers, .. } => Some(servers.clone()),
        _ => None,
    });
    for server in last.unwrap().iter().filter(|s| s.replica.release == R2) {
        assert!(server.weight == 0 || server.mode == TrafficMode::Drain, "{server:?}");
    }
    assert!(world.run_until(HOUR, ended));
    let Outcome::RolledBack { why } = outcome(&world) else { panic!("{:?}", outcome(&world)) };
    assert!(why.starts_with("analysis default: error rate 35.0 % ("), "{why}");
    let told = "> 2.0 % (p < 0.0001 before the end); stable 0.0 % (0 of ";
    assert!(why.contains(told), "{why}");
    assert_eq!(world.lowest_ready, 2);
    assert_eq!(world.state.stable, Some(R1));
    world.check_rest();
}

#[test]
fn on_the_way_back_the_canary_has_no_traffic_while_stable_carries_the_floor() {
    let mut world = serving(3, 1);
    world.request(&with_steps(3, 3, canary()), RolloutKind::Apply, Nature::Good);
    assert!(world.run_until(HOUR, |w| w.state.ready(R2) == 1));
    // One of stable is down, so the canary stays until stable is complete, without traffic.
    let rank = world.running().into_iter().find(|r| r.replica.release == R1).unwrap();
    world.kill(&rank, "killed");
    world.by_ada(|by| EventKind::Aborted { by, reason: None });
    assert_eq!((world.state.ready(R1), world.state.ready(R2)), (2, 1));
    assert_eq!(world.state.release_weight_percent(R2), 0);
    // A second one of stable ends: below the floor the canary helps again.
    let rank = world.running().into_iter().find(|r| r.replica.release == R1).unwrap();
    world.kill(&rank, "killed");
    assert_eq!((world.state.ready(R1), world.state.ready(R2)), (1, 1));
    assert_eq!(world.state.release_weight_percent(R2), 10);
    assert!(world.run_until(HOUR, ended));
    assert!(matches!(outcome(&world), Outcome::Aborted { .. }));
    world.check_rest();
}

/// Nobody may be awake: what was found bad gets no more requests while it waits for a person.
#[test]
fn a_canary_that_failed_its_analysis_gets_nothing_while_it_is_held() {
    let mut world = serving(4, 1);
    let mut release = with_steps(4, 0, canary());
    release.spec.rollout.auto_rollback = false;
    world.request(&release, RolloutKind::Apply, Nature::Errors);
    let failed = |w: &World| {
        let rollout = w.state.active_rollout();
        rollout.is_some_and(|r| matches!(r.gate, Some(Gate::Failed { .. })))
    };
    assert!(world.run_until(HOUR, failed));
    assert!(world.table().iter().any(|s| s.replica.release != R1 && s.weight > 0));
    assert!(
        world.run_until(HOUR, |w| {
            w.state.traffic_applied == w.state.traffic_version && w.quiet()
        })
    );
    let canary = world.table().iter().find(|s| s.replica.release != R1).unwrap();
    assert_eq!(canary.weight, 0, "it lives, and is asked nothing");
    assert!(world.table().iter().any(|s| s.replica.release == R1 && s.weight > 0));
    assert!(failed(&world) && world.state.ready(ReleaseNumber(2)) == 1);
}
