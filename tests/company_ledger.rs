//! The journal and the audit trail as commands show and check them, a journal of an older gpudeck, and
//! a disk that fills up under a running controller.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

#[path = "common/mod.rs"]
mod common;
#[path = "company_ledger/deck_records.rs"]
mod deck_records;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use common::{Finished, Gpudeck, Traces, checkout, lab_is_wanted, run, wait_until};
use gpudeck::base::ReleaseNumber;
use gpudeck::controller::record::{DeckState, Record};
use gpudeck::journal::{Journal, RecordKind, verify};
use gpudeck::revision::{DeckRepo, DeckText, ReleaseCommit, SpecText};
use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(90);

fn service(greeting: &str) -> String {
    format!(
        r#"
model  = "tiny"
engine = {{ command = {{ run = ["{{gpudeck}}", "sim-engine", "--port", "{{port}}", "--load-time", "100ms"] }} }}
device = "cpu"
memory = "1MiB"
env    = {{ GREETING = "{greeting}" }}
"#
    )
}

/// A deck whose only host is this machine, with a service `chat` that was not applied yet.
fn deck() -> Gpudeck {
    let person = Gpudeck::new();
    person.run(["init"], DEADLINE).expect_success();
    let file = person.deck().join("deck.toml");
    let before = std::fs::read_to_string(&file).unwrap();
    let host = format!(
        "\n[hosts.here]\ntransport = \"local\"\nfirst_engine_port = {}\nagent_env = {{ GPUDECK_STATE_DIR = \"{}\" }}\n",
        common::engine_port(),
        person.home().join("agent").display()
    );
    std::fs::write(&file, before + &host).unwrap();
    std::fs::write(person.deck().join("services/chat.toml"), service("one")).unwrap();
    person
}

/// Where the deck's controller keeps its files.
fn state_dir(home: &Path) -> PathBuf {
    let mut found = std::fs::read_dir(home).unwrap().flatten().map(|e| e.path());
    found.find(|p| p.join("journal").is_dir()).expect("a state directory")
}

fn words(done: &Finished) -> String {
    format!("{}{}", done.stdout, done.stderr)
}

