//! Questions of hosts, and what a person answers.

use super::super::fixture::{self, calm, press, state};
use super::super::message::Message;
use super::super::state::Mode;
use super::super::update::update;
use super::{LARGE, SMALL, sent, text};
use crate::api::{Delta, Intent, QuestionKind};

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
