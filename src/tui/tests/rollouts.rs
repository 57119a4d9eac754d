//! Rollouts begun, steered and taken back: what is asked first, and what is sent.

use super::super::command::Panel;
use super::super::dialogs::PlanState;
use super::super::fixture::{self, NOW, calm, press, service_name, state};
use super::super::message::{Effect, Message, PlanOf};
use super::super::state::{Mode, State};
use super::super::update::update;
use super::{LARGE, SMALL, planned, sent, text};
use crate::api::{
    ApiError, ConcurrencyPolicy, Delta, ErrorKind, Gate, Intent, IntentReply, PlanBehind,
    ReleaseNumber, SeenRollout, Timestamp,
};

#[test]
fn two_keys_and_the_name_start_a_rollout() {
    let mut state = state(calm(), SMALL);
    let effects = press(&mut state, "2Ga");
    assert!(sent(&effects).is_empty(), "a key alone does nothing");
    planned(&mut state, &effects, fixture::plan("code", false));
    let effects = press(&mut state, "code<enter>");
    assert_eq!(
        sent(&effects),
        [Intent::Apply {
            service: service_name("code"),
            reason: None,
            accept_outage: false,
            concurrency: None,
            agreed: Some(fixture::plan("code", false).digest()),
        }]
    );
    assert!(matches!(state.mode, Mode::Browse));
    let reply = IntentReply::RolloutBegun {
        release: ReleaseNumber(13),
        plan: Box::new(fixture::plan("code", false)),
    };
    let what = "apply code".to_owned();
    update(&mut state, Message::Replied { what, again: None, result: Ok(Box::new(reply)) });
    assert_eq!(state.panel, Panel::Rollout);
}

#[test]
fn the_dialog_begins_on_cancel_and_wants_the_whole_name() {
    let mut state = state(calm(), SMALL);
    let effects = press(&mut state, "2Ga");
    planned(&mut state, &effects, fixture::plan("code", false));
    assert!(sent(&press(&mut state, "<enter>")).is_empty());
    assert!(matches!(state.mode, Mode::Browse), "Enter on Cancel closes");

    let effects = press(&mut state, "a");
    planned(&mut state, &effects, fixture::plan("code", false));
    assert!(sent(&press(&mut state, "cod<enter>")).is_empty());
    assert!(matches!(state.mode, Mode::Confirm(_)), "a part of the name does nothing");
    assert_eq!(sent(&press(&mut state, "e<enter>")).len(), 1);
}

/// However long the difference is, what one has to know first is seen first.
#[test]
fn a_plan_begins_with_what_it_comes_to() {
    let mut state = state(calm(), SMALL);
    let effects = press(&mut state, "2Ga");
    let mut plan = fixture::plan("code", true);
    plan.diff.push_str(&"+one more\n".repeat(40));
    planned(&mut state, &effects, plan);
    let screen = text(&state);
    let row = |what: &str| screen.lines().position(|l| l.contains(what)).expect(what);
    assert!(row("OUTAGE") < row("JOURNEY") && row("JOURNEY") < row("DIFFERENCE"), "{screen}");
}

#[test]
fn where_nothing_is_to_be_done_nothing_is_to_be_typed() {
    let mut state = state(calm(), SMALL);
    let effects = press(&mut state, "2Ga");
    let plan = crate::api::PlanView { nothing_to_do: true, ..fixture::plan("code", false) };
    planned(&mut state, &effects, plan);
    let screen = text(&state);
    assert!(
        screen.contains("Enter or Esc closes") && !screen.contains("type the name"),
        "{screen}"
    );
    press(&mut state, "<enter>");
    assert!(matches!(state.mode, Mode::Browse));
}

#[test]
fn an_unseen_plan_is_not_confirmed() {
    let mut state = state(calm(), SMALL);
    press(&mut state, "2Ga");
    assert!(sent(&press(&mut state, "code<enter>")).is_empty());
    let Mode::Confirm(confirm) = &state.mode else { panic!("the dialog stays") };
    assert!(matches!(confirm.plan, PlanState::Waiting(_)));
}