#[test]
fn the_journal_and_the_audit_trail_are_read_without_a_controller() {
    let person = deck();
    let traces = Traces::of(&person);
    let gpudeck = |words: &str| person.run(words.split(' '), DEADLINE);
    assert_eq!(
        gpudeck("journal").expect_success().stdout,
        "nothing was journaled for this deck yet\n"
    );
    assert!(gpudeck("audit verify").expect_success().stdout.contains("good: 0 lines"));

    let mut apply =
        person.command(["apply", "chat", "-m", "the first", "--wait", "--timeout", "60s"]);
    // What sshd with ExposeAuthInfo leaves in the environment of a session.
    let info = person.home().join("auth-info");
    let key = "AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl";
    std::fs::write(&info, format!("publickey ssh-ed25519 {key}\n")).unwrap();
    apply.env("SSH_USER_AUTH", &info).env("SSH_CONNECTION", "10.0.0.7 50122 10.0.0.1 22");
    run(&mut apply, DEADLINE).expect_success();
    assert_eq!(gpudeck("rollout pause chat").code(), Some(5));
    gpudeck("cordon here -m fans").expect_success();
    gpudeck("uncordon here").expect_success();
    gpudeck("stop chat").expect_success();
    wait_until("the stop", DEADLINE, || gpudeck("status chat").stdout.contains("stopped"));
    gpudeck("controller stop").expect_success();

    let told = gpudeck("journal").expect_success().stdout;
    for part in
        ["asks for r1", ": the first", "rank 0 of r1-0-a1 runs", "it is ready", "stops the service"]
    {
        assert!(told.contains(part), "`{part}` is not in:\n{told}");
    }
    let other = gpudeck("journal --service other");
    assert_eq!(other.code(), Some(8), "{other:#?}");
    assert!(other.stderr.contains("there are: chat"), "{other:#?}");
    assert_eq!(gpudeck("journal --since 2100-01-01T00:00:00Z").expect_success().stdout, "");
    assert_eq!(gpudeck("journal --since 1h").expect_success().stdout, told);
    let json = gpudeck("journal --output json").expect_success().stdout;
    for line in json.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        assert!(line["seq"].is_u64() && line["words"].is_string(), "{line}");
    }
    assert!(gpudeck("journal verify").expect_success().stdout.contains("the journal is good"));

    let audit = gpudeck("audit --output json").expect_success().stdout;
    let lines: Vec<Value> = audit.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let asked = lines.iter().find(|l| l["what"]["intent"] == "apply").unwrap();
    let uid = rustix::process::getuid().as_raw();
    assert_eq!(asked["who"]["uid"], uid, "{asked:#}");
    assert_eq!(asked["who"]["ssh_key"], "SHA256:+DiY3wvvV6TuJJhbpZisF/zLDA0zPMSvHdkr4UvCOqU");
    assert_eq!(asked["who"]["ssh_from"], "10.0.0.7 port 50122");
    assert_eq!(asked["why"], "the first");
    let answer = lines.iter().find(|l| l["of"] == asked["seq"]).unwrap();
    assert_eq!(answer["result"]["release"], 1, "{answer:#}");
    let ended = lines.iter().find(|l| l["event"] == "rollout_ended").unwrap();
    assert_eq!(ended["result"]["outcome"], "completed", "{ended:#}");
    let table = gpudeck("audit").expect_success().stdout;
    for part in
        ["TARGET", "rollout begun r1", "refused: no rollout of chat", "SHA256:+DiY", "the first"]
    {
        assert!(table.contains(part), "`{part}` is not in:\n{table}");
    }
    let row = |what: &str| table.lines().find(|line| line.contains(what)).unwrap().to_owned();
    let cordon = row(" cordon ");
    assert!(["here", "accepted", "fans"].iter().all(|word| cordon.contains(word)), "{table}");
    assert!(row("stopped").contains("nothing of it runs any more"), "{table}");
    assert!(!table.contains('{'), "{table}");
    assert!(gpudeck("audit verify").expect_success().stdout.contains("the audit trail is good"));

    // Whatever somebody does to either of them is told with the line.
    let state = state_dir(&person.home().join(".local/state/gpudeck"));
    let file = state.join("audit.jsonl");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replacen("the first", "the worst", 1)).unwrap();
    let done = gpudeck("audit verify");
    assert_eq!(done.code(), Some(1), "{done:#?}");
    let line = asked["seq"].as_u64().unwrap();
    assert!(done.stderr.contains(&format!("line {line}: it was changed")), "{done:#?}");
    std::fs::write(&file, text).unwrap();
    assert_eq!(gpudeck("audit verify").code(), Some(0));
    let file = state.join("journal/journal.000001.jsonl");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replacen("the first", "the worst", 1)).unwrap();
    let done = gpudeck("journal verify");
    assert_eq!(done.code(), Some(1), "{done:#?}");
    assert!(
        // What was foreseen of the rollout stands before the rollout itself.
        words(&done).contains("journal.000001.jsonl:3: record 2 does not match its hash"),
        "{done:#?}"
    );
    std::fs::write(&file, text).unwrap();

    // Lines that are cut off are told for ever, also when the controller goes on with the trail.
    let file = state.join("audit.jsonl");
    let text = std::fs::read_to_string(&file).unwrap();
    let kept = text.lines().count() - 3;
    let cut: String = text.lines().take(kept).flat_map(|l| [l, "\n"]).collect();
    std::fs::write(&file, cut).unwrap();
    assert_eq!(gpudeck("rollout pause chat").code(), Some(5));
    let events = gpudeck("events").expect_success().stdout;
    assert!(events.contains("the audit trail: 3 lines are missing at the end"), "{events}");
    gpudeck("controller stop").expect_success();
    let done = gpudeck("audit verify");
    assert_eq!(done.code(), Some(1), "{done:#?}");
    let told = format!("line {}: it was found when the trail was opened: 3 lines", kept + 1);
    assert!(done.stderr.contains(&told), "{done:#?}");
    traces.expect_none(&person);
}

#[test]
fn what_a_rank_logged_that_was_replaced_is_still_read() {
    let person = deck();
    let traces = Traces::of(&person);
    let gpudeck = |words: &str| person.run(words.split(' '), DEADLINE);
    gpudeck("apply chat --wait --timeout 60s").expect_success();
    let none = gpudeck("logs chat --previous");
    assert_eq!(none.code(), Some(8), "{none:#?}");
    assert!(none.stderr.contains("no host keeps the log of an earlier chat/0/0"), "{none:#?}");
    let log = gpudeck("logs chat").expect_success().stdout;

    let mut all = traces.processes().into_iter();
    let (engine, _) = all.find(|(_, line)| line.contains(" sim-engine --port")).expect("it runs");
    let engine = rustix::process::Pid::from_raw(engine).unwrap();
    rustix::process::kill_process(engine, rustix::process::Signal::KILL).unwrap();
    wait_until("the log of the first start", DEADLINE, || {
        gpudeck("logs chat --previous").code() == Some(0)
    });
    let found = gpudeck("logs chat/0/0 --previous");
    assert!(found.stderr.contains("r1-0-a1) on here was killed by signal 9"), "{found:#?}");
    assert_eq!(found.stdout.lines().next(), log.lines().next());
    assert_eq!(gpudeck("logs chat -f --previous").code(), Some(64));

    gpudeck("stop chat").expect_success();
    wait_until("the stop", DEADLINE, || gpudeck("status chat").stdout.contains("stopped"));
    gpudeck("controller stop").expect_success();
    traces.expect_none(&person);
}

