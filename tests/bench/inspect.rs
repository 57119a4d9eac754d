//! Inspecting a directory in the shape of Llama-3.1-405B (191 safetensors files with their real
//! headers, sparse data, index, configuration) on a host behind a real sshd, whose every byte is held
//! up by a small proxy on loopback: `--delay` milliseconds in each direction.
//!
//!     cargo bench --bench inspect -- run [--delay 20] [--runs 9]
//!
//! Prints one JSON object: the time of `model inspect` as a program of its own (with a controller that
//! runs, as it does while a deck is in use) and of the inspection alone, and the bytes that came over
//! the connection for it. Needs root and OpenSSH.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../ssh_support/mod.rs"]
mod ssh_support;

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use gpudeck::api::{Client, Door, HostLinkState};
use gpudeck::controller::{self, Options, Paths, start_in_process};
use serde_json::{Value, json};
use ssh_support::{Sshd, lab};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let number = |name: &str, default: u64| {
        let at = args.iter().position(|a| a == name);
        at.and_then(|at| args.get(at + 1)?.parse().ok()).unwrap_or(default)
    };
    // `cargo test --all-targets` runs benches without arguments: there is nothing to measure.
    if args.first().map(String::as_str) != Some("run") || !lab() {
        println!("{:#}", json!({ "usage": "inspect run [--delay MS] [--runs N]" }));
        return;
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let delay = Duration::from_millis(number("--delay", 20));
    let runs = usize::try_from(number("--runs", 9)).unwrap();
    println!("{:#}", runtime.block_on(measure(delay, runs)));
}

// ── the model ───────────────────────────────────────────────────────────────────────────────

const LAYERS: u64 = 126;
const TOTAL: u64 = 811_706_777_600;
const SHARDS: usize = 191;

/// Names and shapes of its tensors, in the order in which they are stored.
fn tensors() -> Vec<(String, [u64; 2])> {
    let (hidden, inner, kv, vocab) = (16_384, 53_248, 1_024, 128_256);
    let mut out = vec![("model.embed_tokens.weight".to_owned(), [vocab, hidden])];
    for layer in 0..LAYERS {
        for (name, shape) in [
            ("self_attn.q_proj", [hidden, hidden]),
            ("self_attn.k_proj", [kv, hidden]),
            ("self_attn.v_proj", [kv, hidden]),
            ("self_attn.o_proj", [hidden, hidden]),
            ("mlp.gate_proj", [inner, hidden]),
            ("mlp.up_proj", [inner, hidden]),
            ("mlp.down_proj", [hidden, inner]),
            ("input_layernorm", [hidden, 0]),
            ("post_attention_layernorm", [hidden, 0]),
        ] {
            out.push((format!("model.layers.{layer}.{name}.weight"), shape));
        }
    }
    out.push(("model.norm.weight".to_owned(), [hidden, 0]));
    out.push(("lm_head.weight".to_owned(), [vocab, hidden]));
    out
}

fn bytes_of(shape: [u64; 2]) -> u64 {
    shape[0] * shape[1].max(1) * 2
}

/// Writes the directory; the data of its files is a hole.
fn write_model(dir: &Path) {
    std::fs::create_dir_all(dir).unwrap();
    // As `save_pretrained` does with its limit of 5 GB a file, evened out to the published number.
    let all = tensors();
    let (mut shards, mut filled) = (vec![Vec::new()], 0);
    for (name, shape) in all {
        let bytes = bytes_of(shape);
        if filled + bytes > 5_000_000_000 {
            shards.push(Vec::new());
            filled = 0;
        }
        filled += bytes;
        shards.last_mut().unwrap().push((name, shape));
    }
    while shards.len() < SHARDS {
        let longest = shards.iter_mut().max_by_key(|s| s.len()).unwrap();
        let half = longest.split_off(longest.len() / 2);
        shards.push(half);
    }
    assert_eq!(shards.len(), SHARDS);
    let mut map = serde_json::Map::new();
    for (number, shard) in (1..).zip(&shards) {
        let file = format!("model-{number:05}-of-{SHARDS:05}.safetensors");
        let mut header = serde_json::Map::new();
        header.insert("__metadata__".into(), json!({ "format": "pt" }));
        let mut at = 0;
        for (name, shape) in shard {
            let end = at + bytes_of(*shape);
            let shape: Vec<u64> = shape.iter().copied().filter(|n| *n > 0).collect();
            let about = json!({ "dtype": "BF16", "shape": shape, "data_offsets": [at, end] });
            header.insert(name.clone(), about);
            map.insert(name.clone(), json!(file));
            at = end;
        }
        let mut text = serde_json::to_vec(&header).unwrap();
        text.resize(text.len().next_multiple_of(8), b' ');
        let mut content = (text.len() as u64).to_le_bytes().to_vec();
        content.extend(text);
        std::fs::write(dir.join(&file), &content).unwrap();
        let whole = std::fs::File::options().write(true).open(dir.join(&file)).unwrap();
        whole.set_len(content.len() as u64 + at).unwrap();
    }
    let index = json!({ "metadata": { "total_size": TOTAL }, "weight_map": map });
    let write = |name: &str, value: &Value| {
        std::fs::write(dir.join(name), serde_json::to_vec_pretty(value).unwrap()).unwrap();
    };
    write("model.safetensors.index.json", &index);
    write(
        "config.json",
        &json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16",
            "hidden_size": 16384, "intermediate_size": 53248, "num_hidden_layers": LAYERS,
            "num_attention_heads": 128, "num_key_value_heads": 8, "vocab_size": 128_256,
            "max_position_embeddings": 131_072, "tie_word_embeddings": false,
        }),
    );
    write("generation_config.json", &json!({ "do_sample": true }));
    std::fs::File::create(dir.join("tokenizer.json")).unwrap().set_len(9_085_657).unwrap();
}

