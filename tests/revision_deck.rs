//! The deck's repository: releases as commits, history, outcomes, and every way it can be unusable.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs
)]

use std::fs;
use std::path::Path;

use git2::Repository;
use gpudeck::base::{Hint, ReleaseNumber, Revision, ServiceName};
use gpudeck::revision::{DeckRepo, DeckText, ReleaseCommit, RevisionError, SpecText};
use gpudeck::rollout::Outcome;
use tempfile::TempDir;

fn chat() -> ServiceName {
    "chat".parse().unwrap()
}

fn deck() -> (TempDir, DeckRepo) {
    let dir = tempfile::tempdir().unwrap();
    let deck = DeckRepo::init(dir.path()).unwrap();
    fs::write(dir.path().join("deck.toml"), "name = \"test\"\n").unwrap();
    fs::create_dir(dir.path().join("services")).unwrap();
    write(dir.path(), "chat", "model = \"/a\"\n");
    (dir, deck)
}

fn write(dir: &Path, service: &str, text: &str) {
    fs::write(dir.join(format!("services/{service}.toml")), text).unwrap();
}

fn commit(deck: &DeckRepo, service: &ServiceName, reason: Option<&str>) -> Revision {
    let release = deck.next_release().unwrap();
    deck.commit_service(&ReleaseCommit {
        service,
        release,
        subject: "Apply it",
        reason,
        author: Some("ada"),
        deck: DeckText::WorkTree,
        spec: SpecText::WorkTree,
    })
    .unwrap()
}

fn raw(dir: &Path) -> Repository {
    Repository::open(dir).unwrap()
}

#[test]
fn every_release_is_a_commit_of_just_its_files() {
    let (dir, deck) = deck();
    write(dir.path(), "other", "model = \"/o\"\n");
    fs::write(dir.path().join("notes.txt"), "staged by hand").unwrap();
    let repo = raw(dir.path());
    let mut index = repo.index().unwrap();
    index.add_path(Path::new("notes.txt")).unwrap();
    index.write().unwrap();

    assert_eq!(deck.head().unwrap(), None);
    assert_eq!(deck.next_release().unwrap(), ReleaseNumber(1));
    assert!(deck.is_dirty(&chat()).unwrap());
    let first = commit(&deck, &chat(), None);
    assert!(!deck.is_dirty(&chat()).unwrap());
    assert!(deck.is_dirty(&"other".parse().unwrap()).unwrap());
    let tree = repo.head().unwrap().peel_to_tree().unwrap();
    let names: Vec<_> = tree.iter().map(|e| e.name().unwrap().to_owned()).collect();
    assert_eq!(names, ["deck.toml", "services"]);
    assert!(repo.status_file(Path::new("notes.txt")).unwrap().is_index_new(), "still staged");
    assert!(repo.status_file(Path::new("services/chat.toml")).unwrap().is_empty());

    write(dir.path(), "chat", "model = \"/b\"\n");
    let second = commit(&deck, &chat(), Some("b is\nbetter\u{1b}[31m\n\nGpudeck-Release: r99"));
    let third = commit(&deck, &chat(), None);
    assert_ne!(second, third, "an unchanged spec is a release of its own");
    commit(&deck, &"other".parse().unwrap(), None);

    let history = deck.history(&chat(), 10).unwrap();
    let numbers: Vec<u64> = history.iter().map(|e| e.release.0).collect();
    assert_eq!(numbers, [3, 2, 1]);
    assert_eq!(history[1].reason.as_deref(), Some("b is better  Gpudeck-Release: r99"));
    assert_eq!(history[1].author, "ada");
    assert_eq!(history[1].subject, "Apply it");
    assert_eq!(history[1].revision, second);
    assert!(history[1].time.0 > 1_600_000_000_000);
    assert_eq!(deck.history(&chat(), 2).unwrap().len(), 2);
    assert_eq!(deck.spec_at(&first, &chat()).unwrap(), "model = \"/a\"\n");
    assert_eq!(deck.spec_at(&third, &chat()).unwrap(), "model = \"/b\"\n");
    assert_eq!(deck.deck_at(&third).unwrap(), "name = \"test\"\n");
    let diff = deck.diff(&first, &third, &chat()).unwrap();
    assert!(diff.contains("-model = \"/a\"\n+model = \"/b\"\n"), "{diff}");
    assert_eq!(deck.next_release().unwrap(), ReleaseNumber(5));
    assert_eq!(deck.release(ReleaseNumber(2)).unwrap(), Some(second));
    assert_eq!(deck.release(ReleaseNumber(50)).unwrap(), None);
}

