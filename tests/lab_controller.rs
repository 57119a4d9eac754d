//! What was begun is finished, whatever becomes of the terminal and the controller.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::collections::BTreeMap;

use gpudeck::api::{Gate, Phase, ServiceView};

use common::lab::Lab;
use common::operator::Operator;

const HOSTS: [&str; 3] = ["h1", "h2", "h3"];

/// Notes every start of an engine on the host's disk before it becomes that engine.
const NOTE: &str = "#!/bin/sh\necho \"$1\" >>/srv/starts\nshift\nexec \"$@\"\n";

/// Engines with so many tokens an answer.
fn spec(tokens: usize) -> String {
    format!(
        r#"
model    = "simulated"
device   = "cpu"
memory   = "64MiB"
replicas = 2

[engine.command]
run = [
  "/srv/note", "{{release}}-{{replica}}", "{{gpudeck}}", "sim-engine", "--address", "{{address}}",
  "--port", "{{port}}", "--model", "chat", "--load-time", "1500ms", "--tokens", "{tokens}",
]

[rollout]
steps             = [{{ weight = 50 }}, {{ analyse = "quick" }}, {{ bake = "1s" }}]
healthy_deadline  = "30s"
progress_deadline = "60s"
drain_deadline    = "10s"
stop_grace        = "5s"

[analysis.quick]
duration          = "3s"
min_requests      = 3
max_latency_ratio = 20.0
engine.min_samples = 3
"#
    )
}

fn operator() -> Option<Operator> {
    use std::os::unix::fs::PermissionsExt;
    let lab = Lab::up(3, &["--haproxy", "1"])?;
    for host in HOSTS {
        let note = lab.disk(host, "/srv/note");
        std::fs::write(&note, NOTE).unwrap();
        std::fs::set_permissions(&note, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    Some(Operator::new(lab))
}

/// How often each replica of each release was started, over all hosts.
fn starts(operator: &Operator) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for host in HOSTS {
        let text = std::fs::read_to_string(operator.lab.disk(host, "/srv/starts"));
        for line in text.unwrap_or_default().lines() {
            *counts.entry(line.trim_start_matches('r').to_owned()).or_default() += 1;
        }
    }
    counts
}

/// Two replicas of each release up to `last`, each started once and no more.
fn each_once(last: usize) -> BTreeMap<String, usize> {
    (1..=last).flat_map(|r| [(format!("{r}-0"), 1), (format!("{r}-1"), 1)]).collect()
}

/// Checks that just the two replicas of this release run, and that the hosts keep nothing of others.
#[track_caller]
fn expect_only(operator: &Operator, release: usize) {
    let mut processes = 0;
    let mut units = Vec::new();
    for host in HOSTS {
        let look = "for p in /proc/[0-9]*; do tr '\\0' ' ' <$p/cmdline 2>/dev/null; echo; done | \
                    awk '$2 == \"sim-engine\"' | wc -l; ls /var/lib/gpudeck/*/ranks 2>/dev/null";
        let said = operator.lab.ssh(host, look).stdout;
        let mut lines = said.lines();
        processes += lines.next().unwrap().trim().parse::<usize>().unwrap();
        units.extend(lines.map(|line| format!("{host}: {line}")));
    }
    assert_eq!(processes, 2, "engines; {units:?}\n{}", operator.story());
    let of_release = units.iter().filter(|unit| unit.contains(&format!("-r{release}-"))).count();
    assert_eq!((units.len(), of_release), (2, 2), "{units:?}");
}

/// The rollout to this release is under way and `holds`.
fn on_the_way(
    chat: &ServiceView,
    release: usize,
    holds: impl Fn(&gpudeck::api::Rollout) -> bool,
) -> bool {
    chat.rollout.as_ref().is_some_and(|r| {
        r.outcome.is_none() && usize::try_from(r.to.0).unwrap() == release && holds(r)
    })
}

fn loads_new(chat: &ServiceView, release: usize) -> bool {
    let new = |r: &&gpudeck::api::ReplicaView| usize::try_from(r.id.release.0).unwrap() == release;
    chat.replicas.iter().filter(new).any(|r| matches!(r.phase, Phase::Starting | Phase::Loading))
}

#[test]
fn a_killed_controller_loses_nothing_and_doubles_nothing() {
    let Some(operator) = operator() else { return };
    operator.write_spec(&spec(8));
    operator.expect(&["apply", "chat", "--wait", "--timeout", "2m"], 0);
    let traffic = operator.load(10.0);

    type Point = (&'static str, fn(&ServiceView, usize) -> bool);
    let points: [Point; 3] = [
        ("the canary to be starting", |chat, release| {
            on_the_way(chat, release, |r| r.step == 0) && loads_new(chat, release)
        }),
        ("the canary to be measured", |chat, release| {
            on_the_way(chat, release, |r| matches!(r.gate, Some(Gate::Analyse { .. })))
        }),
        ("the last stretch", |chat, release| {
            on_the_way(chat, release, |r| r.step == 3) && loads_new(chat, release)
        }),
    ];
    for (index, (what, reached)) in points.iter().enumerate() {
        let release = index + 2;
        operator.write_spec(&spec(8 + release));
        operator.expect(&["apply", "chat"], 0);
        operator.wait_until_chat(what, |chat| reached(chat, release));
        operator.kill_controller();
        operator.expect(&["rollout", "status", "chat", "--wait", "--timeout", "2m"], 0);
        let chat = operator.look().unwrap();
        assert_eq!((chat.ready, chat.wanted), (2, 2), "killed at {what}: {chat:#?}");
        assert_eq!(chat.stable.map(|r| r.to_string()), Some(format!("r{release}")));
        assert_eq!(starts(&operator), each_once(release), "killed at {what}\n{}", operator.story());
        expect_only(&operator, release);
        traffic.expect_none_failed(&format!("killed at {what}"), 20);
    }
    operator.expect_history(&["r1", "r2", "r3", "r4"].map(|release| (release, "completed")));
}

#[test]
fn a_rollout_goes_on_without_its_terminal() {
    let Some(operator) = operator() else { return };
    operator.write_spec(&spec(8));
    operator.expect(&["apply", "chat", "--wait", "--timeout", "2m"], 0);
    // The command that is interrupted is the one that starts the controller.
    operator.expect(&["controller", "stop"], 0);
    let traffic = operator.load(10.0);
    operator.write_spec(&spec(9));
    let mut apply = operator.start(&["apply", "chat", "--wait", "--timeout", "2m"]);
    operator.wait_until_chat("the canary to be starting", |chat| loads_new(chat, 2));
    assert_eq!(Operator::interrupt(&mut apply.0), Some(130), "{}", operator.story());
    operator.expect(&["rollout", "status", "chat", "--wait", "--timeout", "2m"], 0);
    operator.expect_history(&[("r1", "completed"), ("r2", "completed")]);
    assert_eq!(starts(&operator), each_once(2));
    expect_only(&operator, 2);
    traffic.expect_none_failed("the command was interrupted", 20);
}
