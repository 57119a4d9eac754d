//! The fleet floor against real sshd servers, with an agent of shell that speaks the wire.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod ssh_support;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use gpudeck::base::{DeckId, HostName, RankId, ReleaseId};
use gpudeck::fleet::{
    Fleet, FleetEvent, FleetOptions, HostLink, LinkError, LinkState, QuestionKind,
};
use gpudeck::spec::{HostSpec, Transport};
use gpudeck::wire::{
    DialAccess, DialTarget, FromAgent, Gpus, HostFacts, HostSample, PROTOCOL_VERSION, RankReport,
    RankStatus, Refusal, Reply, Request,
};
use ssh_support::{Sshd, Tarpit, lab, tool, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

const PATIENCE: Duration = Duration::from_secs(30);

fn name(text: &str) -> HostName {
    text.parse().unwrap()
}

fn json(message: &FromAgent) -> String {
    serde_json::to_string(message).unwrap().replace("\"id\":0", "\"id\":@")
}

/// Writes an agent: it greets, answers a few requests, and leaves some without an answer.
fn fake_agent(dir: &Path, protocol: u32) -> PathBuf {
    let facts = HostFacts { hostname: "it's a fake".to_owned(), ..HostFacts::default() };
    let hello = Reply::Hello { protocol, facts: Box::new(facts) };
    let hello = json(&FromAgent::Reply { id: 0, result: Ok(hello) });
    let hullo = hello.replace("it's a fake", "it's another");
    let done = json(&FromAgent::Reply { id: 0, result: Ok(Reply::Done) });
    let refused = Refusal::NoFile { path: "/x".to_owned() };
    let refused = json(&FromAgent::Reply { id: 0, result: Err(refused) });
    let sample = json(&FromAgent::Sample(Box::new(HostSample {
        monotonic_ms: 1,
        gpus: Gpus::None { why: "fake".to_owned() },
        ..HostSample::default()
    })));
    let ranks = json(&FromAgent::Ranks(vec![RankReport {
        rank: RankId {
            deck: DeckId(uuid::Uuid::nil()),
            service: "chat".parse().unwrap(),
            release_id: ReleaseId(uuid::Uuid::nil()),
            replica: "r1-0-a1".parse().unwrap(),
            rank: 0,
        },
        status: RankStatus::Lost,
    }]));
    let script = r#"#!/bin/sh
if [ "$2" = dial ]; then
    for word; do
        case $word in
        tcp:1) echo "connection refused" >&2; exit 3 ;;
        esac
    done
    exec cat
fi
[ "$2" = --state-dir ] && [ -d "$3" ] || { echo "no state directory" >&2; exit 9; }
echo "$$" > "$3/pid"
echo "$FAKE" > "$3/env"
echo "Welcome to this host!"
say() { printf '%s%s%s\n' "${1%%@*}" "$2" "${1#*@}"; }
answer() {
    id=${line#*\"id\":}
    id=${id%%,*}
    case $line in
    *'"hello"'*) if [ -e "CHANGED" ]; then say 'HULLO' "$id"; else say 'HELLO' "$id"; fi ;;
    *'"follow"'*) say 'DONE' "$id"; printf '%s\n' 'SAMPLE' 'RANKS' ;;
    *'"list_dir"'*) say 'REFUSED' "$id" ;;
    *'"load_state"'*) exit 5 ;;
    *'"ranks"'*) ;;
    *) say 'DONE' "$id" ;;
    esac
}
if [ "$4" = --first ]; then
    while IFS= read -r line; do [ -z "$line" ] || answer; done <<END
$5
END
fi
while IFS= read -r line; do answer; done
"#;
    let quoted = |text: &str| text.replace('\'', r"'\''");
    let script = script
        .replace("HELLO", &quoted(&hello))
        .replace("HULLO", &quoted(&hullo))
        .replace("CHANGED", &dir.join("changed").display().to_string())
        .replace("DONE", &quoted(&done))
        .replace("REFUSED", &quoted(&refused))
        .replace("SAMPLE", &quoted(&sample))
        .replace("RANKS", &quoted(&ranks));
    let path = dir.join(format!("agent-{protocol}"));
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn ask_done() -> Request {
    Request::CheckNeeds { needs: Vec::new(), ports: Vec::new() }
}

