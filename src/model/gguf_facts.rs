//! What a GGUF header says of its model: sizes, and what each layer keeps.

use super::cache::{Keeps, LayerCache};
use super::facts::{Certainty, LatentSizes};
use super::gguf::GgufHeader;
use super::tensors::Layout;
use super::{HeaderError, ModelFacts};

/// Most layers that llama.cpp takes (`llama-hparams.h`, `LLAMA_MAX_LAYERS`).
const MAX_LAYERS: u32 = 512;

/// Numbers that decide what a model holds, and from where on they are absurd.
const COUNTS: [(&str, u64); 10] = [
    ("embedding_length", 1 << 20),
    ("vocab_size", 1 << 22),
    ("context_length", u32::MAX as u64),
    ("attention.head_count", 1 << 14),
    ("attention.head_count_kv", 1 << 14),
    ("attention.key_length", 1 << 16),
    ("attention.value_length", 1 << 16),
    ("attention.kv_lora_rank", 1 << 16),
    ("feed_forward_length", 1 << 22),
    ("expert_count", 1 << 16),
];

/// Names a key of the header that says nothing of use, as llama.cpp does before it refuses the file.
fn check(header: &GgufHeader) -> Result<(), HeaderError> {
    let Some(kind) = &header.architecture else {
        return Err(HeaderError::broken("its header has no `general.architecture`"));
    };
    match header.number("block_count") {
        Some(n) if (1..=u64::from(MAX_LAYERS)).contains(&n) => {}
        Some(n) => {
            return Err(HeaderError::broken(format!(
                "`{kind}.block_count` is {n} (1 to {MAX_LAYERS} layers are possible)"
            )));
        }
        None => {
            return Err(HeaderError::broken(format!(
                "its header has no number `{kind}.block_count`"
            )));
        }
    }
    for (key, most) in COUNTS {
        if let Some(n) = header.number(key).filter(|n| *n > most) {
            return Err(HeaderError::broken(format!("`{kind}.{key}` is {n} (at most {most})")));
        }
    }
    Ok(())
}

/// Puts what the header says into `facts`.
pub(super) fn fill(facts: &mut ModelFacts, header: &GgufHeader) -> Result<(), HeaderError> {
    check(header)?;
    let small = |key: &str| header.number(key).and_then(|n| u32::try_from(n).ok());
    facts.architecture.clone_from(&header.architecture);
    // Those for speculative decoding are counted there, and not loaded (`TENSOR_SKIP`).
    let draft = small("nextn_predict_layers").unwrap_or(0);
    facts.layers =
        small("block_count").map(|n| n.checked_sub(draft).filter(|n| *n > 0).unwrap_or(n));
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
    facts.latent = latent(header);
    if let Some(of) = facts.latent {
        // `key_length` is that of the cached vector there.
        facts.head_dim = Some(of.plain.saturating_add(of.rotary));
        facts.value_head_dim = Some(of.value).filter(|n| Some(*n) != facts.head_dim);
    }
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
        ..Layout::default()
    };
    facts.caches = caches(facts, header);
    let states = facts.caches.iter().any(|c| matches!(c.keeps, Keeps::State { .. }));
    // Models without attention say so by 0.
    if facts.attention_heads == Some(0) && !states {
        return Err(HeaderError::broken(format!(
            "`{}.attention.head_count` is 0",
            architecture(header)
        )));
    }
    if facts.caches.is_empty() {
        facts.cache_certainty = Certainty::Guess;
    }
    Ok(())
}

/// The sizes of latent attention, where the file's tensors are cut for it.
fn latent(header: &GgufHeader) -> Option<LatentSizes> {
    let small = |key: &str| header.number(key).and_then(|n| u32::try_from(n).ok());
    let rotary = small("rope.dimension_count")?;
    Some(LatentSizes {
        rank: small("attention.kv_lora_rank").filter(|n| *n > 0)?,
        plain: small("attention.key_length_mla")?.checked_sub(rotary)?,
        rotary,
        value: small("attention.value_length_mla")?,
    })
}

/// What each layer keeps (llama.cpp `llama-model.cpp`, `load_hparams` and `create_memory`).
fn caches(facts: &ModelFacts, header: &GgufHeader) -> Vec<LayerCache> {
    let layers = facts.layers.unwrap_or(0).min(MAX_LAYERS);
    // Layers from here on read what an earlier one has kept.
    let own = match (header.number("attention.shared_kv_layers"), architecture(header)) {
        (Some(shared), _) => layers.saturating_sub(u32::try_from(shared).unwrap_or(0)),
        (None, "gemma3n") => layers.min(20),
        _ => layers,
    };
    let mut caches = Vec::new();
    for layer in 0..layers {
        let at = layer as usize;
        let heads = header.number_of("attention.head_count_kv", at);
        let heads = heads.map_or(facts.kv_heads, |n| u32::try_from(n).ok()).unwrap_or(0);
        let (attends, state) = kind(header, facts, at, heads);
        if attends && heads > 0 && layer < own {
            caches.extend(
                attention(header, facts, at, heads).map(|keeps| LayerCache::new(layer, keeps)),
            );
        }
        caches.extend(state.map(|keeps| LayerCache::new(layer, keeps)));
    }
    caches
}

fn architecture(header: &GgufHeader) -> &str {
    header.architecture.as_deref().unwrap_or_default()
}

