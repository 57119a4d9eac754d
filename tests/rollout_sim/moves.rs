//! Replicas that are moved away for maintenance.

use std::time::Duration;

use deciding::base::{ReleaseNumber, ReplicaKey};
use deciding::rollout::{EventKind, Outcome, Phase, RequestedMove, RolloutKind};

use crate::build::{release, single, spec};
use crate::world::{Nature, World};

const HOUR: Duration = Duration::from_hours(1);
const R1: ReleaseNumber = ReleaseNumber(1);

/// Three replicas on host 0, with a floor of three.
fn serving(seed: u64) -> World {
    let mut world = World::new(seed);
    let first = release(1, spec(3, 0, 1), &single(0, 3));
    world.request(&first, RolloutKind::Apply, Nature::Good);
    assert!(world.run_until(HOUR, |w| w.state.active_rollout().is_none() && w.quiet()));
    world.check_rest();
    world.lowest_ready = u32::MAX;
    world.actions.clear();
    world
}

/// Replicas 0 and 2 are to go to host 1.
fn move_away(world: &mut World) {
    let there = release(1, spec(2, 0, 1), &[vec![(1, 0)], vec![(1, 1)]]);
    let moves = [0, 2]
        .into_iter()
        .zip(there.replicas)
        .map(|(replica, plan)| RequestedMove { replica, plan })
        .collect();
    let why = "h0 is drained".to_owned();
    world.by_ada(|by| EventKind::MovesRequested { release: R1, moves, by, why });
}

fn at_rest(world: &World) -> bool {
    world.state.moves.is_empty()
        && world.state.active_rollout().is_none()
        && world.quiet()
        && world.state.condition() == deciding::rollout::Condition::Serving
}

fn key(replica: u32) -> ReplicaKey {
    ReplicaKey { release: R1, replica }
}

#[test]
fn replicas_move_one_at_a_time_and_the_capacity_never_falls() {
    let mut world = serving(1);
    move_away(&mut world);
    let mut most = 0;
    while !at_rest(&world) {
        most = most.max(world.state.replicas.len());
        world.turn();
    }
    assert_eq!(most, 4, "one at a time");
    assert_eq!(world.lowest_ready, 3);
    let keys: Vec<ReplicaKey> = world.state.replicas.keys().copied().collect();
    assert_eq!(keys, [key(1), key(3), key(4)]);
    assert_eq!(world.state.move_trouble, None);
    world.check_rest();
    world.check_replay();
    // What was moved restarts where it is now.
    let rank = world.running().into_iter().find(|r| r.replica.key() == key(3)).unwrap();
    world.kill(&rank, "exit code 1");
    assert!(world.run_until(HOUR, |w| w.state.ready_total() == 2));
    assert!(world.run_until(HOUR, at_rest));
    world.check_rest();
    // And a new release replaces all of it.
    let next = release(2, spec(3, 1, 0), &single(0, 3));
    world.request(&next, RolloutKind::Apply, Nature::Good);
    assert!(world.run_until(HOUR, at_rest));
    assert_eq!(world.state.stable, Some(ReleaseNumber(2)));
    assert!(world.state.replicas.values().all(|r| r.phase == Phase::Ready));
    world.check_rest();
}

#[test]
fn a_successor_that_fails_ends_the_moves_and_the_predecessor_serves_on() {
    let mut world = serving(1);
    world.natures.insert(R1, Nature::Crashes);
    move_away(&mut world);
    assert!(world.run_until(HOUR, at_rest));
    assert_eq!(world.lowest_ready, 3);
    let trouble = world.state.move_trouble.clone().unwrap();
    assert!(trouble.starts_with("r1-0: its successor r1-3 failed"), "{trouble}");
    world.check_rest();
    // Asked for again when the cause is gone, it works.
    world.natures.insert(R1, Nature::Good);
    move_away(&mut world);
    assert!(world.run_until(HOUR, at_rest));
    let keys: Vec<ReplicaKey> = world.state.replicas.keys().copied().collect();
    assert_eq!(keys, [key(1), key(4), key(5)]);
    world.check_rest();
}

