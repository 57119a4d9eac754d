//! The readers of models on mutated seeds: what `tests/fuzz` does with a fuzzer, bounded, under plain
//! `cargo test`; and hostile files through the program itself.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::cast_possible_truncation)] // random numbers

#[path = "hostile/models.rs"]
mod hostile;

use std::process::Command;

use gpudeck::engine::memory;
use gpudeck::model::readers::{self, Reader};
use hostile::safetensors;

/// A small generator: the same bytes for the same seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

fn gguf() -> Vec<u8> {
    let text = |out: &mut Vec<u8>, s: &str| {
        out.extend((s.len() as u64).to_le_bytes());
        out.extend(s.as_bytes());
    };
    let mut out = b"GGUF\x03\0\0\0".to_vec();
    out.extend(1u64.to_le_bytes());
    out.extend(4u64.to_le_bytes());
    text(&mut out, "general.architecture");
    out.extend(8u32.to_le_bytes());
    text(&mut out, "llama");
    for (key, value) in [("llama.block_count", 2u32), ("llama.attention.head_count", 4)] {
        text(&mut out, key);
        out.extend(4u32.to_le_bytes());
        out.extend(value.to_le_bytes());
    }
    text(&mut out, "llama.attention.head_count_kv");
    out.extend(9u32.to_le_bytes());
    out.extend(4u32.to_le_bytes());
    out.extend(2u64.to_le_bytes());
    out.extend([2, 0, 0, 0, 1, 0, 0, 0]);
    text(&mut out, "blk.0.attn_q.weight");
    out.extend(2u32.to_le_bytes());
    out.extend(32u64.to_le_bytes());
    out.extend(4u64.to_le_bytes());
    out.extend(2u32.to_le_bytes());
    out.extend(0u64.to_le_bytes());
    out.resize(out.len().next_multiple_of(32) + 18 * 4, 0);
    out
}

const CONFIG: &str = r#"{"model_type":"deepseek_v32","torch_dtype":"bfloat16","num_hidden_layers":4,"hidden_size":64,
  "num_attention_heads":8,"num_key_value_heads":8,"intermediate_size":128,"vocab_size":512,"n_routed_experts":8,
  "moe_intermediate_size":32,"n_shared_experts":1,"first_k_dense_replace":1,"kv_lora_rank":32,"q_lora_rank":48,
  "qk_nope_head_dim":16,"qk_rope_head_dim":8,"v_head_dim":16,"index_n_heads":4,"index_head_dim":16,
  "num_nextn_predict_layers":1,"quantization_config":{"quant_method":"fp8","weight_block_size":[128,128],
  "modules_to_not_convert":["lm_head","re:.*gate$","model.layers.1*"]},"vision_config":{"depth":2,"hidden_size":32,
  "patch_size":14,"image_size":56,"intermediate_size":64},"layer_types":["full_attention","sliding_attention"]}"#;

fn seeds() -> Vec<(Reader, Vec<u8>)> {
    let shard = safetensors(
        r#"{"__metadata__":{"format":"pt"},"model.layers.0.mlp.experts.3.up_proj.weight":{"dtype":"BF16","shape":[2,4],"data_offsets":[0,16]},
            "b":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[16,20]}}"#,
        20,
    );
    let mut seeds = vec![
        (Reader::Gguf, gguf()),
        (Reader::Safetensors, shard.clone()),
        (
            Reader::Index,
            br#"{"weight_map":{"a":"m-1.safetensors","b":"m-2.safetensors"}}"#.to_vec(),
        ),
    ];
    for kind in [
        "deepseek_v32",
        "llama",
        "qwen3_next",
        "nemotron_h",
        "jamba",
        "falcon_h1",
        "gemma3",
        "mllama",
        "gpt_oss",
        "llama4",
        "qwen2_vl",
        "kimi_linear",
        "opt",
        "lfm2",
        "nemotron-nas",
        "minimax",
        "mpt",
        "mimo_v2_flash",
        "glm4v",
        "internvl",
        "kimi_k25",
        "granitemoehybrid",
        "unheard_of",
    ] {
        let config = CONFIG.replacen("deepseek_v32", kind, 1);
        seeds.push((Reader::Config, config.into_bytes()));
    }
    for (number, file) in [(0u8, shard), (1, gguf()), (3, CONFIG.as_bytes().to_vec())] {
        let mut bytes = vec![number];
        bytes.extend(file);
        seeds.push((Reader::Directory, bytes));
    }
    seeds
}

