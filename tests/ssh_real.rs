//! The ssh floor against a real OpenSSH server, and the conformance suite of both connections.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod ssh_support;

use std::collections::VecDeque;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use gpudeck::base::Hint;
use gpudeck::ssh::{
    Agents, ConfigFiles, ConnectOptions, Connection, Endpoint, ExitStatus, LocalConnection,
    NoQuestions, Place, Questions, RusshConnection, SshError, Target, Timeouts, connect, run,
};
use secrecy::SecretString;
use ssh_support::{Agent, Sshd, Tarpit, free_port, keygen, lab, tool, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A person who has made up their mind.
#[derive(Default)]
struct Person {
    trusts: Option<bool>,
    secrets: Mutex<VecDeque<&'static str>>,
    asked: Mutex<Vec<String>>,
}

impl Person {
    fn trusting() -> Self {
        Self { trusts: Some(true), ..Self::default() }
    }

    fn knowing(secrets: &[&'static str]) -> Self {
        Self { secrets: Mutex::new(secrets.iter().copied().collect()), ..Self::trusting() }
    }

    fn asked(&self) -> usize {
        self.asked.lock().unwrap().len()
    }
}

#[async_trait]
impl Questions for Person {
    async fn host_key(&self, host: &str, key_type: &str, fingerprint: &str) -> Option<bool> {
        self.asked.lock().unwrap().push(format!("{host} {key_type} {fingerprint}"));
        self.trusts
    }

    async fn secret(&self, prompt: &str) -> Option<SecretString> {
        self.asked.lock().unwrap().push(prompt.to_owned());
        self.secrets.lock().unwrap().pop_front().map(SecretString::from)
    }
}

fn options(home: &Path) -> ConnectOptions {
    let mut place = Place::here();
    home.clone_into(&mut place.home);
    ConnectOptions {
        config: ConfigFiles::Text("".into()),
        place,
        agents: Arc::default(),
        key_ring: Arc::default(),
        jumps: Arc::default(),
        pace: Arc::default(),
        timeouts: Timeouts::default(),
    }
}

fn target(server: &Sshd, known_hosts: &Path) -> Target {
    Target {
        name: "box".to_owned(),
        address: Some("127.0.0.1".to_owned()),
        port: Some(server.port),
        user: Some("root".to_owned()),
        identity_files: vec![server.user_key().display().to_string()],
        known_hosts: Some(known_hosts.display().to_string()),
    }
}

async fn try_connect(
    target: &Target,
    options: &ConnectOptions,
    questions: &dyn Questions,
) -> Result<RusshConnection, SshError> {
    let endpoint = Endpoint::resolve(target, options)?;
    connect(&endpoint, options, questions, &|_| ()).await
}

async fn says(connection: &dyn Connection, command: &str) -> String {
    let out = run(connection, command, b"", 1 << 20, Duration::from_secs(20)).await.unwrap();
    assert!(out.status.success(), "{command}: {out:?}");
    String::from_utf8(out.stdout).unwrap()
}

// ── conformance ─────────────────────────────────────────────────────────────────────────────

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

// ── keys ────────────────────────────────────────────────────────────────────────────────────

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
        let mut target = self::target(&server, &server.known_hosts("ed25519"));
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
    let target = self::target(&server, &server.known_hosts("ed25519"));
    let mut options = options;
    options.agents = Arc::new(Agents::new(Some(agent.socket.clone())));
    try_connect(&target, &options, &NoQuestions).await.unwrap();
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

// ── host keys ───────────────────────────────────────────────────────────────────────────────

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

// ── the way there ───────────────────────────────────────────────────────────────────────────

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
