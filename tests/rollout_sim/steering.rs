//! What a person does in mid-rollout, and the step `run`, told one by one.

use std::time::Duration;

use deciding::base::{Attempt, ReleaseNumber};
use deciding::rollout::{
    Action, Condition, Event, EventKind, Gate, HoldCause, Outcome, Phase, QueuedRollout, Release,
    RolloutKind, RunEnd, VerdictOf, forecast, next_wake, outstanding, step,
};
use deciding::spec::{RunSpec, StepSpec};

use crate::build::{release, single, spec};
use crate::scenarios::{HOUR, R1, R2, ended, outcome, serving, with_steps};
use crate::world::{Nature, World};

const R3: ReleaseNumber = ReleaseNumber(3);

fn command(name: &str) -> RunSpec {
    RunSpec { command: vec![name.to_owned()], timeout: Duration::from_mins(2) }
}

fn smoke(name: &str) -> Vec<StepSpec> {
    vec![StepSpec::Weight(30), StepSpec::Run(command(name)), StepSpec::Weight(60)]
}

fn gate(world: &World) -> Option<Gate> {
    world.state.active_rollout().and_then(|r| r.gate.clone())
}

fn runs(world: &World) -> bool {
    matches!(gate(world), Some(Gate::Run { .. }))
}

fn held(world: &World) -> bool {
    world.quiet() && matches!(gate(world), Some(Gate::Failed { .. }))
}

fn wish(kind: RolloutKind) -> QueuedRollout {
    QueuedRollout {
        asked: deciding::base::Timestamp(0),
        kind,
        to: None,
        digest: None,
        by: "ada".to_owned(),
        reason: None,
        accept_outage: false,
    }
}

/// On GPUs of its own, from `first` on.
fn third(first: u32) -> Release {
    release(3, spec(3, 1, 0), &single(first, 3))
}

#[test]
fn a_command_that_ends_well_lets_the_rollout_go_on() {
    let mut world = serving(3, 1);
    world.request(&with_steps(3, 3, smoke("ok")), RolloutKind::Apply, Nature::Good);
    assert!(world.run_until(HOUR, runs));
    assert_eq!(world.state.condition(), Condition::Rolling);
    // The canary is there, with its traffic, before it is tested.
    assert_eq!(world.state.ready(R2), 1);
    assert!(world.run_until(HOUR, ended));
    assert_eq!(*outcome(&world), Outcome::Completed);
    let verdict = world.state.rollout.as_ref().unwrap().verdict.clone().unwrap();
    assert_eq!((verdict.of, verdict.title().as_str()), (VerdictOf::Run, "run ok"));
    assert_eq!(verdict.reason, "exit code 0: the last line");
    assert_eq!(verdict.lines, ["the last line"]);
    let asked = world.actions.iter().filter(|a| matches!(a, Action::RunCommand { .. })).count();
    assert_eq!(asked, 1);
    world.check_rest();
    world.check_replay();
}

#[test]
fn a_command_that_fails_or_hangs_takes_the_rollout_back_and_says_how() {
    for (name, words) in [
        ("fails", "run fails: exit code 3: the last line"),
        ("fails-once", "run fails-once: killed by signal 11: the last line"),
        ("hangs", "run hangs: took longer than 2m00s (timeout)"),
    ] {
        let mut world = serving(3, 1);
        world.request(&with_steps(3, 3, smoke(name)), RolloutKind::Apply, Nature::Good);
        assert!(world.run_until(HOUR, ended));
        let Outcome::RolledBack { why } = outcome(&world) else { panic!("{name}") };
        assert!(why.starts_with(words), "{why}");
        assert_eq!(world.state.stable, Some(R1));
        assert!(world.lowest_ready >= 2);
        world.check_rest();
    }
}

