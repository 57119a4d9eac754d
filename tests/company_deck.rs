//! The deck as a company shares it: a remote in a directory and one behind the user's `git`, refusal
//! when two went different ways, signed releases, one release whole, blame, and drift on the hosts.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

#[path = "common/mod.rs"]
mod common;

use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{Finished, Gpudeck, Traces, has_program, wait_until};
use git2::Repository;
use gpudeck::base::{ReleaseNumber, Revision, ServiceName};
use gpudeck::revision::{DeckRepo, Fetched, ReleaseCommit, RevisionError, SpecText};
use gpudeck::rollout::Outcome;
use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(90);

fn chat() -> ServiceName {
    "chat".parse().unwrap()
}

fn write(deck: &DeckRepo, text: &str) {
    std::fs::create_dir_all(deck.root().join("services")).unwrap();
    std::fs::write(deck.root().join("services/chat.toml"), text).unwrap();
}

fn release(deck: &DeckRepo, text: &str) -> Revision {
    write(deck, text);
    let number = deck.next_release().unwrap();
    deck.commit_service(&ReleaseCommit {
        service: &chat(),
        release: number,
        subject: "Apply chat",
        reason: None,
        author: Some("ada"),
        deck: None,
        spec: SpecText::WorkTree,
    })
    .unwrap()
}

/// A deck with a release, its bare remote, and a clone.
fn shared() -> (tempfile::TempDir, DeckRepo, DeckRepo) {
    let dir = tempfile::tempdir().unwrap();
    let bare = dir.path().join("remote.git");
    let mut options = git2::RepositoryInitOptions::new();
    Repository::init_opts(&bare, options.bare(true).initial_head("main")).unwrap();
    let first = DeckRepo::init(&dir.path().join("first")).unwrap();
    std::fs::write(first.root().join("deck.toml"), "name = \"test\"\n").unwrap();
    release(&first, "a = 1\nb = 2\n");
    let url = format!("file://{}", bare.display());
    Repository::open(first.root()).unwrap().remote("origin", &url).unwrap();
    first.push(None).unwrap();
    Repository::clone(&url, dir.path().join("second")).unwrap();
    let second = DeckRepo::open(&dir.path().join("second")).unwrap();
    (dir, first, second)
}

#[test]
fn releases_outcomes_and_what_is_stable_travel_with_the_branch() {
    let (_dir, first, second) = shared();
    assert_eq!(second.fetch(None).unwrap(), Fetched::UpToDate);
    let r1 = first.release(ReleaseNumber(1)).unwrap().unwrap();
    first.set_outcome(&r1, &Outcome::Completed).unwrap();
    first.set_stable(&chat(), &r1).unwrap();
    let r2 = release(&first, "a = 1\nb = 3\n");
    let status = first.remote_status(None).unwrap();
    assert_eq!((status.ahead, status.behind, status.has_diverged()), (1, 0, false));
    let status = first.push(None).unwrap();
    assert_eq!((status.ahead, status.behind), (0, 0));

    assert_eq!(second.fetch(None).unwrap(), Fetched::Forwarded(1));
    assert_eq!(second.read_service(&chat()).unwrap(), "a = 1\nb = 3\n");
    assert!(!second.is_dirty(&chat()).unwrap());
    assert_eq!(second.release(ReleaseNumber(2)).unwrap(), Some(r2));
    assert_eq!(second.stable(&chat()).unwrap(), Some(r1.clone()));
    let history = second.history(&chat(), 10).unwrap();
    assert_eq!(history[1].outcome, Some(Outcome::Completed));

    // Each notes an outcome of its own: both are known to both afterwards.
    let r2 = second.release(ReleaseNumber(2)).unwrap().unwrap();
    second.set_outcome(&r2, &Outcome::Failed { why: "x".to_owned() }).unwrap();
    second.push(None).unwrap();
    first.fetch(None).unwrap();
    let history = first.history(&chat(), 10).unwrap();
    assert_eq!(history[0].outcome, Some(Outcome::Failed { why: "x".to_owned() }));
    assert_eq!(history[1].outcome, Some(Outcome::Completed));
}

