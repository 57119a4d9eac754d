//! What joins a vision tower to the language model, and towers that come with it.

use serde_json::{Map, Value};

use super::super::{Certainty, conf::whole};
use super::Tower;

/// A number of the whole model's settings.
fn number(top: &Map<String, Value>, key: &str, usual: u64) -> u64 {
    top.get(key).and_then(whole).unwrap_or(usual)
}

/// Layers of the tower that the language model sees, side by side.
fn layers_seen(top: &Map<String, Value>, usual: u64) -> u64 {
    let key = ["vision_feature_layer", "vision_feature_layers"];
    match key.iter().find_map(|k| top.get(*k)) {
        Some(Value::Array(list)) => (list.len() as u64).clamp(1, 64),
        Some(Value::Number(_)) => 1,
        _ => usual,
    }
}

impl Tower<'_, '_> {
    pub(super) fn projector(&mut self, kind: &str, top: &Map<String, Value>) {
        let (width, out) = (self.n(&["hidden_size"]), self.out);
        match kind {
            "gemma3" => {
                self.w("multi_modal_projector.mm_input_projection_weight", &[width, out]);
                self.norm("multi_modal_projector.mm_soft_emb_norm", width, false);
            }
            "mistral3" => {
                let merge = top.get("spatial_merge_size").and_then(whole).unwrap_or(2);
                self.norm("multi_modal_projector.norm", width, false);
                let merged = width.saturating_mul(merge.min(16).pow(2));
                self.lin("multi_modal_projector.patch_merger.merging_layer", width, merged, false);
                let bias = top.get("multimodal_projector_bias") == Some(&Value::Bool(true));
                self.lin("multi_modal_projector.linear_1", out, width, bias);
                self.lin("multi_modal_projector.linear_2", out, out, bias);
            }
            "idefics3" | "smolvlm" => {
                let scale = number(top, "scale_factor", 2);
                let merged = width.saturating_mul(scale.min(16).pow(2));
                self.lin("connector.modality_projection.proj", out, merged, false);
            }
            "aya_vision" | "cohere2_vision" => {
                let merged =
                    width.saturating_mul(number(top, "downsample_factor", 2).min(16).pow(2));
                let usual = if kind == "aya_vision" { out } else { 36_864 };
                let inner = number(top, "alignment_intermediate_size", usual).min(1 << 20);
                if kind == "aya_vision" {
                    self.norm("multi_modal_projector.layernorm", merged, true);
                }
                self.lin("multi_modal_projector.linear_1", inner, merged, true);
                self.lin("multi_modal_projector.linear_2", out, inner / 2, true);
            }
            "lfm2_vl" => {
                let merged =
                    width.saturating_mul(number(top, "downsample_factor", 2).min(16).pow(2));
                let inner = number(top, "projector_hidden_size", 2_560).min(1 << 20);
                let bias = top.get("projector_bias") != Some(&Value::Bool(false));
                if top.get("projector_use_layernorm") != Some(&Value::Bool(false)) {
                    self.norm("multi_modal_projector.layer_norm", merged, true);
                }
                self.lin("multi_modal_projector.linear_1", inner, merged, bias);
                self.lin("multi_modal_projector.linear_2", out, inner, bias);
            }
            "vipllava" => {
                let seen = width.saturating_mul(layers_seen(top, 5));
                self.norm("multi_modal_projector.projector_layernorm", seen, true);
                self.lin("multi_modal_projector.linear_1", out, seen, true);
                self.lin("multi_modal_projector.linear_2", out, out, true);
            }
            "paligemma" => self.lin("multi_modal_projector.linear", out, width, true),
            "llava" | "llava_next" | "llava_onevision" | "llava_next_video" => {
                let bias = top.get("multimodal_projector_bias") != Some(&Value::Bool(false));
                let seen = width.saturating_mul(layers_seen(top, 1));
                self.lin("multi_modal_projector.linear_1", out, seen, bias);
                self.lin("multi_modal_projector.linear_2", out, out, bias);
                if kind != "llava" {
                    self.w("image_newline", &[out]);
                }
            }
            _ => self.build.doubt(
                Certainty::Close,
                "what joins its vision tower to the language model is not counted",
            ),
        }
    }

