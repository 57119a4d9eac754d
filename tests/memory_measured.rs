//! What a real llama.cpp logs of its memory is read back, kept in the deck, shown beside the prediction,
//! and corrects the next one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod common;

use std::time::{Duration, Instant};

use common::sim_fleet::place_agents;
use gpudeck::api::{Bytes, Client, Door, Intent, Outcome, ServiceView};
use gpudeck::controller::{self, Options, Paths, start_in_process};
use gpudeck::demo::World;
use gpudeck::revision::DeckRepo;

const DEADLINE: Duration = Duration::from_mins(2);

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

/// The real engine, where this run has it or may build it.
fn llama_server() -> Option<std::path::PathBuf> {
    let cache = std::env::var_os("GPUDECK_CACHE").map(std::path::PathBuf::from).or_else(|| {
        Some(std::path::PathBuf::from(std::env::var_os("HOME")?).join(".cache/gpudeck-tests"))
    })?;
    let built = std::fs::read_dir(cache)
        .ok()
        .is_some_and(|entries| entries.flatten().any(|e| e.path().join("llama-server").is_file()));
    if !built && !common::lab_is_wanted() {
        println!("skipped: needs a built llama-server (tests/engines/llama-cpp)");
        return None;
    }
    Some(common::lab::llama_server())
}

async fn controller(
    world: &World,
    deck: &gpudeck::spec::DeckSpec,
) -> (controller::Running, Client) {
    let options = Options {
        deck_dir: Some(world.deck_dir()),
        deck: deck.clone(),
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

async fn needed(client: &Client) -> (Bytes, Vec<String>) {
    let plan = client.plan(&"chat".parse().unwrap()).await.unwrap();
    (plan.replicas[0].ranks[0].memory_per_device, plan.model)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_engine_logged_corrects_the_next_prediction_and_stays_in_the_deck() {
    let Some(program) = llama_server() else { return };
    let world = World::start(None).await.unwrap();
    place_agents(&world);
    let mut deck = world.deck().clone();
    deck.gateways.clear();
    std::fs::write(world.deck_dir().join("deck.toml"), toml::to_string(&deck).unwrap()).unwrap();
    std::fs::remove_file(world.spec_path("code")).unwrap();
    let model = world.root().join("tiny.gguf");
    common::lab::write_gguf(&model, 7, 100);
    let spec = |context: u32| {
        format!(
            "model = \"{}\"\nengine = \"llamacpp\"\nprogram = \"{}\"\ndevice = \"cpu\"\n\
             context = {context}\nreplicas = 1\n",
            model.display(),
            program.display()
        )
    };
    std::fs::write(world.spec_path("chat"), spec(4096)).unwrap();
    controller::init_repository(&world.deck_dir()).unwrap();
    let (running, client) = controller(&world, &deck).await;
    let (before, lines) = needed(&client).await;
    assert!(!lines.iter().any(|l| l.contains("measured")), "{lines:?}");

    let intent = Intent::Apply {
        service: "chat".parse().unwrap(),
        reason: None,
        accept_outage: false,
        concurrency: None,
        agreed: None,
    };
    client.send(intent).await.unwrap();
    let outcome = |v: &ServiceView| v.rollout.as_ref().and_then(|r| r.outcome.clone());
    assert_eq!(wait(&client, "r1", outcome).await, Outcome::Completed);
    let seen = wait(&client, "what it logged", |v| Some(v.memory.first()?.seen.clone())).await;
    assert_eq!((seen.place.engine.as_str(), seen.place.device.as_str()), ("llamacpp", "cpu"));
    assert!(!seen.refused);
    // 0.69 MiB of weights and two layers of 4096 cells: foreseen to what the log's digits tell.
    for (what, pair) in [("weights", seen.weights), ("cache", seen.cache)] {
        let pair = pair.unwrap_or_else(|| panic!("no {what} in the log: {seen:?}"));
        assert!(pair.measured.abs_diff(pair.foreseen) <= 8 << 10, "{what}: {pair:?}");
    }
    let step = seen.activation.expect("its compute buffer");
    assert!(step.measured > 1 << 20, "{step:?}");

    // The next plan takes it into account, and says so.
    std::fs::write(world.spec_path("chat"), spec(2048)).unwrap();
    let half = |n: Bytes| n.0 - (1 << 20); // 2048 cells take 1 MiB less
    let (after, lines) = needed(&client).await;
    assert!(lines.iter().any(|l| l.starts_with("measured by chat r1: llamacpp")), "{lines:?}");
    let (learnt, measured) = (
        i128::from(after.0) - i128::from(half(before)),
        i128::from(step.measured) - i128::from(step.foreseen),
    );
    assert!((learnt - measured).abs() < 64 << 10, "{learnt} learnt, {measured} measured");

    // It lies in the deck's Git repository, and the next controller finds it there.
    running.stop().await;
    let repo = DeckRepo::open(&world.deck_dir()).unwrap();
    let history = repo.history(&"chat".parse().unwrap(), 5).unwrap();
    assert_eq!(history[0].memory, std::slice::from_ref(&seen));
    assert_eq!(history[0].outcome, Some(Outcome::Completed));
    let (running, client) = controller(&world, &deck).await;
    let again = wait(&client, "the same", |v| Some(v.memory.first()?.seen.clone())).await;
    assert_eq!(again, seen);
    assert_eq!(needed(&client).await.0, after);
    client.send(Intent::Stop { service: "chat".parse().unwrap(), reason: None }).await.unwrap();
    wait(&client, "the end", |v| v.replicas.is_empty().then_some(())).await;
    running.stop().await;
}

/// A directory with a small llama, `inner` wide in its feed-forward layers, whose data is a hole.
fn write_llama(dir: &std::path::Path, inner: u64) {
    std::fs::create_dir_all(dir).unwrap();
    let (hidden, kv, vocab, layers) = (2_048u64, 512u64, 32_000u64, 4);
    let mut shapes = vec![
        ("model.embed_tokens.weight".to_owned(), vec![vocab, hidden]),
        ("model.norm.weight".to_owned(), vec![hidden]),
        ("lm_head.weight".to_owned(), vec![vocab, hidden]),
    ];
    for layer in 0..layers {
        for (name, shape) in [
            ("self_attn.q_proj", vec![hidden, hidden]),
            ("self_attn.k_proj", vec![kv, hidden]),
            ("self_attn.v_proj", vec![kv, hidden]),
            ("self_attn.o_proj", vec![hidden, hidden]),
            ("mlp.gate_proj", vec![inner, hidden]),
            ("mlp.up_proj", vec![inner, hidden]),
            ("mlp.down_proj", vec![hidden, inner]),
            ("input_layernorm", vec![hidden]),
            ("post_attention_layernorm", vec![hidden]),
        ] {
            shapes.push((format!("model.layers.{layer}.{name}.weight"), shape));
        }
    }
    let (mut header, mut at) = (serde_json::Map::new(), 0);
    for (name, shape) in shapes {
        let end = at + 2 * shape.iter().product::<u64>();
        let about = serde_json::json!({"dtype": "BF16", "shape": shape, "data_offsets": [at, end]});
        header.insert(name, about);
        at = end;
    }
    let text = serde_json::to_vec(&header).unwrap();
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text);
    let file = dir.join("model.safetensors");
    std::fs::write(&file, &bytes).unwrap();
    let whole = std::fs::File::options().write(true).open(file).unwrap();
    whole.set_len(bytes.len() as u64 + at).unwrap();
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16",
        "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers,
        "num_attention_heads": 16, "num_key_value_heads": 4, "vocab_size": vocab,
        "max_position_embeddings": 131_072, "tie_word_embeddings": false,
    });
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
}