#[test]
fn a_command_that_nobody_hears_of_does_not_hold_the_rollout_for_ever() {
    let mut world = serving(3, 1);
    world.request(&with_steps(3, 3, smoke("ok")), RolloutKind::Apply, Nature::Good);
    assert!(world.run_until(HOUR, runs));
    let mut alone = world.state.clone();
    let at = next_wake(&alone).unwrap();
    // Two minutes of timeout, and one of patience.
    assert!(at.since(alone.now) <= Duration::from_mins(3), "{at}");
    let late = alone.now.plus(Duration::from_mins(3));
    step(&mut alone, &Event { at: late, kind: EventKind::Tick });
    assert_eq!(alone.condition(), Condition::RollingBack);
}

/// It waits for hosts to say who holds them, and begins only then.
#[test]
fn a_command_whose_service_is_held_does_not_time_out() {
    let mut world = serving(3, 1);
    world.request(&with_steps(3, 3, smoke("ok")), RolloutKind::Apply, Nature::Good);
    assert!(world.run_until(HOUR, runs));
    let mut alone = world.state.clone();
    let began = alone.now;
    let mut tell = |minutes: u64, kind: EventKind| {
        step(&mut alone, &Event { at: began.plus(Duration::from_mins(minutes)), kind });
        alone.clone()
    };
    let (hosts, why) = (["h0".parse().unwrap()].into(), "run-waits: h0".to_owned());
    tell(1, EventKind::HoldBegan { hosts, why, cause: HoldCause::Unasked });
    let held = tell(40, EventKind::Tick);
    assert!(held.is_held() && !held.is_held_elsewhere() && held.awaited_run().is_some());
    let back = tell(61, EventKind::HoldEnded);
    assert_eq!(back.awaited_run(), tell(62, EventKind::Tick).awaited_run());
    assert_eq!(back.condition(), Condition::Rolling);
    assert_eq!(next_wake(&back).unwrap().since(began), Duration::from_mins(63));
    assert_eq!(tell(64, EventKind::Tick).condition(), Condition::RollingBack);
}

#[test]
fn a_command_that_was_lost_with_its_controller_runs_again_under_the_next_attempt() {
    let mut world = serving(3, 1);
    world.request(&with_steps(3, 3, smoke("ok")), RolloutKind::Apply, Nature::Good);
    assert!(world.run_until(HOUR, runs));
    // What is awaited after a restart does not name it: whether it ran is not known.
    let again = outstanding(&world.state);
    assert!(!again.iter().any(|a| matches!(a, Action::RunCommand { .. })));
    let mut state = world.state.clone();
    let now = state.now;
    let lost = EventKind::RunLost { release: R2, step: 1, attempt: Attempt::FIRST };
    let actions = step(&mut state, &Event { at: now, kind: lost.clone() });
    let second = Attempt::FIRST.next();
    assert!(
        matches!(&actions[..], [Action::RunCommand { attempt, step: 1, .. }] if *attempt == second)
    );
    // Said twice it is lost once; and what the first run did is of no interest any more.
    assert!(step(&mut state, &Event { at: now, kind: lost }).is_empty());
    let (end, output) = (RunEnd::Exited { code: 1 }, Vec::new());
    let stale = EventKind::RunEnded { release: R2, step: 1, attempt: Attempt::FIRST, end, output };
    let before = state.clone();
    step(&mut state, &Event { at: now, kind: stale });
    assert_eq!(state, before);
    world.crash();
    assert!(world.run_until(HOUR, ended));
    assert_eq!(*outcome(&world), Outcome::Completed);
    world.check_rest();
}

#[test]
fn a_pause_keeps_a_commands_result_for_later() {
    let mut world = serving(3, 1);
    world.request(&with_steps(3, 3, smoke("ok")), RolloutKind::Apply, Nature::Good);
    assert!(world.run_until(HOUR, runs));
    world.by_ada(|by| EventKind::Paused { by, reason: None });
    let over = |w: &World| {
        w.state.rollout.as_ref().unwrap().run.as_ref().is_some_and(|r| r.ended.is_some())
    };
    assert!(world.run_until(HOUR, over));
    assert_eq!(world.state.active_rollout().unwrap().step, 1);
    world.by_ada(|by| EventKind::Resumed { by, reason: None });
    assert_eq!(world.state.active_rollout().unwrap().step, 2);
}

