//! What every connection must do, the one over SSH and the local one.

use std::path::Path;
use std::time::Duration;

use gpudeck::ssh::{Connection, ExitStatus, LocalConnection, NoQuestions, SshError, run};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{options, says, target, try_connect};
use crate::ssh_support::{Sshd, lab, until};

async fn conformance(connection: &dyn Connection) {
    let limit = Duration::from_mins(1);
    assert_eq!(says(connection, "echo it works").await, "it works\n");

    let out = run(connection, "echo out; echo err >&2; exit 7", b"", 99, limit).await.unwrap();
    assert_eq!(
        (out.status, out.stdout, out.stderr),
        (ExitStatus::Code(7), b"out\n".to_vec(), "err\n".to_owned())
    );
    let out = run(connection, "kill -9 $$", b"", 99, limit).await.unwrap();
    assert_eq!(out.status, ExitStatus::Signal("KILL".to_owned()));

    let input: Vec<u8> = (0..3_000_000u32).map(|n| n.to_le_bytes()[1]).collect();
    let out = run(connection, "cat", &input, 1 << 30, limit).await.unwrap();
    assert!(out.stdout == input, "cat gave back something else");

    // Shutting the input down ends it while the writer is still held.
    let mut cat = connection.exec("cat").await.unwrap();
    cat.stdin.write_all(b"to the end").await.unwrap();
    cat.stdin.shutdown().await.unwrap();
    let mut back = String::new();
    cat.stdout.read_to_string(&mut back).await.unwrap();
    assert_eq!((back.as_str(), cat.control.wait().await), ("to the end", ExitStatus::Code(0)));
    drop(cat);

    // A command that reads nothing must not hold up whoever feeds it.
    let out = run(connection, "exit 3", &input, 99, limit).await.unwrap();
    assert_eq!(out.status, ExitStatus::Code(3));

    let error = run(connection, "head -c 100 /dev/zero", b"", 99, limit).await.unwrap_err();
    assert!(matches!(error, SshError::Protocol { .. }), "{error:?}");

    let mut big = connection.exec("head -c 50000000 /dev/zero").await.unwrap();
    let (mut total, mut buffer) = (0, vec![0; 100_000]);
    while let n @ 1.. = big.stdout.read(&mut buffer).await.unwrap() {
        total += n;
    }
    assert_eq!(total, 50_000_000);
    assert_eq!(big.control.wait().await, ExitStatus::Code(0));

    let noisy =
        run(connection, "head -c 5000000 /dev/zero >&2; echo end", b"", 99, limit).await.unwrap();
    assert_eq!(noisy.stdout, b"end\n");
    assert!(noisy.stderr.len() <= gpudeck::ssh::exec::STDERR_KEPT_BYTES);

    // One that nobody reads does not stall its neighbours.
    let mut unread = connection.exec("head -c 20000000 /dev/zero").await.unwrap();
    // More of them than a server allows at once: none may be left open.
    for _ in 0..30 {
        assert_eq!(says(connection, "echo beside").await, "beside\n");
    }
    let mut all = Vec::new();
    unread.stdout.read_to_end(&mut all).await.unwrap();
    assert_eq!(all.len(), 20_000_000);

    // Dropping closes.
    let mut cat = connection.exec("echo $$; exec cat").await.unwrap();
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        line.push(cat.stdout.read_u8().await.unwrap());
    }
    let pid = String::from_utf8(line).unwrap().trim().to_owned();
    cat.stdin.write_all(b"x").await.unwrap();
    assert_eq!(cat.stdout.read_u8().await.unwrap(), b'x');
    drop(cat.control);
    until("the dropped command ends", Duration::from_secs(10), || {
        !Path::new("/proc").join(&pid).exists()
    })
    .await;

    connection.close().await;
    tokio::time::timeout(Duration::from_secs(5), connection.closed()).await.unwrap();
    assert!(connection.exec("echo").await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn conformance_of_the_local_connection() {
    conformance(&LocalConnection::new()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn conformance_of_the_ssh_connection() {
    if !lab() {
        return;
    }
    let server = Sshd::start();
    let target = target(&server, &server.known_hosts("ed25519"));
    let connection = try_connect(&target, &options(server.dir.path()), &NoQuestions).await.unwrap();
    conformance(&connection).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_who_never_reads_loses_the_channel_and_nothing_else() {
    if !lab() {
        return;
    }
    let server = Sshd::start();
    let target = target(&server, &server.known_hosts("ed25519"));
    let connection = try_connect(&target, &options(server.dir.path()), &NoQuestions).await.unwrap();
    let mut unread = connection.exec("cat /dev/zero").await.unwrap();
    tokio::time::timeout(Duration::from_mins(1), unread.control.wait()).await.unwrap();
    assert_eq!(says(&connection, "echo beside").await, "beside\n");
    let mut all = Vec::new();
    assert!(unread.stdout.read_to_end(&mut all).await.is_err());
    assert!(all.len() <= gpudeck::ssh::channel::MAX_UNREAD_BYTES);
}
