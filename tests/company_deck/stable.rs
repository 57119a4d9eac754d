//! What is stable, as two decks and their remote tell each other.

use git2::Repository;
use gpudeck::base::ReleaseNumber;
use gpudeck::revision::DeckRepo;

use super::{chat, release, shared};

/// The newest release that was ever stable is what is stable, whoever of two operators sends it and however
/// late the other one hears of it.
pub fn stable_goes_to_newer_releases_only(first: &DeckRepo, second: &DeckRepo) {
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

/// What was stopped is served no more, at the remote and in every deck; a deck that has not heard of it does
/// not bring it back, a newer release does.
pub fn what_is_stopped_is_not_stable(first: &DeckRepo, second: &DeckRepo) {
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
