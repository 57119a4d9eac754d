//! Two operators of one deck: the second waits and is told who holds the hosts, takes over when the
//! first has fallen silent, goes on in the middle of its rollout, and the first is refused when it is back.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

#[path = "common/mod.rs"]
mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{Finished, Gpudeck, Traces, run, wait_until};
use gpudeck::base::DeckId;
use gpudeck::controller::saved::Saved;
use gpudeck::controller::saved_deck::SavedDeck;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(120);

/// The deck and its two operators, each with a state directory (and a working copy) of its own. The
/// hosts are two agents of this machine.
struct Company {
    person: Gpudeck,
}

impl Company {
    fn new() -> Self {
        use std::os::unix::fs::PermissionsExt;
        let person = Gpudeck::new();
        person.run(["init", "--name", "shop"], DEADLINE).expect_success();
        let file = person.deck().join("deck.toml");
        let mut text = std::fs::read_to_string(&file).unwrap();
        for host in ["h1", "h2"] {
            text.push_str(&format!(
                "\n[hosts.{host}]\ntransport = \"local\"\nfirst_engine_port = {}\nagent_env = {{ GPUDECK_STATE_DIR = \"{}\" }}\n",
                common::engine_port(),
                person.home().join(host).display()
            ));
        }
        std::fs::write(&file, text).unwrap();
        // Notes every start before it becomes the engine.
        let note = person.home().join("note");
        std::fs::write(
            &note,
            "#!/bin/sh\necho \"$1\" >>\"$(dirname \"$0\")/starts\"\nshift\nexec \"$@\"\n",
        )
        .unwrap();
        std::fs::set_permissions(&note, std::fs::Permissions::from_mode(0o755)).unwrap();
        let company = Self { person };
        company.write_spec(&company.person.deck(), "one");
        company
    }

    fn write_spec(&self, deck: &Path, greeting: &str) {
        let spec = format!(
            r#"
model    = "tiny"
replicas = 2
device   = "cpu"
memory   = "1MiB"
env      = {{ GREETING = "{greeting}" }}

[engine.command]
run = ["{}", "{{release}}-{{replica}}", "{{gpudeck}}", "sim-engine", "--port", "{{port}}", "--load-time", "100ms"]

[placement]
spread = "host"

[rollout]
steps = [{{ weight = 50 }}, {{ approve = true }}]
"#,
            self.person.home().join("note").display()
        );
        std::fs::write(deck.join("services/chat.toml"), spec).unwrap();
    }

    fn home(&self, operator: &str) -> PathBuf {
        self.person.home().join(operator)
    }

    fn run(&self, operator: &str, deck: &Path, words: &str) -> Finished {
        let mut command = self.person.command(words.split(' '));
        run(command.current_dir(deck).env("GPUDECK_HOME", self.home(operator)), DEADLINE)
    }

    fn a(&self, words: &str) -> Finished {
        self.run("a", &self.person.deck(), words)
    }

    /// The second operator's working copy.
    fn clone(&self) -> PathBuf {
        self.person.home().join("clone")
    }

    fn b(&self, words: &str) -> Finished {
        self.run("b", &self.clone(), words)
    }

    fn make_clone(&self) {
        let from = self.person.deck();
        let mut builder = git2::build::RepoBuilder::new();
        builder.clone(from.to_str().unwrap(), &self.clone()).unwrap();
    }

    fn starts(&self) -> BTreeMap<String, usize> {
        let text = std::fs::read_to_string(self.person.home().join("starts")).unwrap_or_default();
        let mut counts = BTreeMap::new();
        for line in text.lines() {
            *counts.entry(line.trim_start_matches('r').to_owned()).or_default() += 1;
        }
        counts
    }

    fn id(&self) -> DeckId {
        let dir = std::fs::read_dir(self.home("a")).unwrap().flatten().next().unwrap().file_name();
        DeckId(dir.to_string_lossy().parse().unwrap())
    }

    /// What a host keeps for whoever takes over: HOST/MACHINE/decks/DECK/NAME.
    fn kept_at(&self, host: &str, name: &str) -> Option<PathBuf> {
        let within = |dir: PathBuf| std::fs::read_dir(dir).ok()?.flatten().next().map(|e| e.path());
        let decks = within(self.person.home().join(host))?.join("decks");
        Some(within(decks)?.join(name))
    }

