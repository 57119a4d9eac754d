//! Analyses from end to end on the simulated fleet: engines under load, a Prometheus that answers,
//! golden prompts, and rollouts that are taken back by the number that decided.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::sim_fleet::place_agents;
use gpudeck::api::{Client, Door, Intent, Outcome, Snapshot};
use gpudeck::controller::{self, Options, Paths, start_in_process};
use gpudeck::demo::World;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

const DEADLINE: Duration = Duration::from_secs(180);

/// A Prometheus as far as it matters: every query gives 0.01. Counts what it was asked.
async fn prometheus() -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&asked);
    tokio::spawn(async move {
        loop {
            let Ok((mut stream, _)) = listener.accept().await else { return };
            let mut text = String::new();
            while !text.contains("query=") {
                let mut piece = [0; 4096];
                match stream.read(&mut piece).await {
                    Ok(n) if n > 0 => text.push_str(&String::from_utf8_lossy(&piece[..n])),
                    _ => break,
                }
            }
            assert!(text.contains("release%3D%22r"), "the release is filled in: {text}");
            counter.fetch_add(1, Ordering::SeqCst);
            let body = r#"{"status":"success","data":{"resultType":"vector","result":[{"metric":{},"value":[1,"0.01"]}]}}"#;
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
            let _ = stream.write_all(format!("{head}{body}").as_bytes()).await;
        }
    });
    (url, asked)
}

fn spec(args: &str, analysis: &str) -> String {
    format!(
        r#"
model    = "simulated/chat"
replicas = 2
memory   = "40GiB"

[engine.command]
run = [
  "{{gpudeck}}", "sim-engine", "--address", "{{address}}", "--port", "{{port}}", "--model", "chat",
  "--load-time", "300ms", "--gpu-memory", "40GiB", "--tokens", "4", "--token-time", "5ms", {args}
]
metrics = "vllm"

[rollout]
max_unavailable   = 0
max_surge         = 1
steps             = [{{ weight = 50 }}, {{ analyse = "a" }}]
healthy_deadline  = "2m"
progress_deadline = "3m"
drain_deadline    = "20s"
stop_grace        = "5s"

[analysis.a]
{analysis}
"#
    )
}

