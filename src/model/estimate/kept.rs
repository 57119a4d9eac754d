//! What an engine keeps of what a model's layers could: windows that it takes no notice of, and keys and values of
//! every head in place of a latent vector, and the type of states.

use super::{Pool, Rules};
use crate::model::cache::{Keeps, LayerCache};
use crate::model::facts::{ModelFacts, ModelFormat};
use crate::model::memory::WeightSplit;

/// What each layer keeps with an engine of these rules.
pub(super) fn caches(facts: &ModelFacts, rules: &Rules) -> Vec<LayerCache> {
    let no_window = match rules.pool {
        Pool::Tokens => !has_two_pools(facts),
        Pool::Groups | Pool::Cells => rules.split == WeightSplit::Layers && ignores_windows(facts),
    };
    let expanded = facts.layout.expanded;
    let kept = |cache: &LayerCache| {
        let keeps = match cache.keeps {
            Keeps::Latent { .. } if expanded > 0 && rules.pool == Pool::Groups => {
                let kv_heads = u32::try_from(facts.layout.heads).unwrap_or(u32::MAX);
                Keeps::Attention { kv_heads, key: expanded, value: expanded, window: None }
            }
            // `--mamba-ssm-dtype float32` is the default.
            state @ Keeps::State { .. } if rules.pool == Pool::Tokens => state.in_32_bits(false),
            // `llama-model.cpp`, `create_memory`: both are F32. Those of a GGUF file are counted so.
            state @ Keeps::State { .. } if rules.pool == Pool::Cells => {
                if facts.format == ModelFormat::Gguf { state } else { state.in_32_bits(true) }
            }
            keeps if no_window => keeps.without_window(),
            keeps => keeps,
        };
        LayerCache { keeps, ..*cache }
    };
    // What vLLM lays out in pages is there for the others as well.
    let paged = |c: &&LayerCache| matches!(c.keeps, Keeps::Paged { .. });
    let only_pages = rules.pool == Pool::Groups && facts.caches.iter().any(|c| paged(&c));
    facts.caches.iter().filter(|c| paged(c) == only_pages).map(kept).collect()
}

/// Where keys and values of a head are packed, the first two and the last two layers keep theirs as they are, unless
/// others keep states (vLLM `layers/quantization/turboquant/config.py`, `get_boundary_skip_layers`).
pub(super) fn ends_in_half(caches: &mut [LayerCache], facts: &ModelFacts) {
    let layers = facts.layers.unwrap_or(0);
    let ends = (layers / 2).min(2);
    if ends == 0 || caches.iter().any(|c| matches!(c.keeps, Keeps::State { .. })) {
        return;
    }
    for cache in caches {
        cache.half = cache.layer < ends || cache.layer.saturating_add(ends) >= layers;
    }
}

/// Architectures for which `SGLang` has a pool of its own for layers with a window
/// (`configs/model_config.py`, `is_hybrid_swa_model`), without marks and in small letters. Layers of all others
/// keep every token.
const TWO_POOLS: [&str; 9] = [
    "llama4",
    "gptoss",
    "mimov2",
    "step3p5",
    "gemma4",
    "graniteswa",
    "deepseekv4",
    "laguna",
    "mellum",
];

fn has_two_pools(facts: &ModelFacts) -> bool {
    let name: String = facts
        .architecture
        .iter()
        .flat_map(|name| name.chars())
        .filter(char::is_ascii_alphanumeric)
        .map(|c| c.to_ascii_lowercase())
        .collect();
    TWO_POOLS.iter().any(|family| name.starts_with(family))
}

/// Whether llama.cpp takes no notice of the windows: a configuration that states one for every layer (as
/// Mistral's does) is not among the architectures for which it has a pattern (`set_swa_pattern`). A GGUF
/// file's windows were read by that pattern.
fn ignores_windows(facts: &ModelFacts) -> bool {
    let mut attention =
        facts.caches.iter().filter(|c| matches!(c.keeps, Keeps::Attention { .. })).peekable();
    facts.format != ModelFormat::Gguf
        && attention.peek().is_some()
        && attention.all(|c| c.keeps.window().is_some())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use crate::model::cache::CacheBits;
    use crate::model::estimate::tests::{facts, rules};
    use crate::model::estimate::{Setup, predict};

    /// vLLM's `TurboQuant`: 134 bytes of each head of 128, and four layers as they are, but not beside states.
    #[test]
    fn the_ends_of_a_model_are_not_packed() {
        let kept = |json: &str, tensor: u64, pipeline: u64| -> Vec<u64> {
            let cache = CacheBits::named("turboquant_4bit_nc");
            let setup = Setup { tensor, pipeline, cache, ..Setup::new(rules("vllm")) };
            let ranks = predict(&facts(json), &setup).ranks;
            ranks.iter().map(|r| r.cache_per_token.value).collect()
        };
        let llama = r#"{"architectures":["LlamaForCausalLM"],"model_type":"llama","dtype":"bfloat16",
            "num_hidden_layers":32,"hidden_size":4096,"num_attention_heads":32,"num_key_value_heads":8}"#;
        let (packed, whole) = (8 * 134, 8 * 2 * 2 * 128);
        assert_eq!(kept(llama, 1, 1), [28 * packed + 4 * whole]);
        assert_eq!(kept(llama, 2, 1), [u64::midpoint(28 * packed, 4 * whole); 2]);
        assert_eq!(kept(llama, 1, 2), [14 * packed + 2 * whole; 2]);
        // Three layers have no middle: one of each end.
        assert_eq!(kept(&llama.replace(":32,\"h", ":3,\"h"), 1, 1), [packed + 2 * whole]);
        let hybrid = r#"{"architectures":["Qwen3NextForCausalLM"],"model_type":"qwen3_next","dtype":"bfloat16"}"#;
        assert_eq!(kept(hybrid, 1, 1), [12 * 2 * 262]);
    }
}