#[test]
fn a_rollout_or_a_person_ends_the_moves() {
    let mut world = serving(1);
    move_away(&mut world);
    assert!(world.run_until(HOUR, |w| w.state.replicas.contains_key(&key(3))));
    world.by_ada(|by| EventKind::MovesCancelled { by });
    assert!(world.run_until(HOUR, at_rest));
    world.check_rest();

    move_away(&mut world);
    assert!(world.run_until(HOUR, |w| w.state.replicas.contains_key(&key(4))));
    let next = release(2, spec(3, 1, 0), &single(0, 3));
    world.request(&next, RolloutKind::Apply, Nature::Good);
    assert!(world.run_until(HOUR, at_rest));
    assert_eq!(world.state.rollout.as_ref().unwrap().outcome, Some(Outcome::Completed));
    world.check_rest();
    world.check_replay();
}

#[test]
fn moves_with_random_faults_end_whole() {
    let mut moved = 0;
    for seed in 0..300 {
        let mut world = serving(seed);
        move_away(&mut world);
        world.faults = true;
        for _ in 0..80 {
            world.turn();
        }
        world.calm();
        assert!(world.run_until(HOUR * 3, at_rest), "seed {seed}: {:#?}", world.state);
        world.check_rest();
        world.check_replay();
        moved += u32::from(world.state.move_trouble.is_none());
    }
    // Faults end most of them; some are walked to the end.
    assert!(moved >= 10, "only {moved} of 300 were moved");
}

/// A host that dies while it is emptied does not keep what else was on it from finding another place.
#[test]
fn a_host_that_dies_in_the_middle_of_its_moves_keeps_nothing() {
    let mut world = serving(1);
    move_away(&mut world);
    let stops =
        |w: &World| w.state.replicas.get(&key(0)).is_some_and(|r| r.phase == Phase::Stopping);
    assert!(world.run_until(HOUR, stops));
    world.lose_host("h0", HOUR * 2);
    let moved = |w: &World| w.state.replicas.get(&key(4)).is_some_and(|r| r.phase == Phase::Ready);
    assert!(world.run_until(HOUR, moved), "{:#?}", world.state);
    assert!(world.state.overdue_stop_on(&"h0".parse().unwrap()).is_some());
    assert!(world.run_until(HOUR * 4, at_rest), "{:#?}", world.state);
    world.check_rest();
    world.check_replay();
}

/// What serves nothing can be taken out whatever the floor: nothing is lost by it.
#[test]
fn a_broken_replica_is_taken_out_though_the_floor_lets_none_go() {
    let mut world = World::new(3);
    let first = release(1, spec(2, 1, 0), &single(0, 2));
    world.request(&first, RolloutKind::Apply, Nature::Good);
    assert!(world.run_until(HOUR, |w| w.state.active_rollout().is_none() && w.quiet()));
    world.natures.insert(R1, Nature::Crashes);
    let rank = world.running().into_iter().find(|r| r.replica.key() == key(0)).unwrap();
    world.kill(&rank, "a GPU is broken");
    assert!(world.run_until(HOUR, |w| w.state.ready_total() == 1));
    assert_eq!(world.state.can_lend(), 0);
    assert!(world.state.is_idle(key(0)) && !world.state.is_idle(key(1)));
    world.lowest_ready = u32::MAX;
    let host = first.replicas[0].ranks[0].host.clone();
    world.tell(EventKind::TakenOut { release: R1, replicas: vec![0, 1], host });
    assert!(world.run_until(HOUR, |w| !w.state.replicas.contains_key(&key(0)) && w.quiet()));
    assert_eq!(world.state.loans.len(), 1, "{:?}", world.state.loans);
    assert_eq!(world.lowest_ready, 1);
    world.natures.insert(R1, Nature::Good);
    world.tell(EventKind::LentReturned { replica: key(0), elsewhere: false });
    assert!(world.run_until(HOUR, |w| w.state.ready_total() == 2 && w.quiet()));
    world.check_rest();
    world.check_replay();
}