/// The newest release that was ever stable is what is stable, whoever of two operators sends it and however
/// late the other one hears of it.
fn stable_goes_to_newer_releases_only(first: &DeckRepo, second: &DeckRepo) {
    let number = |n| first.release(ReleaseNumber(n)).unwrap().unwrap();
    let stable_of = |deck: &DeckRepo| deck.stable(&chat()).unwrap();
    let r1 = number(1);
    first.set_stable(&chat(), &r1).unwrap();
    first.push(None).unwrap();
    second.fetch(None).unwrap();
    assert_eq!(stable_of(second), Some(r1.clone()));
    // The second stable release is sent, too, and not set back to the first by what is fetched before.
    let r2 = release(first, "a = 1\nb = 3\n");
    first.push(None).unwrap();
    first.set_stable(&chat(), &r2).unwrap();
    first.push(None).unwrap();
    assert_eq!(stable_of(first), Some(r2.clone()));

    // Who has not heard of it says once more what was stable: that takes nothing back, here or there.
    second.set_stable(&chat(), &r1).unwrap();
    second.push(None).unwrap();
    assert_eq!(stable_of(second), Some(r2.clone()));
    second.set_stable(&chat(), &r1).unwrap();
    assert_eq!(stable_of(second), Some(r2.clone()));
    first.fetch(None).unwrap();
    assert_eq!(stable_of(first), Some(r2));

    // The other one takes over and goes on; an undo is a newer release, too.
    let r3 = release(second, "a = 1\nb = 2\n");
    second.set_stable(&chat(), &r3).unwrap();
    second.push(None).unwrap();
    first.push(None).unwrap();
    assert_eq!(stable_of(first), Some(r3.clone()));
    let bare = Repository::open(first.root().parent().unwrap().join("remote.git")).unwrap();
    assert_eq!(bare.refname_to_id("refs/gpudeck/stable/chat").unwrap().to_string(), r3.0);
}

#[test]
fn what_is_stable_goes_to_newer_releases_only() {
    let (_dir, first, second) = shared();
    stable_goes_to_newer_releases_only(&first, &second);
}

#[test]
fn a_deck_without_a_commit_is_behind_one_that_has_some() {
    let (dir, first, _) = shared();
    let empty = DeckRepo::init(&dir.path().join("empty")).unwrap();
    let url = format!("file://{}", dir.path().join("remote.git").display());
    Repository::open(empty.root()).unwrap().remote("origin", &url).unwrap();
    std::fs::write(empty.root().join("deck.toml"), "name = \"mine\"\n").unwrap();
    assert!(matches!(empty.fetch(None).unwrap(), Fetched::Dirty(_)), "its file is in the way");
    let status = empty.remote_status(None).unwrap();
    assert_eq!((status.ahead, status.behind), (0, 1));
    assert!(matches!(empty.push(None), Err(RevisionError::Diverged { ahead: 0, behind: 1, .. })));
    assert_eq!(
        std::fs::read_to_string(empty.root().join("deck.toml")).unwrap(),
        "name = \"mine\"\n"
    );
    std::fs::remove_file(empty.root().join("deck.toml")).unwrap();
    assert_eq!(empty.fetch(None).unwrap(), Fetched::Forwarded(1));
    assert_eq!(empty.head().unwrap(), first.head().unwrap());
    assert_eq!(empty.read_service(&chat()).unwrap(), "a = 1\nb = 2\n");
    assert!(
        empty.remote_status(None).unwrap().dirty.iter().all(|file| !file.ends_with("chat.toml"))
    );
}

