//! What the controller costs on a large simulated fleet (agents are tasks of this process, on
//! threads of their own, whose time is not counted).
//!
//!     cargo bench --bench scale -- rollout [--hosts 200] [--replicas 500]
//!     cargo bench --bench scale -- follow  [--hosts 1000] [--seconds 30] [--seldom true]
//!     cargo bench --bench scale -- hosts   [--hosts 1000] [--seconds 30] [--seldom true]
//!
//! `follow` looks at all hosts, so that each is sampled every second (`--seldom true`: as the screen alone
//! does, what it shows every second and the others every five). All GPUs work. The screen runs beside it as
//! people have it: another process, in a terminal of 200×50 (`in_terminal.py`). `hosts` is what these hosts alone
//! take in memory: they are followed as by a controller, and what they say is thrown away. Prints one JSON object.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gpudeck::api::{Client, Condition, Door, HostLinkState, Intent, Looking, Snapshot};
use gpudeck::controller::{self, Options, Paths, start_in_process};
use gpudeck::demo::{BigFleet, BigFleetShape};
use gpudeck::fleet::InProcessHosts;
use gpudeck::rollout::Outcome;
use gpudeck::wire::{PROTOCOL_VERSION, Request, ToAgent};
use serde_json::json;
use tokio::io::AsyncWriteExt;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let number = |name: &str, default: u64| {
        let at = args.iter().position(|a| a == name);
        at.and_then(|at| args.get(at + 1)?.parse().ok()).unwrap_or(default)
    };
    let runtime = |name: &str| {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name(name)
            .enable_all()
            .build()
            .unwrap()
    };
    let (hosts, ours) = (runtime("sim-hosts"), runtime("controller"));
    let busy = || BigFleetShape {
        hosts: u16::try_from(number("--hosts", 1000)).unwrap(),
        gpus: 8,
        load_time: Duration::from_secs(1),
        busy: true,
    };
    let result = match args.first().map(String::as_str) {
        Some("rollout") => {
            let shape = BigFleetShape {
                hosts: u16::try_from(number("--hosts", 200)).unwrap(),
                gpus: 8,
                load_time: Duration::from_secs(number("--load-time", 10)),
                busy: false,
            };
            let replicas = u32::try_from(number("--replicas", 500)).unwrap();
            ours.block_on(rollout(shape, replicas, hosts.handle().clone()))
        }
        Some("follow") => {
            let look = !args.iter().any(|a| a == "--seldom");
            ours.block_on(follow(busy(), number("--seconds", 30), look, hosts.handle().clone()))
        }
        Some("hosts") => {
            let interval = if args.iter().any(|a| a == "--seldom") { 5_000 } else { 1_000 };
            ours.block_on(hosts_alone(
                busy(),
                interval,
                number("--seconds", 30),
                hosts.handle().clone(),
            ))
        }
        // `cargo test --all-targets` runs benches without arguments: there is nothing to measure.
        _ => json!({ "usage": "scale rollout|follow|hosts" }),
    };
    println!("{result:#}");
}

/// CPU seconds of this process' threads by name.
fn cpu() -> BTreeMap<String, f64> {
    let mut by_name = BTreeMap::new();
    for task in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
        let Ok(stat) = std::fs::read_to_string(task.path().join("stat")) else { continue };
        let (Some(open), Some(close)) = (stat.find('('), stat.rfind(')')) else { continue };
        let fields: Vec<&str> = stat[close + 2..].split(' ').collect();
        let ticks: f64 = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
        *by_name.entry(stat[open + 1..close].to_owned()).or_insert(0.0) += ticks / 100.0;
    }
    by_name
}

fn spent(before: &BTreeMap<String, f64>) -> f64 {
    let now = cpu();
    let of = |cpu: &BTreeMap<String, f64>| {
        cpu.iter().filter(|(name, _)| *name != "sim-hosts").map(|(_, s)| s).sum::<f64>()
    };
    of(&now) - of(before)
}

