//! The screen as a person meets it: keys in, effects and pictures of the screen out.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod map;

use std::time::Duration;

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;

use super::command::Panel;
use super::dialogs::PlanState;
use super::fixture::{self, NOW, calm, press, rich, service_name, state};
use super::message::{Effect, Message, PlanOf, Wish};
use super::state::{Controller, Look, Mode, ServiceRow, State};
use super::theme::Depth;
use super::update::update;
use super::{picture, view};
use crate::api::{
    ApiError, ConcurrencyPolicy, Delta, ErrorKind, Gate, Intent, IntentReply, LogChunk,
    QuestionKind, ReleaseNumber, Severity, Timestamp,
};

const SMALL: (u16, u16) = (80, 24);
const LARGE: (u16, u16) = (200, 50);

fn buffer(state: &State) -> Buffer {
    let mut buffer = Buffer::empty(Rect::new(0, 0, state.size.0, state.size.1));
    view::draw(state, &mut buffer);
    buffer
}

fn text(state: &State) -> String {
    let buffer = buffer(state);
    let mut out = String::new();
    for y in 0..buffer.area.height {
        let row: String =
            (0..buffer.area.width).map(|x| buffer.cell((x, y)).unwrap().symbol()).collect();
        out.push_str(row.trim_end());
        out.push('\n');
    }
    out
}

fn planned(state: &mut State, effects: &[Effect], plan: crate::api::PlanView) {
    let ticket = effects.iter().find_map(|e| match e {
        Effect::Plan { ticket, .. } => Some(*ticket),
        _ => None,
    });
    let ticket = ticket.expect("a plan is asked for");
    update(state, Message::Planned { ticket, result: Ok(Box::new(plan)) });
}

fn sent(effects: &[Effect]) -> Vec<Intent> {
    let intent = |e: &Effect| match e {
        Effect::Send { intent: Wish(intent), .. } => Some(intent.clone()),
        _ => None,
    };
    effects.iter().filter_map(intent).collect()
}

fn snapshots(name: &str, keys: &str) {
    for (size, label) in [(SMALL, "80x24"), (LARGE, "200x50")] {
        let mut state = state(rich(), size);
        press(&mut state, keys);
        insta::assert_snapshot!(format!("{name}_{label}"), text(&state));
    }
}

#[test]
fn fleet() {
    snapshots("fleet", "1");
}

/// A line for each host still tells what is broken from what is idle, and what is not known from zero.
#[test]
fn a_dense_fleet_marks_broken_gpus_and_unknown_values() {
    let mut snapshot = rich();
    let node1 = snapshot.hosts[&fixture::host_name("node1")].clone();
    let node2 = snapshot.hosts[&fixture::host_name("node2")].clone();
    for n in 0..20 {
        let mut host = node1.clone();
        host.name = fixture::host_name(&format!("m{n:02}"));
        snapshot.hosts.insert(host.name.clone(), host);
    }
    let mut sick = node2;
    sick.name = fixture::host_name("b0");
    let gpus = std::sync::Arc::make_mut(sick.sample.as_mut().unwrap());
    if let crate::api::Gpus::Some(gpus) = &mut gpus.gpus {
        gpus[5].health = crate::api::GpuHealth::Ok;
    }
    snapshot.hosts.insert(sick.name.clone(), sick);
    let mut state = state(snapshot, SMALL);
    press(&mut state, "1");
    let text = text(&state);
    let row = text.lines().find(|line| line.contains(" b0 ")).unwrap();
    assert!(row.contains('▲') && row.contains("DEGRADED"), "{row}");
    assert!(row.contains('–'), "{row}");
    let row = text.lines().find(|line| line.contains(" m00 ")).unwrap();
    assert!(!row.contains('▲') && !row.contains('–'), "{row}");
}

#[test]
fn fleet_host_detail() {
    snapshots("fleet_detail", "1jjd");
}

#[test]
fn services() {
    snapshots("services", "2j");
}

#[test]
fn services_detail() {
    snapshots("services_detail", "2d");
}

#[test]
fn rollout() {
    snapshots("rollout", "3");
}

#[test]
fn events() {
    snapshots("events", "4");
}

