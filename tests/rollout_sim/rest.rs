//! Coming to rest once the faults are over, and what a person does where nothing can.

use std::time::Duration;

use deciding::base::Timestamp;
use deciding::rollout::{Direction, EventKind, RolloutKind};

use crate::standstill::Standstill;
use crate::world::{Nature, World};

/// Longest time after the last fault in which everything must have come to rest.
pub const REST: Duration = Duration::from_hours(4);

/// What is held by the floor for so long is what a person sees: nothing else moves any more.
const HELD: Duration = Duration::from_mins(30);

/// Nothing is under way, and what is wanted is there.
pub fn at_rest(world: &World) -> bool {
    use deciding::rollout::Phase;
    let state = &world.state;
    let whole = state.stable.is_none_or(|stable| state.ready(stable) == state.wanted(stable));
    world.quiet()
        && state.active_rollout().is_none()
        && !state.stopping
        && state.queued.is_none()
        && state.moves.is_empty()
        && whole
        && state
            .replicas
            .iter()
            .all(|(key, r)| r.phase == Phase::Ready && Some(key.release) == state.stable)
        // What was asked to go for a maintenance is gone.
        && state.replicas.keys().all(|key| !state.vacated.contains(key))
        && state.traffic_applied == state.traffic_version
}

/// Plays on without faults until everything is at rest, and checks it; `persons`: they go on deciding at gates.
pub fn come_to_rest(world: &mut World, persons: bool) {
    let began = world.now;
    let end = began.plus(REST);
    let mut turn = 0u32;
    let mut standstill = Standstill::default();
    let mut held: Option<Timestamp> = None;
    while world.now < end && !at_rest(world) {
        world.turn();
        standstill.look(world);
        turn += 1;
        if persons && turn.is_multiple_of(5) {
            world.person();
            give_up(world, began);
        }
        // An engine that lies (serves errors, dies later) may have been promoted by the person;
        // once it is stable it behaves, or nothing would ever come to rest.
        if world.state.active_rollout().is_none() {
            world.all_behave();
        }
        held = world.held_by_the_floor().then(|| held.unwrap_or(world.now));
        if held.is_some_and(|since| world.now.since(since) >= HELD) {
            break;
        }
    }
    if held.is_some() && !at_rest(world) {
        allow_less(world);
    }
    world.check_rest();
    world.all_behave();
}

/// Where a rollout may take for ever a person loses patience.
fn give_up(world: &mut World, began: Timestamp) {
    let endless = world.state.active_rollout().filter(|r| {
        r.direction == Direction::Forward && world.policy(r.to).progress_deadline.is_zero()
    });
    if endless.is_some() && world.now.since(began) > REST / 4 {
        *world.counts.entry("person gives up what has no deadline").or_default() += 1;
        world.by_ada(|by| EventKind::Aborted { by, reason: None });
    }
}

/// Faults and clashing shapes can lead to where stable waits for GPUs of what serves in its stead, and the floor lets none of
/// that go. It serves, and a person has to say that it may serve less: then all goes on.
fn allow_less(world: &mut World) {
    *world.counts.entry("held by the floor").or_default() += 1;
    let release = world.serve_less();
    world.request(&release, RolloutKind::Undo, Nature::Good);
    assert!(
        world.run_until(REST, at_rest),
        "held by the floor, whatever is allowed: {:#?}",
        world.state
    );
}
