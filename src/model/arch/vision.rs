//! Vision towers and what joins them to the language model.

mod audio;
mod deepseek_ocr;
mod glm_next;
mod joiners;
mod minicpmo;
mod muse;
mod own_code;
mod phi4mm;
mod published;

use serde_json::{Map, Value};

use super::{Build, Certainty, conf::Conf};
use crate::model::tensors::{self, mul_div};
use crate::model::towers::{self, Towers};

pub(super) fn add(build: &mut Build<'_>, top: &Map<String, Value>) {
    let kind = top.get("model_type").and_then(Value::as_str).unwrap_or_default();
    match kind {
        "whisper" => return,
        "gemma3n" => {
            let (silent, before) = (published::is_silent(top), tensors::total(&build.tensors));
            super::gemma3n::towers(build, top, silent);
            if silent {
                published::doubt(build, before);
            }
            return;
        }
        "gemma4" => {
            super::gemma4::towers(build, top);
            if published::is_silent(top) {
                published::not_counted(build);
            }
            return;
        }
        _ => {}
    }
    if deepseek_ocr::add(build, top) {
        return;
    }
    let has = |key: &str| top.get(key).is_some_and(|v| !v.is_null());
    // A thinker with towers of its own, a talker, a vocoder.
    if let Some(thinker) = top.get("thinker_config").and_then(Value::as_object) {
        add(build, thinker);
        let why = "what speaks is not counted; engines leave it aside";
        return build.doubt_by(Certainty::Close, (30, 300), why);
    }
    if kind == "minicpmo" {
        minicpmo::add(build, top);
    }
    let vision = Conf::part(top, "vision_config");
    let heard = audio::add(build, top) || own_code::add(build, top);
    let others: &[&str] = match &vision {
        _ if heard => &[],
        Some(_) => &["audio_config"],
        None => &[
            "audio_config",
            "vision_tower",
            "mm_vision_tower",
            "visual",
            "vision_config",
            "img_processor",
            "embd_layer",
        ],
    };
    let parts = [
        "encoder_config",
        "projector_config",
        "speech_config",
        "codec_config",
        "qformer_config",
        "perceiver_config",
    ];
    // Of the two usual names it is known below what becomes of them.
    let media =
        ["vision", "visual", "vit", "image", "video", "audio", "whisper", "tower", "aligner"];
    let apart = |key: &str| {
        (key.ends_with("_config") || key.ends_with("_conf"))
            && !matches!(key, "vision_config" | "audio_config")
            && media.iter().any(|word| key.split('_').any(|part| part == *word))
    };
    let more = |key: &str, value: &Value| {
        value.is_object() && !heard && (parts.iter().any(|part| key.ends_with(part)) || apart(key))
    };
    let left_out: Vec<&Value> = top
        .iter()
        .filter(|(key, value)| more(key, value) || others.contains(&key.as_str()) && has(key))
        .map(|(_, value)| value)
        // The second of two towers that are alike, for images and for films.
        .chain((kind == "video_llava").then(|| top.get("vision_config")).flatten())
        .collect();
    if !left_out.is_empty() {
        let bytes = left_out.iter().map(|part| roughly(part, 2)).fold(0, u64::saturating_add);
        let all = tensors::total(&build.tensors);
        // Half as much again, for what joins it to the rest; where nothing is said of its size, some of the decoder's.
        let share = mul_div(bytes.saturating_mul(3) / 2, 1_000, all.max(1));
        let why = "its tower for other media is not counted";
        build.doubt_by(Certainty::Close, (30, share.clamp(300, 1_000_000)), why);
    }
    if kind == "fuyu" {
        let patch = Conf::text(top).number(&["patch_size"]).unwrap_or(30).min(1 << 10);
        let out = build.n.hidden;
        build.linear("visual.vision_embed_tokens", out, 3 * patch * patch, true);
    }
    let Some(vision) = vision else {
        let before = tensors::total(&build.tensors);
        match published::tower(top) {
            Some(tower) => {
                self::tower(build, top, kind, &tower);
                published::doubt(build, before);
            }
            None if published::is_silent(top) => published::not_counted(build),
            None => {}
        }
        return;
    };
    tower(build, top, kind, &vision);
}

