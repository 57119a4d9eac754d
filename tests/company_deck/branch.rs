//! The branch: what travels with it, what is in its way, and two that went different ways.

use std::path::Path;

use git2::Repository;
use gpudeck::base::{ReleaseNumber, ServiceName};
use gpudeck::revision::{DeckRepo, Fetched, RevisionError};
use gpudeck::rollout::Outcome;

use super::{chat, commit, release, shared, write};

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
    commit(&first, &other, "ada");
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
