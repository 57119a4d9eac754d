//! One suite for every gateway: Debian's HAProxy and the demo's stand-in do the same.
//!
//! The link under the gateway is a test's own: it speaks to the run-time socket directly, as the
//! agent does on a host.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use gpudeck::base::{
    DeckId, Epoch, EpochCell, Hint, HostName, ReplicaId, TrafficMode, TrafficServer,
};
use gpudeck::demo::SimGateway;
use gpudeck::fleet::{DialStream, HostLink, LinkError};
use gpudeck::gateway::section::{Section, SectionServer, canary_servers};
use gpudeck::gateway::{Gateway, GatewayError, HaproxyGateway, ServerCounters};
use gpudeck::spec::CanaryRule;
use gpudeck::wire::{DialAccess, DialTarget, Refusal, Reply, Request, Verb};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::task::JoinSet;

const DEADLINE: Duration = Duration::from_secs(15);

// ---- what stands on both sides of the gateway ----

/// The agent's part: commands to the socket, one connection each.
struct SocketLink {
    host: HostName,
    epochs: std::sync::Mutex<Vec<u64>>,
}

impl SocketLink {
    async fn command(&self, socket: &str, command: &str) -> Result<String, LinkError> {
        let refused = |refusal| LinkError::Refused { host: self.host.clone(), refusal };
        assert!(!command.contains('\n'), "one line a command: {command:?}");
        let mut stream = UnixStream::connect(socket).await.map_err(|e| {
            refused(match e.kind() {
                std::io::ErrorKind::NotFound => Refusal::NoFile { path: socket.to_owned() },
                _ => Refusal::Failed { message: e.to_string() },
            })
        })?;
        let mut text = String::new();
        stream.write_all(format!("{command}\n").as_bytes()).await.unwrap();
        stream.read_to_string(&mut text).await.unwrap();
        Ok(text)
    }
}

#[async_trait]
impl HostLink for SocketLink {
    fn host(&self) -> &HostName {
        &self.host
    }

    async fn request(&self, request: Request) -> Result<Reply, LinkError> {
        match request {
            Request::GatewayShow { socket, command } => {
                assert!(command.starts_with("show "), "only reads: {command}");
                Ok(Reply::Texts(vec![self.command(&socket, &command).await?]))
            }
            Request::Act { epoch, verb: Verb::Gateway { socket, commands }, .. } => {
                self.epochs.lock().unwrap().push(epoch.0);
                let mut texts = Vec::new();
                for command in commands {
                    texts.push(self.command(&socket, &command).await?);
                }
                Ok(Reply::Texts(texts))
            }
            other => panic!("not asked of a gateway's link: {other:?}"),
        }
    }

    async fn dial(&self, _: &DialTarget, _: DialAccess) -> Result<Box<dyn DialStream>, LinkError> {
        panic!("a gateway dials nothing")
    }
}

/// A small HTTP server that says its name and does what the path asks for.
struct Engine {
    address: SocketAddr,
    name: &'static str,
    _task: JoinSet<()>,
}

impl Engine {
    async fn start(name: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut requests = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                requests.spawn(answer(stream, name));
            }
        });
        Self { address, name, _task: task }
    }

    fn server(&self, replica: &str, weight: u16) -> TrafficServer {
        TrafficServer {
            replica: replica.parse().unwrap(),
            address: self.address.ip().to_string(),
            port: self.address.port(),
            weight,
            mode: TrafficMode::Ready,
            by_rule: false,
        }
    }

    /// The same, and reached by the canary's rule.
    fn by_rule(&self, replica: &str, weight: u16) -> TrafficServer {
        TrafficServer { by_rule: true, ..self.server(replica, weight) }
    }
}