fn ask_for_ever() -> Request {
    Request::Ranks { deck: None }
}

struct Watched {
    fleet: Fleet,
    events: mpsc::Receiver<FleetEvent>,
    seen: Vec<FleetEvent>,
}

impl Watched {
    fn new(agent: &Path, interactive: bool) -> Self {
        Self::with(FleetOptions { interactive, ..FleetOptions::default() }, agent)
    }

    fn asking_every(every: Duration, agent: &Path) -> Self {
        Self::with(FleetOptions { facts_every: Some(every), ..FleetOptions::default() }, agent)
    }

    fn with(options: FleetOptions, agent: &Path) -> Self {
        let (sender, events) = mpsc::channel(8);
        let options = FleetOptions {
            agent_binary: Some(agent.to_owned()),
            ssh_config: Some(PathBuf::from("/dev/null")),
            ..options
        };
        Self { fleet: Fleet::new(options, sender), events, seen: Vec::new() }
    }

    fn hosts(&self, hosts: &[(&str, &HostSpec)]) {
        let hosts: BTreeMap<_, _> = hosts.iter().map(|(n, s)| (name(n), (*s).clone())).collect();
        self.fleet.set_hosts(&hosts);
    }

    /// The first event from now on that fits.
    async fn next(&mut self, what: &str, fits: impl Fn(&FleetEvent) -> bool) -> FleetEvent {
        let search = async {
            loop {
                let event = self.events.recv().await.unwrap();
                self.seen.push(event.clone());
                if fits(&event) {
                    return event;
                }
            }
        };
        let found = tokio::time::timeout(PATIENCE, search).await;
        found.unwrap_or_else(|_| panic!("no {what} among {:#?}", self.seen))
    }

    /// An event that fits, seen already or still to come: states of different kinds have no order.
    async fn sees(&mut self, what: &str, fits: impl Fn(&FleetEvent) -> bool) {
        if !self.seen.iter().any(&fits) {
            self.next(what, fits).await;
        }
    }

    async fn up(&mut self, host: &str) -> Arc<dyn HostLink> {
        let host = name(host);
        self.next(
            "Up",
            |e| matches!(e, FleetEvent::Link { host: h, state: LinkState::Up, .. } if *h == host),
        )
        .await;
        self.fleet.link(&host).unwrap()
    }

    async fn limited(&mut self, host: &str) -> (String, Option<String>) {
        let host = name(host);
        let event = self
            .next("Limited", |e| {
                matches!(e, FleetEvent::Link { host: h, state: LinkState::Limited { .. }, .. } if *h == host)
            })
            .await;
        let FleetEvent::Link { state: LinkState::Limited { why, hint }, .. } = event else {
            panic!("{event:?}")
        };
        (why, hint)
    }

    async fn down(&mut self, host: &str) -> (String, Option<String>, Option<Duration>) {
        let host = name(host);
        let event = self
            .next("Down", |e| {
                matches!(e, FleetEvent::Link { host: h, state: LinkState::Down { .. }, .. } if *h == host)
            })
            .await;
        let FleetEvent::Link { state: LinkState::Down { cause, hint, retry_in, .. }, .. } = event
        else {
            panic!("{event:?}")
        };
        (cause, hint, retry_in)
    }
}

fn spec(server: &Sshd, known_hosts: &Path) -> HostSpec {
    HostSpec {
        address: Some("127.0.0.1".to_owned()),
        port: Some(server.port),
        user: Some("root".to_owned()),
        identity_files: vec![server.user_key().display().to_string()],
        known_hosts: Some(known_hosts.display().to_string()),
        agent_env: env(server.dir.path()),
        ..HostSpec::default()
    }
}

