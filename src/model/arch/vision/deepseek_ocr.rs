//! DeepSeek-OCR's encoders (`deepencoder.py`, `deepencoderv2.py` beside its weights): SAM's tower, then
//! CLIP's large one, or a small Qwen 2 whose questions look at the image.

use serde_json::{Map, Value};

use super::super::{Build, Certainty, conf::Conf, conf::whole};
use super::Tower;
use super::own_code::PLACES_SMALL;

/// Width of the neck behind SAM's blocks, and of the first of the two convolutions after it.
const NECK: (u64, u64) = (256, 512);
/// Side of SAM's windows in patches, and of a patch in dots.
const WINDOW: u64 = 14;
const PATCH: u64 = 16;
/// Width, inner width, layers, and width of keys and values of the small Qwen 2.
const QWEN: (u64, u64, u64, u64) = (896, 4_864, 24, 128);
/// Its questions: of 768 dots and of 1,024.
const ASKED: [(&str, u64); 2] = [("query_768", 144), ("query_1024", 256)];

/// The encoders, where these are theirs; whether they were.
pub(super) fn add(build: &mut Build<'_>, top: &Map<String, Value>) -> bool {
    let widths = top.get("vision_config").and_then(|v| v.get("width")?.as_object());
    let Some((widths, sam)) = widths.and_then(|w| Some((w, w.get("sam_vit_b")?))) else {
        return false;
    };
    let c = Conf::text(top);
    let out = c.number(&["hidden_size"]).unwrap_or(0);
    let (clip, qwen) = (widths.contains_key("clip-l-14-224"), widths.contains_key("qwen2-0-5b"));
    let side = top.get("vision_config").and_then(|v| v.get("image_size")).and_then(whole);
    let mut tower = Tower { build, c: &c, out };
    // What is joined: both towers side by side, or what the questions found.
    let seen = if qwen {
        tower.sam(sam, side, QWEN.0);
        tower.qwen2_encoder();
        QWEN.0
    } else {
        tower.sam(sam, side, 1_024);
        tower.clip_large(24, PLACES_SMALL);
        2 * 1_024
    };
    tower.lin("projector.layers", out, seen, true);
    tower.w("view_seperator", &[out]);
    if qwen {
        let why = "the index of its files states a megabyte more than the tensors that it names";
        build.doubt_by(Certainty::Close, (0, 1), why);
    } else {
        tower.w("image_newline", &[out]);
    }
    if clip == qwen {
        let why = "which encoders it has is not known";
        build.doubt_by(Certainty::Close, (100, 100), why);
    }
    true
}

impl Tower<'_, '_> {
    fn sam(&mut self, settings: &Value, side: Option<u64>, out: u64) {
        let number = |key: &str, usual: u64| {
            settings.get(key).and_then(whole).unwrap_or(usual).clamp(1, 1 << 14)
        };
        let (width, heads) = (number("width", 768), number("heads", 12));
        let places = (side.unwrap_or(1_024).min(1 << 14) / PATCH).max(1);
        let whole_image: Vec<u64> = match settings.get("global_attn_indexes") {
            Some(Value::Array(list)) => list.iter().take(512).filter_map(whole).collect(),
            _ => vec![2, 5, 8, 11],
        };
        self.w("sam_model.pos_embed", &[1, places, places, width]);
        self.w("sam_model.patch_embed.proj.weight", &[width, 3, PATCH, PATCH]);
        self.w("sam_model.patch_embed.proj.bias", &[width]);
        for l in 0..number("layers", 12).min(512) {
            let at = format!("sam_model.blocks.{l}");
            let side = if whole_image.contains(&l) { places } else { WINDOW };
            for axis in ["h", "w"] {
                self.w(&format!("{at}.attn.rel_pos_{axis}"), &[2 * side - 1, width / heads]);
            }
            self.norm(&format!("{at}.norm1"), width, true);
            self.norm(&format!("{at}.norm2"), width, true);
            self.lin(&format!("{at}.attn.qkv"), 3 * width, width, true);
            self.lin(&format!("{at}.attn.proj"), width, width, true);
            self.lin(&format!("{at}.mlp.lin1"), 4 * width, width, true);
            self.lin(&format!("{at}.mlp.lin2"), width, 4 * width, true);
        }
        let (neck, first) = NECK;
        self.w("sam_model.neck.0.weight", &[neck, width, 1, 1]);
        self.w("sam_model.neck.2.weight", &[neck, neck, 3, 3]);
        for norm in ["neck.1", "neck.3"] {
            self.norm(&format!("sam_model.{norm}"), neck, true);
        }
        self.w("sam_model.net_2.weight", &[first, neck, 3, 3]);
        self.w("sam_model.net_3.weight", &[out, first, 3, 3]);
    }

