//! Blue-green, recreate and explicit scales, told one by one; and the clocks.

use std::time::Duration;

use deciding::base::{ReleaseNumber, ReplicaKey, TrafficMode};
use deciding::rollout::forecast::{How, Verb};
use deciding::rollout::{
    Action, Condition, EventKind, Gate, Outcome, Phase, Release, RolloutKind, forecast,
};
use deciding::spec::{Count, StepSpec, Strategy};

use crate::build::{release, single, spec};
use crate::world::{Nature, World};

const HOUR: Duration = Duration::from_hours(1);
const R1: ReleaseNumber = ReleaseNumber(1);
const R2: ReleaseNumber = ReleaseNumber(2);

fn ended(world: &World) -> bool {
    world.state.active_rollout().is_none() && world.quiet()
}

fn outcome(world: &World) -> &Outcome {
    world.state.rollout.as_ref().unwrap().outcome.as_ref().unwrap()
}

/// A world that serves `replicas` of r1 on GPUs 0.. of host 0.
fn serving(replicas: u32) -> World {
    let mut world = World::new(1);
    let first = release(1, spec(replicas, 1, 0), &single(0, replicas));
    world.request(&first, RolloutKind::Apply, Nature::Good);
    assert!(world.run_until(HOUR, ended));
    world.check_rest();
    world.lowest_ready = u32::MAX;
    world.actions.clear();
    world
}

fn blue_green(replicas: u32, first_gpu: u32, gates: Vec<StepSpec>) -> Release {
    let mut spec = spec(replicas, 1, 0);
    spec.rollout.strategy = Some(Strategy::BlueGreen);
    spec.rollout.steps = gates;
    release(2, spec, &single(first_gpu, replicas))
}

fn recreate(replicas: u32) -> Release {
    let mut spec = spec(replicas, 1, 0);
    spec.rollout.strategy = Some(Strategy::Recreate);
    release(2, spec, &single(0, replicas))
}

/// Whether this release gets all of the traffic, by the gateway's own table.
fn has_all(world: &World, number: ReleaseNumber) -> bool {
    let servers = || world.table().iter().filter(|s| s.mode == TrafficMode::Ready && s.weight > 0);
    servers().count() > 0 && servers().all(|s| s.replica.release == number)
}

fn new_started(world: &World) -> bool {
    world.running().iter().any(|rank| rank.replica.release == R2)
}

fn at_gate(world: &World) -> bool {
    let gate = world.state.active_rollout().and_then(|r| r.gate.as_ref());
    matches!(gate, Some(Gate::Approve))
}

/// The old set was lost, and the new one serves in its stead: what comes back of the old one does not take the traffic
/// from more of the new one. So it is at the switch and on the way back, too.
#[test]
fn what_serves_in_place_of_a_lost_set_goes_on_until_as_many_are_back() {
    for abort in [false, true] {
        let mut world = serving(3);
        world.request(
            &blue_green(3, 4, vec![StepSpec::Approve(true)]),
            RolloutKind::Apply,
            Nature::Good,
        );
        assert!(world.run_until(HOUR, at_gate));
        for rank in world.running().into_iter().filter(|rank| rank.replica.release == R1) {
            world.kill(&rank, "power");
        }
        assert!(world.run_until(HOUR, |w| has_all(w, R2)));
        if abort {
            world.by_ada(|by| EventKind::Aborted { by, reason: None });
        }
        assert!(world.run_until(HOUR, |w| has_all(w, R1)));
        assert_eq!(world.state.ready(R1), 3, "{:?}", world.table());
    }
}

/// Before the first weight the new replicas get nothing unless stable is lost; then they serve until stable carries the
/// floor again. The world's own floor says so at every step.
#[test]
fn a_canary_that_serves_for_lost_replicas_goes_on_until_they_carry_the_floor() {
    let mut world = serving(3);
    let mut spec = spec(3, 1, 3);
    spec.rollout.steps =
        vec![StepSpec::Scale(Count::Percent(100)), StepSpec::Approve(true), StepSpec::Weight(50)];
    world.request(&release(2, spec, &single(3, 4)), RolloutKind::Apply, Nature::Good);
    assert!(world.run_until(HOUR, at_gate));
    let share = |w: &World| w.state.release_weight_percent(R2);
    assert_eq!((world.state.ready(R2), share(&world)), (3, 0));
    for rank in world.running().into_iter().filter(|rank| rank.replica.release == R1) {
        world.kill(&rank, "power");
    }
    assert!(world.run_until(HOUR, |w| has_all(w, R2)));
    assert!(world.run_until(HOUR, |w| w.state.ready(R1) == 1));
    assert!(share(&world) > 0, "one of three has all: {:?}", world.table());
    assert!(world.run_until(HOUR, |w| has_all(w, R1)));
    assert!(world.state.ready(R1) >= 2, "{:?}", world.table());
}