#[test]
fn an_outage_has_to_be_typed() {
    let mut state = state(calm(), LARGE);
    let effects = press(&mut state, "2Ga");
    planned(&mut state, &effects, fixture::plan("code", true));
    assert!(text(&state).contains("OUTAGE"));
    assert!(sent(&press(&mut state, "code<enter>")).is_empty());
    let effects = press(&mut state, " outage<tab>it is night<enter>");
    assert_eq!(
        sent(&effects),
        [Intent::Apply {
            service: service_name("code"),
            reason: Some("it is night".to_owned()),
            accept_outage: true,
            concurrency: None,
            agreed: Some(fixture::plan("code", true).digest()),
        }]
    );
}

#[test]
fn what_was_selected_when_the_key_was_pressed_is_the_target() {
    let mut state = state(calm(), SMALL);
    let effects = press(&mut state, "2Ga");
    planned(&mut state, &effects, fixture::plan("code", false));
    // Another service comes first in the list now.
    let mut snapshot = calm();
    let mut first = snapshot.services[&service_name("chat")].clone();
    first.name = service_name("aaa");
    snapshot.services.insert(first.name.clone(), first);
    update(&mut state, Message::Delta(Box::new(Delta::Snapshot(Box::new(snapshot)))));
    let effects = press(&mut state, "code<enter>");
    assert!(
        matches!(&sent(&effects)[..], [Intent::Apply { service, .. }] if service.as_str() == "code")
    );
}

#[test]
fn a_dialog_about_a_service_that_is_gone_closes() {
    let mut state = state(calm(), SMALL);
    press(&mut state, "2Ga");
    let service = service_name("code");
    update(&mut state, Message::Delta(Box::new(Delta::ServiceGone { sequence: 2, service })));
    assert!(matches!(state.mode, Mode::Browse));
    assert!(state.notice.is_some());
}

#[test]
fn undo_goes_to_the_release_chosen_in_the_history() {
    let mut state = state(calm(), LARGE);
    let mut snapshot = calm();
    let chat = snapshot.services.get_mut(&service_name("chat")).unwrap();
    chat.rollout.as_mut().unwrap().outcome = Some(crate::api::Outcome::Completed);
    update(&mut state, Message::Delta(Box::new(Delta::Snapshot(Box::new(snapshot)))));
    let effects = press(&mut state, "3jjju");
    let Some(Effect::Plan { of: PlanOf::Undo(to), .. }) = effects.first() else {
        panic!("{effects:?}")
    };
    assert_eq!(*to, Some(ReleaseNumber(7)));
    assert!(text(&state).contains("Undo chat: back to r7 "), "{}", text(&state));
    planned(&mut state, &effects, fixture::plan("chat", false));
    let effects = press(&mut state, "chat<enter>");
    assert!(matches!(&sent(&effects)[..], [Intent::Undo { to: Some(ReleaseNumber(7)), .. }]));
}

/// The plan of what comes after the rollout under way, or in its place.
fn behind(replaces: bool, outage: bool) -> crate::api::PlanView {
    let behind = PlanBehind { release: ReleaseNumber(12), replaces, refused: false };
    crate::api::PlanView { behind: Some(behind), ..fixture::plan("chat", outage) }
}

#[test]
fn what_a_dialog_says_is_read_to_its_end_where_it_is_narrow() {
    let mut state = rolling(|_| ());
    state.size = (60, 24);
    let effects = press(&mut state, "3A");
    planned(&mut state, &effects, behind(true, false));
    let screen = text(&state);
    let words: Vec<&str> = screen.split_whitespace().filter(|w| *w != "│").collect();
    let words = words.join(" ");
    assert!(words.contains("has been taken back, stable whole again:"), "{screen}");
}

/// The bottom line of the rollout panel, whatever its width leaves out.
fn hints(change: impl FnOnce(&mut crate::api::ServiceView)) -> String {
    let mut state = rolling(change);
    press(&mut state, "3");
    text(&state).lines().last().unwrap().to_owned()
}

