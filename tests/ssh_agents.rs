//! SSH agents that doors lend to the controller, and what happens when the login is lost: against real
//! sshds on the loopback interface and real ssh-agents.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod common;
mod ssh_support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::{Finished, Gpudeck, Traces, run, wait_until};
use gpudeck::api::lend::{AgentAnswer, AgentMessage, ToLender};
use gpudeck::api::{Client, DownCause, HostLinkState};
use serde_json::Value;
use ssh_support::{Sshd, keygen, lab, listens};

const DEADLINE: Duration = Duration::from_secs(120);

/// An ssh-agent with one key that is nowhere else.
struct Agent {
    socket: PathBuf,
    child: Child,
}

impl Agent {
    fn start(socket: PathBuf, key: &Path) -> Self {
        let child = Command::new("ssh-agent")
            .args(["-D", "-a"])
            .arg(&socket)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let agent = Self { socket, child };
        wait_until("the agent listens", DEADLINE, || listens(&agent.socket));
        let mut add = Command::new("ssh-add");
        run(add.arg(key).env("SSH_AUTH_SOCK", &agent.socket), DEADLINE).expect_success();
        agent
    }

    /// The login session that brought it is over.
    fn end(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.socket);
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A deck with two hosts that let in a key which only agents hold.
struct Deck {
    person: Gpudeck,
    hosts: Vec<Sshd>,
    /// The key, out of gpudeck's sight.
    key: PathBuf,
    _keys: tempfile::TempDir,
    traces: Traces,
}

impl Deck {
    fn new() -> Self {
        let person = Gpudeck::new();
        let traces = Traces::of(&person);
        person.run(["init", "--name", "shop"], DEADLINE).expect_success();
        let keys = tempfile::tempdir().unwrap();
        let key = keys.path().join("key");
        keygen(&key, "ed25519", "");
        let file = person.deck().join("deck.toml");
        let mut text = fs::read_to_string(&file).unwrap();
        let mut hosts = Vec::new();
        for name in ["h1", "h2"] {
            let server = Sshd::start();
            fs::write(server.path("authorized_keys"), "").unwrap();
            server.authorize(&key);
            let port = common::engine_port();
            text.push_str(&format!(
                "\n[hosts.{name}]\naddress = \"127.0.0.1\"\nport = {}\nuser = \"root\"\n\
                 known_hosts = \"{}\"\nfirst_engine_port = {port}\n\
                 agent_env = {{ GPUDECK_STATE_DIR = \"{}\" }}\n",
                server.port,
                server.known_hosts("ed25519").display(),
                person.home().join(name).display()
            ));
            hosts.push(server);
        }
        fs::write(&file, text).unwrap();
        let deck = Self { person, hosts, key, _keys: keys, traces };
        deck.write_spec("one");
        deck
    }

    fn write_spec(&self, greeting: &str) {
        let spec = format!(
            r#"
model    = "tiny"
replicas = 2
device   = "cpu"
memory   = "1MiB"
env      = {{ GREETING = "{greeting}" }}

[engine.command]
run = ["{{gpudeck}}", "sim-engine", "--port", "{{port}}", "--load-time", "100ms"]

[placement]
spread = "host"

[rollout]
steps             = [{{ weight = 50 }}, {{ approve = true }}]
healthy_deadline  = "15s"
progress_deadline = "20s"
"#
        );
        fs::write(self.person.deck().join("services/chat.toml"), spec).unwrap();
    }

    fn agent(&self, name: &str) -> Agent {
        Agent::start(self.person.home().join(name), &self.key)
    }

    /// A command in a session with this agent, or with none.
    fn run(&self, agent: Option<&Agent>, words: &str) -> Finished {
        let mut command = self.person.command(words.split(' '));
        if let Some(agent) = agent {
            command.env("SSH_AUTH_SOCK", &agent.socket);
        }
        run(&mut command, DEADLINE)
    }

    fn status(&self) -> Value {
        let done = self.run(None, "status --output json").expect_success();
        serde_json::from_str::<Value>(&done.stdout).unwrap()["services"].take()
    }

    fn socket(&self) -> PathBuf {
        let decks = fs::read_dir(self.person.home().join(".local/state/gpudeck")).unwrap();
        decks.flatten().map(|d| d.path().join("controller.sock")).find(|p| p.exists()).unwrap()
    }

