//! Disks, the controller and the agents.

use super::{Case, End, PLAIN, SLOW, loading};
use crate::stage::HOSTS;

pub fn cases() -> Vec<Case> {
    vec![
        Case {
            name: "disk: a host's full before the start",
            before: |stage| stage.fill_disk(true),
            mend: |stage| stage.fill_disk(false),
            end: End::RolledBack,
            why: "space",
            ..PLAIN
        },
        Case {
            // Longer than the healthy deadline: nobody could write down that it was kept.
            name: "disk: the controller's full for 10 s",
            fault: |stage| {
                stage.await_new("the canary to load", loading);
                stage.operator.fill_state(true);
                stage.pause(10);
                stage.operator.fill_state(false);
            },
            within: SLOW,
            ..PLAIN
        },
        Case {
            name: "controller: killed while the canary loads",
            fault: |stage| {
                stage.await_new("the canary to load", loading);
                stage.operator.kill_controller();
            },
            ..PLAIN
        },
        Case {
            name: "controller: killed, and a host's sshd away for 8 s",
            fault: |stage| {
                stage.await_new("the canary to load", loading);
                stage.lab(&["sshd", "h3", "stop"]);
                stage.operator.kill_controller();
                let _ = stage.operator.run(&["status", "chat"]);
                stage.pause(8);
                stage.lab(&["sshd", "h3", "start"]);
            },
            // The canary may be on that host, and the token is asked for over SSH.
            spec: |s| s.healthy_deadline = "24s",
            within: SLOW,
            ..PLAIN
        },
        Case {
            name: "controller: frozen for 8 s",
            fault: |stage| {
                stage.await_new("the canary to load", loading);
                stage.signal_controller("STOP");
                stage.pause(8);
                stage.signal_controller("CONT");
            },
            mend: |stage| stage.signal_controller("CONT"),
            ..PLAIN
        },
        Case {
            name: "agent killed",
            fault: |stage| {
                stage.await_new("the canary to load", loading);
                for host in HOSTS {
                    stage.signal(host, "KILL", "*gpudeck*\\ agent\\ --state-dir*");
                }
            },
            ..PLAIN
        },
    ]
}
