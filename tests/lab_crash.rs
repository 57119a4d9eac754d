//! SIGKILL of the real controller when the n-th journal record of a journey is on the disk, on real hosts under load.
//! Rollouts: a good release, one that is taken back, an undo, and a person's abort. Maintenance: a drain, and an
//! upgrade of hosts. After each the journey has come to its end, nothing was started twice or forgotten, and no
//! request failed.
//!
//! A sample of n, or with `GPUDECK_NIGHTLY=1` each until a journey ends with fewer records.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use common::lab::Lab;
use common::operator::{Operator, Traffic};
use common::{glance, wait_for, wait_until};
use gpudeck::api::UpgradeHost;
use gpudeck::base::{HostName, ReleaseId};
use gpudeck::controller::deck_ledger::{DeckEvent, DeckRecord};
use gpudeck::controller::record::DeckState;
use gpudeck::journal::{Reader, RecordKind, verify};
use gpudeck::rollout::{Gate, Phase, ServiceState};

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

/// Says the command lines of the engines on a host.
const LOOK: &str = "for f in /proc/[0-9]*/cmdline; do a=$(tr '\\0' ' ' <$f 2>/dev/null); \
                    case $a in sh\\ *) ;; *\\ sim-engine\\ *) echo \"$a\";; esac; done; true";

/// The processes of engines on a host, by their command lines.
fn engines_on(operator: &Operator, host: &str) -> Vec<String> {
    let said = operator.lab.lab(&["exec", host, "--", "sh", "-c", LOOK]);
    said.lines().map(str::to_owned).collect()
}

/// Those on all hosts.
fn engines(operator: &Operator) -> Vec<String> {
    HOSTS.iter().flat_map(|host| engines_on(operator, host)).collect()
}

