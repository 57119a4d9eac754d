//! The engine: it ends, hangs, lies, is slow or answers wrongly.

use gpudeck::api::Phase;

use super::{Broken, Case, End, PLAIN, loading};
use crate::stage::new_ones;

pub fn cases() -> Vec<Case> {
    vec![
        Case {
            name: "engine: bad command line",
            spec: |s| s.engine = "\"--no-such-option\",".to_owned(),
            end: End::RolledBack,
            why: "exit code 2",
            sample: true,
            ..PLAIN
        },
        Case {
            name: "engine: program missing",
            spec: |s| s.before = "\"/srv/nothing\", ".to_owned(),
            end: End::Refused,
            why: "/srv/nothing",
            ..PLAIN
        },
        Case {
            name: "engine: exits at once",
            spec: |s| s.before = "\"/bin/false\", ".to_owned(),
            end: End::RolledBack,
            why: "exit code 1",
            ..PLAIN
        },
        Case {
            name: "engine: fails in load",
            spec: |s| s.engine = "\"--fail-load\",".to_owned(),
            end: End::RolledBack,
            why: "exit code 1",
            ..PLAIN
        },
        Case {
            name: "engine: killed in load",
            spec: |s| s.engine = "\"--load-time\", \"6s\",".to_owned(),
            fault: |stage| {
                let (host, port) = stage.await_new("the canary to load", loading);
                stage.pause(1);
                stage.signal_engine(&host, "KILL", port);
            },
            end: End::RolledBack,
            why: "signal 9",
            ..PLAIN
        },
        Case {
            name: "engine: dies after its first tokens",
            spec: |s| s.before = "\"/srv/short\", ".to_owned(),
            end: End::RolledBack,
            // Its end, or the errors that it makes: whichever is seen first.
            why: "ended|error rate",
            broken: Broken::Canary,
            sample: true,
            ..PLAIN
        },
        Case {
            name: "engine: hangs in load",
            spec: |s| s.engine = "\"--load-time\", \"1h\",".to_owned(),
            end: End::RolledBack,
            why: "healthy_deadline",
            ..PLAIN
        },
        Case {
            name: "engine: lies in /health",
            spec: |s| s.engine = "\"--lie\",".to_owned(),
            end: End::RolledBack,
            why: "healthy_deadline",
            sample: true,
            ..PLAIN
        },
        Case {
            name: "engine: frozen in load",
            spec: |s| s.engine = "\"--load-time\", \"4s\",".to_owned(),
            fault: |stage| {
                let (host, port) = stage.await_new("the canary to load", loading);
                stage.pause(1);
                stage.signal_engine(&host, "STOP", port);
            },
            end: End::RolledBack,
            why: "healthy_deadline",
            ..PLAIN
        },
        Case {
            name: "engine: serves 500s",
            spec: |s| s.engine = "\"--error-rate\", \"0.4\",".to_owned(),
            end: End::RolledBack,
            why: "error rate",
            broken: Broken::Canary,
            ..PLAIN
        },
        Case {
            name: "engine: slow first token",
            spec: |s| {
                s.engine = "\"--first-token\", \"1500ms\",".to_owned();
                s.analysis = "[analysis.quick.engine]\nmax_first_token = \"500ms\"\n".to_owned();
            },
            end: End::RolledBack,
            why: "first token",
            ..PLAIN
        },
        Case {
            name: "engine: slow between tokens",
            spec: |s| {
                s.engine = "\"--token-time\", \"300ms\",".to_owned();
                s.analysis = "[analysis.quick.engine]\nmax_inter_token = \"100ms\"\n".to_owned();
            },
            end: End::RolledBack,
            why: "inter",
            ..PLAIN
        },
        Case {
            name: "engine: slower than stable",
            spec: |s| {
                s.engine = "\"--first-token\", \"900ms\",".to_owned();
                s.analysis = "max_latency = \"400ms\"\nengine = { min_samples = 10 }\n".to_owned();
            },
            end: End::RolledBack,
            why: "",
            ..PLAIN
        },
        Case {
            name: "engine: wrong golden answer",
            spec: |s| {
                s.analysis =
                    "[[analysis.quick.golden]]\nprompt = \"Capital of France?\"\ncontains = \"Paris\"\n"
                        .to_owned();
            },
            end: End::RolledBack,
            why: "golden",
            ..PLAIN
        },
        Case {
            name: "engine: canary's rank killed",
            fault: |stage| {
                let chat = stage.await_measuring();
                let replica = new_ones(&chat).next().unwrap().clone();
                let rank = &replica.ranks[0];
                stage.signal_engine(rank.host.as_str(), "KILL", u64::from(rank.port));
            },
            end: End::RolledBack,
            // Its end, or the errors of the requests that it cut: whichever is seen first.
            why: "signal 9|error rate",
            broken: Broken::Canary,
            sample: true,
            ..PLAIN
        },
        Case {
            name: "engine: a stable rank killed",
            fault: |stage| {
                let chat = stage.await_measuring();
                let old = chat.replicas.iter().find(|r| {
                    Some(r.id.release) == chat.stable && r.ranks[0].host.as_str() == "h3"
                });
                let port = old.unwrap().ranks[0].port;
                stage.signal_engine("h3", "KILL", u64::from(port));
            },
            broken: Broken::Host("h3"),
            ..PLAIN
        },
        Case {
            name: "supervisor killed in load",
            spec: |s| s.engine = "\"--load-time\", \"5s\",".to_owned(),
            fault: |stage| {
                let (host, _) = stage.await_new("the canary to load", |p| *p == Phase::Loading);
                let release = stage.operator.look().unwrap().rollout.unwrap().to;
                // The engine goes on without it, and any later agent finds it.
                stage.signal(&host, "KILL", &format!("*agent\\ supervise\\ *-{release}-*"));
            },
            ..PLAIN
        },
    ]
}