fn env(dir: &Path) -> BTreeMap<String, String> {
    [
        ("GPUDECK_STATE_DIR".to_owned(), dir.join("state").display().to_string()),
        ("FAKE".to_owned(), "it's set".to_owned()),
    ]
    .into()
}

fn state_file(dir: &Path, file: &str) -> PathBuf {
    let state = fs::read_dir(dir.join("state")).unwrap().next().unwrap().unwrap().path();
    state.join(file)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_comes_up_answers_and_is_dialled() {
    if !lab() {
        return;
    }
    let server = Sshd::start();
    let agent = fake_agent(server.dir.path(), PROTOCOL_VERSION);
    let mut watched = Watched::new(&agent, false);
    watched.hosts(&[("box", &spec(&server, &server.known_hosts("ed25519")))]);
    let early = watched.fleet.link(&name("box")).unwrap();
    assert!(matches!(early.request(ask_done()).await, Err(LinkError::Down { .. })));

    let link = watched.up("box").await;
    let facts = watched.seen.iter().find_map(|e| match e {
        FleetEvent::Facts { facts, .. } => Some(facts.hostname.clone()),
        _ => None,
    });
    assert_eq!(facts.as_deref(), Some("it's a fake"));
    watched
        .sees("ranks", |e| matches!(e, FleetEvent::Ranks { ranks, .. } if ranks.len() == 1))
        .await;
    watched.sees("a sample", |e| matches!(e, FleetEvent::Sample { .. })).await;
    assert_eq!(fs::read_to_string(state_file(server.dir.path(), "env")).unwrap(), "it's set\n");

    assert_eq!(link.request(ask_done()).await, Ok(Reply::Done));
    let refused = link.request(Request::ListDir { path: "/x".to_owned() }).await;
    assert!(matches!(refused, Err(LinkError::Refused { refusal: Refusal::NoFile { .. }, .. })));

    let mut stream =
        link.dial(&DialTarget::Unix("/run/x".to_owned()), DialAccess::Read).await.unwrap();
    stream.write_all(b"hello").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut back = String::new();
    stream.read_to_string(&mut back).await.unwrap();
    assert_eq!(back, "hello");
    let mut failed = link.dial(&DialTarget::Tcp(1), DialAccess::Read).await.unwrap();
    let error = failed.read_to_string(&mut back).await.unwrap_err();
    assert!(error.to_string().contains("connection refused"), "{error}");

    drop((failed, stream));

    // Six at once; the seventh waits for one to go, and requests go on.
    let target = DialTarget::Tcp(2);
    let mut streams = Vec::new();
    for _ in 0..6 {
        streams.push(link.dial(&target, DialAccess::Read).await.unwrap());
    }
    let seventh =
        tokio::time::timeout(Duration::from_millis(300), link.dial(&target, DialAccess::Read));
    assert!(seventh.await.is_err(), "a seventh channel was opened");
    assert_eq!(link.request(ask_done()).await, Ok(Reply::Done));
    streams.pop();
    assert!(link.dial(&target, DialAccess::Read).await.is_ok());

    watched.fleet.shutdown().await;
    assert!(matches!(link.request(ask_done()).await, Err(LinkError::Down { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn where_one_session_is_allowed_an_agent_is_installed_with_one_login() {
    if !lab() {
        return;
    }
    let mut server = Sshd::start();
    server.kill();
    let mut file = fs::File::options().append(true).open(server.path("sshd_config")).unwrap();
    std::io::Write::write_all(&mut file, b"MaxSessions 1\n").unwrap();
    server.up();
    let agent = fake_agent(server.dir.path(), PROTOCOL_VERSION);
    let mut watched = Watched::new(&agent, false);
    watched.hosts(&[("box", &spec(&server, &server.known_hosts("ed25519")))]);
    let link = watched.up("box").await;
    assert_eq!(link.request(ask_done()).await, Ok(Reply::Done));
    let log = fs::read_to_string(server.path("log")).unwrap();
    assert_eq!(log.matches("Accepted publickey").count(), 1, "{log}");
    watched.fleet.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_host_fails_what_waits_and_comes_back() {
    if !lab() {
        return;
    }
    let mut server = Sshd::start();
    let agent = fake_agent(server.dir.path(), PROTOCOL_VERSION);
    let mut watched = Watched::new(&agent, false);
    watched.hosts(&[("box", &spec(&server, &server.known_hosts("ed25519")))]);
    let link = watched.up("box").await;
    let copied = |dir: &Path| {
        let bin = state_file(dir, "bin");
        let file = fs::read_dir(bin).unwrap().next().unwrap().unwrap();
        file.metadata().unwrap().modified().unwrap()
    };
    let first = copied(server.dir.path());

    let waiting = tokio::spawn({
        let link = Arc::clone(&link);
        async move { link.request(ask_for_ever()).await }
    });
    // The question is on its way when a later one is answered.
    assert_eq!(link.request(ask_done()).await, Ok(Reply::Done));
    server.kill();
    let failed = tokio::time::timeout(Duration::from_secs(10), waiting).await.unwrap().unwrap();
    assert!(matches!(failed, Err(LinkError::Down { .. })), "{failed:?}");
    let (cause, _, retry) = watched.down("box").await;
    assert!(retry.is_some(), "{cause}");
    let (cause, hint, _) = watched.down("box").await;
    assert!(cause.contains("refuses the connection") && hint.is_some(), "{cause}");
    assert!(matches!(link.request(ask_done()).await, Err(LinkError::Down { .. })));

    server.up();
    watched.up("box").await;
    assert_eq!(link.request(ask_done()).await, Ok(Reply::Done));
    assert_eq!(copied(server.dir.path()), first, "the agent was copied again");

    // An agent that ends says so, and is started again.
    let _ = link.request(Request::LoadState { deck: DeckId(uuid::Uuid::nil()) }).await;
    let (cause, ..) = watched.down("box").await;
    assert!(cause.contains("exit code 5"), "{cause}");
    watched.up("box").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_never_answers_delays_no_other() {
    if !lab() {
        return;
    }
    let server = Sshd::start();
    let tarpit = Tarpit::start();
    let agent = fake_agent(server.dir.path(), PROTOCOL_VERSION);
    let known = server.known_hosts("ed25519");
    let good = spec(&server, &known);
    let stuck = HostSpec { port: Some(tarpit.port), ..good.clone() };
    let mut watched = Watched::new(&agent, false);
    let since = Instant::now();
    watched.hosts(&[("a-stuck", &stuck), ("b-stuck", &stuck), ("good", &good)]);
    let link = watched.up("good").await;
    // Less than the time the others may take to shake hands.
    assert!(since.elapsed() < Duration::from_secs(14), "{:?}", since.elapsed());
    assert_eq!(link.request(ask_done()).await, Ok(Reply::Done));
    let (cause, hint, _) = watched.down("a-stuck").await;
    assert!(
        cause.contains("no answer from 127.0.0.1") && cause.contains("shaking hands"),
        "{cause}"
    );
    assert!(hint.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_key_is_a_question_to_a_person_or_a_named_cause() {
    if !lab() {
        return;
    }
    let server = Sshd::start();
    let agent = fake_agent(server.dir.path(), PROTOCOL_VERSION);
    let known = server.path("fresh/known_hosts");
    let spec = spec(&server, &known);

    let mut alone = Watched::new(&agent, false);
    alone.hosts(&[("box", &spec)]);
    let (cause, hint, retry) = alone.down("box").await;
    assert!(cause.starts_with("unknown host key"), "{cause}");
    assert!(hint.unwrap().contains("ssh-keyscan"));
    assert!(retry.unwrap() >= Duration::from_mins(1), "{retry:?}");
    alone.fleet.shutdown().await;

    let mut watched = Watched::new(&agent, true);
    watched.hosts(&[("box", &spec)]);
    let question = |e: &FleetEvent| matches!(e, FleetEvent::Question { .. });
    let event = watched.next("a question", question).await;
    let FleetEvent::Question { id, kind, text, .. } = event else { panic!("{event:?}") };
    assert_eq!(kind, QuestionKind::HostKey);
    assert!(text.contains("SHA256:"), "{text}");
    assert!(watched.fleet.answer(id, "no".to_owned().into()));
    let (cause, _, retry) = watched.down("box").await;
    assert!(cause.contains("not accepted") && retry.is_none(), "{cause} {retry:?}");
    assert!(!watched.fleet.answer(id, "yes".to_owned().into()), "answered twice");

    assert!(watched.fleet.reconnect(&name("box")));
    let event = watched.next("a second question", question).await;
    let FleetEvent::Question { id, .. } = event else { panic!("{event:?}") };
    assert!(watched.fleet.answer(id, "yes".to_owned().into()));
    watched.next("its end", |e| *e == FleetEvent::QuestionGone { id }).await;
    watched.up("box").await;
    assert!(known.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_host_is_may_change_while_it_is_connected() {
    if !lab() {
        return;
    }
    let server = Sshd::start();
    let agent = fake_agent(server.dir.path(), PROTOCOL_VERSION);
    let mut watched = Watched::asking_every(Duration::from_millis(200), &agent);
    watched.hosts(&[("box", &spec(&server, &server.known_hosts("ed25519")))]);
    watched.up("box").await;
    fs::write(server.path("changed"), "").unwrap();
    let is_new = |e: &FleetEvent| matches!(e, FleetEvent::Facts { facts, .. } if facts.hostname == "it's another");
    watched.next("what it is now", is_new).await;
    // Told when it changes, and not with every answer.
    fs::remove_file(server.path("changed")).unwrap();
    let any = |e: &FleetEvent| matches!(e, FleetEvent::Facts { .. });
    let event = watched.next("what it is again", any).await;
    let FleetEvent::Facts { facts, .. } = event else { panic!("{event:?}") };
    assert_eq!(facts.hostname, "it's a fake");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_waits_for_the_answer_to_anothers_question_says_so() {
    if !lab() {
        return;
    }
    let server = Sshd::start();
    let agent = fake_agent(server.dir.path(), PROTOCOL_VERSION);
    let mut spec = spec(&server, &server.known_hosts("ed25519"));
    let key = server.path("locked");
    ssh_support::keygen(&key, "ed25519", "open sesame");
    server.authorize(&key);
    spec.identity_files = vec![key.display().to_string()];

    let mut watched = Watched::new(&agent, true);
    watched.hosts(&[("one", &spec), ("two", &spec)]);
    let asks = |e: &FleetEvent| matches!(e, FleetEvent::Question { .. });
    let event = watched.next("the question", asks).await;
    let FleetEvent::Question { id, host: asking, .. } = event else { panic!("{event:?}") };
    let waits = |e: &FleetEvent| matches!(e, FleetEvent::Waits { .. });
    let event = watched.next("the one that waits", waits).await;
    let FleetEvent::Waits { host, question } = event else { panic!("{event:?}") };
    assert!(host != asking && question.starts_with("passphrase of "), "{host}: {question}");
    assert!(watched.fleet.answer(id, "open sesame".to_owned().into()));
    let up = |wanted: HostName| {
        move |e: &FleetEvent| {
            // Two names of one machine may be in each other's way there.
            let in_it = |s: &LinkState| matches!(s, LinkState::Up | LinkState::Limited { .. });
            matches!(e, FleetEvent::Link { host, state, .. } if *host == wanted && in_it(state))
        }
    };
    watched.sees("one", up(name("one"))).await;
    watched.sees("two", up(name("two"))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn this_machine_needs_no_ssh_and_a_host_that_is_let_go_is_left_clean() {
    let dir = tempfile::tempdir().unwrap();
    let agent = fake_agent(dir.path(), PROTOCOL_VERSION);
    let spec =
        HostSpec { transport: Transport::Local, agent_env: env(dir.path()), ..HostSpec::default() };
    let mut watched = Watched::new(&agent, false);
    watched.hosts(&[("here", &spec)]);
    let link = watched.up("here").await;
    assert_eq!(link.request(ask_done()).await, Ok(Reply::Done));
    let pid = fs::read_to_string(state_file(dir.path(), "pid")).unwrap();
    let copies = fs::read_dir(state_file(dir.path(), "bin")).unwrap().count();
    assert_eq!(copies, 0, "the binary was copied");

    // The same hosts again change nothing.
    watched.hosts(&[("here", &spec)]);
    assert_eq!(link.request(ask_done()).await, Ok(Reply::Done));
    watched.hosts(&[]);
    assert!(watched.fleet.link(&name("here")).is_none());
    let process = PathBuf::from("/proc").join(pid.trim());
    until("the agent ends", Duration::from_secs(10), || !process.exists()).await;
    assert!(matches!(link.request(ask_done()).await, Err(LinkError::Down { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_of_another_version_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let agent = fake_agent(dir.path(), PROTOCOL_VERSION + 1);
    let spec =
        HostSpec { transport: Transport::Local, agent_env: env(dir.path()), ..HostSpec::default() };
    let mut watched = Watched::new(&agent, false);
    watched.hosts(&[("here", &spec)]);
    let (cause, ..) = watched.down("here").await;
    assert!(cause.contains("protocol 2, not 1"), "{cause}");

    let missing = HostSpec { labels: [("x".to_owned(), "y".to_owned())].into(), ..spec };
    fs::remove_file(&agent).unwrap();
    watched.hosts(&[("here", &missing)]);
    let (cause, ..) = watched.down("here").await;
    assert!(cause.contains("agent ended"), "{cause}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_whose_system_is_too_old_for_the_agent_is_looked_at() {
    let dir = tempfile::tempdir().unwrap();
    let agent = dir.path().join("agent");
    let words = "agent: /lib64/libc.so.6: version `GLIBC_2.34' not found (required by agent)";
    let script = format!("#!/bin/sh\ncat >&2 <<'END'\n{words}\nEND\nexit 1\n");
    fs::write(&agent, script).unwrap();
    fs::set_permissions(&agent, fs::Permissions::from_mode(0o755)).unwrap();
    let spec =
        HostSpec { transport: Transport::Local, agent_env: env(dir.path()), ..HostSpec::default() };
    let mut watched = Watched::new(&agent, false);
    watched.hosts(&[("here", &spec)]);
    let (why, hint) = watched.limited("here").await;
    assert!(why.contains("too old") && why.contains("GLIBC_2.34"), "{why}");
    assert!(hint.is_some_and(|hint| hint.contains("glibc 2.17")));
    watched.fleet.shutdown().await;
}

/// A mount that ends with the test, however that ends.
struct Mounted(String);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").args(["-l", &self.0]).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_runs_no_programs_is_named() {
    if !lab() {
        return;
    }
    let server = Sshd::start();
    let mount = server.path("state");
    fs::create_dir(&mount).unwrap();
    let mount = mount.to_str().unwrap();
    if std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "noexec,size=4m", "tmpfs", mount])
        .status()
        .is_ok_and(|s| !s.success())
    {
        println!("skipped: mounting is not allowed here");
        return;
    }
    let _mounted = Mounted(mount.to_owned());
    let agent = fake_agent(server.dir.path(), PROTOCOL_VERSION);
    let mut watched = Watched::new(&agent, false);
    watched.hosts(&[("box", &spec(&server, &server.known_hosts("ed25519")))]);
    let noexec = watched.limited("box").await;
    tool("mount", &["-o", "remount,exec", mount]);
    watched.fleet.reconnect(&name("box"));
    let full = watched.limited("box").await;
    watched.fleet.shutdown().await;
    assert!(noexec.0.contains("noexec") && noexec.1.is_some(), "{noexec:?}");
    assert!(full.0.contains("no space left"), "{full:?}");
}
