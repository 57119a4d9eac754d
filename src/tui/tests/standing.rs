//! What is wrong is seen: hosts that are away, GPUs that are lost or cannot be read, rollouts that failed.

use std::sync::Arc;

use super::super::command::Command;
use super::super::fixture::{self, NOW, calm, host_name, press, service_name, state};
use super::super::message::Effect;
use super::super::state::State;
use super::{LARGE, SMALL, text};
use crate::api::{
    Condition, DownCause, Gate, GpuHealth, Gpus, HostLinkState, Outcome, ReleaseNumber,
    SkippedGate, Snapshot, Timestamp,
};

/// All hosts have been away for so many seconds; none: they were never there.
fn away(mut snapshot: Snapshot, seconds: Option<u64>) -> Snapshot {
    let before = |s: u64| Timestamp(NOW.0 - s * 1_000);
    for host in snapshot.hosts.values_mut() {
        host.sampled = seconds.map(before);
        host.link = HostLinkState::Down {
            kind: DownCause::Refused,
            cause: "connection refused".to_owned(),
            hint: None,
            since: before(seconds.unwrap_or(1)),
            tried: NOW,
            retry_at: None,
            trying: None,
        };
    }
    snapshot
}

fn row<'t>(text: &'t str, of: &str) -> &'t str {
    text.lines().find(|line| line.contains(of)).unwrap_or_else(|| panic!("{of} in\n{text}"))
}

/// The GPUs of a host, to be changed.
fn gpus<'s>(snapshot: &'s mut Snapshot, host: &str) -> &'s mut Gpus {
    let host = snapshot.hosts.get_mut(&host_name(host)).unwrap();
    &mut Arc::make_mut(host.sample.as_mut().unwrap()).gpus
}

fn with_chat(change: impl FnOnce(&mut crate::api::ServiceView)) -> Snapshot {
    let mut snapshot = calm();
    change(snapshot.services.get_mut(&service_name("chat")).unwrap());
    snapshot
}

#[test]
fn nothing_is_green_while_no_host_is_reached() {
    let mut state = state(away(calm(), Some(17)), LARGE);
    press(&mut state, "2");
    let screen = text(&state);
    assert!(row(&screen, "2 Services").contains("not seen)"), "{screen}");
    let code = row(&screen, "  code ");
    assert!(code.contains("?  code") && code.contains("not seen"), "{code}");
    assert!(screen.contains("last seen 17s ago"), "{screen}");
    let replica = row(&screen, "seen 17s ago  ");
    assert!(replica.contains('?') && !replica.contains("ready"), "{replica}");
    assert!(!screen.contains("● ▰▰▰▰ ready"), "{screen}");
}

#[test]
fn what_this_controller_has_never_seen_is_not_said_to_be_seen() {
    let mut state = state(away(calm(), None), LARGE);
    press(&mut state, "2");
    let screen = text(&state);
    assert!(screen.contains("not seen since this controller began"), "{screen}");
    assert!(!screen.contains("0ms") && !screen.contains(" seen now"), "{screen}");
}

#[test]
fn the_strip_tells_the_worst_first() {
    let mut snapshot = calm();
    let mut view = snapshot.services[&service_name("code")].clone();
    for n in 0..30 {
        view.name = service_name(&format!("s{n:02}"));
        view.condition = if n == 27 { Condition::Down } else { Condition::Serving };
        snapshot.services.insert(view.name.clone(), view.clone());
    }
    let mut state = state(snapshot, SMALL);
    press(&mut state, "1");
    let screen = text(&state);
    let strip = screen.lines().rev().nth(2).unwrap();
    assert!(strip.trim_start().starts_with("✖ s27"), "{screen}");
}

#[test]
fn a_lost_gpu_marks_its_host_its_service_and_its_replica() {
    let mut snapshot = calm();
    snapshot.services.remove(&service_name("code"));
    let chat = snapshot.services.get_mut(&service_name("chat")).unwrap();
    chat.condition = Condition::Serving;
    let replica = chat.replicas.last().unwrap().clone();
    let host = replica.ranks[0].host.clone();
    if let Gpus::Some(gpus) = gpus(&mut snapshot, host.as_str()) {
        let lost = gpus.iter_mut().find(|g| g.has(&replica.ranks[0].devices[0])).unwrap();
        lost.health = GpuHealth::Lost;
    }
    let mut state = state(snapshot, LARGE);
    press(&mut state, "1");
    let screen = text(&state);
    assert!(row(&screen, "1 Fleet").contains("1 LOST"), "{screen}");
    assert!(screen.contains(&format!("▲ {host}")), "{screen}");
    press(&mut state, "2");
    let screen = text(&state);
    assert!(screen.contains("▲  chat"), "{screen}");
    assert!(screen.contains(&format!("of {host} is LOST, {} holds it", replica.key())), "{screen}");
    // Where a GPU has one cell, who held it is still seen.
    state.size = SMALL;
    press(&mut state, "1");
    assert!(text(&state).contains("✖ LOST"), "{}", text(&state));
}

