//! Another number of replicas: what runs is taken over.

use deciding::base::{RankId, ReplicaKey};
use deciding::rollout::{Action, Event, EventKind, Outcome, RolloutKind, forecast, step};

use super::{HOUR, R1, R2, ended, outcome, serving};
use crate::scaling::scaled;
use crate::world::{Nature, World};

fn scale(world: &mut World, to: u32, nature: Nature) {
    let number = world.state.stable.unwrap().0 + 1;
    let release = scaled(&world.state, number, to, None).unwrap();
    world.request(&release, RolloutKind::Apply, nature);
}

/// What was started and stopped, as `+r2-2-a1`.
fn done(world: &World) -> Vec<String> {
    let all = world.actions.iter().filter_map(|action| match action {
        Action::StartRank { rank, .. } => Some(format!("+{}", rank.replica)),
        Action::StopRank { rank, .. } => Some(format!("-{}", rank.replica)),
        _ => None,
    });
    all.collect()
}

fn running(world: &World) -> Vec<String> {
    world.running().iter().map(|rank: &RankId| rank.replica.to_string()).collect()
}

#[test]
fn more_replicas_start_beside_those_that_run_on() {
    let mut world = serving(2, 1);
    let wanted = scaled(&world.state, 2, 4, None).unwrap();
    let foreseen = forecast(&world.state, &wanted, RolloutKind::Apply).unwrap();
    assert_eq!((foreseen.lowest_ready, foreseen.stages.len()), (2, 1), "{foreseen:#?}");
    assert_eq!(foreseen.stages[0].starts.len(), 2);
    scale(&mut world, 4, Nature::Good);
    assert!(world.run_until(HOUR, ended));
    assert_eq!(*outcome(&world), Outcome::Completed);
    assert_eq!(done(&world), ["+r2-2-a1", "+r2-3-a1"]);
    assert_eq!((world.lowest_ready, world.state.stable), (2, Some(R2)));
    world.check_rest();
    assert!(world.state.releases.contains_key(&R1), "whose names still run");
}

#[test]
fn fewer_replicas_drain_and_the_others_run_on() {
    let mut world = serving(3, 1);
    scale(&mut world, 1, Nature::Good);
    assert!(world.run_until(HOUR, ended));
    assert_eq!(done(&world), ["-r1-1-a1", "-r1-2-a1"]);
    assert_eq!(running(&world), ["r1-0-a1"]);
    world.check_rest();
}

#[test]
fn what_does_not_come_up_is_taken_back_and_what_runs_is_stables_again() {
    let mut world = serving(2, 1);
    scale(&mut world, 3, Nature::Crashes);
    assert!(world.run_until(HOUR, ended));
    assert!(matches!(outcome(&world), Outcome::RolledBack { .. }), "{:?}", outcome(&world));
    assert_eq!(running(&world), ["r1-0-a1", "r1-1-a1"]);
    let keys: Vec<ReplicaKey> = world.state.replicas.keys().copied().collect();
    assert!(keys.iter().all(|key| key.release == R1), "{keys:?}");
    world.check_rest();
    // And once more, in the other direction, aborted in the middle of a drain.
    scale(&mut world, 1, Nature::Good);
    world.by_ada(|by| EventKind::Aborted { by, reason: None });
    assert!(world.run_until(HOUR, ended));
    assert_eq!(running(&world), ["r1-0-a1", "r1-1-a1"], "nothing was stopped");
    world.check_rest();
}

#[test]
fn one_that_dies_meanwhile_is_started_as_the_new_release_and_fails_it_only_if_it_does_not_come_back()
 {
    for nature in [Nature::Good, Nature::Never] {
        let mut world = serving(2, 1);
        scale(&mut world, 3, Nature::Good);
        world.natures.insert(R2, nature);
        let rank = world.running().into_iter().find(|rank| rank.replica.release == R1).unwrap();
        world.kill(&rank, "segmentation fault");
        assert!(world.state.active_rollout().is_some(), "its end is not the new release's");
        assert!(world.run_until(HOUR, ended));
        if nature == Nature::Good {
            assert_eq!(running(&world), ["r1-1-a1", "r2-0-a2", "r2-2-a1"]);
        } else {
            assert!(matches!(outcome(&world), Outcome::RolledBack { .. }));
            assert_eq!(running(&world).len(), 2);
            assert_eq!(world.state.stable, Some(R1));
        }
        world.check_rest();
    }
}

#[test]
fn a_name_is_known_as_long_as_something_has_it() {
    let mut world = serving(2, 1);
    scale(&mut world, 3, Nature::Good);
    assert!(world.run_until(HOUR, ended));
    scale(&mut world, 4, Nature::Good);
    assert!(world.run_until(HOUR, ended));
    let named: Vec<u64> = world.state.releases.keys().map(|number| number.0).collect();
    assert_eq!(named, [1, 2, 3]);
    assert_eq!(running(&world), ["r1-0-a1", "r1-1-a1", "r2-2-a1", "r3-3-a1"]);
    // Words of a start that is gone are nobody's.
    let rank = world.running().remove(0);
    world.kill(&rank, "segmentation fault");
    assert!(world.run_until(HOUR, |w| w.state.ready_total() == 4 && w.quiet()));
    let mut state = world.state.clone();
    let old = Event { at: world.now, kind: EventKind::RankEnded { rank, how: "late".to_owned() } };
    assert!(step(&mut state, &old).is_empty());
    assert_eq!(state.ready_total(), 4);
    world.check_rest();
}
