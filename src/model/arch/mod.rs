//! The tensors and caches of a model, from its `config.json` alone.
//!
//! Families are told apart by what their numbers mean (biases, norms, experts, towers), as
//! `transformers` builds them (`modeling_*.py`); names and sizes of models play no part. What a
//! checkpoint holds besides (layers for speculative decoding) is in [`draft`].

mod attention;
pub mod conf;
mod deberta;
mod deepseek_v4;
mod deepseek_v41;
mod doubled;
mod draft;
mod encoder;
mod encoder_decoder;
mod ending;
mod gemma3n;
mod gemma4;
mod griffin;
mod hrm;
mod mlp;
mod muse;
mod numbers;
mod openelm;
mod qwen4;
mod recent;
mod state;
mod unread;
mod unstated;
mod vision;
mod whisper;

use serde_json::{Map, Value};

use self::conf::Conf;
use self::ending::Ending;
use super::cache::{Keeps, LayerCache};
use super::quant::{Method, Quantisation};
use super::tensors::{Layout, Tensor};

use self::numbers::Numbers;
pub(super) use self::numbers::{HEADS, HIDDEN, INNER, LAYERS};

/// Most layers that are believed.
pub(super) const MAX_LAYERS: u64 = 2_000;

/// How sure the list of tensors is.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Certainty {
    /// The tensors are read, or the family is known: to the byte.
    #[default]
    Exact,
    /// The family is known, a part of it is estimated.
    Close,
    /// The family is not known: a decoder with these numbers.
    Guess,
}

impl Certainty {
    /// Per mille that weights may be less, and more.
    pub const fn usual_spread(self) -> (u64, u64) {
        match self {
            Self::Exact => (0, 0),
            Self::Close => (30, 30),
            Self::Guess => (400, 400),
        }
    }
}

/// What a `config.json` decides.
#[derive(Clone, Debug)]
pub struct Blueprint {
    /// Its tensors as a checkpoint stores them.
    pub tensors: Vec<Tensor>,
    /// What each layer keeps.
    pub caches: Vec<LayerCache>,
    /// How tensors are divided.
    pub layout: Layout,
    /// The head shares the embedding.
    pub tied: bool,
    /// How sure this is.
    pub certainty: Certainty,
    /// Per mille that weights may be less, and more.
    pub spread: (u64, u64),
    /// Bytes that its files may hold besides, which engines do not load: a head that is the embedding, values of
    /// 32 bits.
    pub unloaded: u64,
    /// How sure the family is, and with it the caches and how tensors are divided.
    pub family: Certainty,
    /// Per mille that its caches may be less, and more, where `family` alone does not say it.
    pub cache_spread: Option<(u64, u64)>,
    /// What is estimated, and why.
    pub notes: Vec<String>,
}

/// A weight to be stored: linear layers may be quantised, everything else is stored as it is.
struct Build<'a> {
    conf: &'a Conf<'a>,
    quantisation: &'a Quantisation,
    dtype: (&'static str, u64),
    tensors: Vec<Tensor>,
    caches: Vec<LayerCache>,
    certainty: Certainty,
    spread: (u64, u64),
    cache_spread: Option<(u64, u64)>,
    notes: Vec<String>,
    /// Bytes that files may hold besides, and that no rank loads.
    besides: u64,
    n: Numbers,
    /// Groups of Mamba-2, and values of a state in one; 0 and 0 without.
    groups: (u64, u64),
}

