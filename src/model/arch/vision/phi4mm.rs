//! Phi-4-multimodal (`modeling_phi4mm.py`, `speech_conformer_encoder.py` beside its weights): `SigLIP`'s
//! tower, a conformer for sound, and adapters of each for the language model's layers.

use serde_json::{Map, Value};

use super::super::{Build, conf::whole};
use super::Tower;

/// Width, inner width, layers and side of a patch of `SigLIP`'s tower: they are in the code alone.
const SIGLIP: (u64, u64, u64, u64) = (1_152, 4_304, 27, 14);

/// A whole number at the end of a path of keys.
fn number(top: &Map<String, Value>, path: &[&str], usual: u64) -> u64 {
    let mut at = path.iter();
    let first = at.next().and_then(|key| top.get(*key));
    let found = at.try_fold(first, |value, key| Some(value?.get(*key))).flatten();
    found.and_then(whole).unwrap_or(usual).min(1 << 16)
}

/// All of its parts besides the language model.
pub(super) fn add(tower: &mut Tower<'_, '_>, top: &Map<String, Value>) {
    tower.phi4_sight(number(top, &["embd_layer", "image_embd_layer", "crop_size"], 448));
    tower.phi4_hearing(top);
    for (medium, key) in [("vision", "vision_lora"), ("speech", "speech_lora")] {
        adapters(tower.build, medium, number(top, &[key, "r"], 0));
    }
}

/// Adapters of rank `r` beside every linear layer, which engines load only when asked to.
fn adapters(build: &mut Build<'_>, medium: &str, r: u64) {
    let n = build.n;
    let (query, pairs) = (n.heads * n.head_dim, 2 * n.kv_heads * n.head_dim);
    for layer in 0..n.layers {
        for (module, rows, columns) in [
            ("self_attn.qkv_proj", query + pairs, n.hidden),
            ("self_attn.o_proj", n.hidden, query),
            ("mlp.gate_up_proj", 2 * n.inner, n.hidden),
            ("mlp.down_proj", n.hidden, n.inner),
        ] {
            let at = format!("model.layers.{layer}.{module}");
            build.plain(&format!("{at}.lora_A.{medium}.weight"), &[r, columns], 1);
            build.plain(&format!("{at}.lora_B.{medium}.weight"), &[rows, r], 1);
        }
    }
}

impl Tower<'_, '_> {
    /// Two linear layers to the language model's width.
    fn phi4_projection(&mut self, at: &str, seen: u64) {
        let out = self.out;
        self.lin(&format!("{at}.0"), out, seen, true);
        self.lin(&format!("{at}.2"), out, out, true);
    }