/// Numbers that readers are likely to trip over.
const NUMBERS: [&str; 10] = [
    "0",
    "1",
    "-1",
    "255",
    "65536",
    "4194304",
    "1099511627776",
    "18446744073709551615",
    "1e308",
    "\"7\"",
];

fn mutate(bytes: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..=random.below(4) {
        if bytes.is_empty() {
            return;
        }
        let at = random.below(bytes.len());
        match random.below(6) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = random.next() as u8,
            2 => bytes.truncate(at),
            3 => {
                let end = (at + 8).min(bytes.len());
                let value = [0, u64::MAX, 1 << 60, 1 << 32][random.below(4)].to_le_bytes();
                let length = end - at;
                bytes[at..end].copy_from_slice(&value[..length]);
            }
            4 => {
                let end = (at + random.below(40)).min(bytes.len());
                let piece = bytes[at..end].to_vec();
                bytes.splice(at..at, piece);
            }
            // A number of a JSON text by another.
            _ => {
                let Some(start) = (at..bytes.len()).find(|i| bytes[*i].is_ascii_digit()) else {
                    continue;
                };
                let end = (start..bytes.len()).find(|i| !bytes[*i].is_ascii_digit());
                let number = NUMBERS[random.below(NUMBERS.len())];
                bytes.splice(start..end.unwrap_or(bytes.len()), number.bytes());
            }
        }
    }
}

#[test]
fn no_bytes_make_a_reader_fail() {
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    let mut read = 0;
    for (reader, seed) in seeds() {
        readers::read(reader, &seed, memory::VLLM).unwrap();
        for round in 0..400 {
            let mut bytes = seed.clone();
            mutate(&mut bytes, &mut random);
            let rules = [memory::VLLM, memory::SGLANG, memory::LLAMA_CPP][round % 3];
            if let Err(why) = readers::read(reader, &bytes, rules) {
                panic!("{reader:?}: {why}\n{}", String::from_utf8_lossy(&bytes));
            }
            read += 1;
        }
    }
    assert!(read > 5_000);
}

