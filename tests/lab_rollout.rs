//! The whole path on real hosts: a real engine behind HAProxy under load is deployed, rolled to another revision
//! and back, and a revision that cannot start is taken back. Not one request fails.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::lab::{Lab, llama_server, write_gguf};
use common::operator::Operator;

/// The rest of a spec: one replica at a time, measured in the middle.
const JOURNEY: &str = r#"
device   = "cpu"
memory   = "256MiB"
replicas = 2

[rollout]
steps             = [{ weight = 50 }, { analyse = "default" }]
healthy_deadline  = "20s"
progress_deadline = "60s"
drain_deadline    = "20s"
stop_grace        = "5s"

[analysis.default]
# HAProxy gives a new server its first request when its present round of up to 32 requests is over.
duration          = "10s"
min_requests      = 3
max_latency_ratio = 20.0
engine.min_samples = 3
"#;

const APPLY: [&str; 6] = ["apply", "chat", "--wait", "--timeout", "3m", "--yes"];

/// llama.cpp that gives so many tokens to a request that says nothing about it.
fn llama(tokens: u32) -> String {
    format!(
        "model = \"/srv/tiny.gguf\"\nengine = \"llamacpp\"\nprogram = \"/srv/llama-server\"\n\
         context = 4096\nargs = [\"-n\", \"{tokens}\", \"-t\", \"1\"]\n{JOURNEY}"
    )
}

#[test]
fn a_service_is_rolled_forward_and_back_and_no_request_fails() {
    let Some(lab) = Lab::up(3, &["--haproxy", "1"]) else { return };
    let server = llama_server();
    for host in ["h1", "h2", "h3"] {
        lab.lab(&["put", host, server.to_str().unwrap(), "/srv/llama-server"]);
        write_gguf(&lab.disk(host, "/srv/tiny.gguf"), 1, 100);
        write_gguf(&lab.disk(host, "/srv/cut.gguf"), 1, 50);
    }
    let operator = Operator::new(lab);
    operator.write_spec(&llama(600));
    operator.expect(&["plan", "chat"], 2);
    operator.expect(&APPLY, 0);
    operator.expect(&["plan", "chat"], 0);
    let traffic = operator.load(4.0);

    // A good revision, and back again.
    operator.write_spec(&llama(700));
    let mut canary_was_measured = false;
    operator.expect_while(&APPLY, 0, |chat| {
        assert!(chat.ready >= chat.floor && chat.floor == 1, "{chat:#?}");
        canary_was_measured |= chat.rollout.as_ref().is_some_and(|r| r.measured_new.requests > 0);
    });
    assert!(canary_was_measured, "nobody saw the analysis");
    traffic.expect_none_failed("after the good revision", 50);
    operator.expect_while(&["rollout", "undo", "chat", "--wait", "--timeout", "3m"], 0, |chat| {
        assert!(chat.ready >= chat.floor, "{chat:#?}");
    });
    traffic.expect_none_failed("after the undo", 60);
    operator.expect_history(&[("r1", "completed"), ("r2", "completed"), ("r3", "completed")]);
    let diff = operator.run(&["diff", "r1", "r2"]).expect_success().stdout;
    assert!(
        diff.contains("-args = [\"-n\", \"600\"") && diff.contains("+args = [\"-n\", \"700\""),
        "{diff}"
    );
    operator.expect(&["plan", "chat"], 0);

    // A model that was copied half: the adapter reads the file and refuses before anything is touched.
    operator.write_spec(&llama(600).replace("tiny.gguf", "cut.gguf"));
    let refused = operator.expect(&APPLY, 1);
    assert!(refused.stderr.contains("/srv/cut.gguf"), "{refused:#?}");
    assert!(refused.stderr.contains("→"), "no next step: {refused:#?}");

    // Behind a command line of the user's own nobody can know: it is tried, and taken back.
    operator.write_spec(&format!(
        "model = \"/srv/cut.gguf\"\n{JOURNEY}\n[engine.command]\nrun = [\"/srv/llama-server\", \"-m\", \
         \"{{model}}\", \"--host\", \"{{address}}\", \"--port\", \"{{port}}\", \"-t\", \"1\"]\n"
    ));
    operator.expect_while(&APPLY, 3, |chat| {
        assert!(chat.ready >= chat.floor && chat.floor == 1, "{chat:#?}");
    });
    let events = operator.run(&["events"]).expect_success().stdout;
    assert!(events.contains("r4-0 starts"), "the bad revision was never started:\n{events}");
    traffic.expect_none_failed("after the bad revision", 75);
    operator.expect_history(&[
        ("r1", "completed"),
        ("r2", "completed"),
        ("r3", "completed"),
        ("r4", "rolled_back"),
    ]);
    let chat = operator.wait_until_chat("both replicas", |chat| chat.ready == 2);
    assert_eq!(chat.stable.map(|release| release.0), Some(3));
    assert!(chat.replicas.iter().all(|r| r.id.release.0 == 3), "{chat:#?}");
}