#[test]
fn the_hints_offer_what_does_something() {
    let analysing = hints(|_| ());
    for wanted in ["p pause", "P promote", "x abort", "s skip"] {
        assert!(analysing.contains(wanted), "{analysing}");
    }
    assert!(!analysing.contains("r retry"), "{analysing}");
    let paused = hints(|v| v.rollout.as_mut().unwrap().paused = Some(NOW));
    assert!(paused.contains("p resume") && !paused.contains("pause"), "{paused}");
    let done = |outcome| {
        move |v: &mut crate::api::ServiceView| {
            v.rollout.as_mut().unwrap().outcome = Some(outcome);
        }
    };
    let over = hints(done(crate::api::Outcome::Completed));
    for unwanted in ["pause", "promote", "abort", "retry", "skip"] {
        assert!(!over.contains(unwanted), "{over}");
    }
    assert!(over.contains("a apply") && over.contains("u undo"), "{over}");
    let first = hints(|v| {
        v.rollout.as_mut().unwrap().outcome = Some(crate::api::Outcome::Completed);
        v.history.truncate(1);
    });
    assert!(!first.contains("u undo"), "there is nothing to go back to: {first}");
    let failed = hints(done(crate::api::Outcome::Failed { why: "bad".to_owned() }));
    assert!(failed.contains("r retry") && !failed.contains("abort"), "{failed}");
}

/// What steers the rollout under way is not what a small screen leaves out.
#[test]
fn the_brakes_are_told_where_it_is_narrow() {
    let mut state = rolling(|_| ());
    state.size = SMALL;
    for keys in ["2", "3"] {
        press(&mut state, keys);
        let screen = text(&state);
        let hints = screen.lines().last().unwrap();
        assert!(hints.contains("p pause") && hints.contains("x abort"), "{hints}");
    }
}

#[test]
fn an_undo_names_the_release_before() {
    let mut state = rolling(|v| {
        v.rollout.as_mut().unwrap().outcome = Some(crate::api::Outcome::Completed);
        v.stable = Some(ReleaseNumber(11));
    });
    // r10 was rolled back: it never served.
    let effects = press(&mut state, "2u");
    assert!(matches!(&effects[..], [Effect::Plan { of: PlanOf::Undo(None), .. }]), "{effects:?}");
    assert!(text(&state).contains("chat: back to r7 "), "{}", text(&state));
    planned(&mut state, &effects, fixture::plan("chat", false));
    assert!(text(&state).contains("chat: back to r7 (r9 → r13)"), "{}", text(&state));
    let mut state = rolling(|_| ());
    press(&mut state, "2u");
    assert!(text(&state).contains("chat: back to r11"), "{}", text(&state));
}

/// `chat` in mid-rollout, as `change` makes it.
fn rolling(change: impl FnOnce(&mut crate::api::ServiceView)) -> State {
    let mut snapshot = calm();
    change(snapshot.services.get_mut(&service_name("chat")).unwrap());
    state(snapshot, LARGE)
}

/// The rollout of `chat` as it is in the fixture.
fn seen_at_its_step() -> SeenRollout {
    let state = rolling(|_| ());
    let rollout = state.service_named(&service_name("chat")).unwrap().rollout.clone().unwrap();
    SeenRollout { to: rollout.to, step: Some(rollout.step) }
}

/// `chat` changes while somebody looks at a dialog.
fn meanwhile(state: &mut State, change: impl FnOnce(&mut crate::api::ServiceView)) -> Vec<Effect> {
    let mut snapshot = state.snapshot.clone().unwrap();
    change(snapshot.services.get_mut(&service_name("chat")).unwrap());
    update(state, Message::Delta(Box::new(Delta::Snapshot(Box::new(snapshot)))))
}

fn completed(v: &mut crate::api::ServiceView) {
    v.rollout.as_mut().unwrap().outcome = Some(crate::api::Outcome::Completed);
    v.stable = Some(ReleaseNumber(12));
}

