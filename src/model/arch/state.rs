//! Layers that keep a state of constant size: Mamba, gated delta networks, linear attention, short
//! convolutions; and which layer of a hybrid is what.

use serde_json::Value;

use super::{Build, Certainty, Keeps, conf::Conf, conf::MAX_LIST, conf::whole, qwen4};

/// What mixes tokens in a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mixer {
    Attention,
    Mamba1,
    Mamba2,
    /// Gated delta network: Qwen3-Next, Qwen3.5.
    Delta,
    /// Kimi's delta attention.
    KimiDelta,
    /// Lightning attention: `MiniMax`.
    Lightning,
    /// A short convolution: LFM2.
    Convolution,
    /// No mixer: a feed-forward layer of its own.
    Mlp,
    /// Likewise, with experts.
    Experts,
}

/// How a layer is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A mixer, then a feed-forward layer.
    Decoder(Mixer),
    /// Just this.
    Only(Mixer),
}

/// Whether its layers keep states and nothing else: no heads of attention need be stated.
pub(super) fn is_alone(conf: &Conf<'_>) -> bool {
    conf.is(&["mamba", "mamba2", "falcon_mamba"])
}

/// How layer number `layer` is made.
pub(super) fn kind(conf: &Conf<'_>, layer: u64) -> Kind {
    let at = usize::try_from(layer).unwrap_or(usize::MAX);
    let listed = |key: &str| conf.list(key).and_then(|l| l.get(at)).and_then(Value::as_str);
    let get = |key: &str, usual: u64| conf.number(&[key]).unwrap_or(usual);
    let either = |attention: bool, other: Mixer| {
        Kind::Decoder(if attention { Mixer::Attention } else { other })
    };
    match conf.kind.as_str() {
        "mamba" | "falcon_mamba" => Kind::Only(Mixer::Mamba1),
        "mamba2" => Kind::Only(Mixer::Mamba2),
        "nemotron_h" => {
            let letter = conf.text_of("hybrid_override_pattern").and_then(|p| p.chars().nth(at));
            Kind::Only(match (letter, listed("layers_block_type")) {
                (Some('*'), _) | (None, Some("attention" | "full_attention")) => Mixer::Attention,
                (Some('-'), _) | (None, Some("mlp")) => Mixer::Mlp,
                (Some('E'), _) | (None, Some("moe")) => Mixer::Experts,
                _ => Mixer::Mamba2,
            })
        }
        "jamba" => {
            let period = get("attn_layer_period", 8).max(1);
            either(layer % period == get("attn_layer_offset", 4) % period, Mixer::Mamba1)
        }
        "bamba" => either(
            conf.numbers("attn_layer_indices").is_some_and(|l| l.contains(&layer)),
            Mixer::Mamba2,
        ),
        "granitemoehybrid" => either(
            // `transformers` 5 writes the second name.
            matches!(
                listed("layer_types").or_else(|| listed("layers_block_type")),
                Some("attention" | "full_attention")
            ),
            Mixer::Mamba2,
        ),
        "falcon_h1" => Kind::Decoder(Mixer::Mamba2),
        "qwen3_next" | "qwen3_5_text" | "qwen3_5_moe_text" | "olmo_hybrid" => {
            let every = get("full_attention_interval", 4).max(1);
            either(
                listed("layer_types")
                    .map_or((layer + 1).is_multiple_of(every), |t| t == "full_attention"),
                Mixer::Delta,
            )
        }
        "kimi_linear" => {
            let delta = conf.object("linear_attn_config").and_then(|c| c.get("kda_layers"));
            let delta = delta.and_then(Value::as_array);
            let is_delta = match delta {
                Some(list) => list.iter().take(MAX_LIST).filter_map(whole).any(|n| n == layer + 1),
                None => listed("layer_types")
                    .map_or(!(layer + 1).is_multiple_of(4), |t| t != "full_attention"),
            };
            either(!is_delta, Mixer::KimiDelta)
        }
        qwen4::KIND => either(
            listed("layer_types").map_or(
                (layer + 1).is_multiple_of(get("full_attention_interval", 4).max(1)),
                |kind| kind != "linear_attention",
            ),
            Mixer::Delta,
        ),
        "glm5_next_text" => either(
            listed("layer_types").map_or(layer % 4 == 3, |kind| kind != "linear_attention"),
            Mixer::KimiDelta,
        ),
        "minimax" | "minimax_text_01" | "minimax_m1" => {
            let full = match (listed("layer_types"), conf.numbers("attn_type_list")) {
                (Some(kind), _) => kind == "full_attention",
                (None, Some(list)) => list.get(at) == Some(&1),
                (None, None) => layer % 2 == 1,
            };
            either(full, Mixer::Lightning)
        }
        "lfm2" | "lfm2_moe" => {
            let full = match (listed("layer_types"), conf.numbers("full_attn_idxs")) {
                (Some(kind), _) => kind == "full_attention",
                (None, Some(list)) => list.contains(&layer),
                (None, None) => true,
            };
            either(full, Mixer::Convolution)
        }
        _ => Kind::Decoder(Mixer::Attention),
    }
}

