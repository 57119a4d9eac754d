//! The step function alone: an event in, actions out, without a world around it.

use deciding::base::{Attempt, ReplicaId, Timestamp};
use deciding::rollout::{
    Action, Direction, Event, EventKind, RolloutKind, ServiceState, StartRefusal, Window,
    outstanding, step,
};

use super::{R1, held, requested};
use crate::build::{release, service, single, spec};

#[test]
fn after_a_restart_everything_awaited_is_told_again() {
    let mut state = ServiceState::new(service());
    let first = release(1, spec(2, 1, 0), &single(0, 2));
    let request = requested(&first, RolloutKind::Apply);
    let at = Timestamp(5);
    let told = step(&mut state, &Event { at, kind: request.clone() });
    assert_eq!(told.len(), 2);
    assert_eq!(outstanding(&state), told);
    // The same request again, or another during it, changes nothing.
    let before = state.clone();
    assert!(step(&mut state, &Event { at, kind: request }).is_empty());
    assert_eq!(state, before);
    let ranks = first.rank_ids(0, Attempt::FIRST);
    let running = EventKind::RankRunning { rank: ranks[0].clone() };
    let told = step(&mut state, &Event { at, kind: running.clone() });
    assert!(matches!(told.as_slice(), [Action::AwaitToken { .. }]));
    assert!(step(&mut state, &Event { at, kind: running }).is_empty(), "twice is once");
    assert_eq!(outstanding(&state).len(), 2);
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
    tell(&mut state, 1, requested(&first, RolloutKind::Apply));
    let rank = first.rank_ids(0, Attempt::FIRST)[0].clone();
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
    tell(1, requested(&first, RolloutKind::Apply));
    let rank = first.rank_ids(0, Attempt::FIRST)[0].clone();
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
    tell(1, requested(&first, RolloutKind::Apply));
    let rank = first.rank_ids(0, Attempt::FIRST)[0].clone();
    let refusal = StartRefusal::NotYet { why: "no container engine".to_owned() };
    tell(2, EventKind::RankRefused { rank, refusal });
    // It is asked again, and nobody answers before the deadline.
    let limit = first.spec.rollout.progress_limit().unwrap().as_secs();
    assert_eq!(tell(limit, EventKind::Tick), None);
    let why = tell(limit + 10, EventKind::Tick).unwrap();
    assert!(why.ends_with("waits: rank 0: no container engine"), "{why}");
}

#[test]
fn events_keep_their_form_as_json() {
    let first = release(1, spec(2, 1, 0), &single(0, 2));
    let id = ReplicaId { release: R1, replica: 0, attempt: Attempt::FIRST };
    let kinds = [
        EventKind::Tick,
        requested(&first, RolloutKind::Undo),
        EventKind::Aborted { by: "ada".to_owned(), reason: Some("x".to_owned()) },
        EventKind::Measured { windows: [(id, Window::default())].into() },
        EventKind::Unmeasured,
        EventKind::TrafficFailed { version: 3, why: "gone".to_owned(), lacks_backend: true },
        held("login-lost"),
        EventKind::HoldEnded,
    ];
    for kind in kinds {
        let event = Event { at: Timestamp(9), kind };
        let text = serde_json::to_string(&event).unwrap();
        assert_eq!(serde_json::from_str::<Event>(&text).unwrap(), event, "{text}");
    }
}