/// On the way back a replica of the old set waits for the GPU of one that serves in its stead. What is ready of the old set
/// gets nothing meanwhile, so it makes up for none: the world's own floor says so at every step.
#[test]
fn what_is_ready_without_traffic_makes_up_for_nothing_on_the_way_back() {
    let mut world = serving(2);
    let host = "h0".parse().unwrap();
    world.tell(EventKind::TakenOut { release: R1, replicas: vec![1], host });
    let out = ReplicaKey { release: R1, replica: 1 };
    assert!(world.run_until(HOUR, |w| !w.state.replicas.contains_key(&out) && w.quiet()));
    // Its first replica has the GPU of the one that is out.
    let next = blue_green(2, 1, vec![StepSpec::Approve(true)]);
    world.request(&next, RolloutKind::Apply, Nature::Good);
    assert!(world.run_until(HOUR, at_gate));
    let rank = world.running().into_iter().find(|rank| rank.replica.release == R1).unwrap();
    world.kill(&rank, "power");
    assert!(world.run_until(HOUR, |w| has_all(w, R2)));
    assert!(world.run_until(HOUR, |w| w.state.ready(R1) == 1 && w.quiet()));
    assert!(has_all(&world, R2), "{:?}", world.table());
    world.tell(EventKind::LentReturned { replica: out, elsewhere: false });
    world.by_ada(|by| EventKind::Aborted { by, reason: None });
    assert!(world.run_until(HOUR * 2, |w| w.state.ready(R1) == 2 && ended(w)));
    assert!(world.run_until(HOUR, |w| has_all(w, R1) && w.state.ready(R2) == 0 && w.quiet()));
}

#[test]
fn blue_green_brings_a_whole_second_set_up_and_switches_at_once() {
    let mut world = serving(3);
    let next = blue_green(3, 4, vec![StepSpec::Approve(true)]);
    let foreseen = forecast(&world.state, &next, RolloutKind::Apply).unwrap();
    let titles: Vec<&str> = foreseen.stages.iter().map(|s| s.title.as_str()).collect();
    assert_eq!(
        titles,
        [
            "second set, no traffic",
            "approve",
            "switch all traffic",
            "keep the old set 30s",
            "the old set goes"
        ]
    );
    assert_eq!((foreseen.floor, foreseen.lowest_ready, foreseen.outage), (3, 3, false));
    let after: Vec<(u32, u32)> =
        foreseen.stages.iter().map(|s| (s.ready_after, s.new_weight_percent)).collect();
    assert_eq!(after, [(6, 0), (6, 0), (6, 100), (6, 100), (3, 100)]);
    assert_eq!(foreseen.stages[3].took_ms, 30_000);

    world.request(&next, RolloutKind::Apply, Nature::Good);
    assert!(world.run_until(HOUR, at_gate));
    assert_eq!((world.state.ready(R1), world.state.ready(R2)), (3, 3));
    assert!(has_all(&world, R1), "before the switch all traffic is at the old set");
    // A promotion passes the gate; from there on everything goes by itself.
    world.by_ada(|by| EventKind::Promoted { all: false, by, step: None, reason: None });
    assert!(world.run_until(HOUR, |w| has_all(w, R2)));
    let switched = world.now;
    assert_eq!((world.state.ready(R1), world.state.ready(R2)), (3, 3), "the old set is kept");
    assert!(world.run_until(HOUR, |w| w.state.ready(R1) < 3));
    assert!(world.now.since(switched) >= Duration::from_secs(29));
    assert!(world.run_until(HOUR, ended));
    assert_eq!(*outcome(&world), Outcome::Completed);
    assert_eq!(world.lowest_ready, foreseen.lowest_ready);
    world.check_rest();
    world.check_replay();
}