/// The tower of one configuration, and what joins it to the language model.
fn tower(build: &mut Build<'_>, top: &Map<String, Value>, kind: &str, vision: &Conf<'_>) {
    let whole = Conf::text(top);
    let mut tower = Tower { build, c: vision, out: whole.number(&["hidden_size"]).unwrap_or(0) };
    match (kind, vision.kind.as_str()) {
        (_, "qwen2_vl_vision") | ("qwen2_vl", _) => tower.qwen2(),
        // HyperCLOVA X joins Qwen's tower to its words by one matrix more (`modeling_hyperclovax_vision_v2.py`).
        ("hyperclovax_vision_v2", "qwen2_5_vl_vision") => {
            tower.qwen25();
            let (out, joined) = (tower.out, tower.n(&["out_hidden_size"]));
            tower.lin("mm_projector", out, joined, true);
        }
        (_, "qwen2_5_vl_vision") | ("qwen2_5_vl", _) => tower.qwen25(),
        (
            "qwen3_vl"
            | "qwen3_vl_moe"
            | "qwen3_5"
            | "qwen3_5_moe"
            | "qwen3_omni_moe_thinker"
            | "qwen4_exp",
            _,
        ) => tower.qwen3(),
        ("qwen2_5_omni_thinker", _) => tower.qwen25(),
        ("ernie4_5_vl_moe", _) => tower.ernie(),
        ("minicpmv" | "minicpmo", _) if whole.is(&["qwen2", "qwen3", "llama"]) => {
            tower.clip(true, kind);
            tower.resampler(top);
        }
        ("ovis2", _) => tower.ovis(top),
        ("idefics3" | "smolvlm", _) => {
            tower.clip(true, kind);
            tower.projector(kind, top);
        }
        ("minimax_m3_vl", _) => tower.minimax(top),
        (_, "siglip_vision_model" | "siglip2_vision_model" | "clip_vision_model") => {
            tower.clip(!vision.is(&["clip_vision_model"]), kind);
            tower.projector(kind, top);
        }
        (_, "pixtral") => {
            tower.pixtral();
            tower.projector(kind, top);
        }
        ("mllama", _) => tower.mllama(),
        ("kimi_k25" | "kimi_vl", _) => tower.moonvit(false),
        ("kimi_k3", _) => tower.moonvit(true),
        ("llama4", _) => tower.llama4(),
        ("internvl" | "internvl_chat" | "interns1", _) => tower.intern(kind),
        ("step3_vl", _) => tower.step3(top),
        ("muse_glimmer" | "muse_spark", _) => tower.muse(top),
        ("glm4v" | "glm4v_moe" | "glm46v", _) => tower.glm(),
        ("glm_ocr" | "glm5_next", _) => tower.glm_next(),
        _ => tower.unknown(),
    }
}

/// About how many bytes a tower has in 16 bits, from its own width and layers; 0 where these are not stated.
fn roughly(part: &Value, depth: u32) -> u64 {
    let Some(part) = part.as_object() else { return 0 };
    let number = |names: &[&str]| {
        names.iter().find_map(|n| part.get(*n)?.as_u64()).filter(|n| *n > 0 && *n <= 1 << 20)
    };
    let width =
        number(&["hidden_size", "width", "embed_dim", "d_model", "output_size", "encoder_dim"]);
    let layers = number(&[
        "num_hidden_layers",
        "layers",
        "encoder_layers",
        "depth",
        "num_layers",
        "n_layers",
        "num_blocks",
    ]);
    match width.zip(layers) {
        Some((width, layers)) => {
            let inner =
                number(&["intermediate_size", "encoder_ffn_dim", "mlp_dim", "linear_units"]);
            let inner = inner.unwrap_or(4 * width).max(4 * width);
            layers.saturating_mul(width.saturating_mul(4 * width + 2 * inner)).saturating_mul(2)
        }
        // In a part of its own.
        None if depth > 0 => {
            part.values().map(|p| roughly(p, depth - 1)).fold(0, u64::saturating_add)
        }
        None => 0,
    }
}