fn inspect(path: &std::path::Path, more: &[&str]) -> (bool, String, String) {
    // 64 MiB and what the program itself maps; a reader that believes a length dies here.
    let limit = "ulimit -v 2000000; exec \"$0\" \"$@\"";
    let output = Command::new("sh")
        .args(["-c", limit, env!("CARGO_BIN_EXE_gpudeck"), "model", "inspect"])
        .arg(path)
        .args(more)
        .output()
        .unwrap();
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    (output.status.success(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn hostile_models_get_one_clear_error() {
    let dir = tempfile::tempdir().unwrap();
    for (name, expected) in hostile::write(dir.path()) {
        let (good, out, error) = inspect(&dir.path().join(name), &[]);
        assert!(!good, "{name}: {out}");
        assert!(error.contains(expected), "{name}: {error}");
        assert!(error.lines().count() <= 2, "one error and its hint: {error}");
        assert!(out.is_empty(), "{name}: {out}");
    }
}

#[test]
fn a_config_alone_is_enough_and_answers_in_json() {
    let dir = tempfile::tempdir().unwrap();
    let config = r#"{"architectures":["LlamaForCausalLM"],"model_type":"llama","num_hidden_layers":"32","hidden_size":4096.0,
        "num_attention_heads":32,"num_key_value_heads":8,"intermediate_size":14336,"vocab_size":128256,
        "max_position_embeddings":131072,"torch_dtype":"bfloat16","tie_word_embeddings":"false"}"#;
    std::fs::write(dir.path().join("config.json"), config).unwrap();
    let more = [
        "--tp",
        "2",
        "--kv-dtype",
        "fp8",
        "--block-size",
        "32",
        "--engine",
        "vllm",
        "--kv-available",
        "8.5GiB",
        "--context",
        "32k",
        "--output",
        "json",
    ];
    let (good, out, error) = inspect(dir.path(), &more);
    assert!(good, "{error}");
    let answer: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(answer["weights_bytes"], 16_060_522_496u64);
    assert_eq!(answer["weights_bytes_low"], answer["weights_bytes_high"]);
    assert_eq!(answer["ranks"].as_array().unwrap().len(), 2);
    assert_eq!(answer["ranks"][1]["kv_bytes_per_token"], 32 * 8 * 128);
    let tokens = (17u64 << 29) / (32 * 8 * 128) / 32 * 32;
    assert_eq!(answer["kv_tokens"], tokens);
    assert_eq!(answer["context"], 32_768);
    assert_eq!(answer["fits"], true);
    assert!(
        answer["ranks"][0]["weights_bytes_low"].as_u64()
            < answer["ranks"][0]["weights_bytes"].as_u64()
    );
    let (good, _, error) = inspect(dir.path(), &["--engine", "nothing"]);
    assert!(!good && error.contains("vllm, sglang, llamacpp"), "{error}");
    for gpu in ["h100-80", "NVIDIA H100 80GB HBM3"] {
        let (good, out, _) = inspect(dir.path(), &["--gpu", gpu]);
        assert!(good && out.contains("it fits"), "{out}");
    }
}

#[test]
fn what_an_engine_does_not_take_does_not_fit() {
    let dir = tempfile::tempdir().unwrap();
    let config = r#"{"architectures":["LlamaForCausalLM"],"model_type":"llama","num_hidden_layers":4,"hidden_size":4096,
        "num_attention_heads":32,"num_key_value_heads":8,"intermediate_size":14336,"vocab_size":128256,
        "max_position_embeddings":8192,"torch_dtype":"bfloat16","tie_word_embeddings":false}"#;
    std::fs::write(dir.path().join("config.json"), config).unwrap();
    for (asked, words) in [
        ("--kv-dtype q8_0", "a cache of type q8_0"),
        ("--block-size 17", "a block of 17 tokens"),
        ("--engine sglang --kv-dtype q4_0", "a cache of type q4_0"),
        ("--engine llamacpp --kv-dtype fp8", "q5_1"),
        ("--max-num-seqs 64 --max-num-batched-tokens 32", "too short for 64 requests"),
    ] {
        let answer = ask(dir.path(), &format!("{asked} --gpu h100-80"));
        assert!(answer["refused"].as_str().is_some_and(|r| r.contains(words)), "{answer}");
        assert_eq!(answer["fits"], false, "{asked}");
    }
    for good in ["--kv-dtype fp8_e5m2 --block-size 128", "--engine sglang --block-size 17"] {
        let answer = ask(dir.path(), &format!("{good} --gpu h100-80"));
        assert_eq!(answer["refused"], serde_json::Value::Null, "{good}");
    }
    for zero in ["--max-num-seqs", "--max-num-batched-tokens", "--block-size", "--context"] {
        let (good, _, error) = inspect(dir.path(), &[zero, "0"]);
        assert!(!good && error.contains(zero), "{error}");
    }
}

/// The answer in JSON.
fn ask(path: &std::path::Path, more: &str) -> serde_json::Value {
    let mut words: Vec<&str> = more.split_whitespace().collect();
    words.extend(["--output", "json"]);
    let (good, out, error) = inspect(path, &words);
    assert!(good, "{more}: {error}");
    serde_json::from_str(&out).unwrap()
}

#[test]
fn the_flags_of_an_engine_are_understood() {
    let dir = tempfile::tempdir().unwrap();
    let config = r#"{"model_type":"qwen3_moe","num_hidden_layers":8,"hidden_size":1024,"num_attention_heads":16,
        "num_key_value_heads":4,"head_dim":64,"intermediate_size":2048,"vocab_size":1024,"num_experts":16,
        "moe_intermediate_size":512,"max_position_embeddings":4096,"torch_dtype":"bfloat16",
        "tie_word_embeddings":false}"#;
    std::fs::write(dir.path().join("config.json"), config).unwrap();
    let ask = |more: &str| ask(dir.path(), more);
    let weights =
        |answer: &serde_json::Value| answer["ranks"][0]["weights_bytes"].as_u64().unwrap();
    let one = ask("");
    assert_eq!((one["gpus"].as_u64(), one["fits"].as_bool()), (Some(1), None));
    // What is stored, for people and programs.
    assert_eq!(one["bytes_by_type"]["BF16"], one["weights_bytes"]);
    assert_eq!((one["tied"].as_bool(), one["head_size"].as_u64()), (Some(false), Some(64)));
    assert_eq!(one["tensors"], 8 * (9 + 3 * 16) + 3);
    assert_eq!(one["windows"], serde_json::json!([]));
    let (_, text, _) = inspect(dir.path(), &[]);
    assert!(text.contains("459 tensors: BF16 "), "{text}");

    let stages = ask("--pp 2");
    let ranks = stages["ranks"].as_array().unwrap();
    assert_eq!((ranks.len(), &ranks[1]["layers"]), (2, &serde_json::json!([4, 8])));
    assert_eq!(ranks[0]["kv_bytes_per_token"], 4 * 2 * 4 * 64 * 2);
    // Three experts on the fullest of seven ranks, of sixteen.
    let expert = 3 * 1024 * 512 * 2 * 8;
    assert_eq!(weights(&one) - weights(&ask("--ep 7")), 13 * expert);
    // Copies of attention beside each other share the experts.
    let copies = ask("--dp 4 --ep 4");
    assert_eq!((copies["gpus"].as_u64(), weights(&one) - weights(&copies)), (Some(4), 12 * expert));
    // SGLang's are among the ranks of tensor parallelism.
    let inside = ask("--engine sglang --tp 4 --dp 4");
    assert_eq!(inside["gpus"], 4);
    assert_eq!(inside["ranks"][0]["kv_bytes_per_token"], one["ranks"][0]["kv_bytes_per_token"]);
    assert!(weights(&inside) < weights(&copies) + (200 << 20));
    assert!(inside["notes"].to_string().contains("DP attention"), "{inside}");

    let available = |more: &str| {
        ask(&format!("--gpu h100-80 {more}"))["ranks"][0]["kv_available_bytes"].as_u64().unwrap()
    };
    assert_eq!(
        available("--utilisation 0.9") - available("--utilisation 0.8"),
        (81_090 << 20) / 10
    );
    let graphs = |more: &str| ask(more)["ranks"][0]["graphs_bytes"].as_u64().unwrap();
    assert_eq!(graphs("--enforce-eager"), 0);
    assert!(graphs("--max-num-seqs 16") < graphs("--max-num-seqs 512"));
    assert!(available("--enforce-eager") > available(""));

    // What vLLM refuses does not fit, and why is said.
    for (more, why) in [
        ("--tp 3", "16 attention heads (4 for keys and values) cannot be divided"),
        ("--context 4097", "longer than the model's 4096"),
        ("--pp 9", "8 layers cannot be divided over 9 stages"),
    ] {
        let answer = ask(&format!("--gpu h100-80 {more}"));
        assert_eq!(answer["fits"], false, "{more}");
        assert!(answer["refused"].as_str().unwrap().contains(why), "{more}: {answer}");
        let mut words = vec!["--gpu", "h100-80"];
        words.extend(more.split(' '));
        let (_, text, _) = inspect(dir.path(), &words);
        assert!(text.contains("vllm would not start: ") && !text.contains("it fits"), "{text}");
    }
    let good = ask("--gpu h100-80 --tp 8 --pp 8 --context 4096");
    assert_eq!((good["fits"].as_bool(), &good["refused"]), (Some(true), &serde_json::Value::Null));
    for share in ["1.5", "0", "nan"] {
        let (good, _, error) = inspect(dir.path(), &["--utilisation", share]);
        assert!(!good && error.contains("--utilisation 0.9"), "{share}: {error}");
    }
    assert!(!inspect(dir.path(), &["--pp", "0"]).0);

    // A size is one with its unit.
    for size in ["8.11", "80000000000", "8KiB", "GiB"] {
        let (good, _, error) = inspect(dir.path(), &["--kv-available", size]);
        assert!(!good && error.contains("GiB`"), "{size}: {error}");
    }
    assert!(inspect(dir.path(), &["--kv-available", "0"]).0);
    let (good, _, error) = inspect(dir.path(), &["--gpu", "80"]);
    assert!(!good && error.contains("80GiB"), "{error}");
    assert_eq!(ask("--gpu 80GiB")["fits"], true);

    // Copies and experts are told in words, too.
    let (_, text, _) = inspect(dir.path(), &["--dp", "4", "--ep", "4"]);
    assert!(text.contains("data 4, expert 4: 4 GPUs"), "{text}");
    let (_, text, _) = inspect(dir.path(), &["--tp", "2"]);
    assert!(!text.contains("data 1"), "{text}");
}