    fn end(self) {
        self.run(None, "stop chat --yes");
        self.run(None, "controller stop");
        drop(self.traces);
    }
}

#[test]
fn a_lost_login_holds_the_rollout_until_an_agent_is_lent_again() {
    if !lab() {
        return;
    }
    let mut deck = Deck::new();
    // The session that starts the controller brings the agent.
    let first = deck.agent("first");
    deck.run(Some(&first), "apply chat --wait --timeout 100s").expect_success();
    deck.write_spec("two");
    deck.run(Some(&first), "apply chat --yes").expect_success();
    let waits = || {
        let text = deck.run(None, "status chat").stdout;
        let went_back = text.contains("taken back") || text.contains("rolled back");
        assert!(!went_back, "{text}\n{}", deck.run(None, "events").stdout);
        text.contains("waits for approval")
    };
    wait_until("the gate", DEADLINE, waits);

    // Detached: the agent goes with its session, and a host's sshd is restarted.
    first.end();
    deck.hosts[0].kill();
    deck.hosts[0].up();
    let status = || deck.run(None, "status").stdout;
    wait_until("the named state", DEADLINE, || status().contains("! login-lost since"));
    let text = status();
    assert!(text.contains("h1 does not let us in any more"), "{text}");
    assert!(text.contains("ssh-add"), "{text}");
    let hosts = deck.run(None, "hosts").expect_success().stdout;
    assert!(hosts.contains("login-lost"), "{hosts}");

    // A person lets it go on; nothing is taken out all the same.
    deck.run(None, "rollout promote chat").expect_success();
    let held = || {
        let events = deck.run(None, "events").expect_success().stdout;
        events.contains("promotes") && events.contains("is held before its next step")
    };
    wait_until("the hold", DEADLINE, held);
    let chat = &deck.status()["chat"];
    assert_eq!(chat["condition"], "held", "{chat}");
    assert_eq!(chat["ready"], 3, "{chat}");

    // Another session brings an agent, and waits: the host is back, the rollout goes on to its end.
    let second = deck.agent("second");
    let done = deck.run(Some(&second), "rollout status chat --wait --timeout 100s");
    assert_eq!(done.code(), Some(0), "{done:#?}\n{}", deck.run(None, "events").stdout);
    let text = status();
    assert!(!text.contains("login-lost"), "{text}");
    // In this order: held, promoted, gone on, and only then the old release was taken out.
    let events = deck.run(None, "events").expect_success().stdout;
    let lines: Vec<&str> = events.lines().collect();
    let after = |what: &str, from: usize| {
        let found = lines.iter().enumerate().skip(from).find(|(_, line)| line.contains(what));
        found.unwrap_or_else(|| panic!("no {what:?} after line {from}:\n{events}")).0
    };
    let held = after("is held before its next step", 0);
    let promoted = after("promotes", 0);
    let on = after("goes on: its hosts let us in again", held.max(promoted));
    let drains = lines.iter().enumerate().filter(|(_, l)| l.contains(" drains"));
    let in_between: Vec<_> = drains.filter(|(n, _)| (held..on).contains(n)).collect();
    assert!(in_between.is_empty(), "{in_between:?}\n{events}");
    after(" drains", on);
    deck.end();
}

#[test]
fn all_hosts_that_wait_for_one_passphrase_are_held() {
    if !lab() {
        return;
    }
    let mut deck = Deck::new();
    // The key is a file now, and encrypted once the service runs.
    let file = deck.person.deck().join("deck.toml");
    let text = fs::read_to_string(&file).unwrap();
    let user = format!("user = \"root\"\nidentity_files = [\"{}\"]", deck.key.display());
    fs::write(&file, text.replace("user = \"root\"", &user)).unwrap();
    deck.run(None, "apply chat --wait --timeout 100s").expect_success();
    let key = deck.key.display().to_string();
    ssh_support::tool("ssh-keygen", &["-q", "-p", "-P", "", "-N", "open sesame", "-f", &key]);
    for host in &mut deck.hosts {
        host.kill();
        host.up();
    }
    // One of them asks, and the other one is no less lost.
    let status = || deck.run(None, "status").stdout;
    wait_until("both", DEADLINE, || status().contains("h1, h2 do not let us in any more"));
    let questions = deck.run(None, "questions --output json").expect_success().stdout;
    assert_eq!(questions.matches("passphrase of").count(), 1, "{questions}");
    deck.end();
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

/// How h1 is.
async fn h1(client: &Client) -> HostLinkState {
    let snapshot = client.snapshot().await.unwrap();
    snapshot.hosts[&"h1".parse().unwrap()].link.clone()
}

async fn wait_h1(client: &Client, what: &str, holds: impl Fn(&HostLinkState) -> bool) {
    let deadline = std::time::Instant::now() + DEADLINE;
    loop {
        let link = h1(client).await;
        if holds(&link) {
            return;
        }
        assert!(std::time::Instant::now() < deadline, "waited in vain for {what}: {link:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn lost(link: &HostLinkState) -> bool {
    matches!(link, HostLinkState::Down { kind: DownCause::LoginLost, .. })
}

#[test]
fn an_agent_is_lent_by_a_door_and_goes_with_it() {
    if !lab() {
        return;
    }
    let mut deck = Deck::new();
    // A controller that has no agent of its own.
    deck.run(None, "status").expect_success();
    let socket = deck.socket();
    let agent = deck.agent("agent");
    let runtime = runtime();
    runtime.block_on(async {
        let plain = Client::connect(&socket).await.unwrap();
        wait_h1(&plain, "no login", lost).await;
        // A door without a key lends nothing that helps, and a door that lies is not believed.
        let liar = liar(&socket);
        let door = plain.clone().lending(agent.socket.clone());
        wait_h1(&plain, "the login", |link| *link == HostLinkState::Up).await;
        liar.abort();
        // It is gone with its door: the next login fails.
        drop(door);
        deck.hosts[0].kill();
        deck.hosts[0].up();
        wait_h1(&plain, "the lost login", lost).await;
        let conditions = plain.snapshot().await.unwrap().deck.conditions;
        let named = conditions.iter().find(|c| c.kind.name() == "login-lost").unwrap();
        assert!(named.text.contains("h1 does not let us in"), "{named:?}");
        // And back with another door.
        let _door = plain.clone().lending(agent.socket.clone());
        wait_h1(&plain, "the login", |link| *link == HostLinkState::Up).await;
    });
    deck.end();
}

/// A door that lends an agent, and answers whatever it is asked with nonsense of every kind.
fn liar(socket: &Path) -> tokio::task::JoinHandle<()> {
    let socket = socket.to_owned();
    tokio::spawn(async move {
        let stream = tokio::net::UnixStream::connect(&socket).await.unwrap();
        let (mut read, mut write) = stream.into_split();
        let ask = b"GET /v1/agent HTTP/1.1\r\nHost: x\r\n\r\n";
        tokio::io::AsyncWriteExt::write_all(&mut write, ask).await.unwrap();
        let mut text = String::new();
        let (mut lease, mut n) = (None, 0_u64);
        let mut buffer = [0; 8192];
        while let Ok(length @ 1..) = tokio::io::AsyncReadExt::read(&mut read, &mut buffer).await {
            text.push_str(&String::from_utf8_lossy(&buffer[..length]));
            while let Some(end) = text.find('\n') {
                let line = text[..end].trim().to_owned();
                text.drain(..=end);
                match serde_json::from_str(&line) {
                    Ok(ToLender::Lent { lease: own }) => lease = Some(own),
                    Ok(ToLender::Ask { id, .. }) => {
                        n += 1;
                        let lies = [
                            vec![12, 0xff, 0xff, 0xff, 0xff],
                            vec![14, 0, 0, 0, 1, 0],
                            vec![],
                            vec![12, 0, 0, 0, 1, 0, 0, 0, 3, 1, 2, 3, 0, 0, 0, 0],
                        ];
                        let lie = lies[usize::try_from(n % 4).unwrap()].clone();
                        let message = Some(AgentMessage(lie));
                        let answer = AgentAnswer { lease: lease.unwrap(), id, message };
                        post(&socket, &serde_json::to_string(&answer).unwrap()).await;
                        // To a question that nobody asked, and for a door that is not there.
                        let other = AgentAnswer { id: id + 1000, ..answer.clone() };
                        post(&socket, &serde_json::to_string(&other).unwrap()).await;
                        let other = AgentAnswer { lease: uuid::Uuid::new_v4(), ..answer };
                        post(&socket, &serde_json::to_string(&other).unwrap()).await;
                    }
                    Err(_) => {}
                }
            }
        }
    })
}

async fn post(socket: &Path, body: &str) {
    let mut stream = tokio::net::UnixStream::connect(socket).await.unwrap();
    let text = format!(
        "POST /v1/agent HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    tokio::io::AsyncWriteExt::write_all(&mut stream, text.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let _ = tokio::io::AsyncReadExt::read_to_string(&mut stream, &mut answer).await;
    assert!(answer.starts_with("HTTP/1.1 "), "{answer:?}");
}
