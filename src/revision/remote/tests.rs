//! Releases that are made while the remote is asked.

use git2::Oid;

use super::*;
use crate::base::Hint;
use crate::revision::{DeckText, ReleaseCommit, SpecText};

fn release(deck: &DeckRepo, text: &str) -> Oid {
    std::fs::create_dir_all(deck.root().join("services")).unwrap();
    std::fs::write(deck.root().join("services/chat.toml"), text).unwrap();
    let made = deck.commit_service(&ReleaseCommit {
        service: &"chat".parse().unwrap(),
        release: deck.next_release().unwrap(),
        subject: "Apply chat",
        reason: None,
        author: None,
        deck: DeckText::WorkTree,
        spec: SpecText::WorkTree,
    });
    deck.oid(&made.unwrap()).unwrap()
}

#[test]
fn a_release_that_is_committed_during_a_fetch_stays_on_the_branch() {
    let dir = tempfile::tempdir().unwrap();
    let first = DeckRepo::init(&dir.path().join("first")).unwrap();
    std::fs::write(first.root().join("deck.toml"), "name = \"test\"\n").unwrap();
    release(&first, "a = 1\n");
    let bare = dir.path().join("bare");
    git2::Repository::init_bare(&bare).unwrap();
    let url = bare.display().to_string();
    first.repo.remote("origin", &url).unwrap();
    first.push(None).unwrap();
    let second = dir.path().join("second");
    git2::build::RepoBuilder::new().branch("main").clone(&url, &second).unwrap();
    let second = DeckRepo::open(&second).unwrap();
    release(&first, "a = 2\n");
    first.push(None).unwrap();

    // Another program holds the branch: nothing is touched.
    let status = second.look("origin").unwrap();
    assert_eq!((status.ahead, status.behind), (0, 1));
    let lock = second.root().join(".git/refs/heads/main.lock");
    std::fs::write(&lock, "").unwrap();
    let refused = second.forward("origin", "main").unwrap_err();
    assert!(matches!(refused, RevisionError::Locked { .. }), "{refused}");
    let file = second.root().join("services/chat.toml");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "a = 1\n");
    std::fs::remove_file(&lock).unwrap();

    // The controller commits after the two were compared.
    let ours = release(&second, "a = 3\n");
    assert_eq!(second.forward("origin", "main").unwrap(), Fetched::Diverged);
    assert_eq!(second.head_oid().unwrap(), Some(ours));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "a = 3\n");
}

/// A remote may take branches and protect everything else.
#[test]
fn of_what_was_sent_the_part_is_named_that_was_refused() {
    let dir = tempfile::tempdir().unwrap();
    let deck = DeckRepo::init(&dir.path().join("deck")).unwrap();
    std::fs::write(deck.root().join("deck.toml"), "name = \"test\"\n").unwrap();
    release(&deck, "a = 1\n");
    let bare = git2::Repository::init_bare(dir.path().join("bare")).unwrap();
    deck.repo.remote("origin", &bare.path().display().to_string()).unwrap();
    deck.push(None).unwrap();

    let second = release(&deck, "a = 2\n");
    let failed = crate::rollout::Outcome::Failed { why: "no token".to_owned() };
    deck.set_outcome(&crate::base::Revision(second.to_string()), &failed).unwrap();
    let spec = |name: &str| format!("{name}:{name}");
    let [branch, made, notes] =
        ["refs/heads/main", "refs/gpudeck/releases/r2", "refs/notes/gpudeck"].map(spec);
    let all = [branch.clone(), made.clone(), notes];
    let refusal = || deck.partly_sent("origin", "main", &all, "hook declined".to_owned());
    let whole = refusal();
    assert!(matches!(whole, RevisionError::Git { .. }), "nothing of it was taken: {whole}");
    deck.send_these("origin", &[branch, made]).unwrap();
    let partly = refusal();
    assert_eq!(
        partly.to_string(),
        "origin has taken the branch main, release r2 and refused the notes of how releases ended: hook declined"
    );
    assert!(partly.hint().unwrap().contains("what is protected there"));
    assert_eq!(deck.remote_status(None).unwrap().ahead, 0, "the branch is there");
}