/// Whisper's encoder, of Whisper itself.
pub(super) fn hears(build: &mut Build<'_>, top: &Map<String, Value>) {
    audio::encoder(build, &Conf::text(top));
}

/// Whether a model has a tower that its configuration does not tell of.
pub(super) fn is_silent(top: &Map<String, Value>) -> bool {
    published::is_silent(top)
}

/// How vLLM divides the towers of a `config.json`.
pub(super) fn divided(top: &Map<String, Value>) -> Towers {
    if let Some(thinker) = top.get("thinker_config").and_then(Value::as_object) {
        return divided(thinker);
    }
    let kind = top.get("model_type").and_then(Value::as_str).unwrap_or_default();
    let vision = Conf::part(top, "vision_config").or_else(|| published::tower(top));
    let heads = vision.and_then(|c| c.number(&["num_attention_heads", "num_heads"]));
    let heads = heads.filter(|n| *n > 0);
    Towers {
        vision: match (kind, heads) {
            ("internvl_chat", Some(heads)) => towers::Tower::HeadsIfEven(heads),
            (
                "glm4v" | "glm4v_moe" | "glm46v" | "qwen2_vl" | "qwen2_5_vl" | "qwen3_vl"
                | "qwen3_vl_moe",
                Some(heads),
            ) => towers::Tower::Heads(heads),
            _ => towers::Tower::Named,
        },
        // `qwen2_audio.py` and `qwen2_5_omni_thinker.py` take the encoders of `transformers`.
        audio: match kind {
            "qwen2_audio" | "qwen2_5_omni_thinker" => towers::Tower::Whole,
            // Whisper's encoder in `whisper.py`.
            "voxtral" => Conf::part(top, "audio_config")
                .and_then(|c| c.number(&["num_attention_heads", "encoder_attention_heads"]))
                .filter(|n| *n > 0)
                .map_or(towers::Tower::Named, towers::Tower::Heads),
            _ => towers::Tower::Named,
        },
    }
}

struct Tower<'a, 'b> {
    build: &'a mut Build<'b>,
    c: &'a Conf<'a>,
    /// Width of the language model.
    out: u64,
}

impl Tower<'_, '_> {
    fn n(&self, keys: &[&str]) -> u64 {
        self.c.number(keys).unwrap_or(0).min(1 << 14)
    }

    fn layers(&self) -> u64 {
        self.n(&["depth", "num_hidden_layers", "vt_num_hidden_layers", "num_layers"]).min(512)
    }

    fn w(&mut self, name: &str, shape: &[u64]) {
        self.build.plain(&format!("visual.{name}"), shape, 1);
    }

    fn lin(&mut self, name: &str, rows: u64, columns: u64, bias: bool) {
        self.build.linear(&format!("visual.{name}"), rows, columns, bias);
    }

    fn norm(&mut self, name: &str, width: u64, bias: bool) {
        self.w(&format!("{name}.weight"), &[width]);
        if bias {
            self.w(&format!("{name}.bias"), &[width]);
        }
    }

    fn qwen2(&mut self) {
        let width = self.n(&["embed_dim"]);
        let ratio = self.n(&["mlp_ratio"]).max(1);
        let patch = self.n(&["patch_size", "spatial_patch_size"]);
        let time = self.n(&["temporal_patch_size"]);
        let channels = self.n(&["in_channels", "in_chans"]).max(3);
        let merge = self.n(&["spatial_merge_size"]).max(1).pow(2);
        self.w("patch_embed.proj.weight", &[width, channels, time, patch, patch]);
        for l in 0..self.layers() {
            self.norm(&format!("blocks.{l}.norm1"), width, true);
            self.norm(&format!("blocks.{l}.norm2"), width, true);
            self.lin(&format!("blocks.{l}.attn.qkv"), 3 * width, width, true);
            self.lin(&format!("blocks.{l}.attn.proj"), width, width, true);
            self.lin(&format!("blocks.{l}.mlp.fc1"), ratio * width, width, true);
            self.lin(&format!("blocks.{l}.mlp.fc2"), width, ratio * width, true);
        }
        self.norm("merger.ln_q", width, true);
        self.lin("merger.mlp.0", merge * width, merge * width, true);
        let out = self.c.stated(&["hidden_size"]).unwrap_or(self.out);
        self.lin("merger.mlp.2", out, merge * width, true);
    }

