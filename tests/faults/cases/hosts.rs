//! Hosts, and the network to them.

use super::{Broken, Case, End, PLAIN, SLOW, loading};

pub fn cases() -> Vec<Case> {
    vec![
        Case {
            name: "host: power failure in load, for good",
            spec: |s| s.engine = "\"--load-time\", \"4s\",".to_owned(),
            fault: |stage| {
                stage.await_new("the canary to load", loading);
                stage.lab(&["kill", "h3"]);
            },
            mend: |stage| {
                stage.lab(&["start", "h3"]);
            },
            end: End::RolledBack,
            why: "",
            broken: Broken::Host("h3"),
            within: SLOW,
            ..PLAIN
        },
        Case {
            // Of the host without the canary: a canary that dies is taken back.
            name: "host: power failure while measured, back at once",
            fault: |stage| {
                let host = stage.choose_without_canary(&stage.await_measuring());
                stage.lab(&["kill", host]);
                stage.lab(&["start", host]);
            },
            broken: Broken::Chosen,
            within: SLOW,
            ..PLAIN
        },
        Case {
            // The canary may be on it, and has to have its time after that.
            name: "host: frozen for 8 s",
            spec: |s| s.healthy_deadline = "24s",
            fault: |stage| {
                stage.await_new("the canary to load", loading);
                stage.lab(&["freeze", "h3"]);
                stage.pause(8);
                stage.lab(&["thaw", "h3"]);
            },
            within: SLOW,
            ..PLAIN
        },
        Case {
            name: "host: sshd stopped for 8 s",
            // The token is asked for over SSH: it has to be back, and tried again, before that.
            spec: |s| s.healthy_deadline = "24s",
            fault: |stage| {
                stage.await_new("the canary to load", loading);
                stage.lab(&["sshd", "h3", "stop"]);
                stage.pause(8);
                stage.lab(&["sshd", "h3", "start"]);
            },
            within: SLOW,
            sample: true,
            ..PLAIN
        },
        Case {
            name: "host: sshd of all stopped for good while measured",
            fault: |stage| {
                stage.await_measuring();
                for host in ["h2", "h3"] {
                    stage.lab(&["sshd", host, "stop"]);
                }
            },
            mend: |stage| {
                for host in ["h2", "h3"] {
                    stage.lab(&["sshd", host, "start"]);
                }
            },
            end: End::Asks,
            why: "",
            within: SLOW,
            ..PLAIN
        },
        Case {
            // Shorter than the healthy deadline: the token is asked for over SSH.
            name: "network: port 22 of a host cut for 4 s",
            fault: |stage| {
                stage.await_new("the canary to load", loading);
                stage.lab(&["cut-port", "h2", "22"]);
                stage.pause(4);
                stage.lab(&["cut-port", "h2", "restore"]);
            },
            within: SLOW,
            ..PLAIN
        },
        Case {
            name: "network: link of a host down for 5 s",
            fault: |stage| {
                stage.await_measuring();
                stage.lab(&["link", "h3", "down"]);
                stage.pause(5);
                stage.lab(&["link", "h3", "up"]);
            },
            within: SLOW,
            ..PLAIN
        },
        Case {
            name: "network: 10 % of a host's packets lost",
            before: |stage| stage.lab(&["loss", "h3", "10"]),
            mend: |stage| stage.lab(&["loss", "h3", "off"]),
            within: SLOW,
            ..PLAIN
        },
        Case {
            name: "network: 150 ms to a host",
            before: |stage| stage.lab(&["delay", "h3", "150ms"]),
            mend: |stage| stage.lab(&["delay", "h3", "off"]),
            within: SLOW,
            ..PLAIN
        },
    ]
}
