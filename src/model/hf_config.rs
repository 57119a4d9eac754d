//! A Hugging Face `config.json`, read as leniently as people write it: numbers as strings, fields
//! under several names, the language model nested inside a multimodal one.

mod bounded;
mod counts;
mod mamba;
mod meta;
mod numbers;
mod params;
mod places;

use serde_json::{Map, Value};

use self::counts::{check_counts, check_quantisation};
use self::numbers::without_python_numbers;
use self::places::Places;
use super::arch::conf::{Conf, NESTED};
use super::arch::{self, Blueprint};
use super::facts::LatentSizes;
use super::quant::{self, Quantisation};
use super::{HeaderError, ModelFacts};
use crate::base::text;

/// Longest `config.json` that is read. Some list the method of each layer and expert: `MiniMax` M3 in mixed precision
/// has 2.9 MiB.
pub const MAX_CONFIG: u64 = 4 << 20;

/// What a `config.json` says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HfConfig {
    /// The first of `architectures`, else `model_type`.
    pub architecture: Option<String>,
    /// Transformer blocks.
    pub layers: Option<u32>,
    /// Query heads.
    pub attention_heads: Option<u32>,
    /// Key/value heads.
    pub kv_heads: Option<u32>,
    /// Values of a key per head.
    pub head_dim: Option<u32>,
    /// Cached values per token and layer with multi-head latent attention.
    pub latent_cache_width: Option<u32>,
    /// Its sizes.
    pub latent: Option<LatentSizes>,
    /// Width of the hidden state.
    pub hidden_size: Option<u32>,
    /// Tokens of the vocabulary.
    pub vocab_size: Option<u32>,
    /// Longest sequence, in tokens.
    pub context: Option<u64>,
    /// The same as `SGLang` derives it, where that differs.
    pub context_stated: Option<u64>,
    /// Tokens that layers with a sliding window look back.
    pub sliding_window: Option<u64>,
    /// Layers whose cache grows with the sequence, where `layer_types` tells.
    pub full_attention_layers: Option<u32>,
    /// Experts of a layer.
    pub experts: Option<u32>,
    /// Experts that a token passes through.
    pub experts_used: Option<u32>,
    /// `quantization_config.quant_method` with its bits.
    pub quantisation: Option<String>,
    /// `dtype` (or `torch_dtype`).
    pub dtype: Option<String>,
    /// The head shares the embedding's weights.
    pub tie_word_embeddings: Option<bool>,
    /// Width of a dense feed-forward layer, or of the experts that a token passes through.
    pub intermediate_size: Option<u32>,
    /// Share of a head that positions rotate, times the head: values.
    pub rotary: Option<u64>,
    /// The file itself.
    top: Map<String, Value>,
}

/// Reads a `config.json`.
pub fn parse(json: &[u8]) -> Result<HfConfig, HeaderError> {
    interpret(mamba::from_state_spaces(object(json, "config.json")?))
}

/// Reads a `params.json` in Mistral's own format, or in Meta's.
pub fn parse_params(json: &[u8]) -> Result<HfConfig, HeaderError> {
    interpret(params::translated(object(json, "params.json")?)?)
}

/// Reads an `hf_quant_config.json`; none where that cannot be read.
pub(super) fn beside(json: &[u8]) -> Option<Map<String, Value>> {
    match bounded::read(json) {
        Ok(Value::Object(top)) => Some(top),
        _ => None,
    }
}

fn object(json: &[u8], name: &str) -> Result<Map<String, Value>, HeaderError> {
    let read = bounded::read(json).or_else(|_| bounded::read(&without_python_numbers(json)));
    let value = read.map_err(|e| match (json.is_empty(), e.is_eof()) {
        (true, _) => HeaderError::broken(format!("not a {name}: it is empty")),
        (_, true) => HeaderError::broken(format!(
            "not a {name}: it ends too early, at line {} column {}",
            e.line(),
            e.column()
        )),
        _ => HeaderError::broken(format!("not a {name}: {}", text::clean(&e.to_string(), 200))),
    })?;
    match value {
        Value::Object(top) => Ok(top),
        _ => Err(HeaderError::broken(format!("not a {name}: not an object"))),
    }
}

