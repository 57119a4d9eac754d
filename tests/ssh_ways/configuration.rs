//! What the configuration allows, and servers with which nothing is shared.

use std::fs;
use std::time::Duration;

use super::ssh_support::{Agent, Sshd, keygen, lab, tool};
use gpudeck::base::{DownCause, Hint};
use gpudeck::ssh::{NoQuestions, SshError, run};

use super::{add_to, block, options, to};

#[tokio::test(flavor = "multi_thread")]
async fn an_rsa_key_signs_with_what_is_left_to_it() {
    if !lab() {
        return;
    }
    let server = Sshd::start();
    let key = server.path("rsa");
    keygen(&key, "rsa", "");
    server.authorize(&key);
    let with = |more: &str| {
        let text = block("box", &server, more);
        let own = server.user_key().display().to_string();
        options(server.dir.path(), &text.replace(&own, &key.display().to_string()))
    };
    for more in ["", " PubkeyAcceptedAlgorithms rsa-sha2-256"] {
        to("box", &with(more), &NoQuestions).await.expect(more);
    }
    let none = with(" PubkeyAcceptedAlgorithms ssh-ed25519");
    let error = to("box", &none, &NoQuestions).await.err().unwrap();
    assert!(error.to_string().contains("PubkeyAcceptedAlgorithms"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_rsa_key_of_ours_that_is_shorter_than_wanted_is_not_offered() {
    if !lab() {
        return;
    }
    let server = Sshd::start();
    let key = server.path("rsa");
    // The server would take it.
    keygen(&key, "rsa", "");
    server.authorize(&key);
    tool(
        "ssh-keygen",
        &[
            "-q",
            "-s",
            key.to_str().unwrap(),
            "-I",
            "me",
            "-n",
            "root",
            &format!("{}.pub", key.display()),
        ],
    );
    let agent = Agent::start(&server.path("agent")).await;
    agent.add(&key);
    let own = server.user_key().display().to_string();
    let with = |more: &str| {
        let text = block("box", &server, more).replace(&own, &key.display().to_string());
        options(server.dir.path(), &text)
    };
    let by_agent = format!(" IdentityAgent {}", agent.socket.display());
    for way in [" IdentityAgent none", &by_agent] {
        to("box", &with(&format!("{way}\n RequiredRSASize 2048")), &NoQuestions).await.expect(way);
        let longer = with(&format!("{way}\n RequiredRSASize 2049"));
        let error = to("box", &longer, &NoQuestions).await.err().unwrap();
        assert_eq!(error.cause(), DownCause::LoginLost, "{error}");
        assert!(error.to_string().contains("RequiredRSASize is 2049"), "{error}");
    }
    let log = fs::read_to_string(server.path("log")).unwrap();
    assert_eq!(log.matches("Accepted publickey").count(), 2, "{log}");
    assert!(!log.contains("Failed publickey"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_configuration_decides_algorithms_ways_and_what_is_written() {
    if !lab() {
        return;
    }
    let server = Sshd::start();
    let with = |more: &str| options(server.dir.path(), &block("box", &server, more));
    for more in [
        " Ciphers aes128-ctr\n MACs hmac-sha2-256",
        " Ciphers chacha20-poly1305@openssh.com\n KexAlgorithms ecdh-sha2-nistp384",
        " KexAlgorithms diffie-hellman-group14-sha256\n HostKeyAlgorithms ssh-ed25519",
        " RekeyLimit 1M 1s\n ServerAliveInterval 1",
        " BindAddress 127.0.0.2\n AddressFamily inet",
    ] {
        let connection = to("box", &with(more), &NoQuestions).await.expect(more);
        let out =
            run(&connection, "head -c 9000000 /dev/zero", b"", 1 << 30, Duration::from_mins(1));
        assert_eq!(out.await.unwrap().stdout.len(), 9_000_000, "{more}");
    }
    let error = to("box", &with(" Ciphers 3des-cbc"), &NoQuestions).await.err().unwrap();
    assert_eq!(error.cause(), DownCause::Configuration, "{error}");
    assert!(error.hint().unwrap().contains("aes256-gcm@openssh.com"));
    for (more, word) in [
        (" Ciphers 3des-cbc", "Ciphers 3des-cbc"),
        (" PubkeyAuthentication no", "does not let"),
        (" PreferredAuthentications password", "does not let"),
        (" PubkeyAcceptedAlgorithms ssh-dss", "does not let"),
        (" Nonsense 1", "unknown keyword"),
    ] {
        let error = to("box", &with(more), &NoQuestions).await.err().expect(more);
        assert!(error.to_string().contains(word), "{error}");
    }
    // Accepted without a question, and written with a hashed name.
    let known = server.path("fresh");
    let text = format!(
        "UserKnownHostsFile {}\nHashKnownHosts yes\nStrictHostKeyChecking accept-new\n{}",
        known.display(),
        block("box", &server, "")
    );
    to("box", &options(server.dir.path(), &text), &NoQuestions).await.unwrap();
    assert!(fs::read_to_string(&known).unwrap().starts_with("|1|"));
    let name = format!("[127.0.0.1]:{}", server.port);
    tool("ssh-keygen", &["-F", &name, "-f", known.to_str().unwrap()]);
    // Where nothing is kept, nothing can be written, or only the system has a file: accepted all the same, and nobody
    // else's file is touched.
    let system = server.path("system");
    fs::write(&system, "").unwrap();
    for user_file in ["/dev/null".to_owned(), format!("{}/x/y", known.display()), "none".to_owned()]
    {
        let text = format!(
            "UserKnownHostsFile {user_file}\nGlobalKnownHostsFile {}\nStrictHostKeyChecking accept-new\n{}",
            system.display(),
            block("box", &server, "")
        );
        let options = options(server.dir.path(), &text);
        for _ in 0..2 {
            let reached = to("box", &options, &NoQuestions).await;
            assert!(reached.is_ok(), "{user_file}: {:?}", reached.err());
        }
    }
    assert_eq!(fs::read_to_string(&system).unwrap(), "");
    // Under another name, and a list of revoked keys.
    let alias = text.replace("HashKnownHosts yes", "HostKeyAlias The-Box");
    to("box", &options(server.dir.path(), &alias), &NoQuestions).await.unwrap();
    assert!(fs::read_to_string(&known).unwrap().contains("\nthe-box ssh-ed25519 "));
    let revoked = format!(" RevokedHostKeys {}", server.path("host_ed25519.pub").display());
    let error = to("box", &with(&revoked), &NoQuestions).await.err().unwrap();
    assert!(matches!(error, SshError::HostKeyRevoked { .. }), "{error}");
}

/// Key exchanges that a server has seen.
fn exchanges(server: &Sshd) -> usize {
    let log = fs::read_to_string(server.path("log")).unwrap();
    log.matches("SSH2_MSG_NEWKEYS received").count()
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_exchanged_anew_when_we_have_to_begin() {
    if !lab() {
        return;
    }
    let mut server = Sshd::start();
    let file = server.path("sshd_config");
    // The server begins none by itself, so that whatever comes is ours.
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.contains("RekeyLimit 16M 3s\n"));
    fs::write(&file, text.replace("RekeyLimit 16M 3s\n", "RekeyLimit 4G none\n")).unwrap();
    add_to(&mut server, "LogLevel DEBUG\n");
    let read = "head -c 9000000 /dev/zero";
    let over = async |more: &str, command: &str, input: &[u8]| {
        let before = exchanges(&server);
        let options = options(server.dir.path(), &block("box", &server, more));
        let connection = to("box", &options, &NoQuestions).await.expect(more);
        for _ in 0..2 {
            let out = run(&connection, command, input, 1 << 30, Duration::from_mins(1)).await;
            assert!(out.unwrap().status.success(), "{more}");
            tokio::time::sleep(Duration::from_millis(1_200)).await;
        }
        exchanges(&server) - before
    };
    assert_eq!(over("", read, b"").await, 1, "the login's");
    let sent = vec![0; 4_000_000];
    for (more, command, input) in [
        (" RekeyLimit 1M", read, &[][..]),
        (" RekeyLimit 1M", "cat >/dev/null", &sent[..]),
        (" RekeyLimit default 1s", "true", &[][..]),
    ] {
        let seen = over(more, command, input).await;
        assert!(seen > 1, "{more}, {command}: {seen}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_shares_no_cipher_is_one_and_the_cipher_is_named() {
    if !lab() {
        return;
    }
    let mut server = Sshd::start();
    add_to(&mut server, "Ciphers aes256-ctr\n");
    let options = options(server.dir.path(), &block("box", &server, " Ciphers aes128-ctr"));
    let error = to("box", &options, &NoQuestions).await.err().unwrap();
    assert_eq!(error.cause(), DownCause::Configuration, "{error}");
    assert!(error.to_string().contains("Ciphers") && error.to_string().contains("aes256-ctr"));
    assert!(error.needs_a_person() && error.hint().unwrap().contains("aes128-ctr"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_ssh_server_is_told_by_its_first_line() {
    use tokio::io::AsyncWriteExt;
    let dir = tempfile::tempdir().unwrap();
    for (said, closes, cause, word) in [
        ("HTTP/1.1 400 Bad\r\n\r\n", true, DownCause::NotSsh, "HTTP/1.1 400 Bad"),
        ("Exceeded MaxStartups\r\n", true, DownCause::ConnectionLost, "Exceeded MaxStartups"),
        ("SSH-2.0-x\r\n", true, DownCause::ConnectionLost, "hung up"),
        ("SSH-1.5-old\r\n", true, DownCause::NotSsh, "SSH-1.5-old"),
        ("SSH-1.5-old\r\n", false, DownCause::NotSsh, "SSH-1.5-old"),
        ("220 mail ESMTP\r\n", false, DownCause::NotSsh, "220 mail ESMTP"),
        ("hello\r\nSSH-2.0-x\r\n", false, DownCause::NoAnswer, "shaking hands"),
    ] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(said.as_bytes()).await.unwrap();
            // Read what is said, so that the end is an end and not a reset.
            if closes {
                let _ = stream.shutdown().await;
            }
            let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
        });
        // Whoever says nothing more is given up after a second.
        let limit = if closes { "" } else { " ConnectTimeout 1\n" };
        let text = format!("Host box\n HostName 127.0.0.1\n Port {port}\n{limit}");
        let error = to("box", &options(dir.path(), &text), &NoQuestions).await.err().unwrap();
        assert_eq!(error.cause(), cause, "{said}: {error}");
        assert!(error.to_string().contains(word), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_ends_without_a_word_is_no_servers_doing() {
    let dir = tempfile::tempdir().unwrap();
    for (command, word) in [("false", "exit status: 1"), ("echo not today >&2", "not today")] {
        let text = format!("Host box\n ProxyCommand {command}\n");
        let error = to("box", &options(dir.path(), &text), &NoQuestions).await.err().unwrap();
        assert_eq!(error.cause(), DownCause::NoRoute, "{command}: {error}");
        assert!(error.to_string().contains(word), "{error}");
    }
}