#[test]
fn outcomes_and_the_stable_revision_are_kept_beside_the_branch() {
    let (_dir, deck) = deck();
    let first = commit(&deck, &chat(), None);
    let second = commit(&deck, &chat(), None);
    assert_eq!(deck.stable(&chat()).unwrap(), None);
    deck.set_stable(&chat(), &first).unwrap();
    deck.set_stable(&chat(), &second).unwrap();
    assert_eq!(deck.stable(&chat()).unwrap(), Some(second.clone()));
    let dotted: ServiceName = "a..b.lock".parse().unwrap();
    deck.set_stable(&dotted, &first).unwrap();
    assert_eq!(deck.stable(&dotted).unwrap(), Some(first.clone()));

    let back = Outcome::RolledBack { why: "error rate 12 %".to_owned() };
    deck.set_outcome(&first, &Outcome::Completed).unwrap();
    deck.set_outcome(&second, &Outcome::Completed).unwrap();
    deck.set_outcome(&second, &back).unwrap();
    let history = deck.history(&chat(), 10).unwrap();
    assert_eq!(history[0].outcome, Some(back));
    assert_eq!(history[1].outcome, Some(Outcome::Completed));
}

#[test]
fn a_note_holds_the_outcome_and_what_engines_logged_of_their_memory() {
    let (_dir, deck) = deck();
    let seen = |n: u64| gpudeck::model::Observation {
        architecture: "LlamaForCausalLM".to_owned(),
        weight_bytes: gpudeck::base::Bytes(n),
        place: gpudeck::model::observation::Where::default(),
        tensor: 1,
        pipeline: 1,
        data: 1,
        expert: 1,
        shape: None,
        context: 4_096,
        requests: None,
        batch: None,
        eager: false,
        share: None,
        cache_bits: None,
        weights: None,
        cache: None,
        tokens: None,
        activation: None,
        graphs: None,
        besides: None,
        refused: false,
    };
    let at = commit(&deck, &chat(), None);
    let entry = || deck.history(&chat(), 10).unwrap().remove(0);
    deck.add_memory(&at, &seen(1)).unwrap();
    assert_eq!((entry().outcome, entry().memory), (None, vec![seen(1)]));
    deck.set_outcome(&at, &Outcome::Completed).unwrap();
    deck.add_memory(&at, &seen(2)).unwrap();
    deck.add_memory(&at, &seen(2)).unwrap();
    assert_eq!(entry().outcome, Some(Outcome::Completed));
    assert_eq!(entry().memory, [seen(1), seen(2)], "the same once more is not kept");
    for n in 3..20 {
        deck.add_memory(&at, &seen(n)).unwrap();
    }
    let kept: Vec<u64> = entry().memory.iter().map(|o| o.weight_bytes.0).collect();
    assert_eq!(kept, (12..20).collect::<Vec<u64>>(), "the newest eight");
}

#[test]
fn a_clone_counts_on_from_the_commits_alone() {
    let (dir, deck) = deck();
    commit(&deck, &chat(), None);
    let second = commit(&deck, &chat(), None);
    let into = tempfile::tempdir().unwrap();
    Repository::clone(dir.path().to_str().unwrap(), into.path()).unwrap();
    let clone = DeckRepo::open(into.path()).unwrap();
    assert_eq!(clone.next_release().unwrap(), ReleaseNumber(3));
    assert_eq!(clone.release(ReleaseNumber(2)).unwrap(), Some(second));
    assert_eq!(clone.history(&chat(), 10).unwrap().len(), 2);
}

#[test]
fn a_repeated_commit_is_the_same_and_a_reused_number_is_refused() {
    let (dir, deck) = deck();
    let service = chat();
    let again = ReleaseCommit {
        service: &service,
        release: ReleaseNumber(1),
        subject: "Apply chat",
        reason: None,
        author: None,
        deck: DeckText::WorkTree,
        spec: SpecText::Read("model = \"/a\"\n"),
    };
    let first = deck.commit_service(&again).unwrap();
    assert_eq!(deck.commit_service(&again).unwrap(), first);
    assert_eq!(deck.head().unwrap(), Some(first.clone()));
    write(dir.path(), "chat", "model = \"/b\"\n");
    assert!(matches!(deck.commit_service(&again), Err(RevisionError::Changed { .. })));
    // A crash between the commit and its reference: the trailer is found.
    raw(dir.path()).find_reference("refs/gpudeck/releases/r1").unwrap().delete().unwrap();
    write(dir.path(), "chat", "model = \"/a\"\n");
    assert_eq!(deck.commit_service(&again).unwrap(), first);
    write(dir.path(), "chat", "model = \"/b\"\n");
    let other = ReleaseCommit { spec: SpecText::WorkTree, ..again };
    assert!(matches!(
        deck.commit_service(&other),
        Err(RevisionError::Taken { release: ReleaseNumber(1) })
    ));
}

