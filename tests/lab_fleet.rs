//! 64 hosts behind two bastions, and what can befall them: each fault has its name and its hint, the
//! others do not feel it, and when it is over everything is back.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::lab::Lab;
use common::operator::Operator;
use common::{Gpudeck, has_program, wait_for};
use gpudeck::api::{HostLinkState, HostView, Snapshot, age};
use gpudeck::base::Timestamp;

const HOSTS: u32 = 64;
/// What runs ranks.
const SERVING: [u32; 2] = [12, 19];
/// Its agent believes that it is later; simulated with libfaketime in that one process, because a
/// namespace has no wall clock of its own.
const WRONG_CLOCK: u32 = 20;
const CLOCK_OFF_S: i64 = 90;
/// Nobody looks, so hosts are sampled every five seconds; a sample that is older than two rounds and a bit
/// was held up by something.
const OLDEST: Duration = Duration::from_secs(13);
const PATIENCE: Duration = Duration::from_secs(75);

const SPEC: &str = r#"
model    = "simulated"
device   = "cpu"
memory   = "64MiB"
replicas = 2

[engine.command]
run = [
  "{gpudeck}", "sim-engine", "--address", "{address}", "--port", "{port}", "--model", "chat",
  "--load-time", "500ms", "--tokens", "4",
]

[placement]
require = "host.part == 'serving'"
spread  = "host"

[rollout]
healthy_deadline  = "60s"
progress_deadline = "90s"
"#;

/// Lets the SSH configuration say how each host is reached, and the deck what is special of some.
fn prepare(gpudeck: &Gpudeck, lab: &Lab) {
    let ssh = gpudeck.home().join(".ssh");
    std::fs::create_dir_all(&ssh).unwrap();
    let config = format!(
        "Include {}\nHost *\n    ServerAliveInterval 2\n    ServerAliveCountMax 2\n    ConnectTimeout 6\n",
        lab.dir().join("ssh_config").display()
    );
    std::fs::write(ssh.join("config"), config).unwrap();
    let deck = gpudeck.deck().join("deck.toml");
    let mut text = std::fs::read_to_string(&deck).unwrap();
    for number in SERVING {
        let head = format!("[hosts.h{number}]\n");
        let address = lab.address(number);
        let more =
            format!("{head}engine_address = \"{address}\"\nlabels = {{ part = \"serving\" }}\n");
        text = text.replace(&head, &more);
    }
    let head = format!("[hosts.h{WRONG_CLOCK}]\n");
    let library = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";
    let mut more = head.clone();
    let _ = writeln!(
        more,
        "agent_env = {{ LD_PRELOAD = \"{library}\", FAKETIME = \"+{CLOCK_OFF_S}s\", \
         FAKETIME_DONT_FAKE_MONOTONIC = \"1\", NO_FAKE_STAT = \"1\" }}"
    );
    text = text.replace(&head, &more);
    std::fs::write(&deck, text).unwrap();
}

fn now() -> Timestamp {
    let since = std::time::UNIX_EPOCH.elapsed().unwrap();
    Timestamp(u64::try_from(since.as_millis()).unwrap())
}

fn host(snapshot: &Snapshot, number: u32) -> &HostView {
    snapshot.hosts.get(&format!("h{number}").parse().unwrap()).unwrap()
}

fn is_up(host: &HostView) -> bool {
    host.link == HostLinkState::Up && age(now(), host.sampled).is_some_and(|age| age < OLDEST)
}