#[test]
fn experts_of_a_dense_model_are_refused_as_vllm_refuses_them() {
    let dir = tempfile::tempdir().unwrap();
    let config = r#"{"model_type":"llama","num_hidden_layers":4,"hidden_size":1024,"num_attention_heads":16,
        "num_key_value_heads":8,"intermediate_size":2048,"vocab_size":1024,"max_position_embeddings":4096}"#;
    std::fs::write(dir.path().join("config.json"), config).unwrap();
    let answer = ask(dir.path(), "--tp 4 --ep 8 --gpu h100-80");
    assert_eq!((answer["data"].as_u64(), answer["gpus"].as_u64()), (Some(1), Some(4)));
    assert_eq!(answer["fits"], false);
    assert!(answer["refused"].as_str().unwrap().contains("no experts"), "{answer}");
}

/// Models whose few bytes would make much work.
fn costly(dir: &std::path::Path, case: &str) -> std::path::PathBuf {
    let dir = dir.join(case);
    std::fs::create_dir_all(&dir).unwrap();
    let shape = r#""model_type":"llama","hidden_size":4096,"num_hidden_layers":2000,"num_attention_heads":32,
        "num_key_value_heads":8,"intermediate_size":14336,"vocab_size":128256"#;
    let ignoring = |make: &dyn Fn(usize) -> String, count: usize| {
        let list: Vec<String> = (0..count).map(|i| format!("\"{}\"", make(i))).collect();
        let list = list.join(",");
        let text = format!(
            r#"{{{shape},"quantization_config":{{"quant_method":"fp8","weight_block_size":[128,128],"ignore":[{list}]}}}}"#
        );
        std::fs::write(dir.join("config.json"), text).unwrap();
    };
    match case {
        "ordinary" => ignoring(&|i| format!("model.layers.{i}.self_attn.q_proj"), 2),
        "stars" => ignoring(&|i| format!("*l*a*y*e*r*s*.*q*x{i}"), 2_000),
        "expressions" => ignoring(&|i| format!("re:(?:.{{0,900}}.{{0,900}}.{{0,100}}){i}"), 200),
        "patterns" => ignoring(&|i| format!("re:.*layers\\\\.{i}\\\\.m.*"), 20_000),
        "shapes" => {
            let ones = vec!["1"; 7_000_000].join(",");
            let entry =
                format!(r#"{{"a":{{"dtype":"U8","shape":[{ones}],"data_offsets":[0,1]}}}}"#);
            std::fs::write(dir.join("model.safetensors"), safetensors(&entry, 1)).unwrap();
        }
        "lists" => {
            let list = (0..120_000).map(|i| (1_000_000 + i).to_string()).collect::<Vec<_>>();
            let text = format!(
                r#"{{{},"num_experts":8,"moe_intermediate_size":64,"mlp_only_layers":[{}]}}"#,
                shape.replace("llama", "qwen3_moe"),
                list.join(",")
            );
            std::fs::write(dir.join("config.json"), text).unwrap();
        }
        "headers" => {
            for file in 0..60 {
                let entry = |i| {
                    format!(
                        r#""l{file}_{i}":{{"dtype":"U8","shape":[1],"data_offsets":[{i},{}]}}"#,
                        i + 1
                    )
                };
                let json = (0..17_000).map(entry).collect::<Vec<_>>().join(",");
                let name = format!("model-{:05}-of-00060.safetensors", file + 1);
                let bytes = safetensors(&format!("{{{json}}}"), 17_000);
                std::fs::write(dir.join(name), bytes).unwrap();
            }
        }
        _ => {
            let count = 200_000u64;
            let mut out = b"GGUF\x03\0\0\0".to_vec();
            out.extend(count.to_le_bytes());
            out.extend(0u64.to_le_bytes());
            for i in 0..count {
                out.extend(106u64.to_le_bytes());
                out.extend(format!("{i:06}{}", "x".repeat(100)).as_bytes());
                out.extend(1u32.to_le_bytes());
                out.extend(32u64.to_le_bytes());
                out.extend(0u32.to_le_bytes());
                out.extend((i * 128).to_le_bytes());
            }
            let length = out.len().next_multiple_of(32) as u64 + count * 128;
            let file = std::fs::File::create(dir.join("m.gguf")).unwrap();
            std::io::Write::write_all(&mut &file, &out).unwrap();
            file.set_len(length).unwrap();
        }
    }
    dir
}

/// The largest this process has been, in KiB.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap();
    line.trim_end_matches("kB").trim().parse().unwrap()
}