impl Build<'_> {
    /// A tensor that is never quantised.
    fn plain(&mut self, name: &str, shape: &[u64], count: u64) {
        self.typed(name, shape, count, self.dtype);
    }

    fn typed(&mut self, name: &str, shape: &[u64], count: u64, (dtype, size): (&str, u64)) {
        let values = shape.iter().fold(1u64, |n, d| n.saturating_mul(*d));
        if values == 0 || count == 0 {
            return;
        }
        self.tensors.push(Tensor {
            name: name.to_owned(),
            dtype: dtype.to_owned(),
            shape: shape.to_vec(),
            count,
            bytes: values.saturating_mul(size),
        });
    }

    /// A linear layer of `rows` outputs and `columns` inputs.
    fn linear(&mut self, module: &str, rows: u64, columns: u64, bias: bool) {
        self.linears(module, rows, columns, bias, 1);
    }

    /// A table or a router: what only MLX quantises.
    fn table(&mut self, module: &str, rows: u64, columns: u64) {
        if self.quantisation.is_mlx() {
            self.linear(module, rows, columns, false);
        } else {
            self.plain(&format!("{module}.weight"), &[rows, columns], 1);
        }
    }

    /// `count` of them: experts.
    fn linears(&mut self, module: &str, rows: u64, columns: u64, bias: bool, count: u64) {
        let method = deepseek_v4::scaled(self.conf, self.quantisation.of(module));
        let quantised = !matches!(method, Method::Plain | Method::Mxfp4);
        if quantised {
            for (suffix, dtype, shape, bytes) in method.stored(rows, columns, self.dtype) {
                let name = format!("{module}.{suffix}");
                self.tensors.push(Tensor { name, dtype: dtype.to_owned(), shape, count, bytes });
            }
        } else {
            self.plain(&format!("{module}.weight"), &[rows, columns], count);
        }
        if bias {
            self.plain(&format!("{module}.bias"), &[rows], count);
        } else if quantised && self.quantisation.zero_bias {
            self.typed(&format!("{module}.zero_bias"), &[rows], count, ("F16", 2));
        }
    }

    /// A norm's weight, and its bias where the family has one.
    fn norm(&mut self, module: &str, width: u64) {
        // Those of OPT may be without values of their own (`modeling_opt.py`).
        if self.conf.flag("layer_norm_elementwise_affine") == Some(false) && self.conf.is(&["opt"])
        {
            return;
        }
        self.plain(&format!("{module}.weight"), &[width], 1);
        if norm_bias(self.conf) {
            self.plain(&format!("{module}.bias"), &[width], 1);
        }
    }

    /// Key/value heads of the layer that has most of them.
    fn most_kv_heads(&self) -> u64 {
        self.caches.iter().fold(self.n.kv_heads, |most, c| match c.keeps {
            Keeps::Attention { kv_heads, .. } => most.max(u64::from(kv_heads)),
            _ => most,
        })
    }

    fn keeps(&mut self, layer: u64, keeps: Keeps) {
        self.caches.push(LayerCache::new(u32::try_from(layer).unwrap_or(u32::MAX), keeps));
    }

    /// Numbers of experts that an architecture that is not known may mean otherwise: where they alone make it what it is,
    /// it may be as small as the rest.
    fn doubt_experts(&mut self) {
        let all = super::tensors::total(&self.tensors);
        let of = |t: &&Tensor| t.name.contains(".experts.");
        let experts =
            self.tensors.iter().filter(of).map(Tensor::total).fold(0, u64::saturating_add);
        let rest = all.saturating_sub(experts);
        if experts / 9 > rest {
            let less = 1_000 - super::tensors::mul_div(rest, 1_000, all.max(1)).min(1_000);
            let why = "most of it are experts, of which little is known";
            self.doubt_by(Certainty::Guess, (less, 0), why);
        }
    }

    fn doubt(&mut self, certainty: Certainty, why: &str) {
        self.doubt_by(certainty, certainty.usual_spread(), why);
    }

    /// Weights may be less or more by so many per mille.
    fn doubt_by(&mut self, certainty: Certainty, (less, more): (u64, u64), why: &str) {
        self.certainty = self.certainty.max(certainty);
        self.spread = (self.spread.0.max(less), self.spread.1.max(more));
        if !self.notes.iter().any(|n| n == why) {
            self.notes.push(why.to_owned());
        }
    }
}

/// Norms with a bias: `LayerNorm` instead of `RMSNorm`.
fn norm_bias(conf: &Conf<'_>) -> bool {
    conf.is(&[
        "phi",
        "phimoe",
        "falcon",
        "gpt_neox",
        "starcoder2",
        "gpt_bigcode",
        "gpt2",
        "gptj",
        "bloom",
        "opt",
        "stablelm",
        "persimmon",
        "nemotron",
        "gpt_neo",
        "codegen",
        "phi3small",
        "xglm",
        "biogpt",
        "jais2",
    ])
}