    fn phi4_sight(&mut self, side: u64) {
        let (width, inner, layers, patch) = SIGLIP;
        let at = "image_embed.img_processor";
        self.w(&format!("{at}.embeddings.patch_embedding.weight"), &[width, 3, patch, patch]);
        self.w(&format!("{at}.embeddings.patch_embedding.bias"), &[width]);
        let places = (side / patch).pow(2);
        self.w(&format!("{at}.embeddings.position_embedding.weight"), &[places, width]);
        for l in 0..layers {
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
        // A pooling head that nothing uses is stored all the same.
        self.w(&format!("{at}.head.probe"), &[1, 1, width]);
        self.lin(&format!("{at}.head.attention.in_proj"), 3 * width, width, true);
        self.lin(&format!("{at}.head.attention.out_proj"), width, width, true);
        self.norm(&format!("{at}.head.layernorm"), width, true);
        self.lin(&format!("{at}.head.mlp.fc1"), inner, width, true);
        self.lin(&format!("{at}.head.mlp.fc2"), width, inner, true);
        self.w("image_embed.glb_GN", &[1, 1, width]);
        self.w("image_embed.sub_GN", &[1, 1, 1, width]);
        self.phi4_projection("image_embed.img_projection", width);
    }

    fn phi4_hearing(&mut self, top: &Map<String, Value>) {
        let get = |keys: &[&str], usual: u64| {
            let path = ["audio_processor", "config"].into_iter().chain(keys.iter().copied());
            number(top, &path.collect::<Vec<&str>>(), usual)
        };
        let width = get(&["attention_dim"], 1_024);
        let inner = get(&["linear_units"], 1_536);
        let kernel = get(&["kernel_size"], 3);
        let bands = get(&["input_size"], 80);
        let channels = get(&["nemo_conv_settings", "conv_channels"], 1_024);
        let shorter = get(&["time_reduction"], 8).max(1);
        let heads = get(&["attention_heads"], 16);
        let far = get(&["relative_attention_bias_args", "t5_bias_max_distance"], 500);
        let at = "audio_embed.encoder";
        for name in ["global_mean", "global_invstd"] {
            self.w(&format!("{at}.encoder_embedding.{name}"), &[bands]);
        }
        self.w(&format!("{at}.embed.conv.0.weight"), &[channels, 1, 3, 3]);
        self.w(&format!("{at}.embed.conv.0.bias"), &[channels]);
        // Each further halving is a convolution by channel and one across them.
        for step in 1..u64::from(shorter.ilog2()) {
            let (apart, across) = (3 * step - 1, 3 * step);
            self.w(&format!("{at}.embed.conv.{apart}.weight"), &[channels, 1, 3, 3]);
            self.w(&format!("{at}.embed.conv.{apart}.bias"), &[channels]);
            self.w(&format!("{at}.embed.conv.{across}.weight"), &[channels, channels, 1, 1]);
            self.w(&format!("{at}.embed.conv.{across}.bias"), &[channels]);
        }
        self.lin(&format!("{at}.embed.out"), width, channels * bands.div_ceil(shorter), true);
        let bias = format!("{at}.relative_attention_bias_layer.bias_values.weight");
        self.w(&bias, &[2 * far, heads]);
        for l in 0..get(&["num_blocks"], 24).min(512) {
            let at = format!("{at}.encoders.{l}");
            for part in ["feed_forward_in", "feed_forward_out"] {
                self.norm(&format!("{at}.{part}.layer_norm"), width, true);
                self.lin(&format!("{at}.{part}.net.0.linear"), 2 * inner, width, true);
                self.lin(&format!("{at}.{part}.net.2"), width, inner, true);
            }
            for name in ["linear_q", "linear_k", "linear_v", "linear_out"] {
                self.lin(&format!("{at}.self_attn.{name}"), width, width, true);
            }
            self.norm(&format!("{at}.layer_norm_att"), width, true);
            self.norm(&format!("{at}.layer_norm"), width, true);
            let at = format!("{at}.conv");
            self.norm(&format!("{at}.layer_norm"), width, true);
            self.w(&format!("{at}.glu.ext_pw_conv_1d.weight"), &[2 * width, width, 1]);
            self.w(&format!("{at}.glu.ext_pw_conv_1d.bias"), &[2 * width]);
            for name in ["b1", "b2"] {
                self.w(&format!("{at}.glu.{name}"), &[1, width, 1]);
            }
            self.w(&format!("{at}.dw_sep_conv_1d.dw_conv.weight"), &[width, 1, kernel]);
            self.w(&format!("{at}.dw_sep_conv_1d.dw_conv.bias"), &[width]);
            for name in ["dw_sep_conv_1d.pw_conv", "ext_pw_conv_1d"] {
                self.w(&format!("{at}.{name}.weight"), &[width, width, 1]);
                self.w(&format!("{at}.{name}.bias"), &[width]);
            }
        }
        for medium in ["speech", "vision"] {
            self.phi4_projection(&format!("audio_embed.audio_projection.{medium}"), width);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::model::tensors::{Place, module, place};

    #[test]
    fn adapters_and_towers_are_none_of_the_layers() {
        let layer = "model.layers.3.self_attn.qkv_proj";
        for (name, expected) in [
            ("base_layer.weight", Place::Layer(3)),
            ("lora_A.vision.weight", Place::Draft),
            ("lora_B.speech.weight", Place::Draft),
        ] {
            assert_eq!(place(&format!("{layer}.{name}"), 32), expected, "{name}");
        }
        assert_eq!(module(&format!("{layer}.base_layer.weight")), layer);
        let beside = "model.embed_tokens_extend";
        for name in ["audio_embed.encoder.encoders.3.conv.glu.b1", "image_embed.glb_GN"] {
            assert_eq!(place(&format!("{beside}.{name}"), 32), Place::Beside, "{name}");
        }
    }
}