async fn until<T>(client: &Client, what: &str, seen: impl Fn(&Snapshot) -> Option<T>) -> T {
    let end = Instant::now() + DEADLINE;
    loop {
        let snapshot = client.snapshot().await.unwrap();
        if let Some(found) = seen(&snapshot) {
            return found;
        }
        assert!(Instant::now() < end, "in vain: {what}: {:#?}", snapshot.services);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Rolls out `text` and waits for the end of it; the outcome, and the last verdict's words.
async fn roll(world: &World, client: &Client, text: &str) -> (Outcome, String) {
    std::fs::write(world.spec_path("chat"), text).unwrap();
    let before = client.snapshot().await.unwrap();
    let began = |s: &Snapshot| {
        s.services.values().next().and_then(|v| v.rollout.as_ref()).map(|r| (r.to, r.began))
    };
    let before = began(&before);
    let intent = Intent::Apply {
        service: "chat".parse().unwrap(),
        reason: None,
        accept_outage: false,
        concurrency: None,
        agreed: None,
    };
    client.send(intent).await.unwrap();
    until(client, "the rollout is over", |s| {
        let rollout = s.services.get(&"chat".parse().unwrap())?.rollout.as_ref()?;
        if began(s) == before {
            return None;
        }
        let said = rollout.verdict.as_ref().map(|v| v.reason.clone()).unwrap_or_default();
        rollout.outcome.clone().map(|outcome| (outcome, said))
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_number_that_decided_is_told() {
    let world = World::start(None).await.unwrap();
    place_agents(&world);
    std::fs::remove_file(world.spec_path("code")).unwrap();
    std::fs::write(world.spec_path("chat"), spec("", "duration = \"1s\"")).unwrap();
    controller::init_repository(&world.deck_dir()).unwrap();
    let options = Options {
        deck_dir: Some(world.deck_dir()),
        deck: world.deck().clone(),
        agent_binary: Some(env!("CARGO_BIN_EXE_gpudeck").into()),
        leave_when_idle: None,
        in_process: None,
    };
    let paths = Paths::in_dir(&world.root().join("controller"));
    let running = start_in_process(options, &paths).await.unwrap();
    let client = controller::connect(&running.socket).await.unwrap();
    until(&client, "hosts up", |s| {
        (s.hosts.len() == 4 && s.hosts.values().all(|h| h.sample.is_some())).then_some(())
    })
    .await;

    let (outcome, _) = roll(&world, &client, &spec("", "duration = \"1s\"")).await;
    assert_eq!(outcome, Outcome::Completed, "the first deployment");
    let _load = world.load("chat", 30.0).unwrap();

    // Slow by the engines' own word; the gateway alone would have to see 100,000 requests first.
    let slow = spec(
        "\"--first-token\", \"600ms\"",
        "duration = \"2m\"\nmin_requests = 100000\nmax_latency_ratio = 3.0",
    );
    let (outcome, said) = roll(&world, &client, &slow).await;
    assert!(said.starts_with("time to first token ") && said.contains(" > 3.00"), "{said}");
    let Outcome::RolledBack { why } = outcome else { panic!("{outcome:?}") };
    assert!(why.starts_with("analysis a: time to first token "), "{why}");

    // Good by every number, and it does not know the capital of France.
    let golden = "[[analysis.a.golden]]\nprompt = \"Say it\"\ncontains = \"SIMULATED\"\nmax_tokens = 40\n\
                  [[analysis.a.golden]]\nprompt = \"The capital of France is\"\nexpect = \"(?i)paris\"\n";
    let ignorant = spec("\"--seed\", \"2\"", &format!("duration = \"2m\"\n{golden}"));
    let (outcome, said) = roll(&world, &client, &ignorant).await;
    assert!(matches!(outcome, Outcome::RolledBack { .. }), "{outcome:?}");
    assert!(said.starts_with("golden 2: r3-"), "{said}");
    assert!(said.contains("to “The capital of France is”, expected /(?i)paris/"), "{said}");

    // All is well, and a Prometheus says so twice.
    let (url, asked) = prometheus().await;
    let query = format!(
        "[[analysis.a.golden]]\nprompt = \"Say it\"\ncontains = \"SIMULATED\"\nmax_tokens = 40\n\
         [[analysis.a.prometheus]]\nurl = \"{url}\"\n\
         query = \"errors{{release=\\\"$canary\\\"}}\"\nsuccess = \"result < 0.05\"\n\
         interval = \"1s\"\ncount = 2\n"
    );
    let good = spec(
        "\"--seed\", \"3\"",
        &format!("duration = \"4s\"\nmin_requests = 5\nmax_latency_ratio = 50.0\n{query}"),
    );
    let (outcome, said) = roll(&world, &client, &good).await;
    assert_eq!(outcome, Outcome::Completed, "{said}");
    assert!(said.contains("golden 1: “Say it” → “"), "{said}");
    assert!(said.contains("prometheus 1: 0.01 (result < 0.05)"), "{said}");
    assert_eq!(asked.load(Ordering::SeqCst), 2);

    // A limit on what an engine says of its cache.
    let full = spec(
        "\"--seed\", \"4\"",
        "duration = \"4s\"\nmin_requests = 5\nmax_latency_ratio = 50.0\n[analysis.a.engine]\nmax_kv_usage = 0.0000001\n",
    );
    let (outcome, said) = roll(&world, &client, &full).await;
    assert!(matches!(outcome, Outcome::RolledBack { .. }), "{outcome:?}");
    assert!(said.contains("KV"), "{said}");

    // A GPU of the canary breaks in the middle of its analysis. (Last: it is of no use any more.)
    let breaks = spec("\"--seed\", \"5\"", "duration = \"2m\"\nmin_requests = 100000");
    let broken = async {
        // What was wrong with a GPU before is not the canary's doing: it is looked at once first.
        until(&client, "the analysis", |s| {
            let rollout = s.services.values().next()?.rollout.as_ref()?;
            let looked_at = rollout.analysis.new.gpu.samples > 0;
            (rollout.outcome.is_none() && looked_at).then_some(())
        })
        .await;
        for host in 1..=4 {
            let file = world.root().join(format!("hosts/gpu-{host}/scenario.json"));
            let mut scenario: serde_json::Value =
                serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
            for gpu in scenario["gpus"].as_array_mut().unwrap() {
                gpu["xids"] = serde_json::json!([79]);
            }
            std::fs::write(&file, scenario.to_string()).unwrap();
        }
    };
    let ((outcome, said), ()) = tokio::join!(roll(&world, &client, &breaks), broken);
    assert!(matches!(outcome, Outcome::RolledBack { .. }), "{outcome:?}");
    assert!(said.starts_with("GPU: ") && said.contains("has fallen off the bus"), "{said}");

    drop(client);
    running.stop().await;
    tokio::task::spawn_blocking(move || drop(world)).await.unwrap();
}