/// A block of a model that a search has thinned out (Nemotron NAS, `DeciLM`).
pub(super) struct NasBlock {
    /// Query heads that share a key/value head; none: the block has no attention.
    pub(super) heads_in_group: Option<u64>,
    /// Width of its feed-forward layer; none: it has none.
    pub(super) inner: Option<u64>,
}

impl NasBlock {
    pub(super) fn norms(&self) -> Vec<&'static str> {
        let mut out = Vec::new();
        out.extend(self.heads_in_group.map(|_| "input_layernorm"));
        out.extend(self.inner.map(|_| "post_attention_layernorm"));
        out
    }
}

pub(super) fn nas_block(conf: &Conf<'_>, layer: u64) -> NasBlock {
    let at = usize::try_from(layer).unwrap_or(usize::MAX);
    let block = conf.list("block_configs").and_then(|b| b.get(at)).and_then(Value::as_object);
    let part = |name: &str| block.and_then(|b| b.get(name)).and_then(Value::as_object);
    let on = |part: Option<&serde_json::Map<String, Value>>, key: &str| {
        part.and_then(|p| p.get(key)).and_then(Value::as_bool) == Some(true)
    };
    let (attention, ffn) = (part("attention"), part("ffn"));
    let heads = attention.and_then(|a| a.get("n_heads_in_group")).and_then(whole);
    let hidden = conf.number(&["hidden_size"]).unwrap_or(0);
    let multiple = ffn.and_then(|f| f.get("ffn_mult")).and_then(Value::as_f64);
    let width = multiple.filter(|m| (0.0..=64.0).contains(m)).map(|m| {
        // modeling_decilm.py `_ffn_mult_to_intermediate_size`
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // bounded just above
        let exact = (2.0 * m * hidden as f64 / 3.0) as u64;
        exact.next_multiple_of(256)
    });
    let skipped = |p| on(p, "no_op") || on(p, "replace_with_linear");
    NasBlock {
        heads_in_group: heads.filter(|_| !skipped(attention)),
        inner: width.filter(|_| !skipped(ffn)),
    }
}