#[test]
fn a_branch_that_follows_one_of_another_name_is_told() {
    let (_dir, first, _) = shared();
    let mut config = Repository::open(first.root()).unwrap().config().unwrap();
    for (remote, merge, told) in [
        ("origin", "refs/heads/main", None),
        ("origin", "refs/heads/prod", Some("origin/prod")),
        (".", "refs/heads/work", Some("the branch work here")),
    ] {
        config.set_str("branch.main.remote", remote).unwrap();
        config.set_str("branch.main.merge", merge).unwrap();
        let status = first.remote_status(None).unwrap();
        assert_eq!((status.follows.as_deref(), status.remote.as_deref()), (told, Some("origin")));
    }
}

#[test]
fn a_fetch_that_was_cut_off_is_repeated() {
    let (_dir, first, second) = shared();
    let other: ServiceName = "other".parse().unwrap();
    std::fs::write(first.root().join("services/other.toml"), "o = 1\n").unwrap();
    first
        .commit_service(&ReleaseCommit {
            service: &other,
            release: first.next_release().unwrap(),
            subject: "Apply other",
            reason: None,
            author: None,
            deck: None,
            spec: SpecText::WorkTree,
        })
        .unwrap();
    release(&first, "a = 1\nb = 3\n");
    first.push(None).unwrap();
    // Another program holds the index: no file is touched.
    let lock = second.root().join(".git/index.lock");
    std::fs::write(&lock, "").unwrap();
    assert!(matches!(second.fetch(None), Err(RevisionError::Locked { .. })));
    assert_eq!(second.read_service(&chat()).unwrap(), "a = 1\nb = 2\n");
    std::fs::remove_file(&lock).unwrap();
    // As if it had come so far, and no further.
    write(&second, "a = 1\nb = 3\n");
    std::fs::write(second.root().join("services/other.toml"), "o = 1\n").unwrap();
    assert_eq!(second.fetch(None).unwrap(), Fetched::Forwarded(2));
    let status = second.remote_status(None).unwrap();
    assert_eq!((status.behind, status.dirty), (0, Vec::new()));
    let staged = Repository::open(second.root()).unwrap();
    assert!(staged.status_file(Path::new("services/other.toml")).unwrap().is_empty());
}

#[test]
fn what_went_different_ways_is_refused_and_said() {
    let (_dir, first, second) = shared();
    release(&first, "a = 1\nb = 3\n");
    first.push(None).unwrap();
    release(&second, "a = 9\nb = 2\n");
    let error = second.push(None).unwrap_err();
    assert!(matches!(error, RevisionError::Diverged { ahead: 1, behind: 1, .. }), "{error}");
    assert!(gpudeck::base::Hint::hint(&error).unwrap().contains("git rebase origin/main"));
    assert_eq!(second.fetch(None).unwrap(), Fetched::Diverged);
    assert!(second.remote_status(None).unwrap().has_diverged());
    assert_eq!(second.read_service(&chat()).unwrap(), "a = 9\nb = 2\n");

    // An edit in the way of what was fetched is left alone.
    let (_dir, first, second) = shared();
    release(&first, "a = 1\nb = 3\n");
    first.push(None).unwrap();
    write(&second, "a = 5\nb = 2\n");
    assert_eq!(second.fetch(None).unwrap(), Fetched::Dirty(vec!["services/chat.toml".to_owned()]));
    assert_eq!(second.read_service(&chat()).unwrap(), "a = 5\nb = 2\n");
    let status = second.remote_status(None).unwrap();
    assert_eq!((status.ahead, status.behind), (0, 1));

    let alone = tempfile::tempdir().unwrap();
    let alone = DeckRepo::init(&alone.path().join("deck")).unwrap();
    assert!(matches!(alone.push(None), Err(RevisionError::NoRemote { name: None })));
    assert!(matches!(first.push(Some("nobody")), Err(RevisionError::NoRemote { .. })));
}