    fn kept(&self, host: &str, name: &str) -> Option<String> {
        std::fs::read_to_string(self.kept_at(host, name)?).ok()
    }

    fn pid(done: &Finished) -> Pid {
        let status: Value = serde_json::from_str(&done.stdout).unwrap();
        Pid::from_raw(i32::try_from(status["version"]["pid"].as_i64().unwrap()).unwrap()).unwrap()
    }
}

fn json(done: Finished) -> Value {
    serde_json::from_str(&done.expect_success().stdout).unwrap()
}

#[test]
fn a_second_operator_waits_takes_over_and_goes_on() {
    let company = Company::new();
    let traces = Traces::of(&company.person);
    company.a("apply chat --wait --timeout 60s").expect_success();
    company.make_clone();

    // The second operator sees who works there, and can do nothing.
    wait_until("the second operator's news of both hosts", DEADLINE, || {
        let status = company.b("status").stdout;
        status.contains("! hosts-held since") && status.contains("h1, h2 are held by")
    });
    let status = company.b("status").expect_success().stdout;
    assert!(status.contains("/a/"), "{status}");
    let hosts = company.b("hosts").expect_success().stdout;
    assert!(hosts.contains("held by") && hosts.contains(" until "), "{hosts}");
    for words in ["apply chat", "stop chat --yes", "controller take-over"] {
        let refused = company.b(words);
        assert_eq!(refused.code(), Some(9), "{words}: {refused:#?}");
        assert!(refused.stderr.contains("held by"), "{words}: {refused:#?}");
    }
    // It does not see what is served, so it plans nothing either.
    for words in ["plan chat", "plan", "drain h1 --dry-run"] {
        let refused = company.b(words);
        assert!(refused.stderr.contains("held by"), "{words}: {refused:#?}");
        let code = if words.starts_with("plan") { 1 } else { 9 };
        assert_eq!(refused.code(), Some(code), "{words}: {refused:#?}");
    }
    let refused = company.b("controller take-over --force --confirm other");
    assert_eq!(refused.code(), Some(1), "{refused:#?}");

    // The first begins a rollout and falls silent at its gate, with half of it done.
    company.write_spec(&company.person.deck(), "two");
    company.a("apply chat -m second").expect_success();
    wait_until("the gate", DEADLINE, || {
        company.a("status chat").stdout.contains("waits for approval")
    });
    let first = Company::pid(&company.a("controller status --output json"));
    kill_process(first, Signal::STOP).unwrap();
    wait_until("the end of the lease", DEADLINE, || {
        company.b("status").stdout.contains("its lease ended at")
    });
    assert_eq!(company.b("apply chat").code(), Some(9), "taking over is for a person to say");
    company.b("controller take-over").expect_success();

    // It goes on from there: the same rollout, the same gate, the same replicas.
    wait_until("the gate at the second operator", DEADLINE, || {
        company.b("status chat").stdout.contains("waits for approval")
    });
    let chat = json(company.b("status chat --output json"));
    assert_eq!(chat["rollout"]["to"], 2, "{chat:#}");
    assert_eq!(chat["stable"], 1, "{chat:#}");
    company.b("rollout promote chat").expect_success();
    company.b("rollout status chat --wait --timeout 60s").expect_success();
    let once: BTreeMap<String, usize> =
        ["1-0", "1-1", "2-0", "2-1"].into_iter().map(|r| (r.to_owned(), 1)).collect();
    assert_eq!(company.starts(), once);

    // The first is back: it is told, refused, and touches nothing.
    kill_process(first, Signal::CONT).unwrap();
    wait_until("the first operator's news", DEADLINE, || {
        company.a("status").stdout.contains("! hosts-held since")
    });
    for words in ["rollout promote chat", "rollout abort chat", "stop chat --yes", "apply chat"] {
        let refused = company.a(words);
        assert_eq!(refused.code(), Some(9), "{words}: {refused:#?}");
    }
    // Also in its next life it knows better than to act.
    company.a("controller restart").expect_success();
    wait_until("the first operator's news", DEADLINE, || {
        company.a("status").stdout.contains("! hosts-held since")
    });
    assert_eq!(company.a("stop chat --yes").code(), Some(9));
    let chat = json(company.b("status chat --output json"));
    assert_eq!((&chat["ready"], &chat["stable"]), (&2.into(), &2.into()), "{chat:#}");
    assert_eq!(company.starts(), once);

    // Back again, by force, with what the second did.
    let forced = company.a("controller take-over --force --confirm shop");
    forced.expect_success();
    wait_until("the state at the first operator", DEADLINE, || {
        json(company.a("status chat --output json"))["stable"] == 2
    });
    wait_until("the second operator's news", DEADLINE, || {
        company.b("status").stdout.contains("! hosts-held since")
    });
    assert_eq!(company.b("stop chat --yes").code(), Some(9));
    company.a("stop chat --yes").expect_success();
    wait_until("the stop", DEADLINE, || company.a("status chat").stdout.contains("stopped"));
    assert_eq!(company.starts(), once);
    company.a("controller stop").expect_success();
    company.b("controller stop").expect_success();
    traces.expect_none(&company.person);
}

