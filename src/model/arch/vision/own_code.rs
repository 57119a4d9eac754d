//! Towers of models that only their own code knows (`modeling_phi3_v.py`, `modeling_molmo.py`,
//! `modeling_minicpmv.py` beside their weights). Their sizes are in that code, not in `config.json`.

use serde_json::{Map, Value};

use super::super::{Build, conf::Conf, conf::whole};
use super::{Tower, phi4mm};

/// Width, inner width, layers and side of a patch of CLIP's large tower.
const CLIP: (u64, u64, u64, u64) = (1_024, 4_096, 24, 14);
/// Its places in an image of 336 dots, 24² and one, and in one of 224.
const PLACES: u64 = 577;
pub(super) const PLACES_SMALL: u64 = 257;

/// The tower, where it is one that is known; whether it was.
pub(super) fn add(build: &mut Build<'_>, top: &Map<String, Value>) -> bool {
    let kind = top.get("model_type").and_then(Value::as_str).unwrap_or_default();
    let c = Conf::text(top);
    let out = c.number(&["hidden_size"]).unwrap_or(0);
    let inner = c.number(&["intermediate_size"]).unwrap_or(0) / 2;
    let mut tower = Tower { build, c: &c, out };
    match kind {
        "phi3_v" if top.get("img_processor").is_some_and(Value::is_object) => tower.phi3(),
        "molmo" => tower.molmo(inner),
        "phi4mm" if top.get("embd_layer").is_some_and(Value::is_object) => {
            phi4mm::add(&mut tower, top);
        }
        _ => return false,
    }
    true
}

impl Tower<'_, '_> {
    /// A block of CLIP's tower.
    fn clip_block(&mut self, at: &str) {
        let (width, inner, ..) = CLIP;
        for name in ["q_proj", "k_proj", "v_proj", "out_proj"] {
            self.lin(&format!("{at}.self_attn.{name}"), width, width, true);
        }
        self.norm(&format!("{at}.layer_norm1"), width, true);
        self.norm(&format!("{at}.layer_norm2"), width, true);
        self.lin(&format!("{at}.mlp.fc1"), inner, width, true);
        self.lin(&format!("{at}.mlp.fc2"), width, inner, true);
    }

    pub(super) fn clip_large(&mut self, layers: u64, places: u64) {
        let (width, _, _, patch) = CLIP;
        self.w("embeddings.class_embedding", &[width]);
        self.w("embeddings.patch_embedding.weight", &[width, 3, patch, patch]);
        self.w("embeddings.position_embedding.weight", &[places, width]);
        self.norm("pre_layrnorm", width, true);
        for l in 0..layers {
            self.clip_block(&format!("encoder.layers.{l}"));
        }
    }

    fn phi3(&mut self) {
        let (width, out) = (CLIP.0, self.out);
        self.clip_large(CLIP.2, PLACES);
        self.norm("post_layernorm", width, true);
        // Four patches side by side, and what stands between rows and crops.
        let seen = 4 * width;
        self.w("glb_GN", &[1, 1, seen]);
        self.w("sub_GN", &[1, 1, 1, seen]);
        self.lin("img_projection.0", out, seen, true);
        self.lin("img_projection.2", out, out, true);
    }

    /// The last layer but one is seen, beside an earlier one; the last is left out.
    fn molmo(&mut self, inner: u64) {
        let (width, out) = (CLIP.0, self.out);
        self.clip_large(CLIP.2 - 1, PLACES);
        let seen = 2 * width;
        self.w("pad_embed", &[2, seen]);
        for name in ["wq", "wk", "wv"] {
            self.lin(&format!("image_pooling_2d.{name}"), width, seen, true);
        }
        self.lin("image_pooling_2d.wo", width, width, true);
        self.lin("image_projector.w1", inner, width, false);
        self.lin("image_projector.w3", inner, width, false);
        self.lin("image_projector.w2", out, inner, false);
    }

    /// `MiniCPM-V`: questions that look at the image.
    pub(super) fn resampler(&mut self, top: &Map<String, Value>) {
        let (width, out) = (self.n(&["hidden_size"]), self.out);
        let asked = top.get("query_num").and_then(whole).unwrap_or(64).min(1 << 14);
        self.w("resampler.query", &[asked, out]);
        self.lin("resampler.kv_proj", out, width, false);
        self.lin("resampler.attn.in_proj", 3 * out, out, true);
        self.lin("resampler.attn.out_proj", out, out, true);
        for name in ["ln_q", "ln_kv", "ln_post"] {
            self.norm(&format!("resampler.{name}"), out, true);
        }
        self.w("resampler.proj", &[out, out]);
    }
}
