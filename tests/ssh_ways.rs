//! Ways to a host and ways to log in, against real OpenSSH servers: jumps, proxy commands,
//! certificates of users and hosts, algorithms, and servers that hang in the middle.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod ssh_support;

use std::collections::VecDeque;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use gpudeck::base::{DownCause, Hint};
use gpudeck::ssh::{
    Agents, ConfigFiles, ConnectOptions, Connection, Endpoint, Jumps, NoQuestions, Place,
    Questions, RusshConnection, SshError, Target, Timeouts, connect, run,
};
use russh::server::{self, Auth, Msg, Server as _, Session};
use russh::{Channel, ChannelId, MethodKind, MethodSet};
use secrecy::SecretString;
use ssh_support::{Relay, Sshd, keygen, lab, tool, until};

fn options(home: &Path, config: &str) -> ConnectOptions {
    let mut place = Place::here();
    home.clone_into(&mut place.home);
    ConnectOptions {
        config: ConfigFiles::Text(config.into()),
        place,
        agents: Arc::default(),
        key_ring: Arc::default(),
        jumps: Arc::default(),
        pace: Arc::default(),
        timeouts: Timeouts::default(),
    }
}

async fn to(
    name: &str,
    options: &ConnectOptions,
    questions: &dyn Questions,
) -> Result<RusshConnection, SshError> {
    let target = Target { name: name.to_owned(), ..Target::default() };
    let endpoint = Endpoint::resolve(&target, options)?;
    connect(&endpoint, options, questions, &|_| ()).await
}

async fn says(connection: &dyn Connection, command: &str) -> String {
    let out = run(connection, command, b"", 1 << 20, Duration::from_secs(30)).await.unwrap();
    assert!(out.status.success(), "{command}: {out:?}");
    String::from_utf8(out.stdout).unwrap()
}

/// A `Host` block for a server.
fn block(name: &str, server: &Sshd, more: &str) -> String {
    format!(
        "Host {name}\n HostName 127.0.0.1\n Port {}\n User root\n IdentityFile {}\n \
         UserKnownHostsFile {}\n GlobalKnownHostsFile none\n{more}\n",
        server.port,
        server.user_key().display(),
        server.known_hosts("ed25519").display(),
    )
}

fn logins(server: &Sshd) -> usize {
    fs::read_to_string(server.path("log")).unwrap().matches("Accepted publickey").count()
}

fn add_to(server: &mut Sshd, lines: &str) {
    server.kill();
    let mut file = fs::File::options().append(true).open(server.path("sshd_config")).unwrap();
    file.write_all(lines.as_bytes()).unwrap();
    server.up();
}