/// A controller that was just started knows nothing of what runs: it asks who holds the hosts before it answers.
#[test]
fn what_another_operator_runs_is_never_taken_for_nothing_or_for_a_stranger() {
    let company = Company::new();
    let traces = Traces::of(&company.person);
    company.a("apply chat --wait --timeout 60s").expect_success();
    company.make_clone();
    // Each asks one thing, as the first thing in its life.
    let first = |operator: &str, words: &str| company.run(operator, &company.clone(), words);

    let status = first("b", "status").expect_success().stdout;
    let line = status.lines().find(|l| l.starts_with("chat")).unwrap_or_default();
    assert!(line.contains("elsewhere") && !line.contains("0/"), "{status}");
    assert!(status.contains("! chat: h1, h2 are held by"), "{status}");
    let chat = json(first("c", "status chat --output json"));
    assert_eq!(chat["condition"], "elsewhere", "{chat:#}");
    assert!(chat["trouble"].as_str().unwrap_or_default().contains("held by"), "{chat:#}");
    // What was not looked at is not said to be well.
    let looked = first("d", "drift --output json");
    assert_eq!(looked.code(), Some(9), "{looked:#?}");
    let drift: serde_json::Value = serde_json::from_str(&looked.stdout).unwrap();
    assert_eq!(drift["items"], serde_json::json!([]), "{drift:#}");
    assert_eq!(drift["not_seen"].as_array().map(Vec::len), Some(2), "{drift:#}");
    assert!(drift["not_seen"][0].as_str().unwrap_or_default().contains("is held by"), "{drift:#}");
    let stop = first("e", "stop chat --yes");
    assert_eq!(stop.code(), Some(9), "{stop:#?}");
    assert!(stop.stderr.contains("held by"), "{stop:#?}");

    for operator in ["b", "c", "d", "e"] {
        first(operator, "controller stop").expect_success();
    }
    let chat = json(company.a("status chat --output json"));
    assert_eq!((&chat["condition"], &chat["ready"]), (&"serving".into(), &2.into()), "{chat:#}");
    company.a("stop chat --yes").expect_success();
    wait_until("the stop", DEADLINE, || company.a("status chat").stdout.contains("stopped"));
    company.a("controller stop").expect_success();
    traces.expect_none(&company.person);
}

/// A pause leads to no action on any host, and is kept there all the same.
#[test]
fn what_a_person_decided_holds_at_whoever_takes_over() {
    let company = Company::new();
    let traces = Traces::of(&company.person);
    company.a("apply chat --wait --timeout 60s").expect_success();
    company.make_clone();
    company.write_spec(&company.person.deck(), "two");
    company.a("apply chat -m second").expect_success();
    wait_until("the gate", DEADLINE, || {
        company.a("status chat").stdout.contains("waits for approval")
    });
    company.a("rollout pause chat").expect_success();
    let (deck, chat) = (company.id(), "chat".parse().unwrap());
    wait_until("the pause on both hosts", DEADLINE, || {
        ["h1", "h2"].into_iter().all(|host| {
            let saved = company.kept(host, "service.chat").unwrap();
            let saved = Saved::unpack(&saved, deck, &chat).unwrap();
            saved.state.rollout.is_some_and(|r| r.paused.is_some())
        })
    });
    let first = Company::pid(&company.a("controller status --output json"));
    kill_process(first, Signal::KILL).unwrap();

    company.b("controller take-over --force --confirm shop").expect_success();
    let status = company.b("status chat").expect_success().stdout;
    assert!(status.contains("paused"), "{status}");
    company.b("rollout resume chat").expect_success();
    company.b("rollout promote chat").expect_success();
    company.b("rollout status chat --wait --timeout 60s").expect_success();
    company.b("stop chat --yes").expect_success();
    wait_until("the stop", DEADLINE, || company.b("status chat").stdout.contains("stopped"));
    company.b("controller stop").expect_success();
    traces.expect_none(&company.person);
}