    fn qwen25(&mut self) {
        let width = self.n(&["hidden_size"]);
        let inner = self.n(&["intermediate_size"]);
        let patch = self.n(&["patch_size", "spatial_patch_size"]);
        let time = self.n(&["temporal_patch_size"]);
        let merge = self.n(&["spatial_merge_size"]).max(1).pow(2);
        self.w("patch_embed.proj.weight", &[width, 3, time, patch, patch]);
        for l in 0..self.layers() {
            self.norm(&format!("blocks.{l}.norm1"), width, false);
            self.norm(&format!("blocks.{l}.norm2"), width, false);
            self.lin(&format!("blocks.{l}.attn.qkv"), 3 * width, width, true);
            self.lin(&format!("blocks.{l}.attn.proj"), width, width, true);
            self.lin(&format!("blocks.{l}.mlp.gate_proj"), inner, width, true);
            self.lin(&format!("blocks.{l}.mlp.up_proj"), inner, width, true);
            self.lin(&format!("blocks.{l}.mlp.down_proj"), width, inner, true);
        }
        self.norm("merger.ln_q", width, false);
        self.lin("merger.mlp.0", merge * width, merge * width, true);
        let out = self.c.stated(&["out_hidden_size"]).unwrap_or(self.out);
        self.lin("merger.mlp.2", out, merge * width, true);
    }

    fn qwen3(&mut self) {
        let width = self.n(&["hidden_size"]);
        let inner = self.n(&["intermediate_size"]);
        let patch = self.n(&["patch_size"]);
        let time = self.n(&["temporal_patch_size"]);
        let merged = width * self.n(&["spatial_merge_size"]).max(1).pow(2);
        let out = self.n(&["out_hidden_size"]);
        self.w("patch_embed.proj.weight", &[width, 3, time, patch, patch]);
        self.w("patch_embed.proj.bias", &[width]);
        let positions = self.n(&["num_position_embeddings"]);
        self.w("pos_embed.weight", &[positions, width]);
        for l in 0..self.layers() {
            self.norm(&format!("blocks.{l}.norm1"), width, true);
            self.norm(&format!("blocks.{l}.norm2"), width, true);
            self.lin(&format!("blocks.{l}.attn.qkv"), 3 * width, width, true);
            self.lin(&format!("blocks.{l}.attn.proj"), width, width, true);
            self.lin(&format!("blocks.{l}.mlp.linear_fc1"), inner, width, true);
            self.lin(&format!("blocks.{l}.mlp.linear_fc2"), width, inner, true);
        }
        self.norm("merger.norm", width, true);
        self.lin("merger.linear_fc1", merged, merged, true);
        self.lin("merger.linear_fc2", out, merged, true);
        let deep = self.c.numbers("deepstack_visual_indexes").map_or(0, |l| l.len());
        for i in 0..deep.min(64) {
            self.norm(&format!("deepstack_merger_list.{i}.norm"), merged, true);
            self.lin(&format!("deepstack_merger_list.{i}.linear_fc1"), merged, merged, true);
            self.lin(&format!("deepstack_merger_list.{i}.linear_fc2"), out, merged, true);
        }
    }

