//! A Hugging Face `config.json`, read as leniently as people write it: numbers as strings, fields
//! under several names, the language model nested inside a multimodal one.

use serde_json::{Map, Value};

use super::arch::{self, Blueprint, conf::NESTED, conf::whole};
use super::facts::LatentSizes;
use super::quant::{self, Quantisation};
use super::{HeaderError, ModelFacts};
use crate::base::text;

/// Longest `config.json` that is read.
pub const MAX_CONFIG: u64 = 1 << 20;

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
    /// `torch_dtype` (or `dtype`).
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
    Count::of(&["num_hidden_layers", "n_layer", "n_layers", "num_layers"], arch::MAX_LAYERS),
    Count::of(&["hidden_size", "n_embd", "n_embed", "d_model", "word_embed_proj_dim"], 1 << 20),
    Count::of(&["vocab_size", "padded_vocab_size"], 1 << 22),
    Count::of(
        &[
            "head_dim",
            "attention_head_dim",
            "kv_channels",
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

fn check_counts(place: &Map<String, Value>) -> Result<(), HeaderError> {
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

/// Reads a `config.json`.
pub fn parse(json: &[u8]) -> Result<HfConfig, HeaderError> {
    interpret(object(json, "config.json")?)
}

/// Names in Mistral's `params.json`, and what Hugging Face calls them (vLLM
/// `transformers_utils/configs/mistral.py`).
const MISTRAL_NAMES: [(&str, &str); 9] = [
    ("dim", "hidden_size"),
    ("n_layers", "num_hidden_layers"),
    ("n_heads", "num_attention_heads"),
    ("n_kv_heads", "num_key_value_heads"),
    ("hidden_dim", "intermediate_size"),
    ("max_seq_len", "max_position_embeddings"),
    ("model_max_length", "max_position_embeddings"),
    ("tied_embeddings", "tie_word_embeddings"),
    ("vision_encoder", "vision_config"),
];

/// Length that vLLM assumes where a `params.json` states none.
const MISTRAL_CONTEXT: u64 = 128_000;

/// Reads a `params.json` in Mistral's own format.
pub fn parse_params(json: &[u8]) -> Result<HfConfig, HeaderError> {
    let mut top = object(json, "params.json")?;
    for (own, usual) in MISTRAL_NAMES {
        if let Some(value) = top.remove(own) {
            top.entry(usual).or_insert(value);
        }
    }
    let mut kind = "mistral";
    if let Some(Value::Object(experts)) = top.remove("moe") {
        kind = "mixtral";
        for (own, usual) in
            [("num_experts", "num_local_experts"), ("num_experts_per_tok", "num_experts_per_tok")]
        {
            if let Some(value) = experts.get(own) {
                top.insert(usual.to_owned(), value.clone());
            }
        }
    }
    // Latent attention came later, in a family that its tensors have to tell.
    if !top.contains_key("kv_lora_rank") {
        top.entry("model_type").or_insert_with(|| kind.into());
    }
    if let Some(Value::Object(tower)) = top.get_mut("vision_config") {
        tower.entry("model_type").or_insert_with(|| "pixtral".into());
    }
    top.entry("max_position_embeddings").or_insert_with(|| MISTRAL_CONTEXT.into());
    interpret(top)
}

fn object(json: &[u8], name: &str) -> Result<Map<String, Value>, HeaderError> {
    let read = serde_json::from_slice(json)
        .or_else(|_| serde_json::from_slice(&without_python_numbers(json)));
    let value: Value = read.map_err(|e| match (json.is_empty(), e.is_eof()) {
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
    }
    let find = Places(places);

    let attention_heads = find.u32(&["num_attention_heads", "n_head", "n_heads", "num_heads"]);
    let hidden_size = find.u32(&["hidden_size", "n_embd", "n_embed", "d_model", "dim"]);
    let multi_query = find.bool("multi_query").unwrap_or(false);
    let kv_heads = find
        .u32(&[
            "num_key_value_heads",
            "num_kv_heads",
            "n_head_kv",
            "multi_query_group_num",
            "num_attention_groups",
        ])
        .or(if multi_query { Some(1) } else { attention_heads });
    let head_dim = find
        .u32(&["head_dim", "attention_head_dim"])
        .or_else(|| hidden_size?.checked_div(attention_heads?));
    let latent = find.u32(&["kv_lora_rank"]).filter(|n| *n > 0).map(|rank| LatentSizes {
        rank,
        plain: find.u32(&["qk_nope_head_dim"]).unwrap_or(128),
        rotary: find.u32(&["qk_rope_head_dim"]).unwrap_or(64),
        value: find.u32(&["v_head_dim"]).unwrap_or(128),
    });
    // A share of the hidden size says nothing of these, and some state the rotary part alone.
    let head_dim = latent.map(|of| of.plain.saturating_add(of.rotary)).or(head_dim);
    let layers = find.u32(&["num_hidden_layers", "n_layer", "n_layers", "num_layers"]);
    let used = find.u32(&[
        "num_experts_per_tok",
        "moe_topk",
        "experts_per_token",
        "moe_k",
        "moe_top_k",
        "top_k_experts",
    ]);
    let expert = find.u32(&["moe_intermediate_size"]).zip(used).map(|(n, k)| n.saturating_mul(k));
    let inner = expert.or_else(|| find.u32(&["intermediate_size", "n_inner", "ffn_dim"]));
    let part = find.float("partial_rotary_factor").unwrap_or(1.0).clamp(0.0, 1.0);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a share of a u32
    let rotated = head_dim.map(|d| (f64::from(d) * part) as u64);
    let rotary =
        find.number(&["qk_rope_head_dim", "rotary_dim"]).or(rotated).filter(|n| *n <= 4_096);
    Ok(HfConfig {
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
        vocab_size: find.u32(&["vocab_size", "padded_vocab_size"]),
        context: find.context(),
        context_stated: find.context_stated().filter(|n| Some(*n) != find.context()),
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
        dtype: find.string("torch_dtype").or_else(|| find.string("dtype")),
        tie_word_embeddings: find.bool("tie_word_embeddings"),
        top: top.clone(),
    })
}

/// Python writes (and reads) `NaN` and `Infinity`, which JSON does not have: they become `null`.
fn without_python_numbers(json: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(json.len());
    let (mut quoted, mut rest) = (false, json);
    while let Some((first, after)) = rest.split_first() {
        let word =
            [&b"-Infinity"[..], b"Infinity", b"NaN"].into_iter().find(|w| rest.starts_with(w));
        match (quoted, first, word) {
            (false, _, Some(word)) => {
                out.extend(b"null");
                rest = rest.get(word.len()..).unwrap_or(&[]);
                continue;
            }
            (true, b'\\', _) => {
                // What is escaped does not end the string.
                let pair = rest.get(..2).unwrap_or(rest);
                out.extend(pair);
                rest = rest.get(pair.len()..).unwrap_or(&[]);
                continue;
            }
            (_, b'"', _) => quoted = !quoted,
            _ => {}
        }
        out.push(*first);
        rest = after;
    }
    out
}

impl HfConfig {
    /// What the architecture decides, and how its weights are stored; `more` is an
    /// `hf_quant_config.json` beside it.
    pub fn blueprint(
        &self,
        more: Option<&Map<String, Value>>,
    ) -> (Option<Blueprint>, Quantisation) {
        let own = Places(self.places()).object("quantization_config");
        let mlx = [&self.top].into_iter().chain(self.places());
        let mlx = mlx
            .filter_map(|place| place.get("quantization").and_then(Value::as_object))
            .find(|settings| quant::mlx::is_mlx(settings));
        let stated = self.top.get("quantization_config").and_then(Value::as_object);
        let nested = mlx.or(stated).or(own);
        let beside = more.map(|m| m.get("quantization").and_then(Value::as_object).unwrap_or(m));
        let quantisation = nested.or(beside).map_or_else(Quantisation::none, Quantisation::read);
        (arch::blueprint(&self.top, &quantisation), quantisation)
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

/// Longest sequence that is believed: some hundred times that of any model.
const MAX_CONTEXT: u64 = u32::MAX as u64;

/// Where configurations state the longest sequence.
const CONTEXT_KEYS: [&str; 6] = [
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "max_sequence_length",
    "seq_len",
];

/// The objects to look in, the innermost first.
struct Places<'a>(Vec<&'a Map<String, Value>>);

impl<'a> Places<'a> {
    fn object(&self, key: &str) -> Option<&'a Map<String, Value>> {
        self.0.iter().find_map(|place| place.get(key)?.as_object())
    }

    fn get(&self, key: &str) -> Option<&Value> {
        self.0.iter().find_map(|place| place.get(key).filter(|v| !v.is_null()))
    }

    fn number(&self, keys: &[&str]) -> Option<u64> {
        keys.iter().find_map(|key| whole(self.get(key)?))
    }

    fn u32(&self, keys: &[&str]) -> Option<u32> {
        self.number(keys).and_then(|n| u32::try_from(n).ok()).filter(|n| *n <= 1 << 28)
    }

    fn bool(&self, key: &str) -> Option<bool> {
        match self.get(key)? {
            Value::Bool(b) => Some(*b),
            Value::String(s) => s.to_ascii_lowercase().parse().ok(),
            _ => None,
        }
    }

    fn string(&self, key: &str) -> Option<String> {
        self.get(key)?.as_str().map(|s| text::clean(s, 80))
    }

    fn float(&self, key: &str) -> Option<f64> {
        let nested = ["rope_parameters", "rope_scaling"];
        let inside = || nested.iter().find_map(|n| self.object(n)?.get(key));
        self.get(key).or_else(inside)?.as_f64()
    }

    /// The longest sequence, as vLLM derives it (`config/model.py`, `_get_and_verify_max_len`): the
    /// least of what is stated, times what scaled positions add to it.
    fn context(&self) -> Option<u64> {
        let least = CONTEXT_KEYS.iter().filter_map(|key| whole(self.get(key)?)).min();
        // Of Command R this is the whole, and `max_position_embeddings` a part.
        let own = self.number(&["model_max_length"]).filter(|n| (1..=MAX_CONTEXT).contains(n));
        let stated = own.or(least).or_else(|| self.number(&["n_ctx", "max_seq_length"]))?;
        // Gemma 3 states its length already scaled.
        if self.string("model_type").is_some_and(|kind| kind.contains("gemma3")) {
            return Some(stated);
        }
        let outer = self.object("rope_parameters").or_else(|| self.object("rope_scaling"));
        let Some(outer) = outer else { return Some(stated) };
        // Since transformers 5 there may be one for each kind of layer.
        let nested = outer.values().filter_map(Value::as_object);
        let mut length = stated;
        let mut factor = 1.0;
        for scaling in std::iter::once(outer).chain(nested) {
            let kind = ["rope_type", "type"].iter().find_map(|k| scaling.get(*k)?.as_str());
            let number = |key: &str| match scaling.get(key)? {
                Value::String(text) => text.trim().parse().ok(),
                value => value.as_f64(),
            };
            // Lengths of these are stated as they are after scaling.
            if matches!(kind, None | Some("su" | "longrope" | "llama3" | "default" | "mrope")) {
                continue;
            }
            factor = number("factor").filter(|f| (1.0..=4_096.0).contains(f)).unwrap_or(factor);
            if kind == Some("yarn") {
                let original = scaling.get("original_max_position_embeddings").and_then(whole);
                length = original.unwrap_or(length);
            }
        }
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // both are bounded
        Some((length.min(1 << 40) as f64 * factor) as u64)
    }

    /// The longest sequence, as `SGLang` derives it (`hf_transformers_utils.py`,
    /// `get_context_length`): what is stated first, times a factor only where no original length is.
    fn context_stated(&self) -> Option<u64> {
        let keys = [
            "max_sequence_length",
            "seq_length",
            "max_seq_len",
            "model_max_length",
            "max_position_embeddings",
        ];
        let stated = keys.iter().find_map(|key| whole(self.get(key)?))?;
        let scaling = self.object("rope_scaling").or_else(|| self.object("rope_parameters"));
        let factor = scaling
            .filter(|s| !s.contains_key("original_max_position_embeddings"))
            .filter(|s| s.get("rope_type").and_then(Value::as_str) != Some("llama3"))
            .and_then(|s| s.get("factor")?.as_f64())
            .filter(|f| (1.0..=4_096.0).contains(f))
            .unwrap_or(1.0);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // both are bounded
        Some((stated.min(1 << 40) as f64 * factor) as u64)
    }

    fn layers_with_growing_cache(&self) -> Option<u32> {
        let types = self.get("layer_types")?.as_array()?;
        let full = types.iter().filter(|t| t.as_str() == Some("full_attention")).count();
        u32::try_from(full).ok()
    }

    fn quantisation(&self) -> Option<String> {
        let config = self.get("quantization_config")?.as_object()?;
        let word = |key: &str| config.get(key).and_then(Value::as_str).map(|s| text::clean(s, 40));
        let method = word("quant_method").or_else(|| word("quant_algo"))?;
        let bits = config.get("bits").and_then(whole);
        Some(match bits {
            Some(bits) => format!("{method} {bits} bits"),
            None => method,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;

    #[test]
    fn reads_numbers_as_people_write_them() {
        let config = parse(
            br#"{"architectures":["LlamaForCausalLM"],"num_hidden_layers":"32","hidden_size":4096.0,
                "num_attention_heads":32,"num_key_value_heads":8,"vocab_size":128256,
                "max_position_embeddings":131072,"torch_dtype":"bfloat16","tie_word_embeddings":false}"#,
        )
        .unwrap();
        assert_eq!(config.layers, Some(32));
        assert_eq!(config.hidden_size, Some(4096));
        assert_eq!(config.head_dim, Some(128));
        assert_eq!(config.kv_heads, Some(8));
        assert_eq!(config.dtype.as_deref(), Some("bfloat16"));
        assert_eq!(config.tie_word_embeddings, Some(false));
    }

    #[test]
    fn looks_into_the_language_model_of_a_multimodal_one() {
        let config = parse(
            br#"{"architectures":["X"],"hidden_size":1,"torch_dtype":"float16","vision_config":{"num_hidden_layers":9},
                "text_config":{"num_hidden_layers":48,"hidden_size":5120,"num_attention_heads":64,
                "num_local_experts":16,"num_experts_per_tok":1,
                "layer_types":["full_attention","sliding_attention"]},
                "quantization_config":{"quant_method":"gptq","bits":4}}"#,
        )
        .unwrap();
        assert_eq!(config.layers, Some(48));
        assert_eq!(config.hidden_size, Some(5120));
        assert_eq!(config.kv_heads, Some(64));
        assert_eq!(config.experts, Some(16));
        assert_eq!(config.full_attention_layers, Some(1));
        assert_eq!(config.quantisation.as_deref(), Some("gptq 4 bits"));
    }

    #[test]
    fn what_is_no_count_is_named() {
        for (key, value) in [
            ("num_hidden_layers", "-3"),
            ("num_hidden_layers", "[80]"),
            ("num_hidden_layers", "2001"),
            ("num_hidden_layers", "true"),
            ("hidden_size", "4096.5"),
            ("hidden_size", "1e300"),
            ("vocab_size", "1000000000"),
            ("kv_lora_rank", "\"many\""),
            ("num_attention_heads", "\"32.5\""),
            ("num_key_value_heads", "[8,-1]"),
            ("moe_intermediate_size", "{}"),
            ("first_k_dense_replace", "\"x\""),
            ("max_position_embeddings", "-5"),
            ("max_position_embeddings", "0"),
            ("max_position_embeddings", "9223372036854775808"),
            ("n_positions", "\"long\""),
            ("sliding_window", "-1"),
            ("sliding_window", "99999999999"),
            ("linear_num_value_heads", "-32"),
            ("linear_conv_kernel_dim", "1.5"),
            ("index_head_dim", "99999999"),
            ("mamba_d_state", "\"much\""),
            ("ssm_state_size", "-128"),
            ("conv_kernel", "-4"),
            ("n_groups", "\"some\""),
            ("expand", "2.5"),
            ("mamba_dt_rank", "-1"),
            ("num_kv_heads", "-8"),
            ("moe_num_experts", "\"x\""),
            ("attn_layer_period", "-8"),
        ] {
            for json in [
                format!(r#"{{"{key}":{value}}}"#),
                format!(r#"{{"text_config":{{"{key}":{value}}}}}"#),
            ] {
                let error = parse(json.as_bytes()).unwrap_err().to_string();
                let begins = value.get(..2).unwrap_or(value);
                assert!(error.contains(&format!("`{key}` is {begins}")), "{json}: {error}");
            }
        }
        for (object, key, value) in [
            ("linear_attn_config", "num_heads", "-32"),
            ("linear_attn_config", "head_dim", "1.5"),
            ("linear_attn_config", "short_conv_kernel_size", "\"wide\""),
            ("attn_config", "kv_n_heads", "99999999"),
            ("ffn_config", "moe_num_experts", "-1"),
        ] {
            let json = format!(r#"{{"{object}":{{"{key}":{value}}}}}"#);
            let error = parse(json.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(&format!("`{object}.{key}` is ")), "{json}: {error}");
        }
        let good = br#"{"num_hidden_layers":"32","hidden_size":4096.0,"num_key_value_heads":[8,4],
            "head_dim":null,"moe_intermediate_size":[1536,512],"quantization_config":null,
            "sliding_window":0,"mamba_d_head":"auto","mamba_d_ssm":null,"max_position_embeddings":"4096"}"#;
        let config = parse(good).unwrap();
        assert_eq!((config.layers, config.hidden_size), (Some(32), Some(4096)));
        assert_eq!(config.head_dim, None);
        for bad in [&b"[]"[..], b"", b"{", b"nul\0"] {
            assert!(parse(bad).is_err());
        }
    }

    #[test]
    fn heads_that_differ_from_layer_to_layer_are_no_default() {
        let of = |heads: &str| {
            let json = format!(
                r#"{{"model_type":"llama","hidden_size":64,"num_hidden_layers":2,"num_attention_heads":4,
                "num_key_value_heads":{heads},"intermediate_size":128,"vocab_size":100}}"#
            );
            parse(json.as_bytes()).unwrap().blueprint(None).0.unwrap()
        };
        assert_eq!(of("[2,2]").tensors, of("2").tensors);
        assert_eq!(of("[2,2]").certainty, arch::Certainty::Exact);
        assert_eq!(of("[2,1]").certainty, arch::Certainty::Guess);
    }

    #[test]
    fn reads_what_python_writes() {
        let config = parse(
            br#"{"model_type":"a \" Infinity","limit":[0.0, Infinity, -Infinity, NaN],"n_layer":2}"#,
        )
        .unwrap();
        assert_eq!(config.architecture.as_deref(), Some(r#"a " Infinity"#));
        assert_eq!(config.layers, Some(2));
    }

    #[test]
    fn scaled_positions_make_the_context_longer() {
        let of = |scaling: &str| {
            let json = format!(r#"{{"max_position_embeddings":40960,"rope_scaling":{scaling}}}"#);
            parse(json.as_bytes()).unwrap().context
        };
        let yarn = r#"{"rope_type":"yarn","factor":4.0,"original_max_position_embeddings":32768}"#;
        for (scaling, context) in [
            (yarn, 131_072),
            (&yarn.replace("rope_type", "type"), 131_072),
            (r#"{"type":"yarn","factor":"4"}"#, 163_840),
            (r#"{"type":"dynamic","factor":2.0}"#, 81_920),
            (r#"{"rope_type":"linear","factor":8}"#, 327_680),
            (r#"{"type":"dynamic","alpha":1000.0}"#, 40_960),
            // Stated as they are after scaling.
            (
                r#"{"rope_type":"llama3","factor":8.0,"original_max_position_embeddings":8192}"#,
                40_960,
            ),
            (r#"{"type":"longrope","factor":32,"original_max_position_embeddings":4096}"#, 40_960),
            (r#"{"type":"su","original_max_position_embeddings":4096}"#, 40_960),
            (r#"{"type":"mrope","mrope_section":[16,24,24]}"#, 40_960),
            (r#"{"type":"yarn","factor":1e300}"#, 40_960),
            ("null", 40_960),
        ] {
            assert_eq!(of(scaling), Some(context), "{scaling}");
        }
        // One of each kind of layer; a length for all of it beside that of a part.
        let more = br#"{"max_position_embeddings":8192,"rope_parameters":{
            "full_attention":{"rope_type":"yarn","factor":8.0,"original_max_position_embeddings":8192},
            "sliding_attention":{"rope_type":"default","rope_theta":10000.0}}}"#;
        assert_eq!(parse(more).unwrap().context, Some(65_536));
        let command = br#"{"max_position_embeddings":8192,"model_max_length":131072}"#;
        assert_eq!(parse(command).unwrap().context, Some(131_072));
        let gemma =
            br#"{"text_config":{"model_type":"gemma3_text","max_position_embeddings":131072,
            "rope_scaling":{"rope_type":"linear","factor":8.0}}}"#;
        assert_eq!(parse(gemma).unwrap().context, Some(131_072));
    }

    #[test]
    fn latent_attention_caches_one_vector() {
        let config = parse(
            br#"{"num_hidden_layers":61,"kv_lora_rank":512,"qk_rope_head_dim":64,
                "num_attention_heads":128,"hidden_size":7168,"n_routed_experts":256}"#,
        )
        .unwrap();
        assert_eq!(config.latent_cache_width, Some(576));
    }

    #[test]
    fn heads_of_latent_attention_are_not_a_share_of_the_hidden_size() {
        let deepseek = r#"{"model_type":"deepseek_v3","num_hidden_layers":61,"hidden_size":7168,
            "num_attention_heads":128,"num_key_value_heads":128,"kv_lora_rank":512,"qk_rope_head_dim":64,
            "qk_nope_head_dim":128,"v_head_dim":128}"#;
        for json in [deepseek.to_owned(), deepseek.replace("61,", "61,\"head_dim\":64,")] {
            let config = parse(json.as_bytes()).unwrap();
            assert_eq!(config.head_dim, Some(192), "{json}");
            let mut facts =
                ModelFacts::unknown(super::super::ModelFormat::Safetensors, "/m".into());
            config.fill(&mut facts);
            assert_eq!((facts.head_dim, facts.value_head_dim), (Some(192), Some(128)));
            let text = facts.summary().join("\n");
            let told = "latent attention: keys of 128 + 64, values of 128, 512 + 64 cached";
            assert!(text.contains(told) && !text.contains("head size"), "{text}");
        }
    }
}