/// Waits until every host is up with fresh data.
#[track_caller]
fn all_up(operator: &Operator, when: &str) -> Snapshot {
    let started = std::time::Instant::now();
    loop {
        let snapshot = operator.snapshot();
        if let Some(snapshot) = &snapshot
            && u32::try_from(snapshot.hosts.len()).unwrap() == HOSTS
            && snapshot.hosts.values().all(is_up)
        {
            println!("{when}: all up after {:.1?}", started.elapsed());
            return snapshot.clone();
        }
        if started.elapsed() > PATIENCE {
            let away: Vec<_> = snapshot
                .iter()
                .flat_map(|s| s.hosts.values())
                .filter(|h| !is_up(h))
                .map(|h| format!("{}: {:?}", h.name, h.link))
                .collect();
            panic!("{when}: not all up: {away:#?}");
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Waits until a host is down with one of these words and a hint.
#[track_caller]
fn named(operator: &Operator, number: u32, words: &[&str]) {
    let mut seen = Vec::new();
    let started = std::time::Instant::now();
    loop {
        let snapshot = operator.snapshot().expect("a controller");
        let (why, hint) = match &host(&snapshot, number).link {
            HostLinkState::Down { cause, hint, .. } => (cause.clone(), hint.clone()),
            HostLinkState::Limited { why, hint } => (why.clone(), hint.clone()),
            _ => Default::default(),
        };
        if hint.is_some() && words.iter().any(|words| why.contains(words)) {
            println!("h{number}: {why} → {}", hint.unwrap_or_default());
            return;
        }
        if !why.is_empty() && seen.last() != Some(&why) {
            seen.push(why);
        }
        assert!(started.elapsed() < PATIENCE, "h{number}: none of {words:?} among {seen:#?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Sessions that a host's sshd has let in so far.
fn logins(lab: &Lab, host: &str) -> usize {
    let log = lab.lab(&["exec", host, "--", "cat", "/var/log/sshd.log"]);
    log.lines().filter(|line| line.contains("Accepted publickey")).count()
}

#[test]
fn faults_have_names_and_stay_where_they_are() {
    if !has_program("faketime") {
        return;
    }
    let Some(lab) = Lab::up(HOSTS, &["--bastions", "2", "--haproxy", "1"]) else { return };
    let operator = Operator::with(lab, prepare);
    operator.write_spec(SPEC);
    operator.expect(&["apply", "chat", "--wait", "--timeout", "3m", "--yes"], 0);
    let snapshot = all_up(&operator, "at first");

    // One connection opens the way for all hosts behind a bastion, and one is the bastion's own link.
    for bastion in ["h1", "h2"] {
        assert_eq!(logins(&operator.lab, bastion), 2, "{bastion}");
    }
    let off = |number| host(&snapshot, number).clock.map(|clock| clock.offset_ms / 1000);
    assert_eq!(off(21), Some(0));
    let wrong = off(WRONG_CLOCK).unwrap();
    assert!((wrong - CLOCK_OFF_S).abs() <= 1, "the clock is {wrong} s off");
    let events = operator.run(&["events"]).stdout;
    let line = events.lines().find(|line| line.contains("clock") && line.contains("ahead"));
    assert!(line.is_some_and(|l| l.contains(&format!("h{WRONG_CLOCK}"))), "{events}");

    // Everything at once, each on a host of its own.
    let traffic = operator.load(5.0);
    let (refused, cut, silent, slow, lossy, tarpit, full, key, killed) =
        (10, 11, SERVING[0], 13, 14, 15, 16, 17, 18);
    let lab = |words: &[&str]| operator.lab.lab(words);
    let affected = [refused, cut, silent, tarpit, full, key, killed];
    let watching = Arc::new(AtomicBool::new(true));
    let ages = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut oldest: BTreeMap<u32, Duration> = BTreeMap::new();
            while watching.load(Ordering::Relaxed) {
                if let Some(snapshot) = operator.snapshot() {
                    for number in (1..=HOSTS).filter(|n| !affected.contains(n)) {
                        let age = age(now(), host(&snapshot, number).sampled).unwrap();
                        let held = oldest.entry(number).or_default();
                        *held = age.max(*held);
                    }
                }
                std::thread::sleep(Duration::from_millis(250));
            }
            oldest
        });
        let stop = StopWatching(Arc::clone(&watching));
        lab(&["delay", "h13", "200ms"]);
        lab(&["loss", "h14", "5"]);
        lab(&["sshd", "h10", "stop"]);
        lab(&["link", "h11", "down"]);
        lab(&["cut-port", "h12", "22"]);
        lab(&["tarpit", "h15", "on"]);
        lab(&["disk", "h16", "full"]);
        lab(&["sshd", "h16", "stop"]);
        lab(&["sshd", "h16", "start"]);
        lab(&["host-key", "h17", "new"]);
        lab(&["exec", "h18", "--", "sh", "-c", KILL_AGENT]);

        named(&operator, refused, &["it cannot connect there"]);
        named(&operator, key, &["host key"]);
        named(&operator, full, &["no space left"]);
        named(&operator, tarpit, &["no answer"]);
        named(&operator, cut, &["no answer", "it cannot connect there"]);
        named(&operator, silent, &["no answer", "it cannot connect there"]);
        // What is read without an agent goes on where it cannot be put.
        let limited = wait_for("a sample of the host with the full disk", PATIENCE, || {
            let snapshot = operator.snapshot()?;
            let host = host(&snapshot, full);
            let fresh = age(now(), host.sampled)? < OLDEST;
            (matches!(host.link, HostLinkState::Limited { .. }) && fresh).then(|| host.clone())
        });
        assert!(limited.sample.is_some_and(|sample| sample.memory.is_some()));
        // The agent that was killed is told and was started again at once.
        let events = operator.run(&["events"]).stdout;
        assert!(events.contains("the agent ended: signal KILL"), "{events}");
        let snapshot = operator.snapshot().unwrap();
        for number in [killed, slow, lossy] {
            assert!(
                is_up(host(&snapshot, number)),
                "h{number}: {:?}",
                host(&snapshot, number).link
            );
        }
        drop(stop);
        watcher.join().unwrap()
    });
    let (number, oldest) = ages.iter().max_by_key(|(_, age)| **age).unwrap();
    println!("oldest sample of a host without a fault: h{number}, {oldest:.1?}");
    assert!(*oldest < OLDEST, "h{number} was held up: its sample was {oldest:?} old");
    // SSH is away from one of the two that serve; the gateway still reaches it, so it stays.
    let chat = operator.look().unwrap();
    assert_eq!((chat.ready, chat.wanted), (2, 2), "{chat:#?}");
    traffic.expect_none_failed("with SSH away from a serving host", 20);
    drop(traffic);

    for words in [
        &["delay", "h13", "off"][..],
        &["loss", "h14", "off"],
        &["sshd", "h10", "start"],
        &["link", "h11", "up"],
        &["cut-port", "h12", "restore"],
        &["tarpit", "h15", "off"],
        &["sshd", "h15", "start"],
        &["disk", "h16", "free"],
        &["host-key", "h17", "old"],
    ] {
        lab(words);
    }
    // What only a person can mend is tried again when told, else after a minute and more.
    let names: Vec<String> = affected.iter().map(|number| format!("h{number}")).collect();
    let mut words = vec!["reconnect"];
    words.extend(names.iter().map(String::as_str));
    operator.expect(&words, 0);
    all_up(&operator, "after the faults");

    // A bastion goes down and comes back: the way is opened once more, not 31 times.
    let before = logins(&operator.lab, "h2");
    lab(&["sshd", "h2", "stop"]);
    named(&operator, 4, &["jump host"]);
    lab(&["sshd", "h2", "start"]);
    let snapshot = all_up(&operator, "after the bastion's restart");
    assert_eq!(logins(&operator.lab, "h2") - before, 2, "its own link and one jump");
    assert!(snapshot.hosts.values().all(is_up));
}

/// Ends the watch however the test goes on.
struct StopWatching(Arc<AtomicBool>);

impl Drop for StopWatching {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// Kills what runs from the agent's binary on a host that serves nothing.
const KILL_AGENT: &str = "for p in /proc/[0-9]*; do \
     case \"$(readlink $p/exe)\" in */bin/gpudeck-*) kill -9 ${p#/proc/} ;; esac; done";