    fn qwen2_encoder(&mut self) {
        let (width, inner, layers, kv) = QWEN;
        for l in 0..layers {
            let at = format!("qwen2_model.model.model.layers.{l}");
            self.lin(&format!("{at}.self_attn.q_proj"), width, width, true);
            self.lin(&format!("{at}.self_attn.k_proj"), kv, width, true);
            self.lin(&format!("{at}.self_attn.v_proj"), kv, width, true);
            self.lin(&format!("{at}.self_attn.o_proj"), width, width, false);
            self.lin(&format!("{at}.mlp.gate_proj"), inner, width, false);
            self.lin(&format!("{at}.mlp.up_proj"), inner, width, false);
            self.lin(&format!("{at}.mlp.down_proj"), width, inner, false);
            self.norm(&format!("{at}.input_layernorm"), width, false);
            self.norm(&format!("{at}.post_attention_layernorm"), width, false);
        }
        self.norm("qwen2_model.model.model.norm", width, false);
        for (name, count) in ASKED {
            self.w(&format!("qwen2_model.{name}.weight"), &[count, width]);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use crate::model::arch::Certainty;
    use crate::model::estimate::tests::facts;
    use crate::model::tensors::{Place, place};

    /// The tensors that the index names, and the total that it states.
    const NAMED: u64 = 6_778_238_720;
    const STATED: u64 = 6_779_249_408;

    #[test]
    fn the_second_one_sees_through_a_small_language_model() {
        let facts = facts(
            r#"{"model_type":"deepseek_vl_v2","torch_dtype":"bfloat16","language_config":{
            "first_k_dense_replace":1,"hidden_size":1280,"intermediate_size":6848,"kv_lora_rank":null,
            "moe_intermediate_size":896,"n_routed_experts":64,"n_shared_experts":2,"num_attention_heads":10,
            "num_hidden_layers":12,"num_key_value_heads":10,"q_lora_rank":null,"qk_nope_head_dim":0,
            "qk_rope_head_dim":0,"topk_method":"greedy","use_mla":false,"v_head_dim":0,"vocab_size":129280},
            "projector_config":{"input_dim":896,"n_embed":1280,"projector_type":"linear"},"vision_config":{
            "image_size":1024,"model_type":"vision","width":{"qwen2-0-5b":{"dim":896},"sam_vit_b":{
            "global_attn_indexes":[2,5,8,11],"heads":12,"layers":12,"width":768}}}}"#,
        );
        assert_eq!(facts.weight_bytes.0, NAMED);
        assert_eq!(facts.certainty, Certainty::Close);
        let (less, more) = facts.spread.unwrap();
        assert!(less == 0 && NAMED + NAMED / 1_000 * more > STATED, "{more}");
        // Its encoder's layers are none of the language model's.
        for name in [
            "model.qwen2_model.model.model.layers.23.mlp.up_proj.weight",
            "model.sam_model.blocks.3.attn.qkv.weight",
            "model.projector.layers.weight",
            "model.view_seperator",
        ] {
            assert_eq!(place(name, 12), Place::Beside, "{name}");
        }
    }
}