    /// `modeling_ernie4_5_vl_moe.py`: the tower, and a resampler over space and time.
    pub(super) fn ernie(&mut self) {
        let (width, inner) = (self.n(&["hidden_size"]), self.n(&["intermediate_size"]));
        let patch = self.n(&["patch_size"]).max(1);
        self.w("patch_embed.proj.weight", &[width, 3 * patch * patch]);
        for l in 0..self.layers() {
            self.norm(&format!("blocks.{l}.norm1"), width, true);
            self.norm(&format!("blocks.{l}.norm2"), width, true);
            self.lin(&format!("blocks.{l}.attn.qkv"), 3 * width, width, true);
            self.lin(&format!("blocks.{l}.attn.proj"), width, width, true);
            self.lin(&format!("blocks.{l}.mlp.fc1"), inner, width, true);
            self.lin(&format!("blocks.{l}.mlp.fc2"), width, inner, true);
        }
        self.norm("ln", width, true);
        let space = width * self.n(&["spatial_merge_size"]).max(1).pow(2);
        let time = space * self.c.number(&["temporal_merge_size"]).unwrap_or(2).min(16);
        for (name, seen) in [("spatial_linear", space), ("temporal_linear", time)] {
            self.lin(&format!("resampler.{name}.fc1"), space, seen, true);
            self.lin(&format!("resampler.{name}.fc2"), space, space, true);
            self.norm(&format!("resampler.{name}.ln"), space, true);
        }
        let out = self.out;
        self.lin("resampler.mlp", out, space, true);
        self.norm("resampler.after_norm", out, false);
    }

    /// `MiniMax` M3 (`modeling_minimax_m3_vl.py`): CLIP's blocks without places, two layers to the language
    /// model's width, and two that merge patches.
    pub(super) fn minimax(&mut self, top: &Map<String, Value>) {
        let (width, inner, out) =
            (self.n(&["hidden_size"]), self.n(&["intermediate_size"]), self.out);
        let merging = top.get("img_token_compression_config").and_then(Value::as_object);
        let get = |key: &str| merging.and_then(|m| m.get(key)).and_then(whole).unwrap_or(2).min(16);
        let (patch, time) = (self.n(&["patch_size"]), get("temporal_patch_size"));
        let shape = [width, 3, time, patch, patch];
        self.build.typed("visual.patch_embedding.weight", &shape, 1, ("F32", 4));
        self.norm("pre_layrnorm", width, true);
        for l in 0..self.layers() {
            let at = format!("encoder.layers.{l}");
            for name in ["q_proj", "k_proj", "v_proj", "out_proj"] {
                self.lin(&format!("{at}.self_attn.{name}"), width, width, true);
            }
            self.norm(&format!("{at}.layer_norm1"), width, true);
            self.norm(&format!("{at}.layer_norm2"), width, true);
            self.lin(&format!("{at}.mlp.fc1"), inner, width, true);
            self.lin(&format!("{at}.mlp.fc2"), width, inner, true);
        }
        let seen = number(top, "projector_hidden_size", out).min(1 << 20);
        let merged = seen.saturating_mul(get("spatial_merge_size").pow(2));
        for (name, rows, columns) in [
            ("linear_1", seen, width),
            ("linear_2", seen, seen),
            ("merge_linear_1", seen, merged),
            ("merge_linear_2", out, seen),
        ] {
            self.lin(&format!("multi_modal_projector.{name}"), rows, columns, true);
        }
    }