/// Before it has any share by weight, the new set is there for those who ask for it; taken back, for nobody.
#[test]
fn who_asks_for_the_canary_reaches_it_until_it_is_taken_back() {
    for steps in [None, Some(vec![StepSpec::Scale(Count::Number(1)), StepSpec::Approve(true)])] {
        let mut world = serving(3);
        let mut next = blue_green(3, 4, vec![StepSpec::Approve(true)]);
        let policy = &mut next.spec.rollout;
        policy.canary_header = Some("x-canary: 1".to_owned());
        if let Some(steps) = steps {
            (policy.strategy, policy.steps) = (None, steps);
        }
        world.request(&next, RolloutKind::Apply, Nature::Good);
        assert!(world.run_until(HOUR, at_gate));
        assert!(has_all(&world, R1), "by weight all traffic is at the old set");
        let asked = |world: &World, number| -> Vec<bool> {
            let of = world.table().iter().filter(|s| s.replica.release == number);
            of.map(|s| s.by_rule).collect()
        };
        let new = asked(&world, R2);
        assert!(!new.is_empty() && new.iter().all(|by_rule| *by_rule), "{new:?}");
        assert!(asked(&world, R1).iter().all(|by_rule| !by_rule));
        let mut promoted = world;
        promoted.by_ada(|by| EventKind::Promoted { all: true, by, step: None, reason: None });
        assert!(promoted.run_until(HOUR, |w| w.state.active_rollout().is_none()));
        // What is left alone is reached by all: its end is nothing to the gateway.
        assert!(promoted.table().iter().all(|s| !s.by_rule), "{:?}", promoted.table());
        promoted.check_replay();

        let mut world = serving(3);
        world.request(&next, RolloutKind::Apply, Nature::Good);
        assert!(world.run_until(HOUR, at_gate));
        world.by_ada(|by| EventKind::Aborted { by, reason: None });
        assert!(world.run_until(HOUR, |w| asked(w, R2).iter().all(|by_rule| !by_rule)));
        assert!(world.run_until(HOUR, ended));
        world.check_rest();
        world.check_replay();
    }
}

/// Argo's rule: all traffic at a stable release that was scaled down in the meantime would be too much for it.
#[test]
fn all_traffic_returns_once_stable_is_whole_where_its_places_are_free() {
    let mut world = serving(4);
    let mut wanted = spec(4, 2, 2);
    wanted.rollout.steps = vec![StepSpec::Weight(75), StepSpec::Approve(true)];
    world.request(&release(2, wanted, &single(4, 4)), RolloutKind::Apply, Nature::Good);
    assert!(world.run_until(HOUR, |w| at_gate(w) && w.quiet()));
    assert_eq!((world.state.ready(R1), world.state.ready(R2)), (3, 3), "one made room");
    world.by_ada(|by| EventKind::Aborted { by, reason: None });
    let serves = |world: &World| {
        let mut servers = world.table().iter();
        servers.any(|s| s.replica.release == R2 && s.weight > 0)
    };
    assert!(world.run_until(HOUR, |w| {
        assert!(w.state.ready(R1) == 4 || serves(w), "with {} of 4", w.state.ready(R1));
        w.state.ready(R1) == 4
    }));
    assert!(world.run_until(HOUR, |w| has_all(w, R1)));
    assert!(world.run_until(HOUR, ended));
    world.check_rest();
    world.check_replay();
}

#[test]
fn going_back_after_the_switch_is_instant() {
    let mut world = serving(3);
    let next = blue_green(3, 4, Vec::new());
    world.request(&next, RolloutKind::Apply, Nature::Good);
    assert!(world.run_until(HOUR, |w| has_all(w, R2)));
    world.actions.clear();
    world.by_ada(|by| EventKind::Aborted { by, reason: None });
    // With the very event.
    let table = world.actions.iter().find_map(|a| match a {
        Action::ApplyTraffic { servers, .. } => Some(servers.clone()),
        _ => None,
    });
    assert!(table.unwrap().iter().all(|s| (s.weight > 0) == (s.replica.release == R1)));
    assert!(world.run_until(HOUR, ended));
    assert!(matches!(outcome(&world), Outcome::Aborted { .. }));
    assert!(world.actions.iter().all(|a| !matches!(a, Action::StartRank { .. })));
    assert!(world.lowest_ready >= 3);
    world.check_rest();
}

