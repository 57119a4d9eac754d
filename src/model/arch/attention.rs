//! Attention: grouped queries, latent vectors, windows.

use serde_json::Value;

use super::{Build, Certainty, Keeps, conf::Conf, conf::whole, deepseek_v41, gemma4, qwen4, state};
use crate::model::quant::CacheScales;

/// Biases of the projections: of queries, keys and values, and of the output.
fn biases(conf: &Conf<'_>) -> (bool, bool) {
    let on = |key: &str| conf.on(key);
    match conf.kind.as_str() {
        "qwen2" | "qwen2_vl_text" | "qwen2_5_vl_text" | "qwen" | "qwen2_5_omni_text" => {
            (true, false)
        }
        "qwen2_moe" => (conf.flag("qkv_bias") != Some(false), false),
        "phi" | "phi3small" | "gpt_bigcode" | "gpt2" | "bloom" | "persimmon" | "xglm"
        | "biogpt" => (true, true),
        "starcoder2" => {
            (conf.flag("use_bias") != Some(false), conf.flag("use_bias") != Some(false))
        }
        "opt" => (conf.flag("enable_bias") != Some(false), conf.flag("enable_bias") != Some(false)),
        "gpt_neox" => {
            (conf.flag("attention_bias") != Some(false), conf.flag("attention_bias") != Some(false))
        }
        "gpt_neo" => (false, true),
        "falcon" | "internlm" => (on("bias"), on("bias")),
        "glm4v_text" => (conf.flag("attention_bias") != Some(false), false),
        "glm" | "glm4" | "glm4_moe" | "glm4v_moe_text" | "glm46v" => (on("attention_bias"), false),
        "seed_oss" => (on("attention_bias"), on("attention_out_bias")),
        "stablelm" => (on("use_qkv_bias"), false),
        "chatglm" => (on("add_qkv_bias") || on("add_bias_linear"), on("add_bias_linear")),
        "internlm3" => (on("qkv_bias"), on("bias")),
        "bailing_moe" | "bailing_moe_v2" | "bailing_hybrid" => (on("use_qkv_bias"), on("use_bias")),
        "mpt" => (on("use_bias"), on("use_bias")),
        // `modeling_helium.py`: the output has none; `modeling_nemotron_h.py` takes no notice of the flag.
        "helium" => (on("attention_bias"), false),
        "nemotron_h" => (false, false),
        "gpt_oss" => {
            (conf.flag("attention_bias") != Some(false), conf.flag("attention_bias") != Some(false))
        }
        "mimo" => (on("attention_bias"), false),
        "ernie4_5" | "ernie4_5_moe" | "ernie4_5_vl_moe_text" => (on("use_bias"), on("use_bias")),
        _ => {
            let all = on("attention_bias") || on("use_bias") || on("bias");
            (all || on("qkv_bias") || on("use_qkv_bias"), all)
        }
    }
}

/// Norms of queries and keys.
enum QueryNorm {
    None,
    /// Over a head, shared by all.
    Head,
    /// Over all heads together.
    Full,
    /// Over a head, with a bias.
    HeadWithBias,
}

