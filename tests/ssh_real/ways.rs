//! The way there: what can keep us from a host, and what ends a connection.

use std::time::{Duration, Instant};

use gpudeck::ssh::{ConfigFiles, Connection, ExitStatus, NoQuestions, SshError, Target};

use super::{options, target, try_connect};
use crate::ssh_support::{Sshd, Tarpit, free_port, lab};

#[tokio::test(flavor = "multi_thread")]
async fn the_ways_not_to_get_there_have_names() {
    let home = tempfile::tempdir().unwrap();
    let mut options = options(home.path());
    options.timeouts.handshake = Duration::from_millis(300);
    options.config = ConfigFiles::Text(
        "Host far\nProxyJump no-such-bastion.invalid\nHost round\nProxyJump about\n\
         Host about\nProxyJump round\n"
            .into(),
    );
    let to = |name: &str, port: u16| Target {
        name: name.to_owned(),
        port: Some(port),
        ..Target::default()
    };

    let error =
        try_connect(&to("127.0.0.1", free_port()), &options, &NoQuestions).await.err().unwrap();
    assert!(matches!(error, SshError::Refused { .. }), "{error}");

    let error =
        try_connect(&to("no-such-host.invalid", 22), &options, &NoQuestions).await.err().unwrap();
    assert!(matches!(error, SshError::NameNotFound { .. }), "{error}");

    let error = try_connect(&to("far", 22), &options, &NoQuestions).await.err().unwrap();
    assert!(error.to_string().contains("jump host no-such-bastion.invalid"), "{error}");
    let error = try_connect(&to("round", 22), &options, &NoQuestions).await.err().unwrap();
    assert!(matches!(error, SshError::JumpLoop { .. }), "{error}");

    let tarpit = Tarpit::start();
    let since = Instant::now();
    let error =
        try_connect(&to("127.0.0.1", tarpit.port), &options, &NoQuestions).await.err().unwrap();
    assert!(error.to_string().contains("shaking hands"), "{error}");
    assert!(since.elapsed() < Duration::from_secs(5));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_server_is_noticed() {
    if !lab() {
        return;
    }
    let mut server = Sshd::start();
    let target = target(&server, &server.known_hosts("ed25519"));
    let connection = try_connect(&target, &options(server.dir.path()), &NoQuestions).await.unwrap();
    let running = connection.exec("cat").await.unwrap();
    server.kill();
    let limit = Duration::from_secs(5);
    tokio::time::timeout(limit, connection.closed()).await.unwrap();
    let status = tokio::time::timeout(limit, running.control.wait()).await.unwrap();
    assert_eq!(status, ExitStatus::Lost);
    assert!(connection.exec("echo").await.is_err());
}
