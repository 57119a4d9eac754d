//! Keys that let us in: in files, locked ones, those of an agent.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use gpudeck::base::Hint;
use gpudeck::ssh::{Agents, ConfigFiles, NoQuestions, SshError};

use super::{Person, options, says, target, try_connect};
use crate::ssh_support::{Agent, Sshd, keygen, lab, tool};

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_key_lets_us_in() {
    if !lab() {
        return;
    }
    let server = Sshd::start();
    let known = server.known_hosts("ed25519");
    for kind in ["ed25519", "rsa", "ecdsa"] {
        let key = server.path(&format!("my_{kind}"));
        keygen(&key, kind, "");
        server.authorize(&key);
        let mut target = target(&server, &known);
        target.identity_files = vec![key.display().to_string()];
        let connection =
            try_connect(&target, &options(server.dir.path()), &NoQuestions).await.unwrap();
        assert_eq!(says(&connection, "id -un").await, "root\n", "{kind}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_encrypted_key_asks_once_for_its_passphrase() {
    if !lab() {
        return;
    }
    let server = Sshd::start();
    for kind in ["ed25519", "rsa"] {
        let key = server.path(&format!("locked_{kind}"));
        keygen(&key, kind, "correct horse");
        server.authorize(&key);
        let mut target = target(&server, &server.known_hosts("ed25519"));
        target.identity_files = vec![key.display().to_string()];
        let options = options(server.dir.path());
        let person = Person::knowing(&["wrong", "correct horse", "battery staple"]);
        try_connect(&target, &options, &person).await.unwrap();
        assert_eq!(person.asked(), 2);
        // The key is open now, for this host and all others.
        try_connect(&target, &options, &person).await.unwrap();
        assert_eq!(person.asked(), 2);
        // Another one in its place is not: the old one may be what somebody wanted out of the way.
        let new = server.path(&format!("new_{kind}"));
        keygen(&new, kind, "battery staple");
        server.authorize(&new);
        for suffix in ["", ".pub"] {
            let moved = |path: &Path| format!("{}{suffix}", path.display());
            fs::rename(moved(&new), moved(&key)).unwrap();
        }
        try_connect(&target, &options, &person).await.unwrap();
        assert_eq!(person.asked(), 3);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_encrypted_key_without_a_person_is_a_named_cause() {
    if !lab() {
        return;
    }
    let server = Sshd::start();
    let key = server.path("locked");
    keygen(&key, "ed25519", "correct horse");
    server.authorize(&key);
    let mut target = target(&server, &server.known_hosts("ed25519"));
    target.identity_files = vec![key.display().to_string()];
    let error =
        try_connect(&target, &options(server.dir.path()), &NoQuestions).await.err().unwrap();
    assert!(error.to_string().contains("no passphrase given"), "{error}");
    let silent = Person::trusting();
    let error = try_connect(&target, &options(server.dir.path()), &silent).await.err().unwrap();
    assert!(matches!(error, SshError::AuthFailed { .. }), "{error}");
    assert_eq!(silent.asked(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_key_that_others_may_read_is_not_used_and_it_is_said_why() {
    if !lab() {
        return;
    }
    let server = Sshd::start();
    let options = options(server.dir.path());
    let locked = server.path("locked");
    keygen(&locked, "ed25519", "correct horse");
    server.authorize(&locked);
    for key in [server.user_key(), locked] {
        let mut target = super::target(&server, &server.known_hosts("ed25519"));
        target.identity_files = vec![key.display().to_string()];
        let person = Person::knowing(&["correct horse"]);
        for mode in [0o640, 0o604, 0o660] {
            fs::set_permissions(&key, fs::Permissions::from_mode(mode)).unwrap();
            let error = try_connect(&target, &options, &person).await.err().unwrap();
            assert!(matches!(error, SshError::AuthFailed { .. }), "{error}");
            assert_eq!(person.asked(), 0, "a passphrase was asked for in vain");
            let words = error.to_string();
            let command = words.split('`').find(|w| w.starts_with("chmod 600 ")).expect(&words);
            tool("sh", &["-c", command]);
            try_connect(&target, &options, &Person::knowing(&["correct horse"])).await.unwrap();
            // One that was unlocked before is no exception.
            fs::set_permissions(&key, fs::Permissions::from_mode(mode)).unwrap();
            assert!(try_connect(&target, &options, &person).await.is_err());
            tool("sh", &["-c", command]);
        }
    }
    // An agent that has it signs all the same.
    let agent = Agent::start(&server.path("agent")).await;
    let key = server.user_key();
    agent.add(&key);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let target = super::target(&server, &server.known_hosts("ed25519"));
    let mut options = options;
    options.agents = Arc::new(Agents::new(Some(agent.socket.clone())));
    try_connect(&target, &options, &NoQuestions).await.unwrap();
}

/// One key in five hundred has a private number that is written with 31 bytes or fewer.
#[tokio::test(flavor = "multi_thread")]
async fn an_ecdsa_key_with_a_short_number_lets_us_in() {
    if !lab() {
        return;
    }
    let server = Sshd::start();
    let key = server.path("short");
    // With this comment the file of such a key is one block shorter than that of any other.
    let lengths = |tries: usize| {
        let mut usual = 0;
        for _ in 0..tries {
            let _ = fs::remove_file(&key);
            tool(
                "ssh-keygen",
                &["-q", "-t", "ecdsa", "-N", "", "-C", "x", "-f", key.to_str().unwrap()],
            );
            let length = fs::metadata(&key).unwrap().len();
            if length < usual {
                return true;
            }
            usual = length;
        }
        false
    };
    assert!(lengths(20_000));
    server.authorize(&key);
    let mut target = target(&server, &server.known_hosts("ed25519"));
    target.identity_files = vec![key.display().to_string()];
    let options = options(server.dir.path());
    try_connect(&target, &options, &NoQuestions).await.unwrap();
    tool("ssh-keygen", &["-q", "-p", "-P", "", "-N", "correct horse", "-f", key.to_str().unwrap()]);
    let person = Person::knowing(&["wrong", "correct horse"]);
    try_connect(&target, &options, &person).await.unwrap();
    assert_eq!(person.asked(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agents_keys_let_us_in() {
    if !lab() {
        return;
    }
    let server = Sshd::start();
    let agent = Agent::start(&server.path("agent")).await;
    for kind in ["ed25519", "rsa", "ecdsa"] {
        let key = server.path(&format!("held_{kind}"));
        keygen(&key, kind, "");
        agent.add(&key);
        fs::write(server.path("authorized_keys"), "").unwrap();
        server.authorize(&key);
        // From now on only the agent has it.
        fs::remove_file(&key).unwrap();
        let mut target = target(&server, &server.known_hosts("ed25519"));
        target.identity_files = Vec::new();
        let mut options = options(server.dir.path());
        options.agents = Arc::new(Agents::new(Some(agent.socket.clone())));
        let connection = try_connect(&target, &options, &NoQuestions).await.unwrap();
        assert_eq!(says(&connection, "id -un").await, "root\n");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_with_many_keys_offers_the_named_one_first() {
    if !lab() {
        return;
    }
    let server = Sshd::start();
    let agent = Agent::start(&server.path("agent")).await;
    // sshd hangs up after six tries.
    for n in 0..8 {
        let key = server.path(&format!("other_{n}"));
        keygen(&key, "ed25519", "");
        agent.add(&key);
    }
    let mut options = options(server.dir.path());
    options.agents = Arc::new(Agents::new(Some(agent.socket.clone())));
    let target = target(&server, &server.known_hosts("ed25519"));
    let error = try_connect(&target, &options, &NoQuestions).await.err().unwrap();
    assert!(error.to_string().contains("hung up"), "{error}");
    agent.add(&server.user_key());
    try_connect(&target, &options, &NoQuestions).await.unwrap();
    options.config = ConfigFiles::Text("Host box\nIdentitiesOnly yes\n".into());
    try_connect(&target, &options, &NoQuestions).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_key_says_what_was_tried() {
    if !lab() {
        return;
    }
    let server = Sshd::start();
    let key = server.path("stranger");
    keygen(&key, "ed25519", "");
    let mut target = target(&server, &server.known_hosts("ed25519"));
    target.identity_files = vec![key.display().to_string(), "/nowhere/key".to_owned()];
    let error =
        try_connect(&target, &options(server.dir.path()), &NoQuestions).await.err().unwrap();
    let words = error.to_string();
    assert!(words.contains("stranger") && words.contains("/nowhere/key"), "{words}");
    assert!(error.hint().unwrap().contains("identity_files"));
}