fn query_norm(conf: &Conf<'_>) -> QueryNorm {
    match conf.kind.as_str() {
        "qwen3"
        | "qwen3_moe"
        | "qwen3_next"
        | "qwen3_5_text"
        | "qwen3_5_moe_text"
        | qwen4::KIND
        | "qwen3_vl_text"
        | "qwen3_vl_moe_text"
        | "qwen3_omni_moe_text"
        | "gemma3_text"
        | "gemma3n_text"
        | "gemma4_text"
        | "gemma4_unified_text"
        | "apertus"
        | "exaone4"
        | "exaone_moe"
        | "hy_v3"
        | "lfm2"
        | "lfm2_moe"
        | "dots1"
        | "afmoe"
        | "step3p7"
        | "step3p5"
        | "flint"
        | "kolibri1"
        | "laguna"
        | "mellum"
        | "minimax_m3_vl_text" => QueryNorm::Head,
        "hunyuan_v1_dense" | "hunyuan_v1_moe" | "hunyuan" => {
            if conf.flag("use_qk_norm") == Some(false) { QueryNorm::None } else { QueryNorm::Head }
        }
        "olmo2" | "olmo3" | "olmoe" | "flex_olmo" | "olmo_hybrid" => QueryNorm::Full,
        "minimax_m2" if conf.flag("use_qk_norm") != Some(false) => QueryNorm::Full,
        "llama4_text" => QueryNorm::None,
        "cohere" if conf.on("use_qk_norm") => QueryNorm::Full,
        "molmo" if conf.on("attention_layer_norm") => QueryNorm::Full,
        "stablelm" if conf.on("qk_layernorm") => QueryNorm::Full,
        "phi" if conf.on("qk_layernorm") => QueryNorm::HeadWithBias,
        "persimmon" if conf.flag("qk_layernorm") != Some(false) => QueryNorm::HeadWithBias,
        _ if conf.on("use_qk_norm") || conf.on("qk_norm") => QueryNorm::Head,
        _ => QueryNorm::None,
    }
}

/// The window of a layer's attention; none: all tokens.
fn window(conf: &Conf<'_>, layer: u64) -> Option<u32> {
    let size =
        |key: &str| conf.number(&[key]).and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0);
    if conf.is(&gemma4::KINDS) {
        let layers = conf.number(&["num_hidden_layers"]).unwrap_or(0);
        return size("sliding_window").filter(|_| gemma4::slides(conf, layer, layers));
    }
    if let Some(types) = conf.list("layer_types") {
        let kind = usize::try_from(layer).ok().and_then(|i| types.get(i)).and_then(Value::as_str);
        return match kind {
            Some("sliding_attention") => size("sliding_window"),
            Some("chunked_attention") => size("attention_chunk_size"),
            _ => None,
        };
    }
    let every = conf.stated(&["sliding_window_pattern", "_sliding_window_pattern"]);
    match conf.kind.as_str() {
        "gemma2" => size("sliding_window").filter(|_| layer.is_multiple_of(2)),
        "gemma3_text" => size("sliding_window")
            .filter(|_| !(layer + 1).is_multiple_of(every.unwrap_or(6).max(1))),
        "gemma3n_text" => size("sliding_window")
            .filter(|_| !(layer + 1).is_multiple_of(every.unwrap_or(5).max(1))),
        "cohere2" => size("sliding_window")
            .filter(|_| !(layer + 1).is_multiple_of(every.unwrap_or(4).max(1))),
        "olmo3" | "exaone4" | "exaone_moe" => size("sliding_window")
            .filter(|_| !(layer + 1).is_multiple_of(every.unwrap_or(4).max(1))),
        "afmoe" => {
            let every = conf.number(&["global_attn_every_n_layers"]).unwrap_or(4).max(1);
            size("sliding_window").filter(|_| !(layer + 1).is_multiple_of(every))
        }
        "gpt_oss" => size("sliding_window").filter(|_| layer.is_multiple_of(2)),
        "llama4_text" => {
            // Every fourth layer attends to everything (`no_rope_layers`).
            let full = match conf.numbers("no_rope_layers") {
                Some(list) if !list.is_empty() => {
                    usize::try_from(layer).ok().and_then(|i| list.get(i)) == Some(&0)
                }
                _ => (layer + 1).is_multiple_of(4),
            };
            size("attention_chunk_size").filter(|_| !full)
        }
        "mimo_v2_flash" => None,
        // Qwen states a window and `use_sliding_window: false`.
        _ if conf.flag("use_sliding_window") == Some(true) => {
            let from = conf.number(&["max_window_layers"]).unwrap_or(0);
            size("sliding_window").filter(|_| layer >= from)
        }
        _ if conf.given("use_sliding_window").is_some() || conf.kind.starts_with("qwen") => None,
        // All layers have it.
        _ => {
            conf.stated(&["sliding_window"]).and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0)
        }
    }
}