/// vLLM's own words, printed by a script in front of the simulated engine on simulated GPUs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_on_gpus_is_read_when_it_runs_and_when_it_refuses() {
    let world = World::start(None).await.unwrap();
    place_agents(&world);
    let mut deck = world.deck().clone();
    deck.gateways.clear();
    std::fs::write(world.deck_dir().join("deck.toml"), toml::to_string(&deck).unwrap()).unwrap();
    std::fs::remove_file(world.spec_path("code")).unwrap();
    let model = world.root().join("llama");
    write_llama(&model, 5_632);
    let said = |context: &str, words: &str| {
        std::fs::write(world.root().join(format!("log-{context}")), words).unwrap();
    };
    said(
        "4096",
        "INFO gpu_model_runner.py:4879] Model loading took 0.6100 GiB memory and 3.297843 seconds\n\
         INFO gpu_worker.py:440] Available KV cache memory: 66.00 GiB\n\
         INFO kv_cache_utils.py:1708] GPU KV cache size: 8,650,752 tokens\n",
    );
    said(
        "131072",
        "INFO gpu_worker.py:440] Available KV cache memory: 0.50 GiB\n\
         ValueError: To serve at least one request with the model's max seq len (131072), (1.0 GiB KV cache is \
         needed, which is larger than the available KV cache memory (0.50 GiB). Based on\n",
    );
    let script = world.root().join("engine.sh");
    let root = world.root().display().to_string();
    std::fs::write(
        &script,
        format!(
            "cat '{root}/log-'\"$4\"\n[ \"$4\" = 4096 ] || exit 1\n\
             exec \"$1\" sim-engine --address \"$3\" --port \"$2\" --load-time 100ms --gpu-memory 20GiB\n"
        ),
    )
    .unwrap();
    let spec = |context: u32| {
        format!(
            "model = \"{}\"\ncontext = {context}\nreplicas = 1\n\n[engine.command]\n\
             run = [\"/bin/sh\", \"{}\", \"{{gpudeck}}\", \"{{port}}\", \"{{address}}\", \"{{context}}\"]\n\
             metrics = \"vllm\"\n\n[rollout]\nmax_unavailable = 0\nmax_surge = 1\n",
            model.display(),
            script.display()
        )
    };
    std::fs::write(world.spec_path("chat"), spec(4096)).unwrap();
    controller::init_repository(&world.deck_dir()).unwrap();
    let (running, client) = controller(&world, &deck).await;
    let (before, _) = needed(&client).await;
    let apply = || Intent::Apply {
        service: "chat".parse().unwrap(),
        reason: None,
        accept_outage: false,
        concurrency: None,
        agreed: None,
    };
    client.send(apply()).await.unwrap();
    let seen = wait(&client, "what it logged", |v| Some(v.memory.first()?.seen.clone())).await;
    assert_eq!((seen.place.engine.as_str(), seen.refused), ("vllm", false));
    assert_eq!(seen.place.device, "SIMULATED H100 80GB");
    assert!(seen.place.device_memory > Some(Bytes::gib(78)));
    let near = |pair: Option<gpudeck::model::observation::Pair>| {
        let pair = pair.unwrap_or_else(|| panic!("{seen:?}"));
        pair.measured.abs_diff(pair.foreseen) as f64 / pair.measured as f64
    };
    assert!(near(seen.weights) < 0.02 && near(seen.tokens) < 0.001, "{seen:?}");
    // All that is neither weights nor cache was a guess; now it is known.
    let besides = seen.besides.unwrap();
    let (after, lines) = needed(&client).await;
    assert!(lines.iter().any(|l| l.contains("vllm on 1×SIMULATED H100 80GB")), "{lines:?}");
    assert!(besides.measured.abs_diff(besides.foreseen) > 512 << 20, "{besides:?}");
    // It takes its share of the GPU all the same.
    assert_eq!(after, before);
    assert!(before > Bytes::gib(72), "{before}");

    let outcome = |v: &ServiceView| {
        v.rollout.as_ref().filter(|r| r.to.0 == 1).and_then(|r| r.outcome.clone())
    };
    assert_eq!(wait(&client, "r1", outcome).await, Outcome::Completed);
    std::fs::write(world.spec_path("chat"), spec(131_072)).unwrap();
    client.send(apply()).await.unwrap();
    let no = wait(&client, "its refusal", |v| {
        v.memory.first().map(|m| m.seen.clone()).filter(|seen| seen.refused)
    })
    .await;
    assert_eq!(no.context, 131_072);
    // The same again would only fail again; what a person writes about the memory counts for more.
    let refused = client.plan(&"chat".parse().unwrap()).await.unwrap_err().to_string();
    assert!(refused.contains("the engine refused to start with as much"), "{refused}");
    let known = format!("memory = \"20GiB\"\n{}", spec(131_072));
    std::fs::write(world.spec_path("chat"), known).unwrap();
    let (_, lines) = needed(&client).await;
    assert!(lines.iter().any(|l| l.contains("refused to start for want of memory")), "{lines:?}");
    running.stop().await;
}