/// What one of those costs, in a process of its own: the test below starts it. By itself: an ordinary one, which is read.
#[test]
fn what_one_model_costs() {
    let dir = tempfile::tempdir().unwrap();
    let given = std::env::var_os("GPUDECK_COSTLY").map(std::path::PathBuf::from);
    let path = given.clone().unwrap_or_else(|| costly(dir.path(), "ordinary"));
    let before = peak();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let files = gpudeck::weights::LocalFiles;
    let began = std::time::Instant::now();
    let facts = runtime.block_on(gpudeck::weights::describe(&files, path.to_str().unwrap()));
    assert!(given.is_some() || facts.is_ok(), "{facts:?}");
    if let Ok(facts) = facts {
        let _ = gpudeck::model::predict(&facts, &gpudeck::model::Setup::new(memory::VLLM));
    }
    println!("cost: {} {}", peak() - before, began.elapsed().as_millis());
}

#[test]
fn costly_models_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    for case in ["stars", "expressions", "patterns", "lists", "headers", "shapes", "tensors"] {
        let path = costly(dir.path(), case);
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "what_one_model_costs", "--nocapture"])
            .env("GPUDECK_COSTLY", &path)
            .output()
            .unwrap();
        let out = String::from_utf8_lossy(&output.stdout);
        let cost =
            out.lines().find_map(|l| l.split_once("cost: ")).unwrap_or_else(|| panic!("{out}")).1;
        let (kib, ms) = cost.split_once(' ').unwrap();
        assert!(kib.parse::<u64>().unwrap() < 64 << 10, "{case}: {kib} KiB");
        // Without optimisation on a busy machine it takes some twenty times as long.
        let most = if cfg!(debug_assertions) { 20_000 } else { 1_000 };
        assert!(ms.parse::<u64>().unwrap() < most, "{case}: {ms} ms");
    }
}
