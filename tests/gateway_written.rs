//! Two real gateways (HAProxy) in front of a simulated fleet, both kept equal by a controller that writes
//! their sections: a reload and a kill in mid-rollout lose nothing, a header chooses the canary.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod common;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::sim_fleet::place_agents;
use gpudeck::api::{Client, Condition, Door, Gate, Intent, Outcome, ServiceView};
use gpudeck::controller::{self, Options, Paths, Running, start_in_process};
use gpudeck::demo::World;
use gpudeck::spec::{DeckSpec, GatewaySpec};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const DEADLINE: Duration = Duration::from_secs(120);

/// A HAProxy in master-worker mode with a configuration of its own and a directory of ours.
struct Haproxy {
    dir: tempfile::TempDir,
    address: SocketAddr,
    child: Option<Child>,
}

impl Haproxy {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        std::fs::create_dir(dir.path().join("gpudeck.d")).unwrap();
        // Something to listen on, or HAProxy does not start before our first section is there.
        let main = format!(
            "global\n  stats socket {} mode 600 level admin\ndefaults\n  mode http\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\nfrontend own\n  bind unix@{}\n",
            dir.path().join("admin.sock").display(),
            dir.path().join("own.sock").display(),
        );
        std::fs::write(dir.path().join("haproxy.cfg"), main).unwrap();
        let mut haproxy = Self { dir, address, child: None };
        haproxy.run().await;
        haproxy
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    async fn run(&mut self) {
        self.kill();
        let child = Command::new("haproxy")
            .args(["-W", "-db", "-p"])
            .arg(self.path("pid"))
            .arg("-f")
            .arg(self.path("haproxy.cfg"))
            .arg("-f")
            .arg(self.path("gpudeck.d"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::fs::write(self.path("pid"), child.id().to_string()).unwrap();
        self.child = Some(child);
        let socket = self.path("admin.sock");
        until("haproxy listens", || std::os::unix::net::UnixStream::connect(&socket).is_ok()).await;
    }

    /// Every process of it at once, as a crash would.
    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            for worker in children(child.id()) {
                let _ = Command::new("kill").args(["-9", &worker.to_string()]).status();
            }
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn gateway(&self) -> GatewaySpec {
        let mut gateway = GatewaySpec::new("gpu-1".parse().unwrap(), self.text("admin.sock"));
        gateway.config = Some(self.text("gpudeck.d"));
        gateway.listen = BTreeMap::from([("chat".parse().unwrap(), self.address.to_string())]);
        gateway.urls =
            BTreeMap::from([("chat".parse().unwrap(), format!("http://{}", self.address))]);
        gateway.check =
            ["haproxy", "-c", "-f", &self.text("haproxy.cfg")].map(str::to_owned).to_vec();
        let reload = format!("kill -USR2 $(cat {})", self.text("pid"));
        gateway.reload = ["sh", "-c", &reload].map(str::to_owned).to_vec();
        gateway
    }

    /// The servers of a backend with their weights.
    async fn servers(&self, backend: &str) -> BTreeMap<String, u32> {
        let Ok(mut stream) = tokio::net::UnixStream::connect(self.path("admin.sock")).await else {
            return BTreeMap::new();
        };
        let _ = stream.write_all(format!("show servers state {backend}\n").as_bytes()).await;
        let mut text = String::new();
        let _ = stream.read_to_string(&mut text).await;
        text.lines()
            .skip(2)
            .filter_map(|line| {
                let fields: Vec<&str> = line.split(' ').collect();
                Some((fields.get(3)?.to_string(), fields.get(7)?.parse().ok()?))
            })
            .collect()
    }

    /// What a person says at the socket.
    async fn say(&self, command: &str) {
        let mut stream = tokio::net::UnixStream::connect(self.path("admin.sock")).await.unwrap();
        stream.write_all(format!("{command}\n").as_bytes()).await.unwrap();
        let mut text = String::new();
        let _ = stream.read_to_string(&mut text).await;
        assert_eq!(text.trim(), "", "{command}");
    }
}

impl Drop for Haproxy {
    fn drop(&mut self) {
        self.kill();
    }
}

fn children(pid: u32) -> Vec<u32> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace().filter_map(|p| p.parse().ok()).collect()
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !done() {
        assert!(Instant::now() < end, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn spec(seed: u32) -> String {
    format!(
        r#"
model    = "simulated/chat"
replicas = 2
memory   = "40GiB"
gateways = ["east", "west"]

[engine.command]
run = [
  "{{gpudeck}}", "sim-engine", "--address", "{{address}}", "--port", "{{port}}", "--model", "chat-{{release}}",
  "--load-time", "200ms", "--gpu-memory", "40GiB", "--tokens", "2", "--seed", "{seed}",
]
metrics = "vllm"

[rollout]
max_unavailable   = 0
max_surge         = 1
steps             = [{{ weight = 50 }}, {{ approve = true }}]
healthy_deadline  = "2m"
progress_deadline = "3m"
drain_deadline    = "20s"
stop_grace        = "5s"
canary_header     = "x-canary: 1"
"#
    )
}

/// The model that answered, which has its release in its name; none if nobody did.
async fn ask(address: SocketAddr, header: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    let body = r#"{"messages":[{"role":"user","content":"Hi"}],"max_tokens":1}"#;
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n{header}content-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(format!("{head}{body}").as_bytes()).await.ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await.ok()?;
    let (_, rest) = text.split_once("\"model\":\"chat-")?;
    rest.split('"').next().map(str::to_owned)
}

/// Somebody who asks until the flag is taken away, and a few times at least: how many requests were answered, and how
/// many not.
fn ask_all_the_time(address: SocketAddr) -> (Arc<AtomicBool>, tokio::task::JoinHandle<(u32, u32)>) {
    let asking = Arc::new(AtomicBool::new(true));
    let goes_on = Arc::clone(&asking);
    let asker = tokio::spawn(async move {
        let (mut answered, mut unanswered) = (0, 0);
        while goes_on.load(Ordering::Relaxed) || answered + unanswered <= 20 {
            match ask(address, "").await {
                Some(_) => answered += 1,
                None => unanswered += 1,
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        (answered, unanswered)
    });
    (asking, asker)
}

async fn view(client: &Client) -> ServiceView {
    client.snapshot().await.unwrap().services.remove(&"chat".parse().unwrap()).unwrap()
}

async fn wait<T>(client: &Client, what: &str, seen: impl Fn(&ServiceView) -> Option<T>) -> T {
    let end = Instant::now() + DEADLINE;
    loop {
        let now = view(client).await;
        if let Some(found) = seen(&now) {
            return found;
        }
        assert!(Instant::now() < end, "in vain: {what}: {now:#?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn apply(client: &Client, world: &World, seed: u32) {
    std::fs::write(world.spec_path("chat"), spec(seed)).unwrap();
    let intent = Intent::Apply {
        service: "chat".parse().unwrap(),
        reason: None,
        accept_outage: false,
        concurrency: None,
        agreed: None,
    };
    client.send(intent).await.unwrap();
}

fn haproxy_is_there() -> bool {
    if Command::new("haproxy").arg("-v").stdout(Stdio::null()).status().is_ok() {
        return true;
    }
    assert!(std::env::var("GPUDECK_LAB").as_deref() != Ok("1"), "haproxy is not installed");
    println!("skipped: needs haproxy");
    false
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_that_does_not_follow_weights_is_warned_of() {
    if !haproxy_is_there() {
        return;
    }
    let by_hand = async |balance: &str| {
        let mut haproxy = Haproxy::start().await;
        let main = std::fs::read_to_string(haproxy.path("haproxy.cfg")).unwrap();
        let rule = "backend chat-canary\n  balance roundrobin\n";
        let old = "server old 127.0.0.1:9 weight 1";
        let main = format!("{main}backend chat\n  balance {balance}\n  {old}\n{rule}");
        std::fs::write(haproxy.path("haproxy.cfg"), main).unwrap();
        haproxy.run().await;
        let gateway = GatewaySpec::new("gpu-1".parse().unwrap(), haproxy.text("admin.sock"));
        (haproxy, gateway)
    };
    let (east, of_east) = by_hand("leastconn").await;
    let (west, of_west) = by_hand("roundrobin").await;
    let world = World::start(None).await.unwrap();
    place_agents(&world);
    let mut deck = world.deck().clone();
    deck.gateways = [("east".parse().unwrap(), of_east), ("west".parse().unwrap(), of_west)].into();
    std::fs::write(world.deck_dir().join("deck.toml"), toml::to_string(&deck).unwrap()).unwrap();
    std::fs::remove_file(world.spec_path("code")).unwrap();
    std::fs::write(world.spec_path("chat"), spec(1)).unwrap();
    controller::init_repository(&world.deck_dir()).unwrap();
    let (running, client) = begin(&world, deck).await;
    let weights = async || {
        let plan = client.plan(&"chat".parse().unwrap()).await.unwrap();
        let (foreign, others): (Vec<_>, Vec<_>) = {
            let told = plan.warnings.into_iter();
            told.partition(|w| w.contains("has servers that are not gpudeck's (old): "))
        };
        assert_eq!(foreign.len(), 2, "at each gateway: {foreign:#?}");
        others.into_iter().filter(|w| w.contains("weight")).collect::<Vec<_>>()
    };
    let warned = weights().await;
    assert_eq!(warned.len(), 1, "{warned:#?}");
    assert!(warned[0].contains("the gateway east balances by `leastconn`"), "{warned:#?}");
    assert!(warned[0].contains("`balance roundrobin`"), "{warned:#?}");
    // Replica by replica no share of the traffic matters.
    let rolling = spec(1).replace("steps ", "strategy = \"rolling\"\n# steps ");
    let rolling = rolling.replace("canary_header ", "# canary_header ");
    std::fs::write(world.spec_path("chat"), rolling).unwrap();
    client.send(Intent::Reload).await.unwrap();
    assert_eq!(weights().await, Vec::<String>::new());

    drop(client);
    running.stop().await;
    drop((east, west));
    tokio::task::spawn_blocking(move || drop(world)).await.unwrap();
}

/// A controller of the world's deck, when it sees all hosts.
async fn begin(world: &World, deck: DeckSpec) -> (Running, Client) {
    let options = Options {
        deck_dir: Some(world.deck_dir()),
        deck,
        agent_binary: Some(env!("CARGO_BIN_EXE_gpudeck").into()),
        leave_when_idle: None,
        in_process: None,
    };
    let paths = Paths::in_dir(&world.root().join("controller"));
    let running = start_in_process(options, &paths).await.unwrap();
    let client = controller::connect(&running.socket).await.unwrap();
    let end = Instant::now() + DEADLINE;
    while !client.snapshot().await.unwrap().hosts.values().all(|h| h.sample.is_some()) {
        assert!(Instant::now() < end, "the hosts do not come up");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    (running, client)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sections_survive_reloads_and_crashes_and_a_header_chooses_the_canary() {
    if !haproxy_is_there() {
        return;
    }
    let (east, mut west) = (Haproxy::start().await, Haproxy::start().await);
    let world = World::start(None).await.unwrap();
    place_agents(&world);
    let mut deck = world.deck().clone();
    deck.gateways =
        [("east".parse().unwrap(), east.gateway()), ("west".parse().unwrap(), west.gateway())]
            .into();
    std::fs::write(world.deck_dir().join("deck.toml"), toml::to_string(&deck).unwrap()).unwrap();
    std::fs::remove_file(world.spec_path("code")).unwrap();
    std::fs::write(world.spec_path("chat"), spec(1)).unwrap();
    controller::init_repository(&world.deck_dir()).unwrap();
    let (running, client) = begin(&world, deck).await;

    // HAProxy did not know the backend: the section was written, and it was told to reload.
    apply(&client, &world, 1).await;
    wait(&client, "r1 serves", |v| (v.condition == Condition::Serving).then_some(())).await;
    for gateway in [&east, &west] {
        assert_eq!(ask(gateway.address, "").await.as_deref(), Some("r1"));
        assert_eq!(gateway.servers("chat").await.len(), 2);
        // Nobody to choose: the header goes to all.
        assert_eq!(ask(gateway.address, "x-canary: 1\r\n").await.as_deref(), Some("r1"));
    }

    apply(&client, &world, 2).await;
    wait(&client, "the canary is there", |v| {
        let gate = v.rollout.as_ref().and_then(|r| r.gate.as_ref());
        matches!(gate, Some(Gate::Approve)).then_some(())
    })
    .await;
    let table = east.servers("chat").await;
    assert_eq!(table, west.servers("chat").await, "kept equal");
    assert!(table.keys().any(|name| name.starts_with("r2-")), "{table:?}");
    for gateway in [&east, &west] {
        for _ in 0..6 {
            assert_eq!(ask(gateway.address, "x-canary: 1\r\n").await.as_deref(), Some("r2"));
        }
    }

    // A reload by hand, and a crash: what was told at run time is in the file.
    let pid = east.child.as_ref().unwrap().id();
    let workers = children(pid);
    assert!(Command::new("kill").args(["-USR2", &pid.to_string()]).status().unwrap().success());
    until("a new worker", || children(pid).iter().any(|w| !workers.contains(w))).await;
    west.run().await;
    for gateway in [&east, &west] {
        let end = Instant::now() + DEADLINE;
        while gateway.servers("chat").await != table {
            assert!(Instant::now() < end, "{:?}", gateway.servers("chat").await);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(ask(gateway.address, "").await.is_some());
        assert_eq!(ask(gateway.address, "x-canary: 1\r\n").await.as_deref(), Some("r2"));
        let file = std::fs::read_to_string(gateway.path("gpudeck.d/chat.cfg")).unwrap();
        for (name, weight) in &table {
            assert!(file.contains(&format!("server {name} ")), "{file}");
            assert!(file.contains(&format!("weight {weight}\n")), "{file}");
        }
    }
    // None of that was anybody's doing; this is. It is put right, and told once.
    let told = async || {
        let events = client.snapshot().await.unwrap().events.into_iter();
        let all = events.filter(|e| e.text.contains("somebody else had changed"));
        all.map(|e| e.text).collect::<Vec<_>>()
    };
    assert_eq!(told().await, Vec::<String>::new());
    let (name, weight) = table.iter().next().unwrap();
    west.say(&format!("set server chat/{name} weight 3")).await;
    let end = Instant::now() + DEADLINE;
    while told().await.is_empty() || west.servers("chat").await != table {
        assert!(Instant::now() < end, "{:?} {:?}", told().await, west.servers("chat").await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(told().await[0].contains(&format!("at west {name} had weight 3, not {weight}")));
    let shown = client.gateway_config(&"chat".parse().unwrap()).await.unwrap();
    assert!(
        shown.contains("# gateway east: ") && shown.contains("use_backend chat-canary"),
        "{shown}"
    );

    // On to the end: what the file named at the reload is removed like any other.
    let intent =
        Intent::Promote { service: "chat".parse().unwrap(), all: true, step: None, reason: None };
    client.send(intent).await.unwrap();
    let outcome =
        wait(&client, "the end", |v| v.rollout.as_ref().and_then(|r| r.outcome.clone())).await;
    assert_eq!(outcome, Outcome::Completed);
    for gateway in [&east, &west] {
        let servers = gateway.servers("chat").await;
        assert!(servers.len() == 2 && servers.keys().all(|n| n.starts_with("r2-")), "{servers:?}");
        assert!(gateway.servers("chat-canary").await.is_empty());
        assert_eq!(ask(gateway.address, "").await.as_deref(), Some("r2"));
        let left = std::fs::read_dir(gateway.path("gpudeck.d")).unwrap().count();
        assert_eq!(left, 1, "nothing lies beside the section");
    }
    assert!(Path::new(&east.text("gpudeck.d/chat.cfg")).exists());

    // The next release is in front of one gateway only. The other has the table until that one serves alone.
    let only_west = spec(3).replace("[\"east\", \"west\"]", "[\"west\"]");
    std::fs::write(world.spec_path("chat"), only_west).unwrap();
    let intent = Intent::Apply {
        service: "chat".parse().unwrap(),
        reason: None,
        accept_outage: false,
        concurrency: None,
        agreed: None,
    };
    client.send(intent).await.unwrap();
    wait(&client, "the next canary is there", |v| {
        let rollout = v.rollout.as_ref()?;
        (rollout.to.0 == 3 && rollout.gate == Some(Gate::Approve)).then_some(())
    })
    .await;
    let table = east.servers("chat").await;
    assert_eq!(table, west.servers("chat").await, "kept equal");
    assert!(table.keys().any(|name| name.starts_with("r3-")), "{table:?}");
    assert!(ask(east.address, "").await.is_some(), "clients of the old gateway are served");
    client
        .send(Intent::Promote {
            service: "chat".parse().unwrap(),
            all: true,
            step: None,
            reason: None,
        })
        .await
        .unwrap();
    let outcome = wait(&client, "the end", |v| {
        let rollout = v.rollout.as_ref().filter(|r| r.to.0 == 3)?;
        rollout.outcome.clone()
    })
    .await;
    assert_eq!(outcome, Outcome::Completed);
    let end = Instant::now() + DEADLINE;
    while !east.servers("chat").await.is_empty() || !east.servers("chat-canary").await.is_empty() {
        assert!(Instant::now() < end, "left behind: {:?}", east.servers("chat").await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let file = std::fs::read_to_string(east.path("gpudeck.d/chat.cfg")).unwrap();
    assert!(!file.contains("server r"), "{file}");
    assert_eq!(ask(west.address, "").await.as_deref(), Some("r3"));

    drop(client);
    running.stop().await;
    tokio::task::spawn_blocking(move || drop(world)).await.unwrap();
}

/// While releases with different backends live, the file holds both: clients of either are served, also after a crash.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_changes_its_backend_while_clients_come() {
    if !haproxy_is_there() {
        return;
    }
    let mut west = Haproxy::start().await;
    let world = World::start(None).await.unwrap();
    place_agents(&world);
    let mut deck = world.deck().clone();
    deck.gateways = [("west".parse().unwrap(), west.gateway())].into();
    std::fs::write(world.deck_dir().join("deck.toml"), toml::to_string(&deck).unwrap()).unwrap();
    std::fs::remove_file(world.spec_path("code")).unwrap();
    let chat = || "chat".parse().unwrap();
    let apply = async |client: &Client, backend: &str| {
        let spec = spec(1).replace("[\"east\", \"west\"]", "[\"west\"]");
        let spec = format!("backend = \"{backend}\"\n{spec}");
        std::fs::write(world.spec_path("chat"), spec).unwrap();
        let intent = Intent::Apply {
            service: chat(),
            reason: None,
            accept_outage: false,
            concurrency: None,
            agreed: None,
        };
        client.send(intent).await.unwrap();
    };
    let gate = async |client: &Client, to: u64| {
        wait(client, "the canary is there", |v| {
            let rollout = v.rollout.as_ref()?;
            (rollout.to.0 == to && rollout.gate == Some(Gate::Approve)).then_some(())
        })
        .await;
    };
    let end = async |client: &Client, to: u64| {
        wait(client, "the end", |v| v.rollout.as_ref().filter(|r| r.to.0 == to)?.outcome.clone())
            .await
    };
    // The backends in the file, and what HAProxy has: the one with two servers, the other not at all.
    let alone = async |west: &Haproxy, there: &str, gone: &str| {
        let end = Instant::now() + DEADLINE;
        loop {
            let file = std::fs::read_to_string(west.path("gpudeck.d/chat.cfg")).unwrap();
            let (has, lacks) = (
                file.contains(&format!("backend {there}\n")),
                !file.contains(&format!("backend {gone}\n")),
            );
            let (two, none) = (west.servers(there).await.len(), west.servers(gone).await.len());
            if has && lacks && (two, none) == (2, 0) {
                return;
            }
            assert!(Instant::now() < end, "{two} at {there}, {none} at {gone}:\n{file}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    std::fs::write(world.spec_path("chat"), spec(1).replace("\"east\", ", "")).unwrap();
    controller::init_repository(&world.deck_dir()).unwrap();
    let (running, client) = begin(&world, deck).await;
    apply(&client, "chat").await;
    wait(&client, "r1 serves", |v| (v.condition == Condition::Serving).then_some(())).await;
    alone(&west, "chat", "talk").await;

    // Somebody asks all the time.
    let (asking, asker) = ask_all_the_time(west.address);
    let address = west.address;
    let both = async |west: &Haproxy, new: &str| {
        let end = Instant::now() + DEADLINE;
        loop {
            let (chat, talk) = (west.servers("chat").await, west.servers("talk").await);
            if chat == talk && chat.len() > 2 && chat.keys().any(|name| name.starts_with(new)) {
                return;
            }
            assert!(Instant::now() < end, "{chat:?} {talk:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    apply(&client, "talk").await;
    gate(&client, 2).await;
    both(&west, "r2-").await;
    for _ in 0..6 {
        assert_eq!(ask(address, "x-canary: 1\r\n").await.as_deref(), Some("r2"));
    }
    let shown = client.gateway_config(&chat()).await.unwrap();
    assert!(
        shown.contains("backend chat\n") && shown.contains("default_backend talk\n"),
        "{shown}"
    );
    // Taken back, and once more to the end.
    client.send(Intent::Abort { service: chat(), reason: None, seen: None }).await.unwrap();
    assert!(!matches!(end(&client, 2).await, Outcome::Completed));
    alone(&west, "chat", "talk").await;
    apply(&client, "talk").await;
    gate(&client, 3).await;
    both(&west, "r3-").await;
    let promote = Intent::Promote { service: chat(), all: true, step: None, reason: None };
    client.send(promote.clone()).await.unwrap();
    assert_eq!(end(&client, 3).await, Outcome::Completed);
    alone(&west, "talk", "chat").await;
    asking.store(false, Ordering::Relaxed);
    let (answered, unanswered) = asker.await.unwrap();
    assert!(answered > 20 && unanswered == 0, "{answered} answered, {unanswered} not");

    // An undo goes the same way, and a crash in the middle of it loses neither backend.
    apply(&client, "chat").await;
    gate(&client, 4).await;
    both(&west, "r4-").await;
    west.run().await;
    both(&west, "r4-").await;
    client.send(promote).await.unwrap();
    assert_eq!(end(&client, 4).await, Outcome::Completed);
    let undo = Intent::Undo {
        service: chat(),
        to: None,
        reason: None,
        accept_outage: false,
        agreed: None,
        seen: None,
    };
    client.send(undo).await.unwrap();
    assert_eq!(end(&client, 5).await, Outcome::Completed);
    alone(&west, "talk", "chat").await;
    assert_eq!(ask(address, "").await.as_deref(), Some("r5"));

    drop(client);
    running.stop().await;
    tokio::task::spawn_blocking(move || drop(world)).await.unwrap();
}

/// Another number of replicas: those that run on keep their servers and answer all the time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scaling_adds_and_removes_servers_and_fails_no_request() {
    if !haproxy_is_there() {
        return;
    }
    let west = Haproxy::start().await;
    let world = World::start(None).await.unwrap();
    let mut deck = world.deck().clone();
    deck.gateways = [("west".parse().unwrap(), west.gateway())].into();
    std::fs::write(world.deck_dir().join("deck.toml"), toml::to_string(&deck).unwrap()).unwrap();
    std::fs::remove_file(world.spec_path("code")).unwrap();
    let scale = |replicas: u32| {
        // A command that names its release is another one for each.
        let spec = spec(1).replace("chat-{release}", "chat-same").replace("\"east\", ", "");
        let spec = spec.replace("replicas = 2", &format!("replicas = {replicas}"));
        std::fs::write(world.spec_path("chat"), spec).unwrap();
    };
    let applied = async |client: &Client, to: u64| {
        let service = "chat".parse().unwrap();
        let (reason, concurrency, agreed) = (None, None, None);
        let intent = Intent::Apply { service, reason, accept_outage: false, concurrency, agreed };
        client.send(intent).await.unwrap();
        let ended = wait(client, "the end", |v| {
            v.rollout.as_ref().filter(|r| r.to.0 == to)?.outcome.clone()
        });
        assert_eq!(ended.await, Outcome::Completed);
    };
    let servers = async |names: &[&str]| {
        let end = Instant::now() + DEADLINE;
        loop {
            let there: Vec<String> = west.servers("chat").await.into_keys().collect();
            if there == names {
                return;
            }
            assert!(Instant::now() < end, "{there:?} are at the gateway, not {names:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    scale(2);
    controller::init_repository(&world.deck_dir()).unwrap();
    let (running, client) = begin(&world, deck).await;
    applied(&client, 1).await;
    servers(&["r1-0-a1", "r1-1-a1"]).await;

    let (asking, asker) = ask_all_the_time(west.address);
    scale(4);
    applied(&client, 2).await;
    servers(&["r1-0-a1", "r1-1-a1", "r2-2-a1", "r2-3-a1"]).await;
    scale(1);
    applied(&client, 3).await;
    servers(&["r1-0-a1"]).await;
    scale(2);
    applied(&client, 4).await;
    servers(&["r1-0-a1", "r4-1-a1"]).await;
    asking.store(false, Ordering::Relaxed);
    let (answered, unanswered) = asker.await.unwrap();
    assert!(answered > 20 && unanswered == 0, "{answered} answered, {unanswered} not");
    drop(client);
    running.stop().await;
    tokio::task::spawn_blocking(move || drop(world)).await.unwrap();
}