fn interpret(top: Map<String, Value>) -> Result<HfConfig, HeaderError> {
    let mut places = vec![&top];
    let mut deepest = &top;
    // thinker_config nests a text_config of its own.
    for _ in 0..2 {
        let inner = NESTED.iter().find_map(|key| deepest.get(*key).and_then(Value::as_object));
        let Some(inner) = inner else { break };
        places.insert(0, inner);
        deepest = inner;
    }
    for place in &places {
        check_counts(place)?;
        if let Some(Value::Object(stored)) = places::quantisation(&[*place]) {
            check_quantisation(stored)?;
        }
    }
    let find = Places(places);
    // Null and lists silence a family's numbers, as in the tensors that are counted from them.
    let family = Conf::text(&top);
    let context = find.context(family.number(&["max_position_embeddings", "n_positions"]));

    let attention_heads = find.u32(&arch::HEADS).or_else(|| find.largest(&["num_query_heads"]));
    let hidden_size = find.u32(&arch::HIDDEN);
    let multi_query = find.bool("multi_query").unwrap_or(false);
    let kv_heads = find
        .u32(&[
            "num_key_value_heads",
            "num_kv_heads",
            "n_head_kv",
            "n_kv_heads",
            "multi_query_group_num",
            "num_attention_groups",
        ])
        .or_else(|| find.largest(&["num_kv_heads"]))
        .or(if multi_query { Some(1) } else { attention_heads });
    let head_dim = find
        .u32(&["head_dim", "attention_head_dim", "d_kv"])
        .or_else(|| hidden_size?.checked_div(attention_heads?));
    let latent = find.u32(&["kv_lora_rank"]).filter(|n| *n > 0).map(|rank| LatentSizes {
        rank,
        plain: find.u32(&["qk_nope_head_dim"]).unwrap_or(128),
        rotary: find.u32(&["qk_rope_head_dim"]).unwrap_or(64),
        value: find.u32(&["v_head_dim"]).unwrap_or(128),
    });
    // A share of the hidden size says nothing of these, and some state the rotary part alone.
    let head_dim = latent.map(|of| of.plain.saturating_add(of.rotary)).or(head_dim);
    let layers = find.u32(&arch::LAYERS);
    let used = find.u32(&[
        "num_experts_per_tok",
        "moe_topk",
        "experts_per_token",
        "moe_k",
        "moe_top_k",
        "top_k_experts",
    ]);
    let expert = find.u32(&["moe_intermediate_size"]).zip(used).map(|(n, k)| n.saturating_mul(k));
    let inner = expert.or_else(|| find.u32(&arch::INNER));
    let part = find.float("partial_rotary_factor").unwrap_or(1.0).clamp(0.0, 1.0);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a share of a u32
    let rotated = head_dim.map(|d| (f64::from(d) * part) as u64);
    let rotary =
        find.number(&["qk_rope_head_dim", "rotary_dim"]).or(rotated).filter(|n| *n <= 4_096);
    let config = HfConfig {
        architecture: top
            .get("architectures")
            .and_then(Value::as_array)
            .and_then(|list| list.first())
            .and_then(Value::as_str)
            .map(|s| text::clean(s, 80))
            .or_else(|| find.string("model_type")),
        layers,
        attention_heads,
        kv_heads,
        head_dim,
        latent_cache_width: latent.map(|of| of.rank.saturating_add(of.rotary)),
        latent,
        hidden_size,
        vocab_size: find.u32(&["vocab_size", "padded_vocab_size"]).or_else(|| {
            family.number(&["vocab_size", "padded_vocab_size"]).and_then(|n| u32::try_from(n).ok())
        }),
        context,
        context_stated: find.context_stated().filter(|n| Some(*n) != context),
        // Qwen2 states a window and `use_sliding_window: false`.
        sliding_window: find
            .number(&["sliding_window"])
            .filter(|_| find.bool("use_sliding_window") != Some(false)),
        full_attention_layers: find.layers_with_growing_cache(),
        experts: find
            .u32(&["num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"])
            .filter(|n| *n > 0),
        experts_used: used,
        intermediate_size: inner,
        rotary,
        quantisation: find.quantisation(),
        dtype: find.dtype(),
        tie_word_embeddings: find.bool("tie_word_embeddings"),
        top: Map::new(),
    };
    Ok(HfConfig { top, ..config })
}

