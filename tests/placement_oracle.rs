//! `gpudeck place` against OR-tools' CP-SAT on random worlds (`tests/placement_oracle`): never a wrong placement, no bound beyond
//! the optimum, and the same worth where both prove it. And bad worlds: one clear error.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::process::Command;
use std::time::Duration;

use common::{checkout, has_program, lab_is_wanted};

const ORTOOLS: &str = "ortools==9.15.6755";

/// A Python with OR-tools, made once and kept; none if there is no network and it need not be there.
fn python() -> Option<std::path::PathBuf> {
    if !has_program("python3") {
        return None;
    }
    let home = std::env::var_os("HOME").unwrap_or_else(|| "/root".into());
    let cache = std::env::var_os("GPUDECK_CACHE").map_or_else(
        || std::path::Path::new(&home).join(".cache/gpudeck-tests"),
        std::path::PathBuf::from,
    );
    let venv = cache.join("ortools-9.15");
    let python = venv.join("bin/python");
    let works = || {
        let probe =
            Command::new(&python).args(["-c", "import ortools.sat.python.cp_model"]).output();
        probe.is_ok_and(|o| o.status.success())
    };
    if works() {
        return Some(python);
    }
    let script = format!(
        "set -e; mkdir -p \"$1\"; exec 9>\"$1.lock\"; flock 9; \
         [ -x \"$1/bin/python\" ] && \"$1/bin/python\" -c 'import ortools' && exit 0; \
         python3 -m venv --clear \"$1\"; timeout 300 \"$1/bin/pip\" install --quiet {ORTOOLS}"
    );
    let made = Command::new("sh").args(["-c", &script, "sh"]).arg(&venv).output().unwrap();
    if made.status.success() && works() {
        return Some(python);
    }
    let said = String::from_utf8_lossy(&made.stderr).into_owned();
    assert!(!lab_is_wanted(), "GPUDECK_LAB=1, and OR-tools cannot be had: {said}");
    println!("skipped: needs {ORTOOLS} from PyPI");
    None
}

#[test]
fn agrees_with_cp_sat_on_small_worlds() {
    let Some(python) = python() else { return };
    let mut command = Command::new(python);
    command.arg(checkout().join("tests/placement_oracle/oracle.py"));
    command.args([env!("CARGO_BIN_EXE_gpudeck"), "small", "0", "100"]);
    let done = common::run(&mut command, Duration::from_secs(600));
    let done = done.expect_success();
    let said: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
    // Small worlds are meant to be proven; if most are not, the comparison says little.
    assert!(said["proven_by_both"].as_u64().unwrap() >= 80, "{said}");
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
            "line 2: services[0].replicas: invalid type: string \"two\", expected u32",
            "",
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
            "",
        ),
        (
            world(host, &service.replace("\"tensor\": 1", "\"tensor\": 0")),
            "line 2: services[0].shapes[0].tensor: goes from 1 to 1024",
            "",
        ),
        ("{\"hosts\": [".to_owned(), "line 1: hosts: EOF while parsing a list", ""),
        ("[".repeat(100_000), "line 1: ", ""),
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
