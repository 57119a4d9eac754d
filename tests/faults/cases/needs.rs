//! What an engine needs: memory, ports, images, weights.

use gpudeck::api::Phase;

use super::{Case, End, PLAIN, SLOW};
use crate::stage::{HOSTS, Spec, Stage};

/// An engine that reads its weights, as real ones do, before it serves.
fn reads(spec: &mut Spec, model: &str) {
    spec.head = spec.head.replace("simulated", model);
    spec.before = "\"/srv/reader\", \"{model}\", ".to_owned();
}

fn image(spec: &mut Spec) {
    spec.head = "model = \"simulated\"\nreplicas = 2\ndevice = \"cpu\"\nmemory = \"64MiB\"\n\
                 runtime = { docker = { image = \"gpudeck-test/none:1\" } }\n"
        .to_owned();
    spec.before = String::new();
}

pub fn cases() -> Vec<Case> {
    vec![
        Case {
            name: "more memory than any GPU has",
            spec: |s| s.head = s.head.replace("40GiB", "90GiB"),
            end: End::Refused,
            why: "memory",
            ..PLAIN
        },
        Case {
            name: "ports taken",
            before: |stage| stage.take_ports(true),
            mend: Stage::give_ports_back,
            ..PLAIN
        },
        Case {
            name: "ports taken by who does not listen",
            before: |stage| stage.take_ports(false),
            mend: Stage::give_ports_back,
            end: End::RolledBack,
            why: "in use",
            ..PLAIN
        },
        Case {
            name: "memory free only later (in place)",
            before: |stage| {
                for host in HOSTS {
                    stage.take_memory(host, 1..2);
                }
                stage.pause(6);
            },
            mend: Stage::give_memory_back,
            within: SLOW,
            ..PLAIN
        },
        Case {
            name: "memory never free",
            before: |stage| {
                for host in HOSTS {
                    stage.take_memory(host, 1..2);
                }
                stage.pause(6);
            },
            fault: |stage| {
                // In place: the old one has gone, its memory is not free yet, and somebody else is faster.
                let waits = |p: &Phase| matches!(p, Phase::Waiting { .. });
                let (host, _) = stage.await_new("the canary to wait for memory", waits);
                stage.take_memory(&host, 0..2);
            },
            mend: Stage::give_memory_back,
            end: End::RolledBack,
            why: "",
            within: SLOW,
            ..PLAIN
        },
        Case {
            name: "image: no container engine",
            spec: image,
            end: End::Refused,
            why: "container engine",
            within: SLOW,
            ..PLAIN
        },
        Case {
            name: "image missing",
            spec: image,
            before: |stage| {
                for host in HOSTS {
                    stage.lab(&["dockerd", host, "start"]);
                }
            },
            mend: |stage| {
                for host in HOSTS {
                    stage.lab(&["dockerd", host, "stop"]);
                }
            },
            end: End::RolledBack,
            why: "none:1",
            ..PLAIN
        },
        Case {
            // Behind a command line of the user's own nobody but the engine knows that they are needed.
            name: "weights missing",
            spec: |s| reads(s, "/srv/none.gguf"),
            end: End::RolledBack,
            why: "none.gguf: No such file",
            ..PLAIN
        },
        Case {
            name: "weights gone before the second replica",
            spec: |s| reads(s, "/srv/model.gguf"),
            before: |stage| stage.place_weights(true),
            fault: |stage| {
                stage.await_measuring();
                stage.place_weights(false);
            },
            end: End::RolledBack,
            why: "/srv/model.gguf",
            ..PLAIN
        },
    ]
}
