//! What a GGUF header says of its model: sizes, and what each layer keeps.

use super::ModelFacts;
use super::cache::{Keeps, LayerCache};
use super::gguf::GgufHeader;
use super::tensors::Layout;

/// Most layers that are believed.
const MAX_LAYERS: u32 = 4_096;

/// Puts what the header says into `facts`.
pub(super) fn fill(facts: &mut ModelFacts, header: &GgufHeader) {
    let small = |key: &str| header.number(key).and_then(|n| u32::try_from(n).ok());
    facts.architecture.clone_from(&header.architecture);
    facts.layers = small("block_count");
    facts.attention_heads = small("attention.head_count");
    facts.kv_heads = small("attention.head_count_kv").or(facts.attention_heads);
    facts.kv_heads_total = header.number_sum_if_differing("attention.head_count_kv");
    facts.hidden_size = small("embedding_length");
    facts.head_dim = small("attention.key_length")
        .or_else(|| facts.hidden_size?.checked_div(facts.attention_heads?));
    facts.value_head_dim = small("attention.value_length").filter(|n| Some(*n) != facts.head_dim);
    // llama.cpp caches the compressed vector and its rotary part (llama-model.cpp, deepseek2).
    facts.latent_cache_width = small("attention.kv_lora_rank")
        .filter(|n| *n > 0)
        .map(|rank| rank.saturating_add(small("rope.dimension_count").unwrap_or(0)));
    facts.context = header.number("context_length");
    facts.vocab_size = small("vocab_size").or(header.tokens.and_then(|n| u32::try_from(n).ok()));
    facts.experts = small("expert_count").filter(|n| *n > 0);
    facts.experts_used = facts.experts.and(small("expert_used_count"));
    let expert = small("expert_feed_forward_length").zip(facts.experts_used);
    facts.intermediate_size =
        expert.map(|(n, k)| n.saturating_mul(k)).or_else(|| small("feed_forward_length"));
    facts.quantisation = facts.quantisation.take().or_else(|| header.quantisation());
    facts.tokenizer = header.tokens.is_some();
    facts.tied = !facts.tensors.iter().any(|t| t.name == "output.weight");
    facts.layout = Layout {
        layers: facts.layers.unwrap_or(0),
        heads: facts.attention_heads.map_or(0, u64::from),
        kv_heads: facts.kv_heads.map_or(0, u64::from),
        latent: facts.latent_cache_width.is_some(),
        vocab: facts.vocab_size.map_or(0, u64::from),
    };
    facts.caches = caches(facts, header);
}

/// What each layer keeps.
fn caches(facts: &ModelFacts, header: &GgufHeader) -> Vec<LayerCache> {
    let layers = facts.layers.unwrap_or(0).min(MAX_LAYERS);
    let draft = header.number("nextn_predict_layers").unwrap_or(0);
    let layers = layers.saturating_sub(u32::try_from(draft).unwrap_or(0));
    let (Some(key), Some(_)) = (facts.head_dim, facts.layers) else { return Vec::new() };
    let value = facts.value_head_dim.unwrap_or(key);
    let recurrent = header.number("ssm.state_size").is_some();
    (0..layers)
        .filter_map(|layer| {
            let at = layer as usize;
            let kv_heads = header
                .number_of("attention.head_count_kv", at)
                .map_or(facts.kv_heads?, |n| u32::try_from(n).unwrap_or(0));
            let every = header.number("full_attention_interval").filter(|n| *n > 0);
            let is_state = recurrent
                && (kv_heads == 0
                    || every.is_some_and(|n| !(u64::from(layer) + 1).is_multiple_of(n))
                    || header.number("attention.head_count_kv").is_none());
            let keeps = if is_state {
                state(header)
            } else if kv_heads == 0 {
                return None;
            } else if let Some(width) = facts
                .latent_cache_width
                .filter(|_| header.number("attention.key_length_mla").is_some())
            {
                let rotary = header.number("rope.dimension_count").unwrap_or(0);
                Keeps::Latent { width, rotary: u32::try_from(rotary).unwrap_or(0), index: 0 }
            } else {
                Keeps::Attention { kv_heads, key, value, window: window(header, at) }
            };
            Some(LayerCache { layer, keeps })
        })
        .collect()
}

fn state(header: &GgufHeader) -> Keeps {
    let get = |key: &str| header.number(key).unwrap_or(0).min(1 << 20);
    let (inner, state) = (get("ssm.inner_size"), get("ssm.state_size"));
    let channels = inner + 2 * get("ssm.group_count") * state;
    Keeps::State {
        conv: 2 * channels * get("ssm.conv_kernel").saturating_sub(1),
        recurrent: inner * state,
        recurrent_bytes: 4,
    }
}

/// The window of a layer, by the pattern of its architecture (llama.cpp `llama-model.cpp`,
/// `set_swa_pattern`).
fn window(header: &GgufHeader, layer: usize) -> Option<u32> {
    let size = header.number("attention.sliding_window").filter(|n| *n > 0)?;
    let size = u32::try_from(size).ok()?;
    if let Some(pattern) = header.number_of("attention.sliding_window_pattern", layer) {
        return (pattern != 0).then_some(size);
    }
    let every = match header.architecture.as_deref()? {
        "gemma2" | "gpt-oss" => 2,
        "gemma3" => 6,
        "gemma3n" => 5,
        "cohere2" | "llama4" | "olmo2" | "exaone4" => 4,
        // The file states a window that llama.cpp does not use.
        _ => return None,
    };
    let windowed = !(layer + 1).is_multiple_of(every);
    windowed.then_some(size)
}