#[test]
fn retry_runs_the_command_again_and_the_rollout_goes_on() {
    let mut world = serving(3, 1);
    let mut release = with_steps(3, 3, smoke("fails-once"));
    release.spec.rollout.auto_rollback = false;
    world.request(&release, RolloutKind::Apply, Nature::Good);
    assert!(world.run_until(HOUR, held));
    assert!(world.state.retryable() && world.state.skippable().is_none());
    // A failed gate is not skipped.
    let before = world.state.clone();
    world.by_ada(|by| EventKind::Skipped { by, reason: "no".to_owned() });
    assert_eq!(world.state, before);
    world.by_ada(|by| EventKind::Retried { by, reason: None });
    let Some(Gate::Run { attempt, .. }) = gate(&world) else { panic!("{:?}", gate(&world)) };
    assert_eq!(attempt, Attempt::FIRST.next());
    assert!(world.run_until(HOUR, ended));
    assert_eq!(*outcome(&world), Outcome::Completed);
    world.check_rest();
    world.check_replay();
}

#[test]
fn retry_starts_the_replica_that_failed_again() {
    let mut world = serving(3, 1);
    let mut release = with_steps(3, 0, Vec::new());
    release.spec.rollout.auto_rollback = false;
    world.request(&release, RolloutKind::Apply, Nature::Crashes);
    assert!(world.run_until(HOUR, held));
    let failed = |w: &World| {
        w.state
            .replicas
            .iter()
            .any(|(k, r)| k.release == R2 && matches!(r.phase, Phase::Failed { .. }))
    };
    assert!(failed(&world));
    // It still crashes, so it is held again, with a new attempt.
    world.by_ada(|by| EventKind::Retried { by, reason: None });
    assert!(!failed(&world));
    assert!(world.run_until(HOUR, held));
    world.natures.insert(R2, Nature::Good);
    world.by_ada(|by| EventKind::Retried { by, reason: None });
    assert!(world.run_until(HOUR, ended));
    assert_eq!(*outcome(&world), Outcome::Completed);
    assert!(world.lowest_ready >= 2);
    world.check_rest();
}

#[test]
fn retry_measures_an_inconclusive_analysis_again_and_changes_nothing_else() {
    let mut world = serving(3, 1);
    world.request(&with_steps(3, 3, crate::build::canary()), RolloutKind::Apply, Nature::Good);
    // Nothing has failed: there is nothing to try again.
    assert!(world.run_until(HOUR, |w| matches!(gate(w), Some(Gate::Bake { .. }))));
    let before = world.state.clone();
    world.by_ada(|by| EventKind::Retried { by, reason: None });
    assert_eq!(world.state, before);
    assert!(world.run_until(HOUR, |w| matches!(gate(w), Some(Gate::Analyse { .. }))));
    // Without a request it is over after twice its duration.
    let mut state = world.state.clone();
    let late = state.now.plus(Duration::from_mins(2));
    step(&mut state, &Event { at: late, kind: EventKind::Tick });
    assert!(state.retryable(), "{:?}", state.rollout);
    step(
        &mut state,
        &Event { at: late, kind: EventKind::Retried { by: "ada".to_owned(), reason: None } },
    );
    let gate = state.active_rollout().unwrap().gate.clone();
    assert!(matches!(gate, Some(Gate::Analyse { until, .. }) if until > late), "{gate:?}");
}

