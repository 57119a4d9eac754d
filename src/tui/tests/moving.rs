//! Selecting, filtering and scrolling, while what is shown changes.

use std::time::Duration;

use super::super::dialogs::{Ask, AskWhat};
use super::super::fixture::{self, NOW, calm, press, rich, service_name, state};
use super::super::key::Key;
use super::super::message::{Effect, Message};
use super::super::state::{Controller, Mode, ServiceRow};
use super::super::update::update;
use super::{LARGE, SMALL, followed, planned, text};
use crate::api::{ApiError, Delta, ErrorKind, LogChunk, Severity, Timestamp};

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

/// At the end one key up is one row up, wherever the keys down came from.
#[test]
fn nothing_scrolls_beyond_its_end() {
    for (keys, down) in
        [("1d", "G"), ("1d", "<pagedown><pagedown><pagedown><pagedown>"), ("2d", "G")]
    {
        let mut state = state(rich(), (80, 16));
        press(&mut state, keys);
        press(&mut state, down);
        let end = text(&state);
        press(&mut state, "j");
        assert_eq!(text(&state), end, "{keys}{down}");
        press(&mut state, "k");
        assert_ne!(text(&state), end, "{keys}{down}");
    }
    let mut state = state(calm(), SMALL);
    let effects = press(&mut state, "2Ga");
    planned(&mut state, &effects, fixture::plan("code", true));
    press(&mut state, &"<pagedown>".repeat(9));
    let end = text(&state);
    press(&mut state, "<up>");
    assert_ne!(text(&state), end, "the plan");
    press(&mut state, "<esc>?G");
    let end = text(&state);
    press(&mut state, "k");
    assert_ne!(text(&state), end, "the help");
}

#[test]
fn a_filter_closes_the_details_before_the_rows() {
    let mut state = state(rich(), SMALL);
    press(&mut state, "1d/node2");
    let screen = text(&state);
    assert!(screen.contains(" 1 Fleet /node2") && !screen.contains("Esc goes back"), "{screen}");
}

#[test]
fn an_unfinished_expression_keeps_what_the_log_shows() {
    let mut state = state(calm(), SMALL);
    followed(&mut state, "INFO ready\nERROR call(1) failed\n");
    press(&mut state, "/error call(");
    assert!(text(&state).contains("ERROR call(1)") && !text(&state).contains("INFO ready"));
    press(&mut state, "1<enter>");
    assert!(text(&state).contains("ERROR call(1)"), "{}", text(&state));
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
    state.size = SMALL;
    let screen = text(&state);
    assert!(screen.contains("what is seen is 12s old") && screen.contains("node1"), "{screen}");
    // The rows are pale, whatever they say.
    let buffer = super::buffer(&state);
    let pale = state.theme.dim.fg.unwrap();
    let body = buffer.content.iter().skip(80).take(20 * 80);
    assert!(body.filter(|c| c.symbol() != " ").all(|c| c.fg == pale));
}

#[test]
fn a_person_starts_a_controller_where_it_is_gone() {
    let mut state = state(calm(), LARGE);
    state.look.can_start = true;
    let press =
        |state: &mut super::super::state::State| update(state, Message::Key(Key::Char('R')));
    assert!(press(&mut state).is_empty(), "one runs");
    let lost = Message::Lost {
        why: "connection refused".to_owned(),
        hint: None,
        retry_after: Duration::from_secs(2),
    };
    update(&mut state, lost);
    assert!(text(&state).contains("R starts one"), "{}", text(&state));
    assert_eq!(press(&mut state), [Effect::StartController]);
    assert!(press(&mut state).is_empty(), "one is being started");
    assert_eq!(update(&mut state, Message::Started(Ok(()))), [Effect::Resync]);
    let error = ApiError {
        kind: ErrorKind::Unreachable,
        message: "no".to_owned(),
        hint: Some("do this".to_owned()),
    };
    assert!(update(&mut state, Message::Started(Err(error))).is_empty());
    assert!(text(&state).contains("no controller was started: no; do this"), "{}", text(&state));
    state.look.can_start = false;
    assert!(press(&mut state).is_empty(), "nothing is known of how");
    assert!(!text(&state).contains("R starts one"));
}

#[test]
fn the_letters_of_a_name_are_no_yes() {
    let yes = |typed: &str, what: AskWhat| {
        let mut ask = Ask::new(what);
        let done = typed.chars().map(Key::Char).chain([Key::Enter]).find_map(|k| ask.key(k));
        done.is_some_and(|effects| !effects.is_empty())
    };
    let resume = || AskWhat::Resume("chat".parse().unwrap());
    // As other dialogs ask for it; `h` goes to the left, where Cancel is already.
    assert!(!yes("chat", resume()));
    assert!(yes("l", resume()) && yes("y", resume()) && !yes("lh", resume()));
    assert!(yes("y", AskWhat::Quit));
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
    update(&mut state, Message::Replied { what, again: None, result: Err(error) });
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
    press(&mut state, "<ctrl-c>");
    assert!(text(&state).contains("The demo ends with its simulated fleet."));
    assert!(press(&mut state, "<enter>").is_empty(), "Ctrl-C asks, beginning on no");
    state.snapshot.as_mut().unwrap().deck.simulated = false;
    press(&mut state, "<ctrl-c>");
    assert!(text(&state).contains("what serves go on."));
    press(&mut state, "<esc>");
    assert_eq!(press(&mut state, "<ctrl-c><ctrl-c>"), [Effect::Quit]);
    assert_eq!(press(&mut state, "<ctrl-z>"), [Effect::Suspend]);
}

/// The loop draws whenever a sample has come; no tick need come in between.
#[test]
fn a_notice_goes_while_samples_arrive_and_at_the_next_key() {
    let mut state = state(calm(), SMALL);
    press(&mut state, "2c");
    assert!(text(&state).contains("copied"), "{}", text(&state));
    let sample = state.snapshot.as_ref().unwrap().hosts[&fixture::host_name("node1")].clone();
    for half in 1..=17 {
        state.now = Timestamp(NOW.0 + half * 500);
        let delta = Delta::Sample {
            sequence: 1 + half,
            host: sample.name.clone(),
            sampled: state.now,
            sample: sample.sample.clone().unwrap(),
        };
        update(&mut state, Message::Delta(Box::new(delta)));
        assert_eq!(text(&state).contains("copied"), half <= 16, "after {half} samples");
    }
    assert!(text(&state).contains("d describe"));
    press(&mut state, "cj");
    assert!(!text(&state).contains("copied"), "a key has what it wants to see");
}

#[test]
fn a_dialog_says_its_keys_before_what_was_said() {
    let mut state = state(calm(), LARGE);
    press(&mut state, "2S");
    state.say(Severity::Error, "refused");
    let screen = text(&state);
    let last = screen.lines().last().unwrap();
    assert!(last.contains("Esc cancels") && last.ends_with("✖ refused"), "{last}");
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