    fn clip(&mut self, siglip: bool, kind: &str) {
        let (width, inner) = (self.n(&["hidden_size"]), self.n(&["intermediate_size"]));
        let patch = self.n(&["patch_size"]).max(1);
        let patches = match self.c.number(&["num_patches"]) {
            Some(patches) if self.c.is(&["siglip2_vision_model"]) => patches.min(1 << 14),
            _ => (self.n(&["image_size"]) / patch).pow(2),
        };
        let at = "vision_model";
        self.w(&format!("{at}.embeddings.patch_embedding.weight"), &[width, 3, patch, patch]);
        if siglip {
            self.w(&format!("{at}.embeddings.patch_embedding.bias"), &[width]);
            self.w(&format!("{at}.embeddings.position_embedding.weight"), &[patches, width]);
        } else {
            self.w(&format!("{at}.embeddings.class_embedding"), &[width]);
            self.w(&format!("{at}.embeddings.position_embedding.weight"), &[patches + 1, width]);
            self.norm(&format!("{at}.pre_layrnorm"), width, true);
        }
        for l in 0..self.layers() {
            let at = format!("{at}.encoder.layers.{l}");
            for name in ["q_proj", "k_proj", "v_proj", "out_proj"] {
                self.lin(&format!("{at}.self_attn.{name}"), width, width, true);
            }
            self.norm(&format!("{at}.layer_norm1"), width, true);
            self.norm(&format!("{at}.layer_norm2"), width, true);
            self.lin(&format!("{at}.mlp.fc1"), inner, width, true);
            self.lin(&format!("{at}.mlp.fc2"), width, inner, true);
        }
        self.norm(&format!("{at}.post_layernorm"), width, true);
        // A pooling head that no language model uses; files of some families hold it all the same.
        let head = self.c.flag("vision_use_head") != Some(false)
            && siglip
            && ![
                "paligemma",
                "llava_onevision",
                "gemma3",
                "idefics3",
                "smolvlm",
                "minicpmv",
                "minicpmo",
            ]
            .contains(&kind);
        if head || kind == "gemma3" && self.c.given("vision_use_head") == Some(&Value::Bool(true)) {
            self.w(&format!("{at}.head.probe"), &[1, 1, width]);
            self.lin(&format!("{at}.head.attention.in_proj"), 3 * width, width, true);
            self.lin(&format!("{at}.head.attention.out_proj"), width, width, true);
            self.norm(&format!("{at}.head.layernorm"), width, true);
            self.lin(&format!("{at}.head.mlp.fc1"), inner, width, true);
            self.lin(&format!("{at}.head.mlp.fc2"), width, inner, true);
        }
    }

    fn pixtral(&mut self) {
        let (width, inner) = (self.n(&["hidden_size"]), self.n(&["intermediate_size"]));
        let patch = self.n(&["patch_size"]);
        self.w("vision_tower.patch_conv.weight", &[width, 3, patch, patch]);
        self.norm("vision_tower.ln_pre", width, false);
        for l in 0..self.layers() {
            let at = format!("vision_tower.transformer.layers.{l}");
            self.norm(&format!("{at}.attention_norm"), width, false);
            self.norm(&format!("{at}.ffn_norm"), width, false);
            for name in ["q_proj", "k_proj", "v_proj", "o_proj"] {
                self.lin(&format!("{at}.attention.{name}"), width, width, false);
            }
            self.lin(&format!("{at}.feed_forward.gate_proj"), inner, width, false);
            self.lin(&format!("{at}.feed_forward.up_proj"), inner, width, false);
            self.lin(&format!("{at}.feed_forward.down_proj"), width, inner, false);
        }
    }

