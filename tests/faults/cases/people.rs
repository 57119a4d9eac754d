//! People, in the middle of a rollout.

use super::{Broken, Case, End, PLAIN, loading};
use crate::stage::new_ones;

pub fn cases() -> Vec<Case> {
    vec![
        Case {
            name: "a person aborts while the canary loads",
            spec: |s| s.engine = "\"--load-time\", \"4s\",".to_owned(),
            fault: |stage| {
                stage.await_new("the canary to load", loading);
                stage.operator.expect(&["rollout", "abort", "chat"], 0);
            },
            end: End::Aborted,
            why: "aborted by",
            ..PLAIN
        },
        Case {
            name: "a person aborts while it is measured",
            fault: |stage| {
                stage.await_measuring();
                stage.operator.expect(&["rollout", "abort", "chat"], 0);
            },
            end: End::Aborted,
            why: "aborted by",
            ..PLAIN
        },
        Case {
            name: "a person aborts in the last stretch",
            spec: |s| s.engine = "\"--load-time\", \"3s\",".to_owned(),
            fault: |stage| {
                stage.operator.wait_until_chat("the last stretch", |chat| {
                    chat.rollout.as_ref().is_some_and(|r| r.outcome.is_none() && r.step == 2)
                        && new_ones(chat).any(|r| loading(&r.phase))
                });
                stage.operator.expect(&["rollout", "abort", "chat"], 0);
            },
            end: End::Aborted,
            why: "aborted by",
            ..PLAIN
        },
        Case {
            name: "pause, five more applies, resume",
            fault: |stage| {
                stage.await_new("the canary to load", loading);
                stage.operator.expect(&["rollout", "pause", "chat"], 0);
                for _ in 0..5 {
                    let done = stage.operator.run(&["apply", "chat", "--yes"]);
                    assert_ne!(done.code(), None, "an apply that hangs");
                }
                stage.operator.expect(&["rollout", "resume", "chat"], 0);
            },
            broken: Broken::Nothing,
            ..PLAIN
        },
    ]
}