#[test]
fn a_skipped_gate_is_passed_and_remembered_with_its_reason() {
    let mut world = serving(3, 1);
    world.request(&with_steps(3, 3, crate::build::canary()), RolloutKind::Apply, Nature::Good);
    for (wanted, step) in [("bake", 1), ("analyse default", 2), ("approve", 4)] {
        assert!(world.run_until(HOUR, |w| w.state.skippable().is_some()));
        assert_eq!(world.state.skippable().as_deref(), Some(wanted));
        // Without a reason nothing is skipped.
        let before = world.state.clone();
        world.by_ada(|by| EventKind::Skipped { by, reason: "  ".to_owned() });
        assert_eq!(world.state, before);
        world.by_ada(|by| EventKind::Skipped { by, reason: "a\u{1b}[2J hurry".to_owned() });
        let rollout = world.state.active_rollout().unwrap();
        assert_eq!(rollout.step, step + 1);
        let last = rollout.skipped.last().unwrap();
        assert_eq!((last.step, last.gate.as_str()), (step, wanted));
        assert_eq!((last.by.as_str(), last.reason.as_str()), ("ada", "a hurry"));
    }
    assert!(world.run_until(HOUR, ended));
    assert_eq!(*outcome(&world), Outcome::Completed);
    assert_eq!(world.state.rollout.as_ref().unwrap().skipped.len(), 3);
    world.check_rest();
    world.check_replay();
}

#[test]
fn a_command_that_is_skipped_is_not_waited_for() {
    let mut world = serving(3, 1);
    world.request(&with_steps(3, 3, smoke("hangs")), RolloutKind::Apply, Nature::Good);
    assert!(world.run_until(HOUR, runs));
    assert!(world.state.awaited_run().is_some());
    world.by_ada(|by| EventKind::Skipped { by, reason: "it hangs".to_owned() });
    assert!(world.state.awaited_run().is_none());
    assert!(world.run_until(HOUR, ended));
    assert_eq!(*outcome(&world), Outcome::Completed);
    world.check_rest();
}

#[test]
fn what_is_queued_begins_after_the_present_rollout_and_the_latest_counts() {
    let mut world = serving(3, 1);
    world.request(&with_steps(3, 3, smoke("ok")), RolloutKind::Apply, Nature::Good);
    assert!(world.run_until(HOUR, runs));
    let (first, second) = (third(6), release(4, spec(2, 1, 0), &single(9, 2)));
    world.wish(&first, RolloutKind::Apply, Nature::Good, false);
    let asked = world.state.queued.as_ref().unwrap().asked;
    world.wish(&second, RolloutKind::Apply, Nature::Good, false);
    assert!(world.state.queued.as_ref().unwrap().asked > asked);
    assert!(world.state.queued_due().is_none());
    // The first one's cancellation comes too late to hit the second.
    world.by_ada(|by| EventKind::QueueCancelled { asked, by });
    assert!(world.state.queued.is_some());
    world.crash();
    assert!(world.run_until(HOUR, |w| w.state.active_rollout().is_none()));
    assert_eq!(*outcome(&world), Outcome::Completed);
    assert_eq!(world.state.stable, Some(R2));
    assert!(world.state.queued_due().is_some());
    let rest = |w: &World| ended(w) && w.state.queued.is_none();
    assert!(world.run_until(HOUR, rest));
    if world.state.queue_trouble.is_none() {
        assert_eq!(world.state.stable, Some(ReleaseNumber(4)));
    }
    assert!(!world.state.releases.contains_key(&R3));
    world.check_rest();
    world.check_replay();
}