#[test]
fn logs() {
    for (size, label) in [(SMALL, "80x24"), (LARGE, "200x50")] {
        let mut state = state(rich(), size);
        followed(&mut state, "INFO ready\nWARNING slow\nERROR \u{1b}[31mred\u{1b}[0m\n");
        insta::assert_snapshot!(format!("logs_{label}"), text(&state));
    }
}

#[test]
fn help_and_palette() {
    snapshots("help", "2?");
    snapshots("palette", ":appch");
}

#[test]
fn confirm_dialog() {
    for (size, label) in [(SMALL, "80x24"), (LARGE, "200x50")] {
        let mut state = state(calm(), size);
        let effects = press(&mut state, "2Ga");
        planned(&mut state, &effects, fixture::plan("code", true));
        press(&mut state, "cod");
        insta::assert_snapshot!(format!("confirm_{label}"), text(&state));
    }
}

/// Follows the first rank of `chat`, which writes `text`.
fn followed(state: &mut State, text: &str) {
    let effects = press(state, "2gl");
    let Some(Effect::Log { ticket, .. }) = effects.first() else { panic!("a log: {effects:?}") };
    let length = text.len() as u64;
    let chunk = LogChunk { offset: 0, next_offset: length, text: text.to_owned() };
    let next = update(state, Message::Logged { ticket: *ticket, result: Ok(chunk) });
    assert!(matches!(next.as_slice(), [Effect::Log { offset: Some(at), .. }] if *at == length));
}

#[test]
fn nothing_from_a_host_steers_the_terminal() {
    for keys in ["1", "1jjd", "2", "2Gd", "3", "4", ":", "?"] {
        let mut state = state(rich(), LARGE);
        press(&mut state, keys);
        let screen = text(&state);
        assert!(!screen.chars().any(|c| c.is_control() && c != '\n'), "{keys}");
        assert!(!screen.contains('\u{202e}') && !screen.contains("[31m"), "{keys}");
    }
}

#[test]
fn no_size_makes_it_panic_and_no_screen_is_empty() {
    let sizes: Vec<(u16, u16)> = [1, 2, 3, 4, 5, 7, 10, 13, 20, 30, 39, 40, 59, 60, 79, 80, 100]
        .into_iter()
        .chain([121, 159, 160, 200, 300])
        .flat_map(|w| [1, 2, 3, 4, 5, 6, 8, 11, 12, 19, 20, 24, 39, 40, 50, 80].map(|h| (w, h)))
        .collect();
    let mut screens: Vec<State> = Vec::new();
    for keys in ["1", "1jjd", "2", "2d", "3", "4", "5", "2+", "1/no", "2?", ":ap", "2a", "3x", "q"]
    {
        let mut state = state(rich(), LARGE);
        let effects = press(&mut state, keys);
        if effects.iter().any(|e| matches!(e, Effect::Plan { .. })) {
            planned(&mut state, &effects, fixture::plan("chat", true));
        }
        screens.push(state);
    }
    let mut following = state(rich(), LARGE);
    followed(&mut following, "one\ntwo\n");
    screens.push(following);
    let mut asking = rich();
    asking.questions.insert(3, fixture::question(3, QuestionKind::HostKey));
    screens.push(state(asking, LARGE));
    screens.push(State::new(Look::default(), LARGE, NOW));
    for size in sizes {
        for screen in &mut screens {
            screen.size = size;
            let drawn = text(screen);
            assert!(size.0 < 40 || !drawn.trim().is_empty(), "{size:?}");
            press(screen, "<pagedown><pageup>");
        }
    }
}

#[test]
fn every_screen_says_simulated() {
    for size in [SMALL, LARGE, (50, 15), (20, 6)] {
        for keys in ["1", "2", "3", "4", "5", "1d", "2d", "?", ":", "2a", "2S", "<ctrl-c>", "+"] {
            let mut state = state(calm(), size);
            press(&mut state, keys);
            assert!(text(&state).contains("SIMULATED"), "{size:?} {keys}");
        }
    }
}

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
            concurrency: None
        }]
    );
    assert!(matches!(state.mode, Mode::Browse));
    let reply = IntentReply::RolloutBegun {
        release: ReleaseNumber(13),
        plan: Box::new(fixture::plan("code", false)),
    };
    let what = "apply code".to_owned();
    update(&mut state, Message::Replied { what, result: Ok(Box::new(reply)) });
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
            concurrency: None
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
    planned(&mut state, &effects, fixture::plan("chat", false));
    let effects = press(&mut state, "chat<enter>");
    assert!(matches!(&sent(&effects)[..], [Intent::Undo { to: Some(ReleaseNumber(7)), .. }]));
}