impl Build<'_> {
    /// A mixer with a state.
    pub(super) fn state(&mut self, at: &str, layer: u64, mixer: Mixer) {
        match mixer {
            Mixer::Mamba1 => self.mamba1(at, layer),
            Mixer::Mamba2 => self.mamba2(at, layer),
            Mixer::Delta => self.delta(at, layer),
            Mixer::KimiDelta => self.kimi_delta(at, layer),
            Mixer::Lightning => self.lightning(at, layer),
            Mixer::Convolution => self.convolution(at, layer),
            Mixer::Attention | Mixer::Mlp | Mixer::Experts => {}
        }
    }

    fn mamba1(&mut self, at: &str, layer: u64) {
        let conf = self.conf;
        let hidden = self.n.hidden;
        let get = |keys: &[&str], usual: u64| conf.number(keys).unwrap_or(usual);
        // Those of Zamba have several heads in one matrix, and are as wide as Jamba's.
        let alone = !conf.is(&["jamba", "zamba"]);
        let expand = get(&["mamba_expand", "expand"], 2).min(64);
        let inner = if alone {
            conf.stated(&["intermediate_size"]).unwrap_or(expand * hidden)
        } else {
            expand * hidden
        };
        let state = get(&["mamba_d_state", "state_size", "ssm_state_size"], 16).min(1 << 16);
        let kernel = get(&["mamba_d_conv", "conv_kernel"], 4).min(1 << 10);
        let rank = conf
            .stated(&["mamba_dt_rank", "time_step_rank"])
            .unwrap_or_else(|| hidden.div_ceil(16));
        let at = format!("{at}.{}", if alone { "mixer" } else { "mamba" });
        self.plain(&format!("{at}.A_log"), &[inner, state], 1);
        self.plain(&format!("{at}.D"), &[inner], 1);
        self.plain(&format!("{at}.conv1d.weight"), &[inner, 1, kernel], 1);
        if conf.flag("mamba_conv_bias") != Some(false) && conf.flag("use_conv_bias") != Some(false)
        {
            self.plain(&format!("{at}.conv1d.bias"), &[inner], 1);
        }
        let bias = conf.on("mamba_proj_bias") || conf.on("use_bias");
        self.linear(&format!("{at}.in_proj"), 2 * inner, hidden, bias);
        self.linear(&format!("{at}.x_proj"), rank + 2 * state, inner, false);
        self.linear(&format!("{at}.dt_proj"), inner, rank, true);
        self.linear(&format!("{at}.out_proj"), hidden, inner, bias);
        if conf.is(&["jamba"]) {
            self.plain(&format!("{at}.dt_layernorm.weight"), &[rank], 1);
            self.plain(&format!("{at}.b_layernorm.weight"), &[state], 1);
            self.plain(&format!("{at}.c_layernorm.weight"), &[state], 1);
        }
        let keeps = Keeps::State {
            conv: inner * kernel.saturating_sub(1),
            recurrent: inner * state,
            recurrent_bytes: self.recurrent_bytes(),
            whole: 0,
        };
        self.keeps(layer, keeps);
    }

    /// Bytes of a value of a recurrent state: what the file says, else the model's type.
    fn recurrent_bytes(&self) -> u32 {
        let stated = ["mamba_ssm_dtype", "mamba_ssm_cache_dtype"];
        if stated.iter().any(|k| self.conf.text_of(k) == Some("float32")) { 4 } else { 2 }
    }

    fn mamba2(&mut self, at: &str, layer: u64) {
        let conf = self.conf;
        let hidden = self.n.hidden;
        let get = |keys: &[&str], usual: u64| conf.number(keys).unwrap_or(usual);
        let alone = conf.is(&["mamba2", "nemotron_h"]);
        // `modeling_falcon_h1.py` and `modeling_nemotron_h.py` have flags of their own.
        let bias = match conf.kind.as_str() {
            "falcon_h1" => conf.on("mamba_proj_bias"),
            "nemotron_h" => conf.on("use_bias"),
            _ => conf.on("mamba_proj_bias") || conf.on("use_bias") || conf.on("add_bias_linear"),
        };
        let out_bias = if conf.is(&["falcon_h1"]) { conf.on("projectors_bias") } else { bias };
        let own = conf.is(&["mamba2"]);
        let expand = get(&["mamba_expand", "expand"], 2).min(64);
        let heads_keys: &[&str] = if own {
            &["num_heads"]
        } else {
            &["mamba_num_heads", "mamba_n_heads", "n_mamba_heads"]
        };
        let width_keys: &[&str] =
            if own { &["head_dim"] } else { &["mamba_head_dim", "mamba_d_head", "mamba_headdim"] };
        let heads = get(heads_keys, 128);
        let width = conf
            .stated(width_keys)
            .or_else(|| (expand * hidden).checked_div(heads).filter(|_| !own))
            .unwrap_or_else(|| get(width_keys, 64));
        let inner = if conf.is(&["falcon_h1"]) {
            conf.number(&["mamba_d_ssm"]).unwrap_or(expand * hidden)
        } else if conf.is(&["nemotron_h"]) {
            heads * width
        } else {
            expand * hidden
        };
        let state = get(&["ssm_state_size", "mamba_d_state", "state_size"], 128).min(1 << 16);
        let kernel = get(&["conv_kernel", "mamba_d_conv"], 4).min(1 << 10);
        let groups = get(&["n_groups", "mamba_n_groups", "mamba_ngroups"], 1).min(1 << 12);
        let channels = inner + 2 * groups * state;
        self.groups = (groups, state);
        let at = format!("{at}.{}", if alone { "mixer" } else { "mamba" });
        self.plain(&format!("{at}.dt_bias"), &[heads], 1);
        self.plain(&format!("{at}.A_log"), &[heads], 1);
        self.plain(&format!("{at}.D"), &[heads], 1);
        self.plain(&format!("{at}.conv1d.weight"), &[channels, 1, kernel], 1);
        if conf.flag("mamba_conv_bias") != Some(false) && conf.flag("use_conv_bias") != Some(false)
        {
            self.plain(&format!("{at}.conv1d.bias"), &[channels], 1);
        }
        self.linear(&format!("{at}.in_proj"), inner + channels + heads, hidden, bias);
        if !conf.is(&["falcon_h1"]) || conf.on("mamba_rms_norm") {
            self.plain(&format!("{at}.norm.weight"), &[inner], 1);
        }
        self.linear(&format!("{at}.out_proj"), hidden, inner, out_bias);
        let keeps = Keeps::State {
            conv: channels * kernel.saturating_sub(1),
            recurrent: heads * width * state,
            recurrent_bytes: self.recurrent_bytes(),
            whole: if groups == 1 { 2 * state * kernel.saturating_sub(1) } else { 0 },
        };
        self.keeps(layer, keeps);
    }

    fn delta(&mut self, at: &str, layer: u64) {
        let conf = self.conf;
        let hidden = self.n.hidden;
        let get = |key: &str, usual: u64| conf.number(&[key]).unwrap_or(usual);
        let (key_heads, heads) =
            (get("linear_num_key_heads", 16), get("linear_num_value_heads", 32));
        let (key, value) = (get("linear_key_head_dim", 128), get("linear_value_head_dim", 128));
        let kernel = get("linear_conv_kernel_dim", 4).min(1 << 10);
        let (keys, values) = (key_heads * key, heads * value);
        let at = format!("{at}.linear_attn");
        self.plain(&format!("{at}.dt_bias"), &[heads], 1);
        // MLX keeps what the original has in 32 bits (`cast_predicate`).
        let wide = self.quantisation.is_mlx() && !conf.is(&["qwen3_next"]);
        let dtype = if wide { ("F32", 4) } else { self.dtype };
        self.typed(&format!("{at}.A_log"), &[heads], 1, dtype);
        self.plain(&format!("{at}.conv1d.weight"), &[2 * keys + values, 1, kernel], 1);
        if conf.is(&["qwen3_next"]) {
            self.linear(&format!("{at}.in_proj_qkvz"), 2 * keys + 2 * values, hidden, false);
            self.linear(&format!("{at}.in_proj_ba"), 2 * heads, hidden, false);
        } else {
            self.linear(&format!("{at}.in_proj_qkv"), 2 * keys + values, hidden, false);
            self.linear(&format!("{at}.in_proj_z"), values, hidden, false);
            self.linear(&format!("{at}.in_proj_b"), heads, hidden, false);
            self.linear(&format!("{at}.in_proj_a"), heads, hidden, false);
        }
        self.plain(&format!("{at}.norm.weight"), &[value], 1);
        self.linear(&format!("{at}.out_proj"), hidden, values, false);
        let keeps = Keeps::State {
            conv: (2 * keys + values) * kernel.saturating_sub(1),
            recurrent: heads * key * value,
            recurrent_bytes: self.recurrent_bytes(),
            whole: 0,
        };
        self.keeps(layer, keeps);
    }

    fn kimi_delta(&mut self, at: &str, layer: u64) {
        let hidden = self.n.hidden;
        let inside = self.conf.object("linear_attn_config");
        // GLM 5 Next states the same numbers beside all others.
        let get = |key: &str, beside: &str, usual: u64| {
            let stated = inside.and_then(|c| c.get(key)).and_then(whole);
            stated.or_else(|| self.conf.number(&[beside])).unwrap_or(usual)
        };
        let heads = get("num_heads", "linear_num_heads", 32).min(1 << 14);
        let width = get("head_dim", "linear_head_dim", 128).min(1 << 14);
        let kernel = get("short_conv_kernel_size", "linear_conv_kernel_dim", 4).min(1 << 10);
        let all = heads * width;
        let at = format!("{at}.self_attn");
        for name in ["q_proj", "k_proj", "v_proj"] {
            self.linear(&format!("{at}.{name}"), all, hidden, false);
        }
        self.plain(&format!("{at}.conv1d.weight"), &[3 * all, 1, kernel], 1);
        self.typed(&format!("{at}.dt_bias"), &[all], 1, ("F32", 4));
        self.typed(&format!("{at}.A_log"), &[heads], 1, ("F32", 4));
        self.linear(&format!("{at}.f_a_proj"), width, hidden, false);
        self.linear(&format!("{at}.f_b_proj"), all, width, false);
        self.linear(&format!("{at}.b_proj"), heads, hidden, false);
        // Kimi K3 gates with one matrix instead of two narrow ones.
        if inside.and_then(|c| c.get("use_full_rank_gate")) == Some(&Value::Bool(true)) {
            self.linear(&format!("{at}.g_proj"), all, hidden, false);
        } else {
            self.linear(&format!("{at}.g_a_proj"), width, hidden, false);
            self.linear(&format!("{at}.g_b_proj"), all, width, false);
        }
        self.plain(&format!("{at}.o_norm.weight"), &[width], 1);
        self.linear(&format!("{at}.o_proj"), hidden, all, false);
        let keeps = Keeps::State {
            conv: 3 * all * kernel.saturating_sub(1),
            recurrent: heads * width * width,
            recurrent_bytes: 4,
            whole: 0,
        };
        self.keeps(layer, keeps);
    }

    /// Kimi K3: what weighs the blocks of layers before one (vLLM `kimi_k3/nvidia/model.py`, `use_attn_res`).
    pub(super) fn attends_to_layers<const N: usize>(&mut self, at: &str, parts: [&str; N]) {
        let hidden = self.n.hidden;
        if self.conf.stated(&["attn_res_block_size"]).is_none() {
            return;
        }
        for part in parts {
            self.plain(&format!("{at}.{part}_norm.weight"), &[hidden], 1);
            self.plain(&format!("{at}.{part}_proj.weight"), &[1, hidden], 1);
        }
    }

    fn lightning(&mut self, at: &str, layer: u64) {
        let n = self.n;
        let all = n.heads * n.head_dim;
        let at = format!("{at}.self_attn");
        self.plain(&format!("{at}.norm.weight"), &[all], 1);
        self.linear(&format!("{at}.linear_qkv_proj"), 3 * all, n.hidden, false);
        self.linear(&format!("{at}.out_proj"), n.hidden, all, false);
        self.linear(&format!("{at}.output_gate"), all, n.hidden, false);
        // vLLM `mamba_utils.py` (`linear_attention_state_dtype`): of the model's own type.
        let keeps =
            Keeps::State { conv: 0, recurrent: all * n.head_dim, recurrent_bytes: 2, whole: 0 };
        self.keeps(layer, keeps);
    }

    fn convolution(&mut self, at: &str, layer: u64) {
        let hidden = self.n.hidden;
        let kernel = self.conf.number(&["conv_L_cache"]).unwrap_or(3);
        let bias = self.conf.on("conv_bias");
        let at = format!("{at}.conv");
        self.plain(&format!("{at}.conv.weight"), &[hidden, 1, kernel], 1);
        if bias {
            self.plain(&format!("{at}.conv.bias"), &[hidden], 1);
        }
        self.linear(&format!("{at}.in_proj"), 3 * hidden, hidden, bias);
        self.linear(&format!("{at}.out_proj"), hidden, hidden, bias);
        let keeps = Keeps::State {
            conv: hidden * kernel.saturating_sub(1),
            recurrent: 0,
            recurrent_bytes: 2,
            whole: 0,
        };
        self.keeps(layer, keeps);
        if kernel > 64 {
            self.doubt(Certainty::Guess, "its convolutions are unusually wide");
        }
    }
}
