//! The specs of the demo's services, timed for a story of about a minute.

use std::path::Path;

/// `chat`: four replicas of four GPUs, a canary that is measured, `args` besides.
pub(super) fn chat(model: &Path, about: &str, args: &[&str]) -> String {
    let more = if args.is_empty() { String::new() } else { format!(", {}", quoted(args)) };
    format!(
        r#"# {about}
# SIMULATED: the engine is a process that plays one; there is no model.
model    = {model}
replicas = 4
parallel = {{ tensor = 4 }}
memory   = "70GiB"

[engine.command]
run = [
  "{{gpudeck}}", "sim-engine", "--address", "{{address}}", "--port", "{{port}}", "--model", "chat",
  "--load-time", "2s", "--gpu-memory", "70GiB", "--tokens", "24"{more},
]
metrics = "vllm"

[rollout]
max_unavailable   = 0
max_surge         = 1
steps             = [{{ weight = 25 }}, {{ analyse = "quick" }}, {{ weight = 50 }}, {{ bake = "3s" }}]
auto_rollback     = true
min_healthy_time  = "500ms"
healthy_deadline  = "60s"
progress_deadline = "2m"
drain_deadline    = "20s"
stop_grace        = "5s"

[analysis.quick]
duration          = "6s"
min_requests      = 15
max_error_rate    = 0.05
max_latency_ratio = 3.0
"#,
        model = toml_text(model),
    )
}

/// `code`: two replicas of two GPUs, replaced one by one.
pub(super) fn code(model: &Path) -> String {
    format!(
        r#"# SIMULATED: the engine is a process that plays one; there is no model.
model    = {model}
replicas = 2
parallel = {{ tensor = 2 }}
memory   = "40GiB"

[engine.command]
run = [
  "{{gpudeck}}", "sim-engine", "--address", "{{address}}", "--port", "{{port}}", "--model", "code",
  "--load-time", "1500ms", "--gpu-memory", "40GiB", "--tokens", "12",
]
metrics = "vllm"

[rollout]
max_unavailable   = 0
max_surge         = 1
healthy_deadline  = "60s"
progress_deadline = "2m"
drain_deadline    = "20s"
stop_grace        = "5s"
"#,
        model = toml_text(model),
    )
}

/// A configuration as Hugging Face writes it, of the size that is played.
pub(super) fn model_config(service: &str) -> String {
    let (layers, hidden, heads, kv_heads, intermediate) = match service {
        "chat" => (80, 8192, 64, 8, 28_672),
        _ => (32, 4096, 32, 8, 14_336),
    };
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": intermediate,
        "vocab_size": 128_256,
        "max_position_embeddings": 131_072,
        "torch_dtype": "bfloat16",
    });
    format!("{config:#}\n")
}

fn toml_text(path: &Path) -> String {
    toml::Value::String(path.display().to_string()).to_string()
}

fn quoted(words: &[&str]) -> String {
    words.iter().map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(", ")
}