#[test]
fn another_build_is_told_and_takes_over_between_two_steps() {
    use std::io::Write;
    let company = Company::new();
    let traces = Traces::of(&company.person);
    company.a("apply chat --wait --timeout 60s").expect_success();
    company.write_spec(&company.person.deck(), "two");
    company.a("apply chat").expect_success();
    wait_until("the gate", DEADLINE, || {
        company.a("status chat").stdout.contains("waits for approval")
    });
    let same = company.a("controller upgrade").expect_success();
    assert!(same.stdout.contains("of this build already") && same.stderr.is_empty(), "{same:#?}");

    // Another build: the same program with a byte more at its end.
    let newer = company.person.home().join("gpudeck-new");
    std::fs::copy(env!("CARGO_BIN_EXE_gpudeck"), &newer).unwrap();
    std::fs::OpenOptions::new().append(true).open(&newer).unwrap().write_all(&[0]).unwrap();
    let new = |words: &str| {
        let mut command = std::process::Command::new(&newer);
        let like = company.person.command(["x"]);
        command.args(words.split(' ')).current_dir(company.person.deck()).env_clear();
        command.envs(like.get_envs().filter_map(|(k, v)| Some((k, v?))));
        run(command.env("GPUDECK_HOME", company.home("a")), DEADLINE)
    };
    let told = new("status").expect_success();
    assert!(told.stderr.contains("of another build"), "{told:#?}");
    let before = Company::pid(&new("controller status --output json"));
    new("rollout promote chat").expect_success();
    let upgraded = new("controller upgrade").expect_success();
    assert!(upgraded.stdout.contains("runs with pid"), "{upgraded:#?}");
    assert_ne!(Company::pid(&new("controller status --output json")), before);
    new("rollout status chat --wait --timeout 60s").expect_success();
    let told = new("status").expect_success();
    assert!(!told.stderr.contains("of another build"), "{told:#?}");
    let chat = json(new("status chat --output json"));
    assert_eq!((&chat["ready"], &chat["stable"]), (&2.into(), &2.into()), "{chat:#}");
    let once: BTreeMap<String, usize> =
        ["1-0", "1-1", "2-0", "2-1"].into_iter().map(|r| (r.to_owned(), 1)).collect();
    assert_eq!(company.starts(), once);
    new("stop chat --yes").expect_success();
    wait_until("the stop", DEADLINE, || new("status chat").stdout.contains("stopped"));
    new("controller stop").expect_success();
    traces.expect_none(&company.person);
}

