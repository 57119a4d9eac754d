//! SIGKILL of the real controller when the n-th journal record of a rollout is on the disk, on real hosts under
//! load: for a good release, for one that is taken back, for an undo, and for a person's abort. After each the rollout has come to its end, nothing
//! was started twice or forgotten, and no request failed.
//!
//! A sample of n, or with `GPUDECK_NIGHTLY=1` each until a rollout ends with fewer records.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use common::lab::Lab;
use common::operator::{Operator, Traffic};
use gpudeck::journal::{Reader, verify};
use gpudeck::rollout::Gate;

const HOSTS: [&str; 2] = ["h2", "h3"];

/// Notes every start of an engine on the host's disk before it becomes that engine.
const NOTE: &str = "#!/bin/sh\necho \"$1\" >>/srv/starts\nshift\nexec \"$@\"\n";

/// What is done while the controller is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Journey {
    /// A good release.
    Good,
    /// A release that fails in its load.
    Bad,
    /// Back to the release before.
    Undo,
    /// A person takes a release back that waits at a gate with its canary in the traffic.
    Abort,
}

impl Journey {
    fn completes(self) -> bool {
        matches!(self, Self::Good | Self::Undo)
    }

    /// What is told to gpudeck, and counted from.
    fn begin(self, operator: &Operator) {
        let words: &[&str] = match self {
            Self::Good | Self::Bad => &["apply", "chat", "--yes"],
            Self::Undo => &["rollout", "undo", "chat", "--yes"],
            Self::Abort => &["rollout", "abort", "chat"],
        };
        operator.expect(words, 0);
    }
}

fn spec(tokens: usize, journey: Journey) -> String {
    let more = if journey == Journey::Bad { "\"--fail-load\"," } else { "" };
    let gate =
        if journey == Journey::Abort { "{ approve = true }" } else { "{ bake = \"300ms\" }" };
    format!(
        r#"
model    = "simulated"
device   = "cpu"
memory   = "64MiB"
replicas = 2

[engine.command]
run = [
  "/srv/note", "{{release}}-{{replica}}", "{{gpudeck}}", "sim-engine", "--address", "{{address}}",
  "--port", "{{port}}", "--model", "chat", "--load-time", "300ms", "--tokens", "{tokens}", {more}
]

[placement]
hosts  = ["h2", "h3"]
spread = "host"

[rollout]
steps             = [{{ weight = 50 }}, {gate}]
healthy_deadline  = "20s"
progress_deadline = "40s"
drain_deadline    = "10s"
stop_grace        = "5s"
"#
    )
}

/// How often each replica of each release was started, over all hosts.
fn starts(operator: &Operator) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for host in HOSTS {
        let text = std::fs::read_to_string(operator.lab.disk(host, "/srv/starts"));
        for line in text.unwrap_or_default().lines() {
            *counts.entry(line.to_owned()).or_default() += 1;
        }
    }
    counts
}

/// The processes of engines on the hosts, by their command lines.
fn engines(operator: &Operator) -> Vec<String> {
    let look = "for f in /proc/[0-9]*/cmdline; do a=$(tr '\\0' ' ' <$f 2>/dev/null); \
                case $a in sh\\ *) ;; *\\ sim-engine\\ *) echo \"$a\";; esac; done; true";
    let on = |host: &&str| operator.lab.lab(&["exec", host, "--", "sh", "-c", look]);
    let lines = HOSTS.iter().map(on).collect::<Vec<String>>();
    lines.iter().flat_map(|said| said.lines()).map(str::to_owned).collect()
}