// ── the way there ───────────────────────────────────────────────────────────────────────────

/// A proxy that passes every byte on after `delay`, as a long line does: what is sent later arrives
/// later, nothing waits for what was sent before.
async fn slow_line(to: u16, delay: Duration, received: Arc<AtomicU64>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let far = TcpStream::connect(("127.0.0.1", to)).await.unwrap();
            near.set_nodelay(true).unwrap();
            far.set_nodelay(true).unwrap();
            let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
            tokio::spawn(carry(near_in, far_out, delay, None));
            tokio::spawn(carry(far_in, near_out, delay, Some(Arc::clone(&received))));
        }
    });
    port
}

async fn carry(
    mut from: impl AsyncReadExt + Unpin + Send + 'static,
    mut to: impl AsyncWriteExt + Unpin + Send + 'static,
    delay: Duration,
    count: Option<Arc<AtomicU64>>,
) {
    let (sender, mut waiting) = tokio::sync::mpsc::channel::<(Instant, Vec<u8>)>(4_096);
    tokio::spawn(async move {
        while let Some((due, bytes)) = waiting.recv().await {
            tokio::time::sleep_until(due.into()).await;
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
    });
    let mut buffer = vec![0; 64 << 10];
    while let Ok(n) = from.read(&mut buffer).await {
        if n == 0 || sender.send((Instant::now() + delay, buffer[..n].to_vec())).await.is_err() {
            return;
        }
        if let Some(count) = &count {
            count.fetch_add(n as u64, Ordering::Relaxed);
        }
    }
}

// ── measuring ───────────────────────────────────────────────────────────────────────────────

async fn measure(delay: Duration, runs: usize) -> Value {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("Llama-3.1-405B");
    write_model(&model);
    let server = Sshd::start();
    let received = Arc::new(AtomicU64::new(0));
    let port = slow_line(server.port, delay, Arc::clone(&received)).await;
    let deck_dir = dir.path().join("deck");
    std::fs::create_dir_all(deck_dir.join("services")).unwrap();
    let id = "01890000-0000-7000-8000-000000000405";
    let known = dir.path().join("known_hosts");
    let line = server.known_hosts_line("ed25519");
    std::fs::write(&known, line.replace(&server.port.to_string(), &port.to_string())).unwrap();
    let deck = format!(
        "id = \"{id}\"\nname = \"bench\"\n\n[hosts.far]\naddress = \"127.0.0.1\"\nport = {port}\n\
         user = \"root\"\nidentity_files = [\"{}\"]\nknown_hosts = \"{}\"\n\n\
         [hosts.far.agent_env]\nGPUDECK_STATE_DIR = \"{}\"\n",
        server.user_key().display(),
        known.display(),
        dir.path().join("state").display(),
    );
    std::fs::write(deck_dir.join("deck.toml"), deck).unwrap();
    controller::init_repository(&deck_dir).unwrap();
    let home = dir.path().join("home");
    let options = Options {
        deck_dir: Some(deck_dir.clone()),
        deck: controller::read_deck(&deck_dir).unwrap(),
        agent_binary: Some(env!("CARGO_BIN_EXE_gpudeck").into()),
        leave_when_idle: None,
        in_process: None,
    };
    let running = start_in_process(options, &Paths::in_dir(&home.join(id))).await.unwrap();
    let client = controller::connect(&running.socket).await.unwrap();
    until_up(&client).await;

    let path = model.to_str().unwrap().to_owned();
    let host = "far".parse().unwrap();
    let (mut alone, mut bytes) = (Vec::new(), Vec::new());
    for _ in 0..runs {
        let (before, began) = (received.load(Ordering::Relaxed), Instant::now());
        let facts = client.inspect(&host, &path).await.unwrap();
        alone.push(began.elapsed().as_secs_f64());
        bytes.push((received.load(Ordering::Relaxed) - before) as f64);
        assert_eq!(facts.weight_bytes.0, TOTAL);
        assert_eq!(facts.parts as usize, SHARDS);
    }
    let mut program = Vec::new();
    for _ in 0..runs {
        let began = Instant::now();
        let told = ask(&deck_dir, &home, &path).await;
        program.push(began.elapsed().as_secs_f64());
        assert_eq!(told["weights_bytes"], json!(TOTAL));
    }
    running.stop().await;
    json!({
        "shards": SHARDS, "delay_ms_each_way": u64::try_from(delay.as_millis()).unwrap(),
        "runs": runs,
        "inspection_s": { "median": median(&mut alone), "most": most(&alone) },
        "program_s": { "median": median(&mut program), "most": most(&program) },
        "bytes_received": { "median": median(&mut bytes), "most": most(&bytes) },
    })
}

async fn until_up(client: &Client) {
    let deadline = Instant::now() + Duration::from_mins(5);
    loop {
        let snapshot = client.snapshot().await.unwrap();
        let up = |h: &gpudeck::api::HostView| h.link == HostLinkState::Up && h.sample.is_some();
        if snapshot.hosts.values().all(up) {
            return;
        }
        assert!(Instant::now() < deadline, "the host is not reached: {:?}", snapshot.hosts);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// `gpudeck model inspect far:PATH --tp 8 --gpu h100-80 --output json`.
async fn ask(deck: &Path, home: &Path, path: &str) -> Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gpudeck"));
    command
        .args(["--deck", deck.to_str().unwrap(), "model", "inspect", &format!("far:{path}")])
        .args(["--tp", "8", "--gpu", "h100-80", "--output", "json"])
        .env("GPUDECK_HOME", home)
        .stdin(Stdio::null());
    let out = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).unwrap()
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn most(values: &[f64]) -> f64 {
    values.iter().copied().fold(0.0, f64::max)
}