#[test]
fn a_driver_that_hangs_hides_neither_how_many_gpus_nor_who_is_there() {
    let mut snapshot = calm();
    let before = state(snapshot.clone(), LARGE);
    assert!(row(&text(&before), "1 Fleet").contains("32 GPUs"));
    *gpus(&mut snapshot, "node1") = Gpus::Hung { for_ms: 45_000 };
    let mut after: State = state(snapshot, LARGE);
    press(&mut after, "1");
    let screen = text(&after);
    // Those that replicas hold are known in any case.
    assert!(row(&screen, "1 Fleet").contains(" unknown)"), "{screen}");
    let host = row(&screen, "DRIVER HUNG");
    assert!(host.contains("chat r11-") && host.contains("there"), "{host}");
}

#[test]
fn what_has_failed_and_is_held_offers_no_promotion() {
    let failed = with_chat(|chat| {
        chat.condition = Condition::Held;
        let why = "error rate 31 % > 2 %".to_owned();
        chat.rollout.as_mut().unwrap().gate = Some(Gate::Failed { why });
    });
    let mut state = state(failed, LARGE);
    press(&mut state, "3");
    assert!(!super::super::act::is_of_use(&state, Command::Promote));
    assert!(super::super::act::is_of_use(&state, Command::Retry));
    let screen = text(&state);
    assert!(screen.contains("✖ analyse default"), "{screen}");
    press(&mut state, "P");
    assert!(text(&state).contains("retry (r) or abort (x)"), "{}", text(&state));
    press(&mut state, "2");
    let screen = text(&state);
    assert!(screen.contains("▲ r12: FAILED: error rate 31 % > 2 %"), "{screen}");
}

#[test]
fn a_gate_that_a_person_passed_is_not_shown_as_good() {
    let passed = with_chat(|chat| {
        let rollout = chat.rollout.as_mut().unwrap();
        rollout.step = 4;
        rollout.gate = None;
        let gate = |step, gate: &str, promoted| SkippedGate {
            step,
            gate: gate.to_owned(),
            by: "bob".to_owned(),
            reason: "known noise".to_owned(),
            at: NOW,
            promoted,
        };
        rollout.skipped = vec![gate(1, "analyse default", true), gate(3, "approve", true)];
    });
    let mut state = state(passed, LARGE);
    press(&mut state, "3");
    let screen = text(&state);
    let analysis = row(&screen, "analyse default");
    assert!(analysis.contains("↪") && analysis.contains("promoted by bob"), "{analysis}");
    assert!(row(&screen, " approve ").contains('✔'), "{screen}");
}

#[test]
fn a_release_is_compared_with_what_was_served_before_it() {
    let history = with_chat(|chat| {
        let mut taken_back = chat.history[1].clone();
        (taken_back.number, chat.history[0].number) = (ReleaseNumber(14), ReleaseNumber(15));
        taken_back.outcome = Some(Outcome::RolledBack { why: "slow".to_owned() });
        chat.history.insert(1, taken_back);
        chat.history[0].outcome = Some(Outcome::Completed);
        chat.stable = Some(ReleaseNumber(15));
        (chat.rollout, chat.pending_change) = (None, false);
    });
    let mut state = state(history, LARGE);
    let effects = press(&mut state, "3y");
    let diff = effects.iter().find_map(|e| match e {
        Effect::Diff { from, to, .. } => Some((*from, *to)),
        _ => None,
    });
    assert_eq!(diff, Some((ReleaseNumber(11), ReleaseNumber(15))));
}

#[test]
fn the_log_of_a_release_that_is_gone_is_not_another_ones() {
    let mut state = state(fixture::calm(), LARGE);
    press(&mut state, "3");
    let rows = state.selected_service().unwrap().history.len();
    press(&mut state, &"j".repeat(rows));
    let effects = press(&mut state, "l");
    let chosen = state.selected_release().unwrap();
    let runs = state.selected_service().unwrap().replicas.iter().any(|r| r.release() == chosen);
    assert_eq!(effects.is_empty(), !runs, "{effects:?}");
    assert!(runs || text(&state).contains("runs any more"), "{}", text(&state));
}