/// SIGKILL when the n-th record of a rollout is on the disk: a sample of n, or with `GPUDECK_NIGHTLY=1`
/// each until a rollout ends with fewer records.
#[test]
fn a_controller_killed_at_any_record_starts_nothing_twice_and_finishes() {
    use gpudeck::journal::{Reader, verify};
    let company = Company::new();
    let traces = Traces::of(&company.person);
    let deck = company.person.deck();
    let write = |greeting: &str| {
        company.write_spec(&deck, greeting);
        let file = deck.join("services/chat.toml");
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, text.replace(", { approve = true }", "")).unwrap();
    };
    write("zero");
    company.a("apply chat --wait --timeout 60s").expect_success();
    let state = std::fs::read_dir(company.home("a")).unwrap().flatten().next().unwrap().path();
    let mut reader = Reader::new(&state.join("journal"));
    let nightly = std::env::var("GPUDECK_NIGHTLY").is_ok_and(|v| v == "1");
    let sample: Vec<usize> = if nightly { (1..=200).collect() } else { vec![1, 3, 6, 9, 13] };
    let mut expected: BTreeMap<String, usize> = company.starts();
    let mut killed = 0;
    for (round, at) in sample.into_iter().enumerate() {
        let release = round + 2;
        let _ = reader.more().unwrap();
        write(&format!("round {round}"));
        let controller = Company::pid(&company.a("controller status --output json"));
        let began = company.a("apply chat --output json").expect_success();
        let mut seen = 0;
        let started = std::time::Instant::now();
        // Without a pause, so that few more records come before the signal; a rollout may need fewer.
        for look in 1_u64.. {
            let records = reader.more().unwrap();
            seen += records.iter().filter(|r| r.value.get("service").is_some()).count();
            let done = || json(company.a("status chat --output json"))["stable"] == release;
            if seen >= at || look % 2_000 == 0 && done() {
                break;
            }
            assert!(started.elapsed() < DEADLINE, "neither record {at} nor the rollout's end");
            std::thread::yield_now();
        }
        kill_process(controller, Signal::KILL).unwrap();
        let done = company.a("rollout status chat --wait --timeout 60s");
        assert_eq!(done.code(), Some(0), "killed at record {at}: {done:#?} after {began:#?}");
        let chat = json(company.a("status chat --output json"));
        assert_eq!(chat["stable"], release, "killed at record {at}: {chat:#}");
        assert_eq!(chat["ready"], 2, "killed at record {at}: {chat:#}");
        expected.extend([(format!("{release}-0"), 1), (format!("{release}-1"), 1)]);
        assert_eq!(company.starts(), expected, "killed at record {at}");
        assert!(verify(&state.join("journal")).unwrap().is_good(), "killed at record {at}");
        if seen < at {
            break;
        }
        killed += 1;
    }
    println!("killed at {killed} records");
    assert!(killed >= 4, "the rollout has hardly any records: {killed}");
    assert!(company.a("audit verify").expect_success().stdout.contains("is good"));
    company.a("stop chat --yes").expect_success();
    wait_until("the stop", DEADLINE, || company.a("status chat").stdout.contains("stopped"));
    company.a("controller stop").expect_success();
    traces.expect_none(&company.person);
}

#[test]
fn what_a_lost_journal_knew_is_read_back_from_the_hosts() {
    let company = Company::new();
    let traces = Traces::of(&company.person);
    company.a("apply chat").expect_success();
    wait_until("the first release", DEADLINE, || {
        company.a("status chat").stdout.contains("serving")
    });
    company.a("controller stop").expect_success();
    let state = std::fs::read_dir(company.home("a")).unwrap().flatten().next().unwrap().path();
    std::fs::remove_dir_all(state.join("journal")).unwrap();
    let refused = company.a("apply chat");
    assert_eq!(refused.code(), Some(9), "{refused:#?}");
    assert!(refused.stderr.contains("whose journal is not here"), "{refused:#?}");
    company.a("controller take-over").expect_success();
    wait_until("the first release", DEADLINE, || {
        let chat = json(company.a("status chat --output json"));
        chat["stable"] == 1 && chat["ready"] == 2
    });
    assert_eq!(company.starts().values().sum::<usize>(), 2, "{:?}", company.starts());
    company.a("stop chat --yes").expect_success();
    wait_until("the stop", DEADLINE, || company.a("status chat").stdout.contains("stopped"));
    company.a("controller stop").expect_success();
    traces.expect_none(&company.person);
}