#[test]
fn a_queued_rollout_can_be_cancelled_refused_overtaken_and_stopped() {
    let mut world = serving(3, 1);
    world.request(&with_steps(3, 3, smoke("ok")), RolloutKind::Apply, Nature::Good);
    assert!(world.run_until(HOUR, runs));
    let queue = |world: &mut World| {
        world.by_ada(|_| EventKind::Queued {
            wish: Box::new(wish(RolloutKind::Apply)),
            replace: false,
        });
        world.state.queued.as_ref().unwrap().asked
    };
    let asked = queue(&mut world);
    world.by_ada(|by| EventKind::QueueCancelled { asked, by });
    assert!(world.state.queued.is_none() && world.state.queue_trouble.is_none());
    let asked = queue(&mut world);
    world.tell(EventKind::QueueRefused { asked, why: "it does not fit".to_owned() });
    assert_eq!(world.state.queue_trouble.as_deref(), Some("it does not fit"));
    queue(&mut world);
    assert!(world.state.queue_trouble.is_none());
    assert!(world.run_until(HOUR, ended));
    // Somebody was faster with a newer wish.
    world.request(&third(6), RolloutKind::Apply, Nature::Good);
    assert!(world.state.queued.is_none());
    queue(&mut world);
    world.by_ada(|by| EventKind::StopRequested { by, reason: None });
    assert!(world.state.queued.is_none());
    // At rest there is nothing to wait for.
    assert!(world.run_until(HOUR, |w| ended(w) && !w.state.stopping));
    world
        .by_ada(|_| EventKind::Queued { wish: Box::new(wish(RolloutKind::Apply)), replace: false });
    assert!(world.state.queued.is_none());
}

#[test]
fn after_an_abort_nothing_begins_by_itself() {
    let mut world = serving(3, 1);
    world.request(&with_steps(3, 3, smoke("hangs")), RolloutKind::Apply, Nature::Good);
    assert!(world.run_until(HOUR, runs));
    world.wish(&third(6), RolloutKind::Apply, Nature::Good, false);
    world.by_ada(|by| EventKind::Aborted { by, reason: Some("enough".to_owned()) });
    assert!(world.state.queued.is_none());
    let why = "the rollout that it waited for was aborted by ada: enough";
    assert_eq!(world.state.queue_trouble.as_deref(), Some(why));
    assert!(world.run_until(HOUR, ended));
    assert_eq!(world.state.stable, Some(R1));
    world.check_rest();
    world.check_replay();
}

#[test]
fn a_replacement_first_brings_stable_back_and_serves_throughout() {
    // In place: the canary of r2 holds a GPU of r1's.
    let mut world = serving(3, 1);
    world.request(&with_steps(3, 0, smoke("hangs")), RolloutKind::Apply, Nature::Good);
    assert!(world.run_until(HOUR, runs));
    assert_eq!((world.state.ready(R1), world.state.ready(R2)), (2, 1));
    world.wish(&third(0), RolloutKind::Apply, Nature::Good, true);
    assert_eq!(world.state.condition(), Condition::RollingBack);
    assert!(world.state.awaited_run().is_none());
    assert!(world.run_until(HOUR, |w| w.state.active_rollout().is_none()));
    let Outcome::Aborted { why } = outcome(&world) else { panic!("{:?}", outcome(&world)) };
    assert_eq!(why, "replaced by a newer rollout of ada (the spec in the deck)");
    // Nothing of the third one is there before stable is whole again.
    assert_eq!((world.state.stable, world.state.ready(R1)), (Some(R1), 3));
    assert!(!world.state.releases.contains_key(&R3));
    let rest = |w: &World| ended(w) && w.state.queued.is_none();
    assert!(world.run_until(HOUR, rest));
    if world.state.queue_trouble.is_none() {
        assert_eq!(world.state.stable, Some(R3));
    }
    assert_eq!(world.lowest_ready, 2);
    world.check_rest();
    world.check_replay();
}