/// `chat` in mid-rollout, as `change` makes it.
fn rolling(change: impl FnOnce(&mut crate::api::ServiceView)) -> State {
    let mut snapshot = calm();
    change(snapshot.services.get_mut(&service_name("chat")).unwrap());
    state(snapshot, LARGE)
}

#[test]
fn an_undo_in_mid_rollout_says_that_it_takes_it_back() {
    let mut state = rolling(|_| ());
    // No plan can be made of what comes after a rollout that is under way.
    assert!(press(&mut state, "3jjju").is_empty());
    let screen = text(&state);
    assert!(screen.contains("The rollout to r12 is taken back."), "{screen}");
    assert!(screen.contains("Then a rollout back to r7 begins"), "{screen}");
    let effects = press(&mut state, "chat<enter>");
    assert!(matches!(&sent(&effects)[..], [Intent::Undo { to: Some(ReleaseNumber(7)), .. }]));
}

#[test]
fn an_apply_in_mid_rollout_is_queued_or_replaces_it() {
    for (key, policy, words) in [
        ("a", ConcurrencyPolicy::Queue, "This one begins when it has ended"),
        ("A", ConcurrencyPolicy::Replace, "stable is scaled back first"),
    ] {
        let mut state = rolling(|_| ());
        assert!(press(&mut state, &format!("3{key}")).is_empty());
        let screen = text(&state);
        assert!(screen.contains(words), "{screen}");
        let effects = press(&mut state, "chat<enter>");
        let [Intent::Apply { concurrency: Some(asked), accept_outage: false, .. }] =
            &sent(&effects)[..]
        else {
            panic!("{effects:?}")
        };
        assert_eq!(*asked, policy);
        // Its plan is made later: whether it may have an OUTAGE is said now.
        let mut state = rolling(|_| ());
        press(&mut state, &format!("3{key}"));
        assert!(text(&state).contains("type `chat outage` here"), "{}", text(&state));
        assert!(sent(&press(&mut state, "chat outag<enter>")).is_empty());
        let effects = press(&mut state, "e<enter>");
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
    assert_eq!(sent(&effects), [Intent::Skip { service: service_name("chat"), reason }]);
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
    let retry =
        |accept_outage| Intent::Retry { service: service.clone(), accept_outage, reason: None };
    assert_eq!(sent(&effects), [retry(false)]);
    // What was taken back begins anew: its plan is shown, and its OUTAGE accepted as that of an apply.
    for outage in [false, true] {
        let mut state = rolling(taken_back);
        let effects = press(&mut state, "3r");
        assert!(matches!(&effects[..], [Effect::Plan { of: PlanOf::Retry, .. }]), "{effects:?}");
        planned(&mut state, &effects, fixture::plan("chat", outage));
        let screen = text(&state);
        assert!(screen.contains("chat: r9 → r13 (chat: r12 again)"), "{screen}");
        assert!(screen.contains("JOURNEY"), "{screen}");
        let typed = if outage { "chat outage<enter>" } else { "chat<enter>" };
        assert_eq!(sent(&press(&mut state, typed)), [retry(outage)]);
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
    assert!(matches!(&sent(&press(&mut state, "py"))[..], [Intent::Resume { .. }]));
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

#[test]
fn the_palette_finds_commands_for_services() {
    let mut state = state(calm(), LARGE);
    let effects = press(&mut state, ":plco<enter>");
    assert!(matches!(
        &effects[..],
        [Effect::Plan { service, of: PlanOf::Apply, .. }] if service.as_str() == "code"
    ));
    press(&mut state, "<esc>");
    assert_eq!(press(&mut state, ":q<enter>"), [Effect::Quit]);
    let mut state = self::state(calm(), LARGE);
    assert_eq!(press(&mut state, ":picture /x.svg<enter>"), [Effect::Picture("/x.svg".to_owned())]);
    press(&mut state, ":undo chat<enter>");
    assert!(matches!(&state.mode, Mode::Confirm(c) if c.service.as_str() == "chat"));
}

#[test]
fn read_only_offers_nothing_that_changes_anything() {
    let mut state = state(calm(), LARGE);
    state.look.read_only = true;
    assert!(press(&mut state, "2ap3x").is_empty());
    assert!(matches!(state.mode, Mode::Browse));
    press(&mut state, ":");
    let Mode::Palette(palette) = &state.mode else { panic!("the palette") };
    assert!(palette.entries.iter().all(|e| !e.label.starts_with("apply")));
    assert!(text(&state).contains("READ-ONLY"));
    press(&mut state, "<esc>2?");
    assert!(!text(&state).contains("drain and stop"));
}

#[test]
fn a_question_comes_up_and_only_a_whole_word_answers_it() {
    let mut snapshot = calm();
    snapshot.questions.insert(3, fixture::question(3, QuestionKind::HostKey));
    let mut state = state(snapshot, SMALL);
    assert!(matches!(state.mode, Mode::Question(_)));
    assert!(text(&state).contains("node7 asks"));
    assert!(sent(&press(&mut state, "y<enter>")).is_empty());
    let effects = press(&mut state, "es<enter>");
    assert_eq!(sent(&effects), [Intent::Answer { question: 3, answer: "yes".into() }]);
    assert!(matches!(state.mode, Mode::Browse), "it does not come up again by itself");
    assert!(text(&state).contains("?1 Q") || text(&state).contains("1 question"));
}

#[test]
fn a_secret_is_neither_drawn_nor_logged() {
    let mut snapshot = calm();
    snapshot.questions.insert(4, fixture::question(4, QuestionKind::Secret));
    let mut state = state(snapshot, SMALL);
    press(&mut state, "hunter2");
    assert!(!text(&state).contains("hunter2"));
    assert!(text(&state).contains("•••••••"));
    assert!(!format!("{state:?}").contains("hunter2"));
    let effects = press(&mut state, "<enter>");
    assert!(!format!("{effects:?}").contains("hunter2"));
    assert_eq!(sent(&effects), [Intent::Answer { question: 4, answer: "hunter2".into() }]);
}

#[test]
fn a_question_left_for_later_stays_as_a_badge() {
    let mut snapshot = calm();
    snapshot.questions.insert(3, fixture::question(3, QuestionKind::HostKey));
    let mut state = state(snapshot, LARGE);
    press(&mut state, "<esc>");
    assert!(matches!(state.mode, Mode::Browse));
    assert!(text(&state).contains("1 question: press Q"));
    press(&mut state, "Q");
    assert!(matches!(state.mode, Mode::Question(_)));
    update(&mut state, Message::Delta(Box::new(Delta::QuestionGone { sequence: 2, id: 3 })));
    assert!(matches!(state.mode, Mode::Browse), "answered at another door");
}

#[test]
fn a_question_does_not_interrupt_typing() {
    let mut state = state(calm(), SMALL);
    press(&mut state, "2Gaco");
    let question = fixture::question(3, QuestionKind::HostKey);
    update(&mut state, Message::Delta(Box::new(Delta::Question { sequence: 2, question })));
    assert!(matches!(state.mode, Mode::Confirm(_)));
    press(&mut state, "<esc>");
    assert!(matches!(state.mode, Mode::Question(_)), "it comes up afterwards");
}

#[test]
fn the_selection_stays_with_its_host() {
    let mut state = state(fixture::fleet(9), SMALL);
    press(&mut state, "1jj");
    assert_eq!(state.selected_host().unwrap().name.as_str(), "node002");
    let host = fixture::host("aaa", Vec::new());
    update(&mut state, Message::Delta(Box::new(Delta::Host { sequence: 2, host: Box::new(host) })));
    assert_eq!(state.selected_host().unwrap().name.as_str(), "node002");
    let gone = fixture::host_name("node002");
    update(&mut state, Message::Delta(Box::new(Delta::HostGone { sequence: 3, host: gone })));
    assert_eq!(state.selected_host().unwrap().name.as_str(), "node003");
}

#[test]
fn a_replica_that_is_gone_leaves_the_selection_with_its_service() {
    let mut state = state(calm(), SMALL);
    press(&mut state, "2jjjj");
    assert!(
        matches!(state.selected_row(), Some(ServiceRow::Replica(name, _)) if name.as_str() == "chat")
    );
    let mut chat = state.snapshot.as_ref().unwrap().services[&service_name("chat")].clone();
    chat.replicas.pop();
    let service = Box::new(chat);
    update(&mut state, Message::Delta(Box::new(Delta::Service { sequence: 2, service })));
    assert_eq!(state.selected_row(), Some(ServiceRow::Service(service_name("chat"))));
}

#[test]
fn filters_narrow_and_esc_restores() {
    let mut state = state(rich(), LARGE);
    press(&mut state, "1/node[12]<enter>");
    assert_eq!(state.hosts().len(), 2);
    press(&mut state, "/<esc>");
    assert_eq!(state.hosts().len(), 2, "Esc in the line keeps what was there before");
    press(&mut state, "<esc>");
    assert_eq!(state.hosts().len(), 8);
    press(&mut state, "/!node<enter>");
    assert_eq!(state.hosts().len(), 1);
    press(&mut state, "<esc>/-l zone=a<enter>");
    assert_eq!(state.hosts().len(), 8);
    press(&mut state, "4/drains<enter>");
    let screen = text(&state);
    assert!(screen.contains("r11-2 drains") && !screen.contains("begins, 5 steps"));
}

#[test]
fn scrolling_up_pauses_the_log_and_g_is_live() {
    let mut state = state(calm(), SMALL);
    let lines: String = (0..100).map(|i| format!("line {i:03}\n")).collect::<Vec<_>>().concat();
    followed(&mut state, &lines);
    assert!(text(&state).contains("line 099"));
    press(&mut state, "kkk");
    assert!(text(&state).contains("PAUSED 3 back") && !text(&state).contains("line 099"));
    let before = text(&state);
    let ticket = state.ticket;
    let at = lines.len() as u64;
    let chunk = LogChunk { offset: at, next_offset: at + 4, text: "new\n".to_owned() };
    update(&mut state, Message::Logged { ticket, result: Ok(chunk) });
    assert!(text(&state).contains("PAUSED 4 back"));
    let row = |t: &str| t.lines().find(|l| l.contains("line 096")).is_some();
    assert!(row(&before) && row(&text(&state)), "the same lines stay in sight");
    press(&mut state, "G");
    assert!(text(&state).contains("new") && text(&state).contains("live"));
    press(&mut state, "<esc>");
    let chunk = LogChunk { offset: 0, next_offset: 1, text: "x".to_owned() };
    let effects = update(&mut state, Message::Logged { ticket, result: Ok(chunk) });
    assert!(effects.is_empty(), "left behind, it is not asked for any more");
}

#[test]
fn events_hold_still_while_scrolled() {
    let mut state = state(calm(), SMALL);
    for i in 0..40 {
        let event = crate::api::EventLine {
            at: NOW,
            severity: Severity::Info,
            service: None,
            host: None,
            text: format!("event {i}"),
        };
        let delta = Delta::Event { sequence: 2 + i, event };
        update(&mut state, Message::Delta(Box::new(delta)));
    }
    press(&mut state, "4kk");
    assert_eq!(state.events_back, 2);
    let event = state.snapshot.as_ref().unwrap().events[0].clone();
    update(&mut state, Message::Delta(Box::new(Delta::Event { sequence: 42, event })));
    assert_eq!(state.events_back, 3);
    press(&mut state, "G");
    assert_eq!(state.events_back, 0);
}

#[test]
fn a_gap_asks_for_the_stream_again_and_ignores_what_is_old() {
    let mut state = state(calm(), SMALL);
    let gap = Delta::QuestionGone { sequence: 9, id: 1 };
    let effects = update(&mut state, Message::Delta(Box::new(gap.clone())));
    assert_eq!(effects, [Effect::Resync]);
    assert!(update(&mut state, Message::Delta(Box::new(gap))).is_empty());
    update(&mut state, Message::Delta(Box::new(Delta::Snapshot(Box::new(calm())))));
    assert_eq!(state.controller, Controller::Live);
}

#[test]
fn a_lost_controller_is_said_and_the_last_data_stay() {
    let mut state = state(calm(), LARGE);
    let lost = Message::Lost {
        why: "connection refused".to_owned(),
        hint: None,
        retry_after: Duration::from_secs(2),
    };
    update(&mut state, lost.clone());
    update(&mut state, Message::Tick(Timestamp(NOW.0 + 12_000)));
    update(&mut state, lost);
    let screen = text(&state);
    assert!(screen.contains("CONTROLLER LOST 12s") && screen.contains("node1"), "{screen}");
}

#[test]
fn an_error_is_shown_with_what_to_do_about_it() {
    let mut state = state(calm(), SMALL);
    let error = ApiError {
        kind: ErrorKind::Conflict,
        message: "a rollout of chat is under way".to_owned(),
        hint: Some("wait, or take it back with x".to_owned()),
    };
    let what = "apply chat".to_owned();
    update(&mut state, Message::Replied { what, result: Err(error) });
    let screen = text(&state);
    assert!(screen.contains("was refused") && screen.contains("take it back with x"));
    press(&mut state, "<esc>");
    assert!(matches!(state.mode, Mode::Browse));
}

#[test]
fn leaving() {
    let mut state = state(calm(), SMALL);
    assert_eq!(press(&mut state, "q"), [Effect::Quit], "q leaves at the root");
    assert!(press(&mut state, "1dq").is_empty(), "and goes back elsewhere");
    assert!(press(&mut state, "<ctrl-c><enter>").is_empty(), "Ctrl-C asks, beginning on no");
    assert_eq!(press(&mut state, "<ctrl-c><ctrl-c>"), [Effect::Quit]);
    assert_eq!(press(&mut state, "<ctrl-z>"), [Effect::Suspend]);
}

#[test]
fn ticks_draw_only_what_counts() {
    let mut quiet = calm();
    let chat = quiet.services.get_mut(&service_name("chat")).unwrap();
    chat.rollout = None;
    chat.replicas.truncate(1);
    for host in quiet.hosts.values_mut() {
        host.sampled = Some(Timestamp(NOW.0 + 40_000));
    }
    let mut state = state(quiet, SMALL);
    state.dirty = false;
    update(&mut state, Message::Tick(Timestamp(NOW.0 + 1_000)));
    assert!(!state.dirty, "nothing on the screen has changed");
    assert!(state.next_tick() > Duration::from_secs(1));
    update(&mut state, Message::Tick(Timestamp(NOW.0 + 60_000)));
    assert!(state.dirty, "the clock has");
    let mut busy = self::state(calm(), SMALL);
    update(&mut busy, Message::Tick(Timestamp(NOW.0 + 1_000)));
    assert!(busy.dirty, "a gate counts down");
}

#[test]
fn ascii_mode_and_no_colour() {
    let mut state = state(rich(), LARGE);
    state.look.ascii = true;
    for keys in ["1", "2", "3", "4", "?"] {
        press(&mut state, keys);
        assert!(text(&state).is_ascii(), "{keys}");
        press(&mut state, "<esc>");
    }
    state.theme = super::theme::Theme::new(Depth::None);
    for cell in &buffer(&state).content {
        assert_eq!(cell.fg, ratatui::style::Color::Reset);
        assert_eq!(cell.bg, ratatui::style::Color::Reset);
    }
}

#[test]
fn frames_are_quick() {
    let mut state = state(fixture::fleet(512), LARGE);
    let backend = TestBackend::new(LARGE.0, LARGE.1);
    let mut terminal = Terminal::new(backend).unwrap();
    let began = std::time::Instant::now();
    let frames = 50;
    for _ in 0..frames {
        press(&mut state, "j");
        terminal.draw(|frame| view::view(&state, frame)).unwrap();
    }
    let each = began.elapsed() / frames;
    // Printed, not asserted: the machine may be busy.
    println!("a frame of 200x50 with 512 hosts, drawn and compared: {each:?}");
    let drawn = text(&state);
    assert!(drawn.contains("node050"), "{drawn}");
}

/// Writes pictures of screens into the directory named by `GPUDECK_PICTURES`, to be looked at.
#[test]
fn pictures() {
    let screens = [
        ("fleet", "1"),
        ("host", "1d"),
        ("services", "2"),
        ("service", "2d"),
        ("rollout", "3"),
        ("events", "4"),
        ("help", "2?"),
        ("palette", ":ap"),
        ("apply", "2Ga"),
    ];
    for (size, label) in [(SMALL, "80x24"), (LARGE, "200x50")] {
        for (deck, snapshot) in [("calm", calm()), ("rich", rich())] {
            for (name, keys) in screens {
                let mut state = state(snapshot.clone(), size);
                let effects = press(&mut state, keys);
                if name == "apply" {
                    planned(&mut state, &effects, fixture::plan("code", true));
                    press(&mut state, "cod");
                }
                if name == "rollout" {
                    followed(
                        &mut state,
                        "INFO:     Application startup complete.\nINFO:     POST /v1/chat/completions 200 OK\nWARNING:  slow request 812 ms\nERROR:    CUDA error: an illegal memory access\n",
                    );
                    press(&mut state, "3");
                }
                let picture = picture::svg(&buffer(&state));
                assert!(picture.ends_with("</svg>\n"));
                if let Some(folder) = std::env::var_os("GPUDECK_PICTURES") {
                    let path =
                        std::path::Path::new(&folder).join(format!("{deck}-{name}-{label}.svg"));
                    std::fs::write(path, picture).unwrap();
                }
            }
        }
    }
}

#[test]
fn maintenance_and_what_was_foreseen_are_seen() {
    use crate::api::plan::{PlanProgress, StepProgress};
    use crate::api::{Cordon, PlanMove, PlanPlace, PlanStep, PlanTime, Verb};
    let mut snapshot = rich();
    let host = snapshot.hosts.values_mut().next().unwrap();
    host.maintenance.cordons.push(Cordon {
        gpu: None,
        by: "ann".to_owned(),
        reason: Some("fan".to_owned()),
        since: NOW,
    });
    let time = |known_ms| PlanTime { known_ms, unknown: Vec::new() };
    let chat = snapshot.services.get_mut(&service_name("chat")).unwrap();
    let rollout = chat.rollout.clone().unwrap();
    let step = |title: &str, began: Option<Timestamp>, ended| StepProgress {
        title: title.to_owned(),
        predicted: time(90_000),
        predicted_lowest: Some(3),
        began,
        ended,
        lowest_ready: began.map(|_| 2),
        skipped: None,
        promoted: None,
    };
    let first_ended = Timestamp(rollout.began.0 + 125_000);
    chat.progress = Some(PlanProgress {
        release: rollout.to,
        began: rollout.began,
        steps: vec![
            step("weight 10 %", Some(rollout.began), Some(first_ended)),
            step("analyse default", Some(first_ended), None),
            step("weight 50 %", None, None),
        ],
        predicted: time(270_000),
        predicted_lowest: 3,
        lowest_ready: 2,
        ended: None,
    });
    let mut seen = state(snapshot, LARGE);
    press(&mut seen, "1");
    assert!(text(&seen).contains("cordoned"), "{}", text(&seen));
    press(&mut seen, "3+");
    let screen = text(&seen);
    assert!(screen.contains("2m05s (foreseen 1m30s), lowest 2 ready (foreseen 3)"), "{screen}");
    assert!(screen.contains("foreseen 1m30s"), "{screen}");

    let mut plan = fixture::plan("code", false);
    plan.steps = plan
        .forecast
        .stages
        .iter()
        .map(|stage| PlanStep {
            title: stage.title.clone(),
            gate: None,
            moves: vec![PlanMove {
                replica: stage.starts[0],
                verb: Verb::Start,
                ranks: vec![PlanPlace {
                    host: "node4".parse().unwrap(),
                    devices: Vec::new(),
                    devices_text: "GPU 2, GPU 3".to_owned(),
                }],
                how: "in place of r12-2".to_owned(),
                at_ms: 0,
                ready_after: 2,
            }],
            new_weight_percent: 10,
            ready_after: 2,
            idle_after: 0,
            lowest_ready: 2,
            lowest: true,
            tokens_per_s_after: Some(2_400.0),
            tokens_per_s_lowest: None,
            time: time(65_000),
        })
        .collect();
    plan.total = time(195_000);
    let effects = press(&mut seen, "+2Ga");
    planned(&mut seen, &effects, plan);
    let screen = text(&seen);
    for wanted in [
        "time 3m15s",
        "seen at most 2400 tok/s",
        "1m05s",
        "start r13-0 on node4 GPU 2, GPU 3",
        "◀ lowest",
    ] {
        assert!(screen.contains(wanted), "{wanted}: {screen}");
    }
}