/// A journal from before the last rollout, as in a machine that was restored from a copy.
#[test]
fn a_journal_that_went_back_in_time_touches_nothing_until_a_person_takes_over() {
    let company = Company::new();
    let traces = Traces::of(&company.person);
    let deck = company.person.deck();
    let write = |greeting: &str| {
        company.write_spec(&deck, greeting);
        let file = deck.join("services/chat.toml");
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, text.replace(", { approve = true }", "")).unwrap();
    };
    let apply = |greeting: &str| {
        write(greeting);
        company.a("apply chat --wait --timeout 60s").expect_success();
    };
    apply("one");
    company.a("controller stop").expect_success();
    let state = std::fs::read_dir(company.home("a")).unwrap().flatten().next().unwrap().path();
    let (journal, copy) = (state.join("journal"), company.person.home().join("copy"));
    let copied = |from: &Path, to: &Path| {
        std::fs::create_dir(to).unwrap();
        for file in std::fs::read_dir(from).unwrap().flatten() {
            std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
        }
    };
    copied(&journal, &copy);
    apply("two");
    company.a("controller stop").expect_success();
    let starts = company.starts();
    let kept = company.kept("h1", "service.chat").unwrap();

    std::fs::remove_dir_all(&journal).unwrap();
    copied(&copy, &journal);
    wait_until("that it is noticed", DEADLINE, || {
        company.a("status").stdout.contains("journal-behind")
    });
    write("three");
    let refused = company.a("apply chat --accept-outage");
    assert!(refused.code() != Some(0), "{refused:#?}");
    assert!(refused.stderr.contains("keeps a newer state of chat"), "{refused:#?}");
    assert!(refused.stderr.contains("controller take-over"), "{refused:#?}");
    assert_eq!(company.starts(), starts, "nothing is started");
    assert_eq!(company.kept("h1", "service.chat").unwrap(), kept, "nor written over");

    company.a("controller take-over").expect_success();
    wait_until("the second release", DEADLINE, || {
        let chat = json(company.a("status chat --output json"));
        chat["stable"] == 2 && chat["ready"] == 2
    });
    assert!(!company.a("status").stdout.contains("journal-behind"));
    assert_eq!(company.starts(), starts, "it runs already");
    apply("three");
    company.a("stop chat --yes").expect_success();
    wait_until("the stop", DEADLINE, || company.a("status chat").stdout.contains("stopped"));
    company.a("controller stop").expect_success();
    traces.expect_none(&company.person);
}

/// Who cannot read what is served is not to believe that nothing is.
#[test]
fn a_state_that_cannot_be_read_is_not_taken_for_none() {
    let company = Company::new();
    let traces = Traces::of(&company.person);
    company.a("apply chat --wait --timeout 60s").expect_success();
    company.make_clone();
    company.a("controller stop").expect_success();
    let place = |host| company.kept_at(host, "service.chat").unwrap();
    // What h1 has may be newer than what h2 has.
    std::fs::write(place("h1"), "z1:AAAA").unwrap();
    let mut refused = company.b("controller take-over");
    wait_until("the end of the first one's lease", DEADLINE, || {
        refused = company.b("controller take-over");
        !refused.stderr.contains("are held by")
    });
    assert!(refused.code() != Some(0), "{refused:#?}");
    assert!(refused.stderr.contains("what is served there cannot be read: h1: "), "{refused:#?}");
    assert!(refused.stderr.contains("newer one"), "{refused:#?}");
    let claims = json(company.b("hosts --output json"));
    for host in ["h1", "h2"] {
        assert_eq!(claims[host]["claim"]["ours"], false, "nothing was taken: {claims:#}");
    }
    company.b("controller take-over --force --confirm shop").expect_success();
    let told = company.b("events --output json");
    assert!(told.stdout.contains("taken over as it was before: h1: "), "{told:#?}");
    let chat = json(company.b("status chat --output json"));
    assert_eq!(chat["ready"], 2, "{chat:#}");
    company.b("stop chat --yes").expect_success();
    wait_until("the stop", DEADLINE, || company.b("status chat").stdout.contains("stopped"));
    company.b("controller stop").expect_success();
    traces.expect_none(&company.person);
}