#[test]
fn an_undo_whose_rollout_ends_meanwhile_is_planned() {
    let mut state = rolling(|_| ());
    press(&mut state, "3u");
    press(&mut state, "cha<tab>as before<tab>");
    assert!(meanwhile(&mut state, |_| ()).is_empty(), "it goes on");
    let effects = meanwhile(&mut state, completed);
    assert!(matches!(&effects[..], [Effect::Plan { of: PlanOf::Undo(None), .. }]), "{effects:?}");
    // Nothing of what was typed for the other one counts but the reason.
    assert!(sent(&press(&mut state, "t<enter>")).is_empty());
    let plan = fixture::plan("chat", false);
    let agreed = Some(plan.digest());
    planned(&mut state, &effects, plan);
    assert!(text(&state).contains("JOURNEY"), "{}", text(&state));
    let intents = sent(&press(&mut state, "<backspace>chat<enter>"));
    let reason = Some("as before".to_owned());
    let service = service_name("chat");
    assert_eq!(
        intents,
        [Intent::Undo { service, to: None, reason, accept_outage: false, agreed, seen: None }]
    );
}

#[test]
fn what_is_done_to_a_rollout_is_not_done_to_the_next_one() {
    for (key, step) in [("x", None), ("s", Some(1))] {
        let mut state = rolling(|_| ());
        press(&mut state, &format!("3{key}"));
        let Mode::Confirm(dialog) = &state.mode else { panic!("{key}: {}", text(&state)) };
        let seen = dialog.seen.unwrap();
        assert_eq!((seen.to, seen.step.is_some()), (ReleaseNumber(12), step.is_some()));
        let effects = meanwhile(&mut state, |v| v.rollout.as_mut().unwrap().to = ReleaseNumber(13));
        assert!(effects.is_empty(), "{effects:?}");
        assert!(text(&state).contains("is not the one that was seen any more"), "{}", text(&state));
        assert!(sent(&press(&mut state, "chat<enter>")).is_empty());
        assert!(matches!(state.mode, Mode::Browse));
    }
    // A gate that has passed is not skipped, nor is the next one.
    let mut state = rolling(|_| ());
    press(&mut state, "3s");
    meanwhile(&mut state, |v| v.rollout.as_mut().unwrap().step += 1);
    assert!(text(&state).contains("is not the one that was seen any more"), "{}", text(&state));
    // An abort means the rollout whatever step it is at.
    let mut state = rolling(|_| ());
    press(&mut state, "3x");
    meanwhile(&mut state, |v| v.rollout.as_mut().unwrap().step += 1);
    assert_eq!(sent(&press(&mut state, "chat<enter>")).len(), 1);
}

#[test]
fn a_plan_that_has_changed_is_shown_anew_with_the_reason_kept() {
    let mut state = state(calm(), SMALL);
    let effects = press(&mut state, "2Ga");
    planned(&mut state, &effects, fixture::plan("code", false));
    let effects = press(&mut state, "code<tab>the fix<enter>");
    let [Effect::Send { intent, what }] = &effects[..] else { panic!("{effects:?}") };
    let error = ApiError {
        kind: ErrorKind::Conflict,
        message: crate::api::PLAN_CHANGED.to_owned(),
        hint: None,
    };
    let again = Some(Box::new(intent.clone()));
    let refused = Message::Replied { what: what.clone(), again, result: Err(error) };
    let effects = update(&mut state, refused);
    assert!(matches!(&effects[..], [Effect::Plan { of: PlanOf::Apply, .. }]), "{effects:?}");
    let plan = fixture::plan("code", true);
    planned(&mut state, &effects, plan);
    let screen = text(&state);
    assert!(screen.contains("what was shown has changed: this is how it is now"), "{screen}");
    let intents = sent(&press(&mut state, "code outage<enter>"));
    let [Intent::Apply { reason, accept_outage: true, agreed: Some(_), .. }] = &intents[..] else {
        panic!("{intents:?}")
    };
    assert_eq!(reason.as_deref(), Some("the fix"));
}

#[test]
fn an_undo_in_mid_rollout_says_that_it_takes_it_back() {
    let mut state = rolling(|_| ());
    let effects = press(&mut state, "3u");
    assert!(effects.is_empty(), "{effects:?}");
    assert!(text(&state).contains("The rollout to r12 is taken back."), "{}", text(&state));
    // What comes after that has a plan, which is made again when its turn has come.
    let mut state = rolling(|_| ());
    let effects = press(&mut state, "3jjju");
    let to = Some(ReleaseNumber(7));
    assert!(
        matches!(&effects[..], [Effect::Plan { of: PlanOf::Undo(asked), .. }] if *asked == to),
        "{effects:?}"
    );
    planned(&mut state, &effects, behind(true, false));
    let screen = text(&state);
    assert!(screen.contains("when the rollout to r12 has been taken back"), "{screen}");
    let effects = press(&mut state, "chat<enter>");
    assert!(
        matches!(&sent(&effects)[..], [Intent::Undo { to: asked, agreed: None, .. }] if *asked == to),
        "{effects:?}"
    );
}