// ── jumps and commands ──────────────────────────────────────────────────────────────────────

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_of_jumps_is_walked_with_each_hosts_own_configuration() {
    if !lab() {
        return;
    }
    let (one, two, three) = (Sshd::start(), Sshd::start(), Sshd::start());
    let mut text = block("one", &one, "");
    text += &block("two", &two, " ProxyJump one");
    text += &block("three", &three, " ProxyJump two");
    text += &block("listed", &three, " ProxyJump root@one,two");
    let options = options(one.dir.path(), &text);
    for name in ["three", "listed"] {
        let connection = to(name, &options, &NoQuestions).await.unwrap();
        assert_eq!(says(&connection, "echo through").await, "through\n");
    }
    assert_eq!((logins(&two) > 0, logins(&three)), (true, 2));
    // Each place on the way is checked and logged in to by itself.
    let stranger = two.path("stranger");
    keygen(&stranger, "ed25519", "");
    let key = two.user_key().display().to_string();
    let wrong = text.replace(&key, &stranger.display().to_string());
    let refused = self::options(one.dir.path(), &wrong);
    let error = to("three", &refused, &NoQuestions).await.err().unwrap();
    assert!(error.to_string().starts_with("jump host two: "), "{error}");
    assert!(error.needs_a_person() && error.login_lost() && error.hint().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn many_hosts_behind_a_bastion_open_it_once_and_once_again() {
    if !lab() {
        return;
    }
    let mut bastion = Sshd::start();
    let inner = Sshd::start();
    let mut text = block("bastion", &bastion, "");
    for n in 0..12 {
        text += &block(&format!("host{n}"), &inner, " ProxyJump bastion");
    }
    let options = options(bastion.dir.path(), &text);
    let all = || async {
        let each = (0..12).map(|n| {
            let options = options.clone();
            async move { to(&format!("host{n}"), &options, &NoQuestions).await }
        });
        futures::future::join_all(each).await
    };
    let first: Vec<_> = all().await.into_iter().map(Result::unwrap).collect();
    assert_eq!(logins(&bastion), 1);
    for connection in &first {
        assert_eq!(says(connection, "echo in").await, "in\n");
    }
    bastion.kill();
    for connection in &first {
        tokio::time::timeout(Duration::from_secs(30), connection.closed()).await.unwrap();
    }
    let error = to("host0", &options, &NoQuestions).await.err().unwrap();
    assert!(matches!(error, SshError::Jump { .. }), "{error}");
    bastion.up();
    // What was answered before holds for a moment only.
    let mut again = all().await;
    for _ in 0..100 {
        if again.iter().all(Result::is_ok) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        // Who got through stays, or the bastion would be left and opened another time.
        let more = all().await;
        for (kept, more) in again.iter_mut().zip(more) {
            if kept.is_err() {
                *kept = more;
            }
        }
    }
    assert!(again.iter().all(Result::is_ok));
    assert_eq!(logins(&bastion), 2, "opened once for all of them");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bastion_is_kept_for_a_while_after_its_last_use() {
    if !lab() {
        return;
    }
    let (bastion, inner) = (Sshd::start(), Sshd::start());
    let text = block("bastion", &bastion, "") + &block("inner", &inner, " ProxyJump bastion");
    let mut options = options(bastion.dir.path(), &text);
    for _ in 0..3 {
        to("inner", &options, &NoQuestions).await.unwrap();
    }
    assert_eq!((logins(&bastion), logins(&inner)), (1, 3));
    // And not for ever.
    options.jumps = Arc::new(Jumps::lingering(Duration::from_millis(100)));
    let left = || bastion.sessions() == 0;
    until("it is left with all that was known of it", Duration::from_secs(30), left).await;
    to("inner", &options, &NoQuestions).await.unwrap();
    until("it is left", Duration::from_secs(30), left).await;
    to("inner", &options, &NoQuestions).await.unwrap();
    assert_eq!(logins(&bastion), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bastion_whose_flow_was_cut_is_opened_anew_by_the_next_that_needs_it() {
    if !lab() {
        return;
    }
    let (bastion, inner) = (Sshd::start(), Sshd::start());
    let relay = Relay::to(bastion.port).await;
    let over =
        block("bastion", &bastion, " HostKeyAlias bastion\n StrictHostKeyChecking accept-new")
            .replace(&format!("Port {}", bastion.port), &format!("Port {}", relay.port));
    let text = over + &block("inner", &inner, " ProxyJump bastion");
    let mut options = options(bastion.dir.path(), &text);
    options.timeouts.channel = Duration::from_secs(5);
    let first = to("inner", &options, &NoQuestions).await.unwrap();
    relay.freeze();
    let error = to("inner", &options, &NoQuestions).await.err().unwrap();
    assert!(error.to_string().contains("jump host bastion: "), "{error}");
    assert!(error.to_string().contains("no longer answers"), "{error}");
    // What went over it knows at once, and nobody waits for its keepalives.
    tokio::time::timeout(Duration::from_secs(10), first.closed()).await.expect("not noticed");
    options.timeouts.channel = Duration::from_secs(30);
    to("inner", &options, &NoQuestions).await.unwrap();
    assert_eq!(logins(&bastion), 2);
}

/// Answers when `wanted` others wait for the answer.
struct Crowd {
    answer: &'static str,
    wanted: usize,
    waiting: tokio::sync::watch::Sender<Vec<String>>,
    asked: Mutex<Vec<String>>,
}

#[async_trait]
impl Questions for Crowd {
    async fn host_key(&self, _: &str, _: &str, _: &str) -> bool {
        true
    }

    async fn secret(&self, prompt: &str) -> Option<SecretString> {
        self.asked.lock().unwrap().push(prompt.to_owned());
        let mut waiting = self.waiting.subscribe();
        let all = waiting.wait_for(|w| w.len() >= self.wanted);
        let all = tokio::time::timeout(Duration::from_secs(60), all);
        all.await.expect("not all know that they wait").unwrap();
        Some(self.answer.to_owned().into())
    }

    fn waits_for(&self, question: &str) {
        self.waiting.send_modify(|w| w.push(question.to_owned()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_hosts_that_wait_for_one_answer_know_of_it() {
    if !lab() {
        return;
    }
    let (outer, bastion, inner) = (Sshd::start(), Sshd::start(), Sshd::start());
    // A key that only the bastion in the middle takes, and one that all hosts share.
    let lock = |server: &Sshd| {
        let key = server.user_key().display().to_string();
        tool("ssh-keygen", &["-q", "-p", "-P", "", "-N", "open sesame", "-f", &key]);
    };
    lock(&bastion);
    let mut text = block("outer", &outer, "") + &block("bastion", &bastion, " ProxyJump outer");
    text += &block("alone", &bastion, "");
    for n in 0..4 {
        text += &block(&format!("host{n}"), &inner, " ProxyJump bastion");
    }
    for names in [["host0", "host1", "host2", "host3"], ["alone"; 4]] {
        let options = options(bastion.dir.path(), &text);
        let crowd = Crowd {
            answer: "open sesame",
            wanted: 3,
            waiting: tokio::sync::watch::Sender::default(),
            asked: Mutex::default(),
        };
        let each = names.map(|name| to(name, &options, &crowd));
        let all: Vec<_> = futures::future::join_all(each).await;
        assert!(all.iter().all(Result::is_ok), "{names:?}");
        assert_eq!(crowd.asked.lock().unwrap().len(), 1, "asked more than once");
        let known = crowd.waiting.borrow();
        assert!(known.iter().all(|q| q.contains("passphrase of ")), "{known:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bastion_that_forbids_forwarding_says_so() {
    if !lab() {
        return;
    }
    let mut bastion = Sshd::start();
    add_to(&mut bastion, "AllowTcpForwarding no\n");
    let inner = Sshd::start();
    let text = block("bastion", &bastion, "") + &block("inner", &inner, " ProxyJump bastion");
    let error = to("inner", &options(bastion.dir.path(), &text), &NoQuestions).await.err().unwrap();
    assert!(error.to_string().contains("forbids forwarding"), "{error}");
    assert!(error.hint().unwrap().contains("AllowTcpForwarding"));
    assert_eq!(error.cause(), DownCause::NoRoute);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_behind_a_bastion_on_which_nothing_listens_is_named_and_not_the_bastion() {
    if !lab() {
        return;
    }
    let (bastion, mut inner) = (Sshd::start(), Sshd::start());
    let text = block("bastion", &bastion, "") + &block("inner", &inner, " ProxyJump bastion");
    inner.kill();
    let error = to("inner", &options(bastion.dir.path(), &text), &NoQuestions).await.err().unwrap();
    assert_eq!(error.cause(), DownCause::Refused, "{error}");
    let hint = error.hint().unwrap();
    assert!(hint.contains(&inner.port.to_string()) && !hint.contains("sshd_config"), "{hint}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_command_lives_and_dies_with_its_connection() {
    if !lab() {
        return;
    }
    let (way, server) = (Sshd::start(), Sshd::start());
    let (pid, dir) = (server.path("pid"), way.dir.path());
    let command = format!(
        " ProxyCommand sh -c 'echo $$ > {}; exec ssh -F /dev/null -o BatchMode=yes -i {} -o \
         UserKnownHostsFile={} -p {} -W %h:%p root@127.0.0.1'",
        pid.display(),
        way.user_key().display(),
        way.known_hosts("ed25519").display(),
        way.port
    );
    let options = options(dir, &block("far", &server, &command));
    let connection = to("far", &options, &NoQuestions).await.unwrap();
    assert_eq!(says(&connection, "echo by command").await, "by command\n");
    let pid = fs::read_to_string(pid).unwrap().trim().to_owned();
    let process = Path::new("/proc").join(pid).join("cwd");
    assert!(process.exists());
    drop(connection);
    until("the command ends", Duration::from_secs(30), || !process.exists()).await;

    let bad = block("far", &server, " ProxyCommand echo no way there >&2; exit 3");
    let error = to("far", &self::options(dir, &bad), &NoQuestions).await.err().unwrap();
    assert!(error.to_string().contains("no way there"), "{error}");
}

// ── certificates ────────────────────────────────────────────────────────────────────────────

fn sign(ca: &Path, key: &Path, more: &[&str]) {
    let public = format!("{}.pub", key.display());
    tool(
        "ssh-keygen",
        &[&["-q", "-s", ca.to_str().unwrap(), "-I", "test"], more, &[&public]].concat(),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn user_certificates_let_us_in() {
    if !lab() {
        return;
    }
    let mut server = Sshd::start();
    let ca = server.path("ca");
    keygen(&ca, "ed25519", "");
    add_to(&mut server, &format!("TrustedUserCAKeys {}.pub\n", ca.display()));
    fs::write(server.path("authorized_keys"), "").unwrap();
    for kind in ["ed25519", "rsa", "ecdsa"] {
        let key = server.path(&format!("certified_{kind}"));
        keygen(&key, kind, "");
        let base = block("box", &server, "")
            .replace(&server.user_key().display().to_string(), &key.display().to_string());
        let error =
            to("box", &options(server.dir.path(), &base), &NoQuestions).await.err().unwrap();
        assert!(matches!(error, SshError::AuthFailed { .. }), "{error}");
        sign(&ca, &key, &["-n", "root"]);
        to("box", &options(server.dir.path(), &base), &NoQuestions).await.expect(kind);
        // Somewhere else, and named.
        let (beside, moved) = (format!("{}-cert.pub", key.display()), server.path("elsewhere.pub"));
        fs::rename(&beside, &moved).unwrap();
        let named = format!("{base} CertificateFile {}\n", moved.display());
        to("box", &options(server.dir.path(), &named), &NoQuestions).await.expect(kind);
        // The agent has the plain key, a file the certificate.
        let agent = Agent::start(&server.path(&format!("agent_{kind}"))).await;
        agent.add(&key);
        fs::rename(&key, server.path("gone")).unwrap();
        let mut options = options(server.dir.path(), &named);
        options.agents = Arc::new(Agents::new(Some(agent.socket.clone())));
        to("box", &options, &NoQuestions).await.expect(kind);
        // The agent has both.
        fs::rename(server.path("gone"), &key).unwrap();
        fs::rename(&moved, &beside).unwrap();
        agent.add(&key);
        fs::remove_file(&key).unwrap();
        fs::remove_file(&beside).unwrap();
        fs::remove_file(format!("{}.pub", key.display())).unwrap();
        options.config = ConfigFiles::Text(base.as_str().into());
        to("box", &options, &NoQuestions).await.expect(kind);
    }
}

struct Agent {
    socket: std::path::PathBuf,
    child: std::process::Child,
}

impl Agent {
    async fn start(socket: &Path) -> Self {
        let child = std::process::Command::new("ssh-agent")
            .args(["-D", "-a"])
            .arg(socket)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let agent = Self { socket: socket.to_owned(), child };
        ssh_support::until_listens(socket).await;
        agent
    }

    fn add(&self, key: &Path) {
        let out = std::process::Command::new("ssh-add")
            .arg(key)
            .env("SSH_AUTH_SOCK", &self.socket)
            .output()
            .unwrap();
        assert!(out.status.success(), "{out:?}");
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn host_certificates_are_believed_as_far_as_they_go() {
    if !lab() {
        return;
    }
    let mut server = Sshd::start();
    let (ca, host) = (server.path("ca"), server.path("host_ed25519"));
    let server_host_key = server.path("host_ed25519.pub");
    keygen(&ca, "ecdsa", "");
    add_to(&mut server, &format!("HostCertificate {}-cert.pub\n", host.display()));
    let public = fs::read_to_string(format!("{}.pub", ca.display())).unwrap();
    let block = block("box", &server, "");
    let plain = server.known_hosts_line("ed25519");
    let other_key = fs::read_to_string(server.path("user_key.pub")).unwrap();
    let other_key = format!("[127.0.0.1]:{} {other_key}", server.port);
    let authority = format!("@cert-authority [127.0.0.1]:* {public}");
    let mut known = |lines: &str, args: &[&str]| {
        sign(&ca, &host, &[&["-h"], args].concat());
        fs::write(server.path("known_hosts"), lines).unwrap();
        server.kill();
        server.up();
        options(server.dir.path(), &block)
    };
    let good = known(&authority, &["-n", "127.0.0.1"]);
    to("box", &good, &NoQuestions).await.unwrap();
    for (args, word) in [
        (&["-n", "another.host"][..], "it is for another.host"),
        (&["-n", "127.0.0.1", "-V", "20200101:20200102"], "expired"),
        (&["-n", "127.0.0.1", "-V", "20990101:20990102"], "not valid yet"),
    ] {
        let error = to("box", &known(&authority, args), &NoQuestions).await.err().unwrap();
        assert!(matches!(error, SshError::HostKeyBad { .. }), "{error}");
        assert!(error.to_string().contains(word), "{error}");
    }
    // Where the plain key is known as well, that is enough, and that it has changed is said.
    let expired = &["-n", "127.0.0.1", "-V", "20200101:20200102"];
    let both = known(&(authority.clone() + &plain), expired);
    to("box", &both, &NoQuestions).await.unwrap();
    let changed = known(&(authority.clone() + &other_key), expired);
    let error = to("box", &changed, &NoQuestions).await.err().unwrap();
    assert!(matches!(error, SshError::HostKeyChanged { line: 2, .. }), "{error}");
    let revoked = known(&format!("{authority}@revoked * {public}"), &["-n", "127.0.0.1"]);
    let error = to("box", &revoked, &NoQuestions).await.err().unwrap();
    assert!(matches!(error, SshError::HostKeyRevoked { line: 2, .. }), "{error}");
    // What is revoked for the plain name is so on every port, be it the authority or the key.
    let host_key = fs::read_to_string(server_host_key).unwrap();
    for revoked in [&public, &host_key] {
        let lines = format!("{authority}@revoked 127.0.0.1 {revoked}");
        let error =
            to("box", &known(&lines, &["-n", "127.0.0.1"]), &NoQuestions).await.err().unwrap();
        assert!(matches!(error, SshError::HostKeyRevoked { line: 2, .. }), "{error}");
    }
    // Of another authority: the key itself must be known.
    let line = authority.replace("127.0.0.1", "10.9.8.7");
    let other = known(&line, &["-n", "127.0.0.1"]);
    let error = to("box", &other, &NoQuestions).await.err().unwrap();
    assert!(matches!(error, SshError::HostKeyUnknown { .. }), "{error}");
}

// ── what the configuration allows ───────────────────────────────────────────────────────────

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
    for (said, cause, word) in [
        ("HTTP/1.1 400 Bad\r\n\r\n", DownCause::NotSsh, "HTTP/1.1 400 Bad"),
        ("Exceeded MaxStartups\r\n", DownCause::ConnectionLost, "Exceeded MaxStartups"),
        ("SSH-2.0-x\r\n", DownCause::ConnectionLost, "hung up"),
    ] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(said.as_bytes()).await.unwrap();
            // Read what is said, so that the end is an end and not a reset.
            let _ = stream.shutdown().await;
            let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
        });
        let text = format!("Host box\n HostName 127.0.0.1\n Port {port}\n");
        let error = to("box", &options(dir.path(), &text), &NoQuestions).await.err().unwrap();
        assert_eq!(error.cause(), cause, "{said}: {error}");
        assert!(error.to_string().contains(word), "{error}");
    }
}

// ── a server's own questions ────────────────────────────────────────────────────────────────

/// A server that wants what OpenSSH without PAM cannot want.
#[derive(Clone)]
struct Asking {
    /// `password`, `codes` (password and code by questions) or `hang`.
    wants: &'static str,
    step: usize,
}

impl server::Server for Asking {
    type Handler = Self;
    fn new_client(&mut self, _: Option<std::net::SocketAddr>) -> Self {
        self.clone()
    }
}

impl server::Handler for Asking {
    type Error = russh::Error;

    async fn auth_none(&mut self, _: &str) -> Result<Auth, Self::Error> {
        if self.wants == "hang" {
            std::future::pending::<()>().await;
        }
        Ok(self.no())
    }

    async fn auth_password(&mut self, _: &str, password: &str) -> Result<Auth, Self::Error> {
        Ok(if password == "open sesame" { Auth::Accept } else { self.no() })
    }

    async fn auth_keyboard_interactive<'a>(
        &'a mut self,
        _: &str,
        _: &str,
        response: Option<server::Response<'a>>,
    ) -> Result<Auth, Self::Error> {
        let wanted = ["open sesame", "123456"];
        if let Some(response) = response {
            let given: Vec<_> = response.map(|r| r.to_vec()).collect();
            if given != [wanted[self.step].as_bytes()] {
                self.step = 0;
                return Ok(self.no());
            }
            self.step += 1;
        }
        let Some(prompt) = ["Password: ", "Code\u{1b}[31m: "].get(self.step) else {
            return Ok(Auth::Accept);
        };
        Ok(Auth::Partial {
            name: "".into(),
            instructions: "".into(),
            prompts: vec![((*prompt).into(), false)].into(),
        })
    }

    async fn channel_open_session(
        &mut self,
        _: Channel<Msg>,
        reply: server::ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        if self.wants == "no channel" {
            std::future::pending::<()>().await;
        } else {
            reply.accept().await;
        }
        Ok(())
    }

    async fn exec_request(
        &mut self,
        channel: ChannelId,
        _: &[u8],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        session.channel_success(channel)?;
        session.exit_status_request(channel, 0)?;
        session.close(channel)
    }
}

impl Asking {
    fn no(&self) -> Auth {
        let kind = match self.wants {
            "codes" => MethodKind::KeyboardInteractive,
            _ => MethodKind::Password,
        };
        Auth::Reject {
            proceed_with_methods: Some(MethodSet::from(&[kind][..])),
            partial_success: false,
        }
    }

    /// Serves on a port of the loopback interface; the task ends with the test's runtime.
    async fn serve(wants: &'static str, key: &Path) -> u16 {
        let key = russh::keys::load_secret_key(key, None).unwrap();
        let config = server::Config {
            keys: vec![key],
            auth_rejection_time: Duration::from_millis(1),
            auth_rejection_time_initial: Some(Duration::ZERO),
            ..server::Config::default()
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            Asking { wants, step: 0 }.run_on_socket(Arc::new(config), &listener).await
        });
        port
    }
}

struct Person {
    answers: Mutex<VecDeque<&'static str>>,
    asked: Mutex<Vec<String>>,
}

impl Person {
    fn who_says(answers: &[&'static str]) -> Self {
        Self { answers: Mutex::new(answers.iter().copied().collect()), asked: Mutex::default() }
    }
}

#[async_trait]
impl Questions for Person {
    async fn host_key(&self, _: &str, _: &str, _: &str) -> bool {
        true
    }

    async fn secret(&self, prompt: &str) -> Option<SecretString> {
        self.asked.lock().unwrap().push(prompt.to_owned());
        self.answers.lock().unwrap().pop_front().map(SecretString::from)
    }
}

fn asking_block(port: u16, dir: &Path) -> String {
    format!(
        "Host box\n HostName 127.0.0.1\n Port {port}\n User u\n IdentityFile none\n \
         UserKnownHostsFile {}\n StrictHostKeyChecking accept-new\n",
        dir.join(format!("kh{port}")).display()
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_servers_questions_are_answered_by_a_person() {
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("host");
    if std::process::Command::new("ssh-keygen").arg("-?").output().is_err() && !lab() {
        return;
    }
    keygen(&key, "ed25519", "");
    let port = Asking::serve("codes", &key).await;
    let options = options(dir.path(), &asking_block(port, dir.path()));
    let person = Person::who_says(&["wrong", "open sesame", "123456"]);
    to("box", &options, &person).await.unwrap();
    let asked = person.asked.lock().unwrap().clone();
    assert_eq!(asked.len(), 3, "{asked:?}");
    assert!(asked[2].contains("u@127.0.0.1") && asked[2].ends_with("Code:"), "{asked:?}");
    // Nobody there: a named cause, and no question.
    let error = to("box", &options, &NoQuestions).await.err().unwrap();
    assert!(error.to_string().contains("nobody answers") && error.login_lost(), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_is_asked_for_once() {
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("host");
    if std::process::Command::new("ssh-keygen").arg("-?").output().is_err() && !lab() {
        return;
    }
    keygen(&key, "ed25519", "");
    let port = Asking::serve("password", &key).await;
    let options = options(dir.path(), &asking_block(port, dir.path()));
    let person = Person::who_says(&["wrong", "open sesame"]);
    to("box", &options, &person).await.unwrap();
    assert!(person.asked.lock().unwrap()[1].starts_with("wrong password; "));
    // The next connection knows it.
    let connection = to("box", &options, &NoQuestions).await.unwrap();
    says(&connection, "true").await;
    let silent = Person::who_says(&[]);
    let forgetful = ConnectOptions { key_ring: Arc::default(), ..options };
    assert!(to("box", &forgetful, &silent).await.is_err());
    assert!(to("box", &forgetful, &silent).await.is_err());
    assert_eq!(silent.asked.lock().unwrap().len(), 1, "asked again at once");
}

// ── hosts that hang ─────────────────────────────────────────────────────────────────────────

#[tokio::test(flavor = "multi_thread")]
async fn hosts_that_hang_in_any_phase_hold_up_nobody() {
    if !lab() {
        return;
    }
    let server = Sshd::start();
    let dir = server.dir.path();
    let key = server.path("host_ed25519");
    let silent = ssh_support::Tarpit::start();
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
