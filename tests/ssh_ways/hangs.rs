//! Hosts that hang, and servers that refuse more.

use std::time::Duration;

use super::ssh_support::{Sshd, keygen, lab};
use gpudeck::base::Hint;
use gpudeck::ssh::{Connection, NoQuestions, SshError};

use super::questions::{Asking, Late, Person, asking_block};
use super::{add_to, block, options, says, to};

#[tokio::test(flavor = "multi_thread")]
async fn hosts_that_hang_in_any_phase_hold_up_nobody() {
    if !lab() {
        return;
    }
    let server = Sshd::start();
    let dir = server.dir.path();
    let key = server.path("host_ed25519");
    let silent = super::ssh_support::Tarpit::start();
    // Says its name and nothing more.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let greeting = listener.local_addr().unwrap().port();
    let greeter = tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((mut socket, _)) = listener.accept().await {
            let _ = tokio::io::AsyncWriteExt::write_all(&mut socket, b"SSH-2.0-x\r\n").await;
            held.push(socket);
        }
    });
    let hanging = Asking::serve("hang", &key).await;
    let mut text = block("good", &server, "");
    for n in 0..60 {
        let port = [silent.port, greeting, hanging][n % 3];
        text += &asking_block(port, dir).replace("Host box", &format!("Host bad{n}"));
    }
    let options = options(dir, &text);
    let mut bad = tokio::task::JoinSet::new();
    for n in 0..60 {
        let options = options.clone();
        bad.spawn(async move { to(&format!("bad{n}"), &options, &NoQuestions).await.err() });
    }
    let good = tokio::time::timeout(Duration::from_secs(60), to("good", &options, &NoQuestions));
    let connection = good.await.expect("held up").unwrap();
    says(&connection, "true").await;
    let mut phases = std::collections::BTreeSet::new();
    while let Some(error) = bad.join_next().await {
        match error.unwrap().unwrap() {
            SshError::Timeout { phase, .. } => phases.insert(phase),
            other => panic!("{other}"),
        };
    }
    let phases: Vec<_> = phases.into_iter().collect();
    assert_eq!(phases, ["logging in", "shaking hands"]);
    greeter.abort();
}

