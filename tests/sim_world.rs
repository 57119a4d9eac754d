//! The demo's world with engines in it, put there by hand over SSH: traffic, counting, and the end.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use gpudeck::base::HostName;
use gpudeck::demo::World;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

const DEADLINE: Duration = Duration::from_secs(20);

async fn gateway(world: &World, command: &str) -> String {
    let socket = &world.deck().gateways.values().next().unwrap().socket;
    let mut stream = UnixStream::connect(socket).await.unwrap();
    stream.write_all(format!("{command}\n").as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

/// As the deck says, the host is logged in to with OpenSSH's client.
fn ssh(world: &World, host: &str, command: &str) -> Command {
    let spec = &world.deck().hosts[&host.parse::<HostName>().unwrap()];
    let mut ssh = Command::new("ssh");
    ssh.args(["-F", "none", "-T", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes"])
        .args(["-o", "StrictHostKeyChecking=yes", "-o", "GlobalKnownHostsFile=/dev/null"])
        .args(["-o", &format!("UserKnownHostsFile={}", spec.known_hosts.as_ref().unwrap())])
        .args(["-i", &spec.identity_files[0], "-p", &spec.port.unwrap().to_string()])
        .arg(format!("{}@{}", spec.user.as_ref().unwrap(), spec.address.as_ref().unwrap()))
        .arg(command)
        .env_remove("SSH_AUTH_SOCK")
        .stdin(Stdio::null());
    ssh
}

fn start_engine(world: &World, host: &str, gpu: usize, args: &str) -> u16 {
    let spec = &world.deck().hosts[&host.parse::<HostName>().unwrap()];
    let port = spec.first_engine_port.unwrap();
    let uuid = format!("GPU-51500000-{}-4000-8000-{gpu:012}", &format!("000{}", &host[4..]));
    let command = format!(
        "CUDA_VISIBLE_DEVICES={uuid} setsid {} sim-engine --port {port} --load-time 10ms --first-token 5ms --token-time 1ms --gpu-memory 70GiB {args} >engine.log 2>&1 </dev/null &",
        env!("CARGO_BIN_EXE_gpudeck")
    );
    assert!(ssh(world, host, &command).status().unwrap().success());
    let end = Instant::now() + DEADLINE;
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(Instant::now() < end, "the engine does not come up");
        std::thread::sleep(Duration::from_millis(20));
    }
    port
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_canary_is_seen_at_the_gateway_and_nothing_stays_behind() {
    if Command::new("ssh").arg("-V").output().is_err() {
        assert!(std::env::var("GPUDECK_LAB").as_deref() != Ok("1"), "ssh is not installed");
        println!("skipped: needs ssh");
        return;
    }
    let world = World::start(None).await.unwrap();
    let good = start_engine(&world, "gpu-1", 0, "");
    let bad = start_engine(&world, "gpu-2", 5, "--error-rate 0.3");
    for (name, port, weight) in [("r1-0-a1", good, 75), ("r2-0-a1", bad, 25)] {
        gateway(&world, &format!("add server chat/{name} 127.0.0.1:{port} weight {weight}")).await;
        gateway(&world, &format!("enable server chat/{name}")).await;
    }

    let load = world.load("chat", 200.0).unwrap();
    let end = Instant::now() + DEADLINE;
    while load.counts().ok + load.counts().failed < 400 {
        assert!(Instant::now() < end, "{:?}", load.counts());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let seen = load.counts();
    drop(load);
    // A quarter of the requests, three tenths of these: 30 of 400, and of what is under way, because those that fail
    // have their end first.
    let most = (seen.ok + seen.failed + seen.in_flight) * 3 / 40 + 4;
    assert!((27..=most).contains(&seen.failed), "{seen:?}");
    assert_eq!(seen.skipped, 0);

    let allocation = std::fs::read_dir(world.root().join("hosts/gpu-2/allocations")).unwrap();
    let allocation = allocation.flatten().next().expect("the engine told its allocation").path();
    let text = std::fs::read_to_string(&allocation).unwrap();
    let scenario = std::fs::read_to_string(world.root().join("hosts/gpu-2/scenario.json")).unwrap();
    let told: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert!(scenario.contains(told[0]["gpu"].as_str().unwrap()), "{text}");

    let pid = told[0]["pid"].as_u64().unwrap();
    let root = world.root().to_owned();
    drop(world);
    assert!(!root.exists());
    let status = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    assert!(!status.contains("sim-engine"), "an engine was left behind");
    assert!(std::net::TcpStream::connect(("127.0.0.1", good)).is_err());
}
