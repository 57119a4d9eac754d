//! Journeys told one by one.

use std::time::Duration;

use deciding::base::{ReleaseNumber, Timestamp, TrafficMode};
use deciding::rollout::{
    Action, Condition, Direction, Event, EventKind, Gate, Outcome, Phase, Release, RolloutKind,
    ServiceState, StartRefusal, Timings, forecast, forecast_with, outstanding, step,
};
use deciding::spec::{Count, StepSpec, Strategy};

use crate::build::{canary, on_cpu, release, service, single, spec};
use crate::world::{Nature, World};

pub const HOUR: Duration = Duration::from_hours(1);
pub const R1: ReleaseNumber = ReleaseNumber(1);
pub const R2: ReleaseNumber = ReleaseNumber(2);

pub fn ended(world: &World) -> bool {
    world.state.active_rollout().is_none() && world.quiet()
}

pub fn outcome(world: &World) -> &Outcome {
    world.state.rollout.as_ref().unwrap().outcome.as_ref().unwrap()
}

/// A world that serves `replicas` of r1 on GPUs 0.. of host 0.
pub fn serving(replicas: u32, unavailable: u32) -> World {
    let first = release(1, spec(replicas, unavailable, 0), &single(0, replicas));
    serve(&first)
}

fn serve(first: &Release) -> World {
    let mut world = World::new(1);
    world.request(first, RolloutKind::Apply, Nature::Good);
    assert!(world.run_until(HOUR, ended));
    assert_eq!(*outcome(&world), Outcome::Completed);
    world.check_rest();
    world.lowest_ready = u32::MAX;
    world.actions.clear();
    world
}

pub fn with_steps(replicas: u32, first_gpu: u32, steps: Vec<StepSpec>) -> Release {
    let mut spec = spec(replicas, 1, 0);
    spec.rollout.steps = steps;
    release(2, spec, &single(first_gpu, replicas))
}

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
fn in_place_goes_replica_by_replica_and_keeps_the_floor() {
    let mut world = serving(3, 1);
    world.request(&with_steps(3, 0, Vec::new()), RolloutKind::Apply, Nature::Good);
    assert!(world.run_until(HOUR, ended));
    assert_eq!(*outcome(&world), Outcome::Completed);
    assert_eq!(world.lowest_ready, 2);
    world.check_rest();
    world.check_replay();
}

