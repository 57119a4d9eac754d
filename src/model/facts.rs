//! What is known of a model once its headers are read.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::cache::LayerCache;
use super::tensors::{self, Layout, Tensor};
use crate::base::Bytes;

/// The format of a model's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelFormat {
    /// GGUF, as llama.cpp reads it.
    Gguf,
    /// safetensors with a Hugging Face `config.json`.
    Safetensors,
}

impl ModelFormat {
    /// Its name for people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gguf => "GGUF",
            Self::Safetensors => "safetensors",
        }
    }
}

pub use super::arch::Certainty;

/// Sizes of multi-head latent attention, in values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LatentSizes {
    /// The vector that keys and values are made from (`kv_lora_rank`), cached once a token and layer.
    pub rank: u32,
    /// The part of a head's key that is made from it (`qk_nope_head_dim`).
    pub plain: u32,
    /// The rotary part of keys (`qk_rope_head_dim`), cached beside the vector, the same for all heads.
    pub rotary: u32,
    /// A head's value (`v_head_dim`).
    pub value: u32,
}

/// What is known of a model. A value that its files do not state is absent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelFacts {
    /// The format of its files.
    pub format: ModelFormat,
    /// What an engine is to be given: a file, or the directory that really holds the model.
    pub entry: String,
    /// Every file that must be there, absolute paths.
    pub files: Vec<String>,
    /// Architecture: `llama`, `Qwen3ForCausalLM`.
    pub architecture: Option<String>,
    /// Transformer blocks.
    pub layers: Option<u32>,
    /// Query heads.
    pub attention_heads: Option<u32>,
    /// Key/value heads (the largest number where layers differ).
    pub kv_heads: Option<u32>,
    /// Key/value heads of all layers together, where layers differ.
    pub kv_heads_total: Option<u64>,
    /// Values of a key per head.
    pub head_dim: Option<u32>,
    /// Values of a value per head, where it differs from a key's.
    pub value_head_dim: Option<u32>,
    /// With multi-head latent attention: cached values per token and layer, not divided by tensor
    /// parallelism.
    pub latent_cache_width: Option<u32>,
    /// The sizes that it is made of, where the configuration states them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latent: Option<LatentSizes>,
    /// Width of the hidden state.
    pub hidden_size: Option<u32>,
    /// Tokens of the vocabulary.
    pub vocab_size: Option<u32>,
    /// Longest sequence the model was made for, in tokens.
    pub context: Option<u64>,
    /// The same as `SGLang` derives it, where that differs: without what `YaRN` adds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context_stated: Option<u64>,
    /// Experts of a layer, for mixtures of experts.
    pub experts: Option<u32>,
    /// Experts that a token passes through.
    pub experts_used: Option<u32>,
    /// How weights are stored: `Q4_K_M`, `fp8`, `bfloat16`.
    pub quantisation: Option<String>,
    /// All tensors together, exactly.
    pub weight_bytes: Bytes,
    /// Files with weights.
    pub parts: u32,
    /// What a person should know.
    pub notes: Vec<String>,
    /// Its tensors, experts of one name as one: from the files' headers, or from the architecture.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tensors: Vec<Tensor>,
    /// What each layer keeps of the tokens it has seen.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub caches: Vec<LayerCache>,
    /// How its tensors are divided.
    #[serde(default)]
    pub layout: Layout,
    /// The head shares the embedding.
    #[serde(default)]
    pub tied: bool,
    /// How sure the weights are.
    #[serde(default)]
    pub certainty: Certainty,
    /// Per mille that weights counted from the architecture may be less, and more, where `certainty`
    /// alone does not say it.
    #[serde(default)]
    pub spread: Option<(u64, u64)>,
    /// How sure the caches are.
    #[serde(default)]
    pub cache_certainty: Certainty,
    /// Per mille that the caches may take less, and more, where `cache_certainty` alone does not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_spread: Option<(u64, u64)>,
    /// What its files may hold besides weights counted from the architecture, and engines do not load: a head that is
    /// the embedding, values of 32 bits.
    #[serde(default)]
    pub unloaded_bytes: Bytes,
    /// Width of the widest feed-forward layer, of an expert those that a token passes through.
    #[serde(default)]
    pub intermediate_size: Option<u32>,
    /// Its checkpoint asks for a cache of 8 bits.
    #[serde(default)]
    pub cache_fp8: bool,
    /// It has a tower for images or other media.
    #[serde(default)]
    pub vision: bool,
    /// Bytes of the table of rotary positions that an engine makes.
    #[serde(default)]
    pub rope_bytes: u64,
    /// A tokenizer lies beside the weights, or in them.
    #[serde(default)]
    pub tokenizer: bool,
    /// A generation config lies beside the weights.
    #[serde(default)]
    pub generation_config: bool,
}