#[test]
fn an_apply_in_mid_rollout_is_queued_or_replaces_it() {
    for (key, policy, words) in [
        ("a", ConcurrencyPolicy::Queue, "when the rollout to r12 has ended as foreseen"),
        ("A", ConcurrencyPolicy::Replace, "when the rollout to r12 has been taken back"),
    ] {
        let replaces = policy == ConcurrencyPolicy::Replace;
        let mut state = rolling(|_| ());
        let effects = press(&mut state, &format!("3{key}"));
        let of = PlanOf::Behind { replace: replaces };
        assert!(
            matches!(&effects[..], [Effect::Plan { of: asked, .. }] if *asked == of),
            "{effects:?}"
        );
        // Not before there is a plan to be seen.
        assert!(sent(&press(&mut state, "chat<enter>")).is_empty());
        planned(&mut state, &effects, behind(replaces, false));
        let screen = text(&state);
        assert!(screen.contains(words), "{screen}");
        let effects = press(&mut state, "<enter>");
        let [Intent::Apply { concurrency, accept_outage: false, agreed: None, .. }] =
            &sent(&effects)[..]
        else {
            panic!("{effects:?}")
        };
        assert_eq!(*concurrency, Some(policy));
        // An OUTAGE in it is accepted as in any other plan.
        let mut state = rolling(|_| ());
        let effects = press(&mut state, &format!("3{key}"));
        planned(&mut state, &effects, behind(replaces, true));
        assert!(sent(&press(&mut state, "chat<enter>")).is_empty());
        let effects = press(&mut state, " outage<enter>");
        assert!(
            matches!(&sent(&effects)[..], [Intent::Apply { accept_outage: true, .. }]),
            "{effects:?}"
        );
    }
    // Nothing is under way: there is nothing to replace.
    let mut state = rolling(|v| v.rollout = None);
    press(&mut state, "3A");
    assert!(matches!(state.mode, Mode::Browse));
}

#[test]
fn a_gate_is_skipped_only_with_a_reason() {
    let mut state = rolling(|_| ());
    press(&mut state, "3s");
    assert!(sent(&press(&mut state, "chat<enter>")).is_empty());
    assert!(text(&state).contains("a reason is needed"), "{}", text(&state));
    let effects = press(&mut state, "it is known<enter>");
    let reason = "it is known".to_owned();
    let seen = Some(seen_at_its_step());
    assert_eq!(sent(&effects), [Intent::Skip { service: service_name("chat"), reason, seen }]);
    for gate in [None, Some(Gate::Failed { why: "bad".to_owned() })] {
        let mut state = rolling(|v| v.rollout.as_mut().unwrap().gate = gate);
        press(&mut state, "3s");
        assert!(matches!(state.mode, Mode::Browse), "no gate to skip");
    }
}