/// A program on a host's disk.
fn write_program(operator: &Operator, host: &str, path: &str, text: &str) {
    use std::os::unix::fs::PermissionsExt;
    let path = operator.lab.disk(host, path);
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// Each record has its turn, or only a sample.
fn is_nightly() -> bool {
    std::env::var("GPUDECK_NIGHTLY").is_ok_and(|v| v == "1")
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
    // With hardly a pause, so that few more records come before the signal; a rollout may have fewer.
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
        glance();
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
    let Some(lab) = Lab::up(3, &["--haproxy", "1"]) else { return };
    let operator = Operator::new(lab);
    for host in HOSTS {
        write_program(&operator, host, "/srv/note", NOTE);
    }
    operator.write_spec(&spec(8, Journey::Good));
    operator.expect(&["apply", "chat", "--wait", "--timeout", "2m", "--yes"], 0);
    let mut reader = Reader::new(&operator.state().join("journal"));
    let traffic = operator.load(10.0);
    // What serves, and what served before it.
    let (mut tokens, mut served) = (8, (8, 8));
    for (journey, sample) in [
        (Journey::Good, vec![2, 7, 12, 17]),
        (Journey::Undo, vec![4, 9]),
        (Journey::Bad, vec![2, 3]),
        (Journey::Abort, vec![1, 2]),
    ] {
        let records: Vec<usize> = if is_nightly() { (1..=200).collect() } else { sample };
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

/// Replicas in the journeys below; as many are ready before and after each.
const REPLICAS: u32 = 2;

/// What the journal says, and what it says of the journey that is under way.
struct Told {
    reader: Reader,
    state: DeckState,
    records: usize,
    /// The fewest replicas that were ready, and the most that there were.
    lowest: u32,
    most: usize,
    /// What was to come only later.
    too_early: Vec<String>,
}

impl Told {
    fn new(operator: &Operator) -> Self {
        let reader = Reader::new(&operator.state().join("journal"));
        let (state, too_early) = (DeckState::default(), Vec::new());
        let mut told = Self { reader, state, records: 0, lowest: 0, most: 0, too_early };
        told.begin();
        told
    }

    /// What comes now is of the next journey.
    fn begin(&mut self) {
        self.look();
        (self.records, self.lowest, self.most) = (0, self.chat().ready_total(), 0);
    }

    fn look(&mut self) {
        for record in self.reader.more().unwrap() {
            if record.kind == RecordKind::Checkpoint {
                self.state = record.read().unwrap();
                continue;
            }
            self.state.replay_line(&record).unwrap();
            self.records += 1;
            let ready = self.state.services.values().map(ServiceState::ready_total).sum();
            self.lowest = self.lowest.min(ready);
            self.most = self.most.max(self.state.services.values().map(lives).sum());
            let event = record.read::<DeckRecord>().map(|line| line.deck_event);
            if let Ok(DeckEvent::UpgradeWent { host, state: UpgradeHost::Draining { .. } }) = event
                && ready < REPLICAS
            {
                self.too_early.push(format!("{host} was begun while {ready} replicas were ready"));
            }
        }
    }

    fn chat(&self) -> &ServiceState {
        self.state.services.values().next().unwrap()
    }

    /// All replicas serve, and there are no others.
    fn is_whole(&self) -> bool {
        let chat = self.chat();
        chat.ready_total() == REPLICAS && lives(chat) == usize::try_from(REPLICAS).unwrap()
    }

    /// With hardly a pause, so that few more records come before what is done next.
    #[track_caller]
    fn wait(&mut self, operator: &Operator, what: &str, holds: impl Fn(&Self) -> bool) {
        let started = Instant::now();
        loop {
            self.look();
            if holds(self) {
                return;
            }
            if started.elapsed() > Duration::from_mins(2) {
                let (state, story) = (&self.state.ledger, operator.story());
                panic!("waited in vain for {what}: {state:#?}\n{}\n{story}", self.records);
            }
            glance();
        }
    }
}

/// Replicas that are there in some way.
fn lives(service: &ServiceState) -> usize {
    service.replicas.values().filter(|replica| replica.phase != Phase::Stopped).count()
}

/// Maintenance that somebody asks for.
#[derive(Clone, Copy, Debug)]
enum Asked {
    /// A drain of this host.
    Drain(&'static str),
    /// An upgrade of hosts, so many at a time.
    Upgrade(&'static str),
}

impl Asked {
    fn words(self) -> Vec<&'static str> {
        match self {
            Self::Drain(host) => vec!["drain", host, "--yes"],
            Self::Upgrade(parallel) => {
                let upgrade = ["hosts", "upgrade", "--run", "/srv/upgrade", "--hosts", "h2,h4"];
                [&upgrade[..], &["--max-parallel", parallel, "--no-wait", "--yes"]].concat()
            }
        }
    }

    /// `last`: the upgrade before.
    fn is_begun(self, state: &DeckState, last: Option<ReleaseId>) -> bool {
        match self {
            Self::Drain(host) => state.ledger.maintenance.drains.contains_key(&name(host)),
            Self::Upgrade(_) => state.ledger.maintenance.upgrade.as_ref().map(|u| u.id) != last,
        }
    }

    fn is_over(self, told: &Told, last: Option<ReleaseId>) -> bool {
        let ledger = &told.state.ledger;
        let (ended, failed) = match (self, &ledger.maintenance.upgrade) {
            (Self::Drain(host), _) => {
                let drain = ledger.maintenance.drains.get(&name(host));
                (drain.and_then(|d| d.ended), drain.is_some_and(|d| d.trouble.is_some()))
            }
            (Self::Upgrade(_), Some(upgrade)) => {
                (upgrade.ended, upgrade.failures().next().is_some())
            }
            (Self::Upgrade(_), None) => (None, false),
        };
        // What has failed need not serve again.
        self.is_begun(&told.state, last) && ended.is_some() && (failed || told.is_whole())
    }
}

fn name(host: &str) -> HostName {
    host.parse().unwrap()
}

/// What was asked for goes to its end, with the controller killed when so many records of it are on the disk, at
/// each of `points` in turn. How often it was killed: fewer times than `points` if there were fewer records.
fn maintained(
    operator: &Operator,
    traffic: &Traffic<'_>,
    told: &mut Told,
    (asked, points): (Asked, &[usize]),
) -> usize {
    let what = format!("{asked:?}, killed at records {points:?}");
    told.begin();
    let last = told.state.ledger.maintenance.upgrade.as_ref().map(|upgrade| upgrade.id);
    let mut controller = operator.controller_pid();
    // In the background: it writes records before the command knows of them.
    let mut command = operator.start(&asked.words());
    let mut killed = 0;
    for at in points {
        told.wait(operator, &what, |told| told.records >= *at || asked.is_over(told, last));
        if told.records < *at {
            break;
        }
        Operator::kill_controller_with(controller);
        killed += 1;
        let limit = Duration::from_mins(1);
        wait_for("the command's end", limit, || command.0.try_wait().unwrap());
        told.look();
        if asked.is_begun(&told.state, last) {
            operator.expect(&["hosts"], 0);
        } else {
            // Whoever gets no answer asks again.
            operator.expect(&asked.words(), 0);
        }
        controller = operator.controller_pid();
    }
    told.wait(operator, &what, |told| asked.is_over(told, last));
    println!("{asked:?}: killed at {:?} of {} records", &points[..killed], told.records);
    operator.expect(&["drift"], 0);
    assert!(verify(&operator.state().join("journal")).unwrap().is_good(), "{what}");
    let counts = traffic.counts();
    assert!(counts.failed == 0 && counts.skipped == 0, "{what}: {counts:?}\n{}", operator.story());
    killed
}

/// So many replicas were started since, once each.
#[track_caller]
fn expect_started(operator: &Operator, before: &BTreeMap<String, usize>, count: usize, what: &str) {
    let mut more = starts(operator);
    for (replica, count) in before {
        *more.get_mut(replica).unwrap() -= count;
    }
    more.retain(|_, count| *count > 0);
    let is_once = more.values().all(|count| *count == 1);
    assert!(is_once && more.len() == count, "{what}: started {more:?}\n{}", operator.story());
}

/// A host with all replicas on it is emptied: they move one after the other, and never fewer are ready.
#[test]
fn a_controller_killed_at_any_record_of_a_drain_in_the_lab() {
    let Some(lab) = Lab::up(3, &["--haproxy", "1"]) else { return };
    let operator = Operator::new(lab);
    for host in HOSTS {
        write_program(&operator, host, "/srv/note", NOTE);
    }
    operator.write_spec(&spec(8, Journey::Good));
    let [mut full, mut empty] = HOSTS;
    operator.expect(&["cordon", empty], 0);
    operator.expect(&["apply", "chat", "--wait", "--timeout", "2m", "--yes"], 0);
    operator.expect(&["uncordon", empty], 0);
    let mut told = Told::new(&operator);
    let traffic = operator.load(10.0);
    let points: Vec<usize> = if is_nightly() { (1..=200).collect() } else { vec![3, 9, 15] };
    let mut killed = 0;
    for at in points {
        let before = starts(&operator);
        let asked = (Asked::Drain(full), &[at][..]);
        let times = maintained(&operator, &traffic, &mut told, asked);
        let what = format!("a drain killed at record {at}");
        let story = || operator.story();
        let drain = &told.state.ledger.maintenance.drains[&name(full)];
        assert!(drain.trouble.is_none(), "{what}: {drain:?}\n{}", story());
        // One at a time, and its successor first.
        assert_eq!((told.lowest, told.most), (REPLICAS, 3), "{what}\n{}", story());
        let (here, there) = (engines_on(&operator, full), engines_on(&operator, empty));
        assert!(here.is_empty() && there.len() == 2, "{what}: {here:?} {there:?}\n{}", story());
        expect_started(&operator, &before, 2, &what);
        // It is kept free until a person says that it is not.
        assert!(
            told.state.ledger.maintenance.host_cordon(&name(full)).is_some(),
            "{what}\n{}",
            story()
        );
        operator.expect(&["uncordon", full], 0);
        told.look();
        let ledger = &told.state.ledger;
        assert!(
            ledger.maintenance.cordons.is_empty() && ledger.maintenance.drains.is_empty(),
            "{what}: {ledger:#?}"
        );
        (full, empty) = (empty, full);
        if times == 0 {
            break;
        }
        killed += times;
    }
    println!("drain: killed at {killed} records");
    assert!(killed >= 2, "the drain has hardly any records");
    traffic.expect_none_failed("drained and killed again and again", 50);
}

/// Hosts that are upgraded, in this order: on the first one a replica has no other place, the other one is empty.
const UPGRADED: [&str; 2] = ["h2", "h4"];

/// What an upgrade runs on each host: it notes how many engines there are, then and later.
fn upgrade_script() -> String {
    format!(
        "#!/bin/sh\nlook() {{ {LOOK}; }}\nbegan=$(look | wc -l)\nsleep 0.5\n\
         echo \"$GPUDECK_HOST $began $(look | wc -l)\" >>/srv/upgrades\n"
    )
}

/// Hosts are upgraded one after the other. What has no other place stops for the time being, and serves again before
/// the next host is begun; the command runs once on each host, when nothing serves there.
#[test]
fn a_controller_killed_at_any_record_of_an_upgrade_of_hosts_in_the_lab() {
    let Some(lab) = Lab::up(4, &["--haproxy", "1"]) else { return };
    let operator = Operator::new(lab);
    for host in HOSTS {
        write_program(&operator, host, "/srv/note", NOTE);
    }
    for host in UPGRADED {
        write_program(&operator, host, "/srv/upgrade", &upgrade_script());
    }
    operator.write_spec(&spec(8, Journey::Good));
    operator.expect(&["apply", "chat", "--wait", "--timeout", "2m", "--yes"], 0);
    // So that what is on h2 can be nowhere else; what is on h3 serves on.
    operator.expect(&["cordon", "h3", "-m", "ECC"], 0);
    let mut told = Told::new(&operator);
    let cordons = told.state.ledger.maintenance.cordons.clone();
    let traffic = operator.load(10.0);
    // One after the other they take half a minute. So it is killed at every eighth record of each upgrade, from
    // another one on each time; and the sample has both hosts at a time.
    let (parallel, journeys): (_, Vec<Vec<usize>>) = if is_nightly() {
        ("1", (1..=8).map(|first| (first..=96).step_by(8).collect()).collect())
    } else {
        ("2", vec![vec![8, 16, 26]])
    };
    let mut killed = 0;
    for (round, points) in (1..).zip(journeys) {
        let before = starts(&operator);
        killed += maintained(&operator, &traffic, &mut told, (Asked::Upgrade(parallel), &points));
        let what = format!("an upgrade killed at {points:?}");
        let story = || operator.story();
        let ledger = &told.state.ledger;
        let upgrade = ledger.maintenance.upgrade.as_ref().unwrap();
        let well = upgrade.hosts.iter().all(|h| h.state == UpgradeHost::Done);
        assert!(well, "{what}: {upgrade:#?}\n{}", story());
        assert!(parallel != "1" || told.too_early.is_empty(), "{what}: {:?}", told.too_early);
        assert_eq!(told.lowest, REPLICAS - 1, "{what}\n{}", story());
        // The person's own stays.
        assert_eq!(ledger.maintenance.cordons, cordons, "{what}\n{}", story());
        assert!(
            ledger.maintenance.drains.is_empty(),
            "{what}: {:?}\n{}",
            ledger.maintenance.drains,
            story()
        );
        for host in UPGRADED {
            let ran = std::fs::read_to_string(operator.lab.disk(host, "/srv/upgrades")).unwrap();
            assert_eq!(ran, format!("{host} 0 0\n").repeat(round), "{what}\n{}", story());
            let look = "ls -d /var/lib/gpudeck/*/ranks/*host-upgrade* 2>/dev/null; true";
            wait_until("nothing of the command", Duration::from_secs(20), || {
                operator.lab.lab(&["exec", host, "--", "sh", "-c", look]).is_empty()
            });
        }
        for host in HOSTS {
            assert_eq!(engines_on(&operator, host).len(), 1, "{what}: {host}\n{}", story());
        }
        expect_started(&operator, &before, 1, &what);
    }
    println!("upgrade of hosts: killed at {killed} records");
    assert!(killed >= 2, "the upgrade has hardly any records");
    traffic.expect_none_failed("upgraded and killed again and again", 50);
}