/// What `model inspect` refuses is not chosen for a service either, and its plan says why.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_leaves_out_what_the_engine_cannot_cut() {
    let world = World::start(None).await.unwrap();
    place_agents(&world);
    let mut deck = world.deck().clone();
    deck.gateways.clear();
    std::fs::write(world.deck_dir().join("deck.toml"), toml::to_string(&deck).unwrap()).unwrap();
    std::fs::remove_file(world.spec_path("code")).unwrap();
    let model = world.root().join("llama");
    // Heads divide over four; these widths do not.
    write_llama(&model, 5_634);
    let spec = |more: &str| {
        let text = format!(
            "model = \"{}\"\ncontext = 4096\nreplicas = 1\n{more}\n[engine.command]\n\
             run = [\"{{gpudeck}}\", \"sim-engine\", \"--port\", \"{{port}}\", \"--tp\", \"{{tensor}}\"]\n\
             metrics = \"vllm\"\n",
            model.display(),
        );
        std::fs::write(world.spec_path("chat"), text).unwrap();
    };
    spec("");
    controller::init_repository(&world.deck_dir()).unwrap();
    let (running, client) = controller(&world, &deck).await;
    let plan = client.plan(&"chat".parse().unwrap()).await.unwrap();
    let left_out: Vec<&String> = plan.reasons.iter().filter(|r| r.starts_with("not on ")).collect();
    assert_eq!(left_out.len(), 2, "{:?}", plan.reasons);
    for (line, gpus) in left_out.iter().zip([4, 8]) {
        let why = format!("not on {gpus} GPUs each: 5634 rows of gate_proj cannot be divided");
        assert!(line.starts_with(&why), "{line}");
    }
    // Asked for, it is refused with the same reason and a way out.
    spec("parallel = { tensor = 4 }\n");
    let refused = client.plan(&"chat".parse().unwrap()).await.unwrap_err();
    assert!(refused.to_string().contains("5634 rows of gate_proj"), "{refused}");
    spec("parallel = { tensor = 2 }\n");
    let plan = client.plan(&"chat".parse().unwrap()).await.unwrap();
    assert!(!plan.reasons.iter().any(|r| r.starts_with("not on ")), "{:?}", plan.reasons);
    running.stop().await;
}