#[test]
fn promoting_everything_passes_the_gates_and_not_the_capacity() {
    let mut world = serving(2);
    let bake = StepSpec::Bake(Duration::from_hours(10));
    let next = blue_green(2, 2, vec![StepSpec::Approve(true), bake]);
    world.request(&next, RolloutKind::Apply, Nature::Good);
    assert!(world.run_until(HOUR, |w| w.state.ready(R2) == 1));
    world.by_ada(|by| EventKind::Promoted { all: true, by, step: None, reason: None });
    assert!(has_all(&world, R1), "one of two is not a set");
    assert!(world.run_until(HOUR, |w| has_all(w, R2)));
    assert_eq!(world.state.ready(R2), 2);
    assert!(world.run_until(HOUR, ended));
    assert_eq!(*outcome(&world), Outcome::Completed);
    world.check_rest();
}

#[test]
fn a_second_set_that_fails_never_had_traffic() {
    for nature in [Nature::Crashes, Nature::Hangs, Nature::Never] {
        let mut world = serving(2);
        world.request(&blue_green(2, 2, Vec::new()), RolloutKind::Apply, nature);
        assert!(world.run_until(HOUR, ended));
        assert!(matches!(outcome(&world), Outcome::RolledBack { .. }), "{nature:?}");
        let served = world.actions.iter().any(|a| match a {
            Action::ApplyTraffic { servers, .. } => servers.iter().any(|s| s.replica.release == R2),
            _ => false,
        });
        assert!(!served && world.lowest_ready == 2, "{nature:?}");
        world.check_rest();
    }
}

#[test]
fn blue_green_without_room_is_refused_with_what_would_work() {
    let world = serving(2);
    let refused = forecast(&world.state, &blue_green(2, 0, Vec::new()), RolloutKind::Apply);
    let refused = refused.unwrap_err();
    assert!(refused.reason.contains("held by the old set"), "{refused}");
    assert_eq!(
        refused.change.as_deref(),
        Some(
            "set strategy = \"rolling\" (then 1 of 2 stay ready), or have 1 spare GPU on one host \
             for each of 2 replicas"
        )
    );
    // An undo to it goes replica by replica and needs no second set.
    let undo = forecast(&world.state, &blue_green(2, 0, Vec::new()), RolloutKind::Undo).unwrap();
    assert_eq!((undo.stages.len(), undo.lowest_ready), (1, 1));
}

#[test]
fn recreate_is_an_outage_and_never_has_both_releases() {
    let mut world = serving(3);
    let next = recreate(3);
    let foreseen = forecast(&world.state, &next, RolloutKind::Apply).unwrap();
    assert_eq!((foreseen.floor, foreseen.lowest_ready, foreseen.outage), (0, 0, true));
    assert_eq!(
        foreseen.remedy.as_deref(),
        Some("set strategy = \"rolling\" (then 2 of 3 stay ready)")
    );
    assert_eq!(foreseen.stages.len(), 1);
    assert_eq!(foreseen.stages[0].title, "all old ones go, then all replicas");
    assert_eq!((foreseen.stages[0].starts.len(), foreseen.stages[0].stops.len()), (3, 3));
    world.request(&next, RolloutKind::Apply, Nature::Good);
    while !ended(&world) {
        let releases: Vec<ReleaseNumber> =
            world.running().iter().map(|r| r.replica.release).collect();
        assert!(!(releases.contains(&R1) && releases.contains(&R2)));
        world.turn();
    }
    assert_eq!(*outcome(&world), Outcome::Completed);
    assert_eq!(world.lowest_ready, 0);
    world.check_rest();
    world.check_replay();
}

