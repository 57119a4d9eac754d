//! What is printed of a prediction, and which path is read.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
use super::*;
use crate::model::estimate::tests::{facts, rules};

/// Layers of attention, and layers that keep a state.
const HYBRID: &str = r#"{"model_type":"qwen3_next","torch_dtype":"bfloat16","num_hidden_layers":8,"hidden_size":2048,
    "num_attention_heads":16,"num_key_value_heads":2,"head_dim":256,"linear_num_key_heads":16,
    "linear_num_value_heads":32,"linear_key_head_dim":128,"linear_value_head_dim":128,"linear_conv_kernel_dim":4,
    "intermediate_size":5120,"moe_intermediate_size":512,"shared_expert_intermediate_size":512,"num_experts":16,
    "num_experts_per_tok":10,"vocab_size":151936,"max_position_embeddings":262144}"#;

fn answer(model: &ModelFacts, gpu: u64) -> Value {
    let setup = Setup { gpu: Some(gpu << 30), ..Setup::new(rules("vllm")) };
    as_json("/m", model, &setup, &model::predict(model, &setup), None, &[])
}

#[test]
fn every_figure_has_a_bar() {
    let json = answer(&facts(HYBRID), 80);
    for key in ["weights_bytes", "kv_tokens", "concurrent_requests"] {
        for end in ["", "_low", "_high"] {
            assert!(json[format!("{key}{end}")].is_number(), "{key}{end}");
        }
    }
    for key in [
        "weights_bytes",
        "kv_bytes_per_token",
        "kv_bytes_per_token_beyond_windows",
        "state_bytes_per_request",
        "activation_bytes",
        "graphs_bytes",
        "communication_bytes",
        "kv_available_bytes",
        "kv_needed_bytes",
        "kv_tokens",
    ] {
        let of = |end: &str| json["ranks"][0][format!("{key}{end}")].as_u64();
        let (low, value, high) = (of("_low").unwrap(), of("").unwrap(), of("_high").unwrap());
        assert!(low <= value && value <= high && value > 0, "{key}: {low} {value} {high}");
    }
}

/// Neither 0 nor 2⁶⁴ is a number of tokens or requests.
#[test]
fn what_has_no_number_is_null() {
    let mut unknown = facts(HYBRID);
    unknown.caches.clear();
    let json = answer(&unknown, 80);
    for key in ["kv_tokens", "concurrent_requests"] {
        for end in ["", "_low", "_high"] {
            assert!(json[format!("{key}{end}")].is_null(), "{key}{end}");
        }
    }
    assert!(json["ranks"][0]["kv_tokens"].is_null());
    assert_eq!(json["fits"], false);
    // It may keep nothing: no limit is known.
    let json = answer(&facts(r#"{"model_type":"llama","num_attention_heads":null}"#), 80);
    for key in ["kv_tokens", "concurrent_requests"] {
        assert!(json[key].is_number() && json[format!("{key}_low")].is_number(), "{key}");
        assert!(json[format!("{key}_high")].is_null(), "{key}");
    }
}

/// In a Hugging Face cache every file is a link to one whose name tells nothing.
#[cfg(unix)]
#[test]
fn a_file_that_is_a_link_keeps_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let root = std::fs::canonicalize(dir.path()).unwrap();
    let (blob, snapshot) = (root.join("blobs/77aa"), root.join("snapshots/beef"));
    std::fs::create_dir_all(blob.parent().unwrap()).unwrap();
    std::fs::create_dir_all(&snapshot).unwrap();
    std::fs::write(&blob, b"x").unwrap();
    std::os::unix::fs::symlink("../../blobs/77aa", snapshot.join("model.safetensors")).unwrap();
    std::os::unix::fs::symlink("snapshots/beef", root.join("current")).unwrap();
    let of = |path: &str| followed(&root.join(path));
    assert_eq!(of("current/model.safetensors"), snapshot.join("model.safetensors"));
    assert_eq!(of("current"), snapshot);
    assert_eq!(of("current/../none"), root.join("current/../none"));
}
