//! What sets Gemma 4 apart: layers that see everything have wider heads, and may keep keys alone;
//! an embedding for each layer; experts beside the dense layer; layers that share a cache; towers
//! for images and sound (`transformers`' `configuration_gemma4.py`, `modeling_gemma4.py`).

use serde_json::{Map, Value};

use super::{Build, Certainty, conf::Conf, conf::whole};

/// The families that are made so.
pub(super) const KINDS: [&str; 2] = ["gemma4_text", "gemma4_unified_text"];

/// One layer's attention.
pub(super) struct Heads {
    /// Heads of keys and values.
    pub(super) shared: u64,
    pub(super) width: u64,
    /// Values are the keys: there is no projection to them.
    pub(super) keys_alone: bool,
}

/// Whether a layer looks back a window only.
pub(super) fn slides(conf: &Conf<'_>, layer: u64, layers: u64) -> bool {
    let at = usize::try_from(layer).unwrap_or(usize::MAX);
    match conf.list("layer_types").and_then(|l| l.get(at)).and_then(Value::as_str) {
        Some(kind) => kind == "sliding_attention" && layer + 1 < layers,
        None => !(layer + 1).is_multiple_of(6) && layer + 1 < layers,
    }
}

/// Layers that read what an earlier one of their kind has kept.
fn shared(conf: &Conf<'_>) -> u64 {
    conf.number(&["num_kv_shared_layers"]).unwrap_or(0)
}

impl Build<'_> {
    pub(super) fn gemma4_heads(&self, layer: u64) -> Heads {
        let (conf, n) = (self.conf, self.n);
        let usual = Heads { shared: n.kv_heads, width: n.head_dim, keys_alone: false };
        if slides(conf, layer, n.layers) {
            return usual;
        }
        // Since transformers 5.24 what differs is listed layer by layer.
        let listed = conf.object("per_layer_config").and_then(|all| {
            let mine = all.iter().find(|(key, _)| key.parse() == Ok(layer));
            mine.and_then(|(_, value)| value.as_object())
        });
        let inside = |key: &str| listed.and_then(|l| l.get(key)).and_then(whole);
        let keys_alone = conf.on("attention_k_eq_v");
        let fewer = conf.stated(&["num_global_key_value_heads"]).filter(|_| keys_alone);
        let kv_heads = inside("num_key_value_heads").or(fewer).unwrap_or(n.kv_heads);
        let width = inside("head_dim").or_else(|| conf.number(&["global_head_dim"]));
        Heads {
            shared: kv_heads.min(1 << 14),
            width: width.unwrap_or(n.head_dim).min(1 << 14),
            keys_alone,
        }
    }

    pub(super) fn gemma4_embedding(&mut self) {
        let n = self.n;
        let each = self.conf.number(&["hidden_size_per_layer_input"]).unwrap_or(0);
        if each > 0 {
            let vocab = self.conf.number(&["vocab_size_per_layer_input"]).unwrap_or(n.vocab);
            self.plain("model.embed_tokens_per_layer.weight", &[vocab, n.layers * each], 1);
            self.linear("model.per_layer_model_projection", n.layers * each, n.hidden, false);
            self.plain("model.per_layer_projection_norm.weight", &[each], 1);
        }
    }

    /// What follows attention: a dense layer, and experts beside it.
    pub(super) fn gemma4_feed_forward(&mut self, at: &str, layer: u64) {
        let (conf, n) = (self.conf, self.n);
        let sharing = layer + shared(conf) >= n.layers;
        let wide = if sharing && conf.on("use_double_wide_mlp") { 2 } else { 1 };
        self.mlp(at, "mlp", n.inner * wide);
        self.plain(&format!("{at}.layer_scalar"), &[1], 1);
        let each = conf.number(&["hidden_size_per_layer_input"]).unwrap_or(0);
        if each > 0 {
            self.linear(&format!("{at}.per_layer_input_gate"), each, n.hidden, false);
            self.linear(&format!("{at}.per_layer_projection"), n.hidden, each, false);
            self.plain(&format!("{at}.post_per_layer_input_norm.weight"), &[n.hidden], 1);
        }
        if sharing {
            let own = u32::try_from(layer).unwrap_or(u32::MAX);
            self.caches.retain(|c| c.layer != own);
        }
        if !conf.on("enable_moe_block") {
            return;
        }
        let number = conf.number(&["num_experts"]).unwrap_or(0).min(1 << 16);
        let width = conf.number(&["moe_intermediate_size"]).unwrap_or(0);
        self.plain(&format!("{at}.router.scale"), &[n.hidden], 1);
        self.plain(&format!("{at}.router.per_expert_scale"), &[number], 1);
        self.linear(&format!("{at}.router.proj"), number, n.hidden, false);
        self.linears(&format!("{at}.experts.*.gate_proj"), width, n.hidden, false, number);
        self.linears(&format!("{at}.experts.*.up_proj"), width, n.hidden, false, number);
        self.linears(&format!("{at}.experts.*.down_proj"), n.hidden, width, false, number);
        for norm in ["post_feedforward_layernorm_1", "post_feedforward_layernorm_2"] {
            self.plain(&format!("{at}.{norm}.weight"), &[n.hidden], 1);
        }
        self.plain(&format!("{at}.pre_feedforward_layernorm_2.weight"), &[n.hidden], 1);
    }
}

/// The towers, where it has them.
pub(super) fn towers(build: &mut Build<'_>, top: &Map<String, Value>) {
    if let Some(c) = Conf::part(top, "vision_config") {
        vision(build, &c);
    }
    if let Some(c) = Conf::part(top, "audio_config") {
        audio(build, &c);
    }
}

