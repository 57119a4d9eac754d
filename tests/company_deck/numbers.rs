//! A release's number that two decks gave out.

use git2::Repository;
use gpudeck::base::{ReleaseNumber, Revision};
use gpudeck::revision::{DeckRepo, Fetched};
use gpudeck::rollout::Outcome;

use super::{release, shared};

/// Two decks gave out one number: after the merge everything else travels, and it is said which one it is.
pub fn a_number_given_out_twice_holds_nothing_else_up(first: &DeckRepo, second: &DeckRepo) {
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