/// Whether the family of a `config.json` is known.
pub fn is_known(top: &Map<String, Value>) -> bool {
    let conf = Conf::text(top);
    conf.is_known() || KNOWN_ELSEWHERE.contains(&conf.kind.as_str())
}

/// Whether a model has a vision tower that its `config.json` does not tell of.
pub fn has_silent_tower(top: &Map<String, Value>) -> bool {
    vision::is_silent(top)
}

/// What `config.json` (and `hf_quant_config.json`, where it says more) decides; none if it does not
/// even tell the size of a layer.
pub fn blueprint(top: &Map<String, Value>, quantisation: &Quantisation) -> Option<Blueprint> {
    let conf = Conf::text(top);
    let n = Numbers::of(&conf)?;
    let named = conf.dtype();
    let dtype = match named {
        Some("float32") => ("F32", 4),
        Some("float16") => ("F16", 2),
        None if IN_32_BITS.contains(&conf.kind.as_str()) => ("F32", 4),
        _ => ("BF16", 2),
    };
    let mut build = Build {
        conf: &conf,
        quantisation,
        dtype,
        tensors: Vec::new(),
        caches: Vec::new(),
        certainty: Certainty::Exact,
        spread: (0, 0),
        besides: 0,
        cache_spread: None,
        notes: Vec::new(),
        n,
        groups: (0, 0),
    };
    if !is_known(top) {
        build.doubt(
            Certainty::Guess,
            "its architecture is not known: weights are those of a usual decoder with its numbers",
        );
    }
    if PARTLY.contains(&conf.kind.as_str()) {
        build.doubt(
            Certainty::Guess,
            "its architecture is known in part: weights are those of a usual decoder with its numbers",
        );
    }
    let whole = top.get("model_type").and_then(Value::as_str).unwrap_or_default();
    if LARGER.contains(&whole) {
        let why = "its layers and towers for images are known in part: it may be twice as large";
        build.doubt_by(Certainty::Guess, (400, 1_000), why);
    }
    for key in ["num_attention_heads", "num_key_value_heads", "intermediate_size"] {
        let apart = conf.is(&["gemma3n_text", "nemotron-nas"]);
        if conf.list(key).is_some() && conf.stated(&[key]).is_none() && !apart {
            build.doubt(Certainty::Guess, "its layers differ in their heads or widths");
        }
    }
    if conf.is(&["minimax_m3_vl_text"]) {
        let why = "what engines keep for its index of blocks is estimated";
        build.doubt_by(Certainty::Close, (0, 0), why);
    }
    if conf.is(&["glm5_next_text", qwen4::KIND]) {
        let why =
            "what engines keep for its index beside the keys of whole pools is small, and left out";
        build.doubt_by(Certainty::Close, (0, 0), why);
    }
    if n.unstated && !conf.is(&encoder::KINDS) {
        build.heads_are_not_stated();
    }
    let family = build.certainty;
    // What is left of a quantised model is in 16 bits; gpt-oss and MiniMax M2 do not say so either.
    let quantised = quantisation.is_mlx() || !quantisation.name.is_empty();
    if named.is_none() && !quantised && !IN_32_BITS.contains(&conf.kind.as_str()) {
        let why = "the type of its values is not stated: they are counted in 16 bits";
        build.doubt(Certainty::Close, why);
    }
    if named.is_none() && !quantised && deberta::KINDS.contains(&conf.kind.as_str()) {
        let why = "the type of its values is not stated: some have them in 16 bits";
        build.doubt_by(Certainty::Close, (500, 0), why);
    }
    if quantisation.unknown {
        build.doubt_by(
            Certainty::Guess,
            (800, 50),
            "its quantisation is not known: weights may be much smaller",
        );
    } else if quantisation.rough {
        build.doubt_by(Certainty::Close, (100, 100), "its quantisation is counted by its bits");
    } else if quantisation.method == Method::Mxfp4 && !conf.is(&["gpt_oss"]) {
        build.doubt_by(
            Certainty::Guess,
            (750, 50),
            "which of its layers are stored in MXFP4 is not known: weights may be much smaller",
        );
    }
    // The whole model's word counts before that of its part.
    let stated = top.get("tie_word_embeddings").and_then(Value::as_bool);
    let usual = || conf.flag("tie_word_embeddings").or_else(|| tied_elsewhere(&conf.kind));
    let ending = Ending::of(top, &conf);
    // Without a head nothing is shared.
    let encodes = conf.is(&encoder::KINDS);
    // OpenELM has a word of its own for it.
    let shares = || conf.flag("share_input_output_layers").filter(|_| conf.is(&["openelm"]));
    let known = match ending {
        Ending::Words if !encodes => shares().or(stated).or_else(usual),
        _ => Some(false),
    };
    let tied = known.unwrap_or(false);
    if encodes {
        build.encoder(top);
    } else if conf.is(&["whisper"]) {
        build.whisper(top);
    } else if encoder_decoder::is(&conf) {
        build.encoder_decoder(top, tied, ending);
    } else if conf.is(&["openelm"]) {
        build.openelm(tied || ending != Ending::Words);
    } else if conf.is(&["hrm_text"]) {
        build.hrm();
        build.end(tied, ending);
    } else {
        build.embedding();
        for layer in 0..n.layers {
            build.layer(layer);
        }
        build.end(tied, ending);
    }
    build.doubt_cache(family);
    if n.vocab == 0 {
        let why = "how many tokens its vocabulary has is not stated: neither embedding nor head is counted";
        build.doubt_by(Certainty::Guess, (30, 1_000), why);
    }
    let mut unloaded = 0;
    if tied && !quantisation.is_mlx() {
        unloaded = build.head_besides();
    }
    if family == Certainty::Guess && named.is_none() && !quantised && dtype.1 == 2 {
        // Files of such an age are often in 32 bits; engines load these in 16.
        unloaded = unloaded.saturating_add(super::tensors::total(&build.tensors));
    }
    if known.is_none() && !conf.is_known() {
        // The head is counted, and may not be there.
        let all = super::tensors::total(&build.tensors);
        let head = n.vocab.saturating_mul(n.hidden).saturating_mul(dtype.1);
        let less = super::tensors::mul_div(head, 1_000, all).min(1_000);
        let why = "whether its head shares the embedding is not stated: it is counted";
        build.doubt_by(Certainty::Close, (30 + less, 30), why);
    }
    if family == Certainty::Guess {
        build.doubt_experts();
        build.doubt_unread_experts(top);
    }
    if quantisation.is_mlx() {
        // It leaves out layers for speculative decoding, and often towers.
        build.mlx(top);
    } else {
        draft::add(&mut build, top);
        vision::add(&mut build, top);
    }
    if !quantisation.is_followed() {
        build.doubt_by(
            Certainty::Guess,
            (750, 300),
            "the names that its quantisation lists are too many or too involved to follow",
        );
    }
    // The index of M3 and of Qwen 4 has keys of its own, beside those of attention.
    let latent = !conf.is(&["minimax_m3_vl_text", qwen4::KIND])
        && build.caches.iter().any(|c| matches!(c.keeps, Keeps::Latent { .. }));
    Some(Blueprint {
        layout: Layout {
            layers: u32::try_from(build.n.layers).unwrap_or(u32::MAX),
            heads: if n.unstated { 0 } else { n.heads },
            kv_heads: if n.unstated { 0 } else { build.most_kv_heads() },
            latent,
            vocab: n.vocab,
            expanded: if latent { attention::expanded(&conf) } else { 0 },
            groups: build.groups,
            towers: vision::divided(top),
        },
        tensors: build.tensors,
        caches: build.caches,
        tied,
        certainty: build.certainty,
        spread: build.spread,
        unloaded: unloaded.saturating_add(build.besides),
        family,
        cache_spread: build.cache_spread,
        notes: build.notes,
    })
}

