//! The deck's remote over SSH and HTTPS, on a machine that has no `git` program.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;
mod ssh_support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use common::git_server::GitServer;
use common::{Finished, Gpudeck, has_program, run};
use git2::Repository;
use gpudeck::revision::{DeckRepo, DeckText, ReleaseCommit, SpecText};
use serde_json::Value;
use ssh_support::{Sshd, lab};

const DEADLINE: Duration = Duration::from_secs(60);

fn bare(path: &Path) -> Repository {
    let mut options = git2::RepositoryInitOptions::new();
    Repository::init_opts(path, options.bare(true).initial_head("main")).unwrap()
}

fn release(person: &Gpudeck, text: &str) {
    let deck = DeckRepo::open(&person.deck()).unwrap();
    fs::create_dir_all(deck.root().join("services")).unwrap();
    fs::write(deck.root().join("services/chat.toml"), text).unwrap();
    let made = deck.commit_service(&ReleaseCommit {
        service: &"chat".parse().unwrap(),
        release: deck.next_release().unwrap(),
        subject: "Apply chat",
        reason: None,
        author: None,
        deck: DeckText::WorkTree,
        spec: SpecText::WorkTree,
    });
    made.unwrap();
}

/// Somebody whose deck has a release and a remote.
fn operator(url: &str) -> Gpudeck {
    let person = Gpudeck::new();
    person.run(["init"], DEADLINE).expect_success();
    Repository::open(person.deck()).unwrap().remote("origin", url).unwrap();
    release(&person, "a = 1\n");
    person
}

/// `gpudeck …` where no program can be found.
fn alone(person: &Gpudeck, words: &str, env: &[(&str, &str)]) -> Finished {
    let mut command = person.command(words.split(' '));
    command.env("PATH", person.scratch()).envs(env.iter().copied());
    run(&mut command, DEADLINE)
}

/// What one sends the other gets, and what they do at once is refused.
fn they_share(
    first: &Gpudeck,
    second: &Gpudeck,
    remote: &Repository,
    url: &str,
    env: &[(&str, &str)],
) {
    alone(first, "deck push", env).expect_success();
    let there = remote.refname_to_id("refs/gpudeck/releases/r1").unwrap();
    assert_eq!(remote.refname_to_id("refs/heads/main").unwrap(), there);
    fs::remove_dir_all(second.deck()).unwrap();
    let cloned = Repository::clone(remote.path().to_str().unwrap(), second.deck()).unwrap();
    cloned.remote_set_url("origin", url).unwrap();
    alone(second, "deck fetch", env).expect_success();
    assert_eq!(cloned.refname_to_id("refs/gpudeck/releases/r1").unwrap(), there);

    release(first, "a = 2\n");
    alone(first, "deck push", env).expect_success();
    let done = alone(second, "deck fetch --output json", env).expect_success();
    let view: Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!((&view["ahead"], &view["behind"]), (&0.into(), &0.into()), "{view}");
    let text = fs::read_to_string(second.deck().join("services/chat.toml")).unwrap();
    assert_eq!(text, "a = 2\n");

    release(first, "a = 3\n");
    release(second, "a = 4\n");
    alone(second, "deck push", env).expect_success();
    let refused = alone(first, "deck push", env);
    assert_eq!(refused.code(), Some(5), "{refused:?}");
    assert!(refused.stderr.contains("which has 1 of its own"), "{refused:?}");
}

#[test]
fn over_ssh_no_git_program_is_needed() {
    if !lab() || !has_program("git") {
        return;
    }
    let server = Sshd::start();
    let remote = bare(&server.path("it's deck.git"));
    let url = format!(
        "ssh://root@127.0.0.1:{}{}/it's%20deck.git",
        server.port,
        server.dir.path().display()
    );
    let (first, second) = (operator(&url), Gpudeck::new());

    // Nobody can be asked, and nothing is trusted unasked.
    let refused = alone(&first, "deck push", &[]);
    assert_eq!(refused.code(), Some(1), "{refused:?}");
    assert!(
        refused.stderr.contains("unknown host key") && refused.stderr.contains("SHA256:"),
        "{refused:?}"
    );
    for person in [&first, &second] {
        let ssh = person.home().join(".ssh");
        fs::create_dir(&ssh).unwrap();
        fs::write(ssh.join("known_hosts"), server.known_hosts_line("ed25519")).unwrap();
        fs::copy(server.user_key(), ssh.join("id_ed25519")).unwrap();
        fs::set_permissions(ssh.join("id_ed25519"), fs::Permissions::from_mode(0o600)).unwrap();
    }
    they_share(&first, &second, &remote, &url, &[]);

    // What the other side says is told.
    let repo = Repository::open(first.deck()).unwrap();
    let scp = format!("[127.0.0.1:{}]:/nowhere.git", server.port);
    repo.remote_set_url("origin", &format!("root@{scp}")).unwrap();
    let failed = alone(&first, "deck push", &[]);
    assert!(failed.stderr.contains("/nowhere.git"), "{failed:?}");
    assert!(failed.stderr.contains("does not appear to be a git repository"), "{failed:?}");

    // Who has told Git of another program for SSH has it run by Git.
    let other = alone(&first, "deck push", &[("GIT_SSH_COMMAND", "false")]);
    assert!(other.stderr.contains("needs the `git` program"), "{other:?}");
}