/// Somebody may be at work on the host for which a replica is out.
#[test]
fn what_is_out_for_a_maintenance_stays_out_when_its_cordon_is_not_found() {
    let company = Company::new();
    let traces = Traces::of(&company.person);
    company.a("apply chat --wait --timeout 60s").expect_success();
    company.make_clone();
    let deck = company.id();
    let cordons = |host: &str| {
        let kept = company.kept(host, "state.json");
        kept.map_or(0, |text| {
            SavedDeck::unpack(&text, deck).unwrap().ledger.maintenance.cordons.len()
        })
    };
    company.a("cordon h2 --reason disk").expect_success();
    wait_until("the cordon", DEADLINE, || cordons("h1") == 1 && cordons("h2") == 1);
    let older = company.kept("h1", "state.json").unwrap();
    // There is no other place for it.
    company.a("drain h1 --reason fans --yes").expect_success();
    wait_until("the end of the drain", DEADLINE, || {
        let hosts = json(company.a("hosts --output json"));
        hosts["h1"]["maintenance"]["drain"]["ended"].is_u64()
    });
    wait_until("both cordons", DEADLINE, || cordons("h1") == 2 && cordons("h2") == 2);
    let first = Company::pid(&company.a("controller status --output json"));
    kill_process(first, Signal::KILL).unwrap();
    for host in ["h1", "h2"] {
        std::fs::write(company.kept_at(host, "state.json").unwrap(), &older).unwrap();
    }

    company.b("controller take-over --force --confirm shop").expect_success();
    let told = company.b("events --output json");
    assert!(told.stdout.contains("h1 is cordoned: a replica is out"), "{told:#?}");
    let hosts = json(company.b("hosts --output json"));
    assert_eq!(hosts["h1"]["maintenance"]["cordons"][0]["by"], "take-over", "{hosts:#}");
    assert_eq!(json(company.b("status chat --output json"))["ready"], 1);
    assert_eq!(company.starts().len(), 2, "{:?}", company.starts());
    company.b("uncordon h1").expect_success();
    wait_until("the one that was out", DEADLINE, || {
        json(company.b("status chat --output json"))["ready"] == 2
    });
    company.b("stop chat --yes").expect_success();
    wait_until("the stop", DEADLINE, || company.b("status chat").stdout.contains("stopped"));
    company.b("controller stop").expect_success();
    traces.expect_none(&company.person);
}

#[test]
fn cordons_and_drains_go_on_at_whoever_takes_over() {
    let company = Company::new();
    let traces = Traces::of(&company.person);
    let file = company.person.deck().join("services/chat.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    // Long enough for the first operator to die while the successor loads.
    std::fs::write(&file, text.replace("100ms", "6s")).unwrap();
    company.a("apply chat --wait --timeout 60s").expect_success();
    company.make_clone();
    company.a("drain h1 --reason fans --yes").expect_success();
    company.a("cordon h2 --reason disk").expect_success();
    let deck = company.id();
    wait_until("both cordons on both hosts", DEADLINE, || {
        ["h1", "h2"].into_iter().all(|host| {
            let kept = company.kept(host, "state.json");
            let saved = kept.map(|text| SavedDeck::unpack(&text, deck).unwrap());
            saved.is_some_and(|s| s.ledger.maintenance.cordons.len() == 2)
        })
    });
    let first = Company::pid(&company.a("controller status --output json"));
    kill_process(first, Signal::KILL).unwrap();

    company.b("controller take-over --force --confirm shop").expect_success();
    let hosts = json(company.b("hosts --output json"));
    for (host, why) in [("h1", "fans"), ("h2", "disk")] {
        assert_eq!(hosts[host]["maintenance"]["cordons"][0]["reason"], why, "{hosts:#}");
    }
    wait_until("the end of the drain", DEADLINE, || {
        let hosts = json(company.b("hosts --output json"));
        let drain = &hosts["h1"]["maintenance"]["drain"];
        assert!(drain["trouble"].is_null(), "{hosts:#}");
        drain["ended"].is_u64()
    });
    let chat = json(company.b("status chat --output json"));
    assert_eq!(chat["ready"], 2, "{chat:#}");
    let places: Vec<&Value> = chat["replicas"].as_array().unwrap().iter().collect();
    assert!(places.iter().all(|r| r["ranks"][0]["host"] == "h2"), "{chat:#}");
    let once: BTreeMap<String, usize> =
        ["1-0", "1-1", "1-2"].into_iter().map(|r| (r.to_owned(), 1)).collect();
    assert_eq!(company.starts(), once);
    // What was cordoned there is uncordoned here, and the hosts know that too.
    company.b("uncordon h1").expect_success();
    company.b("uncordon h2").expect_success();
    company.b("stop chat --yes").expect_success();
    wait_until("the stop", DEADLINE, || company.b("status chat").stdout.contains("stopped"));
    company.a("controller take-over --force --confirm shop").expect_success();
    let hosts = json(company.a("hosts --output json"));
    assert_eq!(hosts["h1"]["maintenance"]["cordons"], serde_json::json!([]), "{hosts:#}");
    company.a("controller stop").expect_success();
    company.b("controller stop").expect_success();
    traces.expect_none(&company.person);
}