/// Two decks gave out one number: after the merge everything else travels, and it is said which one it is.
fn a_number_given_out_twice_holds_nothing_else_up(first: &DeckRepo, second: &DeckRepo) {
    let bare = Repository::open(first.root().parent().unwrap().join("remote.git")).unwrap();
    let number = first.next_release().unwrap();
    let theirs = release(first, "a = 1\nb = 3\n");
    first.push(None).unwrap();
    second.fetch(None).unwrap();
    let repo = Repository::open(second.root()).unwrap();
    let collision = format!("refs/gpudeck/releases/{number}");
    let base = repo.find_reference("refs/heads/main").unwrap().peel_to_commit().unwrap();
    if base.id().to_string() == theirs.0 {
        let parent = base.parent(0).unwrap();
        repo.reset(parent.as_object(), git2::ResetType::Hard, None).unwrap();
        repo.find_reference(&collision).unwrap().delete().unwrap();
    }
    let ours = release(second, "a = 9\nb = 2\n");
    assert_eq!(second.release(number).unwrap(), Some(ours.clone()));
    assert_eq!(second.fetch(None).unwrap(), Fetched::Diverged);
    assert_eq!(second.colliding().unwrap(), [number]);

    // Merged by hand, as the hint says.
    let commit = |r: &Revision| repo.find_commit(git2::Oid::from_str(&r.0).unwrap()).unwrap();
    let (mine, other) = (commit(&ours), commit(&theirs));
    let by = git2::Signature::now("ada", "ada@example.org").unwrap();
    let tree = mine.tree().unwrap();
    repo.commit(Some("HEAD"), &by, &by, "Merge", &tree, &[&mine, &other]).unwrap();
    second.set_outcome(&ours, &Outcome::Completed).unwrap();
    let next = release(second, "a = 9\nb = 4\n");
    let error = second.push(None).unwrap_err();
    let (words, hint) = (error.to_string(), gpudeck::base::Hint::hint(&error).unwrap());
    assert_eq!(words, format!("release {number} is another commit at origin"));
    assert!(hint.contains(&format!("git update-ref {collision}")), "{hint}");
    let there = |name: &str| bare.refname_to_id(name).unwrap().to_string();
    assert_eq!(there("refs/heads/main"), next.0);
    let after = ReleaseNumber(number.0 + 1);
    assert_eq!(there(&format!("refs/gpudeck/releases/{after}")), next.0);
    assert_eq!(there(&collision), theirs.0);
    assert!(bare.find_note(Some("refs/notes/gpudeck"), mine.id()).is_ok());
    assert_eq!(second.fetch(None).unwrap(), Fetched::UpToDate);

    // What the hint says ends it.
    repo.reference(&collision, other.id(), true, "by hand").unwrap();
    assert_eq!(second.push(None).unwrap().ahead, 0);
    assert_eq!(second.colliding().unwrap(), []);
    first.fetch(None).unwrap();
    assert_eq!(first.colliding().unwrap(), []);
}

#[test]
fn a_number_given_out_twice_holds_nothing_up() {
    let (_dir, first, second) = shared();
    a_number_given_out_twice_holds_nothing_else_up(&first, &second);
}

fn memory(context: u64) -> gpudeck::model::Observation {
    serde_json::from_value(serde_json::json!({
        "architecture": "LlamaForCausalLM", "weight_bytes": 1, "engine": "vllm", "device": "cpu",
        "tensor": 1, "pipeline": 1, "context": context,
    }))
    .unwrap()
}