/// Families that only their own code knows, but which are built like one that is known.
const KNOWN_ELSEWHERE: [&str; 26] = [
    "grok1",
    "molmo",
    "qwen2_5_omni_text",
    "qwen3_omni_moe_text",
    "kimi_k2",
    "chatglm",
    "baichuan",
    "internlm",
    "internlm2",
    "qwen",
    "yi",
    "aquila",
    "exaone",
    "minimax_text_01",
    "minimax_m1",
    "nemotron-nas",
    "bailing_moe",
    "bailing_moe_v2",
    "orion",
    "xverse",
    "deepseek",
    "mimo",
    "minicpm",
    "internlm2_5",
    "hunyuan",
    "mpt_",
];

/// Whether the head shares the embedding where the file of a family of [`KNOWN_ELSEWHERE`] does not
/// say, as the family's own `configuration_*.py` has it; none where that is not known here.
fn tied_elsewhere(kind: &str) -> Option<bool> {
    match kind {
        "minicpm" => Some(true),
        "kimi_k2"
        | "chatglm"
        | "baichuan"
        | "internlm"
        | "internlm2"
        | "qwen"
        | "yi"
        | "aquila"
        | "minimax_text_01"
        | "minimax_m1"
        | "nemotron-nas"
        | "bailing_moe"
        | "bailing_moe_v2"
        | "orion"
        | "xverse"
        | "deepseek"
        | "mimo"
        | "molmo"
        | "grok1"
        | "qwen2_5_omni_text"
        | "qwen3_omni_moe_text" => Some(false),
        _ => None,
    }
}