/// While a replica is out another release can be rolled out to other places: whole, and nothing of the one before comes
/// back. Taken back, what is out is still out.
#[test]
fn a_rollout_goes_around_what_is_maintained() {
    for nature in [Nature::Good, Nature::Crashes] {
        let mut world = World::new(3);
        let first = release(1, spec(3, 1, 0), &single(0, 3));
        world.request(&first, RolloutKind::Apply, Nature::Good);
        assert!(world.run_until(HOUR, |w| w.state.active_rollout().is_none() && w.quiet()));
        let host = first.replicas[0].ranks[0].host.clone();
        world.tell(EventKind::TakenOut { release: R1, replicas: vec![0], host });
        assert!(world.run_until(HOUR, |w| !w.state.replicas.contains_key(&key(0)) && w.quiet()));
        world.lowest_ready = u32::MAX;
        let next = release(2, spec(3, 1, 0), &single(4, 3));
        let foreseen =
            deciding::rollout::forecast(&world.state, &next, RolloutKind::Apply).unwrap();
        assert!(!foreseen.outage, "{foreseen:?}");
        world.request(&next, RolloutKind::Apply, nature);
        assert!(world.run_until(HOUR, |w| w.state.active_rollout().is_none() && w.quiet()));
        assert_eq!(world.lowest_ready, 2);
        let (stable, ready, out) = match nature {
            Nature::Good => (2, 3, 0),
            _ => (1, 2, 1),
        };
        assert_eq!(world.state.stable.map(|r| r.0), Some(stable));
        assert_eq!((world.state.ready_total(), world.state.loans.len()), (ready, out));
        world.tell(EventKind::LentReturned { replica: key(0), elsewhere: false });
        assert!(world.run_until(HOUR, |w| w.state.ready_total() == 3 && w.quiet()));
        assert_eq!(world.state.condition(), deciding::rollout::Condition::Serving);
        world.check_rest();
        world.check_replay();
    }
}

/// With no other place a replica stops for its host's maintenance: from the traffic first, under the floor, and back
/// where it was.
#[test]
fn what_is_taken_out_comes_back_where_it_was() {
    let mut world = World::new(3);
    let first = release(1, spec(3, 1, 0), &single(0, 3));
    world.request(&first, RolloutKind::Apply, Nature::Good);
    assert!(world.run_until(HOUR, |w| w.state.active_rollout().is_none() && w.quiet()));
    world.lowest_ready = u32::MAX;
    let host = first.replicas[0].ranks[0].host.clone();
    // The floor lets one of the two go.
    world.tell(EventKind::TakenOut { release: R1, replicas: vec![0, 1], host });
    assert!(world.run_until(HOUR, |w| !w.state.replicas.contains_key(&key(0)) && w.quiet()));
    assert!(world.run_until(HOUR, |w| w.table().len() == 2));
    assert_eq!((world.state.ready_total(), world.lowest_ready), (2, 2));
    assert_eq!(world.state.loans.len(), 1, "{:?}", world.state.loans);
    let text = serde_json::to_string(&world.state.loans).unwrap();
    let again: Vec<deciding::rollout::Loan> = serde_json::from_str(&text).unwrap();
    assert_eq!(again, world.state.loans);
    // A loan as it was written before there were any for a host's maintenance.
    let old = r#"{"borrower":"chat","to":3,"replica":"r1-0","back":null}"#;
    let old: deciding::rollout::Loan = serde_json::from_str(old).unwrap();
    assert_eq!(old.to.to_string(), "lent to chat until its rollout is over");
    world.tell(EventKind::LentReturned { replica: key(0), elsewhere: false });
    assert!(world.run_until(HOUR, |w| w.state.ready_total() == 3 && w.quiet()));
    world.check_rest();
    world.check_replay();
}
