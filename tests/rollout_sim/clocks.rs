//! The progress clock beside long drains.

use std::collections::VecDeque;
use std::time::Duration;

use deciding::base::{ReplicaId, Timestamp};
use deciding::rollout::{
    Action, Event, EventKind, Outcome, Phase, Release, RolloutKind, ServiceState, Timings,
    forecast_with, next_wake, outstanding, step,
};

use crate::scenarios::{HOUR, R1, serving, with_steps};

const MINUTE: Duration = Duration::from_mins(1);

/// r2 in place of r1, whose streams go on for longer than the rollout may be without progress.
fn long_streams(progress: Duration, drain: Duration) -> (ServiceState, Release) {
    let mut world = serving(2, 1);
    let policy = |release: &mut Release| {
        release.spec.rollout.progress_deadline = progress;
        release.spec.rollout.drain_deadline = drain;
    };
    let mut first = (*world.state.releases[&R1]).clone();
    policy(&mut first);
    world.state.releases.insert(first.number, first.into());
    let mut next = with_steps(2, 0, Vec::new());
    policy(&mut next);
    (world.state.clone(), next)
}

/// Plays a rollout in which everything takes no time but a drain, which takes `stream` (or, if the gateway
/// confirms nothing, for ever). The outcome, and how long it took.
fn play(
    mut state: ServiceState,
    next: &Release,
    stream: Duration,
    gateway: bool,
) -> (Outcome, Duration) {
    let began = state.now;
    let mut drains: Vec<(Timestamp, ReplicaId)> = Vec::new();
    let mut queue = VecDeque::new();
    let (release, by) = (Box::new(next.clone()), "ada".to_owned());
    queue.push_back(EventKind::RolloutRequested {
        release,
        kind: RolloutKind::Apply,
        by,
        limits: deciding::rollout::LimitRule::PRESENT,
        of_group: None,
    });
    for _ in 0..10_000 {
        let rollout = state.rollout.as_ref().filter(|r| r.to == next.number);
        if let Some(outcome) = rollout.and_then(|r| r.outcome.clone()) {
            return (outcome, state.now.since(began));
        }
        let kind = queue.pop_front().or_else(|| {
            let next = drains.iter().position(|(due, _)| *due <= state.now)?;
            Some(EventKind::Drained { replica: drains.remove(next).1 })
        });
        let (at, kind) = match kind {
            Some(kind) => (state.now, kind),
            None => {
                let due = drains.iter().map(|(due, _)| *due).min();
                let wake = [due, next_wake(&state)].into_iter().flatten().min();
                (wake.expect("something is to come"), EventKind::Tick)
            }
        };
        for action in step(&mut state, &Event { at, kind }) {
            match action {
                Action::StartRank { rank, .. } => queue.push_back(EventKind::RankRunning { rank }),
                Action::StopRank { rank, .. } => {
                    queue.push_back(EventKind::RankEnded { rank, how: "stopped".to_owned() });
                }
                Action::AwaitToken { replica, .. } => {
                    queue.push_back(EventKind::ReplicaReady { replica });
                }
                Action::ApplyTraffic { version, .. } if gateway => {
                    queue.push_back(EventKind::TrafficApplied { version });
                }
                Action::AwaitDrained { replica } => drains.push((state.now.plus(stream), replica)),
                _ => {}
            }
        }
    }
    panic!("no end: {:?}", outstanding(&state))
}

#[test]
fn a_drain_within_its_deadline_does_not_count_against_the_progress() {
    for progress in [30 * MINUTE, 45 * MINUTE] {
        let drain = 45 * MINUTE;
        let (state, next) = long_streams(progress, drain);
        let (outcome, took) = play(state.clone(), &next, 40 * MINUTE, true);
        assert_eq!(outcome, Outcome::Completed, "progress_deadline {progress:?}");
        assert!(took >= 80 * MINUTE && took < 81 * MINUTE, "{took:?}");
        // Streams without an end are cut off at their deadline, and that is no failure either.
        let (outcome, took) = play(state, &next, 100 * HOUR, true);
        assert_eq!(outcome, Outcome::Completed);
        assert!(took < 2 * drain + MINUTE, "{took:?}");
    }
}

/// A drain that nobody carries out is no excuse beyond its own deadline: the rollout ends.
#[test]
fn a_drain_that_the_gateway_never_confirms_ends_the_rollout_all_the_same() {
    let (progress, drain) = (30 * MINUTE, 45 * MINUTE);
    let (state, next) = long_streams(progress, drain);
    let mut waiting = state.clone();
    let by = "ada".to_owned();
    let kind = EventKind::RolloutRequested {
        release: Box::new(next.clone()),
        kind: RolloutKind::Apply,
        by,
        limits: deciding::rollout::LimitRule::PRESENT,
        of_group: None,
    };
    step(&mut waiting, &Event { at: state.now, kind });
    assert!(waiting.replicas.values().any(|r| matches!(r.phase, Phase::Draining { .. })));
    let end = state.now.plus(drain + progress);
    step(&mut waiting, &Event { at: end.plus(MINUTE), kind: EventKind::Tick });
    let rollout = waiting.rollout.as_ref().unwrap();
    let why = format!("{:?}", rollout.direction);
    assert!(why.contains("no progress for 30m"), "{why}");
}

/// What was measured is foreseen as it will be, not cut at the progress deadline.
#[test]
fn a_plan_foresees_long_drains_in_full() {
    let (state, next) = long_streams(30 * MINUTE, 45 * MINUTE);
    let timings = Timings { drain: Some(40 * MINUTE), ..Timings::default() };
    let foreseen = forecast_with(&state, &next, RolloutKind::Apply, &timings).unwrap();
    let took: u64 = foreseen.stages.iter().map(|s| s.took_ms).sum();
    assert_eq!(took, 80 * 60 * 1000);
}