/// What each of two decks wrote of a release is kept, here and at the remote, whoever sends it first.
fn notes_are_joined(first: &DeckRepo, second: &DeckRepo) {
    let newest = ReleaseNumber(first.next_release().unwrap().0 - 1);
    let release = first.release(newest).unwrap().unwrap();
    let told = |deck: &DeckRepo| {
        let history = deck.history(&chat(), 1).unwrap();
        (history[0].outcome.clone(), history[0].memory.len())
    };
    first.add_memory(&release, &memory(1)).unwrap();
    first.push(None).unwrap();
    second.fetch(None).unwrap();
    assert_eq!(told(second), (None, 1));
    first.set_outcome(&release, &Outcome::Completed).unwrap();
    first.push(None).unwrap();
    second.fetch(None).unwrap();
    assert_eq!(told(second), (Some(Outcome::Completed), 1), "a note that was known is taken anew");

    // Both write before they have heard of each other.
    let failed = Outcome::Failed { why: "x".to_owned() };
    first.set_outcome(&release, &failed).unwrap();
    first.push(None).unwrap();
    second.add_memory(&release, &memory(2)).unwrap();
    second.push(None).unwrap();
    assert_eq!(told(second), (Some(failed.clone()), 2));
    first.add_memory(&release, &memory(3)).unwrap();
    first.push(None).unwrap();
    assert_eq!(told(first), (Some(failed.clone()), 3));
    second.push(None).unwrap();
    assert_eq!(told(second), (Some(failed.clone()), 3));
    first.fetch(None).unwrap();
    assert_eq!(told(first), (Some(failed), 3));
}

#[test]
fn what_two_decks_note_of_a_release_is_joined() {
    let (_dir, first, second) = shared();
    notes_are_joined(&first, &second);
}

/// Two decks that send at the same moment, again and again, lose nothing.
#[test]
fn notes_sent_at_the_same_moment_are_all_there() {
    let (dir, first, second) = shared();
    let r1 = first.release(ReleaseNumber(1)).unwrap().unwrap();
    drop((first, second));
    let send = |name: &str, from: u64| {
        let (path, r1) = (dir.path().join(name), r1.clone());
        std::thread::spawn(move || {
            let deck = DeckRepo::open(&path).unwrap();
            for n in from..from + 4 {
                deck.add_memory(&r1, &memory(n)).unwrap();
                match deck.share(None) {
                    Ok(_) | Err(RevisionError::Outrun { .. } | RevisionError::Locked { .. }) => {}
                    Err(other) => panic!("{other}"),
                }
            }
        })
    };
    let both = [send("first", 1), send("second", 11)];
    for thread in both {
        thread.join().unwrap();
    }
    for name in ["first", "second", "first"] {
        DeckRepo::open(&dir.path().join(name)).unwrap().push(None).unwrap();
    }
    for name in ["first", "second"] {
        let deck = DeckRepo::open(&dir.path().join(name)).unwrap();
        assert_eq!(deck.history(&chat(), 1).unwrap()[0].memory.len(), 8, "{name}");
    }
}

/// What was stopped is served no more, at the remote and in every deck; a deck that has not heard of it does
/// not bring it back, a newer release does.
fn what_is_stopped_is_not_stable(first: &DeckRepo, second: &DeckRepo) {
    let bare = Repository::open(first.root().parent().unwrap().join("remote.git")).unwrap();
    let there = || bare.refname_to_id("refs/gpudeck/stable/chat").ok();
    let served = release(first, "a = 1\nb = 7\n");
    first.set_stable(&chat(), &served).unwrap();
    first.push(None).unwrap();
    second.fetch(None).unwrap();
    assert_eq!(second.stable(&chat()).unwrap(), Some(served.clone()));

    first.clear_stable(&chat()).unwrap();
    assert_eq!(first.stable(&chat()).unwrap(), None);
    first.fetch(None).unwrap();
    assert_eq!(first.stable(&chat()).unwrap(), None, "the remote does not bring it back");
    first.push(None).unwrap();
    assert_eq!(there(), None);
    second.set_stable(&chat(), &served).unwrap();
    second.push(None).unwrap();
    assert_eq!((second.stable(&chat()).unwrap(), there()), (None, None));

    let again = release(second, "a = 1\nb = 8\n");
    second.set_stable(&chat(), &again).unwrap();
    second.push(None).unwrap();
    first.fetch(None).unwrap();
    assert_eq!(first.stable(&chat()).unwrap(), Some(again.clone()));
    assert_eq!(there().unwrap().to_string(), again.0);
}

