//! Who is waited for, and for how long: agents that hang or do not sign, and servers that do not wait
//! for a person's answer.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod ssh_support;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use gpudeck::base::{DownCause, Hint};
use gpudeck::ssh::agents::{AgentStream, LentAgent};
use gpudeck::ssh::{
    Agents, ConfigFiles, ConnectOptions, Endpoint, NoQuestions, Pace, Place, Questions,
    RusshConnection, SshError, Target, Timeouts, connect,
};
use secrecy::SecretString;
use ssh_support::{Sshd, keygen, lab, tool};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::Barrier;

/// A real ssh-agent with one key.
struct Agent {
    socket: PathBuf,
    child: std::process::Child,
}

impl Agent {
    async fn start(dir: &Path, key: &Path) -> Self {
        let socket = dir.join("agent");
        let child = std::process::Command::new("ssh-agent")
            .args(["-D", "-a"])
            .arg(&socket)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let agent = Self { socket, child };
        ssh_support::until_listens(&agent.socket).await;
        let socket = format!("SSH_AUTH_SOCK={}", agent.socket.display());
        tool("env", &[&socket, "ssh-add", "-q", key.to_str().unwrap()]);
        agent
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The keys of a real agent, and never a signature: somebody would have to touch something.
struct Untouched {
    real: PathBuf,
    asked: Arc<AtomicUsize>,
}

#[async_trait]
impl LentAgent for Untouched {
    async fn open(&self) -> io::Result<Box<dyn AgentStream>> {
        let mut real = UnixStream::connect(&self.real).await?;
        let (ours, mut theirs) = tokio::io::duplex(1 << 16);
        let asked = Arc::clone(&self.asked);
        tokio::spawn(async move {
            while let Ok(length) = theirs.read_u32().await {
                let mut message = vec![0; usize::try_from(length).unwrap()];
                theirs.read_exact(&mut message).await.unwrap();
                if message[0] == 13 {
                    asked.fetch_add(1, Ordering::SeqCst);
                    std::future::pending::<()>().await;
                }
                real.write_u32(length).await.unwrap();
                real.write_all(&message).await.unwrap();
                let length = real.read_u32().await.unwrap();
                let mut answer = vec![0; usize::try_from(length).unwrap()];
                real.read_exact(&mut answer).await.unwrap();
                theirs.write_u32(length).await.unwrap();
                theirs.write_all(&answer).await.unwrap();
            }
        });
        Ok(Box::new(ours))
    }
}

/// Opens when all others are asked as well.
struct Together {
    all: Arc<Barrier>,
    then: PathBuf,
}

#[async_trait]
impl LentAgent for Together {
    async fn open(&self) -> io::Result<Box<dyn AgentStream>> {
        self.all.wait().await;
        Ok(Box::new(UnixStream::connect(&self.then).await?))
    }
}

/// A server that takes a key of which only agents know, and how to get there.
async fn only_agents() -> (Sshd, Agent, ConnectOptions) {
    let server = Sshd::start();
    let keys = server.path("elsewhere");
    std::fs::create_dir(&keys).unwrap();
    let key = keys.join("key");
    keygen(&key, "ed25519", "");
    server.authorize(&key);
    let agent = Agent::start(&keys, &key).await;
    let options = options(&server, " IdentityFile none");
    (server, agent, options)
}

fn options(server: &Sshd, more: &str) -> ConnectOptions {
    let text = format!(
        "Host box\n HostName 127.0.0.1\n Port {}\n User root\n UserKnownHostsFile {}\n \
         GlobalKnownHostsFile none\n{more}\n",
        server.port,
        server.known_hosts("ed25519").display()
    );
    let mut place = Place::here();
    server.dir.path().clone_into(&mut place.home);
    ConnectOptions {
        config: ConfigFiles::Text(text.as_str().into()),
        place,
        agents: Arc::new(Agents::new(None)),
        key_ring: Arc::default(),
        jumps: Arc::default(),
        pace: Arc::default(),
        timeouts: Timeouts::default(),
    }
}

async fn to_box(
    options: &ConnectOptions,
    questions: &dyn Questions,
) -> Result<RusshConnection, SshError> {
    let target = Target { name: "box".to_owned(), ..Target::default() };
    let endpoint = Endpoint::resolve(&target, options)?;
    connect(&endpoint, options, questions, &|_| ()).await
}

/// Another configuration for a server.
fn change(server: &mut Sshd, change: impl Fn(String) -> String) {
    server.kill();
    let config = server.path("sshd_config");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, change(text)).unwrap();
    server.up();
}

/// It takes passwords, and waits four seconds for a login.
fn impatient(server: &mut Sshd) {
    change(server, |text| {
        let text = text.replace("PasswordAuthentication no", "PasswordAuthentication yes");
        text + "LoginGraceTime 4\n"
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_does_not_wait_for_an_agent_is_a_lost_login() {
    if !lab() {
        return;
    }
    let (mut server, agent, mut options) = only_agents().await;
    impatient(&mut server);
    // Nobody waits so long for a touch when the server does not.
    options.timeouts.sign = Duration::from_mins(10);
    let asked = Arc::new(AtomicUsize::new(0));
    let untouched = Untouched { real: agent.socket.clone(), asked: Arc::clone(&asked) };
    let _lease = options.agents.lend(Arc::new(untouched));
    let connecting = tokio::time::timeout(Duration::from_secs(120), to_box(&options, &NoQuestions));
    let error = connecting.await.expect("the end was not seen").err().unwrap();
    assert!(error.login_lost(), "{error}");
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_does_not_sign_in_time_is_a_lost_login() {
    if !lab() {
        return;
    }
    let (_server, agent, mut options) = only_agents().await;
    options.timeouts.sign = Duration::from_secs(1);
    let asked = Arc::new(AtomicUsize::new(0));
    let untouched = Untouched { real: agent.socket.clone(), asked: Arc::clone(&asked) };
    let _lease = options.agents.lend(Arc::new(untouched));
    let error = to_box(&options, &NoQuestions).await.err().unwrap();
    assert_eq!(error.cause(), DownCause::LoginLost, "{error}");
    assert!(error.to_string().contains("did not sign with within 1s"), "{error}");
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_agents_with_one_key_the_other_is_asked_when_the_newest_does_not_sign() {
    if !lab() {
        return;
    }
    let (server, agent, mut options) = only_agents().await;
    options.agents = Arc::new(Agents::new(Some(agent.socket.clone())));
    // So long for one that is not the last.
    options.timeouts.auth = Duration::from_secs(3);
    let asked = Arc::new(AtomicUsize::new(0));
    let untouched = Untouched { real: agent.socket.clone(), asked: Arc::clone(&asked) };
    let _lease = options.agents.lend(Arc::new(untouched));
    to_box(&options, &NoQuestions).await.unwrap();
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    let log = std::fs::read_to_string(server.path("log")).unwrap();
    assert!(!log.contains("Failed publickey"), "offered once:\n{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_are_asked_all_at_once() {
    if !lab() {
        return;
    }
    let (_server, agent, options) = only_agents().await;
    let all = Arc::new(Barrier::new(5));
    let lend = |_| {
        let together = Together { all: Arc::clone(&all), then: agent.socket.clone() };
        options.agents.lend(Arc::new(together))
    };
    let _leases: Vec<_> = (0..5).map(lend).collect();
    to_box(&options, &NoQuestions).await.unwrap();
}

/// Somebody who is elsewhere; how many questions are open.
#[derive(Default)]
struct Elsewhere {
    open: AtomicUsize,
    asked: AtomicUsize,
}

struct Question<'a>(&'a AtomicUsize);

impl Drop for Question<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[async_trait]
impl Questions for Elsewhere {
    async fn host_key(&self, _: &str, _: &str, _: &str) -> Option<bool> {
        None
    }

    async fn secret(&self, _: &str) -> Option<SecretString> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        self.open.fetch_add(1, Ordering::SeqCst);
        let _question = Question(&self.open);
        std::future::pending().await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_goes_with_the_server_that_did_not_wait_for_its_answer() {
    if !lab() {
        return;
    }
    let mut server = Sshd::start();
    impatient(&mut server);
    let options = options(&server, " PreferredAuthentications password\n IdentityFile none");
    for asked in 1..=2 {
        let person = Elsewhere::default();
        let connecting = tokio::time::timeout(Duration::from_secs(60), to_box(&options, &person));
        let error = connecting.await.expect("the question stays").err().unwrap();
        assert!(matches!(error, SshError::Unanswered { .. }), "{error}");
        assert!(error.login_lost() && error.hint().unwrap().contains("LoginGraceTime"));
        assert_eq!(person.open.load(Ordering::SeqCst), 0);
        // And nobody has declined: it is asked again.
        assert_eq!(person.asked.load(Ordering::SeqCst), 1, "time {asked}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn proxy_commands_are_not_started_all_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let (started, go) = (dir.path().join("started"), dir.path().join("go"));
    let command = format!(
        "sh -c 'echo %h >> {}; until test -e {}; do sleep 0.05; done'",
        started.display(),
        go.display()
    );
    let mut place = Place::here();
    dir.path().clone_into(&mut place.home);
    let options = ConnectOptions {
        config: ConfigFiles::Text(format!("ProxyCommand {command}\n").as_str().into()),
        place,
        agents: Arc::default(),
        key_ring: Arc::default(),
        jumps: Arc::default(),
        pace: Arc::new(Pace::keeping(Duration::from_mins(10))),
        timeouts: Timeouts { handshake: Duration::from_mins(2), ..Timeouts::default() },
    };
    let mut all = tokio::task::JoinSet::new();
    for n in 0..20 {
        let options = options.clone();
        all.spawn(async move {
            let target = Target { name: format!("h{n}"), ..Target::default() };
            let endpoint = Endpoint::resolve(&target, &options).unwrap();
            connect(&endpoint, &options, &NoQuestions, &|_| ()).await.err().unwrap()
        });
    }
    let count = || std::fs::read_to_string(&started).unwrap_or_default().lines().count();
    ssh_support::until("the first", Duration::from_mins(1), || count() >= 8).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(count(), 8);
    std::fs::write(&go, "").unwrap();
    while let Some(error) = all.join_next().await {
        error.unwrap();
    }
    assert_eq!(count(), 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_lets_only_some_wait_drops_nobody() {
    if !lab() {
        return;
    }
    let mut server = Sshd::start();
    change(&mut server, |text| text.replace("MaxStartups 200", "MaxStartups 14:100:14"));
    let key = format!(" IdentityFile {}", server.user_key().display());
    let mut options = options(&server, &key);
    // Not given back before the login is done, however slow this machine is.
    options.pace = Arc::new(Pace::keeping(Duration::from_mins(10)));
    let each = (0..40).map(|_| to_box(&options, &NoQuestions));
    for done in futures::future::join_all(each).await {
        done.unwrap();
    }
}
