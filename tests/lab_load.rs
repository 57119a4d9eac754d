//! Requests that fail in good rollouts: none. The simulated engine under many long streams, llama.cpp under few
//! requests. A short run in the tests; `tests/bench/rollout_load` makes the long ones and prints figures.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::time::{Duration, Instant};

use common::lab::{Lab, llama_server, write_gguf};
use common::operator::Operator;
use common::wait_until;
use gpudeck::api::Phase;
use gpudeck::demo::LoadShape;
use gpudeck::journal::Reader;
use serde_json::{Value, json};

const ROLLOUT: &str = r#"
[rollout]
steps             = [{ weight = 34 }, { analyse = "default" }]
healthy_deadline  = "30s"
progress_deadline = "3m"
drain_deadline    = "70s"
stop_grace        = "5s"

[analysis.default]
duration          = "10s"
min_requests      = 3
max_latency_ratio = 20.0
engine.min_samples = 3
"#;

fn simulated(revision: u32) -> String {
    format!(
        r#"
model    = "simulated"
device   = "cpu"
memory   = "64MiB"
replicas = 3
env      = {{ REVISION = "{revision}" }}

[engine.command]
run = [
  "{{gpudeck}}", "sim-engine", "--address", "{{address}}", "--port", "{{port}}", "--model", "chat",
  "--load-time", "2s", "--token-time", "500ms", "--max-concurrency", "4096",
]

[placement]
spread = "host"
{ROLLOUT}"#
    )
}

fn llama(revision: u32) -> String {
    format!(
        "model = \"/srv/tiny.gguf\"\nengine = \"llamacpp\"\nprogram = \"/srv/llama-server\"\n\
         context = 4096\nargs = [\"-n\", \"{}\", \"-t\", \"1\"]\ndevice = \"cpu\"\nmemory = \"256MiB\"\nreplicas = 3\n\
         [placement]\nspread = \"host\"\n{ROLLOUT}",
        200 + revision
    )
}

/// Which engines' long runs are wanted: `simulated`, `llama` or `all` of them; none in a short run.
fn figures_of(engine: &str) -> bool {
    std::env::var("GPUDECK_FIGURES").is_ok_and(|wanted| wanted == engine || wanted == "all")
}

/// Rolls one revision after the other out under load until so many requests were answered.
fn roll_under_load(
    operator: &Operator,
    spec: fn(u32) -> String,
    shape: LoadShape,
    requests: u64,
) -> Value {
    operator.write_spec(&spec(1));
    operator.expect(&["apply", "chat", "--wait", "--timeout", "3m", "--yes"], 0);
    let traffic = operator.load_shaped(shape);
    wait_until("the first answers", Duration::from_mins(1), || traffic.counts().ok >= 3);
    let began = Instant::now();
    let mut rollouts = 0;
    let mut most = 0;
    while rollouts == 0 || {
        let counts = traffic.counts();
        counts.ok + counts.failed + counts.in_flight < requests
    } {
        rollouts += 1;
        operator.write_spec(&spec(rollouts + 1));
        operator.expect_while(
            &["apply", "chat", "--wait", "--timeout", "4m", "--yes"],
            0,
            |chat| {
                assert!(chat.ready >= chat.floor, "{chat:#?}");
                most = most.max(traffic.counts().in_flight);
            },
        );
    }
    traffic.expect_none_failed("after the last rollout", requests.min(20));
    let counts = traffic.counts();
    json!({
        "rollouts": rollouts, "answered": counts.ok, "failed": counts.failed, "skipped": counts.skipped,
        "most_in_flight": most, "seconds": began.elapsed().as_secs(),
    })
}

/// How long the controller took from a report of "ready" to what it did next: from the record that says so to the
/// next one that a step of ours brings, as the journal's times say.
fn own_delays(operator: &Operator) -> Vec<u64> {
    let records = Reader::new(&operator.state().join("journal")).more().unwrap();
    let event = |r: &gpudeck::journal::Record| {
        let event = r.value.get("event")?;
        Some((event.get("at")?.as_u64()?, event.get("event")?.as_str()?.to_owned()))
    };
    let events: Vec<(u64, String)> = records.iter().filter_map(event).collect();
    let mut delays = Vec::new();
    for (index, (at, kind)) in events.iter().enumerate() {
        if kind != "replica_ready" {
            continue;
        }
        // The table with the new server is at the gateway: the first thing that follows.
        let next = events[index + 1..].iter().find(|(_, kind)| kind == "traffic_applied");
        if let Some((next, _)) = next {
            delays.push(next - at);
        }
    }
    delays.sort_unstable();
    delays
}

fn three_hosts() -> Option<Operator> {
    Some(Operator::new(Lab::up(3, &["--haproxy", "1"])?))
}

/// The short run of llama.cpp is in `lab_rollout.rs`.
#[test]
fn no_request_is_lost_in_good_rollouts() {
    if figures_of("llama") {
        llama_under_few_requests();
    }
    if figures_of("simulated") || !figures_of("llama") {
        simulated_under_long_streams(figures_of("simulated"));
    }
}

fn simulated_under_long_streams(long: bool) {
    let Some(operator) = three_hosts() else { return };
    // 5 to 60 s a stream; the short run has 1 to 8 s.
    let shape = LoadShape {
        rate_per_s: if long { 50.0 } else { 20.0 },
        max_in_flight: 4_000,
        request_time: Duration::from_mins(2),
        tokens: Some(if long { 10..=120 } else { 2..=16 }),
        all_streamed: true,
    };
    let mut figures = roll_under_load(&operator, simulated, shape, if long { 10_000 } else { 300 });
    let delays = own_delays(&operator);
    assert!(!delays.is_empty(), "no replica became ready");
    figures["ready_to_gateway_ms"] = json!({
        "median": delays[delays.len() / 2], "most": delays.last(), "replicas": delays.len(),
    });
    println!("{}", json!({ "engine": "simulated", "hosts": 3, "figures": figures }));
    let chat = operator.look().unwrap();
    assert!(chat.replicas.iter().all(|r| r.phase == Phase::Ready), "{chat:#?}");
}

fn llama_under_few_requests() {
    let Some(operator) = three_hosts() else { return };
    let server = llama_server();
    for host in ["h1", "h2", "h3"] {
        operator.lab.lab(&["put", host, server.to_str().unwrap(), "/srv/llama-server"]);
        write_gguf(&operator.lab.disk(host, "/srv/tiny.gguf"), 1, 100);
    }
    let figures = roll_under_load(&operator, llama, LoadShape::of_rate(3.0), 500);
    println!("{}", json!({ "engine": "llama.cpp", "hosts": 3, "figures": figures }));
}