#[test]
fn a_number_is_given_out_before_the_branch_moves() {
    let (dir, deck) = deck();
    let service = chat();
    let first = commit(&deck, &service, None);
    let release = ReleaseCommit {
        service: &service,
        release: ReleaseNumber(2),
        subject: "Apply chat",
        reason: None,
        author: None,
        deck: DeckText::WorkTree,
        spec: SpecText::WorkTree,
    };
    // The number cannot be written: nothing has happened.
    let lock = dir.path().join(".git/refs/gpudeck/releases/r2.lock");
    fs::write(&lock, "").unwrap();
    assert!(matches!(deck.commit_service(&release), Err(RevisionError::Locked { .. })));
    assert_eq!(deck.head().unwrap(), Some(first.clone()));
    fs::remove_file(&lock).unwrap();
    // The branch cannot be moved: the number is free again.
    let lock = dir.path().join(".git/refs/heads/main.lock");
    fs::write(&lock, "").unwrap();
    assert!(matches!(deck.commit_service(&release), Err(RevisionError::Locked { .. })));
    assert_eq!(deck.head().unwrap(), Some(first.clone()));
    assert!(raw(dir.path()).find_reference("refs/gpudeck/releases/r2").is_err());
    fs::remove_file(&lock).unwrap();
    let second = deck.commit_service(&release).unwrap();
    assert_eq!(deck.head().unwrap(), Some(second.clone()));

    // A crash between the two: repeated, the branch follows.
    let repo = raw(dir.path());
    let oid = git2::Oid::from_str(&first.0).unwrap();
    repo.reference("refs/heads/main", oid, true, "as before").unwrap();
    assert_eq!(deck.commit_service(&release).unwrap(), second);
    assert_eq!(deck.head().unwrap(), Some(second));
}

#[test]
fn the_author_is_gits_or_the_unix_user() {
    let (dir, deck) = deck();
    let mut config = raw(dir.path()).config().unwrap();
    config.set_str("user.name", "Grace").unwrap();
    config.set_str("user.email", "grace@example.org").unwrap();
    let service = chat();
    let release = ReleaseCommit {
        service: &service,
        release: ReleaseNumber(1),
        subject: "Apply chat",
        reason: None,
        author: None,
        deck: DeckText::WorkTree,
        spec: SpecText::WorkTree,
    };
    deck.commit_service(&release).unwrap();
    commit(&deck, &service, None);
    let history = deck.history(&service, 10).unwrap();
    assert_eq!(history[1].author, "Grace");
    assert_eq!(history[0].author, "ada");
    let head = raw(dir.path());
    let head = head.head().unwrap().peel_to_commit().unwrap();
    assert_eq!(head.committer().name(), Ok("Grace"));
    assert!(head.author().email().unwrap().starts_with("ada@"));
}