/// Whether a layer has attention, and the state that it keeps.
fn kind(
    header: &GgufHeader,
    facts: &ModelFacts,
    layer: usize,
    kv_heads: u32,
) -> (bool, Option<Keeps>) {
    let has = |key: &str| header.number(key).is_some_and(|n| n > 0);
    let either = |recurrent: bool| (!recurrent, recurrent.then(|| state(header)));
    match architecture(header) {
        "falcon-h1" => (true, Some(state(header))),
        // One thing a layer: where it has a feed-forward layer, nothing else.
        "nemotron_h" | "nemotron_h_moe" => {
            match header.number_of("feed_forward_length", layer).unwrap_or(0) {
                0 => either(kv_heads == 0),
                _ => (false, None),
            }
        }
        "mamba" | "mamba2" => either(true),
        "qwen3next" | "qwen35" | "qwen35moe" => {
            let every = header.number("full_attention_interval").filter(|n| *n > 0).unwrap_or(4);
            either(!(layer as u64 + 1).is_multiple_of(every))
        }
        _ if has("shortconv.l_cache") => {
            let kernel = header.number("shortconv.l_cache").unwrap_or(0).min(1 << 10);
            let values = facts.hidden_size.map_or(0, u64::from) * kernel.saturating_sub(1);
            let keeps =
                Keeps::State { conv: 2 * values, recurrent: 0, recurrent_bytes: 4, whole: 0 };
            (kv_heads > 0, (kv_heads == 0).then_some(keeps))
        }
        _ if has("kda.head_dim") => (kv_heads > 0, (kv_heads == 0).then(|| delta(header, facts))),
        _ if has("ssm.state_size") => {
            let every = header.number("full_attention_interval").filter(|n| *n > 0);
            let between = every.is_some_and(|n| !(layer as u64 + 1).is_multiple_of(n));
            either(between || kv_heads == 0 || header.number("attention.head_count_kv").is_none())
        }
        _ => (true, None),
    }
}

fn attention(
    header: &GgufHeader,
    facts: &ModelFacts,
    layer: usize,
    kv_heads: u32,
) -> Option<Keeps> {
    let small = |key: &str| header.number(key).and_then(|n| u32::try_from(n).ok());
    if let Some(width) =
        facts.latent_cache_width.filter(|_| header.number("attention.key_length_mla").is_some())
    {
        let rotary = small("rope.dimension_count").unwrap_or(0);
        return Some(Keeps::Latent { width, rotary, index: 0, sparse: false });
    }
    let window = window(header, layer);
    // Gemma 4 has heads of another size in layers with a window.
    let within = |key: &str| small(key).filter(|_| window.is_some());
    let key = within("attention.key_length_swa").or(facts.head_dim)?;
    let value = within("attention.value_length_swa")
        .or(facts.value_head_dim)
        .or(facts.head_dim)
        .unwrap_or(key);
    Some(Keeps::Attention { kv_heads, key, value, window })
}

/// A state of Mamba and its like; all of it in 32 bits.
fn state(header: &GgufHeader) -> Keeps {
    let get = |key: &str| header.number(key).unwrap_or(0).min(1 << 20);
    let (inner, state) = (get("ssm.inner_size"), get("ssm.state_size"));
    let channels = inner + 2 * get("ssm.group_count") * state;
    Keeps::State {
        conv: 2 * channels * get("ssm.conv_kernel").saturating_sub(1),
        recurrent: inner * state,
        recurrent_bytes: 4,
        whole: 0,
    }
}

/// A state of Kimi's delta attention.
fn delta(header: &GgufHeader, facts: &ModelFacts) -> Keeps {
    let get = |key: &str| header.number(key).unwrap_or(0).min(1 << 16);
    let heads = facts.attention_heads.map_or(0, u64::from).min(1 << 14);
    let (width, kernel) = (get("kda.head_dim"), get("ssm.conv_kernel"));
    Keeps::State {
        conv: 2 * 3 * heads * width * kernel.saturating_sub(1),
        recurrent: heads * width * width,
        recurrent_bytes: 4,
        whole: 0,
    }
}

/// The window of a layer, by the pattern of its architecture (`set_swa_pattern`).
fn window(header: &GgufHeader, layer: usize) -> Option<u32> {
    let stated = header.number("attention.sliding_window");
    // Llama 4's chunks are not in its files; one of 0 says that it has none.
    let usual = (architecture(header) == "llama4").then_some(8_192);
    let size = u32::try_from(stated.or(usual)?).ok().filter(|n| *n > 0)?;
    let size = if usual.is_some() { 8_192 } else { size };
    let key = "attention.sliding_window_pattern";
    let every = match (header.number_of_all(key), header.number_of(key, layer)) {
        // One number: every so manieth layer sees everything.
        (Some(every), _) if every > 1 => usize::try_from(every).ok()?,
        (_, Some(pattern)) => return (pattern != 0).then_some(size),
        _ => match architecture(header) {
            "gemma2" | "gpt-oss" => 2,
            "gemma3" => 6,
            "gemma3n" => 5,
            "cohere2" | "llama4" | "olmo2" | "exaone4" | "exaone-moe" | "afmoe" => 4,
            // The first of four.
            "smallthinker" => return (!layer.is_multiple_of(4)).then_some(size),
            // The file states a window that llama.cpp does not use.
            _ => return None,
        },
    };
    (!(layer + 1).is_multiple_of(every)).then_some(size)
}

#[cfg(test)]
mod tests;