/// An address at which connecting hangs: the queue of connections that wait to be taken is full.
fn full_house() -> (u16, impl Sized) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let address = listener.local_addr().unwrap();
    let mut waiting = Vec::new();
    while let Ok(stream) =
        std::net::TcpStream::connect_timeout(&address, Duration::from_millis(500))
    {
        waiting.push(stream);
        assert!(waiting.len() < 100, "the queue is never full");
    }
    (address.port(), (listener, waiting))
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_that_hang_in_tcp_or_at_a_channel_are_named_and_hold_up_nobody() {
    if !lab() {
        return;
    }
    let server = Sshd::start();
    let dir = server.dir.path();
    let key = server.path("host_ed25519");
    let (full, _held) = full_house();
    let mute = Asking::serve("no channel", &key).await;
    let mut text = block("good", &server, "");
    text += &asking_block(mute, dir).replace("Host box", "Host mute");
    for n in 0..40 {
        text += &asking_block(full, dir).replace("Host box", &format!("Host bad{n}"));
    }
    let mut options = options(dir, &text);
    options.timeouts.tcp = Duration::from_secs(20);
    options.timeouts.channel = Duration::from_secs(3);
    let mut bad = tokio::task::JoinSet::new();
    for n in 0..40 {
        let options = options.clone();
        bad.spawn(async move { to(&format!("bad{n}"), &options, &NoQuestions).await.err() });
    }
    // More that hang than may shake hands at once: the good one does not wait for a turn.
    let good = tokio::time::timeout(Duration::from_secs(15), to("good", &options, &NoQuestions));
    let connection = good.await.expect("held up").unwrap();
    says(&connection, "true").await;
    let person = Person::who_says(&["open sesame"]);
    let silent = to("mute", &options, &person).await.unwrap();
    let opening = silent.exec("true");
    let (opened, alive) = tokio::join!(opening, says(&connection, "echo alive"));
    assert_eq!(alive, "alive\n");
    let error = opened.err().unwrap();
    assert!(
        matches!(&error, SshError::Timeout { phase, .. } if phase == "opening a channel"),
        "{error}"
    );
    while let Some(error) = bad.join_next().await {
        match error.unwrap().unwrap() {
            SshError::Timeout { phase, .. } => assert_eq!(phase, "connecting"),
            other => panic!("{other}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_way_that_breaks_in_the_middle_of_the_login_is_no_lost_login() {
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("host");
    if std::process::Command::new("ssh-keygen").arg("-?").output().is_err() && !lab() {
        return;
    }
    keygen(&key, "ed25519", "");
    for (wants, more) in [("hang up", "none"), ("hang up", "key")] {
        let own = dir.path().join("key");
        if more == "key" {
            keygen(&own, "ed25519", "");
        }
        let port = Asking::serve(wants, &key).await;
        let own = if more == "key" { own.display().to_string() } else { more.to_owned() };
        let text = asking_block(port, dir.path());
        let text = text.replace("IdentityFile none", &format!("IdentityFile {own}"));
        let options = options(dir.path(), &text);
        let error = to("box", &options, &NoQuestions).await.err().unwrap();
        assert!(matches!(error, SshError::Closed { .. }), "{more}: {error}");
        assert!(!error.login_lost() && !error.needs_a_person(), "{more}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_hangs_up_on_the_login_itself_is_a_lost_login() {
    if !lab() {
        return;
    }
    let mut server = Sshd::start();
    add_to(&mut server, "MaxAuthTries 2\n");
    let mut keys = String::new();
    for n in 0..4 {
        let key = server.path(&format!("other{n}"));
        keygen(&key, "ed25519", "");
        keys += &format!(" IdentityFile {}\n", key.display());
    }
    let own = format!(" IdentityFile {}\n", server.user_key().display());
    let text = block("box", &server, "").replace(&own, &keys);
    let error = to("box", &options(server.dir.path(), &text), &NoQuestions).await.err().unwrap();
    assert!(matches!(error, SshError::AuthFailed { .. }), "{error}");
    assert!(error.login_lost() && error.to_string().contains("hung up"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_that_is_opened_too_late_is_closed() {
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("host");
    if std::process::Command::new("ssh-keygen").arg("-?").output().is_err() && !lab() {
        return;
    }
    keygen(&key, "ed25519", "");
    let late = std::sync::Arc::<Late>::default();
    let port = Asking::serve_late("late channel", &key, late.clone()).await;
    let mut options = options(dir.path(), &asking_block(port, dir.path()));
    options.timeouts.channel = Duration::from_millis(200);
    let person = Person::who_says(&["open sesame"]);
    let connection = to("box", &options, &person).await.unwrap();
    let error = connection.exec("true").await.err().unwrap();
    assert!(matches!(error, SshError::Timeout { .. }), "{error}");
    late.go.notify_one();
    let closed = tokio::time::timeout(Duration::from_secs(30), late.closed.notified());
    closed.await.expect("it stays open");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_session_more_than_the_server_allows_is_refused_and_the_others_go_on() {
    if !lab() {
        return;
    }
    let mut server = Sshd::start();
    add_to(&mut server, "MaxSessions 2\n");
    let options = options(server.dir.path(), &block("box", &server, ""));
    let connection = to("box", &options, &NoQuestions).await.unwrap();
    let mut held = Vec::new();
    for _ in 0..2 {
        held.push(connection.exec("cat").await.unwrap());
    }
    let error = connection.exec("true").await.err().unwrap();
    assert!(matches!(error, SshError::ChannelRefused { .. }), "{error}");
    assert!(error.hint().unwrap().contains("MaxSessions"));
    for channel in &mut held {
        tokio::io::AsyncWriteExt::write_all(&mut channel.stdin, b"x").await.unwrap();
        let read = tokio::io::AsyncReadExt::read_u8(&mut channel.stdout);
        let read = tokio::time::timeout(Duration::from_secs(30), read).await.unwrap().unwrap();
        assert_eq!(read, b'x');
    }
    drop(held);
    // The server counts a session until it has seen its end.
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while let Err(error) = connection.exec("true").await {
        assert!(matches!(error, SshError::ChannelRefused { .. }), "{error}");
        assert!(tokio::time::Instant::now() < deadline, "{error}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_session_after_the_other_where_one_is_allowed() {
    if !lab() {
        return;
    }
    let mut server = Sshd::start();
    add_to(&mut server, "MaxSessions 1\n");
    let options = options(server.dir.path(), &block("box", &server, ""));
    let connection = to("box", &options, &NoQuestions).await.unwrap();
    for n in 0..30 {
        assert_eq!(says(&connection, &format!("echo {n}")).await, format!("{n}\n"));
        // One that is left before its end.
        drop(connection.exec("cat").await.unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_is_frozen_is_noticed() {
    if !lab() {
        return;
    }
    let server = Sshd::start();
    let more = " ServerAliveInterval 1\n ServerAliveCountMax 1";
    let mut options = options(server.dir.path(), &block("box", &server, more));
    options.timeouts.channel = Duration::from_secs(3);
    let connection = to("box", &options, &NoQuestions).await.unwrap();
    // A channel that is written to without end: what is queued must not stop the clock.
    let mut cat = connection.exec("echo $PPID; exec sleep 1000").await.unwrap();
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        line.push(tokio::io::AsyncReadExt::read_u8(&mut cat.stdout).await.unwrap());
    }
    let pid: i32 = String::from_utf8(line).unwrap().trim().parse().unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    let feed = async {
        let block = vec![0; 1 << 20];
        while tokio::io::AsyncWriteExt::write_all(&mut cat.stdin, &block).await.is_ok() {}
        std::future::pending::<()>().await;
    };
    let noticed = tokio::time::timeout(Duration::from_secs(60), connection.closed());
    let why = tokio::select! {
        why = noticed => why,
        () = feed => unreachable!(),
    };
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    assert!(why.expect("not noticed").to_string().contains("no longer answers"));
}