/// A journal that gpudeck 0.1.0 wrote in format 1 (the demo's story, to the good revision's rollout).
#[test]
fn a_journal_of_the_first_format_is_read_and_goes_on_in_the_present_one() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = checkout().join("tests/fixtures/journal-v1/journal.000001.jsonl");
    std::fs::copy(fixture, dir.path().join("journal.000001.jsonl")).unwrap();
    let replay = |records: &[gpudeck::journal::Record]| {
        let mut state = DeckState::default();
        for record in records {
            match record.kind {
                RecordKind::Checkpoint => state = record.read().unwrap(),
                RecordKind::Appended => state.replay(&record.read::<Record>().unwrap()),
            }
        }
        state
    };
    let (mut journal, records) = Journal::open(dir.path()).unwrap();
    assert!(journal.is_of_older_version());
    assert_eq!(records.len(), 59);
    let state = replay(&records);
    let chat = &state.services[&"chat".parse().unwrap()];
    assert_eq!(chat.stable.map(|r| r.0), Some(1));
    assert_eq!(chat.rollout.as_ref().map(|r| r.to.0), Some(4));
    assert_eq!(state.last_release.0, 4);

    journal.checkpoint(&state).unwrap();
    assert!(!journal.is_of_older_version());
    drop(journal);
    let (journal, records) = Journal::open(dir.path()).unwrap();
    assert!(!journal.is_of_older_version());
    assert_eq!(replay(&records), state);
    let report = verify(dir.path()).unwrap();
    assert!(report.is_good());
    let versions: Vec<_> = report.segments.iter().map(|s| s.version).collect();
    assert_eq!(versions, [Some(1), Some(3)]);
}

