//! A service without a gateway: endpoints are published, whoever balances follows them, and a
//! replica is stopped only when its engine has nothing in flight.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod common;

use std::time::{Duration, Instant};

use common::sim_fleet::place_agents;
use gpudeck::api::{Client, Door, Intent, Outcome, ServiceView};
use gpudeck::controller::{self, Options, Paths, Running, start_in_process};
use gpudeck::demo::World;
use gpudeck::spec::{DeckSpec, EndpointsSpec};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const DEADLINE: Duration = Duration::from_secs(120);

fn spec(seed: u32) -> String {
    format!(
        r#"
model    = "simulated/chat"
replicas = 1
memory   = "40GiB"

[engine.command]
run = [
  "{{gpudeck}}", "sim-engine", "--address", "{{address}}", "--port", "{{port}}",
  "--load-time", "200ms", "--gpu-memory", "40GiB", "--token-time", "20ms", "--seed", "{seed}",
]
metrics = "vllm"

[rollout]
max_unavailable   = 0
max_surge         = 1
healthy_deadline  = "2m"
progress_deadline = "3m"
drain_deadline    = "100s"
stop_grace        = "1s"
"#
    )
}

async fn wait<T>(client: &Client, what: &str, seen: impl Fn(&ServiceView) -> Option<T>) -> T {
    let end = Instant::now() + DEADLINE;
    loop {
        let snapshot = client.snapshot().await.unwrap();
        let view = snapshot.services.get(&"chat".parse().unwrap());
        if let Some(found) = view.and_then(&seen) {
            return found;
        }
        assert!(Instant::now() < end, "in vain: {what}: {view:#?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn roll(client: &Client) {
    let intent = Intent::Apply {
        service: "chat".parse().unwrap(),
        reason: None,
        accept_outage: false,
        concurrency: None,
        agreed: None,
    };
    client.send(intent).await.unwrap();
}

/// A controller of the world's deck, when it sees all hosts.
async fn begin(world: &World, deck: DeckSpec, name: &str) -> (Running, Client) {
    let options = Options {
        deck_dir: Some(world.deck_dir()),
        deck,
        agent_binary: Some(env!("CARGO_BIN_EXE_gpudeck").into()),
        leave_when_idle: None,
        in_process: None,
    };
    let paths = Paths::in_dir(&world.root().join(name));
    let running = start_in_process(options, &paths).await.unwrap();
    let client = controller::connect(&running.socket).await.unwrap();
    let end = Instant::now() + DEADLINE;
    while !client.snapshot().await.unwrap().hosts.values().all(|h| h.sample.is_some()) {
        assert!(Instant::now() < end, "the hosts do not come up");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    (running, client)
}

/// What a controller tells at this port of the endpoints of `chat`: the status and the text.
async fn told(port: u16, format: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let ask = format!(
        "GET /v1/endpoints/chat?format={format} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(ask.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

async fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
}

/// Waits for an answer with this status and these words in it.
async fn wait_told(port: u16, status: u16, words: &str) -> String {
    let end = Instant::now() + DEADLINE;
    loop {
        let (found, body) = told(port, "json").await;
        if found == status && body.contains(words) {
            return body;
        }
        assert!(Instant::now() < end, "in vain: {status} with `{words}`: {found} {body}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Two controllers publish to the same files, each with an HTTP endpoint of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_who_holds_the_hosts_publishes() {
    let world = World::start(None).await.unwrap();
    place_agents(&world);
    let dir = world.root().join("endpoints");
    let mut deck = world.deck().clone();
    deck.gateways.clear();
    let ports = [free_port().await, free_port().await];
    deck.endpoints = Some(EndpointsSpec {
        dir: Some(dir.to_str().unwrap().to_owned()),
        listen: Some(format!("127.0.0.1:{}", ports[0])),
        zone: None,
        reload: Vec::new(),
        settle: Duration::from_millis(100),
    });
    std::fs::write(world.deck_dir().join("deck.toml"), toml::to_string(&deck).unwrap()).unwrap();
    std::fs::remove_file(world.spec_path("code")).unwrap();
    std::fs::write(world.spec_path("chat"), spec(1)).unwrap();
    controller::init_repository(&world.deck_dir()).unwrap();
    let (first, client) = begin(&world, deck.clone(), "first").await;
    roll(&client).await;
    let outcome = |v: &ServiceView| v.rollout.as_ref().and_then(|r| r.outcome.clone());
    assert_eq!(wait(&client, "r1", outcome).await, Outcome::Completed);
    let read = || std::fs::read_to_string(dir.join("chat.json")).unwrap();
    assert_eq!(told(ports[0], "json").await, (200, read()));

    // The second one knows of nothing yet, and says so.
    let mut of_second = deck.clone();
    let endpoints = of_second.endpoints.as_mut().unwrap();
    endpoints.listen = Some(format!("127.0.0.1:{}", ports[1]));
    let (second, other) = begin(&world, of_second, "second").await;
    wait_told(ports[1], 503, "is held by").await;

    // It takes over and tells what is served without any change of it; the first one falls silent.
    other.send(Intent::TakeOver { force: true, reason: None }).await.unwrap();
    wait_told(ports[1], 200, "r1-0-a1").await;
    let why = wait_told(ports[0], 503, "is held by").await;
    assert!(why.contains("second"), "{why}");

    // Nor does it touch the files any more, also in its next life.
    assert_eq!(wait(&other, "r1 at the second one", outcome).await, Outcome::Completed);
    std::fs::write(world.spec_path("chat"), spec(2)).unwrap();
    roll(&other).await;
    let done = |v: &ServiceView| {
        let rollout = v.rollout.as_ref().filter(|r| r.to.0 == 2)?;
        rollout.outcome.clone()
    };
    assert_eq!(wait(&other, "r2", done).await, Outcome::Completed);
    let of_r2 = wait_told(ports[1], 200, "r2-0-a1").await;
    let stays = async |what: &str| {
        let end = Instant::now() + Duration::from_secs(5);
        while Instant::now() < end {
            assert_eq!(read(), of_r2, "{what}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    stays("it goes on").await;
    assert_eq!(told(ports[0], "json").await.0, 503);
    drop(client);
    first.stop().await;
    let again = begin(&world, deck.clone(), "first");
    let ((first, client), ()) = tokio::join!(again, stays("its next life"));
    assert_eq!(told(ports[0], "json").await.0, 503);

    // Taken back, it tells what the second one has left.
    client.send(Intent::TakeOver { force: true, reason: None }).await.unwrap();
    wait_told(ports[0], 200, "r2-0-a1").await;
    wait_told(ports[1], 503, "is held by").await;

    drop((client, other));
    first.stop().await;
    second.stop().await;
    tokio::task::spawn_blocking(move || drop(world)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoints_move_first_and_streams_come_to_their_end() {
    let world = World::start(None).await.unwrap();
    place_agents(&world);
    let dir = world.root().join("endpoints");
    let port = free_port().await;
    let mut deck = world.deck().clone();
    deck.gateways.clear();
    deck.endpoints = Some(EndpointsSpec {
        dir: Some(dir.to_str().unwrap().to_owned()),
        listen: Some(format!("127.0.0.1:{port}")),
        zone: Some("llm.lan".to_owned()),
        reload: [
            "sh",
            "-c",
            "grep ^_chat $GPUDECK_SERVICE.zone >../seen.new; mv ../seen.new ../seen",
        ]
        .map(str::to_owned)
        .to_vec(),
        settle: Duration::from_millis(300),
    });
    std::fs::write(world.deck_dir().join("deck.toml"), toml::to_string(&deck).unwrap()).unwrap();
    std::fs::remove_file(world.spec_path("code")).unwrap();
    std::fs::write(world.spec_path("chat"), spec(1)).unwrap();
    controller::init_repository(&world.deck_dir()).unwrap();
    let (running, client) = begin(&world, deck, "controller").await;
    roll(&client).await;
    let outcome = |v: &ServiceView| v.rollout.as_ref().and_then(|r| r.outcome.clone());
    assert_eq!(wait(&client, "r1", outcome).await, Outcome::Completed);

    let read = || -> Value {
        serde_json::from_str(&std::fs::read_to_string(dir.join("chat.json")).unwrap()).unwrap()
    };
    let first = read();
    assert_eq!(first["endpoints"][0]["replica"], "r1-0-a1", "{first}");
    let address = format!(
        "{}:{}",
        first["endpoints"][0]["address"].as_str().unwrap(),
        first["endpoints"][0]["port"]
    );

    // A stream of six seconds at the old replica, begun before the rollout.
    let mut stream = TcpStream::connect(&address).await.unwrap();
    let body = r#"{"messages":[{"role":"user","content":"Hi"}],"max_tokens":300,"stream":true}"#;
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
    let mut piece = [0; 64];
    assert!(stream.read(&mut piece).await.unwrap() > 0);
    let reading = tokio::spawn(async move {
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    });

    std::fs::write(world.spec_path("chat"), spec(2)).unwrap();
    roll(&client).await;
    wait(&client, "r1 drains", |_| {
        let table = read();
        let draining = table["endpoints"].as_array()?.iter().any(|e| e["mode"] == "drain");
        draining.then_some(())
    })
    .await;
    let table = read();
    assert!(
        table["endpoints"].as_array().unwrap().iter().any(|e| e["replica"] == "r2-0-a1"),
        "the new one is told before the old one goes: {table}"
    );
    // Each file is whole, one is written after the other.
    wait(&client, "the zone follows", |_| {
        let zone = std::fs::read_to_string(dir.join("chat.zone")).unwrap();
        (zone.contains("chat-r2-0-a1") && !zone.contains("chat-r1-0-a1")).then_some(())
    })
    .await;
    // A name server that reads the zone only when it is told has read it before the old one is gone.
    wait(&client, "the name server follows", |v| {
        let seen = std::fs::read_to_string(world.root().join("seen")).unwrap();
        let old = v.replicas.iter().any(|r| r.id.release.0 == 1);
        assert!(old || !seen.contains("r1-0-a1"), "{seen}");
        (seen.contains("r2-0-a1") && !seen.contains("r1-0-a1")).then_some(())
    })
    .await;
    let text = reading.await.unwrap();
    assert!(text.contains("[DONE]"), "the stream was cut: …{}", &text[text.len() - 200..]);

    let done = |v: &ServiceView| {
        let rollout = v.rollout.as_ref().filter(|r| r.to.0 == 2)?;
        rollout.outcome.clone()
    };
    assert_eq!(wait(&client, "r2", done).await, Outcome::Completed);
    let (_, body) = told(port, "file_sd").await;
    let groups: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(groups.as_array().unwrap().len(), 1);
    assert_eq!(groups[0]["labels"]["replica"], "r2-0-a1");
    assert_eq!(body, std::fs::read_to_string(dir.join("chat.file_sd.json")).unwrap());

    drop(client);
    running.stop().await;
    tokio::task::spawn_blocking(move || drop(world)).await.unwrap();
}
