//! Tensors of a model, as its files hold them, and what a rank gets of each.
//!
//! Tensors come from the headers of files or, where only a `config.json` is known, from `arch`;
//! both bear the names of Hugging Face checkpoints (or of GGUF), so one table says how engines
//! divide them: that of `ColumnParallelLinear`, `RowParallelLinear`, `QKVParallelLinear` and
//! `VocabParallelEmbedding` in vLLM (`model_executor/layers`).

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use serde::{Deserialize, Serialize};

use super::towers::Towers;

/// Most groups of tensors that are kept of one model (the largest have some thousands).
pub const MAX_GROUPS: usize = 50_000;
/// Most tensors of one model (a trillion parameters in NVFP4 have 280,000).
pub const MAX_TENSORS: u64 = 400_000;

/// A tensor, or all experts' tensors of one name and shape.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tensor {
    /// Its name; an expert's number is `*`.
    pub name: String,
    /// Type of its data, as safetensors and GGUF name them.
    pub dtype: String,
    /// Its dimensions.
    pub shape: Vec<u64>,
    /// So many of them.
    pub count: u64,
    /// Bytes of one.
    pub bytes: u64,
}

impl Tensor {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.bytes.saturating_mul(self.count)
    }
}

/// All of them together.
pub fn total(tensors: &[Tensor]) -> u64 {
    tensors.iter().fold(0, |sum, t| sum.saturating_add(t.total()))
}

/// A name in eight bytes: the same for the same name, and hardly ever for two of them.
pub(super) fn digest(name: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    hasher.finish()
}

/// Groups of experts by name and type, to which more of the same shape are added.
#[derive(Clone, Debug, Default)]
pub(super) struct Groups(HashMap<(String, String), usize>);

impl Groups {
    /// Adds `tensor` to the group in `list` that it belongs to; gives it back where there is none, and the
    /// next of its kind will look for it at the end of `list`.
    pub(super) fn join(&mut self, list: &mut [Tensor], tensor: Tensor) -> Option<Tensor> {
        if !tensor.name.contains(".*") {
            return Some(tensor);
        }
        let key = (tensor.name.clone(), tensor.dtype.clone());
        if let Some(group) = self.0.get(&key).and_then(|at| list.get_mut(*at))
            && group.shape == tensor.shape
            && group.bytes == tensor.bytes
        {
            group.count = group.count.saturating_add(tensor.count);
            return None;
        }
        self.0.insert(key, list.len());
        Some(tensor)
    }
}

/// Collects tensors, experts of one name and shape as one.
#[derive(Clone, Debug, Default)]
pub struct Tensors {
    list: Vec<Tensor>,
    /// There were more than [`MAX_GROUPS`].
    pub cut: bool,
    experts: Groups,
}

impl Tensors {
    /// Adds one.
    pub fn add(&mut self, name: &str, dtype: &str, shape: &[u64], bytes: u64) {
        if self.list.len() >= MAX_GROUPS {
            self.cut = true;
            return;
        }
        let (name, dtype) = (general_name(name), dtype.to_owned());
        let one = Tensor { name, dtype, shape: shape.to_vec(), count: 1, bytes };
        let first = self.experts.join(&mut self.list, one);
        self.list.extend(first);
    }

    /// Those collected.
    pub fn finish(self) -> Vec<Tensor> {
        self.list
    }
}

/// `…experts.17.up_proj…` as `…experts.*.up_proj…`.
pub(super) fn general_name(name: &str) -> String {
    for marker in [".experts.", ".local_experts."] {
        if let Some((before, after)) = name.split_once(marker) {
            let (number, rest) = after.split_once('.').unwrap_or((after, ""));
            if !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()) {
                return format!("{before}{marker}*.{rest}");
            }
        }
    }
    name.to_owned()
}

