//! `gpudeck demo --script`: the whole program on a simulated fleet tells its story to the end, and leaves
//! nothing behind, told to the end or broken off.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

#[path = "common/mod.rs"]
mod common;

use std::process::Stdio;
use std::time::Duration;

use common::{Gpudeck, Traces, run, wait_until};
use serde_json::Value;

/// A minute on a quiet machine.
const STORY: Duration = Duration::from_secs(200);

#[test]
fn the_story_is_told_to_its_end_and_nothing_is_left() {
    let gpudeck = Gpudeck::new();
    let traces = Traces::of(&gpudeck);
    let told = run(gpudeck.command(["demo", "--script"]).env("TMPDIR", gpudeck.scratch()), STORY)
        .expect_success();

    let lines: Vec<Value> = told
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
        .collect();
    let (summary, events) = lines.split_last().unwrap();
    assert_eq!(summary["story"], "as told", "{summary:#}");
    assert_eq!(summary["simulated"], true);
    let scenes: Vec<&str> = summary["scenes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| s["scene"].as_str().unwrap())
        .collect();
    assert_eq!(
        scenes,
        [
            "two services serve",
            "the bad revision is taken back",
            "the good revision serves",
            "the good revision is undone"
        ]
    );
    // It was taken back because of what it did at the gateway, and says so.
    let why = summary["scenes"][1]["detail"]["why"].as_str().unwrap();
    assert!(why.contains("error rate"), "{why}");

    let chat = &summary["chat"];
    assert!(chat["requests"].as_u64().unwrap() > 100, "{chat}");
    assert!(chat["failed_during_bad_revision"].as_u64().unwrap() > 0, "{chat}");
    for scene in ["before_bad_revision", "during_good_rollout", "during_undo"] {
        assert_eq!(chat[format!("failed_{scene}")], 0, "{chat}");
    }
    assert!(summary["code"]["requests"].as_u64().unwrap() > 50, "{summary}");
    assert_eq!(summary["code"]["failed"], 0, "{summary}");

    // The events tell the same story, in this order.
    let texts: Vec<&str> = events.iter().map(|e| e["text"].as_str().unwrap()).collect();
    assert!(events.iter().all(|e| e["at"].is_u64() && e["severity"].is_string()), "{events:#?}");
    let mut left = texts.iter();
    for expected in [
        "r1 is stable",
        ": a bad revision",
        "r3-0 is ready: it generated a token",
        "r3 is taken back: analysis quick: error rate",
        "r3 was taken back",
        ": a good revision",
        "analysis quick: Success",
        "r4 is stable",
        "goes back with r5",
        "r5 is stable",
    ] {
        assert!(
            left.any(|text| text.contains(expected)),
            "`{expected}` is not told (in its place) in {texts:#?}"
        );
    }
    traces.expect_none(&gpudeck);
}

#[test]
fn an_interrupted_story_leaves_nothing_either() {
    let gpudeck = Gpudeck::new();
    let traces = Traces::of(&gpudeck);
    let output = gpudeck.scratch().with_file_name("told");
    let mut command = gpudeck.command(["demo", "--script"]);
    command
        .env("TMPDIR", gpudeck.scratch())
        .stdin(Stdio::null())
        .stdout(std::fs::File::create(&output).unwrap())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let told = || std::fs::read_to_string(&output).unwrap();
    // In the middle: engines run, and the canary of the bad revision is about to be measured.
    wait_until("the bad revision's canary", STORY, || {
        assert!(child.try_wait().unwrap().is_none(), "it ended by itself: {}", told());
        told().contains("r3-0 is ready")
    });
    assert!(traces.processes().len() > 6, "engines and agents run: {:?}", traces.processes());

    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let mut status = None;
    wait_until("its end", Duration::from_secs(30), || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    assert_eq!(status.unwrap().code(), Some(130));
    let mut said = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut said).unwrap();
    assert!(said.contains("interrupted"), "{said}");
    traces.expect_none(&gpudeck);
}
