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