#[test]
fn what_failed_is_tried_again() {
    let failed = |v: &mut crate::api::ServiceView| {
        v.rollout.as_mut().unwrap().gate = Some(Gate::Failed { why: "exit code 3".to_owned() });
    };
    let taken_back = |v: &mut crate::api::ServiceView| {
        let why = "exit code 3".to_owned();
        v.rollout.as_mut().unwrap().outcome = Some(crate::api::Outcome::RolledBack { why });
    };
    let mut state = rolling(failed);
    assert!(press(&mut state, "3r").is_empty(), "it goes on within its plan");
    assert!(text(&state).contains("Tries again: exit code 3"), "{}", text(&state));
    let effects = press(&mut state, "chat<enter>");
    let service = service_name("chat");
    let retry = |accept_outage, agreed, seen| Intent::Retry {
        service: service.clone(),
        accept_outage,
        reason: None,
        agreed,
        seen,
    };
    assert_eq!(sent(&effects), [retry(false, None, Some(seen_at_its_step()))]);
    // What was taken back begins anew: its plan is shown, and its OUTAGE accepted as that of an apply.
    for outage in [false, true] {
        let mut state = rolling(taken_back);
        let effects = press(&mut state, "3r");
        assert!(matches!(&effects[..], [Effect::Plan { of: PlanOf::Retry, .. }]), "{effects:?}");
        let plan = fixture::plan("chat", outage);
        let seen = plan.digest();
        planned(&mut state, &effects, plan);
        let screen = text(&state);
        assert!(screen.contains("chat: r9 → r13 (chat: r12 again)"), "{screen}");
        assert!(screen.contains("JOURNEY"), "{screen}");
        let typed = if outage { "chat outage<enter>" } else { "chat<enter>" };
        assert_eq!(sent(&press(&mut state, typed)), [retry(outage, Some(seen), None)]);
    }
    let mut state = rolling(|_| ());
    press(&mut state, "3r");
    assert!(matches!(state.mode, Mode::Browse), "nothing has failed");
}

#[test]
fn what_is_queued_is_seen_and_taken_out() {
    let queued = crate::api::QueuedRollout {
        asked: NOW,
        kind: crate::api::RolloutKind::Apply,
        to: None,
        digest: None,
        by: "bob".to_owned(),
        reason: Some("the fix".to_owned()),
        accept_outage: false,
    };
    let run = Gate::Run {
        command: "./smoke.sh --quick".to_owned(),
        attempt: crate::api::Attempt::FIRST.next(),
        until: Timestamp(NOW.0 + 95_000),
    };
    for (size, label) in [(SMALL, "80x24"), (LARGE, "200x50")] {
        let (queued, run) = (queued.clone(), run.clone());
        let mut state = rolling(|v| {
            v.queued = Some(queued);
            v.steps[1] = "run ./smoke.sh --quick".to_owned();
            v.rollout.as_mut().unwrap().gate = Some(run);
        });
        state.size = size;
        press(&mut state, "3");
        insta::assert_snapshot!(format!("steered_{label}"), text(&state));
        press(&mut state, "s");
        insta::assert_snapshot!(format!("skip_{label}"), text(&state));
        press(&mut state, "<esc>X");
        let effects = press(&mut state, "chat<enter>");
        let service = service_name("chat");
        assert_eq!(sent(&effects), [Intent::CancelQueued { service, reason: None }]);
    }
    let mut state = rolling(|_| ());
    press(&mut state, "3X");
    assert!(matches!(state.mode, Mode::Browse), "nothing is queued");
}

#[test]
fn the_brake_is_quick_and_going_on_asks() {
    let mut state = state(calm(), SMALL);
    let effects = press(&mut state, "3p");
    assert!(matches!(&sent(&effects)[..], [Intent::Pause { .. }]));
    state
        .snapshot
        .as_mut()
        .unwrap()
        .services
        .get_mut(&service_name("chat"))
        .unwrap()
        .rollout
        .as_mut()
        .unwrap()
        .paused = Some(NOW);
    assert!(sent(&press(&mut state, "p<enter>")).is_empty(), "it begins on Cancel");
    assert!(sent(&press(&mut state, "py<esc>")).is_empty(), "a letter is no yes");
    assert!(matches!(&sent(&press(&mut state, "py<enter>"))[..], [Intent::Resume { .. }]));
}

#[test]
fn abort_stop_and_promote_want_the_name() {
    for (keys, wanted) in [("3x", "abort"), ("2S", "stop"), ("3P", "promote")] {
        let mut state = state(calm(), SMALL);
        assert!(sent(&press(&mut state, keys)).is_empty());
        assert!(sent(&press(&mut state, "y<enter>")).is_empty());
        press(&mut state, "<backspace>");
        let intents = sent(&press(&mut state, "chat<enter>"));
        let named = serde_json::to_string(&intents[0]).unwrap();
        assert!(named.contains(wanted), "{named}");
    }
}