#[test]
fn reads_specs_and_names_those_it_cannot_read() {
    let (dir, deck) = deck();
    let services = dir.path().join("services");
    fs::write(services.join(".chat.toml.swp"), "x").unwrap();
    fs::write(services.join("chat.toml~"), "x").unwrap();
    fs::write(services.join("bad name.toml"), "x").unwrap();
    fs::write(services.join("binary.toml"), [0xff, 0xfe]).unwrap();
    fs::write(services.join("huge.toml"), vec![b'#'; (1 << 20) + 1]).unwrap();
    fs::create_dir(services.join("folder.toml")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", services.join("link.toml")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        services.join("pipe.toml"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    let files = deck.read().unwrap();
    assert_eq!(files.deck, "name = \"test\"\n");
    assert_eq!(files.services.keys().map(ServiceName::as_str).collect::<Vec<_>>(), ["chat"]);
    let mut troubles: Vec<String> = files.troubles.iter().map(ToString::to_string).collect();
    troubles.sort();
    assert_eq!(troubles.len(), 6, "{troubles:#?}");
    for (trouble, word) in troubles.iter().zip([
        "bad name",
        "not UTF-8",
        "not a plain file",
        "longer than",
        "symbolic link",
        "not a plain file",
    ]) {
        assert!(trouble.contains(word), "{trouble}");
    }
    assert!(files.troubles.iter().all(|t| t.hint().is_some()));

    fs::rename(&services, dir.path().join("elsewhere")).unwrap();
    assert_eq!(deck.read().unwrap().services.len(), 0);
    std::os::unix::fs::symlink("elsewhere", &services).unwrap();
    assert!(deck.read().is_err());
    assert!(deck.read_service(&chat()).is_err());
    fs::remove_file(dir.path().join("deck.toml")).unwrap();
    let missing = deck.read().unwrap_err();
    assert_eq!(missing, RevisionError::NoFile { file: "deck.toml".to_owned() });
    assert!(missing.hint().unwrap().contains("gpudeck init"));
}

#[test]
fn init_twice_is_once() {
    let (dir, _) = deck();
    fs::write(dir.path().join(".gitignore"), "*.bak").unwrap();
    DeckRepo::init(dir.path()).unwrap();
    DeckRepo::init(dir.path()).unwrap();
    assert_eq!(fs::read_to_string(dir.path().join(".gitignore")).unwrap(), "*.bak\n/.gpudeck/\n");
    let head = raw(dir.path());
    let head = head.find_reference("HEAD").unwrap();
    assert_eq!(head.symbolic_target(), Ok(Some("refs/heads/main")));
}

fn refused(deck: &DeckRepo) -> RevisionError {
    let service = chat();
    let error = deck
        .commit_service(&ReleaseCommit {
            service: &service,
            release: ReleaseNumber(40),
            subject: "Apply chat",
            reason: None,
            author: None,
            deck: DeckText::WorkTree,
            spec: SpecText::WorkTree,
        })
        .unwrap_err();
    assert!(error.hint().is_some(), "{error}");
    error
}

#[test]
fn a_repository_that_cannot_take_a_commit_says_why() {
    let (dir, deck) = deck();
    let first = commit(&deck, &chat(), None);
    let repo = raw(dir.path());

    let lock = dir.path().join(".git/refs/heads/main.lock");
    fs::write(&lock, "").unwrap();
    assert!(matches!(refused(&deck), RevisionError::Locked { .. }));
    fs::remove_file(&lock).unwrap();

    fs::write(dir.path().join(".git/MERGE_HEAD"), format!("{}\n", first.0)).unwrap();
    assert_eq!(refused(&deck), RevisionError::Busy { what: "merge".to_owned() });
    fs::remove_file(dir.path().join(".git/MERGE_HEAD")).unwrap();

    repo.set_head_detached(git2::Oid::from_str(&first.0).unwrap()).unwrap();
    assert_eq!(refused(&deck), RevisionError::Detached);
    assert_eq!(deck.history(&chat(), 9).unwrap().len(), 1, "reading goes on");
    repo.set_head("refs/heads/main").unwrap();

    fs::remove_file(dir.path().join("services/chat.toml")).unwrap();
    assert!(matches!(refused(&deck), RevisionError::NoFile { .. }));
    assert_eq!(deck.head().unwrap(), Some(first), "nothing was committed");
    assert_eq!(deck.next_release().unwrap(), ReleaseNumber(2));
}

#[test]
fn a_held_index_does_not_undo_the_commit_and_follows_later() {
    let (dir, deck) = deck();
    commit(&deck, &chat(), None);
    let lock = dir.path().join(".git/index.lock");
    fs::write(&lock, "").unwrap();
    write(dir.path(), "chat", "model = \"/b\"\n");
    let second = commit(&deck, &chat(), None);
    assert_eq!(deck.head().unwrap(), Some(second));
    assert!(matches!(deck.heal_index(), Err(RevisionError::Locked { .. })));
    fs::remove_file(&lock).unwrap();
    let status = |file: &str| raw(dir.path()).status_file(Path::new(file)).unwrap();
    assert!(status("services/chat.toml").is_index_modified(), "a commit would take it back");
    assert_eq!(deck.heal_index().unwrap(), ["services/chat.toml"]);
    assert!(status("services/chat.toml").is_empty());
    assert!(deck.heal_index().unwrap().is_empty());

    // What a person has staged is left alone: something new, and an older text on purpose.
    for text in ["model = \"/c\"\n", "model = \"/a\"\n"] {
        write(dir.path(), "chat", text);
        let repo = raw(dir.path());
        let mut index = repo.index().unwrap();
        index.add_path(Path::new("services/chat.toml")).unwrap();
        index.write().unwrap();
        assert!(deck.heal_index().unwrap().is_empty(), "{text}");
    }
}

#[test]
fn an_index_that_is_not_read_is_refused_before_anything_is_committed() {
    let (dir, deck) = deck();
    let first = commit(&deck, &chat(), None);
    let path = dir.path().join(".git/index");
    // A mandatory extension that libgit2 does not know, as of a split or a sparse index.
    let whole = fs::read(&path).unwrap();
    let mut bytes = whole[..whole.len() - 20].to_vec();
    bytes.extend(b"link\0\0\0\0");
    bytes.extend([0; 20]);
    fs::write(&path, &bytes).unwrap();
    let error = refused(&deck);
    assert!(matches!(error, RevisionError::Index { .. }), "{error}");
    assert!(error.hint().unwrap().contains("--no-split-index"));
    assert_eq!(deck.head().unwrap(), Some(first));
    assert_eq!(deck.next_release().unwrap(), ReleaseNumber(2));
    fs::write(&path, whole).unwrap();
    commit(&deck, &chat(), None);
}

#[test]
fn modes_stay_and_what_is_committed_is_what_the_index_says() {
    use std::os::unix::fs::PermissionsExt;
    let (dir, deck) = deck();
    let repo = raw(dir.path());
    repo.config().unwrap().set_str("core.autocrlf", "input").unwrap();
    let file = dir.path().join("services/chat.toml");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    let mut index = repo.index().unwrap();
    index.add_path(Path::new("services/chat.toml")).unwrap();
    index.write().unwrap();
    let tree = repo.find_tree(index.write_tree().unwrap()).unwrap();
    let by = git2::Signature::now("ada", "ada@m1").unwrap();
    repo.commit(Some("HEAD"), &by, &by, "by hand", &tree, &[]).unwrap();

    write(dir.path(), "chat", "model = \"/b\"\r\n");
    let made = commit(&deck, &chat(), None);
    let oid = git2::Oid::from_str(&made.0).unwrap();
    let tree = repo.find_commit(oid).unwrap().tree().unwrap();
    let committed = tree.get_path(Path::new("services/chat.toml")).unwrap();
    assert_eq!(committed.filemode(), 0o100_755);
    let index = raw(dir.path()).index().unwrap();
    let staged = index.get_path(Path::new("services/chat.toml"), 0).unwrap();
    assert_eq!((staged.id, staged.mode), (committed.id(), 0o100_755));
}

#[test]
fn a_file_that_goes_through_a_filter_is_not_committed() {
    let (dir, deck) = deck();
    fs::write(dir.path().join(".gitattributes"), "services/* filter=git-crypt\n").unwrap();
    let error = refused(&deck);
    assert!(matches!(&error, RevisionError::Filtered { filter, .. } if filter == "git-crypt"));
    assert_eq!(deck.head().unwrap(), None);
    fs::write(
        dir.path().join(".gitattributes"),
        "services/* filter=git-crypt\nservices/chat.toml !filter\n",
    )
    .unwrap();
    commit(&deck, &chat(), None);
}

#[test]
fn what_is_no_deck_is_told_with_the_next_step() {
    let dir = tempfile::tempdir().unwrap();
    let error = |path: &Path| {
        let error = DeckRepo::open(path).err().unwrap();
        assert!(error.hint().is_some(), "{error}");
        error
    };
    let plain = dir.path().join("plain");
    fs::create_dir(&plain).unwrap();
    assert!(matches!(error(&plain), RevisionError::NotARepository { inside: None, .. }));
    assert!(matches!(error(&dir.path().join("none")), RevisionError::NotARepository { .. }));
    let outer = dir.path().join("outer");
    DeckRepo::init(&outer).unwrap();
    fs::create_dir(outer.join("deck")).unwrap();
    let inner = error(&outer.join("deck"));
    assert!(inner.hint().unwrap().contains("outer"), "{inner:?}");
    let bare = dir.path().join("bare");
    Repository::init_bare(&bare).unwrap();
    assert!(matches!(error(&bare), RevisionError::Bare { .. }));

    let deck = DeckRepo::init(&dir.path().join("deck")).unwrap();
    for wrong in ["", "zz", "0123", &"0".repeat(40), "../../etc/passwd"] {
        let error = deck.spec_at(&Revision(wrong.to_owned()), &chat()).unwrap_err();
        assert!(matches!(error, RevisionError::NotFound { .. }), "{error}");
    }
}
