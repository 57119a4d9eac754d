//! Host keys: asked about, changed, revoked, one of several.

use std::fs;
use std::path::Path;

use gpudeck::base::Hint;
use gpudeck::ssh::{ConfigFiles, ConnectOptions, NoQuestions, SshError};

use super::{Person, options, target, try_connect};
use crate::ssh_support::{Sshd, keygen, lab, tool};

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_host_key_is_asked_about_and_written_down() {
    if !lab() {
        return;
    }
    let server = Sshd::start();
    let known = server.path("new/known_hosts");
    let target = target(&server, &known);
    let options = options(server.dir.path());

    let error = try_connect(&target, &options, &NoQuestions).await.err().unwrap();
    assert!(matches!(error, SshError::HostKeyUnknown { .. }), "{error}");
    assert!(error.hint().unwrap().contains("ssh-keyscan"));

    // Somebody who does not answer has not said no: he is asked again.
    let error = try_connect(&target, &options, &Person::default()).await.err().unwrap();
    assert!(matches!(error, SshError::HostKeyUnknown { .. }), "{error}");
    assert!(error.needs_a_person() && !error.is_rejected());

    let refusing = Person { trusts: Some(false), ..Person::default() };
    let error = try_connect(&target, &options, &refusing).await.err().unwrap();
    assert!(matches!(error, SshError::HostKeyRejected { .. }), "{error}");
    assert!(!known.exists(), "a rejected key was written down");

    let person = Person::trusting();
    try_connect(&target, &options, &person).await.unwrap();
    let print = tool("ssh-keygen", &["-lf", server.path("host_ed25519.pub").to_str().unwrap()]);
    let asked = person.asked.lock().unwrap()[0].clone();
    assert!(asked.contains(print.split(' ').nth(1).unwrap()), "{asked} is not of {print}");

    // Known now, to us and to OpenSSH.
    try_connect(&target, &options, &NoQuestions).await.unwrap();
    let name = format!("[127.0.0.1]:{}", server.port);
    tool("ssh-keygen", &["-F", &name, "-f", known.to_str().unwrap()]);

    // Also when OpenSSH has hashed the names.
    tool("ssh-keygen", &["-q", "-H", "-f", known.to_str().unwrap()]);
    assert!(fs::read_to_string(&known).unwrap().starts_with("|1|"));
    try_connect(&target, &options, &NoQuestions).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_host_key_is_refused_and_the_mend_works() {
    if !lab() {
        return;
    }
    let server = Sshd::start();
    keygen(&server.path("host_old"), "ed25519", "");
    let known = server.known_hosts("old");
    let target = target(&server, &known);
    let options = options(server.dir.path());
    let person = Person::trusting();
    let error = try_connect(&target, &options, &person).await.err().unwrap();
    assert!(matches!(error, SshError::HostKeyChanged { line: 1, .. }), "{error}");
    assert_eq!(person.asked(), 0, "a changed key was asked about");
    let hint = error.hint().unwrap();
    let command = hint.split('`').nth(1).unwrap();
    assert!(command.starts_with("ssh-keygen -R "), "{hint}");
    tool("sh", &["-c", command]);
    try_connect(&target, &options, &person).await.unwrap();
    assert_eq!(person.asked(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_host_key_is_refused() {
    if !lab() {
        return;
    }
    let server = Sshd::start();
    let known = server.known_hosts("ed25519");
    let line = server.known_hosts_line("ed25519");
    let key = line.split_once(' ').unwrap().1;
    fs::write(&known, format!("{line}@revoked * {key}")).unwrap();
    let error = try_connect(&target(&server, &known), &options(server.dir.path()), &NoQuestions)
        .await
        .err()
        .unwrap();
    assert!(matches!(error, SshError::HostKeyRevoked { line: 2, .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_host_keys_the_known_one_is_asked_for() {
    if !lab() {
        return;
    }
    let server = Sshd::with_host_keys(&["ed25519", "ecdsa", "rsa"]);
    for kind in ["rsa", "ecdsa", "ed25519"] {
        let known = server.known_hosts(kind);
        let before = fs::read_to_string(&known).unwrap();
        for value in ["yes", "ask", "accept-new"] {
            let mut options = options(server.dir.path());
            strict(&mut options, value);
            try_connect(&target(&server, &known), &options, &NoQuestions)
                .await
                .unwrap_or_else(|error| panic!("{kind}, {value}: {error}"));
        }
        assert_eq!(fs::read_to_string(&known).unwrap(), before, "{kind}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_has_one_key_revoked_shows_another() {
    if !lab() {
        return;
    }
    let server = Sshd::with_host_keys(&["ed25519", "rsa"]);
    let (revoked, good) = (server.known_hosts_line("ed25519"), server.known_hosts_line("rsa"));
    let known = server.known_hosts("ed25519");
    for lines in [format!("{revoked}{good}@revoked {revoked}"), format!("@revoked {revoked}{good}")]
    {
        fs::write(&known, lines).unwrap();
        let target = target(&server, &known);
        try_connect(&target, &options(server.dir.path()), &NoQuestions).await.unwrap();
    }
}

/// The configuration that says how strictly host keys are checked.
fn strict(options: &mut ConnectOptions, value: &str) {
    let text = format!("Host *\n StrictHostKeyChecking {value}\n");
    options.config = ConfigFiles::Text(text.as_str().into());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_host_key_of_another_kind_is_refused_whatever_is_asked_for() {
    if !lab() {
        return;
    }
    let server = Sshd::start();
    keygen(&server.path("host_old"), "rsa", "");
    let known = server.known_hosts("old");
    let before = fs::read_to_string(&known).unwrap();
    let target = target(&server, &known);
    for value in ["yes", "ask", "accept-new", "no"] {
        let mut options = options(server.dir.path());
        strict(&mut options, value);
        let person = Person::trusting();
        let error = try_connect(&target, &options, &person).await.err().expect(value);
        assert!(matches!(error, SshError::HostKeyChanged { line: 1, .. }), "{value}: {error}");
        let words = error.to_string();
        assert!(words.contains("ssh-ed25519 ") && words.contains("ssh-rsa "), "{words}");
        assert_eq!(person.asked(), 0, "{value}: a changed key was asked about");
        assert_eq!(fs::read_to_string(&known).unwrap(), before, "{value}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_revoked_for_a_name_is_revoked_on_all_its_ports() {
    if !lab() {
        return;
    }
    let server = Sshd::start();
    let known = server.known_hosts("ed25519");
    let line = server.known_hosts_line("ed25519");
    let key = line.split_once(' ').unwrap().1;
    for before in ["", &line] {
        fs::write(&known, format!("{before}@revoked 127.0.0.1 {key}")).unwrap();
        let mut options = options(server.dir.path());
        strict(&mut options, "accept-new");
        let error =
            try_connect(&target(&server, &known), &options, &NoQuestions).await.err().unwrap();
        assert!(matches!(error, SshError::HostKeyRevoked { .. }), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_known_hosts_that_is_too_long_to_be_read_whole_is_refused() {
    if !lab() {
        return;
    }
    let server = Sshd::start();
    let known = server.known_hosts("ed25519");
    let line = server.known_hosts_line("ed25519");
    let key = line.split_once(' ').unwrap().1;
    let filler = "# a line that says nothing\n".repeat((16 << 20) / 27 + 1);
    fs::write(&known, format!("{line}{filler}@revoked * {key}")).unwrap();
    let mut options = options(server.dir.path());
    let target = target(&server, &known);
    let error = try_connect(&target, &options, &NoQuestions).await.err().unwrap();
    assert!(matches!(error, SshError::File { .. }), "{error}");
    assert!(error.to_string().contains("16 MiB"), "{error}");
    // Nor a list of revoked keys.
    fs::write(server.path("revoked"), format!("{filler}{key}")).unwrap();
    let list = format!("Host *\n RevokedHostKeys {}\n", server.path("revoked").display());
    options.config = ConfigFiles::Text(list.as_str().into());
    server.known_hosts("ed25519");
    let error = try_connect(&target, &options, &NoQuestions).await.err().unwrap();
    assert!(matches!(error, SshError::File { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_accepted_key_that_was_written_down_counts_as_long_as_it_is_written() {
    if !lab() {
        return;
    }
    let server = Sshd::start();
    let known = server.path("new_known_hosts");
    let target = target(&server, &known);
    let mut options = options(server.dir.path());
    let person = Person::trusting();
    try_connect(&target, &options, &person).await.unwrap();
    // Somebody takes the line out: the key is unknown again.
    fs::write(&known, "").unwrap();
    let error = try_connect(&target, &options, &NoQuestions).await.err().unwrap();
    assert!(matches!(error, SshError::HostKeyUnknown { .. }), "{error}");
    strict(&mut options, "accept-new");
    try_connect(&target, &options, &NoQuestions).await.unwrap();
    fs::write(&known, "").unwrap();
    strict(&mut options, "yes");
    let error = try_connect(&target, &options, &NoQuestions).await.err().unwrap();
    assert!(matches!(error, SshError::HostKeyUnknown { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_no_file_keeps_is_remembered_for_its_files_and_not_when_strict() {
    if !lab() {
        return;
    }
    let server = Sshd::start();
    let nowhere = target(&server, Path::new("/dev/null"));
    let mut options = options(server.dir.path());
    try_connect(&nowhere, &options, &Person::trusting()).await.unwrap();
    try_connect(&nowhere, &options, &NoQuestions).await.unwrap();
    // Another host of the deck at the same address, with a file of its own.
    let other = target(&server, &server.path("others"));
    let error = try_connect(&other, &options, &NoQuestions).await.err().unwrap();
    assert!(matches!(error, SshError::HostKeyUnknown { .. }), "{error}");
    strict(&mut options, "yes");
    let error = try_connect(&nowhere, &options, &NoQuestions).await.err().unwrap();
    assert!(matches!(error, SshError::HostKeyUnknown { .. }), "{error}");
}
