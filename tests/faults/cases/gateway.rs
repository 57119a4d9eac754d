//! The gateway: it restarts, freezes, is not reached.

use super::{Broken, Case, End, PLAIN, SLOW, loading};

pub fn cases() -> Vec<Case> {
    vec![
        Case {
            name: "gateway: restarted while the canary loads",
            spec: |s| s.engine = "\"--load-time\", \"5s\",".to_owned(),
            fault: |stage| {
                stage.await_new("the canary to load", loading);
                stage.haproxy_restarts();
            },
            broken: Broken::Gateway,
            ..PLAIN
        },
        Case {
            name: "gateway: restarted while measured",
            fault: |stage| {
                stage.await_measuring();
                stage.haproxy_restarts();
            },
            broken: Broken::Gateway,
            ..PLAIN
        },
        Case {
            name: "gateway: frozen for 6 s",
            spec: |s| s.engine = "\"--load-time\", \"4s\",".to_owned(),
            fault: |stage| {
                stage.await_new("the canary to load", loading);
                stage.signal("h1", "STOP", "haproxy*haproxy.cfg*");
                stage.pause(6);
                stage.signal("h1", "CONT", "haproxy*haproxy.cfg*");
            },
            ..PLAIN
        },
        Case {
            name: "gateway: socket gone for 8 s",
            spec: |s| s.engine = "\"--load-time\", \"4s\",".to_owned(),
            fault: |stage| {
                stage.await_new("the canary to load", loading);
                stage.inside("h1", "mv /run/haproxy/admin.sock /run/haproxy/away");
                stage.pause(8);
                stage.inside("h1", "mv /run/haproxy/away /run/haproxy/admin.sock");
            },
            sample: true,
            ..PLAIN
        },
        Case {
            name: "gateway: socket gone for good",
            spec: |s| s.engine = "\"--load-time\", \"4s\",".to_owned(),
            fault: |stage| {
                stage.await_new("the canary to load", loading);
                stage.inside("h1", "mv /run/haproxy/admin.sock /run/haproxy/away");
            },
            mend: |stage| {
                stage.inside("h1", "mv /run/haproxy/away /run/haproxy/admin.sock");
            },
            end: End::RolledBack,
            why: "gateway",
            within: SLOW,
            ..PLAIN
        },
    ]
}