#[test]
fn a_clock_stands_while_its_rollout_is_paused() {
    let shown = |change: fn(&mut crate::api::Rollout)| {
        let mut state = rolling(|v| change(v.rollout.as_mut().unwrap()));
        press(&mut state, "3");
        text(&state)
    };
    let runs = shown(|_| ());
    assert!(runs.contains("42s left") && !runs.contains("paused"), "{runs}");
    // Twelve seconds ago, with as much left as then.
    let paused = shown(|r| r.paused = Some(Timestamp(NOW.0 - 12_000)));
    assert!(paused.contains("paused, 54s left"), "{paused}");
    let counts = paused.lines().find(|line| line.contains("requests   failed")).unwrap();
    assert!(counts.contains("paused"), "{counts}");
    // A command runs on.
    let command = shown(|r| {
        r.paused = Some(Timestamp(NOW.0 - 12_000));
        let (command, attempt) = ("./smoke.sh".to_owned(), crate::api::Attempt::FIRST);
        let until = Timestamp(NOW.0 + 30_000);
        r.gate = Some(Gate::Run { command, attempt, until });
    });
    assert!(command.contains("30s left"), "{command}");
}

#[test]
fn an_analysis_without_a_request_says_what_it_waits_for() {
    let mut state = rolling(|v| {
        let (name, until) = ("default".to_owned(), Timestamp(NOW.0 + 12_000));
        v.rollout.as_mut().unwrap().gate =
            Some(Gate::Analyse { name, until, awaits_request: true });
    });
    press(&mut state, "3");
    let screen = text(&state);
    assert!(screen.contains("no request yet, ≤12s"), "{screen}");
    assert!(!screen.contains("12s left"), "{screen}");
}

#[test]
fn a_promotion_says_that_it_ends_a_pause() {
    let mut state = rolling(|_| ());
    press(&mut state, "3P");
    assert!(!text(&state).contains("paused"));
    for by in [None, Some("ann")] {
        let mut state = rolling(|v| {
            let rollout = v.rollout.as_mut().unwrap();
            (rollout.paused, rollout.paused_by) = (Some(NOW), by.map(str::to_owned));
            rollout.paused_why = by.map(|_| "wait for ops".to_owned());
        });
        press(&mut state, "3");
        let held =
            if by.is_some() { "PAUSED for 0s by ann: wait for ops" } else { "PAUSED for 0s" };
        assert!(text(&state).contains(held), "{}", text(&state));
        press(&mut state, "P");
        let wanted = match by {
            Some(by) => format!("It was paused by {by} (wait for ops); this also resumes it."),
            None => "It was paused; this also resumes it.".to_owned(),
        };
        assert!(text(&state).contains(&wanted), "{}", text(&state));
    }
}

/// A rollout whose analysis is over: the counts are of a window that is gone.
#[test]
fn a_verdict_stands_alone_when_nothing_is_counted_any_more() {
    let mut state = rolling(|v| {
        let rollout = v.rollout.as_mut().unwrap();
        rollout.gate = Some(Gate::Approve);
        rollout.measured_new = crate::api::Window::default();
        rollout.measured_old = crate::api::Window::default();
        rollout.verdict = Some(crate::api::Verdict {
            of: crate::api::VerdictOf::Analysis,
            lines: Vec::new(),
            analysis: "default".to_owned(),
            result: crate::api::VerdictResult::Success,
            reason: "error rate 0.000 (0 of 35)".to_owned(),
            at: NOW,
        });
    });
    press(&mut state, "3");
    let screen = text(&state);
    assert!(screen.contains("0 of 35") && !screen.contains("requests   failed"), "{screen}");
}

/// Why it went back is the verdict: one of them is enough, and the counts stay.
#[test]
fn a_verdict_that_is_the_reason_is_told_once() {
    let mut state = rolling(|v| {
        let rollout = v.rollout.as_mut().unwrap();
        let reason = "error rate 0.31 (71 of 214)".to_owned();
        let why = format!("analysis default: {reason}");
        rollout.outcome = Some(crate::api::Outcome::RolledBack { why });
        rollout.ended = Some(NOW);
        rollout.verdict = Some(crate::api::Verdict {
            of: crate::api::VerdictOf::Analysis,
            lines: Vec::new(),
            analysis: "default".to_owned(),
            result: crate::api::VerdictResult::Failed,
            reason,
            at: NOW,
        });
    });
    state.size = SMALL;
    press(&mut state, "3");
    let screen = text(&state);
    assert_eq!(screen.matches("71 of 214").count(), 1, "{screen}");
    assert!(screen.contains("requests   failed"), "{screen}");
}