    fn mllama(&mut self) {
        let (width, inner) = (self.n(&["hidden_size"]), self.n(&["intermediate_size"]));
        let patch = self.n(&["patch_size"]).max(1);
        let patches = (self.n(&["image_size"]) / patch).pow(2) + 1;
        let tiles = self.n(&["max_num_tiles"]);
        let ratios = self.c.list("supported_aspect_ratios").map_or(8, <[Value]>::len) as u64 + 1;
        let at = "vision_model";
        self.w(&format!("{at}.class_embedding"), &[width]);
        self.w(&format!("{at}.patch_embedding.weight"), &[width, 3, patch, patch]);
        let gated = format!("{at}.gated_positional_embedding");
        self.w(&format!("{gated}.gate"), &[1]);
        self.w(&format!("{gated}.embedding"), &[patches, width]);
        self.w(&format!("{gated}.tile_embedding.weight"), &[ratios, tiles * patches * width]);
        for name in ["pre_tile_positional_embedding", "post_tile_positional_embedding"] {
            self.w(&format!("{at}.{name}.gate"), &[1]);
            self.w(&format!("{at}.{name}.embedding.weight"), &[ratios, tiles * width]);
        }
        self.norm(&format!("{at}.layernorm_pre"), width, true);
        self.norm(&format!("{at}.layernorm_post"), width, true);
        let global = self.n(&["num_global_layers"]).min(512);
        for (part, layers) in [("transformer", self.layers()), ("global_transformer", global)] {
            for l in 0..layers {
                let at = format!("{at}.{part}.layers.{l}");
                for name in ["q_proj", "k_proj", "v_proj", "o_proj"] {
                    self.lin(&format!("{at}.self_attn.{name}"), width, width, false);
                }
                self.lin(&format!("{at}.mlp.fc1"), inner, width, true);
                self.lin(&format!("{at}.mlp.fc2"), width, inner, true);
                self.norm(&format!("{at}.input_layernorm"), width, true);
                self.norm(&format!("{at}.post_attention_layernorm"), width, true);
                if part == "global_transformer" {
                    self.w(&format!("{at}.gate_attn"), &[1]);
                    self.w(&format!("{at}.gate_ffn"), &[1]);
                }
            }
        }
        let seen = self.c.numbers("intermediate_layers_indices").map_or(5, |l| l.len() as u64);
        let out = self.out;
        self.lin("multi_modal_projector", out, width * (seen + 1), true);
    }

    /// `MoonViT` of Kimi VL and K2.5, and of K3 (vLLM `kimi_k25_vit.py`), whose heads are wider than its hidden state
    /// and whose layers have no biases.
    fn moonvit(&mut self, third: bool) {
        let c = self.c;
        let on = |key: &str| c.flag(key).unwrap_or(!third);
        let width = self.n(&["vt_hidden_size", "hidden_size"]);
        let inner = self.n(&["vt_intermediate_size", "intermediate_size"]);
        let heads = c.number(&["qkv_hidden_size"]).unwrap_or(width).min(1 << 14);
        let patch = self.n(&["patch_size"]);
        let (high, wide) = (self.n(&["init_pos_emb_height"]), self.n(&["init_pos_emb_width"]));
        let kernel: u64 = c.numbers("merge_kernel_size").map_or(4, |k| k.iter().product());
        let norms = !third && c.text_of("norm_type") != Some("rmsnorm");
        let (attention, linear) = (on("attn_bias"), on("linear_bias"));
        self.w("patch_embed.proj.weight", &[width, 3, patch, patch]);
        if on("patch_embed_proj_bias") {
            self.w("patch_embed.proj.bias", &[width]);
        }
        self.w("patch_embed.pos_emb.weight", &[high, wide, width]);
        for l in 0..self.layers() {
            let at = format!("encoder.blocks.{l}");
            self.norm(&format!("{at}.norm0"), width, norms);
            self.norm(&format!("{at}.norm1"), width, norms);
            self.lin(&format!("{at}.wqkv"), 3 * heads, width, attention);
            self.lin(&format!("{at}.wo"), width, heads, attention);
            self.lin(&format!("{at}.mlp.fc0"), inner, width, linear);
            self.lin(&format!("{at}.mlp.fc1"), width, inner, linear);
        }
        self.norm("encoder.final_layernorm", width, norms);
        let (merged, out) = (width * kernel.min(64), self.out);
        if c.text_of("mm_projector_type").unwrap_or(if third { "patchmergerv2" } else { "" })
            == "patchmergerv2"
        {
            self.lin("mm_projector.proj.0", merged, merged, false);
            self.lin("mm_projector.proj.2", out, merged, false);
            return self.norm("mm_projector.post_norm", out, false);
        }
        self.norm("mm_projector.pre_norm", width, true);
        self.lin("mm_projector.proj.0", merged, merged, true);
        self.lin("mm_projector.proj.2", out, merged, true);
    }