#[test]
fn a_spare_gang_is_used_before_anything_is_taken_out() {
    let mut world = serving(3, 1);
    // On GPUs of its own: never fewer than three ready.
    world.request(&with_steps(3, 4, Vec::new()), RolloutKind::Apply, Nature::Good);
    assert!(world.run_until(HOUR, ended));
    assert_eq!(world.lowest_ready, 3);
    world.check_rest();
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

/// Its replicas are ready, and nobody can reach them.
#[test]
fn what_the_gateway_never_took_is_not_completed() {
    let mut world = World::new(5);
    world.break_gateway(HOUR * 3);
    let first = release(1, spec(2, 1, 0), &single(0, 2));
    world.request(&first, RolloutKind::Apply, Nature::Good);
    assert!(world.run_until(HOUR, |w| w.state.ready_total() == 2));
    world.run_until(HOUR * 2, ended);
    let Outcome::Failed { why } = outcome(&world) else { panic!("{:?}", outcome(&world)) };
    assert!(why.contains("no such socket"), "{why}");
    assert_eq!(world.state.stable, None);
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
fn while_paused_nothing_new_begins_but_stable_heals() {
    let mut world = serving(3, 1);
    world.request(&with_steps(3, 0, Vec::new()), RolloutKind::Apply, Nature::Good);
    world.by_ada(|by| EventKind::Paused { by });
    assert!(!world.run_until(HOUR, ended), "its deadline does not run");
    assert_eq!(world.state.condition(), Condition::Held);
    let starts =
        |w: &World| w.actions.iter().filter(|a| matches!(a, Action::StartRank { .. })).count();
    let before = starts(&world);
    let rank = world.running().into_iter().find(|r| r.replica.release == R1).unwrap();
    world.kill(&rank, "killed");
    assert!(world.run_until(HOUR, |w| {
        w.state.replicas.values().all(|r| r.attempt.0.get() == 1 || r.phase == Phase::Ready)
    }));
    assert!(starts(&world) > before);
    world.by_ada(|by| EventKind::Resumed { by });
    assert!(world.run_until(HOUR, ended));
    assert_eq!(*outcome(&world), Outcome::Completed);
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
fn a_gateway_that_is_away_keeps_the_replica_serving_until_it_is_back() {
    let mut world = serving(2, 1);
    world.break_gateway(Duration::from_mins(20));
    world.request(&with_steps(2, 0, Vec::new()), RolloutKind::Apply, Nature::Good);
    world.run_until(Duration::from_mins(15), ended);
    assert!(world.actions.iter().all(|a| !matches!(a, Action::StopRank { .. })), "nothing stops");
    assert!(world.run_until(HOUR, ended));
    assert_eq!(*outcome(&world), Outcome::Completed);
    world.check_rest();
}

#[test]
fn a_stop_drains_and_ends_everything_and_a_new_deployment_follows() {
    let mut world = serving(2, 1);
    world.request(&with_steps(2, 0, canary()), RolloutKind::Apply, Nature::Good);
    world.by_ada(|by| EventKind::StopRequested { by });
    assert!(matches!(outcome(&world), Outcome::Aborted { .. }));
    assert!(world.run_until(HOUR, |w| w.state.replicas.is_empty() && w.quiet()));
    assert_eq!(world.state.condition(), Condition::Stopped);
    world.check_rest();
    let again = release(3, spec(1, 1, 0), &single(0, 1));
    world.request(&again, RolloutKind::Apply, Nature::Good);
    assert!(world.run_until(HOUR, ended));
    world.check_rest();
}

#[test]
fn the_number_of_replicas_can_change_both_ways() {
    let mut world = serving(2, 1);
    world.request(&release(2, spec(5, 1, 0), &single(0, 5)), RolloutKind::Apply, Nature::Good);
    assert!(world.run_until(HOUR, ended));
    world.check_rest();
    assert!(world.lowest_ready >= 1);
    world.request(&release(3, spec(2, 1, 0), &single(0, 2)), RolloutKind::Apply, Nature::Good);
    assert!(world.run_until(HOUR, ended));
    world.check_rest();
    assert!(world.lowest_ready >= 1);
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
fn after_a_restart_everything_awaited_is_told_again() {
    let mut state = ServiceState::new(service());
    let first = release(1, spec(2, 1, 0), &single(0, 2));
    let request = EventKind::RolloutRequested {
        release: Box::new(first.clone()),
        kind: RolloutKind::Apply,
        by: "ada".to_owned(),
        limits: deciding::rollout::LimitRule::PRESENT,
    };
    let at = deciding::base::Timestamp(5);
    let told = step(&mut state, &Event { at, kind: request.clone() });
    assert_eq!(told.len(), 2);
    assert_eq!(outstanding(&state), told);
    // The same request again, or another during it, changes nothing.
    let before = state.clone();
    assert!(step(&mut state, &Event { at, kind: request }).is_empty());
    assert_eq!(state, before);
    let ranks = first.rank_ids(0, deciding::base::Attempt::FIRST);
    let running = EventKind::RankRunning { rank: ranks[0].clone() };
    let told = step(&mut state, &Event { at, kind: running.clone() });
    assert!(matches!(told.as_slice(), [Action::AwaitToken { .. }]));
    assert!(step(&mut state, &Event { at, kind: running }).is_empty(), "twice is once");
    assert_eq!(outstanding(&state).len(), 2);
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
fn a_stable_replica_that_stays_away_is_started_again_after_the_healthy_deadline() {
    let first = release(1, spec(1, 0, 0), &single(0, 1));
    let mut state = ServiceState::new(service());
    let mut seconds = 0;
    let mut tell = |state: &mut ServiceState, after: u64, kind: EventKind| {
        seconds += after;
        step(state, &Event { at: Timestamp(seconds * 1000), kind })
    };
    let (kind, by) = (RolloutKind::Apply, "ada".to_owned());
    tell(
        &mut state,
        1,
        EventKind::RolloutRequested {
            release: Box::new(first.clone()),
            kind,
            by,
            limits: deciding::rollout::LimitRule::PRESENT,
        },
    );
    let rank = first.rank_ids(0, deciding::base::Attempt::FIRST)[0].clone();
    let replica = rank.replica;
    tell(&mut state, 1, EventKind::RankRunning { rank });
    tell(&mut state, 1, EventKind::ReplicaReady { replica });
    tell(&mut state, 1, EventKind::TrafficApplied { version: 1 });
    assert_eq!(state.stable, Some(R1));
    let told = tell(
        &mut state,
        9_000,
        EventKind::ReplicaUnready { replica, why: "nobody reaches it".to_owned() },
    );
    assert!(!told.iter().any(|a| matches!(a, Action::StopRank { .. })), "{told:?}");
    assert!(outstanding(&state).iter().any(|a| matches!(a, Action::AwaitToken { .. })));
    let healthy = first.spec.rollout.healthy_deadline.as_secs();
    assert!(tell(&mut state, healthy - 1, EventKind::Tick).is_empty());
    let told = tell(&mut state, 1, EventKind::Tick);
    assert!(matches!(told.as_slice(), [Action::StopRank { .. }]), "{told:?}");
}

#[test]
fn what_an_engine_answers_instead_of_a_token_is_the_cause() {
    let first = release(1, spec(1, 0, 0), &single(0, 1));
    let mut state = ServiceState::new(service());
    let mut tell = |seconds: u64, kind: EventKind| {
        step(&mut state, &Event { at: Timestamp(seconds * 1000), kind });
        let trouble = state.replicas.values().next().and_then(|r| r.trouble.clone());
        (trouble, state.rollout.as_ref().map(|r| r.direction.clone()))
    };
    let (kind, by) = (RolloutKind::Apply, "ada".to_owned());
    tell(
        1,
        EventKind::RolloutRequested {
            release: Box::new(first.clone()),
            kind,
            by,
            limits: deciding::rollout::LimitRule::PRESENT,
        },
    );
    let rank = first.rank_ids(0, deciding::base::Attempt::FIRST)[0].clone();
    let replica = rank.replica;
    tell(2, EventKind::RankRunning { rank });
    let why = "HTTP 401: Unauthorized".to_owned();
    let (trouble, _) = tell(20, EventKind::NoTokenYet { replica, why });
    assert_eq!(trouble.unwrap(), "no token yet: HTTP 401: Unauthorized");
    let healthy = first.spec.rollout.healthy_deadline.as_secs();
    let (trouble, _) = tell(2 + healthy, EventKind::Tick);
    let cause = trouble.unwrap();
    assert!(cause.contains("no token was generated within 20m"), "{cause}");
    assert!(cause.ends_with(": HTTP 401: Unauthorized"), "{cause}");
}

#[test]
fn what_a_replica_was_refused_for_is_told_at_whatever_moment_the_deadline_passes() {
    let first = release(1, spec(1, 0, 0), &single(0, 1));
    let mut state = ServiceState::new(service());
    let mut tell = |seconds: u64, kind: EventKind| {
        step(&mut state, &Event { at: Timestamp(seconds * 1000), kind });
        state.rollout.as_ref().and_then(|r| match &r.direction {
            Direction::Back { why, .. } => Some(why.clone()),
            Direction::Forward => None,
        })
    };
    let (kind, by) = (RolloutKind::Apply, "ada".to_owned());
    tell(
        1,
        EventKind::RolloutRequested {
            release: Box::new(first.clone()),
            kind,
            by,
            limits: deciding::rollout::LimitRule::PRESENT,
        },
    );
    let rank = first.rank_ids(0, deciding::base::Attempt::FIRST)[0].clone();
    let refusal = StartRefusal::NotYet { why: "no container engine".to_owned() };
    tell(2, EventKind::RankRefused { rank, refusal });
    // It is asked again, and nobody answers before the deadline.
    let limit = first.spec.rollout.progress_limit().unwrap().as_secs();
    assert_eq!(tell(limit, EventKind::Tick), None);
    let why = tell(limit + 10, EventKind::Tick).unwrap();
    assert!(why.ends_with("waits: rank 0: no container engine"), "{why}");
}

#[test]
fn remains_that_serve_while_stable_does_not_are_no_outage() {
    let mut state = serving(2, 1).state;
    let (_, remains) = state.replicas.pop_first().unwrap();
    state.replicas.clear();
    state.replicas.insert(deciding::base::ReplicaKey { release: R2, replica: 0 }, remains);
    assert_eq!(state.condition(), Condition::Degraded);
    state.replicas.clear();
    assert_eq!(state.condition(), Condition::Down);
}

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
fn events_keep_their_form_as_json() {
    let first = release(1, spec(2, 1, 0), &single(0, 2));
    let id = deciding::base::ReplicaId {
        release: R1,
        replica: 0,
        attempt: deciding::base::Attempt::FIRST,
    };
    let kinds = [
        EventKind::Tick,
        EventKind::RolloutRequested {
            release: Box::new(first),
            kind: RolloutKind::Undo,
            by: "ada".to_owned(),
            limits: deciding::rollout::LimitRule::PRESENT,
        },
        EventKind::Aborted { by: "ada".to_owned(), reason: Some("x".to_owned()) },
        EventKind::Measured { windows: [(id, deciding::rollout::Window::default())].into() },
        EventKind::Unmeasured,
        EventKind::TrafficFailed { version: 3, why: "gone".to_owned() },
        held("login-lost"),
        EventKind::HoldEnded,
    ];
    for kind in kinds {
        let event = Event { at: deciding::base::Timestamp(9), kind };
        let text = serde_json::to_string(&event).unwrap();
        assert_eq!(serde_json::from_str::<Event>(&text).unwrap(), event, "{text}");
    }
}

// ---- forecasts --------------------------------------------------------------------------------

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

#[test]
fn host_memory_that_does_not_come_free_makes_an_old_replica_give_way() {
    let first = release(1, spec(2, 1, 0), &on_cpu(2));
    let mut world = serve(&first);
    let second = release(2, spec(2, 1, 0), &on_cpu(2));
    // The host has no memory for a third replica: the start is refused until one is gone.
    world.memory_for = Some(2);
    world.request(&second, RolloutKind::Apply, Nature::Good);
    assert!(world.run_until(HOUR, ended));
    assert_eq!(*outcome(&world), Outcome::Completed);
    assert!(world.lowest_ready >= 1);
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

fn held(why: &str) -> EventKind {
    EventKind::HoldBegan { hosts: ["h0".parse().unwrap()].into(), why: why.to_owned() }
}

#[test]
fn while_held_nothing_is_taken_out_no_clock_runs_and_it_goes_on_by_itself() {
    let mut world = serving(3, 1);
    world.request(&with_steps(3, 0, Vec::new()), RolloutKind::Apply, Nature::Good);
    // In the middle: one drains.
    assert!(world.run_until(HOUR, |w| {
        w.state.replicas.values().any(|r| matches!(r.phase, Phase::Draining { .. }))
    }));
    world.tell(held("login-lost: h0 does not let us in"));
    assert_eq!(world.state.condition(), Condition::Held);
    let ready = world.state.ready_total();
    world.actions.clear();
    // Longer than every deadline there is.
    assert!(!world.run_until(3 * HOUR, ended));
    let stops = |w: &World| w.actions.iter().any(|a| matches!(a, Action::StopRank { .. }));
    assert!(!stops(&world), "{:?}", world.actions);
    assert!(world.state.ready_total() >= ready);
    assert!(world.state.active_rollout().is_some_and(|r| r.direction == Direction::Forward));
    world.tell(EventKind::HoldEnded);
    assert!(world.run_until(HOUR, ended));
    assert_eq!(*outcome(&world), Outcome::Completed);
    assert_eq!(world.lowest_ready, 2);
    world.check_rest();
    world.check_replay();
}

#[test]
fn a_hold_stops_the_way_back_and_a_replica_that_cannot_be_asked_is_not_failed() {
    let mut world = serving(3, 1);
    world.request(&with_steps(3, 0, Vec::new()), RolloutKind::Apply, Nature::Good);
    assert!(world.run_until(HOUR, |w| {
        w.state.replicas.iter().any(|(k, r)| k.release == R2 && r.phase == Phase::Ready)
    }));
    world.tell(held("login-lost"));
    world.by_ada(|by| EventKind::Aborted { by, reason: None });
    world.actions.clear();
    assert!(!world.run_until(2 * HOUR, ended));
    assert!(!world.actions.iter().any(|a| matches!(a, Action::StopRank { .. })));
    assert_eq!(world.state.condition(), Condition::Held);
    world.tell(EventKind::HoldEnded);
    assert!(world.run_until(HOUR, ended));
    assert!(matches!(outcome(&world), Outcome::Aborted { .. }));
    world.check_rest();
}

#[test]
fn a_hold_during_a_bake_does_not_count_and_a_service_can_still_be_ended() {
    let mut world = serving(2, 1);
    let bake = Duration::from_mins(10);
    let steps = vec![StepSpec::Weight(50), StepSpec::Bake(bake)];
    world.request(&with_steps(2, 0, steps), RolloutKind::Apply, Nature::Good);
    let bakes = |w: &World| match w.state.active_rollout().and_then(|r| r.gate.clone()) {
        Some(Gate::Bake { until }) => Some(until),
        _ => None,
    };
    assert!(world.run_until(HOUR, |w| bakes(w).is_some()));
    let until = bakes(&world).unwrap();
    world.tell(held("login-lost"));
    assert!(!world.run_until(HOUR, ended));
    world.tell(EventKind::HoldEnded);
    let now = bakes(&world).unwrap();
    assert!(now.since(until) >= HOUR, "{until} {now}");
    world.tell(held("login-lost"));
    world.by_ada(|by| EventKind::StopRequested { by });
    assert!(world.run_until(HOUR, |w| w.state.replicas.is_empty()));
}

/// Whichever of the two ends first: the time of both does not count, and the time of neither counts twice.
#[test]
fn a_pause_within_a_hold_and_a_hold_within_a_pause_count_once() {
    let minutes = |n: u64| Duration::from_mins(n);
    for hold_ends_first in [true, false] {
        let mut world = serving(2, 1);
        let steps = vec![StepSpec::Weight(50), StepSpec::Bake(minutes(10))];
        world.request(&with_steps(2, 0, steps), RolloutKind::Apply, Nature::Good);
        let bakes = |w: &World| match w.state.active_rollout().and_then(|r| r.gate.clone()) {
            Some(Gate::Bake { until }) => Some(until),
            _ => None,
        };
        assert!(world.run_until(HOUR, |w| bakes(w).is_some()));
        let until = bakes(&world).unwrap();
        world.tell(held("login-lost"));
        world.run_until(minutes(60), |_| false);
        world.by_ada(|by| EventKind::Paused { by });
        world.run_until(minutes(30), |_| false);
        let hold_ends = |w: &mut World| w.tell(EventKind::HoldEnded);
        let resumes = |w: &mut World| w.by_ada(|by| EventKind::Resumed { by });
        if hold_ends_first {
            hold_ends(&mut world)
        } else {
            resumes(&mut world)
        }
        world.run_until(minutes(20), |_| false);
        assert!(!ended(&world));
        if hold_ends_first {
            resumes(&mut world)
        } else {
            hold_ends(&mut world)
        }
        let moved = bakes(&world).unwrap().since(until);
        let expected = minutes(110);
        assert!(moved >= expected && moved < expected + minutes(1), "{hold_ends_first}: {moved:?}");
    }
}

#[test]
fn a_restart_after_hours_fails_nothing_that_was_fine() {
    let mut world = serving(3, 1);
    world.request(&with_steps(3, 0, Vec::new()), RolloutKind::Apply, Nature::Good);
    assert!(world.run_until(HOUR, |w| {
        w.state.replicas.iter().any(|(k, r)| k.release == R2 && r.phase == Phase::Loading)
    }));
    // Longer than every deadline there is.
    world.crash_for(5 * HOUR);
    assert!(world.state.held.is_none() && world.state.active_rollout().is_some());
    assert!(world.run_until(HOUR, ended));
    assert_eq!(*outcome(&world), Outcome::Completed);
    assert_eq!(world.lowest_ready, 2);
    world.check_rest();
    world.check_replay();
}

#[test]
fn a_bake_and_the_time_to_be_healthy_do_not_go_on_while_nobody_looks() {
    let mut world = serving(2, 1);
    let bake = Duration::from_mins(10);
    let mut next = with_steps(2, 2, vec![StepSpec::Weight(50), StepSpec::Bake(bake)]);
    next.spec.rollout.min_healthy_time = Duration::from_mins(5);
    world.request(&next, RolloutKind::Apply, Nature::Good);
    let ready = |w: &World| w.state.ready(R2) == 1;
    assert!(world.run_until(HOUR, ready));
    world.crash_for(HOUR);
    let back = world.now;
    let bakes = |w: &World| match w.state.active_rollout().and_then(|r| r.gate.clone()) {
        Some(Gate::Bake { until }) => Some(until),
        _ => None,
    };
    assert!(world.run_until(HOUR, |w| bakes(w).is_some()));
    let took = world.now.since(back);
    assert!(took >= Duration::from_secs(290) && took < Duration::from_mins(6), "{took:?}");
    world.crash_for(2 * HOUR);
    let until = bakes(&world).unwrap();
    let left = until.since(world.now) + Duration::from_secs(30);
    assert!(left > bake, "{until} {}", world.now);
    assert!(world.run_until(HOUR, ended));
    assert_eq!(*outcome(&world), Outcome::Completed);
}

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