/// The state directory on a file system of its own.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: PathBuf) -> Option<Self> {
        std::fs::create_dir(&at).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=1m,mode=700", "gpudeck-test"])
            .arg(&at)
            .stderr(std::process::Stdio::null())
            .status()
            .is_ok_and(|s| s.success());
        if !mounted {
            assert!(!lab_is_wanted(), "a tmpfs could not be mounted, which the lab needs");
            println!("skipped: needs root to mount a small tmpfs");
            return None;
        }
        Some(Self(at))
    }

    fn fill(&self) {
        use std::io::Write;
        let mut file = std::fs::File::create(self.0.join("filler")).unwrap();
        while file.write_all(&[7; 512]).is_ok() {}
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a controller of a failed test may still be in there.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// A release that was committed and whose rollout never got into the journal: history says so, and what comes
/// after it works.
#[test]
fn a_release_that_never_began_is_noted_and_the_next_one_works() {
    let person = deck();
    let traces = Traces::of(&person);
    let gpudeck = |words: &str| person.run(words.split(' '), DEADLINE);
    gpudeck("apply chat --wait --timeout 60s").expect_success();
    let history = || -> Value {
        let done = gpudeck("history chat --output json").expect_success();
        serde_json::from_str(&done.stdout).unwrap()
    };

    // A release whose number another Git program has just now: it is refused, and nothing of it is in the deck.
    std::fs::write(person.deck().join("services/chat.toml"), service("two")).unwrap();
    let releases = person.deck().join(".git/refs/gpudeck/releases");
    std::fs::write(releases.join("r2.lock"), "").unwrap();
    let refused = gpudeck("apply chat --accept-outage");
    assert_eq!(refused.code(), Some(5), "{refused:#?}");
    std::fs::remove_file(releases.join("r2.lock")).unwrap();
    let never = |entry: &Value| {
        let why = entry["outcome"]["failed"]["why"].as_str().unwrap_or_default();
        why.contains("it was never begun")
    };
    let seen = history();
    assert!(seen[0]["number"] == 1 && !never(&seen[0]), "{seen:#}");

    // What a crash after the commit leaves: the plan in the journal, the commit, nothing else.
    gpudeck("controller stop").expect_success();
    let deck = DeckRepo::open(&person.deck()).unwrap();
    let commit = |number| {
        deck.commit_service(&ReleaseCommit {
            service: &"chat".parse().unwrap(),
            release: ReleaseNumber(number),
            subject: "Apply chat",
            reason: None,
            author: None,
            deck: DeckText::WorkTree,
            spec: SpecText::WorkTree,
        })
        .unwrap();
    };
    {
        let home = person.home().join(".local/state/gpudeck");
        let (mut journal, records) = Journal::open(&state_dir(&home).join("journal")).unwrap();
        let mut values = records.iter().map(|r| &r.value);
        let mut planned = values.find(|v| v["deck_event"]["kind"] == "planned").unwrap().clone();
        planned["deck_event"]["progress"]["release"] = 3.into();
        journal.append(&[planned]).unwrap();
        commit(3);
    }
    // And one that somebody else committed, of whom nothing is known here.
    commit(4);
    let seen = history();
    assert!(seen[0]["number"] == 4 && seen[0]["outcome"].is_null(), "{seen:#}");
    assert!(seen[1]["number"] == 3 && never(&seen[1]), "{seen:#}");
    let text = gpudeck("history chat").stdout;
    assert!(text.contains("failed: it was never begun"), "{text}");
    assert!(!text.contains("under way for"), "{text}");

    let begun = gpudeck("apply chat --accept-outage --wait --timeout 60s").expect_success();
    assert!(words(&begun).contains("r5"), "{begun:#?}");
    assert_eq!(history()[0]["outcome"], "completed");
    assert_eq!(gpudeck("rollout retry chat").code(), Some(5), "nothing failed since");
    gpudeck("stop chat --yes").expect_success();
    wait_until("the stop", DEADLINE, || gpudeck("status chat").stdout.contains("stopped"));
    gpudeck("controller stop").expect_success();
    traces.expect_none(&person);
}

#[test]
fn a_full_disk_refuses_new_work_keeps_what_runs_and_heals() {
    let person = deck();
    let traces = Traces::of(&person);
    let Some(disk) = SmallDisk::mount(person.home().join("small")) else { return };
    let gpudeck = |words: &[&str]| {
        let mut command = person.command(words);
        run(command.env("GPUDECK_HOME", &disk.0), DEADLINE)
    };
    gpudeck(&["apply", "chat", "--wait", "--timeout", "60s"]).expect_success();
    let status = gpudeck(&["status", "chat", "--output", "json"]).expect_success().stdout;
    let status: Value = serde_json::from_str(&status).unwrap();
    let port = status["replicas"][0]["ranks"][0]["port"].as_u64().unwrap();
    let port = u16::try_from(port).unwrap();

    disk.fill();
    std::fs::write(person.deck().join("services/chat.toml"), service("two")).unwrap();
    // What still fits into a page is written, so the first wish may get through to the journal.
    let long = "why ".repeat(1_500);
    let refused = gpudeck(&["apply", "chat", "-m", &long]);
    assert_eq!(refused.code(), Some(1), "{refused:#?}");
    assert!(refused.stderr.contains("no space left"), "{refused:#?}");
    let status = gpudeck(&["status"]).expect_success().stdout;
    assert!(status.contains("! journal-unwritable since"), "{status}");
    assert!(status.contains("→ free space on the disk"), "{status}");
    assert!(status.contains("serving"), "{status}");
    // A program is told as much, whatever it asks.
    for words in [&["status"][..], &["status", "chat"], &["hosts"]] {
        let told = gpudeck(&[words, &["--output", "json"]].concat()).expect_success().stdout;
        let told: Value = serde_json::from_str(&told).unwrap();
        let state = &told["deck"]["conditions"][0];
        assert_eq!(state["kind"], "journal-unwritable", "{told:#}");
        assert!(state["hint"].as_str().unwrap().contains("free space"), "{state:#}");
        if words == ["status"] {
            let dirty = &told["deck"]["git"]["dirty"];
            assert!(dirty.as_array().unwrap().contains(&"services/chat.toml".into()), "{told:#}");
        }
    }
    let history = gpudeck(&["history", "chat", "--output", "json"]).expect_success().stdout;
    let history: Value = serde_json::from_str(&history).unwrap();
    assert_eq!(history.as_array().unwrap().len(), 1, "nothing is committed: {history:#}");
    assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_ok(), "what ran was ended");

    // With little room: what is refused is not in Git.
    let filler = std::fs::File::options().write(true).open(disk.0.join("filler")).unwrap();
    let mut begun = false;
    for _ in 0..32 {
        let length = filler.metadata().unwrap().len();
        filler.set_len(length.saturating_sub(4_096)).unwrap();
        begun = gpudeck(&["apply", "chat", "--accept-outage"]).code() == Some(0);
        if begun {
            break;
        }
        let history = gpudeck(&["history", "chat", "--output", "json"]).expect_success().stdout;
        let history: Value = serde_json::from_str(&history).unwrap();
        assert_eq!(history.as_array().unwrap().len(), 1, "nothing is committed: {history:#}");
    }
    drop(filler);

    std::fs::remove_file(disk.0.join("filler")).unwrap();
    wait_until("the journal's recovery", DEADLINE, || {
        !gpudeck(&["status"]).stdout.contains("journal-unwritable")
    });
    if begun {
        let wait = ["rollout", "status", "chat", "--wait", "--timeout", "60s"];
        gpudeck(&wait).expect_success();
        std::fs::write(person.deck().join("services/chat.toml"), service("three")).unwrap();
    }
    gpudeck(&["apply", "chat", "--accept-outage", "--wait", "--timeout", "60s"]).expect_success();
    assert!(
        gpudeck(&["journal", "verify"]).expect_success().stdout.contains("the journal is good")
    );
    assert!(gpudeck(&["audit", "verify"]).expect_success().stdout.contains("is good"));
    gpudeck(&["stop", "chat"]).expect_success();
    wait_until("the stop", DEADLINE, || gpudeck(&["status", "chat"]).stdout.contains("stopped"));
    gpudeck(&["controller", "stop"]).expect_success();
    traces.expect_none(&person);
}

