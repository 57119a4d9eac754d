//! A deck with a remote while its service runs: pushes, `show`, `blame`, `drift`, undo.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use git2::Repository;
use gpudeck::revision::DeckRepo;
use serde_json::Value;

use super::{DEADLINE, chat, commit};
use crate::common::{Finished, Gpudeck, Traces, wait_until};

const SERVICE: &str = r#"
model  = "tiny"
engine = { command = { run = ["{gpudeck}", "sim-engine", "--port", "{port}", "--load-time", "100ms"] } }
device = "cpu"
memory = "1MiB"
"#;

fn json(done: Finished, code: i32) -> Value {
    assert_eq!(done.code(), Some(code), "{done:#?}");
    serde_json::from_str(&done.stdout).unwrap()
}

fn state_file(agent: &Path, file: &str) -> PathBuf {
    // `ranks/RANK` of the only rank, in the folder itself or in that of the machine's id.
    let below = std::fs::read_dir(agent).unwrap().flatten().map(|e| e.path().join("ranks"));
    let ranks = below.chain([agent.join("ranks")]).find(|p| p.is_dir()).unwrap();
    let mut found = std::fs::read_dir(ranks).unwrap().flatten().map(|e| e.path());
    found.find(|p| p.join(file).is_file()).unwrap().join(file)
}

/// A deck of this machine with a bare remote to which every release is sent; the remote, and where the agent's
/// files are.
fn pushing_deck(person: &Gpudeck) -> (PathBuf, PathBuf) {
    person.run(["init"], DEADLINE).expect_success();
    let agent = person.home().join("agent");
    let port = crate::common::engine_port();
    let file = person.deck().join("deck.toml");
    let before = std::fs::read_to_string(&file).unwrap();
    let host = format!(
        "\n[hosts.here]\ntransport = \"local\"\nfirst_engine_port = {port}\nagent_env = {{ GPUDECK_STATE_DIR = \"{}\" }}\n\n[git]\npush = true\n",
        agent.display()
    );
    std::fs::write(&file, before + &host).unwrap();
    let bare = person.home().join("remote.git");
    let mut options = git2::RepositoryInitOptions::new();
    Repository::init_opts(&bare, options.bare(true).initial_head("main")).unwrap();
    let repo = Repository::open(person.deck()).unwrap();
    repo.remote("origin", &format!("file://{}", bare.display())).unwrap();
    (bare, agent)
}

/// Another working copy of the deck, with its directory.
fn colleague(person: &Gpudeck, remote: &Path) -> (PathBuf, DeckRepo) {
    let clone = person.home().join("clone");
    Repository::clone(&format!("file://{}", remote.display()), &clone).unwrap();
    let deck = DeckRepo::open(&clone).unwrap();
    (clone, deck)
}

fn stop_chat(gpudeck: impl Fn(&str) -> Finished) {
    gpudeck("stop chat --yes").expect_success();
    wait_until("the stop", DEADLINE, || gpudeck("status chat").stdout.contains("stopped"));
}

