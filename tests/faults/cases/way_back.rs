//! What breaks while a canary that failed is being taken back, and commands of steps that say no.

use super::{Broken, Case, End, PLAIN, SLOW};
use crate::stage::{HOSTS, Spec, Stage};

/// Its engine fails while it loads.
fn fails(spec: &mut Spec) {
    spec.engine = "\"--fail-load\",".to_owned();
}

/// The fault comes once the way back has begun.
const BACK: Case =
    Case { spec: fails, end: End::RolledBack, why: "exit code 1", within: SLOW, ..PLAIN };

/// No GPU is free: the canary takes the place of a stable replica, which the way back has to start anew.
const BACK_IN_PLACE: Case = Case {
    before: |stage| {
        for host in HOSTS {
            stage.take_memory(host, 1..2);
        }
        // Until the agents have told it.
        stage.pause(6);
    },
    mend: Stage::give_memory_back,
    ..BACK
};

pub fn cases() -> Vec<Case> {
    vec![
        Case {
            name: "way back: the controller killed",
            fault: |stage| {
                stage.await_way_back();
                stage.operator.kill_controller();
            },
            ..BACK
        },
        Case {
            name: "way back in place: the controller killed",
            fault: |stage| {
                stage.await_way_back();
                stage.operator.kill_controller();
            },
            ..BACK_IN_PLACE
        },
        Case {
            name: "way back in place: the controller frozen for 8 s",
            fault: |stage| {
                stage.await_way_back();
                stage.signal_controller("STOP");
                stage.pause(8);
                stage.signal_controller("CONT");
            },
            mend: |stage| {
                stage.signal_controller("CONT");
                stage.give_memory_back();
            },
            ..BACK_IN_PLACE
        },
        Case {
            name: "way back in place: the gateway restarted",
            fault: |stage| {
                stage.await_way_back();
                stage.haproxy_restarts();
            },
            broken: Broken::Gateway,
            ..BACK_IN_PLACE
        },
        Case {
            name: "way back in place: sshd of all hosts stopped for 8 s",
            fault: |stage| {
                stage.await_way_back();
                for host in HOSTS {
                    stage.lab(&["sshd", host, "stop"]);
                }
                stage.pause(8);
                for host in HOSTS {
                    stage.lab(&["sshd", host, "start"]);
                }
            },
            ..BACK_IN_PLACE
        },
        Case {
            name: "way back in place: agents killed",
            fault: |stage| {
                stage.await_way_back();
                for host in HOSTS {
                    stage.signal(host, "KILL", "*gpudeck*\\ agent\\ --state-dir*");
                }
            },
            ..BACK_IN_PLACE
        },
        Case {
            name: "way back: a stable rank killed",
            fault: |stage| {
                let chat = stage.await_way_back();
                let old = chat.replicas.iter().find(|r| {
                    Some(r.id.release) == chat.stable && r.ranks[0].host.as_str() == "h3"
                });
                let port = old.unwrap().ranks[0].port;
                stage.signal_engine("h3", "KILL", u64::from(port));
            },
            broken: Broken::Host("h3"),
            ..BACK
        },
        Case {
            name: "way back: power failure of a host, back at once",
            fault: |stage| {
                stage.await_way_back();
                stage.lab(&["kill", "h3"]);
                stage.lab(&["start", "h3"]);
            },
            broken: Broken::Host("h3"),
            ..BACK
        },
        Case {
            name: "a step's command fails",
            spec: |s| s.steps = "[{ weight = 50 }, { run = [\"false\"] }]",
            end: End::RolledBack,
            why: "exit code 1",
            ..PLAIN
        },
        Case {
            name: "a step's command hangs",
            spec: |s| {
                s.steps = "[{ weight = 50 }, { run = { command = [\"sleep\", \"60\"], timeout = \"2s\" } }]";
            },
            end: End::RolledBack,
            why: "2s",
            ..PLAIN
        },
    ]
}
