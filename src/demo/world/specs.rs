//! The specs of the demo's services, timed for a story of about a minute.

/// `chat`: four replicas of four GPUs, a canary that is measured, `args` besides.
pub(super) fn chat(about: &str, args: &[&str]) -> String {
    let more = if args.is_empty() { String::new() } else { format!(", {}", quoted(args)) };
    format!(
        r#"# {about}
# SIMULATED: the engine is a process that plays one; there is no model.
model    = "simulated/llama-3.3-70b"
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
engine            = {{ min_samples = 15 }}
"#
    )
}

/// `code`: two replicas of two GPUs, replaced one by one.
pub(super) fn code() -> String {
    r#"# SIMULATED: the engine is a process that plays one; there is no model.
model    = "simulated/coder-8b"
replicas = 2
parallel = { tensor = 2 }
memory   = "40GiB"

[engine.command]
run = [
  "{gpudeck}", "sim-engine", "--address", "{address}", "--port", "{port}", "--model", "code",
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
"#
    .to_owned()
}

fn quoted(words: &[&str]) -> String {
    words.iter().map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(", ")
}
