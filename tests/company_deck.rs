//! The deck as a company shares it: a remote in a directory and one behind the user's `git`, refusal
//! when two went different ways, signed releases, one release whole, blame, and drift on the hosts.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

#[path = "company_deck/branch.rs"]
mod branch;
#[path = "common/mod.rs"]
mod common;
#[path = "company_deck/notes.rs"]
mod notes;
#[path = "company_deck/numbers.rs"]
mod numbers;
#[path = "company_deck/running.rs"]
mod running;
#[path = "company_deck/stable.rs"]
mod stable;
#[path = "company_deck/users_git.rs"]
mod users_git;

use std::time::Duration;

use git2::Repository;
use gpudeck::base::{Revision, ServiceName};
use gpudeck::revision::{DeckRepo, DeckText, ReleaseCommit, SpecText};

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
    commit(deck, &chat(), "ada")
}

/// The service as it lies there, as the next release.
fn commit(deck: &DeckRepo, service: &ServiceName, author: &str) -> Revision {
    deck.commit_service(&ReleaseCommit {
        service,
        release: deck.next_release().unwrap(),
        subject: &format!("Apply {service}"),
        reason: None,
        author: Some(author),
        deck: DeckText::WorkTree,
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
