//! `gpudeck place` against OR-tools' CP-SAT on random worlds (`tests/placement_oracle`): never a wrong placement, no bound beyond
//! the optimum, and the same worth where both prove it. And bad worlds: one clear error.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use common::{checkout, has_program, lab_is_wanted};

const ORTOOLS: &str = "ortools==9.15.6755";

/// A Python with OR-tools, made once and kept under target/; none if `PyPI` cannot be reached and it need not be there.
fn python() -> Option<PathBuf> {
    if !has_program("python3") {
        println!("skipped: needs python3");
        return None;
    }
    let venv = Path::new(env!("CARGO_TARGET_TMPDIR")).join("ortools-9.15");
    let python = venv.join("bin/python");
    // Tests of another process may make it, too; a half-made one is made again.
    let script = format!(
        "exec 9>\"$1.lock\"; flock 9; \
         [ -x \"$1/bin/python\" ] && \"$1/bin/python\" -c 'import ortools.sat.python.cp_model' 2>/dev/null && exit 0; \
         python3 -m venv --clear \"$1\" && \"$1/bin/pip\" install --quiet --disable-pip-version-check {ORTOOLS}"
    );
    let mut command = Command::new("sh");
    command.args(["-c", &script, "sh"]).arg(&venv);
    let made = common::run(&mut command, Duration::from_secs(300));
    if made.code() == Some(0) {
        return Some(python);
    }
    let said = made.stderr;
    let cut_off = [
        "NewConnectionError",
        "ConnectionError",
        "Connection to",
        "NameResolution",
        "ConnectTimeout",
        "ReadTimeout",
        "ProxyError",
    ];
    assert!(
        !lab_is_wanted() && cut_off.iter().any(|sign| said.contains(sign)),
        "{ORTOOLS} cannot be had: {said}"
    );
    println!("skipped: needs {ORTOOLS}, and PyPI cannot be reached");
    None
}

#[test]
fn agrees_with_cp_sat_on_small_worlds() {
    let Some(python) = python() else { return };
    let mut command = Command::new(python);
    command.arg(checkout().join("tests/placement_oracle/oracle.py"));
    command.args([env!("CARGO_BIN_EXE_gpudeck"), "small", "0", "50"]);
    let done = common::run(&mut command, Duration::from_secs(600));
    let done = done.expect_success();
    let said: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
    // Small worlds are meant to be proven; if many are not, the comparison says little. How many CP-SAT proves in its
    // seconds depends on the machine.
    assert!(said["proven_by_both"].as_u64().unwrap() >= 20, "{said}");
}

#[test]
fn agrees_with_cp_sat_where_an_earlier_release_gives_way() {
    let Some(python) = python() else { return };
    let mut command = Command::new(python);
    command.arg(checkout().join("tests/placement_oracle/oracle.py"));
    command.args([env!("CARGO_BIN_EXE_gpudeck"), "outgoing", "0", "40"]);
    let done = common::run(&mut command, Duration::from_secs(600)).expect_success();
    let said: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
    assert!(said["proven_by_both"].as_u64().unwrap() >= 15, "{said}");
}

#[test]
fn what_columns_prove_is_never_beyond_the_optimum() {
    let Some(python) = python() else { return };
    let mut command = Command::new(python);
    command.arg(checkout().join("tests/placement_oracle/oracle.py"));
    command.args([env!("CARGO_BIN_EXE_gpudeck"), "columns", "0", "3"]);
    let done = common::run(&mut command, Duration::from_secs(600)).expect_success();
    let said: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!(said["worlds"], 3, "{said}");
}

#[test]
fn a_bad_world_is_one_clear_error() {
    let dir = tempfile::tempdir().unwrap();
    let host = r#"{"name": "h1", "gpus": [{"index": 0, "memory_total": "80GiB"}]}"#;
    let service = r#"{"name": "chat", "replicas": 1, "shapes": [{"tensor": 1}]}"#;
    let world =
        |host: &str, service: &str| format!("{{\"hosts\": [{host}],\n\"services\": [{service}]}}");
    for (text, expected, hint) in [
        (
            world(host, &service.replace("replicas", "replcas")),
            "line 2: services[0].replcas: unknown field `replcas`",
            "did you mean `replicas`?",
        ),
        (
            world(host, &service.replace(": 1,", ": \"two\",")),
            "line 2: services[0].replicas: invalid type: string \"two\", expected a whole number",
            "docs/placement.md",
        ),
        (
            world(host, &service.replace("}]}", "}], \"weights_on\": [\"h2\"]}")),
            "line 2: services[0].weights_on[0]: there is no host `h2`",
            "did you mean `h1`?",
        ),
        (
            world(host, &service.replace("}]}", "}], \"require\": \"gpu.memroy > 1GiB\"}")),
            "line 2: services[0].require: column 1: there is no fact `gpu.memroy`",
            "did you mean `gpu.memory`?",
        ),
        (
            world(&host.replace("80GiB", "0"), service),
            "line 1: hosts[0].gpus[0].memory_total: must be from 1 B to 1 PiB",
            "docs/placement.md",
        ),
        (
            world(host, &service.replace("\"tensor\": 1", "\"tensor\": 0")),
            "line 2: services[0].shapes[0].tensor: goes from 1 to 1024",
            "docs/placement.md",
        ),
        (
            "{\"hosts\": [".to_owned(),
            "line 1: hosts: EOF while parsing a list",
            "docs/placement.md",
        ),
        ("[]".to_owned(), "line 1: invalid length 1, expected an object", "docs/placement.md"),
        (
            world("[]", service),
            "line 1: hosts[0]: invalid length 0, expected an object",
            "docs/placement.md",
        ),
        (
            format!("\u{feff}{}", world(&host.replace("80GiB", "0"), service)),
            "line 1: hosts[0].gpus[0].memory_total: must",
            "docs/placement.md",
        ),
        ("[".repeat(100_000), "line 1: ", "docs/placement.md"),
    ] {
        let file = dir.path().join("world.json");
        std::fs::write(&file, &text).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_gpudeck"));
        command.arg("place").arg(&file);
        let done = common::run(&mut command, Duration::from_secs(60));
        let said = &done.stderr;
        assert_eq!(done.code(), Some(1), "{said}");
        assert!(
            said.contains(expected) && said.contains(hint),
            "expected {expected} → {hint}, got {said}"
        );
        assert!(said.lines().count() <= 2, "{said}");
    }
}