/// A linear layer whose input and output are cut to four stored limits.
fn clipped(build: &mut Build<'_>, limits: bool, name: &str, rows: u64, columns: u64) {
    build.linear(&format!("{name}.linear"), rows, columns, false);
    for limit in ["input_min", "input_max", "output_min", "output_max"] {
        if limits {
            build.plain(&format!("{name}.{limit}"), &[1], 1);
        }
    }
}

fn vision(build: &mut Build<'_>, c: &Conf<'_>) {
    let n = |key: &str| c.number(&[key]).unwrap_or(0).min(1 << 14);
    let (width, inner, patch) = (n("hidden_size"), n("intermediate_size"), n("patch_size"));
    let heads = n("num_attention_heads");
    let head = c.number(&["head_dim"]).unwrap_or(64).min(1 << 14);
    let kv = c.number(&["num_key_value_heads"]).unwrap_or(heads).min(1 << 14);
    let limits = c.on("use_clipped_linears");
    let at = "visual.patch_embedder";
    let positions = n("position_embedding_size");
    build.plain(&format!("{at}.position_embedding_table"), &[2, positions, width], 1);
    build.linear(&format!("{at}.input_proj"), width, 3 * patch * patch, false);
    for l in 0..n("num_hidden_layers").min(512) {
        let at = format!("visual.encoder.layers.{l}");
        clipped(build, limits, &format!("{at}.self_attn.q_proj"), heads * head, width);
        clipped(build, limits, &format!("{at}.self_attn.k_proj"), kv * head, width);
        clipped(build, limits, &format!("{at}.self_attn.v_proj"), kv * head, width);
        clipped(build, limits, &format!("{at}.self_attn.o_proj"), width, heads * head);
        build.plain(&format!("{at}.self_attn.q_norm.weight"), &[head], 1);
        build.plain(&format!("{at}.self_attn.k_norm.weight"), &[head], 1);
        clipped(build, limits, &format!("{at}.mlp.gate_proj"), inner, width);
        clipped(build, limits, &format!("{at}.mlp.up_proj"), inner, width);
        clipped(build, limits, &format!("{at}.mlp.down_proj"), width, inner);
        for norm in ["input", "post_attention", "pre_feedforward", "post_feedforward"] {
            build.plain(&format!("{at}.{norm}_layernorm.weight"), &[width], 1);
        }
    }
    if c.on("standardize") {
        build.plain("visual.std_bias", &[width], 1);
        build.plain("visual.std_scale", &[width], 1);
    }
    build.linear("visual.embed_vision.embedding_projection", build.n.hidden, width, false);
}

/// A conformer.
fn audio(build: &mut Build<'_>, c: &Conf<'_>) {
    let n = |key: &str, usual: u64| c.number(&[key]).unwrap_or(usual).min(1 << 14);
    let width = n("hidden_size", 1_024);
    let head = width.checked_div(n("num_attention_heads", 8)).unwrap_or(0);
    let limits = c.flag("use_clipped_linears") != Some(false);
    let channels = c.numbers("subsampling_conv_channels").unwrap_or_default();
    let (first, second) = match channels.as_slice() {
        [first, second] => (*first.min(&(1 << 14)), *second.min(&(1 << 14))),
        _ => (128, 32),
    };
    let at = "visual.audio_tower.subsample";
    build.plain(&format!("{at}.layer0.conv.weight"), &[first, 1, 3, 3], 1);
    build.plain(&format!("{at}.layer0.norm.weight"), &[first], 1);
    build.plain(&format!("{at}.layer1.conv.weight"), &[second, first, 3, 3], 1);
    build.plain(&format!("{at}.layer1.norm.weight"), &[second], 1);
    // Of 128 bands two convolutions leave a quarter.
    build.linear(&format!("{at}.input_proj_linear"), width, second * 32, false);
    for l in 0..n("num_hidden_layers", 12).min(512) {
        let at = format!("visual.audio_tower.layers.{l}");
        for part in ["feed_forward1", "feed_forward2"] {
            clipped(build, limits, &format!("{at}.{part}.ffw_layer_1"), 4 * width, width);
            clipped(build, limits, &format!("{at}.{part}.ffw_layer_2"), width, 4 * width);
            build.plain(&format!("{at}.{part}.pre_layer_norm.weight"), &[width], 1);
            build.plain(&format!("{at}.{part}.post_layer_norm.weight"), &[width], 1);
        }
        build.plain(&format!("{at}.self_attn.per_dim_scale"), &[head], 1);
        for part in ["q_proj", "k_proj", "v_proj", "post"] {
            clipped(build, limits, &format!("{at}.self_attn.{part}"), width, width);
        }
        build.linear(&format!("{at}.self_attn.relative_k_proj"), width, width, false);
        clipped(build, limits, &format!("{at}.lconv1d.linear_start"), 2 * width, width);
        clipped(build, limits, &format!("{at}.lconv1d.linear_end"), width, width);
        let kernel = n("conv_kernel_size", 5).min(1 << 8);
        build.plain(&format!("{at}.lconv1d.depthwise_conv1d.weight"), &[width, 1, kernel], 1);
        for norm in ["lconv1d.pre_layer_norm", "lconv1d.conv_norm"] {
            build.plain(&format!("{at}.{norm}.weight"), &[width], 1);
        }
        for norm in ["norm_pre_attn", "norm_post_attn", "norm_out"] {
            build.plain(&format!("{at}.{norm}.weight"), &[width], 1);
        }
    }
    let seen = n("output_proj_dims", 1_536);
    build.linear("visual.audio_tower.output_proj", seen, width, true);
    build.linear("visual.embed_audio.embedding_projection", build.n.hidden, seen, false);
    if width == 0 {
        build.doubt(Certainty::Guess, "the width of its tower for sound is not stated");
    }
}
