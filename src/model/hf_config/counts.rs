//! Numbers that decide what a model holds: where one is there, it has to be a count.

use serde_json::{Map, Value};

use super::super::HeaderError;
use super::super::arch;
use super::super::arch::conf::whole;
use super::places::{CONTEXT_KEYS, MAX_CONTEXT};
use crate::base::text;

/// Numbers that decide what a model holds.
struct Count {
    keys: &'static [&'static str],
    /// Less says nothing.
    least: u64,
    /// More is absurd.
    most: u64,
    /// Some families have a list of them, one for each layer.
    listed: bool,
    /// The word `auto` stands for what follows from other numbers.
    auto: bool,
}

impl Count {
    const fn of(keys: &'static [&'static str], most: u64) -> Self {
        Self { keys, least: 0, most, listed: false, auto: false }
    }

    const fn listed(self) -> Self {
        Self { listed: true, ..self }
    }

    const fn auto(self) -> Self {
        Self { auto: true, ..self }
    }

    const fn at_least(self, least: u64) -> Self {
        Self { least, ..self }
    }
}

/// Where one of these is there and is no number, the family's default must not stand in for it.
const COUNTS: [Count; 12] = [
    Count::of(
        &[
            "num_hidden_layers",
            "n_layer",
            "n_layers",
            "num_layers",
            "num_transformer_layers",
            "encoder_layers",
            "decoder_layers",
            "num_encoder_layers",
            "num_decoder_layers",
        ],
        arch::MAX_LAYERS,
    ),
    Count::of(
        &[
            "hidden_size",
            "n_embd",
            "n_embed",
            "d_model",
            "model_dim",
            "embedding_size",
            "word_embed_proj_dim",
        ],
        1 << 20,
    ),
    Count::of(&["vocab_size", "padded_vocab_size"], 1 << 22),
    Count::of(
        &[
            "head_dim",
            "attention_head_dim",
            "kv_channels",
            "d_kv",
            "swa_head_dim",
            "swa_v_head_dim",
            "global_head_dim",
            "v_head_dim",
            "qk_nope_head_dim",
            "qk_rope_head_dim",
            "kv_lora_rank",
            "q_lora_rank",
            "share_q_dim",
            "moe_latent_size",
        ],
        1 << 16,
    ),
    Count::of(
        &[
            "num_attention_heads",
            "attention_heads",
            "decoder_attention_heads",
            "encoder_attention_heads",
            "num_query_heads",
            "num_key_value_heads",
            "num_kv_heads",
            "num_heads",
            "n_head",
            "n_heads",
            "n_head_kv",
            "n_kv_heads",
            "multi_query_group_num",
            "num_attention_groups",
            "num_sliding_attention_heads",
            "swa_num_key_value_heads",
            "num_global_key_value_heads",
        ],
        1 << 14,
    )
    .listed(),
    Count::of(
        &[
            "intermediate_size",
            "moe_intermediate_size",
            "moe_shared_expert_intermediate_size",
            "shared_expert_intermediate_size",
            "shared_intermediate_size",
            "intermediate_size_mlp",
            "expert_ffn_hidden_size",
            "ffn_hidden_size",
            "share_expert_dim",
            "ff_intermediate_size",
            "n_inner",
            "ffn_dim",
            "mlp_hidden_size",
            "decoder_ffn_dim",
            "encoder_ffn_dim",
            "d_ff",
        ],
        1 << 22,
    )
    .listed(),
    Count::of(
        &[
            "num_experts",
            "num_local_experts",
            "n_routed_experts",
            "moe_num_experts",
            "n_shared_experts",
            "num_shared_experts",
            "num_shared_expert",
            "moe_num_shared_experts",
            "num_experts_per_tok",
            "num_experts_per_token",
            "experts_per_token",
            "moe_topk",
            "moe_top_k",
            "moe_k",
            "num_dense_layers",
            "zero_expert_num",
            "first_k_dense_replace",
            "num_nextn_predict_layers",
        ],
        1 << 16,
    )
    .listed(),
    Count::of(&CONTEXT_KEYS, MAX_CONTEXT).at_least(1),
    Count::of(&["sliding_window", "attention_chunk_size"], MAX_CONTEXT).listed(),
    Count::of(
        &[
            "linear_num_key_heads",
            "linear_num_value_heads",
            "linear_key_head_dim",
            "linear_value_head_dim",
            "linear_conv_kernel_dim",
            "index_n_heads",
            "index_head_dim",
            "index_topk",
        ],
        1 << 16,
    ),
    Count::of(
        &[
            "mamba_d_state",
            "mamba_d_conv",
            "mamba_d_head",
            "mamba_d_ssm",
            "mamba_expand",
            "mamba_head_dim",
            "mamba_n_groups",
            "mamba_n_heads",
            "mamba_num_heads",
            "ssm_state_size",
            "state_size",
            "n_mamba_heads",
            "mamba_ngroups",
            "mamba_headdim",
            "mamba_dt_rank",
            "time_step_rank",
            "conv_kernel",
            "conv_L_cache",
            "n_groups",
            "expand",
        ],
        1 << 20,
    )
    .listed()
    .auto(),
    // Which layers are what.
    Count::of(
        &[
            "attn_layer_period",
            "attn_layer_offset",
            "expert_layer_period",
            "expert_layer_offset",
            "decoder_sparse_step",
            "moe_layer_freq",
            "moe_layer_interval",
            "moe_layer_frequency",
            "moe_layer_start_index",
            "interleave_moe_layer_step",
            "full_attention_interval",
            "global_attn_every_n_layers",
        ],
        1 << 16,
    )
    .listed(),
];