/// Where in the model a tensor belongs, for pipeline parallelism.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Before the first layer.
    Embedding,
    /// In this layer.
    Layer(u32),
    /// After the last layer: the last norm.
    Norm,
    /// After the last layer: the head.
    Head,
    /// Beside the layers: a vision tower, a projector. With the first stage, or with every one.
    Beside,
    /// Only for speculative decoding or for speaking, or an adapter: not loaded unless asked for.
    Draft,
}

/// How tensor parallelism divides a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// Not at all: every rank has it.
    Whole,
    /// Evenly.
    Even,
    /// By rows of the vocabulary, padded.
    Vocabulary,
    /// By key/value heads: never less than one a rank.
    KeyValue,
    /// Queries, keys and values in one tensor.
    Fused,
    /// Whole experts with expert parallelism, evenly without.
    Experts,
    /// Evenly, but for so many rows that every rank has.
    Besides(u64),
}

/// What is needed to place and divide tensors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// Layers of the language model.
    pub layers: u32,
    /// Query heads.
    pub heads: u64,
    /// Key/value heads.
    pub kv_heads: u64,
    /// Multi-head latent attention.
    pub latent: bool,
    /// Tokens of the vocabulary.
    pub vocab: u64,
    /// Values of a head's key where vLLM keeps keys and values of every head, as long as each other, instead of
    /// the latent vector; 0: it keeps what the layers say.
    #[serde(default)]
    pub expanded: u32,
    /// Groups of Mamba-2, and values of a state in one; 0 and 0 without.
    #[serde(default)]
    pub groups: (u64, u64),
    /// How vLLM divides its towers.
    #[serde(default)]
    pub towers: Towers,
}

const BESIDE: [&str; 18] = [
    "visual",
    "vision",
    "mm_projector",
    "multi_modal",
    "multimodal",
    "image_",
    "audio",
    "mlp1.",
    "connector",
    "patch_merger",
    "img_",
    "resampler",
    "aligner",
    "projector",
    "sam_model",
    "qwen2_model",
    "view_seperator",
    "v.",
];

/// Parts of models that speak, which engines do not load (`skip_prefixes` in vLLM's
/// `qwen2_5_omni_thinker.py`, `qwen3_omni_moe_thinker.py` and `minicpmo.py`; SGLang likewise).
const SPEAKING: [&str; 4] = ["talker.", "token2wav.", "code2wav.", "tts."];

/// Where a tensor belongs.
pub fn place(name: &str, layers: u32) -> Place {
    if SPEAKING.iter().any(|part| name.starts_with(part)) {
        return Place::Draft;
    }
    // Adapters for a medium (vLLM's `phi4mm.py` skips them).
    if name.contains(".lora_A.") || name.contains(".lora_B.") {
        return Place::Draft;
    }
    if BESIDE.iter().any(|b| match b.strip_suffix('.') {
        Some(_) => name.starts_with(b),
        None => name.contains(b),
    }) {
        return Place::Beside;
    }
    let words: Vec<&str> = name.split('.').collect();
    if words.iter().any(|w| w.starts_with("mtp") || w.starts_with("nextn")) {
        return Place::Draft;
    }
    let numbered = words.windows(2).find_map(|pair| match pair {
        ["layers" | "h" | "blocks" | "layer" | "blk" | "block", number] => {
            number.parse::<u32>().ok()
        }
        _ => None,
    });
    if let Some(number) = numbered {
        return if layers > 0 && number >= layers { Place::Draft } else { Place::Layer(number) };
    }
    let has = |list: &[&str]| words.iter().any(|w| list.contains(w));
    if has(&["lm_head", "embed_out", "output"]) || has(&["output_layer"]) {
        Place::Head
    } else if has(&[
        "embed_tokens",
        "word_embeddings",
        "wte",
        "wpe",
        "embed_in",
        "embeddings",
        "token_embd",
        "tok_embeddings",
        "embed_positions",
        "embedding",
        "word_embeddings_layernorm",
        "embed",
        "wpt",
        "token_embd_norm",
        "project_in",
        "position_embd",
    ]) {
        Place::Embedding
    } else {
        Place::Norm
    }
}