#[test]
fn a_recreate_that_fails_comes_back_in_the_same_way() {
    let mut world = serving(2);
    world.request(&recreate(2), RolloutKind::Apply, Nature::Crashes);
    assert!(world.run_until(HOUR, ended));
    assert!(matches!(outcome(&world), Outcome::RolledBack { .. }));
    assert_eq!(world.state.ready(R1), 2);
    world.check_rest();
    // Aborted while the old ones drain: they simply serve on.
    let mut world = serving(2);
    world.request(&recreate(2), RolloutKind::Apply, Nature::Good);
    assert!(world.state.replicas.iter().any(|(_, r)| matches!(r.phase, Phase::Draining { .. })));
    world.by_ada(|by| EventKind::Aborted { by, reason: None });
    assert_eq!(world.state.ready(R1), 2);
    assert!(world.run_until(HOUR, ended));
    world.check_rest();
}

#[test]
fn a_scale_holds_whatever_the_weight() {
    let mut world = serving(4);
    let mut spec = spec(4, 1, 0);
    spec.rollout.steps = vec![
        StepSpec::Scale(Count::Percent(30)),
        StepSpec::Approve(true),
        StepSpec::Weight(10),
        StepSpec::Approve(true),
        StepSpec::Scale(Count::Number(3)),
        StepSpec::Approve(true),
        StepSpec::Weight(50),
        StepSpec::Approve(true),
    ];
    let next = release(2, spec, &single(4, 4));
    let foreseen = forecast(&world.state, &next, RolloutKind::Apply).unwrap();
    assert_eq!(foreseen.stages[0].title, "scale 30%");
    let starts: Vec<usize> = foreseen.stages.iter().map(|s| s.starts.len()).collect();
    assert_eq!(starts, [2, 0, 0, 0, 1, 0, 0, 0, 1], "30 % of 4 is 2, rounded up");
    world.request(&next, RolloutKind::Apply, Nature::Good);
    let mut seen = Vec::new();
    for _ in 0..4 {
        assert!(world.run_until(HOUR, at_gate));
        seen.push((world.state.ready(R2), world.state.release_weight_percent(R2)));
        world.by_ada(|by| EventKind::Promoted { all: false, by, step: None, reason: None });
    }
    assert_eq!(seen, [(2, 0), (2, 10), (3, 10), (3, 50)]);
    assert!(world.run_until(HOUR, ended));
    assert_eq!(*outcome(&world), Outcome::Completed);
    world.check_rest();
}

/// In every step: beside where a spare gang fits, in place where not.
#[test]
fn each_step_takes_the_spare_gang_first_and_then_goes_in_place() {
    let world = serving(3);
    let mut spec = spec(3, 1, 0);
    spec.rollout.steps = vec![StepSpec::Weight(30), StepSpec::Approve(true), StepSpec::Weight(60)];
    // GPU 3 is spare; the first and the last replica are where old ones are.
    let next = release(2, spec, &[vec![(0, 0)], vec![(0, 3)], vec![(0, 1)]]);
    let foreseen = forecast(&world.state, &next, RolloutKind::Apply).unwrap();
    let told: Vec<Vec<String>> = foreseen
        .stages
        .iter()
        .map(|stage| {
            let one = |m: &deciding::rollout::forecast::Move| match (&m.verb, &m.how) {
                (Verb::Start, How::Beside) => format!("{} beside", m.replica.key()),
                (Verb::Start, How::InPlaceOf { replicas }) => {
                    format!("{} in place of {}", m.replica.key(), replicas[0])
                }
                (_, how) => format!("{} goes: {how:?}", m.replica.key()),
            };
            stage.moves.iter().map(one).filter(|text| !text.contains("goes")).collect()
        })
        .collect();
    assert_eq!(
        told,
        [
            vec!["r2-1 beside".to_owned()],
            vec![],
            vec!["r2-0 in place of r1-0".to_owned()],
            vec!["r2-2 in place of r1-1".to_owned()],
        ]
    );
    let lowest: Vec<u32> = foreseen.stages.iter().map(|s| s.lowest_ready).collect();
    assert_eq!((foreseen.floor, lowest), (2, vec![3, 4, 3, 3]));
}

#[test]
fn a_canary_that_the_floor_does_not_leave_room_for_is_refused_with_what_would_work() {
    let world = serving(3);
    let mut spec = spec(3, 0, 1);
    spec.rollout.steps = vec![StepSpec::Scale(Count::Number(2)), StepSpec::Weight(20)];
    let next = release(2, spec, &single(0, 3));
    let refused = forecast(&world.state, &next, RolloutKind::Apply).unwrap_err();
    assert!(refused.reason.contains("while 3 of at least 3 are ready"), "{refused}");
    assert_eq!(
        refused.change.as_deref(),
        // With 1, or a spare GPU, the two idle canaries would leave fewer that serve than the floor.
        Some("set max_unavailable = 2 (then 1 of 3 stay ready)")
    );
}