    /// `modeling_ovis2.py`: a tower that names visual words, and a table of them.
    pub(super) fn ovis(&mut self, top: &Map<String, Value>) {
        let (width, inner) = (self.n(&["hidden_size"]), self.n(&["intermediate_size"]));
        let patch = self.n(&["patch_size"]).max(1);
        let patches = (self.n(&["image_size"]) / patch).pow(2);
        self.w("embeddings.patch_embedding.weight", &[width, 3, patch, patch]);
        self.w("embeddings.patch_embedding.bias", &[width]);
        self.w("embeddings.position_embedding.weight", &[patches, width]);
        self.norm("embeddings.rms_norm", width, false);
        for l in 0..self.layers() {
            let at = format!("encoder.layers.{l}");
            let bias = self.c.on("qkv_bias");
            for name in ["q_proj", "k_proj", "v_proj"] {
                self.lin(&format!("{at}.attention.{name}"), width, width, bias);
            }
            self.lin(&format!("{at}.attention.out_proj"), width, width, bias);
            let bias = self.c.on("mlp_bias");
            self.lin(&format!("{at}.ffn.gate_proj"), inner, width, bias);
            self.lin(&format!("{at}.ffn.up_proj"), inner, width, bias);
            self.lin(&format!("{at}.ffn.down_proj"), width, inner, bias);
            self.norm(&format!("{at}.rms_norm1"), width, false);
            self.norm(&format!("{at}.rms_norm2"), width, false);
        }
        self.norm("rms_norm", width, false);
        let words = self.c.number(&["vocab_size"]).unwrap_or(16_384);
        let signs = self.c.number(&["num_visual_indicator_tokens"]).unwrap_or(5);
        let stride = self.c.number(&["hidden_stride"]).unwrap_or(1).clamp(1, 16);
        let seen = words.saturating_sub(signs);
        self.lin("head_linear", seen, width * stride * stride, false);
        self.norm("head_norm", seen, true);
        // As wide as the whole model's settings say, whatever the language model is.
        let out = number(top, "hidden_size", 1_536).min(1 << 20);
        self.w("visual_embeddings_table.weight", &[words, out]);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use crate::model::estimate::tests::{facts, rules};
    use crate::model::estimate::{Setup, predict};

    /// `MiniMax` M3 in MXFP8: the sum of the tensors that its files list, 413.27 GiB.
    #[test]
    fn minimax_m3_has_the_bytes_of_its_files() {
        let sparse: Vec<u64> = (0..60).map(|l| u64::from(l > 2)).collect();
        let config = format!(
            r#"{{"architectures":["MiniMaxM3SparseForConditionalGeneration"],"model_type":"minimax_m3_vl",
            "torch_dtype":"bfloat16","projector_hidden_size":6144,"text_config":{{"dtype":"bfloat16",
            "hidden_size":6144,"intermediate_size":3072,"dense_intermediate_size":12288,
            "shared_intermediate_size":3072,"num_hidden_layers":60,"num_attention_heads":64,"num_key_value_heads":4,
            "head_dim":128,"vocab_size":200064,"max_position_embeddings":1048576,"use_qk_norm":true,
            "qk_norm_type":"per_head","num_local_experts":128,"num_experts_per_tok":4,"n_shared_experts":1,
            "use_routing_bias":true,"moe_layer_freq":{sparse:?},"num_mtp_modules":1,"tie_word_embeddings":false,
            "sparse_attention_config":{{"use_sparse_attention":true,"sparse_index_dim":128,
            "sparse_num_index_heads":4,"sparse_attention_freq":{sparse:?}}}}},"vision_config":{{
            "model_type":"clip_vision_model","hidden_size":1280,"intermediate_size":5120,"num_attention_heads":16,
            "num_hidden_layers":32,"patch_size":14,"image_size":2016}},"img_token_compression_config":{{
            "spatial_merge_size":2,"temporal_patch_size":2}},"quantization_config":{{"quant_method":"mxfp8",
            "activation_scheme":"dynamic","weight_block_size":[1,32],"ignored_layers":["lm_head",
            "model.embed_tokens","vision_tower","multi_modal_projector","patch_merge_mlp"]}}}}"#
        );
        let facts = facts(&config);
        assert_eq!(facts.weight_bytes.0, 443_742_085_120);
        let kept = |tensor| {
            predict(&facts, &Setup { tensor, ..Setup::new(rules("vllm")) }).ranks[0].cache_per_token
        };
        // Keys and values of four heads in sixty layers, divided; a key of 128 in 57, by every rank.
        let index = 57 * 128 * 2;
        assert_eq!(kept(1).value, 60 * 2 * 4 * 128 * 2 + index);
        assert_eq!(kept(4).value, 60 * 2 * 128 * 2 + index);
    }
}