/// The parts of a stored weight, after its module's name.
const SUFFIXES: [&str; 28] = [
    "weight",
    "bias",
    "base_layer",
    "qweight",
    "qzeros",
    "scales",
    "biases",
    "g_idx",
    "weight_scale",
    "weight_scale_inv",
    "weight_scale_2",
    "weight_packed",
    "weight_shape",
    "weight_zero_point",
    "weight_g_idx",
    "weight_global_scale",
    "input_global_scale",
    "input_scale",
    "input_zero_point",
    "k_scale",
    "v_scale",
    "absmax",
    "quant_map",
    "nested_absmax",
    "nested_quant_map",
    "SCB",
    "q_scale",
    "B",
];

/// The module that a tensor belongs to: `…self_attn.q_proj` of `…self_attn.q_proj.weight_scale`.
pub fn module(name: &str) -> &str {
    let mut name = name;
    while let Some((before, last)) = name.rsplit_once('.') {
        if !SUFFIXES.contains(&last) && !last.starts_with("bitsandbytes__") {
            break;
        }
        name = before;
    }
    name
}

/// Whether a tensor belongs to what mixes tokens: attention, or a state in its place.
pub(super) fn is_mixer(name: &str) -> bool {
    ["attn", "attention", "mamba", "mixer"].iter().any(|part| name.contains(part))
        && !name.contains(".experts.")
        && !name.contains("shared_expert")
}

/// Whether the module's last word names a table of the vocabulary.
pub(super) fn is_vocabulary(word: &str) -> bool {
    matches!(
        word,
        "embed_tokens"
            | "lm_head"
            | "wte"
            | "embed_in"
            | "embed_out"
            | "word_embeddings"
            | "embeddings"
            | "token_embd"
            | "output"
            | "tok_embeddings"
            | "embedding"
            | "output_layer"
            | "head"
    )
}

/// Parts of names of what every rank has: norms, the index of sparse attention, what compresses tokens, mixes
/// streams, and the table that chooses experts (`DeepSeek` V4).
const WHOLE: [&str; 8] =
    ["indexer", "norm", "ln_", ".compressor.", ".hc_", "_hc.", "hyper_connection", "tid2eid"];

/// How tensor parallelism divides a tensor.
pub fn split(tensor: &Tensor, layout: &Layout) -> Split {
    let name = tensor.name.as_str();
    let module = module(name);
    let word = module.rsplit('.').next().unwrap_or(module);
    let one_value = tensor.shape.iter().product::<u64>() <= 1;
    if one_value || name.ends_with("_shape") {
        return Split::Whole;
    }
    if (name.contains("experts.*.") || name.contains(".experts."))
        && !name.contains("shared_expert")
        || word.ends_with("_exps")
    {
        return Split::Experts;
    }
    if WHOLE.iter().any(|part| name.contains(part)) {
        return Split::Whole;
    }
    // What joins a table of sequences of words (Qwen 4); the table itself is divided, in however many parts it is stored.
    if name.contains(".ple.") && !name.contains("ngram_embedding") {
        return Split::Whole;
    }
    match word {
        _ if is_vocabulary(word) => Split::Vocabulary,
        "q_a_proj"
        | "kv_a_proj_with_mqa"
        | "attn_q_a"
        | "attn_kv_a_mqa"
        | "gate"
        | "router"
        | "shared_expert_gate"
        | "wpe"
        | "embed_positions"
        | "ffn_gate_inp"
        | "classifier"
        | "eh_proj"
        | "f_a_proj"
        | "g_a_proj"
        | "fc1_latent_proj"
        | "fc2_latent_proj"
        | "routed_expert_down_proj"
        | "routed_expert_up_proj"
        | "pre_expert_proj"
        | "post_expert_proj"
        | "self_attention_res_proj"
        | "mlp_res_proj"
        | "output_attn_res_proj"
        | "patch_embed"
        | "pos_embed"
        | "patch_conv"
        | "patch_embedding"
        | "position_embedding"
        | "e_score_correction_bias" => Split::Whole,
        "k_proj" | "v_proj" | "attn_k" | "attn_v" | "wk" | "wv"
            if !layout.latent && place(name, layout.layers) != Place::Beside =>
        {
            Split::KeyValue
        }
        "qkv_proj" | "query_key_value" | "Wqkv" | "c_attn" | "W_pack" | "wqkv" | "attn_qkv"
            if place(name, layout.layers) != Place::Beside =>
        {
            Split::Fused
        }
        // The two matrices of the only group are made once for each rank (vLLM `mamba_mixer2.py`, `n_groups`).
        "in_proj" | "conv1d"
            if layout.groups.0 == 1 && (name.contains("mamba.") || name.contains("mixer.")) =>
        {
            Split::Besides(layout.groups.1.saturating_mul(2))
        }
        // Biases of what is divided by columns are added once, and held by all.
        "o_proj" | "out_proj" | "down_proj" | "dense" | "c_proj" | "w2" | "fc2" | "wo"
        | "dense_4h_to_h"
            if name.ends_with("bias") =>
        {
            Split::Whole
        }
        _ if tensor.shape.len() < 2 && !name.contains("bias") && !name.ends_with("scales") => {
            match word {
                "sinks" | "A_log" | "D" | "dt_bias" | "ssm_a" | "ssm_d" => Split::Even,
                _ if name.contains("scale") => Split::Even,
                _ => Split::Whole,
            }
        }
        _ => Split::Even,
    }
}

