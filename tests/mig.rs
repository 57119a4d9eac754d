//! A GPU that is divided into MIG instances: ranks are placed on them, started there, and kept to their memory.
//! The GPUs are simulated (a scenario that the real agent plays).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::time::Duration;

use common::{Gpudeck, Traces, wait_until};
use serde_json::{Value, json};

const DEADLINE: Duration = Duration::from_secs(90);
const GIB: u64 = 1 << 30;

struct Stage {
    /// What is left of a test that fails ends with it.
    _traces: Traces,
    person: Gpudeck,
}

impl Stage {
    /// One host with GPU 0 whole (24 GiB) and GPU 1 divided into 40 and 10 GiB.
    fn new() -> Self {
        let person = Gpudeck::new();
        let traces = Traces::of(&person);
        let home = person.home();
        std::fs::create_dir(home.join("held")).unwrap();
        let part = |name: &str, gib: u64| {
            json!({
                "uuid": format!("MIG-{name}"), "memory_total": gib * GIB,
                "name": format!("NVIDIA H100 80GB HBM3 MIG {name}"),
            })
        };
        let scenario = json!({
            "allocations": "held",
            "gpus": [
                { "uuid": "GPU-whole", "name": "NVIDIA L4", "memory_total": 24 * GIB },
                {
                    "uuid": "GPU-divided", "name": "NVIDIA H100 80GB HBM3", "memory_total": 80 * GIB,
                    "mig": true, "mig_instances": [part("3g.40gb", 40), part("1g.10gb", 10)],
                },
            ],
        });
        std::fs::write(home.join("scenario.json"), scenario.to_string()).unwrap();
        person.run(["init"], DEADLINE).expect_success();
        let deck = format!(
            "id = \"01930000-0000-7000-8000-000000000001\"\nname = \"mig\"\n\n[hosts.here]\n\
             transport = \"local\"\nfirst_engine_port = {}\n\
             agent_env = {{ GPUDECK_STATE_DIR = \"{}\", GPUDECK_SCENARIO = \"{}\", GPUDECK_SIM_ALLOCATIONS = \"{}\" }}\n",
            common::engine_port(),
            home.join("agent").display(),
            home.join("scenario.json").display(),
            home.join("held").display(),
        );
        std::fs::write(person.deck().join("deck.toml"), deck).unwrap();
        Self { _traces: traces, person }
    }

    fn write(&self, service: &str, gib: u64, more: &str) {
        let spec = format!(
            r#"
model    = "tiny"
engine   = {{ command = {{ run = ["{{gpudeck}}", "sim-engine", "--port", "{{port}}", "--load-time", "50ms",
             "--gpu-memory", "{gib}GiB"] }} }}
memory   = "{gib}GiB"
replicas = 1
{more}
"#
        );
        std::fs::write(self.person.deck().join(format!("services/{service}.toml")), spec).unwrap();
    }

    fn apply(&self, service: &str) {
        self.person
            .run(["apply", service, "--yes", "--wait", "--timeout", "60s"], DEADLINE)
            .expect_success();
    }

    /// The devices of a service's only replica.
    fn devices(&self, service: &str) -> Value {
        let status = self.person.run(["status", service, "--output", "json"], DEADLINE);
        let status: Value = serde_json::from_str(&status.stdout).unwrap();
        status["replicas"][0]["ranks"][0]["devices"].clone()
    }
}

#[test]
fn ranks_run_on_instances_and_share_nothing() {
    let stage = Stage::new();
    let person = &stage.person;

    // Only the large instance has so much.
    stage.write("large", 30, "");
    let plan = person.run(["plan", "large"], DEADLINE).stdout;
    assert!(plan.contains("GPU 1:0") && plan.contains("MIG 3g.40gb"), "{plan}");
    stage.apply("large");
    assert_eq!(stage.devices("large"), json!([{ "gpu": "MIG-3g.40gb" }]));
    // The engine sees that instance, and the memory is taken there.
    wait_until("its memory shows on the instance", DEADLINE, || {
        let shown = person.run(["snapshot", "--output", "json"], DEADLINE).stdout;
        let shown: Value = serde_json::from_str(&shown).unwrap_or_default();
        let gpu = &shown["here"]["sample"]["gpus"]["some"][1];
        gpu["mig_instances"][0]["memory"]["used"] == 30 * GIB
    });
    let top = person.run(["top", "--rounds", "1"], DEADLINE).stdout;
    assert!(top.contains("large"), "{top}");

    // What asks for no instance gets none, and the other way round.
    stage.write("small", 8, "[placement]\nrequire = \"gpu.mig\"");
    stage.apply("small");
    assert_eq!(stage.devices("small"), json!([{ "gpu": "MIG-1g.10gb" }]));
    stage.write("whole", 8, "[placement]\nrequire = \"!gpu.mig\"");
    stage.apply("whole");
    assert_eq!(stage.devices("whole"), json!([{ "gpu": "GPU-whole" }]));

    // All are taken: the refusal says by whom.
    stage.write("late", 8, "[placement]\nrequire = \"gpu.profile == '1g.10gb'\"");
    let refused = person.run(["plan", "late"], DEADLINE);
    assert!(refused.stderr.contains("small"), "{} {}", refused.stdout, refused.stderr);

    // A divided GPU is never given whole, whatever is free on it.
    stage.write("huge", 60, "");
    let refused = person.run(["plan", "huge"], DEADLINE);
    assert!(
        refused.stderr.contains("the largest is NVIDIA H100 80GB HBM3 MIG 3g.40gb"),
        "{}",
        refused.stderr
    );

    // What others hold on an instance is not free, and nothing else of that GPU is in its place.
    for service in ["large", "small", "whole"] {
        person.run(["stop", service, "--yes"], DEADLINE).expect_success();
    }
    let other = json!({ "pid": std::process::id(), "gpu": "MIG-1g.10gb", "bytes": 5 * GIB });
    std::fs::write(person.home().join("held/other.json"), other.to_string()).unwrap();
    stage.write("late", 8, "[placement]\nrequire = \"gpu.profile == '1g.10gb'\"");
    wait_until("there is no room any more", DEADLINE, || {
        person
            .run(["plan", "late"], DEADLINE)
            .stderr
            .contains("no host has a GPU with 8.0 GiB free")
    });

    // A cordon of the GPU is one of all its instances.
    person.run(["cordon", "here/1", "--reason", "test"], DEADLINE).expect_success();
    let refused = person.run(["plan", "large"], DEADLINE);
    assert!(refused.stderr.contains("cordoned"), "{} {}", refused.stdout, refused.stderr);
    person.run(["controller", "stop"], DEADLINE).expect_success();
}