/// Likewise, of objects inside.
const NESTED_COUNTS: [(&str, Count); 4] = [
    (
        "attention_other_setting",
        Count::of(&["num_attention_heads", "num_attention_groups", "head_dim"], 1 << 14),
    ),
    (
        "linear_attn_config",
        Count::of(&["num_heads", "head_dim", "short_conv_kernel_size"], 1 << 16),
    ),
    ("attn_config", Count::of(&["kv_n_heads"], 1 << 14)),
    ("ffn_config", Count::of(&["ffn_hidden_size", "moe_num_experts", "moe_top_k"], 1 << 22)),
];

pub(super) fn check_counts(place: &Map<String, Value>) -> Result<(), HeaderError> {
    let counts = COUNTS.iter().flat_map(|count| count.keys.iter().map(move |key| (*key, count)));
    for (key, count) in counts {
        check_count(place, "", key, count)?;
    }
    for (name, count) in &NESTED_COUNTS {
        let Some(inner) = place.get(*name).and_then(Value::as_object) else { continue };
        for key in count.keys {
            check_count(inner, &format!("{name}."), key, count)?;
        }
    }
    Ok(())
}

/// Whether numbers of a `quantization_config` that its method cannot do without are such counts: packed weights
/// (AWQ, GPTQ) have bits, and blocks (FP8) two sides.
pub(super) fn check_quantisation(config: &Map<String, Value>) -> Result<(), HeaderError> {
    let method = config.get("quant_method").and_then(Value::as_str).unwrap_or_default();
    match method.to_ascii_lowercase().as_str() {
        "awq" | "awq_marlin" | "gptq" | "gptq_marlin" | "marlin" => {
            let bits = Count::of(&["bits", "w_bit"], 16).at_least(1);
            for key in bits.keys {
                check_count(config, "quantization_config.", key, &bits)?;
            }
            Ok(())
        }
        "fp8" | "fbgemm_fp8" => {
            let key = "weight_block_size";
            let Some(sides) = config.get(key).filter(|v| !v.is_null()) else { return Ok(()) };
            let side = |v: &Value| whole(v).is_some_and(|n| (1..=1 << 20).contains(&n));
            match sides.as_array() {
                Some(list) if list.len() == 2 && list.iter().all(side) => Ok(()),
                _ => {
                    let shown = text::clean(&sides.to_string(), 40);
                    Err(HeaderError::broken(format!(
                        "`quantization_config.{key}` is {shown}, which are no two sides of a block (as in [128, 128])"
                    )))
                }
            }
        }
        _ => Ok(()),
    }
}

/// Whether what stands at `key` is such a count, or nothing. `within`: what comes before the key's name.
fn check_count(
    place: &Map<String, Value>,
    within: &str,
    key: &str,
    count: &Count,
) -> Result<(), HeaderError> {
    let Some(value) = place.get(key).filter(|v| !v.is_null()) else { return Ok(()) };
    let (least, most) = (count.least, count.most);
    let good = |value: &Value| {
        whole(value).is_some_and(|n| (least..=most).contains(&n))
            || count.auto && value.as_str() == Some("auto")
    };
    let all = match value {
        Value::Array(list) if count.listed => list.iter().all(|v| v.is_null() || good(v)),
        _ => good(value),
    };
    if all {
        return Ok(());
    }
    let shown = text::clean(&value.to_string(), 40);
    let from = if least > 0 { format!("from {least} to") } else { "of at most".to_owned() };
    Err(HeaderError::broken(format!(
        "`{within}{key}` is {shown}, which is no count (a whole number {from} {most})"
    )))
}