#[test]
fn sending_in_the_background_moves_no_files() {
    let person = Gpudeck::new();
    let traces = Traces::of(&person);
    let gpudeck = |words: &str| person.run(words.split(' '), DEADLINE);
    let (bare, _) = pushing_deck(&person);
    let remote = Repository::open(&bare).unwrap();
    let spec = person.deck().join("services/chat.toml");
    std::fs::write(&spec, SERVICE).unwrap();
    gpudeck("apply chat --wait --timeout 60s").expect_success();
    let gate = "[rollout]\nsteps = [{ approve = true }]\n";
    std::fs::write(&spec, format!("{SERVICE}env = {{ A = \"b\" }}\n{gate}")).unwrap();
    gpudeck("apply chat --accept-outage").expect_success();
    wait_until("the gate, and the release at the remote", DEADLINE, || {
        gpudeck("status chat").stdout.contains("waits for approval")
            && remote.refname_to_id("refs/gpudeck/releases/r2").is_ok()
    });

    // Meanwhile a colleague changes the deck.
    let (clone, other) = colleague(&person, &bare);
    let theirs = std::fs::read_to_string(clone.join("deck.toml")).unwrap() + "# theirs\n";
    std::fs::write(clone.join("deck.toml"), &theirs).unwrap();
    commit(&other, &chat(), "bob");
    other.push(None).unwrap();

    // The rollout ends, which is sent; the files here stay, and it is said what lacks here.
    let file = person.deck().join("deck.toml");
    let ours = std::fs::read_to_string(&file).unwrap();
    gpudeck("rollout promote chat").expect_success();
    gpudeck("rollout status chat --wait --timeout 60s").expect_success();
    wait_until("the outcome at the remote", DEADLINE, || {
        let r2 = remote.refname_to_id("refs/gpudeck/releases/r2").unwrap();
        remote.find_note(Some("refs/notes/gpudeck"), r2).is_ok()
    });
    wait_until("what the deck lacks", DEADLINE, || {
        gpudeck("status").stdout.contains("! deck-diverged")
    });
    assert_eq!(std::fs::read_to_string(&file).unwrap(), ours);
    let status = gpudeck("status").expect_success().stdout;
    for part in ["origin/main has 1 commit that is not in this deck", "`gpudeck deck fetch`"] {
        assert!(status.contains(part), "`{part}` is not in:\n{status}");
    }
    std::fs::write(&spec, format!("{SERVICE}env = {{ A = \"c\" }}\n")).unwrap();
    let refused = gpudeck("apply chat --accept-outage");
    assert_eq!(refused.code(), Some(5), "{refused:#?}");
    assert!(refused.stderr.contains("`gpudeck deck fetch` takes it"), "{refused:#?}");
    std::fs::write(&spec, other.read_service(&chat()).unwrap()).unwrap();

    // Asked for, they move, and all is well again.
    let fetched = gpudeck("deck fetch").expect_success().stdout;
    assert!(fetched.contains("moved forward by 1 commit"), "{fetched}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), theirs);
    wait_until("the end of the state", DEADLINE, || {
        !gpudeck("status").stdout.contains("deck-diverged")
    });
    stop_chat(gpudeck);
    gpudeck("controller stop").expect_success();
    traces.expect_none(&person);
}

/// A clone brings the commits alone; how releases ended stands in notes, which a controller fetches by itself.
#[test]
fn a_controller_in_a_clone_knows_how_releases_ended() {
    let person = Gpudeck::new();
    let traces = Traces::of(&person);
    let gpudeck = |words: &str| person.run(words.split(' '), DEADLINE);
    let (bare, _) = pushing_deck(&person);
    std::fs::write(person.deck().join("services/chat.toml"), SERVICE).unwrap();
    gpudeck("apply chat --wait --timeout 60s").expect_success();
    let remote = Repository::open(&bare).unwrap();
    wait_until("the outcome at the remote", DEADLINE, || {
        let r1 = remote.refname_to_id("refs/gpudeck/releases/r1");
        r1.is_ok_and(|r1| remote.find_note(Some("refs/notes/gpudeck"), r1).is_ok())
    });

    let (clone, _) = colleague(&person, &bare);
    let there = |words: &str| {
        let mut command = person.command(["--deck", clone.to_str().unwrap()]);
        command.args(words.split(' ')).env("GPUDECK_HOME", person.home().join("other"));
        crate::common::run(&mut command, DEADLINE)
    };
    wait_until("how r1 ended", DEADLINE, || {
        json(there("history chat --output json"), 0)[0]["outcome"] == "completed"
    });
    there("controller stop").expect_success();

    // What is in the way is said, and is over when it is.
    let away = bare.with_extension("away");
    std::fs::rename(&bare, &away).unwrap();
    wait_until("the state", DEADLINE, || there("status").stdout.contains("! remote-unheard since"));
    std::fs::rename(&away, &bare).unwrap();
    wait_until("the end of the state", DEADLINE * 2, || {
        !there("status").stdout.contains("remote-unheard")
    });
    there("controller stop").expect_success();
    stop_chat(gpudeck);
    gpudeck("controller stop").expect_success();
    traces.expect_none(&person);
}

/// Who takes over in mid-rollout serves a release whose commit only the other one has.
#[test]
fn a_release_that_was_not_sent_is_told_with_the_way_to_its_commit() {
    let person = Gpudeck::new();
    let traces = Traces::of(&person);
    let gpudeck = |words: &str| person.run(words.split(' '), DEADLINE);
    let (bare, _) = pushing_deck(&person);
    let spec = person.deck().join("services/chat.toml");
    std::fs::write(&spec, SERVICE).unwrap();
    gpudeck("apply chat --wait --timeout 60s").expect_success();
    let remote = Repository::open(&bare).unwrap();
    wait_until("r1 at the remote", DEADLINE, || {
        let r1 = remote.refname_to_id("refs/gpudeck/releases/r1");
        r1.is_ok_and(|r1| remote.find_note(Some("refs/notes/gpudeck"), r1).is_ok())
    });
    let (clone, other) = colleague(&person, &bare);
    let there = |words: &str| {
        let mut command = person.command(["--deck", clone.to_str().unwrap()]);
        command.args(words.split(' ')).env("GPUDECK_HOME", person.home().join("other"));
        crate::common::run(&mut command, DEADLINE)
    };
    let away = bare.with_extension("away");
    std::fs::rename(&bare, &away).unwrap();
    let gate = "[rollout]\nsteps = [{ approve = true }]\n";
    std::fs::write(&spec, format!("{SERVICE}env = {{ A = \"b\" }}\n{gate}")).unwrap();
    gpudeck("apply chat --accept-outage").expect_success();
    let waits = |status: Finished| status.stdout.contains("waits for approval");
    wait_until("the gate", DEADLINE, || waits(gpudeck("status chat")));
    gpudeck("controller stop").expect_success();

    there("controller take-over").expect_success();
    wait_until("the gate there", DEADLINE, || waits(there("status chat")));
    let refused = |words: &str, parts: [&str; 2]| {
        let refused = there(words);
        assert_eq!(refused.code(), Some(8), "{refused:#?}");
        assert!(parts.iter().all(|part| refused.stderr.contains(part)), "{refused:#?}");
    };
    let way = "`gpudeck deck push` there, then `gpudeck deck fetch` here";
    refused("show r2", ["r2: its commit is only in the deck of", way]);
    there("rollout promote chat").expect_success();
    there("rollout status chat --wait --timeout 60s").expect_success();
    refused("diff r1 r2", ["r2 serves, and its commit is only in the deck of", way]);
    let history = json(there("history chat --output json"), 0);
    let newest = &history[0];
    assert_eq!((&newest["number"], &newest["not_here"]), (&2.into(), &true.into()), "{history:#}");
    assert_eq!(newest["outcome"], "completed", "{history:#}");

    std::fs::rename(&away, &bare).unwrap();
    gpudeck("deck push").expect_success();
    there("deck fetch").expect_success();
    wait_until("how r2 ended, in Git", DEADLINE, || {
        let history = other.history(&chat(), 1).unwrap();
        history[0].release.0 == 2 && history[0].outcome.is_some()
    });
    let history = json(there("history chat --output json"), 0);
    assert!(history[0]["not_here"].is_null(), "{history:#}");
    assert_eq!(history[0]["outcome"], "completed", "{history:#}");
    stop_chat(there);
    there("controller stop").expect_success();
    gpudeck("controller stop").expect_success();
    traces.expect_none(&person);
}

#[test]
fn show_blame_and_drift_say_what_runs_and_why() {
    let person = Gpudeck::new();
    let traces = Traces::of(&person);
    let gpudeck = |words: &str| person.run(words.split(' '), DEADLINE);
    let (bare, agent) = pushing_deck(&person);
    let spec = person.deck().join("services/chat.toml");
    std::fs::write(&spec, SERVICE).unwrap();
    gpudeck("apply chat -m first --wait --timeout 60s").expect_success();
    std::fs::write(&spec, format!("{SERVICE}env = {{ GREETING = \"hello\" }}\n")).unwrap();
    gpudeck("apply chat -m second --accept-outage --wait --timeout 60s").expect_success();

    let shown = gpudeck("show r2").expect_success().stdout;
    for part in ["r2 of chat (served)", "reason    second", "outcome   completed", "GREETING"] {
        assert!(shown.contains(part), "`{part}` is not in:\n{shown}");
    }
    assert_eq!(json(gpudeck("show r1 --output json"), 0)["release"]["reason"], "first");
    assert_eq!(gpudeck("show r9").code(), Some(8));
    let diff = gpudeck("diff r1 r2").expect_success().stdout;
    assert!(diff.contains("\n+env = { GREETING"), "{diff}");
    assert_eq!(gpudeck("diff r1 r9").code(), Some(8));
    let text = std::fs::read_to_string(&spec).unwrap();
    std::fs::write(&spec, format!("{text}# not applied yet\n")).unwrap();
    let blame = json(gpudeck("blame chat --output json"), 0);
    let numbers: Vec<&Value> =
        blame.as_array().unwrap().iter().map(|l| &l["release"]["number"]).collect();
    let expected = [1, 1, 1, 1, 1, 2].map(Value::from);
    assert_eq!(numbers[..6], expected.iter().collect::<Vec<_>>(), "{blame:#}");
    assert!(numbers[6].is_null(), "{blame:#}");
    assert!(gpudeck("blame chat").expect_success().stdout.contains("not applied"));
    std::fs::write(&spec, text).unwrap();

    // Every release was sent, with what came of it.
    let remote = Repository::open(&bare).unwrap();
    wait_until("the push", DEADLINE, || {
        let r2 = remote.refname_to_id("refs/gpudeck/releases/r2");
        r2.is_ok_and(|r2| {
            remote.find_note(Some("refs/notes/gpudeck"), r2).is_ok()
                && remote.refname_to_id("refs/gpudeck/stable/chat").is_ok_and(|id| id == r2)
        })
    });
    assert!(
        gpudeck("deck status").expect_success().stdout.contains("0 commits to send, 0 lacking")
    );

    // Somebody else sends something: nothing is applied onto that unseen.
    let (clone, other) = colleague(&person, &bare);
    std::fs::write(clone.join("services/chat.toml"), format!("{SERVICE}replicas = 1\n")).unwrap();
    commit(&other, &chat(), "bob");
    other.push(None).unwrap();
    let ours = std::fs::read_to_string(&spec).unwrap();
    std::fs::write(&spec, format!("{ours}# mine\n")).unwrap();
    let fetched = gpudeck("deck fetch").expect_success().stdout;
    assert!(fetched.contains("edited and not committed: services/chat.toml"), "{fetched}");
    std::fs::write(&spec, ours.replace("hello", "ciao")).unwrap();
    let plan = gpudeck("plan chat").stdout;
    assert!(plan.contains("the deck is 1 commits behind origin/main"), "{plan}");
    let status = gpudeck("status").expect_success().stdout;
    assert!(status.contains("deck: the deck is 1 commits behind origin/main"), "{status}");
    assert!(status.contains("deck: edited and not committed: services/chat.toml"), "{status}");
    let git = json(gpudeck("status --output json"), 0)["deck"]["git"].take();
    assert_eq!((&git["behind"], &git["diverged"]), (&1.into(), &false.into()), "{git:#}");
    assert_eq!(git["dirty"][0], "services/chat.toml", "{git:#}");
    let refused = gpudeck("apply chat --accept-outage");
    assert_eq!(refused.code(), Some(5), "{refused:#?}");
    assert!(refused.stderr.contains("1 commit that is not in this deck"), "{refused:#?}");
    std::fs::write(&spec, &ours).unwrap();

    // Drift: none; then somebody's hand in what runs.
    let none = gpudeck("drift").expect_success().stdout;
    assert!(none.contains("the hosts run what the releases say"), "{none}");
    let rank = state_file(&agent, "rank.json");
    let known = std::fs::read_to_string(&rank).unwrap();
    std::fs::write(&rank, known.replace("100ms", "900ms")).unwrap();
    let drift = json(gpudeck("drift chat --output json"), 2);
    assert_eq!(drift["items"][0]["kind"], "command", "{drift:#}");
    std::fs::write(&rank, known).unwrap();
    assert_eq!(gpudeck("drift nobody").code(), Some(8));

    stop_chat(gpudeck);
    gpudeck("controller stop").expect_success();
    traces.expect_none(&person);
}

/// Programs that set something themselves before they become the engine: what the process has counts, not what it was
/// given, and no value of it is told.
#[test]
fn drift_says_how_processes_differ_from_their_release() {
    let person = Gpudeck::new();
    let traces = Traces::of(&person);
    let gpudeck = |words: &str| person.run(words.split(' '), DEADLINE);
    let _ = pushing_deck(&person);
    let real = std::fs::canonicalize(env!("CARGO_BIN_EXE_gpudeck")).unwrap();
    for (service, before, after) in [
        ("chat", ":", ""),
        (
            "code",
            "export GREETING=sk-hidden CUDA_VISIBLE_DEVICES=7,GPU-1 OTHER=x; unset WORD",
            "--seed 9",
        ),
    ] {
        let folder = person.home().join(service);
        std::fs::create_dir_all(&folder).unwrap();
        let program = folder.join("gpudeck");
        let text = format!("#!/bin/sh\n{before}\nexec {} \"$@\" {after}\n", real.display());
        std::fs::write(&program, text).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let run = program.display().to_string();
        let spec = SERVICE.replacen("{gpudeck}", &run, 1).replace("100ms", "150ms");
        let spec = format!("{spec}env = {{ GREETING = \"hello\", WORD = \"w\" }}\n");
        std::fs::write(person.deck().join(format!("services/{service}.toml")), spec).unwrap();
        gpudeck(&format!("apply {service} --wait --timeout 60s")).expect_success();
    }
    gpudeck("drift chat").expect_success();
    let found = json(gpudeck("drift --output json"), 2);
    let items = found["items"].as_array().unwrap();
    let told: Vec<(&str, &str, &str)> = items
        .iter()
        .map(|i| (&i["rank"]["service"], &i["kind"], &i["text"]))
        .map(|(s, k, t)| (s.as_str().unwrap_or_default(), k.as_str().unwrap(), t.as_str().unwrap()))
        .collect();
    assert_eq!(
        told,
        [
            ("code", "command", "runs with 2 arguments that its release does not have"),
            ("code", "environment", "GREETING has another value, WORD is not set"),
            ("code", "devices", "has 7, GPU-1, not no GPU"),
        ],
        "{found:#}"
    );
    assert!(!found.to_string().contains("sk-hidden"), "{found:#}");

    for service in ["chat", "code"] {
        gpudeck(&format!("stop {service} --yes")).expect_success();
        wait_until("the stop", DEADLINE, || {
            gpudeck(&format!("status {service}")).stdout.contains("stopped")
        });
    }
    gpudeck("controller stop").expect_success();
    traces.expect_none(&person);
}

/// An undo says what it goes back to, what it commits beside the spec, and where an edit went that was in its way.
#[test]
fn an_undo_takes_nothing_away_unsaid() {
    let person = Gpudeck::new();
    let traces = Traces::of(&person);
    let gpudeck = |words: &str| person.run(words.split(' '), DEADLINE);
    let (bare, _) = pushing_deck(&person);
    let remote = Repository::open(&bare).unwrap();
    let spec = person.deck().join("services/chat.toml");
    std::fs::write(&spec, SERVICE).unwrap();
    gpudeck("apply chat --wait --timeout 60s").expect_success();
    std::fs::write(&spec, format!("{SERVICE}env = {{ A = \"b\" }}\n")).unwrap();
    gpudeck("apply chat --accept-outage --wait --timeout 60s").expect_success();

    let edit = format!("{SERVICE}# hours of work\n");
    std::fs::write(&spec, &edit).unwrap();
    let file = person.deck().join("deck.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text + "# not done yet\n").unwrap();
    let undone = gpudeck("rollout undo chat --yes --accept-outage --wait --timeout 60s");
    let words = undone.expect_success();
    for part in [
        "services/chat.toml is edited and not committed: the edit moves to .gpudeck/chat.before-r3.toml",
        "deck.toml is edited and will be committed with it",
    ] {
        assert!(words.stderr.contains(part), "`{part}` is not in:\n{words:#?}");
    }
    assert!(!words.stderr.contains("edited and not committed: deck.toml"), "{words:#?}");
    let kept = person.deck().join(".gpudeck/chat.before-r3.toml");
    assert_eq!(std::fs::read_to_string(kept).unwrap(), edit);
    let events = gpudeck("events").expect_success().stdout;
    assert!(events.contains("the edit moves to .gpudeck/chat.before-r3.toml"), "{events}");
    let shown = gpudeck("show r3").expect_success().stdout;
    assert!(shown.contains("reason    back to r1"), "{shown}");

    // What is stopped is served no more, at the remote too.
    let stable = || remote.refname_to_id("refs/gpudeck/stable/chat").is_ok();
    wait_until("what is stable at the remote", DEADLINE, stable);
    stop_chat(gpudeck);
    wait_until("the end of what is stable", DEADLINE, || !stable());
    let ours = Repository::open(person.deck()).unwrap();
    assert!(ours.refname_to_id("refs/gpudeck/stable/chat").is_err());
    gpudeck("controller stop").expect_success();
    traces.expect_none(&person);
}

/// Who goes back at night mends no file and merges nothing first.
#[test]
fn an_undo_waits_neither_for_deck_toml_nor_for_the_remote() {
    let person = Gpudeck::new();
    let traces = Traces::of(&person);
    let gpudeck = |words: &str| person.run(words.split(' '), DEADLINE);
    let (bare, _) = pushing_deck(&person);
    let remote = Repository::open(&bare).unwrap();
    let spec = person.deck().join("services/chat.toml");
    std::fs::write(&spec, SERVICE).unwrap();
    gpudeck("apply chat --wait --timeout 60s").expect_success();
    let worse = format!("{SERVICE}env = {{ A = \"b\" }}\n");
    std::fs::write(&spec, &worse).unwrap();
    gpudeck("apply chat --accept-outage --wait --timeout 60s").expect_success();
    wait_until("the release at the remote", DEADLINE, || {
        remote.refname_to_id("refs/gpudeck/releases/r2").is_ok()
    });

    let (clone, other) = colleague(&person, &bare);
    let theirs = std::fs::read_to_string(clone.join("deck.toml")).unwrap() + "# theirs\n";
    std::fs::write(clone.join("deck.toml"), &theirs).unwrap();
    commit(&other, &chat(), "bob");
    other.push(None).unwrap();
    let ours = Repository::open(person.deck()).unwrap();
    ours.find_remote("origin").unwrap().fetch(&["main"], None, None).unwrap();
    let file = person.deck().join("deck.toml");
    let good = std::fs::read_to_string(&file).unwrap();
    let broken = format!("{good}x = [\n");
    std::fs::write(&file, &broken).unwrap();
    std::fs::write(&spec, format!("{SERVICE}env = {{ A = \"c\" }}\n")).unwrap();
    let refused = gpudeck("apply chat --yes --accept-outage");
    assert_ne!(refused.code(), Some(0), "{refused:#?}");

    std::fs::write(&spec, &worse).unwrap();
    let undo = "rollout undo chat --yes --accept-outage --wait --timeout 60s";
    gpudeck(undo).expect_success();
    assert_eq!(std::fs::read_to_string(&spec).unwrap(), SERVICE);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), broken);
    let head = ours.head().unwrap().peel_to_tree().unwrap();
    let text = |path: &str| {
        let blob = head.get_path(Path::new(path)).unwrap().to_object(&ours).unwrap();
        String::from_utf8(blob.as_blob().unwrap().content().to_vec()).unwrap()
    };
    assert_eq!((text("deck.toml"), text("services/chat.toml")), (good, SERVICE.to_owned()));
    let events = gpudeck("events").expect_success().stdout;
    assert!(events.contains("deck.toml is left out of the commit of r3"), "{events}");
    wait_until("what the remote has besides", DEADLINE, || {
        gpudeck("status").stdout.contains("! deck-diverged")
    });
    stop_chat(gpudeck);
    gpudeck("controller stop").expect_success();
    traces.expect_none(&person);
}
