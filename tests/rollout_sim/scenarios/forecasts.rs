//! What is foreseen of a rollout, and what then happens.

use std::time::Duration;

use deciding::rollout::{Action, RolloutKind, ServiceState, Timings, forecast, forecast_with};
use deciding::spec::Count;

use super::{HOUR, ended, serving, with_steps};
use crate::build::{canary, release, service, single, spec};
use crate::world::{Nature, World};

#[test]
fn a_stop_that_once_took_longer_than_the_progress_deadline_is_no_standstill() {
    let world = serving(2, 1);
    let release = with_steps(2, 0, Vec::new());
    let limit = release.spec.rollout.progress_limit().unwrap();
    let timings = Timings {
        drain: Some(Duration::from_secs(5)),
        stop: Some(limit + Duration::from_mins(1)),
        ..Timings::default()
    };
    let foreseen = forecast_with(&world.state, &release, RolloutKind::Apply, &timings);
    assert!(foreseen.is_ok(), "{foreseen:?}");
}

#[test]
fn the_forecast_is_what_then_happens() {
    for first_gpu in [0, 1, 3] {
        let mut world = serving(3, 1);
        let release = with_steps(3, first_gpu, canary());
        let foreseen = forecast(&world.state, &release, RolloutKind::Apply).unwrap();
        assert_eq!(foreseen.floor, 2);
        let titles: Vec<&str> = foreseen.stages.iter().map(|s| s.title.as_str()).collect();
        assert_eq!(
            titles,
            [
                "weight 10 %",
                "bake 1m00s",
                "analyse default (1m00s)",
                "weight 50 %",
                "approve",
                "all replicas"
            ]
        );
        world.request(&release, RolloutKind::Apply, Nature::Good);
        while !ended(&world) {
            world.turn();
            world.person();
        }
        let happened = |start: bool| {
            let mut ids: Vec<_> = world
                .actions
                .iter()
                .filter_map(|a| match a {
                    Action::StartRank { rank, .. } if start => Some(rank.replica),
                    Action::StopRank { rank, .. } if !start => Some(rank.replica),
                    _ => None,
                })
                .collect();
            ids.sort();
            ids.dedup();
            ids
        };
        let mut starts: Vec<_> = foreseen.stages.iter().flat_map(|s| s.starts.clone()).collect();
        let mut stops: Vec<_> = foreseen.stages.iter().flat_map(|s| s.stops.clone()).collect();
        starts.sort();
        stops.sort();
        assert_eq!(starts, happened(true), "first GPU {first_gpu}");
        assert_eq!(stops, happened(false));
        assert_eq!(foreseen.lowest_ready, world.lowest_ready, "first GPU {first_gpu}");
        assert!(!foreseen.outage);
        let last = foreseen.stages.last().unwrap();
        assert_eq!((last.ready_after, last.new_weight_percent), (3, 100));
        assert_eq!(foreseen.stages[0].new_weight_percent, 10);
    }
}

#[test]
fn one_replica_in_place_is_an_outage_and_said_so() {
    let world = serving(1, 1);
    let foreseen =
        forecast(&world.state, &with_steps(1, 0, Vec::new()), RolloutKind::Apply).unwrap();
    assert!(foreseen.outage);
    assert_eq!((foreseen.lowest_ready, foreseen.floor), (0, 0));
    let elsewhere = with_steps(1, 1, Vec::new());
    let foreseen = forecast(&world.state, &elsewhere, RolloutKind::Apply).unwrap();
    assert!(!foreseen.outage);
    assert_eq!(foreseen.lowest_ready, 1);
    // A first deployment serves nothing before and is no outage.
    let nothing = ServiceState::new(service());
    let first = release(1, spec(1, 1, 0), &single(0, 1));
    let foreseen = forecast(&nothing, &first, RolloutKind::Apply).unwrap();
    assert!(!foreseen.outage);
    assert_eq!(foreseen.stages.len(), 1);
    assert_eq!(foreseen.stages[0].starts.len(), 1);
}

#[test]
fn a_deadlock_is_refused_with_the_smallest_change() {
    let world = serving(2, 1);
    let mut release = with_steps(2, 0, Vec::new());
    release.spec.rollout.max_unavailable = Count::Number(0);
    release.spec.rollout.max_surge = Count::Number(1);
    let refused = forecast(&world.state, &release, RolloutKind::Apply).unwrap_err();
    assert!(refused.reason.contains("held by replicas that cannot be stopped"), "{refused}");
    assert_eq!(
        refused.change.as_deref(),
        Some("set max_unavailable = 1 (then 1 of 2 stay ready), or have 1 spare GPU on one host")
    );
    // With a spare GPU for one of them it works without losing any.
    let places = [vec![(0, 1)], vec![(0, 2)]];
    let mut fits = crate::build::release(2, release.spec.clone(), &places);
    fits.spec.rollout.max_surge = Count::Number(1);
    let foreseen = forecast(&world.state, &fits, RolloutKind::Apply).unwrap();
    assert_eq!(foreseen.lowest_ready, 2);
}

#[test]
fn a_replica_of_twice_the_size_needs_two_places_at_once() {
    let world = serving(4, 1);
    let mut bigger = release(2, spec(2, 1, 0), &[vec![(0, 0), (0, 1)], vec![(0, 2), (0, 3)]]);
    // 4 → 2 replicas: the floor is that of the smaller number.
    let foreseen = forecast(&world.state, &bigger, RolloutKind::Apply).unwrap();
    assert_eq!(foreseen.floor, 1);
    assert!(foreseen.lowest_ready >= 1);
    bigger.replicas[1] = bigger.replicas[0].clone();
    let refused = forecast(&world.state, &bigger, RolloutKind::Apply).unwrap_err();
    assert!(refused.reason.contains("both placed on"), "{refused}");
}

/// A large service: the forecast runs the whole journey, so its time is also the decider's.
#[test]
fn a_large_service_is_foreseen_in_reasonable_time() {
    let places: Vec<Vec<(u32, u32)>> =
        (0..100).map(|r| (0..8).map(|gpu| (r, gpu)).collect()).collect();
    let mut world = World::new(1);
    world.request(&release(1, spec(100, 10, 0), &places), RolloutKind::Apply, Nature::Good);
    assert!(world.run_until(HOUR, ended));
    let began = std::time::Instant::now();
    let second = release(2, spec(100, 10, 0), &places);
    let foreseen = forecast(&world.state, &second, RolloutKind::Apply).unwrap();
    println!("100 replicas of 8 GPUs foreseen in {:?}", began.elapsed());
    assert_eq!((foreseen.lowest_ready, foreseen.floor), (90, 90));
    assert!(began.elapsed() < Duration::from_mins(1), "{:?}", began.elapsed());
}