/// Families published before their files stated a type: values are in 32 bits.
const IN_32_BITS: [&str; 23] = [
    "gpt2",
    "gpt_neo",
    "gptj",
    "bert",
    "roberta",
    "xlm-roberta",
    "distilbert",
    "electra",
    "albert",
    "longformer",
    "big_bird",
    "deberta",
    "deberta-v2",
    "t5",
    "mt5",
    "umt5",
    "bart",
    "mbart",
    "m2m_100",
    "marian",
    "pegasus",
    "blenderbot",
    "xglm",
];

/// Families whose defaults are known, but not all their parts.
const PARTLY: [&str; 5] = ["doge", "aria_text", "bailing_hybrid", "diffllama", "bitnet"];

/// Families with parts of which little is known, and which may be as large as the rest: layers that attend to images, and
/// towers whose layers grow wider towards their end.
const LARGER: [&str; 2] = ["idefics", "inkling_mm_model"];

impl Build<'_> {
    fn embedding(&mut self) {
        let n = self.n;
        // mllama's embedding has eight special tokens that its head has not; Molmo's has 128.
        let more = match self.conf.kind.as_str() {
            "mllama_text_model" => 8,
            "molmo" => self.conf.number(&["additional_vocab_size"]).unwrap_or(128),
            _ => 0,
        };
        let padded = if self.conf.is(&["chatglm"]) {
            self.conf.number(&["padded_vocab_size"]).unwrap_or(n.vocab)
        } else {
            n.vocab
        };
        let width = self.conf.number(&["word_embed_proj_dim"]).unwrap_or(n.hidden);
        self.table("model.embed_tokens", padded + more, width);
        if width != n.hidden {
            self.plain("model.project_in.weight", &[n.hidden, width], 1);
            self.plain("model.project_out.weight", &[width, n.hidden], 1);
        }
        let positions = self.conf.number(&["max_position_embeddings", "n_positions"]).unwrap_or(0);
        match self.conf.kind.as_str() {
            "gpt2" | "gpt_bigcode" | "gpt_neo" => {
                self.plain("model.wpe.weight", &[positions, n.hidden], 1);
            }
            "gemma3n_text" => self.gemma3n_embedding(),
            "gemma4_text" | "gemma4_unified_text" => self.gemma4_embedding(),
            "opt" | "biogpt" => {
                self.plain("model.embed_positions.weight", &[positions + 2, n.hidden], 1);
            }
            "bloom" => self.norm("model.word_embeddings_layernorm", n.hidden),
            "mpt"
                if self
                    .conf
                    .object("attn_config")
                    .is_some_and(|a| a.get("alibi") == Some(&Value::Bool(false))) =>
            {
                self.plain("model.wpe.weight", &[positions, n.hidden], 1);
            }
            _ => {}
        }
    }

    fn layer(&mut self, layer: u64) {
        let at = format!("model.layers.{layer}");
        let n = self.n;
        let conf = self.conf;
        match conf.kind.as_str() {
            "longcat_flash" => return self.longcat(&at, layer),
            "recurrent_gemma" => return self.griffin(&at, layer),
            "zamba" => {
                self.state(&at, layer, state::Mixer::Mamba1);
                return self.zamba(&at, layer);
            }
            "zamba2" => {
                self.state(&at, layer, state::Mixer::Mamba2);
                return self.zamba(&at, layer);
            }
            _ => {}
        }
        match state::kind(conf, layer) {
            state::Kind::Only(mixer) => {
                // Nemotron-H and Mamba: one mixer a layer, with one norm.
                self.norm(&format!("{at}.norm"), n.hidden);
                match mixer {
                    state::Mixer::Attention => self.attention(&at, "mixer", layer),
                    state::Mixer::Mlp => self.mlp(&at, "mixer", n.inner),
                    state::Mixer::Experts => self.experts(&at),
                    other => self.state(&at, layer, other),
                }
                return;
            }
            state::Kind::Decoder(mixer) => {
                match mixer {
                    state::Mixer::Attention => self.attention(&at, "self_attn", layer),
                    other => self.state(&at, layer, other),
                }
                if conf.is(&["falcon_h1"]) {
                    self.attention(&at, "self_attn", layer);
                }
            }
        }
        self.layer_norms(&at, layer);
        self.feed_forward(&at, layer);
        match conf.kind.as_str() {
            "kimi_linear" => self.attends_to_layers(&at, ["self_attention_res", "mlp_res"]),
            "gemma3n_text" => self.gemma3n_layer(&at, layer),
            "deepseek_v4" => {
                self.streams(&at);
                self.v4_table(&at);
            }
            deepseek_v41::KIND => {
                self.streams(&at);
                self.engram(&at, layer);
            }
            "hy_v4" | "glm5_next_text" => self.recent_streams(&at),
            "muse_spark_text" => self.muse_gates(&at),
            qwen4::KIND => {
                self.qwen4_streams(&at);
                self.qwen4_table(&at, layer);
            }
            _ => {}
        }
    }

    fn layer_norms(&mut self, at: &str, layer: u64) {
        let n = self.n;
        let names: &[&str] = match self.conf.kind.as_str() {
            "olmo" | "nanochat" | qwen4::KIND => &[],
            "cohere" | "cohere2" | "cohere2_moe" | "phi" | "gptj" => &["input_layernorm"],
            "gemma2"
            | "gemma3_text"
            | "gemma3n_text"
            | "gemma4_text"
            | "gemma4_unified_text"
            | "muse_glimmer_text"
            | "afmoe" => &[
                "input_layernorm",
                "post_attention_layernorm",
                "pre_feedforward_layernorm",
                "post_feedforward_layernorm",
            ],
            "muse_spark_text" => {
                &["input_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"]
            }
            "arctic" if mlp::has_residual(self.conf, layer) => {
                &["input_layernorm", "post_attention_layernorm", "residual_layernorm"]
            }
            "grok1" => &["pre_attn_norm", "post_attn_norm", "pre_moe_norm", "post_moe_norm"],
            // Files have the third in every layer; engines use it where there are experts (vLLM `AXK1.py`).
            "axk1" => &["input_layernorm", "post_attention_layernorm", "post_mlp_layernorm"],
            "hyperclovax" if self.conf.flag("use_post_norm") != Some(false) => {
                &["input_layernorm", "post_attention_layernorm", "post_norm1", "post_norm2"]
            }
            "glm4" | "glm4v_text" | "kolibri1" => &[
                "input_layernorm",
                "post_attention_layernorm",
                "post_self_attn_layernorm",
                "post_mlp_layernorm",
            ],
            "falcon" => match (
                self.conf.on("new_decoder_architecture"),
                self.conf.stated(&["num_ln_in_parallel_attn"]),
                self.conf.flag("parallel_attn") == Some(false),
            ) {
                (true, None | Some(2), _) => &["ln_attn", "ln_mlp"],
                (false, _, true) => &["input_layernorm", "post_attention_layernorm"],
                _ => &["input_layernorm"],
            },
            "nemotron-nas" => {
                let block = state::nas_block(self.conf, layer);
                return for name in block.norms() {
                    self.norm(&format!("{at}.{name}"), n.hidden);
                };
            }
            _ => &["input_layernorm", "post_attention_layernorm"],
        };
        let parallel = self.conf.on("use_parallel_residual") && self.conf.is(&["stablelm"]);
        for name in names.iter().take(if parallel { 1 } else { names.len() }) {
            self.norm(&format!("{at}.{name}"), n.hidden);
        }
    }

    /// Bytes of a head that is the embedding, which files may hold all the same.
    fn head_besides(&mut self) -> u64 {
        let weight = |name: &str| name.strip_prefix("lm_head.").is_some_and(|part| part != "bias");
        if self.tensors.iter().any(|t| weight(&t.name)) {
            return 0;
        }
        let why = "its head is the embedding: some files hold it all the same, which `config.json` does not tell";
        self.notes.push(why.to_owned());
        self.n.vocab.saturating_mul(self.n.hidden).saturating_mul(self.dtype.1)
    }

    /// What follows the last layer. Whether the model has a head is for `ending`.
    fn end(&mut self, tied: bool, ending: Ending) {
        let n = self.n;
        let before = self.conf.flag("do_layer_norm_before") != Some(false);
        let removed = self.conf.is(&["opt"]) && self.conf.on("_remove_final_layer_norm");
        if !self.conf.is(&["olmo", "nanochat", "hrm_text", qwen4::KIND]) && before && !removed {
            self.norm("model.norm", n.hidden);
        }
        if self.conf.is(&["deepseek_v4"]) {
            self.stream_end("model");
        }
        if self.conf.is(&["hy_v4"]) {
            self.recent_stream_end();
        }
        if self.conf.is(&[qwen4::KIND]) {
            self.qwen4_end();
        }
        if self.conf.is(&["kimi_linear"]) {
            self.attends_to_layers("model", ["output_attn_res"]);
        }
        if ending != Ending::Words {
            return self.scores(ending);
        }
        // Published checkpoints of Falcon hold the head, whose weights are the embedding's; engines
        // leave it aside.
        let held = self.conf.is(&["falcon"]) && self.conf.given("tie_word_embeddings").is_none();
        let bias = self.conf.is(&["phi", "gptj"]) || self.conf.on("lm_head_bias");
        if !tied || held {
            self.linear("lm_head", n.vocab, n.hidden, bias);
        } else if bias {
            // What is shared is the weight.
            self.plain("lm_head.bias", &[n.vocab], 1);
        }
    }
}

impl Build<'_> {
    /// What MLX stores besides or otherwise.
    fn mlx(&mut self, top: &Map<String, Value>) {
        let before = super::tensors::total(&self.tensors);
        vision::add(self, top);
        let towers = super::tensors::total(&self.tensors) - before;
        if towers > 0 {
            // A converter for text alone leaves the tower out; one for images leaves it as it is.
            let all = before + towers;
            let less = super::tensors::mul_div(towers, 1_000, all).min(1_000);
            let why = "whether MLX kept its tower is not known: it is counted";
            self.doubt_by(Certainty::Close, (less, 0), why);
        }
        // Published totals bear out gated delta nets; others are not checked.
        let known = ["qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"];
        let other = |c: &LayerCache| !matches!(c.keeps, Keeps::Attention { .. });
        if self.caches.iter().any(other) && !self.conf.is(&known) {
            let why = "how MLX divides its states or latent vectors is estimated";
            self.doubt_by(Certainty::Close, (20, 20), why);
        }
    }
}

#[cfg(test)]
mod flags_tests;
