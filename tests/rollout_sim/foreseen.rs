//! What a plan says of replicas without traffic, and of an analysis that will see nothing.

use deciding::base::ReleaseNumber;
use deciding::rollout::forecast::state_when_over;
use deciding::rollout::{EventKind, Gate, RolloutKind, forecast};
use deciding::spec::{Count, StepSpec};

use crate::build::{release, single, spec};
use crate::scenarios::{HOUR, serving, with_steps};
use crate::world::{Nature, World};

fn scale(n: u32) -> StepSpec {
    StepSpec::Scale(Count::Number(n))
}

/// One new replica with all of the traffic: the old ones are ready and serve nothing.
#[test]
fn replicas_without_traffic_are_no_capacity() {
    let world = serving(4, 1);
    for first_gpu in [0, 4] {
        let next = with_steps(4, first_gpu, vec![scale(1), StepSpec::Weight(100)]);
        let refused = forecast(&world.state, &next, RolloutKind::Apply).unwrap_err();
        // Beside the old ones all five are ready, and one serves.
        let ready = if first_gpu == 0 { 4 } else { 5 };
        assert_eq!(
            refused.reason,
            format!(
                "at its step `weight 100 %` only 1 of {ready} ready replicas would get requests, \
                 fewer than the floor of 3"
            ),
        );
        let change = refused.change.unwrap();
        assert!(change.starts_with("leave out scale = 1 (the canary is then as"), "{change}");
        let better = with_steps(4, first_gpu, vec![StepSpec::Weight(100)]);
        assert!(forecast(&world.state, &better, RolloutKind::Apply).is_ok());
        // As an undo it goes replica by replica, without its steps.
        assert!(forecast(&world.state, &next, RolloutKind::Undo).is_ok());
    }
    // Two new ones in place of old ones, and no weight yet.
    let next = with_steps(4, 0, vec![scale(2), StepSpec::Weight(50)]);
    let refused = forecast(&world.state, &next, RolloutKind::Apply).unwrap_err();
    let told = "3 of at least 3 get requests, and 1 more that are ready get none yet";
    assert!(refused.reason.contains(told), "{refused}");
    assert!(refused.change.unwrap().starts_with("write scale = 1 instead of scale = 2"));
    // Beside them nothing is lost.
    let mut beside = spec(4, 1, 2);
    beside.rollout.steps = vec![scale(2), StepSpec::Weight(50)];
    let beside = release(2, beside, &single(4, 4));
    let foreseen = forecast(&world.state, &beside, RolloutKind::Apply).unwrap();
    assert_eq!((foreseen.stages[0].ready_after, foreseen.stages[0].idle_after), (6, 2));
    assert_eq!((foreseen.stages[1].ready_after, foreseen.stages[1].idle_after), (6, 0));
}

/// Before the first weight nothing is sent to the canary: no plan says that an analysis passes there.
#[test]
fn an_analysis_without_requests_is_foreseen_as_inconclusive() {
    let world = serving(3, 1);
    let analyse = || StepSpec::Analyse("default".to_owned());
    for steps in [vec![analyse(), StepSpec::Weight(10)], vec![scale(1), analyse()]] {
        let at = steps.iter().position(|s| *s == analyse()).unwrap();
        let mut next = with_steps(3, 3, steps);
        let foreseen = forecast(&world.state, &next, RolloutKind::Apply).unwrap();
        let stage = &foreseen.stages[at];
        assert!(stage.unknown.person, "{stage:?}");
        assert_eq!(
            stage.inconclusive.as_deref(),
            Some("no request to the canary was counted, 10 are needed")
        );
        let told = foreseen.blind_analyses();
        assert!(told.len() == 1 && told[0].contains("put a weight before it"), "{told:?}");
        // By its header it is reached, as soon as there is a replica of it.
        next.spec.rollout.canary_header = Some("x-canary: 1".to_owned());
        let foreseen = forecast(&world.state, &next, RolloutKind::Apply).unwrap();
        assert_eq!(foreseen.stages[at].inconclusive.is_some(), at == 0);
    }
    let next = with_steps(3, 3, vec![StepSpec::Weight(10), analyse()]);
    let foreseen = forecast(&world.state, &next, RolloutKind::Apply).unwrap();
    assert!(foreseen.stages.iter().all(|s| s.inconclusive.is_none() && !s.unknown.person));
}

/// The lowest point is where the fewest get requests, though more are ready.
#[test]
fn the_lowest_point_counts_what_gets_requests() {
    let world = serving(4, 2);
    let mut next = with_steps(4, 4, vec![scale(2), StepSpec::Weight(100)]);
    next.spec.rollout.max_unavailable = Count::Number(2);
    let foreseen = forecast(&world.state, &next, RolloutKind::Apply).unwrap();
    let lowest = foreseen.lowest_stage().unwrap();
    assert_eq!(foreseen.stages[lowest].title, "weight 100 %");
    assert_eq!(foreseen.lowest_serving(), 2);
    assert!(foreseen.lowest_ready > 2, "{foreseen:?}");
}

/// In the middle of a rollout it is known how the service will be: when it has ended, or was taken back.
#[test]
fn what_a_rollout_leaves_is_foreseen() {
    let mut world = serving(3, 1);
    world.request(&with_steps(3, 3, crate::build::canary()), RolloutKind::Apply, Nature::Good);
    for at in [
        (|w: &World| w.state.replicas.keys().any(|key| key.release == ReleaseNumber(2)))
            as fn(&World) -> bool,
        |w| w.state.active_rollout().is_some_and(|r| r.gate.is_some()),
        |w| w.state.active_rollout().is_some_and(|r| r.gate == Some(Gate::Approve)),
    ] {
        assert!(world.run_until(HOUR, at));
        for (taken_back, release) in [(false, ReleaseNumber(2)), (true, ReleaseNumber(1))] {
            let over = state_when_over(&world.state, taken_back).unwrap();
            assert_eq!(over.stable, Some(release), "{taken_back}");
            assert_eq!((over.ready(release), over.replicas.len()), (3, 3), "{taken_back}");
            assert!(over.active_rollout().is_none() && over.serving_total() == 3);
        }
    }
    // Who has paused it gives way.
    world.by_ada(|by| EventKind::Paused { by, reason: None });
    assert_eq!(state_when_over(&world.state, false).unwrap().stable, Some(ReleaseNumber(2)));
    assert_eq!(state_when_over(&serving(3, 1).state, true), None);
}