async fn answer(mut stream: TcpStream, name: &'static str) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let head = String::from_utf8(head).unwrap();
    let path = head.split(' ').nth(1).unwrap();
    let plain = |status: &str| {
        format!(
            "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{name}",
            name.len()
        )
    };
    match path {
        "/500" => stream.write_all(plain("500 Internal Server Error").as_bytes()).await.unwrap(),
        "/404" => stream.write_all(plain("404 Not Found").as_bytes()).await.unwrap(),
        "/early" => {}
        "/break" => {
            let cut = "HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nhalf";
            stream.write_all(cut.as_bytes()).await.unwrap();
            stream.flush().await.unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        "/stream" => {
            let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n";
            stream.write_all(head.as_bytes()).await.unwrap();
            for _ in 0..20 {
                let chunk = format!("{:x}\r\n{name}\r\n", name.len());
                stream.write_all(chunk.as_bytes()).await.unwrap();
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            stream.write_all(b"0\r\n\r\n").await.unwrap();
        }
        _ => stream.write_all(plain("200 OK").as_bytes()).await.unwrap(),
    }
}

/// A request on a connection of its own; status 0 when there was no whole answer.
async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    get_with(address, path, "").await
}

async fn get_with(address: SocketAddr, path: &str, headers: &str) -> (u16, String) {
    let Ok(mut stream) = TcpStream::connect(address).await else { return (0, String::new()) };
    let request =
        format!("GET {path} HTTP/1.1\r\nhost: test\r\n{headers}connection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes).await;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let status = text.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
    (status, text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
}

/// Who answered `count` requests, by name in the body.
async fn answers(
    address: SocketAddr,
    count: usize,
    engines: &[&Engine],
) -> BTreeMap<&'static str, usize> {
    let mut seen = BTreeMap::new();
    for _ in 0..count {
        let (status, body) = get(address, "/").await;
        assert_eq!(status, 200, "{body}");
        let engine = engines.iter().find(|e| body.contains(e.name)).expect(&body);
        *seen.entry(engine.name).or_default() += 1;
    }
    seen
}

// ---- the two gateways ----

/// A gateway that can be restarted, with the backends `chat` (ours) and its server `foreign`.
#[async_trait]
trait Rig: Send + Sync {
    fn socket(&self) -> &Path;
    fn address(&self) -> SocketAddr;
    /// It is started anew with what its configuration says.
    async fn restart(&mut self);
    async fn stop(&mut self);
    /// Where sections lie that it reads when it starts.
    fn sections(&self) -> PathBuf;
}

struct Haproxy {
    dir: tempfile::TempDir,
    socket: PathBuf,
    address: SocketAddr,
    child: Option<Child>,
}

impl Haproxy {
    async fn start(foreign: SocketAddr) -> Option<Self> {
        if Command::new("haproxy").arg("-v").output().is_err() {
            assert!(
                std::env::var("GPUDECK_LAB").as_deref() != Ok("1"),
                "GPUDECK_LAB=1 and haproxy is not installed"
            );
            println!("skipped: needs haproxy");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("haproxy.sock");
        let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let config = format!(
            "global\n  stats socket {} mode 600 level admin\ndefaults\n  mode http\n  retries 0\n  timeout connect 2s\n  timeout client 60s\n  timeout server 60s\nfrontend chat\n  bind {address}\n  default_backend chat\nbackend chat\n  balance roundrobin\n  server foreign {foreign} weight 1\n",
            socket.display()
        );
        std::fs::write(dir.path().join("haproxy.cfg"), config).unwrap();
        std::fs::create_dir(dir.path().join("gpudeck.d")).unwrap();
        let mut rig = Self { dir, socket, address, child: None };
        rig.restart().await;
        Some(rig)
    }
}

#[async_trait]
impl Rig for Haproxy {
    fn socket(&self) -> &Path {
        &self.socket
    }

    fn address(&self) -> SocketAddr {
        self.address
    }

    async fn restart(&mut self) {
        self.stop().await;
        let child = Command::new("haproxy")
            .arg("-db")
            .arg("-f")
            .arg(self.dir.path().join("haproxy.cfg"))
            .arg("-f")
            .arg(self.sections())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        self.child = Some(child);
        let socket = self.socket.clone();
        until("haproxy listens", || std::os::unix::net::UnixStream::connect(&socket).is_ok()).await;
    }

    fn sections(&self) -> PathBuf {
        self.dir.path().join("gpudeck.d")
    }

    async fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

impl Drop for Haproxy {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

struct Sim {
    dir: tempfile::TempDir,
    socket: PathBuf,
    address: SocketAddr,
    foreign: SocketAddr,
    gateway: Option<SimGateway>,
}

impl Sim {
    async fn start(foreign: SocketAddr) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("gateway.sock");
        let any = "127.0.0.1:0".parse().unwrap();
        let gateway = SimGateway::start(socket.clone(), &[("chat", any)]).await.unwrap();
        let address = gateway.address("chat").unwrap();
        gateway.configure_server("chat", "foreign", foreign);
        Self { dir, socket, address, foreign, gateway: Some(gateway) }
    }
}

#[async_trait]
impl Rig for Sim {
    fn socket(&self) -> &Path {
        &self.socket
    }

    fn address(&self) -> SocketAddr {
        self.address
    }

    async fn restart(&mut self) {
        self.stop().await;
        let deadline = Instant::now() + DEADLINE;
        let gateway = loop {
            let (socket, sections) = (self.socket.clone(), self.sections());
            let backends = [("chat", self.address)];
            match SimGateway::start_with(socket, &backends, Some(&sections)).await {
                Ok(gateway) => break gateway,
                Err(e) => assert!(Instant::now() < deadline, "{e}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        gateway.configure_server("chat", "foreign", self.foreign);
        self.gateway = Some(gateway);
    }

    fn sections(&self) -> PathBuf {
        let sections = self.dir.path().join("gpudeck.d");
        std::fs::create_dir_all(&sections).unwrap();
        sections
    }

    async fn stop(&mut self) {
        self.gateway = None;
        let _ = std::fs::remove_file(&self.socket);
    }
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !done() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

// ---- the suite ----

struct Bench {
    link: Arc<SocketLink>,
    epoch: EpochCell,
    gateway: HaproxyGateway,
    socket: String,
}

impl Bench {
    fn new(rig: &dyn Rig, backend: &str) -> Self {
        let link = Arc::new(SocketLink {
            host: "gw".parse().unwrap(),
            epochs: std::sync::Mutex::default(),
        });
        let epoch = EpochCell::new(Epoch(7));
        let socket = rig.socket().to_str().unwrap().to_owned();
        let gateway = HaproxyGateway::new(
            Arc::clone(&link) as Arc<dyn HostLink>,
            socket.clone(),
            backend.to_owned(),
            DeckId(uuid::Uuid::from_u128(1)),
            epoch.clone(),
        );
        Self { link, epoch, gateway, socket }
    }

    /// Server names of the backend, ours and others.
    async fn names(&self) -> Vec<String> {
        let text = self.link.command(&self.socket, "show servers state chat").await.unwrap();
        let mut names: Vec<String> = text
            .lines()
            .skip(2)
            .filter_map(|line| line.split(' ').nth(3).map(str::to_owned))
            .collect();
        names.sort();
        names
    }

    async fn foreign_line(&self) -> String {
        let text = self.link.command(&self.socket, "show servers state chat").await.unwrap();
        let line = text.lines().find(|line| line.contains(" foreign ")).unwrap();
        // Address, states and weights; not the time since the last change.
        line.split(' ').skip(3).take(6).collect::<Vec<_>>().join(" ")
    }

    async fn counters(&self, replica: &str) -> ServerCounters {
        let id: ReplicaId = replica.parse().unwrap();
        let seen = self.gateway.counters().await.unwrap();
        *seen.get(&id).unwrap_or_else(|| panic!("no {replica} in {seen:?}"))
    }

    async fn settle(&self, replica: &str, requests: u64) -> ServerCounters {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let seen = self.counters(replica).await;
            if seen.requests >= requests && seen.in_flight == 0 {
                return seen;
            }
            assert!(Instant::now() < deadline, "{replica}: {seen:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn drained(mut server: TrafficServer) -> TrafficServer {
    server.mode = TrafficMode::Drain;
    server
}

async fn suite(rig: &mut dyn Rig, foreign: &Engine) {
    let bench = Bench::new(rig, "chat");
    assert_eq!(bench.gateway.balance().await.unwrap().as_deref(), Some("roundrobin"));
    let address = rig.address();
    let (a, b) = (Engine::start("engine-A").await, Engine::start("engine-B").await);

    // Nothing of ours yet: no counters, and requests go to what was there.
    assert!(bench.gateway.counters().await.unwrap().is_empty());
    assert_eq!(answers(address, 3, &[foreign]).await, [("foreign", 3)].into());
    bench.link.command(&bench.socket, "set server chat/foreign state maint").await.unwrap();
    let foreign_before = bench.foreign_line().await;

    // Weights: exact shares of a round robin, the canary spread out.
    let stable = |weight| a.server("r1-0-a1", weight);
    let canary = |weight| b.server("r2-0-a1", weight);
    bench.gateway.apply(&[stable(90), canary(10)]).await.unwrap();
    assert_eq!(bench.names().await, ["foreign", "r1-0-a1", "r2-0-a1"]);
    let seen = answers(address, 200, &[&a, &b]).await;
    assert!((178..=182).contains(&seen["engine-A"]), "{seen:?}");

    // The same again is no change at all, and the epoch is the one of now.
    let acts = bench.link.epochs.lock().unwrap().len();
    bench.gateway.apply(&[stable(90), canary(10)]).await.unwrap();
    assert_eq!(bench.link.epochs.lock().unwrap().len(), acts, "idempotent");
    bench.epoch.set(Epoch(8));
    bench.gateway.apply(&[stable(50), canary(50)]).await.unwrap();
    assert_eq!(bench.link.epochs.lock().unwrap().last(), Some(&8));
    let seen = answers(address, 100, &[&a, &b]).await;
    assert!((49..=51).contains(&seen["engine-A"]), "{seen:?}");

    // A server with weight 0 gets nothing until its weight is raised.
    bench.gateway.apply(&[stable(50), canary(50), b.server("r2-1-a1", 0)]).await.unwrap();
    bench.gateway.apply(&[stable(50), canary(0), b.server("r2-1-a1", 50)]).await.unwrap();
    let before = bench.counters("r2-0-a1").await.requests;
    let seen = answers(address, 20, &[&a, &b]).await;
    assert!((9..=11).contains(&seen["engine-B"]), "{seen:?}");
    assert_eq!(bench.counters("r2-0-a1").await.requests, before);
    bench.gateway.apply(&[stable(50), canary(50)]).await.unwrap();
    assert_eq!(bench.names().await, ["foreign", "r1-0-a1", "r2-0-a1"]);

    // Drain: a stream in flight is finished, new requests go elsewhere, it cannot be removed yet.
    bench.gateway.apply(&[drained(stable(50)), canary(50)]).await.unwrap();
    bench.gateway.apply(&[stable(50), drained(canary(50))]).await.unwrap();
    let stream = tokio::spawn(async move { get(address, "/stream").await });
    let deadline = Instant::now() + DEADLINE;
    while bench.counters("r1-0-a1").await.in_flight == 0 {
        assert!(Instant::now() < deadline, "the stream never began");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    bench.gateway.apply(&[drained(stable(50)), canary(50)]).await.unwrap();
    assert_eq!(answers(address, 20, &[&a, &b]).await, [("engine-B", 20)].into());
    bench.gateway.apply(&[canary(50)]).await.unwrap();
    assert!(bench.names().await.contains(&"r1-0-a1".to_owned()), "removed under a stream");
    assert_eq!(bench.counters("r1-0-a1").await.in_flight, 1);
    let (status, body) = stream.await.unwrap();
    assert_eq!((status, body.matches("engine-A").count()), (200, 20), "{body}");
    bench.settle("r1-0-a1", 1).await;
    bench.gateway.apply(&[canary(50)]).await.unwrap();
    assert_eq!(bench.names().await, ["foreign", "r2-0-a1"]);

    // Counting: 5xx, no answer, a broken answer and a refused connection are failures, 404 is not.
    for (path, failed) in [("/404", 0), ("/500", 1), ("/early", 1), ("/break", 1), ("/", 0)] {
        let before = bench.settle("r2-0-a1", 0).await;
        for _ in 0..3 {
            get(address, path).await;
        }
        let after = bench.settle("r2-0-a1", before.requests + 3).await;
        assert_eq!(after.requests - before.requests, 3, "{path}");
        assert_eq!(after.errors - before.errors, 3 * failed, "{path}");
    }
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let moved = TrafficServer { port: nobody.port(), ..canary(50) };
    let before = bench.settle("r2-0-a1", 0).await;
    bench.gateway.apply(&[moved]).await.unwrap();
    for _ in 0..3 {
        assert_eq!(get(address, "/").await.0, 503);
    }
    let after = bench.settle("r2-0-a1", before.requests + 3).await;
    assert_eq!((after.requests - before.requests, after.errors - before.errors), (3, 3));

    // The time to the head of an answer: the stream's head comes at once, its end after a second.
    bench.gateway.apply(&[canary(50), stable(0)]).await.unwrap();
    bench.gateway.apply(&[canary(0), stable(50)]).await.unwrap();
    assert_eq!(get(address, "/stream").await.0, 200);
    let timed = bench.settle("r1-0-a1", 1).await;
    assert!(timed.mean_response_ms < 500.0, "{timed:?}");

    // A restart loses everything; the next apply puts it back.
    rig.restart().await;
    assert_eq!(bench.names().await, ["foreign"]);
    bench.link.command(&bench.socket, "set server chat/foreign state maint").await.unwrap();
    bench.gateway.apply(&[stable(90), canary(10)]).await.unwrap();
    let seen = answers(address, 100, &[&a, &b]).await;
    assert!((89..=91).contains(&seen["engine-A"]), "{seen:?}");

    // What is not ours is as it was.
    assert_eq!(bench.foreign_line().await, foreign_before);
    bench.gateway.apply(&[]).await.unwrap();
    assert_eq!(bench.names().await, ["foreign"]);
    assert_eq!(get(address, "/").await.0, 503);

    // A backend that is not configured: its own words, and the lines to add.
    let missing = Bench::new(rig, "code");
    for error in [
        missing.gateway.apply(&[stable(1)]).await.unwrap_err(),
        missing.gateway.counters().await.unwrap_err(),
    ] {
        assert!(matches!(error, GatewayError::Gateway { .. }), "{error}");
        assert!(error.hint().unwrap().contains("backend code"), "{error}");
    }
    let evil = Bench::new(rig, "chat; disable server chat/foreign");
    assert!(evil.gateway.counters().await.is_err());

    // HAProxy gone: the socket is named.
    rig.stop().await;
    let error = bench.gateway.counters().await.unwrap_err();
    assert!(matches!(error, GatewayError::Gateway { .. }), "{error}");
    assert!(error.hint().unwrap().contains(&bench.socket), "{error}");
}

/// A section that was written is all a restart needs; what it names is ours like any other.
async fn sections_suite(rig: &mut dyn Rig) {
    let (a, b) = (Engine::start("engine-A").await, Engine::start("engine-B").await);
    let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let service = "embed".parse().unwrap();
    let rule = CanaryRule::Header { name: "x-canary".into(), value: "1".into() };
    let section = Section {
        deck: "test",
        service: &service,
        backend: "embed",
        listen: Some(&address.to_string()),
        canary: Some(&rule),
        stream_timeout: Duration::from_secs(60),
    };
    let table = [a.server("r1-0-a1", 90), b.by_rule("r2-0-a1", 10)];
    let canary = canary_servers(&table);
    let written = |servers: &[TrafficServer]| -> Vec<SectionServer> {
        let one = |s: &TrafficServer| SectionServer {
            replica: s.replica,
            address: s.address.parse().unwrap(),
            port: s.port,
            weight: s.weight,
        };
        servers.iter().map(one).collect()
    };
    let text = section.text(&written(&table), &written(&canary));
    std::fs::write(rig.sections().join("embed.cfg"), text).unwrap();
    rig.restart().await;

    let seen = answers(address, 100, &[&a, &b]).await;
    assert!((89..=91).contains(&seen["engine-A"]), "{seen:?}");
    for _ in 0..5 {
        let (status, body) = get_with(address, "/", "x-canary: 1\r\n").await;
        assert!(status == 200 && body.contains("engine-B"), "{body}");
        let (_, body) = get_with(address, "/", "x-canary: 0\r\n").await;
        assert!(!body.is_empty());
    }
    let (main, chosen) = (Bench::new(rig, "embed"), Bench::new(rig, "embed-canary"));
    main.gateway.apply(&table).await.unwrap();
    chosen.gateway.apply(&canary).await.unwrap();
    let acts = main.link.epochs.lock().unwrap().len() + chosen.link.epochs.lock().unwrap().len();
    assert_eq!(acts, 0, "everything is there already");
    assert!(chosen.counters("r2-0-a1").await.requests >= 5);

    // Nobody to choose: the header goes where all go. What the section named can be removed.
    chosen.gateway.apply(&[]).await.unwrap();
    main.gateway.apply(&table[..1]).await.unwrap();
    let (_, body) = get_with(address, "/", "x-canary: 1\r\n").await;
    assert!(body.contains("engine-A"), "{body}");
    assert_eq!(main.gateway.counters().await.unwrap().len(), 1);
    assert!(chosen.gateway.counters().await.unwrap().is_empty());

    // Before its first share the canary is reached by those who ask for it, and by nobody else.
    let rule = CanaryRule::Cookie { name: "canary".into(), value: "always".into() };
    let section = Section { canary: Some(&rule), ..section };
    let table = [a.server("r1-0-a1", 100), b.by_rule("r2-0-a1", 0)];
    let text = section.text(&written(&table), &written(&canary_servers(&table)));
    std::fs::write(rig.sections().join("embed.cfg"), text).unwrap();
    rig.restart().await;
    for _ in 0..10 {
        let asks = "Cookie: theme=dark; canary=always\r\n";
        let (_, body) = get_with(address, "/", asks).await;
        assert!(body.contains("engine-B"), "{body}");
        let (_, body) = get_with(address, "/", "Cookie: canary=never\r\n").await;
        assert!(body.contains("engine-A"), "{body}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn haproxy_conforms() {
    let foreign = Engine::start("foreign").await;
    let Some(mut rig) = Haproxy::start(foreign.address).await else { return };
    suite(&mut rig, &foreign).await;
    sections_suite(&mut rig).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_stand_in_conforms() {
    let foreign = Engine::start("foreign").await;
    let mut rig = Sim::start(foreign.address).await;
    suite(&mut rig, &foreign).await;
    sections_suite(&mut rig).await;
}