    fn llama4(&mut self) {
        let (width, inner) = (self.n(&["hidden_size"]), self.n(&["intermediate_size"]));
        let patch = self.n(&["patch_size"]).max(1);
        let patches = (self.n(&["image_size"]) / patch).pow(2) + 1;
        let at = "vision_model";
        self.w(&format!("{at}.class_embedding"), &[width]);
        self.w(&format!("{at}.positional_embedding_vlm"), &[patches, width]);
        self.lin(&format!("{at}.patch_embedding.linear"), width, 3 * patch * patch, false);
        for l in 0..self.layers() {
            let at = format!("{at}.model.layers.{l}");
            for name in ["q_proj", "k_proj", "v_proj", "o_proj"] {
                self.lin(&format!("{at}.self_attn.{name}"), width, width, true);
            }
            self.lin(&format!("{at}.mlp.fc1"), inner, width, true);
            self.lin(&format!("{at}.mlp.fc2"), width, inner, true);
            self.norm(&format!("{at}.input_layernorm"), width, true);
            self.norm(&format!("{at}.post_attention_layernorm"), width, true);
        }
        self.norm(&format!("{at}.layernorm_pre"), width, true);
        self.norm(&format!("{at}.layernorm_post"), width, true);
        let (mid, last) = (self.n(&["projector_input_dim"]), self.n(&["projector_output_dim"]));
        self.lin(&format!("{at}.vision_adapter.mlp.fc1"), mid, inner, false);
        self.lin(&format!("{at}.vision_adapter.mlp.fc2"), last, mid, false);
        let (seen, out) = (self.n(&["vision_output_dim"]), self.out);
        self.lin("multi_modal_projector.linear_1", out, seen, false);
    }

    fn intern(&mut self, kind: &str) {
        let (width, inner) = (self.n(&["hidden_size"]), self.n(&["intermediate_size"]));
        let patch = self.c.numbers("patch_size").and_then(|l| l.first().copied());
        let patch = patch.unwrap_or_else(|| self.n(&["patch_size"])).max(1);
        let size = self.c.numbers("image_size").and_then(|l| l.first().copied());
        let patches = (size.unwrap_or_else(|| self.n(&["image_size"])) / patch).pow(2) + 1;
        let bias = self.c.on("qkv_bias") || self.c.on("attention_bias");
        let normed = self.c.on("qk_normalization") || self.c.on("use_qk_norm");
        let layer_norm = self.c.text_of("norm_type") != Some("rms_norm");
        self.w("embeddings.cls_token", &[1, 1, width]);
        self.w("embeddings.position_embeddings", &[1, patches, width]);
        self.w("embeddings.patch_embeddings.weight", &[width, 3, patch, patch]);
        self.w("embeddings.patch_embeddings.bias", &[width]);
        for l in 0..self.layers() {
            let at = format!("encoder.layers.{l}");
            self.w(&format!("{at}.ls1"), &[width]);
            self.w(&format!("{at}.ls2"), &[width]);
            self.lin(&format!("{at}.attn.qkv"), 3 * width, width, bias);
            self.lin(&format!("{at}.attn.proj"), width, width, true);
            if normed {
                self.norm(&format!("{at}.attn.q_norm"), width, false);
                self.norm(&format!("{at}.attn.k_norm"), width, false);
            }
            self.lin(&format!("{at}.mlp.fc1"), inner, width, true);
            self.lin(&format!("{at}.mlp.fc2"), width, inner, true);
            self.norm(&format!("{at}.norm1"), width, layer_norm);
            self.norm(&format!("{at}.norm2"), width, layer_norm);
        }
        let (merged, out) = (4 * width, self.out);
        self.norm("multi_modal_projector.layer_norm", merged, true);
        self.lin("multi_modal_projector.linear_1", out, merged, true);
        self.lin("multi_modal_projector.linear_2", out, out, true);
        if kind == "internvl_chat" && self.layers() == 0 {
            self.unknown();
        }
    }