#[test]
fn a_failed_release_is_taken_back_once_to_stable_and_nothing_begins_by_itself() {
    // Stable itself fails again and again on the way back and at rest: that is healed, not rolled.
    let mut world = serving(3, 1);
    world.request(&with_steps(3, 0, Vec::new()), RolloutKind::Apply, Nature::Crashes);
    assert!(world.run_until(HOUR, |w| w.state.condition() == Condition::RollingBack));
    for _ in 0..5 {
        if let Some(rank) = world.running().into_iter().find(|r| r.replica.release == R1) {
            world.kill(&rank, "killed");
        }
        for _ in 0..10 {
            world.turn();
        }
    }
    assert!(world.run_until(HOUR, |w| ended(w) && w.state.ready(R1) == 3));
    let rollout = world.state.rollout.clone().unwrap();
    assert!(matches!(rollout.outcome, Some(Outcome::RolledBack { .. })));
    let rank = world.running().into_iter().find(|r| r.replica.release == R1).unwrap();
    world.kill(&rank, "killed");
    assert!(world.run_until(HOUR, |w| w.state.ready(R1) == 3 && w.quiet()));
    let later = world.now.plus(Duration::from_hours(3));
    while world.now < later {
        world.turn();
    }
    // The same rollout, ended the same way: one way back, one outcome, no other rollout.
    assert_eq!(world.state.rollout.as_ref(), Some(&rollout));
    let recorded =
        world.actions.iter().filter(|a| matches!(a, Action::RecordOutcome { .. })).count();
    assert_eq!(recorded, 1);
    assert_eq!(world.state.stable, Some(R1));
    world.check_rest();
}

/// What the front desk refuses as futile is what the decider would pass over, and nothing else.
#[test]
fn a_wish_that_is_called_futile_changes_nothing() {
    let by = || "ada".to_owned();
    let wishes = || {
        [
            EventKind::Promoted { all: false, by: by(), step: None, reason: None },
            EventKind::Promoted { all: true, by: by(), step: None, reason: None },
            EventKind::Resumed { by: by(), reason: None },
            EventKind::Aborted { by: by(), reason: None },
            EventKind::Paused { by: by(), reason: None },
        ]
    };
    let futile = |world: &World| wishes().map(|w| world.state.futile(&w).is_some());
    let agrees = |world: &World| {
        for wish in wishes() {
            let mut after = world.state.clone();
            step(&mut after, &Event { at: world.state.now, kind: wish.clone() });
            let changes = after != world.state;
            assert_ne!(world.state.futile(&wish).is_some(), changes, "{wish:?}");
        }
    };
    let mut world = serving(3, 1);
    assert_eq!(futile(&world), [false; 5], "without a rollout that is what is said");
    let mut release = with_steps(3, 3, smoke("fails"));
    release.spec.rollout.auto_rollback = false;
    world.request(&release, RolloutKind::Apply, Nature::Good);
    assert!(world.run_until(HOUR, runs));
    assert_eq!(futile(&world), [false, false, true, false, false]);
    agrees(&world);
    assert!(world.run_until(HOUR, held));
    assert_eq!(futile(&world), [true, true, true, false, true]);
    agrees(&world);
    let refused = world.state.futile(&wishes()[0]).unwrap();
    assert!(refused.why.contains("has failed: run fails: exit code 3"), "{refused:?}");
    assert!(refused.instead.contains("`gpudeck rollout retry"), "{refused:?}");
    world.by_ada(|by| EventKind::Aborted { by, reason: None });
    // Not even a pause: the way back is what keeps the service serving.
    assert_eq!(futile(&world), [true; 5]);
    agrees(&world);
    assert!(world.run_until(HOUR, |w| w.state.active_rollout().is_some()));
}