fn memory_mib(pid: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

/// Waits until the `n`-th rollout has its new release alone: how many events that took, and the median and the
/// largest time from a replica's "ready" to the next event.
fn rollout_ends(journal: &std::path::Path, n: u32) -> Result<(usize, serde_json::Value), String> {
    let deadline = Instant::now() + Duration::from_mins(10);
    let mut reader = gpudeck::journal::Reader::new(journal);
    let mut state = controller::record::DeckState::default();
    let (mut events, mut waits, mut ready_at) = (0, Vec::new(), None);
    let chat = "chat".parse().unwrap();
    loop {
        for record in reader.more().map_err(|e| e.to_string())? {
            if record.kind == gpudeck::journal::RecordKind::Checkpoint {
                state = record.read().map_err(|e| e.to_string())?;
                continue;
            }
            state.replay_line(&record).map_err(|e| e.to_string())?;
            let event = record.value.get("event");
            let at = event.and_then(|e| e.get("at")?.as_u64());
            if let (Some(ready), Some(at)) = (ready_at.take(), at) {
                waits.push(at - ready);
            }
            let kind = event.and_then(|e| e.get("event")?.as_str());
            ready_at = at.filter(|_| kind == Some("replica_ready"));
            events += 1;
        }
        let rollout = state.services.get(&chat).and_then(|s| s.rollout.as_ref());
        let outcome = rollout.filter(|r| r.to.0 == u64::from(n)).and_then(|r| r.outcome.clone());
        if let Some(outcome) = outcome {
            if outcome != Outcome::Completed {
                return Err(format!("{outcome:?}"));
            }
            waits.sort_unstable();
            let median = waits.get(waits.len() / 2);
            return Ok((events, json!({ "median": median, "most": waits.last() })));
        }
        if Instant::now() > deadline {
            let rollout = state.services.get(&chat).map(|s| format!("{:?}", s.rollout));
            return Err(format!("no end within ten minutes: {rollout:?}"));
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

struct Stage {
    dir: tempfile::TempDir,
    deck: std::path::PathBuf,
    journal: std::path::PathBuf,
    running: controller::Running,
    client: Client,
}

async fn stage(shape: BigFleetShape, replicas: u32, hosts: tokio::runtime::Handle) -> Stage {
    let dir = tempfile::tempdir().unwrap();
    let fleet = BigFleet::new(shape, hosts).unwrap();
    let deck = fleet.deck();
    let deck_dir = dir.path().join("deck");
    fleet.write_deck(&deck_dir, &deck, replicas).unwrap();
    controller::init_repository(&deck_dir).unwrap();
    let options = Options {
        deck_dir: Some(deck_dir.clone()),
        deck,
        agent_binary: None,
        leave_when_idle: None,
        in_process: Some(Arc::new(fleet)),
    };
    // Where the screen finds it.
    let home = dir.path().join("home").join(options.deck.id.to_string());
    let paths = Paths::in_dir(&home);
    let journal = paths.journal();
    let running = start_in_process(options, &paths).await.unwrap();
    let client = controller::connect(&running.socket).await.unwrap();
    Stage { dir, deck: deck_dir, journal, running, client }
}

/// Looks at snapshots until they are as they should be.
async fn until(client: &Client, what: &str, seen: impl Fn(&Snapshot) -> bool) {
    let deadline = Instant::now() + Duration::from_mins(10);
    while !seen(&client.snapshot().await.unwrap()) {
        assert!(Instant::now() < deadline, "no {what}");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

fn all_up(snapshot: &Snapshot) -> bool {
    snapshot.hosts.values().all(|h| h.link == HostLinkState::Up && h.sample.is_some())
}

async fn rollout(
    shape: BigFleetShape,
    replicas: u32,
    hosts: tokio::runtime::Handle,
) -> serde_json::Value {
    let stage = stage(shape, replicas, hosts.clone()).await;
    let client = &stage.client;
    until(client, "fleet", all_up).await;
    let idle = (cpu(), Instant::now());
    tokio::time::sleep(Duration::from_secs(10)).await;
    let idle = spent(&idle.0) / idle.1.elapsed().as_secs_f64() * 100.0;
    let mut phases = Vec::new();
    for (name, revision) in [("first", 1), ("update", 2)] {
        std::fs::write(
            stage.deck.join("services/chat.toml"),
            BigFleet::service(replicas, revision),
        )
        .unwrap();
        let (before, began) = (cpu(), Instant::now());
        let intent = Intent::Apply {
            service: "chat".parse().unwrap(),
            reason: None,
            accept_outage: revision == 1,
            concurrency: None,
            agreed: None,
        };
        client.send(intent).await.unwrap();
        let accepted = began.elapsed();
        // By reading the journal, as nobody looks at a screen for so long: what doors cost is `follow`'s.
        let journal = stage.journal.clone();
        let ended = hosts.spawn_blocking(move || rollout_ends(&journal, revision)).await.unwrap();
        let (events, waits) = ended.unwrap_or_else(|why| panic!("{name}: {why}"));
        let (cpu_s, wall_s) = (spent(&before), began.elapsed().as_secs_f64());
        phases.push(json!({
            "rollout": name,
            "wall_s": wall_s,
            "accepted_after_s": accepted.as_secs_f64(),
            "controller_cpu_s": cpu_s,
            "controller_cpu_percent_of_a_core": cpu_s / wall_s * 100.0,
            "events": events,
            "ready_to_next_event_ms": waits,
        }));
    }
    until(client, "service that serves", |s| {
        s.services.values().all(|s| s.condition == Condition::Serving)
    })
    .await;
    let memory = memory_mib("self");
    stage.running.stop().await;
    json!({
        "hosts": shape.hosts, "replicas": replicas, "rollouts": phases,
        "idle_cpu_percent": idle, "memory_mib_with_hosts": memory,
    })
}

async fn hosts_alone(
    shape: BigFleetShape,
    interval_ms: u64,
    seconds: u64,
    hosts: tokio::runtime::Handle,
) -> serde_json::Value {
    let before = memory_mib("self");
    let fleet = BigFleet::new(shape, hosts).unwrap();
    let mut followed = tokio::task::JoinSet::new();
    for host in fleet.deck().hosts.keys() {
        let connection = fleet.connect(host).unwrap();
        followed.spawn(async move {
            let mut channel = connection.exec("agent").await.unwrap();
            let hello = Request::Hello { protocol: PROTOCOL_VERSION };
            let follow = Request::Follow { interval_ms, looked_at: false, packed: true };
            for (id, request) in [(1, hello), (2, follow)] {
                let mut line = serde_json::to_vec(&ToAgent { id, request }).unwrap();
                line.push(b'\n');
                channel.stdin.write_all(&line).await.unwrap();
            }
            tokio::io::copy(&mut channel.stdout, &mut tokio::io::sink()).await.unwrap()
        });
    }
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    assert!(followed.try_join_next().is_none(), "a simulated host has ended");
    json!({
        "hosts": shape.hosts, "gpus": shape.gpus, "interval_ms": interval_ms, "seconds": seconds,
        "memory_mib_before": before, "memory_mib_of_simulated_hosts_alone": memory_mib("self"),
    })
}

/// The screen in a terminal, as a process of its own.
struct Screen {
    terminal: std::process::Child,
    pid: u32,
}

impl Screen {
    fn open(stage: &Stage) -> Self {
        use std::io::BufRead;
        let program =
            std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bench/in_terminal.py");
        let mut terminal = std::process::Command::new("python3")
            .arg(program)
            .args(["50", "200", env!("CARGO_BIN_EXE_gpudeck"), "--deck"])
            .arg(&stage.deck)
            .env("GPUDECK_HOME", stage.dir.path().join("home"))
            .env("TERM", "xterm-256color")
            .env("COLORTERM", "truecolor")
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let out = terminal.stdout.as_mut().unwrap();
        std::io::BufReader::new(out).read_line(&mut line).unwrap();
        let pid = line.trim().parse().unwrap_or_else(|_| panic!("no pid: {line:?}"));
        Self { terminal, pid }
    }

    fn cpu_s(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap();
        let fields: Vec<&str> = stat[stat.rfind(')').unwrap() + 2..].split(' ').collect();
        (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
    }

    /// Ends it: how many bytes it has drawn.
    fn close(mut self) -> u64 {
        use std::io::Read;
        drop(self.terminal.stdin.take());
        let mut said = String::new();
        self.terminal.stdout.take().unwrap().read_to_string(&mut said).unwrap();
        self.terminal.wait().unwrap();
        said.trim().parse().unwrap_or(0)
    }
}

async fn follow(
    shape: BigFleetShape,
    seconds: u64,
    look: bool,
    hosts: tokio::runtime::Handle,
) -> serde_json::Value {
    let began = Instant::now();
    let stage = stage(shape, 2, hosts).await;
    until(&stage.client, "fleet", all_up).await;
    let up = began.elapsed();
    let screen = Screen::open(&stage);
    // Another door that looks at everything, so that everything is sampled every second.
    let everything = stage.client.snapshot().await.unwrap().hosts.into_keys().collect();
    let looking = Looking { hosts: everything, ..Looking::default() };
    let looker = controller::connect(&stage.running.socket).await.unwrap();
    let looker = tokio::spawn(async move {
        if look {
            loop {
                looker.look(&looking).await.unwrap();
                tokio::time::sleep(Duration::from_secs(6)).await;
            }
        }
    });
    tokio::time::sleep(Duration::from_secs(12)).await;
    let (before, screen_before, began) = (cpu(), screen.cpu_s(), Instant::now());
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let (cpu_s, wall_s) = (spent(&before), began.elapsed().as_secs_f64());
    let screen_s = screen.cpu_s() - screen_before;
    let memory = memory_mib("self");
    let screen_memory = memory_mib(&screen.pid.to_string());
    let (now, snapshot) = (std::time::UNIX_EPOCH.elapsed(), stage.client.snapshot().await);
    let now = u64::try_from(now.unwrap().as_millis()).unwrap();
    let oldest =
        snapshot.unwrap().hosts.values().map(|h| now.saturating_sub(h.sampled.unwrap().0)).max();
    looker.abort();
    let drawn = screen.close();
    stage.running.stop().await;
    let samples = f64::from(shape.hosts) * wall_s / if look { 1.0 } else { 5.0 };
    json!({
        "hosts": shape.hosts, "gpus": shape.gpus, "up_after_s": up.as_secs_f64(),
        "every_host_every_second": look, "seconds": wall_s,
        "oldest_sample_ms_at_the_end": oldest,
        "controller_percent_of_a_core": cpu_s / wall_s * 100.0,
        "screen_percent_of_a_core": screen_s / wall_s * 100.0,
        "together_percent_of_a_core": (cpu_s + screen_s) / wall_s * 100.0,
        "together_ms_per_host_sample": look.then_some((cpu_s + screen_s) * 1000.0 / samples),
        "controller_memory_mib_with_simulated_hosts": memory,
        "screen_memory_mib": screen_memory,
        "screen_bytes_drawn": drawn,
        "load_average": std::fs::read_to_string("/proc/loadavg").unwrap().trim(),
    })
}
