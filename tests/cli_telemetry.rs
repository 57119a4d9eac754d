//! `gpudeck top`, `snapshot` and `doctor` as a person calls them: this machine as the deck's host, with
//! GPUs of the simulated NVML.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

#[path = "common/mod.rs"]
mod common;

use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{Finished, Gpudeck, Traces, wait_for};
use serde_json::{Value, json};

const DEADLINE: Duration = Duration::from_secs(60);

fn run(person: &Gpudeck, words: &str) -> Finished {
    person.run(words.split(' '), DEADLINE)
}

/// The simulated NVML library, which cargo builds before these tests.
fn nvml_sim() -> PathBuf {
    let beside = std::env::current_exe().unwrap();
    let library = beside.parent().unwrap().join("libnvidia_ml.so");
    assert!(library.exists(), "{} is missing: cargo build -p nvml-sim", library.display());
    library
}

fn write(dir: &Path, second: &Value) -> PathBuf {
    let scenario = json!({ "gpus": [
        {
            "uuid": "GPU-1", "name": "NVIDIA H100, 80GB", "memory_total": 80_u64 << 30,
            "utilisation_percent": 37, "persistence": true,
        },
        second,
    ] });
    let path = dir.join("scenario.json");
    std::fs::write(dir.join("new"), scenario.to_string()).unwrap();
    std::fs::rename(dir.join("new"), &path).unwrap();
    path
}

#[test]
fn a_host_and_its_gpus_for_people_and_programs() {
    let person = Gpudeck::new();
    let traces = Traces::of(&person);
    run(&person, "init --name tele").expect_success();
    let dir = person.home();
    let well = json!({ "uuid": "GPU-2", "name": "L40S", "memory_total": 48_u64 << 30, "absent": ["utilisation", "ecc"] });
    let scenario = write(&dir, &well);
    let deck = person.deck().join("deck.toml");
    let text = std::fs::read_to_string(&deck).unwrap();
    let id = text.lines().find(|l| l.starts_with("id")).unwrap();
    let state = dir.join("agent");
    std::fs::write(
        &deck,
        format!(
            "name = \"tele\"\n{id}\n\n[hosts.here]\ntransport = \"local\"\nagent_env = {{ GPUDECK_NVML = {:?}, GPUDECK_SCENARIO = {:?}, GPUDECK_STATE_DIR = {:?} }}\n",
            nvml_sim(), scenario, state
        ),
    )
    .unwrap();

    // Plain lines, only ever added, each says of what it speaks.
    let top = run(&person, "top -n 2 --interval 200ms").expect_success().stdout;
    assert_eq!(top.matches("here GPU 0: busy 37 %").count(), 2, "{top}");
    assert!(top.contains("here GPU 1: busy –") && top.contains("here: processors"), "{top}");
    assert!(!top.contains('\u{1b}'), "{top}");
    let line = run(&person, "top here -n 1 --output json").expect_success().stdout;
    let value: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(value["hosts"][0]["sample"]["gpus"]["some"][0]["uuid"], "GPU-1");
    assert_eq!(run(&person, "top nowhere -n 1").code(), Some(8));

    let json: Value =
        serde_json::from_str(&run(&person, "snapshot --output json").expect_success().stdout)
            .unwrap();
    let gpus = &json["here"]["sample"]["gpus"]["some"];
    // What the driver does not give is not there, and not zero.
    assert_eq!(gpus[0]["utilisation_percent"], 37);
    assert!(
        gpus[1].get("utilisation_percent").is_none() && gpus[1].get("ecc_uncorrected").is_none()
    );
    let csv = run(&person, "snapshot --output csv").expect_success().stdout;
    assert!(csv.starts_with("host,link,") && csv.lines().count() == 3, "{csv}");
    assert!(csv.contains("\"NVIDIA H100, 80GB\",ok,37,"), "{csv}");
    let metrics = run(&person, "-o prometheus snapshot").expect_success().stdout;
    assert!(metrics.contains("gpudeck_gpu_utilization_ratio{host=\"here\",gpu=\"0\""), "{metrics}");
    assert!(
        !metrics.contains("gpudeck_gpu_utilization_ratio{host=\"here\",gpu=\"1\""),
        "{metrics}"
    );
    assert_eq!(run(&person, "hosts --output csv").code(), Some(64));

    let program = dir.join("llama-server");
    std::fs::write(&program, "#!/bin/sh\necho 'version: 6000 (abcdef)' >&2\n").unwrap();
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .unwrap();
    let services = person.deck().join("services");
    let spec = format!("model = \"/m.gguf\"\nengine = \"llamacpp\"\nprogram = {program:?}\n");
    std::fs::write(services.join("chat.toml"), spec).unwrap();
    let spec = "model = \"/m\"\nengine = \"vllm\"\nenv = { PATH = \"/nowhere\" }\n";
    std::fs::write(services.join("code.toml"), spec).unwrap();
    let well = run(&person, "doctor here").expect_success().stdout;
    let engine = format!("{0}: {0}, version: 6000 (abcdef)", program.display());
    assert!(well.contains(&engine) && well.contains("vllm is not there"), "{well}");
    for what in ["connection", "agent", "driver", "GPU", "disk speed", "container engine"] {
        assert!(well.contains(what), "{what}: {well}");
    }
    assert!(!well.contains("BAD"), "{well}");
    assert_eq!(run(&person, "doctor nowhere").code(), Some(8));

    // A GPU falls off the bus: an event, and a doctor who says so.
    let lost = json!({ "uuid": "GPU-2", "name": "L40S", "memory_total": 48_u64 << 30, "xids": [79], "health": "lost" });
    write(&dir, &lost);
    let ill = wait_for("the doctor to see it", DEADLINE, || {
        let ill = run(&person, "doctor here");
        (ill.code() == Some(1) && ill.stdout.contains("fallen off the bus")).then_some(ill)
    });
    assert!(ill.stdout.contains("BAD") && ill.stdout.contains("→"), "{ill:#?}");
    wait_for("the event", DEADLINE, || {
        run(&person, "events").stdout.contains("Xid 79").then_some(())
    });
    let checks: Value = serde_json::from_str(&run(&person, "doctor here -o json").stdout).unwrap();
    assert!(checks.as_array().unwrap().iter().any(|c| c["verdict"] == "bad"));
    run(&person, "controller stop").expect_success();
    drop(traces);
}