impl ModelFacts {
    /// Facts of which only the format and the place are known.
    pub(crate) fn unknown(format: ModelFormat, entry: String) -> Self {
        Self {
            format,
            entry,
            files: Vec::new(),
            architecture: None,
            layers: None,
            attention_heads: None,
            kv_heads: None,
            kv_heads_total: None,
            head_dim: None,
            value_head_dim: None,
            latent_cache_width: None,
            latent: None,
            hidden_size: None,
            vocab_size: None,
            context: None,
            context_stated: None,
            experts: None,
            experts_used: None,
            quantisation: None,
            weight_bytes: Bytes::ZERO,
            parts: 0,
            notes: Vec::new(),
            tensors: Vec::new(),
            caches: Vec::new(),
            layout: Layout::default(),
            tied: false,
            certainty: Certainty::Exact,
            spread: None,
            cache_certainty: Certainty::Exact,
            cache_spread: None,
            unloaded_bytes: Bytes::ZERO,
            intermediate_size: None,
            cache_fp8: false,
            vision: false,
            rope_bytes: 0,
            tokenizer: false,
            generation_config: false,
        }
    }

    /// Values of the KV cache per token, all layers, undivided; `kv_divisor` ranks share the heads.
    /// None where the model's files do not say enough.
    pub fn cache_values_per_token(&self, kv_divisor: u32) -> Option<u64> {
        let layers = u64::from(self.layers?);
        if let Some(width) = self.latent_cache_width {
            return Some(layers * u64::from(width));
        }
        let key = u64::from(self.head_dim?);
        let width = key + self.value_head_dim.map_or(key, u64::from);
        let kv_heads = u64::from(self.kv_heads?);
        let divisor = u64::from(kv_divisor.max(1));
        // vLLM model_executor/models/llama.py: heads are replicated beyond one per rank.
        let heads_total = match self.kv_heads_total {
            Some(total) => total.div_ceil(divisor.min(kv_heads.max(1))),
            None => layers.saturating_mul((kv_heads / divisor).max(1)),
        };
        Some(heads_total.saturating_mul(width))
    }

    /// How many tensors there are, and their bytes by stored type; none where they are not known.
    pub fn stored(&self) -> Option<(u64, BTreeMap<&str, u64>)> {
        if self.tensors.is_empty() {
            return None;
        }
        let mut by_type: BTreeMap<&str, u64> = BTreeMap::new();
        for tensor in &self.tensors {
            let bytes = by_type.entry(tensor.dtype.as_str()).or_default();
            *bytes = bytes.saturating_add(tensor.total());
        }
        let count = self.tensors.iter().fold(0, |sum: u64, t| sum.saturating_add(t.count));
        Some((count, by_type))
    }

    /// Whether it is a mixture of experts, by its configuration or by its tensors.
    pub fn has_experts(&self) -> bool {
        let split = |t: &Tensor| tensors::split(t, &self.layout) == tensors::Split::Experts;
        self.experts.is_some_and(|n| n > 0) || self.tensors.iter().any(split)
    }

    /// Whether its weights are quantised as only MLX reads them, on Apple silicon.
    pub fn is_mlx(&self) -> bool {
        self.format == ModelFormat::Safetensors
            && (self.quantisation.as_deref().is_some_and(|name| name.starts_with("mlx "))
                || self.tensors.iter().any(|t| t.dtype == "U32" && t.name.ends_with(".weight")))
    }

    /// Layers by the tokens that they look back, of those that do not look at everything.
    pub fn windows(&self) -> BTreeMap<u64, u64> {
        let mut windows = BTreeMap::new();
        for window in self.caches.iter().filter_map(|c| c.keeps.window()) {
            *windows.entry(window).or_default() += 1;
        }
        windows
    }

    /// The facts as lines for people.
    pub fn summary(&self) -> Vec<String> {
        let mut first = vec![self.format.name().to_owned()];
        first.extend(self.architecture.clone());
        first.extend(self.layers.map(|n| format!("{n} layers")));
        first.push(match self.parts {
            0 | 1 => format!("{} of weights", self.weight_bytes),
            n => format!("{} of weights in {n} files", self.weight_bytes),
        });
        first.extend(self.quantisation.clone());
        first.extend(self.context.map(|n| format!("context {n}")));
        let mut second = Vec::new();
        match (self.attention_heads, self.kv_heads) {
            (Some(heads), Some(kv)) if kv != heads => {
                second.push(format!("{heads} attention heads, {kv} of them for keys and values"));
            }
            (Some(heads), _) => second.push(format!("{heads} attention heads")),
            (None, _) => {}
        }
        match self.latent {
            Some(of) => second.push(format!(
                "latent attention: keys of {} + {}, values of {}, {} + {} cached",
                of.plain, of.rotary, of.value, of.rank, of.rotary
            )),
            None => second.extend(self.head_dim.map(|n| format!("head size {n}"))),
        }
        second.extend(self.hidden_size.map(|n| format!("hidden size {n}")));
        second.extend(self.vocab_size.map(|n| format!("vocabulary {n}")));
        second.extend(self.experts.map(|n| match self.experts_used {
            Some(used) => format!("{n} experts, {used} per token"),
            None => format!("{n} experts"),
        }));
        let mut lines = vec![first.join(", ")];
        if !second.is_empty() {
            lines.push(second.join(", "));
        }
        lines.extend(self.notes.iter().cloned());
        lines
    }
}