#[test]
fn what_is_stopped_is_stable_nowhere() {
    let (_dir, first, second) = shared();
    what_is_stopped_is_not_stable(&first, &second);
}

/// All that is said of a remote, one after another.
fn everything_travels(first: &DeckRepo, second: &DeckRepo) {
    stable_goes_to_newer_releases_only(first, second);
    let r1 = first.release(ReleaseNumber(1)).unwrap().unwrap();
    first.set_outcome(&r1, &Outcome::Completed).unwrap();
    release(first, "a = 1\nb = 3\n");
    assert_eq!(first.push(None).unwrap().ahead, 0);
    assert_eq!(second.fetch(None).unwrap(), Fetched::Forwarded(1));
    assert_eq!(second.history(&chat(), 10).unwrap()[3].outcome, Some(Outcome::Completed));
    notes_are_joined(first, second);
    what_is_stopped_is_not_stable(first, second);
    a_number_given_out_twice_holds_nothing_else_up(first, second);
}

/// A remote that libgit2 does not reach, by way of the user's `git` (its `ext` transport needs no server).
#[test]
fn another_transport_goes_through_the_users_git() {
    if !has_program("git") {
        return;
    }
    let (dir, first, second) = shared();
    let bare = dir.path().join("remote.git");
    for deck in [&first, &second] {
        let repo = Repository::open(deck.root()).unwrap();
        repo.remote_set_url("origin", &format!("ext::git %s {}", bare.display())).unwrap();
        repo.config().unwrap().set_str("protocol.ext.allow", "always").unwrap();
    }
    everything_travels(&first, &second);
    let repo = Repository::open(first.root()).unwrap();
    repo.remote_set_url("origin", "ext::false").unwrap();
    let error = first.push(None).unwrap_err();
    assert!(
        matches!(&error, RevisionError::Git { message } if message.contains("git fetch")),
        "{error}"
    );
}

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
    let port = common::engine_port();
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
    let clone = person.home().join("clone");
    Repository::clone(&format!("file://{}", bare.display()), &clone).unwrap();
    let other = DeckRepo::open(&clone).unwrap();
    let theirs = std::fs::read_to_string(clone.join("deck.toml")).unwrap() + "# theirs\n";
    std::fs::write(clone.join("deck.toml"), &theirs).unwrap();
    let number = other.next_release().unwrap();
    let (subject, author) = ("Apply chat", Some("bob"));
    let commit = ReleaseCommit {
        service: &chat(),
        release: number,
        subject,
        reason: None,
        author,
        deck: None,
        spec: SpecText::WorkTree,
    };
    other.commit_service(&commit).unwrap();
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
    gpudeck("stop chat --yes").expect_success();
    wait_until("the stop", DEADLINE, || gpudeck("status chat").stdout.contains("stopped"));
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
    let clone = person.home().join("clone");
    Repository::clone(&format!("file://{}", bare.display()), &clone).unwrap();
    let other = DeckRepo::open(&clone).unwrap();
    let number = other.next_release().unwrap();
    std::fs::write(clone.join("services/chat.toml"), format!("{SERVICE}replicas = 1\n")).unwrap();
    other
        .commit_service(&ReleaseCommit {
            service: &chat(),
            release: number,
            subject: "Apply chat",
            reason: None,
            author: Some("bob"),
            deck: None,
            spec: SpecText::WorkTree,
        })
        .unwrap();
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

    gpudeck("stop chat --yes").expect_success();
    wait_until("the stop", DEADLINE, || gpudeck("status chat").stdout.contains("stopped"));
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
    gpudeck("stop chat --yes").expect_success();
    wait_until("the stop", DEADLINE, || gpudeck("status chat").stdout.contains("stopped"));
    wait_until("the end of what is stable", DEADLINE, || !stable());
    let ours = Repository::open(person.deck()).unwrap();
    assert!(ours.refname_to_id("refs/gpudeck/stable/chat").is_err());
    gpudeck("controller stop").expect_success();
    traces.expect_none(&person);
}