impl HfConfig {
    /// What the architecture decides, and how its weights are stored; `more` is an
    /// `hf_quant_config.json` beside it.
    pub fn blueprint(
        &self,
        more: Option<&Map<String, Value>>,
    ) -> (Option<Blueprint>, Quantisation) {
        let mlx = [&self.top].into_iter().chain(self.places());
        let mlx = mlx
            .filter_map(|place| place.get("quantization").and_then(Value::as_object))
            .find(|settings| quant::mlx::is_mlx(settings));
        let beside = more.map(|m| m.get("quantization").and_then(Value::as_object).unwrap_or(m));
        let quantisation = match (mlx, self.quantisation_stated()) {
            (Some(own), _) | (None, Some(Value::Object(own))) => Quantisation::read(own),
            (None, Some(other)) => Quantisation::not_understood(other),
            (None, None) => beside.map_or_else(Quantisation::none, Quantisation::read),
        };
        (arch::blueprint(&self.top, &quantisation), quantisation)
    }

    /// Whether its family is known.
    pub(super) fn is_known(&self) -> bool {
        arch::is_known(&self.top)
    }

    /// Whether it says itself how its weights are stored, so that no `hf_quant_config.json` has a say.
    pub(super) fn states_quantisation(&self) -> bool {
        self.quantisation_stated().is_some()
    }

    /// What it says of how its weights are stored: the word of the whole before that of its language model.
    fn quantisation_stated(&self) -> Option<&Value> {
        let mut places = self.places();
        places.reverse();
        places::quantisation(&places)
    }

    fn places(&self) -> Vec<&Map<String, Value>> {
        let inner = NESTED.iter().find_map(|key| self.top.get(*key).and_then(Value::as_object));
        inner.into_iter().chain([&self.top]).collect()
    }

    /// Whether it has a tower for other media.
    pub fn has_tower(&self) -> bool {
        ["vision_config", "audio_config", "visual", "mm_vision_tower"]
            .iter()
            .any(|key| self.top.get(*key).is_some_and(|v| !v.is_null()))
            || arch::has_silent_tower(&self.top)
    }

    /// Puts what is known into `facts`.
    pub(crate) fn fill(&self, facts: &mut ModelFacts) {
        facts.architecture.clone_from(&self.architecture);
        facts.layers = self.layers;
        facts.attention_heads = self.attention_heads;
        facts.kv_heads = self.kv_heads;
        facts.head_dim = self.head_dim;
        facts.latent_cache_width = self.latent_cache_width;
        facts.latent = self.latent;
        facts.value_head_dim =
            self.latent.map(|of| of.value).filter(|value| Some(*value) != self.head_dim);
        facts.hidden_size = self.hidden_size;
        facts.vocab_size = self.vocab_size;
        facts.context = self.context;
        facts.context_stated = self.context_stated;
        facts.experts = self.experts;
        facts.experts_used = self.experts.and(self.experts_used);
        facts.quantisation = self.quantisation.clone().or_else(|| self.dtype.clone());
        facts.intermediate_size = self.intermediate_size;
        facts.vision = self.has_tower();
        facts.rope_bytes = self.rotary.zip(self.context).map_or(0, |(n, c)| n * c.min(1 << 24) * 2);
    }
}

#[cfg(test)]
mod tests;