/// A host that is tried again and again was not reached all the time, and for one reason.
#[test]
fn a_host_that_is_not_reached_is_told_once_and_tried_anew_by_the_doctor() {
    let person = Gpudeck::new();
    let traces = Traces::of(&person);
    run(&person, "init --name away").expect_success();
    // Nothing listens where something listened a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let deck = person.deck().join("deck.toml");
    let text = std::fs::read_to_string(&deck).unwrap();
    let id = text.lines().find(|l| l.starts_with("id")).unwrap();
    let host = format!("[hosts.closed]\naddress = \"127.0.0.1\"\nport = {port}\n");
    std::fs::write(&deck, format!("name = \"away\"\n{id}\n\n{host}")).unwrap();

    let link = || {
        let hosts = run(&person, "hosts -o json").expect_success().stdout;
        serde_json::from_str::<Value>(&hosts).unwrap()["hosts"]["closed"]["link"].take()
    };
    let first = link();
    assert_eq!((&first["state"], &first["kind"]), (&json!("down"), &json!("refused")), "{first:#}");
    let mut tried = std::collections::BTreeSet::new();
    wait_for("three more attempts", DEADLINE, || {
        let now = link();
        assert_eq!((&now["state"], &now["since"]), (&first["state"], &first["since"]), "{now:#}");
        tried.insert(now["tried"].to_string());
        (tried.len() > 3).then_some(())
    });
    let events = run(&person, "events").stdout;
    assert_eq!(events.matches("is not reached").count(), 1, "{events}");

    let before = link();
    let doctor = run(&person, "doctor closed");
    assert_eq!(doctor.code(), Some(7), "{doctor:#?}");
    assert!(doctor.stdout.contains("refuses the connection"), "{doctor:#?}");
    assert_ne!(link()["tried"], before["tried"], "the doctor tried it anew");
    run(&person, "controller stop").expect_success();
    traces.expect_none(&person);
}

/// A host that takes connections and says nothing is not waited for when the others are there.
#[test]
fn a_host_that_hangs_holds_up_nobody_who_asks_for_the_others() {
    let person = Gpudeck::new();
    run(&person, "init --name slow").expect_success();
    // The kernel takes connections for it; nobody answers them, and our patience is long.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let ssh = person.home().join(".ssh");
    std::fs::create_dir_all(&ssh).unwrap();
    std::fs::write(ssh.join("config"), "ConnectTimeout 3600\n").unwrap();
    let deck = person.deck().join("deck.toml");
    let text = std::fs::read_to_string(&deck).unwrap();
    let id = text.lines().find(|l| l.starts_with("id")).unwrap();
    let state = person.home().join("agent");
    let here = format!(
        "[hosts.here]\ntransport = \"local\"\nagent_env = {{ GPUDECK_STATE_DIR = {state:?} }}\n"
    );
    let tar = format!("[hosts.tar]\naddress = \"127.0.0.1\"\nport = {port}\n");
    std::fs::write(&deck, format!("name = \"slow\"\n{id}\n\n{here}\n{tar}")).unwrap();
    let snapshot = run(&person, "snapshot --output json").expect_success();
    let hosts: Value = serde_json::from_str(&snapshot.stdout).unwrap();
    assert!(hosts["here"]["sample"].is_object(), "{hosts:#}");
    assert_eq!(hosts["tar"]["link"]["state"], "connecting", "{hosts:#}");
    assert!(snapshot.stderr.contains("nothing was heard yet of tar"), "{snapshot:#?}");
    run(&person, "controller stop").expect_success();
}