/// What a rank holds of a tensor of `bytes`, with `tensor` ranks that divide it and `expert` ranks
/// that divide experts. Vocabularies are padded to a multiple of `pad`.
pub fn share(tensor: &Tensor, split: Split, layout: &Layout, ranks: Ranks, pad: u64) -> u64 {
    let all = tensor.total();
    let tp = ranks.tensor.max(1);
    match split {
        Split::Whole => all,
        Split::Even => all.div_ceil(tp),
        Split::Besides(rows) => {
            let of = tensor.shape.first().copied().unwrap_or(0);
            let whole = if rows < of { mul_div(all, rows, of) } else { 0 };
            whole + (all - whole).div_ceil(tp)
        }
        Split::Experts => {
            let experts = if tensor.count > 1 {
                tensor.count
            } else {
                tensor.shape.first().copied().unwrap_or(1)
            };
            let divided = ranks.expert.max(1);
            // Whole experts: the rank with most of them.
            if ranks.whole_experts && experts >= divided {
                mul_div(all, experts.div_ceil(divided), experts)
            } else {
                all.div_ceil(divided)
            }
        }
        // Where the numbers are not known: plainly.
        Split::Vocabulary if layout.vocab == 0 => all.div_ceil(tp),
        Split::KeyValue if layout.kv_heads == 0 => all.div_ceil(tp),
        Split::Fused if layout.heads == 0 => all.div_ceil(tp),
        Split::Vocabulary => {
            let rows = layout.vocab;
            let padded = rows.next_multiple_of(pad.max(1)).next_multiple_of(tp);
            mul_div(all, padded, rows).div_ceil(tp)
        }
        Split::KeyValue => all.div_ceil(tp.min(layout.kv_heads.max(1))),
        Split::Fused => {
            let (q, kv) = (layout.heads.max(1), 2 * layout.kv_heads.max(1));
            let query = mul_div(all, q, q + kv);
            query.div_ceil(tp) + (all - query).div_ceil(tp.min(layout.kv_heads.max(1)))
        }
    }
}

/// Ranks that divide a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ranks {
    /// Of tensor parallelism.
    pub tensor: u64,
    /// That divide experts: all of a replica's, with or without expert parallelism.
    pub expert: u64,
    /// Experts go to ranks whole.
    pub whole_experts: bool,
}

/// `a · b / c`, rounded down, without overflow.
pub(crate) fn mul_div(a: u64, b: u64, c: u64) -> u64 {
    u64::try_from(u128::from(a) * u128::from(b) / u128::from(c.max(1))).unwrap_or(u64::MAX)
}