/// Whether a layer attends to the keys and values of one before it (Hunyuan Large, vLLM `hunyuan_v1.py`,
/// `_get_cla_factor`).
fn shares_keys(conf: &Conf<'_>, layer: u64) -> bool {
    let every = conf.number(&["cla_share_factor"]).filter(|_| conf.on("use_cla")).unwrap_or(1);
    conf.is(&["hunyuan", "hunyuan_v1_moe", "hunyuan_v1_dense"])
        && !layer.is_multiple_of(every.max(1))
}

/// Whether a layer has an index of tokens of its own: some of GLM 5.2 take what the one before them found
/// (`configuration_glm_moe_dsa.py`, `indexer_types`; vLLM `deepseek_v2.py`, `_skip_topk`). Layers for speculation
/// always have one.
fn has_index(conf: &Conf<'_>, layer: u64) -> bool {
    let get = |key: &str, usual: u64| conf.stated(&[key]).unwrap_or(usual);
    let at = usize::try_from(layer).unwrap_or(usize::MAX);
    if layer >= conf.number(&["num_hidden_layers"]).unwrap_or(u64::MAX) {
        return true;
    }
    if let Some(kinds) = conf.list("indexer_types") {
        return kinds.get(at).and_then(Value::as_str) != Some("shared");
    }
    if let Some(pattern) = conf.text_of("index_topk_pattern") {
        return pattern.as_bytes().get(at) != Some(&b'S');
    }
    let past = (layer + 1).saturating_sub(get("index_skip_topk_offset", 2));
    past.is_multiple_of(get("index_topk_freq", 1).max(1))
}

/// Families whose latent vectors vLLM keeps as they are (`config/model.py`, `is_deepseek_mla`), `mistral4` by
/// the name of `DeepSeek`'s that vLLM gives it, and Mistral's own format, which has no name for it. Of all others
/// it makes keys and values of every head, and keeps those.
const LATENT_IN_VLLM: [&str; 17] = [
    "",
    "axk1",
    "bailing_hybrid",
    "deepseek_v2",
    "deepseek_v3",
    "deepseek_v32",
    "deepseek_v4",
    deepseek_v41::KIND,
    "glm4_moe_lite",
    "glm5_next_text",
    "glm_moe_dsa",
    "hy_v4",
    "kimi_k2",
    "kimi_linear",
    "longcat_flash",
    "mistral4",
    "pangu_ultra_moe",
];

/// Values of a head's key where vLLM keeps keys and values of every head instead of the latent vector, values
/// padded to the length of keys (`models/minicpm3.py`); 0 where it keeps the vector.
pub(super) fn expanded(conf: &Conf<'_>) -> u32 {
    if LATENT_IN_VLLM.contains(&conf.kind.to_ascii_lowercase().as_str()) {
        return 0;
    }
    let get = |key: &str, usual: u64| conf.number(&[key]).unwrap_or(usual);
    u32::try_from(get("qk_nope_head_dim", 128) + get("qk_rope_head_dim", 64)).unwrap_or(0)
}