/// The rollout waits for whoever balances, who follows while the disk is full: that cannot be written down. With space
/// back it goes on at once, not when a deadline takes back what is good.
#[test]
fn what_whoever_balances_followed_while_the_disk_was_full_is_told_again() {
    let person = deck();
    let home = person.home();
    let at = |name: &str| home.join(name).display().to_string();
    let reload = format!(
        "touch {}; until test -e {}; do sleep 0.05; done; touch {}",
        at("asked"),
        at("go"),
        at("followed")
    );
    let file = person.deck().join("deck.toml");
    let before = std::fs::read_to_string(&file).unwrap();
    let endpoints = format!(
        "\n[endpoints]\ndir = \"{}\"\nsettle = \"0s\"\nreload = [\"sh\", \"-c\", \"{reload}\"]\n",
        at("endpoints")
    );
    std::fs::write(&file, before + &endpoints).unwrap();
    let traces = Traces::of(&person);
    let Some(disk) = SmallDisk::mount(home.join("small")) else { return };
    let gpudeck = |words: &[&str]| {
        let mut command = person.command(words);
        run(command.env("GPUDECK_HOME", &disk.0), DEADLINE)
    };
    gpudeck(&["apply", "chat"]).expect_success();
    wait_until("the table", DEADLINE, || home.join("asked").exists());

    disk.fill();
    let unwritable = || gpudeck(&["status"]).stdout.contains("journal-unwritable");
    // What still fits into a page is written: also a wish whose answer does not.
    wait_until("a full disk", DEADLINE, || {
        gpudeck(&["cordon", "here"]);
        gpudeck(&["uncordon", "here"]);
        unwritable()
    });
    std::fs::write(home.join("go"), "").unwrap();
    wait_until("the end of the command", DEADLINE, || home.join("followed").exists());
    std::thread::sleep(Duration::from_secs(1));
    assert!(unwritable());

    std::fs::remove_file(disk.0.join("filler")).unwrap();
    let wait = ["rollout", "status", "chat", "--wait", "--timeout", "60s"];
    gpudeck(&wait).expect_success();
    gpudeck(&["uncordon", "here"]);
    gpudeck(&["stop", "chat", "--yes"]).expect_success();
    wait_until("the stop", DEADLINE, || gpudeck(&["status", "chat"]).stdout.contains("stopped"));
    gpudeck(&["controller", "stop"]).expect_success();
    // Nothing of it is missing in the audit trail either, and nobody had to be asked later.
    let trail = gpudeck(&["audit", "--output", "json"]).expect_success().stdout;
    let lines: Vec<Value> =
        trail.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let answer = |wish: &Value| lines.iter().find(|line| line["of"] == wish["seq"]);
    let wishes: Vec<&Value> = lines.iter().filter(|line| line["event"] == "asked").collect();
    assert!(wishes.len() >= 3, "{trail}");
    for wish in wishes {
        let told = answer(wish).unwrap_or_else(|| panic!("no answer to {wish}: {trail}"));
        assert_ne!(told["result"]["result"], "unknown", "{trail}");
    }
    for end in ["rollout_ended", "stopped"] {
        assert_eq!(lines.iter().filter(|line| line["event"] == end).count(), 1, "{end}: {trail}");
    }
    gpudeck(&["audit", "verify"]).expect_success();
    traces.expect_none(&person);
}
