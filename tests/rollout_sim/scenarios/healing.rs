//! Stable replicas that end, or of which only a part serves, while no rollout is under way.

use deciding::base::ReplicaKey;
use deciding::rollout::{Action, Condition, EventKind};

use super::{HOUR, R1, R2, serve, serving};
use crate::build::{release, spec};
use crate::world::World;

#[test]
fn a_dead_stable_replica_is_started_again_with_growing_pauses() {
    let mut world = serving(2, 1);
    let rank = world.running()[0].clone();
    world.kill(&rank, "killed");
    assert_eq!(world.state.condition(), Condition::Degraded);
    let served: Vec<_> =
        world.actions.iter().filter(|a| matches!(a, Action::ApplyTraffic { .. })).collect();
    assert_eq!(served.len(), 1, "it is out of the traffic at once");
    assert!(world.run_until(HOUR, |w| w.state.condition() == Condition::Serving && w.quiet()));
    world.check_rest();
}

#[test]
fn one_rank_that_ends_ends_its_gang() {
    let gang = release(1, spec(1, 1, 0), &[vec![(0, 0), (1, 0)]]);
    let mut world = serve(&gang);
    let rank = world.running().into_iter().find(|r| r.rank == 1).unwrap();
    world.kill(&rank, "NCCL timeout");
    let stops: Vec<u32> = world
        .actions
        .iter()
        .filter_map(|a| match a {
            Action::StopRank { rank, .. } => Some(rank.rank),
            _ => None,
        })
        .collect();
    assert_eq!(stops, [0], "the other rank is stopped, the ended one is not");
    assert!(world.run_until(HOUR, |w| w.state.condition() == Condition::Serving && w.quiet()));
    assert!(world.running().iter().all(|r| r.replica.attempt.0.get() == 2));
}

#[test]
fn a_stable_replica_that_is_not_reached_is_asked_for_a_token_and_not_loaded_again() {
    let mut world = serving(2, 1);
    let unready = |world: &World| {
        let replica = world.state.replica_id(R1, 0).unwrap();
        EventKind::ReplicaUnready { replica, why: "nobody reaches it".to_owned() }
    };
    let told = unready(&world);
    world.tell(told);
    assert_eq!(world.state.condition(), Condition::Degraded);
    let told: Vec<&Action> = world.actions.iter().collect();
    assert!(told.iter().any(|a| matches!(a, Action::AwaitToken { .. })), "{told:?}");
    assert!(
        told.iter()
            .any(|a| matches!(a, Action::ApplyTraffic { servers, .. } if servers.len() == 1))
    );
    assert!(world.run_until(HOUR, |w| w.state.condition() == Condition::Serving && w.quiet()));
    assert!(!world.actions.iter().any(|a| matches!(a, Action::StopRank { .. })), "it served on");
    world.check_rest();
}

#[test]
fn remains_that_serve_while_stable_does_not_are_no_outage() {
    let mut state = serving(2, 1).state;
    let (_, remains) = state.replicas.pop_first().unwrap();
    state.replicas.clear();
    state.replicas.insert(ReplicaKey { release: R2, replica: 0 }, remains);
    assert_eq!(state.condition(), Condition::Degraded);
    state.replicas.clear();
    assert_eq!(state.condition(), Condition::Down);
}