#[test]
fn why_a_rollout_failed_is_read_to_its_end() {
    let why = "r12-0 on node3 ended with exit code 3 before its first token: CUDA error: an illegal \
               memory access was encountered, and three further starts of it ended in the same way";
    let failed = |v: &mut crate::api::ServiceView| {
        let rollout = v.rollout.as_mut().unwrap();
        rollout.ended = Some(NOW);
        rollout.outcome = Some(crate::api::Outcome::Failed { why: why.to_owned() });
    };
    for keys in ["3", "2d"] {
        let mut state = rolling(failed);
        state.size = SMALL;
        press(&mut state, keys);
        let screen = text(&state);
        let words: Vec<&str> = screen.split_whitespace().filter(|w| *w != "│").collect();
        let words = words.join(" ");
        assert!(words.contains(&format!("just now: {why}")), "{screen}");
    }
    let mut state = rolling(|v| {
        v.rollout.as_mut().unwrap().gate = Some(Gate::Failed { why: why.to_owned() });
    });
    state.size = SMALL;
    press(&mut state, "3");
    let screen = text(&state);
    assert!(screen.contains("Retry (r) or abort (x)"), "{screen}");
    assert!(
        screen.contains("│ ║ FAILED: r12-0"),
        "its first line begins where others do: {screen}"
    );
}

/// What holds it is its verdict: the lines at the top tell it, and the room is for the rest.
#[test]
fn a_verdict_that_holds_it_is_told_once() {
    let mut state = rolling(|v| {
        let rollout = v.rollout.as_mut().unwrap();
        let reason = "no request to the canary was counted, 15 are needed".to_owned();
        rollout.gate = Some(Gate::Inconclusive { why: reason.clone() });
        rollout.measured_new = crate::api::Window::default();
        rollout.measured_old = crate::api::Window::default();
        rollout.verdict = Some(crate::api::Verdict {
            of: crate::api::VerdictOf::Analysis,
            lines: Vec::new(),
            analysis: "default".to_owned(),
            result: crate::api::VerdictResult::Inconclusive,
            reason,
            at: NOW,
        });
    });
    state.size = SMALL;
    press(&mut state, "3");
    let screen = text(&state);
    assert_eq!(screen.matches("15 are needed").count(), 1, "{screen}");
    assert!(screen.contains("║ analyse default"), "nothing goes on by itself: {screen}");
}

/// Beside the counts a step has thirty columns: its time is seen whole, whatever it is called.
#[test]
fn a_step_keeps_its_time_where_it_is_narrow() {
    let mut state = rolling(|v| {
        v.steps[1] = "run ./smoke.sh --quick --all".to_owned();
        v.rollout.as_mut().unwrap().gate = Some(Gate::Run {
            command: "./smoke.sh".to_owned(),
            attempt: crate::api::Attempt::FIRST,
            until: Timestamp(NOW.0 + 95_000),
        });
    });
    state.size = SMALL;
    press(&mut state, "3");
    let screen = text(&state);
    let row = screen.lines().find(|l| l.contains("▶ run ./smoke.sh")).unwrap();
    assert!(row.contains("… 1m35s │") && !row.contains("left"), "{screen}");
}

/// The step that the dialog was opened for, wherever the rollout is when the name is typed.
#[test]
fn a_promotion_names_the_step_that_was_seen() {
    let mut state = state(calm(), SMALL);
    let seen = state
        .snapshot
        .as_ref()
        .unwrap()
        .services
        .values()
        .find_map(|s| s.rollout.clone())
        .unwrap()
        .step;
    press(&mut state, "3P");
    let intents = sent(&press(&mut state, "chat<enter>"));
    let [Intent::Promote { step, all: false, .. }] = &intents[..] else { panic!("{intents:?}") };
    assert_eq!(*step, Some(seen));
}