/// A limit on what the engine tells needs nobody; one on what it does not tell is named in the plan.
#[test]
fn a_plan_foresees_which_limits_wait_for_a_person() {
    let steps = vec![StepSpec::Weight(30), StepSpec::Analyse("a".to_owned())];
    let foreseen = |engine: &str| {
        let mut release = with_steps(3, 3, steps.clone());
        let analysis = "duration = \"1m\"\n[engine]\nmax_first_token = \"1s\"";
        release.spec.analysis.insert("a".to_owned(), toml::from_str(analysis).unwrap());
        let text = format!("model = \"/m\"\nengine = \"{engine}\"");
        release.spec.engine = deciding::spec::parse_service(&text, "chat").unwrap().engine;
        let stage = forecast(&serving(3, 1).state, &release, RolloutKind::Apply).unwrap();
        let stage = &stage.stages[1];
        (stage.unknown.person, stage.took_ms, deciding::rollout::untold_limits(&release.spec))
    };
    assert_eq!(foreseen("vllm"), (false, 60_000, Vec::new()));
    let (person, _, untold) = foreseen("llamacpp");
    assert!(person);
    assert_eq!(untold, ["max_first_token of analysis a"]);
}

#[test]
fn a_plan_foresees_how_long_queries_take() {
    let steps = vec![StepSpec::Weight(30), StepSpec::Analyse("a".to_owned())];
    let took = |analysis: &str| {
        let mut release = with_steps(3, 3, steps.clone());
        release.spec.analysis.insert("a".to_owned(), toml::from_str(analysis).unwrap());
        let foreseen = forecast(&serving(3, 1).state, &release, RolloutKind::Apply).unwrap();
        foreseen.stages[1].took_ms
    };
    let query = |more: &str| {
        format!(
            "duration = \"1m\"\nprometheus = {{ url = \"http://p\", query = \"up\", \
             success = \"result > 0\"{more} }}"
        )
    };
    assert_eq!(took("duration = \"1m\""), 60_000);
    // One after each interval: within its duration, at its end, and beyond it.
    assert_eq!(took(&query(", interval = \"10s\", count = 3")), 60_000);
    assert_eq!(took(&query("")), 60_000);
    assert_eq!(took(&query(", interval = \"1m\", count = 5")), 300_000);
    assert_eq!(took(&query(", initial_delay = \"10m\", interval = \"1m\", count = 3")), 720_000);
    let golden = "duration = \"1m\"\n[[golden]]\nprompt = \"a\"\ncontains = \"b\"\n";
    assert_eq!(took(golden), 60_000);
}

/// Who presses twice means the step that they saw; and what was passed is remembered.
#[test]
fn a_promotion_passes_the_step_that_was_seen_once_and_is_remembered() {
    let promoted = |step, reason: Option<&str>| {
        let reason = reason.map(str::to_owned);
        EventKind::Promoted { all: false, by: "ada".to_owned(), step, reason }
    };
    let mut world = serving(3, 1);
    world.request(&with_steps(3, 3, crate::build::canary()), RolloutKind::Apply, Nature::Good);
    assert!(world.run_until(HOUR, |w| matches!(gate(w), Some(Gate::Bake { .. }))));
    world.tell(promoted(Some(1), Some("the graphs\u{1b}[2J are fine")));
    assert_eq!(world.state.active_rollout().unwrap().step, 2);
    // The second press of the same key, and one that runs ahead.
    for step in [Some(1), Some(4)] {
        assert!(world.state.futile(&promoted(step, None)).is_some());
        let before = world.state.clone();
        world.tell(promoted(step, None));
        assert_eq!(world.state, before);
    }
    world.by_ada(|by| EventKind::Promoted { all: true, by, step: Some(2), reason: None });
    assert!(world.run_until(HOUR, ended));
    assert_eq!(*outcome(&world), Outcome::Completed);
    let passed = &world.state.rollout.as_ref().unwrap().skipped;
    let told: Vec<(usize, &str, &str)> =
        passed.iter().map(|s| (s.step, s.gate.as_str(), s.reason.as_str())).collect();
    assert_eq!(
        told,
        [
            (1, "bake", "the graphs are fine"),
            (2, "analyse default", ""),
            (3, "weight 50 %", ""),
            (4, "approve", ""),
        ]
    );
    assert!(passed.iter().all(|s| s.promoted && s.by == "ada"));
    world.check_replay();
}