/// One journey, killed at its `at`-th record; whether it had so many. `serving`: what tells the release apart
/// that must serve in the end.
fn killed_at(
    operator: &Operator,
    traffic: &Traffic<'_>,
    reader: &mut Reader,
    (journey, at): (Journey, usize),
    serving: usize,
) -> bool {
    let what = format!("{journey:?}, killed at record {at}");
    let stable = operator.look().unwrap().stable;
    if journey == Journey::Abort {
        operator.expect(&["apply", "chat", "--yes"], 0);
        operator.wait_until_chat("the gate", |chat| {
            chat.ready >= 2
                && chat
                    .rollout
                    .as_ref()
                    .is_some_and(|r| r.outcome.is_none() && matches!(r.gate, Some(Gate::Approve)))
        });
    }
    let _ = reader.more().unwrap();
    let controller = operator.controller_pid();
    journey.begin(operator);
    let mut seen = 0;
    let started = Instant::now();
    // Without a pause, so that few more records come before the signal; a rollout may have fewer.
    let mut more =
        || reader.more().unwrap().iter().filter(|r| r.value.get("service").is_some()).count();
    for look in 1_u64.. {
        seen += more();
        let over = || {
            operator.look().is_some_and(|c| {
                c.rollout.is_some_and(|r| Some(r.to) != stable && r.outcome.is_some())
            })
        };
        if seen >= at {
            break;
        }
        if look % 2_000 == 0 && over() {
            // It may have written its last ones since they were read.
            seen += more();
            break;
        }
        assert!(started.elapsed() < Duration::from_mins(1), "{what}: neither it nor the end");
        std::thread::yield_now();
    }
    Operator::kill_controller_with(controller);
    let code = if journey.completes() { 0 } else { 3 };
    operator.expect(&["rollout", "status", "chat", "--wait", "--timeout", "1m"], code);
    let chat = operator.wait_until_chat("rest", |chat| chat.ready == 2 && chat.replicas.len() == 2);
    let to = chat.rollout.as_ref().unwrap().to;
    let wanted = if journey.completes() { Some(to) } else { stable };
    assert_eq!(chat.stable, wanted, "{what}: {chat:#?}");
    let twice: Vec<_> = starts(operator).into_iter().filter(|(_, n)| *n > 1).collect();
    assert!(twice.is_empty(), "{what}: started again: {twice:?}\n{}", operator.story());
    // Nothing else runs: what serves was started with the tokens of its spec.
    let engines = engines(operator);
    let wanted = format!("--tokens {serving} ");
    assert!(
        engines.len() == 2 && engines.iter().all(|line| line.contains(&wanted)),
        "{what}: {engines:#?} instead of two with {wanted}\n{}",
        operator.story()
    );
    assert!(verify(&operator.state().join("journal")).unwrap().is_good(), "{what}");
    let counts = traffic.counts();
    assert!(counts.failed == 0 && counts.skipped == 0, "{what}: {counts:?}\n{}", operator.story());
    seen >= at
}

#[test]
fn a_controller_killed_at_any_record_of_a_rollout_in_the_lab() {
    use std::os::unix::fs::PermissionsExt;
    let Some(lab) = Lab::up(3, &["--haproxy", "1"]) else { return };
    for host in HOSTS {
        let note = lab.disk(host, "/srv/note");
        std::fs::write(&note, NOTE).unwrap();
        std::fs::set_permissions(&note, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let operator = Operator::new(lab);
    operator.write_spec(&spec(8, Journey::Good));
    operator.expect(&["apply", "chat", "--wait", "--timeout", "2m", "--yes"], 0);
    let mut reader = Reader::new(&operator.state().join("journal"));
    let traffic = operator.load(10.0);
    let nightly = std::env::var("GPUDECK_NIGHTLY").is_ok_and(|v| v == "1");
    // What serves, and what served before it.
    let (mut tokens, mut served) = (8, (8, 8));
    for (journey, sample) in [
        (Journey::Good, vec![2, 7, 12, 17]),
        (Journey::Undo, vec![4, 9]),
        (Journey::Bad, vec![2, 3]),
        (Journey::Abort, vec![1, 2]),
    ] {
        let records: Vec<usize> = if nightly { (1..=200).collect() } else { sample };
        let mut killed = 0;
        for at in records {
            if journey != Journey::Undo {
                tokens += 1;
                operator.write_spec(&spec(tokens, journey));
            }
            served = match journey {
                Journey::Good => (tokens, served.0),
                Journey::Undo => (served.1, served.0),
                Journey::Bad | Journey::Abort => served,
            };
            if !killed_at(&operator, &traffic, &mut reader, (journey, at), served.0) {
                break;
            }
            killed += 1;
        }
        println!("{journey:?}: killed at {killed} records");
        assert!(killed >= 2, "the rollout has hardly any records");
    }
    traffic.expect_none_failed("killed again and again", 50);
}