    /// vLLM `step3_vl.py`.
    fn step3(&mut self, top: &Map<String, Value>) {
        let (width, inner) = (self.n(&["hidden_size"]), self.n(&["intermediate_size"]));
        let patch = self.n(&["patch_size"]).max(1);
        let patches = (self.n(&["image_size"]) / patch).pow(2);
        self.w("embeddings.class_embedding", &[1, width]);
        self.w("embeddings.patch_embedding.weight", &[width, 3, patch, patch]);
        self.w("embeddings.patch_embedding.bias", &[width]);
        self.w("embeddings.position_embedding.weight", &[patches + 1, width]);
        for l in 0..self.layers() {
            let at = format!("transformer.layers.{l}");
            self.lin(&format!("{at}.self_attn.qkv_proj"), 3 * width, width, true);
            self.lin(&format!("{at}.self_attn.out_proj"), width, width, true);
            self.lin(&format!("{at}.mlp.fc1"), inner, width, true);
            self.lin(&format!("{at}.mlp.fc2"), width, inner, true);
            self.norm(&format!("{at}.layer_norm1"), width, true);
            self.norm(&format!("{at}.layer_norm2"), width, true);
        }
        let (joined, out) = (self.n(&["output_hidden_size"]), self.out);
        self.w("vit_downsampler.weight", &[joined, width, 2, 2]);
        self.w("vit_downsampler.bias", &[joined]);
        self.w("vit_downsampler2.weight", &[2 * joined, joined, 3, 3]);
        self.w("vit_downsampler2.bias", &[2 * joined]);
        let bias = top.get("projector_bias") != Some(&Value::Bool(false));
        self.lin("vit_large_projector", out, 2 * joined, bias);
    }

    fn glm(&mut self) {
        let width = self.n(&["hidden_size"]);
        let inner = self.n(&["out_hidden_size"]);
        let deep = self.n(&["intermediate_size"]);
        let patch = self.n(&["patch_size"]).max(1);
        let time = self.n(&["temporal_patch_size"]);
        let merge = self.n(&["spatial_merge_size"]).max(1);
        let patches = (self.n(&["image_size"]) / patch).pow(2);
        self.w("embeddings.position_embedding.weight", &[patches, width]);
        self.w("patch_embed.proj.weight", &[width, 3, time, patch, patch]);
        self.w("patch_embed.proj.bias", &[width]);
        for l in 0..self.layers() {
            self.norm(&format!("blocks.{l}.norm1"), width, false);
            self.norm(&format!("blocks.{l}.norm2"), width, false);
            let bias = self.c.on("attention_bias");
            self.lin(&format!("blocks.{l}.attn.qkv"), 3 * width, width, bias);
            self.lin(&format!("blocks.{l}.attn.proj"), width, width, false);
            // The blocks are as wide inside as what they give to the language model.
            self.lin(&format!("blocks.{l}.mlp.gate_proj"), inner, width, false);
            self.lin(&format!("blocks.{l}.mlp.up_proj"), inner, width, false);
            self.lin(&format!("blocks.{l}.mlp.down_proj"), width, inner, false);
        }
        self.lin("merger.proj", inner, inner, false);
        self.norm("merger.post_projection_norm", inner, true);
        self.lin("merger.gate_proj", deep, inner, false);
        self.lin("merger.up_proj", deep, inner, false);
        self.lin("merger.down_proj", inner, deep, false);
        self.norm("post_conv_layernorm", width, false);
        self.w("downsample.weight", &[inner, width, merge, merge]);
        self.w("downsample.bias", &[inner]);
        self.norm("post_layernorm", width, false);
    }

    /// A tower that is not known: the usual blocks of a vision transformer.
    fn unknown(&mut self) {
        let width = self.n(&["hidden_size", "embed_dim", "width"]);
        let inner = match self.n(&["intermediate_size", "mlp_dim"]) {
            0 => 4 * width,
            n => n,
        };
        for l in 0..self.layers() {
            self.lin(&format!("blocks.{l}.attn.qkv"), 3 * width, width, true);
            self.lin(&format!("blocks.{l}.attn.proj"), width, width, true);
            self.lin(&format!("blocks.{l}.mlp.fc1"), inner, width, true);
            self.lin(&format!("blocks.{l}.mlp.fc2"), width, inner, true);
        }
        let why = "its vision tower is not known: its size is estimated";
        self.build.doubt_by(Certainty::Close, (50, 100), why);
    }
}