#[test]
fn over_https_no_git_program_is_needed() {
    if !has_program("git") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let remote = bare(&dir.path().join("decks/one.git"));
    let server = GitServer::start(&dir.path().join("decks"), Some("ann:s3 cret"), Some(dir.path()));
    let plain = format!("https://localhost:{}/one.git/", server.port);
    let (first, second) = (operator(&plain), operator(&plain));
    let trusted = server.certificate.as_ref().unwrap().to_str().unwrap();
    let env = [("SSL_CERT_FILE", trusted)];

    let refused = alone(&first, "deck push", &[("SSL_CERT_FILE", "/dev/null")]);
    assert!(refused.stderr.contains("SSL_CERT_FILE"), "{refused:?}");
    let refused = alone(&first, "deck push", &env);
    assert!(refused.stderr.contains("401") && refused.stderr.contains("~/.netrc"), "{refused:?}");

    // One has the password in the address, the other in a file.
    let with_password = format!("https://ann:s3%20cret@localhost:{}/old/one.git", server.port);
    let repo = Repository::open(first.deck()).unwrap();
    repo.remote_set_url("origin", &with_password).unwrap();
    let netrc = second.home().join(".netrc");
    fs::write(&netrc, "machine localhost login ann password wrong\n").unwrap();
    let refused = alone(&second, "deck fetch", &env);
    assert!(refused.stderr.contains("chmod 600"), "{refused:?}");
    fs::set_permissions(&netrc, fs::Permissions::from_mode(0o600)).unwrap();
    let refused = alone(&second, "deck fetch", &env);
    assert!(refused.stderr.contains("401"), "{refused:?}");
    fs::write(&netrc, "machine localhost login ann password \"s3\"\n").unwrap();
    they_share(&first, &second, &remote, &with_password, &env);
    let shown = alone(&first, "deck status", &env);
    assert!(!shown.stdout.contains("cret") && !shown.stdout.contains("ann"), "{shown:?}");

    // Who is sent elsewhere tells nobody there what this server may know; who wants no login is told none.
    let other = tempfile::tempdir().unwrap();
    bare(&other.path().join("one.git"));
    let elsewhere = GitServer::start(other.path(), None, Some(other.path()));
    let both = other.path().join("both.pem");
    let pems =
        [&server, &elsewhere].map(|s| fs::read_to_string(s.certificate.as_ref().unwrap()).unwrap());
    fs::write(&both, pems.concat()).unwrap();
    let url =
        format!("https://ann:s3%20cret@localhost:{}/away/{}/one.git", server.port, elsewhere.port);
    Repository::open(first.deck()).unwrap().remote_set_url("origin", &url).unwrap();
    let before = server.told.load(Ordering::Relaxed);
    alone(&first, "deck fetch", &[("SSL_CERT_FILE", both.to_str().unwrap())]).expect_success();
    assert!(server.told.load(Ordering::Relaxed) > before);
    assert_eq!(elsewhere.told.load(Ordering::Relaxed), 0);
}

#[test]
fn a_path_with_a_colon_in_it_is_a_path() {
    let dir = tempfile::tempdir().unwrap();
    let remote = bare(&dir.path().join("a:b %41.git"));
    let person = operator(remote.path().to_str().unwrap());
    alone(&person, "deck push", &[]).expect_success();
    let there = remote.refname_to_id("refs/gpudeck/releases/r1").unwrap();
    let repo = Repository::open(person.deck()).unwrap();
    assert_eq!(repo.refname_to_id("refs/remotes/origin/main").unwrap(), there);
}
