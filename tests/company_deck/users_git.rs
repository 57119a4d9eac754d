//! A remote that only the user's `git` reaches: all of the same holds there.

use git2::Repository;
use gpudeck::base::ReleaseNumber;
use gpudeck::revision::{DeckRepo, Fetched, RevisionError};
use gpudeck::rollout::Outcome;

use super::{chat, release, shared};
use crate::common::has_program;
use crate::notes::notes_are_joined;
use crate::numbers::a_number_given_out_twice_holds_nothing_else_up;
use crate::stable::{stable_goes_to_newer_releases_only, what_is_stopped_is_not_stable};

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