// ---- the clocks -------------------------------------------------------------------------------

/// Nomad: progress is a replica that is healthy, that is, ready for `min_healthy_time`; not one that
/// only generated a token.
#[test]
fn the_progress_clock_is_reset_by_what_is_healthy() {
    let mut world = serving(2);
    let mut spec = spec(2, 1, 0);
    spec.rollout.min_healthy_time = Duration::from_mins(4);
    spec.rollout.healthy_deadline = Duration::from_mins(5);
    spec.rollout.progress_deadline = Duration::from_mins(6);
    world.request(&release(2, spec, &single(2, 2)), RolloutKind::Apply, Nature::Good);
    let began = world.now;
    // Two replicas after each other (one may live above two) need 8 minutes and more: longer than
    // the deadline, but each one that is healthy resets the clock.
    assert!(world.run_until(HOUR, ended));
    assert!(world.now.since(began) > Duration::from_mins(6));
    assert_eq!(*outcome(&world), Outcome::Completed);
}

#[test]
fn without_a_progress_deadline_only_the_first_unhealthy_replica_fails_it() {
    let endless = |nature, hours| {
        let mut world = serving(2);
        let mut spec = spec(2, 1, 0);
        spec.rollout.progress_deadline = Duration::ZERO;
        world.break_gateway(Duration::from_hours(5));
        world.request(&release(2, spec, &single(0, 2)), RolloutKind::Apply, nature);
        world.run_until(HOUR * hours, ended);
        world
    };
    let world = endless(Nature::Good, 4);
    assert_eq!(world.state.condition(), Condition::Rolling, "it waits for the gateway, for ever");
    let world = endless(Nature::Good, 7);
    assert_eq!(*outcome(&world), Outcome::Completed);
    let world = endless(Nature::Hangs, 7);
    assert!(
        matches!(outcome(&world), Outcome::RolledBack { why } if why.contains("healthy_deadline"))
    );
    world.check_rest();
}

/// Why an engine never answered stands in its log alone; what is replaced because it is old leaves none.
#[test]
fn the_log_of_what_never_answered_is_kept() {
    for (nature, kept) in [(Nature::Hangs, true), (Nature::Good, false)] {
        let mut world = serving(2);
        world.request(&release(2, spec(2, 1, 0), &single(2, 2)), RolloutKind::Apply, nature);
        assert!(world.run_until(HOUR * 2, |w| ended(w) && w.quiet()));
        let stops: Vec<bool> = world
            .actions
            .iter()
            .filter_map(|action| match action {
                Action::StopRank { keep_log, .. } => Some(*keep_log),
                _ => None,
            })
            .collect();
        assert!(!stops.is_empty() && stops.iter().any(|keeps| *keeps) == kept, "{stops:?}");
    }
}

/// Nomad: the clock starts at the first allocation. What was needed for it (here the drain of an
/// old replica behind a gateway that is away) does not count against its load.
#[test]
fn the_progress_clock_starts_again_with_the_first_start() {
    let mut world = serving(2);
    let mut spec = spec(2, 1, 0);
    spec.rollout.healthy_deadline = Duration::from_mins(5);
    spec.rollout.progress_deadline = Duration::from_mins(6);
    world.break_gateway(Duration::from_mins(4));
    world.request(&release(2, spec, &single(0, 2)), RolloutKind::Apply, Nature::Hangs);
    assert!(world.run_until(HOUR, |w| w.state.ready(R1) == 1 && new_started(w)));
    let started = world.now;
    assert!(world.run_until(HOUR, |w| w.state.condition() == Condition::RollingBack));
    let Outcome::RolledBack { why } = ({
        assert!(world.run_until(HOUR, ended));
        outcome(&world)
    }) else {
        panic!("{:?}", outcome(&world))
    };
    assert!(why.contains("healthy_deadline"), "the load has its full time: {why}");
    assert!(world.now.since(started) >= Duration::from_mins(5));
}