impl Build<'_> {
    /// One layer's attention, with what it keeps.
    pub(super) fn attention(&mut self, at: &str, name: &str, layer: u64) {
        let conf = self.conf;
        if conf.is(&["deepseek_v4", deepseek_v41::KIND]) {
            return self.v4_attention(&format!("{at}.{name}"), layer);
        }
        if conf.number(&["kv_lora_rank"]).is_some_and(|n| n > 0) {
            return self.latent(&format!("{at}.{name}"), layer, true);
        }
        if conf.is(&["mllama_text_model"])
            && conf.numbers("cross_attention_layers").is_some_and(|l| l.contains(&layer))
        {
            return self.cross(at, layer);
        }
        if conf.is(&["step3_text"]) {
            return self.shared_query(&format!("{at}.{name}"), layer);
        }
        let n = self.n;
        let (mut heads, mut kv_heads) = (n.heads, n.kv_heads);
        let (mut key, mut value) = (n.head_dim, n.value_dim);
        if conf.is(&["nemotron-nas"]) {
            let Some(group) = state::nas_block(conf, layer).heads_in_group else { return };
            kv_heads = n.heads.checked_div(group).unwrap_or(n.heads);
        }
        let mut keys_alone = false;
        if conf.is(&gemma4::KINDS) {
            let heads = self.gemma4_heads(layer);
            (kv_heads, key, value) = (heads.shared, heads.width, heads.width);
            keys_alone = heads.keys_alone;
        }
        let window = if conf.is(&["mimo_v2_flash"]) {
            let listed = conf.numbers("hybrid_layer_pattern");
            let at = usize::try_from(layer).unwrap_or(usize::MAX);
            let sliding = match (&listed, conf.list("layer_types")) {
                (Some(list), _) => list.get(at) == Some(&1),
                (None, Some(list)) => {
                    list.get(at).and_then(Value::as_str) == Some("sliding_attention")
                }
                (None, None) => !layer.is_multiple_of(6),
            };
            if sliding {
                kv_heads = conf.number(&["swa_num_key_value_heads"]).unwrap_or(2 * kv_heads);
                key = conf.number(&["swa_head_dim"]).unwrap_or(key);
                value = conf.number(&["swa_v_head_dim"]).unwrap_or(value);
            }
            conf.number(&["sliding_window"]).and_then(|w| u32::try_from(w).ok()).filter(|_| sliding)
        } else {
            window(conf, layer)
        };
        if conf.is(&["step3p5"]) && window.is_some() {
            // Layers with a window have heads of their own.
            let other =
                |key: &str| conf.object("attention_other_setting")?.get(key).and_then(whole);
            heads = other("num_attention_heads")
                .or_else(|| conf.number(&["num_sliding_attention_heads"]))
                .map_or(heads, |n| n.min(1 << 14));
            kv_heads = other("num_attention_groups").map_or(kv_heads, |n| n.min(1 << 14));
            key = other("head_dim").map_or(key, |n| n.min(1 << 14));
            value = key;
        }
        if conf.is(&["laguna"]) {
            let at = usize::try_from(layer).unwrap_or(usize::MAX);
            let listed = conf.numbers("num_attention_heads_per_layer");
            heads = listed.and_then(|l| l.get(at).copied()).map_or(heads, |n| n.min(1 << 14));
        }
        let shares = shares_keys(conf, layer);
        let (bias, out_bias) = biases(conf);
        let at = format!("{at}.{name}");
        // Queries of Qwen3-Next, Qwen3.5 and Qwen 4 come with a gate of the same size.
        let gated = conf.is(&["qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", qwen4::KIND])
            && conf.flag("attn_output_gate") != Some(false);
        let query = heads * key * if gated { 2 } else { 1 };
        match conf.kind.as_str() {
            "phi3" | "phi3small" | "falcon" | "gpt_neox" | "chatglm" | "gpt_bigcode" | "gpt2"
            | "bloom" | "mpt" | "dbrx" | "internlm2" | "persimmon" | "baichuan" | "qwen" => {
                let rows = query + kv_heads * (key + value);
                self.linear(&format!("{at}.qkv_proj"), rows, n.hidden, bias);
            }
            _ => {
                self.linear(&format!("{at}.q_proj"), query, n.hidden, bias);
                if !shares {
                    self.linear(&format!("{at}.k_proj"), kv_heads * key, n.hidden, bias);
                }
                if !keys_alone && !shares {
                    self.linear(&format!("{at}.v_proj"), kv_heads * value, n.hidden, bias);
                }
            }
        }
        self.linear(&format!("{at}.o_proj"), n.hidden, heads * value, out_bias);
        match query_norm(conf) {
            QueryNorm::None => {}
            QueryNorm::Head => {
                self.plain(&format!("{at}.q_norm.weight"), &[key], 1);
                self.plain(&format!("{at}.k_norm.weight"), &[key], 1);
            }
            QueryNorm::Full => {
                self.plain(&format!("{at}.q_norm.weight"), &[n.heads * key], 1);
                self.plain(&format!("{at}.k_norm.weight"), &[kv_heads * key], 1);
            }
            QueryNorm::HeadWithBias => {
                for part in ["q_norm.weight", "q_norm.bias", "k_norm.weight", "k_norm.bias"] {
                    self.plain(&format!("{at}.{part}"), &[key], 1);
                }
            }
        }
        match conf.kind.as_str() {
            "gpt_oss" | "granite_swa" | "granitemoe_swa" | "flint" => {
                self.plain(&format!("{at}.sinks"), &[n.heads], 1);
            }
            // A gate of each head, or of each value.
            "laguna" => {
                let listed =
                    conf.list("gating_types").and_then(|l| l.get(usize::try_from(layer).ok()?));
                let kind = listed.and_then(Value::as_str).or_else(|| conf.text_of("gating"));
                let on = if listed.is_none() { conf.flag("gating") } else { None };
                if on != Some(false) && kind != Some("none") {
                    let each = on == Some(true) || kind == Some("per-head");
                    let rows = if each { heads } else { heads * key };
                    self.linear(&format!("{at}.g_proj"), rows, n.hidden, false);
                }
            }
            "mimo_v2_flash" if window.is_some() => {
                self.plain(&format!("{at}.sinks"), &[n.heads], 1);
            }
            "afmoe" | "muse_glimmer_text" | "muse_spark_text" => {
                self.linear(&format!("{at}.gate_proj"), query, n.hidden, false);
            }
            // Its files hold the frequencies that others make anew (`modeling_openpangu_dense.py`).
            "PanguEmbedded" => {
                self.typed(&format!("{at}.rotary_emb.inv_freq"), &[key / 2], 1, ("F32", 4));
            }
            "step3p7" | "step3p5" => self.linear(&format!("{at}.g_proj"), heads, n.hidden, false),
            _ => {}
        }
        for part in ["k", "v"] {
            match self.quantisation.cache_scales {
                CacheScales::Projections if self.quantisation.covers(&format!("{at}.k_proj")) => {
                    let name = format!("{at}.{part}_proj.{part}_scale");
                    self.typed(&name, &[1], 1, ("F32", 4));
                }
                CacheScales::Attention => self.plain(&format!("{at}.{part}_scale"), &[1], 1),
                CacheScales::Heads => {
                    self.plain(&format!("{at}.{part}_scale"), &[kv_heads, 1, 1], 1);
                }
                _ => {}
            }
        }
        if shares {
            return;
        }
        if conf.is(&["minimax_m3_vl_text"]) {
            self.block_index(&at, layer);
        }
        if conf.is(&[qwen4::KIND]) {
            self.qwen4_index(&at, layer);
        }
        let small = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        let keeps = Keeps::Attention {
            kv_heads: small(kv_heads),
            key: small(key),
            value: small(value),
            window,
        };
        self.keeps(layer, keeps);
    }

    /// `MiniMax` M3: an index tells which blocks of tokens a layer looks at, by a key of each token (vLLM
    /// `minimax_m3.py`). It is whole on every rank, and so are its keys.
    fn block_index(&mut self, at: &str, layer: u64) {
        let (conf, hidden) = (self.conf, self.n.hidden);
        let sparse = conf.object("sparse_attention_config");
        let number = usize::try_from(layer).unwrap_or(usize::MAX);
        let asked = sparse.and_then(|s| s.get("sparse_attention_freq")).and_then(Value::as_array);
        let here = match (asked, conf.list("layer_types")) {
            (Some(list), _) => list.get(number).and_then(whole) == Some(1),
            (None, Some(kinds)) => {
                kinds.get(number).and_then(Value::as_str) == Some("minimax_m3_sparse")
            }
            (None, None) => false,
        };
        if !here {
            return;
        }
        let inside = |key: &str| sparse.and_then(|s| s.get(key)).and_then(whole);
        let heads = inside("sparse_num_index_heads").or_else(|| conf.number(&["index_n_heads"]));
        let width = inside("sparse_index_dim").or_else(|| conf.number(&["index_head_dim"]));
        let (heads, width) = (heads.unwrap_or(4).min(1 << 14), width.unwrap_or(128).min(1 << 14));
        self.linear(&format!("{at}.indexer.q_proj"), heads * width, hidden, false);
        self.linear(&format!("{at}.indexer.k_proj"), width, hidden, false);
        for norm in ["q_norm", "k_norm"] {
            self.plain(&format!("{at}.indexer.{norm}.weight"), &[width], 1);
        }
        let width = u32::try_from(width).unwrap_or(u32::MAX);
        self.keeps(layer, Keeps::Latent { width, rotary: 0, index: 0, sparse: false });
    }

    /// Step 3: the queries of all heads come from one short vector, which every rank makes for itself, as
    /// it does with the one key and value (vLLM `step3_text.py`).
    fn shared_query(&mut self, at: &str, layer: u64) {
        let n = self.n;
        let short = self.conf.number(&["share_q_dim"]).unwrap_or(n.head_dim);
        // The name of what DeepSeek has in its place, for that is divided alike.
        self.linear(&format!("{at}.q_a_proj"), short, n.hidden, false);
        self.linear(&format!("{at}.k_proj"), n.kv_heads * n.head_dim, n.hidden, false);
        self.linear(&format!("{at}.v_proj"), n.kv_heads * n.head_dim, n.hidden, false);
        self.plain(&format!("{at}.inter_norm.weight"), &[short], 1);
        self.linear(&format!("{at}.wq"), n.heads * n.head_dim, short, false);
        self.linear(&format!("{at}.o_proj"), n.hidden, n.heads * n.head_dim, false);
        let small = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        let (kv_heads, size) = (small(n.kv_heads), small(n.head_dim));
        self.keeps(layer, Keeps::Attention { kv_heads, key: size, value: size, window: None });
    }

    /// Multi-head latent attention (DeepSeek-V2 and what follows it).
    pub(super) fn latent(&mut self, at: &str, layer: u64, keep: bool) {
        let conf = self.conf;
        let n = self.n;
        let get = |key: &str, usual: u64| conf.number(&[key]).unwrap_or(usual);
        let (rank, rotary) = (get("kv_lora_rank", 512), get("qk_rope_head_dim", 64));
        let (plain, value) = (get("qk_nope_head_dim", 128), get("v_head_dim", 128));
        let bias = conf.on("attention_bias");
        match conf.number(&["q_lora_rank"]).filter(|n| *n > 0) {
            Some(query) => {
                self.linear(&format!("{at}.q_a_proj"), query, n.hidden, bias);
                self.plain(&format!("{at}.q_a_layernorm.weight"), &[query], 1);
                self.linear(&format!("{at}.q_b_proj"), n.heads * (plain + rotary), query, false);
            }
            None => {
                self.linear(&format!("{at}.q_proj"), n.heads * (plain + rotary), n.hidden, false);
            }
        }
        self.linear(&format!("{at}.kv_a_proj_with_mqa"), rank + rotary, n.hidden, bias);
        self.plain(&format!("{at}.kv_a_layernorm.weight"), &[rank], 1);
        self.linear(&format!("{at}.kv_b_proj"), n.heads * (plain + value), rank, false);
        self.linear(&format!("{at}.o_proj"), n.hidden, n.heads * value, bias);
        if conf.on("mla_use_output_gate") {
            self.linear(&format!("{at}.g_proj"), n.heads * value, n.hidden, false);
        }
        if conf.is(&["hy_v4"]) {
            self.gate_and_sinks(at, n.heads * value);
        }
        let mut index = 0;
        if let Some((heads, dim)) = conf
            .number(&["index_n_heads"])
            .zip(conf.number(&["index_head_dim"]))
            .filter(|_| has_index(conf, layer))
        {
            let query = get("q_lora_rank", 1536);
            self.linear(&format!("{at}.indexer.wq_b"), heads * dim, query, false);
            self.linear(&format!("{at}.indexer.wk"), dim, n.hidden, false);
            self.plain(&format!("{at}.indexer.k_norm.weight"), &[dim], 1);
            self.plain(&format!("{at}.indexer.k_norm.bias"), &[dim], 1);
            self.plain(&format!("{at}.indexer.weights_proj.weight"), &[heads, n.hidden], 1);
            // vLLM `DeepseekV32IndexerCache`: 8-bit keys and a 32-bit scale of each 128.
            let pooled = self.pooled_index(&format!("{at}.indexer"), dim);
            index = (dim + dim.div_ceil(128) * 4).div_ceil(pooled);
        }
        let small = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        if keep {
            let (width, rotary, index) = (small(rank + rotary), small(rotary), small(index));
            let sparse = conf.number(&["index_head_dim"]).is_some();
            self.keeps(layer, Keeps::Latent { width, rotary, index, sparse });
        }
    }

    /// A layer of Llama 3.2 Vision that attends to the image.
    fn cross(&mut self, at: &str, layer: u64) {
        let n = self.n;
        let kv = n.kv_heads * n.head_dim;
        self.linear(&format!("{at}.cross_attn.q_proj"), n.heads * n.head_dim, n.hidden, false);
        self.linear(&format!("{at}.cross_attn.k_proj"), kv, n.hidden, false);
        self.linear(&format!("{at}.cross_attn.v_proj"), kv, n.hidden, false);
        self.linear(&format!("{at}.cross_attn.o_proj"), n.hidden, n.heads * n.head_dim, false);
        self.plain(&format!("{at}.cross_attn.q_norm.weight"), &[n.head_dim], 1);
        self.plain(&format!("{at}.cross_attn.k_norm.weight"), &[n.head_dim], 1);
        self.plain(&format!("{at}.cross_attn_attn_gate"), &[1], 1);
        self.plain(&format!("{at}.cross_attn_mlp_gate"), &[1], 1);
        let small = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        let (key, value) = (small(n.head_dim), small(n.head_dim));
        // vLLM gives these layers a cache of the same size.
        self.keeps(
            layer,
            Keeps::Attention { kv_heads: small(n.kv_heads), key, value, window: None },
        );
        if self.n.heads == 0 {
            self.doubt(Certainty::Guess, "its attention heads are not stated");
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use crate::model::cache::CacheBits;
    use crate::model::estimate::tests::{facts, rules};
    use crate::model::estimate::{Setup, predict};

    /// Hunyuan Large: about 389 billion values; every second layer has keys and values. A13B states the number
    /// as well, and that it does not count.
    #[test]
    fn layers_may_share_keys_and_values() {
        let large = |more: &str| {
            facts(&format!(
                r#"{{"architectures":["HunYuanForCausalLM"],"model_type":"hunyuan","hidden_size":6400,
                "intermediate_size":18304,"num_hidden_layers":64,"num_attention_heads":80,"num_key_value_heads":8,
                "num_experts":16,"num_shared_expert":1,"moe_topk":1,"use_qk_norm":true,"vocab_size":128512,
                "tie_word_embeddings":true,"torch_dtype":"bfloat16","cla_share_factor":2{more}}}"#
            ))
        };
        let (shared, whole) = (large(r#","use_cla":true"#), large(r#","use_cla":false"#));
        let keys = 32 * 2 * 6_400 * 8 * 80 * 2;
        assert_eq!(whole.weight_bytes.0 - shared.weight_bytes.0, keys);
        assert!(shared.weight_bytes.0.abs_diff(2 * 389_000_000_000) < 1_000_000_000);
        let kept =
            |facts| predict(facts, &Setup::new(rules("vllm"))).ranks[0].cache_per_token.value;
        assert_eq!(kept(&whole), 64 * 2 * 8 * 80 * 2);
        assert_eq!(kept(&shared), kept(&whole) / 2);
    }

    /// GLM 5.2: a layer that takes what the one before it found has no index, and keeps none. What an index takes:
    /// queries of 2048 for 32 heads of 128, a key of 128 with its norm, and weights of the heads.
    #[test]
    fn layers_may_share_an_index() {
        let glm = |more: &str| {
            facts(&format!(
                r#"{{"architectures":["GlmMoeDsaForCausalLM"],"model_type":"glm_moe_dsa","dtype":"bfloat16",
                "num_hidden_layers":8,"first_k_dense_replace":3,"index_head_dim":128,"index_n_heads":32{more}}}"#
            ))
        };
        let all = glm("");
        let index = 2 * (32 * 128 * 2_048 + 128 * 6_144 + 2 * 128 + 32 * 6_144);
        let listed =
            r#","indexer_types":["full","full","full","shared","shared","shared","full","shared"]"#;
        let derived =
            r#","index_topk_freq":4,"index_skip_topk_offset":3,"index_topk_pattern":null"#;
        let lettered = r#","index_topk_pattern":"FFFSSSFS""#;
        for more in [listed, derived, lettered] {
            let some = glm(more);
            assert_eq!(all.weight_bytes.0 - some.weight_bytes.0, 4 * index, "{more}");
            let kept =
                |facts| predict(facts, &Setup::new(rules("vllm"))).ranks[0].cache_per_token.value;
            assert_eq!(kept(&all) - kept(&some), 4 * 132, "{more}");
            // In eight bits all of them keep the vectors of sparse attention: 512 bytes, 4 scales, 64 values of 16 bits.
            let eight = Setup { cache: CacheBits::named("fp8"), ..Setup::new(rules("sglang")) };
            let kept = predict(&some, &eight).ranks[0].cache_per_token.value;
            assert_eq!(kept, 8 * (512 + 16 + 128) + 4 * 132);
        }
    }

    /// Kimi K3 has about 2.8 trillion values, and files of 1.56 TB (`InferenceX` #2351).
    #[test]
    fn kimi_k3_is_as_large_as_its_files() {
        let full: Vec<u64> = (1..=23).map(|n| 4 * n).chain([93]).collect();
        let delta: Vec<u64> = (1..=93).filter(|n| !full.contains(n)).collect();
        let facts = facts(&format!(
            r#"{{"architectures":["KimiK3ForConditionalGeneration"],"model_type":"kimi_k3","dtype":"bfloat16",
            "text_config":{{"model_type":"kimi_linear","hidden_size":7168,"num_hidden_layers":93,"num_attention_heads":96,
            "num_key_value_heads":96,"intermediate_size":33792,"first_k_dense_replace":1,"kv_lora_rank":512,
            "q_lora_rank":1536,"qk_nope_head_dim":128,"qk_rope_head_dim":64,"v_head_dim":128,"num_experts":896,
            "num_experts_per_token":16,"num_shared_experts":2,"moe_intermediate_size":3072,"topk_method":"noaux_tc",
            "routed_expert_hidden_size":3584,"latent_moe_use_norm":true,"mla_use_output_gate":true,
            "attn_res_block_size":12,"vocab_size":163840,"linear_attn_config":{{"full_attn_layers":{full:?},
            "kda_layers":{delta:?},"head_dim":128,"num_heads":96,"short_conv_kernel_size":4,
            "use_full_rank_gate":true}}}},"vision_config":{{"vt_hidden_size":1024}},"quantization_config":{{
            "quant_method":"compressed-tensors","format":"mxfp4-pack-quantized","ignore":["re:.*self_attn.*",
            "re:.*shared_experts.*","re:.*mlp\\.(gate|up|gate_up|down)_proj.*","re:.*lm_head.*","re:.*vision_tower.*",
            "re:.*mm_projector.*"],"config_groups":{{"group_0":{{"format":"mxfp4-pack-quantized","targets":["Linear"],
            "weights":{{"num_bits":4,"type":"float","strategy":"group","group_size":32,"symmetric":true,
            "scale_dtype":"torch.uint8"}}}}}}}}}}"#
        ));
        // Of 92 layers: four bits a value, and an exponent of 32.
        let experts = 92 * 896 * 3 * (3_072 * 3_584 / 2 + 3_072 * 3_584 / 32);
        assert!(facts.weight_bytes.0 > experts);
        assert!(facts.weight_bytes.0.abs_diff(1_560_000_000_000) < 5_000_000_000);
        let held = |tensor| {
            predict(&facts, &Setup { tensor, ..Setup::new(rules("vllm")) }).ranks[0].weights.value
        };
        // Every rank makes the shorter vector, and chooses the experts.
        let whole = 92 * 2 * 7_168 * (2 * 3_584 + 896);
        let kept = held(8) - whole - (facts.weight_bytes.0 - whole) / 8;
        assert!(kept < 1 << 30, "{kept}");
    }
}
